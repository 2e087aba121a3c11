//! Whether the layers that were found make up the container's root.
//!
//! A path of the mount options may lead to a directory that is not the layer: a snapshotter that serves layers itself (nydus, stargz) mounts each where it
//! says, and who looks from another mount namespace sees the empty directory below. An image without that layer would look whole. Overlayfs invents no
//! names, so each that the root has must be in one of its layers.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::path::Path;

use crate::kernel::beneath::Dir;

/// How often a name must be missing: the container may make and delete it between two looks.
const LOOKS: usize = 5;

fn names(dir: &Path) -> io::Result<HashSet<CString>> {
    Ok(Dir::open(dir)?.entries()?.into_iter().map(|entry| entry.name).collect())
}

/// A name in the root directory that none of the layers has. `None` also where a layer cannot be looked at: whoever reads it will say so.
///
/// # Errors
/// When the root cannot be listed.
pub(super) fn missing<'a>(
    root: &Path,
    layers: impl Iterator<Item = &'a Path> + Clone,
) -> io::Result<Option<CString>> {
    let mut without = names(root)?;
    for _ in 0..LOOKS {
        for layer in layers.clone() {
            match names(layer) {
                Ok(there) => without.retain(|name| !there.contains(name)),
                Err(_) => return Ok(None),
            }
            if without.is_empty() {
                return Ok(None);
            }
        }
        let still = names(root)?;
        without.retain(|name| still.contains(name));
    }
    Ok(without.into_iter().min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_layer_has_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for path in ["root/bin", "root/etc", "root/proc", "upper/etc", "lower/bin", "empty"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::create_dir(at("lower/proc")).unwrap();
        let [root, upper, lower, empty] = ["root", "upper", "lower", "empty"].map(at);
        let found = |layers: &[&Path]| missing(&root, layers.iter().copied()).unwrap();
        assert_eq!(found(&[&upper, &lower]), None);
        assert_eq!(found(&[&upper, &empty]), Some(c"bin".to_owned()));
        assert_eq!(found(&[&upper, &at("nowhere")]), None, "whoever reads it says so");
        assert!(missing(&at("nowhere"), [upper.as_path()].into_iter()).is_err());
    }
}
