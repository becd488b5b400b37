//! `status`: one screen of an object, or a table of all objects of the namespace.

mod view;

use std::fmt::Debug;

use flywheel_api::conditions::{find, types};
use flywheel_api::drift::{Baseline, DriftStatus, QualityStatus};
use flywheel_api::experiment::ExperimentStatus;
use flywheel_api::inference_service::{MirrorStatus, RolloutFigure, RolloutStatus};
use flywheel_api::names::{
    LABEL_ATTEMPT, LABEL_COMPONENT, LABEL_INFERENCE_SERVICE, LABEL_MODEL_VERSION, SERVER, VERIFIER, is_controlled_by,
};
use flywheel_api::recovery::RecoveryStatus;
use flywheel_api::scaling::{LoadStatus, ScalingStatus};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use flywheel_policy::recovery::incident;
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::arguments::{Kind, Object};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::text::{Table, age};
use crate::training::attempts;
pub(crate) use view::event_time;
use view::{Child, View};

/// Children whose events are looked for, beside the object's own: one call each.
const CHILDREN_WITH_EVENTS: usize = 6;
/// Events of one object that are read.
const EVENTS_READ: u32 = 50;

/// The screen of one object.
pub(crate) async fn one(cluster: &Cluster, object: &Object, now: Timestamp) -> Result<String, Error> {
    let (mut view, uid) = match object.kind {
        Kind::TrainingJob => training_job(cluster, &object.name).await?,
        Kind::ModelVersion => model_version(cluster, &object.name).await?,
        Kind::InferenceService => inference_service(cluster, &object.name).await?,
    };
    let children = view.children.iter().take(CHILDREN_WITH_EVENTS).map(|c| c.uid.as_str());
    let of_each = std::iter::once(uid.as_str())
        .chain(children)
        .map(|uid| events(cluster, uid));
    view.events = try_join_all(of_each).await?.concat();
    view.events.sort_by_key(|event| std::cmp::Reverse(event_time(event)));
    Ok(view.render(now))
}

async fn training_job(cluster: &Cluster, name: &str) -> Result<(View, String), Error> {
    let job: TrainingJob = cluster.get(name).await?;
    let uid = job.uid().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let mut view = View::of(Kind::TrainingJob, &job, status.conditions);
    let progress = status.progress.unwrap_or_default();
    view.facts = vec![
        ("State", status.state),
        (
            "Attempt",
            status
                .attempt
                .map(|a| format!("{a} ({} restarts)", status.restarts.unwrap_or(0))),
        ),
        ("Phase", progress.phase),
        ("Step", progress.step),
        ("Loss", progress.loss),
        (
            "Checkpoint",
            progress.checkpoint_step.map(|step| format!("at step {step}")),
        ),
        ("Class", Some(job.spec.trainer.accelerator.class.clone())),
        ("Recovery", status.recovery.as_ref().and_then(recovery)),
        ("Metrics", status.result.as_ref().map(|r| view::metrics(&r.metrics))),
    ];
    // The newest first: what matters now.
    for attempt in attempts(cluster, &job).await?.iter().rev() {
        view.children.push(Child::job(&attempt.job));
        view.children.extend(attempt.pods.iter().rev().map(Child::pod));
    }
    if let Some(result) = &status.result {
        let made = cluster.get::<ModelVersion>(&result.model_version).await;
        view.children.extend(found(made)?.map(|v| Child::model_version(&v)));
    }
    Ok((view, uid))
}

