//! When a service is trained anew.
//!
//! What is remembered are the TrainingJobs that were made for it: their number is in their names, so that two operators, or one that
//! has not seen yet what it made, make the same job and not two; their times are cooldown and weekly limit; what came of them opens
//! the circuit. Who deletes them is taken at their word.

use std::time::Duration;

use flywheel_api::conditions::{Desired, Status, reasons, types};
use flywheel_api::retraining::Retrain;
use jiff::{SignedDuration, Timestamp};

/// Retrainings one after another that came to nothing, after which no other one begins by itself.
const FRUITLESS: usize = 2;
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A TrainingJob that was made for the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Its number, from 1.
    pub number: u32,
    /// When it was made.
    pub created: Timestamp,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a TrainingJob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// It ended without a result.
    Failed,
    /// A version came of it.
    Version {
        /// Its name.
        name: String,
        /// How it stands.
        fate: Fate,
    },
}

/// How a version stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is being verified, may be taken, or comes.
    Open,
    /// The service answers with it, or did.
    Served,
    /// It failed its verification or its gates, was rejected, or is gone.
    Refused,
}

/// What there is.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// `spec.retrain`.
    pub spec: &'a Retrain,
    /// Why the texts are said to have drifted, or answers to be right less often, where they are.
    pub drift: Option<&'a str>,
    /// The TrainingJob to be like is there.
    pub template: bool,
    /// Predictions of the version that answers of which clients said what would have been right.
    pub judged: u64,
    /// The jobs that were made, in any order.
    pub made: &'a [Made],
    /// Now.
    pub now: Timestamp,
}

/// What to do and to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Number of the job to make, where one is.
    pub start: Option<u32>,
    /// The condition.
    pub condition: Desired,
    /// When to look again, where nothing happens before.
    pub again: Option<Duration>,
}

