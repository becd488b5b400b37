//! What a pod leaves behind in its container's status: at most 4 KiB, scalars only.

use std::fs::OpenOptions;
use std::io::{Error, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::names::TERMINATION_MAX_BYTES;
use crate::progress::{EpochEvaluation, TrackingProgress};
use crate::scalar::{Digest, Metric};
use crate::trainer::{ArtifactRef, DatasetCounts};

/// The message, as JSON in the termination log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminationMessage {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// How far a training was; absent from other programs and before the checkpoint store was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// What a training's data checks found; absent before they are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetCounts>,
    /// A training's last evaluations, as in [`crate::progress::Progress::evaluations`]; the oldest are left out where there
    /// is no room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<EpochEvaluation>,
    /// How the sending of a training's figures to others ended.
    #[serde(default, skip_serializing_if = "TrackingProgress::is_empty")]
    pub tracking: TrackingProgress,
}

/// How far a training was when its pod ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Position {
    /// Optimiser steps done.
    pub step: u64,
    /// Step that this attempt began with.
    pub resumed_from_step: u64,
    /// Step of the newest committed checkpoint; 0 without one.
    pub checkpoint_step: u64,
    /// Attempt that `HEAD` names: higher than the pod's own where it was fenced.
    pub head_attempt: u32,
}

impl Position {
    /// Names of the fields, as [`Position::in_log`] reads them.
    pub const NAMES: [&str; 4] = ["step", "resumedFromStep", "checkpointStep", "headAttempt"];

    /// How far a training was that crashed without a message, from the end of its log: the line with the message `crashed`
    /// is the last that it writes. `None` also where it had not reached the checkpoint store.
    #[must_use]
    pub fn in_log(log: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            message: String,
            position: Position,
        }
        let read = |line: &str| serde_json::from_str::<Line>(line.trim()).ok();
        let line = log.lines().rev().find_map(read)?;
        (line.message == "crashed" && line.position.head_attempt > 0).then_some(line.position)
    }
}

/// How a pod's program ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A training is complete and its result committed.
    Trained(Trained),
    /// It took part in a training to the end; the pod with completion index 0 tells the result.
    Assisted,
    /// An artifact is what its digest says.
    Verified(Verified),
    /// A folder was looked through for artifacts.
    Imported(Imported),
    /// An artifact was removed.
    Pruned(Pruned),
    /// It failed.
    Failed(Failure),
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Files that its manifest listed; 0 where it was gone already.
    pub files: u32,
}

/// What was found; the artifacts themselves are in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Artifacts told of.
    pub found: u32,
    /// Folders with a manifest or a receipt that cannot be used.
    pub unusable: u32,
    /// Whether there is more than is looked at.
    pub more: bool,
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
    /// Whether it is the result of an earlier job with the same spec, data and pretrained files: this one trained nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reused: bool,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// Files that the manifest lists, all present and right.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
    /// How the model answered its evaluation sample; absent where the artifact has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduced: Option<Reproduced>,
    /// What became of the receipt; absent where none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptFate>,
}

/// A model's answers to its evaluation sample beside those that the sample records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reproduced {
    /// Texts of the sample.
    pub texts: u32,
    /// Of these, those with the label that is recorded.
    pub same: u32,
    /// Those with the true label.
    pub right: u32,
    /// Those for which the recorded answer is the true label.
    pub recorded_right: u32,
}

/// What became of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReceiptFate {
    /// It lies beside the artifact.
    Kept,
    /// Another version's lies there already, and stays.
    OfAnother,
    /// It could not be written, with the reason. The version is as good without.
    NotWritten(String),
}

