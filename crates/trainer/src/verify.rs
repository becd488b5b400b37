//! `verify`: whether an artifact is what its digest says, loads, and answers as it did when it was made; and the receipt beside it.

use std::path::Path;

use flywheel_contract::artifact::{EVALUATION_SAMPLE_FILE, Manifest, WEIGHTS_FILE};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::{Device, Precision};
use flywheel_contract::termination::{ReceiptFate, Reproduced, Verified};
use flywheel_contract::trainer::{ArtifactRef, VerifyConfig};
use flywheel_contract::version::{VERSION_FILE, VersionReceipt};
use flywheel_learn::loaded::too_many_differ;
use flywheel_learn::{Loaded, device};
use flywheel_store::{Limits, Purpose, Store, StoreError};

use crate::train::scratch_folder;

/// Longest problem with a receipt that is told, in bytes: it becomes part of a condition's message.
const PROBLEM_MAX: usize = 300;

/// Verifies the artifact, and then writes the receipt beside it.
pub(crate) async fn verify(config: &VerifyConfig, limits: Limits, scratch: Option<&Path>) -> Result<Verified, Failure> {
    let failure = |e: StoreError| e.failure(Purpose::Artifact);
    let store = Store::with_limits(&config.storage, limits).map_err(failure)?;
    let scratch = scratch_folder(scratch)?;
    let folder = scratch.path().join("artifact");
    let manifest = store
        .download_artifact(&config.artifact, &folder)
        .await
        .map_err(failure)?;
    let (files, bytes) = (
        manifest.files.len(),
        manifest.files.iter().map(|file| file.length).sum(),
    );
    tracing::info!(files, bytes, uri = %config.artifact.uri, "artifact is what its digest says");
    let computed = tokio::task::spawn_blocking(move || answers(&folder, &manifest)).await;
    let reproduced = computed.map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!("loading the artifact ended badly: {e}; please report it"),
        )
    })??;
    let receipt = match &config.receipt {
        Some(receipt) => Some(keep(&store, &config.artifact, receipt).await),
        None => None,
    };
    tracing::info!(?reproduced, ?receipt, "the artifact loads and answers");
    Ok(Verified {
        files: u32::try_from(files).unwrap_or(u32::MAX),
        bytes,
        reproduced,
        receipt,
    })
}

/// Loads the artifact on the processor in single precision, in which its sample was answered, and answers that again.
fn answers(folder: &Path, manifest: &Manifest) -> Result<Option<Reproduced>, Failure> {
    device::check_library()?;
    let loaded = Loaded::load(folder, manifest, device::resolve(Device::Cpu, 0)?, Precision::Float32)?;
    // Any tokenizer reads this. An artifact without a sample has to answer something, too.
    let row = loaded.tokenizer.encode("does it answer")?.ids;
    if !loaded
        .classifier
        .predict(&[row])?
        .iter()
        .flatten()
        .all(|p| p.is_finite())
    {
        return Err(Failure::new(
            FailureReason::WeightsInvalid,
            format!(
                "the model answers with values that are no numbers; {WEIGHTS_FILE} is broken, train again or write it again"
            ),
        ));
    }
    let reproduced = loaded.reproduce(folder, manifest)?;
    if let Some((differ, most)) = reproduced.and_then(|r| too_many_differ(r.texts, r.same)) {
        return Err(Failure::new(
            FailureReason::AnswersDiffer,
            format!(
                "{differ} of the texts of {EVALUATION_SAMPLE_FILE} get another label than it records, {most} may: weights and \
                 tokenizer are not those that its answers, and so the version's metrics, were made with. Train again, or write \
                 the artifact again from one model"
            ),
        ));
    }
    Ok(reproduced)
}

/// Writes the receipt where there is none. The bucket may be readable only, so a failure is no failure of the version.
async fn keep(store: &Store, artifact: &ArtifactRef, receipt: &VersionReceipt) -> ReceiptFate {
    let text = match serde_json::to_vec_pretty(receipt) {
        Ok(text) => text,
        Err(error) => return ReceiptFate::NotWritten(error.to_string()),
    };
    match store.put_create(&artifact.uri.join(VERSION_FILE), text.into()).await {
        Ok(_) => ReceiptFate::Kept,
        Err(StoreError::Conflict { .. }) => ReceiptFate::OfAnother,
        Err(error) => {
            let mut problem = error.to_string();
            tracing::warn!(problem, "the receipt could not be written");
            problem.truncate(problem.floor_char_boundary(PROBLEM_MAX));
            ReceiptFate::NotWritten(problem)
        }
    }
}
