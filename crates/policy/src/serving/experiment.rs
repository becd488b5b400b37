//! Experiments: what their variants did since they began, which of them is right more often than the version of `modelVersion`, and
//! which did worse than the spec allows.
//!
//! What was counted stands in a ConfigMap, so that an operator that restarts goes on where the one before was. Variants that were
//! stopped stand in the assignment, where their shares are.

use std::collections::{BTreeMap, BTreeSet};

use flywheel_api::conditions::{Desired, Status, reasons, types};
use flywheel_api::experiment::{
    ComparisonStatus, Experiment, ExperimentMetric, ExperimentStatus, ExperimentVerdict, VariantStatus,
};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::serving::{ServedVersion, Stopped, Trial, VersionFigures};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use super::analysis::{Limits, plus, since};
use super::sequential::{difference, share};

/// Probability that any verdict of an experiment is chance, however often somebody looks and however many variants there are.
const LEVEL: f64 = 0.05;
/// Probability that a guardrail stops any variant by chance, for each figure.
const GUARDRAIL_LEVEL: f64 = 0.01;
/// Most figures that are remembered as read, of all pods and variants: about 60 bytes each in a ConfigMap. What further pods say is
/// not counted.
const SEEN_MAX: usize = 3_000;
/// Hexadecimal digits of a digest that tell an artifact from others.
const DIGITS: usize = 16;

/// The experiment of these variants, with those that are `known` to be stopped in the same experiment.
#[must_use]
pub fn trial(metric: ExperimentMetric, variants: &[&ServedVersion], known: &[Trial]) -> Trial {
    let each = |version: &&ServedVersion| {
        let digits: String = version.artifact.digest.hex().chars().take(DIGITS).collect();
        format!("{}={digits}", version.name)
    };
    let all: BTreeSet<String> = variants.iter().map(each).collect();
    let all: Vec<String> = all.into_iter().collect();
    let metric = match metric {
        ExperimentMetric::Accuracy => "accuracy",
    };
    let id = format!("{metric} {}", all.join(" "));
    let mut stopped: Vec<Stopped> = Vec::new();
    for known in known
        .iter()
        .filter(|known| known.id == id)
        .flat_map(|known| &known.stopped)
    {
        if !stopped.iter().any(|stopped| stopped.version == known.version) {
            stopped.push(known.clone());
        }
    }
    Trial { id, stopped }
}

/// What a pod said last of a version: [`VersionFigures`] in their order, as short as they can be written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Seen(u64, u64, u64, f64, f64, u64, u64);

impl Seen {
    fn of(figures: VersionFigures) -> Self {
        Self(
            figures.texts,
            figures.failed,
            figures.alone,
            figures.alone_seconds,
            figures.alone_squares,
            figures.judged,
            figures.correct,
        )
    }

    fn figures(self) -> VersionFigures {
        let Self(texts, failed, alone, alone_seconds, alone_squares, judged, correct) = self;
        VersionFigures {
            texts,
            failed,
            alone,
            alone_seconds,
            alone_squares,
            judged,
            correct,
        }
    }
}

/// Seven digits of a number. What is added up are differences of what was rounded, so the errors do not add up.
fn rounded(number: f64) -> f64 {
    format!("{number:.6e}").parse().unwrap_or(number)
}

/// What was counted of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    schema_version: u32,
    /// [`Trial::id`].
    id: String,
    /// [`Assignment::judged_since`](flywheel_contract::serving::Assignment::judged_since): the same variants may be compared again.
    since: Option<u64>,
    /// When its variants were first seen to answer, in seconds since 1970.
    began: u64,
    /// Its variants.
    versions: Vec<String>,
    /// What each did since, in their order.
    sums: Vec<VersionFigures>,
    /// What was read of each in each pod, by the pod's uid.
    seen: BTreeMap<String, Vec<Option<Seen>>>,
    /// Verdicts, which stand.
    #[serde(default)]
    verdicts: BTreeMap<String, Comparison>,
    /// Predictions at which its intervals are narrowest: `minSamples` when it was judged first. They hold at all looks together
    /// only where that does not change in between.
    #[serde(default)]
    narrowest: Option<u64>,
}

/// A variant beside the version of `modelVersion`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// What there is to say.
    pub verdict: ExperimentVerdict,
    /// The version of `modelVersion`.
    pub control: String,
    /// Judged predictions of the variant.
    pub judged: u64,
    /// Those of the version of `modelVersion`.
    pub control_judged: u64,
    /// The variant's accuracy less that of the version of `modelVersion`.
    pub effect: f64,
    /// What it may be in truth: from here.
    pub lower: f64,
    /// To here.
    pub upper: f64,
}

