//! Files without end, with more holes than data, and with more pieces than bytes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use snapshot_tests::bench::root;

use crate::support::{Victim, frozen};

const TIB: u64 = 1 << 40;

/// A hole of a tebibyte is neither read nor copied; what it costs is its place in the table of chunks.
#[test]
fn a_sparse_file_of_a_tebibyte() {
    if !root() {
        return;
    }
    let victim = Victim::new("ext4");
    let sparse = File::create(victim.root().join("sparse")).unwrap();
    sparse.set_len(TIB).unwrap();
    for at in [0, TIB / 3, TIB - 5] {
        sparse.write_all_at(b"data!", at).unwrap();
    }
    let made = victim.commit(&[]);
    println!("1 TiB: {:?}, {} KiB", made.took, made.peak);
    let result = made.json();
    let copy = fs::metadata(frozen(&result).join("sparse")).unwrap();
    assert!(copy.len() == TIB && copy.blocks() < 1000, "{} blocks", copy.blocks());
    let image = victim.mount(&result);
    let file = File::open(image.path().join("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), TIB);
    for at in [0, TIB / 3, TIB - 5] {
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(&bytes, b"data!", "at {at}");
    }
    assert!(result["image"]["stored_bytes"].as_u64().unwrap() < 10 << 20, "{result:#}");
    drop((file, image));
    assert!(
        made.took < Duration::from_secs(40) && made.peak < 400 << 10,
        "{:?}, {} KiB",
        made.took,
        made.peak
    );
}

/// What no table can hold is refused before it is tried, with what to do.
#[test]
fn sparse_files_of_exbibytes_are_refused() {
    if !root() {
        return;
    }
    let victim = Victim::new("xfs");
    for n in 0..3 {
        File::create(victim.root().join(format!("absurd{n}"))).unwrap().set_len((8 << 60) - 4096).unwrap();
    }
    let refused = victim.commit(&["--output", "text"]);
    println!("24 EiB: {:?}, {} KiB", refused.took, refused.peak);
    assert_eq!(refused.ended.code, Some(1), "{:#?}", refused.ended);
    assert!(refused.ended.stderr.contains("chunks"), "{:#?}", refused.ended);
    assert!(refused.peak < 600 << 10, "{} KiB", refused.peak);
}

#[test]
fn a_file_that_grows_without_end() {
    if !root() {
        return;
    }
    let mut victim = Victim::new("ext4");
    victim.worker.ask("attack grow /endless").unwrap();
    let made = victim.commit(&[]);
    let strokes = victim.worker.ask("peace").unwrap();
    println!("{strokes} times 64 KiB: {:?}, {} KiB", made.took, made.peak);
    let result = made.json();
    let copy = fs::read(frozen(&result).join("endless")).unwrap();
    // Calls of 64 KiB: none is half in.
    assert!(copy.len().is_multiple_of(64 << 10) && copy.iter().all(|b| *b == 7), "{} bytes", copy.len());
    assert!(made.peak < 400 << 10, "{} KiB", made.peak);
}

/// A hole after every block.
#[test]
fn a_file_of_very_many_extents() {
    if !root() {
        return;
    }
    const BLOCKS: u64 = 16 << 10;
    let victim = Victim::new("xfs");
    // Not through the overlay: it is the upper's file that has them either way.
    let path = victim.root().join("pieces");
    fs::write(&path, vec![1; (BLOCKS * 4096) as usize]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    for block in (0..BLOCKS).step_by(2) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, block * 4096, 4096).unwrap();
    }
    let made = victim.commit(&[]);
    println!("{} extents: {:?}, {} KiB", BLOCKS / 2, made.took, made.peak);
    let result = made.json();
    let (copy, live) = (fs::read(frozen(&result).join("pieces")).unwrap(), fs::read(&path).unwrap());
    assert!(copy == live);
    assert!(fs::read(victim.mount(&result).path().join("pieces")).unwrap() == live);
    assert!(made.took < Duration::from_secs(30), "{:?}", made.took);
}
