//! The operator's own port: `/livez`, `/readyz`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::context::Context;

/// How long a loop may go without a sign of life before the kubelet is told to restart the process. Loops beat every few
/// seconds; a reconcile ends after 20 s.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(60);
/// How often a loop that has nothing to do beats.
pub const BEAT: Duration = Duration::from_secs(5);

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
///
/// # Errors
/// The server ended by itself.
pub async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    beats: Beats,
    ready: tokio::sync::watch::Receiver<bool>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<(), std::io::Error> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { context, beats, ready });
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
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
    use super::*;

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
