use proptest::prelude::*;

use super::*;

/// A stream in the making.
#[derive(Default)]
struct Made(Vec<u8>);

impl Made {
    fn block(mut self, kind: u8, path: &str, size: u64, change: impl FnOnce(&mut Header)) -> Made {
        let mut header = Header::new_ustar();
        header.as_old_mut().linkflag = [kind];
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o100_644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_size(size);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Made {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn records(self, records: &[(&str, &[u8])]) -> Made {
        let mut all = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + rest.to_string().len();
            len = rest + len.to_string().len();
            all.extend_from_slice(format!("{len} {key}=").as_bytes());
            all.extend_from_slice(value);
            all.push(b'\n');
        }
        self.block(b'x', "records", all.len() as u64, |_| {}).bytes(&all)
    }

    fn file(self, path: &str, content: &[u8]) -> Made {
        self.block(b'0', path, content.len() as u64, |_| {}).bytes(content)
    }

    fn end(mut self) -> Made {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self
    }

    fn read(&self) -> Result<Vec<Read1>, String> {
        read(&self.0)
    }
}

type Read1 = (Result<Entry, Unfit>, Vec<u8>);

fn read(bytes: &[u8]) -> Result<Vec<Read1>, String> {
    let mut tar = Tar::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = tar.entry().map_err(|e| e.to_string())? {
        let mut content = Vec::new();
        if let Ok(Entry { what: What::File(_), .. }) = &entry {
            tar.read_to_end(&mut content).map_err(|e| e.to_string())?;
        }
        all.push((entry, content));
    }
    Ok(all)
}

fn only(made: &Made) -> Entry {
    let mut all = made.read().unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0).0.unwrap()
}

