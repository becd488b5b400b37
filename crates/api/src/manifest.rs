//! Reading objects from YAML files without a cluster: what `kubectl apply` would refuse is refused here, too.

use kube_core::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The documents of a YAML text, whatever they are.
///
/// # Errors
/// Broken YAML, with line and column.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|e| e.to_string())
}

/// The documents of kind `K` as objects; others may stand beside them, since files are often applied whole.
///
/// # Errors
/// One sentence with the field's path: another `apiVersion`, a missing or wrong field, or one that the schema does not have.
pub fn objects<K>(documents: &[Value]) -> Result<Vec<K>, String>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
{
    let kind = K::kind(&());
    documents
        .iter()
        .filter(|d| d.get("kind").and_then(Value::as_str) == Some(&kind))
        .map(object)
        .collect()
}

fn object<K>(document: &Value) -> Result<K, String>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
{
    let wanted = K::api_version(&());
    if document.get("apiVersion").and_then(Value::as_str) != Some(&wanted) {
        return Err(format!("apiVersion must be {wanted}"));
    }
    let object: K = serde_json::from_value(document.clone()).map_err(|e| e.to_string())?;
    let understood = serde_json::to_value(&object).map_err(|e| e.to_string())?;
    match (document.get("spec"), understood.get("spec")) {
        (Some(given), Some(understood)) => match unknown("spec", given, understood) {
            Some(field) => Err(format!("unknown field {field}")),
            None => Ok(object),
        },
        _ => Err("it has no spec".to_owned()),
    }
}

/// The first field of `given` that `understood`, which was made from it, does not have.
fn unknown(path: &str, given: &Value, understood: &Value) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => given.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            let empty = match value {
                Value::Null => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            match understood.get(key) {
                Some(known) => unknown(&path, value, known),
                None => (!empty).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(understood)) => given
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(i, (g, u))| unknown(&format!("{path}[{i}]"), g, u)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelVersion, TrainingJob};

    const TEXT: &str = "
apiVersion: v1
kind: Namespace
---
apiVersion: flywheel.dev/v1alpha1
kind: TrainingJob
metadata: {name: intent}
spec:
  task: TextClassification
  model: {pretrained: {uri: 's3://m/e'}}
  dataset: {sources: [{uri: 's3://d/a.csv'}]}
  output: {model: intent, uri: 's3://m/out'}
";

    #[test]
    fn objects_of_a_kind_are_found_beside_others() {
        let documents = documents(TEXT).unwrap();
        assert_eq!(objects::<TrainingJob>(&documents).unwrap().len(), 1);
        assert_eq!(objects::<ModelVersion>(&documents).unwrap().len(), 0);
    }

    #[test]
    fn what_kubectl_would_refuse_is_refused_with_its_path() {
        for (from, to, error) in [
            (
                "flywheel.dev/v1alpha1",
                "flywheel.dev/v9",
                "apiVersion must be flywheel.dev/v1alpha1",
            ),
            ("task: TextClassification", "colour: red", "missing field `task`"),
            ("  output:", "  colour: red\n  output:", "unknown field spec.colour"),
            (
                "'s3://d/a.csv'",
                "'s3://d/a.csv', fromat: Csv",
                "unknown field spec.dataset.sources[0].fromat",
            ),
        ] {
            let documents = documents(&TEXT.replace(from, to)).unwrap();
            let found = objects::<TrainingJob>(&documents).expect_err(error);
            assert!(found.contains(error), "{found}");
        }
    }
}
