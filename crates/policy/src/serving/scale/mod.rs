//! How many replicas a service has.
//!
//! The operator looks at the service's pods every second or two, and this module decides from what it saw: the load, what
//! one replica can do, which pods are starting. It sees no clock, asks nobody and changes nothing. `docs/scaling.md` says
//! the rules in words, and `kubectl flywheel simulate` replays traces through this same code.
//!
//! What must hold whatever pods say:
//! - the decision lies within the bounds of the spec, and without data the size stays;
//! - it is never below what the present load needs;
//! - nothing shrinks before stable window and scale-down delay were seen, so an operator that restarts takes nothing away.

mod capacity;
mod constants;
mod shown;
mod spec;
mod watch;

use std::collections::VecDeque;
use std::time::Duration;

use flywheel_api::scaling;
use flywheel_contract::serving::Load;
use jiff::Timestamp;

pub use shown::Shown;

use capacity::{Capacity, Learned};
use constants::{
    AHEAD_MAX, AHEAD_PART, BURST_RATIO, BUSY_WAITS, COVERED, DELAY_LEAST, EVEN, GRAINS, GROW_PODS, GROW_STEP,
    GROW_UNSURE, HELD_AGAIN, OVERDUE_PART, P99_ANSWERS, REFUSED_MAX, SETTLE, SHRINK_PARTS, STALE, START_PATIENCE,
    START_PATIENCE_MIN, START_UNKNOWN, SURE, TOLERANCE, windows,
};
use watch::{Seen, Sums, Watch};

/// Stable window of a service that names none.
pub const STABLE_WINDOW: Duration = Duration::from_secs(scaling::STABLE_WINDOW_SECONDS as u64);
/// Scale-down delay of a service that names none (HPA `--horizontal-pod-autoscaler-downscale-stabilization`: 5 minutes).
pub const SCALE_DOWN_DELAY: Duration = Duration::from_secs(scaling::SCALE_DOWN_DELAY_SECONDS as u64);
/// Latency objective of a service that names none.
pub const LATENCY: Duration = Duration::from_millis(scaling::LATENCY_P99_MILLISECONDS as u64);

/// What load is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests per second.
    Qps,
    /// Requests under way. Without a given target this is sized by requests per second: at an even response time the two
    /// tell the same (Little's law).
    Concurrency,
}

/// What the spec wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// What load is measured by.
    pub metric: Metric,
    /// Load of one replica, in requests per second or requests under way; `None`: learned.
    pub target_per_replica: Option<f64>,
    /// Fewest replicas.
    pub min_replicas: u32,
    /// Most replicas.
    pub max_replicas: u32,
    /// Time over which load is averaged; a tenth of it, at least 6 s, shows bursts.
    pub stable_window: Duration,
    /// The highest want of this time counts before anything shrinks.
    pub scale_down_delay: Duration,
    /// Requests per second that the service is to carry.
    pub qps: Option<f64>,
    /// Time within which 99 % of the answers are to come.
    pub latency: Duration,
}

/// One look at a service's pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// When.
    pub at: Timestamp,
    /// Pods that get requests.
    pub ready: Vec<ReadyPod>,
    /// Pods that do not yet, or not any more.
    pub starting: Vec<StartingPod>,
}

/// A pod that gets requests.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyPod {
    /// Its uid.
    pub uid: String,
    /// When it was created.
    pub created: Timestamp,
    /// Since when it is ready.
    pub ready_since: Timestamp,
    /// What it said.
    pub said: Said,
}

/// What came of asking a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Its counters.
    Load(Load),
    /// No answer in time, or none that can be read.
    Silent,
    /// It was not asked: of many pods a part tells enough.
    NotAsked,
}

/// A pod that gets no requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartingPod {
    /// Its uid.
    pub uid: String,
    /// When it was created.
    pub created: Timestamp,
}

/// How many replicas, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// So many.
    pub replicas: u32,
    /// What decided.
    pub reason: Reason,
    /// One sentence with the figures.
    pub why: String,
    /// What it was decided by.
    pub figures: Figures,
    /// Something is changing: look each second rather than each two.
    pub in_change: bool,
}

