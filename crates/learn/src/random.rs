//! Random numbers that are functions of what they are for: no generator whose state would have to be saved.

/// Added to SplitMix64's state at each step: 2^64 over the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// Sets the seeds of steps apart from all else that begins at a job's seed.
const STEPS: u64 = 0x5354_4550_5353_4545;

/// SplitMix64 (Steele, Lea, Flood, 2014): the state counts up, each number is a mix of it.
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Seed of libtorch's generator for one step of one process (`rank`). As every step begins from a seed of its own, the
/// step's number is all of the generator that has to be saved.
///
/// libtorch's CPU generator keeps the lower half of it, so two steps may meet by chance; they would drop the same
/// positions of different batches, once.
pub(crate) fn step_seed(seed: i64, step: u64, rank: u64) -> i64 {
    let mixed = [seed.cast_unsigned(), step, rank]
        .into_iter()
        .fold(STEPS, |state, word| SplitMix64(state ^ word).next());
    mixed.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_numbers_are_those_of_the_paper() {
        // The reference implementation's first numbers for state 1234567.
        let mut numbers = SplitMix64(1_234_567);
        assert_eq!(
            [numbers.next(), numbers.next(), numbers.next()],
            [6457827717110365317, 3203168211198807973, 9817491932198370423]
        );
    }

    #[test]
    fn neighbouring_steps_seeds_and_ranks_have_seeds_far_apart() {
        let mut lower = BTreeSet::new();
        for seed in [0, 1, 2, 42, i64::MAX] {
            for step in 0..50 {
                for rank in 0..4 {
                    // The half that the CPU generator keeps.
                    lower.insert(step_seed(seed, step, rank).cast_unsigned() & 0xffff_ffff);
                }
            }
        }
        assert_eq!(lower.len(), 5 * 50 * 4);
        assert_ne!(step_seed(3, 7, 0), step_seed(7, 3, 0));
    }
}
