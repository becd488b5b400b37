//! The controller against a fake API server that allows exactly the calls of each scenario, and the objects it builds
//! against golden files.

use std::net::Ipv4Addr;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::INSIDE_PORT;
use flywheel_contract::scalar::Metric;
use flywheel_contract::termination::{Outcome, Position, TerminationMessage, Trained};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_policy::training::hang::Look;
use flywheel_testkit::objects::{NAMESPACE, digest, merged, object, pod_of, stored_job, training_job};
use flywheel_testkit::{Call, Scenario, Step};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::cache::Cache;
use crate::settings::Settings;

const JOBS: &str = "/apis/batch/v1/namespaces/team/jobs";
const JOB_1: &str = "/apis/batch/v1/namespaces/team/jobs/intent-train-1";
const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/flywheel-trainers";
const STATUS: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/trainingjobs/intent/status";
const VERSIONS: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/modelversions";

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn context(client: Client, fill: impl FnOnce(&mut Context)) -> Arc<Context> {
    let mut context = Context::test(client, now());
    context.caches.network_policies = Cache::of([stored_policy()]);
    fill(&mut context);
    Arc::new(context)
}

/// The NetworkPolicy as the first job of the namespace left it.
fn stored_policy() -> k8s_openapi::api::networking::v1::NetworkPolicy {
    let built = build::network_policy::network_policy(NAMESPACE, "flywheel-system");
    crate::kubeio::as_applied(&built, "policy-uid").unwrap()
}

fn stored_attempt(owner: &TrainingJob, attempt: u32) -> Job {
    let built = build::job::job(
        owner,
        attempt,
        0,
        "a100",
        &[],
        NamedVersions::default(),
        &Settings::example(),
    )
    .unwrap();
    stored_job(&built, &format!("job-{attempt}-uid"))
}

fn trained() -> Trained {
    Trained {
        artifact: ArtifactRef {
            uri: "s3://models/intent/job-uid/attempt-1".into(),
            digest: flywheel_contract::scalar::Digest(digest('a')),
        },
        dataset_digest: flywheel_contract::scalar::Digest(digest('b')),
        metrics: vec![Metric::new("test/accuracy", 0.931)],
        steps: 800,
        reused: false,
    }
}

/// The calls by which the first attempt, of this pod, is given up: asked for once more, written down, ended, told.
fn giving_up(job: &TrainingJob, pod: &Pod) -> Vec<Step> {
    let pod_path = format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-0-x");
    vec![
        Step::get(&pod_path, serde_json::to_value(pod).unwrap()),
        Step::accept("PATCH", JOB_1),
        Step::new("DELETE", &pod_path, |_| {
            (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
        }),
        Step::accept_status(STATUS, job_value(job)),
        Step::event(NAMESPACE),
    ]
}

fn ended_with(job: &Job, code: i32, outcome: Outcome) -> Pod {
    ended_at(job, code, outcome, None)
}

fn ended_at(job: &Job, code: i32, outcome: Outcome, position: Option<Position>) -> Pod {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let message = TerminationMessage {
        position,
        ..TerminationMessage::new(outcome)
    };
    pod_of(
        job,
        "trainer",
        phase,
        &json!({"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:09:00Z", "message": message.to_json()}}),
    )
}

/// A TrainingJob of two nodes with two GPUs each, with `over` laid over it.
fn of_two_nodes(over: &Value) -> TrainingJob {
    let trainer = json!({"spec": {"trainer": {"numNodes": 2, "accelerator": {"class": "a100", "count": 2}}}});
    training_job(&merged(trainer, over))
}

/// The pod as the one with this index.
fn nth(index: u32, mut pod: Pod) -> Pod {
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(names::LABEL_COMPLETION_INDEX.to_owned(), index.to_string());
    pod.metadata.name = pod
        .metadata
        .name
        .map(|name| name.replace("-0-x", &format!("-{index}-x")));
    pod.metadata.uid = Some(format!("pod-{index}-uid"));
    pod
}

/// Each test that scrapes has an address of its own: the port is given.
fn running_at(job: &Job, ip: Ipv4Addr) -> Pod {
    let mut pod = pod_of(job, "trainer", "Running", &json!({"running": {}}));
    pod.status.as_mut().unwrap().pod_ip = Some(ip.to_string());
    pod
}

/// What a pod in full swing tells, with `over` laid over it.
fn progress(over: &Value) -> Value {
    flywheel_testkit::objects::merged(
        json!({
            "schemaVersion": 1, "attempt": 1, "phase": "Training", "phaseSeconds": 300.0, "step": 120, "totalSteps": 800,
            "epoch": 1, "totalEpochs": 4, "loss": 0.5, "heartbeatSeconds": 0.4, "medianPassSeconds": 1.0,
            "checkpoint": {"step": 100, "ageSeconds": 20.0, "failures": 0, "invalid": 0}
        }),
        over,
    )
}

/// A pod that answers each request at its inside port with this, until the test ends.
async fn serve(ip: Ipv4Addr, body: &Value) {
    let listener = tokio::net::TcpListener::bind((ip, INSIDE_PORT)).await.unwrap();
    let body = body.to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 2048];
            let _ = socket.read(&mut buffer).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
}

fn job_value(job: &TrainingJob) -> Value {
    serde_json::to_value(job).unwrap()
}

fn condition<'a>(call: &'a Call, kind: &str) -> (&'a str, &'a str) {
    let found = call.body["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["type"] == kind))
        .unwrap_or_else(|| panic!("no condition {kind} in {:#}", call.body));
    (found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
}

#[tokio::test]
async fn the_first_pass_makes_policy_job_and_status_in_this_order() {
    let job = training_job(&json!({}));
    let (client, scenario) = Scenario::start(vec![
        Step::get_nothing(POLICY),
        Step::accept("PATCH", POLICY),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let context = context(client, |c| c.caches.network_policies = Cache::of([]));
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert!(
        calls[1].query.contains("fieldManager=flywheel-training"),
        "{}",
        calls[1].query
    );
    assert_eq!(calls[2].body["metadata"]["name"], "intent-train-1");
    let status = &calls[3];
    assert_eq!(status.body["status"]["observedGeneration"], 1);
    assert_eq!(status.body["status"]["attempt"], 1);
    assert_eq!(condition(status, "Ready"), ("False", "Pending"));
    assert_eq!(
        status.body["metadata"]["uid"], "job-uid",
        "a recreated job never gets it"
    );
}

#[tokio::test]
async fn the_same_pass_again_writes_nothing() {
    let bare = training_job(&json!({}));
    let attempt = stored_attempt(&bare, 1);
    let pod = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
    let fill = |c: &mut Context| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    };
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&bare)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(bare.clone()), context(client, fill)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Running"), ("True", "Running"));

    let told = training_job(&json!({"status": calls[0].body["status"]}));
    let (client, scenario) = Scenario::start(vec![]);
    let mut later = Context::test(client, "2026-01-01T05:00:00Z".parse().unwrap());
    later.caches.network_policies = Cache::of([stored_policy()]);
    fill(&mut later);
    reconcile(Arc::new(told), Arc::new(later)).await.unwrap();
    scenario.finish().await;
}

#[tokio::test]
async fn a_result_becomes_a_model_version_before_the_status_says_so() {
    let job = training_job(&json!({
        "spec": {"output": {"gates": [{"metric": "test/accuracy", "min": "0.9"}]}, "storage": {"region": "eu-central-1"}},
        "status": {"attempt": 1}
    }));
    let attempt = stored_attempt(&job, 1);
    let older = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "intent-v0", "namespace": NAMESPACE},
        "spec": {"model": "intent", "version": 6, "artifact": {"uri": "s3://b/k", "digest": digest('c')}}});
    // The newest number is on the first of two pages.
    let page = |metadata, items| json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersionList", "metadata": metadata, "items": items});
    let first = page(json!({"resourceVersion": "9", "continue": "more"}), json!([older]));
    let mut oldest = older;
    oldest["metadata"]["name"] = json!("intent-older");
    oldest["spec"]["version"] = json!(2);
    let second = page(json!({"resourceVersion": "9"}), json!([oldest]));
    let (client, scenario) = Scenario::start(vec![
        Step::get(VERSIONS, first),
        Step::get(VERSIONS, second),
        Step::accept("POST", VERSIONS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let position = Position {
        step: 800,
        resumed_from_step: 0,
        checkpoint_step: 700,
        head_attempt: 1,
    };
    let pod = ended_at(&attempt, 0, Outcome::Trained(trained()), Some(position));
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert!(calls[0].query.contains("spec.model%3Dintent"), "{}", calls[0].query);
    assert!(
        !calls[0].query.contains("resourceVersion"),
        "the newest list: {}",
        calls[0].query
    );
    assert!(calls[1].query.contains("continue=more"), "{}", calls[1].query);
    insta::assert_json_snapshot!("model_version", calls[2].body);
    assert_eq!(condition(&calls[3], "Complete"), ("True", "Trained"));
    assert_eq!(calls[3].body["status"]["result"]["modelVersion"], "intent-v1");
    assert_eq!(calls[3].body["status"]["progress"]["step"], "800/800");
    assert_eq!(calls[3].body["status"]["nodes"], "0/0", "no pod is wanted");
    assert_eq!(condition(&calls[3], "CheckpointHealthy"), ("True", "AsExpected"));

    // It stays so when nothing is left that tells of it.
    let told = training_job(&json!({"status": calls[3].body["status"]}));
    let (client, scenario) = Scenario::start(vec![]);
    reconcile(Arc::new(told), self::context(client, |_| {})).await.unwrap();
    scenario.finish().await;
}

#[tokio::test]
async fn checkpoints_that_failed_to_the_end_stay_so_when_the_job_is_complete() {
    let job = training_job(
        &json!({"status": {"attempt": 1, "progress": {"step": "790/800", "checkpointStep": 700},
        "conditions": [{"type": "CheckpointHealthy", "status": "False", "reason": "CheckpointFailed", "message": "no space",
            "lastTransitionTime": "2026-01-01T00:05:00Z"}]}}),
    );
    let attempt = stored_attempt(&job, 1);
    let position = Position {
        step: 800,
        resumed_from_step: 0,
        checkpoint_step: 700,
        head_attempt: 1,
    };
    let pod = ended_at(&attempt, 0, Outcome::Trained(trained()), Some(position));
    let fill = |c: &mut Context| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    };
    let (client, scenario) = Scenario::start(vec![
        Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![]),
        Step::accept("POST", VERSIONS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job), context(client, fill)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[2], "CheckpointHealthy"), ("False", "CheckpointFailed"));

    let told = training_job(&json!({"status": calls[2].body["status"]}));
    let (client, scenario) = Scenario::start(vec![]);
    reconcile(Arc::new(told), context(client, fill)).await.unwrap();
    scenario.finish().await;
}

