//! The ControllerRevision that keeps what a service runs with, under the hash of the user's inputs.
//!
//! While the inputs stay the same, the stored template is applied again as it is: a new operator version never restarts a
//! pod. Inputs that come back (a rollback) find their template again.

use flywheel_api::{InferenceService, names};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt as _;
use serde::Deserialize as _;
use serde_json::Value;

use super::template::Rendered;
use crate::error::Error;

/// Annotation with the whole hash of the inputs.
pub const ANNOTATION_INPUTS: &str = "flywheel.dev/inputs-hash";
/// Templates that are kept: the one in use and those that a rollback may ask for.
pub const KEPT: usize = 3;
/// Digits of the hash in the name.
const NAME_DIGITS: usize = 10;

/// Name of the revision with this hash.
#[must_use]
pub fn name(service: &str, hash: &str) -> String {
    names::child(service, &format!("-{}", hash.get(..NAME_DIGITS).unwrap_or(hash)))
}

/// The revision that stores a rendering.
///
/// # Errors
/// A rendering that cannot be written as JSON: a fault in Flywheel.
pub fn build(
    service: &InferenceService,
    hash: &str,
    number: i64,
    rendered: &Rendered,
) -> Result<ControllerRevision, Error> {
    let mut metadata = super::metadata(service, &name(&service.name_any(), hash));
    metadata.annotations = Some([(ANNOTATION_INPUTS.to_owned(), hash.to_owned())].into());
    Ok(ControllerRevision {
        metadata,
        data: Some(RawExtension(
            serde_json::to_value(rendered).map_err(|e| Error::Bug(format!("stored template: {e}")))?,
        )),
        revision: number,
    })
}

/// Writes what a revision stores as one text, which takes a fifth of the memory of its tree.
pub fn pack(data: &mut RawExtension) {
    if !data.0.is_string() {
        data.0 = Value::String(data.0.to_string());
    }
}

/// The rendering that a revision stores, packed or not; `None` where it stores something else.
#[must_use]
pub fn rendered(revision: &ControllerRevision) -> Option<Rendered> {
    match &revision.data.as_ref()?.0 {
        Value::String(packed) => serde_json::from_str(packed).ok(),
        tree => Rendered::deserialize(tree).ok(),
    }
}

/// Hash of the inputs that a revision was rendered from.
#[must_use]
pub fn inputs_of(revision: &ControllerRevision) -> Option<&str> {
    revision.annotations().get(ANNOTATION_INPUTS).map(String::as_str)
}

/// The revision among these for this hash.
#[must_use]
pub fn find<'a>(revisions: &'a [ControllerRevision], hash: &str) -> Option<&'a ControllerRevision> {
    revisions.iter().find(|r| inputs_of(r) == Some(hash))
}

/// Number of the newest of these; 0 where there is none.
#[must_use]
pub fn newest(revisions: &[ControllerRevision]) -> i64 {
    revisions.iter().map(|r| r.revision).max().unwrap_or(0)
}

/// These revisions, the newest first.
#[must_use]
pub fn newest_first(revisions: &[ControllerRevision]) -> Vec<&ControllerRevision> {
    let mut sorted: Vec<&ControllerRevision> = revisions.iter().collect();
    sorted.sort_by_key(|r| std::cmp::Reverse((r.revision, r.name_any())));
    sorted
}

/// Revisions beyond the newest [`KEPT`], never the one with this hash.
#[must_use]
pub fn superfluous<'a>(revisions: &'a [ControllerRevision], hash: &str) -> Vec<&'a ControllerRevision> {
    newest_first(revisions)
        .into_iter()
        .filter(|r| inputs_of(r) != Some(hash))
        .skip(KEPT - 1)
        .collect()
}
