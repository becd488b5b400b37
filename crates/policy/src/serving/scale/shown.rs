//! What status says of a service's load and size. It changes less often than what it is about: each change is a write.

use std::collections::VecDeque;
use std::time::Duration;

use flywheel_api::conditions::{Desired, Status, reasons, types};
use flywheel_api::inference_service::InferenceServiceSpec;
use flywheel_api::scaling::{LoadStatus, ScaleDecision, ScalingMode, ScalingStatus};
use jiff::Timestamp;

use super::{Decision, Figures, Goal, Objectives, Reason, held_again, objectives};

/// Least time between two changes that only tell of other figures.
const INTERVAL: Duration = Duration::from_secs(30);
/// A figure that moved by less says the same.
const MOVED: f64 = 0.1;

/// What status says.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// What the pods are asked, once that is known.
    pub load: Option<LoadStatus>,
    /// How many pods the load wants.
    pub scaling: Option<ScalingStatus>,
    /// `ScalingActive` and `ObjectivesMet`, as far as the spec wants them.
    pub conditions: Vec<Desired>,
    figures: Figures,
    at: Timestamp,
}

impl Shown {
    /// What status is to say after a decision; `None` where what it says is still good.
    #[must_use]
    pub fn next(
        before: Option<&Self>,
        spec: &InferenceServiceSpec,
        goal: &Goal,
        decision: &Decision,
        decisions: &VecDeque<ScaleDecision>,
        now: Timestamp,
    ) -> Option<Self> {
        let next = Self::of(before, spec, goal, decision, decisions, now);
        let due = before.is_none_or(|before| {
            next.gist() != before.gist()
                || (now.duration_since(before.at).unsigned_abs() >= INTERVAL && moved(&before.figures, &next.figures))
        });
        due.then_some(next)
    }

    fn of(
        before: Option<&Self>,
        spec: &InferenceServiceSpec,
        goal: &Goal,
        decision: &Decision,
        decisions: &VecDeque<ScaleDecision>,
        now: Timestamp,
    ) -> Self {
        let figures = &decision.figures;
        let mut conditions = Vec::new();
        if let Some(scaling) = &spec.scaling {
            conditions.push(scaling_active(scaling.mode, decision));
        }
        if spec.objectives.is_some() {
            let objectives = objectives(goal, decision);
            let told = before.and_then(|before| before.conditions.iter().find(|c| c.kind == types::OBJECTIVES_MET));
            let stays = told.filter(|told| lingers(told, &objectives, goal, figures));
            conditions.push(stays.cloned().unwrap_or_else(|| objectives_met(&objectives, figures)));
        }
        Self {
            load: figures.qps.map(|qps| LoadStatus {
                qps: two_digits(qps),
                concurrency: two_digits(figures.concurrency.unwrap_or(0.0)),
                latency_p99_milliseconds: figures.p99.map(milliseconds),
            }),
            scaling: spec.scaling.as_ref().map(|_| ScalingStatus {
                desired_replicas: i32::try_from(decision.replicas).unwrap_or(i32::MAX),
                target_per_replica: figures.per_replica.map(two_digits),
                capacity_per_replica: figures.capacity.filter(|_| figures.capacity_is_sure).map(two_digits),
                start_seconds: figures
                    .start_time
                    .map(|time| i32::try_from(time.as_secs().max(1)).unwrap_or(i32::MAX)),
                decisions: decisions.iter().cloned().collect(),
            }),
            conditions,
            figures: figures.clone(),
            at: now,
        }
    }

    /// What must be told at once.
    fn gist(&self) -> impl PartialEq {
        let conditions = self.conditions.iter().map(|c| (c.kind, c.status, c.reason.clone()));
        let scaling = self.scaling.as_ref();
        (
            conditions.collect::<Vec<_>>(),
            scaling.map(|s| s.desired_replicas),
            scaling.and_then(|s| s.decisions.first()).cloned(),
            self.load.is_some(),
        )
    }
}

fn scaling_active(mode: ScalingMode, decision: &Decision) -> Desired {
    let (status, reason) = match (decision.reason, mode) {
        (Reason::ScrapeBlocked, _) => (Status::False, reasons::SCRAPE_BLOCKED),
        (Reason::NoData, _) => (Status::Unknown, reasons::NO_DATA),
        (Reason::MaximumReached, _) => (Status::True, reasons::MAXIMUM_REACHED),
        (_, ScalingMode::Auto) => (Status::True, reasons::AS_EXPECTED),
        (_, ScalingMode::Observe) => (Status::True, reasons::OBSERVING),
    };
    Desired::new(types::SCALING_ACTIVE, status, reason, decision.why.clone())
}

