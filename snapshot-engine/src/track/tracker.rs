//! Loading the programs, and the tracker as the pre-copy uses it.

use std::collections::HashMap as Map;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use snapshot_ebpf::{
    BLOCK_SHIFT, Control, CpuStop, INLINE_BLOCKS, MAX_CPUS, MAX_TARGETS, META, QUEUED, Settings, Slot,
    TargetId, WHOLE,
};

use super::live::Live;
use super::log::ToTracing;
use super::programs::{CALLS, FileSystem, Program};
use super::slots::{SlotIndex, Slots};
use super::{Error, calls, object, offsets};
use crate::kernel::shared::{MapMemory, bytes_of};
use crate::model::dirty::{Dirty, Full, Ino, Probe, Watch};

/// How long [`Watch::settle`] waits for calls to end before it says no.
const SETTLE: Duration = Duration::from_millis(200);
/// After this long it looks who it is waiting for.
const PATIENCE: Duration = Duration::from_millis(10);
/// The least number of slots: 1 MiB of table.
const MIN_SLOTS: u32 = 16 << 10;
/// The ring: a record takes 16 bytes, so it holds this many slots that became dirty since the last look.
const RING_BYTES: u32 = 1 << 20;

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
    /// Bytes in files above 20 MiB, about: how many more block bits there must be.
    pub large_bytes: u64,
    /// A fault to plant (`snapshot_ebpf::FAULT_*`), for tests; 0: none.
    pub fault: u32,
}

/// The running tracker. Dropping it detaches every program: they live by its descriptors, so a killed engine leaves none.
pub struct Tracker {
    // Dropped in this order: the programs stop writing before the memory goes.
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    tasks: HashMap<MapData, u32, u64>,
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
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("live", &self.live.stamp()).finish_non_exhaustive()
    }
}

