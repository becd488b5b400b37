//! The way a user goes, on a real cluster with real pods: the examples as they stand, and inputs that must be refused.
//!
//! Needs the local cluster with the chart installed and the example's data in its object store; `make test` sees to it.
//! Everything goes through kubectl and HTTP, nothing through the operator's own code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod bad_inputs;
mod bench;
mod cluster;
mod deletion;
mod examples;
mod flywheel;
mod import;
mod mirror;
mod rollout;
mod scaling;
mod storage;
mod trials;
