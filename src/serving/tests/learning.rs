//! Live texts that drift, trainings that follow, and versions that are taken by themselves.

use flywheel_contract::profile::{Answer, DataProfile, Judged, LiveProfiles, VersionProfile, WindowProfile, window_of};
use flywheel_contract::scalar::Digest;
use flywheel_policy::drift::unix;
use tokio::sync::Semaphore;

use super::*;
use crate::serving::AssignmentMemo;

const BOTH: [(&str, &str); 2] = [("intent-v1", "Ready"), ("intent-v2", "Ready")];

/// What an operator remembers from look to look and pass to pass.
#[derive(Default)]
pub(super) struct Operator {
    drifts: DriftMemo,
    assignments: AssignmentMemo,
    /// Its metrics after the last look.
    shown: String,
}

impl Operator {
    /// A look at the pods; whether there is something new to say, and what was written.
    async fn look(&mut self, world: &World) -> (bool, Vec<String>) {
        world.state.lock().unwrap().writes.clear();
        let mut context = world.context();
        context.drifts = std::mem::take(&mut self.drifts);
        let service = world.service();
        let changed = drift::look(&service, &Semaphore::new(8), &context).await.is_some();
        self.shown = context.metrics.encode(&[]).unwrap();
        self.drifts = context.drifts;
        (changed, world.state.lock().unwrap().writes.clone())
    }

    /// `stale`: the cache does not show yet which TrainingJobs there are beside the template.
    pub(super) async fn pass(&mut self, world: &World, stale: bool) -> Vec<String> {
        let mut context = world.context();
        if stale {
            let template = world.object(&format!("{JOBS}intent"));
            context.caches.training_jobs = Cache::of(serde_json::from_value(template));
        }
        context.drifts = std::mem::take(&mut self.drifts);
        context.assignments = std::mem::take(&mut self.assignments);
        let context = Arc::new(context);
        let (writes, _) = world.reconcile_by(Arc::clone(&context)).await;
        let context = Arc::into_inner(context).unwrap();
        (self.drifts, self.assignments) = (context.drifts, context.assignments);
        writes
    }
}

fn condition(world: &World, kind: &str) -> (String, String, String) {
    let status = world.service().status.unwrap();
    let condition = find(&status.conditions, kind).unwrap_or_else(|| panic!("no {kind}: {status:?}"));
    (
        condition.status.clone(),
        condition.reason.clone(),
        condition.message.clone(),
    )
}

fn is(world: &World, kind: &str, status: &str, reason: &str) {
    let told = condition(world, kind);
    assert_eq!((told.0.as_str(), told.1.as_str()), (status, reason), "{}", told.2);
}

/// This many texts, which the version is sure of or not.
fn texts(count: u64, sure: bool) -> DataProfile {
    let mut profile = DataProfile::new(2).with_projections(&[[0.0; 4]]);
    for n in 0..count {
        let probability = if sure { 0.95 } else { 0.51 + (n % 4) as f32 / 100.0 };
        let answer = Answer {
            probabilities: vec![1.0 - probability, probability],
            projections: Some([0.1; 4]),
        };
        profile.add(&[1, 2, i64::try_from(n % 7).unwrap()], &answer);
    }
    profile
}

impl World {
    /// Pods that count in windows of ten seconds, of a service that learns.
    async fn learning(spec: Value) -> Self {
        let mut base = json!({
            "feedback": {"signingKeySecretRef": {"name": "r", "key": "k"}, "capture": true, "uri": "s3://feedback"},
            "drift": {"windowSeconds": 10, "minSamples": 100, "consecutiveWindows": 2},
                "retrain": {"trainingJob": "intent", "cooldownSeconds": 3600, "minFeedback": 16},
        });
        merge(&mut base, &spec);
        let mut world = Self::new(base);
        world.reconcile().await;
        world.deployment_status(2, 2, 2);
        world.pod("a", "intent-v1", true);
        world.pod("b", "intent-v1", true);
        world.reconcile().await;
        // So long after the end of a window that clocks may differ.
        world.seconds += 1003 - world.seconds % 10;
        world
    }

