//! Trainings by several processes: two pods on this machine, or several processes of one. They take the steps of one process,
//! end together whatever happens to one of them, and go on from their checkpoint.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Ended, Running, World, free_port, rows, says};
use flywheel_contract::failure::FailureReason as R;
use flywheel_contract::termination::Outcome;
use serde_json::{Value, json};

/// All processes end within this after one is gone.
const END_WITHIN: Duration = Duration::from_secs(10);
/// The largest relative difference of a loss to that of one process.
const CLOSE: f64 = 1e-5;

/// A job without dropout, which each process draws for itself.
fn job() -> (World, Value) {
    let world = World::new();
    let mut config = world.config();
    config["hyperparameters"]["dropout"] = "0".into();
    config["hyperparameters"]["precision"] = "Float32".into();
    (world, config)
}

/// A job of some seconds that saves its state each second.
fn long_job() -> (World, Value) {
    let (world, mut config) = job();
    world.write("data.csv", rows(240));
    config["hyperparameters"]["epochs"] = 60.into();
    config["checkpoint"] = json!({"intervalSeconds": 1, "keep": 3});
    (world, config)
}

/// One that does not come to an end.
fn endless_job() -> (World, Value) {
    let (world, mut config) = long_job();
    config["hyperparameters"]["epochs"] = 1000.into();
    (world, config)
}

/// The configuration of pods that meet at this port.
fn pods(config: &Value, nodes: u32, processes: u32, port: u16) -> Value {
    let mut config = config.clone();
    config["world"] = json!({
        "nodes": nodes, "processesPerNode": processes, "rendezvous": format!("127.0.0.1:{port}"),
    });
    config
}

/// The pod with this completion index.
fn pod(world: &World, config: &Value, index: u32) -> Running {
    let mut command = world.command_to(&format!("termination-{index}"), &["train", "--listen", "127.0.0.1:0"]);
    command
        .env("FLYWHEEL_CONFIG", config.to_string())
        .env("JOB_COMPLETION_INDEX", index.to_string())
        .env("RUST_LOG", "info,flywheel_trainer=debug");
    Running::start(command)
}

fn start(world: &World, config: &Value, nodes: u32) -> Vec<Running> {
    (0..nodes).map(|index| pod(world, config, index)).collect()
}

fn left(world: &World, pods: Vec<Running>) -> Vec<Ended> {
    let ends = pods.into_iter().enumerate();
    ends.map(|(index, pod)| world.left_in(&format!("termination-{index}"), pod))
        .collect()
}

fn alone(world: &World, config: &Value) -> Ended {
    left(world, vec![pod(world, config, 0)]).remove(0)
}

fn lines(ended: &Ended) -> impl Iterator<Item = Value> {
    ended.stderr.lines().filter_map(|line| serde_json::from_str(line).ok())
}

fn number(line: &Value, message: &str) -> Option<u64> {
    (line["message"] == message).then(|| line["step"].as_u64())?
}

fn committed(line: &Value) -> Option<u64> {
    number(line, "checkpoint is committed")
}

fn resumed(line: &Value) -> Option<u64> {
    number(line, "going on from a checkpoint")
}

/// Losses by step, as often as a process of the pod told them.
fn losses(ended: &Ended) -> BTreeMap<u64, Vec<f64>> {
    let mut losses: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for line in lines(ended) {
        if let Some(step) = number(&line, "step") {
            losses.entry(step).or_default().push(line["loss"].as_f64().unwrap());
        }
    }
    losses
}

fn assisted(ended: &Ended) {
    assert_eq!(
        (ended.code, &ended.outcome),
        (Some(0), &Some(Outcome::Assisted)),
        "{ended:#?}"
    );
}

