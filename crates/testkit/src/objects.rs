//! Objects as the API server would give them, each as small as its kind allows.

use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Namespace of all of them.
pub const NAMESPACE: &str = "team";
/// When all of them were made.
pub const CREATED: &str = "2026-01-01T00:00:00Z";

/// An object from JSON.
///
/// # Panics
/// The JSON is no such object.
#[must_use]
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    match serde_json::from_value(value) {
        Ok(object) => object,
        Err(error) => panic!("{error}"),
    }
}

/// `base` with `over` laid over it, as a merge patch does.
#[must_use]
pub fn merged(mut base: Value, over: &Value) -> Value {
    match (&mut base, over) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                let present = into.remove(key).unwrap_or(Value::Null);
                if !value.is_null() {
                    into.insert(key.clone(), merged(present, value));
                }
            }
            base
        }
        _ => over.clone(),
    }
}

/// A digest of one hexadecimal digit, repeated.
#[must_use]
pub fn digest(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

/// The TrainingJob `intent` with uid `job-uid`, on class a100; `over` is laid over it.
#[must_use]
pub fn training_job(over: &Value) -> TrainingJob {
    object(merged(
        json!({
            "apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {
                "name": "intent", "namespace": NAMESPACE, "uid": "job-uid", "generation": 1, "resourceVersion": "1",
                "creationTimestamp": CREATED
            },
            "spec": {
                "task": "TextClassification",
                "model": {"pretrained": {"uri": "s3://models/minilm"}},
                "dataset": {"sources": [{"uri": "s3://data/intent.csv"}], "textColumn": "text", "labelColumn": "label"},
                "output": {"model": "intent", "versionName": "intent-v1", "uri": "s3://models/intent"}
            }
        }),
        over,
    ))
}

/// The ModelVersion `intent-v1` with uid `version-uid`; `over` is laid over it.
#[must_use]
pub fn model_version(over: &Value) -> ModelVersion {
    object(merged(
        json!({
            "apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion",
            "metadata": {
                "name": "intent-v1", "namespace": NAMESPACE, "uid": "version-uid", "generation": 1, "resourceVersion": "1",
                "creationTimestamp": CREATED
            },
            "spec": {"model": "intent", "version": 1, "artifact": {"uri": "s3://models/intent/u/attempt-1", "digest": digest('a')}}
        }),
        over,
    ))
}

/// The InferenceService `intent` that serves `intent-v1`; `over` is laid over it.
#[must_use]
pub fn inference_service(over: &Value) -> InferenceService {
    object(merged(
        json!({
            "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {
                "name": "intent", "namespace": NAMESPACE, "uid": "service-uid", "generation": 1, "resourceVersion": "1",
                "creationTimestamp": CREATED
            },
            "spec": {"model": "intent", "modelVersion": "intent-v1", "replicas": 1}
        }),
        over,
    ))
}

/// A Job that was built, as the API server has it afterwards: with uid, creation time and a begun status.
#[must_use]
pub fn stored_job(built: &Job, uid: &str) -> Job {
    let mut stored = built.clone();
    let begun: Job = object(json!({
        "metadata": {"creationTimestamp": CREATED},
        "status": {"startTime": CREATED, "active": 1}
    }));
    stored.metadata.uid = Some(uid.to_owned());
    stored.metadata.resource_version = Some("1".to_owned());
    stored.metadata.generation = Some(1);
    stored.metadata.creation_timestamp = begun.metadata.creation_timestamp;
    stored.status = begun.status;
    stored
}

/// The pod of a stored Job, on node `n`, with the Job's labels; `container` has this state, such as
/// `{"running": {}}` or `{"terminated": {"exitCode": 0, "message": "…"}}`.
#[must_use]
pub fn pod_of(job: &Job, container: &str, phase: &str, state: &Value) -> Pod {
    object(json!({
        "metadata": {
            "name": format!("{}-0-x", job.metadata.name.as_deref().unwrap_or_default()), "namespace": job.metadata.namespace,
            "uid": "pod-uid", "labels": job.metadata.labels, "creationTimestamp": CREATED,
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid, "controller": true}]
        },
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": phase, "containerStatuses": [{
            "name": container, "image": "i", "imageID": "", "ready": phase == "Running", "restartCount": 0, "state": state
        }]}
    }))
}