/// What a decision was made by. `None`: not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests per second in the stable window.
    pub qps: Option<f64>,
    /// Requests per second in the burst window; where the newest look alone surely shows more, that.
    pub burst_qps: Option<f64>,
    /// Requests under way, in the mean of the stable window.
    pub concurrency: Option<f64>,
    /// Time within which 99 % of the answers of the stable window came.
    pub p99: Option<Duration>,
    /// Requests in the stable window.
    pub requests: f64,
    /// Part of them that was refused.
    pub refused: Option<f64>,
    /// Part of their time in the burst window for which workers computed.
    pub busy: Option<f64>,
    /// Load that one replica is planned for, given or learned.
    pub per_replica: Option<f64>,
    /// Requests per second that one replica carries within the latency objective, as learned.
    pub capacity: Option<f64>,
    /// That was seen under load; else it is a lower estimate, several times too low for a pod that idles.
    pub capacity_is_sure: bool,
    /// Usual time from a pod's creation to its readiness.
    pub start_time: Option<Duration>,
    /// Pods that get requests.
    pub ready: u32,
    /// Pods that do not yet.
    pub starting: u32,
    /// Ready pods that did not answer in time.
    pub silent: u32,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The size fits the load.
    Steady,
    /// The load grew.
    LoadRose,
    /// The load is beyond what the ready pods carry, or was so within the last stable window.
    Burst,
    /// The load fell, and the scale-down delay is over.
    LoadFell,
    /// Answers take longer than the objective allows, which the load does not explain.
    LatencyAbove,
    /// Requests are refused, which the load does not explain.
    Refused,
    /// The load fell, and the scale-down delay, or the first window, is not over.
    Waits,
    /// Pods take far longer to start than usual, and others are to start in their place.
    PodsOverdue,
    /// More would be wanted than `maxReplicas`.
    MaximumReached,
    /// The size was outside of `minReplicas` and `maxReplicas`.
    Bounded,
    /// Nothing is known of the load.
    NoData,
    /// No ready pod answers.
    ScrapeBlocked,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Steady,
        Self::LoadRose,
        Self::Burst,
        Self::LoadFell,
        Self::LatencyAbove,
        Self::Refused,
        Self::Waits,
        Self::PodsOverdue,
        Self::MaximumReached,
        Self::Bounded,
        Self::NoData,
        Self::ScrapeBlocked,
    ];

    /// The reason in `CamelCase`, for status and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "Steady",
            Self::LoadRose => "LoadRose",
            Self::Burst => "Burst",
            Self::LoadFell => "LoadFell",
            Self::LatencyAbove => "LatencyAbove",
            Self::Refused => "Refused",
            Self::Waits => "Waits",
            Self::PodsOverdue => "PodsOverdue",
            Self::MaximumReached => "MaximumReached",
            Self::Bounded => "Bounded",
            Self::NoData => "NoData",
            Self::ScrapeBlocked => "ScrapeBlocked",
        }
    }
}

/// Whether the objectives are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objectives {
    /// They are.
    Met,
    /// Not enough was seen to tell.
    Unknown,
    /// They are missed now.
    Missed {
        /// What is missed, with figures.
        why: String,
    },
    /// `maxReplicas` replicas cannot carry `objectives.qps`.
    OutOfReach {
        /// What is missing, with figures and what to do.
        why: String,
        /// So many would carry it.
        replicas: u32,
    },
}

/// What the operator remembers of a service between looks; lost with it without harm.
#[derive(Clone, Debug)]
pub struct Scaler {
    watch: Watch,
    learned: Learned,
    loads: Loads,
    /// Until when a burst holds the size, in seconds since the watch began, as all times here.
    burst_until: f64,
    /// When a decision last grew beyond what load explains.
    stepped: f64,
    /// When one last shrank.
    shrank: f64,
    /// Requests per second when one last grew.
    grew_at: f64,
}

impl Scaler {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(at: Timestamp) -> Self {
        Self {
            watch: Watch::new(at, windows(STABLE_WINDOW)),
            learned: Learned::default(),
            loads: Loads::default(),
            burst_until: 0.0,
            stepped: 0.0,
            shrank: 0.0,
            grew_at: 0.0,
        }
    }

    /// From now on replicas compute with something else, so what one carries is to be learned anew.
    pub fn doubt(&mut self) {
        self.learned.doubt();
    }

