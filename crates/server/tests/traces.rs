//! Spans by OTLP: the program, told by the usual environment variables, and a collector that reads what it is sent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/artifact.rs"]
mod fixture;
#[path = "common/program.rs"]
mod process;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Connection, get, until, with_headers};
use fixture::Artifact;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use process::Program;
use prost::Message;
use serde_json::json;

/// A collector of traces that keeps them.
struct Collector {
    address: SocketAddr,
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            got: Arc::default(),
        };
        let got = Arc::clone(&collector.got);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, got) = (stream.unwrap(), Arc::clone(&got));
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some((path, body)) = read(&mut reader) {
                        assert_eq!(path, "/v1/traces");
                        got.lock()
                            .unwrap()
                            .push(ExportTraceServiceRequest::decode(&body[..]).unwrap());
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                            .unwrap();
                    }
                });
            }
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let scopes = got.iter().flat_map(|r| &r.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn resource(&self) -> Vec<KeyValue> {
        self.got.lock().unwrap()[0].resource_spans[0]
            .resource
            .clone()
            .unwrap()
            .attributes
    }
}

fn read(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn ask(program: &Program, path: &str, trace: &str, text: &str) -> u16 {
    let headers = format!("content-type: application/json\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n");
    let body = json!({"text": text}).to_string();
    Connection::open(program.data)
        .exchange(&with_headers(path, &headers, body.as_bytes()))
        .status
}

#[test]
fn a_request_is_a_span_below_the_one_that_it_names() {
    let (artifact, collector) = (Artifact::new(), Collector::new());
    let endpoint = format!("http://{}", collector.address);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let mut program = Program::serve_with(&artifact.setup(&artifact.uri()), &variables);
    program.wait_ready();
    assert_eq!(ask(&program, "/predict", TRACE, "where is my card"), 200);
    assert_eq!(ask(&program, "/predict", TRACE, " "), 422);
    assert_eq!(
        ask(
            &program,
            "/v2/models/my secret/infer".replace(' ', "-").as_str(),
            TRACE,
            "x"
        ),
        404
    );
    assert_eq!(get(program.data, "/readyz").status, 200);
    // Who asks not to be kept is not.
    let unkept = format!("content-type: application/json\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-00\r\n");
    Connection::open(program.data).exchange(&with_headers("/predict", &unkept, br#"{"text": "a"}"#));
    let spans = until("the spans are there", || {
        Some(collector.spans()).filter(|spans| spans.len() >= 3)
    });
    let [good, bad, missing] = &spans[..] else {
        panic!("{spans:?}")
    };
    for span in [good, bad, missing] {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.to_owned(), "00f067aa0ba902b7".to_owned())
        );
        // A server's.
        assert_eq!(span.kind, 2);
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
        let text = format!("{span:?}");
        assert!(!text.contains("card") && !text.contains("secret"), "{text}");
    }
    let of = |span: &Span, key: &str| value(&span.attributes, key);
    assert_eq!(good.name, "POST /predict");
    for (key, want) in [
        ("http.request.method", "POST"),
        ("http.route", "/predict"),
        ("http.response.status_code", "200"),
        ("url.scheme", "http"),
        ("server.port", &program.data.port().to_string()),
        ("network.protocol.version", "1.1"),
        ("flywheel.model_version", "intent-v3"),
    ] {
        assert_eq!(of(good, key).as_deref(), Some(want), "{key}");
    }
    assert_eq!(of(bad, "http.response.status_code").as_deref(), Some("422"));
    assert_eq!(
        (of(bad, "error.type"), bad.status.clone().unwrap_or_default().code),
        (None, 0)
    );
    assert_eq!(of(missing, "http.route").as_deref(), Some("/v2/models/{model}/infer"));
    let resource = collector.resource();
    for (key, want) in [
        ("service.name", "intent"),
        ("service.namespace", "team"),
        ("deployment.environment.name", "test"),
    ] {
        assert_eq!(value(&resource, key).as_deref(), Some(want), "{key}");
    }
    // The last ones leave before the process does.
    assert_eq!(ask(&program, "/predict", TRACE, "last"), 200);
    program.signal();
    assert!(program.ended().success(), "{}", program.log());
    assert_eq!(collector.spans().len(), 4);
}

#[test]
fn a_collector_that_is_away_harms_no_request() {
    let artifact = Artifact::new();
    // One that takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
    ];
    let mut program = Program::serve_with(&artifact.setup(&artifact.uri()), &variables);
    program.wait_ready();
    let start = Instant::now();
    for _ in 0..40 {
        assert_eq!(ask(&program, "/predict", TRACE, "a"), 200);
    }
    // One that waited for the collector would take half a second.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    until("it is told", || {
        program.log().contains("traces cannot be delivered").then_some(())
    });
    let start = Instant::now();
    program.signal();
    assert!(program.ended().success());
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn what_is_not_spoken_is_told_and_the_pod_answers() {
    let artifact = Artifact::new();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let mut program = Program::serve_with(&artifact.setup(&artifact.uri()), &variables);
    program.wait_ready();
    assert!(program.log().contains("4318"), "{}", program.log());
}
