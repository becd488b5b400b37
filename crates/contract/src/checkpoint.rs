//! Checkpoints of a training, and the one object that says which of them hold and who may write.
//!
//! A *lineage* is the folder `<checkpoint.uri>/<job uid>/`. Its `HEAD` names the attempt that may write, the checkpoints
//! that are kept and, at the end, the result. Every change of it is a compare-and-swap, so a writer that was replaced
//! commits nothing, however late it wakes up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::ManifestFile;
use crate::scalar::{Digest, Uri};

/// Name of [`Head`] in the lineage's folder. On file systems, which know no compare-and-swap, it is a folder of
/// generations, each created exclusively; the highest holds.
pub const HEAD_FILE: &str = "HEAD";
/// Folder of the checkpoints, in the lineage's folder.
pub const CHECKPOINTS_DIR: &str = "checkpoints";
/// Most bytes of a [`Head`] or a [`CheckpointManifest`] that are read.
pub const HEAD_MAX_BYTES: u64 = 256 * 1024;
/// Most checkpoints that may be kept.
pub const KEEP_MAX: i32 = 20;

/// How often a training saves its state, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    /// Folder under which the job keeps its checkpoints, in a folder of its own that is named by its uid; `output.uri`
    /// where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = Uri::WRITABLE))]
    pub uri: Option<Uri>,
    /// Seconds between checkpoints. One is written beside the training, which stops only for the copy; a failure of the
    /// infrastructure loses at most this much work and what one write takes.
    #[schemars(range(min = 1, max = 86400))]
    pub interval_seconds: i32,
    /// Checkpoints that are kept.
    #[schemars(range(min = 1, max = KEEP_MAX))]
    pub keep: i32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            uri: None,
            interval_seconds: 60,
            keep: 3,
        }
    }
}

/// Content of `HEAD`. No field may be missing or unknown: a damaged one must not pass for one without checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whose lineage this is.
    pub job_uid: String,
    /// The attempt that may write.
    pub attempt: u32,
    /// Random name of the process that may write: a pod that is replaced within an attempt is fenced, too.
    pub writer: String,
    /// Grows with each swap.
    pub sequence: u64,
    /// The checkpoints that are kept, newest first.
    pub checkpoints: Vec<CheckpointRef>,
    /// The result, once there is one; nothing is committed after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultRef>,
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointRef {
    /// Its folder under [`CHECKPOINTS_DIR`].
    pub name: String,
    /// Optimiser steps done.
    pub step: u64,
    /// Digest of its `manifest.json`, so that no other manifest passes for it.
    pub digest: Digest,
}

/// A committed result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultRef {
    /// File of [`crate::trainer::TrainingResult`], relative to the job's folder under `output.uri`.
    pub path: String,
    /// Its digest.
    pub digest: Digest,
}

/// `manifest.json` of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointManifest {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whose it is.
    pub job_uid: String,
    /// Its writer's attempt.
    pub attempt: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Digest of the data set that the steps were taken on; state of other data is not gone on with.
    pub dataset_digest: Digest,
    /// Its files in its folder, with length and digest.
    pub files: Vec<ManifestFile>,
    /// Random, so that no two manifests are alike: the name of the folder holds the begin of this file's digest.
    #[serde(default)]
    pub nonce: u64,
}
