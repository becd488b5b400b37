//! Whether a version that comes by steps does worse than the one before, by what their pods say that both did since it came.

use std::collections::BTreeMap;

use flywheel_api::conditions::cut_words;
use flywheel_api::inference_service::{Analysis, RolloutFigure, RolloutStep};
use flywheel_contract::scalar::{Decimal, Digest};
use flywheel_contract::serving::{Agreement, LabelsBeside, MISSING_NAMED, ServedVersion, VersionFigures};

use super::sequential::{deviations, share, variance_of_share};
use super::update::PodSays;

/// Texts that a version answers before it is judged, where its step does not say.
const MIN_REQUESTS: u64 = 100;
/// Batches of one text of each version from which on their times are compared.
const MIN_ALONE: u64 = 30;
/// Texts of a sample from which on answers to it are compared.
const MIN_SAMPLE: u32 = 30;
/// Values at which the boundary is narrowest: the fewest requests that are judged.
const FEWEST: f64 = MIN_REQUESTS as f64;
/// Most bytes of a label in a message.
const LABEL_MAX: usize = 60;
/// Probability that a version that is not worse than allowed is ever rejected by one of these figures, however often somebody looks.
const LEVEL: f64 = 0.01;

/// What pods say that two versions did, since they were first asked while one of them comes. Losing it costs what was counted before:
/// both begin anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    canary: Digest,
    /// By pod and version: what was counted before.
    before: BTreeMap<(String, Digest), VersionFigures>,
}

/// What two versions did in the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// The one that answers.
    pub stable: VersionFigures,
    /// Of it, in the pods that the other one is computed in as well.
    pub stable_beside: VersionFigures,
    /// The one that comes.
    pub canary: VersionFigures,
}

/// How the version that comes answers the evaluation sample of the one that answers, as the pods say; where they differ (kinds of
/// processors may), the least good.
#[must_use]
pub fn likeness(canary: &ServedVersion, stable: &ServedVersion, pods: &[PodSays]) -> Option<Agreement> {
    let told = pods.iter().filter_map(|pod| pod.version(canary)?.likeness.as_ref());
    let told = told.filter(|likeness| likeness.to == stable.artifact.digest);
    told.map(|likeness| likeness.agreement)
        .min_by(|a, b| share(a.same.into(), a.texts.into()).total_cmp(&share(b.same.into(), b.texts.into())))
}

/// The labels of the version that comes beside those of the one that answers, as the pods say.
#[must_use]
pub fn labels<'a>(canary: &ServedVersion, stable: &ServedVersion, pods: &'a [PodSays]) -> Option<&'a LabelsBeside> {
    let told = pods.iter().filter_map(|pod| pod.version(canary)?.labels.as_ref());
    told.filter(|labels| labels.to == stable.artifact.digest)
        .max_by_key(|labels| labels.missing)
}

impl Watch {
    /// Begins with what these pods say now.
    #[must_use]
    pub fn begin(canary: &ServedVersion, stable: &ServedVersion, pods: &[PodSays]) -> Self {
        let mut watch = Self {
            canary: canary.artifact.digest.clone(),
            before: BTreeMap::new(),
        };
        watch.meet(&[canary, stable], pods);
        watch
    }

    /// Whether it is about this version.
    #[must_use]
    pub fn is_of(&self, canary: &ServedVersion) -> bool {
        self.canary == canary.artifact.digest
    }

    /// Notes what pods did before that are seen for the first time with one of these versions.
    pub fn meet(&mut self, versions: &[&ServedVersion], pods: &[PodSays]) {
        for (pod, version) in pods
            .iter()
            .flat_map(|pod| versions.iter().map(move |version| (pod, version)))
        {
            if let Some(figures) = figures(pod, version) {
                let key = (pod.name.clone(), version.artifact.digest.clone());
                self.before.entry(key).or_insert(figures);
            }
        }
    }

    /// What both did since.
    #[must_use]
    pub fn figures(&self, canary: &ServedVersion, stable: &ServedVersion, pods: &[PodSays]) -> Figures {
        let of = |pod: &PodSays, version: &ServedVersion| {
            let now = figures(pod, version)?;
            let key = (pod.name.clone(), version.artifact.digest.clone());
            Some(since(now, self.before.get(&key).copied().unwrap_or_default()))
        };
        let mut sums = Figures::default();
        for pod in pods {
            let (stable, canary) = (of(pod, stable), of(pod, canary));
            sums.stable = plus(sums.stable, stable.unwrap_or_default());
            sums.canary = plus(sums.canary, canary.unwrap_or_default());
            if canary.is_some() {
                sums.stable_beside = plus(sums.stable_beside, stable.unwrap_or_default());
            }
        }
        sums
    }
}

