//! Where runtimes are looked for: flags first, then the environment that their own clients read, then the usual places.

use std::env;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use snapshot_engine::container::Places;
use snapshot_engine::container::places::{Socket, Storage};
use snapshot_engine::model::pid::Pid;

/// Empty: the usual places.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Runtimes")]
pub(crate) struct Runtimes {
    /// dockerd's socket [env: DOCKER_HOST=] [default: /run/docker.sock, and users' own]
    #[arg(long, value_name = "SOCKET")]
    docker_host: Option<Socket>,
    /// The socket of podman's service [env: CONTAINER_HOST=] [default: /run/podman/podman.sock, and users' own]
    #[arg(long, value_name = "SOCKET")]
    podman_host: Option<Socket>,
    /// podman's storage, read where its service does not run [default: as storage.conf has it, and users' own]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    podman_root: Option<PathBuf>,
    /// What of podman's storage does not outlive a reboot [default: /run/containers/storage]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "podman_root")]
    podman_runroot: Option<PathBuf>,
    /// containerd's socket [env: CONTAINERD_ADDRESS=] [default: /run/containerd/containerd.sock, and docker's and k3s' own]
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<Socket>,
    /// A socket that speaks CRI [env: CONTAINER_RUNTIME_ENDPOINT=] [default: those of containerd and CRI-O]
    #[arg(long, value_name = "SOCKET")]
    cri_endpoint: Option<Socket>,
    /// Where runc keeps its state [default: those of runc, docker and containerd, and users' own]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    runc_root: Option<PathBuf>,
    /// Where crun keeps its state [default: /run/crun, and users' own]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    crun_root: Option<PathBuf>,
    /// Take the usual places of this process's namespaces: a runtime inside a container, such as a Kubernetes node made by kind
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    runtimes_of: Option<u32>,
}

impl Runtimes {
    /// The places. A variable that names no socket of this machine is told, and its runtime is not asked.
    pub(crate) fn places(&self) -> Places {
        let mut places = Places::usual(self.runtimes_of.map(Pid));
        for (flag, variable, sockets) in [
            (&self.docker_host, "DOCKER_HOST", &mut places.docker),
            (&self.podman_host, "CONTAINER_HOST", &mut places.podman),
            (&self.containerd_address, "CONTAINERD_ADDRESS", &mut places.containerd),
            (&self.cri_endpoint, "CONTAINER_RUNTIME_ENDPOINT", &mut places.cri),
        ] {
            // Our own environment says nothing of the places of other namespaces.
            let set =
                || env::var(variable).ok().filter(|text| !text.is_empty() && self.runtimes_of.is_none());
            match flag.clone().map(Ok).or_else(|| set().map(|text| text.parse())) {
                Some(Ok(socket)) => *sockets = vec![socket],
                Some(Err(why)) => {
                    tracing::warn!("{variable}: {why}; its runtime is not asked");
                    sockets.clear();
                }
                None => {}
            }
        }
        if let Some(graph) = self.podman_root.clone() {
            let run = self.podman_runroot.clone().unwrap_or_else(|| "/run/containers/storage".into());
            places.storage = vec![Storage { graph, run }];
        }
        for (flag, roots) in [(&self.runc_root, &mut places.runc), (&self.crun_root, &mut places.crun)] {
            if let Some(root) = flag {
                *roots = vec![root.clone()];
            }
        }
        places
    }
}
