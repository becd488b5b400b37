//! The command line, and what every command shares: logs, panics, signals, the end.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::{COMPLETION_INDEX_ENV, EXIT_FAILED, INSIDE_PORT, TERMINATION_LOG};
use flywheel_contract::progress::Phase;
use flywheel_contract::scalar::{Device, Uri};
use flywheel_contract::termination::{Outcome, Pruned};
use flywheel_contract::trainer::{ImportConfig, PruneConfig, TrainerConfig, VerifyConfig};
use flywheel_store::{Limits, Purpose, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::calibrate::Calibrate;
use crate::configuration::{self, LocalRun};
use crate::ending::{self, Ending};
use crate::peers::Peers;
use crate::place::Place;
use crate::siblings::{self, Line, Siblings};
use crate::tracker::{Stop, Tracker};
use crate::tracking::End;
use crate::{assist, import, server, train, verify};

/// How long a training that is told to end may take to commit its last checkpoint, or to finish what comes after its last
/// step. Pods have 30 s in all.
const SAVE_WAIT: Duration = Duration::from_secs(25);
/// How long the tensor thread may take to reach the end of its step after that.
const STOP_WAIT: Duration = Duration::from_secs(3);
/// The same where another process is gone: a step that waits for it has no end.
const STOP_WAIT_ALONE: Duration = Duration::from_millis(500);
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
    /// there is one (not for `run` and `calibrate`).
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

    /// Those that the other processes of a pod get as well.
    fn shared(&self) -> Vec<String> {
        let mut shared = vec!["--storage-timeout".to_owned(), self.storage_timeout.to_string()];
        if let Some(scratch) = &self.scratch {
            shared.extend(["--scratch".to_owned(), scratch.display().to_string()]);
        }
        shared
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a TrainingJob's pod does; reads FLYWHEEL_CONFIG.
    Train {
        /// Address of /progress and /metrics. Without it, port 9090 on all addresses.
        #[arg(long, env = "FLYWHEEL_LISTEN", value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
        /// Number of this process in its pod; the first starts the others with it.
        #[arg(long, hide = true, default_value_t = 0)]
        local_rank: u32,
        /// Host of process 0, and its port unless that is the usual one, in place of the configuration's.
        #[arg(long, hide = true, value_name = "HOST[:PORT]")]
        rendezvous: Option<String>,
    },
    /// Reads an artifact, checks every digest, loads it and answers its evaluation sample; reads FLYWHEEL_CONFIG.
    Verify,
    /// Removes an artifact: what its manifest lists, its receipt and the manifest; reads FLYWHEEL_CONFIG.
    Prune,
    /// Looks for artifacts below a folder, or makes one of a folder in Hugging Face's layout, and prints a line of JSON for each; reads
    /// FLYWHEEL_CONFIG.
    Import,
    /// Readies an artifact on the local disk for `precision: Int8`, which it is not if it was written by an earlier release or by
    /// other means: measures the ranges of the model's inner numbers over some hundred texts, and writes them and a manifest
    /// that lists them into its folder. Prints the artifact with its new digest.
    Calibrate {
        /// Folder of the artifact, with its manifest.json.
        #[arg(long, value_name = "DIR")]
        artifact: PathBuf,
        /// File with texts that it was trained on, or of that kind: .csv, .jsonl or .parquet.
        #[arg(long, value_name = "FILE")]
        texts: PathBuf,
        /// Column or key of the texts.
        #[arg(long, value_name = "NAME", default_value = "text")]
        text_column: String,
        /// Column or key of the labels, which are not looked at.
        #[arg(long, value_name = "NAME", default_value = "label")]
        label_column: String,
    },
    /// Trains from the YAML of a TrainingJob, without Kubernetes. Keys for s3:// come from AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY. With `metadata.uid` in the file a run goes on from the checkpoints of the last one that was
    /// stopped, and is refused where hyperparameters or data are others by then; without it each begins anew, in a folder of
    /// its own.
    ///
    /// One process trains, whatever `trainer` says, and a suspended job is refused. `output.gates` are judged and printed;
    /// the exit code is 0 also where one fails. What only a cluster has is passed over: `recovery`, all of `trainer` (image,
    /// resources, pod settings), `serviceAccountName`, `output.versionName`, `output.reuse` (it always trains),
    /// and the Secrets of `storage` and `tracking`,
    /// whose keys are read from the environment.
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
    let local = matches!(arguments.command, Command::Run { .. } | Command::Calibrate { .. });
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
            let assisted = outcome == Outcome::Assisted;
            ending.write(outcome);
            if assisted {
                // Process 0 may have ended before this one came to training: nothing is waited for.
                flywheel_learn::device::exit_now(0)
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            if terminal {
                eprintln!("{failure}");
            } else {
                tracing::error!(reason = failure.reason.as_str(), "{}", failure.message);
            }
            ending.write(Outcome::Failed(failure));
            // Not by returning: an interrupted step may still hold the tensor thread, and the runtime would wait for it.
            flywheel_learn::device::exit_now(EXIT_FAILED)
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
            let mut orders = Orders::listen(false)?;
            tokio::select! {
                verified = verify::verify(&config, limits, arguments.scratch.as_deref()) => verified.map(Outcome::Verified),
                signal = orders.told() => Err(Failure::new(
                    FailureReason::Interrupted,
                    format!("{signal} came before the artifact was verified"),
                )),
            }
        }
        Command::Prune => {
            let config: PruneConfig = configuration::from_environment()?;
            let mut orders = Orders::listen(false)?;
            tokio::select! {
                pruned = prune(&config, limits) => pruned.map(Outcome::Pruned),
                signal = orders.told() => Err(Failure::new(
                    FailureReason::Interrupted,
                    format!("{signal} came before the artifact was removed; the next try goes on"),
                )),
            }
        }
        Command::Import => {
            let config: ImportConfig = configuration::from_environment()?;
            let mut orders = Orders::listen(false)?;
            tokio::select! {
                imported = import::import(&config, limits, arguments.scratch.as_deref()) => imported.map(Outcome::Imported),
                signal = orders.told() => Err(Failure::new(
                    FailureReason::Interrupted,
                    format!("{signal} came before the folder was looked through"),
                )),
            }
        }
        Command::Train {
            listen,
            local_rank,
            rendezvous,
        } => {
            let config: TrainerConfig = configuration::from_environment()?;
            configuration::check(&config)?;
            let tracker = Tracker::new(&config, terminal);
            ending.watch(&tracker);
            // One process speaks for its pod. All addresses of both families, or of IPv4 where the node has no IPv6.
            let listener = match listen {
                _ if *local_rank > 0 => None,
                Some(address) => Some(server::bind(*address).await?),
                None => match server::bind(SocketAddr::from(([0_u16; 8], INSIDE_PORT))).await {
                    Ok(listener) => Some(listener),
                    Err(_) => Some(server::bind(SocketAddr::from(([0_u8; 4], INSIDE_PORT))).await?),
                },
            };
            let index = std::env::var(COMPLETION_INDEX_ENV).ok();
            let start = Start {
                place: Place::new(&config.world, index.as_deref(), *local_rank)?,
                rendezvous: rendezvous.as_deref(),
                found_again: true,
                limits,
                arguments,
            };
            trained(&config, &start, &tracker, listener).await
        }
        Command::Calibrate {
            artifact,
            texts,
            text_column,
            label_column,
        } => {
            let calibrate = Calibrate {
                artifact: artifact.clone(),
                texts: texts.clone(),
                columns: (text_column.clone(), label_column.clone()),
            };
            let (artifact, verified) = calibrate.run().await?;
            ending::print_artifact(&artifact);
            Ok(Outcome::Verified(verified))
        }
        Command::Run {
            file,
            output,
            device,
            ca_file,
            listen,
        } => {
            let job = configuration::from_manifest(&LocalRun {
                file: file.clone(),
                output: output.clone(),
                device: (*device).into(),
                ca_file: ca_file.clone(),
            })?;
            let config = job.config;
            configuration::check(&config)?;
            for sentence in &job.unheeded {
                tracing::warn!("{sentence}");
            }
            let tracker = Tracker::new(&config, terminal);
            ending.watch(&tracker);
            let listener = match listen {
                Some(address) => Some(server::bind(*address).await?),
                None => None,
            };
            let start = Start {
                place: Place::new(&config.world, None, 0)?,
                rendezvous: None,
                found_again: job.named,
                limits,
                arguments,
            };
            let outcome = trained(&config, &start, &tracker, listener).await?;
            if tracker.was_done_before() {
                tracing::warn!(
                    "the job with the uid {} was finished by a run before this one: nothing was trained, and the figures are those \
                     of that run, whatever the file says now. Another metadata.uid, or none, starts anew",
                    config.job.uid
                );
            }
            ending::print(&outcome, &job.gates);
            Ok(outcome)
        }
    }
}

