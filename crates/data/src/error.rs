//! What can be wrong with a data set or a tokenizer.

use flywheel_contract::failure::{Failure, FailureReason};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DataError>;

/// What is wrong, where, and what to do. Never holds a text of the data set; labels are shown shortened.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Neither `format` nor the file's suffix says how to read it.
    #[error(
        "{source_name}: the suffix does not tell the format; set `format: Csv`, `Jsonl` or `Parquet` on this source"
    )]
    FormatUnknown {
        /// URI of the file.
        source_name: String,
    },
    /// A file has no rows.
    #[error("{source_name} has no rows; give a file with {expected}")]
    NoRows {
        /// URI of the file.
        source_name: String,
        /// What was expected in it.
        expected: &'static str,
    },
    /// Nothing is left of a set.
    #[error("{message}")]
    NothingLeft {
        /// Which set, why, and what to do.
        message: String,
    },
    /// A file breaks the rules of its format or a bound.
    #[error("{source_name}{}: {problem}", place(*line))]
    Invalid {
        /// URI of the file.
        source_name: String,
        /// Line (CSV, JSONL) or row (Parquet), from 1; none where it is about the whole file.
        line: Option<u64>,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A column is not there.
    #[error("{source_name}{} has no column {column:?}; it has {columns}. {remedy}", place(*line))]
    ColumnMissing {
        /// URI of the file.
        source_name: String,
        /// Line from 1, where each line has columns of its own (JSONL).
        line: Option<u64>,
        /// Name looked for.
        column: String,
        /// Names that are there.
        columns: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Fewer than two labels.
    #[error(
        "after cleaning, all {rows} rows of the training set have one and the same label; a classifier needs at least two. \
         Check `labelColumn`, or add rows of another label"
    )]
    SingleClass {
        /// Rows of the training set.
        rows: usize,
    },
    /// A set holds labels that training never sees.
    #[error(
        "the {set} set has {count} label(s) that no training row has: {labels}. Add training rows with them, or drop them from the {set} set"
    )]
    LabelNotInTrain {
        /// validation, test or golden.
        set: &'static str,
        /// Number of such labels.
        count: usize,
        /// The first few, shortened.
        labels: String,
    },
    /// More labels than [`crate::MAX_LABELS`], or too few training rows for them.
    #[error("{message}")]
    TooManyLabels {
        /// How many, and what to do.
        message: String,
    },
    /// A limit of the spec is broken.
    #[error("{message}")]
    LimitBroken {
        /// Each broken limit with what was found and what to do.
        message: String,
    },
    /// The folder has no tokenizer.
    #[error(
        "the pretrained folder holds neither tokenizer.json nor vocab.txt; copy the tokenizer's files beside config.json"
    )]
    TokenizerMissing,
    /// The tokenizer cannot be used.
    #[error("{message}")]
    TokenizerInvalid {
        /// What is wrong and what to do.
        message: String,
    },
    /// The local disk.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File name.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
}

impl DataError {
    pub(crate) fn invalid(source_name: &str, line: Option<u64>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            source_name: source_name.to_owned(),
            line,
            problem: problem.into(),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::FormatUnknown { .. } => FailureReason::ConfigInvalid,
            Self::NoRows { .. } | Self::NothingLeft { .. } => FailureReason::DatasetEmpty,
            Self::Invalid { .. } | Self::TooManyLabels { .. } => FailureReason::DatasetInvalid,
            Self::ColumnMissing { .. } => FailureReason::ColumnMissing,
            Self::SingleClass { .. } => FailureReason::SingleClass,
            Self::LabelNotInTrain { .. } => FailureReason::LabelNotInTrain,
            Self::LimitBroken { .. } => FailureReason::DatasetCheckFailed,
            Self::TokenizerMissing => FailureReason::TokenizerMissing,
            Self::TokenizerInvalid { .. } => FailureReason::TokenizerInvalid,
            Self::Io { .. } => FailureReason::InternalError,
        }
    }
}

/// A line, as it follows the name of its file.
fn place(line: Option<u64>) -> String {
    line.map(|l| format!(", line {l}")).unwrap_or_default()
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// At most three labels, each cut to 40 characters, for a message.
pub(crate) fn some_labels<'a>(labels: impl IntoIterator<Item = &'a str>) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut more = 0_usize;
    for label in labels {
        if shown.len() < 3 {
            let short: String = label.chars().take(40).collect();
            let dots = if short.len() < label.len() { "…" } else { "" };
            shown.push(format!("{short:?}{dots}"));
        } else {
            more += 1;
        }
    }
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{rest}", shown.join(", "))
}
