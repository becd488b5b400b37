//! Configuration and assignment: the files of the pod's ConfigMaps, or the YAML of an InferenceService and its ModelVersion.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flywheel_api::drift::Drift;
use flywheel_api::{InferenceService, ModelVersion, manifest};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::profile::{MIN_WINDOW_SECONDS, WINDOW_SECONDS};
use flywheel_contract::scalar::Device;
use flywheel_contract::serving::{
    Assignment, MAX_VERSIONS, ServedVersion, ServiceIdentity, ServingConfig, ServingLimits, TlsFiles,
};
use flywheel_contract::split::{BUCKETS, Split};
use flywheel_contract::storage::StorageSettings;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

/// Most bytes of a configuration or YAML file; the API server takes no larger object.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureReason::ConfigInvalid, message)
}

fn read(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let unreadable = |e| invalid(format!("{name} cannot be read: {e}"));
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_MAX_BYTES {
        return Err(invalid(format!("{name} has {size} bytes, more than {FILE_MAX_BYTES}")));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// Reads the configuration that the operator writes.
///
/// # Errors
/// `ConfigInvalid`, also for a schema version that is not understood.
pub fn from_file(path: &Path) -> Result<ServingConfig, Failure> {
    let config = parse_file(path)?;
    check(&config)?;
    Ok(config)
}

/// Reads the assignment that the operator writes.
///
/// # Errors
/// `ConfigInvalid`, also for a schema version that is not understood, and for an assignment that contradicts itself.
pub fn assignment_from_file(path: &Path) -> Result<Assignment, Failure> {
    let assignment = parse_file(path)?;
    check_assignment(&assignment)?;
    Ok(assignment)
}

fn parse_file<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    parse(&read(path)?).map_err(|problem| {
        invalid(format!(
            "{}: {problem}; use operator and server image of one release. On your own machine use `flywheel-server run`",
            path.display()
        ))
    })
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: u32,
    }
    // First alone: a body of another version need not have the fields of this one.
    let version: Version = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if version.schema_version != SCHEMA_VERSION {
        return Err(format!(
            "schemaVersion is {}, this image understands {SCHEMA_VERSION}",
            version.schema_version
        ));
    }
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// What the API server checks and a file without it may break.
fn check(config: &ServingConfig) -> Result<(), Failure> {
    let limits = &config.limits;
    let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX).min(65_536);
    if !(1..=most).contains(&limits.max_concurrency) {
        return Err(invalid(format!(
            "maxConcurrency is {}, not 1 to {most}",
            limits.max_concurrency
        )));
    }
    if !(1..=600_000).contains(&limits.timeout_milliseconds) {
        return Err(invalid(format!(
            "timeoutMilliseconds is {}, not 1 to 600000",
            limits.timeout_milliseconds
        )));
    }
    Ok(())
}

fn check_assignment(assignment: &Assignment) -> Result<(), Failure> {
    let versions = &assignment.versions;
    if versions.len() > MAX_VERSIONS {
        return Err(invalid(format!(
            "{} versions are to be held, and a pod holds at most {MAX_VERSIONS}",
            versions.len()
        )));
    }
    let names: BTreeSet<&String> = versions.iter().map(|version| &version.name).collect();
    if names.len() < versions.len() {
        return Err(invalid("a version is to be held twice"));
    }
    if assignment.serving().is_none() {
        return Err(invalid(format!(
            "{} is to answer and is none of the versions to hold",
            assignment.serve
        )));
    }
    let held = |name: &String| names.contains(name);
    if let Some(split) = &assignment.split
        && !(split.is_whole() && split.ranges.iter().all(|range| held(&range.version)))
    {
        return Err(invalid(
            "the split is not all requests, each once, for versions to hold",
        ));
    }
    if let Some(mirror) = &assignment.mirror
        && !(held(&mirror.version) && (1..=100).contains(&mirror.percent))
    {
        return Err(invalid(
            "the mirror is none of the versions to hold, or its share is not 1 to 100 percent",
        ));
    }
    let canary = assignment.canary.as_ref();
    if let Some(canary) = canary
        && (canary.pods.values().any(|share| *share > BUCKETS)
            || (held(&canary.version.name) && !versions.contains(&canary.version)))
    {
        return Err(invalid(
            "the canary has more than all requests of a pod, or the name of another version to hold",
        ));
    }
    if !(MIN_WINDOW_SECONDS..=WINDOW_SECONDS).contains(&assignment.window_seconds()) {
        return Err(invalid(format!(
            "windows of live texts have {} s, not {MIN_WINDOW_SECONDS} to {WINDOW_SECONDS}",
            assignment.window_seconds()
        )));
    }
    for version in versions.iter().chain(canary.map(|canary| &canary.version)) {
        let hex = version.artifact.digest.hex();
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid(format!(
                "the artifact's digest is {:?}, not sha256: and 64 hexadecimal digits",
                version.artifact.digest.0
            )));
        }
    }
    Ok(())
}

