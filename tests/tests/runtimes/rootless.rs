//! podman without root: a user's own storage, in a user namespace, with an overlay that keeps its marks in `user.overlay.*`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use anyhow::{Result, ensure};
use snapshot_engine::container::Found;
use snapshot_engine::model::reference::Runtime;
use snapshot_tests::bench::eventually;
use snapshot_tests::listing::{Depth, list, must_equal};

use super::support::{COUNTING, House, IMAGE, frozen};

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

#[test]
fn a_users_podman_container_running_and_stopped() -> Result<()> {
    let Some(house) = House::open("podman")? else { return Ok(()) };
    let home = house.place.0.join("home");
    let archive = house.place.0.join("image.tar");
    let (home_text, archive_text) =
        (home.to_string_lossy().into_owned(), archive.to_string_lossy().into_owned());
    house.run(&["podman", "save", "--quiet", "--output", &archive_text, IMAGE])?;
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644))?;
    fs::create_dir(&home)?;
    chown(&home, Some(USER), Some(USER))?;
    house.run(&["/bin/busybox", "sh", "-c", MAKE_USER, "user", &USER.to_string(), &home_text])?;
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
