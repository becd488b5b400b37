//! Load that does not wait for answers: requests are due at instants that were drawn before, as those of many independent
//! clients are, and each is timed from the instant at which it was due. A server that stalls is thereby charged for all that
//! should have come meanwhile ("coordinated omission" is what a loop that waits for each answer would commit).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Longest answer that is read, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// What is sent, where, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub address: SocketAddr,
    /// Path of the requests, each a POST of JSON.
    pub path: String,
    /// Bodies, sent in turn; at least one.
    pub bodies: Vec<Bytes>,
    /// Requests per second on average; gaps between them are exponential.
    pub rate: f64,
    /// How long requests are due.
    pub duration: Duration,
    /// Most connections at once, kept alive; a request that is due while all are busy waits, and that counts.
    pub connections: usize,
    /// How long after it was due a request is given up.
    pub patience: Duration,
    /// Of the gaps.
    pub seed: u64,
}

/// How one request ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Place of its body in the plan.
    pub body: usize,
    /// When it was due, after the start.
    pub due: Duration,
    /// From then to its whole answer, or to its failure.
    pub latency: Duration,
    /// Status and body of the answer, or why there is none.
    pub answer: Result<(StatusCode, Bytes), String>,
}

impl Outcome {
    /// Whether it was answered 200.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self.answer, Ok((StatusCode::OK, _)))
    }
}

/// Connections that wait for a request.
#[derive(Default)]
struct Idle(Mutex<Vec<SendRequest<Full<Bytes>>>>);

