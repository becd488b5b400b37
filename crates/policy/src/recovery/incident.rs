//! How an incident goes on, and what the condition says of it.

use flywheel_api::conditions::{Desired, Status, reasons, types};
use flywheel_api::recovery::{INCIDENTS, Incident, IncidentCause, RecoveryMode};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Something that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What.
    pub cause: IncidentCause,
    /// Pod, or Job.
    pub object: String,
    /// Where it was.
    pub node: Option<String>,
    /// What was seen.
    pub how: String,
    /// When, by the first sign of it.
    pub began: Timestamp,
}

/// Which stages of a recovery are over. A later one makes the earlier ones over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// It is decided what to do.
    pub decided: bool,
    /// Pods in its place have a node and are being started.
    pub replaced: bool,
    /// They answer, or train.
    pub recovered: bool,
}

/// What became of an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It began.
    Began(Incident),
    /// It is over.
    Over(Incident),
}

/// Most bytes of what was seen in an incident.
const WORDS_MAX: usize = 256;

/// An incident that is known from now on.
#[must_use]
pub fn open(failure: &Failure, now: Timestamp) -> Incident {
    Incident {
        cause: failure.cause,
        object: failure.object.clone(),
        node: failure.node.clone(),
        message: flywheel_api::conditions::cut_words(&failure.how, WORDS_MAX).into_owned(),
        // One clock may be ahead of the other.
        began: Time(failure.began.min(now)),
        detect_seconds: seconds(failure.began, now),
        decide_seconds: None,
        replace_seconds: None,
        recover_seconds: None,
        capacity_seconds: None,
        pods_before: None,
    }
}

/// Takes an incident as far as it has come.
pub fn advance(incident: &mut Incident, reached: Reached, now: Timestamp) {
    if incident.is_over() {
        return;
    }
    let since = |incident: &Incident| {
        let all = seconds(incident.began.0, now);
        all.saturating_sub(incident.seconds()).max(0)
    };
    let decided = reached.decided || reached.replaced || reached.recovered;
    if decided && incident.decide_seconds.is_none() {
        incident.decide_seconds = Some(since(incident));
    }
    let replaced = reached.replaced || reached.recovered;
    if replaced && incident.replace_seconds.is_none() {
        incident.replace_seconds = Some(since(incident));
    }
    if reached.recovered {
        incident.recover_seconds = Some(since(incident));
    }
}

/// Adds time for which no node had room.
pub fn without_room(incident: &mut Incident, seconds: i32) {
    if !incident.is_over() && seconds > 0 {
        let before = incident.capacity_seconds.unwrap_or(0);
        incident.capacity_seconds = Some(before.saturating_add(seconds));
    }
}

/// The incidents that a status holds of these: those that go on, then those that are over, each with the newest first; of many
/// that go on the oldest is the last.
#[must_use]
pub fn kept(incidents: &[Incident]) -> Vec<Incident> {
    let mut kept: Vec<Incident> = incidents.to_vec();
    kept.sort_by_key(|incident| (incident.is_over(), std::cmp::Reverse(incident.began.0)));
    let going_on = kept.iter().take_while(|incident| !incident.is_over()).count();
    if going_on > INCIDENTS {
        // The oldest of them says since when.
        kept.swap(INCIDENTS - 1, going_on - 1);
    }
    kept.truncate(INCIDENTS);
    kept
}

/// Seconds from an incident's beginning on that its deadline counts.
#[must_use]
pub fn counted(incident: &Incident, now: Timestamp) -> i32 {
    let all = if incident.is_over() {
        incident.seconds()
    } else {
        seconds(incident.began.0, now)
    };
    all.saturating_sub(incident.capacity_seconds.unwrap_or(0))
}

/// How a recovery went, for people.
#[must_use]
pub fn told(incident: &Incident) -> String {
    let stage = |name: &str, seconds: Option<i32>| seconds.map(|s| format!("{name} {s}"));
    let stages: Vec<String> = [
        stage("detect", Some(incident.detect_seconds)),
        stage("decide", incident.decide_seconds),
        stage("replace", incident.replace_seconds),
        stage("recover", incident.recover_seconds),
        stage("of these without room", incident.capacity_seconds),
    ]
    .into_iter()
    .flatten()
    .collect();
    format!("{} s: {}", incident.seconds(), stages.join(", "))
}

/// What the condition says: of an incident that goes on, where there is one, else of the last.
#[must_use]
pub fn judge(incidents: &[Incident], deadline_seconds: i32, mode: RecoveryMode, now: Timestamp) -> Desired {
    let desired = |status, reason, message| Desired::new(types::RECOVERY_WITHIN_DEADLINE, status, reason, message);
    // The one that is oldest is the first that misses it.
    let going_on = incidents.iter().filter(|i| !i.is_over()).min_by_key(|i| i.began.0);
    let last = || incidents.iter().max_by_key(|i| i.began.0);
    let Some(incident) = going_on.or_else(last) else {
        return desired(
            Status::Unknown,
            reasons::NO_INCIDENT,
            "nothing has failed yet".to_owned(),
        );
    };
    let what = what(incident);
    let late = counted(incident, now) > deadline_seconds;
    if incident.is_over() {
        let message = format!("{what}; recovered in {}", told(incident));
        return if late {
            let message = format!("{message}. recovery.deadlineSeconds is {deadline_seconds}");
            desired(Status::False, reasons::RECOVERY_OVERDUE, message)
        } else {
            desired(Status::True, reasons::RECOVERED, message)
        };
    }
    let observed = match mode {
        RecoveryMode::Enforce => "",
        RecoveryMode::Observe => {
            ". recovery.mode is Observe, so a pod that still runs is left alone: delete it yourself, or set Enforce"
        }
    };
    if late {
        let message = format!(
            "{what}; not recovered within recovery.deadlineSeconds ({deadline_seconds}). The other conditions say what it waits for{observed}"
        );
        return desired(Status::False, reasons::RECOVERY_OVERDUE, message);
    }
    desired(
        Status::Unknown,
        reasons::RECOVERING,
        format!("{what}; recovery goes on{observed}"),
    )
}

