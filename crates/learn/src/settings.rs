//! Hyperparameters, checked.

use flywheel_contract::hyperparameters::{EarlyStopping, Hyperparameters, StoppingMetric};
use flywheel_contract::scalar::{Decimal, Precision};

use crate::error::{Error, Result};

/// How to train, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Passes over the training set, at least 1.
    pub epochs: u32,
    /// Examples per step, at least 1.
    pub batch_size: usize,
    /// Examples of one forward and backward pass, at least 1; the gradients of a step's passes are added up.
    pub micro_batch_size: usize,
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
    /// Number format of the forward and backward pass, as it is asked for.
    pub precision: Precision,
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
        if h.precision == Precision::Int8 {
            return Err(Error::Setting(
                "precision is Int8, which is for serving; train in Auto, Float32, BFloat16 or Float16".into(),
            ));
        }
        let batch_size = count("batchSize", h.batch_size)?;
        let micro_batch_size = match h.micro_batch_size {
            Some(size) => count("microBatchSize", size)?,
            None => batch_size,
        };
        Ok(Self {
            epochs: count("epochs", h.epochs)?,
            batch_size: batch_size as usize,
            micro_batch_size: micro_batch_size as usize,
            learning_rate: learning_rate(&h.learning_rate)?,
            weight_decay: within("weightDecay", &h.weight_decay, 0.0, 1.0)?,
            warmup_ratio: within("warmupRatio", &h.warmup_ratio, 0.0, 0.9)?,
            seed: h.seed,
            early_stopping: h.early_stopping.clone(),
            precision: h.precision,
        })
    }

    /// Most examples that are computed at once in training and validation, at least 1.
    #[must_use]
    pub fn pass(&self) -> usize {
        self.micro_batch_size.min(self.batch_size).max(1)
    }

    /// The measure by which epochs are compared: that of early stopping, or accuracy.
    pub(crate) fn metric(&self) -> StoppingMetric {
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

fn learning_rate(value: &Decimal) -> Result<f64> {
    let checked = value.value().filter(|v| *v > 0.0 && *v <= 1.0);
    checked.ok_or_else(|| Error::Setting(format!("learningRate is {value}, not a number above 0 and at most 1")))
}

fn within(field: &str, value: &Decimal, low: f64, high: f64) -> Result<f64> {
    let checked = value.value().filter(|v| (low..=high).contains(v));
    checked.ok_or_else(|| Error::Setting(format!("{field} is {value}, not a number from {low} to {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_the_field_that_is_out_of_bounds() {
        Settings::new(&Hyperparameters::default()).unwrap();
        type Change = fn(&mut Hyperparameters);
        let bad: [(&str, Change); 8] = [
            ("epochs is 0", |h| h.epochs = 0),
            ("precision is Int8", |h| h.precision = Precision::Int8),
            ("batchSize is -1", |h| h.batch_size = -1),
            ("microBatchSize is 0", |h| h.micro_batch_size = Some(0)),
            ("learningRate is 0", |h| h.learning_rate = "0".into()),
            ("learningRate is fast, not a number above 0 and at most 1", |h| {
                h.learning_rate = "fast".into()
            }),
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
