//! A pod on real sockets whose model does what the text says: slow, failing, panicking.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::INSIDE_PORT;
use flywheel_contract::profile::{Answer, DataProfile};
use flywheel_contract::scalar::{Device, Digest, Precision};
use flywheel_contract::serving::{
    Assignment, FeedbackSettings, ServedVersion, ServiceIdentity, ServingConfig, ServingLimits, Stats, TlsFiles,
};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_server::model::{Encode, LoadedVersion, Model};
use flywheel_server::{App, Listeners, Receipts, Server, Tls, own_address};
use flywheel_store::Limits;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::common::{self, get, predict, until};

/// First token: what the model does with the row.
const WORK: i64 = 1;
const SLEEP: i64 = 2;
const PANIC: i64 = 3;
const FAIL: i64 = 4;
const NAN: i64 = 5;

/// `sleep 50`, `panic`, `fail`, `nan`, or work; the number, or the text's length, is the second token.
struct Words;

impl Encode for Words {
    fn encode(&self, text: &str) -> Result<Vec<i64>, String> {
        let (word, number) = text.split_once(' ').unwrap_or((text, "0"));
        let number = number.parse().unwrap_or(0);
        Ok(match word {
            "sleep" => vec![SLEEP, number],
            "panic" => vec![PANIC, 0],
            "fail" => vec![FAIL, 0],
            "nan" => vec![NAN, 0],
            "refused" => return Err("no such token".to_owned()),
            "broken" => panic!("a fault in the tokenizer at {text:?}"),
            _ => vec![WORK, text.chars().count() as i64],
        })
    }
}

/// Token ids of a text.
pub fn row(text: &str) -> Vec<i64> {
    Words.encode(text).unwrap()
}

/// What the model says of a row that it computes: the longer the text, the surer of the second label.
pub fn answer(row: &[i64]) -> Answer {
    let length = row[1] as f32;
    let probabilities = match row[0] {
        SLEEP => vec![1.0, 0.0],
        NAN => vec![f32::NAN, 0.5],
        _ => vec![1.0 / (1.0 + length), length / (1.0 + length)],
    };
    Answer {
        probabilities,
        projections: Some([
            row[0] as f64,
            -row[1] as f64,
            (row[1] % 10) as f64,
            (row[1] as f64).sqrt(),
        ]),
    }
}

/// The version's data profile, empty.
pub fn profile() -> DataProfile {
    let of: Vec<_> = (1..200)
        .filter_map(|length| answer(&[WORK, length]).projections)
        .collect();
    DataProfile::new(2).with_projections(&of)
}

#[derive(Default)]
pub struct Seen {
    pub rows: AtomicUsize,
    pub largest: AtomicUsize,
    pub dead: AtomicBool,
}

struct Obedient(Arc<Seen>);

impl Model for Obedient {
    fn warm_up(&mut self) -> Result<(), Failure> {
        if self.0.dead.load(Ordering::Relaxed) {
            return Err(Failure::new(FailureReason::InternalError, "no kernel runs"));
        }
        Ok(())
    }

    fn predict(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Answer>, Failure> {
        self.0.rows.fetch_add(rows.len(), Ordering::Relaxed);
        self.0.largest.fetch_max(rows.len(), Ordering::Relaxed);
        rows.iter()
            .map(|row| match row[0] {
                PANIC => panic!("as asked"),
                FAIL => Err(Failure::new(FailureReason::InternalError, "as asked")),
                word => {
                    if word == SLEEP {
                        thread::sleep(Duration::from_millis(row[1] as u64));
                    }
                    Ok(answer(row))
                }
            })
            .collect()
    }
}

pub struct Pod {
    pub runtime: Runtime,
    pub server: Option<Server>,
    pub data: SocketAddr,
    pub inside: SocketAddr,
    pub seen: Arc<Seen>,
    pub app: Arc<App>,
    pub broken: tokio::sync::mpsc::Receiver<Failure>,
}

fn version() -> ServedVersion {
    ServedVersion {
        name: "intent-v7".to_owned(),
        artifact: ArtifactRef {
            uri: "file:///none".into(),
            digest: Digest::sha256(&"0".repeat(64)),
        },
    }
}

impl Pod {
    pub fn loading(max_concurrency: u32, timeout_milliseconds: u32) -> Self {
        Self::on("127.0.0.1:0", None, max_concurrency, timeout_milliseconds)
    }

