//! The way of a training, from configuration to result.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::dataset::SetName;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::SCRATCH_DIR;
use flywheel_contract::progress::Phase;
use flywheel_contract::termination::Trained;
use flywheel_contract::trainer::{TrainerConfig, TrainingResult};
use flywheel_data::{EncodedSet, Prepared, TextSet, check_limits, findings, prepare};
use flywheel_learn::checkpoint::Terms;
use flywheel_learn::network::shapes;
use flywheel_learn::settings::{Settings, dropout};
use flywheel_store::{Limits, Lineage, Purpose, Store};
use tokio::task::{JoinError, JoinHandle};

use crate::checkpoints::{self, Saver, Training};
use crate::incumbent::{self, Comparison};
use crate::inputs::{self, Pretrained};
use crate::learning::{self, Part, Together, Wishes, Work};
use crate::output;
use crate::peers::Peers;
use crate::place::Place;
use crate::reuse;
use crate::tracker::Tracker;

/// Trains, or ends with the result that an earlier attempt committed. With `peers` this is process 0 of several.
pub(crate) async fn train(
    config: &TrainerConfig,
    limits: Limits,
    scratch: Option<&Path>,
    tracker: &Arc<Tracker>,
    peers: Option<&Arc<Peers>>,
) -> Result<Trained, Failure> {
    let place = peers.map(|peers| peers.place());
    let wishes = wishes(config, place, tracker).await?;
    let store = opened(config, limits, tracker)?;
    store
        .check_writable(&config.output_uri)
        .map_err(|e| e.failure(Purpose::Output))?;
    // Before anything else is read or written: from here on no earlier attempt commits anything.
    let keep = usize::try_from(config.checkpoint.keep).unwrap_or(1);
    let mut lineage = store
        .take_lineage(&config.lineage_uri(), &config.job, keep)
        .await
        .map_err(|e| output::refused(&e, tracker))?;
    tracker.took_over(lineage.head());
    if let Some(problem) = lineage.damaged() {
        tracker.head_damaged(format!("{}: {problem}", lineage.uri()));
    }
    tracker.record(config, lineage.head().sequence, limits);
    if let Some(named) = lineage.head().result.clone() {
        let result = output::earlier_result(&store, config, &named).await?;
        tracker.measured(result.steps, &result.metrics);
        tracing::info!(
            result = named.path,
            attempt = result.job.attempt,
            "an earlier attempt has finished this job"
        );
        tracker.done_before();
        // It may have ended before it came to this.
        output::clear(&mut lineage).await;
        tracker.phase(Phase::Done);
        return Ok(trained(result));
    }
    output::check_free(&store, config).await?;

    let scratch = scratch_folder(scratch)?;
    tracker.phase(Phase::Downloading);
    let incumbent = match &config.incumbent {
        Some(artifact) => Some(incumbent::fetch(&store, artifact, &scratch.path().join("incumbent")).await?),
        None => None,
    };
    let Inputs {
        pretrained,
        mut prepared,
        sets,
        training,
    } = inputs(config, &store, scratch.path(), tracker).await?;
    let key = reuse::key(config, &pretrained.digest, &prepared.digest)?;
    if config.reuse
        && let Some(result) = reuse::find(&store, config, &key).await?
        && config
            .expected
            .as_ref()
            .is_none_or(|e| e.digest == result.artifact.digest)
    {
        tracing::info!(job = result.job.name, uid = result.job.uid, artifact = %result.artifact.uri,
            "an earlier job came to this result; nothing is trained");
        tracker.measured(result.steps, &result.metrics);
        // An attempt before this one may have begun to train.
        output::clear(&mut lineage).await;
        tracker.phase(Phase::Done);
        return Ok(Trained {
            reused: true,
            ..trained(result)
        });
    }
    if let Some(expected) = &config.expected {
        return Err(reuse::taken(expected));
    }
    let counts = prepared.counts.clone();
    if !lineage.head().checkpoints.is_empty() {
        tracker.phase(Phase::Downloading);
    }
    let saved = checkpoints::restore(&mut lineage, scratch.path(), &training, tracker).await?;
    let interval = Duration::from_secs(u64::try_from(config.checkpoint.interval_seconds).unwrap_or(1));
    let (saver, saving) = Saver::start(lineage, scratch.path(), &training, interval, tracker);

    let folder = scratch.path().join("artifact");
    inputs::make(&folder).await?;
    let [train, validation, test, golden, newest] = sets;
    let sample_texts = if config.dataset.evaluation_sample {
        learning::sample_of(&prepared.test.texts)
    } else {
        Vec::new()
    };
    let comparison = incumbent.map(|incumbent| Comparison {
        incumbent,
        sets: [
            (SetName::Test, &mut prepared.test),
            (SetName::Golden, &mut prepared.golden),
            (SetName::Newest, &mut prepared.newest),
        ]
        .into_iter()
        .map(|(name, set)| (name, std::mem::take(set)))
        .filter(|(_, set)| !set.is_empty())
        .collect(),
    });
    let together = match peers {
        Some(peers) => Some(Together::ready(peers, tracker).await?),
        None => None,
    };
    let part = Part {
        wishes,
        pretrained,
        labels: prepared.labels.clone(),
        train,
        validation,
        training,
        together,
    };
    let work = Work {
        part,
        test,
        golden,
        newest,
        holds_out: config.dataset.holds_out(),
        comparison,
        sample_texts,
        folder: folder.clone(),
        saved,
        saver,
    };
    let watched = Arc::clone(tracker);
    let learning = learning::on_thread(tracker, place, move || learning::learn(work, &watched));
    let (learned, mut lineage) = beside(learning, saving).await?;

    tracker.phase(Phase::Uploading);
    let artifact = output::upload(&store, config, &folder, &prepared.labels, &learned).await?;
    let keeps_confusion = prepared.labels.len() <= output::CONFUSION_MAX_LABELS;
    let result = TrainingResult {
        schema_version: SCHEMA_VERSION,
        job: config.job.clone(),
        artifact,
        dataset_digest: prepared.digest,
        counts,
        examples: prepared.examples,
        metrics: learned.metrics,
        epochs: learned.epochs,
        best_epoch: learned.best_epoch,
        labels: prepared.labels,
        confusion: if keeps_confusion { learned.confusion } else { Vec::new() },
        steps: learned.steps,
        train_seconds: learned.train_seconds,
        key: config.reuse.then_some(key),
    };
    let result = output::commit(&store, &mut lineage, config, result, tracker).await?;
    output::clear(&mut lineage).await;
    tracker.phase(Phase::Done);
    tracing::info!(uri = %result.artifact.uri, digest = %result.artifact.digest, steps = result.steps,
        train_seconds = result.train_seconds, "training is complete");
    Ok(trained(result))
}

