//! The OpenAPI 3.1 document of the data port.

use serde_json::{Value, json};

use crate::error::ErrorReason;
use crate::experiment::EXPERIMENT_KEY_HEADER;
use crate::feedback::{FEEDBACK_PATH, MAX_JUDGEMENTS, MAX_LABEL_BYTES, Outcome};
use crate::infer::{HEADER_LENGTH_HEADER, INPUT, Output, SERVER_PATH};
use crate::predict::{MAX_BODY_BYTES, MAX_TEXT_BYTES, MAX_TEXTS, PREDICT_PATH};
use crate::request_id::{MAX_REQUEST_ID_BYTES, REQUEST_ID_HEADER};
use crate::request_timeout::REQUEST_TIMEOUT_HEADER;

/// Path of the document.
pub const OPENAPI_PATH: &str = "/openapi.json";

/// The document. `service` names the service, `readyz` is the path of the readiness probe, `version` the program's.
#[must_use]
pub fn document(service: &str, readyz: &str, version: &str) -> Value {
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {"title": service, "version": version},
        "paths": {
            (PREDICT_PATH): {"post": predict()},
            (FEEDBACK_PATH): {"post": feedback()},
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
            "Judgement": judgement(),
            "Judged": judged(),
            "InferRequest": infer_request(service),
            "InferResponse": infer_response(),
            "InferError": {
                "type": "object", "required": ["error"],
                "properties": {"error": {"type": "string", "description": "The word, a colon, and what to do."}},
            },
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
    });
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        paths.extend(open_inference(service));
    }
    document
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
            "description": format!(
                "Comes back as request_id; 1 to {MAX_REQUEST_ID_BYTES} visible characters of ASCII. Without it, or with another, one is made."
            ),
            "schema": {"type": "string"},
        },
        {
            "name": EXPERIMENT_KEY_HEADER, "in": "header", "required": false,
            "description": "Whose request it is, for experiments: one key is always answered by one version. Without it, or where it is empty, any answers.",
            "schema": {"type": "string"},
        },
        {
            "name": REQUEST_TIMEOUT_HEADER, "in": "header", "required": false,
            "description": "Seconds above 0 for which the client waits; only ever shortens the service's timeoutMilliseconds.",
            "schema": {"type": "string", "pattern": "^(?=.*[1-9])[0-9]{1,6}(\\.[0-9]{1,9})?$", "examples": ["0.25"]},
        },
    ])
}

