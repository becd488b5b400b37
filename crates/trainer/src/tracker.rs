//! How far a training is: one value that `/progress`, `/metrics`, the bar and the log read, and what is handed on to
//! [`crate::tracking`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::checkpoint::Head;
use flywheel_contract::progress::{
    CheckpointProgress, EVALUATIONS_MAX, EpochEvaluation, Phase, Progress, TrackingProgress,
};
use flywheel_contract::scalar::Metric;
use flywheel_contract::scalar::Precision;
use flywheel_contract::termination::{Position, TerminationMessage};
use flywheel_contract::trainer::{DatasetCounts, TrainerConfig};
use flywheel_learn::device::tell_crashes;
use flywheel_store::{Limits, Store};
use indicatif::{ProgressBar, ProgressStyle};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::tracking::{End, Recorder, SinkCounters};

/// Seconds between lines of the log.
const LOG_SECONDS: u64 = 10;
/// Weight of the newest value in smoothed figures: about the last 20 count.
const SMOOTHING: f64 = 0.1;
/// Passes over which the median time is taken.
const MEDIAN_PASSES: usize = 33;

/// A step, as the tracker wants to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSeen {
    pub(crate) step: u64,
    pub(crate) total_steps: u64,
    pub(crate) epoch: u32,
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    pub(crate) grad_norm: f64,
    pub(crate) examples: usize,
}

struct Inner {
    progress: Progress,
    phase_start: Instant,
    /// Seconds spent in phases that are over.
    past: BTreeMap<&'static str, f64>,
    last_step: Option<Instant>,
    last_pass: Option<Instant>,
    /// Seconds of the last passes; a step has one for each of its micro-batches.
    passes: VecDeque<f64>,
    /// The last sign of work that this program gave itself.
    beat: Instant,
    /// This attempt's last commit of a checkpoint.
    committed: Option<Instant>,
    /// Present once the checkpoints were taken over, or found to be another attempt's.
    head_attempt: Option<u32>,
    /// When the process was told to end.
    told: Option<Instant>,
}

/// What a crash tells, in the order of [`Position::NAMES`].
static CRASHED_AT: [(&str, AtomicU64); 4] = {
    let [step, resumed, checkpoint, attempt] = Position::NAMES;
    [
        (step, AtomicU64::new(0)),
        (resumed, AtomicU64::new(0)),
        (checkpoint, AtomicU64::new(0)),
        (attempt, AtomicU64::new(0)),
    ]
};

impl Inner {
    /// How far the training is; `None` before the checkpoints were reached.
    fn position(&self) -> Option<Position> {
        let p = &self.progress;
        self.head_attempt.map(|head_attempt| Position {
            step: p.step,
            resumed_from_step: p.resumed_from_step.unwrap_or(0),
            checkpoint_step: p.checkpoint.step.unwrap_or(0),
            head_attempt,
        })
    }

    /// Notes it for a crash.
    fn mark(&self) {
        if let Some(at) = self.position() {
            let numbers = [
                at.step,
                at.resumed_from_step,
                at.checkpoint_step,
                u64::from(at.head_attempt),
            ];
            for ((_, cell), number) in CRASHED_AT.iter().zip(numbers) {
                cell.store(number, Ordering::Relaxed);
            }
        }
    }

