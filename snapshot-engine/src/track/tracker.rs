//! Loading the programs, and the tracker as the pre-copy uses it.

use std::cell::Cell;
use std::collections::HashMap as Map;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use snapshot_ebpf::{
    BLOCK_SHIFT, Control, Cpu, FAULT_KIND, FAULT_NO_GRACE, FAULT_NO_SETTLE, FINE_SHIFT, Fine, MAPPED,
    MAX_CPUS, MAX_TARGETS, META, QUEUED, Settings, Slot, TASK_INSIDE, TASKS_A_LINE, TargetId, WHOLE,
};

use super::attach::{self, Programs};
use super::live::Live;
use super::log::ToTracing;
use super::programs::{FileSystem, present};
use super::slots::{SlotIndex, Slots};
use super::{Error, calls, object, offsets};
use crate::kernel::grace::grace_period;
use crate::kernel::shared::{MapMemory, bytes_of};
use crate::model::dirty::{Dirty, Full, Ino, Probe, Watch};
use crate::model::snapshot::Backend;

/// How long [`Watch::settle`] waits for calls to end before it says no.
const SETTLE: Duration = Duration::from_millis(200);
/// Most calls end sooner than a sleep does.
const MOMENT: Duration = Duration::from_micros(5);
/// After this long it looks who it is waiting for.
const PATIENCE: Duration = Duration::from_millis(10);

/// The largest `kernel.pid_max` there is (linux/threads.h).
const PID_MAX_LIMIT: u32 = 4 << 20;
/// Words of 64 bits in a line of TASKS.
const WORDS_A_LINE: usize = TASKS_A_LINE as usize / 8;

/// A file that is as large as this when it is watched gets a bit for each page, smaller ones one for each 64 KiB: they are read at once.
pub const LARGE: u64 = 2 << BLOCK_SHIFT;

/// How large the tracker's tables are. What does not fit costs time, never data (T1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// Watched inodes. Three times as many as the tree has if that is more, as it may grow; a power of two.
    pub slots: u32,
    /// Words of 64 page bits for files of [`LARGE`] and more. Twice as many as they need if that is more.
    pub words: u32,
    /// Bytes of the ring: a record takes 16, so it holds a sixteenth of it of slots that became dirty since the last look. A power of two,
    /// and whole pages.
    pub ring: u32,
    /// Tasks that can be counted are those with smaller numbers. `None`: as many as `kernel.pid_max` allows when the tracker starts.
    pub tasks: Option<u32>,
}

impl Default for Tables {
    /// 1 MiB of slots; a ring of 1 MiB.
    fn default() -> Tables {
        Tables { slots: 16 << 10, words: 1 << 12, ring: 1 << 20, tasks: None }
    }
}

/// What is to be tracked.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The containers.
    pub targets: Vec<TargetId>,
    /// `s_dev` of the upper's file system, packed as the kernel does (major << 20 | minor).
    pub upper_device: u32,
    /// The upper's file system as mountinfo names it.
    pub file_system: String,
    /// How many inodes the tree has, about.
    pub inodes: u64,
    /// Bytes in files of [`LARGE`] and more, about: how many page bits there must be.
    pub large_bytes: u64,
    /// The least sizes of the tables.
    pub tables: Tables,
    /// A fault to plant (`snapshot_ebpf::FAULT_*`), for tests; 0: none.
    pub fault: u32,
}

/// The running tracker. Dropping it detaches every program: they live by its descriptors, so a killed engine leaves none.
pub struct Tracker {
    // Dropped in this order: the programs stop writing before the memory goes.
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    tasks: MapMemory,
    logger: Option<EbpfLogger<ToTracing>>,
    live: Live,
    slots: MapMemory,
    blocks: MapMemory,
    /// Words of `blocks` given away.
    blocks_used: usize,
    /// Released extensions by number of words, to be given away again.
    blocks_free: Map<usize, Vec<usize>>,
    /// Slots to look at although the ring does not name them (T3).
    again: Vec<SlotIndex>,
    ring_lost_seen: u64,
    unknown_seen: u64,
    /// See [`Tracker::faults_over`].
    faults_over: Cell<Option<bool>>,
    backend: Backend,
    /// See [`FileSystem::stores_are_silent`].
    silent_stores: bool,
    /// Planted, for tests: see [`Scope::fault`].
    fault: u32,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("live", &self.live.stamp()).finish_non_exhaustive()
    }
}

