//! From files to clean sets of texts and label indices.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use flywheel_contract::dataset::{Dataset, Format};
use flywheel_contract::profile::DataProfile;
use flywheel_contract::scalar::Digest;
use flywheel_contract::trainer::DatasetCounts;
use sha2::{Digest as _, Sha256};

use crate::clean::{Cleaner, Row};
use crate::error::{DataError, Result, some_labels};
use crate::read::read_rows;
use crate::split::{Part, split_rows};
use crate::{EncodedSet, MAX_LABELS, MAX_ROWS};

/// A source that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its URI, for messages.
    pub name: String,
    /// Where it lies now.
    pub path: PathBuf,
    /// How to read it.
    pub format: Format,
    /// Content.
    pub digest: Digest,
}

/// All files of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFiles {
    /// `dataset.sources`.
    pub sources: Vec<SourceFile>,
    /// `dataset.validation`, where given.
    pub validation: Option<Vec<SourceFile>>,
    /// `dataset.test`, where given.
    pub test: Option<Vec<SourceFile>>,
    /// `dataset.golden`.
    pub golden: Vec<SourceFile>,
}

/// Texts and the index of each one's label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextSet {
    /// Cleaned texts.
    pub texts: Vec<String>,
    /// Index into [`Prepared::labels`]; as many as `texts`.
    pub labels: Vec<i64>,
}

impl TextSet {
    /// Number of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

/// The sets of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Labels of the training set, sorted by code point; a label's place is its class index.
    pub labels: Vec<String>,
    /// Trained on.
    pub train: TextSet,
    /// Chooses the best epoch.
    pub validation: TextSet,
    /// Measured on at the end.
    pub test: TextSet,
    /// Compared on between versions; empty where none is given.
    pub golden: TextSet,
    /// What became of the rows, `truncated` left at 0. All rows of all files: those kept in the four sets and those
    /// counted as empty, golden overlap and (where `deduplicate` is on) duplicates add up to `rows`.
    pub counts: DatasetCounts,
    /// [`dataset_digest`].
    pub digest: Digest,
}

/// Digest of a data set: sha256 over one line `<set> <sha256 of the file>` per file, in the order of the spec.
#[must_use]
pub fn dataset_digest(files: &SourceFiles) -> Digest {
    let mut hasher = Sha256::new();
    let none = Vec::new();
    let sets = [
        ("sources", &files.sources),
        ("validation", files.validation.as_ref().unwrap_or(&none)),
        ("test", files.test.as_ref().unwrap_or(&none)),
        ("golden", &files.golden),
    ];
    for (name, list) in sets {
        for file in list {
            hasher.update(format!("{name} {}\n", file.digest.hex()));
        }
    }
    Digest::sha256(&hex::encode(hasher.finalize()))
}

