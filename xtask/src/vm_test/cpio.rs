//! The archive a kernel takes as its first file system: cpio, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes an archive entry by entry; directories come by themselves.
pub(super) struct Archive<W> {
    out: W,
    made: BTreeSet<PathBuf>,
    number: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, made: BTreeSet::from([PathBuf::from("/")]), number: 0 }
    }

    /// A directory and those above it.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        if !self.made.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.directory(above)?;
        }
        self.entry(path, DIRECTORY, &[])
    }

    /// A file that may be executed. A second one of the same path is left out.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        if self.made.contains(path) {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.directory(above)?;
        }
        self.made.insert(path.to_owned());
        self.entry(path, PROGRAM, content)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[])?;
        self.out.flush()
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        self.number += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        write!(
            self.out,
            "070701{:08X}{mode:08X}{:08X}{:08X}{links:08X}{:08X}{size:08X}",
            self.number, 0, 0, 0
        )?;
        write!(self.out, "{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}", 0, 0, 0, 0, name.len() + 1, 0)?;
        self.out.write_all(name.as_bytes())?;
        // The header has 110 bytes; name and content are padded to four, the name after its NUL.
        self.out.write_all(&[0; 4][..1 + (4 - (110 + name.len() + 1) % 4) % 4])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..(4 - content.len() % 4) % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_at_multiples_of_four_with_their_directories_first() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/a/bc/file"), b"12345").unwrap();
        archive.file(Path::new("/a/bc/file"), b"again").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<usize> =
            (0..bytes.len() - 5).filter(|at| &bytes[*at..*at + 6] == b"070701").collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let name = |at: &usize| {
            let tail = &bytes[at + 110..];
            String::from_utf8_lossy(&tail[..tail.iter().position(|b| *b == 0).unwrap()]).into_owned()
        };
        assert_eq!(starts.iter().map(name).collect::<Vec<_>>(), ["a", "a/bc", "a/bc/file", "TRAILER!!!"]);
        assert!(bytes.windows(8).any(|window| window == b"12345\0\0\0"));
    }
}
