//! The library's front: commit a container from a program of your own.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::model::access::Delivery;
use crate::model::nanos::{Nanos, Span};
use crate::model::options::CommitOptions;
use crate::model::paths;
use crate::model::snapshot::{Backend, Gate, ImageReport, StageTime};
use crate::pipeline::commit::{self, CommitRequest};
use crate::pipeline::progress::Quiet;
use crate::pipeline::{Engine, Error, Stages};
use crate::store::{self, Claimed, Record, SnapshotId, SnapshotStatus, State, Store};
use std::path::PathBuf;

/// What a commit has come to. It serialises to the JSON the command prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotResult {
    /// The snapshot's id.
    pub snapshot_id: SnapshotId,
    /// The container as it was named.
    pub container: String,
    /// Where the image goes.
    pub target: String,
    /// Where the image is on its way.
    pub state: State,
    /// The pause: from the gate going up to the gate coming down.
    pub pause_time: Span,
    /// From the beginning of the commit to this result.
    pub total_time: Span,
    /// The frozen upperdir.
    #[serde(with = "paths")]
    pub old_upper_dir: PathBuf,
    /// The live upperdir.
    #[serde(with = "paths")]
    pub new_upper_dir: PathBuf,
    /// Directories outside the container's own layer that are in the frozen upperdir, captured at the same instant.
    #[serde(with = "paths::list", skip_serializing_if = "Vec::is_empty")]
    pub with_paths: Vec<PathBuf>,
    /// What held writers back.
    pub gate: Gate,
    /// Attempts made.
    pub attempts: u32,
    /// The longest stop any task had.
    pub longest_stop: Span,
    /// Pre-copy rounds.
    pub rounds: u32,
    /// Inodes captured inside the window.
    pub residual_inodes: u64,
    /// Bytes captured inside the window.
    pub residual_bytes: u64,
    /// Attempts that were void.
    pub voided: u32,
    /// What the tracker listened to.
    pub tracker: Option<Backend>,
    /// Changes the tracker had missed and the sweep found.
    pub tracker_misses: u64,
    /// The image, once it is complete.
    pub image: Option<ImageReport>,
    /// What delivering it came to, where the target is no OCI layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// Time by stage.
    pub timings: Vec<StageTime>,
}

impl SnapshotResult {
    /// The result of a snapshot as its record stands.
    #[must_use]
    pub fn new(record: &Record, total: Duration) -> Self {
        let pause = &record.cut.pause;
        let image = record.image.iter().flat_map(|image| &image.timings);
        SnapshotResult {
            snapshot_id: record.snapshot_id,
            container: record.container.to_string(),
            target: record.target.to_string(),
            state: record.state,
            pause_time: pause.window.into(),
            total_time: Nanos::from(total).into(),
            old_upper_dir: record.cut.old_upper_dir.clone(),
            new_upper_dir: record.cut.new_upper_dir.clone(),
            with_paths: record.options.with_paths.clone(),
            gate: pause.gate,
            attempts: pause.attempts,
            longest_stop: pause.longest_stop.into(),
            rounds: pause.rounds,
            residual_inodes: pause.residual_inodes,
            residual_bytes: pause.residual_bytes,
            voided: pause.voided,
            tracker: record.cut.tracker,
            tracker_misses: pause.tracker_misses,
            image: record.image.clone(),
            delivery: record.delivery.clone(),
            timings: record.cut.timings.iter().chain(image).cloned().collect(),
        }
    }
}

/// Commits running containers.
///
/// ```no_run
/// use snapshot_engine::{CommitOptions, SeamlessSnapshot};
/// # fn main() -> Result<(), snapshot_engine::pipeline::Error> {
/// let engine = SeamlessSnapshot::new(CommitOptions::default());
/// let snapshot = engine.commit("web", "oci:/var/lib/images:web-1")?;
/// println!("{} stopped for {}", snapshot.snapshot_id, snapshot.pause_time.human);
/// # Ok(())
/// # }
/// ```
///
/// After [`commit`](SeamlessSnapshot::commit) a thread of this process makes the image. If the process ends before, the snapshot is `interrupted`, and
/// `snapshot-engine resume` or [`resume`](SeamlessSnapshot::resume) finishes it.
#[derive(Clone)]
pub struct SeamlessSnapshot {
    options: CommitOptions,
    stages: Arc<dyn Stages>,
}

