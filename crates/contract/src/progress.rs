//! What the trainer tells of its way, `GET /progress`.

use serde::{Deserialize, Serialize};

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
    /// Metrics on validation, test or golden set.
    Evaluating,
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
    /// Accuracy of the last validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
}