    /// Notes the end of a pass.
    fn passed(&mut self, now: Instant) {
        self.beat = now;
        if let Some(last) = self.last_pass.replace(now) {
            if self.passes.len() == MEDIAN_PASSES {
                self.passes.pop_front();
            }
            self.passes.push_back((now - last).as_secs_f64());
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: &'static str,
}

type Float = Gauge<f64, AtomicU64>;
/// A figure that is absent until it is known.
type Late = Family<[(&'static str, &'static str); 0], Float>;
type Seconds = Counter<f64, AtomicU64>;

struct Metrics {
    registry: Registry,
    steps: Counter,
    examples: Counter,
    loss: Late,
    learning_rate: Late,
    rate: Late,
    grad_norm: Late,
    step: Float,
    total_steps: Float,
    epoch: Float,
    total_epochs: Float,
    eta: Late,
    epoch_loss: Late,
    validation_loss: Late,
    accuracy: Late,
    macro_f1: Late,
    checkpoint_step: Late,
    checkpoint_age: Late,
    tensor_board: SinkCounters,
    mlflow: SinkCounters,
    phases: Family<PhaseLabel, Float>,
    checkpoints: Counter,
    checkpoint_failures: Counter,
    checkpoint_write: Seconds,
    checkpoint_stall: Seconds,
    checkpoint_bytes: Counter,
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("flywheel_trainer");
        let steps = Counter::default();
        registry.register("steps", "Optimiser steps done", steps.clone());
        let examples = Counter::default();
        registry.register("examples", "Examples trained on, repeats counted", examples.clone());
        let mut plain = |name: &str, help: &str| {
            let gauge = Float::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let step = plain("step", "Optimiser steps done over all attempts");
        let total_steps = plain("total_steps", "Optimiser steps in all; 0 while unknown");
        let epoch = plain("epoch", "Present epoch, from 1; 0 before the first");
        let total_epochs = plain("total_epochs", "Epochs in all");
        let mut late = |name: &str, help: &str, unit: Option<&str>| {
            let gauge = Late::default();
            match unit {
                Some("seconds") => registry.register_with_unit(name, help, Unit::Seconds, gauge.clone()),
                Some(unit) => registry.register_with_unit(name, help, Unit::Other(unit.to_owned()), gauge.clone()),
                None => registry.register(name, help, gauge.clone()),
            }
            gauge
        };
        let loss = late("loss", "Smoothed training loss", Some("nats"));
        let learning_rate = late("learning_rate", "Present learning rate", None);
        let rate = late("examples_per_second", "Smoothed speed of training", None);
        let grad_norm = late(
            "grad_norm",
            "Norm of all gradients at the last step, before clipping",
            None,
        );
        let eta = late("eta", "Time to the end at the present rate", Some("seconds"));
        let epoch_loss = late("epoch_loss", "Mean training loss of the last epoch", Some("nats"));
        let validation_loss = late("validation_loss", "Cross-entropy at the last validation", Some("nats"));
        let accuracy = late(
            "validation_accuracy",
            "Share of right answers at the last validation",
            Some("ratio"),
        );
        let macro_f1 = late(
            "validation_macro_f1",
            "Mean F1 over labels at the last validation",
            Some("ratio"),
        );
        let checkpoint_step = late("checkpoint_step", "Step of the newest committed checkpoint", None);
        let checkpoint_age = late(
            "checkpoint_age",
            "Time since this attempt's last commit of a checkpoint",
            Some("seconds"),
        );
        let (dropped, failures) = (
            Family::<SinkLabel, Counter>::default(),
            Family::<SinkLabel, Counter>::default(),
        );
        registry.register(
            "tracking_dropped_points",
            "Points for TensorBoard or MLflow that were thrown away",
            dropped.clone(),
        );
        registry.register(
            "tracking_failures",
            "Writes of event files and requests to MLflow that failed",
            failures.clone(),
        );
        let sink = |sink| SinkCounters {
            dropped: dropped.get_or_create_owned(&SinkLabel { sink }),
            failures: failures.get_or_create_owned(&SinkLabel { sink }),
        };
        let (tensor_board, mlflow) = (sink("tensorboard"), sink("mlflow"));
        let phases = Family::<PhaseLabel, Float>::default();
        registry.register_with_unit(
            "phase",
            "Time spent in each phase so far",
            Unit::Seconds,
            phases.clone(),
        );
        let checkpoints = Counter::default();
        registry.register("checkpoints", "Checkpoints committed", checkpoints.clone());
        let checkpoint_failures = Counter::default();
        registry.register(
            "checkpoint_failures",
            "Checkpoints that could not be written",
            checkpoint_failures.clone(),
        );
        let checkpoint_write = Seconds::default();
        registry.register_with_unit(
            "checkpoint_write",
            "Time from the copy of the state to its commit, beside the training",
            Unit::Seconds,
            checkpoint_write.clone(),
        );
        let checkpoint_stall = Seconds::default();
        registry.register_with_unit(
            "checkpoint_stall",
            "Time for which training stood still while its state was copied",
            Unit::Seconds,
            checkpoint_stall.clone(),
        );
        let checkpoint_bytes = Counter::default();
        registry.register_with_unit(
            "checkpoint_written",
            "Size of the committed checkpoints",
            Unit::Bytes,
            checkpoint_bytes.clone(),
        );
        Self {
            registry,
            steps,
            examples,
            loss,
            learning_rate,
            rate,
            grad_norm,
            step,
            total_steps,
            epoch,
            total_epochs,
            eta,
            epoch_loss,
            validation_loss,
            accuracy,
            macro_f1,
            checkpoint_step,
            checkpoint_age,
            tensor_board,
            mlflow,
            phases,
            checkpoints,
            checkpoint_failures,
            checkpoint_write,
            checkpoint_stall,
            checkpoint_bytes,
        }
    }
}

/// Sets a figure that may not be known.
fn tell(gauge: &Late, value: Option<f64>) {
    if let Some(value) = value {
        gauge.get_or_create(&[]).set(value);
    }
}

/// How urgently the tensor thread is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stop {
    No,
    /// After saving the state; what comes after the last step is done to its end.
    Saved,
    /// After the step or batch that is under way.
    Now,
}

/// The value. Shared by the flow, the tensor thread and the server.
pub(crate) struct Tracker {
    inner: Mutex<Inner>,
    metrics: Metrics,
    bar: Option<ProgressBar>,
    /// Whose traffic is a sign of work.
    store: OnceLock<Arc<Store>>,
    /// Takes figures for TensorBoard and MLflow, where they are asked for.
    recorder: OnceLock<Recorder>,
    /// A [`Stop`].
    stop: AtomicU8,
    /// Whether the tensor thread is at work.
    busy: AtomicBool,
    /// Whether an earlier attempt has finished the job.
    done_before: AtomicBool,
}

impl Tracker {
    /// A tracker at the first phase; with a bar where stderr is a terminal. From here on a crash tells how far training was.
    pub(crate) fn new(config: &TrainerConfig, terminal: bool) -> Arc<Self> {
        tell_crashes(&CRASHED_AT);
        let progress = Progress {
            schema_version: SCHEMA_VERSION,
            attempt: config.job.attempt,
            phase: Phase::Starting,
            phase_seconds: 0.0,
            step: 0,
            total_steps: 0,
            epoch: 0,
            total_epochs: u32::try_from(config.hyperparameters.epochs).unwrap_or(0),
            loss: None,
            learning_rate: None,
            examples_per_second: None,
            eta_seconds: None,
            precision: None,
            validation_accuracy: None,
            heartbeat_seconds: None,
            median_pass_seconds: None,
            resumed_from_step: None,
            checkpoint: CheckpointProgress::default(),
            dataset: None,
            grad_norm: None,
            evaluations: Vec::new(),
            tracking: TrackingProgress::default(),
        };
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {prefix}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        let tracker = Self {
            inner: Mutex::new(Inner {
                progress,
                phase_start: now,
                past: BTreeMap::new(),
                last_step: None,
                last_pass: None,
                passes: VecDeque::with_capacity(MEDIAN_PASSES),
                beat: now,
                committed: None,
                head_attempt: None,
                told: None,
            }),
            metrics: Metrics::new(),
            bar,
            store: OnceLock::new(),
            recorder: OnceLock::new(),
            stop: AtomicU8::new(Stop::No as u8),
            busy: AtomicBool::new(false),
            done_before: AtomicBool::new(false),
        };
        Arc::new(tracker)
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a phase.
    pub(crate) fn phase(&self, phase: Phase) {
        let mut inner = self.inner();
        let seconds = inner.phase_start.elapsed().as_secs_f64();
        let before = inner.progress.phase;
        *inner.past.entry(name(before)).or_default() += seconds;
        inner.phase_start = Instant::now();
        inner.beat = inner.phase_start;
        inner.progress.phase = phase;
        if let Some(bar) = &self.bar {
            bar.set_message(name(phase));
        }
        if phase != before {
            tracing::info!(
                phase = name(phase),
                previous = name(before),
                previous_seconds = seconds,
                "phase"
            );
        }
    }

    /// Counts a step.
    pub(crate) fn step(&self, seen: &StepSeen) {
        let mut inner = self.inner();
        let now = Instant::now();
        inner.passed(now);
        let took = inner.last_step.replace(now).map(|last| (now - last).as_secs_f64());
        let p = &mut inner.progress;
        (p.step, p.total_steps, p.epoch) = (seen.step, seen.total_steps, seen.epoch);
        (p.learning_rate, p.grad_norm) = (Some(seen.learning_rate), Some(seen.grad_norm));
        let smooth = |old: Option<f64>, new: f64| old.map_or(new, |old| old + SMOOTHING * (new - old));
        let loss = smooth(p.loss, seen.loss);
        p.loss = Some(loss);
        #[allow(clippy::cast_precision_loss, reason = "batches and steps are far below 2^52")]
        if let Some(seconds) = took.filter(|s| *s > 0.0) {
            let rate = smooth(p.examples_per_second, seen.examples as f64 / seconds);
            p.examples_per_second = Some(rate);
            let left = seen.total_steps.saturating_sub(seen.step) as f64 * seen.examples as f64 / rate;
            p.eta_seconds = Duration::try_from_secs_f64(left).ok().map(|d| d.as_secs());
        }
        if let Some(recorder) = self.recorder.get() {
            recorder.step(seen, p.examples_per_second);
        }
        self.metrics.steps.inc();
        self.metrics.examples.inc_by(seen.examples as u64);
        if let Some(bar) = &self.bar {
            bar.set_length(seen.total_steps);
            bar.set_position(seen.step);
            let eta = p.eta_seconds.map_or_else(String::new, |s| format!(", {s} s left"));
            bar.set_prefix(format!("epoch {}, loss {loss:.3}{eta}", seen.epoch));
        }
        inner.mark();
    }

    /// Notes a validation. The next step's time would count the validation in, so it is left out of the speed.
    pub(crate) fn validated(&self, evaluation: EpochEvaluation, best: bool) {
        {
            let mut inner = self.inner();
            (inner.last_step, inner.last_pass) = (None, None);
            self.know(&mut inner.progress, vec![evaluation.clone()]);
        }
        tracing::info!(
            epoch = evaluation.epoch,
            step = evaluation.step,
            train_loss = evaluation.train_loss,
            validation_loss = evaluation.validation_loss,
            validation_accuracy = evaluation.accuracy,
            validation_macro_f1 = evaluation.macro_f1,
            best,
            "epoch"
        );
        if let Some(bar) = &self.bar {
            let mark = if best { ", best so far" } else { "" };
            bar.println(format!(
                "epoch {}: loss {:.4}, validation loss {:.4}, accuracy {:.4}{mark}",
                evaluation.epoch,
                evaluation.train_loss.unwrap_or(f64::NAN),
                evaluation.validation_loss.unwrap_or(f64::NAN),
                evaluation.accuracy.unwrap_or(f64::NAN)
            ));
        }
        if let Some(recorder) = self.recorder.get() {
            recorder.evaluated(&evaluation);
        }
    }

    /// Evaluations that follow those that are known.
    fn know(&self, progress: &mut Progress, evaluations: Vec<EpochEvaluation>) {
        progress.evaluations.extend(evaluations);
        let surplus = progress.evaluations.len().saturating_sub(EVALUATIONS_MAX);
        progress.evaluations.drain(..surplus);
        if let Some(last) = progress.evaluations.last() {
            progress.validation_accuracy = last.accuracy;
            tell(&self.metrics.epoch_loss, last.train_loss);
            tell(&self.metrics.validation_loss, last.validation_loss);
            tell(&self.metrics.accuracy, last.accuracy);
            tell(&self.metrics.macro_f1, last.macro_f1);
        }
    }

    /// Notes the number format that was chosen.
    pub(crate) fn computes_in(&self, precision: Precision) {
        self.inner().progress.precision = Some(precision);
        tracing::info!(?precision, "number format of the forward and backward pass");
    }

    /// Notes a pass of a step that is not its last.
    pub(crate) fn micro_batch(&self) {
        self.inner().passed(Instant::now());
    }

    /// Notes a sign of work that is no part of a step: a batch evaluated.
    pub(crate) fn beat(&self) {
        self.inner().beat = Instant::now();
    }

    /// Notes what the data checks found.
    pub(crate) fn checked(&self, counts: &DatasetCounts) {
        self.inner().progress.dataset = Some(counts.clone());
    }

    /// The store whose traffic shows that a phase of fetching or sending goes on.
    pub(crate) fn watch(&self, store: &Arc<Store>) {
        // Set once: there is one store per training.
        let _ = self.store.set(Arc::clone(store));
    }

    /// Begins to tell TensorBoard and MLflow, where the configuration asks for it. Before this, an earlier attempt may still
    /// be the one that tells.
    /// `sequence` is that of the takeover, which is higher at each.
    pub(crate) fn record(&self, config: &TrainerConfig, sequence: u64, limits: Limits) {
        if let Some(recorder) = Recorder::start(
            config,
            sequence,
            limits,
            &self.metrics.tensor_board,
            &self.metrics.mlflow,
        ) {
            // Set once, as the store.
            let _ = self.recorder.set(recorder);
        }
    }

    /// The first step comes.
    pub(crate) fn begins(&self) {
        if let Some(recorder) = self.recorder.get() {
            recorder.begin(self.inner().progress.step);
        }
    }

    /// An earlier attempt has finished the job; nothing is trained.
    pub(crate) fn done_before(&self) {
        self.done_before.store(true, Ordering::SeqCst);
    }

    /// Whether one has.
    pub(crate) fn was_done_before(&self) -> bool {
        self.done_before.load(Ordering::SeqCst)
    }

    /// What came out.
    pub(crate) fn measured(&self, steps: u64, metrics: &[Metric]) {
        if let Some(recorder) = self.recorder.get() {
            recorder.result(steps, metrics);
        }
    }

    /// Sends the last figures, for at most so long.
    pub(crate) async fn end_recording(&self, end: End, at_most: Duration) {
        if let Some(recorder) = self.recorder.get() {
            recorder.end(end, at_most).await;
        }
    }

    /// The checkpoints are this attempt's.
    pub(crate) fn took_over(&self, head: &Head) {
        let mut inner = self.inner();
        inner.head_attempt = Some(head.attempt);
        inner.progress.checkpoint.step = head.checkpoints.first().map(|c| c.step);
        inner.mark();
    }

    /// The checkpoints are another attempt's.
    pub(crate) fn fenced(&self, attempt: u32) {
        let mut inner = self.inner();
        inner.head_attempt = Some(attempt);
        inner.mark();
    }

    /// `HEAD` was found damaged or missing when it was taken over.
    pub(crate) fn head_damaged(&self, problem: String) {
        let checkpoint = &mut self.inner().progress.checkpoint;
        checkpoint.head_damaged = true;
        checkpoint.problem = Some(problem);
    }

    /// A checkpoint was found broken.
    pub(crate) fn passed_over(&self, problem: String) {
        let checkpoint = &mut self.inner().progress.checkpoint;
        checkpoint.invalid += 1;
        checkpoint.problem = Some(problem);
        // Nothing is gone on with but what is found later.
        checkpoint.step = None;
    }

    /// Training goes on from here, after these evaluations.
    pub(crate) fn resumed(&self, step: u64, epoch: u32, evaluations: Vec<EpochEvaluation>) {
        let mut inner = self.inner();
        let p = &mut inner.progress;
        self.know(p, evaluations);
        (p.step, p.epoch) = (step, epoch.min(p.total_epochs));
        p.resumed_from_step = Some(step);
        p.checkpoint.step = Some(step);
        inner.mark();
    }

    /// Training stood still for the copy of its state.
    pub(crate) fn stalled(&self, duration: Duration) {
        self.metrics.checkpoint_stall.inc_by(duration.as_secs_f64());
    }

    /// A checkpoint was committed.
    pub(crate) fn committed(&self, step: u64, took: Duration, bytes: u64) {
        let mut inner = self.inner();
        inner.committed = Some(Instant::now());
        let checkpoint = &mut inner.progress.checkpoint;
        checkpoint.step = Some(step);
        // What was wrong with a checkpoint that was passed over stays to be read.
        if std::mem::take(&mut checkpoint.failures) > 0 {
            checkpoint.problem = None;
        }
        inner.mark();
        self.metrics.checkpoints.inc();
        self.metrics.checkpoint_write.inc_by(took.as_secs_f64());
        self.metrics.checkpoint_bytes.inc_by(bytes);
    }

    /// A checkpoint could not be written.
    pub(crate) fn not_committed(&self, problem: String) {
        let checkpoint = &mut self.inner().progress.checkpoint;
        checkpoint.failures += 1;
        checkpoint.problem = Some(problem);
        self.metrics.checkpoint_failures.inc();
    }

    /// Adds to the termination message how far training is, what its data checks found and the last evaluations; nothing
    /// where this thread holds the value already, as when it panics, and no position before the checkpoints were reached.
    pub(crate) fn last_words(&self, message: &mut TerminationMessage) {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(inner)) => inner.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let p = &inner.progress;
        message.position = inner.position();
        message.dataset.clone_from(&p.dataset);
        message.evaluations.clone_from(&p.evaluations);
        if let Some(recorder) = self.recorder.get() {
            message.tracking = recorder.progress();
        }
    }

