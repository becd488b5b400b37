//! Pods that are beyond help, and what becomes of them.

use flywheel_api::recovery::{Incident, IncidentCause};

use super::*;
use crate::cluster::nodes::NodeWatch;
use crate::scrape::ScrapeError;

/// What an operator remembers from pass to pass.
#[derive(Default)]
struct Operator {
    recoveries: RecoveryMemo,
    nodes: NodeWatch,
}

impl Operator {
    /// A pass this many seconds after the last; what it wrote.
    async fn pass(&mut self, world: &mut World, seconds: i64) -> Vec<String> {
        world.seconds += seconds;
        let mut context = world.context();
        context.recoveries = std::mem::take(&mut self.recoveries);
        context.nodes = std::mem::take(&mut self.nodes);
        let context = Arc::new(context);
        let (writes, _) = world.reconcile_by(Arc::clone(&context)).await;
        let context = Arc::into_inner(context).unwrap();
        (self.recoveries, self.nodes) = (context.recoveries, context.nodes);
        writes
    }

    /// Pods of this node do not answer, for long enough.
    fn silent(&self, node: &str, world: &World) {
        self.nodes.read(node, &Ok(()), at(world.seconds - 5));
        for second in [-4, 0] {
            let read: Result<(), _> = Err(ScrapeError::Unreachable("the test says so".to_owned()));
            self.nodes.read(node, &read, at(world.seconds + second));
        }
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Two pods that answer, on nodes of their own.
async fn two(spec: Value) -> (World, Operator) {
    let mut world = World::new(spec);
    world.reconcile().await;
    world.deployment_status(2, 2, 2);
    for (pod, node) in [("a", "n1"), ("b", "n2")] {
        world.pod(pod, "intent-v1", true);
        change(
            &world,
            pod,
            json!({"metadata": {"uid": pod}, "spec": {"nodeName": node}}),
        );
    }
    for node in ["n2", "n3", "n4"] {
        ready_node(&world, node, "True");
    }
    let mut operator = Operator::default();
    operator.pass(&mut world, 100).await;
    (world, operator)
}

fn ready_node(world: &World, name: &str, status: &str) {
    world.put(
        &format!("{NODES}{name}"),
        json!({"metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "A100-SXM4-40GB"}},
            "status": {"allocatable": {"nvidia.com/gpu": "2"}, "conditions": [{"type": "Ready", "status": status}]}}),
    );
}

fn change(world: &World, pod: &str, over: Value) {
    let path = format!("{PODS}{pod}");
    let mut object = world.object(&path);
    merge(&mut object, &over);
    world.put(&path, object);
}

fn unhealthy_gpu(world: &World, pod: &str) {
    let resources = json!([{"resourceID": "GPU-7", "health": "Unhealthy"}]);
    let mut status = world.object(&format!("{PODS}{pod}"))["status"]["containerStatuses"][0].clone();
    status["allocatedResourcesStatus"] = json!([{"name": "nvidia.com/gpu", "resources": resources}]);
    change(world, pod, json!({"status": {"containerStatuses": [status]}}));
}

fn replicas(world: &World) -> Value {
    world.object(DEPLOYMENT)["spec"]["replicas"].clone()
}

fn incidents(world: &World) -> Vec<Incident> {
    let status = world.service().status.unwrap();
    status.recovery.map(|recovery| recovery.incidents).unwrap_or_default()
}

fn within_deadline(world: &World) -> (String, String, String) {
    let status = world.service().status.unwrap();
    let condition = find(&status.conditions, "RecoveryWithinDeadline").unwrap();
    (
        condition.status.clone(),
        condition.reason.clone(),
        condition.message.clone(),
    )
}

#[tokio::test]
async fn a_pod_whose_gpu_is_broken_goes_once_another_one_answers() {
    let (mut world, mut operator) = two(json!({})).await;
    assert_eq!(within_deadline(&world).1, "NoIncident");
    unhealthy_gpu(&world, "b");
    let writes = operator.pass(&mut world, 2).await;
    assert_eq!(writes, ["apply deployments as scale", "apply status"]);
    assert_eq!(replicas(&world), 3, "it stays, as long as nobody stands in for it");
    assert_eq!(within_deadline(&world).1, "Recovering");
    world.pod("c", "intent-v1", true);
    let writes = operator.pass(&mut world, 20).await;
    assert_eq!(writes, ["delete pods", "apply deployments as scale", "apply status"]);
    assert_eq!(
        (replicas(&world), world.names(PODS)),
        (json!(2), vec!["a".to_owned(), "c".to_owned()])
    );
    let incident = &incidents(&world)[0];
    assert_eq!(
        (incident.cause, incident.object.as_str()),
        (IncidentCause::GpuFault, "b")
    );
    assert_eq!((incident.node.as_deref(), incident.seconds()), (Some("n2"), 20));
    let (status, reason, message) = within_deadline(&world);
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Recovered"), "{message}");
    operator.pass(&mut world, 5).await;
    assert_eq!(operator.pass(&mut world, 5).await, NOTHING);
}

#[tokio::test]
async fn a_pod_on_a_lost_node_is_deleted_and_one_that_only_does_not_answer_is_not() {
    let (mut world, mut operator) = two(json!({})).await;
    operator.silent("n2", &world);
    assert_eq!(
        operator.pass(&mut world, 1).await,
        NOTHING,
        "the control plane still hears of it"
    );
    ready_node(&world, "n2", "Unknown");
    operator.silent("n2", &world);
    let writes = operator.pass(&mut world, 1).await;
    assert_eq!(writes, ["delete pods", "apply status"]);
    assert_eq!(world.names(PODS), ["a"]);
    world.pod("c", "intent-v1", true);
    operator.pass(&mut world, 30).await;
    let incident = &incidents(&world)[0];
    assert_eq!((incident.cause, incident.is_over()), (IncidentCause::NodeLost, true));
    assert_eq!(incident.seconds(), 35, "from its first sign on");
}

#[tokio::test]
async fn where_many_nodes_seem_lost_no_pod_is_deleted() {
    let (mut world, mut operator) = two(json!({})).await;
    for node in ["n2", "n3", "n4"] {
        ready_node(&world, node, "Unknown");
    }
    operator.silent("n2", &world);
    assert_eq!(operator.pass(&mut world, 1).await, ["apply status"]);
    assert_eq!(world.names(PODS), ["a", "b"]);
    ready_node(&world, "n4", "True");
    operator.silent("n2", &world);
    assert_eq!(operator.pass(&mut world, 20).await, NOTHING, "n2 may come next");
    operator.silent("n2", &world);
    assert_eq!(operator.pass(&mut world, 10).await[0], "delete pods", "two of four");
}

#[tokio::test]
async fn what_is_only_observed_is_told_and_left_alone() {
    let (mut world, mut operator) = two(json!({"recovery": {"mode": "Observe"}})).await;
    unhealthy_gpu(&world, "b");
    assert_eq!(operator.pass(&mut world, 2).await, ["apply status"]);
    assert_eq!(incidents(&world)[0].cause, IncidentCause::GpuFault);
    let (status, reason, message) = within_deadline(&world);
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "Recovering"));
    assert!(message.contains("recovery.mode is Observe"), "{message}");
    operator.pass(&mut world, 301).await;
    assert_eq!(within_deadline(&world).1, "RecoveryOverdue");
    world.spec(json!({"recovery": {"mode": "Enforce"}}));
    operator.pass(&mut world, 1).await;
    assert_eq!(replicas(&world), 3);
}

#[tokio::test]
async fn a_new_operator_goes_on_with_an_incident() {
    let (mut world, mut operator) = two(json!({})).await;
    change(
        &world,
        "b",
        json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False",
        "lastTransitionTime": at(world.seconds).to_string()}]}}),
    );
    operator.pass(&mut world, 3).await;
    assert_eq!(incidents(&world)[0].cause, IncidentCause::PodUnready);
    let mut next = Operator::default();
    assert_eq!(next.pass(&mut world, 2).await, NOTHING);
    change(
        &world,
        "b",
        json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]}}),
    );
    assert_eq!(next.pass(&mut world, 5).await, ["apply status"]);
    assert_eq!((incidents(&world).len(), incidents(&world)[0].seconds()), (1, 10));
}
