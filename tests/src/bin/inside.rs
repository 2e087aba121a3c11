//! Runs the host's programs inside the containers of the integration tests.

fn main() -> anyhow::Result<()> {
    snapshot_tests::inside::main()
}
