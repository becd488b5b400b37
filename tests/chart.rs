//! The chart: what it renders, what it refuses, and what its admission policies stop and let through on a real API server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers, too, end the test by a panic"
)]

mod plane;

use std::collections::BTreeSet;

use flywheel_operator::settings::Settings;
use http::Method;
use plane::{Plane, Refusal, collection, helm, path, root, with, without};
use serde_json::{Value, json};

const NAMESPACE: &str = "flywheel-system";
const OPERATOR: &str = "system:serviceaccount:flywheel-system:flywheel-operator";
const ADMIN_GROUP: &str = "system:masters";

fn chart() -> String {
    root().join("charts/flywheel").to_str().unwrap().to_owned()
}

fn render(arguments: &[&str]) -> Vec<Value> {
    let chart = chart();
    let all = [&["template", "flywheel", &chart, "--namespace", NAMESPACE], arguments].concat();
    let text = helm(&all, None).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
    serde_saphyr::from_multiple::<Value>(&text)
        .unwrap()
        .into_iter()
        .filter(|o| !o.is_null())
        .collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|o| o["kind"] == kind).collect()
}

/// Values that the chart must render well with, each with what is then there.
const VALUES: &[(&[&str], &str)] = &[
    (&[], "the defaults"),
    (
        &[
            "--set",
            "registry=localhost",
            "--set",
            "tag=dev",
            "--set",
            "acceleratorClasses.a100.device=Cpu",
        ],
        "a local cluster",
    ),
    (&["--set", "watchNamespaces={team-a,team-b}"], "two namespaces"),
    (&["--set", "acceleratorClasses.t4=null"], "one class"),
    (
        &[
            "--set-json",
            r#"acceleratorClasses={"mig":{"resource":"nvidia.com/mig-1g.5gb","device":"Cuda","serverImage":"r/s:1"}}"#,
        ],
        "a class of one's own",
    ),
    (
        &[
            "--set",
            "policies.cage=false,policies.serviceAccountName=false,policies.servedModelVersion=false",
        ],
        "no policies",
    ),
    (
        &[
            "--set",
            "replicas=1,networkPolicy.enabled=false,podDisruptionBudget.enabled=false,userRoles=false",
        ],
        "little",
    ),
    (
        &[
            "--set-json",
            r#"tolerations=[{"key":"a","operator":"Exists"}]"#,
            "--set-json",
            r#"affinity={"nodeAffinity":{}}"#,
            "--set",
            "nodeSelector.pool=system,podLabels.team=ml,podAnnotations.note=x,priorityClassName=high,imagePullSecrets={a,b},workloadPullSecrets={c},serviceAccount.annotations.role=arn",
            "--set",
            "images.operator=r.example.com/o@sha256:0000000000000000000000000000000000000000000000000000000000000000,log.format=text,log.level=debug",
            "--set-json",
            r#"networkPolicy.metricsFrom=[{"podSelector":{"matchLabels":{"app":"prometheus"}},"namespaceSelector":{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"In","values":["monitoring"]}]}},{"ipBlock":{"cidr":"10.1.0.0/16","except":["10.1.2.0/24"]}}]"#,
        ],
        "everything",
    ),
];

#[test]
fn it_lints_and_renders_with_many_values() {
    for (values, name) in VALUES {
        let chart = chart();
        helm(&[&["lint", "--strict", &chart], *values].concat(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let objects = render(values);
        let deployment = of_kind(&objects, "Deployment")[0];
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        // Pod Security `restricted`, and more.
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{name}"
        );
        assert_eq!(
            container["securityContext"],
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}),
            "{name}"
        );
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["port"], "admin", "{name}");
        }
        let text = deployment.to_string();
        assert!(!text.contains("nvidia.com/gpu"), "{name}: the operator needs no GPU");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
        // Training pods know the operator's pods by these.
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], "flywheel", "{name}");
        assert_eq!(labels["app.kubernetes.io/component"], "operator", "{name}");
        assert_ne!(
            labels["app.kubernetes.io/managed-by"], "flywheel",
            "{name}: that marks what the operator makes"
        );
        // The operator itself must be able to read its settings.
        let settings = of_kind(&objects, "ConfigMap")[0]["data"]["settings.yaml"]
            .as_str()
            .unwrap();
        let settings = Settings::parse(settings).unwrap_or_else(|e| panic!("{name}: {e}\n{settings}"));
        assert!(!settings.accelerator_classes.is_empty(), "{name}");
    }
}

#[test]
fn values_reach_what_they_are_for() {
    let settings = |values: &[&str]| {
        let objects = render(values);
        Settings::parse(
            of_kind(&objects, "ConfigMap")[0]["data"]["settings.yaml"]
                .as_str()
                .unwrap(),
        )
        .unwrap()
    };
    let plain = settings(&[]);
    assert_eq!(plain.accelerator_classes.keys().collect::<Vec<_>>(), ["a100", "t4"]);
    assert!(
        plain.verifier_image.ends_with("/flywheel-trainer:0.1.0"),
        "{}",
        plain.verifier_image
    );
    let own = settings(VALUES[4].0);
    let class = &own.accelerator_classes["mig"];
    assert_eq!(
        (class.resource.as_str(), class.server_image.as_str()),
        ("nvidia.com/mig-1g.5gb", "r/s:1")
    );
    assert!(class.trainer_image.contains("flywheel-trainer"));
    assert_eq!(settings(VALUES[3].0).accelerator_classes.len(), 1);
    assert!(plain.accelerator_classes.values().all(|class| class.fallback.is_none()));
    let fallback = settings(&["--set", "acceleratorClasses.a100.fallback=t4"]);
    assert_eq!(fallback.fallback("a100").map(|(name, _)| name), Some("t4"));
    assert_eq!(settings(VALUES[2].0).namespaces, ["team-a", "team-b"]);
    assert_eq!(settings(VALUES[7].0).image_pull_secrets, ["c"]);

    let all = render(VALUES[7].0);
    let pod = &of_kind(&all, "Deployment")[0]["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["team"], "ml");
    assert_eq!(pod["spec"]["nodeSelector"]["pool"], "system");
    assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "a"}, {"name": "b"}]));
    assert!(
        pod["spec"]["containers"][0]["image"]
            .as_str()
            .unwrap()
            .starts_with("r.example.com/o@sha256:")
    );
    assert_eq!(
        of_kind(&all, "ServiceAccount")[0]["metadata"]["annotations"]["role"],
        "arn"
    );

    let few = render(&[VALUES[5].0, VALUES[6].0].concat());
    for kind in [
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ] {
        assert!(
            of_kind(&few, kind).is_empty() && !of_kind(&render(&[]), kind).is_empty(),
            "{kind}"
        );
    }
    // A change of settings must restart the operator, which reads them once.
    let checksum = |values: &[&str]| {
        let objects = render(values);
        of_kind(&objects, "Deployment")[0]["spec"]["template"]["metadata"]["annotations"]["checksum/settings"].clone()
    };
    assert_ne!(
        checksum(&[]),
        checksum(&["--set", "acceleratorClasses.a100.device=Cpu"])
    );
    assert_eq!(checksum(&[]), checksum(&["--set", "replicas=3"]));
}

/// The admin port tells of everything that the operator sees: nobody reaches it whom the values do not name.
#[test]
fn metrics_are_for_those_whom_the_values_name() {
    for (values, name) in VALUES {
        for policy in of_kind(&render(values), "NetworkPolicy") {
            let types = &policy["spec"]["policyTypes"];
            assert_eq!(
                types,
                &json!(["Ingress", "Egress"]),
                "{name}: without the type nothing is kept out"
            );
            for rule in policy["spec"]["ingress"].as_array().into_iter().flatten() {
                let from = rule["from"].as_array().map_or(0, Vec::len);
                assert!(from > 0, "{name}: a rule without peers lets everybody in: {rule}");
            }
        }
    }
    let ingress = |values: &[&str]| of_kind(&render(values), "NetworkPolicy")[0]["spec"]["ingress"].clone();
    let admin = json!([{"protocol": "TCP", "port": 8081}]);
    let monitoring = json!({"namespaceSelector": {"matchLabels": {"flywheel.dev/metrics": "enabled"}}});
    assert_eq!(ingress(&[]), json!([{"from": [monitoring], "ports": admin}]));
    let own = ingress(VALUES[7].0);
    assert_eq!(own[0]["ports"], admin);
    assert_eq!(own[0]["from"][0]["podSelector"]["matchLabels"]["app"], "prometheus");
    assert_eq!(own[0]["from"][1]["ipBlock"]["except"], json!(["10.1.2.0/24"]));
    assert_eq!(
        ingress(&["--set-json", "networkPolicy.metricsFrom=[]"]),
        Value::Null,
        "nobody is not everybody"
    );
    // The label is of use only to those who know it.
    for file in ["values.yaml", "README.md"] {
        let text = std::fs::read_to_string(root().join("charts/flywheel").join(file)).unwrap();
        assert!(text.contains("flywheel.dev/metrics=enabled"), "{file}");
    }
}

