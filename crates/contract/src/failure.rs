//! Why a training, verifying or serving pod failed, as a word that becomes a condition's reason.

use serde::{Deserialize, Serialize};

/// Who has to act, and whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureClass {
    /// The user's spec, data or files: trying again gives the same.
    User,
    /// Memory of the node or GPU: trying again gives the same unless something is changed.
    OutOfMemory,
    /// Node, network or storage: trying again may help.
    Infrastructure,
}

macro_rules! failure_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $class:ident),+ $(,)?) => {
        /// One word per way to fail. The text of each variant is the condition's reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FailureReason { $($(#[doc = $doc])+ $name),+ }

        impl FailureReason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            /// Each with what it says, for the reference.
            pub const DOCUMENTED: &'static [(Self, &'static str)] = &[$((Self::$name, concat!($($doc),+).trim_ascii_start())),+];

            /// Who has to act.
            #[must_use]
            pub fn class(self) -> FailureClass {
                match self { $(Self::$name => FailureClass::$class),+ }
            }

            /// The word itself.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

failure_reasons! {
    /// The configuration cannot be read or contradicts itself.
    ConfigInvalid => User,
    /// The certificate or key of `server.tls` cannot be read, cannot be used, or one is not the other's.
    CertificateInvalid => User,
    /// A source of the data set does not exist.
    DatasetNotFound => User,
    /// A source has no rows, or none is left after cleaning, or a split is empty.
    DatasetEmpty => User,
    /// A source is no file of its format: broken quoting, broken JSON, broken UTF-8.
    DatasetInvalid => User,
    /// The text or label column is missing.
    ColumnMissing => User,
    /// Fewer than two labels to train on.
    SingleClass => User,
    /// A label stands in the validation, test or golden set only.
    LabelNotInTrain => User,
    /// A data check found more than `dataset.limits` allows.
    DatasetCheckFailed => User,
    /// The pretrained folder or a file of it does not exist.
    PretrainedNotFound => User,
    /// `config.json` cannot be used: unknown architecture, bad bounds.
    PretrainedInvalid => User,
    /// The pretrained folder has no `tokenizer.json` or `vocab.txt`.
    TokenizerMissing => User,
    /// The tokenizer cannot be used with the model.
    TokenizerInvalid => User,
    /// `model.safetensors` is cut off, lies about its tensors, or lacks some.
    WeightsInvalid => User,
    /// The loss became NaN or infinite.
    LossNotFinite => User,
    /// The storage refused the credentials.
    StorageForbidden => User,
    /// The URI cannot be used: unknown scheme, missing bucket, bad CA bundle.
    StorageInvalid => User,
    /// The place for the artifact already holds something that is not ours.
    OutputConflict => User,
    /// The saved state of this job is of other hyperparameters, data or pretrained network; it is kept, and nothing is
    /// trained.
    TrainingChanged => User,
    /// The artifact or a file that its manifest names does not exist.
    ArtifactNotFound => User,
    /// The storage does not refuse a conditional write whose condition does not hold, so checkpoints cannot be guarded.
    StoreLacksConditionalPut => User,
    /// The digest or length of a file of the artifact is not the one recorded.
    DigestMismatch => User,
    /// The manifest cannot be read, names a file twice, or names a file outside the artifact.
    ManifestInvalid => User,
    /// The model gives too many texts of its evaluation sample another label than the sample records.
    AnswersDiffer => User,
    /// In the precision asked for, the model gives too many texts another label than in single precision; or artifact or device
    /// are not made for it.
    PrecisionUnfit => User,
    /// The server's process ended while it loaded this version beside the one that answers; that pod does not try again.
    LoadCrashed => User,
    /// The server's process ended while it computed with this version beside the stable one; that pod answers with the stable
    /// one instead.
    ExecutionCrashed => User,
    /// The class says `device: Cuda` and no GPU can be used.
    GpuUnavailable => Infrastructure,
    /// Memory ran out.
    OutOfMemory => OutOfMemory,
    /// The storage did not answer in time, again and again.
    StorageUnavailable => Infrastructure,
    /// A later attempt, or another pod of the same one, has taken the checkpoints over; this one wrote nothing since.
    Fenced => Infrastructure,
    /// HEAD of the checkpoints was damaged or removed while the attempt ran, so that it could not see whether it may still write; the
    /// next attempt takes the checkpoints over.
    HeadDamaged => Infrastructure,
    /// Another process of the same attempt ended or cannot be reached.
    PeerLost => Infrastructure,
    /// The pod was told to end before it was done.
    Interrupted => Infrastructure,
    /// A fault in Flywheel or libtorch.
    InternalError => Infrastructure,
}

/// A classified failure with what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The word.
    pub reason: FailureReason,
    /// One or two sentences for the user: what is wrong and what to do. No texts of the data set, no secrets.
    pub message: String,
}

impl Failure {
    /// A failure.
    #[must_use]
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

impl std::error::Error for Failure {}
