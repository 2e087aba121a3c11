//! The base copy and the frozen upperdir against `cp -a`, without a container: nothing changes meanwhile.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use snapshot_engine::capture::{Shadow, ShadowOptions};
use snapshot_engine::model::dirty::Still;
use snapshot_engine::model::progress::Quiet;

/// Name, number of files, bytes of each.
const CASES: &[(&str, u32, u32)] = &[
    ("1 GiB in 4 files", 4, 1 << 28),
    ("1 GiB in 1000 files", 1000, 1 << 20),
    ("20,000 files of 1 KiB", 20_000, 1024),
];

fn main() -> Result<()> {
    // `cargo test --benches` and clippy run it too; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    for (name, files, size) in CASES {
        let dir = tempfile::tempdir()?;
        let [upper, work, frozen, copy] = ["upper", "work", "frozen", "cp"].map(|n| dir.path().join(n));
        for d in 0..20 {
            fs::create_dir_all(upper.join(d.to_string()))?;
        }
        let data: Vec<u8> = (0..*size).map(|i: u32| (i.wrapping_mul(31) >> 4).to_le_bytes()[0]).collect();
        for n in 0..*files {
            fs::write(upper.join(format!("{}/{n}", n % 20)), &data)?;
        }
        rustix::fs::sync();
        for _ in 0..3 {
            let started = Instant::now();
            ensure!(Command::new("cp").arg("-a").arg(&upper).arg(&copy).status()?.success(), "cp failed");
            let cp = started.elapsed();
            fs::remove_dir_all(&copy)?;
            rustix::fs::sync();
            let mut shadow = Shadow::create(&upper, &work, ShadowOptions::default())?;
            let base = shadow.base(&mut Still, &Quiet)?.took;
            let froze = shadow.freeze(&frozen, &Quiet)?.took;
            fs::remove_dir_all(&frozen)?;
            rustix::fs::sync();
            let ratio = base.as_secs_f64() / cp.as_secs_f64();
            println!("{name}: cp -a {cp:?}, base {base:?} ({ratio:.2}), freeze {froze:?}");
        }
    }
    Ok(())
}
