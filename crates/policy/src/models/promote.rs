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
            message: match gates.len() {
                1 => "its gate holds".to_owned(),
                count => format!("all {count} gates hold"),
            },
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
            min: Some(Decimal::from(min)),
            min_delta: None,
        }
    }

    #[test]
    fn each_gate_is_compared_with_its_metric() {
        let metrics = [
            Metric::new("test/accuracy", 0.9),
            Metric::new("test/auc", 0.5),
            Metric::new("test/accuracyDelta", -0.02),
            Metric::new("newest/rows", 0.0),
        ];
        let beside = Gate::beside_incumbent;
        let both = |min_delta: &str| Gate {
            min: Some(Decimal::from("0.9")),
            ..beside("test/accuracy", min_delta)
        };
        let table: [(&str, Vec<Gate>, Option<&str>); 14] = [
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
            ("as much worse as may be", vec![beside("test/accuracy", "-0.02")], None),
            (
                "worse",
                vec![beside("test/accuracy", "-0.0199")],
                Some("test/accuracy is -0.0200 beside the incumbent, below -0.0199"),
            ),
            (
                "no better",
                vec![beside("test/accuracy", "0.01")],
                Some("test/accuracy is -0.0200 beside the incumbent, below 0.01"),
            ),
            (
                "no incumbent",
                vec![beside("golden/accuracy", "-1")],
                Some("golden/accuracyDelta was not measured: the job had no golden set"),
            ),
            ("nothing new to compare on", vec![beside("newest/accuracy", "0")], None),
            (
                "nothing new to be good on",
                vec![gate("newest/accuracy", "0.1")],
                Some("newest/accuracy was not measured: the job held out no feedback, or there was too little"),
            ),
            ("both hold", vec![both("-0.1")], None),
            (
                "good enough and yet worse",
                vec![both("0")],
                Some("test/accuracy is -0.0200 beside the incumbent, below 0"),
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
