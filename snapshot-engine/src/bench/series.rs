//! Turns at random moments: in each, every contender does its work once on the same container, and the same ticker feels it.
//!
//! ```text
//!   turn:  for each contender, another first each time:
//!          wait a random moment ─► cut, or the other's command ─► what did the ticker feel?
//!          wait a random moment ─► sham: as long a time, nothing done ─► what did the ticker feel?
//! ```

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use rustix::time::ClockId;

use super::Error;
use super::clocks::{self, Reading};
use super::error::whole;
use super::report::{Scene, Series, Window};
use super::ticker::Ticker;
use crate::demo::TickMode;
use crate::demo::ticks::now_ns;
use crate::model::nanos::Nanos;
use crate::model::options::GateChoice;
use crate::model::snapshot::Gate;
use crate::pipeline;
use crate::pipeline::progress::Progress;
use crate::pipeline::session::{Made, Session};

/// A sham of a command that takes seconds is cut off here.
const LONGEST_SHAM: Duration = Duration::from_millis(500);

/// What somebody else's command did, on `CLOCK_MONOTONIC`. It stopped the container somewhere in it, for a time that only the ticker knows.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// It began.
    pub from: Nanos,
    /// It had ended.
    pub to: Nanos,
}

/// A command of somebody else that stops the container.
pub trait Rival {
    /// As it is known: `docker commit`.
    fn name(&self) -> String;
    /// Does it once; on return the container runs again.
    ///
    /// # Errors
    /// [`Error::Command`] and its like; another turn is tried.
    fn perform(&mut self) -> Result<Done, Error>;
}

/// Who takes part.
pub enum Contender<'a> {
    /// Ours, by a gate, within a budget.
    Gate(GateChoice, Duration),
    /// Theirs.
    Rival(Box<dyn Rival + 'a>),
}

impl Contender<'_> {
    fn name(&self) -> String {
        match self {
            Contender::Gate(choice, _) => choice.to_string(),
            Contender::Rival(rival) => rival.name(),
        }
    }

    /// The fence is felt by who makes calls; but one who makes calls is always in the way of gate none, which `auto` tries first.
    fn mode(&self) -> TickMode {
        match self {
            Contender::Gate(GateChoice::Fence, _) => TickMode::Call,
            _ => TickMode::Spin,
        }
    }
}

/// A contender with its results.
struct Entry<'a> {
    contender: Contender<'a>,
    wanted: u32,
    tries: u32,
    windows: Vec<Window>,
    abandoned: BTreeMap<(Gate, String), u32>,
    abandoned_stops: Vec<Nanos>,
    misses: u64,
    given_up: u32,
    why: Option<String>,
    took: Duration,
}

impl Entry<'_> {
    /// A cut that cannot be made within the budget is refused, as promised: it is counted, and another moment is tried, but not for ever.
    fn done(&self) -> bool {
        self.windows.len() >= self.wanted as usize || self.tries >= self.wanted * 2 + 10
    }
}

/// A container with everything that is measured on it.
pub struct Course<'a> {
    session: Session,
    ticker: Option<Ticker>,
    scene: Scene,
    first_cut: Option<Nanos>,
    entries: Vec<Entry<'a>>,
    turns: usize,
}

