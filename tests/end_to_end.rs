//! The way a user goes, on a real cluster with real pods: the examples as they stand, and inputs that must be refused.
//!
//! Needs the local cluster with the chart installed and the example's data in its object store; `make test` sees to it.
//! Everything goes through kubectl and HTTP, nothing through the operator's own code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

fn need(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set; run this test through `make test`"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn localcluster() -> PathBuf {
    // Cargo puts test programs into <target>/<profile>/deps.
    let deps = std::env::current_exe().expect("own path");
    deps.parent()
        .and_then(Path::parent)
        .expect("profile folder")
        .join("flywheel-localcluster")
}

fn run(command: &mut Command, input: Option<&str>) -> Result<String, String> {
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{command:?}: {e}"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn kubectl(arguments: &[&str]) -> Result<String, String> {
    run(Command::new(localcluster()).arg("kubectl").args(arguments), None)
}

fn apply(object: &Value) {
    run(
        Command::new(localcluster()).args(["kubectl", "apply", "-f", "-"]),
        Some(&object.to_string()),
    )
    .unwrap_or_else(|e| panic!("applying {object}: {e}"));
}

fn get(kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let text = kubectl(&["get", kind, "-n", namespace, name, "--ignore-not-found", "-o", "json"]).expect("kubectl get");
    (!text.trim().is_empty()).then(|| serde_json::from_str(&text).expect("JSON"))
}

fn list(kind: &str, namespace: &str, selector: &str) -> Vec<Value> {
    let text = kubectl(&["get", kind, "-n", namespace, "-l", selector, "-o", "json"]).expect("kubectl get");
    serde_json::from_str::<Value>(&text).expect("JSON")["items"]
        .as_array()
        .expect("items")
        .clone()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let found = object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)?;
    Some((
        found["status"].as_str()?,
        found["reason"].as_str()?,
        found["message"].as_str()?,
    ))
}

/// Waits until `ready` gives a value; says what it waited for, and shows `context`, at the deadline.
fn wait<T>(what: &str, limit: Duration, context: impl Fn() -> String, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            println!("  {:6.1} s  {what}", start.elapsed().as_secs_f64());
            return value;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}\n{}", context());
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn describe(kind: &str, namespace: &str, name: &str) -> impl Fn() -> String {
    let arguments: Vec<String> = ["describe", kind, "-n", namespace, name].map(str::to_owned).to_vec();
    move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        kubectl(&arguments).unwrap_or_else(|e| e)
    }
}

fn predict(address: &str, body: &Value) -> (u16, Value) {
    let text = run(
        Command::new("curl").args([
            "-sS",
            "-m",
            "10",
            "-w",
            "\n%{http_code}",
            "-H",
            "content-type: application/json",
            "-d",
            &body.to_string(),
            address,
        ]),
        None,
    )
    .unwrap_or_else(|e| panic!("{address}: {e}"));
    let (body, code) = text.rsplit_once('\n').expect("status line");
    (
        code.parse().expect("status"),
        serde_json::from_str(body).unwrap_or(Value::Null),
    )
}

#[test]
fn the_examples_train_a_model_and_serve_it() {
    run(
        Command::new(root().join("scripts/object-store.sh")).env("CARGO_TARGET_DIR", target()),
        None,
    )
    .expect("object-store.sh");
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
        Duration::from_secs(60),
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
    let job = wait(
        "the training is complete",
        Duration::from_secs(1200),
        describe("tj", "intent", "intent"),
        || {
            let job = get("tj", "intent", "intent")?;
            assert_ne!(
                condition(&job, "Failed").map(|c| c.0),
                Some("True"),
                "{}",
                job["status"]
            );
            condition(&job, "Complete").filter(|c| c.0 == "True")?;
            Some(job)
        },
    );
    assert_eq!(
        job["status"]["device"], "Cpu",
        "the status says that the GPU is simulated"
    );
    let version = wait(
        "the version is verified and promotable",
        Duration::from_secs(90),
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
        Duration::from_secs(120),
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
        Duration::from_secs(60),
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
        Duration::from_secs(90),
        describe("infsvc", "intent", "intent"),
        || (get("infsvc", "intent", "intent")?["status"]["pods"] == "2/2").then_some(()),
    );
    kubectl(&["scale", "infsvc/intent", "-n", "intent", "--replicas=1"]).expect("scale");
    wait(
        "one pod answers",
        Duration::from_secs(90),
        describe("infsvc", "intent", "intent"),
        || (get("infsvc", "intent", "intent")?["status"]["pods"] == "1/1").then_some(()),
    );

    // A served version cannot be deleted.
    let refused = kubectl(&["delete", "mv", "intent-v1", "-n", "intent", "--wait=false"])
        .expect_err("a served version was deleted");
    assert!(refused.contains("served"), "{refused}");
}

