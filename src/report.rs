//! The part of a status that is the same for every kind: the summary conditions.

use flywheel_api::conditions::{Desired, Status, merge, types};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// How an object stands, in kstatus's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All is as the spec says.
    Ready,
    /// Work goes on, by itself.
    Working,
    /// Nothing more happens until somebody acts.
    Stalled,
}

/// `Ready`, with `Reconciling` or `Stalled` beside it where that is True.
#[must_use]
pub fn summary(standing: Standing, reason: &str, message: &str) -> Vec<Desired> {
    let ready = match standing {
        Standing::Ready => Status::True,
        Standing::Working | Standing::Stalled => Status::False,
    };
    let mut conditions = vec![Desired::new(types::READY, ready, reason, message)];
    match standing {
        Standing::Ready => {}
        Standing::Working => conditions.push(Desired::new(types::RECONCILING, Status::True, reason, message)),
        Standing::Stalled => conditions.push(Desired::new(types::STALLED, Status::True, reason, message)),
    }
    conditions
}

/// The condition list of an object of this generation at this time; see [`merge`].
#[must_use]
pub fn conditions(
    present: &[Condition],
    desired: &[Desired],
    generation: Option<i64>,
    now: jiff::Timestamp,
) -> Vec<Condition> {
    merge(present, desired, generation.unwrap_or(0), &Time(now))
}
