//! `flywheel-trainer`: arguments, TLS provider, end of the process.

use std::process::ExitCode;

use clap::Parser;
use flywheel_trainer::command::{Arguments, run};

fn main() -> ExitCode {
    // Fails only where a provider is installed already, and nothing was before this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(&Arguments::parse())
}
