use flywheel_api::{InferenceService, TrainingJob};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::scalar::Digest;
use flywheel_contract::serving::{Assignment, Canary, ServedVersion};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_policy::retrain::Start;
use flywheel_policy::serving::Exchange;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::settings::Settings;

fn service(spec: Value) -> InferenceService {
    let mut whole = json!({
        "apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": "intent", "namespace": "team", "uid": "5f0c", "generation": 1},
        "spec": {"model": "intent", "modelVersion": "intent-v1", "replicas": 2, "accelerator": {"class": "a100"}}
    });
    if let (Some(into), Value::Object(more)) = (whole["spec"].as_object_mut(), spec) {
        into.extend(more);
    }
    serde_json::from_value(whole).unwrap()
}

fn rendered(service: &InferenceService) -> template::Rendered {
    let settings = Settings::example();
    template::render(service, settings.class("a100").unwrap(), &settings).unwrap()
}

#[test]
fn the_objects_of_a_service() {
    let service = service(json!({
        "server": {"resources": {"requests": {"cpu": 2, "memory": "4Gi"}}, "timeoutMilliseconds": 2500},
        "storage": {"secretRef": {"name": "s3"}, "endpoint": "http://minio.minio:9000"},
        "serviceAccountName": "bucket-reader"
    }));
    let rendered = rendered(&service);
    insta::assert_json_snapshot!("config_map", config_map::build(&service, &rendered.config));
    let assigned = Assignment {
        schema_version: SCHEMA_VERSION,
        generation: 1_700_000_000_000,
        serve: "intent-v1".to_owned(),
        versions: vec![ServedVersion {
            name: "intent-v1".to_owned(),
            artifact: ArtifactRef {
                uri: "s3://models/intent/1".into(),
                digest: Digest::sha256(&"ab".repeat(32)),
            },
        }],
        split: None,
        mirror: None,
        canary: None,
        cleared: Vec::new(),
        window_seconds: None,
        judged_since: None,
        trial: None,
    };
    let map = assignment::build(&service, &assigned).unwrap();
    assert_eq!(assignment::read(&map), Some(assigned.clone()));
    insta::assert_json_snapshot!("assignment", map);
    let by_steps = Assignment {
        canary: Some(Canary {
            version: ServedVersion {
                name: "intent-v2".to_owned(),
                artifact: ArtifactRef {
                    uri: "s3://models/intent/2".into(),
                    digest: Digest::sha256(&"cd".repeat(32)),
                },
            },
            step: 1,
            since: Some(1_700_000_060_000),
            pods: [("intent-7d4b9c-abcde".to_owned(), 5000)].into(),
        }),
        ..assigned
    };
    let map = assignment::build(&service, &by_steps).unwrap();
    assert_eq!(assignment::read(&map), Some(by_steps));
    insta::assert_json_snapshot!("assignment_by_steps", map);
    insta::assert_json_snapshot!(
        "revision",
        revision::build(&service, &"0123456789abcdef".repeat(4), 3, &rendered).unwrap()
    );
    insta::assert_json_snapshot!(
        "deployment",
        deployment::build(&service, rendered.template, Exchange::Surge)
    );
    insta::assert_json_snapshot!("service", service::build(&service));
    insta::assert_json_snapshot!("network_policy", network_policy::build(&service, "flywheel-system"));
    insta::assert_json_snapshot!("disruption_budget", disruption_budget::build(&service, 2).unwrap());
    assert_eq!(service::url(&service), "http://intent.team.svc");
    assert_eq!(
        selector_text("intent"),
        "app.kubernetes.io/component=server,flywheel.dev/inference-service=intent"
    );
}

