//! What operator and pods tell each other: environment, paths, ports, exit codes, metric names and JSON bodies.
//!
//! Every body carries `schemaVersion`. Operators n and n−1 understand each other's pods: fields are only ever added,
//! with a default, and a reader ignores what it does not know. The parts of a spec that pods need as they stand
//! ([`dataset`], [`hyperparameters`], [`gate`]) live here and are used by the CRDs as well, so that each is written once.
//! This crate must not use a Kubernetes client, an async runtime or tensors.

pub mod artifact;
pub mod checkpoint;
pub mod dataset;
pub mod failure;
pub mod feedback;
pub mod gate;
pub mod hyperparameters;
pub mod names;
pub mod profile;
pub mod progress;
pub mod scalar;
pub mod serving;
pub mod split;
pub mod storage;
pub mod termination;
pub mod tracking;
pub mod trainer;
pub mod version;

/// Version of every JSON body in this crate. Raised only when a reader of the older version could misread a body.
pub const SCHEMA_VERSION: u32 = 1;
