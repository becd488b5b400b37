//! The way of a training, from configuration to result.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::SCRATCH_DIR;
use flywheel_contract::progress::Phase;
use flywheel_contract::termination::Trained;
use flywheel_contract::trainer::{TrainerConfig, TrainingResult};
use flywheel_data::{EncodedSet, Prepared, TextSet, prepare};
use flywheel_learn::train::{Settings, dropout};
use flywheel_store::{Limits, Purpose, Store};

use crate::inputs::{self, Pretrained};
use crate::learning::{self, Work};
use crate::output;
use crate::tracker::Tracker;

/// Trains, or ends with the result that an earlier attempt committed.
pub(crate) async fn train(
    config: &TrainerConfig,
    limits: Limits,
    scratch: Option<&Path>,
    tracker: &Arc<Tracker>,
) -> Result<Trained, Failure> {
    let learn_failure = |e: flywheel_learn::Error| Failure::new(e.reason(), e.to_string());
    let settings = Settings::new(&config.hyperparameters).map_err(learn_failure)?;
    let dropout = dropout(&config.hyperparameters).map_err(learn_failure)?;
    let device = config.device;
    learning::on_thread(tracker, move || learning::check_device(device)).await?;

    let store = Store::with_limits(&config.storage, limits).map_err(|e| e.failure(Purpose::Output))?;
    store
        .check_writable(&config.output_uri)
        .map_err(|e| e.failure(Purpose::Output))?;
    if let Some(result) = output::earlier_result(&store, config).await? {
        tracing::info!(uri = %config.result_uri(), attempt = result.job.attempt, "an earlier attempt has finished this job");
        tracker.phase(Phase::Done);
        return Ok(trained(result));
    }
    output::claim(&store, config).await?;

    tracker.phase(Phase::Downloading);
    let scratch = scratch_folder(scratch)?;
    let files = inputs::dataset(&store, &config.dataset, &scratch.path().join("data")).await?;
    let uri = &config.model.pretrained.uri;
    let max_length = config.hyperparameters.max_length;
    let pretrained = inputs::pretrained(&store, uri, max_length, &scratch.path().join("pretrained")).await?;

    tracker.phase(Phase::Preparing);
    let dataset = config.dataset.clone();
    let (pretrained, prepared, sets) = on_pool(move || {
        let mut prepared = prepare(&dataset, &files)?;
        let sets = encode(&pretrained, &mut prepared)?;
        Ok((pretrained, prepared, sets))
    })
    .await?;
    let counts = prepared.counts.clone();
    tracing::info!(
        rows = counts.rows,
        empty = counts.empty,
        duplicates = counts.duplicates,
        conflicts = counts.conflicts,
        truncated = counts.truncated,
        golden_overlap = counts.golden_overlap,
        train = counts.train,
        validation = counts.validation,
        test = counts.test,
        golden = counts.golden,
        labels = counts.labels,
        digest = %prepared.digest,
        "data set is ready"
    );

    let folder = scratch.path().join("artifact");
    inputs::make(&folder).await?;
    let [train, validation, test, golden] = sets;
    let sample_texts = if config.dataset.evaluation_sample {
        learning::sample_of(&prepared.test.texts)
    } else {
        Vec::new()
    };
    let work = Work {
        device,
        settings,
        dropout,
        pretrained,
        labels: prepared.labels.clone(),
        train,
        validation,
        test,
        golden,
        sample_texts,
        folder: folder.clone(),
    };
    let watched = Arc::clone(tracker);
    let learned = learning::on_thread(tracker, move || learning::learn(&work, &watched)).await?;

    tracker.phase(Phase::Uploading);
    let artifact = output::upload(&store, config, &folder, &prepared.labels, &learned).await?;
    let keeps_confusion = prepared.labels.len() <= output::CONFUSION_MAX_LABELS;
    let result = TrainingResult {
        schema_version: SCHEMA_VERSION,
        job: config.job.clone(),
        artifact,
        dataset_digest: prepared.digest,
        counts,
        metrics: learned.metrics,
        epochs: learned.epochs,
        best_epoch: learned.best_epoch,
        labels: prepared.labels,
        confusion: if keeps_confusion { learned.confusion } else { Vec::new() },
        steps: learned.steps,
        train_seconds: learned.train_seconds,
    };
    let result = output::commit(&store, config, result).await?;
    tracker.phase(Phase::Done);
    tracing::info!(uri = %result.artifact.uri, digest = %result.artifact.digest, steps = result.steps,
        train_seconds = result.train_seconds, "training is complete");
    Ok(trained(result))
}

fn trained(result: TrainingResult) -> Trained {
    Trained {
        artifact: result.artifact,
        dataset_digest: result.dataset_digest,
        metrics: result.metrics,
        steps: result.steps,
    }
}

/// Tokenises the four sets and counts what was cut.
fn encode(pretrained: &Pretrained, prepared: &mut Prepared) -> Result<[EncodedSet; 4], Failure> {
    let mut cut = 0;
    let mut one = |set: &TextSet| {
        let (encoded, truncated) = pretrained.tokenizer.encode_set(set)?;
        cut += truncated;
        Ok::<_, Failure>(encoded)
    };
    let sets = [
        one(&prepared.train)?,
        one(&prepared.validation)?,
        one(&prepared.test)?,
        one(&prepared.golden)?,
    ];
    prepared.counts.truncated = cut;
    Ok(sets)
}

/// Runs a long computation beside the runtime.
async fn on_pool<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!("preparing the data ended badly: {e}"),
        )
    })?
}

/// A folder of its own, removed at the end: in the one asked for, the pod's scratch volume, or the system's.
fn scratch_folder(asked: Option<&Path>) -> Result<tempfile::TempDir, Failure> {
    let volume = Path::new(SCRATCH_DIR);
    let base = match asked {
        Some(folder) => folder.to_owned(),
        None if volume.is_dir() => volume.to_owned(),
        None => std::env::temp_dir(),
    };
    let failure = |base: PathBuf| {
        move |e: std::io::Error| {
            Failure::new(
                FailureReason::InternalError,
                format!(
                    "cannot make a folder in {}: {e}; give a writable one with --scratch",
                    base.display()
                ),
            )
        }
    };
    tempfile::Builder::new()
        .prefix("flywheel-")
        .tempdir_in(&base)
        .map_err(failure(base))
}