#[test]
fn the_objects_of_a_service_with_tls() {
    let service = service(json!({"server": {"tls": {"secretRef": {"name": "certificate"}}}}));
    let rendered = rendered(&service);
    insta::assert_json_snapshot!("tls_config", serde_json::from_str::<Value>(&rendered.config).unwrap());
    insta::assert_json_snapshot!(
        "tls_deployment",
        deployment::build(&service, rendered.template, Exchange::Surge)
    );
    insta::assert_json_snapshot!("tls_service", service::build(&service));
    insta::assert_json_snapshot!("tls_network_policy", network_policy::build(&service, "flywheel-system"));
    assert_eq!(service::url(&service), "https://intent.team.svc");
}

fn start(number: u32, cause: &str) -> Start {
    Start {
        number,
        cause: cause.to_owned(),
        requested: None,
        scheduled: None,
    }
}

#[test]
fn the_objects_of_a_service_that_takes_feedback_and_is_trained_anew() {
    let service = service(json!({
        "feedback": {"signingKeySecretRef": {"name": "receipts", "key": "hmac"}, "capture": true,
            "uri": "s3://feedback", "sampleRate": "0.5", "redact": ["EmailAddress", "Iban"], "retentionDays": 90},
        "drift": {}, "retrain": {"trainingJob": "intent"}
    }));
    let rendered = rendered(&service);
    insta::assert_json_snapshot!(
        "feedback_config",
        serde_json::from_str::<Value>(&rendered.config).unwrap()
    );
    insta::assert_json_snapshot!(
        "feedback_deployment",
        deployment::build(&service, rendered.template, Exchange::Surge)
    );
    insta::assert_json_snapshot!(
        "feedback_network_policy",
        network_policy::build(&service, "flywheel-system")
    );
    let template: TrainingJob = serde_json::from_value(json!({
        "metadata": {"name": "intent", "namespace": "team"},
        "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://models/minilm"}},
            "dataset": {"sources": [{"uri": "s3://data/train.csv"}]},
            "output": {"model": "intent", "versionName": "intent-v1", "uri": "s3://models/intent"}, "suspend": true}
    }))
    .unwrap();
    let job = retraining::build(
        &service,
        &template,
        Some("intent-v3"),
        &start(2, "confidence PSI 0.610"),
    );
    insta::assert_json_snapshot!("retraining", job);
}

/// Gates beside the incumbent are on the sets that neither version was trained on, unless the template has its own.
#[test]
fn a_retraining_is_measured_beside_the_version_that_answers() {
    let service = service(json!({"drift": {}, "retrain": {"trainingJob": "intent"}}));
    let built = |dataset: Value, output: Value, incumbent: Option<&str>| {
        let output =
            flywheel_testkit::objects::merged(json!({"model": "intent", "uri": "s3://models/intent"}), &output);
        let template: TrainingJob = serde_json::from_value(json!({
            "metadata": {"name": "intent", "namespace": "team"},
            "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://m"}}, "output": output,
                "dataset": flywheel_testkit::objects::merged(json!({"sources": [{"uri": "s3://data/train.csv"}]}), &dataset)}
        }))
        .unwrap();
        let job = retraining::build(&service, &template, incumbent, &start(1, "why"));
        let output = serde_json::to_value(job.spec.output).unwrap();
        (output["incumbent"].clone(), output["gates"].clone())
    };
    let own = json!({"validation": [{"uri": "s3://v"}], "test": [{"uri": "s3://t"}], "golden": [{"uri": "s3://g"}]});
    let golden = json!({"golden": [{"uri": "s3://g"}]});
    let gates = json!({"gates": [{"metric": "golden/accuracy", "min": "0.9"}, {"metric": "test/auc", "min": "0.5"}]});
    let said = json!({"incumbent": "intent-v0", "gates": [{"metric": "golden/accuracy", "minDelta": "0.01"}]});
    let answers = Some("intent-v3");
    for (dataset, output, incumbent, expected) in [
        (json!({}), json!({}), answers, Value::Null),
        (
            golden.clone(),
            json!({}),
            answers,
            json!([{"metric": "golden/accuracy", "minDelta": "-0.02"}]),
        ),
        (
            own.clone(),
            gates.clone(),
            answers,
            json!([{"metric": "golden/accuracy", "min": "0.9", "minDelta": "-0.02"}, {"metric": "test/auc", "min": "0.5"},
                {"metric": "test/accuracy", "minDelta": "-0.02"}]),
        ),
        (own.clone(), said.clone(), answers, said["gates"].clone()),
        // Before anything answers nothing is compared but what the template says.
        (own.clone(), gates.clone(), None, gates["gates"].clone()),
    ] {
        assert_eq!(built(dataset, output, incumbent), (json!(incumbent), expected));
    }
    assert_eq!(
        built(own, said.clone(), None),
        (json!("intent-v0"), said["gates"].clone())
    );
}

