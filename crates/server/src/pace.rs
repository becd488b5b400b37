//! How fast a worker computes, and how many texts may therefore wait: one that would wait too long is better refused at once,
//! when its client can still ask another pod, than answered when nobody wants the answer any more.
//!
//! A batch takes a time for itself and a time for each of its tokens. A pod with little to do computes batches of one text and
//! knows nothing but their sum for sure; taken as the time of a text it would promise far less than full batches do. So both
//! are fitted to the batches of the last while (least squares), and full batches are what is planned with.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Share of the deadline that may be spent waiting; the rest is for the batch itself, tokens and the way.
const WAITING: f64 = 0.5;
/// Weight of the newest batch in what the times depend on: the last hundred or so.
const NEWEST: f64 = 0.02;
/// Weight of the newest batch in how slow the machine is beside that: the last five or so.
const NEWEST_LEVEL: f64 = 0.2;
/// Least share of a batch's time that its tokens take: where all batches are alike, the fit says anything.
const LEAST_FOR_TOKENS: f64 = 0.4;

/// Time of a worker by the size of a batch.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Most tokens of a batch.
    batch_tokens: f64,
    seen: Mutex<Seen>,
}

/// Means over batches, the newer the heavier. All 0 before the first.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Batches, as far as they matter.
    batches: u32,
    texts: f64,
    tokens: f64,
    seconds: f64,
    /// Variance of the tokens, and their covariance with the seconds.
    variance: f64,
    covariance: f64,
    /// Observed time by the time that the fit expects.
    level: f64,
}

impl Seen {
    /// Seconds for a batch by itself, and for each token.
    fn fit(&self) -> (f64, f64) {
        let through_origin = self.seconds / self.tokens;
        let slope = if self.variance > 0.0 {
            (self.covariance / self.variance).clamp(LEAST_FOR_TOKENS * through_origin, through_origin)
        } else {
            through_origin
        };
        (self.seconds - slope * self.tokens, slope)
    }

    /// Counts one more batch.
    fn add(&mut self, texts: f64, tokens: f64, seconds: f64) {
        self.batches = self.batches.saturating_add(1);
        if self.batches > 1 {
            let (batch, token) = self.fit();
            let now = seconds / (batch + token * tokens);
            self.level += self.weight(NEWEST_LEVEL) * (now - self.level);
        } else {
            self.level = 1.0;
        }
        let weight = self.weight(NEWEST);
        let (off_tokens, off_seconds) = (tokens - self.tokens, seconds - self.seconds);
        self.texts += weight * (texts - self.texts);
        self.tokens += weight * off_tokens;
        self.seconds += weight * off_seconds;
        let add = |moment: &mut f64, product: f64| *moment = (1.0 - weight) * (*moment + weight * product);
        add(&mut self.variance, off_tokens * off_tokens);
        add(&mut self.covariance, off_tokens * off_seconds);
    }

    /// Of the batch that is counted. The first ones weigh the same: a version's very first waits for kernels to be made and
    /// memory to be touched, and must not stand for all.
    fn weight(&self, least: f64) -> f64 {
        f64::from(self.batches).recip().max(least)
    }
}

impl Pace {
    /// Nothing is known yet. `batch_tokens`: most tokens of a batch.
    pub fn new(batch_tokens: usize) -> Self {
        Self {
            batch_tokens: batch_tokens as f64,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // No code that can panic runs under the lock.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a batch of so many texts and tokens, at least 1 of each.
    pub fn observe(&self, texts: usize, tokens: usize, took: Duration) {
        let (texts, tokens, seconds) = (texts.max(1) as f64, tokens.max(1) as f64, took.as_secs_f64());
        self.seen().add(texts, tokens, seconds);
    }

    /// Texts that may wait or be computed at once so that the last is begun in time; `None` before the first batch.
    pub fn limit(&self, timeout: Duration, workers: usize) -> Option<usize> {
        let seen = *self.seen();
        if seen.batches == 0 {
            return None;
        }
        let (batch, token) = seen.fit();
        let per_text = seen.tokens / seen.texts * seen.level * (token + batch / self.batch_tokens);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number; where it is too large, the cast gives the largest"
        )]
        let texts = (WAITING * timeout.as_secs_f64() * workers as f64 / per_text) as usize;
        // A worker without work is no reason to refuse.
        Some(texts.max(workers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A worker that takes 2 ms for a batch and 0.2 ms for a token.
    fn takes(tokens: usize) -> Duration {
        Duration::from_micros(2000 + 200 * tokens as u64)
    }

    fn near(limit: Option<usize>, want: usize) {
        let limit = limit.unwrap();
        assert!(limit.abs_diff(want) * 20 <= want, "{limit}, not {want}");
    }

    #[test]
    fn as_many_may_wait_as_are_begun_in_half_of_the_deadline() {
        let pace = Pace::new(100);
        assert_eq!(pace.limit(SECOND, 1), None, "nothing is known yet");
        // Ten texts of ten tokens in 22 ms.
        for _ in 0..100 {
            pace.observe(10, 100, takes(100));
        }
        for (timeout, workers, limit) in [
            (SECOND, 1, 227),
            (SECOND, 2, 454),
            (SECOND / 5, 1, 45),
            (SECOND / 1000, 4, 4),
        ] {
            near(pace.limit(timeout, workers), limit);
        }
    }

    #[test]
    fn a_pod_with_little_to_do_knows_what_full_batches_would_do() {
        let pace = Pace::new(100);
        // One text at a time, of 5 to 15 tokens: 4 ms each, but 2.2 ms each where ten share a batch.
        for i in 0..300 {
            let tokens = 5 + i * 7 % 11;
            pace.observe(1, tokens, takes(tokens));
        }
        near(pace.limit(SECOND, 1), 227);
    }

    #[test]
    fn batches_of_one_size_are_taken_as_they_are() {
        let pace = Pace::new(100);
        for _ in 0..300 {
            pace.observe(1, 10, takes(10));
        }
        // What part of the 4 ms is the batch's own cannot be known.
        near(pace.limit(SECOND, 1), 125);
    }

    #[test]
    fn a_slow_first_batch_does_not_stand_for_all() {
        let pace = Pace::new(100);
        // Fifteen times as long as usual.
        pace.observe(1, 10, 15 * takes(10));
        assert_eq!(pace.limit(SECOND, 1), Some(8));
        for _ in 0..30 {
            pace.observe(10, 100, takes(100));
            assert!(pace.limit(SECOND, 1).unwrap() > 100, "{pace:?}");
        }
    }

    #[test]
    fn it_follows_what_is_seen() {
        let pace = Pace::new(100);
        pace.observe(1, 10, SECOND / 10);
        for _ in 0..400 {
            pace.observe(10, 100, takes(100));
        }
        near(pace.limit(SECOND, 1), 227);
        pace.observe(1, 10, SECOND);
        assert!(pace.limit(SECOND, 1).unwrap() < 10, "one slow batch is heeded at once");
        for _ in 0..50 {
            pace.observe(10, 100, takes(100));
        }
        assert!(pace.limit(SECOND, 1).unwrap() > 150, "and soon over");
    }

    #[test]
    fn chance_promises_no_more_than_twice_and_a_half_of_what_was_seen() {
        let pace = Pace::new(100);
        // Larger batches that happened to be quicker.
        for i in 0..300_u64 {
            let tokens = 10 + i % 11;
            pace.observe(1, usize::try_from(tokens).unwrap(), Duration::from_millis(30 - tokens));
        }
        let limit = pace.limit(SECOND, 1).unwrap();
        // 15 ms a text were seen.
        assert!((33..=84).contains(&limit), "{limit}");
    }
}
