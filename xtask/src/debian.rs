//! Debian's archive by the machine's apt: an index of packages, and unpacking some without installing them. So a program of another release
//! than the machine's is had without touching the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{shell, workspace};

/// What Debian's archive is signed with, as its package `debian-archive-keyring` installs it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names a mirror where the machine's apt knows none.
pub(crate) const MIRROR: &str = "SNAPSHOT_DEBIAN_MIRROR";

/// An index of packages: the machine's (no options), or one of our own.
pub(crate) struct Index {
    options: Vec<String>,
}

impl Index {
    /// What the machine's sources have.
    pub(crate) fn of_machine() -> Index {
        Index { options: Vec::new() }
    }

    /// What these suites of Debian's archive have, kept in `apt`; from the mirror the machine uses, or the one given.
    pub(crate) fn of_archive(apt: &Path, mirror: Option<&str>, suites: &[&str]) -> Result<Index> {
        let mirror = match mirror {
            Some(mirror) => mirror.to_owned(),
            None => debian_in(&shell::output(
                shell::program("apt-get").args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)"]),
            )?)
            .with_context(|| {
                format!(
                    "this machine's apt knows no mirror of Debian, whose {} is needed: name one in {MIRROR}, as a line of \
                     Debian's sources.list would",
                    suites.join(", ")
                )
            })?,
        };
        if !Path::new(KEYRING).is_file() {
            bail!("{KEYRING} is needed to check Debian's signature (package: debian-archive-keyring)");
        }
        for directory in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(apt.join(directory))?;
        }
        let mirror = mirror.trim_end_matches('/');
        // Security updates lie beside the archive.
        let beside = |suite: &str| if suite.ends_with("-security") { "-security" } else { "" };
        let line =
            |suite: &&str| format!("deb [signed-by={KEYRING}] {mirror}{} {suite} main\n", beside(suite));
        fs::write(apt.join("sources.list"), suites.iter().map(line).collect::<String>())?;
        let at = |what: &str, name: &str| format!("{what}={}", apt.join(name).display());
        Ok(Index {
            options: vec![
                at("Dir::Etc::SourceList", "sources.list"),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                at("Dir::State::Lists", "lists"),
                at("Dir::Cache", "archives"),
                // The index lies in a directory of ours, which the user apt downloads as cannot enter.
                "APT::Sandbox::User=root".to_owned(),
            ],
        })
    }

    pub(crate) fn apt(&self, program: &str) -> Command {
        let mut command = shell::program(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    pub(crate) fn update(&self) -> Result<()> {
        shell::quiet(self.apt("apt-get").args(["update", "--quiet=2", "-o", "APT::Update::Error-Mode=any"]))
    }

    /// The files of packages, in a directory below `scratch`, which is empty.
    pub(crate) fn unpack(&self, packages: &[&str], scratch: &Path) -> Result<PathBuf> {
        let download =
            || shell::quiet(self.apt("apt-get").arg("download").args(packages).current_dir(scratch));
        if let Err(error) = download() {
            // An old index names files that the archive no longer has.
            self.update().context(error)?;
            download()?;
        }
        let files = fs::read_dir(scratch)?.flatten().map(|entry| entry.path());
        let debs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect();
        if debs.len() != packages.len() {
            bail!("apt downloaded {} of {}", debs.len(), packages.join(" "));
        }
        let unpacked = scratch.join("unpacked");
        for deb in debs {
            shell::quiet(shell::program("dpkg").arg("-x").arg(deb).arg(&unpacked))?;
        }
        Ok(unpacked)
    }
}

/// Packages of a suite, fetched and unpacked the first time, and then kept with the tools in the directory of this name. `open` makes of that directory what is
/// wanted, and fails unless it is there and works.
pub(crate) fn kept<T>(
    name: &str,
    mirror: Option<&str>,
    suite: &str,
    packages: &[&str],
    open: impl Fn(&Path) -> Result<T>,
) -> Result<T> {
    let unpacked = workspace::tools().join(name);
    let place = unpacked.parent().unwrap_or(&unpacked);
    fs::create_dir_all(place).with_context(|| format!("creating {}", place.display()))?;
    // Two clones would both fetch; the lock goes with the file.
    let lock = fs::File::create(place.join("lock")).context("making the lock of the tools")?;
    lock.lock().context("waiting for another setup to fetch it")?;
    if let Ok(kept) = open(&unpacked) {
        return Ok(kept);
    }
    let index = Index::of_archive(&place.join("apt"), mirror, &[suite])?;
    index.update()?;
    let scratch = tempfile::tempdir_in(place)?;
    let fetched = index.unpack(packages, scratch.path())?;
    // It may need libraries that this machine does not have.
    open(&fetched).with_context(|| format!("{} of {suite}", packages.join(" ")))?;
    // Whole or not at all: the name comes last.
    let _ = fs::remove_dir_all(&unpacked);
    fs::rename(&fetched, &unpacked).with_context(|| format!("renaming to {}", unpacked.display()))?;
    open(&unpacked)
}

/// The numbers in a name, to compare versions by.
pub(crate) fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The mirror of Debian's main archive in apt's list of its sources.
fn debian_in(targets: &str) -> Option<String> {
    let uri = |line: &str| {
        let (origin, uri) = line.split_once(' ')?;
        (origin == "Debian" && uri.trim_end_matches('/').ends_with("/debian")).then(|| uri.to_owned())
    };
    targets.lines().find_map(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_mirror_is_told_from_others() {
        let targets = "Debian http://mirror.example/debian-security/\n\
                       Other http://mirror.example/debian\n\
                       Debian http://mirror.example/debian/\n";
        assert_eq!(debian_in(targets).unwrap(), "http://mirror.example/debian/");
        assert_eq!(debian_in("Ubuntu http://u.example/ubuntu/\n"), None);
    }
}