impl Tally {
    /// Begins; what pods did before does not count.
    #[must_use]
    pub fn begin(id: &str, since: Option<u64>, versions: &[&str], now: u64) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            id: id.to_owned(),
            since,
            began: now,
            versions: versions.iter().map(|&version| version.to_owned()).collect(),
            sums: vec![VersionFigures::default(); versions.len()],
            seen: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            narrowest: None,
        }
    }

    /// Whether it is about this experiment.
    #[must_use]
    pub fn is_of(&self, id: &str, since: Option<u64>) -> bool {
        self.schema_version == SCHEMA_VERSION && self.id == id && self.since == since
    }

    /// Adds what a pod did with these versions since it was read last. `started`: when its process did, in seconds since 1970; of one
    /// that is older than the experiment, what it says first is what it did before. Whether something is new.
    pub fn add(&mut self, pod: &str, started: u64, told: &[(&str, VersionFigures)]) -> bool {
        let all = self.versions.len();
        if !self.seen.contains_key(pod) && (self.seen.len() + 1) * all > SEEN_MAX {
            return false;
        }
        let seen = self.seen.entry(pod.to_owned()).or_insert_with(|| vec![None; all]);
        let mut any = false;
        for ((version, sum), seen) in self.versions.iter().zip(&mut self.sums).zip(seen) {
            let Some((_, figures)) = told.iter().find(|(name, _)| name == version) else {
                continue;
            };
            let now = VersionFigures {
                alone_seconds: rounded(figures.alone_seconds),
                alone_squares: rounded(figures.alone_squares),
                ..*figures
            };
            let before = seen.replace(Seen::of(now));
            let added = match before {
                Some(before) => since(now, before.figures()),
                None if started > self.began => now,
                None => VersionFigures::default(),
            };
            any |= before != *seen;
            *sum = plus(*sum, added);
        }
        any
    }

    /// Forgets what was read of pods that are gone; what they did stays.
    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) {
        self.seen.retain(|pod, _| alive(pod));
    }

    /// What a version did since the experiment began.
    fn did(&self, version: &str) -> VersionFigures {
        let mut all = self.versions.iter().zip(&self.sums);
        let found = all.find(|(name, _)| *name == version);
        found.map_or_else(VersionFigures::default, |(_, did)| *did)
    }

    /// Compares the variants with `control`, the version of `modelVersion`, and notes new verdicts, which stand from then on: whoever
    /// looks again and again would else see one come and go.
    pub fn judge(&mut self, spec: &Experiment, control: &str, trial: &Trial) -> Findings {
        let names: Vec<&str> = spec.variants.iter().map(|v| v.model_version.as_str()).collect();
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != control).collect();
        #[allow(clippy::cast_precision_loss, reason = "there are at most five")]
        let comparisons = others.len().max(1) as f64;
        let before = self.did(control);
        let mut stopped: Vec<Stopped> = trial.stopped.iter().filter(|s| s.version != control).cloned().collect();
        let mut broken = Vec::new();
        for name in &others {
            let limits = spec.guardrails.as_ref().map(|guardrails| Limits {
                error_rate_increase: &guardrails.max_error_rate_increase,
                compute_time_increase_percent: guardrails.max_compute_time_increase_percent,
                level: GUARDRAIL_LEVEL / comparisons,
                before: control,
            });
            let is_stopped = stopped.iter().any(|stopped| stopped.version == *name);
            let why = limits.filter(|_| !is_stopped);
            if let Some(why) = why.and_then(|limits| limits.broken(&before, &self.did(name))) {
                let version = (*name).to_owned();
                broken.push(Stopped { version, why });
            }
        }
        stopped.extend(broken.iter().cloned());
        let needed = u64::try_from(spec.min_samples).unwrap_or(1);
        let narrowest = *self.narrowest.get_or_insert(needed);
        self.verdicts.retain(|_, verdict| verdict.control == control);
        let compared = others.iter().map(|name| {
            if let Some(stands) = self.verdicts.get(*name) {
                return ((*name).to_owned(), stands.clone());
            }
            let of = self.did(name);
            #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            let narrowest = narrowest as f64;
            let (effect, [lower, upper]) = difference(
                (before.correct, before.judged),
                (of.correct, of.judged),
                narrowest,
                LEVEL / comparisons,
            );
            let verdict = if stopped.iter().any(|stopped| stopped.version == *name) {
                ExperimentVerdict::Stopped
            } else if of.judged < needed || before.judged < needed {
                ExperimentVerdict::Collecting
            } else if lower > 0.0 {
                ExperimentVerdict::Better
            } else if upper < 0.0 {
                ExperimentVerdict::Worse
            } else {
                ExperimentVerdict::Undecided
            };
            let comparison = Comparison {
                verdict,
                control: control.to_owned(),
                judged: of.judged,
                control_judged: before.judged,
                effect,
                lower,
                upper,
            };
            ((*name).to_owned(), comparison)
        });
        let compared: Vec<(String, Comparison)> = compared.collect();
        for (name, comparison) in compared.iter().filter(|(_, comparison)| is_verdict(comparison.verdict)) {
            self.verdicts.insert(name.clone(), comparison.clone());
        }
        let all = std::iter::once(control).chain(others.iter().copied());
        Findings {
            began: self.began,
            control: control.to_owned(),
            variants: all.map(|name| (name.to_owned(), self.did(name))).collect(),
            compared,
            stopped,
            broken,
        }
    }
}

