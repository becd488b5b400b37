//! The Open Inference Protocol with clients that are not ours.
//!
//! Needs `FLYWHEEL_PYTHON`, a Python with `tests/python/requirements.txt`, and `KSERVE_PYTHON`, one with
//! `tests/python/kserve_requirements.txt` as well; without them these tests fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::path::Path;
use std::process::Command;

use common::{Connection, get, with_headers};
use pod::Pod;
use serde_json::{Value, json};

fn client(python: &str, script: &str, protocol: &str, pod: &Pod) {
    let python = std::env::var_os(python)
        .unwrap_or_else(|| panic!("{python} is not set: `make setup` makes it, see its targets in the Makefile"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/python")
        .join(script);
    let output = Command::new(python)
        .arg(script)
        .args([protocol, &pod.data.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn tritons_own_client_over_http() {
    let pod = Pod::ready(256, 30_000, 2);
    client("FLYWHEEL_PYTHON", "open_inference.py", "http", &pod);
    assert_eq!(pod.stats().answered[2], 0);
}

#[test]
fn tritons_own_client_over_grpc() {
    let pod = Pod::ready(256, 30_000, 2);
    client("FLYWHEEL_PYTHON", "open_inference.py", "grpc", &pod);
}

#[test]
fn kserves_own_client_over_http() {
    let pod = Pod::ready(256, 30_000, 2);
    client("KSERVE_PYTHON", "kserve_client.py", "http", &pod);
}

#[test]
fn kserves_own_client_over_grpc() {
    let pod = Pod::ready(256, 30_000, 2);
    client("KSERVE_PYTHON", "kserve_client.py", "grpc", &pod);
}

fn infer(pod: &Pod, body: &Value) -> common::Answer {
    // Such clients often name no type.
    Connection::open(pod.data).exchange(&with_headers(
        "/v2/models/intent/infer",
        "",
        body.to_string().as_bytes(),
    ))
}

fn texts(texts: &[&str]) -> Value {
    json!({"inputs": [{"name": "text", "shape": [texts.len()], "datatype": "BYTES", "data": texts}]})
}

#[test]
fn refusals_have_the_protocols_shape_and_our_words() {
    let pod = Pod::loading(2, 30_000);
    for path in ["/v2/health/ready", "/v2/models/intent/ready", "/v2/models/intent"] {
        let answer = get(pod.data, path);
        assert_eq!((answer.status, answer.reason().as_str()), (503, "NotReady"), "{path}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(get(pod.data, "/v2/health/live").json(), json!({"live": true}));
    assert_eq!(infer(&pod, &texts(&["a"])).status, 503);
    pod.install(1);
    assert_eq!(get(pod.data, "/v2/health/ready").json(), json!({"ready": true}));
    assert_eq!(
        get(pod.data, "/v2/models/intent/versions/intent-v7/ready").json(),
        json!({"name": "intent", "ready": true})
    );
    let labels = get(pod.data, "/v2/models/intent").json()["outputs"][2]["parameters"]["labels"].clone();
    assert_eq!(labels, json!(["short", "long"]));
    for path in [
        "/v2/models/other",
        "/v2/models/intent/versions/intent-v8",
        "/v2/models",
        "/v2/",
    ] {
        let answer = get(pod.data, path);
        assert_eq!((answer.status, answer.reason().as_str()), (404, "NotFound"), "{path}");
        assert!(answer.json()["error"].is_string());
    }
    let wrong = get(pod.data, "/v2/models/intent/infer");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    assert!(wrong.json()["error"].is_string());
    // The same bounds as /predict, the same words.
    let many = infer(&pod, &texts(&["a", "b", "c"]));
    assert_eq!((many.status, many.reason().as_str()), (422, "TooManyTexts"));
    let failed = infer(&pod, &texts(&["fail"]));
    assert_eq!((failed.status, failed.reason().as_str()), (500, "InternalError"));
    let good = infer(&pod, &texts(&["abc"]));
    assert_eq!(good.status, 200);
    let answer = good.json();
    assert_eq!(
        answer["id"].as_str(),
        good.header("x-request-id"),
        "an id is made where none is given"
    );
    assert_eq!(answer["outputs"][0]["data"], json!(["long"]));
    assert_eq!(
        pod.stats().answered,
        [1, 1, 2],
        "counted as /predict is; paths that ask nothing are not"
    );
}
