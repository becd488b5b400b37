//! The training loop: batches, steps, validation, early stopping, best weights. It knows a [`Task`], not a model; it
//! reads no files and talks to nobody but its [`Observer`].
//!
//! Between two steps everything that the rest depends on is a [`State`]: the loop hands it out when asked, and begun with
//! it goes on as if it had never stopped. Order and dropout are functions of the seed and the step's number, so no
//! generator is part of it.

use std::ops::ControlFlow;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flywheel_contract::hyperparameters::{EarlyStopping, Hyperparameters, StoppingMetric};
use flywheel_contract::scalar::Decimal;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::network::{Parameters, fill, host_copies};
use crate::optim::{AdamW, Moments, Schedule};
use crate::random::step_seed;
use crate::task::Task;

/// Largest norm of all gradients together; the usual value for fine-tuning encoders.
const MAX_GRAD_NORM: f64 = 1.0;
/// Place of this process among those that train together. There is one.
const RANK: u64 = 0;

/// How to train, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Passes over the training set, at least 1.
    pub epochs: u32,
    /// Examples per step, at least 1.
    pub batch_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Share of all steps over which the rate rises, 0 to 1.
    pub warmup_ratio: f64,
    /// For order and dropout.
    pub seed: i64,
    /// Ends training early.
    pub early_stopping: Option<EarlyStopping>,
}

impl Settings {
    /// Settings from a job's hyperparameters (dropout and initialisation belong to the network, see [`dropout`]).
    ///
    /// # Errors
    /// [`Error::Setting`] that names the field. The CRD refuses such values; a job file without a cluster may hold them.
    pub fn new(hyperparameters: &Hyperparameters) -> Result<Self> {
        let h = hyperparameters;
        if let Some(stopping) = &h.early_stopping
            && stopping.patience < 1
        {
            return Err(Error::Setting(format!(
                "earlyStopping.patience is {}, at least 1",
                stopping.patience
            )));
        }
        Ok(Self {
            epochs: count("epochs", h.epochs)?,
            batch_size: count("batchSize", h.batch_size)? as usize,
            learning_rate: within("learningRate", &h.learning_rate, f64::MIN_POSITIVE, 1.0)?,
            weight_decay: within("weightDecay", &h.weight_decay, 0.0, 1.0)?,
            warmup_ratio: within("warmupRatio", &h.warmup_ratio, 0.0, 0.9)?,
            seed: h.seed,
            early_stopping: h.early_stopping.clone(),
        })
    }

    /// The measure by which epochs are compared: that of early stopping, or accuracy.
    fn metric(&self) -> StoppingMetric {
        self.early_stopping.as_ref().map(|s| s.metric).unwrap_or_default()
    }
}

/// Dropout of a job, for the network.
///
/// # Errors
/// [`Error::Setting`].
pub fn dropout(hyperparameters: &Hyperparameters) -> Result<f64> {
    within("dropout", &hyperparameters.dropout, 0.0, 0.9)
}

fn count(field: &str, value: i32) -> Result<u32> {
    let checked = u32::try_from(value).ok().filter(|n| *n > 0);
    checked.ok_or_else(|| Error::Setting(format!("{field} is {value}, at least 1")))
}

fn within(field: &str, value: &Decimal, low: f64, high: f64) -> Result<f64> {
    let checked = value.value().filter(|v| (low..=high).contains(v));
    checked.ok_or_else(|| Error::Setting(format!("{field} is {value}, not a number from {low} to {high}")))
}

/// One optimiser step that was done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Counts from 1 over all epochs.
    pub step: u64,
    /// Steps if no early stop comes.
    pub total_steps: u64,
    /// Counts from 1.
    pub epoch: u32,
    /// Mean loss of its batch, before the step.
    pub loss: f64,
    /// Learning rate used.
    pub learning_rate: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Examples in its batch.
    pub examples: usize,
}

/// One epoch that ended.
#[derive(Debug, Clone, Copy)]
pub struct Epoch<'a, R> {
    /// Counts from 1.
    pub epoch: u32,
    /// Mean loss over its steps.
    pub train_loss: f64,
    /// Figures of the validation set.
    pub validation: &'a R,
    /// When its validation ended, in seconds since 1970.
    pub ended: Option<i64>,
    /// Whether it is the best so far.
    pub best: bool,
    /// Whether training ends with it.
    pub last: bool,
}

/// What an observer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    GoOn,
    /// The state, and on.
    Save,
    /// The state, and an end.
    SaveAndStop,
    /// An end.
    Stop,
}

