//! A service whose size follows its load, up to three pods and back. Its pods may use a fifth of a processor each, so that
//! this shows the control and not how fast the machine is.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{apply, condition, delete, describe, get, localcluster, reachable_ip, run, wait};

const NAME: &str = "busy";
const NAMESPACE: &str = "intent";
/// Requests a second that a step of the load adds to the one before. It adds none while a pod is on its way: how long that
/// takes is the machine's matter.
const STEP: u32 = 10;
/// How long a step takes. Each opens connections of its own, as clients that come later do.
const STEP_SECONDS: u32 = 8;
/// Steps that are more than any machine needs to load three such pods.
const STEPS: u32 = 60;

/// Serves this version of the examples, and offers it more and more, and then little.
pub fn follows_its_load(version: &str) {
    apply(&json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": "intent", "modelVersion": version,
            "objectives": {"latencyP99Milliseconds": 1000},
            "scaling": {"maxReplicas": 3, "stableWindowSeconds": 20, "scaleDownDelaySeconds": 20},
            "server": {"precision": "Float32", "timeoutMilliseconds": 5000, "resources": {
                "requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "200m", "memory": "1Gi"}}},
            "storage": get("infsvc", NAMESPACE, "intent").expect("the example's service")["spec"]["storage"],
        }
    }));
    wait(
        "one throttled pod answers",
        Duration::from_secs(180),
        describe("infsvc", NAMESPACE, NAME),
        || (service()["status"]["pods"] == "1/1").then_some(()),
    );
    let address = reachable_ip(NAMESPACE, NAME);
    let folder = tempfile::tempdir().expect("a folder");
    let bodies = folder.path().join("bodies.jsonl");
    let texts = [
        "switch on the lamp in the kitchen",
        "how warm is it outside",
        "stop the music",
        "open the garage",
    ];
    let lines = texts.map(|text| json!({ "text": text }).to_string() + "\n");
    std::fs::write(&bodies, lines.concat()).expect("bodies");
    let mut offered = Offered {
        address: format!("{address}:80"),
        bodies,
        requests: 0,
    };

    let begun = Instant::now();
    let mut rate = 0;
    for step in 0.. {
        let status = service()["status"].take();
        let (ready, all) = status["pods"].as_str().and_then(|p| p.split_once('/')).expect("pods");
        if (ready, all) == ("3", "3") {
            break;
        }
        assert!(step < STEPS, "three pods were not needed: {status}");
        if ready == all {
            rate += STEP;
        }
        offered.step(rate);
    }
    println!(
        "  {:6.1} s  three pods answer, at {rate} requests a second",
        begun.elapsed().as_secs_f64()
    );
    offered.step(rate);
    let scaled = service();
    let (active, _, why) = condition(&scaled, "ScalingActive").expect("ScalingActive");
    assert_eq!(active, "True", "{why}");

    let begun = Instant::now();
    while service()["status"]["pods"] != "1/1" {
        assert!(begun.elapsed() < Duration::from_secs(240), "{}", service()["status"]);
        offered.step(2);
    }
    println!("  {:6.1} s  one pod is enough", begun.elapsed().as_secs_f64());
    let status = service()["status"].take();
    println!("  {} requests, all answered; decisions:", offered.requests);
    for decision in status["scaling"]["decisions"].as_array().into_iter().flatten().rev() {
        println!(
            "    {} {} -> {} {}: {}",
            decision["time"], decision["from"], decision["to"], decision["reason"], decision["message"]
        );
    }
    delete("infsvc", NAMESPACE, NAME);
}

fn service() -> Value {
    get("infsvc", NAMESPACE, NAME).expect("the service")
}

/// Load from outside of the cluster's nodes, over the Service's address.
struct Offered {
    address: String,
    bodies: PathBuf,
    requests: u64,
}

impl Offered {
    /// Offers so many requests a second for a while; every one is answered.
    fn step(&mut self, rate: u32) {
        let text = run(
            Command::new(localcluster().with_file_name("flywheel-loadgen"))
                .args(["--address", &self.address, "--rate", &rate.to_string()])
                .args([
                    "--seconds",
                    &STEP_SECONDS.to_string(),
                    "--objective-milliseconds",
                    "1000",
                ])
                .arg("--bodies")
                .arg(&self.bodies),
            None,
        )
        .expect("flywheel-loadgen");
        let figures: Value = serde_json::from_str(&text).expect("figures");
        let statuses = figures["statuses"].as_object().expect("statuses");
        assert!(
            statuses.keys().all(|status| status == "200"),
            "at {rate} requests a second: {figures}; {}",
            service()["status"]
        );
        self.requests += figures["offered"].as_u64().expect("offered");
    }
}
