//! Data profile: exact integer histograms that add up, so that live traffic can be compared with the training data.

use serde::{Deserialize, Serialize};

/// Buckets of the hashed vocabulary.
pub const VOCABULARY_BUCKETS: usize = 128;
/// Upper edges (exclusive) of the token-length bins; one more bin takes the rest.
pub const LENGTH_EDGES: [f64; 15] = [
    4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0, 512.0,
];
/// Upper edges (exclusive) of the confidence bins; one more bin takes the rest.
pub const CONFIDENCE_EDGES: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Counts over stored bin edges. `counts` has one entry more than `edges`: bin i holds values below `edges[i]` and at
/// least `edges[i-1]`; the last bin holds the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Histogram {
    /// Upper edges, ascending.
    pub edges: Vec<f64>,
    /// Counts.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// An empty histogram over these edges.
    #[must_use]
    pub fn new(edges: &[f64]) -> Self {
        Self {
            edges: edges.to_vec(),
            counts: vec![0; edges.len() + 1],
        }
    }

    /// Counts one value; a NaN goes to the last bin.
    pub fn add(&mut self, value: f64) {
        let bin = self.edges.iter().position(|e| value < *e).unwrap_or(self.edges.len());
        if let Some(count) = self.counts.get_mut(bin) {
            *count += 1;
        }
    }

    /// Adds another histogram's counts; `false`, and nothing changed, where the edges differ.
    pub fn merge(&mut self, other: &Self) -> bool {
        if self.edges != other.edges || self.counts.len() != other.counts.len() {
            return false;
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        true
    }
}

/// `data_profile.json`: what the test set looked like to the model of this artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataProfile {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Texts counted.
    pub texts: u64,
    /// Tokens per text, after truncation, special tokens included.
    pub length: Histogram,
    /// Tokens by hash of their id, [`VOCABULARY_BUCKETS`] buckets ([`vocabulary_bucket`]).
    pub vocabulary: Vec<u64>,
    /// Highest probability per text.
    pub confidence: Histogram,
    /// Answers per class index.
    pub classes: Vec<u64>,
}

impl DataProfile {
    /// An empty profile for this many classes.
    #[must_use]
    pub fn new(classes: usize) -> Self {
        Self {
            schema_version: crate::SCHEMA_VERSION,
            texts: 0,
            length: Histogram::new(&LENGTH_EDGES),
            vocabulary: vec![0; VOCABULARY_BUCKETS],
            confidence: Histogram::new(&CONFIDENCE_EDGES),
            classes: vec![0; classes],
        }
    }

    /// Counts one text by its token ids and the probabilities of its answer.
    pub fn add(&mut self, ids: &[i64], probabilities: &[f32]) {
        self.texts += 1;
        #[allow(clippy::cast_precision_loss, reason = "texts have far fewer than 2^52 tokens")]
        self.length.add(ids.len() as f64);
        for id in ids {
            if let Some(count) = self.vocabulary.get_mut(vocabulary_bucket(*id)) {
                *count += 1;
            }
        }
        if let Some((class, confidence)) = most_probable(probabilities) {
            self.confidence.add(f64::from(confidence));
            if let Some(count) = self.classes.get_mut(class) {
                *count += 1;
            }
        }
    }
}

/// Class and probability of an answer; none without classes.
#[must_use]
pub fn most_probable(probabilities: &[f32]) -> Option<(usize, f32)> {
    let classes = probabilities.iter().copied().enumerate();
    classes.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Bucket of a token id: SplitMix64's finaliser, so that neighbouring ids spread (Steele, Lea, Flood, 2014).
#[must_use]
pub fn vocabulary_bucket(id: i64) -> usize {
    let mut z = id.cast_unsigned().wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    usize::try_from(z % VOCABULARY_BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up_to_the_same_as_counting_together() {
        let values = [-1.0, 0.0, 0.1, 0.35, 0.9, 1.0, f64::NAN];
        let mut whole = Histogram::new(&CONFIDENCE_EDGES);
        let (mut left, mut right) = (whole.clone(), whole.clone());
        for (i, v) in values.iter().enumerate() {
            whole.add(*v);
            if i % 2 == 0 { left.add(*v) } else { right.add(*v) }
        }
        assert!(left.merge(&right));
        assert_eq!(left, whole);
        assert_eq!(whole.counts, [2, 1, 0, 1, 0, 0, 0, 0, 0, 3]);
        assert!(!left.merge(&Histogram::new(&LENGTH_EDGES)), "other edges are refused");
    }

    #[test]
    fn buckets_are_fixed_for_good_and_spread() {
        assert_eq!([0, 1, 101, 30_521].map(vocabulary_bucket), [47, 65, 23, 74]);
        let mut counts = [0_u32; VOCABULARY_BUCKETS];
        for id in 0..30_522 {
            counts[vocabulary_bucket(id)] += 1;
        }
        assert!(counts.iter().all(|c| (150..350).contains(c)), "{counts:?}");
    }
}
