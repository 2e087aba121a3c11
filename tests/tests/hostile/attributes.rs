//! Attributes too large, too many, and never the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use snapshot_tests::bench::root;

use crate::support::{Victim, frozen};

fn set(path: &Path, key: &str, value: &[u8]) {
    rustix::fs::setxattr(path, key, value, XattrFlags::empty()).unwrap();
}

fn get(path: &Path, key: &str) -> Vec<u8> {
    let mut value = vec![0; 1 << 16];
    let len = rustix::fs::getxattr(path, key, &mut value[..]).unwrap();
    value.truncate(len);
    value
}

#[test]
fn the_largest_attributes_arrive_or_are_named() {
    if !root() {
        return;
    }
    let victim = Victim::new("xfs");
    let file = victim.root().join("file");
    fs::write(&file, "content").unwrap();
    // The largest value RAFS has, and as many attributes as its 256 KiB hold.
    set(&file, "user.large", &vec![b'l'; 65_535]);
    for n in 0..1000 {
        set(&file, &format!("user.one-of-many-{n:04}"), &[b'm'; 100]);
    }
    let result = victim.commit(&[]).json();
    let image = victim.mount(&result);
    for tree in [&frozen(&result), image.path()] {
        assert_eq!(get(&tree.join("file"), "user.large"), vec![b'l'; 65_535]);
        assert_eq!(get(&tree.join("file"), "user.one-of-many-0999"), [b'm'; 100]);
    }
    drop(image);
    // The largest the kernel has is one byte more than the format's length field can say.
    set(&file, "user.large", &vec![b'l'; 65_536]);
    let refused = victim.commit(&["--output", "text"]);
    assert_eq!(refused.ended.code, Some(1), "{:#?}", refused.ended);
    assert!(refused.ended.stderr.contains("`/file`"), "{:#?}", refused.ended);
    // XFS takes values without end.
    for n in 0..20 {
        set(&file, &format!("user.huge-{n}"), &vec![b'h'; 65_000]);
    }
    let refused = victim.commit(&["--output", "text"]);
    assert_eq!(refused.ended.code, Some(1), "{:#?}", refused.ended);
    assert!(refused.ended.stderr.contains("attributes of \"file\""), "{:#?}", refused.ended);
    // And names: their list is longer than the kernel gives anybody.
    fs::remove_file(&file).unwrap();
    fs::write(&file, "content").unwrap();
    for n in 0..280 {
        set(&file, &format!("user.{n:0250}"), b"");
    }
    let refused = victim.commit(&["--output", "text"]);
    assert_eq!(refused.ended.code, Some(1), "{:#?}", refused.ended);
    assert!(refused.ended.stderr.contains("attributes of \"file\""), "{:#?}", refused.ended);
    assert!(refused.peak < 400 << 10, "{} KiB", refused.peak);
}

#[test]
fn attributes_that_change_between_list_and_get() {
    if !root() {
        return;
    }
    for file_system in ["ext4", "xfs"] {
        let mut victim = Victim::new(file_system);
        fs::write(victim.root().join("restless"), "content").unwrap();
        victim.worker.ask("attack attributes /restless").unwrap();
        let made = victim.commit(&[]);
        let strokes = victim.worker.ask("peace").unwrap();
        println!("{file_system}: {strokes} changes, {:?}", made.took);
        made.json();
    }
}

/// Immutable, append-only, set-id, without any permission.
#[test]
fn what_nobody_may_read_is_read() {
    if !root() {
        return;
    }
    let victim = Victim::new("ext4");
    let dir = victim.root().join("guarded");
    fs::create_dir(&dir).unwrap();
    for name in ["immutable", "append", "closed", "setuid"] {
        fs::write(dir.join(name), name).unwrap();
    }
    let mode = |name: &str, mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("closed", 0o0);
    mode("setuid", 0o6755);
    let attribute = |flag: &str, name: &str| {
        let path = victim.container.upper().join("guarded").join(name);
        let changed = Command::new("chattr").arg(flag).arg(path).status().unwrap();
        assert!(changed.success());
    };
    attribute("+i", "immutable");
    attribute("+a", "append");
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    let made = victim.commit(&[]);
    // Before anything can fail: it must be possible to remove them.
    attribute("-i", "immutable");
    attribute("-a", "append");
    let result = made.json();
    for name in ["immutable", "append", "closed", "setuid"] {
        assert_eq!(fs::read_to_string(frozen(&result).join("guarded").join(name)).unwrap(), name);
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(frozen(&result).join("guarded/setuid")).unwrap().mode() & 0o7777, 0o6755);
}
