//! How many calls of the API server may be under way at once.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
//! Avoidance in Computer Networks", 1989), which is fair among clients that all do so: one more where all are answered soon,
//! half where the server refuses or says nothing, a fifth less where it is slow.

use std::time::Duration;

/// At first, and at most: as many as there are reconciles at once.
pub const MOST: usize = 24;
/// At least, where the server refuses.
const LEAST: f64 = 1.0;
/// At least, where it answers slowly: that may be a webhook's way, which fewer calls do not mend.
const LEAST_WHERE_SLOW: f64 = 8.0;
/// An answer that takes longer is slow: Kubernetes' own objective for a call of one object is a second.
pub const SLOW: Duration = Duration::from_secs(1);
/// What is under way when the server is overloaded ends alike, and tells that once.
const CUT_EVERY: Duration = Duration::from_secs(1);

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With an answer that tells nothing of the server's load, after this time.
    Given(Duration),
    /// The server said that it has too much to do.
    Refused,
    /// There was no answer.
    Missing,
}

/// The limit, as the answers move it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    calls: f64,
    /// When it was lowered last.
    cut: Option<Duration>,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            calls: f64::from(u32::try_from(MOST).unwrap_or(u32::MAX)),
            cut: None,
        }
    }
}

impl Limit {
    /// Calls that may be under way at once.
    #[must_use]
    pub fn calls(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and MOST"
        )]
        let calls = self.calls as usize;
        calls.clamp(1, MOST)
    }

    /// A call ended, of so many that were under way then, at this time since some beginning.
    pub fn note(&mut self, answer: Answer, under_way: usize, now: Duration) {
        let (keep, least) = match answer {
            // Where refusals have lowered it below what slow answers do, these raise it as well.
            Answer::Given(took) if took < SLOW || self.calls < LEAST_WHERE_SLOW => {
                // Beyond what is used nothing is known.
                if under_way * 2 >= self.calls() {
                    self.calls = (self.calls + 1.0 / self.calls).min(Self::default().calls);
                }
                return;
            }
            Answer::Given(_) => (0.8, LEAST_WHERE_SLOW),
            Answer::Refused | Answer::Missing => (0.5, LEAST),
        };
        let again = self.cut.is_some_and(|cut| now.saturating_sub(cut) < CUT_EVERY);
        if !again && self.calls > least {
            self.calls = (self.calls * keep).max(least);
            self.cut = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Answer = Answer::Given(Duration::from_millis(5));

    fn after(answers: impl IntoIterator<Item = (Answer, f64)>) -> Limit {
        let mut limit = Limit::default();
        for (answer, seconds) in answers {
            limit.note(answer, limit.calls(), Duration::from_secs_f64(seconds));
        }
        limit
    }

    #[test]
    fn refusals_halve_it_once_for_all_that_were_under_way() {
        let burst = |at: f64| (0..24).map(move |_| (Answer::Refused, at));
        assert_eq!(after(burst(1.0)).calls(), 12);
        assert_eq!(after(burst(1.0).chain(burst(1.9))).calls(), 12);
        assert_eq!(after(burst(1.0).chain(burst(2.0))).calls(), 6);
        let hour = (0..3600).map(|second| (Answer::Missing, f64::from(second)));
        assert_eq!(after(hour).calls(), 1, "never none");
    }

    #[test]
    fn slow_answers_lower_it_to_where_fewer_calls_cannot_help() {
        let slow = |seconds: u32| (0..seconds).map(|second| (Answer::Given(SLOW), f64::from(second)));
        assert_eq!(after(slow(1)).calls(), 19);
        assert_eq!(after(slow(3600)).calls(), 8);
        let refused_before = (0..9).map(|second| (Answer::Refused, f64::from(second)));
        assert_eq!(after(refused_before.chain(slow(3600))).calls(), 8, "nor keep it below");
    }

    #[test]
    fn it_grows_again_soon_and_only_where_it_is_used() {
        let mut limit = after((0..9).map(|second| (Answer::Refused, f64::from(second))));
        assert_eq!(limit.calls(), 1);
        for _ in 0..10_000 {
            limit.note(SOON, 0, Duration::from_secs(10));
        }
        assert_eq!(limit.calls(), 1);
        let mut answers = 0;
        while limit.calls() < MOST {
            limit.note(SOON, limit.calls(), Duration::from_secs(10));
            answers += 1;
        }
        // At 5 ms a call that is 24 rounds of 5 ms.
        assert!((250..350).contains(&answers), "{answers}");
    }
}
