//! What a JSON parser's fault is called towards clients, without a word of what they sent.

use serde_json::error::Category;

use crate::error::{ErrorReason, Refusal};

/// The refusal for a body that is not `expected`.
pub(crate) fn refuse(error: &serde_json::Error, expected: &str) -> Refusal {
    match error.classify() {
        Category::Data => Refusal::new(
            ErrorReason::InvalidRequest,
            format!(
                "send {expected}; what was sent is wrong at {}: {}",
                place(error),
                what(error)
            ),
        ),
        Category::Syntax | Category::Eof | Category::Io => Refusal::new(
            ErrorReason::MalformedJson,
            format!("the body is no JSON in UTF-8 at {}: {}", place(error), what(error)),
        ),
    }
}

fn place(error: &serde_json::Error) -> String {
    format!("line {} column {}", error.line(), error.column())
}

/// The parser's words without the place that it puts behind them and without the name or value that it found.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rfind(" at line ").and_then(|end| text.get(..end)).unwrap_or(&text);
    // "invalid type: string "…", expected a list of strings": the value is the client's, the end is ours.
    for (prefix, ours) in [
        ("invalid type: ", "wrong type"),
        ("invalid value: ", "wrong value"),
        ("unknown field ", "unknown field"),
    ] {
        if let Some(found) = text.strip_prefix(prefix) {
            let expected = found.rfind(", expected ").and_then(|at| found.get(at..));
            return format!("{ours}{}", expected.unwrap_or_default());
        }
    }
    text.to_owned()
}
