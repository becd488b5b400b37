//! TrainingJob: data and a pretrained model in, a ModelVersion out.

use std::collections::BTreeMap;

use flywheel_contract::checkpoint::Checkpoint;
use flywheel_contract::dataset::{Dataset, SetName};
use flywheel_contract::gate::Gate;
use flywheel_contract::hyperparameters::{Hyperparameters, Model};
use flywheel_contract::progress::{EVALUATIONS_MAX, EpochEvaluation, SinkProgress, TrackingProgress};
use flywheel_contract::scalar::{Decimal, Metric, Precision, Task, Uri};
use flywheel_contract::tracking::Tracking;
use flywheel_contract::trainer::DatasetCounts;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model_version::Retention;
use crate::pod::{Image, PodSettings, Resources, Storage};
use crate::recovery::{RecoveryMode, RecoveryStatus, default_deadline};

/// Most bytes of each text that a pod tells of a place that figures go to; the longest URI has room.
const SINK_TEXT_MAX: usize = 1200;

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
#[x_kube(validation = Rule::new("self.hyperparameters.batchSize >= self.trainer.numNodes * self.trainer.accelerator.count").message("batchSize must be at least trainer.numNodes * trainer.accelerator.count: each GPU takes a part of every batch").field_path(".hyperparameters.batchSize"))]
#[x_kube(validation = Rule::new("has(self.dataset.golden) || !has(self.output.gates) || !self.output.gates.exists(gate, gate.metric.startsWith('golden/'))").message("a gate on golden/... needs dataset.golden").field_path(".output.gates"))]
#[x_kube(validation = Rule::new("!has(self.output.gates) || !self.output.gates.exists(gate, gate.metric.startsWith('newest/')) || self.dataset.sources.exists(source, has(source.format) && source.format == 'Feedback' && (!has(source.holdOutPercent) || source.holdOutPercent > 0))").message("a gate on newest/... needs one of dataset.sources with format: Feedback, of which some is held out").field_path(".output.gates"))]
#[x_kube(validation = Rule::new("!has(self.trainer.pod) || !has(self.trainer.pod.tolerations) || self.trainer.pod.tolerations.all(t, !has(t.tolerationSeconds) || t.tolerationSeconds == 0 || self.recovery.deadlineSeconds >= 170 + t.tolerationSeconds)").message("deadlineSeconds must be at least 170 s, which a recovery may take, and the largest tolerationSeconds of trainer.pod.tolerations together").field_path(".recovery.deadlineSeconds"))]
#[x_kube(validation = Rule::new("self.model == oldSelf.model").message("model cannot be changed; apply a new TrainingJob").field_path(".model"))]
#[x_kube(validation = Rule::new("self.dataset == oldSelf.dataset").message("dataset cannot be changed; apply a new TrainingJob").field_path(".dataset"))]
#[x_kube(validation = Rule::new("self.hyperparameters == oldSelf.hyperparameters").message("hyperparameters cannot be changed; apply a new TrainingJob").field_path(".hyperparameters"))]
#[x_kube(validation = Rule::new("self.trainer == oldSelf.trainer").message("trainer cannot be changed; apply a new TrainingJob").field_path(".trainer"))]
#[x_kube(validation = Rule::new("self.checkpoint == oldSelf.checkpoint").message("checkpoint cannot be changed; apply a new TrainingJob").field_path(".checkpoint"))]
#[x_kube(validation = Rule::new("self.output == oldSelf.output").message("output cannot be changed; apply a new TrainingJob").field_path(".output"))]
#[x_kube(validation = Rule::new("has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)").message("storage cannot be changed; apply a new TrainingJob").field_path(".storage"))]
#[x_kube(validation = Rule::new("has(self.serviceAccountName) == has(oldSelf.serviceAccountName) && (!has(self.serviceAccountName) || self.serviceAccountName == oldSelf.serviceAccountName)").message("serviceAccountName cannot be changed; apply a new TrainingJob").field_path(".serviceAccountName"))]
#[x_kube(validation = Rule::new("has(self.tracking) == has(oldSelf.tracking) && (!has(self.tracking) || self.tracking == oldSelf.tracking)").message("tracking cannot be changed; apply a new TrainingJob").field_path(".tracking"))]
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
    /// How often the training saves its state, and where. A new attempt goes on from the newest checkpoint.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Where the figures go beside this object's status: TensorBoard's event files, an MLflow server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// What happens after a failure of the infrastructure. Failures of data or settings are never retried.
    #[serde(default)]
    pub recovery: Recovery,
    /// What comes out.
    pub output: Output,
    /// Stop the pods and wait. Their state is saved, and training goes on from there when this is false again.
    #[serde(default)]
    pub suspend: bool,
}

/// The training pods. They train one model together, each GPU on its share of every batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trainer {
    /// How many pods; each takes `accelerator.count` GPUs of one node. The training begins when all of them run.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub num_nodes: i32,
    /// GPUs of each pod.
    #[serde(default)]
    pub accelerator: TrainerAccelerator,
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
            num_nodes: one(),
            accelerator: TrainerAccelerator::default(),
            resources: None,
            image: None,
            pod: None,
        }
    }
}

