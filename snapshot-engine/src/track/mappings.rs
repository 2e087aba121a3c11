//! Who can store into the tree without a system call: shared writable mappings (T4), and io_uring rings.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// A file that a process maps shared and could write to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MappedFile {
    /// As the root of the overlay has it (`/data/db`), if it lies there.
    pub path: Vec<u8>,
    /// Major and minor number of the device that the kernel gives for it.
    pub device: (u32, u32),
    /// Its inode number there.
    pub ino: u64,
}

/// The files of these devices (major, minor) that any of these processes maps shared and could write to. Empty: nobody does. `from_root` makes the path of the one by which a process has it: in a mount namespace of its own it may have the
/// tree in other places.
///
/// # Errors
/// When `/proc` cannot be read, other than because a process is gone.
pub fn writable_mappings(
    pids: &[u32],
    devices: &[(u32, u32)],
    from_root: impl Fn(u32, Vec<u8>) -> Vec<u8>,
) -> io::Result<BTreeSet<MappedFile>> {
    let mut found = BTreeSet::new();
    for &pid in pids {
        let Some(maps) = read(&format!("/proc/{pid}/maps"))? else { continue };
        let (mut doubtful, mut named) = (false, BTreeSet::new());
        for line in lines(&maps) {
            match mapping(line, devices) {
                Mapping::Writable => named.extend(file(line)),
                Mapping::Shared => doubtful = true,
                Mapping::Other => {}
            }
        }
        // Shared and read-only now: harmless if the file was opened for reading (the C library maps its caches so), a store in waiting
        // otherwise (mprotect). VmFlags tell: `mw` is "may write".
        if doubtful && let Some(smaps) = read(&format!("/proc/{pid}/smaps"))? {
            may_write(&smaps, devices, &mut named);
        }
        found.extend(named.into_iter().map(|file| MappedFile { path: from_root(pid, file.path), ..file }));
    }
    Ok(found)
}

/// Whether any of these processes holds an io_uring.
#[must_use]
pub fn uses_uring(pids: &[u32]) -> bool {
    pids.iter().any(|pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
            fds.flatten().any(|fd| {
                std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("anon_inode:[io_uring]"))
            })
        })
    })
}

fn read(path: &str) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
}

#[derive(Debug, PartialEq, Eq)]
enum Mapping {
    Writable,
    Shared,
    Other,
}

/// The permissions, device and inode number in a line of `/proc/PID/maps`, `address perms offset major:minor inode path`.
fn fields(line: &[u8]) -> Option<(&str, (u32, u32), u64)> {
    // 16 digits each for the addresses and the offset, 20 for the number.
    let head = &line[..line.len().min(96)];
    let mut fields = head.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
    let mut text = |skipped| std::str::from_utf8(fields.nth(skipped)?).ok();
    let (perms, device) = (text(1)?, text(1)?);
    let (major, minor) = device.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    Some((perms, device, text(0)?.parse().ok()?))
}

fn file(line: &[u8]) -> Option<MappedFile> {
    let (_, device, ino) = fields(line)?;
    Some(MappedFile { path: path(line), device, ino })
}

/// The path of a line: what follows the inode number and the blanks behind it. Newlines are written as `\012` (fs/proc/task_mmu.c).
fn path(line: &[u8]) -> Vec<u8> {
    let at = line.iter().position(|b| *b == b'/').unwrap_or(line.len());
    let text = &line[at..];
    let mut path = Vec::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        if text[i..].starts_with(b"\\012") {
            path.push(b'\n');
            i += 4;
        } else {
            path.push(text[i]);
            i += 1;
        }
    }
    path
}

fn mapping(line: &[u8], devices: &[(u32, u32)]) -> Mapping {
    let Some((perms, device, _)) = fields(line) else { return Mapping::Other };
    if !perms.ends_with('s') || !devices.contains(&device) {
        return Mapping::Other;
    }
    if perms.as_bytes().get(1) == Some(&b'w') { Mapping::Writable } else { Mapping::Shared }
}

fn may_write(smaps: &[u8], devices: &[(u32, u32)], found: &mut BTreeSet<MappedFile>) {
    let mut shared: Option<&[u8]> = None;
    for line in lines(smaps) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            if let Some(of) = shared
                && flags.split(u8::is_ascii_whitespace).any(|f| f == b"mw")
            {
                found.extend(file(of));
            }
        } else if line.first().is_some_and(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
            && line.contains(&b'-')
        {
            shared = (mapping(line, devices) != Mapping::Other).then_some(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_writable_mappings_of_the_tree_are_told_from_all_others() {
        let devices = [(0, 0x2f), (0xfe, 0)];
        let line = |perms: &str, dev: &str| {
            format!(
                "7f0000000000-7f0000010000 {perms} 00000000 {dev} 1234                  /data/db\\012file 1"
            )
            .into_bytes()
        };
        assert_eq!(mapping(&line("rw-s", "00:2f"), &devices), Mapping::Writable);
        assert_eq!(mapping(&line("r--s", "fe:00"), &devices), Mapping::Shared);
        assert_eq!(mapping(&line("rw-p", "00:2f"), &devices), Mapping::Other);
        assert_eq!(mapping(&line("rw-s", "00:01"), &devices), Mapping::Other);
        assert_eq!(mapping(b"garbage", &devices), Mapping::Other);
        assert_eq!(path(&line("rw-s", "00:2f")), b"/data/db\nfile 1");
        let smaps = |flags: &str| {
            [line("r--s", "00:2f"), format!("\nSize: 4 kB\nVmFlags: rd sh mr {flags} me\n").into_bytes()]
                .concat()
        };
        let found = |flags| {
            let mut found = BTreeSet::new();
            may_write(&smaps(flags), &devices, &mut found);
            found
        };
        assert!(found("").is_empty());
        let wanted = MappedFile { path: b"/data/db\nfile 1".to_vec(), device: (0, 0x2f), ino: 1234 };
        assert_eq!(found("mw"), BTreeSet::from([wanted]));
    }
}
