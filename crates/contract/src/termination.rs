//! What a pod leaves behind in its container's status: at most 4 KiB, scalars only.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::names::TERMINATION_MAX_BYTES;
use crate::scalar::{Digest, Metric};
use crate::trainer::ArtifactRef;

/// The message, as JSON in the termination log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminationMessage {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a pod's program ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A training is complete and its result committed.
    Trained(Trained),
    /// An artifact is what its digest says.
    Verified(Verified),
    /// It failed.
    Failed(Failure),
}

/// The scalars of a training's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trained {
    /// What came out.
    pub artifact: ArtifactRef,
    /// Digest over the content of all sources: sha256 of one line `<set> <sha256 of the file>` per file, in order.
    pub dataset_digest: Digest,
    /// Final metrics.
    pub metrics: Vec<Metric>,
    /// Optimiser steps done.
    pub steps: u64,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// Files that the manifest lists, all present and right.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl TerminationMessage {
    /// A message of this version.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Self {
            schema_version: crate::SCHEMA_VERSION,
            outcome,
        }
    }

    /// The JSON, within [`TERMINATION_MAX_BYTES`]: a failure's text is cut, then metrics are left out from the end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut message = self.clone();
        loop {
            let text = serde_json::to_string(&message).unwrap_or_default();
            if text.len() <= TERMINATION_MAX_BYTES {
                return text;
            }
            let over = text.len() - TERMINATION_MAX_BYTES;
            match &mut message.outcome {
                Outcome::Failed(failure) if !failure.message.is_empty() => {
                    // Escaped characters count more than once, so what is over may exceed the text: never cut more than half at once.
                    let length = failure.message.len();
                    let keep = length.saturating_sub(over).max(length / 2);
                    let cut = (0..=keep)
                        .rev()
                        .find(|i| failure.message.is_char_boundary(*i))
                        .unwrap_or(0);
                    failure.message.truncate(cut);
                }
                Outcome::Trained(trained) if !trained.metrics.is_empty() => {
                    trained.metrics.truncate(trained.metrics.len() - 1)
                }
                _ => return text,
            }
        }
    }

    /// Reads a message; `None` where the text is something else (the end of a log, say).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureReason;

    #[test]
    fn a_long_failure_is_cut_to_what_the_kubelet_keeps_and_stays_readable() {
        for text in ["x".repeat(9000), "é\"\n".repeat(4000)] {
            let json =
                TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::DatasetInvalid, text))).to_json();
            assert!(json.len() <= TERMINATION_MAX_BYTES, "{}", json.len());
            let Some(TerminationMessage {
                outcome: Outcome::Failed(f),
                ..
            }) = TerminationMessage::parse(&json)
            else {
                panic!("unreadable: {json}");
            };
            assert_eq!(f.reason, FailureReason::DatasetInvalid);
            assert!(f.message.len() > 1000);
        }
    }

    #[test]
    fn too_many_metrics_are_left_out_from_the_end() {
        let metrics = (0..200)
            .map(|i| Metric::new(format!("test/m{i}"), f64::from(i)))
            .collect();
        let trained = Trained {
            artifact: ArtifactRef {
                uri: "s3://b/k".into(),
                digest: Digest::sha256(&"0".repeat(64)),
            },
            dataset_digest: Digest::sha256(&"1".repeat(64)),
            metrics,
            steps: 1,
        };
        let json = TerminationMessage::new(Outcome::Trained(trained)).to_json();
        assert!(json.len() <= TERMINATION_MAX_BYTES);
        let Some(TerminationMessage {
            outcome: Outcome::Trained(t),
            ..
        }) = TerminationMessage::parse(&json)
        else {
            panic!("unreadable");
        };
        assert_eq!(t.metrics.first().map(|m| m.name.as_str()), Some("test/m0"));
    }

    #[test]
    fn other_text_is_no_message() {
        assert_eq!(TerminationMessage::parse("panicked at src/main.rs"), None);
    }
}
