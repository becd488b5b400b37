//! What a ModelVersion needs next, and whether it may be promoted.

pub mod latest;
pub mod promote;
pub mod retain;

use std::time::Duration;

use flywheel_api::conditions::reasons;
use flywheel_contract::failure::{FailureClass, FailureReason};
use flywheel_contract::termination::{Outcome, ReceiptFate, Verified};
use jiff::Timestamp;

use crate::remedy::{PodsOf, of_refusal};
use crate::training::attempt::{AttemptState, End, EndedAttempt};

/// One try to verify the artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct TryView {
    /// From 1.
    pub number: u32,
    /// When its Job was made.
    pub created: Timestamp,
    /// What it does.
    pub state: AttemptState,
    /// How the try before it ended, while its Job is there.
    pub before: Option<EndedAttempt>,
}

/// What becomes of a verification that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It goes on by itself.
    Working,
    /// Somebody has to look; it is tried again by itself all the same.
    Blocked,
    /// Nothing of it can be made until somebody acts.
    Stalled,
}

/// An InferenceService that names the version.
#[derive(Clone, Copy, Debug)]
pub struct ServiceView<'a> {
    /// Reason of its condition `Stalled`, where that is True.
    pub stalled: Option<&'a str>,
    /// Pods of it that there are.
    pub pods: i32,
}

/// Whether the service keeps the version from being deleted: it does as long as it may come to serve it, so also scaled to
/// zero, without a free GPU, or with a mistake in its spec that its user is about to correct. Of one whose name is another's
/// nothing can be made.
#[must_use]
pub fn keeps(service: &ServiceView<'_>) -> bool {
    service.pods > 0 || service.stalled != Some(reasons::NAME_TAKEN)
}

/// What is known of the artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Not yet.
    Pending {
        /// A condition's reason.
        reason: String,
        /// For people.
        message: String,
        /// Whether somebody has to look.
        outlook: Outlook,
    },
    /// Every file is what the digest says.
    Verified {
        /// For people.
        message: String,
    },
    /// It is not what the spec says, or cannot be read; trying again gives the same.
    Failed {
        /// A failure's reason.
        reason: String,
        /// What is wrong and what to do.
        message: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Make the Job of this try.
    Verify {
        /// From 1.
        number: u32,
    },
    /// Nothing.
    Wait,
}

/// What is said from the beginning until the artifact was read: other words on the way would be one write more per version.
const READING: &str = "the artifact is being read";

/// A decision with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is to be done.
    pub intent: Intent,
    /// What is known.
    pub verification: Verification,
    /// When to look again, where nothing happens before.
    pub again: Duration,
}

/// Wait before the second try; doubled with each one.
const FIRST_DELAY: Duration = Duration::from_secs(5);
/// Longest wait before a try. Below the time for which a finished Job is kept, since the Job is the count of the tries.
const LONGEST_DELAY: Duration = Duration::from_secs(240);
/// Seconds for which a finished Job is kept.
pub const JOB_TTL_SECONDS: i32 = 600;
/// Tries after which somebody has to look; they go on, slowly, since a storage that was away comes back.
const TRIES_BEFORE_BLOCKED: u32 = 5;
/// When to look again while a Job works.
const WAITING: Duration = Duration::from_secs(10);
/// When to look again where nothing is expected.
const QUIET: Duration = Duration::from_secs(60);

/// The wait before the try that follows this many: 5, 10, 20 … 240 s.
#[must_use]
pub fn delay(tries: u32) -> Duration {
    FIRST_DELAY
        .saturating_mul(1 << tries.saturating_sub(1).min(6))
        .min(LONGEST_DELAY)
}

