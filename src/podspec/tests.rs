use std::collections::BTreeMap;

use flywheel_api::pod;
use flywheel_policy::placement::LabelTerm;
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn term(key: &str, values: &[&str]) -> LabelTerm {
    LabelTerm(BTreeMap::from([(
        key.to_owned(),
        values.iter().map(|v| (*v).to_owned()).collect(),
    )]))
}

fn t4_terms() -> Vec<LabelTerm> {
    vec![
        term("nvidia.com/gpu.product", &["Tesla-T4"]),
        term("cloud.google.com/gke-accelerator", &["nvidia-tesla-t4"]),
    ]
}

fn gpu_taint() -> Vec<pod::Toleration> {
    serde_json::from_value(json!([{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])).unwrap()
}

fn class(label_terms: Vec<LabelTerm>, tolerations: Vec<pod::Toleration>) -> AcceleratorClass {
    AcceleratorClass {
        label_terms,
        resource: "nvidia.com/gpu".to_owned(),
        tolerations,
        trainer_image: "registry.example/trainer:1".to_owned(),
        server_image: "registry.example/server:1".to_owned(),
        device: flywheel_contract::scalar::Device::Cuda,
        fallback: None,
    }
}

/// Inputs as a controller gives them, with these settings of the user.
fn with<T>(settings: Option<&PodSettings>, storage: Option<&Storage>, f: impl FnOnce(PodInputs<'_>) -> T) -> T {
    with_class(&class(t4_terms(), gpu_taint()), settings, storage, f)
}

fn with_class<T>(
    class: &AcceleratorClass,
    settings: Option<&PodSettings>,
    storage: Option<&Storage>,
    f: impl FnOnce(PodInputs<'_>) -> T,
) -> T {
    let secrets = vec!["flywheel-registry".to_owned()];
    let resources: Resources = serde_json::from_value(
        json!({"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "8Gi", "ephemeral-storage": "20Gi"}}),
    )
    .unwrap();
    f(PodInputs {
        container: "server",
        labels: BTreeMap::from([("flywheel.dev/inference-service".to_owned(), "intent".to_owned())]),
        annotations: BTreeMap::new(),
        class: Some(class),
        fallback: None,
        gpus: 1,
        avoided: &[],
        image: "registry.example/server:1",
        image_pull_policy: ImagePullPolicy::IfNotPresent,
        args: vec!["serve".to_owned()],
        env: vec![config_env(r#"{"price":"$(HOME) $5"}"#)],
        env_secrets: Vec::new(),
        ports: vec![("http", 8080), ("inside", 9090)],
        resources: Some(&resources),
        settings,
        settings_path: "spec.server.pod",
        subdomain: None,
        storage,
        service_account: Some("bucket-reader"),
        image_pull_secrets: &secrets,
        volumes: Vec::new(),
        volume_mounts: Vec::new(),
        probes: Probes::default(),
        lifecycle: None,
        restart_policy: "Always",
        termination_grace_seconds: 31,
    })
}

fn settings(value: Value) -> PodSettings {
    serde_json::from_value(value).unwrap()
}

fn render(value: Value) -> Value {
    let settings = settings(value);
    serde_json::to_value(with(Some(&settings), None, template).unwrap()).unwrap()
}

fn refused(value: Value) -> PodSpecError {
    let settings = settings(value);
    with(Some(&settings), None, template).unwrap_err()
}

#[test]
fn a_pod_without_settings() {
    insta::assert_json_snapshot!(with(None, None, template).unwrap());
}

#[test]
fn a_pod_with_every_setting() {
    let settings = settings(json!({
        "labels": {"team": "intent", "flywheel.dev/inference-service": "stolen"},
        "annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "3306", "team": "intent"},
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "spot", "operator": "Equal", "value": "true", "effect": "NoExecute", "tolerationSeconds": 60}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
                ]},
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "preference": {"matchExpressions": [{"key": "new", "operator": "Exists"}]}}
                ]
            },
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 10, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}}
            ]}
        },
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
             "labelSelector": {"matchLabels": {"flywheel.dev/inference-service": "intent"}}}
        ],
        "env": [
            {"name": "RUST_LOG", "value": "debug"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "t"}}},
            {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "modes", "key": "m"}}}
        ],
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": "cache", "readOnly": true}},
            {"name": "extra", "secret": {"secretName": "extra"}},
            {"name": "map", "configMap": {"name": "map"}},
            {"name": "big", "emptyDir": {"sizeLimit": "10Gi"}}
        ],
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache", "readOnly": true},
            {"name": "big", "mountPath": "/tmp"}
        ],
        "imagePullSecrets": [{"name": "mine"}, {"name": "flywheel-registry"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "schedulerName": "volcano",
        "resourceClaims": [{"name": "nic", "resourceClaimTemplateName": "rdma"}]
    }));
    let storage: Storage = serde_json::from_value(json!({
        "secretRef": {"name": "s3"}, "endpoint": "https://minio.example", "region": "eu-1",
        "caBundle": {"configMapRef": {"name": "ca", "key": "company.pem"}}
    }))
    .unwrap();
    insta::assert_json_snapshot!(with(Some(&settings), Some(&storage), template).unwrap());
    assert_eq!(
        serde_json::to_value(storage_settings(Some(&storage))).unwrap(),
        json!({"endpoint": "https://minio.example", "region": "eu-1", "caFile": "/etc/flywheel/storage-ca/ca.crt"})
    );
}

