//! Growing delay per object. kube's error policy is not told about successes, so the count of failures in a row is ours.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Delay after the first failure.
pub const FIRST: Duration = Duration::from_secs(1);
/// Longest delay: an object that fails is looked at again within half a minute, which the five-minute budget of recovery needs.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Failures in a row per object, by its uid.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    /// Counts a failure of this object; the delay until the next try: 1, 2, 4 … 30 s.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut failures = self.failures();
        let count = failures.entry(uid.to_owned()).or_insert(0);
        let delay = delay(*count);
        *count = count.saturating_add(1);
        delay
    }

    /// Forgets the failures of this object.
    pub fn succeeded(&self, uid: &str) {
        self.failures().remove(uid);
    }

    /// Forgets the failures of all other objects.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.failures().retain(|uid, _| alive.contains(uid));
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Delay after this many earlier failures in a row.
fn delay(earlier: u32) -> Duration {
    FIRST.saturating_mul(1 << earlier.min(5)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_to_its_bound_and_starts_again_after_a_success() {
        let backoff = Backoff::default();
        let seconds: Vec<u64> = (0..8).map(|_| backoff.failed("a").as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff.failed("b"), FIRST, "objects do not wait for each other");
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a"), FIRST);
    }
}
