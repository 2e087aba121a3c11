//! The running kernel's description of its own types, as far as we need it: where a field lies, what a constant is, whether a
//! tracepoint exists and what it passes. What a file system that is a module describes goes on where the kernel's own ends.
//!
//! ```text
//!   header 24 B | types: { name u32, info u32, size or type u32, then by kind } ... | strings, NUL-terminated
//! ```
//!
//! Format: Documentation/bpf/btf.rst and linux/btf.h. One pass over some 150,000 types finds the names; a general library keeps all of
//! them and takes 250 ms for it, most of the time from the command to the cut. The bytes are the kernel's own, and are
//! still read with bounds checks only: a damaged file is an error, never a panic.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::Error;

/// The kernel's own description of its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Where modules have theirs.
const MODULES: &str = "/sys/kernel/btf";

const MAGIC: u16 = 0xeb9f;
const KIND_POINTER: u8 = 2;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_FORWARD: u8 = 7;
const KIND_TYPEDEF: u8 = 8;
/// Volatile, const, restrict.
const KIND_QUALIFIER: std::ops::RangeInclusive<u8> = 9..=11;
const KIND_FUNCTION: u8 = 12;
const KIND_PROTOTYPE: u8 = 13;
const KIND_TYPE_TAG: u8 = 18;

/// Anonymous structures are searched no deeper than this.
const MAX_DEPTH: u32 = 16;

/// Parsed BTF.
pub struct Btf {
    bytes: Vec<u8>,
    /// Where the strings lie: the kernel's own, and those of a module, whose offsets go on where the former end.
    strings: Vec<Range<usize>>,
    /// Where each type lies; identifier 1 is the first.
    types: Vec<u32>,
    /// How many of them are the kernel's own and no module's.
    own: usize,
    /// Structures, enumerations, typedefs and functions by kind and name: identifier.
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

    /// The same with what a module describes, if that is one here and not built in.
    ///
    /// # Errors
    /// As [`Btf::of_kernel`].
    pub fn of_kernel_with(module: &str) -> Result<Btf, Error> {
        let mut btf = Btf::of_kernel()?;
        let path = Path::new(MODULES).join(module);
        let failed = |why: String| Error::NoBtf { path: path.clone(), why };
        match std::fs::read(&path) {
            Ok(bytes) => btf.extend(&bytes).ok_or_else(|| failed("it is damaged".to_owned()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e.to_string())),
        }
        Ok(btf)
    }

    /// Parses BTF of this machine's byte order.
    #[must_use]
    pub fn parse(bytes: Vec<u8>) -> Option<Btf> {
        let mut btf = Btf { bytes, strings: Vec::new(), types: Vec::new(), own: 0, names: HashMap::new() };
        btf.read(0)?;
        btf.own = btf.types.len();
        Some(btf)
    }

    /// Takes in a module's: its types and strings go on with the numbers where the kernel's own end ("split BTF").
    fn extend(&mut self, module: &[u8]) -> Option<()> {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(module);
        self.read(at)
    }

