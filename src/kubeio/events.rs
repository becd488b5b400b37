//! Events: sent after the write that they tell of, and never a reason to fail.

use flywheel_api::conditions::{cut, cut_words};
use kube::runtime::events::{Event, EventType};

use super::{Kind, Writes, within};

/// Most bytes of an event's note.
const NOTE_MAX: usize = 1000;

/// What an event says. The reason is constant for its cause, since Kubernetes aggregates by it; numbers belong in status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether somebody should look.
    pub warning: bool,
    /// CamelCase, one of the conditions' reasons.
    pub reason: String,
    /// What was done, CamelCase; events of one reason and different actions stand apart.
    pub action: &'static str,
    /// For people.
    pub text: String,
}

impl Writes<'_> {
    /// Publishes an event about this object. A failure is logged only.
    pub async fn event<K: Kind>(&self, object: &K, note: &Note) {
        if !self.context.lease.still_valid() {
            return;
        }
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: cut(&note.reason, 128).to_owned(),
            note: Some(cut_words(&note.text, NOTE_MAX).into_owned()),
            action: note.action.to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let sent = within("publish an event", self.context.recorder.publish(&event, &reference)).await;
        self.context.metrics.write("create", "Event", sent.is_ok());
        if let Err(error) = sent {
            tracing::warn!(%error, reason = note.reason, "an event was not published");
        }
    }
}
