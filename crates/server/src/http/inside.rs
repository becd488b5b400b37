//! The inside port: `/livez`, `/stats`, `/profile`, `/metrics`, which change nothing, and `/feedback`, by which pods count what
//! clients told another one.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use flywheel_contract::names::{LIVEZ_PATH, PROFILE_PATH, STATS_PATH};
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::feedback::FEEDBACK_PATH;
use serde::Serialize;

use super::{feedback, json_response, method_not_allowed, not_found, refusal_response};
use crate::app::App;

const METRICS_PATH: &str = "/metrics";
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(LIVEZ_PATH, get(livez))
        .route(STATS_PATH, get(stats))
        .route(PROFILE_PATH, get(profile))
        .route(FEEDBACK_PATH, post(feedback::of_pod))
        .route(METRICS_PATH, get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn livez(State(app): State<Arc<App>>) -> Response<Body> {
    if app.alive() {
        json_response(StatusCode::OK, r#"{"live":true}"#)
    } else {
        refusal_response(&Refusal::new(
            ErrorReason::InternalError,
            "a batch has been computed for longer than any may take; restart the container",
        ))
    }
}

async fn stats(State(app): State<Arc<App>>) -> Response<Body> {
    figures(&app.stats())
}

async fn profile(State(app): State<Arc<App>>) -> Response<Body> {
    match app.live_profiles().await {
        Some(profiles) => figures(&profiles),
        None => refusal_response(&Refusal::new(
            ErrorReason::InternalError,
            "a worker is held up while it writes its counts; ask again",
        )),
    }
}

fn figures(of: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(of) {
        Ok(json) => json_response(StatusCode::OK, json),
        Err(_) => refusal_response(&Refusal::new(
            ErrorReason::InternalError,
            "the figures cannot be written as JSON",
        )),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let mut response = Response::new(Body::from(app.metrics_text()));
    response.headers_mut().insert(CONTENT_TYPE, METRICS_TYPE);
    response
}
