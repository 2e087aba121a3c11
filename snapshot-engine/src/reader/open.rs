//! From a source to an image in hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::rafs::read::{self, BlobInfo, Image, Reading};

use super::layers::{self, Layer, Plain};
use super::layout::{self, Layout, Made};
use super::{Problem, ReaderError, Source, parts};

/// The longest bootstrap that is read: 20 million files.
pub(super) const MAX_BOOTSTRAP: u64 = 8 << 30;

/// A blob's file, if it is there.
#[derive(Debug)]
pub struct BlobFile {
    /// Where it is, or should be.
    pub path: PathBuf,
    file: Option<File>,
}

impl BlobFile {
    fn new(path: PathBuf) -> Result<BlobFile, ReaderError> {
        match File::open(&path) {
            Ok(file) => Ok(BlobFile { path, file: Some(file) }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BlobFile { path, file: None }),
            Err(e) => Err(ReaderError::io("open the blob", &path)(e)),
        }
    }

    /// What was kept of the layer at a path.
    pub(super) fn kept(path: PathBuf, file: Option<File>) -> BlobFile {
        BlobFile { path, file }
    }

    /// The file.
    ///
    /// # Errors
    /// [`ReaderError::NoBlob`] when it is not there.
    pub fn open(&self, blob: &BlobInfo) -> Result<&File, ReaderError> {
        self.file.as_ref().ok_or_else(|| ReaderError::NoBlob { id: blob.id.clone(), path: self.path.clone() })
    }

    /// The file, if it is there.
    #[must_use]
    pub fn get(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

/// An image, ready to be read.
#[derive(Debug)]
pub struct Opened {
    /// Tree, chunks, blobs.
    pub image: Image,
    /// The bootstrap as it is; of plain layers there is none.
    pub bootstrap: Vec<u8>,
    /// The blobs' files, in the order of [`Image::blobs`].
    pub files: Vec<BlobFile>,
    /// The OCI image it is in, if it is.
    pub layout: Option<Layout>,
    /// Its layers, the lowest first, if it is made of plain tars; [`Opened::files`] has what is in them.
    pub layers: Option<Vec<Layer>>,
    /// What is wrong with it as far as was seen by opening it.
    pub problems: Vec<Problem>,
}

impl Opened {
    /// The image, if nothing was seen to be wrong with it.
    ///
    /// # Errors
    /// [`ReaderError::Damaged`] when something was.
    pub fn sound(self) -> Result<Opened, ReaderError> {
        match self.problems.first() {
            None => Ok(self),
            Some(first) => Err(ReaderError::Damaged {
                first: format!("{}: {}", first.place, first.what),
                count: self.problems.len(),
            }),
        }
    }

    /// The image, if all its blobs are there too. Plain layers have been read; whether anything was kept of them was asked of [`open`].
    ///
    /// # Errors
    /// As [`Opened::sound`], and [`ReaderError::NoBlob`].
    pub fn complete(self) -> Result<Opened, ReaderError> {
        let opened = self.sound()?;
        if opened.layers.is_some() {
            return Ok(opened);
        }
        for (file, blob) in opened.files.iter().zip(&opened.image.blobs) {
            file.open(blob)?;
        }
        Ok(opened)
    }
}

/// Opens an image. Damage is noted in [`Opened::problems`] as long as there is a tree to show.
///
/// Plain layers are read whole. What is in their files is kept in the directory `keep`, as long as the image is open; without it there is a tree
/// whose files have lengths and no content.
///
/// # Errors
/// When there is none.
pub fn open(source: &Source, keep: Option<&Path>) -> Result<Opened, ReaderError> {
    match source {
        Source::Layout { dir, tag } => {
            let mut problems = Vec::new();
            let (layout, made) = layout::read(dir, tag.as_deref(), &mut problems)?;
            let mut opened = match made {
                Made::Nydus { file, bootstrap } => {
                    with_blobs(bootstrap, &file, &layout::store(dir), None, problems)?
                }
                Made::Plain { diff_ids } => {
                    let Plain { image, files, layers } =
                        layers::read(dir, &layout.blobs, &diff_ids, keep, &mut problems)?;
                    let bootstrap = Vec::new();
                    Opened { image, bootstrap, files, layout: None, layers: Some(layers), problems }
                }
            };
            opened.layout = Some(layout);
            Ok(opened)
        }
        Source::File { path, blob_dir } => {
            let file = File::open(path).map_err(ReaderError::io("open", path))?;
            if let Some(bootstrap) = parts::bootstrap(&file, path)? {
                return with_blobs(bootstrap, path, blob_dir, Some(path), Vec::new());
            }
            let len = file.metadata().map_err(ReaderError::io("read", path))?.len();
            if len > MAX_BOOTSTRAP {
                let what = format!("{len} bytes, more than any bootstrap has");
                return Err(ReaderError::Layout { path: path.clone(), what });
            }
            // The length is that of a file on disk, and read whole.
            let mut bootstrap = vec![0; len as usize];
            file.read_exact_at(&mut bootstrap, 0).map_err(ReaderError::io("read", path))?;
            with_blobs(bootstrap, path, blob_dir, None, Vec::new())
        }
    }
}

/// What a bootstrap calls the blob that it is inside of, whose id cannot be known to it (`BlobContext` of nydus).
fn is_own(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| b == b'x')
}

fn with_blobs(
    bootstrap: Vec<u8>,
    path: &Path,
    blob_dir: &Path,
    around: Option<&Path>,
    mut problems: Vec<Problem>,
) -> Result<Opened, ReaderError> {
    let Reading { image, faults } = read::bootstrap(&bootstrap)
        .map_err(|source| ReaderError::Bootstrap { path: path.to_owned(), source })?;
    problems.extend(faults.into_iter().map(|fault| match fault {
        read::ReadError::In { path, source } => Problem::new(String::from_utf8_lossy(&path), source),
        fault => Problem::new("bootstrap", fault),
    }));
    let files = image.blobs.iter().map(|blob| match around {
        Some(path) if is_own(&blob.id) => BlobFile::new(path.to_owned()),
        _ => BlobFile::new(blob_dir.join(&blob.id)),
    });
    let files = files.collect::<Result<_, _>>()?;
    Ok(Opened { image, bootstrap, files, layout: None, layers: None, problems })
}
