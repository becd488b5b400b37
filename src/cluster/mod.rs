//! What every kind asks of the cluster: whether the nodes of an accelerator class can take its pods.

use flywheel_api::conditions::{cut_words, reasons};
use flywheel_policy::placement::{NodeView, PodSchedulingView, Problem, problem, unseen};

use crate::cache::Caches;
use crate::settings::AcceleratorClass;

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
    let Some(words) = pods.iter().filter(|p| !p.scheduled).find_map(|p| p.message.as_deref()) else {
        return unseen(pods);
    };
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
            (waits(None, Some("volcano")), Some("Pending")),
        ];
        for (view, reason) in table {
            assert_eq!(without_nodes(&[view]).map(|p| p.reason), reason);
        }
    }
}
