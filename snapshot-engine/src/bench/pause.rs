//! `bench pause --container`: a user's own container, as it is and with the load it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Error;
use super::freezes::RoundTrip;
use super::report::{Machine, Missed, Report, SCHEMA, Scene, Series, VERSION};
use super::series::{Contender, Course};
use super::ticker::Ticker;
use crate::container::{Places, Target, tasks};
use crate::demo::ticks::now_ns;
use crate::freeze::attempt::Policy;
use crate::model::nanos::{Nanos, Span};
use crate::model::options::{CommitOptions, GateChoice};
use crate::model::reference::ContainerRef;
use crate::pipeline::progress::{Progress, Quiet, UntilSignal};
use crate::pipeline::resolve_in;
use crate::pipeline::session::Session;

/// The budget unless told otherwise.
pub const BUDGET: Duration = Duration::from_millis(1);
/// The freezer has to get every task onto a processor and out of the disk's hands, so it takes as long as the machine is busy; with the fence's
/// budget hardly a cut would be made on a busy one, and there would be nothing to compare.
pub const FREEZER_BUDGET: Duration = Duration::from_millis(20);

/// What can be chosen about a measurement.
#[derive(Debug, Clone)]
pub struct Options {
    /// The container.
    pub container: ContainerRef,
    /// Where it is looked for.
    pub places: Places,
    /// Windows by each gate.
    pub windows: u32,
    /// The gates, each once.
    pub gates: Vec<GateChoice>,
    /// The budget of a window; `None`: [`BUDGET`], and [`FREEZER_BUDGET`] for the freezer.
    pub max_pause: Option<Nanos>,
    /// Where the shadow goes, in a directory that is removed at the end.
    pub work_dir: PathBuf,
    /// Whether to freeze and thaw the container's cgroup for comparison.
    pub freeze: bool,
    /// The program that becomes the ticker; `None`: this one.
    pub program: Option<PathBuf>,
}

impl Options {
    /// A hundred windows by each gate, with the raw freezer beside them.
    #[must_use]
    pub fn new(container: ContainerRef) -> Options {
        Options {
            container,
            places: Places::usual(None),
            windows: 100,
            gates: vec![GateChoice::None, GateChoice::Fence, GateChoice::Freezer, GateChoice::Auto],
            max_pause: None,
            work_dir: "/tmp".into(),
            freeze: true,
            program: None,
        }
    }
}

/// The budget of a gate.
#[must_use]
pub fn budget(choice: GateChoice, max_pause: Option<Nanos>) -> Duration {
    match (max_pause, choice) {
        (Some(given), _) => given.as_duration(),
        (None, GateChoice::Freezer) => FREEZER_BUDGET,
        (None, _) => BUDGET,
    }
}

/// A directory that goes with this value.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(parent: &Path) -> Result<Scratch, Error> {
        let path = parent.join(format!("bench-pause-{}-{}", std::process::id(), now_ns()));
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(Scratch(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = ?self.0, %e, "a directory of the measurement is left");
        }
    }
}

/// A report with nothing in it yet.
#[must_use]
pub fn blank(command: String) -> Report {
    Report {
        schema: SCHEMA,
        version: VERSION,
        command,
        began: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        took: Span::from(Nanos(0)),
        machine: Machine::here(),
        series: Vec::new(),
        slowdowns: Vec::new(),
        copies: Vec::new(),
        missed: Vec::new(),
        goals: Vec::new(),
        violations: Vec::new(),
    }
}

/// Opens a session with room for the largest budget that is going to be chosen.
///
/// # Errors
/// As [`Session::open`].
pub fn open(
    target: Target,
    budget: Duration,
    shadow: &Path,
    progress: &dyn Progress,
) -> Result<Session, Error> {
    let options = CommitOptions::default().max_pause(budget);
    let policy = Policy { budget, ..Policy::default() };
    Ok(Session::open(target, &options, shadow, policy, 0, progress)?)
}

