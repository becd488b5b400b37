//! The command line.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::simulate::Peer;

const EXAMPLES: &str = "\
Examples:
  kubectl flywheel status                                what there is in the namespace
  kubectl flywheel progress intent --watch               a training until its end
  kubectl flywheel logs intent -f                        its log, over restarts
  kubectl flywheel predict intent \"turn the lights off\"  ask a service
  kubectl flywheel explain intent                        what led to which version
  kubectl flywheel watch intent                          the same, live
  kubectl flywheel rollout intent pause                  keeps a new version where it is
  kubectl flywheel retrain intent                        trains it anew now
  kubectl flywheel import s3://models/intent             makes the versions of a bucket again
  kubectl flywheel simulate --trace spikes               how a service would scale

Exit codes: 0 done, 1 the command could not be carried out, 2 wrong command line, 3 the TrainingJob failed (progress).";

/// Looks at Flywheel's objects with your own rights: a training's live progress and logs, predictions, conditions, what led to what;
/// and imports versions.
#[derive(Clone, Debug, Parser)]
#[command(name = "kubectl-flywheel", bin_name = "kubectl flywheel", version, after_help = EXAMPLES)]
pub struct CommandLine {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster and namespace, with kubectl's names.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Target {
    /// Kubeconfig to use instead of KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig instead of the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace instead of the context's.
    #[arg(short, long, global = true, value_name = "NAME", value_parser = namespace)]
    pub(crate) namespace: Option<String>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// How far a training is, from its pod itself.
    ///
    /// Reads the pod's own figures by port-forward, which takes the rights get and create on pods/portforward. Where no
    /// pod runs, it tells from the TrainingJob's status. Exit code 3: the training failed.
    #[command(after_help = "Examples:
  kubectl flywheel progress intent
  kubectl flywheel progress intent --watch -n team && kubectl apply -f service.yaml
  kubectl flywheel progress intent -o json | jq .progress.loss")]
    Progress {
        /// Name of the TrainingJob.
        #[arg(value_name = "TRAININGJOB", value_parser = training_job)]
        job: String,
        /// Go on until the job ends.
        #[arg(short, long)]
        watch: bool,
        /// json: one object per line; its fields are in docs/cli.md.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// The log of a training.
    #[command(after_help = "Examples:
  kubectl flywheel logs intent
  kubectl flywheel logs intent -f              over restarts, until the job ends
  kubectl flywheel logs intent --attempt 1     of an attempt that is over")]
    Logs {
        /// Name of the TrainingJob.
        #[arg(value_name = "TRAININGJOB", value_parser = training_job)]
        job: String,
        /// Go on until the job ends, from one attempt to the next.
        #[arg(short, long)]
        follow: bool,
        /// Only this attempt, from 1, instead of the current one.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        attempt: Option<u32>,
    },
    /// Ask a service: one request per text, to one of its ready pods.
    ///
    /// Goes by port-forward, which takes the rights get and create on pods/portforward; MS is the time from request to
    /// answer on that way, longer than inside the cluster.
    #[command(after_help = "Examples:
  kubectl flywheel predict intent \"turn the lights off\" \"is it raining\"
  kubectl flywheel predict intent \"turn the lights off\" -o json | jq -r '.predictions[].label'")]
    Predict {
        /// Name of the InferenceService.
        #[arg(value_name = "INFERENCESERVICE", value_parser = inference_service)]
        service: String,
        /// Texts to classify.
        #[arg(value_name = "TEXT", required = true)]
        texts: Vec<String>,
        /// json: the predictions as the service gives them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// One object with its conditions, children and newest events; without a name, all objects of the namespace.
    #[command(after_help = "Examples:
  kubectl flywheel status
  kubectl flywheel status trainingjob/intent
  kubectl flywheel status infsvc/intent -n team")]
    Status {
        /// trainingjob/NAME (tj), modelversion/NAME (mv) or inferenceservice/NAME (infsvc).
        #[arg(value_name = "KIND/NAME", value_parser = object)]
        object: Option<Object>,
    },
    /// What led to what: drift, the training that it made, the version that came of it, and what became of that.
    #[command(after_help = "Examples:
  kubectl flywheel explain intent")]
    Explain {
        /// Name of the InferenceService.
        #[arg(value_name = "INFERENCESERVICE", value_parser = inference_service)]
        service: String,
    },
    /// A service and what it learns, live: who answers, drift, feedback, training, rollout, news.
    ///
    /// A picture on a terminal, until you press q; a line for each piece of news elsewhere, until it is told to end. Figures of a
    /// training come from its pod by port-forward, as with progress.
    #[command(after_help = "Examples:
  kubectl flywheel watch intent
  kubectl flywheel watch intent | tee intent.log")]
    Watch {
        /// Name of the InferenceService.
        #[arg(value_name = "INFERENCESERVICE", value_parser = inference_service)]
        service: String,
    },
    /// Asks for a training of a service with spec.retrain, whatever its limits say, by changing the InferenceService's spec.
    ///
    /// Takes the right to patch InferenceServices. Where the object stands in Git, print the patch and put it there.
    #[command(after_help = "Examples:
  kubectl flywheel retrain intent
  kubectl flywheel retrain --print-patch intent")]
    Retrain {
        /// Name of the InferenceService.
        #[arg(value_name = "INFERENCESERVICE", value_parser = inference_service)]
        service: String,
        /// Print the merge patch, and change nothing.
        #[arg(long)]
        print_patch: bool,
    },
    /// Lets a version that comes by steps go on, wait or go back, by changing the InferenceService's spec.
    ///
    /// Takes the right to patch InferenceServices. Where the object stands in Git, print the patch and put it there: what is
    /// changed in the cluster alone the next sync undoes.
    #[command(after_help = "Examples:
  kubectl flywheel rollout intent pause
  kubectl flywheel rollout intent approve               past all further steps
  kubectl flywheel rollout intent abort                 the version on its way goes, what answers stays
  kubectl flywheel rollout intent undo --to intent-v1
  kubectl flywheel rollout --print-patch intent abort")]
    Rollout {
        /// Name of the InferenceService.
        #[arg(value_name = "INFERENCESERVICE", value_parser = inference_service)]
        service: String,
        /// Print the merge patch, and change nothing.
        #[arg(long)]
        print_patch: bool,
        #[command(subcommand)]
        step: Rollout,
    },
    /// Makes the ModelVersions of a bucket again, or one of a model that was trained elsewhere.
    ///
    /// A short Job of the trainer's image looks below the folder for artifacts and the receipts that verification left beside them,
    /// with the storage settings that you give; the ModelVersions are made with your own rights. It takes the rights to make and
    /// delete Jobs, to list pods and read their log, and to make ModelVersions. One that is there already with the same artifact
    /// stays, one with another artifact is told and never changed.
    #[command(after_help = "Examples:
  kubectl flywheel import s3://models/intent -n team --storage-secret s3
  kubectl flywheel import s3://models/intent --storage-secret s3 --endpoint http://minio.storage:9000 --dry-run
  kubectl flywheel import s3://models/intent/3f0c/attempt-1 --storage-secret s3 --version 4      an artifact without a receipt
  kubectl flywheel import s3://hub/my-bert --model intent --version 1 --to s3://models/intent/my-bert --storage-secret s3
                                                         a classifier in Hugging Face's layout
  kubectl flywheel import s3://models -o json --storage-secret s3 > versions.json               for Git; nothing is made")]
    Import(Import),
    /// How many replicas a service would have: a trace of requests against a simulated service, sized by the operator's own
    /// policy, and beside it by Knative's and Kubernetes' autoscalers.
    ///
    /// Asks no cluster. docs/scaling.md describes what is simulated.
    #[command(after_help = "Examples:
  kubectl flywheel simulate                                  all traces that come with the plugin
  kubectl flywheel simulate --trace spikes --timeline        each change of one of them, and why
  kubectl flywheel simulate --trace monday.csv -f service.yaml --capacity 240 --start 45
  kubectl flywheel simulate --trace step -o json | jq '.[].runs[].replicaHours'

A trace is a CSV file with the header `seconds,qps` or `seconds,qps,silent`; a row holds until the next one, the last row
says when the trace ends, and 1 under silent means that no pod answers who asks for its counters.")]
    Simulate(Simulate),
    /// The plugin's version, and the installed operator's image where it can be read.
    #[command(after_help = "Examples:
  kubectl flywheel version
  kubectl flywheel version -n flywheel-system     with rights in the operator's namespace only")]
    Version,
}

