//! Which nodes are lost: from reads of pods that were not answered, the leases of their nodes, and what the node controller
//! says. Leases are read of suspects only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_api::recovery::{Incident, IncidentCause, RecoveryStatus};
use flywheel_policy::recovery::nodes::{Nodes, is_held};
use flywheel_policy::training::attempt::{is_out_of_contact, lives, unhealthy_device};
use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tokio::sync::watch;

use crate::admin::Beats;
use crate::context::Context;
use crate::kubeio::within;
use crate::scrape::ScrapeError;
use crate::settings::GpuFaults;

/// Namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// Time between two looks for leases that are due.
const TICK: Duration = Duration::from_secs(1);
/// How long a node counts on which a kubelet reported a broken GPU.
const DEVICES_REMEMBERED: Duration = Duration::from_secs(300);
/// Leases that are read at once.
const READ_AT_ONCE: usize = 16;

/// What is seen of nodes whose pods do not answer.
#[derive(Debug, Default)]
pub struct NodeWatch {
    nodes: Mutex<Nodes>,
    /// When kubelets last reported a broken GPU of a pod of ours, by node: pods that were ended for it tell no more.
    devices: Mutex<BTreeMap<String, Timestamp>>,
}

impl NodeWatch {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how the read of a pod on this node ended. That the connection was refused, or the answer makes no sense, comes from
    /// the node as well.
    pub fn read<T>(&self, node: &str, read: &Result<T, ScrapeError>, now: Timestamp) {
        match read {
            Ok(_) | Err(ScrapeError::Refused | ScrapeError::Status(_) | ScrapeError::Body(_)) => {
                self.nodes().answered(node, now)
            }
            Err(ScrapeError::Timeout | ScrapeError::Unreachable(_) | ScrapeError::Http(_)) => {
                self.nodes().unanswered(node, now);
            }
        }
    }

    /// Since when the node of this pod is lost, if it is. Where nodes may not be asked about, none is: there would be no brake.
    #[must_use]
    pub fn lost(&self, pod: &Pod, context: &Context) -> Option<Timestamp> {
        let nodes = context.caches.nodes.as_ref()?;
        let node = node_of(pod)?;
        let not_ready = is_out_of_contact(pod) || nodes.named(node).is_some_and(|node| is_not_ready(&node));
        let even = context.clock.even();
        let since = self.nodes().lost(node, not_ready, even)?;
        context.now().checked_sub(even.duration_since(since)).ok()
    }

    /// Whether so many nodes are or may be lost, or were a moment ago, that nothing is ended for it; never where nodes may not be
    /// asked about.
    pub fn is_held(&self, context: &Context) -> bool {
        let Some(cache) = &context.caches.nodes else {
            return false;
        };
        let all = cache.all(|_| true);
        let (now, mut nodes) = (context.clock.even(), self.nodes());
        let may_be: BTreeSet<&str> = nodes.all_that_may_be(now).into_iter().collect();
        // A node whose object was deleted is gone for good, and not one of them any more.
        let is_lost = |node: &&Arc<Node>| {
            let name = node.metadata.name.as_deref();
            is_not_ready(node) || name.is_some_and(|name| may_be.contains(name))
        };
        let lost = all.iter().filter(is_lost).count();
        nodes.is_held(lost, all.len(), now)
    }

    /// What says that a GPU of this pod is broken: its kubelet of one that `container` holds of this extended resource, or
    /// something of [`GpuFaults`] of its node. Not where that is said of so many nodes that it must mean something else.
    #[must_use]
    pub fn gpu_fault(
        &self,
        pod: &Pod,
        (container, resource): (&str, Option<&str>),
        told: Option<&RecoveryStatus>,
        context: &Context,
    ) -> Option<String> {
        let device = resource.and_then(|resource| Some((unhealthy_device(pod, container, resource)?, resource)));
        device
            .filter(|(_, resource)| !self.are_devices_held(pod, (container, resource), context))
            .map(|(words, _)| words)
            .or_else(|| self.node_gpu_fault(pod, told, context))
    }

