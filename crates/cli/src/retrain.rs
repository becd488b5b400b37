//! `retrain`: asks for a training, by a word that the service's spec did not hold before.

use flywheel_api::InferenceService;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::change;
use crate::cluster::Cluster;
use crate::error::Error;

/// Writes the time into `retrain.requested`, or prints the patch; what to tell the user.
pub(crate) async fn run(cluster: &Cluster, name: &str, print: bool, now: Timestamp) -> Result<String, Error> {
    let service: InferenceService = cluster.get(name).await?;
    let (patch, told) = patch(&service, now)?;
    change::apply(cluster, &service, patch, &told, print).await
}

/// The merge patch, and what it does.
fn patch(service: &InferenceService, now: Timestamp) -> Result<(Value, String), Error> {
    let name = service.name_any();
    let Some(retrain) = &service.spec.retrain else {
        return Err(Error::Inapplicable(format!(
            "InferenceService {name} has no spec.retrain, which says how it is trained anew"
        )));
    };
    let word = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let told = format!(
        "{name} is trained anew like TrainingJob {} as soon as no retraining of it runs; see `kubectl flywheel explain {name}`.",
        retrain.training_job
    );
    Ok((json!({"spec": {"retrain": {"requested": word}}}), told))
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::inference_service;

    use super::*;

    #[test]
    fn a_training_is_asked_for_by_the_time() {
        let now = "2026-11-28T00:07:09Z".parse().unwrap();
        let service = inference_service(&json!({"spec": {"retrain": {"trainingJob": "intent"}}}));
        let (patch, told) = patch(&service, now).unwrap();
        assert_eq!(patch, json!({"spec": {"retrain": {"requested": "20261128T000709Z"}}}));
        assert!(told.contains("like TrainingJob intent"), "{told}");
        let error = super::patch(&inference_service(&json!({})), now).unwrap_err();
        assert!(error.to_string().contains("has no spec.retrain"), "{error}");
    }
}
