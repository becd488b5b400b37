//! The data of a TrainingJob, as users write it and pods read it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::Uri;

/// Most rows of a data set, over all of its files.
pub const ROWS_MAX: i32 = 10_000_000;

/// One of the sets that a data set becomes; metrics begin with the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SetName {
    /// Trained on.
    Train,
    /// Chooses the best epoch.
    Validation,
    /// Measured on at the end.
    Test,
    /// Compared on between versions.
    Golden,
    /// The newest of what clients said; compared on between versions.
    Newest,
}

impl SetName {
    /// All, in the order in which rows are assigned.
    pub const ALL: [Self; 5] = [Self::Train, Self::Validation, Self::Test, Self::Golden, Self::Newest];
}

impl std::fmt::Display for SetName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Validation => "validation",
            Self::Test => "test",
            Self::Golden => "golden",
            Self::Newest => "newest",
        })
    }
}

/// Format of a source. Without it the suffix decides (`.csv`, `.jsonl`, `.ndjson`, `.parquet`); `Feedback` is always said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Format {
    /// Comma-separated values with a header row, UTF-8.
    Csv,
    /// One JSON object per line, UTF-8.
    Jsonl,
    /// Apache Parquet.
    Parquet,
    /// A folder that the pods of an InferenceService with `feedback.capture` write to, `<feedback.uri>/<namespace>/<name>`:
    /// their texts, each with the label that a client sent for it.
    Feedback,
}

/// One file of labelled examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.holdOutPercent) || (has(self.format) && self.format == 'Feedback')",
    "message": "holdOutPercent is for format: Feedback, whose rows have a time",
    "reason": "FieldValueInvalid",
    "fieldPath": ".holdOutPercent"
}]))]
pub struct Source {
    /// Where the file lies.
    pub uri: Uri,
    /// Its format, where the suffix does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Of a folder of feedback among `sources`: the share of its rows, the newest by the time of the prediction, that is never trained
    /// on and is the set `newest`, in percent. 20 where it is not given; 0 trains on all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 50))]
    pub hold_out_percent: Option<i32>,
}

/// The schema of a [`Source`] of which nothing is held out: its set is not trained on.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "the schema is all that is wanted of it")]
struct WholeSource {
    /// Where the file lies.
    uri: Uri,
    /// Its format, where the suffix does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
}

/// [`Source::hold_out_percent`] where it is not given.
const HOLD_OUT_PERCENT: u32 = 20;

impl Source {
    /// Share of its rows, the newest ones, that is not trained on where it is one of `sources`, in percent.
    #[must_use]
    pub fn held_out_percent(&self) -> u32 {
        match (self.format, self.hold_out_percent) {
            (Some(Format::Feedback), said) => {
                said.map_or(HOLD_OUT_PERCENT, |percent| u32::try_from(percent).unwrap_or(0))
            }
            _ => 0,
        }
    }
}

/// How one set of examples becomes three. Percents sum to 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.trainPercent + self.validationPercent + self.testPercent == 100",
    "message": "trainPercent, validationPercent and testPercent must sum to 100",
    "reason": "FieldValueInvalid"
}]))]
pub struct Split {
    /// Share to train on, in percent.
    #[schemars(range(min = 1, max = 98))]
    pub train_percent: i32,
    /// Share that early stopping and the choice of the best epoch look at, in percent.
    #[schemars(range(min = 1, max = 98))]
    pub validation_percent: i32,
    /// Share that the reported test metrics are computed on, in percent.
    #[schemars(range(min = 1, max = 98))]
    pub test_percent: i32,
    /// Keep the share of each label the same in all three sets.
    #[serde(default = "yes")]
    pub stratify: bool,
    /// Seed of the assignment.
    #[serde(default = "default_seed")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub seed: i64,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            train_percent: 70,
            validation_percent: 20,
            test_percent: 10,
            stratify: true,
            seed: default_seed(),
        }
    }
}

/// Limits of the data checks. A check without one only reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataLimits {
    /// Most texts that stand with more than one label, over all sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = ROWS_MAX))]
    pub max_conflicts: Option<i32>,
    /// Most rows of the validation, test, golden and newest sets together whose text nearly stands in the training set, which
    /// makes their metrics too good: Jaccard similarity of character trigrams of at least 0.8, whatever case and punctuation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = ROWS_MAX))]
    pub max_near_duplicates: Option<i32>,
    /// Most training rows of the largest label for each of the smallest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = ROWS_MAX))]
    pub max_imbalance_ratio: Option<i32>,
    /// Fewest training rows of any label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = ROWS_MAX))]
    pub min_rows_per_label: Option<i32>,
    /// Largest share of texts, over all sets, that are longer than `maxLength` tokens and so are cut, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_truncated_percent: Option<i32>,
}

/// Labelled examples and how they become training, validation and test sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.validation) == has(self.test)",
        "message": "validation and test are given together, or both sets are split off the sources",
        "reason": "FieldValueInvalid"
    },
    {
        "rule": "!(has(self.split) && has(self.test))",
        "message": "split and explicit validation and test sets exclude each other",
        "reason": "FieldValueInvalid"
    },
    {
        "rule": "self.textColumn != self.labelColumn",
        "message": "textColumn and labelColumn must differ",
        "reason": "FieldValueInvalid",
        "fieldPath": ".labelColumn"
    }
]))]
pub struct Dataset {
    /// Files of examples, concatenated in this order.
    #[schemars(length(min = 1, max = 64))]
    pub sources: Vec<Source>,
    /// Column or key that holds the text.
    #[serde(default = "default_text_column")]
    #[schemars(length(min = 1, max = 128))]
    pub text_column: String,
    /// Column or key that holds the label.
    #[serde(default = "default_label_column")]
    #[schemars(length(min = 1, max = 128))]
    pub label_column: String,
    /// Drop repeated texts (after NFC and trim; the first is kept). Counted either way.
    #[serde(default = "yes")]
    pub deduplicate: bool,
    /// How the sources are split; 70/20/10, stratified, where neither this nor explicit sets are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// Explicit validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<WholeSource>>", length(min = 1, max = 16))]
    pub validation: Option<Vec<Source>>,
    /// Explicit test set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<WholeSource>>", length(min = 1, max = 16))]
    pub test: Option<Vec<Source>>,
    /// Never trained on, whatever the split; versions are compared on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<WholeSource>>", length(min = 1, max = 16))]
    pub golden: Option<Vec<Source>>,
    /// What the data checks must not exceed. Every check is reported either way; one whose limit is broken ends the job
    /// before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DataLimits>,
    /// Put up to 200 test texts with the model's own answers into the artifact, to compare answers in
    /// other precisions with. Off keeps texts out.
    #[serde(default = "yes")]
    pub evaluation_sample: bool,
}

fn yes() -> bool {
    true
}
fn default_seed() -> i64 {
    42
}
impl Dataset {
    /// Whether the newest rows of a source are held out, as far as there are enough.
    #[must_use]
    pub fn holds_out(&self) -> bool {
        self.sources.iter().any(|source| source.held_out_percent() > 0)
    }
}

fn default_text_column() -> String {
    "text".to_owned()
}
fn default_label_column() -> String {
    "label".to_owned()
}
