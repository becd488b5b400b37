//! When a service is trained anew.
//!
//! What is remembered are the TrainingJobs that were made for it: their number is in their names, so that two operators, or one that
//! has not seen yet what it made, make the same job and not two; their times are cooldown and weekly limit; what came of them opens
//! the circuit. Who deletes them is taken at their word.
//!
//! A training is due because somebody asked for it, because of the clock, or because texts have drifted, in this order. What somebody
//! asks for waits for no limit, only for one that runs.

use std::time::Duration;

use flywheel_api::conditions::{Desired, Status, reasons, types};
use flywheel_api::retraining::Retrain;
use jiff::{SignedDuration, Timestamp};

use crate::schedule::{Schedule, TIME_ZONE};

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
    /// The value of `retrain.requested` that it was made for.
    pub requested: Option<String>,
    /// The time of the schedule that it was made for.
    pub scheduled: Option<Timestamp>,
}

/// What came of a TrainingJob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// It waits for somebody to mend what the words say.
    Stalled(String),
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

/// Whether texts have drifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift<'a> {
    /// It is not looked for.
    Unwatched,
    /// This operator has not looked yet.
    Unknown,
    /// Not as far as is known.
    None,
    /// They have, for this reason.
    Found(&'a str),
}

/// What was noted of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Its expression.
    pub schedule: String,
    /// Its time zone.
    pub time_zone: String,
    /// Times up to this one are over.
    pub since: Timestamp,
    /// The next one.
    pub next: Timestamp,
}

/// What there is.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// `spec.retrain`.
    pub spec: &'a Retrain,
    /// Whether texts have drifted, or answers are right less often.
    pub drift: Drift<'a>,
    /// The TrainingJob to be like is there.
    pub template: bool,
    /// Predictions of the version that answers of which clients said what would have been right, since the drift began.
    pub judged: u64,
    /// The jobs that were made, in any order.
    pub made: &'a [Made],
    /// What was noted of the schedule. Where it is lost, times before now are over.
    pub noted: Option<&'a Noted>,
    /// Now.
    pub now: Timestamp,
}

/// A job to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its number.
    pub number: u32,
    /// Why, for people.
    pub cause: String,
    /// The value of `retrain.requested` that it is made for.
    pub requested: Option<String>,
    /// The time of the schedule that it is made for: the first of those that have passed.
    pub scheduled: Option<Timestamp>,
}

/// What to do and to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The job to make, where one is.
    pub start: Option<Start>,
    /// The condition.
    pub condition: Desired,
    /// What to note of the schedule; none where there is none that can be read.
    pub noted: Option<Noted>,
    /// When to look again, where nothing happens before.
    pub again: Option<Duration>,
}

/// The schedule now: what to note of it, and the first of its times that has passed and that no training has heeded. Any training that
/// began after a time has heeded it.
fn scheduled(view: &View<'_>) -> Result<Option<(Noted, Option<Timestamp>)>, String> {
    let Some(expression) = &view.spec.schedule else {
        return Ok(None);
    };
    let time_zone = view.spec.time_zone.as_deref().unwrap_or(TIME_ZONE);
    let schedule = Schedule::parse(expression, time_zone)?;
    let known = view
        .noted
        .filter(|noted| noted.schedule == *expression && noted.time_zone == time_zone);
    let heeded = view.made.iter().flat_map(|made| [Some(made.created), made.scheduled]);
    let since = known.map_or(view.now, |noted| noted.since);
    let since = heeded.flatten().fold(since, Timestamp::max);
    let never = || format!("retrain.schedule: {expression} names a time that never comes; correct it");
    let passed = schedule.after(since).ok_or_else(never)?;
    let noted = Noted {
        schedule: expression.clone(),
        time_zone: time_zone.to_owned(),
        since,
        next: schedule.after(view.now).ok_or_else(never)?,
    };
    Ok(Some((noted, (passed <= view.now).then_some(passed))))
}

