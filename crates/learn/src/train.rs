//! The training loop: batches, steps, validation, early stopping, best weights. It knows a [`Task`], not a model; it
//! reads no files and talks to nobody but its [`Observer`].

use std::ops::ControlFlow;

use flywheel_contract::hyperparameters::{EarlyStopping, Hyperparameters, StoppingMetric};
use flywheel_contract::scalar::Decimal;
use tch::Tensor;

use crate::error::{Error, Result};
use crate::optim::{AdamW, Schedule};
use crate::task::Task;

/// Largest norm of all gradients together; the usual value for fine-tuning encoders.
const MAX_GRAD_NORM: f64 = 1.0;
/// Sets dropout's random numbers apart from those of initialisation, which come from the same seed.
const DROPOUT_STREAM: i64 = 0x1e37_79b9_7f4a_7c15;

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
    /// Whether it is the best so far.
    pub best: bool,
}

/// Sees training go by and may stop it by [`ControlFlow::Break`].
pub trait Observer<R> {
    /// After every step. Must return quickly.
    fn step(&mut self, step: &Step) -> ControlFlow<()>;
    /// After every validation.
    fn epoch(&mut self, epoch: &Epoch<'_, R>) -> ControlFlow<()>;
}

/// How training ended. The network holds the weights of the best epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<R> {
    /// Epoch whose weights are kept, from 1.
    pub best_epoch: u32,
    /// Validation figures of those weights.
    pub validation: R,
    /// Epochs done.
    pub epochs: u32,
    /// Steps done.
    pub steps: u64,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
}

/// Trains a task's network in place. With one thread on a CPU the same inputs give the same weights bit for bit.
///
/// # Errors
/// [`Error::EmptySet`], [`Error::LossNotFinite`] with the step, [`Error::Interrupted`] when the observer stops it, and
/// what the task and libtorch refuse. After an error the weights are those of some step.
pub fn fit<T: Task>(
    task: &T,
    train: &T::Set,
    validation: &T::Set,
    settings: &Settings,
    observer: &mut dyn Observer<T::Report>,
) -> Result<Outcome<T::Report>> {
    let lengths = task.lengths(train);
    if lengths.is_empty() {
        return Err(Error::EmptySet("training"));
    }
    if task.lengths(validation).is_empty() {
        return Err(Error::EmptySet("validation"));
    }
    tch::manual_seed(settings.seed ^ DROPOUT_STREAM);
    let steps_per_epoch = lengths.len().div_ceil(settings.batch_size) as u64;
    let total_steps = steps_per_epoch * u64::from(settings.epochs);
    let schedule = Schedule::new(settings.learning_rate, settings.warmup_ratio, total_steps);
    let mut optimiser = AdamW::new(task.parameters(), settings.weight_decay)?;
    let mut done = 0;
    let mut best: Option<Best<T::Report>> = None;
    let mut epoch = 0;
    let stopped_early = loop {
        epoch += 1;
        let (mut loss_sum, mut batches) = (0.0, 0.0);
        for rows in flywheel_data::batches(&lengths, settings.batch_size, settings.seed, u64::from(epoch)) {
            let learning_rate = schedule.rate(done);
            done += 1;
            let (loss, grad_norm) = step(task, train, &rows, &mut optimiser, learning_rate, done)?;
            loss_sum += loss;
            batches += 1.0;
            let examples = rows.len();
            let seen = Step {
                step: done,
                total_steps,
                epoch,
                loss,
                learning_rate,
                grad_norm,
                examples,
            };
            if observer.step(&seen).is_break() {
                return Err(Error::Interrupted { step: done });
            }
        }
        let report = evaluate(task, validation, settings.batch_size)?;
        let score = task.score(&report, settings.metric());
        let is_best = best.as_ref().is_none_or(|b| score > b.score);
        let seen = Epoch {
            epoch,
            train_loss: loss_sum / batches,
            validation: &report,
            best: is_best,
        };
        let go_on = observer.epoch(&seen);
        if is_best {
            best = Some(Best {
                epoch,
                score,
                weights: snapshot(task)?,
                report,
            });
        }
        if go_on.is_break() {
            return Err(Error::Interrupted { step: done });
        }
        let idle = epoch - best.as_ref().map_or(epoch, |b| b.epoch);
        let patience = settings
            .early_stopping
            .as_ref()
            .and_then(|s| u32::try_from(s.patience).ok());
        if patience.is_some_and(|p| idle >= p) && epoch < settings.epochs {
            break true;
        }
        if epoch >= settings.epochs {
            break false;
        }
    };
    // One epoch at least was validated, and the first is the best so far by definition.
    let best = best.ok_or(Error::EmptySet("validation"))?;
    restore(task, &best.weights)?;
    Ok(Outcome {
        best_epoch: best.epoch,
        validation: best.report,
        epochs: epoch,
        steps: done,
        stopped_early,
    })
}

/// Figures of a set with the present weights.
///
/// # Errors
/// [`Error::EmptySet`] and what the task and libtorch refuse.
pub fn evaluate<T: Task>(task: &T, set: &T::Set, batch_size: usize) -> Result<T::Report> {
    task.report(set, &outputs(task, set, batch_size)?)
}

/// Outputs of a whole set with the present weights, one row of numbers per example, in the set's order.
///
/// # Errors
/// [`Error::EmptySet`] and what the task and libtorch refuse.
pub fn outputs<T: Task>(task: &T, set: &T::Set, batch_size: usize) -> Result<Vec<Vec<f32>>> {
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
    }
    Ok(rows)
}

/// One optimiser step; returns loss and norm of the gradients.
fn step<T: Task>(
    task: &T,
    set: &T::Set,
    rows: &[usize],
    optimiser: &mut AdamW,
    learning_rate: f64,
    number: u64,
) -> Result<(f64, f64)> {
    let not_finite = |what, value| Error::LossNotFinite {
        step: number,
        what,
        value,
    };
    let batch = task.batch(set, rows)?;
    let loss = task.loss(&task.outputs(&batch, true)?, &batch)?;
    let value = loss.f_double_value(&[])?;
    if !value.is_finite() {
        return Err(not_finite("loss", value));
    }
    optimiser.zero_grad()?;
    loss.f_backward()?;
    let norm = optimiser.clip(MAX_GRAD_NORM)?;
    if !norm.is_finite() {
        return Err(not_finite("norm of the gradients", norm));
    }
    optimiser.step(learning_rate)?;
    Ok((value, norm))
}

/// The best epoch so far.
struct Best<R> {
    epoch: u32,
    score: f64,
    weights: Vec<Tensor>,
    report: R,
}

/// A copy of all weights, in the order of their names.
fn snapshot<T: Task>(task: &T) -> Result<Vec<Tensor>> {
    let _no_grad = tch::no_grad_guard();
    let copies = task.parameters().values().map(|weight| {
        let mut copy = weight.f_detach()?.f_empty_like()?;
        copy.f_copy_(weight)?;
        Ok(copy)
    });
    copies.collect()
}

fn restore<T: Task>(task: &T, weights: &[Tensor]) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    for (weight, copy) in task.parameters().values().zip(weights) {
        weight.shallow_clone().f_copy_(copy)?;
    }
    Ok(())
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
