//! `POST /predict`: one text or a list of texts in, one prediction each out.
//!
//! A request is `{"text": "…"}`, answered by one [`Prediction`], or `{"texts": ["…", …]}`, answered by a
//! [`PredictResponse`] in the same order. There is no third form: a bare list could never grow a field. Parsing is
//! strict, since a misspelt field that is passed over answers another question than the client asked.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{ErrorReason, Refusal};
use crate::json;

/// Path of the endpoint.
pub const PREDICT_PATH: &str = "/predict";
/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Most bytes of one text in UTF-8. A model reads far less; what it does not read is cut off after tokenising.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;
/// Most texts of one request.
pub const MAX_TEXTS: usize = 128;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PredictRequest {
    /// `{"text": "…"}`.
    One {
        /// The text.
        text: String,
    },
    /// `{"texts": ["…", …]}`.
    List {
        /// 1 to [`MAX_TEXTS`] texts.
        texts: Vec<String>,
    },
}

impl PredictRequest {
    /// Reads and checks a body. Depth needs no limit of its own: nothing deeper than a list of strings is entered.
    ///
    /// # Errors
    /// [`ErrorReason::MalformedJson`] for what is no JSON; [`ErrorReason::InvalidRequest`], [`ErrorReason::EmptyText`],
    /// [`ErrorReason::TextTooLong`] and [`ErrorReason::TooManyTexts`] for JSON that asks for nothing that can be done.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let raw: Raw = serde_json::from_slice(body).map_err(|e| json::refuse(&e, EXPECTED))?;
        let request = match raw {
            Raw {
                text: Some(text),
                texts: None,
            } => Self::One { text },
            Raw {
                text: None,
                texts: Some(list),
            } => {
                if list.count > MAX_TEXTS {
                    return Err(too_many_texts(list.count, MAX_TEXTS));
                }
                Self::List { texts: list.texts }
            }
            Raw { text: Some(_), .. } => {
                return Err(Refusal::new(
                    ErrorReason::InvalidRequest,
                    "send either text or texts, not both",
                ));
            }
            Raw { .. } => {
                return Err(Refusal::new(
                    ErrorReason::InvalidRequest,
                    format!("send {EXPECTED}; neither text nor texts is there"),
                ));
            }
        };
        check_texts(request.texts())?;
        Ok(request)
    }

    /// The texts in order; one for [`PredictRequest::One`].
    #[must_use]
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One { text } => std::slice::from_ref(text),
            Self::List { texts } => texts,
        }
    }

    /// The texts in order, and whether the answer is a list.
    #[must_use]
    pub fn into_texts(self) -> (Vec<String>, bool) {
        match self {
            Self::One { text } => (vec![text], false),
            Self::List { texts } => (texts, true),
        }
    }

    /// The body that a client sends.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Whether these texts can be computed.
pub(crate) fn check_texts(texts: &[String]) -> Result<(), Refusal> {
    if texts.is_empty() {
        return Err(Refusal::new(
            ErrorReason::EmptyText,
            "there is no text; send at least one",
        ));
    }
    for (index, text) in texts.iter().enumerate() {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!(
                "text {index} has {} bytes, more than {MAX_TEXT_BYTES}; shorten it",
                text.len()
            );
            return Err(Refusal::new(ErrorReason::TextTooLong, message));
        }
        if text.trim().is_empty() {
            let message = format!("text {index} is empty or white space only; leave it out");
            return Err(Refusal::new(ErrorReason::EmptyText, message));
        }
    }
    Ok(())
}

/// Refuses `count` texts where at most `most` can be taken at once.
#[must_use]
pub fn too_many_texts(count: usize, most: usize) -> Refusal {
    Refusal::new(
        ErrorReason::TooManyTexts,
        format!("{count} texts, more than {most} in one request; send several requests"),
    )
}

const EXPECTED: &str = "an object {\"text\": \"…\"} or {\"texts\": [\"…\"]}";

