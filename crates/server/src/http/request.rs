//! What every question to the model has in common, whatever its protocol: it is counted, has an id and a deadline, and
//! takes the version that answers once, at its beginning.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response};
use flywheel_contract::profile::most_probable;
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::experiment::EXPERIMENT_KEY_HEADER;
use flywheel_wire::{request_id, request_timeout, trace_context};

use super::body;
use crate::app::{App, Phase};
use crate::traces::AnsweredBy;
use crate::versions::{Answering, Version};

const REQUEST_ID: HeaderName = HeaderName::from_static(request_id::REQUEST_ID_HEADER);
const EXPERIMENT_KEY: HeaderName = HeaderName::from_static(EXPERIMENT_KEY_HEADER);
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static(request_timeout::REQUEST_TIMEOUT_HEADER);
const TRACEPARENT: HeaderName = HeaderName::from_static(trace_context::TRACEPARENT_HEADER);

/// The span that a request names above its own; two of them are as good as none.
pub(crate) fn span_above(headers: &HeaderMap) -> Option<trace_context::Parent<'_>> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let parent = trace_context::parse(values.next()?.as_bytes())?;
    values.next().is_none().then_some(parent)
}

/// Why this pod does not answer now.
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

/// What is read of a header that may come once.
///
/// # Errors
/// What reading says; [`ErrorReason::MalformedRequest`] for a second one.
pub(super) fn once<'h, T>(
    headers: &'h HeaderMap,
    name: &HeaderName,
    read: impl FnOnce(&'h [u8]) -> Result<T, Refusal>,
) -> Result<Option<T>, Refusal> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let value = values.next().map(read).transpose()?;
    if values.next().is_some() {
        return Err(Refusal::new(ErrorReason::MalformedRequest, format!("send {name} once")));
    }
    Ok(value)
}

/// Whether this pod is ready.
///
/// # Errors
/// [`unavailable`].
pub(super) fn ready(app: &App) -> Result<(), Refusal> {
    match app.phase() {
        Phase::Ready => Ok(()),
        phase => Err(unavailable(phase)),
    }
}

/// Whether this pod answers: it is ready, or leaves and still does.
///
/// # Errors
/// [`unavailable`].
pub(super) fn open(app: &App) -> Result<(), Refusal> {
    match app.phase() {
        // While leaving, requests still come from clients that have not heard of it.
        Phase::Ready | Phase::Leaving => Ok(()),
        phase => Err(unavailable(phase)),
    }
}

/// The answer, or the refusal once what is left of the body is read.
pub(super) async fn answered(
    headers: &HeaderMap,
    body: &mut Body,
    outcome: Result<Response<Body>, Refusal>,
    refuse: fn(&Refusal) -> Response<Body>,
) -> Response<Body> {
    match outcome {
        Ok(response) => response,
        Err(refusal) => {
            let whole = body::discard(headers, body).await;
            let mut response = refuse(&refusal);
            if !whole || refusal.reason == ErrorReason::Draining {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    }
}

/// The version that answers a question, the same from its beginning to its end, whatever is exchanged meanwhile.
pub(super) struct Served<'a> {
    app: &'a App,
    answering: Arc<Answering>,
    version: Arc<Version>,
    /// The question's place among all.
    place: u64,
}

impl<'a> Served<'a> {
    /// The version of the moment for a question with this head.
    ///
    /// # Errors
    /// [`unavailable`]; [`ErrorReason::MalformedRequest`] for two keys.
    pub fn now(app: &'a App, headers: &HeaderMap) -> Result<Self, Refusal> {
        open(app)?;
        let answering = app.versions.answering();
        let answering = answering.ok_or_else(|| unavailable(app.phase()))?;
        let key = once(headers, &EXPERIMENT_KEY, Ok)?.filter(|key| !key.is_empty());
        let place = app.next_place();
        let version = Arc::clone(answering.pick(key, place));
        Ok(Self {
            app,
            answering,
            version,
            place,
        })
    }

    /// Name of its ModelVersion.
    pub fn version(&self) -> &str {
        self.version.name()
    }

    /// The one that a client names, where that answers as well; an empty version is any.
    ///
    /// # Errors
    /// [`ErrorReason::NotFound`].
    pub fn named(&self, model: &str, version: &str) -> Result<Self, Refusal> {
        let named = match version {
            _ if model != self.app.service.name => None,
            "" => Some(&self.version),
            name => self.answering.named(name),
        };
        let version = named.ok_or_else(|| {
            Refusal::new(
                ErrorReason::NotFound,
                "there is no such model or version here; the model has the name of the InferenceService, the version that of \
                 the ModelVersion",
            )
        })?;
        Ok(Self {
            app: self.app,
            answering: Arc::clone(&self.answering),
            version: Arc::clone(version),
            place: self.place,
        })
    }

    /// Labels by class index.
    pub fn labels(&self) -> &[String] {
        self.version.engine.labels()
    }

    /// Id of a prediction in the answer to the request with this id: a receipt where clients can say something of it.
    pub fn prediction_id(
        &self,
        request: &str,
        (index, list): (usize, bool),
        text: &str,
        probabilities: &[f32],
    ) -> String {
        match &self.app.feedback {
            Some(feedback) => feedback.receipt(&self.version, probabilities, text),
            None => request_id::of_prediction(request, index, list),
        }
    }

    /// Probabilities for each text.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::predict`].
    pub async fn classify(&self, texts: &[String], deadline: Option<Instant>) -> Result<Vec<Vec<f32>>, Refusal> {
        // As in training: what is not the same text to the tokenizer would not be the same text to the model.
        let texts: Vec<String> = texts.iter().map(|text| flywheel_data::clean_text(text)).collect();
        let Some(mirror) = self.answering.mirrors(self.place) else {
            return self.version.engine.predict(texts, deadline).await;
        };
        let begun = Instant::now();
        let answers = self.version.engine.predict(texts.clone(), deadline).await?;
        let took = begun.elapsed();
        let label = |answer: &Vec<f32>| {
            let class = most_probable(answer).map(|(class, _)| class);
            class
                .and_then(|class| self.labels().get(class))
                .cloned()
                .unwrap_or_default()
        };
        let labels = answers.iter().map(label).collect();
        self.app.copies.send(mirror, &self.version, texts, labels, took);
        Ok(answers)
    }
}

/// One question, from its head to its answer. Counts as being answered for as long as it lives, also when its client goes.
pub(super) struct Question<'a> {
    app: &'a App,
    /// The client's id, or one that was made.
    pub id: String,
    /// When its head was there.
    pub start: Instant,
    /// The trace that it belongs to, for the log.
    trace: Option<String>,
    /// What answers it, or why nothing does.
    served: Result<Served<'a>, Refusal>,
    /// The one of these that the client names.
    named: OnceLock<Served<'a>>,
    /// With which status of HTTP it was answered.
    status: Option<u16>,
}

