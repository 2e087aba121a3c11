//! Stages that only pretend, for the tests of everything around them.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::progress::{Progress, Stage};
use super::{CutRequest, Error, Stages};
use crate::deliver::DeliverError;
use crate::model::access::Delivery;
use crate::model::fault::Class;
use crate::model::format::ImageFormat;
use crate::model::ids::Ids;
use crate::model::nanos::Nanos;
use crate::model::snapshot::{Backend, Cut, Gate, ImageReport, Pause, StageTime, TargetFacts};
use crate::store::Record;

/// What a fake image stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Succeed,
    Fail,
    Interrupt,
    /// Layers that the image refers to have gone.
    LayersGone,
    Take(Duration),
}

#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) cuts: AtomicU32,
    pub(crate) images: AtomicU32,
    pub(crate) cut: Then,
    pub(crate) image: Mutex<Then>,
    pub(crate) deliveries: AtomicU32,
    pub(crate) deliver: Mutex<Then>,
}

impl Fake {
    pub(crate) fn new(cut: Then, image: Then) -> Fake {
        Fake {
            cuts: AtomicU32::new(0),
            images: AtomicU32::new(0),
            cut,
            image: Mutex::new(image),
            deliveries: AtomicU32::new(0),
            deliver: Mutex::new(Then::Succeed),
        }
    }
}

pub(crate) fn sample_cut(frozen: &Path) -> Cut {
    Cut {
        old_upper_dir: frozen.to_owned(),
        new_upper_dir: "/upper".into(),
        pause: Pause {
            gate: Gate::Fence,
            attempts: 1,
            window: Nanos(6_400),
            longest_stop: Nanos(6_100),
            rounds: 3,
            residual_inodes: 4,
            residual_bytes: 8192,
            voided: 0,
            tracker_misses: 0,
        },
        tracker: Some(Backend::Tracepoints),
        target: TargetFacts {
            container: "web".into(),
            init_pid: 4711,
            lowers: vec!["/lower/b".into(), "/lower/a".into()],
            userxattr: false,
            image: None,
            image_digest: None,
            image_at: Vec::new(),
            image_store: None,
            config: None,
            ids: Ids::default(),
            nydus: false,
        },
        timings: vec![StageTime { stage: Stage::Window.key().into(), ns: Nanos(9_000) }],
    }
}

pub(crate) fn sample_image() -> ImageReport {
    ImageReport {
        manifest: "sha256:00".into(),
        format: ImageFormat::Nydus,
        bootstrap: Some("/layout/blobs/sha256/01".into()),
        blobs: vec!["/layout/blobs/sha256/02".into()],
        layers_at: None,
        entries: 7,
        chunks: 5,
        taken_over_bytes: 0,
        sockets_left_out: 0,
        content_bytes: 9000,
        stored_bytes: 4000,
        timings: vec![],
    }
}

fn act(then: Then, stage: Stage) -> Result<(), Error> {
    match then {
        Then::Succeed => Ok(()),
        Then::Fail => Err(Error::stage(stage, Class::NoContainer, None, "it is gone")),
        Then::Interrupt => Err(Error::Interrupted { signal: 2 }),
        Then::LayersGone => Err(Error::LayersGone {
            source: DeliverError::Gone {
                registry: "localhost:5000".into(),
                repository: "base/os".into(),
                digest: "sha256:02".into(),
            },
        }),
        Then::Take(time) => {
            std::thread::sleep(time);
            Ok(())
        }
    }
}

impl Stages for Fake {
    fn cut(&self, request: &CutRequest, progress: &dyn Progress) -> Result<Cut, Error> {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        progress.report(Stage::PreCopy, 1, 2);
        fs::create_dir(request.directory.join("shadow")).expect("the request's directory is empty and ours");
        fs::write(request.directory.join("shadow/file"), "x").expect("the directory was just made");
        act(self.cut, Stage::Resolve)?;
        fs::rename(request.directory.join("shadow"), request.frozen()).expect("nothing is there yet");
        Ok(sample_cut(&request.frozen()))
    }

    fn image(&self, record: &Record, progress: &dyn Progress) -> Result<ImageReport, Error> {
        self.images.fetch_add(1, Ordering::SeqCst);
        progress.report(Stage::Chunk, 1, 2);
        let then = *self.image.lock().expect("nobody panics with this lock");
        act(then, Stage::Chunk)?;
        let (dir, _) = super::deliver::layout(record);
        if !record.target.is_layout() {
            fs::create_dir_all(&dir).expect("the snapshot's directory is ours");
            fs::write(dir.join("index.json"), "{}").expect("the layout was just made");
        }
        Ok(sample_image())
    }

    fn deliver(&self, _: &Record, progress: &dyn Progress) -> Result<Delivery, Error> {
        self.deliveries.fetch_add(1, Ordering::SeqCst);
        progress.report(Stage::Deliver, 1, 2);
        let then = *self.deliver.lock().expect("nobody panics with this lock");
        act(then, Stage::Deliver)?;
        Ok(Delivery { digest: "sha256:00".into(), sent: 3, ..Delivery::default() })
    }
}
