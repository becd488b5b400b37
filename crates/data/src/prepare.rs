//! From files to clean sets of texts and label indices.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use flywheel_contract::dataset::{Dataset, Format, SetName};
use flywheel_contract::profile::{Answer, DataProfile};
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::trainer::{DatasetCounts, DatasetExample, DatasetProblem, NearDuplicates, RowPlace};
use sha2::{Digest as _, Sha256};

use crate::checks::{rare_label_rows, rows_per_label};
use crate::clean::{Cleaner, Place, Row};
use crate::error::{DataError, Result, some_labels};
use crate::feedback::LEAST_HELD_OUT;
use crate::near_duplicates::{self, near_duplicates};
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
    /// What was held out of `dataset.sources`.
    pub newest: Vec<SourceFile>,
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
    /// Compared on between versions as well; empty where nothing is held out.
    pub newest: TextSet,
    /// What became of the rows, `truncated` left at 0. All rows of all files: those kept in the sets and those counted as
    /// empty, golden or newest overlap, left out and (where `deduplicate` is on) duplicates add up to `rows`.
    pub counts: DatasetCounts,
    /// A few rows for each problem that was found.
    pub examples: Vec<DatasetExample>,
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
        ("newest", &files.newest),
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
    let mut reader = Reader::new(dataset);
    let golden = reader.set(&files.golden)?;
    if golden.is_empty() && !files.golden.is_empty() {
        return Err(DataError::NothingLeft {
            message: format!(
                "the golden set is empty: none of its {} rows has both text and label; add rows, or leave `golden` out",
                reader.cleaner.read
            ),
        });
    }
    let mut newest = reader.set(&files.newest)?;
    let before = reader.cleaner.read;
    let mut rows = reader.set(&files.sources)?;
    if rows.is_empty() {
        return Err(DataError::NothingLeft {
            message: format!(
                "none of the {} rows of the sources has both text and label; check `textColumn` and `labelColumn`",
                reader.cleaner.read - before
            ),
        });
    }
    let mut counts = DatasetCounts::default();
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
    part_from(&mut rows, &mut newest, &reader.feedback, &mut counts);
    let (train, validation, test) = match (&files.validation, &files.test) {
        (Some(validation), Some(test)) => {
            let validation = reader.set(validation)?;
            let test = reader.set(test)?;
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
    let before = newest.len();
    newest.retain(|row| distinct.contains(row.label.as_str()));
    // On a handful one answer would decide.
    if (newest.len() as u64) < LEAST_HELD_OUT {
        newest.clear();
    }
    counts.newest_left_out += (before - newest.len()) as u64;
    let labels: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
    let index: BTreeMap<String, i64> = labels.iter().cloned().zip(0..).collect();
    let Reader {
        cleaner, files: names, ..
    } = reader;
    (counts.rows, counts.empty) = (cleaner.read, cleaner.empty);
    (counts.duplicates, counts.conflicts) = (cleaner.duplicates, cleaner.conflicts);
    let conflicts = cleaner.examples.iter();
    let mut examples: Vec<DatasetExample> = conflicts
        .map(|(first, second)| example(&names, DatasetProblem::Conflict, *first, *second))
        .collect();
    // It holds every text once more.
    drop(cleaner);
    let sets: [&[Row]; 5] = [&train, &validation, &test, &golden, &newest];
    let found = near_duplicates(&sets, near_duplicates::BANDS);
    counts.uncompared = found.uncompared;
    for pair in found.pairs {
        let rows = |set: usize| Some((*SetName::ALL.get(set)?, *sets.get(set)?));
        let (Some((set, later)), Some((of, earlier))) = (rows(pair.set), rows(pair.of)) else {
            continue;
        };
        counts.near_duplicates.push(NearDuplicates {
            set,
            of,
            rows: pair.rows,
            identical: pair.identical,
        });
        examples.extend(pair.examples.iter().filter_map(|(row, other)| {
            let (first, second) = (earlier.get(*other)?.place, later.get(*row)?.place);
            Some(example(&names, DatasetProblem::NearDuplicate, first, second))
        }));
    }

    let train = indexed("training", train, &index)?;
    let validation = indexed("validation", validation, &index)?;
    let test = indexed("test", test, &index)?;
    let golden = indexed("golden", golden, &index)?;
    let newest = indexed("newest", newest, &index)?;
    (counts.train, counts.validation) = (train.len() as u64, validation.len() as u64);
    (counts.test, counts.golden) = (test.len() as u64, golden.len() as u64);
    counts.newest = newest.len() as u64;
    let rows = [&train, &validation, &test, &golden, &newest].map(|set| rows_per_label(set, labels.len()));
    let present = |rows: &[u64]| rows.iter().filter(|rows| **rows > 0).count() as u64;
    let [of_train, of_validation, of_test, of_golden, of_newest] = &rows;
    (counts.labels, counts.validation_labels) = (present(of_train), present(of_validation));
    (counts.test_labels, counts.golden_labels) = (present(of_test), present(of_golden));
    counts.newest_labels = present(of_newest);
    counts.largest_label = of_train.iter().copied().max().unwrap_or(0);
    counts.smallest_label = of_train.iter().copied().min().unwrap_or(0);
    let least = rare_label_rows(dataset);
    counts.rare_labels = of_train.iter().filter(|rows| **rows < least).count() as u64;
    Ok(Prepared {
        labels,
        train,
        validation,
        test,
        golden,
        newest,
        counts,
        examples,
        digest: dataset_digest(files),
    })
}

/// Takes the texts of the newest set out of those to be trained on, split and measured, where clients sent those, too. What stands
/// in a source of another format is trained on and leaves the set, whatever clients say of it by now; and so does a text that is all
/// that there is of a label: what clients say of a few texts makes no label unknown.
fn part_from(rows: &mut Vec<Row>, newest: &mut Vec<Row>, feedback: &BTreeSet<u32>, counts: &mut DatasetCounts) {
    let (rows_before, newest_before) = (rows.len(), newest.len());
    let held: HashSet<String> = newest.iter().map(|row| row.text.clone()).collect();
    let goes = |row: &Row| feedback.contains(&row.place.file) && held.contains(&row.text);
    let left: HashSet<String> = rows
        .iter()
        .filter(|row| !goes(row))
        .map(|row| row.label.clone())
        .collect();
    rows.retain(|row| !goes(row) || !left.contains(&row.label));
    let trained: HashSet<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    newest.retain(|row| !trained.contains(row.text.as_str()));
    counts.newest_overlap = (rows_before - rows.len()) as u64;
    counts.newest_left_out = (newest_before - newest.len()) as u64;
}

/// Reads sets and remembers the files.
struct Reader<'a> {
    dataset: &'a Dataset,
    cleaner: Cleaner,
    /// URIs in the order of reading.
    files: Vec<String>,
    /// Which of them clients' words were read from.
    feedback: BTreeSet<u32>,
}

