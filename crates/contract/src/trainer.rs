//! Configuration of the trainer image's programs, and the result of a training.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::dataset::{Dataset, SetName};
use crate::hyperparameters::{Hyperparameters, Model};
use crate::scalar::{Device, Digest, Metric, Task, Uri};
use crate::storage::StorageSettings;
use crate::tracking::{TENSOR_BOARD_DIR, Tracking};
use crate::version::VersionReceipt;

/// Which TrainingJob and which attempt a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobIdentity {
    /// Namespace of the TrainingJob.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: a recreated job of the same name never meets its predecessor's files.
    pub uid: String,
    /// Counts from 1.
    pub attempt: u32,
}

/// All that `flywheel-trainer train` needs to know. An attempt's configuration never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainerConfig {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whose attempt this is.
    pub job: JobIdentity,
    /// What the model is made to do.
    pub task: Task,
    /// What the weights start from.
    pub model: Model,
    /// What it learns.
    pub dataset: Dataset,
    /// How it learns.
    pub hyperparameters: Hyperparameters,
    /// What to compute on.
    pub device: Device,
    /// How to reach the bucket.
    #[serde(default)]
    pub storage: StorageSettings,
    /// Name of the model, for the artifact's manifest.
    pub model_name: String,
    /// Folder under which this job writes: `<outputUri>/<uid>/…`, never anything else but its checkpoints.
    pub output_uri: Uri,
    /// Where and how often its state is saved.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// How many processes train together.
    #[serde(default)]
    pub world: World,
    /// Where its figures go beside `/progress` and `/metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// The artifact of the version that `model.fromVersion` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ArtifactRef>,
    /// The version beside which the one that comes out is measured. It is read with the job's own storage settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incumbent: Option<ArtifactRef>,
    /// Whether a result that the same training came to before is taken in place of training again, and this one's is left to be
    /// found.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
    /// The artifact of a ModelVersion that has the name of the job's own: only this one may come out, since any other would get
    /// no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ArtifactRef>,
}

/// The processes that train one model together, data-parallel: one for each GPU. Rank 0 is the first process of node 0; it
/// alone writes checkpoints, artifact and result. A node's number is its pod's completion index
/// ([`crate::names::COMPLETION_INDEX_ENV`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct World {
    /// Pods of the attempt, at least 1.
    pub nodes: u32,
    /// Processes in each, at least 1.
    pub processes_per_node: u32,
    /// Host name of node 0, where the processes meet at [`crate::names::RENDEZVOUS_PORT`]; absent with one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rendezvous: Option<String>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            nodes: 1,
            processes_per_node: 1,
            rendezvous: None,
        }
    }
}

impl TrainerConfig {
    /// Folder of this job, `<outputUri>/<uid>`; holds one result and one folder with an artifact per attempt that came so
    /// far.
    #[must_use]
    pub fn job_uri(&self) -> Uri {
        self.output_uri.join(&self.job.uid)
    }

    /// Folder of the lineage: `HEAD` and the checkpoints of all attempts.
    #[must_use]
    pub fn lineage_uri(&self) -> Uri {
        self.checkpoint
            .uri
            .as_ref()
            .unwrap_or(&self.output_uri)
            .join(&self.job.uid)
    }

    /// Folder of this job's event files for TensorBoard, where they are asked for.
    #[must_use]
    pub fn tensor_board_uri(&self) -> Option<Uri> {
        let asked = self.tracking.as_ref()?.tensor_board.as_ref()?;
        Some(match &asked.uri {
            Some(uri) => uri.join(&format!("{}-{}", self.job.name, self.job.uid)),
            None => self.lineage_uri().join(TENSOR_BOARD_DIR),
        })
    }

    /// File of this attempt's [`TrainingResult`] in the job's folder. It counts once `HEAD` names it.
    #[must_use]
    pub fn result_path(&self) -> String {
        result_path(&self.job)
    }

    /// Where the results of trainings with this key are found.
    #[must_use]
    pub fn pointer_uri(&self, key: &Digest) -> Uri {
        self.output_uri.join(RESULTS_DIR).join(&format!("{}.json", key.hex()))
    }

