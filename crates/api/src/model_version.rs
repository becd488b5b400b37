//! ModelVersion: one artifact, by content.

use flywheel_contract::gate::Gate;
use flywheel_contract::scalar::Metric;
use flywheel_contract::trainer::ArtifactRef;
pub use flywheel_contract::version::{DatasetReference, TrainingJobReference, VersionSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pod::Storage;

/// One version of a model. Made by a finished TrainingJob, or by hand for an artifact that exists.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flywheel.dev", version = "v1alpha1", kind = "ModelVersion", namespaced,
    status = "ModelVersionStatus", shortname = "mv", category = "flywheel",
    derive = "PartialEq",
    crates(kube = "::kube_derive", kube_core = "::kube_core"),
    attr = "x_kube(crates(kube_core = \"::kube_core\"))",
    doc = "One version of a model: an artifact by place and content. Made by a finished TrainingJob, or by hand for an artifact that exists.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63")
        .message("the name must be a DNS label that starts with a letter (lower case, at most 63 characters)")
        .field_path(".metadata.name"),
    validation = Rule::new("self.spec == oldSelf.spec").message("the spec of a ModelVersion cannot be changed; make a new one").field_path(".spec"),
    selectable = ".spec.model",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "Version", type_ = "integer", json_path = ".spec.version"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "Verified, and whether its gates hold"),
    printcolumn(name = "Metric", type_ = "string", json_path = ".status.metric", description = "The metric of the first gate, else test/accuracy"),
    printcolumn(name = "Served", type_ = "string", json_path = ".status.served", description = "Whether an InferenceService serves it"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
pub struct ModelVersionSpec {
    /// Name of the model.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model: String,
    /// Number of the version; the order of "latest" within a model.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub version: i64,
    /// The artifact.
    pub artifact: ArtifactRef,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VersionSource>,
    /// What was measured at training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub metrics: Option<Vec<Metric>>,
    /// What must hold for the version to be promotable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["metric"]))]
    pub gates: Option<Vec<Gate>>,
    /// When it goes, with its artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How the verifying pod reaches the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Service account of the verifying pod, for workload identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
}

/// When a version goes, with its artifact: where either limit is reached. Never the newest promotable one of its model, one that a
/// service answers with, names or would take by itself, or one that was rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.keepNewest) || has(self.maxAgeDays)",
    "message": "retention has keepNewest, maxAgeDays, or both",
    "reason": "FieldValueInvalid"
}]))]
pub struct Retention {
    /// It goes when so many newer versions of its model are promotable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep_newest: Option<i32>,
    /// It goes when it is so many days old and a newer version of its model is promotable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3650))]
    pub max_age_days: Option<i32>,
}

/// What the operator saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelVersionStatus {
    /// Generation of the spec that this status is about; -1 before the operator has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The metric of the first gate (else test/accuracy) with two digits, such as `test/accuracy 0.93`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// `True` or `False`, for the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<String>,
    /// InferenceServices that serve it, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub services: Vec<String>,
}
