//! What is simulated: pods, their queues and what clients see. docs/scaling.md describes it; it was fixed before any
//! scaler was compared on it.

use std::collections::VecDeque;

use flywheel_contract::serving::{LATENCY_BOUNDS, Load};
use flywheel_policy::serving::scale::{Look, ReadyPod, Said, StartingPod};
use jiff::{SignedDuration, Timestamp};

/// Steps of a second. Arrivals within one are even; what queues because they are not is far below the objective.
const STEPS: u32 = 4;
/// Pieces of a step in which waiting times are told apart where they change within it.
const PIECES: u32 = 8;
/// Starts differ by so much to both sides.
const START_SPREAD: f64 = 0.1;
/// Part of a second's requests that may be late or refused before it counts.
const LATE_MAX: f64 = 0.01;
/// Part of a request that is none.
const ROUNDING: f64 = 1e-9;

/// What does not change in a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Requests per second that one replica computes.
    pub(crate) capacity: f64,
    /// Seconds from a pod's creation until it gets requests.
    pub(crate) start: f64,
    /// Longest time that a request waits in a pod, in seconds; one that would wait longer is refused.
    pub(crate) wait: f64,
    /// Seconds within which an answer is in time.
    pub(crate) latency: f64,
    /// Same seed, same requests and same starts.
    pub(crate) seed: u64,
}

/// What clients saw, and what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    /// Requests, those of them that were refused, and those that were late.
    pub(crate) requests: f64,
    pub(crate) refused: f64,
    pub(crate) late: f64,
    /// Seconds in which more than one request in a hundred was refused or late.
    pub(crate) seconds_above: u32,
    /// Pods from their creation to their end, ready or not, in seconds.
    pub(crate) replica_seconds: f64,
}

#[derive(Clone, Debug)]
struct Pod {
    number: u64,
    created: f64,
    ready: f64,
    /// Requests that wait or are computed, in their order: how many, and the class of their latency, which is settled as
    /// they come.
    waiting: VecDeque<(f64, usize)>,
    /// Their sum.
    queue: f64,
    load: Counters,
}

/// [`Load`] before it is rounded to whole requests.
#[derive(Clone, Debug, Default)]
struct Counters {
    requests: f64,
    refused: f64,
    in_flight_seconds: f64,
    busy_seconds: f64,
    latency: [f64; LATENCY_BOUNDS.len() + 1],
}

/// A service.
#[derive(Clone, Debug)]
pub(crate) struct Plant {
    setting: Setting,
    random: Random,
    now: f64,
    pods: Vec<Pod>,
    made: u64,
    totals: Totals,
}

impl Plant {
    /// A service with so many ready pods.
    pub(crate) fn new(setting: Setting, replicas: u32) -> Self {
        let mut plant = Self {
            setting,
            random: Random(setting.seed),
            now: 0.0,
            pods: vec![],
            made: 0,
            totals: Totals::default(),
        };
        plant.resize(replicas);
        for pod in &mut plant.pods {
            pod.created -= setting.start;
            pod.ready = 0.0;
        }
        plant
    }

    /// So many pods are wanted from now on. Those that are not ready go first, then the youngest.
    pub(crate) fn resize(&mut self, replicas: u32) {
        while self.pods.len() < replicas as usize {
            self.made += 1;
            // A pod's start depends on its number alone, so that scalers that order alike see alike.
            let spread = Random(self.setting.seed ^ self.made.wrapping_mul(0x2545_F491_4F6C_DD1D)).even();
            let start = self.setting.start * (1.0 + START_SPREAD * (2.0 * spread - 1.0));
            self.pods.push(Pod {
                number: self.made,
                created: self.now,
                ready: self.now + start,
                waiting: VecDeque::new(),
                queue: 0.0,
                load: Counters::default(),
            });
        }
        let now = self.now;
        self.pods.sort_by_key(|pod| (pod.ready > now, pod.number));
        self.pods.truncate(replicas as usize);
    }

