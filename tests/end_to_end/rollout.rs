//! A version that ends the process of its pods, by steps: it reaches one pod of three, and none after that.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{
    apply, condition, delete, describe, get, kubectl, list, localcluster, predict, run, server_of, wait,
};

const NAME: &str = "careful";
const NAMESPACE: &str = "intent";
const VERSION: &str = "intent-v3";
/// For what takes seconds, on a machine on which everything happens at once.
const SOON: Duration = Duration::from_secs(180);

/// Serves `intent-v1`, the version of this object, with three pods; another of the same files is on its way when its pod ends.
pub fn a_version_that_ends_its_pod_reaches_no_other(version: &Value) {
    apply(&json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": "intent", "modelVersion": "intent-v1", "replicas": 3,
            "rollout": {"steps": [{"weightPercent": 30, "durationSeconds": 3600}]},
            "server": {"timeoutMilliseconds": 20000, "resources": {
                "requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}},
            "storage": get("infsvc", NAMESPACE, "intent").expect("the example's service")["spec"]["storage"],
        }
    }));
    let until = |what: &str, ready: &dyn Fn(&Value) -> bool| {
        wait(what, SOON, describe("infsvc", NAMESPACE, NAME), || {
            let service = get("infsvc", NAMESPACE, NAME)?;
            ready(&service).then_some(service)
        })
    };
    until("three pods answer", &|service| service["status"]["pods"] == "3/3");
    let mut spec = version["spec"].clone();
    spec["version"] = json!(3);
    apply(&json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion",
        "metadata": {"name": VERSION, "namespace": NAMESPACE}, "spec": spec}));
    let patch = json!({"spec": {"modelVersion": VERSION}}).to_string();
    kubectl(&["patch", "infsvc", NAME, "-n", NAMESPACE, "--type=merge", "-p", &patch]).expect("patch");
    let service = until("one pod answers with the new version", &|service| {
        service["status"]["canary"] == "intent-v3 30%"
    });
    let traffic = service["status"]["traffic"].as_array().expect("traffic");
    assert_eq!(traffic.len(), 2, "{traffic:?}");
    assert_eq!((&traffic[0]["percent"], &traffic[1]["pods"]), (&json!(70), &json!(1)));

    let before = pods();
    let chosen = chosen();
    let (canary, others): (Vec<&Value>, Vec<&Value>) =
        before.iter().partition(|pod| pod["metadata"]["name"] == *chosen);
    let (canary, over) = (canary[0], AtomicBool::new(false));
    let answered = std::thread::scope(|scope| {
        // The others answer meanwhile, each time and with the version before.
        let clients: Vec<_> = others
            .iter()
            .map(|pod| {
                scope.spawn(|| {
                    let (address, mut answered) = (address(pod), 0);
                    while !over.load(Ordering::Relaxed) {
                        let (code, answer) = predict(&address, &json!({"text": "stop the music"}));
                        assert_eq!((code, &answer["model_version"]), (200, &json!("intent-v1")), "{answer}");
                        answered += 1;
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    answered
                })
            })
            .collect();
        end_while_it_computes(canary);
        let service = until("the version is rejected", &|service| {
            condition(service, "RolloutProgressing").is_some_and(|c| c.1 == "RolledBack")
        });
        let (_, _, message) = condition(&service, "RolloutProgressing").expect("RolloutProgressing");
        assert!(message.contains(&chosen) && message.contains("by signal"), "{message}");
        until("three pods answer again", &|service| {
            let ready = condition(service, "Ready").is_some_and(|c| c.0 == "True");
            ready && service["status"]["pods"] == "3/3" && service["status"]["canary"].is_null()
        });
        over.store(true, Ordering::Relaxed);
        let answered = clients.into_iter().map(|client| client.join().expect("a client"));
        answered.sum::<u32>()
    });
    println!("           {answered} requests to the other pods, all answered");

    for pod in pods() {
        let name = pod["metadata"]["name"].as_str().expect("name");
        let earlier = before
            .iter()
            .find(|earlier| earlier["metadata"]["uid"] == pod["metadata"]["uid"]);
        assert!(earlier.is_some(), "{name} is new");
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        assert_eq!(restarts, &json!(u32::from(name == chosen)), "{name}");
        let (code, answer) = predict(&address(&pod), &json!({"text": "stop the music"}));
        assert_eq!((code, &answer["model_version"]), (200, &json!("intent-v1")), "{name}");
    }
    let rejected = get("mv", NAMESPACE, VERSION).expect("the version");
    let why = &rejected["metadata"]["annotations"]["flywheel.dev/rejected"];
    assert!(why.as_str().is_some_and(|why| why.contains(&chosen)), "{why}");
    delete("infsvc", NAMESPACE, NAME);
    wait(
        "the rejected version can be deleted",
        SOON,
        describe("mv", NAMESPACE, VERSION),
        || kubectl(&["delete", "mv", VERSION, "-n", NAMESPACE, "--wait=false"]).ok(),
    );
}

