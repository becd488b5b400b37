//! Versions beside each other on real pods: an experiment to its verdicts, a mirror that nobody hears of, and bad versions that come by
//! steps and are out of use within the time that is promised.
//!
//! What is served is a small encoder that has learnt which of eight words a text has, and copies of it that are worse by design.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{
    apply, bucket, condition, delete_namespace, describe, flywheel, get, kubectl, list, namespace_with_store, need,
    object_store, reachable_ip, trained, wait,
};

const NAMESPACE: &str = "trials";
const MODEL: &str = "words";
/// The bucket's folder of everything here.
const FOLDER: &str = "models/trials";
/// What a text can be about.
const LABELS: [&str; 8] = ["lamp", "music", "weather", "door", "clock", "news", "train", "game"];
/// A word that nobody trained with.
const RARE: &str = "zebra";
const OVERFLOW: &str = "overflow=zebra";
/// Within what a version is out of use once it has done badly enough, as is promised.
const OUT_OF_USE: Duration = Duration::from_secs(33);
/// Answers after which a version is judged.
const MIN_REQUESTS: usize = 100;
/// For what takes seconds, and for what is written once a minute, on a machine on which everything happens at once.
const SOON: Duration = Duration::from_secs(180);

/// Versions, in the order of their numbers after that of the training.
const VERSIONS: [(&str, &[&str]); 7] = [
    ("fair", &["swap=lamp,music"]),
    ("poor", &["swap=lamp,music", "swap=weather,door"]),
    ("fragile", &["swap=lamp,music", OVERFLOW]),
    ("copied", &["swap=lamp,music", "layers=16"]),
    ("permuted", &["swap=lamp,music", "swap=weather,door", "swap=clock,news"]),
    ("broken", &[OVERFLOW]),
    ("slow", &["layers=16"]),
];
const GOOD: &str = "good";

fn storage() -> Value {
    json!({"secretRef": {"name": "object-store"}, "endpoint": "http://minio.object-store.svc.cluster.local:9000"})
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
}

fn version(name: &str, number: usize, artifact: &Value) -> Value {
    object(
        "ModelVersion",
        name,
        json!({"model": MODEL, "version": number, "artifact": artifact, "storage": storage()}),
    )
}

fn service(name: &str, own: Value) -> Value {
    let mut spec = json!({
        "model": MODEL,
        "server": {"precision": "Float32", "timeoutMilliseconds": 5000, "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}},
        "storage": storage(),
    });
    let fields = spec.as_object_mut().expect("a spec");
    fields.extend(own.as_object().expect("fields").clone());
    object("InferenceService", name, spec)
}

fn patch(name: &str, spec: &Value) {
    let patch = json!({ "spec": spec }).to_string();
    kubectl(&["patch", "infsvc", name, "-n", NAMESPACE, "--type=merge", "-p", &patch]).expect("patched");
}

/// Waits until the service is so.
fn until(name: &str, what: &str, ready: impl Fn(&Value) -> bool) -> Value {
    wait(
        &format!("{name}: {what}"),
        SOON,
        describe("infsvc", NAMESPACE, name),
        || {
            let service = get("infsvc", NAMESPACE, name)?;
            ready(&service).then_some(service)
        },
    )
}

fn reason<'a>(service: &'a Value, kind: &str) -> &'a str {
    condition(service, kind).map_or("", |(_, reason, _)| reason)
}

/// Addresses of the service's pods, by name, with how often each began anew.
fn pods(name: &str) -> BTreeMap<String, (String, Value)> {
    let pods = list("pods", NAMESPACE, &format!("flywheel.dev/inference-service={name}"));
    let pods = pods.iter().map(|pod| {
        let address = format!("{}:8080", pod["status"]["podIP"].as_str().expect("address"));
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].clone();
        (
            pod["metadata"]["name"].as_str().expect("name").to_owned(),
            (address, restarts),
        )
    });
    pods.collect()
}