    /// Whether kubelets report unhealthy devices of this resource, or did so lately, on so many of the nodes that run pods of
    /// ours with some that the nodes cannot be to blame: a driver or a device plugin that fails everywhere, say. `pod` has one.
    fn are_devices_held(&self, pod: &Pod, (container, resource): (&str, &str), context: &Context) -> bool {
        let now = context.clock.even();
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|_, at| now.duration_since(*at).unsigned_abs() < DEVICES_REMEMBERED);
        devices.extend(node_of(pod).map(|node| (node.to_owned(), now)));
        let pods = context
            .caches
            .pods
            .all(|pod| lives(pod, container) && healths(pod, resource).next().is_some());
        let mut nodes: BTreeMap<&str, bool> = devices.keys().map(|node| (node.as_str(), true)).collect();
        for pod in &pods {
            if let Some(node) = node_of(pod) {
                *nodes.entry(node).or_default() |= healths(pod, resource).any(|health| health == "Unhealthy");
            }
        }
        is_held(nodes.values().filter(|faulty| **faulty).count(), nodes.len())
    }

    /// What of [`GpuFaults`] says that the GPUs of this pod's node are broken. Not where that has already cost the pod's object,
    /// which has had these incidents, one on this node: there seems to be no other one for it, and it is better off with what
    /// works there.
    fn node_gpu_fault(&self, pod: &Pod, told: Option<&RecoveryStatus>, context: &Context) -> Option<String> {
        let cache = context.caches.nodes.as_ref()?;
        let name = node_of(pod)?;
        let faults = &context.settings.gpu_faults;
        let found = gpu_fault(cache.named(name)?.as_ref(), faults)?;
        let mut incidents = told.iter().flat_map(|told| &told.incidents);
        let of_it = |incident: &Incident| {
            let over = incident.is_over();
            incident.cause == IncidentCause::GpuFault && incident.node.as_deref() == Some(name) && over
        };
        if incidents.any(of_it) {
            return None;
        }
        let faulty = cache.all(|node| gpu_fault(node, faults).is_some()).len();
        (!is_held(faulty, cache.len())).then_some(found)
    }

    /// Names of nodes that are lost by what their pods and leases show.
    fn all_lost(&self, now: Timestamp) -> BTreeSet<String> {
        self.nodes().all_lost(now).into_iter().map(str::to_owned).collect()
    }
}

/// What the kubelet says of the health of each device of this extended resource that the pod holds.
fn healths<'a>(pod: &'a Pod, resource: &'a str) -> impl Iterator<Item = &'a str> {
    let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    containers
        .flat_map(|container| container.allocated_resources_status.iter().flatten())
        .filter(move |of| of.name == resource)
        .flat_map(|of| of.resources.iter().flatten())
        .filter_map(|device| device.health.as_deref())
}

/// A pod's node.
#[must_use]
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// A pod's address.
#[must_use]
pub fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// Whether the node controller has lost this node.
fn is_not_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "Ready" && c.status != "True")
}

/// What says that this node's GPUs are broken.
#[must_use]
pub fn gpu_fault(node: &Node, faults: &GpuFaults) -> Option<String> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = conditions.filter(|c| c.status == "True" && faults.conditions.contains(&c.type_));
    if let Some(condition) = conditions.next() {
        let words = condition.message.as_deref().filter(|words| !words.is_empty());
        let words = words.map_or_else(String::new, |words| format!(": {words}"));
        return Some(format!("its node has the condition {}{words}", condition.type_));
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut keys = taints.map(|taint| &taint.key).filter(|key| faults.taints.contains(key));
    Some(format!("its node has the taint {}", keys.next()?))
}

/// Looks at the leases of suspects until `stop` is told. `changed` is told when other nodes are lost than before.
pub async fn follow_nodes(
    context: Arc<Context>,
    beats: Beats,
    mut stop: watch::Receiver<bool>,
    changed: impl Fn(&BTreeSet<String>),
) {
    const NAME: &str = "nodes";
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), LEASES);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = BTreeSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        beats.beat(NAME);
        // This also forgets what is old.
        let due = context.nodes.nodes().due(context.clock.even());
        // In namespaced mode there is no right to read them.
        if context.caches.nodes.is_none() {
            continue;
        }
        let reads: Vec<_> = due
            .into_iter()
            .map(|node| look(&leases, node, &context).boxed())
            .collect();
        stream::iter(reads)
            .buffer_unordered(READ_AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        // How many are lost is to be known from each moment, whether or not somebody asks.
        context.nodes.is_held(&context);
        let lost = context.nodes.all_lost(context.clock.even());
        if lost != before {
            let other = lost.symmetric_difference(&before).cloned().collect();
            for node in lost.difference(&before) {
                tracing::warn!(node, "a node answers neither through its pods nor by its lease");
            }
            changed(&other);
            before = lost;
        }
    }
    beats.ended(NAME);
}

