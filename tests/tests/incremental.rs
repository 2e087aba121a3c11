//! Images built on those of earlier snapshots: whatever was done in between, the image is the one that reading everything gives.
//!
//! Without privilege, on a file system that can tell (`capture::settled`): the target directory's is taken for one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps};
use snapshot_engine::capture::{Shadow, ShadowOptions};
use snapshot_engine::image::Quiet;
use snapshot_engine::image::build::{Image, Request, build};
use snapshot_engine::image::earlier::{self, Incremental};
use snapshot_engine::kernel::words::Words;
use snapshot_engine::model::chunk::{BlobLayout, ChunkSize, Compressor, Format, FsVersion};
use snapshot_engine::model::dirty::{Dirty, Full, Ino, Probe, Watch};
use snapshot_engine::model::progress::Quiet as Silent;
use snapshot_engine::reader::diff::diff;
use snapshot_engine::reader::{Source, open};
use snapshot_tests::building::{known, request};
use snapshot_tests::everything::noise;

/// How long a file must have been left alone here: longer than a timer tick.
const SETTLED: Duration = Duration::from_millis(30);

/// Longer than that, and than a file must have lived to be told from a successor under its number.
fn settle() {
    std::thread::sleep(Duration::from_millis(150));
}

/// A tracker for a tree that nobody changes while it is copied; it says of some files that they are mapped, or were changed.
#[derive(Default)]
struct Told {
    mapped: HashSet<u64>,
    changed: Vec<Dirty>,
}

impl Watch for Told {
    fn watch(&mut self, _: Ino, _: u64) -> Result<(), Full> {
        Ok(())
    }
    fn unwatch(&mut self, _: Ino) {}
    fn take(&mut self) -> Vec<Dirty> {
        std::mem::take(&mut self.changed)
    }
    fn put_back(&mut self, _: &[Dirty]) {}
    fn settle(&mut self) -> bool {
        true
    }
    fn probe(&self, fd: BorrowedFd<'_>, _: bool) -> Probe {
        let ino = rustix::fs::fstat(fd).map_or(0, |stat| stat.st_ino);
        Probe { mapped: self.mapped.contains(&ino), direct_io: false }
    }
}

struct Bench {
    dir: tempfile::TempDir,
    upper: PathBuf,
    /// The topmost first.
    lowers: Vec<PathBuf>,
    format: Format,
    cuts: usize,
}

fn format() -> Format {
    Format { chunk_size: ChunkSize::new(64 << 10).expect("a power of two"), ..Format::default() }
}

