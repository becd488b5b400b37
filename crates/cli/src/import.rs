//! `import`: ModelVersions of the artifacts that lie in a bucket. The bucket is often reached only from inside the cluster, so a short
//! Job in the user's namespace looks, with the storage settings and the service account that the user names, and tells what it found
//! in its log. The Job and the ModelVersions are the user's own: nothing here is done with rights of the operator.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use flywheel_api::ModelVersion;
use flywheel_api::manifest;
use flywheel_api::model_version::ModelVersionSpec;
use flywheel_api::names::{FLYWHEEL, LABEL_COMPONENT, LABEL_MODEL, LABEL_NAME, LABEL_PART_OF};
use flywheel_api::pod::{CaBundle, KeyReference, LocalReference, Storage};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::names::{CONFIG_ENV, SCRATCH_DIR, STORAGE_CA_DIR};
use flywheel_contract::scalar::Uri;
use flywheel_contract::storage::StorageSettings;
use flywheel_contract::termination::{Imported, Outcome, TerminationMessage};
use flywheel_contract::trainer::{ImportConfig, MadeArtifact};
use flywheel_contract::version::{FoundLine, FoundVersion};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, LogParams, ObjectMeta, PostParams};
use serde_json::{Value, json};

use crate::arguments::{Import, Output};
use crate::change::MANAGER;
use crate::cluster::{CALL_TIMEOUT, Cluster, LIST_MAX, Patience};
use crate::error::Error;
use crate::text::{Table, clean};
use crate::training::container_state;
use crate::version::operators;

/// Name of the container, and of the component.
const IMPORTER: &str = "importer";
/// File of the CA bundle in [`STORAGE_CA_DIR`].
const CA_FILE: &str = "ca.crt";
/// User and group of the container: the `nonroot` of distroless images.
const RUN_AS: i64 = 65_532;
/// Time between two looks at the Job's pod.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a Job is kept that nobody removed.
const TTL_SECONDS: i32 = 600;
/// Most bytes of the log that are read: a thousand receipts with all that they may hold are a quarter of it.
const LOG_MAX_BYTES: i64 = 32 * 1024 * 1024;
/// Most pages of ModelVersions that are looked at.
const PAGES_MAX: usize = 100;

/// Looks, makes what is not there, and prints what became of each.
pub(crate) async fn run(cluster: &Cluster, import: &Import, out: &mut dyn Write) -> Result<(), Error> {
    let (image, pull_secrets) = match &import.image {
        Some(image) => (image.clone(), Vec::new()),
        None => of_settings(cluster).await?,
    };
    let (found, imported) = look(cluster, import, &image, &pull_secrets).await?;
    let wanted = wanted(cluster, import, &found)?;
    if import.output == Output::Json {
        let items: Vec<&ModelVersion> = wanted.iter().filter_map(|w| w.version.as_ref().ok()).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        writeln!(out, "{list:#}")?;
        let left = wanted
            .iter()
            .filter_map(|w| Some((&w.artifact, w.version.as_ref().err()?)));
        for (artifact, why) in left {
            eprintln!("{}: {}", clean(artifact), clean(why));
        }
        for line in left_out(&imported) {
            eprintln!("{line}");
        }
        return Ok(());
    }
    let mut present = versions(cluster).await?;
    let mut table = Table::new(&["NAME", "VERSION", "ARTIFACT", "OUTCOME"]);
    let mut refused = 0;
    for Wanted { artifact, version } in wanted {
        let (name, number, outcome) = match version {
            Ok(version) => {
                let (name, number) = (version.name_any(), version.spec.version.to_string());
                let outcome = match settle(cluster, &version, present.get(&name), import.dry_run).await {
                    Ok(outcome) => {
                        present.insert(name.clone(), version.spec.artifact.digest.to_string());
                        outcome
                    }
                    Err(why) => {
                        refused += 1;
                        why
                    }
                };
                (name, number, outcome)
            }
            Err(why) => (String::new(), String::new(), why),
        };
        table.row([name, number, artifact, outcome]);
    }
    if table.is_empty() {
        writeln!(out, "No artifact lies below {}.", import.uri)?;
    } else {
        out.write_all(table.render().as_bytes())?;
    }
    for line in left_out(&imported) {
        writeln!(out, "{line}")?;
    }
    match refused {
        0 => Ok(()),
        n => Err(Error::Inapplicable(format!(
            "{n} versions could not be made; see the table"
        ))),
    }
}

