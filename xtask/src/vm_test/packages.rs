//! Debian's kernels: the newest of a series that the archive has now, unpacked and kept with the tools.
//!
//! Package names carry the exact version and vanish from the archive within weeks, so they are looked up in the archive's index and never
//! written down. The machine's own apt is asked first. If it does not know the series (Debian 13 has no 6.1, Ubuntu neither), an index of
//! Debian 12 is kept beside the kernels, from the same mirror or from the one that `--mirror` names; apt checks its signature as always.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::debian::{Index, numbers};
use crate::{shell, workspace};

/// Debian's release that has both series, with its security updates.
const SUITES: [&str; 2] = ["bookworm", "bookworm-security"];

/// A series of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Linux 6.1
    #[value(name = "6.1")]
    Six1,
    /// Linux 6.12
    #[value(name = "6.12")]
    Six12,
}

impl Kernel {
    pub(super) const ALL: [Kernel; 2] = [Kernel::Six1, Kernel::Six12];

    /// Its first two numbers.
    pub(super) fn series(self) -> &'static str {
        match self {
            Kernel::Six1 => "6.1",
            Kernel::Six12 => "6.12",
        }
    }

    /// The release in a package's name, if it is a kernel of this series.
    fn release(self, package: &str) -> Option<&str> {
        let release = package.strip_prefix("linux-image-")?;
        let version = release.strip_suffix("-cloud-amd64")?;
        version.strip_prefix(self.series())?.strip_prefix('.').map(|_| release)
    }
}

/// A kernel on disk.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// What QEMU loads.
    pub(super) image: PathBuf,
    /// The unpacked package.
    root: PathBuf,
}

impl Unpacked {
    fn at(root: &Path, release: &str) -> Option<Unpacked> {
        let image = root.join(format!("boot/vmlinuz-{release}"));
        image.is_file().then(|| Unpacked { release: release.to_owned(), image, root: root.to_owned() })
    }

    /// The files of these modules and of those they need, in the order to load them. What is built in has none.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut command = shell::program(shell::which("modprobe").context("`modprobe` is needed")?);
            command.args(["--show-depends", "--ignore-install", "--set-version", &self.release, "--dirname"]);
            let list = shell::output(command.arg(&self.root).arg(name))?;
            for line in list.lines() {
                if let Some(file) = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()))
                    && !files.contains(&file)
                {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// Finds, fetches and unpacks the newest kernel of a series.
pub(super) fn fetch(kernel: Kernel, mirror: Option<&str>) -> Result<Unpacked> {
    let place = workspace::tools().join("kernels");
    fs::create_dir_all(&place).with_context(|| format!("creating {}", place.display()))?;
    // Two clones would both fetch; the lock goes with the file.
    let lock = fs::File::create(place.join("lock")).context("making the lock of the kernels")?;
    lock.lock().context("waiting for another vm-test to fetch its kernels")?;
    let (index, package) = find(kernel, &place, mirror)?;
    let release = kernel.release(&package).unwrap_or_default().to_owned();
    let root = place.join(&package);
    if let Some(unpacked) = Unpacked::at(&root, &release) {
        return Ok(unpacked);
    }
    eprintln!("vm-test: fetching {package}");
    let scratch = tempfile::tempdir_in(&place)?;
    let unpacked = index.unpack(&[&package], scratch.path())?;
    let depmod = shell::which("depmod").context("`depmod` is needed")?;
    shell::quiet(shell::program(depmod).arg("-b").arg(&unpacked).arg(&release))?;
    // Whole or not at all: the name comes last.
    let _ = fs::remove_dir_all(&root);
    fs::rename(&unpacked, &root).with_context(|| format!("renaming to {}", root.display()))?;
    forget_others(&place, kernel, &package);
    Unpacked::at(&root, &release).with_context(|| format!("{package} has no boot/vmlinuz-{release}"))
}

/// Older kernels of the series are of no use any more.
fn forget_others(place: &Path, kernel: Kernel, package: &str) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != package && kernel.release(&name).is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The newest kernel of the series in an index.
fn newest(index: &Index, kernel: Kernel) -> Result<Option<String>> {
    let pattern = format!("^linux-image-{}[.]", kernel.series().replace('.', "[.]"));
    let list = shell::output(index.apt("apt-cache").args(["search", "--names-only", &pattern]))
        .context("kernels come from Debian's archive by apt, which this machine does not have")?;
    Ok(newest_in(&list, kernel))
}

fn newest_in(list: &str, kernel: Kernel) -> Option<String> {
    let names = list.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| kernel.release(name).is_some()).max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The index that has the series, and the name of the package.
fn find(kernel: Kernel, place: &Path, mirror: Option<&str>) -> Result<(Index, String)> {
    let machine = Index::of_machine();
    if mirror.is_none()
        && let Some(package) = newest(&machine, kernel)?
    {
        return Ok((machine, package));
    }
    let own = Index::of_archive(&place.join("apt"), mirror, &SUITES)?;
    let package = match newest(&own, kernel)? {
        Some(package) => package,
        None => {
            own.update()?;
            newest(&own, kernel)?
                .with_context(|| format!("Debian's archive has no kernel {}", kernel.series()))?
        }
    };
    Ok((own, package))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found_by_number() {
        let list = "linux-image-6.1.0-9-cloud-amd64 - Linux 6.1\nlinux-image-6.1.0-56-cloud-amd64 - Linux\n\
                    linux-image-6.1.0-57-cloud-amd64-unsigned - x\nlinux-image-6.12.9+deb12-cloud-amd64 - y\n\
                    linux-image-6.1.0-58-amd64 - z\n";
        assert_eq!(newest_in(list, Kernel::Six1).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(newest_in(list, Kernel::Six12).unwrap(), "linux-image-6.12.9+deb12-cloud-amd64");
        assert_eq!(newest_in("", Kernel::Six1), None);
    }
}
