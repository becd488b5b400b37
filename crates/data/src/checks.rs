//! What the data checks say about a data set, and which of its limits are broken. Numbers, labels and places of rows are
//! told, never a text.

use std::fmt;

use flywheel_contract::dataset::{DataLimits, Dataset, SetName};
use flywheel_contract::trainer::{DatasetCounts, DatasetProblem};

use crate::error::{DataError, Result, some_labels};
use crate::prepare::{Prepared, TextSet};

/// Most examples of one problem (near-duplicates: in one pair of sets).
pub(crate) const EXAMPLES: usize = 5;
/// Labels with fewer training rows are told of, where the spec does not say from when.
const RARE_LABEL_ROWS: u64 = 10;
/// From this ratio of the largest to the smallest label the imbalance is told of.
const IMBALANCE_NOTED: u64 = 10;

/// Something about the data set that its owner should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was found, with its count.
    pub found: String,
    /// What to do about it.
    pub remedy: &'static str,
    /// Name and value of the limit that it breaks.
    pub broken: Option<(&'static str, i32)>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.broken {
            Some((name, limit)) => write!(
                f,
                "dataset.limits.{name} is {limit}, but {}. {}, or change the limit",
                self.found, self.remedy
            ),
            None => write!(f, "{}. {}", self.found, self.remedy),
        }
    }
}

/// Ends a job whose data set breaks a limit.
///
/// # Errors
/// [`DataError::LimitBroken`] with each limit that is broken.
pub fn check_limits(findings: &[Finding]) -> Result<()> {
    let broken: Vec<String> = findings
        .iter()
        .filter(|f| f.broken.is_some())
        .map(ToString::to_string)
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(DataError::LimitBroken {
        message: broken.join(". "),
    })
}

/// Everything that the checks found in a set that is prepared and whose cut texts are counted.
#[must_use]
pub fn findings(dataset: &Dataset, prepared: &Prepared) -> Vec<Finding> {
    let counts = &prepared.counts;
    let none = DataLimits::default();
    let limits = dataset.limits.as_ref().unwrap_or(&none);
    let mut all = Vec::new();
    let mut add = |noted: bool, name, limit: Option<i32>, exceeds: &dyn Fn(u64) -> bool, found: String, remedy| {
        let broken = limit.filter(|limit| exceeds(u64::try_from(*limit).unwrap_or(0)));
        if noted || broken.is_some() {
            all.push(Finding {
                found,
                remedy,
                broken: broken.map(|limit| (name, limit)),
            });
        }
    };
    add(
        counts.conflicts > 0,
        "maxConflicts",
        limits.max_conflicts,
        &|limit| counts.conflicts > limit,
        format!(
            "{} with more than one label{}",
            several(counts.conflicts, "text stands", "texts stand"),
            such_as(prepared, DatasetProblem::Conflict)
        ),
        "Decide on one label for each text and correct the files",
    );
    let near = counts.near_duplicates_of_train();
    add(
        near > 0,
        "maxNearDuplicates",
        limits.max_near_duplicates,
        &|limit| near > limit,
        format!(
            "{} nearly the text of a training row, so that metrics come out too good ({}){}",
            several(near, "row to measure on has", "rows to measure on have"),
            by_set(counts),
            such_as(prepared, DatasetProblem::NearDuplicate)
        ),
        "Drop one of the two, or keep alike texts in one set",
    );
    add(
        counts.uncompared > 0,
        "maxNearDuplicates",
        None,
        &|_| false,
        format!(
            "{} so many alike texts in other sets that not each was compared; there may be more near-duplicates",
            several(counts.uncompared, "row has", "rows have")
        ),
        "Drop repeated and generated texts",
    );
    let (largest, smallest) = (counts.largest_label, counts.smallest_label);
    let rows = rows_per_label(&prepared.train, prepared.labels.len());
    let fewest = rows.iter().zip(&prepared.labels).min().map(|(_, label)| label.as_str());
    add(
        largest >= smallest.saturating_mul(IMBALANCE_NOTED),
        "maxImbalanceRatio",
        limits.max_imbalance_ratio,
        &|limit| largest > smallest.saturating_mul(limit),
        format!(
            "the largest label has {largest} training rows and the smallest ({}) {smallest}",
            some_labels(fewest)
        ),
        "Add rows to small labels, merge them, or drop rows of large ones",
    );
    let least = rare_label_rows(dataset);
    let rare = rows.iter().zip(&prepared.labels).filter(|(rows, _)| **rows < least);
    add(
        counts.rare_labels > 0,
        "minRowsPerLabel",
        limits.min_rows_per_label,
        &|_| counts.rare_labels > 0,
        format!(
            "{} fewer than {least} training rows: {}",
            several(counts.rare_labels, "label has", "labels have"),
            some_labels(rare.map(|(_, label)| label.as_str()))
        ),
        "Add rows to them, merge them, or drop them",
    );
    add(
        counts.truncated > 0,
        "maxTruncatedPercent",
        limits.max_truncated_percent,
        &|limit| counts.truncated.saturating_mul(100) > counts.kept().saturating_mul(limit),
        format!(
            "{} of {} texts ({:.1} %) are longer than hyperparameters.maxLength tokens and are cut",
            counts.truncated,
            counts.kept(),
            counts.truncated_percent()
        ),
        "Raise maxLength, or shorten them",
    );
    let labels = [
        (SetName::Validation, counts.validation_labels),
        (SetName::Test, counts.test_labels),
        (SetName::Golden, counts.golden_labels),
        (SetName::Newest, counts.newest_labels),
    ];
    for (set, labels) in labels {
        add(
            labels == 1,
            "",
            None,
            &|_| false,
            format!("the {set} set has rows of one label only, so its metrics say little"),
            "Add rows of the other labels to it",
        );
    }
    all
}

/// Number of training rows below which a label is rare.
pub(crate) fn rare_label_rows(dataset: &Dataset) -> u64 {
    let said = dataset.limits.as_ref().and_then(|l| l.min_rows_per_label);
    said.map_or(RARE_LABEL_ROWS, |rows| u64::try_from(rows).unwrap_or(0))
}

/// Rows of each label.
pub(crate) fn rows_per_label(set: &TextSet, labels: usize) -> Vec<u64> {
    let mut rows = vec![0; labels];
    for label in &set.labels {
        if let Some(rows) = usize::try_from(*label).ok().and_then(|label| rows.get_mut(label)) {
            *rows += 1;
        }
    }
    rows
}

fn several(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// The near-duplicates of training rows, such as `9 of the test set, 2 of them word for word; 3 of the validation set`.
fn by_set(counts: &DatasetCounts) -> String {
    let of_train = counts.near_duplicates.iter().filter(|pair| pair.of == SetName::Train);
    let parts: Vec<String> = of_train
        .map(|pair| {
            let exact = match pair.identical {
                0 => String::new(),
                n => format!(", {n} of them word for word"),
            };
            format!("{} of the {} set{exact}", pair.rows, pair.set)
        })
        .collect();
    parts.join("; ")
}

/// The first example of a problem.
fn such_as(prepared: &Prepared, problem: DatasetProblem) -> String {
    let example = prepared.examples.iter().find(|e| e.problem == problem);
    example.map_or_else(String::new, |e| format!(", such as {} and {}", e.first, e.second))
}
