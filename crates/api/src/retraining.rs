//! How a service gets new versions by itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Trains anew: while live texts have drifted, where `drift` is set; by the clock, where `schedule` is; and when it is asked for. A
/// TrainingJob is made like one that is there already, in which the texts that `feedback` keeps are sources as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.timeZone) || has(self.schedule)",
    "message": "timeZone is that of schedule, which is not given",
    "reason": "FieldValueInvalid",
    "fieldPath": ".timeZone"
}]))]
pub struct Retrain {
    /// Name of the TrainingJob whose spec is taken: one that has run, or one with `suspend: true`, which never does. What it says
    /// of `suspend` and `output.versionName` is left out.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub training_job: String,
    /// Times at which a training begins, as a CronJob writes them: minute, hour, day of the month, month, day of the week. `0 3 * * 1`
    /// is three o'clock on Mondays. However many times have passed, one training begins for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), regex(pattern = r"^[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}$"))]
    pub schedule: Option<String>,
    /// Time zone of `schedule`, a name of the IANA database such as `Europe/Berlin`; `Etc/UTC` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        regex(pattern = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$")
    )]
    pub time_zone: Option<String>,
    /// Asks for a training, whatever the limits say, as soon as none runs: each new value for one. `kubectl flywheel retrain` writes the
    /// time. What stands here stays a wish: where the TrainingJob that was made for it is deleted, another one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub requested: Option<String>,
    /// Predictions of the version that answers of which clients must have said what would have been right, since texts drifted or
    /// answers became worse, before a training begins for it: without labels there may be nothing to learn. Not waited for where it is unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_feedback: Option<i32>,
    /// Seconds from the beginning of one retraining to that of the next.
    #[serde(default = "default_cooldown")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub cooldown_seconds: i32,
    /// Most retrainings in seven days.
    #[serde(default = "default_per_week")]
    #[schemars(range(min = 1, max = 100))]
    pub max_per_week: i32,
}

fn default_cooldown() -> i32 {
    86_400
}
fn default_per_week() -> i32 {
    3
}

/// How `retrain.schedule` stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// The schedule that this is about.
    pub schedule: String,
    /// Its time zone.
    pub time_zone: String,
    /// Times up to this one have been heeded, or came before the schedule was set.
    pub since: Time,
    /// The next time.
    pub next: Time,
}

/// The last retraining.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetrainingStatus {
    /// The TrainingJob.
    pub training_job: String,
    /// When it was made.
    pub time: Time,
    /// Why.
    pub cause: String,
    /// The ModelVersion that came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_version: Option<String>,
}

/// Lets newer versions of the model take the place of the one in `modelVersion`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoUpdate {
    /// Which.
    pub policy: UpdatePolicy,
    /// Versions that are never taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "set"))]
    pub exclude: Vec<String>,
}

/// Which version is taken by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdatePolicy {
    /// The one with the highest number above that of `modelVersion` that is `Promotable` and was not rejected.
    LatestPromotable,
}