    /// With this address of the data port, and with TLS where there is a certificate.
    pub fn on(data: &str, tls: Option<TlsFiles>, max_concurrency: u32, timeout_milliseconds: u32) -> Self {
        Self::with(
            (data, "127.0.0.1:0"),
            tls,
            None,
            (max_concurrency, timeout_milliseconds),
        )
    }

    /// Ready, with feedback, and reached by other pods under this address.
    pub fn taking_feedback(ip: &str, feedback: FeedbackSettings) -> Self {
        let addresses = (&*format!("{ip}:0"), &*format!("{ip}:{INSIDE_PORT}"));
        let pod = Self::with(addresses, None, Some(feedback), (256, 10_000));
        pod.install(1);
        pod
    }

    fn with(
        (data, inside): (&str, &str),
        tls: Option<TlsFiles>,
        feedback: Option<FeedbackSettings>,
        (max_concurrency, timeout_milliseconds): (u32, u32),
    ) -> Self {
        let config = ServingConfig {
            schema_version: flywheel_contract::SCHEMA_VERSION,
            service: ServiceIdentity {
                namespace: "team".to_owned(),
                name: "intent".to_owned(),
            },
            device: Device::Cpu,
            precision: Precision::Auto,
            storage: Default::default(),
            tls,
            feedback,
            limits: ServingLimits {
                max_concurrency,
                timeout_milliseconds,
            },
        };
        let runtime = Runtime::new().unwrap();
        let address = own_address(inside.parse().ok());
        let receipts = Receipts::open(&config, address, Limits::default());
        let receipts = runtime.block_on(receipts).unwrap();
        let (app, broken) = {
            let _runtime = runtime.enter();
            App::new(&config, None, None, receipts)
        };
        let version = version();
        app.follow(&Assignment {
            schema_version: flywheel_contract::SCHEMA_VERSION,
            generation: 1,
            serve: version.name.clone(),
            versions: vec![version],
            split: None,
            mirror: None,
            canary: None,
            cleared: Vec::new(),
            window_seconds: None,
            judged_since: None,
            trial: None,
        });
        let (data, inside, server) = runtime.block_on(async {
            let address = |text: &str| Some(text.parse().unwrap());
            let listeners = Listeners::bind(address(data), address(inside)).unwrap();
            let data = listeners.data.local_addr().unwrap();
            let inside = listeners.inside.local_addr().unwrap();
            let tls = match &config.tls {
                Some(files) => Some(Tls::load(files).await.unwrap()),
                None => None,
            };
            let server = Server::start(&app, listeners, tls.as_ref());
            if let Some(tls) = tls {
                tokio::spawn(async move { tls.follow().await });
            }
            (data, inside, server)
        });
        Self {
            runtime,
            server: Some(server),
            data,
            inside,
            seen: Arc::new(Seen::default()),
            app,
            broken,
        }
    }

    pub fn install(&self, workers: usize) {
        let loaded = LoadedVersion {
            labels: vec!["short".to_owned(), "long".to_owned()],
            encoder: Arc::new(Words),
            precision: Precision::Float32,
            agreement: None,
            likeness: None,
            profile: profile(),
            // Thirty-two rows of `Words`.
            batch_tokens: 64,
            models: (0..workers)
                .map(|_| Box::new(Obedient(Arc::clone(&self.seen))) as Box<dyn Model>)
                .collect(),
        };
        let installed = self.app.install(version(), loaded, Instant::now());
        self.runtime.block_on(installed).unwrap();
    }

    pub fn ready(max_concurrency: u32, timeout_milliseconds: u32, workers: usize) -> Self {
        let pod = Self::loading(max_concurrency, timeout_milliseconds);
        pod.install(workers);
        pod
    }

    pub fn stats(&self) -> Stats {
        serde_json::from_slice(&get(self.inside, "/stats").body).unwrap()
    }

    /// Sends a text from a thread of its own.
    pub fn send(&self, text: &str) -> thread::JoinHandle<common::Answer> {
        let (address, body) = (self.data, json!({"text": text}));
        thread::spawn(move || predict(address, &body))
    }

    pub fn busy_with(&self, texts: u32) {
        until("texts are in flight", || {
            (self.stats().in_flight == texts).then_some(())
        });
    }
}
