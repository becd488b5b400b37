//! The operator: watches TrainingJobs, ModelVersions and InferenceServices, and makes the cluster follow them.
//!
//! ```text
//!            caches, live reads, scrapes            crates/policy              server-side apply
//! object ──▶ observe ───────────────────▶ decide ──────────────▶ build ──▶ apply ──────────────▶ report ──▶ status, events
//! ```
//! Each kind has these five stages in a folder of its own; data never turns back. [`run`] wires them; [`kubeio`] is the
//! only writer; [`context::Context`] is what every stage gets.

pub mod admin;
pub mod backoff;
pub mod cache;
pub mod client;
pub mod cluster;
pub mod context;
pub mod controller;
pub mod error;
pub mod kubeio;
pub mod lease;
pub mod models;
pub mod pace;
pub mod podspec;
pub mod queue;
pub mod report;
pub mod run;
pub mod scrape;
pub mod serving;
pub mod settings;
pub mod telemetry;
pub mod training;
