use flywheel_api::experiment::{Guardrails, OnVerdict, Variant};
use flywheel_contract::scalar::{Decimal, Digest};
use flywheel_contract::trainer::ArtifactRef;

use super::*;

const NOW: u64 = 1_800_000_000;

fn experiment(names: &[&str]) -> Experiment {
    Experiment {
        variants: names
            .iter()
            .map(|name| Variant {
                model_version: (*name).to_owned(),
                percent: 10,
            })
            .collect(),
        metric: ExperimentMetric::Accuracy,
        min_samples: 1000,
        on_verdict: OnVerdict::Hold,
        guardrails: None,
    }
}

fn version(name: &str, digit: &str) -> ServedVersion {
    ServedVersion {
        name: name.to_owned(),
        artifact: ArtifactRef {
            uri: "s3://m".into(),
            digest: Digest::sha256(&digit.repeat(64)),
        },
    }
}

fn running(stopped: &[&str]) -> Trial {
    Trial {
        id: "id".to_owned(),
        stopped: stopped
            .iter()
            .map(|name| Stopped {
                version: (*name).to_owned(),
                why: "it failed".to_owned(),
            })
            .collect(),
    }
}

fn judged(judged: u64, correct: u64) -> VersionFigures {
    VersionFigures {
        texts: judged,
        judged,
        correct,
        ..VersionFigures::default()
    }
}

/// A pod that began after the experiment did so much.
fn tally(did: &[(&str, VersionFigures)]) -> Tally {
    let mut tally = Tally::begin("id", Some(1), &["v1", "v2", "v3", "v4"], NOW);
    assert!(tally.add("a", NOW + 1, did));
    tally
}

fn word(findings: &Findings, name: &str) -> ExperimentVerdict {
    findings.compared.iter().find(|(n, _)| n == name).unwrap().1.verdict
}

#[test]
fn variants_are_compared_with_the_version_of_model_version() {
    use ExperimentVerdict::{Better, Collecting, Undecided, Worse};
    let table = [
        (
            "too few of the variant",
            judged(5000, 4500),
            judged(999, 990),
            Collecting,
            "False",
            "Collecting",
        ),
        (
            "too few of the other",
            judged(999, 900),
            judged(5000, 4900),
            Collecting,
            "False",
            "Collecting",
        ),
        (
            "the same",
            judged(5000, 4500),
            judged(5000, 4500),
            Undecided,
            "False",
            "Undecided",
        ),
        (
            "a little better",
            judged(5000, 4500),
            judged(5000, 4550),
            Undecided,
            "False",
            "Undecided",
        ),
        (
            "better",
            judged(5000, 4500),
            judged(5000, 4650),
            Better,
            "True",
            "VariantBetter",
        ),
        (
            "worse",
            judged(5000, 4500),
            judged(1000, 800),
            Worse,
            "True",
            "VariantWorse",
        ),
        (
            "all right",
            judged(1000, 1000),
            judged(1000, 1000),
            Undecided,
            "False",
            "Undecided",
        ),
    ];
    for (case, control, variant, verdict, status, reason) in table {
        let spec = experiment(&["v1", "v2"]);
        let findings = tally(&[("v1", control), ("v2", variant)]).judge(&spec, "v1", &running(&[]));
        assert_eq!(word(&findings, "v2"), verdict, "{case}");
        let condition = findings.condition(&spec, true, false);
        assert_eq!(
            (condition.status.as_str(), &*condition.reason),
            (status, reason),
            "{case}"
        );
        assert!(condition.message.contains("v2"), "{}", condition.message);
    }
}

