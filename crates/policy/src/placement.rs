//! Whether pods of an accelerator class find a node, and what to do where they do not.
//!
//! Pods are always created, so that a cluster autoscaler can act on them; what is found here only becomes a condition.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use flywheel_api::conditions::{cut_words, reasons};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use serde::{Deserialize, Serialize};

/// Labels that mark a node as one of a class: each key must be there with one of its values. The terms of a class are
/// alternatives, since every cloud and every GPU operator labels nodes in its own way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelTerm(pub BTreeMap<String, Vec<String>>);

impl LabelTerm {
    /// Whether a node with these labels carries every key with one of its values.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0
            .iter()
            .all(|(key, values)| labels.get(key).is_some_and(|value| values.contains(value)))
    }

    /// The term for people: `nvidia.com/gpu.product in (Tesla-T4, T4) and zone = a`.
    fn text(&self) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(key, values)| match values.as_slice() {
                [one] => format!("{key}={one}"),
                many => format!("{key} in ({})", many.join(", ")),
            })
            .collect();
        parts.join(" and ")
    }
}

/// What placement needs to know of an accelerator class.
#[derive(Clone, Copy, Debug)]
pub struct ClassView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The resource that a GPU of it is, such as `nvidia.com/gpu`.
    pub resource: &'a str,
    /// Alternatives that mark its nodes; with none, every node is one.
    pub terms: &'a [LabelTerm],
    /// The class whose nodes the same pods may have as well.
    pub fallback: Option<FallbackView<'a>>,
}

/// What placement needs to know of the class that another one falls back to; the resource is the same.
#[derive(Clone, Copy, Debug)]
pub struct FallbackView<'a> {
    /// Its name.
    pub name: &'a str,
    /// As in [`ClassView`].
    pub terms: &'a [LabelTerm],
}

impl<'a> ClassView<'a> {
    /// Whether a node with these labels is one that pods of the class may have.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let is_of = |terms: &[LabelTerm]| terms.is_empty() || terms.iter().any(|term| term.matches(labels));
        is_of(self.terms) || self.fallback.is_some_and(|fallback| is_of(fallback.terms))
    }

    /// The class for people, with its fallback.
    fn words(&self) -> String {
        match self.fallback {
            Some(fallback) => format!(
                "the accelerator class {} or its fallback class {}",
                self.name, fallback.name
            ),
            None => format!("the accelerator class {}", self.name),
        }
    }

    /// All alternatives that mark nodes; none where every node is one.
    fn all_terms(&self) -> impl Iterator<Item = &'a LabelTerm> {
        let fallback = self.fallback.map(|fallback| fallback.terms);
        let every_node = self.terms.is_empty() || fallback.is_some_and(<[LabelTerm]>::is_empty);
        let terms = self.terms.iter().chain(fallback.unwrap_or_default());
        terms.filter(move |_| !every_node)
    }
}

/// What placement needs to know of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// GPUs of the class's resource that pods may have on it, free or not; `None` where its amount is no plain number.
    pub gpus: Option<u32>,
    /// It takes no new pods: it is cordoned, or the control plane has lost it or found it in trouble.
    pub closed: bool,
}

/// What the scheduler says of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSchedulingView {
    /// The pod has a node.
    pub scheduled: bool,
    /// Message of its condition `PodScheduled` while that is False.
    pub message: Option<String>,
    /// The scheduler that it asks for, where none has looked at it for [`SCHEDULER_PATIENCE`].
    pub unseen_by: Option<String>,
}

