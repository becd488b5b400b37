//! The ConfigMap with what was counted of an experiment.

use std::collections::BTreeMap;

use flywheel_api::{InferenceService, names};
use flywheel_policy::serving::experiment::Tally;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use crate::error::Error;

/// Its key.
pub const FILE: &str = "experiment.json";

/// The ConfigMap.
///
/// # Errors
/// Counts that cannot be written as JSON: a fault in Flywheel.
pub fn build(service: &InferenceService, tally: &Tally) -> Result<ConfigMap, Error> {
    let text = serde_json::to_string(tally).map_err(|e| Error::Bug(format!("experiment: {e}")))?;
    Ok(ConfigMap {
        metadata: super::metadata(service, &names::experiment(&service.name_any())),
        data: Some(BTreeMap::from([(FILE.to_owned(), text)])),
        ..ConfigMap::default()
    })
}

/// What a ConfigMap says; `None` where it is none that this operator understands.
#[must_use]
pub fn read(map: &ConfigMap) -> Option<Tally> {
    serde_json::from_str(map.data.as_ref()?.get(FILE)?).ok()
}
