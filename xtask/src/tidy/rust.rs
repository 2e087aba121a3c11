//! Rules about Rust code: where `unsafe` may be and what stands above it, how long a file may be, and what
//! must not be left in.

use super::source::{Line, Source};
use super::{Complaint, File, words};

/// Where `unsafe` is allowed: the door to the kernel, the programs that run inside it, and, outside of everything that is shipped, the one file with which the
/// tests write by io_uring and the kernel's AIO. Neither has a safe door in any crate, because the kernel keeps using the caller's memory; the engine itself has
/// no use for either request, so they do not belong into its `kernel`.
const UNSAFE_HOMES: [&str; 3] = ["snapshot-engine/src/kernel/", "snapshot-ebpf/", "tests/src/raw.rs"];

const LONGEST: usize = 600;

pub(super) fn check(file: &File, source: &Source, complaints: &mut Vec<Complaint>) {
    let mut complain = |line: usize, what: String, why: &'static str, remedy: &'static str| {
        complaints.push(Complaint { file: file.name.clone(), line, what, why, remedy });
    };
    if source.lines.len() > LONGEST {
        let what = format!("{} lines, more than {LONGEST}", source.lines.len());
        complain(LONGEST + 1, what, "nobody reads a file this long", "split it by what its parts are for");
    }
    let at_home = UNSAFE_HOMES.iter().any(|home| file.name.starts_with(home));
    for (number, line) in source.numbered() {
        if !at_home && words(&line.code, "unsafe").next().is_some() {
            let why = "unsafe code is reviewed in one place";
            complain(
                number,
                "`unsafe`".into(),
                why,
                "move it behind a safe function in snapshot-engine/src/kernel",
            );
        }
        if is_unsafe_promise(source, number - 1) && !has_safety_comment(&source.lines, number - 1) {
            let why = "nobody can check a promise that is not written down";
            complain(
                number,
                "`unsafe` without a SAFETY comment".into(),
                why,
                "say above it what makes it sound",
            );
        }
        for (what, why, remedy) in left_in(line) {
            complain(number, what.to_owned(), why, remedy);
        }
    }
}

fn left_in(line: &Line) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut found = Vec::new();
    let has =
        |word: &'static str| words(&line.code, word).any(|at| line.code[at + word.len()..].starts_with('!'));
    if has("todo") || has("unimplemented") {
        found.push((
            "`todo!` or `unimplemented!`",
            "it panics in a user's hands",
            "write the code or leave the feature out",
        ));
    }
    for word in [concat!("FIX", "ME"), concat!("XX", "X")] {
        if words(&line.comment, word).next().is_some() {
            found.push((word, "a note in the code is read by nobody", "mend it now or file an issue"));
        }
    }
    if line.code.contains(concat!("#[", "ignore")) {
        found.push((
            "an ignored test",
            "it guards nothing",
            "make it run, or let it say which need is missing",
        ));
    }
    if !line.test && line.code.contains(concat!(".unw", "rap()")) {
        found.push((
            "`.unwrap()` outside tests",
            "it panics without a reason",
            "return an error, or `expect` what makes it certain",
        ));
    }
    found
}

/// Whether the line starts an unsafe block or implementation. `unsafe fn` and `#[unsafe(..)]` promise
/// nothing themselves: clippy asks the former for a `# Safety` section.
fn is_unsafe_promise(source: &Source, index: usize) -> bool {
    let line = &source.lines[index].code;
    words(line, "unsafe").any(|at| {
        let rest = line[at + "unsafe".len()..].trim_start();
        let next_line = source.lines.get(index + 1).map_or("", |line| line.code.trim_start());
        let rest = if rest.is_empty() { next_line } else { rest };
        rest.starts_with('{') || rest.starts_with("impl")
    })
}

/// Whether a comment with `SAFETY` stands above the line, or above the statement that the line continues.
fn has_safety_comment(lines: &[Line], index: usize) -> bool {
    if lines[index].comment.contains("SAFETY:") {
        return true;
    }
    let mut continues = true;
    for line in lines[..index].iter().rev() {
        let code = line.code.trim();
        if code.is_empty() {
            if line.comment.is_empty() {
                return false;
            }
            if line.comment.contains("SAFETY:") {
                return true;
            }
            // A comment ends the search for the statement's start, not for the comment's own start.
            continues = false;
        } else if code.starts_with("#[") {
            continue;
        } else if !continues || code.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, text: &str) -> Vec<(usize, String)> {
        let file = File { name: name.to_owned(), text: text.to_owned() };
        let mut found = Vec::new();
        check(&file, &Source::parse(name, text), &mut found);
        found.into_iter().map(|complaint| (complaint.line, complaint.what)).collect()
    }

    const KERNEL: &str = "snapshot-engine/src/kernel/x.rs";

    #[test]
    fn unsafe_has_its_homes() {
        let text = "// SAFETY: as promised\nunsafe impl Send for X {}\n";
        assert_eq!(complaints(KERNEL, text), []);
        assert_eq!(complaints("snapshot-ebpf/src/main.rs", text), []);
        assert_eq!(complaints("snapshot-engine/src/track/x.rs", text), [(2, "`unsafe`".to_owned())]);
        assert_eq!(
            complaints("xtask/src/x.rs", "#![forbid(unsafe_code)] // unsafe\nlet a = \"unsafe\";\n"),
            []
        );
    }

    #[test]
    fn unsafe_blocks_carry_their_reason() {
        let bad = [(1, "`unsafe` without a SAFETY comment".to_owned())];
        assert_eq!(complaints(KERNEL, "let a = unsafe { f() };\n"), bad);
        assert_eq!(
            complaints(KERNEL, "// SAFETY: so\n// and so\n#[rustfmt::skip]\nlet a =\n    unsafe { f() };\n"),
            []
        );
        assert_eq!(complaints(KERNEL, "// SAFETY: of the first\na();\nunsafe { f() };\n").len(), 1);
        assert_eq!(complaints(KERNEL, "// SAFETY: far\n\nunsafe { f() };\n").len(), 1);
        assert_eq!(complaints(KERNEL, "unsafe fn f() {}\n#[unsafe(no_mangle)]\nfn g() {}\n"), []);
    }

    #[test]
    fn long_files_are_complained_about_once() {
        assert_eq!(complaints("a.rs", &"x\n".repeat(600)), []);
        assert_eq!(complaints("a.rs", &"x\n".repeat(601)).len(), 1);
    }

    #[test]
    fn what_must_not_be_left_in() {
        assert_eq!(complaints("a.rs", "fn f() { todo!() }\n").len(), 1);
        assert_eq!(complaints("a.rs", "fn f() { unimplemented!(\"later\") }\n").len(), 1);
        assert_eq!(complaints("a.rs", concat!("// FIX", "ME: later\n")).len(), 1);
        assert_eq!(complaints("a.rs", concat!("// XX", "X\nlet a = \"mkdtemp-XXXXXX\";\n")).len(), 1);
        assert_eq!(complaints("tests/a.rs", concat!("#[", "ignore = \"slow\"]\n")).len(), 1);
        assert_eq!(
            complaints("a.rs", "a.unwrap();\n#[cfg(test)]\nmod t { fn f() { a.unwrap(); } }\n").len(),
            1
        );
        assert_eq!(complaints("a.rs", "a.unwrap_or(1); // todo later, not the macro\n"), []);
    }
}
