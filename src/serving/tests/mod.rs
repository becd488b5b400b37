//! The controller against an API server in memory: it stores what is applied, counts writes, and refuses what it is told to.

mod copies;
mod experiment;
mod learning;
mod recovery;
mod rollout;
mod scaling;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flywheel_api::conditions::find;
use flywheel_contract::names::INSIDE_PORT;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::cache::Cache;
use crate::settings::Settings;

const SERVICE: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/inferenceservices/intent";
const FRONT: &str = "/api/v1/namespaces/team/services/intent";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/team/deployments/intent";
const VERSIONS: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/modelversions/";
const PODS: &str = "/api/v1/namespaces/team/pods/";
const CONFIG_MAPS: &str = "/api/v1/namespaces/team/configmaps/";
const REVISIONS: &str = "/apis/apps/v1/namespaces/team/controllerrevisions/";
const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/team/replicasets/";
const JOBS: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/trainingjobs/";
const NODES: &str = "/api/v1/nodes/";
const BUDGET: &str = "/apis/policy/v1/namespaces/team/poddisruptionbudgets/intent";

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    writes: Vec<String>,
    /// Resource (plural) that is refused with 403.
    refused: Option<&'static str>,
    counter: u64,
}

impl State {
    fn put(&mut self, path: &str, mut object: Value, spec_changed: bool) -> Value {
        self.counter += 1;
        let counter = self.counter;
        let generation = self
            .objects
            .get(path)
            .map_or(0, |o| o["metadata"]["generation"].as_u64().unwrap_or(0));
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.entry("uid").or_insert_with(|| json!(format!("uid-{counter}")));
        metadata.insert("resourceVersion".to_owned(), json!(counter.to_string()));
        metadata.insert("generation".to_owned(), json!(generation + u64::from(spec_changed)));
        metadata
            .entry("creationTimestamp")
            .or_insert_with(|| json!("2026-01-01T00:00:00Z"));
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &str, path: &str, query: &str, kind: &str, body: Option<Value>) -> (u16, Value) {
        let plural = path
            .split('/')
            .rev()
            .nth(usize::from(method != "POST"))
            .unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        if method == "GET" {
            return match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => (404, failure(404, "NotFound")),
            };
        }
        let manager = query
            .split('&')
            .find_map(|p| p.strip_prefix("fieldManager="))
            .unwrap_or_default();
        if path.ends_with("/events") {
            return (201, with_metadata(body.unwrap()));
        }
        let what = match (method, kind) {
            ("PATCH", "application/apply-patch+yaml") => "apply",
            ("PATCH", _) => "merge",
            ("POST", _) => "create",
            _ => "delete",
        };
        let target = match method {
            "POST" => format!(
                "{path}/{}",
                body.as_ref().unwrap()["metadata"]["name"].as_str().unwrap()
            ),
            _ => path.to_owned(),
        };
        let shown = if method == "POST" {
            path.rsplit('/').next().unwrap()
        } else {
            plural
        };
        let short = match name {
            "status" => "status".to_owned(),
            _ => shown.to_owned(),
        };
        self.writes.push(match manager {
            crate::kubeio::SCALE_MANAGER => format!("{what} {short} as scale"),
            _ => format!("{what} {short}"),
        });
        if self.refused.is_some_and(|r| r == shown) {
            return (403, failure(403, "Forbidden"));
        }
        match what {
            "delete" => match self.objects.remove(&target) {
                Some(object) => (200, object),
                None => (404, failure(404, "NotFound")),
            },
            "create" if self.objects.contains_key(&target) => (409, failure(409, "AlreadyExists")),
            "create" => (201, self.put(&target, body.unwrap(), true)),
            _ => {
                let body = body.unwrap();
                if let Some(status) = path.strip_suffix("/status") {
                    let mut object = self.objects[status].clone();
                    object["status"] = body["status"].clone();
                    return (200, self.put(status, object, false));
                }
                let before = self.objects.get(&target).cloned();
                let mut object = before.clone().unwrap_or_else(|| json!({}));
                merge(&mut object, &body);
                if shown == "deployments" && object["spec"]["replicas"].is_null() {
                    object["spec"]["replicas"] = json!(1);
                }
                let changed = before.is_none_or(|b| b["spec"] != object["spec"]);
                (200, self.put(&target, object, changed))
            }
        }
    }
}

fn with_metadata(mut object: Value) -> Value {
    object["metadata"]["resourceVersion"] = json!("1");
    object
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": format!("the test says {reason}")})
}

/// What server-side apply by one manager comes to where nothing is taken away within a list.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Labels of a service's pods.
fn labels() -> Value {
    json!({"app.kubernetes.io/managed-by": "flywheel", "app.kubernetes.io/component": "server",
        "flywheel.dev/inference-service": "intent"})
}

/// What pods say of themselves, by name; what they counted, by name and path.
type Says = Arc<Mutex<BTreeMap<String, Value>>>;

struct World {
    state: Arc<Mutex<State>>,
    says: Says,
    settings: Settings,
    seconds: i64,
}

/// An address of its own for each pod, since the port is given; tests of other processes have others.
fn address() -> std::net::Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    std::net::Ipv4Addr::new(
        127,
        64 + u8::try_from(next / 250).unwrap() + (high % 16) * 8,
        low,
        u8::try_from(next % 250).unwrap() + 1,
    )
}

