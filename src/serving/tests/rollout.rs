//! A new version by steps.

use flywheel_api::inference_service::RolloutFigure::{Accuracy, Agreement, ComputeTime, ErrorRate, Labels};

use super::learning::Operator;
use super::*;

const BOTH: [(&str, &str); 2] = [("intent-v1", "Ready"), ("intent-v2", "Ready")];

impl World {
    /// The two pods of `intent-v1`, and `intent-v2` is to come by this step.
    async fn rolling() -> Self {
        let world = Self::serving().await;
        world.version("intent-v2", "intent", Some("True"));
        world.spec(
            json!({"modelVersion": "intent-v2", "rollout": {"steps": [{"weightPercent": 10, "durationSeconds": 60}]}}),
        );
        assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
        assert_eq!(world.assigned(), ["intent-v1"], "the other pod is not to load it");
        assert_eq!(world.canary(), [("a".to_owned(), 2000)]);
        world
    }

    fn canary(&self) -> Vec<(String, u16)> {
        let canary = self.assignment().canary;
        canary.into_iter().flat_map(|canary| canary.pods).collect()
    }

    fn rollout(&self) -> (String, String, String) {
        let status = self.service().status.unwrap();
        let condition = find(&status.conditions, "RolloutProgressing").unwrap();
        (
            condition.status.clone(),
            condition.reason.clone(),
            condition.message.clone(),
        )
    }

    fn traffic(&self) -> Vec<(String, i32, Option<i32>)> {
        let traffic = self.service().status.unwrap().traffic;
        traffic
            .into_iter()
            .map(|t| (t.model_version, t.pods, t.percent))
            .collect()
    }
}

#[tokio::test]
async fn a_version_comes_by_steps_and_the_status_shows_what_pods_answer_with() {
    let mut world = World::rolling().await;
    let (status, reason, message) = world.rollout();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "RolloutStep"));
    assert!(message.starts_with("step 1 of 1: 1 pod(s) load intent-v2"), "{message}");
    assert_eq!(world.ready().0, "True", "clients notice nothing");
    assert_eq!(world.traffic(), [("intent-v1".to_owned(), 2, None)]);
    assert_eq!(world.writes().await, NOTHING);

    world.say("a", stats(u64::MAX, "intent-v1", &BOTH));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    let (writes, again) = world.reconcile().await;
    assert_eq!(
        (writes.as_slice(), again),
        (&NOTHING.map(str::to_owned)[..], Duration::from_secs(60))
    );
    let traffic = [
        ("intent-v1".to_owned(), 2, Some(90)),
        ("intent-v2".to_owned(), 1, Some(10)),
    ];
    assert_eq!(world.traffic(), traffic);
    let status = world.service().status.unwrap();
    assert_eq!(
        (status.canary.as_deref(), status.model_version.as_deref()),
        (Some("intent-v2 10%"), Some("intent-v1"))
    );
    let (_, _, message) = world.rollout();
    assert!(
        message.contains("The next step comes at 2027-01-15T08:01:00Z"),
        "{message}"
    );
    world.seconds += 59;
    assert_eq!(world.writes().await, NOTHING);
    world.spec(json!({"rollout": {"paused": true}}));
    world.seconds += 600;
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.rollout().1, "RolloutPaused");
    world.spec(json!({"rollout": {"paused": false}}));

    // The last step is over: all load it, and change over once all have it.
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
    assert_eq!(world.canary().len(), 1, "its pod goes on");
    assert_eq!(
        (world.rollout().1.as_str(), world.ready().1.as_str()),
        ("RolloutLastStep", "VersionLoading")
    );
    world.say("b", stats(u64::MAX, "intent-v1", &BOTH));
    world.reconcile().await;
    assert_eq!(
        (world.assigned(), world.canary()),
        (vec!["intent-v2".to_owned()], vec![])
    );
    let after = stats(u64::MAX, "intent-v2", &[("intent-v2", "Ready")]);
    world.say("a", after.clone());
    world.say("b", after);
    world.reconcile().await;
    assert_eq!(
        (world.rollout().1.as_str(), world.ready().0.as_str()),
        ("RolloutComplete", "True")
    );
    let (_, _, message) = world.rollout();
    assert!(
        message.ends_with("NotJudged: labels (its pods do not tell them), what it does (there is no rollout.analysis)"),
        "{message}"
    );
    assert_eq!(world.traffic(), [("intent-v2".to_owned(), 2, None)]);
    assert_eq!(world.service().status.unwrap().canary, None);
    assert_eq!(world.writes().await, NOTHING);
}

#[tokio::test]
async fn no_step_begins_before_the_version_is_verified() {
    let world = World::serving().await;
    world.version("intent-v2", "intent", None);
    world.spec(
        json!({"modelVersion": "intent-v2", "rollout": {"steps": [{"weightPercent": 10, "durationSeconds": 60}]}}),
    );
    assert_eq!(world.writes().await, ["apply status"]);
    let (status, reason, message) = world.rollout();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "VerificationPending"));
    assert!(message.contains("The pods answer with intent-v1"), "{message}");
    assert_eq!((world.canary(), world.ready().0.as_str()), (vec![], "True"));
    world.version("intent-v2", "intent", Some("True"));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    assert_eq!(world.canary(), [("a".to_owned(), 2000)]);
}

