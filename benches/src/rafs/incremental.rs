//! The second image of a tree of which one file in a hundred has changed, against reading everything again.
//!
//! ```text
//! tree -> cut 1 -> image 1 (memory)     one file in a hundred is changed     -> cut 2 -> whole | again | whole | again | ...
//! ```
//!
//! Both are whole images in an OCI layout, not synced to disk. The cuts, which copy the tree, are not part of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use snapshot_engine::capture::{Shadow, ShadowOptions};
use snapshot_engine::image::build::{Request, build};
use snapshot_engine::image::earlier::{self, Incremental};
use snapshot_engine::model::chunk::{ChunkSize, Format};
use snapshot_engine::model::dirty::Still;
use snapshot_engine::model::progress::Quiet;
use snapshot_tests::building::request;

use super::builders::Silent;

/// A file left alone for so long can be recognised.
const SETTLED: Duration = Duration::from_millis(300);

fn beside(source: &Path, what: &str) -> PathBuf {
    source.with_extension(what)
}

/// Freezes a tree at `to`, with what the cut says of its files beside it. The tree must not change meanwhile.
fn cut(tree: &Path, to: &Path) -> Result<()> {
    std::thread::sleep(SETTLED * 2);
    let options = ShadowOptions { settled: SETTLED, ..ShadowOptions::default() };
    let mut shadow = Shadow::create(tree, &beside(to, "work"), options)?;
    shadow.base(&mut Still, &Quiet)?;
    let frozen = shadow.freeze(to, &Quiet)?;
    let settled =
        frozen.settled.context("put --place on ext4, XFS or btrfs: others cannot tell what has changed")?;
    Ok(earlier::record(&beside(to, "settled"), &settled)?)
}

/// The request of a build of a frozen tree in `out`; on the image in `earlier`, if there is one.
fn to_build(frozen: &Path, out: &Path, compressor: &str, earlier: Option<&Path>) -> Result<Request> {
    let format =
        Format { compressor: compressor.parse()?, chunk_size: ChunkSize::new(1 << 20)?, ..Format::default() };
    let incremental = earlier.map(|earlier| Incremental {
        settled: beside(frozen, "settled"),
        earlier: earlier.join("memory"),
        memory: out.join("memory"),
    });
    Ok(Request { incremental, ..request(out, "bench", format, frozen) })
}

/// Builds; called in a process of its own.
///
/// # Errors
/// As the build.
pub(super) fn make(frozen: &Path, out: &Path, compressor: &str, earlier: Option<&Path>) -> Result<()> {
    build(&to_build(frozen, out, compressor, earlier)?, &Silent)?;
    Ok(())
}

/// What is measured: the second cut, and where the first image is.
#[derive(Debug)]
pub(super) struct Second {
    /// The frozen tree.
    pub(super) frozen: PathBuf,
    /// The first image's place.
    pub(super) earlier: PathBuf,
}

/// Makes the first cut and its image, changes one file in a hundred, and makes the second cut.
///
/// # Errors
/// When anything of it fails.
pub(super) fn second(tree: &Path, place: &Path, compressor: &str) -> Result<Second> {
    let [first, frozen, earlier] = ["first", "second", "earlier"].map(|name| place.join(name));
    cut(tree, &first)?;
    fs::create_dir_all(&earlier)?;
    make(&first, &earlier, compressor, Some(Path::new("/nowhere")))?;
    fs::remove_dir_all(&first)?;
    let mut dirs = vec![tree.to_owned()];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { &mut dirs } else { &mut files }.push(entry.path());
        }
    }
    files.sort();
    for path in files.iter().step_by(100) {
        // What an earlier call has not written already.
        File::options()
            .write(true)
            .open(path)?
            .write_all_at(format!("changed for {compressor}").as_bytes(), 0)?;
    }
    cut(tree, &frozen)?;
    Ok(Second { frozen, earlier })
}

impl Drop for Second {
    fn drop(&mut self) {
        for path in [&self.frozen, &self.earlier] {
            let _ = fs::remove_dir_all(path);
        }
    }
}