/// GPUs of a training pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainerAccelerator {
    /// Name of an accelerator class of the cluster.
    #[serde(default = "default_class")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub class: String,
    /// How many; one process trains on each.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,
}

impl Default for TrainerAccelerator {
    fn default() -> Self {
        Self {
            class: default_class(),
            count: one(),
        }
    }
}

fn default_class() -> String {
    "a100".to_owned()
}

fn one() -> i32 {
    1
}

/// What happens after a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// Whether pods that run and do no work, or whose node or GPU is lost, are replaced, or only told of. What has ended by
    /// itself is followed by another attempt in both.
    #[serde(default)]
    pub mode: RecoveryMode,
    /// Seconds within which a failure is to be recovered from, as long as there are nodes for it; `RecoveryWithinDeadline` tells
    /// whether it was.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 170, max = 604_800))]
    pub deadline_seconds: i32,
    /// Attempts after the first that came no further than the checkpoint they began with. A pod that was deleted, evicted
    /// or preempted does not count.
    #[serde(default = "default_max_restarts")]
    #[schemars(range(min = 0, max = 100))]
    pub max_restarts: i32,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            mode: RecoveryMode::default(),
            deadline_seconds: default_deadline(),
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
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.incumbent) || !has(self.gates) || !self.gates.exists(gate, has(gate.minDelta))",
    "message": "a gate with minDelta needs output.incumbent, the version to compare with",
    "reason": "FieldValueInvalid",
    "fieldPath": ".gates"
}]))]
pub struct Output {
    /// Name of the model; versions of one model are numbered together.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model: String,
    /// Name of the ModelVersion; `<job>-<first 8 of uid>` where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub version_name: Option<String>,
    /// Folder under which the job writes, in a folder of its own that is named by its uid.
    #[schemars(extend("pattern" = Uri::WRITABLE))]
    pub uri: Uri,
    /// Name of the ModelVersion that the one which comes out is measured beside, on the same rows of the test, golden and newest
    /// sets: one of the same model, whose artifact the pods can read with `storage` of this job. Gates with `minDelta` need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub incumbent: Option<String>,
    /// What must hold for the version to be promotable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["metric"]))]
    pub gates: Option<Vec<Gate>>,
    /// When the version goes, with its artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Whether a result that the same training left under `uri` is taken in place of training again.
    #[serde(default)]
    pub reuse: Reuse,
}

/// What becomes of results under the same `output.uri` of trainings with the same spec, data and pretrained files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Reuse {
    /// One is taken where it is there, and the job ends as `ResultReused` without training; a result is left to be found.
    #[default]
    Always,
    /// Neither: the job trains whatever is there.
    Never,
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
    /// Restarts since a newer checkpoint was made; `recovery.maxRestarts` bounds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_restarts: Option<i64>,
    /// How far the training is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// The last evaluations, in order, over all attempts; at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = EVALUATIONS_MAX), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["epoch"]))]
    pub evaluations: Vec<EvaluationStatus>,
    /// Where the figures are to be seen that `spec.tracking` asks for, and what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<TrackingStatus>,
    /// What the data checks found, before the first step. `dataset.limits` in the spec says what they must not exceed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetStatus>,
    /// What came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultStatus>,
    /// Where the pods compute: `Cpu` where the class's GPUs are simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<flywheel_contract::scalar::Device>,
    /// Number format of the forward and backward pass that the pods chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// What was recovered from, and how long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryStatus>,
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
    /// What the pod is doing: Downloading, Preparing, Training, Evaluating, Checkpointing, Uploading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Seconds to the end at the present rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// Step of the newest committed checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<i64>,
    /// Step of the checkpoint that the attempt went on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<i64>,
}

/// The figures of an epoch, with four digits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationStatus {
    /// Counts from 1.
    pub epoch: i64,
    /// Optimiser steps done.
    pub step: i64,
    /// Mean loss over the epoch's steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<Decimal>,
    /// Cross-entropy on the validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<Decimal>,
    /// Share of right answers on the validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Decimal>,
    /// Mean F1 over labels on the validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<Decimal>,
    /// When the evaluation ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

impl EvaluationStatus {
    /// What a pod tells, as a status may hold it: the last [`EVALUATIONS_MAX`], each epoch once, in order, and no figure
    /// that the schema would refuse.
    #[must_use]
    pub fn list(told: &[EpochEvaluation]) -> Vec<Self> {
        let by_epoch: BTreeMap<u32, &EpochEvaluation> = told.iter().map(|e| (e.epoch, e)).collect();
        let surplus = by_epoch.len().saturating_sub(EVALUATIONS_MAX);
        by_epoch.into_values().skip(surplus).map(Self::from).collect()
    }
}