    fn read(&mut self, base: usize) -> Option<()> {
        if u16::from_ne_bytes(*self.bytes.get(base..)?.first_chunk()?) != MAGIC {
            return None;
        }
        let field = |at: usize| Some(word(&self.bytes, base.checked_add(at)?)? as usize);
        let header = base.checked_add(field(4)?)?;
        let start = header.checked_add(field(8)?)?;
        let end = start.checked_add(field(12)?)?;
        let strings = header.checked_add(field(16)?)?;
        self.strings.push(strings..strings.checked_add(field(20)?)?);
        let mut at = start;
        while at < end {
            self.types.push(u32::try_from(at).ok()?);
            let id = u32::try_from(self.types.len()).ok()?;
            let found = self.at(at)?;
            if matches!(found.kind, KIND_STRUCT | KIND_ENUM | KIND_TYPEDEF) && found.name != 0 {
                let name = self.string(found.name)?.into();
                self.names.entry((found.kind, name)).or_insert(id);
            }
            at = found.rest.checked_add(length(found.kind, found.members)?)?;
        }
        Some(())
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
        let mut offset = offset as usize;
        for strings in &self.strings {
            if offset < strings.len() {
                let tail = self.bytes.get(strings.start + offset..strings.end)?;
                return tail.get(..tail.iter().position(|b| *b == 0)?);
            }
            offset -= strings.len();
        }
        None
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

    /// What a tracepoint passes, as its types separated by `, `; a pointer ends in `*`. `None`: there is no tracepoint of this name
    /// that a program can be attached to (include/trace/bpf_probe.h).
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<String> {
        // A typedef of a pointer to a function whose first argument is the tracing's own.
        let typedef = self.get(self.named(KIND_TYPEDEF, &format!("btf_trace_{name}"))?)?;
        let pointer = self.get(typedef.refers).filter(|found| found.kind == KIND_POINTER)?;
        self.arguments(pointer.refers, 1)
    }

    /// The kernel's own description without all that is not needed to bind programs to these of its own tracepoints and functions: they have kept their
    /// names and their numbers, everything else is a nameless forward declaration. What it does not have, or a module has, is left out. For the
    /// general library, which takes 250 ms for the whole and a few for this.
    #[must_use]
    pub fn excerpt(&self, tracepoints: &[&str], functions: &[&str]) -> Vec<u8> {
        let typedefs: Vec<String> = tracepoints.iter().map(|name| format!("btf_trace_{name}")).collect();
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        for at in &self.types[..self.own] {
            let Some(found) = self.at(*at as usize) else { break };
            let name = match found.kind {
                KIND_TYPEDEF => {
                    self.string(found.name).filter(|n| typedefs.iter().any(|t| t.as_bytes() == *n))
                }
                KIND_FUNCTION => {
                    self.string(found.name).filter(|n| functions.iter().any(|f| f.as_bytes() == *n))
                }
                _ => None,
            };
            let (place, kind) = match name {
                Some(name) => {
                    let place = u32::try_from(strings.len()).unwrap_or(0);
                    strings.extend(name.iter().chain(b"\0"));
                    (place, found.kind)
                }
                None => (0, KIND_FORWARD),
            };
            types.extend([place, u32::from(kind) << 24, 0].iter().flat_map(|word| word.to_ne_bytes()));
        }
        let [types_len, strings_len] = [types.len(), strings.len()].map(|n| u32::try_from(n).unwrap_or(0));
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        // Version, no flags; then: length of this head, where the types and the strings lie behind it.
        bytes.extend([1, 0]);
        let head = [24, 0, types_len, types_len, strings_len];
        bytes.extend(head.iter().flat_map(|word: &u32| word.to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    /// What a function of the kernel takes, in the form of [`Btf::tracepoint`]. A look at every type: for one function, not for many.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<String> {
        let is_it = |found: &Type| {
            found.kind == KIND_FUNCTION && self.string(found.name).is_some_and(|own| own == name.as_bytes())
        };
        let found = self.types.iter().filter_map(|at| self.at(*at as usize)).find(is_it)?;
        self.arguments(found.refers, 0)
    }

    /// What these functions of the kernel take, in the form of [`Btf::tracepoint`]; those it does not have are left out. One look at every type.
    #[must_use]
    pub fn functions<'a>(&self, names: &[&'a str]) -> HashMap<&'a str, String> {
        let functions = self.types.iter().filter_map(|at| self.at(*at as usize));
        functions
            .filter(|found| found.kind == KIND_FUNCTION)
            .filter_map(|found| {
                let own = self.string(found.name)?;
                let name = names.iter().find(|name| name.as_bytes() == own)?;
                Some((*name, self.arguments(found.refers, 0)?))
            })
            .collect()
    }

    fn arguments(&self, prototype: u32, first: usize) -> Option<String> {
        let found = self.get(prototype).filter(|found| found.kind == KIND_PROTOTYPE)?;
        let argument = |i: usize| self.type_name(word(&self.bytes, found.rest + i * 8 + 4)?, 0);
        let arguments: Option<Vec<String>> = (first..found.members).map(argument).collect();
        Some(arguments?.join(", "))
    }