/// Status codes of a question and what refuses it with each.
fn refusals(shape: impl Fn(&str) -> Value) -> serde_json::Map<String, Value> {
    let mut statuses: Vec<u16> = ErrorReason::ALL.iter().map(|r| r.status()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    let answers = statuses.into_iter().map(|status| {
        let words: Vec<&str> = ErrorReason::ALL
            .iter()
            .filter(|r| r.status() == status)
            .map(|r| r.as_str())
            .collect();
        (status.to_string(), shape(&words.join(", ")))
    });
    answers.collect()
}

/// Paths of the Open Inference Protocol, whose model has the name of the service.
fn open_inference(service: &str) -> serde_json::Map<String, Value> {
    let error = |description: &str| answer(description, json!({"$ref": "#/components/schemas/InferError"}));
    let object = |description: &str| answer(description, json!({"type": "object"}));
    let path = |name: &str, schema: Value| json!({"name": name, "in": "path", "required": true, "schema": schema});
    let model = path("model", json!({"const": service}));
    let version = path("version", json!({"type": "string", "minLength": 1}));
    let get = |id: &str, summary: &str, parameters: Value, not_found: bool| {
        let mut responses = json!({"200": object("It."), "503": error("It is loading its model, or ending.")});
        if let (true, Some(responses)) = (not_found, responses.as_object_mut()) {
            responses.insert("404".to_owned(), error("There is no such model or version."));
        }
        json!({"get": {"operationId": id, "summary": summary, "parameters": parameters, "responses": responses}})
    };
    let mut paths = serde_json::Map::new();
    let mut add = |path: String, value: Value| paths.insert(path, value);
    add(
        SERVER_PATH.to_owned(),
        get(
            "serverMetadata",
            "Name, version and extensions of the server",
            json!([]),
            false,
        ),
    );
    add(
        format!("{SERVER_PATH}/health/live"),
        get("serverLive", "Whether it listens", json!([]), false),
    );
    add(
        format!("{SERVER_PATH}/health/ready"),
        get("serverReady", "Whether this pod answers", json!([]), false),
    );
    for (prefix, id, names) in [
        ("/models/{model}", "", json!([model])),
        (
            "/models/{model}/versions/{version}",
            "OfVersion",
            json!([model, version]),
        ),
    ] {
        let at = |tail: &str| format!("{SERVER_PATH}{prefix}{tail}");
        add(
            at(""),
            get(
                &format!("modelMetadata{id}"),
                "Inputs, outputs and labels",
                names.clone(),
                true,
            ),
        );
        add(
            at("/ready"),
            get(&format!("modelReady{id}"), "Whether it answers", names.clone(), true),
        );
        let mut responses = refusals(error);
        // 405 belongs to other methods.
        responses.remove("405");
        responses.insert(
            "200".to_owned(),
            answer("The outputs.", json!({"$ref": "#/components/schemas/InferResponse"})),
        );
        let mut parameters = headers();
        if let (Some(parameters), Some(names)) = (parameters.as_array_mut(), names.as_array()) {
            parameters.extend(names.iter().cloned());
            parameters.push(json!({
                "name": HEADER_LENGTH_HEADER, "in": "header", "required": false,
                "description": "Bytes of the JSON where binary tensors follow it.",
                "schema": {"type": "integer", "minimum": 0, "maximum": MAX_BODY_BYTES},
            }));
        }
        add(
            at("/infer"),
            json!({"post": {
                "operationId": format!("infer{id}"),
                "summary": "Classify texts, with the Open Inference Protocol",
                "parameters": parameters,
                "requestBody": {
                    "required": true,
                    "description": format!("At most {MAX_BODY_BYTES} bytes, also of what gzip holds."),
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
                },
                "responses": responses,
            }}),
        );
    }
    paths
}

fn infer_request(service: &str) -> Value {
    let parameters = json!({"type": "object", "description": "binary_data_size, binary_data, binary_data_output; hints are passed over."});
    json!({
        "type": "object", "required": ["inputs"], "additionalProperties": false,
        "properties": {
            "id": {"type": "string", "maxLength": MAX_REQUEST_ID_BYTES},
            "model_name": {"const": service, "description": "The model once more."},
            "parameters": parameters,
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {
                "type": "object", "required": ["name", "shape", "datatype"], "additionalProperties": false,
                "properties": {
                    "name": {"const": INPUT},
                    "datatype": {"const": "BYTES"},
                    "shape": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer", "minimum": 1, "maximum": MAX_TEXTS},
                              "description": "[n] or [n, 1]."},
                    "parameters": parameters,
                    "data": {
                        "type": "array", "minItems": 1, "maxItems": MAX_TEXTS, "description": "n texts, flat or in lists of one.",
                        "items": {"anyOf": [text(), {"type": "array", "minItems": 1, "maxItems": 1, "items": text()}]},
                    },
                },
            }},
            "outputs": {"type": "array", "description": "All where none is named.", "items": {
                "type": "object", "required": ["name"], "additionalProperties": false,
                "properties": {"name": {"enum": Output::ALL.map(Output::name)}, "parameters": parameters},
            }},
        },
    })
}

fn infer_response() -> Value {
    json!({
        "type": "object", "required": ["model_name", "model_version", "id", "outputs"],
        "properties": {
            "model_name": {"type": "string", "description": "The InferenceService."},
            "model_version": {"type": "string", "description": "The ModelVersion that answered."},
            "id": {"type": "string", "description": "That of the request, or one that was made."},
            "outputs": {"type": "array", "items": {
                "type": "object", "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"enum": Output::ALL.map(Output::name)},
                    "datatype": {"enum": ["BYTES", "FP32"]},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "data": {"type": "array"},
                    "parameters": {"type": "object"},
                },
            }},
        },
    })
}

