//! Entry of the operator: arguments, TLS provider, panic hook, run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use flywheel_operator::run::{Arguments, run, stop_signal};
use flywheel_operator::telemetry::{LogFormat, start_logging};

/// Runs Flywheel's controllers against the cluster that KUBECONFIG or the pod's service account leads to.
#[derive(Debug, Parser)]
#[command(name = "flywheel-operator", version, about)]
struct CommandLine {
    /// Settings: accelerator classes, images, namespaces (YAML).
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8081")]
    admin_addr: SocketAddr,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
    /// Namespace of the operator and its Lease.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    lease_namespace: String,
    /// Name of this replica, which no other one may have; without it a random one.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,
}

/// A name that no other process has: what is in /proc is unique per start.
fn random_identity() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    format!("flywheel-operator-{}-{}", std::process::id(), uuid.trim())
}

#[tokio::main]
async fn main() -> ExitCode {
    // Before anything else: the first process of a container gets no signal that it has not asked for.
    let stop = match stop_signal() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("flywheel-operator: SIGTERM and SIGINT cannot be waited for: {error}");
            return ExitCode::FAILURE;
        }
    };
    let arguments = CommandLine::parse();
    // With two TLS providers in the build rustls cannot choose, and the first client would panic.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("flywheel-operator: the TLS provider was set already");
        return ExitCode::FAILURE;
    }
    if let Err(error) = start_logging(arguments.log_format) {
        eprintln!("flywheel-operator: logging: {error}");
        return ExitCode::FAILURE;
    }
    // A panic in one task would leave the rest running on half a state: end, and let the kubelet start afresh.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    let arguments = Arguments {
        settings: arguments.settings,
        admin_addr: arguments.admin_addr,
        namespace: arguments.lease_namespace,
        identity: arguments
            .identity
            .filter(|i| !i.is_empty())
            .unwrap_or_else(random_identity),
    };
    let outcome = run(arguments, stop).await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "ended");
            ExitCode::FAILURE
        }
    }
}
