//! Chunks that were read and verified a moment ago: the kernel asks for 128 KiB at a time, a chunk may have 16 MiB.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::chunk::ChunkRef;
use crate::reader::data::{ChunkFault, Decoder};
use crate::reader::{Opened, ReaderError};

/// The most bytes that are kept.
const MOST: usize = 64 << 20;

#[derive(Default)]
struct Kept {
    chunks: HashMap<ChunkRef, (Arc<[u8]>, u64)>,
    /// The same by last use.
    order: BTreeMap<u64, ChunkRef>,
    tick: u64,
    bytes: usize,
}

/// A cache of one image's chunks.
#[derive(Default)]
pub(super) struct Cache {
    kept: Mutex<Kept>,
    /// Decoders that nobody uses just now.
    decoders: Mutex<Vec<Decoder>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// A chunk's raw bytes, verified.
    pub(super) fn chunk(&self, image: &Opened, name: ChunkRef) -> Result<Arc<[u8]>, ReaderError> {
        if let Some(raw) = lock(&self.kept).touch(name) {
            return Ok(raw);
        }
        let mut decoder = lock(&self.decoders).pop().unwrap_or_default();
        let raw = read(image, &mut decoder, name);
        lock(&self.decoders).push(decoder);
        let raw = raw?;
        lock(&self.kept).insert(name, &raw);
        Ok(raw)
    }
}

fn read(image: &Opened, decoder: &mut Decoder, name: ChunkRef) -> Result<Arc<[u8]>, ReaderError> {
    let at = usize::from(name.blob.0);
    let (Some(blob), Some(chunk), Some(file)) =
        (image.image.blobs.get(at), image.image.chunks.get(name), image.files.get(at))
    else {
        return Err(ReaderError::NoPath(format!("chunk {} of blob {at}", name.index).into()));
    };
    let raw = decoder.read(file.open(blob)?, blob, chunk).map_err(|fault: ChunkFault| ReaderError::Data {
        path: file.path.clone(),
        what: format!("chunk {}: {fault}", name.index),
    })?;
    Ok(raw.into())
}

impl Kept {
    fn touch(&mut self, name: ChunkRef) -> Option<Arc<[u8]>> {
        self.tick += 1;
        let (raw, last) = self.chunks.get_mut(&name)?;
        self.order.remove(last);
        *last = self.tick;
        self.order.insert(self.tick, name);
        Some(Arc::clone(raw))
    }

    fn insert(&mut self, name: ChunkRef, raw: &Arc<[u8]>) {
        self.tick += 1;
        if let Some((old, last)) = self.chunks.insert(name, (Arc::clone(raw), self.tick)) {
            self.order.remove(&last);
            self.bytes -= old.len();
        }
        self.order.insert(self.tick, name);
        self.bytes += raw.len();
        while self.bytes > MOST
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some((raw, _)) = self.chunks.remove(&oldest) {
                self.bytes -= raw.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chunk::BlobIndex;

    #[test]
    fn what_was_used_last_is_kept() {
        let mut kept = Kept::default();
        let name = |index| ChunkRef { blob: BlobIndex(0), index };
        let raw: Arc<[u8]> = vec![0; MOST / 4].into();
        for index in 0..4 {
            kept.insert(name(index), &raw);
        }
        assert!(kept.touch(name(0)).is_some());
        kept.insert(name(4), &raw);
        kept.insert(name(4), &raw);
        assert!(kept.touch(name(1)).is_none(), "the oldest went");
        assert!([0, 2, 3, 4].iter().all(|n| kept.touch(name(*n)).is_some()));
        assert_eq!((kept.bytes, kept.order.len(), kept.chunks.len()), (MOST, 4, 4));
    }
}
