//! `POST /feedback`: what would have been the right label of a prediction.
//!
//! A request is `{"request_id": "…", "label": "…"}`, answered by one [`Judged`], or `{"feedback": [{"request_id": "…", "label":
//! "…"}, …]}`, answered by a [`FeedbackResponse`] in the same order. Whoever sends the same once more, too late or with an invented
//! id changes nothing, and is told so with 200: there is nothing to try again.

use serde::{Deserialize, Serialize};

use crate::error::{ErrorReason, Refusal};
use crate::json;
use crate::request_id::MAX_REQUEST_ID_BYTES;

/// Path of the endpoint.
pub const FEEDBACK_PATH: &str = "/feedback";
/// Most judgements of one request.
pub const MAX_JUDGEMENTS: usize = 128;
/// Most bytes of a label in UTF-8.
pub const MAX_LABEL_BYTES: usize = 256;

/// What a client says of one prediction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// `request_id` of the prediction.
    pub request_id: String,
    /// The label that would have been right; may be one that the version does not know.
    pub label: String,
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum FeedbackRequest {
    /// One.
    One(Judgement),
    /// Several.
    List {
        /// 1 to [`MAX_JUDGEMENTS`].
        feedback: Vec<Judgement>,
    },
}

/// What became of a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It counts.
    Counted,
    /// The prediction was judged before.
    Duplicate,
    /// It counts nothing: the prediction is too old, or the process that made it is gone.
    Expired,
    /// It is no receipt of this service.
    Invalid,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Counted, Self::Duplicate, Self::Expired, Self::Invalid];
}

/// The answer for one judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// As it was sent.
    pub request_id: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// The answer for several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackResponse {
    /// One for each, in their order.
    pub results: Vec<Judged>,
}

const EXPECTED: &str = "an object {\"request_id\": \"…\", \"label\": \"…\"} or {\"feedback\": [{\"request_id\": \"…\", \"label\": \"…\"}]}";

/// An object with each field at most once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    request_id: Option<String>,
    label: Option<String>,
    feedback: Option<Vec<Judgement>>,
}

