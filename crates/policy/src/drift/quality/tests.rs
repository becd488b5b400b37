use flywheel_api::drift::DriftReference;
use flywheel_contract::scalar::Decimal;

use super::*;

/// An hour that begins a week, as far as tests care.
const START: u64 = 500_000 / WEEK_HOURS * WEEK_HOURS;

fn spec(drop: &str, least: i32) -> Drift {
    Drift {
        window_seconds: 300,
        reference: DriftReference::FirstWindow,
        psi: Decimal::from("0.2"),
        ks: Decimal::from("0.1"),
        accuracy_drop: Decimal::from(drop),
        min_samples: least,
        consecutive_windows: 2,
    }
}

/// Hours of (judged, right), and what is said when they are over.
fn after(hours: &[(u64, u64)], spec: &Drift) -> (Quality, QualityVerdict) {
    let mut quality = Quality::default();
    for (n, (predictions, correct)) in (START..).zip(hours) {
        let judged = Judged {
            predictions: *predictions,
            correct: *correct,
        };
        quality.add(n * HOUR + 300, judged, &BTreeMap::new(), 2);
        quality.settle(spec, (n + 1) * HOUR);
    }
    let verdict = quality.verdict(spec, (START + hours.len() as u64) * HOUR);
    (quality, verdict)
}

fn dropped(hours: &[(u64, u64)]) -> Option<bool> {
    after(hours, &spec("0.05", 500)).1.dropped
}

const GOOD: (u64, u64) = (1000, 900);
const BAD: (u64, u64) = (1000, 800);

#[test]
fn a_drop_is_told_after_two_spans_and_until_two_are_without() {
    type Row = (&'static str, &'static [(u64, u64)], Option<bool>);
    let table: [Row; 11] = [
        ("nothing to compare with", &[GOOD], None),
        ("the same", &[GOOD, GOOD], Some(false)),
        ("one after another", &[GOOD, BAD], Some(false)),
        ("two", &[GOOD, BAD, BAD], Some(true)),
        ("apart", &[GOOD, BAD, GOOD, BAD], Some(false)),
        ("one without", &[GOOD, BAD, BAD, GOOD], Some(true)),
        ("two without", &[GOOD, BAD, BAD, GOOD, GOOD], Some(false)),
        ("better", &[BAD, GOOD, GOOD], Some(false)),
        (
            "certain, but small",
            &[(100_000, 90_000), (100_000, 86_000), (100_000, 86_000)],
            Some(false),
        ),
        (
            "large, but perhaps chance",
            &[(500, 450), (500, 424), (500, 424)],
            Some(false),
        ),
        ("too few", &[GOOD, (499, 0), (0, 0)], None),
    ];
    for (name, hours, want) in table {
        assert_eq!(dropped(hours), want, "{name}");
    }
}

#[test]
fn the_figures_are_told() {
    let (_, verdict) = after(&[GOOD, BAD, BAD], &spec("0.05", 500));
    let told = verdict.told();
    assert!(
        told.starts_with("0.800 of 1000 judged answers were right until "),
        "{told}"
    );
    assert!(
        told.contains("0.900 of 1000 in the first ones of this version, until "),
        "{told}"
    );
    let status = verdict.status("v1").unwrap();
    assert_eq!((status.judged, status.accuracy.as_str()), (1000, "0.800"));
    assert_eq!((status.judged_before, status.accuracy_before.as_str()), (1000, "0.900"));
    assert_eq!((status.baseline, status.dropped), (Baseline::FirstSpan, true));
    assert_eq!(status.span_end.0, moment(START + 3));
    assert_eq!(QualityVerdict::default().status("v1"), None);
}

