//! A real artifact of a tiny BERT, and a storage that misbehaves on request.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{
    CALIBRATION_FILE, CONFIG_FILE, DATA_PROFILE_FILE, EVALUATION_SAMPLE_FILE, EvaluationItem, EvaluationSample,
    MANIFEST_FILE, Manifest, TOKENIZER_FILE, WEIGHTS_FILE,
};
use flywheel_contract::profile::{Answer, DataProfile, PROJECTIONS};
use flywheel_contract::scalar::{Device, Digest, Precision, Task, Uri};
use flywheel_contract::serving::{Assignment, ServedVersion, ServiceIdentity, ServingConfig, ServingLimits};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_data::TextTokenizer;
use flywheel_learn::config::EncoderConfig;
use flywheel_learn::network::SequenceClassifier;
use flywheel_learn::{Classifier, artifact};
use serde_json::{Value, json};

pub const LABELS: [&str; 4] = ["balance", "card", "refund", "transfer"];
const MAX_LENGTH: usize = 64;

/// A folder with an artifact.
pub struct Artifact {
    pub dir: tempfile::TempDir,
    pub digest: Digest,
}

impl Artifact {
    pub fn new() -> Self {
        Self::of_seed(7)
    }

    /// Other seeds give other answers.
    pub fn of_seed(seed: i64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pretrained = tempfile::tempdir().unwrap();
        let vocabulary = vocabulary();
        fs::write(pretrained.path().join("vocab.txt"), vocabulary.join("\n")).unwrap();
        TextTokenizer::load(pretrained.path(), MAX_LENGTH, vocabulary.len())
            .unwrap()
            .save(pretrained.path())
            .unwrap();
        let config = json!({
            "model_type": "bert", "vocab_size": vocabulary.len(), "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 96, "type_vocab_size": 2,
        });
        let Value::Object(raw) = config else {
            panic!("no object")
        };
        let config = EncoderConfig::from_json(raw, Path::new("test")).unwrap();
        let network = SequenceClassifier::random(&config, LABELS.len(), 0.0, seed, tch::Device::Cpu).unwrap();
        // As they are made, the weights hardly tell two texts apart; larger ones do.
        let _off = tch::no_grad_guard();
        for (name, tensor) in network.parameters() {
            if name.ends_with("weight") && !name.contains("LayerNorm") {
                let _ = tensor.shallow_clone().g_mul_scalar_(8.0);
            }
        }
        let labels = LABELS.map(str::to_owned);
        artifact::write(dir.path(), &network, &labels, pretrained.path()).unwrap();
        let mut made = Self {
            dir,
            digest: Digest::sha256(""),
        };
        made.describe(|_| ());
        made
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self) -> String {
        format!("file://{}", self.dir.path().display())
    }

