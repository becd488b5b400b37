//! Entry of the plugin: TLS provider, runtime, exit code.

use std::io::{ErrorKind, IsTerminal as _, stdout};
use std::process::ExitCode;

use clap::Parser as _;
use flywheel_cli::{CommandLine, Error, Outcome};

/// Exit code of a TrainingJob that failed; 1 and 2 are the plugin's own failures and wrong command lines.
const EXIT_TRAINING_FAILED: u8 = 3;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    // With two TLS providers in the build rustls cannot choose, and the first client would panic.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: the TLS provider was set already");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let terminal = stdout().is_terminal();
    let outcome = runtime.block_on(flywheel_cli::run(line, &mut stdout().lock(), terminal));
    // A name that is still being looked up must not hold the end back.
    runtime.shutdown_background();
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::TrainingFailed) => ExitCode::from(EXIT_TRAINING_FAILED),
        // As in `kubectl flywheel logs … | head`: the reader has enough.
        Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