/// Answers each request at the inside port of this address with what the pod says.
fn answer_at(ip: std::net::Ipv4Addr, name: &str, says: &Says) {
    let listener = std::net::TcpListener::bind((ip, INSIDE_PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (name, says) = (name.to_owned(), Arc::clone(says));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 2048];
            let read = socket.read(&mut buffer).await.unwrap_or(0);
            let counted = buffer[..read].starts_with(b"GET /profile ");
            let key = if counted {
                format!("{name}/profile")
            } else {
                name.clone()
            };
            let body = says.lock().unwrap().get(&key).unwrap_or(&Value::Null).to_string();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
}

/// `/stats` of a pod that follows this generation, answers with `serving`, and has these versions in these states.
fn stats(generation: u64, serving: &str, versions: &[(&str, &str)]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|(name, state)| {
            let failure = json!({"reason": "DigestMismatch", "message": "a file differs"});
            let failure = (*state == "Failed").then_some(failure);
            let ready = *state == "Ready";
            let (precision, agreement) = (
                ready.then_some("BFloat16"),
                ready.then(|| json!({"texts": 200, "same": 199})),
            );
            json!({"name": name, "digest": format!("sha256:{}", "0".repeat(64)), "state": state, "failure": failure,
                "precision": precision, "agreement": agreement})
        })
        .collect();
    json!({"schemaVersion": 1, "ready": true, "generation": generation, "serving": serving, "versions": versions,
        "answered": [0, 0, 0], "inFlight": 0, "uptimeSeconds": 1.0})
}

impl World {
    /// One service of version `intent-v1`, which is there and verified, on an empty cluster with one node of its class.
    fn new(spec: Value) -> Self {
        let world = Self {
            state: Arc::default(),
            says: Says::default(),
            settings: Settings::example(),
            seconds: 1_800_000_000,
        };
        let mut service = json!({
            "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "intent", "namespace": "team", "uid": "owner"},
            "spec": {"model": "intent", "modelVersion": "intent-v1", "replicas": 2, "accelerator": {"class": "a100"}}
        });
        merge(&mut service["spec"], &spec);
        world.put(SERVICE, service);
        world.version("intent-v1", "intent", Some("True"));
        world.put(
            &format!("{NODES}n1"),
            json!({"metadata": {"name": "n1", "labels": {"nvidia.com/gpu.product": "A100-SXM4-40GB"}},
                "status": {"allocatable": {"nvidia.com/gpu": "2"}}}),
        );
        world
    }

    fn put(&self, path: &str, object: Value) {
        self.state.lock().unwrap().put(path, object, true);
    }

    fn version(&self, name: &str, model: &str, verified: Option<&str>) {
        let conditions: Vec<Value> = verified
            .into_iter()
            .map(|status| {
                json!({"type": "Verified", "status": status, "reason": if status == "True" { "Verified" } else { "DigestMismatch" },
                    "message": "a file differs", "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        self.put(
            &format!("{VERSIONS}{name}"),
            json!({
                "apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion",
                "metadata": {"name": name, "namespace": "team"},
                "spec": {"model": model, "version": 1, "artifact": {"uri": format!("s3://models/{name}"), "digest": format!("sha256:{}", "0".repeat(64))}},
                "status": {"conditions": conditions}
            }),
        );
    }

    /// Changes the user's spec.
    fn spec(&self, change: Value) {
        let mut state = self.state.lock().unwrap();
        let mut service = state.objects[SERVICE].clone();
        merge(&mut service["spec"], &change);
        state.put(SERVICE, service, true);
    }

    /// What the Deployment's controller would write.
    fn deployment_status(&self, replicas: i32, updated: i32, available: i32) {
        let mut state = self.state.lock().unwrap();
        let mut object = state.objects[DEPLOYMENT].clone();
        object["status"] = json!({
            "observedGeneration": object["metadata"]["generation"], "replicas": replicas,
            "updatedReplicas": updated, "readyReplicas": available, "availableReplicas": available
        });
        state.put(DEPLOYMENT, object, false);
    }

    /// The ReplicaSet of a template's pods, as the Deployment's controller makes it, with this laid over it.
    fn replica_set(&self, template: &str, over: Value) {
        let uid = self.object(DEPLOYMENT)["metadata"]["uid"].clone();
        let mut set = json!({
            "metadata": {"name": template, "namespace": "team", "uid": template, "labels": labels(),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "intent", "uid": uid, "controller": true}]},
            "spec": {"selector": {}}
        });
        merge(&mut set, &over);
        self.put(&format!("{REPLICA_SETS}{template}"), set);
    }

    /// Metadata of a pod of the template's ReplicaSet, which is made with the first of them.
    fn of_set(&self, name: &str, template: &str) -> Value {
        if self.object(&format!("{REPLICA_SETS}{template}")).is_null() {
            self.replica_set(template, json!({}));
        }
        json!({"name": name, "namespace": "team", "labels": labels(),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": template, "uid": template, "controller": true}]})
    }

    /// A pod of the first template. A ready one answers with `version`, which is all that it has, and has heard of every
    /// assignment.
    fn pod(&self, name: &str, version: &str, ready: bool) {
        self.pod_of("first", name, version, ready);
    }

    fn pod_of(&self, template: &str, name: &str, version: &str, ready: bool) {
        let ip = address();
        if ready {
            self.say(name, stats(u64::MAX, version, &[(version, "Ready")]));
            answer_at(ip, name, &self.says);
        }
        self.put(
            &format!("{PODS}{name}"),
            json!({
                "metadata": self.of_set(name, template),
                "spec": {"nodeName": "n1", "containers": []},
                "status": {"phase": "Running", "podIP": ip, "conditions": [
                    {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": if ready { "True" } else { "False" }}],
                    "containerStatuses": [{"name": "server", "image": "i", "imageID": "", "ready": ready, "started": ready,
                        "restartCount": 0, "state": {"running": {}}}]}
            }),
        );
    }

    fn say(&self, name: &str, stats: Value) {
        self.says.lock().unwrap().insert(name.to_owned(), stats);
    }

    /// What the pods are to hold.
    fn assignment(&self) -> Assignment {
        let map = serde_json::from_value(self.object(&format!("{CONFIG_MAPS}intent-serving"))).unwrap();
        assignment::read(&map).unwrap()
    }

    /// The versions to hold, the one that answers first.
    fn assigned(&self) -> Vec<String> {
        let assignment = self.assignment();
        assert_eq!(assignment.serve, assignment.versions[0].name);
        assignment.versions.into_iter().map(|version| version.name).collect()
    }

    /// The configurations of templates.
    fn configurations(&self) -> Vec<String> {
        let maps = self.names(CONFIG_MAPS);
        maps.into_iter().filter(|name| name != "intent-serving").collect()
    }

    fn waiting_pod(&self, name: &str, since: i64) {
        let since = Timestamp::from_second(since).unwrap().to_string();
        self.put(
            &format!("{PODS}{name}"),
            json!({
                "metadata": self.of_set(name, "second"),
                "spec": {"containers": []},
                "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", "lastTransitionTime": since}]}
            }),
        );
    }

    fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path).unwrap();
    }

