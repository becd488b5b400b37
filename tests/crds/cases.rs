//! Bad objects: for each restriction of a schema one or more that break only it.

use serde_json::{Value, json};

use crate::plane::{with, without};
use crate::schema::{Crd, Keyword, Site};

/// How an object gets to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Create,
    /// The base is there; the object replaces it.
    Update,
    /// The base is there; the object's status replaces its.
    Status,
}

/// A bad object and how it must be refused.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub object: Value,
    pub base: Value,
    pub via: Via,
    /// Path of the field as Kubernetes writes it.
    pub field: String,
    /// Part of the message.
    pub phrase: String,
}

/// The phrase of cases that a strict decoder refuses.
pub const UNKNOWN_FIELD: &str = "unknown field";

/// `/spec/a/0/b` as `spec.a[0].b`.
pub fn field(pointer: &str) -> String {
    let mut text = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/");
        if part.parse::<usize>().is_ok() {
            text.push_str(&format!("[{part}]"));
        } else {
            text.push_str(if text.is_empty() { "" } else { "." });
            text.push_str(&part);
        }
    }
    text
}

fn case(site: &Site, bases: &[Value], object: Value, field: String, phrase: &str) -> Case {
    let base = without(&bases[site.base], "/status");
    let status = site.instance.starts_with("/status");
    let object = if status { object } else { without(&object, "/status") };
    let via = if status { Via::Status } else { Via::Create };
    Case {
        name: site.to_string(),
        object,
        base,
        via,
        field,
        phrase: phrase.to_owned(),
    }
}

/// The bad objects of a site.
pub fn of_site(crd: &Crd, site: &Site, bases: &[Value]) -> Vec<Case> {
    let (base, node) = (&bases[site.base], crd.node(site));
    let good = base.pointer(&site.instance).unwrap();
    let one = |bad: Value, phrase: &str| {
        vec![case(
            site,
            bases,
            with(base, &site.instance, bad),
            field(&site.instance),
            phrase,
        )]
    };
    let number = |word: &str| node[word].as_f64().unwrap() as i64;
    match &site.keyword {
        Keyword::Plain("minimum") => one(json!(number("minimum") - 1), "greater than or equal to"),
        Keyword::Plain("maximum") => one(json!(number("maximum") + 1), "less than or equal to"),
        Keyword::Plain("minLength") => one(json!(""), "at least 1 chars long"),
        Keyword::Plain("maxLength") => one(
            json!(longer(good.as_str().unwrap_or("1"), number("maxLength"))),
            "Too long",
        ),
        Keyword::Plain("minItems") => one(json!([]), &format!("at least {} items", number("minItems"))),
        Keyword::Plain("maxItems") => one(json!(more(good, node, number("maxItems"))), "must have at most"),
        Keyword::Plain("maxProperties") => {
            let many: serde_json::Map<_, _> = (0..=number("maxProperties"))
                .map(|i| (format!("key-{i}"), json!("v")))
                .collect();
            one(Value::Object(many), "must have at most")
        }
        Keyword::Plain("pattern") => one(json!("! !"), "should match"),
        Keyword::Plain("enum") => one(json!("Nonsense"), "Unsupported value"),
        Keyword::Plain(word) => panic!("{site}: no bad object for {word} yet"),
        Keyword::Required(name) => {
            let pointer = format!("{}/{name}", site.instance);
            vec![case(
                site,
                bases,
                without(base, &pointer),
                field(&pointer),
                "Required value",
            )]
        }
        Keyword::Rule(i) => {
            let rule = &node["x-kubernetes-validations"][*i];
            let message = rule["message"].as_str().unwrap();
            let path = rule["fieldPath"].as_str().unwrap_or_default();
            let place = format!("{}{path}", field(&site.instance));
            let place = place.trim_start_matches('.').to_owned();
            let bad = broken(message, good);
            let transition = rule["rule"].as_str().unwrap().contains("oldSelf");
            bad.into_iter()
                .map(|bad| {
                    let object = if site.instance.is_empty() {
                        bad
                    } else {
                        with(base, &site.instance, bad)
                    };
                    let mut case = case(site, bases, object, place.clone(), message);
                    if transition {
                        case.via = Via::Update;
                        // Objects of many cases live side by side.
                        let name = json!(format!("{}-to-change", case.base["metadata"]["name"].as_str().unwrap()));
                        case.base = with(&case.base, "/metadata/name", name.clone());
                        case.object = with(&case.object, "/metadata/name", name);
                    }
                    case
                })
                .collect()
        }
    }
}

