//! How far a training is: one value that `/progress`, `/metrics`, the bar and the log read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::progress::{Phase, Progress};
use flywheel_contract::trainer::TrainerConfig;
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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

type Float = Gauge<f64, AtomicU64>;

struct Metrics {
    registry: Registry,
    steps: Counter,
    examples: Counter,
    loss: Float,
    learning_rate: Float,
    rate: Float,
    accuracy: Float,
    phases: Family<PhaseLabel, Float>,
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
        Self {
            registry,
            steps,
            examples,
            loss,
            learning_rate,
            rate,
            accuracy,
            phases,
        }
    }
}

/// The value. Shared by the flow, the tensor thread and the server.
pub(crate) struct Tracker {
    inner: Mutex<Inner>,
    metrics: Metrics,
    bar: Option<ProgressBar>,
    stop: AtomicBool,
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
            validation_accuracy: None,
        };
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {prefix}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let tracker = Self {
            inner: Mutex::new(Inner {
                progress,
                phase_start: Instant::now(),
                past: BTreeMap::new(),
                last_step: None,
            }),
            metrics: Metrics::new(),
            bar,
            stop: AtomicBool::new(false),
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
        let took = inner.last_step.replace(now).map(|last| (now - last).as_secs_f64());
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

    /// Body of `/progress`.
    pub(crate) fn progress(&self) -> Progress {
        let inner = self.inner();
        Progress {
            phase_seconds: inner.phase_start.elapsed().as_secs_f64(),
            ..inner.progress.clone()
        }
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
                "progress"
            );
        }
    }

    /// Asks the tensor thread to end after its step.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked to.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
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

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "Starting",
        Phase::Downloading => "Downloading",
        Phase::Preparing => "Preparing",
        Phase::Training => "Training",
        Phase::Evaluating => "Evaluating",
        Phase::Uploading => "Uploading",
        Phase::Done => "Done",
    }
}
