//! Bad input: five thousand requests and more, each with its expected result, against the parser and over real sockets.
//!
//! No panic, no 5xx, no more than 50 MiB of memory, and a well-behaved client beside them is answered all the while.
//! `HOSTILE_SEED` chooses other cases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
mod corpus;
#[path = "common/pod.rs"]
mod pod;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Answer, Connection, PATIENCE, get, post, with_headers};
use corpus::dice::Dice;
use corpus::messages::{Case, Expect};
use corpus::{bodies, messages, tensors};
use flywheel_wire::error::ErrorReason;
use flywheel_wire::infer::{self, InferRequest};
use flywheel_wire::predict::PredictRequest;
use pod::Pod;

/// Cases of each class; half of them where a case is large.
const CASES: usize = 100;
const CLIENTS: usize = 4;
const MEMORY_BYTES: u64 = 50 * 1024 * 1024;
/// Slow clients of each kind.
const SLOW_CLIENTS: usize = 60;
/// After this long a head or a body that is not whole is given up; and what a busy machine adds.
const SLOW: Duration = Duration::from_secs(10);
const SLOW_AND_BUSY: Duration = Duration::from_secs(30);

fn seed() -> u64 {
    std::env::var("HOSTILE_SEED").map_or(20_261_127, |seed| seed.parse().expect("HOSTILE_SEED is no number"))
}

fn cases_of(name: &str) -> usize {
    if name.contains("too l") || name.contains("deep") || name.contains("longest") || name.contains("without end") {
        CASES / 2
    } else {
        CASES
    }
}

/// One class of any kind as whole requests.
fn case(class: usize, index: usize) -> Option<(&'static str, Case)> {
    let mut dice = Dice::new(seed(), class, index);
    let of_body = |bytes, reason: &'static str| {
        let expect = match reason {
            "" => Expect::Answer(200, ""),
            word => Expect::Answer(status(word), reason),
        };
        Case {
            bytes,
            shut: false,
            expect: vec![expect],
            ends: false,
        }
    };
    if let Some(class) = bodies::CLASSES.get(class) {
        let bytes = post("/predict", &(class.make)(&mut dice));
        return Some((class.name, of_body(bytes, class.reason)));
    }
    let class = class - bodies::CLASSES.len();
    if let Some(class) = tensors::CLASSES.get(class) {
        let body = (class.make)(&mut dice);
        let header = body.header.map(|value| format!("{}: {value}\r\n", tensors::HEADER));
        let path = dice.pick(&["/v2/models/intent/infer", "/v2/models/intent/versions/intent-v7/infer"]);
        let bytes = with_headers(path, &header.unwrap_or_default(), &body.bytes);
        return Some((class.name, of_body(bytes, class.reason)));
    }
    let class = messages::CLASSES.get(class - tensors::CLASSES.len())?;
    Some((class.name, (class.make)(&mut dice)))
}

fn status(word: &str) -> u16 {
    ErrorReason::ALL
        .iter()
        .find(|r| r.as_str() == word)
        .expect("no such reason")
        .status()
}