fn text() -> Value {
    json!({
        "type": "string", "pattern": "\\S",
        "description": format!("At most {MAX_TEXT_BYTES} bytes in UTF-8, not only white space."),
    })
}

fn predict() -> Value {
    let text = text();
    let mut responses = refusals(refusal);
    // 404 and 405 belong to other paths and methods.
    responses.remove("404");
    responses.remove("405");
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
    json!({
        "operationId": "predict",
        "summary": "Classify one text or a list of texts",
        "parameters": headers(),
        "requestBody": {
            "required": true,
            "description": format!("At most {MAX_BODY_BYTES} bytes, also of what gzip holds."),
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

fn feedback() -> Value {
    let mut responses = refusals(refusal);
    // 405 belongs to other methods, and nothing is computed that could come too late or find no room.
    for other in ["405", "429", "504"] {
        responses.remove(other);
    }
    responses.insert(
        "200".to_owned(),
        answer(
            "What became of it; a list in the same order for feedback.",
            json!({"oneOf": [
                {"$ref": "#/components/schemas/Judged"},
                {
                    "type": "object", "required": ["results"],
                    "properties": {"results": {"type": "array", "items": {"$ref": "#/components/schemas/Judged"}}},
                },
            ]}),
        ),
    );
    responses.insert("404".to_owned(), refusal("NotFound: the service takes no feedback."));
    json!({
        "operationId": "feedback",
        "summary": "Say what would have been right",
        "requestBody": {
            "required": true,
            "content": {"application/json": {"schema": {"oneOf": [
                {"$ref": "#/components/schemas/Judgement"},
                {
                    "type": "object", "required": ["feedback"], "additionalProperties": false,
                    "properties": {"feedback": {
                        "type": "array", "minItems": 1, "maxItems": MAX_JUDGEMENTS,
                        "items": {"$ref": "#/components/schemas/Judgement"},
                    }},
                },
            ]}}},
        },
        "responses": responses,
    })
}

fn judgement() -> Value {
    json!({
        "type": "object", "required": ["request_id", "label"], "additionalProperties": false,
        "properties": {
            "request_id": {"type": "string", "maxLength": MAX_REQUEST_ID_BYTES, "description": "That of the prediction."},
            "label": {
                "type": "string", "pattern": "\\S",
                "description": format!("The right label, at most {MAX_LABEL_BYTES} bytes in UTF-8; may be a new one."),
            },
        },
    })
}

fn judged() -> Value {
    json!({
        "type": "object", "required": ["request_id", "outcome"],
        "properties": {
            "request_id": {"type": "string"},
            "outcome": {"enum": Outcome::ALL, "description":
                "Counted; Duplicate: judged before; Expired: too old, or its pod is gone; Invalid: no prediction of this service."},
        },
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
            "request_id": {"type": "string", "description": "Id of this prediction, to be named in feedback."},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::{Answers, InferResponse};
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
        assert_eq!(names(&document["paths"]).len(), 13);
        assert!(document["paths"]["/predict"]["post"]["responses"]["429"].is_object());
        let infer = &document["paths"]["/v2/models/{model}/infer"]["post"]["responses"];
        assert_eq!(
            names(infer).len(),
            names(&document["paths"]["/predict"]["post"]["responses"]).len() + 1
        );
        let (labels, rows) = (["a".to_owned()], [vec![1.0]]);
        let answers = Answers::new(&labels, &rows).unwrap();
        let response = InferResponse::new(&[(Output::Label, false)], "m", "v", "r", &answers).unwrap();
        let sent: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(
            names(&document["components"]["schemas"]["InferResponse"]["properties"]),
            names(&sent)
        );
    }
}
