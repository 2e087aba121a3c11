//! The independent judges: Nydus' own tools, found and run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{UnmountFlags, unmount};

/// A tool from `$NYDUS_BIN` or the PATH.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("NYDUS_BIN").into_iter().map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    dirs.chain(std::env::split_paths(&path)).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A tool as [`find`] finds it, or `None` where it may be missing.
///
/// # Errors
/// When it is missing and must not be: in CI, and when `SNAPSHOT_REQUIRE_JUDGES` is set.
pub fn judge(name: &str) -> Result<Option<PathBuf>> {
    let found = find(name);
    if found.is_none() {
        let how = format!(
            "`{name}` is missing: cargo install nydus-rs --version 2.2.0 --locked, and set NYDUS_BIN"
        );
        let required = ["CI", "SNAPSHOT_REQUIRE_JUDGES"].iter().any(|v| std::env::var_os(v).is_some());
        ensure!(!required, "{how}");
        eprintln!("NOT JUDGED: {how}");
    }
    Ok(found)
}

/// An image served by nydusd; unmounted, and the daemon ended, when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// Where it is mounted.
    pub at: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What nydusd looks at before it gives data out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Nothing.
    Nothing,
    /// Every chunk's digest: of v6 only those of blobs that have the digests in them.
    Data,
    /// Every inode's digest too, which only v5 has.
    DataAndInodes,
}

/// Runs `nydus-image check`.
///
/// # Errors
/// When it does not accept the bootstrap; with what it said.
pub fn check(nydus_image: &Path, bootstrap: &Path) -> Result<()> {
    let out = Command::new(nydus_image).args(["check", "-B"]).arg(bootstrap).stdin(Stdio::null()).output()?;
    ensure!(
        out.status.success(),
        "nydus-image check: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// Serves an image through FUSE. `bootstrap` may be a blob with a table of contents and a bootstrap inside. `dir` takes the daemon's
/// files and the mount.
///
/// # Errors
/// When the daemon does not serve within 20 seconds; with its log.
pub fn serve(
    nydusd: &Path,
    bootstrap: &Path,
    blobs: &[PathBuf],
    dir: &Path,
    verify: Verify,
) -> Result<Served> {
    let make = |name: &str| {
        let path = dir.join(name);
        fs::create_dir_all(&path).map(|()| path)
    };
    // A backend has one directory; the blobs of lowers and of the upper may lie in several.
    let backend = make("nydusd-blobs")?;
    for blob in blobs {
        std::os::unix::fs::symlink(blob, backend.join(blob.file_name().context("a blob has a name")?))?;
    }
    let config = serde_json::json!({
        "version": 2,
        "id": "judge",
        "backend": {"type": "localfs", "localfs": {"dir": backend}},
        "cache": {
            "type": "filecache",
            "validate": verify != Verify::Nothing,
            "filecache": {"work_dir": make("nydusd-cache")?},
        },
        "rafs": {"mode": "direct", "enable_xattr": true, "validate": verify == Verify::DataAndInodes},
    });
    let config_path = dir.join("nydusd.json");
    fs::write(&config_path, config.to_string())?;
    let at = make("fuse")?;
    let log = File::create(dir.join("nydusd.log"))?;
    let child = Command::new(nydusd)
        // It cannot raise the limit without CAP_SYS_RESOURCE, and ends if it fails to.
        .args(["fuse", "--rlimit-nofile", "0", "--config"])
        .arg(&config_path)
        .arg("--mountpoint")
        .arg(&at)
        .arg("--bootstrap")
        .arg(bootstrap)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut served = Served { child, at };
    let deadline = Instant::now() + Duration::from_secs(20);
    let device = |path: &Path| rustix::fs::stat(path).map(|s| s.st_dev).ok();
    while device(&served.at) == device(dir) {
        if Instant::now() > deadline || served.child.try_wait()?.is_some() {
            bail!("nydusd does not serve: {}", fs::read_to_string(dir.join("nydusd.log"))?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(served)
}
