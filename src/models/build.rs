//! The Jobs that verify and remove an artifact. They need no GPU and run on any node.

use std::collections::BTreeMap;

use flywheel_api::ModelVersion;
use flywheel_api::conditions::reasons;
use flywheel_api::names::{
    FLYWHEEL, LABEL_ATTEMPT, LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_MODEL_VERSION, LABEL_NAME, LABEL_PART_OF, PRUNER,
    VERIFIER, prune_job, verify_attempt,
};
use flywheel_api::pod::{ResourceList, ResourceQuantity, Resources};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::trainer::{PruneConfig, VerifyConfig};
use flywheel_contract::version::{Promotion, VersionReceipt};
use flywheel_policy::models::JOB_TTL_SECONDS;
use flywheel_policy::models::promote::{Verdict, judge};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::error::Error;
use crate::podspec::{PodInputs, storage_settings, template};
use crate::settings::Settings;
use crate::training::build::job::{config, tried_once};
use crate::training::owned_by;

/// Longest Job, in seconds: tens of GiB over a slow line.
const DEADLINE_SECONDS: i64 = 3600;
/// Seconds that the verifier has to end by itself; it holds nothing.
const TERMINATION_GRACE_SECONDS: i64 = 5;

/// The Job of try `number`.
///
/// # Errors
/// The artifact lies in a volume, or the configuration is too long for a pod.
pub fn job(version: &ModelVersion, number: u32, settings: &Settings) -> Result<Job, Error> {
    let spec = &version.spec;
    if spec.artifact.uri.as_str().starts_with("file://") {
        return Err(Error::InvalidSpec {
            reason: reasons::INVALID_SPEC,
            message: format!(
                "spec.artifact.uri is {}, and the pod that verifies an artifact has none of your volumes, so it cannot be \
                 there. Copy the artifact to s3:// and make the ModelVersion anew with that URI; or serve it unverified: \
                 an InferenceService whose spec.server.pod mounts the volume there checks every digest when it loads it",
                spec.artifact.uri
            ),
        });
    }
    let configuration = VerifyConfig {
        schema_version: SCHEMA_VERSION,
        artifact: spec.artifact.clone(),
        storage: storage_settings(spec.storage.as_ref()),
        receipt: Some(receipt(version)),
    };
    // It loads the weights for some seconds, and how large they are is not known here: what is asked for keeps no node from
    // others, and the limit lets all but the largest encoders be loaded.
    let short = ShortJob {
        name: verify_attempt(&version.name_any(), number),
        component: VERIFIER,
        command: "verify",
        attempt: Some(number),
        requests: amounts("100m", "256Mi"),
        limits: amounts("1", &settings.verifier_memory),
    };
    short_job(version, short, &configuration, settings)
}

/// The Job that removes the artifact.
///
/// # Errors
/// The configuration is too long for a pod.
pub fn prune(version: &ModelVersion, settings: &Settings) -> Result<Job, Error> {
    let configuration = PruneConfig {
        schema_version: SCHEMA_VERSION,
        artifact: version.spec.artifact.clone(),
        storage: storage_settings(version.spec.storage.as_ref()),
    };
    let short = ShortJob {
        name: prune_job(&version.name_any()),
        component: PRUNER,
        command: "prune",
        attempt: None,
        requests: amounts("50m", "64Mi"),
        limits: amounts("1", "256Mi"),
    };
    short_job(version, short, &configuration, settings)
}

/// What is to be done once with an artifact, by the trainer's image.
struct ShortJob {
    name: String,
    /// Name of the container, too.
    component: &'static str,
    command: &'static str,
    attempt: Option<u32>,
    requests: ResourceList,
    limits: ResourceList,
}

fn short_job<T: Serialize>(
    version: &ModelVersion,
    short: ShortJob,
    configuration: &T,
    settings: &Settings,
) -> Result<Job, Error> {
    let ShortJob {
        name,
        component,
        command,
        attempt,
        requests,
        limits,
    } = short;
    let spec = &version.spec;
    let labels: BTreeMap<String, String> = [
        (LABEL_NAME, FLYWHEEL.to_owned()),
        (LABEL_COMPONENT, component.to_owned()),
        (LABEL_MANAGED_BY, FLYWHEEL.to_owned()),
        (LABEL_PART_OF, spec.model.clone()),
        (LABEL_MODEL_VERSION, version.name_any()),
    ]
    .into_iter()
    .chain(attempt.map(|number| (LABEL_ATTEMPT, number.to_string())))
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    let resources = Resources {
        requests: Some(requests),
        limits: Some(limits),
    };
    let pod = template(PodInputs {
        labels: labels.clone(),
        args: vec![command.to_owned()],
        env: vec![config(configuration)?],
        resources: Some(&resources),
        storage: spec.storage.as_ref(),
        service_account: spec.service_account_name.as_deref(),
        ..PodInputs::run_once(component, &settings.verifier_image, TERMINATION_GRACE_SECONDS, settings)
    })?;
    let mut job = tried_once(
        ObjectMeta {
            name: Some(name),
            namespace: version.namespace(),
            labels: Some(labels),
            owner_references: owned_by(version)?,
            ..ObjectMeta::default()
        },
        1,
        pod,
    );
    if let Some(spec) = job.spec.as_mut() {
        spec.active_deadline_seconds = Some(DEADLINE_SECONDS);
        spec.ttl_seconds_after_finished = Some(JOB_TTL_SECONDS);
    }
    Ok(job)
}

/// What is to lie beside the artifact: all of the version but how its storage is reached, and what its gates say.
fn receipt(version: &ModelVersion) -> VersionReceipt {
    let spec = &version.spec;
    let (metrics, gates) = (
        spec.metrics.clone().unwrap_or_default(),
        spec.gates.clone().unwrap_or_default(),
    );
    let (promotable, message) = match judge(&gates, &metrics) {
        Verdict::Passed { message } => (true, message),
        Verdict::Failed { message } => (false, message),
    };
    VersionReceipt {
        schema_version: SCHEMA_VERSION,
        namespace: version.namespace().unwrap_or_default(),
        name: version.name_any(),
        model: spec.model.clone(),
        version: spec.version,
        digest: spec.artifact.digest.clone(),
        source: spec.source.clone(),
        metrics,
        gates,
        promotion: Promotion { promotable, message },
    }
}

fn amounts(cpu: &str, memory: &str) -> ResourceList {
    ResourceList {
        cpu: Some(ResourceQuantity::from(cpu)),
        memory: Some(ResourceQuantity::from(memory)),
        ephemeral_storage: None,
    }
}