/// What an import passed over, for people.
fn left_out(imported: &Imported) -> Vec<String> {
    let unusable = (imported.unusable > 0).then(|| {
        format!(
            "{} folders with a manifest or receipt that cannot be used were passed over.",
            imported.unusable
        )
    });
    let more = imported
        .more
        .then(|| "There is more than is looked at in one import; name a folder further down.".to_owned());
    unusable.into_iter().chain(more).collect()
}

/// The trainer's image and the registry's Secrets, from the settings of the operator.
async fn of_settings(cluster: &Cluster) -> Result<(String, Vec<String>), Error> {
    let unknown = |why: &str| {
        Error::Inapplicable(format!(
            "the trainer's image is not known ({why}): name it with --image; `kubectl flywheel version` shows the operator's, and the \
             trainer's is beside it"
        ))
    };
    let found = match operators(cluster, false).await {
        Ok(found) => found,
        Err(Error::Forbidden { .. }) => return Err(unknown("you may not read the operator's settings")),
        Err(error) => return Err(error),
    };
    let [operator] = found.as_slice() else {
        return Err(unknown(match found.len() {
            0 => "no operator is installed",
            _ => "there are several operators",
        }));
    };
    let (namespace, name) = (operator.namespace().unwrap_or_default(), operator.name_any());
    let api = cluster.api_in::<ConfigMap>(&namespace);
    let settings = match cluster.ask("read the operator's settings", api.get(&name)).await {
        Ok(settings) => settings,
        Err(Error::Forbidden { .. }) => return Err(unknown("you may not read the operator's settings")),
        Err(error) => return Err(error),
    };
    let text = settings
        .data
        .unwrap_or_default()
        .remove("settings.yaml")
        .unwrap_or_default();
    let read = manifest::documents(&text).unwrap_or_default();
    let settings = read.first();
    let image = settings.and_then(|s| s.get("verifierImage")).and_then(Value::as_str);
    let secrets = settings
        .and_then(|s| s.get("imagePullSecrets"))
        .and_then(Value::as_array);
    let secrets = secrets
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned);
    match image {
        Some(image) => Ok((image.to_owned(), secrets.collect())),
        None => Err(unknown("the operator's settings do not tell it")),
    }
}

/// How the Job, and later the verifying pod, reaches the bucket.
fn storage(import: &Import) -> Option<Storage> {
    let storage = Storage {
        secret_ref: import.storage_secret.clone().map(|name| LocalReference { name }),
        endpoint: import.endpoint.clone(),
        region: import.region.clone(),
        ca_bundle: import.ca_bundle.clone().map(|(name, key)| CaBundle {
            config_map_ref: KeyReference { name, key },
        }),
    };
    (storage != Storage::default()).then_some(storage)
}

