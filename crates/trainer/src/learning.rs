//! The tensor thread: everything that touches libtorch runs here, one call after the other.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{
    DATA_PROFILE_FILE, EVALUATION_SAMPLE_FILE, EvaluationItem, EvaluationSample, MAX_SAMPLE_TEXTS,
};
use flywheel_contract::dataset::SetName;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::gate::NEWEST_ROWS;
use flywheel_contract::progress::{EpochEvaluation, Phase};
use flywheel_contract::scalar::Precision;
use flywheel_contract::scalar::{Device, Metric};
use flywheel_contract::trainer::EpochReport;
use flywheel_data::{EncodedSet, profile};
use flywheel_learn::checkpoint::Saved;
use flywheel_learn::device::TensorDevice;
use flywheel_learn::evaluate::{Evaluation, confusion, right};
use flywheel_learn::settings::Settings;
use flywheel_learn::train::{Epoch, Next, Observer, State, Step, fit_among, outputs};
use flywheel_learn::{Classifier, Collective, Task, TextClassification, artifact, device};

use crate::checkpoints::{Saver, Training};
use crate::incumbent::{Comparison, truths};
use crate::inputs::Pretrained;
use crate::peers::{Meeting, Peers};
use crate::place::Place;
use crate::tracker::{StepSeen, Stop, Tracker};

/// Most texts in one batch of the last evaluation.
const EVALUATION_BATCH: usize = 64;
/// How many times the texts of a training pass it takes: nothing is kept for a backward pass, which is most of the memory.
const EVALUATION_PASSES: usize = 4;
/// Largest difference between a probability before writing and after loading the artifact again.
const SAME_ANSWER: f32 = 1e-3;
/// Most work that is risked in what comes after the last step (evaluation, artifact, upload), however long the interval.
const UNSAVED_AT_END: Duration = Duration::from_secs(60);

/// How to train and on what.
#[derive(Clone)]
pub(crate) struct Wishes {
    pub(crate) settings: Settings,
    pub(crate) dropout: f64,
    pub(crate) activation_checkpointing: bool,
    pub(crate) device: Device,
    /// Number of the GPU, where the device is one.
    pub(crate) gpu: u32,
}

/// All that the thread needs in every process.
pub(crate) struct Part {
    pub(crate) wishes: Wishes,
    pub(crate) pretrained: Pretrained,
    pub(crate) labels: Vec<String>,
    pub(crate) train: EncodedSet,
    pub(crate) validation: EncodedSet,
    pub(crate) training: Arc<Training>,
    pub(crate) together: Option<Together>,
}

/// The others, all of them ready.
pub(crate) struct Together {
    peers: Arc<Peers>,
    meeting: Meeting,
}

impl Together {
    /// Waits for them.
    pub(crate) async fn ready(peers: &Arc<Peers>, tracker: &Tracker) -> Result<Self, Failure> {
        let meeting = peers.ready(tracker).await?;
        let peers = Arc::clone(peers);
        Ok(Self { peers, meeting })
    }
}

impl Part {
    fn failure(&self, error: &flywheel_learn::Error) -> Failure {
        self.pretrained.failure(error)
    }

    fn device(&self) -> Result<TensorDevice, Failure> {
        device::resolve(self.wishes.device, self.wishes.gpu).map_err(|e| self.failure(&e))
    }

    /// Joins the others, if there are any, and makes sure that all have read the same.
    fn join(&self, device: TensorDevice) -> Result<Option<Collective>, Failure> {
        let Some(Together { peers, meeting }) = &self.together else {
            return Ok(None);
        };
        let group = meeting.join(peers, device).map_err(|e| self.failure(&e))?;
        let t = &self.training;
        let read = (t.terms.clone(), t.digest.clone(), t.shapes.clone(), self.labels.clone());
        if group.all_have(&read).map_err(|e| self.failure(&e))? {
            return Ok(Some(group));
        }
        Err(Failure::new(
            FailureReason::InternalError,
            "the processes of this attempt have read different data or models; something has changed at the sources while the attempt began",
        ))
    }

