//! Places in a CRD's schema that restrict an object, and the CRD without one of them.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::plane::with;

/// What restricts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keyword {
    /// A bound, pattern or enum by its word.
    Plain(&'static str),
    /// A name in `required`.
    Required(String),
    /// A CEL rule by its place in the list.
    Rule(usize),
}

impl Keyword {
    /// The schema's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Plain(word) => word,
            Self::Required(_) => "required",
            Self::Rule(_) => RULES,
        }
    }
}

const RULES: &str = "x-kubernetes-validations";
const PLAIN: [&str; 10] = [
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "pattern",
    "enum",
];

/// One restriction.
#[derive(Clone, Debug)]
pub struct Site {
    pub kind: String,
    /// JSON pointer of the node in the schema.
    pub schema: String,
    pub keyword: Keyword,
    /// A good object that has a value there, by its place in the list, and the value's JSON pointer.
    pub base: usize,
    pub instance: String,
}

impl Site {
    /// Whether it is a CEL rule.
    pub fn is_rule(&self) -> bool {
        matches!(self.keyword, Keyword::Rule(_))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.kind, self.instance, self.keyword)
    }
}

/// A CRD.
pub struct Crd {
    pub object: Value,
}

/// The good objects of a kind, each with a full status, those that say most first.
pub fn bases(crd: &Crd, good: &[Value]) -> Vec<Value> {
    let mut all: Vec<Value> = good
        .iter()
        .filter(|o| o["kind"] == crd.kind())
        .map(|o| with(o, "/status", full_status(crd.kind())))
        .collect();
    all.sort_by_key(|o| std::cmp::Reverse(o.to_string().len()));
    all
}

