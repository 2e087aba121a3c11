//! What the containers of the matrix have in their layer: every kind of file, what they did to the image's own files, and writers that go on.
//!
//! ```text
//!   /base/deleted  /base/gone/    of the image, deleted                  /data/all/    every kind of entry, name, attribute and time
//!   /base/replaced                of the image, replaced                 /data/log     appended to: lines with numbers
//!   /base/opaque/                 of the image, made anew                /data/deep/   directories, links and hard links that come and go
//!   /base/kept                    of the image, with another mode        /data/block   overwritten in place
//!                                                                        /data/turn    replaced by renaming
//! ```

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::container::process;
use snapshot_engine::model::pid::Pid;
use snapshot_tests::bench::eventually;
use snapshot_tests::everything::everything;

/// The container's command. What is done once is done when `/data/ready` is there.
pub(crate) const SCRIPT: &str = r#"b=/bin/busybox
$b rm -rf /base/deleted /base/gone /base/opaque
$b mkdir /base/opaque
echo new >/base/opaque/new
echo new >/base/replaced.new
$b mv /base/replaced.new /base/replaced
$b chmod 600 /base/kept
i=0; while :; do i=$((i + 1)); echo line-$i >>/data/log; $b usleep 2000; done &
i=0; while :; do
    i=$((i + 1)); d=/data/deep/$((i % 7))/a/b/c/d
    $b mkdir -p $d; echo $i >$d/file; $b ln -sf file $d/link; $b ln -f $d/file $d/hard
    if [ $((i % 3)) = 0 ]; then $b rm -rf /data/deep/$((i % 5)); fi
    $b usleep 5000
done &
i=0; while :; do
    i=$((i + 1)); echo $i >/data/turn.new; $b mv /data/turn.new /data/turn
    echo block-$i | $b dd of=/data/block bs=4096 seek=$((i % 64)) conv=notrunc 2>/dev/null
    $b usleep 5000
done &
echo >/data/ready
wait
"#;

/// Adds what the container's own shell cannot make, through its root, and waits until all of its writers have begun.
pub(crate) fn fill(init: Pid) -> Result<()> {
    let root = process::root(init);
    everything(&root.join("data/all"), true)?;
    let begun = |name: &str| fs::symlink_metadata(root.join("data").join(name)).is_ok();
    eventually("the writers have begun", || ["ready", "log", "deep", "turn", "block"].into_iter().all(begun));
    Ok(())
}

/// Lines in the log, whole and without a gap: one instant of it.
pub(crate) fn counted(log: &Path) -> Result<usize> {
    let text = fs::read_to_string(log)?;
    for (at, line) in text.split_inclusive('\n').enumerate() {
        ensure!(line == format!("line-{}\n", at + 1), "line {} is {line:?}", at + 1);
    }
    Ok(text.lines().count())
}

/// The frozen upperdir has all that the container did, as overlayfs writes it.
pub(crate) fn must_be_frozen(frozen: &Path) -> Result<()> {
    let base = frozen.join("base");
    for name in ["deleted", "gone"] {
        let stat = fs::symlink_metadata(base.join(name))?;
        ensure!(stat.file_type().is_char_device() && stat.rdev() == 0, "{name} is no whiteout");
    }
    let mut value = [0u8; 8];
    let opaque = base.join("opaque");
    let len = rustix::fs::lgetxattr(&opaque, "trusted.overlay.opaque", &mut value[..]);
    ensure!(len.is_ok_and(|len| &value[..len] == b"y"), "{} is not opaque", opaque.display());
    ensure!(fs::read(base.join("replaced"))? == b"new\n", "not replaced");
    ensure!(counted(&frozen.join("data/log"))? > 0, "an empty log");
    Ok(())
}

/// The tree of the image, wherever it is seen, is what the container made of its image, whatever its other judges say.
pub(crate) fn must_be_back(root: &Path) -> Result<()> {
    let there = |name: &str| fs::symlink_metadata(root.join(name)).is_ok();
    for gone in ["base/deleted", "base/gone", "base/opaque/old"] {
        ensure!(!there(gone), "{gone} has come back");
    }
    ensure!(
        fs::read(root.join("base/opaque/new"))? == b"new\n"
            && fs::read(root.join("base/replaced"))? == b"new\n"
    );
    let kept = fs::metadata(root.join("base/kept"))?;
    ensure!(kept.mode() & 0o7777 == 0o600 && fs::read(root.join("base/kept"))? == b"kept", "{kept:?}");
    let all = root.join("data/all");
    let stat = |name: &str| fs::symlink_metadata(all.join(name)).with_context(|| name.to_owned());
    ensure!(stat("linked/a")?.ino() == stat("linked/b")?.ino(), "two files of one");
    ensure!(stat("link")?.is_symlink() && stat("fifo")?.file_type().is_fifo(), "not of its kind");
    ensure!(there("data/turn") && counted(&root.join("data/log"))? > 0, "what was written is missing");
    Ok(())
}
