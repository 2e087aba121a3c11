//! Changes to an image's config, as `docker commit --change` takes them: one instruction of a Dockerfile each.
//!
//! ```text
//!   CMD ["a", "b"]        ENV A=b C="d e"       EXPOSE 80 443/tcp 8000-8010/udp     WORKDIR /srv       HEALTHCHECK NONE
//!   CMD a b               LABEL a=b             VOLUME /data ["/with space"]        USER app:app       HEALTHCHECK --interval=30s CMD /ok
//!   ENTRYPOINT ...        ONBUILD RUN make      STOPSIGNAL SIGINT
//! ```
//!
//! The grammar is that of BuildKit's parser (`frontend/dockerfile/parser`, `shell`, and moby's `builder/dockerfile/dispatchers.go`), whose results these are: the
//! shell form becomes `/bin/sh -c` (or the image's `Shell`), ENTRYPOINT takes a CMD away that was not given beside it, WORKDIR goes on from the one before,
//! variables mean the image's environment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::config::{Config, Healthcheck};
use super::fault::{Class, Fault};
use words::{Quotes, expand, pairs, words};

mod words;

/// An instruction that can be carried out on a config; kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Change {
    text: String,
    instruction: Instruction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Instruction {
    Cmd(Form),
    Entrypoint(Form),
    Env(Vec<(String, String)>),
    Expose(Vec<String>),
    Label(Vec<(String, String)>),
    OnBuild(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
    StopSignal(String),
    Healthcheck(Health),
}

/// A command, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// `["a", "b"]`.
    Exec(Vec<String>),
    /// `a b`, for a shell.
    Shell(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    None,
    Check { check: Healthcheck, form: Form },
}

/// The instructions that are changes.
const KNOWN: &str =
    "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR";

/// Why a text is no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadChange {
    /// Another instruction, or none.
    #[error("`{0}` cannot be a change of an image: {KNOWN} can")]
    Instruction(String),
    /// Its arguments are not what the instruction takes.
    #[error("`{given}`: {what}")]
    Arguments {
        /// The change.
        given: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Fault for BadChange {
    fn class(&self) -> Class {
        Class::Arguments
    }
    fn remedy(&self) -> Option<String> {
        Some(format!("changes are {KNOWN}, written as in a Dockerfile"))
    }
}

impl FromStr for Change {
    type Err = BadChange;

    fn from_str(text: &str) -> Result<Change, BadChange> {
        let given = text.trim();
        let bad = |what| BadChange::Arguments { given: given.escape_debug().to_string(), what };
        let (name, rest) = given.split_once(char::is_whitespace).unwrap_or((given, ""));
        let rest = rest.trim();
        if given.contains(['\0', '\n']) {
            return Err(bad("one instruction on one line is a change"));
        }
        let instruction = match name.to_ascii_uppercase().as_str() {
            "CMD" => Instruction::Cmd(form(rest)),
            "ENTRYPOINT" => Instruction::Entrypoint(form(rest)),
            _ if rest.is_empty() => return Err(unknown_or(name, given, bad("it says nothing"))),
            "ENV" => Instruction::Env(pairs(rest).map_err(bad)?),
            "LABEL" => Instruction::Label(pairs(rest).map_err(bad)?),
            "EXPOSE" => Instruction::Expose(words(rest, Quotes::Keep).map_err(bad)?),
            "ONBUILD" => Instruction::OnBuild(on_build(rest).map_err(bad)?),
            "USER" => Instruction::User(rest.to_owned()),
            "VOLUME" => Instruction::Volume(paths(rest).map_err(bad)?),
            "WORKDIR" => Instruction::Workdir(rest.to_owned()),
            "STOPSIGNAL" => Instruction::StopSignal(signal(rest).map_err(bad)?),
            "HEALTHCHECK" => Instruction::Healthcheck(health(rest).map_err(bad)?),
            _ => return Err(BadChange::Instruction(given.escape_debug().to_string())),
        };
        let change = Change { text: given.to_owned(), instruction };
        // What depends on the config is tried out on an empty one, so that it is refused before anything is done.
        change.apply(&mut Applying::default())?;
        Ok(change)
    }
}

fn unknown_or(name: &str, given: &str, otherwise: BadChange) -> BadChange {
    if !name.is_empty() && KNOWN.split([',', ' ']).any(|known| known.eq_ignore_ascii_case(name)) {
        otherwise
    } else {
        BadChange::Instruction(given.escape_debug().to_string())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for Change {
    type Error = BadChange;

    fn try_from(text: String) -> Result<Change, BadChange> {
        text.parse()
    }
}

impl From<Change> for String {
    fn from(change: Change) -> String {
        change.text
    }
}

/// Carries out changes, one after the other.
///
/// # Errors
/// When one makes no sense for this config: a variable of it is no port.
pub fn apply(config: Config, changes: &[Change]) -> Result<Config, BadChange> {
    let mut state = Applying { config, command_given: false };
    for change in changes {
        change.apply(&mut state)?;
    }
    Ok(state.config)
}

#[derive(Default)]
struct Applying {
    config: Config,
    /// A CMD came before: an ENTRYPOINT does not take it away.
    command_given: bool,
}

impl Change {
    fn apply(&self, state: &mut Applying) -> Result<(), BadChange> {
        let bad = |what| BadChange::Arguments { given: self.text.escape_debug().to_string(), what };
        let config = &mut state.config;
        let env = config.env.clone();
        let value = |text: &str| expand(text, &env, Quotes::Remove).map_err(bad);
        match &self.instruction {
            Instruction::Cmd(form) => {
                config.command = form.command(&config.shell);
                state.command_given = true;
            }
            Instruction::Entrypoint(form) => {
                config.entrypoint = form.command(&config.shell);
                if !state.command_given {
                    config.command.clear();
                }
            }
            Instruction::Env(pairs) => {
                for (name, text) in pairs {
                    let pair = format!("{name}={}", value(text)?);
                    let of_name = |known: &String| known.split('=').next() == Some(name);
                    match config.env.iter().position(of_name) {
                        Some(at) => config.env[at] = pair,
                        None => config.env.push(pair),
                    }
                }
            }
            Instruction::Label(pairs) => {
                for (name, text) in pairs {
                    config.labels.insert(value(name)?, value(text)?);
                }
            }
            Instruction::Expose(words) => {
                for word in words {
                    for port in ports(&value(word)?).map_err(bad)? {
                        insert(&mut config.ports, port);
                    }
                }
            }
            Instruction::OnBuild(text) => config.on_build.push(text.clone()),
            Instruction::User(text) => config.user = value(text)?,
            Instruction::Volume(paths) => {
                for path in paths {
                    match value(path)? {
                        path if path.is_empty() => return Err(bad("a volume has a path")),
                        path => insert(&mut config.volumes, path),
                    }
                }
            }
            Instruction::Workdir(text) => config.workdir = below(&config.workdir, &value(text)?),
            Instruction::StopSignal(text) => config.stop_signal.clone_from(text),
            Instruction::Healthcheck(Health::None) => {
                config.healthcheck =
                    Some(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() });
            }
            Instruction::Healthcheck(Health::Check { check, form }) => {
                let test = match form {
                    Form::Exec(words) => [&["CMD".to_owned()], words.as_slice()].concat(),
                    Form::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                };
                config.healthcheck = Some(Healthcheck { test, ..check.clone() });
            }
        }
        Ok(())
    }
}

/// Sorted, each once: a port or volume is the name of a member in the document.
fn insert(list: &mut Vec<String>, new: String) {
    if let Err(at) = list.binary_search(&new) {
        // The list of a base may be in any order.
        if !list.contains(&new) {
            list.insert(at, new);
        }
    }
}

fn form(text: &str) -> Form {
    match json(text) {
        Some(words) => Form::Exec(words),
        None => Form::Shell(text.to_owned()),
    }
}

/// The form of a list of strings; what is no such list is a command for a shell, as `[ -e x ]`.
fn json(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

impl Form {
    fn command(&self, shell: &[String]) -> Vec<String> {
        match self {
            Form::Exec(words) => words.clone(),
            Form::Shell(text) if text.is_empty() => Vec::new(),
            Form::Shell(text) if shell.is_empty() => {
                vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()]
            }
            Form::Shell(text) => [shell, std::slice::from_ref(text)].concat(),
        }
    }
}

fn paths(text: &str) -> Result<Vec<String>, &'static str> {
    match json(text) {
        Some(list) if list.is_empty() => Err("a volume has a path"),
        Some(list) => Ok(list),
        None => words(text, Quotes::Keep),
    }
}

fn on_build(text: &str) -> Result<String, &'static str> {
    let name = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match name.as_str() {
        "ONBUILD" => Err("ONBUILD cannot be chained"),
        "FROM" | "MAINTAINER" => Err("FROM and MAINTAINER cannot be triggered"),
        _ => Ok(text.to_owned()),
    }
}

/// A number or a name; which names there are is the kernel's of the machine it will run on.
fn signal(text: &str) -> Result<String, &'static str> {
    let number = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let is_name = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-'));
    if number || is_name { Ok(text.to_owned()) } else { Err("that is no signal") }
}

