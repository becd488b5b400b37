//! Whether a pod that runs still works.
//!
//! Two things can be wrong. The pod answers and says itself that nothing moves: its heartbeat is older than the limit of
//! its phase. Or it does not answer at all, although its machine takes the connection: its process stands still (SIGSTOP,
//! a driver that never returns). A pod that cannot be reached is neither: the network between it and the operator may be
//! broken while the training goes on. Only where the control plane has lost its node as well, the pod counts as lost.
//!
//! Of several pods that train together only that with index 0 is asked: each of them ends by itself within seconds when it
//! misses another, so one that stands still is seen by the ends of the others. What the control plane says of the others'
//! nodes counts where index 0 stands still as well.
//!
//! A pod whose GPU is reported as unhealthy is given up without asking it: what a broken GPU computes is worth nothing, even
//! where it goes on computing.

use std::time::Duration;

use flywheel_contract::progress::{Phase, Progress};
use flywheel_contract::termination::Position;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::attempt::AttemptState;
use super::image;

/// A heartbeat in `Training` may be this many median passes old; there is one after each micro-batch. Single passes take
/// four times the median (long texts, a neighbour on the machine, the copy of the state for a checkpoint), and that time
/// is as uneven as the others: five medians gave 65 false alarms in 1,000 hours of the tests' trace.
const PASSES: f64 = 10.0;
/// Lower bound of the limit in `Training`: short passes are held up by what has nothing to do with them.
const TRAINING_MIN: Duration = Duration::from_secs(30);
/// Upper bound of the limit in `Training`: with the time between two looks a hang is found within 90 s.
const TRAINING_MAX: Duration = Duration::from_secs(75);
/// A limit is never below this many median passes: one of a minute cannot be told from a hang of a minute and a half.
const PASSES_MIN: f64 = 2.0;
/// Limit in `Training` before anything is known of the passes. The first one compiles kernels and fills caches, and on a
/// processor with a large batch it takes minutes.
const FIRST_STEP_MAX: Duration = Duration::from_secs(300);
/// Limit in `Starting`, which has no heartbeats: libtorch with its GPU libraries is gigabytes from a cold disk.
const STARTING_MAX: Duration = Duration::from_secs(180);
/// Limit in `Downloading` and `Uploading` between two pieces: after 60 s the storage client gives up by itself and says
/// why, which is better than a verdict from here.
const TRANSFER_MAX: Duration = Duration::from_secs(120);
/// Limit in `Preparing`, which has no heartbeats: a data set that just fits into memory takes minutes to tokenise.
const PREPARING_MAX: Duration = Duration::from_secs(900);
/// Limit in `Evaluating` between two batches, each cheaper than a step.
const EVALUATING_MAX: Duration = Duration::from_secs(75);
/// Limit in `Checkpointing`: the pod was told to end, and is killed after 30 s.
const CHECKPOINTING_MAX: Duration = Duration::from_secs(60);
/// Limit in `Done`: the result is committed and the process has only to end.
const DONE_MAX: Duration = Duration::from_secs(60);
/// How long a process whose machine takes connections may leave them without an answer.
pub const SILENCE_MAX: Duration = Duration::from_secs(75);
/// Scrapes that must have found that silence, so that neither a pause of the operator nor a jump of its clock is taken for
/// one.
const SILENT_SCRAPES_MIN: u32 = 5;
/// How long a pod must have been out of reach before it counts as lost with its node.
const UNREACHED_MIN: Duration = Duration::from_secs(10);
/// Scrapes that must have failed to reach it.
const UNREACHED_SCRAPES_MIN: u32 = 2;

/// What is said of a pod whose node is lost by what is seen of it.
pub(crate) const NODE_LOST: &str = "its node answers neither the control plane nor the operator";

/// What one scrape gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// This.
    Answered(Box<Progress>),
    /// The pod's machine took the connection, and no answer came.
    Silent,
    /// The connection was refused or broken off: by the pod's machine, or by something on the way to it.
    Refused,
    /// There was no connection.
    Unreachable,
    /// An answer that says nothing: not `/progress`, or of another attempt.
    Unreadable,
}

/// What was seen of one pod so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watch {
    /// The last answer.
    last: Option<Progress>,
    /// When anything was last heard.
    heard: Option<Timestamp>,
    /// Scrapes since then that were not answered.
    unanswered: Option<Unanswered>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Unanswered {
    since: Timestamp,
    scrapes: u32,
    /// Those that came as far as the pod's machine, and those among them whose connection it took.
    arrived: u32,
    taken: u32,
    /// The first of each. Where none failed to arrive before, the silence begins with the last answer.
    arrived_since: Option<Timestamp>,
    taken_since: Option<Timestamp>,
}

