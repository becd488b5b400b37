//! Which version of an experiment a client gets.

/// Header with whose request it is (a user, say): requests of one key are always answered by the same version.
pub const EXPERIMENT_KEY_HEADER: &str = "x-experiment-key";