fn load_error(what: &str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
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
        let object = object::object()?;
        let types = super::btf::Btf::of_kernel()?;
        let offsets = offsets::offsets(&types, fs == FileSystem::Xfs)?;
        let programs = present(&types, fs)?;
        drop(types);

        let slots = u32::try_from(scope.inodes.saturating_mul(3))
            .unwrap_or(1 << 30)
            .clamp(MIN_SLOTS, 1 << 26)
            .next_power_of_two();
        let words = scope.large_bytes.div_ceil(64 << BLOCK_SHIFT).saturating_mul(2).clamp(1 << 12, 1 << 24);
        let words = u32::try_from(words).unwrap_or(1 << 24);
        let settings = Settings {
            upper_device: scope.upper_device,
            slot_mask: slots - 1,
            block_words: words,
            map_shared: libc::MAP_SHARED.unsigned_abs(),
            open_write: calls::open_write(),
            fault: scope.fault,
        };
        let btf = Btf::from_sys_fs()
            .map_err(|e| Error::NoBtf { path: "/sys/kernel/btf/vmlinux".into(), why: e.to_string() })?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", bytes_of(&offsets), true)
            .override_global("SETTINGS", bytes_of(&settings), true)
            .map_max_entries("SLOTS", slots)
            .map_max_entries("BLOCKS", words)
            .map_max_entries("RING", RING_BYTES)
            .load(object)
            .map_err(|e| load_error("maps", e))?;

        // First all are loaded: the maps' descriptors must be open for that.
        for program in &programs {
            program_of(&mut ebpf, program.name)?
                .load(program.name, &btf)
                .map_err(|e| load_error(program.name, e))?;
        }
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| load_error(name, "not in the object"));
        let mut classes: Array<MapData, u32> =
            Array::try_from(take("CALLS")?).map_err(|e| load_error("CALLS", e))?;
        for (number, class) in calls::classes().into_iter().enumerate() {
            classes
                .set(u32::try_from(number).unwrap_or(u32::MAX), class, 0)
                .map_err(|e| load_error("CALLS", e))?;
        }
        let memory = |map: aya::maps::Map, bytes: usize, name: &str| match map {
            aya::maps::Map::Array(data) => MapMemory::new(data.fd().as_fd(), bytes)
                .map_err(|source| Error::Io { what: format!("map `{name}` could not be mapped"), source }),
            _ => Err(load_error(name, "not an array")),
        };
        let live = Live {
            control: memory(take("CONTROL")?, size_of::<Control>(), "CONTROL")?,
            cpus: memory(take("CPUS")?, MAX_CPUS as usize * size_of::<CpuStop>(), "CPUS")?,
        };
        let slot_memory = memory(take("SLOTS")?, slots as usize * size_of::<Slot>(), "SLOTS")?;
        let blocks = memory(take("BLOCKS")?, words as usize * 8, "BLOCKS")?;
        let ring = RingBuf::try_from(take("RING")?).map_err(|e| load_error("RING", e))?;
        let tasks = HashMap::try_from(take("TASKS")?).map_err(|e| load_error("TASKS", e))?;
        let logger = EbpfLogger::init_with_logger(&mut ebpf, ToTracing).ok();

        live.set_targets(&scope.targets);
        live.set_prober(u64::from(std::process::id()));
        live.note_tasks(true);
        for program in &programs {
            program_of(&mut ebpf, program.name)?.attach().map_err(|e| load_error(program.name, e))?;
        }
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
        })
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
        self.tasks.get(&tid, 0).is_ok()
    }

    pub(super) fn stop_noting(&self) {
        self.live.note_tasks(false);
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
        let inside = self.tasks.iter().filter_map(Result::ok).filter(|(_, phase)| *phase != 0);
        let mut any = false;
        for (tid, _) in inside {
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

    /// Room for the block bits of a file, as `Slot::more` has it.
    fn room(&mut self, size: u64) -> u64 {
        let blocks = size.div_ceil(1 << BLOCK_SHIFT);
        if blocks <= INLINE_BLOCKS {
            return 0;
        }
        // A quarter more, for growth; behind it the tail counts as one.
        let words = usize::try_from((blocks - INLINE_BLOCKS).div_ceil(64) * 5 / 4 + 1).unwrap_or(usize::MAX);
        let first = match self.blocks_free.get_mut(&words).and_then(Vec::pop) {
            Some(first) => first,
            None if words <= self.blocks.words().len() - self.blocks_used => {
                self.blocks_used += words;
                self.blocks_used - words
            }
            // T1: without bits of their own the blocks behind the inline ones are one tail: more to copy, nothing lost.
            None => return 0,
        };
        for word in &self.blocks.words()[first..first + words] {
            word.store(0, std::sync::atomic::Ordering::SeqCst);
        }
        (first as u64) << 32 | words as u64
    }

    fn everything(&self) -> Vec<SlotIndex> {
        let slots = self.slots();
        (0..slots.len()).map(SlotIndex).filter(|&s| slots.ino(s).is_some()).collect()
    }
}

fn program_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, Error> {
    ebpf.program_mut(name)
        .ok_or_else(|| load_error(name, "not in the object"))?
        .try_into()
        .map_err(|e: aya::programs::ProgramError| load_error(name, e))
}

/// The programs this kernel has, in the order they are attached.
fn present(btf: &super::btf::Btf, fs: FileSystem) -> Result<Vec<Program>, Error> {
    let mut programs = Vec::new();
    for program in fs.programs().chain(CALLS.iter().copied()) {
        if btf.has_tracepoint(program.name) {
            programs.push(program);
        } else if program.required {
            return Err(Error::NoTracepoint { name: program.name, fs: format!("{fs:?}").to_lowercase() });
        } else {
            tracing::info!(tracepoint = program.name, "this kernel does not have it");
        }
    }
    Ok(programs)
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
        let words = self.slots().bit_words(slot) - snapshot_ebpf::INLINE_WORDS;
        if words > 0 {
            let first = self.slots().extension_start(slot);
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
        // As SRCU does (kernel/rcu/srcutree.c): a call may have read the phase before a flip and count itself in after it. So the other
        // phase, which nobody enters any more, is waited for first; then the phases change places and the one that was in use is waited for.
        let began = Instant::now();
        let wait = |phase: u64| {
            let mut looked = false;
            while self.live.in_phase(phase) != 0 {
                let waited = began.elapsed();
                if waited >= SETTLE {
                    return false;
                }
                if waited >= PATIENCE && !std::mem::replace(&mut looked, true) && self.only_waiters() {
                    return true;
                }
                std::thread::sleep(Duration::from_micros(50));
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

    fn probe(&self, fd: BorrowedFd<'_>) -> Probe {
        let (ino, mapped, direct_io) = self.live.ask(fd);
        if let Some(slot) = self.slots().find(ino) {
            self.slots().set_mapped(slot, mapped);
        }
        Probe { mapped, direct_io }
    }
}
