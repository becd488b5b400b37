//! Deleted in the middle of everything: nothing of it stays, and the same object made again works.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::{Bench, NAMESPACE, SOON, endpoint, service, training, version};
use crate::cluster::{apply, delete, kubectl, list, predict, wait};
use crate::storage::{Fault, Proxy};

/// A pod has half a minute to end by itself.
const GONE_WITHIN: Duration = Duration::from_secs(90);
/// Every kind that the operator makes, and what Kubernetes makes of those.
const CHILDREN: &str = "jobs,pods,deployments,replicasets,controllerrevisions,configmaps,services,endpointslices,\
                        networkpolicies,poddisruptionbudgets";

pub fn training_while_downloading(bench: &Bench) {
    let proxy = Proxy::start(Fault::Hold {
        method: "GET",
        part: "/bad-inputs/tiny/model.safetensors",
    });
    let job = training("deleted-downloading", |j| endpoint(j, &proxy.url()));
    apply(&job);
    held(&proxy, "a download of weights");
    training_again(bench, &job, &proxy);
}

pub fn training_while_it_trains(bench: &Bench) {
    let proxy = Proxy::start(Fault::None);
    let long = training("deleted-training", |j| {
        endpoint(j, &proxy.url());
        j["model"]["pretrained"]["uri"] = json!("s3://flywheel/minilm-l6");
        j["hyperparameters"]["epochs"] = json!(1000);
    });
    apply(&long);
    bench
        .mirror
        .wait(("trainingjob", "deleted-training"), "phase Training", SOON, |seen| {
            let job = seen.get("trainingjob", "deleted-training")?;
            (job["status"]["progress"]["phase"] == "Training").then_some(())
        });
    training_again(
        bench,
        &training("deleted-training", |j| endpoint(j, &proxy.url())),
        &proxy,
    );
}

pub fn training_while_uploading(bench: &Bench) {
    let proxy = Proxy::start(Fault::Hold {
        method: "PUT",
        part: "/attempt-1/model.safetensors",
    });
    let job = training("deleted-uploading", |j| endpoint(j, &proxy.url()));
    apply(&job);
    held(&proxy, "an upload of weights");
    training_again(bench, &job, &proxy);
}

/// Deletes the job of this name, makes it again like this, and waits for its version.
fn training_again(bench: &Bench, job: &Value, proxy: &Proxy) {
    let name = job["metadata"]["name"].as_str().expect("name");
    let before = gone(bench, "trainingjob", name, "flywheel.dev/training-job");
    assert!(
        list("modelversion", NAMESPACE, &format!("flywheel.dev/training-job={name}")).is_empty(),
        "{name} has a version though it was deleted before its end"
    );
    proxy.set(Fault::None);
    apply(job);
    let again = bench.becomes("trainingjob", name, "Complete");
    assert_ne!(again["metadata"]["uid"], before, "another object");
    assert_eq!(again["status"]["attempt"], 1, "it begins anew");
    let version = again["status"]["result"]["modelVersion"]
        .as_str()
        .expect("modelVersion");
    let version = bench.becomes("modelversion", version, "Promotable");
    assert_eq!(
        version["spec"]["source"]["trainingJob"]["uid"],
        again["metadata"]["uid"]
    );
}

pub fn version_while_verifying(bench: &Bench) {
    let proxy = Proxy::start(Fault::Hold {
        method: "GET",
        part: "/model.safetensors",
    });
    let artifact = bench.good_artifact();
    let version = version("deleted-verifying", &artifact, |v| endpoint(v, &proxy.url()));
    apply(&version);
    held(&proxy, "a read of the artifact");
    gone(bench, "modelversion", "deleted-verifying", "flywheel.dev/model-version");
    proxy.set(Fault::None);
    apply(&version);
    bench.becomes("modelversion", "deleted-verifying", "Promotable");
}

pub fn service_while_starting_and_serving(bench: &Bench) {
    let proxy = Proxy::start(Fault::Hold {
        method: "GET",
        part: "/model.safetensors",
    });
    bench.good_artifact();
    let service = service("deleted-serving", |s| endpoint(s, &proxy.url()));
    apply(&service);
    held(&proxy, "a download of the artifact");
    gone(
        bench,
        "inferenceservice",
        "deleted-serving",
        "flywheel.dev/inference-service",
    );

    proxy.set(Fault::None);
    for time in [
        "after it was deleted while starting",
        "after it was deleted while serving",
    ] {
        apply(&service);
        bench.becomes("inferenceservice", "deleted-serving", "Ready");
        // What is loaded needs no storage.
        proxy.leave();
        let pods = list("pods", NAMESPACE, "flywheel.dev/inference-service=deleted-serving");
        let address = pods[0]["status"]["podIP"].as_str().expect("podIP");
        let (code, answer) = predict(
            &format!("http://{address}:8080/predict"),
            &json!({"text": "switch on the lamp 3"}),
        );
        assert_eq!(code, 200, "{time}: {answer}");
        gone(
            bench,
            "inferenceservice",
            "deleted-serving",
            "flywheel.dev/inference-service",
        );
        proxy.come_back();
    }
}

fn held(proxy: &Proxy, what: &str) {
    wait(what, SOON, String::new, || proxy.holds().then_some(()));
}

/// Deletes the object and waits until nothing is left of what was made for it; its uid.
fn gone(bench: &Bench, kind: &'static str, name: &str, label: &str) -> Value {
    let uid = bench.uid(kind, name);
    let selector = format!("{label}={name}");
    let children = list(CHILDREN, NAMESPACE, &selector);
    assert!(!children.is_empty(), "{kind} {name} has no children to leave behind");
    let owned = |child: &Value| child["metadata"]["ownerReferences"][0]["uid"].is_string();
    assert!(
        children.iter().all(owned),
        "a child without an owner would stay: {children:?}"
    );
    delete(kind, NAMESPACE, name);
    let left = || kubectl(&["get", CHILDREN, "-n", NAMESPACE, "-l", &selector, "-o", "name"]).expect("kubectl get");
    let what = format!("nothing is left of the {kind} {name}");
    wait(&what, GONE_WITHIN, left, || left().trim().is_empty().then_some(()));
    json!(uid)
}
