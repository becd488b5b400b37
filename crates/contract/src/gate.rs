//! What a metric must reach, and whether it does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Decimal, Metric, metric_value};

/// A metric that must be high enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// `<set>/<measure>`, such as `test/accuracy` or `golden/macroF1`.
    #[schemars(
        length(max = 64),
        regex(pattern = r"^(validation|test|golden)/(accuracy|macroF1|weightedF1|auc)$")
    )]
    pub metric: String,
    /// Smallest value that passes.
    pub min: Decimal,
}

impl Gate {
    /// Compares the gate with the metric of its name: its value, where it is high enough. A metric that was not measured
    /// fails its gate: a gate that is skipped in silence is none.
    ///
    /// # Errors
    /// For people: by how much it fails, or why there is nothing to compare.
    pub fn judge(&self, metrics: &[Metric]) -> Result<f64, String> {
        let name = &self.metric;
        match (metric_value(metrics, name), self.min.value()) {
            (_, None) => Err(format!("{name}: {} is no number", self.min)),
            (None, Some(_)) => {
                let why = match name.starts_with("golden/") {
                    true => ": the job had no golden set",
                    false => "",
                };
                Err(format!("{name} was not measured{why}"))
            }
            (Some(value), Some(min)) if value < min => Err(format!("{name} is {value:.4}, below {}", self.min)),
            (Some(value), Some(_)) => Ok(value),
        }
    }
}
