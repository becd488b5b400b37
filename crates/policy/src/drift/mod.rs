//! Whether live texts have drifted: windows of what a version answered, each compared with a reference; and whether its answers
//! are right less often than before.
//!
//! A feature has drifted in a window where it is farther apart than the spec allows, beyond what chance brings about, and where a
//! test says that chance is not the reason. The tests' level is such that in a week of windows without any drift all of them
//! together raise one false alarm in a hundred weeks at most, however often somebody looks; that several windows one after another
//! must have drifted makes it fewer still.

mod history;
mod quality;
mod statistics;

pub use history::{History, Streak, Window};
pub use quality::{Comparison, F1, Quality, QualityVerdict, Span};
pub use statistics::{chi_squared, fewer_by_chance, kolmogorov, ks, psi, psi_by_chance};

use history::end_of;

use flywheel_api::conditions::{Desired, Status, reasons, types};
use flywheel_api::drift::{Drift, DriftReference, DriftStatus, FeatureDrift};
use flywheel_contract::profile::{DataProfile, Histogram, Judged as FeedbackCounts};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// False alarms in a week without drift.
const FALSE_ALARMS: f64 = 0.01;
const WEEK_SECONDS: f64 = 7.0 * 24.0 * 3600.0;
/// Tests of a window: χ² for each of the eight features, and Kolmogorov-Smirnov for the six that have an order.
const TESTS: f64 = 14.0;

/// What is compared of a window.
pub const FEATURES: [&str; 8] = [
    "length",
    "confidence",
    "vocabulary",
    "classes",
    "projection1",
    "projection2",
    "projection3",
    "projection4",
];

/// A feature of a window beside that of the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Population stability index.
    pub psi: f64,
    /// Of it, what chance brings about in the mean.
    pub by_chance: f64,
    /// Kolmogorov-Smirnov distance, where it has an order.
    pub ks: Option<f64>,
    /// It has drifted.
    pub drifted: bool,
}

/// A window that was judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Its number.
    pub id: u64,
    /// When it ended.
    pub end: Timestamp,
    /// Its texts.
    pub texts: u64,
    /// Texts of the reference.
    pub reference: u64,
    /// The farthest apart first.
    pub features: Vec<Feature>,
}

impl Judged {
    /// Whether a feature has drifted.
    #[must_use]
    pub fn drifted(&self) -> bool {
        self.features.iter().any(|feature| feature.drifted)
    }
}

/// What there is to say of a service's live texts; by default that nothing was compared yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether they have drifted; none as long as nothing could be compared.
    pub drifted: Option<bool>,
    /// The last window that was judged.
    pub last: Option<Judged>,
    /// Texts of the window that ended last, where it was too few of them to be judged.
    pub too_few: Option<u64>,
    /// What clients said of the version, in the windows that are kept.
    pub judged: FeedbackCounts,
    /// What they said since texts drifted, or answers became worse.
    pub called: FeedbackCounts,
    /// Whether answers are right less often than before.
    pub quality: QualityVerdict,
}

/// Compares two profiles over the same bins. `level`: probability from which on a difference is not chance.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn compare(reference: &DataProfile, window: &DataProfile, limits: (f64, f64), level: f64) -> Vec<Feature> {
    let (n, m) = (reference.texts as f64, window.texts as f64);
    let (psi_limit, ks_limit) = limits;
    let feature = |name, reference: &[u64], window: &[u64], ordered: bool| {
        let total = |counts: &[u64]| counts.iter().sum::<u64>();
        if total(reference) == 0 || total(window) == 0 {
            return None;
        }
        // The tokens of a text belong together: as many of them as there are texts say something of their own.
        let each = (m / total(window) as f64).min(1.0);
        let value = psi(reference, window);
        let by_chance = psi_by_chance(reference, window, n, m);
        let distance = ordered.then(|| ks(reference, window));
        let shifted = value - by_chance >= psi_limit && chi_squared(reference, window, each) < level;
        let moved = distance.is_some_and(|d| d >= ks_limit && kolmogorov(d, n, m) < level);
        Some(Feature {
            name,
            psi: value,
            by_chance,
            ks: distance,
            drifted: shifted || moved,
        })
    };
    let ordered =
        |name, reference: &Histogram, window: &Histogram| feature(name, &reference.counts, &window.counts, true);
    let [length, confidence, vocabulary, classes, projections @ ..] = FEATURES;
    let projections = projections
        .into_iter()
        .zip(reference.projections.iter().zip(&window.projections));
    let mut features: Vec<Feature> = [
        ordered(length, &reference.length, &window.length),
        ordered(confidence, &reference.confidence, &window.confidence),
        feature(vocabulary, &reference.vocabulary, &window.vocabulary, false),
        feature(classes, &reference.classes, &window.classes, false),
    ]
    .into_iter()
    .chain(projections.map(|(name, (reference, window))| ordered(name, reference, window)))
    .flatten()
    .collect();
    features.sort_by(|a, b| {
        (b.drifted, b.psi - b.by_chance)
            .partial_cmp(&(a.drifted, a.psi - a.by_chance))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    features
}

/// Probability from which on a difference is not chance, in windows of this length.
#[must_use]
pub fn level(window_seconds: u32) -> f64 {
    FALSE_ALARMS * f64::from(window_seconds) / WEEK_SECONDS / TESTS
}

/// When a window is over and all pods were read that counted in it. `settle_seconds`: how long that takes.
fn is_over(window: &Window, window_seconds: u32, settle_seconds: u64, now: u64) -> bool {
    end_of(window.id, window_seconds) + settle_seconds <= now
}

/// Seconds since 1970.
#[must_use]
pub fn unix(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0)
}