impl PodSchedulingView {
    /// Of this pod.
    #[must_use]
    pub fn of(pod: &Pod, now: Timestamp) -> Self {
        let condition = condition(pod, "PodScheduled");
        let spec = pod.spec.as_ref();
        let has_node = spec.is_some_and(|s| s.node_name.is_some());
        let made = pod.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let waited = Duration::try_from(now.duration_since(made)).unwrap_or_default();
        let unseen = condition.is_none() && !has_node && waited >= SCHEDULER_PATIENCE;
        let scheduler = spec.and_then(|s| s.scheduler_name.as_deref());
        Self {
            scheduled: has_node || condition.is_some_and(|c| c.status == "True"),
            message: condition
                .filter(|c| c.status == "False")
                .and_then(|c| c.message.clone()),
            unseen_by: unseen.then(|| scheduler.unwrap_or(DEFAULT_SCHEDULER).to_owned()),
        }
    }
}

/// Since when the scheduler says that it finds no node for this pod.
#[must_use]
pub fn refused_since(pod: &Pod) -> Option<Timestamp> {
    let refused = condition(pod, "PodScheduled").filter(|c| c.status == "False")?;
    refused.last_transition_time.as_ref().map(|t| t.0)
}

/// The pod's condition of this type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let mut all = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    all.find(|c| c.type_ == kind)
}

/// Why pods have no node, or cannot begin on theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `NoMatchingGPU`, `InsufficientGPU`, `Unschedulable`, `Pending` where no scheduler has looked, `PodNotPrepared`,
    /// `ImagePullFailed`, or `InvalidImageName`.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// Whether it is GPUs that pods have no node for.
    #[must_use]
    pub fn is_want_of_gpus(&self) -> bool {
        [reasons::NO_MATCHING_GPU, reasons::INSUFFICIENT_GPU].contains(&self.reason)
    }
}

/// How long a pod may be without a word of any scheduler. One that runs says within a second or two that it finds no node; a
/// new leader among several takes 15 s.
pub const SCHEDULER_PATIENCE: Duration = Duration::from_secs(60);
/// The scheduler of a pod that names none.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// Most bytes of the scheduler's own words that go into a message.
const SCHEDULER_WORDS_MAX: usize = 400;

