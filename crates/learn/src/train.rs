//! The training loop: batches, steps, validation, early stopping, best weights. It knows a [`Task`], not a model; it
//! reads no files and talks to nobody but its [`Observer`].
//!
//! Several processes can train one model together ([`crate::collective`]): all of them run this loop, and only process 0
//! keeps states and best weights.
//!
//! Between two steps everything that the rest depends on is a [`State`]: the loop hands it out when asked, and begun with
//! it goes on as if it had never stopped. Order and dropout are functions of the seed and the step's number, so no
//! generator is part of it.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flywheel_contract::scalar::Precision;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::collective::{Collective, Together};
use crate::error::{Error, Result};
use crate::network::{Parameters, fill, host_copies};
use crate::optim::{AdamW, Moments, Schedule, clipping};
use crate::precision::{self, Forward, LossScale};
use crate::random::step_seed;
use crate::settings::Settings;
use crate::task::{Loader, Task};

/// Batches that wait for their step.
const BATCHES_AHEAD: usize = 2;
/// Largest norm of all gradients together; the usual value for fine-tuning encoders.
const MAX_GRAD_NORM: f64 = 1.0;

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
    /// Norm of all gradients before clipping; infinite where half precision overflowed and the weights stayed as they were.
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
    /// Once, before the first step: the number format, never [`Precision::Auto`].
    fn computes_in(&mut self, format: Precision);
    /// After every pass of a step but the last: a sign of work.
    fn micro_batch(&mut self);
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
    /// In half precision: the scale of the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
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
            loss_scale: None,
        }
    }

    /// Steps that changed the weights.
    fn updates(&self) -> u64 {
        self.step - self.loss_scale.map_or(0, |s| s.skipped.min(self.step))
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

/// All that training needs to go on from a place as if it had never stopped. Tensors lie on the host, and nobody changes
/// them.
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
    fit_among(task, train, validation, settings, from, None, observer)
}

/// [`fit`] by several processes that hold the same sets and settings, or by one. A step is that of one process with the
/// whole batch, up to the rounding of sums, and up to dropout, which each process draws for itself. Process 0 begins from
/// its weights or its state and the others from the same; its network holds the weights of the best epoch in the end, and
/// only its observer is given states. What any observer wants is done by all after the same step.
///
/// # Errors
/// Those of [`fit`], and [`Error::Peers`] when another process is gone.
pub fn fit_among<T: Task>(
    task: &T,
    train: &T::Set,
    validation: &T::Set,
    settings: &Settings,
    from: Option<State<T::Report>>,
    group: Option<&Collective>,
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
    let mut fit = Fit::begin(task, settings, from, group)?;
    observer.computes_in(fit.forward.format());
    let stopped_early = loop {
        if let Some(stopped_early) = fit.cursor.ended(settings) {
            break stopped_early;
        }
        let epoch = fit.cursor.epoch;
        let batches = flywheel_data::batches(&lengths, settings.batch_size, settings.seed, u64::from(epoch));
        let done = usize::try_from(fit.cursor.batch).unwrap_or(usize::MAX);
        let left = batches.get(done..).unwrap_or_default();
        let passes: Vec<&[usize]> = left.iter().flat_map(|rows| fit.passes(rows)).collect();
        prefetched(task, train, &passes, |ahead| {
            for rows in left {
                let learning_rate = schedule.rate(fit.cursor.step);
                let (loss, grad_norm) = fit.step(rows, ahead, learning_rate, observer)?;
                let seen = Step {
                    step: fit.cursor.step,
                    total_steps,
                    epoch,
                    loss,
                    learning_rate,
                    grad_norm,
                    examples: rows.len(),
                };
                let next = agreed(group, observer.step(&seen))?;
                fit.heed(next, observer)?;
            }
            Ok(())
        })?;
        let report = fit.validate(validation, observer)?;
        let score = task.score(&report, settings.metric());
        let best = fit.best_score().is_none_or(|highest| score > highest);
        // Processors may differ in a last bit; the course of all must not.
        let best = group.map_or(Ok(best), |group| group.first_says(best))?;
        let figures = fit.close_epoch(report, best)?;
        let seen = Epoch {
            epoch,
            train_loss: figures.train_loss,
            validation: &figures.validation,
            ended: figures.ended,
            best,
            last: fit.cursor.ended(settings).is_some(),
        };
        let next = agreed(group, observer.epoch(&seen))?;
        fit.heed(next, observer)?;
    };
    if let Some(group) = group {
        // Nobody leaves while another still receives.
        group.meet()?;
    }
    fit.end(stopped_early)
}