/// Whether what was told of the objectives goes on to be: each change is a write, and what lies near a limit would change at each look.
fn lingers(told: &Desired, now: &Objectives, goal: &Goal, figures: &Figures) -> bool {
    let missed = told.reason == reasons::OBJECTIVE_MISSED;
    match now {
        // Too few requests to say otherwise.
        Objectives::Unknown => figures.requests > 0.0 && (missed || told.reason == reasons::AS_EXPECTED),
        Objectives::Met => missed && !held_again(goal, figures),
        Objectives::Missed { .. } | Objectives::OutOfReach { .. } => false,
    }
}

fn objectives_met(objectives: &Objectives, figures: &Figures) -> Desired {
    let (status, reason, message) = match objectives {
        Objectives::Met => (
            Status::True,
            reasons::AS_EXPECTED,
            match (figures.qps, figures.p99) {
                (Some(qps), Some(p99)) => {
                    format!(
                        "{} requests a second, 99 of 100 within {} ms",
                        two_digits(qps),
                        milliseconds(p99)
                    )
                }
                _ => "nothing is asked".to_owned(),
            },
        ),
        Objectives::Unknown => (
            Status::Unknown,
            reasons::NO_DATA,
            "too little is known of the load, and of what a pod carries".to_owned(),
        ),
        Objectives::Missed { why } => (Status::False, reasons::OBJECTIVE_MISSED, why.clone()),
        Objectives::OutOfReach { why, .. } => (Status::False, reasons::OBJECTIVE_OUT_OF_REACH, why.clone()),
    };
    Desired::new(types::OBJECTIVES_MET, status, reason, message)
}

/// Whether a figure that status shows is another one by more than a tenth.
fn moved(before: &Figures, now: &Figures) -> bool {
    let seconds = |time: Option<Duration>| time.map(|t| t.as_secs_f64());
    let shown = |f: &Figures| {
        [
            f.qps,
            f.concurrency,
            seconds(f.p99),
            f.per_replica,
            f.capacity,
            seconds(f.start_time),
        ]
    };
    shown(before).into_iter().zip(shown(now)).any(|pair| match pair {
        (Some(a), Some(b)) => (a - b).abs() > MOVED * a.abs().max(b.abs()),
        (a, b) => a.is_some() != b.is_some(),
    })
}

fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis().max(1)).unwrap_or(i32::MAX)
}

