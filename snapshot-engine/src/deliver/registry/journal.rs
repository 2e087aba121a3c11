//! Uploads that have not ended, remembered so that another process can go on with them.
//!
//! A file beside the snapshot's record, private to us. It holds no secret: to go on with an upload a registry asks for the same credentials as to begin
//! it. An upload that the registry has sent to another host is not remembered, for there the address itself may be the permission.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use oci_client::Reference;
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    target: String,
    /// By the digest of the blob.
    uploads: BTreeMap<String, String>,
}

pub(super) struct Journal {
    path: PathBuf,
    document: RefCell<Document>,
}

/// What the uploads of several blobs share.
pub(super) type Shared<'a> = &'a Journal;

impl Journal {
    /// What is remembered of this very target. A file that cannot be read remembers nothing.
    pub(super) fn open(path: &Path, target: &Reference) -> Journal {
        let target = target.whole();
        let known = fs::read(path).ok().and_then(|text| serde_json::from_slice::<Document>(&text).ok());
        let document = known.filter(|known| known.target == target);
        let document = document.unwrap_or_else(|| Document { target, uploads: BTreeMap::new() });
        Journal { path: path.to_owned(), document: RefCell::new(document) }
    }

    /// Where the upload of a blob is.
    pub(super) fn location(&self, digest: &str) -> Option<String> {
        self.document.borrow().uploads.get(digest).cloned()
    }

    /// An upload is here now; `None` if it has ended.
    pub(super) fn note(&self, digest: &str, location: Option<&str>) {
        let mut document = self.document.borrow_mut();
        match location {
            Some(location) => drop(document.uploads.insert(digest.to_owned(), location.to_owned())),
            None => drop(document.uploads.remove(digest)),
        }
        // Without it a broken push sends a blob again, no more: nothing waits for the disk, and a failure is no failure of the push.
        if let Err(e) = save(&self.path, &document) {
            tracing::debug!("uploads are not remembered: {e}");
        }
    }

    pub(super) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn save(path: &Path, document: &Document) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(document)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_of_the_same_target_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("push.json");
        let target: Reference = "localhost:5000/a:1".parse().unwrap();
        let journal = Journal::open(&path, &target);
        journal.note("sha256:1", Some("http://localhost:5000/v2/a/blobs/uploads/x"));
        journal.note("sha256:2", Some("/y"));
        journal.note("sha256:2", None);
        let again = Journal::open(&path, &target);
        assert!(again.location("sha256:1").is_some_and(|at| at.ends_with("/x")));
        assert_eq!(again.location("sha256:2"), None);
        assert_eq!(Journal::open(&path, &"localhost:5000/b:1".parse().unwrap()).location("sha256:1"), None);
        again.remove();
        assert!(!path.exists());
        fs::write(&path, "{").unwrap();
        assert_eq!(Journal::open(&path, &target).location("sha256:1"), None);
    }
}
