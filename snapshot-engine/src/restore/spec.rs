//! What an OCI runtime is told (runtime-spec, config.md), made of what the image says (image-spec, config.md, "conversion"). Pure, but for the two files of
//! users and groups that come as text.

use serde_json::{Value, json};

use super::RestoreError;

/// What is wanted of a container, beside its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// What to run instead of what the image says; empty for that.
    pub command: &'a [String],
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Whether it has the host's network, or none.
    pub host_network: bool,
    /// Its name.
    pub name: &'a str,
    /// `/etc/passwd` of the image.
    pub passwd: &'a str,
    /// `/etc/group` of the image.
    pub group: &'a str,
}

/// What docker gives a container that is not asked for more (moby, oci/caps/defaults.go).
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const HIDDEN: [&str; 7] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/sys/firmware",
];

const UNCHANGED: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The runtime's configuration for an image's.
///
/// # Errors
/// When nothing says what to run, or the image has no such user.
pub fn spec(image: &Value, wanted: &Wanted<'_>) -> Result<Value, RestoreError> {
    let run = &image["config"];
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|w| w.as_str().map(str::to_owned)).collect()
    };
    let args = match wanted.command {
        [] => [words(&run["Entrypoint"]), words(&run["Cmd"])].concat(),
        command => command.to_vec(),
    };
    if args.is_empty() {
        return Err(RestoreError::NoCommand);
    }
    let mut env = words(&run["Env"]);
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    if wanted.terminal && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    let cwd = run["WorkingDir"].as_str().filter(|dir| dir.starts_with('/')).unwrap_or("/");
    let (uid, gid) = user(run["User"].as_str().unwrap_or_default(), wanted)?;
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    if !wanted.host_network {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({ "type": kind })).collect();
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let none = ["nosuid", "noexec", "nodev"];
    let process = json!({
        "terminal": wanted.terminal,
        "user": {"uid": uid, "gid": gid},
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
    });
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": false},
        "hostname": wanted.name,
        "mounts": [
            mount("/proc", "proc", &none),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &none),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{}", wanted.name),
            "namespaces": namespaces,
            "maskedPaths": HIDDEN,
            "readonlyPaths": UNCHANGED,
        },
    }))
}

/// Numbers of `user[:group]`, either of which may be a name.
fn user(text: &str, wanted: &Wanted<'_>) -> Result<(u32, u32), RestoreError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    // Name, password, number, and of a user the number of its group.
    let row = |file: &str, key: &str| -> Option<(u32, u32)> {
        let number = key.parse::<u32>().ok();
        file.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, id) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
            let main = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
            (name == key || number == Some(id)).then_some((id, main))
        })
    };
    let unknown = |name: &str| RestoreError::NoUser { name: name.to_owned() };
    let (uid, main) = match user {
        "" => (0, 0),
        user => match (row(wanted.passwd, user), user.parse()) {
            (Some(found), _) => found,
            (None, Ok(number)) => (number, 0),
            (None, Err(_)) => return Err(unknown(user)),
        },
    };
    let gid = match group.filter(|group| !group.is_empty()) {
        None => main,
        Some(group) => match (row(wanted.group, group), group.parse()) {
            (Some((found, _)), _) => found,
            (None, Ok(number)) => number,
            (None, Err(_)) => return Err(unknown(group)),
        },
    };
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(command: &[String]) -> Wanted<'_> {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
        Wanted { command, terminal: false, host_network: false, name: "r1", passwd, group: "staff:x:50:\n" }
    }

    #[test]
    fn what_the_image_says_is_what_is_run() {
        let image = json!({"config": {"Entrypoint": ["/init"], "Cmd": ["a", "b"], "Env": ["X=1"], "WorkingDir": "/srv", "User": "web:staff"}});
        let made = spec(&image, &wanted(&[])).unwrap();
        assert_eq!(made["process"]["args"], json!(["/init", "a", "b"]));
        assert_eq!(made["process"]["user"], json!({"uid": 33, "gid": 50}));
        assert_eq!((made["process"]["cwd"].as_str(), made["hostname"].as_str()), (Some("/srv"), Some("r1")));
        assert!(
            made["process"]["env"]
                .as_array()
                .unwrap()
                .iter()
                .any(|e| e.as_str().unwrap().starts_with("PATH="))
        );
        let other = [String::from("/bin/true")];
        assert_eq!(spec(&image, &wanted(&other)).unwrap()["process"]["args"], json!(["/bin/true"]));
        let host = Wanted { host_network: true, ..wanted(&other) };
        let without = |made: &Value| made["linux"]["namespaces"].as_array().unwrap().len();
        assert_eq!(without(&made), without(&spec(&image, &host).unwrap()) + 1);
    }

    #[test]
    fn users_by_name_and_number() {
        let all = wanted(&[]);
        for (text, ids) in [
            ("", (0, 0)),
            ("web", (33, 34)),
            ("33", (33, 34)),
            ("1000", (1000, 0)),
            ("web:7", (33, 7)),
            ("0:staff", (0, 50)),
        ] {
            assert_eq!(user(text, &all).unwrap(), ids, "{text}");
        }
        assert!(matches!(user("nobody", &all), Err(RestoreError::NoUser { .. })));
        assert!(matches!(spec(&json!({}), &all), Err(RestoreError::NoCommand)));
    }
}