async fn prune(config: &PruneConfig, limits: Limits) -> Result<Pruned, Failure> {
    let store = Store::with_limits(&config.storage, limits).map_err(|e| e.failure(Purpose::Artifact))?;
    let removed = store.remove_artifact(&config.artifact).await;
    let files = removed.map_err(|e| e.failure(Purpose::Artifact))?.unwrap_or(0);
    tracing::info!(files, uri = %config.artifact.uri, "the artifact is removed");
    Ok(Pruned {
        files: u32::try_from(files).unwrap_or(u32::MAX),
    })
}

/// How this process was started.
struct Start<'a> {
    place: Place,
    /// Where a process of the same pod says that process 0 is.
    rendezvous: Option<&'a str>,
    /// A later attempt has the same uid and so finds what this one saved.
    found_again: bool,
    limits: Limits,
    arguments: &'a Arguments,
}

/// Who goes on from the state that a process saves when it is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoesOn {
    NextAttempt,
    /// Process 0 saves and tells.
    First,
    /// The run has a uid of its own, which no other will have.
    Nobody,
}

impl Start<'_> {
    fn goes_on(&self) -> GoesOn {
        match self.place.is_first() {
            false => GoesOn::First,
            true if self.found_again => GoesOn::NextAttempt,
            true => GoesOn::Nobody,
        }
    }
}