#[test]
fn what_comes_every_week_is_no_drop() {
    // Answers are worse at the end of each week.
    let hour = |n: u64| if n % WEEK_HOURS < 120 { GOOD } else { BAD };
    let first: Vec<(u64, u64)> = (0..WEEK_HOURS).map(hour).collect();
    assert_eq!(dropped(&first), Some(true), "there is no week to compare with yet");
    let mut two: Vec<(u64, u64)> = (0..2 * WEEK_HOURS).map(hour).collect();
    let (quality, verdict) = after(&two, &spec("0.05", 500));
    assert_eq!(verdict.dropped, Some(false));
    let last = verdict.last.unwrap();
    assert!(last.week_ago && !last.dropped);
    assert_eq!(last.now.from - last.before.from, WEEK_HOURS);
    assert_eq!(last.now.judged, last.before.judged);
    assert_eq!(quality.hours.len() as u64, HOURS);
    // And what is worse than a week before is one, however bad the first span was.
    two.extend([(1000, 700), (1000, 700)]);
    let (_, verdict) = after(&two, &spec("0.05", 500));
    assert_eq!(verdict.dropped, Some(true));
    assert!(
        verdict.told().contains("the same hours a week before"),
        "{}",
        verdict.told()
    );
}

#[test]
fn a_span_takes_the_hours_that_it_needs_and_no_hour_is_in_two() {
    let spec = spec("0.05", 500);
    let mut hours = vec![(100, 90); 10];
    hours.extend([(100, 70); 9]);
    let (_, verdict) = after(&hours, &spec);
    let last = verdict.last.unwrap();
    assert_eq!((last.before.from, last.before.to), (START, START + 5));
    assert_eq!((last.now.from, last.now.to), (START + 10, START + 15));
    assert_eq!((last.now.judged.predictions, last.dropped), (500, true));
    assert_eq!(verdict.dropped, Some(false), "the second span lacks an hour");
    hours.push((100, 70));
    assert_eq!(after(&hours, &spec).1.dropped, Some(true));
    // Fewer in a day than are needed are never enough, and the last 24 hours alone count.
    let few = vec![(20, 18); 100];
    assert_eq!(after(&few, &spec).1.last, None);
    let mut later = few;
    later.extend([(300, 270); 2]);
    assert_eq!(after(&later, &spec).0.first.map(|first| first.to), Some(START + 101));
}

#[test]
fn an_operator_that_comes_later_compares_the_same() {
    let hours = [GOOD, BAD, BAD, GOOD];
    let spec = spec("0.05", 500);
    let mut at_once = Quality::default();
    for (n, (predictions, correct)) in (START..).zip(hours) {
        at_once.add(n * HOUR, Judged { predictions, correct }, &BTreeMap::new(), 2);
    }
    let at_once: String = serde_json::to_string(&at_once).unwrap();
    let mut at_once: Quality = serde_json::from_str(&at_once).unwrap();
    assert!(at_once.settle(&spec, (START + 4) * HOUR));
    assert_eq!(at_once, after(&hours, &spec).0);
    assert!(!at_once.settle(&spec, (START + 4) * HOUR), "nothing is compared twice");
}

fn classes(of: &[(u32, [u64; 3])]) -> BTreeMap<u32, Outcomes> {
    of.iter().map(|(class, of)| (*class, Outcomes::from(*of))).collect()
}