pub(super) fn load_error(what: &str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source = e.into();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
    while let Some(c) = cause {
        if c.downcast_ref::<io::Error>().is_some_and(|e| e.raw_os_error() == Some(libc::EPERM)) {
            return Error::Permission(source);
        }
        cause = c.source();
    }
    Error::Load { what: what.to_owned(), source }
}

impl Tracker {
    /// Loads and attaches the programs. From its return on, every modifying call of the targets is counted, and events on inodes are recorded once they are watched.
    ///
    /// # Errors
    /// See [`Error`]; nothing stays loaded.
    pub fn start(scope: &Scope) -> Result<Tracker, Error> {
        let fs = FileSystem::named(&scope.file_system)?;
        if scope.targets.is_empty() || scope.targets.len() > MAX_TARGETS {
            return Err(Error::Targets { max: MAX_TARGETS });
        }
        super::release::check()?;
        let object = object::object()?;
        // The loader reads the kernel's types for itself; neither reading waits for the other.
        let (types, mut loader) = std::thread::scope(|scope| {
            let loader = scope.spawn(EbpfLoader::new);
            let types = super::btf::Btf::of_kernel_with(fs.module());
            (types, loader.join().unwrap_or_default())
        });
        let types = types?;
        let offsets = offsets::offsets(&types, fs == FileSystem::Xfs)?;
        let programs = present(&types, fs)?;
        let (backend, functions) = fs.backend(&types)?;
        let bound = attach::types(&types, &programs, &functions)?;
        drop(types);

        let slots = u32::try_from(scope.inodes.saturating_mul(3))
            .unwrap_or(1 << 30)
            .clamp(scope.tables.slots.min(1 << 26), 1 << 26)
            .next_power_of_two();
        let words = scope.large_bytes.div_ceil(64 << FINE_SHIFT).saturating_mul(2);
        let words = words.clamp(u64::from(scope.tables.words.min(1 << 24)), 1 << 24);
        let words = u32::try_from(words).unwrap_or(1 << 24);
        let lines = scope.tables.tasks.unwrap_or_else(pid_max).div_ceil(TASKS_A_LINE).next_power_of_two();
        let settings = Settings {
            upper_device: scope.upper_device,
            slot_mask: slots - 1,
            task_mask: lines - 1,
            task_shift: lines.trailing_zeros(),
            map_shared: libc::MAP_SHARED.unsigned_abs(),
            open_write: calls::open_write(),
            fault: scope.fault & FAULT_KIND,
        };
        let mut ebpf = loader
            .override_global("OFFSETS", bytes_of(&offsets), true)
            .override_global("SETTINGS", bytes_of(&settings), true)
            .override_global("CLASSES", &calls::classes()[..], true)
            .map_max_entries("SLOTS", slots)
            .map_max_entries("BLOCKS", words)
            .map_max_entries("RING", scope.tables.ring)
            .map_max_entries("TASKS", lines)
            .load(object)
            .map_err(|e| load_error("maps", e))?;

        // First all are loaded: the maps' descriptors must be open for that.
        let programs = Programs::load(&mut ebpf, &bound, &programs, functions, &scope.file_system)?;
        tracing::info!(%backend, file_system = scope.file_system, "tracker");
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| load_error(name, "not in the object"));
        let memory = |map: aya::maps::Map, bytes: usize, name: &str| match map {
            aya::maps::Map::Array(data) => MapMemory::new(data.fd().as_fd(), bytes)
                .map_err(|source| Error::Io { what: format!("map `{name}` could not be mapped"), source }),
            _ => Err(load_error(name, "not an array")),
        };
        let cpus = possible_cpus().min(MAX_CPUS as usize);
        let live = Live {
            control: memory(take("CONTROL")?, size_of::<Control>(), "CONTROL")?,
            cpus: memory(take("CPUS")?, cpus * size_of::<Cpu>(), "CPUS")?,
        };
        let tasks = memory(take("TASKS")?, lines as usize * TASKS_A_LINE as usize, "TASKS")?;
        let slot_memory = memory(take("SLOTS")?, slots as usize * size_of::<Slot>(), "SLOTS")?;
        let blocks = memory(take("BLOCKS")?, words as usize * 8, "BLOCKS")?;
        let ring = RingBuf::try_from(take("RING")?).map_err(|e| load_error("RING", e))?;
        let logger = EbpfLogger::init_with_logger(&mut ebpf, ToTracing).ok();