/// Whether it stands.
#[must_use]
pub fn is_verdict(verdict: ExperimentVerdict) -> bool {
    matches!(verdict, ExperimentVerdict::Better | ExperimentVerdict::Worse)
}

/// What there is to say of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// When its variants were first seen to answer, in seconds since 1970.
    pub began: u64,
    /// The version of `modelVersion`.
    pub control: String,
    /// What each variant did since, the version of `modelVersion` first.
    pub variants: Vec<(String, VersionFigures)>,
    /// The others beside it.
    pub compared: Vec<(String, Comparison)>,
    /// Variants that get no requests.
    pub stopped: Vec<Stopped>,
    /// Those of them that do as yet.
    pub broken: Vec<Stopped>,
}

/// In points.
fn points(share: f64) -> String {
    format!("{:+.2}", share * 100.0)
}

impl Findings {
    /// Whether the other one says nothing new of verdicts and guardrails, only of counts.
    #[must_use]
    pub fn says_as(&self, other: &Self) -> bool {
        let verdicts = |findings: &Self| -> Vec<(String, ExperimentVerdict)> {
            let all = findings.compared.iter();
            all.map(|(name, comparison)| (name.clone(), comparison.verdict))
                .collect()
        };
        self.began == other.began
            && self.control == other.control
            && self.stopped == other.stopped
            && verdicts(self) == verdicts(other)
    }

    fn with(&self, verdict: ExperimentVerdict) -> impl Iterator<Item = &(String, Comparison)> {
        self.compared
            .iter()
            .filter(move |(_, comparison)| comparison.verdict == verdict)
    }

    /// Why a variant gets no requests, where it gets none.
    fn why(&self, name: &str) -> Option<&str> {
        let stopped = self.stopped.iter().find(|stopped| stopped.version == name)?;
        Some(&stopped.why)
    }

    /// A comparison in words.
    fn told(&self, name: &str, comparison: &Comparison) -> String {
        let what = match comparison.verdict {
            ExperimentVerdict::Stopped => {
                return format!("{name} is stopped: {}", self.why(name).unwrap_or_default());
            }
            ExperimentVerdict::Collecting => {
                return format!(
                    "{} predictions of {name} and {} of {} were judged",
                    comparison.judged, comparison.control_judged, self.control
                );
            }
            ExperimentVerdict::Undecided => "may be better or worse than",
            ExperimentVerdict::Better => "is right more often than",
            ExperimentVerdict::Worse => "is right less often than",
        };
        let stopped = self
            .why(name)
            .map_or_else(String::new, |why| format!(", and is stopped: {why}"));
        format!(
            "{name} {what} {}: {} points ({} to {}) of {} and {} judged predictions{stopped}",
            self.control,
            points(comparison.effect),
            points(comparison.lower),
            points(comparison.upper),
            comparison.judged,
            comparison.control_judged
        )
    }

    /// Of those that are better and may go on to answer, the one by most.
    fn best(&self) -> Option<&str> {
        let all = self
            .with(ExperimentVerdict::Better)
            .filter(|(name, _)| self.why(name).is_none());
        let best = all.max_by(|(_, a), (_, b)| a.effect.total_cmp(&b.effect))?;
        Some(&best.0)
    }

