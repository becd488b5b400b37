//! A namespace is lost: deleted, applied again from Git, and its versions made again from what lies in the bucket. The service answers
//! with the same version as before, and the job that is applied again trains nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{
    apply, bucket, condition, delete_namespace, describe, flywheel, get, list, namespace_with_store, object_store,
    predict, reachable_ip, trained, wait,
};

const NAMESPACE: &str = "restored";
const NAME: &str = "lamps";
const FOLDER: &str = "models/restored";
const ENDPOINT: &str = "http://minio.object-store.svc.cluster.local:9000";
const SOON: Duration = Duration::from_secs(180);
const TRAINING: Duration = Duration::from_secs(600);

/// What stands in Git: the job, without a name for its version, and the service that names the version which it came to.
fn job() -> Value {
    json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "task": "TextClassification",
            "model": {"pretrained": {"uri": "s3://flywheel/minilm-l6"}},
            "dataset": {
                "sources": [{"uri": "s3://flywheel/data/validation.csv"}],
            },
            "hyperparameters": {"epochs": 1, "batchSize": 16, "learningRate": "1e-4", "maxLength": 32},
            "trainer": {"accelerator": {"class": "a100"}, "resources": {
                "requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}},
            "storage": {"secretRef": {"name": "object-store"}, "endpoint": ENDPOINT},
            "output": {"model": NAME, "uri": format!("s3://flywheel/{FOLDER}"),
                "gates": [{"metric": "test/accuracy", "min": "0.01"}]},
        }
    })
}

fn service(version: &str) -> Value {
    json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": NAME, "modelVersion": version, "replicas": 1,
            "server": {"precision": "Float32", "timeoutMilliseconds": 5000, "resources": {
                "requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}},
            "storage": {"secretRef": {"name": "object-store"}, "endpoint": ENDPOINT},
        }
    })
}

fn import(more: &[&str]) -> Result<String, String> {
    let uri = format!("s3://flywheel/{FOLDER}");
    let mut arguments = vec![
        "import",
        &uri,
        "-n",
        NAMESPACE,
        "--storage-secret",
        "object-store",
        "--endpoint",
        ENDPOINT,
    ];
    arguments.extend(more);
    flywheel(&arguments)
}

fn ready() {
    wait(
        "the service is Ready",
        SOON,
        describe("infsvc", NAMESPACE, NAME),
        || {
            let service = get("infsvc", NAMESPACE, NAME)?;
            condition(&service, "Ready").filter(|c| c.0 == "True").map(|_| ())
        },
    );
}

fn verified(version: &str) -> Value {
    wait(
        "the version is verified",
        SOON,
        describe("mv", NAMESPACE, version),
        || {
            let version = get("mv", NAMESPACE, version)?;
            condition(&version, "Promotable").filter(|c| c.0 == "True")?;
            Some(version)
        },
    )
}

/// What the service answers to some texts, without what is of the moment.
fn answers() -> Vec<Value> {
    let address = reachable_ip(NAMESPACE, NAME);
    let texts = ["turn on the kitchen lamp", "what is the weather", "play some music"];
    let (code, told) = predict(&format!("http://{address}/predict"), &json!({ "texts": texts }));
    assert_eq!(code, 200, "{told}");
    let predictions = told["predictions"].as_array().expect("predictions");
    predictions
        .iter()
        .map(|told| json!({"label": told["label"], "all": told["all_probs"], "version": told["model_version"]}))
        .collect()
}

#[test]
fn a_namespace_that_was_lost_serves_the_same_version_and_trains_nothing_again() {
    object_store();
    delete_namespace(NAMESPACE);
    bucket("flywheel", &["remove", &format!("{FOLDER}/")]);
    namespace_with_store(NAMESPACE);
    apply(&job());
    let first = trained(NAMESPACE, NAME, TRAINING);
    assert_eq!(condition(&first, "Complete").map(|c| c.1), Some("Trained"));
    let version = first["status"]["result"]["modelVersion"]
        .as_str()
        .expect("a version")
        .to_owned();
    let before = verified(&version);
    let message = condition(&before, "Verified")
        .map(|c| c.2.to_owned())
        .unwrap_or_default();
    assert!(
        message.contains("answers of the evaluation sample reproduced") && !message.contains("version.json"),
        "{message}"
    );
    apply(&service(&version));
    ready();
    let told = answers();

    // Everything in the cluster is gone. A version that is served hangs nothing.
    delete_namespace(NAMESPACE);
    namespace_with_store(NAMESPACE);
    apply(&service(&version));
    wait(
        "the service waits for its version",
        SOON,
        describe("infsvc", NAMESPACE, NAME),
        || {
            let service = get("infsvc", NAMESPACE, NAME)?;
            condition(&service, "Ready")
                .filter(|c| c.1 == "ModelVersionNotFound")
                .map(|_| ())
        },
    );
    let table = import(&["--dry-run"]).expect("a look");
    assert!(table.contains(&version) && table.contains("would be made"), "{table}");
    assert!(get("mv", NAMESPACE, &version).is_none(), "only looked at");
    let table = import(&[]).expect("the import");
    assert!(table.contains("made"), "{table}");
    let after = verified(&version);
    for field in ["model", "version", "artifact", "metrics", "gates", "source"] {
        assert_eq!(after["spec"][field], before["spec"][field], "{field}");
    }
    ready();
    assert_eq!(answers(), told, "the same version answers the same");

    // The job comes back as well, and finds what it did.
    apply(&job());
    let again = trained(NAMESPACE, NAME, SOON);
    assert_ne!(again["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(condition(&again, "Complete").map(|c| c.1), Some("ResultReused"));
    assert_eq!(again["status"]["result"]["modelVersion"], version.as_str());
    assert_eq!(
        again["status"]["result"]["metrics"],
        first["status"]["result"]["metrics"]
    );
    assert_eq!(list("mv", NAMESPACE, "").len(), 1, "no other version came of it");

    // Once more it makes nothing, and leaves nothing behind.
    let table = import(&[]).expect("the import");
    assert!(table.contains("there already"), "{table}");
    wait("no Job of an import is left", SOON, String::new, || {
        list("jobs", NAMESPACE, "app.kubernetes.io/component=importer")
            .is_empty()
            .then_some(())
    });
    delete_namespace(NAMESPACE);
}
