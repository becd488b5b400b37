//! From a TrainingJob to the objects of an attempt and of its end. Nothing here reads the cluster.

pub mod job;
pub mod model_version;
pub mod network_policy;
pub mod service;