async fn trained(
    config: &TrainerConfig,
    start: &Start<'_>,
    tracker: &Arc<Tracker>,
    listener: Option<tokio::net::TcpListener>,
) -> Result<Outcome, Failure> {
    let serving = listener.map(|listener| tokio::spawn(server::serve(listener, Arc::clone(tracker))));
    let logging = tokio::spawn(Arc::clone(tracker).log_now_and_then());
    let outcome = match start.place.size {
        1 => alone(config, start, tracker).await,
        _ => among_others(config, start, tracker).await,
    };
    if let Err(failure) = &outcome {
        // The tensor thread ends with its step; leaving libtorch in the middle of one can crash the process.
        tracker.stop(Stop::Now);
        let lost = failure.reason == FailureReason::PeerLost;
        tracker.idle(if lost { STOP_WAIT_ALONE } else { STOP_WAIT }).await;
    }
    let end = match outcome.as_ref().map_err(|failure| failure.reason) {
        Ok(_) => End::Finished,
        Err(FailureReason::Interrupted | FailureReason::PeerLost) => End::Killed,
        Err(FailureReason::Fenced) => End::Replaced,
        Err(_) => End::Failed,
    };
    let left = tracker
        .told()
        .map_or(FIGURES_WAIT, |told| LAST_MOMENT.saturating_sub(told.elapsed()));
    tracker.end_recording(end, left.min(FIGURES_WAIT)).await;
    logging.abort();
    if let Some(serving) = serving {
        serving.abort();
    }
    tracker.finish();
    outcome
}

async fn alone(config: &TrainerConfig, start: &Start<'_>, tracker: &Arc<Tracker>) -> Result<Outcome, Failure> {
    let scratch = start.arguments.scratch.as_deref();
    let mut orders = Orders::listen(false)?;
    let mut training = Box::pin(async {
        let trained = train::train(config, start.limits, scratch, tracker, None).await;
        trained.map(Outcome::Trained)
    });
    tokio::select! {
        outcome = &mut training => outcome,
        signal = orders.told() => wound_up(training, signal, &mut orders, tracker, start.goes_on()).await,
    }
}