/// What the verification needs now. `known` is what the status says already: the artifact is read once, and again only
/// where that was lost. `latest` is the last try whose Job is there.
#[must_use]
pub fn decide(known: Option<&Verification>, latest: Option<&TryView>, now: Timestamp) -> Decision {
    if let Some(known @ (Verification::Verified { .. } | Verification::Failed { .. })) = known {
        return Decision {
            intent: Intent::Wait,
            verification: known.clone(),
            again: QUIET,
        };
    }
    let pending = |reason: &str, message: String, outlook| Verification::Pending {
        reason: reason.to_owned(),
        message,
        outlook,
    };
    let Some(latest) = latest else {
        return Decision {
            intent: Intent::Verify { number: 1 },
            verification: pending(reasons::VERIFYING, READING.to_owned(), Outlook::Working),
            again: WAITING,
        };
    };
    let waiting = |reason: &str, message: &str, outlook| Decision {
        intent: Intent::Wait,
        verification: pending(reason, message.to_owned(), outlook),
        again: WAITING,
    };
    match &latest.state {
        AttemptState::NoPod { refused: Some(message) } => waiting(
            reasons::POD_CREATION_FAILED,
            &format!(
                "the verifying pod cannot be made: {}. It is tried again by itself, so {}",
                message.trim_end_matches('.'),
                of_refusal(PodsOf::ModelVersion, message)
            ),
            Outlook::Blocked,
        ),
        AttemptState::Blocked { reason, message } => waiting(reason, message, Outlook::Blocked),
        AttemptState::NoPod { refused: None }
        | AttemptState::Unscheduled
        | AttemptState::Starting
        | AttemptState::Running
        | AttemptState::Ending(_) => {
            // What went wrong stays said until a try ends otherwise: users would see it only between two tries.
            let before = latest
                .before
                .as_ref()
                .map(|ended| outcome(latest.number.saturating_sub(1), ended));
            match before {
                Some(verification @ Verification::Pending { .. }) => Decision {
                    intent: Intent::Wait,
                    verification,
                    again: WAITING,
                },
                _ => waiting(reasons::VERIFYING, READING, Outlook::Working),
            }
        }
        AttemptState::Ended(ended) => after(latest, ended, now),
    }
}

/// What was verified, for people.
fn told(verified: &Verified) -> String {
    let Verified { files, bytes, .. } = verified;
    let mut message = format!("{files} files, {bytes} bytes: all as the digest says");
    match (verified.reproduced, &verified.receipt) {
        (Some(r), _) => {
            message += &format!(
                "; {} of {} answers of the evaluation sample reproduced, {} of them right ({} as recorded)",
                r.same, r.texts, r.right, r.recorded_right
            );
        }
        (None, Some(_)) => message += "; it loads and answers, and has no evaluation sample to compare with",
        // An image of an earlier release loads nothing.
        (None, None) => {}
    }
    match &verified.receipt {
        Some(ReceiptFate::Kept) | None => {}
        Some(ReceiptFate::OfAnother) => {
            message += "; version.json beside it is another version's, which an import would make";
        }
        Some(ReceiptFate::NotWritten(problem)) => {
            message += &format!(
                "; no version.json could be written beside it, so an import of the bucket takes --model and --version ({problem})"
            )
        }
    }
    message
}

/// What a try that ended says of the artifact.
fn outcome(number: u32, ended: &EndedAttempt) -> Verification {
    let (reason, message) = match &ended.end {
        End::Told(Outcome::Verified(verified)) => {
            return Verification::Verified {
                message: told(verified),
            };
        }
        // Keys can be mended or rotated while the version stays as it is, so a refusal is asked about again.
        End::Told(Outcome::Failed(failure))
            if failure.reason.class() == FailureClass::User && failure.reason != FailureReason::StorageForbidden =>
        {
            return Verification::Failed {
                reason: failure.reason.as_str().to_owned(),
                message: format!(
                    "{}. Then delete this ModelVersion and make it again",
                    failure.message.trim_end_matches('.')
                ),
            };
        }
        End::Told(Outcome::Failed(failure)) => (failure.reason.as_str(), failure.message.clone()),
        End::Told(Outcome::Trained(_) | Outcome::Assisted | Outcome::Imported(_) | Outcome::Pruned(_)) => (
            reasons::POD_FAILED,
            "the pod ended with a message that no verification gives; see verifierImage in the operator's settings"
                .to_owned(),
        ),
        End::OutOfMemory => (
            reasons::OUT_OF_MEMORY,
            "the verifying container used more memory than its limit: it loads the weights, which takes twice their length and \
             300 MiB. Raise verifierMemory of the chart; see also LimitRange of the namespace"
                .to_owned(),
        ),
        End::Unclear { message } => (reasons::POD_FAILED, message.clone()),
        End::Lost { how }
        | End::Hung { how }
        | End::GpuFault { how }
        | End::NoRoom { how, .. }
        | End::NoImage { how, .. } => {
            (reasons::POD_LOST, how.clone())
        }
    };
    Verification::Pending {
        reason: reason.to_owned(),
        message: format!(
            "the artifact could not be read: {}. It is tried again by itself",
            message.trim_end_matches('.')
        ),
        outlook: if number >= TRIES_BEFORE_BLOCKED {
            Outlook::Blocked
        } else {
            Outlook::Working
        },
    }
}

