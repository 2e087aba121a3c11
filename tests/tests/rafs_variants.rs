//! Every kind of image the engine writes, over a tree of everything, judged by who will read it: `nydus-image check`, nydusd, which
//! verifies the data where it can, and the kernel's EROFS.
//!
//! ```text
//! version     compressor                    digest          layout                           chunk             built
//! 5, 6    x   none lz4 gzip zstd zstd:9  x  blake3 sha256 x plain toc inline inline_toc  x  4K 1M 16M  x  whole, dictionary, parent
//! ```
//!
//! As a rule a selection is judged in which every two values meet. All of them are with `SNAPSHOT_RAFS_VARIANTS=all` (15 minutes), or those whose name
//! has a text in it: `SNAPSHOT_RAFS_VARIANTS=v5-gzip`. Needs root; the tools are looked for as `rafs_judges.rs` says.

use std::collections::HashSet;
use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use snapshot_engine::image::Quiet;
use snapshot_engine::image::build::{Image, Request, build};
use snapshot_engine::image::mount::mount as mount_image;
use snapshot_engine::model::format::{BlobLayout, ChunkSize, Compressor, Digester, Format, FsVersion};
use snapshot_tests::building::{blobs, known, must_be_equal, request};
use snapshot_tests::everything::{Mount, everything, make, noise, xattr};
use snapshot_tests::judges::{Verify, check, judge, serve};

/// What the image is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Built {
    /// Nothing: two layers, converted.
    Whole,
    /// The changed tree, with the chunks of an image of the tree before.
    Dictionary,
    /// The upper alone, on an image of the lower.
    Parent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Variant {
    format: Format,
    built: Built,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Format { version, compressor, digester, chunk_size, layout } = self.format;
        write!(
            f,
            "v{}-{compressor}-{digester}-{layout}-{}-{:?}",
            version.number(),
            chunk_size.bytes(),
            self.built
        )
    }
}

