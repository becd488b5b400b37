//! Services whose size follows their load.

use flywheel_api::inference_service::InferenceServiceStatus;
use tokio::sync::Semaphore;

use super::*;

/// What an operator remembers from look to look and pass to pass.
#[derive(Default)]
struct Operator(ScaleMemo);

impl Operator {
    /// A look at the pods this many seconds after the last; whether something is to change.
    async fn look(&mut self, world: &mut World, seconds: i64) -> bool {
        world.seconds += seconds;
        let mut context = world.context();
        context.scales = std::mem::take(&mut self.0);
        let service = world.service();
        let changed = scale::look(&service, &Semaphore::new(8), &context).await.is_some();
        self.0 = context.scales;
        changed
    }

    async fn writes(&mut self, world: &World) -> Vec<String> {
        let mut context = world.context();
        context.scales = std::mem::take(&mut self.0);
        let context = Arc::new(context);
        let (writes, _) = world.reconcile_by(Arc::clone(&context)).await;
        self.0 = Arc::into_inner(context).unwrap().scales;
        writes
    }
}

/// A service of one pod that answers, which may have up to five; this laid over its spec.
async fn following(spec: Value) -> World {
    let mut base = json!({"replicas": 1, "scaling": {"minReplicas": 1, "maxReplicas": 5, "targetPerReplica": 100}});
    merge(&mut base, &spec);
    let mut world = World::new(base);
    world.reconcile().await;
    world.deployment_status(1, 1, 1);
    world.pod("a", "intent-v1", true);
    asked(&world, "a", 0);
    world.seconds += 100;
    world.reconcile().await;
    world
}

/// The pod has been asked so often since its start, and was busy for half of the time.
fn asked(world: &World, pod: &str, requests: u64) {
    let mut says = stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready")]);
    let mut latency = [0; 15];
    latency[3] = requests;
    says["load"] = json!({"requests": requests, "refused": 0, "inFlightSeconds": requests as f64 / 100.0,
        "busySeconds": requests as f64 / 500.0, "workers": 1, "latency": latency});
    world.say(pod, says);
}

fn status(world: &World) -> InferenceServiceStatus {
    world.service().status.unwrap()
}

fn condition(world: &World, kind: &str) -> Option<(String, String)> {
    let status = status(world);
    find(&status.conditions, kind).map(|c| (c.status.clone(), c.reason.clone()))
}

fn is(status: &str, reason: &str) -> Option<(String, String)> {
    Some((status.to_owned(), reason.to_owned()))
}

fn replicas(world: &World) -> Value {
    world.object(DEPLOYMENT)["spec"]["replicas"].clone()
}

#[tokio::test]
async fn the_number_of_pods_follows_the_load() {
    let mut world = following(json!({"objectives": {"qps": 300, "latencyP99Milliseconds": 200}})).await;
    let mut operator = Operator::default();
    assert_eq!(
        condition(&world, "ScalingActive"),
        is("Unknown", "NoData"),
        "nobody was asked"
    );
    operator.look(&mut world, 0).await;
    assert!(!operator.look(&mut world, 0).await, "a look is not due yet");

    asked(&world, "a", 900);
    assert!(
        operator.look(&mut world, 2).await,
        "a burst is heeded at the first look that shows it"
    );
    assert_eq!(
        operator.writes(&world).await,
        [
            "apply deployments as scale",
            "apply poddisruptionbudgets",
            "apply status"
        ]
    );
    assert_eq!(replicas(&world), 5);
    let told = status(&world);
    assert_eq!(
        (told.pods.as_deref(), told.load.unwrap().qps.as_str()),
        (Some("1/5"), "450")
    );
    let scaling = told.scaling.unwrap();
    assert_eq!(
        (scaling.desired_replicas, scaling.target_per_replica.as_deref()),
        (5, Some("100"))
    );
    let decision = &scaling.decisions[0];
    assert_eq!((decision.from, decision.to, scaling.decisions.len()), (1, 5, 1));
    assert!(decision.message.contains("450"), "{}", decision.message);
    assert_eq!(condition(&world, "ScalingActive"), is("True", "AsExpected"));
    assert_eq!(operator.writes(&world).await, NOTHING);

    // Another operator knows nothing and changes nothing.
    let mut next = Operator::default();
    assert_eq!(next.writes(&world).await, NOTHING);
    next.look(&mut world, 2).await;
    next.writes(&world).await;
    assert_eq!(replicas(&world), 5);
    let scaling = status(&world).scaling.unwrap();
    assert_eq!(
        (scaling.desired_replicas, scaling.decisions.len()),
        (5, 1),
        "what was decided before stays told"
    );
}

#[tokio::test]
async fn pods_that_do_not_say_what_they_are_asked_change_nothing() {
    let mut world = following(json!({})).await;
    let mut operator = Operator::default();
    operator.look(&mut world, 0).await;
    // As pods of an older release, which have no such counts.
    world.say("a", stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready")]));
    for _ in 0..20 {
        operator.look(&mut world, 2).await;
    }
    operator.writes(&world).await;
    assert_eq!(replicas(&world), 1);
    assert_eq!(condition(&world, "ScalingActive"), is("False", "ScrapeBlocked"));
}

#[tokio::test]
async fn a_size_is_computed_and_told_without_being_followed() {
    let mut world = following(json!({"scaling": {"mode": "Observe"}})).await;
    let mut operator = Operator::default();
    operator.look(&mut world, 0).await;
    asked(&world, "a", 900);
    assert!(operator.look(&mut world, 2).await);
    assert_eq!(operator.writes(&world).await, ["apply status"]);
    assert_eq!(replicas(&world), 1);
    assert_eq!(status(&world).scaling.unwrap().desired_replicas, 5);
    assert_eq!(condition(&world, "ScalingActive"), is("True", "Observing"));
    // And followed as soon as the spec says so.
    world.spec(json!({"scaling": {"mode": "Auto"}}));
    operator.writes(&world).await;
    assert_eq!(replicas(&world), 5);
}

#[tokio::test]
async fn bounds_hold_at_once_and_no_replicas_means_none() {
    let mut world = following(json!({"scaling": {"minReplicas": 3}})).await;
    assert_eq!(replicas(&world), 3, "before anybody was asked");
    world.spec(json!({"scaling": {"minReplicas": 1, "maxReplicas": 2}}));
    world.reconcile().await;
    assert_eq!(replicas(&world), 2);
    world.spec(json!({"replicas": 0}));
    world.reconcile().await;
    assert_eq!(replicas(&world), 0);
    assert_eq!(condition(&world, "ScalingActive"), is("False", "ScalingDisabled"));
    assert_eq!(status(&world).scaling, None);
    let mut operator = Operator::default();
    assert!(!operator.look(&mut world, 2).await, "nobody looks");
}

#[tokio::test]
async fn a_service_that_wants_neither_is_not_asked() {
    let mut world = World::serving().await;
    let mut operator = Operator::default();
    assert!(!operator.look(&mut world, 10).await);
    assert_eq!(operator.writes(&world).await, NOTHING);
    let told = status(&world);
    assert_eq!((told.load, told.scaling), (None, None));
    assert_eq!(
        (condition(&world, "ScalingActive"), condition(&world, "ObjectivesMet")),
        (None, None)
    );
}
