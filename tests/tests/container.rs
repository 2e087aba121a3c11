//! Resolving real containers: the demo's, and runc's where it is installed. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use snapshot_engine::container::{self, Error, Freezer, Target, process};
use snapshot_engine::demo::{self, Demo, Job, Rate, Seed, StartOptions, TickMode, Workload, content};

fn root_or_skip() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "root is needed, and this is CI");
    eprintln!("skipped: needs root");
    false
}

/// A demo that is stopped whatever happens.
struct Running(Demo);

impl Running {
    fn start(name: &str, workload: Workload) -> Running {
        let name = format!("{name}-{}", std::process::id());
        let mut options = StartOptions::new(&name);
        options.program = Some(PathBuf::from(env!("CARGO_BIN_EXE_demo-init")));
        options.workload = workload;
        options.seed = Seed { files: 120, bytes: 3 << 20 };
        Running(demo::start(&options).unwrap())
    }
    fn name(&self) -> &str {
        self.0.name()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(e) = demo::stop(self.0.name()) {
            eprintln!("{e}");
        }
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_demo_by_name_prefix_and_pid() {
    if !root_or_skip() {
        return;
    }
    let demo = Running::start("byname", Workload { jobs: vec![Job::Idle, Job::Sleepers { count: 3 }] });
    let init = demo.0.init().unwrap();
    let target = container::resolve(demo.name()).unwrap();
    assert_eq!(target.init, init);
    assert_eq!(target.name.as_deref(), Some(demo.name()));
    assert!(target.is_alive());
    let by_prefix = container::resolve(&demo.name()[..demo.name().len() - 1]).unwrap();
    let by_pid = container::resolve(&init.to_string()).unwrap();
    let by_explicit_pid = container::resolve(&format!("pid:{init}")).unwrap();
    for other in [&by_prefix, &by_pid, &by_explicit_pid] {
        assert_eq!(other.overlay, target.overlay);
        assert_eq!(other.cgroup, target.cgroup);
        assert_eq!(other.mount_namespace, target.mount_namespace);
    }
    assert_eq!(by_explicit_pid.name, None);
    assert_eq!(target.mount_namespace, fs::metadata(format!("/proc/{init}/ns/mnt")).unwrap().ino());
    check_layers(&demo.0, &target);
    check_cgroup(&demo.0, &target);
}

fn check_layers(demo: &Demo, target: &Target) {
    let overlay = &target.overlay;
    assert_eq!(overlay.upper, demo.upper());
    assert_eq!(overlay.work, demo.state.layers.join("work"));
    let lowers: Vec<PathBuf> = (1..=3).rev().map(|n| demo.state.layers.join(format!("lower{n}"))).collect();
    assert_eq!(overlay.lowers, lowers);
    assert!(overlay.data.is_empty() && !overlay.userxattr);
    // What is written inside shows up in the upper, on the device that was found.
    let inside = process::root(target.init).join("written-inside");
    fs::write(&inside, "hello").unwrap();
    let outside = overlay.upper.join("written-inside");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "hello");
    let dev = fs::metadata(&outside).unwrap().dev();
    if overlay.upper_fs != "btrfs" {
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        assert_eq!(overlay.upper_device, u64::from(major) << 20 | u64::from(minor));
    }
    // The seed made every mark overlayfs has.
    let doomed = fs::symlink_metadata(overlay.upper.join("srv/doomed")).unwrap();
    assert_eq!((doomed.rdev(), doomed.mode() & 0o170_000), (0, 0o020_000));
    let mut value = [0u8; 8];
    let opaque =
        rustix::fs::lgetxattr(overlay.upper.join("srv/opaque"), "trusted.overlay.opaque", &mut value);
    assert_eq!(&value[..opaque.unwrap()], b"y");
    assert!(!process::root(target.init).join("srv/spare/2").exists());
    assert_eq!(fs::read_to_string(process::root(target.init).join("etc/layer")).unwrap(), "3\n");
    // Its mount is in no other namespace.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&demo.state.name));
}

fn check_cgroup(demo: &Demo, target: &Target) {
    assert_eq!(target.cgroup.v2, demo.state.cgroup_v2);
    assert_eq!(target.cgroup.freezer_v1, demo.state.freezer_v1);
    let v2 = target.cgroup.v2.as_ref().expect("cgroup2 is mounted");
    assert_eq!(target.cgroup.v2_id, Some(fs::metadata(v2).unwrap().ino()));
    assert_eq!(target.cgroup.freezer(), Some(Freezer::V2(v2.clone())));
    let tasks = container::tasks(target).unwrap();
    let pids: HashSet<_> = tasks.iter().map(|t| t.pid).collect();
    // The init, the idle one and three sleepers.
    assert_eq!(pids.len(), 5);
    assert!(pids.contains(&target.init));
    assert!(!target.cgroup.is_frozen().unwrap());
    fs::write(v2.join("cgroup.freeze"), "1").unwrap();
    eventually("frozen", || target.cgroup.is_frozen().unwrap());
    fs::write(v2.join("cgroup.freeze"), "0").unwrap();
    eventually("thawed", || !target.cgroup.is_frozen().unwrap());
    if let Some(v1) = &target.cgroup.freezer_v1 {
        fs::write(v1.join("freezer.state"), "FROZEN").unwrap();
        assert!(target.cgroup.is_frozen().unwrap());
        // Left frozen: stopping must cope.
    }
}

#[test]
fn stop_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    let workload = "log:medium,database=1:medium,churn:flat,flatout,mmap,idle".parse().unwrap();
    let demo = Running::start("nothing", workload);
    let state = demo.0.state.clone();
    let target = container::resolve(demo.name()).unwrap();
    let tasks = container::tasks(&target).unwrap();
    assert_eq!(tasks.len(), 7);
    assert!(matches!(demo::start(&StartOptions::new(demo.name())), Err(demo::Error::Exists(_))));
    // The jobs come to grief if their second round does not follow from the first.
    eventually("the churn runs", || state.layers.join("upper/srv/churn-2/file-15").exists());
    std::thread::sleep(Duration::from_secs(1));
    let log = fs::read_to_string(demo::state::dir(&state.name).join("log")).unwrap();
    assert_eq!(log, "", "a job failed");
    demo::stop(&state.name).unwrap();
    demo::stop(&state.name).unwrap();
    for task in tasks {
        let inside = process::namespace(task.pid, "mnt").is_ok_and(|n| n == target.mount_namespace);
        assert!(!inside, "{task:?} still lives");
    }
    let places =
        [Some(state.layers.clone()), state.cgroup_v2, state.freezer_v1, Some(demo::state::dir(&state.name))];
    for place in places.into_iter().flatten() {
        assert!(!place.exists(), "{}", place.display());
    }
    assert!(matches!(demo::load(&state.name), Err(demo::Error::NotFound(_))));
    assert!(matches!(container::resolve(&state.name), Err(Error::NotFound { .. })));
    assert!(!target.is_alive());
}

