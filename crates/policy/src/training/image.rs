//! Whether an attempt that cannot have its image is followed by another one.
//!
//! The kubelet tries again by itself, but waits ever longer, up to five minutes, and what keeps the image from a pod may be
//! its node's alone: a full disk, a lost route to the registry. A new pod is tried at once, prefers another node, and has the
//! image that is set by now. An image that nobody can have makes no storm of Jobs: each such attempt waits longer.

use std::time::Duration;

use flywheel_api::conditions::reasons;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::attempt::{AttemptState, End, EndedAttempt, index, without_image_since};
use super::hang::{Cause, Verdict};
use super::{AttemptView, Wishes, turn_after, turns};
use crate::remedy::IMAGE_WAIT;

/// How long the attempt after this many turns in a row waits for its image: 75, 150, 300, 600, 1,200, 1,800 s.
#[must_use]
pub fn patience(turns: u32) -> Duration {
    turn_after(IMAGE_WAIT, turns)
}

/// Whether an attempt in this state waits for an image.
pub(super) fn is_missing(state: &AttemptState) -> bool {
    matches!(state, AttemptState::Blocked { reason, .. } if *reason == reasons::IMAGE_PULL_FAILED)
}

/// Nodes that attempts which are still there could not have their image on, the latest first.
#[must_use]
pub fn nodes_without(attempts: &[AttemptView]) -> Vec<String> {
    let mut nodes: Vec<String> = Vec::new();
    for attempt in attempts.iter().rev() {
        if let AttemptState::Ended(EndedAttempt {
            end: End::NoImage { node: Some(node), .. },
            ..
        }) = &attempt.state
            && !nodes.contains(node)
        {
            nodes.push(node.clone());
        }
    }
    nodes
}

/// The latest attempt, where it waits for an image and is not to be left alone.
fn waiting<'a>(wishes: Wishes<'_>, attempts: &'a [AttemptView]) -> Option<&'a AttemptView> {
    let latest = attempts.last()?;
    let left_alone = wishes.suspend || wishes.only_observe || latest.suspended;
    (is_missing(&latest.state) && !left_alone).then_some(latest)
}

/// That the latest attempt is given up, and the pod because of which: of these, its pods, that which has waited longest for
/// its image in `container`, where that is too long.
#[must_use]
pub fn verdict<'a>(
    wishes: Wishes<'_>,
    attempts: &[AttemptView],
    pods: impl IntoIterator<Item = &'a Pod>,
    container: &str,
    now: Timestamp,
) -> Option<(&'a Pod, Verdict)> {
    let latest = waiting(wishes, attempts)?;
    let since = |pod: &'a Pod| Some((without_image_since(pod, container)?, pod));
    let (since, pod) = pods
        .into_iter()
        .filter_map(since)
        .min_by_key(|(since, pod)| (*since, index(pod)))?;
    let waited = Duration::try_from(now.duration_since(since)).ok()?;
    let turns = turns(attempts);
    let place = if latest.nodes > 1 {
        format!("pod {} of ", index(pod))
    } else {
        String::new()
    };
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    (waited >= patience(turns)).then(|| {
        let verdict = Verdict {
            cause: Cause::NoImage {
                since,
                turn: turns.saturating_add(1),
            },
            how: format!(
                "{place}attempt {} could not have its image on {} for {} s, and other nodes are preferred next",
                latest.number,
                node.unwrap_or("its node"),
                waited.as_secs()
            ),
            at: now,
            position: None,
            node: node.map(str::to_owned),
        };
        (pod, verdict)
    })
}

