//! podman and docker without root: a user's own storage, in a user namespace, with an overlay that keeps its marks in `user.overlay.*`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use anyhow::{Result, ensure};
use snapshot_engine::container::{Found, process};
use snapshot_engine::model::reference::Runtime;
use snapshot_tests::bench::eventually;
use snapshot_tests::listing::{Depth, list, must_equal};

use super::support::{COUNTING, House, IMAGE, frozen, skip};

/// A number that no package gives to anybody.
const USER: u32 = 54_321;

/// Makes the user known in the room, whose `/etc` is its own, and gives him a home, and storage by overlayfs instead of copies.
const MAKE_USER: &str = r#"set -e
b=/bin/busybox
echo "snapshot-user:x:$1:$1::$2:/bin/sh" >>/etc/passwd
echo "snapshot-user:x:$1:" >>/etc/group
$b mkdir -p /run/user/$1 $2/.config/containers
printf '[storage]\ndriver = "overlay"\n' >$2/.config/containers/storage.conf
$b chown -R $1:$1 /run/user/$1 $2
$b chmod 700 /run/user/$1
"#;

/// A docker of the user's, as its `dockerd-rootless.sh` starts it, but without a network: that needs slirp4netns and a route out. The user has ids of other numbers,
/// as `useradd` gives them.
const USERS_DOCKER: &str = r#"set -e
b=/bin/busybox
echo "snapshot-user:900000:65536" | $b tee -a /etc/subuid >>/etc/subgid
exec setpriv --reuid $1 --regid $1 --clear-groups env HOME=$2 XDG_RUNTIME_DIR=/run/user/$1 \
    rootlesskit --net=host --copy-up=/etc --copy-up=/run --propagation=rslave \
    $b sh -c '/bin/busybox rm -f /run/docker /run/containerd; exec dockerd --bridge=none --iptables=false \
        --ip6tables=false --ip-forward=false --storage-driver=overlay2'
"#;

/// podman as the user.
fn podman(house: &House, words: &[&str]) -> Result<String> {
    let user = USER.to_string();
    let set = [
        format!("HOME={}", house.place.0.join("home").display()),
        format!("XDG_RUNTIME_DIR=/run/user/{user}"),
    ];
    let become_user =
        ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "env", &set[0], &set[1], "podman"];
    house.run(&[&become_user[..], words].concat())
}

/// The user, and his home.
fn make_user(house: &House) -> Result<String> {
    let home = house.place.0.join("home");
    fs::create_dir(&home)?;
    chown(&home, Some(USER), Some(USER))?;
    let home = home.to_string_lossy().into_owned();
    house.run(&["/bin/busybox", "sh", "-c", MAKE_USER, "user", &USER.to_string(), &home])?;
    Ok(home)
}

#[test]
fn a_users_podman_container_running_and_stopped() -> Result<()> {
    let Some(house) = House::open("podman")? else { return Ok(()) };
    let archive = house.place.0.join("image.tar");
    let archive_text = archive.to_string_lossy().into_owned();
    house.run(&["podman", "save", "--quiet", "--output", &archive_text, IMAGE])?;
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644))?;
    make_user(&house)?;
    podman(&house, &["load", "--quiet", "--input", &archive_text])?;
    let run =
        ["run", "--detach", "--network=none", "--name", "own", IMAGE, "/bin/busybox", "sh", "-c", COUNTING];
    podman(&house, &run)?;

    let target = house.running("podman://own")?;
    ensure!(target.runtime == Runtime::Podman && target.overlay.userxattr, "{target:?}");
    ensure!(house.running("own")?.init == target.init, "without a scheme another");
    ensure!(target.image.as_ref().is_some_and(|image| image.name == IMAGE), "{target:?}");
    let log = target.overlay.upper.join("data/log");
    eventually("it writes", || fs::metadata(&log).is_ok_and(|m| m.len() > 100));
    let cut = house.commit("podman://own", "running")?;
    ensure!(fs::read_to_string(frozen(&cut)?.join("data/log"))?.starts_with("line-1\n"), "{cut:#}");
    ensure!(target.is_alive(), "{cut:#}");

    podman(&house, &["stop", "--time", "0", "own"])?;
    eventually("it ends", || !target.is_alive());
    let Found::Stopped(stopped) = house.find("podman://own")? else {
        anyhow::bail!("it does not run any more")
    };
    ensure!(stopped.layers.userxattr && stopped.layers.upper.ends_with("diff"), "{stopped:?}");
    let cut = house.commit("podman://own", "stopped")?;
    must_equal(&list(&stopped.layers.upper, Depth::Copy)?, &list(&frozen(&cut)?, Depth::Copy)?)?;
    podman(&house, &["rm", "--force", "own"])?;
    ensure!(house.find("podman://own").is_err(), "it is gone");
    Ok(())
}

