//! What holds for images of every kind: damage is noticed where it can be, large things fit, equal trees give equal bytes, and an image
//! built on another names nothing that it does not need.
//!
//! Needs root; Nydus' tools are looked for as `rafs_judges.rs` says.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::FileType;
use snapshot_engine::image::build::{Request, build};
use snapshot_engine::image::mount::mount as mount_image;
use snapshot_engine::image::{ImageError, Quiet};
use snapshot_engine::model::base::KnownImage;
use snapshot_engine::model::format::{BlobLayout, Compressor, Format, FsVersion};
use snapshot_tests::building::{blobs, known, must_be_equal, nydus, request, task};
use snapshot_tests::everything::{Mount, everything, make, mtime, node, noise, xattr};
use snapshot_tests::judges::{Verify, judge, serve};

/// Chunks that were changed in the blob are given out as they are, or not at all where the digests are known.
#[test]
fn nydusd_notices_damage_where_it_has_the_digests() -> Result<()> {
    let Some(nydusd) = judge("nydusd")? else { return Ok(()) };
    let dir = tempfile::Builder::new().prefix("rafs-damage-").tempdir()?;
    let tree = make(dir.path(), "tree")?;
    everything(&tree, false)?;
    for (version, layout, verify, noticed) in [
        (FsVersion::V6, BlobLayout::Plain, Verify::Data, false),
        (FsVersion::V6, BlobLayout::Toc, Verify::Data, true),
        (FsVersion::V6, BlobLayout::InlineToc, Verify::Data, true),
        (FsVersion::V5, BlobLayout::Plain, Verify::DataAndInodes, true),
    ] {
        let name = format!("damaged-{version:?}-{layout}");
        let format = Format { version, layout, compressor: Compressor::None, ..Format::default() };
        let image = build(&request(dir.path(), &name, format, &tree), &Quiet)?;
        let blob = image.blobs.first().context("there is a blob")?;
        let copy = make(dir.path(), &name)?.join(blob.id.to_string());
        fs::copy(&blob.path, &copy)?;
        let whole = fs::read(&copy)?;
        let content = noise(7, 300_000);
        let at = whole.windows(32).position(|w| *w == content[..32]).context("the chunk is in the blob")?;
        File::options().write(true).open(&copy)?.write_all_at(&[!content[9]], at as u64 + 9)?;
        let served =
            serve(&nydusd, &image.bootstrap, &[copy], &make(dir.path(), &format!("{name}-at"))?, verify)?;
        match fs::read(served.at.join("same-a")) {
            Ok(bytes) => ensure!(!noticed && bytes != content, "{name}: damage was not noticed"),
            Err(e) => ensure!(noticed, "{name}: {e}"),
        }
        ensure!(fs::read(served.at.join("size-4097"))? == noise(4097, 4097), "{name}: the rest is as it was");
    }
    Ok(())
}

/// What takes long to look at, once for each version: 100,000 names in a directory, a large value, access control lists. Not with
/// `nydus-image check`, which takes no list (`RafsXAttrs::add`).
#[test]
fn wide_directories_and_large_attributes_read_back_equal() -> Result<()> {
    let nydusd = judge("nydusd")?;
    let dir = tempfile::Builder::new().prefix("rafs-wide-").tempdir()?;
    let memory = Mount::memory(&make(dir.path(), "memory")?)?;
    let tree = make(&memory.0, "tree")?;
    everything(&tree, true)?;
    let wide = make(&tree, "wide")?;
    for i in 0..100_000 {
        node(&wide.join(format!("{i:x}")), FileType::Fifo, 0, 0)?;
    }
    for version in [FsVersion::V5, FsVersion::V6] {
        // The largest value Linux has; in v6 a length has 16 bits.
        let size = if version == FsVersion::V5 { 65536 } else { 65535 };
        xattr(&tree.join("text"), "trusted.64k", &vec![b'w'; size])?;
        let scratch = make(dir.path(), &format!("{version:?}"))?;
        let format = Format { version, compressor: Compressor::None, ..Format::default() };
        let image = build(&request(&scratch, "wide", format, &tree), &Quiet)?;
        if version == FsVersion::V6 {
            let mounted = mount_image(&image, &make(&scratch, "erofs")?)?;
            must_be_equal(&tree, mounted.path(), version, 100_000).context("the kernel")?;
        }
        if let Some(nydusd) = &nydusd {
            let served = serve(nydusd, &image.bootstrap, &blobs(&image), &scratch, Verify::Nothing)?;
            must_be_equal(&tree, &served.at, version, 100_000).context("nydusd")?;
        }
    }
    xattr(&tree.join("text"), "trusted.64k", &[b'w'; 65536])?;
    let refused = build(&request(dir.path(), "refused", Format::default(), &tree), &Quiet);
    let error = refused.err().context("a length of 17 bits")?;
    ensure!(error.to_string().contains("`/text`: attribute `trusted.64k` cannot be stored"), "{error}");
    Ok(())
}

