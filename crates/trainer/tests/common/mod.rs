//! A tiny random BERT, a tiny data set, and the program started on them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::termination::{Outcome, Position, TerminationMessage, Trained};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const WORDS: [&str; 12] = [
    "turn", "on", "off", "the", "light", "music", "play", "stop", "weather", "what", "is", "today",
];
pub const HIDDEN: usize = 16;
const INTERMEDIATE: usize = 32;
const POSITIONS: usize = 64;

/// A folder of its own and everything a job needs in it.
pub struct World {
    pub dir: tempfile::TempDir,
}

/// What the program left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub outcome: Option<Outcome>,
    /// The whole message, of which outcome and position are parts.
    pub message: Option<TerminationMessage>,
    pub position: Option<Position>,
    pub stderr: String,
    pub stdout: String,
}

impl Ended {
    pub fn trained(&self) -> &Trained {
        match &self.outcome {
            Some(Outcome::Trained(trained)) if self.code == Some(0) => trained,
            _ => panic!("{self:#?}"),
        }
    }

    /// The failure, after checking what holds for every failure: exit code 1, the reason on stderr, no panic.
    pub fn failed(&self) -> &Failure {
        match &self.outcome {
            Some(Outcome::Failed(failure)) if self.code == Some(1) => {
                assert!(self.stderr.contains(failure.reason.as_str()), "{self:#?}");
                assert!(!self.stderr.contains("panicked"), "{self:#?}");
                failure
            }
            _ => panic!("{self:#?}"),
        }
    }
}

impl World {
    pub fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        world.write("data.csv", rows(60));
        bert(&world.path("bert"));
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    /// What a file holds as JSON.
    pub fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Configuration of a small training.
    pub fn config(&self) -> Value {
        json!({
            "schemaVersion": 1,
            "job": {"namespace": "team", "name": "intent", "uid": "uid-1", "attempt": 1},
            "task": "TextClassification",
            "model": {"pretrained": {"uri": self.uri("bert")}},
            "dataset": {"sources": [{"uri": self.uri("data.csv")}]},
            "hyperparameters": {"epochs": 2, "batchSize": 8, "learningRate": "1e-3", "maxLength": 16},
            "device": "Cpu",
            "storage": {},
            "modelName": "intent",
            "outputUri": self.uri("out"),
        })
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_to("termination", arguments)
    }

    /// The same with a termination log of this name.
    pub fn command_to(&self, termination: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flywheel-trainer"));
        command
            .args(arguments)
            .args(["--termination-log", &self.path(termination).display().to_string()])
            .args(["--scratch", &self.dir.path().display().to_string()])
            .args(["--storage-timeout", "2"])
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env_remove("MLFLOW_TRACKING_TOKEN")
            .env_remove("MLFLOW_TRACKING_USERNAME")
            .env_remove("MLFLOW_TRACKING_CA")
            .env_remove("RUST_LOG")
            // As in the image: nothing starts twice.
            .env("GOMP_SPINCOUNT", "300")
            .stdin(Stdio::null());
        command
    }

