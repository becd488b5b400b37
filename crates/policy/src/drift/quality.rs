//! Whether a version's answers are right less often than a week ago, by what clients say of them.
//!
//! Judgements count at the time at which they come, hour by hour. A span is as many hours one after another as it takes for enough
//! judgements, a day at most, and no hour belongs to two of them. It is compared with the same hours a week ago, or, where the version
//! did not get as many judgements then, with its own first span.

use std::collections::BTreeMap;

use flywheel_api::drift::{Baseline, Drift, QualityStatus};
use flywheel_contract::profile::{Judged, Outcomes};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use super::history::Streak;
use super::statistics::fewer_by_chance;
use super::{FALSE_ALARMS, accuracy, min_samples, needed_windows};

/// Seconds of what judgements are counted by.
const HOUR: u64 = 3600;
const DAY_HOURS: u64 = 24;
const WEEK_HOURS: u64 = 7 * DAY_HOURS;
/// Hours after which a span that has too few judgements gives up its first one.
const LONGEST: u64 = DAY_HOURS;
/// Hours that are kept: what a span that ends now is compared with is a week older.
const HOURS: u64 = WEEK_HOURS + LONGEST;
/// Days of which the classes are kept, today among them: a whole day has the same day of the week before.
const DAYS: u64 = 9;
/// Most classes that are kept, of all days: with more than two hundred of them fewer days are.
const CLASS_DAYS: usize = 2_000;
/// Judgements of a class from which on its F1 counts.
const CLASS_LEAST: u64 = 20;
/// Probability from which on a drop is not chance: spans end at most once an hour, and all of a week share one level.
const LEVEL: f64 = FALSE_ALARMS / 168.0;

/// What clients said, as far as it is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quality {
    /// By hours since 1970.
    hours: BTreeMap<u64, Judged>,
    /// Of each class, by days since 1970.
    days: BTreeMap<u64, BTreeMap<u32, Outcomes>>,
    /// The first span with enough judgements.
    first: Option<Span>,
    /// The hour with which the next span begins.
    from: u64,
    /// What was compared last.
    last: Option<Comparison>,
    streak: Streak,
}

/// Judgements of some hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// The first hour since 1970.
    pub from: u64,
    /// The hour that does not belong to it any more.
    pub to: u64,
    /// What was said in it.
    pub judged: Judged,
}

/// A span beside an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The span.
    pub now: Span,
    /// The earlier one.
    pub before: Span,
    /// The earlier one is of a week ago; otherwise it is the version's first.
    pub week_ago: bool,
    /// Answers are right less often, by as much as the spec says and not by chance.
    pub dropped: bool,
}

/// Mean of the classes' F1 in a whole day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct F1 {
    /// Of the last day with enough judgements.
    pub now: f64,
    /// Of the same day a week before, or of the first one that is kept.
    pub before: Option<f64>,
    /// Classes with enough judgements, in both days where there are two.
    pub classes: usize,
}

/// What there is to say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QualityVerdict {
    /// Whether answers are right less often; none as long as nothing could be compared.
    pub dropped: Option<bool>,
    /// The last comparison.
    pub last: Option<Comparison>,
    /// F1 by class, where enough was judged.
    pub f1: Option<F1>,
}

impl Quality {
    /// Adds what was said in a window of a pod that began at this second, of a version of so many classes.
    pub(super) fn add(&mut self, second: u64, judged: Judged, outcomes: &BTreeMap<u32, Outcomes>, classes: usize) {
        if judged.is_empty() {
            return;
        }
        let hour = second / HOUR;
        self.hours.entry(hour).or_default().add(judged);
        let day = self.days.entry(hour / DAY_HOURS).or_default();
        for (class, more) in outcomes.iter().filter(|(class, _)| (**class as usize) < classes) {
            day.entry(*class).or_default().add(*more);
        }
        self.hours = last(std::mem::take(&mut self.hours), HOURS);
        self.days = last(std::mem::take(&mut self.days), DAYS);
        while self.days.values().map(BTreeMap::len).sum::<usize>() > CLASS_DAYS {
            self.days.pop_first();
        }
    }

    fn span(&self, from: u64, to: u64) -> Span {
        let mut judged = Judged::default();
        if from < to {
            self.hours.range(from..to).for_each(|(_, more)| judged.add(*more));
        }
        Span { from, to, judged }
    }

    /// Compares the spans that are over by this second and were not compared. Whether something is new.
    pub(super) fn settle(&mut self, spec: &Drift, second: u64) -> bool {
        let (over, least) = (second / HOUR, min_samples(spec));
        let Some((oldest, _)) = self.hours.first_key_value() else {
            return false;
        };
        let mut from = self.from.max(*oldest);
        let mut to = from + 1;
        let mut new = false;
        while to <= over {
            let span = self.span(from, to);
            if span.judged.predictions >= least {
                self.judge(span, spec, least);
                from = to;
                self.from = from;
                new = true;
            } else if to - from >= LONGEST {
                from += 1;
            }
            to += 1;
        }
        new
    }