/// That an attempt is given up, as the annotation of its Job keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// What is wrong.
    pub cause: Cause,
    /// What was seen, for people.
    pub how: String,
    /// When.
    pub at: Timestamp,
    /// How far the training was, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The node that is to blame, where it is not that of the pod with index 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Why an attempt is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The pod runs and does no work.
    Hung,
    /// The pod's node is out of everybody's reach.
    NodeLost,
    /// A GPU of the pod is unhealthy.
    GpuFault,
    /// No pod has run, since the accelerator class has no room, and another class may have.
    NoRoom {
        /// Turns in a row that ended for want of room or of an image, with this one.
        turn: u32,
    },
    /// A pod cannot have its image on its node, and a new one may.
    NoImage {
        /// Since when.
        since: Timestamp,
        /// Turns in a row that ended for want of an image or of room, with this one.
        turn: u32,
    },
}

impl Cause {
    /// Whether an attempt in this state can be given up for it.
    pub(super) fn is_of(self, state: &AttemptState) -> bool {
        match self {
            Self::NoRoom { .. } => *state == AttemptState::Unscheduled,
            Self::NoImage { .. } => image::is_missing(state),
            Self::Hung | Self::NodeLost | Self::GpuFault => *state == AttemptState::Running,
        }
    }
}

impl Verdict {
    /// That a GPU of a running pod is broken, as these words say; `index` is the pod's place among several.
    #[must_use]
    pub fn gpu_fault(index: Option<u32>, words: &str, position: Option<Position>, now: Timestamp) -> Self {
        let whose = index.map_or_else(String::new, |index| format!("pod {index}: "));
        Self {
            cause: Cause::GpuFault,
            how: format!("{whose}{words}"),
            at: now,
            position,
            node: None,
        }
    }
}

/// What is known of a pod besides its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Its node is lost to the control plane ([`super::attempt::is_out_of_contact`]), or to all who look at it
    /// ([`crate::recovery::nodes`]).
    pub out_of_contact: bool,
    /// It has answered before, if not to this process: so it can be reached, and silence means something.
    pub answered_before: bool,
    /// When the last of the pods that train with it began to run; before that it waits for them.
    pub all_run_since: Option<Timestamp>,
    /// Index of another of these pods whose node is lost, in the same way.
    pub lost_peer: Option<u32>,
    /// The node of one of these pods seems lost, and so do so many others ([`crate::recovery::nodes::is_held`]) that more
    /// likely those who look are cut off: then nothing is ended for what is not heard.
    pub held: bool,
}

impl Watch {
    /// Adds a scrape.
    pub fn add(&mut self, look: Look, now: Timestamp) {
        match look {
            Look::Answered(progress) => {
                self.last = Some(*progress);
                self.heard = Some(now);
                self.unanswered = None;
            }
            Look::Unreadable => {
                self.last = None;
                self.heard = Some(now);
                self.unanswered = None;
            }
            look @ (Look::Silent | Look::Refused | Look::Unreachable) => {
                let row = self.unanswered.get_or_insert(Unanswered {
                    since: self.heard.unwrap_or(now),
                    scrapes: 0,
                    arrived: 0,
                    taken: 0,
                    arrived_since: None,
                    taken_since: None,
                });
                let taken = look == Look::Silent;
                if look != Look::Unreachable {
                    let first = if row.scrapes == 0 { row.since } else { now };
                    row.arrived_since.get_or_insert(first);
                }
                row.scrapes = row.scrapes.saturating_add(1);
                row.arrived = row.arrived.saturating_add(u32::from(look != Look::Unreachable));
                row.taken = row.taken.saturating_add(u32::from(taken));
                if taken {
                    row.taken_since.get_or_insert(now);
                }
            }
        }
    }

    /// Since when it has not answered, or not worked as far as its last answer tells; where it has answered and worked, none.
    #[must_use]
    pub fn silent_since(&self) -> Option<Timestamp> {
        let still = || {
            let heartbeat = seconds(self.last.as_ref()?.heartbeat_seconds?)?;
            self.heard?.checked_sub(heartbeat).ok()
        };
        self.unanswered.map(|row| row.since).or_else(still)
    }

