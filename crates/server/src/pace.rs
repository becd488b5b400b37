//! How fast a worker computes, and how many texts may therefore wait: one that would wait too long is better refused at once,
//! when its client can still ask another pod, than answered when nobody wants the answer any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Share of the deadline that may be spent waiting; the rest is for the batch itself, tokens and the way.
const WAITING: f64 = 0.5;
/// Weight of the newest batch in the mean.
const NEWEST: f64 = 0.2;

/// Mean time of a worker for one text of a batch.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Seconds, as bits; 0 before the first batch.
    seconds: AtomicU64,
}

impl Pace {
    /// After a batch of so many texts, at least 1.
    pub fn observe(&self, texts: usize, took: Duration) {
        let now = took.as_secs_f64() / texts.max(1) as f64;
        let before = f64::from_bits(self.seconds.load(Ordering::Relaxed));
        let mean = if before == 0.0 {
            now
        } else {
            before + NEWEST * (now - before)
        };
        // Of two workers at once one may be lost; the next batch comes soon.
        self.seconds.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Texts that may wait or be computed at once so that the last is begun in time; `None` before the first batch.
    pub fn limit(&self, timeout: Duration, workers: usize) -> Option<usize> {
        let seconds = f64::from_bits(self.seconds.load(Ordering::Relaxed));
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number; where it is too large, the cast gives the largest"
        )]
        let texts = (WAITING * timeout.as_secs_f64() * workers as f64 / seconds) as usize;
        // A worker without work is no reason to refuse.
        (seconds > 0.0).then(|| texts.max(workers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn as_many_may_wait_as_are_begun_in_half_of_the_deadline() {
        let pace = Pace::default();
        assert_eq!(pace.limit(SECOND, 1), None, "nothing is known yet");
        pace.observe(10, Duration::from_millis(20));
        for (timeout, workers, limit) in [
            (SECOND, 1, 250),
            (SECOND, 2, 500),
            (SECOND / 5, 1, 50),
            (SECOND / 1000, 4, 4),
        ] {
            assert_eq!(pace.limit(timeout, workers), Some(limit), "{timeout:?} {workers}");
        }
    }

    #[test]
    fn it_follows_what_is_seen() {
        let pace = Pace::default();
        pace.observe(1, Duration::from_millis(100));
        for _ in 0..40 {
            pace.observe(10, Duration::from_millis(20));
        }
        let limit = pace.limit(SECOND, 1).unwrap();
        assert!((240..=250).contains(&limit), "{limit}");
        pace.observe(1, SECOND);
        assert!(pace.limit(SECOND, 1).unwrap() < 5, "one slow batch is heeded at once");
    }
}
