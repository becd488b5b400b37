//! What a classifier is worth on a labelled set: plain numbers in, plain numbers out, no tensors.
//!
//! Definitions follow scikit-learn, so that figures can be compared: macro and weighted F1 over the classes that
//! occur in truth or answers, AUC one against the rest by ranks (Mann-Whitney, ties share their mean rank).

use flywheel_contract::gate::delta_of;
use flywheel_contract::hyperparameters::StoppingMetric;
use flywheel_contract::scalar::Metric;
use serde::{Deserialize, Serialize};

/// Inputs that do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// No row.
    #[error("nothing to evaluate: the set has no rows")]
    Empty,
    /// Counts differ.
    #[error("{outputs} rows of logits for {labels} labels")]
    Length {
        /// Rows of logits.
        outputs: usize,
        /// Labels.
        labels: usize,
    },
    /// A row has another number of logits than the first.
    #[error("row {row} has {got} logits, the first has {want}")]
    Width {
        /// Its place.
        row: usize,
        /// Its logits.
        got: usize,
        /// Those of the first row.
        want: usize,
    },
    /// A label that is no class.
    #[error("row {row} has label {label}, there are {classes} classes")]
    Label {
        /// Its place.
        row: usize,
        /// Its label.
        label: i64,
        /// Number of classes.
        classes: usize,
    },
}

/// Figures of one labelled set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// Rows counted.
    pub rows: usize,
    /// Mean cross-entropy, nats.
    pub loss: f64,
    /// Share of rows whose highest logit is the label's (of equal logits the first counts).
    pub accuracy: f64,
    /// Mean F1 over the classes that occur in truth or answers.
    pub macro_f1: f64,
    /// F1 weighted by how often each class is the truth.
    pub weighted_f1: f64,
    /// Mean over classes of the area under the ROC curve of that class against the rest, over the classes for which it
    /// is defined (some rows have the class and some do not); `None` where it is for none.
    pub auc: Option<f64>,
}

impl Evaluation {
    /// The figures as metrics called `<set>/<measure>`; AUC only where it is defined.
    #[must_use]
    pub fn metrics(&self, set: &str) -> Vec<Metric> {
        let named = [
            ("accuracy", Some(self.accuracy)),
            ("macroF1", Some(self.macro_f1)),
            ("weightedF1", Some(self.weighted_f1)),
            ("auc", self.auc),
            ("loss", Some(self.loss)),
        ];
        named
            .into_iter()
            .filter_map(|(name, value)| Some(Metric::new(format!("{set}/{name}"), value?)))
            .collect()
    }

    /// The measure that early stopping looks at, turned so that higher is better.
    #[must_use]
    pub fn score(&self, metric: StoppingMetric) -> f64 {
        match metric {
            StoppingMetric::Accuracy => self.accuracy,
            StoppingMetric::MacroF1 => self.macro_f1,
            StoppingMetric::Loss => -self.loss,
        }
    }
}

/// Two classifiers on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paired {
    /// Rows that both answered.
    pub rows: usize,
    /// Rows that only the first has right.
    pub won: usize,
    /// Rows that only the second has right.
    pub lost: usize,
}

impl Paired {
    /// From whether each has each row right, in the same order.
    ///
    /// # Errors
    /// [`EvaluationError`] where there are no rows, or not as many of both.
    pub fn of(first: &[bool], second: &[bool]) -> Result<Self, EvaluationError> {
        if first.len() != second.len() {
            return Err(EvaluationError::Length {
                outputs: second.len(),
                labels: first.len(),
            });
        }
        if first.is_empty() {
            return Err(EvaluationError::Empty);
        }
        let count = |wins: bool| {
            let pairs = first.iter().zip(second);
            pairs
                .filter(|(first, second)| **first == wins && **second != wins)
                .count()
        };
        Ok(Self {
            rows: first.len(),
            won: count(true),
            lost: count(false),
        })
    }

    /// Accuracy of the first less that of the second.
    #[must_use]
    pub fn delta(&self) -> f64 {
        (self.won as f64 - self.lost as f64) / self.rows as f64
    }

    /// Standard error of [`Paired::delta`]. Rows on which both agree tell nothing of it (McNemar 1947), so it is far below that of two
    /// accuracies of which nobody knows that they are of the same rows: the square root of `won + lost - (won - lost)² / rows`,
    /// over `rows` (Agresti, Categorical Data Analysis, 11.1).
    #[must_use]
    pub fn error(&self) -> f64 {
        let (won, lost, rows) = (self.won as f64, self.lost as f64, self.rows as f64);
        (won + lost - (won - lost).powi(2) / rows).max(0.0).sqrt() / rows
    }

