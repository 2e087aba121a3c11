//! What a user can choose about a commit, the defaults, and what is refused.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::access::Access;
use super::base::{KnownImage, LayoutImage};
use super::change::Change;
use super::fault::{Class, Fault};
use super::format::{
    BlobLayout, ChunkSize, Compressor, Digester, Format, FsVersion, ImageFormat, LayerCompression,
};
use super::globs::PathGlob;
use super::nanos::Nanos;
use super::paths;
use super::snapshot::Gate;

/// An option whose value is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file system version we do not write.
    #[error("RAFS version {0} is not supported")]
    FsVersion(u32),
    /// A table of contents in a blob of v5.
    #[error("the blob layout `{0}` is not possible with RAFS v5")]
    LayoutNeedsV6(BlobLayout),
    /// Not a power of two, or out of bounds.
    #[error("a chunk size of {0} bytes is not possible")]
    ChunkSize(u64),
    /// A text that is no size.
    #[error("`{0}` is not a size")]
    Size(String),
    /// Zero or absurdly many.
    #[error("{0} rounds of pre-copy are not possible")]
    MaximumTimes(u32),
    /// Zero or absurdly many.
    #[error("{0} background workers are not possible")]
    BackgroundWorkers(u32),
    /// Zero or longer than a minute.
    #[error("a longest pause of {0} is not possible")]
    MaxPause(Nanos),
    /// The fence needs the tracker's programs.
    #[error("the gate `{0}` needs the tracker")]
    GateNeedsTracker(Gate),
    /// Not the path of a directory below the container's root.
    #[error("`{}` cannot be added to the image", .0.display())]
    WithPath(PathBuf),
    /// An option that only images of another format have.
    #[error("`{option}` is for images of the format {other}")]
    OtherFormat {
        /// The option.
        option: &'static str,
        /// The format that has it.
        other: ImageFormat,
    },
    /// A word that is not one of the choices.
    #[error("`{given}` is not a {what}")]
    Choice {
        /// The option.
        what: &'static str,
        /// What was given.
        given: String,
        /// What may be given.
        choices: String,
    },
}

impl Fault for Error {
    fn class(&self) -> Class {
        Class::Arguments
    }
    fn remedy(&self) -> Option<String> {
        Some(match self {
            Error::FsVersion(_) => "use --fs-version 5 or 6".to_owned(),
            Error::LayoutNeedsV6(_) => {
                "use --fs-version 6, or --blob-layout plain: v5 has the digests of chunks in its bootstrap"
                    .to_owned()
            }
            Error::ChunkSize(_) | Error::Size(_) => {
                "a chunk size is a power of two from 4KiB to 16MiB".to_owned()
            }
            Error::WithPath(_) => {
                "--with-path takes an absolute path below / without .., as the container has it: /var/lib/db"
                    .to_owned()
            }
            Error::MaximumTimes(_) => "use 1 to 1000 rounds".to_owned(),
            Error::BackgroundWorkers(_) => "use 1 to 256 workers".to_owned(),
            Error::MaxPause(_) => "use a duration from 1us to 1m".to_owned(),
            Error::GateNeedsTracker(_) => "use --gate freezer with --tracker none".to_owned(),
            Error::OtherFormat { option, other } => format!("use --format {other}, or leave {option} out"),
            Error::Choice { choices, .. } => format!("choose one of {choices}"),
        })
    }
}

