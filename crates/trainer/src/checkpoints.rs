//! Checkpoints: found again at the start of a training, written beside it while it goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::progress::EpochEvaluation;
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_learn::Error;
use flywheel_learn::checkpoint::{self, Saved, Terms};
use flywheel_learn::evaluate::Evaluation;
use flywheel_learn::train::{Cursor, State};
use flywheel_store::{Lineage, Purpose, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::tracker::Tracker;
use crate::{inputs, learning, output};

/// What a checkpoint has to fit.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    /// Settings and sizes.
    pub(crate) terms: Terms,
    /// Weights of the network.
    pub(crate) shapes: BTreeMap<String, Vec<i64>>,
    /// The data set.
    pub(crate) digest: Digest,
}

/// The newest checkpoint that can be gone on from. Those that are newer and broken are counted and passed over.
///
/// One that is whole and of another training ends this one with `TrainingChanged`: to begin anew would remove it, and with it
/// what was trained so far.
///
/// A storage that does not answer is no broken checkpoint: it ends this attempt, and the next one looks again.
pub(crate) async fn restore(
    lineage: &mut Lineage,
    scratch: &Path,
    training: &Arc<Training>,
    tracker: &Tracker,
) -> Result<Option<Saved<Evaluation>>, Failure> {
    for found in lineage.head().checkpoints.clone() {
        let folder = scratch.join("restored");
        inputs::make(&folder).await?;
        let opened = match lineage.fetch(&found, &folder).await {
            Ok(manifest) => {
                let mut changes = Vec::new();
                if manifest.dataset_digest != training.digest {
                    changes.push("the sources of the data set have other content now".to_owned());
                }
                let opened = match open(&folder, training).await? {
                    Err(Error::OtherTraining(what)) => {
                        changes.push(what);
                        None
                    }
                    opened => Some(opened.map_err(|e| e.to_string())),
                };
                match opened {
                    Some(opened) if changes.is_empty() => opened,
                    _ => return Err(changed(lineage.uri(), found.step, &changes.join(", "))),
                }
            }
            Err(error @ StoreError::Checkpoint { .. }) => Err(error.to_string()),
            Err(error) => return Err(error.failure(Purpose::Output)),
        };
        // The files that are needed are held open.
        remove(&folder).await;
        match opened {
            Ok(saved) => {
                let cursor = saved.cursor();
                tracing::info!(
                    checkpoint = found.name,
                    step = cursor.step,
                    epoch = cursor.epoch,
                    "going on from a checkpoint"
                );
                tracker.resumed(cursor.step, cursor.epoch, evaluations(cursor));
                return Ok(Some(saved));
            }
            Err(problem) => {
                tracing::warn!(
                    checkpoint = found.name,
                    step = found.step,
                    problem,
                    "this checkpoint cannot be used"
                );
                tracker.passed_over(format!("checkpoint {}: {problem}", found.name));
                lineage.forget(&found);
            }
        }
    }
    Ok(None)
}

/// The settings or data of a job are not those that its newest checkpoint was saved with.
fn changed(uri: &Uri, step: u64, changes: &str) -> Failure {
    Failure::new(
        FailureReason::TrainingChanged,
        format!(
            "{uri} holds the state after step {step} of another training than this one: {changes}. That state is kept and \
             nothing was trained. Put back what was changed (hyperparameters, files of dataset or model) to go \
             on from there, or begin anew with a new TrainingJob, without Kubernetes with another metadata.uid"
        ),
    )
}

/// The epochs that are done, each at its last step: all have the same number of steps.
fn evaluations(cursor: &Cursor<Evaluation>) -> Vec<EpochEvaluation> {
    let in_epochs = cursor.step.saturating_sub(cursor.batch);
    let per_epoch = in_epochs.checked_div(cursor.epochs.len() as u64).unwrap_or(0);
    let told = (1..).zip(&cursor.epochs).map(|(epoch, figures)| {
        let step = u64::from(epoch) * per_epoch;
        learning::evaluated(epoch, step, figures.train_loss, &figures.validation, figures.ended)
    });
    told.collect()
}

async fn open(folder: &Path, training: &Arc<Training>) -> Result<Result<Saved<Evaluation>, Error>, Failure> {
    let (folder, training) = (folder.to_owned(), Arc::clone(training));
    blocking(move || checkpoint::open(&folder, &training.terms, &training.shapes)).await
}

/// Runs what waits for the disk beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!("reading or writing a checkpoint ended badly: {e}; please report it"),
        )
    })
}

async fn remove(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "a folder of the scratch volume could not be removed");
        }
        _ => (),
    }
}

/// The tensor thread's side of saving: decides when, and hands states over.
pub(crate) struct Saver {
    states: mpsc::Sender<State<Evaluation>>,
    /// Whether a state is being written.
    writing: Arc<AtomicBool>,
    interval: Duration,
    /// When the last state was handed over, or training began.
    last: Instant,
    /// Steps of the last state that was handed over.
    handed: Option<u64>,
}

