//! Random choices that stay the same for good: ChaCha8 with an own shuffle, since `rand` may change its sampling.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A generator for one use (`stream`) of one seed. Streams of one seed are independent.
pub(crate) fn generator(seed: i64, stream: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    for (to, from) in key.iter_mut().zip(seed.to_le_bytes()) {
        *to = from;
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(stream);
    rng
}

/// Uniform in `0..bound`; 0 for bound 0. Lemire's multiplication with rejection (2019), so without bias.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    if bound == 0 {
        return 0;
    }
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        #[allow(clippy::cast_possible_truncation, reason = "the low half is what is meant")]
        let low = product as u64;
        if low >= threshold {
            #[allow(clippy::cast_possible_truncation, reason = "the high half of 128 bits has 64")]
            return (product >> 64) as u64;
        }
    }
}

/// Fisher and Yates' shuffle.
pub(crate) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        let j = usize::try_from(below(rng, i as u64 + 1)).unwrap_or(i);
        items.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_same_for_good() {
        let mut items: Vec<u32> = (0..10).collect();
        shuffle(&mut generator(42, 7), &mut items);
        assert_eq!(items, PINNED, "a change here would change every user's split");
        let mut other: Vec<u32> = (0..10).collect();
        shuffle(&mut generator(42, 8), &mut other);
        assert_ne!(items, other, "streams differ");
    }

    const PINNED: [u32; 10] = [0, 2, 3, 4, 9, 6, 8, 7, 5, 1];

    #[test]
    fn every_place_is_reached_about_equally_often() {
        let mut counts = [[0_u32; 5]; 5];
        for seed in 0..5000 {
            let mut items = [0, 1, 2, 3, 4];
            shuffle(&mut generator(seed, 0), &mut items);
            for (place, item) in items.iter().enumerate() {
                counts[place][*item] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|c| (850..1150).contains(c)), "{counts:?}");
    }
}
