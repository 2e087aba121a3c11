//! Giving the programs to the kernel, on all cores: most of the time a tracker takes to start is the verifier's, and it looks at each program by itself.
//!
//! Each tracepoint of a file system has two programs that do the same (`tracepoint` in `snapshot-ebpf/src/kernel.rs`). The one that is bound to the tracepoint's type in
//! the kernel's own BTF reads its arguments with plain loads, the other with a helper call a field, which makes a write some hundred nanoseconds slower. The
//! first is taken where the kernel has that type (not for file systems that are modules) and its verifier lets the program pass; and only for [`HOT`] ones, because
//! 6.18 looks through the names of all its types for each pointer such a program follows, and the tracker must start quickly.

use std::collections::HashMap;
use std::sync::Mutex;

use aya::Ebpf;
use aya::programs::{BtfTracePoint, Program};

use super::Error;
use super::attach::raw;
use super::load_error;
use super::programs::Place;

/// More at once would each have little to do.
const AT_ONCE: usize = 4;

/// What a plain write passes, on ext4 and on XFS.
const HOT: [&str; 6] = [
    "ext4_da_write_begin",
    "ext4_da_write_end",
    "iomap_iter",
    "writeback_dirty_folio",
    "writeback_mark_inode_dirty",
    "xfs_file_buffered_write",
];

/// A program to load, in its two forms.
struct Job<'a> {
    /// Its place in the result.
    number: usize,
    name: &'static str,
    place: Place,
    typed: Option<&'a mut Program>,
    plain: &'a mut Program,
}

/// Loads the programs of these names. None is attached. Returns the names of those that were loaded, in the order asked for.
///
/// # Errors
/// The first that one of them met.
pub(super) fn load(
    ebpf: &mut Ebpf,
    types: &aya::Btf,
    wanted: &[(&'static str, Place)],
) -> Result<Vec<(String, Place)>, Error> {
    let mut all: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let mut jobs = Vec::new();
    for (number, (name, place)) in wanted.iter().enumerate() {
        let typed = if HOT.contains(name) { all.remove(typed(name).as_str()) } else { None };
        let plain = all.remove(name).ok_or_else(|| load_error(name, "not in the object"))?;
        jobs.push(Job { number, name, place: *place, typed, plain });
    }
    // Taken from the end: the one that takes longest is begun first.
    jobs.sort_by_key(|job| job.name == "sys_enter");
    let waiting = Mutex::new(jobs);
    let next = || waiting.lock().ok()?.pop();
    let work = || {
        let mut loaded = Vec::new();
        while let Some(job) = next() {
            loaded.push((job.number, one(job, types)?));
        }
        Ok(loaded)
    };
    let parts: Vec<Result<Vec<_>, Error>> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads()).map(|_| scope.spawn(work)).collect();
        let mut parts = vec![work()];
        let join = |helper: std::thread::ScopedJoinHandle<'_, _>| {
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.extend(helpers.into_iter().map(join));
        parts
    });
    let mut loaded: Vec<_> =
        parts.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    loaded.sort_by_key(|(number, _)| *number);
    Ok(loaded.into_iter().map(|(_, program)| program).collect())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(AT_ONCE))
}

/// The name of the program that is bound to a type.
fn typed(name: &str) -> String {
    format!("{name}_typed")
}

/// Loads one of the two.
fn one(job: Job<'_>, types: &aya::Btf) -> Result<(String, Place), Error> {
    let Job { name, place, typed: bound, plain, .. } = job;
    let began = std::time::Instant::now();
    let done = |name: &str| tracing::debug!(name, took = ?began.elapsed(), "loaded");
    if let (Place::Tracepoint(tracepoint), Some(program)) = (place, bound) {
        let loaded = <&mut BtfTracePoint>::try_from(program).and_then(|p| p.load(tracepoint, types));
        match loaded {
            Ok(()) => {
                done(&typed(name));
                return Ok((typed(name), place));
            }
            // A slower program is no loss; a kernel that takes neither says so of the other one.
            Err(e) => tracing::debug!(tracepoint, %e, "not bound to its type"),
        }
    }
    let loaded = match plain {
        Program::KProbe(program) => program.load(),
        _ => raw(name, plain)?.load(),
    };
    loaded.map_err(|e| load_error(name, e))?;
    done(name);
    Ok((name.to_owned(), place))
}