impl std::fmt::Debug for SeamlessSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeamlessSnapshot").field("options", &self.options).finish_non_exhaustive()
    }
}

impl SeamlessSnapshot {
    /// With these options, which each commit checks.
    #[must_use]
    pub fn new(options: CommitOptions) -> Self {
        SeamlessSnapshot::with_stages(options, Arc::new(Engine::default()))
    }

    /// With other stages than the engine's own.
    #[must_use]
    pub fn with_stages(options: CommitOptions, stages: Arc<dyn Stages>) -> Self {
        SeamlessSnapshot { options, stages }
    }

    /// Makes the cut of a container (`NAME`, or `pid:N`) and begins with its image for `target` (`oci:DIR:TAG`, `REGISTRY/REPOSITORY:TAG` ..). Returns once the frozen upperdir is durable.
    ///
    /// # Errors
    /// On error no snapshot was made, and the container runs as before.
    pub fn commit(&self, container: &str, target: &str) -> Result<SnapshotResult, Error> {
        let began = Instant::now();
        let claimed = self.cut(container, target)?;
        let result = SnapshotResult::new(claimed.record(), began.elapsed());
        self.in_background(claimed);
        Ok(result)
    }

    /// As [`commit`](SeamlessSnapshot::commit), and waits for the image.
    ///
    /// # Errors
    /// [`Error::StillProcessing`] when the image takes longer than `timeout`; it goes on. [`Error::Failed`] when it failed.
    pub fn commit_with_wait(
        &self,
        container: &str,
        target: &str,
        timeout: Duration,
    ) -> Result<SnapshotResult, Error> {
        let began = Instant::now();
        let claimed = self.cut(container, target)?;
        let id = claimed.record().snapshot_id;
        match self.in_background(claimed).recv_timeout(timeout.saturating_sub(began.elapsed())) {
            Ok(Ok(record)) => Ok(SnapshotResult::new(&record, began.elapsed())),
            Ok(Err(e)) => Err(Error::Failed { id, failure: e.to_failure() }),
            Err(_) => Err(Error::StillProcessing { id, waited: timeout }),
        }
    }

    /// How far a snapshot is.
    ///
    /// # Errors
    /// [`store::Error::Unknown`] when there is no such snapshot.
    pub fn get_status(&self, id: SnapshotId) -> Result<SnapshotStatus, Error> {
        match Store::open_existing(&self.options.work_dir)? {
            Some(store) => Ok(store.status(id)?),
            None => Err(store::Error::Unknown { given: id.to_string() }.into()),
        }
    }

    /// Finishes the image of an interrupted or failed snapshot in a thread of this process.
    ///
    /// # Errors
    /// [`store::Error::Busy`] while somebody works on it.
    pub fn resume(&self, id: SnapshotId) -> Result<(), Error> {
        let claimed = Store::open(&self.options.work_dir)?.claim(id)?;
        self.in_background(claimed);
        Ok(())
    }

    fn cut(&self, container: &str, target: &str) -> Result<Claimed, Error> {
        let request = CommitRequest {
            container: container.parse()?,
            target: target.parse()?,
            options: self.options.clone(),
        };
        commit::cut(&*self.stages, request, &Quiet)
    }

    fn in_background(&self, mut claimed: Claimed) -> mpsc::Receiver<Result<Record, Error>> {
        let (sender, receiver) = mpsc::channel();
        let stages = Arc::clone(&self.stages);
        thread::spawn(move || {
            let id = claimed.record().snapshot_id;
            let done = commit::finish(&*stages, &mut claimed, &Quiet);
            // Before anybody hears of it, the lock is free: they may want to remove it.
            drop(claimed);
            if let Err(e) = &done {
                tracing::warn!("{id}: {}", e.chain());
            }
            // Nobody may be waiting.
            let _ = sender.send(done);
        });
        receiver
    }
}

#[cfg(test)]
mod tests;
