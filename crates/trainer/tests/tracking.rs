//! What people watch: event files that TensorBoard itself reads, runs on a real MLflow server, and servers that do not
//! what they should. Needs `FLYWHEEL_PYTHON`, a Python with `tests/python/requirements.txt`; without it these tests fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

#[path = "../../store/tests/faults/mod.rs"]
mod faults;

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Ended, Running, World, free_port, get, rows};
use faults::{Fault, Server};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::metric_value;
use flywheel_contract::termination::TerminationMessage;
use flywheel_contract::trainer::TrainingResult;
use serde_json::{Value, json};

const WARNING: &str = "figures do not get there; training goes on";
const TOKEN: &str = "hush-3f9a1c";

fn python() -> OsString {
    std::env::var_os("FLYWHEEL_PYTHON").expect(
        "FLYWHEEL_PYTHON is not set: make a venv, pip install -r tests/python/requirements.txt, and set it to its python",
    )
}

/// What `tests/python/tracking.py` prints.
fn told(arguments: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/tracking.py");
    let output = Command::new(python())
        .arg(script)
        .args(arguments)
        // torch's libraries are none of theirs.
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn steps(points: &Value) -> Vec<u64> {
    points
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p[0].as_u64().unwrap())
        .collect()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A job of some ten seconds, with many short epochs.
fn long(world: &World, epochs: u32) -> Value {
    world.write("data.csv", rows(600));
    let mut config = world.config();
    config["hyperparameters"]["epochs"] = epochs.into();
    config["checkpoint"] = json!({"intervalSeconds": 1, "keep": 2});
    config
}

#[test]
fn event_files_are_what_tensorboard_reads() {
    let world = World::new();
    world.write(
        "job.yaml",
        format!(
            "apiVersion: flywheel.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: intent, uid: u-7}}\nspec:\n  task: TextClassification\n  \
             model: {{pretrained: {{uri: {}}}}}\n  dataset: {{sources: [{{uri: {}}}]}}\n  tracking: {{tensorBoard: {{uri: {}}}}}\n  \
             hyperparameters: {{epochs: 3, batchSize: 8, maxLength: 16, learningRate: \"1e-3\", earlyStopping: {{patience: 9}}}}\n  \
             output: {{model: intent, uri: {}}}\n",
            world.uri("bert"),
            world.uri("data.csv"),
            world.uri("board"),
            world.uri("out"),
        ),
    );
    let file = world.path("job.yaml").display().to_string();
    let ended = world.ended(world.command(&["run", "-f", &file]).output().unwrap());
    ended.trained();
    let result: TrainingResult = world.read("out/u-7/attempt-1.result.json");
    assert_eq!(
        world.files("board"),
        ["intent-u-7/events.out.tfevents.00000000000000000001.flywheel"]
    );

    let read = told(&["files", &world.path("board").display().to_string()]);
    let run = &read["intent-u-7"];
    let scalars = run["scalars"].as_object().unwrap();
    for tag in ["train/loss", "train/learning_rate", "train/grad_norm"] {
        assert_eq!(steps(&scalars[tag]), (1..=result.steps).collect::<Vec<_>>(), "{tag}");
    }
    assert!(steps(&scalars["train/examples_per_second"]).len() as u64 > result.steps / 2);
    let per_epoch = result.steps / 3;
    for (tag, figure) in [
        (
            "validation/loss",
            (|e| e.validation_loss) as fn(&flywheel_contract::trainer::EpochReport) -> f64,
        ),
        ("validation/accuracy", |e| e.validation_accuracy),
        ("validation/macro_f1", |e| e.validation_macro_f1),
        ("train/epoch_loss", |e| e.train_loss),
    ] {
        let points = scalars[tag].as_array().unwrap();
        assert_eq!(points.len(), 3, "{tag}");
        for (point, epoch) in points.iter().zip(&result.epochs) {
            assert_eq!(point[0], per_epoch * u64::from(epoch.epoch), "{tag}");
            assert!((point[1].as_f64().unwrap() - figure(epoch)).abs() < 1e-5, "{tag}");
        }
    }
    for (tag, metric) in [
        ("test/accuracy", "test/accuracy"),
        ("test/macro_f1", "test/macroF1"),
        ("test/loss", "test/loss"),
    ] {
        let value = metric_value(&result.metrics, metric).unwrap();
        assert_eq!(scalars[tag][0][0], result.steps, "{tag}");
        assert!((scalars[tag][0][1].as_f64().unwrap() - value).abs() < 1e-5, "{tag}");
    }
    let text = run["texts"]["hyperparameters/text_summary"].as_str().unwrap();
    for row in [
        "| learningRate | 1e-3 |",
        "| batchSize | 8 |",
        "| earlyStopping.patience | 9 |",
        "| model | intent |",
    ] {
        assert!(text.contains(row), "{text}");
    }
    let message = told_at_end(&ended);
    assert_eq!(message.evaluations.len(), 3);
    assert_eq!(message.tracking.tensor_board.unwrap().problem, None);
}

/// The message of a program's end.
fn told_at_end(ended: &Ended) -> TerminationMessage {
    ended.message.clone().expect("there is a message")
}

/// A real MLflow server on a port of its own; ends with its value.
struct Mlflow {
    address: String,
    server: Child,
}

impl Mlflow {
    /// Starts it and waits until it answers.
    fn start(folder: &Path, port: u16) -> Self {
        let address = format!("127.0.0.1:{port}");
        let log = std::fs::File::create(folder.join("mlflow.log")).unwrap();
        let server = Command::new(python())
            .args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"])
            .args(["--port", &port.to_string()])
            .args([
                "--backend-store-uri",
                &format!("sqlite:///{}", folder.join("mlflow.db").display()),
            ])
            .args([
                "--artifacts-destination",
                &folder.join("artifacts").display().to_string(),
            ])
            .current_dir(folder)
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let server = Self { address, server };
        until("the MLflow server", || {
            let mut stream = TcpStream::connect(&server.address).ok()?;
            write!(stream, "GET /health HTTP/1.0\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            text.contains("OK").then_some(())
        });
        server
    }

    fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The runs of an experiment.
    fn runs(&self, experiment: &str) -> Vec<Value> {
        let Value::Array(runs) = told(&["runs", &self.uri(), experiment]) else {
            panic!("no list")
        };
        runs
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.server.id())])
            .status();
        let _ = self.server.wait();
    }
}

