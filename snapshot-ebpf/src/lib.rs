//! The ABI between the tracker's eBPF programs and the engine: what lies in the shared maps, bit by bit.
//!
//! ```text
//!   CONTROL  one Control   the fence, the targets, counters of what is rare    mmapped by the engine
//!   CPUS     Cpu[n]        each CPU's counts of calls and events, and its spins mmapped by the engine
//!   TASKS    TaskLine[n]   who is inside a counted call, by task number        mmapped by the engine
//!   SLOTS    Slot[n]       open-addressed table: inode number -> dirty state   mmapped by the engine
//!   BLOCKS   u64[n]        finer block bits, for files that were large enough  mmapped by the engine
//!   RING     u32 a record  index of a slot that has become dirty
//!
//!   OFFSETS, SETTINGS, CLASSES    constants: the kernel's layout, what is tracked, the class of each system call
//! ```
//!
//! Both sides are compiled from this file, so a layout cannot differ; the asserts keep it free of padding.
#![no_std]
#![warn(missing_docs)]

/// Containers one cut can span (G7).
pub const MAX_TARGETS: usize = 8;

/// Bytes of file content one dirty bit inside a slot stands for, as a shift: 64 KiB.
pub const BLOCK_SHIFT: u32 = 16;

/// Bytes of file content one dirty bit of BLOCKS stands for, as a shift: a page.
pub const FINE_SHIFT: u32 = 12;

/// The most words of BLOCKS a range may span; what is longer makes the whole file dirty. Enough for 4 MiB.
pub const MAX_SPAN: u64 = 17;

/// Words of block bits inside a slot.
pub const INLINE_WORDS: usize = 5;

/// Blocks the bits inside a slot stand for: 20 MiB.
pub const INLINE_BLOCKS: u64 = INLINE_WORDS as u64 * 64;

/// How far from its home an inode's slot may lie. The programs look no further, so neither may the engine.
pub const MAX_PROBES: u32 = 32;

/// CPUs with a [`Cpu`] of their own; the ones above share the last.
pub const MAX_CPUS: u32 = 1024;

/// System calls with a class; the ones above count as modifying.
pub const MAX_CALLS: u32 = 512;

/// Tasks in a [`TaskLine`].
pub const TASKS_A_LINE: u32 = 64;

/// In TASKS: seen at the border between user and kernel since the tracker was attached.
pub const TASK_SEEN: u8 = 1;
/// In TASKS: inside a counted call.
pub const TASK_INSIDE: u8 = 1 << 1;
/// In TASKS: that call was counted in phase 1, not 0.
pub const TASK_PHASE: u8 = 1 << 2;
/// In TASKS: a member's call, and an event has told of the content that it is about to write.
pub const TASK_TOLD: u8 = 1 << 3;
/// In TASKS: belongs to a target. Who was found to belong does so until it ends.
pub const TASK_MEMBER: u8 = 1 << 4;

/// The words of BLOCKS a file has: `Slot::more`, or none.
///
/// ```text
///   0 ..26   how many words; 0: none
///   27..31   words one summary bit stands for, as a shift
///   32..63   the first of them
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fine(pub u64);

impl Fine {
    /// The most words of one file.
    pub const MAX_WORDS: u64 = (1 << 27) - 1;

    /// `words` words (1 to [`MAX_WORDS`](Fine::MAX_WORDS)) from `first` on: as few to a summary bit as the bits inside a slot allow.
    #[must_use]
    pub const fn new(first: u64, words: u64) -> Fine {
        let mut shift = 0;
        while (words - 1) >> shift >= INLINE_BLOCKS {
            shift += 1;
        }
        Fine(first << 32 | shift << 27 | words)
    }

    /// How many words.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> u64 {
        self.0 & Fine::MAX_WORDS
    }

    /// The summary bit of a word, as a shift.
    #[inline(always)]
    #[must_use]
    pub const fn shift(self) -> u32 {
        (self.0 >> 27) as u32 & 31
    }

    /// The first word.
    #[inline(always)]
    #[must_use]
    pub const fn first(self) -> u64 {
        self.0 >> 32
    }
}

/// An empty slot.
pub const SLOT_EMPTY: u64 = 0;
/// A slot whose inode was forgotten: a look-up goes on behind it.
pub const SLOT_GONE: u64 = u64::MAX;