    /// Writes the manifest anew, right for the files as they are, then changed.
    pub fn describe(&mut self, change: impl FnOnce(&mut Manifest)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != MANIFEST_FILE)
            .collect();
        names.sort();
        let files = names
            .iter()
            .map(|name| {
                runtime
                    .block_on(flywheel_store::describe(self.dir.path(), name))
                    .unwrap()
            })
            .collect();
        let mut manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            model: "intent".to_owned(),
            task: Task::TextClassification,
            architecture: "bert".to_owned(),
            labels: LABELS.map(str::to_owned).to_vec(),
            max_length: MAX_LENGTH as i32,
            metrics: vec![],
            files,
        };
        change(&mut manifest);
        fs::write(self.path(MANIFEST_FILE), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
        self.digest = runtime
            .block_on(flywheel_store::describe(self.dir.path(), MANIFEST_FILE))
            .unwrap()
            .digest;
    }

    /// Gives it an evaluation sample: its own answers in single precision, but for `wrong` of them, which have another label.
    pub fn add_sample(&mut self, texts: &[&str], wrong: usize) {
        let items = texts.iter().zip(self.direct(texts)).enumerate();
        let items = items.map(|(index, (text, mut probabilities))| {
            if index < wrong {
                probabilities.rotate_right(1);
            }
            EvaluationItem {
                text: (*text).to_owned(),
                label: 0,
                probabilities,
            }
        });
        let sample = EvaluationSample {
            schema_version: SCHEMA_VERSION,
            items: items.collect(),
        };
        fs::write(self.path(EVALUATION_SAMPLE_FILE), serde_json::to_vec(&sample).unwrap()).unwrap();
        self.describe(|_| ());
    }

    /// Gives it the data profile of these texts, with edges of the projections halfway between theirs.
    pub fn add_profile(&mut self, texts: &[&str]) -> DataProfile {
        let counted = self.counted(texts);
        let columns: [Vec<f64>; PROJECTIONS] = std::array::from_fn(|projection| {
            let column = counted
                .iter()
                .map(|(_, answer)| answer.projections.unwrap()[projection]);
            let mut column: Vec<f64> = column.collect();
            column.sort_by(f64::total_cmp);
            column.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect()
        });
        let between: Vec<[f64; PROJECTIONS]> = (0..columns[0].len())
            .map(|i| std::array::from_fn(|projection| columns[projection][i]))
            .collect();
        let mut profile = DataProfile::new(LABELS.len()).with_projections(&between);
        for (ids, answer) in &counted {
            profile.add(ids, answer);
        }
        fs::write(self.path(DATA_PROFILE_FILE), serde_json::to_vec(&profile).unwrap()).unwrap();
        self.describe(|_| ());
        profile
    }

    /// Token ids and answers as the network itself gives them, each text alone.
    pub fn counted(&self, texts: &[&str]) -> Vec<(Vec<i64>, Answer)> {
        let classifier = Classifier::load(self.dir.path(), tch::Device::Cpu, Precision::Float32).unwrap();
        let rows = texts.iter().map(|text| self.ids(text));
        rows.map(|row| {
            let answer = classifier
                .predict_and_project(std::slice::from_ref(&row))
                .unwrap()
                .remove(0);
            (row, answer)
        })
        .collect()
    }

    /// Readies it for numbers of 8 bits, over these texts.
    pub fn calibrate(&mut self, texts: &[&str]) {
        let rows: Vec<Vec<i64>> = texts.iter().map(|text| self.ids(text)).collect();
        let name = artifact::calibrate(self.dir.path(), &rows, tch::Device::Cpu, &mut || {
            ControlFlow::Continue(())
        });
        assert_eq!(name.unwrap(), CALIBRATION_FILE);
        self.describe(|_| ());
    }

    /// Gives its classes other names.
    pub fn name_labels(&mut self, labels: &[&str; LABELS.len()]) {
        self.damage(CONFIG_FILE, |bytes| {
            let mut config: Value = serde_json::from_slice(bytes).unwrap();
            config["id2label"] = labels
                .iter()
                .enumerate()
                .map(|(id, label)| (id.to_string(), json!(label)))
                .collect();
            config["label2id"] = labels
                .iter()
                .enumerate()
                .map(|(id, label)| ((*label).to_owned(), json!(id)))
                .collect();
            *bytes = serde_json::to_vec(&config).unwrap();
        });
        self.describe(|manifest| manifest.labels = labels.map(str::to_owned).to_vec());
    }

    /// Changes a file behind the manifest's back.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Probabilities as the network itself gives them, each text alone.
    pub fn direct(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        let classifier = Classifier::load(self.dir.path(), tch::Device::Cpu, Precision::Float32).unwrap();
        texts
            .iter()
            .map(|text| classifier.predict(&[self.ids(text)]).unwrap().remove(0))
            .collect()
    }

    fn ids(&self, text: &str) -> Vec<i64> {
        let vocabulary = EncoderConfig::read(self.dir.path()).unwrap().vocab_size as usize;
        let tokenizer = TextTokenizer::load(self.dir.path(), MAX_LENGTH, vocabulary).unwrap();
        tokenizer.encode(&flywheel_data::clean_text(text)).unwrap().ids
    }

    /// What a pod is given that serves it from `uri` as `intent-v3`.
    pub fn setup(&self, uri: &str) -> Setup {
        Setup {
            config: ServingConfig {
                schema_version: SCHEMA_VERSION,
                service: ServiceIdentity {
                    namespace: "team".to_owned(),
                    name: "intent".to_owned(),
                },
                device: Device::Cpu,
                precision: Precision::Float32,
                storage: Default::default(),
                tls: None,
                feedback: None,
                limits: ServingLimits {
                    max_concurrency: 256,
                    timeout_milliseconds: 20_000,
                },
            },
            assignment: Assignment {
                schema_version: SCHEMA_VERSION,
                generation: 1,
                serve: "intent-v3".to_owned(),
                versions: vec![self.version("intent-v3", uri)],
                split: None,
                mirror: None,
                canary: None,
                cleared: Vec::new(),
                window_seconds: None,
                judged_since: None,
                trial: None,
            },
        }
    }

    /// It as a version of this name.
    pub fn version(&self, name: &str, uri: &str) -> ServedVersion {
        ServedVersion {
            name: name.to_owned(),
            artifact: ArtifactRef {
                uri: Uri(uri.to_owned()),
                digest: self.digest.clone(),
            },
        }
    }
}

