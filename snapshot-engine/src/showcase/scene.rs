//! What a run needs around it: containers and directories, and their end.
//!
//! ```text
//!   WORK/run.json          the results              stays
//!   WORK/image/            the OCI layout           stays
//!   WORK/run-PID/layers/   of the containers        gone at the end
//!   WORK/run-PID/shadow/   of the windows           gone at the end
//!   WORK/run-PID/store/    the commit's work        gone at the end
//! ```
//!
//! Containers outlive the process that started them. What a run that was killed has left is known by the process id in its names,
//! and the next run removes it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, Options};
use crate::container::process;
use crate::demo::{self, Demo, Job, Seed, StartOptions, Workload};
use crate::model::pid::Pid;

const PREFIX: &str = "run-";

/// How many tasks a freeze is measured with.
pub(super) const CROWD: u32 = 100;

/// The containers and directories of one run. Removed on drop, too.
#[derive(Debug)]
pub(super) struct Scene {
    /// Writes.
    pub(super) loaded: Demo,
    /// Does nothing.
    pub(super) idle: Demo,
    /// Many who sleep.
    pub(super) crowd: Demo,
    /// The work directory.
    pub(super) root: PathBuf,
    /// What is removed at the end.
    pub(super) scratch: PathBuf,
    props: Props,
}

/// What has to be removed, as far as it was made.
#[derive(Debug)]
struct Props {
    demos: Vec<String>,
    scratch: PathBuf,
    keep: bool,
}

impl Scene {
    /// Makes everything. On an error nothing is left.
    ///
    /// # Errors
    /// When a directory or a container cannot be made.
    pub(super) fn set(options: &Options) -> Result<Scene, Error> {
        let root = &options.work_dir;
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        let root = root.canonicalize().map_err(Error::io("find", root))?;
        sweep(&root)?;
        let own = format!("{PREFIX}{}", std::process::id());
        let scratch = root.join(&own);
        let mut props = Props { demos: Vec::new(), scratch: scratch.clone(), keep: options.keep };
        fs::create_dir(&scratch).map_err(Error::io("create", &scratch))?;
        let crowd = Workload { jobs: vec![Job::Sleepers { count: CROWD }] };
        let seed = Seed { files: 200, bytes: 16 << 20 };
        let loaded = props.start(&own, "loaded", seed, options.workload.clone())?;
        let idle = props.start(&own, "idle", seed, Workload { jobs: vec![Job::Sleepers { count: 10 }] })?;
        let crowd = props.start(&own, "crowd", Seed::default(), crowd)?;
        Ok(Scene { loaded, idle, crowd, root, scratch, props })
    }

    /// Whether everything is to stay.
    pub(super) fn keep(&self) -> bool {
        self.props.keep
    }

    /// Removes everything, and says what could not be.
    ///
    /// # Errors
    /// The first thing that could not be removed.
    pub(super) fn strike(mut self) -> Result<(), Error> {
        self.props.remove()
    }
}

impl Props {
    fn start(&mut self, own: &str, role: &str, seed: Seed, workload: Workload) -> Result<Demo, Error> {
        let name = format!("{own}-{role}");
        let options = StartOptions {
            layers_root: self.scratch.join("layers"),
            seed,
            workload,
            ..StartOptions::new(&name)
        };
        // Before it is there: a start that fails halfway has been undone by itself, and stopping what is not there is no error.
        self.demos.push(name);
        Ok(demo::start(&options)?)
    }

    fn remove(&mut self) -> Result<(), Error> {
        if self.keep {
            return Ok(());
        }
        let mut result = Ok(());
        for name in self.demos.drain(..) {
            result = result.and(demo::stop(&name).map_err(Error::from));
        }
        if self.scratch.exists() {
            result =
                result.and(fs::remove_dir_all(&self.scratch).map_err(Error::io("remove", &self.scratch)));
        }
        result
    }
}

impl Drop for Props {
    fn drop(&mut self) {
        if let Err(e) = self.remove() {
            tracing::warn!("something of the run is left: {}", e.whole());
        }
    }
}

/// Removes what runs have left that were killed. What was kept on purpose is told from it by nothing but its dead process, so it goes, too.
fn sweep(root: &Path) -> Result<(), Error> {
    for old in demo::list()? {
        // Only those of this work directory: another run may be keeping its own elsewhere.
        if old.state.layers.starts_with(root) && is_dead(old.name()) {
            demo::stop(old.name())?;
        }
    }
    for entry in fs::read_dir(root).map_err(Error::io("list", root))?.flatten() {
        if entry.file_name().to_str().is_some_and(is_dead) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether a name is a run's whose process is gone.
fn is_dead(name: &str) -> bool {
    let pid =
        name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| !process::is_alive(Pid(pid), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_remains_of_dead_runs_are_swept() {
        assert!(!is_dead(&format!("{PREFIX}{}-loaded", std::process::id())));
        // Beyond the largest pid_max.
        assert!(is_dead(&format!("{PREFIX}{}", 1 << 23)));
        for other in ["image", "run.json", "run-", "run-x", "loaded"] {
            assert!(!is_dead(other), "{other}");
        }
    }
}
