//! Bytes that are looked at with care.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::ReadError;

/// A structure that lies in a file as it is.
pub(super) trait Raw: FromBytes + Immutable + KnownLayout + Unaligned {}
impl<T: FromBytes + Immutable + KnownLayout + Unaligned> Raw for T {}

/// A file's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn len(self) -> u64 {
        self.0.len() as u64
    }

    /// `len` bytes from `at` on.
    pub(super) fn range(self, what: &'static str, at: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let outside = || ReadError::Outside { what, at, len, size: self.len() };
        let start = usize::try_from(at).map_err(|_| outside())?;
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len)).ok_or_else(outside)?;
        self.0.get(start..end).ok_or_else(outside)
    }

    /// One structure.
    pub(super) fn one<T: Raw>(self, what: &'static str, at: u64) -> Result<&'a T, ReadError> {
        let bytes = self.range(what, at, size_of::<T>() as u64)?;
        // The length fits and nothing needs alignment.
        T::ref_from_bytes(bytes).map_err(|_| ReadError::Damaged { what, at })
    }

    /// `count` structures in a row.
    pub(super) fn many<T: Raw>(self, what: &'static str, at: u64, count: u64) -> Result<&'a [T], ReadError> {
        let len = count.saturating_mul(size_of::<T>() as u64);
        let bytes = self.range(what, at, len)?;
        <[T]>::ref_from_bytes(bytes).map_err(|_| ReadError::Damaged { what, at })
    }
}

/// How many bytes may still be read: see the module above.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    /// As many as the input has.
    pub(super) fn of(bytes: Bytes<'_>) -> Budget {
        Budget(bytes.len())
    }

    /// Twice that, where the format has some of it read twice.
    pub(super) fn twice(bytes: Bytes<'_>) -> Budget {
        Budget(bytes.len().saturating_mul(2))
    }

    pub(super) fn pay(&mut self, what: &'static str, at: u64, len: u64) -> Result<(), ReadError> {
        self.0 = self.0.checked_sub(len).ok_or(ReadError::Overlap { what, at })?;
        Ok(())
    }
}