    /// One second with so many requests per second.
    pub(crate) fn second(&mut self, qps: f64) {
        let before = self.totals;
        for _ in 0..STEPS {
            self.step(qps / f64::from(STEPS), 1.0 / f64::from(STEPS));
        }
        let requests = self.totals.requests - before.requests;
        let bad = self.totals.refused - before.refused + self.totals.late - before.late;
        if bad > LATE_MAX * requests {
            self.totals.seconds_above += 1;
        }
        // Sums of quarters must not drift from the second that they make.
        self.now = self.now.round();
    }

    fn step(&mut self, requests: f64, seconds: f64) {
        let now = self.now;
        let ready = self.pods.iter().filter(|pod| pod.ready <= now).count();
        if ready == 0 {
            let asked = self.random.poisson(requests);
            self.totals.requests += asked;
            self.totals.refused += asked;
        }
        for pod in self.pods.iter_mut().filter(|pod| pod.ready <= now) {
            let asked = self.random.poisson(requests / ready as f64);
            pod.step(&self.setting, asked, seconds, &mut self.totals);
        }
        self.totals.replica_seconds += self.pods.len() as f64 * seconds;
        self.now += seconds;
    }

    /// Seconds since the beginning.
    pub(crate) fn now(&self) -> f64 {
        self.now
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Pods that get requests.
    pub(crate) fn ready(&self) -> u32 {
        self.pods.iter().filter(|pod| pod.ready <= self.now).count() as u32
    }

    /// What the operator sees.
    pub(crate) fn look(&self, silent: bool) -> Look {
        let mut look = Look {
            at: time(self.now),
            ready: vec![],
            starting: vec![],
        };
        for pod in &self.pods {
            let (uid, created) = (format!("pod-{}", pod.number), time(pod.created));
            if pod.ready > self.now {
                look.starting.push(StartingPod { uid, created });
            } else {
                let said = if silent { Said::Silent } else { Said::Load(pod.load()) };
                let ready_since = time(pod.ready);
                look.ready.push(ReadyPod {
                    uid,
                    created,
                    ready_since,
                    said,
                });
            }
        }
        look
    }
}

/// The time of a second.
pub(crate) fn time(seconds: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_millis((seconds * 1000.0) as i64)
}

impl Pod {
    fn step(&mut self, setting: &Setting, asked: f64, seconds: f64, totals: &mut Totals) {
        let room = setting.wait * setting.capacity;
        let computes = setting.capacity * seconds;
        let before = self.queue;
        // What would wait too long is refused as it comes.
        let taken = asked.min((room + computes - before).max(0.0));
        let served = (before + taken).min(computes);
        self.queue = before + taken - served;
        totals.requests += asked;
        totals.refused += asked - taken;
        self.load.requests += asked;
        self.load.refused += asked - taken;
        self.load.busy_seconds += served / setting.capacity;
        let own = 1.0 / setting.capacity;
        self.load.in_flight_seconds += (before + self.queue) / 2.0 * seconds + taken * own;
        let pieces = if (before - self.queue).abs() < f64::EPSILON {
            1
        } else {
            PIECES
        };
        for piece in 0..pieces {
            let part = (f64::from(piece) + 0.5) / f64::from(pieces);
            let latency = (before + (self.queue - before) * part) / setting.capacity + own;
            let count = taken / f64::from(pieces);
            totals.late += if latency > setting.latency { count } else { 0.0 };
            let class = LATENCY_BOUNDS.partition_point(|bound| *bound < latency);
            self.waiting.push_back((count, class));
        }
        let mut left = served;
        while let Some((count, class)) = self.waiting.front_mut() {
            let answered = count.min(left);
            if let Some(sum) = self.load.latency.get_mut(*class) {
                *sum += answered;
            }
            *count -= answered;
            left -= answered;
            if *count > ROUNDING {
                break;
            }
            self.waiting.pop_front();
        }
    }

