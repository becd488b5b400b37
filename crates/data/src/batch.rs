//! Which rows go into which batch.

use crate::random::{generator, shuffle};

/// Batches per bucket: rows are shuffled, and only rows of one bucket are sorted by length. Larger buckets pad less and
/// shuffle less.
const BUCKET_BATCHES: usize = 50;

/// Rows of one epoch in batches of alike length: a shuffle by seed and epoch, cut into buckets of 50 batches, sorted by
/// length within each, cut into batches, and the batches shuffled. Every row is in exactly one batch; there are
/// `ceil(rows / batch_size)` batches, all full but one. A batch size of 0 counts as 1.
#[must_use]
pub fn batches(lengths: &[usize], batch_size: usize, seed: i64, epoch: u64) -> Vec<Vec<usize>> {
    let size = batch_size.max(1);
    // Stream 0 is left to others; epochs count from 0 or 1, both are fine.
    let mut rng = generator(seed, epoch.wrapping_add(1));
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    shuffle(&mut rng, &mut order);
    let mut out = Vec::with_capacity(lengths.len().div_ceil(size));
    for bucket in order.chunks_mut(size.saturating_mul(BUCKET_BATCHES)) {
        // Stable, so that rows of equal length keep their shuffled order.
        bucket.sort_by_key(|row| std::cmp::Reverse(lengths.get(*row).copied().unwrap_or(0)));
        out.extend(bucket.chunks(size).map(<[usize]>::to_vec));
    }
    shuffle(&mut rng, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_row_is_in_one_batch(lengths in prop::collection::vec(1_usize..300, 0..700), size in 1_usize..40, seed in 0_i64..1000, epoch in 0_u64..5) {
            let made = batches(&lengths, size, seed, epoch);
            prop_assert_eq!(made.len(), lengths.len().div_ceil(size));
            prop_assert!(made.iter().filter(|b| b.len() != size).count() <= 1);
            let mut rows: Vec<usize> = made.concat();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert_eq!(&made, &batches(&lengths, size, seed, epoch));
        }
    }

    #[test]
    fn batches_hold_rows_of_alike_length_and_differ_by_epoch() {
        let lengths: Vec<usize> = (0..3200).map(|i| (i * 7919) % 256 + 1).collect();
        let padded = |batches: &[Vec<usize>]| -> usize {
            batches
                .iter()
                .map(|b| b.len() * b.iter().map(|i| lengths[*i]).max().unwrap_or(0))
                .sum()
        };
        let real: usize = lengths.iter().sum();
        let first = batches(&lengths, 16, 1, 0);
        assert!(
            padded(&first) < real * 11 / 10,
            "{} padded, {real} real",
            padded(&first)
        );
        let second = batches(&lengths, 16, 1, 1);
        assert_ne!(first, second);
        assert!(
            first.iter().any(|b| b.len() == 16 && lengths[b[0]] < 100) && lengths[first[0][0]] != lengths[first[1][0]]
        );
    }
}