impl<'a> Reader<'a> {
    fn new(dataset: &'a Dataset) -> Self {
        Self {
            dataset,
            cleaner: Cleaner::new(dataset.deduplicate),
            files: Vec::new(),
            feedback: BTreeSet::new(),
        }
    }

    fn set(&mut self, files: &[SourceFile]) -> Result<Vec<Row>> {
        for source in files {
            let file = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
            self.files.push(source.name.clone());
            if source.format == Format::Feedback {
                self.feedback.insert(file);
            }
            let budget = MAX_ROWS.saturating_sub(self.cleaner.read);
            let columns = (self.dataset.text_column.as_str(), self.dataset.label_column.as_str());
            read_rows(
                &source.path,
                &source.name,
                source.format,
                columns,
                budget,
                &mut |line, text, label| {
                    let line = u32::try_from(line).unwrap_or(u32::MAX);
                    self.cleaner.add(Place { file, line }, text, label);
                },
            )?;
        }
        Ok(self.cleaner.end_set())
    }
}

fn example(files: &[String], problem: DatasetProblem, first: Place, second: Place) -> DatasetExample {
    let place = |place: Place| RowPlace {
        uri: Uri(files.get(place.file as usize).cloned().unwrap_or_default()),
        line: u64::from(place.line),
    };
    DatasetExample {
        problem,
        first: place(first),
        second: place(second),
    }
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

/// Profile of a set by the model's own answers, as many as the set has rows. It has bins for projections where the answers
/// have projections.
#[must_use]
pub fn profile(set: &EncodedSet, answers: &[Answer], classes: usize) -> DataProfile {
    let mut profile = DataProfile::new(classes);
    let projections: Vec<_> = answers.iter().filter_map(|answer| answer.projections).collect();
    if !projections.is_empty() {
        profile = profile.with_projections(&projections);
    }
    for (ids, answer) in set.ids.iter().zip(answers) {
        profile.add(ids, answer);
    }
    profile
}
