//! The jobs as they run inside the container: each in a process of its own, for ever, with nothing but the code that is loaded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::content::{LINE, PAGE, line, mix, page};
use super::layers::{POOL, xattr};
use super::ticks;
use super::workload::{Job, Rate};
use crate::kernel::words::Words;

/// Logs and flat-out files start anew at this size, so that a forgotten demo does not fill the disk.
const BOUND: u64 = 32 << 20;

/// One process of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    job: Job,
    /// Number among the processes of the same job.
    number: u32,
    /// The ticker's slot.
    slot: usize,
}

/// The processes a workload comes down to.
pub(super) fn processes(jobs: &[Job]) -> Vec<Process> {
    let mut all = Vec::new();
    let mut slot = 0;
    for job in jobs {
        let count = match job {
            Job::Flatout { writers } | Job::Storm { writers } | Job::Random { writers, .. } => *writers,
            Job::Sleepers { count } => *count,
            _ => 1,
        };
        let base = all.len() as u32;
        all.extend((0..count).map(|n| Process { job: *job, number: base + n, slot }));
        if matches!(job, Job::Tick { .. }) {
            slot += 1;
        }
    }
    all
}

/// Does the job; returns only with an error.
pub(super) fn run(process: Process, ticks: &OwnedFd, tickers: usize) -> io::Result<()> {
    let Process { job, number, slot } = process;
    match job {
        Job::Log { files, rate } => log(number, files, rate),
        Job::Database { mib, rate } => database(number, mib, rate),
        Job::Churn { rate } => churn(number, rate),
        Job::Tick { mode } => ticks::run(ticks, slot, tickers, mode),
        Job::Mmap { kib, rate } => mmap(number, kib, rate),
        Job::Random { rate, .. } => random(number, rate),
        Job::Syncing { mib, rate } => syncing(number, mib, rate),
        Job::Storm { .. } => storm(number),
        Job::Flatout { .. } => flatout(number),
        Job::Idle | Job::Sleepers { .. } => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
    }
}

fn pace(rate: Rate) {
    match rate {
        Rate::Light => std::thread::sleep(Duration::from_millis(10)),
        Rate::Medium => std::thread::sleep(Duration::from_millis(1)),
        Rate::Flat => {}
    }
}

/// Line `n` goes to file `n % files`: `/var/log/JOB-FILE.log`.
fn log(job: u32, files: u32, rate: Rate) -> io::Result<()> {
    let name = |i: u32| format!("/var/log/{job}-{i}.log");
    let open = |i: u32| OpenOptions::new().create(true).append(true).open(name(i));
    let mut logs = (0..files).map(open).collect::<io::Result<Vec<File>>>()?;
    for n in 0u64.. {
        let i = (n % u64::from(files)) as u32;
        let turn = n / u64::from(files);
        // Rotation, as any logger does it.
        if turn > 0 && turn % (BOUND / LINE as u64) == 0 {
            fs::rename(name(i), format!("{}.1", name(i)))?;
            logs[i as usize] = open(i)?;
        }
        logs[i as usize].write_all(&line(n))?;
        pace(rate);
    }
    Ok(())
}

/// Write `n` goes to page `n % pages` of `/var/JOB.db`.
fn database(job: u32, mib: u32, rate: Rate) -> io::Result<()> {
    let file = File::create(format!("/var/{job}.db"))?;
    let pages = u64::from(mib) * (1 << 20) / PAGE as u64;
    for n in 0u64.. {
        file.write_all_at(&page(n), n % pages * PAGE as u64)?;
        if n % 64 == 63 {
            rustix::fs::fdatasync(&file)?;
        }
        pace(rate);
    }
    Ok(())
}

/// Overwrites pages at random places of `/var/random`, which all processes of the job share.
fn random(number: u32, rate: Rate) -> io::Result<()> {
    const PAGES: u64 = (64 << 20) / PAGE as u64;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open("/var/random")?;
    file.set_len(PAGES * PAGE as u64)?;
    let data = page(u64::from(number));
    // Fixed steps of a generator of its own each: every run writes the same places.
    let mut at = u64::from(number) + 1;
    loop {
        at = mix(at);
        file.write_all_at(&data, at % PAGES * PAGE as u64)?;
        pace(rate);
    }
}