    /// The condition. `feedback`: clients can say what would have been right. `auto_update`: newer versions are taken once the
    /// experiment is gone.
    #[must_use]
    pub fn condition(&self, spec: &Experiment, feedback: bool, auto_update: bool) -> Desired {
        let all: Vec<String> = self.compared.iter().map(|(name, c)| self.told(name, c)).collect();
        let all = all.join("; ");
        let desired =
            |status, reason, message: String| Desired::new(types::EXPERIMENT_CONCLUDED, status, reason, message);
        let count = |verdict| self.with(verdict).count();
        let open = count(ExperimentVerdict::Collecting) + count(ExperimentVerdict::Undecided);
        if let Some(best) = self.best() {
            return desired(
                Status::True,
                reasons::VARIANT_BETTER,
                format!(
                    "{all}. To answer with the best so far alone, set modelVersion to {best} and take experiment out{}",
                    if auto_update && self.bad().is_some() {
                        self.exclude()
                    } else {
                        String::new()
                    }
                ),
            );
        }
        if open == 0 {
            let reason = if count(ExperimentVerdict::Worse) > 0 {
                reasons::VARIANT_WORSE
            } else {
                reasons::GUARDRAIL_BROKEN
            };
            let exclude = if auto_update { self.exclude() } else { String::new() };
            return desired(
                Status::True,
                reason,
                format!(
                    "{all}. Take experiment out, and {} answers alone again{exclude}",
                    self.control
                ),
            );
        }
        if !feedback {
            return desired(
                Status::Unknown,
                reasons::NOT_JUDGED,
                format!(
                    "nobody says which answers are right: set feedback, and let clients send to /feedback what would have been \
                     right. {}",
                    if spec.guardrails.is_some() {
                        format!("Guardrails are watched all the same. {all}")
                    } else {
                        all
                    }
                ),
            );
        }
        if count(ExperimentVerdict::Undecided) == 0 {
            return desired(
                Status::False,
                reasons::COLLECTING,
                format!("{all}; minSamples is {} of each", spec.min_samples),
            );
        }
        desired(Status::False, reasons::UNDECIDED, all)
    }

    /// A variant that is not to be taken.
    fn bad(&self) -> Option<&str> {
        let stopped = self.stopped.first().map(|stopped| stopped.version.as_str());
        self.with(ExperimentVerdict::Worse)
            .next()
            .map(|(name, _)| name.as_str())
            .or(stopped)
    }

    fn exclude(&self) -> String {
        let name = self.bad().unwrap_or_default();
        format!("; autoUpdate may take {name} then, unless it stands in autoUpdate.exclude")
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> ExperimentStatus {
        let count = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
        let began = i64::try_from(self.began).ok();
        ExperimentStatus {
            began: Time(
                began
                    .and_then(|began| Timestamp::from_second(began).ok())
                    .unwrap_or(Timestamp::MAX),
            ),
            variants: self
                .variants
                .iter()
                .map(|(name, did)| VariantStatus {
                    model_version: name.clone(),
                    judged: count(did.judged),
                    accuracy: (did.judged > 0).then(|| format!("{:.4}", share(did.correct, did.judged))),
                    stopped: self.why(name).map(str::to_owned),
                })
                .collect(),
            comparisons: self
                .compared
                .iter()
                .map(|(name, comparison)| {
                    let known = comparison.judged > 0 && comparison.control_judged > 0;
                    let shown = |value: f64| known.then(|| format!("{value:.4}"));
                    ComparisonStatus {
                        model_version: name.clone(),
                        verdict: comparison.verdict,
                        judged: count(comparison.judged),
                        control_judged: count(comparison.control_judged),
                        effect: shown(comparison.effect),
                        lower: shown(comparison.lower),
                        upper: shown(comparison.upper),
                    }
                })
                .collect(),
        }
    }

    /// What is new beside what status said before: reasons and messages of events, and whether they are warnings.
    #[must_use]
    pub fn news(&self, before: &ExperimentStatus) -> Vec<(&'static str, String, bool)> {
        let mut news = Vec::new();
        for (name, comparison) in &self.compared {
            let said = before.comparisons.iter().find(|said| said.model_version == *name);
            if said.is_some_and(|said| said.verdict == comparison.verdict) {
                continue;
            }
            let (reason, warning) = match comparison.verdict {
                ExperimentVerdict::Better => (reasons::VARIANT_BETTER, false),
                ExperimentVerdict::Worse => (reasons::VARIANT_WORSE, false),
                ExperimentVerdict::Stopped => (reasons::GUARDRAIL_BROKEN, true),
                ExperimentVerdict::Collecting | ExperimentVerdict::Undecided => continue,
            };
            news.push((reason, self.told(name, comparison), warning));
        }
        // One that had a verdict can break a guardrail afterwards.
        for stopped in &self.stopped {
            let told = news.iter().any(|(reason, text, _)| {
                *reason == reasons::GUARDRAIL_BROKEN && text.starts_with(&format!("{} ", stopped.version))
            });
            let said = before
                .variants
                .iter()
                .find(|said| said.model_version == stopped.version);
            if !told && said.is_none_or(|said| said.stopped.is_none()) {
                let text = format!("{} is stopped: {}", stopped.version, stopped.why);
                news.push((reasons::GUARDRAIL_BROKEN, text, true));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests;