    /// How far the training was at the last answer.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.last.as_ref().map(position)
    }

    /// Whether the pod is to be given up, after what was seen until `now`.
    #[must_use]
    pub fn verdict(&self, around: Surroundings, now: Timestamp) -> Option<Verdict> {
        if around.held {
            return None;
        }
        let (cause, how) = match &self.unanswered {
            None => without_work(self.last.as_ref()?, around, now)?,
            Some(row) => self.without_answer(row, around, now)?,
        };
        Some(Verdict {
            cause,
            how,
            at: now,
            position: self.position(),
            node: None,
        })
    }

    fn without_answer(&self, row: &Unanswered, around: Surroundings, now: Timestamp) -> Option<(Cause, String)> {
        // A clock that went back says nothing.
        let since = |time: Timestamp| Duration::try_from(now.duration_since(time)).ok();
        let lasted = since(row.since)?;
        if around.out_of_contact || around.lost_peer.is_some() {
            let lost = row.scrapes >= UNREACHED_SCRAPES_MIN && lasted >= UNREACHED_MIN;
            return lost.then(|| (Cause::NodeLost, NODE_LOST.to_owned()));
        }
        // A refusal may be a firewall's, so it counts only for a pod that could be read once. A connection that is taken
        // says by itself that the pod can be reached: it may stand still before anybody has heard of it.
        let known = around.answered_before || self.heard.is_some();
        let (scrapes, lasted) = if known {
            // While nothing arrived there may have been no way to it, nor for its kubelet to say that it has ended.
            (row.arrived, since(row.arrived_since?)?)
        } else {
            (row.taken, since(row.taken_since?)?)
        };
        let silent = scrapes >= SILENT_SCRAPES_MIN && lasted >= SILENCE_MAX;
        silent.then(|| {
            (
                Cause::Hung,
                format!(
                    "its process has not answered for {} s, though its node is well",
                    SILENCE_MAX.as_secs()
                ),
            )
        })
    }
}

/// How far a training is by its own words. A checkpoint counts as this attempt's only if it has committed one: `/progress`
/// also tells of the one that it began with.
fn position(progress: &Progress) -> Position {
    let resumed = progress.resumed_from_step.unwrap_or(0);
    Position {
        step: progress.step,
        resumed_from_step: resumed,
        checkpoint_step: progress
            .checkpoint
            .age_seconds
            .and(progress.checkpoint.step)
            .unwrap_or(resumed),
        head_attempt: progress.attempt,
    }
}

/// What a pod that answers says of its standstill; `None` while it moves, and where it says nothing of it.
fn without_work(progress: &Progress, around: Surroundings, now: Timestamp) -> Option<(Cause, String)> {
    let limit = limit(progress);
    let heartbeat = seconds(progress.heartbeat_seconds?)?;
    // To enter a phase is a sign of work, too; and before all pods run nothing can be expected.
    let together = around.all_run_since.map(|since| now.duration_since(since));
    let age = [
        seconds(progress.phase_seconds),
        together.map(|t| t.try_into().unwrap_or_default()),
    ]
    .into_iter()
    .flatten()
    .fold(heartbeat, Duration::min);
    if let Some(peer) = around.lost_peer
        && age >= UNREACHED_MIN
    {
        return Some((
            Cause::NodeLost,
            format!("the node of pod {peer} does not answer, and the training stands still"),
        ));
    }
    (age > limit).then(|| {
        (
            Cause::Hung,
            format!(
                "no sign of work for more than {} s in phase {:?} at step {}",
                limit.as_secs(),
                progress.phase,
                progress.step
            ),
        )
    })
}

/// Oldest heartbeat that is still a sign of work.
#[must_use]
pub fn limit(progress: &Progress) -> Duration {
    let median = progress.median_pass_seconds.and_then(seconds);
    let passes = |factor: f64| median.and_then(|m| seconds(m.as_secs_f64() * factor));
    let at_least = |floor: Duration| passes(PASSES_MIN).map_or(floor, |passes| passes.max(floor));
    match progress.phase {
        Phase::Starting => STARTING_MAX,
        Phase::Downloading | Phase::Uploading => TRANSFER_MAX,
        Phase::Preparing => PREPARING_MAX,
        Phase::Training => passes(PASSES).map_or(FIRST_STEP_MAX, |passes| {
            at_least(passes.clamp(TRAINING_MIN, TRAINING_MAX))
        }),
        Phase::Evaluating => at_least(EVALUATING_MAX),
        Phase::Checkpointing => CHECKPOINTING_MAX,
        Phase::Done => DONE_MAX,
    }
}

/// A pod's number as a time; `None` for what is none.
fn seconds(value: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(value).ok()
}

#[cfg(test)]
mod tests;
