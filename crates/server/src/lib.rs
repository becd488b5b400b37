//! The program of serving pods.
//!
//! ```text
//! assignment ─ follow ─ load (fetch, verify, build, warm up) ─ versions (those held, those that answer)
//!                                                                 │
//! connection ─ http (limits, parsing) ─ engine of the version (permit) ─ encode ─ queue ─ worker (owns a model) ─ reply
//! ```
//! The async side never touches a tensor: each worker is a plain thread that owns one copy of the model over shared
//! weights, and counts what it answers. Every queue, body, list and wait has a limit. Logs and metrics never hold request texts. There is no way to
//! change what is served through a port.

mod agreement;
mod apart;
mod app;
mod capture;
pub mod config;
mod connection;
mod demand;
mod engine;
mod feedback;
mod fetch;
mod figures;
mod follow;
mod http;
mod load;
mod marks;
mod memory;
mod metrics;
mod mirror;
pub mod model;
mod pace;
pub mod profile;
mod queue;
mod redact;
mod retention;
pub mod run;
mod tls;
mod traces;
mod versions;
mod worker;

pub use app::App;
pub use feedback::{Receipts, own_address};
pub use follow::Source;
pub use run::{Listeners, Options, Server};
pub use tls::Tls;
pub use traces::Traces;
