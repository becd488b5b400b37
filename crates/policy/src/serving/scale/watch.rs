//! What was seen of a service's pods: rates over windows from counters that only grow, and how long pods take to start.
//!
//! A pod's growth is that between two answers of the same pod. So a gap in the answers is no gap in the figures: the
//! counters bridge it. Pods that were not asked, or did not answer, are taken for the mean of the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flywheel_contract::serving::{LATENCY_BOUNDS, Load};
use jiff::Timestamp;

use super::constants::{GRAINS, START_MAX, STARTS};
use super::{Look, Said};

/// Classes of [`Load::latency`].
const CLASSES: usize = LATENCY_BOUNDS.len() + 1;

/// Sums over a time, for all ready pods. Two that touch are added up to one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sums {
    /// Seconds.
    pub(super) seconds: f64,
    /// Ready pods, summed over time, in seconds.
    pub(super) replica_seconds: f64,
    pub(super) requests: f64,
    pub(super) refused: f64,
    pub(super) in_flight_seconds: f64,
    pub(super) busy_seconds: f64,
    /// Workers of all pods, summed over time, in seconds.
    pub(super) worker_seconds: f64,
    pub(super) latency: [f64; CLASSES],
}

impl Sums {
    fn add(&mut self, other: &Self, part: f64) {
        self.seconds += other.seconds * part;
        self.replica_seconds += other.replica_seconds * part;
        self.requests += other.requests * part;
        self.refused += other.refused * part;
        self.in_flight_seconds += other.in_flight_seconds * part;
        self.busy_seconds += other.busy_seconds * part;
        self.worker_seconds += other.worker_seconds * part;
        for (mine, theirs) in self.latency.iter_mut().zip(other.latency) {
            *mine += theirs * part;
        }
    }

    /// Requests per second.
    pub(super) fn qps(&self) -> Option<f64> {
        ratio(self.requests, self.seconds)
    }

    /// Requests under way, in the mean.
    pub(super) fn concurrency(&self) -> Option<f64> {
        ratio(self.in_flight_seconds, self.seconds)
    }

    /// Part of the requests that was refused.
    pub(super) fn refused_part(&self) -> Option<f64> {
        ratio(self.refused, self.requests)
    }

    /// Part of their time for which workers computed.
    pub(super) fn busy(&self) -> Option<f64> {
        ratio(self.busy_seconds, self.worker_seconds).map(|busy| busy.min(1.0))
    }

    /// Ready pods, in the mean.
    pub(super) fn replicas(&self) -> Option<f64> {
        ratio(self.replica_seconds, self.seconds)
    }

    /// Requests answered 2xx.
    pub(super) fn answers(&self) -> f64 {
        self.latency.iter().sum()
    }

    /// Seconds within which 99 % of the answers came, by a straight line within their class; of the last class its lower
    /// bound. `None` without answers.
    pub(super) fn p99(&self) -> Option<f64> {
        let all = self.answers();
        if all <= 0.0 {
            return None;
        }
        let mut below = 0.0;
        let mut lower = 0.0;
        for (count, upper) in self.latency.iter().zip(LATENCY_BOUNDS) {
            let rank = 0.99 * all - below;
            if *count > 0.0 && *count >= rank {
                return Some(lower + (upper - lower) * (rank / count).clamp(0.0, 1.0));
            }
            below += count;
            lower = upper;
        }
        Some(lower)
    }
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// Sums between two looks, in seconds since the watch began.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    from: f64,
    to: f64,
    sums: Sums,
}

/// The last answer of a pod.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    at: f64,
    load: Load,
}

/// The newest look, without what its pods said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) at: f64,
    pub(super) ready: u32,
    /// Ready pods that did not answer in time.
    pub(super) silent: u32,
    /// Ready pods that answered.
    pub(super) answered: u32,
    /// For how long each pod that is not ready has been starting, in seconds.
    pub(super) starting: Vec<f64>,
}

