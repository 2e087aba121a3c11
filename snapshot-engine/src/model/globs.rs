//! Paths by patterns.
//!
//! ```text
//!   /var/cache/app     that directory or file, and all below it
//!   /tmp/*             all in it; the directory itself not
//!   *.pyc              anywhere: a pattern that does not begin with `/` does
//!   /srv/**/log        `**` stands for any directories, `*` and `?` for parts of one name, [a-z] and {a,b} for choices
//! ```

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

/// A pattern, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathGlob {
    text: String,
    glob: Glob,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no pattern of paths ({what}): write /var/cache/app, /tmp/*, *.pyc or /srv/**/log")]
pub struct BadGlob {
    given: String,
    what: String,
}

impl FromStr for PathGlob {
    type Err = BadGlob;

    fn from_str(text: &str) -> Result<PathGlob, BadGlob> {
        let bad = |what: &dyn fmt::Display| BadGlob {
            given: text.escape_debug().to_string(),
            what: what.to_string(),
        };
        let pattern = text.trim_end_matches('/');
        if pattern.is_empty() {
            return Err(bad(&"it would leave nothing"));
        }
        if pattern.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(bad(&"a path has no . or .. here"));
        }
        let anchored = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/**/{pattern}") };
        let glob = GlobBuilder::new(&anchored).literal_separator(true).backslash_escape(true).build();
        Ok(PathGlob { text: text.to_owned(), glob: glob.map_err(|e| bad(&e.kind()))? })
    }
}

impl fmt::Display for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for PathGlob {
    type Error = BadGlob;

    fn try_from(text: String) -> Result<PathGlob, BadGlob> {
        text.parse()
    }
}

impl From<PathGlob> for String {
    fn from(glob: PathGlob) -> String {
        glob.text
    }
}

/// Several patterns; what one of them matches is matched.
#[derive(Debug, Clone, Default)]
pub struct PathGlobs(GlobSet);

impl PathGlobs {
    /// All of these.
    #[must_use]
    pub fn of(globs: &[PathGlob]) -> PathGlobs {
        let mut all = GlobSetBuilder::new();
        for glob in globs {
            all.add(glob.glob.clone());
        }
        // Each has been built by itself already.
        PathGlobs(all.build().unwrap_or_default())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a path from the root matches; what is below one that does is not asked for.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        self.0.is_match(path)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        PathGlobs::of(&[glob.parse().unwrap()]).matches(Path::new(path))
    }

    #[test]
    fn patterns_match_whole_paths() {
        assert!(matches("/var/cache", "/var/cache") && matches("/var/cache/", "/var/cache"));
        assert!(!matches("/var/cache", "/srv/var/cache") && !matches("/var/cache", "/var/cached"));
        assert!(matches("/tmp/*", "/tmp/.x") && !matches("/tmp/*", "/tmp") && !matches("/tmp/*", "/tmp/a/b"));
        assert!(
            matches("*.pyc", "/a.pyc") && matches("*.pyc", "/x/y/a.pyc") && !matches("*.pyc", "/a.pyc/b")
        );
        assert!(
            matches("a/b", "/x/a/b")
                && matches("/srv/**/log", "/srv/log")
                && matches("/srv/**/log", "/srv/a/b/log")
        );
        assert!(matches("/x/{a,b}?", "/x/b1") && matches("/x/[a-c]", "/x/c") && matches(r"/x/\*", "/x/*"));
        let odd = Path::new(OsStr::from_bytes(b"/x/\xff.log"));
        assert!(PathGlobs::of(&["*.log".parse().unwrap()]).matches(odd));
        assert!(PathGlobs::default().is_empty() && !PathGlobs::default().matches(odd));
    }

    #[test]
    fn nonsense_is_refused_and_words_round_trip() {
        for bad in ["", "/", "/a/../b", "[", "{a", "./x"] {
            let error = bad.parse::<PathGlob>().unwrap_err().to_string();
            assert!(error.contains("no pattern"), "{error}");
        }
        let glob: PathGlob = "/a/*".parse().unwrap();
        assert_eq!(serde_json::to_string(&glob).unwrap(), r#""/a/*""#);
        assert_eq!(serde_json::from_str::<PathGlob>(r#""/a/*""#).unwrap(), glob);
    }
}