    fn object(&self, path: &str) -> Value {
        self.state
            .lock()
            .unwrap()
            .objects
            .get(path)
            .cloned()
            .unwrap_or(Value::Null)
    }

    fn names(&self, under: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .objects
            .keys()
            .filter_map(|p| p.strip_prefix(under))
            .map(str::to_owned)
            .collect()
    }

    fn ready(&self) -> (String, String, String) {
        let service = self.service();
        let condition = find(&service.status.as_ref().unwrap().conditions, "Ready")
            .cloned()
            .unwrap();
        (condition.status, condition.reason, condition.message)
    }

    fn is(&self, kind: &str) -> bool {
        flywheel_api::conditions::is_true(&self.service().status.as_ref().unwrap().conditions, kind)
    }

    fn service(&self) -> InferenceService {
        serde_json::from_value(self.object(SERVICE)).unwrap()
    }

    fn cache<K>(&self, under: &str) -> Cache<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
    {
        let state = self.state.lock().unwrap();
        let found = state.objects.iter().filter(|(path, _)| path.starts_with(under));
        Cache::of(found.map(|(_, object)| serde_json::from_value(object.clone()).unwrap()))
    }

    fn context(&self) -> Context {
        let state = Arc::clone(&self.state);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let state = Arc::clone(&state);
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let body = (!bytes.is_empty()).then(|| serde_json::from_slice(&bytes).unwrap());
                let kind = parts.headers.get("content-type").map_or("", |v| v.to_str().unwrap());
                let (code, answer) = state.lock().unwrap().answer(
                    parts.method.as_str(),
                    parts.uri.path(),
                    parts.uri.query().unwrap_or_default(),
                    kind,
                    body,
                );
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        let now = Timestamp::from_second(self.seconds).unwrap();
        let mut context = Context::test(Client::new(service, "team"), now);
        context.settings = self.settings.clone();
        let caches = &mut context.caches;
        caches.inference_services = self.cache(SERVICE);
        caches.model_versions = self.cache(VERSIONS);
        caches.training_jobs = self.cache(JOBS);
        // As the real cache: only what carries our label.
        let front = self.object(FRONT);
        if front["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "flywheel" {
            caches.services = self.cache(FRONT);
        }
        caches.deployments = self.cache(DEPLOYMENT);
        caches.pods = self.cache(PODS);
        caches.config_maps = self.cache(CONFIG_MAPS);
        caches.controller_revisions = self.cache(REVISIONS);
        caches.replica_sets = self.cache(REPLICA_SETS);
        caches.network_policies = self.cache("/apis/networking.k8s.io/");
        caches.disruption_budgets = self.cache(BUDGET);
        caches.nodes = Some(self.cache(NODES));
        context
    }

    /// One reconcile by an operator that has just started; what it wrote, and when it wants to look again.
    /// The server of a pod ended so while it computed with the second of its versions, and is there again.
    fn came_back(&self, name: &str, versions: &[(&str, &str)], ended: &Value) {
        let path = format!("{PODS}{name}");
        let mut pod = self.object(&path);
        let mut state = json!({"restartCount": 1, "lastState": {"terminated": {"finishedAt": "2027-01-15T08:00:00Z"}}});
        merge(&mut state["lastState"]["terminated"], ended);
        merge(&mut pod["status"]["containerStatuses"][0], &state);
        self.put(&path, pod);
        let mut says = stats(u64::MAX, "intent-v1", versions);
        merge(
            &mut says["versions"][1],
            &json!({"state": "Failed", "failure": {"reason": "ExecutionCrashed", "message": "the server ended"},
                "crash": {"id": "c1", "at": 1_800_000_000, "times": 1, "together": false, "last": true}}),
        );
        self.say(name, says);
    }

    async fn reconcile(&self) -> (Vec<String>, Duration) {
        self.reconcile_by(Arc::new(self.context())).await
    }

    async fn reconcile_by(&self, operator: Arc<Context>) -> (Vec<String>, Duration) {
        self.state.lock().unwrap().writes.clear();
        // Boxed: it holds every object while it waits.
        let work = Box::pin(super::reconcile(Arc::new(self.service()), operator));
        let again = tokio::time::timeout(Duration::from_secs(10), work)
            .await
            .unwrap()
            .unwrap();
        (self.state.lock().unwrap().writes.clone(), again)
    }

    async fn writes(&self) -> Vec<String> {
        self.reconcile().await.0
    }

    /// A service that serves `intent-v1` with two pods.
    async fn serving() -> Self {
        let world = Self::new(json!({}));
        world.reconcile().await;
        world.deployment_status(2, 2, 2);
        world.pod("a", "intent-v1", true);
        world.pod("b", "intent-v1", true);
        world.reconcile().await;
        assert_eq!(world.ready().0, "True", "{:?}", world.ready());
        assert_eq!(world.writes().await, [""; 0]);
        world
    }
}

const NOTHING: [&str; 0] = [];