#[test]
fn a_pod_without_a_class_asks_for_no_gpu() {
    let rendered = with(None, None, |mut inputs| {
        inputs.class = None;
        template(inputs)
    })
    .unwrap();
    let value = serde_json::to_value(rendered).unwrap();
    assert_eq!(value.pointer("/spec/affinity"), None);
    assert_eq!(
        value.pointer("/spec/containers/0/resources/limits"),
        Some(&json!({"memory": "8Gi", "ephemeral-storage": "20Gi"}))
    );
    assert_eq!(value.pointer("/spec/tolerations").unwrap().as_array().unwrap().len(), 2);
}

#[test]
fn the_users_word_on_dead_nodes_counts() {
    let count = |tolerations: Value| {
        let value = render(json!({ "tolerations": tolerations }));
        value["spec"]["tolerations"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|t| t["tolerationSeconds"] == json!(DEAD_NODE_TOLERATION_SECONDS))
            .count()
    };
    assert_eq!(count(json!([])), 2);
    assert_eq!(
        count(json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}])),
        1
    );
    assert_eq!(count(json!([{"operator": "Exists"}])), 0);
}

#[test]
fn what_no_pod_can_be_made_of_is_refused_with_its_path() {
    let none_matches =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}});
    let many: Vec<Value> = (0..100)
        .map(|i| json!({"matchExpressions": [{"key": format!("k{i}"), "operator": "Exists"}]}))
        .collect();
    let many = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": many}}});
    let table = [
        (
            json!({"affinity": {"nodeAfinity": {}}}),
            "spec.server.pod.affinity.nodeAfinity",
        ),
        (json!({"affinity": {"nodeAffinity": 3}}), "spec.server.pod.affinity"),
        (
            json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {"matchExpression": []}}]}}}),
            "spec.server.pod.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpression",
        ),
        (
            json!({"affinity": none_matches}),
            "spec.server.pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
        ),
        (json!({"affinity": many}), "spec.server.pod.affinity"),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": "one"}]}),
            "spec.server.pod.topologySpreadConstraints[0]",
        ),
        (
            json!({"env": [{"name": "FLYWHEEL_CONFIG", "value": "{}"}]}),
            "spec.server.pod.env[FLYWHEEL_CONFIG]",
        ),
        (
            json!({"env": [{"name": "JOB_COMPLETION_INDEX", "value": "0"}]}),
            "spec.server.pod.env[JOB_COMPLETION_INDEX]",
        ),
        (
            json!({"annotations": {"container.apparmor.security.beta.kubernetes.io/server": "unconfined"}}),
            "spec.server.pod.annotations[container.apparmor.security.beta.kubernetes.io/server]",
        ),
    ];
    for (settings, path) in table {
        let error = refused(settings.clone());
        assert_eq!(error.path, path, "{settings}: {error}");
        assert!(!error.message.is_empty());
    }
}