    /// The template that retrainings are like.
    fn template(&self) {
        self.job("intent", &json!({"status": {"conditions": []}}));
    }

    fn job(&self, name: &str, over: &Value) {
        let path = format!("{JOBS}{name}");
        let mut job = self.object(&path);
        if job.is_null() {
            job = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob",
                "metadata": {"name": name, "namespace": "team"},
                "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://models/minilm"}},
                    "dataset": {"sources": [{"uri": "s3://data/train.csv"}]}, "suspend": true,
                    "output": {"model": "intent", "versionName": "intent-v1", "uri": "s3://models/intent"}}});
        }
        merge(&mut job, over);
        self.put(&path, job);
    }

    /// Both pods have counted these texts in the window that ended last.
    fn counted(&self, profile: &DataProfile) {
        self.judged(profile, 4, 2);
    }

    /// The same, with so many of each pod's predictions that were judged, and were right.
    fn judged(&self, profile: &DataProfile, predictions: u64, correct: u64) {
        let now = unix(Timestamp::from_second(self.seconds).unwrap());
        for name in ["a", "b"] {
            let told = LiveProfiles {
                schema_version: 1,
                window_seconds: 10,
                versions: vec![VersionProfile {
                    name: "intent-v1".to_owned(),
                    digest: Digest::sha256(&"0".repeat(64)),
                    test: Some(texts(500, true)),
                    windows: vec![WindowProfile {
                        id: window_of(now, 10) - 1,
                        profile: profile.clone(),
                        judged: Judged { predictions, correct },
                        outcomes: [
                            (0, [correct, predictions - correct, 0].into()),
                            (1, [0, 0, predictions - correct].into()),
                        ]
                        .into(),
                    }],
                }],
            };
            self.say(&format!("{name}/profile"), serde_json::to_value(told).unwrap());
        }
    }

    /// A version of the model that a TrainingJob made.
    fn promotable(&self, name: &str, number: i64, status: &str) {
        self.version(name, "intent", Some("True"));
        let path = format!("{VERSIONS}{name}");
        let mut version = self.object(&path);
        version["spec"]["version"] = json!(number);
        version["spec"]["artifact"]["digest"] = json!(format!("sha256:{}", number.to_string().repeat(64)));
        version["status"]["conditions"].as_array_mut().unwrap().push(
            json!({"type": "Promotable", "status": status, "reason": "GatesPassed", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}),
        );
        self.put(&path, version);
    }

    /// Windows of texts that drift, until that is known.
    async fn drifting(&mut self, operator: &mut Operator) {
        for sure in [true, false, false] {
            self.seconds += 10;
            self.counted(&texts(80, sure));
            operator.look(self).await;
        }
        self.seconds += 20;
        assert!(operator.look(self).await.0);
    }
}

