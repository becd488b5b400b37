//! Tables and properties of [`super::decide`].

use flywheel_contract::failure::{Failure, FailureClass, FailureReason};
use flywheel_contract::scalar::Digest;
use flywheel_contract::termination::Position;
use flywheel_contract::trainer::ArtifactRef;
use proptest::prelude::*;

use super::attempt::{Telling, ToldBy};
use super::hang::Cause;
use super::*;

const NOW: i64 = 1_700_000_000;

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

pub(super) fn attempt(number: u32, counted: u32, state: AttemptState) -> AttemptView {
    AttemptView {
        number,
        counted,
        class: "a100".to_owned(),
        created: at(-600),
        suspended: false,
        nodes: 1,
        running: u32::from(matches!(state, AttemptState::Running)),
        pod_lives: matches!(state, AttemptState::Running),
        state,
        unrecorded: None,
    }
}

fn ended(end: End, seconds: i64) -> AttemptState {
    AttemptState::Ended(EndedAttempt {
        end,
        at: Some(at(seconds)),
        position: None,
        told_by: None,
    })
}

/// An end at this step, resumed from this one, with this newest checkpoint.
fn ended_at(end: End, seconds: i64, (step, resumed, checkpoint): (u64, u64, u64)) -> AttemptState {
    AttemptState::Ended(EndedAttempt {
        end,
        at: Some(at(seconds)),
        position: Some(Position {
            step,
            resumed_from_step: resumed,
            checkpoint_step: checkpoint,
            head_attempt: 1,
        }),
        told_by: None,
    })
}

fn hung() -> End {
    End::Hung {
        how: "no sign of work".to_owned(),
    }
}

fn gpu_fault() -> End {
    End::GpuFault {
        how: "unhealthy".to_owned(),
    }
}

fn verdict(cause: Cause) -> Verdict {
    Verdict {
        cause,
        how: "no sign of work".to_owned(),
        at: at(0),
        position: None,
        node: None,
    }
}

fn failed(reason: FailureReason) -> End {
    End::Told(Outcome::Failed(Failure::new(reason, "words.")))
}

fn trained() -> End {
    End::Told(Outcome::Trained(Trained {
        artifact: ArtifactRef {
            uri: "s3://b/k".into(),
            digest: Digest::sha256(&"0".repeat(64)),
        },
        dataset_digest: Digest::sha256(&"1".repeat(64)),
        metrics: vec![],
        steps: 3,
        reused: false,
    }))
}

fn seen(attempts: Vec<AttemptView>) -> Observed {
    Observed {
        told_attempt: attempts.last().map_or(0, |a| a.number),
        attempts,
        ..Observed::default()
    }
}

pub(super) const WISHES: Wishes<'static> = Wishes {
    suspend: false,
    max_restarts: 2,
    only_observe: false,
    class: "a100",
    fallback: None,
};

fn start(attempt: u32, counted: u32) -> Intent {
    Intent::StartAttempt {
        attempt,
        counted,
        class: "a100".to_owned(),
    }
}

#[test]
fn each_situation_has_its_intent() {
    let lost = || End::Lost {
        how: "deleted".to_owned(),
    };
    let unclear = || End::Unclear {
        message: "exit code 1".to_owned(),
    };
    let no_pod = || AttemptState::NoPod { refused: None };
    let taken = || {
        Some(TakenVersion {
            name: "v1".to_owned(),
            uri: "s3://b/other".to_owned(),
            may_be_ours: false,
        })
    };
    let infra = || failed(FailureReason::StorageUnavailable);
    let table: Vec<(&str, Observed, Intent, Phase, &str)> = vec![
        ("new", seen(vec![]), start(1, 0), Phase::Pending, "Pending"),
        (
            "new, and its version name is another's",
            Observed {
                version_taken: taken(),
                ..seen(vec![])
            },
            Intent::Wait,
            Phase::Stalled,
            "VersionConflict",
        ),
        (
            "new, and an earlier job of its name made the version: the pod finds out whether it is the same",
            Observed {
                version_taken: taken().map(|version| TakenVersion {
                    may_be_ours: true,
                    ..version
                }),
                ..seen(vec![])
            },
            start(1, 0),
            Phase::Pending,
            "Pending",
        ),
        (
            "begun, and its version name is another's",
            Observed {
                version_taken: taken(),
                ..deleted(1, Some(0))
            },
            start(2, 0),
            Phase::Restarting,
            "PodLost",
        ),
        (
            "made",
            seen(vec![attempt(1, 0, no_pod())]),
            Intent::Wait,
            Phase::Pending,
            "Pending",
        ),
        (
            "quota",
            seen(vec![attempt(
                1,
                0,
                AttemptState::NoPod {
                    refused: Some("quota".into()),
                },
            )]),
            Intent::Wait,
            Phase::Blocked,
            "PodCreationFailed",
        ),
        (
            "starting",
            seen(vec![attempt(1, 0, AttemptState::Starting)]),
            Intent::Wait,
            Phase::Starting,
            "Starting",
        ),
        (
            "running",
            seen(vec![attempt(1, 0, AttemptState::Running)]),
            Intent::Wait,
            Phase::Running,
            "Running",
        ),
        (
            "starting again",
            seen(vec![attempt(2, 1, AttemptState::Starting)]),
            Intent::Wait,
            Phase::Restarting,
            "Starting",
        ),
        (
            "running again",
            seen(vec![attempt(2, 1, AttemptState::Running)]),
            Intent::Wait,
            Phase::Running,
            "Running",
        ),
        (
            "user failure",
            seen(vec![attempt(1, 0, ended(failed(FailureReason::DatasetEmpty), -300))]),
            Intent::Wait,
            Phase::Failed,
            "DatasetEmpty",
        ),
        (
            "out of memory, told",
            seen(vec![attempt(1, 0, ended(failed(FailureReason::OutOfMemory), -300))]),
            Intent::Wait,
            Phase::Failed,
            "OutOfMemory",
        ),
        (
            "out of memory, killed",
            seen(vec![attempt(1, 0, ended(End::OutOfMemory, -300))]),
            Intent::Wait,
            Phase::Failed,
            "OutOfMemory",
        ),
        (
            "infrastructure, just now",
            seen(vec![attempt(1, 0, ended(infra(), -4))]),
            Intent::Wait,
            Phase::Restarting,
            "StorageUnavailable",
        ),
        (
            "infrastructure, waited",
            seen(vec![attempt(1, 0, ended(infra(), -5))]),
            start(2, 1),
            Phase::Restarting,
            "StorageUnavailable",
        ),
        (
            "second one waits longer",
            seen(vec![attempt(2, 1, ended(infra(), -9))]),
            Intent::Wait,
            Phase::Restarting,
            "StorageUnavailable",
        ),
        (
            "second one, waited",
            seen(vec![attempt(2, 1, ended(infra(), -10))]),
            start(3, 2),
            Phase::Restarting,
            "StorageUnavailable",
        ),
        (
            "budget used up",
            seen(vec![attempt(3, 2, ended(infra(), -300))]),
            Intent::Wait,
            Phase::Failed,
            "MaxRestartsExceeded",
        ),
        (
            "no words",
            seen(vec![attempt(1, 0, ended(unclear(), -300))]),
            start(2, 1),
            Phase::Restarting,
            "PodFailed",
        ),
        (
            "lost costs nothing",
            seen(vec![attempt(3, 2, ended(lost(), -300))]),
            start(4, 2),
            Phase::Restarting,
            "PodLost",
        ),
        (
            "first loss is followed at once",
            seen(vec![attempt(1, 0, ended(lost(), 0))]),
            start(2, 0),
            Phase::Restarting,
            "PodLost",
        ),
        (
            "lost soon again and again",
            seen(vec![AttemptView {
                created: at(-2),
                ..attempt(4, 0, ended(lost(), 0))
            }]),
            Intent::Wait,
            Phase::Restarting,
            "PodLost",
        ),
        (
            "hung",
            seen(vec![attempt(1, 0, ended(hung(), -5))]),
            start(2, 1),
            Phase::Restarting,
            "Hung",
        ),
        (
            "hung after progress",
            seen(vec![attempt(3, 2, ended_at(hung(), 0, (90, 10, 80)))]),
            start(4, 0),
            Phase::Restarting,
            "Hung",
        ),
        (
            "hung once too often",
            seen(vec![attempt(3, 2, ended_at(hung(), -60, (90, 80, 80)))]),
            Intent::Wait,
            Phase::Failed,
            "MaxRestartsExceeded",
        ),
        (
            "told to end, and saving its state",
            seen(vec![attempt(
                1,
                0,
                AttemptState::Ending(EndedAttempt {
                    end: lost(),
                    at: Some(at(20)),
                    position: None,
                    told_by: None,
                }),
            )]),
            Intent::Wait,
            Phase::Restarting,
            "PodLost",
        ),
        (
            "the Job was deleted",
            Observed {
                told_attempt: 2,
                ..Observed::default()
            },
            start(3, 0),
            Phase::Restarting,
            "PodLost",
        ),
        (
            "failed, and its Jobs are gone",
            Observed {
                told_attempt: 2,
                ended: Some(Ended::Failed {
                    reason: "DatasetEmpty".into(),
                    message: "m".into(),
                }),
                ..Observed::default()
            },
            Intent::Wait,
            Phase::Failed,
            "DatasetEmpty",
        ),
        (
            "complete, and its Jobs are gone",
            Observed {
                ended: Some(Ended::Complete),
                ..Observed::default()
            },
            Intent::Wait,
            Phase::Complete,
            "Trained",
        ),
        (
            "complete with an earlier job's result, and its Jobs are gone",
            Observed {
                ended: Some(Ended::Complete),
                reused: true,
                ..Observed::default()
            },
            Intent::Wait,
            Phase::Complete,
            "ResultReused",
        ),
        (
            "the status is lost, the version is there",
            Observed {
                version_made: true,
                ..Observed::default()
            },
            Intent::Wait,
            Phase::Complete,
            "Trained",
        ),
    ];
    for (case, observed, intent, phase, reason) in table {
        let decision = decide(WISHES, &observed, at(0));
        assert_eq!(decision.intent, intent, "{case}");
        assert_eq!((decision.phase, decision.reason.as_str()), (phase, reason), "{case}");
        assert!(!decision.message.is_empty(), "{case}");
    }
}