#[test]
fn the_jobs_write_what_can_be_checked() {
    if !root_or_skip() {
        return;
    }
    let rate = Rate::Medium;
    let tick = Job::Tick { mode: TickMode::Sleep };
    let jobs = vec![Job::Log { files: 2, rate }, Job::Database { mib: 1, rate }, tick];
    let demo = Running::start("jobs", Workload { jobs });
    let upper = demo.0.upper();
    eventually("lines and pages", || {
        let log = fs::read(upper.join("var/log/0-1.log")).unwrap_or_default();
        let page = fs::read(upper.join("var/1.db")).unwrap_or_default();
        log.len() >= 3 * content::LINE && page.len() >= 3 * content::PAGE
    });
    let log = fs::read(upper.join("var/log/0-1.log")).unwrap();
    assert_eq!(content::check_line(&log[content::LINE..][..content::LINE]), Some(3));
    let db = fs::read(upper.join("var/1.db")).unwrap();
    let page = content::check_page(&db[content::PAGE..][..content::PAGE]).unwrap();
    assert_eq!(page % 256, 1);
}

#[test]
fn the_ticker_sees_a_freeze() {
    if !root_or_skip() {
        return;
    }
    let demo = Running::start("ticker", "tick,spin,write-tick".parse().unwrap());
    let tickers = demo::tickers(demo.name()).unwrap();
    eventually("ticks", || tickers.reports().iter().all(|r| r.count > 10));
    tickers.reset().unwrap();
    let target = container::resolve(demo.name()).unwrap();
    let Some(Freezer::V2(dir)) = target.cgroup.freezer() else { panic!("no v2 cgroup") };
    let from = demo::ticks::now_ns();
    fs::write(dir.join("cgroup.freeze"), "1").unwrap();
    eventually("frozen", || target.cgroup.is_frozen().unwrap());
    let frozen = demo::ticks::now_ns();
    std::thread::sleep(Duration::from_millis(50));
    fs::write(dir.join("cgroup.freeze"), "0").unwrap();
    eventually("ticks again", || tickers.reports().iter().all(|r| r.last_ns > frozen + 50_000_000));
    for report in demo::ticks(demo.name()).unwrap() {
        assert!(report.started_ns <= from, "{report:?}");
        assert!(report.max_gap_ns >= 50_000_000, "{report:?}");
        let total: u64 = report.histogram.iter().map(|(_, n)| n).sum();
        assert!(total > 0 && report.quantile_ns(1.0) <= report.max_gap_ns);
    }
}