/// A text of more than `max` characters that still looks like the good one.
fn longer(good: &str, max: i64) -> String {
    let missing = usize::try_from(max).unwrap() + 1 - good.chars().count().min(usize::try_from(max).unwrap());
    if good.starts_with(|c: char| c.is_ascii_digit()) {
        "1".repeat(missing) + good
    } else {
        good.to_owned() + &"a".repeat(missing)
    }
}

/// More than `max` items, different where the list is a map.
fn more(good: &Value, node: &Value, max: i64) -> Vec<Value> {
    let first = &good[0];
    let key = node["x-kubernetes-list-map-keys"][0].as_str();
    (0..=max)
        .map(|i| match key {
            // Of these, names and paths take a number at their end; metrics do not.
            Some("epoch") => with(first, "/epoch", json!(i)),
            Some("metric") => with(first, "/metric", json!(format!("test/{i}"))),
            Some(key) => with(
                first,
                &format!("/{key}"),
                json!(format!("{}{i}", first[key].as_str().unwrap())),
            ),
            None => first.clone(),
        })
        .collect()
}

/// Values that break the CEL rule of this message, from one that keeps it.
fn broken(message: &str, good: &Value) -> Vec<Value> {
    let set = |pointer: &str, value: Value| with(good, pointer, value);
    let longest = "a".repeat(64);
    match message {
        "the name must be a DNS label that starts with a letter (lower case, at most 63 characters)" => {
            ["1abc", "a.b", &longest]
                .into_iter()
                .map(|name| set("/metadata/name", json!(name)))
                .collect()
        }
        "the spec of a ModelVersion cannot be changed; make a new one" => vec![
            set("/spec/version", json!(8)),
            set("/spec/artifact/uri", json!("s3://other")),
            without(good, "/spec/metrics"),
        ],
        "model cannot be changed; make a new InferenceService" => vec![set("/model", json!("other"))],
        "the percents of the variants must add up to 100" => {
            vec![
                set("/variants/1/percent", json!(31)),
                set("/variants/0/percent", json!(0)),
            ]
        }
        "one of the variants must be the version of modelVersion, which answers before and after the experiment" => {
            vec![set("/modelVersion", json!("intent-v9"))]
        }
        "the version of mirror must be one that does not answer" => vec![
            set("/mirror/modelVersion", json!("intent-v1")),
            set("/mirror/modelVersion", json!("intent-v3")),
            without(&set("/mirror/modelVersion", json!("intent-v1")), "/experiment"),
        ],
        "a service has a rollout or an experiment, not both: each divides the requests" => {
            let experiment = json!({"variants": [
                {"modelVersion": good["modelVersion"], "percent": 50}, {"modelVersion": "intent-v8", "percent": 50}]});
            let rollout = json!({"steps": [{"weightPercent": 5, "durationSeconds": 60}]});
            vec![with(&set("/experiment", experiment), "/rollout", rollout)]
        }
        "timeZone is that of schedule, which is not given" => vec![without(good, "/schedule")],
        "retrain.minFeedback needs drift: no other training waits for it" => {
            let wanted = with(
                &set("/retrain/minFeedback", json!(1)),
                "/feedback",
                json!({"signingKeySecretRef": {"name": "n", "key": "k"}}),
            );
            vec![without(&wanted, "/drift")]
        }
        "retrain.minFeedback needs feedback, by which clients say what would have been right" => {
            vec![without(&set("/retrain/minFeedback", json!(1)), "/feedback")]
        }
        "windowSeconds above 300 must be a multiple of 300, the windows in which pods count" => {
            vec![set("/windowSeconds", json!(301)), set("/windowSeconds", json!(599))]
        }
        "uri and capture: true are given together: texts are kept there, and only where you say so" => {
            vec![set("/capture", json!(false)), without(good, "/uri")]
        }
        "redact is of texts that are kept; set capture: true and uri, or leave it out" => {
            vec![without(
                &without(&set("/capture", json!(false)), "/uri"),
                "/retentionDays",
            )]
        }
        "retentionDays is of texts that are kept; set capture: true and uri, or leave it out" => {
            vec![without(&without(&set("/capture", json!(false)), "/uri"), "/redact")]
        }
        "each step must have a greater weightPercent than the one before it" => vec![
            set("/steps/1/weightPercent", json!(1)),
            set("/steps/1/weightPercent", good["steps"][0]["weightPercent"].clone()),
        ],
        "minReplicas must not be above maxReplicas" => {
            vec![set("/minReplicas", json!(9)), set("/maxReplicas", json!(1))]
        }
        "latencyP99Milliseconds must not be above server.timeoutMilliseconds, after which requests are answered 504" => {
            vec![
                set("/objectives/latencyP99Milliseconds", json!(501)),
                set("/server/timeoutMilliseconds", json!(199)),
            ]
        }
        "deadlineSeconds must be at least 170 s, which a recovery may take, and the largest tolerationSeconds of trainer.pod.tolerations together" =>
        {
            vec![with(
                &set("/recovery/deadlineSeconds", json!(300)),
                "/trainer/pod/tolerations/0/tolerationSeconds",
                json!(131),
            )]
        }
        "deadlineSeconds must be at least 170 s, which a recovery may take, and the largest tolerationSeconds of server.pod.tolerations together" =>
        {
            vec![with(
                &set("/recovery/deadlineSeconds", json!(300)),
                "/server/pod/tolerations/0/tolerationSeconds",
                json!(131),
            )]
        }
        "labels under flywheel.dev/ and app.kubernetes.io/ are Flywheel's own" => vec![
            set("/labels/flywheel.dev~1attempt", json!("1")),
            set("/labels/app.kubernetes.io~1name", json!("x")),
        ],
        "annotations under flywheel.dev/ are Flywheel's own" => {
            vec![set("/annotations/flywheel.dev~1generation", json!("1"))]
        }
        "a label's name has at most 63 letters, digits, -, _ and ., after a domain and / where one is given" => {
            label_names("/labels", good)
        }
        "an annotation's name has at most 63 letters, digits, -, _ and ., after a domain and / where one is given" => {
            label_names("/annotations", good)
        }
        "a node's label has at most 63 letters, digits, -, _ and . in its name, after a domain and / where one is given" => {
            label_names("/nodeSelector", good)
        }
        "system- priority classes are not for workloads" => {
            vec![set("/priorityClassName", json!("system-node-critical"))]
        }
        "every mount must name a volume of volumes" => {
            vec![set("/volumeMounts/0/name", json!("missing")), without(good, "/volumes")]
        }
        "give either value or valueFrom" => vec![
            json!({"name": "BOTH", "value": "v", "valueFrom": {"secretKeyRef": {"name": "n", "key": "k"}}}),
            json!({"name": "NEITHER"}),
        ],
        "names that start with FLYWHEEL_ are Flywheel's own" => vec![set("/name", json!("FLYWHEEL_CONFIG"))],
        "give either secretKeyRef or configMapKeyRef" => vec![
            json!({}),
            json!({"secretKeyRef": {"name": "n", "key": "k"}, "configMapKeyRef": {"name": "n", "key": "k"}}),
        ],
        "give exactly one of emptyDir, configMap, secret, persistentVolumeClaim" => vec![
            json!({"name": good["name"]}),
            json!({"name": good["name"], "emptyDir": {}, "configMap": {"name": "n"}}),
            json!({"name": good["name"], "secret": {"secretName": "n"}, "persistentVolumeClaim": {"claimName": "n"}}),
        ],
        "names that start with flywheel- are Flywheel's own" => vec![set("/name", json!("flywheel-scratch"))],
        "this path belongs to Flywheel or the system" => [
            "/etc/flywheel",
            "/var/lib/flywheel/x",
            "/opt/flywheel",
            "/dev",
            "/dev/shm",
            "/proc",
            "/sys/fs",
        ]
        .map(|path| set("/mountPath", json!(path)))
        .into(),
        "give either resourceClaimName or resourceClaimTemplateName" => vec![
            json!({"name": "neither"}),
            json!({"name": "both", "resourceClaimName": "a", "resourceClaimTemplateName": "b"}),
        ],
        ". and .. may not stand in a path; write the place itself" => {
            let uri = good.as_str().unwrap();
            ["/..", "/../x", "/a/../x", "/.", "/./x"]
                .map(|path| json!(format!("{uri}{path}")))
                .into()
        }
        "give exactly one of pretrained and fromVersion" => vec![
            json!({}),
            json!({"pretrained": {"uri": "s3://m"}, "fromVersion": "intent-v1"}),
        ],
        "a gate needs min, minDelta or both" => vec![json!({"metric": good["metric"]})],
        "minDelta is for test/accuracy, golden/accuracy and newest/accuracy, on which versions are compared" => {
            ["golden/macroF1", "newest/auc", "validation/accuracy", "test/auc"]
                .map(|metric| json!({"metric": metric, "minDelta": "-0.01"}))
                .into()
        }
        "minDelta must lie between -1 and 1" => ["-1.001", "1.001"].map(|v| json!(v)).into(),
        "a gate with minDelta needs output.incumbent, the version to compare with" => {
            vec![without(good, "/incumbent")]
        }
        "a gate on newest/... needs one of dataset.sources with format: Feedback, of which some is held out" => {
            let last = good["dataset"]["sources"].as_array().unwrap().len() - 1;
            vec![
                without(good, &format!("/dataset/sources/{last}")),
                set(&format!("/dataset/sources/{last}/holdOutPercent"), json!(0)),
            ]
        }
        "holdOutPercent is for format: Feedback, whose rows have a time" => {
            vec![with(&set("/format", json!("Jsonl")), "/holdOutPercent", json!(20))]
        }
        "a gate on golden/... needs dataset.golden" => vec![without(good, "/dataset/golden")],
        "model cannot be changed; apply a new TrainingJob" => vec![set("/model/pretrained/uri", json!("s3://other"))],
        "dataset cannot be changed; apply a new TrainingJob" => vec![set("/dataset/deduplicate", json!(true))],
        "hyperparameters cannot be changed; apply a new TrainingJob" => vec![set("/hyperparameters/epochs", json!(9))],
        "trainer cannot be changed; apply a new TrainingJob" => vec![
            set("/trainer/accelerator/class", json!("h100")),
            set("/trainer/accelerator/count", json!(3)),
            set("/trainer/numNodes", json!(3)),
        ],
        "batchSize must be at least trainer.numNodes * trainer.accelerator.count: each GPU takes a part of every batch" =>
        {
            let of = |batch: i32, nodes: i32, count: i32| {
                let trainer = json!({"numNodes": nodes, "accelerator": {"class": "a100", "count": count}});
                with(&set("/hyperparameters/batchSize", json!(batch)), "/trainer", trainer)
            };
            vec![of(1, 2, 1), of(15, 1, 16), of(1023, 64, 16)]
        }
        "checkpoint cannot be changed; apply a new TrainingJob" => vec![
            set("/checkpoint/uri", json!("s3://other")),
            set("/checkpoint/intervalSeconds", json!(61)),
            set("/checkpoint/keep", json!(4)),
            without(good, "/checkpoint/uri"),
            without(good, "/checkpoint"),
        ],
        "tracking cannot be changed; apply a new TrainingJob" => vec![
            set("/tracking/mlflow/uri", json!("https://other")),
            set("/tracking/tensorBoard/uri", json!("s3://other")),
            without(good, "/tracking/mlflow/secretRef"),
            without(good, "/tracking"),
        ],
        "output cannot be changed; apply a new TrainingJob" => vec![set("/output/model", json!("other"))],
        "retention has keepNewest, maxAgeDays, or both" => {
            vec![json!({})]
        }
        "storage cannot be changed; apply a new TrainingJob" => {
            vec![set("/storage/region", json!("other-1")), without(good, "/storage")]
        }
        "serviceAccountName cannot be changed; apply a new TrainingJob" => {
            vec![
                set("/serviceAccountName", json!("other")),
                without(good, "/serviceAccountName"),
            ]
        }
        "validation and test are given together, or both sets are split off the sources" => {
            let unsplit = |name: &str| {
                with(
                    &without(good, "/split"),
                    &format!("/{name}"),
                    json!([{"uri": "s3://d"}]),
                )
            };
            let keep = |value: Value, other: &str| {
                if value.get(other).is_some() {
                    without(&value, &format!("/{other}"))
                } else {
                    value
                }
            };
            vec![keep(unsplit("validation"), "test"), keep(unsplit("test"), "validation")]
        }
        "split and explicit validation and test sets exclude each other" => {
            vec![with(
                &set("/validation", json!([{"uri": "s3://d"}])),
                "/test",
                json!([{"uri": "s3://d"}]),
            )]
        }
        "textColumn and labelColumn must differ" => vec![set("/labelColumn", good["textColumn"].clone())],
        "trainPercent, validationPercent and testPercent must sum to 100" => {
            vec![set("/trainPercent", json!(69)), set("/testPercent", json!(11))]
        }
        "learningRate must be above 0 and at most 1" => ["0", "1.000001", "2e0", "-1e-4"].map(|v| json!(v)).into(),
        "Int8 is for serving; train in Auto, Float32, BFloat16 or Float16" => vec![json!("Int8")],
        "weightDecay must lie between 0 and 1" => ["-0.1", "1.1"].map(|v| json!(v)).into(),
        "warmupRatio must lie between 0 and 0.9" | "dropout must lie between 0 and 0.9" => {
            ["-0.1", "0.91", "1"].map(|v| json!(v)).into()
        }
        _ => panic!("a new rule needs a bad object here: {message}"),
    }
}

