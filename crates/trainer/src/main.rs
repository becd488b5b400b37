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
        wait_briefly();
        flywheel_learn::device::memory_for_training();
    }
    run(&arguments)
}

/// Starts this program anew with an OpenMP whose threads spin for some microseconds at a join and then sleep. Left to
/// itself it spins for milliseconds, hundreds of times in a step: on cores that anything else runs on, that takes several
/// times what the step takes. On idle cores both are equally fast.
///
/// OpenMP reads the variable when libtorch is loaded, before `main`. The image sets it, so nothing starts twice there.
fn wait_briefly() {
    const SPINS: (&str, &str) = ("GOMP_SPINCOUNT", "300");
    let chosen = |name: &&str| std::env::var_os(name).is_some();
    if [SPINS.0, "OMP_WAIT_POLICY"].iter().any(chosen) {
        return;
    }
    let mut all = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), all.next()) {
        // Returns only where it fails; then training is slower, no more.
        let _ = Command::new(program).arg0(name).args(all).env(SPINS.0, SPINS.1).exec();
    }
}