/// A training whose server is not there yet, is then killed twice, and goes on each time: one curve, one run, no figure
/// missing that was there to tell.
#[test]
fn attempts_are_one_curve_and_one_run() {
    let world = World::new();
    let port = free_port();
    // Long enough for what is waited for in the first two attempts, on a fast machine as well.
    let epochs = 300;
    let mut config = long(&world, epochs);
    config["tracking"] = json!({
        "tensorBoard": {}, "mlflow": {"uri": format!("http://127.0.0.1:{port}"), "experiment": "tests/one run"}
    });

    // Attempt 1: the server comes late, and gets what was told before. It saves no state, so all that it tells is done
    // again.
    let mut unsaved = config.clone();
    unsaved["checkpoint"]["intervalSeconds"] = 86_400.into();
    let running = world.start(&unsaved);
    let address = running.address();
    running.wait_for("a warning", |line| {
        (line["message"] == WARNING && line["kind"] == "unreachable").then_some(())
    });
    let problem = running.progress_until(&address, |p| p["tracking"]["mlflow"]["problem"].is_string());
    let words = problem["tracking"]["mlflow"]["problem"].as_str().unwrap();
    assert!(
        words.contains("cannot be reached. Check tracking.mlflow.uri"),
        "{words}"
    );
    // It may take longer to start than the training takes, and than a storage is waited for.
    running.progress_until(&address, |p| p["phase"] == "Training");
    running.signal("STOP");
    let server = Mlflow::start(world.dir.path(), port);
    running.signal("CONT");
    let board = world.path("out/uid-1/tensorboard");
    let seen = running.progress_until(&address, |p| {
        let mlflow = &p["tracking"]["mlflow"];
        let known = mlflow["uri"].as_str().is_some_and(|uri| uri.contains("/runs/"));
        known && mlflow["problem"].is_null() && p["step"].as_u64() > Some(100) && board.is_dir()
    });
    assert_eq!(seen["tracking"]["mlflow"]["droppedPoints"], 0);
    running.signal("KILL");
    assert_eq!(world.left(running).code, None);

    // Attempt 2 is told to end.
    config["job"]["attempt"] = 2.into();
    let running = world.start(&config);
    let address = running.address();
    running.progress_until(&address, |p| {
        p["step"].as_u64() > Some(100)
            && p["tracking"]["mlflow"]["uri"]
                .as_str()
                .is_some_and(|uri| uri.contains("/runs/"))
    });
    running.signal("TERM");
    let ended = world.left(running);
    assert_eq!(ended.failed().reason, FailureReason::Interrupted);
    let runs = server.runs("tests/one run");
    assert_eq!((runs.len(), &runs[0]["status"]), (1, &json!("KILLED")), "{runs:#?}");

    // Attempt 3 comes to the end.
    config["job"]["attempt"] = 3.into();
    let ended = world.left(world.start(&config));
    ended.trained();
    let result: TrainingResult = world.read("out/uid-1/attempt-3.result.json");
    assert_eq!(result.epochs.len() as u32, epochs);
    let runs = server.runs("tests/one run");
    assert_eq!(runs.len(), 1, "{runs:#?}");
    let run = &runs[0];
    assert_eq!(run["status"], "FINISHED");
    assert_eq!(run["name"], "intent-uid-1");
    assert_eq!(
        (&run["tags"]["flywheel.job_uid"], &run["tags"]["flywheel.attempt"]),
        (&json!("uid-1"), &json!("3"))
    );
    assert_eq!(
        (&run["params"]["learningRate"], &run["params"]["epochs"]),
        (&json!("1e-3"), &json!(epochs.to_string()))
    );
    let told_steps: BTreeSet<u64> = steps(&run["metrics"]["train/loss"]).into_iter().collect();
    assert!(told_steps.contains(&1), "what was told before the server came");
    assert!(told_steps.contains(&result.steps));
    let accuracy = metric_value(&result.metrics, "test/accuracy").unwrap();
    assert_eq!(run["metrics"]["test/accuracy"], json!([[result.steps, accuracy]]));

    // The last evaluations, with those of the attempts before.
    let message = told_at_end(&ended);
    let known: Vec<u32> = message.evaluations.iter().map(|e| e.epoch).collect();
    assert_eq!(known, (epochs - 19..=epochs).collect::<Vec<_>>());
    for (told, epoch) in message.evaluations.iter().zip(&result.epochs[epochs as usize - 20..]) {
        assert!((told.validation_loss.unwrap() - epoch.validation_loss).abs() < 1e-6);
        assert!(told.time > Some(1_700_000_000));
    }

    // What attempt 1 told of steps that attempt 2 did again is there.
    let first = world.path("first/events.out.tfevents.1");
    std::fs::create_dir(world.path("first")).unwrap();
    std::fs::copy(board.join("events.out.tfevents.00000000000000000001.flywheel"), first).unwrap();
    let read = told(&["files", &world.path("first").display().to_string()]);
    assert!(steps(&read["."]["scalars"]["train/loss"]).len() > 5, "{read}");

    // Both of TensorBoard's readers see one curve that never goes back.
    assert_eq!(world.files("out/uid-1/tensorboard").len(), 3);
    let folder = world.path("out").display().to_string();
    for reader in ["slow", "fast"] {
        let served = told(&["served", &folder, reader]);
        let runs = served.as_object().unwrap();
        assert_eq!(runs.keys().collect::<Vec<_>>(), ["uid-1/tensorboard"], "{reader}");
        let scalars = runs["uid-1/tensorboard"].as_object().unwrap();
        for (tag, points) in scalars {
            let steps = steps(points);
            assert!(steps.is_sorted_by(|a, b| a < b), "{reader} {tag}: {steps:?}");
        }
        assert_eq!(steps(&scalars["train/loss"]).last(), Some(&result.steps), "{reader}");
        assert_eq!(
            scalars["validation/loss"].as_array().unwrap().last().unwrap()[0],
            result.steps
        );
    }
}