    fn judge(&mut self, now: Span, spec: &Drift, least: u64) {
        let week_ago = self.span(now.from.saturating_sub(WEEK_HOURS), now.to.saturating_sub(WEEK_HOURS));
        let is_enough = week_ago.judged.predictions >= least;
        let before = if is_enough { Some(week_ago) } else { self.first };
        self.first.get_or_insert(now);
        let Some(before) = before else {
            return;
        };
        let drop = accuracy(before.judged) - accuracy(now.judged);
        let limit = spec.accuracy_drop.value().unwrap_or(f64::MAX);
        let dropped = drop > 0.0 && drop >= limit && fewer_by_chance(before.judged, now.judged) < LEVEL;
        self.streak.note(now.to, now.from, dropped, needed_windows(spec));
        self.last = Some(Comparison {
            now,
            before,
            week_ago: is_enough,
            dropped,
        });
    }

    /// Since when answers are right less often, in seconds since 1970.
    pub(super) fn since(&self) -> Option<u64> {
        self.streak.since.map(|hour| hour.saturating_mul(HOUR))
    }

    /// What there is to say at this second.
    #[must_use]
    pub(super) fn verdict(&self, spec: &Drift, second: u64) -> QualityVerdict {
        QualityVerdict {
            dropped: self.streak.drifted,
            last: self.last,
            f1: self.f1(min_samples(spec), second / HOUR / DAY_HOURS),
        }
    }

    fn f1(&self, least: u64, today: u64) -> Option<F1> {
        let enough = |(_, classes): &(&u64, &BTreeMap<u32, Outcomes>)| {
            classes
                .values()
                .map(|outcomes| outcomes.right + outcomes.wrong)
                .sum::<u64>()
                >= least
        };
        let (day, now) = self.days.range(..today).rev().find(enough)?;
        let week_ago = day
            .checked_sub(7)
            .and_then(|day| self.days.get_key_value(&day))
            .filter(enough);
        let before = week_ago
            .or_else(|| self.days.range(..day).find(enough))
            .map(|(_, classes)| classes);
        let counts = |classes: &BTreeMap<u32, Outcomes>, class: &u32| {
            classes
                .get(class)
                .is_some_and(|outcomes| outcomes.right + outcomes.missed >= CLASS_LEAST)
        };
        let both = |class: &&u32| counts(now, class) && before.is_none_or(|before| counts(before, class));
        let classes: Vec<&u32> = now.keys().filter(both).collect();
        #[allow(clippy::cast_precision_loss, reason = "a number of classes")]
        let mean = |of: &BTreeMap<u32, Outcomes>| {
            classes
                .iter()
                .filter_map(|class| of.get(class))
                .map(Outcomes::f1)
                .sum::<f64>()
                / classes.len() as f64
        };
        (!classes.is_empty()).then(|| F1 {
            now: mean(now),
            before: before.map(mean),
            classes: classes.len(),
        })
    }
}

/// The entries of the last `kept` numbers.
fn last<T>(mut all: BTreeMap<u64, T>, kept: u64) -> BTreeMap<u64, T> {
    let newest = all.last_key_value().map_or(0, |(newest, _)| *newest);
    all.split_off(&(newest + 1).saturating_sub(kept))
}

/// The moment at which an hour begins.
fn moment(hour: u64) -> Timestamp {
    let second = i64::try_from(hour.saturating_mul(HOUR)).unwrap_or(i64::MAX);
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}

impl QualityVerdict {
    /// The figures in a few words; empty where nothing was compared.
    #[must_use]
    pub fn told(&self) -> String {
        let Some(Comparison {
            now, before, week_ago, ..
        }) = self.last
        else {
            return String::new();
        };
        let which = if week_ago {
            "the same hours a week before"
        } else {
            "the first ones of this version"
        };
        let f1 = self.f1.and_then(|f1| Some((f1.now, f1.before?, f1.classes)));
        let f1 =
            f1.map(|(now, before, classes)| format!("; macro F1 {now:.3}, before {before:.3}, of {classes} classes"));
        format!(
            "{:.3} of {} judged answers were right until {:.0}, {:.3} of {} in {which}, until {:.0}{}",
            accuracy(now.judged),
            now.judged.predictions,
            moment(now.to),
            accuracy(before.judged),
            before.judged.predictions,
            moment(before.to),
            f1.unwrap_or_default()
        )
    }

    /// Shares of right answers, now and before.
    #[must_use]
    pub fn shares(&self) -> Option<[f64; 2]> {
        self.last
            .map(|last| [last.now, last.before].map(|span| accuracy(span.judged)))
    }

    /// What the status says of it.
    #[must_use]
    pub fn status(&self, version: &str) -> Option<QualityStatus> {
        let last = self.last?;
        let count = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
        let three = |value: f64| format!("{value:.3}");
        Some(QualityStatus {
            model_version: version.to_owned(),
            span_end: Time(moment(last.now.to)),
            judged: count(last.now.judged.predictions),
            accuracy: three(accuracy(last.now.judged)),
            baseline: if last.week_ago {
                Baseline::WeekAgo
            } else {
                Baseline::FirstSpan
            },
            judged_before: count(last.before.judged.predictions),
            accuracy_before: three(accuracy(last.before.judged)),
            dropped: last.dropped,
            f1: self.f1.map(|f1| three(f1.now)),
            f1_before: self.f1.and_then(|f1| f1.before).map(three),
        })
    }
}

#[cfg(test)]
mod tests;