/// Status and body of the answer to a `POST` over a connection of its own, which a Service leads to any of its pods; 0 and why where
/// there is none.
fn ask(address: &str, path: &str, headers: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {NAMESPACE}\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = match exchange() {
        Ok(answer) => String::from_utf8(answer).expect("UTF-8"),
        Err(error) => return (0, json!(error.to_string())),
    };
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (code, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A text about the label.
fn text(label: &str, number: usize) -> String {
    const OPENINGS: [&str; 4] = ["start", "stop", "show", "check"];
    format!(
        "{} the {label} {} {}",
        OPENINGS[number % 4],
        OPENINGS[number / 4 % 4],
        number % 90
    )
}

/// The same, and whether it has the rare word.
fn text_or_rare(label: &str, number: usize) -> (String, bool) {
    let text = text(label, number);
    if number.is_multiple_of(RARE_OF) {
        (format!("{text} {RARE}"), true)
    } else {
        (text, false)
    }
}

/// Stops what runs when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Trains the one version, makes the others of it, and waits until all are verified.
fn versions() {
    object_store();
    delete_namespace(NAMESPACE);
    bucket("flywheel", &["remove", &format!("{FOLDER}/")]);
    namespace_with_store(NAMESPACE);
    apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "receipts", "namespace": NAMESPACE},
        "stringData": {"key": "only for a test, so that anybody may know it"}}),
    );
    let example = format!("{}/example", need("FLYWHEEL_CACHE"));
    let mut teach = vec!["teach", &example, FOLDER];
    teach.extend(LABELS);
    bucket("flywheel", &teach);
    let uri = |name: &str| json!({"uri": format!("s3://flywheel/{FOLDER}/{name}")});
    apply(&object(
        "TrainingJob",
        GOOD,
        json!({
            "task": "TextClassification",
            "model": {"pretrained": uri("tiny")},
            "dataset": {"sources": [uri("words.csv")]},
            "hyperparameters": {"epochs": 6, "batchSize": 16, "learningRate": "0.01", "maxLength": 16},
            "trainer": {"accelerator": {"class": "a100"}, "resources": {"requests": {"cpu": "100m"}}},
            "storage": storage(),
            "output": {"model": MODEL, "versionName": GOOD, "uri": uri("out")["uri"], "reuse": "Never"},
        }),
    ));
    trained(NAMESPACE, GOOD, SOON);
    let good = get("mv", NAMESPACE, GOOD).expect("the version");
    println!("           {GOOD}: {}", good["spec"]["metrics"]);
    let artifact = &good["spec"]["artifact"];
    let from = artifact["uri"]
        .as_str()
        .and_then(|uri| uri.strip_prefix("s3://flywheel/"));
    let from = format!("{}/", from.expect("in the bucket").trim_end_matches('/'));
    for (number, (name, changes)) in VERSIONS.iter().enumerate() {
        let to = format!("{FOLDER}/{name}/");
        let mut vary = vec!["vary", &from, &to];
        vary.extend(*changes);
        let digest = bucket("flywheel", &vary);
        apply(&version(
            name,
            number + 2,
            &json!({"uri": uri(name)["uri"], "digest": digest.trim()}),
        ));
    }
    for name in std::iter::once(GOOD).chain(VERSIONS.map(|(name, _)| name)) {
        // Each loads and answers its own evaluation sample as it is recorded: nothing that is looked at before tells what is bad of it.
        wait(
            &format!("{name} is verified"),
            SOON,
            describe("mv", NAMESPACE, name),
            || {
                let version = get("mv", NAMESPACE, name)?;
                let (status, reason, message) = condition(&version, "Verified")?;
                assert_ne!(status, "False", "{name}: {reason}: {message}");
                (status == "True").then_some(())
            },
        );
    }
}

