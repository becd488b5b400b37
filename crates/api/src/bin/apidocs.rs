//! Writes docs/api.md from the schema, or with `--check` says whether the file differs.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use flywheel_api::conditions::{reasons, types};
use flywheel_contract::failure::{FailureClass, FailureReason};
use serde_json::Value;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (first, second) = (args.next(), args.next());
    let (check, file) = match (first.as_deref(), second) {
        (Some("--check"), Some(file)) => (true, file),
        (Some(file), None) if !file.starts_with('-') => (false, file.to_owned()),
        _ => {
            eprintln!(
                "usage: apidocs [--check] FILE\n  writes the reference of flywheel.dev's kinds into FILE; --check only compares, and fails where it differs"
            );
            return ExitCode::from(2);
        }
    };
    match run(check, Path::new(&file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("apidocs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let text = document()?;
    if check {
        if std::fs::read_to_string(file).unwrap_or_default() != text {
            return Err(format!(
                "{} is not what crates/api says; run `make crds` and commit the change",
                file.display()
            )
            .into());
        }
    } else {
        std::fs::write(file, text)?;
    }
    Ok(())
}

fn document() -> Result<String, Box<dyn std::error::Error>> {
    let mut text = String::from(
        "<!-- Generated from crates/api by `make crds`; do not edit. -->\n\
         # The API: `flywheel.dev/v1alpha1`\n\n\
         Three namespaced kinds, all in the category `flywheel` (`kubectl get flywheel`). The API server refuses an object that\n\
         breaks a rule below, and names the field. `[]` stands for an item of a list, `{}` for a value of a map; **bold** fields\n\
         must be given where the object around them is.\n",
    );
    for (_, crd) in flywheel_api::crds()? {
        kind(&mut text, &crd)?;
    }
    conditions(&mut text)?;
    Ok(text)
}

fn kind(out: &mut String, crd: &Value) -> std::fmt::Result {
    let string = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let schema = crd
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .unwrap_or(&Value::Null);
    writeln!(out, "\n## {}\n", string("/spec/names/kind"))?;
    writeln!(out, "{}\n", description(schema))?;
    let short = string("/spec/names/shortNames/0");
    let columns: Vec<&str> = crd
        .pointer("/spec/versions/0/additionalPrinterColumns")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|c| c.get("name").and_then(Value::as_str))
        .collect();
    writeln!(out, "`kubectl get {short}` shows {}.\n", columns.join(", "))?;
    rules(out, "the object", schema)?;
    for part in ["spec", "status"] {
        let Some(node) = schema.pointer(&format!("/properties/{part}")) else {
            continue;
        };
        writeln!(out, "\n### {} {part}\n", string("/spec/names/kind"))?;
        writeln!(out, "| field | type | default | bounds | what |\n|---|---|---|---|---|")?;
        let mut rules_of = vec![];
        fields(out, part, node, &mut rules_of)?;
        let mut first = true;
        for (path, node) in std::iter::once((part.to_owned(), node)).chain(rules_of) {
            if node.get("x-kubernetes-validations").is_some() {
                if first {
                    writeln!(out, "\nRules:\n")?;
                    first = false;
                }
                rules(out, &format!("`{path}`"), node)?;
            }
        }
    }
    Ok(())
}

/// One row per field below `node`, in the schema's order of names; nodes with rules are collected.
fn fields<'a>(
    out: &mut String,
    path: &str,
    node: &'a Value,
    rules_of: &mut Vec<(String, &'a Value)>,
) -> std::fmt::Result {
    let required: Vec<&str> = node
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let Some(properties) = node.get("properties").and_then(Value::as_object) else {
        return Ok(());
    };
    for (name, inner) in properties {
        let full = format!("{path}.{name}");
        // Every Kubernetes user knows these.
        let condition = full == "status.conditions";
        let mark = if required.contains(&name.as_str()) { "**" } else { "" };
        writeln!(
            out,
            "| {mark}`{full}`{mark} | {} | {} | {} | {} |",
            type_of(inner),
            default_of(inner),
            bounds(inner),
            cell(&description(inner))
        )?;
        if inner.get("x-kubernetes-validations").is_some() {
            rules_of.push((full.clone(), inner));
        }
        if condition {
            continue;
        }
        let (suffix, below) = match (inner.get("items"), inner.get("additionalProperties")) {
            (Some(items), _) => ("[]", items),
            (None, Some(values)) => ("{}", values),
            (None, None) => ("", inner),
        };
        let below_path = format!("{full}{suffix}");
        if !suffix.is_empty() && below.get("x-kubernetes-validations").is_some() {
            rules_of.push((below_path.clone(), below));
        }
        fields(out, &below_path, below, rules_of)?;
    }
    Ok(())
}

fn rules(out: &mut String, of: &str, node: &Value) -> std::fmt::Result {
    for rule in node
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let message = rule.get("message").and_then(Value::as_str).unwrap_or_default();
        let field = rule.get("fieldPath").and_then(Value::as_str).unwrap_or_default();
        let at = if field.is_empty() {
            of.to_owned()
        } else {
            format!("{of}, `{field}`")
        };
        writeln!(out, "- {at}: {message}.")?;
    }
    Ok(())
}

