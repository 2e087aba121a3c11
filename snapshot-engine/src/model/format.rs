//! How an image is written: the version of RAFS, how chunks are made, and what a blob has besides them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A word that names no known option value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {what}: give {allowed}")]
pub struct UnknownWord {
    /// What was given.
    pub given: String,
    /// What it was meant to be.
    pub what: &'static str,
    /// What may be given.
    pub allowed: &'static str,
}

/// A version of the format that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum FsVersion {
    /// RAFS v5: its own format, served by nydusd alone.
    V5,
    /// RAFS v6: EROFS-compatible.
    #[default]
    V6,
}

impl FsVersion {
    /// The version of a number.
    #[must_use]
    pub fn of(number: u32) -> Option<FsVersion> {
        match number {
            5 => Some(FsVersion::V5),
            6 => Some(FsVersion::V6),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            FsVersion::V5 => 5,
            FsVersion::V6 => 6,
        }
    }
}

/// A level of Zstandard, 1 to 22.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ZstdLevel(i32);

impl ZstdLevel {
    /// The level `nydus-image` compresses at (utils/src/compress/mod.rs, `zstd_compress`).
    pub const DEFAULT: ZstdLevel = ZstdLevel(3);

    /// Checks a level.
    #[must_use]
    pub fn new(level: i32) -> Option<ZstdLevel> {
        (1..=22).contains(&level).then_some(ZstdLevel(level))
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> i32 {
        self.0
    }
}

impl Default for ZstdLevel {
    fn default() -> ZstdLevel {
        ZstdLevel::DEFAULT
    }
}

/// How a layer of an OCI image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LayerCompression {
    /// Not at all.
    None,
    /// What every runtime and registry takes.
    #[default]
    Gzip,
    /// Smaller and quicker: docker 23, containerd 1.5, podman 4.
    Zstd(ZstdLevel),
}

impl LayerCompression {
    /// That of a compressor; `None` for one that layers cannot have.
    #[must_use]
    pub fn of(compressor: Compressor) -> Option<LayerCompression> {
        match compressor {
            Compressor::None => Some(LayerCompression::None),
            Compressor::Gzip => Some(LayerCompression::Gzip),
            Compressor::Zstd(level) => Some(LayerCompression::Zstd(level)),
            Compressor::Lz4Block => None,
        }
    }

    /// The layer's media type (image-spec, `media-types.md`).
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            LayerCompression::None => "application/vnd.oci.image.layer.v1.tar",
            LayerCompression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            LayerCompression::Zstd(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// How chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compressor {
    /// Not at all: such an image of v6 can be mounted by the kernel's EROFS.
    None,
    /// LZ4 blocks: quick to make and to read.
    Lz4Block,
    /// Gzip streams: for readers of old.
    Gzip,
    /// Zstandard frames: small.
    Zstd(ZstdLevel),
}

impl Compressor {
    /// Zstandard at the level of `nydus-image`.
    #[must_use]
    pub fn zstd() -> Compressor {
        Compressor::Zstd(ZstdLevel::default())
    }

    /// Whether chunks compressed by one can stand beside the other's in an image: the same algorithm, at whatever level.
    #[must_use]
    pub fn same_algorithm(self, other: Compressor) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl Default for Compressor {
    fn default() -> Compressor {
        Compressor::zstd()
    }
}

impl FromStr for Compressor {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Compressor, UnknownWord> {
        let level = |text: &str| text.parse().ok().and_then(ZstdLevel::new).map(Compressor::Zstd);
        match word {
            "none" => Some(Compressor::None),
            "lz4_block" => Some(Compressor::Lz4Block),
            "gzip" => Some(Compressor::Gzip),
            "zstd" => Some(Compressor::zstd()),
            _ => word.strip_prefix("zstd:").and_then(level),
        }
        .ok_or_else(|| UnknownWord {
            given: word.escape_debug().to_string(),
            what: "compressor",
            allowed: "none, lz4_block, gzip, zstd or zstd:LEVEL with a level from 1 to 22",
        })
    }
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compressor::None => f.pad("none"),
            Compressor::Lz4Block => f.pad("lz4_block"),
            Compressor::Gzip => f.pad("gzip"),
            Compressor::Zstd(level) if *level == ZstdLevel::default() => f.pad("zstd"),
            Compressor::Zstd(level) => f.pad(&format!("zstd:{}", level.get())),
        }
    }
}

impl TryFrom<String> for Compressor {
    type Error = UnknownWord;

    fn try_from(word: String) -> Result<Compressor, UnknownWord> {
        word.parse()
    }
}

impl From<Compressor> for String {
    fn from(compressor: Compressor) -> String {
        compressor.to_string()
    }
}

/// A closed set of words: one table gives the parser and the display.
macro_rules! words {
    ($($(#[$meta:meta])* $name:ident as $what:literal, $allowed:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ })+) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every choice, in the order of the help.
            pub const ALL: &[$name] = &[$($name::$variant),+];
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<$name, UnknownWord> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err(UnknownWord { given: word.escape_debug().to_string(), what: $what, allowed: $allowed }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($name::$variant => $word,)+ })
            }
        }
    )+ };
}

