//! Names that lead elsewhere while the engine is on its way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use snapshot_tests::bench::root;

use crate::support::{Canary, SECRET, Victim, frozen};

/// Directories that look like the canary, each beside a link to it: absolute, relative, by a magic link, to the root.
fn traps(victim: &Victim, canary: &Path) -> Vec<String> {
    let up = "../".repeat(30);
    let links = [
        canary.to_owned(),
        format!("{up}{}", canary.display()).into(),
        format!("/proc/self/root{}", canary.display()).into(),
        "/".into(),
        "../..".into(),
    ];
    let mut pairs = Vec::new();
    for (n, link) in links.iter().enumerate() {
        let top = victim.root().join(format!("trap{n}"));
        fs::create_dir_all(top.join("directory/below")).unwrap();
        for name in ["directory/secret", "directory/below/secret"] {
            fs::write(top.join(name), "inside").unwrap();
        }
        symlink(link, top.join("link")).unwrap();
        pairs.push(format!("/trap{n}/directory /trap{n}/link"));
        // The same for a file in the place of a file.
        fs::write(top.join("file"), "inside").unwrap();
        symlink(link.join("secret"), top.join("file-link")).unwrap();
        pairs.push(format!("/trap{n}/file /trap{n}/file-link"));
    }
    pairs
}

fn no_way_leads_out(file_system: &str) {
    let mut victim = Victim::new(file_system);
    let canary = Canary::new(victim.disk.path().join("canary"));
    for pair in traps(&victim, &canary.at) {
        victim.worker.ask(&format!("attack exchange {pair}")).unwrap();
    }
    let (mut cuts, mut refusals) = (0, 0);
    for gate in ["auto", "freezer", "fence", "none"] {
        let ended = victim.commit(&["--gate", gate]);
        assert!(!ended.ended.stderr.contains("panicked"), "{:#?}", ended.ended);
        if ended.ended.code == Some(0) {
            cuts += 1;
            victim.nothing_leaked(&ended.json());
        } else {
            refusals += 1;
            assert!(ended.ended.stderr.contains("help"), "{gate}: {:#?}", ended.ended);
        }
    }
    let strokes: u64 = victim.worker.ask("peace").unwrap().parse().unwrap();
    println!("{file_system}: {strokes} swaps, {cuts} cuts, {refusals} refusals");
    assert!(cuts >= 2 && strokes > 1000, "{cuts} cuts, {strokes} swaps");
    // In peace it is a tree like any other.
    let result = victim.commit(&[]).json();
    victim.nothing_leaked(&result);
    canary.must_sing();
}

#[test]
fn no_link_leads_out_of_the_tree_on_ext4() {
    if root() {
        no_way_leads_out("ext4");
    }
}

#[test]
fn no_link_leads_out_of_the_tree_on_xfs() {
    if root() {
        no_way_leads_out("xfs");
    }
}

/// Files, FIFOs, devices, directories and links change places; FIFOs and devices are not opened once, by the kernel's own account.
#[test]
fn no_device_and_no_fifo_is_opened() {
    if !root() {
        return;
    }
    let mut victim = Victim::new("ext4");
    let canary = Canary::new(victim.disk.path().join("canary"));
    let (inside, upper) = (victim.root().join("kinds"), victim.container.upper().join("kinds"));
    fs::create_dir(&inside).unwrap();
    for n in 0..4 {
        fs::write(inside.join(format!("file{n}")), "content").unwrap();
    }
    fs::create_dir(inside.join("directory")).unwrap();
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, inside.join(name), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
        canary.watch_opens(&upper.join(name));
    };
    node("fifo", FileType::Fifo, 0);
    node("pty", FileType::CharacterDevice, rustix::fs::makedev(5, 2));
    node("watchdog", FileType::CharacterDevice, rustix::fs::makedev(10, 130));
    node("loop", FileType::BlockDevice, rustix::fs::makedev(7, 250));
    node("socket", FileType::Socket, 0);
    for (a, b) in [
        ("file0", "fifo"),
        ("file1", "pty"),
        ("file2", "watchdog"),
        ("file3", "loop"),
        ("directory", "socket"),
    ] {
        victim.worker.ask(&format!("attack exchange /kinds/{a} /kinds/{b}")).unwrap();
    }
    victim.worker.ask("attack replace /kinds/anything").unwrap();
    let mut cuts = 0;
    for gate in ["auto", "freezer", "none", "fence"] {
        let ended = victim.commit(&["--gate", gate]);
        assert!(!ended.ended.stderr.contains("panicked"), "{:#?}", ended.ended);
        assert!(ended.took.as_secs() < 40, "{gate} took {:?}", ended.took);
        cuts += usize::from(ended.ended.code == Some(0));
    }
    let strokes = victim.worker.ask("peace").unwrap();
    println!("{strokes} swaps, {cuts} cuts");
    assert!(cuts >= 2, "{cuts} cuts");
    victim.commit(&[]).json();
    canary.must_sing();
}

/// What is mounted below the upperdir, by a host's mistake or a leak of mounts, is not part of it: what it covers is.
#[test]
fn a_mount_below_the_tree_is_not_entered() {
    if !root() {
        return;
    }
    struct Mounted<'a>(&'a Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = unmount(self.0, UnmountFlags::DETACH);
        }
    }
    let victim = Victim::new("ext4");
    fs::create_dir(victim.root().join("covered")).unwrap();
    fs::write(victim.root().join("covered/own"), "the container's").unwrap();
    fs::write(victim.root().join("file"), "the container's").unwrap();
    let (at, file) = (victim.container.upper().join("covered"), victim.container.upper().join("file"));
    mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
    let _directory = Mounted(&at);
    fs::write(at.join("secret"), SECRET).unwrap();
    let outside = victim.disk.path().join("outside");
    fs::write(&outside, SECRET).unwrap();
    rustix::mount::mount_bind(&outside, &file).unwrap();
    let _file = Mounted(&file);
    let result = victim.commit(&[]).json();
    victim.nothing_leaked(&result);
    let frozen = frozen(&result);
    assert_eq!(fs::read_to_string(frozen.join("covered/own")).unwrap(), "the container's");
    assert_eq!(fs::read_to_string(frozen.join("file")).unwrap(), "the container's");
    assert!(!frozen.join("covered/secret").exists());
}
