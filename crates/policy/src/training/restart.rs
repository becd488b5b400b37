//! Whether another attempt follows one that ended, and when.
//!
//! Failures of data, settings or memory give the same again and end the job at once; so do two failures at one step in the
//! same way. Other failures count against `recovery.maxRestarts` unless the attempt came further than the checkpoint that
//! it began with. A pod that was taken away (deleted, evicted, preempted, its node lost, its GPU broken) costs nothing, and
//! neither does one that found itself replaced, or no room, or no image.

use std::time::Duration;

use flywheel_api::conditions::reasons;
use flywheel_contract::failure::{FailureClass, FailureReason};
use flywheel_contract::termination::{Outcome, Position};
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
        /// Its number.
        attempt: u32,
        /// Counted restarts before it.
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

/// An attempt that ended, and what its end is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a> {
    /// The attempt.
    pub attempt: &'a AttemptView,
    /// Its end.
    pub ended: &'a EndedAttempt,
    /// The end of the last attempt before it that was not merely taken away, where it is still known.
    pub before: Option<&'a EndedAttempt>,
    /// Highest attempt that there ever was, as far as it is known.
    pub highest: u32,
}

/// The wait before the restart that follows this many earlier ones: 5, 10, 20, 40, 60 s.
#[must_use]
pub fn delay(earlier: u32) -> Duration {
    FIRST_DELAY.saturating_mul(1 << earlier.min(4)).min(LONGEST_DELAY)
}

/// What follows this attempt.
#[must_use]
pub fn after(max_restarts: u32, past: &Past<'_>, now: Timestamp) -> After {
    let number = past.attempt.number;
    match &past.ended.end {
        End::Told(Outcome::Failed(failure)) => match failure.reason.class() {
            FailureClass::User => past.for_good(failure.reason.as_str(), &failure.message),
            FailureClass::OutOfMemory => past.for_good(
                reasons::OUT_OF_MEMORY,
                &format!(
                    "{}. Lower hyperparameters.batchSize or hyperparameters.maxLength, or take a class with more memory",
                    failure.message.trim_end_matches('.')
                ),
            ),
            FailureClass::Infrastructure if failure.reason == FailureReason::Fenced => past.free(
                failure.reason.as_str(),
                format!("attempt {number} found its checkpoints taken over by a later one"),
                now,
            ),
            FailureClass::Infrastructure => past.failed(max_restarts, failure.reason.as_str(), &failure.message, now),
        },
        // A trainer image that verifies, or a result that its caller looks for first.
        End::Told(Outcome::Trained(_) | Outcome::Verified(_) | Outcome::Assisted | Outcome::Imported(_) | Outcome::Pruned(_)) => past.failed(
            max_restarts,
            reasons::POD_FAILED,
            "the pod ended with a message that no training gives; see that trainer.image is a trainer",
            now,
        ),
        End::OutOfMemory => past.for_good(
            reasons::OUT_OF_MEMORY,
            "the container used more memory than its limit. Raise trainer.resources.limits.memory, or lower \
             hyperparameters.batchSize or hyperparameters.maxLength",
        ),
        End::Unclear { message } => past.failed(max_restarts, reasons::POD_FAILED, message, now),
        End::Hung { how } => past.failed(max_restarts, reasons::HUNG, how, now),
        End::Lost { how } => {
            let how = past.told_by(how);
            past.free(reasons::POD_LOST, format!("attempt {number} was lost: {how}"), now)
        }
        End::GpuFault { how } => past.free(reasons::GPU_FAULT, format!("attempt {number} was given up: {how}"), now),
        End::NoRoom { how, .. } => past.free(reasons::FALLBACK_CLASS, how.clone(), now),
        End::NoImage { how, .. } => past.free(reasons::IMAGE_PULL_FAILED, how.clone(), now),
    }
}

/// Whether an attempt committed a checkpoint beyond the one that it began with, and beyond step `earlier`. A checkpoint
/// beyond its own steps is another attempt's, from which it has not gone on.
pub(super) fn came_further(position: Position, earlier: u64) -> bool {
    let own = position.checkpoint_step <= position.step;
    own && position.checkpoint_step > position.resumed_from_step.max(earlier)
}

