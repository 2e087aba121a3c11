//! What a guest does, step by step: each test in a process of its own, and runs of the torture harness.
//!
//! Steps are numbered, so that a guest that takes over from one that died begins where that one was.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::packages::Kernel;
use crate::shell;

/// Test binaries of `tests/` that run whole in a guest.
const TESTS: [&str; 4] = ["tracker", "fentry", "window", "causality"];

/// What `.ci/run` runs on each kernel: that every event is there and means what it should, one cut with each gate, and that a missed
/// event is noticed.
const SHORT: [(&str, &[&str]); 3] = [
    ("tracker", &["every_operation_is_seen", "t4_a_mapped_file"]),
    ("window", &["g3_the_fence_falls_by_itself", "g2_t3_a_change"]),
    ("causality", &["t6_dropped_events_are_swept_up"]),
];

/// The torture harness: file system, and seed, so that each has other writers. A hardened host refuses fentry, which btrfs and tmpfs take: here is
/// where it is shown.
const TORTURE: [(&str, &str); 4] = [("btrfs", "8"), ("tmpfs", "9"), ("xfs", "7"), ("ext4", "6")];

/// Two sessions of 12 cuts, one by the fence and one by the freezer, with as many threads as an emulated machine of two processors can bear.
const TORTURE_SIZE: [&str; 6] = ["--cuts", "24", "--threads", "2", "--minutes", "3"];

/// What a kernel's steps leave out, and why.
const LEFT_OUT: [(Kernel, &str, &str); 1] = [(
    Kernel::Six1,
    "torture tmpfs",
    "its tmpfs has no user attributes, which the writers' trees begin with",
)];

/// One process of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// What the report calls it.
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
}

/// The steps, and the files they take.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// What cargo built, tests and the programs they start: they know each other by their paths here.
    pub(super) programs: Vec<PathBuf>,
}

impl Plan {
    /// What of it there is to do on this kernel; says what is left out.
    pub(super) fn on(&self, kernel: Kernel) -> Plan {
        let left_out = |step: &Step| {
            let found = LEFT_OUT.iter().find(|(on, name, _)| *on == kernel && *name == step.name);
            if let Some((_, name, why)) = found {
                eprintln!("vm-test: left out on {}: {name}: {why}", kernel.series());
            }
            found.is_some()
        };
        let steps = self.steps.iter().filter(|step| !left_out(step)).cloned().collect();
        Plan { steps, programs: self.programs.clone() }
    }
}

/// What is asked for: test binaries with filters of which a test's name has to contain one, and whether to torture.
pub(super) struct Wanted {
    tests: Vec<(String, Vec<String>)>,
    torture: bool,
}

impl Wanted {
    pub(super) fn short() -> Wanted {
        let strings = |filters: &[&str]| filters.iter().map(|filter| (*filter).to_owned()).collect();
        let tests = SHORT.iter().map(|(test, filters)| ((*test).to_owned(), strings(filters))).collect();
        Wanted { tests, torture: false }
    }

    /// These binaries, or everything; only the tests whose name contains the filter.
    pub(super) fn whole(tests: &[String], filter: Option<&str>) -> Wanted {
        let everything = tests.is_empty();
        let names = if everything { TESTS.map(str::to_owned).to_vec() } else { tests.to_vec() };
        let filters: Vec<String> = filter.map(str::to_owned).into_iter().collect();
        Wanted {
            tests: names.into_iter().map(|name| (name, filters.clone())).collect(),
            torture: everything && filter.is_none(),
        }
    }

    pub(super) fn torture() -> Wanted {
        Wanted { tests: Vec::new(), torture: true }
    }