#[test]
fn f1_is_the_mean_of_the_classes_of_a_whole_day() {
    let spec = spec("0.05", 100);
    let mut quality = Quality::default();
    let day = |n: u64| (START / 24 + n) * 24 * HOUR;
    // As scikit-learn has it: f1_score(average="macro") of labels 0 to 2.
    let good = classes(&[(0, [80, 10, 20]), (1, [45, 15, 5]), (2, [30, 5, 5]), (3, [1, 9, 9])]);
    let bad = classes(&[(0, [40, 30, 40]), (1, [45, 45, 20]), (2, [10, 15, 25]), (7, [99, 0, 0])]);
    let judged = Judged {
        predictions: 200,
        correct: 150,
    };
    quality.add(day(0), judged, &good, 5);
    assert_eq!(quality.verdict(&spec, day(1) - 1).f1, None, "the day is not over");
    let f1 = quality.verdict(&spec, day(1)).f1.unwrap();
    assert!(
        (f1.now - (160.0 / 190.0 + 90.0 / 110.0 + 60.0 / 70.0) / 3.0).abs() < 1e-12,
        "{f1:?}"
    );
    assert_eq!((f1.before, f1.classes), (None, 3), "one class has too few");
    quality.add(day(7), judged, &bad, 5);
    let f1 = quality.verdict(&spec, day(8)).f1.unwrap();
    assert!(
        (f1.now - (80.0 / 150.0 + 90.0 / 155.0 + 20.0 / 60.0) / 3.0).abs() < 1e-12,
        "{f1:?}"
    );
    assert!(f1.before.is_some_and(|before| before > 0.8));
    assert_eq!(f1.classes, 3, "what is no class of the version is left out");
    quality.add(day(9), judged, &good, 5);
    assert!(!quality.days.contains_key(&(START / 24)), "nine days are kept");
}

#[test]
fn what_is_kept_of_classes_is_bounded_and_the_oldest_day_goes_first() {
    let judged = Judged {
        predictions: 9_999_999,
        correct: 9_999_999,
    };
    for (many, days) in [(100, 9), (222, 9), (223, 8), (1_000, 2), (2_001, 0)] {
        let all: BTreeMap<u32, Outcomes> = (0..many).map(|class| (class, [1_234_567; 3].into())).collect();
        let mut quality = Quality::default();
        for hour in START..START + 20 * 24 {
            quality.add(hour * HOUR, judged, &all, 10_000);
        }
        assert_eq!(quality.days.len(), days, "{many}");
        let newest = (START + 20 * 24 - 1) / 24;
        assert!(days == 0 || quality.days.contains_key(&newest), "{many}");
        let text = serde_json::to_string(&quality).unwrap();
        assert!(text.len() < 100 * 1024, "{many}: {}", text.len());
    }
}

/// SplitMix64.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn hours(seed: u64, count: usize, of: u64, share: f64) -> Vec<(u64, u64)> {
    let mut state = seed;
    let right = |state: &mut u64| (0..of).filter(|_| random(state) < share).count() as u64;
    (0..count).map(|_| (of, right(&mut state))).collect()
}

#[test]
fn chance_raises_no_alarm_in_a_week_and_ten_points_are_seen_within_hours() {
    // Without a limit and without a second span the test alone keeps chance away: in one of a hundred weeks at most.
    let mut alone = spec("0", 500);
    alone.consecutive_windows = 1;
    let weeks = 100;
    let alarms = |spec: &Drift| {
        let week = |seed| {
            let mut quality = Quality::default();
            let mut any = false;
            for (n, (predictions, correct)) in (START..).zip(hours(seed, 169, 500, 0.9)) {
                quality.add(n * HOUR, Judged { predictions, correct }, &BTreeMap::new(), 2);
                quality.settle(spec, (n + 1) * HOUR);
                any |= quality.streak.drifted == Some(true);
            }
            any
        };
        (0..weeks).filter(|seed| week(*seed)).count()
    };
    let (by_test, by_default) = (alarms(&alone), alarms(&spec("0.05", 500)));
    assert!(by_test <= 4, "{by_test}");
    assert_eq!(by_default, 0);
    let seen = |of: u64| {
        let one = |seed: u64| {
            let mut all = hours(1_000 + seed, 1, of, 0.9);
            all.extend(hours(2_000 + seed, 6, of, 0.8));
            (3..=all.len()).any(|n| after(&all[..n], &spec("0.05", 500)).1.dropped == Some(true))
        };
        (0..100).filter(|seed| one(*seed)).count()
    };
    let (some, more) = (seen(500), seen(1_000));
    assert!(some >= 70 && more >= 97, "{some} {more}");
    eprintln!(
        "false alarms {by_test}, {by_default} of {weeks} weeks; ten points seen within six hours of 500: {some} of 100, of 1,000: {more}"
    );
}