#[test]
fn the_pods_of_a_service_whose_class_has_a_fallback() {
    let service = service(json!({}));
    let mut settings = Settings::example();
    settings.accelerator_classes.get_mut("a100").unwrap().fallback = Some("t4".to_owned());
    let rendered = |settings: &Settings| template::render(&service, settings.class("a100").unwrap(), settings).unwrap();
    let with_fallback = rendered(&settings);
    insta::assert_json_snapshot!("fallback_template", with_fallback.template);
    // Nothing but where they may run is another.
    let alone = rendered(&Settings::example());
    assert_eq!(with_fallback.config, alone.config);
    let but_nodes = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        template.spec.as_mut().unwrap().affinity = None;
        template
    };
    assert_eq!(but_nodes(&with_fallback.template), but_nodes(&alone.template));
    assert_ne!(with_fallback.template, alone.template);
}

#[test]
fn one_replica_has_no_budget() {
    for (replicas, expected) in [(0, false), (1, false), (2, true)] {
        let budget = disruption_budget::build(&service(json!({})), replicas);
        assert_eq!(budget.is_some(), expected, "{replicas}");
    }
}

#[test]
fn the_exchange_reads_back() {
    let service = service(json!({}));
    for exchange in [Exchange::Surge, Exchange::Replace] {
        let built = deployment::build(&service, PodTemplateSpec::default(), exchange);
        assert_eq!(deployment::exchange_of(&built), exchange);
        assert_eq!(
            built.spec.unwrap().replicas,
            None,
            "the template's manager does not own the size"
        );
    }
}

#[test]
fn the_pod_reads_the_configuration_of_its_own_template() {
    let one = rendered(&service(json!({})));
    let two = rendered(&service(json!({"server": {"maxConcurrency": 8}})));
    let volume = |r: &template::Rendered| {
        let volumes = r.template.spec.as_ref().unwrap().volumes.clone().unwrap();
        volumes.iter().find_map(|v| v.config_map.as_ref()).unwrap().name.clone()
    };
    for r in [&one, &two] {
        assert_eq!(volume(r), config_map::name("intent", &r.config));
    }
    assert_ne!(volume(&one), volume(&two));
}

#[test]
fn a_long_name_still_gives_names_of_objects() {
    let name = "x".repeat(63);
    for child in [
        config_map::name(&name, "{}"),
        assignment::name(&name),
        revision::name(&name, &"f".repeat(64)),
    ] {
        assert!(child.len() <= names::NAME_MAX, "{child}");
    }
}

/// A change here would restart every serving pod of every user at the next upgrade of the operator.
#[test]
fn the_hash_of_inputs_never_changes() {
    let plain = template::inputs_hash(&service(json!({}))).unwrap();
    assert_eq!(
        plain,
        "0289ece41fb643790a914b333d22c6e09aa29fb5a32fcccaacd91f43e282b579"
    );
    let full = service(json!({
        "server": {
            "image": "example/server:2", "maxConcurrency": 8, "timeoutMilliseconds": 500,
            "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}},
            "pod": {"labels": {"a": "b"}, "affinity": {"z": 1, "a": {"y": [1, 2]}}}
        },
        "storage": {"secretRef": {"name": "s3"}, "region": "eu-1"},
        "serviceAccountName": "reader"
    }));
    assert_eq!(
        template::inputs_hash(&full).unwrap(),
        "9bbfdcac6fcb1536d1ab30c6b4a90d8818f108658967eefb5500345fb7d8a3e2"
    );
}

