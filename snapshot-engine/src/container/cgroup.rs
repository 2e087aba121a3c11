//! The target's control groups and the freezer that holds its tasks.
//!
//! ```text
//! v2      /sys/fs/cgroup/<path>                                    cgroup.freeze
//! hybrid  /sys/fs/cgroup/unified/<path>  (no controllers)          cgroup.freeze
//!         /sys/fs/cgroup/freezer/<path>                            freezer.state
//! v1      /sys/fs/cgroup/freezer/<path>                            freezer.state
//! ```
//!
//! A cgroup counts as the target's own only if freezing it would stop nothing but the target: not the root, not one that holds the
//! engine, nor one that also holds the runtime that started the container.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::error::Error;
use super::mountinfo::Mount;
use super::process;
use crate::model::pid::Pid;

/// The cgroups of a target, as directories and by the numbers BPF sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its own v2 cgroup.
    pub v2: Option<PathBuf>,
    /// Inode number of that directory: the kernfs id that `bpf_get_current_cgroup_id` gives.
    pub v2_id: Option<u64>,
    /// Its own cgroup of the v1 freezer hierarchy.
    pub freezer_v1: Option<PathBuf>,
    /// Inode number of that directory.
    pub freezer_v1_id: Option<u64>,
}

/// What can freeze a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freezer {
    /// `cgroup.freeze` and `cgroup.events` in this directory.
    V2(PathBuf),
    /// `freezer.state` in this directory.
    V1(PathBuf),
}

/// Where the hierarchies are mounted in the engine's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Mount point and root of cgroup2.
    pub v2: Option<(PathBuf, PathBuf)>,
    /// Mount point and root of the v1 freezer.
    pub freezer_v1: Option<(PathBuf, PathBuf)>,
}

impl Hierarchies {
    /// As the engine sees them.
    ///
    /// # Errors
    /// When the engine's own mount table cannot be read.
    pub fn find() -> io::Result<Hierarchies> {
        Ok(Hierarchies::among(&process::mounts(Pid::own())?))
    }

    fn among(mounts: &[Mount]) -> Hierarchies {
        let place = |m: &Mount| (m.point.clone(), m.root.clone());
        let freezer = |m: &&Mount| {
            m.fs_type == "cgroup" && m.super_options.split(|b| *b == b',').any(|o| o == b"freezer")
        };
        // The widest one: a mount of the whole hierarchy reaches every cgroup.
        let widest = |a: &&Mount| a.root.components().count();
        Hierarchies {
            v2: mounts.iter().filter(|m| m.fs_type == "cgroup2").min_by_key(widest).map(place),
            freezer_v1: mounts.iter().filter(freezer).min_by_key(widest).map(place),
        }
    }
}

impl Cgroup {
    /// The own cgroups of `init`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Permission`] when `/proc` does not answer.
    pub fn of(init: Pid) -> Result<Cgroup, Error> {
        let file = process::dir(init).join("cgroup");
        let text = fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let hierarchies = Hierarchies::find().map_err(|e| Error::io(Path::new("/proc/self/mountinfo"), e))?;
        let paths = parse(&text);
        let strangers = strangers(init);
        let own = |place: &Option<(PathBuf, PathBuf)>, path: Option<PathBuf>| {
            let (point, root) = place.as_ref()?;
            let dir = directory(point, root, &path?)?;
            let id = fs::metadata(&dir).ok()?.ino();
            let members = members(&dir).ok()?;
            (members.contains(&init) && strangers.is_disjoint(&members)).then_some((dir, id))
        };
        let (v2, v2_id) = own(&hierarchies.v2, paths.v2).unzip();
        let (freezer_v1, freezer_v1_id) = own(&hierarchies.freezer_v1, paths.freezer_v1).unzip();
        Ok(Cgroup { v2, v2_id, freezer_v1, freezer_v1_id })
    }

