//! The Job of an attempt.

use std::collections::BTreeMap;

use flywheel_api::TrainingJob;
use flywheel_api::conditions::reasons;
use flywheel_api::names::{
    FLYWHEEL, LABEL_ACCELERATOR_CLASS, LABEL_ATTEMPT, LABEL_COMPONENT, LABEL_COUNTED_RESTARTS, LABEL_MANAGED_BY,
    LABEL_NAME, LABEL_PART_OF, LABEL_TRAINING_JOB, TRAINER, training_attempt, training_service,
};
use flywheel_api::pod::PodSettings;
use flywheel_api::training_job::Reuse;
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::names::{CONFIG_MAX_BYTES, INSIDE_PORT, INSIDE_PORT_NAME};
use flywheel_contract::scalar::Uri;
use flywheel_contract::trainer::{ArtifactRef, JobIdentity, TrainerConfig, World};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, EnvVar, PodTemplateSpec, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde::Serialize;

use super::service::rendezvous;
use crate::error::Error;
use crate::podspec::{PodInputs, config_env, storage_settings, template};
use crate::settings::Settings;
use crate::training::owned_by;

/// Seconds that the trainer has to end by itself: it commits a last checkpoint within 25 s.
const TERMINATION_GRACE_SECONDS: i64 = 30;

/// Where processes of one pod share memory, and its volume.
const SHARED_MEMORY_DIR: &str = "/dev/shm";
const SHARED_MEMORY: &str = "flywheel-shm";
/// Most of it. NCCL takes some tens of megabytes for each GPU, and ends where it gets none; the container runtime's own
/// /dev/shm has 64 MiB. What is used counts towards the container's memory limit, and what is not used costs nothing.
const SHARED_MEMORY_MAX: &str = "1Gi";

/// Pods of an attempt.
pub(crate) fn nodes(job: &TrainingJob) -> u32 {
    u32::try_from(job.spec.trainer.num_nodes).unwrap_or(1).max(1)
}

/// GPUs of each of them; one process trains on each.
pub(crate) fn gpus(job: &TrainingJob) -> u32 {
    u32::try_from(job.spec.trainer.accelerator.count).unwrap_or(1).max(1)
}

