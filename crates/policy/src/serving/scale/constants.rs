//! Every number of the decision, with its unit and where it comes from.

use std::time::Duration;

/// The burst window is this part of the stable one (Knative `panic-window-percentage`: 10).
const BURST_PART: u32 = 10;
/// Shortest burst window (Knative's shortest stable window): below it the rate of a small service is noise.
const BURST_MIN: Duration = Duration::from_secs(6);
/// Shortest stable window, as Knative has it.
const STABLE_MIN: Duration = Duration::from_secs(6);

/// The last look, or the last rate, may be this old, in seconds: five looks at a steady service's pace.
pub(super) const STALE: f64 = 10.0;
/// Part of the stable window that must have been seen before anything shrinks.
pub(super) const COVERED: f64 = 0.9;
/// Change that is no change, up and down (HPA `--horizontal-pod-autoscaler-tolerance`: 0.1).
pub(super) const TOLERANCE: f64 = 0.1;
/// Standard deviations of a count of independent requests by which one look must exceed what pods can carry. At three a
/// steady service at its limit gives a false alarm once in a thousand looks.
pub(super) const SURE: f64 = 3.0;
/// A given target counts as exceeded for a burst at this multiple of it (Knative `panic-threshold-percentage`: 200).
pub(super) const BURST_RATIO: f64 = 2.0;

/// Part of a replica's throughput that is never planned for: the service's load is uneven over its pods and seconds.
pub(super) const ROOM: f64 = 0.15;
/// What is left free beside it, divided by the square root of the replicas: independent bursts even out over many (square
/// root staffing, Halfin and Whitt 1981). One replica is planned for 70 % of its throughput, as Knative plans
/// (`container-concurrency-target-percentage`: 70), 36 for 82.5 %.
pub(super) const ROOM_OF_ONE: f64 = 0.15;
/// ln 100: in a queue near its limit waiting times are exponential, so their 99th percentile is this many times their mean
/// (Kingman 1961).
pub(super) const P99_OF_MEAN: f64 = 4.605;
/// ln 10,000, the same for one request in 10,000: what is planned for. Where one in a hundred waits too long in the mean, every
/// other second is above the objective.
pub(super) const CALM_OF_MEAN: f64 = 9.21;
/// Least part of the throughput that counts as capacity: a service whose single request takes as long as the objective
/// allows would otherwise ask for any number of replicas.
pub(super) const USABLE_MIN: f64 = 0.1;

/// From this part of their time on that workers compute, requests per computed second tell what a replica can do; below,
/// batches are small and it is only a lower estimate.
pub(super) const BUSY_TELLS: f64 = 0.5;
/// Below this, replicas do not cure a latency above the objective: requests wait for something else than workers.
pub(super) const BUSY_WAITS: f64 = 0.7;
/// Computed seconds of a replica after which an older estimate counts for a third.
pub(super) const LEARN_SECONDS: f64 = 10.0;
/// Answers that a look must hold for an estimate.
pub(super) const LEARN_ANSWERS: f64 = 10.0;
/// Seconds for which a rate at which the objective was missed bounds the estimate: what slowed pods down may be over.
pub(super) const CEILING_AGE: f64 = 1800.0;
/// What is planned for of such a rate.
pub(super) const BELOW_CEILING: f64 = 0.95;
/// Answers from which a 99th percentile is judged.
pub(super) const P99_ANSWERS: f64 = 100.0;
/// Part of the requests that may be refused before it counts: as many as may be above the objective.
pub(super) const REFUSED_MAX: f64 = 0.01;

/// Part of an objective's limits below which one that was missed is held again.
pub(super) const HELD_AGAIN: f64 = 0.9;

/// Most that one decision multiplies the replicas by before their capacity was seen under load: an estimate of an idle
/// server is several times too low (batches of one).
pub(super) const GROW_UNSURE: u32 = 4;
/// What may be added in such a decision in any case (HPA `scaleUp`: 4 pods).
pub(super) const GROW_PODS: u32 = 4;
/// Part of the replicas that a latency above the objective adds, where load does not explain it.
pub(super) const GROW_STEP: f64 = 0.1;
/// Burst windows after a change of replicas until such a step: one that holds answers of before, and one that does not.
pub(super) const SETTLE: f64 = 2.0;
/// The scale-down delay is at least this part of the stable window: growth is judged by quarters of it, and what was ordered
/// ahead must not go when one of them shows none.
pub(super) const DELAY_LEAST: f64 = 0.25;
/// One decision leaves at least one of this many replicas (Knative `max-scale-down-rate`: 2.0).
pub(super) const SHRINK_PARTS: u32 = 2;

/// Seconds that a pod is taken to need to its start before one was seen: an image and a model from a near bucket.
pub(super) const START_UNKNOWN: f64 = 60.0;
/// A pod that starts for this many times the usual time is not counted on any more.
pub(super) const START_PATIENCE: f64 = 3.0;
/// Nor less than this, in seconds: a start of two seconds is not overdue after six.
pub(super) const START_PATIENCE_MIN: f64 = 30.0;
/// Longest start that is learned from, in seconds (Kubernetes gives up on a Deployment's progress after 600).
pub(super) const START_MAX: f64 = 600.0;
/// Starts that are remembered.
pub(super) const STARTS: usize = 15;
/// Longest look ahead along a growing load, in seconds: further out a line is a guess.
pub(super) const AHEAD_MAX: f64 = 120.0;
/// Part of its mean growth by which a load must grow in each third of a time that counts as growth.
pub(super) const EVEN: f64 = 1.0 / 3.0;
/// Most that looking ahead adds, as part of the load.
pub(super) const AHEAD_PART: f64 = 0.5;
/// One more replica is ordered for each of this many wanted, at most, in the place of pods that are overdue: if none can
/// start, more orders do not help.
pub(super) const OVERDUE_PART: u32 = 4;

/// Pieces in which a stable window, and a scale-down delay, is remembered.
pub(super) const GRAINS: f64 = 30.0;

/// The windows of a decision in seconds: stable, burst.
pub(super) fn windows(stable: Duration) -> (f64, f64) {
    let stable = stable.max(STABLE_MIN);
    let burst = (stable / BURST_PART).max(BURST_MIN);
    (stable.as_secs_f64(), burst.as_secs_f64())
}
