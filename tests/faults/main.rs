//! Faults on purpose, with real pods on a real cluster: a trainer that is killed, one that is stopped, a node that the
//! API server no longer reaches while its pods go on writing, a training on two nodes that loses one of its pods or nodes,
//! services that lose servers, pods and a node, and GPUs that break under trainings and services. Training must go on from its
//! newest checkpoint, and as many pods answer as before, within the promised time; the old writers must commit nothing.
//!
//! Needs the local cluster with two A100 and two T4 nodes, the chart and the example's data (`make test-faults`). `TRIALS` jobs are on
//! the node that is hidden; the processes that are killed (one) and stopped (one for every four trials) run on the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

#[allow(dead_code, reason = "shared with the end-to-end test")]
#[path = "../end_to_end/cluster.rs"]
mod cluster;
mod gpus;
mod service;
mod two_nodes;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use cluster::{
    ManyGpus, apply, condition, delete_namespace, describe, get, kubectl, list, localcluster, need, run, wait,
};

const NAMESPACE: &str = "faults";
const BUCKET: &str = "faults";
/// Node that is hidden from the API server, and the other one.
const HIDDEN: &str = "a100-1";
const OTHER: &str = "a100-2";
/// What starting, downloading and training up to a first checkpoint may take where everything happens at once.
const SOON: Duration = Duration::from_secs(240);
/// Hard caps of the promise, from the fault to training beyond the newest checkpoint: process crash, hang, partition.
const CRASH_CAP: Duration = Duration::from_secs(90);
const HANG_CAP: Duration = Duration::from_secs(200);
/// Within which the operator says that a trainer hangs.
const HANG_FOUND_CAP: Duration = Duration::from_secs(90);
const PARTITION_CAP: Duration = Duration::from_secs(180);

/// A job that trains for longer than any fault lasts, and saves its state every second.
fn training(name: &str, node: &str, must: bool) -> Value {
    let here = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    let affinity = if must {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [here]}}})
    } else {
        json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": here}]}})
    };
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob",
    "metadata": {"name": name, "namespace": NAMESPACE},
    "spec": {
        "task": "TextClassification",
        "model": {"pretrained": {"uri": format!("s3://{BUCKET}/tiny")}},
        "dataset": {"sources": [{"uri": "s3://flywheel/data/train.csv"}]},
        "hyperparameters": {"epochs": 1000, "batchSize": 4, "maxLength": 16},
        "checkpoint": {"intervalSeconds": 1},
        "trainer": {"accelerator": {"class": "a100"}, "pod": {"affinity": affinity}},
        "storage": {"secretRef": {"name": "object-store"}, "endpoint": "http://minio.object-store.svc.cluster.local:9000"},
        "output": {"model": "faults", "uri": format!("s3://{BUCKET}/out"), "reuse": "Never"}
    }})
}

fn step(job: &Value, field: &str) -> Option<u64> {
    job["status"]["progress"][field].as_u64()
}

fn uid(name: &str) -> String {
    let job = get("trainingjob", NAMESPACE, name).expect("the job");
    job["metadata"]["uid"].as_str().expect("uid").to_owned()
}

/// Waits until an attempt runs and has saved its state; that step.
fn saved(name: &str) -> u64 {
    wait(
        &format!("{name} has a checkpoint"),
        SOON,
        describe("trainingjob", NAMESPACE, name),
        || head(&uid(name))?["checkpoints"][0]["step"].as_u64(),
    )
}

/// Waits until one of these attempts has committed a checkpoint of its own that is newer than `saved`, and began at least
/// there; what the time from the fault was.
fn goes_on(name: &str, attempts: RangeInclusive<u64>, saved: u64, fault: Instant, cap: Duration) -> Duration {
    let left = cap.saturating_sub(fault.elapsed());
    let uid = uid(name);
    wait(
        &format!("{name} trains on beyond step {saved}"),
        left,
        describe("trainingjob", NAMESPACE, name),
        || {
            let head = head(&uid)?;
            let newest = &head["checkpoints"][0];
            let by = manifest(&uid, newest["name"].as_str()?)?["attempt"].as_u64()?;
            (attempts.contains(&by) && newest["step"].as_u64()? > saved).then_some(())
        },
    );
    let took = fault.elapsed();
    let job = wait(
        &format!("{name} says where it went on"),
        Duration::from_secs(90),
        describe("trainingjob", NAMESPACE, name),
        || {
            let job = get("trainingjob", NAMESPACE, name)?;
            step(&job, "resumedFromStep")?;
            (job["status"]["attempt"].as_u64()? >= *attempts.start()).then_some(job)
        },
    );
    let attempt = job["status"]["attempt"].as_u64().expect("attempt");
    assert!(attempts.contains(&attempt), "{}", job["status"]);
    let resumed = step(&job, "resumedFromStep").expect("resumedFromStep");
    assert!(
        resumed >= saved,
        "{name}: resumed from {resumed}, though {saved} was saved"
    );
    took
}