/// Labels of all children of a job.
pub(super) fn labels(job: &TrainingJob) -> BTreeMap<String, String> {
    [
        (LABEL_NAME, FLYWHEEL.to_owned()),
        (LABEL_COMPONENT, TRAINER.to_owned()),
        (LABEL_MANAGED_BY, FLYWHEEL.to_owned()),
        (LABEL_PART_OF, job.spec.output.model.clone()),
        (LABEL_TRAINING_JOB, job.name_any()),
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

/// A Job whose pods, all at once, are each tried once: what follows a failure is the operator's to decide, not the Job
/// controller's, whose back-off reaches minutes.
pub(crate) fn tried_once(metadata: ObjectMeta, nodes: u32, template: PodTemplateSpec) -> Job {
    let nodes = i32::try_from(nodes).ok();
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            completion_mode: Some("Indexed".to_owned()),
            completions: nodes,
            parallelism: nodes,
            pod_replacement_policy: Some("Failed".to_owned()),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// Artifacts of the ModelVersions that a TrainingJob names.
#[derive(Clone, Debug, Default)]
pub struct NamedVersions {
    /// Of `model.fromVersion`.
    pub base: Option<ArtifactRef>,
    /// Of `output.incumbent`.
    pub incumbent: Option<ArtifactRef>,
    /// Of `output.versionName`, where it is there already: only this one may come out.
    pub expected: Option<ArtifactRef>,
}

/// The Job of attempt `attempt`, after `counted` restarts that count, with pods of the accelerator class `class`, which keep away
/// from the nodes `avoided` where others have room. `versions`: the artifacts of those that the spec names.
///
/// # Errors
/// The accelerator class is unknown, the configuration is too long, a pod setting is impossible, or the result would lie in
/// the pod itself.
pub fn job(
    owner: &TrainingJob,
    attempt: u32,
    counted: u32,
    class: &str,
    avoided: &[String],
    versions: NamedVersions,
    settings: &Settings,
) -> Result<Job, Error> {
    let spec = &owner.spec;
    let board = spec.tracking.as_ref().and_then(|t| t.tensor_board.as_ref());
    for (field, uri) in [
        ("output.uri", Some(&spec.output.uri)),
        ("checkpoint.uri", spec.checkpoint.uri.as_ref()),
        ("tracking.tensorBoard.uri", board.and_then(|b| b.uri.as_ref())),
    ] {
        check_place(field, uri, spec.trainer.pod.as_ref())?;
    }
    let class_name = class;
    let class = settings.class(class_name)?;
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
        world: World {
            nodes: nodes(owner),
            processes_per_node: gpus(owner),
            rendezvous: rendezvous(owner, attempt),
        },
        tracking: spec.tracking.clone(),
        base: versions.base,
        incumbent: versions.incumbent,
        reuse: spec.output.reuse == Reuse::Always,
        expected: versions.expected,
    };
    let mlflow = spec.tracking.as_ref().and_then(|t| t.mlflow.as_ref());
    let mut labels = labels(owner);
    labels.insert(LABEL_ATTEMPT.to_owned(), attempt.to_string());
    let (volumes, volume_mounts) = shared_memory(owner).unzip();
    let image = spec
        .trainer
        .image
        .as_ref()
        .map_or(class.trainer_image.as_str(), |i| &i.0);
    let pod = template(PodInputs {
        labels: labels.clone(),
        class: Some(class),
        gpus: gpus(owner),
        avoided,
        args: vec!["train".to_owned()],
        env: vec![config(&configuration)?],
        env_secrets: mlflow.and_then(|m| m.secret_ref.as_ref()).into_iter().collect(),
        ports: vec![(INSIDE_PORT_NAME, INSIDE_PORT)],
        resources: spec.trainer.resources.as_ref(),
        settings: spec.trainer.pod.as_ref(),
        settings_path: "spec.trainer.pod",
        subdomain: (nodes(owner) > 1).then(|| training_service(&name)),
        storage: spec.storage.as_ref(),
        service_account: spec.service_account_name.as_deref(),
        volumes: volumes.into_iter().collect(),
        volume_mounts: volume_mounts.into_iter().collect(),
        ..PodInputs::run_once(TRAINER, image, TERMINATION_GRACE_SECONDS, settings)
    })?;
    let mut job_labels = labels;
    job_labels.insert(LABEL_COUNTED_RESTARTS.to_owned(), counted.to_string());
    job_labels.insert(LABEL_ACCELERATOR_CLASS.to_owned(), class_name.to_owned());
    Ok(tried_once(
        ObjectMeta {
            name: Some(training_attempt(&name, attempt)),
            namespace: owner.namespace(),
            labels: Some(job_labels),
            owner_references: owned_by(owner)?,
            ..ObjectMeta::default()
        },
        nodes(owner),
        pod,
    ))
}

/// Refuses a folder of the pod itself for what is to outlast the pod: only a claimed volume does.
///
/// # Errors
/// The URI names a file, and the volume that is mounted there is none of a PersistentVolumeClaim.
fn check_place(field: &str, uri: Option<&Uri>, pod: Option<&PodSettings>) -> Result<(), Error> {
    let Some(path) = uri.and_then(|uri| uri.as_str().strip_prefix("file://")) else {
        return Ok(());
    };
    let parts = |path: &str| -> Vec<String> {
        let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
        parts.map(str::to_owned).collect()
    };
    let place = parts(path);
    let mounts = pod.iter().flat_map(|p| p.volume_mounts.iter().flatten());
    // Of mounts within each other the innermost counts.
    let mount = mounts
        .map(|mount| (parts(&mount.mount_path), &mount.name))
        .filter(|(mounted, _)| place.starts_with(mounted))
        .max_by_key(|(mounted, _)| mounted.len());
    let is_claimed = |name: &str| {
        let mut volumes = pod.iter().flat_map(|p| p.volumes.iter().flatten());
        volumes.any(|v| v.name == name && v.persistent_volume_claim.is_some())
    };
    let leaves = place.iter().any(|part| part == "..");
    if !leaves && mount.is_some_and(|(_, name)| is_claimed(name)) {
        return Ok(());
    }
    Err(Error::InvalidSpec {
        reason: reasons::INVALID_SPEC,
        message: format!(
            "spec.{field} is file://{path}, which lies in the pod itself and would be lost with it. Mount a volume of a \
             PersistentVolumeClaim there (trainer.pod.volumes and trainer.pod.volumeMounts), or write to s3://"
        ),
    })
}

/// The shared memory of processes that train together, where there are several.
fn shared_memory(owner: &TrainingJob) -> Option<(Volume, VolumeMount)> {
    (nodes(owner) > 1 || gpus(owner) > 1).then(|| {
        let volume = Volume {
            name: SHARED_MEMORY.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity(SHARED_MEMORY_MAX.to_owned())),
            }),
            ..Volume::default()
        };
        let mount = VolumeMount {
            name: SHARED_MEMORY.to_owned(),
            mount_path: SHARED_MEMORY_DIR.to_owned(),
            ..VolumeMount::default()
        };
        (volume, mount)
    })
}
