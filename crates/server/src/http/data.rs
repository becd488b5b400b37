//! The data port: `/predict`, `/readyz`, `/openapi.json`.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use flywheel_contract::names::READYZ_PATH;
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::openapi::OPENAPI_PATH;
use flywheel_wire::predict::{PREDICT_PATH, PredictRequest, PredictResponse, Prediction};
use flywheel_wire::{request_id, request_timeout};

use super::{body, json_response, method_not_allowed, not_found, refusal_response};
use crate::app::{App, Phase};
use crate::versions::Version;

const REQUEST_ID: HeaderName = HeaderName::from_static(request_id::REQUEST_ID_HEADER);

const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static(request_timeout::REQUEST_TIMEOUT_HEADER);

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(PREDICT_PATH, post(predict))
        .route(READYZ_PATH, get(readyz))
        .route(OPENAPI_PATH, get(openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn readyz(State(app): State<Arc<App>>) -> Response<Body> {
    match app.phase() {
        Phase::Ready => json_response(StatusCode::OK, r#"{"ready":true}"#),
        phase => refusal_response(&unavailable(phase)),
    }
}

async fn openapi(State(app): State<Arc<App>>) -> Response<Body> {
    json_response(StatusCode::OK, app.openapi.clone())
}

fn unavailable(phase: Phase) -> Refusal {
    if phase >= Phase::Leaving {
        Refusal::new(
            ErrorReason::Draining,
            "this pod is ending; try again, another one answers",
        )
    } else {
        Refusal::new(ErrorReason::NotReady, "the model is being loaded; try again later")
    }
}

/// Counts a request for as long as it lives, also when its client goes.
struct Counted<'a>(&'a App);

impl<'a> Counted<'a> {
    fn new(app: &'a App) -> Self {
        app.requests.send_modify(|n| *n += 1);
        Self(app)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.requests.send_modify(|n| *n = n.saturating_sub(1));
    }
}

async fn predict(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    let start = Instant::now();
    let _counted = Counted::new(&app);
    let (head, mut body) = request.into_parts();
    let sent = head.headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
    let id = sent
        .and_then(request_id::accepted)
        .map_or_else(|| app.next_id(), str::to_owned);
    // One version for the whole request, whatever is exchanged meanwhile.
    let version = app.versions.answering();
    let mut response = match answer(&app, version.as_deref(), start, &head.headers, &mut body, &id).await {
        Ok(json) => json_response(StatusCode::OK, json),
        Err(refusal) => {
            let whole = body::discard(&head.headers, &mut body).await;
            let mut response = refusal_response(&refusal);
            if !whole || refusal.reason == ErrorReason::Draining {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (status, duration) = (response.status().as_u16(), start.elapsed());
    let name = version.map_or_else(|| app.versions.serve(), |version| version.name().to_owned());
    app.metrics.answered(&name, status, duration);
    tracing::debug!(request_id = id, status, seconds = duration.as_secs_f64(), "answered");
    response
}

/// When a client that came at `start` stops waiting, if it says so.
fn deadline(start: Instant, headers: &HeaderMap) -> Result<Option<Instant>, Refusal> {
    let mut times = headers.get_all(REQUEST_TIMEOUT).iter();
    let time = times
        .next()
        .map(|value| request_timeout::parse(value.as_bytes()))
        .transpose()?;
    if times.next().is_some() {
        return Err(Refusal::new(
            ErrorReason::MalformedRequest,
            format!("send {REQUEST_TIMEOUT} once"),
        ));
    }
    Ok(time.map(|time| start + time))
}

async fn answer(
    app: &App,
    version: Option<&Version>,
    start: Instant,
    headers: &HeaderMap,
    body: &mut Body,
    id: &str,
) -> Result<Vec<u8>, Refusal> {
    let phase = app.phase();
    // While leaving, requests still come from clients that have not heard of it.
    let version = match version {
        Some(version) if matches!(phase, Phase::Ready | Phase::Leaving) => version,
        _ => return Err(unavailable(phase)),
    };
    let deadline = deadline(start, headers)?;
    body::check_headers(headers, body)?;
    let read = body::read(body, &app.bodies).await?;
    let (texts, list) = PredictRequest::parse(&read.bytes)?.into_texts();
    drop(read);
    // As in training: what is not the same text to the tokenizer would not be the same text to the model.
    let texts = texts.iter().map(|text| flywheel_data::clean_text(text)).collect();
    let answers = version.engine.predict(texts, deadline).await?;
    let mut predictions = Vec::with_capacity(answers.len());
    for (index, probabilities) in answers.iter().enumerate() {
        let id = request_id::of_prediction(id, index, list);
        predictions.push(Prediction::new(
            version.engine.labels(),
            probabilities,
            version.name(),
            id,
        )?);
    }
    let json = match predictions.first() {
        Some(one) if !list => serde_json::to_vec(one),
        _ => serde_json::to_vec(&PredictResponse { predictions }),
    };
    json.map_err(|_| Refusal::new(ErrorReason::InternalError, "the answer cannot be written as JSON"))
}