impl<'a> Question<'a> {
    /// Begins with its head.
    pub fn new(app: &'a App, headers: &HeaderMap) -> Self {
        app.requests.send_modify(|n| *n += 1);
        app.metrics.demand.begin();
        let sent = headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
        Self {
            app,
            id: sent
                .and_then(request_id::accepted)
                .map_or_else(|| app.next_id(), str::to_owned),
            start: Instant::now(),
            trace: span_above(headers).map(|parent| parent.trace.to_owned()),
            served: Served::now(app, headers),
            named: OnceLock::new(),
            status: None,
        }
    }

    /// What answers it.
    ///
    /// # Errors
    /// [`unavailable`].
    pub fn served(&self) -> Result<&Served<'a>, Refusal> {
        match self.named.get() {
            Some(named) => Ok(named),
            None => self.served.as_ref().map_err(Clone::clone),
        }
    }

    /// Is answered by the version that the client names from now on.
    ///
    /// # Errors
    /// [`unavailable`], [`ErrorReason::NotFound`].
    pub fn name(&self, model: &str, version: &str) -> Result<&Served<'a>, Refusal> {
        let named = self.served()?.named(model, version)?;
        Ok(self.named.get_or_init(|| named))
    }

    /// When its client stops waiting, if it says so.
    ///
    /// # Errors
    /// [`ErrorReason::MalformedRequest`].
    pub fn deadline(&self, headers: &HeaderMap) -> Result<Option<Instant>, Refusal> {
        let time = once(headers, &REQUEST_TIMEOUT, request_timeout::parse)?;
        Ok(time.map(|time| self.start + time))
    }

    /// The answer, as of [`answered`], with its id and counted.
    pub async fn answer(
        self,
        headers: &HeaderMap,
        body: &mut Body,
        outcome: Result<Response<Body>, Refusal>,
        refuse: fn(&Refusal) -> Response<Body>,
    ) -> Response<Body> {
        let mut response = answered(headers, body, outcome, refuse).await;
        let status = response.status().as_u16();
        self.end(&mut response, status);
        response
    }

    /// Puts the id on an answer, counts and logs it by its status of HTTP.
    pub fn end(mut self, response: &mut Response<Body>, status: u16) {
        self.status = Some(status);
        if let Ok(value) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let duration = self.start.elapsed();
        let version = match self.served() {
            Ok(served) => served.version().to_owned(),
            Err(_) => self.app.versions.serve(),
        };
        self.app.metrics.answered(&version, status, duration);
        tracing::debug!(
            request_id = self.id,
            trace_id = self.trace,
            status,
            seconds = duration.as_secs_f64(),
            "answered"
        );
        if self.app.traces.is_some() {
            response.extensions_mut().insert(AnsweredBy(version));
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.app.metrics.demand.end(self.status, self.start.elapsed());
        self.app.requests.send_modify(|n| *n = n.saturating_sub(1));
    }
}
