//! What tests can leave behind on a machine: mounts, loop devices, cgroups, processes and the eBPF programs
//! they hold. The tests of a snapshot engine that leaves a container frozen would otherwise still pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::counts::Counts;
use crate::workspace;

/// Killed processes and detached mounts go away a moment after their test has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything here that looks like ours, one line each.
pub(super) fn survey() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    found.extend(mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()));
    found.extend(loop_devices());
    cgroups(Path::new("/sys/fs/cgroup"), 5, &mut found);
    pinned(Path::new("/sys/fs/bpf"), 4, &mut found);
    found.extend(processes());
    found
}

/// Compares with the survey taken before; each thing that came and stayed is a failure.
pub(super) fn judge(before: &BTreeSet<String>) -> Counts {
    let start = Instant::now();
    loop {
        let left: Vec<String> = survey().difference(before).cloned().collect();
        if left.is_empty() {
            return Counts { passed: 1, ..Counts::default() };
        }
        if start.elapsed() > PATIENCE {
            for thing in &left {
                println!("left behind by the tests: {thing}");
            }
            return Counts { failed: left.len() as u64, ..Counts::default() };
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Mounts of the kinds that the engine and its judges make. The format is in proc_pid_mountinfo(5): the type
/// follows the lone hyphen, whose place varies with the optional fields.
fn mounts(mountinfo: &str) -> Vec<String> {
    let parse = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let point = head.split(' ').nth(4)?;
        let kind = tail.split(' ').next()?;
        let ours = matches!(kind, "overlay" | "erofs") || kind.starts_with("fuse");
        // `fusectl` is the kernel's own; the root of a container is an overlay that nobody here mounted.
        (ours && kind != "fusectl" && point != "/").then(|| format!("{kind} mount at {point}"))
    };
    mountinfo.lines().filter_map(parse).collect()
}

fn loop_devices() -> Vec<String> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let backing = |entry: fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        Some(format!("/dev/{} on {}", entry.file_name().to_string_lossy(), file.trim()))
    };
    devices.flatten().filter_map(backing).collect()
}

fn cgroups(directory: &Path, depth: u32, found: &mut BTreeSet<String>) {
    for (path, name) in directories(directory) {
        if name.starts_with("snapshot-") {
            found.insert(format!("cgroup {}", path.display()));
        }
        if depth > 0 {
            cgroups(&path, depth - 1, found);
        }
    }
}

/// A pin keeps a program, map or link alive without a process.
fn pinned(directory: &Path, depth: u32, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            found.insert(format!("pinned BPF object {}", entry.path().display()));
        } else if depth > 0 {
            pinned(&entry.path(), depth - 1, found);
        }
    }
}

/// Our processes, and how many eBPF programs each holds. A program lives as long as a descriptor, a link or
/// a pin, so this and [`pinned`] together find them all. A process is ours by the file it runs: other
/// clones of the project at work on this machine are none of our business.
fn processes() -> Vec<String> {
    let (built, tools) = (workspace::target(), workspace::tools_bin());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ours = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let executable = fs::read_link(entry.path().join("exe")).ok()?;
        let ours = executable.starts_with(&built) || executable.starts_with(&tools);
        if !ours || pid == std::process::id() {
            return None;
        }
        let programs = programs_held(&entry.path().join("fdinfo"));
        Some(format!("process {pid} ({}), holding {programs} BPF programs", executable.display()))
    };
    entries.flatten().filter_map(ours).collect()
}

/// Descriptors of programs and of links to them; both kinds name the program (`bpf_prog_show_fdinfo`,
/// `bpf_link_show_fdinfo` in kernel/bpf/syscall.c).
fn programs_held(fdinfo: &Path) -> usize {
    let Ok(entries) = fs::read_dir(fdinfo) else { return 0 };
    let ids = entries.flatten().filter_map(|entry| program_id(&fs::read_to_string(entry.path()).ok()?));
    ids.collect::<BTreeSet<u32>>().len()
}

fn program_id(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

/// Subdirectories, links not followed.
fn directories(directory: &Path) -> Vec<(std::path::PathBuf, String)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let only_directories =
        entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    only_directories.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_by_their_type_whatever_the_optional_fields() {
        let text = "\
22 1 8:1 / / rw shared:1 - overlay overlay rw
30 22 0:30 / /sys/fs/fuse/connections rw - fusectl fusectl rw
31 22 0:31 / /mnt/image rw shared:5 master:2 - erofs blob ro
32 22 0:32 / /mnt/merged rw - overlay overlay rw,lowerdir=/a
33 22 0:33 / /mnt/served rw - fuse.nydusd rafs ro
34 22 0:34 / /proc rw - proc proc rw
";
        let expected =
            ["erofs mount at /mnt/image", "overlay mount at /mnt/merged", "fuse.nydusd mount at /mnt/served"];
        assert_eq!(mounts(text), expected);
    }

    #[test]
    fn program_ids_are_read_from_fdinfo() {
        assert_eq!(program_id("pos:\t0\nprog_type:\t17\nprog_id:\t42\n"), Some(42));
        assert_eq!(program_id("pos:\t0\n"), None);
    }
}
