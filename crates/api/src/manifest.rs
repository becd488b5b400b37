//! Reading objects from YAML files without a cluster: what `kubectl apply` would refuse is refused here, too.

use std::borrow::Cow;

use jsonschema::JsonType;
use jsonschema::error::{TypeKind, ValidationError, ValidationErrorKind};
use kube_core::{CustomResourceExt, cel};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_saphyr::{MessageFormatter, UserMessageFormatter};

/// Bytes of a value that a message shows.
const VALUE_MAX: usize = 80;

/// The parser's messages, without its advice for programmers.
struct Plain;

impl MessageFormatter for Plain {
    fn format_message<'a>(&self, error: &'a serde_saphyr::Error) -> Cow<'a, str> {
        match error {
            serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
                let key = key.as_deref().unwrap_or("a key");
                Cow::Owned(format!("{key} is there twice; keep one"))
            }
            _ => UserMessageFormatter.format_message(error),
        }
    }
}

/// The documents of a YAML text, whatever they are.
///
/// # Errors
/// Broken YAML, with line and column.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|e| e.render_with_formatter(&Plain))
}

/// The documents of kind `K` as objects; others may stand beside them, since files are often applied whole.
///
/// # Errors
/// One sentence with the field's path: another `apiVersion`, a missing or wrong field, one that the schema does not have, or
/// a value that it does not allow.
pub fn objects<K>(documents: &[Value]) -> Result<Vec<K>, String>
where
    K: CustomResourceExt + kube_core::Resource<DynamicType = ()> + DeserializeOwned + Serialize,
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
    K: CustomResourceExt + kube_core::Resource<DynamicType = ()> + DeserializeOwned + Serialize,
{
    let wanted = K::api_version(&());
    if document.get("apiVersion").and_then(Value::as_str) != Some(&wanted) {
        return Err(format!("apiVersion must be {wanted}"));
    }
    let given = sent(document);
    let schema = schema_of::<K>()?;
    let (Some(spec), Some(below)) = (document.get("spec"), schema.pointer("/properties/spec")) else {
        return Err("it has no spec".to_owned());
    };
    let unknown = beside_spec(document).or_else(|| unknown("spec", spec, below));
    if let Some(field) = unknown {
        return Err(format!("unknown field {field}"));
    }
    // Before it is made an object: what cannot become one is told without a path.
    check_structure(&schema, &given)?;
    let object: K = serde_path_to_error::deserialize(&given).map_err(|e| located(&e.path().to_string(), e.inner()))?;
    let mut understood = serde_json::to_value(&object).map_err(|e| e.to_string())?;
    // Only a cluster needs a name.
    if let Some(metadata) = understood.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.entry("name").or_insert_with(|| json!("unnamed"));
    }
    check_rules(&schema, &understood)?;
    Ok(object)
}

/// A document as the API server gets it: kubectl writes whole numbers without a point, and fields that are null count as left
/// out.
fn sent(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), sent(value)))
            .collect(),
        Value::Array(list) => list.iter().map(sent).collect(),
        Value::Number(number) => {
            let whole = number
                .to_string()
                .strip_suffix(".0")
                .and_then(|n| n.parse::<i64>().ok());
            whole.map_or_else(|| value.clone(), Value::from)
        }
        _ => value.clone(),
    }
}

fn schema_of<K: CustomResourceExt>() -> Result<Value, String> {
    let crd = K::crd();
    let schema = crd
        .spec
        .versions
        .first()
        .and_then(|v| v.schema.as_ref()?.open_api_v3_schema.as_ref());
    let schema = schema.ok_or_else(|| format!("{} has no schema", crd.spec.names.kind))?;
    serde_json::to_value(schema).map_err(|e| e.to_string())
}

/// Whether the schema allows the document as it stands: types, fields that are required, bounds, patterns.
fn check_structure(schema: &Value, document: &Value) -> Result<(), String> {
    let validator = jsonschema::validator_for(schema).map_err(|e| e.to_string())?;
    match validator.iter_errors(document).next() {
        Some(error) => Err(told(&error)),
        None => Ok(()),
    }
}

fn told(error: &ValidationError<'_>) -> String {
    let path = dotted(error.instance_path().as_str());
    let value = error.instance().to_string();
    let shown = if value.len() > VALUE_MAX {
        "the value"
    } else {
        value.as_str()
    };
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let place = field(&path, property.as_str().unwrap_or_default());
            format!("{place}: it is required and not there")
        }
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten().filter_map(Value::as_str);
            located(
                &path,
                format!("{shown} is none of {}", options.collect::<Vec<_>>().join(", ")),
            )
        }
        kind => {
            // Bounds are floats in a CRD's schema.
            let problem = error.masked_with(shown).to_string();
            let problem = problem.strip_suffix(".0").unwrap_or(&problem);
            let is_text = matches!(
                kind,
                ValidationErrorKind::Type {
                    kind: TypeKind::Single(JsonType::String)
                }
            );
            let scalar = error.instance().is_number() || error.instance().is_boolean();
            let is_path = matches!(kind, ValidationErrorKind::Pattern { .. })
                && path.to_lowercase().ends_with("uri")
                && error.instance().as_str().is_some_and(|text| text.starts_with('/'));
            let remedy = if is_text && scalar {
                "; write it in quotes"
            } else if is_path {
                "; write a path as file:///..."
            } else {
                ""
            };
            located(&path, format!("{problem}{remedy}"))
        }
    }
}

