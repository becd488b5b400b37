//! What serving pods keep of live texts, and trainings read: files of JSON lines in the user's bucket.

use serde::{Deserialize, Serialize};

/// How the names of these files end.
pub const FILE_SUFFIX: &str = ".jsonl";
/// Most bytes of a line.
pub const LINE_MAX_BYTES: usize = 1024 * 1024;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Record {
    /// A text that was answered.
    Prediction {
        /// When, in seconds since 1970.
        time: u64,
        /// Receipt of the answer.
        request_id: String,
        /// Name of the ModelVersion that answered.
        model_version: String,
        /// The text.
        text: String,
        /// The label that was answered.
        label: String,
        /// Its probability.
        probability: f32,
    },
    /// What a client said of an answer.
    Judgement {
        /// When, in seconds since 1970.
        time: u64,
        /// Receipt of the answer.
        request_id: String,
        /// The label that would have been right.
        label: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_documented_shape() {
        let told = Record::Prediction {
            time: 1,
            request_id: "r".to_owned(),
            model_version: "v1".to_owned(),
            text: "where is it?".to_owned(),
            label: "a".to_owned(),
            probability: 0.5,
        };
        let line = r#"{"kind":"Prediction","time":1,"requestId":"r","modelVersion":"v1","text":"where is it?","label":"a","probability":0.5}"#;
        assert_eq!(serde_json::to_string(&told).unwrap(), line);
        let line = r#"{"kind":"Judgement","time":2,"requestId":"r","label":"b"}"#;
        let told: Record = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&told).unwrap(), line);
    }
}