/// What failed, for people.
#[must_use]
pub fn what(incident: &Incident) -> String {
    let node = incident
        .node
        .as_ref()
        .map_or_else(String::new, |node| format!(" on {node}"));
    format!(
        "{}{node} failed at {:.0} ({}: {})",
        incident.object,
        incident.began.0,
        incident.cause.as_str(),
        incident.message.trim_end_matches('.')
    )
}

/// Whole seconds between two times; 0 where a clock is ahead.
#[must_use]
pub fn seconds(from: Timestamp, to: Timestamp) -> i32 {
    i32::try_from(to.duration_since(from).as_secs().max(0)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn failed(began: i64, now: i64) -> Incident {
        let failure = Failure {
            cause: IncidentCause::NodeLost,
            object: "p".to_owned(),
            node: Some("n".to_owned()),
            how: "its node does not answer".to_owned(),
            began: at(began),
        };
        open(&failure, at(now))
    }

    #[test]
    fn each_stage_has_its_seconds() {
        let mut incident = failed(100, 125);
        assert_eq!((incident.detect_seconds, incident.is_over()), (25, false));
        let reached = |decided, replaced, recovered| Reached {
            decided,
            replaced,
            recovered,
        };
        advance(&mut incident, reached(false, false, false), at(126));
        assert_eq!(incident.decide_seconds, None);
        advance(&mut incident, reached(true, false, false), at(127));
        advance(&mut incident, reached(true, true, false), at(135));
        advance(&mut incident, reached(true, true, false), at(140));
        advance(&mut incident, reached(true, true, true), at(160));
        advance(&mut incident, reached(true, true, true), at(999));
        let stages = (
            incident.decide_seconds,
            incident.replace_seconds,
            incident.recover_seconds,
        );
        assert_eq!(stages, (Some(2), Some(8), Some(25)));
        assert_eq!(incident.seconds(), 60);
        assert_eq!(told(&incident), "60 s: detect 25, decide 2, replace 8, recover 25");
    }

    #[test]
    fn what_was_not_seen_took_no_time() {
        let mut incident = failed(100, 90);
        assert_eq!(
            (incident.detect_seconds, incident.began.0),
            (0, at(90)),
            "a clock that is ahead"
        );
        advance(
            &mut incident,
            Reached {
                recovered: true,
                ..Reached::default()
            },
            at(95),
        );
        let stages = (
            incident.decide_seconds,
            incident.replace_seconds,
            incident.recover_seconds,
        );
        assert_eq!(stages, (Some(5), Some(0), Some(0)));
    }

    #[test]
    fn the_condition_is_about_what_goes_on_or_was_last() {
        let over = |began: i64, took: i32, room: Option<i32>| {
            let mut incident = failed(began, began);
            incident.decide_seconds = Some(0);
            incident.replace_seconds = Some(0);
            incident.recover_seconds = Some(took);
            incident.capacity_seconds = room;
            incident
        };
        let table = [
            ("nothing yet", vec![], 0, Status::Unknown, "NoIncident"),
            ("in time", vec![over(100, 300, None)], 9_999, Status::True, "Recovered"),
            (
                "late",
                vec![over(100, 301, None)],
                9_999,
                Status::False,
                "RecoveryOverdue",
            ),
            (
                "late for want of room",
                vec![over(100, 500, Some(200))],
                9_999,
                Status::True,
                "Recovered",
            ),
            (
                "goes on",
                vec![failed(1_000, 1_010), over(100, 301, None)],
                1_300,
                Status::Unknown,
                "Recovering",
            ),
            (
                "goes on for too long",
                vec![failed(1_000, 1_010)],
                1_301,
                Status::False,
                "RecoveryOverdue",
            ),
            (
                "the last was in time",
                vec![over(100, 301, None), over(200, 3, None)],
                9_999,
                Status::True,
                "Recovered",
            ),
        ];
        for (case, incidents, now, status, reason) in table {
            let said = judge(&incidents, 300, RecoveryMode::Enforce, at(now));
            assert_eq!(
                (said.status, said.reason.as_str()),
                (status, reason),
                "{case}: {}",
                said.message
            );
        }
        let said = judge(&[failed(0, 1)], 300, RecoveryMode::Observe, at(2));
        assert!(said.message.contains("Observe"), "{}", said.message);
    }

    #[test]
    fn what_goes_on_is_kept_first() {
        let mut all: Vec<Incident> = (1..=6).map(|n| failed(n, n)).collect();
        for incident in all.iter_mut().skip(1) {
            incident.recover_seconds = Some(1);
        }
        let began: Vec<i64> = kept(&all).iter().map(|i| i.began.0.as_second()).collect();
        assert_eq!(began, [1, 6, 5, 4, 3]);
        for incident in &mut all {
            incident.recover_seconds = None;
        }
        let began: Vec<i64> = kept(&all).iter().map(|i| i.began.0.as_second()).collect();
        assert_eq!(began, [6, 5, 4, 3, 1], "since when it goes on");
    }
}