/// A problem with its place, where it has one.
fn located(path: &str, problem: impl std::fmt::Display) -> String {
    match path {
        "" | "." => problem.to_string(),
        path => format!("{path}: {problem}"),
    }
}

/// Whether the keys of lists and the rules in CEL allow the object, defaults filled in. They may assume its structure.
fn check_rules(schema: &Value, object: &Value) -> Result<(), String> {
    if let Some(place) = repeated("", schema, object) {
        return Err(format!("{place}: it is there twice"));
    }
    let errors = cel::Validator::new().validate(schema, object, None);
    let first = errors.err().and_then(|list| list.into_vec().into_iter().next());
    match first {
        Some(error) => Err(error.to_string()),
        None => Ok(()),
    }
}

/// The first item of a list whose keys, those of `x-kubernetes-list-map-keys`, an item before it has.
fn repeated(path: &str, schema: &Value, value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let below = schema.get("properties")?.get(key)?;
            repeated(&field(path, key), below, value)
        }),
        Value::Array(list) => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            let of = |item: &Value| -> Option<Vec<Value>> {
                keys.map(|keys| keys.iter().filter_map(|k| item.get(k.as_str()?).cloned()).collect())
            };
            list.iter().enumerate().find_map(|(i, item)| {
                let place = format!("{path}[{i}]");
                let twice = keys.is_some() && list.iter().take(i).any(|before| of(before) == of(item));
                match twice {
                    true => Some(place),
                    false => repeated(&place, schema.get("items")?, item),
                }
            })
        }
        _ => None,
    }
}

/// The path of a field of what lies at `path`.
fn field(path: &str, key: &str) -> String {
    let dot = if path.is_empty() { "" } else { "." };
    format!("{path}{dot}{key}")
}

/// The path of a field as messages of the API server write it.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        if part.bytes().all(|b| b.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else {
            path = field(&path, &part);
        }
    }
    path
}

/// The first field that the schema does not have, whatever it holds. Of what has another type than the schema says, nothing.
fn unknown(path: &str, value: &Value, schema: &Value) -> Option<String> {
    match value {
        Value::Object(map) if schema.get("type").is_none_or(|kind| kind == "object") => {
            map.iter().find_map(|(key, value)| {
                let path = field(path, key);
                let named = schema.get("properties").and_then(|properties| properties.get(key));
                match named.or_else(|| schema.get("additionalProperties")) {
                    Some(below) => unknown(&path, value, below),
                    None => (!is_open(schema)).then_some(path),
                }
            })
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(i, item)| unknown(&format!("{path}[{i}]"), item, schema.get("items")?)),
        _ => None,
    }
}

/// The first field beside the spec that no object has.
fn beside_spec(document: &Value) -> Option<String> {
    const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    const METADATA: [&str; 15] = [
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ];
    let other = |of: Option<&Value>, known: &[&str]| {
        let mut keys = of.and_then(Value::as_object)?.keys();
        keys.find(|key| !known.contains(&key.as_str())).cloned()
    };
    other(Some(document), &TOP).or_else(|| Some(field("metadata", &other(document.get("metadata"), &METADATA)?)))
}