    fn task(&self, device: TensorDevice) -> Result<TextClassification, Failure> {
        let Pretrained {
            folder,
            tokenizer,
            continued,
            ..
        } = &self.pretrained;
        let (tokens, dropout, seed) = (tokenizer.tokens(), self.wishes.dropout, self.wishes.settings.seed);
        let made = if *continued {
            artifact::continued(folder, &self.labels, tokens, dropout, seed, device)
        } else {
            artifact::pretrained(folder, self.labels.len(), tokens, dropout, seed, device)
        };
        let network = made.map_err(|e| self.failure(&e))?.network;
        Ok(TextClassification::new(
            network.recomputing(self.wishes.activation_checkpointing),
        ))
    }
}

/// All that the thread needs in the process that keeps what comes out.
pub(crate) struct Work {
    pub(crate) part: Part,
    pub(crate) test: EncodedSet,
    pub(crate) golden: EncodedSet,
    pub(crate) newest: EncodedSet,
    /// The newest feedback is held out, as far as there is enough.
    pub(crate) holds_out: bool,
    /// What is measured beside the version that comes out, where there is an incumbent.
    pub(crate) comparison: Option<Comparison>,
    /// Texts of the test set for the evaluation sample; empty where texts are kept out.
    pub(crate) sample_texts: Vec<String>,
    /// Folder for the artifact, which exists.
    pub(crate) folder: PathBuf,
    /// Where an earlier attempt stood.
    pub(crate) saved: Option<Saved<Evaluation>>,
    pub(crate) saver: Saver,
}

/// What came out; the artifact's files but the manifest lie in the folder.
pub(crate) struct Learned {
    pub(crate) files: Vec<String>,
    pub(crate) architecture: &'static str,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) epochs: Vec<EpochReport>,
    pub(crate) best_epoch: u32,
    pub(crate) confusion: Vec<Vec<u64>>,
    pub(crate) steps: u64,
    pub(crate) train_seconds: f64,
}

/// Runs a function on a thread of its own and waits for it without holding the runtime up.
pub(crate) async fn on_thread<T: Send + 'static>(
    tracker: &Arc<Tracker>,
    place: Option<Place>,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let internal = |text: String| Failure::new(FailureReason::InternalError, text);
    let busy = Arc::clone(tracker);
    tracker.set_busy(true);
    std::thread::Builder::new()
        .name("tensors".to_owned())
        .spawn(move || {
            let result = prepare(place.map_or(1, |place| place.in_pod)).and_then(|()| work());
            busy.set_busy(false);
            // Nobody waits any more where the training was interrupted.
            let _ = send.send(result);
        })
        .map_err(|e| internal(format!("no thread for tensors: {e}")))?;
    receive
        .await
        .map_err(|_| internal("the tensor thread ended without an answer; please report it".to_owned()))?
}

/// Sets this thread up, before its first tensor: its share of the cores that the container may use, and no slow tiny numbers.
fn prepare(processes: u32) -> Result<(), Failure> {
    device::flush_denormals().map_err(|e| Failure::new(e.reason(), e.to_string()))?;
    // Counts the cores of the affinity mask and the quota of the control group.
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads / usize::try_from(processes).unwrap_or(1).max(1);
    device::set_threads(threads);
    tracing::debug!(threads, "tensor thread is ready");
    Ok(())
}

/// Checks that the device can be used.
pub(crate) fn check_device(wanted: Device, gpu: u32) -> Result<(), Failure> {
    let failure = |e: flywheel_learn::Error| Failure::new(e.reason(), e.to_string());
    device::check_library().map_err(failure)?;
    device::resolve(wanted, gpu).map_err(failure)?;
    Ok(())
}

/// Sees training go by: tells the tracker, and says when to save and when to end.
struct Watch {
    tracker: Arc<Tracker>,
    saver: Saver,
    /// Optimiser steps done.
    step: u64,
    /// When the state was asked for.
    asked: Instant,
}