fn target() -> PathBuf {
    localcluster()
        .parent()
        .and_then(Path::parent)
        .expect("target folder")
        .to_path_buf()
}

/// One input that must be refused: a change of a good object, the condition and reason that must appear, and how many
/// attempts there may be.
struct Bad {
    name: &'static str,
    change: fn(&mut Value),
    condition: &'static str,
    reason: &'static str,
    attempts: usize,
}

const NAMESPACE: &str = "bad-inputs";

fn good_job() -> Value {
    json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"namespace": NAMESPACE},
        "spec": {
            "task": "TextClassification",
            "model": {"pretrained": {"uri": "s3://flywheel/minilm-l6"}},
            "dataset": {"sources": [{"uri": "s3://bad-inputs/good.csv"}]},
            "hyperparameters": {"epochs": 1, "maxLength": 16},
            "trainer": {"accelerator": {"class": "a100"}},
            "storage": {"secretRef": {"name": "object-store"}, "endpoint": "http://minio.object-store.svc.cluster.local:9000"},
            "recovery": {"maxRestarts": 0},
            "output": {"model": "bad", "uri": "s3://bad-inputs/out"}
        }
    })
}

fn source(job: &mut Value, key: &str) {
    job["spec"]["dataset"]["sources"][0]["uri"] = json!(format!("s3://bad-inputs/{key}"));
}
fn pretrained(job: &mut Value, key: &str) {
    job["spec"]["model"]["pretrained"]["uri"] = json!(format!("s3://bad-inputs/{key}"));
}

