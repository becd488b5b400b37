//! `explain`: what led to what. A verdict of drift, the TrainingJob that it made, the version that came of it, and what became of
//! that, each from the object that holds it; and how variants of an experiment compare.

use flywheel_api::conditions::{find, types};
use flywheel_api::names::{ANNOTATION_CAUSE, ANNOTATION_REJECTED, LABEL_RETRAINS, is_controlled_by};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::error::Error;
use crate::text::{age, clean};

/// Retrainings that are told.
const TOLD: usize = 10;

/// The chain of a service.
pub(crate) async fn run(cluster: &Cluster, name: &str, now: Timestamp) -> Result<String, Error> {
    let service: InferenceService = cluster.get(name).await?;
    let uid = service.uid().unwrap_or_default();
    let labels = format!("{LABEL_RETRAINS}={name}");
    let ((mut jobs, _), (versions, _)) =
        futures::try_join!(cluster.list::<TrainingJob>(&labels), cluster.list::<ModelVersion>(""))?;
    jobs.retain(|job| is_controlled_by(&job.metadata, &uid));
    jobs.sort_by_key(|job| std::cmp::Reverse(job.creation_timestamp().map(|t| t.0)));
    Ok(render(&service, &jobs, &versions, now))
}

fn render(service: &InferenceService, jobs: &[TrainingJob], versions: &[ModelVersion], now: Timestamp) -> String {
    let status = service.status.clone().unwrap_or_default();
    let mut lines = vec![format!(
        "InferenceService {}/{} answers with {}.",
        service.namespace().unwrap_or_default(),
        service.name_any(),
        status
            .model_version
            .as_deref()
            .unwrap_or("nothing yet, or with two versions")
    )];
    for kind in [
        types::DRIFT_DETECTED,
        types::RETRAINING,
        types::UPDATE_AVAILABLE,
        types::ROLLOUT_PROGRESSING,
        types::EXPERIMENT_CONCLUDED,
    ] {
        if let Some(condition) = find(&status.conditions, kind) {
            lines.push(format!(
                "  {kind}: {} since {} ({}). {}",
                condition.status,
                age(now, Some(condition.last_transition_time.0)),
                condition.reason,
                condition.message
            ));
        }
    }
    if jobs.is_empty() {
        lines.push("It was never trained anew.".to_owned());
    }
    for job in jobs.iter().take(TOLD) {
        lines.extend(chain(service, job, versions, now));
    }
    let text: Vec<String> = lines.iter().map(|line| clean(line)).collect();
    text.join("\n") + "\n"
}

/// What a retraining came from and to.
fn chain(service: &InferenceService, job: &TrainingJob, versions: &[ModelVersion], now: Timestamp) -> Vec<String> {
    let cause = job
        .annotations()
        .get(ANNOTATION_CAUSE)
        .map_or("nobody says why", String::as_str);
    let status = job.status.clone().unwrap_or_default();
    let mut lines = vec![
        String::new(),
        format!("{} ago: {cause}", age(now, job.creation_timestamp().map(|t| t.0))),
        format!(
            "  -> TrainingJob {}: {}",
            job.name_any(),
            match find(&status.conditions, types::FAILED).filter(|c| c.status == "True") {
                Some(failed) => format!("failed ({}). {}", failed.reason, failed.message),
                None => status.state.unwrap_or_else(|| "not begun".to_owned()),
            }
        ),
    ];
    let Some(result) = status.result else {
        return lines;
    };
    let name = &result.model_version;
    let Some(version) = versions.iter().find(|version| version.name_any() == *name) else {
        lines.push(format!("  -> ModelVersion {name}: is gone"));
        return lines;
    };
    let conditions = version
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let promotable = find(conditions, types::PROMOTABLE);
    lines.push(format!(
        "  -> ModelVersion {name}, version {}: {}",
        version.spec.version,
        match promotable {
            Some(condition) if condition.status == "True" => format!("promotable, {}", condition.message),
            Some(condition) => format!("not promotable ({}). {}", condition.reason, condition.message),
            None => "not looked at yet".to_owned(),
        }
    ));
    lines.push(format!("  -> {}", fate(service, version, versions)));
    lines
}