#[test]
fn the_hash_changes_with_what_pods_depend_on_only() {
    let hash = |spec: Value| template::inputs_hash(&service(spec)).unwrap();
    let plain = hash(json!({}));
    for same in [
        json!({"replicas": 7}),
        json!({"modelVersion": "intent-v2"}),
        json!({"server": {}}),
        json!({"server": {"maxConcurrency": 256}}),
        json!({"server": {"maxConcurrency": 256, "timeoutMilliseconds": 1000}}),
    ] {
        assert_eq!(hash(same.clone()), plain, "{same}");
    }
    let mut hashes = vec![plain];
    for other in [
        json!({"accelerator": {"class": "t4"}}),
        json!({"server": {"maxConcurrency": 255}}),
        json!({"server": {"image": "example/server:2"}}),
        json!({"server": {"tls": {"secretRef": {"name": "certificate"}}}}),
        json!({"server": {"pod": {"labels": {"a": "b"}}}}),
        json!({"storage": {"region": "eu-1"}}),
        json!({"serviceAccountName": "reader"}),
    ] {
        hashes.push(hash(other));
    }
    let count = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), count);
}

#[test]
fn a_stored_template_reads_back_as_it_was() {
    let service = service(json!({"server": {"pod": {"tolerations": [{"operator": "Exists"}]}}}));
    let rendered = rendered(&service);
    let stored = revision::build(&service, "h", 1, &rendered).unwrap();
    let wire = serde_json::to_string(&stored).unwrap();
    let mut back: k8s_openapi::api::apps::v1::ControllerRevision = serde_json::from_str(&wire).unwrap();
    assert_eq!(revision::rendered(&back).as_ref(), Some(&rendered));
    assert_eq!(revision::inputs_of(&back), Some("h"));
    // As the cache keeps it, and packed once more.
    for _ in 0..2 {
        revision::pack(back.data.as_mut().unwrap());
        assert_eq!(revision::rendered(&back).as_ref(), Some(&rendered));
    }
}

#[test]
fn the_newest_three_templates_are_kept_and_the_one_in_use() {
    let service = service(json!({}));
    let rendered = rendered(&service);
    let all: Vec<_> = (1..=6)
        .map(|n| revision::build(&service, &format!("hash-{n:06}"), n, &rendered).unwrap())
        .collect();
    let gone = |hash: &str| -> Vec<i64> { revision::superfluous(&all, hash).iter().map(|r| r.revision).collect() };
    assert_eq!(gone("hash-000006"), [3, 2, 1]);
    assert_eq!(
        gone("hash-000001"),
        [4, 3, 2],
        "the one in use is kept whatever its number"
    );
    assert_eq!(revision::newest(&all), 6);
    assert_eq!(revision::newest(&[]), 0);
}

proptest! {
    #[test]
    fn the_same_input_gives_the_same_objects(
        replicas in 0..5i32,
        concurrency in 1..1000i32,
        timeout in 1..600_000i32,
        labels in prop::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 0..3),
        image in prop::option::of("[a-z]{1,8}:[0-9]"),
    ) {
        let spec = json!({
            "replicas": replicas,
            "server": {"maxConcurrency": concurrency, "timeoutMilliseconds": timeout, "image": image, "pod": {"labels": labels}}
        });
        let (a, b) = (service(spec.clone()), service(spec));
        let (one, two) = (rendered(&a), rendered(&b));
        prop_assert_eq!(&one, &two);
        prop_assert_eq!(template::inputs_hash(&a).unwrap(), template::inputs_hash(&b).unwrap());
        let grace = one.template.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap();
        prop_assert!(grace * 1000 >= i64::from(timeout) + 30_000, "a request may end before the pod does");
        let text = |exchange| serde_json::to_string(&deployment::build(&a, one.template.clone(), exchange)).unwrap();
        prop_assert_eq!(text(Exchange::Surge), text(Exchange::Surge));
    }
}