/// Slot state: the slot's index is in the ring, or about to be (or was lost, and `Control::ring_lost` says so).
pub const QUEUED: u64 = 1;
/// Slot state: size, times, owner, mode, links, attributes or directory entries may have changed.
pub const META: u64 = 1 << 1;
/// Slot state: any byte of the content may have changed.
pub const WHOLE: u64 = 1 << 2;
/// Slot state: blocks behind the ones that have bits may have changed.
pub const TAIL: u64 = 1 << 3;
/// Slot state: direct I/O was begun on it; it may land after the call has returned.
pub const DIRECT: u64 = 1 << 4;
/// Slot state: a shared writable mapping of it was seen. Not dirt: stays until the engine clears it (T4).
pub const MAPPED: u64 = 1 << 8;
/// The state bits that taking a slot's dirt clears.
pub const DIRT: u64 = QUEUED | META | WHOLE | TAIL | DIRECT;

/// Call class: cannot change the target's tree.
pub const CALL_OTHER: u8 = 0;
/// Call class: names a path, or nothing we can resolve cheaply: always counted.
pub const CALL_PATH: u8 = 1;
/// Call class: mmap; counted when shared and of a file of the target that is open for writing.
pub const CALL_MMAP: u8 = 2;
/// Call class: the engine's own question about an open file (see `Control::probe_ino`).
pub const CALL_PROBE: u8 = 3;
/// Call class, with the argument's number in the low bits: counted when that descriptor is of the target's tree.
pub const CALL_FD: u8 = 0x10;
/// Call class, with the argument's number in the low bits: counted when that descriptor is a regular file or directory of the
/// target's tree. A write to a FIFO or a terminal that lies there may block for ever and changes nothing.
pub const CALL_DATA: u8 = 0x40;
/// Call class, with the argument's number in the low bits: an open, counted when these flags ask for writing.
pub const CALL_OPEN: u8 = 0x20;
/// Call class: openat2, whose flags are in the caller's memory (argument 2).
pub const CALL_OPENAT2: u8 = 0x30;

/// Who belongs to a target: the tasks in its cgroup subtree (version 2) and those in its mount namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetId {
    /// Identifier of the version 2 cgroup; 0: it has none of its own.
    pub cgroup: u64,
    /// Depth of that cgroup below the root.
    pub cgroup_level: u32,
    /// Inode number of the mount namespace.
    pub mount_namespace: u32,
    /// `super_block.s_dev` of the overlay, as the kernel packs it (major << 20 | minor).
    pub overlay_device: u32,
    /// Padding.
    pub _pad: u32,
}

/// The control page. In the steady state nobody writes to it, so every CPU has it in its cache.
///
/// Ordering: a program counts a call in (`Cpu::entered`) with a fetching atomic (a full barrier) and looks at `fence_until`
/// afterwards; the engine stores `fence_until`, passes a sequentially consistent fence, and reads the counts afterwards. So
/// whoever comes second sees the other: either the call sees the fence, or the engine sees the call.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    /// Engine: the fence is up until this moment of `bpf_ktime_get_ns`; 0: it is down (G3).
    pub fence_until: u64,
    /// Engine: index (0 or 1) of the counters that new calls use (T2).
    pub phase: u64,
    /// Engine: number of valid `targets`.
    pub targets_len: u64,
    /// Engine: not 0: note every task of the target that makes any call in TASKS (attach evidence).
    pub note_tasks: u64,
    /// Engine: its thread group, whose fcntl(F_GETFD) is a question about that descriptor; 0: none.
    pub probe_tgid: u64,
    /// Program: inode number of the descriptor asked about; 0: could not be told.
    pub probe_ino: u64,
    /// Program: `i_mmap_writable` of it.
    pub probe_mapped: u64,
    /// Program: `i_dio_count` of it.
    pub probe_direct: u64,
    /// Engine: the targets.
    pub targets: [TargetId; MAX_TARGETS],
    /// Program: slots that became dirty and could not be put into the ring (T1: look at all slots).
    pub ring_lost: u64,
    /// Program: calls that could not be noted in TASKS: `in_flight` cannot be trusted from then on.
    pub tasks_lost: u64,
    /// Program: shared mappings of the target's files that were asked for, ever (T4).
    pub mappings: u64,
    /// Program: io_uring requests the targets submitted, ever.
    pub uring: u64,
    /// Program: events whose inode could not be told, ever (T1: the whole tree is dirty).
    pub unknown: u64,
    /// Program: `super_block` of the upper's file system, once one was met: it spares the look at `s_dev`. The engine holds that file system as
    /// long as it tracks; were another one put at the same address, its inodes would be false alarms.
    pub upper_super: u64,
    /// Program: `super_block` of the overlay met last, for the same reason.
    pub overlay_super: u64,
    /// Padding.
    pub _pad: [u64; 1],
}

