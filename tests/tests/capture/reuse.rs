//! Inode numbers that are given out again.

use std::fs;
use std::os::unix::fs::MetadataExt;

use snapshot_engine::model::progress::Quiet;
use snapshot_tests::bench::Disk;

use crate::support::*;

/// A directory takes the number and the name of a file that was there before: the listing of its parent shows nothing new. It was never listed itself,
/// so no round ever ended clean. Found by `rounds_converge_on_the_live_tree`; breaks without `forget` in `Shadow::read`.
#[test]
fn a_directory_in_the_place_and_number_of_a_file_is_listed() {
    if !snapshot_tests::bench::root() {
        return;
    }
    // With a journal it gives a free number out again at once, to a directory too. Without one it waits for minutes, and XFS puts directories elsewhere.
    let disk = Disk::new("ext4").unwrap();
    let b = bench_in(&disk.path());
    let mut reused = 0;
    for n in 0..20 {
        let at = b.upper.join(format!("name{n}"));
        fs::write(&at, "x").unwrap();
        let was = at.metadata().unwrap().ino();
        let (mut shadow, mut fake) = (shadow(&b), Fake::default());
        shadow.base(&mut fake, &Quiet).unwrap();
        fs::remove_file(&at).unwrap();
        fs::create_dir(&at).unwrap();
        fs::write(at.join("inside"), "y").unwrap();
        reused += u32::from(at.metadata().unwrap().ino() == was);
        fake.tracker.names(&at);
        settle(&mut shadow, &mut fake);
        shadow.freeze(&b.frozen, &Quiet).unwrap();
        same(&b.upper, &b.frozen);
        fs::remove_dir_all(&b.frozen).unwrap();
    }
    assert!(reused > 0, "no number was given out again");
}