#[tokio::test]
async fn a_canary_that_ends_a_pod_is_rejected_for_good() {
    let world = World::rolling().await;
    world.say("a", stats(u64::MAX, "intent-v1", &BOTH));
    world.reconcile().await;
    world.came_back("a", &BOTH, &json!({"exitCode": 134, "reason": "Error"}));
    // First the rejection, since the pod forgets what it knows with the version.
    assert_eq!(
        world.writes().await,
        ["merge modelversions", "apply configmaps", "apply status"]
    );
    assert_eq!(
        (world.assigned(), world.canary()),
        (vec!["intent-v1".to_owned()], vec![])
    );
    let (status, reason, message) = world.rollout();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RolledBack"));
    let words = "intent-v2 is rejected: the server of pod a ended by signal 6 while it computed with it. The pods answer with intent-v1";
    assert!(message.starts_with(words), "{message}");
    assert!(
        message.ends_with("kubectl annotate modelversion intent-v2 flywheel.dev/rejected-"),
        "{message}"
    );
    assert_eq!(world.ready(), ("True".to_owned(), "RolledBack".to_owned(), message));
    world.say("a", stats(u64::MAX, "intent-v1", &[BOTH[0]]));
    assert_eq!(world.writes().await, NOTHING);
    // Not without steps either.
    world.spec(json!({"rollout": null}));
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v1"]);
    assert_eq!(world.rollout().1, "RolledBack");

    // Somebody has looked at it.
    world.spec(json!({"rollout": {"steps": [{"weightPercent": 10, "durationSeconds": 60}]}}));
    let path = format!("{VERSIONS}intent-v2");
    let mut version = world.object(&path);
    version["metadata"]["annotations"] = Value::Null;
    world.put(&path, version);
    world.reconcile().await;
    assert_eq!(world.canary(), [("a".to_owned(), 2000)]);
}

#[tokio::test]
async fn a_canary_whose_rejection_is_refused_reaches_no_other_pod() {
    let world = World::rolling().await;
    world.say("a", stats(u64::MAX, "intent-v1", &BOTH));
    world.reconcile().await;
    let before = world.assignment();
    world.came_back("a", &BOTH, &json!({"exitCode": 139, "reason": "Error"}));
    world.state.lock().unwrap().refused = Some("modelversions");
    let (writes, _) = world.reconcile().await;
    assert_eq!(writes, ["merge modelversions", "apply status"]);
    assert_eq!(world.assignment(), before, "the pod holds it back, and no other has it");
    assert_eq!(world.ready().1, "ChildRefused", "and whoever can mend it hears of it");
    world.state.lock().unwrap().refused = None;
    world.reconcile().await;
    assert_eq!(world.canary(), []);
}

#[tokio::test]
async fn a_canary_is_not_rejected_for_memory_that_ran_out_once() {
    let world = World::rolling().await;
    world.say("a", stats(u64::MAX, "intent-v1", &BOTH));
    world.reconcile().await;
    world.came_back("a", &BOTH, &json!({"exitCode": 137, "reason": "OOMKilled"}));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    let assignment = world.assignment();
    assert_eq!(assignment.cleared.len(), 1);
    assert_eq!(world.canary(), [("a".to_owned(), 2000)]);
    assert_eq!(world.rollout().1, "RolloutStep");
}

#[tokio::test]
async fn a_canary_needs_a_second_pod() {
    let world = World::new(json!({"replicas": 1}));
    world.reconcile().await;
    world.deployment_status(1, 1, 1);
    world.pod("a", "intent-v1", true);
    world.reconcile().await;
    world.version("intent-v2", "intent", Some("True"));
    world.spec(
        json!({"modelVersion": "intent-v2", "rollout": {"steps": [{"weightPercent": 10, "durationSeconds": 60}]}}),
    );
    world.reconcile().await;
    let (status, reason, message) = world.rollout();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InsufficientReplicas"));
    assert!(message.contains("Raise replicas"), "{message}");
    assert_eq!(
        (world.assigned(), world.canary()),
        (vec!["intent-v1".to_owned()], vec![])
    );
    assert_eq!(world.ready().0, "True");
}

#[tokio::test]
async fn a_canary_that_takes_long_is_looked_at_once_a_second() {
    let world = World::rolling().await;
    let operator = Arc::new(world.context());
    let again = async || world.reconcile_by(Arc::clone(&operator)).await.1;
    assert_eq!(again().await, Duration::from_millis(200));
    for _ in 0..60 {
        again().await;
    }
    assert_eq!(again().await, Duration::from_secs(1));
}

