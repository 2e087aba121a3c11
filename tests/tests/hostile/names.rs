//! Names that break what prints them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::XattrFlags;
use snapshot_tests::bench::root;

use crate::support::{Measured, Victim, frozen};

const BAD: [&[u8]; 16] = [
    b"new\nline",
    b"\xff\xfe not utf-8 \x80",
    b"\x1b[2J\x1b]0;owned\x07",
    b"back\x08\x08\rreturn",
    b"\xc2\x9b31mc1",
    "\u{202e}txt.exe".as_bytes(),
    b".wh.x",
    b".wh..wh..opq",
    b"..wh..opq",
    b"-rf",
    b"--work-dir",
    b"...",
    b" ",
    b"tab\tand \"quotes\" \\ {}",
    b"$(reboot)`reboot`;&|",
    b"%s%n",
];

fn names(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

fn nothing_obeyed(measured: &Measured) {
    for text in [&measured.ended.stdout, &measured.ended.stderr] {
        let bad = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{text:?}");
    }
}

#[test]
fn every_name_arrives_and_none_is_obeyed() {
    if !root() {
        return;
    }
    let victim = Victim::new("xfs");
    let dir = victim.root().join("names");
    fs::create_dir(&dir).unwrap();
    let mut expected: BTreeSet<OsString> =
        BAD.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    expected.insert(OsString::from_vec(vec![b'x'; 255]));
    expected.insert(OsString::from_vec(vec![0xf1; 255]));
    for name in &expected {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join(name), name.as_bytes()).unwrap();
    }
    let result = victim.commit(&[]).json();
    let image = victim.mount(&result);
    for tree in [&frozen(&result), image.path()] {
        assert_eq!(names(&tree.join("names")), expected);
        for name in &expected {
            let content = fs::read(tree.join("names").join(name).join(name)).unwrap();
            assert_eq!(content, name.as_bytes());
        }
    }
    drop(image);
    for command in ["list", "stats"] {
        nothing_obeyed(&victim.ask(&[command]));
        victim.ask(&[command, "--output", "json"]).json();
    }

    // Errors name what the container has named.
    for (n, name) in BAD.iter().enumerate() {
        let file = dir.join(OsStr::from_bytes(name)).join(OsStr::from_bytes(name));
        // More than RAFS takes of one inode; XFS does.
        for i in 0..5 {
            let key = format!("user.big{i}");
            rustix::fs::setxattr(&file, key.as_str(), &[b'x'; 60_000], XattrFlags::empty()).unwrap();
        }
        if n % 4 == 0 {
            let failed = victim.commit(&["--output", "text"]);
            assert_eq!(failed.ended.code, Some(1), "{:#?}", failed.ended);
            assert!(failed.ended.stderr.contains("256 KiB"), "{:#?}", failed.ended);
            nothing_obeyed(&failed);
            let failed = victim.commit(&["-vvv"]);
            nothing_obeyed(&Measured {
                ended: snapshot_tests::engine::Ended { stdout: String::new(), ..failed.ended },
                ..failed
            });
        }
        for i in 0..5 {
            rustix::fs::removexattr(&file, format!("user.big{i}").as_str()).unwrap();
        }
    }
    // The failed snapshots are listed and shown, with their errors.
    nothing_obeyed(&victim.ask(&["list"]));
    let listed = victim.ask(&["list", "--output", "json"]).json();
    for snapshot in listed["snapshots"].as_array().unwrap() {
        nothing_obeyed(&victim.ask(&["status", snapshot["snapshot_id"].as_str().unwrap()]));
    }
}