/// What a rollout is to do.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Go on to no further step.
    Pause,
    /// Go on.
    Resume,
    /// All pods change over to the version on its way, without further steps.
    Approve,
    /// The version on its way goes; with autoUpdate it is excluded.
    Abort,
    /// Back to the version before the one that answers; with autoUpdate that one is excluded.
    Undo {
        /// The version to go back to, instead of the one before.
        #[arg(long, value_name = "MODELVERSION", value_parser = model_version)]
        to: Option<String>,
    },
}

/// What to import.
#[derive(Args, Clone, Debug)]
pub(crate) struct Import {
    /// Folder below which artifacts lie, or with `--to` a folder in Hugging Face's layout.
    #[arg(value_name = "URI")]
    pub(crate) uri: String,
    /// Name of the model of an artifact without a receipt, instead of the one that its manifest tells.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) model: Option<String>,
    /// Number of the version of an artifact without a receipt.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=2_147_483_647))]
    pub(crate) version: Option<i64>,
    /// Makes an artifact of the folder, and writes it to this one.
    #[arg(long, value_name = "URI", requires_all = ["model", "version"])]
    pub(crate) to: Option<String>,
    /// Takes the versions of this namespace, instead of those of the one they are made in.
    #[arg(long, value_name = "NAME", value_parser = namespace)]
    pub(crate) from_namespace: Option<String>,
    /// Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) storage_secret: Option<String>,
    /// URL of an S3-compatible service.
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Region.
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// ConfigMap and key with certificates to trust.
    #[arg(long, value_name = "CONFIGMAP/KEY", value_parser = config_key)]
    pub(crate) ca_bundle: Option<(String, String)>,
    /// Service account of the Job's pod and of the versions', for workload identity.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) service_account: Option<String>,
    /// The trainer's image. Without it, the one of the operator's settings, where you may read them.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Seconds that the Job may take, its image's download included.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(10..=3600))]
    pub(crate) timeout: u32,
    /// Look and tell, and make no ModelVersion.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// json: the ModelVersions as a List for Git; none is made.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// `CONFIGMAP/KEY`.
fn config_key(text: &str) -> Result<(String, String), String> {
    let (map, key) = text.split_once('/').ok_or("write CONFIGMAP/KEY")?;
    if key.is_empty() || key.contains('/') {
        return Err("write CONFIGMAP/KEY".to_owned());
    }
    Ok((name(map)?, key.to_owned()))
}

/// What to simulate.
#[derive(Args, Clone, Debug)]
pub(crate) struct Simulate {
    /// A trace that comes with the plugin (step, ramp, sine-day, spikes, noise, gap, slow-start) or a CSV file, as often as
    /// you like; without it all that come with the plugin.
    #[arg(long = "trace", value_name = "NAME|FILE")]
    pub(crate) traces: Vec<String>,
    /// An InferenceService whose scaling, objectives and server settings are taken; without it 1 to 100 replicas, defaults and
    /// a learned target.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Option<PathBuf>,
    /// Requests per second that one replica computes.
    #[arg(long, value_name = "QPS", default_value_t = 100.0, value_parser = above_zero)]
    pub(crate) capacity: f64,
    /// Seconds that a pod needs from its creation until it gets requests. Without it 30, and 120 in slow-start.
    #[arg(long, value_name = "SECONDS", value_parser = above_zero)]
    pub(crate) start: Option<f64>,
    /// Scale-down delay instead of the service's: 300 s are the HorizontalPodAutoscaler's, 0 s Knative's.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) scale_down_delay: Option<u64>,
    /// Autoscalers to compare with.
    #[arg(long = "peer", value_enum, value_delimiter = ',', default_value = "kpa,hpa")]
    pub(crate) peers: Vec<Peer>,
    /// Same seed, same requests.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Each change of the size, and why.
    #[arg(long)]
    pub(crate) timeline: bool,
    /// json: one array; its fields are in docs/cli.md.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// A number above zero that a simulation can carry.
fn above_zero(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.001..=1e6).contains(number));
    number.ok_or_else(|| "a number from 0.001 to 1000000".to_owned())
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// One of the three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    TrainingJob,
    ModelVersion,
    InferenceService,
}