fn figures(pod: &PodSays, version: &ServedVersion) -> Option<VersionFigures> {
    pod.version(version)?.figures
}

/// What was added; a process that was started again begins at 0.
pub(super) fn since(now: VersionFigures, before: VersionFigures) -> VersionFigures {
    if now.texts < before.texts || now.judged < before.judged {
        return now;
    }
    VersionFigures {
        texts: now.texts - before.texts,
        failed: now.failed.saturating_sub(before.failed),
        alone: now.alone.saturating_sub(before.alone),
        alone_seconds: (now.alone_seconds - before.alone_seconds).max(0.0),
        alone_squares: (now.alone_squares - before.alone_squares).max(0.0),
        judged: now.judged - before.judged,
        correct: now.correct.saturating_sub(before.correct),
    }
}

pub(super) fn plus(a: VersionFigures, b: VersionFigures) -> VersionFigures {
    // Pods may run an image of their own, so that what they tell may be anything.
    VersionFigures {
        texts: a.texts.saturating_add(b.texts),
        failed: a.failed.saturating_add(b.failed),
        alone: a.alone.saturating_add(b.alone),
        alone_seconds: a.alone_seconds + b.alone_seconds,
        alone_squares: a.alone_squares + b.alone_squares,
        judged: a.judged.saturating_add(b.judged),
        correct: a.correct.saturating_add(b.correct),
    }
}

/// What there is to say of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// Nothing against it.
    Good,
    /// It did too little for the next step; what is missing.
    TooFew(String),
    /// It does worse than the spec allows; how.
    Bad(String),
}

/// What is known of a version that comes, beside the one that answers.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What both did.
    pub figures: &'a Figures,
    /// How it answers the other one's evaluation sample.
    pub likeness: Option<Agreement>,
    /// Its labels.
    pub labels: Option<&'a LabelsBeside>,
}

/// Which figures there are enough of.
struct Enough {
    labels: bool,
    agreement: bool,
    errors: bool,
    times: bool,
    accuracy: bool,
}

impl Enough {
    /// Labels are judged always, all else by an `analysis` only.
    fn of(analysis: Option<&Analysis>, step: &RolloutStep, evidence: &Evidence<'_>) -> Self {
        let Figures {
            stable,
            stable_beside,
            canary,
        } = evidence.figures;
        let done = came(canary) >= asked(step).unwrap_or(MIN_REQUESTS);
        let samples = analysis.map(|analysis| u64::try_from(analysis.min_samples).unwrap_or(1));
        Self {
            labels: evidence.labels.is_some(),
            agreement: analysis.is_some() && evidence.likeness.is_some_and(|likeness| likeness.texts >= MIN_SAMPLE),
            errors: analysis.is_some() && done && came(stable) >= MIN_REQUESTS,
            times: analysis.is_some() && done && stable_beside.alone >= MIN_ALONE && canary.alone >= MIN_ALONE,
            accuracy: samples.is_some_and(|needed| stable.judged >= needed && canary.judged >= needed),
        }
    }
}

/// What a version was judged by, if it was not rejected.
#[must_use]
pub fn judged(analysis: Option<&Analysis>, step: &RolloutStep, evidence: &Evidence<'_>) -> Vec<RolloutFigure> {
    let enough = Enough::of(analysis, step, evidence);
    let all = [
        (RolloutFigure::Labels, enough.labels),
        (RolloutFigure::Agreement, enough.agreement),
        (RolloutFigure::ErrorRate, enough.errors),
        (RolloutFigure::ComputeTime, enough.times),
        (RolloutFigure::Accuracy, enough.accuracy),
    ];
    all.into_iter()
        .filter(|(_, judged)| *judged)
        .map(|(figure, _)| figure)
        .collect()
}

/// Texts that came to it.
fn came(version: &VersionFigures) -> u64 {
    version.texts.saturating_add(version.failed)
}

fn asked(step: &RolloutStep) -> Option<u64> {
    step.min_requests.and_then(|n| u64::try_from(n).ok())
}

