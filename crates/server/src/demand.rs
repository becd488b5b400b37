//! What the pod was asked and did since its start, for whoever decides how many pods there are to be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flywheel_contract::serving::{LATENCY_BOUNDS, Load};

/// The counts, together under one lock, so that a reader finds them of one moment.
pub(crate) struct Demand(Mutex<Counts>);

struct Counts {
    load: Load,
    under_way: u32,
    /// Until when `load.in_flight_seconds` is summed.
    summed: Instant,
}

impl Counts {
    /// Sums up the requests that were under way until now.
    fn pass(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.summed);
        self.load.in_flight_seconds += f64::from(self.under_way) * passed.as_secs_f64();
        self.summed = now;
    }
}

impl Default for Demand {
    fn default() -> Self {
        Self(Mutex::new(Counts {
            load: Load::default(),
            under_way: 0,
            summed: Instant::now(),
        }))
    }
}

impl Demand {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // No code that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come.
    pub fn begin(&self) {
        let mut counts = self.lock();
        counts.pass();
        counts.under_way += 1;
    }

    /// A request has ended with this status of HTTP after this time; `None`: its client did not wait for it.
    pub fn end(&self, status: Option<u16>, took: Duration) {
        let mut counts = self.lock();
        counts.pass();
        counts.under_way = counts.under_way.saturating_sub(1);
        let load = &mut counts.load;
        match status {
            Some(200..300) => {
                let seconds = took.as_secs_f64();
                let class = LATENCY_BOUNDS.partition_point(|bound| *bound < seconds);
                if let Some(count) = load.latency.get_mut(class) {
                    *count += 1;
                }
            }
            // Another client's mistakes are no load.
            Some(429 | 504) => load.refused += 1,
            Some(..500) => return,
            Some(_) | None => {}
        }
        load.requests += 1;
    }

    /// A worker has computed for this time.
    pub fn computed(&self, took: Duration) {
        self.lock().load.busy_seconds += took.as_secs_f64();
    }

    /// All until now, of a pod with so many workers.
    pub fn until_now(&self, workers: usize) -> Load {
        let mut counts = self.lock();
        counts.pass();
        Load {
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
            ..counts.load.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_came_of_them() {
        let demand = Demand::default();
        let took = Duration::from_millis;
        let ends = [
            (Some(200), took(1)),
            (Some(200), took(2)),
            (Some(200), took(150)),
            (Some(200), took(20_000)),
            (Some(429), took(1)),
            (Some(504), took(1000)),
            (Some(503), took(1)),
            (Some(500), took(1)),
            (Some(400), took(1)),
            (Some(404), took(1)),
            (None, took(300)),
        ];
        for _ in &ends {
            demand.begin();
        }
        for (status, took) in ends {
            demand.end(status, took);
        }
        demand.computed(took(250));
        demand.computed(took(250));
        let load = demand.until_now(2);
        assert_eq!((load.requests, load.refused, load.workers), (9, 2, 2));
        assert_eq!(load.latency, [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert!((load.busy_seconds - 0.5).abs() < 1e-9);
    }

    #[test]
    fn requests_under_way_are_summed_over_time() {
        let demand = Demand::default();
        let begun = Instant::now();
        demand.begin();
        demand.begin();
        std::thread::sleep(Duration::from_millis(20));
        let during = demand.until_now(1).in_flight_seconds;
        assert!(during >= 0.04, "{during}: they count before they have ended");
        demand.end(Some(200), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(20));
        demand.end(None, Duration::ZERO);
        let sum = demand.until_now(1).in_flight_seconds;
        let most = 2.0 * begun.elapsed().as_secs_f64();
        assert!((during + 0.02..most).contains(&sum), "{during} {sum} {most}");
        std::thread::sleep(Duration::from_millis(2));
        assert!(
            (demand.until_now(1).in_flight_seconds - sum).abs() < 1e-9,
            "nothing is under way"
        );
    }
}