/// What a pod is given.
#[derive(Clone)]
pub struct Setup {
    pub config: ServingConfig,
    pub assignment: Assignment,
}

impl Setup {
    /// The one version to hold.
    pub fn version(&mut self) -> &mut ServedVersion {
        &mut self.assignment.versions[0]
    }
}

/// Makes the header of the weights promise a tensor beyond the end of the file.
pub fn lie(bytes: &mut Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (_, tensor) = header
        .as_object_mut()
        .unwrap()
        .iter_mut()
        .find(|(name, _)| *name == "classifier.weight")
        .unwrap();
    tensor["shape"] = json!([1_000_000_000, 1_000_000_000]);
    let header = header.to_string().into_bytes();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(&header);
    changed.extend_from_slice(&bytes[8 + length..]);
    *bytes = changed;
}

pub const FILES: [&str; 4] = [MANIFEST_FILE, WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE];

fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "!", ".", ","]
        .map(str::to_owned)
        .to_vec();
    for letter in 'a'..='z' {
        tokens.push(letter.to_string());
        tokens.push(format!("##{letter}"));
    }
    tokens.extend(["where", "is", "my", "card", "money", "back", "send", "please"].map(str::to_owned));
    tokens
}

/// What a storage does with a request.
#[derive(Clone, Copy, Debug)]
pub enum Behaviour {
    /// Answers as it should.
    Right,
    /// 403.
    Forbid,
    /// 503.
    Fail,
    /// Closes the connection in the middle of the weights.
    CutOff,
    /// Says nothing.
    Silent,
}

/// A web server over a folder.
pub struct Storage {
    pub address: SocketAddr,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub requests: Arc<AtomicUsize>,
}

impl Storage {
    pub fn new(folder: &Path, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let storage = Self {
            address: listener.local_addr().unwrap(),
            behaviour: Arc::new(Mutex::new(behaviour)),
            requests: Arc::default(),
        };
        let (folder, behaviour, requests) = (
            folder.to_owned(),
            Arc::clone(&storage.behaviour),
            Arc::clone(&storage.requests),
        );
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                requests.fetch_add(1, Ordering::Relaxed);
                let (folder, behaviour) = (folder.clone(), *behaviour.lock().unwrap());
                thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    let first = lines.next().unwrap().unwrap();
                    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                    let name = first.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
                    let plain =
                        |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    let answer = match (behaviour, fs::read(folder.join(&name))) {
                        (Behaviour::Silent, _) => return thread::sleep(Duration::from_secs(60)),
                        (Behaviour::Forbid, _) => plain("403 Forbidden").into_bytes(),
                        (Behaviour::Fail, _) => plain("503 Service Unavailable").into_bytes(),
                        (_, Err(_)) => plain("404 Not Found").into_bytes(),
                        (_, Ok(bytes)) => {
                            let mut answer = format!(
                                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nconnection: close\r\n\r\n",
                                bytes.len()
                            )
                            .into_bytes();
                            let cut = matches!(behaviour, Behaviour::CutOff) && name == WEIGHTS_FILE;
                            let end = if cut { bytes.len() / 2 } else { bytes.len() };
                            answer.extend_from_slice(&bytes[..end]);
                            answer
                        }
                    };
                    let _ = stream.write_all(&answer);
                });
            }
        });
        storage
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }
}
