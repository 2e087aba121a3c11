//! Rust source, split into what is code and what is comment. Not a parser: just enough of the lexical
//! grammar that a rule about code does not stumble over a word in a string or a comment.

/// One line of a source file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The code, with comments and the contents of literals replaced by blanks.
    pub(super) code: String,
    /// The comments' text.
    pub(super) comment: String,
    /// Whether the line belongs to test code.
    pub(super) test: bool,
}

/// A source file, line by line.
pub(super) struct Source {
    pub(super) lines: Vec<Line>,
}

impl Source {
    /// `name` tells files that are tests as a whole.
    pub(super) fn parse(name: &str, text: &str) -> Self {
        let mut lines = split(text);
        mark_tests(&mut lines);
        if is_test_file(name) {
            lines.iter_mut().for_each(|line| line.test = true);
        }
        Self { lines }
    }

    /// Lines with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().map(|(index, line)| (index + 1, line))
    }
}

fn is_test_file(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let last = parts.next().unwrap_or_default();
    // The packages `tests` and `benches`, and modules that a `#[cfg(test)] mod x;` brings in.
    name.starts_with("tests/")
        || name.starts_with("benches/")
        || last == "tests.rs"
        || last.ends_with("_tests.rs")
        || parts.any(|part| part == "tests")
}

enum State {
    Code,
    LineComment,
    BlockComment(u32),
    /// A string that ends at a quote followed by this many hashes; `None` where a backslash escapes.
    String(Option<usize>),
}

fn split(text: &str) -> Vec<Line> {
    let characters: Vec<char> = text.chars().collect();
    let mut lines = Vec::new();
    let mut line = Line::default();
    let mut state = State::Code;
    let mut at = 0;
    while at < characters.len() {
        let (now, rest) = (characters[at], &characters[at + 1..]);
        let next = rest.first().copied();
        at += 1;
        if now == '\n' {
            lines.push(std::mem::take(&mut line));
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            continue;
        }
        match state {
            State::Code => match now {
                '/' if next == Some('/') => state = State::LineComment,
                '/' if next == Some('*') => {
                    state = State::BlockComment(1);
                    at += 1;
                }
                '"' => {
                    state = State::String(raw_hashes(&line.code));
                    line.code.push('"');
                }
                '\'' => {
                    at += character_literal(rest);
                    line.code.push('\'');
                }
                other => line.code.push(other),
            },
            State::LineComment => line.comment.push(now),
            State::BlockComment(depth) => match (now, next) {
                ('*', Some('/')) => {
                    at += 1;
                    state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                }
                ('/', Some('*')) => {
                    at += 1;
                    state = State::BlockComment(depth + 1);
                }
                _ => line.comment.push(now),
            },
            State::String(None) if now == '\\' && next != Some('\n') => at += 1,
            State::String(hashes) if now == '"' => {
                let wanted = hashes.unwrap_or(0);
                if rest.iter().take(wanted).filter(|c| **c == '#').count() == wanted {
                    line.code.push('"');
                    state = State::Code;
                }
            }
            State::String(_) => {}
        }
    }
    if !line.code.is_empty() || !line.comment.is_empty() {
        lines.push(line);
    }
    lines
}

/// How many hashes a raw string that starts here needs to end; `None` if it is an ordinary string.
fn raw_hashes(code: &str) -> Option<usize> {
    let without = code.trim_end_matches('#');
    let prefix = without.strip_suffix('r')?;
    let prefix = prefix.strip_suffix(['b', 'c']).unwrap_or(prefix);
    let joined = prefix.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    (!joined).then_some(code.len() - without.len())
}

/// The characters that follow the quote of a character literal; none if the quote starts a lifetime.
fn character_literal(rest: &[char]) -> usize {
    match rest {
        // The escaped character may be a quote itself.
        ['\\', _, tail @ ..] => tail.iter().position(|c| *c == '\'').map_or(2, |end| end + 3),
        [_, '\'', ..] => 2,
        _ => 0,
    }
}

/// Marks the items under a `#[cfg(test)]`: up to the brace that closes the first one opened, or to a
/// semicolon before any.
fn mark_tests(lines: &mut [Line]) {
    let mut depth: Option<u32> = None;
    for line in lines {
        let mut code = line.code.as_str();
        if depth.is_none() {
            let Some(at) = code.find("#[cfg(") else { continue };
            let (condition, rest) = code[at..].split_once(']').unwrap_or((&code[at..], ""));
            if super::words(condition, "test").next().is_none() || condition.contains("not(test") {
                continue;
            }
            depth = Some(0);
            code = rest;
        }
        line.test = true;
        for c in code.chars() {
            depth = match (c, depth) {
                ('{', Some(open)) => Some(open + 1),
                ('}', Some(open)) if open > 1 => Some(open - 1),
                ('}', Some(_)) | (';', Some(0)) => None,
                (_, same) => same,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        split(text).into_iter().map(|line| line.code).collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(code("let a = \"x // y\"; // z"), ["let a = \"\"; "]);
        assert_eq!(code("/* a /* b */ c */ d"), [" d"]);
        assert_eq!(code("f(r#\"a\"b\"#, br\"\\\")"), ["f(r#\"\"#, br\"\")"]);
        assert_eq!(code("x\"a\\\"b\" y"), ["x\"\" y"]);
    }

    #[test]
    fn character_literals_are_told_from_lifetimes() {
        assert_eq!(code("m('\"', '\\'', '\\u{1F}', b'x')"), ["m(', ', ', b')"]);
        assert_eq!(code("fn f<'a>(x: &'a str)"), ["fn f<'a>(x: &'a str)"]);
    }

    #[test]
    fn strings_and_comments_go_over_lines() {
        assert_eq!(code("a(\"x\ny\") b\n/* c\nd */ e"), ["a(\"", "\") b", "", " e"]);
        assert_eq!(split("a // one\nb")[0].comment, "/ one");
    }

    #[test]
    fn test_items_are_marked_to_their_end() {
        let text =
            "a\n#[cfg(test)]\nmod tests {\n  fn f() { }\n}\nb\n#[cfg(test)]\nuse x;\nc\n#[cfg(not(test))]\nd";
        let test: Vec<bool> = Source::parse("x.rs", text).lines.iter().map(|line| line.test).collect();
        assert_eq!(test, [false, true, true, true, true, false, true, true, false, false, false]);
    }

    #[test]
    fn test_files_are_known_by_name() {
        assert!(is_test_file("tests/src/lib.rs") && is_test_file("a/src/overlay_tests.rs"));
        assert!(is_test_file("a/src/x/tests/y.rs") && !is_test_file("xtask/src/test/mod.rs"));
    }
}
