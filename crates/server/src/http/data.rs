//! The data port: `/predict`, `/feedback`, the Open Inference Protocol over HTTP and gRPC, `/readyz`, `/openapi.json`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use flywheel_contract::names::READYZ_PATH;
use flywheel_wire::feedback::FEEDBACK_PATH;
use flywheel_wire::openapi::OPENAPI_PATH;
use flywheel_wire::predict::PREDICT_PATH;

use super::{
    compress, feedback, grpc, infer, json_response, method_not_allowed, not_found, predict, refusal_response, request,
};
use crate::app::App;
use crate::traces;

pub(crate) fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        .route(PREDICT_PATH, post(predict::predict))
        .route(FEEDBACK_PATH, post(feedback::of_client))
        .route(READYZ_PATH, get(readyz))
        .route(OPENAPI_PATH, get(openapi))
        .merge(infer::router())
        .merge(grpc::router())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn(compress::compress));
    if app.traces.is_some() {
        router
            .layer(from_fn_with_state(Arc::clone(&app), traces::trace))
            .with_state(app)
    } else {
        router.with_state(app)
    }
}

async fn readyz(State(app): State<Arc<App>>) -> Response<Body> {
    match request::ready(&app) {
        Ok(()) => json_response(StatusCode::OK, r#"{"ready":true}"#),
        Err(refusal) => refusal_response(&refusal),
    }
}

async fn openapi(State(app): State<Arc<App>>) -> Response<Body> {
    json_response(StatusCode::OK, app.openapi.clone())
}
