//! The kubelet as these tests play it: nodes that are well, and what containers do.

use std::time::Duration;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::termination::{Outcome, Position, TerminationMessage};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plane::{Plane, path};

/// An address that leads nowhere.
pub const NOWHERE: &str = "192.0.2.1";
/// As often as a kubelet renews the lease of its node.
const BEAT: Duration = Duration::from_secs(10);

/// Whole seconds, as Kubernetes writes them.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub async fn patch(plane: &Plane, path: &str, body: &Value) {
    let patched = plane.send(Method::PATCH, path, Some(body)).await;
    patched.unwrap_or_else(|e| panic!("{path}: {}", e.message));
}

/// A node with so many GPUs, that is well.
pub async fn node(plane: &Plane, name: &str, gpus: u32) {
    let amounts = json!({"cpu": (4 * gpus).to_string(), "memory": format!("{}Gi", 16 * gpus), "pods": "1000",
        "nvidia.com/gpu": gpus.to_string()});
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
        .await;
    let status = json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "m",
        "lastHeartbeatTime": now(), "lastTransitionTime": now()
    }]}});
    patch(plane, &format!("/api/v1/nodes/{name}/status"), &status).await;
    plane
        .create(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name,
            "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}}),
        )
        .await;
    beat(plane, name).await;
}

/// The node is still well.
pub async fn beat(plane: &Plane, name: &str) {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
    let time = format!("{:.6}", Timestamp::now());
    patch(plane, &path, &json!({"spec": {"renewTime": time}})).await;
}

/// The node is well for ever.
pub async fn keep_well(plane: &Plane, name: &str) {
    loop {
        beat(plane, name).await;
        tokio::time::sleep(BEAT).await;
    }
}

/// What a pod's one container does.
pub async fn status(plane: &Plane, pod: &Value, ip: &str, phase: &str, state: &Value) {
    let ready = if phase == "Running" { "True" } else { "False" };
    let status = json!({"status": {
        "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now()}],
        "containerStatuses": [{"name": pod["spec"]["containers"][0]["name"], "image": "i", "imageID": "",
            "ready": phase == "Running", "restartCount": 0, "state": state}]
    }});
    let path = format!("{}/status", pod_path(pod));
    patch(plane, &path, &status).await;
}

/// A pod's container runs.
pub async fn run(plane: &Plane, pod: &Value, ip: &str) {
    status(plane, pod, ip, "Running", &json!({"running": {"startedAt": now()}})).await;
}

/// A pod's container ends in this way.
pub async fn end(plane: &Plane, pod: &Value, ip: &str, code: i32, message: &str) {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let reason = if code == 0 { "Completed" } else { "Error" };
    let state = json!({"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": now(),
        "finishedAt": now()}});
    status(plane, pod, ip, phase, &state).await;
}

/// What a trainer says that failed.
pub fn failure(reason: FailureReason, position: Option<Position>) -> String {
    let message = TerminationMessage {
        position,
        ..TerminationMessage::new(Outcome::Failed(Failure::new(reason, "words")))
    };
    message.to_json()
}

/// The path of a pod that a list gave, which leaves its kind out.
pub fn pod_path(pod: &Value) -> String {
    path(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": pod["metadata"]}))
}
