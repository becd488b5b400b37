//! `/predict`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::predict::{PredictRequest, PredictResponse, Prediction};

use super::body::{self, Media};
use super::request::Question;
use super::{json_response, refusal_response};
use crate::app::App;

pub(super) async fn predict(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let question = Question::new(&app, &head.headers);
    let outcome = answer(&app, &question, &head.headers, &mut body).await;
    let response = outcome.map(|json| json_response(StatusCode::OK, json));
    question
        .answer(&head.headers, &mut body, response, refusal_response)
        .await
}

async fn answer(app: &App, question: &Question<'_>, headers: &HeaderMap, body: &mut Body) -> Result<Vec<u8>, Refusal> {
    let served = question.served()?;
    let deadline = question.deadline(headers)?;
    let coding = body::check_headers(headers, body, Media::Json)?;
    let read = body::read(body, coding, &app.bodies).await?;
    let (texts, list) = PredictRequest::parse(&read.bytes)?.into_texts();
    drop(read);
    let answers = served.classify(&texts, deadline).await?;
    let mut predictions = Vec::with_capacity(answers.len());
    for (index, (text, probabilities)) in texts.iter().zip(&answers).enumerate() {
        let id = served.prediction_id(&question.id, (index, list), text, probabilities);
        predictions.push(Prediction::new(served.labels(), probabilities, served.version(), id)?);
    }
    let json = match predictions.first() {
        Some(one) if !list => serde_json::to_vec(one),
        _ => serde_json::to_vec(&PredictResponse { predictions }),
    };
    json.map_err(|_| Refusal::new(ErrorReason::InternalError, "the answer cannot be written as JSON"))
}