/// An object with each field at most once.
struct Raw {
    text: Option<String>,
    texts: Option<Texts>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw {
            text: None,
            texts: None,
        };
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Text if raw.text.is_some() => return Err(de::Error::duplicate_field("text")),
                Field::Texts if raw.texts.is_some() => return Err(de::Error::duplicate_field("texts")),
                Field::Text => raw.text = Some(map.next_value()?),
                Field::Texts => raw.texts = Some(map.next_value()?),
                // The name is not repeated: it may be a text that the client put in the wrong place.
                Field::Unknown => return Err(de::Error::custom("unknown field, only text and texts are known")),
            }
        }
        Ok(raw)
    }
}

enum Field {
    Text,
    Texts,
    Unknown,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor;
        impl Visitor<'_> for FieldVisitor {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or texts")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "text" => Field::Text,
                    "texts" => Field::Texts,
                    _ => Field::Unknown,
                })
            }
        }
        deserializer.deserialize_identifier(FieldVisitor)
    }
}

/// The first [`MAX_TEXTS`] strings of a list and how many entries it has; what is beyond is read over, not kept.
struct Texts {
    texts: Vec<String>,
    count: usize,
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while texts.len() < MAX_TEXTS {
                    match list.next_element::<String>()? {
                        Some(text) => texts.push(text),
                        None => break,
                    }
                }
                let mut count = texts.len();
                while count >= MAX_TEXTS && list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Texts { texts, count })
            }
        }
        deserializer.deserialize_seq(TextsVisitor)
    }
}

/// The most probable label of a text.
pub(crate) struct Best<'a> {
    pub index: u32,
    pub label: &'a str,
    pub probability: f32,
}

impl<'a> Best<'a> {
    /// From probabilities in the order of the labels; errors as [`Prediction::new`].
    pub fn of(labels: &'a [String], probabilities: &[f32]) -> Result<Self, Refusal> {
        let fault = || Refusal::new(ErrorReason::InternalError, "the model gave no usable probabilities");
        if labels.len() != probabilities.len() || !probabilities.iter().all(|p| p.is_finite()) {
            return Err(fault());
        }
        let mut best: Option<(usize, f32)> = None;
        for (index, p) in probabilities.iter().enumerate() {
            if best.is_none_or(|(_, highest)| *p > highest) {
                best = Some((index, *p));
            }
        }
        let (index, probability) = best.ok_or_else(fault)?;
        Ok(Self {
            index: u32::try_from(index).map_err(|_| fault())?,
            label: labels.get(index).ok_or_else(fault)?,
            probability,
        })
    }
}

/// The answer for one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Index of the most probable label.
    pub intent_id: u32,
    /// The most probable label.
    pub label: String,
    /// Its probability, 0 to 1.
    pub probability: f32,
    /// Probability of every label; they sum to 1 up to rounding.
    pub all_probs: BTreeMap<String, f32>,
    /// Name of the ModelVersion that answered.
    pub model_version: String,
    /// Id of this prediction.
    pub request_id: String,
}

impl Prediction {
    /// The answer from probabilities in the order of the labels. On a tie the first label wins.
    ///
    /// # Errors
    /// [`ErrorReason::InternalError`] when there are not as many probabilities as labels, none, or one is no number: JSON
    /// has no way to say it, and an answer made of it would be wrong.
    pub fn new(
        labels: &[String],
        probabilities: &[f32],
        model_version: &str,
        request_id: String,
    ) -> Result<Self, Refusal> {
        let best = Best::of(labels, probabilities)?;
        Ok(Self {
            intent_id: best.index,
            label: best.label.to_owned(),
            probability: best.probability,
            all_probs: labels.iter().cloned().zip(probabilities.iter().copied()).collect(),
            model_version: model_version.to_owned(),
            request_id,
        })
    }
}