/// Without Kubernetes every run is attempt 1: each has a file of its own all the same, and the curve keeps its beginning.
#[test]
fn a_run_that_is_killed_and_gone_on_with_is_one_whole_curve() {
    let world = World::new();
    world.write("data.csv", rows(600));
    world.write(
        "job.yaml",
        format!(
            "apiVersion: flywheel.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: intent, uid: u-8}}\nspec:\n  task: TextClassification\n  \
             model: {{pretrained: {{uri: {}}}}}\n  dataset: {{sources: [{{uri: {}}}]}}\n  tracking: {{tensorBoard: {{}}}}\n  \
             checkpoint: {{intervalSeconds: 1}}\n  hyperparameters: {{epochs: 300, batchSize: 8, maxLength: 16}}\n  \
             output: {{model: intent, uri: {}}}\n",
            world.uri("bert"),
            world.uri("data.csv"),
            world.uri("out"),
        ),
    );
    let file = world.path("job.yaml").display().to_string();
    let command = || world.command(&["run", "-f", &file, "--listen", "127.0.0.1:0"]);
    let running = Running::start(command());
    let address = running.address();
    let saved = running.progress_until(&address, |p| {
        p["checkpoint"]["ageSeconds"].is_number() && !world.files("out/u-8/tensorboard").is_empty()
    });
    assert!(saved["checkpoint"]["step"].as_u64() > Some(0), "{saved}");
    running.signal("KILL");
    world.left(running);
    let ended = world.left(Running::start(command()));
    let total = ended.trained().steps;

    let folder = "out/u-8/tensorboard";
    assert_eq!(world.files(folder).len(), 2);
    let read = told(&["files", &world.path(folder).display().to_string()]);
    let curve = steps(&read["."]["scalars"]["train/loss"]);
    assert_eq!((curve.first(), curve.last()), (Some(&1), Some(&total)), "{curve:?}");
    assert!(curve.is_sorted_by(|a, b| a < b), "{curve:?}");
}