/// Sees training go by, may ask for its state and may end it ([`Error::Interrupted`]). Must return quickly.
pub trait Observer<R> {
    /// After every step.
    fn step(&mut self, step: &Step) -> Next;
    /// After every batch of a validation. [`Next::Save`] counts for nothing here, the next step asks again; the state of
    /// [`Next::SaveAndStop`] is that before the validation.
    fn validating(&mut self) -> Next;
    /// After every validation.
    fn epoch(&mut self, epoch: &Epoch<'_, R>) -> Next;
    /// The state that was asked for.
    fn state(&mut self, state: State<R>);
}

/// Figures of an epoch that is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochFigures<R> {
    /// Mean loss over its steps.
    pub train_loss: f64,
    /// Figures of the validation set.
    pub validation: R,
    /// When its validation ended, in seconds since 1970; nothing depends on it.
    #[serde(default)]
    pub ended: Option<i64>,
}

/// A place between two steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor<R> {
    /// Optimiser steps done.
    pub step: u64,
    /// The epoch under way, from 1; one more than there are when training is over.
    pub epoch: u32,
    /// Its batches that are done.
    pub batch: u64,
    /// Sum of their losses.
    pub loss_sum: f64,
    /// The epochs that are done, in order.
    pub epochs: Vec<EpochFigures<R>>,
    /// The best of them, from 1; none before the first is done.
    pub best_epoch: Option<u32>,
    /// Seconds that it took to come here, stops left out.
    pub seconds: f64,
}

impl<R> Cursor<R> {
    /// Before the first step.
    #[must_use]
    pub fn start() -> Self {
        Self {
            step: 0,
            epoch: 1,
            batch: 0,
            loss_sum: 0.0,
            epochs: Vec::new(),
            best_epoch: None,
            seconds: 0.0,
        }
    }

    /// Epochs done.
    fn done(&self) -> u32 {
        self.epoch.saturating_sub(1)
    }

    /// Whether no step is left to do; `Some(true)` where early stopping says so.
    fn ended(&self, settings: &Settings) -> Option<bool> {
        let idle = self.best_epoch.map(|best| self.done().saturating_sub(best));
        let patience = settings
            .early_stopping
            .as_ref()
            .and_then(|s| u32::try_from(s.patience).ok());
        if self.done() >= settings.epochs {
            Some(false)
        } else if patience.zip(idle).is_some_and(|(patience, idle)| idle >= patience) {
            Some(true)
        } else {
            None
        }
    }
}

/// All that training needs to go on from a place as if it had never stopped. Tensors lie on the host and are nobody
/// else's.
#[derive(Debug)]
pub struct State<R> {
    /// The place.
    pub cursor: Cursor<R>,
    /// Weights.
    pub weights: Parameters,
    /// What the optimiser remembers.
    pub moments: Moments,
    /// Weights of the best epoch; none before one is done.
    pub best: Option<Parameters>,
}

/// How training ended. The network holds the weights of the best epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<R> {
    /// Epoch whose weights are kept, from 1.
    pub best_epoch: u32,
    /// Validation figures of those weights.
    pub validation: R,
    /// Every epoch, in order.
    pub epochs: Vec<EpochFigures<R>>,
    /// Steps done.
    pub steps: u64,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Seconds from the first to the last step, validations included, stops left out.
    pub seconds: f64,
}