/// How to train and on what, once the device is known to work.
pub(crate) async fn wishes(
    config: &TrainerConfig,
    place: Option<Place>,
    tracker: &Arc<Tracker>,
) -> Result<Wishes, Failure> {
    let learn_failure = |e: flywheel_learn::Error| Failure::new(e.reason(), e.to_string());
    let wishes = Wishes {
        settings: Settings::new(&config.hyperparameters).map_err(learn_failure)?,
        dropout: dropout(&config.hyperparameters).map_err(learn_failure)?,
        activation_checkpointing: config.hyperparameters.activation_checkpointing,
        device: config.device,
        gpu: place.map_or(0, |place| place.local),
    };
    let (device, gpu) = (wishes.device, wishes.gpu);
    learning::on_thread(tracker, place, move || learning::check_device(device, gpu)).await?;
    Ok(wishes)
}

/// The store, whose traffic counts as a sign of work.
pub(crate) fn opened(config: &TrainerConfig, limits: Limits, tracker: &Tracker) -> Result<Arc<Store>, Failure> {
    let store = Store::with_limits(&config.storage, limits).map_err(|e| e.failure(Purpose::Output))?;
    let store = Arc::new(store);
    tracker.watch(&store);
    Ok(store)
}

/// What is read, and made of it, before the first step. The same in every process.
pub(crate) struct Inputs {
    pub(crate) pretrained: Pretrained,
    pub(crate) prepared: Prepared,
    /// In the order of [`SetName::ALL`].
    pub(crate) sets: [EncodedSet; 5],
    pub(crate) training: Arc<Training>,
}

