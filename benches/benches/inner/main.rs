//! The inner costs of the window and of the tracker, each measured against what it is compared with in the same run, alternating.
//!
//! | part | what |
//! |---|---|
//! | `window` | null window, cost per inode and KiB, drain, inner efficiency |
//! | `freezer` | freezer windows against raw `cgroup.freeze` round trips at 1 to 500 tasks |
//! | `tracker` | system calls and writes with and without the tracker, inside the container and outside; memory |
//!
//! `cargo xtask bench --bench inner -- window freezer` runs some parts; without names all run. The results are also in `target/inner.json`.

mod freezer;
mod inside;
mod tracker;
mod window;

use std::path::Path;

use anyhow::{Result, bail};
use snapshot_benches::figures::Figures;
use snapshot_engine::demo::init_if_asked;

type Part = (&'static str, fn(&mut Figures) -> Result<()>);

const PARTS: [Part; 3] =
    [("window", window::measure), ("freezer", freezer::measure), ("tracker", tracker::measure)];

fn main() -> Result<()> {
    // This program is also the containers' init, and the process that is measured inside of them.
    init_if_asked();
    if inside::serve_if_asked()? {
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` and clippy run it too; only `cargo bench` measures.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    if let Some(unknown) = wanted.iter().find(|w| PARTS.iter().all(|(name, _)| name != *w)) {
        bail!("there is no part {unknown:?}");
    }
    let mut figures = Figures::default();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|w| *w == name) {
            println!("\n{name}");
            part(&mut figures)?;
        }
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    figures.write(&target.join("inner.json"))
}
