//! A container whose operations are command lines.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use snapshot_engine::container::Target;
use snapshot_engine::demo::ticks::now_ns;
use snapshot_engine::model::nanos::Nanos;

use super::limited::{self, Guard, LIMIT};
use super::room::{Room, shown, succeeded};
use super::{Layer, Peer, Running, Took, group, image};

/// A peer that lives in a room.
pub(super) struct Hosted {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) room: Arc<Room>,
    /// Starts a container in the room.
    pub(super) container: Start,
}

type Start = fn(&Arc<Room>, &Layer) -> Result<Box<dyn Running>>;

impl Peer for Hosted {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn start(&self, layer: &Layer) -> Result<Box<dyn Running>> {
        layer.check()?;
        (self.container)(&self.room, layer)
    }
}

/// Words of a command.
pub(super) type Words = Vec<String>;

/// An operation.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    /// What is timed, in order: a name for the phase, and the command. All are run even if one fails, so that what was paused is resumed.
    pub(super) steps: Vec<(&'static str, Words)>,
    /// Removes what it made, outside of the time.
    pub(super) after: Vec<Words>,
}

/// See the head of this file. Removed on drop.
#[derive(Debug)]
pub(super) struct Contained {
    pub(super) remove: Remove,
    pub(super) target: Target,
    pub(super) operations: Vec<Operation>,
}

impl Contained {
    /// Fills a container that has just been started and gives it its operations.
    ///
    /// # Errors
    /// When it is not there, or cannot be filled. It is removed then.
    pub(super) fn arrive(remove: Remove, layer: &Layer, operations: Vec<Operation>) -> Result<Contained> {
        let target = layer.arrive(&remove.cgroup)?;
        Ok(Contained { remove, target, operations })
    }
}

impl Running for Contained {
    fn target(&self) -> &Target {
        &self.target
    }

    fn operations(&self) -> Vec<&'static str> {
        self.operations.iter().map(|operation| operation.name).collect()
    }

    fn perform(&mut self, name: &str) -> Result<Took> {
        let operation = self.operations.iter().find(|operation| operation.name == name);
        let operation = operation.with_context(|| format!("no operation {name:?}"))?;
        let room = &self.remove.room;
        let mut commands: Vec<Command> = operation.steps.iter().map(|(_, w)| command(room, w)).collect();
        let (took, outputs) =
            limited::guarded(LIMIT, |guard| room.inside(|| Ok(timed(guard, operation, &mut commands))))?;
        let mut done = Ok(());
        for (command, output) in commands.iter().zip(outputs) {
            let judged = output.with_context(|| format!("`{}`", shown(command)));
            let judged = judged.and_then(|output| succeeded(command, &output));
            done = done.and(judged);
        }
        for words in &operation.after {
            done = done.and(room.run(&mut command(room, words)).map(drop));
        }
        done.with_context(|| name.to_owned()).map(|()| took)
    }
}

/// Nothing but the commands between the two looks at the clock.
fn timed(
    guard: &Guard,
    operation: &Operation,
    commands: &mut [Command],
) -> (Took, Vec<std::io::Result<Output>>) {
    let mut phases = Vec::with_capacity(commands.len());
    let mut outputs = Vec::with_capacity(commands.len());
    let (from, began) = (Nanos(now_ns()), Instant::now());
    for ((phase, _), command) in operation.steps.iter().zip(commands) {
        let began = Instant::now();
        outputs.push(guard.output(command));
        phases.push((*phase, began.elapsed()));
    }
    (Took { from, wall: began.elapsed(), phases }, outputs)
}

/// What a command prints is thrown away: a diff is printed whole.
fn command(room: &Room, words: &[String]) -> Command {
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut command = room.command(program);
    command.args(arguments).stdout(Stdio::null());
    command
}

/// The end of a container: made before it is started, so that a start that fails halfway leaves nothing.
#[derive(Debug)]
pub(super) struct Remove {
    pub(super) room: Arc<Room>,
    pub(super) cgroup: String,
    pub(super) commands: Vec<Words>,
}

impl Drop for Remove {
    fn drop(&mut self) {
        for words in &self.commands {
            if let Err(error) = self.room.run(&mut command(&self.room, words)) {
                eprintln!("left until its runtime goes: {error:#}");
            }
        }
        // Not every runtime removes the parent that it was given.
        if let Err(error) = group::end(&self.cgroup) {
            eprintln!("left until its runtime goes: {error:#}");
        }
    }
}

/// A container by the command line that docker and podman have in common, and where they part.
#[derive(Debug, Clone, Copy)]
pub(super) struct DockerLike {
    pub(super) program: &'static str,
    /// Options of `rm`.
    pub(super) remove: &'static str,
    /// Options of `commit`, a blank behind them.
    pub(super) commit: &'static str,
    /// What the two operations are called.
    pub(super) names: [&'static str; 2],
}

impl DockerLike {
    /// Starts one and fills it.
    ///
    /// # Errors
    /// When it does not start, or cannot be filled.
    pub(super) fn start(self, room: &Arc<Room>, layer: &Layer) -> Result<Box<dyn Running>> {
        let DockerLike { program, remove, commit, names } = self;
        let (name, cgroup) = room.next();
        let mut run = room.command(program);
        run.args(["run", "--detach", "--network=none", "--name", &name]);
        run.arg(format!("--cgroup-parent=/{cgroup}")).arg(image::NAME).args(layer.command());
        let commands = vec![words(&format!("{program} rm {remove} {name}"))];
        let remove = Remove { room: Arc::clone(room), cgroup, commands };
        room.run(&mut run)?;
        let operations = vec![
            Operation {
                name: names[0],
                steps: vec![("commit", words(&format!("{program} commit {commit}{name} {name}")))],
                after: vec![words(&format!("{program} rmi {name}"))],
            },
            Operation {
                name: names[1],
                steps: vec![
                    ("pause", words(&format!("{program} pause {name}"))),
                    ("unpause", words(&format!("{program} unpause {name}"))),
                ],
                after: Vec::new(),
            },
        ];
        Ok(Box::new(Contained::arrive(remove, layer, operations)?))
    }
}

/// A command line, its words separated by blanks.
pub(super) fn words(line: &str) -> Words {
    line.split(' ').map(str::to_owned).collect()
}
