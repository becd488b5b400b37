//! Configuration: from the pod's environment, or from a TrainingJob's YAML.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use flywheel_api::{TrainingJob, manifest};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::checkpoint::KEEP_MAX;
use flywheel_contract::dataset::{DataLimits, ROWS_MAX};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::gate::Gate;
use flywheel_contract::names::{CONFIG_ENV, CONFIG_MAX_BYTES};
use flywheel_contract::scalar::Device;
use flywheel_contract::storage::StorageSettings;
use flywheel_contract::trainer::{JobIdentity, TrainerConfig, World};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::command::file_uri;

/// Most bytes of a YAML file.
const MANIFEST_MAX_BYTES: u64 = 1024 * 1024;
/// Most pods of an attempt, and most processes of a pod.
const NODES_MAX: u32 = 1000;
const PROCESSES_PER_NODE_MAX: u32 = 64;

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureReason::ConfigInvalid, message)
}

/// Reads [`CONFIG_ENV`].
///
/// # Errors
/// `ConfigInvalid`, also for a schema version that is not understood.
pub fn from_environment<T: DeserializeOwned>() -> Result<T, Failure> {
    let text = std::env::var(CONFIG_ENV).map_err(|_| {
        invalid(format!("{CONFIG_ENV} is not set; the operator sets it in pods. On your own machine use `flywheel-trainer run -f job.yaml`"))
    })?;
    parse(&text)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: u32,
    }
    if text.len() > CONFIG_MAX_BYTES {
        return Err(invalid(format!(
            "{CONFIG_ENV} has {} bytes, more than {CONFIG_MAX_BYTES}; use fewer or shorter sources",
            text.len()
        )));
    }
    let unreadable = |e: serde_json::Error| {
        invalid(format!(
            "{CONFIG_ENV} cannot be read: {e}; use operator and trainer image of one release"
        ))
    };
    let version: Version = serde_json::from_str(text).map_err(unreadable)?;
    if version.schema_version != SCHEMA_VERSION {
        return Err(invalid(format!(
            "{CONFIG_ENV} has schemaVersion {}, this image understands {SCHEMA_VERSION}; use operator and trainer image of one release",
            version.schema_version
        )));
    }
    serde_json::from_str(text).map_err(unreadable)
}

/// What the API server checks and a file without it may break.
///
/// # Errors
/// `ConfigInvalid` with the field.
pub fn check(config: &TrainerConfig) -> Result<(), Failure> {
    let d = &config.dataset;
    if d.sources.is_empty() {
        return Err(invalid("dataset.sources is empty; name at least one file"));
    }
    if d.text_column == d.label_column {
        return Err(invalid("dataset.textColumn and dataset.labelColumn must differ"));
    }
    if d.validation.is_some() != d.test.is_some() {
        return Err(invalid(
            "dataset.validation and dataset.test are given together, or both sets are split off the sources",
        ));
    }
    if d.split.is_some() && d.test.is_some() {
        return Err(invalid(
            "dataset.split and explicit validation and test sets exclude each other",
        ));
    }
    if let Some(s) = &d.split {
        let parts = [s.train_percent, s.validation_percent, s.test_percent];
        if parts.iter().any(|p| !(1..=98).contains(p)) || parts.iter().sum::<i32>() != 100 {
            return Err(invalid(
                "dataset.split: trainPercent, validationPercent and testPercent must each be 1 to 98 and sum to 100",
            ));
        }
    }
    if !(8..=8192).contains(&config.hyperparameters.max_length) {
        return Err(invalid(format!(
            "hyperparameters.maxLength is {}, not 8 to 8192",
            config.hyperparameters.max_length
        )));
    }
    let none = DataLimits::default();
    let l = d.limits.as_ref().unwrap_or(&none);
    for (name, limit, low, high) in [
        ("maxConflicts", l.max_conflicts, 0, ROWS_MAX),
        ("maxNearDuplicates", l.max_near_duplicates, 0, ROWS_MAX),
        ("maxImbalanceRatio", l.max_imbalance_ratio, 1, ROWS_MAX),
        ("minRowsPerLabel", l.min_rows_per_label, 1, ROWS_MAX),
        ("maxTruncatedPercent", l.max_truncated_percent, 0, 100),
    ] {
        if let Some(limit) = limit.filter(|limit| !(low..=high).contains(limit)) {
            return Err(invalid(format!(
                "dataset.limits.{name} is {limit}, not {low} to {high}"
            )));
        }
    }
    let c = &config.checkpoint;
    if !(1..=86_400).contains(&c.interval_seconds) {
        return Err(invalid(format!(
            "checkpoint.intervalSeconds is {}, not 1 to 86400",
            c.interval_seconds
        )));
    }
    if !(1..=KEEP_MAX).contains(&c.keep) {
        return Err(invalid(format!("checkpoint.keep is {}, not 1 to {KEEP_MAX}", c.keep)));
    }
    let w = &config.world;
    for (name, value, most) in [
        ("nodes", w.nodes, NODES_MAX),
        ("processesPerNode", w.processes_per_node, PROCESSES_PER_NODE_MAX),
    ] {
        if !(1..=most).contains(&value) {
            return Err(invalid(format!("world.{name} is {value}, not 1 to {most}")));
        }
    }
    if w.nodes > 1 && w.rendezvous.is_none() {
        return Err(invalid(
            "world.rendezvous is not given; with several nodes it names the host of node 0",
        ));
    }
    if !is_uid(&config.job.uid) {
        return Err(invalid(format!("job.uid must be {UID_RULE}")));
    }
    Ok(())
}