#[test]
fn the_losses_are_those_of_one_process() {
    let (world, mut config) = job();
    config["hyperparameters"]["epochs"] = 5.into();
    for (uid, batch, shapes) in [
        // All parts alike; then 7 rows for 2, 3 and 4 processes, and a last batch that has none for some.
        ("even", 8, vec![(2, 1), (1, 2)]),
        ("odd", 7, vec![(2, 1), (3, 1), (2, 2)]),
    ] {
        config["hyperparameters"]["batchSize"] = batch.into();
        config["job"]["uid"] = uid.into();
        let whole = alone(&world, &config);
        let steps = whole.trained().steps;
        let want = losses(&whole);
        assert!(want.len() as u64 == steps && steps >= 20, "{steps} steps");
        for (nodes, processes) in shapes {
            let what = format!("{nodes} pods of {processes}, batches of {batch}");
            config["job"]["uid"] = format!("{uid}-{nodes}-{processes}").into();
            let port = free_port();
            let config = match nodes {
                1 => {
                    let mut config = config.clone();
                    config["world"] = json!({"nodes": 1, "processesPerNode": processes});
                    config
                }
                _ => pods(&config, nodes, processes, port),
            };
            let ends = left(&world, start(&world, &config, nodes));
            assert_eq!(ends[0].trained().steps, steps, "{what}");
            ends.iter().skip(1).for_each(assisted);
            let mut largest = 0f64;
            for ended in &ends {
                let got = losses(ended);
                assert_eq!(got.len(), want.len(), "{what}: {ended:#?}");
                for (step, losses) in got {
                    assert_eq!(losses.len(), processes as usize, "{what}: step {step}");
                    for loss in losses {
                        let difference = (loss - want[&step][0]).abs() / want[&step][0];
                        if step <= 20 {
                            assert!(
                                difference <= CLOSE,
                                "{what}: step {step}: {loss}, not {}",
                                want[&step][0]
                            );
                            largest = largest.max(difference);
                        }
                    }
                }
            }
            println!("{what}: largest relative difference of the first 20 losses {largest:e}");
        }
    }
}

/// Two pods that train and have committed a checkpoint of this step.
fn training(world: &World, config: &Value) -> (Vec<Running>, u64) {
    let pods = start(world, config, 2);
    let step = pods[0].wait_for("a checkpoint", committed);
    (pods, step)
}

fn ended_in_time(what: &str, since: Instant, ended: &Ended) {
    let took = since.elapsed();
    says(ended.failed(), R::PeerLost, &[]);
    assert!(took < END_WITHIN, "{what}: {took:?}");
    println!("{what}: ended after {took:?}: {}", ended.failed().message);
}

#[test]
fn when_one_is_killed_all_end_and_the_next_attempt_goes_on() {
    let (world, config) = long_job();
    for victim in [1, 0] {
        let mut config = pods(&config, 2, 1, free_port());
        config["job"]["uid"] = format!("killed-{victim}").into();
        let (mut pods, step) = training(&world, &config);
        let since = Instant::now();
        pods[victim].child.kill().unwrap();
        let other = pods.remove(1 - victim);
        let ended = world.left_in(&format!("termination-{}", 1 - victim), other);
        ended_in_time(&format!("process {victim} killed"), since, &ended);
        drop(pods);

        config["job"]["attempt"] = 2.into();
        config["world"]["rendezvous"] = format!("127.0.0.1:{}", free_port()).into();
        let again = start(&world, &config, 2);
        assert!(again[0].wait_for("the resume", resumed) >= step);
        let ends = left(&world, again);
        ends[0].trained();
        assisted(&ends[1]);
    }
}

#[test]
fn when_one_stands_still_all_end() {
    let (world, config) = endless_job();
    for victim in [1, 0] {
        let mut config = pods(&config, 2, 1, free_port());
        config["job"]["uid"] = format!("stopped-{victim}").into();
        let (mut pods, _) = training(&world, &config);
        let since = Instant::now();
        pods[victim].signal("STOP");
        let stopped = pods.remove(victim);
        let ended = world.left_in(&format!("termination-{}", 1 - victim), pods.remove(0));
        ended_in_time(&format!("process {victim} stopped"), since, &ended);
        assert!(ended.failed().message.contains("no sign of life"), "{ended:#?}");
        let since = Instant::now();
        stopped.signal("CONT");
        let ended = world.left_in(&format!("termination-{victim}"), stopped);
        ended_in_time(&format!("process {victim} woken"), since, &ended);
    }
}