#[test]
fn the_parsers_give_each_body_the_reason_of_its_class() {
    let mut wrong = Vec::new();
    for (number, class) in bodies::CLASSES.iter().enumerate() {
        for index in 0..cases_of(class.name) {
            let body = (class.make)(&mut Dice::new(seed(), number, index));
            let got = PredictRequest::parse(&body).map_or_else(|refusal| refusal.reason.as_str(), |_| "");
            if got != class.reason {
                wrong.push(format!("{} {index}: {got}: {}", class.name, shown(&body)));
            }
        }
    }
    for (number, class) in tensors::CLASSES.iter().enumerate() {
        for index in 0..cases_of(class.name) {
            let body = (class.make)(&mut Dice::new(seed(), bodies::CLASSES.len() + number, index));
            let length = body
                .header
                .as_ref()
                .map(|value| infer::header_length(value.as_bytes()))
                .transpose();
            let outcome = length.and_then(|length| InferRequest::parse(&body.bytes, length));
            let got = outcome.map_or_else(|refusal| refusal.reason.as_str(), |_| "");
            if got != class.reason {
                wrong.push(format!("{} {index}: {got}: {}", class.name, shown(&body.bytes)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong, the first of them:\n{}",
        wrong.len(),
        first(&wrong)
    );
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
        .escape_debug()
        .to_string()
}

fn first(wrong: &[String]) -> String {
    wrong.iter().take(25).cloned().collect::<Vec<_>>().join("\n")
}

/// What came back for a case, where it is not what was expected.
fn play(address: SocketAddr, kept: &mut Option<Connection>, case: &Case) -> Result<(), String> {
    // A request behind others on the same connection also shows that those left it in order.
    let mut connection = match kept.take() {
        Some(connection) if !case.shut && !case.ends => connection,
        _ => Connection::open(address),
    };
    connection.send(&case.bytes);
    if case.shut {
        let _ = connection.stream.shutdown(Shutdown::Write);
    }
    let mut closes = false;
    for expect in &case.expect {
        let answer = connection.answer();
        closes = answer.as_ref().is_none_or(|a| a.header("connection") == Some("close"));
        check(expect, answer.as_ref())?;
    }
    if case.ends {
        match connection.answer() {
            None => {}
            Some(answer) => {
                return Err(format!(
                    "something behind it was answered {}: {}",
                    answer.status,
                    answer.text()
                ));
            }
        }
    } else if !closes {
        *kept = Some(connection);
    }
    Ok(())
}

fn check(expect: &Expect, answer: Option<&Answer>) -> Result<(), String> {
    let got = answer.map(|a| a.status);
    let right = match expect {
        Expect::Answer(status, word) => {
            got == Some(*status) && (word.is_empty() || answer.is_some_and(|a| a.reason() == *word))
        }
        Expect::OneOf(statuses) => got.is_some_and(|s| statuses.contains(&s)),
        Expect::OneOfOrClosed(statuses) => got.is_none_or(|s| statuses.contains(&s)),
    };
    if right {
        return Ok(());
    }
    Err(format!(
        "expected {expect:?}, got {got:?} {}",
        answer.map(Answer::text).unwrap_or_default()
    ))
}

/// Kibibytes of a line of this process's status.
fn memory(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    value.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().unwrap()
}

/// Clients that send half a head, half a body, half a chunk, and then nothing. Returns what came of each and after which time.
fn slow_clients(address: SocketAddr) -> Vec<(&'static str, Option<u16>, Duration)> {
    let kinds: [(&str, &[u8]); 3] = [
        ("slow head", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Ty"),
        ("slow body", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{\"text\""),
        ("slow chunk", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"t"),
    ];
    let start = Instant::now();
    let mut open: Vec<_> = kinds
        .into_iter()
        .flat_map(|(kind, bytes)| (0..SLOW_CLIENTS).map(move |_| (kind, bytes)))
        .map(|(kind, bytes)| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(bytes).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            (kind, stream)
        })
        .collect();
    open.iter_mut()
        .map(|(kind, stream)| {
            let mut bytes = Vec::new();
            if let Err(error) = stream.read_to_end(&mut bytes) {
                assert!(error.kind() == ErrorKind::ConnectionReset, "{kind}: {error}");
            }
            let status = String::from_utf8_lossy(&bytes)
                .split(' ')
                .nth(1)
                .and_then(|s| s.parse().ok());
            (*kind, status, start.elapsed())
        })
        .collect()
}

#[test]
fn every_request_of_the_corpus_gets_what_its_class_says() {
    let panics = Arc::new(AtomicUsize::new(0));
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new({
        let panics = Arc::clone(&panics);
        move |info| {
            panics.fetch_add(1, Ordering::Relaxed);
            usual(info);
        }
    }));
    let pod = Pod::ready(4096, 30_000, 2);
    let address = pod.data;
    let start = Instant::now();
    // What the first requests need for good is not the cases' doing.
    let mut kept = None;
    for index in 0..50 {
        play(address, &mut kept, &case(0, index).unwrap().1).unwrap();
    }
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");

    let done = Arc::new(AtomicBool::new(false));
    let beside = thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let mut connection = Connection::open(address);
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = connection.exchange(&post("/predict", br#"{"text": "a good one"}"#));
                assert_eq!(answer.status, 200, "the client beside: {}", answer.text());
                times.push(began.elapsed());
                thread::sleep(Duration::from_millis(5));
            }
            times.sort();
            times
        }
    });
    let slow = thread::spawn(move || slow_clients(address));
    let classes = bodies::CLASSES.len() + tensors::CLASSES.len() + messages::CLASSES.len();
    let next = Arc::new(AtomicUsize::new(0));
    let results = Arc::new(Mutex::new((BTreeMap::<&str, usize>::new(), Vec::<String>::new())));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (next, results) = (Arc::clone(&next), Arc::clone(&results));
            thread::spawn(move || {
                let mut kept = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let (class, index) = (number / CASES, number % CASES);
                    if class >= classes {
                        return;
                    }
                    let (name, case) = case(class, index).unwrap();
                    if index >= cases_of(name) {
                        continue;
                    }
                    let outcome = play(address, &mut kept, &case);
                    let mut results = results.lock().unwrap();
                    *results.0.entry(name).or_default() += 1;
                    if let Err(wrong) = outcome {
                        results
                            .1
                            .push(format!("{name} {index}: {wrong}\n    {}", shown(&case.bytes)));
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let corpus_took = start.elapsed();
    let slow = slow.join().unwrap();
    done.store(true, Ordering::Relaxed);
    let beside = beside.join().unwrap();
    let after = memory("VmHWM");
    drop(std::panic::take_hook());

    let (mut counts, mut wrong) = std::mem::take(&mut *results.lock().unwrap());
    for (kind, status, took) in slow {
        *counts.entry(kind).or_default() += 1;
        let expected = if kind == "slow head" { None } else { Some(408) };
        if status != expected || !(SLOW..SLOW_AND_BUSY).contains(&took) {
            wrong.push(format!("{kind}: {status:?} after {took:?}"));
        }
    }
    for (name, count) in &counts {
        println!("{count:5}  {name}");
    }
    let total: usize = counts.values().sum();
    let grown = after.saturating_sub(before) * 1024;
    println!(
        "{total:5}  in all, seed {}, in {corpus_took:?}, with the slow clients {:?}",
        seed(),
        start.elapsed()
    );
    println!(
        "memory {before} KiB before, {after} KiB at most; {} answers to the client beside, 99 % within {:?}, slowest {:?}",
        beside.len(),
        beside[beside.len() * 99 / 100],
        beside[beside.len() - 1]
    );
    assert!(
        wrong.is_empty(),
        "{} wrong, the first of them:\n{}",
        wrong.len(),
        first(&wrong)
    );
    assert!(total >= 5000 && counts.values().all(|count| *count >= 50), "{counts:?}");
    assert_eq!(panics.load(Ordering::Relaxed), 0, "panics");
    assert_eq!(pod.stats().answered[2], 0, "5xx");
    assert!(grown <= MEMORY_BYTES, "{grown} bytes more than before");
    // No label from a request: as many series as ever, whatever was asked.
    let metrics = get(pod.inside, "/metrics").text();
    assert!(metrics.lines().count() < 100, "{metrics}");
}
