//! What a metric must reach, and whether it does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Decimal, Metric, metric_value};

/// A metric that must be high enough: on its own (`min`), beside that of `output.incumbent` (`minDelta`), or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.min) || has(self.minDelta)",
        "message": "a gate needs min, minDelta or both",
        "reason": "FieldValueInvalid"
    },
    {
        "rule": "!has(self.minDelta) || self.metric in ['test/accuracy', 'golden/accuracy', 'newest/accuracy']",
        "message": "minDelta is for test/accuracy, golden/accuracy and newest/accuracy, on which versions are compared",
        "reason": "FieldValueInvalid",
        "fieldPath": ".minDelta"
    }
]))]
pub struct Gate {
    /// `<set>/<measure>`, such as `test/accuracy`, `golden/macroF1` or `newest/accuracy`.
    #[schemars(
        length(max = 64),
        regex(pattern = r"^(validation|test|golden|newest)/(accuracy|macroF1|weightedF1|auc)$")
    )]
    pub metric: String,
    /// Smallest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Decimal>,
    /// Smallest difference to the incumbent that passes, both on the same rows: `-0.005` lets a version pass that is right half a
    /// percent of all rows less often, and no worse one. The difference as it was measured counts, however few the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) >= -1.0 && double(self) <= 1.0",
        "message": "minDelta must lie between -1 and 1",
        "reason": "FieldValueInvalid"
    }]))]
    pub min_delta: Option<Decimal>,
}

impl Gate {
    /// A gate that a version passes which is right less often than the incumbent by at most this much.
    #[must_use]
    pub fn beside_incumbent(metric: &str, min_delta: &str) -> Self {
        Self {
            metric: metric.to_owned(),
            min: None,
            min_delta: Some(Decimal::from(min_delta)),
        }
    }

    /// Compares the gate with the metrics of its name. One that was not measured fails its gate: a gate that is skipped in silence
    /// is none. Beside the incumbent there is nothing to lose, though, where clients said too little for a newest set. For people:
    /// that it holds, and by what.
    ///
    /// # Errors
    /// For people: by how much it fails, or why there is nothing to compare.
    pub fn judge(&self, metrics: &[Metric]) -> Result<String, String> {
        let name = &self.metric;
        let mut held = Vec::new();
        if let Some(min) = &self.min {
            let value = measured(metrics, name)?;
            if value < number(name, min)? {
                return Err(format!("{name} is {value:.4}, below {min}"));
            }
            held.push(format!("{value:.4} is at least {min}"));
        }
        if let Some(min) = &self.min_delta {
            if name.starts_with("newest/") && metric_value(metrics, NEWEST_ROWS) == Some(0.0) {
                held.push("clients said too little for a newest set".to_owned());
                return Ok(held.join(", "));
            }
            let value = measured(metrics, &delta_of(name))?;
            if value < number(name, min)? {
                return Err(format!("{name} is {value:+.4} beside the incumbent, below {min}"));
            }
            held.push(format!("{value:+.4} beside the incumbent is at least {min}"));
        }
        Ok(held.join(", "))
    }
}

/// Name of the metric that tells how many rows of feedback were held out.
pub const NEWEST_ROWS: &str = "newest/rows";

/// Name of the metric that tells how much more often than the incumbent a version is right, by that of its own accuracy.
#[must_use]
pub fn delta_of(metric: &str) -> String {
    format!("{metric}Delta")
}

fn number(name: &str, limit: &Decimal) -> Result<f64, String> {
    limit.value().ok_or_else(|| format!("{name}: {limit} is no number"))
}

fn measured(metrics: &[Metric], name: &str) -> Result<f64, String> {
    metric_value(metrics, name).ok_or_else(|| {
        let why = match name.split_once('/') {
            Some(("golden", _)) => ": the job had no golden set",
            Some(("newest", _)) => ": the job held out no feedback, or there was too little",
            _ => "",
        };
        format!("{name} was not measured{why}")
    })
}
