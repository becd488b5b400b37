//! The TrainingJob that a service is trained anew by.

use std::collections::BTreeMap;

use flywheel_api::names::{
    self, ANNOTATION_CAUSE, FLYWHEEL, LABEL_MANAGED_BY, LABEL_NAME, LABEL_PART_OF, LABEL_RETRAINS,
};
use flywheel_api::{InferenceService, TrainingJob};
use flywheel_contract::dataset::{Format, Source};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

/// Number `number` of them, like `template`. The texts that were kept come after the template's own sources: of a text that stands
/// in both, what the template says counts.
#[must_use]
pub fn build(service: &InferenceService, template: &TrainingJob, number: u32, cause: &str) -> TrainingJob {
    let mut spec = template.spec.clone();
    spec.suspend = false;
    spec.output.version_name = None;
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let kept = service.spec.feedback.as_ref().and_then(|f| f.folder(&namespace, &name));
    spec.dataset.sources.extend(kept.map(|uri| Source {
        uri,
        format: Some(Format::Feedback),
    }));
    let labels = [
        (LABEL_NAME, FLYWHEEL),
        (LABEL_MANAGED_BY, FLYWHEEL),
        (LABEL_PART_OF, &service.spec.model),
        (LABEL_RETRAINS, &name),
    ];
    TrainingJob {
        metadata: ObjectMeta {
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            annotations: Some(BTreeMap::from([(ANNOTATION_CAUSE.to_owned(), cause.to_owned())])),
            ..super::metadata(service, &names::retraining(&name, number))
        },
        spec,
        status: None,
    }
}
