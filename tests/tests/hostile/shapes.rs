//! Trees too deep, too wide, and with too many names for one inode.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use snapshot_tests::bench::root;
use snapshot_tests::hostile::{deep, depth};

use crate::support::{Victim, frozen};

/// More than a path may have (`PATH_MAX` is 4096 bytes), than there are descriptors, and than a stack takes.
#[test]
fn a_tree_deeper_than_any_path() {
    if !root() {
        return;
    }
    const DEPTH: usize = 5000;
    let victim = Victim::new("ext4");
    let top = victim.root().join("top");
    fs::create_dir(&top).unwrap();
    deep(&top, "directory", DEPTH).unwrap();
    let made = victim.commit(&[]);
    println!("{DEPTH} deep: {:?}, {} KiB", made.took, made.peak);
    let result = made.json();
    assert_eq!(depth(&frozen(&result).join("top"), "directory").unwrap(), (DEPTH, true));
    let image = victim.mount(&result);
    assert_eq!(depth(&image.path().join("top"), "directory").unwrap(), (DEPTH, true));
    drop(image);
    assert!(made.peak < 400 << 10, "{} KiB", made.peak);
    // And it can be removed again.
    let removed = victim.ask(&["remove", result["snapshot_id"].as_str().unwrap()]);
    assert_eq!(removed.ended.code, Some(0), "{:#?}", removed.ended);
    assert!(!frozen(&result).exists());
}

/// Time and memory grow with the entries and no faster. Four times as many take at most eight times as long on a noisy machine; were
/// something quadratic, sixteen times.
#[test]
fn a_directory_of_very_many_entries() {
    if !root() {
        return;
    }
    let million = std::env::var_os("SNAPSHOT_HOSTILE_MILLION").is_some();
    let steps: &[usize] = if million { &[250_000, 750_000] } else { &[10_000, 30_000] };
    let victim = Victim::new("xfs");
    let wide = victim.root().join("wide");
    fs::create_dir(&wide).unwrap();
    let dir = rustix::fs::open(&wide, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut count = 0;
    let mut seen: Vec<(usize, Duration, u64)> = Vec::new();
    for step in steps {
        for n in count..count + step {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let file =
                rustix::fs::openat(&dir, format!("entry-{n}"), flags, Mode::RUSR | Mode::WUSR).unwrap();
            if n % 1000 == 0 {
                rustix::io::write(&file, format!("content of {n}").as_bytes()).unwrap();
            }
        }
        count += step;
        let made = victim.commit(&[]);
        println!(
            "{count} entries: {:?}, {} KiB, {} bytes each",
            made.took,
            made.peak,
            (made.peak << 10) / count as u64
        );
        let result = made.json();
        assert_eq!(fs::read_dir(frozen(&result).join("wide")).unwrap().count(), count);
        let image = victim.mount(&result);
        assert_eq!(fs::read_dir(image.path().join("wide")).unwrap().count(), count);
        let last = (count - 1) / 1000 * 1000;
        let content = fs::read_to_string(image.path().join(format!("wide/entry-{last}"))).unwrap();
        assert_eq!(content, format!("content of {last}"));
        drop(image);
        victim.ask(&["remove", result["snapshot_id"].as_str().unwrap()]);
        seen.push((count, made.took, made.peak));
    }
    let [(few, short, small), (many, long, large)] = seen[..] else { panic!("two steps") };
    assert!(long < short * 8 + Duration::from_secs(2), "{short:?}, then {long:?}: quadratic?");
    let each = large.saturating_sub(small) * 1024 / (many - few) as u64;
    println!("{each} bytes for each further entry");
    assert!(each < 2048, "{each} bytes an entry");
}

/// As many names as ext4 gives one inode, made, seen, moved and removed between two rounds.
#[test]
fn a_farm_of_hard_links() {
    if !root() {
        return;
    }
    const LINKS: usize = 64_000;
    let mut victim = Victim::new("ext4");
    let farm = victim.root().join("farm");
    fs::create_dir(&farm).unwrap();
    let dir = rustix::fs::open(&farm, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    fs::write(farm.join("0"), "one of many").unwrap();
    for n in 1..LINKS {
        let name = CString::new(n.to_string()).unwrap();
        rustix::fs::linkat(&dir, c"0", &dir, &name, AtFlags::empty()).unwrap();
    }
    victim.worker.ask("attack exchange /farm/0 /farm/1").unwrap();
    let made = victim.commit(&[]);
    victim.worker.ask("peace").unwrap();
    println!("{LINKS} links: {:?}, {} KiB", made.took, made.peak);
    let result = made.json();
    let copy = fs::metadata(frozen(&result).join("farm/0")).unwrap();
    assert_eq!(copy.nlink(), LINKS as u64);
    assert_eq!(fs::metadata(victim.mount(&result).path().join("farm/1")).unwrap().nlink(), LINKS as u64);
    assert!(made.took < Duration::from_secs(30), "{:?}", made.took);
}

/// A directory that is filled and emptied while it is listed.
#[test]
fn a_directory_that_shrinks_while_it_is_read() {
    if !root() {
        return;
    }
    let mut victim = Victim::new("xfs");
    fs::create_dir(victim.root().join("shrinking")).unwrap();
    victim.worker.ask("attack shrink /shrinking").unwrap();
    let made = victim.commit(&[]);
    victim.worker.ask("peace").unwrap();
    let result = made.json();
    for entry in fs::read_dir(frozen(&result).join("shrinking")).unwrap().map(Result::unwrap) {
        // Created and then written: two calls, so empty or whole.
        let content = fs::read(entry.path()).unwrap();
        assert!(content.is_empty() || content == b"here", "{content:?}");
    }
}
