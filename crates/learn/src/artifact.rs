//! A folder that holds a trained classifier: written after training, loaded to answer. `transformers` loads it with
//! `AutoModelForSequenceClassification`.
//!
//! Manifest, evaluation sample and data profile lie beside these files and are the trainer's.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use flywheel_contract::artifact::{CALIBRATION_FILE, CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use flywheel_contract::profile::{Answer, Projector};
use flywheel_contract::scalar::Precision;
use flywheel_data::VOCABULARY_FILE;
use tch::Device;

use crate::config::EncoderConfig;
use crate::error::{Error, Result};
use crate::network::int8::Calibration;
use crate::network::packed::PackedClassifier;
use crate::network::{SequenceClassifier, Taking};
use crate::weights::{self, WeightFile};

/// Files of a tokenizer in any of the forms that the supported models come with.
const TOKENIZER_FILES: [&str; 8] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCABULARY_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
];

/// A network made from a pretrained folder.
pub struct Pretrained {
    /// Encoder with a head for the classes asked for.
    pub network: SequenceClassifier,
    /// Tensors that the folder did not give and that are new, by name.
    pub made: Vec<String>,
    /// Length in bytes of its weights' file.
    pub weights_bytes: u64,
}

/// Builds a classifier with `classes` classes from a folder in Hugging Face's layout. `tokens`: highest id of its
/// tokenizer plus one; `dropout` 0 to 1; `seed` for the head's new tensors.
///
/// # Errors
/// [`Error::Config`], [`Error::TokenizerMissing`], [`Error::TokenizerMismatch`], the errors of [`WeightFile::open`] and
/// of [`SequenceClassifier::load`].
pub fn pretrained(
    dir: &Path,
    classes: usize,
    tokens: usize,
    dropout: f64,
    seed: i64,
    device: Device,
) -> Result<Pretrained> {
    let (config, file, weights_bytes) = opened(dir, tokens)?;
    let (network, made) = SequenceClassifier::load(&config, &file, classes, Taking::Pretrained, dropout, seed, device)?;
    if !made.is_empty() {
        tracing::info!(tensors = ?made, "tensors that the pretrained folder does not hold are new");
    }
    Ok(Pretrained {
        network,
        made,
        weights_bytes,
    })
}

/// Builds a classifier for these labels from the folder of an artifact, to train it on: labels that it knows keep what it learnt of them.
///
/// # Errors
/// As [`pretrained`], and where the folder is no classifier's.
pub fn continued(
    dir: &Path,
    labels: &[String],
    tokens: usize,
    dropout: f64,
    seed: i64,
    device: Device,
) -> Result<Pretrained> {
    let (config, file, weights_bytes) = opened(dir, tokens)?;
    let known = self::labels(dir, &config)?;
    let (network, made) = SequenceClassifier::continued(&config, &file, (&known, labels), dropout, seed, device)?;
    Ok(Pretrained {
        network,
        made,
        weights_bytes,
    })
}

/// Configuration, weights and their length in bytes of a folder that has all that a training needs.
fn opened(dir: &Path, tokens: usize) -> Result<(EncoderConfig, WeightFile, u64)> {
    let config = EncoderConfig::read(dir)?;
    config.check_tokenizer(tokens)?;
    if !dir.join(TOKENIZER_FILE).is_file() && !dir.join(VOCABULARY_FILE).is_file() {
        return Err(Error::TokenizerMissing(dir.into()));
    }
    let path = dir.join(WEIGHTS_FILE);
    let file = WeightFile::open(&path)?;
    let weights_bytes = fs::metadata(&path).map_err(Error::file("read", &path))?.len();
    Ok((config, file, weights_bytes))
}

/// Writes weights and `config.json` of a network into an existing folder and copies the tokenizer's files of the
/// pretrained folder beside them. Returns the names of all files written, sorted; `tokenizer.json` is among them only
/// if the pretrained folder has one.
///
/// # Errors
/// [`Error::Setting`] when the labels are not as many as the classes or repeat, [`Error::File`], [`Error::Torch`].
pub fn write(dir: &Path, network: &SequenceClassifier, labels: &[String], pretrained: &Path) -> Result<Vec<String>> {
    let classes = network.classes();
    if labels.len() != classes {
        return Err(Error::Setting(format!(
            "{} labels for a network of {classes} classes",
            labels.len()
        )));
    }
    let mut sorted = labels.to_vec();
    sorted.sort();
    if let Some(repeated) = sorted.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(Error::Setting(format!("label {:?} stands twice", repeated.first())));
    }
    weights::write(&dir.join(WEIGHTS_FILE), network.parameters())?;
    let path = dir.join(CONFIG_FILE);
    let config = format!("{:#}\n", network.config().classifier_json(labels));
    fs::write(&path, config).map_err(Error::file("write", &path))?;

    let mut written = vec![WEIGHTS_FILE.to_owned(), CONFIG_FILE.to_owned()];
    for name in TOKENIZER_FILES {
        let from = pretrained.join(name);
        if from.is_file() {
            fs::copy(&from, dir.join(name)).map_err(Error::file("copy", &from))?;
            written.push(name.to_owned());
        }
    }
    written.sort();
    Ok(written)
}