#[test]
fn entries_are_read() {
    let made = Made::default()
        .block(b'5', "etc/", 7, |_| {})
        .file("etc/a", b"one")
        .block(b'0', "etc/empty", 0, |_| {})
        .block(b'2', "etc/l", 0, |h| h.set_link_name_literal("../x").unwrap())
        .block(b'1', "etc/h", 0, |h| h.set_link_name_literal("etc/a").unwrap())
        .block(b'3', "dev/c", 0, |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .block(b'6', "dev/p", 0, |_| {})
        .block(b'\0', "old/", 0, |_| {})
        .end();
    let all = made.read().unwrap();
    let whats: Vec<&What> = all.iter().map(|(entry, _)| &entry.as_ref().unwrap().what).collect();
    assert_eq!(
        whats,
        [
            &What::Dir,
            &What::File(3),
            &What::File(0),
            &What::Symlink(b"../x"[..].into()),
            &What::Link(b"etc/a"[..].into()),
            &What::Char(Rdev(rustix::fs::makedev(1, 3))),
            &What::Fifo,
            &What::Dir,
        ]
    );
    assert_eq!(all[1].1, b"one");
    let Ok(Entry { meta, .. }) = &all[1].0 else { panic!() };
    let mtime = Mtime { sec: 3, nsec: 0 };
    assert_eq!(*meta, Meta { mode: 0o644, uid: 1, gid: 2, mtime, xattrs: Vec::new() });
}

#[test]
fn records_say_more_than_the_header() {
    let long = format!("{}/file", "d".repeat(300));
    let made = Made::default()
        .records(&[
            ("path", long.as_bytes()),
            ("uid", b"4000000000"),
            ("gid", b"3000000000"),
            ("mtime", b"-1.75"),
            ("SCHILY.xattr.user.b", b"a\nb=c\n"),
            ("SCHILY.xattr.security.capability", b"\0\n\xff"),
            ("SCHILY.xattr.user.a", b""),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.com.apple.quarantine", b"x"),
            ("comment", b"nothing"),
        ])
        .file("short", b"");
    let Entry { path, meta, .. } = only(&made);
    assert_eq!(path[..], *long.as_bytes());
    assert_eq!(
        (meta.uid, meta.gid, meta.mtime),
        (4_000_000_000, 3_000_000_000, Mtime { sec: -2, nsec: 250_000_000 })
    );
    let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    let expected =
        [pair("security.capability", b"\0\n\xff"), pair("user.a", b""), pair("user.b", b"a\nb=c\n")];
    assert_eq!(meta.xattrs, expected);
    // What is said once holds for one entry.
    let made = made.file("next", b"");
    assert_eq!(made.read().unwrap()[1].0.as_ref().unwrap().path[..], *b"next");
}

#[test]
fn a_records_size_is_the_one_that_counts() {
    let made =
        Made::default().records(&[("size", b"3")]).block(b'0', "f", 0, |_| {}).bytes(b"abc").file("g", b"");
    let all = made.read().unwrap();
    assert_eq!((all[0].1.as_slice(), all.len()), (&b"abc"[..], 2));
}

#[test]
fn long_names_of_gnu_are_read() {
    let (name, link) = ("n".repeat(150), "l".repeat(170));
    let gnu = |kind, text: &str| {
        Made::default()
            .block(kind, "././@LongLink", text.len() as u64 + 1, |_| {})
            .bytes(&[text.as_bytes(), b"\0"].concat())
    };
    let mut made = gnu(b'K', &link);
    made.0.extend(gnu(b'L', &name).0);
    let Entry { path, what, .. } = only(&made.block(b'2', "cut", 0, |_| {}));
    assert_eq!((path[..].to_vec(), what), (name.into_bytes(), What::Symlink(link.into_bytes().into())));
}

#[test]
fn times_before_the_epoch_and_beyond_octal() {
    let of = |text: &str| time(text.as_bytes());
    let at = |sec, nsec| Some(Mtime { sec, nsec });
    assert_eq!((of("5"), of("5.5"), of("-0.000000001")), (at(5, 0), at(5, 500_000_000), at(-1, 999_999_999)));
    assert_eq!((of("1.1234567899"), of("-3"), of("7.")), (at(1, 123_456_789), at(-3, 0), at(7, 0)));
    assert_eq!((of(""), of("x"), of("1.x"), of("-"), of("1e3")), (None, None, None, None, None));
    assert_eq!((of("-9223372036854775808.5"), of("99999999999999999999")), (None, None));
    let made = Made::default().block(b'0', "f", 0, |h| h.as_old_mut().mtime = [0xff; 12]);
    assert_eq!(only(&made).meta.mtime, Mtime { sec: -1, nsec: 0 });
    let made = Made::default().block(b'0', "f", 0, |h| h.as_old_mut().mtime = [0; 12]);
    assert_eq!(only(&made).meta.mtime, Mtime::default());
}

#[test]
fn what_is_no_tar_is_told() {
    let broken = |made: Made, part: &str| {
        let said = made.read().unwrap_err();
        assert!(said.contains(part), "{said}");
    };
    broken(Made(b"#!/bin/sh\n".repeat(100)), "checksum");
    broken(Made(vec![b'x'; 100]), "cut off within a header");
    broken(Made(Made::default().file("a", &[1; 600]).0[..1100].to_vec()), "cut off within an entry");
    let mut after = Made::default().file("a", b"x").0;
    after.extend_from_slice(&[0; BLOCK]);
    after.extend(Made::default().file("hidden", b"x").0);
    broken(Made(after), "after a block of zeros");
    broken(Made::default().records(&[("path", b"x")]).end(), "before the entry");
    broken(Made::default().records(&[("uid", b"-1")]).file("a", b""), "a number in a record");
    broken(
        Made::default().records(&[("size", b"18446744073709551615")]).file("a", b""),
        "larger than any file",
    );
    for records in ["5 a\n", "6 a=b", "99 a=b\n", "x a=b\n", "5 =b\n", "00000000006 a=\n"] {
        let made = Made::default().block(b'x', "r", records.len() as u64, |_| {}).bytes(records.as_bytes());
        broken(made.file("a", b""), "malformed");
    }
    // No byte of it is read: there is none.
    broken(Made::default().block(b'x', "r", (1 << 20) + 1, |_| {}), "1 MiB");
    broken(
        Made::default()
            .block(b'L', "r", 1 << 33, |h| h.as_old_mut().size = [0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]),
        "1 MiB",
    );
    broken(
        Made::default().block(b'0', "f", 0, |h| h.as_old_mut().uid = *b"eight888"),
        "a number in a header",
    );
    broken(Made::default().block(b'S', "f", 0, |_| {}), "sparse");
}

#[test]
fn what_means_nothing_is_passed_over() {
    let unfit = |made: Made| {
        let all = made.file("next", b"here").read().unwrap();
        assert_eq!((all.len(), all[1].1.as_slice()), (2, &b"here"[..]));
        all.into_iter().next().unwrap().0.unwrap_err().what
    };
    assert!(unfit(Made::default().block(b'V', "v", 3, |_| {}).bytes(b"abc")).contains("kind"));
    assert!(unfit(Made::default().records(&[("uid", b"4294967296")]).file("a", b"x")).contains("32 bits"));
    assert!(unfit(Made::default().records(&[("GNU.sparse.major", b"1")]).file("a", b"x")).contains("sparse"));
    assert!(
        unfit(Made::default().records(&[("path", &[b'a'; MAX_PATH + 1])]).file("a", b"x")).contains("64 KiB")
    );
    let value = vec![0; MAX_VALUE + 1];
    assert!(
        unfit(Made::default().records(&[("SCHILY.xattr.user.a", &value)]).file("a", b"x"))
            .contains("attribute")
    );
    assert!(unfit(Made::default().block(b'2', "l", 0, |_| {})).contains("nowhere"));
    assert!(
        unfit(
            Made::default()
                .block(b'3', "c", 0, |h| h.as_ustar_mut().unwrap().dev_major = *b"x\0\0\0\0\0\0\0")
        )
        .contains("device")
    );
    // Of no consequence at all.
    let global = Made::default().block(b'g', "pax_global_header", 5, |_| {}).bytes(b"6 a=\n");
    assert_eq!(only(&global.file("a", b"")).path[..], *b"a");
}

proptest! {
    /// Whatever the bytes are, there is an answer, and no more entries than there are blocks.
    #[test]
    fn any_bytes_have_an_answer(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
        // The same behind sound headers.
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        for block in bytes.chunks_mut(BLOCK) {
            let mut header = *Header::from_byte_slice(block).as_bytes();
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            block.copy_from_slice(&header);
        }
        if let Ok(all) = read(&bytes) {
            prop_assert!(all.len() <= bytes.len() / BLOCK);
        }
    }

    /// One changed byte of a sound stream is not always seen, and never harms.
    #[test]
    fn a_damaged_stream_has_an_answer(at in 0usize..6000, byte in any::<u8>()) {
        let mut bytes = Made::default()
            .records(&[("path", b"a/long/path"), ("SCHILY.xattr.user.a", b"value"), ("mtime", b"1.5")])
            .file("f", &[7; 700])
            .block(b'5', "d/", 0, |_| {})
            .block(b'1', "d/l", 0, |h| h.set_link_name_literal("f").unwrap())
            .end()
            .0;
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}
