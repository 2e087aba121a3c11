//! What a user calls an image.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ReaderError;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In an OCI layout.
    Layout {
        /// Its directory.
        dir: PathBuf,
        /// The image's tag; needed if there are several.
        tag: Option<String>,
    },
    /// A bootstrap, or a blob with one inside, with its blobs in a directory.
    File {
        /// The file.
        path: PathBuf,
        /// Where the blobs are, named by their ids.
        blob_dir: PathBuf,
    },
}

impl Source {
    /// Finds what `name` stands for: a directory is a layout, a file is a bootstrap, and `DIR:TAG` an image of a layout, with or
    /// without `oci:` before it. Blobs of a file are looked for in `blob_dir`, or beside it.
    ///
    /// # Errors
    /// [`ReaderError::NotFound`] when it is none of these.
    pub fn find(name: &Path, blob_dir: Option<&Path>) -> Result<Source, ReaderError> {
        if name.is_file() {
            let beside = name.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Ok(Source::File {
                path: name.to_owned(),
                blob_dir: blob_dir.unwrap_or(beside).to_owned(),
            });
        }
        if name.is_dir() {
            return Ok(Source::Layout { dir: name.to_owned(), tag: None });
        }
        let bytes = name.as_os_str().as_bytes();
        let bytes = bytes.strip_prefix(b"oci:").unwrap_or(bytes);
        let whole = Path::new(OsStr::from_bytes(bytes));
        if whole.is_dir() {
            return Ok(Source::Layout { dir: whole.to_owned(), tag: None });
        }
        // Tags may contain colons and slashes, directories too: the longest directory that is there counts.
        for at in (0..bytes.len()).rev().filter(|at| bytes[*at] == b':') {
            let dir = Path::new(OsStr::from_bytes(&bytes[..at]));
            if let Ok(tag) = std::str::from_utf8(&bytes[at + 1..])
                && dir.is_dir()
                && !tag.is_empty()
            {
                return Ok(Source::Layout { dir: dir.to_owned(), tag: Some(tag.to_owned()) });
            }
        }
        Err(ReaderError::NotFound(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("a:b");
        std::fs::create_dir(&dir).unwrap();
        let file = place.path().join("image.boot");
        std::fs::write(&file, "x").unwrap();
        let layout = |tag: Option<&str>| Source::Layout { dir: dir.clone(), tag: tag.map(str::to_owned) };
        let find = |text: &str| Source::find(Path::new(text), None);
        assert_eq!(find(dir.to_str().unwrap()).unwrap(), layout(None));
        assert_eq!(find(&format!("{}:v1", dir.display())).unwrap(), layout(Some("v1")));
        assert_eq!(find(&format!("oci:{}:x/y:1", dir.display())).unwrap(), layout(Some("x/y:1")));
        let with = |blob_dir: &Path| Source::File { path: file.clone(), blob_dir: blob_dir.to_owned() };
        assert_eq!(find(file.to_str().unwrap()).unwrap(), with(place.path()));
        assert_eq!(Source::find(&file, Some(&dir)).unwrap(), with(&dir));
        assert!(matches!(find("/no/such:thing"), Err(ReaderError::NotFound(_))));
    }
}