    /// What freezes the target: `cgroup.freeze` where its v2 cgroup holds its tasks, else the v1 freezer. `None`: it has no cgroup of its
    /// own (its init is in the root cgroup, or shares one with the engine or the runtime), so the freezer gate cannot be used.
    #[must_use]
    pub fn freezer(&self) -> Option<Freezer> {
        if let Some(dir) = self.v2.as_ref().filter(|d| d.join("cgroup.freeze").exists()) {
            return Some(Freezer::V2(dir.clone()));
        }
        self.freezer_v1.as_ref().filter(|d| d.join("freezer.state").exists()).cloned().map(Freezer::V1)
    }

    /// Whether somebody has paused the target, with either freezer: in hybrid mode runtimes pause with v1.
    ///
    /// # Errors
    /// When a cgroup file cannot be read.
    pub fn is_frozen(&self) -> io::Result<bool> {
        if let Some(dir) = &self.v2 {
            let events = fs::read_to_string(dir.join("cgroup.events"))?;
            if events.lines().any(|l| l == "frozen 1") {
                return Ok(true);
            }
        }
        if let Some(dir) = &self.freezer_v1 {
            return Ok(fs::read_to_string(dir.join("freezer.state"))?.trim() != "THAWED");
        }
        Ok(false)
    }

    /// Every process in the subtrees of its cgroups.
    ///
    /// # Errors
    /// When a cgroup file cannot be read for another reason than that it went away.
    pub fn processes(&self) -> io::Result<HashSet<Pid>> {
        let mut all = HashSet::new();
        for dir in self.v2.iter().chain(&self.freezer_v1) {
            all.extend(members(dir)?);
        }
        Ok(all)
    }
}

/// The directories of all control groups of a process, of every hierarchy of both versions that is mounted here; a root cgroup too. Whoever
/// joins them all is frozen, limited and accounted like that process.
///
/// # Errors
/// When `/proc` does not answer.
pub fn all_of(process: Pid) -> io::Result<Vec<PathBuf>> {
    let mounts = process::mounts(Pid::own())?;
    let text = fs::read(process::dir(process).join("cgroup"))?;
    Ok(directories(&text, &mounts))
}

