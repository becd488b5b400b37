//! The incidents of a TrainingJob: an attempt that ended without having been done, until a later one trains.

use flywheel_api::recovery::{Incident, IncidentCause};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::termination::Outcome;
use jiff::Timestamp;

use super::incident::{Failure, News, Reached, advance, kept, open};
use crate::training::attempt::{End, EndedAttempt, NO_ANSWER};
use crate::training::hang::NODE_LOST;

/// What the taint manager writes at pods whose node does not answer.
const BY_TAINT: &str = "DeletionByTaintManager";

/// What is seen of a TrainingJob.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Name of the latest attempt's Job.
    pub object: String,
    /// What failed, where the latest attempt is over, or is to be, and another one is to follow.
    pub failure: Option<Failure>,
    /// The next attempt is being made.
    pub starts: bool,
    /// All pods of the latest attempt run.
    pub running: bool,
    /// It takes steps of its own, or the job is complete.
    pub trains: bool,
    /// Whether anything is to run: not while the spec suspends the job.
    pub wanted: bool,
    /// Seconds of what goes on for which no node had room for its pods.
    pub no_room_seconds: i32,
}

/// The incident that the end of an attempt is; `None` where nothing failed. `silent_since`: since when its pod did not answer,
/// where it did not.
#[must_use]
pub fn failure(
    object: &str,
    node: Option<&str>,
    ended: &EndedAttempt,
    silent_since: Option<Timestamp>,
    now: Timestamp,
) -> Option<Failure> {
    let (cause, how) = match &ended.end {
        End::Told(Outcome::Failed(failure)) => {
            let cause = match failure.reason {
                FailureReason::Interrupted | FailureReason::Fenced => IncidentCause::PodLost,
                _ => IncidentCause::PodFailed,
            };
            (cause, format!("{}: {}", failure.reason.as_str(), failure.message))
        }
        End::Told(_) => (
            IncidentCause::PodFailed,
            "it ended with a message that no training gives".to_owned(),
        ),
        End::OutOfMemory => (
            IncidentCause::PodFailed,
            "it used more memory than its limit".to_owned(),
        ),
        End::Unclear { message } => (IncidentCause::PodFailed, message.clone()),
        End::Lost { how } if [NO_ANSWER, NODE_LOST].contains(&how.as_str()) || how.starts_with(BY_TAINT) => {
            (IncidentCause::NodeLost, how.clone())
        }
        End::Lost { how } => (IncidentCause::PodLost, how.clone()),
        End::Hung { how } => (IncidentCause::Hung, how.clone()),
        End::GpuFault { how } => (IncidentCause::GpuFault, how.clone()),
        End::NoImage { how, .. } => (IncidentCause::ImagePullFailed, how.clone()),
        // What it was to recover from goes on.
        End::NoRoom { .. } => return None,
    };
    // A pod that missed another one says nothing against its own node.
    let missed = matches!(&ended.end, End::Told(Outcome::Failed(failure)) if failure.reason == FailureReason::PeerLost);
    // A deleted pod has its end when its grace is over; a lost node was silent long before its pods were.
    let (at, node) = match &ended.end {
        End::NoImage { since, node, .. } => (Some(*since), node.as_deref()),
        _ => (ended.at, node),
    };
    let at = at.map_or(now, |at| at.min(now));
    let silent = silent_since.filter(|_| matches!(cause, IncidentCause::NodeLost | IncidentCause::Hung));
    Some(Failure {
        cause,
        object: object.to_owned(),
        node: node.filter(|_| !missed).map(str::to_owned),
        how,
        began: silent.map_or(at, |silent| silent.min(at)),
    })
}