// --- the object store, as an outsider sees it -------------------------------------------------------------------------

fn object(key: &str) -> Option<Value> {
    let keys = format!("{}:{}", need("AWS_ACCESS_KEY_ID"), need("AWS_SECRET_ACCESS_KEY"));
    let address = format!("{}/{BUCKET}/{key}", need("FLYWHEEL_S3_ENDPOINT"));
    let text = run(
        Command::new("curl").args([
            "-fsS",
            "-m",
            "10",
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "--user",
            &keys,
            &address,
        ]),
        None,
    )
    .ok()?;
    serde_json::from_str(&text).ok()
}

fn head(uid: &str) -> Option<Value> {
    object(&format!("out/{uid}/HEAD"))
}

fn manifest(uid: &str, checkpoint: &str) -> Option<Value> {
    object(&format!("out/{uid}/checkpoints/{checkpoint}/manifest.json"))
}

fn names(head: &Value) -> BTreeSet<String> {
    let list = head["checkpoints"].as_array().expect("checkpoints");
    list.iter()
        .map(|c| c["name"].as_str().expect("name").to_owned())
        .collect()
}

// --- processes of pods, as the machine sees them ----------------------------------------------------------------------

/// The trainers of an attempt, by their pods' completion index.
fn processes(uid: &str, attempt: u64) -> Vec<(u32, u32)> {
    let told = format!("\"attempt\":{attempt}");
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment);
        let index = environment
            .split('\0')
            .find_map(|pair| pair.strip_prefix("JOB_COMPLETION_INDEX=")?.parse().ok())?;
        (comm.trim() == "flywheel-traine" && environment.contains(uid) && environment.contains(&told))
            .then_some((index, pid))
    })
    .collect()
}

/// The trainer in the pod with this completion index.
fn process(uid: &str, attempt: u64, index: u32) -> u32 {
    let (_, pid) = processes(uid, attempt)
        .into_iter()
        .find(|(of, _)| *of == index)
        .expect("the trainer's process");
    pid
}

fn signal(pid: u32, signal: &str) {
    run(Command::new("kill").args([signal, &pid.to_string()]), None)
        .unwrap_or_else(|e| panic!("kill {signal} {pid}: {e}"));
}

/// The log of attempt 1 as the node keeps it, whether or not the API server reaches the node.
fn log_of(name: &str, node: &str) -> String {
    let cluster = std::env::var("FLYWHEEL_CLUSTER").unwrap_or_else(|_| "default".to_owned());
    let logs = PathBuf::from(need("FLYWHEEL_CACHE"))
        .join("clusters")
        .join(cluster)
        .join("nodes")
        .join(node)
        .join("logs");
    let prefix = format!("{NAMESPACE}_{name}-train-1-");
    let pods = std::fs::read_dir(&logs).unwrap_or_else(|e| panic!("{}: {e}", logs.display()));
    pods.flatten()
        .filter(|pod| pod.file_name().to_string_lossy().starts_with(&prefix))
        .filter_map(|pod| std::fs::read_to_string(pod.path().join("trainer/0.log")).ok())
        .collect()
}

// --- the faults -------------------------------------------------------------------------------------------------------

/// A trainer that dies without a word.
fn killed() -> Duration {
    let name = "killed";
    apply(&training(name, OTHER, true));
    saved(name);
    signal(process(&uid(name), 1, 0), "-KILL");
    let fault = Instant::now();
    let saved = saved(name);
    goes_on(name, 2..=2, saved, fault, CRASH_CAP)
}

