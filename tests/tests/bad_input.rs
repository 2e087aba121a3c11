//! What is asked for cannot be had: each reason has its own message and exit code, and nothing is left behind. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use snapshot_engine::container;
use snapshot_engine::demo::Seed;
use snapshot_tests::bench;
use snapshot_tests::engine::{self, Ended, Started, engine, run, run_under};
use snapshot_tests::host;
use snapshot_tests::root_or_skip;
use snapshot_tests::running::Running;

const INIT: &str = env!("CARGO_BIN_EXE_demo-init");
const SEED: Seed = Seed { files: 20, bytes: 1 << 20 };

/// A place for a store and a layout, and a look at what is left in it.
struct Place {
    dir: tempfile::TempDir,
    programs: BTreeSet<u32>,
}

impl Place {
    fn new() -> Result<Place> {
        let programs = host::programs();
        Ok(Place { dir: tempfile::Builder::new().prefix("snapshot-bad-").tempdir()?, programs })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    fn target(&self) -> String {
        format!("oci:{}:t", self.path().join("layout").display())
    }

    fn args<'a>(&self, who: &'a str, more: &[&'a str]) -> Vec<String> {
        let mut args = vec!["commit".to_owned(), who.to_owned(), self.target(), "--wait".to_owned()];
        args.extend(["--work-dir".to_owned(), self.work().to_string_lossy().into_owned()]);
        args.extend(more.iter().map(|s| (*s).to_owned()));
        args
    }

    fn commit(&self, who: &str, more: &[&str]) -> Result<Ended> {
        run(self.args(who, more))
    }

    fn commit_under(&self, wrapper: &[&str], who: &str, more: &[&str]) -> Result<Ended> {
        let args = self.args(who, more);
        run_under(wrapper, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// No process, program or mount is left, no snapshot, no image.
    fn must_be_empty(&self) -> Result<()> {
        host::must_be_clean(&self.programs, self.path())?;
        ensure!(!self.path().join("layout").exists(), "a layout was made");
        let snapshots = self.work().join("snapshot-engine/snapshots");
        if snapshots.exists() {
            let left: Vec<_> = fs::read_dir(&snapshots)?.flatten().map(|e| e.file_name()).collect();
            ensure!(left.is_empty(), "left in the store: {left:?}");
        }
        Ok(())
    }
}

/// A mounted tmpfs that goes away with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: &Path, size: &str) -> Result<Tmpfs> {
        fs::create_dir_all(at)?;
        let options = std::ffi::CString::new(format!("size={size},mode=755"))?;
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(Tmpfs(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A process that ends with the test.
struct Sleeper(Child);

impl Sleeper {
    /// `script` must end in a `sleep`, which is waited for.
    fn start(script: &str, argument: &Path) -> Result<Sleeper> {
        let child = Command::new("unshare")
            .args(["-m", "sh", "-ec", script, "sh"])
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut sleeper = Sleeper(child);
        let began = Instant::now();
        let exe = format!("/proc/{}/exe", sleeper.0.id());
        while !fs::read_link(&exe).is_ok_and(|exe| exe.ends_with("sleep")) {
            ensure!(began.elapsed() < Duration::from_secs(10), "{script} does not get to its sleep");
            ensure!(sleeper.0.try_wait()?.is_none(), "{script} failed");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(sleeper)
    }

    fn reference(&self) -> String {
        format!("pid:{}", self.0.id())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_such_container() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let place = Place::new()?;
    place.commit("nobody-has-this-name", &[])?.must_fail(3, &["no container matches"])?;
    place.commit("pid:4194000", &[])?.must_fail(3, &["no container matches"])?;
    let demo = Running::start(INIT, "bad-dead", "tick", SEED)?;
    fs::write(demo.cgroup()?.join("cgroup.kill"), "1")?;
    let began = Instant::now();
    while fs::read_to_string(demo.cgroup()?.join("cgroup.events"))?.contains("populated 1") {
        ensure!(began.elapsed() < Duration::from_secs(10), "it does not die");
        std::thread::sleep(Duration::from_millis(5));
    }
    place.commit(demo.name(), &[])?.must_fail(3, &["is not running", "start it again"])?;
    place.must_be_empty()
}

#[test]
fn a_root_that_is_no_writable_overlay() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let place = Place::new()?;
    let plain = Sleeper::start(
        "mount -t tmpfs t $1; mkdir $1/root; mount --bind / $1/root; exec chroot $1/root sleep 1000",
        place.path(),
    )?;
    let own = fs::read_to_string("/proc/self/mountinfo")?;
    if !own.lines().any(|line| line.contains(" / / ") && line.contains(" - overlay ")) {
        place.commit(&plain.reference(), &[])?.must_fail(1, &["not an overlay", "overlay storage driver"])?;
    }
    // The sleeper's mounts are its own, so its lowers are not in our way here.
    let read_only = Sleeper::start(
        "mount -t tmpfs t $1; mkdir $1/top $1/root; mount -t overlay o -o lowerdir=$1/top:/ $1/root; exec chroot $1/root sleep 1000",
        place.path(),
    )?;
    place.commit(&read_only.reference(), &[])?.must_fail(1, &["read-only", "no upperdir"])?;
    place.must_be_empty()
}

#[test]
fn an_upper_without_a_backend_works_without_a_tracker() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let place = Place::new()?;
    let layers = tempfile::Builder::new().prefix("snapshot-layers-").tempdir()?;
    let _tmpfs = Tmpfs::new(layers.path(), "256m")?;
    let seed = Seed { files: 100, bytes: 16 << 20 };
    let demo = Running::start_in(INIT, "bad-tmpfs", "write-tick,log:light", seed, Some(layers.path()))?;
    // Where fentry is allowed there is a backend.
    if bench::tracker_if_allowed(&[&container::resolve(demo.name())?])?.is_none() {
        place.commit(demo.name(), &[])?.must_fail(1, &["lies on tmpfs", "fentry", "--tracker none"])?;
    }
    place.must_be_empty()?;
    for pause in ["1us", "2ms"] {
        let ended = place.commit(demo.name(), &["--tracker", "none", "--max-pause", pause])?;
        ended.must_fail(1, &["larger --max-pause"])?;
        demo.goes_on()?;
        place.must_be_empty()?;
    }
    place.commit(demo.name(), &["--tracker", "none", "--max-pause", "10s"])?.must_succeed()?;
    demo.goes_on()?;
    host::must_be_clean(&place.programs, place.path())
}

#[test]
fn a_kernel_without_btf_and_a_root_without_its_privileges() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let place = Place::new()?;
    let demo = Running::start(INIT, "bad-bpf", "write-tick", SEED)?;
    let hide = ["unshare", "-m", "sh", "-ec", "mount -t tmpfs t /sys/kernel/btf; exec \"$@\"", "sh"];
    place.commit_under(&hide, demo.name(), &[])?.must_fail(1, &["no BTF", "--tracker none"])?;
    place.must_be_empty()?;
    for (drop, name) in [
        ("-sys_admin", "CAP_SYS_ADMIN"),
        ("-sys_admin,-bpf,-perfmon", "CAP_SYS_ADMIN"),
        ("-dac_read_search,-dac_override", "CAP_DAC_READ_SEARCH"),
    ] {
        let (bounding, inheritable) = (format!("--bounding-set={drop}"), format!("--inh-caps={drop}"));
        let less = ["setpriv", &bounding, &inheritable];
        place.commit_under(&less, demo.name(), &[])?.must_fail(4, &[name, "help: "])?;
    }
    place.must_be_empty()?;
    demo.goes_on()?;
    // What the hint says works.
    place.commit_under(&hide, demo.name(), &["--tracker", "none", "--max-pause", "10s"])?.must_succeed()?;
    demo.goes_on()
}

/// From a disk without room for anything to one with room for all: every stage in between runs out once.
#[test]
fn a_full_disk() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let demo = Running::start(INIT, "bad-full", "write-tick", Seed { files: 30, bytes: 3 << 20 })?;
    let (mut cut, mut image, mut whole) = (0, 0, 0);
    for kib in [48, 256, 1024, 2048, 3072, 3400, 3800, 4200, 4800, 5500, 6500, 8000, 10_000, 32_000] {
        let place = Place::new()?;
        let disk = Tmpfs::new(&place.work(), &format!("{kib}k"))?;
        let ended = place.commit(demo.name(), &["--compressor", "none", "--max-pause", "50ms"])?;
        if ended.code == Some(0) {
            whole += 1;
        } else {
            ended.must_fail(1, &["No space left"]).with_context(|| format!("{kib} KiB"))?;
            ensure!(
                ["there is no room", "free some space"].iter().any(|hint| ended.stderr.contains(hint)),
                "{kib} KiB: no remedy: {ended:#?}"
            );
            let listed = engine::list(&place.work())?;
            if let [snapshot] = &listed[..] {
                image += 1;
                let id = snapshot["snapshot_id"].as_str().context("no id")?;
                let work = place.work();
                run(["remove", id, "--work-dir", &work.to_string_lossy()])?.must_succeed()?;
            } else {
                cut += 1;
            }
            let snapshots = place.work().join("snapshot-engine/snapshots");
            if snapshots.exists() {
                let left: Vec<_> = fs::read_dir(&snapshots)?.flatten().map(|e| e.file_name()).collect();
                ensure!(left.is_empty(), "{kib} KiB: left in the store: {left:?}");
            }
        }
        demo.goes_on()?;
        drop(disk);
        host::must_be_clean(&place.programs, place.path())?;
    }
    println!("ran out before the cut {cut}, while making the image {image}, never {whole}");
    ensure!(cut >= 3 && image >= 1 && whole >= 1, "cut {cut}, image {image}, whole {whole}");
    Ok(())
}

#[test]
fn a_work_directory_that_is_not_ours() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let demo = Running::start(INIT, "bad-work", "write-tick", SEED)?;
    let place = Place::new()?;
    fs::create_dir(place.work())?;
    let store = place.work().join("snapshot-engine");
    fs::create_dir(&store)?;
    std::os::unix::fs::chown(&store, Some(65534), None)?;
    place.commit(demo.name(), &[])?.must_fail(4, &["belongs to user 65534", "--work-dir"])?;
    fs::remove_dir(&store)?;
    symlink(place.path(), &store)?;
    place.commit(demo.name(), &[])?.must_fail(1, &["is not a directory", "--work-dir"])?;
    fs::remove_file(&store)?;
    {
        let read_only = Tmpfs::new(&place.work(), "1m")?;
        rustix::mount::mount_remount(&read_only.0, MountFlags::RDONLY, "")?;
        place.commit(demo.name(), &[])?.must_fail(4, &["Read-only file system", "help: "])?;
    }
    let inside = demo.demo.upper().join("tmp");
    let inside = inside.to_string_lossy();
    let ended = run(["commit", demo.name(), &place.target(), "--work-dir", &inside])?;
    ended.must_fail(1, &["inside the upperdir", "--work-dir"])?;
    demo.goes_on()?;
    place.must_be_empty()
}

#[test]
fn a_target_that_cannot_be_used() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let demo = Running::start(INIT, "bad-target", "write-tick", SEED)?;
    let place = Place::new()?;
    let layout = place.path().join("layout");
    fs::create_dir(&layout)?;
    fs::write(layout.join("letter"), "dear diary")?;
    let slow = ["--max-pause", "50ms"];
    place.commit(demo.name(), &slow)?.must_fail(1, &["other things than an OCI image layout", "help: "])?;
    fs::remove_dir_all(&layout)?;
    place.commit(demo.name(), &slow)?.must_succeed()?;
    place.commit(demo.name(), &slow)?.must_fail(1, &["exists", "--overwrite"])?;
    ensure!(engine::list(&place.work())?.len() == 1, "the refused one is listed");
    place.commit(demo.name(), &["--overwrite", "--max-pause", "50ms"])?.must_succeed()?;
    for pause in ["0", "0s", "-5ms", "soon", "2h", "5"] {
        let ended = place.commit(demo.name(), &[&format!("--max-pause={pause}")])?;
        ensure!(ended.code == Some(2) && !ended.stderr.is_empty(), "{pause}: {ended:#?}");
    }
    let ended = place.commit(demo.name(), &["--tracker", "none", "--gate", "fence"])?;
    ended.must_fail(2, &["needs the tracker", "--gate freezer"])?;
    host::must_be_clean(&place.programs, place.path())
}

/// The container, or its init alone, is killed while it is copied.
#[test]
fn a_container_that_dies_meanwhile() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let place = Place::new()?;
    for (turn, percent) in [5, 20, 35, 50, 60, 70, 80, 90].into_iter().enumerate() {
        let seed = Seed { files: 60, bytes: 24 << 20 };
        let demo = Running::start(INIT, "bad-dying", "write-tick,log:medium", seed)?;
        let gate = ["auto", "fence", "freezer", "auto"][turn % 4];
        let mut command =
            engine(place.args(demo.name(), &["--overwrite", "--gate", gate, "--max-pause", "50ms"]));
        let run = Started::new(&mut command)?;
        std::thread::sleep(Duration::from_millis(7 * percent));
        if turn % 2 == 0 {
            fs::write(demo.cgroup()?.join("cgroup.kill"), "1")?;
        } else {
            let init = rustix::process::Pid::from_raw(i32::try_from(demo.init()?)?).context("no init")?;
            rustix::process::kill_process(init, rustix::process::Signal::KILL)?;
        }
        let ended = run.end()?;
        // A tree that nobody writes any more can be cut as well as another; what must not be is a hang, a panic or a remnant.
        ensure!(matches!(ended.code, Some(0 | 1 | 3)), "{percent}%: {ended:#?}");
        ensure!(!ended.stderr.contains("panicked"), "{percent}%: {ended:#?}");
        host::must_be_clean(&place.programs, place.path())?;
        drop(demo);
    }
    let listed = engine::list(&place.work())?.len();
    let found = fs::read_dir(place.work().join("snapshot-engine/snapshots"))?.count();
    ensure!(listed == found, "{found} directories, {listed} snapshots");
    Ok(())
}