/// Reads, prepares and checks.
pub(crate) async fn inputs(
    config: &TrainerConfig,
    store: &Arc<Store>,
    scratch: &Path,
    tracker: &Tracker,
) -> Result<Inputs, Failure> {
    tracker.phase(Phase::Downloading);
    let files = inputs::dataset(store, &config.dataset, &scratch.join("data"), &config.job_uri()).await?;
    let (max_length, folder) = (config.hyperparameters.max_length, scratch.join("pretrained"));
    let pretrained = match (&config.base, &config.model.pretrained) {
        (Some(base), _) => inputs::base(store, base, max_length, &folder).await?,
        (None, Some(pretrained)) => inputs::pretrained(store, &pretrained.uri, Some(max_length), &folder).await?,
        (None, None) => {
            return Err(Failure::new(
                FailureReason::ConfigInvalid,
                "model names nothing to start from; give model.pretrained or model.fromVersion",
            ));
        }
    };

    tracker.phase(Phase::Preparing);
    let dataset = config.dataset.clone();
    let (pretrained, prepared, sets) = on_pool(move || {
        let mut prepared = prepare(&dataset, &files)?;
        let sets = encode(&pretrained, &mut prepared)?;
        Ok((pretrained, prepared, sets))
    })
    .await?;
    let counts = &prepared.counts;
    tracing::info!(
        rows = counts.rows,
        empty = counts.empty,
        duplicates = counts.duplicates,
        conflicts = counts.conflicts,
        truncated = counts.truncated,
        golden_overlap = counts.golden_overlap,
        newest_overlap = counts.newest_overlap,
        newest_left_out = counts.newest_left_out,
        train = counts.train,
        validation = counts.validation,
        test = counts.test,
        golden = counts.golden,
        newest = counts.newest,
        labels = counts.labels,
        near_duplicates = counts.near_duplicates_of_train(),
        digest = %prepared.digest,
        "data set is ready"
    );
    tracker.checked(counts);
    let findings = findings(&config.dataset, &prepared);
    for finding in &findings {
        tracing::warn!(%finding, "data check");
    }
    check_limits(&findings)?;

    let training = Arc::new(Training {
        terms: Terms {
            hyperparameters: config.hyperparameters.clone(),
            train_rows: prepared.train.labels.len(),
            validation_rows: prepared.validation.labels.len(),
        },
        shapes: shapes(&pretrained.config, prepared.labels.len()),
        digest: prepared.digest.clone(),
    });
    Ok(Inputs {
        pretrained,
        prepared,
        sets,
        training,
    })
}

/// Waits for the training and then for the checkpoint that is still being written; at once for a failure of the writer,
/// after which training is in vain.
async fn beside<T>(
    learning: impl Future<Output = Result<T, Failure>>,
    mut saving: JoinHandle<Result<Lineage, Failure>>,
) -> Result<(T, Lineage), Failure> {
    let ended = |saved: Result<Result<Lineage, Failure>, JoinError>| {
        saved.unwrap_or_else(|e| {
            Err(Failure::new(
                FailureReason::InternalError,
                format!("writing checkpoints ended badly: {e}; please report it"),
            ))
        })
    };
    let mut learning = std::pin::pin!(learning);
    let (learned, lineage) = tokio::select! {
        learned = &mut learning => (learned, ended(saving.await)?),
        saved = &mut saving => {
            let lineage = ended(saved)?;
            (learning.await, lineage)
        }
    };
    Ok((learned?, lineage))
}

fn trained(result: TrainingResult) -> Trained {
    Trained {
        artifact: result.artifact,
        dataset_digest: result.dataset_digest,
        metrics: result.metrics,
        steps: result.steps,
        reused: false,
    }
}

/// Tokenises the sets and counts what was cut.
fn encode(pretrained: &Pretrained, prepared: &mut Prepared) -> Result<[EncodedSet; 5], Failure> {
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
        one(&prepared.newest)?,
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
pub(crate) fn scratch_folder(asked: Option<&Path>) -> Result<tempfile::TempDir, Failure> {
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
