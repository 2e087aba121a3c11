//! Where the running kernel keeps its fields, from its BTF.

use snapshot_ebpf::{NONE, Offsets};

use super::Error;
use super::btf::Btf;

/// The offsets the programs need; those of XFS only when `xfs`.
///
/// # Errors
/// [`Error::NoField`] names the first structure or field this kernel lacks.
pub fn offsets(btf: &Btf, xfs: bool) -> Result<Offsets, Error> {
    let at = |path: &str| btf.offset(path);
    let or_none = |path: &str| btf.offset(path).unwrap_or(NONE);
    // A byte of its own at first (6.1), the low byte of a word later (6.12).
    let low_byte = |word: u32| if cfg!(target_endian = "little") { word } else { word + 7 };
    let folio_order = at("folio._folio_order").or_else(|_| at("folio._flags_1").map(low_byte)).ok();
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
        folio_order: folio_order.unwrap_or(NONE),
        folio_head_bit: match folio_order {
            Some(_) => btf.enumerator("pageflags", "PG_head").unwrap_or(NONE),
            None => NONE,
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
        task_flags: at("task_struct.flags")?,
        task_status: if cfg!(target_arch = "x86_64") { at("task_struct.thread_info.status")? } else { NONE },
        nsproxy_mnt: at("nsproxy.mnt_ns")?,
        mnt_inum: at("mnt_namespace.ns.inum")?,
        files_fdt: at("files_struct.fdt")?,
        fdt_fd: at("fdtable.fd")?,
        fdt_max: at("fdtable.max_fds")?,
        dentry_inode: at("dentry.d_inode")?,
        dentry_parent: at("dentry.d_parent")?,
        path_dentry: at("path.dentry")?,
        file_mode: at("file.f_mode")?,
        attr_valid: at("iattr.ia_valid")?,
        folio_mapping: at("folio.mapping")?,
        vma_file: at("vm_area_struct.vm_file")?,
        vma_flags: at("vm_area_struct.vm_flags")?,
        rename_old_dir: or_none("renamedata.old_dir"),
        rename_new_dir: or_none("renamedata.new_dir"),
        rename_old_parent: either(btf, "renamedata.old_parent", "renamedata.old_dir")?,
        rename_new_parent: either(btf, "renamedata.new_parent", "renamedata.new_dir")?,
        rename_old_dentry: at("renamedata.old_dentry")?,
        rename_new_dentry: at("renamedata.new_dentry")?,
        regs_args: arguments(btf)?,
    })
}

/// One of two fields, of which a kernel has one.
fn either(btf: &Btf, first: &str, second: &str) -> Result<u32, Error> {
    btf.offset(first).or_else(|_| btf.offset(second))
}

/// Where the arguments of a system call lie in `pt_regs` (x86: arch/x86/include/asm/syscall.h; arm64 and riscv likewise).
fn arguments(btf: &Btf) -> Result<[u32; 6], Error> {
    let names: [&str; 6] = if cfg!(target_arch = "x86_64") {
        ["pt_regs.di", "pt_regs.si", "pt_regs.dx", "pt_regs.r10", "pt_regs.r8", "pt_regs.r9"]
    } else if cfg!(target_arch = "aarch64") {
        // The first argument is overwritten by the result in regs[0]; orig_x0 keeps it.
        let x0 = btf.offset("pt_regs.orig_x0")?;
        let regs = btf.offset("pt_regs.regs")?;
        return Ok([x0, regs + 8, regs + 16, regs + 24, regs + 32, regs + 40]);
    } else {
        return Err(Error::Architecture { name: std::env::consts::ARCH });
    };
    let mut offsets = [0; 6];
    for (offset_of, name) in offsets.iter_mut().zip(names) {
        *offset_of = btf.offset(name)?;
    }
    Ok(offsets)
}