/// What all do: the most urgent of what they want. The exchange takes one short message each way, and whoever comes first
/// waits for the others here and not in the next step.
fn agreed(group: Option<&Collective>, next: Next) -> Result<Next> {
    let Some(group) = group else { return Ok(next) };
    let urgent = [Next::Stop, Next::SaveAndStop, Next::Save];
    let wanted = group.sum(&urgent.map(|one| f64::from(u8::from(one == next))))?;
    let first = urgent.into_iter().zip(wanted).find(|(_, votes)| *votes > 0.0);
    Ok(first.map_or(Next::GoOn, |(next, _)| next))
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
    outputs_among(task, set, batch_size, None, &mut || Ok(watch()))
}

/// [`outputs`] by several processes, which compute the batches in turn and then exchange the rows, or by one. `watch` must
/// say the same in all of them.
fn outputs_among<T: Task>(
    task: &T,
    set: &T::Set,
    batch_size: usize,
    group: Option<&Collective>,
    watch: &mut dyn FnMut() -> Result<ControlFlow<()>>,
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
    let batches: Vec<&[usize]> = order.chunks(batch_size.max(1)).collect();
    let (rank, size) = group.map_or((0, 1), |group| (group.rank() as usize, group.size() as usize));
    let mine: Vec<&[usize]> = batches
        .chunks(size)
        .filter_map(|round| round.get(rank))
        .copied()
        .collect();
    prefetched(task, set, &mine, |ahead| {
        for round in batches.chunks(size) {
            if let Some(places) = round.get(rank) {
                let outputs = task.rows(&task.outputs(&ahead.next()?, false)?)?;
                for (place, output) in places.iter().zip(outputs) {
                    if let Some(row) = rows.get_mut(*place) {
                        *row = output;
                    }
                }
            }
            if watch()?.is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    })?;
    if let Some(group) = group {
        group.gather(&mut rows)?;
    }
    Ok(rows)
}

/// Batches that are made ahead.
struct Ahead<B>(Receiver<Result<B>>);

impl<B> Ahead<B> {
    /// The next one.
    fn next(&mut self) -> Result<B> {
        let gone = |_| {
            Err(Error::Torch(
                "the thread that makes batches ended before the last".to_owned(),
            ))
        };
        self.0.recv().unwrap_or_else(gone)
    }
}

/// Runs this while another thread makes the batches of these places, in their order and [`BATCHES_AHEAD`] ahead: padding,
/// checking and copying to the device take no time of the steps.
fn prefetched<T: Task, R>(
    task: &T,
    set: &T::Set,
    places: &[&[usize]],
    work: impl FnOnce(&mut Ahead<T::Batch>) -> Result<R>,
) -> Result<R> {
    let loader = task.loader();
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(BATCHES_AHEAD);
        let make = move || {
            for rows in places {
                let batch = loader.batch(set, rows);
                let failed = batch.is_err();
                // Nobody receives any more where the work ended early.
                if send.send(batch).is_err() || failed {
                    break;
                }
            }
        };
        std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn_scoped(scope, make)
            .map_err(|e| Error::Torch(format!("no thread for batches: {e}")))?;
        work(&mut Ahead(receive))
    })
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
    forward: Forward,
    cursor: Cursor<T::Report>,
    /// Weights of the best epoch, on the host. Never changed in place, so states share them. Process 0 keeps them.
    best: Option<Parameters>,
    /// Where several processes train.
    together: Option<Together<'a>>,
    /// From when on time is not yet in the cursor.
    since: Instant,
}

