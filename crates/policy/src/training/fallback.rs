//! Whether an attempt that finds no GPU is followed by one of another accelerator class.
//!
//! A class may name another one as its fallback. A training never has pods of two classes, and does not go to the other one for
//! a moment's wait: an attempt of which no pod has run is given up when its class has had no room for a while, and the next
//! one is of the other class. Where that has no room either the two take turns, ever more slowly. Whatever else ends an
//! attempt, the next one begins with the class of the spec.

use std::time::Duration;

use jiff::Timestamp;

use super::attempt::{AttemptState, End};
use super::hang::{Cause, Verdict};
use super::{AttemptView, Wishes, turn_after, turns};

/// How long an attempt has no node, at last for want of a GPU of its class, before one of the other class follows. Pods that are told to end hold theirs
/// for 30 s, and those that their kubelet has to kill a little longer; what becomes free in that way is waited for. Longer
/// would use up what a recovery may take.
pub const FALLBACK_AFTER: Duration = Duration::from_secs(60);

/// How long the attempt after this many turns in a row finds no GPU before it is the other class's turn again: 60, 120, 240,
/// 480, 960, 1,800 s.
#[must_use]
pub fn patience(turns: u32) -> Duration {
    turn_after(FALLBACK_AFTER, turns)
}

impl<'a> Wishes<'a> {
    /// The class that is to take over where this one has no room.
    #[must_use]
    pub(super) fn other_class(&self, class: &str) -> Option<&'a str> {
        if class == self.class {
            self.fallback
        } else {
            Some(self.class)
        }
    }

    /// The class of the attempt that follows one of this class, which ended in this way.
    pub(super) fn next_class(&self, class: &str, end: &End) -> &'a str {
        match end {
            End::NoRoom { .. } => self.other_class(class).unwrap_or(self.class),
            _ => self.class,
        }
    }

    /// Whether the attempt stays in its class whatever that lacks: it has run, or is not to be ended.
    fn stays(&self, latest: &AttemptView) -> bool {
        self.suspend || self.only_observe || latest.suspended || latest.running > 0
    }

    /// How people call this class.
    fn words(&self, class: &str) -> String {
        if class == self.class {
            format!("the accelerator class {class}")
        } else {
            format!("the fallback class {class}")
        }
    }
}

/// The class that is next, and how long the latest attempt is to wait before; `None` where it waits for good, since it has
/// run, or is not to be ended, or there is no other class.
fn next<'a>(wishes: Wishes<'a>, attempts: &[AttemptView]) -> Option<(&'a str, Duration)> {
    let latest = attempts.last()?;
    let waits = matches!(latest.state, AttemptState::Unscheduled) && !wishes.stays(latest);
    let class = wishes.other_class(&latest.class).filter(|_| waits)?;
    Some((class, patience(turns(attempts))))
}

/// That the latest attempt is given up, since there has been no GPU of its class for it since this moment.
#[must_use]
pub fn verdict(wishes: Wishes<'_>, attempts: &[AttemptView], since: Timestamp, now: Timestamp) -> Option<Verdict> {
    let latest = attempts.last()?;
    let (class, patience) = next(wishes, attempts)?;
    let waited = Duration::try_from(now.duration_since(since)).ok()?;
    (waited >= patience).then(|| Verdict {
        cause: Cause::NoRoom {
            turn: turns(attempts).saturating_add(1),
        },
        how: format!(
            "attempt {} found no room in {} for {} s, and {} is next",
            latest.number,
            wishes.words(&latest.class),
            waited.as_secs(),
            wishes.words(class)
        ),
        at: now,
        position: None,
        node: None,
    })
}

/// That the latest attempt is given up, since it waits in a class that the settings do not have any more: of that nothing is
/// known.
#[must_use]
pub fn without_class(wishes: Wishes<'_>, latest: &AttemptView, now: Timestamp) -> Option<Verdict> {
    if wishes.stays(latest) || latest.class == wishes.class {
        return None;
    }
    Some(Verdict {
        cause: Cause::NoRoom { turn: 1 },
        how: format!(
            "attempt {} waits in {}, which the operator's settings do not have any more, and {} is next",
            latest.number,
            wishes.words(&latest.class),
            wishes.words(wishes.class)
        ),
        at: now,
        position: None,
        node: None,
    })
}