#[tokio::test]
async fn windows_of_all_pods_are_kept_and_drift_is_told() {
    let mut world = World::learning(json!({})).await;
    assert_eq!(
        world.assignment().window_seconds,
        Some(10),
        "pods count in windows of that length"
    );
    is(&world, "DriftDetected", "Unknown", "NoData");
    let mut operator = Operator::default();
    world.says.lock().unwrap().clear();
    assert!(!operator.look(&world).await.0, "no pod answers");
    for name in ["a", "b"] {
        world.say(
            &format!("{name}/profile"),
            json!({"schemaVersion": 1, "windowSeconds": 10, "versions": []}),
        );
    }
    world.seconds += 10;
    assert_eq!(operator.look(&world).await, (true, vec![]), "none has counted anything");
    world.seconds += 10;
    world.say("a", stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready")]));
    world.say("b", stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready")]));
    world.counted(&texts(80, true));
    let (changed, writes) = operator.look(&world).await;
    assert!(changed);
    assert_eq!(writes, ["apply configmaps"]);
    operator.pass(&world, false).await;
    is(&world, "DriftDetected", "Unknown", "CollectingReference");
    assert_eq!(operator.look(&world).await, (false, vec![]), "not due");
    // The next operator, and the one after it, count nothing twice.
    for _ in 0..2 {
        world.seconds += 5;
        operator = Operator::default();
        operator.look(&world).await;
        let history = world.object(&format!("{CONFIG_MAPS}intent-history"));
        let history: Value = serde_json::from_str(history["data"]["history.json"].as_str().unwrap()).unwrap();
        assert_eq!(history["windows"][0]["counts"][0], 160, "{history}");
    }
    world.seconds += 40;
    let mut operator = Operator::default();
    world.drifting(&mut operator).await;
    let writes = operator.pass(&world, false).await;
    assert_eq!(writes, ["apply status"], "the history stays: it is no leftover");
    is(&world, "DriftDetected", "True", "Drifted");
    let (_, _, message) = condition(&world, "DriftDetected");
    assert!(message.starts_with("confidence PSI"), "{message}");
    let drift = world.service().status.unwrap().drift.unwrap();
    assert_eq!(
        (drift.texts, drift.reference_texts, drift.features.len()),
        (160, 160, 8)
    );
    assert!(drift.features[0].drifted && drift.features[0].name == "confidence");
    // An operator that has not looked yet says what was said.
    assert_eq!(world.writes().await, NOTHING);
    // Without drift in the spec all of it goes.
    world.spec(json!({"drift": null, "retrain": null}));
    let writes = world.writes().await;
    assert!(writes.contains(&"delete configmaps".to_owned()), "{writes:?}");
    assert_eq!(world.object(&format!("{CONFIG_MAPS}intent-history")), Value::Null);
    assert!(world.service().status.unwrap().drift.is_none());
}

#[tokio::test]
async fn drift_makes_one_training_whoever_looks() {
    let mut world = World::learning(json!({})).await;
    let mut operator = Operator::default();
    operator.pass(&world, false).await;
    is(&world, "Retraining", "Unknown", "NoData");
    world.counted(&texts(10, true));
    operator.look(&world).await;
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "NoDrift");
    world.seconds += 50;
    world.drifting(&mut operator).await;
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "TrainingJobNotFound");
    world.template();
    let writes = operator.pass(&world, false).await;
    assert!(writes.contains(&"create trainingjobs".to_owned()), "{writes:?}");
    is(&world, "Retraining", "True", "RetrainingRunning");
    let job = world.object(&format!("{JOBS}intent-retrain-1"));
    assert_eq!(job["spec"]["suspend"], false);
    assert_eq!(job["spec"]["output"]["versionName"], Value::Null);
    assert_eq!(job["spec"]["output"]["incumbent"], "intent-v1", "the one that answers");
    assert_eq!(
        job["spec"]["dataset"]["sources"][1],
        json!({"uri": "s3://feedback/team/intent", "format": "Feedback"})
    );
    let cause = job["metadata"]["annotations"]["flywheel.dev/cause"].as_str().unwrap();
    assert!(cause.starts_with("confidence PSI"), "{cause}");
    let told = world.service().status.unwrap().retraining.unwrap();
    assert_eq!(
        (told.training_job.as_str(), told.cause.as_str()),
        ("intent-retrain-1", cause)
    );
    // Another operator, whose cache does not show it, makes the same one, which is there.
    let before = job["metadata"]["resourceVersion"].clone();
    operator.pass(&world, true).await;
    assert_eq!(
        world.object(&format!("{JOBS}intent-retrain-1"))["metadata"]["resourceVersion"],
        before
    );
    assert_eq!(world.names(JOBS), ["intent", "intent-retrain-1"]);
    assert!(
        !operator
            .pass(&world, false)
            .await
            .contains(&"create trainingjobs".to_owned())
    );

    // It came to a version, which waits for somebody to take it.
    let done = json!({"type": "Complete", "status": "True", "reason": "Trained", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {"conditions": [done], "result": {"modelVersion": "intent-v2", "metrics": []}}});
    world.job("intent-retrain-1", &status);
    world.promotable("intent-v2", 2, "True");
    world.seconds += 7200;
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "NewerVersion");
    is(&world, "UpdateAvailable", "True", "NewerVersion");
    assert_eq!(
        world
            .service()
            .status
            .unwrap()
            .retraining
            .unwrap()
            .model_version
            .as_deref(),
        Some("intent-v2")
    );
    assert_eq!(world.assigned(), ["intent-v1"], "not by itself");
    // Its gates failed: the next one may begin, and after a second one no other does.
    world.promotable("intent-v2", 2, "False");
    operator.pass(&world, false).await;
    assert_eq!(world.names(JOBS), ["intent", "intent-retrain-1", "intent-retrain-2"]);
    let failed = json!({"type": "Failed", "status": "True", "reason": "DatasetInvalid", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    world.job("intent-retrain-2", &json!({"status": {"conditions": [failed]}}));
    world.seconds += 7200;
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "RetrainingStopped");
    assert_eq!(world.names(JOBS).len(), 3);
}