impl<'a> Course<'a> {
    /// `began`: when the command did whose first cut is to be timed, if it is to be. The first cut is made here, by the session's own gate, and is no
    /// window of any series: it takes in what happened since the base copy.
    ///
    /// # Errors
    /// When a signal came. A first cut that cannot be made is only not timed.
    pub fn new(
        mut session: Session,
        ticker: Option<Ticker>,
        scene: Scene,
        began: Option<Nanos>,
        progress: &dyn Progress,
    ) -> Result<Course<'a>, Error> {
        let mut first_cut = None;
        if let Some(began) = began {
            match session.cut(progress) {
                Ok(_) => first_cut = Some(Nanos(now_ns() - began.0)),
                Err(e @ pipeline::Error::Interrupted { .. }) => return Err(e.into()),
                Err(e) => tracing::debug!("no first cut: {}", whole(&e)),
            }
        }
        Ok(Course { session, ticker, scene, first_cut, entries: Vec::new(), turns: 0 })
    }

    /// Another contender, with how many windows it is to have.
    pub fn enter(&mut self, contender: Contender<'a>, wanted: u32) {
        self.entries.push(Entry {
            contender,
            wanted,
            tries: 0,
            windows: Vec::new(),
            abandoned: BTreeMap::new(),
            abandoned_stops: Vec::new(),
            misses: 0,
            given_up: 0,
            why: None,
            took: Duration::ZERO,
        });
    }

    /// Whether everybody has what he wanted, or has tried often enough.
    #[must_use]
    pub fn done(&self) -> bool {
        self.entries.iter().all(Entry::done)
    }

    /// The session, for who has more to do with it.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// One turn of everybody who is not done.
    ///
    /// # Errors
    /// A signal, or a ticker that died. What a contender could not do is counted instead.
    pub fn turn(&mut self, progress: &dyn Progress) -> Result<(), Error> {
        self.turn_of(|_| true, progress)
    }

    /// One turn of our gates alone: where a rival takes seconds, there would be few of ours otherwise.
    ///
    /// # Errors
    /// As [`Course::turn`].
    pub fn turn_of_gates(&mut self, progress: &dyn Progress) -> Result<(), Error> {
        self.turn_of(|contender| matches!(contender, Contender::Gate(..)), progress)
    }

    fn turn_of(&mut self, who: fn(&Contender<'a>) -> bool, progress: &dyn Progress) -> Result<(), Error> {
        let count = self.entries.len().max(1);
        for n in 0..self.entries.len() {
            // Nobody always follows the same one.
            let entry = &mut self.entries[(n + self.turns) % count];
            if who(&entry.contender) && !entry.done() {
                let began = now_ns();
                one(entry, &mut self.session, self.ticker.as_mut(), progress)?;
                entry.took += Duration::from_nanos(now_ns() - began);
            }
        }
        self.turns += 1;
        Ok(())
    }

    /// The results, in the order of entry.
    #[must_use]
    pub fn finish(self) -> Vec<Series> {
        let backend = self.session.backend();
        let inodes = self.session.inodes() as u64;
        let lost = self.ticker.as_ref().map_or(0, Ticker::lost);
        let felt = self.ticker.is_some();
        let scene = self.scene;
        let first_cut = self.first_cut;
        let series = |mut entry: Entry<'a>| {
            judge(&mut entry);
            let (ours, max_pause) = match entry.contender {
                Contender::Gate(choice, budget) => (Some(choice), Some(Nanos::from(budget))),
                Contender::Rival(_) => (None, None),
            };
            let mut series = Series::new(scene.clone(), entry.contender.name(), ours, entry.windows);
            series.ticker = felt.then(|| entry.contender.mode().word());
            series.max_pause = max_pause.map(Into::into);
            series.tracker = ours.map(|_| backend);
            series.cuts.inodes = inodes;
            series.wanted = entry.wanted;
            series.cuts.given_up = entry.given_up;
            series.cuts.given_up_because = entry.why;
            series.take_abandoned(entry.abandoned, &entry.abandoned_stops);
            series.cuts.tracker_misses = entry.misses;
            series.gaps_lost = lost;
            series.took = Nanos::from(entry.took).into();
            series.first_cut = first_cut.filter(|_| ours.is_some()).map(Into::into);
            series
        };
        self.entries.into_iter().map(series).collect()
    }
}

/// The clocks of the windows, once it is known what the ticker feels in quiet.
fn judge(entry: &mut Entry<'_>) {
    let quiet_max = entry.windows.iter().filter_map(|w| w.sham).max().unwrap_or_default();
    let mode = entry.contender.mode();
    for w in &mut entry.windows {
        let (Some(gate), Some(_)) = (w.gate, w.felt) else { continue };
        let (up, down) = (w.up, w.down);
        let (drain, longest_stop, gap) = (w.drain, w.longest_stop, w.gap);
        w.clocks =
            Some(clocks::judge(&Reading { gate, up, down, drain, longest_stop, gap, mode, quiet_max }));
    }
}

