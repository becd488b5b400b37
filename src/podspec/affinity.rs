//! Affinity and spread of pods: the class's label terms crossed with the user's own, and the open objects read strictly.

use flywheel_policy::placement::LabelTerm;
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm,
    TopologySpreadConstraint,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Most node terms of a pod: every one is compared with every node.
const NODE_TERMS_MAX: usize = 128;

/// What cannot be used, below the pod settings.
pub(super) struct Unusable {
    /// Path below the pod settings.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Unusable {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// The nodes that a pod may have, but for what the user says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes<'a> {
    /// Terms of the class; with none, every node is one.
    pub class: &'a [LabelTerm],
    /// Those of the class that it falls back to, whose nodes are taken where its own have no room.
    pub fallback: Option<&'a [LabelTerm]>,
    /// Names of nodes that are taken only where no other one has room.
    pub avoided: &'a [String],
}

/// Weight of a preference that is as strong as can be wished.
const STRONGEST: i32 = 100;

/// The pod's affinity. The class's terms and the user's required node terms are OR lists, so their cross product says both.
pub(super) fn affinity(nodes: Nodes<'_>, theirs: Option<&Value>) -> Result<Option<Affinity>, Unusable> {
    let path = "affinity";
    let mut affinity: Affinity = match theirs {
        Some(value) => strict(value, path)?,
        None => Affinity::default(),
    };
    let node = affinity.node_affinity.take().unwrap_or_default();
    let user_terms = match &node.required_during_scheduling_ignored_during_execution {
        Some(required) => {
            // A term without any requirement matches no node; crossed with the class it would match all of the class.
            let terms: Vec<&NodeSelectorTerm> = required
                .node_selector_terms
                .iter()
                .filter(|t| says_something(t))
                .collect();
            if terms.is_empty() {
                return Err(Unusable::new(
                    "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
                    "no term has a matchExpressions or matchFields entry, which matches no node; add one or remove the rule",
                ));
            }
            Some(terms)
        }
        None => None,
    };
    let class = class_terms(nodes.class);
    let class_terms = match nodes.fallback.map(class_terms) {
        None => class.clone(),
        // One of the two has every node.
        Some(fallback) if class.is_empty() || fallback.is_empty() => Vec::new(),
        Some(fallback) => {
            let more: Vec<NodeSelectorTerm> = fallback.into_iter().filter(|term| !class.contains(term)).collect();
            class.iter().cloned().chain(more).collect()
        }
    };
    let terms = match (class_terms.as_slice(), user_terms) {
        (ours, None) => ours.to_vec(),
        ([], Some(theirs)) => theirs.into_iter().cloned().collect(),
        (ours, Some(theirs)) => ours
            .iter()
            .flat_map(|a| theirs.iter().map(move |b| both(a, b)))
            .take(NODE_TERMS_MAX + 1)
            .collect(),
    };
    if terms.len() > NODE_TERMS_MAX {
        return Err(Unusable::new(
            path,
            format!(
                "the node terms crossed with those of the accelerator class are more than {NODE_TERMS_MAX}; give fewer"
            ),
        ));
    }
    let required = (!terms.is_empty()).then_some(NodeSelector {
        node_selector_terms: terms,
    });
    let mut preferred = node.preferred_during_scheduling_ignored_during_execution;
    if !nodes.avoided.is_empty() {
        preferred.get_or_insert_default().extend(others_than(nodes.avoided));
    }
    if nodes.fallback.is_some() && !class.is_empty() {
        let own = class.into_iter().map(|term| PreferredSchedulingTerm {
            weight: STRONGEST,
            preference: term,
        });
        preferred.get_or_insert_default().extend(own);
    }
    let node = NodeAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    };
    if node != NodeAffinity::default() {
        affinity.node_affinity = Some(node);
    }
    Ok((affinity != Affinity::default()).then_some(affinity))
}

/// Any node but these, the first as strongly as can be wished and each further one half as strongly as the one before: where all
/// nodes are among them, the last is the best.
fn others_than(avoided: &[String]) -> impl Iterator<Item = PreferredSchedulingTerm> {
    let weights = std::iter::successors(Some(STRONGEST), |weight| Some((weight / 2).max(1)));
    avoided
        .iter()
        .zip(weights)
        .map(|(name, weight)| PreferredSchedulingTerm {
            weight,
            preference: NodeSelectorTerm {
                match_expressions: None,
                match_fields: Some(vec![NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "NotIn".to_owned(),
                    values: Some(vec![name.clone()]),
                }]),
            },
        })
}

/// The pod's spread constraints.
pub(super) fn spread(theirs: &[Value]) -> Result<Vec<TopologySpreadConstraint>, Unusable> {
    theirs
        .iter()
        .enumerate()
        .map(|(i, value)| strict(value, &format!("topologySpreadConstraints[{i}]")))
        .collect()
}

fn says_something(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
        || term.match_fields.as_ref().is_some_and(|f| !f.is_empty())
}

/// A class's terms; none where every node is one of it.
fn class_terms(terms: &[LabelTerm]) -> Vec<NodeSelectorTerm> {
    // One empty term matches every node, and so does the OR of the terms then.
    if terms.iter().any(|t| t.0.is_empty()) {
        return Vec::new();
    }
    terms.iter().map(class_term).collect()
}

fn class_term(term: &LabelTerm) -> NodeSelectorTerm {
    NodeSelectorTerm {
        match_expressions: Some(
            term.0
                .iter()
                .map(|(key, values)| NodeSelectorRequirement {
                    key: key.clone(),
                    operator: "In".to_owned(),
                    values: Some(values.clone()),
                })
                .collect(),
        ),
        match_fields: None,
    }
}

fn both(ours: &NodeSelectorTerm, theirs: &NodeSelectorTerm) -> NodeSelectorTerm {
    let join = |a: &Option<Vec<NodeSelectorRequirement>>, b: &Option<Vec<NodeSelectorRequirement>>| {
        let all: Vec<NodeSelectorRequirement> = a.iter().chain(b).flatten().cloned().collect();
        (!all.is_empty()).then_some(all)
    };
    NodeSelectorTerm {
        match_expressions: join(&ours.match_expressions, &theirs.match_expressions),
        match_fields: join(&ours.match_fields, &theirs.match_fields),
    }
}

/// An open object as the type that it must be; an unknown field is an error, since a misspelt rule would otherwise be no rule.
fn strict<T: DeserializeOwned + Serialize>(value: &Value, path: &str) -> Result<T, Unusable> {
    let typed: T = serde_json::from_value(value.clone())
        .map_err(|e| Unusable::new(path, format!("this is not what a pod has there: {e}; correct it")))?;
    let read =
        serde_json::to_value(&typed).map_err(|e| Unusable::new(path, format!("this cannot be written again: {e}")))?;
    match unknown_field(value, &read, path) {
        Some(field) => Err(Unusable::new(
            field,
            "a pod has no such field there; correct its name or remove it",
        )),
        None => Ok(typed),
    }
}

/// Path of the first field of `given` that is not in `read`.
fn unknown_field(given: &Value, read: &Value, path: &str) -> Option<String> {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            given.iter().filter(|(_, v)| !v.is_null()).find_map(|(key, value)| {
                let at = format!("{path}.{key}");
                match read.get(key) {
                    Some(have) => unknown_field(value, have, &at),
                    None => Some(at),
                }
            })
        }
        (Value::Array(given), Value::Array(read)) => given
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(i, (g, r))| unknown_field(g, r, &format!("{path}[{i}]"))),
        _ => None,
    }
}
