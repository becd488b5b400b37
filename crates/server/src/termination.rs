//! The last word of a pod that cannot serve, where Kubernetes finds it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use flywheel_contract::failure::Failure;
use flywheel_contract::termination::{Outcome, TerminationMessage};

/// Where the message goes.
#[derive(Clone, Debug)]
pub struct TerminationLog {
    /// A file that was asked for; made where it is not there.
    pub asked: Option<PathBuf>,
    /// The kubelet's file; used only where it is there.
    pub usual: Option<PathBuf>,
}

impl TerminationLog {
    /// Writes why the pod ends. Failing to is logged: the reason is in the log as well.
    pub fn write(&self, failure: &Failure) {
        let (path, create) = match (&self.asked, &self.usual) {
            (Some(path), _) => (path, true),
            (None, Some(path)) if path.exists() => (path, false),
            _ => return,
        };
        let text = TerminationMessage::new(Outcome::Failed(failure.clone())).to_json();
        let written = OpenOptions::new()
            .write(true)
            .create(create)
            .truncate(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "no termination message could be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flywheel_contract::failure::FailureReason;

    #[test]
    fn the_usual_file_is_never_made_but_one_that_was_asked_for_is() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure::new(FailureReason::DigestMismatch, "x");
        let usual = dir.path().join("usual");
        let log = TerminationLog {
            asked: None,
            usual: Some(usual.clone()),
        };
        log.write(&failure);
        assert!(!usual.exists());
        std::fs::write(
            &usual,
            "something longer than the message that will be there ".repeat(9),
        )
        .unwrap();
        log.write(&failure);
        let asked = dir.path().join("asked");
        TerminationLog {
            asked: Some(asked.clone()),
            usual: None,
        }
        .write(&failure);
        for path in [usual, asked] {
            let message = TerminationMessage::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
            assert_eq!(message.outcome, Outcome::Failed(failure.clone()));
        }
    }
}