#[test]
fn roles_hold_no_wildcard_no_secret_and_no_way_to_nodes() {
    for (values, name) in VALUES {
        let objects = render(values);
        let namespaced = values.iter().any(|v| v.contains("watchNamespaces"));
        for role in of_kind(&objects, "ClusterRole")
            .into_iter()
            .chain(of_kind(&objects, "Role"))
        {
            let role_name = role["metadata"]["name"].as_str().unwrap();
            for rule in role["rules"].as_array().unwrap() {
                let words = |field: &str| -> Vec<&str> {
                    rule[field]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|v| v.as_str().unwrap())
                        .collect()
                };
                let (groups, resources, verbs) = (words("apiGroups"), words("resources"), words("verbs"));
                for word in groups.iter().chain(&resources).chain(&verbs) {
                    assert!(!word.contains('*'), "{name}: {role_name}: {rule}");
                }
                for forbidden in [
                    "secrets",
                    "pods/exec",
                    "pods/eviction",
                    "serviceaccounts",
                    "serviceaccounts/token",
                ] {
                    assert!(!resources.contains(&forbidden), "{name}: {role_name}: {rule}");
                }
                for forbidden in ["impersonate", "bind", "escalate"] {
                    assert!(!verbs.contains(&forbidden), "{name}: {role_name}: {rule}");
                }
                if resources.contains(&"nodes") {
                    assert_eq!(verbs, ["get", "list", "watch"], "{name}: {role_name}: {rule}");
                }
                if resources.contains(&"pods") {
                    assert_eq!(
                        verbs,
                        ["get", "list", "watch", "patch", "delete"],
                        "{name}: {role_name}: {rule}"
                    );
                }
                assert!(!(namespaced && resources.contains(&"nodes")), "{name}: {role_name}");
            }
        }
        if namespaced {
            // What is left for the cluster as a whole is for users.
            let names: BTreeSet<_> = of_kind(&objects, "ClusterRole")
                .iter()
                .map(|r| r["metadata"]["name"].to_string())
                .collect();
            assert_eq!(
                names,
                BTreeSet::from(["\"flywheel-edit\"".to_owned(), "\"flywheel-view\"".to_owned()])
            );
            assert!(of_kind(&objects, "ClusterRoleBinding").is_empty());
            let places: BTreeSet<_> = of_kind(&objects, "RoleBinding")
                .iter()
                .map(|r| r["metadata"]["namespace"].as_str().unwrap())
                .collect();
            assert_eq!(places, BTreeSet::from([NAMESPACE, "team-a", "team-b"]));
        }
    }
}

#[test]
fn the_schema_refuses_wrong_values() {
    let table: &[(&[&str], &str)] = &[
        (&["--set", "replcas=3"], "replcas"),
        (&["--set", "replicas=0"], "replicas"),
        (&["--set", "replicas=two"], "replicas"),
        (&["--set", "log.format=xml"], "log"),
        (&["--set", "log.leve=debug"], "leve"),
        (&["--set", "log.level=loud"], "level"),
        (&["--set", "imagePullPolicy=Sometimes"], "imagePullPolicy"),
        (&["--set", "watchNamespaces={Team_A}"], "watchNamespaces"),
        (&["--set", "watchNamespaces={a,a}"], "watchNamespaces"),
        (&["--set", "acceleratorClasses.a100.device=Tpu"], "device"),
        (&["--set", "acceleratorClasses.a100.resource=gpu"], "resource"),
        (&["--set", "acceleratorClasses.A100.device=Cpu"], "A100"),
        (&["--set", "acceleratorClasses.h100.device=Cuda"], "resource"),
        (&["--set", "acceleratorClasses.a100.fallback=T4"], "fallback"),
        (&["--set", "acceleratorClasses.a100.falback=t4"], "falback"),
        (
            &["--set-json", r#"acceleratorClasses.a100.labelTerms=[{}]"#],
            "labelTerms",
        ),
        (
            &["--set-json", r#"acceleratorClasses.a100.labelTerms=[{"k":"v"}]"#],
            "labelTerms",
        ),
        (
            &[
                "--set-json",
                r#"acceleratorClasses.a100.tolerations=[{"operator":"Is"}]"#,
            ],
            "operator",
        ),
        (
            &["--set", "acceleratorClasses.a100=null,acceleratorClasses.t4=null"],
            "acceleratorClasses",
        ),
        (&["--set", "acceleratorClasses=null"], "acceleratorClasses"),
        (&["--set", "resources.limits.memory=much"], "memory"),
        (&["--set", r"resources.limits.nvidia\.com/gpu=1"], "gpu"),
        (&["--set", "networkPolicy.apiServerPorts={0}"], "apiServerPorts"),
        (&["--set-json", "networkPolicy.metricsFrom=[{}]"], "metricsFrom"),
        (
            &[
                "--set-json",
                r#"networkPolicy.metricsFrom=[{"namespaceSelector":{"labels":{"a":"b"}}}]"#,
            ],
            "labels",
        ),
        (
            &[
                "--set-json",
                r#"networkPolicy.metricsFrom=[{"podSelector":{"matchExpressions":[{"key":"a","operator":"Is"}]}}]"#,
            ],
            "operator",
        ),
        (
            &[
                "--set-json",
                r#"networkPolicy.metricsFrom=[{"ipBlock":{"cidr":"10.0.0.1"}}]"#,
            ],
            "cidr",
        ),
        (
            &[
                "--set-json",
                r#"networkPolicy.metricsFrom=[{"ipBlock":{"cidr":"10.0.0.0/8"},"podSelector":{}}]"#,
            ],
            "metricsFrom",
        ),
        (&["--set", "policies.cage=perhaps"], "cage"),
        (
            &["--set", r"podLabels.app\.kubernetes\.io/name=other"],
            "app.kubernetes.io/name",
        ),
        (&["--set", "registry=https://r.example.com"], "registry"),
        (&["--set", "images.operator=bad image"], "operator"),
    ];
    let chart = chart();
    let levels = "log.level=info\\,kube_client=debug";
    helm(&["template", "flywheel", &chart, "--set", levels], None).expect("levels of single parts");
    for (values, word) in table {
        let error = helm(&[&["template", "flywheel", &chart], *values].concat(), None).expect_err(word);
        assert!(error.contains(word) && error.contains("schema"), "{values:?}: {error}");
    }
}

#[test]
fn every_value_is_in_the_schema_and_in_the_readme() {
    let values: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(root().join("charts/flywheel/values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(root().join("charts/flywheel/values.schema.json")).unwrap())
            .unwrap();
    let readme = std::fs::read_to_string(root().join("charts/flywheel/README.md")).unwrap();
    for (name, value) in values.as_object().unwrap() {
        assert!(
            schema["properties"][name].is_object(),
            "{name} is not in values.schema.json"
        );
        assert!(readme.contains(&format!("`{name}")), "{name} is not in README.md");
        if let (Some(inner), Some(known)) = (value.as_object(), schema["properties"][name]["properties"].as_object()) {
            for key in inner.keys() {
                assert!(known.contains_key(key), "{name}.{key} is not in values.schema.json");
            }
        }
    }
    // Whatever is an object in the schema refuses what it does not know.
    fn closed(schema: &Value, at: &str) {
        if schema["type"] == "object" && schema.get("properties").is_some() {
            assert_eq!(schema["additionalProperties"], false, "{at}");
        }
        for key in ["properties", "patternProperties"] {
            for (name, inner) in schema[key].as_object().into_iter().flatten() {
                closed(inner, &format!("{at}.{name}"));
            }
        }
        if let Some(items) = schema.get("items") {
            closed(items, &format!("{at}[]"));
        }
    }
    closed(&schema, "");
}

#[test]
fn the_charts_crds_are_the_projects() {
    let files = |folder: &str| -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir(root().join(folder))
            .unwrap()
            .map(|f| f.unwrap().path())
            .map(|f| {
                (
                    f.file_name().unwrap().to_str().unwrap().to_owned(),
                    std::fs::read_to_string(f).unwrap(),
                )
            })
            .collect();
        all.sort();
        all
    };
    assert!(
        files("crds") == files("charts/flywheel/crds"),
        "charts/flywheel/crds differ from crds; run `make crds`"
    );
}

// --- what the operator makes, as the cage sees it ---------------------------------------------------------------------

fn owner(kind: &str) -> Value {
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": kind, "name": "intent", "uid": "3f0c7c9a-0000-4000-8000-000000000001",
        "controller": true, "blockOwnerDeletion": true})
}

fn ours(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "team",
        "labels": {"app.kubernetes.io/managed-by": "flywheel", "app.kubernetes.io/name": "flywheel"},
        "ownerReferences": [owner("InferenceService")]}});
    object
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    object
}

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app.kubernetes.io/managed-by": "flywheel", "flywheel.dev/inference-service": "intent"}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "server", "image": "localhost/flywheel-server:dev",
                "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "flywheel-scratch", "mountPath": "/var/lib/flywheel"}]
            }],
            "volumes": [
                {"name": "flywheel-scratch", "emptyDir": {}},
                {"name": "flywheel-serving", "configMap": {"name": "intent-serving"}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "p", "persistentVolumeClaim": {"claimName": "p"}}
            ]
        }
    })
}