#[tokio::test]
async fn a_version_of_that_name_with_the_same_artifact_will_do_and_with_another_is_a_conflict() {
    for (digit, complete) in [('a', ("True", "Trained")), ('f', ("False", "VersionConflict"))] {
        let job = training_job(&json!({"status": {"attempt": 1}}));
        let attempt = stored_attempt(&job, 1);
        let present = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "intent-v1", "namespace": NAMESPACE},
            "spec": {"model": "intent", "version": 1, "artifact": {"uri": "s3://b/other", "digest": digest(digit)}}});
        let (client, scenario) = Scenario::start(vec![
            Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![present]),
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        let pod = ended_with(&attempt, 0, Outcome::Trained(trained()));
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([attempt]);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        let ready = condition(&calls[1], "Ready");
        assert_eq!(ready, complete, "{digit}");
        if digit == 'f' {
            assert_eq!(condition(&calls[1], "Stalled"), ("True", "VersionConflict"));
        }
    }
}

#[tokio::test]
async fn an_earlier_jobs_result_is_told_as_such_and_the_version_that_is_there_is_used() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    // Imported, under the name that it had.
    let present = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "intent-0a1b2c3d", "namespace": NAMESPACE},
        "spec": {"model": "intent", "version": 1, "artifact": {"uri": "s3://models/intent/old-uid/attempt-1", "digest": digest('a')}}});
    let reused = Trained {
        reused: true,
        ..trained()
    };
    let pod = ended_with(&attempt, 0, Outcome::Trained(reused));
    let fill = |c: &mut Context| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    };
    let (client, scenario) = Scenario::start(vec![
        Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![present.clone()]),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job.clone()), context(client, fill)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[1], "Complete"), ("True", "ResultReused"));
    assert_eq!(condition(&calls[1], "Ready"), ("True", "ResultReused"));
    assert_eq!(calls[1].body["status"]["result"]["modelVersion"], "intent-0a1b2c3d");
    assert_eq!(calls[2].body["type"], "Normal");

    // A version that other gates let pass is not the one that these ask for.
    let mut of_others = present.clone();
    of_others["spec"]["gates"] = json!([{"metric": "test/accuracy", "min": "0.1"}]);
    let (client, scenario) = Scenario::start(vec![
        Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![of_others]),
        Step::accept("POST", VERSIONS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job.clone()), context(client, fill)).await.unwrap();
    let made = &scenario.finish().await[1].body["spec"];
    assert_eq!(
        (&made["version"], &made["artifact"]["digest"]),
        (&json!(2), &json!(digest('a')))
    );

    // It stays so while its pod tells of it, and when nothing is left.
    let told = training_job(&json!({"status": calls[1].body["status"]}));
    for with_pod in [true, false] {
        let (client, scenario) = Scenario::start(vec![]);
        let context = context(client, |c| {
            if with_pod {
                fill(c)
            }
        });
        reconcile(Arc::new(told.clone()), context).await.unwrap();
        scenario.finish().await;
    }
}

#[tokio::test]
async fn a_job_applied_again_beside_its_version_may_come_to_that_artifact_only() {
    let named = |over: Value| {
        training_job(&merged(
            json!({"spec": {"output": {"versionName": "intent-v1"}}}),
            &over,
        ))
    };
    let version = |job: &str| {
        flywheel_testkit::objects::model_version(
            &json!({"spec": {"source": {"trainingJob": {"name": job, "uid": "old-uid"}}}}),
        )
    };
    for (case, job, version, starts) in [
        ("its own, applied again", named(json!({})), version("intent"), true),
        ("another job's", named(json!({})), version("another"), false),
        (
            "results are not used again",
            named(json!({"spec": {"output": {"reuse": "Never"}}})),
            version("intent"),
            false,
        ),
    ] {
        let mut steps = vec![Step::accept_status(STATUS, job_value(&job))];
        if starts {
            steps.insert(0, Step::accept("POST", JOBS));
        } else {
            steps.push(Step::event(NAMESPACE));
        }
        let (client, scenario) = Scenario::start(steps);
        let expected = serde_json::to_value(&version.spec.artifact).unwrap();
        let context = context(client, |c| {
            c.caches.network_policies = Cache::of([stored_policy()]);
            c.caches.model_versions = Cache::of([version]);
        });
        reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        if starts {
            let container = &calls[0].body["spec"]["template"]["spec"]["containers"][0];
            let config: Value = serde_json::from_str(container["env"][0]["value"].as_str().unwrap()).unwrap();
            assert_eq!(
                (&config["expected"], &config["reuse"]),
                (&expected, &json!(true)),
                "{case}"
            );
        } else {
            assert_eq!(condition(&calls[0], "Stalled"), ("True", "VersionConflict"), "{case}");
        }
    }
}

#[tokio::test]
async fn a_place_that_is_lost_with_the_pod_is_refused_before_anything_is_started() {
    let pod = |mount: &str, volume: Value| json!({"volumes": [merged(json!({"name": "v"}), &volume)], "volumeMounts": [{"name": "v", "mountPath": mount}]});
    let claim = || json!({"persistentVolumeClaim": {"claimName": "models"}});
    let place = |field: &str, uri: &str| json!({field: {"uri": uri}});
    let table = [
        (
            "no mount",
            place("output", "file:///tmp/x"),
            json!({}),
            Some("output.uri"),
        ),
        (
            "of checkpoints",
            place("checkpoint", "file:///state"),
            json!({}),
            Some("checkpoint.uri"),
        ),
        (
            "mounted",
            place("output", "file:///models/intent"),
            pod("/models", claim()),
            None,
        ),
        (
            "itself mounted",
            place("output", "file:///models"),
            pod("/models/", claim()),
            None,
        ),
        (
            "of checkpoints, mounted",
            place("checkpoint", "file:///models/c"),
            pod("/models", claim()),
            None,
        ),
        (
            "beside it",
            place("output", "file:///models2/x"),
            pod("/models", claim()),
            Some("output.uri"),
        ),
        (
            "above it",
            place("output", "file:///models"),
            pod("/models/x", claim()),
            Some("output.uri"),
        ),
        (
            "out of it",
            place("output", "file:///models/../tmp"),
            pod("/models", claim()),
            Some("output.uri"),
        ),
        (
            "scratch space",
            place("output", "file:///models"),
            pod("/models", json!({"emptyDir": {}})),
            Some("output.uri"),
        ),
        ("in a bucket", place("output", "s3://models/x"), json!({}), None),
        (
            "of event files",
            json!({"tracking": {"tensorBoard": {"uri": "file:///events"}}}),
            json!({}),
            Some("tracking.tensorBoard.uri"),
        ),
        (
            "of event files, mounted",
            json!({"tracking": {"tensorBoard": {"uri": "file:///models/events"}}}),
            pod("/models", claim()),
            None,
        ),
    ];
    for (case, place, pod, refused) in table {
        let job = training_job(&merged(
            json!({"spec": {"trainer": {"pod": pod}}}),
            &json!({"spec": place}),
        ));
        let mut steps = vec![Step::accept_status(STATUS, job_value(&job))];
        match refused {
            None => steps.insert(0, Step::accept("POST", JOBS)),
            Some(_) => steps.push(Step::event(NAMESPACE)),
        }
        let (client, scenario) = Scenario::start(steps);
        reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
        let calls = scenario.finish().await;
        let Some(field) = refused else { continue };
        assert_eq!(condition(&calls[0], "Stalled"), ("True", "InvalidSpec"), "{case}");
        let message = calls[1].body["note"].as_str().unwrap();
        for words in [&format!("spec.{field} "), "trainer.pod.volumeMounts", "s3://"] {
            assert!(message.contains(words), "{case}: {words} is not in: {message}");
        }
    }
}

#[tokio::test]
async fn a_version_of_that_name_that_is_not_ours_is_found_before_anything_is_started() {
    let version = |uid: &str| -> flywheel_api::ModelVersion {
        object(
            json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "intent-v1", "namespace": NAMESPACE},
            "spec": {"model": "intent", "version": 1, "artifact": {"uri": "s3://b/other", "digest": digest('f')},
                "source": {"trainingJob": {"name": "another", "uid": uid}}}}),
        )
    };
    let job = training_job(&json!({}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let with_version = |c: &mut Context| c.caches.model_versions = Cache::of([version("another-uid")]);
    reconcile(Arc::new(job.clone()), context(client, with_version))
        .await
        .unwrap();
    let calls = scenario.finish().await;
    for kind in ["Ready", "Stalled", "Admitted"] {
        let status = if kind == "Stalled" { "True" } else { "False" };
        assert_eq!(condition(&calls[0], kind), (status, "VersionConflict"), "{kind}");
    }
    assert!(calls[0].body["status"].get("attempt").is_none());

    // It is deleted: the training begins.
    let told = training_job(&json!({"status": calls[0].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&told)),
    ]);
    reconcile(Arc::new(told), context(client, |_| {})).await.unwrap();
    scenario.finish().await;

    // A training that has begun goes on: the other one may be gone when it ends, or have the same artifact.
    let attempt = stored_attempt(&job, 1);
    let told = training_job(&json!({"status": {"attempt": 1}}));
    let failure = Failure::new(FailureReason::StorageUnavailable, "no answer");
    let pod = ended_with(&attempt, 1, Outcome::Failed(failure));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&told)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        with_version(c);
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(told), context).await.unwrap();
    scenario.finish().await;
}

#[tokio::test]
async fn a_strangers_job_of_that_name_is_never_touched() {
    let job = training_job(&json!({}));
    let stranger = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "intent-train-1", "namespace": NAMESPACE, "uid": "other"}});
    let (client, scenario) = Scenario::start(vec![
        Step::refuse(
            "POST",
            JOBS,
            409,
            "AlreadyExists",
            "jobs.batch \"intent-train-1\" already exists",
        ),
        Step::get(JOB_1, stranger),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[2], "Ready"), ("False", "NameTaken"));
    assert_eq!(condition(&calls[2], "Stalled"), ("True", "NameTaken"));
    assert_eq!(calls[2].body["status"]["state"], "Stalled");
}

