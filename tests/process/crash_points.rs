//! The operator killed before and after each of its writes of a whole training, of a service that grows and shrinks again, and of
//! new versions that come by steps, one to the end and one that is rejected. Whenever that is, all ends as if nothing had happened.
//!
//! etcd, API server, scheduler, and the controllers of Jobs and Deployments are real; the kubelet is played. Each run has a
//! namespace, a proxy and an operator of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flywheel_api::names::{
    ANNOTATION_APPLIED, ANNOTATION_ASSIGNMENT, LABEL_ATTEMPT, LABEL_COMPONENT, SERVER, VERIFIER,
};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::failure::FailureReason;
use flywheel_contract::names::{ASSIGNMENT_FILE, INSIDE_PORT, STATS_PATH};
use flywheel_contract::scalar::{Digest, Metric, Precision};
use flywheel_contract::serving::{
    Assignment, LabelsBeside, LoadState, ServedVersion, Stats, VersionFigures, VersionStats,
};
use flywheel_contract::termination::{Outcome, TerminationMessage, Trained, Verified};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_testkit::{Moment, Point};
use futures::{StreamExt as _, stream};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::plane::Plane;
use super::{Operator, kubeconfig, kubelet, namespace_with_account, plane_with_crds, proxy};

/// The one node.
const NODE: &str = "n-0";
/// As many GPUs as all runs want at once, with room.
const GPUS: u32 = 500;
/// Runs at once. They wait most of the time, but twelve with three pods each held up the API server of two busy cores for seconds.
const TOGETHER: usize = 6;
/// Without `CRASH_POINTS=all` the operator is killed at what creates an object, and of the other writes at each so many-th.
const EACH: usize = 6;
/// The same of a rollout, which has many that are alike, and takes longest.
const EACH_OF_ROLLOUT: usize = 12;
/// What is written together in one run may be written one by one in another: a run that is disturbed may have so many writes
/// more than one that is not, or fewer, and then the operator is not killed in it.
const BEYOND: usize = 3;
/// Time between two looks of a kubelet.
const LOOK: Duration = Duration::from_millis(200);
/// How long nothing may have changed at the end.
const STILL: Duration = Duration::from_secs(2);
/// From a crash to the state that would have been without it, beside what the scenario takes.
const CONVERGES_WITHIN: Duration = Duration::from_secs(30);

/// Where a Deployment or ReplicaSet says which configuration its pods have.
const CONFIG_DIGEST: &str = "/spec/template/metadata/annotations/flywheel.dev~1config-digest";

/// What is compared: all that the operator writes, and what follows from that.
const KINDS: [&str; 12] = [
    "/apis/flywheel.dev/v1alpha1/trainingjobs",
    "/apis/flywheel.dev/v1alpha1/modelversions",
    "/apis/flywheel.dev/v1alpha1/inferenceservices",
    "/apis/batch/v1/jobs",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/replicasets",
    "/apis/apps/v1/controllerrevisions",
    "/apis/policy/v1/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/api/v1/services",
    "/api/v1/configmaps",
    "/api/v1/pods",
];

#[derive(Clone, Copy, Debug)]
enum Scenario {
    Training,
    Scale,
    Rollout,
}

/// One run of a scenario.
struct Run<'a> {
    plane: &'a Plane,
    namespace: String,
    /// Its serving pods by their names.
    servers: Mutex<BTreeMap<String, Server>>,
}