/// Passes connections on until it is cut; then it holds them and passes nothing, as a network does that drops packets.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            cut: Arc::default(),
        };
        let cut = Arc::clone(&wire.cut);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                for (from, to) in [(near, far), (far_too, near_too)] {
                    let cut = Arc::clone(&cut);
                    std::thread::spawn(move || pass(from, to, &cut));
                }
            }
        });
        wire
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut bytes = [0; 1024];
    while let Ok(n) = from.read(&mut bytes) {
        if cut.load(Ordering::SeqCst) {
            // Both ends stay open for as long as any test runs.
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        if n == 0 || to.write_all(&bytes[..n]).is_err() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}

#[test]
fn when_the_network_is_cut_all_end() {
    let (world, config) = endless_job();
    let port = free_port();
    let wire = Wire::to(port);
    let first = pods(&config, 2, 1, port);
    let second = pods(&config, 2, 1, wire.port);
    let pods = vec![pod(&world, &first, 0), pod(&world, &second, 1)];
    pods[0].wait_for("a checkpoint", committed);
    let since = Instant::now();
    wire.cut.store(true, Ordering::SeqCst);
    for ended in left(&world, pods) {
        ended_in_time("cut", since, &ended);
        assert!(ended.failed().message.contains("no sign of life"), "{ended:#?}");
    }
}

/// Processes that this one has started.
fn children(running: &Running) -> Vec<u32> {
    let id = running.child.id();
    let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn kill(id: u32) {
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &id.to_string()])
        .status();
    assert!(killed.unwrap().success());
}