#[test]
fn a_users_docker_container_running_and_stopped_and_an_image_for_his_docker() -> Result<()> {
    let Some(mut house) = House::open("docker")? else { return Ok(()) };
    if house.line("rootlesskit --version").is_err() {
        ensure!(std::env::var_os("SNAPSHOT_REQUIRE_RUNTIMES").is_none(), "rootlesskit is absent");
        skip("docker without root", "rootlesskit is not installed");
        return Ok(());
    }
    let home = make_user(&house)?;
    let archive = house.place.0.join("image.tar").to_string_lossy().into_owned();
    house.run(&["docker", "save", "--output", &archive, IMAGE])?;
    let script = house.place.0.join("docker.sh");
    fs::write(&script, USERS_DOCKER)?;
    // Not busybox, which has a setpriv of its own.
    house.keep(&format!("/bin/sh {} {USER} {home}", script.display()))?;
    let socket = format!("/run/user/{USER}/docker.sock");
    let at = format!("unix://{socket}");
    let docker = |words: &[&str]| house.run(&[&["docker", "--host", &at][..], words].concat());
    eventually("his docker answers", || docker(&["version"]).is_ok());
    let options = docker(&["info", "--format", "{{.SecurityOptions}} {{.Driver}}"])?;
    ensure!(options.contains("name=rootless") && options.ends_with("overlay2"), "{options}");
    docker(&["load", "--quiet", "--input", &archive])?;
    let run = ["run", "--detach", "--network=none", "--name", "own", "--env", "A=b", IMAGE];
    docker(&[&run[..], &["/bin/busybox", "sh", "-c", COUNTING]].concat())?;

    let target = house.running("docker://own")?;
    ensure!(target.runtime == Runtime::Docker && target.overlay.userxattr, "{target:?}");
    ensure!(house.running("own")?.init == target.init, "without a scheme another");
    ensure!(target.image.as_ref().is_some_and(|image| image.name == IMAGE), "{target:?}");
    ensure!(target.config.env.iter().any(|e| e == "A=b"), "{:?}", target.config);
    let log = target.overlay.upper.join("data/log");
    eventually("it writes", || fs::metadata(&log).is_ok_and(|m| m.len() > 100));
    let cut = house.commit("docker://own", "running")?;
    ensure!(fs::read_to_string(frozen(&cut)?.join("data/log"))?.starts_with("line-1\n"), "{cut:#}");
    ensure!(target.is_alive(), "{cut:#}");

    // Into the same docker, which runs it.
    let (work, here) = (house.place.0.join("work").display().to_string(), process::root(house.witness));
    let here = format!("{}{socket}", here.display());
    let words =
        ["commit", "docker://own", "docker-daemon:team/copy:1", "--format", "oci", "--docker-host", &here];
    house
        .engine(&[&words[..], &["--work-dir", &work, "--wait", "--max-pause", "100ms"]].concat())?
        .must_succeed()?;
    let run =
        ["run", "--rm", "--network=none", "team/copy:1", "/bin/busybox", "head", "-n", "1", "/data/log"];
    ensure!(docker(&run)?.ends_with("line-1"));

    docker(&["kill", "own"])?;
    eventually("it ends", || !target.is_alive());
    let Found::Stopped(stopped) = house.find("docker://own")? else {
        anyhow::bail!("it does not run any more")
    };
    let cut = house.commit("docker://own", "stopped")?;
    must_equal(&list(&stopped.layers.upper, Depth::Copy)?, &list(&frozen(&cut)?, Depth::Copy)?)?;
    docker(&["rm", "own"])?;
    ensure!(house.find("docker://own").is_err(), "it is gone");
    Ok(())
}