async fn model_version(cluster: &Cluster, name: &str) -> Result<(View, String), Error> {
    let version: ModelVersion = cluster.get(name).await?;
    let uid = version.uid().unwrap_or_default();
    let status = version.status.clone().unwrap_or_default();
    let mut view = View::of(Kind::ModelVersion, &version, status.conditions);
    let source = version.spec.source.as_ref().and_then(|s| s.training_job.as_ref());
    view.facts = vec![
        ("State", status.state),
        (
            "Model",
            Some(format!("{}, version {}", version.spec.model, version.spec.version)),
        ),
        ("Digest", Some(version.spec.artifact.digest.to_string())),
        ("From", source.map(|job| format!("TrainingJob {}", job.name))),
        ("Metrics", version.spec.metrics.as_deref().map(view::metrics)),
        ("Served by", Some(status.services.join(", "))),
    ];
    let labels = format!("{LABEL_COMPONENT}={VERIFIER},{LABEL_MODEL_VERSION}={name}");
    let ((mut jobs, _), (pods, _)) = futures::try_join!(cluster.list::<Job>(&labels), cluster.list::<Pod>(&labels))?;
    let number = |job: &Job| job.labels().get(LABEL_ATTEMPT).and_then(|n| n.parse::<u32>().ok());
    jobs.retain(|job| is_controlled_by(&job.metadata, &uid));
    jobs.sort_by_key(|job| std::cmp::Reverse(number(job)));
    for job in &jobs {
        let job_uid = job.uid().unwrap_or_default();
        view.children.push(Child::job(job));
        let of_job = pods.iter().filter(|pod| is_controlled_by(&pod.metadata, &job_uid));
        view.children.extend(of_job.map(Child::pod));
    }
    Ok((view, uid))
}

async fn inference_service(cluster: &Cluster, name: &str) -> Result<(View, String), Error> {
    let service: InferenceService = cluster.get(name).await?;
    let uid = service.uid().unwrap_or_default();
    let status = service.status.clone().unwrap_or_default();
    let mut view = View::of(Kind::InferenceService, &service, status.conditions);
    view.facts = vec![
        ("State", status.state),
        ("URL", status.url),
        ("Wanted", Some(service.spec.model_version.clone())),
        ("Serves", status.model_version),
        ("Pods", status.pods),
        ("Load", status.load.as_ref().map(load)),
        ("Size", status.scaling.as_ref().map(size)),
        ("On its way", status.canary),
        ("Judged by", status.rollout.as_ref().map(judged)),
        ("Texts", status.drift.as_ref().map(texts)),
        ("Right answers", status.quality.as_ref().map(quality)),
        ("Copies", status.mirror.as_ref().map(copies)),
        ("Variants", status.experiment.as_ref().map(variants)),
        (
            "Trained anew",
            status
                .retraining
                .as_ref()
                .map(|last| format!("{} at {}: {}", last.training_job, last.time.0, last.cause)),
        ),
        ("Recovery", status.recovery.as_ref().and_then(recovery)),
        ("Class", Some(service.spec.accelerator.class.clone())),
    ];
    let labels = format!("{LABEL_COMPONENT}={SERVER},{LABEL_INFERENCE_SERVICE}={name}");
    let ((mut deployments, _), (mut pods, more), version) = futures::try_join!(
        cluster.list::<Deployment>(&labels),
        cluster.list::<Pod>(&labels),
        async { found(cluster.get::<ModelVersion>(&service.spec.model_version).await) }
    )?;
    deployments.retain(|d| is_controlled_by(&d.metadata, &uid));
    view.children.extend(deployments.iter().map(Child::deployment));
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp().map(|t| t.0)));
    view.children.extend(pods.iter().map(Child::pod));
    view.more_children = more;
    view.children.extend(version.map(|v| Child::model_version(&v)));
    Ok((view, uid))
}

/// What is asked of a service.
fn load(load: &LoadStatus) -> String {
    let latency = load
        .latency_p99_milliseconds
        .map(|ms| format!(", 99 of 100 within {ms} ms"));
    format!(
        "{} requests/s, {} at once{}",
        load.qps,
        load.concurrency,
        latency.unwrap_or_default()
    )
}