    fn type_name(&self, id: u32, depth: u32) -> Option<String> {
        if id == 0 {
            return Some("void".to_owned());
        }
        let found = self.get(id)?;
        if depth > MAX_DEPTH {
            return None;
        }
        match found.kind {
            KIND_POINTER => Some(self.type_name(found.refers, depth + 1)? + "*"),
            KIND_TYPE_TAG => self.type_name(found.refers, depth + 1),
            kind if KIND_QUALIFIER.contains(&kind) => self.type_name(found.refers, depth + 1),
            _ => Some(String::from_utf8_lossy(self.string(found.name)?).into_owned()),
        }
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

    /// BTF of these types with these strings.
    fn file(types: &[u32], strings: &[u8]) -> Vec<u8> {
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

    fn name(strings: &[u8], name: &str) -> u32 {
        let needle = [name.as_bytes(), b"\0"].concat();
        let at = |i: &usize| (*i == 0 || strings[i - 1] == 0) && strings[*i..].starts_with(&needle);
        u32::try_from((0..strings.len()).find(at).unwrap()).unwrap()
    }

    const STRINGS: &[u8] = b"\0s\0a\0b\0e\0X\0btf_trace_t\0int\0";

    /// `struct s { int a; union { long b; }; }; enum e { X = 6 }; typedef void (*btf_trace_t)(void *, struct s *, const int);`
    fn sample() -> Vec<u8> {
        let name = |n| name(STRINGS, n);
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), 1 << 24, 4, 32]); // 1
        types.extend([0, 5 << 24 | 1, 8, name("b"), 1, 0]); // 2: the union
        types.extend([name("s"), 4 << 24 | 2, 16, name("a"), 1, 0, 0, 2, 64]); // 3
        types.extend([name("e"), 6 << 24 | 1, 4, name("X"), 6]); // 4
        types.extend([name("btf_trace_t"), 8 << 24, 6]); // 5
        types.extend([0, 2 << 24, 7]); // 6: pointer to
        types.extend([0, 13 << 24 | 3, 0, 0, 8, 0, 9, 0, 10]); // 7: the prototype
        types.extend([0, 2 << 24, 0]); // 8: void *
        types.extend([0, 2 << 24, 3]); // 9: struct s *
        types.extend([0, 10 << 24, 1]); // 10: const int
        file(&types, STRINGS)
    }

    /// What a module adds: `struct m { struct s x; };` (with a gap before `x`) another tracepoint with the arguments of the first, and a function.
    fn module() -> Vec<u8> {
        let strings = b"m\0x\0f\0btf_trace_u\0";
        let name = |n| u32::try_from(STRINGS.len()).unwrap() + name(strings, n);
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("m"), 4 << 24 | 1, 16, name("x"), 3, 32]); // 11
        types.extend([name("btf_trace_u"), 8 << 24, 6]); // 12
        types.extend([name("f"), 12 << 24 | 1, 7]); // 13
        file(&types, strings)
    }

    #[test]
    fn finds_fields_constants_and_tracepoints() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("s.a").unwrap(), 0);
        assert_eq!(btf.offset("s.b").unwrap(), 8);
        assert!(matches!(btf.offset("s.c"), Err(Error::NoField { path }) if path == "s.c"));
        assert_eq!(btf.enumerator("e", "X"), Some(6));
        assert_eq!(btf.tracepoint("t").unwrap(), "s*, int");
        assert_eq!(btf.tracepoint("u"), None);
    }

    #[test]
    fn a_modules_types_go_on_where_the_kernels_end() {
        let mut btf = Btf::parse(sample()).unwrap();
        btf.extend(&module()).unwrap();
        assert_eq!(btf.offset("m.x.b").unwrap(), 4 + 8);
        assert_eq!(btf.tracepoint("u").unwrap(), "s*, int");
        assert_eq!(btf.function("f").unwrap(), "void*, s*, int");
        assert_eq!(btf.function("m"), None, "no function");
        assert_eq!(btf.offset("s.b").unwrap(), 8, "the kernel's own are still there");
    }

    #[test]
    fn reads_this_kernels() {
        let Ok(btf) = Btf::of_kernel_with("xfs") else {
            return eprintln!("this kernel has no BTF: not tested");
        };
        assert!(btf.offset("inode.i_ino").is_ok_and(|o| o > 0));
        assert!(btf.offset("task_struct.thread_info.flags").is_ok());
        assert_eq!(btf.tracepoint("sys_enter").unwrap(), "pt_regs*, long int");
    }

    #[test]
    fn an_excerpt_keeps_numbers() {
        let mut btf = Btf::parse(sample()).unwrap();
        btf.extend(&module()).unwrap();
        let kept = Btf::parse(btf.excerpt(&["t", "u", "v"], &["f"])).unwrap();
        assert_eq!(kept.types.len(), 10, "the module's are not the kernel's own");
        assert_eq!(kept.named(KIND_TYPEDEF, "btf_trace_t"), btf.named(KIND_TYPEDEF, "btf_trace_t"));
        assert_eq!(kept.names.len(), 1);
        let Ok(btf) = Btf::of_kernel() else { return eprintln!("this kernel has no BTF: not tested") };
        let excerpt = btf.excerpt(&["sys_enter"], &["vfs_fallocate"]);
        assert!(aya::Btf::parse(&excerpt, aya::Endianness::default()).is_ok());
        let kept = Btf::parse(excerpt).unwrap();
        let name = "btf_trace_sys_enter";
        assert_eq!(kept.named(KIND_TYPEDEF, name), btf.named(KIND_TYPEDEF, name));
        assert_eq!(kept.types.len(), btf.types.len());
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut bytes = [sample(), module()].concat();
            let (n, first) = (bytes.len(), sample().len());
            bytes[at % n] = value;
            bytes.truncate(n - cut % n);
            let module = bytes.split_off(first.min(bytes.len()));
            if let Some(mut btf) = Btf::parse(bytes) {
                let _ = btf.extend(&module);
                let _ = btf.offset("m.x.b");
                let _ = btf.enumerator("e", "X");
                let _ = (btf.tracepoint("u"), btf.function("f"));
            }
        }
    }
}