        live.set_targets(&scope.targets);
        live.set_prober(u64::from(std::process::id()));
        live.note_tasks(true);
        programs.attach(&mut ebpf)?;
        Ok(Tracker {
            ebpf,
            ring,
            tasks,
            logger,
            live,
            slots: slot_memory,
            blocks,
            blocks_used: 0,
            blocks_free: Map::new(),
            again: Vec::new(),
            ring_lost_seen: 0,
            unknown_seen: 0,
            faults_over: Cell::new(None),
            backend,
            silent_stores: fs.stores_are_silent(),
            fault: scope.fault & FAULT_KIND,
        })
    }

    /// What the events come from.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The control page.
    #[must_use]
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The table of watched inodes.
    #[must_use]
    pub fn slots(&self) -> Slots<'_> {
        Slots::new(self.slots.words(), self.blocks.words())
    }

    /// What the window needs at once: the ring and the tables.
    pub fn window_parts(&mut self) -> (&mut RingBuf<MapData>, &Live, Slots<'_>) {
        (&mut self.ring, &self.live, Slots::new(self.slots.words(), self.blocks.words()))
    }

    /// Whether a task was seen at the border between user and kernel since the tracker was attached.
    pub(super) fn noted(&self, tid: u32) -> bool {
        let lines = self.tasks.words().len() / WORDS_A_LINE;
        let (line, place) = (tid as usize % lines, tid as usize / lines);
        place < TASKS_A_LINE as usize && {
            let word = self.tasks.words()[line * WORDS_A_LINE + place / 8].load(Ordering::SeqCst);
            word.to_ne_bytes()[place % 8] != 0
        }
    }

    /// Waits until page faults have made dirty what they had told of when [`Watch::settle`] was called last; once for all files that are read after it. False if the
    /// kernel has no way to wait for that.
    ///
    /// T4: a store through a mapping is no counted call, so nobody waits for it (T2). Its event, `writeback_dirty_folio`, comes *before* the page bears the mark by which
    /// write-back finds it (`__folio_mark_dirty`, mm/page-writeback.c; `filemap_fdatawrite_wbc`, mm/filemap.c, asks for the mark without a lock). Who has taken that event and cleans the
    /// pages at once would find nothing to clean and read what is there; then the page gets its mark, the store lands, and so do all later ones to that page, without an event. Event and mark are one
    /// stretch without interrupts. Once it is over, cleaning finds the mark, and waits for the folio's lock, which the fault holds until its page can be stored to.
    fn faults_over(&self) -> bool {
        if self.fault == FAULT_NO_GRACE {
            return true;
        }
        let over = self.faults_over.get().unwrap_or_else(|| {
            grace_period()
                .inspect_err(|error| tracing::debug!(%error, "page faults cannot be waited for"))
                .is_ok()
        });
        self.faults_over.set(Some(over));
        over
    }

    /// The tasks inside a counted call.
    fn inside(&self) -> impl Iterator<Item = u32> {
        let lines = self.tasks.words().len() / WORDS_A_LINE;
        self.tasks.words().iter().enumerate().flat_map(move |(n, word)| {
            let (line, first) = (n / WORDS_A_LINE, n % WORDS_A_LINE * 8);
            let bytes = word.load(Ordering::SeqCst).to_ne_bytes().into_iter().enumerate();
            let inside = bytes.filter(|(_, at)| *at & TASK_INSIDE != 0);
            inside.filter_map(move |(byte, _)| u32::try_from((first + byte) * lines + line).ok())
        })
    }

    pub(super) fn stop_noting(&self) {
        self.live.note_tasks(false);
    }

    /// [`Watch::settle`] with another patience.
    pub fn settle_within(&self, limit: Duration) -> bool {
        if self.fault == FAULT_NO_SETTLE {
            return true;
        }
        // As SRCU does (kernel/rcu/srcutree.c): a call may have read the phase before a flip and count itself in after it. So the other
        // phase, which nobody enters any more, is waited for first; then the phases change places and the one that was in use is waited for.
        let began = Instant::now();
        let wait = |phase: u64| {
            let mut looked = false;
            while self.live.in_phase(phase) != 0 {
                let waited = began.elapsed();
                if waited >= limit {
                    return false;
                }
                if waited >= PATIENCE && !std::mem::replace(&mut looked, true) && self.only_waiters() {
                    return true;
                }
                if waited < MOMENT {
                    std::hint::spin_loop();
                } else {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
            true
        };
        if self.live.tasks_lost() != 0 {
            return false;
        }
        let phase = self.live.phase();
        if !wait(phase ^ 1) {
            return false;
        }
        self.live.set_phase(phase ^ 1);
        wait(phase)
    }

    /// Remembers a slot that holds dirt and is not in the ring (T3).
    pub fn look_again(&mut self, slot: SlotIndex) {
        self.again.push(slot);
    }

    /// The slots to look at although the ring does not name them; the caller answers for them.
    pub fn take_again(&mut self) -> Vec<SlotIndex> {
        std::mem::take(&mut self.again)
    }

    /// Passes on what the programs logged.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// How often the kernel skipped a program because it was already running on that CPU. Must be 0 (an event was lost otherwise).
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn skipped(&self) -> io::Result<u64> {
        let mut skipped = 0;
        for (_, program) in self.ebpf.programs() {
            let Ok(fd) = program.fd() else { continue };
            let info = std::fs::read_to_string(
                Path::new("/proc/self/fdinfo").join(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()).to_string()),
            )?;
            let misses = info.lines().find_map(|l| l.strip_prefix("recursion_misses:"));
            skipped += misses.and_then(|m| m.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(skipped)
    }

    /// Whether everybody inside a counted call sleeps where nothing changes; nobody has to be waited for then.
    fn only_waiters(&self) -> bool {
        let mut any = false;
        for tid in self.inside() {
            any = true;
            if !super::evidence::waits_for_partner(tid) {
                return false;
            }
        }
        any
    }

    /// What the ring could not hold and events that named nobody, as of the last [`Watch::take`], which looked at everything then.
    #[must_use]
    pub fn losses_seen(&self) -> u64 {
        self.ring_lost_seen.wrapping_add(self.unknown_seen)
    }

    /// Makes every watched inode dirty: something is known to have been missed, and not what (T1).
    pub fn mark_everything(&mut self) {
        let all = self.everything();
        let slots = self.slots();
        let again: Vec<SlotIndex> = all.into_iter().filter(|&s| slots.put_state(s, META | WHOLE)).collect();
        self.again.extend(again);
    }

    /// Makes all of a mapped file dirty, unless its pages were cleaned since it was mapped, or are about to be (T4).
    pub fn mark_mapped(&mut self, ino: Ino) {
        let slots = self.slots();
        let Some(slot) = slots.find(ino.0).filter(|&slot| slots.state(slot) & MAPPED == 0) else { return };
        let remember = slots.put_state(slot, META | WHOLE);
        // Last: a promise about pages that are dirty to us by now.
        slots.set_mapped(slot);
        if remember {
            self.again.push(slot);
        }
    }

    /// Room for the block bits of a file, as `Slot::more` has it.
    fn room(&mut self, size: u64) -> u64 {
        if size < LARGE {
            return 0;
        }
        // A quarter more, for growth; behind it the tail counts as one.
        let words = size.div_ceil(64 << FINE_SHIFT) * 5 / 4 + 1;
        let words = usize::try_from(words.min(Fine::MAX_WORDS)).unwrap_or(usize::MAX);
        let first = match self.blocks_free.get_mut(&words).and_then(Vec::pop) {
            Some(first) => first,
            None if words <= self.blocks.words().len() - self.blocks_used => {
                self.blocks_used += words;
                self.blocks_used - words
            }
            // T1: without bits of their own its blocks are larger, and those behind the inline ones one tail: more to copy, nothing lost.
            None => return 0,
        };
        for word in &self.blocks.words()[first..first + words] {
            word.store(0, std::sync::atomic::Ordering::SeqCst);
        }
        Fine::new(first as u64, words as u64).0
    }

    fn everything(&self) -> Vec<SlotIndex> {
        let slots = self.slots();
        (0..slots.len()).map(SlotIndex).filter(|&s| slots.ino(s).is_some()).collect()
    }
}

/// CPUs there may ever be: the programs know them by number, and the numbers go up to the highest possible one.
fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<usize>().ok());
    last.map_or(MAX_CPUS as usize, |n| n + 1)
}

