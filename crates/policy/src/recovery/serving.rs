//! Which pods of a service are beyond help, what is done about them, and the incidents that come of it.
//!
//! The ladder, from its lowest rung: the kubelet starts a program again where it is, without us. A pod whose image could not be
//! had is made anew, so that its node tries at once and not after its back-off of minutes. A pod whose node is lost is deleted,
//! so that the Deployment replaces it and the Service leads past it. A pod whose program ends again and again although others
//! of its kind answer, or whose GPU is broken, stays as a placeholder, since its node or GPU may be to blame: one more pod is
//! asked for, and when that answers, or finds no room, the placeholder goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flywheel_api::recovery::{Incident, IncidentCause, RecoveryMode};
use jiff::Timestamp;

use super::incident::{Failure, News, Reached, advance, kept, open, seconds, without_room};
use crate::remedy::IMAGE_WAIT;
use crate::serving::{PodView, SPARE_GPU_WAIT, Stage};

/// Starts of a container again, over its life, from which on a wait of its kubelet counts: the one after three in a row is of
/// 40 s, and doubles with each further one.
const CRASHES: i32 = 3;
/// Crash-looping pods of one service that are replaced within [`CRASHES_WINDOW`]. What ends more often than that ends wherever
/// it runs, and its pods and their logs stay.
const REPLACED_MAX: usize = 3;
/// See [`REPLACED_MAX`].
const CRASHES_WINDOW: Duration = Duration::from_secs(600);
/// Percent of a service's pods that are asked for beside placeholders at once; at least one.
const SURGE_PERCENT: u32 = 10;
/// Age at which a pod that the scheduler gave to a lost node, of which it does not know yet, goes to find another one.
const MISPLACED: Duration = Duration::from_secs(5);
/// Incidents of a service that are followed at once.
const OPEN_MAX: usize = 20;
/// Seconds within which a kubelet takes the readiness of a pod whose program ended.
const NOTICED_SECONDS: i32 = 5;
/// Longest time without room that is added between two looks; after a longer one nobody knows.
const LOOK_MAX_SECONDS: i32 = 90;

/// What is known of where a pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Since when its node is lost.
    pub node_lost: Option<Timestamp>,
    /// What says that a GPU of it is broken.
    pub gpu_fault: Option<String>,
    /// It was found to end again and again, and has not answered since: that its kubelet tries again mends nothing yet.
    pub crash_loops: bool,
}

/// A pod as recovery sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSight {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// How far it is.
    pub stage: Stage,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When its program ended last.
    pub ended: Option<Timestamp>,
    /// What does not pass by itself, or not in time.
    pub fault: Option<Fault>,
    /// What it would have failed of if it had answered before.
    pub unready: Failure,
}

/// What is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub cause: IncidentCause,
    /// What was seen.
    pub how: String,
    /// Since when.
    pub since: Timestamp,
}

/// A pod that is on its way out or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Its uid.
    pub uid: String,
    /// When it was told to end.
    pub asked: Timestamp,
    /// By what.
    pub how: String,
}

impl PodSight {
    /// Of this pod.
    #[must_use]
    pub fn of(view: &PodView, uid: &str, node: Option<&str>, place: &Place, now: Timestamp) -> Self {
        // An older end says nothing of why it is not ready now.
        let recent = |at: Timestamp| {
            view.changed
                .is_none_or(|changed| seconds(at, changed) <= NOTICED_SECONDS)
        };
        let ended = view.ended.map(|ended| ended.at);
        let (cause, how, began) = match ended.filter(|at| recent(*at)) {
            Some(at) => (
                IncidentCause::PodFailed,
                view.trouble
                    .as_ref()
                    .map_or_else(|| "its program ended".to_owned(), |trouble| trouble.message.clone()),
                view.changed.map_or(at, |changed| changed.min(at)),
            ),
            None => (
                IncidentCause::PodUnready,
                "its readiness check fails".to_owned(),
                view.changed.unwrap_or(now),
            ),
        };
        Self {
            name: view.name.clone(),
            uid: uid.to_owned(),
            node: node.map(str::to_owned),
            stage: view.stage,
            created: view.created,
            ended,
            fault: fault(view, place, now),
            unready: Failure {
                cause,
                object: view.name.clone(),
                node: node.map(str::to_owned),
                how,
                began,
            },
        }
    }

    fn answers(&self) -> bool {
        self.stage == Stage::Ready && self.fault.is_none()
    }

    fn failure(&self) -> Failure {
        match &self.fault {
            Some(fault) => Failure {
                cause: fault.cause,
                how: fault.how.clone(),
                began: fault.since,
                ..self.unready.clone()
            },
            None => self.unready.clone(),
        }
    }
}

