//! How far a training is: one value that `/progress`, `/metrics`, the bar and the log read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::checkpoint::Head;
use flywheel_contract::hyperparameters::Precision;
use flywheel_contract::progress::{CheckpointProgress, Phase, Progress};
use flywheel_contract::termination::Position;
use flywheel_contract::trainer::{DatasetCounts, TrainerConfig};
use flywheel_store::Store;
use indicatif::{ProgressBar, ProgressStyle};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Seconds between lines of the log.
const LOG_SECONDS: u64 = 10;
/// Weight of the newest value in smoothed figures: about the last 20 count.
const SMOOTHING: f64 = 0.1;
/// Steps over which the median time is taken.
const MEDIAN_STEPS: usize = 33;

/// A step, as the tracker wants to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSeen {
    pub(crate) step: u64,
    pub(crate) total_steps: u64,
    pub(crate) epoch: u32,
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    pub(crate) examples: usize,
}

struct Inner {
    progress: Progress,
    phase_start: Instant,
    /// Seconds spent in phases that are over.
    past: BTreeMap<&'static str, f64>,
    last_step: Option<Instant>,
    /// Seconds of the last steps.
    durations: VecDeque<f64>,
    /// The last sign of work that this program gave itself.
    beat: Instant,
    /// This attempt's last commit of a checkpoint.
    committed: Option<Instant>,
    /// Present once the checkpoints were taken over, or found to be another attempt's.
    head_attempt: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

type Float = Gauge<f64, AtomicU64>;
type Seconds = Counter<f64, AtomicU64>;

struct Metrics {
    registry: Registry,
    steps: Counter,
    examples: Counter,
    loss: Float,
    learning_rate: Float,
    rate: Float,
    accuracy: Float,
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
        let loss = Float::default();
        registry.register_with_unit(
            "loss",
            "Smoothed training loss",
            Unit::Other("nats".to_owned()),
            loss.clone(),
        );
        let learning_rate = Float::default();
        registry.register("learning_rate", "Present learning rate", learning_rate.clone());
        let rate = Float::default();
        registry.register("examples_per_second", "Smoothed speed of training", rate.clone());
        let accuracy = Float::default();
        registry.register_with_unit(
            "validation_accuracy",
            "Share of right answers at the last validation",
            Unit::Other("ratio".to_owned()),
            accuracy.clone(),
        );
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
            accuracy,
            phases,
            checkpoints,
            checkpoint_failures,
            checkpoint_write,
            checkpoint_stall,
            checkpoint_bytes,
        }
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
    /// A [`Stop`].
    stop: AtomicU8,
    /// Whether the tensor thread is at work.
    busy: AtomicBool,
}

