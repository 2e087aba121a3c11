//! nydus-snapshotter, below containerd's CRI service: whom Nydus images are made for.
//!
//! ```text
//!   containerd, overlayfs          registry            containerd, nydus-snapshotter
//!   container at work ──commit──►  Nydus image  ──►    pulled by the kubelet's call: the bootstrap alone
//!                                      ▲               run: an overlay on what nydusd serves
//!                                      └──── commit ───────────────────┘  again, and once more pulled and run
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snapshot_engine::container::process;
use snapshot_tests::bench::eventually;
use snapshot_tests::everything::make;
use snapshot_tests::judges;
use snapshot_tests::registry::{Registry, Security};
use snapshot_tests::unpacked::must_be_equal;

use super::kubelet::Kubelet;
use super::matrix::ENTRIES;
use super::pods::{Snapshots, kubernetes};
use super::support::{House, frozen, reference, root_of, skip, tree};
use super::writers::{SCRIPT, fill};

/// Names a directory with nydus-snapshotter's `usr/bin` in it.
const SNAPSHOTTER: &str = "SNAPSHOT_NYDUS_SNAPSHOTTER";

/// What containerd's CRI service mounts its own over (`sandbox_files` of the pod).
const CRI_MAKES: [&str; 4] = [
    "etc: mtime",
    "etc/hostname: only on the right",
    "etc/hosts: only on the right",
    "etc/resolv.conf: only on the right",
];

/// Changes files of the image, and is still afterwards.
const CHANGING: &str = "b=/bin/busybox; echo more >>/data/log; $b rm -rf /data/deep; $b mkdir /data/deep; echo new >/data/deep/new; \
                        $b chmod 640 /base/kept; $b mv /base/replaced /base/moved; echo >/data/done; exec $b sleep 1000";

/// How nydusd is told to get blobs: `registry` and `repo` come from the name of the image.
const BACKEND: &str = r#"{
  "device": {
    "backend": {"type": "registry", "config": {"scheme": "http", "timeout": 10, "connect_timeout": 10, "retry_limit": 2}},
    "cache": {"type": "blobcache", "config": {"work_dir": "cache"}}
  },
  "mode": "direct", "digest_validate": false, "iostats_files": false, "enable_xattr": true,
  "fs_prefetch": {"enable": false}
}"#;

/// Starts nydus-snapshotter in the room; its socket. `None` if it is not on this machine.
fn snapshotter(house: &mut House) -> Result<Option<PathBuf>> {
    let Some(place) = std::env::var_os(SNAPSHOTTER) else {
        // Other machines than Debian's may have no way to it: `cargo xtask setup --runtimes` says so.
        skip("nydus-snapshotter", "not fetched");
        return Ok(None);
    };
    let program = Path::new(&place).join("usr/bin/containerd-nydus-grpc");
    let (Some(nydusd), Some(image)) = (judges::judge("nydusd")?, judges::judge("nydus-image")?) else {
        return Ok(None);
    };
    let dir = house.place.0.join("nydus-snapshotter");
    fs::create_dir(&dir)?;
    let at = |name: &str| dir.join(name).display().to_string();
    // It cannot raise the limit without CAP_SYS_RESOURCE, and ends if it fails to.
    let script = format!(
        "#!/bin/sh\ncommand=$1; shift\nexec {} \"$command\" --rlimit-nofile 0 \"$@\"\n",
        nydusd.display()
    );
    fs::write(at("nydusd"), script)?;
    fs::set_permissions(at("nydusd"), fs::Permissions::from_mode(0o755))?;
    fs::write(at("backend.json"), BACKEND)?;
    let config = format!(
        "version = 1\nroot = \"{root}\"\naddress = \"{socket}\"\ndaemon_mode = \"dedicated\"\n\
         [system]\nenable = false\n\
         [daemon]\nnydusd_path = \"{nydusd}\"\nnydusimage_path = \"{image}\"\nnydusd_config = \"{backend}\"\n\
         fs_driver = \"fusedev\"\nrecover_policy = \"none\"\n\
         [cgroup]\nenable = false\n[log]\nlog_to_stdout = true\nlevel = \"debug\"\n\
         [cache_manager]\ndisable = false\ngc_period = \"24h\"\ncache_dir = \"\"\n",
        root = at("root"),
        socket = at("socket"),
        nydusd = at("nydusd"),
        image = image.display(),
        backend = at("backend.json"),
    );
    fs::write(at("config.toml"), config)?;
    house.keep(&format!("{} --config {}", program.display(), at("config.toml")))?;
    let socket = dir.join("socket");
    eventually("nydus-snapshotter answers", || socket.exists());
    Ok(Some(socket))
}

#[test]
fn an_image_runs_by_nydus_snapshotter_and_is_committed_again() -> Result<()> {
    let Some(mut house) = House::open("containerd")? else { return Ok(()) };
    let Some(socket) = snapshotter(&mut house)? else { return Ok(()) };
    let registry = Registry::start(Security::Open)?;
    house.ctr("origin", &[], SCRIPT)?;
    let origin = house.running("containerd://origin")?;
    fill(origin.init)?;
    let first = format!("{}/nydus/web:1", registry.host());
    let done = commit(&house, "containerd://origin", &first, "nydus")?;
    let frozen_first = reference(&origin, &frozen(&done)?, &make(&house.place.0, "first")?)?;

    kubernetes(&mut house, Snapshots::Nydus(&socket))?;
    let cri = format!("/proc/{}/root/run/crio/crio.sock", house.witness);
    let kubelet = Kubelet::new(Path::new(&cri));
    let pod = kubelet.run_pod("web-7", "shop", &house.cgroup("pods")?)?;
    kubelet.pull(&first)?;
    kubelet.run_container(&pod, "still", &first, &["/bin/busybox", "sleep", "1000"])?;
    must_show(&house, "cri://shop/web-7/still", &frozen_first.0)?;

    // It changes a tree that nydusd serves, and is committed from there: the layer that nydusd mounts can be seen in the room alone.
    kubelet.run_container(&pod, "app", &first, &["/bin/busybox", "sh", "-c", CHANGING])?;
    let app = house.running("cri://shop/web-7/app")?;
    let snapshot = app.snapshot.as_ref().context("no snapshot")?;
    ensure!(snapshot.snapshotter == "nydus", "{app:?}");
    eventually("it has changed it", || process::root(app.init).join("data/done").is_file());
    let second = format!("{}/nydus/web:2", registry.host());
    let done = commit(&house, "cri://shop/web-7/app", &second, "auto")?;
    ensure!(!done["image"]["bootstrap"].is_null(), "it was nydus: {done:#}");
    kubelet.pull(&second)?;
    kubelet.run_container(&pod, "again", &second, &["/bin/busybox", "sleep", "1000"])?;
    let root = root_of(app.init)?;
    must_show(&house, "cri://shop/web-7/again", &tree(&root))
}

/// The root of a container is this tree.
fn must_show(house: &House, container: &str, wanted: &Path) -> Result<()> {
    let root = root_of(house.running(container)?.init)?;
    must_be_equal(wanted, &tree(&root), ENTRIES, &CRI_MAKES)
}

fn commit(house: &House, container: &str, target: &str, format: &str) -> Result<Value> {
    let work = house.place.0.join("work").display().to_string();
    fs::create_dir_all(&work)?;
    let words = ["commit", container, target, "--format", format, "--work-dir", &work, "--target-insecure"];
    let more = ["--wait", "--max-pause", "500ms", "--output", "json"];
    house.engine(&[&words[..], &more].concat())?.must_succeed()?.json()
}
