//! For tests only: builders of objects, a fake API server that answers exactly the calls that a scenario allows, and a proxy
//! before a real one that stops at a chosen write.

#![expect(clippy::panic, reason = "a test fails by panicking")]

pub mod objects;
pub mod proxy;
pub mod server;

pub use proxy::{Moment, Overload, Point, Proxy};
pub use server::{Call, Scenario, Step};
