//! `cargo xtask torture`: see `snapshot_tests::torture`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use snapshot_engine::demo::init_if_asked;
use snapshot_engine::kernel::signals;
use snapshot_tests::torture::post::Post;
use snapshot_tests::torture::run::{Options, Plant, run};
use snapshot_tests::torture::writer::{kinds, write_if_asked};

const USAGE: &str = "options:
  --seed N         everything the writers do comes from it (default: the time)
  --scene N        begin with this scene
  --minutes M      how long at most (default 5)
  --cuts N         how many cuts at most
  --writers K,K    kinds of writers (default: all, in changing mixes)
  --posts P,P      inside, chroot, bind, nested, born, outside: where the processes stand (default: changing)
  --threads N      writers in each container (default: 1 to 64)
  --fs F,F         ext4, xfs, btrfs, tmpfs (default ext4,xfs)
  --gate G,G       fence, freezer, auto, none (default: all in turn)
  --plant FAULT    no-settle, drop-events, ignore-mmap, early-read, no-count: the run ends when it is found
  --slow FAULTS    page-faults: they take a millisecond between their event and what it tells of
  --output json    the report as JSON on standard output";

fn options() -> Result<(Options, bool)> {
    let mut options = Options::new(&std::env::current_exe()?);
    options.seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let mut json = false;
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--help" {
            println!("{USAGE}");
            std::process::exit(0);
        }
        let value = args.next().with_context(|| format!("{name} wants a value\n{USAGE}"))?;
        let list = || value.split(',').map(str::to_owned);
        match name.as_str() {
            "--seed" => options.seed = value.parse()?,
            "--scene" => options.scene = value.parse()?,
            "--minutes" => options.time = Duration::from_secs_f64(value.parse::<f64>()? * 60.0),
            "--cuts" => options.cuts = value.parse()?,
            "--threads" => options.threads = value.parse()?,
            "--writers" => options.kinds = kinds(&value)?,
            "--posts" => options.posts = Post::named(&value)?,
            "--fs" => options.file_systems = list().collect(),
            "--gate" => options.gates = list().map(|g| g.parse()).collect::<Result<_, _>>()?,
            "--plant" => {
                let found = Plant::ALL.iter().find(|(_, word)| *word == value);
                options.plant = Some(found.with_context(|| format!("no such fault\n{USAGE}"))?.0);
            }
            "--slow" if value == "page-faults" => options.slow_faults = true,
            "--output" if value == "json" => json = true,
            _ => bail!("{name} {value}?\n{USAGE}"),
        }
    }
    Ok((options, json))
}

fn main() -> Result<ExitCode> {
    init_if_asked();
    write_if_asked();
    let (options, json) = options()?;
    // The run ends between two cuts then, and clears up.
    signals::install()?;
    let report = run(&options, &mut |line| eprintln!("{line}"))?;
    if json {
        println!("{}", report.json());
    } else {
        println!("{report}");
    }
    let idle = options.file_systems.iter().any(|fs| report.cuts_on(fs) == 0) && report.violations.is_empty();
    if idle {
        eprintln!("no progress: a file system has no cut at all");
    }
    println!("{}", report.last_line());
    Ok(if report.violations.is_empty() && !idle { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
