//! For tests only: builders of objects, and a fake API server that answers exactly the calls that a scenario allows.

#![expect(clippy::panic, reason = "a test fails by panicking")]

pub mod objects;
pub mod server;

pub use server::{Call, Scenario, Step};