fn deployment() -> Value {
    let spec = json!({"spec": {"replicas": 1, "selector": {"matchLabels": {"flywheel.dev/inference-service": "intent"}},
        "template": template()}});
    ours("apps/v1", "Deployment", "intent", spec)
}

fn job() -> Value {
    let mut template = with(&template(), "/spec/restartPolicy", json!("Never"));
    template = with(
        &template,
        "/metadata/labels/flywheel.dev~1training-job",
        json!("intent"),
    );
    let object = ours(
        "batch/v1",
        "Job",
        "intent-train-1",
        json!({"spec": {"backoffLimit": 0, "template": template}}),
    );
    with(&object, "/metadata/ownerReferences/0", owner("TrainingJob"))
}

fn config_map() -> Value {
    ours(
        "v1",
        "ConfigMap",
        "intent-serving",
        json!({"data": {"serving.json": "{}"}}),
    )
}

fn service() -> Value {
    let spec =
        json!({"selector": {"flywheel.dev/inference-service": "intent"}, "ports": [{"port": 80, "targetPort": 8080}]});
    ours("v1", "Service", "intent", json!({"spec": spec}))
}

/// The headless Service of a TrainingJob of several nodes.
fn training_service() -> Value {
    let spec = json!({"type": "ClusterIP", "clusterIP": "None", "publishNotReadyAddresses": true,
        "selector": {"app.kubernetes.io/managed-by": "flywheel", "app.kubernetes.io/component": "trainer",
            "flywheel.dev/training-job": "intent"},
        "ports": [{"name": "rendezvous", "port": 29500}]});
    let object = ours("v1", "Service", "intent-train", json!({"spec": spec}));
    with(&object, "/metadata/ownerReferences/0", owner("TrainingJob"))
}

fn budget() -> Value {
    let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": {"flywheel.dev/inference-service": "intent"}}});
    ours("policy/v1", "PodDisruptionBudget", "intent", json!({"spec": spec}))
}

fn network_policy() -> Value {
    let spec = json!({"podSelector": {"matchLabels": {"flywheel.dev/inference-service": "intent"}}, "policyTypes": ["Ingress"]});
    ours("networking.k8s.io/v1", "NetworkPolicy", "intent", json!({"spec": spec}))
}

fn trainers_policy() -> Value {
    let object = with(&network_policy(), "/metadata/name", json!("flywheel-trainers"));
    let selector = json!({"app.kubernetes.io/managed-by": "flywheel", "app.kubernetes.io/component": "trainer"});
    with(
        &without(&object, "/metadata/ownerReferences"),
        "/spec/podSelector/matchLabels",
        selector,
    )
}

fn revision() -> Value {
    ours(
        "apps/v1",
        "ControllerRevision",
        "intent-1",
        json!({"revision": 1, "data": {"template": template()}}),
    )
}

fn lease() -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "flywheel-operator", "namespace": NAMESPACE}, "spec": {"holderIdentity": "a"}})
}

fn event() -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "intent.1", "namespace": "team"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "flywheel.dev/operator", "reportingInstance": "a",
        "action": "Train", "reason": "Started", "type": "Normal", "note": "n",
        "regarding": {"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "name": "intent", "namespace": "team"}})
}

fn training_job(name: &str) -> Value {
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name, "namespace": "team"},
        "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}},
            "dataset": {"sources": [{"uri": "s3://b/d.csv"}]}, "output": {"model": "intent", "uri": "s3://b/o"}}})
}

/// A TrainingJob that trains a service anew.
fn retraining() -> Value {
    let object = training_job("intent-retrain-1");
    let labels = json!({"app.kubernetes.io/managed-by": "flywheel", "flywheel.dev/retrains": "intent"});
    let object = with(&object, "/metadata/labels", labels);
    with(&object, "/metadata/ownerReferences", json!([owner("InferenceService")]))
}

fn inference_service(name: &str) -> Value {
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name, "namespace": "team"},
        "spec": {"model": "intent", "modelVersion": "intent-v1", "replicas": 1}})
}

fn model_version(name: &str) -> Value {
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": name, "namespace": "team",
            "labels": {"app.kubernetes.io/managed-by": "flywheel"}},
        "spec": {"model": "intent", "version": 1,
            "artifact": {"uri": "s3://b/o", "digest": format!("sha256:{}", "0".repeat(64))},
            "source": {"trainingJob": {"name": "intent", "uid": "u"}}}})
}

/// A ModelVersion that goes when a newer one takes its place.
fn going(name: &str) -> Value {
    with(&model_version(name), "/spec/retention", json!({"keepNewest": 1}))
}

/// A pod of a training attempt.
fn pod(name: &str) -> Value {
    let spec = template()["spec"].clone();
    let object = with(
        &ours("v1", "Pod", name, json!({"spec": spec})),
        TRAINING_LABEL,
        json!("intent"),
    );
    with(
        &object,
        "/metadata/ownerReferences/0",
        json!({"apiVersion": "batch/v1", "kind": "Job", "name": "intent-train-1",
        "uid": "3f0c7c9a-0000-4000-8000-000000000002", "controller": true}),
    )
}

/// Where an object's label says to which TrainingJob it belongs.
const TRAINING_LABEL: &str = "/metadata/labels/flywheel.dev~1training-job";

/// The pod that verifies a ModelVersion.
fn verifying_pod() -> Value {
    let pod = without(&pod("verifying"), TRAINING_LABEL);
    with(&pod, "/metadata/labels/flywheel.dev~1model-version", json!("intent-v1"))
}

/// A pod that answers.
fn serving_pod() -> Value {
    let pod = without(&pod("serving"), TRAINING_LABEL);
    let pod = with(
        &pod,
        "/metadata/labels/flywheel.dev~1inference-service",
        json!("intent"),
    );
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "intent-1",
        "uid": "3f0c7c9a-0000-4000-8000-000000000004", "controller": true});
    let pod = with(&pod, "/metadata/ownerReferences/0", set);
    with(&pod, "/metadata/annotations", json!({"theirs": "a"}))
}

/// What tells a serving pod's kubelet of a new assignment.
fn nudge(generation: &str) -> Value {
    json!({"metadata": {"annotations": {"flywheel.dev/assignment": generation}}})
}

/// What rejects a ModelVersion.
fn rejection(text: Value) -> Value {
    json!({"metadata": {"annotations": {"flywheel.dev/rejected": text}}})
}