fn one(
    entry: &mut Entry<'_>,
    session: &mut Session,
    mut ticker: Option<&mut Ticker>,
    progress: &dyn Progress,
) -> Result<(), Error> {
    progress.check()?;
    if let Some(ticker) = &mut ticker {
        ticker.set(Some(entry.contender.mode()))?;
    }
    std::thread::sleep(moment());
    entry.tries += 1;
    let (before, began) = (cpu(), now_ns());
    let result = match &mut entry.contender {
        Contender::Gate(choice, budget) => {
            session.choose(*choice, *budget);
            session.cut(progress).map(ours).map_err(Error::from)
        }
        Contender::Rival(rival) => rival.perform().map(|done| (theirs(done), None)),
    };
    let ended = now_ns();
    match result {
        Ok((mut window, made)) => {
            window.command = Nanos(ended - began);
            window.cpu = Nanos(cpu().0.saturating_sub(before.0));
            if let Some(made) = made {
                entry.misses += made.misses;
                for (why, n) in made.abandoned {
                    *entry.abandoned.entry(why).or_default() += n;
                }
                entry.abandoned_stops.extend(made.other_stops.iter().map(|(_, stop)| Nanos::from(*stop)));
            }
            if let Some(ticker) = &mut ticker {
                feel(&mut window, ticker, Nanos(began), Nanos(ended))?;
            }
            entry.windows.push(window);
        }
        Err(e) if e.interrupted() => return Err(e),
        Err(e) => {
            entry.given_up += 1;
            entry.why.get_or_insert_with(|| whole(&e));
        }
    }
    if let Some(ticker) = ticker {
        ticker.set(None)?;
    }
    Ok(())
}

fn ours(made: Made) -> (Window, Option<Made>) {
    let up = made.pause.between.from.0.saturating_sub(Nanos::from(made.pause.drain).0);
    let window = Window {
        gate: Some(made.pause.gate),
        up: Nanos(up),
        down: Nanos(up + Nanos::from(made.pause.window).0),
        window: Nanos::from(made.pause.pause()),
        drain: Nanos::from(made.pause.drain),
        capture: Nanos(made.pause.between.to.0.saturating_sub(made.pause.between.from.0)),
        longest_stop: Nanos::from(made.pause.longest_stop),
        held: made.pause.held,
        inodes: made.inodes,
        bytes: made.bytes,
        attempts: made.attempts,
        rounds: made.rounds,
        dirty: made.copied.dirty,
        copied: made.copied.bytes,
        cloned: made.copied.cloned,
        ..Window::default()
    };
    (window, Some(made))
}

fn theirs(done: Done) -> Window {
    let window = Nanos(done.to.0.saturating_sub(done.from.0));
    Window { up: done.from, down: done.to, window, attempts: 1, ..Window::default() }
}

/// What the ticker felt in a window and around it, and at a sham one.
fn feel(window: &mut Window, ticker: &mut Ticker, began: Nanos, ended: Nanos) -> Result<(), Error> {
    let length = |gap: Option<super::ticker::Gap>| gap.map_or(Nanos(0), |g| g.length());
    ticker.catch_up(ended)?;
    window.around = Some(length(ticker.felt(began, ended, began)));
    window.gap = ticker.felt(window.up, window.down, began);
    window.felt = Some(length(window.gap));
    std::thread::sleep(moment());
    let whole = Duration::from_nanos(ended.0 - began.0).min(LONGEST_SHAM);
    let sham = now_ns();
    std::thread::sleep(whole);
    let over = now_ns();
    ticker.catch_up(Nanos(over))?;
    window.sham_around = Some(length(ticker.felt(Nanos(sham), Nanos(over), Nanos(sham))));
    // As far into it as the window was into the command.
    let up = (sham + (window.up.0 - began.0)).min(over);
    let down = (up + (window.down.0 - window.up.0)).min(over);
    window.sham = Some(length(ticker.felt(Nanos(up), Nanos(down), Nanos(sham))));
    Ok(())
}

/// Processor time of this process so far, all threads.
fn cpu() -> Nanos {
    let t = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Nanos(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
}

/// A few milliseconds, other ones each time: cuts must not fall in step with what the container does.
fn moment() -> Duration {
    // Every RandomState has keys of its own.
    let random = RandomState::new().build_hasher().finish();
    Duration::from_micros(1_000 + random % 7_000)
}
