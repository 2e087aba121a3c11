//! Where the running kernel keeps its fields, from its BTF.

use std::path::Path;

use btf_rs::{Btf, BtfType, Type};
use snapshot_ebpf::{NONE, Offsets};

use super::Error;

/// The kernel's own description of its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Reads the kernel's BTF.
///
/// # Errors
/// [`Error::NoBtf`] when the kernel has none.
pub fn btf() -> Result<Btf, Error> {
    Btf::from_file(Path::new(VMLINUX)).map_err(|e| Error::NoBtf { path: VMLINUX.into(), why: e.to_string() })
}

/// The offsets the programs need; those of XFS only when `xfs`.
///
/// # Errors
/// [`Error::NoField`] names the first structure or field this kernel lacks.
pub fn offsets(btf: &Btf, xfs: bool) -> Result<Offsets, Error> {
    let at = |path: &str| offset(btf, path);
    let or_none = |path: &str| offset(btf, path).unwrap_or(NONE);
    Ok(Offsets {
        inode_ino: at("inode.i_ino")?,
        inode_mode: at("inode.i_mode")?,
        inode_sb: at("inode.i_sb")?,
        inode_mapping: at("inode.i_mapping")?,
        inode_dio_count: at("inode.i_dio_count")?,
        sb_dev: at("super_block.s_dev")?,
        mapping_host: at("address_space.host")?,
        mapping_writable: at("address_space.i_mmap_writable")?,
        // Before 5.16 there were no folios; the tracepoint had another name then.
        folio_index: at("folio.index")?,
        folio_flags: at("folio.flags")?,
        folio_flags_1: or_none("folio._flags_1"),
        // The order lies in _flags_1 since 6.7 (and in _folio_order before, which is not read here: 2 MiB are assumed).
        folio_head_bit: if offset(btf, "folio._flags_1").is_ok() && offset(btf, "folio._folio_order").is_err()
        {
            enumerator(btf, "pageflags", "PG_head").unwrap_or(NONE)
        } else {
            NONE
        },
        kiocb_file: at("kiocb.ki_filp")?,
        kiocb_pos: at("kiocb.ki_pos")?,
        iter_count: at("iov_iter.count")?,
        iter_source: at("iov_iter.data_source")?,
        iomap_inode: at("iomap_iter.inode")?,
        iomap_pos: at("iomap_iter.pos")?,
        iomap_len: at("iomap_iter.len")?,
        iomap_flags: at("iomap_iter.flags")?,
        xfs_vnode: if xfs { at("xfs_inode.i_vnode")? } else { NONE },
        file_inode: at("file.f_inode")?,
        task_nsproxy: at("task_struct.nsproxy")?,
        task_files: at("task_struct.files")?,
        task_status: if cfg!(target_arch = "x86_64") { at("task_struct.thread_info.status")? } else { NONE },
        nsproxy_mnt: at("nsproxy.mnt_ns")?,
        mnt_inum: at("mnt_namespace.ns.inum")?,
        files_fdt: at("files_struct.fdt")?,
        fdt_fd: at("fdtable.fd")?,
        fdt_max: at("fdtable.max_fds")?,
        regs_args: arguments(btf)?,
    })
}

/// Whether the kernel has a tracepoint of this name that a program can be attached to.
#[must_use]
pub fn has_tracepoint(btf: &Btf, name: &str) -> bool {
    btf.resolve_ids_by_name(&format!("btf_trace_{name}")).is_ok_and(|ids| !ids.is_empty())
}

/// Where the arguments of a system call lie in `pt_regs` (x86: arch/x86/include/asm/syscall.h; arm64 and riscv likewise).
fn arguments(btf: &Btf) -> Result<[u32; 6], Error> {
    let names: [&str; 6] = if cfg!(target_arch = "x86_64") {
        ["pt_regs.di", "pt_regs.si", "pt_regs.dx", "pt_regs.r10", "pt_regs.r8", "pt_regs.r9"]
    } else if cfg!(target_arch = "aarch64") {
        // The first argument is overwritten by the result in regs[0]; orig_x0 keeps it.
        let x0 = offset(btf, "pt_regs.orig_x0")?;
        let regs = offset(btf, "pt_regs.regs")?;
        return Ok([x0, regs + 8, regs + 16, regs + 24, regs + 32, regs + 40]);
    } else {
        return Err(Error::Architecture { name: std::env::consts::ARCH });
    };
    let mut offsets = [0; 6];
    for (offset_of, name) in offsets.iter_mut().zip(names) {
        *offset_of = offset(btf, name)?;
    }
    Ok(offsets)
}

/// The byte offset of `structure.field[.field]`.
fn offset(btf: &Btf, path: &str) -> Result<u32, Error> {
    let missing = || Error::NoField { path: path.to_owned() };
    let mut parts = path.split('.');
    let name = parts.next().ok_or_else(missing)?;
    let types = btf.resolve_types_by_name(name).map_err(|_| missing())?;
    let mut current = types.into_iter().find(|t| matches!(t, Type::Struct(_))).ok_or_else(missing)?;
    let mut bits = 0;
    for part in parts {
        let (at, next) = member(btf, &current, part).ok_or_else(missing)?;
        bits += at;
        current = next;
    }
    Ok(bits / 8)
}

/// A member by name, also inside anonymous structures and unions: its bit offset and type.
fn member(btf: &Btf, of: &Type, name: &str) -> Option<(u32, Type)> {
    let (Type::Struct(s) | Type::Union(s)) = of else { return None };
    for m in &s.members {
        let ty = strip(btf, btf.resolve_chained_type(m).ok()?);
        let own = btf.resolve_name(m).unwrap_or_default();
        if own == name {
            return Some((m.bit_offset(), ty));
        }
        if own.is_empty()
            && let Some((at, found)) = member(btf, &ty, name)
        {
            return Some((m.bit_offset() + at, found));
        }
    }
    None
}

/// A type without its typedefs and qualifiers.
fn strip(btf: &Btf, mut ty: Type) -> Type {
    loop {
        let next = match &ty {
            Type::Typedef(t) => btf.resolve_chained_type(t),
            Type::Volatile(t) => btf.resolve_chained_type(t),
            Type::Const(t) => btf.resolve_chained_type(t),
            Type::Restrict(t) => btf.resolve_chained_type(t),
            Type::TypeTag(t) => btf.resolve_chained_type(t),
            _ => return ty,
        };
        match next {
            Ok(next) => ty = next,
            Err(_) => return ty,
        }
    }
}

fn enumerator(btf: &Btf, of: &str, name: &str) -> Option<u32> {
    btf.resolve_types_by_name(of).ok()?.into_iter().find_map(|t| match t {
        Type::Enum(e) => e
            .members
            .iter()
            .find(|m| btf.resolve_name(*m as &dyn BtfType).is_ok_and(|n| n == name))
            .map(|m| m.val()),
        _ => None,
    })
}