/// Judges a version. `feedback`: clients tell what would have been right; `last`: the step is the last one.
#[must_use]
pub fn judge(
    analysis: Option<&Analysis>,
    step: &RolloutStep,
    evidence: &Evidence<'_>,
    feedback: bool,
    last: bool,
) -> Opinion {
    let Figures {
        stable,
        stable_beside,
        canary,
    } = evidence.figures;
    let enough = Enough::of(analysis, step, evidence);
    if let Some(bad) = evidence.labels.and_then(lost) {
        return Opinion::Bad(bad);
    }
    if let Some(analysis) = analysis {
        // It takes no traffic.
        if enough.agreement
            && let Some(bad) = evidence.likeness.and_then(|likeness| unlike(analysis, likeness))
        {
            return Opinion::Bad(bad);
        }
        let limits = Limits {
            error_rate_increase: &analysis.max_error_rate_increase,
            compute_time_increase_percent: analysis.max_compute_time_increase_percent,
            level: LEVEL,
            before: "the version before",
        };
        // A pod that is slow, for whatever reason, is so for both.
        let same_pods = if came(stable_beside) >= MIN_REQUESTS {
            stable_beside
        } else {
            stable
        };
        let worse = [
            enough.errors.then(|| errors(&limits, same_pods, canary)),
            enough.times.then(|| times(&limits, stable_beside, canary)),
            enough.accuracy.then(|| accuracy(analysis, stable, canary)),
        ];
        if let Some(bad) = worse.into_iter().flatten().flatten().next() {
            return Opinion::Bad(bad);
        }
        if !enough.accuracy && feedback && last {
            return Opinion::TooFew(format!(
                "{} of its answers and {} of the version's before were judged by clients, and analysis.minSamples is {} of each",
                canary.judged, stable.judged, analysis.min_samples
            ));
        }
    }
    // Nobody can judge what answers nobody.
    let needed = asked(step).or(analysis.map(|_| MIN_REQUESTS));
    match (came(canary), needed) {
        (done, Some(needed)) if done < needed => Opinion::TooFew(format!(
            "it answered {done} texts, and {} {needed}",
            if asked(step).is_some() {
                "minRequests is"
            } else {
                "without minRequests an analysis asks for"
            }
        )),
        _ => Opinion::Good,
    }
}

/// What a version may do worse than another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    /// How much larger the share of texts may be that cannot be computed.
    pub error_rate_increase: &'a Decimal,
    /// How much longer a text may take.
    pub compute_time_increase_percent: i32,
    /// Probability that one of them is ever found to be broken that is not.
    pub level: f64,
    /// What the other version is called.
    pub before: &'a str,
}

impl Limits<'_> {
    /// What the version breaks, by all that both did.
    pub fn broken(&self, before: &VersionFigures, now: &VersionFigures) -> Option<String> {
        let enough = came(now) >= MIN_REQUESTS;
        enough
            .then(|| errors(self, before, now).or_else(|| times(self, before, now)))
            .flatten()
    }
}

/// It cannot give a label that the version before gives.
fn lost(labels: &LabelsBeside) -> Option<String> {
    let LabelsBeside {
        theirs, missing, first, ..
    } = labels;
    let named: Vec<_> = first
        .iter()
        .take(MISSING_NAMED)
        .map(|label| cut_words(label, LABEL_MAX))
        .collect();
    let more = usize::try_from(*missing).is_ok_and(|missing| missing > named.len());
    (*missing > 0).then(|| {
        format!(
            "it does not know {missing} of the {theirs} labels of the version before ({}{}), which no client would get any more. Train \
             it with texts of them; where they are to go, name it in rollout.approvedVersion before it is tried again",
            named.join(", "),
            if more { ", …" } else { "" }
        )
    })
}

/// It answers too many of the texts that the version before was measured with in another way.
fn unlike(analysis: &Analysis, likeness: Agreement) -> Option<String> {
    let Agreement { texts, same } = likeness;
    let allowed = analysis.min_agreement.value()?;
    (share(same.into(), texts.into()) < allowed).then(|| {
        format!(
            "it gives {same} of the {texts} texts in the evaluation sample of the version before the label that that one gives, and \
             analysis.minAgreement is {allowed}"
        )
    })
}

