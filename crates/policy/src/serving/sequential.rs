//! When a difference is not chance, for figures that are looked at again and again.

/// Standard deviations beyond which a difference is not chance, at whatever time and however often somebody looks: the boundary of
/// the two-sided normal mixture, which a difference of 0 crosses ever with a probability of at most about `level` (Robbins,
/// "Statistical methods related to the law of the iterated logarithm", 1970; Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform,
/// nonparametric, nonasymptotic confidence sequences", 2021). With a variance that is estimated it holds for many values, as the
/// central limit theorem does (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic
/// confidence sequences", 2024).
///
/// `count`: values so far; of two sets of them, the harmonic mean of both counts is what their difference goes by, and the smaller one
/// lies below it. `narrowest`: the count at which the boundary is narrowest, which must not depend on what is seen.
#[must_use]
pub fn deviations(count: f64, narrowest: f64, level: f64) -> f64 {
    let log = (1.0 / level).ln();
    let mixture = narrowest / (2.0 * log + (1.0 + 2.0 * log).ln());
    let sum = count.max(1.0);
    let boundary = (sum + mixture) * (((sum + mixture) / mixture).ln() + 2.0 * log);
    boundary.sqrt() / sum.sqrt()
}

/// A part of a whole; 0 of nothing.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Variance of a share, which is not 0 where all or none are counted (Laplace's rule).
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn variance_of_share(part: u64, whole: u64) -> f64 {
    let share = (part as f64 + 1.0) / (whole as f64 + 2.0);
    share * (1.0 - share) / whole.max(1) as f64
}

/// A difference of two shares, the second one's less that of the first, with the bounds between which it lies at all times with a
/// probability of about 1 - `level`. Each share is a part of a whole. `narrowest`: as of [`deviations`].
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn difference(first: (u64, u64), second: (u64, u64), narrowest: f64, level: f64) -> (f64, [f64; 2]) {
    let effect = share(second.0, second.1) - share(first.0, first.1);
    let variance = variance_of_share(first.0, first.1) + variance_of_share(second.0, second.1);
    let counts = (first.1.max(1) as f64, second.1.max(1) as f64);
    let mean = 2.0 / (1.0 / counts.0 + 1.0 / counts.1);
    let far = deviations(mean, narrowest, level) * variance.sqrt();
    (effect, [effect - far, effect + far])
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Vector {
        first: (u64, u64),
        second: (u64, u64),
        narrowest: f64,
        level: f64,
        deviations: f64,
        effect: f64,
        lower: f64,
        upper: f64,
    }

    #[test]
    fn the_boundary_is_that_of_confseq() {
        // confseq 0.0.9: boundaries.normal_mixture_bound(n, 0.01, 100, 0.01, is_one_sided=False) / sqrt(n).
        for (count, expected) in [
            (30.0, 3.714_766_084_919_521),
            (100.0, 3.571_629_970_870_449_5),
            (1000.0, 3.753_389_204_352_457),
            (100_000.0, 4.308_720_066_331_528),
        ] {
            let told = deviations(count, 100.0, 0.01);
            assert!((told - expected).abs() < 1e-9, "{count}: {told}");
        }
    }

    #[test]
    fn intervals_are_those_of_confseq() {
        let text = include_str!("../../../../tests/experiment-vectors/vectors.json");
        let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
        assert!(vectors.len() > 100);
        for vector in vectors {
            let (effect, [lower, upper]) = difference(vector.first, vector.second, vector.narrowest, vector.level);
            let counts = (vector.first.1 as f64, vector.second.1 as f64);
            let mean = 2.0 * counts.0 * counts.1 / (counts.0 + counts.1);
            let far = deviations(mean, vector.narrowest, vector.level);
            for (told, expected) in [
                (far, vector.deviations),
                (effect, vector.effect),
                (lower, vector.lower),
                (upper, vector.upper),
            ] {
                assert!(
                    (told - expected).abs() < 1e-9,
                    "{told} and not {expected} of {:?} and {:?}",
                    vector.first,
                    vector.second
                );
            }
        }
    }
}