    /// Takes a look at the pods; one that is not newer than the last changes nothing.
    pub fn look(&mut self, look: Look) {
        if let Some(sums) = self.watch.look(look) {
            self.learned.learn(sums);
        }
    }

    /// How many replicas there are to be, where `present` are wanted now.
    pub fn decide(&mut self, goal: &Goal, present: u32, now: Timestamp) -> Decision {
        let windows = windows(goal.stable_window);
        self.watch.keep(windows);
        let sight = self.sight(goal, self.watch.seconds(now), windows);
        let held = bounded(goal, present);
        let mut verdict = match sight.blind() {
            Some((reason, why)) => Verdict::hold(held, reason, why),
            None => self.weigh(goal, &sight, held),
        };
        if verdict.replicas == held && held != present {
            let (min, max) = (goal.min_replicas, goal.max_replicas);
            let why = format!("{present} replicas are outside of minReplicas {min} and maxReplicas {max}");
            verdict = Verdict::hold(held, Reason::Bounded, why);
        }
        if verdict.replicas < held {
            self.shrank = sight.now;
        } else if verdict.replicas > held {
            self.grew_at = sight.qps();
        }
        let in_change =
            verdict.replicas != present || sight.fresh > 0 || sight.now < self.burst_until || sight.risen().is_some();
        Decision {
            replicas: verdict.replicas,
            reason: verdict.reason,
            why: verdict.why,
            figures: Figures {
                per_replica: sight.per_replica.map(|per| per.planned(verdict.replicas)),
                ..sight.figures
            },
            in_change,
        }
    }

    /// What is known at this moment.
    fn sight(&self, goal: &Goal, now: f64, windows: (f64, f64)) -> Sight {
        let capacity = self.learned.capacity(goal.latency.as_secs_f64(), now);
        let target = goal.target_per_replica.filter(|target| *target > 0.0);
        let (newest_at, newest) = self.watch.newest();
        let mut sight = Sight {
            now,
            windows,
            stable: self.watch.window(now, windows.0),
            burst: self.watch.window(now, windows.1),
            newest,
            newest_at,
            seen: self.watch.seen().cloned(),
            by_concurrency: goal.metric == Metric::Concurrency && target.is_some(),
            per_replica: target.map(PerReplica::Given).or(capacity.map(PerReplica::Learned)),
            fresh: 0,
            overdue: 0,
            figures: Figures::default(),
        };
        let start = self.watch.start_time();
        let patience = (START_PATIENCE * start.unwrap_or(START_UNKNOWN)).max(START_PATIENCE_MIN);
        let seen = sight.seen.clone().unwrap_or_default();
        for age in &seen.starting {
            // Pods grow older between two looks.
            let overdue = age + (now - seen.at).max(0.0) > patience;
            sight.overdue += u32::from(overdue);
            sight.fresh += u32::from(!overdue);
        }
        sight.figures = Figures {
            qps: sight.stable.qps(),
            burst_qps: sight
                .burst
                .qps()
                .map(|mean| mean.max(surely(&sight.newest, sight.newest.qps()))),
            concurrency: sight.stable.concurrency(),
            p99: sight.stable.p99().map(Duration::from_secs_f64),
            requests: sight.stable.requests,
            refused: sight.stable.refused_part(),
            busy: sight.burst.busy(),
            per_replica: None,
            capacity: capacity.map(|capacity| capacity.within),
            capacity_is_sure: capacity.is_some_and(|capacity| capacity.sure),
            start_time: start.map(Duration::from_secs_f64),
            ready: seen.ready,
            starting: sight.fresh + sight.overdue,
            silent: seen.silent,
        };
        sight
    }