impl Watch {
    /// What to do here, if not more than `at_most` of work is to be lost.
    fn next(&mut self, at_most: Duration) -> Next {
        let next = match self.tracker.stopping() {
            Stop::Now => Next::Stop,
            Stop::Saved => {
                self.tracker.phase(Phase::Checkpointing);
                let saved = self.tracker.progress().checkpoint.step == Some(self.step);
                if saved || self.saver.is_writing(self.step) {
                    Next::Stop
                } else {
                    Next::SaveAndStop
                }
            }
            Stop::No if self.saver.due(at_most) => Next::Save,
            Stop::No => Next::GoOn,
        };
        self.asked = Instant::now();
        next
    }
}

impl Observer<Evaluation> for Watch {
    fn computes_in(&mut self, format: Precision) {
        self.tracker.computes_in(format);
    }

    fn micro_batch(&mut self) {
        self.tracker.micro_batch();
    }

    fn step(&mut self, step: &Step) -> Next {
        self.step = step.step;
        tell_step(&self.tracker, step);
        self.next(Duration::MAX)
    }

    fn validating(&mut self) -> Next {
        self.tracker.beat();
        self.next(Duration::MAX)
    }

    fn epoch(&mut self, epoch: &Epoch<'_, Evaluation>) -> Next {
        tell_epoch(&self.tracker, self.step, epoch);
        self.next(if epoch.last { UNSAVED_AT_END } else { Duration::MAX })
    }

    fn state(&mut self, state: State<Evaluation>) {
        self.tracker.stalled(self.asked.elapsed());
        self.saver.save(state);
    }
}

fn tell_step(tracker: &Tracker, step: &Step) {
    tracing::debug!(
        step = step.step,
        loss = step.loss,
        grad_norm = step.grad_norm,
        learning_rate = step.learning_rate,
        examples = step.examples,
        "step"
    );
    tracker.step(&StepSeen {
        step: step.step,
        total_steps: step.total_steps,
        epoch: step.epoch,
        loss: step.loss,
        learning_rate: step.learning_rate,
        grad_norm: step.grad_norm,
        examples: step.examples,
    });
}

fn tell_epoch(tracker: &Tracker, step: u64, epoch: &Epoch<'_, Evaluation>) {
    let told = evaluated(epoch.epoch, step, epoch.train_loss, epoch.validation, epoch.ended);
    tracker.validated(told, epoch.best);
}

/// Sees training go by in a process that keeps nothing: where it is told to end, the state is to be saved by process 0. One
/// that fails wants nothing of the others: they learn of it otherwise, and why.
struct Assistant<'a> {
    tracker: &'a Tracker,
    /// Optimiser steps done.
    step: u64,
}

impl Assistant<'_> {
    fn next(&self) -> Next {
        match self.tracker.stopping() {
            Stop::Saved => Next::SaveAndStop,
            Stop::No | Stop::Now => Next::GoOn,
        }
    }
}

impl Observer<Evaluation> for Assistant<'_> {
    fn computes_in(&mut self, format: Precision) {
        self.tracker.computes_in(format);
    }

    fn micro_batch(&mut self) {
        self.tracker.micro_batch();
    }

    fn step(&mut self, step: &Step) -> Next {
        self.step = step.step;
        tell_step(self.tracker, step);
        self.next()
    }

    fn validating(&mut self) -> Next {
        self.tracker.beat();
        self.next()
    }

    fn epoch(&mut self, epoch: &Epoch<'_, Evaluation>) -> Next {
        tell_epoch(self.tracker, self.step, epoch);
        self.next()
    }

    fn state(&mut self, _: State<Evaluation>) {}
}

/// Takes part in a training whose result another process keeps.
pub(crate) fn assist(part: &Part, tracker: &Tracker) -> Result<(), Failure> {
    let device = part.device()?;
    let group = part.join(device)?;
    let task = part.task(device)?;
    tracker.phase(Phase::Training);
    fit_among(
        &task,
        &part.train,
        &part.validation,
        &part.wishes.settings,
        None,
        group.as_ref(),
        &mut Assistant { tracker, step: 0 },
    )
    .map_err(|e| part.failure(&e))?;
    Ok(())
}