/// What one row asks of the API server, always as a dry run.
#[derive(Clone)]
enum Ask {
    Create(Value),
    /// Server-side apply.
    Apply(Value),
    /// PUT.
    Replace(Value),
    /// Merge patch at a path.
    Patch(String, Value),
    Delete(String),
    Get(String),
}

impl Ask {
    async fn send(&self, plane: &Plane, user: &str, groups: &[&str]) -> Result<Value, Refusal> {
        let (method, path, body) = match self {
            Self::Create(object) => (
                Method::POST,
                format!("{}?dryRun=All", collection(object)),
                Some(object.clone()),
            ),
            Self::Apply(object) => (
                Method::PATCH,
                format!("{}?dryRun=All&force=true&fieldManager=flywheel-test", path(object)),
                Some(object.clone()),
            ),
            Self::Replace(object) => {
                let present = plane.send(Method::GET, &path(object), None).await?;
                let object = with(
                    object,
                    "/metadata/resourceVersion",
                    present["metadata"]["resourceVersion"].clone(),
                );
                (Method::PUT, format!("{}?dryRun=All", path(&object)), Some(object))
            }
            Self::Patch(path, patch) => (Method::PATCH, format!("{path}?dryRun=All"), Some(patch.clone())),
            Self::Delete(path) => (Method::DELETE, format!("{path}?dryRun=All"), None),
            Self::Get(path) => (Method::GET, path.clone(), None),
        };
        plane.send_as(Some(user), groups, method, &path, body.as_ref()).await
    }
}

/// What the operator does every day: with exactly its own rights.
fn daily_work() -> Vec<(String, Ask)> {
    let of_team = |path: &str| path.replace("{}", "namespaces/team");
    let mut rows = vec![
        ("its Lease", Ask::Get(path(&lease()))),
        (
            "its Lease, renewed",
            Ask::Replace(with(&lease(), "/spec/renewTime", json!("2026-01-01T00:00:00.000000Z"))),
        ),
        ("an event", Ask::Create(event())),
        ("a ModelVersion of a finished job", Ask::Create(model_version("new"))),
        ("a TrainingJob that trains anew", Ask::Create(retraining())),
        (
            "a ModelVersion, rejected",
            Ask::Patch(path(&model_version("intent-v1")), rejection(json!("{}"))),
        ),
        ("the trainers' NetworkPolicy", Ask::Apply(trainers_policy())),
        (
            "a ModelVersion that goes by its retention",
            Ask::Delete(path(&model_version("intent-old"))),
        ),
        (
            "the trainers' NetworkPolicy, swept",
            Ask::Delete(path(&trainers_policy())),
        ),
        (
            "a Deployment's replicas",
            Ask::Patch(path(&deployment()), json!({"spec": {"replicas": 3}})),
        ),
        (
            "a Job, suspended",
            Ask::Patch(path(&job()), json!({"spec": {"suspend": true}})),
        ),
        (
            "the pod of a training attempt, deleted",
            Ask::Delete(path(&pod("ours"))),
        ),
        ("a serving pod, deleted", Ask::Delete(path(&serving_pod()))),
        (
            "a serving pod, told of an assignment",
            Ask::Patch(path(&serving_pod()), nudge("1")),
        ),
        (
            "a serving pod, told of the next one",
            Ask::Patch(path(&serving_pod()), nudge("2")),
        ),
        ("nodes", Ask::Get("/api/v1/nodes".into())),
        ("pods", Ask::Get("/api/v1/pods".into())),
        ("events of a Job", Ask::Get(of_team("/api/v1/{}/events"))),
        ("ReplicaSets", Ask::Get("/apis/apps/v1/replicasets".into())),
        (
            "jobs of users",
            Ask::Get("/apis/flywheel.dev/v1alpha1/trainingjobs".into()),
        ),
    ];
    for (kind, object) in [
        ("trainingjobs", "intent"),
        ("inferenceservices", "intent"),
        ("modelversions", "intent-v1"),
    ] {
        let path = of_team(&format!("/apis/flywheel.dev/v1alpha1/{{}}/{kind}/{object}/status"));
        rows.push(("a status", Ask::Patch(path, json!({"status": {"state": "Running"}}))));
    }
    for object in [
        deployment(),
        job(),
        config_map(),
        service(),
        training_service(),
        budget(),
        network_policy(),
        revision(),
    ] {
        let fresh = with(&object, "/metadata/name", json!("fresh"));
        rows.push(("a child, made", Ask::Apply(fresh.clone())));
        rows.push(("a child, posted", Ask::Create(fresh)));
        if object["kind"] != "Job" {
            rows.push(("a child, applied again", Ask::Apply(object.clone())));
        }
        rows.push(("a child, deleted", Ask::Delete(path(&object))));
    }
    rows.into_iter().map(|(name, ask)| (name.to_owned(), ask)).collect()
}

/// The golden objects of the operator's own builders.
fn built_by_the_operator() -> Vec<(String, Value)> {
    fn collect(folder: &std::path::Path, found: &mut Vec<(String, Value)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|e| e == "snap") {
                let text = std::fs::read_to_string(&path).unwrap();
                let body = text.splitn(3, "---").nth(2).unwrap_or_default();
                let Ok(object) = serde_json::from_str::<Value>(body) else {
                    continue;
                };
                if object["kind"].is_string() && object["metadata"]["namespace"].is_string() {
                    found.push((path.file_name().unwrap().to_string_lossy().into_owned(), object));
                }
            }
        }
    }
    let mut found = vec![];
    collect(&root().join("src"), &mut found);
    assert!(found.len() >= 5, "the golden objects of src are gone: {found:?}");
    found
}

