//! The whole way of a request, over real sockets, with models that do what the text says: slow, failing, panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Connection, PATIENCE, counted, get, post, predict, until};
use flywheel_contract::failure::FailureReason;
use pod::Pod;
use serde_json::json;

#[test]
fn unready_until_a_version_is_there() {
    let pod = Pod::loading(8, 1000);
    let (readyz, early) = (get(pod.data, "/readyz"), predict(pod.data, &json!({"text": "a"})));
    for answer in [&readyz, &early] {
        assert_eq!((answer.status, answer.reason().as_str()), (503, "NotReady"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(get(pod.inside, "/livez").status, 200);
    let stats = pod.stats();
    assert!(!stats.ready && stats.serving.is_none() && stats.versions[0].name == "intent-v7");
    pod.install(1);
    assert_eq!(get(pod.data, "/readyz").json(), json!({"ready": true}));
    assert!(pod.stats().ready);
    assert_eq!(predict(pod.data, &json!({"text": "a"})).status, 200);
}

#[test]
fn one_text_and_a_list_have_the_documented_answers() {
    let pod = Pod::ready(8, 5000, 2);
    let mut connection = Connection::open(pod.data);
    let headers = "content-type: application/json; charset=utf-8\r\nx-request-id: my/id\r\n";
    let answer = connection.exchange(&common::with_headers("/predict", headers, br#"{"text": " abc "}"#));
    assert_eq!(answer.header("x-request-id"), Some("my/id"));
    assert_eq!(
        answer.json(),
        json!({
            "intent_id": 1, "label": "long", "probability": 0.75_f32, "all_probs": {"short": 0.25_f32, "long": 0.75_f32},
            "model_version": "intent-v7", "request_id": "my/id"
        }),
        "white space at the ends is cut off, as in training"
    );
    // The same connection goes on.
    let list = connection.exchange(&post("/predict", r#"{"texts": ["é", "abcd", "ab"]}"#.as_bytes()));
    let predictions = list.json()["predictions"].clone();
    let longs: Vec<f64> = (0..3)
        .map(|i| predictions[i]["all_probs"]["long"].as_f64().unwrap())
        .collect();
    assert!((longs[0] - 0.5).abs() < 1e-6 && (longs[1] - 0.8).abs() < 1e-6 && (longs[2] - 2.0 / 3.0).abs() < 1e-6);
    let id = list.header("x-request-id").unwrap().to_owned();
    for i in 0..3 {
        assert_eq!(predictions[i]["request_id"], json!(format!("{id}-{i}")));
    }
    let bad_id = "content-type: application/json\r\nx-request-id: a b\r\n";
    let other = connection.exchange(&common::with_headers("/predict", bad_id, br#"{"text": "a"}"#));
    let made = other.json()["request_id"].as_str().unwrap().to_owned();
    assert!(made != "a b" && made != id, "{made}");
}

#[test]
fn long_answers_are_compressed_for_clients_that_take_it() {
    let pod = Pod::ready(256, 30_000, 2);
    let ask = |texts: usize, accept: &str| {
        let body = json!({"texts": vec!["abc"; texts]}).to_string();
        let headers = format!("content-type: application/json\r\nx-request-id: id\r\n{accept}");
        Connection::open(pod.data).exchange(&common::with_headers("/predict", &headers, body.as_bytes()))
    };
    let plain = ask(100, "");
    assert!(plain.body.len() > 1024 && plain.header("content-encoding").is_none());
    for (texts, accept, coded) in [
        (100, "accept-encoding: gzip, deflate\r\n", true),
        (100, "accept-encoding: br\r\naccept-encoding: *;q=0.5\r\n", true),
        (100, "accept-encoding: gzip;q=0\r\n", false),
        (100, "accept-encoding: gzip;q=0.5, identity\r\n", false),
        (1, "accept-encoding: gzip\r\n", false),
        (1, "accept-encoding: gzip, identity;q=0\r\n", true),
    ] {
        let mut answer = ask(texts, accept);
        assert_eq!(
            answer.header("content-encoding") == Some("gzip"),
            coded,
            "{texts} {accept}"
        );
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
        if coded {
            let mut whole = Vec::new();
            flate2::read::GzDecoder::new(&answer.body[..])
                .read_to_end(&mut whole)
                .unwrap();
            assert!(
                texts == 1 || answer.body.len() < whole.len() / 4,
                "{} of {}",
                answer.body.len(),
                whole.len()
            );
            answer.body = whole;
        }
        assert_eq!(answer.json(), ask(texts, "").json());
    }
    // So is the document; what answers HEAD has no body.
    let document =
        Connection::open(pod.data).exchange(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n");
    assert_eq!(document.header("content-encoding"), Some("gzip"));
    let mut connection = Connection::open(pod.data);
    connection.send(b"HEAD /openapi.json HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n");
    let mut left = Vec::new();
    connection.stream.read_to_end(&mut left).unwrap();
    assert!(left.ends_with(b"\r\n\r\n"), "{}", String::from_utf8_lossy(&left));
}

#[test]
fn one_port_answers_both_families() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6");
        return;
    }
    let pod = Pod::on("[::]:0", None, 8, 5000);
    pod.install(1);
    for host in [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)] {
        let answer = predict((host, pod.data.port()).into(), &json!({"text": "a"}));
        assert_eq!(answer.status, 200, "{host}");
    }
}

#[test]
fn a_full_pod_says_so_at_once() {
    let pod = Pod::ready(2, 30_000, 1);
    let first = pod.send("sleep 4000");
    until("it is being computed", || {
        (pod.seen.rows.load(Ordering::Relaxed) == 1).then_some(())
    });
    let second = pod.send("sleep 0");
    pod.busy_with(2);
    let mut connection = Connection::open(pod.data);
    let best = (0..5)
        .map(|_| {
            let answer = connection.exchange(&post("/predict", br#"{"text": "a"}"#));
            assert_eq!((answer.status, answer.reason().as_str()), (429, "TooManyRequests"));
            assert_eq!(answer.header("retry-after"), Some("1"));
            answer.took
        })
        .min()
        .unwrap();
    assert!(
        best < Duration::from_millis(500),
        "refusing waits for the model: {best:?}"
    );
    assert_eq!(get(pod.data, "/readyz").status, 200, "full is not unready");
    assert_eq!(first.join().unwrap().status, 200);
    assert_eq!(second.join().unwrap().status, 200);
    pod.busy_with(0);
    assert_eq!(predict(pod.data, &json!({"text": "a"})).status, 200);
    // More texts than the pod ever takes at once would be refused for ever: that is no 429.
    let answer = predict(pod.data, &json!({"texts": ["a", "b", "c"]}));
    assert_eq!((answer.status, answer.reason().as_str()), (422, "TooManyTexts"));
    let stats = pod.stats();
    assert_eq!(stats.answered, [3, 6, 0]);
    // Five were refused for want of room; the list that no pod would take is no load.
    let load = stats.load.unwrap();
    assert_eq!((load.requests, load.refused, load.workers), (8, 5, 1));
    let figures = stats.versions[0].figures.unwrap();
    assert_eq!(
        (figures.texts, figures.failed),
        (3, 5),
        "the version is too slow for this"
    );
    assert_eq!(load.latency.iter().sum::<u64>(), 3);
    // The first was computed for four seconds, and the second waited for it.
    assert!(
        load.busy_seconds >= 4.0 && load.in_flight_seconds >= 2.0 * load.busy_seconds - 1.0,
        "{load:?}"
    );
}

/// What would wait beyond half of its deadline is refused at once, so that what is taken is answered in time.
#[test]
fn a_slow_pod_takes_no_more_than_it_answers_in_time() {
    let pod = Pod::ready(256, 4000, 1);
    // From the first batch on its pace is known: ten of these take half of the deadline.
    assert_eq!(predict(pod.data, &json!({"text": "sleep 200"})).status, 200);
    let sent: Vec<_> = (0..40).map(|_| pod.send("sleep 200")).collect();
    let statuses: Vec<u16> = sent.into_iter().map(|answer| answer.join().unwrap().status).collect();
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!(count(200) + count(429), 40, "{statuses:?}");
    assert!((2..=20).contains(&count(200)), "{statuses:?}");
    pod.busy_with(0);
    // A list is computed as a whole, or not at all; an idle pod takes it.
    let texts = vec!["sleep 50"; 30];
    assert_eq!(predict(pod.data, &json!({"texts": texts})).status, 200);
}

#[test]
fn late_work_is_answered_504_and_never_computed() {
    let pod = Pod::ready(8, 300, 1);
    let slow = pod.send("sleep 3000");
    until("it is being computed", || {
        (pod.seen.rows.load(Ordering::Relaxed) == 1).then_some(())
    });
    let start = Instant::now();
    let late = pod.send("sleep 1").join().unwrap();
    assert_eq!((late.status, late.reason().as_str()), (504, "DeadlineExceeded"));
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(slow.join().unwrap().status, 504);
    // What the worker finds next is the request after the late one.
    until("the slow one is done", || (pod.stats().in_flight == 0).then_some(()));
    assert_eq!(predict(pod.data, &json!({"text": "a"})).status, 200);
    assert_eq!(pod.seen.rows.load(Ordering::Relaxed), 2);
    let stats = pod.stats();
    assert_eq!(stats.answered, [1, 0, 2]);
    let load = stats.load.unwrap();
    assert_eq!((load.requests, load.refused), (3, 2), "given up");
    assert_eq!(stats.versions[0].figures.unwrap().failed, 2);
}

#[test]
fn a_client_may_wait_for_a_shorter_time_never_for_a_longer_one() {
    let pod = Pod::ready(8, 2000, 1);
    let ask = |text: &str, time: &str| {
        let headers = format!("content-type: application/json\r\nx-request-timeout: {time}\r\n");
        let body = json!({"text": text}).to_string();
        let start = Instant::now();
        let answer = Connection::open(pod.data).exchange(&common::with_headers("/predict", &headers, body.as_bytes()));
        (answer, start.elapsed())
    };
    let slow = pod.send("sleep 1500");
    until("it is being computed", || {
        (pod.seen.rows.load(Ordering::Relaxed) == 1).then_some(())
    });
    let (short, took) = ask("sleep 1", "0.2");
    assert_eq!((short.status, short.reason().as_str()), (504, "DeadlineExceeded"));
    assert!(took >= Duration::from_millis(200), "{took:?}");
    assert_eq!(slow.join().unwrap().status, 200, "another one's time is its own");
    pod.busy_with(0);
    assert_eq!(
        pod.seen.rows.load(Ordering::Relaxed),
        1,
        "computed although nobody waited"
    );
    let failed = || pod.stats().versions[0].figures.unwrap().failed;
    assert_eq!(
        failed(),
        0,
        "that a client waits for less time says nothing of the version"
    );
    let (long, took) = ask("sleep 4000", "3600");
    assert_eq!((long.status, failed()), (504, 1));
    assert!(took >= Duration::from_secs(2), "{took:?}");
}

#[test]
fn work_of_a_client_that_is_gone_is_never_computed() {
    let pod = Pod::ready(8, 30_000, 1);
    let slow = pod.send("sleep 3000");
    until("it is being computed", || {
        (pod.seen.rows.load(Ordering::Relaxed) == 1).then_some(())
    });
    let mut gone = Connection::open(pod.data);
    gone.send(&post("/predict", br#"{"text": "sleep 1"}"#));
    pod.busy_with(2);
    drop(gone);
    assert_eq!(slow.join().unwrap().status, 200);
    pod.busy_with(0);
    assert_eq!(predict(pod.data, &json!({"text": "a"})).status, 200);
    assert_eq!(pod.seen.rows.load(Ordering::Relaxed), 2);
}

#[test]
fn waiting_texts_are_computed_together_in_order() {
    let pod = Pod::ready(64, 30_000, 1);
    let slow = pod.send("sleep 500");
    until("it is being computed", || {
        (pod.seen.rows.load(Ordering::Relaxed) == 1).then_some(())
    });
    let texts: Vec<String> = (1..=40).map(|n| "x".repeat(n)).collect();
    let answer = predict(pod.data, &json!({"texts": texts}));
    for (i, p) in answer.json()["predictions"].as_array().unwrap().iter().enumerate() {
        let want = (i + 1) as f64 / (i + 2) as f64;
        assert!((p["all_probs"]["long"].as_f64().unwrap() - want).abs() < 1e-6, "{i}");
    }
    assert_eq!(slow.join().unwrap().status, 200);
    assert_eq!(pod.seen.largest.load(Ordering::Relaxed), 32);
    let metrics = get(pod.inside, "/metrics").text();
    assert!(
        metrics.contains("flywheel_batch_size_bucket{le=\"32.0\"} 3"),
        "{metrics}"
    );
}

#[test]
fn a_poisoned_text_fails_alone() {
    let pod = Pod::ready(64, 30_000, 1);
    for poison in ["panic", "fail"] {
        // Behind a slow one, so that good and bad ones wait together and share a batch.
        let slow = pod.send("sleep 1500");
        pod.busy_with(1);
        let before = pod.seen.rows.load(Ordering::Relaxed);
        let others: Vec<_> = ["a", poison, "abc", poison, "ab"].iter().map(|t| pod.send(t)).collect();
        let statuses: Vec<u16> = others.into_iter().map(|t| t.join().unwrap().status).collect();
        assert_eq!(statuses, [200, 500, 200, 500, 200], "{poison}");
        assert_eq!(slow.join().unwrap().status, 200);
        assert!(
            pod.seen.rows.load(Ordering::Relaxed) - before > 5,
            "computed together, then one by one"
        );
    }
    // What comes to no numbers is no answer either, beside others and alone.
    let slow = pod.send("sleep 1500");
    pod.busy_with(1);
    let figures = || pod.stats().versions[0].figures.unwrap();
    let before = figures();
    let others: Vec<_> = ["a", "nan", "abc"].iter().map(|t| pod.send(t)).collect();
    let statuses: Vec<u16> = others.into_iter().map(|t| t.join().unwrap().status).collect();
    assert_eq!(statuses, [200, 500, 200]);
    assert_eq!(slow.join().unwrap().status, 200);
    assert_eq!(predict(pod.data, &json!({"text": "nan"})).status, 500);
    let after = figures();
    assert_eq!((after.texts - before.texts, after.failed - before.failed), (3, 2));
    for (text, status) in [("nan", 500), ("refused", 500), ("broken", 500), ("abc", 200)] {
        let answer = predict(pod.data, &json!({"text": text}));
        assert_eq!(answer.status, status, "{text}");
        assert!(!answer.text().contains("as asked"), "no inner workings to clients");
    }
    let told = figures();
    assert_eq!(
        (told.texts - after.texts, told.failed - after.failed),
        (1, 3),
        "also what the tokenizer refuses"
    );
    pod.busy_with(0);
    assert_eq!(get(pod.inside, "/livez").status, 200);
}

#[test]
fn a_device_that_computes_nothing_any_more_is_told() {
    let mut pod = Pod::ready(8, 2000, 1);
    pod.seen.dead.store(true, Ordering::Relaxed);
    assert_eq!(predict(pod.data, &json!({"text": "panic"})).status, 500);
    let failure = pod
        .runtime
        .block_on(async { tokio::time::timeout(PATIENCE, pod.broken.recv()).await })
        .unwrap()
        .unwrap();
    assert_eq!(failure.reason, FailureReason::InternalError);
    assert!(failure.message.contains("no kernel runs"), "{failure}");
}

#[test]
fn drain_answers_what_has_begun_and_refuses_the_rest() {
    let mut pod = Pod::ready(8, 30_000, 1);
    // Longer than the pod goes on answering after the signal.
    let slow = pod.send("sleep 5000");
    until("it is being computed", || {
        (pod.seen.rows.load(Ordering::Relaxed) == 1).then_some(())
    });
    let mut kept = Connection::open(pod.data);
    assert_eq!(
        kept.exchange(b"GET /openapi.json HTTP/1.1\r\nhost: t\r\n\r\n").status,
        200
    );
    let server = pod.server.take().unwrap();
    let start = Instant::now();
    let draining = pod.runtime.spawn(server.drain());
    let readyz = until("unready", || Some(get(pod.data, "/readyz")).filter(|a| a.status == 503));
    assert_eq!(readyz.reason(), "Draining");
    assert!(start.elapsed() < Duration::from_secs(2));
    // A client that has not heard of it yet is still answered, and sent elsewhere for its next request.
    let mut early = Connection::open(pod.data);
    early.send(&post("/predict", br#"{"text": "sleep 0"}"#));
    // Asks for nothing, so that it never waits behind the slow one.
    let refused = until("refused", || {
        Some(predict(pod.data, &json!({}))).filter(|a| a.status == 503)
    });
    assert_eq!(refused.reason(), "Draining");
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(kept.exchange(&post("/predict", br#"{"text": "a"}"#)).status, 503);
    assert!(kept.answer().is_none(), "the kept connection is closed");
    assert_eq!(slow.join().unwrap().status, 200);
    let early = early.answer().unwrap();
    assert_eq!((early.status, early.header("connection")), (200, Some("close")));
    pod.runtime
        .block_on(async { tokio::time::timeout(PATIENCE, draining).await })
        .unwrap()
        .unwrap();
    assert!(start.elapsed() < Duration::from_secs(25));
    assert!(
        std::net::TcpStream::connect(pod.data).is_err(),
        "nothing listens any more"
    );
}

#[test]
fn idle_connections_give_way_to_new_ones() {
    let pod = Pod::ready(8, 5000, 1);
    let inside = pod.inside;
    // More than the inside port has places for.
    let silent: Vec<_> = (0..80)
        .filter_map(|_| std::net::TcpStream::connect(inside).ok())
        .collect();
    assert_eq!(silent.len(), 80);
    let start = Instant::now();
    assert_eq!(get(inside, "/livez").status, 200);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn many_clients_at_once_get_their_own_answers() {
    let pod = Pod::ready(256, 30_000, 2);
    let barrier = Arc::new(Barrier::new(16));
    let clients: Vec<_> = (0..16_usize)
        .map(|client| {
            let (barrier, address) = (Arc::clone(&barrier), pod.data);
            thread::spawn(move || {
                let mut connection = Connection::open(address);
                barrier.wait();
                for i in 0..50 {
                    let length = client * 50 + i + 1;
                    let body = json!({"text": "x".repeat(length)}).to_string();
                    let answer = connection.exchange(&post("/predict", body.as_bytes()));
                    let want = length as f64 / (length + 1) as f64;
                    let got = answer.json()["all_probs"]["long"].as_f64().unwrap();
                    assert!((got - want).abs() < 1e-6, "{length}: {got}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let stats = pod.stats();
    assert_eq!((stats.answered, stats.in_flight), ([800, 0, 0], 0));
    let metrics = get(pod.inside, "/metrics").text();
    assert!(
        metrics.contains("flywheel_request_duration_seconds_count{version=\"intent-v7\",status=\"2xx\"} 800"),
        "{metrics}"
    );
    for name in [
        "flywheel_queue_depth 0",
        "flywheel_in_flight_texts 0",
        "flywheel_model_load_seconds ",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}

/// Many clients of two pods with several workers each: every text that was answered counts once, in bins that add up to those
/// of counting all of them in one place.
#[test]
fn what_was_answered_is_counted_once_and_pods_add_up() {
    let pods = [Pod::ready(256, 30_000, 4), Pod::ready(256, 30_000, 2)];
    let addresses = [0, 1].map(|pod: usize| (pods[pod].data, pods[pod].inside));
    let clients: Vec<_> = (0..8_usize)
        .map(|client| {
            let (data, inside) = addresses[client % 2];
            thread::spawn(move || {
                let mut connection = Connection::open(data);
                let mut answered = Vec::new();
                for i in 0..40_usize {
                    let text = |n: usize| "x".repeat((client * 53 + i * 7 + n * 31) % 190 + 1);
                    let (texts, status) = match i % 10 {
                        3 => (vec![["panic", "fail", "nan"][i / 10 % 3].to_owned()], 500),
                        5 => ((0..20).map(text).collect(), 200),
                        7 => (vec!["sleep 5".to_owned()], 200),
                        _ => (vec![text(0)], 200),
                    };
                    let body = json!({ "texts": texts }).to_string();
                    let answer = connection.exchange(&post("/predict", body.as_bytes()));
                    assert_eq!(answer.status, status, "{texts:?}: {}", answer.text());
                    if status == 200 {
                        answered.extend(texts);
                    }
                    // Whoever has an answer finds it counted.
                    let seen = counted(inside, "intent-v7").map_or(0, |profile| profile.texts);
                    assert!(seen >= answered.len() as u64, "{seen} of {}", answered.len());
                }
                (client % 2, answered)
            })
        })
        .collect();
    let mut want = [pod::profile(), pod::profile()];
    for client in clients {
        let (pod, answered) = client.join().unwrap();
        for text in answered {
            let row = pod::row(&text);
            want[pod].add(&row, &pod::answer(&row));
        }
    }
    let told = addresses.map(|(_, inside)| counted(inside, "intent-v7").unwrap());
    assert_eq!(told, want);
    let ([mut told, other], [mut want, rest]) = (told, want);
    assert!(told.merge(&other) && want.merge(&rest));
    assert_eq!((&told, told.texts), (&want, 8 * 4 * (7 + 20 + 1)));
    let text = get(addresses[0].1, "/profile").text();
    assert!(!text.contains("xx"), "no text is told");
}

#[test]
fn what_nobody_waited_for_is_not_counted() {
    let pod = Pod::ready(8, 300, 1);
    assert_eq!(pod.send("sleep 1000").join().unwrap().status, 504);
    pod.busy_with(0);
    assert_eq!(predict(pod.data, &json!({"text": "abc"})).status, 200);
    let (mut want, row) = (pod::profile(), pod::row("abc"));
    want.add(&row, &pod::answer(&row));
    assert_eq!(counted(pod.inside, "intent-v7"), Some(want));
}