    fn load(&self) -> Load {
        let load = &self.load;
        Load {
            requests: load.requests as u64,
            refused: load.refused as u64,
            in_flight_seconds: load.in_flight_seconds,
            busy_seconds: load.busy_seconds,
            workers: 1,
            latency: load.latency.map(|count| count as u64),
        }
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the same numbers on every machine.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// A number of at least 0 and below 1.
    fn even(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number of independent arrivals with this mean: by products of even numbers (Knuth) where it is small, else
    /// by the normal distribution (Box and Muller).
    fn poisson(&mut self, mean: f64) -> f64 {
        if mean <= 0.0 {
            return 0.0;
        }
        if mean < 12.0 {
            let limit = (-mean).exp();
            let mut product = self.even();
            let mut count = 0.0;
            while product > limit {
                product *= self.even();
                count += 1.0;
            }
            return count;
        }
        let radius = (-2.0 * (1.0 - self.even()).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * self.even();
        (mean + mean.sqrt() * radius * angle.cos()).round().max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: Setting = Setting {
        capacity: 100.0,
        start: 30.0,
        wait: 0.5,
        latency: 0.2,
        seed: 1,
    };

    #[test]
    fn arrivals_have_mean_and_variance_of_independent_requests() {
        for mean in [0.5, 8.0, 25.0] {
            let mut random = Random(3);
            let drawn: Vec<f64> = (0..20_000).map(|_| random.poisson(mean)).collect();
            let seen = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let variance = drawn.iter().map(|x| (x - seen).powi(2)).sum::<f64>() / drawn.len() as f64;
            assert!((seen / mean - 1.0).abs() < 0.03, "{mean}: {seen}");
            assert!((variance / mean - 1.0).abs() < 0.05, "{mean}: {variance}");
        }
    }

    #[test]
    fn pods_below_their_capacity_are_in_time_and_those_beyond_it_refuse_the_rest() {
        let mut plant = Plant::new(SETTING, 10);
        for _ in 0..300 {
            plant.second(700.0);
        }
        assert_eq!(plant.totals().seconds_above, 0);
        assert_eq!(plant.totals().replica_seconds, 3000.0);
        for _ in 0..100 {
            plant.second(2_000.0);
        }
        let totals = plant.totals();
        assert!(totals.seconds_above >= 98, "{totals:?}");
        // Of 200,000 requests 100,000 are computed, and half a second of them waits at the end.
        assert!((totals.refused - 99_500.0).abs() < 1_500.0, "{totals:?}");
        // What is computed then waits half a second.
        assert!((totals.late - 100_000.0).abs() < 1_500.0, "{totals:?}");
    }

    #[test]
    fn ordered_pods_come_after_their_start_and_young_ones_go_first() {
        let mut plant = Plant::new(SETTING, 2);
        plant.resize(6);
        for second in 1..=40 {
            plant.second(100.0);
            assert!(second >= 27 || plant.ready() == 2, "{second}");
        }
        assert_eq!(plant.ready(), 6);
        plant.resize(8);
        plant.resize(5);
        let look = plant.look(false);
        let uids: Vec<_> = look.ready.iter().map(|pod| pod.uid.as_str()).collect();
        assert_eq!(uids, ["pod-1", "pod-2", "pod-3", "pod-4", "pod-5"]);
        assert!(look.starting.is_empty());
    }

    #[test]
    fn the_same_seed_gives_the_same_run_and_counters_add_up() {
        let run = |seed| {
            let mut plant = Plant::new(Setting { seed, ..SETTING }, 3);
            for _ in 0..50 {
                plant.second(290.0);
            }
            (plant.totals(), plant.look(false))
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1).0, run(2).0);
        for pod in run(1).1.ready {
            let Said::Load(load) = pod.said else { panic!("silent") };
            let answers: u64 = load.latency.iter().sum();
            assert!(answers.abs_diff(load.requests - load.refused) <= 16, "{load:?}");
            assert!((load.busy_seconds - answers as f64 / 100.0).abs() < 0.8, "{load:?}");
        }
    }
}