#[test]
fn what_is_told_says_what_to_do() {
    let spec = experiment(&["v1", "v2", "v3"]);
    let did = [
        ("v1", judged(9000, 8000)),
        ("v2", judged(9000, 8300)),
        ("v3", judged(9000, 8500)),
    ];
    let findings = tally(&did).judge(&spec, "v1", &running(&[]));
    let condition = findings.condition(&spec, true, true);
    assert_eq!(
        condition.message,
        "v2 is right more often than v1: +3.33 points (+1.83 to +4.84) of 9000 and 9000 judged predictions; v3 is right more often \
         than v1: +5.56 points (+4.14 to +6.97) of 9000 and 9000 judged predictions. To answer with the best so far alone, set \
         modelVersion to v3 and take experiment out"
    );
    let status = findings.status();
    assert_eq!(
        status
            .variants
            .iter()
            .map(|v| v.model_version.as_str())
            .collect::<Vec<_>>(),
        ["v1", "v2", "v3"]
    );
    assert_eq!(status.variants[1].accuracy.as_deref(), Some("0.9222"));
    let told = &status.comparisons[1];
    assert_eq!(
        (told.effect.as_deref(), told.lower.as_deref(), told.upper.as_deref()),
        (Some("0.0556"), Some("0.0414"), Some("0.0697"))
    );
    // A worse one may be the newest promotable version.
    let did = [("v1", judged(9000, 8300)), ("v2", judged(9000, 8000))];
    let spec = experiment(&["v1", "v2"]);
    let findings = tally(&did).judge(&spec, "v1", &running(&[]));
    let message = |auto_update| findings.condition(&spec, true, auto_update).message.clone();
    assert!(
        message(true).ends_with("autoUpdate may take v2 then, unless it stands in autoUpdate.exclude"),
        "{}",
        message(true)
    );
    assert!(!message(false).contains("autoUpdate"));
    // Nobody can judge.
    let findings = tally(&[("v1", judged(0, 0))]).judge(&spec, "v1", &running(&[]));
    let condition = findings.condition(&spec, false, false);
    assert_eq!(
        (condition.status.as_str(), &*condition.reason),
        ("Unknown", "NotJudged")
    );
    assert!(condition.message.contains("set feedback"), "{}", condition.message);
    assert_eq!(findings.status().comparisons[0].effect, None);
}

#[test]
fn a_verdict_stands_and_is_told_once() {
    use ExperimentVerdict::{Better, Undecided};
    let spec = experiment(&["v1", "v2"]);
    let mut tally = tally(&[("v1", judged(5000, 4500)), ("v2", judged(5000, 4550))]);
    let before = tally.judge(&spec, "v1", &running(&[]));
    assert_eq!(word(&before, "v2"), Undecided);
    tally.add("a", NOW + 1, &[("v1", judged(5000, 4500)), ("v2", judged(5100, 4750))]);
    let found = tally.judge(&spec, "v1", &running(&[]));
    assert_eq!(word(&found, "v2"), Better);
    assert!(!found.says_as(&before));
    let news = found.news(&before.status());
    assert_eq!(news.len(), 1);
    assert_eq!((news[0].0, news[0].2), ("VariantBetter", false));
    assert_eq!(found.news(&found.status()), []);
    // What comes later moves the counts, not the verdict, also of the next operator.
    tally.add("a", NOW + 1, &[("v1", judged(6000, 5500)), ("v2", judged(5200, 4760))]);
    let text = serde_json::to_string(&tally).unwrap();
    let mut next: Tally = serde_json::from_str(&text).unwrap();
    let later = next.judge(&spec, "v1", &running(&[]));
    assert_eq!(later.compared, found.compared);
    assert_eq!(later.variants[0].1.judged, 6000);
    assert!(later.says_as(&found) && later != found);
    // It does not answer any more, so nobody is told to answer with it.
    let stopped = next.judge(&spec, "v1", &running(&["v2"]));
    assert_eq!(word(&stopped, "v2"), Better);
    let condition = stopped.condition(&spec, true, false);
    assert_eq!(
        (condition.status.as_str(), &*condition.reason),
        ("True", "GuardrailBroken")
    );
    assert!(
        condition
            .message
            .contains("and is stopped: it failed. Take experiment out"),
        "{}",
        condition.message
    );
    let news: Vec<&str> = stopped
        .news(&later.status())
        .iter()
        .map(|(reason, ..)| *reason)
        .collect();
    assert_eq!(news, ["GuardrailBroken"]);
    // Beside another version it is another question.
    assert_ne!(word(&next.judge(&spec, "v2", &running(&[])), "v1"), Better);
}