/// What a mistake in the operator, or a thief of its token, might do: with every right there is.
fn misdeeds() -> Vec<(&'static str, Ask, &'static str)> {
    let deployment_with = |pointer: &str, value: Value| {
        Ask::Create(with(
            &with(&deployment(), "/metadata/name", json!("bad")),
            pointer,
            value,
        ))
    };
    let spec = "/spec/template/spec";
    let at = |tail: &str| format!("{spec}{tail}");
    let in_system = with(
        &with(&config_map(), "/metadata/namespace", json!("kube-system")),
        "/metadata/name",
        json!("x"),
    );
    let other = |object: Value, pointer: &str, value: Value| {
        with(&with(&object, "/metadata/name", json!("bad")), pointer, value)
    };
    let label = "/metadata/labels/app.kubernetes.io~1managed-by";
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "team"}});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    let no_business = "no business";
    let nothing_else = "nothing of a pod but its annotation";
    vec![
        ("something in kube-system", Ask::Create(in_system), "own namespaces"),
        (
            "delete in kube-system",
            Ask::Delete("/api/v1/namespaces/kube-system/configmaps/owned".into()),
            "own namespaces",
        ),
        ("a Secret", Ask::Create(secret), no_business),
        ("a bare pod", Ask::Create(pod("bare")), no_business),
        (
            "a change of a training pod",
            Ask::Patch("/api/v1/namespaces/team/pods/ours".into(), nudge("1")),
            "only pods of InferenceServices",
        ),
        (
            "a change of a bare pod that carries an InferenceService's name",
            Ask::Patch("/api/v1/namespaces/team/pods/bare-serving".into(), nudge("1")),
            "only pods of InferenceServices",
        ),
        (
            "another annotation of a ModelVersion",
            Ask::Patch(
                path(&model_version("intent-v1")),
                json!({"metadata": {"annotations": {"a": "b", "flywheel.dev/rejected": "{}"}}}),
            ),
            nothing_else,
        ),
        (
            "a label of a ModelVersion",
            Ask::Patch(
                path(&model_version("intent-v1")),
                json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}),
            ),
            nothing_else,
        ),
        (
            "another annotation of a serving pod",
            Ask::Patch(path(&serving_pod()), json!({"metadata": {"annotations": {"a": "b"}}})),
            nothing_else,
        ),
        (
            "an annotation of a serving pod taken away",
            Ask::Patch(
                path(&serving_pod()),
                json!({"metadata": {"annotations": {"theirs": null}}}),
            ),
            nothing_else,
        ),
        (
            "an annotation of a serving pod changed beside its own",
            Ask::Patch(
                path(&serving_pod()),
                json!({"metadata": {"annotations": {"theirs": "x", "flywheel.dev/assignment": "1"}}}),
            ),
            nothing_else,
        ),
        (
            "a label of a serving pod",
            Ask::Patch(path(&serving_pod()), json!({"metadata": {"labels": {"a": "b"}}})),
            nothing_else,
        ),
        (
            "a serving pod without its owner",
            Ask::Patch(path(&serving_pod()), json!({"metadata": {"ownerReferences": null}})),
            nothing_else,
        ),
        (
            "a finalizer on a serving pod",
            Ask::Patch(
                path(&serving_pod()),
                json!({"metadata": {"finalizers": ["example.com/x"]}}),
            ),
            nothing_else,
        ),
        (
            "another image of a serving pod",
            Ask::Patch(
                path(&serving_pod()),
                json!({"spec": {"containers": [with(&serving_pod()["spec"]["containers"][0], "/image", json!("example/other:1"))]}}),
            ),
            nothing_else,
        ),
        (
            "an eviction",
            Ask::Create(
                json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "ours", "namespace": "team"}}),
            ),
            "",
        ),
        ("rights for itself", Ask::Create(binding), no_business),
        (
            "delete of a namespace",
            Ask::Delete("/api/v1/namespaces/team".into()),
            no_business,
        ),
        ("a TrainingJob", Ask::Create(training_job("new")), "TrainingJobs that"),
        (
            "a TrainingJob, changed",
            Ask::Patch(path(&training_job("intent")), json!({"spec": {"suspend": true}})),
            no_business,
        ),
        (
            "a retraining of nobody",
            Ask::Create(without(&retraining(), "/metadata/ownerReferences")),
            "TrainingJobs that",
        ),
        (
            "a retraining of another service than its owner",
            Ask::Create(with(
                &retraining(),
                "/metadata/labels/flywheel.dev~1retrains",
                json!("other"),
            )),
            "TrainingJobs that",
        ),
        (
            "a spec of a user",
            Ask::Patch(path(&inference_service("intent")), json!({"spec": {"replicas": 9}})),
            no_business,
        ),
        (
            "scale of a user's service",
            Ask::Patch(
                path(&inference_service("intent")) + "/scale",
                json!({"spec": {"replicas": 9}}),
            ),
            no_business,
        ),
        (
            "delete of a ModelVersion without a retention",
            Ask::Delete(path(&model_version("intent-v1"))),
            "only ModelVersions with spec.retention",
        ),
        (
            "a node's labels",
            Ask::Patch("/api/v1/nodes/n".into(), json!({"metadata": {"labels": {"a": "b"}}})),
            no_business,
        ),
        (
            "a node's status",
            Ask::Patch(
                "/api/v1/nodes/n/status".into(),
                json!({"status": {"capacity": {"x.y/z": "1"}}}),
            ),
            no_business,
        ),
        ("delete of a Lease", Ask::Delete(path(&lease())), no_business),
        (
            "delete of an event",
            Ask::Delete("/apis/events.k8s.io/v1/namespaces/team/events/old".into()),
            no_business,
        ),
        (
            "its own cage",
            Ask::Delete("/apis/apps/v1/namespaces/flywheel-system/deployments/flywheel-operator".into()),
            "before",
        ),
        (
            "a token",
            Ask::Create(
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x", "namespace": "team"}}),
            ),
            no_business,
        ),
        (
            "a child without our label",
            Ask::Create(without(&other(config_map(), "/data", json!({})), label)),
            "writes only objects with the label",
        ),
        (
            "our label taken off",
            Ask::Patch(
                path(&config_map()),
                json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}),
            ),
            "writes only objects with the label",
        ),
        (
            "a child without owner",
            Ask::Create(without(
                &other(config_map(), "/data", json!({})),
                "/metadata/ownerReferences",
            )),
            "controls",
        ),
        (
            "a child of a stranger",
            Ask::Create(other(
                config_map(),
                "/metadata/ownerReferences/0/kind",
                json!("Workflow"),
            )),
            "controls",
        ),
        (
            "a child that is not controlled",
            Ask::Create(other(
                config_map(),
                "/metadata/ownerReferences/0/controller",
                json!(false),
            )),
            "controls",
        ),
        (
            "a NetworkPolicy without owner",
            Ask::Create(with(&trainers_policy(), "/metadata/name", json!("x"))),
            "controls",
        ),
        (
            "adoption of an unlabelled object",
            Ask::Apply(with(&config_map(), "/metadata/name", json!("unlabelled"))),
            "had the label",
        ),
        (
            "delete of an unlabelled object",
            Ask::Delete("/api/v1/namespaces/team/configmaps/unlabelled".into()),
            "had the label",
        ),
        (
            "adoption of an object without owner",
            Ask::Apply(with(&config_map(), "/metadata/name", json!("unowned"))),
            "controlled before",
        ),
        (
            "delete of an object without owner",
            Ask::Delete("/api/v1/namespaces/team/configmaps/unowned".into()),
            "controlled before",
        ),
        (
            "delete of a stranger's Deployment",
            Ask::Delete("/apis/apps/v1/namespaces/team/deployments/stranger".into()),
            "before",
        ),
        (
            "change of a stranger's NetworkPolicy of the trainers' name",
            Ask::Patch(
                "/apis/networking.k8s.io/v1/namespaces/other/networkpolicies/flywheel-trainers".into(),
                json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "flywheel"}}}),
            ),
            "had the label",
        ),
        (
            "delete of an unlabelled pod",
            Ask::Delete("/api/v1/namespaces/team/pods/unlabelled".into()),
            "changes and deletes only pods with the label app.kubernetes.io/managed-by=flywheel",
        ),
        (
            "delete of a pod without owner",
            Ask::Delete("/api/v1/namespaces/team/pods/unowned".into()),
            "deletes only training pods of Jobs and serving pods of ReplicaSets",
        ),
        (
            "delete of a DaemonSet's pod",
            Ask::Delete("/api/v1/namespaces/team/pods/daemon".into()),
            "deletes only training pods of Jobs and serving pods of ReplicaSets",
        ),
        (
            "delete of a serving pod that carries a TrainingJob's name",
            Ask::Delete("/api/v1/namespaces/team/pods/mislabelled".into()),
            "deletes only training pods of Jobs and serving pods of ReplicaSets",
        ),
        (
            "delete of a verifying pod",
            Ask::Delete(path(&verifying_pod())),
            "deletes only training pods of Jobs and serving pods of ReplicaSets",
        ),
        (
            "the host's network",
            deployment_with(&at("/hostNetwork"), json!(true)),
            "host's network",
        ),
        (
            "the host's processes",
            deployment_with(&at("/hostPID"), json!(true)),
            "host's network",
        ),
        (
            "the host's IPC",
            deployment_with(&at("/hostIPC"), json!(true)),
            "host's network",
        ),
        (
            "the host's network, later",
            Ask::Patch(
                path(&deployment()),
                json!({"spec": {"template": {"spec": {"hostNetwork": true}}}}),
            ),
            "host's network",
        ),
        (
            "a Job with the host's network",
            Ask::Create(other(job(), &at("/hostNetwork"), json!(true))),
            "host's network",
        ),
        (
            "a node of its choice",
            deployment_with(&at("/nodeName"), json!("n")),
            "past the scheduler",
        ),
        (
            "a port of the host",
            deployment_with(&at("/containers/0/ports/0/hostPort"), json!(8080)),
            "ports of the host",
        ),
        (
            "a privileged container",
            deployment_with(
                &at("/containers/0/securityContext"),
                json!({"privileged": true, "capabilities": {"drop": ["ALL"]}}),
            ),
            "privileged",
        ),
        (
            "privilege escalation",
            deployment_with(
                &at("/containers/0/securityContext"),
                json!({"capabilities": {"drop": ["ALL"]}}),
            ),
            "privileged",
        ),
        (
            "a privileged init container",
            deployment_with(
                &at("/initContainers"),
                json!([{"name": "i", "image": "i", "securityContext": {"privileged": true, "capabilities": {"drop": ["ALL"]}}}]),
            ),
            "privileged",
        ),
        (
            "capabilities added",
            deployment_with(
                &at("/containers/0/securityContext/capabilities/add"),
                json!(["SYS_ADMIN"]),
            ),
            "capabilities",
        ),
        (
            "capabilities kept",
            deployment_with(
                &at("/containers/0/securityContext/capabilities"),
                json!({"drop": ["CHOWN"]}),
            ),
            "capabilities",
        ),
        (
            "root",
            deployment_with(&at("/securityContext/runAsNonRoot"), json!(false)),
            "runAsNonRoot",
        ),
        (
            "root in one container",
            deployment_with(&at("/containers/0/securityContext/runAsNonRoot"), json!(false)),
            "runAsNonRoot",
        ),
        (
            "no seccomp profile",
            deployment_with(&at("/securityContext/seccompProfile"), json!({"type": "Unconfined"})),
            "seccomp",
        ),
        (
            "no seccomp profile in one container",
            deployment_with(
                &at("/containers/0/securityContext/seccompProfile"),
                json!({"type": "Unconfined"}),
            ),
            "seccomp",
        ),
        (
            "an API token",
            deployment_with(&at("/automountServiceAccountToken"), json!(true)),
            "automountServiceAccountToken",
        ),
        (
            "an API token by default",
            Ask::Create(without(
                &with(&deployment(), "/metadata/name", json!("bad")),
                &at("/automountServiceAccountToken"),
            )),
            "automountServiceAccountToken",
        ),
        (
            "a projected token",
            deployment_with(
                &at("/volumes/-"),
                json!({"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
            ),
            "volumes",
        ),
        (
            "a folder of the host",
            deployment_with(&at("/volumes/-"), json!({"name": "h", "hostPath": {"path": "/"}})),
            "volumes",
        ),
        (
            "a CSI volume",
            deployment_with(&at("/volumes/-"), json!({"name": "c", "csi": {"driver": "d"}})),
            "volumes",
        ),
        (
            "a priority of the system",
            deployment_with(&at("/priorityClassName"), json!("system-node-critical")),
            "priority",
        ),
        (
            "pods without our label",
            Ask::Create(without(
                &with(&deployment(), "/metadata/name", json!("bad")),
                "/spec/template/metadata/labels/app.kubernetes.io~1managed-by",
            )),
            "pods of a template",
        ),
        (
            "a Service of strangers' pods",
            Ask::Create(other(service(), "/spec/selector", json!({"app": "db"}))),
            "select only",
        ),
        (
            "a budget of strangers' pods",
            Ask::Create(other(budget(), "/spec/selector/matchLabels", json!({"app": "db"}))),
            "select only",
        ),
        (
            "a NetworkPolicy of all pods",
            Ask::Create(other(network_policy(), "/spec/podSelector", json!({}))),
            "select only",
        ),
        (
            "a Service on the nodes",
            Ask::Create(other(service(), "/spec/type", json!("NodePort"))),
            "ClusterIP",
        ),
        (
            "a training's Service of strangers' pods",
            Ask::Create(other(training_service(), "/spec/selector", json!({"app": "db"}))),
            "select only",
        ),
        (
            "a training's Service of addresses of its choice",
            Ask::Create(without(
                &with(&training_service(), "/metadata/name", json!("bad")),
                "/spec/selector",
            )),
            "select only",
        ),
        (
            "addresses of its choice",
            Ask::Create(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "bad", "namespace": "team", "labels": {"app.kubernetes.io/managed-by": "flywheel",
                    "kubernetes.io/service-name": "intent-train"}, "ownerReferences": [owner("TrainingJob")]},
                "endpoints": [{"addresses": ["10.1.2.3"]}], "ports": [{"port": 29500}]}),
            ),
            no_business,
        ),
        (
            "a training's Service that leads out of the cluster",
            Ask::Create(other(
                training_service(),
                "/spec",
                json!({"type": "ExternalName", "externalName": "x.example.com", "selector": {"flywheel.dev/training-job": "intent"}}),
            )),
            "ClusterIP",
        ),
        (
            "a training's Service without owner",
            Ask::Create(without(
                &with(&training_service(), "/metadata/name", json!("bad")),
                "/metadata/ownerReferences",
            )),
            "controls",
        ),
        (
            "adoption of a user's Service",
            Ask::Apply(with(&training_service(), "/metadata/name", json!("unlabelled"))),
            "had the label",
        ),
        (
            "a Service with an external address",
            Ask::Create(other(service(), "/spec/externalIPs", json!(["1.2.3.4"]))),
            "ClusterIP",
        ),
        (
            "a Lease elsewhere",
            Ask::Create(with(&lease(), "/metadata/namespace", json!("team"))),
            "only Lease",
        ),
        (
            "another Lease",
            Ask::Create(with(&lease(), "/metadata/name", json!("kube-scheduler"))),
            "only Lease",
        ),
        (
            "an unmarked ModelVersion",
            Ask::Create(without(&model_version("new"), "/metadata/labels")),
            "ModelVersions that",
        ),
        (
            "a ModelVersion of nothing",
            Ask::Create(without(&model_version("new"), "/spec/source")),
            "ModelVersions that",
        ),
        (
            "an event about a stranger",
            Ask::Create(with(&event(), "/regarding/apiVersion", json!("v1"))),
            "events of",
        ),
    ]
}