#[tokio::test]
async fn a_version_that_is_no_good_in_the_middle_has_not_arrived() {
    let world = World::rolling().await;
    world.say("a", stats(u64::MAX, "intent-v1", &BOTH));
    world.reconcile().await;
    world.version("intent-v2", "intent", Some("False"));
    world.reconcile().await;
    assert_eq!(
        (world.assigned(), world.canary()),
        (vec!["intent-v1".to_owned()], vec![])
    );
    let (status, reason, message) = world.rollout();
    assert_eq!(status, "False");
    assert!(
        reason != "RolloutComplete" && message.contains("intent-v2"),
        "{reason}: {message}"
    );
}

/// What a pod says that has both, of which the one that comes lacks these labels of 19, and did so much.
fn labelled(missing: &[&str], did: &Value) -> Value {
    let mut says = stats(u64::MAX, "intent-v1", &BOTH);
    says["versions"][1]["labels"] = json!({"to": says["versions"][0]["digest"], "theirs": 19, "missing": missing.len(),
        "first": missing});
    for version in [0, 1] {
        says["versions"][version]["figures"] = did.clone();
    }
    says
}

#[tokio::test]
async fn a_version_that_lacks_labels_is_rejected_unless_it_is_approved() {
    for analysis in [Value::Null, json!({})] {
        let world = World::rolling().await;
        world.spec(json!({"rollout": {"analysis": analysis}}));
        world.say("a", labelled(&["TurnOn", "TurnOff"], &Value::Null));
        assert_eq!(
            world.writes().await,
            ["merge modelversions", "apply configmaps", "apply status"]
        );
        assert_eq!(world.canary(), []);
        let (status, reason, message) = world.rollout();
        assert_eq!((status.as_str(), reason.as_str()), ("False", "RolledBack"));
        let words =
            "intent-v2 is rejected: it does not know 2 of the 19 labels of the version before (TurnOn, TurnOff)";
        assert!(
            message.starts_with(words) && message.contains("rollout.approvedVersion"),
            "{message}"
        );
        assert_eq!(world.ready().0, "True");
        assert_eq!(world.service().status.unwrap().rollout, None);
    }
    let world = World::rolling().await;
    world.spec(json!({"rollout": {"approvedVersion": "intent-v2"}}));
    world.say("a", labelled(&["TurnOn"], &Value::Null));
    world.reconcile().await;
    assert_eq!(world.rollout().1, "RolloutLastStep");
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
}

#[tokio::test]
async fn what_a_version_was_not_judged_by_is_told_until_another_one_answers() {
    let mut world = World::rolling().await;
    world.spec(json!({"rollout": {"analysis": {}}, "feedback": {"signingKeySecretRef": {"name": "k", "key": "k"}}}));
    let mut operator = Operator::default();
    let did = |texts: u64, judged: u64| {
        json!({"texts": texts, "failed": 0, "alone": 0, "aloneSeconds": 0.0, "aloneSquares": 0.0,
            "judged": judged, "correct": judged})
    };
    let figures = |world: &World| world.service().status.unwrap().rollout.unwrap();
    world.say("a", labelled(&[], &did(0, 0)));
    operator.pass(&world, false).await;
    world.say("a", labelled(&[], &did(200, 99)));
    operator.pass(&world, false).await;
    assert_eq!(figures(&world).judged, [Labels, ErrorRate]);
    assert_eq!(figures(&world).not_judged, [Agreement, ComputeTime, Accuracy]);
    world.seconds += 600;
    operator.pass(&world, false).await;
    assert_eq!(world.rollout().1, "InsufficientTraffic", "clients may still judge");
    // Another operator begins to count anew, and somebody does not want to wait.
    world.spec(json!({"rollout": {"approvedVersion": "intent-v2"}}));
    world.reconcile().await;
    world.say("b", labelled(&[], &did(0, 0)));
    world.reconcile().await;
    let after = stats(u64::MAX, "intent-v2", &[("intent-v2", "Ready")]);
    world.say("a", after.clone());
    world.say("b", after);
    world.reconcile().await;
    let (_, reason, message) = world.rollout();
    assert_eq!(reason, "RolloutComplete");
    assert!(
        message.contains("NotJudged: agreement (")
            && message.contains("accuracy (clients judged fewer than analysis.minSamples"),
        "{message}"
    );
    assert!(!message.contains("errorRate"), "{message}");
    assert_eq!(figures(&world).model_version, "intent-v2");
    world.reconcile().await;
    assert_eq!(world.rollout().2, message, "it stays");
    // The way back, without steps.
    world.spec(json!({"modelVersion": "intent-v1", "rollout": null}));
    world.reconcile().await;
    let before = stats(u64::MAX, "intent-v1", &BOTH);
    world.say("a", before.clone());
    world.say("b", before);
    world.reconcile().await;
    assert_eq!(world.assigned()[0], "intent-v1");
    assert_eq!(world.service().status.unwrap().rollout, None);
}
