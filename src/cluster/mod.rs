//! What every kind asks of the cluster: whether the nodes of an accelerator class can take its pods, and which nodes are lost.

pub mod nodes;

use flywheel_api::conditions::{cut_words, reasons};
use flywheel_policy::placement::{ClassView, NodeView, PodSchedulingView, Problem, lacks, problem, unseen};
use k8s_openapi::api::core::v1::Node;

use crate::cache::Caches;

/// Why pods of this class, of `gpus` GPUs each, have no node; `None` while all have one or nothing is known yet.
#[must_use]
pub fn placement_problem(
    caches: &Caches,
    class: &ClassView<'_>,
    gpus: u32,
    pods: &[PodSchedulingView],
) -> Option<Problem> {
    // That is the rule, and nodes are many.
    if pods.iter().all(|pod| pod.scheduled) {
        return None;
    }
    match &caches.nodes {
        Some(nodes) => {
            let nodes = nodes.all(|_| true);
            let none = std::collections::BTreeMap::new();
            let views: Vec<NodeView<'_>> = nodes
                .iter()
                .map(|node| NodeView {
                    labels: node.metadata.labels.as_ref().unwrap_or(&none),
                    gpus: gpus_of(node, class.resource),
                    closed: is_closed(node),
                })
                .collect();
            problem(class, gpus, &views, pods)
        }
        None => without_nodes(class.resource, pods),
    }
}

/// GPUs of this resource that pods may have on the node; `None` where the amount is no plain number.
fn gpus_of(node: &Node, resource: &str) -> Option<u32> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    match allocatable.and_then(|amounts| amounts.get(resource)) {
        Some(amount) => amount.0.parse().ok(),
        None => Some(0),
    }
}

/// Whether the control plane keeps new pods off the node: a cordon, and each trouble that it sees, is a taint of this prefix.
fn is_closed(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut keeps = taints.filter(|t| t.key.starts_with("node.kubernetes.io/") && t.effect != "PreferNoSchedule");
    keeps.next().is_some()
}

/// In namespaced mode only the scheduler's words are known.
fn without_nodes(resource: &str, pods: &[PodSchedulingView]) -> Option<Problem> {
    let waiting = pods.iter().filter(|p| !p.scheduled).count();
    let Some(words) = pods.iter().filter(|p| !p.scheduled).find_map(|p| p.message.as_deref()) else {
        return unseen(pods);
    };
    // It looks for GPUs on nodes of the class alone.
    let mut said = pods
        .iter()
        .filter(|p| !p.scheduled)
        .filter_map(|p| p.message.as_deref());
    let no_gpu = said.any(|words| lacks(words, resource));
    // What follows is about preemption, on which a user cannot act.
    let words = ["no new claims", "preemption:"].iter().fold(words, |words, mark| {
        words.split_once(mark).map_or(words, |(before, _)| before)
    });
    Some(Problem {
        reason: if no_gpu {
            reasons::INSUFFICIENT_GPU
        } else {
            reasons::UNSCHEDULABLE
        },
        message: format!(
            "{waiting} of {} pod(s) have no node. The scheduler says: {}. Add a node of the accelerator class, or correct \
             resources, nodeSelector, affinity, tolerations or volumes of the spec; the pods stay and start by themselves",
            pods.len(),
            cut_words(words.trim_end_matches(['.', ' ', ',']), 400)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_right_to_see_nodes_the_scheduler_alone_tells() {
        let waits = |message: Option<&str>, unseen_by: Option<&str>| PodSchedulingView {
            scheduled: false,
            message: message.map(str::to_owned),
            unseen_by: unseen_by.map(str::to_owned),
        };
        let table = [
            (waits(None, None), None),
            (waits(Some("0/3 nodes are available"), None), Some("Unschedulable")),
            (
                waits(Some("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), None),
                Some("InsufficientGPU"),
            ),
            (waits(None, Some("volcano")), Some("Pending")),
        ];
        for (view, reason) in table {
            assert_eq!(without_nodes("nvidia.com/gpu", &[view]).map(|p| p.reason), reason);
        }
    }

    #[test]
    fn a_node_that_is_cordoned_or_lost_takes_no_pods() {
        for (key, effect, closed) in [
            ("node.kubernetes.io/unschedulable", "NoSchedule", true),
            ("node.kubernetes.io/unreachable", "NoExecute", true),
            ("node.kubernetes.io/disk-pressure", "PreferNoSchedule", false),
            ("nvidia.com/gpu", "NoSchedule", false),
        ] {
            let taints = serde_json::json!([{"key": key, "effect": effect}]);
            let node = serde_json::json!({"metadata": {"name": "n"}, "spec": {"taints": taints}});
            assert_eq!(is_closed(&serde_json::from_value(node).unwrap()), closed, "{key}");
        }
    }

    #[test]
    fn a_node_has_the_gpus_that_its_kubelet_lets_pods_have() {
        let node = |status: serde_json::Value| -> Node {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n"}, "status": status})).unwrap()
        };
        for (status, gpus) in [
            (
                serde_json::json!({"allocatable": {"nvidia.com/gpu": "8", "cpu": "4"}}),
                Some(8),
            ),
            (serde_json::json!({"allocatable": {"cpu": "4"}}), Some(0)),
            (serde_json::json!({}), Some(0)),
            // As the API server writes 1000 of something.
            (serde_json::json!({"allocatable": {"nvidia.com/gpu": "1k"}}), None),
        ] {
            assert_eq!(gpus_of(&node(status.clone()), "nvidia.com/gpu"), gpus, "{status}");
        }
    }
}