#[tokio::test]
async fn a_new_service_is_made_in_order_and_then_left_alone() {
    let world = World::new(json!({}));
    assert_eq!(
        world.writes().await,
        [
            "apply services",
            "apply configmaps",
            "apply configmaps",
            "create controllerrevisions",
            "apply deployments",
            "apply deployments as scale",
            "apply networkpolicies",
            "apply poddisruptionbudgets",
            "apply status",
        ]
    );
    assert_eq!(world.object(DEPLOYMENT)["spec"]["replicas"], 2);
    assert_eq!(world.ready().1, "Progressing");
    assert!(world.is("Reconciling"));
    assert_eq!(world.writes().await, NOTHING, "the second reconcile has nothing to do");

    world.deployment_status(2, 2, 1);
    world.pod("a", "intent-v1", true);
    world.pod("b", "intent-v1", false);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.ready().1, "Loading");

    world.deployment_status(2, 2, 2);
    world.pod("b", "intent-v1", true);
    assert_eq!(world.writes().await, ["apply status"]);
    let status = world.service().status.unwrap();
    assert_eq!(status.url.as_deref(), Some("http://intent.team.svc"));
    assert_eq!(status.model_version.as_deref(), Some("intent-v1"));
    assert_eq!((status.replicas, status.pods.as_deref()), (Some(2), Some("2/2")));
    assert_eq!(status.device, Some(flywheel_contract::scalar::Device::Cpu));
    assert_eq!(
        serde_json::to_value(&status.traffic).unwrap(),
        json!([{"modelVersion": "intent-v1", "pods": 2, "precision": "BFloat16", "agreement": {"texts": 200, "same": 199}}])
    );
    assert!(!world.is("Reconciling") && world.is("Ready") && world.is("RoutesReady") && world.is("DeploymentReady"));
    assert_eq!(world.writes().await, NOTHING);
}

#[tokio::test]
async fn a_pod_that_its_node_cannot_prepare_is_told_a_minute_after_it_got_it() {
    let mut world = World::new(json!({"replicas": 1}));
    world.reconcile().await;
    world.deployment_status(1, 1, 0);
    let since = Timestamp::from_second(world.seconds).unwrap().to_string();
    world.put(
        &format!("{PODS}a"),
        json!({
            "metadata": world.of_set("a", "first"),
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
                {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": since}]}
        }),
    );
    let (_, again) = world.reconcile().await;
    assert_eq!(world.ready().1, "Starting");
    assert!(again <= Duration::from_secs(10), "{again:?}");
    world.seconds += 60;
    assert_eq!(world.writes().await, ["apply status"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "PodNotPrepared");
    assert!(message.contains("kubectl describe pod a"), "{message}");
    assert!(world.is("Reconciling") && !world.is("Stalled"));
    world.seconds += 60;
    assert_eq!(world.writes().await, NOTHING, "the same words with every look");
}

#[tokio::test]
async fn a_strangers_service_is_left_alone_and_nothing_else_is_made() {
    let world = World::new(json!({}));
    let theirs =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "intent", "namespace": "team"}, "spec": {}});
    world.put(FRONT, theirs);
    let before = world.object(FRONT);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.object(FRONT), before);
    let (status, reason, message) = world.ready();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NameTaken"));
    assert!(message.contains("Service intent"), "{message}");
    assert!(world.is("Stalled") && !world.is("Reconciling"));
    let url = || world.service().status.unwrap().url;
    assert_eq!(url(), None, "what answers there is not ours");
    assert_eq!(world.writes().await, NOTHING, "no storm");

    world.remove(FRONT);
    assert!(
        world.writes().await.contains(&"apply deployments".to_owned()),
        "goes on by itself"
    );
    assert!(!world.is("Stalled"));
    assert_eq!(url().as_deref(), Some("http://intent.team.svc"), "at once");
}

#[tokio::test]
async fn a_service_that_ran_shows_no_url_while_another_has_its_name() {
    let world = World::serving().await;
    world.remove(FRONT);
    world.put(
        FRONT,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "intent", "namespace": "team",
            "labels": {"app.kubernetes.io/managed-by": "flywheel"}}, "spec": {}}),
    );
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.ready().1, "NameTaken");
    let status = world.service().status.unwrap();
    assert_eq!((status.url, status.replicas), (None, Some(2)), "its pods run on");
}

#[tokio::test]
async fn a_version_that_cannot_be_served_changes_no_pod() {
    let world = World::serving().await;
    let before = world.object(DEPLOYMENT);
    world.spec(json!({"modelVersion": "intent-v2"}));
    assert_eq!(world.writes().await, ["apply status"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "ModelVersionNotFound");
    assert!(
        message.contains("intent-v2") && message.contains("go on to answer with intent-v1"),
        "{message}"
    );
    assert!(!world.is("Stalled") && world.is("RoutesReady"));

    world.version("intent-v2", "spam", None);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.ready().1, "ModelMismatch");
    assert!(world.is("Stalled"));

    world.version("intent-v2", "intent", Some("False"));
    assert_eq!(world.writes().await, ["apply status"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "ModelVersionNotVerified");
    assert!(message.contains("DigestMismatch: a file differs"), "{message}");
    assert_eq!(world.object(DEPLOYMENT), before, "the pods that run go on");
    assert_eq!(world.writes().await, NOTHING);

    // Its size still follows.
    world.spec(json!({"replicas": 3}));
    assert_eq!(world.writes().await, ["apply deployments as scale", "apply status"]);

    world.pod("c", "intent-v1", true);
    world.deployment_status(3, 3, 3);
    world.reconcile().await;

    world.version("intent-v2", "intent", Some("True"));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"], "beside what answers");
    assert_eq!(world.ready().1, "VersionLoading");
    assert_eq!(world.object(DEPLOYMENT)["spec"]["template"], before["spec"]["template"]);
}

#[tokio::test]
async fn all_pods_load_a_version_before_any_answers_with_it() {
    let world = World::serving().await;
    let deployment = world.object(DEPLOYMENT);
    let first = world.assignment().generation;
    let old = stats(first, "intent-v1", &[("intent-v1", "Ready")]);
    world.say("a", old.clone());
    world.say("b", old);
    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"modelVersion": "intent-v2"}));
    let (writes, again) = world.reconcile().await;
    assert_eq!(writes, ["apply configmaps", "merge pods", "merge pods", "apply status"]);
    assert!(again <= FOLLOWING, "{again:?}");
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
    let second = world.assignment().generation;
    assert!(second > first);
    let annotation = |name: &str| world.object(&format!("{PODS}{name}"))["metadata"]["annotations"].clone();
    assert_eq!(annotation("a"), json!({"flywheel.dev/assignment": second.to_string()}));
    assert_eq!(world.writes().await, NOTHING, "they were told");

    let both = stats(second, "intent-v1", &[("intent-v1", "Ready"), ("intent-v2", "Ready")]);
    world.say("a", both.clone());
    world.say(
        "b",
        stats(
            second,
            "intent-v1",
            &[("intent-v1", "Ready"), ("intent-v2", "Downloading")],
        ),
    );
    assert_eq!(world.writes().await, NOTHING, "one does not have it yet");
    assert_eq!(
        (world.ready().0.as_str(), world.ready().1.as_str()),
        ("False", "VersionLoading")
    );
    assert!(world.is("RoutesReady") && world.is("DeploymentReady"));

    world.say("b", both.clone());
    assert_eq!(
        world.writes().await,
        ["apply configmaps", "merge pods", "merge pods", "apply status"]
    );
    assert_eq!(world.assigned(), ["intent-v2"]);
    assert_eq!(world.ready().1, "VersionSwitching");
    let third = world.assignment().generation;

    let new = stats(third, "intent-v2", &[("intent-v2", "Ready")]);
    world.say("a", new.clone());
    assert_eq!(world.writes().await, ["apply status"]);
    let status = world.service().status.unwrap();
    let traffic: Vec<(&str, i32)> = status
        .traffic
        .iter()
        .map(|t| (t.model_version.as_str(), t.pods))
        .collect();
    assert_eq!(traffic, [("intent-v1", 1), ("intent-v2", 1)]);
    assert_eq!(status.model_version, None, "two versions answer");

    world.say("b", new);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.ready().0, "True");
    assert_eq!(
        world.service().status.unwrap().model_version.as_deref(),
        Some("intent-v2")
    );
    assert_eq!(world.writes().await, NOTHING);
    assert_eq!(
        world.object(DEPLOYMENT)["spec"],
        deployment["spec"],
        "no pod was exchanged"
    );
}