/// The answer for a list of texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictResponse {
    /// One prediction per text, in the order of the texts.
    pub predictions: Vec<Prediction>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(body: impl AsRef<[u8]>) -> ErrorReason {
        let body = body.as_ref();
        match PredictRequest::parse(body) {
            Err(refusal) => refusal.reason,
            Ok(_) => panic!("accepted: {}", String::from_utf8_lossy(body)),
        }
    }

    #[test]
    fn both_forms_are_read() {
        let one = PredictRequest::parse(br#" {"text": "where is my card?\u0000\ud83d\ude00"} "#).unwrap();
        assert_eq!(one.texts(), ["where is my card?\0😀"]);
        assert!(!one.into_texts().1);
        let list = PredictRequest::parse(br#"{"texts":["a","b"]}"#).unwrap();
        assert_eq!(list.into_texts(), (vec!["a".to_owned(), "b".to_owned()], true));
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        let deep = format!("{{\"texts\": [\"a\"{}", "[".repeat(100_000));
        for body in [
            &b""[..],
            b"{",
            b"{\"text\":",
            b"{\"text\": \"a\"",
            b"{\"text\": \"a\"} x",
            b"{\"text\": \"a\"}{\"text\": \"a\"}",
            b"{\"text\": NaN}",
            b"{\"text\": Infinity}",
            b"{'text': 'a'}",
            b"{text: \"a\"}",
            b"{\"text\": \"a\",}",
            b"{\"text\": \"\xff\"}",
            b"{\"text\": \"\xed\xa0\x80\"}",
            b"{\"text\": \"\\ud800\"}",
            b"{\"text\": \"\\udc00\\ud800\"}",
            b"{\"text\": \"a\nb\"}",
            b"{\"text\": \"\\x41\"}",
            b"\xef\xbb\xbf{\"text\": \"a\"}",
            b"\x1f\x8b\x08\x00",
            b"text=a",
            b"{\"text\": tru}",
            deep.as_bytes(),
        ] {
            assert_eq!(
                reason(body),
                ErrorReason::MalformedJson,
                "{}",
                String::from_utf8_lossy(body)
            );
        }
    }

    #[test]
    fn json_of_another_shape_is_invalid() {
        let deep = "[".repeat(100_000);
        for body in [
            "null",
            "1",
            "\"a\"",
            "[]",
            "[\"a\"]",
            "{}",
            "{\"Text\": \"a\"}",
            "{\"text\": null}",
            "{\"text\": 1}",
            "{\"text\": true}",
            "{\"text\": 9223372036854775808}",
            "{\"text\": [\"a\"]}",
            "{\"text\": {\"text\": \"a\"}}",
            "{\"texts\": \"a\"}",
            "{\"texts\": null}",
            "{\"texts\": [1]}",
            "{\"texts\": [null]}",
            "{\"texts\": [[\"a\"]]}",
            "{\"texts\": {\"0\": \"a\"}}",
            "{\"text\": \"a\", \"text\": \"b\"}",
            "{\"text\": \"a\", \"texts\": [\"b\"]}",
            "{\"text\": \"a\", \"top_k\": 3}",
            deep.as_str(),
            &format!("{{\"text\": {deep}"),
            &format!("{{\"x\": {deep}"),
        ] {
            assert_eq!(
                reason(body),
                ErrorReason::InvalidRequest,
                "{}",
                &body[..body.len().min(60)]
            );
        }
    }

    #[test]
    fn bounds_of_texts() {
        for body in [
            "{\"text\": \"\"}",
            "{\"text\": \" \\t\\r\\n\\u2003\"}",
            "{\"texts\": []}",
            "{\"texts\": [\"a\", \"\"]}",
        ] {
            assert_eq!(reason(body), ErrorReason::EmptyText, "{body}");
        }
        let text = |n: usize| format!("{{\"text\": \"{}\"}}", "x".repeat(n));
        assert!(PredictRequest::parse(text(MAX_TEXT_BYTES).as_bytes()).is_ok());
        assert_eq!(reason(text(MAX_TEXT_BYTES + 1)), ErrorReason::TextTooLong);
        let texts = |n: usize| format!("{{\"texts\": [{}]}}", vec!["\"a\""; n].join(","));
        assert!(PredictRequest::parse(texts(MAX_TEXTS).as_bytes()).is_ok());
        assert_eq!(reason(texts(MAX_TEXTS + 1)), ErrorReason::TooManyTexts);
        let many = PredictRequest::parse(texts(5000).as_bytes()).unwrap_err();
        assert!(many.message.contains("5000 texts"), "{many}");
    }

    #[test]
    fn messages_never_repeat_what_the_client_sent() {
        for body in [
            "{\"SECRET\": 1}",
            "{\"text\": 1, \"SECRET\": 1}",
            "\"SECRET\"",
            "{\"texts\": \"SECRET\"}",
            "{\"text\": \"SECRET",
            "{\"text\": \"SECRET\"} SECRET",
            "{\"text\": \"SECRET\", \"texts\": [\"SECRET\"]}",
        ] {
            let refusal = PredictRequest::parse(body.as_bytes()).unwrap_err();
            assert!(!refusal.message.contains("SECRET"), "{refusal}");
        }
    }

    #[test]
    fn the_first_of_the_most_probable_labels_wins() {
        let labels = ["a", "b", "c"].map(str::to_owned);
        let p = Prediction::new(&labels, &[0.2, 0.4, 0.4], "v1", "r".to_owned()).unwrap();
        assert_eq!((p.intent_id, p.label.as_str(), p.probability), (1, "b", 0.4));
        assert_eq!(
            serde_json::to_value(&p).unwrap(),
            serde_json::json!({
                "intent_id": 1, "label": "b", "probability": 0.4_f32,
                "all_probs": {"a": 0.2_f32, "b": 0.4_f32, "c": 0.4_f32}, "model_version": "v1", "request_id": "r"
            })
        );
        for bad in [&[0.5, 0.5][..], &[0.5, f32::NAN, 0.5], &[f32::INFINITY, 0.0, 0.0]] {
            assert!(Prediction::new(&labels, bad, "v1", "r".to_owned()).is_err(), "{bad:?}");
        }
        assert!(Prediction::new(&[], &[], "v1", "r".to_owned()).is_err());
    }

    fn json_like() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"text\"",
            "\"texts\"",
            "\"a\"",
            "\"\\ud800\"",
            "\"\\u0000\"",
            "1e400",
            "-0",
            "null",
            " ",
            "\"",
            "\\",
            "é",
        ]);
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = PredictRequest::parse(&body);
        }

        #[test]
        fn what_looks_like_json_is_accepted_only_if_it_is_within_the_bounds(body in json_like()) {
            if let Ok(request) = PredictRequest::parse(body.as_bytes()) {
                prop_assert!((1..=MAX_TEXTS).contains(&request.texts().len()));
                prop_assert!(request.texts().iter().all(|t| !t.trim().is_empty() && t.len() <= MAX_TEXT_BYTES));
                prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok());
            }
        }

        #[test]
        fn requests_come_back(texts in prop::collection::vec("\\PC*[a-z]\\PC*", 1..20), one: bool) {
            let request = match texts.first() {
                Some(text) if one => PredictRequest::One { text: text.clone() },
                _ => PredictRequest::List { texts },
            };
            prop_assert_eq!(PredictRequest::parse(&request.to_json()).unwrap(), request);
        }

        #[test]
        fn answers_come_back(
            p in prop::collection::btree_map("\\PC{1,12}", 0.0_f32..1.0, 1..30),
            version in "[a-z][a-z0-9-]{0,20}", id in "[!-~]{1,40}",
        ) {
            let (labels, values): (Vec<String>, Vec<f32>) = p.into_iter().unzip();
            let made = Prediction::new(&labels, &values, &version, id).unwrap();
            prop_assert_eq!(made.all_probs.get(&made.label), Some(&made.probability));
            prop_assert!(values.iter().all(|v| *v <= made.probability));
            let text = serde_json::to_vec(&made).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Prediction>(&text).unwrap(), made);
        }
    }
}
