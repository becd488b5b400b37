//! `import`: the artifacts that lie below a folder, each with its receipt; or one that is made of a folder in Hugging Face's layout.
//! What is found is told in the log, a line each: who asked makes ModelVersions of it, with rights of their own.

use std::path::Path;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{
    CONFIG_FILE, MANIFEST_FILE, MANIFEST_MAX_BYTES, Manifest, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE,
};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::{Device, Precision, Task, Uri};
use flywheel_contract::termination::Imported;
use flywheel_contract::trainer::{ArtifactRef, ImportConfig, MadeArtifact, RESULTS_DIR};
use flywheel_contract::version::{FoundLine, FoundVersion, RECEIPT_MAX_BYTES, VERSION_FILE, VersionReceipt};
use flywheel_learn::{Loaded, device};
use flywheel_store::{Limits, Purpose, Store, StoreError, describe};

use crate::ending::print_found;
use crate::inputs;
use crate::output::write_manifest;
use crate::train::scratch_folder;

/// Most artifacts that are told of.
const VERSIONS_MAX: u32 = 1000;
/// Most folders that are looked into; a job has about three.
const FOLDERS_MAX: usize = 10_000;
/// Deepest folder below the one asked for: model, job, attempt, and two for how buckets are sorted.
const DEPTH_MAX: usize = 5;

/// Looks through the folder, or makes an artifact of it.
pub(crate) async fn import(config: &ImportConfig, limits: Limits, scratch: Option<&Path>) -> Result<Imported, Failure> {
    let store = Store::with_limits(&config.storage, limits).map_err(|e| e.failure(Purpose::Artifact))?;
    if let Some(make) = &config.make {
        let found = made(&store, &config.uri, make, scratch).await?;
        print_found(&FoundLine { found });
        return Ok(Imported {
            found: 1,
            unusable: 0,
            more: false,
        });
    }
    below(&store, &config.uri).await
}

/// Tells of the artifacts below a folder. One that cannot be used keeps no other from being told.
async fn below(store: &Store, folder: &Uri) -> Result<Imported, Failure> {
    let failure = |e: StoreError| e.failure(Purpose::Artifact);
    let mut imported = Imported {
        found: 0,
        unusable: 0,
        more: false,
    };
    let (mut open, mut looked) = (vec![(folder.clone(), 0)], 0);
    while let Some((uri, depth)) = open.pop() {
        if imported.found >= VERSIONS_MAX || looked >= FOLDERS_MAX {
            imported.more = true;
            break;
        }
        looked += 1;
        let listing = store.list(&uri).await.map_err(failure)?;
        let holds = |name: &str| listing.objects.iter().any(|object| object == name);
        if holds(MANIFEST_FILE) {
            match artifact(store, &uri, holds(VERSION_FILE)).await.map_err(failure)? {
                Ok(found) => {
                    imported.found += 1;
                    print_found(&FoundLine { found });
                }
                Err(why) => {
                    imported.unusable += 1;
                    tracing::warn!(%uri, why, "an artifact is passed over");
                }
            }
            // Nothing lies in an artifact's folder.
            continue;
        }
        if depth == DEPTH_MAX {
            imported.more |= !listing.folders.is_empty();
            continue;
        }
        let mut folders = listing.folders;
        folders.sort_unstable_by(|a, b| b.cmp(a));
        let deeper = folders.into_iter().filter(|name| name != RESULTS_DIR);
        open.extend(deeper.map(|name| (uri.join(&name), depth + 1)));
    }
    tracing::info!(found = imported.found, unusable = imported.unusable, folders = looked, uri = %folder, "looked through");
    Ok(imported)
}

