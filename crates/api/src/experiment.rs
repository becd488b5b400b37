//! A/B tests.

use flywheel_contract::scalar::Decimal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inference_service::{default_compute_time, default_errors};

/// An A/B test. Another set of variants is another experiment; other percents are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("(self.variants.size() > 0 ? self.variants[0].percent : 0) + (self.variants.size() > 1 ? self.variants[1].percent : 0) + (self.variants.size() > 2 ? self.variants[2].percent : 0) + (self.variants.size() > 3 ? self.variants[3].percent : 0) + (self.variants.size() > 4 ? self.variants[4].percent : 0) == 100").message("the percents of the variants must add up to 100").field_path(".variants"))]
pub struct Experiment {
    /// Versions of the service's model, one of them that of `modelVersion`. Whose requests carry the header
    /// `X-Experiment-Key` (of a user, say) always gets the same one, in every pod; when percents change, only as many keys move
    /// as must.
    #[schemars(length(min = 2, max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["modelVersion"]))]
    pub variants: Vec<Variant>,
    /// What variants are compared by: each with the version of `modelVersion`.
    #[serde(default)]
    pub metric: ExperimentMetric,
    /// Predictions of each variant of which clients must have said what would have been right, before there is a verdict.
    #[serde(default = "default_samples")]
    #[schemars(range(min = 100, max = 100_000_000))]
    pub min_samples: i32,
    /// What happens at a verdict.
    #[serde(default)]
    pub on_verdict: OnVerdict,
    /// What a variant may do worse than the version of `modelVersion`. One that does gets no requests any more: they go to that
    /// version, for as long as the variants stay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardrails: Option<Guardrails>,
}

/// What variants are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExperimentMetric {
    /// Share of right answers, by what clients say to `/feedback`.
    #[default]
    Accuracy,
}

/// What happens at a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnVerdict {
    /// It is told, and the requests are divided as before until you change the spec.
    #[default]
    Hold,
}

/// How figures of variants are watched, from 100 texts of both on. One that does no worse than allowed is stopped by chance with a
/// probability of at most about 0.01 for each figure and experiment, however often they are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guardrails {
    /// How much larger the share of texts may be that cannot be computed, or not in time.
    #[serde(default = "default_errors")]
    #[schemars(extend("pattern" = Decimal::SHARE))]
    pub max_error_rate_increase: Decimal,
    /// How much longer computing a text may take, in percent: batches of one text are compared, as soon as both versions
    /// computed 30 of them.
    #[serde(default = "default_compute_time")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_compute_time_increase_percent: i32,
}

fn default_samples() -> i32 {
    1000
}

/// A version and its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// Name of the ModelVersion.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub model_version: String,
    /// Requests of a hundred.
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
}

/// How the variants of an experiment compare. It is written at most once a minute, but for what is new of verdicts and guardrails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExperimentStatus {
    /// Since when its variants answer.
    pub began: Time,
    /// What clients say of each, that of `modelVersion` first.
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["modelVersion"]))]
    pub variants: Vec<VariantStatus>,
    /// Each of the others beside that of `modelVersion`.
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["modelVersion"]))]
    pub comparisons: Vec<ComparisonStatus>,
}

/// A variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VariantStatus {
    /// Name of the ModelVersion.
    pub model_version: String,
    /// Its predictions since then of which clients said what would have been right.
    pub judged: i32,
    /// Share of those that were right, with four decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<String>,
    /// The guardrail that it broke; it gets no requests any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// A variant beside the version of `modelVersion`. Once there is a verdict it stays as it was then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparisonStatus {
    /// Name of the variant's ModelVersion.
    pub model_version: String,
    /// What there is to say.
    pub verdict: ExperimentVerdict,
    /// Its judged predictions.
    pub judged: i32,
    /// Those of the version of `modelVersion`.
    pub control_judged: i32,
    /// Its accuracy less that of the version of `modelVersion`, with four decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// The smallest difference that is not ruled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<String>,
    /// The largest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<String>,
}

/// What there is to say of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExperimentVerdict {
    /// Too few of its predictions, or of those of the version of `modelVersion`, were judged.
    Collecting,
    /// It may be better or worse.
    Undecided,
    /// It is right more often.
    Better,
    /// It is right less often.
    Worse,
    /// It broke a guardrail before that was known.
    Stopped,
}