/// Measures. `tell` hears what is being done. On return, with an error too, nothing is left inside the container or on the disk.
///
/// # Errors
/// When the container cannot be found or tracked, or a signal came.
pub fn run(options: &Options, tell: &dyn Fn(&str)) -> Result<Report, Error> {
    let until = UntilSignal(&Quiet);
    let mut report = blank(format!("snapshot-engine bench pause --container {}", options.container));
    let start = Instant::now();
    let target = resolve_in(&options.container, &options.places)?;
    let mut gates = options.gates.clone();
    if target.cgroup.freezer().is_none() && gates.contains(&GateChoice::Freezer) {
        gates.retain(|g| *g != GateChoice::Freezer);
        let why = "the container has no cgroup of its own to freeze";
        report.missed.push(Missed { what: "gate freezer".into(), why: why.into() });
    }
    let members = tasks(&target).map_err(Error::io("list the tasks of", Path::new("/proc")))?.len();
    let scratch = Scratch::new(&options.work_dir)?;
    let ticker = Ticker::start(options.program.as_deref(), &target)?;
    tell("copying the upperdir");
    // The time to the first cut is a user's: the container is looked for again.
    let began = Nanos(now_ns());
    let target = resolve_in(&options.container, &options.places)?;
    let most = gates.iter().map(|g| budget(*g, options.max_pause)).max().unwrap_or(BUDGET);
    let session = open(target.clone(), most, &scratch.path().join("shadow"), &until)?;
    let scene = scene(&target, members, session.inodes());
    let mut course = Course::new(session, Some(ticker), scene, Some(began), &until)?;
    for gate in gates {
        course.enter(Contender::Gate(gate, budget(gate, options.max_pause)), options.windows);
    }
    match target.cgroup.freezer() {
        Some(freezer) if options.freeze => {
            let rival = RoundTrip::open(&freezer)?;
            course.enter(Contender::Rival(Box::new(rival)), options.windows);
        }
        Some(_) => {}
        None => report.missed.push(Missed { what: "cgroup.freeze".into(), why: Error::NoCgroup.to_string() }),
    }
    let mut turns = 0;
    while !course.done() {
        if turns % 10 == 0 {
            tell(&format!("turn {turns} of {}", options.windows));
        }
        course.turn(&until)?;
        turns += 1;
    }
    report.series = course.finish();
    report.violations = report.series.iter().flat_map(Series::violations).collect();
    if target.cgroup.is_frozen().map_err(Error::io("ask the freezer of", &scratch.path().join("")))? {
        report.violations.push("the container is frozen after the measurement".into());
    }
    report.took = Nanos::from(start.elapsed()).into();
    Ok(report)
}

fn scene(target: &Target, members: usize, inodes: usize) -> Scene {
    let (files, bytes) = size(&target.overlay.upper, inodes);
    Scene {
        axis: "container".into(),
        label: target.name.clone().unwrap_or_else(|| target.reference.clone()),
        file_system: target.overlay.upper_fs.clone(),
        upper_bytes: bytes,
        files,
        tasks: members as u64,
        workload: "its own".into(),
        container: target.reference.clone(),
    }
}

/// Regular files and their bytes below a directory, at most `most` entries; the container changes it meanwhile.
fn size(dir: &Path, most: usize) -> (u64, u64) {
    let (mut files, mut bytes, mut seen) = (0, 0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            // Not followed: `DirEntry::metadata` is of the link itself.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.is_file() {
                files += 1;
                bytes += meta.len();
            }
            seen += 1;
            if seen > most * 2 {
                return (files, bytes);
            }
        }
    }
    (files, bytes)
}

impl Report {
    /// As JSON, indented.
    ///
    /// # Errors
    /// When a figure is none.
    pub fn json(&self) -> Result<String, Error> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Writes the report as the files that were asked for.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(&self, json: Option<&Path>, csv: Option<&Path>, html: Option<&Path>) -> Result<(), Error> {
        let put = |path: &Path, text: String| fs::write(path, text).map_err(Error::io("write", path));
        if let Some(path) = json {
            put(path, self.json()?)?;
        }
        if let Some(path) = csv {
            put(path, self.csv())?;
        }
        if let Some(path) = html {
            put(path, self.html())?;
        }
        Ok(())
    }
}