impl Bench {
    fn new(format: Format) -> Result<Bench> {
        let dir = tempfile::Builder::new().prefix("incremental-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let upper = dir.path().join("upper");
        fs::create_dir_all(upper.join("d"))?;
        for (n, size) in SIZES.into_iter().enumerate() {
            fs::write(upper.join(name(n)), noise(n as u64, size))?;
        }
        Ok(Bench { dir, upper, lowers: Vec::new(), format, cuts: 0 })
    }

    fn at(&self, n: usize, what: &str) -> PathBuf {
        self.dir.path().join(format!("cut-{n}/{what}"))
    }

    /// Freezes the tree as it is; returns the number of the cut.
    fn cut_with(&mut self, told: &mut Told) -> Result<usize> {
        let n = self.cuts;
        self.cuts += 1;
        fs::create_dir_all(self.at(n, ""))?;
        let options = ShadowOptions { settled: SETTLED, ..ShadowOptions::default() };
        let mut shadow = Shadow::create(&self.upper, &self.at(n, "work"), options)?;
        shadow.base(told, &Silent)?;
        if !told.changed.is_empty() {
            shadow.round(told, &Silent)?;
        }
        let frozen = shadow.freeze(&self.at(n, "frozen"), &Silent)?;
        let settled = frozen.settled.context("the target directory is on a file system that cannot tell")?;
        earlier::record(&self.at(n, "settled"), &settled)?;
        Ok(n)
    }

    fn cut(&mut self) -> Result<usize> {
        self.cut_with(&mut Told::default())
    }

    fn request(&self, cut: usize, name: &str) -> Request {
        let mut request = request(self.dir.path(), name, self.format, &self.at(cut, "frozen"));
        request.task.lowers.clone_from(&self.lowers);
        request
    }

    /// The image of a cut, built on that of an earlier one.
    fn image(&self, cut: usize, on: Option<usize>) -> Result<Image> {
        let incremental = Incremental {
            settled: self.at(cut, "settled"),
            earlier: on.map_or("/nowhere".into(), |on| self.at(on, "memory")),
            memory: self.at(cut, "memory"),
        };
        let name = format!("cut-{cut}-on-{}", on.map_or("none".into(), |on| on.to_string()));
        Ok(build(&Request { incremental: Some(incremental), ..self.request(cut, &name) }, &Quiet)?)
    }

    /// The same with every file read.
    fn whole(&self, cut: usize, on: &[&Image]) -> Result<Image> {
        let dictionaries: Vec<_> = on.iter().map(|image| known(image)).collect();
        let name = format!("whole-{cut}-{}", dictionaries.len());
        Ok(build(&Request { dictionaries, ..self.request(cut, &name) }, &Quiet)?)
    }

    fn must_be_one_tree(&self, a: &Image, b: &Image) -> Result<()> {
        let opened = |image: &Image| open(&Source::find(&image.bootstrap, Some(&image.blob_dir))?, None);
        let report = diff(&opened(a)?, &opened(b)?)?;
        ensure!(report.equal, "{:#?}", report.differences);
        Ok(())
    }

    /// The image of a cut built on another, and that of reading everything: the same tree, and the same bytes as with the other as a
    /// dictionary, or as with none where its blob is hardly used.
    fn must_hold(&self, cut: usize, on: usize, before: &Image) -> Result<Image> {
        let image = self.image(cut, Some(on))?;
        let whole = self.whole(cut, &[])?;
        self.must_be_one_tree(&image, &whole)?;
        let bytes = |image: &Image| fs::read(&image.bootstrap);
        let refers = image.blobs.iter().any(|blob| before.blobs.contains(blob));
        let same = if refers { self.whole(cut, &[before])? } else { whole };
        // What an image of several blobs offers is told from the blobs it uses.
        if before.blobs.len() == 1 {
            ensure!(bytes(&image)? == bytes(&same)?, "other bytes than with every file read");
        }
        Ok(image)
    }
}

const SIZES: [usize; 8] = [0, 5, 4096, 65_536, 70_000, 200_000, 300_000, 400_000];

fn name(n: usize) -> String {
    if n % 3 == 2 { format!("d/file-{n}") } else { format!("file-{n}") }
}

/// Gives a file the times it had: what a container would do that wants a change to go unnoticed.
fn forge(path: &Path, times: &Timestamps) -> Result<()> {
    Ok(rustix::fs::utimensat(CWD, path, times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(path: &Path) -> Result<Timestamps> {
    let meta = fs::symlink_metadata(path)?;
    Ok(Timestamps {
        last_access: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    })
}

/// Does something to a file, and hides it as well as a container can.
fn change(upper: &Path, (kind, file, argument): (u8, usize, u64)) -> Result<()> {
    let path = upper.join(name(file % SIZES.len()));
    let other = upper.join(name((file + 1 + argument as usize % 5) % SIZES.len()));
    if !path.exists() {
        fs::write(&path, noise(argument, argument as usize % 100_000))?;
        return Ok(());
    }
    let had = times(&path)?;
    let size = path.metadata()?.len();
    let write = || File::options().read(true).write(true).open(&path);
    match kind % 12 {
        // One byte, in place.
        0 | 1 if size > 0 => write()?.write_all_at(&[argument as u8], argument * 997 % size)?,
        2 => write()?.write_all_at(&noise(argument, 3000), size)?,
        3 => write()?.set_len(argument * 311 % (size + 1))?,
        // Another inode under the same name, of the same size.
        4 => {
            let new = upper.join("new");
            fs::write(&new, noise(argument, size as usize))?;
            forge(&new, &had)?;
            fs::rename(&new, &path)?;
        }
        5 if other.exists() => {
            rustix::fs::renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE)?;
        }
        6 => {
            let link = upper.join(format!("link-{argument}"));
            if !link.exists() {
                fs::hard_link(&path, link)?;
            }
        }
        7 => fs::remove_file(&path)?,
        8 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + argument as u32 % 64))?,
        9 if size > 8192 => rustix::fs::fallocate(
            write()?,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            argument * 4096 % size,
            4096,
        )?,
        10 if size >= 4096 => {
            let words = Words::map(write()?, 512)?;
            words.as_slice()[argument as usize % 512].store(argument, Ordering::Relaxed);
        }
        11 if other.exists() => {
            fs::copy(&other, &path)?;
        }
        _ => {}
    }
    if path.exists() {
        forge(&path, &had)?;
    }
    Ok(())
}

#[test]
fn whatever_is_changed_the_image_is_the_one_that_reading_everything_gives() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(32);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let changes = || prop::collection::vec((any::<u8>(), 0..SIZES.len(), 0u64..1000), 0..6);
    let taken = std::cell::Cell::new(0);
    runner
        .run(&(changes(), any::<bool>(), changes(), any::<bool>()), |(first, wait, second, wait_again)| {
            let run = || -> Result<u64> {
                let mut bench = Bench::new(format())?;
                settle();
                let mut cut = bench.cut()?;
                let mut before = bench.image(cut, None)?;
                let mut taken = 0;
                for (changes, wait) in [(&first, wait), (&second, wait_again)] {
                    for one in changes {
                        change(&bench.upper, *one).with_context(|| format!("{one:?}"))?;
                    }
                    if wait {
                        settle();
                    }
                    let next = bench.cut()?;
                    before = bench.must_hold(next, cut, &before)?;
                    taken += before.taken_over_bytes;
                    cut = next;
                }
                Ok(taken)
            };
            taken.set(taken.get() + run().map_err(|e| TestCaseError::fail(format!("{e:?}")))?);
            Ok(())
        })
        .unwrap();
    assert!(taken.get() > 0, "nothing was ever taken over");
}

