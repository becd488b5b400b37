//! Experiments: what is counted, what is kept of it, verdicts, and variants that are stopped.

use tokio::sync::Semaphore;

use super::*;
use crate::serving::{AssignmentMemo, ExperimentMemo};

const BOTH: [(&str, &str); 2] = [("intent-v1", "Ready"), ("intent-v2", "Ready")];
const COUNTS: &str = "/api/v1/namespaces/team/configmaps/intent-experiment";

/// What an operator remembers from look to look and pass to pass.
#[derive(Default)]
struct Operator {
    experiments: ExperimentMemo,
    assignments: AssignmentMemo,
}

impl Operator {
    /// A look at the pods; whether there is something new to say, and what was written.
    async fn look(&mut self, world: &World) -> (bool, Vec<String>) {
        world.state.lock().unwrap().writes.clear();
        let mut context = world.context();
        context.experiments = std::mem::take(&mut self.experiments);
        let service = world.service();
        let changed = crate::serving::experiment::look(&service, &Semaphore::new(8), &context)
            .await
            .is_some();
        self.experiments = context.experiments;
        (changed, world.state.lock().unwrap().writes.clone())
    }

    async fn pass(&mut self, world: &World) -> Vec<String> {
        let mut context = world.context();
        context.experiments = std::mem::take(&mut self.experiments);
        context.assignments = std::mem::take(&mut self.assignments);
        let context = Arc::new(context);
        let (writes, _) = world.reconcile_by(Arc::clone(&context)).await;
        let context = Arc::into_inner(context).unwrap();
        (self.experiments, self.assignments) = (context.experiments, context.assignments);
        writes
    }
}

/// Judged predictions, and those of them that were right.
fn judged(judged: u64, correct: u64) -> Value {
    json!({"texts": judged, "failed": 0, "alone": 0, "aloneSeconds": 0.0, "aloneSquares": 0.0, "judged": judged, "correct": correct})
}

impl World {
    /// Two pods that answer with two variants.
    async fn experimenting(over: Value) -> Self {
        let mut spec = json!({
            "feedback": {"signingKeySecretRef": {"name": "r", "key": "k"}},
            "experiment": {"minSamples": 1000, "guardrails": {}, "variants": [
                {"modelVersion": "intent-v1", "percent": 70}, {"modelVersion": "intent-v2", "percent": 30}]},
        });
        merge(&mut spec, &over);
        let world = Self::new(spec);
        world.version("intent-v2", "intent", Some("True"));
        world.reconcile().await;
        world.deployment_status(2, 2, 2);
        for pod in ["a", "b"] {
            world.pod(pod, "intent-v1", true);
            world.did(pod, judged(700, 600), judged(0, 0));
        }
        world.reconcile().await;
        world
    }

    /// What a pod did with the variants since it began.
    fn did(&self, pod: &str, v1: Value, v2: Value) {
        let mut says = stats(u64::MAX, "intent-v1", &BOTH);
        (says["versions"][0]["figures"], says["versions"][1]["figures"]) = (v1, v2);
        self.say(pod, says);
    }

    fn buckets(&self, version: &str) -> u16 {
        self.assignment().split.unwrap().buckets(version)
    }

    fn concluded(&self) -> (String, String, String) {
        let status = self.service().status.unwrap();
        let condition = find(&status.conditions, "ExperimentConcluded").unwrap();
        (
            condition.status.clone(),
            condition.reason.clone(),
            condition.message.clone(),
        )
    }

    fn is_concluded(&self, status: &str, reason: &str) {
        let told = self.concluded();
        assert_eq!((told.0.as_str(), told.1.as_str()), (status, reason), "{}", told.2);
    }

    /// Judged predictions of both variants, as the status has them.
    fn counts(&self) -> Vec<i32> {
        let status = self.service().status.unwrap().experiment.unwrap();
        status.variants.iter().map(|variant| variant.judged).collect()
    }
}