impl Run<'_> {
    fn path(&self, collection: &str) -> String {
        let (group, resource) = collection.rsplit_once('/').unwrap();
        format!("{group}/namespaces/{}/{resource}", self.namespace)
    }

    async fn list(&self, collection: &str) -> Vec<Value> {
        let list = self
            .plane
            .send(Method::GET, &self.path(collection), None)
            .await
            .unwrap();
        list["items"].as_array().unwrap().clone()
    }

    async fn object(&self, collection: &str, name: &str) -> Option<Value> {
        let path = format!("{}/{name}", self.path(collection));
        self.plane.send(Method::GET, &path, None).await.ok()
    }

    /// Does what a kubelet does at once: starts what has a node, and takes away what is to end. The pods before that.
    async fn tend(&self) -> Vec<Value> {
        tokio::time::sleep(LOOK).await;
        let pods = self.list("/api/v1/pods").await;
        for pod in &pods {
            let path = kubelet::pod_path(pod);
            if let Some(server) = self
                .servers
                .lock()
                .unwrap()
                .get(pod["metadata"]["name"].as_str().unwrap())
            {
                let annotation = pod["metadata"]["annotations"][ANNOTATION_ASSIGNMENT].as_str();
                server.told.lock().unwrap().annotation = annotation.map(str::to_owned);
            }
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let at_once = json!({"gracePeriodSeconds": 0});
                let _ = self.plane.send(Method::DELETE, &path, Some(&at_once)).await;
            } else if pod["spec"]["nodeName"].is_string() && pod["status"]["phase"] == "Pending" {
                let serves = pod["metadata"]["labels"][LABEL_COMPONENT] == SERVER;
                let address = if serves {
                    self.serve(pod["metadata"]["name"].as_str().unwrap()).await
                } else {
                    kubelet::NOWHERE.to_owned()
                };
                kubelet::run(self.plane, pod, &address).await;
            }
        }
        pods
    }

    /// Starts what answers for a serving pod; its address.
    async fn serve(&self, pod: &str) -> String {
        let known = self
            .servers
            .lock()
            .unwrap()
            .get(pod)
            .map(|server| server.address.clone());
        if let Some(address) = known {
            return address;
        }
        let server = Server::start(self.plane.client(), &self.namespace, pod).await;
        let address = server.address.clone();
        self.servers.lock().unwrap().insert(pod.to_owned(), server);
        address
    }

    /// Waits, tending the pods, for an object that satisfies this.
    async fn until(&self, what: &str, collection: &str, name: &str, is: impl Fn(&Value) -> bool) {
        let is = &is;
        self.plane
            .until(&format!("{what} in {}", self.namespace), || async move {
                self.tend().await;
                self.object(collection, name)
                    .await
                    .filter(|object| is(object))
                    .map(|_| ())
            })
            .await;
    }

    /// The running pod with this label.
    async fn running(&self, label: &str, value: &str) -> Value {
        let what = format!("a running pod with {label}={value} in {}", self.namespace);
        self.plane
            .until(&what, || async {
                let pods = self.tend().await;
                pods.into_iter()
                    .find(|pod| pod["metadata"]["labels"][label] == value && pod["status"]["phase"] == "Running")
            })
            .await
    }

    async fn succeed(&self, pod: &Value, outcome: Outcome) {
        let message = TerminationMessage::new(outcome).to_json();
        kubelet::end(self.plane, pod, kubelet::NOWHERE, 0, &message).await;
    }

    async fn create(&self, kind: &str, name: &str, spec: Value) {
        self.plane
            .create(
                &json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": kind, "spec": spec,
                "metadata": {"name": name, "namespace": self.namespace}}),
            )
            .await;
    }

    async fn play(&self, scenario: Scenario) {
        match scenario {
            Scenario::Training => self.training().await,
            Scenario::Scale => self.scale().await,
            Scenario::Rollout => self.rollout().await,
        }
    }

    /// A training whose first pod fails, and whose result becomes a version.
    async fn training(&self) {
        let spec = json!({"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}},
            "dataset": {"sources": [{"uri": "s3://b/d.csv"}]}, "output": {"model": "intent", "uri": "s3://b/o"}});
        self.create("TrainingJob", "intent", spec).await;
        let runs = |attempt: u32| async move {
            let pod = self.running(LABEL_ATTEMPT, &attempt.to_string()).await;
            self.until("it runs", KINDS[0], "intent", |job| {
                job["status"]["state"] == "Running" && job["status"]["attempt"] == attempt
            })
            .await;
            pod
        };
        let pod = runs(1).await;
        let failed = kubelet::failure(FailureReason::StorageUnavailable, None);
        kubelet::end(self.plane, &pod, kubelet::NOWHERE, 1, &failed).await;
        let pod = runs(2).await;
        let trained = Trained {
            artifact: ArtifactRef {
                uri: "s3://b/o/u/attempt-2".into(),
                digest: Digest::sha256(&"0".repeat(64)),
            },
            dataset_digest: Digest::sha256(&"1".repeat(64)),
            metrics: vec![Metric::new("test/accuracy", 0.9)],
            steps: 100,
            reused: false,
        };
        self.succeed(&pod, Outcome::Trained(trained)).await;
        self.until("it is complete", KINDS[0], "intent", |job| {
            job["status"]["state"] == "Complete"
        })
        .await;
        self.verified().await;
    }

    /// The version's artifact is found to be what it should be.
    async fn verified(&self) {
        let pod = self.running(LABEL_COMPONENT, VERIFIER).await;
        self.succeed(&pod, Outcome::Verified(verified())).await;
        let what = format!("a verified version in {}", self.namespace);
        let verified = |version: &Value| condition(version, "Verified").0 == "True";
        self.plane
            .until(&what, || async {
                self.list(KINDS[1]).await.iter().any(verified).then_some(())
            })
            .await;
    }

    /// A version that was made by hand, and is verified.
    async fn version(&self, number: u32) {
        let digest = format!("sha256:{}", number.to_string().repeat(64));
        let spec = json!({"model": "intent", "version": number,
            "artifact": {"uri": format!("s3://b/o/{number}"), "digest": digest}});
        let name = format!("intent-v{number}");
        self.create("ModelVersion", &name, spec).await;
        let pod = self.running(LABEL_COMPONENT, VERIFIER).await;
        self.succeed(&pod, Outcome::Verified(verified())).await;
        self.until("it is verified", KINDS[1], &name, |version| {
            condition(version, "Verified").0 == "True"
        })
        .await;
    }

    /// A second version that comes by two steps to the end, and a third one that is rejected. No pod is another one at the end.
    async fn rollout(&self) {
        self.version(1).await;
        let spec = json!({"model": "intent", "modelVersion": "intent-v1", "replicas": 3, "accelerator": {"class": "a100"},
            "rollout": {"steps": [{"weightPercent": 10, "durationSeconds": 0},
                {"weightPercent": 50, "durationSeconds": 1, "minRequests": 200}], "analysis": {}}});
        self.create("InferenceService", "intent", spec).await;
        let ends = |version: u32, reason: &'static str| async move {
            let path = format!("{}/intent", self.path(KINDS[2]));
            let wanted = json!({"spec": {"modelVersion": format!("intent-v{version}")}});
            kubelet::patch(self.plane, &path, &wanted).await;
            self.until(reason, KINDS[2], "intent", |service| {
                let status = &service["status"];
                status["observedGeneration"] == service["metadata"]["generation"]
                    && status["pods"] == "3/3"
                    && status["modelVersion"] == format!("intent-v{}", version.min(2))
                    && condition(service, "Ready").0 == "True"
                    && condition(service, "RolloutProgressing") == ("False", reason)
            })
            .await;
            let pods = self.tend().await;
            let servers = pods
                .iter()
                .filter(|pod| pod["metadata"]["labels"][LABEL_COMPONENT] == SERVER);
            servers.map(|pod| pod["metadata"]["uid"].clone()).collect::<Vec<_>>()
        };
        let pods = ends(1, "RolloutComplete").await;
        self.version(2).await;
        assert_eq!(ends(2, "RolloutComplete").await, pods);
        self.version(3).await;
        assert_eq!(ends(3, "RolledBack").await, pods);
    }

    /// A service of one pod, then of three, then of one again.
    async fn scale(&self) {
        self.version(1).await;
        let spec =
            json!({"model": "intent", "modelVersion": "intent-v1", "replicas": 1, "accelerator": {"class": "a100"}});
        self.create("InferenceService", "intent", spec).await;
        for replicas in [1, 3, 1] {
            let path = format!("{}/intent", self.path(KINDS[2]));
            kubelet::patch(self.plane, &path, &json!({"spec": {"replicas": replicas}})).await;
            self.until(&format!("{replicas} ready"), KINDS[2], "intent", |service| {
                let status = &service["status"];
                status["observedGeneration"] == service["metadata"]["generation"]
                    && status["pods"] == format!("{replicas}/{replicas}")
            })
            .await;
            self.until(&format!("{replicas} pods"), KINDS[4], "intent", |deployment| {
                deployment["status"]["replicas"] == replicas
            })
            .await;
        }
    }

    /// All there is, without what differs from run to run: uids, times, versions, and names by chance.
    async fn state(&self) -> Vec<String> {
        let pods = self.tend().await;
        let mut objects = Vec::new();
        for kind in KINDS {
            let list = if kind.ends_with("/pods") {
                pods.clone()
            } else {
                self.list(kind).await
            };
            objects.extend(list.into_iter().map(|object| (kind, object)));
        }
        let mut chance = vec![(self.namespace.clone(), "NAMESPACE".to_owned())];
        for server in self.servers.lock().unwrap().values() {
            chance.push((server.address.clone(), "SERVER".to_owned()));
        }
        for (kind, object) in &objects {
            let (metadata, kind) = (&object["metadata"], kind.rsplit('/').next().unwrap());
            let made = metadata["generateName"].as_str().map(|prefix| format!("{prefix}*"));
            let name = metadata["name"].as_str().unwrap().to_owned();
            let shown = made.as_ref().unwrap_or(&name);
            chance.push((
                metadata["uid"].as_str().unwrap().to_owned(),
                format!("UID of {kind}/{shown}"),
            ));
            // A training's version is named after the uid of the training, which has no such letter.
            if kind == "modelversions" && !name.starts_with("intent-v") {
                chance.push((name.clone(), "VERSION".to_owned()));
            }
            if let Some(made) = made {
                chance.push((name, made));
            }
            if let Some(hash) = metadata["labels"]["pod-template-hash"].as_str() {
                chance.push((hash.to_owned(), "HASH".to_owned()));
            }
            // The pods' configuration holds names and uids.
            if let Some(digest) = object.pointer(CONFIG_DIGEST).and_then(Value::as_str) {
                let short = digest.trim_start_matches("sha256:").get(..8).unwrap();
                chance.push((digest.to_owned(), "DIGEST".to_owned()));
                chance.push((short.to_owned(), "DIGEST".to_owned()));
            }
            // It begins with the time.
            if let Some(assignment) = assignment(object) {
                chance.push((assignment.generation.to_string(), "GENERATION".to_owned()));
            }
        }
        // A name may be part of a longer one.
        chance.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        let mut state: Vec<String> = objects
            .into_iter()
            .map(|(kind, mut object)| {
                let metadata = object["metadata"].as_object_mut().unwrap();
                metadata.retain(|key, _| key != "managedFields" && key != "resourceVersion");
                if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                    annotations.remove(ANNOTATION_APPLIED);
                    // A pod that found the newest assignment when it was told of the one before is told no more.
                    annotations.remove(ANNOTATION_ASSIGNMENT);
                }
                let name = metadata["name"].as_str().unwrap().to_owned();
                if let Some(server) = self.servers.lock().unwrap().get(&name) {
                    let told = server.told.lock().unwrap();
                    object["follows"] = json!(told.follows.as_ref().map(|follows| follows.generation.to_string()));
                }
                if let Some(spec) = object["spec"].as_object_mut() {
                    spec.retain(|key, _| key != "clusterIP" && key != "clusterIPs");
                }
                timeless(&mut object);
                let text = serde_json::to_string_pretty(&object).unwrap();
                let text = chance.iter().fold(text, |text, (from, to)| text.replace(from, to));
                format!("{kind} {text}")
            })
            .collect();
        state.sort_unstable();
        state
    }

    /// The state, once it has stayed the same for a while; with `wanted` only this one counts, and what there is when it has
    /// not come.
    async fn end(&self, wanted: Option<&Vec<String>>) -> Vec<String> {
        let deadline = Instant::now() + CONVERGES_WITHIN;
        let (mut last, mut since) = (self.state().await, Instant::now());
        loop {
            let state = self.state().await;
            if state != last {
                (last, since) = (state, Instant::now());
            }
            let fits = wanted.is_none_or(|wanted| *wanted == last);
            if (fits && since.elapsed() >= STILL) || Instant::now() >= deadline {
                return last;
            }
        }
    }
}

