//! `cargo xtask tidy`: the house rules that no compiler checks. A rule that is only written down is broken
//! within a month; each one here is small, has a reason, and says what to do.

mod documents;
mod rust;
mod source;
mod stages;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::{shell, workspace};

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Complaint {
    file: String,
    line: usize,
    what: String,
    why: &'static str,
    remedy: &'static str,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, why, remedy } = self;
        write!(f, "{file}:{line}: {what}: {why}; {remedy}")
    }
}

/// A file of the project. `name` is its path from the root.
struct File {
    name: String,
    text: String,
}

/// Fails if a rule is broken, after naming every place. `tasks` are the names of the tasks that exist.
pub(crate) fn tidy(tasks: &BTreeSet<String>) -> Result<()> {
    let root = workspace::root();
    let files = files(root)?;
    let mut complaints = Vec::new();
    for file in &files {
        text::check(file, &mut complaints);
        if file.name.ends_with(".rs") {
            let source = source::Source::parse(&file.name, &file.text);
            rust::check(file, &source, &mut complaints);
            stages::check(file, &source, &mut complaints);
        }
    }
    documents::check(root, &files, tasks, &mut complaints);

    complaints.sort();
    for complaint in &complaints {
        println!("{complaint}");
    }
    if complaints.is_empty() {
        eprintln!("tidy: {} files, nothing to complain about", files.len());
        return Ok(());
    }
    bail!("{} complaints about {} files", complaints.len(), files.len())
}

/// What is tracked, and what would be by `git add`: a rule should speak before the commit and not after.
fn files(root: &Path) -> Result<Vec<File>> {
    let mut list = shell::program("git");
    // A clone may belong to another user than the one who runs CI; listing names trusts nothing in it.
    list.args(["-c", "safe.directory=*"]);
    list.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let names = shell::output(&mut list)?;
    let read = |name: &str| {
        // Listed but deleted, a link, or not text: nothing to read.
        let path = root.join(name);
        let text = path.symlink_metadata().ok()?.is_file().then(|| fs::read(&path).ok())??;
        Some(File { name: name.to_owned(), text: String::from_utf8(text).ok()? })
    };
    Ok(names.split('\0').filter(|name| !name.is_empty()).filter_map(read).collect())
}

/// Whether `word` stands at `at` as a word of its own and not inside a longer name.
fn is_word(text: &str, at: usize, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    !text[..at].ends_with(joins) && !text[at + word.len()..].starts_with(joins)
}

/// Where `word` stands as a word of its own.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| is_word(text, *at, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_says_where_what_why_and_what_to_do() {
        let complaint =
            Complaint { file: "a.rs".into(), line: 3, what: "x".into(), why: "y", remedy: "do z" };
        assert_eq!(complaint.to_string(), "a.rs:3: x: y; do z");
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("unsafe_code unsafe", "unsafe").collect::<Vec<_>>(), [12]);
    }
}