impl FeedbackRequest {
    /// Reads and checks a body, whose length is bounded.
    ///
    /// # Errors
    /// [`ErrorReason::MalformedJson`] for what is no JSON; [`ErrorReason::InvalidRequest`] and [`ErrorReason::TooManyTexts`] for
    /// JSON that says nothing of a prediction.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let raw: Raw = serde_json::from_slice(body).map_err(|e| json::refuse(&e, EXPECTED))?;
        let request = match raw {
            Raw {
                request_id: Some(request_id),
                label: Some(label),
                feedback: None,
            } => Self::One(Judgement { request_id, label }),
            Raw {
                request_id: None,
                label: None,
                feedback: Some(feedback),
            } => Self::List { feedback },
            Raw { .. } => {
                return Err(Refusal::new(
                    ErrorReason::InvalidRequest,
                    format!("send {EXPECTED}, and nothing of both"),
                ));
            }
        };
        let all = request.judgements();
        if all.is_empty() {
            let message = "there is no feedback; send at least one";
            return Err(Refusal::new(ErrorReason::InvalidRequest, message));
        }
        if all.len() > MAX_JUDGEMENTS {
            let message = format!(
                "feedback on {} predictions, more than {MAX_JUDGEMENTS} in one request; send several requests",
                all.len()
            );
            return Err(Refusal::new(ErrorReason::TooManyTexts, message));
        }
        for (index, judgement) in all.iter().enumerate() {
            let label = judgement.label.trim();
            if label.is_empty() || judgement.label.len() > MAX_LABEL_BYTES {
                let message = format!("label {index} is empty or has more than {MAX_LABEL_BYTES} bytes");
                return Err(Refusal::new(ErrorReason::InvalidRequest, message));
            }
            if judgement.request_id.len() > MAX_REQUEST_ID_BYTES {
                let message = format!("request_id {index} has more than {MAX_REQUEST_ID_BYTES} bytes");
                return Err(Refusal::new(ErrorReason::InvalidRequest, message));
            }
        }
        Ok(request)
    }

    /// The judgements in order.
    #[must_use]
    pub fn judgements(&self) -> &[Judgement] {
        match self {
            Self::One(judgement) => std::slice::from_ref(judgement),
            Self::List { feedback } => feedback,
        }
    }

    /// The answer with these outcomes, one for each judgement, as JSON.
    #[must_use]
    pub fn answer(&self, outcomes: &[Outcome]) -> Vec<u8> {
        let judged = self
            .judgements()
            .iter()
            .zip(outcomes)
            .map(|(judgement, outcome)| Judged {
                request_id: judgement.request_id.clone(),
                outcome: *outcome,
            });
        let mut results: Vec<Judged> = judged.collect();
        let json = match (self, results.pop()) {
            (Self::One(_), Some(one)) => serde_json::to_vec(&one),
            (_, last) => {
                results.extend(last);
                serde_json::to_vec(&FeedbackResponse { results })
            }
        };
        // Strings and words always serialise.
        json.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(body: &str) -> ErrorReason {
        FeedbackRequest::parse(body.as_bytes()).unwrap_err().reason
    }

    #[test]
    fn both_forms_are_read_and_answered() {
        let one = FeedbackRequest::parse(br#"{"request_id": "r", "label": "lost_card"}"#).unwrap();
        assert_eq!(one.judgements().len(), 1);
        let text =
            |request: &FeedbackRequest, outcomes: &[Outcome]| String::from_utf8(request.answer(outcomes)).unwrap();
        assert_eq!(
            text(&one, &[Outcome::Counted]),
            r#"{"request_id":"r","outcome":"Counted"}"#
        );
        let list = FeedbackRequest::parse(
            br#"{"feedback": [{"request_id": "a", "label": "x"}, {"request_id": "b", "label": "y"}]}"#,
        )
        .unwrap();
        assert_eq!(
            text(&list, &[Outcome::Invalid, Outcome::Duplicate]),
            r#"{"results":[{"request_id":"a","outcome":"Invalid"},{"request_id":"b","outcome":"Duplicate"}]}"#
        );
    }

    #[test]
    fn what_says_nothing_of_a_prediction_is_refused() {
        for body in ["", "{", "feedback", "{\"request_id\": \"a\", \"label\": \"\\ud800\"}"] {
            assert_eq!(reason(body), ErrorReason::MalformedJson, "{body}");
        }
        let long = format!(r#"{{"request_id": "a", "label": "{}"}}"#, "x".repeat(257));
        let long_id = format!(r#"{{"request_id": "{}", "label": "x"}}"#, "x".repeat(129));
        for body in [
            "null",
            "[]",
            "{}",
            r#"{"request_id": "a"}"#,
            r#"{"label": "x"}"#,
            r#"{"request_id": "a", "label": 1}"#,
            r#"{"request_id": "a", "label": " "}"#,
            r#"{"request_id": "a", "label": "x", "request_id": "b"}"#,
            r#"{"request_id": "a", "label": "x", "weight": 2}"#,
            r#"{"request_id": "a", "label": "x", "feedback": []}"#,
            r#"{"feedback": []}"#,
            r#"{"feedback": [{"request_id": "a"}]}"#,
            r#"{"feedback": [{"request_id": "a", "label": "x", "text": "y"}]}"#,
            &long,
            &long_id,
        ] {
            assert_eq!(reason(body), ErrorReason::InvalidRequest, "{body}");
        }
        let item = r#"{"request_id": "a", "label": "x"}"#;
        let many = |count: usize| format!(r#"{{"feedback": [{}]}}"#, vec![item; count].join(","));
        assert!(FeedbackRequest::parse(many(MAX_JUDGEMENTS).as_bytes()).is_ok());
        assert_eq!(reason(&many(MAX_JUDGEMENTS + 1)), ErrorReason::TooManyTexts);
    }
}