#[tokio::test]
async fn a_version_that_a_pod_cannot_load_reaches_no_client() {
    let world = World::serving().await;
    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"modelVersion": "intent-v2"}));
    world.reconcile().await;
    let both = [("intent-v1", "Ready"), ("intent-v2", "Ready")];
    world.say("a", stats(u64::MAX, "intent-v1", &both));
    world.say("b", stats(u64::MAX, "intent-v1", &[both[0], ("intent-v2", "Failed")]));
    assert_eq!(world.writes().await, ["apply status"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "VersionLoadFailed");
    assert!(
        message.contains("pod b cannot load intent-v2 (DigestMismatch: a file differs)"),
        "{message}"
    );
    assert!(message.contains("go on to answer with intent-v1"), "{message}");
    assert!(world.is("Stalled") && world.is("RoutesReady") && world.is("DeploymentReady"));
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
    assert_eq!(world.writes().await, NOTHING, "no storm");

    world.spec(json!({"modelVersion": "intent-v1"}));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    assert_eq!(world.assigned(), ["intent-v1"]);
    assert_eq!(world.ready().0, "True");
}

#[tokio::test]
async fn an_experiment_runs_in_the_pods_as_they_are() {
    let world = World::serving().await;
    let experiment = |v1: i32, v2: i32| json!({"experiment": {"variants": [{"modelVersion": "intent-v1", "percent": v1}, {"modelVersion": "intent-v2", "percent": v2}]}});
    world.spec(experiment(75, 25));
    assert_eq!(world.writes().await, ["apply status"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "ModelVersionNotFound");
    assert!(message.contains("set experiment.variants to one of"), "{message}");
    assert_eq!(world.assigned(), ["intent-v1"], "what runs goes on");

    world.version("intent-v2", "intent", Some("True"));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    assert_eq!(world.ready().1, "VersionLoading");
    let both = stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready"), ("intent-v2", "Ready")]);
    world.say("a", both.clone());
    world.say("b", both);
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    let buckets = |version: &str| world.assignment().split.unwrap().buckets(version);
    assert_eq!((buckets("intent-v1"), buckets("intent-v2")), (7500, 2500));
    world.reconcile().await;
    assert_eq!(world.ready().0, "True");
    let status = world.service().status.unwrap();
    let traffic: Vec<(&str, i32, Option<i32>)> = status
        .traffic
        .iter()
        .map(|t| (t.model_version.as_str(), t.pods, t.percent))
        .collect();
    assert_eq!(traffic, [("intent-v1", 2, Some(75)), ("intent-v2", 2, Some(25))]);
    assert_eq!(world.writes().await, NOTHING);

    // Its version is deleted in the middle (by force): the experiment runs on, and the condition says so.
    world.remove(&format!("{VERSIONS}intent-v2"));
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.ready().1, "ModelVersionNotFound");
    assert_eq!(buckets("intent-v2"), 2500);

    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"experiment": null, "mirror": {"modelVersion": "intent-v2", "percent": 10}}));
    world.reconcile().await;
    world.reconcile().await;
    let assignment = world.assignment();
    assert_eq!(
        (assignment.split, assignment.mirror.map(|m| m.percent)),
        (None, Some(10))
    );
    assert_eq!(world.ready().0, "True");
}

#[tokio::test]
async fn a_pod_that_came_back_without_a_version_is_seen_and_judged() {
    let both = [("intent-v1", "Ready"), ("intent-v2", "Ready")];
    for (ended, reason, cleared) in [
        (json!({"exitCode": 134, "reason": "Error"}), "VersionHeldBack", false),
        (json!({"exitCode": 137, "reason": "OOMKilled"}), "VersionLoading", true),
    ] {
        let world = World::serving().await;
        world.version("intent-v2", "intent", Some("True"));
        world.spec(json!({"experiment": {"variants": [
            {"modelVersion": "intent-v1", "percent": 50}, {"modelVersion": "intent-v2", "percent": 50}]}}));
        world.reconcile().await;
        world.say("a", stats(u64::MAX, "intent-v1", &both));
        world.say("b", stats(u64::MAX, "intent-v1", &both));
        world.reconcile().await;
        let mut operator = Arc::new(world.context());
        world.reconcile_by(Arc::clone(&operator)).await;
        assert_eq!(world.ready().0, "True");
        let before = world.assignment();

        // Between two looks at pods that all follow its server ends and is started again.
        world.came_back("b", &both, &ended);
        let mut context = world.context();
        context.assignments = Arc::into_inner(operator).unwrap().assignments;
        operator = Arc::new(context);
        world.reconcile_by(Arc::clone(&operator)).await;
        let (_, seen, message) = world.ready();
        assert_eq!(seen, reason, "{message}");
        let after = world.assignment();
        let crashes: Vec<&str> = after.cleared.iter().map(|cleared| cleared.crash.as_str()).collect();
        if cleared {
            assert_eq!((crashes, after.generation > before.generation), (vec!["c1"], true));
            assert_eq!((after.versions, after.split), (before.versions, before.split));
        } else {
            assert_eq!(after, before);
            assert!(
                message.starts_with("pod b holds back intent-v2 (ExecutionCrashed: "),
                "{message}"
            );
            assert!(
                message.contains("and answers with intent-v1. Correct experiment.variants"),
                "{message}"
            );
        }
    }
}