/// The Job: one container that passes Pod Security `restricted`, without an API token.
fn job(import: &Import, image: &str, pull_secrets: &[String]) -> Result<Job, Error> {
    let unreadable = |e: serde_json::Error| Error::Unreadable {
        what: "write the Job".to_owned(),
        why: e.to_string(),
    };
    let config = ImportConfig {
        schema_version: SCHEMA_VERSION,
        uri: Uri(import.uri.clone()),
        storage: StorageSettings {
            endpoint: import.endpoint.clone(),
            region: import.region.clone(),
            ca_file: import.ca_bundle.as_ref().map(|_| format!("{STORAGE_CA_DIR}/{CA_FILE}")),
        },
        make: import.to.clone().map(|to| MadeArtifact {
            model: import.model.clone().unwrap_or_default(),
            to: Uri(to),
        }),
    };
    // The kubelet would expand a `$`.
    let config = serde_json::to_string(&config)
        .map_err(unreadable)?
        .replace('$', "\\u0024");
    let mut volumes = vec![
        json!({"name": "scratch", "emptyDir": {}}),
        json!({"name": "tmp", "emptyDir": {}}),
    ];
    let mut mounts = vec![
        json!({"name": "scratch", "mountPath": SCRATCH_DIR}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    if let Some((map, key)) = &import.ca_bundle {
        volumes.push(json!({"name": "ca", "configMap": {"name": map, "items": [{"key": key, "path": CA_FILE}]}}));
        mounts.push(json!({"name": "ca", "mountPath": STORAGE_CA_DIR, "readOnly": true}));
    }
    let secrets = import
        .storage_secret
        .iter()
        .map(|name| json!({"secretRef": {"name": name}}));
    let labels = json!({LABEL_NAME: FLYWHEEL, LABEL_COMPONENT: IMPORTER, LABEL_PART_OF: FLYWHEEL});
    // Loading a model takes its weights twice; to look takes little.
    let memory = if import.to.is_some() { "4Gi" } else { "512Mi" };
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "restartPolicy": "Never",
        "imagePullSecrets": pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": RUN_AS, "runAsGroup": RUN_AS, "fsGroup": RUN_AS,
            "seccompProfile": {"type": "RuntimeDefault"}
        },
        "containers": [{
            "name": IMPORTER, "image": image, "args": ["import"],
            "env": [{"name": CONFIG_ENV, "value": config}],
            "envFrom": secrets.collect::<Vec<_>>(),
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": memory}},
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]}
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": mounts
        }],
        "volumes": volumes
    });
    if let (Some(account), Some(pod)) = (&import.service_account, pod.as_object_mut()) {
        pod.insert("serviceAccountName".to_owned(), json!(account));
    }
    serde_json::from_value(json!({
        "metadata": {"generateName": "flywheel-import-", "labels": labels},
        "spec": {
            "backoffLimit": 0, "activeDeadlineSeconds": import.timeout, "ttlSecondsAfterFinished": TTL_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": pod}
        }
    }))
    .map_err(unreadable)
}

/// Makes the Job, waits for its end, reads what it found, and removes it.
async fn look(
    cluster: &Cluster,
    import: &Import,
    image: &str,
    pull_secrets: &[String],
) -> Result<(Vec<FoundVersion>, Imported), Error> {
    let api = cluster.api::<Job>();
    let built = job(import, image, pull_secrets)?;
    let made = cluster
        .ask("make the import's Job", api.create(&parameters(), &built))
        .await?;
    let name = made.name_any();
    let seen = watch(cluster, &name, import.timeout).await;
    // Its pod goes after it. Where this fails it goes by its time to live.
    let _ = cluster
        .ask(
            "remove the import's Job",
            api.delete(&name, &DeleteParams::background()),
        )
        .await;
    seen
}

