//! What a training writes at its end: the artifact and the result, by conditional creates. The result counts once `HEAD`
//! names it.

use std::path::Path;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{MANIFEST_FILE, Manifest, is_file_name};
use flywheel_contract::checkpoint::ResultRef;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::trainer::{ArtifactRef, TrainerConfig, TrainingResult};
use flywheel_store::{Lineage, Purpose, Store, StoreError, describe};

use crate::learning::Learned;
use crate::reuse;
use crate::tracker::Tracker;

/// Most bytes of a result: 10,000 labels would give a confusion matrix of 100 million counts, so it is left out
/// above [`CONFUSION_MAX_LABELS`].
pub(crate) const RESULT_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Most labels for which the confusion matrix is kept.
pub(crate) const CONFUSION_MAX_LABELS: usize = 1000;

pub(crate) fn output(error: &StoreError) -> Failure {
    error.failure(Purpose::Output)
}

/// The failure of a swap of `HEAD`, after noting who holds it.
pub(crate) fn refused(error: &StoreError, tracker: &Tracker) -> Failure {
    if let StoreError::Fenced { attempt, .. } = error {
        tracker.fenced(*attempt);
    }
    output(error)
}

fn conflict(uri: &Uri, what: &str) -> Failure {
    Failure::new(
        FailureReason::OutputConflict,
        format!("{uri} {what}, which is neither used nor overwritten; choose another output URI or move it away"),
    )
}

/// The result that `HEAD` names: that of an earlier attempt.
pub(crate) async fn earlier_result(
    store: &Store,
    config: &TrainerConfig,
    named: &ResultRef,
) -> Result<TrainingResult, Failure> {
    let uri = config.job_uri().join(&named.path);
    if !is_file_name(&named.path) {
        return Err(conflict(&uri, "cannot be the result that HEAD names"));
    }
    let (result, digest) = read_result(store, config, &uri).await?;
    if digest != named.digest {
        return Err(conflict(&uri, "is not the result that HEAD names"));
    }
    // It may have ended before it came to this.
    reuse::remember(store, config, &result, &digest).await;
    Ok(result)
}

async fn read_result(store: &Store, config: &TrainerConfig, uri: &Uri) -> Result<(TrainingResult, Digest), Failure> {
    let (bytes, fetched) = match store.get_bytes(uri, RESULT_MAX_BYTES).await {
        Ok(got) => got,
        Err(StoreError::TooLarge { .. }) => return Err(conflict(uri, "is no result of a training")),
        Err(error) => return Err(output(&error)),
    };
    let result: TrainingResult =
        serde_json::from_slice(&bytes).map_err(|_| conflict(uri, "is no result of a training"))?;
    if result.schema_version != SCHEMA_VERSION || result.job.uid != config.job.uid {
        return Err(conflict(uri, "is the result of another job"));
    }
    Ok((result, fetched.digest))
}

/// Finds out before hours are spent whether something else is where the artifact will be.
pub(crate) async fn check_free(store: &Store, config: &TrainerConfig) -> Result<(), Failure> {
    let manifest = config.artifact_uri().join(MANIFEST_FILE);
    match store.head(&manifest).await.map_err(|e| output(&e))? {
        Some(_) => Err(conflict(&manifest, "is there already")),
        None => Ok(()),
    }
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
    write_manifest(folder, &manifest).await?;
    store
        .upload_artifact(folder, &config.artifact_uri())
        .await
        .map_err(|e| output(&e))
}

/// Writes the manifest into the folder of the artifact.
pub(crate) async fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let internal = |error: &dyn std::fmt::Display| {
        Failure::new(
            FailureReason::InternalError,
            format!("the manifest cannot be written: {error}"),
        )
    };
    let text = serde_json::to_vec_pretty(manifest).map_err(|e| internal(&e))?;
    tokio::fs::write(folder.join(MANIFEST_FILE), text)
        .await
        .map_err(|e| internal(&e))
}

/// Writes the result and commits it.
pub(crate) async fn commit(
    store: &Store,
    lineage: &mut Lineage,
    config: &TrainerConfig,
    result: TrainingResult,
    tracker: &Tracker,
) -> Result<TrainingResult, Failure> {
    let text = serde_json::to_vec(&result).map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!("the result cannot be written: {e}"),
        )
    })?;
    let uri = config.job_uri().join(&config.result_path());
    match store.put_create(&uri, text.into()).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => (),
        Err(error) => return Err(output(&error)),
    }
    // What is there is read back, whoever wrote it: an earlier pod of this attempt may have come so far and no further,
    // and its artifact was whole before it wrote its result.
    let (result, digest) = read_result(store, config, &uri).await?;
    lineage
        .commit_result(config.result_path(), digest.clone())
        .await
        .map_err(|e| refused(&e, tracker))?;
    reuse::remember(store, config, &result, &digest).await;
    Ok(result)
}

/// Removes the checkpoints of a job that has its result. They are in nobody's way, so a failure is logged only.
pub(crate) async fn clear(lineage: &mut Lineage) {
    let problem = match lineage.clear().await {
        Ok(()) => lineage.leftover().map(str::to_owned),
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        tracing::warn!(uri = %lineage.uri(), problem, "checkpoints that are not needed any more could not be removed");
    }
}