impl<'a, T: Task> Fit<'a, T> {
    fn begin(
        task: &'a T,
        settings: &'a Settings,
        from: Option<State<T::Report>>,
        group: Option<&'a Collective>,
    ) -> Result<Self> {
        let mut optimiser = AdamW::new(task.parameters(), settings.weight_decay)?;
        let (mut cursor, best) = match from {
            None => (Cursor::start(), None),
            Some(state) => {
                fill(task.parameters(), &state.weights)?;
                optimiser.restore(state.cursor.updates(), &state.moments)?;
                (state.cursor, state.best)
            }
        };
        let device = task.parameters().values().next().map_or(Device::Cpu, Tensor::device);
        let mut format = precision::choose(settings.precision, device)?;
        if let Some(group) = group {
            // One scale holds for all gradients, so all compute in one format.
            format = group.told_by_first(&format)?;
            cursor = group.begin_alike(&cursor, Cursor::updates, task.parameters(), &mut optimiser)?;
        }
        if format == Precision::Float16 {
            cursor.loss_scale.get_or_insert_with(LossScale::start);
        }
        Ok(Self {
            task,
            settings,
            optimiser,
            forward: Forward::new(format, device),
            cursor,
            best,
            together: group.map(|group| Together::new(group, task.parameters())).transpose()?,
            since: Instant::now(),
        })
    }