/// What the Job's pod found.
async fn watch(cluster: &Cluster, job: &str, timeout: u32) -> Result<(Vec<FoundVersion>, Imported), Error> {
    let begun = Instant::now();
    let (mut told, mut patience) = (String::new(), Patience::default());
    loop {
        let pods = match cluster
            .list::<Pod>(&format!("batch.kubernetes.io/job-name={job}"))
            .await
        {
            Ok((pods, _)) => pods,
            Err(error) => {
                patience.bear(error)?;
                tokio::time::sleep(INTERVAL).await;
                continue;
            }
        };
        patience.reset();
        let state = pods
            .first()
            .and_then(|pod| Some((pod, container_state(pod, IMPORTER)?)));
        let waits = match state {
            Some((pod, state)) => match (&state.terminated, &state.waiting) {
                (Some(ended), _) => {
                    let message = ended.message.as_deref().and_then(TerminationMessage::parse);
                    return match message.map(|message| message.outcome) {
                        Some(Outcome::Imported(imported)) => Ok((found(cluster, pod, &imported).await?, imported)),
                        Some(Outcome::Failed(failure)) => {
                            Err(Error::Inapplicable(clean(&format!("the import failed: {failure}"))))
                        }
                        _ => Err(Error::Inapplicable(clean(&format!(
                            "the import's pod ended with exit code {}: {}. The trainer's image must be of the operator's release, see \
                             --image",
                            ended.exit_code,
                            ended.message.as_deref().unwrap_or("it said nothing")
                        )))),
                    };
                }
                (None, Some(waiting)) => format!(
                    "{}: {}",
                    waiting.reason.as_deref().unwrap_or("waiting"),
                    waiting.message.as_deref().unwrap_or("its container starts")
                ),
                _ => String::new(),
            },
            None if pods.is_empty() => "it has no pod yet; `kubectl describe job` tells why".to_owned(),
            None => "its pod has no node yet".to_owned(),
        };
        if begun.elapsed() >= Duration::from_secs(timeout.into()) {
            return Err(Error::Inapplicable(clean(&format!(
                "the import did not end within {timeout} s: {}; --timeout gives it longer",
                if waits.is_empty() { "it still looks" } else { &waits }
            ))));
        }
        if waits != told && !waits.is_empty() && begun.elapsed() > INTERVAL * 5 {
            eprintln!("-- waiting for the import's pod: {}", clean(&waits));
            told = waits;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The lines of the pod's log that tell of artifacts.
async fn found(cluster: &Cluster, pod: &Pod, imported: &Imported) -> Result<Vec<FoundVersion>, Error> {
    let name = pod.name_any();
    let parameters = LogParams {
        container: Some(IMPORTER.to_owned()),
        limit_bytes: Some(LOG_MAX_BYTES),
        ..LogParams::default()
    };
    let api = cluster.api::<Pod>();
    let log = cluster
        .ask(&format!("read the log of pod {name}"), api.logs(&name, &parameters))
        .await?;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<FoundLine>(line).ok());
    let found: Vec<FoundVersion> = lines.map(|line| line.found).collect();
    if found.len() == usize::try_from(imported.found).unwrap_or(usize::MAX) {
        return Ok(found);
    }
    Err(Error::Log {
        pod: name,
        why: format!("it tells of {} artifacts of {}", found.len(), imported.found),
    })
}

/// A version that is to be, or why none can be of an artifact.
struct Wanted {
    artifact: String,
    version: Result<ModelVersion, String>,
}

/// The versions of what was found: by their receipts, or by the command line where there is none.
fn wanted(cluster: &Cluster, import: &Import, found: &[FoundVersion]) -> Result<Vec<Wanted>, Error> {
    let bare = found.iter().filter(|found| found.receipt.is_none()).count();
    if import.version.is_some() && bare > 1 {
        return Err(Error::Inapplicable(format!(
            "{bare} artifacts below {} have no receipt, and --version is of one: name the folder of that one",
            import.uri
        )));
    }
    let namespace = import.from_namespace.as_deref().unwrap_or(cluster.namespace());
    let mut all: Vec<(i64, Wanted)> = found
        .iter()
        .map(|found| {
            let version = version(cluster, import, namespace, found);
            let number = version.as_ref().map_or(i64::MAX, |v| v.spec.version);
            let artifact = found.artifact.uri.to_string();
            (number, Wanted { artifact, version })
        })
        .collect();
    // The oldest first, so that they are made in the order in which they came to be.
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, wanted)| wanted).collect())
}

fn version(cluster: &Cluster, import: &Import, namespace: &str, found: &FoundVersion) -> Result<ModelVersion, String> {
    let optional = |list: &Vec<_>| (!list.is_empty()).then(|| list.clone());
    let (name, model, number, source, metrics, gates) = match (&found.receipt, import.version) {
        (Some(receipt), _) if receipt.namespace != namespace => {
            return Err(format!(
                "version {} of {} in namespace {}; --from-namespace takes it",
                receipt.version, receipt.model, receipt.namespace
            ));
        }
        (Some(receipt), _) => (
            receipt.name.clone(),
            receipt.model.clone(),
            receipt.version,
            receipt.source.clone(),
            optional(&receipt.metrics),
            (!receipt.gates.is_empty()).then(|| receipt.gates.clone()),
        ),
        (None, Some(number)) => {
            let model = import.model.clone().unwrap_or_else(|| found.model.clone());
            let name = format!("{model}-v{number}");
            (name, model, number, None, optional(&found.metrics), None)
        }
        (None, None) => {
            return Err(format!(
                "it has no receipt (its manifest says model {}); --version, and --model for another, make a version of it",
                found.model
            ));
        }
    };
    let labels = [
        (LABEL_NAME, FLYWHEEL.to_owned()),
        (LABEL_PART_OF, model.clone()),
        (LABEL_MODEL, model.clone()),
    ];
    let mut version = ModelVersion::new(
        &name,
        ModelVersionSpec {
            model,
            version: number,
            artifact: found.artifact.clone(),
            source,
            metrics,
            gates,
            retention: None,
            storage: storage(import),
            service_account_name: import.service_account.clone(),
        },
    );
    version.metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace().to_owned()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ObjectMeta::default()
    };
    Ok(version)
}

