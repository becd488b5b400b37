//! A training by two pods on two nodes: it takes the steps of one process, and survives the loss of a pod and of a node.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{apply, describe, get, list, localcluster, run as command, wait};
use super::{
    CRASH_CAP, HIDDEN, NAMESPACE, OTHER, PARTITION_CAP, goes_on, log_of, process, processes, saved, signal, training,
    uid,
};

pub const NAME: &str = "pair";
const ALONE: &str = "alone";
/// All processes end within this after one is gone.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Steps whose losses are compared, and the largest relative difference.
const STEPS: usize = 20;
const CLOSE: f64 = 1e-5;

/// A job whose steps stand in its log and depend on nothing but the batch.
fn told(mut job: Value) -> Value {
    let spec = &mut job["spec"];
    spec["hyperparameters"]["dropout"] = json!("0");
    spec["hyperparameters"]["precision"] = json!("Float32");
    spec["trainer"]["pod"]["env"] = json!([{"name": "RUST_LOG", "value": "info,flywheel_trainer=debug"}]);
    job
}

fn two_nodes() -> Value {
    let mut job = told(training(NAME, HIDDEN, false));
    // Of this attempt: the last one's pods may still be ending.
    let term = json!({"labelSelector": {"matchLabels": {"flywheel.dev/training-job": NAME}},
        "matchLabelKeys": ["flywheel.dev/attempt"], "topologyKey": "kubernetes.io/hostname"});
    let apart = json!({"weight": 100, "podAffinityTerm": term});
    job["spec"]["trainer"]["numNodes"] = json!(2);
    job["spec"]["trainer"]["pod"]["affinity"] =
        json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart]}});
    job
}

/// Losses of the first steps, as the pod on this node has logged them.
fn losses(name: &str, node: &str) -> Vec<f64> {
    let log = log_of(name, node);
    let steps = log.lines().filter_map(|line| {
        let event: Value = serde_json::from_str(line.get(line.find('{')?..)?).ok()?;
        (event["message"] == "step").then(|| event["loss"].as_f64())?
    });
    steps.take(STEPS).collect()
}

/// The nodes of the pods of an attempt, by completion index.
fn nodes_of(attempt: u64) -> Vec<String> {
    let selector = format!("flywheel.dev/training-job={NAME},flywheel.dev/attempt={attempt}");
    let mut pods = list("pods", NAMESPACE, &selector);
    pods.sort_by_key(|pod| {
        let index = &pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"];
        index.as_str().unwrap_or_default().to_owned()
    });
    pods.iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned))
        .collect()
}

fn ready(node: &str) {
    wait(
        &format!("{node} is Ready"),
        Duration::from_secs(90),
        describe("node", "default", node),
        || {
            let node = get("node", "default", node)?;
            let conditions = node["status"]["conditions"].as_array()?;
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let taints = node["spec"]["taints"].as_array();
            let unreached = |t: &Value| {
                t["key"]
                    .as_str()
                    .is_some_and(|key| key.starts_with("node.kubernetes.io/"))
            };
            (ready && !taints.into_iter().flatten().any(unreached)).then_some(())
        },
    );
}

fn all_end(attempt: u64, what: &str) {
    wait(
        &format!("{what}: all processes end"),
        END_WITHIN,
        describe("trainingjob", NAMESPACE, NAME),
        || processes(&uid(NAME), attempt).is_empty().then_some(()),
    );
}

/// The node is on the network again, whatever happened.
pub struct Heals(pub String);

impl Drop for Heals {
    fn drop(&mut self) {
        let _ = command(std::process::Command::new(localcluster()).args(["heal", &self.0]), None);
    }
}

/// What was done, from the fault to a newer checkpoint of a later attempt, and the cap.
pub fn run() -> Vec<(&'static str, Duration, Duration)> {
    for node in [HIDDEN, OTHER] {
        ready(node);
    }
    apply(&told(training(ALONE, OTHER, true)));
    apply(&two_nodes());
    saved(NAME);
    let nodes = nodes_of(1);
    assert!(
        nodes.len() == 2 && nodes[0] != nodes[1],
        "one pod on each node: {nodes:?}"
    );
    let same = |of: &str, node: &str| {
        wait(
            &format!("{of} has logged its first steps"),
            Duration::from_secs(60),
            describe("trainingjob", NAMESPACE, of),
            || Some(losses(of, node)).filter(|losses| losses.len() == STEPS),
        )
    };
    let (one, two) = (same(ALONE, OTHER), same(NAME, &nodes[0]));
    let worst = one
        .iter()
        .zip(&two)
        .map(|(one, two)| (one - two).abs() / one.abs())
        .fold(0.0, f64::max);
    println!("  losses of {STEPS} steps, two pods beside one: largest relative difference {worst:.1e}");
    assert!(worst <= CLOSE, "{one:?} {two:?}");
    super::cluster::delete("trainingjob", NAMESPACE, ALONE);

    let (before, fault) = (saved(NAME), Instant::now());
    signal(process(&uid(NAME), 1, 1), "-KILL");
    all_end(1, "a pod of two is killed");
    let killed = goes_on(NAME, 2..=2, before, fault, CRASH_CAP);

    let nodes = nodes_of(2);
    assert!(
        nodes.len() == 2 && nodes[0] != nodes[1],
        "one pod on each node: {nodes:?}"
    );
    let before = saved(NAME);
    command(
        std::process::Command::new(localcluster()).args(["cut", &nodes[1]]),
        None,
    )
    .expect("cut");
    let (fault, _heals) = (Instant::now(), Heals(nodes[1].clone()));
    all_end(2, "a node of two is cut off");
    // A pod of the next attempt may be given to the node before the control plane has missed it.
    let cut = goes_on(NAME, 3..=4, before, fault, PARTITION_CAP);
    vec![
        ("one of two pods killed", killed, CRASH_CAP),
        ("node of one of two pods cut off", cut, PARTITION_CAP),
    ]
}