/// The clock and a person need no drift, and a restart of the operator makes nothing twice.
#[tokio::test]
async fn trainings_begin_by_the_clock_and_when_they_are_asked_for() {
    let retrain = json!({"trainingJob": "intent", "schedule": "*/30 * * * *", "timeZone": "Europe/Berlin", "cooldownSeconds": 60});
    let mut world = World::learning(json!({"drift": null, "retrain": null})).await;
    world.spec(json!({"retrain": retrain}));
    world.template();
    let mut operator = Operator::default();
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "NotDue");
    let told = |world: &World| world.service().status.unwrap().retrain_schedule.unwrap();
    let next = told(&world).next.0;
    assert!(
        condition(&world, "Retraining").2.contains(&format!("{next:.0}")),
        "the next time is told"
    );
    assert_eq!(
        told(&world).since.0.as_second(),
        world.seconds,
        "nothing before it was set is made up for"
    );
    assert_eq!(operator.pass(&world, false).await, NOTHING);

    // Five times pass while there is no operator.
    world.seconds = next.as_second() + 2 * 3600 + 7;
    let mut operator = Operator::default();
    operator.pass(&world, false).await;
    is(&world, "Retraining", "True", "RetrainingRunning");
    let job = world.object(&format!("{JOBS}intent-retrain-1"));
    assert_eq!(
        job["metadata"]["annotations"]["flywheel.dev/scheduled"],
        next.to_string()
    );
    let cause = job["metadata"]["annotations"]["flywheel.dev/cause"].as_str().unwrap();
    assert!(
        cause.ends_with("by the schedule */30 * * * * (Europe/Berlin)"),
        "{cause}"
    );
    // One that does not see it makes the same; one that does makes none.
    operator.pass(&world, true).await;
    let done = json!({"type": "Failed", "status": "True", "reason": "DatasetInvalid", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let ended = json!({"status": {"conditions": [done]}});
    let made = |world: &World| json!({"metadata": {"creationTimestamp": Timestamp::from_second(world.seconds).unwrap().to_string()}});
    world.job("intent-retrain-1", &made(&world));
    world.job("intent-retrain-1", &ended);
    Operator::default().pass(&world, false).await;
    assert_eq!(world.names(JOBS), ["intent", "intent-retrain-1"]);
    is(&world, "Retraining", "False", "NotDue");

    // Somebody asks, within the cooldown, and once for each word.
    world.seconds += 5;
    for (word, number) in [("a", 2), ("a", 2), ("b", 3)] {
        world.spec(json!({"retrain": {"requested": word}}));
        operator.pass(&world, false).await;
        let job = world.object(&format!("{JOBS}intent-retrain-{number}"));
        assert_eq!(job["metadata"]["annotations"]["flywheel.dev/requested"], word);
        world.job(&format!("intent-retrain-{number}"), &made(&world));
        world.job(&format!("intent-retrain-{number}"), &ended);
        operator.pass(&world, false).await;
        assert_eq!(world.names(JOBS).len(), number + 1);
    }
    // What failed so often stops the clock, and says how to go on.
    world.seconds += 3600;
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "RetrainingStopped");
    world.spec(json!({"retrain": {"schedule": "0 25 * * *"}}));
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "InvalidSchedule");
    assert!(world.service().status.unwrap().retrain_schedule.is_none());
}