/// Numbers a task can have on this machine.
fn pid_max() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(PID_MAX_LIMIT).clamp(1, PID_MAX_LIMIT)
}

impl Watch for Tracker {
    fn watch(&mut self, ino: Ino, size: u64) -> Result<(), Full> {
        if self.slots().find(ino.0).is_some() {
            return Ok(());
        }
        let more = self.room(size);
        self.slots().add(ino.0, more).map(drop)
    }

    fn unwatch(&mut self, ino: Ino) {
        let Some(slot) = self.slots().find(ino.0) else { return };
        let (first, words) = self.slots().extension(slot);
        if words > 0 {
            self.blocks_free.entry(words).or_default().push(first);
        }
        self.slots().remove(ino.0);
    }

    fn take(&mut self) -> Vec<Dirty> {
        let mut dirty_slots = std::mem::take(&mut self.again);
        while let Some(record) = self.ring.next() {
            if let Some(index) = record.first_chunk::<4>() {
                dirty_slots.push(SlotIndex(u32::from_ne_bytes(*index)));
            }
        }
        let (lost, unknown) = (self.live.ring_lost(), self.live.unknown());
        if lost != self.ring_lost_seen || unknown != self.unknown_seen {
            // T1: what the ring could not hold is still in the slots; look at all of them. What named nobody is everybody.
            tracing::warn!(
                lost = lost - self.ring_lost_seen,
                unknown = unknown - self.unknown_seen,
                "events were lost; looking at every inode"
            );
            dirty_slots = self.everything();
            if unknown != self.unknown_seen {
                for &slot in &dirty_slots {
                    let _ = self.slots().put_state(slot, META | WHOLE | QUEUED);
                }
            }
            (self.ring_lost_seen, self.unknown_seen) = (lost, unknown);
        }
        self.flush_log();
        let slots = self.slots();
        if self.silent_stores {
            // T4: whoever maps it may have stored to it at any time since the last take. MAPPED stays until the probe that follows a take finds
            // no mapping, so the last stores before an unmapping are taken too. Every slot is looked at, 64 bytes each.
            for slot in (0..slots.len()).map(SlotIndex).filter(|&s| slots.ino(s).is_some()) {
                if slots.state(slot) & MAPPED != 0 {
                    let _ = slots.put_state(slot, META | WHOLE);
                    dirty_slots.push(slot);
                }
            }
        }
        // A slot may be named twice; the second time it is clean.
        dirty_slots.into_iter().filter(|s| s.0 < slots.len()).filter_map(|slot| slots.take(slot)).collect()
    }

