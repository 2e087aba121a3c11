//! Where something was measured: a figure means nothing without it.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// The machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The architecture.
    pub architecture: &'static str,
    /// CPUs this process may use.
    pub cpus: usize,
    /// What they call themselves.
    pub cpu: String,
    /// Whether it is a guest of a hypervisor, whose other guests cost time too.
    pub virtual_machine: bool,
    /// Bytes of memory.
    pub memory: u64,
    /// `v2`, `hybrid` or `v1`.
    pub cgroups: &'static str,
    /// What the kernel reads the time from.
    pub clocksource: String,
    /// Load averages over 1, 5 and 15 minutes when it began: what else went on.
    pub load: String,
    /// The engine's version.
    pub engine: &'static str,
}

impl Machine {
    /// This one, now. What the kernel does not tell is empty.
    #[must_use]
    pub fn here() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = info.lines().find(|l| l.starts_with(name));
            line.and_then(|l| l.split_once(':')).map_or("", |(_, v)| v.trim()).to_owned()
        };
        let memory = read("/proc/meminfo");
        let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: field("model name"),
            virtual_machine: field("flags").split(' ').any(|f| f == "hypervisor"),
            memory: kib.and_then(|k| k.trim().parse::<u64>().ok()).unwrap_or(0) << 10,
            cgroups: cgroups(),
            clocksource: read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .trim()
                .to_owned(),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            engine: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn cgroups() -> &'static str {
    let there = |path: &str| Path::new(path).exists();
    if there("/sys/fs/cgroup/cgroup.controllers") {
        "v2"
    } else if there("/sys/fs/cgroup/unified/cgroup.controllers") {
        "hybrid"
    } else {
        "v1"
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_a_kernel_and_processors() {
        let here = super::Machine::here();
        assert!(!here.kernel.is_empty() && here.cpus > 0 && here.memory > 0);
    }
}