/// Why pods of this class, of `gpus` GPUs each, have no node; `None` while all have one, or while the scheduler has not said
/// that it finds none and there are nodes of the class.
#[must_use]
pub fn problem(
    class: &ClassView<'_>,
    gpus: u32,
    nodes: &[NodeView<'_>],
    pods: &[PodSchedulingView],
) -> Option<Problem> {
    let waiting = pods.iter().filter(|p| !p.scheduled).count();
    if waiting == 0 {
        return None;
    }
    let (name, resource) = (class.words(), class.resource);
    let of = format!("{waiting} of {} pod(s) have no node", pods.len());
    let matching: Vec<_> = nodes.iter().filter(|n| class.matches(n.labels)).collect();
    let largest = matching
        .iter()
        .try_fold(0, |largest: u32, n| Some(largest.max(n.gpus?)));
    let closed = matching.iter().filter(|n| n.closed).count();
    let matching = matching.len();
    if matching == 0 {
        let terms: Vec<String> = class.all_terms().map(LabelTerm::text).collect();
        return Some(Problem {
            reason: reasons::NO_MATCHING_GPU,
            message: if terms.is_empty() {
                format!("{of}: the cluster has no nodes. Add one with {resource}")
            } else {
                format!(
                    "{of}: no node of the cluster is of {name}, {marked} by {}. Add such a node, label one, name another \
                     class in accelerator.class, or have the administrator correct the \
                     class in the operator's settings; the pods stay and start by themselves",
                    terms.join(" or "),
                    marked = if class.fallback.is_some() {
                        "which are marked"
                    } else {
                        "which is marked"
                    }
                )
            },
        });
    }
    let words = pods
        .iter()
        .filter(|p| !p.scheduled)
        .filter_map(|p| p.message.as_deref())
        .map(first_sentence)
        .max_by_key(|words| (lacks(words, resource), std::cmp::Reverse(words.clone())));
    let Some(words) = words else {
        return unseen(pods);
    };
    let too_small = largest.filter(|largest| *largest < gpus);
    if closed == matching {
        return Some(Problem {
            reason: reasons::INSUFFICIENT_GPU,
            message: format!(
                "{of}: {matching} node(s) are of {name}, and none takes new pods, as they are cordoned, not ready or not reached. \
                 Uncordon or mend one (`kubectl get nodes` shows them), or add a node; the pods stay and start by themselves"
            ),
        });
    }
    Some(if let (true, Some(largest)) = (lacks(&words, resource), too_small) {
        Problem {
            reason: reasons::INSUFFICIENT_GPU,
            message: format!("{of}: {}", never(class, gpus, matching, largest)),
        }
    } else if lacks(&words, resource) {
        Problem {
            reason: reasons::INSUFFICIENT_GPU,
            message: format!(
                "{of}: {matching} node(s) are of {name}, and none has {free}. {wanted}Wait for \
                 other pods to end, scale them down, or add a node; if GPUs should be free, see whether the device plugin \
                 reports {resource} on these nodes. The pods stay and start by themselves",
                free = if gpus > 1 {
                    format!("{gpus} free {resource}")
                } else {
                    format!("a free {resource}")
                },
                wanted = wanted(gpus, waiting, pods.len()),
            ),
        }
    } else {
        Problem {
            reason: reasons::UNSCHEDULABLE,
            message: format!(
                "{of}, though {matching} node(s) are of {name}. The scheduler says: {words}. \
                 Correct resources, nodeSelector, affinity, tolerations or volumes of the spec, or make room"
            ),
        }
    })
}

/// That no scheduler has looked at pods; `None` where one has, or may still.
#[must_use]
pub fn unseen(pods: &[PodSchedulingView]) -> Option<Problem> {
    let names = || pods.iter().filter_map(|p| p.unseen_by.as_deref());
    let scheduler = names().next()?;
    Some(Problem {
        reason: reasons::PENDING,
        message: format!(
            "{} of {} pod(s) have no node: no scheduler has looked at them for {} s. See that the scheduler {scheduler} \
             runs, or correct schedulerName of the spec",
            names().count(),
            pods.len(),
            SCHEDULER_PATIENCE.as_secs()
        ),
    })
}

/// What is wrong and what to do where even the largest node of the class has fewer GPUs than a pod asks for, so that none
/// that becomes free helps. Only pods of a training ask for more than one.
fn never(class: &ClassView<'_>, gpus: u32, matching: usize, largest: u32) -> String {
    let (name, resource) = (class.words(), class.resource);
    if largest == 0 {
        format!(
            "{matching} node(s) are of {name}, and none reports any {resource}. See that the device \
             plugin runs on these nodes, or add one where it does; if they report their GPUs by another name, have the \
             administrator correct resource of the class in the operator's settings. The pods stay and start by themselves"
        )
    } else {
        format!(
            "each pod asks for {gpus} {resource} on one node, and no node of {name} has more than \
             {largest}, free or not, so waiting does not help. Apply a new TrainingJob with trainer.accelerator.count of at \
             most {largest} (more trainer.numNodes give as many GPUs), or add a node with {gpus}"
        )
    }
}

/// How many GPUs are missing, where one pod with one GPU is not all. How many are free the scheduler alone knows: it would
/// take all pods of the cluster to count them.
fn wanted(gpus: u32, waiting: usize, pods: usize) -> String {
    if gpus <= 1 && pods <= 1 {
        return String::new();
    }
    let gpus = usize::try_from(gpus).unwrap_or(usize::MAX);
    let (missing, all) = (gpus.saturating_mul(waiting), gpus.saturating_mul(pods));
    format!("{missing} of {all} GPUs are missing, {gpus} on one node for each pod. ")
}

/// Whether the scheduler names this resource as missing. The name is compared as a whole: `nvidia.com/gpu` is not
/// `nvidia.com/gpu.shared`.
#[must_use]
pub fn lacks(words: &str, resource: &str) -> bool {
    words.split("Insufficient ").skip(1).any(|rest| {
        rest.strip_prefix(resource).is_some_and(|after| {
            !after.starts_with(|c: char| c.is_ascii_alphanumeric() || "-_/".contains(c)) && {
                // A full stop ends the sentence, or goes on with the name.
                !after
                    .strip_prefix('.')
                    .is_some_and(|more| more.starts_with(|c: char| c.is_ascii_alphanumeric()))
            }
        })
    })
}

/// What the scheduler says before it goes on about preemption, which a user cannot act on.
fn first_sentence(message: &str) -> Cow<'_, str> {
    let end = ["preemption:", "no new claims to deallocate"]
        .iter()
        .filter_map(|mark| message.find(mark))
        .min()
        .unwrap_or(message.len());
    cut_words(
        message.get(..end).unwrap_or(message).trim_end_matches([' ', '.', ',']),
        SCHEDULER_WORDS_MAX,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn t4_terms() -> Vec<LabelTerm> {
        vec![
            LabelTerm(BTreeMap::from([(
                "nvidia.com/gpu.product".to_owned(),
                vec!["Tesla-T4".to_owned(), "T4".to_owned()],
            )])),
            LabelTerm(BTreeMap::from([(
                "cloud.google.com/gke-accelerator".to_owned(),
                vec!["nvidia-tesla-t4".to_owned()],
            )])),
        ]
    }

    fn judge(node_labels: &[BTreeMap<String, String>], pods: &[PodSchedulingView]) -> Option<Problem> {
        judge_with(1, node_labels, pods)
    }

    fn judge_with(gpus: u32, node_labels: &[BTreeMap<String, String>], pods: &[PodSchedulingView]) -> Option<Problem> {
        let terms = t4_terms();
        let class = ClassView {
            name: "t4",
            resource: "nvidia.com/gpu",
            terms: &terms,
            fallback: None,
        };
        let has = |labels| NodeView {
            labels,
            gpus: Some(8),
            closed: false,
        };
        let nodes: Vec<NodeView<'_>> = node_labels.iter().map(has).collect();
        problem(&class, gpus, &nodes, pods)
    }

    fn waiting(message: &str) -> PodSchedulingView {
        PodSchedulingView {
            scheduled: false,
            message: (!message.is_empty()).then(|| message.to_owned()),
            unseen_by: None,
        }
    }

    const PLACED: PodSchedulingView = PodSchedulingView {
        scheduled: true,
        message: None,
        unseen_by: None,
    };

    #[test]
    fn a_scheduler_has_a_minute_to_look_and_is_believed_only_while_it_says_no() {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let pod = |made: &str, node: Option<&str>, conditions: Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "creationTimestamp": format!("2026-01-01T{made}Z")},
                "spec": {"containers": [], "schedulerName": "volcano", "nodeName": node},
                "status": {"conditions": conditions}
            }))
            .unwrap()
        };
        let said = |status: &str| json!([{"type": "PodScheduled", "status": status, "message": "0/3 nodes"}]);
        let table = [
            ("new", pod("00:09:01", None, json!([])), (false, None, None)),
            (
                "nobody looks",
                pod("00:09:00", None, json!([])),
                (false, None, Some("volcano")),
            ),
            (
                "one says no",
                pod("00:00:00", None, said("False")),
                (false, Some("0/3 nodes"), None),
            ),
            ("one found it", pod("00:00:00", None, said("True")), (true, None, None)),
            (
                "it has a node and no condition",
                pod("00:00:00", Some("n"), json!([])),
                (true, None, None),
            ),
        ];
        for (case, pod, (scheduled, message, unseen_by)) in table {
            let expected = PodSchedulingView {
                scheduled,
                message: message.map(str::to_owned),
                unseen_by: unseen_by.map(str::to_owned),
            };
            assert_eq!(PodSchedulingView::of(&pod, now), expected, "{case}");
        }
    }

    #[test]
    fn each_situation_has_its_reason() {
        let t4 = labels(&[("nvidia.com/gpu.product", "Tesla-T4")]);
        let gke = labels(&[("cloud.google.com/gke-accelerator", "nvidia-tesla-t4")]);
        let a100 = labels(&[("nvidia.com/gpu.product", "A100-SXM4-40GB")]);
        let full = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) didn't match Pod's node \
                    affinity/selector. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        let affinity = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
        let cpu = "0/1 nodes are available: 1 Insufficient cpu.";
        let shared = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.shared.";
        let unseen = || PodSchedulingView {
            unseen_by: Some("volcano".to_owned()),
            ..waiting("")
        };
        let nodes_t4 = [t4.clone()];
        let nodes_gke = [gke];
        let nodes_a100 = [a100];
        type Row<'a> = (
            &'a str,
            &'a [BTreeMap<String, String>],
            Vec<PodSchedulingView>,
            Option<&'a str>,
        );
        let table: Vec<Row<'_>> = vec![
            ("no pods yet", &[], vec![], None),
            ("all placed", &nodes_t4, vec![PLACED, PLACED], None),
            ("all placed, nodes not known yet", &[], vec![PLACED], None),
            ("no nodes", &[], vec![waiting("")], Some("NoMatchingGPU")),
            (
                "only other nodes",
                &nodes_a100,
                vec![waiting(affinity)],
                Some("NoMatchingGPU"),
            ),
            (
                "only other nodes, scheduler silent",
                &nodes_a100,
                vec![waiting("")],
                Some("NoMatchingGPU"),
            ),
            ("scheduler has not spoken", &nodes_t4, vec![waiting("")], None),
            ("no scheduler looks", &nodes_t4, vec![PLACED, unseen()], Some("Pending")),
            (
                "no scheduler looks, and no node would do",
                &[],
                vec![unseen()],
                Some("NoMatchingGPU"),
            ),
            (
                "one has spoken",
                &nodes_t4,
                vec![unseen(), waiting(cpu)],
                Some("Unschedulable"),
            ),
            (
                "none free",
                &nodes_t4,
                vec![PLACED, waiting(full)],
                Some("InsufficientGPU"),
            ),
            (
                "none free, other label",
                &nodes_gke,
                vec![waiting(full)],
                Some("InsufficientGPU"),
            ),
            ("no processor", &nodes_t4, vec![waiting(cpu)], Some("Unschedulable")),
            (
                "own affinity",
                &nodes_t4,
                vec![waiting(affinity)],
                Some("Unschedulable"),
            ),
            (
                "other resource of like name",
                &nodes_t4,
                vec![waiting(shared)],
                Some("Unschedulable"),
            ),
            (
                "GPU counts before the rest",
                &nodes_t4,
                vec![waiting(cpu), waiting(full)],
                Some("InsufficientGPU"),
            ),
        ];
        for (case, nodes, pods, expected) in table {
            assert_eq!(judge(nodes, &pods).map(|p| p.reason), expected, "{case}");
        }
    }

    #[test]
    fn messages_name_the_class_its_labels_and_what_to_do() {
        let none = judge(&[], &[waiting(""), PLACED]).unwrap().message;
        for part in [
            "1 of 2 pod(s)",
            "class t4",
            "nvidia.com/gpu.product in (Tesla-T4, T4) or cloud.google.com/gke-accelerator=nvidia-tesla-t4",
            "Add such a node",
        ] {
            assert!(none.contains(part), "{part} is not in: {none}");
        }
        let t4 = labels(&[("nvidia.com/gpu.product", "T4")]);
        let full = judge(std::slice::from_ref(&t4), &[waiting("1 Insufficient nvidia.com/gpu.")])
            .unwrap()
            .message;
        for part in ["1 node(s)", "class t4", "nvidia.com/gpu", "device plugin"] {
            assert!(full.contains(part), "{part} is not in: {full}");
        }
        let other = judge(&[t4], &[waiting("1 Insufficient cpu. preemption: nothing helps")])
            .unwrap()
            .message;
        assert!(
            other.contains("The scheduler says: 1 Insufficient cpu. Correct"),
            "{other}"
        );
        assert!(!other.contains("preemption"), "{other}");
        let unseen = PodSchedulingView {
            unseen_by: Some("volcano".to_owned()),
            ..waiting("")
        };
        let t4 = labels(&[("nvidia.com/gpu.product", "T4")]);
        let unseen = judge(&[t4], &[unseen, PLACED]).unwrap().message;
        for part in [
            "1 of 2 pod(s)",
            "no scheduler has looked",
            "the scheduler volcano runs",
            "schedulerName",
        ] {
            assert!(unseen.contains(part), "{part} is not in: {unseen}");
        }
    }

    #[test]
    fn the_message_counts_the_gpus_that_are_missing_where_they_are_several() {
        let t4 = labels(&[("nvidia.com/gpu.product", "T4")]);
        let full = || waiting("1 Insufficient nvidia.com/gpu.");
        for (gpus, pods, words) in [
            (1, vec![full()], "none has a free nvidia.com/gpu. Wait for"),
            (
                1,
                vec![PLACED, full()],
                "1 of 2 pod(s) have no node: 1 node(s) are of the accelerator class t4, and none has a free nvidia.com/gpu. \
                 1 of 2 GPUs are missing, 1 on one node for each pod. Wait for",
            ),
            (
                4,
                vec![full()],
                "none has 4 free nvidia.com/gpu. 4 of 4 GPUs are missing, 4 on one node for each pod. Wait for",
            ),
            (
                2,
                vec![full(), PLACED, full()],
                "2 of 3 pod(s) have no node: 1 node(s) are of the accelerator class t4, and none has 2 free nvidia.com/gpu. \
                 4 of 6 GPUs are missing, 2 on one node for each pod. Wait for",
            ),
        ] {
            let message = judge_with(gpus, std::slice::from_ref(&t4), &pods).unwrap().message;
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn nobody_is_told_to_wait_where_no_node_has_as_many_gpus_as_a_pod_asks_for() {
        let (terms, t4) = (t4_terms(), labels(&[("nvidia.com/gpu.product", "T4")]));
        let a100 = labels(&[("nvidia.com/gpu.product", "A100")]);
        let class = ClassView {
            name: "t4",
            resource: "nvidia.com/gpu",
            terms: &terms,
            fallback: None,
        };
        let (wait, less, plugin) = ("Wait for other pods", "count of at most 2 ", "device plugin runs");
        let table: [(&str, u32, &[Option<u32>], &str); 7] = [
            ("the largest has as many", 4, &[Some(2), Some(4)], wait),
            ("none has as many", 4, &[Some(1), Some(2)], less),
            ("one tells nothing", 4, &[Some(1), None], wait),
            ("none has any", 1, &[Some(0), Some(0)], plugin),
            ("none has any of several", 2, &[Some(0)], plugin),
            ("some have none", 1, &[Some(0), Some(1)], wait),
            ("one is enough", 1, &[Some(1)], wait),
        ];
        for (case, gpus, nodes, words) in table {
            // Nodes of other classes help nobody.
            let other = NodeView {
                labels: &a100,
                gpus: Some(9),
                closed: false,
            };
            let ours = nodes.iter().map(|gpus| NodeView {
                labels: &t4,
                gpus: *gpus,
                closed: false,
            });
            let nodes: Vec<_> = ours.chain([other]).collect();
            let problem = problem(&class, gpus, &nodes, &[waiting("1 Insufficient nvidia.com/gpu.")]).unwrap();
            assert_eq!(problem.reason, "InsufficientGPU", "{case}");
            assert!(problem.message.contains(words), "{case}: {}", problem.message);
            let waits = problem.message.contains("Wait for");
            assert_eq!(waits, words == wait, "{case}: {}", problem.message);
        }
    }

    /// Whatever the scheduler says of them, their GPUs are not to be had, and another class would help.
    #[test]
    fn nodes_that_take_no_pods_are_a_want_of_gpus_where_there_are_no_others() {
        let t4 = labels(&[("nvidia.com/gpu.product", "T4")]);
        let node = |closed| NodeView {
            labels: &t4,
            gpus: Some(1),
            closed,
        };
        let terms = [LabelTerm(BTreeMap::from([(
            "nvidia.com/gpu.product".to_owned(),
            vec!["T4".to_owned()],
        )]))];
        let class = ClassView {
            name: "t4",
            resource: "nvidia.com/gpu",
            terms: &terms,
            fallback: None,
        };
        let said = [waiting("0/2 nodes are available: 2 node(s) were unschedulable.")];
        let all = problem(&class, 1, &[node(true), node(true)], &said).unwrap();
        assert!(
            all.is_want_of_gpus() && all.message.contains("Uncordon or mend one"),
            "{all:?}"
        );
        let one = problem(&class, 1, &[node(true), node(false)], &said).unwrap();
        assert_eq!(one.reason, "Unschedulable");
    }

    #[test]
    fn the_order_of_pods_does_not_change_the_message() {
        let t4 = labels(&[("nvidia.com/gpu.product", "T4")]);
        let (a, b) = (waiting("1 Insufficient cpu"), waiting("1 Insufficient memory"));
        assert_eq!(
            judge(std::slice::from_ref(&t4), &[a.clone(), b.clone()]),
            judge(&[t4], &[b, a])
        );
    }

    #[test]
    fn nodes_of_a_fallback_class_count_for_pods_that_may_have_them() {
        let term = |value: &str| vec![LabelTerm(BTreeMap::from([("gpu".to_owned(), vec![value.to_owned()])]))];
        let (own, other) = (term("a100"), term("t4"));
        let class = |terms| ClassView {
            name: "a100",
            resource: "nvidia.com/gpu",
            terms: &own,
            fallback: Some(FallbackView { name: "t4", terms }),
        };
        let both = class(&other);
        let alone = ClassView { fallback: None, ..both };
        let (a100, t4, none) = (labels(&[("gpu", "a100")]), labels(&[("gpu", "t4")]), labels(&[]));
        for (labels, by_both, by_one) in [(&a100, true, true), (&t4, true, false), (&none, false, false)] {
            assert_eq!(
                (both.matches(labels), alone.matches(labels)),
                (by_both, by_one),
                "{labels:?}"
            );
        }
        assert!(class(&[]).matches(&none), "every node is one of the fallback class");
        let has = |labels| NodeView {
            labels,
            gpus: Some(1),
            closed: false,
        };
        let lacks = [waiting("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")];
        let said = |class: &ClassView<'_>, gpus, nodes: &[NodeView<'_>]| problem(class, gpus, nodes, &lacks).unwrap();
        let table = [
            (
                said(&both, 1, &[has(&none)]),
                "NoMatchingGPU",
                "is of the accelerator class a100 or its fallback class t4, which are marked by gpu=a100 or gpu=t4. Add",
            ),
            (
                said(&both, 1, &[has(&a100), has(&t4)]),
                "InsufficientGPU",
                "2 node(s) are of the accelerator class a100 or its fallback class t4, and none has a free",
            ),
            (
                said(&both, 2, &[has(&a100), has(&t4)]),
                "InsufficientGPU",
                "no node of the accelerator class a100 or its fallback class t4 has more than 1",
            ),
            (
                said(&alone, 1, &[has(&t4)]),
                "NoMatchingGPU",
                "is of the accelerator class a100, which is marked by gpu=a100. Add",
            ),
        ];
        for (problem, reason, words) in table {
            assert_eq!(problem.reason, reason);
            assert!(problem.is_want_of_gpus());
            assert!(
                problem.message.contains(words),
                "{words} is not in: {}",
                problem.message
            );
        }
    }
}