#[tokio::test]
async fn answers_that_are_right_less_often_make_a_training() {
    let mut world = World::learning(json!({})).await;
    world.template();
    let mut operator = Operator::default();
    for correct in [45, 45, 30, 30] {
        world.judged(&texts(80, true), 50, correct);
        operator.look(&world).await;
        operator.pass(&world, false).await;
        is(&world, "Retraining", "False", "NoDrift");
        // The next operator goes on where the one before was.
        operator = Operator::default();
        world.seconds += 3600;
    }
    world.judged(&texts(80, true), 50, 30);
    assert!(operator.look(&world).await.0);
    operator.pass(&world, false).await;
    is(&world, "DriftDetected", "True", "AccuracyDropped");
    let (_, _, message) = condition(&world, "DriftDetected");
    assert!(
        message.starts_with("0.600 of 100 judged answers were right"),
        "{message}"
    );
    assert!(
        message.contains("0.900 of 100 in the first ones of this version"),
        "{message}"
    );
    for line in [
        r#"service_accuracy{namespace="team",name="intent"} 0.6"#,
        r#"service_accuracy_before{namespace="team",name="intent"} 0.9"#,
    ] {
        assert!(operator.shown.contains(line), "{}", operator.shown);
    }
    let status = world.service().status.unwrap();
    let quality = status.quality.unwrap();
    assert_eq!(
        (
            quality.model_version.as_str(),
            quality.accuracy.as_str(),
            quality.accuracy_before.as_str(),
            quality.dropped
        ),
        ("intent-v1", "0.600", "0.900", true)
    );
    assert_eq!(
        status
            .drift
            .unwrap()
            .features
            .iter()
            .filter(|feature| feature.drifted)
            .count(),
        0
    );
    is(&world, "Retraining", "True", "RetrainingRunning");
    let job = world.object(&format!("{JOBS}intent-retrain-1"));
    let cause = job["metadata"]["annotations"]["flywheel.dev/cause"].as_str().unwrap();
    assert!(cause.starts_with("0.600 of 100 judged"), "{cause}");
    // It comes back, and that is told.
    for _ in 0..3 {
        world.seconds += 3600;
        world.judged(&texts(80, true), 50, 45);
        operator.look(&world).await;
    }
    operator.pass(&world, false).await;
    is(&world, "DriftDetected", "False", "NoDrift");
    // What was judged of one version is nothing to another one's.
    let history = world.object(&format!("{CONFIG_MAPS}intent-history"));
    let history: Value = serde_json::from_str(history["data"]["history.json"].as_str().unwrap()).unwrap();
    assert_eq!(history["quality"]["hours"].as_object().unwrap().len(), 8, "{history}");
}

#[tokio::test]
async fn a_job_of_a_stranger_is_not_taken_over() {
    let mut world = World::learning(json!({})).await;
    world.template();
    world.job("intent-retrain-1", &json!({}));
    let mut operator = Operator::default();
    world.drifting(&mut operator).await;
    operator.pass(&world, false).await;
    is(&world, "Retraining", "False", "NameTaken");
}

