//! A TrainingJob of two nodes on a real API server with its Job controller, scheduler and endpoints controller; the kubelets
//! are played here. What the operator takes for the cause of an end depends on when the Job controller deletes which pods.

use flywheel_api::names::ANNOTATION_ENDED;
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::{Digest, Metric};
use flywheel_contract::termination::{Outcome, Position, TerminationMessage, Trained};
use flywheel_contract::trainer::ArtifactRef;
use http::Method;
use serde_json::{Value, json};

use super::kubelet::{self, now, patch};
use super::plane::Plane;
use super::{Operator, plane_with_crds};

const JOBS: &str = "/apis/batch/v1/namespaces/team/jobs";
const PODS: &str = "/api/v1/namespaces/team/pods";
const TRAINING_JOB: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/trainingjobs/intent";
const SERVICE: &str = "/api/v1/namespaces/team/services/intent-train";

const NAMES: [&str; 2] = ["n-0", "n-1"];

/// An address that leads nowhere.
fn address(pod: &Value) -> &'static str {
    if pod["spec"]["nodeName"] == NAMES[0] {
        "192.0.2.1"
    } else {
        "192.0.2.2"
    }
}

/// The kubelets of two nodes with two GPUs each.
struct Nodes<'a> {
    plane: &'a Plane,
}

impl<'a> Nodes<'a> {
    async fn start(plane: &'a Plane) -> Self {
        for name in NAMES {
            kubelet::node(plane, name, 2).await;
        }
        Self { plane }
    }

    /// Both nodes are well.
    async fn beat(&self) {
        for name in NAMES {
            kubelet::beat(self.plane, name).await;
        }
    }

    /// The pod of this attempt and index that has a node; the newest, as a suspension leaves older ones.
    async fn pod(&self, attempt: u32, index: u32) -> Value {
        let selector = format!(
            "flywheel.dev/training-job=intent,flywheel.dev/attempt={attempt},batch.kubernetes.io/job-completion-index={index}"
        );
        let path = format!("{PODS}?labelSelector={selector}");
        let what = format!("pod {index} of attempt {attempt} has a node");
        self.plane
            .until(&what, || async {
                let list = self.plane.send(Method::GET, &path, None).await.unwrap();
                let pods = list["items"].as_array().unwrap();
                let placed = |pod: &&Value| {
                    pod["spec"]["nodeName"].is_string() && pod["metadata"]["deletionTimestamp"].is_null()
                };
                pods.iter().find(placed).cloned()
            })
            .await
    }

    /// Both pods of an attempt run.
    async fn run(&self, attempt: u32) -> [Value; 2] {
        self.beat().await;
        let pods = [self.pod(attempt, 0).await, self.pod(attempt, 1).await];
        for pod in &pods {
            kubelet::run(self.plane, pod, address(pod)).await;
        }
        self.until_state("Running", "2/2").await;
        pods
    }

    /// A pod's container ends in this way.
    async fn end(&self, pod: &Value, code: i32, message: &str) {
        kubelet::end(self.plane, pod, address(pod), code, message).await;
    }

    async fn fail(&self, pod: &Value, reason: FailureReason, position: Option<Position>) {
        self.end(pod, 1, &kubelet::failure(reason, position)).await;
    }

    /// The kubelet has ended a pod that was told to.
    async fn take_away(&self, pods: &[Value]) {
        for pod in pods {
            let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap());
            self.plane
                .until("the pod is gone", || async {
                    let at_once = json!({"gracePeriodSeconds": 0});
                    let deleted = self.plane.send(Method::DELETE, &path, Some(&at_once)).await;
                    deleted.err().filter(|e| e.code == 404)
                })
                .await;
        }
    }

    async fn until_deleted(&self, pod: &Value) {
        let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap());
        self.plane
            .until("the pod is told to end", || async {
                let pod = self.plane.send(Method::GET, &path, None).await.ok()?;
                pod["metadata"]["deletionTimestamp"].as_str().map(str::to_owned)
            })
            .await;
    }

    async fn until_state(&self, state: &str, nodes: &str) -> Value {
        let what = format!("{state} {nodes}");
        self.plane
            .until(&what, || async {
                let job = self.plane.send(Method::GET, TRAINING_JOB, None).await.unwrap();
                (job["status"]["state"] == state && job["status"]["nodes"] == nodes).then_some(job)
            })
            .await
    }

    /// The attempt's Job, once it is there.
    async fn job(&self, attempt: u32) -> Value {
        let path = format!("{JOBS}/intent-train-{attempt}");
        self.plane
            .until(&path, || async { self.plane.send(Method::GET, &path, None).await.ok() })
            .await
    }

    /// The operator has written down how this attempt ended. A kubelet leaves it a second and more for that; from a pod that is
    /// gone at once nobody learns anything.
    async fn until_known(&self, attempt: u32) {
        let path = format!("{JOBS}/intent-train-{attempt}");
        self.plane
            .until("the end is written down", || async {
                let job = self.plane.send(Method::GET, &path, None).await.ok()?;
                job["metadata"]["annotations"][ANNOTATION_ENDED]
                    .as_str()
                    .map(str::to_owned)
            })
            .await;
    }

    /// That there is this attempt, after so many restarts that count, since an event tells this.
    async fn restarted(&self, attempt: u32, counted: &str, why: &str) {
        let job = self.job(attempt).await;
        assert_eq!(
            job["metadata"]["labels"]["flywheel.dev/counted-restarts"], counted,
            "{why}"
        );
        self.plane
            .until(why, || async {
                let path = "/apis/events.k8s.io/v1/namespaces/team/events";
                let list = self.plane.send(Method::GET, path, None).await.unwrap();
                let mut notes = list["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter_map(|e| e["note"].as_str());
                notes.any(|note| note.starts_with(why)).then_some(())
            })
            .await;
    }
}