#[test]
fn a_job_that_failed_says_once_that_a_new_one_is_needed() {
    let user = FailureReason::ALL.iter().filter(|r| r.class() == FailureClass::User);
    let mut ends: Vec<End> = user.map(|reason| failed(*reason)).collect();
    ends.extend([failed(FailureReason::OutOfMemory), End::OutOfMemory]);
    let mut jobs: Vec<Observed> = ends
        .into_iter()
        .map(|end| seen(vec![attempt(1, 0, ended(end, -300))]))
        .collect();
    let infra = || failed(FailureReason::StorageUnavailable);
    jobs.push(seen(vec![attempt(3, 2, ended(infra(), -300))]));
    let at_step_7 = |number| {
        attempt(
            number,
            0,
            ended_at(failed(FailureReason::InternalError), -300, (7, 0, 0)),
        )
    };
    jobs.push(seen(vec![at_step_7(1), at_step_7(2)]));
    for observed in jobs {
        let decision = decide(WISHES, &observed, at(0));
        assert_eq!(decision.phase, Phase::Failed, "{decision:?}");
        let (message, reason) = (&decision.message, &decision.reason);
        assert_eq!(message.matches("new TrainingJob").count(), 1, "{reason}: {message}");
        assert!(!message.contains(".."), "{message}");
        // It stays as it was told.
        let later = Observed {
            told_attempt: 9,
            ended: Some(Ended::Failed {
                reason: reason.clone(),
                message: message.clone(),
            }),
            ..Observed::default()
        };
        if reason != "MaxRestartsExceeded" {
            assert_eq!(&decide(WISHES, &later, at(0)).message, message);
        }
    }
}

#[test]
fn a_result_of_any_attempt_completes_the_job_and_ends_the_others() {
    let observed = seen(vec![
        attempt(1, 0, ended(trained(), -5)),
        attempt(2, 0, AttemptState::Running),
    ]);
    let decision = decide(WISHES, &observed, at(0));
    assert!(matches!(decision.intent, Intent::Complete(_)), "{decision:?}");
    assert_eq!(decision.remove, [2]);
}

#[test]
fn suspension_reaches_the_job_once_and_is_taken_back() {
    let wishes = Wishes {
        suspend: true,
        ..WISHES
    };
    let running = seen(vec![attempt(1, 0, AttemptState::Running)]);
    let decision = decide(wishes, &running, at(0));
    assert_eq!(
        decision.intent,
        Intent::SetSuspend {
            attempt: 1,
            suspend: true
        }
    );
    assert_eq!(decision.phase, Phase::Suspended);
    assert!(
        decision.message.contains("the pod saves its state"),
        "{}",
        decision.message
    );

    let never = decide(wishes, &Observed::default(), at(0));
    assert_eq!((never.phase, never.intent), (Phase::Suspended, Intent::Wait));
    assert!(never.message.contains("nothing has been started"), "{}", never.message);
    let deleted = decide(wishes, &deleted(1, Some(0)), at(0));
    assert!(
        deleted.message.contains("the pod saves its state"),
        "{}",
        deleted.message
    );

    let mut paused = seen(vec![attempt(1, 0, AttemptState::NoPod { refused: None })]);
    paused.attempts[0].suspended = true;
    assert_eq!(decide(wishes, &paused, at(0)).intent, Intent::Wait);
    let resumed = decide(WISHES, &paused, at(0));
    assert_eq!(
        resumed.intent,
        Intent::SetSuspend {
            attempt: 1,
            suspend: false
        }
    );

    assert_eq!(
        decide(wishes, &seen(vec![]), at(0)).intent,
        Intent::Wait,
        "nothing is started"
    );
    let broken = seen(vec![attempt(
        1,
        0,
        ended(failed(FailureReason::StorageUnavailable), -60),
    )]);
    assert_eq!(
        decide(wishes, &broken, at(0)).intent,
        Intent::Wait,
        "nothing is restarted"
    );
}