fn directories(text: &[u8], mounts: &[Mount]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.splitn(3, |b| *b == b':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version2 = number == b"0" && controllers.is_empty();
        // Every controller of the line: `cpu` alone would also match a mount of `cpu,cpuacct` that is another hierarchy.
        let all = |options: &[u8]| {
            controllers.split(|b| *b == b',').all(|c| options.split(|b| *b == b',').any(|o| o == c))
        };
        let fits = |m: &&Mount| match version2 {
            true => m.fs_type == "cgroup2",
            false => m.fs_type == "cgroup" && all(&m.super_options),
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let widest = mounts.iter().filter(fits).min_by_key(|m| m.root.components().count());
        found.extend(widest.and_then(|m| directory(&m.point, &m.root, path)));
    }
    found
}

/// Processes whose stop would be a disaster: the engine, and init's ancestors outside its mount namespace.
fn strangers(init: Pid) -> HashSet<Pid> {
    let mut all = HashSet::from([Pid::own()]);
    let Ok(namespace) = process::namespace(init, "mnt") else { return all };
    let mut pid = init;
    for _ in 0..64 {
        let Ok(stat) = process::stat(pid) else { break };
        pid = stat.parent;
        if pid.0 == 0 {
            break;
        }
        // One that cannot be looked at is no part of the container either.
        if !process::namespace(pid, "mnt").is_ok_and(|n| n == namespace) {
            all.insert(pid);
        }
    }
    all
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Paths {
    v2: Option<PathBuf>,
    freezer_v1: Option<PathBuf>,
}

/// `/proc/PID/cgroup`: `hierarchy:controllers:path` (cgroups(7)). The root cgroup is nobody's own and left out.
fn parse(text: &[u8]) -> Paths {
    let mut paths = Paths::default();
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.splitn(3, |b| *b == b':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        // A path outside the reader's cgroup namespace starts with `/..`: it cannot be reached.
        if path == Path::new("/") || path.components().any(|c| c == Component::ParentDir) {
            continue;
        }
        if number == b"0" && controllers.is_empty() {
            paths.v2 = Some(path.to_owned());
        } else if controllers.split(|b| *b == b',').any(|c| c == b"freezer") {
            paths.freezer_v1 = Some(path.to_owned());
        }
    }
    paths
}

/// The directory of the cgroup `path` in a hierarchy mounted at `point` whose root shows the cgroup `root`.
fn directory(point: &Path, root: &Path, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(root).ok()?;
    Some(point.join(below))
}

/// Every process in a cgroup and below it.
///
/// # Errors
/// When a cgroup file cannot be read for another reason than that it went away.
pub fn members(dir: &Path) -> io::Result<HashSet<Pid>> {
    let mut all = HashSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // A threaded cgroup has no list of processes (EOPNOTSUPP), but one of threads.
        let text = match fs::read_to_string(dir.join("cgroup.procs")) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                fs::read_to_string(dir.join("cgroup.threads"))
            }
            other => other,
        };
        match text {
            // 0: a process outside the engine's PID namespace.
            Ok(text) => all.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|n| *n != 0).map(Pid)),
            // ENODEV: removed while it was read (kernfs).
            Err(e) if process::is_gone(&e) || e.raw_os_error() == Some(libc::ENODEV) => continue,
            Err(e) => return Err(e),
        }
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(entry.path());
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::mountinfo;

    #[test]
    fn v1_v2_and_hybrid() {
        let hybrid = parse(b"9:name=systemd:/\n6:cpu,freezer:/docker/x:y\n0::/docker/x:y\n");
        assert_eq!(hybrid.v2.as_deref(), Some(Path::new("/docker/x:y")));
        assert_eq!(hybrid.freezer_v1.as_deref(), Some(Path::new("/docker/x:y")));
        assert_eq!(parse(b"0::/\n6:freezer:/\n"), Paths::default());
        assert_eq!(parse(b"0::/../../other\n"), Paths::default());
        assert_eq!(parse(b"junk\n::\n1:freezer\n"), Paths::default());
    }

    #[test]
    fn mounts_of_a_subtree_reach_only_below_it() {
        let (point, root) = (Path::new("/sys/fs/cgroup"), Path::new("/docker"));
        let dir = directory(point, root, Path::new("/docker/a"));
        assert_eq!(dir.as_deref(), Some(Path::new("/sys/fs/cgroup/a")));
        assert_eq!(directory(point, root, Path::new("/dockerx/a")), None);
        assert_eq!(directory(point, root, Path::new("/user")), None);
    }

    #[test]
    fn every_hierarchy_of_a_process_is_found() {
        let mounts = mountinfo::parse(
            b"1 0 0:1 / /u rw - cgroup2 c rw\n2 0 0:2 / /f rw - cgroup c rw,freezer\n3 0 0:3 / /c rw - cgroup c rw,cpu,cpuacct\n",
        );
        let text = b"3:cpu,cpuacct:/x\n2:freezer:/\n4:pids:/gone\n0::/x:y\n";
        assert_eq!(directories(text, &mounts), [Path::new("/c/x"), Path::new("/f/"), Path::new("/u/x:y")]);
    }

    #[test]
    fn finds_the_widest_mount() {
        let mounts = mountinfo::parse(
            b"1 0 0:1 /x /a rw - cgroup2 c rw\n2 0 0:1 / /b rw - cgroup2 c rw\n3 0 0:2 / /f rw - cgroup c rw,cpu,freezer\n",
        );
        let found = Hierarchies::among(&mounts);
        assert_eq!(found.v2, Some(("/b".into(), "/".into())));
        assert_eq!(found.freezer_v1, Some(("/f".into(), "/".into())));
    }
}
