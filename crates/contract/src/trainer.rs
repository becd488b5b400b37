//! Configuration of the trainer image's programs, and the result of a training.

use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::hyperparameters::{Hyperparameters, Model};
use crate::scalar::{Device, Digest, Metric, Task, Uri};
use crate::storage::StorageSettings;

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
    /// Folder under which this job writes: `<outputUri>/<uid>/…`, never anything else.
    pub output_uri: Uri,
}

impl TrainerConfig {
    /// Folder of this job, `<outputUri>/<uid>`; holds `result.json` and one folder per attempt.
    #[must_use]
    pub fn job_uri(&self) -> Uri {
        self.output_uri.join(&self.job.uid)
    }

    /// Where [`TrainingResult`] is committed, once, by a conditional create.
    #[must_use]
    pub fn result_uri(&self) -> Uri {
        self.job_uri().join("result.json")
    }

    /// Folder of the artifact that this attempt writes.
    #[must_use]
    pub fn artifact_uri(&self) -> Uri {
        self.job_uri().join(&format!("attempt-{}", self.job.attempt))
    }
}

/// All that `flywheel-trainer verify` needs to know: reads an artifact and checks every digest, without loading it.
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
    /// Rows whose text was there before, dropped where `deduplicate` is on.
    pub duplicates: u64,
    /// Texts that stand with more than one label (the first is kept).
    pub conflicts: u64,
    /// Texts longer than `maxLength` tokens, cut.
    pub truncated: u64,
    /// Rows dropped from training because the golden set holds their text.
    pub golden_overlap: u64,
    /// Size of the training set.
    pub train: u64,
    /// Size of the validation set.
    pub validation: u64,
    /// Size of the test set.
    pub test: u64,
    /// Size of the golden set.
    pub golden: u64,
    /// Number of labels.
    pub labels: u64,
}

/// The end of a training, `result.json`. Committed before the pod ends; a later attempt that finds it ends with it.
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
    /// Final values on validation, test and golden set, of the weights in the artifact.
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
