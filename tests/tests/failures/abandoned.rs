//! Attempts that come to nothing in each phase of the window, and an arena that is too small.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use snapshot_engine::freeze::attempt::{FENCE_MAX, Policy};
use snapshot_engine::freeze::gate::Gate;
use snapshot_engine::freeze::window::Moment;
use snapshot_engine::model::options::GateChoice;
use snapshot_engine::pipeline::progress::Quiet;
use snapshot_tests::bench;

use super::{Scene, cut, say, times};

/// What a probe, which is a plain function, does: at this moment, so many times.
struct Plan {
    at: Moment,
    times: u32,
    act: Act,
}

enum Act {
    /// The engine stands still for longer than it may.
    Stall(Duration),
    /// Somebody outside the container, whom no gate holds, writes.
    Write(fs::File, Vec<u8>),
    /// The same, to another file below this directory each time: 0, 1, 2 ..
    Another(PathBuf, u32, String),
}

static PLAN: Mutex<Option<Plan>> = Mutex::new(None);
/// The plan is one for all tests of this process.
static ONE: Mutex<()> = Mutex::new(());

fn probe(moment: Moment) {
    let mut plan = PLAN.lock().unwrap();
    let Some(plan) = plan.as_mut().filter(|plan| plan.at == moment && plan.times > 0) else { return };
    plan.times -= 1;
    match &mut plan.act {
        Act::Stall(time) => std::thread::sleep(*time),
        Act::Write(file, bytes) => file.write_all_at(bytes, 0).unwrap(),
        Act::Another(dir, next, text) => {
            let file = fs::OpenOptions::new().write(true).open(dir.join(next.to_string())).unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            *next += 1;
        }
    }
}

const MOMENTS: [Moment; 4] = [Moment::Raised, Moment::Drained, Moment::Captured, Moment::Validated];

/// The engine loses its processor inside the window, in each phase, with each gate: the attempt is void, writers were held no longer than the fence's
/// deadline, and the cut that stands is one instant. Breaks without the last look at the clock in `Window::attempt`, and without `Attempts::put_back`.
#[test]
fn an_engine_that_stalls_in_the_window_abandons_it() {
    if !bench::root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::busy(2);
    let (mut stalls, mut longest) = (0, Duration::ZERO);
    for choice in [GateChoice::None, GateChoice::Fence, GateChoice::Freezer] {
        for at in MOMENTS {
            for _ in 0..times("SNAPSHOT_STALLS", 1) {
                let policy = Policy { probe: Some(probe), ..bench::policy(choice) };
                let mut session = scene.session(policy);
                cut(&mut session);
                let stall = Act::Stall(Duration::from_millis(60));
                *PLAN.lock().unwrap() = Some(Plan { at, times: 1, act: stall });
                let before = scene.live();
                let made = cut(&mut session);
                let left = PLAN.lock().unwrap().take().unwrap().times;
                assert_eq!((left, made.misses), (0, 0), "{choice} {at:?}: {made:?}");
                // With gate none nobody is held: who stalls while all writers rest has a good copy.
                assert!(choice == GateChoice::None || made.attempts >= 2, "{choice} {at:?}: {made:?}");
                assert!(made.pause.gate == Gate::None || made.pause.window <= policy.budget, "{made:?}");
                if choice == GateChoice::Fence {
                    longest = longest.max(made.pause.longest_stop);
                }
                scene.frozen(session, &before);
                stalls += 1;
            }
        }
    }
    println!("{stalls} stalls; the longest spin of a cut that stood: {longest:?}");
    assert!(longest <= FENCE_MAX + Duration::from_millis(4), "{longest:?}");
    scene.goes_on();
}

