//! `flywheel-server`: arguments, logs, panics, signals, the end of the process.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::{
    ASSIGNMENT_DIR, ASSIGNMENT_FILE, EXIT_FAILED, SCRATCH_DIR, SERVING_CONFIG_DIR, SERVING_CONFIG_FILE, TERMINATION_LOG,
};
use flywheel_contract::scalar::Device;
use flywheel_contract::serving::{ServingConfig, TlsFiles};
use flywheel_contract::termination::{Outcome, TerminationLog, TerminationMessage};
use flywheel_server::config::{self, LocalRun};
use flywheel_server::{Listeners, Options, Source, run};
use flywheel_store::Limits;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Most threads that do nothing but wait for sockets.
const ASYNC_THREADS: usize = 4;
/// Threads for tokenising and files, beside one per core.
const EXTRA_BLOCKING_THREADS: usize = 4;

/// Answers with a text classifier, in a pod of Flywheel or on its own.
#[derive(Debug, Parser)]
#[command(name = "flywheel-server", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Address of /predict, /readyz and /openapi.json. Without it, port 8080 on all addresses.
    #[arg(long, global = true, env = "FLYWHEEL_DATA_ADDR", value_name = "ADDRESS")]
    data_addr: Option<SocketAddr>,
    /// Address of /livez, /stats and /metrics. Without it, port 9090 on all addresses.
    #[arg(long, global = true, env = "FLYWHEEL_INSIDE_ADDR", value_name = "ADDRESS")]
    inside_addr: Option<SocketAddr>,
    /// Folder of the artifact cache. Without it, the pod's scratch volume, or for `run` the user's cache folder.
    #[arg(long, global = true, env = "FLYWHEEL_SCRATCH", value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// File for the message that Kubernetes puts into the container's status. Without it, /dev/termination-log where
    /// there is one (not for `run`).
    #[arg(long, global = true, env = "FLYWHEEL_TERMINATION_LOG", value_name = "FILE")]
    termination_log: Option<PathBuf>,
    /// Seconds that one read of the storage may take, all tries together, beside what its size needs.
    #[arg(long, global = true, env = "FLYWHEEL_STORAGE_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    storage_timeout: u64,
    /// Times that the artifact is asked for, with growing waits between, while the storage does not answer.
    #[arg(long, global = true, env = "FLYWHEEL_LOAD_TRIES", value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    load_tries: u32,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What an InferenceService's pod does.
    Serve {
        /// The configuration that the operator writes.
        #[arg(long, value_name = "FILE", default_value_os_t = PathBuf::from(SERVING_CONFIG_DIR).join(SERVING_CONFIG_FILE))]
        config: PathBuf,
        /// The versions to hold and the one that answers. The file may change at any time, and is followed.
        #[arg(long, value_name = "FILE", default_value_os_t = PathBuf::from(ASSIGNMENT_DIR).join(ASSIGNMENT_FILE))]
        assignment: PathBuf,
        /// Name of the pod. Without it, that of the machine, which is a pod's own.
        #[arg(long, value_name = "NAME")]
        pod: Option<String>,
    },
    /// Serves from the YAML of an InferenceService and of the ModelVersion that it names, without Kubernetes. Keys for
    /// s3:// come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    Run {
        /// File with the InferenceService; more documents may stand in it.
        #[arg(short, long, value_name = "FILE", required = true)]
        file: Vec<PathBuf>,
        /// File with the ModelVersion, unless it stands beside the InferenceService.
        #[arg(long, value_name = "FILE")]
        model_version: Vec<PathBuf>,
        /// What to compute on.
        #[arg(long, value_enum, default_value_t = DeviceArgument::Cpu)]
        device: DeviceArgument,
        /// PEM file with certificates to trust for the storage, in place of `storage.caBundle`.
        #[arg(long, value_name = "FILE")]
        ca_file: Option<PathBuf>,
        /// PEM file with the certificate of the data port, in place of `server.tls`; it speaks TLS then. A change is followed.
        #[arg(long, value_name = "FILE", requires = "tls_key")]
        tls_certificate: Option<PathBuf>,
        /// PEM file with the private key of that certificate.
        #[arg(long, value_name = "FILE", requires = "tls_certificate")]
        tls_key: Option<PathBuf>,
        /// File with the key of receipts, at least 32 bytes, in place of `feedback.signingKeySecretRef`.
        #[arg(long, value_name = "FILE")]
        receipt_key: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeviceArgument {
    Cpu,
    Cuda,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let terminal = std::io::stderr().is_terminal();
    log(terminal);
    quiet_panics();
    let local = matches!(arguments.command, Command::Run { .. });
    let ending = TerminationLog {
        asked: arguments.common.termination_log.clone(),
        usual: (!local).then(|| PathBuf::from(TERMINATION_LOG)),
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(ASYNC_THREADS))
        .max_blocking_threads(cores + EXTRA_BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(FailureReason::InternalError, format!("no runtime: {e}")))
        .and_then(|runtime| {
            let outcome = runtime.block_on(execute(&arguments));
            // A blocking thread may still tokenise for a client that is gone.
            runtime.shutdown_background();
            outcome
        });
    let code = match outcome {
        Ok(()) => 0,
        Err(failure) => {
            tracing::error!(reason = failure.reason.as_str(), "{}", failure.message);
            if let Err(error) = ending.write(&TerminationMessage::new(Outcome::Failed(failure))) {
                tracing::warn!(%error, "no termination message could be written");
            }
            EXIT_FAILED
        }
    };
    // Not by returning: libtorch's static destructors must not run while a worker is inside it.
    std::process::exit(code)
}

