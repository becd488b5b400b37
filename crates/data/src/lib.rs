//! Data sets: reading, cleaning, splitting, checking, tokenising, length buckets, profiling.
//!
//! Files come in as paths on the local disk ([`SourceFile`]; fetching them is the store's business), token ids and
//! labels go out ([`EncodedSet`]). Everything here is a function of its arguments: the same bytes, the same settings and
//! the same seed give the same sets on any machine and in any later version. No tensors, no network, no Kubernetes.

mod batch;
mod checks;
mod clean;
mod encoded;
mod error;
mod feedback;
mod near_duplicates;
mod prepare;
mod random;
mod read;
mod split;
mod tokenize;

pub use batch::batches;
pub use checks::{Finding, check_limits, findings};
pub use clean::clean_text;
pub use encoded::EncodedSet;
pub use error::{DataError, Result};
pub use feedback::{Joined, LEAST_HELD_OUT, LEAST_JUDGEMENTS, hold_out, join_feedback};
pub use prepare::{Prepared, SourceFile, SourceFiles, TextSet, dataset_digest, prepare, profile};
pub use read::{format_of, read_rows};
pub use split::{Part, split_rows};
pub use tokenize::{EncodedText, TextTokenizer, VOCABULARY_FILE};

/// Most bytes of one source file: 1 GiB.
pub const SOURCE_MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Most rows of a data set, over all of its files.
pub const MAX_ROWS: u64 = flywheel_contract::dataset::ROWS_MAX as u64;
/// Most bytes of one text: 64 KiB, far beyond what any encoder here reads.
pub const TEXT_MAX_BYTES: usize = 64 * 1024;
/// Most bytes of one label.
pub const LABEL_MAX_BYTES: usize = 256;
/// Most labels.
pub const MAX_LABELS: usize = 10_000;
/// Most bytes of a tokenizer file: 64 MiB, four times XLM-RoBERTa's.
pub const TOKENIZER_MAX_BYTES: u64 = 64 * 1024 * 1024;