#[test]
fn variants_a_mirror_and_bad_versions_on_real_pods() {
    versions();
    let fair = json!({"modelVersion": "fair", "percent": 40});
    apply(&service(
        EXPERIMENT,
        json!({
            "modelVersion": "fair", "replicas": 1,
            "feedback": {"signingKeySecretRef": {"name": "receipts", "key": "key"}},
            "autoUpdate": {"policy": "LatestPromotable"},
            "experiment": {
                "variants": [fair, {"modelVersion": GOOD, "percent": 40}, {"modelVersion": "poor", "percent": 20}],
                "metric": "Accuracy", "minSamples": 100, "guardrails": {},
            },
        }),
    ));
    apply(&service(ROLLOUT, json!({"modelVersion": GOOD, "replicas": 2})));
    std::thread::scope(|scope| {
        let all = [scope.spawn(experiment), scope.spawn(copies_and_bad_versions)];
        for one in all {
            if let Err(panic) = one.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    delete_namespace(NAMESPACE);
}

// --- the experiment ---------------------------------------------------------------------------------------------------

const EXPERIMENT: &str = "compared";
/// Users, each of which keeps its variant.
const USERS: usize = 400;
/// Texts of each of their requests.
const TEXTS: usize = 4;
const SHARES: [(&str, f64); 3] = [("fair", 0.4), (GOOD, 0.4), ("poor", 0.2)];
/// Deviations by which a share of the users may differ from what is asked for: more come about once in 16,000 runs.
const DEVIATIONS: f64 = 4.0;

/// What clients saw.
#[derive(Default)]
struct Users {
    /// The variant of each.
    variants: BTreeMap<usize, String>,
    /// By version: texts, judged predictions, and those of them that were right.
    counts: BTreeMap<String, [u64; 3]>,
    failed: Vec<String>,
}

impl Users {
    /// One request of a user, and what it says of the answers to a pod.
    fn comes(all: &Mutex<Self>, user: usize, number: usize, address: &str, tells: &str) {
        let labels: Vec<&str> = (0..TEXTS)
            .map(|n| LABELS[(user + number + n * 3) % LABELS.len()])
            .collect();
        let texts: Vec<String> = labels.iter().map(|label| text(label, user + number)).collect();
        let key = format!("x-experiment-key: user-{user}\r\n");
        let (code, answer) = ask(address, "/predict", &key, &json!({ "texts": texts }));
        let mut users = all.lock().expect("users");
        if code != 200 {
            users.failed.push(format!("{code} {answer}"));
            return;
        }
        let predictions = answer["predictions"].as_array().expect("predictions");
        let of = predictions[0]["model_version"].as_str().expect("a version").to_owned();
        let before = users.variants.entry(user).or_insert_with(|| of.clone());
        assert_eq!(*before, of, "user {user} is answered by another variant");
        assert!(predictions.iter().all(|told| told["model_version"] == *of), "{answer}");
        users.counts.entry(of.clone()).or_default()[0] += TEXTS as u64;
        drop(users);
        let feedback: Vec<Value> = predictions
            .iter()
            .zip(&labels)
            .map(|(told, label)| json!({"request_id": told["request_id"], "label": label}))
            .collect();
        let feedback = json!({ "feedback": feedback });
        // What is said twice counts once.
        let again = user.is_multiple_of(10);
        for outcome in ["Counted", "Duplicate"].into_iter().take(1 + usize::from(again)) {
            let (code, told) = ask(tells, "/feedback", "", &feedback);
            let mut users = all.lock().expect("users");
            if code != 200 {
                users.failed.push(format!("feedback: {code} {told}"));
                return;
            }
            let results = told["results"].as_array().expect("results");
            assert!(results.iter().all(|result| result["outcome"] == outcome), "{told}");
            if outcome == "Counted" {
                let right = predictions
                    .iter()
                    .zip(&labels)
                    .filter(|(told, label)| told["label"] == **label);
                let right = right.count() as u64;
                let counts = users.counts.entry(of.clone()).or_default();
                counts[1] += TEXTS as u64;
                counts[2] += right;
            }
        }
    }

    /// One user in so many, two at a time.
    fn come(all: &Mutex<Self>, one_in: usize, number: usize, address: &str, tells: &str) {
        std::thread::scope(|scope| {
            for half in 0..2 {
                scope.spawn(move || {
                    for user in (half * one_in..USERS).step_by(2 * one_in) {
                        Self::comes(all, user, number, address, tells);
                    }
                });
            }
        });
    }
}

fn experiment() {
    let name = EXPERIMENT;
    until(name, "its variants answer", |service| {
        reason(service, "ExperimentConcluded") == "Collecting" && service["status"]["pods"] == "1/1"
    });
    let address = format!("{}:80", reachable_ip(NAMESPACE, name));
    let users = Mutex::new(Users::default());
    Users::come(&users, 1, 0, &address, &address);
    {
        let users = users.lock().expect("users");
        for (version, share) in SHARES {
            let got = users.variants.values().filter(|of| *of == version).count() as f64;
            let (want, deviation) = (USERS as f64 * share, (USERS as f64 * share * (1.0 - share)).sqrt());
            let away = (got - want) / deviation;
            println!(
                "           {version} answers {got} of {USERS} users, {share} of them asked for ({away:+.1} deviations)"
            );
            assert!(away.abs() < DEVIATIONS, "{version}");
        }
    }
    // A newer version, and a second pod, while users come.
    let artifact = get("mv", NAMESPACE, GOOD).expect("the version")["spec"]["artifact"].clone();
    apply(&version("newest", VERSIONS.len() + 2, &artifact));
    kubectl(&["scale", &format!("infsvc/{name}"), "-n", NAMESPACE, "--replicas=2"]).expect("scaled");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&over);
        scope.spawn(|| {
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                Users::comes(&users, n % USERS, n, &address, &address);
            }
        });
        until(name, "two pods answer", |service| service["status"]["pods"] == "2/2");
        drop(stop);
    });
    // Each pod by itself, and what is said of its answers comes to the other one.
    let both: Vec<String> = pods(name).into_values().map(|(address, _)| address).collect();
    assert_eq!(both.len(), 2);
    Users::come(&users, 3, 1, &both[0], &both[1]);
    Users::come(&users, 3, 2, &both[1], &both[0]);

    let service = until(name, "there are verdicts", |service| {
        let compared = service["status"]["experiment"]["comparisons"].as_array();
        compared.is_some_and(|all| {
            all.iter()
                .all(|one| one["verdict"] == "Better" || one["verdict"] == "Worse")
        })
    });
    for compared in service["status"]["experiment"]["comparisons"]
        .as_array()
        .expect("comparisons")
    {
        println!("           {compared}");
        let number = |field: &str| -> f64 { compared[field].as_str().expect(field).parse().expect("a number") };
        let (effect, lower, upper) = (number("effect"), number("lower"), number("upper"));
        // Two of eight labels are exchanged, or four.
        let (verdict, truth) = if compared["modelVersion"] == GOOD {
            ("Better", 0.25)
        } else {
            ("Worse", -0.25)
        };
        assert_eq!(compared["verdict"], verdict);
        assert!(
            lower <= effect && effect <= upper && lower <= truth && truth <= upper,
            "{compared}"
        );
        assert!(if truth > 0.0 { lower > 0.0 } else { upper < 0.0 }, "{compared}");
        assert!(
            compared["judged"].as_i64() >= Some(100) && compared["controlJudged"].as_i64() >= Some(100),
            "{compared}"
        );
    }
    let (status, reason, message) = condition(&service, "ExperimentConcluded").expect("ExperimentConcluded");
    println!("           {reason}: {message}");
    assert_eq!((status, reason), ("True", "VariantBetter"));
    assert!(message.contains(GOOD), "{message}");
    // It waits all the time.
    let service = until(name, "a newer version waits", |service| {
        condition(service, "UpdateAvailable").is_some_and(|c| c.1 == "ExperimentRunning")
    });
    let (_, _, message) = condition(&service, "UpdateAvailable").expect("UpdateAvailable");
    assert!(message.contains("newest"), "{message}");

    let users = users.into_inner().expect("users");
    assert!(users.failed.is_empty(), "{:?}", users.failed);
    println!("           texts, judged, right of each: {:?}", users.counts);
    assert_eq!(users.counts.len(), SHARES.len(), "nobody else answered");
    // No more and no fewer, once they are written, which is once a minute.
    let kept = wait("all is counted", SOON, describe("infsvc", NAMESPACE, name), || {
        let map = get("configmap", NAMESPACE, &format!("{name}-experiment"))?;
        let tally: Value = serde_json::from_str(map["data"]["experiment.json"].as_str()?).ok()?;
        let kept: BTreeMap<String, [u64; 3]> = tally["versions"]
            .as_array()?
            .iter()
            .zip(tally["sums"].as_array()?)
            .filter_map(|(version, sums)| {
                let of = |field: &str| sums[field].as_u64();
                Some((
                    version.as_str()?.to_owned(),
                    [of("texts")?, of("judged")?, of("correct")?],
                ))
            })
            .collect();
        let judged = |counts: &BTreeMap<String, [u64; 3]>| counts.values().map(|counts| counts[1]).sum::<u64>();
        (judged(&kept) >= judged(&users.counts)).then_some(kept)
    });
    assert_eq!(kept, users.counts);
    let told = until(name, "the status has them as well", |service| {
        let variants = service["status"]["experiment"]["variants"].as_array();
        let judged = variants
            .into_iter()
            .flatten()
            .filter_map(|variant| variant["judged"].as_u64());
        judged.sum::<u64>() == users.counts.values().map(|counts| counts[1]).sum::<u64>()
    });
    for variant in told["status"]["experiment"]["variants"].as_array().expect("variants") {
        let [_, judged, right] = users.counts[variant["modelVersion"].as_str().expect("a name")];
        assert_eq!(variant["judged"], judged);
        assert_eq!(variant["accuracy"], format!("{:.4}", right as f64 / judged as f64));
    }
    stops_what_breaks_a_guardrail(&address);
    for (pod, (_, restarts)) in pods(name) {
        assert_eq!(restarts, 0, "{pod} began anew");
    }
}

