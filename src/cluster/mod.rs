//! What every kind asks of the cluster: whether the nodes of an accelerator class can take its pods.

use flywheel_api::conditions::{cut_words, reasons};
use flywheel_policy::placement::{NodeView, PodSchedulingView, Problem, problem};
use k8s_openapi::api::core::v1::Pod;

use crate::cache::Caches;
use crate::settings::AcceleratorClass;

/// What the scheduler says of a pod.
#[must_use]
pub fn scheduling(pod: &Pod) -> PodSchedulingView {
    let condition = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "PodScheduled");
    PodSchedulingView {
        scheduled: pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()),
        message: condition
            .filter(|c| c.status == "False")
            .and_then(|c| c.message.clone()),
    }
}

/// Why pods of this class, of `gpus` GPUs each, have no node; `None` while all have one or nothing is known yet.
#[must_use]
pub fn placement_problem(
    caches: &Caches,
    name: &str,
    class: &AcceleratorClass,
    gpus: u32,
    pods: &[PodSchedulingView],
) -> Option<Problem> {
    match &caches.nodes {
        Some(nodes) => {
            let nodes = nodes.all(|_| true);
            let none = std::collections::BTreeMap::new();
            let views: Vec<NodeView<'_>> = nodes
                .iter()
                .map(|node| NodeView {
                    labels: node.metadata.labels.as_ref().unwrap_or(&none),
                })
                .collect();
            problem(&class.view(name), gpus, &views, pods)
        }
        None => without_nodes(pods),
    }
}

/// In namespaced mode only the scheduler's words are known.
fn without_nodes(pods: &[PodSchedulingView]) -> Option<Problem> {
    let waiting = pods.iter().filter(|p| !p.scheduled).count();
    let words = pods
        .iter()
        .filter(|p| !p.scheduled)
        .find_map(|p| p.message.as_deref())?;
    // What follows is about preemption, on which a user cannot act.
    let words = ["no new claims", "preemption:"].iter().fold(words, |words, mark| {
        words.split_once(mark).map_or(words, |(before, _)| before)
    });
    Some(Problem {
        reason: reasons::UNSCHEDULABLE,
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
    use serde_json::json;

    use super::*;

    #[test]
    fn the_scheduler_is_believed_only_while_it_says_no() {
        let pod = |spec, status| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"}, "spec": spec,
                "status": {"conditions": [{"type": "PodScheduled", "status": status, "message": "0/3 nodes are available"}]}
            }))
            .unwrap()
        };
        let waiting = scheduling(&pod(json!({"containers": []}), "False"));
        assert_eq!(waiting.message.as_deref(), Some("0/3 nodes are available"));
        assert!(!waiting.scheduled);
        let placed = scheduling(&pod(json!({"containers": [], "nodeName": "n"}), "True"));
        assert_eq!((placed.scheduled, placed.message), (true, None));
        assert_eq!(without_nodes(&[waiting]).unwrap().reason, "Unschedulable");
    }
}