fn fault(view: &PodView, place: &Place, now: Timestamp) -> Option<Fault> {
    if let Some(since) = place.node_lost {
        return Some(Fault {
            cause: IncidentCause::NodeLost,
            how: "its node answers neither the operator nor the control plane".to_owned(),
            since,
        });
    }
    if let Some(words) = &place.gpu_fault {
        return Some(Fault {
            cause: IncidentCause::GpuFault,
            how: words.clone(),
            since: now,
        });
    }
    let trouble = view.trouble.as_ref()?;
    let crash_loops = place.crash_loops && view.stage < Stage::Ready;
    if crash_loops || (view.backs_off && view.restarts >= CRASHES) {
        return Some(Fault {
            cause: IncidentCause::CrashLoop,
            how: trouble.message.clone(),
            since: view.changed.unwrap_or(now),
        });
    }
    // Its readiness changes when its node takes it, and when it ends.
    let since = view.created.max(view.changed)?;
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let image = trouble.reason == flywheel_api::conditions::reasons::IMAGE_PULL_FAILED;
    (image && waited >= IMAGE_WAIT).then(|| Fault {
        cause: IncidentCause::ImagePullFailed,
        how: trouble.message.clone(),
        since,
    })
}

/// What a decision about a service's pods rests on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Pods that there are to be.
    pub size: u32,
    /// Pods that there are.
    pub pods: &'a [PodSight],
    /// Whether anything is to be done.
    pub mode: RecoveryMode,
    /// Too many nodes seem lost at once ([`super::nodes::is_held`]).
    pub held: bool,
    /// The template changed and pods are exchanged.
    pub exchanging: bool,
    /// Since when a pod finds no room.
    pub no_room_since: Option<Timestamp>,
    /// A pod of this kind has answered ([`Ledger::proven`]); one that never did may not be able to anywhere.
    pub proven: bool,
    /// When crash-looping pods were replaced before.
    pub replaced: &'a [Timestamp],
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods to ask for beside those that there are to be.
    pub surge: u32,
    /// Pods to delete.
    pub replace: Vec<Replace>,
    /// When to look again, where that depends on time.
    pub again: Option<Duration>,
}

impl Plan {
    fn look_again_in(&mut self, left: Duration) {
        self.again = Some(self.again.map_or(left, |again| again.min(left)));
    }
}

/// A pod to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replace {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What it failed of.
    pub cause: IncidentCause,
    /// Why, for people.
    pub why: String,
}

impl Replace {
    fn of(pod: &PodSight, fault: &Fault) -> Self {
        Self {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            cause: fault.cause,
            why: fault.how.clone(),
        }
    }
}

