//! The version beside which the one that was trained is measured: both answer the same rows, each with its own tokenizer and
//! labels.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flywheel_contract::dataset::SetName;
use flywheel_contract::failure::{Failure, FailureClass};
use flywheel_contract::scalar::{Metric, Precision, Uri};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_data::{TextSet, TextTokenizer};
use flywheel_learn::device::TensorDevice;
use flywheel_learn::evaluate::{Paired, right};
use flywheel_learn::{Classifier, Error};
use flywheel_store::{Purpose, Store};

use crate::inputs;

/// Its artifact on the local disk, whole.
pub(crate) struct Incumbent {
    uri: Uri,
    folder: PathBuf,
    /// Tokens that it was trained with.
    max_length: usize,
}

/// The incumbent and the texts that it is to answer.
pub(crate) struct Comparison {
    pub(crate) incumbent: Incumbent,
    /// Sets with a row or more.
    pub(crate) sets: Vec<(SetName, TextSet)>,
}

/// A failure with what its user can do about it.
fn told(failure: &Failure) -> Failure {
    let hint = match failure.reason.class() {
        FailureClass::User => {
            ". output.incumbent is read with the storage settings and rights of this TrainingJob: give it those that can read it, or \
             apply a new one with another incumbent, or without"
        }
        _ => "",
    };
    Failure::new(
        failure.reason,
        format!("the incumbent cannot be used: {}{hint}", failure.message),
    )
}

/// Fetches it before anything is trained, so that hours are not spent where there is nothing to compare with.
pub(crate) async fn fetch(store: &Store, artifact: &ArtifactRef, folder: &Path) -> Result<Incumbent, Failure> {
    inputs::make(folder).await?;
    let manifest = store
        .download_artifact(artifact, folder)
        .await
        .map_err(|e| told(&e.failure(Purpose::Artifact)))?;
    tracing::info!(uri = %artifact.uri, digest = %artifact.digest, "the incumbent is fetched");
    Ok(Incumbent {
        uri: artifact.uri.clone(),
        folder: folder.to_owned(),
        max_length: usize::try_from(manifest.max_length).unwrap_or(0),
    })
}

impl Comparison {
    /// How much more often the new version is right. `labels`: of the truths; `answered`: whether the new version has each row
    /// right, for each set in the order of [`Comparison::sets`]. A label that the incumbent does not know is one that it has wrong.
    pub(crate) fn metrics(
        &self,
        labels: &[String],
        answered: &[Vec<bool>],
        device: TensorDevice,
        at_once: usize,
        seen: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Vec<Metric>, Failure> {
        let Incumbent {
            uri,
            folder,
            max_length,
        } = &self.incumbent;
        let failure = |e: &Error| match e {
            Error::Interrupted => inputs::failure(e, folder, uri),
            e => told(&inputs::failure(e, folder, uri)),
        };
        let classifier = Classifier::load(folder, device, Precision::Float32).map_err(|e| failure(&e))?;
        let config = classifier.config();
        let vocabulary = usize::try_from(config.vocab_size).unwrap_or(0);
        let tokenizer = TextTokenizer::load(folder, (*max_length).min(config.max_length()), vocabulary)
            .map_err(|e| told(&Failure::from(e)))?;
        let mut metrics = Vec::new();
        for ((name, set), challenger) in self.sets.iter().zip(answered) {
            let (encoded, _) = tokenizer.encode_set(set).map_err(|e| told(&Failure::from(e)))?;
            let mut answers = Vec::with_capacity(set.len());
            for rows in encoded.ids.chunks(at_once) {
                answers.extend(classifier.predict(rows).map_err(|e| failure(&e))?);
                if seen().is_break() {
                    return Err(failure(&Error::Interrupted));
                }
            }
            let incumbent = right(&answers, classifier.labels(), &truths(labels, &set.labels));
            let paired = Paired::of(challenger, &incumbent).map_err(|e| failure(&e.into()))?;
            tracing::info!(
                set = %name,
                rows = paired.rows,
                won = paired.won,
                lost = paired.lost,
                delta = paired.delta(),
                error = paired.error(),
                "beside the incumbent"
            );
            metrics.extend(paired.metrics(&name.to_string()));
        }
        Ok(metrics)
    }
}

/// The label of each row by its name.
pub(crate) fn truths<'a>(labels: &'a [String], rows: &[i64]) -> Vec<&'a str> {
    let name = |row: &i64| labels.get(usize::try_from(*row).ok()?).map(String::as_str);
    rows.iter().map(|row| name(row).unwrap_or_default()).collect()
}