fn min_samples(spec: &Drift) -> u64 {
    u64::try_from(spec.min_samples).unwrap_or(1).max(1)
}

fn needed_windows(spec: &Drift) -> u32 {
    u32::try_from(spec.consecutive_windows).unwrap_or(1).max(1)
}

/// What windows are compared with, and the window from which on they are.
fn reference<'a>(history: &'a History, spec: &Drift) -> Option<(&'a [u64], u64)> {
    match spec.reference {
        DriftReference::FirstWindow => history
            .first
            .as_ref()
            .map(|first| (first.counts.as_slice(), first.id + 1)),
        DriftReference::TestSet => history.test.as_ref().map(|test| (test.as_slice(), 0)),
    }
}

/// The windows that are over and can be judged, ascending.
fn over(history: &History, from: u64, settle_seconds: u64, now: Timestamp) -> impl Iterator<Item = &Window> {
    let (length, now) = (history.window_seconds, unix(now));
    let windows = history.windows.iter();
    windows.filter(move |window| window.id >= from && is_over(window, length, settle_seconds, now))
}

fn judged(history: &History, reference: &[u64], window: &Window, spec: &Drift) -> Judged {
    let reference = history.profile(reference);
    let limits = (
        spec.psi.value().unwrap_or(f64::MAX),
        spec.ks.value().unwrap_or(f64::MAX),
    );
    let end = end_of(window.id, history.window_seconds);
    Judged {
        id: window.id,
        end: Timestamp::from_second(i64::try_from(end).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX),
        texts: window.texts(),
        reference: reference.texts,
        features: compare(
            &reference,
            &history.profile(&window.counts),
            limits,
            level(history.window_seconds),
        ),
    }
}

/// Notes in the history what it is compared with, once that is known, and judges the windows that are over and were not judged, one
/// after another. Whether something is new.
pub fn settle(history: &mut History, spec: &Drift, settle_seconds: u64, now: Timestamp) -> bool {
    let length = history.window_seconds;
    let now_seconds = unix(now);
    let mut new = history.take_first(min_samples(spec), |window| {
        is_over(window, length, settle_seconds, now_seconds)
    });
    new |= history.quality.settle(spec, now_seconds.saturating_sub(settle_seconds));
    new |= settle_texts(history, spec, settle_seconds, now);
    new | history.call()
}

fn settle_texts(history: &mut History, spec: &Drift, settle_seconds: u64, now: Timestamp) -> bool {
    let Some((reference, from)) = reference(history, spec) else {
        return false;
    };
    let mut streak = history.streak;
    let from = from.max(streak.window.map_or(0, |window| window + 1));
    for window in over(history, from, settle_seconds, now) {
        streak.window = Some(window.id);
        if window.texts() < min_samples(spec) {
            continue;
        }
        let drifted = judged(history, reference, window, spec).drifted();
        streak.note(window.id, window.id, drifted, needed_windows(spec));
    }
    let new = history.streak != streak;
    history.streak = streak;
    new
}

/// What there is to say of what was judged.
#[must_use]
pub fn judge(history: &History, spec: &Drift, settle_seconds: u64, now: Timestamp) -> Verdict {
    let reference = reference(history, spec);
    let from = reference.map_or(0, |(_, from)| from);
    let enough = |window: &&Window| window.texts() >= min_samples(spec);
    let newest = over(history, from, settle_seconds, now).last();
    let last = over(history, from, settle_seconds, now).filter(enough).last();
    let last = last.filter(|last| history.streak.window >= Some(last.id));
    Verdict {
        drifted: history.streak.drifted,
        last: reference
            .zip(last)
            .map(|((reference, _), window)| judged(history, reference, window, spec)),
        too_few: newest.map(Window::texts).filter(|texts| *texts < min_samples(spec)),
        judged: history.judged(),
        called: history.called.map(|called| called.judged).unwrap_or_default(),
        quality: history.quality.verdict(spec, unix(now).saturating_sub(settle_seconds)),
    }
}

impl Verdict {
    /// In a few words what has drifted most; empty where nothing was judged.
    #[must_use]
    pub fn cause(&self) -> String {
        let Some(last) = &self.last else {
            return String::new();
        };
        let features = last.features.iter().filter(|feature| feature.drifted).take(3).map(told);
        format!(
            "{} in {} texts until {:.0}, compared with {} texts of the reference",
            features.collect::<Vec<_>>().join("; "),
            last.texts,
            last.end,
            last.reference
        )
    }