fn after(latest: &TryView, ended: &EndedAttempt, now: Timestamp) -> Decision {
    let verification = outcome(latest.number, ended);
    if !matches!(verification, Verification::Pending { .. }) {
        return Decision {
            intent: Intent::Wait,
            verification,
            again: QUIET,
        };
    }
    let passed = now.duration_since(ended.at.unwrap_or(latest.created));
    let wait = if passed.is_negative() {
        delay(latest.number)
    } else {
        delay(latest.number).saturating_sub(passed.unsigned_abs())
    };
    Decision {
        intent: if wait.is_zero() {
            Intent::Verify {
                number: latest.number.saturating_add(1),
            }
        } else {
            Intent::Wait
        },
        verification,
        again: if wait.is_zero() { WAITING } else { wait.min(QUIET) },
    }
}

#[cfg(test)]
mod tests {
    use flywheel_contract::failure::Failure;
    use flywheel_contract::termination::Reproduced;

    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    fn end_at(end: End, seconds: i64) -> EndedAttempt {
        EndedAttempt {
            end,
            at: Some(at(seconds)),
            position: None,
            told_by: None,
        }
    }

    fn ended(number: u32, end: End, seconds: i64) -> TryView {
        TryView {
            number,
            created: at(-900),
            state: AttemptState::Ended(end_at(end, seconds)),
            before: None,
        }
    }

    fn runs(number: u32, before: Option<End>) -> TryView {
        TryView {
            number,
            created: at(-9),
            state: AttemptState::Running,
            before: before.map(|end| end_at(end, -20)),
        }
    }

    fn failed(reason: FailureReason) -> End {
        End::Told(Outcome::Failed(Failure::new(reason, "words.")))
    }

    fn kind(verification: &Verification) -> (&str, &str) {
        match verification {
            Verification::Pending { reason, outlook, .. } => match outlook {
                Outlook::Working => ("Pending", reason),
                Outlook::Blocked => ("Blocked", reason),
                Outlook::Stalled => ("Stalled", reason),
            },
            Verification::Verified { .. } => ("Verified", ""),
            Verification::Failed { reason, .. } => ("Failed", reason),
        }
    }

