//! Configuration of the serving pod, and what it tells of itself.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::scalar::{Device, Precision};
use crate::storage::StorageSettings;
use crate::trainer::ArtifactRef;

/// Content of the ConfigMap `<name>-serving-<first digits of its digest>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingConfig {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whose pod this is.
    pub service: ServiceIdentity,
    /// What to serve.
    pub version: ServedVersion,
    /// What to compute on.
    pub device: Device,
    /// In which format.
    #[serde(default)]
    pub precision: Precision,
    /// How to reach the bucket.
    #[serde(default)]
    pub storage: StorageSettings,
    /// Bounds.
    pub limits: ServingLimits,
}

/// Which InferenceService a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceIdentity {
    /// Namespace of the InferenceService.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A version that a pod serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedVersion {
    /// Name of the ModelVersion; answers carry it.
    pub name: String,
    /// Its artifact.
    pub artifact: ArtifactRef,
}

/// What a pod refuses to go beyond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingLimits {
    /// Texts waiting or computed at once; more are answered 429.
    pub max_concurrency: u32,
    /// Milliseconds after which a request is answered 504.
    pub timeout_milliseconds: u32,
}

/// Body of `/stats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// [`crate::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Whether `/readyz` says yes.
    pub ready: bool,
    /// The version of the configuration and how far it is.
    pub version: VersionStats,
    /// Requests answered since the start, by class of status: 2xx, 4xx, 5xx.
    pub answered: [u64; 3],
    /// Texts waiting or computed now.
    pub in_flight: u32,
    /// Seconds since the start.
    pub uptime_seconds: f64,
}

/// State of a version in a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionStats {
    /// Name of the ModelVersion.
    pub name: String,
    /// How far it is.
    pub state: LoadState,
    /// Format in which it computes, once loaded; never [`Precision::Auto`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// How its answers in that format compare with those in single precision, once loaded, if it came with answers to
    /// compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Why the last try to load it failed, while it is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Answers of a version beside those that its artifact's evaluation sample holds, which were computed in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agreement {
    /// Texts compared.
    pub texts: u32,
    /// Those that got the same label.
    pub same: u32,
}

/// How far a version is in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadState {
    /// Bytes are fetched and checked.
    Downloading,
    /// The network is built and warmed up.
    Loading,
    /// It answers.
    Ready,
    /// It cannot be loaded.
    Failed,
}
