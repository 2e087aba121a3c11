//! Reading the kernel's structures at the offsets the engine found in its BTF.

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel};
use snapshot_ebpf::{Offsets, Settings};

/// Set by the engine before loading.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = {
    // A value that is not all zero, so that it lies in .rodata and not in .bss.
    let mut o = EMPTY;
    o.inode_ino = 1;
    o
};
/// Set by the engine before loading.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings =
    Settings { upper_device: 1, slot_mask: 1, block_words: 1, map_shared: 1, open_write: 1, fault: 0 };

const EMPTY: Offsets = Offsets {
    inode_ino: 0,
    inode_mode: 0,
    inode_sb: 0,
    inode_mapping: 0,
    inode_dio_count: 0,
    sb_dev: 0,
    mapping_host: 0,
    mapping_writable: 0,
    folio_index: 0,
    folio_flags: 0,
    folio_flags_1: 0,
    folio_head_bit: 0,
    kiocb_file: 0,
    kiocb_pos: 0,
    iter_count: 0,
    iter_source: 0,
    iomap_inode: 0,
    iomap_pos: 0,
    iomap_len: 0,
    iomap_flags: 0,
    xfs_vnode: 0,
    file_inode: 0,
    task_nsproxy: 0,
    task_files: 0,
    task_status: 0,
    nsproxy_mnt: 0,
    mnt_inum: 0,
    files_fdt: 0,
    fdt_fd: 0,
    fdt_max: 0,
    regs_args: [0; 6],
};

/// A constant the engine patched in: read as volatile, so that the compiler does not use the value it sees here.
macro_rules! constant {
    ($from:ident . $($field:tt)+) => { $crate::kernel::patched(&$crate::kernel::$from.$($field)+) };
}
pub(crate) use constant;

/// See [`constant`].
#[inline(always)]
pub fn patched(constant: &'static u32) -> u32 {
    // SAFETY: a reference to a static is always valid.
    unsafe { core::ptr::read_volatile(constant) }
}

/// A kernel structure at an address the kernel gave us.
#[derive(Clone, Copy)]
pub struct Ref(pub *const u8);

impl Ref {
    /// A field, through the helper that answers an error instead of faulting; `None` there and for a null structure.
    #[inline(always)]
    pub fn get<T: Copy>(self, offset: u32) -> Option<T> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the helper checks the address itself.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(offset as usize).cast::<T>()) }.ok()
    }

    /// A pointer field, null when it cannot be read.
    #[inline(always)]
    pub fn follow(self, offset: u32) -> Ref {
        Ref(self.get::<*const u8>(offset).unwrap_or(core::ptr::null()))
    }

    /// The structure this one contains at an offset.
    #[inline(always)]
    pub fn inside(self, offset: u32) -> Ref {
        if self.0.is_null() { self } else { Ref(self.0.wrapping_add(offset as usize)) }
    }
}

/// The running task.
#[inline(always)]
pub fn current() -> Ref {
    // SAFETY: the helper has no preconditions.
    Ref(unsafe { bpf_get_current_task_btf() }.cast())
}

/// `inode->i_sb->s_dev`.
#[inline(always)]
pub fn device(inode: Ref) -> u32 {
    inode.follow(constant!(OFFSETS.inode_sb)).get(constant!(OFFSETS.sb_dev)).unwrap_or(0)
}

/// The file behind a descriptor of the running task; null if there is none.
#[inline(always)]
pub fn file(task: Ref, fd: u64) -> Ref {
    let table = task.follow(constant!(OFFSETS.task_files)).follow(constant!(OFFSETS.files_fdt));
    let max: u32 = table.get(constant!(OFFSETS.fdt_max)).unwrap_or(0);
    let fd = fd & 0xffff_ffff;
    if fd >= u64::from(max) {
        return Ref(core::ptr::null());
    }
    let array = table.follow(constant!(OFFSETS.fdt_fd));
    Ref(array.0.wrapping_add(fd as usize * 8)).follow(0)
}