impl Past<'_> {
    /// What one of several pods tells, with its number.
    fn told_by(&self, text: &str) -> String {
        match self.ended.told_by {
            Some(told) => format!("pod {}: {text}", told.index),
            None => text.to_owned(),
        }
    }

    /// Whether the attempt came further, also than the attempt before it: one that falls back to its beginning and fails
    /// there again has won nothing. Unknown counts as no progress.
    fn progressed(&self) -> bool {
        let earlier = self.before.and_then(|b| b.position).map_or(0, |p| p.checkpoint_step);
        self.ended
            .position
            .is_some_and(|position| came_further(position, earlier))
    }

    /// Number of the attempt after it: beyond all that is known here and in the checkpoint store.
    fn next(&self) -> u32 {
        let head = self.ended.position.map_or(0, |p| p.head_attempt);
        self.attempt.number.max(self.highest).max(head).saturating_add(1)
    }

    /// Counted restarts before the next attempt, where this one costs nothing.
    fn kept_count(&self) -> u32 {
        if self.progressed() { 0 } else { self.attempt.counted }
    }

    /// The end of the job, as trying again gives the same. The pod does not know whether it is one of a TrainingJob, so
    /// that a new one is needed is added to its words here.
    fn for_good(&self, reason: &str, message: &str) -> After {
        After::Fail {
            reason: reason.to_owned(),
            message: format!(
                "{}. Then apply a new TrainingJob; this one does not run again",
                self.told_by(message.trim_end_matches('.'))
            ),
        }
    }

    /// A restart that costs nothing.
    fn free(&self, reason: &str, what: String, now: Timestamp) -> After {
        let created = self.attempt.created;
        let life = self.ended.at.map(|at| at.duration_since(created).unsigned_abs());
        let at_once = self.progressed() || self.attempt.number <= 1 || life.is_some_and(|life| life >= SHORT_LIFE);
        After::Restart {
            attempt: self.next(),
            counted: self.kept_count(),
            wait: if at_once {
                Duration::ZERO
            } else {
                let earlier = self.attempt.number.saturating_sub(2);
                left(self.ended.at.unwrap_or(created), delay(earlier), now)
            },
            reason: reason.to_owned(),
            message: format!("{what}. A new attempt follows; it does not count"),
        }
    }

    /// A restart that counts unless there was progress, while the budget lasts.
    fn failed(&self, max_restarts: u32, reason: &str, message: &str, now: Timestamp) -> After {
        let number = self.attempt.number;
        let message = self.told_by(message.trim_end_matches('.'));
        if self.progressed() {
            return After::Restart {
                attempt: self.next(),
                counted: 0,
                wait: Duration::ZERO,
                reason: reason.to_owned(),
                message: format!(
                    "attempt {number} failed: {message}. A new attempt goes on from its last checkpoint; it does not count"
                ),
            };
        }
        if let Some(step) = self.repeated_at(reason) {
            return After::Fail {
                reason: reasons::REPEATED_FAILURE.to_owned(),
                message: format!(
                    "attempt {number} failed at step {step} as the attempt before it did ({reason}: {message}), and trying \
                     again would do the same. Look at its log for what that step does; then apply a new TrainingJob with \
                     other data, hyperparameters or trainer.image"
                ),
            };
        }
        let counted = self.attempt.counted;
        if counted >= max_restarts {
            return After::Fail {
                reason: reasons::MAX_RESTARTS_EXCEEDED.to_owned(),
                message: format!(
                    "attempt {number} failed ({reason}: {message}), and recovery.maxRestarts is {max_restarts}. Mend the \
                     cause, then raise recovery.maxRestarts or apply a new TrainingJob"
                ),
            };
        }
        let counted = counted.saturating_add(1);
        After::Restart {
            attempt: self.next(),
            counted,
            wait: left(
                self.ended.at.unwrap_or(self.attempt.created),
                delay(self.attempt.counted),
                now,
            ),
            reason: reason.to_owned(),
            message: format!("attempt {number} failed: {message}. Restart {counted} of {max_restarts} follows"),
        }
    }

    /// The step at which this attempt and the one before it failed in the same way, where that points to the step itself.
    fn repeated_at(&self, reason: &str) -> Option<u64> {
        if !is_of_the_step(reason) {
            return None;
        }
        let before = self.before.filter(|b| failure_reason(&b.end) == Some(reason))?;
        let (position, earlier) = (self.ended.position?, before.position?);
        // Before the first step no batch can be to blame.
        (position.step > 0 && position.step == earlier.step).then_some(position.step)
    }
}

/// Whether a failure of this reason comes from what the step computes. The others come from outside: a storage that is
/// away for a while stops every attempt at the same step, the first or the last.
fn is_of_the_step(reason: &str) -> bool {
    [
        FailureReason::InternalError.as_str(),
        reasons::POD_FAILED,
        reasons::HUNG,
    ]
    .contains(&reason)
}

/// The reason of an end that may count; `None` for ends that cost nothing or end the job.
fn failure_reason(end: &End) -> Option<&str> {
    match end {
        End::Told(Outcome::Failed(failure)) => Some(failure.reason.as_str()),
        End::Told(
            Outcome::Trained(_) | Outcome::Verified(_) | Outcome::Assisted | Outcome::Imported(_) | Outcome::Pruned(_),
        )
        | End::Unclear { .. } => Some(reasons::POD_FAILED),
        End::Hung { .. } => Some(reasons::HUNG),
        End::OutOfMemory | End::Lost { .. } | End::GpuFault { .. } | End::NoRoom { .. } | End::NoImage { .. } => None,
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