/// The object with a name in this map that neither a label nor an annotation may have.
fn label_names(map: &str, good: &Value) -> Vec<Value> {
    let longest = "a".repeat(64);
    [
        "a b",
        "-a",
        "a.",
        "",
        "/a",
        "a/",
        "a/b/c",
        "Team.Example/a",
        "a_b/c",
        "\u{e4}",
        &longest,
    ]
    .map(|name| with(good, &format!("{map}/{}", name.replace('/', "~1")), json!("v")))
    .into()
}

/// A wrong type for every field, and an unknown field in every object.
pub fn types_and_unknown_fields(crd: &Crd, bases: &[Value]) -> Vec<Case> {
    let mut cases = vec![];
    crd.walk(&mut |pointer, node| {
        if pointer.is_empty() || pointer.starts_with("/properties/metadata") || pointer == "/properties/status" {
            return;
        }
        let top = matches!(pointer, "/properties/apiVersion" | "/properties/kind");
        let Some((base, instance)) = bases
            .iter()
            .enumerate()
            .find_map(|(i, b)| Some((i, crd.find(b, pointer)?)))
        else {
            assert!(top, "no good object has {pointer}");
            return;
        };
        if top {
            return;
        }
        let site = Site {
            kind: crd.kind().into(),
            schema: pointer.into(),
            keyword: Keyword::Plain("type"),
            base,
            instance,
        };
        let wrong = match node["type"].as_str() {
            Some("string") => json!(5),
            Some("object" | "array" | "boolean") => json!("text"),
            _ => json!(true),
        };
        let object = with(&bases[base], &site.instance, wrong);
        cases.push(case(&site, bases, object, field(&site.instance), "must be of type"));
        if node["properties"].is_object() && !node["x-kubernetes-preserve-unknown-fields"].is_boolean() {
            let instance = format!("{}/unheardOf", site.instance);
            let object = with(&bases[base], &instance, json!(1));
            cases.push(case(&site, bases, object, field(&instance), UNKNOWN_FIELD));
        }
    });
    cases
}

