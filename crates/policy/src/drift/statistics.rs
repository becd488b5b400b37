//! How far apart two sets of counts over the same bins are, and whether that may be chance.

use flywheel_contract::profile::Judged;
use statrs::function::gamma::{checked_gamma_ur, ln_gamma};

/// Share that stands for an empty bin, so that its logarithm is a number: Evidently's, to be compared with it.
const EMPTY_SHARE: f64 = 1e-4;
/// Where a share is as small as that, an empty bin has so much less.
const BELOW_SMALLEST: f64 = 1e6;
/// Fewest texts that a bin may lead one to expect in the smaller set, for the distribution of the test to hold (Cochran, 1954).
const LEAST_EXPECTED: f64 = 5.0;
/// Share of a sum below which further terms, which fall, change nothing.
const SMALLEST_TERM: f64 = 1e-17;

/// Shares of the bins; none of them is 0.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn shares(counts: &[u64]) -> Vec<f64> {
    let total = counts.iter().sum::<u64>() as f64;
    let shares: Vec<f64> = counts.iter().map(|count| *count as f64 / total).collect();
    let smallest = shares.iter().copied().filter(|share| *share > 0.0).fold(1.0, f64::min);
    let empty = if smallest <= EMPTY_SHARE {
        smallest / BELOW_SMALLEST
    } else {
        EMPTY_SHARE
    };
    shares
        .into_iter()
        .map(|share| if share > 0.0 { share } else { empty })
        .collect()
}

/// Population stability index of two sets of counts, neither of them empty: the sum over the bins of the difference of their
/// shares times its logarithm's. 0 where they are the same, in any case at least 0.
#[must_use]
pub fn psi(reference: &[u64], window: &[u64]) -> f64 {
    // A bin that is empty on both sides is none.
    let used = reference.iter().zip(window).filter(|(r, w)| **r + **w > 0);
    let (reference, window): (Vec<u64>, Vec<u64>) = used.map(|(r, w)| (*r, *w)).unzip();
    let bins = shares(&reference).into_iter().zip(shares(&window));
    bins.map(|(r, w)| (r - w) * (r / w).ln()).sum()
}

/// What [`psi`] comes to by chance alone, in the mean: times `n·m/(n+m)` it is distributed as χ² with a degree of freedom less than
/// there are bins (Yurdakul, "Statistical properties of population stability index", 2018). `n`, `m`: things counted that do not
/// depend on each other.
#[must_use]
pub fn psi_by_chance(reference: &[u64], window: &[u64], n: f64, m: f64) -> f64 {
    let used = reference.iter().zip(window).filter(|(r, w)| **r + **w > 0).count();
    #[allow(clippy::cast_precision_loss, reason = "a number of bins")]
    let freedom = used.saturating_sub(1) as f64;
    freedom * (1.0 / n + 1.0 / m)
}

/// Probability of two sets as different as these, or more so, where both come from the same distribution: Pearson's χ² test of
/// homogeneity. Bins that hold too little for it are put together. `each`: things counted that do not depend on each other, for each
/// thing that is counted.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn chi_squared(reference: &[u64], window: &[u64], each: f64) -> f64 {
    let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (n, m) = (total(reference), total(window));
    let smaller = n.min(m) / (n + m) * each;
    let mut bins: Vec<(f64, f64)> = Vec::new();
    let mut rest = (0.0, 0.0);
    for (r, w) in reference.iter().zip(window) {
        let (r, w) = (*r as f64, *w as f64);
        if (r + w) * smaller >= LEAST_EXPECTED {
            bins.push((r, w));
        } else {
            rest = (rest.0 + r, rest.1 + w);
        }
    }
    match bins.last_mut() {
        // Where the rest holds too little as well, it goes with another one.
        Some(last) if (rest.0 + rest.1) * smaller < LEAST_EXPECTED => *last = (last.0 + rest.0, last.1 + rest.1),
        _ => bins.push(rest),
    }
    let freedom = bins.len().saturating_sub(1);
    if freedom == 0 || n <= 0.0 || m <= 0.0 {
        return 1.0;
    }
    let (more, less) = ((m / n).sqrt(), (n / m).sqrt());
    let statistic: f64 = bins.iter().map(|(r, w)| (more * r - less * w).powi(2) / (r + w)).sum();
    checked_gamma_ur(freedom as f64 / 2.0, statistic * each / 2.0).unwrap_or(1.0)
}

/// Kolmogorov-Smirnov distance of two sets of counts over bins in their order: the largest difference of the shares below an edge.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn ks(reference: &[u64], window: &[u64]) -> f64 {
    let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (n, m) = (total(reference), total(window));
    let (mut below, mut distance) = ((0.0, 0.0), 0.0_f64);
    for (r, w) in reference.iter().zip(window) {
        below = (below.0 + *r as f64 / n, below.1 + *w as f64 / m);
        distance = distance.max((below.0 - below.1).abs());
    }
    distance
}

/// Probability of such a distance, or a larger one, of `n` and `m` values from one distribution, in the limit of many (Smirnov,
/// 1939; Stephens' correction for few, 1970). In bins it is less likely still.
#[must_use]
pub fn kolmogorov(distance: f64, n: f64, m: f64) -> f64 {
    let root = (n * m / (n + m)).sqrt();
    let lambda = (root + 0.12 + 0.11 / root) * distance;
    // Below, the series converges slowly, and the probability is 1 to six digits.
    if lambda < 0.3 {
        return 1.0;
    }
    let term = |k: f64| 2.0 * (if k % 2.0 == 1.0 { 1.0 } else { -1.0 }) * (-2.0 * k * k * lambda * lambda).exp();
    (1..=20).map(|k| term(f64::from(k))).sum::<f64>().clamp(0.0, 1.0)
}

