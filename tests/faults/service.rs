//! Services of two pods on two nodes: a server is killed, stands still, ends again and again; a pod is deleted, its GPU breaks,
//! and a node is cut off. As many pods answer again within the promised time, and the status tells each stage.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{
    apply, cluster_ip, condition, delete, describe, find_server, get, kubectl, list, localcluster, run as command,
    server_of, wait,
};
use super::gpus::Gpu;
use super::two_nodes::Heals;
use super::{NAMESPACE, SOON, signal, training};

const NAME: &str = "served";
/// Beside the other one, for as long as that has both its nodes.
const WITH_GPUS: &str = "served-by-gpus";
const TEACHER: &str = "teacher";
const VERSION: &str = "served";
/// Hard caps of docs/recovery.md.
const PROCESS_CAP: Duration = Duration::from_secs(90);
const DELETED_CAP: Duration = Duration::from_secs(120);
const GPU_CAP: Duration = Duration::from_secs(120);
const CRASH_LOOP_CAP: Duration = Duration::from_secs(180);
const NODE_CAP: Duration = Duration::from_secs(150);
const NODE_TRAFFIC_CAP: Duration = Duration::from_secs(60);
/// Time between two requests of the client that watches.
const BETWEEN: Duration = Duration::from_millis(200);
/// What a client waits for an answer where none may fail, with all processors busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was done, the time from the fault, and the cap.
type Row = (&'static str, Duration, Duration);

fn pods(service: &str) -> Vec<Value> {
    let mut pods = list("pods", NAMESPACE, &format!("flywheel.dev/inference-service={service}"));
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods
}

fn names(service: &str) -> BTreeSet<String> {
    pods(service).iter().map(name).collect()
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().expect("name").to_owned()
}

fn incidents(service: &Value) -> Vec<Value> {
    service["status"]["recovery"]["incidents"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

/// When something was done on purpose.
struct Fault {
    at: Instant,
    /// What the status tells of what began before is about another one. A node's clock may be a second behind.
    second: i64,
}

impl Fault {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            second: jiff::Timestamp::now().as_second() - 1,
        }
    }
}

/// Waits until the incident of this pod is over; what the time from the fault was. Two pods answer then.
fn recovers(service: &str, what: &str, cause: &str, pod: &str, fault: &Fault, cap: Duration) -> Duration {
    let began = |incident: &Value| incident["began"].as_str()?.parse::<jiff::Timestamp>().ok();
    let of_fault = |i: &Value| i["object"] == pod && began(i).is_some_and(|began| began.as_second() >= fault.second);
    let service = wait(
        &format!("{what}: it is recovered from"),
        cap.saturating_sub(fault.at.elapsed()),
        describe("infsvc", NAMESPACE, service),
        || {
            let service = get("infsvc", NAMESPACE, service)?;
            let over = incidents(&service)
                .iter()
                .any(|i| of_fault(i) && i["recoverSeconds"].is_i64());
            (over && service["status"]["pods"] == "2/2").then_some(service)
        },
    );
    let took = fault.at.elapsed();
    let all = incidents(&service);
    let incident = all.iter().find(|i| of_fault(i)).expect("the incident");
    println!(
        "  {what}: {} detect {} decide {} replace {} recover {}",
        incident["cause"],
        incident["detectSeconds"],
        incident["decideSeconds"],
        incident["replaceSeconds"],
        incident["recoverSeconds"]
    );
    assert_eq!(incident["cause"], cause, "{what}: {incident}");
    let (status, _, message) = condition(&service, "RecoveryWithinDeadline").expect("RecoveryWithinDeadline");
    assert_eq!(status, "True", "{what}: {message}");
    took
}

/// A version, by a short training.
fn teach() {
    let mut teacher = training(TEACHER, super::OTHER, false);
    teacher["spec"]["hyperparameters"]["epochs"] = json!(1);
    teacher["spec"]["output"]["versionName"] = json!(VERSION);
    apply(&teacher);
    wait("a version", SOON, describe("trainingjob", NAMESPACE, TEACHER), || {
        get("modelversion", NAMESPACE, VERSION)
    });
}

/// A service of the version with a pod on each node.
fn serve(service: &str) {
    let like = training(TEACHER, super::OTHER, false);
    let term = json!({"labelSelector": {"matchLabels": {"flywheel.dev/inference-service": service}},
        "topologyKey": "kubernetes.io/hostname"});
    let apart = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "podAffinityTerm": term}]}});
    apply(
        &json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": service, "namespace": NAMESPACE},
        "spec": {
            "model": like["spec"]["output"]["model"], "modelVersion": VERSION, "replicas": 2,
            "server": {"precision": "Float32", "pod": {"affinity": apart}, "resources": {
                "requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}},
            "storage": like["spec"]["storage"]
        }}),
    );
    wait("two pods answer", SOON, describe("infsvc", NAMESPACE, service), || {
        (get("infsvc", NAMESPACE, service)?["status"]["pods"] == "2/2").then_some(())
    });
}

/// A server that gets this signal.
fn signalled(what: &'static str, by: &str) -> Row {
    let pod = name(&pods(NAME)[0]);
    signal(server_of(&pod), by);
    let fault = Fault::now();
    let took = recovers(NAME, what, "PodFailed", &pod, &fault, PROCESS_CAP);
    (what, took, PROCESS_CAP)
}

