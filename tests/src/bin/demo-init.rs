//! What demo containers of the integration tests run, and what becomes a measuring process inside them: a test harness cannot call [`init_if_asked`] first thing itself.

use snapshot_engine::demo::init_if_asked;

fn main() {
    init_if_asked();
    snapshot_engine::bench::run_if_asked();
    eprintln!("this program only serves as the init of demo containers");
    std::process::exit(2);
}
