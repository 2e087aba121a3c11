//! What is measured: a star around one base container, each axis varied by itself, and all workloads.
//!
//! The cross product would take a day and say no more: where two axes could work on each other (`--full`) they are crossed.

use std::time::Duration;

use snapshot_engine::model::options::GateChoice;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// About two minutes: the ends of each axis.
    Quick,
    /// About twelve.
    Usual,
    /// As long as it takes: more points, more windows, XFS too on each axis.
    Full,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its place on the axis.
    pub label: String,
    /// The upper's file system.
    pub file_system: &'static str,
    /// Bytes of the upperdir.
    pub bytes: u64,
    /// Files of the upperdir.
    pub files: u32,
    /// Tasks, init and writers counted.
    pub tasks: u32,
    /// Jobs as `demo start --workload` takes them.
    pub workload: String,
    /// By which it is cut.
    pub gates: Vec<GateChoice>,
}

/// Containers that are up at the same time and take turns: their ratios are of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What is varied.
    pub axis: &'static str,
    /// The containers.
    pub points: Vec<Point>,
    /// Windows by each gate.
    pub windows: u32,
    /// No turn begins after that.
    pub time: Duration,
}

/// Log lines, 100 a second.
pub const LIGHT: &str = "log=2:light";
/// The workloads by name. `flat-out` has a writer for each CPU.
pub const WORKLOADS: [(&str, &str); 7] = [
    ("idle", "idle"),
    ("light", LIGHT),
    ("random pwrites", "random=4:medium"),
    ("fsync database", "syncing=16:flat"),
    ("flat-out", "flatout=CPUS"),
    ("mmap", "mmap=256:flat"),
    ("metadata storm", "storm=1"),
];

const MIB: u64 = 1 << 20;
const ALL: [GateChoice; 4] = [GateChoice::None, GateChoice::Fence, GateChoice::Freezer, GateChoice::Auto];

fn base(file_system: &'static str) -> Point {
    Point {
        label: file_system.to_owned(),
        file_system,
        bytes: 100 * MIB,
        files: 1000,
        tasks: 10,
        workload: LIGHT.to_owned(),
        gates: ALL.to_vec(),
    }
}

/// The groups, in the order they are measured. `cpus` writers make every core busy.
#[must_use]
pub fn groups(extent: Extent, cpus: usize) -> Vec<Group> {
    let (windows, time) = match extent {
        Extent::Quick => (30, Duration::from_secs(5)),
        Extent::Usual => (100, Duration::from_secs(22)),
        Extent::Full => (500, Duration::from_secs(300)),
    };
    let quick = extent == Extent::Quick;
    let file_systems: &[&'static str] = if extent == Extent::Full { &["ext4", "xfs"] } else { &["ext4"] };
    let mut groups =
        vec![Group { axis: "file system", points: vec![base("ext4"), base("xfs")], windows, time: time * 2 }];
    let mut vary = |axis, points: Vec<Point>, time| groups.push(Group { axis, points, windows, time });
    for &fs in file_systems {
        let point = |label: &str| Point {
            label: label.to_owned(),
            gates: vec![GateChoice::Fence, GateChoice::Freezer],
            ..base(fs)
        };
        let uppers: &[(&str, u64)] = if quick {
            &[("1 MiB", MIB), ("1 GiB", 1024 * MIB)]
        } else {
            &[("1 MiB", MIB), ("100 MiB", 100 * MIB), ("1 GiB", 1024 * MIB), ("4 GiB", 4096 * MIB)]
        };
        vary(
            "upper",
            uppers.iter().map(|(l, bytes)| Point { bytes: *bytes, ..point(l) }).collect(),
            time * 2,
        );
        let files: &[u32] = if quick { &[10, 20_000] } else { &[10, 1000, 20_000, 100_000] };
        let label = |n: &u32| if *n < 1000 { n.to_string() } else { format!("{}k", n / 1000) };
        vary("files", files.iter().map(|n| Point { files: *n, ..point(&label(n)) }).collect(), time * 3);
        let tasks: &[u32] = if quick { &[1, 500] } else { &[1, 10, 100, 500] };
        vary("tasks", tasks.iter().map(|n| Point { tasks: *n, ..point(&n.to_string()) }).collect(), time * 2);
        // One after the other: each would be the others' disturbance.
        for (label, workload) in WORKLOADS {
            let workload = workload.replace("CPUS", &cpus.to_string());
            vary("workload", vec![Point { workload, gates: ALL.to_vec(), ..point(label) }], time);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_has_its_ends_and_every_workload_every_gate() {
        for extent in [Extent::Quick, Extent::Usual, Extent::Full] {
            let groups = groups(extent, 2);
            let on = |axis: &str| groups.iter().filter(|g| g.axis == axis).flat_map(|g| &g.points).count();
            assert!(["upper", "files", "tasks"].iter().all(|axis| on(axis) >= 2));
            let workloads = groups.iter().filter(|g| g.axis == "workload").flat_map(|g| &g.points);
            assert!(workloads.clone().all(|p| p.gates.len() == 4));
            for point in workloads {
                assert!(point.workload.parse::<snapshot_engine::demo::Workload>().is_ok(), "{point:?}");
            }
        }
        let most = groups(Extent::Usual, 2).iter().map(|g| g.time.as_secs()).sum::<u64>();
        assert!(most < 8 * 60, "{most} s of turns leave too little of twelve minutes for all else");
    }
}
