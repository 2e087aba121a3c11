//! Who can store into the tree without a system call: shared writable mappings (T4), and io_uring rings.

use std::io;
use std::path::Path;

/// Whether any of these processes maps a file of one of these devices (major, minor) shared and could write to it.
///
/// # Errors
/// When `/proc` cannot be read, other than because a process is gone.
pub fn writable_mapping(pids: &[u32], devices: &[(u32, u32)]) -> io::Result<Option<u32>> {
    for &pid in pids {
        let Some(maps) = read(&format!("/proc/{pid}/maps"))? else { continue };
        let mut doubtful = false;
        for line in maps.lines() {
            match mapping(line, devices) {
                Mapping::Writable => return Ok(Some(pid)),
                Mapping::Shared => doubtful = true,
                Mapping::Other => {}
            }
        }
        // Shared and read-only now: harmless if the file was opened for reading (the C library maps its caches so), a store in waiting
        // otherwise (mprotect). VmFlags tell: `mw` is "may write".
        if doubtful && read(&format!("/proc/{pid}/smaps"))?.is_some_and(|smaps| may_write(&smaps, devices)) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Whether any of these processes holds an io_uring.
#[must_use]
pub fn uses_uring(pids: &[u32]) -> bool {
    pids.iter().any(|pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
            fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("anon_inode:[io_uring]")))
        })
    })
}

fn read(path: &str) -> io::Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Mapping {
    Writable,
    Shared,
    Other,
}

/// A line of `/proc/PID/maps`: `address perms offset major:minor inode path`.
fn mapping(line: &str, devices: &[(u32, u32)]) -> Mapping {
    let mut fields = line.split_ascii_whitespace();
    let (Some(_), Some(perms), Some(_), Some(device), Some(_)) = (fields.next(), fields.next(), fields.next(), fields.next(), fields.next()) else {
        return Mapping::Other;
    };
    let parsed = device.split_once(':').and_then(|(a, b)| Some((u32::from_str_radix(a, 16).ok()?, u32::from_str_radix(b, 16).ok()?)));
    if !perms.ends_with('s') || !parsed.is_some_and(|d| devices.contains(&d)) {
        return Mapping::Other;
    }
    if perms.as_bytes().get(1) == Some(&b'w') { Mapping::Writable } else { Mapping::Shared }
}

fn may_write(smaps: &str, devices: &[(u32, u32)]) -> bool {
    let mut shared = false;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if shared && flags.split_ascii_whitespace().any(|f| f == "mw") {
                return true;
            }
        } else if line.as_bytes().first().is_some_and(u8::is_ascii_hexdigit) && line.contains('-') {
            shared = mapping(line, devices) != Mapping::Other;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_writable_mappings_of_the_tree_are_told_from_all_others() {
        let devices = [(0, 0x2f), (0xfe, 0)];
        let line = |perms: &str, dev: &str| format!("7f00-7f10 {perms} 00000000 {dev} 1234    /data/db file");
        assert_eq!(mapping(&line("rw-s", "00:2f"), &devices), Mapping::Writable);
        assert_eq!(mapping(&line("r--s", "fe:00"), &devices), Mapping::Shared);
        assert_eq!(mapping(&line("rw-p", "00:2f"), &devices), Mapping::Other);
        assert_eq!(mapping(&line("rw-s", "00:01"), &devices), Mapping::Other);
        assert_eq!(mapping("garbage", &devices), Mapping::Other);
        let smaps = |flags: &str| format!("{}\nSize: 4 kB\nVmFlags: rd sh mr {flags} me\n", line("r--s", "00:2f"));
        assert!(may_write(&smaps("mw"), &devices));
        assert!(!may_write(&smaps(""), &devices));
    }
}
