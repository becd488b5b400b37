//! The program as a user starts it, against an API server and pods that answer by a script.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod api_server;

use api_server::{ApiServer, Port, Reply, Told, run, write_kubeconfig};
use flywheel_testkit::objects::{CREATED, inference_service, merged, training_job};
use serde_json::{Value, json};
use tempfile::TempDir;

const JOB: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/trainingjobs/intent";
const JOBS: &str = "/apis/batch/v1/namespaces/team/jobs";
const PODS: &str = "/api/v1/namespaces/team/pods";
const SERVICE: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/inferenceservices/intent";
const INSIDE: u16 = flywheel_contract::names::INSIDE_PORT;
const DATA: u16 = flywheel_contract::names::DATA_PORT;

fn job_at(state: &str, attempt: u32, kind: &str) -> Reply {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": state, "message": format!("it is {state}"), "lastTransitionTime": CREATED});
    let job = training_job(&json!({"status": {
        "state": state, "attempt": attempt, "restarts": attempt - 1, "conditions": [condition(kind), condition("Ready")]
    }}));
    Reply::json(&serde_json::to_value(job).unwrap())
}

fn attempt(number: u32) -> Value {
    json!({"metadata": {
        "name": format!("intent-train-{number}"), "uid": format!("j{number}"), "creationTimestamp": CREATED,
        "labels": {"flywheel.dev/attempt": number.to_string()},
        "ownerReferences": [{"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "name": "intent", "uid": "job-uid", "controller": true}]
    }})
}

fn trainer(number: u32, state: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
        "name": format!("train-{number}"), "uid": format!("p{number}"), "creationTimestamp": CREATED,
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": format!("j{number}"), "controller": true}]
    }, "status": {"containerStatuses": [
        {"name": "trainer", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state}
    ]}})
}

fn running() -> Value {
    json!({"running": {}})
}

fn over(code: i32) -> Value {
    json!({"terminated": {"exitCode": code}})
}

fn progress(step: u64) -> (u16, Value) {
    let told = json!({
        "schemaVersion": 1, "attempt": 1, "phase": "Training", "phaseSeconds": 2.5, "step": step, "totalSteps": 800, "epoch": 1,
        "totalEpochs": 3, "loss": 0.5, "learningRate": 1e-4, "examplesPerSecond": 100.0, "etaSeconds": 60,
        "checkpoint": {"step": 10, "ageSeconds": 3.0, "failures": 0, "invalid": 0}, "laterField": 1
    });
    (200, told)
}

/// A server with a TrainingJob whose first attempt runs.
fn with_running_job(port: Port) -> ApiServer {
    let server = ApiServer::start();
    server
        .at(JOB, [job_at("Running", 1, "Running")])
        .at(JOBS, [Reply::list("Job", &[attempt(1)])])
        .at(PODS, [Reply::list("Pod", &[trainer(1, &running())])])
        .port("train-1", INSIDE, port);
    server
}

fn one(told: &Told) -> Value {
    serde_json::from_str(told.out.trim()).unwrap_or_else(|e| panic!("{e}: {told:?}"))
}

#[test]
fn progress_comes_from_the_pod_through_the_api_server() {
    let server = with_running_job(Port::Answers([progress(120)].into()));
    let told = server.run(&["progress", "intent"]);
    assert_eq!(
        (told.code, told.out.as_str(), told.err.as_str()),
        (
            0,
            "state=Running attempt=1 phase=Training epoch=1/3 step=120/800 loss=0.5000 learning_rate=1.00e-4 \
             examples_per_second=100.0 eta_seconds=60 checkpoint_step=10 checkpoint_age_seconds=3\n",
            ""
        )
    );
    let told = server.run(&["progress", "intent", "-o", "json"]);
    assert_eq!(one(&told)["progress"]["step"], 120);
    assert!(
        server.calls().contains(&"GET /progress HTTP/1.1 ".to_owned()),
        "{:?}",
        server.calls()
    );
}

#[test]
fn watching_goes_over_one_connection_until_the_job_ends_and_the_exit_code_says_how() {
    for (state, code) in [("Complete", 0), ("Failed", 3)] {
        let server = with_running_job(Port::Answers([progress(1), progress(2), (500, json!({}))].into()));
        // The pod's connection fails when the pod ends; then the status is read again.
        server.at(JOB, [job_at("Running", 1, "Running"), job_at(state, 1, state)]);
        let told = server.run(&["progress", "intent", "--watch", "-o", "json"]);
        assert_eq!(told.code, code, "{told:?}");
        let lines: Vec<Value> = told.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["progress"]["step"], 1);
        assert_eq!(lines[1]["progress"]["step"], 2);
        assert_eq!(lines.last().unwrap()["state"], state);
        let forwards = server.calls().iter().filter(|c| c.contains("/portforward")).count();
        assert_eq!(forwards, 1, "{:?}", server.calls());
    }
}