/// What is added to why the latest attempt has no image.
pub(super) fn prospect(wishes: Wishes<'_>, attempts: &[AttemptView]) -> Option<String> {
    waiting(wishes, attempts)?;
    Some(format!(
        "Where it is not there after {} s, another attempt follows, which prefers other nodes",
        patience(turns(attempts)).as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training::tests::{self, WISHES, at};

    /// An attempt of two pods, one of which runs.
    fn attempt(number: u32, state: AttemptState) -> AttemptView {
        AttemptView {
            nodes: 2,
            running: 1,
            pod_lives: true,
            ..tests::attempt(number, 0, state)
        }
    }

    fn blocked(reason: &'static str) -> AttemptState {
        AttemptState::Blocked {
            reason,
            message: "m".to_owned(),
        }
    }

    /// A pod that waits for this reason on a node, whose sandbox stood at second 10.
    fn pod(index: u32, waiting: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": at(0).to_string(),
                "labels": {flywheel_api::names::LABEL_COMPLETION_INDEX: index.to_string()}},
            "spec": {"nodeName": "n-1", "containers": []},
            "status": {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(2).to_string()},
                    {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": at(10).to_string()},
                ],
                "containerStatuses": [{"name": "trainer", "image": "r/x:1", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": waiting}}}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn one_that_waits_too_long_is_given_up_and_each_waits_longer_than_the_one_before() {
        let seconds: Vec<u64> = (0..8).map(|turns| patience(turns).as_secs()).collect();
        assert_eq!(seconds, [75, 150, 300, 600, 1200, 1800, 1800, 1800]);
        let pods = [pod(0, "ContainerCreating"), pod(1, "ImagePullBackOff")];
        let gives_up = |attempts: &[AttemptView], second| {
            let (of, verdict) = verdict(WISHES, attempts, &pods, "trainer", at(second))?;
            assert_eq!(index(of), 1);
            Some(verdict)
        };
        let mut attempts = vec![attempt(1, blocked(reasons::IMAGE_PULL_FAILED))];
        assert_eq!(gives_up(&attempts, 84), None);
        let first = gives_up(&attempts, 85).unwrap();
        let since = at(10);
        assert_eq!(first.cause, Cause::NoImage { since, turn: 1 });
        assert_eq!(
            first.how,
            "pod 1 of attempt 1 could not have its image on n-1 for 75 s, and other nodes are preferred next"
        );
        attempts[0].state = AttemptState::Ended(first.ended());
        attempts.push(attempt(2, blocked(reasons::IMAGE_PULL_FAILED)));
        assert_eq!(gives_up(&attempts, 159), None);
        let second = gives_up(&attempts, 160).unwrap();
        assert_eq!(second.cause, Cause::NoImage { since, turn: 2 });
        assert!(prospect(WISHES, &attempts).unwrap().contains("after 150 s"));
        assert_eq!(nodes_without(&attempts), ["n-1"]);
        // Turns between two classes without room are turns as well.
        let no_room = Cause::NoRoom { turn: 4 };
        attempts[0].state = AttemptState::Ended(
            Verdict {
                cause: no_room,
                ..first
            }
            .ended(),
        );
        assert!(prospect(WISHES, &attempts).unwrap().contains("after 1200 s"));
        assert_eq!(nodes_without(&attempts), [""; 0]);
    }

    #[test]
    fn who_waits_for_something_else_or_is_to_be_left_alone_is_not_given_up() {
        let no_image = attempt(1, blocked(reasons::IMAGE_PULL_FAILED));
        let suspended = AttemptView {
            suspended: true,
            ..no_image.clone()
        };
        let observed = Wishes {
            only_observe: true,
            ..WISHES
        };
        let suspend = Wishes {
            suspend: true,
            ..WISHES
        };
        let table = [
            ("no secret", WISHES, attempt(1, blocked(reasons::POD_CONFIG_INVALID))),
            ("it pulls", WISHES, attempt(1, AttemptState::Starting)),
            ("it is suspended", WISHES, suspended),
            ("only observed", observed, no_image.clone()),
            ("to be suspended", suspend, no_image.clone()),
        ];
        let pods = [pod(0, "ErrImagePull")];
        for (case, wishes, attempt) in table {
            let attempts = [attempt];
            assert_eq!(verdict(wishes, &attempts, &pods, "trainer", at(9_000)), None, "{case}");
            assert_eq!(prospect(wishes, &attempts), None, "{case}");
        }
        // Its image came, or the pod is on its way out.
        let attempts = [no_image];
        let mut leaving = pod(0, "ErrImagePull");
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!(at(50).to_string())).unwrap();
        for pods in [[pod(0, "ContainerCreating")], [leaving]] {
            assert_eq!(verdict(WISHES, &attempts, &pods, "trainer", at(9_000)), None);
        }
    }
}
