//! A tiny random BERT and sets it can learn.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flywheel_contract::hyperparameters::Hyperparameters;
use flywheel_contract::scalar::Precision;
use flywheel_data::EncodedSet;
use flywheel_learn::config::EncoderConfig;
use flywheel_learn::evaluate::Evaluation;
use flywheel_learn::network::SequenceClassifier;
use flywheel_learn::settings::Settings;
use flywheel_learn::train::{Epoch, Next, Observer, State, Step};
use flywheel_learn::{TextClassification, device};
use tch::Device;

pub const CLASSES: usize = 3;

/// libtorch's random numbers are the process's: tests that count on them take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    device::set_threads(1);
    guard
}

pub fn config() -> EncoderConfig {
    let json = serde_json::json!({
        "model_type": "bert", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 24, "type_vocab_size": 2, "initializer_range": 0.1
    });
    let serde_json::Value::Object(raw) = json else {
        panic!("no object")
    };
    EncoderConfig::from_json(raw, Path::new("tiny")).unwrap()
}

pub fn network(seed: i64, dropout: f64) -> SequenceClassifier {
    network_on(Device::Cpu, seed, dropout)
}

pub fn network_on(device: Device, seed: i64, dropout: f64) -> SequenceClassifier {
    SequenceClassifier::random(&config(), CLASSES, dropout, seed, device).unwrap()
}

pub fn tiny(seed: i64, dropout: f64) -> TextClassification {
    TextClassification::new(network(seed, dropout))
}

/// Rows whose tokens come from a range of their class; `shift` turns every label into another.
pub fn separable(rows: usize, shift: i64) -> EncodedSet {
    let mut set = EncodedSet::default();
    for i in 0..rows as i64 {
        let class = i % CLASSES as i64;
        let tokens = (0..2 + i % 9).map(|j| 10 + class * 16 + (i * 7 + j * 13) % 16);
        set.ids.push(std::iter::once(1).chain(tokens).chain([2]).collect());
        set.labels.push((class + shift) % CLASSES as i64);
    }
    set
}

pub fn hyperparameters() -> Hyperparameters {
    Hyperparameters {
        epochs: 5,
        batch_size: 8,
        learning_rate: "3e-3".into(),
        seed: 5,
        // The same on every processor.
        precision: Precision::Float32,
        ..Hyperparameters::default()
    }
}

pub fn settings() -> Settings {
    Settings::new(&hyperparameters()).unwrap()
}

/// Keeps what it sees; does at each event what its rule says.
pub struct Seen<F = fn(&Event) -> Next> {
    pub format: Option<Precision>,
    pub micro_batches: usize,
    pub steps: Vec<Step>,
    pub epochs: Vec<(u32, f64, Evaluation, bool)>,
    pub last: Vec<bool>,
    pub states: Vec<State<Evaluation>>,
    rule: F,
}

/// Where an observer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Step(u64),
    /// The validation after so many that are done.
    Validating(usize),
    Epoch(u32),
}

impl Seen {
    pub fn all() -> Self {
        Seen::with(|_| Next::GoOn)
    }
}

impl<F: Fn(&Event) -> Next> Seen<F> {
    pub fn with(rule: F) -> Self {
        Self {
            format: None,
            micro_batches: 0,
            steps: Vec::new(),
            epochs: Vec::new(),
            last: Vec::new(),
            states: Vec::new(),
            rule,
        }
    }
}

impl<F: Fn(&Event) -> Next> Observer<Evaluation> for Seen<F> {
    fn computes_in(&mut self, format: Precision) {
        self.format = Some(format);
    }

    fn micro_batch(&mut self) {
        self.micro_batches += 1;
    }

    fn step(&mut self, step: &Step) -> Next {
        self.steps.push(*step);
        (self.rule)(&Event::Step(step.step))
    }

    fn validating(&mut self) -> Next {
        (self.rule)(&Event::Validating(self.epochs.len()))
    }

    fn epoch(&mut self, epoch: &Epoch<'_, Evaluation>) -> Next {
        self.epochs
            .push((epoch.epoch, epoch.train_loss, *epoch.validation, epoch.best));
        self.last.push(epoch.last);
        (self.rule)(&Event::Epoch(epoch.epoch))
    }

    fn state(&mut self, state: State<Evaluation>) {
        self.states.push(state);
    }
}
