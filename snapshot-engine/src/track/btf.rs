//! The running kernel's description of its own types, as far as we need it: where a field lies, what a constant is, whether a
//! tracepoint exists.
//!
//! ```text
//!   header 24 B | types: { name u32, info u32, size or type u32, then by kind } ... | strings, NUL-terminated
//! ```
//!
//! Format: Documentation/bpf/btf.rst and linux/btf.h. One pass over some 150,000 types finds the names; a general library keeps all of
//! them and takes 250 ms for it, most of the time from the command to the cut. The bytes are the kernel's own, and are
//! still read with bounds checks only: a damaged file is an error, never a panic.

use std::collections::HashMap;
use std::path::Path;

use super::Error;

/// The kernel's own description of its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_TYPEDEF: u8 = 8;
/// Volatile, const, restrict.
const KIND_QUALIFIER: std::ops::RangeInclusive<u8> = 9..=11;
const KIND_TYPE_TAG: u8 = 18;

/// Anonymous structures are searched no deeper than this.
const MAX_DEPTH: u32 = 16;

/// Parsed BTF.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type lies; identifier 1 is the first.
    types: Vec<u32>,
    /// Structures, enumerations and typedefs by kind and name: identifier.
    names: HashMap<(u8, Box<[u8]>), u32>,
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf").field("types", &self.types.len()).finish_non_exhaustive()
    }
}

/// A type as it lies in the file.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    members: usize,
    bitfields: bool,
    /// Identifier of the type it refers to, or its size.
    refers: u32,
    /// Where its members begin.
    rest: usize,
}

impl Btf {
    /// The running kernel's.
    ///
    /// # Errors
    /// [`Error::NoBtf`] when the kernel has none.
    pub fn of_kernel() -> Result<Btf, Error> {
        let failed = |why: String| Error::NoBtf { path: VMLINUX.into(), why };
        let bytes = std::fs::read(Path::new(VMLINUX)).map_err(|e| failed(e.to_string()))?;
        Btf::parse(bytes).ok_or_else(|| failed("it is damaged".to_owned()))
    }

    /// Parses BTF of this machine's byte order.
    #[must_use]
    pub fn parse(bytes: Vec<u8>) -> Option<Btf> {
        if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let header = word(&bytes, 4)? as usize;
        let start = header.checked_add(word(&bytes, 8)? as usize)?;
        let end = start.checked_add(word(&bytes, 12)? as usize)?;
        let strings = header.checked_add(word(&bytes, 16)? as usize)?;
        let mut btf = Btf { bytes, strings, types: Vec::new(), names: HashMap::new() };
        let mut at = start;
        while at < end {
            btf.types.push(u32::try_from(at).ok()?);
            let id = u32::try_from(btf.types.len()).ok()?;
            let found = btf.at(at)?;
            if matches!(found.kind, KIND_STRUCT | KIND_ENUM | KIND_TYPEDEF) && found.name != 0 {
                let name = btf.string(found.name)?.into();
                btf.names.entry((found.kind, name)).or_insert(id);
            }
            at = found.rest.checked_add(length(found.kind, found.members)?)?;
        }
        Some(btf)
    }

    fn at(&self, at: usize) -> Option<Type> {
        let info = word(&self.bytes, at.checked_add(4)?)?;
        Some(Type {
            name: word(&self.bytes, at)?,
            kind: u8::try_from(info >> 24 & 0x1f).ok()?,
            members: (info & 0xffff) as usize,
            bitfields: info >> 31 == 1,
            refers: word(&self.bytes, at.checked_add(8)?)?,
            rest: at.checked_add(12)?,
        })
    }

    fn get(&self, id: u32) -> Option<Type> {
        self.at(*self.types.get(id.checked_sub(1)? as usize)? as usize)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let tail = self.bytes.get(self.strings.checked_add(offset as usize)?..)?;
        tail.get(..tail.iter().position(|b| *b == 0)?)
    }

    fn named(&self, kind: u8, name: &str) -> Option<u32> {
        // A boxed key costs an allocation a look-up; there are some sixty.
        self.names.get(&(kind, name.as_bytes().into())).copied()
    }

    /// The byte offset of `structure.field[.field]`.
    ///
    /// # Errors
    /// [`Error::NoField`].
    pub fn offset(&self, path: &str) -> Result<u32, Error> {
        let find = || {
            let mut parts = path.split('.');
            let mut of = self.named(KIND_STRUCT, parts.next()?)?;
            let mut bits = 0u32;
            for part in parts {
                let (at, next) = self.member(of, part.as_bytes(), 0)?;
                bits = bits.checked_add(at)?;
                of = next;
            }
            Some(bits / 8)
        };
        find().ok_or_else(|| Error::NoField { path: path.to_owned() })
    }

