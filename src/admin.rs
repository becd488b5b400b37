//! The operator's own port: `/livez`, `/readyz`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::context::Context;

/// How long a loop may go without a sign of life before the kubelet is told to restart the process. Loops beat every few
/// seconds; a reconcile ends after 20 s.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(60);
/// How often a loop that has nothing to do beats.
pub const BEAT: Duration = Duration::from_secs(5);

/// Most connections at once: a few each for the kubelet and for whoever reads the metrics. Others wait to be accepted.
const CONNECTIONS: usize = 64;
/// Longest wait for the head of a request, after which its connection is closed.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Longest life of a connection, so that an answer that nobody reads ends, too.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// Wait after a connection that the system could not give us, for want of descriptors most likely.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Signs of life of the process's loops.
#[derive(Clone, Debug, Default)]
pub struct Beats {
    last: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Beats {
    /// This loop is alive. The first beat announces it: from then on it must go on.
    pub fn beat(&self, name: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.get_mut(name) {
            Some(at) => *at = Instant::now(),
            None => {
                last.insert(name.to_owned(), Instant::now());
            }
        }
    }

    /// This loop ended as it should, and is no longer waited for.
    pub fn ended(&self, name: &str) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Loops that have been silent for longer than [`LIVENESS_LIMIT`].
    #[must_use]
    pub fn silent(&self, now: Instant) -> Vec<String> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|(_, at)| now.saturating_duration_since(**at) > LIVENESS_LIMIT)
            .map(|(name, _)| name.clone())
            .collect()
    }
}

#[derive(Clone)]
struct Admin {
    context: Arc<Context>,
    beats: Beats,
    ready: tokio::sync::watch::Receiver<bool>,
}

/// Serves the admin port until `stop` is told.
pub async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    beats: Beats,
    ready: tokio::sync::watch::Receiver<bool>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { context, beats, ready });
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= CONNECTIONS;
        let accepted = tokio::select! {
            accepted = listener.accept(), if !full => accepted,
            Some(_) = connections.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin port was not accepted");
                tokio::time::sleep(ACCEPT_DELAY).await;
                continue;
            }
        };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        connections.spawn(tokio::time::timeout(CONNECTION_LIMIT, connection));
    }
}

async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    let silent = admin.beats.silent(Instant::now());
    if silent.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!(
                "no sign of life for {} s from: {}\n",
                LIVENESS_LIMIT.as_secs(),
                silent.join(", ")
            ),
        )
    }
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    if *admin.ready.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are being filled\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.context.metrics.encode(&admin.context.caches.sizes()) {
        Ok(text) => (
            StatusCode::OK,
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("{error}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::Scenario;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn who_asks_nothing_does_not_keep_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, _scenario) = Scenario::start(Vec::new());
        let context = Arc::new(Context::test(client, jiff::Timestamp::UNIX_EPOCH));
        let (_ready, is_ready) = tokio::sync::watch::channel(true);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let server = tokio::spawn(serve(listener, context, Beats::default(), is_ready, stopped));

        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let ask = async {
            let mut asking = TcpStream::connect(address).await.unwrap();
            asking
                .write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            asking.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(HEAD_LIMIT * 3, ask).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        for mut socket in idle {
            let end = tokio::time::timeout(HEAD_LIMIT * 3, socket.read(&mut [0; 16])).await;
            assert_eq!(end.expect("it is closed").unwrap(), 0);
        }
        stop.send_replace(true);
        tokio::time::timeout(HEAD_LIMIT, server).await.unwrap().unwrap();
    }

    #[test]
    fn a_loop_that_falls_silent_is_named() {
        let beats = Beats::default();
        beats.beat("watch pods");
        beats.beat("controller");
        let now = Instant::now();
        assert!(beats.silent(now).is_empty());
        beats.ended("controller");
        let later = now + LIVENESS_LIMIT + Duration::from_secs(1);
        assert_eq!(beats.silent(later), ["watch pods"]);
    }
}
