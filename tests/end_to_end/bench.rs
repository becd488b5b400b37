//! What rows stand on: the namespace, its mirror, the objects that rows are made from, and how a row is judged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{apply, condition, delete_namespace, namespace_with_store};
use crate::mirror::{Mirror, Seen};

pub const NAMESPACE: &str = "bad-inputs";
/// What a row may take to its condition. The longest are bounded by the minute for which the storage is waited for, three
/// times in a serving pod.
pub const ROW_LIMIT: Duration = Duration::from_secs(300);
/// For what takes seconds, on a machine on which everything happens at once.
pub const SOON: Duration = Duration::from_secs(180);
/// Pods that may be on their way to their first container at a time. Each takes a second or two of a processor, and a small
/// machine that starts all at once answers nobody for a minute, its own nodes included.
const STARTING: usize = 5;
/// What has not begun by then waits for something else than a processor.
const START_WITHIN: Duration = Duration::from_secs(15);
/// From an object to the pods that are made for it.
const BEAT: Duration = Duration::from_secs(1);
/// A fixed minute is what is measured.
const QUIET_MINUTE: Duration = Duration::from_secs(60);
/// Writes that a quiet minute may see.
const QUIET_WRITES: usize = 2;

/// One input: where its object ends, and what that may cost.
pub struct Row {
    pub kind: &'static str,
    pub name: String,
    condition: &'static str,
    reason: &'static str,
    says: &'static str,
    attempts: usize,
    writes: usize,
}

/// A row of the object, with one attempt and a quiet minute.
pub fn ends(object: &Value, condition: &'static str, reason: &'static str) -> Row {
    let kind = object["kind"].as_str().expect("kind");
    Row {
        kind: match kind {
            "TrainingJob" => "trainingjob",
            "ModelVersion" => "modelversion",
            "InferenceService" => "inferenceservice",
            _ => panic!("{kind} is none of ours"),
        },
        name: object["metadata"]["name"].as_str().expect("name").to_owned(),
        condition,
        reason,
        says: "",
        attempts: 1,
        writes: QUIET_WRITES,
    }
}

impl Row {
    /// What the message must hold beside what to do.
    pub fn says(self, says: &'static str) -> Self {
        Self { says, ..self }
    }

    /// Jobs that may be made for it, or pods of a service.
    pub fn attempts(self, attempts: usize) -> Self {
        Self { attempts, ..self }
    }

    /// Writes in the minute after, where it goes on to be tried.
    pub fn writes(self, writes: usize) -> Self {
        Self { writes, ..self }
    }

    /// Kind and label of what is made for the object anew with each attempt.
    fn attempt(&self) -> (&'static str, &'static str) {
        match self.kind {
            "trainingjob" => ("job", "flywheel.dev/training-job"),
            "modelversion" => ("job", "flywheel.dev/model-version"),
            _ => ("pod", "flywheel.dev/inference-service"),
        }
    }

    /// Attempts made in a time.
    fn attempts_in(&self, seen: &Seen, from: Option<Instant>, to: Instant) -> usize {
        let (kind, label) = self.attempt();
        seen.changes(kind)
            .filter(|c| c.what == "ADDED" && c.labels[label] == self.name)
            .filter(|c| from.is_none_or(|from| c.at > from) && c.at <= to)
            .count()
    }
}

/// The namespace of all rows.
pub struct Bench {
    pub mirror: Mirror,
    table: Mutex<BTreeMap<String, String>>,
}

impl Bench {
    /// A namespace of its own, with the keys of the object store and wrong ones.
    pub fn start() -> Self {
        delete_namespace(NAMESPACE);
        namespace_with_store(NAMESPACE);
        apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong", "namespace": NAMESPACE},
            "stringData": {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing-at-all"}}),
        );
        Self {
            mirror: Mirror::start(NAMESPACE),
            table: Mutex::default(),
        }
    }

    /// Waits until the next row may begin.
    pub fn room(&self) {
        loop {
            std::thread::sleep(BEAT);
            let starting = self.mirror.look(|seen| {
                seen.changes("pod")
                    .filter(|c| c.what == "ADDED" && c.at.elapsed() < START_WITHIN)
                    .filter(|c| {
                        seen.get("pod", &c.name)
                            .is_some_and(|pod| pod["status"]["phase"] == "Pending")
                    })
                    .count()
            });
            if starting < STARTING {
                return;
            }
        }
    }