/// Somebody no gate holds changes a file in each phase, with each gate: what is frozen is the file before or after, never a mixture, the newest state that
/// was there before the cut, and T3 loses nothing.
#[test]
fn a_change_in_each_phase_is_whole_or_absent() {
    if !bench::root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::busy(2);
    scene.worker.ask("write /srv/outside 0 100000 1").unwrap();
    let mut void = 0;
    for choice in [GateChoice::None, GateChoice::Fence, GateChoice::Freezer] {
        for at in MOMENTS {
            let mut session = scene.session(Policy { probe: Some(probe), ..bench::policy(choice) });
            cut(&mut session);
            let file =
                fs::OpenOptions::new().write(true).open(scene.demo.upper().join("srv/outside")).unwrap();
            file.write_all_at(&vec![1; 100_000], 0).unwrap();
            *PLAN.lock().unwrap() = Some(Plan { at, times: 1, act: Act::Write(file, vec![2; 100_000]) });
            let before = scene.live();
            let made = cut(&mut session);
            *PLAN.lock().unwrap() = None;
            void += made.attempts - 1;
            assert_eq!(made.misses, 0, "{choice} {at:?}: {made:?}");
            let frozen = scene.frozen(session, &before);
            let bytes = fs::read(frozen.join("srv/outside")).unwrap();
            // After the validation it is behind the cut, unless that attempt was void for another reason.
            let wanted: &[u8] = if at == Moment::Validated { &[1, 2] } else { &[2] };
            assert!(
                bytes.len() == 100_000 && wanted.contains(&bytes[0]) && bytes.iter().all(|b| *b == bytes[0]),
                "{choice} {at:?}: {}, {made:?}",
                bytes[0]
            );
        }
    }
    println!("{void} attempts were void");
    assert!(void >= 3, "a change after the capture voids the attempt");
    scene.goes_on();
}

/// More becomes dirty than the arena holds: another round, then it fits; if it never fits, an error that says so, and nobody is held meanwhile.
#[test]
fn an_arena_that_is_too_small() {
    if !bench::root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::busy(1);
    scene.worker.ask("write /srv/outside 0 1000000 1").unwrap();
    for choice in [GateChoice::Fence, GateChoice::Freezer] {
        let policy = Policy { probe: Some(probe), arena: Some(256 << 10), ..bench::policy(choice) };
        let mut session = scene.session(policy);
        cut(&mut session);
        let plan = |byte: u8, times: u32| {
            let file =
                fs::OpenOptions::new().write(true).open(scene.demo.upper().join("srv/outside")).unwrap();
            let act = Act::Write(file, vec![byte; 1_000_000]);
            *PLAN.lock().unwrap() = Some(Plan { at: Moment::Raised, times, act });
        };
        plan(2, u32::MAX);
        let text = say(&session.cut(&Quiet).unwrap_err());
        assert!(text.contains("--max-pause"), "{text}");
        plan(3, 2);
        let before = scene.live();
        let made = cut(&mut session);
        *PLAN.lock().unwrap() = None;
        let why: Vec<_> = made.abandoned.keys().map(|(_, why)| why.as_str()).collect();
        assert!(why.contains(&"more was dirty than the arena holds"), "{choice}: {made:?}");
        let frozen = scene.frozen(session, &before);
        assert!(fs::read(frozen.join("srv/outside")).unwrap() == vec![3; 1_000_000], "{choice}");
    }
    scene.goes_on();
}

/// Each attempt finds an inode dirty that nobody has touched for long, another one each time: after the first such attempt all inodes are made ready, as long
/// as there are descriptors for them. Found by the torture harness with 64 threads; breaks without `Shadow::warm_all`.
#[test]
fn a_working_set_that_was_not_made_ready_is_made_so() {
    if !bench::root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut scene = Scene::busy(0);
    let dir = scene.demo.upper().join("srv/many");
    fs::create_dir(&dir).unwrap();
    for n in 0..2000 {
        fs::write(dir.join(n.to_string()), "as it was").unwrap();
    }
    for choice in [GateChoice::Fence, GateChoice::Freezer] {
        let mut session = scene.session(Policy { probe: Some(probe), ..bench::policy(choice) });
        *PLAN.lock().unwrap() = Some(Plan {
            at: Moment::Raised,
            times: u32::MAX,
            act: Act::Another(dir.clone(), 0, choice.to_string()),
        });
        let made = session.cut(&Quiet);
        *PLAN.lock().unwrap() = None;
        let made = made.unwrap_or_else(|e| panic!("{choice}: {}", say(&e)));
        let why: Vec<_> = made.abandoned.keys().map(|(_, why)| why.as_str()).collect();
        assert!(why.contains(&"an inode had changed that was not made ready"), "{choice}: {made:?}");
        let frozen = scene.frozen(session, &[]).join("srv/many");
        let changed =
            |n: u32| fs::read(frozen.join(n.to_string())).unwrap().starts_with(choice.to_string().as_bytes());
        assert!((0..made.attempts).all(changed), "{choice}: {made:?}");
    }
    scene.goes_on();
}
