//! `flywheel-trainer`: arguments, TLS provider, end of the process.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use flywheel_trainer::command::{Arguments, run};

fn main() -> ExitCode {
    // Fails only where a provider is installed already, and nothing was before this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    if arguments.trains() {
        sleep_while_waiting();
    }
    run(&arguments)
}

/// Starts this program anew with an OpenMP whose threads sleep while they wait for one another. Left to itself it spins
/// for milliseconds at each of a step's hundreds of joins: on cores that are shared with anything else, that takes several
/// times the time of the step.
///
/// OpenMP reads the variable when libtorch is loaded, before `main`. The image sets it, so nothing starts twice there.
fn sleep_while_waiting() {
    const POLICY: &str = "OMP_WAIT_POLICY";
    if [POLICY, "GOMP_SPINCOUNT"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        return;
    }
    let mut all = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), all.next()) {
        // Returns only where it fails; then training is slower, no more.
        let _ = Command::new(program).arg0(name).args(all).env(POLICY, "PASSIVE").exec();
    }
}