    #[test]
    fn each_try_has_its_verdict() {
        let verified = End::Told(Outcome::Verified(Verified {
            files: 7,
            bytes: 9,
            ..Verified::default()
        }));
        type Row<'a> = (&'a str, Option<TryView>, Intent, (&'a str, &'a str));
        let table: Vec<Row<'_>> = vec![
            ("new", None, Intent::Verify { number: 1 }, ("Pending", "Verifying")),
            ("verified", Some(ended(1, verified, -1)), Intent::Wait, ("Verified", "")),
            (
                "wrong digest",
                Some(ended(1, failed(FailureReason::DigestMismatch), -1)),
                Intent::Wait,
                ("Failed", "DigestMismatch"),
            ),
            (
                "storage away",
                Some(ended(1, failed(FailureReason::StorageUnavailable), -4)),
                Intent::Wait,
                ("Pending", "StorageUnavailable"),
            ),
            (
                "storage away, waited",
                Some(ended(1, failed(FailureReason::StorageUnavailable), -5)),
                Intent::Verify { number: 2 },
                ("Pending", "StorageUnavailable"),
            ),
            (
                "keys refused: they may be mended",
                Some(ended(1, failed(FailureReason::StorageForbidden), -5)),
                Intent::Verify { number: 2 },
                ("Pending", "StorageForbidden"),
            ),
            ("read", Some(runs(1, None)), Intent::Wait, ("Pending", "Verifying")),
            (
                "read again: what went wrong stays said",
                Some(runs(2, Some(failed(FailureReason::StorageForbidden)))),
                Intent::Wait,
                ("Pending", "StorageForbidden"),
            ),
            (
                "read again, and the Job before is gone",
                Some(runs(9, None)),
                Intent::Wait,
                ("Pending", "Verifying"),
            ),
            (
                "read a sixth time",
                Some(runs(6, Some(failed(FailureReason::StorageUnavailable)))),
                Intent::Wait,
                ("Blocked", "StorageUnavailable"),
            ),
            (
                "storage long away",
                Some(ended(5, failed(FailureReason::StorageUnavailable), -79)),
                Intent::Wait,
                ("Blocked", "StorageUnavailable"),
            ),
            (
                "lost",
                Some(ended(2, End::Lost { how: "deleted".into() }, -10)),
                Intent::Verify { number: 3 },
                ("Pending", "PodLost"),
            ),
        ];
        for (case, latest, intent, verdict) in table {
            let decision = decide(None, latest.as_ref(), at(0));
            assert_eq!(decision.intent, intent, "{case}");
            assert_eq!(kind(&decision.verification), verdict, "{case}");
        }
    }

    #[test]
    fn what_was_verified_is_told_with_what_could_not_be_done() {
        let verified = |reproduced, receipt| {
            told(&Verified {
                files: 8,
                bytes: 99,
                reproduced,
                receipt,
            })
        };
        let sample = Reproduced {
            texts: 200,
            same: 199,
            right: 188,
            recorded_right: 187,
        };
        let message = verified(Some(sample), Some(ReceiptFate::Kept));
        assert_eq!(
            message,
            "8 files, 99 bytes: all as the digest says; 199 of 200 answers of the evaluation sample reproduced, 188 of them right \
             (187 as recorded)"
        );
        for (receipt, words) in [
            (None, "as the digest says"),
            (Some(ReceiptFate::Kept), "has no evaluation sample"),
            (
                Some(ReceiptFate::OfAnother),
                "version.json beside it is another version's",
            ),
            (
                Some(ReceiptFate::NotWritten("read only".to_owned())),
                "--version (read only)",
            ),
        ] {
            let message = verified(None, receipt);
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_service_keeps_its_version_unless_nothing_of_it_can_be_made() {
        let table = [
            ("runs", None, 2, true),
            ("scaled to zero, or waits", None, 0, true),
            ("to be corrected", Some("UnknownAcceleratorClass"), 0, true),
            ("its name is taken", Some("NameTaken"), 0, false),
            ("its name was taken while it ran", Some("NameTaken"), 1, true),
        ];
        for (case, stalled, pods, expected) in table {
            assert_eq!(keeps(&ServiceView { stalled, pods }), expected, "{case}");
        }
    }

    #[test]
    fn what_is_known_is_not_read_again() {
        for known in [
            Verification::Verified { message: "m".into() },
            Verification::Failed {
                reason: "DigestMismatch".into(),
                message: "m".into(),
            },
        ] {
            let decision = decide(Some(&known), None, at(0));
            assert_eq!((decision.intent, decision.verification), (Intent::Wait, known));
        }
    }

    #[test]
    fn a_finished_job_outlives_the_longest_wait() {
        assert!(u64::try_from(JOB_TTL_SECONDS).unwrap() > 2 * LONGEST_DELAY.as_secs());
        let seconds: Vec<u64> = (1..9).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 240, 240]);
    }
}
