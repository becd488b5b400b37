//! The controller against a fake API server that allows exactly the calls of each scenario.

use flywheel_api::names;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::ASSIGNMENT_FILE;
use flywheel_contract::termination::{Outcome, TerminationMessage, Verified};
use flywheel_testkit::objects::{
    CREATED, NAMESPACE, digest, inference_service, model_version, pod_of, stored_job, training_job,
};
use flywheel_testkit::{Call, Scenario, Step};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use serde_json::{Value, json};

use super::*;
use crate::cache::Cache;
use crate::settings::Settings;

const JOBS: &str = "/apis/batch/v1/namespaces/team/jobs";
const STATUS: &str = "/apis/flywheel.dev/v1alpha1/namespaces/team/modelversions/intent-v1/status";

fn context(client: Client, fill: impl FnOnce(&mut Context)) -> Arc<Context> {
    let mut context = Context::test(client, "2026-01-01T00:10:00Z".parse().unwrap());
    let policy = crate::training::build::network_policy::network_policy(NAMESPACE, "flywheel-system");
    context.caches.network_policies = Cache::of([crate::kubeio::as_applied(&policy, "policy-uid").unwrap()]);
    fill(&mut context);
    Arc::new(context)
}

fn ended_with(job: &Job, outcome: Outcome) -> k8s_openapi::api::core::v1::Pod {
    let message = TerminationMessage::new(outcome).to_json();
    let state = json!({"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:09:59Z", "message": message}});
    pod_of(job, names::VERIFIER, "Succeeded", &state)
}

fn condition<'a>(call: &'a Call, kind: &str) -> (&'a str, &'a str) {
    let found = call.body["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["type"] == kind))
        .unwrap_or_else(|| panic!("no condition {kind} in {:#}", call.body));
    (found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
}

fn value(version: &ModelVersion) -> Value {
    serde_json::to_value(version).unwrap()
}

#[tokio::test]
async fn a_new_version_is_verified_by_one_job() {
    let version = model_version(&json!({}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, value(&version)),
    ]);
    reconcile(Arc::new(version), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    insta::assert_json_snapshot!("verify_job", calls[0].body);
    assert_eq!(condition(&calls[1], "Verified"), ("Unknown", "Verifying"));
    assert_eq!(condition(&calls[1], "Reconciling"), ("True", "Verifying"));
}

#[tokio::test]
async fn a_verified_version_is_judged_by_its_gates_and_never_read_again() {
    for (min, promotable) in [("0.90", ("True", "GatesPassed")), ("0.95", ("False", "GatesFailed"))] {
        let version = model_version(&json!({"spec": {
            "metrics": [{"name": "test/accuracy", "value": "0.931"}], "gates": [{"metric": "test/accuracy", "min": min}]
        }}));
        let job = stored_job(&build::job(&version, 1, &Settings::example()).unwrap(), "verify-uid");
        let pod = ended_with(
            &job,
            Outcome::Verified(Verified {
                files: 7,
                bytes: 99,
                ..Verified::default()
            }),
        );
        let (client, scenario) = Scenario::start(vec![
            Step::accept_status(STATUS, value(&version)),
            Step::event(NAMESPACE),
        ]);
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([job]);
            c.caches.pods = Cache::of([pod]);
            c.caches.inference_services = Cache::of([inference_service(&json!({}))]);
        });
        reconcile(Arc::new(version.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[0], "Promotable"), promotable);
        assert_eq!(condition(&calls[0], "Ready"), ("True", "Verified"));
        assert_eq!(condition(&calls[0], "Served"), ("True", "Served"));
        assert_eq!(calls[0].body["status"]["services"], json!(["intent"]));
        assert_eq!(calls[0].body["status"]["metric"], "test/accuracy 0.93");

        // The Job is gone by its time to live; nothing is made anew, and nothing is written but what changed.
        let mut known = value(&version);
        known["status"] = calls[0].body["status"].clone();
        let known: ModelVersion = serde_json::from_value(known).unwrap();
        let (client, scenario) = Scenario::start(vec![]);
        let context = self::context(client, |c| {
            c.caches.inference_services = Cache::of([inference_service(&json!({}))]);
        });
        reconcile(Arc::new(known), context).await.unwrap();
        scenario.finish().await;
    }
}

#[tokio::test]
async fn a_verifying_pod_that_its_node_cannot_prepare_is_told() {
    let version = model_version(&json!({}));
    let job = stored_job(&build::job(&version, 1, &Settings::example()).unwrap(), "verify-uid");
    let creating = json!({"waiting": {"reason": "ContainerCreating"}});
    let mut pod = pod_of(&job, names::VERIFIER, "Pending", &creating);
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:09:00Z"},
        {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": "2026-01-01T00:09:00Z"},
    ]))
    .unwrap();
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, value(&version)),
        Step::event(NAMESPACE),
    ]);
    let context = context(client, |c| {
        c.caches.jobs = Cache::of([job]);
        c.caches.pods = Cache::of([pod]);
    });
    reconcile(Arc::new(version), context).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Verified"), ("Unknown", "PodNotPrepared"));
    assert_eq!(calls[0].body["status"]["state"], "Blocked");
}

