//! What the two ports answer. The data port is for clients, the inside port for the operator and monitoring.

mod body;
mod compress;
mod data;
mod feedback;
mod grpc;
mod infer;
mod inside;
mod predict;
mod request;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode, Uri};
use flywheel_wire::error::{ErrorReason, Refusal};

pub(crate) use data::router as data_router;
pub(crate) use grpc::{code as grpc_code, is_grpc};
pub(crate) use inside::router as inside_router;
pub(crate) use request::span_above;

/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(crate) fn json_response(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

pub(crate) fn refusal_response(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, refusal.to_json());
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    response
}

/// A refusal in the shape of the protocol to which a path belongs.
fn refusal_at(uri: &Uri, refusal: &Refusal) -> Response<Body> {
    if infer::is_below(uri.path()) {
        infer::refusal(refusal)
    } else {
        refusal_response(refusal)
    }
}

async fn not_found(uri: Uri) -> Response<Body> {
    let refusal = Refusal::new(
        ErrorReason::NotFound,
        "nothing is served under this path; the data port has /predict, /v2, /readyz and /openapi.json",
    );
    refusal_at(&uri, &refusal)
}

async fn method_not_allowed(uri: Uri) -> Response<Body> {
    let refusal = Refusal::new(
        ErrorReason::MethodNotAllowed,
        "this path does not take this method; the header Allow says which it takes",
    );
    refusal_at(&uri, &refusal)
}
