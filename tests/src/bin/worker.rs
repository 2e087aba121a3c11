//! Runs inside the containers of the integration tests.

fn main() -> anyhow::Result<()> {
    snapshot_tests::worker::serve()
}
