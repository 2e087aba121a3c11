//! The window: what it costs with nothing to do, and what each inode and KiB adds.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use snapshot_benches::figures::Figures;
use snapshot_engine::demo::Workload;
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::freeze::reader::now;
use snapshot_engine::freeze::window::Moment;
use snapshot_engine::kernel::scheduling::RealTime;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_engine::pipeline::session::{Made, Session};
use snapshot_tests::bench::{self, Disk, Running};

const CUTS: usize = 200;
/// Inodes, KiB of each.
const RESIDUALS: [(usize, usize); 6] = [(1, 4), (1, 64), (1, 256), (10, 4), (100, 4), (10, 64)];

static DRAINED: AtomicU64 = AtomicU64::new(0);
static CAPTURED: AtomicU64 = AtomicU64::new(0);
/// What is written once the gate is up, so that it can only be captured inside the window: files, bytes of each.
static RESIDUAL: Mutex<(Vec<File>, usize)> = Mutex::new((Vec::new(), 0));

/// Runs inside the window; the engine's own thread stands for a writer outside the container, whom the fence does not hold.
fn probe(moment: Moment) {
    match moment {
        Moment::Raised => {
            if let Ok(residual) = RESIDUAL.lock() {
                let data = [7; 256 << 10];
                for file in &residual.0 {
                    let _ = file.write_all_at(&data[..residual.1], 0);
                }
            }
        }
        Moment::Drained => DRAINED.store(now(), Relaxed),
        Moment::Captured => CAPTURED.store(now(), Relaxed),
        Moment::Validated => {}
    }
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

pub(crate) fn session(disk: &Disk, demo: &Running, choice: GateChoice, probed: bool) -> Result<Session> {
    let work = disk.path().join(bench::unique("work"));
    let budget = Duration::from_millis(20);
    let policy = Policy { choice, budget, probe: probed.then_some(probe as fn(Moment)), ..Policy::default() };
    bench::session(demo.target()?, &work, policy, 0)
}

fn start(disk: &Disk, workload: &str) -> Result<Running> {
    let program = std::env::current_exe()?;
    let workload: Workload = workload.parse()?;
    Running::start(&program.to_string_lossy(), disk, workload)
}

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    for fs in ["ext4", "xfs"] {
        let disk = Disk::new(fs)?;
        let demo = start(&disk, "idle")?;
        null(figures, fs, &disk, &demo)?;
        residuals(figures, fs, &disk, &demo)?;
    }
    for workload in ["database:light", "database:medium", "flatout=1", "flatout=2"] {
        let disk = Disk::new("ext4")?;
        let demo = start(&disk, workload)?;
        drain(figures, workload, &disk, &demo)?;
    }
    Ok(())
}

/// Nothing is dirty.
fn null(figures: &mut Figures, fs: &str, disk: &Disk, demo: &Running) -> Result<()> {
    for choice in [GateChoice::None, GateChoice::Fence] {
        let mut session = session(disk, demo, choice, false)?;
        let cuts = (0..CUTS).map(|_| Ok(micros(session.cut(&Quiet)?.pause.window))).collect::<Result<_>>()?;
        figures.add(&format!("{fs}: null window, {choice}"), "us", cuts);
    }
    Ok(())
}

/// Capturing a residual against reading the same bytes outside of any window.
fn residuals(figures: &mut Figures, fs: &str, disk: &Disk, demo: &Running) -> Result<()> {
    let most = RESIDUALS.iter().map(|r| r.0).max().context("no residuals")?;
    let open = |n| {
        let path = demo.upper().join(format!("srv/residual-{n}"));
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
    };
    let files = (0..most).map(open).collect::<std::io::Result<Vec<File>>>()?;
    files.iter().try_for_each(|f| f.write_all_at(&[1; 256 << 10], 0))?;
    let mut session = session(disk, demo, GateChoice::Fence, true)?;
    let empty: Vec<f64> = (0..CUTS).map(|_| Ok(capture(&session.cut(&Quiet)?))).collect::<Result<_>>()?;
    let empty = figures.add(&format!("{fs}: capture of nothing"), "us", empty);
    // The window without its capture: raising, draining, validating, lowering.
    let mut frame = Vec::new();
    for (inodes, kib) in RESIDUALS {
        // Dirty in the round before, so that each has its descriptor.
        files[..inodes].iter().try_for_each(|f| f.write_all_at(&[2; 4096], 0))?;
        session.cut(&Quiet)?;
        let some = files[..inodes].iter().map(File::try_clone).collect::<std::io::Result<_>>()?;
        *RESIDUAL.lock().ok().context("the probe panicked")? = (some, kib << 10);
        let (mut inside, mut bare) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; 256 << 10];
        for _ in 0..CUTS {
            let made = session.cut(&Quiet)?;
            inside.push(capture(&made));
            frame.push(micros(made.pause.window) - micros(made.pause.drain) - capture(&made));
            let _priority = RealTime::raise();
            let began = Instant::now();
            for file in &files[..inodes] {
                file.read_exact_at(&mut buffer[..kib << 10], 0)?;
            }
            bare.push(micros(began.elapsed()));
        }
        *RESIDUAL.lock().ok().context("the probe panicked")? = (Vec::new(), 0);
        let what = format!("{fs}: {inodes} inodes of {kib} KiB");
        let inside = figures.add(&format!("{what}, captured in the window"), "us", inside);
        let bare = figures.add(&format!("{what}, bare pread"), "us", bare);
        figures.ratio(&format!("{what}, capture / (nothing + bare pread)"), inside / (empty + bare), "<= 3");
        figures.ratio(&format!("{what}, us per inode"), (inside - empty) / inodes as f64, "-");
    }
    figures.add(&format!("{fs}: validating and lowering"), "us", frame);
    Ok(())
}

fn capture(_made: &Made) -> f64 {
    CAPTURED.load(Relaxed).saturating_sub(DRAINED.load(Relaxed)) as f64 / 1e3
}

fn drain(figures: &mut Figures, workload: &str, disk: &Disk, demo: &Running) -> Result<()> {
    let mut session = session(disk, demo, GateChoice::Fence, false)?;
    let (mut drains, mut windows, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CUTS {
        std::thread::sleep(Duration::from_millis(2));
        // A refused cut is a figure as well.
        let Ok(made) = session.cut(&Quiet) else { continue };
        drains.push(micros(made.pause.drain));
        windows.push(micros(made.pause.window));
        attempts.push(f64::from(made.attempts));
    }
    figures.add(&format!("{workload}: drain, fence"), "us", drains);
    figures.add(&format!("{workload}: window, fence"), "us", windows);
    figures.add(&format!("{workload}: attempts a cut"), "", attempts);
    Ok(())
}
