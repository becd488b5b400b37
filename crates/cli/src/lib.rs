//! The kubectl plugin `kubectl-flywheel`: what a user sees of Flywheel's objects, with the user's own rights.
//!
//! It reads objects and logs through the API server, and pods by port-forward through the API server; `simulate` asks no cluster.
//! What changes something can also be printed: `rollout` and `retrain` a field or two of an InferenceService's spec, and `import`
//! makes ModelVersions, and for a moment a Job. What comes back is untrusted: bounded in time and size, and without control characters on the terminal (logs
//! alone are passed on as they are). It must not change anything else and must not link libtorch.

mod arguments;
mod change;
mod cluster;
mod error;
mod explain;
mod forward;
mod import;
mod logs;
mod predict;
mod progress;
mod retrain;
mod rollout;
mod simulate;
mod status;
mod text;
mod tls;
mod training;
mod version;
mod watch;

use std::io::Write;

pub use arguments::CommandLine;
use arguments::{Command, Output};
use cluster::Cluster;
pub use error::Error;

/// How a command ended that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It told what was asked.
    Done,
    /// It told that the TrainingJob failed.
    TrainingFailed,
}

/// Carries the command line out. `out` gets what was asked, stderr gets notes; `terminal` is whether `out` is one.
///
/// # Errors
/// What keeps the command from being carried out, with what to do next.
pub async fn run(line: CommandLine, out: &mut dyn Write, terminal: bool) -> Result<Outcome, Error> {
    let connect = Cluster::connect(&line.target);
    match line.command {
        Command::Progress { job, watch, output } => {
            let screen = match output {
                Output::Json => progress::Screen::json(out),
                Output::Text if terminal => progress::Screen::bar(out),
                Output::Text => progress::Screen::lines(out),
            };
            Box::pin(progress::run(&connect.await?, &job, watch, screen)).await
        }
        Command::Logs { job, follow, attempt } => {
            Box::pin(logs::run(&connect.await?, &job, follow, attempt, out)).await?;
            Ok(Outcome::Done)
        }
        Command::Predict { service, texts, output } => {
            Box::pin(predict::run(&connect.await?, &service, texts, output, out)).await?;
            Ok(Outcome::Done)
        }
        Command::Status { object } => {
            let cluster = connect.await?;
            let now = jiff::Timestamp::now();
            let screen = match object {
                Some(object) => Box::pin(status::one(&cluster, &object, now)).await?,
                None => status::all(&cluster, now).await?,
            };
            out.write_all(screen.as_bytes())?;
            Ok(Outcome::Done)
        }
        Command::Explain { service } => {
            let text = explain::run(&connect.await?, &service, jiff::Timestamp::now()).await?;
            out.write_all(text.as_bytes())?;
            Ok(Outcome::Done)
        }
        Command::Watch { service } => {
            Box::pin(watch::run(&connect.await?, &service, out, terminal)).await?;
            Ok(Outcome::Done)
        }
        Command::Retrain { service, print_patch } => {
            let now = jiff::Timestamp::now();
            let told = retrain::run(&connect.await?, &service, print_patch, now).await?;
            out.write_all(told.as_bytes())?;
            Ok(Outcome::Done)
        }
        Command::Rollout {
            service,
            print_patch,
            step,
        } => {
            let told = rollout::run(&connect.await?, &service, &step, print_patch).await?;
            out.write_all(told.as_bytes())?;
            Ok(Outcome::Done)
        }
        Command::Import(import) => {
            Box::pin(import::run(&connect.await?, &import, out)).await?;
            Ok(Outcome::Done)
        }
        Command::Simulate(simulate) => {
            simulate::run(&simulate.plan()?, out)?;
            Ok(Outcome::Done)
        }
        Command::Version => {
            let in_namespace = line.target.namespace.is_some();
            let operators = match connect.await {
                Ok(cluster) => version::operators(&cluster, in_namespace).await,
                Err(error) => Err(error),
            };
            out.write_all(version::render(&operators, in_namespace).as_bytes())?;
            Ok(Outcome::Done)
        }
    }
}
