//! What an engine could leave on the machine. Others may be at work on it, with this very project: only what nobody else holds counts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// `BPF_PROG_TYPE_KPROBE`, `BPF_PROG_TYPE_RAW_TRACEPOINT` and `BPF_PROG_TYPE_TRACING` of linux/bpf.h: the tracker's kinds.
const KINDS: [u32; 3] = [2, 17, 26];

/// Ids of the loaded programs that could be a tracker's.
#[must_use]
pub fn programs() -> BTreeSet<u32> {
    let ours = |info: &aya::programs::ProgramInfo| KINDS.contains(&(info.program_type() as u32));
    aya::programs::loaded_programs().flatten().filter(ours).map(|info| info.id()).collect()
}

/// Programs that a process holds, by descriptors of programs or of links to them.
fn held(process: &Path) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(process.join("fdinfo")) else { return BTreeSet::new() };
    let id = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
    };
    entries.flatten().filter_map(id).collect()
}

/// Processes whose command line has this text, with the command line.
#[must_use]
pub fn processes(text: &str) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let with_text = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text).then_some((pid, line))
    };
    entries.flatten().filter_map(with_text).collect()
}

/// Programs loaded since `before` that are ours: held by a process whose command line has `work_dir`, or by nobody.
fn left_programs(before: &BTreeSet<u32>, work_dir: &str) -> BTreeSet<u32> {
    let mut new: BTreeSet<u32> = programs().difference(before).copied().collect();
    if new.is_empty() {
        return new;
    }
    let ours: BTreeSet<u32> = processes(work_dir).into_iter().map(|(pid, _)| pid).collect();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if pid.is_some_and(|pid| !ours.contains(&pid)) {
            new = new.difference(&held(&entry.path())).copied().collect();
        }
    }
    new
}

/// Mounts whose line has this text.
#[must_use]
pub fn mounts(text: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// Nothing of the engines that worked on `work_dir` is left: no process, no program loaded since `before`, no mount.
///
/// # Errors
/// With what is still there after a second.
pub fn must_be_clean(before: &BTreeSet<u32>, work_dir: &Path) -> Result<()> {
    let text = work_dir.to_string_lossy();
    let began = Instant::now();
    loop {
        let processes = processes(&text);
        let programs = left_programs(before, &text);
        let mounts = mounts(&text);
        if processes.is_empty() && programs.is_empty() && mounts.is_empty() {
            return Ok(());
        }
        // Programs are freed after a grace period.
        ensure!(
            began.elapsed() < Duration::from_secs(1),
            "left behind: processes {processes:?}, programs {programs:?}, mounts {mounts:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