/// More failures than the version before has and the limit allows, and not by chance.
fn errors(limits: &Limits<'_>, stable: &VersionFigures, canary: &VersionFigures) -> Option<String> {
    let allowed = limits.error_rate_increase.value()?;
    let (before_count, count) = (stable.texts + stable.failed, canary.texts + canary.failed);
    if before_count < MIN_REQUESTS {
        return None;
    }
    let (before, now) = (share(stable.failed, before_count), share(canary.failed, count));
    let variance = variance_of_share(stable.failed, before_count) + variance_of_share(canary.failed, count);
    let far = deviations(fewer(before_count, count), FEWEST, limits.level);
    (now - before - allowed > far * variance.sqrt()).then(|| {
        format!(
            "{:.1} % of {count} texts could not be computed, or not in time, of {} {:.1} %, and {:.1} points more are allowed",
            now * 100.0,
            limits.before,
            before * 100.0,
            allowed * 100.0
        )
    })
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn fewer(a: u64, b: u64) -> f64 {
    a.min(b) as f64
}

/// Mean and variance of the mean.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn mean(figures: &VersionFigures) -> (f64, f64) {
    let n = figures.alone as f64;
    let mean = figures.alone_seconds / n;
    let variance = (figures.alone_squares / n - mean * mean).max(0.0);
    (mean, variance / n)
}

/// A text takes longer than the limit allows, by more than its times vary.
fn times(limits: &Limits<'_>, stable: &VersionFigures, canary: &VersionFigures) -> Option<String> {
    if stable.alone < MIN_ALONE || canary.alone < MIN_ALONE {
        return None;
    }
    let allowed = 1.0 + f64::from(limits.compute_time_increase_percent) / 100.0;
    let ((before, before_variance), (now, now_variance)) = (mean(stable), mean(canary));
    let deviation = (now_variance + before_variance * allowed * allowed).sqrt();
    let far = deviations(fewer(stable.alone, canary.alone), FEWEST, limits.level) * deviation;
    (now - before * allowed > far && before > 0.0).then(|| {
        format!(
            "a text takes {:.1} ms to compute, with {} {:.1} ms, and {} % more are allowed",
            now * 1000.0,
            limits.before,
            before * 1000.0,
            limits.compute_time_increase_percent
        )
    })
}