/// The artifact of a folder, or why it is none.
async fn artifact(store: &Store, uri: &Uri, has_receipt: bool) -> Result<Result<FoundVersion, String>, StoreError> {
    let (bytes, fetched) = match store.get_bytes(&uri.join(MANIFEST_FILE), MANIFEST_MAX_BYTES).await {
        Ok(got) => got,
        Err(error @ (StoreError::NotFound { .. } | StoreError::TooLarge { .. })) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    let manifest: Manifest = match serde_json::from_slice(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Err(format!("{MANIFEST_FILE} cannot be read: {error}"))),
    };
    if let Err(why) = manifest.check() {
        return Ok(Err(format!("{MANIFEST_FILE}: {why}")));
    }
    let receipt = if has_receipt {
        let receipt = match store.get_bytes(&uri.join(VERSION_FILE), RECEIPT_MAX_BYTES).await {
            Ok((bytes, _)) => serde_json::from_slice::<VersionReceipt>(&bytes).map_err(|e| e.to_string()),
            Err(error @ (StoreError::NotFound { .. } | StoreError::TooLarge { .. })) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        match receipt {
            Ok(receipt) if receipt.schema_version != SCHEMA_VERSION => {
                return Ok(Err(format!(
                    "{VERSION_FILE} has schemaVersion {}, this release understands {SCHEMA_VERSION}",
                    receipt.schema_version
                )));
            }
            Ok(receipt) if receipt.digest != fetched.digest => {
                return Ok(Err(format!("{VERSION_FILE} is the receipt of another artifact")));
            }
            Ok(receipt) => Some(receipt),
            Err(why) => return Ok(Err(format!("{VERSION_FILE} cannot be read: {why}"))),
        }
    } else {
        None
    };
    Ok(Ok(FoundVersion {
        artifact: ArtifactRef {
            uri: uri.clone(),
            digest: fetched.digest,
        },
        model: manifest.model,
        metrics: manifest.metrics,
        receipt,
    }))
}

/// Makes an artifact of a classifier in Hugging Face's layout: its files as they are, a tokenizer in the form that is always there,
/// and the manifest. It has no metrics and no evaluation sample.
async fn made(store: &Store, from: &Uri, make: &MadeArtifact, scratch: Option<&Path>) -> Result<FoundVersion, Failure> {
    let output = |e: StoreError| e.failure(Purpose::Output);
    store.check_writable(&make.to).map_err(output)?;
    let scratch = scratch_folder(scratch)?;
    let folder = scratch.path().join("pretrained");
    let pretrained = inputs::pretrained(store, from, None, &folder).await?;
    let longest = pretrained.config.max_length();
    let labels = pretrained
        .config
        .labels()
        .map_err(|e| pretrained.failure(&e))?
        .filter(|labels| labels.len() > 1)
        .ok_or_else(|| {
            Failure::new(
                FailureReason::PretrainedInvalid,
                format!(
                    "{} has no id2label with two labels or more, so it is no classifier; fine-tune it by a TrainingJob with \
                     model.pretrained.uri, or import a folder that was saved by AutoModelForSequenceClassification",
                    from.join(CONFIG_FILE)
                ),
            )
        })?;
    pretrained.tokenizer.save(&folder).map_err(Failure::from)?;
    let mut files = Vec::new();
    for name in [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE] {
        files.push(describe(&folder, name).await.map_err(output)?);
    }
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        model: make.model.clone(),
        task: Task::TextClassification,
        architecture: pretrained.config.architecture.model_type().to_owned(),
        labels,
        max_length: i32::try_from(longest).unwrap_or(i32::MAX),
        metrics: Vec::new(),
        files,
    };
    let internal = |text: String| Failure::new(FailureReason::InternalError, text);
    write_manifest(&folder, &manifest).await?;
    let here = folder.clone();
    // What cannot be loaded is found before it is written.
    let loaded = tokio::task::spawn_blocking(move || {
        device::check_library()?;
        Loaded::load(&here, &manifest, device::resolve(Device::Cpu, 0)?, Precision::Float32).map(drop)
    });
    loaded
        .await
        .map_err(|e| internal(format!("loading the folder ended badly: {e}")))??;
    let artifact = store.upload_artifact(&folder, &make.to).await.map_err(output)?;
    tracing::info!(uri = %artifact.uri, digest = %artifact.digest, "an artifact is made");
    Ok(FoundVersion {
        artifact,
        model: make.model.clone(),
        metrics: Vec::new(),
        receipt: None,
    })
}
