//! `/progress` and `/metrics` on the inside port.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::PROGRESS_PATH;
use tokio::net::TcpListener;

use crate::tracker::Tracker;

/// Path of Prometheus' text format.
const METRICS_PATH: &str = "/metrics";

/// Takes the address.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let failure = |e: std::io::Error| {
        Failure::new(
            FailureReason::InternalError,
            format!("cannot listen on {address}: {e}; choose another address with --listen"),
        )
    };
    let listener = TcpListener::bind(address).await.map_err(failure)?;
    let address = listener.local_addr().map_err(failure)?;
    tracing::info!(%address, "serving {PROGRESS_PATH} and {METRICS_PATH}");
    Ok(listener)
}

/// Serves until aborted.
pub(crate) async fn serve(listener: TcpListener, tracker: Arc<Tracker>) {
    let router = Router::new()
        .route(
            PROGRESS_PATH,
            get(|State(tracker): State<Arc<Tracker>>| async move { axum::Json(tracker.progress()) }),
        )
        .route(
            METRICS_PATH,
            get(|State(tracker): State<Arc<Tracker>>| async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(CONTENT_TYPE, kind)], tracker.metrics()).into_response()
            }),
        )
        .with_state(tracker);
    if let Err(e) = axum::serve(listener, router).await {
        tracing::warn!(error = %e, "progress is no longer served");
    }
}
