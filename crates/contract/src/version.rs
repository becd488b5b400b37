//! What is known of a version of a model: where it comes from, and the receipt that lies beside its artifact, from which the
//! ModelVersion can be made again where the cluster's object is lost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gate::Gate;
use crate::scalar::{Digest, Metric};
use crate::trainer::ArtifactRef;

/// Name of the receipt in an artifact's folder. The manifest does not list it, so it is no part of what the digest says.
pub const VERSION_FILE: &str = "version.json";
/// Most bytes of a receipt; a larger one is refused unread.
pub const RECEIPT_MAX_BYTES: u64 = 64 * 1024;

/// Where a version comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionSource {
    /// The TrainingJob that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_job: Option<TrainingJobReference>,
    /// The data it learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetReference>,
    /// The ModelVersion whose weights the training began with, where it went on from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub base: Option<String>,
}

/// A TrainingJob by name and uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingJobReference {
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// A data set by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetReference {
    /// Digest over the content of all sources: sha256 of one line `<set> <sha256 of the file>` per file, in order.
    pub digest: Digest,
}

/// `version.json`: all of a verified ModelVersion but how its storage is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionReceipt {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Namespace of the ModelVersion.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the model.
    pub model: String,
    /// Number of the version.
    pub version: i64,
    /// Digest of the `manifest.json` beside it: a receipt of another one says nothing of this artifact.
    pub digest: Digest,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VersionSource>,
    /// What was measured at training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// What had to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Gate>,
    /// Whether it held.
    pub promotion: Promotion,
}

/// The verdict of a version's gates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// Whether all gates held.
    pub promotable: bool,
    /// For people: which did not, and by how much.
    pub message: String,
}

/// One artifact that an import found, as a line of its log. Lines that are something else are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundLine {
    /// The artifact.
    pub found: FoundVersion,
}

/// What an import found in a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundVersion {
    /// The artifact, by the digest of the manifest that lies there.
    pub artifact: ArtifactRef,
    /// Name of the model, as the manifest tells it.
    pub model: String,
    /// What was measured at training, as the manifest tells it.
    pub metrics: Vec<Metric>,
    /// The receipt beside it, where there is one of this artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<VersionReceipt>,
}
