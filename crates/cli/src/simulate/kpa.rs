//! Knative's autoscaler (KPA), ported from knative.dev/serving v0.42.2: pkg/autoscaler/scaling/autoscaler.go and
//! pkg/autoscaler/aggregation/bucketing.go, with the defaults of its ConfigMap `config-autoscaler` and metric `rps`.
//! `tests/scaling-vectors/kpa` holds it to the original.

/// Seconds between two looks at the pods, and between two decisions.
pub(crate) const SCRAPE: u32 = 1;
pub(crate) const TICK: u32 = 2;
/// `stable-window` and `panic-window-percentage` of it, in seconds.
const STABLE: i64 = 60;
const PANIC: i64 = 6;
/// `panic-threshold-percentage` / 100.
const PANIC_THRESHOLD: f64 = 2.0;
/// `max-scale-up-rate`, `max-scale-down-rate`.
const UP: f64 = 1000.0;
const DOWN: f64 = 2.0;
/// `container-concurrency-target-percentage` / 100: a pod is planned for this part of its target.
pub(crate) const UTILIZATION: f64 = 0.7;

/// `TimedFloat64Buckets` of one second each.
#[derive(Clone, Debug)]
struct Buckets {
    window: i64,
    buckets: Vec<f64>,
    /// First and last second that was written.
    written: Option<(i64, i64)>,
    total: f64,
}

impl Buckets {
    fn new(window: i64) -> Self {
        Self {
            window,
            buckets: vec![0.0; window as usize],
            written: None,
            total: 0.0,
        }
    }

    fn bucket(&mut self, second: i64) -> Option<&mut f64> {
        let index = second.rem_euclid(self.window) as usize;
        self.buckets.get_mut(index)
    }

    /// The value of a second that is later than all before.
    fn record(&mut self, second: i64, value: f64) {
        match self.written {
            Some((first, last)) if second - last < self.window => {
                for skipped in last + 1..=second {
                    if let Some(bucket) = self.bucket(skipped) {
                        let gone = std::mem::take(bucket);
                        self.total -= gone;
                    }
                }
                self.written = Some((first, second));
            }
            _ => {
                self.buckets.fill(0.0);
                self.total = 0.0;
                self.written = Some((second, second));
            }
        }
        if let Some(bucket) = self.bucket(second) {
            *bucket += value;
        }
        self.total += value;
    }

    fn is_empty(&self, second: i64) -> bool {
        self.written.is_none_or(|(_, last)| second - last > self.window)
    }

    fn average(&mut self, second: i64) -> f64 {
        let Some((first, last)) = self.written else { return 0.0 };
        let since = second - last;
        if since >= self.window {
            return 0.0;
        }
        let mut total = self.total;
        for old in last + 1..=second {
            total -= self.bucket(old).map_or(0.0, |bucket| *bucket);
        }
        let buckets = (last - first + 1).min(self.window - since);
        (total / buckets as f64 * 1e6).floor() / 1e6
    }
}

/// The autoscaler of one service.
#[derive(Clone, Debug)]
pub(crate) struct Kpa {
    /// Requests per second of one replica.
    target: f64,
    stable: Buckets,
    panic: Buckets,
    /// Since when it panics, and the most pods wanted since then.
    panics: Option<i64>,
    most: f64,
}

impl Kpa {
    /// At second 0 with so many ready pods.
    pub(crate) fn new(target: f64, ready: u32) -> Self {
        Self {
            target,
            stable: Buckets::new(STABLE),
            panic: Buckets::new(PANIC),
            panics: (ready > 1).then_some(0),
            most: f64::from(ready),
        }
    }

    /// What pods were asked in the last second.
    pub(crate) fn record(&mut self, second: u32, rps: f64) {
        self.stable.record(second.into(), rps);
        self.panic.record(second.into(), rps);
    }

    /// Pods wanted; `None` without a decision.
    pub(crate) fn scale(&mut self, second: u32, ready: u32) -> Option<u32> {
        let now = i64::from(second);
        if self.stable.is_empty(now) {
            return None;
        }
        let ready = f64::from(ready).max(1.0);
        let (stable, panic) = (self.stable.average(now), self.panic.average(now));
        let (most, least) = ((UP * ready).ceil(), (ready / DOWN).floor());
        let stable_pods = (stable / self.target).ceil().max(least).min(most);
        let panic_wants = (panic / self.target).ceil();
        let panic_pods = panic_wants.max(least).min(most);
        if panic_wants / ready >= PANIC_THRESHOLD {
            self.panics = Some(now);
        } else if self.panics.is_some_and(|since| since + STABLE < now) {
            self.panics = None;
            self.most = 0.0;
        }
        if self.panics.is_none() {
            return Some(stable_pods as u32);
        }
        self.most = self.most.max(stable_pods).max(panic_pods);
        Some(self.most as u32)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Vector {
        name: String,
        target: f64,
        ready: u32,
        steps: Vec<Step>,
    }

    #[derive(Deserialize)]
    struct Step {
        second: u32,
        rps: Option<f64>,
        ready: u32,
        wanted: Option<u32>,
    }

    /// Anew: see tests/scaling-vectors/kpa/vectors_test.go.
    #[test]
    fn decisions_equal_knatives() {
        let text = include_str!("../../../../tests/scaling-vectors/kpa.json");
        let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
        let mut decisions = 0;
        for vector in vectors {
            let mut kpa = Kpa::new(vector.target, vector.ready);
            for step in vector.steps {
                if let Some(rps) = step.rps {
                    kpa.record(step.second, rps);
                }
                if step.second % TICK == 0 {
                    let wanted = kpa.scale(step.second, step.ready);
                    assert_eq!(wanted, step.wanted, "{} at {} s", vector.name, step.second);
                    decisions += 1;
                }
            }
        }
        assert_eq!(decisions, 1_150);
    }
}