    /// A member by name, also inside anonymous structures and unions: its bit offset, and its type without typedefs and qualifiers.
    fn member(&self, of: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let structure = self.get(of)?;
        if !matches!(structure.kind, KIND_STRUCT | KIND_UNION) || depth > MAX_DEPTH {
            return None;
        }
        for i in 0..structure.members {
            let at = structure.rest + i * 12;
            let raw = word(&self.bytes, at + 8)?;
            // With bit fields in it the upper byte of a structure's offsets is their width.
            let bits = if structure.bitfields { raw & 0x00ff_ffff } else { raw };
            let own = word(&self.bytes, at)?;
            let target = self.strip(word(&self.bytes, at + 4)?)?;
            if own != 0 {
                if self.string(own)? == name {
                    return Some((bits, target));
                }
            } else if let Some((inner, found)) = self.member(target, name, depth + 1) {
                return Some((bits.checked_add(inner)?, found));
            }
        }
        None
    }

    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            let Some(found) = self.get(id) else { break };
            if found.kind != KIND_TYPEDEF
                && found.kind != KIND_TYPE_TAG
                && !KIND_QUALIFIER.contains(&found.kind)
            {
                break;
            }
            id = found.refers;
        }
        Some(id)
    }

    /// The value of an enumerator.
    #[must_use]
    pub fn enumerator(&self, of: &str, name: &str) -> Option<u32> {
        let found = self.get(self.named(KIND_ENUM, of)?)?;
        (0..found.members).map(|i| found.rest + i * 8).find_map(|at| {
            let own = self.string(word(&self.bytes, at)?)?;
            (own == name.as_bytes()).then(|| word(&self.bytes, at + 4))?
        })
    }

    /// Whether there is a tracepoint of this name that a program can be attached to (include/trace/bpf_probe.h).
    #[must_use]
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.named(KIND_TYPEDEF, &format!("btf_trace_{name}")).is_some()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes that follow a type's twelve.
fn length(kind: u8, members: usize) -> Option<usize> {
    Some(match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, data section, 64-bit enumeration.
        4 | 5 | 15 | 19 => members * 12,
        // Enumeration, prototype.
        6 | 13 => members * 8,
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct s { int a; union { long b; }; }; enum e { X = 6 }; typedef int btf_trace_t;`
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0e\0X\0btf_trace_t\0int\0";
        let name = |n: &str| {
            let needle = [n.as_bytes(), b"\0"].concat();
            u32::try_from(
                (0..).find(|&i| i > 0 && strings[i - 1] == 0 && strings[i..].starts_with(&needle)).unwrap(),
            )
            .unwrap()
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), 1 << 24, 4, 32]); // 1
        types.extend([0, 5 << 24 | 1, 8, name("b"), 1, 0]); // 2: the union
        types.extend([name("s"), 4 << 24 | 2, 16, name("a"), 1, 0, 0, 2, 64]); // 3
        types.extend([name("e"), 6 << 24 | 1, 4, name("X"), 6]); // 4
        types.extend([name("btf_trace_t"), 8 << 24, 1]); // 5
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let len = u32::try_from(types.len()).unwrap();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for w in [24, 0, len, len, u32::try_from(strings.len()).unwrap()] {
            bytes.extend(w.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_fields_constants_and_tracepoints() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("s.a").unwrap(), 0);
        assert_eq!(btf.offset("s.b").unwrap(), 8);
        assert!(matches!(btf.offset("s.c"), Err(Error::NoField { path }) if path == "s.c"));
        assert_eq!(btf.enumerator("e", "X"), Some(6));
        assert!(btf.has_tracepoint("t") && !btf.has_tracepoint("u"));
    }

    #[test]
    fn reads_this_kernels() {
        let Ok(btf) = Btf::of_kernel() else { return eprintln!("this kernel has no BTF: not tested") };
        assert!(btf.offset("inode.i_ino").is_ok_and(|o| o > 0));
        assert!(btf.offset("task_struct.thread_info.flags").is_ok());
        assert!(btf.has_tracepoint("sys_enter"));
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(at in 0usize..180, value: u8, cut in 0usize..200) {
            let mut bytes = sample();
            let n = bytes.len();
            bytes[at % n] = value;
            bytes.truncate(n - cut % n);
            if let Some(btf) = Btf::parse(bytes) {
                let _ = btf.offset("s.b");
                let _ = btf.enumerator("e", "X");
            }
        }
    }
}
