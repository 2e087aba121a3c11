//! fio inside a container: the host's own, its files on the container's overlay, its processor time by its own account.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use snapshot_tests::bench::Running;
use snapshot_tests::inside::{Inside, User};

use super::slowdown::Speed;

const FIO: &str = "/usr/bin/fio";
/// What all loads have in common: one thread, 4 KiB at a time through the page cache, at random places of one file.
const COMMON: [&str; 10] = [
    "--name=slowdown",
    "--directory=/srv",
    "--filename=fio",
    "--size=16m",
    "--bs=4k",
    "--ioengine=psync",
    "--thread",
    "--time_based",
    // What is in the page cache stays there: the load is the file system's, not the disk's.
    "--invalidate=0",
    "--output-format=json",
];

/// Before each slice it does the same for so long: opening a session writes back what is dirty, and the first write to each page is another kind of work.
const WARM_UP: Duration = Duration::from_millis(150);

/// What fio is asked to do: a name, and options.
pub const LOADS: [(&str, &[&str]); 4] = [
    ("randwrite 4 KiB", &["--rw=randwrite"]),
    ("randwrite 4 KiB, fdatasync after each 32", &["--rw=randwrite", "--fdatasync=32"]),
    ("randwrite 4 KiB, fdatasync after each", &["--rw=randwrite", "--fdatasync=1"]),
    ("randread 4 KiB", &["--rw=randread"]),
];

/// fio, in a container that has been lent the host's programs.
pub struct Fio(Inside);

impl Fio {
    /// # Errors
    /// When this machine has no fio, or the container cannot be entered.
    pub fn inside(container: &Running) -> Result<Fio> {
        ensure!(Path::new(FIO).exists(), "fio is not installed");
        // Built beside this program by `cargo xtask bench`.
        let program = std::env::current_exe()?.with_file_name("inside");
        ensure!(program.exists(), "{} is missing: use `cargo xtask bench pause`", program.display());
        let fio = Fio(Inside::new(&program.to_string_lossy(), container)?);
        // Its file is laid out here, so that no slice has that in it.
        fio.work(&["--rw=write"], WARM_UP)?;
        Ok(fio)
    }

    /// Works for so long, warm.
    ///
    /// # Errors
    /// With what fio said.
    pub fn run(&self, options: &[&str], time: Duration) -> Result<Speed> {
        self.work(options, WARM_UP)?;
        self.work(options, time)
    }

    fn work(&self, options: &[&str], time: Duration) -> Result<Speed> {
        let runtime = format!("--runtime={}ms", time.as_millis());
        let options = COMMON.iter().chain(options).copied().chain([runtime.as_str()]);
        let output = self.0.command(User::ROOT, FIO, options).output()?;
        ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
        speed(&String::from_utf8_lossy(&output.stdout))
    }
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<JobReport>,
}

/// fio's numbers: milliseconds, and per cent of them.
#[derive(Deserialize)]
struct JobReport {
    job_runtime: u64,
    usr_cpu: f64,
    sys_cpu: f64,
    read: Operations,
    write: Operations,
}

#[derive(Deserialize)]
struct Operations {
    total_ios: u64,
}

fn speed(text: &str) -> Result<Speed> {
    // Notes may come before the object.
    let json = text.find('{').and_then(|at| text.get(at..)).context("fio printed no JSON")?;
    let report: Report = serde_json::from_str(json).context("fio's JSON")?;
    let job = report.jobs.first().context("fio reports no job")?;
    let wall = Duration::from_millis(job.job_runtime);
    let cpu = wall.mul_f64((job.usr_cpu + job.sys_cpu) / 100.0);
    ensure!(!cpu.is_zero(), "fio took no processor time");
    Ok(Speed::new(job.read.total_ios + job.write.total_ios, cpu, wall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_report_is_read() {
        let text = r#"note: both iodepth >= 1 and synchronous I/O engine are selected
{"fio version": "fio-3.33", "jobs": [{"job_runtime": 1000, "usr_cpu": 20.0, "sys_cpu": 30.0,
  "read": {"total_ios": 0, "iops": 0.0}, "write": {"total_ios": 5000, "iops": 5000.0}}]}"#;
        assert_eq!(speed(text).unwrap(), Speed { cpu: 10_000.0, wall: 5000.0 });
        assert!(speed("fio: no such option").is_err());
    }
}