impl Kind {
    const ALL: [Self; 3] = [Self::TrainingJob, Self::ModelVersion, Self::InferenceService];

    fn as_str(self) -> &'static str {
        match self {
            Self::TrainingJob => "TrainingJob",
            Self::ModelVersion => "ModelVersion",
            Self::InferenceService => "InferenceService",
        }
    }

    fn short(self) -> &'static str {
        match self {
            Self::TrainingJob => "tj",
            Self::ModelVersion => "mv",
            Self::InferenceService => "infsvc",
        }
    }

    /// The kind of a word that kubectl takes for it: singular, plural, short, with the group or without.
    fn parse(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let word = word.strip_suffix(&format!(".{}", flywheel_api::GROUP)).unwrap_or(&word);
        Self::ALL.into_iter().find(|kind| {
            let singular = kind.as_str().to_ascii_lowercase();
            word == kind.short() || word == singular || word.strip_suffix('s') == Some(&singular)
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object of one of the three kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

/// A name becomes part of a path, so nothing but a name may pass.
fn name(text: &str) -> Result<String, String> {
    let fits = (1..=253).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'));
    if fits && !text.contains("..") {
        Ok(text.to_owned())
    } else {
        Err("a name has lower-case letters, digits, '-' and '.' only".to_owned())
    }
}

fn namespace(text: &str) -> Result<String, String> {
    name(text)
}

/// `NAME` or `KIND/NAME` where the kind is clear.
fn of_kind(kind: Kind, text: &str) -> Result<String, String> {
    match text.split_once('/') {
        None => name(text),
        Some((word, rest)) if Kind::parse(word) == Some(kind) => name(rest),
        Some((word, _)) => Err(format!("this command takes a {kind}, not a {word}")),
    }
}

fn training_job(text: &str) -> Result<String, String> {
    of_kind(Kind::TrainingJob, text)
}

fn inference_service(text: &str) -> Result<String, String> {
    of_kind(Kind::InferenceService, text)
}

fn model_version(text: &str) -> Result<String, String> {
    of_kind(Kind::ModelVersion, text)
}

fn object(text: &str) -> Result<Object, String> {
    let expected = || "say the kind too: trainingjob/NAME, modelversion/NAME or inferenceservice/NAME".to_owned();
    let (word, rest) = text.split_once('/').ok_or_else(expected)?;
    Ok(Object {
        kind: Kind::parse(word).ok_or_else(expected)?,
        name: name(rest)?,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(std::iter::once("kubectl-flywheel").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_examples() {
        let command = CommandLine::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.contains(&format!("kubectl flywheel {}", sub.get_name())),
                "{}",
                sub.get_name()
            );
        }
    }

    #[test]
    fn kinds_are_known_by_kubectls_words() {
        for word in [
            "tj",
            "trainingjob",
            "TrainingJob",
            "trainingjobs",
            "trainingjobs.flywheel.dev",
        ] {
            assert_eq!(Kind::parse(word), Some(Kind::TrainingJob), "{word}");
        }
        assert_eq!(Kind::parse("mv"), Some(Kind::ModelVersion));
        assert_eq!(Kind::parse("infsvc"), Some(Kind::InferenceService));
        for word in ["", "job", "pod", "tjs", "trainingjobss"] {
            assert_eq!(Kind::parse(word), None, "{word}");
        }
    }

    #[test]
    fn names_that_would_leave_their_path_are_refused() {
        for line in [
            "progress ../x",
            "progress a/../b",
            "progress a%2fb",
            "progress A",
            "progress tj/",
            "progress mv/intent",
            "predict tj/intent text",
            "status intent",
            "status pod/x",
            "status tj/..",
            "status -n a/b",
            "logs intent --attempt 0",
            "predict intent",
            "rollout intent",
            "rollout intent undo --to ../x",
            "explain tj/intent",
            "retrain tj/intent",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        for line in [
            "progress intent",
            "progress tj/intent -w -o json -n team",
            "status",
            "-n team status mv/intent-v1",
            "rollout infsvc/intent undo --to mv/intent-v1",
            "rollout --print-patch intent pause",
            "explain infsvc/intent",
            "retrain --print-patch infsvc/intent",
        ] {
            parse(line).expect(line);
        }
    }

    #[test]
    fn flags_of_the_cluster_may_stand_anywhere() {
        for line in ["-n team --context c status", "status -n team --context c"] {
            let target = parse(line).expect(line).target;
            assert_eq!(
                (target.namespace.as_deref(), target.context.as_deref()),
                (Some("team"), Some("c"))
            );
        }
    }
}
