use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::profile::Answer;
use flywheel_contract::scalar::{Decimal, Digest};

use super::*;

const LENGTH: u32 = 300;
const SETTLE: u64 = 10;

fn spec() -> Drift {
    Drift {
        window_seconds: 300,
        reference: DriftReference::FirstWindow,
        psi: Decimal::from("0.2"),
        ks: Decimal::from("0.1"),
        accuracy_drop: Decimal::from("0.05"),
        min_samples: 500,
        consecutive_windows: 2,
    }
}

/// Texts with some randomness of their own; `strange` of a hundred are of another kind.
fn window(seed: u64, texts: u64, strange: u64) -> DataProfile {
    let mut profile = DataProfile::new(10).with_projections(&[[-1.0; 4], [0.0; 4], [1.0; 4]]);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |of: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % of
    };
    for n in 0..texts {
        let odd = n % 100 < strange;
        let class = if odd { next(3) } else { next(10) };
        let sure = if odd { 0.15 } else { 0.5 + next(50) as f32 / 100.0 };
        let mut probabilities = vec![0.01; 10];
        probabilities[usize::try_from(class).unwrap()] = sure;
        let length = 5 + next(12) + if odd { 6 } else { 0 };
        let ids: Vec<i64> = (0..length).map(|_| i64::try_from(next(2000)).unwrap()).collect();
        let place = next(2000) as f64 / 1000.0 - 1.0;
        let answer = Answer {
            probabilities,
            projections: Some([place, -place, place / 2.0, 0.3]),
        };
        profile.add(&ids, &answer);
    }
    profile
}

fn history(windows: &[DataProfile]) -> History {
    let windows = windows.iter().enumerate().map(|(n, profile)| Window {
        id: 6_000_000 + n as u64,
        counts: profile.counts().collect(),
        judged: Default::default(),
    });
    let mut history = History {
        schema_version: SCHEMA_VERSION,
        version: "v1".to_owned(),
        digest: Digest::sha256(&"0".repeat(64)),
        window_seconds: LENGTH,
        bins: window(0, 0, 0),
        test: Some(window(99, 1000, 0).counts().collect()),
        first: None,
        windows: windows.collect(),
        streak: Streak::default(),
        quality: Quality::default(),
        called: None,
        read: Default::default(),
    };
    let end = at(windows_end(&history));
    settle(&mut history, &spec(), SETTLE, end);
    history
}

fn windows_end(history: &History) -> u64 {
    history.windows.last().map_or(0, |w| (w.id + 1) * u64::from(LENGTH)) + SETTLE
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap()
}

/// Judged by this spec from the beginning.
fn verdict(history: &History, spec: &Drift) -> Verdict {
    let end = at(windows_end(history));
    let mut history = history.clone();
    history.streak = Streak::default();
    settle(&mut history, spec, SETTLE, end);
    judge(&history, spec, SETTLE, end)
}

#[test]
fn one_strange_window_is_not_drift_and_several_are_until_as_many_are_not() {
    let strange = |shares: &[u64]| {
        let windows: Vec<DataProfile> = (0..).zip(shares).map(|(n, share)| window(n, 800, *share)).collect();
        verdict(&history(&windows), &spec())
    };
    assert_eq!(strange(&[0]).drifted, None, "it is the reference");
    assert_eq!(strange(&[0, 0]).drifted, Some(false));
    assert_eq!(strange(&[0, 40]).drifted, Some(false), "one after another");
    let found = strange(&[0, 40, 40]);
    assert_eq!(found.drifted, Some(true));
    let last = found.last.as_ref().unwrap();
    let confidence = last.features.iter().find(|f| f.name == "confidence").unwrap();
    assert!(
        confidence.drifted && confidence.psi > 0.2 && confidence.ks > Some(0.1),
        "{confidence:?}"
    );
    assert_eq!((last.texts, last.reference, last.features.len()), (800, 800, 8));
    let condition = found.condition(&spec());
    assert_eq!((condition.status, condition.reason.as_str()), (Status::True, "Drifted"));
    assert!(condition.message.contains("confidence PSI"), "{}", condition.message);
    assert_eq!(strange(&[0, 40, 0, 40]).drifted, Some(false));
    assert_eq!(strange(&[0, 40, 40, 0]).drifted, Some(true));
    assert_eq!(strange(&[0, 40, 40, 0, 40]).drifted, Some(true));
    assert_eq!(strange(&[0, 40, 40, 0, 0]).drifted, Some(false));
}

#[test]
fn chance_and_small_windows_are_no_drift() {
    // Both would be, by their PSI alone: a hundred texts in each of ten classes are far apart by chance.
    let few = Drift {
        min_samples: 50,
        psi: Decimal::from("0.05"),
        ks: Decimal::from("0.01"),
        ..spec()
    };
    let windows: Vec<DataProfile> = (0..40).map(|n| window(n, 60, 0)).collect();
    let mut history = history(&windows);
    let end = at(windows_end(&history));
    settle(&mut history, &few, SETTLE, end);
    assert_eq!(verdict(&history, &few).drifted, Some(false));
    let over_limit = windows[1..]
        .iter()
        .filter(|w| psi(&windows[0].classes, &w.classes) >= 0.05)
        .count();
    assert!(over_limit > 30, "{over_limit}");

    let scarce = verdict(&history, &spec());
    assert_eq!((scarce.drifted, scarce.too_few), (None, Some(60)));
    let condition = scarce.condition(&spec());
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (Status::Unknown, "InsufficientTraffic")
    );
}

