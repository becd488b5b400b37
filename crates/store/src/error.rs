//! How the storage can fail, and the word that a pod ends with.

use std::time::Duration;

use flywheel_contract::failure::{Failure, FailureReason};

use crate::client::{Access, Location};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What an operation was for; the same error means different things to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A source of the data set.
    Dataset,
    /// The pretrained folder.
    Pretrained,
    /// An artifact that is there already.
    Artifact,
    /// Writing an artifact, a checkpoint or a result.
    Output,
}

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URI, the settings or the request cannot work.
    #[error("{uri}: {problem}")]
    Invalid {
        /// Where.
        uri: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The storage refused the credentials.
    #[error("{uri}: the storage refused access ({problem}). {hint}")]
    Forbidden {
        /// Where.
        uri: String,
        /// Its words, shortened.
        problem: String,
        /// What to check.
        hint: &'static str,
    },
    /// There is nothing at the URI.
    #[error("{uri} does not exist; check the URI")]
    NotFound {
        /// Where.
        uri: String,
    },
    /// More bytes than will be read.
    #[error("{uri} has {} bytes, more than {max}, the most that is read; split it", size.map_or_else(|| "too many".to_owned(), |s| s.to_string()))]
    TooLarge {
        /// Where.
        uri: String,
        /// Its size, where the storage told it.
        size: Option<u64>,
        /// The bound, in bytes.
        max: u64,
    },
    /// No answer in time, again and again.
    #[error(
        "{uri}: the storage did not answer well within {} s (tries: {tries} in {:.1} s; last: {problem}). Check that it runs and can be reached from the pod{hint}",
        seconds(*limit), waited.as_secs_f64()
    )]
    Unavailable {
        /// Where.
        uri: String,
        /// The most that all tries together may take.
        limit: Duration,
        /// What they took: where the next one would begin after the limit, it is not made.
        waited: Duration,
        /// Tries made.
        tries: u32,
        /// The last failure.
        problem: String,
        /// More to check, or empty.
        hint: &'static str,
    },
    /// No room is left.
    #[error(
        "{uri}: the storage is full ({problem}). Make room or give it more; of checkpoints, `checkpoint.keep` says how many stay"
    )]
    Full {
        /// Where.
        uri: String,
        /// Its words.
        problem: String,
    },
    /// Something else is there already.
    #[error(
        "{uri} already holds something else, which is neither read nor overwritten; choose another output URI or move it away"
    )]
    Conflict {
        /// Where.
        uri: String,
    },
    /// Content or length is not the one recorded.
    #[error(
        "{uri}: {problem}. The artifact was changed or damaged after it was written; use another version or train again"
    )]
    Digest {
        /// Where.
        uri: String,
        /// Which of the two, with both values.
        problem: String,
    },
    /// The manifest cannot be used.
    #[error("{uri} is no manifest that can be used: {problem}. Train again, or write the artifact again")]
    Manifest {
        /// Where.
        uri: String,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint that is not what its `HEAD` and its manifest say. An older one can be used.
    #[error("{uri}: the checkpoint cannot be used: {problem}. An older one is used; check the storage if this repeats")]
    Checkpoint {
        /// Its folder.
        uri: String,
        /// What is wrong.
        problem: String,
    },
    /// `HEAD` is not one of this job, or cannot be read and nothing shows that it is.
    #[error(
        "{uri} is no HEAD of this job's checkpoints: {problem}. It is neither used nor overwritten, and this job is not tried again. Look at what lies there; then move it away or choose another `checkpoint.uri` (or output URI), and apply the job anew"
    )]
    Head {
        /// Where.
        uri: String,
        /// What is wrong.
        problem: String,
    },
    /// `HEAD` became unreadable while this writer held the lineage.
    #[error(
        "{uri} was damaged or removed while this attempt ran ({problem}), so it cannot be seen whether this pod may still write, and it writes nothing more. The next attempt takes the checkpoints over and goes on from the newest one that is whole; see what changes files there"
    )]
    HeadDamaged {
        /// Where.
        uri: String,
        /// What is wrong.
        problem: String,
    },
    /// Another writer holds the lineage.
    #[error(
        "{uri}: attempt {attempt}, in another pod, has taken the checkpoints over, so this pod writes nothing more. Nothing is lost: that attempt goes on from the newest checkpoint"
    )]
    Fenced {
        /// The lineage.
        uri: String,
        /// The attempt that `HEAD` names.
        attempt: u32,
    },
    /// A write whose condition does not hold is not refused.
    #[error(
        "{uri}: the storage has no conditional writes ({problem}), so writers could not be kept apart and results could be overwritten. Use one that honours If-None-Match and If-Match, as Amazon S3 and MinIO do, or a file system with hard links"
    )]
    LacksConditionalPut {
        /// Where it was tried.
        uri: String,
        /// What it did.
        problem: String,
    },
    /// The local disk.
    #[error("cannot {action} {path} on the local disk: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The word for it, given what the operation was for.
    #[must_use]
    pub fn reason(&self, purpose: Purpose) -> FailureReason {
        match self {
            Self::Invalid { .. } => FailureReason::StorageInvalid,
            Self::Forbidden { .. } => FailureReason::StorageForbidden,
            Self::NotFound { .. } => match purpose {
                Purpose::Dataset => FailureReason::DatasetNotFound,
                Purpose::Pretrained => FailureReason::PretrainedNotFound,
                Purpose::Artifact => FailureReason::ArtifactNotFound,
                Purpose::Output => FailureReason::StorageInvalid,
            },
            Self::TooLarge { .. } => match purpose {
                Purpose::Dataset => FailureReason::DatasetInvalid,
                Purpose::Pretrained => FailureReason::PretrainedInvalid,
                Purpose::Artifact | Purpose::Output => FailureReason::ManifestInvalid,
            },
            Self::Unavailable { .. } | Self::Full { .. } => FailureReason::StorageUnavailable,
            Self::Conflict { .. } | Self::Head { .. } => FailureReason::OutputConflict,
            Self::Digest { .. } | Self::Checkpoint { .. } => FailureReason::DigestMismatch,
            Self::HeadDamaged { .. } => FailureReason::HeadDamaged,
            Self::Fenced { .. } => FailureReason::Fenced,
            Self::LacksConditionalPut { .. } => FailureReason::StoreLacksConditionalPut,
            Self::Manifest { .. } => FailureReason::ManifestInvalid,
            Self::Disk { .. } => FailureReason::InternalError,
        }
    }

    /// The failure that a pod ends with.
    #[must_use]
    pub fn failure(&self, purpose: Purpose) -> Failure {
        Failure::new(self.reason(purpose), self.to_string())
    }
}

