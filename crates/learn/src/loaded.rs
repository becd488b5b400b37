//! An artifact as it answers: its network with its tokenizer, and whether its answers are those that its evaluation sample records.

use std::path::Path;

use flywheel_contract::artifact::{EVALUATION_SAMPLE_FILE, EvaluationSample, Manifest};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::profile::most_probable;
use flywheel_contract::scalar::Precision;
use flywheel_contract::termination::Reproduced;
use flywheel_data::TextTokenizer;

use crate::artifact::Classifier;
use crate::device::{self, TensorDevice};

/// Longest file of an evaluation sample, bytes: two hundred texts with the answers for thousands of labels.
const MAX_SAMPLE_BYTES: u64 = 64 * 1024 * 1024;
/// Texts of the evaluation sample in one batch.
const COMPARED_AT_ONCE: usize = 16;
/// One text in so many of the evaluation sample may get another label than it records (and one of a smaller sample).
const ONE_MAY_DIFFER_OF: u32 = 200;

/// A network that reads texts.
pub struct Loaded {
    /// The network.
    pub classifier: Classifier,
    /// Its tokenizer, which cuts at `max_length`.
    pub tokenizer: TextTokenizer,
    /// Longest row that it reads, tokens.
    pub max_length: usize,
}

impl Loaded {
    /// Loads an artifact whose digests were checked before.
    ///
    /// # Errors
    /// The reasons of [`Classifier::load`] and of [`TextTokenizer::load`]; `ManifestInvalid` where manifest and `config.json`
    /// name other labels.
    pub fn load(
        folder: &Path,
        manifest: &Manifest,
        device: TensorDevice,
        precision: Precision,
    ) -> Result<Self, Failure> {
        let classifier = Classifier::load(folder, device, precision)?;
        if classifier.labels() != manifest.labels {
            return Err(Failure::new(
                FailureReason::ManifestInvalid,
                "the labels of manifest.json and of config.json differ; train again, or write the artifact again",
            ));
        }
        let reads = classifier.max_length();
        let max_length = usize::try_from(manifest.max_length).unwrap_or(0).min(reads);
        let vocabulary = usize::try_from(classifier.config().vocab_size).unwrap_or(0);
        let tokenizer = TextTokenizer::load(folder, max_length, vocabulary)?;
        Ok(Self {
            classifier,
            tokenizer,
            max_length,
        })
    }

    /// Answers the texts of the evaluation sample of an artifact, this one's or another one's, on one thread; none where that has no
    /// sample. Labels are the same where their names are.
    ///
    /// # Errors
    /// `ManifestInvalid` where the sample cannot be read, and the reasons of [`Classifier::predict`].
    pub fn reproduce(&self, folder: &Path, manifest: &Manifest) -> Result<Option<Reproduced>, Failure> {
        let Some(bytes) = small_file(folder, manifest, EVALUATION_SAMPLE_FILE, MAX_SAMPLE_BYTES)? else {
            return Ok(None);
        };
        let invalid = |why: String| unusable(EVALUATION_SAMPLE_FILE, why);
        // Its words would name texts.
        let sample: EvaluationSample =
            serde_json::from_slice(&bytes).map_err(|e| invalid(format!("broken JSON at line {}", e.line())))?;
        let labels = manifest.labels.len();
        if sample.items.iter().any(|item| item.probabilities.len() != labels) {
            return Err(invalid("its answers have other labels than the manifest".to_owned()));
        }
        device::set_threads(1);
        let label = |labels: &[String], probabilities: &[f32]| {
            let (class, _) = most_probable(probabilities)?;
            labels.get(class).cloned()
        };
        let (mut same, mut right, mut recorded_right) = (0, 0, 0);
        for items in sample.items.chunks(COMPARED_AT_ONCE) {
            let rows = items.iter().map(|item| Ok(self.tokenizer.encode(&item.text)?.ids));
            let rows = rows.collect::<Result<Vec<_>, flywheel_data::DataError>>()?;
            let answers = self.classifier.predict(&rows)?;
            for (item, answer) in items.iter().zip(&answers) {
                let here = label(self.classifier.labels(), answer);
                let recorded = label(&manifest.labels, &item.probabilities);
                let truth = usize::try_from(item.label)
                    .ok()
                    .and_then(|class| manifest.labels.get(class).cloned());
                same += u32::from(here == recorded);
                right += u32::from(here.is_some() && here == truth);
                recorded_right += u32::from(recorded.is_some() && recorded == truth);
            }
        }
        Ok(Some(Reproduced {
            texts: u32::try_from(sample.items.len()).unwrap_or(u32::MAX),
            same,
            right,
            recorded_right,
        }))
    }
}

/// How many texts of a sample get another label than it records, and how many may, where those are too many.
#[must_use]
pub fn too_many_differ(texts: u32, same: u32) -> Option<(u32, u32)> {
    let (differ, most) = (texts.saturating_sub(same), texts.div_ceil(ONE_MAY_DIFFER_OF));
    (differ > most).then_some((differ, most))
}

/// Content of a file of the artifact, of which at most `most` bytes are read; none where the manifest does not list it.
///
/// # Errors
/// `ManifestInvalid` where it is longer or cannot be read.
pub fn small_file(folder: &Path, manifest: &Manifest, name: &str, most: u64) -> Result<Option<Vec<u8>>, Failure> {
    let Some(file) = manifest.files.iter().find(|file| file.name == name) else {
        return Ok(None);
    };
    if file.length > most {
        return Err(unusable(
            name,
            format!("{} bytes, at most {most} are read", file.length),
        ));
    }
    std::fs::read(folder.join(name))
        .map(Some)
        .map_err(|e| unusable(name, e.to_string()))
}

/// The failure of a file of an artifact that is what its digest says and yet no use.
#[must_use]
pub fn unusable(name: &str, why: impl std::fmt::Display) -> Failure {
    let message = format!("{name} cannot be used: {why}; write the artifact again");
    Failure::new(FailureReason::ManifestInvalid, message)
}