#[tokio::test]
async fn another_operator_goes_on_with_what_was_counted() {
    let mut world = World::experimenting(json!({})).await;
    world.is_concluded("Unknown", "NoData");
    assert_eq!(world.assignment().judged_since, Some(1_800_000_000));
    let mut operator = Operator::default();
    // What pods did before does not count; that it began is kept at once.
    assert_eq!(operator.look(&world).await, (true, vec!["apply configmaps".to_owned()]));
    assert_eq!(operator.look(&world).await, (false, vec![]), "not due");
    operator.pass(&world).await;
    world.is_concluded("False", "Collecting");
    assert_eq!(world.counts(), [0, 0]);
    for pod in ["a", "b"] {
        world.did(pod, judged(1000, 870), judged(300, 270));
    }
    world.seconds += 10;
    assert_eq!(
        operator.look(&world).await,
        (false, vec![]),
        "counts alone are written once a minute"
    );
    world.seconds += 10;
    operator = Operator::default();
    assert_eq!(
        world.writes().await,
        NOTHING,
        "before its first look it says what was said"
    );
    assert_eq!(operator.look(&world).await, (true, vec!["apply configmaps".to_owned()]));
    operator.pass(&world).await;
    assert_eq!(world.counts(), [600, 600]);

    // A pod ends, another one comes, and the next operator knows of both.
    world.remove(&format!("{PODS}b"));
    world.pod("c", "intent-v1", true);
    world.did("c", judged(50, 45), judged(40, 39));
    for _ in 0..2 {
        world.seconds += 70;
        operator = Operator::default();
        operator.look(&world).await;
        operator.pass(&world).await;
        assert_eq!(world.counts(), [650, 640]);
    }
    let kept = world.object(COUNTS);
    let kept = kept["data"]["experiment.json"].as_str().unwrap();
    assert!(
        !kept.contains("\"b\""),
        "what was read of a pod that is gone is not needed: {kept}"
    );

    // Percents alone begin nothing anew.
    let variants = |v1: i32, v2: &str, other: i32| json!({"experiment": {"variants": [{"modelVersion": "intent-v1", "percent": v1}, {"modelVersion": v2, "percent": other}]}});
    world.spec(variants(50, "intent-v2", 50));
    operator.pass(&world).await;
    assert_eq!(world.buckets("intent-v2"), 5000);
    assert_eq!(world.assignment().judged_since, Some(1_800_000_000));
    world.did("a", judged(3000, 2600), judged(3300, 3100));
    world.seconds += 10;
    assert_eq!(
        operator.look(&world).await,
        (true, vec!["apply configmaps".to_owned()]),
        "a verdict is kept at once"
    );
    assert_eq!(operator.pass(&world).await, ["apply status"]);
    world.is_concluded("True", "VariantBetter");
    let (_, _, message) = world.concluded();
    assert!(
        message.contains("of 3640 and 2650 judged predictions") && message.contains("set modelVersion to intent-v2"),
        "{message}"
    );
    assert_eq!(world.buckets("intent-v2"), 5000, "it is only told");

    // Other variants are another experiment.
    world.version("intent-v3", "intent", Some("True"));
    world.spec(variants(50, "intent-v3", 50));
    operator.pass(&world).await;
    world.is_concluded("Unknown", "NoData");
    let three = [BOTH[0], BOTH[1], ("intent-v3", "Ready")];
    for pod in ["a", "c"] {
        world.say(pod, stats(u64::MAX, "intent-v1", &three));
    }
    operator.pass(&world).await;
    assert_eq!(world.assignment().judged_since, Some(world.seconds as u64));
    world.seconds += 10;
    assert!(operator.look(&world).await.0);
    operator.pass(&world).await;
    world.is_concluded("False", "Collecting");
    assert_eq!(world.counts(), [0, 0]);

    // Without an experiment all of it goes.
    world.spec(json!({"experiment": null}));
    let writes = operator.pass(&world).await;
    assert!(writes.contains(&"delete configmaps".to_owned()), "{writes:?}");
    assert_eq!(world.object(COUNTS), Value::Null);
    let status = world.service().status.unwrap();
    assert!(status.experiment.is_none() && find(&status.conditions, "ExperimentConcluded").is_none());
}

