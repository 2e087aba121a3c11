//! Values kept in files of the engine's own: a file that is torn, damaged or of another version is as good as none.
//!
//! ```text
//! magic (16 bytes, with the version of what follows) | blake3 of the rest | the value (postcard)
//! ```

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// First bytes of a file; they say what is in it, and in which version.
pub(super) type Magic = [u8; 16];
/// Magic and checksum.
pub(super) const HEAD: usize = size_of::<Magic>() + blake3::OUT_LEN;

/// The value in a file.
pub(super) fn read<T: DeserializeOwned>(path: &Path, magic: &Magic) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    let (head, body) = bytes.split_at_checked(HEAD)?;
    let checksum = head.strip_prefix(magic)?;
    if blake3::hash(body).as_bytes() != checksum {
        tracing::warn!(file = %path.display(), "damaged: it is not used");
        return None;
    }
    postcard::from_bytes(body).ok()
}

/// Puts a value into a file, in the place of what was there.
pub(super) fn write<T: Serialize>(path: &Path, magic: &Magic, value: &T, sync: bool) -> io::Result<()> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(blake3::hash(&body).as_bytes());
    bytes.extend_from_slice(&body);
    super::write_atomically(path, &bytes, sync)
}