impl Idle {
    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn put(&self, connection: SendRequest<Full<Bytes>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

/// Sends all of a plan's requests; each outcome is handed over as it comes, in no order. Must run on one thread's runtime or
/// more, with time enabled.
pub async fn run(plan: Plan, mut each: impl FnMut(Outcome)) {
    let plan = Arc::new(plan);
    let (idle, places) = (Arc::new(Idle::default()), Arc::new(Semaphore::new(plan.connections)));
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let start = Instant::now();
    let sending = {
        let plan = Arc::clone(&plan);
        async move {
            let mut gaps = ChaCha8Rng::seed_from_u64(plan.seed);
            let mut due = Duration::ZERO;
            for body in (0..plan.bodies.len()).cycle() {
                // In (0, 1]: the logarithm must stay finite.
                let uniform = 1.0 - gaps.random::<f64>();
                due += Duration::from_secs_f64(-uniform.ln() / plan.rate);
                if due >= plan.duration {
                    break;
                }
                sleep_until(start + due).await;
                let (plan, idle, places, sender) = (
                    Arc::clone(&plan),
                    Arc::clone(&idle),
                    Arc::clone(&places),
                    sender.clone(),
                );
                tokio::spawn(async move {
                    let limit = start + due + plan.patience;
                    let answer = timeout_at(limit, send(&plan, body, &idle, &places))
                        .await
                        .unwrap_or_else(|_| Err("no answer in time".to_owned()));
                    // Whoever runs the plan may have gone.
                    let _ = sender.send(Outcome {
                        body,
                        due,
                        latency: start.elapsed().saturating_sub(due),
                        answer,
                    });
                });
            }
        }
    };
    let receiving = async {
        while let Some(outcome) = outcomes.recv().await {
            each(outcome);
        }
    };
    tokio::join!(sending, receiving);
}

async fn send(plan: &Plan, body: usize, idle: &Idle, places: &Semaphore) -> Result<(StatusCode, Bytes), String> {
    let _place = places.acquire().await.map_err(|e| e.to_string())?;
    let mut connection = match idle.take() {
        Some(connection) => connection,
        None => connect(plan.address).await?,
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri(&plan.path)
        .header(HOST, plan.address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(plan.bodies.get(body).cloned().unwrap_or_default()))
        .map_err(|e| e.to_string())?;
    let response = connection
        .send_request(request)
        .await
        .map_err(|e| format!("sending: {e}"))?;
    let status = response.status();
    let closes = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let answer = answer.map_err(|e| format!("reading: {e}"))?.to_bytes();
    if !closes && connection.ready().await.is_ok() {
        idle.put(connection);
    }
    Ok((status, answer))
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| format!("connecting: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("connecting: {e}"))?;
    // Its end shows at the next request.
    tokio::spawn(connection);
    Ok(sender)
}

/// Figures of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Requests that were due.
    pub offered: usize,
    /// Answers by status, and requests without an answer as 0.
    pub statuses: std::collections::BTreeMap<u16, usize>,
    /// Share of all that were answered 200 within the objective.
    pub within: f64,
    /// Answers 200 within the objective, per second.
    pub goodput: f64,
    /// Milliseconds from due to answered 200: median, 90th, 99th percentile, slowest.
    pub milliseconds: [f64; 4],
    /// Slowest answer 429, milliseconds from due.
    pub slowest_refusal: Option<f64>,
    /// The first reason for a request without an answer.
    pub failure: Option<String>,
}

/// Sums outcomes up. `objective`: the latency that an answer must keep to be of use.
#[must_use]
pub fn summary(outcomes: &[Outcome], duration: Duration, objective: Duration) -> Summary {
    let milliseconds = |latency: Duration| latency.as_secs_f64() * 1000.0;
    let mut answered: Vec<Duration> = outcomes.iter().filter(|o| o.is_ok()).map(|o| o.latency).collect();
    answered.sort_unstable();
    // Nearest rank.
    let percentile = |p: usize| {
        let rank = (answered.len() * p).div_ceil(100).max(1);
        answered.get(rank - 1).copied().map_or(0.0, milliseconds)
    };
    let mut statuses = std::collections::BTreeMap::new();
    for outcome in outcomes {
        let status = outcome.answer.as_ref().map_or(0, |(status, _)| status.as_u16());
        *statuses.entry(status).or_default() += 1;
    }
    let within = answered.iter().filter(|latency| **latency <= objective).count();
    let refused = outcomes
        .iter()
        .filter(|o| matches!(o.answer, Ok((StatusCode::TOO_MANY_REQUESTS, _))));
    Summary {
        offered: outcomes.len(),
        statuses,
        within: within as f64 / outcomes.len().max(1) as f64,
        goodput: within as f64 / duration.as_secs_f64(),
        milliseconds: [percentile(50), percentile(90), percentile(99), percentile(100)],
        slowest_refusal: refused.map(|o| o.latency).max().map(milliseconds),
        failure: outcomes.iter().find_map(|o| o.answer.as_ref().err().cloned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::post;
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;

    fn plan(address: SocketAddr) -> Plan {
        Plan {
            address,
            path: "/".to_owned(),
            bodies: vec![Bytes::from_static(b"0"), Bytes::from_static(b"1")],
            rate: 200.0,
            duration: Duration::from_secs(1),
            connections: 4,
            patience: Duration::from_secs(10),
            seed: 7,
        }
    }

    async fn outcomes(plan: Plan, router: Router) -> Vec<Outcome> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let mut outcomes = Vec::new();
        run(Plan { address, ..plan }, |outcome| outcomes.push(outcome)).await;
        server.abort();
        outcomes
    }

    const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[tokio::test(flavor = "multi_thread")]
    async fn all_that_is_due_is_sent_and_told() {
        let echo = Router::new().route("/", post(|body: String| async move { body }));
        let outcomes = outcomes(plan(NOWHERE), echo).await;
        // Poisson: 200 within six deviations.
        assert!((115..=285).contains(&outcomes.len()), "{}", outcomes.len());
        for outcome in &outcomes {
            let (status, body) = outcome.answer.as_ref().unwrap();
            assert_eq!(
                (*status, body.as_ref()),
                (StatusCode::OK, outcome.body.to_string().as_bytes())
            );
        }
    }

    /// A server that stands still once is charged for all that was due meanwhile, not for the one request that it held.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stall_is_charged_to_all_that_were_due() {
        let seen = Arc::new(AtomicUsize::new(0));
        let stall = Arc::new(tokio::sync::Mutex::new(()));
        let router = Router::new().route(
            "/",
            post(move || {
                let (seen, stall) = (Arc::clone(&seen), Arc::clone(&stall));
                async move {
                    let _turn = stall.lock().await;
                    if seen.fetch_add(1, Ordering::Relaxed) == 20 {
                        sleep(Duration::from_millis(500)).await;
                    }
                }
            }),
        );
        let outcomes = outcomes(plan(NOWHERE), router).await;
        let late = outcomes
            .iter()
            .filter(|o| o.latency > Duration::from_millis(100))
            .count();
        // Four fifths of half a second at 200 a second, roughly; four connections alone would give four.
        assert!(late > 40, "{late}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_is_not_there_and_one_that_refuses_are_told_apart() {
        let gone = Plan {
            duration: Duration::from_millis(200),
            ..plan(NOWHERE)
        };
        let mut seen = Vec::new();
        run(gone.clone(), |outcome| seen.push(outcome)).await;
        let figures = summary(&seen, gone.duration, Duration::from_millis(200));
        assert_eq!(figures.statuses.get(&0), Some(&seen.len()));
        assert!(figures.failure.unwrap().starts_with("connecting"), "{:?}", seen.first());

        let full = Router::new().route("/", post(|| async { StatusCode::TOO_MANY_REQUESTS }));
        let seen = outcomes(gone, full).await;
        let figures = summary(&seen, Duration::from_millis(200), Duration::from_millis(200));
        assert_eq!(figures.statuses.get(&429), Some(&seen.len()));
        assert_eq!((figures.within, figures.goodput), (0.0, 0.0));
        assert!(figures.slowest_refusal.is_some() && figures.failure.is_none());
    }

    #[test]
    fn figures_are_those_of_the_outcomes() {
        let outcome = |milliseconds: u64, status: StatusCode| Outcome {
            body: 0,
            due: Duration::ZERO,
            latency: Duration::from_millis(milliseconds),
            answer: Ok((status, Bytes::new())),
        };
        let mut outcomes: Vec<Outcome> = (1..=100).map(|n| outcome(n, StatusCode::OK)).collect();
        outcomes.push(outcome(7, StatusCode::TOO_MANY_REQUESTS));
        let figures = summary(&outcomes, Duration::from_secs(2), Duration::from_millis(50));
        assert_eq!(figures.milliseconds, [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(
            (figures.offered, figures.goodput, figures.slowest_refusal),
            (101, 25.0, Some(7.0))
        );
        assert!((figures.within - 50.0 / 101.0).abs() < 1e-9);
    }
}