#[test]
fn only_a_changed_file_is_read_and_only_its_new_chunks_are_stored() -> Result<()> {
    for version in [FsVersion::V6, FsVersion::V5] {
        for layout in [BlobLayout::Plain, BlobLayout::Toc, BlobLayout::Inline, BlobLayout::InlineToc] {
            if version == FsVersion::V5 && layout.has_toc() {
                continue;
            }
            let compressor = Compressor::None;
            let mut bench = Bench::new(Format { version, layout, compressor, ..format() })?;
            settle();
            let first = bench.cut()?;
            let one = bench.image(first, None)?;
            ensure!(one.taken_over_bytes == 0 && one.content_bytes > 1_000_000);
            // The second of five chunks, with the times it had.
            let path = bench.upper.join(name(6));
            let had = times(&path)?;
            File::options().write(true).open(&path)?.write_all_at(b"!", 70_000)?;
            forge(&path, &had)?;
            let second = bench.cut()?;
            let two =
                bench.must_hold(second, first, &one).with_context(|| format!("{version:?} {layout}"))?;
            ensure!(two.taken_over_bytes == one.content_bytes - 300_000, "{two:?}");
            let new = two.blobs.iter().filter(|blob| !one.blobs.contains(blob)).map(|blob| blob.uncompressed);
            ensure!(new.sum::<u64>() == 64 << 10, "{version:?} {layout}: {:?}", two.blobs);
        }
    }
    Ok(())
}

