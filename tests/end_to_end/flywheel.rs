//! The whole loop: a service meets texts that its version was not made for, says so before anybody tells it what they are, learns
//! from what clients say, and answers with what it has learnt, while no request fails and no pod is exchanged.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{
    apply, bucket, cluster_ip, condition, delete_namespace, describe, get, list, need, object_store, predict, trained,
    wait,
};

const NAMESPACE: &str = "learning";
const NAME: &str = "assistant";
/// Intents that the first version does not know.
const NEW: [&str; 6] = [
    "HassClimateGetTemperature",
    "HassClimateSetFanMode",
    "HassFanSetSpeed",
    "HassMediaNext",
    "HassMediaPrevious",
    "HassMediaSearchAndPlay",
];
/// New texts of ten, once there are some.
const STRANGE_OF_TEN: usize = 3;
/// Texts of a request, and the time between two requests: forty texts a second.
const BATCH: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// For what takes a window or two, or pods that start.
const SOON: Duration = Duration::from_secs(180);
/// For a training beside everything else.
const TRAINING: Duration = Duration::from_secs(600);

/// Texts with their intents.
type Rows = Vec<(String, String)>;

/// Rows of a set of the example, those of known intents and the others.
fn rows(set: &str) -> (Rows, Rows) {
    let path = Path::new(&need("FLYWHEEL_CACHE"))
        .join("example/data")
        .join(format!("{set}.csv"));
    let text = std::fs::read_to_string(path).expect("the example's data");
    text.lines()
        .skip(1)
        .filter(|line| !line.contains('"'))
        .filter_map(|line| line.trim_end().rsplit_once(','))
        .map(|(text, label)| (text.to_owned(), label.to_owned()))
        .partition(|(_, label)| !NEW.contains(&label.as_str()))
}

/// Clients of the service, until they are stopped.
struct Clients {
    address: String,
    known: Rows,
    new: Rows,
    /// Some of them say what nobody said before.
    strange: AtomicBool,
    /// They say what would have been right.
    judge: AtomicBool,
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    texts: usize,
    judged: usize,
    /// Requests that were not answered 200.
    failed: Vec<String>,
}

impl Clients {
    fn run(&self) {
        let mut at = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let strange = self.strange.load(Ordering::Relaxed);
            let batch: Vec<&(String, String)> = (0..BATCH)
                .map(|n| {
                    at += 1;
                    let rows = if strange && n % 10 < STRANGE_OF_TEN {
                        &self.new
                    } else {
                        &self.known
                    };
                    // Not in the order of the file, which is by template.
                    &rows[(at * 7919) % rows.len()]
                })
                .collect();
            let texts: Vec<&str> = batch.iter().map(|(text, _)| text.as_str()).collect();
            let (code, answer) = predict(&format!("http://{}/predict", self.address), &json!({ "texts": texts }));
            let mut seen = self.seen.lock().expect("clients");
            seen.texts += BATCH;
            if code != 200 {
                seen.failed.push(format!("{code} {answer}"));
            } else if self.judge.load(Ordering::Relaxed) {
                let predictions = answer["predictions"].as_array().expect("predictions");
                let feedback: Vec<Value> = predictions
                    .iter()
                    .zip(&batch)
                    .map(|(told, (_, label))| json!({"request_id": told["request_id"], "label": label}))
                    .collect();
                let (code, told) = predict(
                    &format!("http://{}/feedback", self.address),
                    &json!({ "feedback": feedback }),
                );
                if code == 200 {
                    let results = told["results"].as_array().expect("results");
                    seen.judged += results.iter().filter(|result| result["outcome"] == "Counted").count();
                } else {
                    seen.failed.push(format!("feedback: {code} {told}"));
                }
            }
            drop(seen);
            std::thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
        }
    }

    /// Shares of right answers to held-out texts: of those with known intents, and of all, three in ten being new.
    fn accuracy(&self) -> (f64, f64) {
        let (mut known, new) = rows("test");
        known.truncate(known.len().min(new.len() * (10 - STRANGE_OF_TEN) / STRANGE_OF_TEN));
        let right = |rows: &Rows| {
            rows.chunks(50)
                .map(|chunk| {
                    let texts: Vec<&str> = chunk.iter().map(|(text, _)| text.as_str()).collect();
                    let (code, answer) =
                        predict(&format!("http://{}/predict", self.address), &json!({ "texts": texts }));
                    assert_eq!(code, 200, "{answer}");
                    let predictions = answer["predictions"].as_array().expect("predictions").iter();
                    predictions
                        .zip(chunk)
                        .filter(|(told, (_, label))| told["label"] == **label)
                        .count()
                })
                .sum::<usize>() as f64
        };
        let (of_known, of_new) = (right(&known), right(&new));
        let (known, new) = (known.len() as f64, new.len() as f64);
        (of_known / known, (of_known + of_new) / (known + new))
    }
}