/// A closed set of words: one table gives the parser, the display and the list for the help.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident as $what:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every choice, in the order of the help.
            pub const ALL: &[$name] = &[$($name::$variant),+];
            /// The word that stands for it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.word()) }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                $name::ALL.iter().copied().find(|c| c.word() == text).ok_or_else(|| Error::Choice {
                    what: $what,
                    given: text.escape_debug().to_string(),
                    choices: $name::ALL.iter().map(|c| c.word()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

choice! {
    /// Which gate may be used.
    GateChoice as "gate" {
        /// none, then fence, then freezer.
        Auto = "auto",
        /// Only the optimistic cut.
        None = "none",
        /// Only the fence.
        Fence = "fence",
        /// Only the freezer.
        Freezer = "freezer",
    }
}

impl GateChoice {
    /// Whether a gate may be used.
    #[must_use]
    pub fn allows(self, gate: Gate) -> bool {
        match self {
            GateChoice::Auto => true,
            GateChoice::None => gate == Gate::None,
            GateChoice::Fence => gate == Gate::Fence,
            GateChoice::Freezer => gate == Gate::Freezer,
        }
    }
}

choice! {
    /// Whether the tracker is used.
    TrackerChoice as "tracker" {
        /// Where the kernel has what it needs.
        Auto = "auto",
        /// No: freeze, and capture everything inside the window.
        None = "none",
    }
}

/// Bytes with an optional unit: `65536`, `64KiB`, `1MiB`, `1m`.
///
/// # Errors
/// [`Error::Size`].
pub fn parse_size(text: &str) -> Result<u64, Error> {
    let bad = || Error::Size(text.escape_debug().to_string());
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        _ => return Err(bad()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(bad)
}

/// Everything a user can choose about a commit. [`Default`] gives the documented defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOptions {
    /// Where snapshots are kept.
    #[serde(with = "paths")]
    pub work_dir: PathBuf,
    /// What kind of image is made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: ImageFormat,
    /// RAFS version of the image.
    pub fs_version: u32,
    /// How chunks or layers are compressed; `None` for what goes with the format: `lz4_block` or `gzip`.
    #[serde(serialize_with = "compressor")]
    pub compressor: Option<Compressor>,
    /// How chunks are named.
    pub digest: Digester,
    /// Size of a chunk in bytes.
    pub chunk_size: u64,
    /// What blobs have besides chunks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub blob_layout: BlobLayout,
    /// Paths in the image that are fetched first when it is mounted; a directory stands for all below it.
    #[serde(default, with = "paths::list", skip_serializing_if = "Vec::is_empty")]
    pub prefetch: Vec<PathBuf>,
    /// The image of what lies below the container's upperdir: the lowers are not converted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<KnownImage>,
    /// Images whose chunks are referred to and not stored again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunk_dict: Vec<KnownImage>,
    /// Read every file, and refer to no blob of an earlier snapshot of the same container.
    #[serde(default, skip_serializing_if = "is_default")]
    pub full: bool,
    /// The OCI image that the container was started from, in a layout: its layers are referred to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<LayoutImage>,
    /// Paths of the container that are left out of the image: it shows there what is below the container's own layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_paths: Vec<PathGlob>,
    /// Directories of the container outside its own layer, such as volumes, that the image has as well.
    #[serde(default, with = "paths::list", skip_serializing_if = "Vec::is_empty")]
    pub with_paths: Vec<PathBuf>,
    /// Which gate may be used.
    pub gate: GateChoice,
    /// Whether the tracker is used.
    pub tracker: TrackerChoice,
    /// The budget: an attempt that would take longer is abandoned.
    pub max_pause: Nanos,
    /// The most rounds of pre-copy.
    pub maximum_times: u32,
    /// Threads that chunk, digest and compress the image.
    pub background_workers: u32,
    /// Replace the target if it exists.
    pub overwrite: bool,
    /// Keep the frozen upperdir when the image is complete.
    pub keep_frozen: bool,
    /// A remark for the image's history.
    pub message: Option<String>,
    /// Who made the image.
    pub author: Option<String>,
    /// How the target is reached.
    #[serde(default, skip_serializing_if = "is_default")]
    pub access: Access,
    /// Changes to the config of the image, in the order they are carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// Whether a path is absolute, without `..`, and not the root itself.
fn is_below_root(path: &Path) -> bool {
    let mut parts = path.components();
    let rooted = parts.next() == Some(Component::RootDir);
    rooted && parts.clone().count() > 0 && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Engines that knew but one default want it written.
#[expect(clippy::ref_option, reason = "serde asks with a reference")]
fn compressor<S: Serializer>(compressor: &Option<Compressor>, serializer: S) -> Result<S::Ok, S::Error> {
    compressor.unwrap_or(Compressor::Lz4Block).serialize(serializer)
}

/// What is as it always was is not written: records of before and after an option came are the same.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for CommitOptions {
    fn default() -> Self {
        CommitOptions {
            work_dir: "/tmp".into(),
            format: ImageFormat::Nydus,
            fs_version: 6,
            compressor: None,
            digest: Digester::Blake3,
            chunk_size: 1 << 20,
            blob_layout: BlobLayout::Plain,
            prefetch: Vec::new(),
            parent: None,
            chunk_dict: Vec::new(),
            full: false,
            base_image: None,
            without_paths: Vec::new(),
            with_paths: Vec::new(),
            gate: GateChoice::Auto,
            tracker: TrackerChoice::Auto,
            max_pause: Nanos(1_000_000),
            maximum_times: 10,
            background_workers: 4,
            overwrite: false,
            keep_frozen: true,
            message: None,
            author: None,
            access: Access::default(),
            changes: Vec::new(),
        }
    }
}

macro_rules! builder {
    ($($name:ident: $kind:ty,)+) => { $(
        #[doc = concat!("Sets `", stringify!($name), "`.")]
        #[must_use]
        pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
            self.$name = $name.into();
            self
        }
    )+ };
}

impl CommitOptions {
    builder! {
        work_dir: PathBuf,
        format: ImageFormat,
        fs_version: u32,
        compressor: Option<Compressor>,
        digest: Digester,
        chunk_size: u64,
        blob_layout: BlobLayout,
        prefetch: Vec<PathBuf>,
        parent: Option<KnownImage>,
        chunk_dict: Vec<KnownImage>,
        full: bool,
        base_image: Option<LayoutImage>,
        without_paths: Vec<PathGlob>,
        with_paths: Vec<PathBuf>,
        gate: GateChoice,
        tracker: TrackerChoice,
        max_pause: Nanos,
        maximum_times: u32,
        background_workers: u32,
        overwrite: bool,
        keep_frozen: bool,
        message: Option<String>,
        author: Option<String>,
        access: Access,
        changes: Vec<Change>,
    }

    /// How a Nydus image is to be written.
    ///
    /// # Errors
    /// When there is no such format.
    pub fn rafs(&self) -> Result<Format, Error> {
        let version = FsVersion::of(self.fs_version).ok_or(Error::FsVersion(self.fs_version))?;
        let chunk_size = ChunkSize::new(self.chunk_size).map_err(|bad| Error::ChunkSize(bad.0))?;
        if version == FsVersion::V5 && self.blob_layout.has_toc() {
            return Err(Error::LayoutNeedsV6(self.blob_layout));
        }
        Ok(Format {
            version,
            compressor: self.compressor.unwrap_or(Compressor::Lz4Block),
            digester: self.digest,
            chunk_size,
            layout: self.blob_layout,
        })
    }

    /// The same with what goes with the format in place of what was left open.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.compressor = self.compressor.or(match self.format {
            ImageFormat::Nydus => Some(Compressor::Lz4Block),
            ImageFormat::Oci => Some(Compressor::Gzip),
            // Which it is only the container tells.
            ImageFormat::Auto => None,
        });
        self
    }

    /// Whether an engine of before there were formats would make the same image of it.
    #[must_use]
    pub fn is_of_old(&self) -> bool {
        self.format == ImageFormat::Nydus && self.changes.is_empty() && self.without_paths.is_empty()
    }

    /// How the layers of an OCI image are to be compressed.
    #[must_use]
    pub fn layers(&self) -> LayerCompression {
        self.compressor.and_then(LayerCompression::of).unwrap_or_default()
    }

    /// What was asked for that the format does not have. With `auto` each has what it can.
    fn of_another_format(&self) -> Result<(), Error> {
        let usual = CommitOptions::default();
        let nydus = [
            ("--fs-version", self.fs_version != usual.fs_version),
            ("--digest", self.digest != usual.digest),
            ("--chunk-size", self.chunk_size != usual.chunk_size),
            ("--blob-layout", self.blob_layout != usual.blob_layout),
            ("--prefetch", !self.prefetch.is_empty()),
            ("--parent", self.parent.is_some()),
            ("--chunk-dict", !self.chunk_dict.is_empty()),
            ("--compressor lz4_block", self.compressor == Some(Compressor::Lz4Block)),
        ];
        let oci = [("--base-image", self.base_image.is_some())];
        let (options, other) = match self.format {
            ImageFormat::Auto => return Ok(()),
            ImageFormat::Oci => (&nydus[..], ImageFormat::Nydus),
            ImageFormat::Nydus => (&oci[..], ImageFormat::Oci),
        };
        match options.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::OtherFormat { option, other }),
            None => Ok(()),
        }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The first option that is out of bounds.
    pub fn validate(&self) -> Result<(), Error> {
        self.rafs()?;
        self.of_another_format()?;
        if let Some(path) = self.with_paths.iter().find(|path| !is_below_root(path)) {
            return Err(Error::WithPath(path.clone()));
        }
        if !(1..=1000).contains(&self.maximum_times) {
            return Err(Error::MaximumTimes(self.maximum_times));
        }
        if !(1..=256).contains(&self.background_workers) {
            return Err(Error::BackgroundWorkers(self.background_workers));
        }
        if !(1_000..=60_000_000_000).contains(&self.max_pause.0) {
            return Err(Error::MaxPause(self.max_pause));
        }
        match (self.tracker, self.gate) {
            (TrackerChoice::None, GateChoice::Fence) => Err(Error::GateNeedsTracker(Gate::Fence)),
            (TrackerChoice::None, GateChoice::None) => Err(Error::GateNeedsTracker(Gate::None)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_promised_and_valid() {
        let o = CommitOptions::default();
        o.validate().unwrap();
        assert_eq!(
            (o.work_dir.to_str(), o.format, o.fs_version, o.rafs().unwrap().compressor),
            (Some("/tmp"), ImageFormat::Nydus, 6, Compressor::Lz4Block)
        );
        assert_eq!((o.maximum_times, o.background_workers, o.max_pause), (10, 4, Nanos(1_000_000)));
        assert_eq!((o.gate, o.tracker, o.chunk_size), (GateChoice::Auto, TrackerChoice::Auto, 1 << 20));
    }

    #[test]
    fn bounds_are_typed_errors() {
        let o = CommitOptions::default;
        for (options, error) in [
            (o().fs_version(4u32), Error::FsVersion(4)),
            (o().fs_version(5u32).blob_layout(BlobLayout::Toc), Error::LayoutNeedsV6(BlobLayout::Toc)),
            (
                o().format(ImageFormat::Oci).compressor(Compressor::Lz4Block),
                Error::OtherFormat { option: "--compressor lz4_block", other: ImageFormat::Nydus },
            ),
            (
                o().format(ImageFormat::Oci).prefetch(vec!["/a".into()]),
                Error::OtherFormat { option: "--prefetch", other: ImageFormat::Nydus },
            ),
            (
                o().base_image("oci:/a:b".parse::<LayoutImage>().unwrap()),
                Error::OtherFormat { option: "--base-image", other: ImageFormat::Oci },
            ),
            (o().chunk_size(5000u64), Error::ChunkSize(5000)),
            (o().chunk_size(32u64 << 20), Error::ChunkSize(32 << 20)),
            (o().maximum_times(0u32), Error::MaximumTimes(0)),
            (o().background_workers(0u32), Error::BackgroundWorkers(0)),
            (o().max_pause(Nanos(0)), Error::MaxPause(Nanos(0))),
            (o().with_paths(vec!["srv".into()]), Error::WithPath("srv".into())),
            (o().with_paths(vec!["/srv/a".into(), "/srv/../a".into()]), Error::WithPath("/srv/../a".into())),
            (o().with_paths(vec!["/".into()]), Error::WithPath("/".into())),
            (o().tracker(TrackerChoice::None).gate(GateChoice::Fence), Error::GateNeedsTracker(Gate::Fence)),
        ] {
            assert_eq!(options.validate(), Err(error.clone()));
            assert_eq!(error.class(), Class::Arguments);
            assert!(error.remedy().is_some());
        }
    }

    #[test]
    fn words_and_sizes() {
        for gate in GateChoice::ALL {
            assert_eq!(gate.word().parse(), Ok(*gate));
        }
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("64k"), Ok(64 << 10));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "1GB", "99999999999999999999", "18446744073709551615k", "-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