#[tokio::test]
async fn a_wrong_digest_stalls_and_a_lost_storage_is_tried_again() {
    let version = model_version(&json!({}));
    let job = stored_job(&build::job(&version, 1, &Settings::example()).unwrap(), "verify-uid");
    let fill = |reason| {
        let pod = ended_with(&job, Outcome::Failed(Failure::new(reason, "words.")));
        let job = job.clone();
        move |c: &mut Context| {
            c.caches.jobs = Cache::of([job]);
            c.caches.pods = Cache::of([pod]);
            c.caches.inference_services = Cache::of([inference_service(&json!({}))]);
        }
    };
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, value(&version)),
        Step::event(NAMESPACE),
    ]);
    let context_1 = context(client, fill(FailureReason::DigestMismatch));
    reconcile(Arc::new(version.clone()), context_1).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Stalled"), ("True", "DigestMismatch"));
    assert_eq!(condition(&calls[0], "Verified"), ("False", "DigestMismatch"));
    // Nobody who waits for it gets it: it may be deleted, as the message advises.
    assert_eq!(condition(&calls[0], "Served"), ("False", "NotServed"));

    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, value(&version)),
        Step::event(NAMESPACE),
    ]);
    let context_2 = context(client, fill(FailureReason::StorageUnavailable));
    let again = reconcile(Arc::new(version), context_2).await.unwrap();
    assert_eq!(again, Duration::from_secs(4), "five seconds after its end");
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Reconciling"), ("True", "StorageUnavailable"));
    assert_eq!(condition(&calls[0], "Served"), ("True", "Served"));
}

#[tokio::test]
async fn what_is_tried_again_by_itself_is_blocked_and_not_stalled() {
    let version = model_version(&json!({}));
    let stored = |number| {
        let job = build::job(&version, number, &Settings::example()).unwrap();
        stored_job(&job, &format!("verify-{number}-uid"))
    };
    let (first, fifth) = (stored(1), stored(5));
    let pull = json!({"waiting": {"reason": "ImagePullBackOff"}});
    let no_image = pod_of(&first, names::VERIFIER, "Pending", &pull);
    let away = Outcome::Failed(Failure::new(FailureReason::StorageUnavailable, "words."));
    let failed = ended_with(&fifth, away);
    let table = [
        (first, no_image, "ImagePullFailed"),
        (fifth, failed, "StorageUnavailable"),
    ];
    for (job, pod, reason) in table {
        let (client, scenario) = Scenario::start(vec![
            Step::accept_status(STATUS, value(&version)),
            Step::event(NAMESPACE),
        ]);
        let context = context(client, |c| {
            c.caches.jobs = Cache::of([job]);
            c.caches.pods = Cache::of([pod]);
        });
        reconcile(Arc::new(version.clone()), context).await.unwrap();
        let calls = scenario.finish().await;
        assert_eq!(condition(&calls[0], "Ready"), ("False", reason));
        assert_eq!(condition(&calls[0], "Reconciling"), ("True", reason));
        assert!(!calls[0].body.to_string().contains("Stalled"), "{:#}", calls[0].body);
        assert_eq!(calls[0].body["status"]["state"], "Blocked");
        assert_eq!(calls[1].body["type"], "Warning");
    }

    // Only its user can help where nothing of it can be made.
    let path = format!("{JOBS}/intent-v1-verify");
    let stranger = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "intent-v1-verify", "namespace": NAMESPACE, "uid": "other"}});
    let (client, scenario) = Scenario::start(vec![
        Step::refuse("POST", JOBS, 409, "AlreadyExists", "already exists"),
        Step::get(path, stranger),
        Step::accept_status(STATUS, value(&version)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(version), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[2], "Stalled"), ("True", "NameTaken"));
    assert_eq!(calls[2].body["status"]["state"], "Stalled");
}

/// Status of `Served` of a version beside this InferenceService.
async fn served(version: &ModelVersion, service: &Value) -> String {
    let (client, scenario) = Scenario::start(vec![
        Step::accept("POST", JOBS),
        Step::accept_status(STATUS, value(version)),
    ]);
    let context = context(client, |c| {
        c.caches.inference_services = Cache::of([inference_service(service)])
    });
    reconcile(Arc::new(version.clone()), context).await.unwrap();
    let calls = scenario.finish().await;
    condition(&calls[1], "Served").0.to_owned()
}