#[test]
fn processes_of_one_pod_end_together() {
    let (world, mut config) = long_job();
    config["world"] = json!({"nodes": 1, "processesPerNode": 2});
    config["job"]["uid"] = "child".into();
    let running = pod(&world, &config, 0);
    running.wait_for("a checkpoint", committed);
    let [child] = children(&running)[..] else {
        panic!("{:?}", children(&running))
    };
    let since = Instant::now();
    kill(child);
    ended_in_time(
        "a process of the pod killed",
        since,
        &world.left_in("termination-0", running),
    );

    config["job"]["uid"] = "parent".into();
    let mut running = pod(&world, &config, 0);
    running.wait_for("a checkpoint", committed);
    let child = children(&running)[0];
    let since = Instant::now();
    running.child.kill().unwrap();
    running.wait();
    while std::fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|line| line.contains("--local-rank")) {
        assert!(since.elapsed() < END_WITHIN, "{child} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }

    // Told to end, the pod saves its state; the next attempt goes on from there.
    config["job"]["uid"] = "told".into();
    let running = pod(&world, &config, 0);
    running.wait_for("a checkpoint", committed);
    running.signal("TERM");
    let ended = world.left_in("termination-0", running);
    says(ended.failed(), R::Interrupted, &["SIGTERM", "goes on from step"]);
    let saved = ended.position.unwrap();
    assert_eq!(saved.checkpoint_step, saved.step);
    // With another number of processes, too.
    config["job"]["attempt"] = 2.into();
    config["world"]["processesPerNode"] = 1.into();
    let running = pod(&world, &config, 0);
    assert_eq!(running.wait_for("the resume", resumed), saved.step);
    world.left_in("termination-0", running).trained();
}

#[test]
fn when_any_pod_is_told_to_end_the_state_of_that_step_is_saved() {
    let (world, config) = long_job();
    let mut config = pods(&config, 2, 1, free_port());
    let (pods, _) = training(&world, &config);
    pods[1].signal("TERM");
    let ends = left(&world, pods);
    says(ends[0].failed(), R::Interrupted, &["another process", "saved"]);
    says(ends[1].failed(), R::Interrupted, &["SIGTERM", "process 0"]);
    let saved = ends[0].position.unwrap();
    assert_eq!(saved.checkpoint_step, saved.step);
    assert_eq!(
        losses(&ends[0]).len(),
        losses(&ends[1]).len(),
        "both end after the same step"
    );

    config["job"]["attempt"] = 2.into();
    config["world"]["rendezvous"] = format!("127.0.0.1:{}", free_port()).into();
    let again = start(&world, &config, 2);
    assert_eq!(again[0].wait_for("the resume", resumed), saved.step);
    let ends = left(&world, again);
    ends[0].trained();
    assisted(&ends[1]);
    assert_eq!(
        losses(&ends[1]).keys().next(),
        Some(&(saved.step + 1)),
        "the other goes on at the same step"
    );

    // An attempt after the last one has nothing to train: the others end with it.
    config["job"]["attempt"] = 3.into();
    config["world"]["rendezvous"] = format!("127.0.0.1:{}", free_port()).into();
    let ends = left(&world, start(&world, &config, 2));
    ends[0].trained();
    assisted(&ends[1]);
}

#[test]
fn a_failure_of_one_is_that_of_all() {
    let (world, config) = job();
    let port = free_port();
    let first = pods(&config, 2, 1, port);
    // A pod that cannot read its data.
    let mut second = first.clone();
    second["dataset"]["labelColumn"] = "category".into();
    let ends = left(&world, vec![pod(&world, &first, 0), pod(&world, &second, 1)]);
    says(ends[0].failed(), R::ColumnMissing, &["process 1 of 2", "category"]);
    says(ends[1].failed(), R::ColumnMissing, &["category"]);

    // One that reads other rows.
    let first = pods(&config, 2, 1, free_port());
    let mut second = first.clone();
    world.write("other.csv", rows(61));
    second["dataset"]["sources"][0]["uri"] = world.uri("other.csv").into();
    for ended in left(&world, vec![pod(&world, &first, 0), pod(&world, &second, 1)]) {
        says(ended.failed(), R::InternalError, &["different data"]);
    }
}

#[test]
fn strangers_at_the_rendezvous_change_nothing() {
    let (world, config) = job();
    let port = free_port();
    let config = pods(&config, 2, 1, port);
    let first = pod(&world, &config, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    let connect = || loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let silent = connect();
    let mut strangers = Vec::new();
    for words in [
        &b"\xff\xff"[..],
        b"\x00\x02{}",
        b"\x00\x06\"Beat\"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x51{\"Hello\":{\"version\":1,\"uid\":\"uid-1\",\"attempt\":7,\"rank\":1,\"size\":2}}         ",
    ] {
        let mut stranger = connect();
        stranger.write_all(words).unwrap();
        strangers.push(stranger);
    }
    // The earlier attempt's pod stays out as well.
    let mut old = config.clone();
    old["job"]["attempt"] = 2.into();
    let old = pod(&world, &old, 1);
    old.wait_for("a refusal", |line| {
        line["problem"].as_str().filter(|p| p.contains("of its job")).map(drop)
    });
    drop(old);
    let ends = left(&world, vec![first, pod(&world, &config, 1)]);
    ends[0].trained();
    assisted(&ends[1]);
    drop((silent, strangers));
}

#[test]
fn a_pod_must_know_its_place() {
    let (world, config) = job();
    let config = pods(&config, 2, 1, free_port());
    says(
        pod_failure(&world, &config, 2).failed(),
        R::ConfigInvalid,
        &["JOB_COMPLETION_INDEX"],
    );
}

fn pod_failure(world: &World, config: &Value, index: u32) -> Ended {
    world.left_in(&format!("termination-{index}"), pod(world, config, index))
}

#[test]
fn a_result_that_is_used_again_ends_all_pods() {
    let (world, mut config) = job();
    config["reuse"] = true.into();
    for (uid, reused) in [("uid-1", false), ("uid-2", true)] {
        config["job"]["uid"] = uid.into();
        let ends = left(&world, start(&world, &pods(&config, 2, 1, free_port()), 2));
        assert_eq!(ends[0].trained().reused, reused, "{:#?}", ends[0]);
        assert_eq!(
            (ends[1].code, &ends[1].outcome),
            (Some(0), &Some(Outcome::Assisted)),
            "{:#?}",
            ends[1]
        );
    }
    // Another number of processes is another training.
    config["job"]["uid"] = "uid-3".into();
    assert!(!alone(&world, &config).trained().reused);
}