#[test]
fn windows_are_compared_with_the_test_set_where_the_spec_says_so() {
    let windows = [window(1, 800, 40), window(2, 800, 40)];
    let history = history(&windows);
    assert_eq!(verdict(&history, &spec()).drifted, Some(false), "both alike");
    let test = Drift {
        reference: DriftReference::TestSet,
        ..spec()
    };
    let found = verdict(&history, &test);
    assert_eq!((found.drifted, found.last.unwrap().reference), (Some(true), 1000));
}

#[test]
fn a_window_counts_once_all_pods_were_read() {
    let mut history = history(&[window(1, 800, 0), window(2, 800, 40), window(3, 800, 40)]);
    history.streak = Streak::default();
    let end = windows_end(&history);
    for (time, expected) in [(end - 1, Some(false)), (end, Some(true)), (end + 1, Some(true))] {
        settle(&mut history, &spec(), SETTLE, at(time));
        assert_eq!(judge(&history, &spec(), SETTLE, at(time)).drifted, expected);
    }
    assert!(
        !settle(&mut history, &spec(), SETTLE, at(end + 2)),
        "nothing is judged twice"
    );
}

#[test]
fn what_was_judged_outlives_the_windows() {
    let mut history = history(&[
        window(1, 800, 0),
        window(2, 800, 40),
        window(3, 800, 40),
        window(4, 800, 0),
    ]);
    let end = at(windows_end(&history));
    assert_eq!(judge(&history, &spec(), SETTLE, end).drifted, Some(true));
    history.windows.drain(..3);
    let mut history: History = serde_json::from_str(&serde_json::to_string(&history).unwrap()).unwrap();
    assert!(!settle(&mut history, &spec(), SETTLE, end));
    let found = judge(&history, &spec(), SETTLE, end);
    assert_eq!(found.drifted, Some(true), "one window without it is too few");
    assert!(found.condition(&spec()).message.contains("1 must follow"));
}

#[test]
fn the_level_is_a_week_s_share() {
    let per_week = level(3600) * TESTS * 168.0;
    assert!((per_week - 0.01).abs() < 1e-12);
    assert!(level(10) < level(3600));
}

#[test]
fn a_history_of_full_length_is_far_below_what_a_config_map_may_hold() {
    let mut profile = DataProfile::new(100).with_projections(&[[0.0; 4]]);
    profile.counts_mut().for_each(|count| *count = 123_456);
    let mut history = history(&vec![profile; 48]);
    let judged = FeedbackCounts {
        predictions: 123_456,
        correct: 123_456,
    };
    let outcomes = (0..100).map(|class| (class, [123_456; 3].into())).collect();
    for hour in 0..9 * 24 {
        history.quality.add((500_000 + hour) * 3600, judged, &outcomes, 100);
    }
    let text = serde_json::to_string(&history).unwrap();
    assert!(text.len() < 256 * 1024, "{}", text.len());
}

#[test]
fn answers_that_are_right_less_often_are_drift_as_well() {
    let mut history = history(&[window(1, 800, 0), window(2, 800, 0)]);
    let end = at(windows_end(&history));
    let hour = unix(end) / 3600;
    let judged = |correct| FeedbackCounts {
        predictions: 1000,
        correct,
    };
    for (n, correct) in [900, 700, 700].into_iter().enumerate() {
        let second = (hour + n as u64) * 3600;
        history.quality.add(second, judged(correct), &Default::default(), 10);
    }
    let later = at((hour + 3) * 3600 + SETTLE);
    let early = at((hour + 3) * 3600 + SETTLE - 1);
    settle(&mut history, &spec(), SETTLE, early);
    assert_eq!(judge(&history, &spec(), SETTLE, early).quality.dropped, Some(false));
    assert_eq!(judge(&history, &spec(), SETTLE, early).alarm(), None);
    assert!(settle(&mut history, &spec(), SETTLE, later));
    let verdict = judge(&history, &spec(), SETTLE, later);
    assert_eq!((verdict.drifted, verdict.quality.dropped), (Some(false), Some(true)));
    let condition = verdict.condition(&spec());
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (Status::True, "AccuracyDropped")
    );
    assert!(
        condition.message.contains("0.700 of 1000 judged"),
        "{}",
        condition.message
    );
    assert!(
        condition.message.ends_with("a drop of 0.05, 2 times one after another"),
        "{}",
        condition.message
    );
    assert!(verdict.alarm().unwrap().starts_with("0.700 of 1000"));
    // Both at once: the texts say why.
    history.streak.drifted = Some(true);
    let verdict = judge(&history, &spec(), SETTLE, later);
    let condition = verdict.condition(&spec());
    assert_eq!((condition.status, condition.reason.as_str()), (Status::True, "Drifted"));
    assert!(
        condition.message.contains("0.700 of 1000 judged"),
        "{}",
        condition.message
    );
}
