//! The screen of one object.

use flywheel_api::ModelVersion;
use flywheel_contract::scalar::Metric;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use crate::arguments::Kind;
use crate::text::{Table, age, clean};

/// Events that are shown.
const EVENTS_MAX: usize = 10;
/// Children that are shown.
const CHILDREN_MAX: usize = 30;

/// What is shown of an object.
pub(super) struct View {
    title: String,
    created: Option<Timestamp>,
    pub(super) facts: Vec<(&'static str, Option<String>)>,
    conditions: Vec<Condition>,
    pub(super) children: Vec<Child>,
    /// Whether there are more children than were read.
    pub(super) more_children: bool,
    /// The newest first.
    pub(super) events: Vec<Event>,
}

/// An object that belongs to it.
pub(super) struct Child {
    pub(super) uid: String,
    name: String,
    state: String,
    created: Option<Timestamp>,
    detail: String,
}

impl View {
    pub(super) fn of(kind: Kind, object: &impl ResourceExt, conditions: Vec<Condition>) -> Self {
        Self {
            title: format!(
                "{kind} {}/{}",
                object.namespace().unwrap_or_default(),
                object.name_any()
            ),
            created: object.creation_timestamp().map(|t| t.0),
            facts: Vec::new(),
            conditions,
            children: Vec::new(),
            more_children: false,
            events: Vec::new(),
        }
    }

    /// The screen. Parts without content are left out.
    pub(super) fn render(&self, now: Timestamp) -> String {
        let mut text = format!("{}, made {} ago\n", self.title, age(now, self.created));
        let facts = self
            .facts
            .iter()
            .filter_map(|(key, value)| Some((key, value.as_ref().filter(|v| !v.is_empty())?)));
        let facts: Vec<_> = facts.collect();
        let width = facts.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        for (key, value) in facts {
            text.push_str(&format!("{key:width$}   {}\n", clean(value)));
        }
        let parts = [self.conditions(now), self.children(now), self.events(now)];
        for part in parts.iter().filter(|part| !part.is_empty()) {
            text.push('\n');
            text.push_str(&part.render());
        }
        if self.more_children || self.children.len() > CHILDREN_MAX {
            text.push_str("\nThere are more children; `kubectl get jobs,pods` lists them all.\n");
        }
        text
    }

    fn conditions(&self, now: Timestamp) -> Table {
        let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"]);
        for c in &self.conditions {
            table.row([
                c.type_.clone(),
                c.status.clone(),
                c.reason.clone(),
                age(now, Some(c.last_transition_time.0)),
                c.message.clone(),
            ]);
        }
        table
    }

    fn children(&self, now: Timestamp) -> Table {
        let mut table = Table::new(&["CHILD", "STATE", "AGE", "DETAIL"]);
        for c in self.children.iter().take(CHILDREN_MAX) {
            table.row([c.name.clone(), c.state.clone(), age(now, c.created), c.detail.clone()]);
        }
        table
    }