    /// Both as metrics of a set.
    #[must_use]
    pub fn metrics(&self, set: &str) -> [Metric; 2] {
        let delta = delta_of(&format!("{set}/accuracy"));
        let error = format!("{delta}Error");
        [Metric::new(delta, self.delta()), Metric::new(error, self.error())]
    }
}

/// Whether each row's highest value is the label's (of equal values the first counts), by label names, which need not be the same
/// list as that of the truths: `answers`, `[rows][names]`.
#[must_use]
pub fn right(answers: &[Vec<f32>], names: &[String], truths: &[&str]) -> Vec<bool> {
    let pairs = answers.iter().zip(truths);
    pairs
        .map(|(answer, truth)| names.get(highest(answer)).is_some_and(|name| name == truth))
        .collect()
}

/// How often each class was the answer to each, `[truth][answer]`, for logits, `[rows][classes]`, and labels, `[rows]`.
///
/// # Errors
/// [`EvaluationError`] when the inputs do not belong together.
pub fn confusion(logits: &[Vec<f32>], labels: &[i64]) -> Result<Vec<Vec<u64>>, EvaluationError> {
    let truths = truths(logits, labels)?;
    let classes = logits.first().map_or(0, Vec::len);
    let mut confusion = vec![vec![0u64; classes]; classes];
    for (logits, truth) in logits.iter().zip(truths) {
        if let Some(count) = confusion.get_mut(truth).and_then(|r| r.get_mut(highest(logits))) {
            *count += 1;
        }
    }
    Ok(confusion)
}

/// Evaluates logits, `[rows][classes]`, against labels, `[rows]`.
///
/// # Errors
/// [`EvaluationError`] when the inputs do not belong together.
pub fn evaluate(logits: &[Vec<f32>], labels: &[i64]) -> Result<Evaluation, EvaluationError> {
    let truths = truths(logits, labels)?;
    let confusion = confusion(logits, labels)?;
    let mut loss = 0.0;
    let mut probabilities = Vec::with_capacity(truths.len());
    for (logits, truth) in logits.iter().zip(&truths) {
        let log_probabilities = log_softmax(logits);
        loss -= log_probabilities.get(*truth).copied().unwrap_or(f64::NAN);
        probabilities.push(log_probabilities.into_iter().map(f64::exp).collect());
    }
    let rows = truths.len();
    let (macro_f1, weighted_f1) = f1(&confusion);
    let right: u64 = confusion.iter().enumerate().filter_map(|(i, r)| r.get(i)).sum();
    Ok(Evaluation {
        rows,
        loss: loss / rows as f64,
        accuracy: right as f64 / rows as f64,
        macro_f1,
        weighted_f1,
        auc: auc(&probabilities, &truths, confusion.len()),
    })
}

/// The labels as class indices, after checking that each row has one logit per class and each label is a class.
fn truths(logits: &[Vec<f32>], labels: &[i64]) -> Result<Vec<usize>, EvaluationError> {
    if logits.len() != labels.len() {
        return Err(EvaluationError::Length {
            outputs: logits.len(),
            labels: labels.len(),
        });
    }
    let classes = logits.first().ok_or(EvaluationError::Empty)?.len();
    let truths = logits.iter().zip(labels).enumerate().map(|(row, (logits, label))| {
        if logits.len() != classes {
            return Err(EvaluationError::Width {
                row,
                got: logits.len(),
                want: classes,
            });
        }
        let truth = usize::try_from(*label).ok().filter(|l| *l < classes);
        truth.ok_or(EvaluationError::Label {
            row,
            label: *label,
            classes,
        })
    });
    truths.collect()
}

/// Natural logarithms of the softmax, in f64.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|x| f64::from(*x) - f64::from(highest));
    let norm = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|x| x - norm).collect()
}

/// Index of the highest value, the first of equals.
fn highest(values: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, value) in values.iter().enumerate() {
        if *value > best.1 {
            best = (i, *value);
        }
    }
    best.0
}