    pub fn ended(&self, output: Output) -> Ended {
        let message = std::fs::read_to_string(self.path("termination")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("termination"));
        let message = TerminationMessage::parse(&message);
        Ended {
            code: output.status.code(),
            position: message.as_ref().and_then(|m| m.position),
            outcome: message.as_ref().map(|m| m.outcome.clone()),
            message,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }

    /// A training beside the test, with a port of its own.
    pub fn start(&self, config: &Value) -> Running {
        self.start_on(None, config)
    }

    /// The same, on one core where one is given.
    pub fn start_on(&self, core: Option<usize>, config: &Value) -> Running {
        let train = self.command(&["train", "--listen", "127.0.0.1:0"]);
        let mut command = match core {
            None => train,
            Some(core) => {
                let mut pinned = Command::new("taskset");
                pinned
                    .args(["-c", &core.to_string()])
                    .arg(train.get_program())
                    .args(train.get_args());
                pinned
            }
        };
        command.env("FLYWHEEL_CONFIG", config.to_string());
        Running::start(command)
    }

    /// What a program that was started left, after its end.
    pub fn left(&self, running: Running) -> Ended {
        self.left_in("termination", running)
    }

    /// The same with a termination log of this name.
    pub fn left_in(&self, termination: &str, mut running: Running) -> Ended {
        let code = running.wait();
        let message = std::fs::read_to_string(self.path(termination)).unwrap_or_default();
        let _ = std::fs::remove_file(self.path(termination));
        let message = TerminationMessage::parse(&message);
        Ended {
            code,
            position: message.as_ref().and_then(|m| m.position),
            outcome: message.as_ref().map(|m| m.outcome.clone()),
            message,
            stderr: running.all().join("\n"),
            stdout: String::new(),
        }
    }

    /// Runs `train`, or `verify`, with this configuration.
    pub fn run(&self, command: &str, config: &Value) -> Ended {
        let mut arguments = vec![command];
        if command == "train" {
            arguments.extend(["--listen", "127.0.0.1:0"]);
        }
        let output = self
            .command(&arguments)
            .env("FLYWHEEL_CONFIG", config.to_string())
            .output()
            .unwrap();
        self.ended(output)
    }

    pub fn train(&self, config: &Value) -> Ended {
        self.run("train", config)
    }

    /// Files below a folder, sorted, without those of running programs.
    pub fn files(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        let base = self.path(name);
        let mut open = vec![base.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.push(path.strip_prefix(&base).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }
}

/// A CSV of texts that three labels can be told from.
pub fn rows(n: usize) -> String {
    let mut out = "text,label\n".to_owned();
    for i in 0..n {
        let (label, words) = [
            ("light", "turn on the light"),
            ("music", "play music"),
            ("weather", "what is the weather today"),
        ][i % 3];
        out += &format!(
            "{words} {},{label}\n",
            WORDS[i % WORDS.len()].repeat(i / WORDS.len() + 1)
        );
    }
    out
}

/// Random numbers that are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.1
    }
}

/// Writes a BERT with one layer in Hugging Face's layout.
pub fn bert(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut vocabulary: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(str::to_owned)
        .to_vec();
    vocabulary.extend(WORDS.map(str::to_owned));
    vocabulary.extend(WORDS.map(|w| format!("##{w}")));
    std::fs::write(folder.join("vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
    let config = json!({
        "model_type": "bert", "vocab_size": vocabulary.len(), "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": INTERMEDIATE, "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "architectures": ["BertModel"],
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| shapes.insert(name.to_owned(), shape.to_vec());
    add("embeddings.word_embeddings.weight", &[vocabulary.len(), HIDDEN]);
    add("embeddings.position_embeddings.weight", &[POSITIONS, HIDDEN]);
    add("embeddings.token_type_embeddings.weight", &[2, HIDDEN]);
    let layer = "encoder.layer.0";
    for (name, out, inside) in [
        (format!("{layer}.attention.self.query"), HIDDEN, HIDDEN),
        (format!("{layer}.attention.self.key"), HIDDEN, HIDDEN),
        (format!("{layer}.attention.self.value"), HIDDEN, HIDDEN),
        (format!("{layer}.attention.output.dense"), HIDDEN, HIDDEN),
        (format!("{layer}.intermediate.dense"), INTERMEDIATE, HIDDEN),
        (format!("{layer}.output.dense"), HIDDEN, INTERMEDIATE),
        ("pooler.dense".to_owned(), HIDDEN, HIDDEN),
    ] {
        add(&format!("{name}.weight"), &[out, inside]);
        add(&format!("{name}.bias"), &[out]);
    }
    let norms = [
        "embeddings.LayerNorm".to_owned(),
        format!("{layer}.attention.output.LayerNorm"),
        format!("{layer}.output.LayerNorm"),
    ];
    for name in &norms {
        add(&format!("{name}.weight"), &[HIDDEN]);
        add(&format!("{name}.bias"), &[HIDDEN]);
    }
    let mut numbers = Numbers(1);
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let norm = name.contains("LayerNorm.weight");
            let bytes = (0..shape.iter().product::<usize>())
                .flat_map(|_| (numbers.next() * 4.0 + if norm { 1.0 } else { 0.0 }).to_le_bytes())
                .collect();
            (name, (shape, bytes))
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(
        folder.join("model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
}

/// A program that runs beside the test; killed with its value.
pub struct Running {
    pub child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    /// Lines that were looked at.
    seen: std::cell::RefCell<Vec<String>>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            seen: std::cell::RefCell::default(),
        }
    }

    /// What the first line of the log that `wanted` takes says; lines that were looked at before are looked at again only by
    /// [`Running::all`].
    pub fn wait_for<T>(&self, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{what} never came: {:#?}", self.seen)
            };
            let found = serde_json::from_str(&line).ok().and_then(|v: Value| wanted(&v));
            self.seen.borrow_mut().push(line);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Waits for a line of the log that `wanted` takes, or for the end of the program.
    pub fn wait_for_or_end<T>(&self, wanted: impl Fn(&Value) -> Option<T>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            let taken = serde_json::from_str(&line)
                .ok()
                .and_then(|v: Value| wanted(&v))
                .is_some();
            self.seen.borrow_mut().push(line);
            if taken {
                return;
            }
        }
        assert!(Instant::now() < deadline, "it neither says so nor ends");
    }

    /// Where it serves /progress.
    pub fn address(&self) -> String {
        self.wait_for("the address", |line| line["address"].as_str().map(str::to_owned))
    }

    /// The first /progress that `wanted` takes.
    pub fn progress_until(&self, address: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let body = try_get(address, "/progress").unwrap_or_else(|e| panic!("{e}: it ended: {:#?}", self.all()));
            let progress = serde_json::from_str(&body).unwrap();
            if wanted(&progress) {
                return progress;
            }
            assert!(Instant::now() < deadline, "it never came: {progress}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// All lines of the log, to the end of the program.
    pub fn all(&self) -> Vec<String> {
        let mut seen = self.seen.take();
        seen.extend(self.lines.iter());
        seen
    }

    pub fn wait(&mut self) -> Option<i32> {
        // No promise: only that a test ends.
        let deadline = Instant::now() + Duration::from_secs(300);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on, and that neither an outgoing connection nor a listener on port 0 is given meanwhile: those
/// are from 32768 on.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 9_000;
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    (0..COUNT)
        .map(|_| FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// GET over plain HTTP.
pub fn get(address: &str, path: &str) -> String {
    try_get(address, path).unwrap()
}

fn try_get(address: &str, path: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

/// Asserts reason and words of a failure.
pub fn says(failure: &Failure, reason: FailureReason, words: &[&str]) {
    assert_eq!(failure.reason, reason, "{failure}");
    for word in words {
        assert!(failure.message.contains(word), "{failure} lacks {word:?}");
    }
}
