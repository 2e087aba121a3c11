//! Rules about every text file: how it ends, and what only means something on one machine.

use super::{Complaint, File};

/// The home and working directories of build machines. In pieces, so that this file obeys its own rule.
const MACHINE_PATHS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// Package registries. Clients know their registry from their own configuration, which on many machines
/// names a mirror; a name written here would go around it.
const REGISTRIES: [&str; 8] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npmjs", ".org"),
    concat!("proxy.golang", ".org"),
    concat!("deb.debian", ".org"),
    concat!("archive.ubuntu", ".com"),
    concat!("rubygems", ".org"),
];

pub(super) fn check(file: &File, complaints: &mut Vec<Complaint>) {
    let mut complain = |line: usize, what: String, why: &'static str, remedy: &'static str| {
        complaints.push(Complaint { file: file.name.clone(), line, what, why, remedy });
    };
    let name = file.name.rsplit('/').next().unwrap_or_default();
    // Legal texts stand as their authors published them.
    if !name.starts_with("LICENSE") {
        for (index, line) in file.text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                complain(index + 1, "trailing blanks".into(), "they make noise in every diff", "remove them");
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            let line = file.text.lines().count();
            complain(
                line,
                "no newline at the end".into(),
                "the next line added changes this one too",
                "add one",
            );
        }
    }
    // Cargo writes the lock file, and names the index by its public address whatever mirror serves it.
    if name != "Cargo.lock" {
        for (index, line) in file.text.lines().enumerate() {
            for path in MACHINE_PATHS {
                if line.match_indices(path).any(|(at, _)| starts_path(&line[..at])) {
                    let what = format!("a path below `{path}`");
                    complain(
                        index + 1,
                        what,
                        "it exists on one machine only",
                        "derive it or make it an argument",
                    );
                }
            }
            for host in REGISTRIES {
                if line.contains(host) {
                    let what = format!("the registry's host name {host}");
                    complain(
                        index + 1,
                        what,
                        "it goes around a mirror that is configured",
                        "name the client instead",
                    );
                }
            }
        }
    }
}

/// Whether what comes next starts an absolute path, rather than going on with a longer one.
fn starts_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || "_-./~)}>*$".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        check(&File { name: name.to_owned(), text: text.to_owned() }, &mut found);
        found.into_iter().map(|complaint| complaint.line).collect()
    }

    #[test]
    fn lines_and_files_end_as_they_should() {
        assert_eq!(complaints("a.md", "x\ny\n"), [0usize; 0]);
        assert_eq!(complaints("a.md", "x \ny\t\nz"), [1, 2, 3]);
        assert_eq!(complaints("LICENSE", "x \ny"), [0usize; 0]);
        assert_eq!(complaints("empty", ""), [0usize; 0]);
    }

    #[test]
    fn machine_paths_are_found_and_longer_paths_are_not() {
        let [machine, home] = MACHINE_PATHS;
        assert_eq!(complaints("a.rs", &format!("\"{machine}x\"\n={home}y\n")), [1, 2]);
        assert_eq!(
            complaints("a.rs", &format!("/var/lib/overlay{machine}x\n${{dir}}{machine}\n")),
            [0usize; 0]
        );
    }

    #[test]
    fn registries_are_named_by_cargos_lock_file_only() {
        let text = format!("https://{}\n", REGISTRIES[0]);
        assert_eq!(complaints("README.md", &text), [1]);
        assert_eq!(complaints("Cargo.lock", &text), [0usize; 0]);
    }
}