/// How many pods its load wants, and why.
fn size(scaling: &ScalingStatus) -> String {
    let mut parts = vec![format!("{} wanted", scaling.desired_replicas)];
    parts.extend(
        scaling
            .target_per_replica
            .as_ref()
            .map(|target| format!("{target} planned for each")),
    );
    parts.extend(
        scaling
            .capacity_per_replica
            .as_ref()
            .map(|most| format!("{most} requests/s carried by one")),
    );
    let last = scaling.decisions.first();
    parts.extend(last.map(|d| format!("{} -> {} at {}: {}", d.from, d.to, d.time.0, d.message)));
    parts.join("; ")
}

/// The last window of live texts, and what is farthest from the reference.
fn texts(drift: &DriftStatus) -> String {
    let features = drift.features.iter().take(3).map(|feature| {
        let drifted = if feature.drifted { " (drifted)" } else { "" };
        format!("{} PSI {}{drifted}", feature.name, feature.psi)
    });
    let mut parts = vec![format!("{} until {}", drift.texts, drift.window_end.0)];
    parts.extend(features);
    if let (Some(judged), Some(accuracy)) = (drift.judged, &drift.accuracy) {
        parts.push(format!("{accuracy} of {judged} judged ones right"));
    }
    parts.join("; ")
}

/// How often answers were right, and how often before.
fn quality(quality: &QualityStatus) -> String {
    let before = match quality.baseline {
        Baseline::WeekAgo => "a week before",
        Baseline::FirstSpan => "at first",
    };
    let mut parts = vec![format!(
        "{} of {} judged until {}, {before} {} of {}{}",
        quality.accuracy,
        quality.judged,
        quality.span_end.0,
        quality.accuracy_before,
        quality.judged_before,
        if quality.dropped { " (dropped)" } else { "" }
    )];
    if let (Some(now), Some(before)) = (&quality.f1, &quality.f1_before) {
        parts.push(format!("macro F1 {now}, before {before}"));
    }
    parts.join("; ")
}

/// How often each variant of an experiment is right.
fn variants(experiment: &ExperimentStatus) -> String {
    let each = experiment.variants.iter().map(|variant| {
        let name = &variant.model_version;
        let right = match (&variant.accuracy, &variant.stopped) {
            (_, Some(_)) => "stopped".to_owned(),
            (Some(accuracy), None) => format!("{accuracy} of {} right", variant.judged),
            (None, None) => "not judged yet".to_owned(),
        };
        let compared = experiment.comparisons.iter().find(|c| c.model_version == *name);
        let verdict = compared.map_or_else(String::new, |c| format!(" ({:?})", c.verdict));
        format!("{name} {right}{verdict}")
    });
    each.collect::<Vec<_>>().join("; ")
}

/// By what a version was judged that comes by steps, or came so.
fn judged(rollout: &RolloutStatus) -> String {
    let words = |figures: &[RolloutFigure]| {
        let words: Vec<String> = figures.iter().map(|figure| format!("{figure:?}")).collect();
        words.join(", ")
    };
    let by = match rollout.judged.as_slice() {
        [] => "nothing yet".to_owned(),
        figures => words(figures),
    };
    match rollout.not_judged.as_slice() {
        [] => format!("{}: {by}", rollout.model_version),
        figures => format!("{}: {by}; not by {}", rollout.model_version, words(figures)),
    }
}

