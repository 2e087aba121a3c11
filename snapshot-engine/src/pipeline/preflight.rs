//! What can be refused before the container is touched.

use std::fs;
use std::io;
use std::path::Path;

use rustix::thread::CapabilitySet;

use super::Error;
use super::progress::Stage;
use crate::image::{ImageError, archive, known};
use crate::model::base::KnownImage;
use crate::model::format::ImageFormat;
use crate::model::options::CommitOptions;
use crate::model::target::ImageTarget;

/// The privileges a cut needs: to enter another mount namespace's view and freeze cgroups, to read files of any owner, and to load programs.
pub(super) fn privileges() -> Result<(), Error> {
    let effective =
        rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    let mut missing = Vec::new();
    if !effective.contains(CapabilitySet::SYS_ADMIN) {
        missing.push("CAP_SYS_ADMIN");
    }
    if !effective.intersects(CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE) {
        missing.push("CAP_DAC_READ_SEARCH");
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::Privilege { missing }) }
}

/// How the target is reached, with absolute paths.
pub(super) fn access(mut options: CommitOptions) -> Result<CommitOptions, Error> {
    let here = |source| Error::TargetUnusable { path: ".".into(), source };
    options.access = options.access.absolute().map_err(here)?;
    Ok(options)
}

/// Whether the image can go where it should, as far as that can be known without asking anybody: a snapshot of this moment is worth keeping also when a
/// registry cannot be reached.
pub(super) fn target(target: &ImageTarget, options: &CommitOptions) -> Result<(), Error> {
    if let ImageTarget::OciLayout { dir, tag } = target {
        return layout(target, dir, tag, options.overwrite);
    }
    // What `auto` comes to is not known yet: what cannot be delivered is kept then.
    let nydus = options.format == ImageFormat::Nydus;
    let replace = super::deliver::replace(options.overwrite, false);
    crate::deliver::check(target, &options.access, replace, nydus)
        .map_err(|e| Error::fault(Stage::Deliver, e))?;
    match target.path().and_then(Path::parent) {
        Some(parent) => writable(parent),
        None => Ok(()),
    }
}

/// The tag is free (or may be overwritten), and the directory is a layout or can become one.
fn layout(target: &ImageTarget, dir: &Path, tag: &str, overwrite: bool) -> Result<(), Error> {
    let unusable = |path: &Path, source| Error::TargetUnusable { path: path.to_owned(), source };
    match fs::metadata(dir) {
        Ok(stat) if !stat.is_dir() => return Err(unusable(dir, io::ErrorKind::NotADirectory.into())),
        Ok(_) => writable(dir)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // The nearest directory that exists is the one it will be made in.
            let parent = dir.ancestors().skip(1).find(|p| p.exists()).unwrap_or(Path::new("/"));
            return if parent.is_dir() {
                writable(parent)
            } else {
                Err(unusable(parent, io::ErrorKind::NotADirectory.into()))
            };
        }
        Err(e) => return Err(unusable(dir, e)),
    }
    let index = dir.join("index.json");
    let text = match fs::read(&index) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Not a layout yet. We do not scatter one over somebody's files.
            let empty = fs::read_dir(dir).map_err(|e| unusable(dir, e))?.next().is_none();
            return if empty || dir.join("oci-layout").exists() {
                Ok(())
            } else {
                Err(unusable(dir, io::Error::other("it holds other things than an OCI image layout")))
            };
        }
        Err(e) => return Err(unusable(&index, e)),
    };
    let index: serde_json::Value = serde_json::from_slice(&text).map_err(|e| unusable(&index, e.into()))?;
    let taken =
        index["manifests"].as_array().into_iter().flatten().any(|manifest| {
            manifest["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(tag)
        });
    if taken && !overwrite {
        return Err(Error::TargetExists { target: target.to_string() });
    }
    Ok(())
}

/// Whether the image can be built on those that are to be below it or to give chunks; their paths become absolute.
pub(super) fn images(mut options: CommitOptions) -> Result<CommitOptions, Error> {
    let format = options.rafs()?;
    let checked = |image: KnownImage| -> Result<KnownImage, Error> {
        let unusable = |source| Error::BaseUnusable { source };
        let path = image.bootstrap.clone();
        let image = image
            .absolute()
            .map_err(|source| unusable(ImageError::Io { what: "find the bootstrap", path, source }))?;
        known::check(&image, format).map_err(unusable)?;
        Ok(image)
    };
    options.parent = options.parent.map(checked).transpose()?;
    options.chunk_dict = options.chunk_dict.into_iter().map(checked).collect::<Result<_, _>>()?;
    if let Some(base) = options.base_image.take() {
        let unusable = |source| Error::BaseUnusable { source };
        let path = base.dir.clone();
        let base = base
            .absolute()
            .map_err(|source| unusable(ImageError::Io { what: "find the layout", path, source }))?;
        archive::check_base(&base).map_err(unusable)?;
        options.base_image = Some(base);
    }
    Ok(options)
}

fn writable(dir: &Path) -> Result<(), Error> {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| Error::TargetUnusable { path: dir.to_owned(), source: e.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dir: &Path, tag: &str, overwrite: bool) -> Result<(), Error> {
        let options = CommitOptions::default().overwrite(overwrite);
        target(&ImageTarget::OciLayout { dir: dir.to_owned(), tag: tag.to_owned() }, &options)
    }

    #[test]
    fn a_taken_tag_a_file_and_a_foreign_directory_are_refused() {
        let t = tempfile::tempdir().unwrap();
        let layout = t.path().join("layout");
        check(&layout, "v1", false).unwrap();
        check(&layout.join("deep/er"), "v1", false).unwrap();
        fs::create_dir(&layout).unwrap();
        check(&layout, "v1", false).unwrap();
        let index = r#"{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"v1"}},{}]}"#;
        fs::write(layout.join("index.json"), index).unwrap();
        assert!(matches!(check(&layout, "v1", false), Err(Error::TargetExists { .. })));
        check(&layout, "v1", true).unwrap();
        check(&layout, "v2", false).unwrap();
        fs::write(layout.join("index.json"), "{").unwrap();
        assert!(matches!(check(&layout, "v2", false), Err(Error::TargetUnusable { .. })));
        let file = t.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(check(&file, "v1", false), Err(Error::TargetUnusable { .. })));
        assert!(matches!(check(&file.join("x"), "v1", false), Err(Error::TargetUnusable { .. })));
        assert!(matches!(check(t.path(), "v1", false), Err(Error::TargetUnusable { .. })));
    }
}
