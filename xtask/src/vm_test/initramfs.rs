//! Everything a guest has: the test binaries at the paths they have here (tests know their helpers by them), what these link
//! and call, the kernel's modules, and an init that runs the tests.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::packages::Unpacked;
use super::plan::{Plan, Step};
use crate::shell;

/// What the tests call, besides busybox's applets.
const PROGRAMS: [&str; 4] = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "insmod"];

/// What the tests mount. What a kernel has built in is no module, and fine.
const MODULES: [&str; 5] = ["loop", "ext4", "xfs", "overlay", "btrfs"];

/// What programs of this machine read.
const CONFIGURATION: [&str; 3] = ["/etc/mke2fs.conf", "/etc/passwd", "/etc/group"];

/// The first program, and the one it starts from a root that containers can be made in.
const INIT: &str = include_str!("init.sh");

/// Writes the archive of one kernel.
pub(super) fn make(kernel: &Unpacked, plan: &Plan, scratch: &Path) -> Result<PathBuf> {
    let to = scratch.join(format!("{}.cpio", kernel.release));
    let file = File::create(&to).with_context(|| format!("creating {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for directory in ["/dev", "/proc", "/sys", "/tmp", "/run", "/var", "/new"] {
        archive.directory(Path::new(directory))?;
    }
    archive.file(Path::new("/init"), INIT.as_bytes())?;
    archive.file(Path::new("/plan.sh"), script(&plan.steps).as_bytes())?;

    let modules = kernel.modules(&MODULES)?;
    let mut list = String::new();
    for (number, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let place = PathBuf::from(format!("/modules/{number}-{name}"));
        archive.file(&place, &fs::read(module).with_context(|| format!("reading {}", module.display()))?)?;
        list.push_str(&format!("{}\n", place.display()));
    }
    archive.file(Path::new("/modules/list"), list.as_bytes())?;

    let busybox = shell::which("busybox").context("busybox is needed for the guests")?;
    archive.file(Path::new("/bin/busybox"), &fs::read(&busybox)?)?;
    for name in PROGRAMS {
        let program = shell::which(name).with_context(|| format!("`{name}` is needed for the guests"))?;
        add_linked(&mut archive, &program, &Path::new("/usr/local/sbin").join(name), &fs::read(&program)?)?;
    }
    for path in CONFIGURATION.map(Path::new) {
        if path.exists() {
            archive.file(path, &fs::read(path)?)?;
        }
    }
    for program in &plan.programs {
        // The line tables make up most of a binary, and memory is dear: it lies there three times while booting.
        let stripped = scratch.join("stripped");
        shell::quiet(shell::program("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program))?;
        add_linked(&mut archive, program, program, &fs::read(&stripped)?)?;
    }
    archive.finish().with_context(|| format!("writing {}", to.display()))?;
    Ok(to)
}

/// A program, and the libraries the loader would give it here, at the paths they have here.
fn add_linked(
    archive: &mut Archive<BufWriter<File>>,
    program: &Path,
    place: &Path,
    content: &[u8],
) -> Result<()> {
    archive.file(place, content)?;
    let list = shell::output(shell::program("ldd").arg(program))?;
    for library in libraries(&list) {
        if !library.is_absolute() {
            bail!("{} needs {}, which this machine does not have", program.display(), library.display());
        }
        archive
            .file(&library, &fs::read(&library).with_context(|| format!("reading {}", library.display()))?)?;
    }
    Ok(())
}

/// The files in ldd's list; the kernel's own page is none.
fn libraries(list: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let found = line.split_once("=> ").map_or(line, |(_, found)| found).trim();
        let name = found.split(" (").next().unwrap_or(found);
        (!name.starts_with("linux-vdso") && !name.is_empty()).then(|| PathBuf::from(name))
    };
    list.lines().filter_map(path).collect()
}

/// What init reads: one call of a function a step.
fn script(steps: &[Step]) -> String {
    let mut text = String::new();
    for (number, step) in steps.iter().enumerate() {
        let program = step.program.to_string_lossy();
        let words = std::iter::once(&*program).chain(step.arguments.iter().map(|argument| &**argument));
        let words: Vec<String> = words.map(quoted).collect();
        text.push_str(&format!("step {number} {}\n", words.join(" ")));
    }
    text
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldds_list() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld.so (0x7f)\n\
                    \tlibgone.so => not found\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld.so", "not found"].map(PathBuf::from);
        assert_eq!(libraries(list), expected);
    }

    #[test]
    fn the_script_quotes_what_it_is_given() {
        let step = Step { name: "t".into(), program: "/a b/t".into(), arguments: vec!["it's".into()] };
        assert_eq!(script(&[step]), "step 0 '/a b/t' 'it'\\''s'\n");
    }
}
