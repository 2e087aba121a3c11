//! What demo containers of the integration tests run: a test harness cannot call [`init_if_asked`] first thing itself.

use snapshot_engine::demo::init_if_asked;

fn main() {
    init_if_asked();
    eprintln!("this program only serves as the init of demo containers");
    std::process::exit(2);
}
