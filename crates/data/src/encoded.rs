//! What leaves this crate for training: token ids and labels, no texts and no tensors.

/// Examples ready for a network: one row of token ids and one label each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedSet {
    /// Token ids of each row, special tokens included, not padded; `[rows][1..=max length]`.
    pub ids: Vec<Vec<i64>>,
    /// Index of each row's label in the sorted list of labels; as many as `ids`.
    pub labels: Vec<i64>,
}

impl EncodedSet {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Tokens of each row, for [`crate::batches`].
    pub fn lengths(&self) -> Vec<usize> {
        self.ids.iter().map(Vec::len).collect()
    }
}
