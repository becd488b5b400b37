//! The CRDs on a real API server: what they refuse and where they point to, what they accept and leave as it was, that
//! none of their rules is idle, and what kubectl and GitOps tools see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers, too, end the test by a panic"
)]

#[path = "crds/cases.rs"]
mod cases;
mod plane;
#[path = "crds/schema.rs"]
mod schema;

use std::collections::BTreeMap;
use std::time::Instant;

use cases::{Case, Via};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob, manifest};
use futures::StreamExt as _;
use http::Method;
use plane::{Plane, Refusal, collection, path, root, with, without};
use schema::{Crd, Site};
use serde_json::{Value, json};

/// Requests in flight at once.
const CONCURRENCY: usize = 16;
/// Most deletions that a mutant takes on at once: each CRD costs the API server a fifth of a second of a processor.
const SHARED: usize = 8;
/// A CRD must stay well below what etcd and client-side apply take.
const CRD_MAX_BYTES: usize = 64 * 1024;

fn crds() -> Vec<Crd> {
    ["trainingjobs", "modelversions", "inferenceservices"]
        .map(|plural| {
            let text = std::fs::read_to_string(root().join(format!("crds/{plural}.yaml"))).unwrap();
            Crd::new(serde_saphyr::from_str(&text).unwrap())
        })
        .into()
}

/// The good objects by file name, and the examples by path.
fn good() -> BTreeMap<String, Value> {
    let files = |folder| std::fs::read_dir(root().join(folder)).unwrap();
    let is_of_a_kind = |name: &str| name.starts_with("training-job") || name.starts_with("inference-service");
    let examples = ["examples/intent", "examples/learning"].into_iter().flat_map(files);
    let examples = examples.filter(|file| is_of_a_kind(file.as_ref().unwrap().file_name().to_str().unwrap()));
    files("tests/crds/good")
        .chain(examples)
        .map(|file| {
            let file = file.unwrap().path();
            let text = std::fs::read_to_string(&file).unwrap();
            let object: Value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            (
                file.strip_prefix(root().join("tests/crds/good"))
                    .unwrap_or(&file)
                    .display()
                    .to_string(),
                with(&object, "/metadata/namespace", json!("default")),
            )
        })
        .collect()
}

async fn establish(plane: &Plane, crd: &Value) -> Result<(), Refusal> {
    plane
        .send(
            Method::POST,
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            Some(crd),
        )
        .await?;
    let (group, plural) = (
        crd["spec"]["group"].as_str().unwrap(),
        crd["spec"]["names"]["plural"].as_str().unwrap(),
    );
    let path = format!("/apis/{group}/v1alpha1/namespaces/default/{plural}");
    plane
        .until(&path, || async { plane.send(Method::GET, &path, None).await.ok() })
        .await;
    Ok(())
}

async fn start() -> (Plane, Vec<Crd>) {
    let plane = Plane::start(false).await;
    let crds = crds();
    for crd in &crds {
        establish(&plane, &crd.object)
            .await
            .unwrap_or_else(|e| panic!("{}: {}", crd.kind(), e.message));
    }
    (plane, crds)
}

/// Sends a case to a group that serves the kinds and says what is wrong with the answer; `None` where it is as expected.
async fn fault(plane: &Plane, group: &str, case: &Case) -> Option<String> {
    let version = format!("{group}/v1alpha1");
    let object = with(&case.object, "/apiVersion", json!(version));
    let query = "dryRun=All&fieldValidation=Strict";
    let result = match case.via {
        Via::Create => {
            plane
                .send(Method::POST, &format!("{}?{query}", collection(&object)), Some(&object))
                .await
        }
        Via::Update | Via::Status => {
            // The object as it was must be there.
            let base = with(&case.base, "/apiVersion", json!(version));
            match plane.send(Method::POST, &collection(&base), Some(&base)).await {
                Err(e) if e.code != 409 => panic!("{}: the good object is refused: {}", case.name, e.message),
                _ => {}
            }
            let present = plane.send(Method::GET, &path(&base), None).await.unwrap();
            let object = with(
                &object,
                "/metadata/resourceVersion",
                present["metadata"]["resourceVersion"].clone(),
            );
            let tail = if case.via == Via::Status { "/status" } else { "" };
            plane
                .send(Method::PUT, &format!("{}{tail}?{query}", path(&object)), Some(&object))
                .await
        }
    };
    let Err(refusal) = result else {
        return Some("accepted".to_owned());
    };
    assert!([400, 422].contains(&refusal.code), "{}: {refusal:?}", case.name);
    let fits = |field: &str, message: &str| field == case.field && message.contains(&case.phrase);
    // A strict decoder names fields in its text only.
    let told = refusal.causes.iter().any(|(field, message)| fits(field, message))
        || (case.phrase == cases::UNKNOWN_FIELD
            && refusal.message.contains(&format!("unknown field \"{}\"", case.field)));
    (!told).then(|| format!("{} {:?}", refusal.message, refusal.causes))
}