#[test]
fn guardrails_stop_a_variant_and_no_other() {
    let texts = |texts: u64, failed: u64, milliseconds: f64| VersionFigures {
        texts,
        failed,
        alone: texts,
        alone_seconds: texts as f64 * milliseconds / 1000.0,
        alone_squares: texts as f64 * milliseconds * milliseconds * 1.01 / 1e6,
        ..VersionFigures::default()
    };
    let did = [
        ("v1", texts(1000, 0, 10.0)),
        ("v2", texts(900, 100, 10.0)),
        ("v3", texts(1000, 0, 15.0)),
        ("v4", texts(1000, 2, 10.5)),
    ];
    let mut spec = experiment(&["v1", "v2", "v3", "v4"]);
    assert_eq!(
        tally(&did).judge(&spec, "v1", &running(&[])).broken,
        [],
        "none were asked for"
    );
    spec.guardrails = Some(Guardrails {
        max_error_rate_increase: Decimal::from("0.01"),
        max_compute_time_increase_percent: 20,
    });
    let findings = tally(&did).judge(&spec, "v1", &running(&[]));
    let broken: Vec<&str> = findings.broken.iter().map(|b| b.version.as_str()).collect();
    assert_eq!(broken, ["v2", "v3"]);
    assert_eq!(
        findings.broken[0].why,
        "10.0 % of 1000 texts could not be computed, or not in time, of v1 0.0 %, and 1.0 points more are allowed"
    );
    assert!(
        findings.broken[1]
            .why
            .starts_with("a text takes 15.0 ms to compute, with v1 10.0 ms")
    );
    assert_eq!(findings.stopped, findings.broken);
    assert_eq!(word(&findings, "v2"), ExperimentVerdict::Stopped);
    let before = tally(&[("v1", judged(1, 1))]).judge(&spec, "v1", &running(&[]));
    let news: Vec<(&str, bool)> = findings
        .news(&before.status())
        .iter()
        .map(|(reason, _, warning)| (*reason, *warning))
        .collect();
    assert_eq!(news, [("GuardrailBroken", true); 2]);
    // Known in the assignment it is not found again.
    let again = tally(&did).judge(&spec, "v1", &running(&["v2", "v3"]));
    assert_eq!((again.broken.len(), again.stopped.len()), (0, 2));
    // When all are stopped there is nothing left to compare.
    let end = tally(&did)
        .judge(&spec, "v1", &running(&["v2", "v3", "v4"]))
        .condition(&spec, true, false);
    assert_eq!((end.status.as_str(), &*end.reason), ("True", "GuardrailBroken"));
    // The version of modelVersion is measured by nobody, whatever was said of it before.
    let other = tally(&did).judge(&spec, "v2", &running(&["v2"]));
    assert!(other.stopped.iter().all(|stopped| stopped.version != "v2"), "{other:?}");
}

#[test]
fn what_pods_did_counts_once_and_only_since_the_experiment_began() {
    let mut tally = Tally::begin("id", Some(1), &["v1", "v2", "v3", "v4"], NOW);
    let sum = |tally: &Tally| (tally.did("v1").judged, tally.did("v2").judged);
    assert!(tally.add("old", NOW - 50, &[("v1", judged(700, 600)), ("v2", judged(0, 0))]));
    assert_eq!(sum(&tally), (0, 0), "it did that before");
    assert!(tally.add("new", NOW + 9, &[("v1", judged(7, 6)), ("v2", judged(3, 3))]));
    assert_eq!(sum(&tally), (7, 3));
    assert!(tally.add("old", NOW - 50, &[("v1", judged(710, 609)), ("v2", judged(5, 4))]));
    assert!(
        !tally.add("old", NOW - 50, &[("v1", judged(710, 609)), ("v2", judged(5, 4))]),
        "the same again"
    );
    assert_eq!(sum(&tally), (17, 8));
    // Through JSON, as the next operator finds it; pods counted on meanwhile.
    let mut tally: Tally = serde_json::from_str(&serde_json::to_string(&tally).unwrap()).unwrap();
    assert!(tally.is_of("id", Some(1)) && !tally.is_of("other", Some(1)) && !tally.is_of("id", Some(2)));
    tally.add("old", NOW - 50, &[("v1", judged(712, 609))]);
    assert_eq!(sum(&tally), (19, 8));
    // A process that began anew.
    tally.add("old", NOW + 99, &[("v1", judged(4, 4)), ("v2", judged(1, 1))]);
    assert_eq!(sum(&tally), (23, 9));
    // One that is gone is forgotten, and what it did is not.
    tally.retain(|pod| pod == "new");
    assert_eq!((sum(&tally), tally.seen.len()), ((23, 9), 1));
}

