//! What the spec of an InferenceService wants of its size.

use std::time::Duration;

use flywheel_api::inference_service::InferenceServiceSpec;
use flywheel_api::scaling::{Objectives, ScalingMetric};

use super::{Goal, Metric, SCALE_DOWN_DELAY, STABLE_WINDOW};

impl Goal {
    /// What a spec wants; `None` where its load need not be known: without objectives and scaling, and at `replicas: 0`. Without
    /// scaling both bounds are `replicas`.
    #[must_use]
    pub fn of(spec: &InferenceServiceSpec) -> Option<Self> {
        if spec.replicas == 0 || (spec.scaling.is_none() && spec.objectives.is_none()) {
            return None;
        }
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        let seconds = |n: i32| Duration::from_secs(count(n).into());
        let objectives = spec.objectives.clone().unwrap_or_else(|| Objectives {
            // Requests are given up then, so nothing can take longer.
            latency_p99_milliseconds: Objectives::default()
                .latency_p99_milliseconds
                .min(spec.server.timeout_milliseconds),
            ..Objectives::default()
        });
        let scaling = spec.scaling.as_ref();
        Some(Self {
            metric: match scaling.map(|s| s.metric) {
                Some(ScalingMetric::Concurrency) => Metric::Concurrency,
                Some(ScalingMetric::Qps) | None => Metric::Qps,
            },
            target_per_replica: scaling.and_then(|s| s.target_per_replica).map(f64::from),
            min_replicas: count(scaling.map_or(spec.replicas, |s| s.min_replicas)),
            max_replicas: count(scaling.map_or(spec.replicas, |s| s.max_replicas)),
            stable_window: scaling.map_or(STABLE_WINDOW, |s| seconds(s.stable_window_seconds)),
            scale_down_delay: scaling.map_or(SCALE_DOWN_DELAY, |s| seconds(s.scale_down_delay_seconds)),
            qps: objectives.qps.map(f64::from),
            latency: Duration::from_millis(count(objectives.latency_p99_milliseconds).into()),
        })
    }
}
