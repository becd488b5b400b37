//! The examples as they stand: a training, its version, a service that answers.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{
    apply, bucket, condition, describe, get, kubectl, list, need, object_store, predict, root, trained, wait,
};
use crate::{rollout, scaling};

#[test]
fn the_examples_train_a_model_and_serve_it() {
    object_store();
    // A run before this one may have left results in the same object store, and this one is to train.
    bucket("flywheel", &["remove", "models/intent/results/"]);
    let file = |name: &str| root().join("examples/intent").join(name).display().to_string();
    kubectl(&[
        "apply",
        "-f",
        &file("training-job.yaml"),
        "-f",
        &file("inference-service.yaml"),
    ])
    .expect("apply examples");

    wait(
        "the service says that it waits for its version",
        Duration::from_secs(30),
        describe("infsvc", "intent", "intent"),
        || {
            let service = get("infsvc", "intent", "intent")?;
            condition(&service, "Ready")
                .filter(|c| c.1 == "ModelVersionNotFound")
                .map(|_| ())
        },
    );
    wait(
        "the training pod runs on an A100 node, with a GPU",
        Duration::from_secs(120),
        describe("tj", "intent", "intent"),
        || {
            let pods = list("pods", "intent", "flywheel.dev/training-job=intent");
            let pod = pods.first().filter(|p| p["status"]["phase"] == "Running")?;
            let node: Value =
                serde_json::from_str(&kubectl(&["get", "node", pod["spec"]["nodeName"].as_str()?, "-o", "json"]).ok()?)
                    .ok()?;
            assert!(
                node["metadata"]["labels"]["nvidia.com/gpu.product"]
                    .as_str()?
                    .contains("A100")
            );
            assert_eq!(
                pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
                "1"
            );
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
            Some(())
        },
    );
    wait(
        "progress shows in the status",
        Duration::from_secs(180),
        describe("tj", "intent", "intent"),
        || {
            let job = get("tj", "intent", "intent")?;
            job["status"]["progress"]["step"]
                .as_str()
                .map(|_| ())
                .or_else(|| condition(&job, "Complete").filter(|c| c.0 == "True").map(|_| ()))
        },
    );
    let job = trained("intent", "intent", Duration::from_secs(1200));
    assert_eq!(
        job["status"]["device"], "Cpu",
        "the status says that the GPU is simulated"
    );
    let precision = job["status"]["precision"].as_str().unwrap_or_default();
    assert!(
        ["Float32", "BFloat16"].contains(&precision),
        "what Auto chose: {}",
        job["status"]
    );
    let version = wait(
        "the version is verified and promotable",
        Duration::from_secs(180),
        describe("mv", "intent", "intent-v1"),
        || {
            let version = get("mv", "intent", "intent-v1")?;
            condition(&version, "Promotable").filter(|c| c.0 == "True")?;
            Some(version)
        },
    );
    assert_eq!(condition(&version, "Verified").map(|c| c.0), Some("True"));
    assert_eq!(version["spec"]["source"]["trainingJob"]["uid"], job["metadata"]["uid"]);
    let accuracy: f64 = version["spec"]["metrics"]
        .as_array()
        .expect("metrics")
        .iter()
        .find(|m| m["name"] == "test/accuracy")
        .expect("test/accuracy")["value"]
        .as_str()
        .expect("text")
        .parse()
        .expect("number");
    println!("  test accuracy on unseen templates: {accuracy}");
    assert!(accuracy >= 0.8, "{accuracy}");

    wait(
        "the service is Ready",
        Duration::from_secs(180),
        describe("infsvc", "intent", "intent"),
        || {
            condition(&get("infsvc", "intent", "intent")?, "Ready")
                .filter(|c| c.0 == "True")
                .map(|_| ())
        },
    );
    let service = get("infsvc", "intent", "intent").expect("service");
    assert_eq!(service["status"]["modelVersion"], "intent-v1");
    let pods = list("pods", "intent", "flywheel.dev/inference-service=intent");
    let address = format!(
        "http://{}:8080/predict",
        pods[0]["status"]["podIP"].as_str().expect("address")
    );

    // The test set's own answers, over HTTP: what was measured at training is what users get.
    let rows =
        std::fs::read_to_string(Path::new(&need("FLYWHEEL_CACHE")).join("example/data/test.csv")).expect("test.csv");
    let rows: Vec<(&str, &str)> = rows
        .lines()
        .skip(1)
        .filter(|l| !l.contains('"'))
        .filter_map(|l| l.trim_end().rsplit_once(','))
        .take(128)
        .collect();
    let (code, answers) = predict(
        &address,
        &json!({"texts": rows.iter().map(|r| r.0).collect::<Vec<_>>()}),
    );
    assert_eq!(code, 200, "{answers}");
    let right = rows
        .iter()
        .zip(answers["predictions"].as_array().expect("predictions"))
        .filter(|(row, answer)| answer["label"] == row.1)
        .count();
    println!("  {right} of {} right over HTTP", rows.len());
    assert!(right as f64 >= (accuracy - 0.1) * rows.len() as f64);
    let (code, one) = predict(&address, &json!({"text": rows[0].0}));
    assert_eq!((code, &one["model_version"]), (200, &json!("intent-v1")));
    let sum: f64 = one["all_probs"]
        .as_object()
        .expect("all_probs")
        .values()
        .filter_map(Value::as_f64)
        .sum();
    assert!(
        (sum - 1.0).abs() < 1e-3 && one["request_id"].is_string() && one["intent_id"].is_u64(),
        "{one}"
    );

    // Through the Service's name, from another namespace, as clients do. (busybox's wget sends two content types.)
    let body = "{\"text\": \"lights on\"}";
    let request = format!(
        "POST /predict HTTP/1.1\\r\\nHost: intent\\r\\nContent-Type: application/json\\r\\nContent-Length: {}\\r\\nConnection: close\\r\\n\\r\\n{}",
        body.len(),
        body.replace('"', "\\\"")
    );
    let client = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "object-store"},
        "spec": {
            // A node may learn of the Service's new pod a second after the service is Ready.
            "restartPolicy": "OnFailure",
            "containers": [{
                "name": "client", "image": "localhost/flywheel-pause:dev", "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c",
                    format!("(printf \"{request}\"; /bin/busybox sleep 3) | /bin/busybox timeout 10 /bin/busybox nc intent.intent.svc.cluster.local 80")]
            }]
        }
    });
    let _ = kubectl(&["delete", "pod", "-n", "object-store", "client", "--ignore-not-found"]);
    apply(&client);
    wait(
        "a client pod is answered through the Service",
        Duration::from_secs(120),
        describe("pod", "object-store", "client"),
        || {
            let logs = kubectl(&["logs", "-n", "object-store", "client"]).ok()?;
            logs.contains("\"model_version\":\"intent-v1\"").then_some(())
        },
    );

    // The scale subresource, as a HorizontalPodAutoscaler would use it; and back.
    kubectl(&["scale", "infsvc/intent", "-n", "intent", "--replicas=2"]).expect("scale");
    wait(
        "two pods answer",
        Duration::from_secs(120),
        describe("infsvc", "intent", "intent"),
        || (get("infsvc", "intent", "intent")?["status"]["pods"] == "2/2").then_some(()),
    );
    kubectl(&["scale", "infsvc/intent", "-n", "intent", "--replicas=1"]).expect("scale");
    wait(
        "one pod answers",
        Duration::from_secs(120),
        describe("infsvc", "intent", "intent"),
        || (get("infsvc", "intent", "intent")?["status"]["pods"] == "1/1").then_some(()),
    );

    changes_over_while_it_answers(&version);
    scaling::follows_its_load("intent-v1");
    rollout::a_version_that_ends_its_pod_reaches_no_other(&version);

    // A served version cannot be deleted.
    let refused = kubectl(&["delete", "mv", "intent-v1", "-n", "intent", "--wait=false"])
        .expect_err("a served version was deleted");
    assert!(refused.contains("served"), "{refused}");
}

