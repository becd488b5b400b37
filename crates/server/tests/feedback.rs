//! What clients say of predictions, on real sockets: pods with one key, each on an address of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers, too, end the test by a panic"
)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Connection, get, post, predict, until};
use flywheel_contract::feedback::Record;
use flywheel_contract::profile::{LiveProfiles, Outcomes};
use flywheel_contract::serving::{Capture, FeedbackSettings, Redaction, VersionFigures};
use flywheel_data::{Joined, join_feedback};
use flywheel_wire::feedback::FEEDBACK_PATH;
use pod::Pod;
use serde_json::{Value, json};

/// A folder with a key in it.
struct Secrets(tempfile::TempDir);

impl Secrets {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "0123456789abcdef0123456789abcdef\n").unwrap();
        Self(folder)
    }

    fn settings(&self, capture: Option<Capture>) -> FeedbackSettings {
        FeedbackSettings {
            key: self.0.path().join("key").display().to_string(),
            capture,
        }
    }

    /// The folder of the service in the bucket.
    fn kept(&self) -> PathBuf {
        self.0.path().join("bucket/team/intent")
    }

    fn capture(&self, sample_rate: f64) -> Option<Capture> {
        Some(Capture {
            uri: format!("file://{}", self.kept().display()).as_str().into(),
            sample_rate,
            redact: Vec::new(),
            retention_days: Some(30),
        })
    }
}

/// Addresses of this test alone; the port of pods among themselves is given.
fn ip(last: u8) -> String {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{low}.{last}", 128 + high % 64)
}

