//! Splitting rows into training, validation and test set.

use std::collections::BTreeMap;

use flywheel_contract::dataset::Split;
use sha2::{Digest as _, Sha256};

use crate::random::{generator, shuffle};

/// Which set a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Trained on.
    Train,
    /// Chooses the best epoch.
    Validation,
    /// Measured on at the end.
    Test,
}

/// The set of each row.
///
/// Stratified: each label's rows are shuffled on their own (so that a new label moves no other row), each set gets its
/// exact share of a label rounded up or down, and what rounding leaves over goes to the set that lies furthest behind
/// over all labels so far. Every label with a row has one in the training set; a label with one row has it only there.
/// Otherwise all rows are shuffled together, and the first row of each label goes to the training set.
#[must_use]
pub fn split_rows(labels: &[&str], split: &Split) -> Vec<Part> {
    let percents =
        [split.train_percent, split.validation_percent, split.test_percent].map(|p| u64::try_from(p).unwrap_or(0));
    let mut parts = vec![Part::Train; labels.len()];
    let mut put = |rows: &[usize], sizes: [u64; 3]| {
        let kinds = [Part::Train, Part::Validation, Part::Test];
        let filled = kinds
            .into_iter()
            .zip(sizes)
            .flat_map(|(part, size)| (0..size).map(move |_| part));
        for (row, part) in rows.iter().zip(filled) {
            if let Some(place) = parts.get_mut(*row) {
                *place = part;
            }
        }
    };
    // Hundredths of rows by which each set lies behind its share.
    let mut behind = [0_i64; 3];
    if split.stratify {
        let mut by_label: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, label) in labels.iter().enumerate() {
            by_label.entry(label).or_default().push(row);
        }
        for (label, mut rows) in by_label {
            shuffle(&mut generator(split.seed, stream_of(label)), &mut rows);
            put(&rows, sizes(rows.len() as u64, percents, &mut behind));
        }
    } else {
        let mut rows: Vec<usize> = (0..labels.len()).collect();
        shuffle(&mut generator(split.seed, 0), &mut rows);
        // A stable sort by "first of its label" brings one row of each label to the front, where training is filled.
        let mut seen = std::collections::HashSet::new();
        let mut later = Vec::new();
        let mut order = Vec::with_capacity(rows.len());
        for row in rows {
            let first = labels.get(row).is_some_and(|label| seen.insert(*label));
            if first { order.push(row) } else { later.push(row) }
        }
        let least = order.len() as u64;
        order.append(&mut later);
        let [mut train, mut validation, mut test] = sizes(order.len() as u64, percents, &mut behind);
        while train < least && validation + test > 0 {
            if validation > test {
                validation -= 1
            } else {
                test -= 1
            }
            train += 1;
        }
        put(&order, [train, validation, test]);
    }
    parts
}