/// Windows over what pods said.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    since: Timestamp,
    heard: BTreeMap<String, Heard>,
    /// Pods that were not ready at the last look: their counters begin at zero.
    starting: BTreeSet<String>,
    samples: VecDeque<Sample>,
    /// Up to when the samples reach.
    accounted: Option<f64>,
    seen: Option<Seen>,
    starts: VecDeque<f64>,
    /// When ready pods became more or fewer.
    changed: f64,
    /// Window that is remembered and window that is remembered look by look, in seconds.
    keep: (f64, f64),
}

impl Watch {
    pub(super) fn new(since: Timestamp, keep: (f64, f64)) -> Self {
        Self {
            since,
            heard: BTreeMap::new(),
            starting: BTreeSet::new(),
            samples: VecDeque::new(),
            accounted: None,
            seen: None,
            starts: VecDeque::new(),
            changed: 0.0,
            keep,
        }
    }

    /// Seconds since the watch began.
    pub(super) fn seconds(&self, at: Timestamp) -> f64 {
        at.duration_since(self.since).as_secs_f64()
    }

    /// How much is to be remembered from now on.
    pub(super) fn keep(&mut self, windows: (f64, f64)) {
        self.keep = windows;
    }

    /// Takes a look; one that is not newer than the last changes nothing. Returns what it added, where anything.
    pub(super) fn look(&mut self, look: Look) -> Option<&Sums> {
        let at = self.seconds(look.at);
        let last = self.seen.as_ref().map(|seen| seen.at);
        if last.is_some_and(|last| at <= last) {
            return None;
        }
        self.learn_starts(&look);
        let ready = count(look.ready.len());
        let mut growth = Sums::default();
        let mut known = 0_u32;
        let mut earliest = at;
        let mut seen = Seen {
            at,
            ready,
            starting: look
                .starting
                .iter()
                .map(|pod| (at - self.seconds(pod.created)).max(0.0))
                .collect(),
            ..Seen::default()
        };
        let mut heard = BTreeMap::new();
        for pod in look.ready {
            let before = self.heard.remove(&pod.uid);
            match pod.said {
                Said::Load(load) => {
                    seen.answered += 1;
                    let before = before.or_else(|| self.at_its_start(&pod.uid, pod.created, last));
                    if let Some(before) = before.filter(|before| before.at < at) {
                        known += 1;
                        earliest = earliest.min(before.at);
                        grow(&mut growth, &before, &load, at);
                    }
                    heard.insert(pod.uid, Heard { at, load });
                }
                said => {
                    seen.silent += u32::from(said == Said::Silent);
                    heard.extend(before.map(|before| (pod.uid, before)));
                }
            }
        }
        self.heard = heard;
        self.starting = look.starting.into_iter().map(|pod| pod.uid).collect();
        if self.seen.as_ref().is_none_or(|seen| seen.ready != ready) {
            self.changed = at;
        }
        let ready = f64::from(ready);
        let answered = seen.answered > 0;
        self.seen = Some(seen);
        let from = self.accounted;
        if answered {
            self.accounted = Some(at);
        }
        if known == 0 {
            return None;
        }
        let from = from.map_or(earliest, |from| from.max(earliest));
        let seconds = at - from;
        // Sums of one second of the known pods, for all pods and the whole time.
        let mut sums = Sums::default();
        sums.add(&growth, seconds * ready / f64::from(known));
        sums.seconds = seconds;
        sums.replica_seconds = seconds * ready;
        self.samples.push_back(Sample { from, to: at, sums });
        self.forget();
        self.samples.back().map(|sample| &sample.sums)
    }

    /// The counters of a pod that was not ready at the last look, or not there.
    fn at_its_start(&self, uid: &str, created: Timestamp, last: Option<f64>) -> Option<Heard> {
        let last = last?;
        let new = self.starting.contains(uid) || self.seconds(created) >= last;
        new.then(|| Heard {
            at: last,
            load: Load::default(),
        })
    }