/// The incidents after a look. One goes on at a time: where the next attempt fails as well, before it trains, the job is still
/// not back.
#[must_use]
pub fn next(present: &[Incident], look: &Look, now: Timestamp) -> (Vec<Incident>, Vec<News>) {
    let mut incidents = present.to_vec();
    let mut news = Vec::new();
    if !look.wanted {
        incidents.retain(Incident::is_over);
        return (incidents, news);
    }
    let going_on = incidents.iter().position(|incident| !incident.is_over());
    match (&look.failure, going_on) {
        (Some(failure), None) => {
            let incident = open(failure, now);
            news.push(News::Began(incident.clone()));
            incidents.insert(0, incident);
        }
        (Some(failure), Some(index)) => {
            if let Some(incident) = incidents.get_mut(index)
                && incident.object == failure.object
                && failure.cause > incident.cause
            {
                let told = open(failure, now);
                (incident.cause, incident.message) = (told.cause, told.message);
            }
        }
        (None, _) => {}
    }
    for incident in incidents.iter_mut().filter(|incident| !incident.is_over()) {
        let followed = incident.object != look.object;
        // One that was only suspected may work again.
        let works = look.trains && (followed || look.failure.is_none());
        let reached = Reached {
            decided: followed || look.starts,
            replaced: followed && look.running,
            recovered: works,
        };
        if incident.replace_seconds.is_none() && look.no_room_seconds > 0 {
            incident.capacity_seconds = Some(look.no_room_seconds);
        }
        advance(incident, reached, now);
        if incident.is_over() {
            news.push(News::Over(incident.clone()));
        }
    }
    (kept(&incidents), news)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(end: End, second: i64) -> EndedAttempt {
        EndedAttempt {
            end,
            at: Some(at(second)),
            position: None,
            told_by: None,
        }
    }

    fn lost(how: &str) -> End {
        End::Lost { how: how.to_owned() }
    }

    #[test]
    fn each_end_has_its_cause_and_its_beginning() {
        let hung = End::Hung {
            how: "no work".to_owned(),
        };
        let table = [
            (lost("its pod was deleted"), None, IncidentCause::PodLost, 100),
            (lost("its pod was deleted"), Some(40), IncidentCause::PodLost, 100),
            (lost(NO_ANSWER), Some(40), IncidentCause::NodeLost, 40),
            (lost(NODE_LOST), None, IncidentCause::NodeLost, 100),
            (
                lost("DeletionByTaintManager: Taint manager"),
                Some(40),
                IncidentCause::NodeLost,
                40,
            ),
            (hung, Some(30), IncidentCause::Hung, 30),
            (
                End::Unclear {
                    message: "exit code 1".to_owned(),
                },
                Some(30),
                IncidentCause::PodFailed,
                100,
            ),
        ];
        for (end, silent, cause, began) in table {
            let failure = failure(
                "j-train-1",
                Some("n"),
                &ended(end.clone(), 100),
                silent.map(at),
                at(110),
            )
            .unwrap();
            assert_eq!((failure.cause, failure.began), (cause, at(began)), "{end:?}");
        }
        let told = flywheel_contract::failure::Failure::new(FailureReason::PeerLost, "pod 1 is gone");
        let missed = ended(End::Told(Outcome::Failed(told)), 100);
        let missed = failure("j-train-1", Some("n"), &missed, None, at(110)).unwrap();
        assert_eq!(missed.node, None);
        let ends_later = failure(
            "j-train-1",
            None,
            &ended(lost("its pod was deleted"), 130),
            None,
            at(110),
        )
        .unwrap();
        assert_eq!(ends_later.began, at(110), "its grace is not over");
        let no_image = ended(
            End::NoImage {
                how: "no image".to_owned(),
                node: Some("n".to_owned()),
                since: at(25),
                turn: 1,
            },
            100,
        );
        let no_image = failure("j-train-1", Some("m"), &no_image, None, at(100)).unwrap();
        assert_eq!(
            (no_image.cause, no_image.began, no_image.node.as_deref()),
            (IncidentCause::ImagePullFailed, at(25), Some("n"))
        );
        let no_room = End::NoRoom {
            how: "no room".to_owned(),
            turn: 1,
        };
        assert_eq!(failure("j-train-1", None, &ended(no_room, 100), None, at(110)), None);
    }

    fn look(object: &str) -> Look {
        Look {
            object: object.to_owned(),
            wanted: true,
            ..Look::default()
        }
    }

    fn failing(object: &str, cause: IncidentCause) -> Look {
        Look {
            failure: Some(Failure {
                cause,
                object: object.to_owned(),
                node: None,
                how: "how".to_owned(),
                began: at(100),
            }),
            ..look(object)
        }
    }

    #[test]
    fn an_attempt_is_followed_until_the_next_one_trains() {
        let (one, news) = next(&[], &failing("j-1", IncidentCause::PodFailed), at(102));
        assert!(matches!(&news[..], [News::Began(_)]));
        let starts = Look {
            starts: true,
            ..failing("j-1", IncidentCause::PodFailed)
        };
        let (one, news) = next(&one, &starts, at(107));
        assert_eq!((one[0].decide_seconds, news.len()), (Some(5), 0));
        let (one, _) = next(&one, &look("j-2"), at(108));
        assert_eq!(one[0].replace_seconds, None);
        let running = Look {
            running: true,
            no_room_seconds: 10,
            ..look("j-2")
        };
        let (one, _) = next(&one, &running, at(120));
        assert_eq!((one[0].replace_seconds, one[0].capacity_seconds), (Some(13), Some(10)));
        let trains = Look {
            trains: true,
            ..running
        };
        let (one, news) = next(&one, &trains, at(141));
        assert!(
            matches!(&news[..], [News::Over(i)] if i.recover_seconds == Some(21)),
            "{news:?}"
        );
        let (same, news) = next(&one, &trains, at(200));
        assert_eq!((same, news), (one, vec![]));
    }

    #[test]
    fn one_that_fails_again_before_it_trains_is_the_same_incident() {
        let (one, _) = next(&[], &failing("j-1", IncidentCause::PodFailed), at(102));
        let (one, news) = next(&one, &failing("j-2", IncidentCause::NodeLost), at(150));
        assert_eq!((one.len(), one[0].object.as_str(), news.len()), (1, "j-1", 0));
        assert_eq!(one[0].cause, IncidentCause::PodFailed, "what began it counts");
        let trains = Look {
            trains: true,
            ..look("j-3")
        };
        assert_eq!(next(&one, &trains, at(190)).0[0].seconds(), 90);
    }

    #[test]
    fn one_that_works_again_was_none_for_long_and_one_that_nobody_wants_is_dropped() {
        let (one, _) = next(&[], &failing("j-1", IncidentCause::Hung), at(102));
        let trains = Look {
            trains: true,
            ..look("j-1")
        };
        assert!(next(&one, &trains, at(110)).0[0].is_over());
        let suspended = Look {
            wanted: false,
            ..look("j-1")
        };
        assert_eq!(next(&one, &suspended, at(110)), (vec![], vec![]));
    }
}
