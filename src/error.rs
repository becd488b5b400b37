//! What can go wrong in a reconcile, and what the loop does about it.
//!
//! Failures of pods are no errors: they are observed and go to the policy crate.

use std::time::Duration;

use flywheel_api::conditions::reasons;

/// How the loop answers an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The user has to change something; it becomes a condition and is looked at again by the resync.
    Invalid,
    /// Somebody else changed the object meanwhile; once more after a second.
    Conflict,
    /// API server or network; once more after a growing delay.
    Transient,
    /// A fault in Flywheel; counted, logged, once more after a minute.
    Bug,
}

impl ErrorKind {
    /// The word in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::Conflict => "Conflict",
            Self::Transient => "Transient",
            Self::Bug => "Bug",
        }
    }
}

/// An error of a reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object that is not ours has the name that a child needs.
    #[error(
        "{kind} {name} is there already and does not belong to this object; delete or rename it, or choose another name here"
    )]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server refuses a child: quota, admission policy, Pod Security, or a value that it does not accept.
    #[error(
        "the API server refuses the {kind} {name}: {message}. Change what it names, or ask the cluster's administrator"
    )]
    ChildRefused {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's words.
        message: String,
    },
    /// The spec breaks a rule that the API server did not check.
    #[error("{message}")]
    InvalidSpec {
        /// One of [`reasons`].
        reason: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// The API server answered with an error, or not at all.
    #[error("{what}: {}", words(source))]
    Api {
        /// What was asked of it.
        what: String,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{what} took more than {} s", limit.as_secs())]
    Timeout {
        /// What was asked of it.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// Another replica of the operator may be leading; nothing was written.
    #[error("this replica no longer leads; nothing was written")]
    NotLeading,
    /// A fault in Flywheel.
    #[error("internal fault: {0}")]
    Bug(String),
}

impl Error {
    /// An answer of the API server.
    #[must_use]
    pub fn api(what: impl Into<String>, source: kube::Error) -> Self {
        Self::Api {
            what: what.into(),
            source: Box::new(source),
        }
    }

    /// How the loop answers it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NameTaken { .. } | Self::ChildRefused { .. } | Self::InvalidSpec { .. } => ErrorKind::Invalid,
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => ErrorKind::Conflict,
                // A child or an object that was there a moment ago is gone: look again.
                kube::Error::Api(status) if status.is_not_found() => ErrorKind::Conflict,
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => ErrorKind::Bug,
                _ => ErrorKind::Transient,
            },
            Self::Timeout { .. } | Self::NotLeading => ErrorKind::Transient,
            Self::Bug(_) => ErrorKind::Bug,
        }
    }

    /// Reason and message of the condition that it becomes; `None` where the user can do nothing about it.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let reason = match self {
            Self::NameTaken { .. } => reasons::NAME_TAKEN,
            Self::ChildRefused { .. } => reasons::CHILD_REFUSED,
            Self::InvalidSpec { reason, .. } => reason,
            Self::Api { .. } | Self::Timeout { .. } | Self::NotLeading | Self::Bug(_) => return None,
        };
        Some((reason, self.to_string()))
    }
}

/// What the API server says; or, where it was not reached, the client's error with its causes: its own words often end at
/// "client error (Connect)".
fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}: {}", status.code, status.reason, status.message);
    }
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, reason: &str) -> Error {
        let status: kube::core::Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "code": code, "reason": reason, "message": "m"
        }))
        .unwrap();
        Error::api("create Job x", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn each_answer_has_its_kind() {
        let table = [
            (409, "Conflict", ErrorKind::Conflict),
            (409, "AlreadyExists", ErrorKind::Conflict),
            (404, "NotFound", ErrorKind::Conflict),
            (500, "InternalError", ErrorKind::Transient),
            (429, "TooManyRequests", ErrorKind::Transient),
            (403, "Forbidden", ErrorKind::Transient),
        ];
        for (code, reason, kind) in table {
            assert_eq!(answer(code, reason).kind(), kind, "{code} {reason}");
            assert_eq!(answer(code, reason).problem(), None);
        }
        let taken = Error::NameTaken {
            kind: "Job".to_owned(),
            name: "a-train-1".to_owned(),
        };
        assert_eq!(taken.kind(), ErrorKind::Invalid);
        let (reason, message) = taken.problem().unwrap();
        assert_eq!(reason, "NameTaken");
        assert!(
            message.contains("Job a-train-1") && message.contains("rename"),
            "{message}"
        );
    }
}