    /// Pods that were seen starting tell by their first readiness; at the very first look all do.
    fn learn_starts(&mut self, look: &Look) {
        for pod in &look.ready {
            if self.seen.is_none() || self.starting.contains(&pod.uid) {
                let start = pod.ready_since.duration_since(pod.created).as_secs_f64().max(0.0);
                // It may have been ready before, and unready since.
                if start > START_MAX {
                    continue;
                }
                self.starts.push_back(start);
                if self.starts.len() > STARTS {
                    self.starts.pop_front();
                }
            }
        }
    }

    /// Drops what is older than the window, and joins what is older than the short one to pieces of a part of it.
    fn forget(&mut self) {
        let Some(now) = self.samples.back().map(|sample| sample.to) else {
            return;
        };
        let (keep, recent) = self.keep;
        while self.samples.front().is_some_and(|sample| sample.to < now - keep) {
            self.samples.pop_front();
        }
        let grain = keep / GRAINS;
        let mut joined: VecDeque<Sample> = VecDeque::with_capacity(self.samples.len());
        for sample in self.samples.drain(..) {
            match joined.back_mut() {
                Some(last) if sample.to < now - recent && sample.to - last.from <= grain && last.to == sample.from => {
                    last.to = sample.to;
                    last.sums.add(&sample.sums, 1.0);
                }
                _ => joined.push_back(sample),
            }
        }
        self.samples = joined;
    }

    /// Sums over the last `window` seconds before `now`; a sample that reaches beyond counts in part. Its `seconds` say how
    /// much of the window was seen.
    pub(super) fn window(&self, now: f64, window: f64) -> Sums {
        self.between(now - window, now)
    }

    /// Sums between two times.
    pub(super) fn between(&self, from: f64, to: f64) -> Sums {
        let mut sums = Sums::default();
        for sample in &self.samples {
            let overlap = sample.to.min(to) - sample.from.max(from);
            if overlap > 0.0 {
                sums.add(&sample.sums, overlap / (sample.to - sample.from));
            }
        }
        sums
    }

    /// When the newest sample ended, and its sums; endlessly long ago without any.
    pub(super) fn newest(&self) -> (f64, Sums) {
        let newest = self.samples.back().map(|sample| (sample.to, sample.sums.clone()));
        newest.unwrap_or((f64::NEG_INFINITY, Sums::default()))
    }

    /// How many samples are kept.
    #[cfg(test)]
    pub(super) fn samples(&self) -> usize {
        self.samples.len()
    }

    /// The newest look.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// When the number of ready pods last changed.
    pub(super) fn changed(&self) -> f64 {
        self.changed
    }

    /// Seconds from a pod's creation to its readiness, in the median of the last ones.
    pub(super) fn start_time(&self) -> Option<f64> {
        let mut starts: Vec<f64> = self.starts.iter().copied().collect();
        starts.sort_by(f64::total_cmp);
        starts.get(starts.len() / 2).copied()
    }
}

/// Adds what a pod did in the mean second since `before`. Counters that shrank began anew in between.
fn grow(sums: &mut Sums, before: &Heard, load: &Load, at: f64) {
    let restarted = load.requests < before.load.requests
        || load.busy_seconds < before.load.busy_seconds
        || load
            .latency
            .iter()
            .zip(before.load.latency)
            .any(|(now, then)| *now < then);
    let zero = Load::default();
    let then = if restarted { &zero } else { &before.load };
    let per_second = 1.0 / (at - before.at);
    let counted = |now: u64, then: u64| number(now.saturating_sub(then)) * per_second;
    sums.requests += counted(load.requests, then.requests);
    sums.refused += counted(load.refused, then.refused);
    sums.in_flight_seconds += (load.in_flight_seconds - then.in_flight_seconds).max(0.0) * per_second;
    sums.busy_seconds += (load.busy_seconds - then.busy_seconds).max(0.0) * per_second;
    sums.worker_seconds += f64::from(load.workers);
    for (class, (now, then)) in sums.latency.iter_mut().zip(load.latency.iter().zip(then.latency)) {
        *class += counted(*now, then);
    }
}

fn count(pods: usize) -> u32 {
    u32::try_from(pods).unwrap_or(u32::MAX)
}

fn number(count: u64) -> f64 {
    count as f64
}