/// `80`, `80/tcp`, `8000-8010/udp`: each with its protocol.
fn ports(text: &str) -> Result<Vec<String>, &'static str> {
    let bad = "a port is a number from 1 to 65535 or a range, with /tcp, /udp or /sctp behind it";
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(bad);
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or(bad);
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(bad);
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// The path of a directory, from another one if it is relative.
fn below(now: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{now}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn health(text: &str) -> Result<Health, &'static str> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).ok_or("CMD or NONE is missing")?;
        let (name, value) = flag.split_once('=').ok_or("an option of HEALTHCHECK has a value behind `=`")?;
        let place = match name {
            "interval" => &mut check.interval,
            "timeout" => &mut check.timeout,
            "start-period" => &mut check.start_period,
            "start-interval" => &mut check.start_interval,
            "retries" => {
                check.retries = value.parse().ok().filter(|n| *n > 0).ok_or("retries are a number from 1")?;
                rest = after.trim_start();
                continue;
            }
            _ => return Err("HEALTHCHECK has no such option"),
        };
        *place = duration(value).ok_or("that is no duration: 30s, 1m30s")?;
        rest = after.trim_start();
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if command.trim().is_empty() && check == Healthcheck::default() => Ok(Health::None),
        "NONE" => Err("NONE stands alone"),
        "CMD" if !command.trim().is_empty() => Ok(Health::Check { check, form: form(command.trim()) }),
        "CMD" => Err("it says nothing to run"),
        _ => Err("it has to be HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE"),
    }
}

/// A duration as Go writes it, in nanoseconds: `1h2m3.5s`.
fn duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(at);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        total += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    // Docker takes none below a millisecond, and Go's durations end with 292 years.
    (1e6..9.2e18).contains(&total).then_some(total as i64)
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