/// What came of the copies that a mirror got.
fn copies(mirror: &MirrorStatus) -> String {
    let mut parts = vec![format!(
        "{} gave {} of {} texts the label that was answered",
        mirror.model_version, mirror.same, mirror.texts
    )];
    if let (Some(copy), Some(answered)) = (&mirror.milliseconds, &mirror.answered_milliseconds) {
        parts.push(format!("{copy} ms for a request, answered in {answered} ms"));
    }
    for (count, what) in [(mirror.failed, "failed"), (mirror.shed, "left out while busy")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join("; ")
}

/// What failed last, or goes on being recovered from.
fn recovery(recovery: &RecoveryStatus) -> Option<String> {
    let incident = recovery.incidents.first()?;
    let how = if incident.is_over() {
        format!("recovered in {}", incident::told(incident))
    } else {
        format!("goes on, so far {}", incident::told(incident))
    };
    Some(format!("{}; {how}", incident::what(incident)))
}

/// An object that need not be there.
fn found<K>(read: Result<K, Error>) -> Result<Option<K>, Error> {
    match read {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The events of the object with this uid.
pub(crate) async fn events(cluster: &Cluster, uid: &str) -> Result<Vec<Event>, Error> {
    let of_object = ListParams::default()
        .fields(&format!("involvedObject.uid={uid}"))
        .limit(EVENTS_READ);
    let list = cluster
        .ask("list events", cluster.api::<Event>().list(&of_object))
        .await?;
    Ok(list.items)
}

/// A table of all objects of the three kinds.
pub(crate) async fn all(cluster: &Cluster, now: Timestamp) -> Result<String, Error> {
    let (jobs, versions, services) = futures::try_join!(
        every(cluster, Kind::TrainingJob, |o: &TrainingJob| {
            let status = o.status.clone().unwrap_or_default();
            let step = status.progress.and_then(|p| p.step).map(|step| format!("step {step}"));
            let version = status.result.map(|r| format!("ModelVersion {}", r.model_version));
            (status.state, version.or(step), status.conditions)
        }),
        every(cluster, Kind::ModelVersion, |o: &ModelVersion| {
            let status = o.status.clone().unwrap_or_default();
            (status.state, status.metric, status.conditions)
        }),
        every(cluster, Kind::InferenceService, |o: &InferenceService| {
            let status = o.status.clone().unwrap_or_default();
            let serves = status.model_version.map(|v| format!("serves {v}"));
            let pods = status.pods.map(|pods| format!("{pods} pods"));
            let detail = [serves, pods].into_iter().flatten().collect::<Vec<_>>().join(", ");
            (status.state, Some(detail), status.conditions)
        }),
    )?;
    let mut table = Table::new(&["KIND", "NAME", "STATE", "READY", "REASON", "AGE", "DETAIL"]);
    let mut notes = String::new();
    for kind in [jobs, versions, services] {
        for row in kind.rows {
            let ready = find(&row.conditions, types::READY);
            table.row([
                kind.kind.to_string(),
                row.name,
                row.state,
                ready.map(|c| c.status.clone()).unwrap_or_default(),
                ready.map(|c| c.reason.clone()).unwrap_or_default(),
                age(now, row.created),
                row.detail,
            ]);
        }
        if kind.more {
            notes.push_str(&format!(
                "There are more of kind {}; `kubectl get` lists them all.\n",
                kind.kind
            ));
        }
    }
    if table.is_empty() {
        return Ok(format!(
            "No TrainingJob, ModelVersion or InferenceService in namespace {}; -n chooses another one.\n",
            cluster.namespace()
        ));
    }
    Ok(table.render() + &notes)
}

struct Rows {
    kind: Kind,
    rows: Vec<Row>,
    more: bool,
}

struct Row {
    name: String,
    created: Option<Timestamp>,
    state: String,
    detail: String,
    conditions: Vec<Condition>,
}

/// All objects of a kind; `read` gives state, detail and conditions.
async fn every<K>(
    cluster: &Cluster,
    kind: Kind,
    read: impl Fn(&K) -> (Option<String>, Option<String>, Vec<Condition>),
) -> Result<Rows, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let (objects, more) = cluster.list::<K>("").await?;
    let rows = objects.iter().map(|object| {
        let (state, detail, conditions) = read(object);
        Row {
            name: object.name_any(),
            created: object.creation_timestamp().map(|t| t.0),
            state: state.unwrap_or_default(),
            detail: detail.unwrap_or_default(),
            conditions,
        }
    });
    Ok(Rows {
        kind,
        rows: rows.collect(),
        more,
    })
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{CREATED, inference_service, model_version, training_job};
    use flywheel_testkit::{Scenario, Step};
    use serde_json::{Value, json};

    use super::*;

    const GROUP: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team";

    fn now() -> Timestamp {
        "2026-01-01T00:05:00Z".parse().unwrap()
    }

    fn ready(status: &str, reason: &str) -> Value {
        json!([{"type": "Ready", "status": status, "reason": reason, "message": "why", "lastTransitionTime": CREATED}])
    }

    fn list(plural: &str, kind: &str, items: Vec<Value>) -> Step {
        Step::list(format!("{GROUP}/{plural}"), kind, "flywheel.dev/v1alpha1", items)
    }

    #[tokio::test]
    async fn all_objects_of_the_namespace_in_one_table() {
        let job = training_job(&json!({"status": {
            "state": "Running", "progress": {"step": "120/800"}, "conditions": ready("True", "Running")}}));
        let version = model_version(&json!({}));
        let service = inference_service(&json!({"status": {
            "state": "Blocked", "pods": "0/1", "conditions": ready("False", "ModelVersionNotFound")}}));
        let (client, scenario) = Scenario::start(vec![
            list("trainingjobs", "TrainingJob", vec![serde_json::to_value(job).unwrap()]),
            list(
                "modelversions",
                "ModelVersion",
                vec![serde_json::to_value(version).unwrap()],
            ),
            list(
                "inferenceservices",
                "InferenceService",
                vec![serde_json::to_value(service).unwrap()],
            ),
        ]);
        let text = all(&Cluster::of(client, "team"), now()).await.unwrap();
        scenario.finish().await;
        assert_eq!(
            text,
            "KIND               NAME        STATE     READY   REASON                 AGE   DETAIL\n\
             TrainingJob        intent      Running   True    Running                5m    step 120/800\n\
             ModelVersion       intent-v1   -         -       -                      5m    -\n\
             InferenceService   intent      Blocked   False   ModelVersionNotFound   5m    0/1 pods\n"
        );
    }

    #[test]
    fn load_and_size_in_a_line_each() {
        let told: ScalingStatus = serde_json::from_value(json!({"desiredReplicas": 3, "targetPerReplica": "170", "capacityPerReplica": "240",
            "decisions": [{"time": CREATED, "from": 1, "to": 3, "reason": "Burst", "message": "450 requests per second come"}]}))
        .unwrap();
        assert_eq!(
            size(&told),
            format!(
                "3 wanted; 170 planned for each; 240 requests/s carried by one; 1 -> 3 at {CREATED}: 450 requests per second come"
            )
        );
        let told = LoadStatus {
            qps: "450".to_owned(),
            concurrency: "9.1".to_owned(),
            latency_p99_milliseconds: Some(41),
        };
        assert_eq!(load(&told), "450 requests/s, 9.1 at once, 99 of 100 within 41 ms");
    }

    #[test]
    fn what_a_version_was_judged_by_in_a_line() {
        let told = RolloutStatus::of("intent-v4", &[RolloutFigure::Labels, RolloutFigure::ErrorRate]);
        assert_eq!(
            judged(&told),
            "intent-v4: Labels, ErrorRate; not by Agreement, ComputeTime, Accuracy"
        );
        let told = RolloutStatus::of("intent-v4", &RolloutFigure::ALL);
        assert_eq!(
            judged(&told),
            "intent-v4: Labels, Agreement, ErrorRate, ComputeTime, Accuracy"
        );
        assert!(judged(&RolloutStatus::of("intent-v4", &[])).starts_with("intent-v4: nothing yet; not by Labels"));
    }

    #[test]
    fn copies_in_a_line() {
        let told = json!({"modelVersion": "intent-v4", "observed": CREATED, "texts": 1200, "same": 1164, "failed": 0, "shed": 7,
            "milliseconds": "12.3", "answeredMilliseconds": "10.1"});
        assert_eq!(
            copies(&serde_json::from_value(told).unwrap()),
            "intent-v4 gave 1164 of 1200 texts the label that was answered; 12.3 ms for a request, answered in 10.1 ms; 7 left out while busy"
        );
    }

    #[tokio::test]
    async fn an_empty_namespace_is_named() {
        let (client, scenario) = Scenario::start(vec![
            list("trainingjobs", "TrainingJob", vec![]),
            list("modelversions", "ModelVersion", vec![]),
            list("inferenceservices", "InferenceService", vec![]),
        ]);
        let text = all(&Cluster::of(client, "team"), now()).await.unwrap();
        scenario.finish().await;
        assert!(text.contains("in namespace team"), "{text}");
    }

    #[tokio::test]
    async fn a_training_job_with_its_pod_and_events() {
        let job = training_job(&json!({"status": {
            "state": "Pending", "attempt": 1, "restarts": 0, "conditions": ready("False", "Pending")}}));
        let owned = |kind: &str, owner: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "o", "uid": owner, "controller": true}]);
        let attempt = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {
            "name": "intent-train-1", "uid": "j", "creationTimestamp": CREATED, "labels": {LABEL_ATTEMPT: "1"},
            "ownerReferences": owned("TrainingJob", "job-uid")}, "status": {"active": 1}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "intent-train-1-0", "uid": "p", "creationTimestamp": CREATED, "ownerReferences": owned("Job", "j")},
            "status": {"phase": "Pending"}});
        let event = |reason: &str, kind: &str, at: &str| {
            json!({"metadata": {"name": reason}, "type": "Warning", "reason": reason, "message": format!("{reason} happened"),
                "involvedObject": {"kind": kind, "name": "intent-train-1-0"}, "lastTimestamp": at})
        };
        let events = |of: &'static str, items: Vec<Value>| {
            Step::new("GET", "/api/v1/namespaces/team/events", move |call| {
                assert!(
                    call.query.contains(&format!("involvedObject.uid%3D{of}&")),
                    "{}",
                    call.query
                );
                (
                    200,
                    json!({"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": items}),
                )
            })
        };
        let (client, scenario) = Scenario::start(vec![
            Step::get(
                format!("{GROUP}/trainingjobs/intent"),
                serde_json::to_value(job).unwrap(),
            ),
            Step::list("/apis/batch/v1/namespaces/team/jobs", "Job", "batch/v1", vec![attempt]),
            Step::list("/api/v1/namespaces/team/pods", "Pod", "v1", vec![pod]),
            events("job-uid", vec![event("Older", "TrainingJob", CREATED)]),
            events("j", vec![]),
            events("p", vec![event("Newer", "Pod", "2026-01-01T00:04:00Z")]),
        ]);
        let object = Object {
            kind: Kind::TrainingJob,
            name: "intent".to_owned(),
        };
        let text = one(&Cluster::of(client, "team"), &object, now()).await.unwrap();
        scenario.finish().await;
        assert_eq!(
            text,
            "TrainingJob team/intent, made 5m ago\n\
             State     Pending\n\
             Attempt   1 (0 restarts)\n\
             Class     a100\n\
             \n\
             CONDITION   STATUS   REASON    SINCE   MESSAGE\n\
             Ready       False    Pending   5m      why\n\
             \n\
             CHILD                  STATE     AGE   DETAIL\n\
             Job/intent-train-1     Active    5m    -\n\
             Pod/intent-train-1-0   Pending   5m    -\n\
             \n\
             EVENT   TYPE      REASON   OBJECT                         MESSAGE\n\
             60s     Warning   Newer    Pod/intent-train-1-0           Newer happened\n\
             5m      Warning   Older    TrainingJob/intent-train-1-0   Older happened\n"
        );
    }
}
