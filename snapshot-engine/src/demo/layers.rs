//! The layers of a demo container, made without any image.
//!
//! ```text
//! LAYERS/lower1   the base: etc bin srv var ... every kind of inode
//! LAYERS/lower2.. each overrides etc/layer, whites out one file of the base, adds its own
//! LAYERS/upper    the writable layer     LAYERS/work     LAYERS/merged   mount point, in the container's namespace only
//! ```

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use serde::{Deserialize, Serialize};

use super::content::noise;

/// How many files `srv/pool` of the base has, for the churn to copy up and white out.
pub(super) const POOL: u32 = 64;

/// What lies in the upperdir from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seed {
    /// Files below `/data`, in directories of a hundred.
    pub files: u32,
    /// Their bytes together, incompressible.
    pub bytes: u64,
}

/// Makes the layers in the empty directory `layers`.
pub(super) fn create(layers: &Path, lowers: u32) -> io::Result<()> {
    for name in ["upper", "work", "merged"] {
        fs::create_dir(layers.join(name))?;
    }
    fs::set_permissions(layers.join("upper"), PermissionsExt::from_mode(0o755))?;
    base(&layers.join("lower1"))?;
    for n in 2..=lowers {
        let dir = layers.join(format!("lower{n}"));
        fs::create_dir_all(dir.join("etc"))?;
        fs::create_dir_all(dir.join("srv/spare"))?;
        fs::write(dir.join("etc/layer"), format!("{n}\n"))?;
        fs::write(dir.join(format!("etc/only-in-layer-{n}")), format!("{n}\n"))?;
        // A whiteout: a character device 0/0 (Documentation/filesystems/overlayfs.rst).
        let whiteout = dir.join(format!("srv/spare/{n}"));
        rustix::fs::mknodat(CWD, whiteout, FileType::CharacterDevice, Mode::empty(), 0)?;
    }
    Ok(())
}

fn base(dir: &Path) -> io::Result<()> {
    let dirs = [
        "etc",
        "bin",
        "dev",
        "proc",
        "run",
        "tmp",
        "data",
        "srv/pool",
        "srv/spare",
        "srv/opaque",
        "var/log",
        "root",
    ];
    for name in dirs {
        fs::create_dir_all(dir.join(name))?;
    }
    fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
    fs::set_permissions(dir.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/os-release", "ID=snapshot-engine-demo\nNAME=\"snapshot-engine demo\"\nVERSION_ID=1\n"),
        ("etc/layer", "1\n"),
        ("etc/motd", "no program lives here\n"),
        ("srv/doomed", "deleted at the start\n"),
        ("srv/opaque/hidden", "hidden by an opaque directory\n"),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text)?;
    }
    for n in 0..POOL {
        fs::write(dir.join(format!("srv/pool/{n}")), noise(u64::from(n), 300 + 200 * n as usize))?;
        fs::write(dir.join(format!("srv/spare/{n}")), format!("{n}\n"))?;
    }
    fs::write(dir.join("bin/tool"), noise(0x7f, 100_000))?;
    fs::set_permissions(dir.join("bin/tool"), PermissionsExt::from_mode(0o755))?;
    fs::hard_link(dir.join("bin/tool"), dir.join("bin/tool-too"))?;
    symlink("tool", dir.join("bin/sh"))?;
    symlink("bin", dir.join("sbin"))?;
    xattr(&dir.join("etc/motd"), "user.demo", b"lower")
}

/// Sets an attribute, unless the file system has none.
pub(super) fn xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Run by the init, inside: gives the upperdir its files and one of every mark overlayfs knows.
pub(super) fn seed(seed: &Seed) -> io::Result<()> {
    fs::remove_file("/srv/doomed")?;
    fs::remove_dir_all("/srv/opaque")?;
    fs::create_dir("/srv/opaque")?;
    fs::write("/srv/opaque/shown", "alone\n")?;
    fs::write("/etc/hostname", fs::read("/proc/sys/kernel/hostname")?)?;
    fs::set_permissions("/etc/group", PermissionsExt::from_mode(0o640))?;
    fs::hard_link("/etc/hostname", "/etc/hostname-too")?;
    symlink("hostname", "/etc/hostname-link")?;
    xattr(Path::new("/etc/hostname"), "user.demo", b"upper")?;
    rustix::fs::mknodat(CWD, "/run/fifo", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let sparse = fs::File::create("/srv/sparse")?;
    sparse.set_len(8 << 20)?;
    sparse.write_all_at(b"an island", 4 << 20)?;
    fs::write(Path::new(std::ffi::OsStr::from_bytes(b"/srv/not-utf8-\xff")), "x")?;
    fill(Path::new("/data"), seed)
}

/// Writes the seed's files below a directory that is there, `DIR/N/FILE` in directories of a hundred; no two files and no two MiB of one
/// are alike.
///
/// # Errors
/// As the file system's, and when a directory of the seed is there already.
pub fn fill(dir: &Path, seed: &Seed) -> io::Result<()> {
    let size = usize::try_from(seed.bytes / u64::from(seed.files.max(1))).unwrap_or(usize::MAX);
    // Noise is made once and shifted: a seed of a GiB should not take a minute.
    let noise = noise(1, size.min(1 << 20));
    for n in 0..seed.files {
        let dir = dir.join((n / 100).to_string());
        if n % 100 == 0 {
            fs::create_dir(&dir)?;
        }
        write_filled(&fs::File::create(dir.join(n.to_string()))?, n, size, &noise)?;
    }
    Ok(())
}

fn write_filled(file: &fs::File, n: u32, size: usize, fill: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let part = &fill[..fill.len().min(size - at)];
        file.write_all_at(part, at as u64)?;
        at += part.len();
    }
    // So that no two files and no two MiB of one are alike.
    for block in 0..size.div_ceil(1 << 20) {
        let mark = (u64::from(n) << 32 | block as u64).to_le_bytes();
        let room = (size - (block << 20)).min(mark.len());
        file.write_all_at(&mark[..room], (block << 20) as u64)?;
    }
    Ok(())
}

/// The data of the overlay's `mount(2)`.
pub(super) fn mount_options(layers: &Path, lowers: u32, redirect_dir: bool) -> io::Result<CString> {
    let escape = |name: &str| {
        let path = layers.join(name);
        let bytes = path.as_os_str().as_bytes().iter();
        bytes.flat_map(|b| if b":,\\".contains(b) { vec![b'\\', *b] } else { vec![*b] }).collect::<Vec<u8>>()
    };
    let mut text = b"lowerdir=".to_vec();
    for n in (1..=lowers).rev() {
        text.extend(escape(&format!("lower{n}")));
        text.push(if n == 1 { b',' } else { b':' });
    }
    text.extend(b"upperdir=");
    text.extend(escape("upper"));
    text.extend(b",workdir=");
    text.extend(escape("work"));
    if redirect_dir {
        text.extend(b",redirect_dir=on");
    }
    // mount(2) reads one page.
    if text.len() >= 4096 {
        return Err(io::Error::other(
            "the layers' paths do not fit the mount options: use a shorter directory or fewer layers",
        ));
    }
    Ok(CString::new(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped_and_bounded() {
        let options = mount_options(Path::new("/a:b,c"), 2, false).unwrap();
        let want = r"lowerdir=/a\:b\,c/lower2:/a\:b\,c/lower1,upperdir=/a\:b\,c/upper,workdir=/a\:b\,c/work";
        assert_eq!(options.to_str().unwrap(), want);
        assert!(mount_options(Path::new("/a"), 1000, false).is_err());
    }
}