#[test]
fn chunks_that_a_lower_has_are_found_there_again() -> Result<()> {
    let mut bench = Bench::new(format())?;
    let lower = bench.dir.path().join("lower");
    fs::create_dir(&lower)?;
    let below = noise(77, 300_000);
    fs::write(lower.join("below"), &below)?;
    bench.lowers.push(lower);
    // Two chunks of the lower's, and two of its own; and a file that has none of its own.
    fs::write(bench.upper.join("mixed"), [&below[..128 << 10], &noise(78, 100_000)].concat())?;
    fs::write(bench.upper.join("copied"), &below)?;
    settle();
    let first = bench.cut()?;
    let before = bench.image(first, None)?;
    fs::write(bench.upper.join(name(3)), noise(79, 65_536))?;
    settle();
    let second = bench.cut()?;
    let image = bench.image(second, Some(first))?;
    ensure!(image.taken_over_bytes == image.content_bytes - 65_536, "{image:?}");
    bench.must_be_one_tree(&image, &bench.whole(second, &[])?)?;
    ensure!(before.blobs.iter().all(|blob| image.blobs.contains(blob)), "{image:?}");
    Ok(())
}

#[test]
fn who_was_mapped_or_changed_meanwhile_or_a_moment_ago_is_read_again() -> Result<()> {
    let mut bench = Bench::new(format())?;
    settle();
    // Not left alone for long enough.
    fs::write(bench.upper.join("young"), noise(99, 50_000))?;
    let ino = |n: usize| bench.upper.join(name(n)).metadata().map(|meta| meta.ino());
    let (mapped, changed) = (ino(6)?, ino(3)?);
    let whole =
        Dirty { ino: Ino(changed), meta: true, whole: true, direct: false, tail: None, ranges: vec![] };
    let told = || Told { mapped: HashSet::from([mapped]), changed: vec![whole.clone()] };
    let first = bench.cut_with(&mut told())?;
    let one = bench.image(first, None)?;
    settle();
    let second = bench.cut()?;
    let two = bench.must_hold(second, first, &one)?;
    ensure!(two.taken_over_bytes == one.content_bytes - 300_000 - 65_536 - 50_000, "{two:?}");
    // Now they have been left alone.
    let third = bench.cut()?;
    let three = bench.must_hold(third, second, &two)?;
    ensure!(three.taken_over_bytes == three.content_bytes && three.stored_bytes == 0, "{three:?}");
    // And what is mapped now is read, though it has not changed.
    let fourth = bench.cut_with(&mut told())?;
    let four = bench.must_hold(fourth, third, &three)?;
    ensure!(four.taken_over_bytes == four.content_bytes - 365_536 && four.stored_bytes == 0, "{four:?}");
    Ok(())
}

#[test]
fn what_is_missing_damaged_or_of_something_else_is_not_used() -> Result<()> {
    let mut bench = Bench::new(format())?;
    settle();
    let first = bench.cut()?;
    let one = bench.image(first, None)?;
    let second = bench.cut()?;
    let taken = |bench: &Bench, cut| -> Result<u64> {
        let image = bench.image(cut, Some(first))?;
        bench.must_be_one_tree(&image, &one)?;
        fs::remove_dir_all(bench.dir.path().join("layout"))?;
        // The layout had the earlier image's blobs too.
        bench.image(first, None)?;
        Ok(image.taken_over_bytes)
    };
    ensure!(taken(&bench, second)? == one.content_bytes);
    for file in [bench.at(first, "memory"), bench.at(second, "settled")] {
        let bytes = fs::read(&file)?;
        for cut in [0, 10, 47, 48, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&file, &bytes[..cut])?;
            let image = bench.image(second, Some(first))?;
            ensure!(image.taken_over_bytes == 0, "{file:?} cut to {cut}");
            fs::remove_dir_all(bench.dir.path().join("layout"))?;
            fs::write(&file, &bytes)?;
            bench.image(first, None)?;
        }
        for at in [0, 20, 50, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            fs::write(&file, bad)?;
            let image = bench.image(second, Some(first))?;
            ensure!(image.taken_over_bytes == 0, "{file:?} flipped at {at}");
            fs::remove_dir_all(bench.dir.path().join("layout"))?;
            fs::write(&file, &bytes)?;
            bench.image(first, None)?;
        }
    }
    ensure!(taken(&bench, second)? == one.content_bytes);

    // A copy of the frozen upperdir has other inodes.
    let copy = bench.at(second, "copy");
    fs::rename(bench.at(second, "frozen"), &copy)?;
    let status =
        std::process::Command::new("cp").arg("-a").args([&copy, &bench.at(second, "frozen")]).status()?;
    ensure!(status.success() && taken(&bench, second)? == 0);
    fs::remove_dir_all(bench.at(second, "frozen"))?;
    fs::rename(&copy, bench.at(second, "frozen"))?;
    ensure!(taken(&bench, second)? == one.content_bytes);

    // Another upperdir, though its files were the same.
    let other = Bench::new(format())?;
    settle();
    let (upper, dir) = (other.upper.clone(), std::mem::replace(&mut bench.upper, other.upper.clone()));
    let strange = bench.cut()?;
    ensure!(upper != dir && bench.image(strange, Some(first))?.taken_over_bytes == 0);
    bench.upper = dir;

    // Other options.
    bench.format.compressor = Compressor::None;
    ensure!(bench.image(second, Some(first))?.taken_over_bytes == 0);
    bench.format = format();
    fs::remove_dir_all(bench.dir.path().join("layout"))?;

    // A blob that is gone.
    for work in fs::read_dir(bench.dir.path())?.flatten() {
        let _ = fs::remove_dir_all(work.path().join("blobs"));
    }
    ensure!(bench.image(second, Some(first))?.taken_over_bytes == 0);
    Ok(())
}

