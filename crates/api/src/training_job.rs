//! TrainingJob: data and a pretrained model in, a ModelVersion out.

use flywheel_contract::dataset::Dataset;
use flywheel_contract::hyperparameters::{Hyperparameters, Model};
use flywheel_contract::scalar::{Decimal, Metric, Task, Uri};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pod::{Accelerator, Image, PodSettings, Resources, Storage};

/// Trains a model and leaves a ModelVersion behind.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flywheel.dev", version = "v1alpha1", kind = "TrainingJob", namespaced,
    status = "TrainingJobStatus", shortname = "tj", category = "flywheel",
    derive = "PartialEq",
    crates(kube = "::kube_derive", kube_core = "::kube_core"),
    attr = "x_kube(crates(kube_core = \"::kube_core\"))",
    doc = "Trains a model and leaves a ModelVersion behind.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63")
        .message("the name must be a DNS label that starts with a letter (lower case, at most 63 characters)")
        .field_path(".metadata.name"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "What the job is doing"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes", description = "Pods ready / wanted"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.progress.step", description = "Optimiser steps done / in all"),
    printcolumn(name = "Loss", type_ = "string", json_path = ".status.progress.loss", description = "Smoothed training loss"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts", description = "Attempts after the first"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.model == oldSelf.model").message("model cannot be changed; apply a new TrainingJob").field_path(".model"))]
#[x_kube(validation = Rule::new("self.dataset == oldSelf.dataset").message("dataset cannot be changed; apply a new TrainingJob").field_path(".dataset"))]
#[x_kube(validation = Rule::new("self.hyperparameters == oldSelf.hyperparameters").message("hyperparameters cannot be changed; apply a new TrainingJob").field_path(".hyperparameters"))]
#[x_kube(validation = Rule::new("self.trainer == oldSelf.trainer").message("trainer cannot be changed; apply a new TrainingJob").field_path(".trainer"))]
#[x_kube(validation = Rule::new("self.output == oldSelf.output").message("output cannot be changed; apply a new TrainingJob").field_path(".output"))]
#[x_kube(validation = Rule::new("has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)").message("storage cannot be changed; apply a new TrainingJob").field_path(".storage"))]
#[x_kube(validation = Rule::new("has(self.serviceAccountName) == has(oldSelf.serviceAccountName) && (!has(self.serviceAccountName) || self.serviceAccountName == oldSelf.serviceAccountName)").message("serviceAccountName cannot be changed; apply a new TrainingJob").field_path(".serviceAccountName"))]
pub struct TrainingJobSpec {
    /// What the model is made to do; fixes inputs, outputs, loss and metrics.
    pub task: Task,
    /// What the weights start from.
    pub model: Model,
    /// What it learns.
    pub dataset: Dataset,
    /// How it learns.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// The pods.
    #[serde(default)]
    pub trainer: Trainer,
    /// How the pods reach the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Service account of the pods, for workload identity; its API token is never mounted. Setting it takes the right to
    /// create pods in the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// What happens after a failure of the infrastructure. Failures of data or settings are never retried.
    #[serde(default)]
    pub recovery: Recovery,
    /// What comes out.
    pub output: Output,
    /// Stop the pods and wait. The attempt starts from its beginning when this is false again.
    #[serde(default)]
    pub suspend: bool,
}

/// The training pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trainer {
    /// Where they run; one GPU each.
    #[serde(default = "default_accelerator")]
    pub accelerator: Accelerator,
    /// Processor and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Image, where it is not the class's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// More settings of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodSettings>,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            accelerator: default_accelerator(),
            resources: None,
            image: None,
            pod: None,
        }
    }
}

fn default_accelerator() -> Accelerator {
    Accelerator {
        class: "a100".to_owned(),
    }
}

/// What happens after a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// Attempts after the first. A pod that was deleted, evicted or preempted does not count.
    #[serde(default = "default_max_restarts")]
    #[schemars(range(min = 0, max = 100))]
    pub max_restarts: i32,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            max_restarts: default_max_restarts(),
        }
    }
}

fn default_max_restarts() -> i32 {
    3
}

/// What comes out of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Name of the model; versions of one model are numbered together.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model: String,
    /// Name of the ModelVersion; `<job>-<first 8 of uid>` where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub version_name: Option<String>,
    /// Folder under which the job writes, in a folder of its own that is named by its uid.
    pub uri: Uri,
    /// What must hold for the version to be promotable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["metric"]))]
    pub gates: Option<Vec<Gate>>,
}

/// A metric that must be high enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// `<set>/<measure>`, such as `test/accuracy` or `golden/macroF1`.
    #[schemars(
        length(max = 64),
        regex(pattern = r"^(validation|test|golden)/(accuracy|macroF1|weightedF1|auc)$")
    )]
    pub metric: String,
    /// Smallest value that passes.
    pub min: Decimal,
}

/// What the operator saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingJobStatus {
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
    /// Pods ready / wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// The attempt that runs or ran last, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// Attempts after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i64>,
    /// How far the training is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// What came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultStatus>,
    /// Where the pods compute: `Cpu` where the class's GPUs are simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<flywheel_contract::scalar::Device>,
}

/// How far a training is; at most one write a minute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// Steps done / in all, such as `120/800`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Smoothed loss, two digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// What the pod is doing: Downloading, Preparing, Training, Evaluating, Uploading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Seconds to the end at the present rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
}

/// What came out of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultStatus {
    /// Name of the ModelVersion.
    pub model_version: String,
    /// Final metrics.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub metrics: Vec<Metric>,
}