    /// Why the service is to be trained anew: the texts have drifted, or answers are right less often. None where neither is so.
    #[must_use]
    pub fn alarm(&self) -> Option<String> {
        let drifted = (self.drifted == Some(true)).then(|| self.cause());
        let dropped = (self.quality.dropped == Some(true)).then(|| self.quality.told());
        match (drifted, dropped) {
            (Some(drifted), Some(dropped)) => Some(format!("{drifted}; {dropped}")),
            (drifted, dropped) => drifted.or(dropped),
        }
    }

    /// The condition: of the texts, or, where only the answers have become worse, of those.
    #[must_use]
    pub fn condition(&self, spec: &Drift) -> Desired {
        let mut of_texts = self.condition_of_texts(spec);
        let Some(last) = self.quality.last.filter(|_| self.quality.dropped == Some(true)) else {
            return of_texts;
        };
        let told = self.quality.told();
        let needed = needed_windows(spec);
        let message = if last.dropped {
            format!(
                "{told}. Limit: a drop of {}, {needed} times one after another",
                spec.accuracy_drop
            )
        } else {
            format!(
                "answers were right less often; the last time not ({told}), and it takes {needed} such times one after another until this is False"
            )
        };
        if of_texts.status == Status::True {
            of_texts.message = format!("{}. {message}", of_texts.message);
            return of_texts;
        }
        Desired::new(types::DRIFT_DETECTED, Status::True, reasons::ACCURACY_DROPPED, message)
    }

    fn condition_of_texts(&self, spec: &Drift) -> Desired {
        let desired = |status, reason, message: String| Desired::new(types::DRIFT_DETECTED, status, reason, message);
        match (self.drifted, &self.last, self.too_few) {
            (Some(true), Some(last), _) if !last.drifted() => desired(
                Status::True,
                reasons::DRIFTED,
                format!(
                    "the texts have drifted; the last window has not, and {} must follow it until this is False",
                    spec.consecutive_windows.saturating_sub(1)
                ),
            ),
            (Some(true), ..) => desired(
                Status::True,
                reasons::DRIFTED,
                format!(
                    "{}. Limits: PSI {}, KS {}, in {} windows one after another",
                    self.cause(),
                    spec.psi,
                    spec.ks,
                    spec.consecutive_windows
                ),
            ),
            (Some(false), Some(last), _) if last.drifted() => desired(
                Status::False,
                reasons::NO_DRIFT,
                format!(
                    "the last window has drifted ({}), fewer than {} one after another so far",
                    self.cause(),
                    spec.consecutive_windows
                ),
            ),
            (Some(false), Some(last), _) => {
                let farthest = last.features.first().map(told).unwrap_or_default();
                desired(
                    Status::False,
                    reasons::NO_DRIFT,
                    format!(
                        "{} texts until {:.0}; the farthest apart: {farthest}",
                        last.texts, last.end
                    ),
                )
            }
            (_, _, Some(texts)) => desired(
                Status::Unknown,
                reasons::INSUFFICIENT_TRAFFIC,
                format!(
                    "the last window has {texts} texts, and drift.minSamples is {}; make windowSeconds longer, or wait for more \
                     traffic",
                    spec.min_samples
                ),
            ),
            _ => desired(
                Status::Unknown,
                reasons::COLLECTING_REFERENCE,
                format!(
                    "nothing was compared yet: a window of {} s with at least {} texts is waited for",
                    spec.window_seconds, spec.min_samples
                ),
            ),
        }
    }

    /// What the status says of it.
    #[must_use]
    pub fn status(&self, version: &str) -> Option<DriftStatus> {
        let last = self.last.as_ref()?;
        let count = |texts: u64| i32::try_from(texts).unwrap_or(i32::MAX);
        Some(DriftStatus {
            model_version: version.to_owned(),
            window_end: Time(last.end),
            texts: count(last.texts),
            reference_texts: count(last.reference),
            judged: (!self.judged.is_empty()).then(|| count(self.judged.predictions)),
            accuracy: (!self.judged.is_empty()).then(|| format!("{:.3}", accuracy(self.judged))),
            features: last
                .features
                .iter()
                .map(|feature| FeatureDrift {
                    name: feature.name.to_owned(),
                    psi: format!("{:.3}", feature.psi),
                    ks: feature.ks.map(|ks| format!("{ks:.3}")),
                    drifted: feature.drifted,
                })
                .collect(),
        })
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn accuracy(judged: FeedbackCounts) -> f64 {
    judged.correct as f64 / judged.predictions.max(1) as f64
}

fn told(feature: &Feature) -> String {
    let ks = feature.ks.map(|ks| format!(", KS {ks:.3}")).unwrap_or_default();
    format!(
        "{} PSI {:.3} ({:.3} by chance){ks}",
        feature.name, feature.psi, feature.by_chance
    )
}

#[cfg(test)]
mod tests;
