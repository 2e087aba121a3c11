//! Reading the kernel's structures at the offsets the engine found in its BTF.
//!
//! ```text
//!   Typed    an address of which the verifier knows what lies there: a plain load, a nanosecond
//!   Probed   any other: a helper that answers an error instead of faulting, five to ten nanoseconds each
//! ```
//!
//! Typed are the running task with what it leads to, and the arguments of programs that are bound to a type of the kernel's BTF (`tp_btf`). From
//! a pointer to a pointer the verifier learns nothing: what lies behind the array of open files is probed.

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs};
use snapshot_ebpf::{MAX_CALLS, Offsets, Settings};

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
pub static SETTINGS: Settings = Settings {
    upper_device: 1,
    slot_mask: 1,
    task_mask: 1,
    task_shift: 1,
    map_shared: 1,
    open_write: 1,
    fault: 0,
};
/// The class of each system call (`CALL_*`). Set by the engine before loading.
#[unsafe(no_mangle)]
pub static CLASSES: [u8; MAX_CALLS as usize] = [1; MAX_CALLS as usize];

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
    folio_order: 0,
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
    task_flags: 0,
    task_status: 0,
    nsproxy_mnt: 0,
    mnt_inum: 0,
    files_fdt: 0,
    fdt_fd: 0,
    fdt_max: 0,
    dentry_inode: 0,
    dentry_parent: 0,
    path_dentry: 0,
    file_mode: 0,
    attr_valid: 0,
    folio_mapping: 0,
    vma_file: 0,
    vma_flags: 0,
    rename_old_dir: 0,
    rename_new_dir: 0,
    rename_old_parent: 0,
    rename_new_parent: 0,
    rename_old_dentry: 0,
    rename_new_dentry: 0,
    regs_args: [0; 6],
};

/// A constant the engine patched in: read as volatile, so that the compiler does not use the value it sees here.
macro_rules! constant {
    ($from:ident . $($field:tt)+) => { $crate::kernel::patched(&$crate::kernel::$from.$($field)+) };
}
pub(crate) use constant;

/// A tracepoint's program, twice: as a raw tracepoint, which reaches those of modules too, and bound to the type of the tracepoint in the kernel's own BTF, where
/// the tracepoint has one there. `$kind` is what its arguments are known as. The engine loads the one or the other (`track/programs.rs`).
macro_rules! tracepoint {
    ($name:literal $probed:ident $typed:ident ($ctx:ident, $kind:ident) $body:block) => {
        #[aya_ebpf::macros::raw_tracepoint(tracepoint = $name)]
        pub fn $probed($ctx: aya_ebpf::programs::RawTracePointContext) -> i32 {
            type $kind = $crate::kernel::Probed;
            use $crate::kernel::Structure as _;
            let () = $body;
            0
        }

        #[aya_ebpf::macros::btf_tracepoint(function = $name)]
        pub fn $typed($ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            type $kind = $crate::kernel::Typed;
            use $crate::kernel::Structure as _;
            let () = $body;
            0
        }
    };
}
pub(crate) use tracepoint;

/// See [`constant`].
#[inline(always)]
pub fn patched(constant: &'static u32) -> u32 {
    // SAFETY: a reference to a static is always valid.
    unsafe { core::ptr::read_volatile(constant) }
}

/// The class of a system call: what is no number of one we know changes things.
#[inline(always)]
pub fn class(number: i64) -> u8 {
    if number & !(i64::from(MAX_CALLS) - 1) != 0 {
        return snapshot_ebpf::CALL_PATH;
    }
    // SAFETY: in bounds, as a power of two's mask leaves nothing else; as in `patched`.
    unsafe { core::ptr::read_volatile((&raw const CLASSES).cast::<u8>().add(number as usize)) }
}

/// A kernel structure at an address the kernel gave us.
pub trait Structure: Copy {
    /// The same kind of knowledge about another address.
    fn at(address: *const u8) -> Self;

    /// Its address.
    fn address(self) -> *const u8;

    /// A field; `None` where it cannot be read, and for a null structure.
    fn get<T: Copy>(self, offset: u32) -> Option<T>;

    /// What is read of an inode at every event.
    fn head(self) -> Option<Head<Self>>;

