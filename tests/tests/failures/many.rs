//! Many containers, and as many engines at once: 50, or as many as SNAPSHOT_MANY says.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapshot_engine::demo::Workload;
use snapshot_tests::bench::{self, Disk, Running};
use snapshot_tests::causal;
use snapshot_tests::engine::{self, Started, engine};
use snapshot_tests::host;
use snapshot_tests::worker::Worker;

use super::{CAUSAL, INIT, WORKER, times};

/// Every engine makes its snapshot, or says within which budget it could not; every tree is of its own container; nobody is left frozen and nothing behind.
#[test]
fn many_containers_at_once() {
    if !bench::root() {
        return;
    }
    let programs = host::programs();
    let count = times("SNAPSHOT_MANY", 50) as usize;
    let disk = Disk::new("ext4").unwrap();
    let demos: Vec<Running> =
        (0..count).map(|_| Running::start(INIT, &disk, Workload::idle()).unwrap()).collect();
    // Writers in some of them: in all it would be a test of the machine.
    let mut workers: Vec<(usize, Worker)> =
        (0..count).step_by(10).map(|n| (n, Worker::start(WORKER, &demos[n]).unwrap())).collect();
    workers.iter_mut().for_each(|(_, worker)| drop(worker.ask(&format!("causal /{CAUSAL} 1")).unwrap()));
    let root = disk.path().join("work");
    let work = |n: usize| -> PathBuf { root.join(n.to_string()) };
    (0..count).for_each(|n| std::fs::create_dir_all(work(n)).unwrap());
    demos.iter().enumerate().for_each(|(n, demo)| {
        std::fs::write(demo.root().unwrap().join("srv/own"), n.to_string()).unwrap();
    });

    let began = Instant::now();
    let mut waiting: Vec<usize> = (0..count).collect();
    let mut turns = 0;
    while !waiting.is_empty() {
        turns += 1;
        assert!(turns <= 5, "no snapshot of {waiting:?}");
        let runs: Vec<(usize, Started)> =
            waiting.drain(..).map(|n| (n, start(&demos[n], &work(n)))).collect();
        for (n, mut run) in runs {
            while run.runs().unwrap() && began.elapsed() < Duration::from_secs(300) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let ended = run.end().unwrap();
            if ended.code != Some(0) {
                ended.must_fail(1, &["budget", "help: "]).unwrap();
                waiting.push(n);
            }
        }
        println!(
            "turn {turns}: {} of {count} are without a snapshot after {:?}",
            waiting.len(),
            began.elapsed()
        );
    }
    for (n, demo) in demos.iter().enumerate() {
        assert!(!demo.frozen(), "{n} is left frozen");
        let listed = engine::list(&work(n)).unwrap();
        let [snapshot] = &listed[..] else { panic!("{n}: {listed:#?}") };
        let frozen = Path::new(snapshot["record"]["cut"]["old_upper_dir"].as_str().unwrap());
        assert_eq!(std::fs::read_to_string(frozen.join("srv/own")).unwrap(), n.to_string());
        if n % 10 == 0 {
            causal::judge(&frozen.join(CAUSAL).as_path().into(), 1).unwrap();
        }
    }
    workers.iter_mut().for_each(|(_, worker)| drop(worker.ask("quiet").unwrap()));
    host::must_be_clean(&programs, &root).unwrap();
}

fn start(demo: &Running, work: &Path) -> Started {
    let target = format!("oci:{}:t", work.join("layout").display());
    let mut command = engine(["commit", demo.0.name(), &target, "--wait", "--overwrite", "--max-pause"]);
    // All of them share the machine's few processors: a window that loses its own lasts as long as that.
    command.args(["500ms", "--work-dir"]).arg(work);
    Started::new(&mut command).unwrap()
}
