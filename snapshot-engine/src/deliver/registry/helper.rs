//! Credential helpers: programs that keep passwords, asked as docker asks them (docker-credential-helpers, `credentials.Serve`).
//!
//! ```text
//!   docker-credential-NAME get   stdin: the registry   stdout: {"ServerURL", "Username", "Secret"}
//! ```

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::credentials::Found;
use crate::deliver::DeliverError;
use crate::deliver::error::said;
use crate::model::access::Login;

/// A helper may ask another machine, but nobody sits before it.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a helper; `None` if it knows no credentials.
pub(super) fn ask(name: &str, registry: &str) -> Result<Option<Found>, DeliverError> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| DeliverError::Credentials {
        registry: registry.to_owned(),
        place: program.clone(),
        why,
    };
    // It is looked for in the PATH: a name with a slash would be one of a file.
    if name.is_empty() || name.contains('/') {
        return Err(failed("that is not the name of a helper".to_owned()));
    }
    let mut helper = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = helper.stdin.take() {
        // One that does not read what it is asked may answer all the same.
        let _ = stdin.write_all(registry.as_bytes());
    }
    let text = output(&mut helper);
    let ended = helper.kill().and_then(|()| helper.wait());
    let Some((text, true)) = text else {
        return Err(failed(format!("it did not answer within {} s", PATIENCE.as_secs())));
    };
    match serde_json::from_str::<Answer>(&text) {
        Ok(Answer { username, secret }) if username == "<token>" => Ok(Some(Found::Identity(secret))),
        Ok(Answer { username, secret }) => Ok(Some(Found::Login(Login { username, password: secret }))),
        // The one message that is part of the protocol (credentials.errCredentialsNotFoundMessage).
        Err(_) if text.contains("credentials not found") => Ok(None),
        // What it said may hold half a secret if it was meant as an answer.
        Err(_) if text.trim_start().starts_with('{') => {
            Err(failed("its answer is not understood".to_owned()))
        }
        Err(_) => Err(failed(format!(
            "{}, {}",
            ended.map_or_else(|e| e.to_string(), |s| s.to_string()),
            said(&text)
        ))),
    }
}

/// What it says until it closes its output, and whether it did in time.
fn output(helper: &mut Child) -> Option<(String, bool)> {
    let stdout = helper.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.take(1 << 20).read_to_string(&mut text);
        let _ = sender.send(text);
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(text) => Some((text, true)),
        Err(_) => Some((String::new(), false)),
    }
}