fn service() -> Value {
    get("infsvc", NAMESPACE, NAME).expect("the service")
}

/// Waits until the service is so.
fn until(what: &str, limit: Duration, ready: impl Fn(&Value) -> bool) -> Value {
    wait(what, limit, describe("infsvc", NAMESPACE, NAME), || {
        let service = service();
        ready(&service).then_some(service)
    })
}

fn reason<'a>(service: &'a Value, kind: &str) -> &'a str {
    condition(service, kind).map_or("", |(_, reason, _)| reason)
}

/// What both training and service are given to reach the bucket.
fn storage() -> Value {
    json!({"secretRef": {"name": "object-store"}, "endpoint": "http://minio.object-store.svc.cluster.local:9000"})
}

/// The namespace with its Secrets, the data, and a TrainingJob that knows no new intent.
fn prepare() {
    object_store();
    apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}));
    let secret = get("secret", "intent", "object-store").expect("the example's Secret");
    apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "object-store", "namespace": NAMESPACE}, "data": secret["data"]}),
    );
    apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "receipts", "namespace": NAMESPACE},
        "stringData": {"key": "only for a test, so that anybody may know it"}}),
    );
    let data = Path::new(&need("FLYWHEEL_CACHE"))
        .join("example/data")
        .display()
        .to_string();
    let mut command = vec!["leave-out", &data, "known"];
    command.extend(NEW);
    bucket("flywheel", &command);
    apply(&json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "task": "TextClassification",
            "model": {"pretrained": {"uri": "s3://flywheel/minilm-l6"}},
            "dataset": {
                "sources": [{"uri": "s3://flywheel/known/train.csv"}],
                "validation": [{"uri": "s3://flywheel/known/validation.csv"}],
                "test": [{"uri": "s3://flywheel/known/test.csv"}],
            },
            "hyperparameters": {"epochs": 2, "batchSize": 16, "learningRate": "1e-4", "maxLength": 64},
            "trainer": {"accelerator": {"class": "a100"}, "resources": {
                "requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}},
            "storage": storage(),
            "output": {"model": NAME, "versionName": format!("{NAME}-v1"), "uri": "s3://flywheel/models/assistant",
                "gates": [{"metric": "test/accuracy", "min": "0.80"}]},
        }
    }));
    apply(&json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": NAME, "modelVersion": format!("{NAME}-v1"), "replicas": 2,
            "server": {"timeoutMilliseconds": 5000, "resources": {
                "requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}},
            "storage": storage(),
            "autoUpdate": {"policy": "LatestPromotable"},
            "rollout": {"steps": [{"weightPercent": 40, "durationSeconds": 5, "minRequests": 100}], "analysis": {"minSamples": 100}},
            "drift": {"windowSeconds": 20, "minSamples": 300},
            "feedback": {"signingKeySecretRef": {"name": "receipts", "key": "key"}, "capture": true, "uri": "s3://flywheel/feedback"},
            // Without a pause, so that nothing but the rule itself holds a second one back.
            "retrain": {"trainingJob": NAME, "minFeedback": 700, "cooldownSeconds": 0},
        }
    }));
}

