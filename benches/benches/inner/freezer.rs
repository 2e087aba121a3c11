//! The freezer gate against a raw `cgroup.freeze` round trip of the same container, alternating.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use snapshot_benches::figures::Figures;
use snapshot_engine::demo::Workload;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_tests::bench::{Disk, Running};

use super::window::{micros, session};

const ROUNDS: usize = 100;
const TASKS: [u32; 4] = [1, 10, 100, 500];

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    for tasks in TASKS {
        let disk = Disk::new("ext4")?;
        let program = std::env::current_exe()?;
        // The init is one of them.
        let workload = if tasks == 1 { "idle".to_owned() } else { format!("sleepers={}", tasks - 1) };
        let demo = Running::start(&program.to_string_lossy(), &disk, workload.parse::<Workload>()?)?;
        let mut session = session(&disk, &demo, GateChoice::Freezer, false)?;
        let raw = Raw::open(&demo)?;
        let (mut ours, mut theirs, mut captures) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(2));
            let made = session.cut(&Quiet)?;
            ours.push(micros(made.pause.window));
            captures.push(micros(made.pause.window) - micros(made.pause.drain));
            std::thread::sleep(Duration::from_millis(2));
            theirs.push(micros(raw.round_trip()?));
        }
        let ours = figures.add(&format!("{tasks} tasks: freezer window"), "us", ours);
        figures.add(&format!("{tasks} tasks: capture, validation and thaw in it"), "us", captures);
        let theirs = figures.add(&format!("{tasks} tasks: raw cgroup.freeze round trip"), "us", theirs);
        figures.ratio(&format!("{tasks} tasks: freezer window / raw round trip"), ours / theirs, "<= 1.5");
    }
    Ok(())
}

/// The freezer as any program would use it: write, look until it is so, write.
struct Raw {
    control: File,
    events: File,
}

impl Raw {
    fn open(demo: &Running) -> Result<Raw> {
        let cgroup = demo.cgroup()?;
        let control = OpenOptions::new().write(true).open(cgroup.join("cgroup.freeze"))?;
        Ok(Raw { control, events: File::open(cgroup.join("cgroup.events"))? })
    }

    fn round_trip(&self) -> Result<Duration> {
        let began = Instant::now();
        self.control.write_all_at(b"1", 0)?;
        let mut text = [0; 128];
        loop {
            let len = self.events.read_at(&mut text, 0)?;
            if text[..len].windows(8).any(|w| w == b"frozen 1") {
                break;
            }
            if began.elapsed() > Duration::from_secs(2) {
                self.control.write_all_at(b"0", 0)?;
                ensure!(false, "the container does not freeze");
            }
            std::thread::yield_now();
        }
        self.control.write_all_at(b"0", 0)?;
        Ok(began.elapsed())
    }
}
