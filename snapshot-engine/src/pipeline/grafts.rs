//! What `--with-path` adds to the upperdir: found by `container`, copied by `capture`.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::engine::not_found;
use crate::capture::{Graft, Grafts};
use crate::container::added::Why;
use crate::container::{self, Stopped, Target};
use crate::model::options::CommitOptions;
use crate::model::overlay::Namespaces;

/// Opens what is to be added to a running container's upperdir. Nobody is touched.
///
/// # Errors
/// When something of it cannot be captured at the same instant.
pub(super) fn grafts(target: &Target, options: &CommitOptions) -> Result<Grafts, Error> {
    let added = container::added(target, &options.with_paths).map_err(not_found)?;
    let list = added
        .into_iter()
        .map(|added| Graft {
            at: added.path.strip_prefix("/").map_or_else(|_| PathBuf::new(), PathBuf::from),
            root: Arc::new(added.root),
            above: added.above,
        })
        .collect();
    let namespaces = if target.overlay.userxattr { Namespaces::User } else { Namespaces::Trusted };
    Ok(Grafts { list, namespaces })
}

/// A container that does not run has no mounts.
///
/// # Errors
/// When something is to be added to it.
pub(super) fn none_of_stopped(target: &Stopped, options: &CommitOptions) -> Result<(), Error> {
    let Some(path) = options.with_paths.first() else { return Ok(()) };
    let why = Why::Stopped { reference: target.reference.clone() };
    Err(not_found(container::Error::Added { path: path.clone(), why }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Candidate, Layers};
    use crate::model::fault::{Class, Fault as _};
    use crate::model::reference::Runtime;

    #[test]
    fn what_does_not_run_has_no_volumes() {
        let upper = tempfile::tempdir().unwrap();
        let layers = Layers { upper: upper.path().into(), ..Layers::default() };
        let candidate = Candidate::new(Runtime::Docker, "x".into(), "/run/x".into());
        let stopped = Stopped::of("x", Candidate { layers: Some(layers), ..candidate }).unwrap();
        none_of_stopped(&stopped, &CommitOptions::default()).unwrap();
        let options = CommitOptions::default().with_paths(vec!["/srv/db".into()]);
        let error = none_of_stopped(&stopped, &options).unwrap_err();
        assert_eq!(error.class(), Class::Arguments);
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(
            text.contains("/srv/db") && text.contains("does not run") && text.contains("start it"),
            "{text}"
        );
    }
}