/// Objects that the rows are about.
async fn seed(plane: &Plane) {
    for namespace in ["team", "other"] {
        plane
            .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
            .await;
        plane
            .create(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}))
            .await;
    }
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}))
        .await;
    for object in [
        deployment(),
        job(),
        config_map(),
        service(),
        training_service(),
        budget(),
        network_policy(),
        trainers_policy(),
        revision(),
    ] {
        plane.create(&object).await;
    }
    let named = |object: Value, name: &str| with(&object, "/metadata/name", json!(name));
    let label = "/metadata/labels/app.kubernetes.io~1managed-by";
    let unowned = |object: Value| without(&named(object, "unowned"), "/metadata/ownerReferences");
    let stranger = without(
        &without(&named(deployment(), "stranger"), "/metadata/ownerReferences"),
        "/metadata/labels",
    );
    let theirs = without(
        &with(&trainers_policy(), "/metadata/namespace", json!("other")),
        "/metadata/labels",
    );
    let system = named(
        with(&config_map(), "/metadata/namespace", json!("kube-system")),
        "owned",
    );
    let daemon = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true,
        "uid": "3f0c7c9a-0000-4000-8000-000000000003"});
    for object in [
        without(&named(config_map(), "unlabelled"), label),
        without(&named(training_service(), "unlabelled"), label),
        unowned(config_map()),
        stranger,
        theirs,
        system,
        pod("ours"),
        without(&pod("unlabelled"), label),
        unowned(pod("unowned")),
        with(&pod("daemon"), "/metadata/ownerReferences/0", daemon),
        serving_pod(),
        without(&named(serving_pod(), "bare-serving"), "/metadata/ownerReferences"),
        with(&named(serving_pod(), "mislabelled"), TRAINING_LABEL, json!("intent")),
        verifying_pod(),
        training_job("intent"),
        inference_service("intent"),
        model_version("intent-v1"),
        going("intent-old"),
        with(&event(), "/metadata/name", json!("old")),
    ] {
        plane.create(&object).await;
    }
    plane.create(&lease()).await;
}

async fn install(plane: &Plane) {
    plane
        .helm(&[
            "install",
            "flywheel",
            &chart(),
            "--namespace",
            NAMESPACE,
            "--create-namespace",
        ])
        .unwrap();
    for kind in ["trainingjobs", "modelversions", "inferenceservices"] {
        let path = format!("/apis/flywheel.dev/v1alpha1/{kind}");
        plane
            .until(kind, || async { plane.send(Method::GET, &path, None).await.ok() })
            .await;
    }
}