#[tokio::test]
async fn the_newest_promotable_version_comes_by_itself_and_goes_where_it_does_badly() {
    let rollout = json!({"steps": [{"weightPercent": 10, "durationSeconds": 60, "minRequests": 50}], "analysis": {}});
    let world = World::serving().await;
    world.spec(json!({"autoUpdate": {"policy": "LatestPromotable"}, "rollout": rollout}));
    world.promotable("intent-v2", 2, "Unknown");
    world.promotable("intent-v3", 3, "False");
    world.writes().await;
    is(&world, "UpdateAvailable", "False", "UpToDate");
    assert_eq!(world.assigned(), ["intent-v1"]);
    world.promotable("intent-v2", 2, "True");
    world.writes().await;
    let canary = world.assignment().canary.unwrap();
    assert_eq!(canary.version.name, "intent-v2");
    is(&world, "RolloutProgressing", "True", "RolloutStep");
    is(&world, "UpdateAvailable", "False", "UpToDate");

    // The pods answer with it, but too little.
    let did = |texts: u64, failed: u64| json!({"texts": texts, "failed": failed, "alone": 0, "aloneSeconds": 0.0, "aloneSquares": 0.0});
    let digest = |number: &str| json!(format!("sha256:{}", number.repeat(64)));
    let says = |world: &World, stable: u64, texts: u64, failed: u64| {
        let mut says = stats(u64::MAX, "intent-v1", &BOTH);
        says["versions"][1]["digest"] = digest("2");
        says["versions"][1]["figures"] = did(texts, failed);
        says["versions"][0]["figures"] = did(stable, 0);
        world.say("a", says);
    };
    let (mut world, mut operator) = (world, Operator::default());
    says(&world, 10_000, 0, 0);
    operator.pass(&world, false).await;
    says(&world, 10_100, 3, 0);
    world.seconds += 61;
    operator.pass(&world, false).await;
    let (_, reason, message) = condition(&world, "RolloutProgressing");
    assert_eq!(reason, "InsufficientTraffic");
    assert!(
        message.contains("3 texts") && message.contains("approvedVersion: intent-v2"),
        "{message}"
    );
    // It fails at half of what it is asked.
    says(&world, 11_000, 60, 60);
    let writes = operator.pass(&world, false).await;
    assert_eq!(writes[0], "merge modelversions", "{writes:?}");
    is(&world, "RolloutProgressing", "False", "RolledBack");
    let (_, _, message) = condition(&world, "RolloutProgressing");
    assert!(
        message.contains("50.0 % of 120 texts could not be computed"),
        "{message}"
    );
    let rejected = message;
    assert!(rejected.contains("autoUpdate leaves it out"), "{rejected}");
    assert_eq!(
        world.ready(),
        ("True".to_owned(), "RolledBack".to_owned(), rejected.clone())
    );
    assert_eq!(
        (world.assigned(), world.assignment().canary),
        (vec!["intent-v1".to_owned()], None)
    );
    // It is not taken again, is no update, and goes on to be told of, by another operator as well.
    for _ in 0..2 {
        world.reconcile().await;
        assert_eq!(world.assignment().canary, None);
        is(&world, "UpdateAvailable", "False", "UpToDate");
        is(&world, "RolloutProgressing", "False", "RolledBack");
        assert_eq!(condition(&world, "RolloutProgressing").2, rejected);
        assert_eq!(world.ready().1, "RolledBack");
    }
    // Until nobody wants it any more.
    let auto = |exclude: Value| json!({"autoUpdate": {"policy": "LatestPromotable", "exclude": exclude}});
    world.spec(auto(json!(["intent-v2"])));
    world.reconcile().await;
    is(&world, "RolloutProgressing", "False", "RolloutComplete");
    assert_eq!(world.ready().1, "AsExpected");
    world.spec(auto(json!([])));
    world.reconcile().await;
    is(&world, "RolloutProgressing", "False", "RolledBack");
    // Or a newer one comes.
    world.promotable("intent-v3", 3, "True");
    world.reconcile().await;
    is(&world, "RolloutProgressing", "True", "RolloutStep");
    assert_eq!(world.assignment().canary.unwrap().version.name, "intent-v3");
}