/// Reads, cleans and splits.
///
/// # Errors
/// Whatever [`DataError`] says about files, sets and labels.
pub fn prepare(dataset: &Dataset, files: &SourceFiles) -> Result<Prepared> {
    let mut counts = DatasetCounts::default();
    let golden = read_set(dataset, &files.golden, &mut counts)?;
    let mut rows = read_set(dataset, &files.sources, &mut counts)?;
    if rows.is_empty() {
        return Err(DataError::NothingLeft {
            message: format!(
                "none of the {} rows of the sources has both text and label; check `textColumn` and `labelColumn`",
                counts.rows
            ),
        });
    }
    let golden_texts: HashSet<&str> = golden.iter().map(|r| r.text.as_str()).collect();
    let before = rows.len();
    // Before splitting, so that the shares hold and neither validation nor test repeats the golden set.
    rows.retain(|r| !golden_texts.contains(r.text.as_str()));
    counts.golden_overlap = (before - rows.len()) as u64;
    if rows.is_empty() {
        return Err(DataError::NothingLeft {
            message:
                "the golden set holds every text of the sources, so nothing is left to train on; take other rows for it"
                    .to_owned(),
        });
    }
    let (train, validation, test) = match (&files.validation, &files.test) {
        (Some(validation), Some(test)) => {
            let validation = read_set(dataset, validation, &mut counts)?;
            let test = read_set(dataset, test, &mut counts)?;
            (rows, validation, test)
        }
        _ => split_sources(dataset, rows),
    };
    for (name, set) in [("validation", &validation), ("test", &test)] {
        if set.is_empty() {
            return Err(DataError::NothingLeft {
                message: format!(
                    "the {name} set is empty: {} training rows are too few for the split, or its file has none; \
                     add rows, raise {name}Percent, or give validation and test sets of their own",
                    train.len()
                ),
            });
        }
    }

    let distinct: BTreeSet<&str> = train.iter().map(|r| r.label.as_str()).collect();
    if distinct.len() < 2 {
        return Err(DataError::SingleClass { rows: train.len() });
    }
    if distinct.len() > MAX_LABELS {
        return Err(DataError::TooManyLabels {
            message: format!(
                "the training set has {} labels, more than {MAX_LABELS}; check that `labelColumn` names the right column",
                distinct.len()
            ),
        });
    }
    let labels: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
    let index: BTreeMap<String, i64> = labels.iter().cloned().zip(0..).collect();
    let prepared = Prepared {
        train: indexed("training", train, &index)?,
        validation: indexed("validation", validation, &index)?,
        test: indexed("test", test, &index)?,
        golden: indexed("golden", golden, &index)?,
        labels,
        counts,
        digest: dataset_digest(files),
    };
    let mut prepared = prepared;
    prepared.counts.train = prepared.train.len() as u64;
    prepared.counts.validation = prepared.validation.len() as u64;
    prepared.counts.test = prepared.test.len() as u64;
    prepared.counts.golden = prepared.golden.len() as u64;
    prepared.counts.labels = prepared.labels.len() as u64;
    Ok(prepared)
}

fn read_set(dataset: &Dataset, files: &[SourceFile], counts: &mut DatasetCounts) -> Result<Vec<Row>> {
    let mut cleaner = Cleaner::new(dataset.deduplicate);
    for file in files {
        let budget = MAX_ROWS.saturating_sub(counts.rows + cleaner.read);
        let columns = (dataset.text_column.as_str(), dataset.label_column.as_str());
        read_rows(
            &file.path,
            &file.name,
            file.format,
            columns,
            budget,
            &mut |text, label| cleaner.add(text, label),
        )?;
    }
    counts.rows += cleaner.read;
    counts.empty += cleaner.empty;
    counts.duplicates += cleaner.duplicates;
    counts.conflicts += cleaner.conflicts;
    Ok(cleaner.into_rows())
}

fn split_sources(dataset: &Dataset, rows: Vec<Row>) -> (Vec<Row>, Vec<Row>, Vec<Row>) {
    let split = dataset.split.clone().unwrap_or_default();
    let labels: Vec<&str> = rows.iter().map(|r| r.label.as_str()).collect();
    let parts = split_rows(&labels, &split);
    let (mut train, mut validation, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for (row, part) in rows.into_iter().zip(parts) {
        match part {
            Part::Train => train.push(row),
            Part::Validation => validation.push(row),
            Part::Test => test.push(row),
        }
    }
    (train, validation, test)
}

fn indexed(set: &'static str, rows: Vec<Row>, index: &BTreeMap<String, i64>) -> Result<TextSet> {
    let unknown: BTreeSet<&str> = rows
        .iter()
        .map(|r| r.label.as_str())
        .filter(|l| !index.contains_key(*l))
        .collect();
    if !unknown.is_empty() {
        return Err(DataError::LabelNotInTrain {
            set,
            count: unknown.len(),
            labels: some_labels(unknown.iter().copied()),
        });
    }
    let mut out = TextSet::default();
    for row in rows {
        if let Some(label) = index.get(&row.label) {
            out.labels.push(*label);
            out.texts.push(row.text);
        }
    }
    Ok(out)
}

/// Profile of a set by the model's own answers; `probabilities[row][class]`, as many rows as the set.
#[must_use]
pub fn profile(set: &EncodedSet, probabilities: &[Vec<f32>], classes: usize) -> DataProfile {
    let mut profile = DataProfile::new(classes);
    for (ids, answer) in set.ids.iter().zip(probabilities) {
        profile.add(ids, answer);
    }
    profile
}
