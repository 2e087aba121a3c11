//! Runs in the cgroups of the integration tests' containers.

fn main() -> anyhow::Result<()> {
    snapshot_tests::inmate::main()
}