fn ask(pod: &Pod, text: &str) -> Value {
    let answer = predict(pod.data, &json!({ "text": text }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn tell(pod: &Pod, body: &Value) -> common::Answer {
    Connection::open(pod.data).exchange(&post(FEEDBACK_PATH, body.to_string().as_bytes()))
}

/// What a pod says that became of feedback.
fn outcome(pod: &Pod, id: &Value, label: &str) -> String {
    let answer = tell(pod, &json!({"request_id": id, "label": label}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["request_id"], *id);
    answer.json()["outcome"].as_str().unwrap().to_owned()
}

fn figures(pod: &Pod) -> VersionFigures {
    pod.stats().versions[0].figures.unwrap()
}

#[test]
fn a_prediction_is_judged_once_whichever_pod_is_told() {
    let secrets = Secrets::new();
    let (one, other) = (
        Pod::taking_feedback(&ip(1), secrets.settings(None)),
        Pod::taking_feedback(&ip(2), secrets.settings(None)),
    );
    let answer = ask(&one, "some text");
    assert_eq!(answer["label"], "long");
    let id = &answer["request_id"];
    assert!(id.as_str().unwrap().len() > 80, "a receipt: {id}");
    assert_eq!(
        outcome(&other, id, " long "),
        "Counted",
        "as it was told the one that answered"
    );
    assert_eq!(outcome(&one, id, "long"), "Duplicate");
    assert_eq!(outcome(&other, id, "short"), "Duplicate");
    let list = predict(one.data, &json!({"texts": ["a", "b", "c"]})).json();
    let ids: Vec<&Value> = (0..3).map(|n| &list["predictions"][n]["request_id"]).collect();
    let away = &ask(&other, "some text")["request_id"];
    let told = tell(
        &other,
        &json!({"feedback": [
            {"request_id": ids[0], "label": "short"}, {"request_id": away, "label": "no such label yet"},
            {"request_id": "made-up", "label": "short"}, {"request_id": ids[1], "label": "long"}, {"request_id": ids[0], "label": "x"}]}),
    );
    let outcomes: Vec<String> = told.json()["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["outcome"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, ["Counted", "Counted", "Invalid", "Counted", "Duplicate"]);
    // "a" is one character long, so that both labels are as probable: the last one is taken.
    let right = ["a", "b"]
        .iter()
        .zip(["short", "long"])
        .filter(|(text, said)| ask(&one, text)["label"] == **said)
        .count() as u64;
    let (first, second) = (figures(&one), figures(&other));
    assert_eq!((first.judged, first.correct), (3, 1 + right));
    assert_eq!((second.judged, second.correct), (1, 0));
    assert!(
        first.texts >= 4 && first.alone >= 1 && first.alone_seconds > 0.0,
        "{first:?}"
    );
    // By class, as each pod tells: 0 is short, 1 is long.
    let told: LiveProfiles = serde_json::from_str(&get(one.inside, "/profile").text()).unwrap();
    let mut sums: BTreeMap<u32, Outcomes> = BTreeMap::new();
    for window in told.versions.iter().flat_map(|version| &version.windows) {
        for (class, outcomes) in &window.outcomes {
            sums.entry(*class).or_default().add(*outcomes);
        }
    }
    let of = |class| sums.get(&class).copied().unwrap_or_default();
    let all = [of(0), of(1)];
    assert_eq!(all.map(|of| of.right).iter().sum::<u64>(), 1 + right);
    assert_eq!(all.map(|of| of.wrong).iter().sum::<u64>(), 2 - right);
    assert_eq!(
        all.map(|of| of.missed).iter().sum::<u64>(),
        2 - right,
        "each label is one of the version's"
    );
    // What the version does not know is missed by no class.
    let told = get(other.inside, "/profile").text();
    assert!(
        told.contains(r#""judged":{"predictions":1,"correct":0},"outcomes":{"1":[0,1,0]}"#),
        "{told}"
    );
    let metrics = get(other.inside, "/metrics").text();
    for (outcome, count) in [("counted", 4), ("duplicate", 2), ("invalid", 1)] {
        let line = format!("flywheel_feedback_total{{outcome=\"{outcome}\"}} {count}");
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
}

#[test]
fn what_nobody_made_or_whose_maker_is_gone_counts_nothing() {
    let (secrets, strangers) = (Secrets::new(), Secrets::new());
    std::fs::write(strangers.0.path().join("key"), [7; 32]).unwrap();
    let stranger = Pod::taking_feedback(&ip(11), strangers.settings(None));
    let theirs = ask(&stranger, "some text")["request_id"].clone();
    let pod = Pod::taking_feedback(&ip(12), secrets.settings(None));
    let id = ask(&pod, "some text")["request_id"].clone();
    let forged = json!(id.as_str().unwrap().replace(|c: char| c.is_ascii_uppercase(), "A"));
    for id in [&json!("x"), &json!(""), &theirs, &forged] {
        assert_eq!(outcome(&pod, id, "long"), "Invalid", "{id}");
    }
    assert_eq!(figures(&pod).judged, 0);
    // The process is started again under the same address, and knows nothing of what the one before answered.
    let begun = Instant::now();
    drop(pod);
    let pod = Pod::taking_feedback(&ip(12), secrets.settings(None));
    assert_eq!(outcome(&pod, &id, "long"), "Expired");
    assert_eq!(figures(&pod).judged, 0);
    // Another one finds nobody there.
    drop(pod);
    let other = Pod::taking_feedback(&ip(13), secrets.settings(None));
    assert_eq!(outcome(&other, &id, "long"), "Expired");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_service_without_feedback_says_so_and_bad_bodies_are_refused() {
    let pod = Pod::ready(8, 1000, 1);
    let answer = tell(&pod, &json!({"request_id": "x", "label": "y"}));
    assert_eq!((answer.status, answer.reason().as_str()), (404, "NotFound"));
    assert!(answer.text().contains("spec.feedback"));
    let id = ask(&pod, "some text")["request_id"].clone();
    assert!(id.as_str().unwrap().len() < 40, "no receipt: {id}");

    let secrets = Secrets::new();
    let pod = Pod::taking_feedback(&ip(21), secrets.settings(None));
    for (body, status, reason) in [
        ("{", 400, "MalformedJson"),
        ("{}", 422, "InvalidRequest"),
        (r#"{"request_id": "x", "label": ""}"#, 422, "InvalidRequest"),
    ] {
        let answer = Connection::open(pod.data).exchange(&post(FEEDBACK_PATH, body.as_bytes()));
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{body}");
    }
    let wrong = common::with_headers(FEEDBACK_PATH, "content-type: text/plain\r\n", b"{}");
    assert_eq!(Connection::open(pod.data).exchange(&wrong).status, 415);
    assert_eq!(get(pod.data, FEEDBACK_PATH).status, 405);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        all.sort();
        all
    };
    list(folder).iter().flat_map(|day| list(day)).collect()
}

fn drain(mut pod: Pod) {
    pod.runtime.block_on(pod.server.take().unwrap().drain());
}

#[test]
fn texts_and_what_clients_say_of_them_become_rows_of_a_training() {
    let secrets = Secrets::new();
    let pods = [31, 32].map(|last| Pod::taking_feedback(&ip(last), secrets.settings(secrets.capture(1.0))));
    let ids: Vec<Value> = (0..8)
        .map(|n| ask(&pods[n % 2], &format!("text number {n}"))["request_id"].clone())
        .collect();
    for (n, id) in ids.iter().enumerate().take(6) {
        // Each at the pod that did not answer.
        assert_eq!(outcome(&pods[(n + 1) % 2], id, "either"), "Counted");
    }
    assert_eq!(outcome(&pods[0], &ids[0], "another"), "Duplicate");
    for pod in pods {
        drain(pod);
    }
    let files = files(&secrets.kept());
    assert!(files.len() >= 2, "a file of each pod: {files:?}");
    assert!(files.iter().all(|file| {
        file.parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("date=20")
    }));
    let lines = files.iter().flat_map(|file| {
        std::fs::read_to_string(file)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let records: Vec<Record> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    let of_text = |text: &str| {
        records
            .iter()
            .find(|r| matches!(r, Record::Prediction { text: t, .. } if t == text))
    };
    let Some(Record::Prediction {
        model_version,
        label,
        probability,
        ..
    }) = of_text("text number 5")
    else {
        panic!("{records:?}");
    };
    assert_eq!((model_version.as_str(), label.as_str()), ("intent-v7", "long"));
    assert!(*probability > 0.9);
    let out = secrets.0.path().join("joined");
    let joined = join_feedback(&files, &out, "text", "label").unwrap();
    assert_eq!(
        joined,
        Joined {
            rows: 6,
            unjudged: 2,
            rare: 0,
            unreadable: 0
        }
    );
    let rows = std::fs::read_to_string(&out).unwrap();
    for n in 0..6 {
        let row = format!("{{\"label\":\"either\",\"text\":\"text number {n}\"}}");
        assert!(rows.contains(&row), "{rows}");
    }
}

#[test]
fn what_is_to_be_taken_out_of_texts_is_not_in_the_files() {
    let secrets = Secrets::new();
    let mut capture = secrets.capture(1.0).unwrap();
    capture.redact = vec![Redaction::EmailAddress, Redaction::CardNumber];
    let pod = Pod::taking_feedback(&ip(35), secrets.settings(Some(capture)));
    let long = "what is said at length, and at the end +49 30 123456 and jo@example.com: ".repeat(100);
    ask(&pod, &long);
    let id = ask(
        &pod,
        "write to jo@example.com, card 4111 1111 1111 1111, or call +49 30 123456",
    )["request_id"]
        .clone();
    assert_eq!(outcome(&pod, &id, "either"), "Counted");
    drain(pod);
    let files = files(&secrets.kept());
    let kept: String = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let text = r#""text":"write to <email>, card <card>, or call +49 30 123456""#;
    assert!(kept.contains(text), "{kept}");
    assert!(!kept.contains("example.com") && !kept.contains("4111"), "{kept}");
    assert_eq!(kept.matches("and <email>: ").count(), 100, "a long one, too");
    let joined = join_feedback(&files, &secrets.0.path().join("joined"), "text", "label").unwrap();
    assert_eq!((joined.unreadable, joined.unjudged), (0, 1), "{joined:?}");
}

#[test]
fn only_as_many_texts_are_kept_as_the_spec_says() {
    let secrets = Secrets::new();
    let pod = Pod::taking_feedback(&ip(41), secrets.settings(secrets.capture(0.25)));
    let texts: Vec<String> = (0..100).map(|n| format!("text number {n}")).collect();
    for _ in 0..4 {
        assert_eq!(predict(pod.data, &json!({ "texts": texts })).status, 200);
    }
    drain(pod);
    let lines: usize = files(&secrets.kept())
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap().lines().count())
        .sum();
    // Binomial, within five deviations of a hundred.
    assert!((57..=143).contains(&lines), "{lines}");
}

#[test]
fn a_storage_that_takes_nothing_slows_nobody_down() {
    let secrets = Secrets::new();
    // A file where a folder would have to be.
    std::fs::create_dir_all(secrets.kept().parent().unwrap()).unwrap();
    std::fs::write(secrets.kept(), "in the way").unwrap();
    let pod = Pod::taking_feedback(&ip(51), secrets.settings(secrets.capture(1.0)));
    let text = "x".repeat(60_000);
    let mut longest = Duration::ZERO;
    for _ in 0..300 {
        let answer = predict(pod.data, &json!({ "text": text }));
        assert_eq!(answer.status, 200);
        longest = longest.max(answer.took);
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let metrics = until("records are dropped once there is no room", || {
        let metrics = get(pod.inside, "/metrics").text();
        predict(pod.data, &json!({ "text": text }));
        metrics
            .contains("flywheel_captured_records_total{outcome=\"dropped\"}")
            .then_some(metrics)
    });
    assert!(
        metrics.contains("flywheel_captured_records_total{outcome=\"failed\"}"),
        "{metrics}"
    );
}
