//! Requests that a server must stand, each with what must become of it by a rule. Seeded: the same cases in each run.

pub mod bodies;
pub mod dice;
pub mod messages;
pub mod tensors;
