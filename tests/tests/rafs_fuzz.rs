//! Readers against images that were damaged at random, and against ones made to hurt: an error or a tree, never a panic, a loop, or memory that the input
//! does not account for. No privilege is needed. The dice are seeded: `SNAPSHOT_FUZZ_SEED` gives others, `SNAPSHOT_FUZZ_ROUNDS` more.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peak_alloc::PeakAlloc;
use snapshot_engine::model::chunk::{BlobLayout, ChunkSize, Digester, Format, FsVersion};
use snapshot_engine::rafs::read::{self, BlobMeta};
use snapshot_engine::reader::check::check;
use snapshot_engine::reader::unpack::{Options, unpack};
use snapshot_engine::reader::{Source, open};
use snapshot_tests::everything::noise;
use snapshot_tests::images::engine_image;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What is counted is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes of memory for a byte of input, and to begin with. A name of 13 bytes becomes a node of 150 bytes, a place in two maps, and a slot in lists that grow by
/// doubling.
const FACTOR: usize = 64;
const BASE: usize = 1 << 20;
/// No reading of these small images takes so long, however loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

struct Dice(u64);

impl Dice {
    fn seeded(salt: u64) -> Dice {
        let seed = std::env::var("SNAPSHOT_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1u64);
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt)
    }

    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

fn rounds(default: usize) -> usize {
    std::env::var("SNAPSHOT_FUZZ_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// Damages bytes in one of the ways that disks, networks and enemies have.
fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.roll(4) {
        let len = bytes.len();
        if len < 16 {
            return;
        }
        let at = dice.roll(len - 8);
        match dice.roll(9) {
            0 => bytes[at] ^= 1 << dice.roll(8),
            1 => bytes[at] = dice.roll(256) as u8,
            2 => bytes.truncate(dice.roll(len)),
            // Counts, sizes and offsets that are as far from the truth as they can be.
            3 | 4 => {
                let at = at & !3;
                let value = [0, 1, u32::MAX, 1 << 31, len as u32, len as u32 - 1, 0xffff, 4096][dice.roll(8)];
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            5 => {
                let at = at & !7;
                let value = [u64::MAX, 1 << 63, i64::MAX as u64, len as u64, 1 << 32][dice.roll(5)];
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            // A structure in the place of another: directories that contain themselves, inodes that share their data.
            6 | 7 => {
                let (from, to) = (dice.roll(len) & !31, at & !31);
                let n = (32 << dice.roll(3)).min(len - from.max(to));
                bytes.copy_within(from..from + n, to);
            }
            _ => {
                let n = dice.roll(64).min(len - at);
                bytes[at..at + n].fill(0);
            }
        }
    }
    // The beginning decides whether anything else is looked at: most rounds leave it whole.
}

fn small_tree(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("a/b/c"))?;
    for i in 0..150 {
        fs::write(root.join(format!("a/file-{i}-{}", "n".repeat(i % 60))), noise(i as u64, i * 97))?;
    }
    fs::write(root.join("large"), noise(3, 300_000))?;
    fs::hard_link(root.join("large"), root.join("a/b/linked"))?;
    std::os::unix::fs::symlink("../large", root.join("a/b/c/link"))?;
    rustix::fs::lsetxattr(root.join("large"), "user.x", &[7; 300], rustix::fs::XattrFlags::empty())?;
    Ok(())
}

/// An image in every shape that is written: its bootstrap and where its blobs are.
fn images(dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let source = dir.join("source");
    small_tree(&source)?;
    let mut all = Vec::new();
    for version in [FsVersion::V6, FsVersion::V5] {
        for layout in [BlobLayout::Plain, BlobLayout::InlineToc] {
            for word in ["none", "zstd", "gzip"] {
                let format = Format {
                    version,
                    layout,
                    compressor: word.parse()?,
                    digester: Digester::Sha256,
                    chunk_size: ChunkSize::new(64 << 10)?,
                };
                // Not every version has every shape.
                let tag = format!("i{}", all.len());
                if let Ok((image, layout)) = engine_image(&source, dir, &tag, format) {
                    all.push((image.bootstrap, layout.join("blobs/sha256")));
                }
            }
        }
    }
    ensure!(all.len() >= 6, "only {} images", all.len());
    Ok(all)
}

/// Reads, and judges what it cost.
fn read_one(bytes: &[u8]) -> Result<bool> {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let start = Instant::now();
    let reading = read::bootstrap(bytes);
    let (took, peak) = (start.elapsed(), MEMORY.peak_usage().saturating_sub(before));
    ensure!(took < PATIENCE, "{took:?} for {} bytes", bytes.len());
    let most = BASE + FACTOR * bytes.len();
    ensure!(peak <= most, "{peak} bytes of memory for {} bytes of input", bytes.len());
    let Ok(reading) = reading else { return Ok(false) };
    reading.image.tree.check()?;
    for node in reading.image.tree.nodes() {
        if let snapshot_engine::model::tree::Kind::File(content) = &node.kind {
            let known = content.chunks.iter().all(|c| reading.image.chunks.get(*c).is_some());
            ensure!(known, "a file with a chunk that is not described");
        }
    }
    Ok(reading.faults.is_empty())
}

#[test]
fn damaged_bootstraps_give_errors_or_trees() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let (mut whole, mut refused) = (0, 0);
    for (n, (bootstrap, _)) in images(dir.path())?.into_iter().enumerate() {
        let original = fs::read(&bootstrap)?;
        ensure!(read_one(&original)?, "{} is not whole to begin with", bootstrap.display());
        let mut dice = Dice::seeded(n as u64);
        for round in 0..rounds(1500) {
            let mut bytes = original.clone();
            damage(&mut bytes, &mut dice);
            match read_one(&bytes).with_context(|| format!("image {n}, round {round}"))? {
                true => whole += 1,
                false => refused += 1,
            }
        }
    }
    // Both must happen, or the dice do not roll: a changed owner is a tree, a changed size is none.
    ensure!(whole > 100 && refused > 100, "{whole} whole, {refused} refused");
    Ok(())
}

#[test]
fn random_bytes_give_errors() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dice = Dice::seeded(99);
    for round in 0..rounds(2000) {
        let mut bytes = noise(round as u64 + 1, dice.roll(20_000));
        // Some with the right first words, so that more is looked at.
        if bytes.len() > 2048 && round % 2 == 0 {
            bytes[1024..1028].copy_from_slice(&0xE0F5_E1E2u32.to_le_bytes());
            bytes[1032..1036].copy_from_slice(&0x4000_0000u32.to_le_bytes());
            bytes[1036] = 12;
        } else if bytes.len() > 80 {
            bytes[..12].copy_from_slice(&[0x53, 0x46, 0x41, 0x52, 0, 5, 0, 0, 0, 0x20, 0, 0]);
        }
        ensure!(!read_one(&bytes)?, "round {round} is an image");
        // The ends of blobs.
        let tail = &bytes[bytes.len().saturating_sub(4096)..];
        let _ = read::parts(tail, bytes.len() as u64);
        if let Ok(place) = read::blob_header(tail) {
            let _ = BlobMeta::new(&bytes, &place);
        }
    }
    Ok(())
}

#[test]
fn no_damage_to_a_blob_goes_unseen() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let mut dice = Dice::seeded(7);
    for (bootstrap, blobs) in images(dir.path())? {
        let place = tempfile::tempdir()?;
        let source = Source::find(&bootstrap, Some(place.path()))?;
        for entry in fs::read_dir(&blobs)? {
            let entry = entry?;
            fs::copy(entry.path(), place.path().join(entry.file_name()))?;
        }
        let image = open(&source, None)?;
        ensure!(check(&image, &|_, _| {}).is_sound());
        let blob = &image.files[0].path;
        let original = fs::read(blob)?;
        for round in 0..rounds(15) {
            let mut bytes = original.clone();
            damage(&mut bytes, &mut dice);
            if bytes == original {
                continue;
            }
            fs::write(blob, &bytes)?;
            let report = check(&open(&source, None)?, &|_, _| {});
            ensure!(!report.is_sound(), "round {round} of {}", bootstrap.display());
            fs::write(blob, &original)?;
        }
    }
    Ok(())
}

#[test]
fn damaged_images_unpack_into_their_directory_or_not_at_all() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let mut dice = Dice::seeded(11);
    for (bootstrap, blobs) in images(dir.path())? {
        let original = fs::read(&bootstrap)?;
        let place = tempfile::tempdir()?;
        let damaged = place.path().join("boot");
        let source = Source::File { path: damaged.clone(), blob_dir: blobs };
        for round in 0..rounds(40) {
            let mut bytes = original.clone();
            damage(&mut bytes, &mut dice);
            fs::write(&damaged, &bytes)?;
            let to = place.path().join(format!("to-{round}"));
            if let Ok(image) = open(&source, None) {
                // What is not damaged of it is given out.
                let options = Options { force: false, unprivileged: true };
                let _ = unpack(&image, &to, options, &|_, _| {});
            }
            let names: Vec<_> = fs::read_dir(place.path())?.collect::<Result<_, _>>()?;
            ensure!(names.len() <= 2, "something was written beside the directory: {names:?}");
            if to.exists() {
                snapshot_engine::kernel::removal::remove_tree(&to)?;
            }
        }
    }
    Ok(())
}