/// What [`is_uid`] asks for.
const UID_RULE: &str = "1 to 128 letters, digits and hyphens";

/// Whether a uid can be a folder's name.
fn is_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Arguments of `run`.
#[derive(Clone, Debug)]
pub struct LocalRun {
    /// The YAML.
    pub file: PathBuf,
    /// In place of `output.uri`.
    pub output: Option<PathBuf>,
    /// What to compute on.
    pub device: Device,
    /// In place of `storage.caBundle`.
    pub ca_file: Option<PathBuf>,
}

/// What `run` does.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalJob {
    /// What the operator would give to the pod of the TrainingJob. The job's uid is that of the file, or one of its own for
    /// each run.
    pub config: TrainerConfig,
    /// Whether the uid is the file's, and a later run so finds what this one saved.
    pub named: bool,
    /// What the metrics are compared with at the end.
    pub gates: Vec<Gate>,
    /// What the file asks for and only a cluster has, as sentences.
    pub unheeded: Vec<String>,
}

/// Reads the TrainingJob of a file.
///
/// # Errors
/// `ConfigInvalid` with field or line, also where the job is suspended.
pub fn from_manifest(run: &LocalRun) -> Result<LocalJob, Failure> {
    let name = run.file.display();
    let size = std::fs::metadata(&run.file)
        .map_err(|e| invalid(format!("{name} cannot be read: {e}")))?
        .len();
    if size > MANIFEST_MAX_BYTES {
        return Err(invalid(format!(
            "{name} has {size} bytes, more than {MANIFEST_MAX_BYTES}; it is no TrainingJob"
        )));
    }
    let text = std::fs::read_to_string(&run.file).map_err(|e| invalid(format!("{name} cannot be read: {e}")))?;
    let job = job_of(&text).map_err(|problem| invalid(format!("{name}: {problem}")))?;
    let spec = job.spec;
    let storage = spec.storage.unwrap_or_default();
    if storage.ca_bundle.is_some() && run.ca_file.is_none() {
        return Err(invalid(format!(
            "{name}: storage.caBundle names a ConfigMap, which only a cluster has; give --ca-file"
        )));
    }
    if spec.suspend {
        return Err(invalid(format!(
            "{name}: spec.suspend is true, so a cluster would train nothing; set it to false, or leave it out, to train here"
        )));
    }
    let (nodes, processes) = (spec.trainer.num_nodes, spec.trainer.accelerator.count);
    let unheeded = [
        ("spec.trainer.numNodes", nodes),
        ("spec.trainer.accelerator.count", processes),
    ]
    .into_iter()
    .filter(|(_, wanted)| *wanted > 1)
    .map(|(field, wanted)| format!("{field} is {wanted}, but one process trains here, with the same batches"))
    .collect();
    let output_uri = match &run.output {
        Some(folder) => {
            file_uri(&std::path::absolute(folder).map_err(|e| invalid(format!("--output cannot be used: {e}")))?)
        }
        None => spec.output.uri,
    };
    if spec.output.incumbent.is_some() {
        return Err(invalid(format!(
            "{name}: spec.output.incumbent names an object of the cluster, which is not asked here; leave it out, and gates with \
             minDelta, to train here"
        )));
    }
    if spec.model.from_version.is_some() {
        return Err(invalid(format!(
            "{name}: spec.model.fromVersion names an object of the cluster, which is not asked here; give model.pretrained with the \
             folder of its artifact, whose last layer is made anew where the labels are not as many"
        )));
    }
    let named = job.metadata.uid.is_some();
    if let Some(uid) = job.metadata.uid.as_deref().filter(|uid| !is_uid(uid)) {
        return Err(invalid(format!(
            "{name}: metadata.uid is {uid:?}; it must be {UID_RULE}"
        )));
    }
    let config = TrainerConfig {
        schema_version: SCHEMA_VERSION,
        job: JobIdentity {
            namespace: job.metadata.namespace.unwrap_or_else(|| "default".to_owned()),
            name: job.metadata.name.unwrap_or_else(|| "run".to_owned()),
            uid: job.metadata.uid.unwrap_or_else(own_uid),
            attempt: 1,
        },
        task: spec.task,
        model: spec.model,
        dataset: spec.dataset,
        hyperparameters: spec.hyperparameters,
        device: run.device,
        storage: StorageSettings {
            endpoint: storage.endpoint,
            region: storage.region,
            ca_file: run.ca_file.as_ref().map(|p| p.display().to_string()),
        },
        model_name: spec.output.model,
        output_uri,
        checkpoint: spec.checkpoint,
        world: World::default(),
        tracking: spec.tracking,
        base: None,
        incumbent: None,
        // Who trains here wants to see it train.
        reuse: false,
        expected: None,
    };
    Ok(LocalJob {
        config,
        named,
        gates: spec.output.gates.unwrap_or_default(),
        unheeded,
    })
}

