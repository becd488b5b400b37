//! What can go wrong, said so that the reader knows what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, folder or process could not be read, written or started.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its path.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        /// Program and arguments.
        command: String,
        /// Exit status in words.
        status: String,
        /// What it printed, its end.
        output: String,
    },
    /// A component did not get ready in time.
    #[error("{component} was not ready after {} s{last}; its log is {}, which ends:\n{tail}", waited.as_secs(), log.display())]
    NotReady {
        /// Component and what was waited for.
        component: String,
        /// How long was waited.
        waited: Duration,
        /// What the last attempt said, with its separator, or nothing.
        last: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A component ended while it was waited for.
    #[error("{component} ended by itself; its log is {}, which ends:\n{tail}", log.display())]
    Died {
        /// Component.
        component: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A program could not be built from its Go module.
    #[error("building {program} failed; its log is {}, which ends:\n{tail}", log.display())]
    Build {
        /// Program and version.
        program: String,
        /// The build's log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The machine lacks something.
    #[error("this machine lacks {what}: {remedy}")]
    Missing {
        /// What is not there.
        what: String,
        /// What to run.
        remedy: String,
    },
    /// The request cannot be met as given.
    #[error("{0}")]
    Usage(String),
    /// A certificate could not be made.
    #[error("making the certificate for {name}: {source}")]
    Certificate {
        /// Whose.
        name: String,
        /// What rcgen said.
        source: rcgen::Error,
    },
    /// A recorded state or an answer is not the JSON or YAML that it should be.
    #[error("{what} cannot be understood ({why})")]
    Format {
        /// File or answer.
        what: String,
        /// What the parser said.
        why: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    pub(crate) fn path(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        Self::io(format!("{verb} {}", path.display()))
    }
}