/// Page `n` goes to the end of `/var/JOB.journal`, is made durable, and is then written to its place in `/var/JOB.data`.
fn syncing(job: u32, mib: u32, rate: Rate) -> io::Result<()> {
    let data = File::create(format!("/var/{job}.data"))?;
    let journal = File::create(format!("/var/{job}.journal"))?;
    let pages = u64::from(mib) * (1 << 20) / PAGE as u64;
    for n in 0u64.. {
        let slot = n % 256;
        if slot == 0 && n > 0 {
            // A checkpoint.
            rustix::fs::fdatasync(&data)?;
            journal.set_len(0)?;
        }
        journal.write_all_at(&page(n), slot * PAGE as u64)?;
        rustix::fs::fdatasync(&journal)?;
        data.write_all_at(&page(n), mix(n) % pages * PAGE as u64)?;
        pace(rate);
    }
    Ok(())
}

/// Small files made, renamed, changed and deleted, one after the other.
fn storm(number: u32) -> io::Result<()> {
    let root = format!("/srv/storm-{number}");
    fs::create_dir(&root)?;
    for n in 0u64.. {
        let (new, name) = (format!("{root}/new"), format!("{root}/{}", n % 64));
        fs::write(&new, line(n))?;
        fs::rename(&new, &name)?;
        fs::set_permissions(&name, PermissionsExt::from_mode(0o600 | (n % 8) as u32))?;
        if n % 3 == 2 {
            fs::remove_file(&name)?;
        }
    }
    Ok(())
}

/// Rewrites its own 1 MiB as fast as it can, 4 KiB a call.
fn flatout(number: u32) -> io::Result<()> {
    let file = File::create(format!("/var/flat-{number}"))?;
    let pages = (1 << 20) / PAGE as u64;
    let data = page(u64::from(number));
    for n in 0u64.. {
        file.write_all_at(&data, n % pages * PAGE as u64)?;
    }
    Ok(())
}

/// Stores `n` into word `n % words` of `/var/JOB.map`.
fn mmap(job: u32, kib: u32, rate: Rate) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(format!("/var/{job}.map"))?;
    file.set_len(u64::from(kib) << 10)?;
    let words = Words::map(&file, (kib as usize) << 7)?;
    for (n, word) in (0u64..).zip(words.as_slice().iter().cycle()) {
        word.store(n, Relaxed);
        pace(rate);
    }
    Ok(())
}

/// Every change of the tree that overlayfs makes a difference of. A new file is written under another name and renamed, so under its
/// final name it is always whole.
fn churn(job: u32, rate: Rate) -> io::Result<()> {
    let root = format!("/srv/churn-{job}");
    fs::create_dir(&root)?;
    for n in 0u64.. {
        let turn = n / 12;
        let at = |kind: &str| format!("{root}/{kind}-{}", turn % 16);
        let pool = format!("/srv/pool/{}", turn % u64::from(POOL));
        match n % 12 {
            0 => fs::write(at("new"), line(n))?,
            1 => fs::rename(at("new"), at("file"))?,
            2 => renew(&at("link"), |link| fs::hard_link(at("file"), link))?,
            3 => renew(&at("symlink"), |link| std::os::unix::fs::symlink("file", link))?,
            4 => fs::create_dir(at("dir"))?,
            5 => fs::write(format!("{}/inside", at("dir")), line(n))?,
            6 => fs::remove_dir_all(at("dir"))?,
            7 => fs::set_permissions(at("file"), PermissionsExt::from_mode(0o600 | (turn % 8) as u32))?,
            8 => xattr(Path::new(&at("file")), "user.turn", turn.to_string().as_bytes())?,
            // A lower file: copied up by the append on one round, whited out on the next, made anew on the third.
            9 => match turn / u64::from(POOL) % 3 {
                0 | 2 => {
                    OpenOptions::new().append(true).create(true).open(&pool)?.write_all(&line(n))?;
                }
                _ => match fs::remove_file(&pool) {
                    // Another churn was faster.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                },
            },
            10 => fs::File::options().write(true).open(at("file"))?.set_len(turn % 300)?,
            _ => fs::remove_file(at("link"))?,
        }
        pace(rate);
    }
    Ok(())
}

fn renew(name: &str, make: impl Fn(&str) -> io::Result<()>) -> io::Result<()> {
    match make(name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(name)?;
            make(name)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::workload::TickMode;

    #[test]
    fn tickers_have_slots_of_their_own() {
        let jobs = [
            Job::Tick { mode: TickMode::Sleep },
            Job::Sleepers { count: 3 },
            Job::Tick { mode: TickMode::Spin },
            Job::Idle,
        ];
        let all = processes(&jobs);
        assert_eq!(all.len(), 6);
        let slots: Vec<usize> =
            all.iter().filter(|p| matches!(p.job, Job::Tick { .. })).map(|p| p.slot).collect();
        assert_eq!(slots, [0, 1]);
    }
}