fn training_job(name: &str, nodes: u32) -> Value {
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name, "namespace": "team"},
        "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}},
            "dataset": {"sources": [{"uri": "s3://b/d.csv"}]}, "output": {"model": "intent", "uri": "s3://b/o"},
            "hyperparameters": {"batchSize": 128}, "trainer": {"numNodes": nodes, "accelerator": {"count": 2}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn several_nodes_begin_and_end_together() {
    let plane = plane_with_crds(true).await;
    let account = "/api/v1/namespaces/team/serviceaccounts/default";
    plane
        .until("the namespace's account", || async {
            plane.send(Method::GET, account, None).await.ok()
        })
        .await;
    let nodes = Nodes::start(&plane).await;
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = std::fs::read_to_string(plane.control.kubeconfig()).unwrap();
    let _operator = Operator::start(folder.path(), "a", &kubeconfig);
    plane.create(&training_job("intent", 2)).await;

    // Pods find each other by names that the operator only foretells.
    let pods = nodes.run(1).await;
    for (index, pod) in pods.iter().enumerate() {
        assert_eq!(pod["spec"]["hostname"], format!("intent-train-1-{index}"));
        assert_eq!(pod["spec"]["subdomain"], "intent-train");
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(env.iter().any(|e| e["name"] == "JOB_COMPLETION_INDEX"), "{env:?}");
    }
    assert_ne!(
        pods[0]["spec"]["nodeName"], pods[1]["spec"]["nodeName"],
        "two GPUs each"
    );
    let service = plane.send(Method::GET, SERVICE, None).await.unwrap();
    let slices = "/apis/discovery.k8s.io/v1/namespaces/team/endpointslices?labelSelector=kubernetes.io/service-name=intent-train";
    let hosts = |hosts: Vec<String>| {
        let plane = &plane;
        async move {
            plane
                .until("both are in the Service", || async {
                    let list = plane.send(Method::GET, slices, None).await.unwrap();
                    let endpoints = list["items"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .flat_map(|s| s["endpoints"].as_array());
                    let mut found: Vec<&str> = endpoints.flatten().filter_map(|e| e["hostname"].as_str()).collect();
                    found.sort_unstable();
                    (found == hosts).then_some(())
                })
                .await;
        }
    };
    hosts(vec!["intent-train-1-0".to_owned(), "intent-train-1-1".to_owned()]).await;

    // A pod crashes: the first one is told to end, and waited for.
    nodes.end(&pods[1], 137, "").await;
    nodes.until_deleted(&pods[0]).await;
    nodes.until_state("Restarting", "0/2").await;
    assert!(
        plane
            .send(Method::GET, &format!("{JOBS}/intent-train-2"), None)
            .await
            .is_err()
    );
    let saved = Position {
        step: 90,
        resumed_from_step: 0,
        checkpoint_step: 90,
        head_attempt: 1,
    };
    nodes.fail(&pods[0], FailureReason::PeerLost, Some(saved)).await;
    nodes.take_away(&pods[..1]).await;
    nodes.restarted(2, "0", "attempt 1 failed: pod 1: exit code 137").await;

    // A user deletes a pod: that is free, though the Job controller deletes the other.
    let pods = nodes.run(2).await;
    let path = format!("{PODS}/{}", pods[1]["metadata"]["name"].as_str().unwrap());
    plane.send(Method::DELETE, &path, None).await.unwrap();
    nodes.fail(&pods[1], FailureReason::Interrupted, None).await;
    nodes.until_known(2).await;
    nodes.take_away(&pods[1..]).await;
    nodes.fail(&pods[0], FailureReason::PeerLost, None).await;
    nodes
        .restarted(3, "0", "attempt 2 was lost: pod 1: its pod was deleted")
        .await;

    // A pod stands still: the Job controller deletes it, which is no reason to count nothing.
    let pods = nodes.run(3).await;
    nodes.fail(&pods[0], FailureReason::PeerLost, None).await;
    let missed = now();
    nodes.until_deleted(&pods[1]).await;
    plane
        .until("the next second", || async { (now() > missed).then_some(()) })
        .await;
    assert!(
        plane
            .send(Method::GET, &format!("{JOBS}/intent-train-4"), None)
            .await
            .is_err()
    );
    nodes.end(&pods[1], 137, "").await;
    nodes.take_away(&pods[1..]).await;
    nodes.restarted(4, "1", "attempt 3 failed: pod 0: words").await;

    // Both are suspended and go on under the same number.
    let pods = nodes.run(4).await;
    patch(&plane, TRAINING_JOB, &json!({"spec": {"suspend": true}})).await;
    for pod in &pods {
        nodes.until_deleted(pod).await;
        nodes.fail(pod, FailureReason::Interrupted, None).await;
    }
    nodes.until_state("Suspended", "0/0").await;
    nodes.take_away(&pods).await;
    patch(&plane, TRAINING_JOB, &json!({"spec": {"suspend": false}})).await;
    let pods = nodes.run(4).await;
    hosts(vec!["intent-train-4-0".to_owned(), "intent-train-4-1".to_owned()]).await;

    // A GPU breaks under the second one.
    let name = pods[1]["metadata"]["name"].as_str().unwrap();
    let gpus = json!([{"name": "nvidia.com/gpu", "resources": [
        {"resourceID": "GPU-0", "health": "Healthy"}, {"resourceID": "GPU-1", "health": "Unhealthy"}
    ]}]);
    let broken = json!({"status": {"containerStatuses": [{"name": "trainer", "image": "i", "imageID": "", "ready": true,
        "restartCount": 0, "state": {"running": {"startedAt": now()}}, "allocatedResourcesStatus": gpus}]}});
    patch(&plane, &format!("{PODS}/{name}/status"), &broken).await;
    for pod in &pods {
        nodes.until_deleted(pod).await;
        nodes.fail(pod, FailureReason::Interrupted, None).await;
    }
    nodes.take_away(&pods).await;
    nodes
        .restarted(
            5,
            "1",
            "attempt 4 was given up: pod 1: its kubelet reports the GPU GPU-1 as unhealthy",
        )
        .await;

    // Somebody deletes all Jobs, and with them what they counted.
    let pods = nodes.run(5).await;
    let all = json!({"propagationPolicy": "Background"});
    plane.send(Method::DELETE, JOBS, Some(&all)).await.unwrap();
    nodes.take_away(&pods).await;
    let next = nodes.job(6).await;
    assert_eq!(next["metadata"]["labels"]["flywheel.dev/counted-restarts"], "1");
    let pods = nodes.run(6).await;
    let status = plane.send(Method::GET, TRAINING_JOB, None).await.unwrap()["status"].clone();
    assert_eq!(
        (&status["restarts"], &status["countedRestarts"]),
        (&json!(5), &json!(1))
    );

    // The first one tells the result, the other ends when it likes.
    let trained = Trained {
        artifact: ArtifactRef {
            uri: "s3://b/o/u/attempt-6".into(),
            digest: Digest::sha256(&"0".repeat(64)),
        },
        dataset_digest: Digest::sha256(&"1".repeat(64)),
        metrics: vec![Metric::new("test/accuracy", 0.9)],
        steps: 100,
        reused: false,
    };
    let told = |outcome| TerminationMessage::new(outcome).to_json();
    nodes.end(&pods[0], 0, &told(Outcome::Trained(trained))).await;
    nodes.until_state("Complete", "0/0").await;
    nodes.end(&pods[1], 0, &told(Outcome::Assisted)).await;
    plane
        .until("the Job is complete, too", || async {
            let job = nodes.job(6).await;
            let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|c| c["type"] == "Complete" && c["status"] == "True")
                .then_some(())
        })
        .await;
    let last = plane.send(Method::GET, SERVICE, None).await.unwrap();
    assert_eq!(
        service["metadata"]["resourceVersion"], last["metadata"]["resourceVersion"],
        "written once for all attempts"
    );

    // The longest name and the most nodes.
    let longest = "a".repeat(63);
    plane.create(&training_job(&longest, 64)).await;
    plane
        .until("64 pods", || async {
            let path = format!("{PODS}?labelSelector=flywheel.dev/training-job={longest}");
            let list = plane.send(Method::GET, &path, None).await.unwrap();
            let pods = list["items"].as_array().unwrap();
            let host = |pod: &Value| pod["spec"]["hostname"].as_str().map_or(0, str::len);
            (pods.len() == 64 && pods.iter().all(|pod| (1..=63).contains(&host(pod)))).then_some(())
        })
        .await;
}