#[test]
fn a_pod_that_cannot_be_asked_is_told_from_the_status() {
    let gone = Reply::status(404, "NotFound", "pods \"train-1\" not found");
    let told = with_running_job(Port::Refused(gone)).run(&["progress", "intent", "-o", "json"]);
    assert!(told.code == 0 && told.out.contains("not found"), "{told:?}");

    let words = "error forwarding port 9090 to pod train-1: connection refused";
    let told = with_running_job(Port::Closed(words.to_owned())).run(&["progress", "intent", "-o", "json"]);
    assert_eq!(told.code, 0, "{told:?}");
    let standing = one(&told);
    assert_eq!(standing["state"], "Running");
    assert!(
        standing["podError"].as_str().unwrap().contains("connection refused"),
        "{standing}"
    );
}

#[test]
fn a_missing_right_is_named() {
    let words = "pods \"train-1\" is forbidden: User \"u\" cannot create resource \"pods/portforward\"";
    let refused = Port::Refused(Reply::status(403, "Forbidden", words));
    let told = with_running_job(refused).run(&["progress", "intent"]);
    assert_eq!(told.code, 1);
    assert!(told.err.contains(words) && told.err.contains("-n team"), "{told:?}");

    let server = ApiServer::start();
    let words = "trainingjobs.flywheel.dev \"intent\" is forbidden: User \"u\" cannot get resource \"trainingjobs\"";
    server.at(JOB, [Reply::status(403, "Forbidden", words)]);
    let told = server.run(&["progress", "intent"]);
    assert!(
        told.code == 1 && told.err.contains("cannot get resource \"trainingjobs\""),
        "{told:?}"
    );
}

#[test]
fn a_log_is_printed_without_the_timestamps_that_it_was_asked_with() {
    let server = with_running_job(Port::Closed(String::new()));
    server.at(
        &format!("{PODS}/train-1/log"),
        [Reply::Whole(
            200,
            "2026-01-01T00:00:00.1Z one\n2026-01-01T00:00:00.2Z two\n".to_owned(),
        )],
    );
    let told = server.run(&["logs", "intent"]);
    assert_eq!((told.code, told.out.as_str()), (0, "one\ntwo\n"), "{told:?}");
    server.at(
        &format!("{PODS}/train-1/log"),
        [Reply::Broken("2026-01-01T00:00:00.1Z one\n".to_owned())],
    );
    let told = server.run(&["logs", "intent"]);
    assert!(
        told.code == 1 && told.out == "one\n" && told.err.contains("stopped coming"),
        "{told:?}"
    );
    let told = server.run(&["logs", "intent", "--attempt", "7"]);
    assert!(
        told.code == 1 && told.err.contains("attempt 7") && told.err.contains("those with a log: 1"),
        "{told:?}"
    );
}

#[test]
fn following_goes_on_over_a_break_and_into_the_next_attempt() {
    let server = ApiServer::start();
    let first = [attempt(1)];
    let both = [attempt(1), attempt(2)];
    server
        .at(
            JOB,
            [
                job_at("Running", 1, "Running"),
                job_at("Restarting", 1, "Restarting"),
                job_at("Running", 2, "Running"),
                job_at("Complete", 2, "Complete"),
            ],
        )
        .at(
            JOBS,
            [
                Reply::list("Job", &first),
                Reply::list("Job", &first),
                Reply::list("Job", &both),
            ],
        )
        .at(
            PODS,
            [
                Reply::list("Pod", &[trainer(1, &running())]),
                Reply::list("Pod", &[trainer(1, &over(1))]),
                Reply::list("Pod", &[trainer(1, &over(1)), trainer(2, &running())]),
            ],
        )
        // The connection breaks in the middle of a line while the pod runs; what comes again from that second is not told twice.
        .at(
            &format!("{PODS}/train-1"),
            [Reply::json(&trainer(1, &running())), Reply::json(&trainer(1, &over(1)))],
        )
        .at(
            &format!("{PODS}/train-1/log"),
            [
                Reply::Broken("2026-01-01T00:00:05.1Z one\n2026-01-01T00:00:05.2Z tw".to_owned()),
                Reply::Whole(
                    200,
                    "2026-01-01T00:00:05.1Z one\n2026-01-01T00:00:05.2Z two\n".to_owned(),
                ),
            ],
        )
        .at(&format!("{PODS}/train-2"), [Reply::json(&trainer(2, &over(0)))])
        .at(
            &format!("{PODS}/train-2/log"),
            [Reply::Whole(200, "2026-01-01T00:01:00Z three\n".to_owned())],
        );
    let told = server.run(&["logs", "intent", "-f"]);
    assert_eq!(
        (told.code, told.out.as_str()),
        (0, "one\ntw\ntwo\nthree\n"),
        "{told:?}\n{:#?}",
        server.calls()
    );
    assert!(told.err.contains("attempt 2, pod train-2"), "{told:?}");
    let again = server
        .calls()
        .into_iter()
        .filter(|c| c.contains("train-1/log"))
        .nth(1)
        .unwrap();
    assert!(again.contains("sinceTime=2026-01-01T00%3A00%3A05Z"), "{again}");
}

