//! A registry that demands a certificate of whoever comes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snapshot_tests::registry::{Registry, Security};
use snapshot_tests::root_or_skip;

use super::support::{Lab, must_be_whole};

#[test]
fn who_shows_no_certificate_or_a_wrong_one_is_told_and_pushes_with_the_right_one() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::new("push-mutual", 2 << 20)?;
    let registry = Registry::start(Security::Mutual)?;
    let stranger = Registry::start(Security::Mutual)?;
    let target = format!("{}/team/web:1", registry.host());
    let text = |path: &Path| path.display().to_string();
    let authority = text(&registry.authority());
    let [certificate, key] = registry.client().map(|path| text(&path));
    let [strange, strange_key] = stranger.client().map(|path| text(&path));

    // Nothing is done where the files already say that it will not work.
    let words = ["--wait", "--tls-ca", &authority, "--tls-cert", &certificate];
    lab.commit(&target, &words)?.must_fail(2, &["cannot be used for TLS", "--tls-key"])?;
    lab.commit(&target, &["--wait", "--tls-key", &key])?.must_fail(2, &["--tls-cert"])?;
    ensure!(
        !Path::new(&lab.work()).join("snapshot-engine/snapshots").read_dir().is_ok_and(|d| d.count() > 0)
    );

    // Whom it trusts is said, who we are is not.
    lab.commit(&target, &["--wait", "--tls-ca", &authority])?
        .must_fail(5, &["wants a certificate", "--tls-cert", "--tls-key", "resume"])?;
    let failed = lab.only()?;
    ensure!(failed["state"] == "failed" && failed["failure"]["class"] == "network", "{failed:#}");
    let id = failed["snapshot_id"].as_str().context("no id")?.to_owned();
    // By another authority.
    let wrong = ["--tls-cert", &strange, "--tls-key", &strange_key];
    lab.run(&["resume", &id, "--wait"], &wrong)?
        .must_fail(5, &["does not take our certificate", "--tls-cert", "resume"])?;
    // The key of another certificate.
    let mixed = ["--tls-cert", &certificate, "--tls-key", &strange_key];
    lab.run(&["resume", &id, "--wait"], &mixed)?
        .must_fail(2, &[&format!("`{strange_key}` cannot be used for TLS"), "its own key"])?;
    ensure!(lab.only()?["state"] == "failed");

    let right = ["--tls-cert", &certificate, "--tls-key", &key];
    let done = lab.run(&["resume", &id, "--wait"], &right)?.must_succeed()?.json()?;
    let built = done["timings"].as_array().into_iter().flatten().filter(|t| t["stage"] == "chunk").count();
    ensure!(built == 1, "the image was built again: {done:#}");
    must_be_whole(&lab, &registry, "team/web:1", &done["delivery"]["digest"])?;

    // Both in one file, and of an OCI image; whom it trusts is not asked.
    let both = lab.path("both.pem");
    fs::write(&both, [fs::read(&certificate)?, fs::read(&key)?].concat())?;
    let words = ["--wait", "--format", "oci", "--target-insecure", "--tls-cert", &text(&both)];
    let target = format!("{}/team/plain:1", registry.host());
    let done = lab.commit(&target, &words)?.must_succeed()?.json()?;
    must_be_whole(&lab, &registry, "team/plain:1", &done["delivery"]["digest"])?;
    lab.end()
}
