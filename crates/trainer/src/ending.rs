//! The last word: the termination message, once for a panic and once at the end.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::EXIT_FAILED;
use flywheel_contract::termination::{Outcome, TerminationMessage};

/// Where the message goes.
#[derive(Clone, Debug)]
pub struct Ending {
    /// A file that was asked for; made where it is not there.
    asked: Option<PathBuf>,
    /// The kubelet's file; used only where it is there.
    usual: Option<PathBuf>,
}

impl Ending {
    /// The file asked for, or else the usual one.
    #[must_use]
    pub fn new(asked: Option<PathBuf>, usual: Option<PathBuf>) -> Self {
        Self { asked, usual }
    }

    /// Writes the message; the last one written holds. Failing to is logged: the result is in the store, and a failure
    /// is on stderr as well.
    pub fn write(&self, outcome: Outcome) {
        let (path, create) = match (&self.asked, &self.usual) {
            (Some(path), _) => (path, true),
            (None, Some(path)) if path.exists() => (path, false),
            _ => return,
        };
        let text = TerminationMessage::new(outcome).to_json();
        let written = OpenOptions::new()
            .write(true)
            .create(create)
            .truncate(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(e) = written {
            tracing::warn!(path = %path.display(), error = %e, "no termination message could be written");
        }
    }

    /// From now on a panic writes `InternalError` with its place and ends the process.
    pub fn install_panic_hook(&self) {
        let ending = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic
                .location()
                .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
            let payload = panic.payload();
            let text = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            let failure = Failure::new(
                FailureReason::InternalError,
                format!("flywheel-trainer panicked at {place}: {text}. This is a fault in Flywheel; please report it"),
            );
            eprintln!("{failure}");
            ending.write(Outcome::Failed(failure));
            std::process::exit(EXIT_FAILED);
        }));
    }
}

/// What `run` says at its end, on stdout.
pub(crate) fn print(outcome: &Outcome) {
    let mut out = std::io::stdout().lock();
    let written = match outcome {
        Outcome::Trained(trained) => trained
            .metrics
            .iter()
            .try_for_each(|metric| writeln!(out, "{:<24} {}", metric.name, metric.value))
            .and_then(|()| writeln!(out, "{:<24} {}", "steps", trained.steps))
            .and_then(|()| writeln!(out, "{:<24} {}", "artifact", trained.artifact.uri))
            .and_then(|()| writeln!(out, "{:<24} {}", "digest", trained.artifact.digest)),
        Outcome::Verified(verified) => writeln!(out, "{} files, {} bytes", verified.files, verified.bytes),
        Outcome::Failed(failure) => writeln!(out, "{failure}"),
    };
    if let Err(e) = written {
        tracing::warn!(error = %e, "stdout is closed");
    }
}