#[tokio::test]
async fn a_variant_that_breaks_a_guardrail_gets_no_requests_whoever_operates() {
    let mut world = World::experimenting(json!({"feedback": null})).await;
    let mut operator = Operator::default();
    operator.look(&world).await;
    operator.pass(&world).await;
    world.is_concluded("Unknown", "NotJudged");
    let did = |texts: u64, failed: u64| json!({"texts": texts, "failed": failed, "alone": 0, "aloneSeconds": 0.0, "aloneSquares": 0.0});
    world.did("a", did(900, 0), did(100, 60));
    world.seconds += 10;
    assert!(operator.look(&world).await.0);
    assert_eq!(world.buckets("intent-v2"), 3000);
    assert_eq!(operator.pass(&world).await, ["apply configmaps", "apply status"]);
    assert_eq!((world.buckets("intent-v1"), world.buckets("intent-v2")), (10_000, 0));
    operator.pass(&world).await;
    world.is_concluded("True", "GuardrailBroken");
    let (_, _, message) = world.concluded();
    assert!(
        message.contains("37.5 % of 160 texts could not be computed, or not in time, of intent-v1 0.0 %"),
        "{message}"
    );
    let status = world.service().status.unwrap();
    let stopped = status.experiment.unwrap().variants[1].stopped.clone().unwrap();
    assert!(stopped.starts_with("37.5 %"), "{stopped}");
    assert_eq!(world.ready().0, "True");
    // An operator that knows nothing but what stands in the cluster, without the counts, and with other percents.
    world.remove(COUNTS);
    world.spec(json!({"experiment": {"variants": [
        {"modelVersion": "intent-v1", "percent": 20}, {"modelVersion": "intent-v2", "percent": 80}]}}));
    let mut operator = Operator::default();
    operator.pass(&world).await;
    world.seconds += 10;
    operator.look(&world).await;
    operator.pass(&world).await;
    assert_eq!(world.buckets("intent-v2"), 0);
    world.is_concluded("True", "GuardrailBroken");
    // Compared anew it gets its share again.
    world.spec(json!({"experiment": null}));
    operator.pass(&world).await;
    world.spec(json!({"experiment": {"guardrails": {}, "variants": [
        {"modelVersion": "intent-v1", "percent": 20}, {"modelVersion": "intent-v2", "percent": 80}]}}));
    operator.pass(&world).await;
    assert_eq!(world.buckets("intent-v2"), 8000);
}

#[tokio::test]
async fn an_experiment_begins_when_all_pods_that_answer_follow_it() {
    let mut world = World::experimenting(json!({})).await;
    let mut operator = Operator::default();
    world.say("b", stats(1, "intent-v1", &BOTH));
    assert_eq!(operator.look(&world).await, (false, vec![]));
    world.seconds += 10;
    world.did("b", judged(0, 0), judged(0, 0));
    assert_eq!(operator.look(&world).await, (true, vec!["apply configmaps".to_owned()]));
}

#[tokio::test]
async fn new_versions_wait_while_an_experiment_is_there() {
    let world = World::experimenting(json!({"autoUpdate": {"policy": "LatestPromotable"}})).await;
    let path = format!("{VERSIONS}intent-v9");
    world.version("intent-v9", "intent", Some("True"));
    let mut version = world.object(&path);
    version["spec"]["version"] = json!(9);
    version["status"]["conditions"].as_array_mut().unwrap().push(
        json!({"type": "Promotable", "status": "True", "reason": "GatesPassed", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}),
    );
    world.put(&path, version);
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
    let status = world.service().status.unwrap();
    let told = find(&status.conditions, "UpdateAvailable").unwrap();
    assert_eq!(
        (told.status.as_str(), told.reason.as_str()),
        ("True", "ExperimentRunning")
    );
    assert!(
        told.message.contains("take experiment out of the spec"),
        "{}",
        told.message
    );
    world.spec(json!({"experiment": null}));
    world.reconcile().await;
    assert!(
        world.assigned().contains(&"intent-v9".to_owned()),
        "{:?}",
        world.assigned()
    );
}