/// A figure with two digits: `480`, `1.2`, `0.035`.
fn two_digits(figure: f64) -> String {
    if !figure.is_finite() || figure <= 0.0 {
        return "0".to_owned();
    }
    // Rounded first, so that 99.6 is a figure of three places.
    let rounded: f64 = format!("{figure:.1e}").parse().unwrap_or(figure);
    let places = format!("{rounded:e}")
        .rsplit_once('e')
        .and_then(|(_, e)| e.parse::<i32>().ok())
        .unwrap_or(0);
    let decimals = usize::try_from(1 - places).unwrap_or(0);
    format!("{rounded:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> InferenceServiceSpec {
        let spec = serde_json::json!({"model": "m", "modelVersion": "v", "objectives": {"qps": 900}, "scaling": {"maxReplicas": 4}});
        serde_json::from_value(spec).unwrap()
    }

    fn decision(replicas: u32, reason: Reason, qps: f64) -> Decision {
        Decision {
            replicas,
            reason,
            why: "so it is".to_owned(),
            figures: Figures {
                qps: Some(qps),
                concurrency: Some(qps / 100.0),
                requests: qps * 60.0,
                p99: Some(Duration::from_millis(40)),
                per_replica: Some(140.0),
                capacity: Some(200.0),
                capacity_is_sure: true,
                ..Figures::default()
            },
            in_change: false,
        }
    }

    fn next(before: Option<&Shown>, decision: &Decision, second: i64) -> Option<Shown> {
        let spec = spec();
        let goal = Goal::of(&spec).unwrap();
        let now = Timestamp::from_second(1_800_000_000 + second).unwrap();
        Shown::next(before, &spec, &goal, decision, &VecDeque::new(), now)
    }

    fn reasons_of(shown: &Shown) -> Vec<(&'static str, Status, String)> {
        let conditions = shown.conditions.iter();
        conditions.map(|c| (c.kind, c.status, c.reason.clone())).collect()
    }

    #[test]
    fn figures_alone_are_told_twice_a_minute_and_what_matters_at_once() {
        let first = next(None, &decision(2, Reason::Steady, 240.0), 0).unwrap();
        assert_eq!(first.load.as_ref().unwrap().qps, "240");
        assert_eq!(
            next(Some(&first), &decision(2, Reason::Steady, 300.0), 29),
            None,
            "too soon"
        );
        assert_eq!(
            next(Some(&first), &decision(2, Reason::Steady, 262.0), 90),
            None,
            "a tenth is nothing"
        );
        let second = next(Some(&first), &decision(2, Reason::Waits, 300.0), 30).unwrap();
        assert_eq!(second.load.as_ref().unwrap().qps, "300");
        let third = next(Some(&second), &decision(3, Reason::LoadRose, 301.0), 31).unwrap();
        assert_eq!(third.scaling.as_ref().unwrap().desired_replicas, 3);
        let blocked = next(Some(&third), &decision(3, Reason::ScrapeBlocked, 301.0), 32).unwrap();
        assert_eq!(
            reasons_of(&blocked)[0],
            ("ScalingActive", Status::False, "ScrapeBlocked".to_owned())
        );
    }

    #[test]
    fn conditions_tell_what_holds() {
        let told = |reason| reasons_of(&next(None, &decision(4, reason, 500.0), 0).unwrap());
        let out_of_reach = ("ObjectivesMet", Status::False, "ObjectiveOutOfReach".to_owned());
        for (reason, status, word) in [
            (Reason::Steady, Status::True, "AsExpected"),
            (Reason::MaximumReached, Status::True, "MaximumReached"),
            (Reason::NoData, Status::Unknown, "NoData"),
        ] {
            assert_eq!(
                told(reason),
                [("ScalingActive", status, word.to_owned()), out_of_reach.clone()],
                "four pods of 200 a second carry no 900"
            );
        }
        let mut idle = decision(4, Reason::Steady, 5.0);
        idle.figures.capacity_is_sure = false;
        let idle = next(None, &idle, 0).unwrap();
        assert_eq!(
            reasons_of(&idle)[1],
            ("ObjectivesMet", Status::Unknown, "NoData".to_owned())
        );
        assert_eq!(
            idle.scaling.unwrap().capacity_per_replica,
            None,
            "an idle pod shows too little"
        );
    }

    #[test]
    fn what_is_told_of_the_objectives_does_not_change_with_each_request() {
        let reach = |requests: f64, p99: u64| {
            let mut decision = decision(4, Reason::Steady, 240.0);
            (decision.figures.requests, decision.figures.capacity) = (requests, Some(300.0));
            decision.figures.p99 = Some(Duration::from_millis(p99));
            decision
        };
        let word = |shown: &Shown| reasons_of(shown)[1].2.clone();
        let few = next(None, &reach(50.0, 400), 0).unwrap();
        assert_eq!(word(&few), "NoData", "one of fifty");
        let met = next(None, &reach(5000.0, 150), 0).unwrap();
        assert_eq!(word(&met), "AsExpected");
        assert_eq!(next(Some(&met), &reach(50.0, 400), 5), None, "one of fifty");
        let missed = next(Some(&met), &reach(5000.0, 210), 5).unwrap();
        assert_eq!(word(&missed), "ObjectiveMissed");
        for (requests, p99) in [(5000.0, 199), (5000.0, 181), (50.0, 400)] {
            assert_eq!(next(Some(&missed), &reach(requests, p99), 10), None, "{requests} {p99}");
        }
        assert_eq!(
            word(&next(Some(&missed), &reach(5000.0, 180), 10).unwrap()),
            "AsExpected"
        );
    }

    #[test]
    fn figures_have_two_digits() {
        for (figure, text) in [
            (0.0, "0"),
            (0.0351, "0.035"),
            (1.249, "1.2"),
            (9.96, "10"),
            (41.5, "42"),
            (99.6, "100"),
            (483.0, "480"),
            (12_345.0, "12000"),
            (f64::NAN, "0"),
        ] {
            assert_eq!(two_digits(figure), text, "{figure}");
        }
    }
}