#[tokio::test]
async fn a_service_of_another_model_serves_nothing_but_what_its_pods_answer_with() {
    let version = model_version(&json!({}));
    for (service, expected) in [
        (json!({"spec": {"model": "another"}}), "False"),
        (
            json!({"spec": {"model": "another", "modelVersion": "x"}, 
                "status": {"traffic": [{"modelVersion": version.name_any(), "pods": 1}, {"modelVersion": "x", "pods": 1}]}}),
            "True",
        ),
    ] {
        assert_eq!(served(&version, &service).await, expected, "{service}");
    }
}

#[tokio::test]
async fn a_service_whose_name_is_taken_keeps_no_version() {
    let version = model_version(&json!({}));
    let stalled = |reason: &str, replicas: i32| {
        json!({"status": {"replicas": replicas, "conditions": [{"type": "Stalled", "status": "True", "reason": reason,
            "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    for (case, service, expected) in [
        ("scaled to zero", json!({"spec": {"replicas": 0}}), "True"),
        ("to be corrected", stalled("InvalidSpec", 0), "True"),
        ("its name is taken", stalled("NameTaken", 0), "False"),
        ("its name was taken while it ran", stalled("NameTaken", 1), "True"),
    ] {
        assert_eq!(served(&version, &service).await, expected, "{case}");
    }
}

#[tokio::test]
async fn an_artifact_in_a_volume_is_not_looked_for_in_a_pod_that_has_none() {
    let version = model_version(&json!({"spec": {"artifact": {"uri": "file:///models/intent/attempt-1"}}}));
    let (client, scenario) = Scenario::start(vec![
        Step::accept_status(STATUS, value(&version)),
        Step::event(NAMESPACE),
    ]);
    reconcile(Arc::new(version), context(client, |_| {})).await.unwrap();
    let calls = scenario.finish().await;
    assert_eq!(condition(&calls[0], "Stalled"), ("True", "InvalidSpec"));
    // A service that has the volume may serve it.
    assert_eq!(condition(&calls[0], "Verified").0, "Unknown");
    let message = calls[1].body["note"].as_str().unwrap();
    for words in [
        "spec.artifact.uri is file:///models",
        "none of your volumes",
        "s3://",
        "spec.server.pod",
    ] {
        assert!(message.contains(words), "{words} is not in: {message}");
    }
}

/// A verified version with this number and these changes.
fn settled(name: &str, number: i64, over: &Value) -> ModelVersion {
    let met = |kind: &str, reason: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": "m", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let base = json!({
        "metadata": {"name": name, "uid": format!("{name}-uid")},
        "spec": {"version": number, "artifact": {"uri": format!("s3://models/intent/{name}")}},
        "status": {"conditions": [met("Verified", "Verified"), met("Promotable", "GatesPassed"), met("Ready", "Verified")]}
    });
    model_version(&flywheel_testkit::objects::merged(base, over))
}

/// What the operator asks for about a version that its retention lets go, beside a newer one and what `fill` puts there. Its own
/// status is written first.
async fn leaving(version: &ModelVersion, steps: Vec<Step>, fill: impl FnOnce(&mut Context)) -> Vec<Call> {
    let path = format!(
        "/apis/flywheel.dev/v1alpha1/namespaces/team/modelversions/{}/status",
        version.name_any()
    );
    let mut all = vec![Step::accept_status(path, value(version))];
    all.extend(steps);
    let (client, scenario) = Scenario::start(all);
    let newer = settled("intent-v2", 2, &json!({}));
    let context = context(client, |c| {
        c.caches.model_versions = Cache::of([version.clone(), newer]);
        fill(c);
    });
    reconcile(Arc::new(version.clone()), context).await.unwrap();
    scenario.finish().await
}

fn replaced() -> ModelVersion {
    settled("intent-v1", 1, &json!({"spec": {"retention": {"keepNewest": 1}}}))
}

#[tokio::test]
async fn a_version_that_was_replaced_goes_after_its_artifact() {
    let version = replaced();
    let calls = leaving(&version, vec![Step::accept("POST", JOBS)], |_| {}).await;
    insta::assert_json_snapshot!("prune_job", calls[1].body);

    let job = stored_job(&build::prune(&version, &Settings::example()).unwrap(), "prune-uid");
    let ended = |outcome: Outcome| {
        let message = TerminationMessage::new(outcome).to_json();
        let state = json!({"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:09:59Z", "message": message}});
        pod_of(&job, names::PRUNER, "Succeeded", &state)
    };
    let gone = || {
        Step::new(
            "DELETE",
            "/apis/flywheel.dev/v1alpha1/namespaces/team/modelversions/intent-v1",
            |_| (200, json!({"apiVersion": "v1", "kind": "Status", "status": "Success"})),
        )
    };
    let pod = ended(Outcome::Pruned(flywheel_contract::termination::Pruned { files: 8 }));
    let calls = leaving(&version, vec![gone(), Step::event(NAMESPACE)], |c| {
        c.caches.jobs = Cache::of([job.clone()]);
        c.caches.pods = Cache::of([pod]);
    })
    .await;
    assert_eq!(calls[1].body["preconditions"]["uid"], "intent-v1-uid");
    assert_eq!(calls[2].body["reason"], "Pruned");

    // The bucket refuses: the version stays.
    let pod = ended(Outcome::Failed(Failure::new(
        FailureReason::StorageForbidden,
        "no right to delete",
    )));
    let calls = leaving(&version, vec![Step::event(NAMESPACE)], |c| {
        c.caches.jobs = Cache::of([job.clone()]);
        c.caches.pods = Cache::of([pod]);
    })
    .await;
    assert_eq!(
        (&calls[1].body["reason"], &calls[1].body["type"]),
        (&json!("PruneFailed"), &json!("Warning"))
    );

    // Another version has the same artifact, in any namespace: it stays, and the object goes.
    let twin = settled(
        "twin",
        9,
        &json!({"metadata": {"namespace": "other"}, "spec": {"artifact": {"uri": "s3://models/intent/intent-v1"}}}),
    );
    let newer = settled("intent-v2", 2, &json!({}));
    let calls = leaving(&version, vec![gone(), Step::event(NAMESPACE)], |c| {
        c.caches.model_versions = Cache::of([version.clone(), newer, twin]);
    })
    .await;
    assert!(calls[2].body["note"].as_str().unwrap().contains("its artifact stays"));
}

#[tokio::test]
async fn a_version_that_is_needed_does_not_go() {
    let version = replaced();
    let with_service =
        |service: Value| move |c: &mut Context| c.caches.inference_services = Cache::of([inference_service(&service)]);
    // Named by a service; answered with; taken by itself, since the newer one is excluded.
    for service in [
        json!({}),
        json!({"spec": {"modelVersion": "intent-v2"}, "status": {"traffic": [{"modelVersion": "intent-v1", "pods": 1}]}}),
        json!({"spec": {"modelVersion": "intent-v0", "autoUpdate": {"policy": "LatestPromotable", "exclude": ["intent-v2"]}}}),
    ] {
        let oldest = settled("intent-v0", 0, &json!({}));
        let newer = settled("intent-v2", 2, &json!({}));
        leaving(&version, vec![], |c| {
            with_service(service)(c);
            c.caches.model_versions = Cache::of([version.clone(), newer, oldest]);
        })
        .await;
    }
    // The pods are told to answer with it, whatever they say of it now.
    let service = inference_service(
        &json!({"spec": {"modelVersion": "intent-v0", "autoUpdate": {"policy": "LatestPromotable"}}}),
    );
    let told = json!({"schemaVersion": 1, "generation": 1, "serve": "intent-v1",
        "versions": [{"name": "intent-v1", "artifact": {"uri": "s3://m", "digest": digest('a')}}]});
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "intent-serving", "namespace": NAMESPACE, "ownerReferences": [
            {"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService", "name": "intent", "uid": "service-uid", "controller": true}]},
        "data": {ASSIGNMENT_FILE: told.to_string()}}))
    .unwrap();
    leaving(&version, vec![], |c| {
        c.caches.inference_services = Cache::of([service]);
        c.caches.config_maps = Cache::of([map]);
    })
    .await;
    for spec in [
        json!({"output": {"incumbent": "intent-v1"}}),
        json!({"model": {"pretrained": null, "fromVersion": "intent-v1"}}),
    ] {
        let job = training_job(&json!({ "spec": spec }));
        leaving(&version, vec![], |c| c.caches.training_jobs = Cache::of([job])).await;
    }
    let over = training_job(
        &json!({"spec": {"output": {"incumbent": "intent-v1"}}, "status": {"conditions": [
        {"type": "Complete", "status": "True", "reason": "Trained", "message": "m", "lastTransitionTime": CREATED}]}}),
    );
    let prune = Step::accept("POST", JOBS);
    leaving(&version, vec![prune], |c| c.caches.training_jobs = Cache::of([over])).await;
    let rejected = json!({"metadata": {"annotations": {"flywheel.dev/rejected": "by hand"}}, "spec": {"retention": {"keepNewest": 1}}});
    leaving(&settled("intent-v1", 1, &rejected), vec![], |_| {}).await;
    leaving(
        &settled("intent-v3", 3, &json!({"spec": {"retention": {"keepNewest": 1}}})),
        vec![],
        |_| {},
    )
    .await;
    leaving(&settled("intent-v1", 1, &json!({})), vec![], |_| {}).await;
}
