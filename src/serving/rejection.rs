//! Rejected versions: an annotation of the ModelVersion says that it ended the process of a pod or did too badly, so that nobody
//! rolls it out again.

use flywheel_api::ModelVersion;
use flywheel_api::names::ANNOTATION_REJECTED;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;

/// What the annotation says.
#[derive(Serialize, Deserialize)]
struct Rejected {
    /// The version's uid: another one of its name is judged anew.
    uid: String,
    /// The InferenceService in whose pod it happened.
    service: String,
    /// What happened.
    why: String,
}

/// Why the version was rejected; `None` where it was not.
#[must_use]
pub fn read(version: &ModelVersion) -> Option<String> {
    let text = version.annotations().get(ANNOTATION_REJECTED)?;
    match serde_json::from_str::<Rejected>(text) {
        Ok(rejected) if Some(&rejected.uid) == version.uid().as_ref() => Some(rejected.why),
        Ok(_) => None,
        // Somebody wrote it by hand.
        Err(_) => Some(text.clone()),
    }
}

/// Whether it was rejected in a pod of another service, as far as the annotation says where.
#[must_use]
pub fn is_elsewhere(version: &ModelVersion, service: &str) -> bool {
    let text = version.annotations().get(ANNOTATION_REJECTED);
    let rejected = text.and_then(|text| serde_json::from_str::<Rejected>(text).ok());
    rejected.is_some_and(|rejected| rejected.service != service)
}

/// The fields that reject it.
///
/// # Errors
/// What cannot be written as JSON: a fault in Flywheel.
pub fn fields(version: &ModelVersion, service: &str, why: &str) -> Result<Value, Error> {
    let rejected = Rejected {
        uid: version.uid().unwrap_or_default(),
        service: service.to_owned(),
        why: why.to_owned(),
    };
    let text = serde_json::to_string(&rejected).map_err(|e| Error::Bug(format!("rejection: {e}")))?;
    Ok(json!({"metadata": {"annotations": {ANNOTATION_REJECTED: text}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_version_itself_is_rejected() {
        let version = |uid: &str, annotations: Value| -> ModelVersion {
            serde_json::from_value(json!({
                "metadata": {"name": "v2", "uid": uid, "annotations": annotations},
                "spec": {"model": "intent", "version": 2,
                    "artifact": {"uri": "s3://m", "digest": format!("sha256:{}", "0".repeat(64))}}
            }))
            .unwrap()
        };
        let written =
            fields(&version("one", json!({})), "intent", "it ended").unwrap()["metadata"]["annotations"].clone();
        assert_eq!(read(&version("one", json!({}))), None);
        assert_eq!(read(&version("one", written.clone())).as_deref(), Some("it ended"));
        let again = written.clone();
        assert_eq!(read(&version("two", written)), None, "made anew");
        assert!(
            is_elsewhere(&version("one", again.clone()), "other") && !is_elsewhere(&version("one", again), "intent")
        );
        let by_hand = json!({ANNOTATION_REJECTED: "slow"});
        assert_eq!(read(&version("one", by_hand)).as_deref(), Some("slow"));
    }
}
