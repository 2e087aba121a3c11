//! `man`.

use clap::CommandFactory;

use super::args::{Cli, Man};
use super::out::Out;
use super::{Error, Result};

pub(super) fn run(args: &Man, out: &Out) -> Result {
    match &args.dir {
        Some(dir) => {
            let failed = |e| Error::File(dir.clone(), e);
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
            out.text(&format!("Manual pages written to {}\n", dir.display()))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Error::Output)?;
            out.raw(&page)
        }
    }
}
