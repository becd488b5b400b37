//! The program of training pods.
//!
//! ```text
//! configuration ─ [run] ─ lineage ─ inputs (store) ─ data ─ learn (own thread) ─ artifact ─ upload ─ result ─ termination message
//!                   └ tracker ─ /progress, /metrics, bar or log   └↑ checkpoints (beside it)
//!                       └ tracking ─ TensorBoard's event files, MLflow (beside it)
//! ```
//! Several processes train together where the configuration says so: siblings are those of one pod, peers all of them. Only
//! process 0 goes the whole way; the others take part in [learn] (assist).
//!
//! A pod tries once: whoever started it reads its termination message and decides what comes next. Everything that
//! fails ends as a [`flywheel_contract::failure::Failure`] with what to do.

mod assist;
mod calibrate;
mod checkpoints;
pub mod command;
pub mod configuration;
mod ending;
mod import;
mod incumbent;
mod inputs;
mod learning;
mod link;
mod output;
mod peers;
mod place;
mod reuse;
mod server;
mod siblings;
mod tracker;
mod tracking;
mod train;
mod verify;
