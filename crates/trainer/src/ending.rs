//! The last word: the termination message, once for a panic and once at the end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::gate::Gate;
use flywheel_contract::names::EXIT_FAILED;
use flywheel_contract::termination::{Outcome, TerminationLog, TerminationMessage};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_contract::version::FoundLine;

use crate::tracker::Tracker;

/// Where the message goes, and who knows how far the training is.
#[derive(Clone)]
pub(crate) struct Ending {
    log: TerminationLog,
    tracker: Arc<OnceLock<Arc<Tracker>>>,
}

impl Ending {
    /// The file asked for, or else the usual one.
    pub(crate) fn new(asked: Option<PathBuf>, usual: Option<PathBuf>) -> Self {
        Self {
            log: TerminationLog { asked, usual },
            tracker: Arc::default(),
        }
    }

    /// From now on the message says how far this training is.
    pub(crate) fn watch(&self, tracker: &Arc<Tracker>) {
        // Set once: a process trains once.
        let _ = self.tracker.set(Arc::clone(tracker));
    }

    /// Writes the message; the last one written holds. Failing to is logged: the result is in the store, and a failure
    /// is on stderr as well.
    pub(crate) fn write(&self, outcome: Outcome) {
        let mut message = TerminationMessage::new(outcome);
        if let Some(tracker) = self.tracker.get() {
            tracker.last_words(&mut message);
        }
        if let Err(error) = self.log.write(&message) {
            tracing::warn!(%error, "no termination message could be written");
        }
    }

    /// From now on a panic writes `InternalError` with its place and ends the process.
    pub(crate) fn install_panic_hook(&self) {
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

fn write_artifact(out: &mut impl Write, artifact: &ArtifactRef) -> std::io::Result<()> {
    writeln!(out, "{:<24} {}", "artifact", artifact.uri)?;
    writeln!(out, "{:<24} {}", "digest", artifact.digest)
}

/// What `calibrate` says at its end, on stdout.
pub(crate) fn print_artifact(artifact: &ArtifactRef) {
    if let Err(e) = write_artifact(&mut std::io::stdout().lock(), artifact) {
        tracing::warn!(error = %e, "stdout is closed");
    }
}

/// What `import` says of an artifact, on stdout.
pub(crate) fn print_found(line: &FoundLine) {
    let written = serde_json::to_string(line)
        .map_err(std::io::Error::other)
        .and_then(|text| writeln!(std::io::stdout().lock(), "{text}"));
    if let Err(e) = written {
        tracing::warn!(error = %e, "stdout is closed");
    }
}

/// What `run` says at its end, on stdout: the metrics, and for each gate whether it passes.
pub(crate) fn print(outcome: &Outcome, gates: &[Gate]) {
    let mut out = std::io::stdout().lock();
    let written = match outcome {
        Outcome::Trained(trained) => trained
            .metrics
            .iter()
            .try_for_each(|metric| writeln!(out, "{:<24} {}", metric.name, metric.value))
            .and_then(|()| {
                gates.iter().try_for_each(|gate| {
                    let name = format!("gate {}", gate.metric);
                    match gate.judge(&trained.metrics) {
                        Ok(why) => writeln!(out, "{name:<24} passes: {why}"),
                        Err(why) => writeln!(out, "{name:<24} fails: {why}"),
                    }
                })
            })
            .and_then(|()| writeln!(out, "{:<24} {}", "steps", trained.steps))
            .and_then(|()| write_artifact(&mut out, &trained.artifact)),
        Outcome::Assisted => writeln!(out, "process 0 has the result"),
        Outcome::Verified(verified) => writeln!(out, "{} files, {} bytes", verified.files, verified.bytes),
        Outcome::Pruned(pruned) => writeln!(out, "{} files", pruned.files),
        Outcome::Imported(imported) => writeln!(out, "{} artifacts", imported.found),
        Outcome::Failed(failure) => writeln!(out, "{failure}"),
    };
    if let Err(e) = written {
        tracing::warn!(error = %e, "stdout is closed");
    }
}
