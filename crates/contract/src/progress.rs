//! What the trainer tells of its way, `GET /progress`.

use serde::{Deserialize, Serialize};

use crate::scalar::Precision;
use crate::trainer::DatasetCounts;

/// Phase of a training pod. Each has its own time limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Configuration and device are checked.
    Starting,
    /// Data and pretrained weights are read.
    Downloading,
    /// Rows are cleaned, split and tokenised.
    Preparing,
    /// Optimiser steps.
    Training,
    /// Metrics on validation, test, golden or newest set.
    Evaluating,
    /// The last checkpoint is written before the pod ends.
    Checkpointing,
    /// The artifact is written.
    Uploading,
    /// The result is committed.
    Done,
}

/// Body of `/progress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Attempt that speaks.
    pub attempt: u32,
    /// What it is doing.
    pub phase: Phase,
    /// Seconds since the phase began.
    pub phase_seconds: f64,
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps in all; 0 while unknown.
    pub total_steps: u64,
    /// Epoch, from 1; 0 before the first.
    pub epoch: u32,
    /// Epochs in all.
    pub total_epochs: u32,
    /// Smoothed loss; absent before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Present learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Examples per second, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples_per_second: Option<f64>,
    /// Seconds to the end at the present rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// Number format that is computed in; absent before it is chosen, never `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Accuracy of the last validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// Seconds since the last sign of work: a batch computed, bytes received or sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<f64>,
    /// Median time of the last passes; a step has one for each of its micro-batches. Absent before there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_pass_seconds: Option<f64>,
    /// Step of the checkpoint that this attempt went on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<u64>,
    /// How the saving of the state goes.
    #[serde(default)]
    pub checkpoint: CheckpointProgress,
    /// What the data checks found; absent before they are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetCounts>,
    /// Norm of all gradients together at the last step, before they are clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// The last evaluations, of earlier attempts too, in order; at most [`EVALUATIONS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<EpochEvaluation>,
    /// How the sending of figures to others goes.
    #[serde(default, skip_serializing_if = "TrackingProgress::is_empty")]
    pub tracking: TrackingProgress,
}

/// Most evaluations that are told.
pub const EVALUATIONS_MAX: usize = 20;

/// The figures of an epoch, with six decimals; one that is no finite number is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EpochEvaluation {
    /// Counts from 1.
    pub epoch: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Mean loss over the epoch's steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Cross-entropy on the validation set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of right answers on the validation set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean F1 over labels on the validation set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    /// When the evaluation ended, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
}

impl EpochEvaluation {
    /// A figure as it is told.
    #[must_use]
    pub fn figure(value: f64) -> Option<f64> {
        value.is_finite().then(|| (value * 1e6).round() / 1e6)
    }
}

/// How the sending of figures to others goes; absent where it was not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrackingProgress {
    /// Event files for TensorBoard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_board: Option<SinkProgress>,
    /// The run on the MLflow server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<SinkProgress>,
}

impl TrackingProgress {
    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One place that figures go to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SinkProgress {
    /// Where they are to be seen: a folder, or the page of a run.
    pub uri: String,
    /// Points that were thrown away.
    pub dropped_points: u64,
    /// What is wrong at present, for people; no secrets, and nothing that a server said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How the saving of the state goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckpointProgress {
    /// Step of the newest committed checkpoint, of whichever attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Seconds since this attempt's last commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Writes that failed since the last one that did not.
    pub failures: u32,
    /// Checkpoints that were found broken and passed over when this attempt began.
    pub invalid: u32,
    /// Whether `HEAD` was damaged or missing when this attempt took it over, so that the checkpoints were found without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub head_damaged: bool,
    /// The last problem, for people; no secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
