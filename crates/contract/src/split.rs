//! How requests are divided among versions.

use serde::{Deserialize, Serialize};

/// Buckets into which requests are divided.
pub const BUCKETS: u16 = 10_000;
/// Buckets of one percent.
pub const BUCKETS_PER_PERCENT: u16 = BUCKETS / 100;

/// Which version gets which requests: a request with a key is always of the bucket that salt and key give, the same in every
/// pod; one without is of each bucket in turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    /// Goes into the hash of keys, so that another experiment divides them anew.
    pub salt: String,
    /// Ranges of buckets in order, which together are all.
    pub ranges: Vec<Range>,
}

/// Buckets of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// Name of the version.
    pub version: String,
    /// First bucket.
    pub from: u16,
    /// The one after the last.
    pub to: u16,
}

impl Split {
    /// Divides all buckets in these percents, which add up to 100. From the split before only as many buckets move as must:
    /// a version whose share does not shrink keeps all that it had.
    #[must_use]
    pub fn divide(salt: &str, before: Option<&Self>, shares: &[(&str, u8)]) -> Self {
        let mut buckets: Vec<Option<&str>> = vec![None; BUCKETS.into()];
        let mut left: Vec<(&str, usize)> = shares
            .iter()
            .map(|(version, percent)| (*version, usize::from(BUCKETS_PER_PERCENT) * usize::from(*percent)))
            .collect();
        for range in before.iter().flat_map(|split| &split.ranges) {
            let Some((version, quota)) = left.iter_mut().find(|(version, _)| *version == range.version) else {
                continue;
            };
            let range = buckets.get_mut(range.from.into()..range.to.into()).unwrap_or_default();
            for bucket in range.iter_mut().take(*quota) {
                *bucket = Some(version);
                *quota -= 1;
            }
        }
        let mut free = left
            .iter()
            .flat_map(|(version, quota)| std::iter::repeat_n(*version, *quota));
        let mut ranges: Vec<Range> = Vec::new();
        for (at, bucket) in (0..).zip(buckets) {
            let Some(version) = bucket.or_else(|| free.next()) else {
                break;
            };
            match ranges.last_mut() {
                Some(last) if last.version == version => last.to = at + 1,
                _ => ranges.push(Range {
                    version: version.to_owned(),
                    from: at,
                    to: at + 1,
                }),
            }
        }
        Self {
            salt: salt.to_owned(),
            ranges,
        }
    }

    /// Whether the ranges are all buckets, each once.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let mut next = 0;
        for range in &self.ranges {
            if range.from != next || range.to <= range.from {
                return false;
            }
            next = range.to;
        }
        next == BUCKETS
    }

    /// Buckets of a version.
    #[must_use]
    pub fn buckets(&self, version: &str) -> u16 {
        let mine = self.ranges.iter().filter(|range| range.version == version);
        mine.map(|range| range.to - range.from).sum()
    }

    /// Version of a bucket.
    #[must_use]
    pub fn version(&self, bucket: u16) -> Option<&str> {
        let range = self.ranges.iter().find(|range| bucket < range.to)?;
        Some(&range.version)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn shares(percents: &[u8]) -> Vec<(&'static str, u8)> {
        NAMES.into_iter().zip(percents.iter().copied()).collect()
    }

    #[test]
    fn the_first_division_is_in_order() {
        let split = Split::divide("s", None, &shares(&[95, 5]));
        assert!(split.is_whole());
        assert_eq!(
            split
                .ranges
                .iter()
                .map(|r| (r.version.as_str(), r.from, r.to))
                .collect::<Vec<_>>(),
            [("a", 0, 9500), ("b", 9500, 10_000)]
        );
        assert_eq!(
            (split.version(9499), split.version(9500), split.version(10_000)),
            (Some("a"), Some("b"), None)
        );
    }

    #[test]
    fn what_is_not_whole_is_known() {
        let whole = Split::divide("s", None, &shares(&[50, 50]));
        let broken = |change: fn(&mut Vec<Range>)| {
            let mut split = whole.clone();
            change(&mut split.ranges);
            split.is_whole()
        };
        assert!(whole.is_whole());
        assert!(!broken(Vec::clear));
        assert!(!broken(|ranges| ranges[0].to = 4999));
        assert!(!broken(|ranges| ranges[0].to = 5001));
        assert!(!broken(|ranges| ranges[1].to = 9999));
        assert!(!broken(|ranges| ranges.reverse()));
    }

    fn percents() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..=100_u8, 3).prop_map(|mut cuts| {
            cuts.sort_unstable();
            vec![cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1], 100 - cuts[2]]
        })
    }

    proptest! {
        /// Through any number of changes the shares are exact, and no more buckets move than must: who gains keeps all it had.
        #[test]
        fn shares_are_exact_and_only_what_must_moves(steps in prop::collection::vec(percents(), 1..8)) {
            let mut before: Option<Split> = None;
            for step in steps {
                let shares = shares(&step);
                let split = Split::divide("s", before.as_ref(), &shares);
                prop_assert!(split.is_whole());
                for (version, percent) in &shares {
                    prop_assert_eq!(split.buckets(version), u16::from(*percent) * BUCKETS_PER_PERCENT);
                }
                if let Some(before) = &before {
                    let moved = (0..BUCKETS).filter(|b| before.version(*b) != split.version(*b)).count();
                    let lost: u16 = NAMES.iter().map(|v| before.buckets(v).saturating_sub(split.buckets(v))).sum();
                    prop_assert_eq!(moved, usize::from(lost));
                }
                before = Some(split);
            }
        }
    }
}