#[test]
fn a_dead_demo_is_reported_and_can_be_cleared() {
    if !root_or_skip() {
        return;
    }
    let demo = Running::start("dead", Workload::idle());
    let init = demo.0.init().unwrap();
    let pid = rustix::process::Pid::from_raw(init.0.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("dead", || !process::is_alive(init, demo.0.state.start));
    assert!(!demo::load(demo.name()).unwrap().running);
    assert!(matches!(container::resolve(demo.name()), Err(Error::NotRunning { .. })));
    assert!(matches!(demo::ticks(demo.name()), Err(demo::Error::Dead(_))));
    demo::stop(demo.name()).unwrap();
    assert!(matches!(demo::load(demo.name()), Err(demo::Error::NotFound(_))));
}

#[test]
fn a_shared_prefix_is_ambiguous_and_a_host_process_no_container() {
    if !root_or_skip() {
        return;
    }
    let a = Running::start("same-a", Workload::idle());
    let b = Running::start("same-b", Workload::idle());
    match container::resolve("same-") {
        Err(Error::Ambiguous { candidates, .. }) => {
            assert!(candidates.iter().any(|c| c.contains(a.name())));
            assert!(candidates.iter().any(|c| c.contains(b.name())));
        }
        other => panic!("{other:?}"),
    }
    let both: Vec<String> = demo::list().unwrap().iter().map(|d| d.name().to_owned()).collect();
    assert!(both.contains(&a.name().to_owned()) && both.contains(&b.name().to_owned()));
    assert!(matches!(container::resolve("sa"), Err(Error::NotFound { .. })));
    // This test is a process of the host, unless the whole test runs in a container.
    let own = container::resolve(&format!("pid:{}", std::process::id()));
    if rustix::fs::statfs("/").unwrap().f_type != 0x794c_7630 {
        assert!(matches!(own, Err(Error::NotOverlay { .. })), "{own:?}");
    }
}

#[test]
fn a_demo_that_cannot_start_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    let name = format!("cannot-{}", std::process::id());
    let mut options = StartOptions::new(&name);
    options.program = Some(PathBuf::from("/bin/false"));
    let error = demo::start(&options).unwrap_err();
    assert!(matches!(error, demo::Error::NotStarted { .. }), "{error}");
    assert!(!demo::state::dir(&name).exists());
    assert!(!Path::new(demo::LAYERS_ROOT).join(&name).exists());
}

/// A runc container with an overlay root made of busybox, removed whatever happens.
struct Runc {
    id: String,
    dir: tempfile::TempDir,
}

