//! Containers of podman, from its storage on disk: it has no daemon, and mostly no service either. CRI-O and buildah keep theirs in the same form.
//!
//! ```text
//!   GRAPH/overlay-containers/containers.json       id, names, layer, image          (containers/storage, containers.go)
//!   GRAPH/overlay-containers/ID/userdata/config.json   the OCI bundle
//!   GRAPH/overlay-images/images.json               id, digest of the manifest, names      (containers/storage, images.go)
//!   GRAPH/overlay-images/IMAGE/=..                 the image's config, by a name in base64; the image's id is its digest
//!   GRAPH/overlay/LAYER/{diff,work,lower}          `lower` names links: l/ABC:l/DEF     (drivers/overlay/overlay.go)
//!   RUN/overlay-containers/ID/userdata/pidfile     the init, written by conmon; stays there when it has ended
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Candidate, Resolver, Wanted};
use crate::container::candidate::{ImageRef, Layers, State};
use crate::container::config::{Config, ImageConfig};
use crate::container::error::Error;
use crate::container::places::Storage;
use crate::container::vantage::Vantage;
use crate::model::reference::Runtime;

/// Reads one storage.
pub(super) struct OnDisk {
    pub(super) storage: Storage,
    pub(super) vantage: Vantage,
}

/// An entry of `containers.json`.
#[derive(Deserialize)]
struct Listed {
    id: String,
    names: Option<Vec<String>>,
    /// The image's id.
    #[serde(default)]
    image: String,
    layer: String,
    /// JSON in a text.
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Metadata {
    image_name: String,
}

/// An entry of `images.json`.
#[derive(Deserialize)]
struct ListedImage {
    id: String,
    #[serde(default)]
    digest: String,
    names: Option<Vec<String>>,
}

impl OnDisk {
    fn list(&self, file: &Path) -> Result<Vec<Listed>, Error> {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(file, e)),
        };
        serde_json::from_slice(&text).map_err(|e| Error::State {
            runtime: Runtime::Podman,
            path: file.to_owned(),
            detail: e.to_string(),
        })
    }

    fn candidate(&self, told: Listed, file: &Path) -> Candidate {
        let userdata = |dir: &Path| dir.join("overlay-containers").join(&told.id).join("userdata");
        let pidfile = userdata(&self.storage.run).join("pidfile");
        let number = fs::read_to_string(&pidfile).ok().and_then(|text| text.trim().parse().ok());
        let metadata: Metadata = serde_json::from_str(&told.metadata).unwrap_or_default();
        let digest = format!("sha256:{}", told.image);
        let images = self.storage.graph.join("overlay-images");
        let at = repository_digests(&images.join("images.json"), &told.image);
        let image = ImageRef { name: metadata.image_name, digest, at };
        let config = Config::from_bundle(&userdata(&self.storage.graph));
        let of_image = image_config(&images.join(&told.image), &told.image);
        let config = match (config, of_image) {
            (Some(config), Some(of_image)) => Some(config.of_image(of_image)),
            (config, _) => config,
        };
        let layers = layers(&self.storage.graph.join("overlay"), &told.layer);
        // Without a start time: the number counts only if that process has these very layers for its root (`Target::of`).
        let init = number.and_then(|number| self.vantage.process(number));
        let candidate = Candidate::new(Runtime::Podman, told.id, file.to_owned()).with_init(init, None);
        Candidate {
            names: told.names.unwrap_or_default(),
            // The bundle is written when it is started for the first time.
            state: if config.is_some() || pidfile.exists() { candidate.state } else { State::Created },
            config,
            image: (!told.image.is_empty()).then_some(image),
            layers,
            ..candidate
        }
    }
}