    /// The rows of this process's passes over a batch.
    fn passes<'r>(&self, rows: &'r [usize]) -> impl Iterator<Item = &'r [usize]> + use<'r, T> {
        let mine = self.group().map_or(rows, |group| group.share(rows));
        // A network takes no batch of no rows: where there is none for this process, it takes one that counts for nothing.
        let computed = if mine.is_empty() {
            rows.get(..1).unwrap_or_default()
        } else {
            mine
        };
        computed.chunks(self.settings.pass())
    }

    /// One optimiser step over these rows, whose passes' batches come next; returns the loss and the norm of the gradients.
    fn step(
        &mut self,
        rows: &[usize],
        ahead: &mut Ahead<T::Batch>,
        learning_rate: f64,
        observer: &mut dyn Observer<T::Report>,
    ) -> Result<(f64, f64)> {
        let number = self.cursor.step + 1;
        let not_finite = |what, value| Error::LossNotFinite {
            step: number,
            what,
            value,
        };
        let rank = self.group().map_or(0, Collective::rank);
        tch::manual_seed(step_seed(self.settings.seed, number, u64::from(rank)));
        self.optimiser.zero_grad()?;
        let scale = self.loss_scale().map_or(1.0, |scale| scale.scale);
        let value = self.backward(rows, ahead, scale, observer)?;
        if !value.is_finite() {
            return Err(not_finite("loss", value));
        }
        let mut gradients = self.optimiser.gradients()?;
        let overflowed = self.forward.is_scaled() && gradients.unscale(scale)?;
        if let Some(known) = self.loss_scale()
            && !known.after(overflowed)
        {
            return Err(not_finite("norm of the gradients", f64::INFINITY));
        }
        let norm = if overflowed {
            f64::INFINITY
        } else {
            let norm = gradients.norm()?;
            if !norm.is_finite() {
                return Err(not_finite("norm of the gradients", norm));
            }
            self.optimiser
                .step(gradients, learning_rate, clipping(norm, MAX_GRAD_NORM))?;
            norm
        };
        self.cursor.step = number;
        self.cursor.batch += 1;
        self.cursor.loss_sum += value;
        Ok((value, norm))
    }

    /// Forward and backward over a batch, in as many passes as the micro-batches need; returns the batch's mean loss. Where
    /// that is finite, gradients are those of the mean, times `scale`.
    fn backward(
        &mut self,
        rows: &[usize],
        ahead: &mut Ahead<T::Batch>,
        scale: f64,
        observer: &mut dyn Observer<T::Report>,
    ) -> Result<f64> {
        let counts = self.group().is_none_or(|group| !group.share(rows).is_empty());
        let mut value = 0.0;
        let mut passes = self.passes(rows).peekable();
        while let Some(part) = passes.next() {
            let weight = if counts {
                part.len() as f64 / rows.len() as f64
            } else {
                0.0
            };
            let loss = self.forward.loss(self.task, &ahead.next()?)?;
            let scaled = precision::scaled(&loss, weight * scale)?;
            // Read before the backward where the others must know, and after it where a GPU can run on meanwhile.
            let known = |value: f64| -> Result<f64> {
                let this = if counts { loss.f_double_value(&[])? } else { 0.0 };
                Ok(value + weight * this)
            };
            match &mut self.together {
                Some(together) if passes.peek().is_none() => {
                    return together.last_backward(&scaled, known(value)?);
                }
                _ => scaled.f_backward()?,
            }
            value = known(value)?;
            if passes.peek().is_some() {
                observer.micro_batch();
            }
        }
        Ok(value)
    }

    /// The scale of the loss, in half precision.
    fn loss_scale(&mut self) -> Option<&mut LossScale> {
        self.cursor.loss_scale.as_mut().filter(|_| self.forward.is_scaled())
    }

    fn group(&self) -> Option<&'a Collective> {
        self.together.as_ref().map(|together| together.group)
    }

    fn validate(&mut self, set: &T::Set, observer: &mut dyn Observer<T::Report>) -> Result<T::Report> {
        let (group, mut next) = (self.group(), Next::GoOn);
        let mut watch = || {
            next = agreed(group, observer.validating())?;
            Ok(match next {
                Next::GoOn | Next::Save => ControlFlow::Continue(()),
                Next::Stop | Next::SaveAndStop => ControlFlow::Break(()),
            })
        };
        let rows = outputs_among(self.task, set, self.settings.pass(), group, &mut watch);
        if matches!(rows, Err(Error::Interrupted)) {
            self.heed(next, observer)?;
        }
        self.task.report(set, &rows?)
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
            if self.keeps() {
                self.best = Some(host_copies(self.task.parameters())?);
            }
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

    /// Whether this process keeps states and best weights.
    fn keeps(&self) -> bool {
        self.group().is_none_or(Collective::is_first)
    }

    /// Does what the observer wants.
    fn heed(&mut self, next: Next, observer: &mut dyn Observer<T::Report>) -> Result<()> {
        if matches!(next, Next::Save | Next::SaveAndStop) && self.keeps() {
            observer.state(self.state()?);
        }
        match next {
            Next::GoOn | Next::Save => Ok(()),
            Next::Stop | Next::SaveAndStop => Err(Error::Interrupted),
        }
    }

    fn state(&mut self) -> Result<State<T::Report>> {
        self.note_time();
        let over = self.cursor.ended(self.settings).is_some();
        if over {
            // Memory is short while a state is written, and these are not needed any more.
            self.optimiser.zero_grad()?;
        }
        let shared = |weights: &Parameters| -> Parameters {
            let shared = weights
                .iter()
                .map(|(name, weight)| (name.clone(), weight.shallow_clone()));
            shared.collect()
        };
        let just_best = self.cursor.batch == 0 && self.cursor.best_epoch == Some(self.cursor.done());
        Ok(State {
            cursor: self.cursor.clone(),
            weights: match &self.best {
                Some(best) if just_best => shared(best),
                _ => host_copies(self.task.parameters())?,
            },
            moments: if over {
                self.optimiser.last_moments()?
            } else {
                self.optimiser.moments()?
            },
            best: self.best.as_ref().map(shared),
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
        if self.keeps() {
            fill(self.task.parameters(), self.best.as_ref().ok_or_else(lacking)?)?;
        }
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
