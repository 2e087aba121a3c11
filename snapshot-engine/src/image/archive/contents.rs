//! The content of files, whichever layer they lie in.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use rustix::fs::SeekFrom;

use crate::chunk::ChunkError;
use crate::chunk::convert::Source;
use crate::image::ImageError;
use crate::image::walk::Walked;
use crate::kernel::descent::Opener;
use crate::kernel::{holes, writeback};
use crate::model::chunk::ChunkRef;
use crate::model::tree::Content;

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Reads files of walked layers. A file's content is named by a reference to its layer (in place of the blob) and the number of its source there.
pub(super) struct Contents<'a> {
    layers: Vec<(&'a Walked, Opener<'a>)>,
    buffer: Vec<u8>,
}

impl<'a> Contents<'a> {
    /// Of layers by number; not all of them need be there to be read from.
    pub(super) fn new(layers: impl IntoIterator<Item = &'a Walked>) -> Contents<'a> {
        let layers = layers.into_iter().map(|walked| (walked, Opener::new(&walked.root))).collect();
        Contents { layers, buffer: vec![0; BUFFER] }
    }

    /// Copies a file's content; `size` bytes of it, no more and no less.
    pub(super) fn copy(&mut self, content: &Content, to: &mut impl Write) -> Result<(), ImageError> {
        if content.size == 0 {
            return Ok(());
        }
        let lost = || ImageError::Chunk(ChunkError::Worker);
        let name: ChunkRef = content.chunks.first().copied().ok_or_else(lost)?;
        let (walked, opener) = self.layers.get_mut(usize::from(name.blob.0)).ok_or_else(lost)?;
        let source = walked.sources.get(name.index as usize).ok_or_else(lost)?;
        let path = || path(walked, source);
        let read = |e| ImageError::Chunk(ChunkError::Read { path: path(), source: e });
        let changed = |what| ImageError::Chunk(ChunkError::Changed { path: path(), what });

        let way = opener.way(&walked.dirs, source.dir);
        let dir = opener.open(way).map_err(read)?;
        let (file, stat) = dir.open_file(&source.name).map_err(read)?;
        // What is opened must be what the walk saw.
        if stat.ino != source.ino {
            return Err(changed("it is another file"));
        }
        if stat.size != source.size {
            return Err(changed("its size"));
        }
        let file = File::from(file);
        let write = |e| ImageError::Io { what: "write the layer with", path: path(), source: e };
        let mut at = 0;
        while at < content.size {
            let data =
                if source.sparse { data(&file, at, content.size).map_err(read)? } else { at..content.size };
            zeros(data.start - at, to).map_err(write)?;
            at = data.start;
            while at < data.end {
                let wanted = (data.end - at).min(BUFFER as u64) as usize;
                match file.read_at(&mut self.buffer[..wanted], at) {
                    Ok(0) => return Err(changed("it shrank")),
                    Ok(n) => {
                        to.write_all(&self.buffer[..n]).map_err(write)?;
                        at += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(read(e)),
                }
            }
        }
        Ok(())
    }
}

fn path(walked: &Walked, source: &Source) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    walked.dirs.path(source.dir).join(std::ffi::OsStr::from_bytes(source.name.to_bytes()))
}

/// The next run of data at or behind `at`; empty at the end if there is none.
fn data(file: &File, at: u64, end: u64) -> io::Result<std::ops::Range<u64>> {
    // A lower layer may have been unpacked a moment ago; a frozen upperdir is on the disk already.
    if at == 0 && holes::hidden(file.as_fd()) {
        writeback::sync_range(file.as_fd(), 0..i64::MAX as u64)?;
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(end),
        // No data up to the end.
        Err(rustix::io::Errno::NXIO) => return Ok(end..end),
        Err(rustix::io::Errno::INVAL) => return Ok(at..end),
        Err(e) => return Err(e.into()),
    };
    Ok(start..rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(end).clamp(start, end))
}

fn zeros(mut count: u64, to: &mut impl Write) -> io::Result<()> {
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        to.write_all(&ZEROS[..now as usize])?;
        count -= now;
    }
    Ok(())
}
