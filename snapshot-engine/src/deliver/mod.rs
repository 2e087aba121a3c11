//! An image leaves its layout for where it was meant to go.
//!
//! ```text
//!   a layout and a tag ─ content ─┬─ registry/     HTTP, resumable                   [docker://]REGISTRY/REPOSITORY:TAG
//!                                 ├─ archive       one tar file                      oci-archive:FILE
//!                                 ├─ folder        a directory as skopeo's           dir:DIR
//!                                 ├─ docker        a tar file into the API's socket  docker-daemon:NAME:TAG
//!                                 └─ containerd/   content and image services        containerd:NAMESPACE/NAME:TAG
//!
//!   the image that a container was started from ◄─ origin ◄─ registry/pull, containerd/content
//! ```
//!
//! The work is done on a thread of its own, and the calling one tells how far it is and whether it shall stop. What needs asynchronous crates has a tokio
//! runtime on that thread alone, which is gone when [`deliver`] returns. Nothing here changes the layout: a delivery that failed can be made again.

mod archive;
mod containerd;
mod content;
mod docker;
mod error;
mod folder;
mod meter;
mod origin;
mod registry;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::DeliverError;
pub use origin::{Question, find as find_origin};
pub use registry::check as check_access;

use crate::model::access::{Access, Delivery, Login};
use crate::model::progress::Progress;
use crate::model::target::ImageTarget;
use content::Content;
use meter::Meter;

/// What is to be delivered where.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The layout's directory.
    pub layout: &'a Path,
    /// The image's name in it.
    pub tag: &'a str,
    /// Where it goes.
    pub target: &'a ImageTarget,
    /// How that is reached.
    pub access: &'a Access,
    /// Who we are there; `None` to look into the configuration of docker and podman.
    pub login: Option<&'a Login>,
    /// What may be done with a file or directory that is there already.
    pub replace: Replace,
    /// Names of images at the same registry that may have some of the blobs, such as the container's own. The registry is asked to take them from there.
    pub near: &'a [String],
    /// The repository of the same registry (`REGISTRY/REPOSITORY`) that has the layers of which the layout has no bytes; `None` if it has all.
    pub origin: Option<&'a str>,
    /// A file of our own, which need not exist, that remembers uploads that have not ended.
    pub journal: PathBuf,
}

/// What may be done with a file or directory that is there already. Names in registries and runtimes are moved in any case, as by every push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Nothing: it is refused.
    No,
    /// An earlier try may have written it: the very same content is success, anything else refused.
    Same,
    /// It may be replaced.
    Yes,
}

/// Delivers an image.
///
/// # Errors
/// Files and directories are then as they were before. A registry may have some of the blobs, and is not asked for them again the next time.
pub fn deliver(request: &Request<'_>, progress: &dyn Progress) -> Result<Delivery, DeliverError> {
    let to_registry = matches!(request.target, ImageTarget::Registry { .. });
    let content = Content::read(request.layout, request.tag, to_registry && request.origin.is_some())?;
    progress.total(content.total());
    let meter = Meter::default();
    watched(&meter, progress, || send(&content, request, &meter))
}

/// Does the work on a thread of its own, while this one tells how far it is and whether it shall stop.
fn watched<T: Send>(meter: &Meter, progress: &dyn Progress, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut told = 0;
        let mut tell = || {
            // What has to be sent again is told once.
            let done = meter.done().max(told);
            progress.advance(done - told);
            told = done;
        };
        while !work.is_finished() {
            tell();
            if progress.stopped() {
                meter.stop();
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        tell();
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn send(content: &Content, request: &Request<'_>, meter: &Meter) -> Result<Delivery, DeliverError> {
    match request.target {
        ImageTarget::OciLayout { .. } => Ok(Delivery::default()),
        ImageTarget::Registry { registry, repository, tag } => {
            registry::push(content, request, [registry, repository, tag], meter)
        }
        ImageTarget::OciArchive { file, tag } => {
            archive::write(content, file, tag.as_deref(), request.replace, meter)
        }
        ImageTarget::Dir { dir } => folder::write(content, dir, request.replace, meter),
        ImageTarget::DockerDaemon { name } => docker::load(content, name, request.access, meter),
        ImageTarget::Containerd { namespace, name } => {
            containerd::import(content, namespace, name, request.access, meter)
        }
    }
}

/// Whether a target could take an image, as far as that can be known without asking anybody: to be asked before the work is done.
///
/// # Errors
/// What [`deliver`] would say.
pub fn check(
    target: &ImageTarget,
    access: &Access,
    replace: Replace,
    nydus: bool,
) -> Result<(), DeliverError> {
    match target {
        ImageTarget::Registry { .. } => registry::check(access),
        ImageTarget::OciArchive { file, .. } => {
            let there = file.symlink_metadata().is_ok();
            if there && replace == Replace::No {
                return Err(DeliverError::Exists { path: file.clone() });
            }
            Ok(())
        }
        ImageTarget::Dir { dir } => folder::check(dir, replace),
        ImageTarget::DockerDaemon { .. } if nydus => {
            Err(DeliverError::NydusForDocker { target: target.to_string() })
        }
        ImageTarget::OciLayout { .. } | ImageTarget::DockerDaemon { .. } | ImageTarget::Containerd { .. } => {
            Ok(())
        }
    }
}

/// Runs what is asynchronous to its end on this thread. When somebody wants it to stop, it has [`GRACE`] to end what it is about.
fn run<T>(meter: &Meter, work: impl Future<Output = Result<T, DeliverError>>) -> Result<T, DeliverError> {
    let local = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = local.map_err(DeliverError::io("start a runtime for", "/proc/self"))?;
    let done = local.block_on(async {
        tokio::select! {
            done = work => done,
            () = meter.overdue(GRACE) => Err(DeliverError::Stopped),
        }
    });
    // A name that is still being looked up has a thread that nobody waits for.
    local.shutdown_background();
    done
}

/// Long enough for one chunk on its way: a registry keeps what has arrived whole, and `resume` goes on from there.
const GRACE: Duration = Duration::from_secs(3);