impl TerminationMessage {
    /// A message of this version.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Self {
            schema_version: crate::SCHEMA_VERSION,
            outcome,
            position: None,
            dataset: None,
            evaluations: Vec::new(),
            tracking: TrackingProgress::default(),
        }
    }

    /// The JSON, within [`TERMINATION_MAX_BYTES`]: evaluations are left out, oldest first, then what is said of tracking and of the
    /// data set, then a failure's text is cut, then metrics are left out from the end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut message = self.clone();
        loop {
            let text = serde_json::to_string(&message).unwrap_or_default();
            if text.len() <= TERMINATION_MAX_BYTES {
                return text;
            }
            if !message.evaluations.is_empty() {
                message.evaluations.remove(0);
                continue;
            }
            if !message.tracking.is_empty() {
                message.tracking = TrackingProgress::default();
                continue;
            }
            if message.dataset.take().is_some() {
                continue;
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

/// Where a program leaves its message.
#[derive(Clone, Debug)]
pub struct TerminationLog {
    /// A file that was asked for; made where it is not there.
    pub asked: Option<PathBuf>,
    /// The kubelet's file ([`crate::names::TERMINATION_LOG`]); used only where it is there, as it is in pods.
    pub usual: Option<PathBuf>,
}

impl TerminationLog {
    /// Writes the message; the last one written holds. Without a file to write to nothing is done.
    ///
    /// # Errors
    /// The system's, with the path, for the caller to log: what the message says is in the log as well.
    pub fn write(&self, message: &TerminationMessage) -> Result<(), Error> {
        let (path, create) = match (&self.asked, &self.usual) {
            (Some(path), _) => (path, true),
            (None, Some(path)) if path.exists() => (path, false),
            _ => return Ok(()),
        };
        OpenOptions::new()
            .write(true)
            .create(create)
            .truncate(true)
            .open(path)
            .and_then(|mut file| file.write_all(message.to_json().as_bytes()))
            .map_err(|e| Error::new(e.kind(), format!("{}: {e}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureReason;

    #[test]
    fn a_crash_tells_its_position_in_the_last_line_that_says_so() {
        let names = Position::NAMES;
        let line = |step: u64, attempt: u32| {
            format!(
                r#"{{"level":"ERROR","message":"crashed","signal":11,"position":{{"{}":{step},"{}":20,"{}":40,"{}":{attempt}}}}}"#,
                names[0], names[1], names[2], names[3]
            )
        };
        let position = Position {
            step: 47,
            resumed_from_step: 20,
            checkpoint_step: 40,
            head_attempt: 2,
        };
        for (log, expected) in [
            (String::new(), None),
            ("terminate called\n".to_owned(), None),
            (line(47, 2), Some(position)),
            (
                format!("{{\"message\":\"a\"}}\n{}\nAborted\n", line(47, 2)),
                Some(position),
            ),
            (format!("half a line {}", line(47, 2)), None),
            // It had not come to its checkpoints.
            (line(0, 0), None),
        ] {
            assert_eq!(Position::in_log(&log), expected, "{log}");
        }
    }

    #[test]
    fn a_long_failure_is_cut_to_what_the_kubelet_keeps_and_stays_readable() {
        for text in ["x".repeat(9000), "é\"\n".repeat(4000)] {
            let message = TerminationMessage {
                dataset: Some(DatasetCounts::default()),
                ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::DatasetInvalid, text)))
            };
            let json = message.to_json();
            assert!(json.len() <= TERMINATION_MAX_BYTES, "{}", json.len());
            assert!(
                !json.contains("duplicates"),
                "the counts give way to the failure's text"
            );
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
    fn evaluations_give_way_oldest_first() {
        let evaluations: Vec<EpochEvaluation> = (1..=20)
            .map(|epoch| EpochEvaluation {
                epoch,
                step: 123_456 * u64::from(epoch),
                train_loss: Some(0.123_456),
                validation_loss: Some(0.234_567),
                accuracy: Some(0.945_678),
                macro_f1: Some(0.936_789),
                time: Some(1_764_000_000),
            })
            .collect();
        let told = |text: &str| {
            let message = TerminationMessage {
                evaluations: evaluations.clone(),
                dataset: Some(DatasetCounts::default()),
                ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::DatasetInvalid, text)))
            };
            let json = message.to_json();
            assert!(json.len() <= TERMINATION_MAX_BYTES, "{}", json.len());
            TerminationMessage::parse(&json).expect("readable")
        };
        assert_eq!(
            told("short").evaluations,
            evaluations,
            "all find room beside the counts"
        );
        let crowded = told(&"x".repeat(2000));
        let epochs: Vec<u32> = crowded.evaluations.iter().map(|e| e.epoch).collect();
        assert!(
            !epochs.is_empty() && epochs.len() < 20 && epochs.ends_with(&[19, 20]),
            "{epochs:?}"
        );
        assert!(crowded.dataset.is_some());
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
            reused: false,
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
    fn the_usual_file_is_never_made_but_one_that_was_asked_for_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let message = TerminationMessage {
            position: Some(Position {
                step: 7,
                ..Position::default()
            }),
            ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::DigestMismatch, "x")))
        };
        let (usual, asked) = (dir.path().join("usual"), dir.path().join("asked"));
        let log = |asked: Option<&PathBuf>| TerminationLog {
            asked: asked.cloned(),
            usual: Some(usual.clone()),
        };
        log(None).write(&message).expect("nothing to do");
        assert!(!usual.exists());
        std::fs::write(
            &usual,
            "something longer than the message that will be there ".repeat(9),
        )
        .expect("written");
        log(None).write(&message).expect("written");
        log(Some(&asked)).write(&message).expect("written");
        for path in [&usual, &asked] {
            let text = std::fs::read_to_string(path).expect("read");
            assert_eq!(TerminationMessage::parse(&text), Some(message.clone()));
        }
        let nowhere = dir.path().join("none/asked");
        let error = log(Some(&nowhere)).write(&message).expect_err("no folder");
        assert!(error.to_string().contains("none/asked"), "{error}");
    }

    #[test]
    fn other_text_is_no_message() {
        assert_eq!(TerminationMessage::parse("panicked at src/main.rs"), None);
    }
}