/// Macro and weighted F1 of a confusion matrix.
fn f1(confusion: &[Vec<u64>]) -> (f64, f64) {
    let (mut sum, mut present, mut weighted, mut rows) = (0.0, 0.0, 0.0, 0.0);
    for class in 0..confusion.len() {
        let truth: u64 = confusion.get(class).map_or(0, |r| r.iter().sum());
        let answered: u64 = confusion.iter().filter_map(|r| r.get(class)).sum();
        let right = confusion.get(class).and_then(|r| r.get(class)).copied().unwrap_or(0);
        if truth + answered == 0 {
            continue;
        }
        let score = 2.0 * right as f64 / (truth + answered) as f64;
        sum += score;
        present += 1.0;
        weighted += score * truth as f64;
        rows += truth as f64;
    }
    if present == 0.0 {
        (0.0, 0.0)
    } else {
        (sum / present, weighted / rows)
    }
}

/// Mean one-against-rest AUC over the classes for which it is defined.
fn auc(probabilities: &[Vec<f64>], truths: &[usize], classes: usize) -> Option<f64> {
    let (mut sum, mut defined) = (0.0, 0.0);
    for class in 0..classes {
        let scores = probabilities.iter().map(|p| p.get(class).copied().unwrap_or(f64::NAN));
        let scored: Vec<(f64, bool)> = scores.zip(truths.iter().map(|t| *t == class)).collect();
        if let Some(area) = area(scored) {
            sum += area;
            defined += 1.0;
        }
    }
    (defined > 0.0).then(|| sum / defined)
}