fn description(node: &Value) -> String {
    let text = node.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text that cannot end a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn type_of(node: &Value) -> String {
    let word = |node: &Value| -> String {
        if node.get("x-kubernetes-int-or-string").is_some() {
            return "integer or string".to_owned();
        }
        let plain = node.get("type").and_then(Value::as_str).unwrap_or("any");
        match node.get("format").and_then(Value::as_str) {
            Some("date-time") => "time".to_owned(),
            _ => plain.to_owned(),
        }
    };
    match (node.get("items"), node.get("additionalProperties")) {
        (Some(items), _) => match node.get("x-kubernetes-list-map-keys").and_then(Value::as_array) {
            Some(keys) => {
                let keys: Vec<String> = keys
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|k| format!("`{k}`"))
                    .collect();
                format!("list of {}, by {}", word(items), keys.join(" and "))
            }
            None => format!("list of {}", word(items)),
        },
        (None, Some(values)) => format!("map of {}", word(values)),
        (None, None) if node.get("x-kubernetes-preserve-unknown-fields").is_some() => "open object".to_owned(),
        (None, None) => word(node),
    }
}

fn default_of(node: &Value) -> String {
    match node.get("default") {
        None => String::new(),
        // The fields below have their own.
        Some(Value::Object(_)) => "see below".to_owned(),
        Some(Value::String(text)) => format!("`\"{text}\"`"),
        Some(value) => format!("`{value}`"),
    }
}

fn bounds(node: &Value) -> String {
    let number = |key: &str| node.get(key).and_then(Value::as_f64);
    let mut parts = vec![];
    if let Some(words) = node.get("enum").and_then(Value::as_array) {
        let words: Vec<String> = words
            .iter()
            .filter_map(Value::as_str)
            .map(|w| format!("`{w}`"))
            .collect();
        parts.push(words.join(", "));
    }
    match (number("minimum"), number("maximum")) {
        (Some(low), Some(high)) => parts.push(format!("{low} to {high}")),
        (Some(low), None) => parts.push(format!("at least {low}")),
        (None, Some(high)) => parts.push(format!("at most {high}")),
        (None, None) => {}
    }
    for (low, high, unit) in [
        ("minLength", "maxLength", "characters"),
        ("minItems", "maxItems", "items"),
        ("minProperties", "maxProperties", "entries"),
    ] {
        match (number(low), number(high)) {
            (Some(low), Some(high)) => parts.push(format!("{low} to {high} {unit}")),
            (Some(low), None) => parts.push(format!("at least {low} {unit}")),
            (None, Some(high)) => parts.push(format!("at most {high} {unit}")),
            (None, None) => {}
        }
    }
    if let Some(pattern) = node.get("pattern").and_then(Value::as_str) {
        parts.push(format!("`{}`", cell(pattern)));
    }
    if let Some(values) = node.get("additionalProperties") {
        let inner = bounds(values);
        if !inner.is_empty() {
            parts.push(format!("each {inner}"));
        }
    }
    parts.join("; ")
}

fn conditions(out: &mut String) -> std::fmt::Result {
    out.push_str(
        "\n## Conditions\n\n\
         Each carries the generation that it is about. `Ready` is the summary; `Reconciling` and `Stalled` are there only while\n\
         True, so that kstatus (Flux, `kubectl wait`) reads them.\n\n\
         | type | what it says when True |\n|---|---|\n",
    );
    for (name, doc) in types::DOCUMENTED {
        writeln!(out, "| `{name}` | {} |", cell(doc))?;
    }
    out.push_str("\n## Reasons\n\nGiven by the operator:\n\n| reason | what |\n|---|---|\n");
    for (name, doc) in reasons::DOCUMENTED {
        writeln!(out, "| `{name}` | {} |", cell(doc))?;
    }
    out.push_str(
        "\nGiven by pods of training, verification and serving, in their termination message or statistics. What is the user's to\n\
         mend is not tried again.\n\n| reason | what | who acts |\n|---|---|---|\n",
    );
    for (reason, doc) in FailureReason::DOCUMENTED {
        let who = match reason.class() {
            FailureClass::User => "user",
            FailureClass::OutOfMemory => "user: more memory, or smaller batches",
            FailureClass::Infrastructure => "tried again",
        };
        writeln!(out, "| `{}` | {} | {who} |", reason.as_str(), cell(doc))?;
    }
    Ok(())
}
