//! Why a request is not answered, as a word, a status and a sentence.

use serde::{Deserialize, Serialize};

macro_rules! error_reasons {
    ($($(#[$doc:meta])* $name:ident => $status:literal),+ $(,)?) => {
        /// One word per way to be refused. Clients may match on it; new words may come.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorReason { $($(#[$doc])* $name),+ }

        impl ErrorReason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Status code of HTTP.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status),+ }
            }

            /// The word itself.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

error_reasons! {
    /// The body is no JSON in UTF-8, or has a number that no double holds.
    MalformedJson => 400,
    /// A header that cannot be what it should, or contradicts another, or a body that breaks off.
    MalformedRequest => 400,
    /// Nothing is served under this path.
    NotFound => 404,
    /// The path is right, the method is not; `Allow` names those that are.
    MethodNotAllowed => 405,
    /// The body did not arrive in time.
    BodyTimeout => 408,
    /// Neither `Content-Length` nor `Transfer-Encoding: chunked`.
    LengthRequired => 411,
    /// The body is larger than [`crate::predict::MAX_BODY_BYTES`].
    BodyTooLarge => 413,
    /// `Content-Type` is not what the path takes, or `Content-Encoding` not `gzip`.
    UnsupportedMediaType => 415,
    /// JSON of another shape: wrong type, unknown or repeated or missing field.
    InvalidRequest => 422,
    /// A text is empty or white space only, or the list has none.
    EmptyText => 422,
    /// A text has more than [`crate::predict::MAX_TEXT_BYTES`].
    TextTooLong => 422,
    /// More texts than one request may carry.
    TooManyTexts => 422,
    /// As many texts as the pod takes are waiting or computed; `Retry-After` says when to come back.
    TooManyRequests => 429,
    /// A fault while computing; other requests are not affected.
    InternalError => 500,
    /// The model is not loaded yet.
    NotReady => 503,
    /// The pod is ending; another one answers.
    Draining => 503,
    /// No answer within the service's `timeoutMilliseconds`, or the request's own shorter time.
    DeadlineExceeded => 504,
}

/// Body of every answer that is not 2xx: `{"error": {"reason": …, "message": …}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: Refusal,
}

/// A refusal with what to do next. Never holds a part of the request's texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {message}", reason.as_str())]
pub struct Refusal {
    /// The word.
    pub reason: ErrorReason,
    /// One or two sentences.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(reason: ErrorReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// The body as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Two strings always serialise.
        serde_json::to_vec(&ErrorBody { error: self.clone() }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_an_error_status_and_its_own_word() {
        for reason in ErrorReason::ALL {
            assert!((400..600).contains(&reason.status()), "{reason:?}");
            assert_eq!(
                serde_json::to_value(reason).unwrap(),
                serde_json::json!(reason.as_str())
            );
        }
    }

    #[test]
    fn the_body_has_the_documented_shape() {
        let body = Refusal::new(ErrorReason::NotFound, "no \"such\" path").to_json();
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&body).unwrap(),
            serde_json::json!({"error": {"reason": "NotFound", "message": "no \"such\" path"}})
        );
    }
}
