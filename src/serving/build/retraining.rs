//! The TrainingJob that a service is trained anew by.

use flywheel_api::names::{
    self, ANNOTATION_CAUSE, ANNOTATION_REQUESTED, ANNOTATION_SCHEDULED, FLYWHEEL, LABEL_MANAGED_BY, LABEL_NAME,
    LABEL_PART_OF, LABEL_RETRAINS,
};
use flywheel_api::training_job::TrainingJobSpec;
use flywheel_api::{InferenceService, TrainingJob};
use flywheel_contract::dataset::{Format, Source};
use flywheel_contract::gate::Gate;
use flywheel_policy::retrain::Start;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

/// What a version may lose beside the one that answers where the template does not say it: two rows of a hundred, which is about what
/// chance brings about on a few hundred rows.
const MIN_DELTA: &str = "-0.02";
/// The same of the newest set, which nobody chose: of a hundred rows or two, two versions that are equally good differ by three
/// points now and then.
const MIN_DELTA_NEWEST: &str = "-0.05";

/// The one to make, like `template`. The texts that were kept come after the template's own sources: of a text that stands
/// in both, what the template says counts. `incumbent`: the version that answers.
#[must_use]
pub fn build(
    service: &InferenceService,
    template: &TrainingJob,
    incumbent: Option<&str>,
    start: &Start,
) -> TrainingJob {
    let mut spec = template.spec.clone();
    spec.suspend = false;
    spec.output.version_name = None;
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let kept = service.spec.feedback.as_ref().and_then(|f| f.folder(&namespace, &name));
    spec.dataset.sources.extend(kept.map(|uri| Source {
        uri,
        format: Some(Format::Feedback),
        hold_out_percent: None,
    }));
    if let Some(incumbent) = incumbent {
        spec.output.incumbent = Some(incumbent.to_owned());
        // One that goes on from a version goes on from the newest.
        if let Some(base) = &mut spec.model.from_version {
            incumbent.clone_into(base);
        }
        compare(&mut spec);
    }
    let labels = [
        (LABEL_NAME, FLYWHEEL),
        (LABEL_MANAGED_BY, FLYWHEEL),
        (LABEL_PART_OF, &service.spec.model),
        (LABEL_RETRAINS, &name),
    ];
    let annotations = [
        (ANNOTATION_CAUSE, Some(start.cause.clone())),
        (ANNOTATION_REQUESTED, start.requested.clone()),
        (ANNOTATION_SCHEDULED, start.scheduled.map(|time| time.to_string())),
    ];
    TrainingJob {
        metadata: ObjectMeta {
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            annotations: Some(
                annotations
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                    .collect(),
            ),
            ..super::metadata(service, &names::retraining(&name, start.number))
        },
        spec,
        status: None,
    }
}

/// Adds gates beside the incumbent where the template has none: on each set that neither of the two was trained on. A test set that is
/// split off the sources is none of these, since more texts are split another way, and the incumbent learnt most of them.
fn compare(spec: &mut TrainingJobSpec) {
    let mut gates = spec.output.gates.take().unwrap_or_default();
    if !gates.iter().any(|gate| gate.min_delta.is_some()) {
        let sets = [
            ("golden/accuracy", MIN_DELTA, spec.dataset.golden.is_some()),
            ("newest/accuracy", MIN_DELTA_NEWEST, spec.dataset.holds_out()),
            ("test/accuracy", MIN_DELTA, spec.dataset.test.is_some()),
        ];
        for (metric, min_delta, _) in sets.into_iter().filter(|(.., has)| *has) {
            let added = Gate::beside_incumbent(metric, min_delta);
            match gates.iter_mut().find(|gate| gate.metric == metric) {
                Some(gate) => gate.min_delta = added.min_delta,
                None => gates.push(added),
            }
        }
    }
    spec.output.gates = (!gates.is_empty()).then_some(gates);
}
