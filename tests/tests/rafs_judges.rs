//! Images judged by those who will read them: the kernel's EROFS, `nydus-image check`, `nydusd`.
//!
//! Needs root (overlay, EROFS and FUSE mounts). The tools are looked for in `$NYDUS_BIN`, then in `$PATH`; where one is missing, its
//! test says so and passes, unless `CI` or `SNAPSHOT_REQUIRE_JUDGES` is set: then it fails.

use std::fs;

use anyhow::{Context, Result, ensure};
use snapshot_engine::image::build::{Image, build};
use snapshot_engine::image::mount::mount as mount_image;
use snapshot_engine::image::{ImageError, Quiet};
use snapshot_engine::model::chunk::{ChunkSize, Compressor, Digester, Format, FsVersion};
use snapshot_tests::building::{blobs, must_be_equal, nydus, task};
use snapshot_tests::everything::make;
use snapshot_tests::judges::{Verify, check, judge, serve};
use snapshot_tests::layered::{FOLLOW, Layers, REDIRECT, layers};

fn compressors() -> [Compressor; 4] {
    [Compressor::None, Compressor::Lz4Block, Compressor::Gzip, Compressor::zstd()]
}

fn built(layers: &Layers, format: Format, tag: &str) -> Result<Image> {
    let task = task(layers.dir.path(), tag, &layers.lowers, &layers.upper);
    Ok(build(&nydus(task, format), &Quiet)?)
}

/// The least there is in the merged tree.
const ENTRIES: u64 = 3100;

fn format(compressor: Compressor, digester: Digester, chunk: u64) -> Result<Format> {
    Ok(Format { compressor, digester, chunk_size: ChunkSize::new(chunk)?, ..Format::default() })
}

#[test]
fn the_kernel_mounts_what_the_overlay_shows() -> Result<()> {
    for (options, read_options) in [("", ""), (REDIRECT, FOLLOW)] {
        let layers = layers(options, true)?;
        let reference = layers.merged(read_options)?;
        for chunk in [4096, 64 << 10, 1 << 20, 16 << 20] {
            let image =
                built(&layers, format(Compressor::None, Digester::Blake3, chunk)?, &format!("c{chunk}"))?;
            let at = make(layers.dir.path(), "erofs")?;
            let mounted = mount_image(&image, &at)?;
            must_be_equal(&reference.0, mounted.path(), FsVersion::V6, ENTRIES)
                .with_context(|| format!("{options} chunk {chunk}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_second_build_uses_the_cache_and_gives_the_same_image() -> Result<()> {
    let layers = layers(REDIRECT, true)?;
    let first = built(&layers, Format::default(), "one")?;
    let second = built(&layers, Format::default(), "two")?;
    ensure!((first.cached_lowers, second.cached_lowers) == (0, 2));
    ensure!(fs::read(&first.bootstrap)? == fs::read(&second.bootstrap)?, "equal layers, other bootstraps");
    ensure!(first.deduplicated > 2_900_000, "the changed text's other chunks are the base's");
    let again = built(&layers, Format::default(), "two");
    let error = again.err().context("the tag exists")?;
    ensure!(matches!(error.downcast_ref(), Some(ImageError::TargetExists { .. })), "{error:#}");
    let refused = mount_image(&first, layers.dir.path());
    ensure!(matches!(refused, Err(ImageError::Compressed)));
    Ok(())
}

#[test]
fn nydus_image_accepts_every_format() -> Result<()> {
    let Some(nydus_image) = judge("nydus-image")? else { return Ok(()) };
    // No ACLs: nydus-image 2.2.0 refuses `system.posix_acl_access` in its own images too (rafs/src/metadata/layout/mod.rs,
    // `RafsXAttrs::add`: the key must be longer than its prefix). nydusd and the kernel read them.
    let layers = layers(REDIRECT, false)?;
    for compressor in compressors() {
        for digester in [Digester::Blake3, Digester::Sha256] {
            for chunk in [1 << 20, 4096] {
                let image = built(
                    &layers,
                    format(compressor, digester, chunk)?,
                    &format!("{compressor}-{digester}-{chunk}"),
                )?;
                check(&nydus_image, &image.bootstrap)
                    .with_context(|| format!("{compressor} {digester} {chunk}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn nydusd_serves_what_the_overlay_shows() -> Result<()> {
    let Some(nydusd) = judge("nydusd")? else { return Ok(()) };
    let layers = layers(REDIRECT, true)?;
    let reference = layers.merged(FOLLOW)?;
    for version in [FsVersion::V5, FsVersion::V6] {
        for compressor in compressors() {
            let format = Format { version, ..format(compressor, Digester::Blake3, 1 << 20)? };
            let compressor = format!("{compressor}-{version:?}");
            let image = built(&layers, format, &format!("served-{compressor}"))?;
            let dir = make(layers.dir.path(), &format!("serve-{compressor}"))?;
            let served = serve(&nydusd, &image.bootstrap, &blobs(&image), &dir, Verify::Nothing)?;
            must_be_equal(&reference.0, &served.at, version, ENTRIES).context(compressor)?;
        }
    }
    Ok(())
}