fn parameters() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Digests of the artifacts of all ModelVersions that there are, by name.
async fn versions(cluster: &Cluster) -> Result<BTreeMap<String, String>, Error> {
    let api = cluster.api::<ModelVersion>();
    let (mut present, mut next) = (BTreeMap::new(), None::<String>);
    for _ in 0..PAGES_MAX {
        let mut parameters = ListParams::default().limit(LIST_MAX);
        parameters.continue_token = next.take();
        let page = cluster.ask("list ModelVersions", api.list(&parameters)).await?;
        next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        present.extend(
            page.into_iter()
                .map(|version| (version.name_any(), version.spec.artifact.digest.to_string())),
        );
        if next.is_none() {
            return Ok(present);
        }
    }
    Err(Error::Inapplicable(
        "there are more ModelVersions in this namespace than are looked at".to_owned(),
    ))
}

/// Makes the version, unless one is there; what became of it.
async fn settle(
    cluster: &Cluster,
    version: &ModelVersion,
    present: Option<&String>,
    dry_run: bool,
) -> Result<String, String> {
    let other =
        "REFUSED: a ModelVersion of that name has another artifact; delete it first, if this one is right".to_owned();
    match present {
        Some(digest) if *digest == version.spec.artifact.digest.0 => return Ok("there already".to_owned()),
        Some(_) => return Err(other),
        None if dry_run => return Ok("would be made".to_owned()),
        None => {}
    }
    let api = cluster.api::<ModelVersion>();
    match tokio::time::timeout(CALL_TIMEOUT, api.create(&parameters(), version)).await {
        Ok(Ok(_)) => Ok("made".to_owned()),
        Ok(Err(kube::Error::Api(status))) => Err(format!("REFUSED: {}", clean(&status.message))),
        Ok(Err(error)) => Err(format!("FAILED: {}", clean(&error.to_string()))),
        Err(_) => Err(format!("FAILED: no answer within {} s", CALL_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use flywheel_contract::failure::{Failure, FailureReason};
    use flywheel_testkit::objects::{digest, model_version};
    use flywheel_testkit::{Call, Scenario, Step};

    use super::*;
    use crate::arguments::{Command, CommandLine};

    fn import(line: &str) -> Import {
        let line = CommandLine::try_parse_from(
            ["kubectl-flywheel", "import"]
                .into_iter()
                .chain(line.split_whitespace()),
        );
        let Command::Import(import) = line.unwrap().command else {
            panic!("no import")
        };
        import
    }

    #[test]
    fn the_job_passes_pod_security_restricted_and_holds_no_token() {
        let import = import(
            "s3://models/intent$x --storage-secret s3 --endpoint http://minio:9000 --ca-bundle ca/bundle.pem --service-account trainer",
        );
        let job = serde_json::to_value(job(&import, "r/flywheel-trainer:1", &["pull".to_owned()]).unwrap()).unwrap();
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["serviceAccountName"], "trainer");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
        assert_eq!(
            (
                &pod["securityContext"]["runAsNonRoot"],
                &pod["securityContext"]["seccompProfile"]["type"]
            ),
            (&json!(true), &json!("RuntimeDefault"))
        );
        let container = &pod["containers"][0];
        assert_eq!(
            container["securityContext"],
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]}})
        );
        assert_eq!(container["envFrom"], json!([{"secretRef": {"name": "s3"}}]));
        let config = container["env"][0]["value"].as_str().unwrap();
        assert!(!config.contains('$'), "the kubelet would expand it: {config}");
        let config: ImportConfig = serde_json::from_str(config).unwrap();
        assert_eq!(config.uri.as_str(), "s3://models/intent$x");
        assert_eq!(
            config.storage.ca_file.as_deref(),
            Some("/etc/flywheel/storage-ca/ca.crt")
        );
        assert_eq!(
            pod["volumes"][2]["configMap"],
            json!({"name": "ca", "items": [{"key": "bundle.pem", "path": "ca.crt"}]})
        );
        assert_eq!(job["spec"]["backoffLimit"], 0);
    }

    const JOBS: &str = "/apis/batch/v1/namespaces/team/jobs";
    const PODS: &str = "/api/v1/namespaces/team/pods";
    const VERSIONS: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/modelversions";

    /// The Job's way to its end, with this last word, and what it told.
    fn looked(outcome: Outcome, log: Option<Value>) -> Vec<Step> {
        let message = TerminationMessage::new(outcome).to_json();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}, "status": {"containerStatuses": [
            {"name": IMPORTER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "message": message}}}
        ]}});
        let mut steps = vec![
            Step::new("POST", JOBS, |call| {
                let mut made = call.body.clone();
                made["metadata"]["name"] = json!("flywheel-import-x");
                (201, made)
            }),
            Step::list(PODS, "Pod", "v1", vec![pod]),
        ];
        steps.extend(log.map(|log| Step::get(format!("{PODS}/p/log"), log)));
        steps.push(Step::new("DELETE", format!("{JOBS}/flywheel-import-x"), |_| {
            (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
        }));
        steps
    }

    fn told(found: u32) -> Outcome {
        Outcome::Imported(Imported {
            found,
            unusable: 0,
            more: false,
        })
    }

    fn line() -> Value {
        json!({"found": {"artifact": {"uri": "s3://m/u/attempt-1", "digest": digest('a')}, "model": "intent", "metrics": [],
            "receipt": {"schemaVersion": 1, "namespace": "team", "name": "intent-v1", "model": "intent", "version": 1,
                "digest": digest('a'), "source": {"trainingJob": {"name": "intent", "uid": "old"}},
                "gates": [{"metric": "test/accuracy", "min": "0.9"}], "metrics": [{"name": "test/accuracy", "value": "0.93"}],
                "promotion": {"promotable": true, "message": "its gate holds"}}}})
    }

    async fn run_with(steps: Vec<Step>, line: &str) -> (Result<(), Error>, String, Vec<Call>) {
        let (client, scenario) = Scenario::start(steps);
        let mut out = Vec::new();
        let result = run(&Cluster::of(client, "team"), &import(line), &mut out).await;
        (result, String::from_utf8(out).unwrap(), scenario.finish().await)
    }

    #[tokio::test]
    async fn what_the_job_found_is_made_and_the_job_removed() {
        let mut steps = looked(told(1), Some(line()));
        steps.extend([
            Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![]),
            Step::accept("POST", VERSIONS),
        ]);
        let (result, out, calls) = run_with(steps, "s3://m --image i --storage-secret s3").await;
        result.unwrap();
        assert!(out.contains("intent-v1") && out.contains("made"), "{out}");
        let spec = &calls[5].body["spec"];
        assert_eq!((&spec["model"], &spec["version"]), (&json!("intent"), &json!(1)));
        assert_eq!(spec["artifact"], line()["found"]["artifact"]);
        for field in ["metrics", "gates", "source"] {
            assert_eq!(spec[field], line()["found"]["receipt"][field], "{field}");
        }
        assert_eq!(spec["storage"], json!({"secretRef": {"name": "s3"}}));
    }

    #[tokio::test]
    async fn a_version_that_is_there_stays_and_another_artifact_is_refused() {
        for (digit, line_, ok, word) in [
            ('a', "s3://m --image i", true, "there already"),
            ('b', "s3://m --image i", false, "REFUSED"),
        ] {
            let present = model_version(&json!({"spec": {"artifact": {"digest": digest(digit)}}}));
            let mut steps = looked(told(1), Some(line()));
            let present = serde_json::to_value(present).unwrap();
            steps.push(Step::list(
                VERSIONS,
                "ModelVersion",
                "flywheel.dev/v1alpha1",
                vec![present],
            ));
            let (result, out, _) = run_with(steps, line_).await;
            assert_eq!(result.is_ok(), ok, "{out}");
            assert!(out.contains(word), "{out}");
        }
        // Without a wish to make anything, nothing is.
        let mut steps = looked(told(1), Some(line()));
        steps.push(Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![]));
        let (result, out, _) = run_with(steps, "s3://m --image i --dry-run").await;
        assert!(result.is_ok() && out.contains("would be made"), "{out}");
        let (result, out, _) = run_with(looked(told(1), Some(line())), "s3://m --image i -o json").await;
        result.unwrap();
        let list: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(list["items"][0]["kind"], "ModelVersion");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_and_leaves_no_job() {
        let away = Failure::new(FailureReason::StorageForbidden, "the keys are refused");
        for (steps, word) in [
            (looked(Outcome::Failed(away), None), "the keys are refused"),
            (looked(told(2), Some(line())), "1 artifacts of 2"),
            (looked(Outcome::Assisted, None), "--image"),
        ] {
            let (result, out, _) = run_with(steps, "s3://m --image i").await;
            let error = result.unwrap_err().to_string();
            assert!(error.contains(word) && out.is_empty(), "{error}");
        }
        let line = [
            "kubectl-flywheel",
            "import",
            "s3://m",
            "--model",
            "m",
            "--to",
            "s3://m/x",
        ];
        let error = CommandLine::try_parse_from(line).unwrap_err().to_string();
        assert!(error.contains("--version"), "{error}");
    }

    #[tokio::test]
    async fn the_image_is_that_of_the_operators_settings_where_they_may_be_read() {
        let operator =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "op", "namespace": "system"}});
        let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "op"},
            "data": {"settings.yaml": "verifierImage: r/flywheel-trainer:1\nimagePullSecrets: [pull]\n"}});
        let of_operator = || {
            Step::list(
                "/apis/apps/v1/deployments",
                "Deployment",
                "apps/v1",
                vec![operator.clone()],
            )
        };
        let path = "/api/v1/namespaces/system/configmaps/op";
        let (client, scenario) = Scenario::start(vec![of_operator(), Step::get(path, settings)]);
        let read = of_settings(&Cluster::of(client, "team")).await.unwrap();
        scenario.finish().await;
        assert_eq!(read, ("r/flywheel-trainer:1".to_owned(), vec!["pull".to_owned()]));

        let refused = Step::refuse("GET", path, 403, "Forbidden", "no");
        let (client, scenario) = Scenario::start(vec![of_operator(), refused]);
        let error = of_settings(&Cluster::of(client, "team")).await.unwrap_err();
        scenario.finish().await;
        assert!(error.to_string().contains("--image"), "{error}");
    }

    #[tokio::test]
    async fn what_is_made_of_an_artifact_needs_a_receipt_or_a_number() {
        let (client, _scenario) = Scenario::start(vec![]);
        let cluster = Cluster::of(client, "team");
        let found = |receipt: Value| -> FoundVersion {
            let mut found = json!({"artifact": {"uri": "s3://m/a", "digest": digest('a')}, "model": "intent",
                "metrics": [{"name": "test/accuracy", "value": "0.9"}]});
            if !receipt.is_null() {
                found["receipt"] = receipt;
            }
            serde_json::from_value(found).unwrap()
        };
        let receipt = |namespace: &str| {
            json!({"schemaVersion": 1, "namespace": namespace, "name": "intent-v3", "model": "intent", "version": 3,
                "digest": digest('a'), "promotion": {"promotable": true, "message": "there are no gates"}})
        };
        let of = |line: &str, found: FoundVersion| {
            let import = import(line);
            wanted(&cluster, &import, &[found]).unwrap().remove(0).version
        };
        let version = of("s3://m --storage-secret s3", found(receipt("team"))).unwrap();
        assert_eq!((version.name_any().as_str(), version.spec.version), ("intent-v3", 3));
        assert_eq!(version.spec.storage.unwrap().secret_ref.unwrap().name, "s3");
        let words = of("s3://m", found(receipt("other"))).unwrap_err();
        assert!(words.contains("--from-namespace"), "{words}");
        assert!(of("s3://m --from-namespace other", found(receipt("other"))).is_ok());
        let words = of("s3://m", found(Value::Null)).unwrap_err();
        assert!(words.contains("--version"), "{words}");
        let version = of("s3://m --version 7", found(Value::Null)).unwrap();
        assert_eq!((version.name_any().as_str(), version.spec.version), ("intent-v7", 7));
        assert_eq!(version.spec.metrics.unwrap().len(), 1);
        let version = of("s3://m --version 7 --model bert", found(Value::Null)).unwrap();
        assert_eq!(
            (version.name_any().as_str(), version.spec.model.as_str()),
            ("bert-v7", "bert")
        );
        let two = [found(Value::Null), found(Value::Null)];
        assert!(wanted(&cluster, &import("s3://m --version 7"), &two).is_err());
    }
}
