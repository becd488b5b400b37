//! The OpenAPI 3.1 document of the data port.

use serde_json::{Value, json};

use crate::error::ErrorReason;
use crate::predict::{MAX_BODY_BYTES, MAX_TEXT_BYTES, MAX_TEXTS, PREDICT_PATH};
use crate::request_id::{MAX_REQUEST_ID_BYTES, REQUEST_ID_HEADER};
use crate::request_timeout::REQUEST_TIMEOUT_HEADER;

/// Path of the document.
pub const OPENAPI_PATH: &str = "/openapi.json";

/// The document. `service` names the service, `readyz` is the path of the readiness probe, `version` the program's.
#[must_use]
pub fn document(service: &str, readyz: &str, version: &str) -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {"title": service, "version": version},
        "paths": {
            (PREDICT_PATH): {"post": predict()},
            (readyz): {"get": {
                "operationId": "ready",
                "summary": "Whether this pod answers",
                "responses": {
                    "200": answer("It does.", json!({
                        "type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}
                    })),
                    "503": refusal("It is loading its model, or ending."),
                },
            }},
            (OPENAPI_PATH): {"get": {
                "operationId": "openapi",
                "summary": "This document",
                "responses": {"200": answer("It.", json!({"type": "object"}))},
            }},
        },
        "components": {"schemas": {
            "Prediction": prediction(),
            "Error": {
                "type": "object", "required": ["error"],
                "properties": {"error": {
                    "type": "object", "required": ["reason", "message"],
                    "properties": {
                        "reason": {
                            "type": "string", "description": "One word to match on; new ones may come.",
                            "examples": ErrorReason::ALL.iter().map(|r| r.as_str()).collect::<Vec<_>>(),
                        },
                        "message": {"type": "string", "description": "What is wrong and what to do."},
                    },
                }},
            },
        }},
    })
}

fn answer(description: &str, schema: Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

fn refusal(description: &str) -> Value {
    answer(description, json!({"$ref": "#/components/schemas/Error"}))
}

fn headers() -> Value {
    json!([
        {
            "name": REQUEST_ID_HEADER, "in": "header", "required": false,
            "description": "Comes back as request_id; visible ASCII. Without it one is made.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID_BYTES},
        },
        {
            "name": REQUEST_TIMEOUT_HEADER, "in": "header", "required": false,
            "description": "Seconds for which the client waits; only ever shortens the service's timeoutMilliseconds.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,6}(\\.[0-9]{1,9})?$", "examples": ["0.25"]},
        },
    ])
}

fn predict() -> Value {
    let text = json!({"type": "string", "minLength": 1, "description": format!("At most {MAX_TEXT_BYTES} bytes in UTF-8, not only white space.")});
    let mut responses = serde_json::Map::new();
    responses.insert(
        "200".to_owned(),
        answer(
            "One prediction for text, a list in the same order for texts.",
            json!({"oneOf": [
                {"$ref": "#/components/schemas/Prediction"},
                {
                    "type": "object", "required": ["predictions"],
                    "properties": {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}},
                },
            ]}),
        ),
    );
    let mut statuses: Vec<u16> = ErrorReason::ALL.iter().map(|r| r.status()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    // 404 and 405 belong to other paths and methods.
    for status in statuses.into_iter().filter(|s| !matches!(s, 404 | 405)) {
        let words: Vec<&str> = ErrorReason::ALL
            .iter()
            .filter(|r| r.status() == status)
            .map(|r| r.as_str())
            .collect();
        responses.insert(status.to_string(), refusal(&words.join(", ")));
    }
    json!({
        "operationId": "predict",
        "summary": "Classify one text or a list of texts",
        "parameters": headers(),
        "requestBody": {
            "required": true,
            "description": format!("At most {MAX_BODY_BYTES} bytes, not compressed."),
            "content": {"application/json": {"schema": {"oneOf": [
                {"type": "object", "required": ["text"], "additionalProperties": false, "properties": {"text": text}},
                {
                    "type": "object", "required": ["texts"], "additionalProperties": false,
                    "properties": {"texts": {"type": "array", "minItems": 1, "maxItems": MAX_TEXTS, "items": text}},
                },
            ]}}},
        },
        "responses": responses,
    })
}

fn prediction() -> Value {
    let probability = json!({"type": "number", "minimum": 0, "maximum": 1});
    json!({
        "type": "object",
        "required": ["intent_id", "label", "probability", "all_probs", "model_version", "request_id"],
        "properties": {
            "intent_id": {"type": "integer", "minimum": 0, "description": "Index of the most probable label."},
            "label": {"type": "string", "description": "The most probable label."},
            "probability": probability,
            "all_probs": {"type": "object", "additionalProperties": probability, "description": "Every label's probability."},
            "model_version": {"type": "string", "description": "The ModelVersion that answered."},
            "request_id": {"type": "string", "description": "Id of this prediction."},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Prediction;

    #[test]
    fn the_document_names_the_fields_that_are_sent() {
        let document = document("intent", "/readyz", "1.0.0");
        let made = Prediction::new(&["a".to_owned()], &[1.0], "v", "r".to_owned()).unwrap();
        let sent = serde_json::to_value(made).unwrap();
        let schema = &document["components"]["schemas"]["Prediction"];
        let names = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&schema["properties"]), names(&sent));
        assert_eq!(schema["required"].as_array().unwrap().len(), names(&sent).len());
        assert_eq!(names(&document["paths"]).len(), 3);
        assert!(document["paths"]["/predict"]["post"]["responses"]["429"].is_object());
    }
}