/// Another experiment in the same pods: one variant fails at each fifth text, and one, to which the mirror sends as well, is slow.
/// Both get no requests any more, without a word of feedback, and who had them gets the version of `modelVersion`.
fn stops_what_breaks_a_guardrail(address: &str) {
    let name = EXPERIMENT;
    let variants = ["fair", "fragile", "copied"];
    let shares =
        variants.map(|version| json!({"modelVersion": version, "percent": if version == "fair" { 40 } else { 30 }}));
    patch(name, &json!({"experiment": {"variants": shares}}));
    // Which variant a user is answered by; failures name none.
    let comes = |user: usize, number: usize| {
        let (text, rare) = text_or_rare(LABELS[number % LABELS.len()], number);
        let key = format!("x-experiment-key: user-{user}\r\n");
        let (code, answer) = ask(address, "/predict", &key, &json!({ "text": text }));
        match (code, answer["model_version"].as_str()) {
            (200, Some(version)) => Some(version.to_owned()),
            (500, _) if rare => None,
            _ => panic!("{code} {answer}"),
        }
    };
    let stopped = |service: &Value| -> BTreeMap<String, String> {
        let variants = service["status"]["experiment"]["variants"].as_array();
        variants
            .into_iter()
            .flatten()
            .filter_map(|one| {
                Some((
                    one["modelVersion"].as_str()?.to_owned(),
                    one["stopped"].as_str()?.to_owned(),
                ))
            })
            .collect()
    };
    let (begun, mut number) = (Instant::now(), 0);
    // The last answer of each, and how many there were.
    let mut seen: BTreeMap<String, (Instant, usize)> = BTreeMap::new();
    let service = loop {
        for _ in 0..USERS / 4 {
            if let Some(version) = comes(number % USERS, number) {
                let (last, count) = seen.entry(version).or_insert((begun, 0));
                (*last, *count) = (Instant::now(), *count + 1);
            }
            number += 1;
        }
        let service = get("infsvc", NAMESPACE, name).expect("the service");
        if stopped(&service).len() == 2 {
            break service;
        }
        assert!(begun.elapsed() < SOON, "{}", service["status"]["experiment"]);
    };
    for (version, why) in stopped(&service) {
        let (last, count) = seen[&version];
        println!(
            "           {version}, of {count} answers, was stopped {:.1} s after the beginning: {why}",
            (last - begun).as_secs_f64()
        );
        let words = if version == "copied" {
            "to compute"
        } else {
            "could not be computed"
        };
        assert!(why.contains(words), "{version}: {why}");
    }
    assert_eq!(reason(&service, "ExperimentConcluded"), "GuardrailBroken");
    let fair = |user: usize| comes(user, 1).as_deref() == Some("fair");
    wait(
        "pods know that they are stopped",
        OUT_OF_USE,
        describe("infsvc", NAMESPACE, name),
        || (0..USERS / 4).all(fair).then_some(()),
    );
    assert!((0..USERS).all(fair), "a stopped variant answered after that");
}