fn pods() -> Vec<Value> {
    list("pods", NAMESPACE, &format!("flywheel.dev/inference-service={NAME}"))
}

fn address(pod: &Value) -> String {
    format!(
        "http://{}:8080/predict",
        pod["status"]["podIP"].as_str().expect("address")
    )
}

/// The name of the pod that answers with the new version.
fn chosen() -> String {
    let map = get("configmap", NAMESPACE, &format!("{NAME}-serving")).expect("the assignment");
    let text = map["data"]["assignment.json"].as_str().expect("its text");
    let assignment: Value = serde_json::from_str(text).expect("JSON");
    let pods = assignment["canary"]["pods"].as_object().expect("pods of the canary");
    assert_eq!(pods.len(), 1, "{assignment}");
    pods.keys().next().expect("one pod").clone()
}

/// Ends the pod's server at a moment at which it computes with the new version, by an instruction that its processor refuses: a
/// signal from outside would not reach the first process of a container.
fn end_while_it_computes(pod: &Value) {
    let name = pod["metadata"]["name"].as_str().expect("name");
    let process = server_of(name);
    let root = format!("/proc/{process}");
    // Seen from here, the container's own files are below `root`.
    let marks = Path::new(&root).join("root").join("var/lib/flywheel/computing");
    let marked = || {
        let marks = std::fs::read_dir(&marks).into_iter().flatten().flatten();
        marks
            .flat_map(|mark| std::fs::read(mark.path()).unwrap_or_default())
            .any(|byte| byte != 0)
    };
    let signal = |signal: &str| {
        run(Command::new("kill").args([signal, &process.to_string()]), None).expect("kill");
    };
    let _load = load(pod);
    wait("it computes with it", SOON, describe("pod", NAMESPACE, name), || {
        signal("-STOP");
        let there = marked() && refuse_next(&root);
        signal("-CONT");
        there.then_some(())
    });
}

/// Puts such an instruction where each worker that computes goes on. Whether there is one.
fn refuse_next(root: &str) -> bool {
    let refused: &[u8] = if cfg!(target_arch = "x86_64") {
        &[0x0f, 0x0b]
    } else {
        &[0; 4]
    };
    let memory = std::fs::OpenOptions::new()
        .write(true)
        .open(format!("{root}/mem"))
        .expect("its memory");
    let tasks = std::fs::read_dir(format!("{root}/task"))
        .expect("its threads")
        .flatten();
    let mut any = false;
    for task in tasks {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        // Not in a call of the kernel: stack and place in the program.
        if read("comm").starts_with("model-")
            && let Some(at) = read("syscall")
                .strip_prefix("-1 ")
                .and_then(|at| at.split_whitespace().nth(1))
            && let Ok(at) = u64::from_str_radix(at.trim_start_matches("0x"), 16)
        {
            memory.write_all_at(refused, at).expect("its memory is written");
            any = true;
        }
    }
    any
}

/// Requests to the pod that end with the value.
fn load(pod: &Value) -> Load {
    let address = format!("{}:8080", pod["status"]["podIP"].as_str().expect("address"));
    let folder = tempfile::tempdir().expect("a folder");
    let bodies = folder.path().join("bodies.jsonl");
    let body = json!({"texts": vec!["switch on the lamp in the kitchen"; 16]});
    std::fs::write(&bodies, body.to_string()).expect("bodies");
    let program = Command::new(localcluster().with_file_name("flywheel-loadgen"))
        .args(["--address", &address, "--rate", "20", "--seconds", "90"])
        .arg("--bodies")
        .arg(bodies)
        .stdout(Stdio::null())
        .spawn();
    Load(program.expect("flywheel-loadgen"), folder)
}

/// The program, and the folder with what it sends.
struct Load(
    Child,
    #[expect(dead_code, reason = "it goes with the program")] tempfile::TempDir,
);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