fn deleted() -> Row {
    let pod = name(&pods(NAME)[0]);
    kubectl(&["delete", "pod", &pod, "-n", NAMESPACE, "--wait=false"]).expect("delete");
    let fault = Fault::now();
    let what = "serving pod deleted: two answer";
    let took = recovers(NAME, what, "PodLost", &pod, &fault, DELETED_CAP);
    assert!(!names(NAME).contains(&pod));
    (what, took, DELETED_CAP)
}

/// A server that ends as often as it starts, until another pod has taken its place.
fn crash_looping() -> Row {
    let pod = name(&pods(NAME)[0]);
    let fault = Fault::now();
    let over = AtomicBool::new(false);
    let what = "server ends again and again: two answer";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Some(server) = find_server(&pod) {
                    // It may just have ended.
                    let _ = command(Command::new("kill").args(["-KILL", &server.to_string()]), None);
                }
                std::thread::sleep(BETWEEN);
            }
        });
        wait(
            "another pod is in its place",
            CRASH_LOOP_CAP,
            describe("infsvc", NAMESPACE, NAME),
            || (!names(NAME).contains(&pod)).then_some(()),
        );
        over.store(true, Ordering::Relaxed);
    });
    (
        what,
        recovers(NAME, what, "CrashLoop", &pod, &fault, CRASH_LOOP_CAP),
        CRASH_LOOP_CAP,
    )
}

/// Whether a request on a connection of its own is answered in time.
fn answers(address: &str, within: Duration) -> bool {
    let body = json!({"text": "stop the music"}).to_string();
    let seconds = within.as_secs().to_string();
    let mut request = Command::new("curl");
    request.args([
        "-fsS",
        "-m",
        &seconds,
        "-H",
        "content-type: application/json",
        "-d",
        &body,
        address,
    ]);
    command(&mut request, None).is_ok()
}

/// Sends requests, one after another, while `act` lasts: what that gives, and when those that failed since the fault ended.
fn asked<T>(service: &str, fault: &Fault, within: Duration, act: impl FnOnce() -> T) -> (T, Vec<Duration>) {
    let address = format!("http://{}/predict", cluster_ip(NAMESPACE, service));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut failed = vec![];
            while !over.load(Ordering::Relaxed) {
                if !answers(&address, within) {
                    failed.push(fault.at.elapsed());
                }
                std::thread::sleep(BETWEEN);
            }
            failed
        });
        // Also when `act` panics, or the client would go on for ever.
        let ends = Ends(&over);
        let given = act();
        drop(ends);
        (given, client.join().expect("the client"))
    })
}

/// It is over, whatever happened.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A node that is off the network: when the last request failed, and when two pods answered again.
fn cut_off() -> [Row; 2] {
    let all = pods(NAME);
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().expect("node").to_owned();
    assert_ne!(node(&all[0]), node(&all[1]), "one pod on each node");
    let (lost, pod) = (node(&all[0]), name(&all[0]));
    command(Command::new(localcluster()).args(["cut", &lost]), None).expect("cut");
    let (fault, _heals) = (Fault::now(), Heals(lost.clone()));
    let (capacity, failed) = asked(NAME, &fault, Duration::from_secs(1), || {
        let what = "node of a serving pod cut off";
        recovers(NAME, what, "NodeLost", &pod, &fault, NODE_CAP)
    });
    let traffic = *failed.last().expect("a request met the lost pod");
    assert!(traffic <= NODE_TRAFFIC_CAP, "requests failed for {traffic:?}");
    assert!(
        pods(NAME).iter().all(|pod| node(pod) != lost),
        "both pods are on the other node"
    );
    [
        (
            "node of a serving pod cut off: last failed request",
            traffic,
            NODE_TRAFFIC_CAP,
        ),
        ("node of a serving pod cut off: two answer", capacity, NODE_CAP),
    ]
}

/// The GPU of a pod breaks: it answers until another one does, so that no request fails.
fn gpu_broken() -> Row {
    serve(WITH_GPUS);
    let pod = name(&pods(WITH_GPUS)[0]);
    let gpu = Gpu::of(&pod);
    let _heals = gpu.breaks();
    let fault = Fault::now();
    let what = "GPU of a serving pod breaks: two answer";
    let (took, failed) = asked(WITH_GPUS, &fault, PATIENCE, || {
        let took = recovers(WITH_GPUS, what, "GpuFault", &pod, &fault, GPU_CAP);
        wait(
            "the pod with the broken GPU is gone",
            GPU_CAP,
            describe("infsvc", NAMESPACE, WITH_GPUS),
            || get("pod", NAMESPACE, &pod).is_none().then_some(()),
        );
        took
    });
    assert!(failed.is_empty(), "{what}: requests failed after {failed:?}");
    for pod in pods(WITH_GPUS) {
        assert_ne!(Gpu::of(&name(&pod)), gpu, "a broken GPU is given to no pod");
    }
    delete("infsvc", NAMESPACE, WITH_GPUS);
    (what, took, GPU_CAP)
}

/// All of them, one after another; the second service beside the first, until a node is cut off.
pub fn run() -> Vec<Row> {
    teach();
    let mut rows = std::thread::scope(|scope| {
        let gpu = scope.spawn(gpu_broken);
        serve(NAME);
        let mut rows = vec![
            signalled("server killed: two answer", "-KILL"),
            signalled("server stopped: two answer", "-STOP"),
        ];
        rows.push(gpu.join().expect("the GPU"));
        rows
    });
    rows.extend(cut_off());
    rows.extend([deleted(), crash_looping()]);
    delete("infsvc", NAMESPACE, NAME);
    rows
}
