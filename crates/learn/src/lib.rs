//! Tensors: devices, architectures, tasks, optimiser, evaluation, checkpoints, artifacts.
//!
//! ```text
//! folder of a pretrained model ─ config ─┐
//!                              ─ weights ┴─ network ─ task ─ train (optim, evaluate) ─ artifact ─ Classifier
//!                                                              │↑
//!                                                           checkpoint
//! collective: the same training by several processes
//! ```
//! This crate knows neither Kubernetes nor HTTP nor texts: rows come in as token ids, answers go out as numbers. Only [`loaded`]
//! reads texts, those of an artifact's own evaluation sample.
//! Calls into libtorch are the fallible ones wherever tch has them, so that a refusal is an error and not a panic.

pub mod artifact;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod device;
mod error;
pub mod evaluate;
pub mod loaded;
pub mod network;
pub mod optim;
pub mod precision;
mod random;
pub mod settings;
pub mod task;
pub mod train;
pub mod weights;

pub use artifact::Classifier;
pub use collective::Collective;
pub use config::EncoderConfig;
pub use error::{Error, Result};
pub use loaded::Loaded;
pub use task::{Task, TextClassification};