/// What became of a version.
fn fate(service: &InferenceService, version: &ModelVersion, versions: &[ModelVersion]) -> String {
    let name = version.name_any();
    let status = service.status.clone().unwrap_or_default();
    if let Some(rejected) = version.annotations().get(ANNOTATION_REJECTED) {
        let why = serde_json::from_str::<Value>(rejected).ok();
        let why = why.as_ref().and_then(|why| why["why"].as_str()).unwrap_or(rejected);
        return format!("rejected: {why}");
    }
    if let Some(canary) = status
        .canary
        .as_deref()
        .filter(|canary| canary.split(' ').next() == Some(&name))
    {
        return format!("comes by steps: {canary}");
    }
    let Some(serving) = status.model_version else {
        return "its pods change over".to_owned();
    };
    let number = |name: &str| versions.iter().find(|v| v.name_any() == name).map(|v| v.spec.version);
    if serving == name {
        "answers all requests".to_owned()
    } else if number(&serving) > Some(version.spec.version) {
        format!("{serving} came after it")
    } else {
        "does not answer".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{CREATED, inference_service, object, training_job};
    use serde_json::json;

    use super::*;

    #[test]
    fn each_retraining_is_told_from_its_cause_to_its_fate() {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status,
            "reason": reason, "message": message, "lastTransitionTime": CREATED})
        };
        let service = inference_service(&json!({"status": {"modelVersion": "v2",
            "conditions": [condition("DriftDetected", "False", "NoDrift", "800 texts"),
                condition("ExperimentConcluded", "True", "VariantBetter", "v2 is right more often")]}}));
        let job = |n: u32, status: Value| {
            training_job(&json!({"metadata": {"name": format!("intent-retrain-{n}"),
                "annotations": {ANNOTATION_CAUSE: format!("cause {n}")}}, "status": status}))
        };
        let done = |version: &str| json!({"state": "Complete", "result": {"modelVersion": version, "metrics": []}});
        let jobs = [
            job(4, json!({"state": "Running"})),
            job(3, done("v3")),
            job(
                2,
                json!({"conditions": [condition("Failed", "True", "DatasetInvalid", "no rows")]}),
            ),
            job(1, done("v2")),
        ];
        let version = |name: &str, number: i64, annotations: Value| -> ModelVersion {
            object(
                json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"model": "intent", "version": number,
                    "artifact": {"uri": "s3://m", "digest": format!("sha256:{}", "0".repeat(64))}},
                "status": {"conditions": [condition("Promotable", "True", "GatesPassed", "its gate holds")]}}),
            )
        };
        let versions = [
            version("v2", 2, json!({})),
            version(
                "v3",
                3,
                json!({ANNOTATION_REJECTED: "{\"uid\": \"u\", \"service\": \"intent\", \"why\": \"too\\u0007 slow\"}"}),
            ),
        ];
        let now = CREATED.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_hours(2);
        let text = render(&service, &jobs, &versions, now);
        let expected = "\
InferenceService team/intent answers with v2.
  DriftDetected: False since 2h (NoDrift). 800 texts
  ExperimentConcluded: True since 2h (VariantBetter). v2 is right more often

2h ago: cause 4
  -> TrainingJob intent-retrain-4: Running

2h ago: cause 3
  -> TrainingJob intent-retrain-3: Complete
  -> ModelVersion v3, version 3: promotable, its gate holds
  -> rejected: too  slow

2h ago: cause 2
  -> TrainingJob intent-retrain-2: failed (DatasetInvalid). no rows

2h ago: cause 1
  -> TrainingJob intent-retrain-1: Complete
  -> ModelVersion v2, version 2: promotable, its gate holds
  -> answers all requests
";
        assert_eq!(text, expected);
    }
}
