//! The rule that keeps the way of the data one way: which module of the engine may know which other. A
//! stage takes the previous stage's value, which lies in `model`, and never the previous stage itself; only
//! `pipeline` knows the order.

use super::source::Source;
use super::{Complaint, File, is_word};

const ENGINE: &str = "snapshot-engine/src/";

/// What every module may use: values, the door to the kernel, and measuring.
const GROUND: [&str; 3] = ["model", "kernel", "telemetry"];

/// What a module may use beyond itself.
enum May {
    /// Nothing of the engine at all but these.
    Only(&'static [&'static str]),
    /// The ground, and these paths.
    Ground(&'static [&'static str]),
    /// Everything: it puts the stages together or hands them to a user.
    All,
}

/// Every module, with the reason for what it may use beyond the ground.
const MODULES: &[(&str, May)] = &[
    // The ground itself stands on nothing above it.
    ("model", May::Only(&[])),
    ("kernel", May::Only(&["model"])),
    ("telemetry", May::Only(&["model"])),
    // The resolver of the demo runtime reads that runtime's state, as runc's reads runc's.
    ("container", May::Ground(&["demo::state"])),
    ("track", May::Ground(&[])),
    // The window reads and writes the tracker's shared memory itself: a seam between the two would be code that runs
    // while writers are held.
    ("freeze", May::Ground(&["track"])),
    ("capture", May::Ground(&[])),
    // A blob ends with what the format says of its chunks: pure bytes.
    ("chunk", May::Ground(&["rafs::blob"])),
    // A pure format: not even the ground's doors, so that readers can be fuzzed and writers tested on bytes.
    ("rafs", May::Only(&["model"])),
    // An image is made of blobs and a bootstrap: it drives the chunker and the format's writer.
    ("image", May::Ground(&["chunk", "rafs"])),
    // It reads what `image` has written: the format, the digest of a chunk, and the kernel's mount, which `image` has for its tests.
    ("reader", May::Ground(&["rafs", "chunk::codec", "image::mount"])),
    // A layout and a tag are all it knows of an image: it reads the documents of the layout, whoever wrote them.
    ("deliver", May::Ground(&[])),
    // What an OCI runtime is told, of what an image says: pure.
    ("restore", May::Only(&["model"])),
    ("store", May::Ground(&[])),
    ("demo", May::All),
    // It uses the engine as a user would, and measures it.
    ("bench", May::All),
    // It shows the engine and judges it, as a user would who has all its parts in hand.
    ("showcase", May::All),
    ("pipeline", May::All),
    ("service", May::All),
    ("snapshotter", May::All),
    ("seamless", May::All),
    ("cli", May::All),
    ("main", May::All),
];

pub(super) fn check(file: &File, source: &Source, complaints: &mut Vec<Complaint>) {
    let Some(inside) = file.name.strip_prefix(ENGINE) else { return };
    let module = inside.split('/').next().unwrap_or(inside);
    let module = module.strip_suffix(".rs").unwrap_or(module);
    if module == "lib" {
        return;
    }
    let mut complain = |line: usize, what: String, remedy: &'static str| {
        let why = "stages that know each other cannot be understood, tested or reordered alone";
        complaints.push(Complaint { file: file.name.clone(), line, what, why, remedy });
    };
    let Some((_, may)) = MODULES.iter().find(|(name, _)| *name == module) else {
        let what = format!("the module `{module}` has no row in the table of modules");
        complain(1, what, "say in xtask/src/tidy/stages.rs what it may use and why");
        return;
    };
    for (line, path) in uses(source) {
        let mut allowed = path.split("::").next() == Some(module);
        let below = |wide: &&str| {
            path == **wide || path.strip_prefix(*wide).is_some_and(|rest| rest.starts_with("::"))
        };
        allowed |= match may {
            May::All => true,
            May::Only(paths) => paths.iter().any(below),
            May::Ground(paths) => paths.iter().chain(&GROUND).any(below),
        };
        if !allowed {
            let what = format!("`{module}` uses `crate::{path}`");
            complain(line, what, "hand the value over through `model`, or let `pipeline` do the joining");
        }
    }
}