impl Runc {
    fn start() -> Option<Runc> {
        let runc = Command::new("runc").arg("--version").output().is_ok();
        let busybox = Path::new("/bin/busybox");
        if !runc || !busybox.exists() {
            assert!(std::env::var_os("CI").is_none(), "runc and busybox are needed, and this is CI");
            eprintln!("skipped: needs runc and busybox-static");
            return None;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let runc = Runc { id: format!("runc-test-{}", std::process::id()), dir };
        let path = runc.dir.path();
        // A comma and a colon in the path go through both layers of escapes.
        for name in ["lo:w,er/bin", "lower2", "upper", "work", "rootfs"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        for name in ["proc", "sys", "dev"] {
            fs::create_dir(path.join("lower2").join(name)).unwrap();
        }
        fs::copy(busybox, path.join("lo:w,er/bin/busybox")).unwrap();
        let at = path.display();
        let data = format!(r"lowerdir={at}/lower2:{at}/lo\:w\,er,upperdir={at}/upper,workdir={at}/work");
        rustix::mount::mount(
            "overlay",
            path.join("rootfs"),
            "overlay",
            rustix::mount::MountFlags::empty(),
            std::ffi::CString::new(data).unwrap().as_c_str(),
        )
        .unwrap();
        runc.write_spec();
        let log = fs::File::create(path.join("log")).unwrap();
        let status = Command::new("runc")
            .args(["run", "--detach", "--bundle"])
            .arg(path)
            .arg(&runc.id)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap();
        assert!(status.success(), "{}", fs::read_to_string(path.join("log")).unwrap());
        Some(runc)
    }

    fn write_spec(&self) {
        let path = self.dir.path();
        assert!(Command::new("runc").arg("spec").current_dir(path).status().unwrap().success());
        let spec = path.join("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&spec).unwrap()).unwrap();
        json["process"]["args"] = serde_json::json!(["/bin/busybox", "sleep", "1000"]);
        json["process"]["terminal"] = false.into();
        json["process"]["rlimits"] = serde_json::json!([]);
        json["root"]["readonly"] = false.into();
        json["linux"]["cgroupsPath"] = format!("/{}", self.id).into();
        fs::write(&spec, serde_json::to_vec(&json).unwrap()).unwrap();
    }

    fn run(&self, arguments: &[&str]) {
        assert!(Command::new("runc").args(arguments).status().unwrap().success(), "runc {arguments:?}");
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).status();
        let _ = rustix::mount::unmount(self.dir.path().join("rootfs"), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_runc_container_by_id() {
    if !root_or_skip() {
        return;
    }
    let Some(runc) = Runc::start() else { return };
    let target = container::resolve(&runc.id).unwrap();
    let path = runc.dir.path();
    assert_eq!(target.overlay.upper, path.join("upper"));
    assert_eq!(target.overlay.lowers, [path.join("lower2"), path.join("lo:w,er")]);
    assert_eq!(target.config.command, ["/bin/busybox", "sleep", "1000"]);
    assert_eq!(target.config.workdir, "/");
    assert!(target.config.env.iter().any(|e| e.starts_with("PATH=")));
    assert!(target.cgroup.freezer().is_some());
    // Until it has executed busybox, the init is runc's own, with several threads.
    eventually("one task", || container::tasks(&target).unwrap().len() == 1);
    assert!(!target.cgroup.is_frozen().unwrap());
    runc.run(&["pause", &runc.id]);
    assert!(target.cgroup.is_frozen().unwrap());
    runc.run(&["resume", &runc.id]);
    assert!(!target.cgroup.is_frozen().unwrap());
    runc.run(&["kill", &runc.id, "KILL"]);
    eventually("dead", || !target.is_alive());
    assert!(matches!(container::resolve(&runc.id), Err(Error::NotRunning { .. })));
}

/// `mount` run in `dir`, then busybox sleeping with that mount as its root; undone whatever happens.
struct Chroot {
    dir: tempfile::TempDir,
    child: Option<std::process::Child>,
}

impl Chroot {
    fn start(options: &str) -> Option<Chroot> {
        if !Path::new("/bin/busybox").exists() {
            assert!(std::env::var_os("CI").is_none(), "busybox is needed, and this is CI");
            eprintln!("skipped: needs busybox-static");
            return None;
        }
        let mut chroot = Chroot { dir: tempfile::tempdir_in("/var/tmp").unwrap(), child: None };
        let path = chroot.dir.path();
        for name in ["base/diff/bin", "top/diff", "x/diff", "x/work", "x/merged", "l"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", path.join("base/diff/bin/busybox")).unwrap();
        std::os::unix::fs::symlink("../base/diff", path.join("l/AAA")).unwrap();
        std::os::unix::fs::symlink("../top/diff", path.join("l/BBB")).unwrap();
        let mut mount = Command::new("/bin/busybox");
        mount.args(["mount", "-t", "overlay", "-o", options, "overlay", "x/merged"]).current_dir(path);
        assert!(mount.status().unwrap().success());
        let mut sleep = Command::new("/bin/busybox");
        sleep.args(["chroot", "x/merged", "/bin/busybox", "sleep", "1000"]).current_dir(path);
        chroot.child = Some(sleep.spawn().unwrap());
        let pid = chroot.child.as_ref().unwrap().id();
        let root = chroot.dir.path().join("x/merged");
        eventually("chroot", || fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|r| r == root));
        Some(chroot)
    }

    fn resolve(&self) -> Result<Target, Error> {
        container::resolve(&format!("pid:{}", self.child.as_ref().unwrap().id()))
    }
}

impl Drop for Chroot {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let merged = self.dir.path().join("x/merged");
        let _ = rustix::mount::unmount(merged, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn relative_layers_through_links_and_no_cgroup_of_its_own() {
    if !root_or_skip() {
        return;
    }
    let options = "lowerdir=l/BBB:l/AAA,upperdir=x/diff,workdir=x/work";
    let Some(chroot) = Chroot::start(options) else { return };
    let target = chroot.resolve().unwrap();
    let path = chroot.dir.path();
    assert_eq!(target.overlay.upper, path.join("x/diff"));
    assert_eq!(target.overlay.lowers, [path.join("top/diff"), path.join("base/diff")]);
    // It shares the test's cgroup, which must never be frozen.
    assert_eq!(target.cgroup.freezer(), None);
}

#[test]
fn a_replaced_upper_and_a_read_only_overlay_are_refused() {
    if !root_or_skip() {
        return;
    }
    let options = "lowerdir=l/BBB:l/AAA,upperdir=x/diff,workdir=x/work";
    let Some(chroot) = Chroot::start(options) else { return };
    let upper = chroot.dir.path().join("x/diff");
    fs::rename(&upper, chroot.dir.path().join("x/away")).unwrap();
    assert!(matches!(chroot.resolve(), Err(Error::UpperMissing { .. })));
    fs::create_dir(&upper).unwrap();
    assert!(matches!(chroot.resolve(), Err(Error::UpperMissing { .. })));
    drop(chroot);
    let Some(chroot) = Chroot::start("lowerdir=l/BBB:l/AAA") else { return };
    assert!(matches!(chroot.resolve(), Err(Error::ReadOnlyOverlay { .. })));
}

/// A layer that is mounted in another namespace looks like this: its mount point is there, and empty.
#[test]
fn a_lower_that_cannot_be_seen_is_not_taken_for_an_empty_one() {
    if !root_or_skip() {
        return;
    }
    let options = "lowerdir=l/BBB:l/AAA,upperdir=x/diff,workdir=x/work";
    let Some(chroot) = Chroot::start(options) else { return };
    chroot.resolve().unwrap();
    let base = chroot.dir.path().join("base/diff");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &base, "tmpfs", flags, None).unwrap();
    let refused = chroot.resolve();
    rustix::mount::unmount(&base, rustix::mount::UnmountFlags::DETACH).unwrap();
    let Err(Error::LayerMissing { name, layers, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((name.as_str(), layers.len()), ("bin", 3));
    chroot.resolve().unwrap();
}
