//! The program itself, with a real artifact: what it answers, what it refuses, how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/artifact.rs"]
mod fixture;
#[path = "common/program.rs"]
mod process;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Connection, PATIENCE, get, post, predict, until, with_headers};
use fixture::{Artifact, Behaviour, LABELS, Setup, Storage};
use flywheel_contract::artifact::{CONFIG_FILE, EVALUATION_SAMPLE_FILE, MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::{Device, Digest, Precision};
use flywheel_contract::serving::{Agreement, LoadState, TlsFiles};
use process::{Program, assert_fails, text};
use serde_json::{Value, json};

const TEXTS: [&str; 6] = [
    "where is my card?",
    "send my money back, please",
    "  Karte weg!  ",
    "日本語 and 😀",
    "where is my money my money my money my money my money my money my money my money my money my money my money my money my \
     money my money my money my money my money my money my money my money my money my money my money my money my money ?",
    "x",
];

fn assert_predicts(answer: &Value, want: &[f32], version: &str) {
    let best = (0..want.len()).max_by(|a, b| want[*a].total_cmp(&want[*b])).unwrap();
    assert_eq!(answer["intent_id"], json!(best));
    assert_eq!(answer["label"], json!(LABELS[best]));
    assert_eq!(answer["model_version"], json!(version));
    for (label, want) in LABELS.iter().zip(want) {
        let got = answer["all_probs"][label].as_f64().unwrap();
        assert!(
            (got - f64::from(*want)).abs() < 1e-5,
            "{label}: {got}, the network says {want}"
        );
    }
    assert!((answer["probability"].as_f64().unwrap() - f64::from(want[best])).abs() < 1e-5);
}

#[test]
fn answers_are_those_of_the_network() {
    let artifact = Artifact::new();
    let program = Program::ready(&artifact.setup(&artifact.uri()));
    let want = artifact.direct(&TEXTS);
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(
        distance(&want[0], &want[1]) > 1e-2,
        "the network tells texts apart: {want:?}"
    );
    for (text, want) in TEXTS.iter().zip(&want) {
        let answer = predict(program.data, &json!({"text": text}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_predicts(&answer.json(), want, "intent-v3");
    }
    // Together, several times over, so that batches of many lengths and full batches come about.
    let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(100).collect();
    let answer = predict(program.data, &json!({"texts": texts})).json();
    let predictions = answer["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 100);
    for (prediction, want) in predictions.iter().zip(want.iter().cycle()) {
        assert_predicts(prediction, want, "intent-v3");
    }
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (id, version) in [("traced", "00"), ("untraced", "0")] {
        let headers = format!(
            "content-type: application/json\r\nx-request-id: {id}\r\ntraceparent: {version}-{trace}-00f067aa0ba902b7-01\r\n"
        );
        let body = json!({"text": TEXTS[0]}).to_string();
        let answer = Connection::open(program.data).exchange(&with_headers("/predict", &headers, body.as_bytes()));
        assert_eq!(answer.status, 200);
        let line = until("the request is logged", || {
            let log = program.log();
            let line = log.lines().find(|line| line.contains(&format!("\"{id}\"")))?;
            Some(serde_json::from_str::<Value>(line).unwrap())
        });
        let seen = line.get("trace_id").or(line["fields"].get("trace_id"));
        assert_eq!(
            seen.and_then(Value::as_str),
            (version == "00").then_some(trace),
            "{line}"
        );
    }
    let document = get(program.data, "/openapi.json").json();
    assert_eq!(document["info"]["title"], "intent");
    for path in document["paths"].as_object().unwrap().keys() {
        let path = path.replace("{model}", "intent").replace("{version}", "intent-v3");
        assert_ne!(
            get(program.data, &path).status,
            404,
            "{path} is documented and not served"
        );
    }
    let stats = program.stats();
    assert_eq!(
        (stats.ready, stats.versions[0].state, stats.answered),
        (true, LoadState::Ready, [9, 0, 0])
    );
    let log = program.log();
    assert!(
        log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{log}"
    );
    assert!(
        !log.contains("money") && !log.contains("Karte"),
        "texts in the log: {log}"
    );
}

#[test]
fn the_yaml_of_a_service_serves_without_kubernetes() {
    let artifact = Artifact::new();
    let service = "apiVersion: flywheel.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: intent}\n\
                   spec: {model: intent, modelVersion: intent-v2, replicas: 1, server: {precision: Float32}}\n";
    let version = format!(
        "apiVersion: flywheel.dev/v1alpha1\nkind: ModelVersion\nmetadata: {{name: intent-v2}}\n\
         spec: {{model: intent, version: 2, artifact: {{uri: '{}', digest: '{}'}}}}\n",
        artifact.uri(),
        artifact.digest
    );
    let mut program = Program::start(|home| {
        let (one, other) = (home.join("service.yaml"), home.join("version.yaml"));
        fs::write(&one, service).unwrap();
        fs::write(&other, version).unwrap();
        vec![
            "run".to_owned(),
            "-f".to_owned(),
            text(&one),
            "--model-version".to_owned(),
            text(&other),
        ]
    });
    program.wait_ready();
    let answer = predict(program.data, &json!({"text": TEXTS[0]})).json();
    assert_predicts(&answer, &artifact.direct(&TEXTS[..1])[0], "intent-v2");
}

/// In place of a status: closed without an answer, which is what hyper does with another protocol.
const CLOSED: u16 = 0;

/// One bad request: its bytes, and the status and reason that it gets. No reason where the answer is hyper's own.
struct Bad {
    name: &'static str,
    bytes: Vec<u8>,
    status: u16,
    reason: &'static str,
}

fn bad_requests() -> Vec<Bad> {
    let mut rows = Vec::new();
    let mut add = |name, bytes: Vec<u8>, status, reason| {
        rows.push(Bad {
            name,
            bytes,
            status,
            reason,
        });
    };
    let body = |body: &[u8]| post("/predict", body);
    let raw = |text: &str| text.as_bytes().to_vec();
    // Bodies that are no JSON.
    for (name, bytes) in [
        ("empty body", &b""[..]),
        ("open object", b"{\"text\": \"a\""),
        ("open string", b"{\"text\": \"a"),
        ("trailing text", b"{\"text\": \"a\"} x"),
        ("two objects", b"{\"text\": \"a\"}{\"text\": \"b\"}"),
        ("NaN", b"{\"text\": NaN}"),
        ("Infinity", b"{\"texts\": [-Infinity]}"),
        ("single quotes", b"{'text': 'a'}"),
        ("trailing comma", b"{\"texts\": [\"a\",]}"),
        ("comment", b"{/* */\"text\": \"a\"}"),
        ("invalid UTF-8", b"{\"text\": \"\xc3\x28\"}"),
        ("surrogate in UTF-8", b"{\"text\": \"\xed\xa0\x80\"}"),
        ("lone surrogate", b"{\"text\": \"\\ud83d\"}"),
        ("swapped surrogates", b"{\"text\": \"\\ude00\\ud83d\"}"),
        ("raw NUL", b"{\"text\": \"a\0b\"}"),
        ("byte order mark", b"\xef\xbb\xbf{\"text\": \"a\"}"),
        ("UTF-16", b"{\0\"\0t\0e\0x\0t\0\"\0:\0\"\0a\0\"\0}\0"),
        ("form", b"text=a"),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"),
    ] {
        add(name, body(bytes), 400, "MalformedJson");
    }
    // JSON that asks for nothing.
    for (name, text) in [
        ("null", "null"),
        ("bare string", "\"a\""),
        ("bare list", "[\"a\"]"),
        ("no field", "{}"),
        ("null text", "{\"text\": null}"),
        ("number", "{\"text\": 1}"),
        ("2^63", "{\"text\": 9223372036854775808}"),
        ("-0", "{\"text\": -0}"),
        ("list in text", "{\"text\": [\"a\"]}"),
        ("text in texts", "{\"texts\": \"a\"}"),
        ("number in texts", "{\"texts\": [\"a\", 2]}"),
        ("repeated key", "{\"text\": \"a\", \"text\": \"b\"}"),
        ("both forms", "{\"text\": \"a\", \"texts\": [\"b\"]}"),
        ("unknown field", "{\"text\": \"a\", \"threshold\": 0.5}"),
        ("other case", "{\"TEXT\": \"a\"}"),
    ] {
        add(name, body(text.as_bytes()), 422, "InvalidRequest");
    }
    add("number out of range", body(b"{\"text\": 1e400}"), 400, "MalformedJson");
    let deep = "[".repeat(500_000);
    add("deep nesting", body(deep.as_bytes()), 422, "InvalidRequest");
    add(
        "deep in texts",
        body(format!("{{\"texts\": {deep}").as_bytes()),
        422,
        "InvalidRequest",
    );
    add("empty text", body(b"{\"text\": \"\"}"), 422, "EmptyText");
    add(
        "white space",
        body("{\"text\": \" \\n\u{2003}\"}".as_bytes()),
        422,
        "EmptyText",
    );
    add("empty list", body(b"{\"texts\": []}"), 422, "EmptyText");
    add("empty in list", body(b"{\"texts\": [\"a\", \"\"]}"), 422, "EmptyText");
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(64 * 1024 + 1));
    add("long text", body(long.as_bytes()), 422, "TextTooLong");
    let many = format!("{{\"texts\": [{}]}}", vec!["\"a\""; 129].join(","));
    add("129 texts", body(many.as_bytes()), 422, "TooManyTexts");
    let flood = format!("{{\"texts\": [{}]}}", vec!["\"\""; 300_000].join(","));
    add("300,000 texts", body(flood.as_bytes()), 422, "TooManyTexts");
    // Sizes and framing.
    let huge = vec![b' '; 1024 * 1024 + 1];
    add("a byte too many", body(&huge), 413, "BodyTooLarge");
    let json = "content-type: application/json\r\n";
    let head = format!("POST /predict HTTP/1.1\r\nhost: t\r\n{json}");
    add(
        "1 TiB announced",
        raw(&format!("{head}content-length: 1099511627776\r\n\r\n")),
        413,
        "BodyTooLarge",
    );
    add(
        "1 TiB, asking first",
        raw(&format!(
            "{head}expect: 100-continue\r\ncontent-length: 1099511627776\r\n\r\n"
        )),
        413,
        "BodyTooLarge",
    );
    let mut chunks = raw(&format!("{head}transfer-encoding: chunked\r\n\r\n"));
    for _ in 0..300_000 {
        chunks.extend_from_slice(b"6\r\n      \r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    add("300,000 small chunks", chunks, 413, "BodyTooLarge");
    add(
        "bad chunk size",
        raw(&format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n")),
        400,
        "MalformedRequest",
    );
    add("no length", raw(&format!("{head}\r\n")), 411, "LengthRequired");
    add(
        "length cut short",
        {
            let mut bytes = raw(&format!("{head}content-length: 5\r\n\r\n"));
            bytes.extend_from_slice(b"{\"text\": \"a\"}");
            bytes
        },
        400,
        "MalformedJson",
    );
    add(
        "negative length",
        raw(&format!("{head}content-length: -1\r\n\r\n")),
        400,
        "",
    );
    add(
        "two lengths",
        raw(&format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n{{}}")),
        400,
        "",
    );
    add(
        "unknown transfer coding",
        raw(&format!("{head}transfer-encoding: gzip\r\n\r\n")),
        400,
        "",
    );
    add("no HTTP", raw("hello\r\n\r\n"), 400, "");
    add("HTTP/2 preface", raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), CLOSED, "");
    add(
        "header without colon",
        raw("POST /predict HTTP/1.1\r\nnonsense\r\n\r\n"),
        400,
        "",
    );
    let lines = |n: usize| (0..n).map(|i| format!("x-{i}: y\r\n")).collect::<String>();
    add(
        "10,000 headers",
        raw(&format!("POST /predict HTTP/1.1\r\n{}\r\n", lines(10_000))),
        431,
        "",
    );
    add(
        "128 KiB header",
        raw(&format!(
            "POST /predict HTTP/1.1\r\nx: {}\r\n\r\n",
            "y".repeat(128 * 1024)
        )),
        431,
        "",
    );
    // Types, methods, paths.
    let good = br#"{"text": "a"}"#;
    for (name, headers) in [
        ("no type", ""),
        ("text/plain", "content-type: text/plain\r\n"),
        ("form type", "content-type: application/x-www-form-urlencoded\r\n"),
        ("look-alike type", "content-type: application/jsonp\r\n"),
        (
            "two types",
            "content-type: application/json\r\ncontent-type: text/plain\r\n",
        ),
        (
            "compressed",
            "content-type: application/json\r\ncontent-encoding: br\r\n",
        ),
    ] {
        add(
            name,
            with_headers("/predict", headers, good),
            415,
            "UnsupportedMediaType",
        );
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        add(
            "method",
            raw(&format!("{method} /predict HTTP/1.1\r\nhost: t\r\n\r\n")),
            405,
            "MethodNotAllowed",
        );
    }
    add("post to readyz", post("/readyz", good), 405, "MethodNotAllowed");
    for path in [
        "/",
        "/Predict",
        "/predict/",
        "//predict",
        "/predict/../predict",
        "/%70redict",
        "/stats",
        "/metrics",
        "/livez",
        "/v1/models/x",
    ] {
        add("path", post(path, good), 404, "NotFound");
    }
    rows
}

#[test]
fn bad_requests_are_refused_one_by_one_and_harm_nobody() {
    let artifact = Artifact::new();
    let program = Program::ready(&artifact.setup(&artifact.uri()));
    let rows = bad_requests();
    assert!(rows.len() >= 40, "{}", rows.len());
    assert_eq!(predict(program.data, &json!({"text": "a"})).status, 200);
    let before = program.rss();
    for row in &rows {
        let mut connection = Connection::open(program.data);
        // From another thread: the other side answers and closes before it has read all of the large ones.
        let mut writer = connection.stream.try_clone().unwrap();
        let bytes = row.bytes.clone();
        let sent = thread::spawn(move || {
            let _ = writer.write_all(&bytes);
        });
        let answer = connection.answer();
        let status = answer.as_ref().map_or(CLOSED, |a| a.status);
        let said = answer.as_ref().map_or(String::new(), |a| a.text());
        assert_eq!(status, row.status, "{}: {said}", row.name);
        let Some(answer) = answer else { continue };
        if !row.reason.is_empty() {
            assert_eq!(answer.reason(), row.reason, "{}", row.name);
            assert_eq!(answer.header("content-type"), Some("application/json"), "{}", row.name);
        }
        if row.status == 405 {
            assert!(
                answer
                    .header("allow")
                    .is_some_and(|a| a.contains("POST") || a.contains("GET")),
                "{}",
                row.name
            );
        }
        drop(connection);
        sent.join().unwrap();
        let good = predict(program.data, &json!({"text": "a"}));
        assert_eq!(good.status, 200, "after {}", row.name);
    }
    let more = program.rss().saturating_sub(before);
    assert!(more < 50 << 20, "{more} bytes more after {} bad requests", rows.len());
    let stats = program.stats();
    assert_eq!(stats.answered[2], 0, "no 5xx");
    assert_eq!(stats.in_flight, 0);
    let log = program.log();
    assert!(!log.contains("\"panic\""), "{log}");
    // What is odd and right is answered.
    for body in [
        "{\"text\": \"a\\u0000b\"}",
        "{\"text\": \"\\ud83d\\ude00\"}",
        "\n {\"text\" : \"\u{202e}abc\u{200b}\"}\r\n",
        "{\"texts\": [\"e\\u0301\"]}",
    ] {
        let answer = Connection::open(program.data).exchange(&post("/predict", body.as_bytes()));
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    }
    let mut chunked = Connection::open(program.data);
    chunked.send(
        b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    for piece in br#"{"text": "where is my card?"}"# {
        chunked.send(format!("1\r\n{}\r\n", char::from(*piece)).as_bytes());
    }
    assert_eq!(chunked.exchange(b"0\r\n\r\n").status, 200);
}

#[test]
fn slow_clients_are_cut_off_and_others_do_not_notice() {
    let artifact = Artifact::new();
    let program = Program::ready(&artifact.setup(&artifact.uri()));
    let head = "POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n";
    let mut silent = Connection::open(program.data);
    let mut half_head = Connection::open(program.data);
    half_head.send(head.as_bytes());
    let mut half_body = Connection::open(program.data);
    half_body.send(format!("{head}content-length: 100\r\n\r\n{{\"text\": ").as_bytes());
    // Asks again and again and never reads.
    let deaf = Connection::open(program.data);
    let mut writer = deaf.stream.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let texts = vec!["a"; 128];
        let request = post("/predict", json!({"texts": texts}).to_string().as_bytes());
        let start = Instant::now();
        while writer.write_all(&request).is_ok() {
            assert!(
                start.elapsed() < PATIENCE,
                "a client that never reads is served for ever"
            );
        }
    });
    let start = Instant::now();
    let timed = half_body.answer().unwrap();
    assert_eq!((timed.status, timed.reason().as_str()), (408, "BodyTimeout"));
    assert!(half_head.answer().is_none() && silent.answer().is_none());
    let took = start.elapsed();
    assert!(
        (Duration::from_secs(8)..Duration::from_secs(25)).contains(&took),
        "{took:?}"
    );
    flood.join().unwrap();
    drop(deaf);
    assert_eq!(predict(program.data, &json!({"text": "a"})).status, 200);
}

#[test]
fn what_cannot_be_loaded_ends_the_pod_with_its_reason() {
    type Change = fn(&mut Artifact, &mut Setup);
    let rows: Vec<(&str, FailureReason, &str, Change)> = vec![
        (
            "flipped byte in the weights",
            FailureReason::DigestMismatch,
            WEIGHTS_FILE,
            |a, _| {
                a.damage(WEIGHTS_FILE, |b| *b.last_mut().unwrap() ^= 1);
            },
        ),
        (
            "flipped byte in the tokenizer",
            FailureReason::DigestMismatch,
            TOKENIZER_FILE,
            |a, _| {
                a.damage(TOKENIZER_FILE, |b| b[10] ^= 1);
            },
        ),
        ("a byte more", FailureReason::DigestMismatch, CONFIG_FILE, |a, _| {
            a.damage(CONFIG_FILE, |b| b.push(b' '));
        }),
        (
            "changed manifest",
            FailureReason::DigestMismatch,
            MANIFEST_FILE,
            |a, _| {
                a.damage(MANIFEST_FILE, |b| b.push(b'\n'));
            },
        ),
        (
            "no artifact",
            FailureReason::ArtifactNotFound,
            "does not exist",
            |a, c| {
                c.version().artifact.uri.0 = format!("{}/none", a.uri());
            },
        ),
        ("no weights", FailureReason::ArtifactNotFound, WEIGHTS_FILE, |a, _| {
            fs::remove_file(a.path(WEIGHTS_FILE)).unwrap();
        }),
        (
            "lying header of the weights",
            FailureReason::WeightsInvalid,
            "classifier.weight",
            |a, c| {
                a.damage(WEIGHTS_FILE, fixture::lie);
                a.describe(|_| ());
                c.version().artifact.digest = a.digest.clone();
            },
        ),
        (
            "weights cut off before they were described",
            FailureReason::WeightsInvalid,
            WEIGHTS_FILE,
            |a, c| {
                a.damage(WEIGHTS_FILE, |b| b.truncate(b.len() / 2));
                a.describe(|_| ());
                c.version().artifact.digest = a.digest.clone();
            },
        ),
        (
            "weights that are four bytes",
            FailureReason::WeightsInvalid,
            WEIGHTS_FILE,
            |a, c| {
                a.damage(WEIGHTS_FILE, |b| b.truncate(4));
                a.describe(|_| ());
                c.version().artifact.digest = a.digest.clone();
            },
        ),
        ("other labels", FailureReason::ManifestInvalid, "labels", |a, c| {
            a.describe(|m| m.labels.reverse());
            c.version().artifact.digest = a.digest.clone();
        }),
        (
            "file outside the artifact",
            FailureReason::ManifestInvalid,
            "passwd",
            |a, c| {
                a.describe(|m| m.files[0].name = "../../etc/passwd".to_owned());
                c.version().artifact.digest = a.digest.clone();
            },
        ),
        (
            "manifest that is no JSON",
            FailureReason::ManifestInvalid,
            "manifest",
            |a, c| {
                fs::write(a.path(MANIFEST_FILE), "{").unwrap();
                c.version().artifact.digest = sha_of_brace();
            },
        ),
        (
            "broken tokenizer",
            FailureReason::TokenizerInvalid,
            TOKENIZER_FILE,
            |a, c| {
                fs::write(a.path(TOKENIZER_FILE), "{}").unwrap();
                a.describe(|_| ());
                c.version().artifact.digest = a.digest.clone();
            },
        ),
        ("unknown scheme", FailureReason::StorageInvalid, "gopher", |_, c| {
            c.version().artifact.uri.0 = "gopher://x/y".to_owned();
        }),
        ("no such CA file", FailureReason::StorageInvalid, "/none.pem", |_, c| {
            c.config.storage.ca_file = Some("/none.pem".to_owned());
        }),
        (
            "closed port",
            FailureReason::StorageUnavailable,
            "did not answer",
            |_, c| {
                c.version().artifact.uri.0 = "http://127.0.0.1:1/x".to_owned();
            },
        ),
        (
            "no time",
            FailureReason::ConfigInvalid,
            "timeoutMilliseconds",
            |_, c| c.config.limits.timeout_milliseconds = 0,
        ),
        (
            "no certificate",
            FailureReason::CertificateInvalid,
            "tls.crt cannot be read",
            |_, c| {
                let path = |name: &str| format!("/nowhere/{name}");
                c.config.tls = Some(TlsFiles {
                    certificate: path("tls.crt"),
                    key: path("tls.key"),
                });
            },
        ),
        (
            "another release's configuration",
            FailureReason::ConfigInvalid,
            "schemaVersion",
            |_, c| c.config.schema_version = 9,
        ),
        (
            "digest that is a path",
            FailureReason::ConfigInvalid,
            "digest",
            |_, c| {
                c.version().artifact.digest = Digest("sha256:../../x".to_owned());
            },
        ),
    ];
    // A few at a time: each starts libtorch.
    for chunk in rows.chunks(4) {
        let started: Vec<_> = chunk
            .iter()
            .map(|(name, reason, word, change)| {
                let mut artifact = Artifact::new();
                let mut setup = artifact.setup(&artifact.uri());
                change(&mut artifact, &mut setup);
                (name, reason, word, Program::serve(&setup), artifact)
            })
            .collect();
        for (name, reason, word, mut program, _artifact) in started {
            assert_fails(name, &mut program, *reason, word);
        }
    }
}

fn sha_of_brace() -> Digest {
    Digest::sha256("021fb596db81e6d02bf3d2586ee3981fe519f275c0ac9ca76bbcf2ebb4097d96")
}

#[test]
fn a_storage_that_refuses_or_breaks_off_is_told_apart() {
    let artifact = Artifact::new();
    for (behaviour, reason, most) in [
        (Behaviour::Forbid, FailureReason::StorageForbidden, 2),
        (Behaviour::Fail, FailureReason::StorageUnavailable, 60),
        (Behaviour::CutOff, FailureReason::StorageUnavailable, 80),
        (Behaviour::Silent, FailureReason::StorageUnavailable, 10),
    ] {
        let storage = Storage::new(artifact.dir.path(), behaviour);
        let mut program = Program::serve(&artifact.setup(&storage.uri()));
        until("it has asked", || {
            (storage.requests.load(Ordering::Relaxed) > 0).then_some(())
        });
        if reason == FailureReason::StorageUnavailable {
            let readyz = get(program.data, "/readyz");
            assert_eq!((readyz.status, readyz.reason().as_str()), (503, "NotReady"));
            assert_eq!(get(program.inside, "/livez").status, 200, "waiting is not death");
            assert_eq!(program.stats().versions[0].state, LoadState::Downloading);
        }
        assert_fails(&format!("{behaviour:?}"), &mut program, reason, "127.0.0.1");
        let requests = storage.requests.load(Ordering::Relaxed);
        assert!(requests <= most, "{behaviour:?}: a storm of {requests} requests");
    }
}

#[test]
fn a_storage_that_comes_back_is_enough() {
    let artifact = Artifact::new();
    let storage = Storage::new(artifact.dir.path(), Behaviour::Fail);
    let mut program = Program::serve(&artifact.setup(&storage.uri()));
    until("a try has failed", || {
        program.log().contains("trying again").then_some(())
    });
    storage.set(Behaviour::Right);
    program.wait_ready();
    let answer = predict(program.data, &json!({"text": TEXTS[0]})).json();
    assert_predicts(&answer, &artifact.direct(&TEXTS[..1])[0], "intent-v3");
}

#[test]
fn a_restart_finds_the_artifact_in_the_cache_and_checks_it() {
    let artifact = Artifact::new();
    let storage = Storage::new(artifact.dir.path(), Behaviour::Right);
    let scratch = tempfile::tempdir().unwrap();
    let setup = artifact.setup(&storage.uri());
    let start = || {
        let mut program = Program::serve_from(&setup, Some(scratch.path()));
        program.wait_ready();
        program
    };
    drop(start());
    let asked = storage.requests.load(Ordering::Relaxed);
    assert!(asked > 0);
    storage.set(Behaviour::Forbid);
    drop(start());
    assert_eq!(
        storage.requests.load(Ordering::Relaxed),
        asked,
        "the cache was not used"
    );
    // A disk that changed a byte must not be served.
    let folder = scratch.path().join("artifacts").join(artifact.digest.hex());
    let weights = folder.join(WEIGHTS_FILE);
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, &bytes).unwrap();
    storage.set(Behaviour::Right);
    drop(start());
    assert!(storage.requests.load(Ordering::Relaxed) > asked);
    assert_ne!(fs::read(&weights).unwrap(), bytes);
}

/// How far the probabilities of an answer are from these at most.
fn farthest(answer: &Value, exact: &[f32]) -> f64 {
    let off = LABELS
        .iter()
        .zip(exact)
        .map(|(label, want)| (answer["all_probs"][label].as_f64().unwrap() - f64::from(*want)).abs());
    off.fold(0.0, f64::max)
}

/// Answers in a format are compared with those that the artifact holds; where too many differ, `Auto` goes back to single
/// precision and a format that was asked for is refused.
#[test]
fn a_precision_serves_only_if_it_agrees() {
    let mut artifact = Artifact::new();
    let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(60).collect();
    artifact.add_sample(&texts, 0);
    let mut setup = artifact.setup(&artifact.uri());
    setup.config.precision = Precision::BFloat16;
    let program = Program::ready(&setup);
    let version = &program.stats().versions[0];
    assert_eq!(
        (version.precision, version.agreement),
        (Some(Precision::BFloat16), Some(Agreement { texts: 60, same: 60 }))
    );
    let answer = predict(program.data, &json!({"text": TEXTS[0]})).json();
    let off = farthest(&answer, &artifact.direct(&TEXTS[..1])[0]);
    assert!(
        (1e-6..0.1).contains(&off),
        "{off}: answers in 16 bits are near those in 32, and not the same"
    );

    for (wrong, serves) in [(1, true), (2, false)] {
        artifact.add_sample(&texts, wrong);
        let mut setup = artifact.setup(&artifact.uri());
        setup.config.precision = Precision::BFloat16;
        let mut program = Program::serve(&setup);
        if serves {
            program.wait_ready();
        } else {
            assert_fails(
                "2 of 60",
                &mut program,
                FailureReason::PrecisionUnfit,
                "set spec.server.precision to Float32",
            );
            assert!(program.log().contains("2 of the 60 texts"), "{}", program.log());
        }
        setup.config.precision = Precision::Auto;
        let stats = Program::ready(&setup).stats().versions.remove(0);
        // A processor without units for bfloat16 computes in single precision from the start.
        assert!(serves || stats.precision == Some(Precision::Float32), "{stats:?}");
        setup.config.precision = Precision::Float32;
        let agreement = Program::ready(&setup).stats().versions[0].agreement;
        assert_eq!(
            agreement,
            Some(Agreement {
                texts: 60,
                same: 60 - wrong as u32
            }),
            "it is told, and refuses nothing"
        );
    }

    artifact.damage(EVALUATION_SAMPLE_FILE, |bytes| bytes.truncate(100));
    artifact.describe(|_| ());
    let mut program = Program::serve(&artifact.setup(&artifact.uri()));
    assert_fails(
        "broken sample",
        &mut program,
        FailureReason::ManifestInvalid,
        "evaluation_sample.json",
    );
}

/// Eight bits need what the trainer measures; with it a pod answers in them, and tells so.
#[test]
fn eight_bits_serve_from_a_calibrated_artifact() {
    let mut artifact = Artifact::new();
    let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(60).collect();
    artifact.add_sample(&texts, 0);
    let mut setup = artifact.setup(&artifact.uri());
    setup.config.precision = Precision::Int8;
    assert_fails(
        "no calibration",
        &mut Program::serve(&setup),
        FailureReason::PrecisionUnfit,
        "flywheel-trainer calibrate",
    );

    artifact.calibrate(&TEXTS);
    let mut setup = artifact.setup(&artifact.uri());
    setup.config.precision = Precision::Int8;
    let program = Program::ready(&setup);
    let version = &program.stats().versions[0];
    assert_eq!(
        (version.precision, version.agreement),
        (Some(Precision::Int8), Some(Agreement { texts: 60, same: 60 }))
    );
    let answer = predict(program.data, &json!({"text": TEXTS[0]})).json();
    let off = farthest(&answer, &artifact.direct(&TEXTS[..1])[0]);
    assert!((1e-6..0.1).contains(&off), "{off}");

    setup.config.precision = Precision::Auto;
    let chosen = Program::ready(&setup).stats().versions[0].precision;
    assert_ne!(
        chosen,
        Some(Precision::Int8),
        "nobody gets 8 bits who did not ask for them"
    );
}

/// A second load of the same version does not answer the sample again; another format does, and a damaged note is no note.
#[test]
fn the_agreement_of_a_version_is_measured_once() {
    let mut artifact = Artifact::new();
    let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(60).collect();
    artifact.add_sample(&texts, 0);
    let scratch = tempfile::tempdir().unwrap();
    let start = |precision: Precision| {
        let mut setup = artifact.setup(&artifact.uri());
        setup.config.precision = precision;
        let mut program = Program::serve_from(&setup, Some(scratch.path()));
        program.wait_ready();
        program.stats().versions[0].agreement.unwrap()
    };
    let notes = || {
        let folder = fs::read_dir(scratch.path().join("agreements")).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let measured = Agreement { texts: 60, same: 60 };
    assert_eq!(start(Precision::Float32), measured);
    let [note] = notes().try_into().unwrap();
    let name = note.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(
        name.starts_with(&format!("{}.Float32.", artifact.digest.hex())),
        "{name}"
    );

    // Only who reads it can know this.
    let told = Agreement { texts: 60, same: 59 };
    fs::write(&note, serde_json::to_vec(&told).unwrap()).unwrap();
    assert_eq!(start(Precision::Float32), told);
    assert_eq!(start(Precision::BFloat16), measured, "another format");
    assert_eq!(notes().len(), 2);
    for damage in [
        &b"{\"texts\": 60"[..],
        b"",
        b"{\"texts\": 0, \"same\": 0}",
        b"{\"texts\": 1, \"same\": 60}",
    ] {
        fs::write(&note, damage).unwrap();
        assert_eq!(start(Precision::Float32), measured, "damaged");
        let again: Agreement = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
        assert_eq!(again, measured);
    }
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_ends_the_pod() {
    let artifact = Artifact::new();
    let mut setup = artifact.setup(&artifact.uri());
    setup.config.device = Device::Cuda;
    let mut program = Program::serve(&setup);
    if Path::new("/dev/nvidiactl").exists() {
        program.wait_ready();
    } else {
        assert_fails("Cuda", &mut program, FailureReason::GpuUnavailable, "set device Cpu");
    }
}

#[test]
fn sigterm_ends_it_in_time_with_every_request_answered() {
    let artifact = Artifact::new();
    let mut program = Program::ready(&artifact.setup(&artifact.uri()));
    let signalled = Arc::new(Mutex::new(None::<Instant>));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, signalled) = (program.data, Arc::clone(&signalled));
            // A connection per request, as of clients that have not heard yet. From the signal on the pod answers for two
            // more seconds, and what has begun after that; what is sent later may be refused or find nobody.
            thread::spawn(move || {
                let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(60).collect();
                let request = post("/predict", json!({"texts": texts}).to_string().as_bytes());
                let mut answered = 0;
                loop {
                    let late = signalled
                        .lock()
                        .unwrap()
                        .is_some_and(|at| at.elapsed() > Duration::from_millis(1500));
                    let answer = Connection::try_open(address).and_then(|mut connection| {
                        connection.send(&request);
                        connection.answer()
                    });
                    match answer {
                        Some(answer) if answer.status == 200 => answered += 1,
                        Some(answer) if answer.status == 429 => {}
                        Some(answer) => {
                            assert_eq!((answer.status, late), (503, true), "{}", answer.text());
                            assert_eq!(answer.header("connection"), Some("close"));
                            return answered;
                        }
                        None => {
                            assert!(late, "a request was lost");
                            return answered;
                        }
                    }
                }
            })
        })
        .collect();
    until("requests are answered", || {
        (program.stats().answered[0] > 4).then_some(())
    });
    *signalled.lock().unwrap() = Some(Instant::now());
    let start = Instant::now();
    program.signal();
    let status = program.ended();
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(0), "{}", program.log());
    assert!(!program.home.path().join("termination").exists());
    let answered: usize = clients.into_iter().map(|c| c.join().unwrap()).sum();
    assert!(answered > 4);
}

#[test]
fn sigterm_while_loading_ends_it_at_once() {
    let artifact = Artifact::new();
    let storage = Storage::new(artifact.dir.path(), Behaviour::Silent);
    let mut program = Program::serve(&artifact.setup(&storage.uri()));
    until("it has asked", || {
        (storage.requests.load(Ordering::Relaxed) > 0).then_some(())
    });
    program.signal();
    assert_eq!(program.ended().code(), Some(0), "{}", program.log());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_flywheel-server"))
        .args([
            "serve",
            "--config",
            "/none.json",
            "--inside-addr",
            "127.0.0.1:0",
            "--data-addr",
            &address,
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(&address) && log.contains("free the port"), "{log}");
    let usage = Command::new(env!("CARGO_BIN_EXE_flywheel-server"))
        .arg("fly")
        .output()
        .unwrap();
    assert_eq!(usage.status.code(), Some(2));
}
