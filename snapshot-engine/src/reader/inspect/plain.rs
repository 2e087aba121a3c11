//! What an image of plain layers is made of.

use serde::Serialize;
use serde_json::Value;

use crate::rafs::read::Counts;
use crate::reader::{Layer, Opened, Problem};

/// Such an image as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plain {
    /// `oci`.
    pub kind: &'static str,
    /// Its tag in the OCI layout.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub manifest: Option<String>,
    /// What it is for: `linux/amd64`.
    pub platform: String,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// How a container of it is run: `config` of the image's config.
    pub config: Value,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// Bytes of their files.
    pub layer_bytes: u64,
    /// Bytes of their tars.
    pub tar_bytes: u64,
    /// What the tree of all layers holds.
    pub counts: Counts,
    /// What is wrong with it: everything was read.
    pub problems: Vec<Problem>,
}

pub(super) fn summary(opened: &Opened, layers: &[Layer]) -> Plain {
    let layout = opened.layout.as_ref();
    let config = layout.map_or(&Value::Null, |layout| &layout.config);
    let word = |key: &str| config[key].as_str().unwrap_or("?");
    Plain {
        kind: "oci",
        tag: layout.and_then(|layout| layout.tag.clone()),
        manifest: layout.map(|layout| layout.manifest.clone()),
        platform: format!("{}/{}", word("os"), word("architecture")),
        created: config["created"].as_str().map(str::to_owned),
        config: config["config"].clone(),
        layers: layers.to_vec(),
        layer_bytes: layers.iter().map(|layer| layer.bytes).sum(),
        tar_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
        counts: Counts::of(&opened.image.tree),
        problems: opened.problems.clone(),
    }
}