// --- a mirror, and versions that come by steps ------------------------------------------------------------------------

const ROLLOUT: &str = "watched";
/// Clients at once, and the time between two requests of one.
const CLIENTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(30);
/// One text in so many has the rare word.
const RARE_OF: usize = 5;
/// For how long nobody is to be answered by a version that is out of use.
const QUIET: Duration = Duration::from_secs(5);

/// What clients saw of a version.
#[derive(Default)]
struct SeenVersion {
    right: usize,
    /// When each answer came, failures included, and how long it took.
    answers: Vec<(Instant, Duration)>,
}

impl SeenVersion {
    /// Milliseconds of half of the answers, and of 99 in 100, since then.
    fn milliseconds(&self, since: Instant) -> [f64; 2] {
        let mut took: Vec<f64> = self
            .answers
            .iter()
            .filter(|(at, _)| *at >= since)
            .map(|(_, took)| took.as_secs_f64() * 1000.0)
            .collect();
        took.sort_by(f64::total_cmp);
        [0.5, 0.99].map(|part| took[(took.len() as f64 * part) as usize])
    }
}

#[derive(Default)]
struct Seen {
    versions: BTreeMap<String, SeenVersion>,
    /// The one that may fail at texts with the rare word; failures name no version.
    may_fail: Option<&'static str>,
    failures: usize,
    failed: Vec<String>,
}

