//! Whether a version may be served in place of another: its gates against its metrics.

use flywheel_contract::gate::Gate;
use flywheel_contract::scalar::Metric;

/// The verdict of all gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All hold, or there are none.
    Passed {
        /// For people.
        message: String,
    },
    /// Some do not.
    Failed {
        /// Which, and by how much.
        message: String,
    },
}

/// All gates, each as [`Gate::judge`] says.
#[must_use]
pub fn judge(gates: &[Gate], metrics: &[Metric]) -> Verdict {
    if gates.is_empty() {
        return Verdict::Passed {
            message: "there are no gates".to_owned(),
        };
    }
    let failures: Vec<String> = gates.iter().filter_map(|gate| gate.judge(metrics).err()).collect();
    if failures.is_empty() {
        Verdict::Passed {
            message: format!("all {} gates hold", gates.len()),
        }
    } else {
        Verdict::Failed {
            message: failures.join("; "),
        }
    }
}

#[cfg(test)]
mod tests {
    use flywheel_contract::scalar::Decimal;

    use super::*;

    fn gate(metric: &str, min: &str) -> Gate {
        Gate {
            metric: metric.to_owned(),
            min: Decimal::from(min),
        }
    }

    #[test]
    fn each_gate_is_compared_with_its_metric() {
        let metrics = [Metric::new("test/accuracy", 0.9), Metric::new("test/auc", 0.5)];
        let table: [(&str, Vec<Gate>, Option<&str>); 6] = [
            ("none", vec![], None),
            ("equal", vec![gate("test/accuracy", "0.9")], None),
            (
                "below",
                vec![gate("test/accuracy", "0.91")],
                Some("test/accuracy is 0.9000, below 0.91"),
            ),
            (
                "missing",
                vec![gate("golden/accuracy", "0.1")],
                Some("golden/accuracy was not measured: the job had no golden set"),
            ),
            (
                "missing, other set",
                vec![gate("validation/auc", "0.1")],
                Some("validation/auc was not measured"),
            ),
            (
                "one of two",
                vec![gate("test/accuracy", "0.5"), gate("test/auc", "0.6")],
                Some("test/auc is 0.5000, below 0.6"),
            ),
        ];
        for (case, gates, failure) in table {
            match (judge(&gates, &metrics), failure) {
                (Verdict::Passed { .. }, None) => {}
                (Verdict::Failed { message }, Some(expected)) => assert_eq!(message, expected, "{case}"),
                (verdict, _) => panic!("{case}: {verdict:?}"),
            }
        }
    }
}