/// Arguments of `run`.
#[derive(Clone, Debug)]
pub struct LocalRun {
    /// YAML with one InferenceService, and possibly its ModelVersion.
    pub files: Vec<PathBuf>,
    /// What to compute on.
    pub device: Device,
    /// In place of `storage.caBundle`.
    pub ca_file: Option<PathBuf>,
    /// In place of `server.tls`.
    pub tls: Option<TlsFiles>,
    /// In place of `feedback.signingKeySecretRef`.
    pub receipt_key: Option<PathBuf>,
}

/// The configuration and the assignment that the operator would give to the pods of this InferenceService.
///
/// # Errors
/// `ConfigInvalid` with file and field.
pub fn from_manifests(run: &LocalRun) -> Result<(ServingConfig, Assignment), Failure> {
    let mut services = Vec::new();
    let mut versions = Vec::new();
    for path in &run.files {
        let text = read(path)?;
        let at = |problem: String| invalid(format!("{}: {problem}", path.display()));
        let documents = manifest::documents(&text).map_err(at)?;
        services.extend(manifest::objects::<InferenceService>(&documents).map_err(at)?);
        versions.extend(manifest::objects::<ModelVersion>(&documents).map_err(at)?);
    }
    let service = match (services.pop(), services.pop()) {
        (Some(service), None) => service,
        (None, _) => return Err(invalid("the files hold no InferenceService; give one with -f")),
        _ => return Err(invalid("the files hold more than one InferenceService; give one")),
    };
    let (name, spec) = (service.metadata.name.unwrap_or_else(|| "run".to_owned()), service.spec);
    let mut held = Vec::new();
    for wanted in spec.versions() {
        let mut named = versions.iter().filter(|v| v.metadata.name.as_deref() == Some(wanted));
        let version = match (named.next(), named.next()) {
            (Some(version), None) => &version.spec,
            (None, _) => {
                return Err(invalid(format!(
                    "the files hold no ModelVersion {wanted}, which {name} serves; give it with --model-version"
                )));
            }
            _ => {
                return Err(invalid(format!(
                    "the files hold more than one ModelVersion {wanted}; give one"
                )));
            }
        };
        if version.model != spec.model {
            return Err(invalid(format!(
                "ModelVersion {wanted} is of model {}, not of {}",
                version.model, spec.model
            )));
        }
        held.push(ServedVersion {
            name: wanted.to_owned(),
            artifact: version.artifact.clone(),
        });
    }
    let shares = spec.shares();
    let split = (!shares.is_empty()).then(|| Split::divide(&name, None, &shares));
    let mirror = spec.mirrored();
    let storage = spec.storage.unwrap_or_default();
    if storage.ca_bundle.is_some() && run.ca_file.is_none() {
        return Err(invalid(
            "storage.caBundle names a ConfigMap, which only a cluster has; give --ca-file",
        ));
    }
    if spec.server.tls.is_some() && run.tls.is_none() {
        return Err(invalid(
            "server.tls names a Secret, which only a cluster has; give --tls-certificate and --tls-key",
        ));
    }
    let namespace = service.metadata.namespace.unwrap_or_else(|| "default".to_owned());
    let feedback = match (&spec.feedback, &run.receipt_key) {
        (None, _) => None,
        (Some(_), None) => {
            return Err(invalid(
                "feedback.signingKeySecretRef names a Secret, which only a cluster has; give --receipt-key",
            ));
        }
        (Some(feedback), Some(key)) => Some(feedback.settings(&namespace, &name, key.display().to_string())),
    };
    let positive = |field: &str, value: i32| {
        u32::try_from(value).map_err(|_| invalid(format!("{field} is {value}; it must be positive")))
    };
    let config = ServingConfig {
        schema_version: SCHEMA_VERSION,
        service: ServiceIdentity { namespace, name },
        device: run.device,
        precision: spec.server.precision,
        storage: StorageSettings {
            endpoint: storage.endpoint,
            region: storage.region,
            ca_file: run.ca_file.as_ref().map(|p| p.display().to_string()),
        },
        tls: run.tls.clone(),
        feedback,
        limits: ServingLimits {
            max_concurrency: positive("server.maxConcurrency", spec.server.max_concurrency)?,
            timeout_milliseconds: positive("server.timeoutMilliseconds", spec.server.timeout_milliseconds)?,
        },
    };
    check(&config)?;
    let assignment = Assignment {
        schema_version: SCHEMA_VERSION,
        generation: 1,
        serve: spec.model_version,
        versions: held,
        split,
        mirror,
        canary: None,
        cleared: Vec::new(),
        window_seconds: spec.drift.as_ref().map(Drift::counted_seconds),
        judged_since: None,
        trial: None,
    };
    check_assignment(&assignment)?;
    Ok((config, assignment))
}