/// Probability that a random positive scores above a random negative, ties counted half.
fn area(mut scored: Vec<(f64, bool)>) -> Option<f64> {
    let positives = scored.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = scored.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 || scored.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Every value of a run of equal scores has the mean of the ranks that the run covers.
    let (mut rank_sum, mut before) = (0.0, 0.0);
    for run in scored.chunk_by(|a, b| a.0 == b.0) {
        let length = run.len() as f64;
        let rank = before + (length + 1.0) / 2.0;
        rank_sum += rank * run.iter().filter(|(_, positive)| *positive).count() as f64;
        before += length;
    }
    Some((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    /// Logits whose softmax is `p`.
    fn logits(p: &[&[f64]]) -> Vec<Vec<f32>> {
        p.iter()
            .map(|row| row.iter().map(|x| x.ln() as f32).collect())
            .collect()
    }

    /// Six rows, three classes; answers 0 0 1 1 2 0 against truth 0 0 1 2 2 2.
    fn table() -> (Evaluation, Vec<Vec<u64>>) {
        let p: [&[f64]; 6] = [
            &[0.7, 0.2, 0.1],
            &[0.6, 0.3, 0.1],
            &[0.2, 0.5, 0.3],
            &[0.1, 0.6, 0.3],
            &[0.1, 0.1, 0.8],
            &[0.5, 0.25, 0.25],
        ];
        let (logits, labels) = (logits(&p), [0, 0, 1, 2, 2, 2]);
        (
            evaluate(&logits, &labels).unwrap(),
            confusion(&logits, &labels).unwrap(),
        )
    }

    #[test]
    fn hand_computed_table() {
        let (e, confusion) = table();
        assert_eq!(confusion, [[2, 0, 0], [0, 1, 0], [1, 1, 1]]);
        close(e.accuracy, 4.0 / 6.0);
        // Class 0: 2·2/(2+3); class 1: 2·1/(1+2); class 2: 2·1/(3+1).
        let f1 = [0.8, 2.0 / 3.0, 0.5];
        close(e.macro_f1, f1.iter().sum::<f64>() / 3.0);
        close(e.weighted_f1, (2.0 * f1[0] + f1[1] + 3.0 * f1[2]) / 6.0);
        let loss = -[0.7f64, 0.6, 0.5, 0.3, 0.8, 0.25].iter().map(|p| p.ln()).sum::<f64>() / 6.0;
        assert!((e.loss - loss).abs() < 1e-6, "{} {loss}", e.loss);
    }

    #[test]
    fn auc_by_hand_with_ties() {
        let p = [
            [0.7, 0.2, 0.1],
            [0.6, 0.3, 0.1],
            [0.2, 0.5, 0.3],
            [0.1, 0.6, 0.3],
            [0.1, 0.1, 0.8],
            [0.5, 0.25, 0.25],
        ];
        let p: Vec<Vec<f64>> = p.iter().map(|row| row.to_vec()).collect();
        // Class 0: positives .7 .6 above all negatives: 1. Class 1: positive .5 against .2 .3 .6 .1 .25: 4 of 5.
        // Class 2: positives .3 .8 .25 against .1 .1 .3: .3 beats two and ties one, .8 beats three, .25 beats two.
        close(
            auc(&p, &[0, 0, 1, 2, 2, 2], 3).unwrap(),
            (1.0 + 0.8 + (2.5 + 3.0 + 2.0) / 9.0) / 3.0,
        );
        close(area(vec![(0.5, true), (0.5, false), (0.5, false)]).unwrap(), 0.5);
        close(area(vec![(0.1, true), (0.9, false)]).unwrap(), 0.0);
        assert_eq!(area(vec![(0.5, true), (0.1, true)]), None);
    }

    #[test]
    fn two_on_the_same_rows_by_hand() {
        // Ten rows: both right in four, only the first in three, only the second in one, neither in two.
        let first = [true, true, true, true, true, true, true, false, false, false];
        let second = [true, true, true, true, false, false, false, true, false, false];
        let paired = Paired::of(&first, &second).unwrap();
        assert_eq!((paired.rows, paired.won, paired.lost), (10, 3, 1));
        close(paired.delta(), 0.2);
        // The variance of the ten differences (1 three times, -1 once, else 0): 0.4 - 0.2² = 0.36, of their mean a tenth.
        close(paired.error(), 0.036_f64.sqrt());
        let told: Vec<_> = paired
            .metrics("golden")
            .into_iter()
            .map(|m| (m.name, m.value.0))
            .collect();
        let wanted = [
            ("golden/accuracyDelta", "0.200000"),
            ("golden/accuracyDeltaError", "0.189737"),
        ];
        assert_eq!(told, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let back = Paired::of(&second, &first).unwrap();
        close(back.delta(), -0.2);
        close(Paired::of(&first, &first).unwrap().error(), 0.0);
        assert_eq!(Paired::of(&[], &[]), Err(EvaluationError::Empty));
        assert!(Paired::of(&first, &second[1..]).is_err());
    }

    #[test]
    fn an_answer_is_right_by_its_name() {
        let answers = [vec![0.9, 0.1], vec![0.2, 0.8], vec![0.5, 0.5]];
        let names = ["b", "a"].map(str::to_owned);
        // The third truth is one that this classifier does not know.
        assert_eq!(right(&answers, &names, &["b", "a", "c"]), [true, true, false]);
        assert_eq!(right(&answers, &names, &["a", "b", "b"]), [false, false, true]);
    }

    #[test]
    fn classes_that_never_occur_count_for_nothing() {
        // Class 2 is neither truth nor answer: macro F1 is over two classes, AUC over those with both sides.
        let e = evaluate(&logits(&[&[0.8, 0.1, 0.1], &[0.1, 0.8, 0.1]]), &[0, 1]).unwrap();
        close(e.macro_f1, 1.0);
        close(e.auc.unwrap(), 1.0);
        let one = evaluate(&logits(&[&[0.8, 0.2]]), &[0]).unwrap();
        assert_eq!(one.auc, None);
        assert!(one.metrics("test").iter().all(|m| m.name != "test/auc"));
    }

    #[test]
    fn equal_logits_answer_the_first_class() {
        let rows = [vec![0.0, 0.0], vec![0.0, 0.0]];
        let e = evaluate(&rows, &[0, 1]).unwrap();
        assert_eq!(confusion(&rows, &[0, 1]).unwrap(), [[1, 0], [1, 0]]);
        close(e.loss, 2f64.ln());
        close(e.auc.unwrap(), 0.5);
    }

    #[test]
    fn inputs_that_do_not_belong_together() {
        assert_eq!(evaluate(&[], &[]), Err(EvaluationError::Empty));
        assert_eq!(
            evaluate(&[], &[1]),
            Err(EvaluationError::Length { outputs: 0, labels: 1 })
        );
        let two = vec![vec![0.0, 1.0], vec![0.0]];
        assert_eq!(
            evaluate(&two, &[0, 0]),
            Err(EvaluationError::Width {
                row: 1,
                got: 1,
                want: 2
            })
        );
        assert_eq!(
            evaluate(&two[..1], &[2]),
            Err(EvaluationError::Label {
                row: 0,
                label: 2,
                classes: 2
            })
        );
        assert_eq!(
            evaluate(&two[..1], &[-1]),
            Err(EvaluationError::Label {
                row: 0,
                label: -1,
                classes: 2
            })
        );
    }

    #[test]
    fn metrics_and_score_name_what_the_contract_names() {
        let (e, _) = table();
        let names: Vec<_> = e.metrics("test").into_iter().map(|m| m.name).collect();
        assert_eq!(
            names,
            [
                "test/accuracy",
                "test/macroF1",
                "test/weightedF1",
                "test/auc",
                "test/loss"
            ]
        );
        assert!(e.score(StoppingMetric::Loss) < 0.0);
    }
}