    /// The size for what is seen, where `held` are wanted now.
    fn weigh(&mut self, goal: &Goal, sight: &Sight, held: u32) -> Verdict {
        let trouble = sight.trouble(goal);
        let Some(per_replica) = sight.per_replica else {
            let half = held.div_ceil(2);
            let verdict = trouble.and_then(|trouble| self.cure(goal, sight, held, half, &trouble));
            return verdict.unwrap_or_else(|| {
                let why = "too few requests were answered yet to know what one replica carries".to_owned();
                Verdict::hold(held, Reason::NoData, why)
            });
        };
        let (stable, burst) = sight.windows;
        let load = sight.load(&sight.stable);
        let surely = sight.surely();
        if surely > f64::from(sight.figures.ready) * per_replica.overrun() {
            self.burst_until = sight.now + stable;
        }
        let in_burst = sight.now < self.burst_until;
        let mut level = sight.risen().unwrap_or(load);
        let slope = self.slope(sight);
        let mut comes = format!("{} come", sight.words(level));
        if slope > 0.0 {
            let start = sight
                .figures
                .start_time
                .map_or(START_UNKNOWN, |start| start.as_secs_f64());
            level = level.max(sight.load(&sight.burst));
            comes = format!("{} come", sight.words(level));
            level += (slope * (start + burst).min(AHEAD_MAX)).min(level * AHEAD_PART);
            comes += &format!(", growing to {} until pods have started", figure(level));
        }
        let delay = goal.scale_down_delay.as_secs_f64().max(stable * DELAY_LEAST);
        self.loads.add(goal.metric, sight.now, level, delay);

        // Never below what the load of this moment needs, whatever the plan.
        let mut wanted = per_replica.replicas(level).max(per_replica.needed(load.max(surely)));
        if sight.by_concurrency && sight.fresh > 0 && sight.qps() <= self.grew_at * (1.0 + TOLERANCE) {
            // Requests pile up until the pods are ready that were ordered for them; that orders no more.
            wanted = wanted.min(held);
        }
        let carries = figure(per_replica.planned(wanted));
        let sum = format!("{comes}, one replica is to carry {carries}: {wanted} wanted");
        let spare = sight.overdue.min(wanted.div_ceil(OVERDUE_PART));
        if wanted > held {
            let reason = if in_burst { Reason::Burst } else { Reason::LoadRose };
            let most = per_replica.most(held);
            return Verdict::grow(goal, held, wanted.saturating_add(spare).min(most), reason, sum);
        }
        if wanted.saturating_add(spare) > held {
            let why = format!(
                "{} pods start for far longer than usual, {spare} more start in their place",
                sight.overdue
            );
            return Verdict::grow(goal, held, wanted.saturating_add(spare), Reason::PodsOverdue, why);
        }
        if let Some(verdict) = trouble
            .as_ref()
            .and_then(|trouble| self.cure(goal, sight, held, wanted, trouble))
        {
            return verdict;
        }
        let fits = |load: f64| {
            bounded(
                goal,
                per_replica.replicas(load).max(wanted).saturating_add(spare).max(1),
            )
        };
        let peak = self.loads.highest();
        let seen_enough = sight.now >= stable.max(delay) && sight.stable.seconds >= COVERED * stable;
        let step_over = sight.now - self.shrank >= burst;
        if fits(peak * (1.0 + TOLERANCE)) < held && seen_enough && step_over && !in_burst {
            let down = fits(peak).max(held.div_ceil(SHRINK_PARTS));
            let why = format!(
                "at most {} came or were expected within the scale-down delay of {delay} s: {down} are enough",
                sight.words(peak)
            );
            return Verdict::hold(down, Reason::LoadFell, why);
        }
        if let Some(trouble) = trouble {
            let busy = sight.figures.busy.unwrap_or(0.0) * 100.0;
            let why = format!(
                "{}, while workers compute {busy:.0} % of their time: more replicas do not help. See what requests wait for \
                 (long texts, the processor's or GPU's other users, the clients' network)",
                trouble.what
            );
            return Verdict::hold(held, trouble.reason, why);
        }
        if fits(level * (1.0 + TOLERANCE)) < held {
            let until = if in_burst {
                format!(
                    "a burst holds the size for another {:.0} s",
                    self.burst_until - sight.now
                )
            } else if seen_enough {
                format!(
                    "the scale-down delay of {delay} s is not over, within which {} came or were expected",
                    sight.words(peak)
                )
            } else {
                format!("nothing shrinks before {} s were seen", stable.max(delay))
            };
            return Verdict::hold(held, Reason::Waits, format!("{sum}; {until}"));
        }
        Verdict::hold(held, Reason::Steady, sum)
    }