/// What a version is rejected for; how many there were by then is chance.
const UNCOMPUTED: &str = " texts could not be computed";

/// Status and reason of a condition.
fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    let word = |field: &str| found.and_then(|c| c[field].as_str()).unwrap_or_default();
    (word("status"), word("reason"))
}

/// What a verifier finds.
fn verified() -> Verified {
    Verified {
        files: 3,
        bytes: 1000,
        ..Verified::default()
    }
}

/// Replaces all that is a time, and what tells how long a recovery took.
fn timeless(value: &mut Value) {
    match value {
        Value::String(text) if text.parse::<Timestamp>().is_ok() => *text = "TIME".to_owned(),
        Value::String(text) => {
            if let Some((incident, _)) = text.split_once(" failed at ") {
                *text = incident.to_owned();
            }
            let counted = text.split_once(" % of ");
            if let Some((before, (_, after))) =
                counted.and_then(|(before, of)| Some((before, of.split_once(UNCOMPUTED)?)))
            {
                *text = format!("{before} % of some{UNCOMPUTED}{after}");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(timeless),
        Value::Object(fields) => {
            let lasts = ["detectSeconds", "decideSeconds", "replaceSeconds", "recoverSeconds"];
            fields.retain(|key, _| !lasts.contains(&key.as_str()));
            fields.values_mut().for_each(timeless);
        }
        _ => {}
    }
}

/// What a ConfigMap says to serving pods.
fn assignment(object: &Value) -> Option<Assignment> {
    serde_json::from_str(object["data"][ASSIGNMENT_FILE].as_str()?).ok()
}

/// A serving pod, at an address of its own. It follows its assignment as it is when its kubelet is told to bring it, loads at once, and
/// computes so many texts a second with each version, none with [`BAD`].
struct Server {
    address: String,
    told: Arc<Mutex<Told>>,
    serving: tokio::task::JoinHandle<()>,
}

/// Texts that a version computes in a second.
const TEXTS: f64 = 1000.0;
/// The version that fails at each of them.
const BAD: &str = "intent-v3";

/// What a pod has been told, and since when it holds versions.
#[derive(Default)]
struct Told {
    /// The pod's annotation that makes the kubelet bring the assignment.
    annotation: Option<String>,
    /// What it was when the assignment was brought.
    brought: Option<String>,
    follows: Option<Assignment>,
    since: BTreeMap<String, Instant>,
}

impl Server {
    async fn start(client: Client, namespace: &str, pod: &str) -> Self {
        let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
        let told = Arc::new(Mutex::new(Told::default()));
        let answer = {
            let told = Arc::clone(&told);
            move || {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
                let (pod, told) = (pod.clone(), Arc::clone(&told));
                async move {
                    let behind = told.lock().unwrap().behind();
                    if let Some(annotation) = behind {
                        let map = maps.get("intent-serving").await.unwrap();
                        let newest = assignment(&serde_json::to_value(map).unwrap()).unwrap();
                        told.lock().unwrap().follow(annotation, newest.of_pod(&pod));
                    }
                    axum::Json(told.lock().unwrap().stats())
                }
            }
        };
        let router = axum::Router::new().route(STATS_PATH, axum::routing::get(answer));
        // Beyond the addresses that control planes take.
        let mut addresses = (1..u8::MAX).flat_map(|b| (1..u8::MAX).map(move |c| Ipv4Addr::new(127, 130, b, c)));
        let (address, listener) = loop {
            let address = addresses.next().unwrap();
            if let Ok(listener) = TcpListener::bind((address, INSIDE_PORT)).await {
                break (address, listener);
            }
        };
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address: address.to_string(),
            told,
            serving,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Told {
    /// The annotation, where the assignment was not brought since it changed.
    fn behind(&self) -> Option<Option<String>> {
        let behind = self.follows.is_none() || self.annotation != self.brought;
        behind.then(|| self.annotation.clone())
    }

    fn follow(&mut self, annotation: Option<String>, newest: Assignment) {
        let listed = |name: &String| newest.versions.iter().any(|version| version.name == *name);
        self.since.retain(|name, _| listed(name));
        self.follows = Some(newest);
        self.brought = annotation;
    }

    fn stats(&mut self) -> Stats {
        let follows = self.follows.clone().unwrap();
        let stable = follows.serving().unwrap().artifact.digest.clone();
        let labels = ["a".to_owned(), "b".to_owned()];
        let mut loaded = |version: &ServedVersion| {
            let since = self.since.entry(version.name.clone()).or_insert_with(Instant::now);
            let texts = (since.elapsed().as_secs_f64() * TEXTS) as u64;
            let bad = version.name == BAD;
            let comes = follows.canary.as_ref().is_some_and(|canary| canary.version == *version);
            VersionStats {
                name: version.name.clone(),
                digest: version.artifact.digest.clone(),
                state: LoadState::Ready,
                precision: Some(Precision::Float32),
                agreement: None,
                likeness: None,
                labels: comes.then(|| LabelsBeside::of(&labels, &stable, &labels)),
                failure: None,
                crash: None,
                figures: Some(VersionFigures {
                    texts: if bad { 0 } else { texts },
                    failed: if bad { texts } else { 0 },
                    ..VersionFigures::default()
                }),
                copies: None,
            }
        };
        Stats {
            schema_version: SCHEMA_VERSION,
            ready: true,
            generation: follows.generation,
            serving: Some(follows.serve.clone()),
            versions: follows.versions.iter().map(&mut loaded).collect(),
            answered: [0; 3],
            in_flight: 0,
            uptime_seconds: 1.0,
            load: None,
        }
    }
}

/// Lines that only one of two states has.
fn difference(wanted: &[String], found: &[String]) -> String {
    let lines = |state: &[String]| -> BTreeSet<String> {
        let of = |object: &String| {
            let kind = object.split(' ').next().unwrap().to_owned();
            object
                .lines()
                .map(|line| format!("{kind}: {}", line.trim()))
                .collect::<Vec<_>>()
        };
        state.iter().flat_map(of).collect()
    };
    let (left, right) = (lines(wanted), lines(found));
    let missing = left.difference(&right).map(|line| format!("- {line}\n"));
    missing
        .chain(right.difference(&left).map(|line| format!("+ {line}\n")))
        .collect()
}

/// What came of a run.
struct Ending {
    state: Vec<String>,
    /// Method and path of each.
    writes: Vec<String>,
    reached: bool,
}

async fn run(
    plane: &Plane,
    folder: &Path,
    name: &str,
    scenario: Scenario,
    point: Option<Point>,
    wanted: Option<&Vec<String>>,
) -> Ending {
    let namespace = format!("{scenario:?}-{name}").to_lowercase();
    namespace_with_account(plane, &namespace).await;
    let run = Run {
        plane,
        namespace,
        servers: Mutex::default(),
    };
    let proxy = proxy(plane).await;
    let start = {
        let (namespace, folder, config) = (run.namespace.clone(), folder.to_owned(), kubeconfig(&proxy.server()));
        // The same name, as a container has that is started again in its pod.
        move || Operator::start_in(&namespace, &folder, &namespace, &config)
    };
    let operator = Arc::new(Mutex::new(start()));
    if let Some(point) = point {
        let operator = Arc::clone(&operator);
        proxy.at(point, move || {
            let mut operator = operator.lock().unwrap();
            operator.kill();
            *operator = start();
        });
    }
    run.play(scenario).await;
    let state = run.end(wanted).await;
    let reached = point.is_some() && !proxy.is_planned();
    Ending {
        state,
        writes: proxy.writes(),
        reached,
    }
}

/// How a scenario ends that nobody disturbs: twice the same.
async fn undisturbed(plane: &Plane, folder: &Path, scenario: Scenario) -> Ending {
    let (one, other) = tokio::join!(
        run(plane, folder, "one", scenario, None, None),
        run(plane, folder, "other", scenario, None, None)
    );
    assert!(
        one.state == other.state,
        "{scenario:?}: {}",
        difference(&one.state, &other.state)
    );
    if one.writes.len() < other.writes.len() {
        one
    } else {
        other
    }
}

/// Kills the operator at these points of a scenario, whose undisturbed run ended so; how many it was killed at.
async fn disturb(plane: &Plane, folder: &Path, points: Vec<(Scenario, &Ending, Point)>) -> usize {
    let runs = points.into_iter().map(|(scenario, undisturbed, point)| async move {
        let name = format!("{}-{:?}", point.write, point.moment);
        let ending = run(plane, folder, &name, scenario, Some(point), Some(&undisturbed.state)).await;
        let differs = difference(&undisturbed.state, &ending.state);
        (
            ending.reached,
            ending.state == undisturbed.state,
            format!("{scenario:?} {point:?}\n{differs}"),
        )
    });
    let endings: Vec<_> = stream::iter(runs).buffer_unordered(TOGETHER).collect().await;
    let wrong: Vec<_> = endings
        .iter()
        .filter(|(_, same, _)| !same)
        .map(|(.., differs)| differs.as_str())
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} end in another way:\n{}",
        wrong.len(),
        endings.len(),
        wrong.join("\n")
    );
    endings.iter().filter(|(reached, ..)| *reached).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_it_is_killed_all_ends_as_if_it_had_not_been() {
    let plane = plane_with_crds(true).await;
    kubelet::node(&plane, NODE, GPUS).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let all = std::env::var("CRASH_POINTS").is_ok_and(|points| points == "all");
    let work = async {
        let begin = Instant::now();
        let (training, scale, rollout) = tokio::join!(
            undisturbed(&plane, folder, Scenario::Training),
            undisturbed(&plane, folder, Scenario::Scale),
            undisturbed(&plane, folder, Scenario::Rollout)
        );
        // Those that take longest first.
        let scenarios = [
            (Scenario::Rollout, &rollout),
            (Scenario::Training, &training),
            (Scenario::Scale, &scale),
        ];
        let mut points = Vec::new();
        for (scenario, undisturbed) in scenarios {
            let creates = |write: usize| undisturbed.writes.get(write - 1).is_some_and(|w| w.starts_with("POST"));
            let each = match scenario {
                Scenario::Rollout => EACH_OF_ROLLOUT,
                Scenario::Training | Scenario::Scale => EACH,
            };
            let chosen = |write: &usize| all || creates(*write) || write.is_multiple_of(each);
            for write in (1..=undisturbed.writes.len() + BEYOND).filter(chosen) {
                let both = [Moment::Before, Moment::After];
                points.extend(both.map(|moment| (scenario, undisturbed, Point { write, moment })));
            }
        }
        let planned = points.len();
        let reached = disturb(&plane, folder, points).await;
        let writes = training.writes.len() + scale.writes.len() + rollout.writes.len();
        println!(
            "killed at {reached} crash points, before and after {} writes of a training's {}, a scaling's {} and a rollout's {}, in \
             {:.0} s: each run ended as the undisturbed one",
            if all { "all" } else { "some" },
            training.writes.len(),
            scale.writes.len(),
            rollout.writes.len(),
            begin.elapsed().as_secs_f64()
        );
        // Those beyond the last one of an undisturbed run, at most.
        let least = if all {
            2 * writes
        } else {
            planned.saturating_sub(6 * BEYOND)
        };
        assert!(reached >= least, "{reached} points of {writes} writes");
    };
    tokio::select! {
        () = kubelet::keep_well(&plane, NODE) => {}
        () = work => {}
    }
}