#[test]
fn nulls_in_open_objects_are_as_absent() {
    let value = render(json!({"affinity": {"podAffinity": null}}));
    assert_eq!(value.pointer("/spec/affinity/podAffinity"), None);
}

#[test]
fn a_class_of_all_nodes_leaves_the_users_terms_alone() {
    let user = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}});
    let settings = settings(json!({"affinity": user.clone()}));
    for terms in [vec![], vec![LabelTerm::default(), term("a", &["b"])]] {
        let all_nodes = class(terms, Vec::new());
        let rendered = with_class(&all_nodes, Some(&settings), None, template).unwrap();
        assert_eq!(serde_json::to_value(rendered.spec.unwrap().affinity).unwrap(), user);
    }
}

#[test]
fn a_fallback_class_adds_its_nodes_and_the_own_ones_are_preferred() {
    let spec = |class: &AcceleratorClass, fallback: &AcceleratorClass, settings: Value| {
        let settings = self::settings(settings);
        let rendered = with_class(class, Some(&settings), None, |inputs| {
            template(PodInputs {
                fallback: Some(fallback),
                ..inputs
            })
        });
        serde_json::to_value(rendered.unwrap().spec.unwrap()).unwrap()
    };
    let own = || class(vec![term("gpu", &["a100"]), term("zone", &["a"])], gpu_taint());
    let other = || class(vec![term("gpu", &["t4"]), term("zone", &["a"])], gpu_taint());
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let is = |key: &str, value: &str| json!({"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]});
    let prefers = |term: Value| json!({"weight": 100, "preference": term});

    let plain = spec(&own(), &other(), json!({}));
    assert_eq!(
        plain["affinity"]["nodeAffinity"],
        json!({
            required: {"nodeSelectorTerms": [is("gpu", "a100"), is("zone", "a"), is("gpu", "t4")]},
            preferred: [prefers(is("gpu", "a100")), prefers(is("zone", "a"))]
        })
    );
    let tolerated = |spec: &Value| spec["tolerations"].as_array().unwrap().len();
    assert_eq!(tolerated(&plain), 1 + DEAD_NODE_TAINTS.len(), "the same taint once");
    let tainted = class(
        vec![term("gpu", &["t4"])],
        vec![serde_json::from_value(json!({"key": "t4", "operator": "Exists"})).unwrap()],
    );
    assert_eq!(
        tolerated(&spec(&own(), &tainted, json!({}))),
        2 + DEAD_NODE_TAINTS.len()
    );

    // The user's terms hold on both, and the user's preferences beside ours.
    let theirs = json!({"affinity": {"nodeAffinity": {
        required: {"nodeSelectorTerms": [is("disk", "ssd")]},
        preferred: [{"weight": 1, "preference": is("new", "yes")}]
    }}});
    let crossed = spec(&own(), &other(), theirs);
    let node = &crossed["affinity"]["nodeAffinity"];
    let terms = node[required]["nodeSelectorTerms"].as_array().unwrap();
    assert_eq!(terms.len(), 3);
    assert!(
        terms.iter().all(|term| term["matchExpressions"][1]["key"] == "disk"),
        "{node:#}"
    );
    assert_eq!(node[preferred].as_array().unwrap().len(), 3);

    // Where every node is one of either class, every node will do.
    let all = || class(Vec::new(), gpu_taint());
    assert_eq!(
        spec(&own(), &all(), json!({}))["affinity"]["nodeAffinity"],
        json!({preferred: [prefers(is("gpu", "a100")), prefers(is("zone", "a"))]})
    );
    assert_eq!(spec(&all(), &other(), json!({})).get("affinity"), None);
}

#[test]
fn a_dollar_never_reaches_the_kubelets_expansion() {
    let var = config_env(r#"{"uri":"a$(HOME)$$b"}"#);
    let text = var.value.unwrap();
    assert!(!text.contains('$'), "{text}");
    let back: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(back["uri"], "a$(HOME)$$b");
}

/// What Pod Security `restricted` (v1.34) asks, and what no pod of ours may have beside it.
fn breaks_a_rule(template: &core::PodTemplateSpec) -> Option<String> {
    let value = serde_json::to_value(template).unwrap();
    let text = value.to_string();
    for word in [
        "hostPath",
        "hostNetwork",
        "hostPID",
        "hostIPC",
        "hostPort",
        "privileged",
        "procMount",
        "sysctls",
        "serviceAccountToken",
    ] {
        if has_key(&value["spec"], word) {
            return Some(format!("{word} in {text}"));
        }
    }
    let spec = template.spec.as_ref().unwrap();
    if spec.automount_service_account_token != Some(false) {
        return Some("token".to_owned());
    }
    if spec.containers.len() != 1 || spec.init_containers.is_some() || spec.ephemeral_containers.is_some() {
        return Some("containers".to_owned());
    }
    let pod = spec.security_context.as_ref().unwrap();
    let profile = pod.seccomp_profile.as_ref().map(|p| p.type_.as_str());
    if pod.run_as_non_root != Some(true) || pod.run_as_user != Some(RUN_AS) || profile != Some("RuntimeDefault") {
        return Some("pod security context".to_owned());
    }
    let container = spec.containers[0].security_context.as_ref().unwrap();
    let dropped = container.capabilities.as_ref().and_then(|c| c.drop.clone());
    if container.allow_privilege_escalation != Some(false)
        || container.read_only_root_filesystem != Some(true)
        || dropped != Some(vec!["ALL".to_owned()])
        || container.capabilities.as_ref().is_some_and(|c| c.add.is_some())
        || container.seccomp_profile.is_some()
        || container.run_as_user.is_some_and(|u| u == 0)
    {
        return Some("container security context".to_owned());
    }
    for volume in spec.volumes.iter().flatten() {
        let kinds: Vec<String> = serde_json::to_value(volume)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
            .filter(|k| *k != "name")
            .cloned()
            .collect();
        if !kinds
            .iter()
            .all(|k| ["emptyDir", "configMap", "secret", "persistentVolumeClaim"].contains(&k.as_str()))
        {
            return Some(format!("volume of kind {kinds:?}"));
        }
    }
    let annotations = template
        .metadata
        .as_ref()
        .and_then(|m| m.annotations.clone())
        .unwrap_or_default();
    annotations
        .keys()
        .find(|k| k.contains("apparmor") || k.contains("seccomp"))
        .cloned()
}

fn has_key(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map
            .iter()
            .any(|(k, v)| k == key || (!is_free_text(k) && has_key(v, key))),
        Value::Array(list) => list.iter().any(|v| has_key(v, key)),
        _ => false,
    }
}

/// Maps whose keys are the user's words.
fn is_free_text(key: &str) -> bool {
    matches!(key, "nodeSelector" | "matchLabels")
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,8}",
        Just("hostPath".to_owned()),
        Just("privileged".to_owned()),
        Just("FLYWHEEL_CONFIG".to_owned()),
        Just("container.apparmor.security.beta.kubernetes.io/server".to_owned()),
        Just("flywheel.dev/attempt".to_owned()),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("nodeAffinity".to_owned()),
        Just("podAffinity".to_owned()),
        Just("requiredDuringSchedulingIgnoredDuringExecution".to_owned()),
        Just("nodeSelectorTerms".to_owned()),
        Just("matchExpressions".to_owned()),
        Just("securityContext".to_owned()),
        Just("hostNetwork".to_owned()),
        word(),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word().prop_map(Value::from)
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

prop_compose! {
    fn any_settings()(
        labels in prop::option::of(prop::collection::btree_map(word(), word(), 0..4)),
        annotations in prop::option::of(prop::collection::btree_map(word(), word(), 0..4)),
        node_selector in prop::option::of(prop::collection::btree_map(word(), word(), 0..4)),
        affinity in prop::option::of(any_json()),
        spread in prop::option::of(prop::collection::vec(any_json(), 0..3)),
        env in prop::option::of(prop::collection::vec((word(), prop::option::of(word())), 0..4)),
        volumes in prop::option::of(prop::collection::vec((word(), 0..4u8), 0..4)),
        mounts in prop::option::of(prop::collection::vec((word(), word()), 0..4)),
        words in prop::collection::vec(prop::option::of(word()), 4),
    ) -> PodSettings {
        let volume = |(name, kind): (String, u8)| pod::Volume {
            empty_dir: (kind == 0).then_some(pod::EmptyDir { size_limit: None }),
            config_map: (kind == 1).then(|| pod::LocalReference { name: name.clone() }),
            secret: (kind == 2).then(|| pod::SecretVolume { secret_name: name.clone() }),
            persistent_volume_claim: (kind == 3).then(|| pod::ClaimVolume { claim_name: name.clone(), read_only: None }),
            name,
        };
        PodSettings {
            labels,
            annotations,
            node_selector,
            tolerations: words[3].clone().map(|key| vec![pod::Toleration {
                key: Some(key), operator: None, value: None, effect: None, toleration_seconds: None,
            }]),
            affinity,
            topology_spread_constraints: spread,
            env: env.map(|list| list.into_iter().map(|(name, value)| pod::EnvVar { name, value, value_from: None }).collect()),
            volumes: volumes.map(|list| list.into_iter().map(volume).collect()),
            volume_mounts: mounts.map(|list| {
                list.into_iter()
                    .map(|(name, path)| pod::VolumeMount { name, mount_path: format!("/{path}"), read_only: None })
                    .collect()
            }),
            image_pull_secrets: words[0].clone().map(|name| vec![pod::LocalReference { name }]),
            runtime_class_name: words[1].clone(),
            priority_class_name: words[2].clone(),
            scheduler_name: words[1].clone(),
            resource_claims: None,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_a_user_says_a_pod_stays_restricted(settings in any_settings()) {
        if let Ok(template) = with(Some(&settings), None, template) {
            prop_assert_eq!(breaks_a_rule(&template), None);
            let again = with(Some(&settings), None, super::template).unwrap();
            prop_assert_eq!(template, again, "the same input gives the same pod");
        }
    }
}

#[test]
fn the_rules_of_the_property_see_what_they_must() {
    let good = with(None, None, template).unwrap();
    assert_eq!(breaks_a_rule(&good), None);
    type Spoil = (&'static str, fn(&mut core::PodSpec));
    let spoil: [Spoil; 5] = [
        ("hostNetwork", |s| s.host_network = Some(true)),
        ("token", |s| s.automount_service_account_token = None),
        ("root", |s| s.security_context.as_mut().unwrap().run_as_non_root = None),
        ("escalation", |s| {
            s.containers[0]
                .security_context
                .as_mut()
                .unwrap()
                .allow_privilege_escalation = None
        }),
        ("host path", |s| {
            s.volumes.as_mut().unwrap().push(core::Volume {
                name: "h".to_owned(),
                host_path: Some(core::HostPathVolumeSource::default()),
                ..core::Volume::default()
            });
        }),
    ];
    for (case, change) in spoil {
        let mut bad = good.clone();
        change(bad.spec.as_mut().unwrap());
        assert!(breaks_a_rule(&bad).is_some(), "{case} was not seen");
    }
}