/// Waits until a policy refuses this: new policies act after a second or so.
async fn until_refused(plane: &Plane, ask: &Ask, user: &str) {
    plane
        .until("the policy acts", || async {
            ask.send(plane, user, &[ADMIN_GROUP])
                .await
                .err()
                .filter(|e| e.message.contains("ValidatingAdmissionPolicy"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cage_stops_what_is_not_ours_and_lets_daily_work_through() {
    let plane = Plane::start(false).await;
    install(&plane).await;
    let made = Ask::Create(lease())
        .send(&plane, OPERATOR, &["system:serviceaccounts"])
        .await;
    assert!(made.is_ok(), "its Lease, made: {made:?}");
    seed(&plane).await;
    let (mut work, bad) = (daily_work(), misdeeds());
    until_refused(&plane, &bad[0].1, OPERATOR).await;

    // In a namespace where nothing of the same name is.
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "golden"}}))
        .await;
    for (name, object) in built_by_the_operator() {
        let object = with(&object, "/metadata/namespace", json!("golden"));
        // Versions and trainings are only ever made, never changed.
        let made = ["ModelVersion", "TrainingJob"]
            .map(Value::from)
            .contains(&object["kind"]);
        work.push((name, if made { Ask::Create(object) } else { Ask::Apply(object) }));
    }
    let mut wrong = vec![];
    for (name, ask) in &work {
        if let Err(e) = ask
            .send(&plane, OPERATOR, &["system:serviceaccounts", "system:authenticated"])
            .await
        {
            wrong.push(format!("{name}: {}", e.message));
        }
    }
    assert!(wrong.is_empty(), "refused daily work:\n{}", wrong.join("\n"));
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "ours", "namespace": "team"}});
    let evict = |user: Option<&'static str>| {
        let (plane, eviction) = (&plane, &eviction);
        async move {
            let path = "/api/v1/namespaces/team/pods/ours/eviction?dryRun=All";
            plane
                .send_as(user, &[ADMIN_GROUP], Method::POST, path, Some(eviction))
                .await
        }
    };
    assert!(evict(None).await.is_ok());
    assert!(
        evict(Some(OPERATOR))
            .await
            .unwrap_err()
            .message
            .contains("no business with CREATE of /pods/eviction")
    );

    let mut wrong = vec![];
    for (name, ask, word) in bad.iter().filter(|row| !row.2.is_empty()) {
        match ask.send(&plane, OPERATOR, &[ADMIN_GROUP]).await {
            Err(e) if e.message.contains(word) && e.message.contains("flywheel-cage") => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
        // It is the cage that stops it, and nobody else is in it.
        let free = ask.send(&plane, "somebody", &[ADMIN_GROUP]).await;
        if let Err(e) = free {
            wrong.push(format!("{name}: refused to others, too: {}", e.message));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("cage: {} requests let through, {} refused", work.len(), bad.len());

    each_rule_of_the_cage_is_needed(&plane, &bad).await;
}

/// The cage without one of its rules, once for each, each for a user of its own: some row must then pass.
async fn each_rule_of_the_cage_is_needed(plane: &Plane, bad: &[(&str, Ask, &str)]) {
    let get = |path: &'static str| async move { plane.send(Method::GET, path, None).await.unwrap() };
    let cage = get("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/flywheel-cage").await;
    let rules = cage["spec"]["validations"].as_array().unwrap().len();
    for i in 0..rules {
        let name = format!("mutant-{i}");
        let metadata = json!({"name": name});
        let mut mutant = with(&without(&cage, "/status"), "/metadata", metadata.clone());
        mutant = with(
            &mutant,
            "/spec/matchConditions/0/expression",
            json!(format!(
                "has(request.userInfo.username) && request.userInfo.username == '{name}'"
            )),
        );
        plane.create(&without(&mutant, &format!("/spec/validations/{i}"))).await;
        plane
            .create(
                &json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": metadata, "spec": {"policyName": name, "validationActions": ["Deny"]}}),
            )
            .await;
    }
    let mut needless = vec![];
    for i in 0..rules {
        let name = format!("mutant-{i}");
        // Two misdeeds against different rules, so that one of them is refused by every mutant.
        plane
            .until("the mutant acts", || async {
                let first = bad[0].1.send(plane, &name, &[ADMIN_GROUP]).await;
                let second = bad[2].1.send(plane, &name, &[ADMIN_GROUP]).await;
                (first.is_err() || second.is_err()).then_some(())
            })
            .await;
        let mut red = 0;
        for (_, ask, _) in bad.iter().filter(|row| !row.2.is_empty()) {
            red += usize::from(ask.send(plane, &name, &[ADMIN_GROUP]).await.is_ok());
        }
        if red == 0 {
            needless.push(cage["spec"]["validations"][i]["message"].to_string());
        }
    }
    println!(
        "cage: {} of {rules} rules turn a row red when deleted",
        rules - needless.len()
    );
    assert!(needless.is_empty(), "rules that no row needs: {needless:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_takes_the_right_to_create_pods() {
    let plane = Plane::start(false).await;
    install(&plane).await;
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}))
        .await;
    let rules = |pods: bool| {
        let mut rules = vec![
            json!({"apiGroups": ["flywheel.dev"], "verbs": ["create", "update", "patch", "get"],
            "resources": ["trainingjobs", "modelversions", "inferenceservices", "inferenceservices/scale"]}),
        ];
        if pods {
            rules.push(json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}));
        }
        rules
    };
    for (user, pods) in [("scientist", false), ("engineer", true)] {
        plane
            .create(
                &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules(pods),
                "metadata": {"name": user, "namespace": "team"}}),
            )
            .await;
        plane
            .create(
                &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": user, "namespace": "team"}, "subjects": [{"kind": "User", "name": user,
                "apiGroup": "rbac.authorization.k8s.io"}],
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}}),
            )
            .await;
    }
    let account = "/spec/serviceAccountName";
    let kinds = [training_job("a"), inference_service("a"), model_version("a")];
    // Until the rights and the policy are known everywhere.
    plane
        .until("rights", || async {
            Ask::Create(kinds[0].clone()).send(&plane, "scientist", &[]).await.ok()
        })
        .await;
    plane
        .until("rights", || async {
            Ask::Create(kinds[0].clone()).send(&plane, "engineer", &[]).await.ok()
        })
        .await;
    let with_account = |object: &Value| with(object, account, json!("bucket-reader"));
    until_refused_plainly(&plane, &Ask::Create(with_account(&kinds[0])), "scientist").await;

    for object in &kinds {
        let kind = &object["kind"];
        let refused = |result: Result<Value, Refusal>| {
            let error = result.expect_err("refused");
            assert!(
                error.code == 403 && error.message.contains("spec.serviceAccountName"),
                "{kind}: {}",
                error.message
            );
        };
        let create = |object: Value| Ask::Create(object);
        assert!(
            create(object.clone()).send(&plane, "scientist", &[]).await.is_ok(),
            "{kind}"
        );
        refused(create(with_account(object)).send(&plane, "scientist", &[]).await);
        assert!(
            create(with_account(object)).send(&plane, "engineer", &[]).await.is_ok(),
            "{kind}"
        );
    }
    // Made by one who may; then everything but the account may be changed by the other.
    for object in &kinds[..2] {
        plane.create(&with_account(object)).await;
    }
    let service = path(&kinds[1]);
    let patch = |body: Value| Ask::Patch(service.clone(), body);
    for (user, body, allowed) in [
        ("scientist", json!({"spec": {"replicas": 2}}), true),
        ("scientist", json!({"spec": {"serviceAccountName": "admin"}}), false),
        ("scientist", json!({"spec": {"serviceAccountName": null}}), false),
        ("scientist", json!({"metadata": {"labels": {"a": "b"}}}), true),
        ("engineer", json!({"spec": {"serviceAccountName": "admin"}}), true),
        ("engineer", json!({"spec": {"serviceAccountName": null}}), true),
    ] {
        let result = patch(body.clone()).send(&plane, user, &[]).await;
        assert_eq!(result.is_ok(), allowed, "{user} {body}: {result:?}");
    }
    let suspend = Ask::Patch(path(&kinds[0]), json!({"spec": {"suspend": true}}));
    assert!(suspend.send(&plane, "scientist", &[]).await.is_ok());
    let scale = Ask::Patch(service.clone() + "/scale", json!({"spec": {"replicas": 2}}));
    assert!(
        scale.send(&plane, "scientist", &[]).await.is_ok(),
        "scale is no change of the account"
    );
    // The operator copies the account from the job; it may not create pods.
    let version = Ask::Create(with_account(&model_version("new")));
    assert!(
        version
            .send(&plane, OPERATOR, &["system:serviceaccounts"])
            .await
            .is_ok()
    );
    println!("serviceAccountName: 17 requests as expected");
}