/// One uid per run: milliseconds since 1970 and the process.
fn own_uid() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("run-{}-{}", now.as_millis(), std::process::id())
}

/// The one TrainingJob of a YAML text; other documents may stand beside it. Fields that the schema does not have are
/// refused, as kubectl does.
fn job_of(text: &str) -> Result<TrainingJob, String> {
    let mut jobs = manifest::objects::<TrainingJob>(&manifest::documents(text)?)?.into_iter();
    match (jobs.next(), jobs.next()) {
        (Some(job), None) => Ok(job),
        (None, _) => Err("it holds no object of kind TrainingJob".to_owned()),
        _ => Err("it holds more than one TrainingJob; give one per file".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"
apiVersion: flywheel.dev/v1alpha1
kind: TrainingJob
metadata: {name: intent, namespace: team-a}
spec:
  task: TextClassification
  model: {pretrained: {uri: file:///models/minilm}}
  dataset: {sources: [{uri: file:///data/intent.csv}]}
  output: {model: intent, uri: s3://models/intent}
"#;

    fn local(text: &str, change: fn(&mut LocalRun)) -> Result<TrainerConfig, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.yaml");
        std::fs::write(&file, text).unwrap();
        let mut run = LocalRun {
            file,
            output: None,
            device: Device::Cpu,
            ca_file: None,
        };
        change(&mut run);
        from_manifest(&run).map(|job| job.config)
    }

    #[test]
    fn a_manifest_becomes_what_the_operator_would_give() {
        let config = local(JOB, |_| ()).unwrap();
        assert_eq!(
            (config.job.name.as_str(), config.job.namespace.as_str()),
            ("intent", "team-a")
        );
        assert_eq!(config.output_uri.as_str(), "s3://models/intent");
        assert_eq!(config.hyperparameters.epochs, 4, "defaults are those of the schema");
        assert!(check(&config).is_ok());
        let moved = local(JOB, |r| r.output = Some("/tmp/out".into())).unwrap();
        assert_eq!(moved.output_uri.as_str(), "file:///tmp/out");
        let uid = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("job.yaml");
            std::fs::write(&file, text).unwrap();
            let run = LocalRun {
                file,
                output: None,
                device: Device::Cpu,
                ca_file: None,
            };
            let job = from_manifest(&run).unwrap();
            (job.config.job.uid, job.named)
        };
        assert_eq!(
            uid(&JOB.replace("{name: intent,", "{uid: u-1, name: intent,")),
            ("u-1".to_owned(), true)
        );
        assert!(!uid(JOB).1);
        let beside = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\n---{JOB}");
        assert_eq!(local(&beside, |_| ()).unwrap().model_name, "intent");
    }

    #[test]
    fn what_a_manifest_may_not_be() {
        let cases = [
            ("kind: Pod\n".to_owned(), "no object of kind TrainingJob"),
            (format!("{JOB}---{JOB}"), "more than one"),
            (
                JOB.replace("v1alpha1", "v9"),
                "apiVersion must be flywheel.dev/v1alpha1",
            ),
            (JOB.replace("task: TextClassification", "task: Poetry"), "Poetry"),
            (
                JOB.replace("  output:", "  colour: red\n  output:"),
                "unknown field spec.colour",
            ),
            (
                JOB.replace("intent.csv}", "intent.csv, fromat: Csv}"),
                "unknown field spec.dataset.sources[0].fromat",
            ),
            (
                JOB.replace(
                    "  output:",
                    "  storage: {caBundle: {configMapRef: {name: a, key: b}}}\n  output:",
                ),
                "--ca-file",
            ),
            (
                JOB.replace("  output:", "  suspend: true\n  output:"),
                "spec.suspend is true",
            ),
            (
                JOB.replace("{pretrained: {uri: file:///models/minilm}}", "{fromVersion: intent-v1}"),
                "spec.model.fromVersion names an object of the cluster",
            ),
            (
                JOB.replace("model: intent,", "model: intent, incumbent: intent-v1,"),
                "spec.output.incumbent names an object of the cluster",
            ),
            ("a: [".to_owned(), "job.yaml"),
            (
                JOB.replace("{name: intent,", "{uid: ../../x, name: intent,"),
                "job.yaml: metadata.uid is \"../../x\"",
            ),
        ];
        for (text, word) in cases {
            let failure = local(&text, |_| ()).expect_err(word);
            assert_eq!(failure.reason, FailureReason::ConfigInvalid);
            assert!(failure.message.contains(word), "{failure}");
        }
        assert!(
            local(JOB, |r| r.file = "/none.yaml".into())
                .unwrap_err()
                .message
                .contains("/none.yaml")
        );
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_here() {
        let good = local(JOB, |_| ()).unwrap();
        type Change = fn(&mut TrainerConfig);
        let changes: [(&str, Change); 13] = [
            ("world.nodes is 0", |c| c.world.nodes = 0),
            ("world.processesPerNode is 65", |c| c.world.processes_per_node = 65),
            ("world.rendezvous is not given", |c| c.world.nodes = 2),
            ("limits.minRowsPerLabel is 0, not 1 to 10000000", |c| {
                c.dataset.limits = Some(DataLimits {
                    min_rows_per_label: Some(0),
                    ..DataLimits::default()
                });
            }),
            ("intervalSeconds is 0", |c| c.checkpoint.interval_seconds = 0),
            ("keep is 21", |c| c.checkpoint.keep = 21),
            ("sources is empty", |c| c.dataset.sources.clear()),
            ("must differ", |c| c.dataset.label_column = "text".to_owned()),
            ("together", |c| c.dataset.test = Some(vec![])),
            ("exclude", |c| {
                c.dataset.split = Some(Default::default());
                (c.dataset.test, c.dataset.validation) = (Some(vec![]), Some(vec![]));
            }),
            ("sum to 100", |c| {
                c.dataset.split = Some(flywheel_contract::dataset::Split {
                    train_percent: 71,
                    ..Default::default()
                });
            }),
            ("maxLength", |c| c.hyperparameters.max_length = 7),
            ("uid", |c| c.job.uid = "../x".to_owned()),
        ];
        for (word, change) in changes {
            let mut config = good.clone();
            change(&mut config);
            let failure = check(&config).expect_err(word);
            assert!(failure.message.contains(word), "{failure}");
        }
    }

    #[test]
    fn an_environment_of_another_release_is_told_apart() {
        let config = local(JOB, |_| ()).unwrap();
        let mut json = serde_json::to_value(&config).unwrap();
        assert_eq!(parse::<TrainerConfig>(&json.to_string()).unwrap(), config);
        json["schemaVersion"] = 2.into();
        assert!(
            parse::<TrainerConfig>(&json.to_string())
                .unwrap_err()
                .message
                .contains("schemaVersion 2")
        );
        assert!(parse::<TrainerConfig>("{").unwrap_err().message.contains("one release"));
        assert!(
            parse::<TrainerConfig>(&" ".repeat(CONFIG_MAX_BYTES + 1))
                .unwrap_err()
                .message
                .contains("65537 bytes")
        );
    }
}