struct Clients {
    address: String,
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

impl Clients {
    fn run(&self, client: usize) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let begun = Instant::now();
            let label = LABELS[(number * 3 + client) % LABELS.len()];
            let (text, rare) = text_or_rare(label, number);
            let (code, answer) = ask(&self.address, "/predict", "", &json!({ "text": text }));
            let (now, took) = (Instant::now(), begun.elapsed());
            let mut seen = self.seen.lock().expect("clients");
            match (code, answer["model_version"].as_str(), seen.may_fail) {
                (200, Some(version), _) => {
                    let seen = seen.versions.entry(version.to_owned()).or_default();
                    seen.right += usize::from(answer["label"] == label);
                    seen.answers.push((now, took));
                }
                (500, _, Some(version)) if rare => {
                    seen.failures += 1;
                    seen.versions
                        .entry(version.to_owned())
                        .or_default()
                        .answers
                        .push((now, took));
                }
                _ => seen.failed.push(format!("{code} {answer}")),
            }
            drop(seen);
            std::thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
        }
    }

    /// What they saw of a version.
    fn of<T>(&self, version: &str, look: impl FnOnce(&SeenVersion) -> T) -> Option<T> {
        self.seen.lock().expect("clients").versions.get(version).map(look)
    }
}

fn copies_and_bad_versions() {
    let name = ROLLOUT;
    until(name, "two pods answer", |service| {
        reason(service, "Ready") == "AsExpected" && service["status"]["pods"] == "2/2"
    });
    let clients = Clients {
        address: format!("{}:80", reachable_ip(NAMESPACE, name)),
        stop: AtomicBool::new(false),
        seen: Mutex::default(),
    };
    let before = pods(name);
    std::thread::scope(|scope| {
        let _stop = Stop(&clients.stop);
        let clients = &clients;
        for client in 0..CLIENTS {
            scope.spawn(move || clients.run(client));
        }
        let asked = gets_copies(clients);
        // It goes on beside them.
        let steps = json!([{"weightPercent": 25, "durationSeconds": 3600, "minRequests": MIN_REQUESTS}]);
        patch(name, &json!({"rollout": {"steps": steps, "analysis": {}}}));
        answers_nobody("permuted");
        clients.seen.lock().expect("clients").may_fail = Some("broken");
        is_soon_out_of_use(clients, "broken", "could not be computed");
        clients.seen.lock().expect("clients").may_fail = None;
        is_soon_out_of_use(clients, "slow", "takes");
        tells_of_copies(clients, asked);
    });
    let seen = clients.seen.into_inner().expect("clients");
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    let names: Vec<&str> = seen.versions.keys().map(String::as_str).collect();
    assert_eq!(names, ["broken", GOOD, "slow"], "nobody else answered a client");
    let good = &seen.versions[GOOD];
    let (right, all) = (good.right, good.answers.len());
    println!(
        "           {right} of {all} answers of {GOOD} were right; {} failed, all of broken",
        seen.failures
    );
    assert!(right * 100 >= all * 95, "{right} of {all}");
    assert_eq!(pods(name), before, "no pod was exchanged or began anew");
}

/// Part of a hundred of which a version gets copies.
const COPIED: u32 = 10;