    /// More replicas against what load does not explain; `None` where they would not help. With fewer ready pods than
    /// `wanted` it is explained, and with fewer than are `held`, which nobody may ever start, nothing was tried yet.
    fn cure(&mut self, goal: &Goal, sight: &Sight, held: u32, wanted: u32, trouble: &Trouble) -> Option<Verdict> {
        let wait = |what: &str| Verdict::hold(held, trouble.reason, format!("{}; {what}", trouble.what));
        if sight.figures.ready < wanted {
            return Some(wait(&format!("{} of {wanted} pods are ready", sight.figures.ready)));
        }
        if sight.figures.busy.is_none_or(|busy| busy < BUSY_WAITS) {
            return None;
        }
        if sight.figures.ready < held {
            return Some(wait(&format!("{} of {held} pods are ready", sight.figures.ready)));
        }
        let since = sight.now - self.watch.changed().max(self.stepped);
        if sight.fresh > 0 || since < SETTLE * sight.windows.1 {
            return Some(wait("what the last change of replicas brings is waited for"));
        }
        self.stepped = sight.now;
        if let (Some(qps), Some(replicas)) = (sight.burst.qps(), sight.burst.replicas()) {
            self.learned.missed(qps / replicas.max(1.0), sight.now);
        }
        let more = whole(f64::from(held) * GROW_STEP).max(1);
        let why = format!("{}, and workers are busy: {more} more", trouble.what);
        Some(Verdict::grow(
            goal,
            held,
            held.saturating_add(more),
            trouble.reason,
            why,
        ))
    }

    /// Load by which the service grows each second, where it has grown all along the stable window, or twice as fast all
    /// along the half of it.
    fn slope(&self, sight: &Sight) -> f64 {
        let (stable, _) = sight.windows;
        let all = self.growth(sight, stable, TOLERANCE);
        all.max(self.growth(sight, stable / 2.0, 2.0 * TOLERANCE))
    }

    /// The least growth from one quarter of a time to the next, per second; 0 where that makes less than this part of the
    /// load in all of the time, or where it is uneven: a step shows in one or two of the three.
    fn growth(&self, sight: &Sight, time: f64, least_part: f64) -> f64 {
        let quarter = time / 4.0;
        let part = |ago: f64| {
            let to = sight.now - ago * quarter;
            let sums = self.watch.between(to - quarter, to);
            (sums.seconds >= COVERED * quarter).then(|| sight.load(&sums))
        };
        let (Some(first), Some(second), Some(third), Some(last)) = (part(3.0), part(2.0), part(1.0), part(0.0)) else {
            return 0.0;
        };
        let least = (second - first).min(third - second).min(last - third);
        let even = least * 3.0 > (last - first) * EVEN;
        if even && least * 4.0 > least_part * last {
            least / quarter
        } else {
            0.0
        }
    }
}

/// Highest loads by time, in pieces of the scale-down delay.
#[derive(Clone, Debug, Default)]
struct Loads {
    /// Of which metric.
    metric: Option<Metric>,
    /// When a piece began, and the highest load in it.
    pieces: VecDeque<(f64, f64)>,
}

impl Loads {
    fn add(&mut self, metric: Metric, now: f64, load: f64, delay: f64) {
        if self.metric != Some(metric) {
            self.pieces.clear();
            self.metric = Some(metric);
        }
        let grain = delay / GRAINS;
        match self.pieces.back_mut() {
            Some((since, highest)) if now - *since < grain => *highest = highest.max(load),
            _ => self.pieces.push_back((now, load)),
        }
        // A piece counts until its last moment is that old.
        while self
            .pieces
            .front()
            .is_some_and(|(since, _)| since + grain < now - delay)
        {
            self.pieces.pop_front();
        }
    }

    fn highest(&self) -> f64 {
        self.pieces.iter().fold(0.0, |highest, (_, load)| highest.max(*load))
    }
}

/// What one replica is planned for.
#[derive(Clone, Copy, Debug)]
enum PerReplica {
    Given(f64),
    Learned(Capacity),
}

impl PerReplica {
    /// Replicas that are planned for a load.
    fn replicas(self, load: f64) -> u32 {
        whole(match self {
            Self::Given(target) => load / target,
            Self::Learned(capacity) => capacity.replicas(load),
        })
    }

    /// Fewest that carry it at all.
    fn needed(self, load: f64) -> u32 {
        whole(
            load / match self {
                Self::Given(target) => target,
                Self::Learned(capacity) => capacity.within,
            },
        )
    }

    /// Load of one replica beyond which it is overrun.
    fn overrun(self) -> f64 {
        match self {
            Self::Given(target) => BURST_RATIO * target,
            Self::Learned(capacity) => capacity.within,
        }
    }