    /// A pointer field, null when it cannot be read.
    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        Self::at(self.get::<*const u8>(offset).unwrap_or(core::ptr::null()))
    }

    /// The structure this one contains at an offset.
    #[inline(always)]
    fn inside(self, offset: u32) -> Self {
        if self.address().is_null() { self } else { Self::at(self.address().wrapping_add(offset as usize)) }
    }
}

/// Some fields of an inode.
#[derive(Clone, Copy)]
pub struct Head<K> {
    pub ino: u64,
    pub mode: u16,
    pub sb: K,
    pub mapping: K,
}

/// Read by the helper.
#[derive(Clone, Copy)]
pub struct Probed(pub *const u8);

/// Read by plain loads. A field that cannot be read is 0: the kernel's fault handler sees to that.
#[derive(Clone, Copy)]
pub struct Typed(pub *const u8);

/// Words at the beginning of an inode that one reading takes in: they hold the fields of a [`Head`], on kernels that do not shuffle them.
const HEAD: u32 = 9;

impl Structure for Probed {
    #[inline(always)]
    fn at(address: *const u8) -> Probed {
        Probed(address)
    }

    #[inline(always)]
    fn address(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    fn get<T: Copy>(self, offset: u32) -> Option<T> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the helper checks the address itself.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(offset as usize).cast::<T>()) }.ok()
    }

    #[inline(always)]
    fn head(self) -> Option<Head<Probed>> {
        let (ino, mode) = (constant!(OFFSETS.inode_ino), constant!(OFFSETS.inode_mode));
        let (sb, mapping) = (constant!(OFFSETS.inode_sb), constant!(OFFSETS.inode_mapping));
        if (ino | sb | mapping) & 7 != 0 || ino.max(mode).max(sb).max(mapping) >= HEAD * 8 {
            return Some(Head {
                ino: self.get(ino)?,
                mode: self.get(mode)?,
                sb: self.follow(sb),
                mapping: self.follow(mapping),
            });
        }
        let words: [u64; HEAD as usize] = self.get(0)?;
        let word = (&raw const words).cast::<u8>();
        // SAFETY: all lie within the words, which was asked above.
        unsafe {
            Some(Head {
                ino: word.add(ino as usize).cast::<u64>().read_volatile(),
                mode: word.add(mode as usize).cast::<u16>().read_volatile(),
                sb: Probed(word.add(sb as usize).cast::<*const u8>().read_volatile()),
                mapping: Probed(word.add(mapping as usize).cast::<*const u8>().read_volatile()),
            })
        }
    }
}

impl Structure for Typed {
    #[inline(always)]
    fn at(address: *const u8) -> Typed {
        Typed(address)
    }

    #[inline(always)]
    fn address(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    fn get<T: Copy>(self, offset: u32) -> Option<T> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the verifier lets a program pass only if a field of this size lies there.
        Some(unsafe { self.0.add(offset as usize).cast::<T>().read_volatile() })
    }

    #[inline(always)]
    fn head(self) -> Option<Head<Typed>> {
        Some(Head {
            ino: self.get(constant!(OFFSETS.inode_ino))?,
            mode: self.get(constant!(OFFSETS.inode_mode))?,
            sb: self.follow(constant!(OFFSETS.inode_sb)),
            mapping: self.follow(constant!(OFFSETS.inode_mapping)),
        })
    }
}

/// The running task.
#[inline(always)]
pub fn current() -> Typed {
    // SAFETY: the helper has no preconditions.
    Typed(unsafe { bpf_get_current_task_btf() }.cast())
}

/// The registers with which the running task has entered the kernel.
#[inline(always)]
pub fn registers(task: Typed) -> Typed {
    // SAFETY: the helper takes what `current` gave.
    Typed(unsafe { bpf_task_pt_regs(task.0.cast_mut().cast()) } as *const u8)
}

/// The file behind a descriptor of the running task; null if there is none.
#[inline(always)]
pub fn file(task: Typed, fd: u64) -> Probed {
    let table = task.follow(constant!(OFFSETS.task_files)).follow(constant!(OFFSETS.files_fdt));
    let max: u32 = table.get(constant!(OFFSETS.fdt_max)).unwrap_or(0);
    let fd = fd & 0xffff_ffff;
    if fd >= u64::from(max) {
        return Probed(core::ptr::null());
    }
    let array: u64 = table.get(constant!(OFFSETS.fdt_fd)).unwrap_or(0);
    Probed((array as *const u8).wrapping_add(fd as usize * 8)).follow(0)
}