    fn events(&self, now: Timestamp) -> Table {
        let mut table = Table::new(&["EVENT", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
        for event in self.events.iter().take(EVENTS_MAX) {
            let of = &event.involved_object;
            table.row([
                age(now, event_time(event)),
                event.type_.clone().unwrap_or_default(),
                event.reason.clone().unwrap_or_default(),
                format!(
                    "{}/{}",
                    of.kind.as_deref().unwrap_or_default(),
                    of.name.as_deref().unwrap_or_default()
                ),
                event.message.clone().unwrap_or_default(),
            ]);
        }
        table
    }
}

impl Child {
    fn of(kind: &str, object: &impl ResourceExt, state: String, detail: String) -> Self {
        Self {
            uid: object.uid().unwrap_or_default(),
            name: format!("{kind}/{}", object.name_any()),
            state,
            created: object.creation_timestamp().map(|t| t.0),
            detail,
        }
    }

    pub(super) fn job(job: &Job) -> Self {
        let mut conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let over =
            conditions.rfind(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed" | "Suspended"));
        let active = job.status.as_ref().and_then(|s| s.active).unwrap_or(0) > 0;
        let state = match over {
            Some(condition) => condition.type_.as_str(),
            None if active => "Active",
            None => "Pending",
        };
        let detail = over.and_then(|c| c.reason.clone()).unwrap_or_default();
        Self::of("Job", job, state.to_owned(), detail)
    }

    pub(super) fn pod(pod: &Pod) -> Self {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        let detail = node.map(|node| format!("on {node}")).unwrap_or_default();
        Self::of("Pod", pod, pod_state(pod), detail)
    }

    pub(super) fn deployment(deployment: &Deployment) -> Self {
        let status = deployment.status.as_ref();
        let ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
        let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let updated = status.and_then(|s| s.updated_replicas).unwrap_or(0);
        let state = format!("{ready}/{wanted} ready");
        Self::of(
            "Deployment",
            deployment,
            state,
            format!("{updated} of the newest template"),
        )
    }

    pub(super) fn model_version(version: &ModelVersion) -> Self {
        let status = version.status.clone().unwrap_or_default();
        let state = status.state.unwrap_or_default();
        Self::of("ModelVersion", version, state, status.metric.unwrap_or_default())
    }
}

/// What a pod does, in the word that tells most: why a container waits, how one ended, else the phase.
fn pod_state(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "Pending".to_owned();
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".to_owned();
    }
    if let Some(reason) = &status.reason {
        return reason.clone();
    }
    let phase = status.phase.clone().unwrap_or_default();
    let told = status.container_statuses.iter().flatten().find_map(container_word);
    let all_ready = status.container_statuses.iter().flatten().all(|c| c.ready);
    match told {
        Some(word) => word,
        None if phase == "Running" && !all_ready => "Running, not ready".to_owned(),
        None => phase,
    }
}

fn container_word(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        return waiting.reason.clone();
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let reason = ended.reason.as_deref().unwrap_or("Error");
    Some(format!("{reason} (exit code {})", ended.exit_code))
}

/// `name value` of each metric.
pub(super) fn metrics(metrics: &[Metric]) -> String {
    let words: Vec<String> = metrics.iter().map(|m| format!("{} {}", m.name, m.value.0)).collect();
    words.join(", ")
}

/// When an event was last seen.
pub(crate) fn event_time(event: &Event) -> Option<Timestamp> {
    let of_series = event
        .series
        .as_ref()
        .and_then(|s| s.last_observed_time.as_ref())
        .map(|t| t.0);
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    let first = event.event_time.as_ref().map(|t| t.0);
    of_series.max(last).max(first)
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::object;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pods_state_is_the_word_that_tells_most() {
        let container = |state: Value, ready: bool| json!({"name": "c", "image": "", "imageID": "", "restartCount": 0, "ready": ready, "state": state});
        let table = [
            (json!({}), "Pending"),
            (json!({"status": {"phase": "Pending"}}), "Pending"),
            (
                json!({"status": {"phase": "Pending", "containerStatuses": [container(json!({"waiting": {"reason": "ImagePullBackOff"}}), false)]}}),
                "ImagePullBackOff",
            ),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [container(json!({"running": {}}), false)]}}),
                "Running, not ready",
            ),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [container(json!({"running": {}}), true)]}}),
                "Running",
            ),
            (
                json!({"status": {"phase": "Failed", "containerStatuses": [container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), false)]}}),
                "OOMKilled (exit code 137)",
            ),
            (
                json!({"status": {"phase": "Succeeded", "containerStatuses": [container(json!({"terminated": {"exitCode": 0}}), false)]}}),
                "Succeeded",
            ),
            (json!({"status": {"phase": "Failed", "reason": "Evicted"}}), "Evicted"),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}),
                "Terminating",
            ),
        ];
        for (pod, state) in table {
            assert_eq!(pod_state(&object(pod.clone())), state, "{pod}");
        }
    }

    #[test]
    fn a_jobs_state_is_its_verdict() {
        let with = |status: Value| Child::job(&object(json!({"metadata": {"name": "j"}, "status": status})));
        assert_eq!(with(json!({})).state, "Pending");
        assert_eq!(with(json!({"active": 1})).state, "Active");
        let failed = with(json!({"conditions": [
            {"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
        ]}));
        assert_eq!(
            (failed.state.as_str(), failed.detail.as_str()),
            ("Failed", "BackoffLimitExceeded")
        );
    }
}