#[cfg(test)]
mod tests {
    use flywheel_contract::serving::Mirror;

    use super::*;

    const SERVICE: &str = r"
apiVersion: flywheel.dev/v1alpha1
kind: InferenceService
metadata: {name: intent, namespace: team-a}
spec:
  model: intent
  modelVersion: intent-v2
  replicas: 1
  server: {maxConcurrency: 64}
";
    const VERSION: &str = r"
apiVersion: flywheel.dev/v1alpha1
kind: ModelVersion
metadata: {name: intent-v2}
spec:
  model: intent
  version: 2
  artifact: {uri: file:///models/intent/2, digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000'}
";

    fn run(files: &[&str]) -> Result<(ServingConfig, Assignment), Failure> {
        let dir = tempfile::tempdir().unwrap();
        let files = files
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let path = dir.path().join(format!("{i}.yaml"));
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        from_manifests(&LocalRun {
            files,
            device: Device::Cpu,
            ca_file: None,
            tls: None,
            receipt_key: None,
        })
    }

    #[test]
    fn manifests_become_what_the_operator_would_give() {
        let apart = run(&[SERVICE, VERSION]).unwrap();
        let other = VERSION.replace("intent-v2", "intent-v1");
        let together = format!("kind: ConfigMap\n---{other}---{VERSION}---{SERVICE}");
        assert_eq!(apart, run(&[&together]).unwrap());
        let (config, assignment) = apart;
        assert_eq!(config.service.namespace, "team-a");
        assert_eq!(
            (config.limits.max_concurrency, config.limits.timeout_milliseconds),
            (64, 1000)
        );
        assert_eq!((assignment.serve.as_str(), assignment.versions.len()), ("intent-v2", 1));
        let version = assignment.serving().unwrap();
        assert_eq!(version.artifact.uri.as_str(), "file:///models/intent/2");
    }

    #[test]
    fn what_manifests_may_not_be() {
        let changed = |from: &str, to: &str| vec![SERVICE.replace(from, to), VERSION.to_owned()];
        let version = |from: &str, to: &str| vec![SERVICE.to_owned(), VERSION.replace(from, to)];
        let rows: Vec<(&str, Vec<String>)> = vec![
            ("no InferenceService", vec![VERSION.to_owned()]),
            ("no ModelVersion intent-v2", vec![SERVICE.to_owned()]),
            (
                "more than one InferenceService",
                vec![SERVICE.to_owned(), SERVICE.to_owned()],
            ),
            (
                "more than one ModelVersion",
                vec![SERVICE.to_owned(), VERSION.to_owned(), VERSION.to_owned()],
            ),
            ("no ModelVersion", version("intent-v2", "intent-v3")),
            ("of model other", version("model: intent", "model: other")),
            ("digest", version("sha256:0", "sha256:x")),
            ("apiVersion must be", changed("v1alpha1", "v9")),
            (
                "unknown field spec.server.batching",
                changed("maxConcurrency: 64", "batching: {a: 1}"),
            ),
            (
                "spec.server.maxConcurrency: 0 is less than the minimum of 1",
                changed("64", "0"),
            ),
            (
                "--ca-file",
                changed(
                    "  replicas: 1",
                    "  replicas: 1\n  storage: {caBundle: {configMapRef: {name: a, key: b}}}",
                ),
            ),
            (
                "--tls-certificate",
                changed("maxConcurrency: 64", "tls: {secretRef: {name: cert}}"),
            ),
            ("0.yaml", vec!["a: [".to_owned()]),
        ];
        for (word, files) in rows {
            let files: Vec<&str> = files.iter().map(String::as_str).collect();
            let failure = run(&files).expect_err(word);
            assert_eq!(failure.reason, FailureReason::ConfigInvalid);
            assert!(failure.message.contains(word), "{word}: {failure}");
        }
    }

    #[test]
    fn a_file_of_another_release_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serving.json");
        let (config, assignment) = run(&[SERVICE, VERSION]).unwrap();
        let mut json = serde_json::to_value(&config).unwrap();
        std::fs::write(&path, json.to_string()).unwrap();
        assert_eq!(from_file(&path).unwrap(), config);
        assert!(
            assignment_from_file(&path).is_err(),
            "each file is its own kind: {assignment:?}"
        );
        json["later"] = 1.into();
        std::fs::write(&path, json.to_string()).unwrap();
        assert_eq!(
            from_file(&path).unwrap(),
            config,
            "a newer operator's fields are passed over"
        );
        std::fs::write(&path, r#"{"schemaVersion": 2}"#).unwrap();
        assert!(from_file(&path).unwrap_err().message.contains("schemaVersion is 2"));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(from_file(&path).unwrap_err().reason, FailureReason::ConfigInvalid);
        std::fs::write(&path, " ".repeat(2 * 1024 * 1024)).unwrap();
        assert!(from_file(&path).unwrap_err().message.contains("more than"));
        assert!(
            from_file(&dir.path().join("none"))
                .unwrap_err()
                .message
                .contains("cannot be read")
        );
    }

    #[test]
    fn an_assignment_that_contradicts_itself_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("assignment.json");
        let (_, good) = run(&[SERVICE, VERSION]).unwrap();
        let read = |assignment: &Assignment| {
            std::fs::write(&path, serde_json::to_string(assignment).unwrap()).unwrap();
            assignment_from_file(&path)
        };
        assert_eq!(read(&good).unwrap(), good);
        type Change = fn(&mut Assignment);
        let table: [(&str, Change); 9] = [
            ("none of the versions", |a| a.serve = "other".to_owned()),
            ("none of the versions", |a| a.versions.clear()),
            ("twice", |a| a.versions.push(a.versions[0].clone())),
            ("at most 12", |a| {
                for n in 0..12 {
                    let mut more = a.versions[0].clone();
                    more.name = format!("v{n}");
                    a.versions.push(more);
                }
            }),
            ("split is not all", |a| {
                let mut split = Split::divide("s", None, &[("intent-v2", 100)]);
                split.ranges[0].to -= 1;
                a.split = Some(split);
            }),
            ("for versions to hold", |a| {
                a.split = Some(Split::divide("s", None, &[("intent-v2", 50), ("intent-v3", 50)]));
            }),
            ("the mirror is none", |a| {
                a.mirror = Some(Mirror {
                    version: "intent-v3".to_owned(),
                    percent: 10,
                });
            }),
            ("digest", |a| a.versions[0].artifact.digest.0 = "sha256:x".to_owned()),
            ("schemaVersion is 9", |a| a.schema_version = 9),
        ];
        for (word, change) in table {
            let mut bad = good.clone();
            change(&mut bad);
            let failure = read(&bad).expect_err(word);
            assert_eq!(failure.reason, FailureReason::ConfigInvalid);
            assert!(failure.message.contains(word), "{word}: {failure}");
        }
    }
}