/// What to do about pods that are beyond help.
#[must_use]
pub fn plan(view: &View<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if view.mode == RecoveryMode::Observe {
        return plan;
    }
    let faulty = || view.pods.iter().filter_map(|pod| Some((pod, pod.fault.as_ref()?)));
    let without_image = faulty()
        .filter(|(_, fault)| fault.cause == IncidentCause::ImagePullFailed)
        .min_by_key(|(pod, fault)| (fault.since, pod.uid.as_str()))
        .map(|(pod, _)| pod.uid.as_str());
    for (pod, fault) in faulty() {
        let left = match fault.cause {
            IncidentCause::NodeLost if view.held => None,
            IncidentCause::NodeLost if pod.stage <= Stage::Starting => {
                let age = Duration::try_from(now.duration_since(pod.created.unwrap_or(now))).unwrap_or_default();
                Some(MISPLACED.saturating_sub(age))
            }
            IncidentCause::NodeLost => Some(Duration::ZERO),
            // One after another: it may well be a wrong image.
            IncidentCause::ImagePullFailed if !view.exchanging && without_image == Some(pod.uid.as_str()) => {
                Some(Duration::ZERO)
            }
            _ => None,
        };
        match left {
            Some(Duration::ZERO) => plan.replace.push(Replace::of(pod, fault)),
            Some(left) => plan.look_again_in(left),
            None => {}
        }
    }
    // While pods are exchanged there is one more, or one less, anyway.
    if view.exchanging || view.size == 0 {
        return plan;
    }
    let answering = count(view.pods.iter().filter(|pod| pod.answers()));
    let recent = view
        .replaced
        .iter()
        .filter(|at| within(**at, CRASHES_WINDOW, now))
        .count();
    let may_crash = view.proven && recent < REPLACED_MAX;
    let mut placeholders: Vec<(&PodSight, &Fault)> = faulty()
        .filter(|(_, fault)| match fault.cause {
            IncidentCause::GpuFault => true,
            IncidentCause::CrashLoop => may_crash,
            _ => false,
        })
        .collect();
    if placeholders.is_empty() {
        return plan;
    }
    // Those that do not answer first.
    placeholders.sort_by_key(|(pod, fault)| (pod.stage, fault.since, pod.name.as_str()));
    let held = count(placeholders.iter());
    // Nobody waits for those that nothing is done about.
    let stuck = count(faulty().filter(|(_, fault)| fault.cause == IncidentCause::CrashLoop && !may_crash));
    let at_once = (view.size.saturating_mul(SURGE_PERCENT) / 100).max(1);
    // Pods that stand in for placeholders answer.
    let spare = answering
        .saturating_add(stuck)
        .saturating_add(held)
        .saturating_sub(view.size);
    // One that answers goes only where another one answers.
    let may_go = if answering > 0 {
        held
    } else {
        count(placeholders.iter().filter(|(pod, _)| pod.stage < Stage::Ready))
    };
    let mut go = spare.min(may_go);
    if go == 0
        && let Some(since) = view.no_room_since
    {
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        match SPARE_GPU_WAIT.checked_sub(waited) {
            Some(left) if !left.is_zero() => plan.look_again_in(left),
            // It leaves its GPU to the one that waits. One that answers still does so.
            _ => go = u32::from(placeholders.first().is_some_and(|(pod, _)| pod.stage < Stage::Ready)),
        }
    }
    let going = placeholders.iter().take(usize::try_from(go).unwrap_or(0));
    plan.replace.extend(going.map(|(pod, fault)| Replace::of(pod, fault)));
    plan.surge = held.saturating_sub(go).min(at_once);
    plan
}

/// Whether a pod that never answered fails of it, too.
fn by_itself(cause: IncidentCause) -> bool {
    [IncidentCause::CrashLoop, IncidentCause::ImagePullFailed].contains(&cause)
}

fn within(then: Timestamp, window: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(then)).is_ok_and(|passed| passed < window)
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// What is seen of a service at one look.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Pods that there are to be.
    pub size: u32,
    /// Pods that there are.
    pub pods: &'a [PodSight],
    /// Those that are on their way out.
    pub leaving: &'a [Leaving],
    /// The template changed and pods are exchanged, so that pods go on purpose.
    pub exchanging: bool,
    /// A pod finds no room.
    pub no_room: bool,
    /// What was decided at this look.
    pub plan: &'a Plan,
}

/// The incidents of a service, over its looks.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Pods that answered at the last look, by uid.
    answered: BTreeMap<String, PodSight>,
    /// Those of the last look that have answered at any time.
    proven: BTreeSet<String>,
    /// Those that go on, each with the uid of its pod; of a leader before us the uid is not known.
    open: Vec<(String, Incident)>,
    /// The last that are over.
    over: Vec<Incident>,
    looked: Option<Timestamp>,
}

impl Ledger {
    /// What a leader before us told.
    #[must_use]
    pub fn new(told: &[Incident]) -> Self {
        let (over, open): (Vec<Incident>, Vec<Incident>) = told.iter().cloned().partition(Incident::is_over);
        Self {
            open: open.into_iter().map(|incident| (String::new(), incident)).collect(),
            over,
            ..Self::default()
        }
    }

    /// What the status holds.
    #[must_use]
    pub fn incidents(&self) -> Vec<Incident> {
        kept(&self.all())
    }

    /// Whether a pod of these, or one that was there at the last look, has answered at any time.
    #[must_use]
    pub fn proven(&self, pods: &[PodSight]) -> bool {
        !self.proven.is_empty() || pods.iter().any(PodSight::answers)
    }

    /// All that go on, and the last that are over.
    #[must_use]
    pub fn all(&self) -> Vec<Incident> {
        let going_on = self.open.iter().map(|(_, incident)| incident);
        going_on.chain(&self.over).cloned().collect()
    }