/// What a service needs now.
#[must_use]
pub fn decide(view: &View<'_>) -> Decision {
    let (schedule, unreadable) = match scheduled(view) {
        Ok(schedule) => (schedule, None),
        Err(problem) => (None, Some(problem)),
    };
    let (noted, passed) = schedule.unzip();
    let mut decision = by_rules(view, noted.as_ref(), passed.flatten(), unreadable);
    let next = noted.as_ref().map(|noted| noted.next);
    let next = next.map(|next| Duration::try_from(next.duration_since(view.now)).unwrap_or_default());
    decision.again = decision.again.into_iter().chain(next).min();
    decision.noted = noted.map(|noted| Noted {
        // Its time is heeded, whatever the API server's clock says of when the job was made.
        since: if decision.start.is_some() {
            noted.since.max(view.now)
        } else {
            noted.since
        },
        ..noted
    });
    decision
}

/// `passed`: the time of the schedule that is due; `unreadable`: what is wrong with it.
fn by_rules(view: &View<'_>, noted: Option<&Noted>, passed: Option<Timestamp>, unreadable: Option<String>) -> Decision {
    let mut made: Vec<&Made> = view.made.iter().collect();
    made.sort_by_key(|made| made.number);
    let say = |status, reason, message: String, again: Option<Timestamp>| Decision {
        start: None,
        condition: Desired::new(types::RETRAINING, status, reason, message),
        noted: None,
        again: again.map(|at| Duration::try_from(at.duration_since(view.now)).unwrap_or_default()),
    };
    let last = made.last().copied();
    if let Some(running) = made.iter().rev().find(|made| made.outcome == Outcome::Running) {
        let message = format!("TrainingJob {} learns what has changed", running.name);
        return say(Status::True, reasons::RETRAINING_RUNNING, message, None);
    }
    let stalled = made.iter().rev().find_map(|made| match &made.outcome {
        Outcome::Stalled(why) => Some((&made.name, why)),
        _ => None,
    });
    if let Some((name, why)) = stalled {
        let message = format!(
            "TrainingJob {name} cannot go on: {}. Mend that, or delete it, and another one can begin",
            why.trim_end_matches('.')
        );
        return say(Status::False, reasons::RETRAINING_STOPPED, message, None);
    }
    let asked = view.spec.requested.as_ref();
    let asked = asked.filter(|word| made.iter().all(|made| made.requested.as_ref() != Some(word)));
    let cause = match (asked, passed, noted, view.drift) {
        (Some(word), ..) => format!("retrain.requested is {word}"),
        (None, Some(time), Some(noted), _) => {
            format!(
                "{time:.0} has come, by the schedule {} ({})",
                noted.schedule, noted.time_zone
            )
        }
        (.., Drift::Found(cause)) => cause.to_owned(),
        _ => {
            let (status, reason, words) = match (unreadable, view.drift) {
                (Some(problem), _) => (Status::False, reasons::INVALID_SCHEDULE, problem),
                (None, Drift::Unknown) => (
                    Status::Unknown,
                    reasons::NO_DATA,
                    "the pods were not asked yet whether texts have drifted".to_owned(),
                ),
                (None, Drift::Unwatched) => (Status::False, reasons::NOT_DUE, "no training is due".to_owned()),
                (None, _) => (
                    Status::False,
                    reasons::NO_DRIFT,
                    "the texts have not drifted, as far as is known".to_owned(),
                ),
            };
            let next = noted.map(|noted| format!("; the next one by the schedule is due at {:.0}", noted.next));
            return say(status, reason, words + &next.unwrap_or_default(), None);
        }
    };
    if !view.template {
        let message = format!(
            "there is no TrainingJob {} to be like; apply it, with suspend: true if it is not to run itself, or correct \
             retrain.trainingJob",
            view.spec.training_job
        );
        return say(Status::False, reasons::TRAINING_JOB_NOT_FOUND, message, None);
    }
    let held = match (asked, passed) {
        (Some(_), _) => None,
        (None, passed) => limited(view, &made, passed.is_none().then_some(cause.as_str())),
    };
    if let Some((reason, message, again)) = held {
        return say(Status::False, reason, message, again);
    }
    let message = format!("a TrainingJob is made: {cause}");
    Decision {
        start: Some(Start {
            number: last.map_or(1, |last| last.number.saturating_add(1)),
            cause,
            requested: asked.cloned(),
            scheduled: passed.filter(|_| asked.is_none()),
        }),
        ..say(Status::True, reasons::RETRAINING_RUNNING, message, None)
    }
}