    fn put_back(&mut self, dirty: &[Dirty]) {
        for d in dirty {
            let found = self.slots().find(d.ino.0);
            if let Some(slot) = found
                && self.slots().put(slot, d)
            {
                self.again.push(slot);
            }
        }
    }

    fn settle(&mut self) -> bool {
        self.faults_over.set(None);
        self.settle_within(SETTLE)
    }

    fn probe(&self, fd: BorrowedFd<'_>, whole: bool) -> Probe {
        let (ino, mut mapped, direct_io) = self.live.ask(fd);
        let slots = self.slots();
        if let Some(slot) = slots.find(ino) {
            // T4: MAPPED promises that every page which is not dirty to us is clean, or about to be, so that the next store to it is an event. Who is told
            // "not mapped" reads without cleaning, so the promise ends before he does; the first event after the next mapping makes all of it dirty then. The
            // kernel is asked once more after that: a mapping that came in between may have had its first events under the old promise.
            let mut promised = whole || self.silent_stores;
            if !mapped && slots.clear_mapped(slot) {
                mapped = self.live.ask(fd).1;
                promised = true;
            }
            if mapped && promised {
                slots.set_mapped(slot);
            }
        }
        // Where that cannot be known the file is read once more, in the window: those whom the freezer holds are in no page fault.
        let unsure = mapped && !self.faults_over();
        Probe { mapped, direct_io: direct_io || unsure }
    }
}
