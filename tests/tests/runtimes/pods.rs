//! Kubernetes' interface at a real containerd: the test does what the kubelet does, the engine looks in from outside.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use snapshot_engine::container::{Error, Found, find};
use snapshot_engine::model::reference::Runtime;
use snapshot_tests::bench::eventually;
use snapshot_tests::listing::{Depth, list, must_equal};

use super::kubelet::Kubelet;
use super::support::{COUNTING, House, frozen};

const PAUSE: &str = "localhost/snapshot-pause:1";

/// An image whose command stays: what holds a pod's namespaces.
const MAKE_IMAGE: &str = r#"set -e
b=/bin/busybox
cd "$1"
$b mkdir -p root/bin root/data root/dev root/etc root/proc root/sys root/tmp root/run
$b cp $b root/bin/busybox
echo 'root:x:0:0:root:/:/bin/sh' >root/etc/passwd
echo 'root:x:0:' >root/etc/group
$b tar -C root -cf layer.tar .
sum() { $b sha256sum $1 | $b cut -d' ' -f1; }
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/busybox","sleep","100000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' $3 $(sum layer.tar) >config.json
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' $2 >manifest.json
$b tar -cf image.tar manifest.json config.json layer.tar
"#;

/// Who has the containers' layers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Snapshots<'a> {
    /// containerd itself, with overlayfs.
    Own,
    /// nydus-snapshotter at this socket.
    Nydus(&'a Path),
}

/// containerd with its CRI service, beside the one that the house has.
pub(crate) fn kubernetes(house: &mut House, snapshots: Snapshots<'_>) -> Result<()> {
    let dir = house.place.0.join("cri");
    fs::create_dir(&dir)?;
    let text = dir.display().to_string();
    // The score of the pod's holder is lower than what a process without CAP_SYS_RESOURCE may set.
    let mut config = format!(
        "version = 2\nroot = \"{text}/data\"\nstate = \"/run/cri\"\n[grpc]\naddress = \"/run/crio/crio.sock\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\n"
    );
    if let Snapshots::Nydus(socket) = snapshots {
        config += &format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"nydus\"\n\
             disable_snapshot_annotations = false\n[proxy_plugins.nydus]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            socket.display()
        );
    }
    fs::write(dir.join("config.toml"), config)?;
    house.line("/bin/busybox mkdir -p /run/crio")?;
    house.keep(&format!("containerd --config {text}/config.toml"))?;
    let ctr = "ctr --address /run/crio/crio.sock --namespace k8s.io";
    eventually("containerd answers", || house.line(&format!("{ctr} version")).is_ok());
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    house.run(&["/bin/busybox", "sh", "-c", MAKE_IMAGE, "image", &text, PAUSE, machine])?;
    house.line(&format!("{ctr} images import {text}/image.tar")).map(drop)
}

#[test]
fn a_pods_container_by_its_names() -> Result<()> {
    let Some(mut house) = House::open("containerd")? else { return Ok(()) };
    kubernetes(&mut house, Snapshots::Own)?;
    let socket = format!("/proc/{}/root/run/crio/crio.sock", house.witness);
    let kubelet = Kubelet::new(Path::new(&socket));
    let pod = kubelet.run_pod("web-7", "shop", &house.cgroup("pods")?)?;
    let id = kubelet.run_container(&pod, "app", PAUSE, &["/bin/busybox", "sh", "-c", COUNTING])?;

    let target = house.running("cri://shop/web-7/app")?;
    for reference in
        ["shop/web-7/app", "web-7/app", "cri://app", "app", id.as_str(), &id[..12], &format!("cri://{id}")]
    {
        ensure!(house.running(reference)?.init == target.init, "{reference} is another");
    }
    ensure!(target.runtime == Runtime::Cri && target.name.as_deref() == Some("shop/web-7/app"), "{target:?}");
    ensure!(target.image.as_ref().is_some_and(|image| image.name == PAUSE), "{target:?}");
    ensure!(target.config.command.last().map(String::as_str) == Some(COUNTING), "{target:?}");
    let snapshot = target.snapshot.as_ref().context("no snapshot")?;
    ensure!(
        (snapshot.namespace.as_str(), snapshot.snapshotter.as_str(), snapshot.key.as_str())
            == ("k8s.io", "overlayfs", &*id),
        "{snapshot:?}"
    );
    let log = target.overlay.upper.join("data/log");
    eventually("it writes", || fs::metadata(&log).is_ok_and(|m| m.len() > 100));
    let cut = house.commit("shop/web-7/app", "running")?;
    ensure!(fs::read_to_string(frozen(&cut)?.join("data/log"))?.starts_with("line-1\n"), "{cut:#}");
    let rows = house.engine(&["ps", "--output", "json"])?.must_succeed()?.json()?;
    let rows = rows["containers"].as_array().context("no containers")?;
    let row = rows.iter().find(|row| row["id"] == id.as_str()).context("not listed")?;
    ensure!(row["runtime"] == "cri" && row["labels"]["team"] == "blue", "{row:#}");

    kubelet.stop(&id)?;
    let found = house.find("cri://shop/web-7/app")?;
    let Found::Stopped(stopped) = found else { anyhow::bail!("it does not run any more: {found:?}") };
    let cut = house.commit("cri://shop/web-7/app", "stopped")?;
    must_equal(&list(&stopped.layers.upper, Depth::Copy)?, &list(&frozen(&cut)?, Depth::Copy)?)?;
    // The kubelet starts another of the same name: that one is meant from then on, the old one by its id.
    let second = kubelet.run_container(&pod, "app", PAUSE, &["/bin/busybox", "sleep", "1000"])?;
    ensure!(house.running("shop/web-7/app")?.init == house.running(&second)?.init, "not the one that runs");
    ensure!(matches!(house.find(&id)?, Found::Stopped(_)), "the old one is still there");
    // A second pod has an `app` as well.
    let other = kubelet.run_pod("web-8", "shop", &house.cgroup("pods")?)?;
    kubelet.run_container(&other, "app", PAUSE, &["/bin/busybox", "sleep", "1000"])?;
    let both = find(&"cri://app".parse()?, &house.places());
    let Err(Error::Ambiguous { candidates, .. }) = &both else { anyhow::bail!("{both:?}") };
    ensure!(candidates.len() == 2 && candidates.iter().all(|c| c.contains("running")), "{candidates:?}");
    ensure!(candidates.iter().any(|c| c.contains("shop/web-8/app")), "{candidates:?}");
    Ok(())
}