/// Logs on stderr: plain on a terminal and JSON elsewhere. `RUST_LOG` as usual.
fn log(terminal: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if terminal {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

/// A panic is logged with its place only: its message may hold a part of a request's text.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        tracing::error!(place, thread, "panic");
    }));
}

async fn execute(arguments: &Arguments) -> Result<(), Failure> {
    let common = &arguments.common;
    let stop = told_to_end()?;
    let listeners = Listeners::bind(common.data_addr, common.inside_addr)?;
    let (config, source, scratch) = configuration(&arguments.command)?;
    let operation = Duration::from_secs(common.storage_timeout);
    let options = Options {
        scratch: common.scratch.clone().unwrap_or(scratch),
        storage_limits: Limits {
            operation,
            silence: operation.min(Limits::default().silence),
            ..Limits::default()
        },
        load_tries: common.load_tries,
    };
    run::serve(&config, &source, listeners, &options, stop).await
}

/// The configuration, where the assignment is, and the usual folder of the artifact cache.
fn configuration(command: &Command) -> Result<(ServingConfig, Source, PathBuf), Failure> {
    match command {
        Command::Serve {
            config,
            assignment,
            pod,
        } => Ok((
            config::from_file(config)?,
            Source::File {
                path: assignment.clone(),
                pod: pod.clone().unwrap_or_else(host_name),
            },
            PathBuf::from(SCRATCH_DIR),
        )),
        Command::Run {
            file,
            model_version,
            device,
            ca_file,
            tls_certificate,
            tls_key,
            receipt_key,
        } => {
            let (config, assignment) = config::from_manifests(&LocalRun {
                files: file.iter().chain(model_version).cloned().collect(),
                device: match device {
                    DeviceArgument::Cpu => Device::Cpu,
                    DeviceArgument::Cuda => Device::Cuda,
                },
                ca_file: ca_file.clone(),
                tls: tls_certificate
                    .as_ref()
                    .zip(tls_key.as_ref())
                    .map(|(certificate, key)| TlsFiles {
                        certificate: certificate.display().to_string(),
                        key: key.display().to_string(),
                    }),
                receipt_key: receipt_key.clone(),
            })?;
            let cache = std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
                .filter(|path| path.is_absolute())
                .unwrap_or_else(std::env::temp_dir);
            Ok((config, Source::Fixed(Box::new(assignment)), cache.join("flywheel")))
        }
    }
}

/// The name of the machine, which the kubelet makes that of the pod; empty where it cannot be read.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Resolves when the process is told to end. Signals count from this call on.
fn told_to_end() -> Result<impl Future<Output = ()>, Failure> {
    let listen =
        |kind| signal(kind).map_err(|e| Failure::new(FailureReason::InternalError, format!("no signals: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