async fn among_others(config: &TrainerConfig, start: &Start<'_>, tracker: &Arc<Tracker>) -> Result<Outcome, Failure> {
    let (place, scratch) = (start.place, start.arguments.scratch.as_deref());
    let starter = place.local == 0 && place.in_pod > 1;
    let mut orders = Orders::listen(place.local > 0)?;
    let peers = Arc::new(Peers::start(place, config, start.rendezvous)?);
    let mut siblings = match starter {
        true => Some(Siblings::start(
            &place,
            peers.address(),
            &start.arguments.shared(),
            train::scratch_folder(scratch)?,
        )?),
        false => None,
    };
    let work = async {
        peers.joined(tracker).await?;
        if place.is_first() {
            let trained = train::train(config, start.limits, scratch, tracker, Some(&peers)).await;
            trained.map(Outcome::Trained)
        } else {
            let assisted = assist::assist(config, start.limits, scratch, tracker, &peers).await;
            assisted.map(|()| Outcome::Assisted)
        }
    };
    let mut training = Box::pin(peers.beside(work, || Outcome::Assisted));
    let gone = orders.gone();
    let outcome = tokio::select! {
        outcome = &mut training => outcome,
        failure = failed(&mut siblings) => Err(failure),
        () = gone => Err(Failure::new(FailureReason::PeerLost, "the process that started this one has ended")),
        signal = orders.told() => {
            if let Some(siblings) = &mut siblings {
                siblings.tell_to_end().await;
            }
            wound_up(training, signal, &mut orders, tracker, start.goes_on()).await
        }
    };
    peers.part(&outcome).await;
    if let Some(siblings) = siblings {
        siblings.end(outcome.is_err()).await;
    }
    outcome
}

/// The failure of a process that this one has started; never, where it has started none.
async fn failed(siblings: &mut Option<Siblings>) -> Failure {
    match siblings {
        Some(siblings) => siblings.failed().await,
        None => std::future::pending().await,
    }
}

/// What becomes of a training that is told to end: its state is saved, or what comes after its last step is finished. One
/// that has no state yet, and one that is told twice, just ends.
async fn wound_up(
    training: impl Future<Output = Result<Outcome, Failure>> + Unpin,
    signal: &str,
    orders: &mut Orders,
    tracker: &Tracker,
    goes_on: GoesOn,
) -> Result<Outcome, Failure> {
    tracing::info!(signal, "told to end");
    tracker.told_to_end();
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
            _ = orders.told() => late = "it was told so twice and its last state is not saved; ",
        }
    }
    let checkpoint = tracker.progress().checkpoint;
    let problem = match checkpoint.problem.filter(|_| checkpoint.failures > 0) {
        Some(problem) => format!("its last state could not be saved ({problem}); "),
        None => String::new(),
    };
    let next = match (goes_on, checkpoint.step) {
        (GoesOn::First, _) => "what is saved is told by process 0".to_owned(),
        (GoesOn::NextAttempt, Some(step)) => format!("the next attempt goes on from step {step}"),
        (GoesOn::NextAttempt, None) => "the next attempt begins at its beginning".to_owned(),
        (GoesOn::Nobody, _) => "another run begins anew. To go on from where a run was stopped, give the file a \
             metadata.uid, such as a UUID, before the first one"
            .to_owned(),
    };
    Err(Failure::new(
        FailureReason::Interrupted,
        format!(
            "{signal} came before the end, as when the pod is deleted, evicted or its node drained; {late}{problem}{next}"
        ),
    ))
}

/// What tells this process to end.
struct Orders {
    terminate: Signal,
    interrupt: Signal,
    /// From the process that has started this one.
    line: Option<watch::Receiver<Line>>,
    /// Orders of the line that were heeded.
    heeded: u32,
}

impl Orders {
    fn listen(has_line: bool) -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::new(FailureReason::InternalError, format!("no signals: {e}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            line: has_line.then(siblings::line).transpose()?,
            heeded: 0,
        })
    }

    /// Resolves when the process is told to end, with the signal's name.
    async fn told(&mut self) -> &'static str {
        let heeded = self.heeded;
        let line = self.line.as_mut();
        let by_line = async {
            if let Some(line) = line
                && line.wait_for(|line| line.told > heeded).await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = by_line => {
                self.heeded += 1;
                "SIGTERM to the pod"
            }
        }
    }

    /// Resolves when the process that has started this one is gone.
    fn gone(&self) -> impl Future<Output = ()> + use<> {
        let line = self.line.clone();
        async {
            match line {
                Some(mut line) => {
                    let _ = line.wait_for(|line| line.gone).await;
                }
                None => std::future::pending().await,
            }
        }
    }
}

/// A folder as a URI.
pub(crate) fn file_uri(path: &std::path::Path) -> Uri {
    Uri(format!("file://{}", path.display()))
}