/// Every bad object.
fn bad(crds: &[Crd]) -> Vec<Case> {
    let bases: Vec<Value> = good().into_values().collect();
    let mut all = vec![];
    for crd in crds {
        let bases = schema::bases(crd, &bases);
        for site in crd.sites(&bases) {
            let cases = cases::of_site(crd, &site, &bases);
            assert!(!cases.is_empty(), "no bad object for {site}");
            all.extend(cases);
        }
        all.extend(cases::types_and_unknown_fields(crd, &bases));
    }
    all.extend(cases::odd_texts(&bases));
    all
}

/// Programs that run without a cluster read the same YAML: they accept and refuse what the API server does.
#[test]
fn a_file_is_judged_as_by_the_api_server() {
    let judge = |object: &Value| {
        let document = std::slice::from_ref(object);
        match object["kind"].as_str().unwrap() {
            "TrainingJob" => manifest::objects::<TrainingJob>(document).map(drop),
            "ModelVersion" => manifest::objects::<ModelVersion>(document).map(drop),
            _ => manifest::objects::<InferenceService>(document).map(drop),
        }
    };
    for (name, object) in good() {
        assert_eq!(judge(&object), Ok(()), "{name}");
    }
    // Of metadata and status a file tells nothing that these programs use, but for the name.
    let refused_in_files =
        |case: &&Case| case.via == Via::Create && (case.field.starts_with("spec") || case.field == "metadata.name");
    let all = bad(&crds());
    let all: Vec<&Case> = all.iter().filter(refused_in_files).collect();
    let accepted: Vec<&str> = all
        .iter()
        .filter(|case| judge(&case.object).is_ok())
        .map(|case| case.name.as_str())
        .collect();
    assert!(
        accepted.is_empty(),
        "{} of {}: {accepted:#?}",
        accepted.len(),
        all.len()
    );
    println!("crds: {} bad objects refused in files, too", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_and_bound_refuses_with_the_fields_path() {
    let (plane, crds) = start().await;
    let all = bad(&crds);
    let count = all.len();
    let wrong: Vec<String> = futures::stream::iter(&all)
        .map(|case| {
            let plane = &plane;
            async move {
                let fault = fault(plane, "flywheel.dev", case).await?;
                Some(format!(
                    "{} {}: wanted {:?}: {fault}",
                    case.name, case.field, case.phrase
                ))
            }
        })
        .buffer_unordered(CONCURRENCY)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    println!("crds: {count} bad objects refused with the field's path");
}

/// A restriction to take away, and what it refuses.
struct Deletion<'a> {
    crd: &'a Crd,
    bases: &'a [Value],
    site: Site,
    cases: Vec<Case>,
}

/// Deletions that one mutant takes on at once. A case is refused with its field and the word of its restriction, so one that
/// another node's restriction refuses as well still shows its own deletion.
fn shared(deletions: &[Deletion<'_>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = vec![];
    for (i, deletion) in deletions.iter().enumerate() {
        let fits = |group: &&mut Vec<usize>| {
            let apart = |j: &usize| {
                let other: &Deletion<'_> = &deletions[*j];
                let nodes_differ =
                    other.site.schema != deletion.site.schema && other.site.instance != deletion.site.instance;
                std::ptr::eq(other.crd, deletion.crd) && nodes_differ && !other.site.is_rule()
            };
            !deletion.site.is_rule() && group.len() < SHARED && group.iter().all(apart)
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rule_bound_pattern_or_enum_is_idle() {
    let (plane, crds) = start().await;
    let good: Vec<Value> = good().into_values().collect();
    let bases: Vec<Vec<Value>> = crds.iter().map(|crd| schema::bases(crd, &good)).collect();
    let start = Instant::now();
    let deletions: Vec<Deletion<'_>> = crds
        .iter()
        .zip(&bases)
        .flat_map(|(crd, bases)| {
            crd.sites(bases).into_iter().map(move |site| Deletion {
                crd,
                bases,
                cases: cases::of_site(crd, &site, bases),
                site,
            })
        })
        .collect();
    let groups = shared(&deletions);
    let answers: Vec<(String, Outcome)> = futures::stream::iter(groups.iter().enumerate())
        .map(|(i, group)| {
            let group = group.iter().map(|j| &deletions[*j]).collect();
            without_them(&plane, group, format!("m{i}"))
        })
        .buffer_unordered(CONCURRENCY)
        .concat()
        .await;
    let (mut red, mut dear, mut refused, mut idle) = (0, 0, 0, vec![]);
    assert_eq!(answers.len(), deletions.len());
    for (site, outcome) in answers {
        match outcome {
            Outcome::Red => red += 1,
            Outcome::Dear => dear += 1,
            Outcome::Refused => refused += 1,
            Outcome::Idle => idle.push(site),
        }
    }
    let mut by_keyword: BTreeMap<&str, usize> = BTreeMap::new();
    for deletion in &deletions {
        *by_keyword.entry(deletion.site.keyword.word()).or_default() += 1;
    }
    println!(
        "crds: {} deletions ({by_keyword:?}): {red} turned a case red, {dear} made the CRD too dear, \
         {refused} made it invalid, {} idle; {} s",
        deletions.len(),
        idle.len(),
        start.elapsed().as_secs()
    );
    assert!(idle.is_empty(), "idle:\n{}", idle.join("\n"));
}

/// What becomes of each case once a CRD lacks its restriction. A CRD that is refused is tried with half of the deletions, until
/// it is known which one is to blame.
async fn without_them(plane: &Plane, mut deletions: Vec<&Deletion<'_>>, name: String) -> Vec<(String, Outcome)> {
    let group = format!("{name}.mutants.flywheel.dev");
    let sites: Vec<&Site> = deletions.iter().map(|deletion| &deletion.site).collect();
    let mutant = deletions[0].crd.mutant(&sites, &group);
    let established = establish(plane, &mutant).await;
    if established.is_err() && deletions.len() > 1 {
        let rest = deletions.split_off(deletions.len() / 2);
        let mut answers = Box::pin(without_them(plane, deletions, format!("{name}a"))).await;
        answers.extend(Box::pin(without_them(plane, rest, format!("{name}b"))).await);
        return answers;
    }
    if established.is_ok() {
        // What is good is good to the mutant, too: else everything would look red. Before cases leave objects of that name.
        for Deletion { bases, site, .. } in &deletions {
            let good = with(
                &without(&bases[site.base], "/status"),
                "/apiVersion",
                json!(format!("{group}/v1alpha1")),
            );
            let path = format!("{}?dryRun=All&fieldValidation=Strict", collection(&good));
            let accepted = plane.send(Method::POST, &path, Some(&good)).await;
            assert!(accepted.is_ok(), "{site}: {accepted:?}");
        }
    }
    let mut answers = vec![];
    for Deletion { site, cases, .. } in deletions {
        let outcome = match &established {
            Err(e) if e.message.contains("exceeds budget") => Outcome::Dear,
            // A key of a list that is a map must be required, says Kubernetes itself.
            Err(e) if e.message.contains("x-kubernetes-list-map-keys") => Outcome::Refused,
            Err(e) => panic!("{site}: {}", e.message),
            Ok(()) => {
                let mut outcome = Outcome::Idle;
                for case in cases {
                    if fault(plane, &group, case).await.is_some() {
                        outcome = Outcome::Red;
                        break;
                    }
                }
                outcome
            }
        };
        answers.push((site.to_string(), outcome));
    }
    let name = mutant["metadata"]["name"].as_str().unwrap();
    let crd = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    let _ = plane.send(Method::DELETE, &crd, None).await;
    answers
}

enum Outcome {
    Red,
    Dear,
    Refused,
    Idle,
}

#[test]
fn crds_are_small() {
    for crd in crds() {
        let bytes = serde_json::to_vec(&crd.object).unwrap().len();
        println!("{}: {bytes} bytes", crd.kind());
        assert!(bytes <= CRD_MAX_BYTES, "{}: {bytes}", crd.kind());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn good_objects_are_accepted_and_do_not_drift() {
    let (plane, _) = start().await;
    let good = good();
    assert!(good.len() >= 20);
    for (file, object) in &good {
        let apply = format!("{}?fieldManager=gitops&force=true&fieldValidation=Strict", path(object));
        let first = plane
            .send(Method::PATCH, &apply, Some(object))
            .await
            .unwrap_or_else(|e| panic!("{file}: {}", e.message));
        // Not seen by the operator: not Current to kstatus.
        assert_eq!(first["status"]["observedGeneration"], -1, "{file}");
        assert_eq!(kstatus(&first), "InProgress", "{file}");
        assert_eq!(drift(object, &first, ""), Vec::<String>::new(), "{file}");
        // The first write after the creation also stores the default of `status`, which a create drops: a new
        // resourceVersion, once, with nothing else new.
        let again = plane.send(Method::PATCH, &apply, Some(object)).await.unwrap();
        let content = |o: &Value| without(o, "/metadata/resourceVersion");
        assert_eq!(content(&first), content(&again), "{file}: applied again");
        let third = plane.send(Method::PATCH, &apply, Some(object)).await.unwrap();
        assert_eq!(again, third, "{file}: applied a third time");
        // The operator writes; Git's part is still as written, and applying it again is no change.
        let status = json!({"status": {"observedGeneration": 1, "state": "Running"}});
        let seen = plane
            .send(Method::PATCH, &format!("{}/status", path(object)), Some(&status))
            .await
            .unwrap();
        assert_eq!(drift(object, &seen, ""), Vec::<String>::new(), "{file}");
        let last = plane.send(Method::PATCH, &apply, Some(object)).await.unwrap();
        assert_eq!(
            seen["metadata"]["resourceVersion"], last["metadata"]["resourceVersion"],
            "{file}: after the operator"
        );
        assert_eq!(last["status"]["state"], "Running", "{file}");
        // Client-side diffs look at the live object as a whole: lists are as written, with no default in an item.
        plane.send(Method::DELETE, &path(object), None).await.unwrap();
    }
    println!("crds: {} good objects accepted, none drifts", good.len());
}

/// Where the live object is not what was written. Lists must be equal: tools compare their items as wholes.
fn drift(written: &Value, live: &Value, at: &str) -> Vec<String> {
    match (written, live) {
        (Value::Object(written), Value::Object(live)) => written
            .iter()
            .flat_map(|(key, value)| drift(value, live.get(key).unwrap_or(&Value::Null), &format!("{at}/{key}")))
            .collect(),
        _ if written == live => vec![],
        _ => vec![format!("{at}: {written} became {live}")],
    }
}

/// What kstatus (Flux, `kubectl wait`, kpt) makes of an object of a kind that it does not know: its generic rules.
fn kstatus(object: &Value) -> &'static str {
    let status = &object["status"];
    let observed = status["observedGeneration"].as_i64();
    if observed.is_some_and(|o| Some(o) != object["metadata"]["generation"].as_i64()) {
        return "InProgress";
    }
    let condition = |kind: &str| {
        let all = status["conditions"].as_array().into_iter().flatten();
        all.filter(|c| c["type"] == kind)
            .map(|c| c["status"].as_str().unwrap_or_default())
            .next()
    };
    if condition("Reconciling") == Some("True") {
        return "InProgress";
    }
    if condition("Stalled") == Some("True") {
        return "Failed";
    }
    match condition("Ready") {
        Some("True") => "Current",
        Some(_) => "InProgress",
        None => "Current",
    }
}

/// A status as the operator writes it.
fn status(generation: i64, conditions: &[ConditionRow]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(kind, status, reason)| {
            json!({"type": kind, "status": status, "reason": reason, "message": "what to do", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        })
        .collect();
    json!({"observedGeneration": generation, "conditions": conditions})
}

/// Type, status and reason.
type ConditionRow = (&'static str, &'static str, &'static str);

/// States of the three kinds: conditions, what kstatus says, what Argo CD says.
const STATES: &[(&str, &[ConditionRow], &str, &str)] = &[
    ("TrainingJob", &[], "Current", "Progressing"),
    (
        "TrainingJob",
        &[("Ready", "False", "Pending"), ("Reconciling", "True", "Pending")],
        "InProgress",
        "Progressing",
    ),
    (
        "TrainingJob",
        &[("Ready", "False", "NameTaken"), ("Stalled", "True", "NameTaken")],
        "Failed",
        "Degraded",
    ),
    (
        "TrainingJob",
        &[
            ("Ready", "False", "ImagePullFailed"),
            ("Reconciling", "True", "ImagePullFailed"),
        ],
        "InProgress",
        "Progressing",
    ),
    (
        "TrainingJob",
        &[
            ("Ready", "True", "Running"),
            ("Running", "True", "Running"),
            ("Complete", "False", "InProgress"),
        ],
        "Current",
        "Healthy",
    ),
    (
        "TrainingJob",
        &[("Ready", "True", "Suspended"), ("Suspended", "True", "Suspended")],
        "Current",
        "Suspended",
    ),
    (
        "TrainingJob",
        &[("Ready", "True", "Trained"), ("Complete", "True", "Trained")],
        "Current",
        "Healthy",
    ),
    (
        "TrainingJob",
        &[
            ("Ready", "False", "SingleClass"),
            ("Stalled", "True", "SingleClass"),
            ("Failed", "True", "SingleClass"),
        ],
        "Failed",
        "Degraded",
    ),
    (
        "ModelVersion",
        &[("Ready", "False", "Verifying"), ("Reconciling", "True", "Verifying")],
        "InProgress",
        "Progressing",
    ),
    (
        "ModelVersion",
        &[("Ready", "True", "Verified"), ("Promotable", "True", "GatesPassed")],
        "Current",
        "Healthy",
    ),
    (
        "ModelVersion",
        &[("Ready", "True", "Verified"), ("Promotable", "False", "GatesFailed")],
        "Current",
        "Healthy",
    ),
    (
        "ModelVersion",
        &[
            ("Ready", "False", "DigestMismatch"),
            ("Stalled", "True", "DigestMismatch"),
        ],
        "Failed",
        "Degraded",
    ),
    (
        "InferenceService",
        &[("Ready", "Unknown", "Unknown")],
        "InProgress",
        "Progressing",
    ),
    (
        "InferenceService",
        &[("Ready", "False", "Loading"), ("Reconciling", "True", "Loading")],
        "InProgress",
        "Progressing",
    ),
    (
        "InferenceService",
        &[
            ("Ready", "True", "AsExpected"),
            ("DeploymentReady", "True", "AsExpected"),
        ],
        "Current",
        "Healthy",
    ),
    (
        "InferenceService",
        &[("Ready", "True", "ScaledToZero")],
        "Current",
        "Healthy",
    ),
    (
        "InferenceService",
        &[
            ("Ready", "False", "ModelMismatch"),
            ("Stalled", "True", "ModelMismatch"),
        ],
        "Failed",
        "Degraded",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn gitops_tools_see_each_state() {
    let (plane, _) = start().await;
    let good = good();
    for (i, (kind, conditions, flux, argo)) in STATES.iter().enumerate() {
        let object = &good[&format!("{}-minimal.yaml", kind.to_lowercase())];
        let object = with(object, "/metadata/name", json!(format!("state-{i}")));
        let created = plane.create(&object).await;
        assert_eq!(argo_health(kind, &created).0, "Progressing", "{kind}: not seen yet");
        let write = |generation| json!({"status": status(generation, conditions)});
        let put = format!("{}/status", path(&object));
        let live = plane
            .send(Method::PATCH, &put, Some(&write(1)))
            .await
            .unwrap_or_else(|e| panic!("{}", e.message));
        assert_eq!(kstatus(&live), *flux, "{kind} {conditions:?}");
        let (health, message) = argo_health(kind, &live);
        assert_eq!(health, *argo, "{kind} {conditions:?}: {message}");
        assert!(*argo != "Degraded" || message.contains("what to do"), "{message}");
        // A change of the spec that the operator has not seen: neither tool takes the old conditions for new ones.
        let patch = if *kind == "ModelVersion" {
            continue;
        } else if *kind == "TrainingJob" {
            json!({"spec": {"suspend": true}})
        } else {
            json!({"spec": {"replicas": 7}})
        };
        let changed = plane.send(Method::PATCH, &path(&object), Some(&patch)).await.unwrap();
        assert_eq!(changed["metadata"]["generation"], 2);
        assert_eq!(
            (kstatus(&changed), argo_health(kind, &changed).0.as_str()),
            ("InProgress", "Progressing"),
            "{kind}"
        );
    }
    // `kubectl wait` on a real server.
    let ready = STATES
        .iter()
        .position(|s| s.0 == "ModelVersion" && s.2 == "Current")
        .unwrap();
    plane.ctl(&[
        "wait",
        "--for=condition=Ready",
        &format!("modelversion/state-{ready}"),
        "--timeout=10s",
    ]);
    println!("gitops: {} states", STATES.len());
}

/// What the health check in docs/gitops/argocd says, run as Argo CD runs it: Lua 5.1, the object as `obj`.
fn argo_health(kind: &str, object: &Value) -> (String, String) {
    use mlua::LuaSerdeExt as _;
    let script = std::fs::read_to_string(root().join(format!("docs/gitops/argocd/{kind}.lua"))).unwrap();
    let lua = mlua::Lua::new_with(
        mlua::StdLib::STRING | mlua::StdLib::TABLE | mlua::StdLib::MATH,
        mlua::LuaOptions::default(),
    )
    .unwrap();
    lua.globals().set("obj", lua.to_value(object).unwrap()).unwrap();
    let health: mlua::Table = lua.load(script).eval().unwrap();
    (health.get("status").unwrap(), health.get("message").unwrap())
}

#[test]
fn the_config_map_for_argo_holds_the_health_checks() {
    let text = std::fs::read_to_string(root().join("docs/gitops/argocd/argocd-cm.yaml")).unwrap();
    let map: Value = serde_saphyr::from_str(&text).unwrap();
    for crd in crds() {
        let kind = crd.kind();
        let script = std::fs::read_to_string(root().join(format!("docs/gitops/argocd/{kind}.lua"))).unwrap();
        let key = format!("resource.customizations.health.flywheel.dev_{kind}");
        assert_eq!(map["data"][&key], script, "{key} is not {kind}.lua");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_sees_columns_short_names_status_and_scale() {
    let (plane, _) = start().await;
    let good = good();
    for kind in ["trainingjob", "modelversion", "inferenceservice"] {
        plane.create(&good[&format!("{kind}-full.yaml")]).await;
    }
    let job = path(&good["trainingjob-full.yaml"]);
    let service = path(&good["inferenceservice-full.yaml"]);
    let version = path(&good["modelversion-full.yaml"]);
    let put = |path: &str, value: Value| {
        let (plane, path) = (&plane, format!("{path}/status"));
        async move {
            plane
                .send(Method::PATCH, &path, Some(&json!({"status": value})))
                .await
                .unwrap()
        }
    };
    put(
        &job,
        json!({"state": "Running", "nodes": "1/1", "restarts": 2, "countedRestarts": 1, "progress": {"step": "120/800", "loss": "0.31"}}),
    )
    .await;
    put(
        &version,
        json!({"state": "Verified", "metric": "test/accuracy 0.93", "served": "True"}),
    )
    .await;
    let mut serving = status(1, &[("Ready", "True", "AsExpected")]);
    serving.as_object_mut().unwrap().extend(
        json!({"url": "http://full.default.svc", "modelVersion": "intent-v1", "canary": "intent-v2 5%", "pods": "3/3",
            "replicas": 3, "selector": "flywheel.dev/inference-service=full"})
        .as_object()
        .unwrap()
        .clone(),
    );
    put(&service, serving).await;

    let words = |text: &str| -> Vec<Vec<String>> {
        text.lines()
            .map(|l| {
                l.split("   ")
                    .map(str::trim)
                    .filter(|w| !w.is_empty())
                    .map(str::to_owned)
                    .collect()
            })
            .collect()
    };
    let table: &[(&str, &[&str], &[&str])] = &[
        (
            "tj",
            &["NAME", "STATE", "NODES", "STEP", "LOSS", "RESTARTS", "AGE"],
            &["full", "Running", "1/1", "120/800", "0.31", "2"],
        ),
        (
            "mv",
            &["NAME", "MODEL", "VERSION", "STATE", "METRIC", "SERVED", "AGE"],
            &["full", "intent", "7", "Verified", "test/accuracy 0.93", "True"],
        ),
        (
            "infsvc",
            &[
                "NAME", "URL", "READY", "VERSION", "CANARY", "REPLICAS", "QPS", "P99", "AGE",
            ],
            &[
                "full",
                "http://full.default.svc",
                "True",
                "intent-v1",
                "intent-v2 5%",
                "3/3",
            ],
        ),
    ];
    for (short, header, row) in table {
        let lines = words(&plane.ctl(&["get", short]));
        assert_eq!(lines[0], *header, "{short}");
        assert_eq!(lines[1][..row.len()], **row, "{short}");
    }
    let all = plane.ctl(&["get", "flywheel", "-o", "name"]);
    assert_eq!(all.lines().count(), 3, "the category has all kinds: {all}");
    assert!(
        plane.ctl(&["get", "infsvc", "-o", "wide"]).contains("AsExpected"),
        "the reason"
    );
    // Field selectors on the model.
    assert!(
        plane
            .ctl(&["get", "mv", "--field-selector", "spec.model=intent"])
            .contains("full")
    );
    assert!(
        !plane
            .ctl(&["get", "mv", "--field-selector", "spec.model=other", "-o", "name"])
            .contains("full")
    );
    assert!(
        plane
            .ctl(&["explain", "tj.spec.hyperparameters.learningRate"])
            .contains("Highest learning rate")
    );

    // Status is a subresource: neither door opens the other.
    let patch = json!({"spec": {"replicas": 9}, "status": {"state": "Odd"}});
    let after = plane
        .send(Method::PATCH, &format!("{service}/status"), Some(&patch))
        .await
        .unwrap();
    assert_eq!(
        (&after["spec"]["replicas"], &after["status"]["state"]),
        (&json!(3), &json!("Odd"))
    );
    let after = plane
        .send(Method::PATCH, &service, Some(&json!({"status": {"state": "Even"}})))
        .await
        .unwrap();
    assert_eq!(after["status"]["state"], "Odd");
    assert_eq!(after["metadata"]["generation"], 1, "a status is no new generation");

    plane.ctl(&["scale", "infsvc/full", "--replicas=5", "--current-replicas=3"]);
    let scale = plane
        .send(Method::GET, &format!("{service}/scale"), None)
        .await
        .unwrap();
    assert_eq!(scale["spec"]["replicas"], 5);
    assert_eq!(
        scale["status"],
        json!({"replicas": 3, "selector": "flywheel.dev/inference-service=full"})
    );
    let refused = plane
        .send(
            Method::PATCH,
            &format!("{service}/scale"),
            Some(&json!({"spec": {"replicas": 5000}})),
        )
        .await;
    assert!(
        refused.unwrap_err().message.contains("less than or equal to 1000"),
        "bounds hold through scale, too"
    );
}