#[tokio::test]
async fn the_status_tells_the_format_of_the_pods_that_answer_now() {
    let world = World::serving().await;
    let operator = Arc::new(world.context());
    world.reconcile_by(Arc::clone(&operator)).await;
    let precision = || {
        let traffic = world.service().status.unwrap().traffic;
        traffic[0].precision
    };
    assert_eq!(precision(), Some(flywheel_contract::scalar::Precision::BFloat16));
    // Others take their place, as after a change of `server.precision`.
    for (old, new) in [("a", "c"), ("b", "d")] {
        world.remove(&format!("{PODS}{old}"));
        world.pod(new, "intent-v1", true);
        let mut says = stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready")]);
        says["versions"][0]["precision"] = json!("Int8");
        world.say(new, says);
    }
    let mut context = world.context();
    context.assignments = Arc::into_inner(operator).unwrap().assignments;
    world.reconcile_by(Arc::new(context)).await;
    assert_eq!(precision(), Some(flywheel_contract::scalar::Precision::Int8));
}

#[tokio::test]
async fn a_mirror_that_is_not_there_keeps_nobody_from_another_version() {
    let world = World::serving().await;
    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"modelVersion": "intent-v2", "mirror": {"modelVersion": "nowhere", "percent": 10}}));
    world.reconcile().await;
    let both = stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready"), ("intent-v2", "Ready")]);
    world.say("a", both.clone());
    world.say("b", both);
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v2"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "ModelVersionNotFound");
    assert!(message.contains("mirror.modelVersion"), "{message}");
}

#[tokio::test]
async fn a_pod_that_says_nothing_holds_an_update_and_is_named() {
    let world = World::serving().await;
    world
        .says
        .lock()
        .unwrap()
        .insert("b".to_owned(), json!("not what was expected"));
    assert_eq!(
        world.writes().await,
        ["apply status"],
        "an operator that starts asks once"
    );
    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"modelVersion": "intent-v2"}));
    world.say(
        "a",
        stats(u64::MAX, "intent-v1", &[("intent-v1", "Ready"), ("intent-v2", "Ready")]),
    );
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "VersionLoading");
    assert!(message.contains("pod b does not say how far it is"), "{message}");

    // Once it is known to be no pod that answers, the others go on.
    world.pod("b", "intent-v1", false);
    world.deployment_status(2, 2, 1);
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v2"]);
}

#[tokio::test]
async fn while_nobody_answers_another_version_is_taken_at_once() {
    let world = World::new(json!({}));
    world.reconcile().await;
    world.deployment_status(2, 2, 0);
    world.pod("a", "intent-v1", false);
    world.reconcile().await;
    world.version("intent-v2", "intent", Some("True"));
    world.spec(json!({"modelVersion": "intent-v2"}));
    let writes = world.writes().await;
    assert_eq!(
        writes,
        ["apply configmaps", "merge pods", "apply status"],
        "the pod that loads the other one hears of it"
    );
    assert_eq!(world.assigned(), ["intent-v2"]);
}

#[tokio::test]
async fn a_first_version_that_fails_its_verification_keeps_no_pod_and_no_gpu() {
    let world = World::new(json!({}));
    world.version("intent-v1", "intent", None);
    world.reconcile().await;
    world.deployment_status(2, 2, 0);
    world.pod("a", "intent-v1", false);
    world.pod("b", "intent-v1", false);
    world.version("intent-v1", "intent", Some("False"));
    assert_eq!(world.writes().await, ["apply deployments as scale", "apply status"]);
    assert_eq!(world.object(DEPLOYMENT)["spec"]["replicas"], 0);
    world.remove(&format!("{PODS}a"));
    world.remove(&format!("{PODS}b"));
    world.deployment_status(0, 0, 0);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(world.ready().1, "ModelVersionNotVerified");
    assert!(world.is("Stalled"));
    let conditions = world.service().status.unwrap().conditions;
    let deployment = find(&conditions, "DeploymentReady").unwrap();
    assert_eq!(deployment.reason, "ModelVersionNotVerified");
    assert!(deployment.message.starts_with("no pods: "), "{}", deployment.message);
    assert_eq!(world.writes().await, NOTHING);

    // Made anew from a sound artifact, it gets its pods.
    world.version("intent-v1", "intent", Some("True"));
    assert_eq!(world.writes().await, ["apply deployments as scale", "apply status"]);
    assert_eq!(world.object(DEPLOYMENT)["spec"]["replicas"], 2);
}

#[tokio::test]
async fn a_version_that_fails_its_verification_while_it_is_loaded_is_let_go() {
    let world = World::serving().await;
    world.version("intent-v2", "intent", None);
    world.spec(json!({"modelVersion": "intent-v2"}));
    world.reconcile().await;
    assert_eq!(world.assigned(), ["intent-v1", "intent-v2"]);

    world.version("intent-v2", "intent", Some("False"));
    assert_eq!(world.writes().await, ["apply configmaps", "apply status"]);
    assert_eq!(world.assigned(), ["intent-v1"]);
    let (_, reason, message) = world.ready();
    assert_eq!(reason, "ModelVersionNotVerified");
    assert!(message.contains("2 pod(s) go on to answer with intent-v1"), "{message}");
    assert!(world.is("Stalled") && world.is("DeploymentReady") && world.is("RoutesReady"));
    assert_eq!(world.writes().await, NOTHING);
}