/// `REPOSITORY@DIGEST` of an image by each of its names, as podman's service says it; none if it was removed.
fn repository_digests(file: &Path, id: &str) -> Vec<String> {
    let listed = || -> Option<Vec<ListedImage>> { serde_json::from_slice(&fs::read(file).ok()?).ok() };
    let found = listed().unwrap_or_default().into_iter().find(|image| image.id == id);
    let Some(ListedImage { digest, names: Some(names), .. }) = found.filter(|image| !image.digest.is_empty())
    else {
        return Vec::new();
    };
    let mut all: Vec<String> = Vec::new();
    for name in names {
        let name = name.split('@').next().unwrap_or_default();
        // A colon before the last slash is a port's.
        let tag = name.rfind(':').filter(|at| !name[*at..].contains('/')).unwrap_or(name.len());
        let at = format!("{}@{digest}", &name[..tag]);
        if !all.contains(&at) {
            all.push(at);
        }
    }
    all
}

/// The longest config of an image that is read.
const LARGEST_CONFIG: u64 = 16 << 20;

/// The config of an image; `None` if it was removed.
fn image_config(dir: &Path, id: &str) -> Option<ImageConfig> {
    let is_config = |entry: &fs::DirEntry| {
        entry.file_name().as_encoded_bytes().starts_with(b"=")
            && entry.metadata().is_ok_and(|m| m.is_file() && m.len() <= LARGEST_CONFIG)
    };
    fs::read_dir(dir).ok()?.flatten().filter(is_config).find_map(|entry| {
        let text = fs::read(entry.path()).ok()?;
        if hex::encode(Sha256::digest(&text)) == id { serde_json::from_slice(&text).ok() } else { None }
    })
}

/// The layers of a container's layer; `None` if it is not kept by the overlay driver.
fn layers(overlay: &Path, layer: &str) -> Option<Layers> {
    let dir = overlay.join(layer);
    let upper = dir.join("diff");
    let stat = fs::symlink_metadata(&upper).ok().filter(fs::Metadata::is_dir)?;
    let written = fs::read_to_string(dir.join("lower")).unwrap_or_default();
    let lowers = written.trim().split(':').filter(|text| !text.is_empty());
    Some(Layers {
        work: dir.join("work"),
        lowers: lowers.map(|link| followed(overlay, Path::new(link))).collect(),
        // Mounted without root, overlayfs may not use the other namespace (fs/overlayfs, `userxattr`).
        userxattr: fs::metadata(overlay).unwrap_or(stat).uid() != 0,
        upper,
    })
}

/// `l/ABC` is a link to `../LAYER/diff`. It is followed by hand: a path through `/proc/PID/root` must stay one.
fn followed(overlay: &Path, link: &Path) -> PathBuf {
    let path = overlay.join(link);
    match fs::read_link(&path) {
        Ok(target) if target.starts_with("..") => overlay.join(target.strip_prefix("..").unwrap_or(&target)),
        _ => path,
    }
}

impl Resolver for OnDisk {
    fn runtime(&self) -> Runtime {
        Runtime::Podman
    }

    fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, Error> {
        let lasting = self.storage.graph.join("overlay-containers/containers.json");
        let volatile = self.storage.run.join("overlay-containers/volatile-containers.json");
        let mut found = Vec::new();
        for file in [lasting, volatile] {
            for told in self.list(&file)? {
                let names = told.names.clone().unwrap_or_default();
                if let Some(exact) = wanted.fits(&told.id, &names) {
                    found.push(Candidate { exact, ..self.candidate(told, &file) });
                }
            }
        }
        Ok(found)
    }