impl Tracker {
    /// A tracker at the first phase; with a bar where stderr is a terminal.
    pub(crate) fn new(config: &TrainerConfig, terminal: bool) -> Arc<Self> {
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
            median_step_seconds: None,
            resumed_from_step: None,
            checkpoint: CheckpointProgress::default(),
            dataset: None,
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
                durations: VecDeque::with_capacity(MEDIAN_STEPS),
                beat: now,
                committed: None,
                head_attempt: None,
            }),
            metrics: Metrics::new(),
            bar,
            store: OnceLock::new(),
            stop: AtomicU8::new(Stop::No as u8),
            busy: AtomicBool::new(false),
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
        tracing::info!(
            phase = name(phase),
            previous = name(before),
            previous_seconds = seconds,
            "phase"
        );
    }

    /// Counts a step.
    pub(crate) fn step(&self, seen: &StepSeen) {
        let mut inner = self.inner();
        let now = Instant::now();
        inner.beat = now;
        let took = inner.last_step.replace(now).map(|last| (now - last).as_secs_f64());
        if let Some(took) = took {
            if inner.durations.len() == MEDIAN_STEPS {
                inner.durations.pop_front();
            }
            inner.durations.push_back(took);
        }
        let p = &mut inner.progress;
        (p.step, p.total_steps, p.epoch) = (seen.step, seen.total_steps, seen.epoch);
        p.learning_rate = Some(seen.learning_rate);
        let smooth = |old: Option<f64>, new: f64| old.map_or(new, |old| old + SMOOTHING * (new - old));
        let loss = smooth(p.loss, seen.loss);
        p.loss = Some(loss);
        #[allow(clippy::cast_precision_loss, reason = "batches and steps are far below 2^52")]
        if let Some(seconds) = took.filter(|s| *s > 0.0) {
            let rate = smooth(p.examples_per_second, seen.examples as f64 / seconds);
            p.examples_per_second = Some(rate);
            let left = seen.total_steps.saturating_sub(seen.step) as f64 * seen.examples as f64 / rate;
            p.eta_seconds = Duration::try_from_secs_f64(left).ok().map(|d| d.as_secs());
            self.metrics.rate.set(rate);
        }
        self.metrics.steps.inc();
        self.metrics.examples.inc_by(seen.examples as u64);
        self.metrics.loss.set(loss);
        self.metrics.learning_rate.set(seen.learning_rate);
        if let Some(bar) = &self.bar {
            bar.set_length(seen.total_steps);
            bar.set_position(seen.step);
            let eta = p.eta_seconds.map_or_else(String::new, |s| format!(", {s} s left"));
            bar.set_prefix(format!("epoch {}, loss {loss:.3}{eta}", seen.epoch));
        }
    }

    /// Notes a validation. The next step's time would count the validation in, so it is left out of the speed.
    pub(crate) fn validated(&self, epoch: u32, train_loss: f64, loss: f64, accuracy: f64, best: bool) {
        let mut inner = self.inner();
        inner.progress.validation_accuracy = Some(accuracy);
        inner.last_step = None;
        self.metrics.accuracy.set(accuracy);
        tracing::info!(
            epoch,
            train_loss,
            validation_loss = loss,
            validation_accuracy = accuracy,
            best,
            "epoch"
        );
        if let Some(bar) = &self.bar {
            let mark = if best { ", best so far" } else { "" };
            bar.println(format!(
                "epoch {epoch}: loss {train_loss:.4}, validation loss {loss:.4}, accuracy {accuracy:.4}{mark}"
            ));
        }
    }

    /// Notes the number format that was chosen.
    pub(crate) fn computes_in(&self, precision: Precision) {
        self.inner().progress.precision = Some(precision);
        tracing::info!(?precision, "number format of the forward and backward pass");
    }

    /// Notes a sign of work that is no step: a batch evaluated.
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

    /// The checkpoints are this attempt's.
    pub(crate) fn took_over(&self, head: &Head) {
        let mut inner = self.inner();
        inner.head_attempt = Some(head.attempt);
        inner.progress.checkpoint.step = head.checkpoints.first().map(|c| c.step);
    }

    /// The checkpoints are another attempt's.
    pub(crate) fn fenced(&self, attempt: u32) {
        self.inner().head_attempt = Some(attempt);
    }

    /// A checkpoint was found broken.
    pub(crate) fn passed_over(&self, problem: String) {
        let checkpoint = &mut self.inner().progress.checkpoint;
        checkpoint.invalid += 1;
        checkpoint.problem = Some(problem);
        // Nothing is gone on with but what is found later.
        checkpoint.step = None;
    }

    /// Training goes on from here.
    pub(crate) fn resumed(&self, step: u64, epoch: u32) {
        let mut inner = self.inner();
        let p = &mut inner.progress;
        (p.step, p.epoch) = (step, epoch.min(p.total_epochs));
        p.resumed_from_step = Some(step);
        p.checkpoint.step = Some(step);
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

    /// How far training is and what its data checks found, for the termination message; none before the checkpoints were
    /// reached, or where this thread holds the value already, as when it panics.
    pub(crate) fn last_words(&self) -> (Option<Position>, Option<DatasetCounts>) {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(inner)) => inner.into_inner(),
            Err(TryLockError::WouldBlock) => return (None, None),
        };
        let p = &inner.progress;
        let position = inner.head_attempt.map(|head_attempt| Position {
            step: p.step,
            resumed_from_step: p.resumed_from_step.unwrap_or(0),
            checkpoint_step: p.checkpoint.step.unwrap_or(0),
            head_attempt,
        });
        (position, p.dataset.clone())
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
        progress.median_step_seconds = median(&inner.durations);
        progress.checkpoint.age_seconds = inner.committed.map(|at| at.elapsed().as_secs_f64());
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
}