#[tokio::test]
async fn our_own_job_that_the_cache_does_not_show_yet_is_taken_as_it_is() {
    let job = training_job(&json!({"status": {"attempt": 1, "conditions": []}}));
    let live = serde_json::to_value(stored_attempt(&job, 1)).unwrap();
    let (client, scenario) = Scenario::start(vec![
        Step::get(JOB_1, live),
        // Ten minutes old and no pod: the reason is looked for.
        Step::list("/api/v1/namespaces/team/events", "Event", "v1", vec![]),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[2], "Ready"), ("False", "Pending"));
}

#[tokio::test]
async fn a_refused_job_and_a_refused_pod_become_conditions_with_the_servers_words() {
    let job = training_job(&json!({}));
    let (client, scenario) = Scenario::start(vec![
        Step::refuse("POST", JOBS, 403, "Forbidden", "exceeded quota: count/jobs.batch"),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job.clone()), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[1], "Admitted"), ("False", "ChildRefused"));

    let attempt = stored_attempt(&job, 1);
    let event = json!({"metadata": {"name": "e", "namespace": NAMESPACE}, "involvedObject": {"uid": "job-1-uid"}, "reason": "FailedCreate",
        "lastTimestamp": "2026-01-01T00:05:00Z", "message": "Error creating: pods \"intent-train-1-0-abcde\" is forbidden: exceeded quota: gpus"});
    let (client, scenario) = Scenario::start(vec![
        Step::list("/api/v1/namespaces/team/events", "Event", "v1", vec![event]),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job), context(client, |c| c.caches.jobs = Cache::of([attempt])))
        .await
        .unwrap();
    let calls = scenario.finish().await;
    assert!(
        calls[0].query.contains("involvedObject.uid%3Djob-1-uid"),
        "{}",
        calls[0].query
    );
    assert_eq!(condition(&calls[1], "Admitted"), ("False", "PodCreationFailed"));
    let text = calls[1].body.to_string();
    assert!(
        text.contains("exceeded quota: gpus") && !text.contains("abcde"),
        "{text}"
    );
}

#[tokio::test]
async fn what_the_kubelet_tries_again_is_told_and_does_not_stall_the_job() {
    for (waiting, reason) in [
        ("ImagePullBackOff", "ImagePullFailed"),
        ("CreateContainerConfigError", "PodConfigInvalid"),
    ] {
        let job = training_job(&json!({"status": {"attempt": 1}}));
        let attempt = stored_attempt(&job, 1);
        let mut pod = pod_of(
            &attempt,
            "trainer",
            "Pending",
            &json!({"waiting": {"reason": waiting, "message": "secret \"s3\" not found"}}),
        );
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now().to_string()},
        ]))
        .unwrap();
        let (client, scenario) = Scenario::start(vec![
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([attempt]);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[0], "Ready"), ("False", reason));
        assert_eq!(condition(&calls[0], "Reconciling"), ("True", reason));
        assert!(!calls[0].body.to_string().contains("Stalled"), "{:#}", calls[0].body);
        assert_eq!(calls[0].body["status"]["state"], "Blocked");
        assert_eq!(
            (&calls[1].body["reason"], &calls[1].body["type"]),
            (&json!(reason), &json!("Warning"))
        );
    }
}

#[tokio::test]
async fn an_attempt_whose_node_cannot_have_its_image_is_given_up_and_the_next_one_prefers_other_nodes() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let without_image = |seconds: i64| {
        let since = now() - jiff::SignedDuration::from_secs(seconds);
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
        let mut pod = pod_of(&attempt, "trainer", "Pending", &waiting);
        pod.spec.as_mut().unwrap().node_name = Some("n-1".to_owned());
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": since.to_string()},
        ]))
        .unwrap();
        pod
    };
    // Not before its time, and not where the API server knows better.
    let here = serde_json::to_value(pod_of(&attempt, "trainer", "Running", &json!({"running": {}}))).unwrap();
    let pod_path = format!("{PODS}/intent-train-1-0-x");
    for (seconds, first) in [(74, None), (75, Some(Step::get(&pod_path, here)))] {
        let told = [Step::accept_status(STATUS, job_value(&job)), Step::event(NAMESPACE)];
        let (client, scenario) = Scenario::start(first.into_iter().chain(told).collect());
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([attempt.clone()]);
            c.caches.pods = Cache::of([without_image(seconds)]);
        });
        reconcile(Arc::new(job.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(
            condition(&calls[calls.len() - 2], "Ready"),
            ("False", "ImagePullFailed")
        );
    }

    let pod = without_image(75);
    let (client, scenario) = Scenario::start(giving_up(&job, &pod));
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job.clone()), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[3], "Restarting"), ("True", "ImagePullFailed"));
    assert_eq!(calls[3].body["status"]["countedRestarts"], 0);
    let incident = &calls[3].body["status"]["recovery"]["incidents"][0];
    assert_eq!(
        (&incident["cause"], &incident["node"], &incident["detectSeconds"]),
        (&json!("ImagePullFailed"), &json!("n-1"), &json!(75))
    );

    let mut given_up = attempt;
    given_up.metadata.annotations = serde_json::from_value(calls[1].body["metadata"]["annotations"].clone()).unwrap();
    let job = training_job(&json!({"status": calls[3].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let context = self::context(client, |c| c.caches.jobs = Cache::of([given_up]));
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let affinity = calls[0].body["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        ["preferredDuringSchedulingIgnoredDuringExecution"]
        .to_string();
    assert!(affinity.contains("NotIn") && affinity.contains("n-1"), "{affinity}");
}

#[tokio::test]
async fn a_pod_that_its_node_cannot_prepare_blocks_the_job_a_minute_after_it_got_it() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let creating = json!({"waiting": {"reason": "ContainerCreating"}});
    let mut pod = pod_of(&attempt, "trainer", "Pending", &creating);
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:09:00Z"},
        {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": "2026-01-01T00:09:00Z"},
    ]))
    .unwrap();
    for (seconds, reason, state) in [(59, "Starting", "Starting"), (60, "PodNotPrepared", "Blocked")] {
        let (client, scenario) = Scenario::start(vec![
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        let scheduled: Timestamp = "2026-01-01T00:09:00Z".parse().unwrap();
        let mut context = Context::test(client, scheduled + jiff::SignedDuration::from_secs(seconds));
        context.caches.jobs = Cache::of([attempt.clone()]);
        context.caches.pods = Cache::of([pod.clone()]);
        let again = reconcile(Arc::new(job.clone()), Arc::new(context)).await.unwrap();
        assert!(again <= Duration::from_secs(10), "{again:?}");
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[0], "Ready"), ("False", reason));
        assert_eq!(condition(&calls[0], "Reconciling"), ("True", reason));
        assert_eq!(calls[0].body["status"]["state"], state);
    }
}

#[tokio::test]
async fn a_failure_of_the_user_ends_the_job_and_starts_nothing() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let failure = Failure::new(FailureReason::ColumnMissing, "s3://data/intent.csv has no column text");
    let pod = ended_with(&attempt, 1, Outcome::Failed(failure));
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Failed"), ("True", "ColumnMissing"));
    assert_eq!(condition(&calls[0], "Stalled"), ("True", "ColumnMissing"));
    assert_eq!(condition(&calls[0], "Complete"), ("False", "ColumnMissing"));
    assert_eq!(calls[0].body["status"]["nodes"], "0/0", "no pod is wanted");
}