/// Texts that look right at first sight, against the pattern of their field.
pub fn odd_texts(bases: &[Value]) -> Vec<Case> {
    let table: &[(&str, &str, &[&str])] = &[
        (
            "TrainingJob",
            "/spec/dataset/sources/0/uri",
            &[
                "data.csv",
                "S3://b/k",
                "s3:/b",
                "s3://",
                "ftp://h/x",
                "s3://user@b/k",
                "https://h/x?q=1",
                "https://h/x#f",
                "s3://b/a b",
                "s3://b/$(HOME)",
                "s3://b/\"x",
                "s3://b/\\x",
                " s3://b/k",
                "s3://b/k\n",
                "http://",
                "s3:///k",
                "s3://b:9/k",
                "file://data/k",
                "https:///k",
            ],
        ),
        (
            "TrainingJob",
            "/spec/output/uri",
            &[
                "models",
                "s3:///out",
                "https://h/out",
                "http://h/out",
                "file://",
                "file://out",
            ],
        ),
        (
            "TrainingJob",
            "/spec/checkpoint/uri",
            &[
                "checkpoints",
                "s3://",
                "s3://user@b/k",
                "ftp://h/x",
                "s3://b/k\n",
                "https://h/c",
            ],
        ),
        (
            "TrainingJob",
            "/spec/tracking/tensorBoard/uri",
            &[
                "board",
                "s3://",
                "gs://b/k",
                "s3://b/k?x",
                "s3://b/$(HOME)",
                "http://h/b",
            ],
        ),
        (
            "TrainingJob",
            "/spec/tracking/mlflow/uri",
            &[
                "mlflow:5000",
                "file:///mlruns",
                "s3://b/k",
                "databricks",
                "https://",
                "http://user:pass@h",
                "https://h?token=1",
                "https://h/#/x",
                "http://h/$(HOME)",
                "http://h\n",
            ],
        ),
        (
            "TrainingJob",
            "/spec/tracking/mlflow/experiment",
            &[" intent", "intent\n", "in\"tent", "$(HOME)", "inten\u{df}"],
        ),
        (
            "TrainingJob",
            "/spec/tracking/mlflow/runName",
            &["-intent", "a\tb", "a'b", "a$b"],
        ),
        (
            "TrainingJob",
            "/spec/hyperparameters/learningRate",
            &[
                "1e", "e-4", ".1", "1.", "1,0", "0x1", "1e-999", "NaN", "Infinity", "+1", "1 ", "1e+3", "--1", "1_000",
            ],
        ),
        (
            "TrainingJob",
            "/spec/output/gates/0/metric",
            &[
                "accuracy",
                "train/accuracy",
                "test/Accuracy",
                "test/accuracy ",
                "test/loss",
                "/accuracy",
            ],
        ),
        (
            "InferenceService",
            "/spec/retrain/schedule",
            &[
                "0 3 * *",
                "0 3 * * 1 2",
                "@daily",
                "0 3 * * 1 Europe/Berlin",
                "0 3\t* * 1",
                " 0 3 * * 1",
                "0;3 * * 1 *",
            ],
        ),
        (
            "InferenceService",
            "/spec/retrain/timeZone",
            &[
                "/Berlin",
                "Europe/",
                "Europe Berlin",
                "../etc/passwd",
                "+01:00",
                "a/b/c/d",
            ],
        ),
        (
            "InferenceService",
            "/spec/retrain/requested",
            &["-a", "a b", "2026-11-28T00:00:00Z", "a."],
        ),
        (
            "TrainingJob",
            "/spec/model/fromVersion",
            &["Intent", "1-intent", "intent-", "in.tent"],
        ),
        (
            "ModelVersion",
            "/spec/source/base",
            &["Intent", "1-intent", "intent-", "in.tent"],
        ),
        (
            "TrainingJob",
            "/spec/output/incumbent",
            &["Intent", "1-intent", "intent-", "in.tent"],
        ),
        (
            "TrainingJob",
            "/spec/output/versionName",
            &["Intent", "1-intent", "intent-", "-intent", "in.tent", "in_tent"],
        ),
        (
            "TrainingJob",
            "/spec/trainer/accelerator/class",
            &["A100", "-a100", "a100-", "a 100", "a100/2"],
        ),
        (
            "TrainingJob",
            "/spec/trainer/image",
            &[
                "-image",
                "image tag",
                "image$x",
                "https://r/i?x",
                "\u{e4}",
                "https://r/i",
                "r/i:a:b",
                "r/Image",
                "r//i",
                "r/i:",
                "r/i@sha256:00",
                "r/i/",
            ],
        ),
        (
            "TrainingJob",
            "/spec/trainer/pod/labels/team",
            &["a b", "-a", "a.", "a/b", "\u{e4}"],
        ),
        ("InferenceService", "/spec/server/pod/nodeSelector/pool", &["a b", "a_"]),
        (
            "TrainingJob",
            "/spec/trainer/resources/requests/memory",
            &["4 Gi", "-1", "4GiB", "1e3", "Gi", "0.5.1"],
        ),
        (
            "TrainingJob",
            "/spec/trainer/pod/env/0/name",
            &["1A", "A-B", "A.B", "A B", "\u{c4}"],
        ),
        (
            "TrainingJob",
            "/spec/trainer/pod/volumeMounts/0/mountPath",
            &[
                "data", "/", "/data/", "/../etc", "/a/../b", "/a//b", "/a/./b", "/.hidden", "/a b", "/a:b",
            ],
        ),
        (
            "TrainingJob",
            "/spec/storage/endpoint",
            &[
                "minio:9000",
                "https://user@h",
                "https://h/path",
                "ftp://h",
                "https://h?x",
                "https:// h",
            ],
        ),
        (
            "TrainingJob",
            "/spec/storage/region",
            &["EU", "eu central", "eu_central"],
        ),
        (
            "ModelVersion",
            "/spec/artifact/digest",
            &[
                "sha256:",
                "sha512:00",
                "0000000000000000000000000000000000000000000000000000000000000000",
                "sha256:000000000000000000000000000000000000000000000000000000000000000G",
            ],
        ),
        (
            "ModelVersion",
            "/spec/metrics/0/name",
            &["accuracy", "Test/accuracy", "test/", "test/a/b", "test/a b"],
        ),
    ];
    let mut cases = vec![];
    for (kind, pointer, texts) in table {
        let base = bases
            .iter()
            .find(|b| b["kind"] == *kind && b.pointer(pointer).is_some())
            .unwrap();
        for text in *texts {
            cases.push(Case {
                name: format!("{kind} {text:?}"),
                object: with(base, pointer, json!(text)),
                base: base.clone(),
                via: Via::Create,
                field: field(pointer),
                phrase: "should match".to_owned(),
            });
        }
    }
    // Names that stand twice in a list that is a map.
    for (kind, list, key) in [
        ("TrainingJob", "/spec/trainer/pod/env", "name"),
        ("TrainingJob", "/spec/trainer/pod/volumes", "name"),
        ("TrainingJob", "/spec/trainer/pod/volumeMounts", "mountPath"),
        ("TrainingJob", "/spec/trainer/pod/imagePullSecrets", "name"),
        ("TrainingJob", "/spec/trainer/pod/resourceClaims", "name"),
        ("TrainingJob", "/spec/output/gates", "metric"),
        ("ModelVersion", "/spec/metrics", "name"),
        ("InferenceService", "/spec/server/pod/env", "name"),
    ] {
        let base = bases
            .iter()
            .find(|b| b["kind"] == kind && b.pointer(list).and_then(|l| l.get(0)).is_some())
            .unwrap();
        let items = base.pointer(list).unwrap().as_array().unwrap();
        cases.push(Case {
            name: format!("{kind} {list} {key} twice"),
            object: with(base, &format!("{list}/-"), items[0].clone()),
            base: base.clone(),
            via: Via::Create,
            field: format!("{}[{}]", field(list), items.len()),
            phrase: "Duplicate value".to_owned(),
        });
    }
    cases
}
