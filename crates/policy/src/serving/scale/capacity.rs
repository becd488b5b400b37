//! What one replica can do, learned from what replicas did.
//!
//! Requests per computed second of the workers give the throughput. Rates that were carried within the objective say no
//! more than that: they are never above it. How much of the throughput counts as capacity follows from the objective, and a
//! rate at which it was missed nevertheless bounds it for a while.

use super::constants::{
    BELOW_CEILING, BUSY_TELLS, CALM_OF_MEAN, CEILING_AGE, LEARN_ANSWERS, LEARN_SECONDS, P99_OF_MEAN, ROOM, ROOM_OF_ONE,
    USABLE_MIN,
};
use super::watch::Sums;

/// What was learned so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    throughput: Option<Throughput>,
    ceiling: Option<Ceiling>,
}

#[derive(Clone, Copy, Debug)]
struct Throughput {
    /// Requests per second of one replica whose workers always compute.
    qps: f64,
    /// Workers of a replica.
    workers: f64,
    /// It was seen under load.
    sure: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ceiling {
    /// Requests per second and replica at which the objective was missed.
    qps: f64,
    /// When, in seconds since the watch began.
    at: f64,
}

/// What one replica can do now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Capacity {
    /// Requests per second whatever the latency.
    pub(super) throughput: f64,
    /// Requests per second within the latency objective.
    pub(super) within: f64,
    /// Requests per second at which hardly any takes longer than the objective.
    calm: f64,
    /// It was seen under load; else it is a lower estimate.
    pub(super) sure: bool,
}

impl Learned {
    /// Takes what ready pods did since the look before.
    pub(super) fn learn(&mut self, sums: &Sums) {
        let (Some(busy), Some(replicas)) = (sums.busy(), sums.replicas()) else {
            return;
        };
        if sums.answers() < LEARN_ANSWERS || sums.busy_seconds <= 0.0 || replicas <= 0.0 {
            return;
        }
        let workers = sums.worker_seconds / sums.replica_seconds;
        let seen = sums.answers() / sums.busy_seconds * workers;
        let tells = busy >= BUSY_TELLS;
        self.throughput = Some(match self.throughput {
            Some(known) if known.sure == tells => {
                let computed = sums.busy_seconds / replicas / workers;
                let weight = 1.0 - (-computed / LEARN_SECONDS).exp();
                Throughput {
                    qps: known.qps + (seen - known.qps) * weight,
                    workers,
                    sure: tells,
                }
            }
            // Small batches say nothing against what was seen under load.
            Some(known) if known.sure => known,
            _ => Throughput {
                qps: seen,
                workers,
                sure: tells,
            },
        });
    }

    /// What replicas compute with is another version or other resources: what was seen before is an estimate, of which also
    /// little load tells that it is too low or too high.
    pub(super) fn doubt(&mut self) {
        if let Some(known) = &mut self.throughput {
            known.sure = false;
        }
        self.ceiling = None;
    }

    /// Takes that replicas with this many requests per second each missed the objective.
    pub(super) fn missed(&mut self, qps: f64, at: f64) {
        let lowest = self
            .ceiling
            .filter(|known| at - known.at < CEILING_AGE)
            .map_or(qps, |known| known.qps.min(qps));
        self.ceiling = Some(Ceiling { qps: lowest, at });
    }

    /// What one replica can do within `latency` seconds at the 99th percentile.
    pub(super) fn capacity(&self, latency: f64, now: f64) -> Option<Capacity> {
        let known = self.throughput?;
        let usable = |tail| known.qps * usable(known.qps, known.workers, latency, tail);
        let ceiling = self
            .ceiling
            .filter(|ceiling| now - ceiling.at < CEILING_AGE)
            .map_or(f64::INFINITY, |ceiling| ceiling.qps * BELOW_CEILING);
        Some(Capacity {
            throughput: known.qps,
            within: usable(P99_OF_MEAN).min(ceiling),
            calm: usable(CALM_OF_MEAN).min(ceiling),
            sure: known.sure,
        })
    }
}

/// Part of the throughput at which requests wait no longer than the objective leaves beside their own time, but for a part of
/// them that is `exp(-tail)`: in a queue with random arrivals and even service times the mean wait is ρ / (2c(1-ρ)), and
/// waits near the limit are exponential.
fn usable(qps: f64, workers: f64, latency: f64, tail: f64) -> f64 {
    let own = workers / qps;
    let waits = 2.0 * qps * (latency - own).max(0.0) / tail;
    (waits / (1.0 + waits)).max(USABLE_MIN)
}

impl Capacity {
    /// Requests per second that are planned for each of so many replicas.
    pub(super) fn planned(&self, replicas: u32) -> f64 {
        let room = ROOM + ROOM_OF_ONE / f64::from(replicas.max(1)).sqrt();
        (self.throughput * (1.0 - room)).min(self.calm)
    }

    /// Fewest replicas that are planned for at least so many requests per second.
    pub(super) fn replicas(&self, qps: f64) -> f64 {
        // n (1 - ROOM) - ROOM_OF_ONE √n = qps / throughput, solved for √n.
        let kept = 1.0 - ROOM;
        let root =
            (ROOM_OF_ONE + (ROOM_OF_ONE * ROOM_OF_ONE + 4.0 * kept * qps / self.throughput).sqrt()) / (2.0 * kept);
        (root * root).max(qps / self.calm)
    }
}