/// Bytes are a promise: the same tree gives the same blob and bootstrap, today and later. A change here is a change of what is
/// written, and of every blob's name. Uncompressed, so that it does not depend on a compressor's version.
#[test]
fn images_have_the_digests_of_before() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("rafs-golden-").tempdir()?;
    let memory = Mount::memory(&make(dir.path(), "memory")?)?;
    let tree = make(&memory.0, "tree")?;
    for (name, content) in [("b", noise(1, 5000)), ("a", noise(2, 10)), ("d/same", noise(1, 5000))] {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().context("has a parent")?)?;
        fs::write(&path, content)?;
    }
    // In the other order than they are written.
    xattr(&tree.join("a"), "user.z", b"1")?;
    xattr(&tree.join("a"), "user.a", b"2")?;
    fs::hard_link(tree.join("a"), tree.join("d/link"))?;
    for path in ["b", "a", "d/same", "d"] {
        mtime(&tree.join(path), 1_000_000_000, 5)?;
        fs::set_permissions(tree.join(path), fs::Permissions::from_mode(0o750))?;
    }
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))?;
    let mut digests = String::new();
    for version in [FsVersion::V5, FsVersion::V6] {
        for layout in BlobLayout::ALL {
            if version == FsVersion::V5 && layout.has_toc() {
                continue;
            }
            let format =
                Format { version, layout: *layout, compressor: Compressor::None, ..Format::default() };
            let image = build(&request(dir.path(), &format!("{version:?}-{layout}"), format, &tree), &Quiet)?;
            let again =
                build(&request(dir.path(), &format!("{version:?}-{layout}-2"), format, &tree), &Quiet)?;
            ensure!(image.blobs[0].id == again.blobs[0].id && image.manifest == again.manifest);
            let bootstrap = blake3::hash(&fs::read(&image.bootstrap)?).to_hex();
            digests += &format!(
                "{version:?} {layout}: blob {} bootstrap {}\n",
                &image.blobs[0].id.to_string()[..16],
                &bootstrap[..16]
            );
        }
    }
    // The bootstrap in the last one is compressed: by the version of zstd in Cargo.lock.
    ensure!(digests == GOLDEN, "{digests}");
    Ok(())
}

const GOLDEN: &str = "\
V5 plain: blob 236e6f85a1e0d645 bootstrap 568f416656fc6fc7
V5 inline: blob 824b478748bec567 bootstrap 930bdeba81bf32e3
V6 plain: blob 8c5ef8777058bb5c bootstrap 0cc2c51bc27ce458
V6 toc: blob 12e0ec0cbf778a0d bootstrap 62b71d2d41d38deb
V6 inline: blob 9b2896f35d7252de bootstrap 9462e58f459ad996
V6 inline_toc: blob b8ee16c769249f48 bootstrap e452374a3fea85ba
";

/// Blobs of the parent that nothing refers to any more are not in the image, and neither are overlayfs' own attributes.
#[test]
fn a_parent_s_unused_blobs_are_dropped() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("rafs-unused-").tempdir()?;
    let [low, high, upper] = ["low", "high", "upper"].map(|name| dir.path().join(name));
    for (layer, name) in [(&low, "low-file"), (&high, "high-file")] {
        fs::create_dir(layer)?;
        fs::write(layer.join(name), noise(name.len() as u64, 9000))?;
    }
    fs::create_dir(&upper)?;
    node(&upper.join("low-file"), FileType::CharacterDevice, 0, 0)?;
    make(&upper, "opaque")?;
    xattr(&upper.join("opaque"), "trusted.overlay.opaque", b"y")?;
    xattr(&upper, "trusted.overlay.impure", b"y")?;
    let format = Format { compressor: Compressor::None, ..Format::default() };
    let image = |name: &str, parent: Option<KnownImage>, lowers: &[PathBuf], upper: &Path| {
        build(&Request { parent, ..nydus(task(dir.path(), name, lowers, upper), format) }, &Quiet)
    };
    let parent = image("parent", None, &[low], &high)?;
    ensure!(parent.blobs.len() == 2);
    let known = known(&parent);
    let child = image("child", Some(known.clone()), &[], &upper)?;
    ensure!(child.blobs.len() == 1 && parent.blobs.contains(&child.blobs[0]), "{:?}", child.blobs);
    ensure!(child.stored_bytes == 0, "nothing is new");
    let mounted = mount_image(&child, &make(dir.path(), "at")?)?;
    ensure!(!mounted.path().join("low-file").exists());
    ensure!(fs::read(mounted.path().join("high-file"))? == noise(9, 9000));
    for path in ["", "opaque"] {
        let mut list = [0u8; 256];
        let len = rustix::fs::llistxattr(mounted.path().join(path), &mut list[..])?;
        ensure!(!list[..len].windows(7).any(|w| w == b"overlay"), "overlayfs' attributes are in the image");
    }
    // Without the blob there is no image: the new one would name what nobody has.
    drop(mounted);
    for blob in &parent.blobs {
        fs::remove_file(&blob.path)?;
    }
    fs::remove_dir_all(dir.path().join("cache"))?;
    fs::remove_dir_all(dir.path().join("work-parent/blobs"))?;
    let error = image("orphan", Some(known), &[], &upper).err().context("its blob is gone")?;
    ensure!(matches!(error, ImageError::NoBlob { .. }), "{error}");
    Ok(())
}