/// A server with an InferenceService and one ready pod that answers so.
fn with_service(answers: &[(u16, Value)]) -> ApiServer {
    let server = ApiServer::start();
    let service = inference_service(&json!({}));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "serve", "creationTimestamp": CREATED},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    server
        .at(SERVICE, [Reply::json(&serde_json::to_value(service).unwrap())])
        .at(PODS, [Reply::list("Pod", &[pod])])
        .port("serve", DATA, Port::Answers(answers.iter().cloned().collect()));
    server
}

fn prediction(over: &Value) -> Value {
    let base = json!({"intent_id": 0, "label": "lights_off", "probability": 0.75, "all_probs": {"lights_off": 0.75, "other": 0.25},
        "model_version": "intent-v1", "request_id": "r"});
    merged(base, over)
}

#[test]
fn each_text_is_one_request_and_one_line() {
    let other = prediction(&json!({"label": "other"}));
    let server = with_service(&[(200, prediction(&json!({}))), (200, other.clone()), (200, other)]);
    let told = server.run(&["predict", "intent", "turn the lights off", "is it raining"]);
    assert_eq!(told.code, 0, "{told:?}");
    let words: Vec<Vec<&str>> = told
        .out
        .lines()
        .map(|l| l.split("   ").map(str::trim).filter(|w| !w.is_empty()).collect())
        .collect();
    assert_eq!(words[0], ["LABEL", "PROBABILITY", "MS", "VERSION", "TEXT"]);
    assert_eq!(
        (words[1][0], words[1][1], words[1][3], words[1][4]),
        ("lights_off", "0.7500", "intent-v1", "turn the lights off")
    );
    assert_eq!((words[2][0], words[2][4]), ("other", "is it raining"));
    let sent: Vec<_> = server
        .calls()
        .into_iter()
        .filter(|c| c.starts_with("POST /predict"))
        .collect();
    assert_eq!(sent[0], "POST /predict HTTP/1.1 {\"text\":\"turn the lights off\"}");
    assert_eq!(sent.len(), 2);

    let told = server.run(&["predict", "intent", "x", "-o", "json"]);
    assert_eq!(one(&told)["predictions"][0]["label"], "other");
}

#[test]
fn a_services_refusal_is_told_in_its_words() {
    let refusal = json!({"error": {"reason": "TooManyRequests", "message": "come back later"}});
    let told = with_service(&[(429, refusal)]).run(&["predict", "intent", "x"]);
    assert!(
        told.code == 1 && told.err.contains("TooManyRequests: come back later"),
        "{told:?}"
    );
    assert_eq!(told.out, "");
}

#[test]
fn what_is_missing_is_told_with_what_to_do() {
    let server = ApiServer::start();
    let told = server.run(&["status"]);
    assert!(told.code == 1 && told.err.contains("install the chart"), "{told:?}");
    server.at(
        JOB,
        [Reply::status(
            404,
            "NotFound",
            "trainingjobs.flywheel.dev \"intent\" not found",
        )],
    );
    let told = server.run(&["logs", "intent"]);
    assert!(
        told.code == 1 && told.err.contains("kubectl flywheel status -n team"),
        "{told:?}"
    );
    let told = server.run(&["progress", "intent", "--watch"]);
    assert!(told.code == 1 && told.err.lines().count() == 1, "{told:?}");
    let told = server.run(&["version"]);
    assert!(told.code == 0 && told.out.starts_with("plugin "), "{told:?}");
}

#[test]
fn without_a_cluster_the_errors_say_so_and_hold_no_secret() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config");
    let told = run(&["status"], &file);
    assert!(told.code == 1 && told.err.contains("KUBECONFIG"), "{told:?}");

    std::fs::write(
        &file,
        format!(
            "apiVersion: v1\nusers: [{{name: u, user: {{token: {}\n",
            api_server::TOKEN
        ),
    )
    .unwrap();
    let told = run(&["status"], &file);
    assert!(told.code == 1 && told.err.contains("no valid YAML"), "{told:?}");

    // Taken and given back: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    write_kubeconfig(&file, &format!("http://127.0.0.1:{port}"));
    let told = run(&["status"], &file);
    assert!(
        told.code == 1 && told.err.contains(&format!("http://127.0.0.1:{port}")),
        "{told:?}"
    );
    assert!(told.err.contains("kubectl cluster-info"), "{told:?}");
    let told = run(&["status", "--context", "other"], &file);
    assert!(told.code == 1 && told.err.contains("no context other"), "{told:?}");
    let told = run(&["version"], &file);
    assert!(told.code == 0 && told.out.contains("operator  not known"), "{told:?}");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_help_has_examples() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config");
    assert_eq!(run(&["progress"], &file).code, 2);
    let told = run(&["--help"], &file);
    assert!(told.code == 0 && told.out.contains("Examples:"), "{told:?}");
}