impl From<&EpochEvaluation> for EvaluationStatus {
    fn from(told: &EpochEvaluation) -> Self {
        // Decimals have at most nine digits before the point.
        let decimal = |value: Option<f64>| {
            let fits = value.filter(|v| v.is_finite() && v.abs() < 1e9);
            fits.map(|v| Decimal(format!("{v:.4}")))
        };
        Self {
            epoch: i64::from(told.epoch),
            step: i64::try_from(told.step).unwrap_or(i64::MAX),
            train_loss: decimal(told.train_loss),
            validation_loss: decimal(told.validation_loss),
            accuracy: decimal(told.accuracy),
            macro_f1: decimal(told.macro_f1),
            time: told.time.and_then(|s| Timestamp::from_second(s).ok()).map(Time),
        }
    }
}

/// Where figures are to be seen, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrackingStatus {
    /// TensorBoard's event files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor_board: Option<SinkStatus>,
    /// The run on the MLflow server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<SinkStatus>,
}

/// One place that figures go to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// A folder for `tensorboard --logdir`, or the page of a run.
    pub uri: String,
    /// Why figures do not come there, and what to do. The training goes on meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl TrackingStatus {
    /// What a pod tells, with texts cut to what a status has room for; none where nothing was asked for.
    #[must_use]
    pub fn told(progress: &TrackingProgress) -> Option<Self> {
        let cut = |text: &String| text.get(..text.floor_char_boundary(SINK_TEXT_MAX)).map(str::to_owned);
        let sink = |told: &SinkProgress| SinkStatus {
            uri: cut(&told.uri).unwrap_or_default(),
            problem: told.problem.as_ref().and_then(cut),
        };
        let status = Self {
            tensor_board: progress.tensor_board.as_ref().map(sink),
            mlflow: progress.mlflow.as_ref().map(sink),
        };
        (status != Self::default()).then_some(status)
    }
}

/// What the data checks found; places of rows are in the job's result and in the pod's log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetStatus {
    /// Rows read.
    pub rows: i64,
    /// Rows trained on.
    pub train: i64,
    /// Rows that choose the best epoch.
    pub validation: i64,
    /// Rows measured on at the end.
    pub test: i64,
    /// Rows that versions are compared on.
    pub golden: i64,
    /// Rows of the newest feedback, held out, that versions are compared on.
    pub newest: i64,
    /// Rows without text or label, dropped.
    pub empty: i64,
    /// Rows whose text was there before in the same set, dropped where `deduplicate` is on.
    pub duplicates: i64,
    /// Texts that stand with more than one label.
    pub conflicts: i64,
    /// Rows of the validation, test, golden and newest sets whose text nearly stands in the training set.
    pub near_duplicates: i64,
    /// Near-duplicates for each two sets that have some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["set", "of"]))]
    pub near_duplicates_by_sets: Vec<NearDuplicatesStatus>,
    /// Rows with so many alike texts in other sets that not each was compared; there may be more near-duplicates.
    pub uncompared: i64,
    /// Labels in the training set.
    pub labels: i64,
    /// Labels in the validation set.
    pub validation_labels: i64,
    /// Labels in the test set.
    pub test_labels: i64,
    /// Labels in the golden set.
    pub golden_labels: i64,
    /// Labels in the newest set.
    pub newest_labels: i64,
    /// Training rows of the largest label.
    pub largest_label: i64,
    /// Training rows of the smallest label.
    pub smallest_label: i64,
    /// Largest label over smallest, one digit.
    pub imbalance_ratio: String,
    /// Labels with fewer training rows than `limits.minRowsPerLabel`, or 10.
    pub rare_labels: i64,
    /// Texts longer than `maxLength` tokens, cut.
    pub truncated: i64,
    /// Share of all texts that is cut, one digit.
    pub truncated_percent: String,
}

/// Rows of one set whose text nearly stands in another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NearDuplicatesStatus {
    /// The set that the rows are of.
    pub set: SetName,
    /// The set that holds the like of them.
    pub of: SetName,
    /// How many there are.
    pub rows: i64,
    /// Of these, those whose very text stands there.
    pub identical: i64,
}

impl From<&DatasetCounts> for DatasetStatus {
    fn from(counts: &DatasetCounts) -> Self {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let pairs = counts.near_duplicates.iter().map(|pair| NearDuplicatesStatus {
            set: pair.set,
            of: pair.of,
            rows: number(pair.rows),
            identical: number(pair.identical),
        });
        Self {
            rows: number(counts.rows),
            train: number(counts.train),
            validation: number(counts.validation),
            test: number(counts.test),
            golden: number(counts.golden),
            newest: number(counts.newest),
            empty: number(counts.empty),
            duplicates: number(counts.duplicates),
            conflicts: number(counts.conflicts),
            near_duplicates: number(counts.near_duplicates_of_train()),
            near_duplicates_by_sets: pairs.collect(),
            uncompared: number(counts.uncompared),
            labels: number(counts.labels),
            validation_labels: number(counts.validation_labels),
            test_labels: number(counts.test_labels),
            golden_labels: number(counts.golden_labels),
            newest_labels: number(counts.newest_labels),
            largest_label: number(counts.largest_label),
            smallest_label: number(counts.smallest_label),
            imbalance_ratio: format!("{:.1}", counts.imbalance_ratio()),
            rare_labels: number(counts.rare_labels),
            truncated: number(counts.truncated),
            truncated_percent: format!("{:.1}", counts.truncated_percent()),
        }
    }
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
