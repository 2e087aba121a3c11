//! An engine that dies or hangs inside the window: arguments CONTAINER WORK-DIRECTORY HOW, with HOW one of
//! `fence` (holds the fence until it is killed), `kill-raised`, `kill-captured`, `stop-captured` (with the freezer), `stop-fence` (stopped with
//! the fence up), `linger` (stays in the window for a while, with the freezer, and makes its cut after all).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, getpid, kill_process};
use snapshot_engine::container;
use snapshot_engine::freeze::attempt::Policy;
use snapshot_engine::freeze::reader::now;
use snapshot_engine::freeze::window::Moment;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_tests::bench;

fn end(signal: Signal) {
    // Before the signal, so that the test knows that it got here.
    println!("now");
    let _ = kill_process(getpid(), signal);
    // A signal to oneself is delivered before the call returns, or this thread is not the one it stops first.
    std::thread::sleep(Duration::from_secs(60));
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, work, how] = &args[..] else { bail!("CONTAINER WORK-DIRECTORY HOW") };
    let target = container::resolve(name)?;
    let probe: fn(Moment) = match how.as_str() {
        "fence" => {
            let tracker = bench::tracker(&[&target])?;
            tracker.live().raise_fence(now() + 60_000_000_000);
            println!("now");
            std::thread::sleep(Duration::from_secs(60));
            return Ok(());
        }
        "kill-raised" => |m| {
            if m == Moment::Raised {
                end(Signal::KILL);
            }
        },
        "kill-captured" => |m| {
            if m == Moment::Captured {
                end(Signal::KILL);
            }
        },
        "stop-captured" => |m| {
            if m == Moment::Captured {
                end(Signal::STOP);
            }
        },
        "stop-fence" => |m| {
            if m == Moment::Captured {
                end(Signal::STOP);
            }
        },
        "linger" => |m| {
            if m == Moment::Drained {
                println!("now");
                std::thread::sleep(Duration::from_millis(300));
            }
        },
        _ => bail!("{how:?}?"),
    };
    let choice = if how == "stop-fence" { GateChoice::Fence } else { GateChoice::Freezer };
    let mut policy = Policy { probe: Some(probe), ..bench::policy(choice) };
    if how == "linger" {
        policy.budget = Duration::from_secs(2);
    }
    let mut session = bench::session(target, Path::new(work), policy, 0)?;
    let made = session.cut(&Quiet).context("it should not have lived")?;
    if how == "linger" {
        println!("{:?}", made.pause.window);
        return Ok(());
    }
    bail!("it should not have lived");
}