/// It is less often right than the spec allows, and not by chance (the difference of two shares).
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn accuracy(analysis: &Analysis, stable: &VersionFigures, canary: &VersionFigures) -> Option<String> {
    let allowed = analysis.min_accuracy_delta.value()?;
    let (before, now) = (
        share(stable.correct, stable.judged),
        share(canary.correct, canary.judged),
    );
    let variance = variance_of_share(stable.correct, stable.judged) + variance_of_share(canary.correct, canary.judged);
    let far = deviations(fewer(stable.judged, canary.judged), FEWEST, LEVEL) * variance.sqrt();
    (now - before - allowed < -far).then(|| {
        format!(
            "clients say that {:.1} % of {} answers were right, of the version before {:.1} % of {}, and the smallest difference \
             allowed is {allowed}",
            now * 100.0,
            canary.judged,
            before * 100.0,
            stable.judged
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysis() -> Analysis {
        Analysis {
            max_error_rate_increase: Decimal::from("0.01"),
            max_compute_time_increase_percent: 20,
            min_agreement: Decimal::from("0.9"),
            min_accuracy_delta: Decimal::from("-0.01"),
            min_samples: 100,
        }
    }

    fn step(min_requests: Option<i32>) -> RolloutStep {
        RolloutStep {
            weight_percent: 10,
            duration_seconds: 60,
            min_requests,
        }
    }

    /// So many texts, each by itself and in ten milliseconds, give or take one.
    fn did(texts: u64) -> VersionFigures {
        VersionFigures {
            texts,
            alone: texts,
            alone_seconds: texts as f64 * 0.010,
            alone_squares: texts as f64 * 0.000_101,
            ..VersionFigures::default()
        }
    }

    fn of(figures: &Figures) -> Evidence<'_> {
        Evidence {
            figures,
            likeness: None,
            labels: None,
        }
    }

    fn word(canary: VersionFigures, min_requests: Option<i32>, feedback: bool, last: bool) -> String {
        let stable = VersionFigures {
            judged: 1000,
            correct: 900,
            ..did(5000)
        };
        let figures = Figures {
            stable,
            stable_beside: stable,
            canary,
        };
        match judge(Some(&analysis()), &step(min_requests), &of(&figures), feedback, last) {
            Opinion::Good => "good".to_owned(),
            Opinion::TooFew(why) => format!("too few: {why}"),
            Opinion::Bad(why) => why,
        }
    }

    #[test]
    fn a_version_is_judged_by_what_it_did() {
        type Row = (&'static str, VersionFigures, Option<i32>, bool, bool, &'static str);
        let table: [Row; 16] = [
            (
                "nothing yet, and nothing asked",
                did(0),
                None,
                true,
                false,
                "too few: it answered 0 texts, and without minRequests an analysis asks for 100",
            ),
            ("as many as are judged", did(100), None, false, false, "good"),
            (
                "too little",
                did(49),
                Some(50),
                false,
                true,
                "too few: it answered 49 texts",
            ),
            ("enough", did(50), Some(50), false, true, "good"),
            (
                "failures count as done",
                VersionFigures { failed: 1, ..did(49) },
                Some(50),
                false,
                false,
                "good",
            ),
            (
                "a failure or two",
                VersionFigures { failed: 2, ..did(120) },
                None,
                false,
                false,
                "good",
            ),
            (
                "many",
                VersionFigures { failed: 16, ..did(120) },
                None,
                false,
                false,
                "11.8 % of 136 texts",
            ),
            (
                "all",
                VersionFigures { failed: 100, ..did(0) },
                None,
                false,
                false,
                "100.0 % of 100 texts",
            ),
            (
                "many of few",
                VersionFigures { failed: 9, ..did(50) },
                None,
                false,
                false,
                "too few: it answered 59 texts",
            ),
            (
                "a little slower",
                VersionFigures {
                    alone_seconds: 1.1,
                    alone_squares: 0.0122,
                    ..did(100)
                },
                None,
                false,
                false,
                "good",
            ),
            (
                "slower",
                VersionFigures {
                    alone_seconds: 1.3,
                    alone_squares: 0.0170,
                    ..did(100)
                },
                None,
                false,
                false,
                "takes 13.0 ms",
            ),
            (
                "slower in some of its texts only",
                VersionFigures {
                    alone_seconds: 1.3,
                    alone_squares: 0.17,
                    ..did(100)
                },
                None,
                false,
                false,
                "good",
            ),
            ("not judged", did(500), None, true, true, "too few: 0 of its answers"),
            ("nobody can judge", did(500), None, false, true, "good"),
            (
                "right as often",
                VersionFigures {
                    judged: 200,
                    correct: 176,
                    ..did(500)
                },
                None,
                true,
                true,
                "good",
            ),
            (
                "less often",
                VersionFigures {
                    judged: 200,
                    correct: 150,
                    ..did(500)
                },
                None,
                true,
                false,
                "75.0 % of 200 answers",
            ),
        ];
        for (case, canary, min_requests, feedback, last, expected) in table {
            let told = word(canary, min_requests, feedback, last);
            assert!(told.contains(expected), "{case}: {told}");
        }
        // Without an analysis only the number counts.
        let bad = Figures {
            stable: did(1000),
            stable_beside: did(1000),
            canary: VersionFigures {
                failed: 900,
                ..did(100)
            },
        };
        let unlike = Evidence {
            likeness: Some(Agreement { texts: 200, same: 0 }),
            ..of(&bad)
        };
        assert_eq!(judge(None, &step(Some(10)), &unlike, true, true), Opinion::Good);
    }

    #[test]
    fn labels_that_are_lost_are_named_with_or_without_an_analysis() {
        let labels = |missing: u32, first: &[&str]| LabelsBeside {
            to: Digest::sha256(&"1".repeat(64)),
            theirs: 19,
            missing,
            first: first.iter().map(|label| (*label).to_owned()).collect(),
        };
        let long = "l".repeat(300);
        for (missing, first, expected) in [
            (0, vec![], None),
            (
                1,
                vec!["TurnOn"],
                Some("it does not know 1 of the 19 labels of the version before (TurnOn), which"),
            ),
            (
                5,
                vec!["a", "b", "c"],
                Some("5 of the 19 labels of the version before (a, b, c, …), which"),
            ),
            // What a pod says is bounded here as well.
            (9, vec![&long, "b", "c", "d", "e"], Some("…, b, c, …), which")),
        ] {
            // As many as are asked for, and none of the version before to compare them with.
            let figures = Figures {
                canary: did(MIN_REQUESTS),
                ..Figures::default()
            };
            let labels = labels(missing, &first);
            let evidence = Evidence {
                labels: Some(&labels),
                ..of(&figures)
            };
            for analysis in [None, Some(analysis())] {
                match (judge(analysis.as_ref(), &step(None), &evidence, false, true), expected) {
                    (Opinion::Good, None) => {}
                    (Opinion::Bad(why), Some(expected)) => {
                        assert!(
                            why.contains(expected) && why.contains("rollout.approvedVersion"),
                            "{why}"
                        );
                        assert!(why.len() < 500, "{why}");
                    }
                    (opinion, _) => panic!("{missing}: {opinion:?}"),
                }
                let told = judged(analysis.as_ref(), &step(None), &evidence);
                assert_eq!(told, [RolloutFigure::Labels]);
            }
        }
    }

    #[test]
    fn what_there_is_too_little_of_is_not_judged() {
        use RolloutFigure::{Accuracy, Agreement as Same, ComputeTime, ErrorRate};
        let with = |judged: u64| VersionFigures { judged, ..did(200) };
        let figures = |stable: VersionFigures, canary: VersionFigures| Figures {
            stable,
            stable_beside: stable,
            canary,
        };
        let agreement = |texts| Some(Agreement { texts, same: texts });
        let rows: [(Figures, Option<Agreement>, &[RolloutFigure]); 6] = [
            (Figures::default(), None, &[]),
            (
                figures(with(100), with(100)),
                agreement(200),
                &[Same, ErrorRate, ComputeTime, Accuracy],
            ),
            (figures(with(100), with(99)), agreement(29), &[ErrorRate, ComputeTime]),
            (
                figures(with(99), with(100)),
                agreement(30),
                &[Same, ErrorRate, ComputeTime],
            ),
            (
                figures(with(100), VersionFigures { alone: 29, ..with(100) }),
                None,
                &[ErrorRate, Accuracy],
            ),
            (figures(did(200), did(99)), None, &[]),
        ];
        for (figures, likeness, expected) in rows {
            let evidence = Evidence {
                likeness,
                ..of(&figures)
            };
            assert_eq!(
                judged(Some(&analysis()), &step(None), &evidence),
                expected,
                "{figures:?}"
            );
            assert_eq!(judged(None, &step(None), &evidence), []);
        }
    }

    #[test]
    fn both_versions_are_judged_by_the_same_time() {
        use flywheel_contract::serving::{LoadState, Stats, VersionStats};
        let version = |digit: &str| ServedVersion {
            name: format!("v{digit}"),
            artifact: flywheel_contract::trainer::ArtifactRef {
                uri: "s3://m".into(),
                digest: Digest::sha256(&digit.repeat(64)),
            },
        };
        let pod = |name: &str, all: &[(&str, VersionFigures)]| PodSays {
            name: name.to_owned(),
            ended: None,
            stats: Some(Stats {
                schema_version: 1,
                ready: true,
                generation: 1,
                serving: None,
                versions: all
                    .iter()
                    .map(|(digit, figures)| VersionStats {
                        name: format!("v{digit}"),
                        digest: Digest::sha256(&digit.repeat(64)),
                        state: LoadState::Ready,
                        precision: None,
                        agreement: None,
                        likeness: None,
                        labels: None,
                        failure: None,
                        crash: None,
                        figures: Some(*figures),
                        copies: None,
                    })
                    .collect(),
                answered: [0; 3],
                in_flight: 0,
                uptime_seconds: 1.0,
                load: None,
            }),
        };
        let (stable, canary) = (version("1"), version("2"));
        let mut watch = Watch::begin(&canary, &stable, &[pod("a", &[("1", did(1000)), ("2", did(0))])]);
        assert!(watch.is_of(&canary) && !watch.is_of(&stable));
        let now = [
            pod("a", &[("1", did(1040)), ("2", did(7))]),
            pod("b", &[("1", did(300)), ("2", did(5))]),
            pod("c", &[("1", did(900))]),
        ];
        watch.meet(&[&canary, &stable], &now);
        let figures = watch.figures(&canary, &stable, &now);
        assert_eq!(
            (figures.stable.texts, figures.canary.texts),
            (40, 7),
            "b and c are new, whatever they did"
        );
        // A process that began anew.
        let later = [
            pod("a", &[("1", did(10)), ("2", did(3))]),
            pod("b", &[("1", did(320)), ("2", did(8))]),
            pod("c", &[("1", did(902))]),
        ];
        let figures = watch.figures(&canary, &stable, &later);
        assert_eq!((figures.stable.texts, figures.canary.texts), (32, 6));
        assert_eq!(figures.stable_beside.texts, 30, "c has nothing to compare with");
    }
}