/// What a restarted attempt knows of those before it.
#[test]
fn evaluations_survive_a_kill_and_other_ends_are_told() {
    let world = World::new();
    let mut config = long(&world, 400);
    let server = Mlflow::start(world.dir.path(), free_port());
    config["tracking"] = json!({"mlflow": {"uri": server.uri(), "runName": "of mine"}});
    let running = world.start(&config);
    let address = running.address();
    running.progress_until(&address, |p| p["checkpoint"]["step"].as_u64() > Some(200));
    running.signal("KILL");
    world.left(running);
    config["job"]["attempt"] = 2.into();
    let running = world.start(&config);
    let address = running.address();
    let progress = running.progress_until(&address, |p| p["gradNorm"].is_number());
    let known: Vec<u64> = progress["evaluations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["epoch"].as_u64().unwrap())
        .collect();
    // 420 rows in batches of 8.
    let done = progress["resumedFromStep"].as_u64().unwrap() / 53;
    let first = done.saturating_sub(19).max(1);
    assert!(
        known.starts_with(&(first..=done).collect::<Vec<_>>()) || known.len() == 20,
        "{known:?} after {done}"
    );
    let last = progress["evaluations"].as_array().unwrap().last().unwrap();
    assert_eq!(last["step"].as_u64(), last["epoch"].as_u64().map(|e| e * 53));
    let metrics = get(&address, "/metrics");
    for name in [
        "flywheel_trainer_grad_norm{} ",
        "flywheel_trainer_step ",
        "flywheel_trainer_epoch ",
        "flywheel_trainer_validation_loss_nats",
        "flywheel_trainer_validation_macro_f1_ratio",
        "flywheel_trainer_checkpoint_step",
        "flywheel_trainer_tracking_dropped_points_total{sink=\"mlflow\"} 0",
        "flywheel_trainer_tracking_failures_total{sink=\"tensorboard\"} 0",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    running.signal("KILL");
    world.left(running);

    // A job that fails says so in its run.
    config["job"] = json!({"namespace": "team", "name": "intent", "uid": "uid-2", "attempt": 1});
    config["dataset"]["sources"][0]["uri"] = world.uri("missing.csv").into();
    assert_eq!(world.train(&config).failed().reason, FailureReason::DatasetNotFound);
    let runs = server.runs("team/intent");
    let of = |uid: &str| {
        let mut found = runs.iter().filter(|r| r["tags"]["flywheel.job_uid"] == uid);
        let run = found.next().unwrap_or_else(|| panic!("no run of {uid}: {runs:#?}"));
        assert!(found.next().is_none(), "one run of {uid}");
        run
    };
    assert_eq!(
        (&of("uid-1")["status"], &of("uid-1")["name"]),
        (&json!("RUNNING"), &json!("of mine"))
    );
    assert_eq!(of("uid-2")["status"], "FAILED");

    // The server makes the run, and its answer is lost: the run is found, and no second one is made.
    let proxy = losing_an_answer(server.address.clone());
    let mut config = world.config();
    config["job"]["uid"] = "uid-3".into();
    config["tracking"] = json!({"mlflow": {"uri": format!("http://{proxy}"), "experiment": "lost"}});
    let ended = world.train(&config);
    ended.trained();
    assert!(ended.stderr.contains(WARNING), "{}", ended.stderr);
    let runs = server.runs("lost");
    assert_eq!((runs.len(), &runs[0]["status"]), (1, &json!("FINISHED")), "{runs:#?}");
    assert_eq!(told(&["deleted", &server.uri(), "lost"]), 0);
}

/// Hands requests on, one for each connection, and keeps the first answer to `runs/create` back.
fn losing_an_answer(server: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let lost = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (server, lost) = (server.clone(), Arc::clone(&lost));
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let Some((head, body)) = request(&mut reader) else {
                    return;
                };
                let mut upstream = TcpStream::connect(server).unwrap();
                let close = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                upstream.write_all(&[close.as_bytes(), &body].concat()).unwrap();
                let mut reply = Vec::new();
                let _ = upstream.read_to_end(&mut reply);
                if head.contains("runs/create") && !lost.swap(true, Ordering::SeqCst) {
                    return;
                }
                let _ = (&stream).write_all(&reply);
            });
        }
    });
    address
}