/// Every variant there is.
fn all() -> Result<Vec<Variant>> {
    let mut all = Vec::new();
    for version in [FsVersion::V5, FsVersion::V6] {
        for compressor in ["none", "lz4_block", "gzip", "zstd", "zstd:9"] {
            for digester in Digester::ALL {
                for layout in BlobLayout::ALL {
                    for chunk in [4096, 1 << 20, 16 << 20] {
                        for built in [Built::Whole, Built::Dictionary, Built::Parent] {
                            let format = Format {
                                version,
                                compressor: compressor.parse()?,
                                digester: *digester,
                                chunk_size: ChunkSize::new(chunk)?,
                                layout: *layout,
                            };
                            if version == FsVersion::V6 || !layout.has_toc() {
                                all.push(Variant { format, built });
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(all)
}

/// Two values of two different choices, as words.
fn pairs(variant: &Variant) -> Vec<(String, String)> {
    let words: Vec<String> = variant.to_string().split('-').map(str::to_owned).collect();
    let mut pairs = Vec::new();
    for (i, a) in words.iter().enumerate() {
        for (j, b) in words.iter().enumerate().skip(i + 1) {
            pairs.push((format!("{i}{a}"), format!("{j}{b}")));
        }
    }
    pairs
}

/// Variants in which every two values meet that can: of those left, the one with the most new pairs, until there is none.
fn covering(all: &[Variant]) -> Vec<Variant> {
    let mut met = HashSet::new();
    let mut chosen = Vec::new();
    loop {
        let news = |v: &Variant| pairs(v).into_iter().filter(|pair| !met.contains(pair)).count();
        // The first of the best: always the same selection.
        let best = all.iter().rev().max_by_key(|v| news(v));
        let Some(best) = best.filter(|v| news(v) > 0) else { return chosen };
        met.extend(pairs(best));
        chosen.push(*best);
    }
}

/// Trees in memory.
struct Scene {
    base: PathBuf,
    upper: PathBuf,
    /// The base with some changes, as a tree of its own.
    changed: PathBuf,
    /// What an overlay mount of base and upper shows.
    // Unmounted in this order, before the directory is removed.
    merged: Mount,
    _memory: Mount,
    dir: tempfile::TempDir,
}

const OPTIONS: &str = ",redirect_dir=on,metacopy=on,index=off";

impl Scene {
    fn new() -> Result<Scene> {
        let dir = tempfile::Builder::new().prefix("rafs-variants-").tempdir()?;
        let memory = Mount::memory(&make(dir.path(), "memory")?)?;
        let base = make(&memory.0, "base")?;
        everything(&base, false)?;
        // Round the borders of the largest chunks; what repeats takes no time to compress.
        for size in [(16 << 20) - 1, 16 << 20, (16 << 20) + 1] {
            fs::write(
                base.join(format!("size-{size}")),
                b"0123456789abcdef".repeat((2 << 20) + 1).get(..size).context("long enough")?,
            )?;
        }
        xattr(&base.join("same-a"), "trusted.64k", &[b'w'; 65535])?;

        let upper = make(&memory.0, "upper")?;
        let work = make(&memory.0, "work")?;
        let at = make(&memory.0, "merged")?;
        let overlay = |options: String| -> Result<Mount> {
            let data = CString::new(options + OPTIONS)?;
            mount("overlay", &at, "overlay", MountFlags::empty(), Some(data.as_c_str()))?;
            Ok(Mount(at.clone()))
        };
        let lower = format!("lowerdir={}", base.display());
        {
            let _live = overlay(format!("{lower},upperdir={},workdir={}", upper.display(), work.display()))?;
            change(&at)?;
        }
        let merged = overlay(format!("lowerdir={}:{}", upper.display(), base.display()))?;
        let changed = memory.0.join("changed");
        ensure!(Command::new("cp").arg("-a").args([&base, &changed]).status()?.success(), "cp -a");
        change(&changed)?;
        Ok(Scene { base, upper, changed, merged, _memory: memory, dir })
    }

    /// The image, and what it must be equal to.
    fn image(&self, variant: &Variant) -> Result<(Image, &Path)> {
        let Variant { format, built } = *variant;
        let name = variant.to_string().replace(':', "-");
        let request = |name: &str, tree: &Path| Request {
            prefetch: vec!["/text".into(), "/renamed".into(), "/not-there".into()],
            ..request(self.dir.path(), name, format, tree)
        };
        let build = |request: Request| build(&request, &Quiet).context("build");
        let before = || build(request(&format!("{name}-before"), &self.base)).map(|image| known(&image));
        Ok(match built {
            Built::Whole => {
                let mut request = request(&name, &self.upper);
                request.task.lowers = vec![self.base.clone()];
                (build(request)?, &self.merged.0)
            }
            Built::Dictionary => {
                let dictionaries = vec![before()?];
                let image = build(Request { dictionaries, ..request(&name, &self.changed) })?;
                // The changed file is one chunk of 4 MB where chunks are large.
                ensure!(image.stored_bytes < 5 << 20, "{} bytes are stored again", image.stored_bytes);
                (image, &self.changed)
            }
            Built::Parent => {
                let parent = Some(before()?);
                (build(Request { parent, ..request(&name, &self.upper) })?, &self.merged.0)
            }
        })
    }
}

/// What happened between the two images.
fn change(root: &Path) -> Result<()> {
    fs::remove_file(root.join("size-65537"))?;
    fs::remove_dir_all(root.join("level-0"))?;
    make(root, "level-0")?;
    fs::write(root.join("level-0/new"), noise(99, 150_000))?;
    fs::rename(root.join("linked"), root.join("renamed"))?;
    File::options().write(true).open(root.join("text"))?.write_all_at(b"changed", 2_000_000)?;
    fs::write(root.join("added"), b"added")?;
    xattr(&root.join("same-b"), "user.late", b"value")?;
    Ok(())
}

/// The least there is in the smaller tree.
const ENTRIES: u64 = 40;

/// The tools, if they are there.
struct Judges {
    nydus_image: Option<PathBuf>,
    nydusd: Option<PathBuf>,
}

impl Judges {
    fn judge(&self, scene: &Scene, variant: &Variant) -> Result<()> {
        let format = variant.format;
        let (image, reference) = scene.image(variant)?;
        let dir = tempfile::tempdir_in(scene.dir.path())?;
        if format.compressor == Compressor::None && format.version == FsVersion::V6 {
            let mounted = mount_image(&image, &make(dir.path(), "erofs")?)?;
            must_be_equal(reference, mounted.path(), format.version, ENTRIES).context("the kernel")?;
        }
        let mut bootstraps = vec![image.bootstrap.clone()];
        if format.layout.has_bootstrap() {
            bootstraps.push(inside(&image, format.layout, dir.path())?);
        }
        let blobs = blobs(&image);
        for (n, bootstrap) in bootstraps.iter().enumerate() {
            // A blob as such is for nydusd, which knows from its configuration where the blob is.
            if let Some(nydus_image) = self.nydus_image.as_ref().filter(|_| !blobs.contains(bootstrap)) {
                check(nydus_image, bootstrap)?;
            }
            if let Some(nydusd) = &self.nydusd {
                let verify = match format.version {
                    // It digests a whole chunk for every 128 KiB that are read: a minute with chunks of 16 MiB.
                    _ if format.chunk_size.bytes() > 1 << 20 => Verify::Nothing,
                    FsVersion::V5 => Verify::DataAndInodes,
                    FsVersion::V6 if format.layout.has_toc() => Verify::Data,
                    FsVersion::V6 => Verify::Nothing,
                };
                let at = make(dir.path(), &format!("served-{n}"))?;
                let served = serve(nydusd, bootstrap, &blobs, &at, verify)?;
                must_be_equal(reference, &served.at, format.version, ENTRIES)
                    .with_context(|| format!("nydusd, bootstrap {n}"))?;
            }
        }
        Ok(())
    }
}

/// The bootstrap inside the upper's blob: the blob itself where readers find it by its table of contents; else it is taken out by the
/// tar header at the end, and gets the blob's name, from which they take the id.
fn inside(image: &Image, layout: BlobLayout, dir: &Path) -> Result<PathBuf> {
    let blob = image.blobs.iter().map(|b| &b.path).find(|path| {
        let work = image.bootstrap.with_file_name("blobs").join(path.file_name().unwrap_or_default());
        work.is_file()
    });
    let blob = blob.context("the upper has a blob")?;
    if layout.has_toc() {
        return Ok(blob.clone());
    }
    let bytes = fs::read(blob)?;
    let header = &bytes[bytes.len() - 512..];
    ensure!(header.starts_with(b"image.boot\0"), "the blob ends with the bootstrap's tar header");
    let size = usize::from_str_radix(std::str::from_utf8(&header[124..135])?, 8)?;
    let out = make(dir, "inside")?.join(blob.file_name().context("a blob has a name")?);
    fs::write(&out, &bytes[bytes.len() - 512 - size..bytes.len() - 512])?;
    Ok(out)
}

#[test]
fn every_variant_reads_back_equal() -> Result<()> {
    let judges = Judges { nydus_image: judge("nydus-image")?, nydusd: judge("nydusd")? };
    let all = all()?;
    let wanted = std::env::var("SNAPSHOT_RAFS_VARIANTS").unwrap_or_default();
    let variants = match wanted.as_str() {
        "" => covering(&all),
        "all" => all,
        part => all.into_iter().filter(|v| v.to_string().contains(part)).collect(),
    };
    ensure!(!variants.is_empty(), "no variant has `{wanted}` in its name");
    let scene = Scene::new()?;
    let mut wrong = Vec::new();
    for variant in &variants {
        let start = std::time::Instant::now();
        let result = judges.judge(&scene, variant).with_context(|| variant.to_string());
        println!(
            "{variant}: {} in {:.1} s",
            if result.is_ok() { "equal" } else { "WRONG" },
            start.elapsed().as_secs_f32()
        );
        wrong.extend(result.err().map(|e| format!("{e:#}")));
    }
    ensure!(wrong.is_empty(), "{} of {} variants:\n{}", wrong.len(), variants.len(), wrong.join("\n"));
    Ok(())
}
