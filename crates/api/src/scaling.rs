//! How many pods an InferenceService has: what it is to hold, between which bounds, and what was decided.

use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Latency objective of a service that names none.
pub const LATENCY_P99_MILLISECONDS: i32 = 200;
/// Stable window of a service that names none.
pub const STABLE_WINDOW_SECONDS: i32 = 60;
/// Scale-down delay of a service that names none.
pub const SCALE_DOWN_DELAY_SECONDS: i32 = 300;

/// Throughput and latency that a service is to hold. `ObjectivesMet` tells whether it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Objectives {
    /// Requests a second that the service is to be able to carry. Whether `scaling.maxReplicas` pods can is told as soon as
    /// pods have shown what one carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub qps: Option<i32>,
    /// Milliseconds within which 99 of 100 requests are to be answered, from their head to their answer.
    #[serde(default = "default_latency")]
    #[schemars(range(min = 1, max = 10_000))]
    pub latency_p99_milliseconds: i32,
}

impl Default for Objectives {
    fn default() -> Self {
        Self {
            qps: None,
            latency_p99_milliseconds: default_latency(),
        }
    }
}

fn default_latency() -> i32 {
    LATENCY_P99_MILLISECONDS
}

/// How many pods there are, by the load. Without it there are `replicas`, set by you or through the scale subresource by a
/// HorizontalPodAutoscaler or KEDA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must not be above maxReplicas").field_path(".minReplicas"))]
pub struct Scaling {
    /// Whether the number of pods is only computed and told, or followed.
    #[serde(default)]
    pub mode: ScalingMode,
    /// Fewest pods. Nothing would hold a request that comes while there is none.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most pods.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// What a pod's load is measured in.
    #[serde(default)]
    pub metric: ScalingMetric,
    /// Load of one pod to aim at, in that metric. Where it is unset, it is learned from what pods carry within the latency
    /// objective, with room to spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub target_per_replica: Option<i32>,
    /// Seconds over which the load is averaged. A tenth of it, at least 6 s, shows bursts.
    #[serde(default = "default_stable_window")]
    #[schemars(range(min = 6, max = 3600))]
    pub stable_window_seconds: i32,
    /// Seconds for which fewer pods must have been enough before one goes.
    #[serde(default = "default_scale_down_delay")]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_down_delay_seconds: i32,
}

fn one() -> i32 {
    1
}
fn default_stable_window() -> i32 {
    STABLE_WINDOW_SECONDS
}
fn default_scale_down_delay() -> i32 {
    SCALE_DOWN_DELAY_SECONDS
}

/// Whether a computed number of pods is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScalingMode {
    /// It is; `replicas` is the number at the start.
    #[default]
    Auto,
    /// There are `replicas`, and status says how many there would be.
    Observe,
}

/// What the load of a pod is measured in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScalingMetric {
    /// Requests a second.
    #[default]
    #[serde(rename = "QPS")]
    Qps,
    /// Requests under way at once.
    Concurrency,
}

/// What a service is asked and does, with two digits; written when it has moved by a tenth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadStatus {
    /// Requests a second.
    pub qps: String,
    /// Requests under way at once.
    pub concurrency: String,
    /// Milliseconds within which 99 of 100 requests were answered; absent where nothing was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p99_milliseconds: Option<i32>,
}

/// What was decided about the number of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingStatus {
    /// Pods that the load wants.
    pub desired_replicas: i32,
    /// Load of one pod that is aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_per_replica: Option<String>,
    /// Requests a second that one pod carries within the latency objective, once pods were busy enough to show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_per_replica: Option<String>,
    /// Seconds from a pod's creation until it answers, as seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_seconds: Option<i32>,
    /// The last ten decisions that changed the number, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub decisions: Vec<ScaleDecision>,
}

/// A decision that changed the number of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleDecision {
    /// When.
    pub time: Time,
    /// Pods before.
    pub from: i32,
    /// Pods since.
    pub to: i32,
    /// One word.
    pub reason: String,
    /// The figures that it was decided by.
    pub message: String,
}