#[test]
fn a_container_its_owner_has_paused_stays_paused() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let demo = Running::start(INIT, "bad-paused", "write-tick,log:medium", SEED)?;
    let place = Place::new()?;
    demo.freeze(true)?;
    for more in
        [&[][..], &["--gate", "freezer"], &["--gate", "fence"], &["--gate", "none"], &["--tracker", "none"]]
    {
        let mut args = vec!["--overwrite", "--output", "json"];
        args.extend(more);
        let result = place.commit(demo.name(), &args)?.must_succeed()?.json()?;
        ensure!(result["gate"] == "none" && result["pause_time"]["ns"] == 0, "{more:?}: {result:#}");
        ensure!(demo.frozen()?, "{more:?}: it was thawed");
    }
    demo.freeze(false)?;
    demo.goes_on()?;
    host::must_be_clean(&place.programs, place.path())
}

#[test]
fn a_gate_that_cannot_hold_the_container() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let place = Place::new()?;
    let demo = Running::start(INIT, "bad-mapped", "mmap:medium,tick", SEED)?;
    // A mapping needs a moment to be there.
    std::thread::sleep(Duration::from_millis(200));
    for gate in ["fence", "none"] {
        let ended = place.commit(demo.name(), &["--gate", gate, "--max-pause", "50ms"])?;
        ended.must_fail(1, &["map", "freezer"])?;
        place.must_be_empty()?;
    }
    demo.goes_on()?;
    // Its cgroup holds somebody else as well, its own runtime for one: freezing it would stop more than the container.
    let neighbour = Running::start(INIT, "bad-shared", "write-tick", SEED)?;
    let init = neighbour.init()?;
    let state = &neighbour.demo.state;
    for cgroup in state.cgroup_v2.iter().chain(&state.freezer_v1) {
        let procs = cgroup.parent().context("no parent")?.join("cgroup.procs");
        fs::write(&procs, init.to_string())?;
    }
    let ended = place.commit(neighbour.name(), &["--gate", "freezer", "--max-pause", "50ms"])?;
    ended.must_fail(1, &["freezer", "cgroup"])?;
    neighbour.goes_on()?;
    place.must_be_empty()
}
