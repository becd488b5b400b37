//! The program of serving pods.
//!
//! ```text
//! config ─ load (fetch, verify, build, warm up) ─────────────┐
//! connection ─ http (limits, parsing) ─ engine (permit) ─ encode ─ queue ─ worker (owns a model) ─ reply
//! ```
//! The async side never touches a tensor: each worker is a plain thread that owns one copy of the model over shared
//! weights. Every queue, body, list and wait has a limit. Logs and metrics never hold request texts. There is no way to
//! change what is served through a port.

mod app;
pub mod config;
mod connection;
mod engine;
mod fetch;
mod http;
mod load;
mod metrics;
pub mod model;
mod pace;
mod queue;
pub mod run;
mod worker;

pub use app::App;
pub use run::{Listeners, Options, Server};