/// Labels of an artifact by class index.
fn labels(dir: &Path, config: &EncoderConfig) -> Result<Vec<String>> {
    config
        .labels()?
        .filter(|labels| !labels.is_empty())
        .ok_or_else(|| Error::Config {
            path: dir.join(CONFIG_FILE),
            why: "id2label is missing or empty, so it is no classifier".into(),
        })
}

/// The network of an artifact, every tensor of it from the file.
fn exact(dir: &Path, config: &EncoderConfig, classes: usize, device: Device) -> Result<SequenceClassifier> {
    let file = WeightFile::open(&dir.join(WEIGHTS_FILE))?;
    // Nothing is made anew and nothing drops out, so seed and dropout mean nothing here.
    let (network, _) = SequenceClassifier::load(config, &file, classes, Taking::Exact, 0.0, 0, device)?;
    Ok(network)
}

/// Tokens over which an artifact is calibrated, where its texts are of like lengths.
const CALIBRATED_TOKENS: usize = 8192;
/// Most texts over which it is calibrated; with twice as many, no more labels stay.
const CALIBRATED_TEXTS: usize = 300;

/// Adds the file with which an artifact's network computes in 8 bits ([`Calibration`]) and returns its name. `rows`: token ids
/// of texts that it was trained on, of which some hundred from everywhere are taken. `watch` is called after every batch and
/// may end it.
///
/// # Errors
/// [`Error::File`], and the errors of [`Classifier::load`] and [`Calibration::of`].
pub fn calibrate(
    dir: &Path,
    rows: &[Vec<i64>],
    device: Device,
    watch: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<&'static str> {
    let config = EncoderConfig::read(dir)?;
    let network = exact(dir, &config, labels(dir, &config)?.len(), device)?;
    let length = rows
        .iter()
        .map(Vec::len)
        .sum::<usize>()
        .div_ceil(rows.len().max(1))
        .max(1);
    let wanted = (CALIBRATED_TOKENS / length).clamp(1, CALIBRATED_TEXTS).min(rows.len());
    // Spread, since a set may be sorted.
    let chosen = (0..wanted).filter_map(|i| rows.get(i * rows.len() / wanted));
    let chosen: Vec<&[i64]> = chosen.map(Vec::as_slice).collect();
    Calibration::of(&network, &chosen, watch)?.write(&dir.join(CALIBRATION_FILE))?;
    Ok(CALIBRATION_FILE)
}

/// A loaded artifact, ready to answer. `Send`, not `Sync`: each worker thread takes its own [`Classifier::worker`],
/// which shares the weights.
pub struct Classifier {
    network: PackedClassifier,
    labels: Vec<String>,
    projector: Arc<Projector>,
}

impl Classifier {
    /// Loads `config.json` and `model.safetensors` of an artifact, whose digests were checked before, to compute in a
    /// precision that was chosen ([`crate::precision::choose`]).
    ///
    /// # Errors
    /// [`Error::Config`], also when it names no labels; the errors of [`WeightFile::open`], [`SequenceClassifier::load`],
    /// [`Calibration::read`] and [`PackedClassifier::new`].
    pub fn load(dir: &Path, device: Device, precision: Precision) -> Result<Self> {
        let config = EncoderConfig::read(dir)?;
        let labels = labels(dir, &config)?;
        let network = exact(dir, &config, labels.len(), device)?;
        let network = match precision {
            Precision::Int8 => {
                let calibration = Calibration::read(&dir.join(CALIBRATION_FILE), &config)?;
                PackedClassifier::int8(&network, &calibration)?
            }
            _ => PackedClassifier::new(&network, precision)?,
        };
        Ok(Self {
            network,
            labels,
            projector: Arc::new(Projector::new(usize::try_from(config.hidden).unwrap_or(0))),
        })
    }

    /// The same classifier over the same weights, for another thread.
    #[must_use]
    pub fn worker(&self) -> Self {
        Self {
            network: self.network.shallow_clone(),
            labels: self.labels.clone(),
            projector: Arc::clone(&self.projector),
        }
    }

    /// Labels by class index.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The encoder's numbers.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        self.network.config()
    }

    /// Longest row that can be fed, tokens.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.network.config().max_length()
    }

    /// Probability of each label for each row of token ids, in the order of the rows, which may have any
    /// lengths.
    ///
    /// # Errors
    /// [`Error::Row`] for an empty row, one that is too long, or an id outside the vocabulary; [`Error::OutOfMemory`],
    /// [`Error::Torch`].
    pub fn predict(&self, rows: &[Vec<i64>]) -> Result<Vec<Vec<f32>>> {
        let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        self.network.predict(&rows)
    }

    /// The same probabilities with where each row's text lies, for its data profile.
    ///
    /// # Errors
    /// Those of [`Classifier::predict`].
    pub fn predict_and_project(&self, rows: &[Vec<i64>]) -> Result<Vec<Answer>> {
        let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        let answers = self.network.predict_with_features(&rows)?.into_iter();
        let projected = answers.map(|(probabilities, features)| Answer {
            probabilities,
            projections: Some(self.projector.project(&features)),
        });
        Ok(projected.collect())
    }

    /// Hidden state of each row's first token, which the head looks at: for comparing number formats.
    ///
    /// # Errors
    /// Those of [`Classifier::predict`].
    pub fn first_states(&self, rows: &[Vec<i64>]) -> Result<Vec<Vec<f32>>> {
        let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        self.network.first_states(&rows)
    }
}
