//! The Open Inference Protocol over HTTP: everything at and below `/v2`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use flywheel_wire::error::Refusal;
use flywheel_wire::infer::{self, Answers, InferRequest, InferResponse};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, Media};
use super::request::{self, Question, Served};
use super::{json_response, refusal_response};
use crate::app::App;

const HEADER_LENGTH: HeaderName = HeaderName::from_static(infer::HEADER_LENGTH_HEADER);
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

pub(super) fn router() -> Router<Arc<App>> {
    let at = |path: &str| format!("{}{path}", infer::SERVER_PATH);
    let mut router = Router::new()
        .route(infer::SERVER_PATH, get(server))
        .route(&at("/health/live"), get(live))
        .route(&at("/health/ready"), get(ready));
    for model in ["/models/{model}", "/models/{model}/versions/{version}"] {
        router = router
            .route(&at(model), get(metadata))
            .route(&at(&format!("{model}/ready")), get(model_ready))
            .route(&at(&format!("{model}/infer")), post(infer));
    }
    router
}

/// Whether a path belongs to the protocol.
pub(super) fn is_below(path: &str) -> bool {
    path.strip_prefix(infer::SERVER_PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A refusal in the protocol's shape.
pub(super) fn refusal(refusal: &Refusal) -> Response<Body> {
    let mut response = refusal_response(refusal);
    *response.body_mut() = Body::from(infer::error_body(refusal));
    response
}

fn answer(outcome: Result<Value, Refusal>) -> Response<Body> {
    match outcome {
        Ok(json) => json_response(StatusCode::OK, json.to_string()),
        Err(reason) => refusal(&reason),
    }
}

async fn server() -> Response<Body> {
    answer(Ok(infer::server_metadata(env!("CARGO_PKG_VERSION"))))
}

async fn live() -> Response<Body> {
    answer(Ok(json!({"live": true})))
}

async fn ready(State(app): State<Arc<App>>) -> Response<Body> {
    answer(request::ready(&app).map(|()| json!({"ready": true})))
}

/// Which model a path names.
#[derive(Deserialize)]
struct Target {
    model: String,
    version: Option<String>,
}

type TargetPath = Result<Path<Target>, PathRejection>;

impl Target {
    /// Model and version; what is none names no model.
    fn of(path: &TargetPath) -> (&str, &str) {
        let named = path.as_ref().ok();
        let version = named.and_then(|target| target.version.as_deref()).unwrap_or_default();
        (named.map_or("", |target| &target.model), version)
    }
}

async fn metadata(State(app): State<Arc<App>>, path: TargetPath) -> Response<Body> {
    let served = Served::now(&app, &HeaderMap::new());
    answer(served.and_then(|served| {
        let (model, version) = Target::of(&path);
        let served = served.named(model, version)?;
        Ok(infer::model_metadata(
            &app.service.name,
            served.version(),
            served.labels(),
        ))
    }))
}

async fn model_ready(State(app): State<Arc<App>>, path: TargetPath) -> Response<Body> {
    let served = Served::now(&app, &HeaderMap::new());
    answer(served.and_then(|served| {
        let (model, version) = Target::of(&path);
        served.named(model, version)?;
        request::ready(&app)?;
        Ok(json!({"name": app.service.name, "ready": true}))
    }))
}

async fn infer(State(app): State<Arc<App>>, path: TargetPath, request: Request) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let question = Question::new(&app, &head.headers);
    let outcome = respond(&app, &path, &question, &head.headers, &mut body).await;
    question.answer(&head.headers, &mut body, outcome, refusal).await
}

async fn respond(
    app: &App,
    path: &TargetPath,
    question: &Question<'_>,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Response<Body>, Refusal> {
    let (model, version) = Target::of(path);
    let served = question.name(model, version)?;
    let deadline = question.deadline(headers)?;
    let coding = body::check_headers(headers, body, Media::Tensors)?;
    let length = request::once(headers, &HEADER_LENGTH, infer::header_length)?;
    let read = body::read(body, coding, &app.bodies).await?;
    let request = InferRequest::parse(&read.bytes, length)?;
    drop(read);
    request.is_for(&app.service.name)?;
    let rows = served.classify(&request.texts, deadline).await?;
    let answers = Answers::new(served.labels(), &rows)?;
    let id = request.id.as_deref().unwrap_or(&question.id);
    let answer = InferResponse::new(&request.outputs, &app.service.name, served.version(), id, &answers)?;
    let mut response = json_response(StatusCode::OK, answer.body);
    if let Some(length) = answer.header_length {
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
        response.headers_mut().insert(CONTENT_TYPE, OCTETS);
    }
    Ok(response)
}
