//! How often what happened.

use std::collections::BTreeMap;

/// Counts by what happened.
#[derive(Default)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// It happened once more.
    pub fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// Adds those of another thread.
    pub fn merge(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    /// How often it happened.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// One line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(what, times)| format!("  {what:<44} {times:>10}"))
    }
}
