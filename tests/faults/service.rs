//! A service of two pods on two nodes: its server is killed, stands still, ends again and again; a pod is deleted, and a node is
//! cut off. As many pods answer again within the promised time, and the status tells each stage.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{
    apply, cluster_ip, condition, delete, describe, find_server, get, kubectl, list, localcluster, run as command,
    server_of, wait,
};
use super::two_nodes::Heals;
use super::{NAMESPACE, SOON, signal, training};

const NAME: &str = "served";
const TEACHER: &str = "teacher";
/// Hard caps of docs/recovery.md.
const PROCESS_CAP: Duration = Duration::from_secs(90);
const DELETED_CAP: Duration = Duration::from_secs(120);
const CRASH_LOOP_CAP: Duration = Duration::from_secs(180);
const NODE_CAP: Duration = Duration::from_secs(150);
const NODE_TRAFFIC_CAP: Duration = Duration::from_secs(60);
/// Time between two requests of the client that watches.
const BETWEEN: Duration = Duration::from_millis(200);

/// What was done, the time from the fault, and the cap.
type Row = (&'static str, Duration, Duration);

fn pods() -> Vec<Value> {
    let mut pods = list("pods", NAMESPACE, &format!("flywheel.dev/inference-service={NAME}"));
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods
}

fn names() -> BTreeSet<String> {
    pods().iter().map(name).collect()
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
fn recovers(what: &str, cause: &str, pod: &str, fault: &Fault, cap: Duration) -> Duration {
    let began = |incident: &Value| incident["began"].as_str()?.parse::<jiff::Timestamp>().ok();
    let of_fault = |i: &Value| i["object"] == pod && began(i).is_some_and(|began| began.as_second() >= fault.second);
    let service = wait(
        &format!("{what}: it is recovered from"),
        cap.saturating_sub(fault.at.elapsed()),
        describe("infsvc", NAMESPACE, NAME),
        || {
            let service = get("infsvc", NAMESPACE, NAME)?;
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

/// A version, by a short training, and a service of it with a pod on each node.
fn serve() {
    let mut teacher = training(TEACHER, super::OTHER, false);
    teacher["spec"]["hyperparameters"]["epochs"] = json!(1);
    teacher["spec"]["output"]["versionName"] = json!(NAME);
    apply(&teacher);
    wait("a version", SOON, describe("trainingjob", NAMESPACE, TEACHER), || {
        get("modelversion", NAMESPACE, NAME)
    });
    let term = json!({"labelSelector": {"matchLabels": {"flywheel.dev/inference-service": NAME}},
        "topologyKey": "kubernetes.io/hostname"});
    let apart = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "podAffinityTerm": term}]}});
    apply(
        &json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": teacher["spec"]["output"]["model"], "modelVersion": NAME, "replicas": 2,
            "server": {"precision": "Float32", "pod": {"affinity": apart}, "resources": {
                "requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}},
            "storage": teacher["spec"]["storage"]
        }}),
    );
    wait("two pods answer", SOON, describe("infsvc", NAMESPACE, NAME), || {
        (get("infsvc", NAMESPACE, NAME)?["status"]["pods"] == "2/2").then_some(())
    });
}

/// A server that gets this signal.
fn signalled(what: &'static str, by: &str) -> Row {
    let pod = name(&pods()[0]);
    signal(server_of(&pod), by);
    let fault = Fault::now();
    let took = recovers(what, "PodFailed", &pod, &fault, PROCESS_CAP);
    (what, took, PROCESS_CAP)
}

fn deleted() -> Row {
    let pod = name(&pods()[0]);
    kubectl(&["delete", "pod", &pod, "-n", NAMESPACE, "--wait=false"]).expect("delete");
    let fault = Fault::now();
    let what = "serving pod deleted: two answer";
    let took = recovers(what, "PodLost", &pod, &fault, DELETED_CAP);
    assert!(!names().contains(&pod));
    (what, took, DELETED_CAP)
}

/// A server that ends as often as it starts, until another pod has taken its place.
fn crash_looping() -> Row {
    let pod = name(&pods()[0]);
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
            || (!names().contains(&pod)).then_some(()),
        );
        over.store(true, Ordering::Relaxed);
    });
    (
        what,
        recovers(what, "CrashLoop", &pod, &fault, CRASH_LOOP_CAP),
        CRASH_LOOP_CAP,
    )
}

/// Whether a request on a connection of its own is answered within a second.
fn answers(address: &str) -> bool {
    let body = json!({"text": "stop the music"}).to_string();
    let mut request = Command::new("curl");
    request.args([
        "-fsS",
        "-m",
        "1",
        "-H",
        "content-type: application/json",
        "-d",
        &body,
        address,
    ]);
    command(&mut request, None).is_ok()
}

/// A node that is off the network: when the last request failed, and when two pods answered again.
fn cut_off() -> [Row; 2] {
    let all = pods();
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().expect("node").to_owned();
    assert_ne!(node(&all[0]), node(&all[1]), "one pod on each node");
    let (lost, pod) = (node(&all[0]), name(&all[0]));
    let address = format!("http://{}/predict", cluster_ip(NAMESPACE, NAME));
    command(Command::new(localcluster()).args(["cut", &lost]), None).expect("cut");
    let (fault, _heals) = (Fault::now(), Heals(lost.clone()));
    let over = AtomicBool::new(false);
    let (traffic, capacity) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut failed = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                if !answers(&address) {
                    failed = fault.at.elapsed();
                }
                std::thread::sleep(BETWEEN);
            }
            failed
        });
        let took = recovers("node of a serving pod cut off", "NodeLost", &pod, &fault, NODE_CAP);
        over.store(true, Ordering::Relaxed);
        (client.join().expect("the client"), took)
    });
    assert!(traffic > Duration::ZERO, "no request met the lost pod");
    assert!(traffic <= NODE_TRAFFIC_CAP, "requests failed for {traffic:?}");
    assert!(
        pods().iter().all(|pod| node(pod) != lost),
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

/// All of them, one after another.
pub fn run() -> Vec<Row> {
    serve();
    let mut rows = vec![
        signalled("server killed: two answer", "-KILL"),
        signalled("server stopped: two answer", "-STOP"),
    ];
    rows.extend(cut_off());
    rows.extend([deleted(), crash_looping()]);
    delete("infsvc", NAMESPACE, NAME);
    rows
}