words! {
    /// How chunks are told apart.
    Digester as "digester", "blake3 or sha256" {
        /// BLAKE3, the default of the format.
        #[default]
        Blake3 = "blake3",
        /// SHA-256.
        Sha256 = "sha256",
    }

    /// What kind of image is made.
    ImageFormat as "format", "nydus, oci or auto" {
        /// A Nydus image: RAFS, read on demand.
        #[default]
        Nydus = "nydus",
        /// An OCI image of tar layers, which any runtime runs.
        Oci = "oci",
        /// What the container's own image is.
        Auto = "auto",
    }

    /// What a blob has besides its chunks.
    BlobLayout as "blob layout", "plain, toc, inline or inline_toc" {
        /// What reading them needs: in v6 where each chunk lies, in v5 nothing.
        #[default]
        Plain = "plain",
        /// Also the chunks' digests and a table of contents, so that nydusd can verify what it reads. In v6 only.
        Toc = "toc",
        /// Also the image's bootstrap.
        Inline = "inline",
        /// All of it, as nydusify pushes blobs. In v6 only.
        InlineToc = "inline_toc",
    }
}

impl BlobLayout {
    /// Whether the blob ends with a table of contents and has the digests of its chunks.
    #[must_use]
    pub fn has_toc(self) -> bool {
        matches!(self, BlobLayout::Toc | BlobLayout::InlineToc)
    }

    /// Whether the image's bootstrap is in the blob of the topmost layer.
    #[must_use]
    pub fn has_bootstrap(self) -> bool {
        matches!(self, BlobLayout::Inline | BlobLayout::InlineToc)
    }

    /// That of the blobs of lower layers: an image has one bootstrap.
    #[must_use]
    pub fn without_bootstrap(self) -> BlobLayout {
        if self.has_toc() { BlobLayout::Toc } else { BlobLayout::Plain }
    }
}

/// The size of a chunk: a power of two from 4 KiB to 16 MiB, the range RAFS allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkSize(u32);

/// A chunk size the format does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk size {0} is not allowed: give a power of two from 4096 to 16777216")]
pub struct BadChunkSize(pub u64);

impl ChunkSize {
    /// Checks a size in bytes.
    ///
    /// # Errors
    /// When it is not a power of two from 4 KiB to 16 MiB.
    pub fn new(bytes: u64) -> Result<ChunkSize, BadChunkSize> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 12..=1 << 24).contains(&size) => Ok(ChunkSize(size)),
            _ => Err(BadChunkSize(bytes)),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// The base-2 logarithm.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// How many chunks a file of `size` bytes has.
    #[must_use]
    pub fn count(self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.0))
    }
}

impl Default for ChunkSize {
    fn default() -> ChunkSize {
        ChunkSize(1 << 20)
    }
}

/// How an image is written. Equal options give equal bytes; they are part of a cached layer's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Format {
    /// Version of RAFS.
    pub version: FsVersion,
    /// Compression of the chunks.
    pub compressor: Compressor,
    /// Digest of the chunks.
    pub digester: Digester,
    /// Size of all chunks but the last of a file.
    pub chunk_size: ChunkSize,
    /// What blobs have besides chunks.
    pub layout: BlobLayout,
}

impl Format {
    /// Whether blobs of the two can be in one image: what the superblock says once has to hold for all.
    #[must_use]
    pub fn goes_with(&self, other: &Format) -> bool {
        self.version == other.version
            && self.compressor.same_algorithm(other.compressor)
            && self.digester == other.digester
            && self.chunk_size == other.chunk_size
    }
}

/// What chunks have to have in common, in words.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Format { version, compressor, digester, chunk_size, layout: _ } = self;
        write!(
            f,
            "as v{} with {compressor}, {digester} and chunks of {} bytes",
            version.number(),
            chunk_size.bytes()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_checked() {
        assert!(ChunkSize::new(4096).is_ok());
        assert!(ChunkSize::new(16 << 20).is_ok());
        for bad in [0, 1, 2048, 4097, 32 << 20, u64::MAX] {
            assert_eq!(ChunkSize::new(bad), Err(BadChunkSize(bad)));
        }
        assert_eq!(ChunkSize::default().count(0), 0);
        assert_eq!(ChunkSize::default().count((1 << 20) + 1), 2);
    }

    #[test]
    fn words_round_trip() {
        for word in ["none", "lz4_block", "gzip", "zstd", "zstd:1", "zstd:22"] {
            assert_eq!(word.parse::<Compressor>().unwrap().to_string(), word);
        }
        assert_eq!("zstd:3".parse(), Ok(Compressor::zstd()));
        for d in Digester::ALL {
            assert_eq!(d.to_string().parse(), Ok(*d));
        }
        for l in BlobLayout::ALL {
            assert_eq!(l.to_string().parse(), Ok(*l));
        }
        for bad in ["brotli", "lz4", "zstd:", "zstd:0", "zstd:23", "zstd:x", "gzip:9", ""] {
            assert!(bad.parse::<Compressor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_superblock_says_once_must_be_equal() {
        let one = Format::default();
        let level = ZstdLevel::new(19).map(Compressor::Zstd).unwrap();
        assert!(one.goes_with(&Format { compressor: level, layout: BlobLayout::Toc, ..one }));
        assert!(!one.goes_with(&Format { compressor: Compressor::None, ..one }));
        assert!(!one.goes_with(&Format { digester: Digester::Sha256, ..one }));
        assert!(!one.goes_with(&Format { version: FsVersion::V5, ..one }));
    }
}
