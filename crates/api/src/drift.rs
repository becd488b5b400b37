//! Whether live texts still look like those that a version was made for.

use flywheel_contract::profile::WINDOW_SECONDS;
use flywheel_contract::scalar::Decimal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When live texts count as drifted. They are counted in windows, and each is compared with a reference: the length of texts,
/// their words, how sure the version is of its answers, which classes it gives, and where the texts lie in its inner space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("self.windowSeconds <= 300 || self.windowSeconds % 300 == 0").message("windowSeconds above 300 must be a multiple of 300, the windows in which pods count").field_path(".windowSeconds"))]
pub struct Drift {
    /// Length of a window. Where it changes, counting begins anew.
    #[serde(default = "default_window")]
    #[schemars(range(min = 10, max = 604_800))]
    pub window_seconds: i32,
    /// What windows are compared with.
    #[serde(default)]
    pub reference: DriftReference,
    /// Population stability index from which a feature has drifted, beyond what chance brings about in windows of that size.
    #[serde(default = "default_psi")]
    #[schemars(extend("pattern" = Decimal::AMOUNT))]
    pub psi: Decimal,
    /// Kolmogorov-Smirnov distance, 0 to 1, from which a feature has drifted.
    #[serde(default = "default_ks")]
    #[schemars(extend("pattern" = Decimal::SHARE))]
    pub ks: Decimal,
    /// By how much the share of right answers, 0 to 1, must fall below that of the same hours a week ago until `DriftDetected` is
    /// True for that. With 1 it never is. It needs `feedback`, by which clients say what was right.
    #[serde(default = "default_accuracy_drop")]
    #[schemars(extend("pattern" = Decimal::SHARE))]
    pub accuracy_drop: Decimal,
    /// Texts that a window needs to be judged, and judgements that hours need to be compared.
    #[serde(default = "default_samples")]
    #[schemars(range(min = 50, max = 10_000_000))]
    pub min_samples: i32,
    /// Judged windows one after another that must have drifted until `DriftDetected` is True, and must not have until it is
    /// False again.
    #[serde(default = "default_windows")]
    #[schemars(range(min = 1, max = 12))]
    pub consecutive_windows: i32,
}

impl Drift {
    /// Length of the windows in which pods count: a whole number of them is a window.
    #[must_use]
    pub fn counted_seconds(&self) -> u32 {
        u32::try_from(self.window_seconds).map_or(WINDOW_SECONDS, |seconds| seconds.min(WINDOW_SECONDS))
    }
}

/// What windows are compared with, for each version anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DriftReference {
    /// The first window with enough texts that ended after the version began to answer all requests.
    #[default]
    FirstWindow,
    /// The version's own test set, as its artifact tells. Live texts often differ from it from the first moment on.
    TestSet,
}

fn default_window() -> i32 {
    3600
}
fn default_psi() -> Decimal {
    Decimal::from("0.1")
}
fn default_ks() -> Decimal {
    Decimal::from("0.1")
}
fn default_accuracy_drop() -> Decimal {
    Decimal::from("0.05")
}
fn default_samples() -> i32 {
    500
}
fn default_windows() -> i32 {
    2
}

/// The last window that was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriftStatus {
    /// The version whose answers it is about.
    pub model_version: String,
    /// When the window ended.
    pub window_end: Time,
    /// Its texts.
    pub texts: i32,
    /// Texts of the reference.
    pub reference_texts: i32,
    /// Predictions of the version of which clients said what would have been right, in the windows that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<i32>,
    /// Share of those that were right, with three decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<String>,
    /// What was compared, the farthest apart first.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub features: Vec<FeatureDrift>,
}

/// How far a feature of the window is from that of the reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureDrift {
    /// Which.
    pub name: String,
    /// Population stability index, with three decimals.
    pub psi: String,
    /// Kolmogorov-Smirnov distance, with three decimals, where the feature has an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ks: Option<String>,
    /// It has drifted.
    pub drifted: bool,
}

/// How often answers were right, by what clients said, beside how often they were before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QualityStatus {
    /// The version whose answers it is about.
    pub model_version: String,
    /// When the hours ended that were compared last.
    pub span_end: Time,
    /// Predictions that clients judged in them.
    pub judged: i32,
    /// Share of those that were right, with three decimals.
    pub accuracy: String,
    /// What they are compared with.
    pub baseline: Baseline,
    /// Predictions that clients judged then.
    pub judged_before: i32,
    /// Share of those that were right, with three decimals.
    pub accuracy_before: String,
    /// It fell by `accuracyDrop`, and not by chance.
    pub dropped: bool,
    /// Mean of the classes' F1 in the last whole day, with three decimals, of those with enough judgements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<String>,
    /// The same a week before, or in the first day that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1_before: Option<String>,
}

/// What answers are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Baseline {
    /// The same hours a week before.
    WeekAgo,
    /// The first hours of the version with enough judgements: a week ago there were too few.
    FirstSpan,
}
