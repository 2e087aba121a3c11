//! Images to read back: a tree of everything, and images of it by `nydus-image` and by the engine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use snapshot_engine::image::Quiet;
use snapshot_engine::image::build::{Image, build};
use snapshot_engine::model::chunk::Format;

use crate::building::request;
use crate::everything::{mtime, noise, xattr};

/// A tree that needs no privilege to make: files of sizes round the borders of chunks and blocks, holes, links, odd names.
///
/// # Errors
/// When it cannot be made.
pub fn plain_tree(root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for size in [0usize, 1, 4095, 4096, 4097, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20] {
        fs::write(root.join(format!("size-{size}")), noise(size as u64, size))?;
    }
    fs::write(root.join("text"), b"the quick brown fox ".repeat(200_000))?;
    fs::write(root.join("same-a"), noise(7, 300_000))?;
    fs::write(root.join("same-b"), noise(7, 300_000))?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(20 << 20)?;
    sparse.write_all_at(b"in the middle", 9_000_000)?;
    File::create(root.join("all-hole"))?.set_len(3_000_001)?;
    fs::write(root.join(OsStr::from_bytes(b"not\xffutf8\x01")), "bytes")?;
    fs::write(root.join("n".repeat(255)), "long name")?;
    fs::write(root.join("!before-the-dots"), "x")?;
    fs::write(root.join(".-between"), "x")?;
    symlink("text", root.join("link"))?;
    symlink("x".repeat(4000), root.join("long-link"))?;
    symlink(OsStr::from_bytes(b"/nowhere/\xfe"), root.join("odd-link"))?;
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    let many = root.join("many");
    fs::create_dir(&many)?;
    for i in 0..1000 {
        fs::write(many.join(format!("entry-{i}-{}", "y".repeat(i % 90))), noise(i as u64, i % 700))?;
    }
    fs::create_dir(root.join("empty-dir"))?;
    let mut deep = root.to_owned();
    for i in 0..60 {
        deep = deep.join(format!("level-{i}"));
        fs::create_dir(&deep)?;
    }
    fs::write(deep.join("bottom"), "deep")?;
    fs::hard_link(root.join("size-65536"), many.join("linked"))?;
    fs::hard_link(root.join("size-65536"), root.join("c-linked"))?;
    xattr(&root.join("text"), "user.large", &[b'v'; 3900])?;
    xattr(&root.join("size-1"), "user.b", b"2")?;
    xattr(&root.join("size-1"), "user.a", b"")?;
    xattr(&root.join("empty-dir"), "user.dir", &[1; 200])?;
    mtime(&root.join("same-b"), -1_000_000_000, 999_999_999)?;
    mtime(&root.join("link"), 1, 5)?;
    mtime(&root.join("empty-dir"), 4_000_000_000, 1)?;
    Ok(())
}

/// The same, with what needs root: owners, devices, sockets, set-id bits, attributes of every kind.
///
/// # Errors
/// When it cannot be made.
pub fn whole_tree(root: &Path) -> Result<()> {
    plain_tree(root)?;
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device)
    };
    node("char", FileType::CharacterDevice, rustix::fs::makedev(5, 300))?;
    node("block", FileType::BlockDevice, rustix::fs::makedev(259, 70_000))?;
    node("socket", FileType::Socket, 0)?;
    xattr(&root.join("size-1"), "trusted.t", b"\0binary\xff")?;
    xattr(&root.join("link"), "trusted.on-a-link", b"1")?;
    // vfs_cap_data, revision 2: cap_net_raw, effective.
    let caps = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let same = root.join("same-b");
    rustix::fs::chown(&same, Some(Uid::from_raw(4_000_000_000)), Some(Gid::from_raw(70_000)))?;
    fs::set_permissions(&same, fs::Permissions::from_mode(0o6755))?;
    xattr(&root.join("size-4096"), "security.capability", &caps)?;
    fs::set_permissions(root.join("empty-dir"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(root.join("many"), fs::Permissions::from_mode(0o500))?;
    mtime(&same, -1_000_000_000, 999_999_999)?;
    mtime(&root.join("empty-dir"), 4_000_000_000, 1)?;
    Ok(())
}

/// Runs `nydus-image create` on a tree.
///
/// # Errors
/// With what it had to say.
pub fn nydus_create(tool: &Path, source: &Path, args: &[&OsStr]) -> Result<()> {
    let out = Command::new(tool)
        .args(["create", "-t", "dir-rafs", "--whiteout-spec", "none"])
        .args(args)
        .arg(source)
        .stdin(Stdio::null())
        .output()?;
    let said = || format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "{args:?}: {}", said());
    Ok(())
}

/// An image of one tree in an OCI layout `dir/layout`, by the engine.
///
/// # Errors
/// As [`build`].
pub fn engine_image(upper: &Path, dir: &Path, tag: &str, format: Format) -> Result<(Image, PathBuf)> {
    let image = build(&request(dir, tag, format, upper), &Quiet)?;
    Ok((image, dir.join("layout")))
}