/// The dirty state of one watched inode: a cache line.
///
/// Protocol (T1): a program sets the fine bit first, then its summary bit (or the block bit, where there are no fine ones), then the state bits
/// with QUEUED; who sets QUEUED puts the index into the ring. The engine goes the other way: it clears the state, takes the bits inside
/// the slot, and then the words they stand for. So a bit is either taken now, or what leads to it is set again after it was cleared, and the
/// slot is queued again.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Inode number, or `SLOT_EMPTY`, `SLOT_GONE`.
    pub ino: u64,
    /// `QUEUED` .. `MAPPED`.
    pub state: u64,
    /// [`Fine`]: the words of BLOCKS that have a bit for each page of the file.
    pub more: u64,
    /// Without such words a bit for each of the first `INLINE_BLOCKS` blocks; with them a summary: which of them to look at.
    pub blocks: [u64; INLINE_WORDS],
}

/// What happens on one CPU is counted on lines of its own: no two CPUs write to the same.
///
/// The counts only grow, but for a call that finds the fence up, which takes itself back. Calls under way are `entered` less `left`, over all CPUs, and
/// who adds them up reads every `left` before the first `entered`, as SRCU does (kernel/rcu/srcutree.c): a call whose end was seen has been seen to
/// begin, so the difference is never too small. A task may begin on one CPU and end on another: one CPU's numbers alone say nothing.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Program: modifying calls that have begun, by the phase they began in.
    pub entered: [u64; 2],
    /// Program: those that have ended.
    pub left: [u64; 2],
    /// Program: events that found a watched inode and had something new to say of it.
    pub events: u64,
    /// Program: those of them that have said it, the ring's record included.
    pub recorded: u64,
    /// Padding.
    pub _pad: [u64; 2],
    /// Program: calls that spun, since the engine last cleared it.
    pub spins: u64,
    /// Program: the longest spin since then, in nanoseconds (G6).
    pub longest: u64,
    /// Program: calls since then that went on because the deadline had passed (G2, G3).
    pub expired: u64,
    /// Padding.
    pub _pad_felt: [u64; 5],
}

/// Where the tasks `n`, `n + lines`, `n + 2 * lines` .. are (`TASK_*`), line `n` of TASKS: tasks that were born one after the other, as threads are,
/// lie on lines of their own, so that CPUs do not take one from each other. A task's byte is written by itself alone.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct TaskLine(pub [u8; TASKS_A_LINE as usize]);

