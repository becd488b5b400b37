//! The ConfigMap with the windows of live texts that were counted.

use std::collections::BTreeMap;

use flywheel_api::{InferenceService, names};
use flywheel_policy::drift::History;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use crate::error::Error;

/// Its key.
pub const FILE: &str = "history.json";

/// The ConfigMap.
///
/// # Errors
/// A history that cannot be written as JSON: a fault in Flywheel.
pub fn build(service: &InferenceService, history: &History) -> Result<ConfigMap, Error> {
    let text = serde_json::to_string(history).map_err(|e| Error::Bug(format!("history: {e}")))?;
    Ok(ConfigMap {
        metadata: super::metadata(service, &names::history(&service.name_any())),
        data: Some(BTreeMap::from([(FILE.to_owned(), text)])),
        ..ConfigMap::default()
    })
}

/// What a ConfigMap says; `None` where it is none that this operator understands.
#[must_use]
pub fn read(map: &ConfigMap) -> Option<History> {
    serde_json::from_str(map.data.as_ref()?.get(FILE)?).ok()
}
