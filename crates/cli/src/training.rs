//! A TrainingJob's attempts and their pods.

use flywheel_api::TrainingJob;
use flywheel_api::conditions::{find, is_true, types};
use flywheel_api::names::{LABEL_ATTEMPT, LABEL_COMPLETION_INDEX, LABEL_TRAINING_JOB, TRAINER, is_controlled_by};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt as _;

use crate::cluster::Cluster;
use crate::error::Error;

/// An attempt's Job and its pods.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) number: u32,
    pub(crate) job: Job,
    /// By age, the oldest first. A suspension leaves more than one.
    pub(crate) pods: Vec<Pod>,
}

impl Attempt {
    /// The pod that speaks for the attempt: the newest of the first index.
    pub(crate) fn pod(&self) -> Option<&Pod> {
        self.pods.iter().rev().find(|pod| is_first(pod))
    }
}

/// Whether this is the pod that tells of the training, where an attempt has several.
pub(crate) fn is_first(pod: &Pod) -> bool {
    pod.labels()
        .get(LABEL_COMPLETION_INDEX)
        .is_none_or(|index| index == "0")
}

/// All attempts that still have a Job, by number.
pub(crate) async fn attempts(cluster: &Cluster, job: &TrainingJob) -> Result<Vec<Attempt>, Error> {
    let labels = format!("{LABEL_TRAINING_JOB}={}", job.name_any());
    let uid = job.uid().unwrap_or_default();
    let ((jobs, _), (mut pods, _)) = futures::try_join!(cluster.list::<Job>(&labels), cluster.list::<Pod>(&labels))?;
    pods.sort_by_key(|p| p.creation_timestamp().map(|t| t.0));
    let mut attempts: Vec<Attempt> = jobs
        .into_iter()
        .filter(|job| is_controlled_by(&job.metadata, &uid))
        .filter_map(|job| {
            let job_uid = job.uid()?;
            Some(Attempt {
                number: job.labels().get(LABEL_ATTEMPT)?.parse().ok()?,
                pods: pods
                    .iter()
                    .filter(|pod| is_controlled_by(&pod.metadata, &job_uid))
                    .cloned()
                    .collect(),
                job,
            })
        })
        .collect();
    attempts.sort_by_key(|attempt| attempt.number);
    Ok(attempts)
}

/// The state of a pod's container that counts; a mesh may have added others.
pub(crate) fn container_state<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|s| s.name == container)?.state.as_ref()
}

/// Whether the pod's trainer runs.
pub(crate) fn runs(pod: &Pod) -> bool {
    container_state(pod, TRAINER).is_some_and(|state| state.running.is_some())
}

/// Whether the pod's trainer runs or ran, so that there is a log.
pub(crate) fn has_log(pod: &Pod) -> bool {
    container_state(pod, TRAINER).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// How a TrainingJob ended; `None` while it goes on.
pub(crate) fn ended(job: &TrainingJob) -> Option<End> {
    let conditions = job.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if is_true(conditions, types::COMPLETE) {
        return Some(End::Complete);
    }
    is_true(conditions, types::FAILED).then_some(End::Failed)
}

/// How a TrainingJob ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    Failed,
}

/// Reason and message of the condition that sums up.
pub(crate) fn standing(job: &TrainingJob) -> (String, String) {
    let ready = job.status.as_ref().and_then(|s| find(&s.conditions, types::READY));
    match ready {
        Some(condition) => (condition.reason.clone(), condition.message.clone()),
        None => (
            "Unseen".to_owned(),
            "the operator has not looked at it yet; `kubectl flywheel version` shows whether it runs".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{CREATED, object, training_job};
    use flywheel_testkit::{Scenario, Step};
    use serde_json::{Value, json};

    use super::*;

    fn job(name: &str, attempt: &str, uid: &str, owner: &str) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {
            "name": name, "namespace": "team", "uid": uid, "labels": {LABEL_TRAINING_JOB: "intent", LABEL_ATTEMPT: attempt},
            "ownerReferences": [{"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "name": "intent", "uid": owner, "controller": true}]
        }})
    }

    fn pod(name: &str, owner: &str, created: &str, index: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": name, "namespace": "team", "uid": name, "creationTimestamp": created,
            "labels": {LABEL_TRAINING_JOB: "intent", LABEL_COMPLETION_INDEX: index},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": owner, "controller": true}]
        }})
    }

    #[tokio::test]
    async fn children_of_an_older_job_of_that_name_are_passed_over() {
        let (client, scenario) = Scenario::start(vec![
            Step::list(
                "/apis/batch/v1/namespaces/team/jobs",
                "Job",
                "batch/v1",
                vec![
                    job("intent-train-10", "10", "b", "job-uid"),
                    job("intent-train-2", "2", "a", "job-uid"),
                    job("intent-train-3", "3", "old", "older-uid"),
                ],
            ),
            Step::list(
                "/api/v1/namespaces/team/pods",
                "Pod",
                "v1",
                vec![
                    pod("new", "b", "2026-01-01T00:01:00Z", "0"),
                    pod("second", "b", "2026-01-01T00:02:00Z", "1"),
                    pod("first", "b", CREATED, "0"),
                    pod("foreign", "old", CREATED, "0"),
                ],
            ),
        ]);
        let cluster = Cluster::of(client, "team");
        let found = attempts(&cluster, &training_job(&json!({}))).await.unwrap();
        let calls = scenario.finish().await;
        assert!(
            calls
                .iter()
                .all(|c| c.query.contains("labelSelector=flywheel.dev%2Ftraining-job%3Dintent"))
        );
        assert_eq!(found.iter().map(|a| a.number).collect::<Vec<_>>(), [2, 10]);
        let last = found.last().unwrap();
        assert_eq!(last.pods.len(), 3);
        assert_eq!(last.pod().unwrap().name_any(), "new", "the newest of index 0");
        assert!(found[0].pod().is_none());
    }

    #[test]
    fn an_end_is_read_from_the_conditions() {
        let with = |kind: &str, status: &str| {
            training_job(&json!({"status": {"conditions": [
                {"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": CREATED}
            ]}}))
        };
        assert_eq!(ended(&with("Complete", "True")), Some(End::Complete));
        assert_eq!(ended(&with("Complete", "False")), None);
        assert_eq!(ended(&with("Failed", "True")), Some(End::Failed));
        assert_eq!(ended(&training_job(&json!({}))), None);
        assert_eq!(standing(&with("Ready", "False")).0, "R");
        assert_eq!(standing(&training_job(&json!({}))).0, "Unseen");
    }

    #[test]
    fn a_container_that_waits_has_no_log() {
        let with = |state: Value| -> Pod {
            object(json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [
                {"name": "mesh", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": TRAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}
            ]}}))
        };
        assert!(!has_log(&with(json!({"waiting": {"reason": "ContainerCreating"}}))));
        let over = with(json!({"terminated": {"exitCode": 1}}));
        assert!(has_log(&over) && !runs(&over));
        let running = with(json!({"running": {}}));
        assert!(has_log(&running) && runs(&running));
    }
}
