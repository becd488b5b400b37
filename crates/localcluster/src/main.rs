//! The command `flywheel-localcluster`: arguments to calls of the library, nothing else.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use flywheel_localcluster::{
    Cluster, ControlPlane, ControlPlaneOptions, Error, Health, KUBERNETES, NodeKind, Options, Program, Result, down,
    image, machine, names, play_gpus,
};
use tracing_subscriber::EnvFilter;

/// A real Kubernetes cluster on this machine: control plane, nodes with simulated GPUs, DNS and an object store.
///
/// Needs root, Go and a few Debian packages (it names them). Everything is built once and kept in FLYWHEEL_CACHE
/// (default ~/.cache/flywheel). With CLUSTER=current and KUBECONFIG set, your own cluster is used and nothing is started.
#[derive(Parser)]
#[command(name = "flywheel-localcluster", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Args)]
struct Named {
    /// Which cluster.
    #[arg(long, default_value = "default", env = "FLYWHEEL_CLUSTER")]
    name: String,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster, or find it running and add the nodes that it lacks.
    Up {
        #[command(flatten)]
        cluster: Named,
        /// Real nodes without GPUs, where the operator runs.
        #[arg(long, default_value_t = 1)]
        system: u16,
        /// Real nodes with simulated A100s.
        #[arg(long, default_value_t = 1)]
        a100: u16,
        /// Real nodes with simulated T4s.
        #[arg(long, default_value_t = 1)]
        t4: u16,
        /// Fake nodes (KWOK), A100 and T4 in turn; their pods only seem to run.
        #[arg(long, default_value_t = 0)]
        kwok: u16,
        /// Version of Kubernetes.
        #[arg(long, default_value = KUBERNETES)]
        kubernetes_version: String,
    },
    /// End the cluster, or what an interrupted start has left.
    Down {
        #[command(flatten)]
        cluster: Named,
        /// Every cluster of this cache folder, whatever FLYWHEEL_CLUSTER says.
        #[arg(long)]
        all: bool,
    },
    /// Show what runs.
    Status(Named),
    /// Take a node off the network; what runs on it runs on.
    Cut(OfNode),
    /// Undo `cut`.
    Heal(OfNode),
    /// Hide the API server alone from a node and its pods.
    Cutapi(OfNode),
    /// Undo `cutapi`.
    Healapi(OfNode),
    /// Break a simulated GPU of a node, or mend it.
    Gpu {
        #[command(flatten)]
        of: OfNode,
        /// Which of the node's GPUs, from 0.
        index: u32,
        /// What the device plugin says of it.
        #[arg(value_enum)]
        health: GpuHealth,
    },
    /// Change how many simulated GPUs a node has.
    Gpus {
        #[command(flatten)]
        of: OfNode,
        /// As many.
        count: u32,
    },
    /// What plays a node's GPUs, in its namespaces.
    #[command(hide = true)]
    DevicePlugin {
        /// Name of the node.
        node: String,
        /// Where its GPUs stand.
        file: PathBuf,
    },
    /// Give the images of OCI archives to every real node, or to some.
    LoadImage {
        #[command(flatten)]
        cluster: Named,
        /// A node that gets them; can be given several times.
        #[arg(long = "node", value_name = "NODE")]
        nodes: Vec<String>,
        /// One more name of the image, where there is one archive.
        #[arg(long = "as", value_name = "NAME")]
        alias: Option<String>,
        /// Archives, as `images` writes them.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Run kubectl on the cluster (--name comes before `kubectl`'s arguments).
    #[command(disable_help_flag = true)]
    Kubectl(Passed),
    /// Run helm on the cluster.
    #[command(disable_help_flag = true)]
    Helm(Passed),
    /// Print the environment for programs that use the cluster: eval "$(flywheel-localcluster env)".
    Env(Named),
    /// Run a command against a control plane of its own, without nodes and without root; it ends with the command.
    ControlPlane {
        /// Also run controller manager and scheduler.
        #[arg(long)]
        controllers: bool,
        /// Version of Kubernetes.
        #[arg(long, default_value = KUBERNETES)]
        kubernetes_version: String,
        /// Gets KUBECONFIG.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Build the programs that are missing, and print where each is.
    Programs {
        /// Install the missing Debian packages first (needs root).
        #[arg(long)]
        install_packages: bool,
        /// Version of Kubernetes.
        #[arg(long, default_value = KUBERNETES)]
        kubernetes_version: String,
    },
    /// Build container images as OCI archives, and print where each is.
    Images {
        /// The operator's program.
        #[arg(long)]
        operator: Option<PathBuf>,
        /// The trainer's program.
        #[arg(long, requires = "libtorch")]
        trainer: Option<PathBuf>,
        /// The server's program.
        #[arg(long, requires = "libtorch")]
        server: Option<PathBuf>,
        /// Folder with libtorch's `lib`.
        #[arg(long)]
        libtorch: Option<PathBuf>,
        /// Where the archives go.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum GpuHealth {
    /// It works.
    Healthy,
    /// It is broken.
    Unhealthy,
}

#[derive(Args)]
struct OfNode {
    #[command(flatten)]
    cluster: Named,
    /// Name of a real node, as `a100-1`.
    node: String,
}

#[derive(Args)]
struct Passed {
    #[command(flatten)]
    cluster: Named,
    /// Passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let command = match parse(std::env::args_os()) {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the arguments. `down` takes either `--all` or `--name`; clap's own `conflicts_with` would count a name from the
/// environment, too, which make and tests set.
///
/// # Errors
/// Arguments that cannot be used, `--help` and `--version`: clap's error prints what is to be said.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> std::result::Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    // Only of `down`: clap panics where a command has no such argument.
    let named = matches
        .subcommand_matches("down")
        .is_some_and(|given| given.value_source("name") == Some(ValueSource::CommandLine));
    if named && matches!(cli.command, Action::Down { all: true, .. }) {
        return Err(command.error(
            ErrorKind::ArgumentConflict,
            "the argument '--all' cannot be used with '--name <NAME>'",
        ));
    }
    Ok(cli)
}

fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up {
            cluster,
            system,
            a100,
            t4,
            kwok,
            kubernetes_version,
        } => {
            let nodes = [(NodeKind::System, system), (NodeKind::A100, a100), (NodeKind::T4, t4)].into();
            let options = Options {
                name: cluster.name,
                nodes,
                kwok,
                kubernetes: kubernetes_version,
            };
            let cluster = Cluster::up(&options)?.leave_running();
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
        }
        Action::Down { cluster, all } => {
            let which = if all { names()? } else { vec![cluster.name] };
            for name in which {
                if down(&name)? {
                    tracing::info!("cluster {name} is down");
                } else {
                    tracing::info!("CLUSTER=current: nothing was started, and nothing is ended");
                }
            }
        }
        Action::Status(cluster) => print!("{}", Cluster::find(&cluster.name)?.status()?),
        Action::Cut(of) => Cluster::find(&of.cluster.name)?.cut(&of.node)?,
        Action::Heal(of) => Cluster::find(&of.cluster.name)?.heal(&of.node)?,
        Action::Cutapi(of) => Cluster::find(&of.cluster.name)?.cut_api(&of.node)?,
        Action::Healapi(of) => Cluster::find(&of.cluster.name)?.heal_api(&of.node)?,
        Action::Gpu { of, index, health } => {
            let health = match health {
                GpuHealth::Healthy => Health::Healthy,
                GpuHealth::Unhealthy => Health::Unhealthy,
            };
            Cluster::find(&of.cluster.name)?.set_gpu(&of.node, index, health)?;
        }
        Action::Gpus { of, count } => Cluster::find(&of.cluster.name)?.set_gpus(&of.node, count)?,
        Action::DevicePlugin { node, file } => match play_gpus(&node, &file)? {},
        Action::LoadImage {
            cluster,
            nodes,
            alias,
            archives,
        } => {
            if alias.is_some() && archives.len() > 1 {
                return Err(Error::Usage("--as names the image of one archive".to_owned()));
            }
            let cluster = Cluster::find(&cluster.name)?;
            for archive in archives {
                cluster.load_image(&archive, &nodes, alias.as_deref())?;
                let on = if nodes.is_empty() {
                    cluster.nodes()
                } else {
                    nodes.clone()
                };
                tracing::info!("{} is on {}", archive.display(), on.join(" "));
            }
        }
        Action::Kubectl(passed) => {
            let cluster = Cluster::find(&passed.cluster.name)?;
            return become_command(cluster.kubectl().command().args(passed.arguments));
        }
        Action::Helm(passed) => {
            let cluster = Cluster::find(&passed.cluster.name)?;
            let helm = Program::Helm.ensure(KUBERNETES)?;
            return become_command(
                Command::new(helm)
                    .env("KUBECONFIG", cluster.kubeconfig())
                    .args(passed.arguments),
            );
        }
        Action::Env(cluster) => {
            for (name, value) in Cluster::find(&cluster.name)?.environment() {
                println!("export {name}='{value}'");
            }
        }
        Action::ControlPlane {
            controllers,
            kubernetes_version,
            command,
        } => {
            let plane = ControlPlane::start(&ControlPlaneOptions {
                kubernetes: kubernetes_version,
                controllers,
                audit: false,
            })?;
            let Some((program, arguments)) = command.split_first() else {
                return Ok(ExitCode::SUCCESS);
            };
            let status = Command::new(program)
                .args(arguments)
                .env("KUBECONFIG", plane.kubeconfig())
                .status()
                .map_err(|source| Error::Io {
                    what: format!("starting {program}"),
                    source,
                })?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Action::Programs {
            install_packages,
            kubernetes_version,
        } => {
            if install_packages {
                machine::install_packages()?;
            }
            for program in Program::ALL {
                println!("{}", program.ensure(&kubernetes_version)?.display());
            }
        }
        Action::Images {
            operator,
            trainer,
            server,
            libtorch,
            out,
        } => {
            for archive in image::build_all(
                &image::Sources {
                    operator,
                    trainer,
                    server,
                    libtorch,
                },
                &out,
            )? {
                println!("{}", archive.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command in our place, so that signals and its exit status are its own.
fn become_command(command: &mut Command) -> Result<ExitCode> {
    let source = command.exec();
    Err(Error::Io {
        what: format!("starting {}", command.get_program().to_string_lossy()),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_read() {
        for arguments in [
            "programs",
            "status",
            "down",
            "up",
            "env",
            "cut a100-1",
            "gpu a100-1 0 unhealthy",
            "gpus a100-1 40",
            "kubectl get nodes",
        ] {
            let all = std::iter::once("flywheel-localcluster")
                .chain(arguments.split(' '))
                .map(OsString::from);
            assert!(parse(all).is_ok(), "{arguments}");
        }
    }
}