#[tokio::test]
async fn an_assignment_that_was_deleted_or_changed_comes_back() {
    let world = World::serving().await;
    let path = format!("{CONFIG_MAPS}intent-serving");
    let mut changed = world.object(&path);
    changed["data"]["assignment.json"] = json!("{}");
    world.put(&path, changed);
    assert_eq!(world.writes().await, ["apply configmaps"]);
    assert_eq!(world.assigned(), ["intent-v1"]);
    world.remove(&path);
    assert_eq!(world.writes().await, ["apply configmaps"]);
    assert_eq!(world.assigned(), ["intent-v1"]);
}

#[tokio::test]
async fn a_deployment_that_was_deleted_comes_back_though_its_version_is_gone() {
    let world = World::serving().await;
    let template = world.object(DEPLOYMENT)["spec"]["template"].clone();
    world.remove(&format!("{VERSIONS}intent-v1"));
    world.remove(DEPLOYMENT);
    let writes = world.writes().await;
    assert_eq!(
        writes,
        ["apply deployments", "apply deployments as scale", "apply status"]
    );
    assert_eq!(world.object(DEPLOYMENT)["spec"]["template"], template);
    assert_eq!(world.ready().1, "ModelVersionNotFound");
}

#[tokio::test]
async fn old_configurations_go_after_the_exchange_only() {
    let world = World::serving().await;
    let first = world.configurations();
    let digest =
        world.object(DEPLOYMENT)["spec"]["template"]["metadata"]["annotations"]["flywheel.dev/config-digest"].clone();
    let old_set = |replicas: i32| {
        world.replica_set(
            "first",
            json!({"spec": {"replicas": replicas, "template": {"metadata": {"annotations": {"flywheel.dev/config-digest": digest}}}},
                "status": {"replicas": replicas}}),
        );
    };
    old_set(2);
    world.spec(json!({"server": {"timeoutMilliseconds": 2000}}));
    world.reconcile().await;
    assert_eq!(world.configurations().len(), 2);

    world.deployment_status(3, 1, 2);
    world.reconcile().await;
    assert_eq!(world.configurations().len(), 2, "old pods may still restart");
    world.pod_of("second", "c", "intent-v1", true);
    world.reconcile().await;
    let served = || world.service().status.unwrap().model_version;
    assert_eq!(
        served().as_deref(),
        Some("intent-v1"),
        "pods of both templates answer with it"
    );

    world.deployment_status(2, 2, 2);
    world.remove(&format!("{PODS}a"));
    world.remove(&format!("{PODS}b"));
    world.pod_of("second", "d", "intent-v1", true);
    assert_eq!(world.writes().await, ["apply status"], "the ReplicaSet still has pods");
    old_set(0);
    assert_eq!(world.writes().await, ["delete configmaps"]);
    assert!(!world.configurations().contains(&first[0]));
    assert_eq!(world.names(REVISIONS).len(), 2, "the way back is kept");
    assert_eq!(world.writes().await, NOTHING);
}

/// Whoever may make pods can give them our labels; only what the service's own Deployment made is its.
#[tokio::test]
async fn strangers_with_our_labels_do_not_count() {
    let world = World::serving().await;
    let stranger = |path: String, name: &str, owner: Value| {
        world.put(
            &path,
            json!({
                "metadata": {"name": name, "namespace": "team", "uid": name, "labels": labels(), "ownerReferences": owner},
                "spec": {"nodeName": "n1", "containers": [], "selector": {}},
                "status": {"phase": "Running", "replicas": 1, "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "server", "image": "i", "imageID": "", "ready": true, "started": true,
                        "restartCount": 0, "state": {"running": {}}}]}
            }),
        );
    };
    let owner = |kind: &str, uid: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": uid, "uid": uid, "controller": true}]);
    let deployment = world.object(DEPLOYMENT)["metadata"]["uid"].clone();
    stranger(format!("{PODS}bare"), "bare", json!([]));
    stranger(format!("{REPLICA_SETS}theirs"), "theirs", owner("Deployment", "other"));
    stranger(format!("{PODS}of-theirs"), "of-theirs", owner("ReplicaSet", "theirs"));
    // An owner that does not control is none either.
    let mut beside = owner("Deployment", deployment.as_str().unwrap());
    beside[0]["controller"] = json!(false);
    stranger(format!("{REPLICA_SETS}beside"), "beside", beside);
    stranger(format!("{PODS}of-beside"), "of-beside", owner("ReplicaSet", "beside"));
    assert_eq!(world.writes().await, NOTHING);
    let served = || world.service().status.unwrap().model_version;
    assert_eq!(served().as_deref(), Some("intent-v1"), "no second version answers");

    // One of the Deployment's own does.
    world.pod_of("second", "c", "intent-v0", true);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(served(), None);
}

#[tokio::test]
async fn a_strangers_replica_set_keeps_no_configuration() {
    let world = World::serving().await;
    let digest =
        world.object(DEPLOYMENT)["spec"]["template"]["metadata"]["annotations"]["flywheel.dev/config-digest"].clone();
    world.put(
        &format!("{REPLICA_SETS}theirs"),
        json!({"metadata": {"name": "theirs", "namespace": "team", "uid": "theirs", "labels": labels()},
            "spec": {"replicas": 1, "selector": {}, "template": {"metadata": {"annotations": {"flywheel.dev/config-digest": digest}}}}}),
    );
    world.spec(json!({"server": {"timeoutMilliseconds": 2000}}));
    world.reconcile().await;
    world.deployment_status(2, 2, 2);
    assert!(world.writes().await.contains(&"delete configmaps".to_owned()));
    assert_eq!(world.configurations().len(), 1);
}