/// What is added to why the latest attempt has no GPU.
pub(super) fn prospect(wishes: Wishes<'_>, attempts: &[AttemptView]) -> Option<String> {
    let (class, patience) = next(wishes, attempts)?;
    Some(format!(
        "Where there is no room for {} s, the next attempt goes to {}",
        patience.as_secs(),
        wishes.words(class)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::attempt::EndedAttempt;
    use crate::training::tests::{self, at};

    const WISHES: Wishes<'static> = Wishes {
        fallback: Some("t4"),
        ..tests::WISHES
    };

    fn waiting(number: u32, class: &str) -> AttemptView {
        AttemptView {
            class: class.to_owned(),
            pod_lives: true,
            ..tests::attempt(number, 0, AttemptState::Unscheduled)
        }
    }

    fn no_room(turn: u32) -> End {
        End::NoRoom {
            how: "no room".to_owned(),
            turn,
        }
    }

    fn ended(number: u32, class: &str, end: End) -> AttemptView {
        AttemptView {
            pod_lives: false,
            state: AttemptState::Ended(EndedAttempt {
                end,
                at: Some(at(0)),
                position: None,
                told_by: None,
            }),
            ..waiting(number, class)
        }
    }

    #[test]
    fn turns_are_slower_and_slower() {
        let seconds: Vec<u64> = (0..8).map(|turns| patience(turns).as_secs()).collect();
        assert_eq!(seconds, [60, 120, 240, 480, 960, 1800, 1800, 1800]);
        assert_eq!(patience(u32::MAX), Duration::from_secs(1800));
    }

    #[test]
    fn an_attempt_is_given_up_when_its_class_has_had_no_room_for_long_enough() {
        let first = || vec![waiting(1, "a100")];
        let runs = AttemptView {
            running: 1,
            nodes: 2,
            ..waiting(1, "a100")
        };
        let resumes = AttemptView {
            suspended: true,
            ..waiting(1, "a100")
        };
        let starts = AttemptView {
            state: AttemptState::Starting,
            ..waiting(1, "a100")
        };
        let none = Wishes {
            fallback: None,
            ..WISHES
        };
        let suspend = Wishes {
            suspend: true,
            ..WISHES
        };
        let only_observe = Wishes {
            only_observe: true,
            ..WISHES
        };
        let second = || vec![ended(1, "a100", no_room(1)), waiting(2, "t4")];
        let third = || vec![ended(2, "t4", no_room(2)), waiting(3, "a100")];
        let lost = End::Lost {
            how: "deleted".to_owned(),
        };
        let after_a_loss = vec![ended(1, "t4", lost), waiting(2, "a100")];
        let turn = |turn| Some(Cause::NoRoom { turn });
        let table = [
            ("too early", WISHES, first(), 59, None),
            ("long enough", WISHES, first(), 60, turn(1)),
            ("the clock was set back", WISHES, first(), -60, None),
            ("no fallback", none, first(), 3600, None),
            ("to be suspended", suspend, first(), 3600, None),
            ("only observed", only_observe, first(), 3600, None),
            ("one of its pods runs", WISHES, vec![runs], 3600, None),
            ("to be resumed", WISHES, vec![resumes], 3600, None),
            ("its pods have a node", WISHES, vec![starts], 3600, None),
            ("in the fallback, too early", WISHES, second(), 119, None),
            ("in the fallback", WISHES, second(), 120, turn(2)),
            ("in the class again, too early", WISHES, third(), 239, None),
            ("in the class again", WISHES, third(), 240, turn(3)),
            ("the turns begin anew", WISHES, after_a_loss, 60, turn(1)),
            (
                "the fallback was taken out of the settings",
                none,
                second(),
                120,
                turn(2),
            ),
        ];
        for (case, wishes, attempts, seconds, expected) in table {
            let verdict = verdict(wishes, &attempts, at(0), at(seconds));
            assert_eq!(verdict.map(|v| v.cause), expected, "{case}");
        }
        let how = |attempts: &[AttemptView]| verdict(WISHES, attempts, at(0), at(250)).unwrap().how;
        assert_eq!(
            how(&first()),
            "attempt 1 found no room in the accelerator class a100 for 250 s, and the fallback class t4 is next"
        );
        assert_eq!(
            how(&second()),
            "attempt 2 found no room in the fallback class t4 for 250 s, and the accelerator class a100 is next"
        );
    }

    #[test]
    fn a_class_that_the_settings_lost_is_left_at_once() {
        let left = |wishes, latest: AttemptView| without_class(wishes, &latest, at(9)).map(|verdict| verdict.how);
        assert_eq!(left(WISHES, waiting(1, "a100")), None);
        let how = "attempt 2 waits in the fallback class t4, which the operator's settings do not have any more, and the \
                   accelerator class a100 is next";
        assert_eq!(left(WISHES, waiting(2, "t4")).as_deref(), Some(how));
        let runs = AttemptView {
            running: 1,
            ..waiting(2, "t4")
        };
        assert_eq!(left(WISHES, runs), None);
        let suspend = Wishes {
            suspend: true,
            ..WISHES
        };
        assert_eq!(left(suspend, waiting(2, "t4")), None);
    }

    #[test]
    fn only_want_of_room_leads_to_another_class() {
        let hung = End::Hung {
            how: "no work".to_owned(),
        };
        let none = Wishes {
            fallback: None,
            ..WISHES
        };
        let table = [
            (WISHES, "a100", no_room(1), "t4"),
            (WISHES, "t4", no_room(2), "a100"),
            (WISHES, "t4", hung, "a100"),
            (none, "a100", no_room(1), "a100"),
            (none, "t4", no_room(2), "a100"),
        ];
        for (wishes, class, end, next) in table {
            assert_eq!(wishes.next_class(class, &end), next, "{class} {end:?}");
        }
    }
}