/// What one try came to.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Trying again may help.
    Again(String),
    /// It will not.
    Stop(StoreError),
    /// The condition of a write does not hold: something is there already, or something else.
    Exists,
}

/// Seconds as they are written in a configuration: without a fraction where there is none.
fn seconds(limit: Duration) -> String {
    let text = format!("{:.1}", limit.as_secs_f64());
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// What to do where access is refused.
fn refused(access: Access) -> &'static str {
    match access {
        Access::Files => {
            "Check owner and mode of the file and its folders, and that the volume is not mounted read-only"
        }
        Access::Http => {
            "What is read by http or https must be readable without credentials, `storage.secretRef` is not used for it; \
             check the URL, and whether a signed URL has expired"
        }
        Access::S3 { keys: true, .. } => {
            "Check the keys in the Secret of `storage.secretRef`, or the workload identity, and that they may read and \
             write there; without the right to list, S3 says this of objects that do not exist, too"
        }
        Access::S3 { keys: false, .. } => {
            "No keys were given: set `storage.secretRef` to a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             `serviceAccountName` to an account with a workload identity"
        }
    }
}

/// Sorts an error of object_store.
pub(crate) fn sort(at: &Location, error: &object_store::Error) -> Attempt {
    use object_store::Error as E;
    let stop = Attempt::Stop;
    let (uri, problem) = (at.uri.as_str(), short(error));
    let forbidden = || {
        Attempt::Stop(StoreError::Forbidden {
            uri: uri.to_owned(),
            problem: problem.clone(),
            hint: refused(at.access),
        })
    };
    let invalid = |problem: String| {
        Attempt::Stop(StoreError::Invalid {
            uri: uri.to_owned(),
            problem,
        })
    };
    let full = |problem: String| {
        Attempt::Stop(StoreError::Full {
            uri: uri.to_owned(),
            problem,
        })
    };
    // Only conditional writes ask for what a storage may not have.
    let lacks = |problem: String| {
        Attempt::Stop(StoreError::LacksConditionalPut {
            uri: uri.to_owned(),
            problem,
        })
    };
    match error {
        E::NotFound { .. } => stop(StoreError::NotFound { uri: uri.to_owned() }),
        E::AlreadyExists { .. } | E::Precondition { .. } => Attempt::Exists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => forbidden(),
        E::NotImplemented { .. } => lacks(problem),
        E::InvalidPath { .. } | E::NotSupported { .. } | E::UnknownConfigurationKey { .. } => invalid(problem),
        _ => {
            if let Some(kind) = io_kind(error) {
                use std::io::ErrorKind as K;
                return match kind {
                    K::PermissionDenied | K::ReadOnlyFilesystem => forbidden(),
                    K::NotFound => stop(StoreError::NotFound { uri: uri.to_owned() }),
                    K::NotADirectory => invalid(format!("{problem}; what should be a folder of its path is a file")),
                    K::IsADirectory | K::InvalidFilename => invalid(problem),
                    K::StorageFull | K::QuotaExceeded => full(problem),
                    // A file is created by a hard link, which not every file system has.
                    K::Unsupported => lacks(problem),
                    _ => Attempt::Again(problem),
                };
            }
            match status(error) {
                // Keys that are malformed or expired come as 400 with a code in the body.
                Some(400)
                    if ["InvalidToken", "ExpiredToken", "InvalidAccessKey", "Authorization"]
                        .iter()
                        .any(|w| problem.contains(w)) =>
                {
                    forbidden()
                }
                Some(501) => lacks(problem),
                Some(507) => full(problem),
                Some(408 | 429) | None if !misconfigured(error) => Attempt::Again(problem),
                Some(code) if code >= 500 => Attempt::Again(problem),
                Some(300..400) => invalid(format!("{problem}; check endpoint and region")),
                _ => invalid(problem),
            }
        }
    }
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| e.source())
}