/// What a service needs now.
#[must_use]
pub fn decide(view: &View<'_>) -> Decision {
    let mut made: Vec<&Made> = view.made.iter().collect();
    made.sort_by_key(|made| made.number);
    let say = |status, reason, message: String, again: Option<Timestamp>| Decision {
        start: None,
        condition: Desired::new(types::RETRAINING, status, reason, message),
        again: again.map(|at| Duration::try_from(at.duration_since(view.now)).unwrap_or_default()),
    };
    let last = made.last().copied();
    if let Some(running) = made.iter().rev().find(|made| made.outcome == Outcome::Running) {
        let message = format!("TrainingJob {} learns what has changed", running.name);
        return say(Status::True, reasons::RETRAINING_RUNNING, message, None);
    }
    let Some(cause) = view.drift else {
        let message = "the texts have not drifted, as far as is known".to_owned();
        return say(Status::False, reasons::NO_DRIFT, message, None);
    };
    if let Some(Outcome::Version { name, fate: Fate::Open }) = last.map(|last| &last.outcome) {
        let message = format!(
            "ModelVersion {name} came of the last retraining and does not answer all requests yet; without autoUpdate set \
             modelVersion to it, or delete it"
        );
        return say(Status::False, reasons::NEWER_VERSION, message, None);
    }
    if !view.template {
        let message = format!(
            "there is no TrainingJob {} to be like; apply it, with suspend: true if it is not to run itself, or correct \
             retrain.trainingJob",
            view.spec.training_job
        );
        return say(Status::False, reasons::TRAINING_JOB_NOT_FOUND, message, None);
    }
    let fruitless = made.iter().rev().take_while(|made| {
        matches!(
            made.outcome,
            Outcome::Failed
                | Outcome::Version {
                    fate: Fate::Refused,
                    ..
                }
        )
    });
    if let Some(last) = last
        && fruitless.count() >= FRUITLESS
    {
        let message = format!(
            "the last {FRUITLESS} retrainings came to nothing, so none begins by itself. See what TrainingJob {} or its version says, \
             mend it, and delete that TrainingJob",
            last.name
        );
        return say(Status::False, reasons::RETRAINING_STOPPED, message, None);
    }
    let cooldown = SignedDuration::from_secs(i64::from(view.spec.cooldown_seconds));
    let free = last.and_then(|last| last.created.checked_add(cooldown).ok());
    if let (Some(last), Some(free)) = (last, free)
        && free > view.now
    {
        let message = format!(
            "TrainingJob {} began at {:.0}; the next may at {free:.0}",
            last.name, last.created
        );
        return say(Status::False, reasons::COOLDOWN, message, Some(free));
    }
    let week_ago = view.now.checked_sub(WEEK).unwrap_or(Timestamp::MIN);
    let lately: Vec<&&Made> = made.iter().filter(|made| made.created > week_ago).collect();
    let most = usize::try_from(view.spec.max_per_week).unwrap_or(usize::MAX);
    if lately.len() >= most
        && let Some(free) = lately.first().and_then(|first| first.created.checked_add(WEEK).ok())
    {
        let message = format!("{most} retrainings began in seven days; the next may at {free:.0}");
        return say(Status::False, reasons::WEEKLY_LIMIT_REACHED, message, Some(free));
    }
    if let Some(needed) = view.spec.min_feedback
        && view.judged < u64::try_from(needed).unwrap_or(0)
    {
        let message = format!(
            "training anew is called for ({cause}); clients said of {} predictions what would have been right, and minFeedback are {needed}",
            view.judged
        );
        return say(Status::False, reasons::WAITING_FOR_FEEDBACK, message, None);
    }
    let number = last.map_or(1, |last| last.number.saturating_add(1));
    Decision {
        start: Some(number),
        ..say(
            Status::True,
            reasons::RETRAINING_RUNNING,
            format!("a TrainingJob is made: {cause}"),
            None,
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 24 * 3600;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    fn spec() -> Retrain {
        Retrain {
            training_job: "intent".to_owned(),
            cooldown_seconds: 86_400,
            max_per_week: 3,
            min_feedback: None,
        }
    }

    fn made(number: u32, seconds: i64, outcome: Outcome) -> Made {
        Made {
            name: format!("s-retrain-{number}"),
            number,
            created: at(seconds),
            outcome,
        }
    }

    fn version(fate: Fate) -> Outcome {
        Outcome::Version {
            name: "v".to_owned(),
            fate,
        }
    }

    fn decided(drift: Option<&str>, template: bool, made: &[Made]) -> (Option<u32>, String, Option<u64>) {
        let decision = decide(&View {
            spec: &spec(),
            drift,
            template,
            judged: 0,
            made,
            now: at(0),
        });
        (
            decision.start,
            decision.condition.reason,
            decision.again.map(|again| again.as_secs()),
        )
    }

    #[test]
    fn each_rule_in_turn() {
        let drift = Some("confidence");
        let served = |number, seconds| made(number, seconds, version(Fate::Served));
        type Row = (
            &'static str,
            Option<&'static str>,
            bool,
            Vec<Made>,
            (Option<u32>, &'static str, Option<u64>),
        );
        let table: [Row; 11] = [
            ("no drift", None, true, vec![], (None, "NoDrift", None)),
            ("drift", drift, true, vec![], (Some(1), "RetrainingRunning", None)),
            ("no template", drift, false, vec![], (None, "TrainingJobNotFound", None)),
            (
                "one runs",
                drift,
                true,
                vec![made(1, -9 * DAY, Outcome::Running)],
                (None, "RetrainingRunning", None),
            ),
            (
                "it goes on without drift",
                None,
                false,
                vec![made(1, 0, Outcome::Running)],
                (None, "RetrainingRunning", None),
            ),
            (
                "its version comes",
                drift,
                true,
                vec![made(1, -2 * DAY, version(Fate::Open))],
                (None, "NewerVersion", None),
            ),
            (
                "too soon",
                drift,
                true,
                vec![served(1, -DAY + 60)],
                (None, "Cooldown", Some(60)),
            ),
            (
                "late enough",
                drift,
                true,
                vec![served(1, -DAY)],
                (Some(2), "RetrainingRunning", None),
            ),
            (
                "three in a week",
                drift,
                true,
                vec![served(3, -2 * DAY), served(2, -4 * DAY), served(1, -6 * DAY)],
                (None, "WeeklyLimitReached", Some(86_400)),
            ),
            (
                "one came to nothing",
                drift,
                true,
                vec![served(1, -20 * DAY), made(2, -10 * DAY, Outcome::Failed)],
                (Some(3), "RetrainingRunning", None),
            ),
            (
                "two did",
                drift,
                true,
                vec![
                    served(1, -30 * DAY),
                    made(2, -20 * DAY, version(Fate::Refused)),
                    made(3, -10 * DAY, Outcome::Failed),
                ],
                (None, "RetrainingStopped", None),
            ),
        ];
        for (case, drift, template, made, expected) in table {
            let (start, reason, again) = decided(drift, template, &made);
            assert_eq!((start, reason.as_str(), again), expected, "{case}");
        }
    }

    #[test]
    fn labels_are_waited_for_where_the_spec_says_so() {
        let spec = Retrain {
            min_feedback: Some(50),
            ..spec()
        };
        for (judged, reason) in [(49, "WaitingForFeedback"), (50, "RetrainingRunning")] {
            let decision = decide(&View {
                spec: &spec,
                drift: Some("d"),
                template: true,
                judged,
                made: &[],
                now: at(0),
            });
            assert_eq!(decision.condition.reason, reason);
            assert_eq!(decision.start, (judged == 50).then_some(1));
        }
    }

    proptest! {
        /// However long it goes on and whatever comes of it: never two at once, never sooner than the cooldown, never more than the
        /// week allows, and never with a number that was there.
        #[test]
        fn the_limits_hold_at_any_time(steps in prop::collection::vec((0_i64..3 * DAY, 0_u8..5), 1..120)) {
            let (mut all, mut now): (Vec<Made>, i64) = (Vec::new(), 0);
            for (pass, outcome) in steps {
                now += pass;
                if let Some(last) = all.last_mut() {
                    last.outcome = match outcome {
                        0 => Outcome::Failed,
                        1 => version(Fate::Refused),
                        2 => Outcome::Running,
                        _ => version(Fate::Served),
                    };
                }
                let spec = spec();
                let view = View { spec: &spec, drift: Some("d"), template: true, judged: 0, made: &all, now: at(now) };
                let Some(number) = decide(&view).start else { continue };
                prop_assert!(all.iter().all(|made| made.number < number && made.outcome != Outcome::Running));
                prop_assert!(all.iter().all(|made| at(now).duration_since(made.created).as_secs() >= DAY));
                let lately = all.iter().filter(|made| at(now).duration_since(made.created) < WEEK);
                prop_assert!(lately.count() < 3);
                all.push(made(number, now, Outcome::Running));
            }
        }
    }
}