async fn until_refused_plainly(plane: &Plane, ask: &Ask, user: &str) {
    plane
        .until("the policy acts", || async { ask.send(plane, user, &[]).await.err() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_by_helm_upgraded_and_removed() {
    let plane = Plane::start(true).await;
    install(&plane).await;
    // An older CRD, as an earlier chart would have left it: Helm wrote it, a field is not there yet.
    let file = root().join("charts/flywheel/crds/inferenceservices.yaml");
    let crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let storage = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/storage";
    let crd_path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceservices.flywheel.dev";
    let apply = format!("{crd_path}?fieldManager=helm&force=true");
    plane
        .send(Method::PATCH, &apply, Some(&without(&crd, storage)))
        .await
        .unwrap_or_else(|e| panic!("{}", e.message));
    let has_storage = || async {
        plane
            .send(Method::GET, crd_path, None)
            .await
            .unwrap()
            .pointer(storage)
            .is_some()
    };
    assert!(!has_storage().await, "an older CRD");
    plane
        .helm(&[
            "upgrade",
            "flywheel",
            &chart(),
            "--namespace",
            NAMESPACE,
            "--set",
            "replicas=3",
        ])
        .unwrap();
    assert!(
        !has_storage().await,
        "Helm upgrades no CRDs; if it does now, say so in README.md and NOTES.txt"
    );
    // The documented command: `helm show crds CHART | kubectl apply --server-side --force-conflicts -f -`.
    let file = plane.control.folder().join("crds.yaml");
    std::fs::write(&file, plane.helm(&["show", "crds", &chart()]).unwrap()).unwrap();
    plane.ctl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        file.to_str().unwrap(),
    ]);
    assert!(has_storage().await, "the documented command upgrades the CRDs");
    assert_eq!(
        plane.ctl(&[
            "-n",
            NAMESPACE,
            "get",
            "deployment",
            "flywheel-operator",
            "-o",
            "jsonpath={.spec.replicas}"
        ]),
        "3"
    );

    users_roles_are_aggregated(&plane).await;
    served_versions_stay_but_hang_no_namespace(&plane).await;
    a_second_installation_is_refused(&plane);

    // Namespaced mode, by an upgrade of the same release.
    plane
        .helm(&[
            "upgrade",
            "flywheel",
            &chart(),
            "--namespace",
            NAMESPACE,
            "--set",
            "watchNamespaces={team}",
        ])
        .unwrap();
    for (namespace, verb, resource, expected) in [
        ("team", "create", "jobs.batch", true),
        ("default", "create", "jobs.batch", false),
        ("default", "list", "nodes", false),
        (
            NAMESPACE,
            "update",
            "leases.coordination.k8s.io/flywheel-operator",
            true,
        ),
        (NAMESPACE, "update", "leases.coordination.k8s.io/other", false),
        ("team", "get", "secrets", false),
    ] {
        plane
            .until(&format!("{namespace} {verb} {resource}: {expected}"), || async {
                (can(&plane, OPERATOR, namespace, verb, resource).await == expected).then_some(())
            })
            .await;
    }

    a_second_installation_is_refused(&plane);

    plane
        .helm(&[
            "uninstall",
            "flywheel",
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            "60s",
        ])
        .unwrap();
    for object in [
        training_job("intent"),
        inference_service("intent"),
        model_version("served"),
    ] {
        let left = plane.send(Method::GET, &path(&object), None).await;
        assert!(left.is_ok(), "{}: users' objects stay", path(&object));
    }
    // Nothing hangs: no finalizers, no policy of an operator that is gone.
    let served = path(&model_version("served"));
    plane
        .until("the policy is gone", || async {
            plane.send(Method::DELETE, &served, None).await.ok()
        })
        .await;
    plane.ctl(&["delete", "namespace", "team", "--timeout=60s"]);
    plane.ctl(&["delete", "crd", "trainingjobs.flywheel.dev", "--timeout=30s"]);
}

/// Their Leases would lie in two namespaces, so both would lead.
fn a_second_installation_is_refused(plane: &Plane) {
    let (roles, policies) = (
        "userRoles=false",
        "policies.cage=false,policies.serviceAccountName=false",
    );
    for (release, namespace, values) in [
        ("second", "elsewhere", ""),
        ("flywheel", "elsewhere", ""),
        ("second", NAMESPACE, ""),
        ("second", "elsewhere", "watchNamespaces={team}"),
        ("second", "elsewhere", roles),
        ("second", "elsewhere", policies),
    ] {
        let chart = chart();
        let arguments = ["upgrade", "--install", release, &chart, "--namespace", namespace];
        let refusal = plane
            .helm(&[&arguments[..], &["--create-namespace", "--set", values]].concat())
            .expect_err("a second operator");
        for words in [
            "release flywheel in the namespace flywheel-system",
            "helm uninstall flywheel",
        ] {
            assert!(
                refusal.contains(words),
                "{release} in {namespace} with {values}: {refusal}"
            );
        }
    }
}

async fn can(plane: &Plane, user: &str, namespace: &str, verb: &str, resource: &str) -> bool {
    let (resource, name) = resource.split_once('/').map_or((resource, ""), |(r, n)| (r, n));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    // `inferenceservices:scale` names a subresource.
    let (resource, subresource) = resource.split_once(':').unwrap_or((resource, ""));
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": user,
        "resourceAttributes": {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "name": name,
            "subresource": subresource}}});
    let answer = plane
        .send(
            Method::POST,
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            Some(&review),
        )
        .await
        .unwrap();
    answer["status"]["allowed"] == true
}

async fn users_roles_are_aggregated(plane: &Plane) {
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}))
        .await;
    for role in ["view", "edit", "admin"] {
        plane
            .create(
                &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": "team"}, "subjects": [{"kind": "User", "name": role,
                "apiGroup": "rbac.authorization.k8s.io"}],
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}}),
            )
            .await;
    }
    for (user, verb, resource, expected) in [
        ("view", "list", "trainingjobs.flywheel.dev", true),
        ("view", "create", "trainingjobs.flywheel.dev", false),
        ("edit", "create", "trainingjobs.flywheel.dev", true),
        ("edit", "delete", "modelversions.flywheel.dev", true),
        ("edit", "patch", "inferenceservices:scale.flywheel.dev", true),
        ("edit", "patch", "modelversions:status.flywheel.dev", false),
        ("admin", "create", "inferenceservices.flywheel.dev", true),
        ("admin", "watch", "modelversions.flywheel.dev", true),
        ("admin", "patch", "modelversions:status.flywheel.dev", false),
    ] {
        plane
            .until(&format!("{user} {verb} {resource}: {expected}"), || async {
                (can(plane, user, "team", verb, resource).await == expected).then_some(())
            })
            .await;
    }
}

/// A served version cannot be deleted by anybody, but goes with its namespace.
async fn served_versions_stay_but_hang_no_namespace(plane: &Plane) {
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "going"}}))
        .await;
    let condition = |status: &str| {
        json!({"status": {"services": ["intent"], "conditions": [{"type": "Served", "status": status, "reason": "Served",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let version = model_version("served");
    let going = with(&version, "/metadata/namespace", json!("going"));
    let idle = model_version("idle");
    for (object, served) in [(&version, "True"), (&going, "True"), (&idle, "False")] {
        plane.create(object).await;
        plane
            .send(
                Method::PATCH,
                &format!("{}/status", path(object)),
                Some(&condition(served)),
            )
            .await
            .unwrap();
    }
    for object in [training_job("intent"), inference_service("intent")] {
        plane.create(&object).await;
    }
    let delete = Ask::Delete(path(&version));
    until_refused(plane, &delete, "admin").await;
    let error = delete.send(plane, "admin", &[ADMIN_GROUP]).await.unwrap_err();
    assert!(
        error
            .message
            .contains("served by intent; point them to another version"),
        "{}",
        error.message
    );
    assert!(
        Ask::Delete(path(&idle))
            .send(plane, "admin", &[ADMIN_GROUP])
            .await
            .is_ok(),
        "one that nobody serves"
    );
    for controller in [
        "system:serviceaccount:kube-system:generic-garbage-collector",
        "system:serviceaccount:kube-system:namespace-controller",
        "system:kube-controller-manager",
    ] {
        assert!(
            delete.send(plane, controller, &[ADMIN_GROUP]).await.is_ok(),
            "{controller}"
        );
    }
    plane.ctl(&["delete", "namespace", "going", "--timeout=60s"]);
}
