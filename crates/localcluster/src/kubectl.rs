//! Talking to a cluster through its kubectl.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Result;
use crate::process;

/// A kubectl with its kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(crate) fn new(program: PathBuf, kubeconfig: &Path) -> Self {
        Kubectl {
            program,
            kubeconfig: kubeconfig.to_owned(),
        }
    }

    /// A command that can still be given arguments, input and output.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs it and gives what it printed.
    ///
    /// # Errors
    /// It fails; what it said is part of the message.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        process::run(self.command().args(arguments))
    }

    /// Creates or updates the objects of `manifest`, YAML or JSON.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn apply(&self, manifest: &str) -> Result<String> {
        process::run_with(self.command().args(["apply", "-f", "-"]), manifest.as_bytes())
    }

    /// Whether the API server says that it is ready.
    pub(crate) fn ready(&self) -> Result<bool> {
        self.run(["get", "--raw", "/readyz", "--request-timeout=5s"])
            .map(|answer| answer.trim() == "ok")
    }
}
