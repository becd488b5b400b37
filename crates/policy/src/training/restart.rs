//! Whether another attempt follows one that ended, and when.
//!
//! Failures of data, settings or memory give the same again and end the job at once. Failures of the infrastructure count
//! against `recovery.maxRestarts`. A pod that was taken away (deleted, evicted, preempted, its node lost) costs nothing.

use std::time::Duration;

use flywheel_api::conditions::reasons;
use flywheel_contract::failure::FailureClass;
use flywheel_contract::termination::Outcome;
use jiff::Timestamp;

use super::AttemptView;
use super::attempt::{End, EndedAttempt};

/// Wait before the first counted restart; doubled with each one.
const FIRST_DELAY: Duration = Duration::from_secs(5);
/// Longest wait before a restart.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// An attempt that was lost after at least this long is followed at once; pods that are taken away sooner again and again
/// must not become a storm of Jobs.
const SHORT_LIFE: Duration = Duration::from_secs(60);

/// What follows an attempt that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Another attempt.
    Restart {
        /// Counted restarts before that attempt.
        counted: u32,
        /// Wait before it.
        wait: Duration,
        /// Why: a condition's reason.
        reason: String,
        /// Why, for people.
        message: String,
    },
    /// The end of the job.
    Fail {
        /// A condition's reason.
        reason: String,
        /// What is wrong and what to do.
        message: String,
    },
}

/// The wait before the restart that follows this many earlier ones: 5, 10, 20, 40, 60 s.
#[must_use]
pub fn delay(earlier: u32) -> Duration {
    FIRST_DELAY.saturating_mul(1 << earlier.min(4)).min(LONGEST_DELAY)
}

/// What follows this attempt.
#[must_use]
pub fn after(max_restarts: u32, attempt: &AttemptView, ended: &EndedAttempt, now: Timestamp) -> After {
    let number = attempt.number;
    match &ended.end {
        End::Told(Outcome::Failed(failure)) => match failure.reason.class() {
            FailureClass::User => After::Fail {
                reason: failure.reason.as_str().to_owned(),
                message: failure.message.clone(),
            },
            FailureClass::OutOfMemory => After::Fail {
                reason: reasons::OUT_OF_MEMORY.to_owned(),
                message: format!(
                    "{}. Lower hyperparameters.batchSize or hyperparameters.maxLength, or take a class with more memory",
                    failure.message.trim_end_matches('.')
                ),
            },
            FailureClass::Infrastructure => counted(
                max_restarts,
                attempt,
                ended,
                now,
                failure.reason.as_str(),
                &failure.message,
            ),
        },
        // A trainer image that verifies, or a result that its caller looks for first.
        End::Told(Outcome::Trained(_) | Outcome::Verified(_)) => counted(
            max_restarts,
            attempt,
            ended,
            now,
            reasons::POD_FAILED,
            "the pod ended with a message that no training gives; see that trainer.image is a trainer",
        ),
        End::OutOfMemory => After::Fail {
            reason: reasons::OUT_OF_MEMORY.to_owned(),
            message: "the container used more memory than its limit. Raise trainer.resources.limits.memory, or lower \
                      hyperparameters.batchSize or hyperparameters.maxLength"
                .to_owned(),
        },
        End::Unclear { message } => counted(max_restarts, attempt, ended, now, reasons::POD_FAILED, message),
        End::Lost { how } => {
            let life = ended.at.map(|at| at.duration_since(attempt.created).unsigned_abs());
            let wait = if life.is_some_and(|life| life >= SHORT_LIFE) || number <= 1 {
                Duration::ZERO
            } else {
                left(
                    ended.at.unwrap_or(attempt.created),
                    delay(number.saturating_sub(2)),
                    now,
                )
            };
            After::Restart {
                counted: attempt.counted,
                wait,
                reason: reasons::POD_LOST.to_owned(),
                message: format!("attempt {number} was lost: {how}. A new attempt follows; it does not count"),
            }
        }
    }
}

fn counted(
    max_restarts: u32,
    attempt: &AttemptView,
    ended: &EndedAttempt,
    now: Timestamp,
    reason: &str,
    message: &str,
) -> After {
    let number = attempt.number;
    let message = message.trim_end_matches('.');
    if attempt.counted >= max_restarts {
        return After::Fail {
            reason: reasons::MAX_RESTARTS_EXCEEDED.to_owned(),
            message: format!(
                "attempt {number} failed ({reason}: {message}), and recovery.maxRestarts is {max_restarts}. Mend the cause, \
                 then raise recovery.maxRestarts or apply a new TrainingJob"
            ),
        };
    }
    After::Restart {
        counted: attempt.counted.saturating_add(1),
        wait: left(ended.at.unwrap_or(attempt.created), delay(attempt.counted), now),
        reason: reason.to_owned(),
        message: format!(
            "attempt {number} failed: {message}. Restart {} of {max_restarts} follows",
            attempt.counted.saturating_add(1)
        ),
    }
}

/// What is left of a wait that began at `from`.
fn left(from: Timestamp, wait: Duration, now: Timestamp) -> Duration {
    let passed = now.duration_since(from);
    if passed.is_negative() {
        // Another machine's clock is ahead: wait the whole time rather than for ever.
        return wait;
    }
    wait.saturating_sub(passed.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute() {
        let seconds: Vec<u64> = (0..7).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 60, 60, 60]);
    }

    #[test]
    fn a_wait_is_never_longer_than_itself() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let wait = Duration::from_secs(20);
        assert_eq!(left(at(100), wait, at(105)), Duration::from_secs(15));
        assert_eq!(left(at(100), wait, at(500)), Duration::ZERO);
        assert_eq!(left(at(500), wait, at(100)), wait, "a clock that is ahead");
    }
}
