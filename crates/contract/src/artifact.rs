//! What an artifact holds: `manifest.json` and the files that it lists.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::scalar::{Digest, Metric, Task};

/// Name of the manifest inside an artifact. Its digest is the artifact's digest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Weights in safetensors, under Hugging Face's names.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Architecture and labels, as Hugging Face writes them.
pub const CONFIG_FILE: &str = "config.json";
/// The tokenizer, as the `tokenizers` library writes it.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Settings with which Hugging Face finds the tokenizer's class and length.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Texts with the model's own answers ([`EvaluationSample`]), unless the job keeps texts out.
pub const EVALUATION_SAMPLE_FILE: &str = "evaluation_sample.json";
/// Histograms of the training data ([`crate::profile::DataProfile`]).
pub const DATA_PROFILE_FILE: &str = "data_profile.json";
/// Ranges of the encoder's inner numbers, for [`crate::scalar::Precision::Int8`].
pub const CALIBRATION_FILE: &str = "int8.safetensors";

/// Most bytes of a manifest; a larger one is refused unread.
pub const MANIFEST_MAX_BYTES: u64 = 1024 * 1024;
/// Most files in an artifact.
pub const MAX_FILES: usize = 64;
/// Most bytes of one file.
pub const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Name of the model.
    pub model: String,
    /// What it was made to do.
    pub task: Task,
    /// `model_type` of `config.json`: bert, distilbert, roberta, xlm-roberta.
    pub architecture: String,
    /// Labels by class index.
    pub labels: Vec<String>,
    /// Tokens per text at training; the server cuts there too.
    pub max_length: i32,
    /// Final metrics.
    pub metrics: Vec<Metric>,
    /// Every other file of the artifact.
    pub files: Vec<ManifestFile>,
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestFile {
    /// Name: letters, digits, `.`, `_`, `-`; no folders.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// Content.
    pub digest: Digest,
}

/// Whether `name` may name a file of an artifact: no folders, no dots in front, ordinary characters only.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What is wrong with the files that a manifest lists, if anything: too many, a name that no file may have, repeats, size.
/// Returns their names.
///
/// # Errors
/// One sentence.
pub fn check_files(files: &[ManifestFile]) -> Result<BTreeSet<&str>, String> {
    if files.len() > MAX_FILES {
        return Err(format!("it lists {} files, more than {MAX_FILES}", files.len()));
    }
    let mut seen = BTreeSet::new();
    for file in files {
        if !is_file_name(&file.name) || file.name == MANIFEST_FILE {
            return Err(format!("it lists a file called {:?}", file.name));
        }
        if !seen.insert(file.name.as_str()) {
            return Err(format!("it lists {} twice", file.name));
        }
        if file.length > FILE_MAX_BYTES {
            return Err(format!(
                "{} has {} bytes, more than {FILE_MAX_BYTES}",
                file.name, file.length
            ));
        }
    }
    Ok(seen)
}

impl Manifest {
    /// What is wrong with it, if anything: names, repeats, bounds, missing weights, labels.
    ///
    /// # Errors
    /// One sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.schema_version != crate::SCHEMA_VERSION {
            return Err(format!(
                "schemaVersion {} is not {}, the one understood here",
                self.schema_version,
                crate::SCHEMA_VERSION
            ));
        }
        if self.labels.len() < 2 {
            return Err("it lists fewer than two labels".to_owned());
        }
        let seen = check_files(&self.files)?;
        match [WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE]
            .iter()
            .find(|n| !seen.contains(**n))
        {
            Some(missing) => Err(format!("it does not list {missing}")),
            None => Ok(()),
        }
    }
}

/// Most texts of an evaluation sample: one in two hundred may get another label in another precision.
pub const MAX_SAMPLE_TEXTS: usize = 200;

/// `evaluation_sample.json`: texts of the test set with the answers of the weights in the artifact, in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationSample {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// At most [`MAX_SAMPLE_TEXTS`] items.
    pub items: Vec<EvaluationItem>,
}

/// One text with its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationItem {
    /// The text.
    pub text: String,
    /// Index of the true label.
    pub label: u32,
    /// Probability of each label.
    pub probabilities: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str| ManifestFile {
            name: name.to_owned(),
            length: 1,
            digest: Digest::sha256(&"0".repeat(64)),
        };
        Manifest {
            schema_version: crate::SCHEMA_VERSION,
            model: "intent".to_owned(),
            task: Task::TextClassification,
            architecture: "bert".to_owned(),
            labels: vec!["a".to_owned(), "b".to_owned()],
            max_length: 64,
            metrics: vec![],
            files: vec![file(WEIGHTS_FILE), file(CONFIG_FILE), file(TOKENIZER_FILE)],
        }
    }

    #[test]
    fn what_a_manifest_may_not_say() {
        assert_eq!(manifest().check(), Ok(()));
        type Change = fn(&mut Manifest);
        let bad: [(&str, Change); 7] = [
            ("schemaVersion", |m| m.schema_version = 99),
            ("two labels", |m| m.labels.truncate(1)),
            ("called", |m| m.files[0].name = "../etc/passwd".to_owned()),
            ("called", |m| m.files[0].name = MANIFEST_FILE.to_owned()),
            ("twice", |m| m.files[0].name = CONFIG_FILE.to_owned()),
            ("more than", |m| m.files[0].length = u64::MAX),
            ("does not list", |m| m.files.truncate(2)),
        ];
        for (word, change) in bad {
            let mut m = manifest();
            change(&mut m);
            let error = m.check().expect_err(word);
            assert!(error.contains(word), "{error}");
        }
    }
}