async fn look(leases: &Api<Lease>, node: String, context: &Context) {
    let read = within("get Lease", leases.get_opt(&node)).await;
    let renewed = match read {
        Ok(lease) => lease
            .and_then(|lease| lease.spec?.renew_time)
            .map(|time| time.0.to_string()),
        Err(error) => {
            tracing::debug!(node, %error, "a node's lease cannot be read");
            None
        }
    };
    context.nodes.nodes().lease(&node, renewed, context.clock.even());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::Cache;

    fn node(name: &str, taints: &Value, conditions: &Value) -> Node {
        let node =
            json!({"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"conditions": conditions}});
        serde_json::from_value(node).unwrap()
    }

    fn pod(node: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}})).unwrap()
    }

    /// The container and the resource that count.
    const GPUS: (&str, Option<&str>) = ("trainer", Some("nvidia.com/gpu"));

    #[tokio::test]
    async fn devices_that_are_unhealthy_on_many_nodes_at_once_end_nothing() {
        let (client, scenario) = flywheel_testkit::Scenario::start(Vec::new());
        let mut context = Context::test(client, Timestamp::UNIX_EPOCH);
        let pod = |node: usize, health: &str, phase: &str| -> Pod {
            let held = json!([{"name": "nvidia.com/gpu", "resources": [{"resourceID": "GPU-1", "health": health}]}]);
            serde_json::from_value(json!({
                "metadata": {"name": format!("p-{node}-{health}-{phase}"), "namespace": "team"},
                "spec": {"nodeName": format!("n-{node}"), "containers": []},
                "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": true,
                    "restartCount": 0, "allocatedResourcesStatus": held}]},
            }))
            .unwrap()
        };
        let is_faulty = |context: &Context| {
            let fault = context
                .nodes
                .gpu_fault(&pod(0, "Unhealthy", "Running"), GPUS, None, context);
            fault.is_some()
        };
        // Broken ones and healthy ones of ten nodes; of pods that are over nothing counts.
        let table = [
            (1, 0, true),
            (2, 2, true),
            (3, 7, true),
            (4, 6, false),
            (3, 0, false),
            (2, 0, true),
        ];
        for (broken, healthy, expected) in table {
            let broken = (0..broken).map(|node| pod(node, "Unhealthy", "Running"));
            let healthy = (10..10 + healthy).map(|node| pod(node, "Healthy", "Running"));
            let over = (20..30).map(|node| pod(node, "Unhealthy", "Failed"));
            context.caches.pods = Cache::of(broken.clone().chain(healthy.clone()).chain(over));
            context.nodes = NodeWatch::default();
            let of = (broken.len(), healthy.len());
            assert_eq!(is_faulty(&context), expected, "{of:?}");
        }
        // One after the other, and each is ended for it.
        context.nodes = NodeWatch::default();
        let found = (0..10).map(|number| {
            let ill = pod(number, "Unhealthy", "Running");
            let others = (number + 1..10).map(|number| pod(number, "Healthy", "Running"));
            context.caches.pods = Cache::of(others.chain([ill.clone()]));
            context.nodes.gpu_fault(&ill, GPUS, None, &context).is_some()
        });
        assert_eq!(found.filter(|found| *found).count(), 3);
        scenario.finish().await;
    }

    #[tokio::test]
    async fn a_nodes_gpus_are_broken_where_what_the_administrator_named_says_so() {
        let (client, scenario) = flywheel_testkit::Scenario::start(Vec::new());
        let mut context = Context::test(client, Timestamp::UNIX_EPOCH);
        context.settings.gpu_faults = GpuFaults {
            conditions: vec!["GPUMissing".to_owned()],
            taints: vec!["example.com/gpu-error".to_owned()],
        };
        let missing = |status: &str| json!([{"type": "GPUMissing", "status": status, "message": "7 of 8"}]);
        let other = json!([{"type": "KernelDeadlock", "status": "True", "message": "m"}]);
        let tainted = json!([{"key": "example.com/gpu-error", "effect": "NoSchedule"}]);
        let nodes = [
            (
                "condition",
                json!([]),
                missing("True"),
                Some("its node has the condition GPUMissing: 7 of 8"),
            ),
            ("well", json!([]), missing("False"), None),
            ("unknown", json!([]), missing("Unknown"), None),
            (
                "other",
                json!([{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]),
                other,
                None,
            ),
            (
                "taint",
                tainted.clone(),
                json!([]),
                Some("its node has the taint example.com/gpu-error"),
            ),
        ];
        let made = |number: usize| node(&format!("spare-{number}"), &json!([]), &json!([]));
        let of_table = nodes
            .iter()
            .map(|(name, taints, conditions, _)| node(name, taints, conditions));
        let all: Vec<Node> = of_table.chain((0..5).map(made)).collect();
        context.caches.nodes = Some(Cache::of(all.clone()));
        for (name, _, _, expected) in &nodes {
            assert_eq!(
                context.nodes.gpu_fault(&pod(name), GPUS, None, &context).as_deref(),
                *expected,
                "{name}"
            );
        }
        assert_eq!(context.nodes.gpu_fault(&pod("gone"), GPUS, None, &context), None);
        // An attempt that came back to it stays.
        let incident = |over: bool| {
            let mut incident = json!({"cause": "GpuFault", "object": "o", "node": "taint", "message": "m",
                "began": "2026-01-01T00:00:00Z", "detectSeconds": 0});
            if over {
                incident["decideSeconds"] = json!(0);
                incident["replaceSeconds"] = json!(0);
                incident["recoverSeconds"] = json!(0);
            }
            serde_json::from_value::<RecoveryStatus>(json!({ "incidents": [incident] })).unwrap()
        };
        let with = |name, told: &RecoveryStatus| {
            let fault = context.nodes.gpu_fault(&pod(name), GPUS, Some(told), &context);
            fault.is_some()
        };
        assert!(
            !with("taint", &incident(true)) && with("taint", &incident(false)) && with("condition", &incident(true))
        );
        // What more than three of ten nodes have is no fault of theirs.
        let more = all.into_iter().enumerate().map(|(number, node_)| {
            let also = number >= 8;
            if also {
                node(&format!("spare-{number}"), &tainted, &json!([]))
            } else {
                node_
            }
        });
        context.caches.nodes = Some(Cache::of(more));
        assert_eq!(context.nodes.gpu_fault(&pod("condition"), GPUS, None, &context), None);
        scenario.finish().await;
    }
}