/// The limit that holds a training back which nobody asked for: reason, message, and when it does not any more. `made` by number;
/// `drift`: why texts have drifted, where that is why it is due.
fn limited(view: &View<'_>, made: &[&Made], drift: Option<&str>) -> Option<(&'static str, String, Option<Timestamp>)> {
    let last = made.last().copied();
    if let Some(Outcome::Version { name, fate: Fate::Open }) = last.map(|last| &last.outcome) {
        let message = format!(
            "ModelVersion {name} came of the last retraining and does not answer all requests yet; without autoUpdate set \
             modelVersion to it, or delete it"
        );
        return Some((reasons::NEWER_VERSION, message, None));
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
             mend it, and delete that TrainingJob, or ask for one with kubectl flywheel retrain",
            last.name
        );
        return Some((reasons::RETRAINING_STOPPED, message, None));
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
        return Some((reasons::COOLDOWN, message, Some(free)));
    }
    let week_ago = view.now.checked_sub(WEEK).unwrap_or(Timestamp::MIN);
    let lately: Vec<&&Made> = made.iter().filter(|made| made.created > week_ago).collect();
    let most = usize::try_from(view.spec.max_per_week).unwrap_or(usize::MAX);
    if lately.len() >= most
        && let Some(free) = lately
            .get(lately.len() - most)
            .and_then(|first| first.created.checked_add(WEEK).ok())
    {
        let message = format!("{most} retrainings began in seven days; the next may at {free:.0}");
        return Some((reasons::WEEKLY_LIMIT_REACHED, message, Some(free)));
    }
    if let (Some(needed), Some(cause)) = (view.spec.min_feedback, drift)
        && view.judged < u64::try_from(needed).unwrap_or(0)
    {
        let message = format!(
            "training anew is called for ({cause}); since that began clients said of {} predictions what would have been right, and minFeedback is {needed}",
            view.judged
        );
        return Some((reasons::WAITING_FOR_FEEDBACK, message, None));
    }
    None
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
            schedule: None,
            time_zone: None,
            requested: None,
        }
    }

    fn made(number: u32, seconds: i64, outcome: Outcome) -> Made {
        Made {
            name: format!("s-retrain-{number}"),
            number,
            created: at(seconds),
            outcome,
            requested: None,
            scheduled: None,
        }
    }

    fn view<'a>(spec: &'a Retrain, drift: Drift<'a>, made: &'a [Made], now: Timestamp) -> View<'a> {
        View {
            spec,
            drift,
            template: true,
            judged: 0,
            made,
            noted: None,
            now,
        }
    }

    fn version(fate: Fate) -> Outcome {
        Outcome::Version {
            name: "v".to_owned(),
            fate,
        }
    }

    fn decided(drift: Option<&str>, template: bool, made: &[Made]) -> (Option<u32>, String, Option<u64>) {
        let spec = spec();
        let decision = decide(&View {
            template,
            ..view(&spec, drift.map_or(Drift::None, Drift::Found), made, at(0))
        });
        (
            decision.start.map(|start| start.number),
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
        let table: [Row; 12] = [
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
                "one is stalled, and yet one is asked for",
                drift,
                true,
                vec![made(1, -9 * DAY, Outcome::Stalled("its incumbent is gone.".to_owned()))],
                (None, "RetrainingStopped", None),
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
                judged,
                ..view(&spec, Drift::Found("d"), &[], at(0))
            });
            assert_eq!(decision.condition.reason, reason);
            assert_eq!(decision.start.is_some(), judged == 50);
        }
    }

    /// `at(0)` is eight o'clock on a Friday.
    fn by_clock(schedule: &str) -> Retrain {
        Retrain {
            schedule: Some(schedule.to_owned()),
            ..spec()
        }
    }

    fn noted(schedule: &str, since: i64) -> Noted {
        Noted {
            schedule: schedule.to_owned(),
            time_zone: "Etc/UTC".to_owned(),
            since: at(since),
            next: at(0),
        }
    }

    #[test]
    fn the_clock_makes_one_training_however_many_times_have_passed() {
        const HOUR: i64 = 3600;
        let (hourly, weekly) = ("30 * * * *", "0 7 * * 5");
        let served = |number, seconds| made(number, seconds, version(Fate::Served));
        type Row = (
            &'static str,
            &'static str,
            Option<Noted>,
            Vec<Made>,
            (Option<i64>, &'static str),
        );
        let table: [Row; 12] = [
            ("newly set", hourly, None, vec![], (None, "NotDue")),
            (
                "set when it said something else",
                hourly,
                Some(noted(weekly, -9 * DAY)),
                vec![],
                (None, "NotDue"),
            ),
            (
                "the time has come",
                hourly,
                Some(noted(hourly, -HOUR)),
                vec![],
                (Some(-HOUR / 2), "RetrainingRunning"),
            ),
            (
                "not yet",
                hourly,
                Some(noted(hourly, -HOUR / 2)),
                vec![],
                (None, "NotDue"),
            ),
            (
                "nobody looked for days",
                hourly,
                Some(noted(hourly, -3 * DAY)),
                vec![],
                (Some(-3 * DAY + HOUR / 2), "RetrainingRunning"),
            ),
            (
                "what was noted is lost",
                hourly,
                None,
                vec![served(1, -3 * DAY)],
                (None, "NotDue"),
            ),
            (
                "one began after it",
                weekly,
                Some(noted(weekly, -DAY)),
                vec![served(1, -HOUR / 2)],
                (None, "NotDue"),
            ),
            (
                "one was made for it, by a clock that is behind",
                weekly,
                Some(noted(weekly, -DAY)),
                vec![Made {
                    scheduled: Some(at(-HOUR)),
                    ..served(1, -HOUR - 5)
                }],
                (None, "NotDue"),
            ),
            (
                "one runs",
                weekly,
                Some(noted(weekly, -DAY)),
                vec![made(1, -2 * DAY, Outcome::Running)],
                (None, "RetrainingRunning"),
            ),
            (
                "too soon",
                weekly,
                Some(noted(weekly, -DAY)),
                vec![served(1, -DAY + 60)],
                (None, "Cooldown"),
            ),
            (
                "two came to nothing",
                weekly,
                Some(noted(weekly, -DAY)),
                vec![made(1, -20 * DAY, Outcome::Failed), made(2, -10 * DAY, Outcome::Failed)],
                (None, "RetrainingStopped"),
            ),
            (
                "its version comes",
                weekly,
                Some(noted(weekly, -DAY)),
                vec![made(1, -2 * DAY, version(Fate::Open))],
                (None, "NewerVersion"),
            ),
        ];
        for (case, schedule, noted, made, (start, reason)) in table {
            let spec = Retrain {
                // Waited for where a drift is the cause.
                min_feedback: Some(50),
                ..by_clock(schedule)
            };
            let fresh = noted.as_ref().is_none_or(|noted| noted.schedule != schedule);
            let decision = decide(&View {
                noted: noted.as_ref(),
                ..view(&spec, Drift::Unwatched, &made, at(0))
            });
            let scheduled = decision.start.as_ref().map(|start| start.scheduled);
            assert_eq!(scheduled, start.map(|time| Some(at(time))), "{case}");
            assert_eq!(decision.condition.reason, reason, "{case}");
            // Whatever holds it back, the next time is looked at, and a time that was heeded is noted as over.
            let next = if schedule == hourly { HOUR / 2 } else { 7 * DAY - HOUR };
            assert!(
                decision.again.unwrap().as_secs() <= u64::try_from(next).unwrap(),
                "{case}"
            );
            let noted = decision.noted.unwrap();
            assert_eq!(noted.next, at(next), "{case}");
            assert_eq!(noted.since == at(0), start.is_some() || fresh, "{case}");
        }
    }

    #[test]
    fn a_schedule_that_cannot_be_read_says_so_and_hinders_nothing_else() {
        for (schedule, words) in [
            ("0 25 * * *", "0 25 * * * cannot be read"),
            ("0 0 30 2 *", "a time that never comes"),
        ] {
            let spec = by_clock(schedule);
            let decision = decide(&view(&spec, Drift::None, &[], at(0)));
            assert_eq!(decision.condition.reason, "InvalidSchedule");
            assert!(
                decision.condition.message.contains(words),
                "{}",
                decision.condition.message
            );
            assert_eq!(decision.noted, None);
            assert!(decide(&view(&spec, Drift::Found("d"), &[], at(0))).start.is_some());
        }
        let spec = Retrain {
            time_zone: Some("Europe/Nowhere".to_owned()),
            ..by_clock("0 3 * * *")
        };
        let decision = decide(&view(&spec, Drift::None, &[], at(0)));
        assert!(
            decision.condition.message.contains("is no time zone"),
            "{}",
            decision.condition.message
        );
    }

    #[test]
    fn who_asks_gets_one_training_for_each_word() {
        let spec = Retrain {
            requested: Some("now".to_owned()),
            min_feedback: Some(50),
            ..spec()
        };
        let of = |requested: &str, outcome: Outcome| Made {
            requested: Some(requested.to_owned()),
            ..made(4, -60, outcome)
        };
        let table = [
            ("first", vec![], Some(1)),
            ("done", vec![of("now", version(Fate::Served))], None),
            ("failed", vec![of("now", Outcome::Failed)], None),
            (
                "another word, past the cooldown",
                vec![of("before", version(Fate::Served))],
                Some(5),
            ),
            (
                "its version is not taken yet",
                vec![of("before", version(Fate::Open))],
                Some(5),
            ),
            (
                "three in a week, two of them for nothing",
                vec![
                    made(1, -900, version(Fate::Served)),
                    made(2, -600, Outcome::Failed),
                    of("before", Outcome::Failed),
                ],
                Some(5),
            ),
            ("while one runs", vec![of("before", Outcome::Running)], None),
        ];
        for (case, made, start) in table {
            for drift in [Drift::Unwatched, Drift::Unknown, Drift::None] {
                let decision = decide(&view(&spec, drift, &made, at(0)));
                assert_eq!(decision.start.as_ref().map(|start| start.number), start, "{case}");
                if let Some(start) = decision.start {
                    assert_eq!(start.requested.as_deref(), Some("now"));
                }
            }
        }
        let decision = decide(&View {
            template: false,
            ..view(&spec, Drift::None, &[], at(0))
        });
        assert_eq!(decision.condition.reason, "TrainingJobNotFound");
    }

    #[test]
    fn without_a_look_at_the_pods_nothing_is_said_of_drift() {
        let spec = spec();
        for (drift, reason) in [
            (Drift::Unknown, "NoData"),
            (Drift::Unwatched, "NotDue"),
            (Drift::None, "NoDrift"),
        ] {
            let decision = decide(&view(&spec, drift, &[], at(0)));
            assert_eq!((decision.condition.reason.as_str(), decision.again), (reason, None));
        }
    }

    proptest! {
        /// However long it goes on and whatever comes of it: never two at once, never sooner than the cooldown, never more than the
        /// week allows, and never with a number that was there.
        #[test]
        fn the_limits_hold_at_any_time(
            steps in prop::collection::vec((0_i64..3 * DAY, 0_u8..5, any::<bool>(), any::<bool>()), 1..120),
        ) {
            let (mut all, mut now, mut noted): (Vec<Made>, i64, Option<Noted>) = (Vec::new(), 0, None);
            for (pass, outcome, drifts, forgets) in steps {
                now += pass;
                if let Some(last) = all.last_mut() {
                    last.outcome = match outcome {
                        0 => Outcome::Failed,
                        1 => version(Fate::Refused),
                        2 => Outcome::Running,
                        _ => version(Fate::Served),
                    };
                }
                let spec = by_clock("0 */5 * * *");
                let drift = if drifts { Drift::Found("d") } else { Drift::None };
                // Another operator, whose status was lost.
                noted = noted.filter(|_| !forgets);
                let decision = decide(&View { noted: noted.as_ref(), ..view(&spec, drift, &all, at(now)) });
                // What is decided twice from the same is the same job.
                prop_assert_eq!(&decision, &decide(&View { noted: noted.as_ref(), ..view(&spec, drift, &all, at(now)) }));
                noted = decision.noted;
                let Some(Start { number, scheduled, .. }) = decision.start else { continue };
                if let Some(time) = scheduled {
                    prop_assert!(time <= at(now) && all.iter().all(|made| made.created < time), "heeded already");
                } else {
                    prop_assert!(drifts);
                }
                prop_assert!(all.iter().all(|made| made.number < number && made.outcome != Outcome::Running));
                prop_assert!(all.iter().all(|made| at(now).duration_since(made.created).as_secs() >= DAY));
                let lately = all.iter().filter(|made| at(now).duration_since(made.created) < WEEK);
                prop_assert!(lately.count() < 3);
                all.push(made(number, now, Outcome::Running));
            }
        }
    }
}