/// Probability of as few right ones as `now` has, or fewer, where both sets are right equally often: Fisher's exact test, one-sided.
/// Given how many are right in both, those of `now` are distributed hypergeometrically, so it holds for sets of any size.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn fewer_by_chance(before: Judged, now: Judged) -> f64 {
    let (n, m) = (now.predictions as f64, before.predictions as f64);
    let right = now.correct as f64;
    let all = right + before.correct as f64;
    let choose = |n: f64, k: f64| ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0);
    let least = (all - m).max(0.0);
    let most = all.min(n);
    if !(least..=most).contains(&right) {
        return 1.0;
    }
    let at = (choose(n, right) + choose(m, all - right) - choose(n + m, all)).exp();
    // From one number of right ones to that before it, or after it.
    let below = |k: f64| k * (m - all + k) / ((n - k + 1.0) * (all - k + 1.0));
    let above = |k: f64| (n - k) * (all - k) / ((k + 1.0) * (m - all + k + 1.0));
    let tail = |step: &dyn Fn(f64) -> f64, direction: f64, end: f64| {
        let (mut k, mut term, mut sum): (f64, f64, f64) = (right, at, 0.0);
        while k != end && term > SMALLEST_TERM * sum.max(at) {
            term *= step(k);
            sum += term;
            k += direction;
        }
        sum
    };
    // Away from the middle the terms fall fast.
    if right <= all * n / (n + m) {
        (at + tail(&below, -1.0, least)).min(1.0)
    } else {
        (1.0 - tail(&above, 1.0, most)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, expected: f64) {
        assert!(
            (value - expected).abs() <= 1e-9 + 1e-7 * expected.abs(),
            "{value}, not {expected}"
        );
    }

    /// Held against Evidently and SciPy; tests/drift-vectors makes them.
    #[test]
    fn the_figures_are_those_of_evidently_and_scipy() {
        #[derive(serde::Deserialize)]
        struct Vector {
            reference: Vec<u64>,
            window: Vec<u64>,
            psi: f64,
            ks: f64,
            ks_log_probability: f64,
            /// Things that do not depend on each other, for each that is counted.
            each: f64,
            chi_squared: f64,
        }
        let text = include_str!("../../../../tests/drift-vectors/vectors.json");
        let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
        assert!(vectors.len() >= 100, "{}", vectors.len());
        let mut far = 0;
        for vector in vectors {
            let (reference, window) = (&vector.reference, &vector.window);
            near(psi(reference, window), vector.psi);
            let distance = ks(reference, window);
            near(distance, vector.ks);
            let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
            let log = kolmogorov(distance, total(reference), total(window)).max(1e-300).ln();
            // SciPy's limit is another one for few values.
            let expected = vector.ks_log_probability;
            assert!(
                (log - expected).abs() < 0.1 + 0.05 * expected.abs(),
                "{log}, not {expected}"
            );
            near(chi_squared(reference, window, vector.each), vector.chi_squared);
            // Where verdicts are made.
            far += usize::from((-30.0..-10.0).contains(&expected));
        }
        assert!(far >= 5, "{far}");
    }

    /// Held against SciPy; tests/drift-vectors makes them.
    #[test]
    fn fewer_right_ones_are_as_probable_as_scipy_says() {
        #[derive(serde::Deserialize)]
        struct Vector {
            /// Judged and right.
            before: [u64; 2],
            now: [u64; 2],
            fewer_log_probability: f64,
        }
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("../../../../tests/drift-vectors/accuracy.json")).unwrap();
        assert!(vectors.len() >= 100, "{}", vectors.len());
        let mut far = 0;
        let judged = |[predictions, correct]: [u64; 2]| Judged { predictions, correct };
        for Vector {
            before,
            now,
            fewer_log_probability,
        } in vectors
        {
            let log = fewer_by_chance(judged(before), judged(now)).max(1e-300).ln();
            assert!(
                (log - fewer_log_probability).abs() < 1e-6 * (1.0 + fewer_log_probability.abs()),
                "{before:?} {now:?}: {log}, not {fewer_log_probability}"
            );
            far += usize::from((-30.0..-5.0).contains(&fewer_log_probability));
        }
        assert!(far >= 10, "{far}");
        let same = Judged {
            predictions: 10_000_000,
            correct: 9_000_000,
        };
        assert!((fewer_by_chance(same, same) - 0.5).abs() < 1e-3);
        assert_eq!(fewer_by_chance(Judged::default(), Judged::default()), 1.0);
    }

    #[test]
    fn the_same_is_no_distance_and_bins_that_hold_nothing_say_nothing() {
        let counts = [5, 0, 100, 7];
        near(psi(&counts, &counts), 0.0);
        near(ks(&counts, &counts), 0.0);
        near(chi_squared(&counts, &counts, 1.0), 1.0);
        near(kolmogorov(0.0, 100.0, 100.0), 1.0);
        near(psi_by_chance(&[1, 0, 1], &[0, 0, 2], 2.0, 2.0), 1.0);
        near(chi_squared(&[3], &[9], 1.0), 1.0);
        near(chi_squared(&[1, 1], &[1, 1], 1.0), 1.0);
        assert!(kolmogorov(0.5, 500.0, 500.0) < 1e-12);
    }
}
