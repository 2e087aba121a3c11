//! Scratch.
use snapshot_engine::{model::dirty::*, track::*};
use std::os::unix::fs::MetadataExt;
fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("debug").init();
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap_or("/tmp/trk".into()));
    std::fs::create_dir_all(&dir)?;
    let f = dir.join("f");
    std::fs::write(&f, vec![1u8; 1 << 20])?;
    let md = std::fs::metadata(&dir)?;
    let dev = (rustix::fs::major(md.dev()) << 20) | rustix::fs::minor(md.dev());
    let ns = std::fs::metadata("/proc/self/ns/mnt")?.ino() as u32;
    let t0 = std::time::Instant::now();
    let mut t = Tracker::start(&Scope { targets: vec![snapshot_ebpf::TargetId { mount_namespace: ns, overlay_device: 0, ..Default::default() }], upper_device: dev, file_system: std::env::args().nth(2).unwrap_or("ext4".into()), inodes: 10, large_bytes: 0, fault: 0 })?;
    println!("started in {:?}", t0.elapsed());
    let unproven = evidence::wait(&t, &[std::process::id()], std::time::Duration::from_millis(100));
    println!("unproven {unproven:?} stamp {:?}", t.live().stamp());
    t.watch(Ino(md.ino()), 0).unwrap();
    t.watch(Ino(std::fs::metadata(&f)?.ino()), 1 << 20).unwrap();
    println!("{}", t.settle());
    use std::os::unix::fs::FileExt;
    let fd = std::fs::OpenOptions::new().read(true).write(true).open(&f)?;
    fd.write_at(b"hello", 200_000)?;
    std::fs::write(dir.join("g"), "new")?;
    println!("settle {} in flight {}", t.settle(), t.live().in_flight());
    for d in t.take() { println!("{d:?}"); }
    println!("{:?} {:?}", t.live().stamp(), t.live().felt());
    println!("probe {:?}", t.probe(std::os::fd::AsFd::as_fd(&fd)));
    println!("skipped {}", t.skipped()?);
    Ok(())
}
