//! One layer: its file to the end, and what of it can be understood.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::chunk::BlobIndex;
use crate::model::tree::Content;

use super::keep::{Failed, Keep};
use super::merge::GONE;
use super::tar::{Broken, Entry, Tar, What};
use super::{Layer, format};
use crate::reader::layout::{Descriptor, store};
use crate::reader::stream::{Hashed, Packing};
use crate::reader::{Problem, ReaderError};

/// The most entries of all layers together: as many names as an overlay of ours may have.
const MAX_ENTRIES: u64 = 1 << 24;
/// The most bytes of their names, targets and attributes.
const MAX_TEXT: u64 = 2 << 30;
/// The longest tar: what is longer is a bomb, which would be read for days.
const MAX_TAR: u64 = 1 << 40;
/// The most problems that are noted of a layer.
const MAX_PROBLEMS: usize = 1000;

/// What all layers together may take, and have taken.
///
/// Memory goes by the bytes of the layers' files, not by what those say: an entry that is like the one before takes some five bytes in a zstd
/// stream at the least, and hardly one can be had for two.
pub(super) struct Used {
    most_entries: u64,
    most_text: u64,
    entries: AtomicU64,
    text: AtomicU64,
}

impl Used {
    /// For layers with files of so many bytes in all.
    pub(super) fn new(stored: u64) -> Used {
        Used {
            most_entries: MAX_ENTRIES.min((1 << 16) + stored / 2),
            most_text: MAX_TEXT.min((64 << 20) + stored.saturating_mul(256)),
            entries: AtomicU64::new(0),
            text: AtomicU64::new(0),
        }
    }

    /// The most entries.
    pub(super) fn most_entries(&self) -> usize {
        // 2^24 at most.
        self.most_entries as usize
    }

    fn take(&self, entry: &Entry) -> Result<(), Broken> {
        let link = match &entry.what {
            What::Symlink(to) | What::Link(to) => to.len(),
            _ => 0,
        };
        let attributes: usize = entry.meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let text = (entry.path.len() + link + attributes) as u64;
        if self.entries.fetch_add(1, Ordering::Relaxed) >= self.most_entries {
            return Err(Broken::Form("it has more entries than layers of this length can have"));
        }
        if self.text.fetch_add(text, Ordering::Relaxed) > self.most_text {
            return Err(Broken::Form(
                "it has longer names and attributes than layers of this length can have",
            ));
        }
        Ok(())
    }
}

/// Why a layer is not read on.
enum Stop {
    Broken(Broken),
    /// Contents cannot be kept.
    Write(io::Error),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Stop {
        Stop::Broken(broken)
    }
}

/// A layer that is being read.
pub(super) struct Reading {
    pub(super) layer: Layer,
    /// In order, each with the content that it has if it is a file.
    pub(super) entries: Vec<(Entry, Content)>,
    pub(super) problems: Vec<Problem>,
    pub(super) keep: Option<Keep>,
}

impl Reading {
    pub(super) fn new(
        number: usize,
        descriptor: &Descriptor,
        diff_id: Option<&String>,
        keep: Option<&Path>,
    ) -> Result<Reading, ReaderError> {
        let new = |dir: &Path| {
            // There are a thousand layers at most.
            Keep::new(dir, BlobIndex(number as u16), format().chunk_size)
                .map_err(ReaderError::io("keep what is in the layers in", dir))
        };
        Ok(Reading {
            layer: Layer {
                media_type: descriptor.media_type.clone(),
                digest: descriptor.digest.clone(),
                diff_id: diff_id.cloned(),
                ..Layer::default()
            },
            entries: Vec::new(),
            problems: Vec::new(),
            keep: keep.map(new).transpose()?,
        })
    }

    /// Notes what is wrong with the layer, or with an entry of it.
    pub(super) fn note(&mut self, path: Option<&[u8]>, what: impl ToString) {
        if self.problems.len() < MAX_PROBLEMS {
            let mut place = format!("layer {}", self.layer.digest);
            if let Some(path) = path {
                place += ": ";
                // As much of it as anybody reads.
                place += &String::from_utf8_lossy(&path[..path.len().min(512)]);
            }
            self.problems.push(Problem::new(place, what));
        }
    }

    /// Reads the layer's file to its end, whatever is in it.
    ///
    /// # Errors
    /// When it cannot be read, or contents cannot be kept.
    pub(super) fn file(
        &mut self,
        dir: &Path,
        descriptor: &Descriptor,
        used: &Used,
    ) -> Result<(), ReaderError> {
        let Some(hex) = descriptor.hex() else {
            self.note(None, "its digest is no sha256");
            return Ok(());
        };
        let path = store(dir).join(hex);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.note(None, format!("it is missing: there is no `{}`", path.display()));
                return Ok(());
            }
            Err(e) => return Err(ReaderError::io("open the layer", &path)(e)),
        };
        let packing = Packing::of(&file).map_err(ReaderError::io("read the layer", &path))?;
        let mut stored = Hashed::new(file);
        match self.tar(packing, &mut stored, used) {
            Ok(()) => {}
            Err(Stop::Broken(broken)) => self.note(None, broken),
            Err(Stop::Write(e)) => return Err(ReaderError::io("keep what is in", &path)(e)),
        }
        let (bytes, digest) = stored.finish().map_err(ReaderError::io("read the layer", &path))?;
        let digest = hex::encode(digest);
        self.layer.bytes = bytes;
        if bytes != descriptor.size {
            self.note(None, format!("it has {bytes} bytes, {} are described", descriptor.size));
        } else if digest != hex {
            self.note(None, format!("its digest is sha256:{digest}"));
        }
        Ok(())
    }

    fn tar(&mut self, packing: Packing, stored: &mut impl Read, used: &Used) -> Result<(), Stop> {
        let plain = packing.open(stored).map_err(Broken::Read)?;
        let mut plain = Hashed::new(plain.take(MAX_TAR));
        self.entries(&mut Tar::new(&mut plain), used)?;
        let (bytes, digest) = plain.finish().map_err(Broken::Read)?;
        self.layer.tar_bytes = bytes;
        if bytes == MAX_TAR {
            return Err(Broken::Form("it is longer than 1 TiB").into());
        }
        let digest = format!("sha256:{}", hex::encode(digest));
        if let Some(given) = self.layer.diff_id.as_ref().filter(|given| **given != digest) {
            let what = format!("the digest of its tar is {digest}, the config says {given}");
            self.note(None, what);
        }
        Ok(())
    }

    fn entries(&mut self, tar: &mut Tar<impl Read>, used: &Used) -> Result<(), Stop> {
        while let Some(entry) = tar.entry()? {
            self.layer.entries += 1;
            let entry = match entry {
                Ok(entry) => entry,
                Err(unfit) => {
                    self.note(Some(&unfit.path), unfit.what);
                    continue;
                }
            };
            used.take(&entry)?;
            let name = entry.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
            self.layer.whiteouts += u64::from(name.starts_with(GONE));
            let mut content = Content::default();
            if let What::File(size) = entry.what {
                content.size = size;
                self.layer.content_bytes += size;
                if let Some(keep) = &mut self.keep {
                    content.chunks = keep.add(tar, size).map_err(|failed| match failed {
                        Failed::Read(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                            Stop::Broken(Broken::Form("it is cut off within an entry"))
                        }
                        Failed::Read(e) => Stop::Broken(e.into()),
                        Failed::Write(e) => Stop::Write(e),
                    })?;
                }
            }
            self.entries.push((entry, content));
        }
        Ok(())
    }
}
