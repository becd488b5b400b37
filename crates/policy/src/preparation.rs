//! Whether a node can prepare a pod: make its sandbox and network, and mount its volumes. Where it cannot, the kubelet tries
//! again without end and says why in events alone; the pod only ever seems to be starting.

use std::time::Duration;

use flywheel_api::conditions::reasons;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::placement::{Problem, condition};

/// How long a node may take to prepare a pod before it is said that it cannot. A sandbox takes a second or two, attaching a
/// disk of the cloud 10 to 30 s; images are pulled after that and do not count.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// That the pod's node has not prepared it for [`PATIENCE`]. The condition `PodReadyToStartContainers` (Kubernetes 1.29)
/// tells; without it nothing is said.
#[must_use]
pub fn unprepared(pod: &Pod, now: Timestamp) -> Option<Problem> {
    let since = since(pod, "PodScheduled", "True")?.max(since(pod, "PodReadyToStartContainers", "False")?);
    let passed = Duration::try_from(now.duration_since(since)).ok()?;
    (passed >= PATIENCE).then(|| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        Problem {
            reason: reasons::POD_NOT_PREPARED,
            message: format!(
                "the node of pod {name} cannot make its volumes or its sandbox. See that the ConfigMaps, Secrets and \
                 PersistentVolumeClaims that the spec names are in the namespace, and that limits.memory is not tiny; \
                 `kubectl describe pod {name}` shows the node's own words. It is tried again by itself"
            ),
        }
    })
}

/// Since when the pod's condition has this status, where it has it.
fn since(pod: &Pod, kind: &str, status: &str) -> Option<Timestamp> {
    let found = condition(pod, kind).filter(|c| c.status == status)?;
    found.last_transition_time.as_ref().map(|t| t.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_is_unprepared_once_its_node_had_a_minute() {
        let at = |text: &str| format!("2026-01-01T{text}Z");
        let scheduled = |time: &str| json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": at(time)});
        let prepared = |status: &str, time: &str| json!({"type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": at(time)});
        let unscheduled = json!({"type": "PodScheduled", "status": "False", "lastTransitionTime": at("00:00:00")});
        let table: [(&str, Vec<Value>, bool); 7] = [
            (
                "a minute",
                vec![scheduled("00:09:00"), prepared("False", "00:09:00")],
                true,
            ),
            (
                "less",
                vec![scheduled("00:09:01"), prepared("False", "00:09:01")],
                false,
            ),
            (
                "images are pulled",
                vec![scheduled("00:00:00"), prepared("True", "00:00:01")],
                false,
            ),
            (
                "its sandbox went",
                vec![scheduled("00:00:00"), prepared("False", "00:09:30")],
                false,
            ),
            ("no node", vec![unscheduled, prepared("False", "00:00:00")], false),
            ("the kubelet does not tell", vec![scheduled("00:00:00")], false),
            ("nothing told", vec![], false),
        ];
        let now = at("00:10:00").parse().unwrap();
        for (case, conditions, expected) in table {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"conditions": conditions}}))
                    .unwrap();
            let seen = unprepared(&pod, now);
            assert_eq!(seen.is_some(), expected, "{case}");
            if let Some(Problem { message, .. }) = seen {
                for words in [
                    "pod p ",
                    "ConfigMaps, Secrets",
                    "limits.memory",
                    "`kubectl describe pod p`",
                    "by itself",
                ] {
                    assert!(message.contains(words), "{words} is not in: {message}");
                }
            }
        }
    }
}