/// Trains a task's network in place, from the network's weights or from a state. With one thread on a CPU the same inputs
/// give the same weights bit for bit, however often training was stopped and gone on with.
///
/// # Errors
/// [`Error::EmptySet`], [`Error::LossNotFinite`] with the step, [`Error::Interrupted`] when the observer ends it,
/// [`Error::State`] for a state of another network, and what the task and libtorch refuse. After an error the weights
/// are those of some step.
pub fn fit<T: Task>(
    task: &T,
    train: &T::Set,
    validation: &T::Set,
    settings: &Settings,
    from: Option<State<T::Report>>,
    observer: &mut dyn Observer<T::Report>,
) -> Result<Outcome<T::Report>> {
    let lengths = task.lengths(train);
    if lengths.is_empty() {
        return Err(Error::EmptySet("training"));
    }
    if task.lengths(validation).is_empty() {
        return Err(Error::EmptySet("validation"));
    }
    let total_steps = steps_per_epoch(lengths.len(), settings) * u64::from(settings.epochs);
    let schedule = Schedule::new(settings.learning_rate, settings.warmup_ratio, total_steps);
    let mut fit = Fit::begin(task, settings, from)?;
    let stopped_early = loop {
        if let Some(stopped_early) = fit.cursor.ended(settings) {
            break stopped_early;
        }
        let epoch = fit.cursor.epoch;
        let batches = flywheel_data::batches(&lengths, settings.batch_size, settings.seed, u64::from(epoch));
        let done = usize::try_from(fit.cursor.batch).unwrap_or(usize::MAX);
        for rows in batches.iter().skip(done) {
            let learning_rate = schedule.rate(fit.cursor.step);
            let (loss, grad_norm) = fit.step(train, rows, learning_rate)?;
            let seen = Step {
                step: fit.cursor.step,
                total_steps,
                epoch,
                loss,
                learning_rate,
                grad_norm,
                examples: rows.len(),
            };
            let next = observer.step(&seen);
            fit.heed(next, observer)?;
        }
        let report = fit.validate(validation, observer)?;
        let score = task.score(&report, settings.metric());
        let best = fit.best_score().is_none_or(|highest| score > highest);
        let figures = fit.close_epoch(report, best)?;
        let seen = Epoch {
            epoch,
            train_loss: figures.train_loss,
            validation: &figures.validation,
            ended: figures.ended,
            best,
            last: fit.cursor.ended(settings).is_some(),
        };
        let next = observer.epoch(&seen);
        fit.heed(next, observer)?;
    };
    fit.end(stopped_early)
}
/// Figures of a set with the present weights.
///
/// # Errors
/// As [`outputs`].
pub fn evaluate<T: Task>(
    task: &T,
    set: &T::Set,
    batch_size: usize,
    watch: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<T::Report> {
    task.report(set, &outputs(task, set, batch_size, watch)?)
}

/// Outputs of a whole set with the present weights, one row of numbers per example, in the set's order. `watch` is called
/// after every batch and may end it.
///
/// # Errors
/// [`Error::EmptySet`], [`Error::Interrupted`] and what the task and libtorch refuse.
pub fn outputs<T: Task>(
    task: &T,
    set: &T::Set,
    batch_size: usize,
    watch: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<Vec<f32>>> {
    let lengths = task.lengths(set);
    if lengths.is_empty() {
        return Err(Error::EmptySet("evaluated"));
    }
    let _inference = flywheel_torch_shim::InferenceGuard::enter()?;
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Rows of like length together: hardly any padding. The longest first, so that memory runs out at once or never.
    order.sort_by_key(|i| std::cmp::Reverse(lengths.get(*i).copied()));
    let mut rows = vec![Vec::new(); lengths.len()];
    for places in order.chunks(batch_size.max(1)) {
        let batch = task.batch(set, places)?;
        let outputs = task.rows(&task.outputs(&batch, false)?)?;
        for (place, output) in places.iter().zip(outputs) {
            if let Some(row) = rows.get_mut(*place) {
                *row = output;
            }
        }
        if watch().is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(rows)
}

/// The machine's clock, for people to read.
fn unix_seconds() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

/// Steps of one pass over so many examples.
pub(crate) fn steps_per_epoch(examples: usize, settings: &Settings) -> u64 {
    examples.div_ceil(settings.batch_size) as u64
}

/// A training under way.
struct Fit<'a, T: Task> {
    task: &'a T,
    settings: &'a Settings,
    optimiser: AdamW,
    cursor: Cursor<T::Report>,
    /// Weights of the best epoch, on the host. Never changed in place, so states share them.
    best: Option<Parameters>,
    /// From when on time is not yet in the cursor.
    since: Instant,
}

impl<'a, T: Task> Fit<'a, T> {
    fn begin(task: &'a T, settings: &'a Settings, from: Option<State<T::Report>>) -> Result<Self> {
        let mut optimiser = AdamW::new(task.parameters(), settings.weight_decay)?;
        let (cursor, best) = match from {
            None => (Cursor::start(), None),
            Some(state) => {
                fill(task.parameters(), &state.weights)?;
                optimiser.restore(state.cursor.step, &state.moments)?;
                (state.cursor, state.best)
            }
        };
        Ok(Self {
            task,
            settings,
            optimiser,
            cursor,
            best,
            since: Instant::now(),
        })
    }

    /// One optimiser step; returns the loss and the norm of the gradients.
    fn step(&mut self, set: &T::Set, rows: &[usize], learning_rate: f64) -> Result<(f64, f64)> {
        let number = self.cursor.step + 1;
        let not_finite = |what, value| Error::LossNotFinite {
            step: number,
            what,
            value,
        };
        tch::manual_seed(step_seed(self.settings.seed, number, RANK));
        self.optimiser.zero_grad()?;
        let batch = self.task.batch(set, rows)?;
        let loss = self.task.loss(&self.task.outputs(&batch, true)?, &batch)?;
        let value = loss.f_double_value(&[])?;
        if !value.is_finite() {
            return Err(not_finite("loss", value));
        }
        loss.f_backward()?;
        let norm = self.optimiser.clip(MAX_GRAD_NORM)?;
        if !norm.is_finite() {
            return Err(not_finite("norm of the gradients", norm));
        }
        self.optimiser.step(learning_rate)?;
        self.cursor.step = number;
        self.cursor.batch += 1;
        self.cursor.loss_sum += value;
        Ok((value, norm))
    }

    fn validate(&mut self, set: &T::Set, observer: &mut dyn Observer<T::Report>) -> Result<T::Report> {
        let mut next = Next::GoOn;
        let mut watch = || {
            next = observer.validating();
            match next {
                Next::GoOn | Next::Save => ControlFlow::Continue(()),
                Next::Stop | Next::SaveAndStop => ControlFlow::Break(()),
            }
        };
        let report = evaluate(self.task, set, self.settings.batch_size, &mut watch);
        if matches!(report, Err(Error::Interrupted)) {
            self.heed(next, observer)?;
        }
        report
    }

    /// Score of the best epoch so far.
    fn best_score(&self) -> Option<f64> {
        let best = self.best_figures()?;
        Some(self.task.score(&best.validation, self.settings.metric()))
    }

    fn best_figures(&self) -> Option<&EpochFigures<T::Report>> {
        let place = usize::try_from(self.cursor.best_epoch?).ok()?.checked_sub(1)?;
        self.cursor.epochs.get(place)
    }

    /// Moves on to the next epoch and keeps the weights where this one is the best.
    fn close_epoch(&mut self, validation: T::Report, best: bool) -> Result<EpochFigures<T::Report>> {
        if best {
            self.best = Some(host_copies(self.task.parameters())?);
            self.cursor.best_epoch = Some(self.cursor.epoch);
        }
        let figures = EpochFigures {
            train_loss: self.cursor.loss_sum / self.cursor.batch as f64,
            validation,
            ended: unix_seconds(),
        };
        self.cursor.epochs.push(figures.clone());
        self.cursor.epoch += 1;
        self.cursor.batch = 0;
        self.cursor.loss_sum = 0.0;
        Ok(figures)
    }

    /// Does what the observer wants.
    fn heed(&mut self, next: Next, observer: &mut dyn Observer<T::Report>) -> Result<()> {
        if matches!(next, Next::Save | Next::SaveAndStop) {
            observer.state(self.state()?);
        }
        match next {
            Next::GoOn | Next::Save => Ok(()),
            Next::Stop | Next::SaveAndStop => Err(Error::Interrupted),
        }
    }

    fn state(&mut self) -> Result<State<T::Report>> {
        self.note_time();
        Ok(State {
            cursor: self.cursor.clone(),
            weights: host_copies(self.task.parameters())?,
            moments: self.optimiser.moments()?,
            best: self.best.as_ref().map(|best| {
                best.iter()
                    .map(|(name, weight)| (name.clone(), weight.shallow_clone()))
                    .collect()
            }),
        })
    }

    fn note_time(&mut self) {
        let now = Instant::now();
        self.cursor.seconds += now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
    }

    fn end(mut self, stopped_early: bool) -> Result<Outcome<T::Report>> {
        self.note_time();
        // One epoch at least was validated, and the first is the best so far by definition; a state may lie.
        let lacking = || Error::State("it has no best epoch".to_owned());
        let best = self.best_figures().ok_or_else(lacking)?;
        fill(self.task.parameters(), self.best.as_ref().ok_or_else(lacking)?)?;
        Ok(Outcome {
            best_epoch: self.cursor.best_epoch.unwrap_or_default(),
            validation: best.validation.clone(),
            epochs: self.cursor.epochs,
            steps: self.cursor.step,
            stopped_early,
            seconds: self.cursor.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_the_field_that_is_out_of_bounds() {
        Settings::new(&Hyperparameters::default()).unwrap();
        type Change = fn(&mut Hyperparameters);
        let bad: [(&str, Change); 6] = [
            ("epochs is 0", |h| h.epochs = 0),
            ("batchSize is -1", |h| h.batch_size = -1),
            ("learningRate is 0", |h| h.learning_rate = "0".into()),
            ("learningRate is fast", |h| h.learning_rate = "fast".into()),
            ("warmupRatio is 1", |h| h.warmup_ratio = "1".into()),
            ("patience is 0", |h| {
                h.early_stopping = Some(EarlyStopping {
                    metric: StoppingMetric::Loss,
                    patience: 0,
                });
            }),
        ];
        for (want, change) in bad {
            let mut h = Hyperparameters::default();
            change(&mut h);
            let error = Settings::new(&h).unwrap_err();
            assert!(error.to_string().contains(want), "{want}: {error}");
        }
        let wild = Hyperparameters {
            dropout: "1".into(),
            ..Hyperparameters::default()
        };
        assert!(dropout(&wild).is_err());
    }
}
