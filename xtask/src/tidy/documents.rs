//! Rules that keep the documents true: what they name exists, and what exists is named.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Complaint, File, words};

const ARCHITECTURE: &str = "docs/architecture.md";
const README: &str = "README.md";
const CHANGELOG: &str = "CHANGELOG.md";
const ENGINE: &str = "snapshot-engine/src/";

pub(super) fn check(root: &Path, files: &[File], tasks: &BTreeSet<String>, complaints: &mut Vec<Complaint>) {
    let mut find = |name: &str| {
        let text = files.iter().find(|file| file.name == name).map(|file| file.text.as_str());
        if text.is_none() {
            complaints.push(Complaint {
                file: name.to_owned(),
                line: 1,
                what: "the file does not exist".to_owned(),
                why: "a newcomer starts there",
                remedy: "write it",
            });
        }
        text.unwrap_or_default()
    };
    let (architecture, readme, changelog) = (find(ARCHITECTURE), find(README), find(CHANGELOG));
    if !architecture.is_empty() {
        let names: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        unnamed_modules(architecture, &names, complaints);
        missing_paths(architecture, &|path| root.join(path).exists(), complaints);
    }
    missing_tasks(readme, tasks, complaints);
    if !changelog.is_empty() && !changelog.lines().any(|line| line.starts_with("## [Unreleased]")) {
        complaints.push(Complaint {
            file: CHANGELOG.to_owned(),
            line: 1,
            what: "no `## [Unreleased]` section".to_owned(),
            why: "changes are written down when they are made, not when they are released",
            remedy: "add it above the newest release",
        });
    }
}

/// Directories of the engine that the document does not name.
fn unnamed_modules(text: &str, names: &BTreeSet<&str>, complaints: &mut Vec<Complaint>) {
    let inside = names.iter().filter_map(|name| name.strip_prefix(ENGINE)?.split_once('/'));
    let modules: BTreeSet<&str> = inside.map(|(module, _)| module).collect();
    for module in modules {
        let named = words(text, module).any(|at| text[at + module.len()..].starts_with('/'));
        if !named {
            complaints.push(Complaint {
                file: ARCHITECTURE.to_owned(),
                line: 1,
                what: format!("`{ENGINE}{module}/` is not named"),
                why: "the map must show every room",
                remedy: "say there what the module is for and what it must never do",
            });
        }
    }
}

/// Paths in backticks that do not exist, from the root or from the engine's sources.
fn missing_paths(text: &str, exists: &dyn Fn(&str) -> bool, complaints: &mut Vec<Complaint>) {
    for (line, word) in in_backticks(text) {
        if !is_path(word, exists) || exists(word) || exists(&format!("{ENGINE}{word}")) {
            continue;
        }
        complaints.push(Complaint {
            file: ARCHITECTURE.to_owned(),
            line,
            what: format!("`{word}` does not exist"),
            why: "a map that names what is not there is not trusted for what is",
            remedy: "name where it went, or remove it",
        });
    }
}

/// Whether a word is meant as a path of the project: it ends like one of our files, or it has a slash and
/// begins in a directory that exists. `cgroup.events` and `/sys/kernel/btf` are the kernel's.
fn is_path(word: &str, exists: &dyn Fn(&str) -> bool) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    if !plain || word.starts_with(['/', '.', '-']) || word.starts_with("target/") {
        return false;
    }
    if [".rs", ".md", ".toml"].iter().any(|ending| word.ends_with(ending)) {
        return true;
    }
    let first = word.split('/').next().unwrap_or_default();
    word.ends_with('/') || (word.contains('/') && (exists(first) || exists(&format!("{ENGINE}{first}"))))
}

/// What stands between single backticks, with its line. Fenced blocks are drawings and not looked at.
fn in_backticks(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(|word| (index + 1, word)));
        }
    }
    found
}

/// Tasks that the README tells the reader to run and that do not exist.
fn missing_tasks(readme: &str, tasks: &BTreeSet<String>, complaints: &mut Vec<Complaint>) {
    for (index, line) in readme.lines().enumerate() {
        for (at, call) in line.match_indices("cargo xtask ") {
            let rest = &line[at + call.len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
            let task = &rest[..end];
            if !task.is_empty() && !task.starts_with('-') && !tasks.contains(task) {
                complaints.push(Complaint {
                    file: README.to_owned(),
                    line: index + 1,
                    what: format!("`cargo xtask {task}` does not exist"),
                    why: "the README's commands are the first thing anyone tries",
                    remedy: "name a task that `cargo xtask --help` lists",
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(complaints: &[Complaint]) -> Vec<(usize, &str)> {
        complaints.iter().map(|complaint| (complaint.line, complaint.what.as_str())).collect()
    }

    #[test]
    fn every_module_is_on_the_map() {
        let names = [
            "snapshot-engine/src/track/mod.rs",
            "snapshot-engine/src/rafs/a/b.rs",
            "snapshot-engine/src/lib.rs",
        ];
        let mut found = Vec::new();
        unnamed_modules("track/ is here, and rafsx/ is another", &BTreeSet::from(names), &mut found);
        assert_eq!(whats(&found), [(1, "`snapshot-engine/src/rafs/` is not named")]);
    }

    #[test]
    fn every_path_on_the_map_exists() {
        let exists = |path: &str| {
            ["tests", "snapshot-engine/src/track", "snapshot-engine/src/track/mod.rs"].contains(&path)
        };
        let text = "`track/mod.rs` `track/gone.rs` `/sys/x` `cgroup.events` `read/write`\n```\n`old.rs`\n```\n`tests/gone`\n`a<b>.rs`\n";
        let mut found = Vec::new();
        missing_paths(text, &exists, &mut found);
        assert_eq!(
            whats(&found),
            [(1, "`track/gone.rs` does not exist"), (5, "`tests/gone` does not exist")]
        );
    }

    #[test]
    fn the_readme_names_tasks_that_exist() {
        let tasks = BTreeSet::from(["run".to_owned()]);
        let mut found = Vec::new();
        missing_tasks(
            "    cargo xtask run   # all\n`cargo xtask fly` and `cargo xtask --help`\n",
            &tasks,
            &mut found,
        );
        assert_eq!(whats(&found), [(2, "`cargo xtask fly` does not exist")]);
    }

    #[test]
    fn the_changelog_has_room_for_what_comes() {
        let file = |name: &str, text: &str| File { name: name.to_owned(), text: text.to_owned() };
        let files = |changelog| [file(ARCHITECTURE, "x"), file(README, "x"), file(CHANGELOG, changelog)];
        let complaints = |changelog| {
            let mut found = Vec::new();
            check(Path::new("."), &files(changelog), &BTreeSet::new(), &mut found);
            found.len()
        };
        assert_eq!(complaints("# Changelog\n\n## [Unreleased]\n"), 0);
        assert_eq!(complaints("# Changelog\n\n## 1.0\n"), 1);
    }

    #[test]
    fn missing_documents_are_named() {
        let mut found = Vec::new();
        check(Path::new("."), &[], &BTreeSet::new(), &mut found);
        assert_eq!(found.len(), 3);
    }
}