impl Saver {
    /// A saver that hands over at most every `interval`, and the task that writes. The task ends with the lineage when the
    /// saver is gone and all is written, or with a failure when this attempt may not go on.
    pub(crate) fn start(
        lineage: Lineage,
        scratch: &Path,
        training: &Arc<Training>,
        interval: Duration,
        tracker: &Arc<Tracker>,
    ) -> (Self, JoinHandle<Result<Lineage, Failure>>) {
        // One state beside the one that is being written: the last one, when the pod is told to end.
        let (states, receive) = mpsc::channel(1);
        let writing = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            lineage,
            folder: scratch.join("checkpoint"),
            training: Arc::clone(training),
            tracker: Arc::clone(tracker),
            writing: Arc::clone(&writing),
        };
        let saver = Self {
            states,
            writing,
            interval,
            last: Instant::now(),
            handed: None,
        };
        (saver, tokio::spawn(writer.run(receive)))
    }

    /// Training begins: the first interval counts from now.
    pub(crate) fn begin(&mut self) {
        self.last = Instant::now();
    }

    /// Whether it is time to save, if not more than `at_most` is to be lost. While a state is being written it never is.
    pub(crate) fn due(&self, at_most: Duration) -> bool {
        self.last.elapsed() >= self.interval.min(at_most) && !self.writing.load(Ordering::SeqCst)
    }

    /// Whether the state after this step is being written.
    pub(crate) fn is_writing(&self, step: u64) -> bool {
        self.handed == Some(step) && self.writing.load(Ordering::SeqCst)
    }

    /// Hands a state over to be written.
    pub(crate) fn save(&mut self, state: State<Evaluation>) {
        self.last = Instant::now();
        self.handed = Some(state.cursor.step);
        self.writing.store(true, Ordering::SeqCst);
        // The task is gone only where this attempt may not write any more; its failure ends the training.
        let _ = self.states.blocking_send(state);
    }
}

/// Why a state was not committed.
enum Unsaved {
    /// Another attempt writes now, or it cannot be seen whether one does.
    Fenced(Failure),
    /// Anything else; the next state may be.
    Problem(String),
}

/// The task that writes, one state after the other.
struct Writer {
    lineage: Lineage,
    folder: PathBuf,
    training: Arc<Training>,
    tracker: Arc<Tracker>,
    writing: Arc<AtomicBool>,
}

impl Writer {
    async fn run(mut self, mut states: mpsc::Receiver<State<Evaluation>>) -> Result<Lineage, Failure> {
        while let Some(state) = states.recv().await {
            let (step, start) = (state.cursor.step, Instant::now());
            tracing::info!(step, "writing a checkpoint");
            let written = self.write(state).await;
            remove(&self.folder).await;
            match written {
                Ok(bytes) => {
                    let took = start.elapsed();
                    self.tracker.committed(step, took, bytes);
                    tracing::info!(step, bytes, seconds = took.as_secs_f64(), "checkpoint is committed");
                }
                Err(Unsaved::Fenced(failure)) => return Err(failure),
                Err(Unsaved::Problem(problem)) => {
                    tracing::warn!(step, problem, "no checkpoint could be written; training goes on");
                    self.tracker.not_committed(problem);
                }
            }
            self.writing.store(false, Ordering::SeqCst);
        }
        Ok(self.lineage)
    }

    /// Writes and commits; returns the bytes.
    async fn write(&mut self, state: State<Evaluation>) -> Result<u64, Unsaved> {
        let problem = |e: &dyn std::fmt::Display| Unsaved::Problem(e.to_string());
        tokio::fs::create_dir_all(&self.folder)
            .await
            .map_err(|e| Unsaved::Problem(format!("cannot make {}: {e}", self.folder.display())))?;
        let (folder, training, step) = (self.folder.clone(), Arc::clone(&self.training), state.cursor.step);
        let files = blocking(move || checkpoint::write(&folder, &training.terms, &state))
            .await
            .map_err(|e| problem(&e))?
            .map_err(|e| problem(&e))?;
        let mut bytes = 0;
        for name in &files {
            let file = tokio::fs::metadata(self.folder.join(name)).await;
            bytes += file.map_err(|e| problem(&e))?.len();
        }
        let committed = self
            .lineage
            .commit(&self.folder, &files, step, &self.training.digest)
            .await;
        match committed {
            Ok(_) => Ok(bytes),
            Err(error @ (StoreError::Fenced { .. } | StoreError::HeadDamaged { .. })) => {
                Err(Unsaved::Fenced(output::refused(&error, &self.tracker)))
            }
            Err(error) => Err(problem(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_time_after_the_interval_or_earlier_where_less_may_be_lost() {
        let (states, _receive) = mpsc::channel(1);
        let saver = |since: u64, writing: bool| Saver {
            states: states.clone(),
            writing: Arc::new(AtomicBool::new(writing)),
            interval: Duration::from_secs(100),
            last: Instant::now().checked_sub(Duration::from_secs(since)).unwrap(),
            handed: Some(7),
        };
        let short = Duration::from_secs(60);
        for (since, writing, at_most, due) in [
            (99, false, Duration::MAX, false),
            (101, false, Duration::MAX, true),
            // What is being written is not doubled; once it is done the next one is due at once.
            (1000, true, Duration::MAX, false),
            (61, false, short, true),
            (59, false, short, false),
            (61, true, short, false),
        ] {
            assert_eq!(saver(since, writing).due(at_most), due, "{since} {writing} {at_most:?}");
        }
        assert!(saver(0, true).is_writing(7) && !saver(0, true).is_writing(8) && !saver(0, false).is_writing(7));
    }
}
