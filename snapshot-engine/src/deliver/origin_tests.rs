use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::model::access::Access;
use crate::model::progress::Quiet;

/// Documents in memory.
#[derive(Default)]
struct Shelf(HashMap<String, Vec<u8>>);

impl Shelf {
    fn put(&mut self, document: &Value) -> String {
        let bytes = document.to_string().into_bytes();
        let name = digest(&bytes);
        self.0.insert(name.clone(), bytes);
        name
    }
}

impl Library for Shelf {
    async fn manifest(&mut self, name: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        Ok(self.0.get(name).cloned())
    }

    async fn config(&mut self, digest: &str) -> Result<Option<Vec<u8>>, DeliverError> {
        self.manifest(digest).await
    }
}

fn platform(architecture: &str, variant: &str) -> Platform {
    Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
}

fn found(shelf: &mut Shelf, name: &str, wanted: &str, platform: Platform) -> Option<Found> {
    let target: ImageTarget = "oci:/x:1".parse().unwrap();
    let access = Access::default();
    let question = Question {
        digest: wanted,
        platform,
        names: &[],
        target: &target,
        access: &access,
        login: None,
        store: None,
        name: "",
        blobs: Path::new("/none"),
    };
    let local = tokio::runtime::Builder::new_current_thread().build().unwrap();
    local.block_on(follow(shelf, name, &question)).unwrap()
}

#[test]
fn of_an_index_the_containers_platform_is_taken_and_never_a_guess() {
    let mut shelf = Shelf::default();
    let mut listed = Vec::new();
    let mut configs = Vec::new();
    for (architecture, variant) in [("amd64", ""), ("arm", "v6"), ("arm", "v7")] {
        let config = shelf.put(&json!({"architecture": architecture, "variant": variant}));
        let layer = json!({"digest": digest(variant.as_bytes()), "size": 3});
        let manifest = shelf.put(&json!({"config": {"digest": config}, "layers": [layer]}));
        listed.push(json!({"digest": manifest, "platform": platform(architecture, variant)}));
        configs.push((config, manifest));
    }
    let index = shelf.put(&json!({ "manifests": listed }));
    let mut of = |wanted: &str, own: Platform| found(&mut shelf, &index, wanted, own);
    let v7 = of(&index, platform("arm", "v7")).unwrap();
    assert_eq!(digest(&v7.config), configs[2].0);
    assert_eq!(v7.layers, [(digest(b"v7"), 3)]);
    // By the index alone it may be either.
    assert_eq!(of(&index, platform("arm", "")), None);
    assert_eq!(of(&index, platform("riscv64", "")), None);
    for (config, manifest) in &configs[1..] {
        for wanted in [config, manifest] {
            assert_eq!(digest(&of(wanted, platform("arm", "")).unwrap().config), *config);
        }
    }
    assert_eq!(of(&configs[0].0, platform("arm", "")), None);
}

#[test]
fn what_nobody_knows_is_no_failure() {
    let target: ImageTarget = "oci:/x:1".parse().unwrap();
    let store = ImageStore { address: "/nonexistent/containerd.sock".into(), namespace: "default".into() };
    let access = Access::default();
    let question = Question {
        digest: "sha256:1",
        platform: Platform::default(),
        names: &[],
        target: &target,
        access: &access,
        login: None,
        store: Some(&store),
        name: "localhost/x:1",
        blobs: Path::new("/none"),
    };
    assert_eq!(find(&question, &Quiet).unwrap(), None);
    // Nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target: ImageTarget = format!("{listener}/x:1").parse().unwrap();
    let names = [format!("{listener}/base:1")];
    let access = Access { timeout: crate::model::nanos::Nanos(300_000_000), ..Access::default() };
    let question = Question { target: &target, names: &names, access: &access, ..question };
    assert_eq!(find(&question, &Quiet).unwrap(), None);
}