    /// Folder of the artifact that this attempt writes.
    #[must_use]
    pub fn artifact_uri(&self) -> Uri {
        self.job_uri().join(&format!("attempt-{}", self.job.attempt))
    }
}

/// Folder under `output.uri` with one [`ResultPointer`] for each key.
pub const RESULTS_DIR: &str = "results";

/// `<outputUri>/results/<key>.json`: the result that a training came to. The key is a digest over all that determines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultPointer {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Uid of the job: the folder of its result under the output's.
    pub uid: String,
    /// File of the [`TrainingResult`] in that folder.
    pub path: String,
    /// Digest of that file.
    pub digest: Digest,
}

/// All that `flywheel-trainer verify` needs to know: reads an artifact, checks every digest, loads it and answers its evaluation
/// sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyConfig {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The artifact and the digest that it must have.
    pub artifact: ArtifactRef,
    /// How to reach the bucket.
    #[serde(default)]
    pub storage: StorageSettings,
    /// What is to lie beside the artifact once it is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<VersionReceipt>,
}

/// All that `flywheel-trainer prune` needs to know: removes what an artifact's manifest lists, its receipt and the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneConfig {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The artifact; where another one lies there by now, nothing is removed.
    pub artifact: ArtifactRef,
    /// How to reach the bucket.
    #[serde(default)]
    pub storage: StorageSettings,
}

/// All that `flywheel-trainer import` needs to know: looks for artifacts below a folder, or makes one of a folder in Hugging Face's
/// layout, and tells of each in a line of its log ([`crate::version::FoundLine`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportConfig {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The folder.
    pub uri: Uri,
    /// How to reach the bucket.
    #[serde(default)]
    pub storage: StorageSettings,
    /// The artifact that is to be made of the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub make: Option<MadeArtifact>,
}

/// An artifact that is made of a folder in Hugging Face's layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MadeArtifact {
    /// Name of the model, for the manifest.
    pub model: String,
    /// Folder that it is written to.
    pub to: Uri,
}

/// An artifact by place and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactRef {
    /// The folder that holds `manifest.json`.
    pub uri: Uri,
    /// Digest of `manifest.json`, which lists every file with length and sha256.
    pub digest: Digest,
}

/// How many rows the data set had and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetCounts {
    /// Rows read from the sources.
    pub rows: u64,
    /// Rows without text or label, dropped.
    pub empty: u64,
    /// Rows whose text was there before in the same set, dropped where `deduplicate` is on.
    pub duplicates: u64,
    /// Texts that stand with more than one label, in one set or in several (in each set the first is kept).
    pub conflicts: u64,
    /// Texts longer than `maxLength` tokens, cut.
    pub truncated: u64,
    /// Rows dropped from training because the golden set holds their text.
    pub golden_overlap: u64,
    /// Rows dropped from training because the newest set holds their text.
    pub newest_overlap: u64,
    /// Rows of the newest set left out: no training row has their label, or theirs are the only texts of a label.
    pub newest_left_out: u64,
    /// Size of the training set.
    pub train: u64,
    /// Size of the validation set.
    pub validation: u64,
    /// Size of the test set.
    pub test: u64,
    /// Size of the golden set.
    pub golden: u64,
    /// Size of the newest set.
    pub newest: u64,
    /// Number of labels in the training set.
    pub labels: u64,
    /// Number of labels in the validation set.
    pub validation_labels: u64,
    /// Number of labels in the test set.
    pub test_labels: u64,
    /// Number of labels in the golden set.
    pub golden_labels: u64,
    /// Number of labels in the newest set.
    pub newest_labels: u64,
    /// Training rows of the largest label.
    pub largest_label: u64,
    /// Training rows of the smallest label.
    pub smallest_label: u64,
    /// Labels with fewer training rows than `limits.minRowsPerLabel`, or 10 where that is not given.
    pub rare_labels: u64,
    /// Rows whose text stands in another set as well, nearly or exactly; pairs of sets without such are left out.
    pub near_duplicates: Vec<NearDuplicates>,
    /// Rows of the validation, test, golden and newest sets with so many alike texts in other sets that not each was compared:
    /// there may be this many more near-duplicates.
    pub uncompared: u64,
}

