//! The controller against a fake API server that allows exactly the calls of each scenario, and the objects it builds
//! against golden files.

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Metric;
use flywheel_contract::termination::{Outcome, TerminationMessage, Trained};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_testkit::objects::{NAMESPACE, digest, object, pod_of, stored_job, training_job};
use flywheel_testkit::{Call, Scenario, Step};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};

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
    let built = build::job::job(owner, attempt, 0, &Settings::example()).unwrap();
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
    }
}

fn ended_with(job: &Job, code: i32, outcome: Outcome) -> Pod {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    pod_of(
        job,
        "trainer",
        phase,
        &json!({"terminated": {
            "exitCode": code, "finishedAt": "2026-01-01T00:09:00Z",
            "message": TerminationMessage::new(outcome).to_json()
        }}),
    )
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
    let (client, scenario) = Scenario::start(vec![
        Step::list(VERSIONS, "ModelVersion", "flywheel.dev/v1alpha1", vec![older]),
        Step::accept("POST", VERSIONS),
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
    assert!(calls[0].query.contains("spec.model%3Dintent"), "{}", calls[0].query);
    assert!(
        !calls[0].query.contains("resourceVersion"),
        "the newest list: {}",
        calls[0].query
    );
    insta::assert_json_snapshot!("model_version", calls[1].body);
    assert_eq!(condition(&calls[2], "Complete"), ("True", "Trained"));
    assert_eq!(calls[2].body["status"]["result"]["modelVersion"], "intent-v1");
    assert_eq!(calls[2].body["status"]["progress"]["step"], "800/800");
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
    let error = build::job::job(&job, 1, 0, &Settings::example()).unwrap_err();
    let (reason, message) = error.problem().unwrap();
    assert_eq!(reason, "InvalidSpec");
    assert!(message.contains("65536"), "{message}");
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
        "storage": {"secretRef": {"name": "s3"}, "endpoint": "http://minio:9000"}
    }}));
    insta::assert_json_snapshot!("job", build::job::job(&job, 2, 1, &Settings::example()).unwrap());
    insta::assert_json_snapshot!(
        "network_policy",
        build::network_policy::network_policy(NAMESPACE, "flywheel-system")
    );
}
