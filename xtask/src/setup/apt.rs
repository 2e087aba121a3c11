//! Packages of Debian and its kin.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Installing needs root. Its own type, because it has its own exit code.
#[derive(Debug)]
pub(crate) struct NeedsRoot(pub(crate) String);

impl std::fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "root is needed to {}; run the same command as root", self.0)
    }
}

impl std::error::Error for NeedsRoot {}

/// Fails unless we are root; `purpose` completes "root is needed to ...".
pub(crate) fn need_root(purpose: impl Into<String>) -> Result<()> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(NeedsRoot(purpose.into()).into()) }
}

pub(crate) fn is_installed(package: &str) -> bool {
    let mut query = shell::program("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    shell::output(&mut query).is_ok_and(|status| status == "installed")
}

/// Whether the lists name a version to install. An empty cache (container images ship none) is filled first.
pub(crate) fn is_installable(package: &str) -> Result<bool> {
    if has_candidate(package)? {
        return Ok(true);
    }
    update_once()?;
    has_candidate(package)
}

/// Installs what is missing of these packages; without anything missing, apt is not called.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    install_with(packages, &[])
}

/// As [`install`], for what is not needed: fails rather than take a package away from the machine that is in the way.
pub(crate) fn add(packages: &[&str]) -> Result<()> {
    install_with(packages, &["--no-remove"])
}

fn install_with(packages: &[&str], options: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    need_root(format!("install {}", missing.join(" ")))?;
    for package in &missing {
        if !is_installable(package)? {
            bail!("the package `{package}` is needed and this machine's apt sources do not have it");
        }
    }
    eprintln!("setup: installing {}", missing.join(" "));
    if let Err(error) = apt_get_install(&missing, options) {
        // Old lists name files that the mirror no longer has.
        update_once().context(error)?;
        apt_get_install(&missing, options)?;
    }
    Ok(())
}

fn apt_get_install(packages: &[&str], options: &[&str]) -> Result<()> {
    let mut install = apt_get();
    install.args(["install", "--yes", "--no-install-recommends"]).args(options).args(packages);
    shell::quiet(&mut install)
}

fn has_candidate(package: &str) -> Result<bool> {
    let policy = shell::output(shell::program("apt-cache").args(["policy", package]))
        .context("packages are installed with apt, which this machine does not have")?;
    Ok(candidate_in(&policy))
}

fn candidate_in(policy: &str) -> bool {
    policy
        .lines()
        .any(|line| line.trim().strip_prefix("Candidate:").is_some_and(|version| version.trim() != "(none)"))
}

fn update_once() -> Result<()> {
    static UPDATED: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    UPDATED.call_once(|| {
        result = need_root("update the package lists")
            .and_then(|()| shell::quiet(apt_get().args(["update", "--quiet=2"])));
    });
    result
}

fn apt_get() -> Command {
    let mut command = shell::program("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    // Another apt may hold the lock (a fresh cloud machine updates itself): wait for it, not for ever.
    command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "--quiet"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_told_from_none() {
        assert!(candidate_in("x:\n  Installed: (none)\n  Candidate: 1.2\n"));
        assert!(!candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!candidate_in(""), "an unknown package prints nothing");
    }

    #[test]
    fn the_message_says_what_root_is_needed_for() {
        let text = NeedsRoot("install runc".to_owned()).to_string();
        assert!(text.contains("install runc") && text.contains("as root"), "{text}");
    }
}