/// How a server answers, whatever it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Nothing, ever.
    Silent,
    /// Headers, and then a body without an end.
    Endless,
    /// The same as fast as it can.
    Flood,
    Status(u16, &'static str),
}

/// A server that is none. Remembers what it was sent.
struct Hostile {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hostile {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || {
                    let _ = answer(stream, manner, &seen);
                });
            }
        });
        Self { address, requests }
    }
}

/// The next request: its head with the empty line, and its body.
fn request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn answer(mut stream: TcpStream, manner: Manner, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some((head, _)) = request(&mut reader) {
        seen.lock().unwrap().push(head.clone());
        match manner {
            Manner::Silent => (),
            Manner::Endless | Manner::Flood => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{{\"a\": \""
                )?;
                loop {
                    if manner == Manner::Endless {
                        std::thread::sleep(Duration::from_millis(100));
                        stream.write_all(b"a")?;
                    } else {
                        stream.write_all(&[b'a'; 65_536])?;
                    }
                }
            }
            Manner::Status(status, more) => {
                // What it was told it tells again, where it may end up in a log.
                let echo = json!({"error_code": head, "message": head}).to_string();
                let body = if status == 200 {
                    "<html>hello</html>".to_owned()
                } else {
                    echo
                };
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\n{more}Content-Length: {}\r\n\r\n{body}",
                    body.len()
                )?;
            }
        }
    }
    Ok(())
}

/// Whatever a server does, the training ends as it would without it; each kind of trouble is logged once, told in the
/// message, and nothing of the credentials or of the server's texts is.
#[test]
fn a_hostile_server_changes_nothing() {
    let world = World::new();
    let plain = world.train(&world.config()).trained().clone();
    let cases = [
        (Manner::Silent, "", "", true),
        (Manner::Endless, "", "", true),
        (Manner::Flood, "unreadable", "more than a megabyte", false),
        (
            Manner::Status(500, ""),
            "unavailable",
            "answers HTTP 500. Check that it is well",
            false,
        ),
        (
            Manner::Status(429, "Retry-After: 86400\r\n"),
            "throttled",
            "takes fewer requests",
            false,
        ),
        (
            Manner::Status(401, ""),
            "denied",
            "refuses the credentials. Check the Secret",
            false,
        ),
        (
            Manner::Status(302, "Location: http://169.254.169.254/\r\n"),
            "elsewhere",
            "a redirection, which is not followed",
            false,
        ),
        (
            Manner::Status(404, ""),
            "rejected",
            "answers HTTP 404. Check that tracking.mlflow.uri",
            false,
        ),
        (
            Manner::Status(200, ""),
            "unreadable",
            "something else than a JSON object",
            false,
        ),
    ];
    for (i, (manner, kind, words, late)) in cases.into_iter().enumerate() {
        let server = Hostile::start(manner);
        let mut config = world.config();
        config["job"]["uid"] = format!("uid-{i}-of-hostile").into();
        config["tracking"] = json!({"mlflow": {"uri": format!("http://{}", server.address)}});
        let output = world
            .command(&["train", "--listen", "127.0.0.1:0"])
            .env("FLYWHEEL_CONFIG", config.to_string())
            .env("MLFLOW_TRACKING_TOKEN", format!("{TOKEN}\n"))
            .output()
            .unwrap();
        let ended = world.ended(output);
        let trained = ended.trained();
        assert_eq!(trained.metrics, plain.metrics, "{manner:?}");
        let requests = server.requests.lock().unwrap();
        assert!(
            !requests.is_empty() && requests.len() < 10,
            "{manner:?}: {}",
            requests.len()
        );
        assert!(
            requests.iter().all(|r| r
                .to_ascii_lowercase()
                .contains(&format!("authorization: bearer {TOKEN}"))),
            "{requests:?}"
        );
        let message = told_at_end(&ended);
        let mlflow = message.tracking.mlflow.clone().unwrap();
        assert!(mlflow.dropped_points > 30, "{manner:?}: {mlflow:?}");
        let problem = mlflow.problem.unwrap();
        assert_eq!(mlflow.uri, format!("http://{}", server.address));
        let warnings: Vec<Value> = ended
            .stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["message"] == WARNING)
            .collect();
        let kinds: BTreeSet<&str> = warnings.iter().map(|w| w["kind"].as_str().unwrap()).collect();
        assert_eq!(warnings.len(), kinds.len(), "{manner:?}: {warnings:#?}");
        if late {
            // It is not waited for as long as a whole answer may take.
            assert!(
                problem.contains("could not be sent within 5 s"),
                "{manner:?}: {problem}"
            );
        } else {
            assert_eq!(kinds, [kind].into(), "{manner:?}");
            assert!(problem.contains(words), "{manner:?}: {problem}");
        }
        let all = format!("{} {} {}", ended.stderr, ended.stdout, message.to_json());
        for never in [TOKEN, "hello", "GET /api"] {
            assert!(!all.contains(never), "{manner:?}: {never} in {all}");
        }
    }
}

