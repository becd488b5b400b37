//! How a model is trained.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Decimal, Precision, Uri};

/// What the weights start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.pretrained) != has(self.fromVersion)",
    "message": "give exactly one of pretrained and fromVersion",
    "reason": "FieldValueInvalid"
}]))]
pub struct Model {
    /// A pretrained encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<Pretrained>,
    /// Name of a ModelVersion to go on from: architecture, tokenizer and weights are its, and of the last layer the rows of the labels
    /// that it knows. Its artifact must be readable with `storage` of this job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub from_version: Option<String>,
}

/// A folder in Hugging Face's layout: `config.json`, `model.safetensors`, and `tokenizer.json` or `vocab.txt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pretrained {
    /// Where the folder lies. The architecture is read from its `config.json`.
    pub uri: Uri,
}

/// Measure that early stopping and the choice of the best epoch look at, on the validation set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StoppingMetric {
    /// Share of right answers; higher is better.
    #[default]
    Accuracy,
    /// Mean F1 over labels; higher is better.
    MacroF1,
    /// Cross-entropy; lower is better.
    Loss,
}

/// Ends training when the validation metric no longer improves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EarlyStopping {
    /// The measure looked at.
    #[serde(default)]
    pub metric: StoppingMetric,
    /// Epochs without improvement after which training ends.
    #[schemars(range(min = 1, max = 100))]
    pub patience: i32,
}

/// Settings of the optimiser and the loop. AdamW; the learning rate rises over the warm-up and then falls to zero, linearly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Hyperparameters {
    /// Passes over the training set.
    #[schemars(range(min = 1, max = 1000))]
    pub epochs: i32,
    /// Examples per optimiser step, over all GPUs.
    #[schemars(range(min = 1, max = 4096))]
    pub batch_size: i32,
    /// Examples that a GPU (or a pod without one) computes at once, to bound memory: the gradients of a step are added up over
    /// as many passes as its share of `batchSize` takes. Without it the share is one pass.
    #[schemars(range(min = 1, max = 4096))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<i32>,
    /// Keep each layer's input alone for the backward pass and compute the layer again there: memory for long texts or large
    /// batches, for about a third more time.
    pub activation_checkpointing: bool,
    /// Highest learning rate. `2e-5` suits BERT-base; small encoders such as MiniLM need `1e-4`.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) > 0.0 && double(self) <= 1.0",
        "message": "learningRate must be above 0 and at most 1",
        "reason": "FieldValueInvalid"
    }]))]
    pub learning_rate: Decimal,
    /// Decoupled weight decay; biases and layer norms are left out.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) >= 0.0 && double(self) <= 1.0",
        "message": "weightDecay must lie between 0 and 1",
        "reason": "FieldValueInvalid"
    }]))]
    pub weight_decay: Decimal,
    /// Share of all steps over which the learning rate rises.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) >= 0.0 && double(self) <= 0.9",
        "message": "warmupRatio must lie between 0 and 0.9",
        "reason": "FieldValueInvalid"
    }]))]
    pub warmup_ratio: Decimal,
    /// Dropout probability in encoder and head.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "double(self) >= 0.0 && double(self) <= 0.9",
        "message": "dropout must lie between 0 and 0.9",
        "reason": "FieldValueInvalid"
    }]))]
    pub dropout: Decimal,
    /// Number format of the forward and backward pass; `status.precision` says what was chosen.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self != 'Int8'",
        "message": "Int8 is for serving; train in Auto, Float32, BFloat16 or Float16",
        "reason": "FieldValueInvalid"
    }]))]
    pub precision: Precision,
    /// Tokens per text; longer texts are cut (and counted).
    #[schemars(range(min = 8, max = 8192))]
    pub max_length: i32,
    /// Seed of initialisation, order and dropout.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub seed: i64,
    /// Ends training early; without it all epochs run. The best epoch's weights are kept either way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self {
            epochs: 4,
            batch_size: 16,
            micro_batch_size: None,
            activation_checkpointing: false,
            learning_rate: Decimal::from("2e-5"),
            weight_decay: Decimal::from("0.01"),
            warmup_ratio: Decimal::from("0.1"),
            dropout: Decimal::from("0.1"),
            precision: Precision::Auto,
            max_length: 256,
            seed: 42,
            early_stopping: None,
        }
    }
}
