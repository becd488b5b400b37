//! What a training writes: a claim, the artifact, the result. Always by conditional creates.

use std::path::Path;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{MANIFEST_FILE, Manifest};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Uri;
use flywheel_contract::trainer::{ArtifactRef, TrainerConfig, TrainingResult};
use flywheel_store::{Purpose, Store, StoreError, describe};

use crate::learning::Learned;

/// Most bytes of `result.json`: 10,000 labels would give a confusion matrix of 100 million counts, so it is left out
/// above [`CONFUSION_MAX_LABELS`].
const RESULT_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Most labels for which the confusion matrix is kept.
pub(crate) const CONFUSION_MAX_LABELS: usize = 1000;

fn output(error: &StoreError) -> Failure {
    error.failure(Purpose::Output)
}

fn conflict(uri: &Uri, what: &str) -> Failure {
    Failure::new(
        FailureReason::OutputConflict,
        format!("{uri} {what}, which is neither used nor overwritten; choose another output URI or move it away"),
    )
}

/// The result of this very job, where an earlier attempt committed one.
pub(crate) async fn earlier_result(store: &Store, config: &TrainerConfig) -> Result<Option<TrainingResult>, Failure> {
    let uri = config.result_uri();
    let bytes = match store.get_bytes(&uri, RESULT_MAX_BYTES).await {
        Ok((bytes, _)) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(StoreError::TooLarge { .. }) => return Err(conflict(&uri, "is no result of a training")),
        Err(error) => return Err(output(&error)),
    };
    let result: TrainingResult =
        serde_json::from_slice(&bytes).map_err(|_| conflict(&uri, "is no result of a training"))?;
    if result.schema_version != SCHEMA_VERSION || result.job.uid != config.job.uid {
        return Err(conflict(&uri, "is the result of another job"));
    }
    Ok(Some(result))
}

/// Claims the attempt's place before hours are spent: finds out whether the storage can be written, and whether
/// something else is there.
pub(crate) async fn claim(store: &Store, config: &TrainerConfig) -> Result<(), Failure> {
    let manifest = config.artifact_uri().join(MANIFEST_FILE);
    if store.head(&manifest).await.map_err(|e| output(&e))?.is_some() {
        return Err(conflict(&manifest, "is there already"));
    }
    let uri = Uri(format!("{}.json", config.artifact_uri()));
    let text = serde_json::to_vec(&config.job).map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!("the claim cannot be written: {e}"),
        )
    })?;
    store.put_create(&uri, text.into()).await.map_err(|e| output(&e))?;
    Ok(())
}

/// Writes the manifest over the files of the folder and uploads all.
pub(crate) async fn upload(
    store: &Store,
    config: &TrainerConfig,
    folder: &Path,
    labels: &[String],
    learned: &Learned,
) -> Result<ArtifactRef, Failure> {
    let mut files = Vec::new();
    for name in &learned.files {
        files.push(describe(folder, name).await.map_err(|e| output(&e))?);
    }
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        model: config.model_name.clone(),
        task: config.task,
        architecture: learned.architecture.to_owned(),
        labels: labels.to_vec(),
        max_length: config.hyperparameters.max_length,
        metrics: learned.metrics.clone(),
        files,
    };
    let internal = |text: String| Failure::new(FailureReason::InternalError, text);
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|e| internal(format!("the manifest cannot be written: {e}")))?;
    tokio::fs::write(folder.join(MANIFEST_FILE), text)
        .await
        .map_err(|e| internal(format!("the manifest cannot be written: {e}")))?;
    store
        .upload_artifact(folder, &config.artifact_uri())
        .await
        .map_err(|e| output(&e))
}

/// Commits the result. Where another attempt of this job was first, its result is the one that holds.
pub(crate) async fn commit(
    store: &Store,
    config: &TrainerConfig,
    result: TrainingResult,
) -> Result<TrainingResult, Failure> {
    let text = serde_json::to_vec(&result).map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!("the result cannot be written: {e}"),
        )
    })?;
    match store.put_create(&config.result_uri(), text.into()).await {
        Ok(_) => Ok(result),
        Err(StoreError::Conflict { .. }) => match earlier_result(store, config).await? {
            Some(earlier) => Ok(earlier),
            None => Err(conflict(&config.result_uri(), "came and went")),
        },
        Err(error) => Err(output(&error)),
    }
}
