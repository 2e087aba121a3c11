//! Where runtimes are looked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::process;
use crate::model::fault::{Class, Fault};
use crate::model::pid::Pid;

/// The address of a daemon on this machine: its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The socket's path.
    pub path: PathBuf,
    /// One of the usual places: if nothing is there, the runtime is not in use. Otherwise somebody asked for it, and it must be there.
    pub usual: bool,
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a runtime on this machine")]
pub struct NoSocket(String);

impl Fault for NoSocket {
    fn class(&self) -> Class {
        Class::Arguments
    }
    fn remedy(&self) -> Option<String> {
        Some("give a socket: unix:///run/docker.sock, or its path; a container is read where its daemon runs, so start the engine there".into())
    }
}

impl FromStr for Socket {
    type Err = NoSocket;

    /// `unix:///PATH`, `unix:/PATH` or `/PATH`. Whatever reaches another machine is refused: its process numbers and paths mean nothing here.
    fn from_str(text: &str) -> Result<Socket, NoSocket> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        if !path.starts_with('/') || path.contains('\0') {
            // An address may hold a password (ssh://user:password@host).
            let scheme =
                text.split_once("://").map_or("...".to_owned(), |(scheme, _)| format!("{scheme}://..."));
            return Err(NoSocket(scheme.escape_debug().to_string()));
        }
        Ok(Socket { path: path.into(), usual: false })
    }
}

/// A directory of containers/storage, which podman, CRI-O and buildah share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// What outlives a reboot: `graphroot`.
    pub graph: PathBuf,
    /// What does not: `runroot`.
    pub run: PathBuf,
}

/// Where the runtimes are: their sockets, and where they keep their state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Their paths are those of this process's namespaces, and their process numbers, too.
    pub within: Option<Pid>,
    /// dockerd's sockets.
    pub docker: Vec<Socket>,
    /// The sockets of podman's service.
    pub podman: Vec<Socket>,
    /// podman's storage, for when its service does not run.
    pub storage: Vec<Storage>,
    /// containerd's sockets.
    pub containerd: Vec<Socket>,
    /// Sockets that speak CRI.
    pub cri: Vec<Socket>,
    /// Directories with one directory a container holding runc's `state.json`.
    pub runc: Vec<PathBuf>,
    /// Directories with one directory a container holding crun's `status`.
    pub crun: Vec<PathBuf>,
}

impl Places {
    /// The usual places, of root and of every user who runs containers without it; `within`: as this process sees them.
    #[must_use]
    pub fn usual(within: Option<Pid>) -> Places {
        let root = within.map_or_else(|| PathBuf::from("/"), process::root);
        // Not through /var/run: that is a link to a path of ours.
        let at = |path: &str| root.join(path);
        let socket = |path: PathBuf| Socket { path, usual: true };
        let users = subdirectories(&at("run/user"));
        let of_users = |path: &str| users.iter().map(|dir| dir.join(path)).collect::<Vec<_>>();
        let sockets = |first: &[&str], user: &str| {
            first.iter().map(|path| at(path)).chain(of_users(user)).map(socket).collect::<Vec<_>>()
        };
        let mut runc = vec![at("run/runc"), at("run/docker/runtime-runc/moby")];
        runc.extend(subdirectories(&at("run/containerd/runc")));
        runc.extend(of_users("runc"));
        let mut crun = vec![at("run/crun")];
        crun.extend(of_users("crun"));
        Places {
            within,
            docker: sockets(&["run/docker.sock"], "docker.sock"),
            podman: sockets(&["run/podman/podman.sock"], "podman/podman.sock"),
            storage: storages(&root),
            containerd: sockets(
                &[
                    "run/containerd/containerd.sock",
                    "run/docker/containerd/containerd.sock",
                    "run/k3s/containerd/containerd.sock",
                ],
                "containerd/containerd.sock",
            ),
            cri: [
                "run/containerd/containerd.sock",
                "run/crio/crio.sock",
                "run/k3s/containerd/containerd.sock",
            ]
            .map(at)
            .map(socket)
            .into(),
            runc,
            crun,
        }
    }
}

/// root's storage and that of every user with a home (containers-storage.conf(5)).
fn storages(root: &Path) -> Vec<Storage> {
    let conf = fs::read_to_string(root.join("etc/containers/storage.conf")).unwrap_or_default();
    let mut all = vec![configured(&conf, root)];
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
    for (user, home) in passwd.lines().filter_map(home) {
        let home = root.join(home.strip_prefix('/').unwrap_or(home));
        let graph = home.join(".local/share/containers/storage");
        if user != "0" && graph.is_dir() {
            all.push(Storage { graph, run: root.join(format!("run/user/{user}/containers")) });
        }
    }
    all
}

/// root's storage as storage.conf has it.
fn configured(conf: &str, root: &Path) -> Storage {
    let table: toml::Table = conf.parse().unwrap_or_default();
    let dir = |key, usual: &str| {
        let written = table.get("storage").and_then(|s| s.get(key)).and_then(toml::Value::as_str);
        let path = written.filter(|path| path.starts_with('/')).unwrap_or(usual);
        root.join(path.trim_start_matches('/'))
    };
    Storage {
        graph: dir("graphroot", "/var/lib/containers/storage"),
        run: dir("runroot", "/run/containers/storage"),
    }
}

/// User number and home of a line of passwd(5).
fn home(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split(':');
    Some((fields.nth(2)?, fields.nth(2)?))
}

/// The directories in a directory, sorted; none if it cannot be read.
pub(super) fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_machine_are_addresses() {
        for text in ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"] {
            assert_eq!(text.parse(), Ok(Socket { path: "/run/a.sock".into(), usual: false }));
        }
        for bad in ["ssh://me:secret@host", "tcp://127.0.0.1:2375", "run/a.sock", ""] {
            let error = bad.parse::<Socket>().unwrap_err();
            assert!(!error.to_string().contains("secret") && error.remedy().is_some(), "{error}");
        }
    }

    #[test]
    fn storage_is_where_its_configuration_says() {
        let root = Path::new("/proc/7/root");
        let usual = configured("", root);
        assert_eq!(usual.graph, Path::new("/proc/7/root/var/lib/containers/storage"));
        let moved =
            configured("[storage]\ndriver = \"overlay\"\ngraphroot = \"/srv/pods\"\n", Path::new("/"));
        assert_eq!((moved.graph, moved.run), ("/srv/pods".into(), "/run/containers/storage".into()));
        assert_eq!(home("me:x:1000:1000:Me,,:/home/me:/bin/sh"), Some(("1000", "/home/me")));
    }

    #[test]
    fn within_a_process_every_place_is_its_own() {
        let places = Places::usual(Some(Pid(7)));
        let sockets = [&places.docker, &places.podman, &places.containerd, &places.cri];
        let mut paths =
            sockets.into_iter().flatten().map(|s| &s.path).chain(&places.runc).chain(&places.crun);
        assert!(paths.all(|path| path.starts_with("/proc/7/root/run")), "{places:?}");
    }
}
