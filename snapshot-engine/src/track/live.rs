//! The control page and what each CPU counts, as the window reads and writes them: plain memory, no system call.

use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, fence};

use snapshot_ebpf::{Control, Cpu, TargetId};

use crate::kernel::shared::MapMemory;

/// The shared memory of one tracker.
#[derive(Debug)]
pub struct Live {
    pub(super) control: MapMemory,
    pub(super) cpus: MapMemory,
}

/// Counters that tell whether anything happened between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Modifying calls begun.
    pub entered: u64,
    /// Events on watched inodes that had something new to say.
    pub events: u64,
    /// Shared mappings asked for.
    pub mappings: u64,
    /// io_uring requests submitted.
    pub uring: u64,
    /// Events that could not be recorded in the ring, plus those that name nobody, plus calls that could not be counted.
    pub lost: u64,
}

/// What the held calls felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Felt {
    /// How many were held.
    pub spins: u64,
    /// The longest, in nanoseconds.
    pub longest: u64,
    /// How many were let through because the deadline had passed.
    pub expired: u64,
}

macro_rules! field {
    ($self:ident, $($name:tt)+) => { $self.word(offset_of!(Control, $($name)+)) };
}

impl Live {
    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.control.words()[offset / 8]
    }

    /// Raises the fence until a moment of the monotonic clock (G3). The caller looks at [`Live::in_flight`] only afterwards.
    #[inline]
    pub fn raise_fence(&self, until_ns: u64) {
        field!(self, fence_until).store(until_ns.max(1), SeqCst);
        // Pairs with the fetching add in `count::enter`: the call is counted before it looks at the fence, so either
        // it sees the fence or we see it.
        fence(SeqCst);
    }

    /// Lowers the fence.
    #[inline]
    pub fn lower_fence(&self) {
        field!(self, fence_until).store(0, SeqCst);
    }

    /// Brings what the window touches first into this core's cache: other cores have written there since. Nothing changes; the fence is down.
    #[inline]
    pub fn warm(&self) {
        self.lower_fence();
        std::hint::black_box((self.in_flight(), self.stamp()));
    }

    /// The sum of a field over all CPUs.
    #[inline]
    fn sum(&self, offset: usize) -> u64 {
        let cpus = self.cpus.words().chunks_exact(CPU_WORDS);
        cpus.map(|cpu| cpu[offset / 8].load(SeqCst)).fold(0, u64::wrapping_add)
    }

    /// Modifying calls of the targets under way, and events that are being recorded.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        // Ends before beginnings, see `Cpu`.
        let ended = self.sum(LEFT).wrapping_add(self.sum(LEFT + 8)).wrapping_add(self.sum(RECORDED));
        fence(SeqCst);
        let begun = self.sum(ENTERED).wrapping_add(self.sum(ENTERED + 8)).wrapping_add(self.sum(EVENTS));
        begun.wrapping_sub(ended)
    }

    #[inline]
    pub(super) fn in_phase(&self, phase: u64) -> u64 {
        let of_phase = if phase & 1 == 1 { 8 } else { 0 };
        let ended = self.sum(LEFT + of_phase);
        fence(SeqCst);
        self.sum(ENTERED + of_phase).wrapping_sub(ended)
    }

    pub(super) fn phase(&self) -> u64 {
        field!(self, phase).load(SeqCst) & 1
    }

    pub(super) fn set_phase(&self, phase: u64) {
        field!(self, phase).store(phase & 1, SeqCst);
        fence(SeqCst);
    }

    /// The counters now.
    #[inline]
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        fence(SeqCst);
        Stamp {
            entered: self.sum(ENTERED).wrapping_add(self.sum(ENTERED + 8)),
            events: self.sum(EVENTS),
            mappings: field!(self, mappings).load(SeqCst),
            uring: field!(self, uring).load(SeqCst),
            lost: self.ring_lost().wrapping_add(self.unknown()).wrapping_add(self.tasks_lost()),
        }
    }

    /// What the ring could not hold, and events that named nobody, ever.
    #[inline]
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.ring_lost().wrapping_add(self.unknown())
    }

    pub(super) fn ring_lost(&self) -> u64 {
        field!(self, ring_lost).load(SeqCst)
    }

    pub(super) fn unknown(&self) -> u64 {
        field!(self, unknown).load(SeqCst)
    }

    /// Calls that could not be counted: if there are any, `in_flight` cannot be trusted.
    #[must_use]
    pub fn tasks_lost(&self) -> u64 {
        field!(self, tasks_lost).load(SeqCst)
    }

    pub(super) fn note_tasks(&self, on: bool) {
        field!(self, note_tasks).store(u64::from(on), SeqCst);
    }

    /// Asks the kernel about an open file of ours: inode number (0: no answer), mapped, direct I/O. One system call, no allocation.
    #[inline]
    #[must_use]
    pub fn ask(&self, fd: BorrowedFd<'_>) -> (u64, bool, bool) {
        // No answer counts as both: slower, and right.
        field!(self, probe_ino).store(0, SeqCst);
        field!(self, probe_mapped).store(1, SeqCst);
        field!(self, probe_direct).store(1, SeqCst);
        // The program on sys_enter answers; the call's own result is of no interest.
        let _ = rustix::io::fcntl_getfd(fd);
        (
            field!(self, probe_ino).load(SeqCst),
            field!(self, probe_mapped).load(SeqCst) != 0,
            field!(self, probe_direct).load(SeqCst) != 0,
        )
    }

    pub(super) fn set_prober(&self, tgid: u64) {
        field!(self, probe_tgid).store(tgid, SeqCst);
    }

    pub(super) fn set_targets(&self, targets: &[TargetId]) {
        for (i, t) in targets.iter().enumerate() {
            let at = offset_of!(Control, targets) + i * size_of::<TargetId>();
            self.word(at).store(t.cgroup, SeqCst);
            self.word(at + 8).store(u64::from(t.mount_namespace) << 32 | u64::from(t.cgroup_level), SeqCst);
            self.word(at + 16).store(u64::from(t.overlay_device), SeqCst);
        }
        // Last: the programs look at no more than this many.
        field!(self, targets_len).store(targets.len() as u64, SeqCst);
    }

    /// Forgets what the CPUs felt. Only while the fence is down.
    pub fn clear_felt(&self) {
        for cpu in self.cpus.words().chunks_exact(CPU_WORDS) {
            for field in [SPINS, LONGEST, EXPIRED] {
                cpu[field / 8].store(0, SeqCst);
            }
        }
    }

    /// What the calls held since [`Live::clear_felt`] felt; complete once the last of them has gone on.
    #[must_use]
    pub fn felt(&self) -> Felt {
        let longest = self.cpus.words().chunks_exact(CPU_WORDS).map(|cpu| cpu[LONGEST / 8].load(SeqCst));
        Felt { spins: self.sum(SPINS), longest: longest.max().unwrap_or(0), expired: self.expired() }
    }

    /// Calls let through because the fence's deadline had passed, since [`Live::clear_felt`].
    #[inline]
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.sum(EXPIRED)
    }
}

const CPU_WORDS: usize = size_of::<Cpu>() / 8;
const ENTERED: usize = offset_of!(Cpu, entered);
const LEFT: usize = offset_of!(Cpu, left);
const EVENTS: usize = offset_of!(Cpu, events);
const RECORDED: usize = offset_of!(Cpu, recorded);
const SPINS: usize = offset_of!(Cpu, spins);
const LONGEST: usize = offset_of!(Cpu, longest);
const EXPIRED: usize = offset_of!(Cpu, expired);

const _: () = assert!(cfg!(target_endian = "little"), "TargetId's halves are packed for little endian");