fn stream_of(label: &str) -> u64 {
    let hash: [u8; 32] = Sha256::digest(label.as_bytes()).into();
    hash.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// Sizes of the three sets for `n` rows: each share rounded up or down, summing to `n`, at least one row to train on.
fn sizes(n: u64, percents: [u64; 3], behind: &mut [i64; 3]) -> [u64; 3] {
    let exact = percents.map(|p| n * p);
    let mut out = exact.map(|e| e / 100);
    let mut left = n.saturating_sub(out.iter().sum());
    let mut due: Vec<(usize, i64)> = Vec::new();
    for (i, ((e, size), behind)) in exact.iter().zip(&out).zip(behind.iter_mut()).enumerate() {
        let rest = e - size * 100;
        *behind += i64::try_from(rest).unwrap_or(0);
        if rest > 0 {
            due.push((i, *behind));
        }
    }
    // Training first where it would get nothing, then who lies furthest behind; ties go to the earlier set.
    let train_has_none = out.first() == Some(&0);
    due.sort_by_key(|(i, behind)| (!(*i == 0 && train_has_none), std::cmp::Reverse(*behind), *i));
    for (i, _) in due {
        if left == 0 {
            break;
        }
        if let (Some(size), Some(behind)) = (out.get_mut(i), behind.get_mut(i)) {
            *size += 1;
            *behind -= 100;
            left -= 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(percents: (i32, i32, i32), stratify: bool, seed: i64) -> Split {
        Split {
            train_percent: percents.0,
            validation_percent: percents.1,
            test_percent: percents.2,
            stratify,
            seed,
        }
    }

    fn count(parts: &[Part], labels: &[&str], label: Option<&str>) -> [usize; 3] {
        [Part::Train, Part::Validation, Part::Test].map(|p| {
            parts
                .iter()
                .zip(labels)
                .filter(|(q, l)| **q == p && label.is_none_or(|x| x == **l))
                .count()
        })
    }

    fn percents() -> impl Strategy<Value = (i32, i32, i32)> {
        (1_i32..=98)
            .prop_flat_map(|t| (Just(t), 1_i32..=(99 - t)))
            .prop_map(|(t, v)| (t, v, 100 - t - v))
    }

    proptest! {
        #[test]
        fn each_label_gets_its_share_within_one_and_is_trained_on(
            counts in prop::collection::vec(1_usize..60, 1..40), percents in percents(), seed in 0_i64..10_000,
        ) {
            let names: Vec<String> = (0..counts.len()).map(|i| format!("label {i}")).collect();
            let mut labels: Vec<&str> = Vec::new();
            for (name, n) in names.iter().zip(&counts) {
                labels.extend(std::iter::repeat_n(name.as_str(), *n));
            }
            let split = split(percents, true, seed);
            let parts = split_rows(&labels, &split);
            prop_assert_eq!(parts.len(), labels.len());
            for (name, n) in names.iter().zip(&counts) {
                let got = count(&parts, &labels, Some(name));
                prop_assert_eq!(got.iter().sum::<usize>(), *n);
                prop_assert!(got[0] >= 1);
                for (got, percent) in got.iter().zip([percents.0, percents.1, percents.2]) {
                    let exact = *n as f64 * f64::from(percent) / 100.0;
                    prop_assert!((*got as f64 - exact).abs() < 1.0, "{} of {} rows at {} %", got, n, percent);
                }
            }
            prop_assert_eq!(parts, split_rows(&labels, &split));
        }

        #[test]
        fn unstratified_sizes_are_exact_and_each_label_is_trained_on(
            n in 20_usize..400, kinds in 2_usize..6, percents in percents(), seed in 0_i64..10_000,
        ) {
            let names: Vec<String> = (0..kinds).map(|i| format!("label {i}")).collect();
            let labels: Vec<&str> = (0..n).map(|i| names[i % kinds].as_str()).collect();
            let parts = split_rows(&labels, &split(percents, false, seed));
            let got = count(&parts, &labels, None);
            prop_assert_eq!(got.iter().sum::<usize>(), n);
            let exact = n as f64 * f64::from(percents.0) / 100.0;
            prop_assert!((got[0] as f64 - exact).abs() < 1.0 || got[0] == kinds);
            for name in &names {
                prop_assert!(count(&parts, &labels, Some(name))[0] >= 1);
            }
        }
    }

    #[test]
    fn many_small_labels_still_fill_all_three_sets() {
        let names: Vec<String> = (0..100).map(|i| format!("l{i}")).collect();
        let labels: Vec<&str> = (0..500).map(|i| names[i / 5].as_str()).collect();
        let got = count(&split_rows(&labels, &split((70, 20, 10), true, 42)), &labels, None);
        assert_eq!(got, [350, 100, 50]);
    }

    #[test]
    fn another_seed_gives_another_split_and_a_new_label_moves_no_row() {
        let labels: Vec<&str> = (0..200).map(|i| if i % 2 == 0 { "a" } else { "b" }).collect();
        let one = split_rows(&labels, &split((70, 20, 10), true, 1));
        assert_ne!(one, split_rows(&labels, &split((70, 20, 10), true, 2)));
        let mut more = labels.clone();
        more.extend(["c"; 10]);
        assert_eq!(one, split_rows(&more, &split((70, 20, 10), true, 1))[..200]);
    }

    #[test]
    fn the_assignment_is_the_same_for_good() {
        let labels: Vec<&str> = (0..20).map(|i| if i % 3 == 0 { "yes" } else { "no" }).collect();
        let letters: String = split_rows(&labels, &split((60, 20, 20), true, 42))
            .iter()
            .map(|p| match p {
                Part::Train => 't',
                Part::Validation => 'v',
                Part::Test => 'x',
            })
            .collect();
        assert_eq!(letters, PINNED, "a change here would change every user's split");
    }

    const PINNED: &str = "vtttvttvvtxxxttxtttt";
}