    /// Load that each of so many replicas is planned for.
    fn planned(self, replicas: u32) -> f64 {
        match self {
            Self::Given(target) => target,
            Self::Learned(capacity) => capacity.planned(replicas),
        }
    }

    /// Most replicas that one decision may order.
    fn most(self, held: u32) -> u32 {
        match self {
            Self::Learned(capacity) if !capacity.sure => {
                held.saturating_mul(GROW_UNSURE).max(held.saturating_add(GROW_PODS))
            }
            _ => u32::MAX,
        }
    }
}

/// What one decision sees.
struct Sight {
    now: f64,
    /// Stable and burst window, in seconds.
    windows: (f64, f64),
    stable: Sums,
    burst: Sums,
    newest: Sums,
    /// When the newest sums ended; long ago without any.
    newest_at: f64,
    seen: Option<Seen>,
    /// Load is requests under way, not requests per second.
    by_concurrency: bool,
    per_replica: Option<PerReplica>,
    figures: Figures,
    /// Starting pods that are counted on.
    fresh: u32,
    /// Those that are not any more.
    overdue: u32,
}

impl Sight {
    /// Why nothing can be decided.
    fn blind(&self) -> Option<(Reason, String)> {
        let Some(seen) = &self.seen else {
            return Some((Reason::NoData, "the pods were not looked at yet".to_owned()));
        };
        if self.now - seen.at > STALE {
            let age = self.now - seen.at;
            return Some((Reason::NoData, format!("the last look at the pods is {age:.0} s old")));
        }
        if seen.ready == 0 {
            return Some((Reason::NoData, "no pod is ready".to_owned()));
        }
        if seen.silent > 0 && seen.answered == 0 {
            let why = format!(
                "none of {} ready pods answers the operator. See whether a NetworkPolicy closes their inside port to it",
                seen.ready
            );
            return Some((Reason::ScrapeBlocked, why));
        }
        (seen.answered == 0 || self.now - self.newest_at > STALE).then(|| {
            let why = "the pods have not answered twice within the last seconds".to_owned();
            (Reason::NoData, why)
        })
    }

    fn load(&self, sums: &Sums) -> f64 {
        let load = if self.by_concurrency {
            sums.concurrency()
        } else {
            sums.qps()
        };
        load.unwrap_or(0.0)
    }

    /// The least load that the newest look or the burst window can stand for.
    fn surely(&self) -> f64 {
        [&self.newest, &self.burst]
            .map(|sums| surely(sums, Some(self.load(sums))))
            .into_iter()
            .fold(0.0, f64::max)
    }

    /// The load of the newest look or the burst window, where it is surely above that of the stable window.
    fn risen(&self) -> Option<f64> {
        let least = self.load(&self.stable) * (1.0 + TOLERANCE);
        let risen = [&self.newest, &self.burst].into_iter().filter_map(|sums| {
            let load = self.load(sums);
            (surely(sums, Some(load)) > least).then_some(load)
        });
        risen.max_by(f64::total_cmp)
    }

    /// Requests per second of the burst window.
    fn qps(&self) -> f64 {
        self.figures.burst_qps.unwrap_or(0.0)
    }

    fn words(&self, load: f64) -> String {
        let unit = if self.by_concurrency {
            "requests at once"
        } else {
            "requests per second"
        };
        format!("{} {unit}", figure(load))
    }

    /// What clients see that is not as it should be.
    fn trouble(&self, goal: &Goal) -> Option<Trouble> {
        let refused = self.burst.refused_part().filter(|part| *part > REFUSED_MAX);
        if let Some(part) = refused.filter(|_| self.burst.requests >= P99_ANSWERS) {
            let what = format!("{:.1} % of the requests are refused", part * 100.0);
            return Some(Trouble {
                reason: Reason::Refused,
                what,
            });
        }
        let p99 = self.burst.p99().filter(|_| self.burst.answers() >= P99_ANSWERS)?;
        (p99 > goal.latency.as_secs_f64()).then(|| Trouble {
            reason: Reason::LatencyAbove,
            what: format!(
                "the 99th percentile is {:.0} ms, above {} ms",
                p99 * 1000.0,
                goal.latency.as_millis()
            ),
        })
    }
}