    /// Waits for the row's condition, then for a minute, and holds what happened against what may.
    pub fn settle(&self, row: &Row) {
        let begun = Instant::now();
        let what = format!("{} {}", row.condition, row.reason);
        let stands = |seen: &Seen| {
            let (_, reason, message) = condition(seen.get(row.kind, &row.name)?, row.condition)?;
            (reason == row.reason).then(|| message.to_owned())
        };
        let message = self.mirror.wait((row.kind, &row.name), &what, ROW_LIMIT, stands);
        let reached = Instant::now();
        assert!(
            (message.len() > 30 || row.reason == "AsExpected") && message.contains(row.says),
            "{}: the message does not say what is and what to do: {message:?}",
            row.name
        );
        std::thread::sleep(QUIET_MINUTE);
        let until = reached + QUIET_MINUTE;
        let (attempts, writes, after) = self.mirror.look(|seen| {
            // Only the operator writes these objects, once the test has made them.
            let changed = seen
                .changes(row.kind)
                .filter(|c| c.name == row.name && c.what == "MODIFIED" && c.at > reached && c.at <= until)
                .count();
            // A pod is made by its Deployment, a Job by the operator.
            let made = match row.attempt().0 {
                "job" => row.attempts_in(seen, Some(reached), until),
                _ => 0,
            };
            (row.attempts_in(seen, None, until), changed + made, stands(seen))
        });
        let line = format!(
            "{:<9} {:<28} {:6.1} s  attempts {attempts} of {}  writes in a minute {writes} of {}\n{:>27}{message}",
            row.condition,
            row.reason,
            (reached - begun).as_secs_f64(),
            row.attempts,
            row.writes,
            ""
        );
        self.table
            .lock()
            .unwrap()
            .insert(format!("{:<17} {}", row.kind, row.name), line.clone());
        assert!(
            attempts <= row.attempts && writes <= row.writes,
            "{}: a storm: {line}",
            row.name
        );
        // What goes on to be tried may be under way just now.
        assert!(
            after.is_some() || row.writes > QUIET_WRITES,
            "{}: {what} did not last",
            row.name
        );
    }

    pub fn print(&self) {
        for (row, line) in self.table.lock().unwrap().iter() {
            println!("{row}\n{:>27}{line}", "");
        }
    }

    /// The artifact of the training that went well, once its version is verified.
    pub fn good_artifact(&self) -> Value {
        self.becomes("modelversion", GOOD_VERSION, "Promotable")["spec"]["artifact"].clone()
    }

    /// Waits until a condition is True; the object.
    pub fn becomes(&self, kind: &'static str, name: &str, what: &str) -> Value {
        self.mirror.wait((kind, name), what, SOON, |seen| {
            let object = seen.get(kind, name)?;
            condition(object, what).filter(|c| c.0 == "True")?;
            Some(object.clone())
        })
    }

    /// Waits until the API server has given the object its uid.
    pub fn uid(&self, kind: &'static str, name: &str) -> String {
        self.mirror.wait((kind, name), "uid", SOON, |seen| {
            Some(seen.get(kind, name)?["metadata"]["uid"].as_str()?.to_owned())
        })
    }
}

// --- the objects that rows are made from ------------------------------------------------------------------------------

/// Name of the ModelVersion of the training that goes well.
pub const GOOD_VERSION: &str = "good-v1";

fn object(kind: &str, name: &str, spec: Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
    change(&mut object["spec"]);
    object
}

fn storage() -> Value {
    json!({"secretRef": {"name": "object-store"}, "endpoint": "http://minio.object-store.svc.cluster.local:9000"})
}

/// Pods without a request get nothing of a processor while anything else on the machine wants it.
fn a_little() -> Value {
    json!({"requests": {"cpu": "40m"}})
}

/// A TrainingJob that would go well, but for the change of its spec.
pub fn training(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let spec = json!({
        "task": "TextClassification",
        "model": {"pretrained": {"uri": "s3://bad-inputs/tiny"}},
        "dataset": {"sources": [{"uri": "s3://bad-inputs/good.csv"}]},
        "hyperparameters": {"epochs": 1, "maxLength": 16},
        "trainer": {"accelerator": {"class": "a100"}, "resources": a_little()},
        "storage": storage(),
        "recovery": {"maxRestarts": 0},
        "output": {"model": "bad", "uri": "s3://bad-inputs/out", "reuse": "Never"}
    });
    object("TrainingJob", name, spec, change)
}

/// A ModelVersion of this artifact, but for the change of its spec.
pub fn version(name: &str, artifact: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let spec = json!({"model": "bad", "version": 1, "artifact": artifact, "storage": storage()});
    object("ModelVersion", name, spec, change)
}

/// An InferenceService that would go well, but for the change of its spec.
pub fn service(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let spec = json!({"model": "good", "modelVersion": GOOD_VERSION, "replicas": 1,
        "server": {"resources": a_little()}, "storage": storage()});
    object("InferenceService", name, spec, change)
}

/// Lets the object reach its storage there.
pub fn endpoint(spec: &mut Value, url: &str) {
    spec["storage"]["endpoint"] = json!(url);
}
