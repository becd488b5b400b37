//! The part of a status that is the same for every kind: the summary conditions.

use flywheel_api::conditions::{Desired, Status, merge, reasons, types};
use flywheel_api::recovery::{Incident, RecoveryStatus};
use flywheel_policy::recovery::incident;
use flywheel_policy::recovery::incident::News;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::kubeio::Note;

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

/// What a status tells of these incidents. How long there is no room grows all the time, so it is told once it is over.
#[must_use]
pub fn recovery(incidents: &[Incident]) -> Option<RecoveryStatus> {
    let told = incidents.iter().map(|incident| Incident {
        capacity_seconds: incident.capacity_seconds.filter(|_| incident.replace_seconds.is_some()),
        ..incident.clone()
    });
    let status = RecoveryStatus {
        incidents: told.collect(),
    };
    (!status.incidents.is_empty()).then_some(status)
}

/// The event about an incident.
#[must_use]
pub fn incident_note(news: &News) -> Note {
    match news {
        News::Began(incident) => Note {
            warning: true,
            reason: incident.cause.as_str().to_owned(),
            action: "Recover",
            text: incident::what(incident),
        },
        News::Over(incident) => Note {
            warning: false,
            reason: reasons::RECOVERED.to_owned(),
            action: "Recover",
            text: format!(
                "{}; recovered in {}",
                incident::what(incident),
                incident::told(incident)
            ),
        },
    }
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
