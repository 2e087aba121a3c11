//! What cannot be captured at the same instant is refused before the container is touched, with what to do instead.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result, ensure};
use snapshot_tests::bench::{self, Disk};
use snapshot_tests::{engine, volume};

use crate::{Scene, VOLUME};

#[test]
fn each_reason_is_said() -> Result<()> {
    if !bench::root() {
        return Ok(());
    }
    let elsewhere = Disk::new("xfs")?;
    let scene = Scene::new("ext4")?;
    fs::create_dir(scene.host("volume/sub"))?;
    fs::write(scene.host("volume/file"), "x")?;
    symlink("/srv/pool", scene.shown("/srv/link")?)?;
    volume::mount(scene.init()?, &elsewhere.path().join("volume"), "/srv/elsewhere")?;
    volume::mount(scene.init()?, &scene.disk.path(), "/srv/whole")?;
    // Some other directory of the layer, mounted once more.
    volume::mount(scene.init()?, &scene.demo.upper().join("etc"), "/srv/upper")?;

    let layout = scene.host("layout");
    let target = format!("oci:{}:t", layout.display());
    let outside = scene.host("work").display().to_string();
    let inside = scene.host("volume/work").display().to_string();
    let refused = |paths: &[&str], work: &str, code: i32, said: &[&str]| -> Result<()> {
        let mut args = vec!["commit", scene.demo.0.name(), &target, "--wait", "--work-dir", work];
        paths.iter().for_each(|path| args.extend(["--with-path", path]));
        engine::run(args)?.must_fail(code, said).with_context(|| format!("{paths:?}"))?;
        ensure!(!layout.exists() && !scene.demo.frozen(), "{paths:?}");
        Ok(())
    };
    let whole = "shares a directory with the container's layer";
    for (paths, said) in [
        (&["srv/pool"][..], &["absolute path"][..]),
        (&["/srv/../srv/pool"], &["absolute path"]),
        (&["/"], &["absolute path"]),
        (&["/srv/nowhere"], &["/srv/nowhere", "no such directory"]),
        (&["/srv/link"], &["/srv/link", "symbolic link"]),
        (&["/srv/link/sub"], &["/srv/link/sub", "symbolic link"]),
        (&["/srv/pool/nowhere"], &["/srv/pool/nowhere", "no such directory"]),
        (&["/etc"], &["has it anyway"]),
        (&["/dev"], &["tmpfs", "ext4", "at one instant"]),
        (&["/proc"], &["proc", "at one instant"]),
        (&["/srv/elsewhere"], &["xfs", "ext4", "at one instant"]),
        (&["/srv/pool/file"], &["not a directory"]),
        (&["/srv/pool/sub", "/srv/pool"], &["/srv/pool ", "shares a directory with /srv/pool/sub"]),
        (&[VOLUME, VOLUME], &["shares a directory with /srv/pool"]),
        (&["/srv/whole"], &[whole]),
        (&["/srv/upper"], &[whole]),
    ] {
        refused(paths, &outside, 2, said)?;
    }
    refused(&[VOLUME], &inside, 1, &["--work-dir"])?;
    // And the same container can be snapshotted.
    let ended = engine::run([
        "commit",
        scene.demo.0.name(),
        &target,
        "--wait",
        "--work-dir",
        &outside,
        "--with-path",
        VOLUME,
        "--max-pause",
        "50ms",
    ])?;
    ended.must_succeed()?;
    Ok(())
}