/// Where the running kernel keeps what the programs read: byte offsets, resolved from its BTF by the engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `inode.i_mapping`
    pub inode_mapping: u32,
    /// `inode.i_dio_count`
    pub inode_dio_count: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `address_space.host`
    pub mapping_host: u32,
    /// `address_space.i_mmap_writable`
    pub mapping_writable: u32,
    /// `folio.index`
    pub folio_index: u32,
    /// `folio.flags`
    pub folio_flags: u32,
    /// The byte with the order of a large folio
    pub folio_order: u32,
    /// Bit number of `PG_head`; `NONE`: the order cannot be told and 2 MiB are assumed
    pub folio_head_bit: u32,
    /// `kiocb.ki_filp`
    pub kiocb_file: u32,
    /// `kiocb.ki_pos`
    pub kiocb_pos: u32,
    /// `iov_iter.count`
    pub iter_count: u32,
    /// `iov_iter.data_source`: not 0 for a write
    pub iter_source: u32,
    /// `iomap_iter.inode`
    pub iomap_inode: u32,
    /// `iomap_iter.pos`
    pub iomap_pos: u32,
    /// `iomap_iter.len`
    pub iomap_len: u32,
    /// `iomap_iter.flags`
    pub iomap_flags: u32,
    /// `xfs_inode.i_vnode`
    pub xfs_vnode: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `task_struct.nsproxy`
    pub task_nsproxy: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.thread_info.status`: bit 1 is TS_COMPAT on x86; `NONE` elsewhere
    pub task_status: u32,
    /// `nsproxy.mnt_ns`
    pub nsproxy_mnt: u32,
    /// `mnt_namespace.ns.inum`
    pub mnt_inum: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `fdtable.max_fds`
    pub fdt_max: u32,
    /// `dentry.d_inode`
    pub dentry_inode: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `path.dentry`
    pub path_dentry: u32,
    /// `file.f_mode`
    pub file_mode: u32,
    /// `iattr.ia_valid`
    pub attr_valid: u32,
    /// `folio.mapping`
    pub folio_mapping: u32,
    /// `vm_area_struct.vm_file`
    pub vma_file: u32,
    /// `vm_area_struct.vm_flags`
    pub vma_flags: u32,
    /// `renamedata.old_dir`, an inode; `NONE`: `rename_old_parent` is there instead
    pub rename_old_dir: u32,
    /// `renamedata.new_dir`
    pub rename_new_dir: u32,
    /// `renamedata.old_parent`, a directory entry (since 6.18)
    pub rename_old_parent: u32,
    /// `renamedata.new_parent`
    pub rename_new_parent: u32,
    /// `renamedata.old_dentry`
    pub rename_old_dentry: u32,
    /// `renamedata.new_dentry`
    pub rename_new_dentry: u32,
    /// The system call's arguments in `pt_regs`
    pub regs_args: [u32; 6],
}

/// An offset the running kernel does not have.
pub const NONE: u32 = u32::MAX;

/// What the programs are told once, when they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// `super_block.s_dev` of the upper's file system.
    pub upper_device: u32,
    /// Number of slots minus one; the number is a power of two.
    pub slot_mask: u32,
    /// Number of lines in TASKS minus one; the number is a power of two, and this its bits.
    pub task_mask: u32,
    /// The same number as a shift.
    pub task_shift: u32,
    /// Number of the mmap call's flag for shared mappings (MAP_SHARED and MAP_SHARED_VALIDATE have bit 0).
    pub map_shared: u32,
    /// Open flags that ask for writing.
    pub open_write: u32,
    /// Fault to plant, for tests of the invariants: 0: none; see the `FAULT_` constants.
    pub fault: u32,
}

/// A planted fault: one event in 16 is dropped (a broken T1; T6 must notice).
pub const FAULT_DROP_EVENTS: u32 = 1;
/// A planted fault: calls are not counted (a broken drain; the causality test must notice).
pub const FAULT_NO_COUNT: u32 = 2;
/// A planted fault: the fence never holds anybody.
pub const FAULT_NO_FENCE: u32 = 3;
/// A planted fault: one event in 1000 is dropped.
pub const FAULT_DROP_FEW: u32 = 4;
/// A planted fault: nobody asks whether a file is mapped, neither the programs nor the engine (a broken T4).
pub const FAULT_IGNORE_MMAP: u32 = 5;
/// A planted fault of the engine: what is taken is read without waiting for the calls under way (a broken T2).
pub const FAULT_NO_SETTLE: u32 = 6;
/// A planted fault of the engine: the residual is read before the gate is up (a broken G1).
pub const FAULT_EARLY_READ: u32 = 7;
/// Not a fault: a page fault that makes a page dirty is slow between its event and the mark that write-back looks for, so that what T4 says of it is put to the test.
pub const FAULT_SLOW_FAULTS: u32 = 8;
/// A planted fault of the engine: the same, and nobody waits for such page faults before pages are cleaned (a broken T4).
pub const FAULT_NO_GRACE: u32 = 9;
/// Set beside one of the others: the sweeps (T6) are off, which would find the fault before it shows in a tree.
pub const FAULT_NO_SWEEP: u32 = 1 << 16;
/// The fault without [`FAULT_NO_SWEEP`].
pub const FAULT_KIND: u32 = FAULT_NO_SWEEP - 1;

/// The home of an inode number in a table of `mask + 1` slots (Fibonacci hashing).
#[inline(always)]
#[must_use]
pub const fn home(ino: u64, mask: u32) -> u32 {
    ((ino.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32) & mask
}

const _: () = assert!(size_of::<Slot>() == 64);
const _: () = assert!(size_of::<Cpu>() == 128);
const _: () = assert!(size_of::<TaskLine>() == 64);
const _: () = assert!(size_of::<TargetId>() == 24);
const _: () = assert!(size_of::<Control>() == 64 + 24 * MAX_TARGETS + 64);
const _: () = assert!(size_of::<Control>() <= 4096);
