//! The Job of an attempt.

use std::collections::BTreeMap;

use flywheel_api::TrainingJob;
use flywheel_api::conditions::reasons;
use flywheel_api::names::{
    FLYWHEEL, LABEL_ATTEMPT, LABEL_COMPONENT, LABEL_COUNTED_RESTARTS, LABEL_MANAGED_BY, LABEL_NAME, LABEL_PART_OF,
    LABEL_TRAINING_JOB, TRAINER, training_attempt,
};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::names::{CONFIG_MAX_BYTES, INSIDE_PORT, INSIDE_PORT_NAME};
use flywheel_contract::trainer::{JobIdentity, TrainerConfig};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::error::Error;
use crate::podspec::{PodInputs, config_env, storage_settings, template};
use crate::settings::Settings;
use crate::training::owned_by;

/// Seconds that the trainer has to end by itself: it commits a last checkpoint within 25 s.
const TERMINATION_GRACE_SECONDS: i64 = 30;

/// Labels of an attempt's Job and pod.
fn labels(job: &TrainingJob, attempt: u32) -> BTreeMap<String, String> {
    [
        (LABEL_NAME, FLYWHEEL.to_owned()),
        (LABEL_COMPONENT, TRAINER.to_owned()),
        (LABEL_MANAGED_BY, FLYWHEEL.to_owned()),
        (LABEL_PART_OF, job.spec.output.model.clone()),
        (LABEL_TRAINING_JOB, job.name_any()),
        (LABEL_ATTEMPT, attempt.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The environment variable with a program's configuration.
///
/// # Errors
/// It is longer than a pod may carry.
pub(crate) fn config<T: Serialize>(config: &T) -> Result<EnvVar, Error> {
    let json = serde_json::to_string(config)
        .map_err(|e| Error::Bug(format!("a configuration cannot be written as JSON: {e}")))?;
    let env = config_env(&json);
    let bytes = env.value.as_ref().map_or(0, String::len);
    if bytes > CONFIG_MAX_BYTES {
        return Err(Error::InvalidSpec {
            reason: reasons::INVALID_SPEC,
            message: format!(
                "the pod's configuration would have {bytes} bytes, more than {CONFIG_MAX_BYTES}. Give fewer or shorter \
                 dataset sources"
            ),
        });
    }
    Ok(env)
}

/// A Job of one pod that is tried once: what follows a failure is the operator's to decide, not the Job controller's,
/// whose back-off reaches minutes.
pub(crate) fn single_pod_job(metadata: ObjectMeta, template: PodTemplateSpec) -> Job {
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            completion_mode: Some("Indexed".to_owned()),
            completions: Some(1),
            parallelism: Some(1),
            pod_replacement_policy: Some("Failed".to_owned()),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// The Job of attempt `attempt`, after `counted` restarts that count.
///
/// # Errors
/// The accelerator class is unknown, the configuration is too long, or a pod setting is impossible.
pub fn job(owner: &TrainingJob, attempt: u32, counted: u32, settings: &Settings) -> Result<Job, Error> {
    let spec = &owner.spec;
    let class = settings.class(&spec.trainer.accelerator.class)?;
    let name = owner.name_any();
    let configuration = TrainerConfig {
        schema_version: SCHEMA_VERSION,
        job: JobIdentity {
            namespace: owner.namespace().unwrap_or_default(),
            name: name.clone(),
            uid: owner.uid().unwrap_or_default(),
            attempt,
        },
        task: spec.task,
        model: spec.model.clone(),
        dataset: spec.dataset.clone(),
        hyperparameters: spec.hyperparameters.clone(),
        device: class.device,
        storage: storage_settings(spec.storage.as_ref()),
        model_name: spec.output.model.clone(),
        output_uri: spec.output.uri.clone(),
        checkpoint: spec.checkpoint.clone(),
        tracking: spec.tracking.clone(),
    };
    let mlflow = spec.tracking.as_ref().and_then(|t| t.mlflow.as_ref());
    let labels = labels(owner, attempt);
    let image = spec
        .trainer
        .image
        .as_ref()
        .map_or(class.trainer_image.as_str(), |i| &i.0);
    let pod = template(PodInputs {
        labels: labels.clone(),
        class: Some(class),
        args: vec!["train".to_owned()],
        env: vec![config(&configuration)?],
        env_secrets: mlflow.and_then(|m| m.secret_ref.as_ref()).into_iter().collect(),
        ports: vec![(INSIDE_PORT_NAME, INSIDE_PORT)],
        resources: spec.trainer.resources.as_ref(),
        settings: spec.trainer.pod.as_ref(),
        settings_path: "spec.trainer.pod",
        storage: spec.storage.as_ref(),
        service_account: spec.service_account_name.as_deref(),
        ..PodInputs::run_once(TRAINER, image, TERMINATION_GRACE_SECONDS, settings)
    })?;
    let mut job_labels = labels;
    job_labels.insert(LABEL_COUNTED_RESTARTS.to_owned(), counted.to_string());
    Ok(single_pod_job(
        ObjectMeta {
            name: Some(training_attempt(&name, attempt)),
            namespace: owner.namespace(),
            labels: Some(job_labels),
            owner_references: owned_by(owner)?,
            ..ObjectMeta::default()
        },
        pod,
    ))
}
