//! Without a tracker (T5): the container stands still while everything is copied, and that long pause is what is reported.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;
use super::attach::same_upper;
use super::progress::{Progress, Stage};
use super::session::{place, stage_of};
use super::turn;
use super::watched::Watched;
use crate::capture::{Frozen, Grafts, Shadow, ShadowOptions};
use crate::container::Target;
use crate::freeze::freezer::Freezer;
use crate::model::dirty::Still;
use crate::model::fault::{Class, class_of_io};

/// Freezes the container, copies its upperdir and what is added to it, thaws it. Returns the frozen upperdir, how long the container stood still, and how many inodes were copied.
///
/// # Errors
/// When the container cannot be frozen, or the copy takes longer than the budget: it is thawed then, and nothing is left.
pub(super) fn cut(
    target: &Target,
    grafts: Grafts,
    budget: Duration,
    directory: &Path,
    frozen: &Path,
    progress: &dyn Progress,
) -> Result<(Frozen, Duration, u64), Error> {
    let window = |class, remedy: &str, source: Box<dyn std::error::Error + Send + Sync>| {
        Error::stage(Stage::Window, class, Some(remedy.to_owned()), source)
    };
    let io = |e: std::io::Error| Error::stage(Stage::Window, class_of_io(&e), None, e);
    let capture = |e| stage_of(e, Stage::PreCopy, progress);
    let mut shadow = Shadow::grafted(&target.overlay.upper, grafts, directory, ShadowOptions::default())
        .map_err(capture)?;
    same_upper(target, shadow.identity()).map_err(io)?;
    // From here until it is thawed: a freeze by another engine is no pause by the owner.
    let turn = turn::take(target, progress)?;
    let paused = target.cgroup.is_frozen().map_err(io)?;
    let (took, inodes) = if paused {
        // Its owner holds it; it is neither frozen nor thawed by us.
        shadow.base(&mut Still, &Watched::new(progress, Stage::PreCopy)).map_err(capture)?;
        if !target.cgroup.is_frozen().map_err(io)? {
            let why = "its owner let the container go on while it was copied";
            return Err(window(Class::General, "try again", why.into()));
        }
        (Duration::ZERO, shadow.len())
    } else {
        let place = place(target).ok_or_else(|| {
            window(
                Class::General,
                "give the container a cgroup of its own",
                "it has no cgroup that could be frozen".into(),
            )
        })?;
        // The watchdog keeps the budget (G5): it thaws when the time is up, whatever we are doing then.
        // Its clock has milliseconds: rounded up, and ours runs from before it is armed, so what we find within the budget was copied before it let go.
        let limit =
            Duration::from_millis(u64::try_from(budget.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        let freezer = Freezer::open(&place, limit, directory).map_err(io)?;
        let began = Instant::now();
        freezer.arm().map_err(io)?;
        let held = freezer.freeze(began + budget).map_err(|e| match e.kind() {
            std::io::ErrorKind::TimedOut => window(
                Class::General,
                "give it a larger --max-pause; a task in uninterruptible sleep (state D in `ps`) cannot be frozen at all before it wakes up",
                format!("its tasks were not all frozen within the budget of {budget:?}").into(),
            ),
            _ => io(e),
        })?;
        let copied = shadow.base(&mut Still, &Watched::new(progress, Stage::PreCopy));
        let took = began.elapsed();
        let stood_still = freezer.is_frozen().map_err(io)?;
        held.thaw().map_err(io)?;
        let held_for = began.elapsed();
        freezer.disarm();
        copied.map_err(capture)?;
        if took > budget || !stood_still {
            let why = format!(
                "copying everything took longer than the budget of {budget:?}; the container was let go when it was used up"
            );
            return Err(window(
                Class::General,
                "without a tracker the container stands still during the whole copy: give it a larger --max-pause, such as 10s",
                why.into(),
            ));
        }
        (held_for, shadow.len())
    };
    drop(turn);
    progress.check()?;
    let frozen = shadow
        .freeze(frozen, &Watched::new(progress, Stage::Freeze))
        .map_err(|e| stage_of(e, Stage::Freeze, progress))?;
    Ok((frozen, took, inodes as u64))
}