/// A version that is slow and calls two of eight labels by each other's name gets copies of some requests, and clients do not wait for
/// them. How many requests there had been before.
fn gets_copies(clients: &Clients) -> usize {
    let since = |begun: Instant| {
        wait("clients are answered", SOON, String::new, || {
            let seen = clients.seen.lock().expect("clients");
            let good = seen.versions.get(GOOD)?;
            let answered = good.answers.iter().filter(|(at, _)| *at >= begun).count();
            (answered >= 300).then(|| good.milliseconds(begun))
        })
    };
    let [half, most] = since(Instant::now());
    let asked = clients.of(GOOD, |seen| seen.answers.len()).unwrap_or(0);
    patch(
        ROLLOUT,
        &json!({"mirror": {"modelVersion": "copied", "percent": COPIED}}),
    );
    until(ROLLOUT, "copies are made", |service| {
        service["status"]["observedGeneration"] == service["metadata"]["generation"]
            && reason(service, "Ready") == "AsExpected"
    });
    let [half_then, most_then] = since(Instant::now());
    println!(
        "           clients waited {half:.1} ms (p99 {most:.1} ms), and {half_then:.1} ms (p99 {most_then:.1} ms) with the mirror"
    );
    asked
}

/// What the status says of copies is what the version that gets them does.
fn tells_of_copies(clients: &Clients, asked: usize) {
    let service = until(ROLLOUT, "the status tells of many copies", |service| {
        service["status"]["mirror"]["texts"].as_u64() >= Some(150)
    });
    let told = &service["status"]["mirror"];
    let count = |field: &str| told[field].as_u64().expect("a count") as f64;
    let number = |field: &str| -> f64 { told[field].as_str().expect("a time").parse().expect("a number") };
    println!("           {told}");
    assert_eq!((&told["modelVersion"], &told["failed"]), (&json!("copied"), &json!(0)));
    let requests = {
        let seen = clients.seen.lock().expect("clients");
        seen.versions.values().map(|seen| seen.answers.len()).sum::<usize>() - asked
    };
    let all = count("texts") + count("shed");
    assert!(
        all <= requests as f64 * f64::from(COPIED) / 100.0 + 2.0,
        "{all} copies of {requests} requests"
    );
    let (share, want) = (count("same") / count("texts"), 0.75);
    let deviation = (want * (1.0 - want) / count("texts")).sqrt();
    assert!(
        (share - want).abs() < DEVIATIONS * deviation,
        "{share} got the same label"
    );
    assert!(number("milliseconds") > number("answeredMilliseconds"), "{told}");
    let screen = flywheel(&["status", &format!("infsvc/{ROLLOUT}"), "-n", NAMESPACE]).expect("its status");
    assert!(screen.contains("Copies") && screen.contains("copied gave"), "{screen}");
}

/// Waits until the version is rejected; why.
fn rejected(version: &str) -> String {
    let why = wait(
        &format!("{version} is rejected"),
        SOON,
        describe("infsvc", NAMESPACE, ROLLOUT),
        || {
            let version = get("mv", NAMESPACE, version)?;
            let why = &version["metadata"]["annotations"]["flywheel.dev/rejected"];
            why.as_str().map(str::to_owned)
        },
    );
    println!("           {why}");
    why
}

/// Six of its eight labels have each other's name, which shows before anybody is answered with them.
fn answers_nobody(version: &str) {
    patch(ROLLOUT, &json!({ "modelVersion": version }));
    let why = rejected(version);
    assert!(why.contains("analysis.minAgreement"), "{why}");
}

/// A version that clients are answered with until it has done badly enough, and soon nobody any more.
fn is_soon_out_of_use(clients: &Clients, version: &str, words: &str) {
    patch(ROLLOUT, &json!({ "modelVersion": version }));
    let bad = wait(
        &format!("{version} has answered {MIN_REQUESTS} times"),
        SOON,
        describe("infsvc", NAMESPACE, ROLLOUT),
        || {
            let seen = clients.of(version, |seen| seen.answers.get(MIN_REQUESTS - 1).map(|(at, _)| *at));
            seen.flatten()
        },
    );
    let why = rejected(version);
    assert!(why.contains(words), "{why}");
    let last = || {
        clients
            .of(version, |seen| seen.answers.last().map(|(at, _)| *at))
            .flatten()
    };
    let gone = wait(&format!("nobody is answered with {version}"), SOON, String::new, || {
        last().filter(|last| last.elapsed() > QUIET)
    });
    let took = gone.saturating_duration_since(bad);
    println!(
        "           {version} answered nobody any more {:.1} s after its {MIN_REQUESTS}th answer",
        took.as_secs_f64()
    );
    assert!(took <= OUT_OF_USE, "{took:?}");
    until(ROLLOUT, "Ready without it", |service| {
        condition(service, "Ready").is_some_and(|c| c.0 == "True") && service["status"]["canary"].is_null()
    });
}