    /// The phase that it is in.
    pub(crate) fn present(&self) -> Phase {
        self.inner().progress.phase
    }

    /// Body of `/progress`.
    pub(crate) fn progress(&self) -> Progress {
        let inner = self.inner();
        let mut progress = inner.progress.clone();
        progress.phase_seconds = inner.phase_start.elapsed().as_secs_f64();
        // A checkpoint that is sent beside the training is no sign that the training goes on.
        let idle = match progress.phase {
            Phase::Downloading | Phase::Uploading | Phase::Checkpointing => self.store.get().and_then(|s| s.idle()),
            _ => None,
        };
        let own = inner.beat.elapsed();
        progress.heartbeat_seconds = Some(idle.map_or(own, |idle| idle.min(own)).as_secs_f64());
        progress.median_pass_seconds = median(&inner.passes);
        progress.checkpoint.age_seconds = inner.committed.map(|at| at.elapsed().as_secs_f64());
        if let Some(recorder) = self.recorder.get() {
            progress.tracking = recorder.progress();
        }
        progress
    }

    /// Body of `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        {
            let inner = self.inner();
            let present = (name(inner.progress.phase), inner.phase_start.elapsed().as_secs_f64());
            let mut seconds = inner.past.clone();
            *seconds.entry(present.0).or_default() += present.1;
            for (phase, seconds) in seconds {
                self.metrics.phases.get_or_create(&PhaseLabel { phase }).set(seconds);
            }
            let (m, p) = (&self.metrics, &inner.progress);
            m.step.set(p.step as f64);
            m.total_steps.set(p.total_steps as f64);
            m.epoch.set(f64::from(p.epoch));
            m.total_epochs.set(f64::from(p.total_epochs));
            tell(&m.loss, p.loss);
            tell(&m.learning_rate, p.learning_rate);
            tell(&m.rate, p.examples_per_second);
            tell(&m.grad_norm, p.grad_norm);
            tell(&m.eta, p.eta_seconds.map(|s| s as f64));
            tell(&m.checkpoint_step, p.checkpoint.step.map(|s| s as f64));
            tell(&m.checkpoint_age, inner.committed.map(|at| at.elapsed().as_secs_f64()));
        }
        let mut text = String::new();
        if encode(&mut text, &self.metrics.registry).is_err() {
            text.clear();
        }
        text
    }

    /// Writes a line of the log every ten seconds, until aborted.
    pub(crate) async fn log_now_and_then(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(LOG_SECONDS)).await;
            let p = self.progress();
            tracing::info!(
                phase = name(p.phase),
                phase_seconds = p.phase_seconds,
                step = p.step,
                total_steps = p.total_steps,
                epoch = p.epoch,
                loss = p.loss,
                learning_rate = p.learning_rate,
                grad_norm = p.grad_norm,
                examples_per_second = p.examples_per_second,
                eta_seconds = p.eta_seconds,
                checkpoint_step = p.checkpoint.step,
                "progress"
            );
        }
    }

    /// Asks the tensor thread to end. What was asked before is never taken back.
    pub(crate) fn stop(&self, stop: Stop) {
        self.stop.fetch_max(stop as u8, Ordering::SeqCst);
    }

    /// Notes that the process was told to end: its state is to be saved.
    pub(crate) fn told_to_end(&self) {
        self.inner().told.get_or_insert_with(Instant::now);
        self.stop(Stop::Saved);
    }

    /// Since when the process is told to end.
    pub(crate) fn told(&self) -> Option<Instant> {
        self.inner().told
    }

    /// How it was asked to.
    pub(crate) fn stopping(&self) -> Stop {
        match self.stop.load(Ordering::SeqCst) {
            0 => Stop::No,
            1 => Stop::Saved,
            _ => Stop::Now,
        }
    }

    /// Marks the tensor thread as at work or not.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::SeqCst);
    }

    /// Waits until the tensor thread is not at work, at most so long.
    pub(crate) async fn idle(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        while self.busy.load(Ordering::SeqCst) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The middle one, the later of two.
fn median(durations: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = durations.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "Starting",
        Phase::Downloading => "Downloading",
        Phase::Preparing => "Preparing",
        Phase::Training => "Training",
        Phase::Evaluating => "Evaluating",
        Phase::Checkpointing => "Checkpointing",
        Phase::Uploading => "Uploading",
        Phase::Done => "Done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_no_mean() {
        assert_eq!(median(&VecDeque::new()), None);
        assert_eq!(median(&[3.0].into()), Some(3.0));
        assert_eq!(median(&[1.0, 1000.0, 2.0].into()), Some(2.0));
    }

    #[test]
    fn a_figure_that_is_not_known_yet_is_absent() {
        let config = serde_json::from_value(serde_json::json!({
            "schemaVersion": 1,
            "job": {"namespace": "team", "name": "intent", "uid": "u", "attempt": 1},
            "task": "TextClassification",
            "model": {"pretrained": {"uri": "file:///bert"}},
            "dataset": {"sources": [{"uri": "file:///a.csv"}]},
            "hyperparameters": {},
            "device": "Cpu",
            "storage": {},
            "modelName": "intent",
            "outputUri": "file:///out",
        }))
        .unwrap();
        let tracker = Tracker::new(&config, false);
        let values = || {
            let text = tracker.metrics();
            let names = [
                "loss_nats",
                "learning_rate",
                "grad_norm",
                "examples_per_second",
                "eta_seconds",
            ];
            let has = |name: &str| {
                let line = format!("flywheel_trainer_{name}");
                text.lines().any(|l| l.starts_with(&line))
            };
            names.map(has)
        };
        let seen = |step| StepSeen {
            step,
            total_steps: 9,
            epoch: 1,
            loss: 1.0,
            learning_rate: 0.1,
            grad_norm: 1.0,
            examples: 8,
        };
        assert_eq!(values(), [false; 5]);
        tracker.step(&seen(1));
        // There is no speed before two steps.
        assert_eq!(values(), [true, true, true, false, false]);
        tracker.step(&seen(2));
        assert_eq!(values(), [true; 5]);
    }
}