fn full_status(kind: &str) -> Value {
    let condition = json!([{"type": "Ready", "status": "True", "reason": "AsExpected", "message": "m", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    match kind {
        "TrainingJob" => {
            json!({"observedGeneration": 1, "state": "Running", "conditions": condition, "nodes": "1/1", "attempt": 1,
            "restarts": 0, "countedRestarts": 0, "progress": {"step": "1/2", "loss": "0.3", "phase": "Training", "etaSeconds": 3,
            "checkpointStep": 1, "resumedFromStep": 1},
            "evaluations": [{"epoch": 1, "step": 1, "trainLoss": "0.5000", "validationLoss": "0.4000", "accuracy": "0.9000",
                "macroF1": "0.8900", "time": "2026-01-01T00:00:00Z"}],
            "tracking": {"tensorBoard": {"uri": "s3://b/k", "problem": "p"}, "mlflow": {"uri": "http://m", "problem": "p"}},
            "result": {"modelVersion": "v", "metrics": [{"name": "test/accuracy", "value": "0.9"}]}, "device": "Cpu", "precision": "BFloat16",
            "recovery": {"incidents": [{"cause": "NodeLost", "object": "o", "node": "n", "message": "m", "began": "2026-01-01T00:00:00Z",
                "detectSeconds": 1, "decideSeconds": 1, "replaceSeconds": 1, "recoverSeconds": 1, "capacitySeconds": 1, "podsBefore": 2}]},
            "dataset": {"rows": 9, "train": 5, "validation": 2, "test": 1, "golden": 1, "newest": 1, "empty": 0, "duplicates": 0, "conflicts": 1,
                "nearDuplicates": 1, "nearDuplicatesBySets": [{"set": "test", "of": "train", "rows": 1, "identical": 0}],
                "uncompared": 0, "labels": 2, "validationLabels": 2, "testLabels": 1, "goldenLabels": 1, "newestLabels": 1, "largestLabel": 3,
                "smallestLabel": 2, "imbalanceRatio": "1.5", "rareLabels": 2, "truncated": 1, "truncatedPercent": "11.1"}})
        }
        "ModelVersion" => json!({"observedGeneration": 1, "state": "Verified", "conditions": condition,
            "metric": "test/accuracy 0.93", "served": "True", "services": ["intent"]}),
        _ => {
            json!({"observedGeneration": 1, "state": "Ready", "conditions": condition, "url": "http://i", "modelVersion": "v",
            "canary": "w 5%", "replicas": 1, "pods": "1/1", "selector": "a=b", "device": "Cuda",
            "load": {"qps": "480", "concurrency": "9.1", "latencyP99Milliseconds": 41},
            "scaling": {"desiredReplicas": 3, "targetPerReplica": "170", "capacityPerReplica": "240", "startSeconds": 4,
                "decisions": [{"time": "2026-01-01T00:00:00Z", "from": 1, "to": 3, "reason": "LoadRose", "message": "m"}]},
            "recovery": {"incidents": [{"cause": "NodeLost", "object": "o", "node": "n", "message": "m", "began": "2026-01-01T00:00:00Z",
                "detectSeconds": 1, "decideSeconds": 1, "replaceSeconds": 1, "recoverSeconds": 1, "capacitySeconds": 1, "podsBefore": 2}]},
            "experiment": {"began": "2026-01-01T00:00:00Z",
                "variants": [{"modelVersion": "v", "judged": 1200, "accuracy": "0.9125"}, {"modelVersion": "w", "judged": 900, "stopped": "it failed"}],
                "comparisons": [{"modelVersion": "w", "verdict": "Undecided", "judged": 900, "controlJudged": 1200, "effect": "0.0100",
                    "lower": "-0.0100", "upper": "0.0300"}]},
            "drift": {"modelVersion": "v", "windowEnd": "2026-01-01T00:00:00Z", "texts": 800, "referenceTexts": 790, "judged": 120, "accuracy": "0.913",
                "features": [{"name": "confidence", "psi": "0.610", "ks": "0.310", "drifted": true}]},
            "quality": {"modelVersion": "v", "spanEnd": "2026-01-01T00:00:00Z", "judged": 500, "accuracy": "0.812", "baseline": "WeekAgo",
                "judgedBefore": 510, "accuracyBefore": "0.903", "dropped": true, "f1": "0.790", "f1Before": "0.880"},
            "retrainSchedule": {"schedule": "0 3 * * 1", "timeZone": "Etc/UTC", "since": "2026-01-01T00:00:00Z", "next": "2026-01-05T03:00:00Z"},
            "retraining": {"trainingJob": "intent-retrain-1", "time": "2026-01-01T00:00:00Z", "cause": "c", "modelVersion": "w"},
            "traffic": [{"modelVersion": "v", "pods": 1, "percent": 100, "precision": "Float16", "agreement": {"texts": 200, "same": 199}}],
            "mirror": {"modelVersion": "w", "observed": "2026-01-01T00:00:00Z", "texts": 1200, "same": 1164, "failed": 1, "shed": 7,
                "milliseconds": "12.3", "answeredMilliseconds": "10.1"},
            "rollout": {"modelVersion": "w", "judged": ["Labels", "ErrorRate"], "notJudged": ["Accuracy"]}})
        }
    }
}

impl Crd {
    pub fn new(object: Value) -> Self {
        Self { object }
    }

    pub fn kind(&self) -> &str {
        self.object["spec"]["names"]["kind"].as_str().unwrap()
    }

    pub fn schema(&self) -> &Value {
        &self.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    }

    /// Every restriction of spec and status, each with a good value that it is about. One that no good object reaches ends
    /// the test.
    pub fn sites(&self, bases: &[Value]) -> Vec<Site> {
        let mut sites = vec![];
        self.walk(&mut |pointer, node| {
            let mut keywords: Vec<Keyword> = PLAIN
                .into_iter()
                .filter(|word| node.get(*word).is_some_and(|v| !v.is_object()))
                .map(Keyword::Plain)
                .collect();
            let names = node["required"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|n| n.as_str().unwrap().to_owned());
            keywords.extend(names.map(Keyword::Required));
            keywords.extend((0..node[RULES].as_array().map_or(0, Vec::len)).map(Keyword::Rule));
            for keyword in keywords {
                let kind = self.kind().to_owned();
                let found = bases
                    .iter()
                    .enumerate()
                    .find_map(|(i, base)| Some((i, self.find(base, pointer)?)));
                let (base, instance) =
                    found.unwrap_or_else(|| panic!("{kind}: no good object has a value for {pointer} ({keyword:?})"));
                // The root's only properties of its own are those of every Kubernetes object.
                sites.push(Site {
                    kind,
                    schema: pointer.to_owned(),
                    keyword,
                    base,
                    instance,
                });
            }
        });
        sites
    }

    /// Every node of the schema with its JSON pointer.
    pub fn walk(&self, visit: &mut dyn FnMut(&str, &Value)) {
        fn go(node: &Value, pointer: &str, visit: &mut dyn FnMut(&str, &Value)) {
            visit(pointer, node);
            for (name, inner) in node["properties"].as_object().into_iter().flatten() {
                go(inner, &format!("{pointer}/properties/{name}"), visit);
            }
            for key in ["items", "additionalProperties"] {
                if node[key].is_object() {
                    go(&node[key], &format!("{pointer}/{key}"), visit);
                }
            }
        }
        go(self.schema(), "", visit);
    }

    /// JSON pointer of a value that the schema's node at `pointer` is about.
    pub fn find(&self, object: &Value, pointer: &str) -> Option<String> {
        fn go(value: &Value, parts: &[&str], at: String) -> Option<String> {
            match parts {
                [] => Some(at),
                ["properties", name, rest @ ..] => go(value.get(name)?, rest, format!("{at}/{name}")),
                ["items", rest @ ..] => value
                    .as_array()?
                    .iter()
                    .enumerate()
                    .find_map(|(i, item)| go(item, rest, format!("{at}/{i}"))),
                ["additionalProperties", rest @ ..] => value
                    .as_object()?
                    .iter()
                    .find_map(|(key, item)| go(item, rest, format!("{at}/{}", key.replace('/', "~1")))),
                _ => None,
            }
        }
        let parts: Vec<&str> = pointer.split('/').skip(1).collect();
        go(object, &parts, String::new())
    }

    /// The node of a site.
    pub fn node(&self, site: &Site) -> &Value {
        self.schema().pointer(&site.schema).unwrap()
    }

    /// The CRD under another group, without the restrictions of these sites, of which one node has one rule at most.
    pub fn mutant(&self, sites: &[&Site], group: &str) -> Value {
        let names = &self.object["spec"]["names"];
        let plural = names["plural"].as_str().unwrap();
        let mut version = self.object["spec"]["versions"][0].clone();
        version.as_object_mut().unwrap().remove("additionalPrinterColumns");
        let schema = version.pointer_mut("/schema/openAPIV3Schema").unwrap();
        for site in sites {
            forget(
                schema.pointer_mut(&site.schema).unwrap().as_object_mut().unwrap(),
                &site.keyword,
            );
        }
        forget_descriptions(schema);
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": "Namespaced", "versions": [version],
                "names": {"kind": names["kind"], "plural": plural, "singular": names["singular"]}}})
    }
}

fn forget(node: &mut Map<String, Value>, keyword: &Keyword) {
    match keyword {
        Keyword::Plain(word) => drop(node.remove(*word).unwrap()),
        Keyword::Required(name) => node["required"].as_array_mut().unwrap().retain(|n| n != name),
        Keyword::Rule(i) => drop(node[RULES].as_array_mut().unwrap().remove(*i)),
    }
    if node
        .get("required")
        .is_some_and(|r| r.as_array().is_some_and(Vec::is_empty))
    {
        node.remove("required");
    }
}

/// Descriptions cost the API server time and are no restriction.
fn forget_descriptions(node: &mut Value) {
    match node {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.values_mut().for_each(forget_descriptions);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_descriptions),
        _ => {}
    }
}
