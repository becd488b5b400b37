//! What the pods of fake nodes say, for `make bench-scale`: one server for all their addresses.
//!
//! `fake_pods <version> <digest>`: every pod answers `/stats` as a server does that serves this version and `/progress` as a
//! trainer, and what they tell grows at a steady rate. `POST /attempts` with `{"<address>": <attempt>}` says which attempt
//! the trainer at an address is of, where it is not the first.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::names::{INSIDE_PORT, PROGRESS_PATH, STATS_PATH};
use flywheel_contract::progress::{CheckpointProgress, Phase, Progress, TrackingProgress};
use flywheel_contract::scalar::{Digest, Precision};
use flywheel_contract::serving::{LATENCY_BOUNDS, Load, LoadState, Stats, VersionStats};
use http::HeaderMap;
use http::header::HOST;
use tokio::net::TcpListener;

type Fault = Box<dyn std::error::Error>;

/// A pod follows whatever it is assigned: no assignment's generation, which are milliseconds, is higher.
const FOLLOWS: u64 = u64::MAX;
/// Requests a second to each serving pod, and seconds that each takes.
const RATE: f64 = 5.0;
const LATENCY: f64 = 0.02;
/// Steps a second of each trainer, and their number: more than a benchmark lasts.
const STEPS: f64 = 10.0;
const TOTAL_STEPS: u64 = 10_000_000;
/// Steps between two checkpoints: one a minute.
const CHECKPOINT_STEPS: u64 = 600;
const FIRST_ATTEMPT: u32 = 1;

struct Pods {
    /// When each was asked first, from when on it counts: as if it had started then.
    started: Mutex<HashMap<IpAddr, Instant>>,
    version: String,
    digest: Digest,
    attempts: RwLock<HashMap<IpAddr, u32>>,
}

impl Pods {
    /// Seconds for which the pod at this address has run.
    fn seconds(&self, address: Option<IpAddr>) -> f64 {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        address.map_or(0.0, |address| {
            let started = started.entry(address).or_insert_with(Instant::now);
            started.elapsed().as_secs_f64()
        })
    }
}

async fn stats(State(pods): State<Arc<Pods>>, headers: HeaderMap) -> Json<Stats> {
    let seconds = pods.seconds(asked(&headers));
    // Whole requests: a count does not wait for the end of one.
    let requests = (seconds * RATE) as u64;
    let worked = requests as f64 * LATENCY;
    let mut load = Load {
        requests,
        in_flight_seconds: worked,
        busy_seconds: worked,
        workers: 1,
        ..Load::default()
    };
    let class = LATENCY_BOUNDS.iter().position(|bound| LATENCY <= *bound);
    if let Some(count) = class.and_then(|class| load.latency.get_mut(class)) {
        *count = requests;
    }
    Json(Stats {
        schema_version: SCHEMA_VERSION,
        ready: true,
        generation: FOLLOWS,
        serving: Some(pods.version.clone()),
        versions: vec![VersionStats {
            name: pods.version.clone(),
            digest: pods.digest.clone(),
            state: LoadState::Ready,
            precision: Some(Precision::Float32),
            agreement: None,
            likeness: None,
            labels: None,
            failure: None,
            crash: None,
            figures: None,
            copies: None,
        }],
        answered: [requests, 0, 0],
        in_flight: 0,
        uptime_seconds: seconds,
        load: Some(load),
    })
}

/// The address that was asked.
fn asked(headers: &HeaderMap) -> Option<IpAddr> {
    let (address, _) = headers.get(HOST)?.to_str().ok()?.rsplit_once(':')?;
    address.parse().ok()
}

async fn progress(State(pods): State<Arc<Pods>>, headers: HeaderMap) -> Json<Progress> {
    let attempts = pods.attempts.read().unwrap_or_else(PoisonError::into_inner);
    let address = asked(&headers);
    let attempt = address.and_then(|address| attempts.get(&address).copied());
    let seconds = pods.seconds(address);
    let step = (seconds * STEPS) as u64;
    Json(Progress {
        schema_version: SCHEMA_VERSION,
        attempt: attempt.unwrap_or(FIRST_ATTEMPT),
        phase: Phase::Training,
        phase_seconds: seconds,
        step,
        total_steps: TOTAL_STEPS,
        epoch: 1,
        total_epochs: 1,
        loss: Some(0.5),
        learning_rate: Some(2e-5),
        examples_per_second: Some(16.0 * STEPS),
        eta_seconds: Some(((TOTAL_STEPS - step) as f64 / STEPS) as u64),
        precision: Some(Precision::Float32),
        validation_accuracy: None,
        heartbeat_seconds: Some(0.0),
        median_pass_seconds: Some(1.0 / STEPS),
        resumed_from_step: None,
        checkpoint: CheckpointProgress {
            step: Some(step / CHECKPOINT_STEPS * CHECKPOINT_STEPS),
            age_seconds: Some((step % CHECKPOINT_STEPS) as f64 / STEPS),
            ..CheckpointProgress::default()
        },
        dataset: None,
        grad_norm: Some(1.0),
        evaluations: Vec::new(),
        tracking: TrackingProgress::default(),
    })
}

async fn attempts(State(pods): State<Arc<Pods>>, Json(told): Json<HashMap<IpAddr, u32>>) {
    let mut attempts = pods.attempts.write().unwrap_or_else(PoisonError::into_inner);
    attempts.extend(told);
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let mut arguments = std::env::args().skip(1);
    let (Some(version), Some(digest)) = (arguments.next(), arguments.next()) else {
        return Err("usage: fake_pods <version> <digest>".into());
    };
    let pods = Arc::new(Pods {
        started: Mutex::default(),
        version,
        digest: serde_json::from_value(digest.into())?,
        attempts: RwLock::default(),
    });
    let router = Router::new()
        .route(STATS_PATH, get(stats))
        .route(PROGRESS_PATH, get(progress))
        .route("/attempts", post(attempts))
        .with_state(pods);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, INSIDE_PORT)).await?;
    axum::serve(listener, router).await?;
    Ok(())
}
