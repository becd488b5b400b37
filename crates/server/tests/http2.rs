//! HTTP/2 on the data port, spoken by a client's library and, where it must be wrong, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{PATIENCE, predict, until};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use pod::Pod;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

type Client = SendRequest<Bytes>;

async fn connect(address: SocketAddr) -> (Client, JoinHandle<Result<(), h2::Error>>) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client, tokio::spawn(connection))
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

async fn ask(client: &Client, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, h2::Error> {
    let mut client = client.clone().ready().await?;
    let mut request = Request::post(format!("http://a{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (response, mut sending) = client.send_request(request.body(()).unwrap(), false)?;
    sending.send_data(Bytes::copy_from_slice(body), true)?;
    let (head, mut stream) = response.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: bytes,
        trailers: stream.trailers().await?.unwrap_or_default(),
    })
}

const JSON: (&str, &str) = ("content-type", "application/json");

fn text(text: &str) -> Vec<u8> {
    json!({"text": text}).to_string().into_bytes()
}

#[test]
fn many_streams_of_one_connection_get_their_own_answers() {
    let pod = Pod::ready(4096, 30_000, 2);
    pod.runtime.block_on(async {
        let (client, _connection) = connect(pod.data).await;
        // How many streams there may be is known with the first answer.
        assert_eq!(ask(&client, "/predict", &[JSON], &text("a")).await.unwrap().status, 200);
        let asking = (1..400_usize).map(|length| {
            let client = client.clone();
            tokio::spawn(async move {
                let answer = ask(&client, "/predict", &[JSON], &text(&"x".repeat(length)))
                    .await
                    .unwrap();
                let json: Value = serde_json::from_slice(&answer.body).unwrap();
                let want = length as f64 / (length + 1) as f64;
                assert!(
                    (json["all_probs"]["long"].as_f64().unwrap() - want).abs() < 1e-6,
                    "{length}: {json}"
                );
                assert!(answer.headers.contains_key("x-request-id") && !answer.headers.contains_key("connection"));
            })
        });
        for asked in asking.collect::<Vec<_>>() {
            asked.await.unwrap();
        }
        // The bounds are those of HTTP/1.1.
        for (path, headers, body, status) in [
            ("/predict", &[JSON][..], vec![b' '; 1024 * 1024 + 1], 413),
            ("/predict", &[], text("a"), 415),
            ("/predict", &[JSON], b"{".to_vec(), 400),
            ("/predict", &[JSON, ("x-request-timeout", "soon")], text("a"), 400),
            ("/nothing", &[JSON], text("a"), 404),
            ("/readyz", &[JSON], text("a"), 405),
        ] {
            let answer = ask(&client, path, headers, &body).await;
            // A body that is refused before its end may be reset behind the answer.
            match answer {
                Ok(answer) => assert_eq!(answer.status, status, "{path}"),
                Err(error) => assert!(status == 413 && error.is_reset(), "{path}: {error}"),
            }
        }
        assert_eq!(ask(&client, "/predict", &[JSON], &text("a")).await.unwrap().status, 200);
    });
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

fn compressed(message: &[u8]) -> Vec<u8> {
    [&[1][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

#[test]
fn grpcs_own_deadline_counts_and_is_told_in_its_words() {
    use flywheel_wire::grpc::{Contents, InferTensor, ModelInferRequest};
    use prost::Message;
    let pod = Pod::ready(8, 30_000, 1);
    let question = |text: &'static str| {
        let tensor = InferTensor {
            name: "text".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![1],
            contents: Some(Contents {
                bytes_contents: vec![Bytes::from_static(text.as_bytes())],
                ..Contents::default()
            }),
            ..InferTensor::default()
        };
        let request = ModelInferRequest {
            model_name: "intent".to_owned(),
            inputs: vec![tensor],
            ..ModelInferRequest::default()
        };
        framed(&request.encode_to_vec())
    };
    const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";
    const GRPC: (&str, &str) = ("content-type", "application/grpc");
    pod.runtime.block_on(async {
        let (client, _connection) = connect(pod.data).await;
        let slow = tokio::spawn({
            let (client, body) = (client.clone(), question("sleep 1500"));
            async move { ask(&client, METHOD, &[GRPC], &body).await.unwrap() }
        });
        while pod.seen.rows.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let start = Instant::now();
        let late = ask(&client, METHOD, &[GRPC, ("grpc-timeout", "200m")], &question("sleep 1"))
            .await
            .unwrap();
        assert!(
            (200..1400).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(
            (late.status, &late.headers["grpc-status"]),
            (200, &http::HeaderValue::from_static("4"))
        );
        assert!(
            late.headers["grpc-message"]
                .to_str()
                .unwrap()
                .starts_with("DeadlineExceeded")
        );
        assert_eq!(slow.await.unwrap().trailers["grpc-status"], "0");
        let bad = ask(&client, METHOD, &[GRPC, ("grpc-timeout", "soon")], &question("a"))
            .await
            .unwrap();
        assert_eq!(bad.headers["grpc-status"], "3");
        // Frames that are none.
        for body in [
            &b""[..],
            b"\0\0\0",
            b"\x02\0\0\0\0",
            b"\0\0\0\0\x09a",
            b"\0\xff\xff\xff\xff",
        ] {
            let answer = ask(&client, METHOD, &[GRPC], body).await.unwrap();
            assert_eq!(answer.headers["grpc-status"], "3", "{body:?}");
        }
        // Messages by gzip, with the bounds of those that come as they are.
        let gzip = |message: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(message).unwrap();
            compressed(&encoder.finish().unwrap())
        };
        const GZIP: (&str, &str) = ("grpc-encoding", "gzip");
        let good = ask(&client, METHOD, &[GRPC, GZIP], &gzip(&question("a")[5..]))
            .await
            .unwrap();
        assert_eq!(good.trailers["grpc-status"], "0");
        for (body, coding, status) in [
            (gzip(&vec![0; 2_000_000]), "gzip", "8"),
            (compressed(b"no gzip"), "gzip", "3"),
            (compressed(b"\x78\x9c"), "deflate", "12"),
            (compressed(b""), "identity", "12"),
        ] {
            let answer = ask(&client, METHOD, &[GRPC, ("grpc-encoding", coding)], &body)
                .await
                .unwrap();
            assert_eq!(answer.headers["grpc-status"], status, "{coding}");
            assert_eq!(status == "12", answer.headers.contains_key("grpc-accept-encoding"));
        }
        let no_grpc = ask(&client, METHOD, &[JSON], b"{}").await.unwrap();
        assert_eq!(no_grpc.status, 415);
    });
    assert_eq!(pod.stats().answered, [2, 11, 1]);
    assert_eq!(
        pod.seen.rows.load(Ordering::Relaxed),
        2,
        "what came too late is not computed"
    );
}

#[test]
fn a_client_may_connect_before_it_asks() {
    let pod = Pod::ready(8, 30_000, 1);
    pod.runtime.block_on(async {
        let (client, _connection) = connect(pod.data).await;
        // Longer than a head of HTTP/1.1 may take.
        tokio::time::sleep(Duration::from_millis(11_500)).await;
        assert_eq!(ask(&client, "/predict", &[JSON], &text("a")).await.unwrap().status, 200);
    });
}

#[test]
fn a_pod_that_leaves_says_goaway_and_answers_what_has_begun() {
    let mut pod = Pod::ready(8, 30_000, 1);
    let server = pod.server.take().unwrap();
    pod.runtime.block_on(async {
        let (client, connection) = connect(pod.data).await;
        let slow = tokio::spawn({
            let client = client.clone();
            async move { ask(&client, "/predict", &[JSON], &text("sleep 4000")).await }
        });
        while pod.seen.rows.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let draining = tokio::spawn(server.drain());
        // Sent elsewhere at once, without an error for the client's user: it was told before it asked.
        tokio::time::timeout(PATIENCE, async {
            while ask(&client, "/readyz", &[], b"").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("no GOAWAY");
        // One that has not heard of it yet and connects is still answered, refused in words, or hears of it before it asks.
        let (late, _connection) = connect(pod.data).await;
        match ask(&late, "/predict", &[JSON], &text("sleep 0")).await {
            Ok(answer) => assert!(matches!(answer.status, 200 | 503), "{}", answer.status),
            Err(error) => assert!(
                error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR),
                "{error}"
            ),
        }
        assert_eq!(slow.await.unwrap().unwrap().status, 200);
        tokio::time::timeout(PATIENCE, connection)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        draining.await.unwrap();
    });
}

/// A frame: length, kind, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// HPACK: `:method: GET`, `:scheme: http`, `:path: /`, `:authority: a`.
const HEAD: &[u8] = b"\x82\x86\x84\x41\x01a";

/// What a connection that breaks the protocol gets: an end, in bounded time, whatever it goes on to send.
#[test]
fn connections_that_break_the_protocol_are_ended() {
    let pod = Pod::ready(8, 5000, 1);
    let whole = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, HEAD);
    let resets: Vec<u8> = (0..5000_u32)
        .flat_map(|i| [whole(2 * i + 1), frame(RST_STREAM, 0, 2 * i + 1, &8_u32.to_be_bytes())].concat())
        .collect();
    let continuations = {
        let mut bytes = frame(HEADERS, END_STREAM, 1, HEAD);
        for _ in 0..5000 {
            bytes.extend(frame(
                CONTINUATION,
                0,
                1,
                &[b"\x40\x01a\x7f\x81\x07".as_slice(), &[b'x'; 1024]].concat(),
            ));
        }
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("rapid reset", resets),
        ("continuations without end", continuations),
        ("data without a stream", frame(DATA, 0, 1, b"a")),
        ("a stream of the server's", whole(2)),
        ("streams that go back", [whole(5), whole(3)].concat()),
        ("a frame that is too large", frame(DATA, 0, 1, &[0; 20_000])),
        ("settings that are no settings", frame(SETTINGS, 0, 0, b"abcde")),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        (
            "a window that overflows",
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        ),
        ("a window by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a ping that is too short", frame(PING, 0, 0, b"a")),
        (
            "headers that are none",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        ),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, HEAD)),
        (
            "a header block that another frame breaks",
            [frame(HEADERS, END_STREAM, 1, HEAD), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
    ];
    for (what, bytes) in cases {
        let mut stream = TcpStream::connect(pod.data).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let opening = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &frame(SETTINGS, 0, 0, &[]),
        ]
        .concat();
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            // The server may end it before all is written.
            let _ = writing.write_all(&[opening, bytes].concat());
        });
        let mut read = Vec::new();
        if let Err(error) = stream.read_to_end(&mut read) {
            let ended = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            assert!(ended, "{what} is kept: {error}");
        }
        writer.join().unwrap();
        assert_eq!(predict(pod.data, &json!({"text": "a"})).status, 200, "after {what}");
    }
    // What begins like it and is not, or breaks off, is no trouble either.
    for bytes in [
        &b"PRI"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
        b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(pod.data).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut read = Vec::new();
        let _ = stream
            .read_to_end(&mut read)
            .map_err(|e| assert_eq!(e.kind(), ErrorKind::ConnectionReset));
        assert!(!read.starts_with(b"HTTP/1.1 2"));
    }
    until("nothing is left of them", || (pod.stats().in_flight == 0).then_some(()));
    assert_eq!(pod.stats().answered[2], 0);
}