/// What a restart costs: nothing after progress, one without, and after that the end.
#[test]
fn only_restarts_without_progress_count() {
    let infra = || failed(FailureReason::StorageUnavailable);
    let unclear = || End::Unclear {
        message: "exit code 139".to_owned(),
    };
    let lost = || End::Lost {
        how: "preempted".to_owned(),
    };
    // Step, step that it resumed from, newest checkpoint; what follows an attempt with two counted restarts of three, and
    // whether it follows at once.
    let table = [
        ("progress", infra(), Some((50, 0, 40)), Some(0), true),
        (
            "progress beyond the checkpoint that it began with",
            infra(),
            Some((90, 40, 80)),
            Some(0),
            true,
        ),
        (
            "no further than where it began",
            infra(),
            Some((90, 80, 80)),
            Some(3),
            false,
        ),
        ("nothing saved", infra(), Some((50, 0, 0)), Some(3), false),
        ("nothing known", infra(), None, Some(3), false),
        (
            "nothing done since it took the checkpoints over",
            infra(),
            Some((0, 0, 80)),
            Some(3),
            false,
        ),
        ("a crash after progress", unclear(), Some((90, 40, 80)), Some(0), true),
        ("a crash without", unclear(), Some((90, 80, 80)), Some(3), false),
        (
            "interrupted after progress",
            failed(FailureReason::Interrupted),
            Some((90, 40, 90)),
            Some(0),
            true,
        ),
        (
            "interrupted by nobody before it saved anything",
            failed(FailureReason::Interrupted),
            Some((9, 0, 0)),
            Some(3),
            false,
        ),
        ("lost after progress", lost(), Some((90, 40, 80)), Some(0), true),
        ("lost without", lost(), Some((90, 80, 80)), Some(2), false),
        (
            "a broken GPU after progress",
            gpu_fault(),
            Some((90, 40, 80)),
            Some(0),
            true,
        ),
        ("a broken GPU without", gpu_fault(), Some((90, 80, 80)), Some(2), false),
        (
            "fenced",
            failed(FailureReason::Fenced),
            Some((90, 80, 80)),
            Some(2),
            false,
        ),
        ("hung without progress", hung(), Some((90, 80, 80)), Some(3), false),
        ("out of memory", End::OutOfMemory, Some((90, 40, 80)), None, false),
        (
            "not a number",
            failed(FailureReason::LossNotFinite),
            Some((90, 40, 80)),
            None,
            false,
        ),
        (
            "the user's",
            failed(FailureReason::DatasetInvalid),
            Some((90, 40, 80)),
            None,
            false,
        ),
    ];
    for (case, end, position, counted, at_once) in table {
        let state = |seconds| match position {
            Some(position) => ended_at(end.clone(), seconds, position),
            None => ended(end.clone(), seconds),
        };
        let wishes = Wishes {
            max_restarts: 3,
            ..WISHES
        };
        // It ended just now, after a life of a second.
        let view = |seconds| AttemptView {
            created: at(seconds - 1),
            ..attempt(5, 2, state(seconds))
        };
        let now = decide(wishes, &seen(vec![view(0)]), at(0));
        let later = decide(wishes, &seen(vec![view(-300)]), at(0));
        match counted {
            Some(counted) => {
                assert_eq!(later.intent, start(6, counted), "{case}");
                assert_eq!(matches!(now.intent, Intent::StartAttempt { .. }), at_once, "{case}");
            }
            None => assert_eq!((later.intent, later.phase), (Intent::Wait, Phase::Failed), "{case}"),
        }
    }
}

#[test]
fn who_falls_back_and_fails_again_has_made_no_progress() {
    let internal = || failed(FailureReason::InternalError);
    // The second attempt found the checkpoint of step 80 broken and began anew.
    let first = attempt(1, 0, ended_at(internal(), -400, (85, 0, 80)));
    let after = |step, checkpoint| {
        let second = attempt(2, 0, ended_at(internal(), -300, (step, 0, checkpoint)));
        decide(WISHES, &seen(vec![first.clone(), second]), at(0)).intent
    };
    assert_eq!(after(70, 80), start(3, 1), "it has not come as far as the checkpoint");
    assert_eq!(after(84, 80), start(3, 1), "nor saved more");
    assert_eq!(after(95, 90), start(3, 0));
}