/// Another version, of the same artifact, and back: the pod stays, and every request is answered meanwhile.
fn changes_over_while_it_answers(version: &Value) {
    let pod = || {
        let pods = list("pods", "intent", "flywheel.dev/inference-service=intent");
        let mut living = pods
            .into_iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        living.next().expect("a pod")
    };
    let before = pod();
    let address = format!(
        "http://{}:8080/predict",
        before["status"]["podIP"].as_str().expect("address")
    );
    let mut spec = version["spec"].clone();
    spec["version"] = json!(2);
    apply(&json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion",
        "metadata": {"name": "intent-v2", "namespace": "intent"}, "spec": spec}));
    for name in ["intent-v2", "intent-v1"] {
        let patch = json!({"spec": {"modelVersion": name}}).to_string();
        kubectl(&[
            "patch",
            "infsvc",
            "intent",
            "-n",
            "intent",
            "--type=merge",
            "-p",
            &patch,
        ])
        .expect("patch");
        wait(
            &format!("the pod answers with {name}"),
            Duration::from_secs(60),
            describe("infsvc", "intent", "intent"),
            || {
                let (code, answer) = predict(&address, &json!({"text": "lights on"}));
                assert_eq!(code, 200, "a request was not answered: {answer}");
                (answer["model_version"] == name).then_some(())
            },
        );
        wait(
            &format!("the status says {name}"),
            Duration::from_secs(60),
            describe("infsvc", "intent", "intent"),
            || {
                let service = get("infsvc", "intent", "intent")?;
                condition(&service, "Ready").filter(|c| c.0 == "True")?;
                let traffic = service["status"]["traffic"].as_array()?;
                (traffic.len() == 1 && traffic[0]["modelVersion"] == name && traffic[0]["agreement"]["texts"] == 200)
                    .then_some(())
            },
        );
    }
    let after = pod();
    assert_eq!(
        after["metadata"]["uid"], before["metadata"]["uid"],
        "the pod was exchanged"
    );
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    // Nobody is answered by it any more, so it may go; a resync of the operator would be a minute late.
    wait(
        "the version that was left can be deleted",
        Duration::from_secs(30),
        describe("mv", "intent", "intent-v2"),
        || kubectl(&["delete", "mv", "intent-v2", "-n", "intent", "--timeout=30s"]).ok(),
    );
}