/// The kind of the file system's error within, for `file://`; errors of sockets do not count.
fn io_kind(error: &object_store::Error) -> Option<std::io::ErrorKind> {
    if chain(error).any(|e| e.is::<object_store::client::HttpError>()) {
        return None;
    }
    chain(error)
        .find_map(|e| e.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind)
}

/// Whether the request could not even be made: trying again gives the same.
fn misconfigured(error: &object_store::Error) -> bool {
    // object_store keeps this error private; its words are fixed by a test here.
    chain(error).any(|e| e.to_string().contains("Content-Length Header missing"))
}

/// The HTTP status within. object_store keeps the type private, so it is read from its words (fixed by tests here).
fn status(error: &object_store::Error) -> Option<u16> {
    let text = error.to_string();
    let at = text.find("status code: ")?;
    text.get(at + "status code: ".len()..)?.get(..3)?.parse().ok()
}

/// One line of at most 300 characters: the innermost cause, or the status and the code in the body.
pub(crate) fn short(error: &object_store::Error) -> String {
    let text = match status(error) {
        Some(status) => {
            let whole = error.to_string();
            let tag = |name: &str| {
                let (open, close) = (format!("<{name}>"), format!("</{name}>"));
                let from = whole.find(&open)? + open.len();
                let to = from + whole.get(from..)?.find(&close)?;
                whole.get(from..to).map(str::to_owned)
            };
            match (tag("Code"), tag("Message")) {
                (Some(code), Some(message)) => format!("HTTP {status} {code}: {message}"),
                (Some(code), None) => format!("HTTP {status} {code}"),
                _ => format!("HTTP {status}"),
            }
        }
        None => chain(error).last().map(ToString::to_string).unwrap_or_default(),
    };
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(300)
        .collect()
}