/// A bucket that takes no event files is none of the training's business.
#[test]
fn a_bucket_that_takes_nothing_changes_nothing() {
    let (world, server) = (World::new(), Server::start());
    let mut config = world.config();
    config["storage"]["endpoint"] = server.url().into();
    config["tracking"] = json!({"tensorBoard": {"uri": "s3://watch/board"}});
    let cases = [
        (None, ""),
        (Some(Fault::Status(403)), "refused access"),
        (Some(Fault::Status(503)), "did not answer well"),
        (Some(Fault::Hang), "did not answer well within"),
    ];
    for (i, (fault, words)) in cases.into_iter().enumerate() {
        let uid = format!("uid-{i}");
        server.heal();
        if let Some(fault) = fault {
            server.fault("PUT /watch/", fault, usize::MAX);
        }
        config["job"]["uid"] = uid.clone().into();
        let ended = world.train(&config);
        ended.trained();
        let warnings = ended.stderr.matches(WARNING).count();
        let told = told_at_end(&ended).tracking.tensor_board.unwrap();
        assert_eq!(told.uri, format!("s3://watch/board/intent-{uid}"));
        let file = format!("watch/board/intent-{uid}/events.out.tfevents.00000000000000000001.flywheel");
        if fault.is_none() {
            assert_eq!((told.problem, told.dropped_points, warnings), (None, 0, 0));
            assert!(server.get(&file).unwrap().len() > 1000);
        } else {
            assert!(told.problem.unwrap().contains(words), "{fault:?}: {}", ended.stderr);
            assert!(told.dropped_points > 30 && warnings == 1, "{fault:?}: {}", ended.stderr);
        }
        assert!(
            !ended.stderr.contains("storage failed, trying again"),
            "{}",
            ended.stderr
        );
    }
}

/// Settings that cannot work are told, and end nothing; a certificate is trusted by the Secret's authority alone.
#[test]
fn settings_that_cannot_work_are_told() {
    let world = World::new();
    let (port, certificate) = faults::tls_server();
    let cases = [
        (
            "no certificate",
            "MLFLOW_TRACKING_CA in the Secret of tracking.mlflow.secretRef holds no certificate",
        ),
        ("", "is one that the system or MLFLOW_TRACKING_CA knows"),
        (&certificate, "something else than a JSON object"),
    ];
    for (i, (authority, words)) in cases.into_iter().enumerate() {
        let mut config = world.config();
        config["job"]["uid"] = format!("uid-{i}").into();
        config["tracking"] = json!({
            "mlflow": {"uri": format!("https://localhost:{port}")},
            "tensorBoard": {"uri": "https://example.invalid/board"}
        });
        let output = world
            .command(&["train", "--listen", "127.0.0.1:0"])
            .env("FLYWHEEL_CONFIG", config.to_string())
            .env("MLFLOW_TRACKING_CA", authority)
            .output()
            .unwrap();
        let ended = world.ended(output);
        ended.trained();
        let tracking = told_at_end(&ended).tracking;
        let problem = tracking.mlflow.unwrap().problem.unwrap();
        assert!(problem.contains(words), "{problem}");
        let problem = tracking.tensor_board.unwrap().problem.unwrap();
        assert!(
            problem.contains("can only be read; write to s3:// or file://"),
            "{problem}"
        );
    }
}