#[tokio::test]
async fn a_way_back_finds_its_template_again() {
    let mut world = World::serving().await;
    let first = world.object(DEPLOYMENT)["spec"]["template"].clone();
    world.spec(json!({"server": {"timeoutMilliseconds": 2000}}));
    world.reconcile().await;
    assert_ne!(world.object(DEPLOYMENT)["spec"]["template"], first);
    // What the administrator changed meanwhile does not change what ran before.
    world.settings.accelerator_classes.get_mut("a100").unwrap().server_image =
        "localhost/flywheel-server:next".to_owned();
    world.spec(json!({"server": {"timeoutMilliseconds": 1000}}));
    assert_eq!(
        world.writes().await,
        ["merge controllerrevisions", "apply deployments", "apply status"]
    );
    assert_eq!(world.object(DEPLOYMENT)["spec"]["template"], first);
    assert_eq!(world.writes().await, NOTHING);
}

#[tokio::test]
async fn a_new_operator_touches_no_template() {
    let mut world = World::serving().await;
    let before = world.object(DEPLOYMENT);
    // What a builder of another version would make different: image, labels of the class, taints.
    let class = world.settings.accelerator_classes.get_mut("a100").unwrap();
    class.server_image = "localhost/flywheel-server:next".to_owned();
    class.label_terms.clear();
    class.tolerations.clear();
    world.settings.image_pull_secrets.push("new-registry".to_owned());
    assert_eq!(world.writes().await, NOTHING);
    // Nor does a class that is gone stop what runs.
    world.settings.accelerator_classes.remove("a100");
    assert_eq!(world.writes().await, NOTHING);
    assert_eq!(world.object(DEPLOYMENT), before);

    // The user's own change takes all of it.
    world.settings = Settings::example();
    world.settings.accelerator_classes.get_mut("a100").unwrap().server_image =
        "localhost/flywheel-server:next".to_owned();
    world.spec(json!({"server": {"timeoutMilliseconds": 2000}}));
    world.reconcile().await;
    assert_eq!(
        world.object(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]["image"],
        "localhost/flywheel-server:next"
    );
}

#[tokio::test]
async fn a_size_is_changed_apart_from_the_template() {
    let world = World::serving().await;
    world.spec(json!({"replicas": 5}));
    assert_eq!(world.writes().await, ["apply deployments as scale", "apply status"]);
    assert_eq!(world.object(DEPLOYMENT)["spec"]["replicas"], 5);
    world.spec(json!({"replicas": 1}));
    assert_eq!(
        world.writes().await,
        [
            "apply deployments as scale",
            "delete poddisruptionbudgets",
            "apply status"
        ]
    );
    world.spec(json!({"replicas": 0}));
    world.reconcile().await;
    world.deployment_status(0, 0, 0);
    world.remove(&format!("{PODS}a"));
    world.remove(&format!("{PODS}b"));
    world.reconcile().await;
    assert_eq!(world.ready().1, "ScaledToZero");
    assert!(world.is("Ready"));
}

#[tokio::test]
async fn a_service_without_pods_makes_no_deployment() {
    let world = World::new(json!({"replicas": 0}));
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(
        (world.ready().0.as_str(), world.ready().1.as_str()),
        ("True", "ScaledToZero")
    );
    world.spec(json!({"replicas": 1}));
    assert!(world.writes().await.contains(&"apply deployments".to_owned()));
}

#[tokio::test]
async fn an_old_pod_makes_room_when_no_gpu_is_spare() {
    let mut world = World::serving().await;
    world.spec(json!({"server": {"timeoutMilliseconds": 2000}}));
    world.reconcile().await;
    world.deployment_status(3, 1, 2);
    world.waiting_pod("c", world.seconds - 10);
    let (writes, again) = world.reconcile().await;
    assert_eq!(writes, ["apply status"]);
    assert_eq!(world.ready().1, "InsufficientGPU");
    assert!(again <= Duration::from_secs(5), "new nodes trigger nothing: {again:?}");

    world.seconds += 25;
    assert_eq!(world.writes().await, ["apply deployments"]);
    let strategy = |world: &World| world.object(DEPLOYMENT)["spec"]["strategy"]["rollingUpdate"].clone();
    assert_eq!(strategy(&world), json!({"maxSurge": 0, "maxUnavailable": 1}));

    world.deployment_status(2, 1, 1);
    world.remove(&format!("{PODS}a"));
    world.pod_of("second", "c", "intent-v1", true);
    assert_eq!(world.writes().await, ["apply status"]);
    assert_eq!(
        strategy(&world),
        json!({"maxSurge": 0, "maxUnavailable": 1}),
        "until the exchange is complete"
    );

    world.deployment_status(2, 2, 2);
    world.remove(&format!("{PODS}b"));
    world.pod_of("second", "d", "intent-v1", true);
    world.reconcile().await;
    assert_eq!(strategy(&world), json!({"maxSurge": 1, "maxUnavailable": 0}));
}

#[tokio::test]
async fn what_the_user_has_to_mend_is_said_and_costs_nothing() {
    let cases = [
        (
            json!({"accelerator": {"class": "h100"}}),
            None,
            "UnknownAcceleratorClass",
            "it has a100",
        ),
        (
            json!({"server": {"pod": {"affinity": {"nodeAfinity": {}}}}}),
            None,
            "InvalidSpec",
            "spec.server.pod.affinity.nodeAfinity",
        ),
        (
            json!({}),
            Some("services"),
            "ChildRefused",
            "the API server refuses the Service intent",
        ),
    ];
    for (spec, refused, reason, words) in cases {
        let world = World::new(spec);
        world.state.lock().unwrap().refused = refused;
        let writes = world.writes().await;
        assert!(
            writes.len() <= 2 && writes.contains(&"apply status".to_owned()),
            "{writes:?}"
        );
        let (_, got, message) = world.ready();
        assert_eq!(got, reason);
        assert!(message.contains(words), "{words} is not in: {message}");
        assert!(world.is("Stalled"));
        assert_eq!(world.object(DEPLOYMENT), Value::Null);
        assert!(
            !world.writes().await.contains(&"apply status".to_owned()),
            "no second status"
        );
    }
}