    /// Builds what it takes, and lists the steps.
    pub(super) fn plan(&self) -> Result<Plan> {
        let built = build(&self.tests)?;
        let of_kind = |wanted: &'static str| built.iter().filter(move |(kind, _, _)| kind == wanted);
        let mut steps = Vec::new();
        for (test, filters) in &self.tests {
            let (_, _, program) = of_kind("test")
                .find(|(_, name, _)| name == test)
                .with_context(|| format!("cargo built no test binary `{test}`"))?;
            let list = shell::output(shell::program(program).args(["--list", "--format", "terse"]))?;
            let before = steps.len();
            steps.extend(names(&list, filters).map(|name| one_test(test, program, name)));
            if steps.len() == before && !filters.is_empty() && self.tests.len() == 1 {
                bail!("`{test}` has no test whose name contains {}", filters.join(" or "));
            }
        }
        if self.torture {
            let (_, _, program) =
                of_kind("bin").find(|(_, name, _)| name == "torture").context("cargo built no `torture`")?;
            steps.extend(TORTURE.map(|(file_system, seed)| torture(program, file_system, seed)));
        }
        if steps.is_empty() {
            bail!("no test has such a name");
        }
        Ok(Plan { steps, programs: built.into_iter().map(|(_, _, path)| path).collect() })
    }
}

fn one_test(binary: &str, program: &Path, name: &str) -> Step {
    Step {
        name: format!("{binary} {name}"),
        program: program.to_owned(),
        arguments: ["--exact", name, "--nocapture"].map(str::to_owned).to_vec(),
    }
}

fn torture(program: &Path, file_system: &str, seed: &str) -> Step {
    let arguments = ["--fs", file_system, "--seed", seed].into_iter().chain(TORTURE_SIZE);
    Step {
        name: format!("torture {file_system}"),
        program: program.to_owned(),
        arguments: arguments.map(str::to_owned).collect(),
    }
}

/// The tests in libtest's terse list whose name contains one of the filters; without filters all.
fn names<'a>(list: &'a str, filters: &'a [String]) -> impl Iterator<Item = &'a str> {
    let wanted = |name: &&str| filters.is_empty() || filters.iter().any(|filter| name.contains(&**filter));
    list.lines().filter_map(|line| line.strip_suffix(": test")).filter(wanted)
}

/// Kind, name and path of the test binaries and of the programs they start.
fn build(tests: &[(String, Vec<String>)]) -> Result<Vec<(String, String, PathBuf)>> {
    let mut command = shell::cargo();
    command.args(["build", "--package=snapshot-tests", "--bins", "--message-format=json-render-diagnostics"]);
    for (test, _) in tests {
        command.arg("--test").arg(test);
    }
    let done = command.stderr(Stdio::inherit()).output().context("cannot start `cargo build`")?;
    if !done.status.success() {
        bail!("the tests for the guests could not be built");
    }
    built(&String::from_utf8_lossy(&done.stdout))
}

/// Kind, name and path of what cargo's messages say was made.
fn built(messages: &str) -> Result<Vec<(String, String, PathBuf)>> {
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value = serde_json::from_str(line).context("reading cargo's messages")?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let target = &message["target"];
        if let (Some(kind), Some(name), Some(path)) =
            (text(&target["kind"][0]), text(&target["name"]), text(&message["executable"]))
        {
            found.push((kind, name, path.into()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"x"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"tracker"},"executable":"/t/tracker-1"}"#,
            "\nnot a message\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(built(messages).unwrap(), [("test".into(), "tracker".into(), "/t/tracker-1".into())]);
    }

    #[test]
    fn tests_are_chosen_by_any_of_the_filters() {
        let list = "one_on_ext4: test\none_on_xfs: test\ntwo: test\nslow: benchmark\n\n4 tests\n";
        let filters = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(list, &filters(&[])).count(), 3);
        assert_eq!(names(list, &filters(&["ext4", "two"])).collect::<Vec<_>>(), ["one_on_ext4", "two"]);
    }

    #[test]
    fn what_is_named_is_all_that_runs() {
        assert!(Wanted::whole(&[], None).torture);
        let named = Wanted::whole(&["window".to_owned()], Some("g7"));
        assert!(!named.torture && named.tests == [("window".to_owned(), vec!["g7".to_owned()])]);
    }

    #[test]
    fn what_is_left_out_is_a_step_that_there_is() {
        let step = |(file_system, seed)| torture(Path::new("/t/torture"), file_system, seed);
        let plan = Plan { steps: TORTURE.map(step).to_vec(), programs: Vec::new() };
        for kernel in Kernel::ALL {
            let left_out = LEFT_OUT.iter().filter(|(on, _, _)| *on == kernel).count();
            assert_eq!(plan.on(kernel).steps.len(), TORTURE.len() - left_out);
        }
    }
}
