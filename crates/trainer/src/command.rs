//! The command line, and what every command shares: logs, panics, signals, the end.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::{EXIT_FAILED, INSIDE_PORT, TERMINATION_LOG};
use flywheel_contract::progress::Phase;
use flywheel_contract::scalar::{Device, Uri};
use flywheel_contract::termination::{Outcome, Trained};
use flywheel_contract::trainer::{TrainerConfig, VerifyConfig};
use flywheel_store::{Limits, Purpose, Store};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::configuration::{self, LocalRun};
use crate::ending::{self, Ending};
use crate::tracker::{Stop, Tracker};
use crate::tracking::End;
use crate::{server, train};

/// How long a training that is told to end may take to commit its last checkpoint, or to finish what comes after its last
/// step. Pods have 30 s in all.
const SAVE_WAIT: Duration = Duration::from_secs(25);
/// How long the tensor thread may take to reach the end of its step after that.
const STOP_WAIT: Duration = Duration::from_secs(3);
/// How long the last figures may take to TensorBoard's files and MLflow; the result is committed before.
const FIGURES_WAIT: Duration = Duration::from_secs(5);
/// How long after the signal the process ends at the latest: before its pod is killed.
const LAST_MOMENT: Duration = Duration::from_secs(29);

/// Trains text classifiers, in a pod of Flywheel or on its own.
#[derive(Debug, Parser)]
#[command(name = "flywheel-trainer", version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// File for the message that Kubernetes puts into the container's status. Without it, /dev/termination-log where
    /// there is one (not for `run`).
    #[arg(long, global = true, env = "FLYWHEEL_TERMINATION_LOG", value_name = "FILE")]
    termination_log: Option<PathBuf>,
    /// Folder for downloads. Without it, the pod's scratch volume or the system's temporary folder.
    #[arg(long, global = true, env = "FLYWHEEL_SCRATCH", value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Seconds that one read or write of the storage may take, all tries together, beside what its size needs.
    #[arg(long, global = true, env = "FLYWHEEL_STORAGE_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    storage_timeout: u64,
}

