//! Which versions go, with their artifacts: those that newer ones have replaced for long enough or often enough.

use std::time::Duration;

use flywheel_api::model_version::Retention;
use jiff::Timestamp;

/// A version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionView<'a> {
    /// Its number.
    pub number: i64,
    /// When it was made.
    pub created: Timestamp,
    /// It is verified, and its gates hold.
    pub promotable: bool,
    /// A rollout rejected it: what is remembered of that goes with it.
    pub rejected: bool,
    /// A service answers with it, names it, or takes it by itself, or a training that is not over begins with it or is measured
    /// beside it.
    pub needed: bool,
    /// When it may go.
    pub retention: Option<&'a Retention>,
}

/// Why this version goes now, where it does. `others`: all other versions of its model.
///
/// The newest that is promotable stays whatever its age, and so does one that a service needs or that was rejected.
#[must_use]
pub fn due(version: &VersionView<'_>, others: &[VersionView<'_>], now: Timestamp) -> Option<String> {
    let retention = version.retention?;
    if version.needed || version.rejected {
        return None;
    }
    let newer = others
        .iter()
        .filter(|other| other.number > version.number && other.promotable && !other.rejected)
        .count();
    if newer == 0 {
        return None;
    }
    if let Some(keep) = retention.keep_newest.and_then(|n| usize::try_from(n).ok())
        && newer >= keep
    {
        return Some(format!(
            "{newer} newer versions of the model are promotable, and retention.keepNewest is {keep}"
        ));
    }
    let days = retention.max_age_days.and_then(|n| u64::try_from(n).ok())?;
    let age = Duration::try_from(now.duration_since(version.created)).ok()?;
    (age >= Duration::from_secs(days * 24 * 3600)).then(|| {
        format!(
            "it is older than the {days} days of retention.maxAgeDays, and a newer version of the model is promotable"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    fn retention(keep_newest: Option<i32>, max_age_days: Option<i32>) -> Retention {
        Retention {
            keep_newest,
            max_age_days,
        }
    }

    fn view(number: i64, retention: Option<&Retention>) -> VersionView<'_> {
        VersionView {
            number,
            created: Timestamp::from_second(0).unwrap(),
            promotable: true,
            rejected: false,
            needed: false,
            retention,
        }
    }

    #[test]
    fn what_newer_versions_have_replaced_goes_and_nothing_else() {
        let (count, age, both) = (
            retention(Some(2), None),
            retention(None, Some(30)),
            retention(Some(3), Some(30)),
        );
        let others = |count: i64| -> Vec<VersionView<'static>> { (2..2 + count).map(|n| view(n, None)).collect() };
        type Change = fn(&mut VersionView<'_>);
        let as_it_is: Change = |_| ();
        type Row<'a> = (&'a str, Option<&'a Retention>, Change, i64, i64, bool);
        let rows: [Row<'_>; 13] = [
            ("no retention", None, as_it_is, 9, 999, false),
            ("one newer of two", Some(&count), as_it_is, 1, 999, false),
            ("two newer of two", Some(&count), as_it_is, 2, 0, true),
            ("served", Some(&count), |v| v.needed = true, 9, 999, false),
            ("rejected", Some(&count), |v| v.rejected = true, 9, 999, false),
            (
                "its gates do not hold",
                Some(&count),
                |v| v.promotable = false,
                2,
                0,
                true,
            ),
            ("older than all", Some(&count), |v| v.number = 99, 9, 999, false),
            ("young", Some(&age), as_it_is, 9, 29, false),
            ("old", Some(&age), as_it_is, 1, 30, true),
            ("old, and the newest", Some(&age), as_it_is, 0, 999, false),
            ("either: by age", Some(&both), as_it_is, 1, 30, true),
            ("either: by count", Some(&both), as_it_is, 3, 0, true),
            ("neither", Some(&both), as_it_is, 2, 29, false),
        ];
        for (case, retention, change, newer, days, goes) in rows {
            let mut version = view(1, retention);
            change(&mut version);
            let now = Timestamp::from_second(days * DAY).unwrap();
            assert_eq!(due(&version, &others(newer), now).is_some(), goes, "{case}");
        }
    }

    #[test]
    fn only_versions_that_could_take_its_place_count() {
        let count = retention(Some(1), None);
        let version = view(1, Some(&count));
        let now = Timestamp::from_second(0).unwrap();
        let mut other = view(2, None);
        assert!(due(&version, std::slice::from_ref(&other), now).is_some());
        other.promotable = false;
        assert_eq!(due(&version, std::slice::from_ref(&other), now), None);
        other.promotable = true;
        other.rejected = true;
        assert_eq!(due(&version, std::slice::from_ref(&other), now), None);
        other.rejected = false;
        other.number = 1;
        assert_eq!(
            due(&version, std::slice::from_ref(&other), now),
            None,
            "a twin is no newer one"
        );
    }
}