#[tokio::test]
async fn what_the_data_checks_found_is_told_of_the_pod_that_runs_and_of_the_one_that_failed() {
    let counts = json!({
        "rows": 100, "train": 70, "validation": 20, "test": 10, "labels": 3, "largestLabel": 40, "smallestLabel": 16,
        "truncated": 3, "nearDuplicates": [
            {"set": "test", "of": "train", "rows": 4, "identical": 1},
            {"set": "test", "of": "validation", "rows": 2, "identical": 0},
        ]
    });
    let ip = Ipv4Addr::new(127, 77, 1, 1);
    serve(ip, &progress(&json!({"dataset": counts, "precision": "BFloat16"}))).await;
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let failure = Failure::new(
        FailureReason::DatasetCheckFailed,
        "dataset.limits.maxNearDuplicates is 3, but 4 …",
    );
    let mut failed = ended_with(&attempt, 1, Outcome::Failed(failure.clone()));
    let message = TerminationMessage {
        dataset: serde_json::from_value(counts).unwrap(),
        ..TerminationMessage::new(Outcome::Failed(failure))
    };
    let statuses = failed.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
    let ended = statuses[0].state.as_mut().unwrap().terminated.as_mut().unwrap();
    ended.message = Some(message.to_json());
    for (pod, phase) in [(running_at(&attempt, ip), "Running"), (failed, "Failed")] {
        let (client, scenario) = Scenario::start(vec![
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([attempt.clone()]);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(job.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[0], phase).0, "True");
        let told = &calls[0].body["status"]["dataset"];
        let precision = (phase == "Running").then_some("BFloat16");
        assert_eq!(calls[0].body["status"]["precision"].as_str(), precision, "{phase}");
        assert_eq!(
            (&told["nearDuplicates"], &told["truncatedPercent"]),
            (&json!(4), &json!("3.0")),
            "{told:#}"
        );
        assert_eq!((&told["imbalanceRatio"], &told["train"]), (&json!("2.5"), &json!(70)));
        assert_eq!(
            told["nearDuplicatesBySets"],
            json!([
                {"set": "test", "of": "train", "rows": 4, "identical": 1},
                {"set": "test", "of": "validation", "rows": 2, "identical": 0},
            ])
        );
    }
}

/// One evaluation as a pod tells it.
fn evaluated(epoch: u64) -> Value {
    json!({"epoch": epoch, "step": 50 * epoch, "trainLoss": 0.512_345, "validationLoss": 0.423_456, "accuracy": 0.9,
        "macroF1": 0.876_543, "time": 1_767_225_600})
}

#[tokio::test]
async fn evaluations_and_the_trouble_of_tracking_are_told_and_kept_over_attempts() {
    let ip = Ipv4Addr::new(127, 77, 1, 2);
    // More than there may be, one twice, one of a number that no decimal of the schema holds.
    let mut told: Vec<Value> = (1..=25).map(evaluated).collect();
    told.push(evaluated(25));
    told[24]["validationLoss"] = json!(1e12);
    told[25]["validationLoss"] = json!(1e12);
    let tracking = json!({
        "tensorBoard": {"uri": "s3://watch/intent", "droppedPoints": 0},
        "mlflow": {"uri": "http://mlflow", "droppedPoints": 7, "problem": format!("away {}", "\u{e9}".repeat(5000))}
    });
    serve(ip, &progress(&json!({"evaluations": told, "tracking": tracking}))).await;
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([running_at(&attempt, ip)]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let status = &calls[0].body["status"];
    let evaluations = status["evaluations"].as_array().unwrap();
    let epochs: Vec<i64> = evaluations.iter().map(|e| e["epoch"].as_i64().unwrap()).collect();
    assert_eq!(epochs, (6..=25).collect::<Vec<_>>());
    assert_eq!(
        evaluations[0],
        json!({"epoch": 6, "step": 300, "trainLoss": "0.5123", "validationLoss": "0.4235", "accuracy": "0.9000",
            "macroF1": "0.8765", "time": "2026-01-01T00:00:00Z"})
    );
    assert!(evaluations[19].get("validationLoss").is_none());
    assert_eq!(status["tracking"]["tensorBoard"], json!({"uri": "s3://watch/intent"}));
    assert!(status["tracking"]["mlflow"]["problem"].as_str().unwrap().len() <= 1200);
    assert!(status.to_string().len() < 32 * 1024, "{}", status.to_string().len());
    assert_eq!(
        (&calls[2].body["reason"], &calls[2].body["type"]),
        (&json!("TrackingFailed"), &json!("Warning"))
    );

    // A pod that ended tells the rest with its last words; a new one that has read nothing yet takes nothing away.
    let kept = json!({"attempt": 1, "evaluations": [
        {"epoch": 1, "step": 50, "accuracy": "0.5000"}, {"epoch": 2, "step": 100, "accuracy": "0.6000"}]});
    let job = training_job(&json!({"status": kept}));
    let message = TerminationMessage {
        evaluations: serde_json::from_value(json!([evaluated(1), evaluated(2), evaluated(3)])).unwrap(),
        ..TerminationMessage::new(Outcome::Failed(Failure::new(FailureReason::DatasetEmpty, "no rows")))
    };
    let pod = pod_of(
        &attempt,
        "trainer",
        "Failed",
        &json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:09:00Z", "message": message.to_json()}}),
    );
    let ip = Ipv4Addr::new(127, 77, 1, 3);
    serve(ip, &progress(&json!({}))).await;
    for (pod, epochs) in [(pod, 3), (running_at(&attempt, ip), 2)] {
        let (client, scenario) = Scenario::start(vec![
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        let context = self::context(client, |c| {
            c.caches.jobs = Cache::of([attempt.clone()]);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(job.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        let told = calls[0].body["status"]["evaluations"].as_array().unwrap();
        assert_eq!(told.len(), epochs, "{told:#?}");
    }
}

/// Credentials come from the Secret, by reference alone; those of the storage win.
#[test]
fn mlflow_gets_its_credentials_by_reference() {
    let job = training_job(&json!({"spec": {
        "storage": {"secretRef": {"name": "s3"}},
        "tracking": {"mlflow": {"uri": "https://mlflow.example.com", "secretRef": {"name": "mlflow"}}}
    }}));
    let built = build::job::job(&job, 1, 0, "a100", &[], NamedVersions::default(), &Settings::example()).unwrap();
    let spec = built.spec.unwrap().template.spec.unwrap();
    let from = spec.containers[0].env_from.as_ref().unwrap();
    let names: Vec<&str> = from
        .iter()
        .map(|f| f.secret_ref.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(names, ["mlflow", "s3"]);
    let config = spec.containers[0].env.as_ref().unwrap()[0].value.clone().unwrap();
    let config: flywheel_contract::trainer::TrainerConfig = serde_json::from_str(&config).unwrap();
    assert_eq!(config.tracking, job.spec.tracking);
    assert_eq!(config.tensor_board_uri(), None);
}

#[tokio::test]
async fn a_failure_of_the_infrastructure_starts_the_next_attempt_with_its_count() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let failure = Failure::new(FailureReason::StorageUnavailable, "no answer");
    let pod = ended_with(&attempt, 1, Outcome::Failed(failure));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(calls[0].body["metadata"]["name"], "intent-train-2");
    assert_eq!(
        calls[0].body["metadata"]["labels"]["flywheel.dev/counted-restarts"],
        "1"
    );
    assert_eq!(condition(&calls[1], "Restarting"), ("True", "StorageUnavailable"));
    assert_eq!(calls[1].body["status"]["restarts"], 1);
    assert_eq!(calls[1].body["status"]["countedRestarts"], 1);
}

#[tokio::test]
async fn deleted_jobs_take_no_restart_back_and_a_raised_budget_goes_on_from_the_status() {
    let failed = json!([{"type": "Failed", "status": "True", "reason": "MaxRestartsExceeded", "message": "m",
        "lastTransitionTime": "2026-01-01T00:05:00Z"}]);
    let progress = |step: &str, checkpoint: u64| json!({"step": step, "phase": "Training", "checkpointStep": checkpoint, "resumedFromStep": 40});
    let table = [
        ("deleted", json!({"status": {"attempt": 3, "countedRestarts": 2}}), "2"),
        (
            "deleted after a newer checkpoint",
            json!({"status": {"attempt": 3, "countedRestarts": 2, "progress": progress("90/800", 80)}}),
            "0",
        ),
        (
            "deleted before one",
            json!({"status": {"attempt": 3, "countedRestarts": 2, "progress": progress("70/800", 40)}}),
            "2",
        ),
        // Only the checkpoint that the next attempt begins with.
        (
            "deleted while it starts",
            json!({"status": {"attempt": 3, "countedRestarts": 2, "progress": {"checkpointStep": 80}}}),
            "2",
        ),
        (
            "raised",
            json!({"spec": {"recovery": {"maxRestarts": 4}}, "status": {"attempt": 3, "countedRestarts": 3, "conditions": failed}}),
            "4",
        ),
    ];
    for (case, over, counted) in table {
        let job = training_job(&over);
        let mut steps = vec![
            Step::accept("POST", JOBS),
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ];
        if case != "raised" {
            steps.insert(0, Step::get_nothing(JOB_1.replace("-1", "-3")));
        }
        let (client, scenario) = Scenario::start(steps);
        reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
        let calls = scenario.finish().await;
        let [.., made, status, _] = calls.as_slice() else {
            panic!("{case}: {calls:?}")
        };
        let metadata = &made.body["metadata"];
        assert_eq!(metadata["name"], "intent-train-4", "{case}");
        assert_eq!(metadata["labels"]["flywheel.dev/counted-restarts"], counted, "{case}");
        let status = &status.body["status"];
        assert_eq!(
            (
                &status["attempt"],
                &status["restarts"],
                status["countedRestarts"].to_string().as_str()
            ),
            (&json!(4), &json!(3), counted),
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_deleted_jobs_pod_is_told_to_end_and_waited_for_before_the_next_attempt() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let gone = stored_attempt(&job, 1);
    let runs = pod_of(&gone, "trainer", "Running", &json!({"running": {}}));
    let told = |deadline: &str| {
        let mut pod = runs.clone();
        pod.metadata.deletion_timestamp = serde_json::from_value(json!(deadline)).unwrap();
        pod.metadata.deletion_grace_period_seconds = Some(30);
        pod
    };
    let mut orphan = runs.clone();
    orphan.metadata.owner_references = None;
    let mut of_one_before = runs.clone();
    of_one_before.metadata.creation_timestamp = serde_json::from_value(json!("2025-12-31T23:59:59Z")).unwrap();
    let pod_path = format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-0-x");
    let table = [
        ("not told to end yet", runs.clone(), true, false),
        ("it saves its state", told("2026-01-01T00:10:20Z"), false, false),
        ("its grace is over", told("2026-01-01T00:10:00Z"), false, true),
        ("an orphan runs on, fenced", orphan, false, true),
        ("of an earlier job of that name", of_one_before, false, true),
    ];
    for (case, pod, deletes, starts) in table {
        let mut steps = vec![Step::get_nothing(JOB_1)];
        if starts {
            steps.push(Step::accept("POST", JOBS));
        }
        if deletes {
            steps.push(Step::new("DELETE", &pod_path, |_| {
                (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
            }));
        }
        steps.extend([Step::accept_status(STATUS, job_value(&job)), Step::event(NAMESPACE)]);
        let (client, scenario) = Scenario::start(steps);
        let context = context(client, |c| c.caches.pods = Cache::of([pod]));
        let again = reconcile(Arc::new(job.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        if deletes {
            assert_eq!(calls[1].body["preconditions"]["uid"], "pod-uid", "{case}");
        }
        if !starts {
            assert_eq!(again, Duration::from_secs(1), "{case}");
        }
        let status = &calls[calls.len() - 2];
        assert_eq!(condition(status, "Restarting"), ("True", "PodLost"), "{case}");
        let attempt = if starts { 2 } else { 1 };
        assert_eq!(status.body["status"]["attempt"], attempt, "{case}");
    }

    // A stranger's Job has the name by now; its pods are its own.
    let mut stranger = serde_json::to_value(&gone).unwrap();
    stranger["metadata"]["ownerReferences"] = json!([]);
    let (client, scenario) = Scenario::start(vec![
        Step::get(JOB_1, stranger),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| c.caches.pods = Cache::of([runs]));
    reconcile(Arc::new(job), context).await.unwrap();
    scenario.finish().await;
}

#[tokio::test]
async fn suspending_changes_one_field_of_exactly_that_job() {
    let job = training_job(&json!({"spec": {"suspend": true}, "status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let pod = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("PATCH", JOB_1),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(
        calls[0].body,
        json!({"metadata": {"uid": "job-1-uid"}, "spec": {"suspend": true}})
    );
    assert_eq!(condition(&calls[1], "Suspended"), ("True", "Suspended"));
    assert_eq!(condition(&calls[1], "Ready"), ("True", "Suspended"));
}

/// Of the progress of a job that is suspended before its first step nothing is left, and an object without fields would be
/// refused: server-side apply makes it null.
#[tokio::test]
async fn a_job_suspended_before_its_first_step_has_no_progress() {
    let told = json!({"attempt": 1, "progress": {"phase": "Training"}});
    let job = training_job(&json!({"spec": {"suspend": true}, "status": told}));
    let mut attempt = stored_attempt(&job, 1);
    attempt.spec.as_mut().unwrap().suspend = Some(true);
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| c.caches.jobs = Cache::of([attempt]));
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Suspended"), ("True", "Suspended"));
    assert_eq!(calls[0].body["status"].get("progress"), None, "{:#}", calls[0].body);
}

#[tokio::test]
async fn a_pod_that_hangs_is_given_up_in_this_order_and_the_next_attempt_counts() {
    let ip = Ipv4Addr::new(127, 77, 0, 1);
    serve(
        ip,
        &progress(&json!({"heartbeatSeconds": 31.0, "checkpoint": {"ageSeconds": null}})),
    )
    .await;
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let pod = running_at(&attempt, ip);
    let (client, scenario) = Scenario::start(giving_up(&job, &pod));
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    });
    let again = reconcile(Arc::new(job.clone()), context).await.unwrap();
    assert!(again <= Duration::from_secs(5), "{again:?}");
    let calls = scenario.finish().await;
    assert_eq!(calls[1].body["metadata"]["uid"], "job-1-uid");
    let annotations = calls[1].body["metadata"]["annotations"].clone();
    let verdict: Value = serde_json::from_str(annotations[ANNOTATION_GIVEN_UP].as_str().unwrap()).unwrap();
    assert_eq!(verdict["cause"], "Hung");
    assert_eq!(
        verdict["position"],
        json!({"step": 120, "resumedFromStep": 0, "checkpointStep": 0, "headAttempt": 1})
    );
    assert_eq!(calls[2].body["preconditions"]["uid"], "pod-uid");
    assert_eq!(condition(&calls[3], "Restarting"), ("True", "Hung"));
    assert_eq!(calls[4].body["reason"], "Hung");
    assert_eq!(calls[4].body["type"], "Warning");

    // The same job as its next pass finds it, five seconds later: the pod is going.
    let mut given_up = attempt;
    given_up.metadata.annotations = serde_json::from_value(annotations).unwrap();
    let mut going = pod;
    going.metadata.deletion_timestamp = given_up.metadata.creation_timestamp.clone();
    let job = training_job(&json!({"status": calls[3].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let mut later = Context::test(client, "2026-01-01T00:10:05Z".parse().unwrap());
    later.caches.network_policies = Cache::of([stored_policy()]);
    later.caches.jobs = Cache::of([given_up]);
    later.caches.pods = Cache::of([going]);
    reconcile(Arc::new(job), Arc::new(later)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(calls[0].body["metadata"]["name"], "intent-train-2");
    assert_eq!(
        calls[0].body["metadata"]["labels"]["flywheel.dev/counted-restarts"],
        "1"
    );
}

#[tokio::test]
async fn a_pod_that_has_just_ended_is_not_given_up() {
    let ip = Ipv4Addr::new(127, 77, 0, 2);
    serve(ip, &progress(&json!({"heartbeatSeconds": 31.0}))).await;
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let pod = running_at(&attempt, ip);
    let live = ended_with(&attempt, 0, Outcome::Trained(trained()));
    let (client, scenario) = Scenario::start(vec![
        Step::get(
            format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-0-x"),
            serde_json::to_value(&live).unwrap(),
        ),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[1], "Running"), ("True", "Running"));
}

#[tokio::test]
async fn a_pod_on_a_lost_node_is_followed_without_waiting_for_it() {
    // It has no address, so nobody reaches it, and the control plane has lost its node.
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let mut pod = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
        {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}
    ]))
    .unwrap();
    let (client, scenario) = Scenario::start(giving_up(&job, &pod));
    let context = context(client, |c| {
        let before = now() - jiff::SignedDuration::from_secs(15);
        c.progress.add("job-uid", 1, "pod-uid", Look::Unreachable, before);
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert!(calls[1].body.to_string().contains("NodeLost"), "{:#}", calls[1].body);
    assert_eq!(condition(&calls[3], "Restarting"), ("True", "PodLost"));
}

/// The pod with what the kubelet says of the health of its two GPUs.
fn with_gpus(mut pod: Pod, health: [&str; 2]) -> Pod {
    let statuses = pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
    statuses[0].allocated_resources_status = serde_json::from_value(json!([{"name": "nvidia.com/gpu", "resources": [
        {"resourceID": "GPU-5d1f", "health": health[0]}, {"resourceID": "GPU-77ab", "health": health[1]}
    ]}]))
    .unwrap();
    pod
}

#[tokio::test]
async fn a_pod_whose_gpu_breaks_is_given_up_though_it_goes_on_and_costs_nothing() {
    let ip = Ipv4Addr::new(127, 77, 0, 6);
    serve(
        ip,
        &progress(&json!({"resumedFromStep": 100, "checkpoint": {"ageSeconds": null}})),
    )
    .await;
    let job = training_job(&json!({"spec": {"recovery": {"maxRestarts": 0}}, "status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let pod = with_gpus(running_at(&attempt, ip), ["Healthy", "Unhealthy"]);
    let (client, scenario) = Scenario::start(giving_up(&job, &pod));
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    });
    reconcile(Arc::new(job.clone()), context).await.unwrap();
    let calls = scenario.finish().await;
    let annotations = calls[1].body["metadata"]["annotations"].clone();
    let verdict: Value = serde_json::from_str(annotations[ANNOTATION_GIVEN_UP].as_str().unwrap()).unwrap();
    assert_eq!(
        (&verdict["cause"], &verdict["position"]["step"]),
        (&json!("GpuFault"), &json!(120))
    );
    assert_eq!(calls[2].body["preconditions"]["uid"], "pod-uid");
    assert_eq!(condition(&calls[3], "Restarting"), ("True", "GpuFault"));
    assert_eq!(calls[3].body["status"]["countedRestarts"], 0);
    let note = calls[4].body["note"].as_str().unwrap();
    assert!(
        note.contains("the GPU GPU-77ab as unhealthy") && note.contains("does not count"),
        "{note}"
    );

    // Its next pass.
    let mut given_up = attempt;
    given_up.metadata.annotations = serde_json::from_value(annotations).unwrap();
    let job = training_job(&json!({"spec": {"recovery": {"maxRestarts": 0}}, "status": calls[3].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let context = self::context(client, |c| c.caches.jobs = Cache::of([given_up]));
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(calls[0].body["metadata"]["name"], "intent-train-2");
    assert_eq!(
        calls[0].body["metadata"]["labels"]["flywheel.dev/counted-restarts"],
        "0"
    );
}

#[tokio::test]
async fn a_gpu_that_is_well_again_or_not_known_ends_nothing() {
    for (cached, live) in [("Unhealthy", Some("Healthy")), ("Unknown", None)] {
        let job = training_job(&json!({"status": {"attempt": 1}}));
        let attempt = stored_attempt(&job, 1);
        // It has no address, so it is not asked.
        let pod = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
        let mut steps = vec![Step::accept_status(STATUS, job_value(&job)), Step::event(NAMESPACE)];
        if let Some(live) = live {
            let live = with_gpus(pod.clone(), ["Healthy", live]);
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-0-x");
            steps.insert(0, Step::get(path, serde_json::to_value(live).unwrap()));
        }
        let (client, scenario) = Scenario::start(steps);
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([attempt]);
            c.caches.pods = Cache::of([with_gpus(pod, ["Healthy", cached])]);
        });
        reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        let status = &calls[calls.len() - 2];
        assert_eq!(condition(status, "Running"), ("True", "Running"), "{cached}");
    }
}

#[tokio::test]
async fn a_broken_gpu_of_another_pod_ends_the_attempt_as_well() {
    let job = of_two_nodes(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let pod = || pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
    let mut second = nth(1, with_gpus(pod(), ["Unhealthy", "Healthy"]));
    second.spec.as_mut().unwrap().node_name = Some("n-1".to_owned());
    let deleted = |index| {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-{index}-x");
        Step::new("DELETE", path, |_| {
            (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
        })
    };
    let (client, scenario) = Scenario::start(vec![
        Step::get(
            format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-1-x"),
            serde_json::to_value(&second).unwrap(),
        ),
        Step::accept("PATCH", JOB_1),
        deleted(0),
        deleted(1),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.pods = Cache::of([nth(0, pod()), second]);
        c.caches.jobs = Cache::of([attempt.clone()]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let note = calls[5].body["note"].as_str().unwrap();
    assert!(
        note.contains("pod 1: its kubelet reports the GPU GPU-5d1f as unhealthy"),
        "{note}"
    );
    let incident = &calls[4].body["status"]["recovery"]["incidents"][0];
    assert_eq!(incident["node"], "n-1", "{incident}");
}

/// Most pods run within seconds; that they are starting would be a write and an event more for each job.
#[tokio::test]
async fn that_pods_are_starting_is_told_once_it_lasts() {
    // The last is a clock that went back.
    for (waited, told) in [(0, false), (4, false), (5, true), (-600, true)] {
        let since = now() - jiff::SignedDuration::from_secs(waited);
        let ready = json!({"type": "Ready", "status": "False", "reason": "Pending", "message": "m",
            "lastTransitionTime": since.to_string()});
        let job = training_job(&json!({"status": {"attempt": 1, "state": "Pending", "conditions": [ready]}}));
        let attempt = stored_attempt(&job, 1);
        let mut pod = pod_of(
            &attempt,
            "trainer",
            "Pending",
            &json!({"waiting": {"reason": "ContainerCreating"}}),
        );
        pod.spec.as_mut().unwrap().node_name = Some("n-0".to_owned());
        let steps = vec![Step::accept_status(STATUS, job_value(&job)), Step::event(NAMESPACE)];
        let (client, scenario) = Scenario::start(if told { steps } else { Vec::new() });
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([attempt]);
            c.caches.pods = Cache::of([pod]);
        });
        let again = reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        if told {
            assert_eq!(condition(&calls[0], "Ready"), ("False", "Starting"), "{waited}");
        } else {
            let left = u64::try_from(5 - waited).unwrap();
            assert!(again <= Duration::from_secs(left), "{waited}: {again:?}");
        }
    }
}

#[tokio::test]
async fn a_pod_on_a_node_whose_gpus_are_reported_as_broken_is_given_up() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let mut pod = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
    pod.spec.as_mut().unwrap().node_name = Some("n-0".to_owned());
    let (client, scenario) = Scenario::start(giving_up(&job, &pod));
    let node = |number: usize| {
        let status = if number == 0 { "True" } else { "False" };
        let conditions = json!([{"type": "GPUMissing", "status": status, "message": "7 of 8"}]);
        let node = json!({"metadata": {"name": format!("n-{number}")}, "status": {"conditions": conditions}});
        serde_json::from_value(node).unwrap()
    };
    let context = context(client, |c| {
        c.settings.gpu_faults.conditions = vec!["GPUMissing".to_owned()];
        c.caches.nodes = Some(Cache::of((0..4).map(node)));
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[3], "Restarting"), ("True", "GpuFault"));
    let note = calls[4].body["note"].as_str().unwrap();
    assert!(note.contains("its node has the condition GPUMissing: 7 of 8"), "{note}");
}

#[tokio::test]
async fn checkpoints_and_where_an_attempt_began_are_told_at_once_and_the_rest_once_a_minute() {
    let ip = Ipv4Addr::new(127, 77, 0, 3);
    let first = progress(&json!({"attempt": 2, "resumedFromStep": 80}));
    serve(ip, &first).await;
    let bare = training_job(&json!({"status": {"attempt": 2}}));
    let attempt = stored_attempt(&bare, 2);
    let pod = running_at(&attempt, ip);
    let fill = |c: &mut Context| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    };
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&bare)),
        Step::event(NAMESPACE),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(bare), context(client, fill)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "CheckpointHealthy"), ("True", "AsExpected"));
    let told = &calls[0].body["status"]["progress"];
    assert_eq!(
        (&told["checkpointStep"], &told["resumedFromStep"]),
        (&json!(100), &json!(80))
    );
    assert_eq!(calls[0].body["status"]["nodes"], "1/1");
    assert_eq!(calls[2].body["reason"], "Resumed");
    let note = calls[2].body["note"].as_str().unwrap();
    assert_eq!(note, "attempt 2 goes on from the checkpoint of step 80");

    // Steps go on, and a checkpoint fails: within the minute only the second is worth a write.
    for (digit, over, writes) in [
        (4, json!({"step": 130}), false),
        (
            5,
            json!({"step": 140, "checkpoint": {"failures": 1, "problem": "no space"}}),
            true,
        ),
    ] {
        let ip = Ipv4Addr::new(127, 77, 0, digit);
        serve(ip, &flywheel_testkit::objects::merged(first.clone(), &over)).await;
        let pod = running_at(&attempt, ip);
        let job = training_job(&json!({"status": calls[0].body["status"]}));
        let steps = if writes {
            vec![Step::accept_status(STATUS, job_value(&job)), Step::event(NAMESPACE)]
        } else {
            vec![]
        };
        let (client, scenario) = Scenario::start(steps);
        let context = context(client, |c| {
            c.progress.due("job-uid", false, now());
            fill(c);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        if let [status, event] = calls.as_slice() {
            assert_eq!(condition(status, "CheckpointHealthy"), ("False", "CheckpointFailed"));
            assert_eq!(condition(status, "Ready"), ("True", "Running"), "the training goes on");
            assert_eq!(status.body["status"]["progress"]["step"], "140/800");
            assert_eq!(event.body["reason"], "CheckpointFailed");
        }
    }
}

#[tokio::test]
async fn an_attempt_that_made_progress_is_followed_at_once_and_the_count_begins_anew() {
    let job = training_job(&json!({"status": {"attempt": 3, "progress": {"step": "90/800", "checkpointStep": 40}}}));
    let mut attempt = stored_attempt(&job, 3);
    let labels = attempt.metadata.labels.as_mut().unwrap();
    labels.insert("flywheel.dev/counted-restarts".to_owned(), "3".to_owned());
    let failure = Failure::new(FailureReason::StorageUnavailable, "no answer");
    let position = Position {
        step: 90,
        resumed_from_step: 40,
        checkpoint_step: 80,
        head_attempt: 3,
    };
    let told = ended_at(&attempt, 1, Outcome::Failed(failure), Some(position));
    // One that said nothing was heard shortly before.
    let silent = pod_of(
        &attempt,
        "trainer",
        "Failed",
        &json!({"terminated": {"exitCode": 139, "finishedAt": "2026-01-01T00:09:00Z"}}),
    );
    for (pod, reason) in [(told, "StorageUnavailable"), (silent, "PodFailed")] {
        let (client, scenario) = Scenario::start(vec![
            Step::accept("POST", JOBS),
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        let context = context(client, |c| {
            let heard = progress(&json!({"attempt": 3, "step": 90, "resumedFromStep": 40, "checkpoint": {"step": 80}}));
            let look = Look::Answered(Box::new(serde_json::from_value(heard).unwrap()));
            c.progress.add("job-uid", 3, "pod-uid", look, now());
            c.caches.jobs = Cache::of([attempt.clone()]);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(job.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(calls[0].body["metadata"]["name"], "intent-train-4");
        assert_eq!(
            calls[0].body["metadata"]["labels"]["flywheel.dev/counted-restarts"],
            "0"
        );
        assert_eq!(condition(&calls[1], "Restarting"), ("True", reason));
        let told = &calls[1].body["status"]["progress"];
        assert_eq!(*told, json!({"checkpointStep": 80}), "what the next one begins with");
    }
}

#[tokio::test]
async fn an_attempt_that_was_fenced_is_followed_by_one_beyond_the_head() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let failure = Failure::new(FailureReason::Fenced, "attempt 7 has taken the checkpoints over");
    let position = Position {
        head_attempt: 7,
        ..Position::default()
    };
    let pod = ended_at(&attempt, 1, Outcome::Failed(failure), Some(position));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(calls[0].body["metadata"]["name"], "intent-train-8");
    assert_eq!(
        calls[0].body["metadata"]["labels"]["flywheel.dev/counted-restarts"],
        "0"
    );
    assert_eq!(calls[1].body["status"]["attempt"], 8);
}

#[tokio::test]
async fn a_resumed_attempt_goes_on_under_its_number_whatever_its_old_pod_says() {
    let job = training_job(&json!({"status": {"attempt": 1, "progress": {"step": "90/800", "checkpointStep": 90}}}));
    let mut attempt = stored_attempt(&job, 1);
    // The operator has resumed it; the Job controller has not seen that yet, and the pod is on its way out.
    attempt.status = serde_json::from_value(json!({"conditions": [{"type": "Suspended", "status": "True"}]})).unwrap();
    let failure = Failure::new(FailureReason::Interrupted, "told to end at step 90");
    let mut old = ended_with(&attempt, 1, Outcome::Failed(failure));
    old.metadata.deletion_timestamp = old.metadata.creation_timestamp.clone();
    let (client, scenario) = Scenario::start(vec![
        Step::list("/api/v1/namespaces/team/events", "Event", "v1", vec![]),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([old]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[1], "Ready"), ("False", "Pending"));
    assert_eq!(calls[1].body["status"]["attempt"], 1);
    assert_eq!(calls[1].body["status"]["progress"], json!({"checkpointStep": 90}));
}

#[tokio::test]
async fn a_pod_that_is_drained_may_save_its_state_first() {
    let job = training_job(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let mut pod = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
    let until: Pod = object(json!({"metadata": {
        "deletionTimestamp": "2026-01-01T00:10:20Z", "deletionGracePeriodSeconds": 30
    }}));
    pod.metadata.deletion_timestamp = until.metadata.deletion_timestamp;
    pod.metadata.deletion_grace_period_seconds = until.metadata.deletion_grace_period_seconds;
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let fill = |c: &mut Context| {
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([pod.clone()]);
    };
    reconcile(Arc::new(job.clone()), context(client, fill)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Restarting"), ("True", "PodLost"));

    // It says nothing more: the next attempt does not wait for ever.
    let job = training_job(&json!({"status": calls[0].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let mut later = Context::test(client, "2026-01-01T00:10:20Z".parse().unwrap());
    later.caches.network_policies = Cache::of([stored_policy()]);
    fill(&mut later);
    reconcile(Arc::new(job), Arc::new(later)).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(calls[0].body["metadata"]["name"], "intent-train-2");
}

#[tokio::test]
async fn an_unknown_class_is_named_and_nothing_is_made() {
    let job = training_job(&json!({"spec": {"trainer": {"accelerator": {"class": "h100"}}}}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Ready"), ("False", "UnknownAcceleratorClass"));
    assert!(calls[0].body.to_string().contains("it has a100, t4"));
}

#[tokio::test]
async fn a_configuration_that_no_pod_can_carry_is_invalid() {
    let sources: Vec<Value> = (0..100)
        .map(|i| json!({"uri": format!("s3://data/{}{i}.csv", "x".repeat(900))}))
        .collect();
    let job = training_job(&json!({"spec": {"dataset": {"sources": sources}}}));
    let error = build::job::job(&job, 1, 0, "a100", &[], NamedVersions::default(), &Settings::example()).unwrap_err();
    let (reason, message) = error.problem().unwrap();
    assert_eq!(reason, "InvalidSpec");
    assert!(message.contains("65536"), "{message}");
}

/// The incumbent is read from the API server, since the cache may lag behind; what is missing is told before a pod is made.
#[tokio::test]
async fn the_incumbent_goes_to_the_pods_as_an_artifact_or_nothing_is_made() {
    let job = training_job(&json!({"spec": {"output": {"incumbent": "intent-v0"}}}));
    let path = format!("{VERSIONS}/intent-v0");
    let version = |model: &str| {
        json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": "intent-v0", "namespace": NAMESPACE},
            "spec": {"model": model, "version": 6, "artifact": {"uri": "s3://b/k", "digest": digest('c')}}})
    };
    for (found, words) in [
        (
            Step::get_nothing(&path),
            "ModelVersion intent-v0 does not exist. Apply it, or name a version",
        ),
        (
            Step::get(&path, version("other")),
            "is a version of model other, not of intent",
        ),
    ] {
        let steps = vec![
            found,
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ];
        let (client, scenario) = Scenario::start(steps);
        reconcile(Arc::new(job.clone()), context(client, |_| {})).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[1], "Stalled"), ("True", "IncumbentNotFound"));
        assert!(calls[1].body.to_string().contains(words), "{:#}", calls[1].body);
    }
    let (client, scenario) = Scenario::start(vec![
        Step::get(&path, version("intent")),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    let config = &calls[1].body["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"];
    let config: flywheel_contract::trainer::TrainerConfig = serde_json::from_str(config.as_str().unwrap()).unwrap();
    let incumbent = config.incumbent.unwrap();
    assert_eq!((incumbent.uri.as_str(), incumbent.digest.0), ("s3://b/k", digest('c')));
}

#[tokio::test]
async fn the_version_to_go_on_from_goes_to_the_pods_and_into_the_new_one() {
    let job = training_job(&json!({"spec": {"model": {"pretrained": null, "fromVersion": "intent-v0"}}}));
    let path = format!("{VERSIONS}/intent-v0");
    let steps = vec![
        Step::get_nothing(&path),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ];
    let (client, scenario) = Scenario::start(steps);
    reconcile(Arc::new(job.clone()), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[1], "Stalled"), ("True", "BaseVersionNotFound"));
    let version = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion",
        "metadata": {"name": "intent-v0", "namespace": NAMESPACE},
        "spec": {"model": "other", "version": 6, "artifact": {"uri": "s3://b/k", "digest": digest('c')}}});
    let (client, scenario) = Scenario::start(vec![
        Step::get(&path, version),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    reconcile(Arc::new(job.clone()), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    let config = &calls[1].body["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"];
    let config: flywheel_contract::trainer::TrainerConfig = serde_json::from_str(config.as_str().unwrap()).unwrap();
    assert_eq!((config.base.unwrap().digest.0, config.incumbent), (digest('c'), None));
    let made = build::model_version::model_version(&job, "intent-v1", 7, &trained());
    assert_eq!(made.spec.source.unwrap().base.as_deref(), Some("intent-v0"));
}

#[tokio::test]
async fn a_replica_that_does_not_lead_writes_nothing() {
    let (client, scenario) = Scenario::start(vec![]);
    let context = context(client, |c| c.lease = crate::lease::LeaseHandle::none());
    let error = reconcile(Arc::new(training_job(&json!({}))), context)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotLeading), "{error}");
    scenario.finish().await;
}

#[tokio::test]
async fn the_policy_of_a_namespace_without_jobs_is_swept_and_of_one_with_jobs_stays() {
    let mut old = stored_policy();
    old.metadata.creation_timestamp = object::<Job>(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}))
        .metadata
        .creation_timestamp;
    let (client, scenario) = Scenario::start(vec![Step::new("DELETE", POLICY, |_| {
        (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
    })]);
    let context = context(client, |c| c.caches.network_policies = Cache::of([old.clone()]));
    sweep(&context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(calls[0].body["preconditions"]["uid"], "policy-uid");

    let (client, scenario) = Scenario::start(vec![]);
    let context = self::context(client, |c| {
        c.caches.network_policies = Cache::of([old]);
        c.caches.training_jobs = Cache::of([training_job(&json!({}))]);
    });
    sweep(&context).await.unwrap();
    scenario.finish().await;
}

#[test]
fn golden_objects() {
    let job = training_job(&json!({"spec": {
        "dataset": {"sources": [{"uri": "s3://data/intent.csv"}], "textColumn": "cost in $"},
        "trainer": {"resources": {"limits": {"memory": "4Gi"}}},
        "storage": {"secretRef": {"name": "s3"}, "endpoint": "http://minio:9000"},
        "checkpoint": {"uri": "s3://checkpoints/intent", "intervalSeconds": 120, "keep": 5}
    }}));
    let avoids = build::job::job(
        &job,
        2,
        1,
        "a100",
        &["a100-7".to_owned()],
        NamedVersions::default(),
        &Settings::example(),
    )
    .unwrap();
    let affinity = avoids
        .spec
        .unwrap()
        .template
        .spec
        .unwrap()
        .affinity
        .unwrap()
        .node_affinity
        .unwrap();
    assert_eq!(
        serde_json::to_value(affinity.preferred_during_scheduling_ignored_during_execution).unwrap(),
        json!([{"weight": 100, "preference": {"matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": ["a100-7"]}]}}])
    );
    insta::assert_json_snapshot!(
        "job",
        build::job::job(&job, 2, 1, "a100", &[], NamedVersions::default(), &Settings::example()).unwrap()
    );
    let two_nodes = of_two_nodes(&json!({}));
    insta::assert_json_snapshot!(
        "job_of_two_nodes",
        build::job::job(
            &two_nodes,
            2,
            1,
            "a100",
            &[],
            NamedVersions::default(),
            &Settings::example()
        )
        .unwrap()
    );
    insta::assert_json_snapshot!("service", build::service::service(&two_nodes).unwrap());
    assert_eq!(
        build::service::service(&job).unwrap(),
        None,
        "one pod alone looks for nobody"
    );
    insta::assert_json_snapshot!(
        "network_policy",
        build::network_policy::network_policy(NAMESPACE, "flywheel-system")
    );
}

const SERVICE: &str = "/api/v1/namespaces/team/services/intent-train";

fn stored_service(job: &TrainingJob) -> k8s_openapi::api::core::v1::Service {
    let built = build::service::service(job).unwrap().unwrap();
    crate::kubeio::as_applied(&built, "service-object-uid").unwrap()
}

/// The environment variable with the configuration of a built Job.
fn world(job: &Value) -> Value {
    let text = &job["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"];
    serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap()["world"].clone()
}

#[tokio::test]
async fn several_nodes_have_a_service_before_their_job() {
    let job = of_two_nodes(&json!({}));
    let (client, scenario) = Scenario::start(vec![
        Step::get_nothing(SERVICE),
        Step::accept("PATCH", SERVICE),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    reconcile(Arc::new(job), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert!(
        calls[1].query.contains("fieldManager=flywheel-training"),
        "{}",
        calls[1].query
    );
    assert_eq!(calls[1].body["spec"]["clusterIP"], "None");
    let made = &calls[2].body;
    assert_eq!(
        (&made["spec"]["completions"], &made["spec"]["parallelism"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(
        world(made),
        json!({"nodes": 2, "processesPerNode": 2, "rendezvous": "intent-train-1-0.intent-train.team.svc"})
    );
    assert_eq!(calls[3].body["status"]["nodes"], "0/2");
}

#[tokio::test]
async fn a_later_attempt_finds_the_service_as_it_is() {
    let job = of_two_nodes(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let failure = || Outcome::Failed(Failure::new(FailureReason::StorageUnavailable, "no answer"));
    let pods = [0, 1].map(|index| nth(index, ended_with(&attempt, 1, failure())));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("PATCH", JOB_1),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.services = Cache::of([stored_service(&job)]);
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of(pods);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(
        world(&calls[1].body)["rendezvous"],
        "intent-train-2-0.intent-train.team.svc"
    );
    let text = calls[2].body.to_string();
    assert!(text.contains("attempt 1 failed: pod 0: no answer"), "{text}");
}

#[tokio::test]
async fn a_strangers_service_of_that_name_is_never_touched_and_nothing_is_started() {
    let job = of_two_nodes(&json!({}));
    let mut of_an_older_job = stored_service(&job);
    of_an_older_job.metadata.owner_references.as_mut().unwrap()[0].uid = "older-uid".to_owned();
    let mut of_nobody = stored_service(&job);
    of_nobody.metadata.owner_references = None;
    for stranger in [of_an_older_job, of_nobody] {
        let (client, scenario) = Scenario::start(vec![
            Step::get(SERVICE, serde_json::to_value(stranger).unwrap()),
            Step::accept_status(STATUS, job_value(&job)),
            Step::event(NAMESPACE),
        ]);
        reconcile(Arc::new(job.clone()), context(client, |_| {})).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[1], "Stalled"), ("True", "NameTaken"));
        assert!(
            calls[1].body.to_string().contains("Service intent-train"),
            "{}",
            calls[1].body
        );
    }
}

#[tokio::test]
async fn of_several_pods_that_run_the_first_is_asked() {
    let ip = Ipv4Addr::new(127, 77, 0, 21);
    serve(ip, &progress(&json!({}))).await;
    let job = of_two_nodes(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        // Nobody answers at the other's address.
        let second = running_at(&attempt, Ipv4Addr::new(127, 77, 0, 22));
        let pods = [nth(1, second), nth(0, running_at(&attempt, ip))];
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of(pods);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let status = &calls[0].body["status"];
    assert_eq!(
        (&status["nodes"], &status["progress"]["step"]),
        (&json!("2/2"), &json!("120/800"))
    );
    assert!(status.to_string().contains("all 2 pods run"), "{status:#}");
}

#[tokio::test]
async fn pods_that_wait_for_the_rest_are_counted_and_what_is_missing_is_told() {
    let job = of_two_nodes(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        let runs = pod_of(&attempt, "trainer", "Running", &json!({"running": {}}));
        let mut waits = pod_of(&attempt, "trainer", "Pending", &json!({}));
        waits.spec = None;
        waits.status = object::<Pod>(json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "message": "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) didn't match Pod's node affinity/selector."}]}}))
        .status;
        let node = object(
            json!({"metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "A100-SXM4-40GB"}},
            "status": {"allocatable": {"nvidia.com/gpu": "2"}}}),
        );
        c.caches.nodes = Some(Cache::of([node]));
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([nth(0, runs), nth(1, waits)]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Admitted"), ("False", "InsufficientGPU"));
    assert_eq!(calls[0].body["status"]["nodes"], "1/2");
    let text = calls[0].body.to_string();
    // Ten minutes old.
    for words in [
        "2 of 4 GPUs are missing, 2 on one node for each pod",
        "set spec.suspend of one of them",
    ] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}

/// A pod of this attempt for which there has been no GPU for these seconds.
fn without_room(attempt: &Job, seconds: i64) -> Pod {
    let mut pod = pod_of(attempt, "trainer", "Pending", &json!({}));
    let since = now() - jiff::SignedDuration::from_secs(seconds);
    pod.spec = None;
    pod.status = object::<Pod>(json!({"status": {"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "lastTransitionTime": since.to_string(),
        "message": "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) didn't match Pod's node affinity/selector."
    }]}}))
    .status;
    pod
}

/// A cluster with one node of the class a100, whose fallback is t4.
fn with_fallback(c: &mut Context, attempts: &[Job], pods: &[Pod]) {
    let mut settings = Settings::example();
    settings.accelerator_classes.get_mut("a100").unwrap().fallback = Some("t4".to_owned());
    c.settings = settings;
    let node = object(
        json!({"metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "A100-SXM4-40GB"}},
        "status": {"allocatable": {"nvidia.com/gpu": "1"}}}),
    );
    c.caches.nodes = Some(Cache::of([node]));
    c.caches.jobs = Cache::of(attempts.iter().cloned());
    c.caches.pods = Cache::of(pods.iter().cloned());
}

const PODS: &str = "/api/v1/namespaces/team/pods";
const JOB_2: &str = "/apis/batch/v1/namespaces/team/jobs/intent-train-2";

#[tokio::test]
async fn an_attempt_without_room_ends_before_one_of_the_fallback_class_begins() {
    // A node was lost before, and the second attempt finds no other one.
    let incident = json!({"cause": "NodeLost", "object": "intent-train-1", "message": "its node does not answer",
        "began": "2026-01-01T00:08:00Z", "detectSeconds": 20, "decideSeconds": 1});
    let job =
        training_job(&json!({"status": {"attempt": 2, "countedRestarts": 0, "recovery": {"incidents": [incident]}}}));
    let attempt = stored_attempt(&job, 2);
    let pod = without_room(&attempt, 60);
    let pod_path = format!("{PODS}/intent-train-2-0-x");
    let deleted = |_: &Call| (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}));
    let (client, scenario) = Scenario::start(vec![
        Step::list(PODS, "Pod", "v1", vec![serde_json::to_value(&pod).unwrap()]),
        Step::accept("PATCH", JOB_2),
        Step::new("DELETE", &pod_path, deleted),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        with_fallback(c, std::slice::from_ref(&attempt), std::slice::from_ref(&pod))
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    assert!(
        calls[0]
            .query
            .contains("flywheel.dev%2Ftraining-job%3Dintent%2Cflywheel.dev%2Fattempt%3D2"),
        "{}",
        calls[0].query
    );
    let annotations = calls[1].body["metadata"]["annotations"].clone();
    let verdict: Value = serde_json::from_str(annotations[ANNOTATION_GIVEN_UP].as_str().unwrap()).unwrap();
    assert_eq!(verdict["cause"], json!({"NoRoom": {"turn": 1}}));
    assert_eq!(calls[2].body["preconditions"]["uid"], "pod-uid");
    assert_eq!(condition(&calls[3], "Restarting"), ("True", "FallbackClass"));
    let incidents = &calls[3].body["status"]["recovery"]["incidents"];
    assert_eq!(incidents.as_array().map(Vec::len), Some(1), "{incidents:#}");
    assert_eq!(incidents[0].get("recoverSeconds"), None, "it goes on: {incidents:#}");
    let note = calls[4].body["note"].as_str().unwrap();
    let words = "attempt 2 found no room in the accelerator class a100 for 60 s, and the fallback class t4 is next. A new attempt";
    assert!(note.starts_with(words), "{note}");

    // While the cache still shows its pod nothing begins; the pod is told to end, again.
    let mut given_up = attempt;
    given_up.metadata.annotations = serde_json::from_value(annotations).unwrap();
    let job = training_job(&json!({"status": calls[3].body["status"]}));
    let (client, scenario) = Scenario::start(vec![Step::new("DELETE", &pod_path, deleted)]);
    let context = self::context(client, |c| with_fallback(c, &[given_up.clone()], &[pod]));
    reconcile(Arc::new(job.clone()), context).await.unwrap();
    scenario.finish().await;

    // When it is gone the next attempt begins.
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&job)),
    ]);
    let context = self::context(client, |c| with_fallback(c, &[given_up.clone()], &[]));
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let labels = &calls[0].body["metadata"]["labels"];
    assert_eq!(
        (
            &labels[names::LABEL_ACCELERATOR_CLASS],
            &labels[names::LABEL_ATTEMPT],
            &labels[names::LABEL_COUNTED_RESTARTS]
        ),
        (&json!("t4"), &json!("3"), &json!("0"))
    );
    let affinity = calls[0].body["spec"]["template"]["spec"]["affinity"].to_string();
    assert!(
        affinity.contains("Tesla-T4") && !affinity.contains("A100"),
        "{affinity}"
    );

    // There it runs.
    let built = build::job::job(
        &training_job(&json!({})),
        3,
        0,
        "t4",
        &[],
        NamedVersions::default(),
        &Settings::example(),
    )
    .unwrap();
    let third = stored_job(&built, "job-3-uid");
    let job = training_job(&json!({"status": calls[1].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    // It has no address, so it is not asked.
    let runs = pod_of(&third, "trainer", "Running", &json!({"running": {}}));
    let context = self::context(client, |c| with_fallback(c, &[given_up, third], &[runs]));
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let text = calls[0].body["status"].to_string();
    assert!(text.contains("the pod runs, in the fallback class t4"), "{text}");
}

#[tokio::test]
async fn an_attempt_stays_where_there_may_be_room_or_nothing_is_to_be_ended() {
    let observe_only = json!({"spec": {"recovery": {"mode": "Observe"}}});
    // What the job says, for how long there has been no room, and whether the API server is asked about the pods.
    let table = [
        ("it waits for a moment", json!({}), 59, false),
        ("it is only observed", observe_only, 3600, false),
        ("the API server knows of a node", json!({}), 60, true),
    ];
    for (case, over, seconds, asked) in table {
        let job = training_job(&merged(json!({"status": {"attempt": 1}}), &over));
        let attempt = stored_attempt(&job, 1);
        let pod = without_room(&attempt, seconds);
        let mut steps = vec![Step::accept_status(STATUS, job_value(&job)), Step::event(NAMESPACE)];
        if asked {
            let placed = pod_of(&attempt, "trainer", "Pending", &json!({}));
            steps.insert(
                0,
                Step::list(PODS, "Pod", "v1", vec![serde_json::to_value(placed).unwrap()]),
            );
        }
        let (client, scenario) = Scenario::start(steps);
        let context = context(client, |c| with_fallback(c, &[attempt], &[pod]));
        reconcile(Arc::new(job), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(
            condition(&calls[usize::from(asked)], "Ready"),
            ("False", "InsufficientGPU"),
            "{case}"
        );
    }
}

#[tokio::test]
async fn when_a_pod_is_lost_the_others_save_their_state_and_the_next_attempt_follows() {
    let job = of_two_nodes(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let crashed = nth(
        1,
        pod_of(
            &attempt,
            "trainer",
            "Failed",
            &json!({"terminated": {"exitCode": 137, "finishedAt": "2026-01-01T00:09:59Z"}}),
        ),
    );
    let first = nth(0, pod_of(&attempt, "trainer", "Running", &json!({"running": {}})));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("PATCH", JOB_1),
        Step::new(
            "DELETE",
            format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-0-x"),
            |_| (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"})),
        ),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let fill = |c: &mut Context, first: Pod| {
        c.caches.services = Cache::of([stored_service(&job)]);
        c.caches.jobs = Cache::of([attempt.clone()]);
        c.caches.pods = Cache::of([first, crashed.clone()]);
    };
    let context = context(client, |c| fill(c, first));
    let again = reconcile(Arc::new(job.clone()), context).await.unwrap();
    assert!(again <= Duration::from_secs(1), "{again:?}");
    let calls = scenario.finish().await;
    let annotations = calls[0].body["metadata"]["annotations"].clone();
    let ended: Value = serde_json::from_str(annotations[ANNOTATION_ENDED].as_str().unwrap()).unwrap();
    assert_eq!(ended["toldBy"], json!({"index": 1, "telling": "Failed"}), "{ended:#}");
    assert_eq!(calls[1].body["preconditions"]["uid"], "pod-0-uid");
    assert_eq!(condition(&calls[2], "Restarting"), ("True", "PodFailed"));
    assert_eq!(calls[2].body["status"]["nodes"], "0/2");

    // It has saved its state, beyond that which the attempt began with.
    let position = Position {
        step: 90,
        resumed_from_step: 0,
        checkpoint_step: 90,
        head_attempt: 1,
    };
    let failure = Failure::new(FailureReason::PeerLost, "pod 1 does not answer");
    let saved = nth(0, ended_at(&attempt, 1, Outcome::Failed(failure), Some(position)));
    let next = of_two_nodes(&json!({"status": calls[2].body["status"]}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("PATCH", JOB_1),
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, job_value(&next)),
    ]);
    let mut later = Context::test(client, "2026-01-01T00:10:05Z".parse().unwrap());
    later.caches.network_policies = Cache::of([stored_policy()]);
    fill(&mut later, saved);
    let mut recorded = attempt.clone();
    recorded.metadata.annotations = serde_json::from_value(annotations).unwrap();
    later.caches.jobs = Cache::of([recorded]);
    reconcile(Arc::new(next), Arc::new(later)).await.unwrap();
    let calls = scenario.finish().await;
    let text = calls[0].body.to_string();
    assert!(
        text.contains("checkpointStep") && text.contains("exit code 137"),
        "{text}"
    );
    assert_eq!(calls[1].body["metadata"]["name"], "intent-train-2");
    assert_eq!(
        calls[1].body["metadata"]["labels"]["flywheel.dev/counted-restarts"],
        "0"
    );
    assert_eq!(calls[2].body["status"]["progress"], json!({"checkpointStep": 90}));
}

#[tokio::test]
async fn a_lost_node_under_another_pod_ends_the_attempt_where_the_first_stands_still() {
    let ip = Ipv4Addr::new(127, 77, 0, 23);
    serve(ip, &progress(&json!({"heartbeatSeconds": 11.0}))).await;
    let job = of_two_nodes(&json!({"status": {"attempt": 1}}));
    let attempt = stored_attempt(&job, 1);
    let first = nth(0, running_at(&attempt, ip));
    let mut second = nth(1, pod_of(&attempt, "trainer", "Running", &json!({"running": {}})));
    second.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
        {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}
    ]))
    .unwrap();
    let pod_path = |index: u32| format!("/api/v1/namespaces/{NAMESPACE}/pods/intent-train-1-{index}-x");
    let deleted = |index| {
        Step::new("DELETE", pod_path(index), |_| {
            (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
        })
    };
    let (client, scenario) = Scenario::start(vec![
        Step::get(pod_path(0), serde_json::to_value(&first).unwrap()),
        Step::accept("PATCH", JOB_1),
        deleted(0),
        deleted(1),
        Step::accept_status(STATUS, job_value(&job)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([attempt]);
        c.caches.pods = Cache::of([first, second]);
    });
    reconcile(Arc::new(job), context).await.unwrap();
    let calls = scenario.finish().await;
    let text = calls[1].body.to_string();
    assert!(
        text.contains("NodeLost") && text.contains("the node of pod 1"),
        "{text}"
    );
    assert_eq!(condition(&calls[4], "Restarting"), ("True", "PodLost"));
    assert_eq!(calls[4].body["status"]["nodes"], "0/2");
}
