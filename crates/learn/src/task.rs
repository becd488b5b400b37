//! What a model is made to do. A [`Task`] fixes inputs, outputs, loss and metrics; the loop in [`crate::train`] knows
//! nothing else of it.

use flywheel_contract::hyperparameters::StoppingMetric;
use flywheel_data::EncodedSet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Reduction, Tensor};

use crate::config::EncoderConfig;
use crate::error::Result;
use crate::evaluate::{Evaluation, evaluate};
use crate::network::{Parameters, SequenceClassifier, TokenBatch, rows_of};

/// Target that the loss passes over; no label has it.
const IGNORED: i64 = -100;

/// One kind of training over a network that the task owns.
pub trait Task {
    /// Examples of a set, without tensors.
    type Set: Sync;
    /// Some examples as tensors on the network's device.
    type Batch: Send;
    /// Makes batches, without the network.
    type Loader: Loader<Self::Set, Self::Batch>;
    /// Figures of a labelled set.
    type Report: Clone + Serialize + DeserializeOwned;

    /// Weights to train, by name; changing them in place changes the network.
    fn parameters(&self) -> &Parameters;

    /// Size of every example (tokens), by which batches are put together; as many as the set has.
    fn lengths(&self, set: &Self::Set) -> Vec<usize>;

    /// What makes this network's batches.
    fn loader(&self) -> Self::Loader;

    /// Outputs of the network, [B, …]. `train` turns dropout on.
    ///
    /// # Errors
    /// What libtorch refuses.
    fn outputs(&self, batch: &Self::Batch, train: bool) -> Result<Tensor>;

    /// Mean loss of a batch, a scalar.
    ///
    /// # Errors
    /// What libtorch refuses.
    fn loss(&self, outputs: &Tensor, batch: &Self::Batch) -> Result<Tensor>;

    /// Outputs as plain numbers, one row per example of the batch.
    ///
    /// # Errors
    /// What libtorch refuses.
    fn rows(&self, outputs: &Tensor) -> Result<Vec<Vec<f32>>>;

    /// Figures of a set from the rows of all its outputs, in the set's order.
    ///
    /// # Errors
    /// [`crate::Error::Evaluation`] when they do not belong together.
    fn report(&self, set: &Self::Set, outputs: &[Vec<f32>]) -> Result<Self::Report>;

    /// The figure by which epochs are compared; higher is better.
    fn score(&self, report: &Self::Report, metric: StoppingMetric) -> f64;
}

/// Makes batches, on any thread.
pub trait Loader<Set, Batch>: Send {
    /// A batch of the examples at these places.
    ///
    /// # Errors
    /// [`crate::Error::Row`] for an example that cannot be fed.
    fn batch(&self, set: &Set, rows: &[usize]) -> Result<Batch>;
}

/// One text in, one of several labels out: an encoder with a softmax over classes and cross-entropy.
pub struct TextClassification {
    network: SequenceClassifier,
}

/// Rows and their labels.
pub struct LabelledBatch {
    tokens: TokenBatch,
    /// Class index of each row, [B], i64.
    labels: Tensor,
}

/// Pads texts to the longest of their batch.
pub struct LabelledTexts {
    config: EncoderConfig,
    device: Device,
}

impl Loader<EncodedSet, LabelledBatch> for LabelledTexts {
    fn batch(&self, set: &EncodedSet, rows: &[usize]) -> Result<LabelledBatch> {
        let ids: Vec<&[i64]> = rows.iter().filter_map(|r| set.ids.get(*r)).map(Vec::as_slice).collect();
        let labels: Vec<i64> = rows.iter().filter_map(|r| set.labels.get(*r)).copied().collect();
        let tokens = TokenBatch::pad(&ids, &self.config, self.device)?;
        Ok(LabelledBatch {
            tokens,
            labels: Tensor::f_from_slice(&labels)?.f_to_device(self.device)?,
        })
    }
}

impl TextClassification {
    /// The task over this network.
    #[must_use]
    pub fn new(network: SequenceClassifier) -> Self {
        Self { network }
    }

    /// Its network.
    #[must_use]
    pub fn network(&self) -> &SequenceClassifier {
        &self.network
    }
}

impl Task for TextClassification {
    type Set = EncodedSet;
    type Batch = LabelledBatch;
    type Loader = LabelledTexts;
    type Report = Evaluation;

    fn parameters(&self) -> &Parameters {
        self.network.parameters()
    }

    fn lengths(&self, set: &EncodedSet) -> Vec<usize> {
        set.lengths()
    }

    fn loader(&self) -> LabelledTexts {
        LabelledTexts {
            config: self.network.config().clone(),
            device: self.network.device(),
        }
    }

    fn outputs(&self, batch: &LabelledBatch, train: bool) -> Result<Tensor> {
        self.network.logits(&batch.tokens, train)
    }

    fn loss(&self, outputs: &Tensor, batch: &LabelledBatch) -> Result<Tensor> {
        // In single precision whatever the network computes in.
        let outputs = outputs.f_to_kind(Kind::Float)?;
        Ok(outputs.f_cross_entropy_loss(&batch.labels, None::<Tensor>, Reduction::Mean, IGNORED, 0.0)?)
    }

    fn rows(&self, outputs: &Tensor) -> Result<Vec<Vec<f32>>> {
        rows_of(outputs)
    }

    fn report(&self, set: &EncodedSet, outputs: &[Vec<f32>]) -> Result<Evaluation> {
        Ok(evaluate(outputs, &set.labels)?)
    }

    fn score(&self, report: &Evaluation, metric: StoppingMetric) -> f64 {
        report.score(metric)
    }
}
