//! The three kinds of `flywheel.dev/v1alpha1`, their validation, and the names that operator, chart and tools share.
//!
//! Validation is in the schema: types, enums, patterns, bounds and CEL, so that the API server refuses a bad object with
//! the field's path and no webhook is needed. A field stands here only together with its behaviour.
//! This crate derives types; it must not talk to a cluster.

pub mod conditions;
pub mod drift;
pub mod experiment;
pub mod feedback;
pub mod inference_service;
pub mod manifest;
pub mod model_version;
pub mod names;
pub mod pod;
pub mod recovery;
pub mod retraining;
pub mod scaling;
pub mod training_job;

mod crd;

pub use crd::{crds, to_yaml};
pub use inference_service::InferenceService;
pub use model_version::ModelVersion;
pub use training_job::TrainingJob;

/// Group of the three kinds.
pub const GROUP: &str = "flywheel.dev";
/// Version of the three kinds.
pub const VERSION: &str = "v1alpha1";