#[test]
fn blobs_that_are_hardly_used_are_left_out() -> Result<()> {
    let mut bench = Bench::new(format())?;
    settle();
    let first = bench.cut()?;
    let one = bench.image(first, None)?;
    // Two thirds of the bytes are others now.
    for n in [6, 7] {
        let path = bench.upper.join(name(n));
        let size = path.metadata()?.len() as usize;
        fs::write(path, noise(1000 + n as u64, size))?;
    }
    settle();
    let second = bench.cut()?;
    let two = bench.must_hold(second, first, &one)?;
    ensure!(two.blobs.len() == 1 && !one.blobs.contains(&two.blobs[0]) && two.taken_over_bytes == 0);
    // Many small changes: the number of blobs stays bounded.
    let (mut cut, mut before) = (second, two);
    for n in 0..40u8 {
        fs::write(bench.upper.join(format!("small-{n}")), [n; 100])?;
        settle();
        let next = bench.cut()?;
        before = bench.image(next, Some(cut))?;
        ensure!(before.blobs.len() <= 33, "{}", before.blobs.len());
        cut = next;
    }
    let whole = bench.whole(cut, &[])?;
    bench.must_be_one_tree(&before, &whole)
}

/// A try that had finished, and was killed before anybody knew, is repeated: it finds its own image under the tag.
#[test]
fn a_try_that_was_killed_is_repeated_with_the_same_bytes() -> Result<()> {
    let mut bench = Bench::new(format())?;
    settle();
    let first = bench.cut()?;
    bench.image(first, None)?;
    fs::write(bench.upper.join(name(1)), "other")?;
    let second = bench.cut()?;
    let again = |bench: &Bench| -> Result<String> {
        let incremental = Incremental {
            settled: bench.at(second, "settled"),
            earlier: bench.at(first, "memory"),
            memory: bench.at(second, "memory"),
        };
        let mut request = Request { incremental: Some(incremental), ..bench.request(second, "again") };
        request.task.resumed = true;
        Ok(build(&request, &Quiet)?.manifest.0)
    };
    let done = again(&bench)?;
    // Before the memory was written, and while it was.
    for left in [None, Some(&b"snapshot-kno"[..])] {
        let memory = bench.at(second, "memory");
        fs::remove_file(&memory)?;
        if let Some(bytes) = left {
            fs::write(bench.at(second, ".new-x"), bytes)?;
        }
        ensure!(again(&bench)? == done && memory.exists());
    }
    Ok(())
}
