//! When a request is made again: after a time that doubles, and of which a part is chance, so that many engines that a registry has turned away do not come
//! back together ("full jitter"). A registry that says how long it wants to be left alone is obeyed.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use super::super::{DeliverError, Meter};
use crate::model::nanos::Nanos;

/// How patient we are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// How long one request may take, beside what its bytes need.
    pub(super) request: Duration,
    /// The slowest that bytes may go, in bytes a second.
    pub(super) slowest: u64,
    /// Tries of one step, the first included.
    pub(super) tries: u32,
    /// Tries of one step that may run into the time limit: each costs it.
    pub(super) hangs: u32,
    /// The longest pause before the second try.
    pub(super) first: Duration,
    /// The longest pause.
    pub(super) longest: Duration,
    /// The longest that a registry may ask us to wait.
    pub(super) obeyed: Duration,
}

impl Policy {
    pub(super) fn new(request: Nanos) -> Policy {
        Policy {
            request: request.as_duration(),
            slowest: 128 << 10,
            tries: 6,
            hangs: 2,
            first: Duration::from_millis(250),
            longest: Duration::from_secs(8),
            obeyed: Duration::from_secs(60),
        }
    }

    /// How long a request with so many bytes may take.
    pub(super) fn limit(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes / self.slowest)
    }
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may do better the next time.
    Passing {
        /// What it is if it does not.
        error: DeliverError,
        /// How long the registry wants to be left alone.
        after: Option<Duration>,
    },
    /// It will not.
    Lasting(DeliverError),
}

impl From<DeliverError> for Trouble {
    fn from(error: DeliverError) -> Trouble {
        Trouble::Lasting(error)
    }
}

/// The tries of one step. Made anew when a step has succeeded.
pub(super) struct Tries<'a> {
    policy: Policy,
    meter: &'a Meter,
    made: u32,
    hung: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(policy: Policy, meter: &'a Meter) -> Tries<'a> {
        Tries { policy, meter, made: 0, hung: 0 }
    }

    /// Waits until it is time for the next try.
    ///
    /// # Errors
    /// The trouble, when it is lasting or there has been enough of it.
    pub(super) async fn again(&mut self, trouble: Trouble) -> Result<(), DeliverError> {
        let (error, after) = match trouble {
            Trouble::Lasting(error) => return Err(error),
            Trouble::Passing { error, after } => (error, after),
        };
        self.made += 1;
        self.hung += u32::from(matches!(error, DeliverError::Hung { .. }));
        if self.made >= self.policy.tries || self.hung >= self.policy.hangs {
            return Err(match error {
                DeliverError::Unreachable { registry, why, .. } => {
                    DeliverError::Unreachable { registry, why, tries: self.made }
                }
                error => error,
            });
        }
        let pause = self.pause(after);
        tracing::info!("trying again in {pause:?}: {error}");
        self.meter.count_retry();
        let wake = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < wake {
            if self.meter.is_stopped() {
                return Err(DeliverError::Stopped);
            }
            let slice = tokio::time::Instant::now() + Duration::from_millis(100);
            tokio::time::sleep_until(wake.min(slice)).await;
        }
        Ok(())
    }

    fn pause(&self, after: Option<Duration>) -> Duration {
        let doubled = self.policy.first.saturating_mul(1 << (self.made - 1).min(16));
        let most = doubled.min(self.policy.longest);
        let chance = most.mul_f64(f64::from(random()) / f64::from(u32::MAX));
        match after {
            // Everybody was told the same time: chance comes on top.
            Some(after) => after.min(self.policy.obeyed) + chance.min(self.policy.first),
            None => chance,
        }
    }
}

/// Good enough for chance: the standard library seeds each of these from the kernel.
fn random() -> u32 {
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(after: Option<Duration>) -> Trouble {
        let error = DeliverError::Unreachable { registry: "r".into(), tries: 1, why: "it broke".into() };
        Trouble::Passing { error, after }
    }

    fn policy() -> Policy {
        Policy {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(4),
            ..Policy::new(Nanos(1_000_000_000))
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_a_registry_is_obeyed() {
        let meter = Meter::default();
        let mut tries = Tries::new(Policy::new(Nanos(1)), &meter);
        for (made, most) in [(1, 250), (2, 500), (3, 1000), (7, 8000), (40, 8000)] {
            tries.made = made;
            for _ in 0..50 {
                assert!(tries.pause(None) <= Duration::from_millis(most));
            }
            let told = tries.pause(Some(Duration::from_secs(3)));
            assert!((3.0..3.26).contains(&told.as_secs_f64()), "{told:?}");
            assert!(tries.pause(Some(Duration::from_secs(9999))) < Duration::from_secs(61));
        }
    }

    #[test]
    fn it_gives_up_and_says_how_often_it_tried() {
        let meter = Meter::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut tries = Tries::new(policy(), &meter);
            let error = loop {
                if let Err(e) = tries.again(passing(None)).await {
                    break e;
                }
            };
            assert!(matches!(error, DeliverError::Unreachable { tries: 6, .. }), "{error}");
            assert_eq!(meter.retries(), 5);
            let hung = || DeliverError::Hung { registry: "r".into(), after: Duration::ZERO };
            let mut tries = Tries::new(policy(), &meter);
            tries.again(Trouble::Passing { error: hung(), after: None }).await.unwrap();
            tries.again(Trouble::Passing { error: hung(), after: None }).await.unwrap_err();
        });
    }

    #[test]
    fn a_long_wait_ends_when_somebody_wants_it_to() {
        let meter = Meter::default();
        meter.stop();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let waited =
            runtime.block_on(Tries::new(policy(), &meter).again(passing(Some(Duration::from_secs(60)))));
        assert!(matches!(waited, Err(DeliverError::Stopped)));
    }
}
