//! What can go wrong between files, tensors and training, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use flywheel_contract::failure::{Failure, FailureReason};
use tch::TchError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate. Every message says what was found, what was wanted and, where it helps, what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `Cuda` is asked for and cannot be had. There is no silent fallback to the CPU.
    #[error("device Cuda is set, but {reason}; use the image with CUDA on a node with a GPU, or set device Cpu")]
    GpuUnavailable {
        /// What is missing.
        reason: String,
    },
    /// The loaded libtorch is not the one this program was built for.
    #[error("{0}; use the libtorch folder of this release's image")]
    LibraryMismatch(String),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `copy`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `config.json` cannot be used.
    #[error("{}: {why}", path.display())]
    Config {
        /// The file, or the name of the object when it never was a file.
        path: PathBuf,
        /// Field, value, and what is allowed.
        why: String,
    },
    /// The file ends before a tensor does.
    #[error(
        "{}: tensor {tensor} ends at byte {need}, the file at {have}; fetch the file again",
        path.display()
    )]
    WeightsTruncated {
        /// The safetensors file.
        path: PathBuf,
        /// First tensor that is cut, or `header`.
        tensor: String,
        /// Bytes that the header promises.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The safetensors header contradicts itself, the file, or the configuration.
    #[error("{}: {tensor}: {why}", path.display())]
    WeightsInvalid {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor's name, or `header`.
        tensor: String,
        /// What contradicts what.
        why: String,
    },
    /// Tensors that the architecture needs are not in the file.
    #[error("{} lacks {} of the {wanted} tensors that config.json asks for: {}", path.display(), names.len(), listed(names))]
    WeightsMissing {
        /// The safetensors file.
        path: PathBuf,
        /// Names in full.
        names: Vec<String>,
        /// How many tensors the architecture has.
        wanted: usize,
    },
    /// The pretrained folder has no tokenizer.
    #[error("{} holds neither tokenizer.json nor vocab.txt; add the tokenizer files of the model", .0.display())]
    TokenizerMissing(PathBuf),
    /// An artifact without the ranges that numbers of 8 bits need.
    #[error(
        "{} is missing, so the model cannot compute in Int8; train it again with this release, or add the file with \
         flywheel-trainer calibrate",
        .0.display()
    )]
    NotCalibrated(PathBuf),
    /// A number format that the device does not compute in.
    #[error("{0}")]
    PrecisionUnfit(&'static str),
    /// The tokenizer makes ids that the embedding does not have.
    #[error(
        "the tokenizer has {tokenizer} tokens, vocab_size of config.json is {config}; take both from the same model"
    )]
    TokenizerMismatch {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// `vocab_size`.
        config: i64,
    },
    /// A row cannot be fed to the network.
    #[error("row {row}: {why}")]
    Row {
        /// Place in the batch or set.
        row: usize,
        /// Bound and value.
        why: String,
    },
    /// A setting is outside its bounds.
    #[error("{0}")]
    Setting(String),
    /// A set that training needs has no rows.
    #[error("the {0} set has no rows")]
    EmptySet(&'static str),
    /// The loss or its gradients became infinite or not a number.
    #[error("the {what} is {value} at step {step}; lower the learning rate or raise warmupRatio")]
    LossNotFinite {
        /// Optimiser step, from 1.
        step: u64,
        /// What is not finite: the loss, or the norm of its gradients.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A saved state is not one of this training.
    #[error("the saved state cannot be gone on from: {0}")]
    State(String),
    /// A saved state is whole, and of another training.
    #[error("the saved state is of another training: {0}")]
    OtherTraining(String),
    /// Something between the processes that train together failed.
    #[error("the processes that train together lost each other: {0}")]
    Peers(String),
    /// Who watches wanted an end.
    #[error("it was stopped before its end")]
    Interrupted,
    /// Logits and labels that do not fit together.
    #[error(transparent)]
    Evaluation(#[from] crate::evaluate::EvaluationError),
    /// The device has no memory left.
    #[error("{0}; set microBatchSize or activationCheckpointing, lower maxLength, or use a larger device")]
    OutOfMemory(String),
    /// libtorch refused a call that this crate thought right.
    #[error("libtorch: {0}")]
    Torch(String),
}

impl Error {
    /// The word that becomes a condition's reason; the message goes beside it.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::GpuUnavailable { .. } => FailureReason::GpuUnavailable,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => FailureReason::PretrainedNotFound,
            Self::Config { .. } => FailureReason::PretrainedInvalid,
            Self::WeightsTruncated { .. } | Self::WeightsInvalid { .. } | Self::WeightsMissing { .. } => {
                FailureReason::WeightsInvalid
            }
            Self::TokenizerMissing(_) => FailureReason::TokenizerMissing,
            Self::TokenizerMismatch { .. } => FailureReason::TokenizerInvalid,
            Self::NotCalibrated(_) | Self::PrecisionUnfit(_) => FailureReason::PrecisionUnfit,
            Self::Setting(_) => FailureReason::ConfigInvalid,
            Self::EmptySet(_) => FailureReason::DatasetEmpty,
            Self::LossNotFinite { .. } => FailureReason::LossNotFinite,
            Self::OtherTraining(_) => FailureReason::TrainingChanged,
            Self::Peers(_) => FailureReason::PeerLost,
            Self::Interrupted => FailureReason::Interrupted,
            Self::OutOfMemory(_) => FailureReason::OutOfMemory,
            Self::LibraryMismatch(_)
            | Self::File { .. }
            | Self::Row { .. }
            | Self::State(_)
            | Self::Evaluation(_)
            | Self::Torch(_) => FailureReason::InternalError,
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { action, path, source }
    }

    fn torch(text: String) -> Self {
        // libtorch has no code for it: CUDA's allocator and the CPU's say it in these words.
        let memory = [
            "out of memory",
            "not enough memory",
            "DefaultCPUAllocator: can't allocate",
        ];
        if memory.iter().any(|m| text.contains(m)) {
            Self::OutOfMemory(text)
        } else {
            Self::Torch(text)
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Self::torch(flywheel_torch_shim::brief(&error))
    }
}

impl From<flywheel_torch_shim::Error> for Error {
    fn from(error: flywheel_torch_shim::Error) -> Self {
        Self::torch(error.to_string())
    }
}

/// Names in a message that must stay readable: the first twenty.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_other_refusals() {
        let oom = Error::torch("CUDA out of memory. Tried to allocate 2.00 GiB".into());
        assert_eq!(oom.reason(), FailureReason::OutOfMemory);
        assert_eq!(
            Error::torch("size mismatch".into()).reason(),
            FailureReason::InternalError
        );
    }

    #[test]
    fn many_names_are_cut() {
        let names: Vec<String> = (0..25).map(|i| format!("t{i}")).collect();
        assert!(listed(&names).ends_with("t19 and 5 more"));
    }
}
