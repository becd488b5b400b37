//! What the engine needs of a model: texts to token ids, token ids to probabilities.

use std::sync::Arc;

use flywheel_contract::failure::Failure;
use flywheel_contract::profile::{Answer, DataProfile};
use flywheel_contract::scalar::Precision;
use flywheel_contract::serving::{Agreement, Likeness};

/// Turns texts into token ids; shared by many threads.
pub trait Encode: Send + Sync {
    /// Token ids of one text, special tokens included, at most as many as the model reads.
    ///
    /// # Errors
    /// A sentence about the tokenizer, never about the text.
    fn encode(&self, text: &str) -> Result<Vec<i64>, String>;
}

/// One copy of a model, owned by one thread.
pub trait Model: Send {
    /// Readies the calling thread and computes something known. Called once before the first request, and again after a
    /// failure, to see whether the device still works.
    ///
    /// # Errors
    /// Why it does not.
    fn warm_up(&mut self) -> Result<(), Failure>;

    /// Probability of each label for each row of token ids, in the order of the rows, and where the version's profile has
    /// projections those of each row.
    ///
    /// # Errors
    /// Why it could not be computed.
    fn predict(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Answer>, Failure>;
}

/// A version that can answer.
pub struct LoadedVersion {
    /// Labels by class index.
    pub labels: Vec<String>,
    /// Its tokenizer.
    pub encoder: Arc<dyn Encode>,
    /// Format in which it computes.
    pub precision: Precision,
    /// How its answers compare with those in single precision, if it came with some.
    pub agreement: Option<Agreement>,
    /// How they compare with those of the version that answers, where that was asked for.
    pub likeness: Option<Likeness>,
    /// Its data profile, in whose bins live traffic is counted.
    pub profile: DataProfile,
    /// Most tokens that are computed together; a single text may have more.
    pub batch_tokens: usize,
    /// One copy per worker thread; at least one.
    pub models: Vec<Box<dyn Model>>,
}