#[test]
fn two_failures_of_one_step_end_the_job() {
    let internal = || failed(FailureReason::InternalError);
    let unclear = || End::Unclear {
        message: "exit code 139".to_owned(),
    };
    let storage = || failed(FailureReason::StorageUnavailable);
    let table = [
        (
            "twice at a step",
            internal(),
            (85, 0, 80),
            internal(),
            (85, 80, 80),
            true,
        ),
        (
            "the same after the first made progress",
            unclear(),
            (85, 0, 80),
            unclear(),
            (85, 80, 80),
            true,
        ),
        ("a hang", hung(), (85, 80, 80), hung(), (85, 80, 80), true),
        (
            "at another step",
            internal(),
            (85, 0, 80),
            internal(),
            (86, 80, 80),
            false,
        ),
        (
            "in another way",
            internal(),
            (85, 0, 80),
            unclear(),
            (85, 80, 80),
            false,
        ),
        (
            "with progress between",
            internal(),
            (85, 0, 40),
            internal(),
            (85, 40, 80),
            false,
        ),
        (
            "before the first step",
            internal(),
            (0, 0, 0),
            internal(),
            (0, 0, 0),
            false,
        ),
        (
            "a storage that is away",
            storage(),
            (85, 0, 80),
            storage(),
            (85, 80, 80),
            false,
        ),
        (
            "interrupted",
            failed(FailureReason::Interrupted),
            (85, 80, 80),
            failed(FailureReason::Interrupted),
            (85, 80, 80),
            false,
        ),
    ];
    for (case, first, first_at, second, second_at, ends) in table {
        let first = attempt(1, 0, ended_at(first, -400, first_at));
        let direct = vec![first.clone(), attempt(2, 0, ended_at(second.clone(), -300, second_at))];
        // One that was merely taken away says nothing of the step.
        let lost = End::Lost {
            how: "drained".to_owned(),
        };
        let around = |taken| {
            vec![
                first.clone(),
                attempt(2, 0, ended(taken, -350)),
                attempt(3, 0, ended_at(second.clone(), -300, second_at)),
            ]
        };
        for attempts in [direct, around(lost), around(gpu_fault())] {
            let decision = decide(WISHES, &seen(attempts), at(0));
            assert_eq!(
                decision.reason == reasons::REPEATED_FAILURE,
                ends,
                "{case}: {decision:?}"
            );
            if ends {
                assert_eq!(
                    (decision.phase, &decision.intent),
                    (Phase::Failed, &Intent::Wait),
                    "{case}"
                );
                let message = decision.message;
                assert!(
                    message.contains("step 85") && message.contains("apply a new TrainingJob"),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn a_fenced_attempt_is_followed_by_one_beyond_the_head() {
    let fenced = |head_attempt| {
        AttemptState::Ended(EndedAttempt {
            end: failed(FailureReason::Fenced),
            at: Some(at(0)),
            position: Some(Position {
                head_attempt,
                ..Position::default()
            }),
            told_by: None,
        })
    };
    for (own, told, head, next) in [(1, 1, 7, 8), (1, 1, 1, 2), (9, 9, 7, 10), (1, 12, 7, 13)] {
        let observed = Observed {
            told_attempt: told,
            ..seen(vec![AttemptView {
                created: at(-600),
                ..attempt(own, 2, fenced(head))
            }])
        };
        assert_eq!(
            decide(WISHES, &observed, at(0)).intent,
            start(next, 2),
            "{own} {told} {head}"
        );
    }
}

#[test]
fn an_attempt_whose_job_was_deleted_is_not_made_again() {
    let lost = End::Lost {
        how: "deleted".to_owned(),
    };
    let observed = Observed {
        told_attempt: 4,
        ..seen(vec![attempt(3, 2, ended(lost, -300))])
    };
    assert_eq!(decide(WISHES, &observed, at(0)).intent, start(5, 2));
}

/// What the status tells of an attempt whose Job was deleted.
fn deleted(told_attempt: u32, told_counted: Option<u32>) -> Observed {
    Observed {
        told_attempt,
        told_counted,
        ..Observed::default()
    }
}

#[test]
fn what_a_deleted_jobs_pods_still_save_is_waited_for() {
    let table = [
        ("none are left", false, false, start(4, 2), vec![]),
        ("not told to end yet", true, true, Intent::Wait, vec![3]),
        ("told to end", false, true, Intent::Wait, vec![]),
        ("it waits for a node", true, false, start(4, 2), vec![3]),
    ];
    for before in [
        vec![],
        vec![attempt(2, 1, ended(failed(FailureReason::StorageUnavailable), -300))],
    ] {
        for (case, live, save, intent, stop) in &table {
            let observed = Observed {
                attempts: before.clone(),
                remains: Remains {
                    live: *live,
                    save: *save,
                },
                ..deleted(3, Some(2))
            };
            let decision = decide(WISHES, &observed, at(0));
            assert_eq!((&decision.intent, &decision.stop), (intent, stop), "{case}");
            assert_eq!(decision.counted, Some(2), "{case}");
            assert_eq!(
                (decision.phase, decision.reason.as_str()),
                (Phase::Restarting, "PodLost"),
                "{case}"
            );
            if decision.intent == Intent::Wait {
                assert_eq!(decision.again, Duration::from_secs(1), "{case}");
            }

            let wishes = Wishes {
                suspend: true,
                ..WISHES
            };
            let decision = decide(wishes, &observed, at(0));
            assert_eq!(
                (decision.intent, &decision.stop),
                (Intent::Wait, stop),
                "{case}, suspended"
            );
        }
    }
}

#[test]
fn who_deletes_jobs_takes_no_restart_back() {
    let at_step = |(step, resumed_from_step, checkpoint_step)| {
        Some(Position {
            step,
            resumed_from_step,
            checkpoint_step,
            ..Position::default()
        })
    };
    let older = attempt(2, 1, ended(failed(FailureReason::StorageUnavailable), -300));
    let table = [
        ("counted", Some(2), None, 2),
        ("written by an operator that told no count", None, None, 0),
        ("it came further", Some(2), at_step((50, 0, 40)), 0),
        ("it came further than where it began", Some(2), at_step((90, 40, 80)), 0),
        ("no further than where it began", Some(2), at_step((90, 80, 80)), 2),
        ("nothing saved", Some(2), at_step((50, 0, 0)), 2),
        ("the checkpoint is one that it found", Some(2), at_step((0, 0, 80)), 2),
    ];
    for (case, told_counted, told_position, counted) in table {
        let told = Observed {
            told_position,
            ..deleted(3, told_counted)
        };
        let decision = decide(WISHES, &told, at(0));
        assert_eq!(
            (decision.intent, decision.counted),
            (start(4, counted), Some(counted)),
            "{case}"
        );
        let with_older = Observed {
            attempts: vec![older.clone()],
            ..told
        };
        let decision = decide(WISHES, &with_older, at(0));
        // Without a word in the status the older one's end counts.
        let counted = if told_counted.is_none() { 2 } else { counted };
        assert_eq!(decision.intent, start(4, counted), "{case}");
        assert!(
            decision.message.starts_with("the Job of the last attempt was deleted"),
            "{case}"
        );
    }
}

/// Its Job is being deleted, or its pod was, before the next attempt stands.
#[test]
fn a_failure_that_was_counted_stays_so_when_its_pod_goes() {
    let gone = || End::Lost {
        how: "its pod is gone".to_owned(),
    };
    let table = [
        (Some(2), ended(gone(), -300), 2),
        (Some(1), ended(gone(), -300), 1),
        (None, ended(gone(), -300), 1),
        (Some(1), ended_at(gone(), -300, (90, 40, 80)), 0),
    ];
    for (told_counted, state, counted) in table {
        let observed = Observed {
            told_counted,
            ..seen(vec![attempt(2, 1, state)])
        };
        assert_eq!(
            decide(WISHES, &observed, at(0)).intent,
            start(3, counted),
            "{told_counted:?}"
        );
    }
}

#[test]
fn a_budget_that_is_raised_counts_also_where_the_last_job_is_gone() {
    let used_up = |reason: &str, told_counted| Observed {
        ended: Some(Ended::Failed {
            reason: reason.to_owned(),
            message: "m".to_owned(),
        }),
        ..deleted(3, told_counted)
    };
    let raised = Wishes {
        max_restarts: 3,
        ..WISHES
    };
    let older = |observed: Observed| Observed {
        attempts: vec![attempt(2, 1, ended(failed(FailureReason::StorageUnavailable), -300))],
        ..observed
    };
    for with in [|observed| observed, older] {
        let stays = |wishes, observed| {
            let decision = decide(wishes, &with(observed), at(0));
            assert_eq!(
                (decision.intent, decision.phase, decision.counted),
                (Intent::Wait, Phase::Failed, None)
            );
        };
        stays(WISHES, used_up("MaxRestartsExceeded", Some(2)));
        stays(raised, used_up("MaxRestartsExceeded", None));
        stays(raised, used_up("RepeatedFailure", Some(0)));
        let decision = decide(raised, &with(used_up("MaxRestartsExceeded", Some(2))), at(0));
        assert_eq!((decision.intent, decision.phase), (start(4, 3), Phase::Restarting));
        let suspend = Wishes {
            suspend: true,
            ..raised
        };
        let waits = decide(suspend, &with(used_up("MaxRestartsExceeded", Some(2))), at(0));
        assert_eq!((waits.intent, waits.phase), (Intent::Wait, Phase::Suspended));
    }
}

#[test]
fn a_restart_is_counted_before_the_wait_for_it() {
    let infra = || failed(FailureReason::StorageUnavailable);
    let lost = || End::Lost {
        how: "drained".to_owned(),
    };
    let AttemptState::Ended(over) = ended(infra(), 0) else {
        panic!("ended")
    };
    let table = [
        ("runs", AttemptState::Running, 1),
        ("failed", ended(infra(), 0), 2),
        ("failed after progress", ended_at(infra(), 0, (50, 0, 40)), 0),
        ("lost", ended(lost(), 0), 1),
        ("its end may yet be told better", AttemptState::Ending(over), 1),
        ("failed for good", ended(End::OutOfMemory, 0), 1),
    ];
    for (case, state, counted) in table {
        let decision = decide(WISHES, &seen(vec![attempt(2, 1, state)]), at(0));
        assert_eq!(decision.counted, Some(counted), "{case}");
    }
}

#[test]
fn a_verdict_is_written_before_the_pod_goes_and_the_next_attempt_follows_it() {
    let with = |wishes, verdict: Option<Verdict>| {
        let observed = Observed {
            verdict,
            ..seen(vec![attempt(1, 0, AttemptState::Running)])
        };
        decide(wishes, &observed, at(0))
    };
    for (cause, reason) in [
        (Cause::Hung, "Hung"),
        (Cause::NodeLost, "PodLost"),
        (Cause::GpuFault, "GpuFault"),
    ] {
        let decision = with(WISHES, Some(verdict(cause)));
        let expected = Intent::GiveUp {
            attempt: 1,
            verdict: verdict(cause),
        };
        assert_eq!(decision.intent, expected);
        assert_eq!(
            (decision.stop, decision.remove),
            (vec![1], vec![]),
            "the Job keeps the verdict"
        );
        assert_eq!((decision.phase, decision.reason.as_str()), (Phase::Restarting, reason));
    }
    assert_eq!(with(WISHES, None).intent, Intent::Wait);
    let no_budget = Wishes {
        max_restarts: 0,
        ..WISHES
    };
    let last = with(no_budget, Some(verdict(Cause::Hung)));
    assert_eq!(
        (last.phase, last.reason.as_str()),
        (Phase::Failed, "MaxRestartsExceeded")
    );
    assert!(matches!(last.intent, Intent::GiveUp { attempt: 1, .. }), "{last:?}");
    assert_eq!((last.stop, last.remove), (vec![1], vec![]));
    let broken = with(no_budget, Some(verdict(Cause::GpuFault)));
    assert_eq!(
        (broken.phase, broken.counted),
        (Phase::Restarting, Some(0)),
        "it costs nothing"
    );
    let suspend = Wishes {
        suspend: true,
        ..WISHES
    };
    let suspended = with(suspend, Some(verdict(Cause::Hung)));
    assert!(matches!(suspended.intent, Intent::SetSuspend { .. }), "{suspended:?}");
    let only_observe = Wishes {
        only_observe: true,
        ..WISHES
    };
    let left_alone = with(only_observe, Some(verdict(Cause::Hung)));
    assert_eq!(
        (left_alone.phase, left_alone.intent, left_alone.stop),
        (Phase::Running, Intent::Wait, vec![])
    );
}

#[test]
fn pods_of_attempts_that_are_over_are_stopped_until_they_are_gone() {
    let lives = |view| AttemptView {
        pod_lives: true,
        ..view
    };
    let observed = seen(vec![
        lives(attempt(1, 0, ended(hung(), -300))),
        attempt(2, 1, ended(hung(), -200)),
        lives(attempt(3, 2, AttemptState::Running)),
    ]);
    assert_eq!(decide(WISHES, &observed, at(0)).stop, [1]);
    let waiting = seen(vec![lives(attempt(1, 0, ended(hung(), 0)))]);
    let decision = decide(WISHES, &waiting, at(0));
    assert_eq!(
        (decision.intent, decision.stop),
        (Intent::Wait, vec![1]),
        "its first delete failed"
    );
}

/// A pod that is cleaned up after the end takes its message along; the end stays.
#[test]
fn what_failed_stays_failed_when_its_pod_goes() {
    let gone = |reason: &str, counted, told_attempt| Observed {
        ended: Some(Ended::Failed {
            reason: reason.to_owned(),
            message: "m".to_owned(),
        }),
        told_attempt,
        ..seen(vec![attempt(
            2,
            counted,
            ended(End::Lost { how: "gone".to_owned() }, -300),
        )])
    };
    for reason in ["DatasetEmpty", "RepeatedFailure", "OutOfMemory"] {
        let decision = decide(WISHES, &gone(reason, 0, 2), at(0));
        assert_eq!((decision.phase, decision.reason.as_str()), (Phase::Failed, reason));
        assert_eq!(decision.intent, Intent::Wait);
    }
    let used_up = decide(WISHES, &gone("MaxRestartsExceeded", 2, 2), at(0));
    assert_eq!((used_up.phase, used_up.intent), (Phase::Failed, Intent::Wait));
    let raised = decide(WISHES, &gone("MaxRestartsExceeded", 1, 2), at(0));
    assert_eq!(raised.intent, start(3, 1));
    // The Job of the attempt that failed is gone, an older one is not.
    let older = decide(WISHES, &gone("MaxRestartsExceeded", 1, 3), at(0));
    assert_eq!((older.phase, older.intent), (Phase::Failed, Intent::Wait));
    // The status is older than the attempt.
    assert_eq!(decide(WISHES, &gone("DatasetEmpty", 0, 1), at(0)).intent, start(3, 0));
}

#[test]
fn the_placement_is_told_while_pods_wait_and_only_then() {
    let problem = Problem {
        reason: reasons::NO_MATCHING_GPU,
        message: "no such node".to_owned(),
    };
    let with = |state| Observed {
        placement: Some(problem.clone()),
        ..seen(vec![attempt(1, 0, state)])
    };
    let waiting = decide(WISHES, &with(AttemptState::Unscheduled), at(0));
    assert_eq!(
        (waiting.phase, waiting.reason.as_str()),
        (Phase::Pending, "NoMatchingGPU")
    );
    assert!(waiting.again <= Duration::from_secs(30));
    assert_eq!(decide(WISHES, &with(AttemptState::Running), at(0)).reason, "Running");
}

#[test]
fn old_jobs_are_removed_beyond_three_lost_ones_at_once_and_never_the_latest() {
    let broken = |n| attempt(n, n - 1, ended(failed(FailureReason::StorageUnavailable), -300));
    let lost = |n| attempt(n, 0, ended(End::Lost { how: String::new() }, -300));
    let observed = seen(vec![
        broken(1),
        broken(2),
        broken(3),
        attempt(4, 3, AttemptState::Running),
    ]);
    assert_eq!(decide(WISHES, &observed, at(0)).remove, [1]);
    let before_the_next = seen(vec![broken(1), broken(2), lost(3)]);
    let decision = decide(WISHES, &before_the_next, at(0));
    assert_eq!((decision.intent, decision.remove), (start(4, 0), vec![1]));
    let after_a_loss = seen(vec![broken(1), lost(2), attempt(3, 1, AttemptState::Unscheduled)]);
    assert_eq!(
        decide(WISHES, &after_a_loss, at(0)).remove,
        [2],
        "its pod may hold a GPU"
    );
}

/// What is seen of attempts of which the last has no room, by a job that may go to another class.
fn without_room(attempts: Vec<AttemptView>, verdict: Option<Verdict>) -> Observed {
    Observed {
        verdict,
        placement: Some(Problem {
            reason: reasons::INSUFFICIENT_GPU,
            message: "1 of 1 pod(s) have no node".to_owned(),
        }),
        ..seen(attempts)
    }
}

#[test]
fn an_attempt_without_room_is_followed_by_one_of_the_fallback_class() {
    let wishes = Wishes {
        fallback: Some("t4"),
        ..WISHES
    };
    let waits = |number, class: &str| AttemptView {
        class: class.to_owned(),
        pod_lives: true,
        ..attempt(number, 1, AttemptState::Unscheduled)
    };
    let gives_up = |turn| Verdict {
        how: "attempt 1 found no room in the accelerator class a100 for 60 s, and the fallback class t4 is next"
            .to_owned(),
        ..verdict(Cause::NoRoom { turn })
    };
    // It is told of before.
    let decision = decide(wishes, &without_room(vec![waits(1, "a100")], None), at(0));
    assert_eq!((&decision.intent, decision.phase), (&Intent::Wait, Phase::Pending));
    assert_eq!(
        decision.message,
        "1 of 1 pod(s) have no node. Where there is no room for 60 s, the next attempt goes to the fallback class t4"
    );
    let unmoved = decide(WISHES, &without_room(vec![waits(1, "a100")], None), at(0));
    assert_eq!(unmoved.message, "1 of 1 pod(s) have no node");

    let observed = without_room(vec![waits(1, "a100")], Some(gives_up(1)));
    let decision = decide(wishes, &observed, at(0));
    assert_eq!(
        decision.intent,
        Intent::GiveUp {
            attempt: 1,
            verdict: gives_up(1)
        }
    );
    assert_eq!(
        (decision.phase, decision.reason.as_str()),
        (Phase::Restarting, "FallbackClass")
    );
    assert!(
        decision
            .message
            .ends_with("the fallback class t4 is next. A new attempt follows; it does not count"),
        "{}",
        decision.message
    );
    assert_eq!((decision.stop, decision.counted), (vec![1], Some(1)));
    for kept in [
        Wishes {
            suspend: true,
            ..wishes
        },
        Wishes {
            only_observe: true,
            ..wishes
        },
    ] {
        let decision = decide(kept, &observed, at(0));
        assert!(!matches!(decision.intent, Intent::GiveUp { .. }), "{kept:?}");
    }

    // Its pods are told to end before the next one begins.
    let given_up = |number, class: &str, turn, pod_lives| AttemptView {
        class: class.to_owned(),
        pod_lives,
        ..attempt(number, 1, AttemptState::Ended(gives_up(turn).ended()))
    };
    let decision = decide(wishes, &seen(vec![given_up(1, "a100", 1, true)]), at(1));
    assert_eq!((decision.intent, decision.stop), (Intent::Wait, vec![1]));
    let next = |attempt, class: &str| Intent::StartAttempt {
        attempt,
        counted: 1,
        class: class.to_owned(),
    };
    let decision = decide(wishes, &seen(vec![given_up(1, "a100", 1, false)]), at(1));
    assert_eq!((decision.intent, decision.stop), (next(2, "t4"), vec![]));
    assert_eq!(decision.reason, "FallbackClass");
    let suspend = Wishes {
        suspend: true,
        ..wishes
    };
    let decision = decide(suspend, &seen(vec![given_up(1, "a100", 1, false)]), at(1));
    assert_eq!((decision.intent, decision.phase), (Intent::Wait, Phase::Suspended));
    let back = seen(vec![given_up(1, "a100", 1, false), given_up(2, "t4", 2, false)]);
    assert_eq!(decide(wishes, &back, at(1)).intent, next(3, "a100"));

    // There it runs, and whatever ends it leads back.
    let runs = AttemptView {
        class: "t4".to_owned(),
        ..attempt(2, 1, AttemptState::Running)
    };
    let decision = decide(wishes, &seen(vec![given_up(1, "a100", 1, false), runs.clone()]), at(1));
    assert_eq!(decision.message, "the pod runs, in the fallback class t4");
    let lost = AttemptView {
        state: ended(
            End::Lost {
                how: "deleted".to_owned(),
            },
            0,
        ),
        ..runs
    };
    let decision = decide(wishes, &seen(vec![lost.clone()]), at(1));
    assert_eq!(
        (decision.intent, decision.stop),
        (Intent::Wait, vec![2]),
        "no pods of two classes"
    );
    let gone = AttemptView {
        pod_lives: false,
        ..lost
    };
    assert_eq!(decide(wishes, &seen(vec![gone]), at(1)).intent, next(3, "a100"));
}

#[test]
fn an_attempt_without_its_image_is_followed_by_another_one_when_its_pods_are_gone() {
    let blocked = |number, reason| AttemptView {
        pod_lives: true,
        ..attempt(
            number,
            1,
            AttemptState::Blocked {
                reason,
                message: "the image r/x:1 cannot be pulled for pod p; it is tried again by itself".to_owned(),
            },
        )
    };
    let gives_up = Verdict {
        how: "attempt 1 could not have its image on n-1 for 75 s, and other nodes are preferred next".to_owned(),
        ..verdict(Cause::NoImage { since: at(0), turn: 1 })
    };
    let of = |attempt, verdict| Observed {
        verdict,
        ..seen(vec![attempt])
    };
    let waits = decide(WISHES, &of(blocked(1, reasons::IMAGE_PULL_FAILED), None), at(0));
    assert_eq!((&waits.intent, waits.phase), (&Intent::Wait, Phase::Blocked));
    assert_eq!(
        waits.message,
        "the image r/x:1 cannot be pulled for pod p; it is tried again by itself. Where it is not there after 75 s, another \
         attempt follows, which prefers other nodes"
    );
    let decision = decide(
        WISHES,
        &of(blocked(1, reasons::IMAGE_PULL_FAILED), Some(gives_up.clone())),
        at(75),
    );
    assert_eq!(
        decision.intent,
        Intent::GiveUp {
            attempt: 1,
            verdict: gives_up.clone()
        }
    );
    assert_eq!(
        (decision.phase, decision.reason.as_str(), decision.counted),
        (Phase::Restarting, "ImagePullFailed", Some(1))
    );
    // What was seen of another state does not count any more.
    let secret = decide(
        WISHES,
        &of(blocked(1, reasons::POD_CONFIG_INVALID), Some(gives_up.clone())),
        at(75),
    );
    assert_eq!((secret.intent, secret.phase), (Intent::Wait, Phase::Blocked));

    // Its pod could have its image in this moment, beside the next one.
    let given_up = |pod_lives| AttemptView {
        pod_lives,
        ..attempt(1, 1, AttemptState::Ended(gives_up.ended()))
    };
    let decision = decide(WISHES, &seen(vec![given_up(true)]), at(76));
    assert_eq!((decision.intent, decision.stop), (Intent::Wait, vec![1]));
    let decision = decide(WISHES, &seen(vec![given_up(false)]), at(76));
    assert_eq!(decision.intent, start(2, 1));
}

/// An attempt of two pods.
fn of_two(state: AttemptState, running: u32) -> AttemptView {
    AttemptView {
        nodes: 2,
        running,
        pod_lives: running > 0,
        ..attempt(1, 0, state)
    }
}

#[test]
fn what_one_of_several_pods_tells_comes_with_its_number() {
    let table = [
        (failed(FailureReason::DatasetEmpty), "pod 1: words."),
        (failed(FailureReason::OutOfMemory), "pod 1: words. Lower"),
        (End::OutOfMemory, "pod 1: the container used more memory"),
        (
            failed(FailureReason::PeerLost),
            "attempt 1 failed: pod 1: words. Restart 1 of 2",
        ),
        (
            End::Unclear {
                message: "exit code 139".to_owned(),
            },
            "attempt 1 failed: pod 1: exit code 139. Restart 1 of 2",
        ),
        (
            End::Lost {
                how: "EvictionByEvictionAPI: drained".to_owned(),
            },
            "attempt 1 was lost: pod 1: EvictionByEvictionAPI: drained. A new attempt follows; it does not count",
        ),
        (
            End::Told(Outcome::Assisted),
            "attempt 1 failed: pod 1: the pod ended with a message that no training gives",
        ),
    ];
    for (end, words) in table {
        let ended = EndedAttempt {
            end,
            at: Some(at(-300)),
            position: None,
            told_by: Some(ToldBy {
                index: 1,
                telling: Telling::PeerLost,
            }),
        };
        let message = decide(WISHES, &seen(vec![of_two(AttemptState::Ended(ended), 0)]), at(0)).message;
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn pods_without_a_peer_cost_one_restart_and_never_end_the_job_as_a_step_that_fails_again() {
    let lost_peer = || ended_at(failed(FailureReason::PeerLost), -300, (85, 80, 80));
    let observed = seen(vec![attempt(1, 0, lost_peer()), attempt(2, 1, lost_peer())]);
    assert_eq!(decide(WISHES, &observed, at(0)).intent, start(3, 2));
    let further = ended_at(failed(FailureReason::PeerLost), -300, (95, 80, 90));
    assert_eq!(
        decide(WISHES, &seen(vec![attempt(2, 2, further)]), at(0)).intent,
        start(3, 0)
    );
}

#[test]
fn when_one_of_several_pods_ends_the_others_are_stopped_and_followed_when_index_0_has_saved() {
    let peer_lost = EndedAttempt {
        end: failed(FailureReason::PeerLost),
        at: Some(at(-300)),
        position: None,
        told_by: Some(ToldBy {
            index: 1,
            telling: Telling::PeerLost,
        }),
    };
    let saves = decide(
        WISHES,
        &seen(vec![of_two(AttemptState::Ending(peer_lost.clone()), 1)]),
        at(0),
    );
    assert_eq!(
        (saves.intent, saves.stop, saves.remove),
        (Intent::Wait, vec![1], vec![])
    );
    assert_eq!((saves.phase, saves.reason.as_str()), (Phase::Restarting, "PeerLost"));
    assert!(saves.again <= Duration::from_secs(1));
    let saved = decide(
        WISHES,
        &seen(vec![of_two(AttemptState::Ended(peer_lost.clone()), 1)]),
        at(0),
    );
    assert_eq!((saved.intent, saved.stop), (start(2, 1), vec![1]));
    // What ends the job waits for that, too, and keeps the Job with its logs.
    let no_budget = Wishes {
        max_restarts: 0,
        ..WISHES
    };
    let last = decide(
        no_budget,
        &seen(vec![of_two(AttemptState::Ending(peer_lost.clone()), 1)]),
        at(0),
    );
    assert_eq!((last.intent, last.stop, last.remove), (Intent::Wait, vec![1], vec![]));
    assert_eq!(
        (last.phase, last.reason.as_str()),
        (Phase::Restarting, "MaxRestartsExceeded")
    );
    let over = decide(no_budget, &seen(vec![of_two(AttemptState::Ended(peer_lost), 1)]), at(0));
    assert_eq!((over.phase, over.stop, over.remove), (Phase::Failed, vec![1], vec![]));
}

#[test]
fn how_several_pods_ended_is_written_before_the_next_attempt_follows() {
    let AttemptState::Ended(ended) = ended(failed(FailureReason::PeerLost), -300) else {
        panic!("ended")
    };
    let view = AttemptView {
        unrecorded: Some(ended.clone()),
        ..of_two(AttemptState::Ended(ended.clone()), 0)
    };
    let decision = decide(WISHES, &seen(vec![view.clone()]), at(0));
    assert_eq!((decision.record, decision.intent), (Some(ended), start(2, 1)));
    // Only of the last one: what was before is no more to be decided.
    let later = seen(vec![view, attempt(2, 1, AttemptState::Running)]);
    assert_eq!(decide(WISHES, &later, at(0)).record, None);
}

#[test]
fn pods_of_a_training_that_is_complete_end_by_themselves_for_a_while() {
    let complete = |seconds| seen(vec![of_two(ended(trained(), seconds), 1)]);
    for (seconds, stop) in [(0, vec![]), (-29, vec![]), (-30, vec![1]), (-300, vec![1])] {
        let decision = decide(WISHES, &complete(seconds), at(0));
        assert!(matches!(decision.intent, Intent::Complete(_)), "{decision:?}");
        assert_eq!((decision.stop, decision.remove), (stop, vec![]), "{seconds}");
        let made = Observed {
            version_made: true,
            ..complete(seconds)
        };
        assert_eq!(decide(WISHES, &made, at(0)).stop.is_empty(), seconds > -30, "{seconds}");
    }
}

#[test]
fn several_pods_are_suspended_together() {
    let suspend = Wishes {
        suspend: true,
        ..WISHES
    };
    for state in [AttemptState::Running, AttemptState::Starting, AttemptState::Unscheduled] {
        let decision = decide(suspend, &seen(vec![of_two(state, 1)]), at(0));
        assert_eq!(
            decision.intent,
            Intent::SetSuspend {
                attempt: 1,
                suspend: true
            }
        );
        assert!(decision.stop.is_empty(), "the Job controller ends them");
    }
    // One was told to end before the other, and the Job does not show the suspension yet.
    let first = EndedAttempt {
        end: End::Lost {
            how: "its pod was deleted".to_owned(),
        },
        at: Some(at(30)),
        position: None,
        told_by: Some(ToldBy {
            index: 1,
            telling: Telling::Taken,
        }),
    };
    let view = AttemptView {
        unrecorded: Some(first.clone()),
        ..of_two(AttemptState::Ending(first), 1)
    };
    let decision = decide(suspend, &seen(vec![view]), at(0));
    assert_eq!(
        (decision.intent, decision.record, decision.stop),
        (Intent::Wait, None, vec![]),
        "it goes on later under the same number"
    );
}

#[test]
fn that_jobs_may_wait_for_each_other_is_said_after_five_minutes() {
    let observed = |created, running| Observed {
        placement: Some(Problem {
            reason: reasons::INSUFFICIENT_GPU,
            message: "1 of 2 pod(s) have no node".to_owned(),
        }),
        ..seen(vec![AttemptView {
            created: at(created),
            ..of_two(AttemptState::Unscheduled, running)
        }])
    };
    for (created, running, said) in [(-299, 1, false), (-300, 1, true), (-3000, 0, false)] {
        let decision = decide(WISHES, &observed(created, running), at(0));
        assert_eq!(
            (decision.intent, decision.phase, decision.reason.as_str()),
            (Intent::Wait, Phase::Pending, "InsufficientGPU")
        );
        assert!(
            decision.message.starts_with("1 of 2 pod(s) have no node"),
            "{}",
            decision.message
        );
        assert_eq!(
            decision.message.contains("spec.suspend"),
            said,
            "{created} {running}: {}",
            decision.message
        );
    }
}

#[test]
fn messages_speak_of_as_many_pods_as_there_are() {
    let message = |nodes, state| {
        let view = AttemptView {
            nodes,
            ..attempt(1, 0, state)
        };
        decide(WISHES, &seen(vec![view]), at(0)).message
    };
    assert_eq!(message(1, AttemptState::Running), "the pod runs");
    assert_eq!(message(3, AttemptState::Running), "all 3 pods run");
    assert_eq!(
        message(3, AttemptState::Starting),
        "all pods have a node, and some are being started"
    );
    let refused = || AttemptState::NoPod {
        refused: Some("quota".to_owned()),
    };
    assert!(message(1, refused()).starts_with("the pod cannot be made: quota"));
    assert!(message(3, refused()).starts_with("a pod cannot be made: quota"));
    let no_account = AttemptState::NoPod {
        refused: Some("serviceaccount \"robot\" not found".to_owned()),
    };
    let told = message(1, no_account);
    assert!(told.contains("another spec.serviceAccountName"), "{told}");
}

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![
        prop::sample::select(FailureReason::ALL.to_vec()).prop_map(failed),
        Just(End::OutOfMemory),
        Just(End::Unclear {
            message: "m".to_owned()
        }),
        Just(End::Lost { how: "h".to_owned() }),
        Just(gpu_fault()),
        Just(hung()),
    ]
}

fn any_position() -> impl Strategy<Value = Option<Position>> {
    prop::option::of((0u64..4, 0u64..4, 0u64..4, 0u32..60)).prop_map(|position| {
        let (step, resumed_from_step, checkpoint_step, head_attempt) = position?;
        Some(Position {
            step,
            resumed_from_step,
            checkpoint_step,
            head_attempt,
        })
    })
}

fn any_over() -> impl Strategy<Value = EndedAttempt> {
    (any_end(), -400i64..10, any_position()).prop_map(|(end, seconds, position)| EndedAttempt {
        end,
        at: Some(at(seconds)),
        position,
        told_by: None,
    })
}

fn any_state() -> impl Strategy<Value = AttemptState> {
    prop_oneof![
        Just(AttemptState::NoPod { refused: None }),
        Just(AttemptState::Unscheduled),
        Just(AttemptState::Starting),
        Just(AttemptState::Running),
        any_over().prop_map(AttemptState::Ending),
        any_over().prop_map(AttemptState::Ended),
    ]
}

proptest! {
    /// Whatever the latest attempts did: the next one has a new number, its budget never exceeds the spec's, nothing follows
    /// what trying again cannot mend, and no attempt of which a pod may run is followed but one that was taken away.
    #[test]
    fn an_attempt_follows_its_predecessor_within_the_budget(
        number in 2u32..50, counted in 0u32..5, max_restarts in 0u32..5, suspend: bool, told in 0u32..60,
        earlier in any_over(), state in any_state(), gives_up: bool,
    ) {
        let observed = Observed {
            told_attempt: told,
            verdict: gives_up.then(|| verdict(Cause::Hung)),
            ..seen(vec![
                attempt(number - 1, 0, AttemptState::Ended(earlier.clone())),
                attempt(number, counted.min(max_restarts), state.clone()),
            ])
        };
        let result = |end: &End| matches!(end, End::Told(Outcome::Trained(_)));
        prop_assume!(!result(&earlier.end));
        let decision = decide(Wishes { suspend, max_restarts, ..WISHES }, &observed, at(0));
        if let Intent::StartAttempt { attempt: next, counted: then, .. } = decision.intent {
            prop_assert!(next > number && next > told);
            prop_assert!(then <= max_restarts);
            prop_assert!(!suspend);
            let AttemptState::Ended(over) = &state else { panic!("started beside a running attempt") };
            if let End::Told(Outcome::Failed(failure)) = &over.end {
                prop_assert_eq!(failure.reason.class(), flywheel_contract::failure::FailureClass::Infrastructure);
            }
            prop_assert!(over.end != End::OutOfMemory);
            let further = over.position.is_some_and(|p| p.checkpoint_step > p.resumed_from_step);
            let taken = matches!(over.end, End::Lost { .. } | End::GpuFault { .. }) || over.end == failed(FailureReason::Fenced);
            // Without progress a counter only grows; it grows by one where the pod was not taken away.
            if !further {
                prop_assert_eq!(then, counted.min(max_restarts) + u32::from(!taken));
            } else {
                prop_assert!(then == 0 || then == counted.min(max_restarts) + u32::from(!taken));
            }
        }
        if let Intent::GiveUp { attempt: given_up, .. } = &decision.intent {
            prop_assert_eq!(*given_up, number);
            prop_assert!(gives_up && !suspend && state == AttemptState::Running);
            prop_assert!(decision.stop.contains(&number) && !decision.remove.contains(&number));
        }
        prop_assert!(decision.again > Duration::ZERO && decision.again <= Duration::from_secs(60));
        prop_assert!(!decision.remove.contains(&number) || decision.phase == Phase::Complete || decision.phase == Phase::Failed);
    }

    /// Attempts that never come further than where they began end after `maxRestarts` restarts, however they end.
    #[test]
    fn without_progress_there_is_an_end(max_restarts in 0u32..6, ends in prop::collection::vec(any_end(), 40)) {
        let wishes = Wishes { max_restarts, ..WISHES };
        let (mut number, mut counted, mut failures) = (1, 0, 0);
        for end in ends {
            let free = matches!(end, End::Lost { .. } | End::GpuFault { .. }) || end == failed(FailureReason::Fenced);
            let state = ended_at(end, -300, (90, 80, 80));
            match decide(wishes, &seen(vec![attempt(number, counted, state)]), at(0)).intent {
                Intent::StartAttempt { attempt: next, counted: then, .. } => {
                    failures += u32::from(!free);
                    (number, counted) = (next, then);
                }
                Intent::Wait => break,
                other => panic!("{other:?}"),
            }
        }
        prop_assert!(failures <= max_restarts);
    }

    /// Nor does it help to delete Jobs, whenever that is.
    #[test]
    fn without_progress_there_is_an_end_whatever_is_deleted(
        max_restarts in 0u32..6, ends in prop::collection::vec((any_end(), any::<bool>()), 40),
    ) {
        let wishes = Wishes { max_restarts, ..WISHES };
        let (mut number, mut counted, mut failures) = (1, 0, 0);
        for (end, is_deleted) in ends {
            let free = matches!(end, End::Lost { .. } | End::GpuFault { .. }) || end == failed(FailureReason::Fenced);
            // The pass that sees the end tells the count, and may have to wait.
            let told = decide(wishes, &seen(vec![attempt(number, counted, ended_at(end.clone(), 0, (90, 80, 80)))]), at(0));
            if told.phase == Phase::Failed {
                break;
            }
            let later = if is_deleted {
                deleted(number, told.counted)
            } else {
                seen(vec![attempt(number, counted, ended_at(end, -300, (90, 80, 80)))])
            };
            failures += u32::from(!free);
            match decide(wishes, &later, at(0)).intent {
                Intent::StartAttempt { attempt: next, counted: then, .. } => (number, counted) = (next, then),
                other => panic!("{other:?}"),
            }
        }
        prop_assert!(failures <= max_restarts);
    }

    /// With the decided attempt there, the same question is answered with waiting: two passes make one Job.
    #[test]
    fn deciding_twice_starts_once(state in any_state()) {
        let mut observed = seen(vec![attempt(1, 0, state)]);
        if let Intent::StartAttempt { attempt: n, counted, .. } = decide(WISHES, &observed, at(0)).intent {
            observed.attempts.push(attempt(n, counted, AttemptState::NoPod { refused: None }));
            prop_assert_eq!(decide(WISHES, &observed, at(0)).intent, Intent::Wait);
        }
    }
}
