//! The ModelVersion of a result.

use flywheel_api::TrainingJob;
use flywheel_api::model_version::{
    DatasetReference, ModelVersion, ModelVersionSpec, TrainingJobReference, VersionSource,
};
use flywheel_api::names::{FLYWHEEL, LABEL_MANAGED_BY, LABEL_MODEL, LABEL_NAME, LABEL_PART_OF, LABEL_TRAINING_JOB};
use flywheel_contract::termination::Trained;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

/// Version `number` of the model. It has no owner reference: it outlives the job, which `source` names.
#[must_use]
pub fn model_version(job: &TrainingJob, name: &str, number: i64, trained: &Trained) -> ModelVersion {
    let output = &job.spec.output;
    let labels = [
        (LABEL_NAME, FLYWHEEL.to_owned()),
        (LABEL_MANAGED_BY, FLYWHEEL.to_owned()),
        (LABEL_PART_OF, output.model.clone()),
        (LABEL_MODEL, output.model.clone()),
        (LABEL_TRAINING_JOB, job.name_any()),
    ];
    ModelVersion {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: job.namespace(),
            labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ..ObjectMeta::default()
        },
        spec: ModelVersionSpec {
            model: output.model.clone(),
            version: number,
            artifact: trained.artifact.clone(),
            source: Some(VersionSource {
                training_job: Some(TrainingJobReference {
                    name: job.name_any(),
                    uid: job.uid().unwrap_or_default(),
                }),
                dataset: Some(DatasetReference {
                    digest: trained.dataset_digest.clone(),
                }),
                base: job.spec.model.from_version.clone(),
            }),
            metrics: (!trained.metrics.is_empty()).then(|| trained.metrics.clone()),
            gates: output.gates.clone(),
            retention: output.retention.clone(),
            storage: job.spec.storage.clone(),
            service_account_name: job.spec.service_account_name.clone(),
        },
        status: None,
    }
}