impl DatasetCounts {
    /// Rows of the validation, test, golden and newest sets that are near-duplicates of training rows.
    #[must_use]
    pub fn near_duplicates_of_train(&self) -> u64 {
        self.near_duplicates
            .iter()
            .filter(|pair| pair.of == SetName::Train)
            .map(|pair| pair.rows)
            .sum()
    }

    /// Rows of all sets.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.train + self.validation + self.test + self.golden + self.newest
    }

    /// Training rows of the largest label for each of the smallest.
    #[must_use]
    pub fn imbalance_ratio(&self) -> f64 {
        self.largest_label as f64 / self.smallest_label.max(1) as f64
    }

    /// Share of [`Self::kept`] that is cut, in percent.
    #[must_use]
    pub fn truncated_percent(&self) -> f64 {
        100.0 * self.truncated as f64 / self.kept().max(1) as f64
    }
}

/// Rows of one set whose text nearly stands in another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NearDuplicates {
    /// The set that the rows are of.
    pub set: SetName,
    /// The set that holds the like of them.
    pub of: SetName,
    /// How many there are.
    pub rows: u64,
    /// Of these, those whose very text stands there.
    pub identical: u64,
}

/// Two rows that a data check found, by place: texts are not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetExample {
    /// What is the matter with them.
    pub problem: DatasetProblem,
    /// Conflict: the row that was read first. Near-duplicate: the row of the earlier set (training, validation, test, golden, newest).
    pub first: RowPlace,
    /// The other.
    pub second: RowPlace,
}

/// What can be the matter with two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatasetProblem {
    /// The same text with two labels.
    Conflict,
    /// Nearly the same text in two sets.
    NearDuplicate,
}

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowPlace {
    /// The file.
    pub uri: Uri,
    /// Line (CSV, JSONL) or row (Parquet), from 1.
    pub line: u64,
}

impl std::fmt::Display for RowPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} line {}", self.uri, self.line)
    }
}

/// The end of a training. Committed by a swap of `HEAD` before the pod ends; a later attempt that finds it ends with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainingResult {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whose result this is.
    pub job: JobIdentity,
    /// What came out.
    pub artifact: ArtifactRef,
    /// Digest over the content of all sources: sha256 of one line `<set> <sha256 of the file>` per file, in order.
    pub dataset_digest: Digest,
    /// What became of the rows.
    pub counts: DatasetCounts,
    /// A few rows for each problem that the data checks found.
    #[serde(default)]
    pub examples: Vec<DatasetExample>,
    /// Final values on validation, test, golden and newest set, of the weights in the artifact.
    pub metrics: Vec<Metric>,
    /// One entry per epoch.
    pub epochs: Vec<EpochReport>,
    /// Epoch (from 1) whose weights were kept.
    pub best_epoch: u32,
    /// Labels, in the order of the confusion matrix.
    pub labels: Vec<String>,
    /// Test set: `confusion[truth][answer]` counts.
    pub confusion: Vec<Vec<u64>>,
    /// Optimiser steps done.
    pub steps: u64,
    /// Seconds from the first to the last step, evaluation included.
    pub train_seconds: f64,
    /// Digest over all that determined it; absent where it may not be used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Digest>,
}

impl TrainingResult {
    /// Its file in the job's folder. It counts once `HEAD` names it.
    #[must_use]
    pub fn path(&self) -> String {
        result_path(&self.job)
    }
}

fn result_path(job: &JobIdentity) -> String {
    format!("attempt-{}.result.json", job.attempt)
}

/// One epoch's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochReport {
    /// Counts from 1.
    pub epoch: u32,
    /// Mean loss over the epoch's steps.
    pub train_loss: f64,
    /// Cross-entropy on the validation set.
    pub validation_loss: f64,
    /// Share of right answers on the validation set.
    pub validation_accuracy: f64,
    /// Mean F1 over labels on the validation set.
    pub validation_macro_f1: f64,
}
