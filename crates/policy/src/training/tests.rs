//! Tables and properties of [`super::decide`].

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Digest;
use flywheel_contract::trainer::ArtifactRef;
use proptest::prelude::*;

use super::attempt::EndedAttempt;
use super::*;

const NOW: i64 = 1_700_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn attempt(number: u32, counted: u32, state: AttemptState) -> AttemptView {
    AttemptView {
        number,
        counted,
        created: at(-600),
        suspended: false,
        state,
    }
}

fn ended(end: End, seconds: i64) -> AttemptState {
    AttemptState::Ended(EndedAttempt {
        end,
        at: Some(at(seconds)),
    })
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
    }))
}

fn seen(attempts: Vec<AttemptView>) -> Observed {
    Observed {
        last_attempt: attempts.last().map_or(0, |a| a.number),
        attempts,
        ..Observed::default()
    }
}

const WISHES: Wishes = Wishes {
    suspend: false,
    max_restarts: 2,
};

fn start(attempt: u32, counted: u32) -> Intent {
    Intent::StartAttempt { attempt, counted }
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
    let infra = || failed(FailureReason::StorageUnavailable);
    let table: Vec<(&str, Observed, Intent, Phase, &str)> = vec![
        ("new", seen(vec![]), start(1, 0), Phase::Pending, "Pending"),
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
            "the Job was deleted",
            Observed {
                last_attempt: 2,
                ..Observed::default()
            },
            start(3, 0),
            Phase::Restarting,
            "PodLost",
        ),
        (
            "failed, and its Jobs are gone",
            Observed {
                last_attempt: 2,
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

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![
        prop::sample::select(FailureReason::ALL.to_vec()).prop_map(failed),
        Just(End::OutOfMemory),
        Just(End::Unclear {
            message: "m".to_owned()
        }),
        Just(End::Lost { how: "h".to_owned() }),
    ]
}

fn any_state() -> impl Strategy<Value = AttemptState> {
    prop_oneof![
        Just(AttemptState::NoPod { refused: None }),
        Just(AttemptState::Unscheduled),
        Just(AttemptState::Starting),
        Just(AttemptState::Running),
        (any_end(), -400i64..10).prop_map(|(end, seconds)| ended(end, seconds)),
    ]
}

proptest! {
    /// Whatever the latest attempt does: the next one is the one after it, its budget never exceeds the spec's, and a user's
    /// failure is followed by none.
    #[test]
    fn an_attempt_follows_its_predecessor_within_the_budget(
        number in 1u32..50, counted in 0u32..5, max_restarts in 0u32..5, suspend: bool, state in any_state(),
    ) {
        let observed = seen(vec![attempt(number, counted.min(max_restarts), state.clone())]);
        let decision = decide(Wishes { suspend, max_restarts }, &observed, at(0));
        if let Intent::StartAttempt { attempt, counted } = decision.intent {
            prop_assert_eq!(attempt, number + 1);
            prop_assert!(counted <= max_restarts);
            prop_assert!(!suspend);
            let AttemptState::Ended(end) = &state else { panic!("started beside a running attempt") };
            if let End::Told(Outcome::Failed(failure)) = &end.end {
                prop_assert_eq!(failure.reason.class(), flywheel_contract::failure::FailureClass::Infrastructure);
            }
        }
        prop_assert!(decision.again > Duration::ZERO && decision.again <= Duration::from_secs(60));
        prop_assert!(!decision.remove.contains(&number) || decision.phase == Phase::Complete || decision.phase == Phase::Failed);
    }

    /// With the decided attempt there, the same question is answered with waiting: two passes make one Job.
    #[test]
    fn deciding_twice_starts_once(state in any_state()) {
        let mut observed = seen(vec![attempt(1, 0, state)]);
        if let Intent::StartAttempt { attempt: n, counted } = decide(WISHES, &observed, at(0)).intent {
            observed.attempts.push(attempt(n, counted, AttemptState::NoPod { refused: None }));
            prop_assert_eq!(decide(WISHES, &observed, at(0)).intent, Intent::Wait);
        }
    }
}