/// Every path below `crate` that the file's code names, outside tests: a test may set one stage against
/// another. With the line it starts on; a group `crate::{a, b::c}` gives each member.
fn uses(source: &Source) -> Vec<(usize, String)> {
    let mut text = String::new();
    let mut ends = Vec::new();
    for line in &source.lines {
        if !line.test {
            text.push_str(&line.code);
        }
        text.push('\n');
        ends.push(text.len());
    }
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` and `pub(in crate::x)` name the crate too; a longer name such as `mycrate::` does not.
        if !is_word(&text, at, "crate") {
            continue;
        }
        let line = ends.partition_point(|end| *end <= at) + 1;
        let rest = &text[at + "crate::".len()..];
        let members = match rest.strip_prefix('{') {
            Some(group) => members(group),
            None => vec![path(rest)],
        };
        found.extend(members.into_iter().filter(|path| !path.is_empty()).map(|path| (line, path)));
    }
    found
}

/// The leading path of each member of a group, up to the group's closing brace.
fn members(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut found) = (0u32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                found.push(path(&group[start..at]));
                start = at + 1;
            }
            '}' => {
                found.push(path(&group[start..at]));
                break;
            }
            _ => {}
        }
    }
    found
}

fn path(text: &str) -> String {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len());
    text[..end].trim_end_matches(':').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, text: &str) -> Vec<(usize, String)> {
        let file = File { name: format!("{ENGINE}{name}"), text: text.to_owned() };
        let mut found = Vec::new();
        check(&file, &Source::parse(&file.name, text), &mut found);
        found.into_iter().map(|complaint| (complaint.line, complaint.what)).collect()
    }

    #[test]
    fn a_stage_may_use_the_ground_and_itself() {
        let text = "use crate::model::Ino;\nuse crate::kernel;\nuse crate::track::object;\n";
        assert_eq!(complaints("track/x.rs", text), []);
    }

    #[test]
    fn a_stage_may_not_use_another() {
        let found = complaints("track/x.rs", "\nlet a = crate::capture::walk();\n");
        assert_eq!(found, [(2, "`track` uses `crate::capture::walk`".to_owned())]);
    }

    #[test]
    fn freeze_sees_the_tracker_and_no_other_stage() {
        assert_eq!(complaints("freeze/x.rs", "use crate::track::Live;\n"), []);
        assert_eq!(complaints("freeze/x.rs", "use crate::tracks;\n").len(), 1);
        assert_eq!(complaints("freeze/x.rs", "use crate::capture::residual;\n").len(), 1);
        assert_eq!(complaints("track/x.rs", "use crate::freeze::gate;\n").len(), 1);
    }

    #[test]
    fn groups_are_looked_into() {
        let text = "use crate::{\n    model::{Ino, Nanos},\n    store::Record,\n};\n";
        assert_eq!(complaints("chunk/x.rs", text), [(1, "`chunk` uses `crate::store::Record`".to_owned())]);
    }

    #[test]
    fn the_ground_stands_on_nothing() {
        assert_eq!(complaints("model/x.rs", "use crate::kernel::uring;\n").len(), 1);
        assert_eq!(complaints("rafs/x.rs", "use crate::kernel::uring;\n").len(), 1);
    }

    #[test]
    fn what_joins_the_stages_may_use_all_and_tests_may_too() {
        assert_eq!(complaints("pipeline/x.rs", "use crate::{freeze, capture};\n"), []);
        assert_eq!(complaints("chunk/x.rs", "#[cfg(test)]\nmod t { use crate::rafs::x; }\n"), []);
    }

    #[test]
    fn a_new_module_needs_a_row() {
        assert_eq!(complaints("novelty/mod.rs", "").len(), 1);
        assert_eq!(complaints("lib.rs", "pub mod novelty;\n"), []);
    }
}