const BAD: &[Bad] = &[
    Bad {
        name: "missing-csv",
        change: |j| source(j, "missing.csv"),
        condition: "Failed",
        reason: "DatasetNotFound",
        attempts: 1,
    },
    Bad {
        name: "empty-csv",
        change: |j| source(j, "empty.csv"),
        condition: "Failed",
        reason: "DatasetEmpty",
        attempts: 1,
    },
    Bad {
        name: "no-rows",
        change: |j| source(j, "no-rows.csv"),
        condition: "Failed",
        reason: "DatasetEmpty",
        attempts: 1,
    },
    Bad {
        name: "wrong-column",
        change: |j| source(j, "wrong-column.csv"),
        condition: "Failed",
        reason: "ColumnMissing",
        attempts: 1,
    },
    Bad {
        name: "one-class",
        change: |j| source(j, "one-class.csv"),
        condition: "Failed",
        reason: "SingleClass",
        attempts: 1,
    },
    Bad {
        name: "label-in-test-only",
        change: |j| {
            j["spec"]["dataset"]["validation"] = json!([{"uri": "s3://bad-inputs/good.csv"}]);
            j["spec"]["dataset"]["test"] = json!([{"uri": "s3://bad-inputs/other-label.csv"}]);
        },
        condition: "Failed",
        reason: "LabelNotInTrain",
        attempts: 1,
    },
    Bad {
        name: "broken-utf8",
        change: |j| source(j, "broken-utf8.csv"),
        condition: "Failed",
        reason: "DatasetInvalid",
        attempts: 1,
    },
    Bad {
        name: "no-tokenizer",
        change: |j| pretrained(j, "no-tokenizer"),
        condition: "Failed",
        reason: "TokenizerMissing",
        attempts: 1,
    },
    Bad {
        name: "no-pretrained",
        change: |j| pretrained(j, "nowhere"),
        condition: "Failed",
        reason: "PretrainedNotFound",
        attempts: 1,
    },
    Bad {
        name: "truncated-weights",
        change: |j| pretrained(j, "truncated"),
        condition: "Failed",
        reason: "WeightsInvalid",
        attempts: 1,
    },
    Bad {
        name: "lying-header",
        change: |j| pretrained(j, "lying"),
        condition: "Failed",
        reason: "WeightsInvalid",
        attempts: 1,
    },
    Bad {
        name: "wrong-credentials",
        change: |j| j["spec"]["storage"]["secretRef"]["name"] = json!("wrong"),
        condition: "Failed",
        reason: "StorageForbidden",
        attempts: 1,
    },
    Bad {
        name: "storage-refuses",
        change: |j| {
            j["spec"]["storage"]["endpoint"] = json!("http://minio.object-store.svc.cluster.local:9");
            j["spec"]["recovery"]["maxRestarts"] = json!(1);
        },
        condition: "Failed",
        reason: "MaxRestartsExceeded",
        attempts: 2,
    },
    Bad {
        name: "missing-secret",
        // These two wait for ever, and with them a GPU: on another class than the rows that come after them.
        change: |j| {
            j["spec"]["storage"]["secretRef"]["name"] = json!("nowhere");
            j["spec"]["trainer"]["accelerator"]["class"] = json!("t4");
        },
        condition: "Running",
        reason: "PodConfigInvalid",
        attempts: 1,
    },
    Bad {
        name: "missing-image",
        change: |j| {
            j["spec"]["trainer"]["image"] = json!("localhost/nowhere:1");
            j["spec"]["trainer"]["accelerator"]["class"] = json!("t4");
        },
        condition: "Running",
        reason: "ImagePullFailed",
        attempts: 1,
    },
    Bad {
        name: "cuda-without-gpu",
        change: |j| j["spec"]["trainer"]["accelerator"]["class"] = json!("a100-cuda"),
        condition: "Failed",
        reason: "MaxRestartsExceeded",
        attempts: 1,
    },
    Bad {
        name: "no-such-class",
        change: |j| j["spec"]["trainer"]["accelerator"]["class"] = json!("tpu"),
        condition: "Admitted",
        reason: "UnknownAcceleratorClass",
        attempts: 0,
    },
    Bad {
        name: "no-matching-gpu",
        change: |j| j["spec"]["trainer"]["accelerator"]["class"] = json!("h100"),
        condition: "Admitted",
        reason: "NoMatchingGPU",
        attempts: 1,
    },
];

/// Writes to one object that a quiet minute may see.
const QUIET_WRITES: usize = 2;

