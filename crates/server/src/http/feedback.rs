//! `/feedback`, on both ports: clients tell any pod, and pods tell each other on the inside.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::feedback::FeedbackRequest;

use super::body::{self, Media};
use super::request::{answered, open};
use super::{json_response, refusal_response};
use crate::app::App;

/// What a client says.
pub(super) async fn of_client(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    take(&app, request, true).await
}

/// What another pod was told of a prediction of this one.
pub(super) async fn of_pod(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    take(&app, request, false).await
}

async fn take(app: &App, request: Request, pass_on: bool) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let outcome = judge(app, &head.headers, &mut body, pass_on).await;
    let response = outcome.map(|json| json_response(StatusCode::OK, json));
    answered(&head.headers, &mut body, response, refusal_response).await
}

async fn judge(app: &App, headers: &HeaderMap, body: &mut Body, pass_on: bool) -> Result<Vec<u8>, Refusal> {
    let feedback = app.feedback.as_ref().ok_or_else(|| {
        Refusal::new(
            ErrorReason::NotFound,
            "this service takes no feedback; its InferenceService needs spec.feedback",
        )
    })?;
    open(app)?;
    let coding = body::check_headers(headers, body, Media::Json)?;
    let read = body::read(body, coding, &app.bodies).await?;
    let request = FeedbackRequest::parse(&read.bytes)?;
    drop(read);
    let outcomes = feedback.judge(request.judgements(), app, pass_on).await;
    Ok(request.answer(&outcomes))
}