impl Arguments {
    /// Whether the command computes.
    #[must_use]
    pub fn trains(&self) -> bool {
        matches!(self.command, Command::Train { .. } | Command::Run { .. })
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a TrainingJob's pod does; reads FLYWHEEL_CONFIG.
    Train {
        /// Address of /progress and /metrics. Without it, port 9090 on all addresses.
        #[arg(long, env = "FLYWHEEL_LISTEN", value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
    /// Reads an artifact and checks every digest; reads FLYWHEEL_CONFIG.
    Verify,
    /// Trains from the YAML of a TrainingJob, without Kubernetes. Keys for s3:// come from AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY.
    Run {
        /// File with a TrainingJob.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Folder for the artifact, in place of `output.uri`.
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// What to compute on.
        #[arg(long, value_enum, default_value_t = DeviceArgument::Cpu)]
        device: DeviceArgument,
        /// PEM file with certificates to trust for the storage, in place of `storage.caBundle`.
        #[arg(long, value_name = "FILE")]
        ca_file: Option<PathBuf>,
        /// Address of /progress and /metrics; without it they are not served.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeviceArgument {
    Cpu,
    Cuda,
}

impl From<DeviceArgument> for Device {
    fn from(argument: DeviceArgument) -> Self {
        match argument {
            DeviceArgument::Cpu => Self::Cpu,
            DeviceArgument::Cuda => Self::Cuda,
        }
    }
}

/// Runs a command to its end: exit code 0, or 1 with the reason in the termination message and on stderr.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    let local = matches!(arguments.command, Command::Run { .. });
    let terminal = std::io::stderr().is_terminal();
    log(terminal);
    let ending = Ending::new(
        arguments.termination_log.clone(),
        (!local).then(|| PathBuf::from(TERMINATION_LOG)),
    );
    ending.install_panic_hook();
    let outcome = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(execute(arguments, terminal, &ending)),
        Err(e) => Err(Failure::new(FailureReason::InternalError, format!("no runtime: {e}"))),
    };
    match outcome {
        Ok(outcome) => {
            if local {
                ending::print(&outcome);
            }
            ending.write(outcome);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            tracing::error!(reason = failure.reason.as_str(), "{}", failure.message);
            if terminal {
                eprintln!("{failure}");
            }
            ending.write(Outcome::Failed(failure));
            // Not by returning: an interrupted step may still hold the tensor thread, and the runtime would wait for it.
            std::process::exit(EXIT_FAILED)
        }
    }
}

/// Logs on stderr: plain on a terminal, where the bar tells the rest, and JSON elsewhere. `RUST_LOG` as usual.
fn log(terminal: bool) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(if terminal { "warn" } else { "info" }));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if terminal {
        builder.without_time().with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

async fn execute(arguments: &Arguments, terminal: bool, ending: &Ending) -> Result<Outcome, Failure> {
    let limits = Limits {
        operation: Duration::from_secs(arguments.storage_timeout),
        // Half at most, so that silence is met with a second try.
        silence: (Duration::from_secs(arguments.storage_timeout) / 2).min(Limits::default().silence),
        ..Limits::default()
    };
    match &arguments.command {
        Command::Verify => {
            let config: VerifyConfig = configuration::from_environment()?;
            tokio::select! {
                outcome = verify(&config, limits) => outcome,
                signal = told_to_end() => Err(Failure::new(
                    FailureReason::Interrupted,
                    format!("{} came before the artifact was verified", signal?),
                )),
            }
        }
        Command::Train { listen } => {
            let config: TrainerConfig = configuration::from_environment()?;
            configuration::check(&config)?;
            let tracker = Tracker::new(&config, terminal);
            ending.watch(&tracker);
            // All addresses of both families, or of IPv4 where the node has no IPv6.
            let listener = match listen {
                Some(address) => server::bind(*address).await,
                None => match server::bind(SocketAddr::from(([0_u16; 8], INSIDE_PORT))).await {
                    Ok(listener) => Ok(listener),
                    Err(_) => server::bind(SocketAddr::from(([0_u8; 4], INSIDE_PORT))).await,
                },
            }?;
            trained(&config, limits, arguments, &tracker, Some(listener)).await
        }
        Command::Run {
            file,
            output,
            device,
            ca_file,
            listen,
        } => {
            let config = configuration::from_manifest(&LocalRun {
                file: file.clone(),
                output: output.clone(),
                device: (*device).into(),
                ca_file: ca_file.clone(),
            })?;
            configuration::check(&config)?;
            let tracker = Tracker::new(&config, terminal);
            ending.watch(&tracker);
            let listener = match listen {
                Some(address) => Some(server::bind(*address).await?),
                None => None,
            };
            trained(&config, limits, arguments, &tracker, listener).await
        }
    }
}

async fn verify(config: &VerifyConfig, limits: Limits) -> Result<Outcome, Failure> {
    let failure = |e: flywheel_store::StoreError| e.failure(Purpose::Artifact);
    let store = Store::with_limits(&config.storage, limits).map_err(failure)?;
    let verified = store.verify_artifact(&config.artifact).await.map_err(failure)?;
    tracing::info!(files = verified.files, bytes = verified.bytes, uri = %config.artifact.uri, "artifact is what its digest says");
    Ok(Outcome::Verified(verified))
}

async fn trained(
    config: &TrainerConfig,
    limits: Limits,
    arguments: &Arguments,
    tracker: &Arc<Tracker>,
    listener: Option<tokio::net::TcpListener>,
) -> Result<Outcome, Failure> {
    let serving = listener.map(|listener| tokio::spawn(server::serve(listener, Arc::clone(tracker))));
    let logging = tokio::spawn(Arc::clone(tracker).log_now_and_then());
    let mut training = Box::pin(train::train(config, limits, arguments.scratch.as_deref(), tracker));
    let mut told = None;
    let outcome = tokio::select! {
        outcome = &mut training => outcome,
        signal = told_to_end() => {
            told = Some(Instant::now());
            match signal {
                Ok(signal) => wound_up(training, signal, tracker).await,
                Err(failure) => Err(failure),
            }
        }
    };
    if outcome.is_err() {
        // The tensor thread ends with its step; leaving libtorch in the middle of one can crash the process.
        tracker.stop(Stop::Now);
        tracker.idle(STOP_WAIT).await;
    }
    let end = match outcome.as_ref().map_err(|failure| failure.reason) {
        Ok(_) => End::Finished,
        Err(FailureReason::Interrupted) => End::Killed,
        Err(FailureReason::Fenced) => End::Replaced,
        Err(_) => End::Failed,
    };
    let left = told.map_or(FIGURES_WAIT, |told: Instant| LAST_MOMENT.saturating_sub(told.elapsed()));
    tracker.end_recording(end, left.min(FIGURES_WAIT)).await;
    logging.abort();
    if let Some(serving) = serving {
        serving.abort();
    }
    tracker.finish();
    outcome.map(Outcome::Trained)
}

/// What becomes of a training that is told to end: its state is saved, or what comes after its last step is finished. One
/// that has no state yet, and one that is told twice, just ends.
async fn wound_up(
    training: impl Future<Output = Result<Trained, Failure>> + Unpin,
    signal: &str,
    tracker: &Tracker,
) -> Result<Trained, Failure> {
    tracing::info!(signal, "told to end");
    tracker.stop(Stop::Saved);
    let has_state = !matches!(
        tracker.present(),
        Phase::Starting | Phase::Downloading | Phase::Preparing
    );
    let mut late = "";
    if has_state {
        tokio::select! {
            outcome = training => match outcome {
                Err(failure) if failure.reason == FailureReason::Interrupted => (),
                outcome => return outcome,
            },
            () = tokio::time::sleep(SAVE_WAIT) => late = "its last state could not be saved in time; ",
            _ = told_to_end() => late = "it was told so twice and its last state is not saved; ",
        }
    }
    let checkpoint = tracker.progress().checkpoint;
    let problem = match checkpoint.problem.filter(|_| checkpoint.failures > 0) {
        Some(problem) => format!("its last state could not be saved ({problem}); "),
        None => String::new(),
    };
    let next = match checkpoint.step {
        Some(step) => format!("the next attempt goes on from step {step}"),
        None => "the next attempt begins at its beginning".to_owned(),
    };
    Err(Failure::new(
        FailureReason::Interrupted,
        format!(
            "{signal} came before the end, as when the pod is deleted, evicted or its node drained; {late}{problem}{next}"
        ),
    ))
}

/// Resolves when the process is told to end, with the signal's name.
async fn told_to_end() -> Result<&'static str, Failure> {
    let listen =
        |kind| signal(kind).map_err(|e| Failure::new(FailureReason::InternalError, format!("no signals: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

/// A folder as a URI.
pub(crate) fn file_uri(path: &std::path::Path) -> Uri {
    Uri(format!("file://{}", path.display()))
}
