//! The CRDs as files: what the derive makes, with the defaults and bounds that it cannot express.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::{InferenceService, ModelVersion, TrainingJob};

/// The three CRDs, by file name.
///
/// # Errors
/// A CRD that cannot be written as JSON: a fault in this crate.
pub fn crds() -> Result<Vec<(&'static str, Value)>, serde_json::Error> {
    [
        ("trainingjobs.yaml", TrainingJob::crd()),
        ("modelversions.yaml", ModelVersion::crd()),
        ("inferenceservices.yaml", InferenceService::crd()),
    ]
    .into_iter()
    .map(|(file, crd)| Ok((file, finish(crd)?)))
    .collect()
}

/// What the derive cannot say: a default on `status` itself, so that an object that nobody has seen yet is not Current to
/// kstatus; the object's name, which rules speak of; and no descriptions of Kubernetes' own types, no formats that the API server does not know, no `nullable`.
fn finish(crd: CustomResourceDefinition) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(crd)?;
    if let Some(metadata) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert(
            "labels".to_owned(),
            json!({"app.kubernetes.io/name": "flywheel", "app.kubernetes.io/part-of": "flywheel"}),
        );
    }
    for version in value
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            tidy(schema);
            // A rule's field path must lead to a property that the schema has.
            if let Some(properties) = schema.pointer_mut("/properties").and_then(Value::as_object_mut) {
                properties.insert(
                    "metadata".to_owned(),
                    json!({"type": "object", "properties": {"name": {"type": "string"}}}),
                );
            }
            if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut) {
                status.insert("default".to_owned(), json!({"observedGeneration": -1}));
                if let Some(items) = status
                    .get_mut("properties")
                    .and_then(|p| p.pointer_mut("/conditions/items"))
                {
                    forget_descriptions(items);
                }
            }
        }
    }
    Ok(value)
}

fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A property may be called like a keyword: then an object, not a word or list, stands there.
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            if map
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|f| !matches!(f, "int32" | "int64" | "date-time"))
            {
                map.remove("format");
            }
            if let Some(values) = map.get_mut("enum").and_then(Value::as_array_mut) {
                values.retain(|v| !v.is_null());
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn forget_descriptions(schema: &mut Value) {
    if let Value::Object(map) = schema {
        if map.get("description").is_some_and(Value::is_string) {
            map.remove("description");
        }
        map.values_mut().for_each(forget_descriptions);
    }
}

/// The text of a CRD's file.
///
/// # Errors
/// A value that YAML cannot hold: a fault in this crate.
pub fn to_yaml(crd: &Value) -> Result<String, serde_saphyr::ser_error::Error> {
    Ok(format!(
        "# Generated from crates/api by `make crds`; do not edit.\n{}",
        serde_saphyr::to_string(crd)?
    ))
}
