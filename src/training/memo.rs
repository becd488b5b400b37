//! What is kept of each job between two passes: when its progress was last written, and what was seen of its running pod.
//! Losing it costs a write per job, and a hang is found later.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_contract::termination::Position;
use flywheel_policy::recovery::incident::seconds;
use flywheel_policy::training::KEPT_ATTEMPTS;
use flywheel_policy::training::hang::{Look, Watch};
use jiff::Timestamp;

/// Time between two writes that only tell of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// Longest time between two looks without room for which there was none between.
const ROOM_STEP_MAX: i32 = 90;

/// What is kept, per job by its uid.
#[derive(Debug, Default)]
pub struct ProgressMemo {
    jobs: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    written: Option<Timestamp>,
    /// Uid of the pod that `watch` is about.
    pod: String,
    watch: Watch,
    /// How far the last attempts were when they were last heard of.
    positions: Vec<(u32, Position)>,
    /// The attempt that `watch` is about.
    attempt: u32,
    /// Seconds for which its pods had no room since something failed, and when that was last seen.
    no_room: Option<(i32, Timestamp)>,
}

impl ProgressMemo {
    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether progress may be written now, as it may whenever something else is (`moved`); if so, it counts as written.
    pub(crate) fn due(&self, uid: &str, moved: bool, now: Timestamp) -> bool {
        let mut jobs = self.jobs();
        let written = &mut jobs.entry(uid.to_owned()).or_default().written;
        let due = moved || written.is_none_or(|at| now.duration_since(at).unsigned_abs() >= PROGRESS_INTERVAL);
        if due {
            *written = Some(now);
        }
        due
    }

    /// Adds a scrape of the pod of this attempt; all that was seen of that pod.
    pub(crate) fn add(&self, uid: &str, attempt: u32, pod: &str, look: Look, now: Timestamp) -> Watch {
        let mut jobs = self.jobs();
        let known = jobs.entry(uid.to_owned()).or_default();
        if known.pod != pod {
            pod.clone_into(&mut known.pod);
            known.watch = Watch::default();
            known.attempt = attempt;
        }
        known.watch.add(look, now);
        if let Some(position) = known.watch.position() {
            known.positions.retain(|(of, _)| *of != attempt);
            known.positions.push((attempt, position));
            let surplus = known.positions.len().saturating_sub(KEPT_ATTEMPTS);
            known.positions.drain(..surplus);
        }
        known.watch.clone()
    }

    /// Since when the pod of this attempt did not answer, or not work, when it was last looked at.
    pub(crate) fn silent_since(&self, uid: &str, attempt: u32) -> Option<Timestamp> {
        let jobs = self.jobs();
        let known = jobs.get(uid).filter(|known| known.attempt == attempt)?;
        known.watch.silent_since()
    }

    /// Seconds for which there was no room since something failed that goes on. `is`: there is none now.
    pub(crate) fn without_room(&self, uid: &str, goes_on: bool, is: bool, now: Timestamp) -> i32 {
        let mut jobs = self.jobs();
        if !goes_on {
            if let Some(known) = jobs.get_mut(uid) {
                known.no_room = None;
            }
            return 0;
        }
        let known = jobs.entry(uid.to_owned()).or_default();
        if is {
            let (sum, last) = known.no_room.unwrap_or((0, now));
            let step = Some(seconds(last, now)).filter(|step| *step <= ROOM_STEP_MAX);
            known.no_room = Some((sum.saturating_add(step.unwrap_or(0)), now));
        }
        known.no_room.map_or(0, |(sum, _)| sum)
    }

    /// How far an attempt was when its pod was last heard.
    pub(crate) fn position(&self, uid: &str, attempt: u32) -> Option<Position> {
        let jobs = self.jobs();
        let (_, position) = jobs.get(uid)?.positions.iter().find(|(of, _)| *of == attempt)?;
        Some(*position)
    }

    /// Forgets all other jobs.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.jobs().retain(|uid, _| alive.contains(uid));
    }

    /// Forgets a job.
    pub fn forget(&self, uid: &str) {
        self.jobs().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use flywheel_contract::progress::Progress;
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn at_step(step: u64) -> Look {
        let progress: Progress = serde_json::from_value(json!({
            "schemaVersion": 1, "attempt": 1, "phase": "Training", "phaseSeconds": 9.0, "step": step, "totalSteps": 100,
            "epoch": 1, "totalEpochs": 2
        }))
        .unwrap();
        Look::Answered(Box::new(progress))
    }

    #[test]
    fn progress_is_written_once_a_minute() {
        let memo = ProgressMemo::default();
        assert!(memo.due("u", false, at(0)));
        assert!(!memo.due("u", false, at(59)));
        assert!(memo.due("u", false, at(60)));
        assert!(!memo.due("u", false, at(61)));
        // With what is written anyway, and then a minute from there.
        assert!(memo.due("u", true, at(90)));
        assert!(!memo.due("u", false, at(149)));
        memo.forget("u");
        assert!(memo.due("u", false, at(150)));
    }

    #[test]
    fn each_pod_is_watched_anew_and_the_last_positions_stay() {
        let memo = ProgressMemo::default();
        for attempt in 1..=5_u32 {
            let pod = format!("pod-{attempt}");
            let watch = memo.add("u", attempt, &pod, Look::Silent, at(0));
            assert_eq!(watch.position(), None, "what another pod said is not this one's");
            memo.add("u", attempt, &pod, at_step(u64::from(attempt)), at(5));
            memo.add("u", attempt, &pod, Look::Unreadable, at(10));
        }
        let step = |attempt| memo.position("u", attempt).map(|p| p.step);
        assert_eq!([1, 2, 3, 4, 5].map(step), [None, None, Some(3), Some(4), Some(5)]);
        assert_eq!(memo.position("other", 5), None);
        memo.retain(&HashSet::new());
        assert_eq!(step(5), None);
    }
}
