//! What is kept of each service between two passes: the assignment that was written last, which the cache may not show yet,
//! and whether all pods are known to follow it. Losing it costs a look at the pods.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flywheel_contract::serving::{Assignment, ServedVersion};
use flywheel_policy::serving::PodSays;
use flywheel_policy::serving::analysis::{Figures, Watch};

/// What is kept, per service by its uid.
#[derive(Debug, Default)]
pub struct AssignmentMemo {
    services: Mutex<HashMap<String, Known>>,
    /// The pods that were asked last.
    asked: Mutex<HashMap<String, Vec<Asked>>>,
    /// Why versions, by their uids, were rejected, until the cache shows it.
    rejected: Mutex<HashMap<String, String>>,
    /// What versions that come by steps did, and those before them meanwhile.
    watched: Mutex<HashMap<String, Watch>>,
}

/// A pod that was asked: its name, and how often its server had been started again.
pub(crate) type Asked = (String, i32);

#[derive(Debug)]
struct Known {
    written: Assignment,
    settled: bool,
    /// Passes since it was written in which pods did not follow yet.
    looks: u32,
}

impl AssignmentMemo {
    fn services(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest assignment: the cached one, or the one that was written since.
    pub(crate) fn newest(&self, uid: &str, cached: Option<Assignment>) -> Option<Assignment> {
        let services = self.services();
        match (services.get(uid), cached) {
            (Some(known), Some(cached)) if known.written.generation < cached.generation => Some(cached),
            (Some(known), _) => Some(known.written.clone()),
            (None, cached) => cached,
        }
    }

    /// Whether all pods are known to follow this assignment.
    pub(crate) fn settled(&self, uid: &str, assignment: &Assignment) -> bool {
        let services = self.services();
        let known = services.get(uid).filter(|known| known.written == *assignment);
        known.is_some_and(|known| known.settled)
    }

    /// Notes what stands there now, and whether pods follow; passes so far in which they did not.
    pub(crate) fn note(&self, uid: &str, assignment: &Assignment, settled: bool) -> u32 {
        let mut services = self.services();
        let known = services.entry(uid.to_owned()).or_insert_with(|| Known {
            written: assignment.clone(),
            settled,
            looks: 0,
        });
        if known.written != *assignment {
            known.written = assignment.clone();
            known.looks = 0;
        }
        known.settled = settled;
        known.looks = if settled { 0 } else { known.looks.saturating_add(1) };
        known.looks
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<String, Vec<Asked>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are other pods than those that were asked last, what they compute in being another matter then.
    pub(crate) fn others(&self, uid: &str, pods: &[Asked]) -> bool {
        self.asked().get(uid).is_none_or(|asked| asked != pods)
    }

    /// Whether the server of one of them was started again since it was asked.
    pub(crate) fn came_back(&self, uid: &str, pods: &[Asked]) -> bool {
        let asked = self.asked();
        let asked = asked.get(uid).map(Vec::as_slice).unwrap_or_default();
        pods.iter().any(|pod| pod.1 > 0 && !asked.contains(pod))
    }

    /// Notes that these were asked.
    pub(crate) fn note_asked(&self, uid: &str, pods: Vec<Asked>) {
        self.asked().insert(uid.to_owned(), pods);
    }

    fn rejections(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the version of this uid was rejected.
    pub(crate) fn reject(&self, version: &str, why: String) {
        self.rejections().insert(version.to_owned(), why);
    }

    /// Why the version of this uid was rejected: as the cache shows, or as was written since.
    pub(crate) fn rejected(&self, version: &str, cached: Option<String>) -> Option<String> {
        let mut rejections = self.rejections();
        if cached.is_some() {
            rejections.remove(version);
        }
        cached.or_else(|| rejections.get(version).cloned())
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<String, Watch>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the version that comes by steps did, and the one before meanwhile, as these pods say. Of pods that come to hold it later
    /// all counts: it was loaded there for this.
    pub(crate) fn watch(&self, uid: &str, canary: &ServedVersion, stable: &ServedVersion, pods: &[PodSays]) -> Figures {
        let mut watched = self.watched();
        let begin = || Watch::begin(canary, stable, pods);
        let watch = watched.entry(uid.to_owned()).or_insert_with(begin);
        if !watch.is_of(canary) {
            *watch = begin();
        }
        watch.meet(&[stable], pods);
        watch.figures(canary, stable, pods)
    }

    /// No version comes by steps.
    pub(crate) fn unwatch(&self, uid: &str) {
        self.watched().remove(uid);
    }

    /// Forgets all other services.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.services().retain(|uid, _| alive.contains(uid));
        self.asked().retain(|uid, _| alive.contains(uid));
        self.watched().retain(|uid, _| alive.contains(uid));
    }

    /// Forgets a service.
    pub fn forget(&self, uid: &str) {
        self.services().remove(uid);
        self.asked().remove(uid);
        self.unwatch(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(generation: u64) -> Assignment {
        Assignment {
            schema_version: 1,
            generation,
            serve: "v1".to_owned(),
            versions: Vec::new(),
            split: None,
            mirror: None,
            canary: None,
            cleared: Vec::new(),
            window_seconds: None,
            judged_since: None,
            trial: None,
        }
    }

    #[test]
    fn the_newest_counts_and_a_new_one_is_not_settled() {
        let memo = AssignmentMemo::default();
        assert_eq!(memo.newest("u", None), None);
        assert_eq!(memo.newest("u", Some(assignment(3))), Some(assignment(3)));
        assert_eq!(memo.note("u", &assignment(4), true), 0);
        assert_eq!(
            memo.newest("u", Some(assignment(3))),
            Some(assignment(4)),
            "the cache lags"
        );
        assert_eq!(memo.newest("u", None), Some(assignment(4)), "or somebody deleted it");
        assert!(memo.settled("u", &assignment(4)) && !memo.settled("u", &assignment(3)));
        let other = assignment(5);
        assert_eq!(
            memo.newest("u", Some(other.clone())),
            Some(other.clone()),
            "another leader wrote it"
        );
        assert!(!memo.settled("u", &other));
        assert_eq!([memo.note("u", &other, false), memo.note("u", &other, false)], [1, 2]);
        assert_eq!(memo.note("u", &assignment(6), false), 1);
        assert_eq!(memo.note("u", &assignment(6), true), 0, "nothing is left to look for");
        memo.retain(&HashSet::new());
        assert_eq!(memo.newest("u", None), None);
    }

    #[test]
    fn a_rejection_counts_before_the_cache_shows_it_and_not_after_it_was_taken_back() {
        let memo = AssignmentMemo::default();
        let shown = || Some("shown".to_owned());
        assert_eq!(memo.rejected("v", None), None);
        memo.reject("v", "written".to_owned());
        assert_eq!(memo.rejected("v", None).as_deref(), Some("written"));
        assert_eq!(memo.rejected("v", shown()), shown());
        assert_eq!(memo.rejected("v", None), None);
    }

    #[test]
    fn a_server_that_was_started_again_is_known() {
        let memo = AssignmentMemo::default();
        let pods = |restarts: i32| [("a".to_owned(), restarts), ("b".to_owned(), 0)];
        assert!(memo.others("u", &pods(0)) && !memo.came_back("u", &pods(0)));
        memo.note_asked("u", pods(0).to_vec());
        assert!(!memo.others("u", &pods(0)));
        assert!(memo.others("u", &pods(1)) && memo.came_back("u", &pods(1)));
        memo.note_asked("u", pods(1).to_vec());
        assert!(!memo.came_back("u", &pods(1)));
        memo.forget("u");
        assert!(memo.came_back("u", &pods(1)), "nobody knows since when");
    }
}
