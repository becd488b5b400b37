//! What is done about failures of the infrastructure, and how long it took.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Deadline of an object that names none: the promise.
pub const DEADLINE_SECONDS: i32 = 300;
/// Incidents that a status holds.
pub const INCIDENTS: usize = 5;

/// What is done about failures of the infrastructure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRecovery {
    /// Whether pods that are beyond help are replaced, or only told of.
    #[serde(default)]
    pub mode: RecoveryMode,
    /// Seconds within which a failure is to be recovered from, as long as there are nodes for it; `RecoveryWithinDeadline` tells
    /// whether it was.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 170, max = 604_800))]
    pub deadline_seconds: i32,
}

impl Default for ServiceRecovery {
    fn default() -> Self {
        Self {
            mode: RecoveryMode::default(),
            deadline_seconds: default_deadline(),
        }
    }
}

pub(crate) fn default_deadline() -> i32 {
    DEADLINE_SECONDS
}

/// Whether the operator acts on what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecoveryMode {
    /// Pods that run and are beyond help are deleted and replaced.
    #[default]
    Enforce,
    /// Such pods are told of and left alone. What has ended by itself is followed all the same.
    Observe,
}

/// What was recovered from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryStatus {
    /// Five at most: those that go on, then the last that are over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = INCIDENTS))]
    pub incidents: Vec<Incident>,
}

/// Something that failed, and how it was recovered from. Each stage is there once it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// What failed.
    pub cause: IncidentCause,
    /// Name of the pod, or of the Job whose pods train together.
    pub object: String,
    /// Node that it was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What was seen.
    pub message: String,
    /// When it failed, by the first sign of it.
    pub began: Time,
    /// Seconds until the operator knew.
    pub detect_seconds: i32,
    /// Seconds from then until it was decided what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decide_seconds: Option<i32>,
    /// Seconds from then until pods in its place had a node and were being started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_seconds: Option<i32>,
    /// Seconds from then until these answered, or trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover_seconds: Option<i32>,
    /// Seconds of these for which no node had room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_seconds: Option<i32>,
    /// Pods that answered before it, of which as many are to answer again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_before: Option<i32>,
}

impl Incident {
    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.recover_seconds.is_some()
    }

    /// Seconds from its beginning to the end of the last stage that is over.
    #[must_use]
    pub fn seconds(&self) -> i32 {
        [self.decide_seconds, self.replace_seconds, self.recover_seconds]
            .into_iter()
            .flatten()
            .fold(self.detect_seconds, i32::saturating_add)
    }
}

/// What failed. Of several that are known of one object the one that stands last here counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum IncidentCause {
    /// A pod runs and does not answer.
    PodUnready,
    /// A pod's program ended by itself.
    PodFailed,
    /// A pod's program ends again and again.
    CrashLoop,
    /// A pod's image cannot be had.
    ImagePullFailed,
    /// A pod was deleted, evicted or preempted.
    PodLost,
    /// A pod runs and does no work.
    Hung,
    /// A GPU is unhealthy.
    GpuFault,
    /// A node does not answer.
    NodeLost,
}

impl IncidentCause {
    /// The word in the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodUnready => "PodUnready",
            Self::PodFailed => "PodFailed",
            Self::CrashLoop => "CrashLoop",
            Self::ImagePullFailed => "ImagePullFailed",
            Self::PodLost => "PodLost",
            Self::Hung => "Hung",
            Self::GpuFault => "GpuFault",
            Self::NodeLost => "NodeLost",
        }
    }
}