#[test]
fn bad_inputs_end_in_a_clear_condition_without_a_storm() {
    let python = Path::new(&need("FLYWHEEL_CACHE")).join("example-python/bin/python");
    let example = Path::new(&need("FLYWHEEL_CACHE")).join("example");
    run(
        Command::new(python)
            .arg(root().join("tests/python/bad_inputs.py"))
            .arg(example),
        None,
    )
    .expect("bad_inputs.py");
    run(
        Command::new(root().join("scripts/object-store.sh")).env("CARGO_TARGET_DIR", target()),
        None,
    )
    .expect("object-store.sh");
    let _ = kubectl(&[
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--wait=true",
        "--timeout=60s",
    ]);
    apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
    );
    for (name, key, secret) in [
        ("object-store", need("AWS_ACCESS_KEY_ID"), need("AWS_SECRET_ACCESS_KEY")),
        ("wrong", "nobody".into(), "nothing-at-all".into()),
    ] {
        apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}}),
        );
    }
    for bad in BAD {
        let mut job = good_job();
        job["metadata"]["name"] = json!(bad.name);
        (bad.change)(&mut job);
        apply(&job);
    }
    // Services and versions that must be refused.
    apply(
        &json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "wrong-digest", "namespace": NAMESPACE}, "spec": {
        "model": "bad", "version": 900, "artifact": {"uri": "s3://bad-inputs/good.csv", "digest": format!("sha256:{}", "0".repeat(64))}, "storage": good_job()["spec"]["storage"]}}),
    );
    for (name, version) in [("no-version", "nowhere"), ("unverified", "wrong-digest")] {
        apply(
            &json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"model": "bad", "modelVersion": version, "replicas": 1, "storage": good_job()["spec"]["storage"]}}),
        );
    }
    // Deleted in the middle: nothing of it stays.
    let mut deleted = good_job();
    deleted["metadata"]["name"] = json!("deleted");
    apply(&deleted);
    wait(
        "the job that will be deleted has its child",
        Duration::from_secs(60),
        describe("tj", NAMESPACE, "deleted"),
        || (!list("jobs", NAMESPACE, "flywheel.dev/training-job=deleted").is_empty()).then_some(()),
    );
    kubectl(&[
        "delete",
        "tj",
        "deleted",
        "-n",
        NAMESPACE,
        "--wait=true",
        "--timeout=30s",
    ])
    .expect("a TrainingJob hangs in deletion");

    for bad in BAD {
        let message = wait(
            bad.name,
            Duration::from_secs(300),
            describe("tj", NAMESPACE, bad.name),
            || {
                let job = get("tj", NAMESPACE, bad.name)?;
                condition(&job, bad.condition)
                    .filter(|c| c.1 == bad.reason)
                    .map(|c| c.2.to_owned())
            },
        );
        println!("            {}: {message}", bad.reason);
        assert!(
            message.len() > 30,
            "{}: the message does not say what to do: {message:?}",
            bad.name
        );
    }
    for (kind, name, what, reason) in [
        ("mv", "wrong-digest", "Verified", "ArtifactNotFound"),
        ("infsvc", "no-version", "Ready", "ModelVersionNotFound"),
        ("infsvc", "unverified", "Ready", "ModelVersionNotVerified"),
    ] {
        wait(name, Duration::from_secs(120), describe(kind, NAMESPACE, name), || {
            condition(&get(kind, NAMESPACE, name)?, what)
                .filter(|c| c.1 == reason)
                .map(|_| ())
        });
    }
    wait(
        "nothing of the deleted job stays",
        Duration::from_secs(90),
        String::new,
        || (list("jobs,pods", NAMESPACE, "flywheel.dev/training-job=deleted").is_empty()).then_some(()),
    );

    // No storm: no more attempts than allowed, and in the next minute hardly a write.
    let written = writes_in_a_minute();
    let mut storms = vec![];
    for bad in BAD {
        let attempts = list("jobs", NAMESPACE, &format!("flywheel.dev/training-job={}", bad.name)).len();
        let writes = written.get(bad.name).copied().unwrap_or_default();
        println!(
            "  {:<20} {:<28} attempts {attempts} (at most {})  writes in a minute {writes}",
            bad.name, bad.reason, bad.attempts
        );
        if attempts > bad.attempts || writes > QUIET_WRITES {
            storms.push(format!("{}: {attempts} attempts, {writes} writes", bad.name));
        }
    }
    assert_eq!(storms, Vec::<String>::new());
    kubectl(&["delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s"])
        .expect("the namespace hangs in deletion");
}

/// Changes of TrainingJobs in the next 60 s, by name: only the operator writes them. A fixed minute is what is measured.
fn writes_in_a_minute() -> BTreeMap<String, usize> {
    let mut watch = Command::new(localcluster())
        .args([
            "kubectl",
            "get",
            "trainingjobs",
            "-n",
            NAMESPACE,
            "--watch-only",
            "--no-headers",
            "-o",
            "name",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl watches");
    std::thread::sleep(Duration::from_secs(60));
    watch.kill().expect("kubectl ends");
    let output = watch.wait_with_output().expect("kubectl's output");
    let mut count = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let name = line.rsplit('/').next().unwrap_or(line).to_owned();
        *count.entry(name).or_default() += 1;
    }
    count
}