#[test]
fn the_loop_learns_what_it_did_not_know() {
    prepare();
    let trained = |name: &str| trained(NAMESPACE, name, TRAINING);
    trained(NAME);
    until("two pods answer with the first version", SOON, |service| {
        service["status"]["pods"] == "2/2" && reason(service, "DriftDetected") == "CollectingReference"
    });
    let pods = || -> Vec<(Value, Value)> {
        let pods = list("pods", NAMESPACE, &format!("flywheel.dev/inference-service={NAME}"));
        let mut pods: Vec<(Value, Value)> = pods
            .iter()
            .map(|pod| {
                (
                    pod["metadata"]["name"].clone(),
                    pod["status"]["containerStatuses"][0]["restartCount"].clone(),
                )
            })
            .collect();
        pods.sort_by_key(|(name, _)| name.to_string());
        pods
    };
    let before = pods();
    let clients = Clients {
        address: cluster_ip(NAMESPACE, NAME),
        known: rows("validation").0,
        new: rows("train").1,
        strange: AtomicBool::new(false),
        judge: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        seen: Mutex::default(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| clients.run());
        // The clients end with whatever ends the rest.
        let _stop = Stop(&clients.stop);
        until("usual texts are no drift", SOON, |service| {
            reason(service, "DriftDetected") == "NoDrift"
        });
        let (known, all) = clients.accuracy();
        println!(
            "           the first version: {:.1} % of known intents, {:.1} % of all",
            known * 100.0,
            all * 100.0
        );
        clients.strange.store(true, Ordering::Relaxed);
        let service = until("drift is declared", SOON, |service| {
            reason(service, "DriftDetected") == "Drifted"
        });
        println!(
            "           {}",
            condition(&service, "DriftDetected").expect("DriftDetected").2
        );
        assert_eq!(
            clients.seen.lock().expect("clients").judged,
            0,
            "before any label arrives"
        );
        until("labels are waited for", SOON, |service| {
            reason(service, "Retraining") == "WaitingForFeedback"
        });
        clients.judge.store(true, Ordering::Relaxed);
        let service = until("a retraining begins", SOON, |service| {
            reason(service, "Retraining") == "RetrainingRunning"
        });
        let job = service["status"]["retraining"]["trainingJob"]
            .as_str()
            .expect("its name")
            .to_owned();
        let made = trained(&job);
        let version = made["status"]["result"]["modelVersion"]
            .as_str()
            .expect("its version")
            .to_owned();
        until("its version comes by steps", SOON, |service| {
            let canary = service["status"]["canary"].as_str().unwrap_or_default();
            canary.starts_with(&version) || service["status"]["modelVersion"] == version
        });
        let service = until("it answers all requests", SOON, |service| {
            service["status"]["modelVersion"] == version
        });
        assert_eq!(service["status"]["retraining"]["modelVersion"], version);
        let (known_then, all_then) = clients.accuracy();
        println!(
            "           the second version: {:.1} % of known intents, {:.1} % of all",
            known_then * 100.0,
            all_then * 100.0
        );
        assert!(all_then >= all + 0.15, "{all} before, {all_then} after");
        assert!(known_then >= known - 0.02, "{known} before, {known_then} after");
        until("what is usual is learnt anew for it", SOON, |service| {
            let (status, ..) = condition(service, "DriftDetected").expect("DriftDetected");
            status != "True" && reason(service, "Retraining") == "NoDrift"
        });
        let trainings = list("tj", NAMESPACE, &format!("flywheel.dev/retrains={NAME}"));
        assert_eq!(trainings.len(), 1, "one verdict, one training");
    });
    assert_eq!(pods(), before, "no pod was exchanged or began anew");
    let seen = clients.seen.into_inner().expect("clients");
    println!("           {} texts, {} of them judged", seen.texts, seen.judged);
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    delete_namespace(NAMESPACE);
}

/// Stops what runs when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