    /// Adds a look.
    pub fn look(&mut self, look: &Look<'_>, now: Timestamp) -> Vec<News> {
        let mut news = Vec::new();
        if look.size == 0 {
            // Nobody wants what was lost.
            self.open.clear();
            self.answered.clear();
            return news;
        }
        let answering = count(look.pods.iter().filter(|pod| pod.answers()));
        let before = count(self.answered.iter()).max(answering);
        for (uid, failure) in self.failures(look, answering) {
            let is_there = |of: &String| look.pods.iter().any(|pod| pod.uid == *of);
            let known = |(of, incident): &&mut (String, Incident)| {
                let told = of.is_empty() && incident.object == failure.object;
                // What took its place fails of the same.
                let goes_on = by_itself(failure.cause) && incident.cause == failure.cause && !is_there(of);
                *of == uid || told || goes_on
            };
            if let Some((of, incident)) = self.open.iter_mut().find(known) {
                *of = uid;
                if failure.cause > incident.cause {
                    let told = open(&failure, now);
                    (incident.cause, incident.message) = (told.cause, told.message);
                }
            } else if self.open.len() < OPEN_MAX {
                let mut incident = open(&failure, now);
                // One that never answered is to answer as well.
                let own = u32::from(!self.answered.contains_key(&uid));
                incident.pods_before = i32::try_from(before.saturating_add(own).min(look.size)).ok();
                news.push(News::Began(incident.clone()));
                self.open.push((uid, incident));
            }
        }
        self.advance(look, answering, now, &mut news);
        self.answered = look
            .pods
            .iter()
            .filter(|pod| pod.answers())
            .map(|pod| (pod.uid.clone(), pod.clone()))
            .collect();
        self.proven = look
            .pods
            .iter()
            .filter(|pod| pod.answers() || self.proven.contains(&pod.uid))
            .map(|pod| pod.uid.clone())
            .collect();
        self.looked = Some(now);
        news
    }

    /// What failed since the last look, by the pods' uids.
    fn failures(&self, look: &Look<'_>, answering: u32) -> Vec<(String, Failure)> {
        let mut failures = Vec::new();
        if answering >= look.size {
            return failures;
        }
        for pod in look.pods {
            let fell_out = self.answered.contains_key(&pod.uid) && !pod.answers();
            // It may say more by now.
            let goes_on = self.open.iter().any(|(uid, _)| *uid == pod.uid) && !pod.answers();
            // Nothing that answered is lost with a node or GPU on which a pod only began.
            let fails = pod
                .fault
                .as_ref()
                .is_some_and(|fault| by_itself(fault.cause) || self.looked.is_none());
            if fell_out || goes_on || fails {
                failures.push((pod.uid.clone(), pod.failure()));
            }
        }
        if look.exchanging {
            return failures;
        }
        for (uid, pod) in &self.answered {
            if look.pods.iter().any(|present| present.uid == *uid) {
                continue;
            }
            let leaving = look.leaving.iter().find(|leaving| leaving.uid == *uid);
            failures.push((
                uid.clone(),
                Failure {
                    cause: IncidentCause::PodLost,
                    how: leaving.map_or_else(|| "it is gone".to_owned(), |leaving| leaving.how.clone()),
                    began: leaving.map_or(self.looked.unwrap_or(pod.unready.began), |leaving| leaving.asked),
                    ..pod.unready.clone()
                },
            ));
        }
        failures
    }