/// A pod's log while it is written; the node takes it away with the pod.
struct Follow {
    kubectl: Child,
    text: Arc<Mutex<String>>,
}

impl Follow {
    fn pod(name: &str) -> Self {
        let mut kubectl = Command::new(localcluster())
            .args(["kubectl", "logs", "-f", "-n", NAMESPACE, name])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl logs");
        let (lines, text) = (kubectl.stdout.take().expect("its output"), Arc::new(Mutex::default()));
        let into: Arc<Mutex<String>> = Arc::clone(&text);
        // It ends with the command's output.
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                into.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { kubectl, text }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// A trainer that stops working without dying: when it was found, and when its successor had gone on. Then it wakes up, is
/// refused, and commits nothing.
fn stopped(name: &str) -> (Duration, Duration) {
    apply(&training(name, OTHER, true));
    saved(name);
    let uid = uid(name);
    let pods = list("pods", NAMESPACE, &format!("flywheel.dev/training-job={name}"));
    let log = Follow::pod(pods[0]["metadata"]["name"].as_str().expect("name"));
    wait(
        "its log is read",
        SOON,
        || log.text(),
        || (!log.text().is_empty()).then_some(()),
    );
    let pid = process(&uid, 1, 0);
    signal(pid, "-STOP");
    let fault = Instant::now();
    let saved = saved(name);
    let object = format!("involvedObject.name={name}");
    let events = [
        "get",
        "events",
        "-n",
        NAMESPACE,
        "--field-selector",
        &object,
        "-o",
        "json",
    ];
    wait(
        "the operator says that it hangs",
        HANG_FOUND_CAP,
        describe("trainingjob", NAMESPACE, name),
        || kubectl(&events).ok()?.contains("Hung").then_some(()),
    );
    let found = fault.elapsed();
    let taken = wait(
        "a successor has taken over",
        Duration::from_secs(60),
        describe("trainingjob", NAMESPACE, name),
        || head(&uid).filter(|h| h["attempt"] == 2),
    );
    signal(pid, "-CONT");
    wait(
        &format!("the old writer of {name} wakes up, is refused and ends"),
        Duration::from_secs(60),
        || log.text(),
        || log.text().contains("Fenced").then_some(()),
    );
    let took = goes_on(name, 2..=2, saved, fault, HANG_CAP);
    no_stale_commit(&uid, &taken);
    (found, took)
}

/// Jobs on a node that the API server no longer reaches, and that reaches the object store: two writers each.
fn hidden(trials: usize) -> Vec<Duration> {
    let jobs: Vec<String> = (1..=trials).map(|n| format!("hidden-{n}")).collect();
    for name in &jobs {
        apply(&training(name, HIDDEN, false));
    }
    for name in &jobs {
        saved(name);
        let pods = list("pods", NAMESPACE, &format!("flywheel.dev/training-job={name}"));
        assert_eq!(
            pods[0]["spec"]["nodeName"], HIDDEN,
            "{name} is on the node that will be hidden"
        );
    }
    run(Command::new(localcluster()).args(["cutapi", HIDDEN]), None).expect("cutapi");
    let fault = Instant::now();
    let _heals = Heals;
    let uids: Vec<String> = jobs.iter().map(|name| uid(name)).collect();
    // Each is watched from here on, in turns: what stands when a successor takes over is what the old writers have made.
    let mut taken: Vec<Option<Value>> = vec![None; trials];
    let mut sequence = vec![0; trials];
    wait("every job has a successor", PARTITION_CAP, String::new, || {
        for (n, uid) in uids.iter().enumerate() {
            let Some(head) = head(uid) else { continue };
            let now = head["sequence"].as_u64().expect("sequence");
            assert!(
                now >= sequence[n],
                "{}: HEAD went back from {} to {now}",
                jobs[n],
                sequence[n]
            );
            sequence[n] = now;
            if taken[n].is_none() && head["attempt"] == 2 {
                taken[n] = Some(head);
            }
        }
        taken.iter().all(Option::is_some).then_some(())
    });
    let took = jobs
        .iter()
        .zip(&taken)
        .map(|(name, taken)| {
            let at = taken.as_ref().expect("taken")["checkpoints"][0]["step"]
                .as_u64()
                .expect("step");
            goes_on(name, 2..=2, at, fault, PARTITION_CAP)
        })
        .collect();
    for ((name, uid), taken) in jobs.iter().zip(&uids).zip(&taken) {
        wait(
            &format!("the old writer of {name} is refused and ends"),
            Duration::from_secs(60),
            || log_of(name, HIDDEN),
            || log_of(name, HIDDEN).contains("Fenced").then_some(()),
        );
        no_stale_commit(uid, taken.as_ref().expect("taken"));
    }
    took
}

/// The node is reached again, whatever happened.
struct Heals;

impl Drop for Heals {
    fn drop(&mut self) {
        let _ = run(Command::new(localcluster()).args(["healapi", HIDDEN]), None);
    }
}

/// Nothing in HEAD but what stood there when the successor took over, and what the successor made.
fn no_stale_commit(uid: &str, taken: &Value) {
    let stood = names(taken);
    wait(
        &format!("the manifests of all that HEAD of {uid} names can be read"),
        Duration::from_secs(60),
        || format!("{:?}", head(uid)),
        || {
            let now = head(uid)?;
            assert_eq!(now["attempt"], 2, "{now}");
            let new: Vec<String> = names(&now).difference(&stood).cloned().collect();
            // One may fall out of those that are kept between the two reads; then HEAD, read again, does not name it.
            new.iter()
                .all(|name| {
                    manifest(uid, name).is_some_and(|manifest| {
                        assert_eq!(manifest["attempt"], 2, "a stale commit: {name}");
                        true
                    })
                })
                .then_some(())
        },
    );
}

#[test]
fn training_goes_on_after_every_fault_and_old_writers_commit_nothing() {
    let trials: usize = std::env::var("TRIALS")
        .ok()
        .map_or(2, |n| n.parse().expect("TRIALS is a number"));
    delete_namespace(NAMESPACE);
    cluster::namespace_with_store(NAMESPACE);
    cluster::object_store();
    cluster::bucket(BUCKET, &["make", &format!("{}/example", need("FLYWHEEL_CACHE"))]);
    let _gpus = ManyGpus::simulate();

    let to_stop: Vec<String> = (1..=trials.div_ceil(4)).map(|n| format!("stopped-{n}")).collect();
    let (killed, stopped, hidden, served, gpu) = std::thread::scope(|scope| {
        let killed = scope.spawn(killed);
        let served = scope.spawn(service::run);
        let gpu = scope.spawn(gpus::trainer);
        let stopped: Vec<_> = to_stop.iter().map(|name| scope.spawn(|| stopped(name))).collect();
        let hidden = hidden(trials);
        let stopped: Vec<_> = stopped.into_iter().map(|one| one.join().expect("stopped")).collect();
        let served = served.join().expect("the service");
        let gpu = gpu.join().expect("the GPU");
        (killed.join().expect("killed"), stopped, hidden, served, gpu)
    });
    let pair = two_nodes::run();
    println!("\nfrom the fault to a newer checkpoint of the next attempt, or to as many pods that answer as before");
    let mut rows = vec![("trainer killed", killed, CRASH_CAP)];
    for (found, took) in stopped {
        rows.extend([
            ("trainer stopped: found", found, HANG_FOUND_CAP),
            ("trainer stopped", took, HANG_CAP),
        ]);
    }
    rows.extend(
        hidden
            .into_iter()
            .map(|took| ("node hidden from the API server", took, PARTITION_CAP)),
    );
    rows.push(gpu);
    rows.extend(served);
    rows.extend(pair);
    for (what, took, cap) in &rows {
        println!("  {what:<54} {:6.1} s  cap {} s", took.as_secs_f64(), cap.as_secs());
    }
    if let Ok(file) = std::env::var("FAULT_ROWS") {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(what, took, cap)| json!({"name": what, "seconds": took.as_secs_f64(), "cap": cap.as_secs()}))
            .collect();
        std::fs::write(&file, json!(rows).to_string()).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    for name in ["killed", "stopped-1", two_nodes::NAME] {
        let job = get("trainingjob", NAMESPACE, name).expect("the job");
        let healthy = condition(&job, "CheckpointHealthy").expect("CheckpointHealthy");
        assert_eq!(healthy.0, "True", "{name}: {healthy:?}");
    }
    delete_namespace(NAMESPACE);
}