/// An epoch's figures, as they are told.
pub(crate) fn evaluated(
    epoch: u32,
    step: u64,
    train_loss: f64,
    validation: &Evaluation,
    ended: Option<i64>,
) -> EpochEvaluation {
    EpochEvaluation {
        epoch,
        step,
        train_loss: EpochEvaluation::figure(train_loss),
        validation_loss: EpochEvaluation::figure(validation.loss),
        accuracy: EpochEvaluation::figure(validation.accuracy),
        macro_f1: EpochEvaluation::figure(validation.macro_f1),
        time: ended,
    }
}

/// Trains, evaluates, and writes the artifact's files.
pub(crate) fn learn(work: Work, tracker: &Arc<Tracker>) -> Result<Learned, Failure> {
    let Work {
        part, saved, mut saver, ..
    } = work;
    let failure = |e: flywheel_learn::Error| part.failure(&e);
    let device = part.device()?;
    let group = part.join(device)?;
    let task = part.task(device)?;
    let state = saved.map(Saved::read).transpose().map_err(failure)?;

    tracker.phase(Phase::Training);
    tracker.begins();
    saver.begin();
    let mut watch = Watch {
        tracker: Arc::clone(tracker),
        saver,
        step: state.as_ref().map_or(0, |s| s.cursor.step),
        asked: Instant::now(),
    };
    let outcome = fit_among(
        &task,
        &part.train,
        &part.validation,
        &part.wishes.settings,
        state,
        group.as_ref(),
        &mut watch,
    )
    .map_err(|error| match error {
        flywheel_learn::Error::Interrupted if group.is_some() && tracker.stopping() == Stop::No => {
            tracker.phase(Phase::Checkpointing);
            Failure::new(
                FailureReason::Interrupted,
                "another process of this training was told to end; the state is saved and the next attempt goes on from it",
            )
        }
        error => failure(error),
    })?;
    // No further state: what is being written goes on beside the rest.
    drop(watch);
    drop(group);
    if let Some(together) = &part.together {
        together.peers.need_nobody();
    }

    tracker.phase(Phase::Evaluating);
    let mut seen = || {
        tracker.beat();
        match tracker.stopping() {
            Stop::Now => ControlFlow::Break(()),
            Stop::No | Stop::Saved => ControlFlow::Continue(()),
        }
    };
    let at_once = EVALUATION_BATCH.min(part.wishes.settings.pass().saturating_mul(EVALUATION_PASSES));
    let logits = outputs(&task, &work.test, at_once, &mut seen).map_err(failure)?;
    let mut metrics = outcome.validation.metrics("validation");
    // Of each of these sets whether the new version has its rows right.
    let mut answered = Vec::new();
    let mut measure = |name: SetName, set: &EncodedSet, logits: &[Vec<f32>]| {
        let report = task.report(set, logits).map_err(failure)?;
        metrics.extend(report.metrics(&name.to_string()));
        if work.comparison.is_some() {
            answered.push(right(logits, &part.labels, &truths(&part.labels, &set.labels)));
        }
        Ok::<_, Failure>(())
    };
    measure(SetName::Test, &work.test, &logits)?;
    let others = [(SetName::Golden, &work.golden), (SetName::Newest, &work.newest)];
    for (name, set) in others.into_iter().filter(|(_, set)| !set.is_empty()) {
        let logits = outputs(&task, set, at_once, &mut seen).map_err(failure)?;
        measure(name, set, &logits)?;
    }
    if work.holds_out {
        metrics.push(Metric::new(NEWEST_ROWS, work.newest.len() as f64));
    }
    let epochs = (1..).zip(&outcome.epochs).map(|(epoch, figures)| EpochReport {
        epoch,
        train_loss: figures.train_loss,
        validation_loss: figures.validation.loss,
        validation_accuracy: figures.validation.accuracy,
        validation_macro_f1: figures.validation.macro_f1,
    });
    let answers: Vec<Vec<f32>> = logits.iter().map(|row| softmax(row)).collect();

    let mut files =
        artifact::write(&work.folder, task.network(), &part.labels, &part.pretrained.folder).map_err(failure)?;
    for path in part.pretrained.tokenizer.save(&work.folder)? {
        files.extend(path.file_name().map(|n| n.to_string_lossy().into_owned()));
    }
    // The artifact is loaded again and must answer as the network did: what is uploaded is known to work.
    let classifier = Classifier::load(&work.folder, device, Precision::Float32).map_err(failure)?;
    let mut again = Vec::with_capacity(work.test.ids.len());
    for rows in work.test.ids.chunks(at_once) {
        again.extend(classifier.predict_and_project(rows).map_err(failure)?);
        if seen().is_break() {
            return Err(failure(flywheel_learn::Error::Interrupted));
        }
    }
    let (sample, wanted) = (sample_of(&again), sample_of(&answers));
    let differs = sample
        .iter()
        .flat_map(|answer| &answer.probabilities)
        .zip(wanted.iter().flatten())
        .any(|(a, b)| (a - b).abs() > SAME_ANSWER || a.is_nan());
    if differs {
        return Err(Failure::new(
            FailureReason::InternalError,
            "the artifact, loaded again, does not answer as the trained network does; please report it",
        ));
    }
    let profile = profile(&work.test, &again, part.labels.len());
    json(&work.folder, DATA_PROFILE_FILE, &profile, &mut files)?;
    // What it takes to answer in 8 bits.
    let calibrated = artifact::calibrate(&work.folder, &part.train.ids, device, &mut seen).map_err(failure)?;
    files.push(calibrated.to_owned());
    if !work.sample_texts.is_empty() {
        let items = work.sample_texts.iter().zip(sample_of(&work.test.labels)).zip(sample);
        let sample = EvaluationSample {
            schema_version: SCHEMA_VERSION,
            items: items
                .map(|((text, label), answer)| EvaluationItem {
                    text: text.clone(),
                    label: u32::try_from(label).unwrap_or(u32::MAX),
                    probabilities: answer.probabilities,
                })
                .collect(),
        };
        json(&work.folder, EVALUATION_SAMPLE_FILE, &sample, &mut files)?;
    }
    files.sort();
    files.dedup();
    // One network at a time: this one is done with.
    drop((classifier, task));
    if let Some(comparison) = &work.comparison {
        metrics.extend(comparison.metrics(&part.labels, &answered, device, at_once, &mut seen)?);
    }
    tracker.measured(outcome.steps, &metrics);
    Ok(Learned {
        files,
        architecture: part.pretrained.config.architecture.model_type(),
        metrics,
        epochs: epochs.collect(),
        best_epoch: outcome.best_epoch,
        confusion: confusion(&logits, &work.test.labels).map_err(|e| failure(e.into()))?,
        steps: outcome.steps,
        train_seconds: outcome.seconds,
    })
}

/// Those of a list with one item per text of the test set that belong to the evaluation sample: spread over the whole, since
/// a test set may be sorted.
pub(crate) fn sample_of<T: Clone>(items: &[T]) -> Vec<T> {
    let wanted = items.len().min(MAX_SAMPLE_TEXTS);
    let places = (0..wanted).map(|i| i * items.len() / wanted);
    places.filter_map(|place| items.get(place)).cloned().collect()
}

fn json<T: serde::Serialize>(folder: &Path, name: &str, value: &T, files: &mut Vec<String>) -> Result<(), Failure> {
    let internal = |text: String| Failure::new(FailureReason::InternalError, text);
    let text = serde_json::to_vec(value).map_err(|e| internal(format!("{name} cannot be written: {e}")))?;
    std::fs::write(folder.join(name), text).map_err(|e| internal(format!("{name} cannot be written: {e}")))?;
    files.push(name.to_owned());
    Ok(())
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|x| (x - highest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}