/// Whether fields beyond those that it names are kept.
fn is_open(schema: &Value) -> bool {
    schema.is_boolean() || schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
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
    fn a_field_that_the_schema_lacks_is_refused_whatever_it_holds() {
        for (place, path) in [
            ("spec", "spec.bogus"),
            ("hyperparameters", "spec.hyperparameters.bogus"),
        ] {
            for value in ["3", "{}", "[]", "null", "{a: 1}"] {
                let line = match place {
                    "spec" => format!("  bogus: {value}\n"),
                    _ => format!("  hyperparameters: {{bogus: {value}}}\n"),
                };
                let documents = documents(&format!("{TEXT}{line}")).unwrap();
                let error = objects::<TrainingJob>(&documents).unwrap_err();
                assert_eq!(error, format!("unknown field {path}"), "{value}");
            }
        }
        // Fields whose content is the user's own, and known ones without a value.
        let free = "  suspend: null\n  trainer: {pod: {labels: {mine: x}, nodeSelector: {a: b}}}\n";
        let documents = documents(&format!("{TEXT}{free}")).unwrap();
        objects::<TrainingJob>(&documents).unwrap();
    }

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
            ("task: TextClassification", "colour: red", "unknown field spec.colour"),
            ("spec:", "colour: red\nspec:", "unknown field colour"),
            (
                "metadata: {name: intent}",
                "metadata: {name: intent, colour: red}",
                "unknown field metadata.colour",
            ),
            (
                "{uri: 's3://d/a.csv'}",
                "{format: Csv}",
                "spec.dataset.sources[0].uri: it is required and not there",
            ),
            (
                "sources: [{uri: 's3://d/a.csv'}]",
                "sources: {uri: 's3://d/a.csv'}",
                "spec.dataset.sources: {\"uri\":\"s3://d/a.csv\"} is not of type \"array\"",
            ),
            (
                "  output:",
                "  hyperparameters: {learningRate: 1e-4}\n  output:",
                "spec.hyperparameters.learningRate: 0.0001 is not of type \"string\"; write it in quotes",
            ),
            (
                "model: intent,",
                "model: true,",
                "spec.output.model: true is not of type \"string\"; write it in quotes",
            ),
            (
                "  output:",
                "  hyperparameters: {epochs: four}\n  output:",
                "spec.hyperparameters.epochs: \"four\" is not of type \"integer\"",
            ),
            (
                "  output:",
                "  hyperparameters: {precision: fp8}\n  output:",
                "spec.hyperparameters.precision: \"fp8\" is none of Auto, Float32, BFloat16, Float16, Int8",
            ),
            (
                "  output:",
                "  hyperparameters: 4\n  output:",
                "spec.hyperparameters: 4 is not of type \"object\"",
            ),
            (
                "{name: intent}",
                "{name: intent, labels: {team: 7}}",
                "metadata.labels.team: invalid type: integer `7`, expected a string",
            ),
            ("spec:", "spe:", "it has no spec"),
            ("  output:", "  colour: red\n  output:", "unknown field spec.colour"),
            (
                "'s3://d/a.csv'",
                "'s3://d/a.csv', fromat: Csv",
                "unknown field spec.dataset.sources[0].fromat",
            ),
            (
                "  output:",
                "  hyperparameters: {epochs: 100000}\n  output:",
                "spec.hyperparameters.epochs: 100000 is greater than the maximum of 1000",
            ),
            (
                "  output:",
                "  hyperparameters: {seed: -1}\n  output:",
                "spec.hyperparameters.seed: -1 is less than the minimum of 0",
            ),
            (
                "'s3://d/a.csv'",
                "'ftp://d/a.csv'",
                "spec.dataset.sources[0].uri: \"ftp://d/a.csv\" does not match",
            ),
            ("'s3://d/a.csv'", "/tmp/a.csv", "; write a path as file:///..."),
            (
                "uri: 's3://m/out'",
                "uri: 's3://m/out', gates: [{metric: test/auc, min: '0.9'}, {metric: test/auc, min: '0.8'}]",
                "spec.output.gates[1]: it is there twice",
            ),
            (
                "{name: intent}",
                "{name: Intent}",
                "metadata.name: the name must be a DNS label",
            ),
            (
                "  output:",
                "  hyperparameters: {batchSize: 1}\n  trainer: {numNodes: 2}\n  output:",
                "spec.hyperparameters.batchSize: batchSize must be at least",
            ),
        ] {
            let documents = documents(&TEXT.replace(from, to)).unwrap();
            let found = objects::<TrainingJob>(&documents).expect_err(error);
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn every_usual_way_to_write_a_place_an_image_or_a_label_is_understood() {
        let accepted = |text: &str| {
            let found = objects::<TrainingJob>(&documents(text).unwrap());
            assert!(found.is_ok(), "{text}: {found:?}");
        };
        for uri in [
            "s3://b",
            "s3://b/",
            "s3://my.bucket_1-x/k/.hidden/..x/a..b/",
            "file:///d",
            "file:///d//e=1,2+3%20é",
            "https://h:8443/.well-known/a%20b.csv",
            "http://[::1]:9000/a.csv",
        ] {
            accepted(&TEXT.replace("s3://d/a.csv", uri));
        }
        for image in [
            "nginx",
            "team/trainer",
            "localhost:5000/a/b-c_d.e:v1.0-x",
            "Registry.example.com/team/trainer:1@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "r.io/t@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ] {
            accepted(&TEXT.replace("  output:", &format!("  trainer: {{image: '{image}'}}\n  output:")));
        }
        for label in ["a: b", "A.b_c-d: ''", "example.com/a: A_b.c-d", "e/a: 'true'"] {
            let pod = format!("{{labels: {{{label}}}, nodeSelector: {{{label}}}, annotations: {{{label}}}}}");
            accepted(&TEXT.replace("  output:", &format!("  trainer: {{pod: {pod}}}\n  output:")));
        }
    }

    #[test]
    fn explicit_nulls_and_points_after_whole_numbers_are_as_if_left_out() {
        let nulls = TEXT.replace(
            "  output:",
            "  hyperparameters: {epochs: null, precision: null, batchSize: 16.0}\n  tracking: null\n  trainer:\n  output:",
        );
        let of = |text: &str| objects::<TrainingJob>(&documents(text).unwrap()).unwrap();
        assert_eq!(of(&nulls), of(TEXT));
    }

    #[test]
    fn a_key_that_is_there_twice_is_told_with_its_line_and_no_library_speaks() {
        let error = documents(&TEXT.replace("  output:", "  task: Other\n  output:")).unwrap_err();
        for word in ["task is there twice", "line 12"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(!error.contains("Policy"), "{error}");
    }
}