#[test]
fn what_is_kept_is_bounded_and_rounding_adds_up_to_nothing() {
    let names: Vec<String> = (0..5).map(|n| format!("{}{n}", "v".repeat(62))).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut tally = Tally::begin(&"i".repeat(450), Some(NOW), &all, NOW);
    let did = |n: u64| VersionFigures {
        texts: 123_456_789 + n,
        failed: 123_456,
        alone: 12_345_678,
        alone_seconds: 123_456.789_012_345_6 + n as f64 / 3.0,
        alone_squares: 1_234.567_890_123_456 + n as f64 / 7.0,
        judged: 12_345_678 + n,
        correct: 1_234_567 + n,
    };
    for n in 0..2000 {
        let told: Vec<(&str, VersionFigures)> = names.iter().map(|name| (name.as_str(), did(n))).collect();
        tally.add(&format!("00000000-0000-0000-0000-{n:012}"), NOW - 1, &told);
    }
    assert_eq!(tally.seen.len() * names.len(), SEEN_MAX);
    let longest = serde_json::to_string(&tally).unwrap().len();
    assert!(longest < 256 * 1024, "{longest}");
    let mut tally = Tally::begin("id", Some(1), &["v1", "v2", "v3", "v4"], NOW);
    for n in 0..10_000 {
        tally.add("a", NOW - 1, &[("v1", did(n))]);
    }
    let (now, first) = (did(9_999), did(0));
    let sum = tally.did("v1");
    assert!(
        (sum.alone_seconds - (now.alone_seconds - first.alone_seconds)).abs() < 0.2,
        "{sum:?}"
    );
    assert_eq!(sum.judged, 9_999);
}

#[test]
fn an_experiment_is_its_variants_and_what_was_stopped_stays_so_in_it() {
    let (v1, v2, v3) = (version("v1", "1"), version("v2", "2"), version("v3", "3"));
    let of = |variants: &[&ServedVersion], known: &[Trial]| trial(ExperimentMetric::Accuracy, variants, known);
    let first = of(&[&v1, &v2], &[]);
    assert_eq!(of(&[&v2, &v1], &[]), first, "in whatever order");
    assert_ne!(of(&[&v1, &v3], &[]).id, first.id);
    assert_ne!(
        of(&[&v1, &version("v2", "4")], &[]).id,
        first.id,
        "made anew under its name"
    );
    let stopped = Trial {
        id: first.id.clone(),
        ..running(&["v2"])
    };
    let twice = [stopped.clone(), stopped.clone()];
    assert_eq!(of(&[&v1, &v2], &twice), stopped);
    assert_eq!(of(&[&v1, &v2, &v3], &twice).stopped, []);
}

/// Numbers that look random, the same each time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The share of experiments that came to a verdict, and the mean of the judged predictions of each variant at that; looked at after
/// each `step` predictions of each variant, until there are `most` of each.
fn simulate(
    experiments: u64,
    shares: [f64; 2],
    min: f64,
    step: u64,
    most: u64,
    far: impl Fn((u64, u64), (u64, u64)) -> bool,
) -> (f64, f64) {
    let (mut ended, mut needed) = (0, 0);
    let mut random = Random(1);
    for _ in 0..experiments {
        let mut correct = [0, 0];
        for n in 1..=most {
            for (correct, share) in correct.iter_mut().zip(shares) {
                *correct += u64::from(random.next() < share);
            }
            if n % step == 0 && n as f64 >= min && far((correct[0], n), (correct[1], n)) {
                ended += 1;
                needed += n;
                break;
            }
        }
    }
    (
        f64::from(ended) / experiments as f64,
        needed as f64 / f64::from(ended.max(1)),
    )
}

#[test]
fn versions_that_are_the_same_get_no_verdict_however_often_somebody_looks() {
    let outside = |min: f64| {
        move |a, b| {
            let (_, [lower, upper]) = difference(a, b, min, LEVEL);
            lower > 0.0 || upper < 0.0
        }
    };
    for (share, min) in [(0.9, 1000.0), (0.5, 1000.0), (0.98, 100.0)] {
        let (wrong, _) = simulate(400, [share, share], min, 10, 10_000, outside(min));
        println!("{share} from {min} on: {wrong}");
        assert!(wrong <= LEVEL, "{wrong} of experiments with {share}");
    }
    // The test that may be looked at only once would be wrong in a third of them.
    let naive = |a: (u64, u64), b: (u64, u64)| {
        let variance = super::super::sequential::variance_of_share(a.0, a.1) * 2.0;
        (share(a.0, a.1) - share(b.0, b.1)).abs() > 1.96 * variance.sqrt()
    };
    let (wrong, _) = simulate(400, [0.9, 0.9], 1000.0, 10, 10_000, naive);
    println!("once: {wrong}");
    assert!(wrong > 0.15, "{wrong}");
    // A true difference is found.
    for (better, most, expected) in [(0.93, 10_000, 0.99), (0.92, 20_000, 0.99)] {
        let (found, needed) = simulate(200, [0.9, better], 1000.0, 50, most, outside(1000.0));
        println!("0.90 and {better} within {most}: {found}, {needed} on average");
        assert!(found >= expected, "{found} of 0.9 and {better}");
    }
}