    fn places(&self) -> Vec<String> {
        vec![self.storage.graph.display().to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What podman 4.3 has written, with directories made for one of its containers.
    fn storage(dir: &Path) -> (OnDisk, Vec<Listed>) {
        let storage = Storage { graph: dir.join("graph"), run: dir.join("run") };
        let containers = storage.graph.join("overlay-containers");
        fs::create_dir_all(&containers).unwrap();
        let recorded = include_str!("recorded/podman-containers.json");
        fs::write(containers.join("containers.json"), recorded).unwrap();
        (OnDisk { storage, vantage: Vantage::of(None) }, serde_json::from_str(recorded).unwrap())
    }

    #[test]
    fn what_podman_keeps_of_a_container() {
        let dir = tempfile::tempdir().unwrap();
        let (podman, listed) = storage(dir.path());
        let web = &listed[0];
        let overlay = podman.storage.graph.join("overlay");
        for part in [&format!("{}/diff", web.layer), "base/diff", "l"] {
            fs::create_dir_all(overlay.join(part)).unwrap();
        }
        std::os::unix::fs::symlink("../base/diff", overlay.join("l/ABC")).unwrap();
        fs::write(overlay.join(&web.layer).join("lower"), "l/ABC\n").unwrap();
        let userdata = podman.storage.run.join("overlay-containers").join(&web.id).join("userdata");
        fs::create_dir_all(&userdata).unwrap();
        fs::write(userdata.join("pidfile"), std::process::id().to_string()).unwrap();

        let found = podman.find(Wanted::Named("web")).unwrap();
        let [found] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((found.id.as_str(), found.exact, found.state), (web.id.as_str(), true, State::Running));
        assert_eq!(found.image.as_ref().unwrap().name, "localhost/busy:1");
        let layers = found.layers.as_ref().unwrap();
        assert_eq!(layers.lowers, [overlay.join("base/diff")]);
        assert_eq!(layers.upper, overlay.join(&web.layer).join("diff"));
        // The process with that number, this test, has another root: the container does not run.
        let target = crate::container::Target::of("web", found);
        assert!(target.is_err(), "{target:?}");
        // By the beginning of its id, and those that never ran.
        assert_eq!(podman.find(Wanted::Named(&web.id[..5])).unwrap().len(), 1);
        let all = podman.find(Wanted::All).unwrap();
        assert_eq!(all.len(), listed.len());
        assert!(all.iter().any(|c| c.shown() == "made" && c.state == State::Created && c.layers.is_none()));
    }

    #[test]
    fn an_image_is_known_by_its_repositories() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images.json");
        assert!(repository_digests(&file, "ab").is_empty());
        // As podman 4.3 writes it, shortened.
        let text = r#"[{"id":"00","digest":"sha256:0"},
            {"id":"ab","digest":"sha256:1","names":["localhost:5000/a/b:1","localhost:5000/a/b:2","localhost:5000/c","docker.io/library/d@sha256:1"]},
            {"id":"cd","names":["x:1"]}]"#;
        fs::write(&file, text).unwrap();
        let all = repository_digests(&file, "ab");
        assert_eq!(
            all,
            ["localhost:5000/a/b@sha256:1", "localhost:5000/c@sha256:1", "docker.io/library/d@sha256:1"]
        );
        assert!(repository_digests(&file, "00").is_empty() && repository_digests(&file, "cd").is_empty());
    }

    #[test]
    fn an_images_config_is_the_file_whose_digest_is_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"architecture":"arm64","os":"linux","config":{"StopSignal":"SIGINT"}}"#;
        let id = hex::encode(Sha256::digest(text));
        assert!(image_config(&dir.path().join("gone"), &id).is_none());
        for (name, content) in [("manifest", "{}"), ("=bWFuaWZlc3Q", "{}"), ("=c2hhMjU2", text)] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let config = Config::default().of_image(image_config(dir.path(), &id).unwrap());
        assert_eq!((config.stop_signal.as_str(), config.platform.architecture.as_str()), ("SIGINT", "arm64"));
        assert!(image_config(dir.path(), &hex::encode(Sha256::digest("other"))).is_none());
    }

    #[test]
    fn no_storage_is_no_error_and_a_broken_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let (podman, _) = storage(dir.path());
        fs::write(podman.storage.graph.join("overlay-containers/containers.json"), "[{").unwrap();
        assert!(matches!(podman.find(Wanted::All), Err(Error::State { .. })));
        fs::remove_dir_all(&podman.storage.graph).unwrap();
        assert_eq!(podman.find(Wanted::All).unwrap(), []);
    }
}
