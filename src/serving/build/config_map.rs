//! The ConfigMap that a serving pod reads at its start.
//!
//! Its name carries the digest of its content and its content never changes: while pods of two templates are there, a
//! container that restarts, or a pod that a rollback brings back, reads the configuration of its own template and not the
//! newest one. One that no template needs any more is deleted after the exchange of pods.

use std::collections::BTreeMap;

use flywheel_api::{InferenceService, names};
use flywheel_contract::names::SERVING_CONFIG_FILE;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};

/// Digits of the digest in the name.
const NAME_DIGITS: usize = 8;
/// What stands before the digits of a digest.
const PREFIX: &str = "sha256:";

/// Digest of a configuration's text: `sha256:` and 64 digits.
#[must_use]
pub fn digest(config: &str) -> String {
    format!("{PREFIX}{}", hex::encode(Sha256::digest(config.as_bytes())))
}

/// Name of the ConfigMap with this text.
#[must_use]
pub fn name(service: &str, config: &str) -> String {
    name_of_digest(service, &digest(config))
}

/// Name of the ConfigMap whose text has this digest.
#[must_use]
pub fn name_of_digest(service: &str, digest: &str) -> String {
    let digits = digest.strip_prefix(PREFIX).unwrap_or(digest);
    names::child(
        service,
        &format!("-serving-{}", digits.get(..NAME_DIGITS).unwrap_or(digits)),
    )
}

/// The ConfigMap with this text.
#[must_use]
pub fn build(service: &InferenceService, config: &str) -> ConfigMap {
    ConfigMap {
        metadata: super::metadata(service, &name(&service.name_any(), config)),
        data: Some(BTreeMap::from([(SERVING_CONFIG_FILE.to_owned(), config.to_owned())])),
        immutable: Some(true),
        binary_data: None,
    }
}