/// What clients see that is not as it should be.
struct Trouble {
    reason: Reason,
    what: String,
}

/// A size and why.
struct Verdict {
    replicas: u32,
    reason: Reason,
    why: String,
}

impl Verdict {
    fn hold(replicas: u32, reason: Reason, why: String) -> Self {
        Self { replicas, reason, why }
    }

    /// From `held` to `wanted`, as far as the bounds allow.
    fn grow(goal: &Goal, held: u32, wanted: u32, reason: Reason, why: String) -> Self {
        let max = goal.max_replicas;
        if wanted <= max {
            return Self::hold(wanted, reason, why);
        }
        let reason = if held < max { reason } else { Reason::MaximumReached };
        Self::hold(max, reason, format!("{why}; maxReplicas is {max}"))
    }
}

/// Whether the objectives are held, by the figures of a decision.
#[must_use]
pub fn objectives(goal: &Goal, decision: &Decision) -> Objectives {
    let figures = &decision.figures;
    if let (Some(qps), Some(capacity)) = (goal.qps, figures.capacity)
        && figures.capacity_is_sure
        && f64::from(goal.max_replicas) * capacity < qps
    {
        let replicas = whole(qps / capacity);
        let why = format!(
            "one replica carries {} requests per second within {} ms, so {}, the most that the spec allows, carry {} of the {} of \
             objectives.qps; {replicas} would carry them: raise scaling.maxReplicas (without scaling, replicas), or lower the \
             objective",
            figure(capacity),
            goal.latency.as_millis(),
            goal.max_replicas,
            figure(capacity * f64::from(goal.max_replicas)),
            figure(qps),
        );
        return Objectives::OutOfReach { why, replicas };
    }
    let refused = figures.refused.filter(|part| *part > REFUSED_MAX);
    let late = figures.p99.filter(|p99| *p99 > goal.latency);
    // One of a few requests is more than one in a hundred, and says nothing yet.
    if (refused.is_some() || late.is_some()) && figures.requests < P99_ANSWERS {
        return Objectives::Unknown;
    }
    if let Some(refused) = refused {
        let why = format!("{:.1} % of the requests are refused: {}", refused * 100.0, decision.why);
        return Objectives::Missed { why };
    }
    if let Some(p99) = late {
        let (seen, limit) = (p99.as_millis(), goal.latency.as_millis());
        let why = format!(
            "99 % of the answers come within {seen} ms, above {limit} ms: {}",
            decision.why
        );
        return Objectives::Missed { why };
    }
    match figures.p99 {
        Some(_) if goal.qps.is_none_or(|qps| can_carry(goal, figures, qps)) => Objectives::Met,
        _ => Objectives::Unknown,
    }
}

/// Whether objectives that were missed are held again: with some room, so that what lies near them is not told anew at each look.
#[must_use]
pub fn held_again(goal: &Goal, figures: &Figures) -> bool {
    let late = figures.p99.is_some_and(|p99| p99 > goal.latency.mul_f64(HELD_AGAIN));
    !late && figures.refused.is_none_or(|part| part <= REFUSED_MAX * HELD_AGAIN)
}

/// Whether the most replicas that there may be surely carry this: also a lower estimate may be enough.
fn can_carry(goal: &Goal, figures: &Figures, qps: f64) -> bool {
    let carried = figures.capacity.map(|capacity| f64::from(goal.max_replicas) * capacity);
    carried.is_some_and(|carried| carried >= qps)
}

fn bounded(goal: &Goal, replicas: u32) -> u32 {
    replicas.max(goal.min_replicas).min(goal.max_replicas)
}

/// What a measured load surely is, where it comes from few requests.
fn surely(sums: &Sums, load: Option<f64>) -> f64 {
    match load {
        Some(load) if sums.requests > 0.0 => load * (1.0 - SURE / sums.requests.sqrt()).max(0.0),
        _ => 0.0,
    }
}

/// The least whole number of replicas that is not below this.
fn whole(replicas: f64) -> u32 {
    // A quotient that is whole but for the last bits stays what it is. The cast saturates.
    (replicas - 1e-9).ceil() as u32
}

/// A load for people.
fn figure(load: f64) -> String {
    if load < 10.0 {
        format!("{load:.1}")
    } else {
        format!("{load:.0}")
    }
}

#[cfg(test)]
mod tests;