    fn advance(&mut self, look: &Look<'_>, answering: u32, now: Timestamp, news: &mut Vec<News>) {
        let placed = count(
            look.pods
                .iter()
                .filter(|pod| pod.fault.is_none() && pod.stage >= Stage::Starting),
        );
        let passed = self.looked.map_or(0, |looked| seconds(looked, now));
        let still_wanted = |incident: &Incident| {
            let before = incident
                .pods_before
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(look.size);
            before.min(look.size)
        };
        for (uid, incident) in &mut self.open {
            let needed = still_wanted(incident);
            let pod = look.pods.iter().find(|pod| pod.uid == *uid);
            // Between two looks it may have ended and begun to answer again.
            let ended = pod.and_then(|pod| pod.ended);
            if incident.cause == IncidentCause::PodUnready
                && ended.is_some_and(|ended| seconds(ended, incident.began.0) <= NOTICED_SECONDS)
            {
                incident.cause = IncidentCause::PodFailed;
                "its program ended".clone_into(&mut incident.message);
            }
            // What has no fault is mended by those whose pods they are; the others wait for us.
            let waits = pod.is_some_and(|pod| pod.fault.is_some());
            let acted = look.plan.surge > 0 || look.plan.replace.iter().any(|replace| replace.uid == *uid);
            if look.no_room && incident.replace_seconds.is_none() {
                without_room(
                    incident,
                    passed.min(LOOK_MAX_SECONDS).min(seconds(incident.began.0, now)),
                );
            }
            let reached = Reached {
                decided: !waits || acted,
                replaced: placed >= needed,
                recovered: answering >= needed,
            };
            advance(incident, reached, now);
        }
        let (over, open): (Vec<_>, Vec<_>) = self.open.drain(..).partition(|(_, incident)| incident.is_over());
        self.open = open;
        for (_, incident) in over {
            news.push(News::Over(incident.clone()));
            self.over.push(incident);
        }
        self.over = kept(&self.over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, stage: Stage) -> PodSight {
        PodSight {
            name: name.to_owned(),
            uid: name.to_owned(),
            node: Some(format!("node of {name}")),
            stage,
            created: Some(at(90)),
            ended: None,
            fault: None,
            unready: Failure {
                cause: IncidentCause::PodUnready,
                object: name.to_owned(),
                node: Some(format!("node of {name}")),
                how: "its readiness check fails".to_owned(),
                began: at(90),
            },
        }
    }

    fn ready(name: &str) -> PodSight {
        pod(name, Stage::Ready)
    }

    fn faulty(name: &str, stage: Stage, cause: IncidentCause) -> PodSight {
        PodSight {
            fault: Some(Fault {
                cause,
                how: format!("{cause:?}"),
                since: at(95),
            }),
            ..pod(name, stage)
        }
    }

    /// Surge, and names of pods that go.
    fn planned<'a>(change: impl FnOnce(&mut View<'a>), size: u32, pods: &'a [PodSight]) -> (u32, Vec<String>) {
        let mut view = View {
            size,
            pods,
            mode: RecoveryMode::Enforce,
            held: false,
            exchanging: false,
            no_room_since: None,
            proven: true,
            replaced: &[],
        };
        change(&mut view);
        let plan = plan(&view, at(100));
        (plan.surge, plan.replace.into_iter().map(|r| r.name).collect())
    }

    #[test]
    fn each_rung_of_the_ladder() {
        use IncidentCause::{CrashLoop, GpuFault, ImagePullFailed, NodeLost};
        let a = || ready("a");
        let gpu = |stage| faulty("b", stage, GpuFault);
        let crash = || faulty("b", Stage::Starting, CrashLoop);
        type Row<'a> = (&'a str, u32, Vec<PodSight>, (u32, Vec<&'a str>));
        let table: Vec<Row<'_>> = vec![
            ("nothing is wrong", 2, vec![a(), ready("b")], (0, vec![])),
            ("one loads", 2, vec![a(), pod("b", Stage::Loading)], (0, vec![])),
            (
                "its node is lost",
                2,
                vec![a(), faulty("b", Stage::Ready, NodeLost)],
                (0, vec!["b"]),
            ),
            (
                "its image cannot be had",
                2,
                vec![a(), faulty("b", Stage::Starting, ImagePullFailed)],
                (0, vec!["b"]),
            ),
            ("its GPU is broken", 2, vec![a(), gpu(Stage::Ready)], (1, vec![])),
            (
                "one in its place loads",
                2,
                vec![a(), gpu(Stage::Ready), pod("c", Stage::Loading)],
                (1, vec![]),
            ),
            (
                "one in its place answers",
                2,
                vec![a(), gpu(Stage::Ready), ready("c")],
                (0, vec!["b"]),
            ),
            ("it ends again and again", 2, vec![a(), crash()], (1, vec![])),
            (
                "and another one answers",
                2,
                vec![a(), crash(), ready("c")],
                (0, vec!["b"]),
            ),
            (
                "two, of two",
                2,
                vec![faulty("a", Stage::Starting, CrashLoop), crash()],
                (1, vec![]),
            ),
            (
                "of two placeholders that which does not answer goes first",
                2,
                vec![faulty("a", Stage::Ready, GpuFault), crash(), ready("c")],
                (1, vec!["b"]),
            ),
            ("nobody wants pods", 0, vec![crash()], (0, vec![])),
        ];
        for (case, size, pods, (surge, go)) in table {
            let (got_surge, got) = planned(|_| {}, size, &pods);
            assert_eq!(
                (got_surge, got),
                (surge, go.into_iter().map(str::to_owned).collect()),
                "{case}"
            );
        }
    }

    #[test]
    fn what_keeps_from_acting() {
        use IncidentCause::{CrashLoop, GpuFault, ImagePullFailed, NodeLost};
        let nothing = (0, vec![]);
        let lost = [ready("a"), faulty("b", Stage::Ready, NodeLost)];
        let crash = [ready("a"), faulty("b", Stage::Starting, CrashLoop)];
        assert_eq!(planned(|v| v.mode = RecoveryMode::Observe, 2, &lost), nothing);
        assert_eq!(planned(|v| v.held = true, 2, &lost), nothing, "many nodes seem lost");
        assert_eq!(
            planned(|v| v.held = true, 2, &crash).0,
            1,
            "which says nothing of crashes"
        );
        let misplaced = |created| PodSight {
            created: Some(at(created)),
            ..faulty("b", Stage::Starting, NodeLost)
        };
        let (young, older) = ([ready("a"), misplaced(96)], [ready("a"), misplaced(95)]);
        assert_eq!(planned(|_| {}, 2, &young), nothing, "it would come there again");
        assert_eq!(planned(|_| {}, 2, &older).1, ["b"]);
        assert_eq!(planned(|v| v.exchanging = true, 2, &crash), nothing);
        assert_eq!(planned(|v| v.exchanging = true, 2, &lost).1, ["b"]);
        let without_image = |name| faulty(name, Stage::Starting, ImagePullFailed);
        let images = [without_image("a"), without_image("b")];
        assert_eq!(planned(|_| {}, 2, &images).1, ["a"], "one after another");
        assert_eq!(planned(|v| v.exchanging = true, 2, &images), nothing);
        assert_eq!(planned(|v| v.proven = false, 2, &crash), nothing, "it may end anywhere");
        let often = [at(1), at(2), at(3)];
        assert_eq!(planned(|v| v.replaced = &often, 2, &crash), nothing);
        let long_ago = [at(-600), at(2), at(3)];
        assert_eq!(planned(|v| v.replaced = &long_ago, 2, &crash).0, 1);
        // One that is to go for its node is no other one.
        let alone = [
            faulty("a", Stage::Ready, GpuFault),
            faulty("b", Stage::Unready, NodeLost),
        ];
        assert_eq!(planned(|_| {}, 1, &alone), (1, vec!["b".to_owned()]));
        let only = [
            faulty("a", Stage::Ready, GpuFault),
            faulty("b", Stage::Starting, CrashLoop),
        ];
        assert_eq!(planned(|v| v.replaced = &often, 1, &only), (1, vec![]));
        // One that nothing is done about does not hold up the others.
        let mixed = [
            ready("a"),
            faulty("b", Stage::Ready, GpuFault),
            faulty("c", Stage::Starting, CrashLoop),
            ready("d"),
        ];
        assert_eq!(planned(|v| v.replaced = &often, 3, &mixed), (0, vec!["b".to_owned()]));
    }

    #[test]
    fn a_placeholder_leaves_its_gpu_where_no_other_is_free() {
        use IncidentCause::{CrashLoop, GpuFault};
        let waits = || pod("c", Stage::Pending);
        let crash = [ready("a"), faulty("b", Stage::Starting, CrashLoop), waits()];
        assert_eq!(planned(|v| v.no_room_since = Some(at(71)), 2, &crash), (1, vec![]));
        assert_eq!(
            planned(|v| v.no_room_since = Some(at(70)), 2, &crash),
            (0, vec!["b".to_owned()])
        );
        let answers = [ready("a"), faulty("b", Stage::Ready, GpuFault), waits()];
        assert_eq!(
            planned(|v| v.no_room_since = Some(at(0)), 2, &answers),
            (1, vec![]),
            "it still answers"
        );
    }

    struct Service {
        ledger: Ledger,
        size: u32,
        plan: Plan,
        leaving: Vec<Leaving>,
        no_room: bool,
    }

    impl Service {
        fn of(size: u32) -> Self {
            Self {
                ledger: Ledger::default(),
                size,
                plan: Plan::default(),
                leaving: Vec::new(),
                no_room: false,
            }
        }

        fn look(&mut self, second: i64, pods: &[PodSight]) -> Vec<News> {
            let look = Look {
                size: self.size,
                pods,
                leaving: &self.leaving,
                exchanging: false,
                no_room: self.no_room,
                plan: &self.plan,
            };
            self.ledger.look(&look, at(second))
        }
    }

    /// Began, or the seconds of its stages.
    fn told(news: &[News]) -> Vec<String> {
        news.iter()
            .map(|news| match news {
                News::Began(i) => format!("{} {:?}", i.object, i.cause),
                News::Over(i) => format!("{} {:?} {}", i.object, i.cause, super::super::incident::told(i)),
            })
            .collect()
    }

    #[test]
    fn a_program_that_ends_is_followed_until_as_many_pods_answer_again() {
        let mut service = Service::of(2);
        assert_eq!(told(&service.look(80, &[ready("a"), ready("b")])), [""; 0]);
        let ended = |stage| PodSight {
            unready: Failure {
                cause: IncidentCause::PodFailed,
                ..pod("b", stage).unready
            },
            ..pod("b", stage)
        };
        let unready = service.look(92, &[ready("a"), pod("b", Stage::Unready)]);
        assert_eq!(told(&unready), ["b PodUnready"]);
        let says_more = service.look(94, &[ready("a"), ended(Stage::Starting)]);
        assert_eq!(told(&says_more), [""; 0]);
        assert_eq!(told(&service.look(95, &[ready("a"), ended(Stage::Loading)])), [""; 0]);
        let over = service.look(101, &[ready("a"), ready("b")]);
        assert_eq!(
            told(&over),
            ["b PodFailed 11 s: detect 2, decide 0, replace 0, recover 9"]
        );
        assert_eq!(told(&service.look(102, &[ready("a"), ready("b")])), [""; 0]);
        assert_eq!(service.ledger.incidents().len(), 1);
    }

    #[test]
    fn a_program_that_ended_between_two_looks_is_known_by_its_end() {
        let mut service = Service::of(2);
        service.look(80, &[ready("a"), ready("b")]);
        service.look(92, &[ready("a"), pod("b", Stage::Unready)]);
        let back = PodSight {
            ended: Some(at(86)),
            ..ready("b")
        };
        service.look(95, &[ready("a"), back]);
        let incident = &service.ledger.incidents()[0];
        assert_eq!((incident.cause, incident.is_over()), (IncidentCause::PodFailed, true));
    }

    #[test]
    fn an_old_end_says_nothing_of_today() {
        let view = |stage, ended: Option<i64>| PodView {
            name: "a".to_owned(),
            version: None,
            stage,
            scheduling: crate::placement::PodSchedulingView::default(),
            waiting_since: None,
            trouble: None,
            restarts: 1,
            ended: ended.map(|second| crate::serving::Ended {
                how: crate::serving::How::Killed,
                at: at(second),
            }),
            backs_off: false,
            changed: Some(at(10_000)),
            created: Some(at(0)),
        };
        let sight = |stage, ended| PodSight::of(&view(stage, ended), "a", None, &Place::default(), at(10_010)).unready;
        for stage in [Stage::Starting, Stage::Unready] {
            let told = sight(stage, Some(100));
            assert_eq!(
                (told.cause, told.began),
                (IncidentCause::PodUnready, at(10_000)),
                "{stage:?}"
            );
            let told = sight(stage, Some(9_999));
            assert_eq!(
                (told.cause, told.began),
                (IncidentCause::PodFailed, at(9_999)),
                "{stage:?}"
            );
        }
        let later = sight(Stage::Starting, Some(10_008));
        assert_eq!(
            (later.cause, later.began),
            (IncidentCause::PodFailed, at(10_000)),
            "not ready since then"
        );
    }

    #[test]
    fn one_that_ends_again_and_again_stays_so_while_its_kubelet_tries() {
        let view = |stage, backs_off, restarts| PodView {
            name: "a".to_owned(),
            version: None,
            stage,
            scheduling: crate::placement::PodSchedulingView::default(),
            waiting_since: None,
            trouble: Some(crate::serving::Trouble {
                reason: flywheel_api::conditions::reasons::CRASH_LOOP,
                message: "it ended".to_owned(),
            }),
            restarts,
            ended: None,
            backs_off,
            changed: Some(at(0)),
            created: Some(at(0)),
        };
        let cause = |stage, backs_off, restarts, crash_loops| {
            let place = Place {
                crash_loops,
                ..Place::default()
            };
            fault(&view(stage, backs_off, restarts), &place, at(100)).map(|fault| fault.cause)
        };
        let crash_loop = Some(IncidentCause::CrashLoop);
        assert_eq!(cause(Stage::Starting, true, 2, false), None);
        assert_eq!(cause(Stage::Starting, true, 3, false), crash_loop);
        assert_eq!(cause(Stage::Loading, false, 4, false), None);
        assert_eq!(cause(Stage::Loading, false, 4, true), crash_loop);
        assert_eq!(cause(Stage::Ready, false, 4, true), None);
    }

    #[test]
    fn what_takes_its_place_and_fails_of_the_same_is_the_same_incident() {
        let mut service = Service::of(2);
        service.look(80, &[ready("a"), ready("b")]);
        let without_image = |name| faulty(name, Stage::Starting, IncidentCause::ImagePullFailed);
        assert_eq!(
            told(&service.look(100, &[ready("a"), without_image("c")])).len(),
            2,
            "b is gone, c fails"
        );
        assert_eq!(told(&service.look(175, &[ready("a"), without_image("d")])), [""; 0]);
    }

    #[test]
    fn a_lost_node_is_followed_from_its_first_sign_to_the_new_pod() {
        let mut service = Service::of(2);
        service.look(80, &[ready("a"), ready("b")]);
        let lost = faulty("b", Stage::Ready, IncidentCause::NodeLost);
        assert_eq!(told(&service.look(118, &[ready("a"), lost.clone()])), ["b NodeLost"]);
        let uid = |name: &str| Replace {
            name: name.to_owned(),
            uid: name.to_owned(),
            cause: IncidentCause::NodeLost,
            why: String::new(),
        };
        service.plan.replace = vec![uid("b")];
        service.look(119, &[ready("a"), lost]);
        service.plan = Plan::default();
        service.look(120, &[ready("a"), pod("c", Stage::Pending)]);
        service.look(122, &[ready("a"), pod("c", Stage::Starting)]);
        let over = service.look(130, &[ready("a"), ready("c")]);
        assert_eq!(
            told(&over),
            ["b NodeLost 35 s: detect 23, decide 1, replace 3, recover 8"]
        );
        let incident = &service.ledger.incidents()[0];
        assert_eq!(
            (incident.node.as_deref(), incident.pods_before),
            (Some("node of b"), Some(2))
        );
    }

    #[test]
    fn pods_that_go_on_purpose_are_no_incident() {
        let mut service = Service::of(3);
        service.look(1, &[ready("a"), ready("b"), ready("c")]);
        service.size = 2;
        assert_eq!(
            told(&service.look(2, &[ready("a"), ready("b")])),
            [""; 0],
            "fewer are wanted"
        );
        service.size = 4;
        assert_eq!(
            told(&service.look(3, &[ready("a"), ready("b"), pod("d", Stage::Loading)])),
            [""; 0],
            "more are wanted"
        );
        service.size = 0;
        assert_eq!(told(&service.look(4, &[])), [""; 0], "none is");
    }

    #[test]
    fn a_pod_that_was_deleted_is_one() {
        let mut service = Service::of(1);
        service.look(1, &[ready("a")]);
        service.leaving = vec![Leaving {
            uid: "a".to_owned(),
            asked: at(5),
            how: "it was deleted".to_owned(),
        }];
        assert_eq!(told(&service.look(6, &[pod("b", Stage::Pending)])), ["a PodLost"]);
        service.no_room = true;
        service.look(16, &[pod("b", Stage::Pending)]);
        service.no_room = false;
        service.look(20, &[pod("b", Stage::Loading)]);
        let over = service.look(30, &[ready("b")]);
        assert_eq!(
            told(&over),
            ["a PodLost 25 s: detect 1, decide 0, replace 14, recover 10, of these without room 10"]
        );
    }

    #[test]
    fn what_is_found_out_later_counts_if_it_says_more() {
        let mut service = Service::of(2);
        service.look(80, &[ready("a"), ready("b")]);
        service.look(95, &[ready("a"), pod("b", Stage::Unready)]);
        service.look(96, &[ready("a"), faulty("b", Stage::Unready, IncidentCause::NodeLost)]);
        service.leaving = vec![Leaving {
            uid: "b".to_owned(),
            asked: at(97),
            how: "it was deleted".to_owned(),
        }];
        service.look(97, &[ready("a")]);
        let incidents = service.ledger.incidents();
        assert_eq!(incidents.len(), 1, "{incidents:?}");
        assert_eq!(
            (incidents[0].cause, incidents[0].began.0),
            (IncidentCause::NodeLost, at(90))
        );
    }

    #[test]
    fn a_new_leader_goes_on_with_what_was_told() {
        let mut before = Service::of(2);
        before.look(80, &[ready("a"), ready("b")]);
        before.look(95, &[ready("a"), pod("b", Stage::Unready)]);
        let mut service = Service {
            ledger: Ledger::new(&before.ledger.incidents()),
            ..Service::of(2)
        };
        assert_eq!(
            told(&service.look(99, &[ready("a"), pod("b", Stage::Unready)])),
            [""; 0]
        );
        assert_eq!(told(&service.look(100, &[ready("a"), ready("b")])).len(), 1);
    }

    #[test]
    fn many_failures_are_bounded() {
        let mut service = Service::of(100);
        let pods: Vec<PodSight> = (0..100).map(|n| ready(&n.to_string())).collect();
        service.look(1, &pods);
        let down: Vec<PodSight> = (0..100).map(|n| pod(&n.to_string(), Stage::Unready)).collect();
        assert_eq!(service.look(2, &down).len(), OPEN_MAX);
        assert_eq!(service.ledger.incidents().len(), flywheel_api::recovery::INCIDENTS);
    }
}
