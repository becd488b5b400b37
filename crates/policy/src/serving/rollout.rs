//! A new version by steps: which pods answer with it, with which share of their requests, and when the next step comes.
//!
//! A version that ends its process must not reach every pod at once. So it begins on few pods, which get more of it in turn, and
//! one pod is always left to the version before, until the last step is over and all change over as in a hot update. Step and
//! time stand in the assignment, so that an operator that restarts, or a spec that changes in the middle, needs no other memory.

use std::collections::{BTreeMap, BTreeSet};

use flywheel_api::inference_service::{Rollout, RolloutFigure, RolloutStep};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::serving::{Assignment, Canary, ServedVersion};
use flywheel_contract::split::{BUCKETS, BUCKETS_PER_PERCENT};
use jiff::Timestamp;

use super::analysis::{self, Evidence, Figures, Opinion};
use super::blame::How;
use super::update::{PodSays, Update, Wanted, update};

/// One pod in so many has a version in its first step, where its share asks for no more.
const ONE_POD_OF: usize = 10;

/// What a rollout depends on beside versions and pods.
#[derive(Clone, Copy, Debug)]
pub struct RolloutView<'a> {
    /// `spec.rollout`.
    pub spec: Option<&'a Rollout>,
    /// Why the version of `modelVersion` was rejected, where it was.
    pub rejected: Option<&'a str>,
    /// The version of `modelVersion` has been verified.
    pub verified: bool,
    /// The version of `modelVersion` has a lower number than the one that answers: it was there before, and who goes back does not
    /// want to wait.
    pub back: bool,
    /// Names of the pods that count, whether or not they answer now.
    pub alive: &'a [String],
    /// What the version that comes and the one before did since it came, once both were asked.
    pub figures: Option<Figures>,
    /// Clients tell what would have been right.
    pub feedback: bool,
    /// Now.
    pub now: Timestamp,
}

/// How a version comes to the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// None is on its way.
    Done,
    /// Some pods answer with it, or load it.
    Step {
        /// The version.
        version: String,
        /// Number of the step, from 1.
        step: usize,
        /// Steps.
        steps: usize,
        /// Its share of the requests.
        percent: i32,
        /// Pods that are to answer with it.
        pods: usize,
        /// When the next step comes at the earliest, once they do.
        until: Option<Timestamp>,
        /// One of them that does not yet, or of which it is not known.
        waits_for: Option<String>,
        /// What it has not done yet, so that no next step comes when its time is over.
        too_few: Option<String>,
        /// No next step comes.
        paused: bool,
        /// What it was judged by so far.
        judged: Vec<RolloutFigure>,
    },
    /// The steps are over, and all pods load it and change over.
    Last {
        /// The version.
        version: String,
        /// They do not change over.
        paused: bool,
        /// What it was judged by.
        judged: Vec<RolloutFigure>,
    },
    /// There is one pod, and one is always left to the version before.
    TooFew {
        /// The version.
        version: String,
    },
    /// It is not verified yet, and no step begins before it is.
    Unverified {
        /// The version.
        version: String,
    },
    /// A pod of the canary cannot load it.
    Failed {
        /// The version.
        version: String,
        /// The pod.
        pod: String,
        /// What it says.
        failure: Failure,
    },
    /// It ended the process of a pod: it is to be rejected.
    Reject {
        /// The version.
        version: String,
        /// How.
        why: String,
    },
    /// It was rejected.
    RolledBack {
        /// The version.
        version: String,
        /// Why.
        why: String,
    },
}

/// Pods that answer with a canary of this weight, of so many: as many as the share is of all, at least one in [`ONE_POD_OF`], and
/// never the last one.
#[must_use]
pub fn canary_pods(weight_percent: i32, pods: usize) -> usize {
    let wanted = (pods * weight(weight_percent)).div_ceil(100);
    wanted.max(pods.div_ceil(ONE_POD_OF)).min(pods.saturating_sub(1))
}

/// The buckets that a canary gets in each of so many pods, of all that answer.
///
/// Together they are exactly its weight of all pods' buckets, as far as its pods have so many; those of two pods differ by one
/// bucket (0.01 % of a pod's requests) at most.
#[must_use]
pub fn shares(weight_percent: i32, pods: usize, holders: usize) -> Vec<u16> {
    let total = pods * weight(weight_percent) * usize::from(BUCKETS_PER_PERCENT);
    let total = total.min(holders * usize::from(BUCKETS));
    let share = |holder: usize| total / holders + usize::from(holder < total % holders);
    (0..holders)
        .map(|holder| u16::try_from(share(holder)).unwrap_or(BUCKETS))
        .collect()
}

/// Percents as the schema bounds them.
fn weight(percent: i32) -> usize {
    usize::try_from(percent).unwrap_or(0).min(100)
}

/// The next assignment, by steps where the spec has some, and how the rollout stands. `wanted`, `pods`: as of [`update`]. A
/// version that was rejected is not taken, with or without steps.
#[must_use]
pub fn roll(
    view: &RolloutView<'_>,
    wanted: Option<&Wanted>,
    present: Option<&Assignment>,
    pods: &[PodSays],
) -> Option<(Update, Stand)> {
    let before = present.and_then(|present| Some((present, present.serving()?)));
    let (Some(wanted), Some((present, serving))) = (wanted, before) else {
        return Some((update(wanted, present, pods)?, Stand::Done));
    };
    let version = &wanted.serve;
    if version == serving {
        return Some((update(Some(wanted), Some(present), pods)?, Stand::Done));
    }
    let name = || version.name.clone();
    let stay = |canary| without(wanted, serving).stays(present, pods, canary);
    if let Some(why) = view.rejected {
        let stand = Stand::RolledBack {
            version: name(),
            why: why.to_owned(),
        };
        return Some((stay(None)?, stand));
    }
    let begun = present.canary.as_ref().filter(|canary| canary.version == *version);
    let approved = view.spec.and_then(|spec| spec.approved_version.as_ref()) == Some(&version.name);
    let may_begin = view.verified || approved;
    // As without steps: nobody answers, so there is nothing to keep; and a version that was made anew under its name cannot be
    // held beside itself.
    let nobody = begun.is_none() && pods.is_empty() && may_begin;
    let at_once = view.back || nobody || version.name == serving.name;
    let Some(spec) = view.spec.filter(|_| !at_once) else {
        return Some((update(Some(wanted), Some(present), pods)?, Stand::Done));
    };
    if let Some(pod) = pods.iter().find(|pod| blamed(pod, version, present).is_some()) {
        let stand = Stand::Reject {
            version: name(),
            why: why(pod),
        };
        return Some((stay(None)?, stand));
    }

    if begun.is_none() && !may_begin {
        return Some((stay(None)?, Stand::Unverified { version: name() }));
    }

    let seen = Seen::of(begun, present, view.alive, pods);
    let (opinion, judged) = opinion(view, spec, begun, serving, pods);
    let to_all = |judged| {
        let stand = Stand::Last {
            version: name(),
            paused: spec.paused,
            judged,
        };
        Some((last(wanted, present, begun, &seen, pods, spec, view.alive)?, stand))
    };
    if approved {
        return to_all(judged);
    }
    if let Opinion::Bad(why) = opinion {
        let stand = Stand::Reject { version: name(), why };
        return Some((stay(None)?, stand));
    }
    let too_few = match opinion {
        Opinion::TooFew(what) => Some(what),
        Opinion::Good | Opinion::Bad(_) => None,
    };
    let (step, since) = next_step(spec, begun, &seen, too_few.is_some(), view.now);
    let Some(now) = spec.steps.get(step) else {
        return to_all(judged);
    };
    let mut holders = holders(now, begun, view.alive, pods);
    // Pods compare its answers while they load it, so nobody gets one before the first of them has.
    let heard = begun.is_some_and(|begun| begun.pods.values().any(|share| *share > 0));
    if spec.analysis.is_some() && !heard && !pods.iter().any(|pod| pod.holds(version)) {
        holders.values_mut().for_each(|share| *share = 0);
    }
    // Who leaves costs no time, who comes begins it anew.
    let known = begun.is_some_and(|begun| holders.keys().all(|name| begun.pods.contains_key(name)));
    let since = since.filter(|_| known && !holders.is_empty());
    let failed = pods.iter().filter(|pod| holders.contains_key(&pod.name));
    let failed = failed
        .filter_map(|pod| Some((pod.name.clone(), pod.failure(version, present.generation)?.clone())))
        .next();
    let stand = match failed {
        _ if holders.is_empty() => Stand::TooFew { version: name() },
        Some((pod, failure)) => Stand::Failed {
            version: name(),
            pod,
            failure,
        },
        None => Stand::Step {
            version: name(),
            step: step + 1,
            steps: spec.steps.len(),
            percent: now.weight_percent,
            pods: holders.len(),
            until: since.and_then(|since| until(now, since)),
            waits_for: seen.waits_for.clone().or_else(|| holders.keys().next().cloned()),
            too_few,
            paused: spec.paused,
            judged,
        },
    };
    let canary = Canary {
        version: version.clone(),
        step: u32::try_from(step).unwrap_or(u32::MAX),
        since,
        pods: holders,
    };
    Some((stay(Some(canary))?, stand))
}

/// What is known of the version says of it, in the step that it is in, and what it was judged by.
fn opinion(
    view: &RolloutView<'_>,
    spec: &Rollout,
    begun: Option<&Canary>,
    serving: &ServedVersion,
    pods: &[PodSays],
) -> (Opinion, Vec<RolloutFigure>) {
    let nothing = (Opinion::Good, Vec::new());
    let Some(begun) = begun else {
        return nothing;
    };
    let at = usize::try_from(begun.step).unwrap_or(usize::MAX);
    let last = at.saturating_add(1) >= spec.steps.len();
    // After the last step nothing is asked any more, but it can still do badly.
    let Some(step) = spec.steps.get(at).or(spec.steps.last()) else {
        return nothing;
    };
    let evidence = Evidence {
        // Before the pods said anything it did nothing.
        figures: &view.figures.unwrap_or_default(),
        likeness: analysis::likeness(&begun.version, serving, pods),
        labels: analysis::labels(&begun.version, serving, pods),
    };
    let limits = spec.analysis.as_ref();
    let judged = analysis::judged(limits, step, &evidence);
    match analysis::judge(limits, step, &evidence, view.feedback, last) {
        Opinion::TooFew(_) if at >= spec.steps.len() => (Opinion::Good, judged),
        opinion => (opinion, judged),
    }
}

/// What is wanted, with the version that answers now.
fn without(wanted: &Wanted, serving: &ServedVersion) -> Wanted {
    let beside = |name: &str| name != serving.name && name != wanted.serve.name;
    let mirror = wanted.mirror.clone().filter(|mirror| beside(&mirror.version));
    Wanted {
        serve: serving.clone(),
        others: wanted
            .others
            .iter()
            .filter(|other| beside(&other.name))
            .cloned()
            .collect(),
        shares: Vec::new(),
        trial: None,
        mirror,
        salt: wanted.salt.clone(),
    }
}

impl Wanted {
    fn stays(&self, present: &Assignment, pods: &[PodSays], canary: Option<Canary>) -> Option<Update> {
        let update = update(Some(self), Some(present), pods)?;
        Some(update.beside(canary, present, pods))
    }
}

/// Why the process of a pod ended, where this version, and no other one, is to blame for that. What ended while it was loaded is
/// not known as well, and is no more than a pod that cannot load it.
fn blamed<'a>(pod: &'a PodSays, version: &ServedVersion, present: &Assignment) -> Option<&'a Failure> {
    let failure = pod.failure(version, present.generation)?;
    let alone = pod
        .version(version)?
        .crash
        .as_ref()
        .is_some_and(|crash| !crash.together);
    (failure.reason == FailureReason::ExecutionCrashed && alone).then_some(failure)
}

/// The same in words.
fn why(pod: &PodSays) -> String {
    let how = match pod.ended.map(|ended| ended.how) {
        Some(How::Signal(signal)) => format!(" by signal {signal}"),
        Some(How::Told) => " as its liveness probe failed".to_owned(),
        Some(How::OutOfMemory) => " as memory ran out, and not for the first time".to_owned(),
        Some(How::Killed | How::Code(_)) | None => " again".to_owned(),
    };
    format!("the server of pod {} ended{how} while it computed with it", pod.name)
}

/// What the canary's pods say, those that are there.
struct Seen {
    /// All answer with it as the assignment says.
    all: bool,
    /// One says that it does not, or is not ready.
    lacking: bool,
    /// The first that does not, or does not say.
    waits_for: Option<String>,
}

impl Seen {
    fn of(begun: Option<&Canary>, present: &Assignment, alive: &[String], pods: &[PodSays]) -> Self {
        let mut seen = Self {
            all: true,
            lacking: false,
            waits_for: None,
        };
        for name in begun.iter().flat_map(|canary| canary.pods.keys()) {
            let pod = pods.iter().find(|pod| pod.name == *name);
            let stats = pod.map(|pod| pod.stats.as_ref());
            match (pod, stats, begun) {
                (None, ..) if !alive.contains(name) => {}
                // Whether it still does nobody knows.
                (Some(_), Some(None), _) => seen.all = false,
                (Some(pod), Some(Some(stats)), Some(canary)) if pod.holds(&canary.version) => {
                    // In the middle of a step only its shares change.
                    seen.all &= canary.since.is_some() || stats.generation >= present.generation;
                }
                _ => (seen.all, seen.lacking) = (false, true),
            }
            if !seen.all && seen.waits_for.is_none() {
                seen.waits_for = Some(name.clone());
            }
        }
        seen
    }
}

/// The step, from 0, and since when its pods answer, in milliseconds.
fn next_step(
    spec: &Rollout,
    begun: Option<&Canary>,
    seen: &Seen,
    too_few: bool,
    now: Timestamp,
) -> (usize, Option<i64>) {
    let Some(begun) = begun else {
        return (0, None);
    };
    let step = usize::try_from(begun.step).unwrap_or(usize::MAX).min(spec.steps.len());
    let answers = seen.all && !begun.pods.is_empty();
    let since = match begun.since {
        // A pod that came back without it, or not yet: its time begins anew.
        _ if seen.lacking => None,
        None if answers => Some(now.as_millisecond()),
        since => since,
    };
    let over = spec
        .steps
        .get(step)
        .zip(since)
        .and_then(|(step, since)| until(step, since))
        .is_some_and(|until| until <= now);
    if over && answers && !spec.paused && !too_few {
        (step + 1, None)
    } else {
        (step, since)
    }
}

/// When a step is over.
fn until(step: &RolloutStep, since: i64) -> Option<Timestamp> {
    let until = since.saturating_add(i64::from(step.duration_seconds) * 1000);
    Timestamp::from_millisecond(until).ok()
}

/// The pods that answer with the canary, and their shares: those that do already, then others in the order of their names.
///
/// One that does not answer with it now counts, and stays, as long as it is there: it may have ended because of the version, and
/// another one in its place would end as well.
fn holders(step: &RolloutStep, begun: Option<&Canary>, alive: &[String], pods: &[PodSays]) -> BTreeMap<String, u16> {
    let has = |name: &String| begun.is_some_and(|begun| begun.pods.contains_key(name));
    let pod = |name: &String| pods.iter().find(|pod| pod.name == *name);
    let well = |name: &String| {
        begun
            .zip(pod(name))
            .is_some_and(|(begun, pod)| pod.holds(&begun.version))
    };
    let members: BTreeSet<&String> = alive.iter().filter(|name| has(name) || pod(name).is_some()).collect();
    let all = members.len();
    let (present, others): (Vec<&String>, Vec<&String>) = members.into_iter().partition(|name| has(name));
    let (well, doubtful): (Vec<&String>, Vec<&String>) = present.into_iter().partition(|name| well(name));
    let count = canary_pods(step.weight_percent, all).max(doubtful.len());
    let count = count.min(alive.len().saturating_sub(1));
    let chosen = doubtful.into_iter().chain(well).chain(others).take(count);
    let chosen: BTreeSet<&String> = chosen.collect();
    let shares = shares(step.weight_percent, all, chosen.len());
    chosen.into_iter().cloned().zip(shares).collect()
}

/// After the last step: the two phases of a hot update, while the canary's pods go on, but for one where they are all that is left.
fn last(
    wanted: &Wanted,
    present: &Assignment,
    begun: Option<&Canary>,
    seen: &Seen,
    pods: &[PodSays],
    spec: &Rollout,
    alive: &[String],
) -> Option<Update> {
    let canary = begun.map(|begun| {
        let holds = |name: &String| pods.iter().any(|pod| pod.name == *name && pod.holds(&begun.version));
        let there = begun.pods.iter().filter(|(name, _)| alive.contains(name));
        let (well, doubtful): (Vec<_>, Vec<_>) = there.partition(|(name, _)| holds(name));
        let kept = doubtful.into_iter().chain(well).take(alive.len().saturating_sub(1));
        Canary {
            step: u32::try_from(spec.steps.len()).unwrap_or(u32::MAX),
            since: None,
            pods: kept.map(|(name, share)| (name.clone(), *share)).collect(),
            ..begun.clone()
        }
    });
    let all = update(Some(wanted), Some(present), pods)?;
    if all.content.serve != wanted.serve.name {
        return Some(all.beside(canary, present, pods));
    }
    if seen.all && !pods.is_empty() && !spec.paused {
        return Some(all);
    }
    // A pod of the canary that does not answer now may have ended because of it: none changes over before that is known, or
    // while it is paused.
    let held = all.held(present);
    Some(held.beside(canary, present, pods))
}

#[cfg(test)]
mod tests {
    use flywheel_api::inference_service::Analysis;
    use flywheel_contract::SCHEMA_VERSION;
    use flywheel_contract::serving::{
        Agreement, Crash, LabelsBeside, Likeness, LoadState, Mirror, Stats, VersionFigures, VersionStats,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::serving::update::tests::version;
    use crate::serving::{Ended, must_ask};

    const START: i64 = 1_800_000_000;

    fn spec(steps: &[(i32, i32)]) -> Rollout {
        Rollout {
            steps: steps
                .iter()
                .map(|(weight_percent, duration_seconds)| RolloutStep {
                    weight_percent: *weight_percent,
                    duration_seconds: *duration_seconds,
                    min_requests: None,
                })
                .collect(),
            paused: false,
            approved_version: None,
            analysis: None,
        }
    }

    fn crash(times: u32) -> Crash {
        Crash {
            id: "1".to_owned(),
            at: START,
            times,
            together: false,
            last: true,
        }
    }

    /// A pod: the assignment that it followed last, as it is for this pod, and whether it answers.
    #[derive(Clone)]
    struct Follower {
        follows: Assignment,
        ready: bool,
        /// Names of the versions that it has loaded; without it all that it follows.
        loaded: Option<BTreeSet<String>>,
        /// Name of the version that it answers with.
        answers: String,
    }

    impl Follower {
        fn follow(&mut self, assignment: Assignment) {
            self.follows = assignment;
            let listed = self.follows.versions.iter().map(|version| &version.name);
            let listed: BTreeSet<&String> = listed.collect();
            if let Some(loaded) = &mut self.loaded {
                loaded.retain(|name| listed.contains(name) || *name == self.answers);
            }
            self.answer();
        }

        fn has(&self, name: &str) -> bool {
            self.loaded.as_ref().is_none_or(|loaded| loaded.contains(name))
        }

        /// It loads all that it follows.
        fn load(&mut self) {
            let listed = self.follows.versions.iter().map(|version| version.name.clone());
            if let Some(loaded) = &mut self.loaded {
                loaded.extend(listed);
            }
            self.answer();
        }

        fn answer(&mut self) {
            if self.has(&self.follows.serve) {
                self.answers.clone_from(&self.follows.serve);
            }
        }
    }

    /// Pods that follow the assignment as far as they are told to.
    struct World {
        spec: Rollout,
        wanted: Wanted,
        rejected: Option<String>,
        unverified: bool,
        present: Assignment,
        seconds: i64,
        /// By name.
        pods: BTreeMap<String, Follower>,
        /// The pod that holds the canary back, and how its process ended.
        held_back: Option<(String, Crash, How)>,
        figures: Option<Figures>,
        likeness: Option<Likeness>,
        /// Names of the versions that lack a label which others have.
        lacking: BTreeSet<&'static str>,
        feedback: bool,
        back: bool,
    }

    impl World {
        fn new(pods: usize, steps: &[(i32, i32)]) -> Self {
            let present = Assignment {
                schema_version: SCHEMA_VERSION,
                generation: 1,
                serve: "v1".to_owned(),
                versions: vec![version("v1")],
                split: None,
                mirror: None,
                canary: None,
                cleared: Vec::new(),
                window_seconds: None,
                judged_since: None,
                trial: None,
            };
            let pod = Follower {
                follows: present.clone(),
                ready: true,
                loaded: None,
                answers: "v1".to_owned(),
            };
            Self {
                spec: spec(steps),
                wanted: Wanted::only(version("v2")),
                rejected: None,
                unverified: false,
                present,
                seconds: START,
                pods: (0..pods).map(|n| (format!("p{n:02}"), pod.clone())).collect(),
                held_back: None,
                figures: None,
                likeness: None,
                lacking: BTreeSet::new(),
                feedback: false,
                back: false,
            }
        }

        fn says(&self) -> Vec<PodSays> {
            let ready = self.pods.iter().filter(|(_, pod)| pod.ready);
            ready.map(|(name, pod)| self.say(name, pod)).collect()
        }

        fn say(&self, name: &str, pod: &Follower) -> PodSays {
            let follows = &pod.follows;
            let held = self.held_back.as_ref().filter(|(pod, ..)| pod == name);
            let versions = follows.versions.iter().cloned().map(|served| {
                let crash = held.filter(|_| served.name == "v2").map(|(_, crash, _)| crash.clone());
                let likeness = self.likeness.clone().filter(|_| served.name == "v2");
                let comes = follows.canary.as_ref().is_some_and(|canary| canary.version == served);
                let labels = LabelsBeside {
                    to: version(&follows.serve).artifact.digest,
                    theirs: 2,
                    missing: u32::from(self.lacking.contains(served.name.as_str())),
                    first: Vec::new(),
                };
                let has = pod.has(&served.name);
                VersionStats {
                    labels: (comes && has).then_some(labels),
                    name: served.name,
                    digest: served.artifact.digest,
                    state: if crash.is_some() {
                        LoadState::Failed
                    } else if !has {
                        LoadState::Loading
                    } else {
                        LoadState::Ready
                    },
                    precision: None,
                    agreement: None,
                    likeness,
                    failure: crash
                        .as_ref()
                        .map(|_| Failure::new(FailureReason::ExecutionCrashed, "ended")),
                    crash,
                    figures: None,
                    copies: None,
                }
            });
            PodSays {
                name: name.to_owned(),
                ended: held.map(|(.., how)| Ended {
                    how: *how,
                    at: Timestamp::from_second(START).unwrap(),
                }),
                stats: Some(Stats {
                    schema_version: SCHEMA_VERSION,
                    ready: true,
                    generation: follows.generation,
                    serving: Some(pod.answers.clone()),
                    versions: versions.collect(),
                    answered: [0; 3],
                    in_flight: 0,
                    uptime_seconds: 1.0,
                    load: None,
                }),
            }
        }

        /// One look of an operator that has just started: the stand, and the assignment is written.
        fn look(&mut self) -> Stand {
            let wanted = self.wanted.clone();
            self.look_for(Some(&wanted))
        }

        /// The same, where something else can be served, or nothing.
        fn look_for(&mut self, wanted: Option<&Wanted>) -> Stand {
            let alive: Vec<String> = self.pods.keys().cloned().collect();
            let view = RolloutView {
                spec: Some(&self.spec),
                rejected: self.rejected.as_deref(),
                verified: !self.unverified,
                back: self.back,
                alive: &alive,
                figures: self.figures,
                feedback: self.feedback,
                now: Timestamp::from_second(self.seconds).unwrap(),
            };
            let (update, stand) = roll(&view, wanted, Some(&self.present), &self.says()).unwrap();
            let next = Assignment {
                canary: update.canary,
                cleared: update.cleared,
                ..update.content.assigned(self.present.generation)
            };
            if next != self.present {
                self.present = Assignment {
                    generation: self.present.generation + 1,
                    ..next
                };
            }
            if let Stand::Reject { why, .. } = &stand {
                self.rejected = Some(why.clone());
            }
            stand
        }

        fn follow(&mut self) {
            for (name, pod) in &mut self.pods {
                pod.follow(self.present.clone().of_pod(name));
            }
        }

        fn canary(&self) -> Vec<(&str, u16)> {
            let canary = self.present.canary.iter().flat_map(|canary| &canary.pods);
            canary.map(|(name, share)| (name.as_str(), *share)).collect()
        }
    }

    fn word(stand: &Stand) -> &'static str {
        match stand {
            Stand::Done => "done",
            Stand::Step { until: None, .. } => "loading",
            Stand::Step { .. } => "answering",
            Stand::Last { .. } => "last",
            Stand::TooFew { .. } => "too few",
            Stand::Unverified { .. } => "unverified",
            Stand::Failed { .. } => "failed",
            Stand::Reject { .. } => "reject",
            Stand::RolledBack { .. } => "rolled back",
        }
    }

    #[test]
    fn shares_are_raised_so_that_the_whole_adds_up() {
        for (weight, pods, expected) in [
            (5, 0, vec![]),
            (5, 1, vec![]),
            (5, 2, vec![1000]),
            (5, 20, vec![5000, 5000]),
            (10, 10, vec![10_000]),
            (5, 3, vec![1500]),
            (33, 3, vec![9900]),
            (34, 3, vec![5100, 5100]),
            (35, 10, vec![8750, 8750, 8750, 8750]),
            (7, 40, vec![7000, 7000, 7000, 7000]),
            (1, 70, vec![1000; 7]),
            (1, 73, vec![913, 913, 913, 913, 912, 912, 912, 912]),
            // One pod is always left.
            (99, 2, vec![10_000]),
            (80, 3, vec![10_000, 10_000]),
        ] {
            let holders = canary_pods(weight, pods);
            assert_eq!(shares(weight, pods, holders), expected, "{weight} % of {pods}");
        }
    }

    #[test]
    fn a_version_goes_by_steps_and_then_to_all() {
        let mut world = World::new(3, &[(5, 60), (50, 0)]);
        assert_eq!(word(&world.look()), "loading");
        assert_eq!(world.canary(), [("p00", 1500)]);
        assert_eq!(world.present.versions, [version("v1")], "no other pod is to load it");
        assert!(must_ask(Some(&world.wanted), Some(&world.present), true));
        world.seconds += 1000;
        assert_eq!(word(&world.look()), "loading", "the time of loading does not count");
        world.follow();
        assert_eq!(word(&world.look()), "answering");
        world.follow();
        world.seconds += 59;
        assert_eq!(word(&world.look()), "answering");
        world.spec.paused = true;
        world.seconds += 1000;
        assert_eq!(word(&world.look()), "answering", "paused");
        world.spec.paused = false;
        assert_eq!(word(&world.look()), "loading");
        assert_eq!(world.canary(), [("p00", 7500), ("p01", 7500)]);
        world.follow();
        assert_eq!(
            word(&world.look()),
            "last",
            "a step without a duration is over once its pods answer"
        );
        assert_eq!(world.present.versions, [version("v1"), version("v2")]);
        assert_eq!((world.present.serve.as_str(), world.canary().len()), ("v1", 2));
        world.pods.get_mut("p01").unwrap().follow(world.present.clone());
        assert_eq!(word(&world.look()), "last");
        assert_eq!(world.present.serve, "v1", "not all have it");
        world.follow();
        world.spec.paused = true;
        assert_eq!(word(&world.look()), "last");
        assert_eq!(world.present.serve, "v1", "paused");
        world.spec.paused = false;
        assert_eq!(word(&world.look()), "last");
        assert_eq!((world.present.serve.as_str(), world.canary().len()), ("v2", 0));
        assert_eq!(world.present.versions, [version("v2")]);
        world.follow();
        assert_eq!(word(&world.look()), "done");
    }

    #[test]
    fn a_version_that_ends_a_pod_is_rejected_and_reaches_no_other() {
        for (times, how, expected) in [
            (1, How::Signal(6), "reject"),
            (1, How::Told, "reject"),
            (1, How::OutOfMemory, "loading"),
            (2, How::OutOfMemory, "reject"),
        ] {
            let mut world = World::new(10, &[(10, 60)]);
            world.look();
            world.follow();
            assert_eq!(word(&world.look()), "answering");
            world.follow();
            // Its process has ended; whose fault that was is not known.
            world.pods.get_mut("p00").unwrap().ready = false;
            world.seconds += 600;
            assert_eq!(word(&world.look()), "loading", "its time is not over");
            assert_eq!(world.canary(), [("p00", 10_000)], "no other pod in its place");
            world.pods.get_mut("p00").unwrap().ready = true;
            world.held_back = Some(("p00".to_owned(), crash(times), how));
            world.follow();
            let stand = world.look();
            assert_eq!(word(&stand), expected, "{how:?} {times}");
            if expected != "reject" {
                assert_eq!(world.present.cleared.len(), 1, "it is tried once more");
                assert_eq!(world.canary(), [("p00", 10_000)]);
                world.held_back = None;
                world.follow();
                assert_eq!(word(&world.look()), "answering", "its time begins anew");
                continue;
            }
            assert_eq!((world.canary().len(), world.present.serve.as_str()), (0, "v1"));
            assert_eq!(world.present.versions, [version("v1")]);
            world.held_back = None;
            world.follow();
            let stand = world.look();
            assert_eq!(word(&stand), "rolled back");
            // Nor without steps, as long as that stands.
            world.spec.steps.clear();
            assert_eq!(word(&world.look()), "rolled back");
            assert_eq!(world.present.serve, "v1");
        }
    }

    #[test]
    fn what_is_not_its_own_doing_for_certain_rejects_no_version() {
        let mut world = World::new(3, &[(10, 60)]);
        world.look();
        world.follow();
        world.look();
        let together = Crash {
            together: true,
            ..crash(2)
        };
        world.held_back = Some(("p00".to_owned(), together, How::Signal(6)));
        world.follow();
        assert_eq!(word(&world.look()), "failed", "another one ended as well, twice");
        assert_eq!(world.canary().len(), 1, "and nobody else takes it");
        assert_eq!(world.rejected, None);
    }

    #[test]
    fn who_leaves_costs_a_step_no_time_and_who_comes_begins_it_anew() {
        let mut world = World::new(4, &[(50, 60)]);
        world.look();
        world.follow();
        assert_eq!(word(&world.look()), "answering");
        assert_eq!(world.canary().len(), 2);
        let since = |world: &World| world.present.canary.as_ref().unwrap().since;
        let begun = since(&world);
        world.seconds += 30;
        for gone in ["p02", "p03"] {
            world.pods.remove(gone);
        }
        world.follow();
        assert_eq!(word(&world.look()), "answering");
        assert_eq!((world.canary().len(), since(&world)), (1, begun));
        for come in ["p02", "p03"] {
            world.pods.insert(come.to_owned(), world.pods["p01"].clone());
        }
        world.follow();
        assert_eq!(word(&world.look()), "loading");
        assert_eq!((world.canary().len(), since(&world)), (2, None));
        // However many do not answer, one pod is left to the version before.
        for gone in ["p02", "p03"] {
            world.pods.remove(gone);
        }
        world.pods.values_mut().for_each(|pod| pod.ready = false);
        world.look();
        assert_eq!(world.canary().len(), 1);
    }

    #[test]
    fn all_pods_change_over_only_while_those_of_the_canary_answer() {
        let mut world = World::new(3, &[(5, 0)]);
        world.look();
        world.follow();
        assert_eq!(word(&world.look()), "last");
        world.follow();
        world.pods.get_mut("p00").unwrap().ready = false;
        assert_eq!(word(&world.look()), "last");
        assert_eq!(world.present.serve, "v1", "it may have ended because of it");
        world.held_back = Some(("p00".to_owned(), crash(1), How::Signal(11)));
        world.pods.get_mut("p00").unwrap().ready = true;
        world.follow();
        assert_eq!(word(&world.look()), "reject");
        assert_eq!(world.present.versions, [version("v1")]);
        // A pod that is gone holds nothing up.
        let mut world = World::new(3, &[(5, 0)]);
        world.look();
        world.follow();
        world.look();
        world.follow();
        world.pods.remove("p00");
        world.look();
        assert_eq!(world.present.serve, "v2");
    }

    #[test]
    fn one_pod_is_left_while_all_load() {
        let mut world = World::new(4, &[(50, 0)]);
        world.spec.paused = true;
        world.spec.approved_version = Some("v2".to_owned());
        world.look();
        world.present.canary = Some(Canary {
            version: version("v2"),
            step: 1,
            since: None,
            pods: [("p00", 10_000), ("p01", 10_000)]
                .map(|(pod, share)| (pod.to_owned(), share))
                .into(),
        });
        world.follow();
        assert_eq!(word(&world.look()), "last");
        assert_eq!(world.canary().len(), 2);
        for gone in ["p02", "p03"] {
            world.pods.remove(gone);
        }
        // The one that may have ended because of the version is not let go.
        world.pods.get_mut("p01").unwrap().ready = false;
        assert_eq!(word(&world.look()), "last");
        assert_eq!(world.canary(), [("p01", 10_000)]);
    }

    #[test]
    fn no_step_begins_before_the_version_is_verified() {
        let mut world = World::new(2, &[(50, 0)]);
        world.unverified = true;
        assert_eq!(word(&world.look()), "unverified");
        assert_eq!((world.canary(), world.present.serve.as_str()), (vec![], "v1"));
        world.unverified = false;
        assert_eq!(word(&world.look()), "loading");
        // Also where nobody answers for a moment.
        let mut alone = World::new(2, &[(50, 0)]);
        alone.unverified = true;
        alone.pods.clear();
        assert_eq!(word(&alone.look()), "unverified");
        // What has begun goes on, whatever becomes of the verification's status.
        world.unverified = true;
        assert_eq!(word(&world.look()), "loading");
        // Who approves it does without.
        let mut world = World::new(2, &[(50, 0)]);
        world.unverified = true;
        world.spec.approved_version = Some("v2".to_owned());
        assert_eq!(word(&world.look()), "last");
    }

    #[test]
    fn what_has_no_second_pod_or_nothing_to_keep() {
        let mut world = World::new(1, &[(5, 0)]);
        assert_eq!(word(&world.look()), "too few");
        assert_eq!(world.canary(), []);
        world.pods.insert("p01".to_owned(), world.pods["p00"].clone());
        assert_eq!(word(&world.look()), "loading");
        // Nobody answers, so it is taken at once, but not in the middle of a rollout.
        let mut world = World::new(2, &[(5, 60)]);
        world.pods.values_mut().for_each(|pod| pod.ready = false);
        assert_eq!(word(&world.look()), "done");
        assert_eq!(world.present.serve, "v2");
        let mut world = World::new(2, &[(5, 60)]);
        world.look();
        world.pods.values_mut().for_each(|pod| pod.ready = false);
        assert_eq!(word(&world.look()), "loading");
        assert_eq!(world.present.serve, "v1");
        // The way back.
        world.wanted = Wanted::only(version("v1"));
        assert_eq!(word(&world.look()), "done");
        assert_eq!((world.present.serve.as_str(), world.canary().len()), ("v1", 0));
        // Another version in the middle begins at the first step.
        let mut world = World::new(2, &[(5, 0), (6, 60)]);
        world.look();
        world.follow();
        world.look();
        assert_eq!(world.present.canary.as_ref().unwrap().step, 1);
        world.wanted = Wanted::only(version("v3"));
        world.look();
        let canary = world.present.canary.as_ref().unwrap();
        assert_eq!((canary.step, canary.version.name.as_str()), (0, "v3"));
    }

    fn did(stable: u64, canary: u64, failed: u64) -> Option<Figures> {
        let of = |texts, failed| VersionFigures {
            texts,
            failed,
            ..VersionFigures::default()
        };
        Some(Figures {
            stable: of(stable, 0),
            canary: of(canary, failed),
            ..Figures::default()
        })
    }

    fn analysis() -> Option<Analysis> {
        serde_json::from_str("{}").ok()
    }

    #[test]
    fn a_step_is_not_over_before_the_version_has_done_enough() {
        let mut world = World::new(3, &[(5, 60), (50, 60)]);
        world.spec.steps[0].min_requests = Some(50);
        world.look();
        world.follow();
        world.look();
        world.seconds += 600;
        let short = |stand: &Stand| matches!(stand, Stand::Step { too_few: Some(_), .. });
        assert!(short(&world.look()), "nothing was said yet");
        world.figures = did(900, 49, 0);
        assert!(short(&world.look()));
        assert_eq!(world.canary().len(), 1);
        world.figures = did(900, 50, 0);
        world.look();
        assert_eq!(world.canary().len(), 2, "the next step");
    }

    #[test]
    fn a_version_that_does_badly_is_rejected_in_any_step_and_after_the_last() {
        for steps in [vec![(5, 60), (50, 60)], vec![(5, 0)]] {
            let mut world = World::new(3, &steps);
            world.spec.analysis = analysis();
            world.look();
            world.follow();
            world.look();
            world.figures = did(900, 99, 0);
            assert!(["answering", "last"].contains(&word(&world.look())));
            world.figures = did(900, 99, 20);
            let stand = world.look();
            assert_eq!(word(&stand), "reject");
            assert_eq!((world.canary().len(), world.present.serve.as_str()), (0, "v1"));
            world.follow();
            assert_eq!(word(&world.look()), "rolled back");
        }
    }

    #[test]
    fn a_version_that_answers_otherwise_is_rejected_before_it_answered_anybody() {
        let likeness = |to: &str, same| {
            Some(Likeness {
                to: version(to).artifact.digest,
                agreement: Agreement { texts: 200, same },
            })
        };
        let rows = [
            ("a bit", likeness("v1", 160), "answering"),
            ("too much", likeness("v1", 159), "reject"),
            ("than a version that answered before", likeness("v0", 0), "answering"),
            ("nobody asked", None, "answering"),
        ];
        for (case, likeness, expected) in rows {
            let mut world = World::new(3, &[(5, 60)]);
            world.spec.analysis = analysis();
            world.look();
            assert_eq!(world.canary(), [("p00", 0)], "{case}");
            world.follow();
            world.likeness = likeness;
            assert_eq!(word(&world.look()), expected, "{case}");
            let answers = (expected == "answering").then_some(("p00", 1500));
            assert_eq!(world.canary(), Vec::from_iter(answers), "{case}");
            // A pod that does not say anything for a moment keeps its share.
            world.pods.get_mut("p00").unwrap().ready = false;
            world.look();
            assert_eq!(world.canary(), Vec::from_iter(answers), "{case}");
        }
    }

    #[test]
    fn a_version_that_lacks_a_label_is_rejected_unless_it_is_approved() {
        for analysis in [None, analysis()] {
            let mut world = World::new(3, &[(5, 60)]);
            world.lacking = ["v2"].into();
            world.spec.analysis = analysis;
            assert_eq!(word(&world.look()), "loading");
            world.follow();
            assert_eq!(word(&world.look()), "reject");
            assert_eq!(world.present.versions, [version("v1")]);
        }
        // Other versions than the one that comes may lack what they like.
        let mut world = World::new(3, &[(5, 60)]);
        world.lacking = ["v1", "v3"].into();
        world.look();
        world.follow();
        assert_eq!(word(&world.look()), "answering");
        let mut world = World::new(3, &[(5, 60)]);
        world.lacking = ["v2"].into();
        world.spec.approved_version = Some("v2".to_owned());
        for _ in 0..4 {
            world.look();
            world.follow();
        }
        assert_eq!((word(&world.look()), world.present.serve.as_str()), ("done", "v2"));
    }

    #[test]
    fn the_way_back_takes_no_steps_and_nobody_judges_it() {
        let mut world = World::new(3, &[(5, 3600)]);
        world.spec.analysis = analysis();
        world.spec.paused = true;
        world.back = true;
        world.likeness = Some(Likeness {
            to: version("v1").artifact.digest,
            agreement: Agreement { texts: 200, same: 0 },
        });
        assert_eq!(world.look(), Stand::Done);
        assert_eq!(world.present.canary, None);
        world.follow();
        world.look();
        assert_eq!(world.present.serve, "v2", "all have loaded it");
        // What was rejected stays so.
        let mut world = World::new(3, &[(5, 3600)]);
        (world.back, world.rejected) = (true, Some("bad".to_owned()));
        assert_eq!(word(&world.look()), "rolled back");
    }

    #[test]
    fn accuracy_is_waited_for_in_the_last_step_only() {
        let mut world = World::new(3, &[(5, 0), (50, 0)]);
        (world.spec.analysis, world.feedback, world.figures) = (analysis(), true, did(900, 900, 0));
        world.look();
        world.follow();
        world.look();
        world.follow();
        assert_eq!(world.present.canary.as_ref().unwrap().step, 1);
        assert!(matches!(world.look(), Stand::Step { too_few: Some(_), .. }));
        let mut figures = world.figures.unwrap();
        (figures.stable.judged, figures.stable.correct) = (100, 50);
        (figures.canary.judged, figures.canary.correct) = (100, 90);
        world.figures = Some(figures);
        assert_eq!(word(&world.look()), "last");
    }

    #[test]
    fn an_approved_version_comes_to_all_whatever_its_step() {
        let mut world = World::new(3, &[(5, 3600)]);
        world.spec.steps[0].min_requests = Some(1000);
        world.look();
        world.follow();
        world.look();
        world.spec.approved_version = Some("v9".to_owned());
        assert_eq!(word(&world.look()), "answering", "it is another one");
        world.spec.approved_version = Some("v2".to_owned());
        assert_eq!(word(&world.look()), "last");
        world.follow();
        assert_eq!(word(&world.look()), "last");
        world.follow();
        assert_eq!((word(&world.look()), world.present.serve.as_str()), ("done", "v2"));
        // But one that ended a process does not.
        let mut world = World::new(3, &[(5, 3600)]);
        world.spec.approved_version = Some("v2".to_owned());
        world.look();
        world.follow();
        world.held_back = Some(("p00".to_owned(), crash(1), How::Signal(6)));
        assert_eq!(word(&world.look()), "reject");
        assert_eq!(world.present.serve, "v1");
    }

    #[test]
    fn copies_go_on_beside_and_are_never_those_of_a_version_that_answers() {
        for (copied, held) in [("v3", vec!["v1", "v3"]), ("v1", vec!["v1"])] {
            let mut world = World::new(2, &[(5, 60)]);
            world.wanted.others = vec![version(copied)];
            world.wanted.mirror = Some(Mirror {
                version: copied.to_owned(),
                percent: 10,
            });
            world.look();
            let names: Vec<&str> = world.present.versions.iter().map(|v| v.name.as_str()).collect();
            assert_eq!((names, world.canary().len()), (held, 1));
        }
    }

    /// What may happen between two looks.
    #[derive(Clone, Debug)]
    enum Event {
        Passes(i64),
        Follows(usize),
        Loads(usize),
        Comes,
        Goes(usize),
        IsReady(usize, bool),
        Steps(Vec<(i32, i32)>),
        Paused(bool),
        Approved(Option<usize>),
        Wants(usize),
        /// The version is deleted, or made again.
        Exists(usize, bool),
    }

    const VERSIONS: [&str; 5] = ["v1", "v2", "v3", "v4", "v5"];
    /// It fails at half of what it is asked.
    const BAD: &str = "v3";
    /// It lacks a label.
    const LACKING: &str = "v4";

    fn events() -> impl Strategy<Value = Event> {
        let pod = || 0_usize..10;
        let steps = || prop::collection::vec((1_i32..=99, 0_i32..60), 0..4);
        prop_oneof![
            4 => (0_i64..90).prop_map(Event::Passes),
            8 => pod().prop_map(Event::Follows),
            8 => pod().prop_map(Event::Loads),
            2 => Just(Event::Comes),
            1 => pod().prop_map(Event::Goes),
            2 => (pod(), any::<bool>()).prop_map(|(pod, ready)| Event::IsReady(pod, ready)),
            1 => steps().prop_map(Event::Steps),
            1 => any::<bool>().prop_map(Event::Paused),
            1 => prop::option::weighted(0.3, 0_usize..5).prop_map(Event::Approved),
            2 => (0_usize..5).prop_map(Event::Wants),
            1 => (0_usize..5, any::<bool>()).prop_map(|(version, there)| Event::Exists(version, there)),
        ]
    }

    /// A service whose spec, pods and versions change at any moment.
    struct Service {
        world: World,
        wants: &'static str,
        exist: BTreeSet<&'static str>,
        rejected: BTreeMap<&'static str, String>,
        /// It was approved on its way: where that is taken back after its steps, nothing that was skipped is made up for.
        approved: Option<&'static str>,
        pods_made: usize,
    }

    impl Service {
        fn new() -> Self {
            let mut world = World::new(0, &[(10, 20), (50, 20)]);
            world.lacking = [LACKING].into();
            let mut service = Self {
                world,
                wants: "v1",
                exist: VERSIONS.into(),
                rejected: BTreeMap::new(),
                approved: None,
                pods_made: 0,
            };
            for _ in 0..3 {
                service.come();
            }
            service
        }

        /// A pod that has loaded what answers.
        fn come(&mut self) {
            let name = format!("p{:02}", self.pods_made);
            self.pods_made += 1;
            let mut pod = Follower {
                follows: self.world.present.clone().of_pod(&name),
                ready: true,
                loaded: Some([self.world.present.serve.clone()].into()),
                answers: self.world.present.serve.clone(),
            };
            pod.answer();
            self.world.pods.insert(name, pod);
        }

        fn pod(&mut self, number: usize) -> Option<(String, &mut Follower)> {
            let pods = self.world.pods.len().max(1);
            let (name, pod) = self.world.pods.iter_mut().nth(number % pods)?;
            Some((name.clone(), pod))
        }

        fn happens(&mut self, event: Event) {
            match event {
                Event::Passes(seconds) => self.world.seconds += seconds,
                Event::Follows(number) => {
                    let present = self.world.present.clone();
                    if let Some((name, pod)) = self.pod(number) {
                        pod.follow(present.of_pod(&name));
                    }
                }
                Event::Loads(number) => {
                    if let Some((_, pod)) = self.pod(number) {
                        pod.load();
                    }
                }
                Event::Comes if self.world.pods.len() < 10 => self.come(),
                Event::Comes => {}
                Event::Goes(number) => {
                    let name = self.pod(number).map(|(name, _)| name);
                    if let Some(name) = name.filter(|_| self.world.pods.len() > 1) {
                        self.world.pods.remove(&name);
                    }
                }
                Event::IsReady(number, ready) => {
                    if let Some((_, pod)) = self.pod(number) {
                        pod.ready = ready;
                    }
                }
                Event::Steps(steps) => self.world.spec.steps = spec(&steps).steps,
                Event::Paused(paused) => self.world.spec.paused = paused,
                Event::Approved(version) => {
                    self.world.spec.approved_version = version.map(|version| VERSIONS[version].to_owned());
                }
                Event::Wants(version) => self.wants = VERSIONS[version],
                Event::Exists(version, true) => {
                    self.exist.insert(VERSIONS[version]);
                }
                Event::Exists(version, false) => {
                    self.exist.remove(VERSIONS[version]);
                }
            }
        }

        /// A look of an operator that remembers nothing, with what must hold after it.
        fn look(&mut self) -> Result<Stand, TestCaseError> {
            let world = &mut self.world;
            let before = world.present.clone();
            let alive: BTreeSet<String> = world.pods.keys().cloned().collect();
            let ready = world.pods.iter().filter(|(_, pod)| pod.ready);
            let ready: BTreeMap<String, Follower> = ready.map(|(name, pod)| (name.clone(), pod.clone())).collect();
            world.spec.analysis = analysis();
            // Names are numbers here.
            world.back = self.wants < before.serve.as_str();
            world.rejected = self.rejected.get(self.wants).cloned();
            let canary = before.canary.as_ref().map(|canary| canary.version.name.as_str());
            let figures = did(1000, 1000, if canary == Some(BAD) { 1000 } else { 0 });
            world.figures = figures.filter(|_| canary.is_some());
            if world.spec.approved_version.as_deref() == Some(self.wants) {
                self.approved = Some(self.wants);
            }
            let approved = self.approved == Some(self.wants);
            let (by_steps, back) = (!world.spec.steps.is_empty(), world.back);
            let stand = if self.exist.contains(self.wants) {
                world.wanted = Wanted::only(version(self.wants));
                world.look()
            } else {
                world.look_for(None)
            };
            if let Some(why) = world.rejected.clone() {
                self.rejected.insert(self.wants, why);
            }
            let now = &world.present;
            if now.serve != before.serve {
                prop_assert_eq!(now.serve.as_str(), self.wants);
                prop_assert!(!self.rejected.contains_key(self.wants), "{} was rejected", self.wants);
                for (name, pod) in &ready {
                    prop_assert!(pod.has(&now.serve), "{} has not loaded {}", name, &now.serve);
                }
                let judged = by_steps && !back && !approved && !ready.is_empty();
                prop_assert!(
                    !judged || ![BAD, LACKING].contains(&self.wants),
                    "{} is no good",
                    self.wants
                );
            }
            if let Some(canary) = &now.canary {
                prop_assert_eq!(canary.version.name.as_str(), self.wants);
                prop_assert!(!self.rejected.contains_key(self.wants), "{} was rejected", self.wants);
                prop_assert!(canary.version.name != now.serve);
                let holders = canary.pods.keys().filter(|name| alive.contains(*name)).count();
                prop_assert!(
                    holders < alive.len(),
                    "{} of {} pods have {}",
                    holders,
                    alive.len(),
                    self.wants
                );
            }
            if let (Stand::Step { percent, until, .. }, Some(canary)) = (&stand, &now.canary) {
                let earlier = before
                    .canary
                    .as_ref()
                    .filter(|earlier| earlier.version == canary.version);
                let had = |name: &String| earlier.is_some_and(|earlier| earlier.pods.contains_key(name));
                let members = alive
                    .iter()
                    .filter(|name| had(name) || ready.contains_key(*name))
                    .count();
                let weight = usize::try_from(*percent).unwrap();
                let sum: usize = canary.pods.values().map(|share| usize::from(*share)).sum();
                // Nobody is answered before a pod has compared its answers.
                let heard = earlier.is_some_and(|earlier| earlier.pods.values().any(|share| *share > 0));
                let holds =
                    |pod: &Follower| pod.follows.versions.contains(&canary.version) && pod.has(&canary.version.name);
                let whole = (weight * members * 100).min(canary.pods.len() * 10_000);
                prop_assert_eq!(sum, if heard || ready.values().any(holds) { whole } else { 0 });
                // Its time goes on only while those of its pods that say something have it.
                for name in canary.pods.keys().filter(|_| until.is_some()) {
                    let has = ready.get(name).is_some_and(|pod| pod.has(&canary.version.name));
                    prop_assert!(has, "{} answers without {}", name, self.wants);
                }
            }
            Ok(stand)
        }

        /// Nobody changes anything any more, all pods are well, and what is wanted is there.
        fn settle(&mut self) -> Result<(), TestCaseError> {
            self.world.spec.paused = false;
            self.exist.insert(self.wants);
            let mut stand = self.look()?;
            for _ in 0..40 {
                self.world.follow();
                for pod in self.world.pods.values_mut() {
                    pod.ready = true;
                    pod.load();
                }
                self.world.seconds += 60;
                stand = self.look()?;
            }
            let (present, last) = (self.world.present.clone(), word(&stand));
            self.look()?;
            prop_assert_eq!(&present, &self.world.present, "it goes on and on");
            prop_assert_eq!(self.world.canary(), []);
            prop_assert_eq!(present.versions.len(), 1);
            for pod in self.world.pods.values() {
                prop_assert_eq!(&pod.answers, &present.serve);
            }
            match last {
                "done" => prop_assert_eq!(present.serve.as_str(), self.wants),
                "rolled back" => prop_assert!(self.rejected.contains_key(self.wants)),
                "too few" => prop_assert_eq!(self.world.pods.len(), 1),
                other => prop_assert!(false, "{}", other),
            }
            Ok(())
        }
    }

    proptest! {
        /// Pods come, go and end, the spec changes, versions are deleted, and operators start anew, at any moment of a rollout:
        /// a pod is left to the version before, shares are exact, nothing answers everywhere that a pod has not loaded, what was
        /// rejected or should have been does not come, and what is wanted arrives once it is quiet.
        #[test]
        fn whatever_changes_in_the_middle(events in prop::collection::vec(events(), 1..120)) {
            let mut service = Service::new();
            for event in events {
                service.happens(event);
                service.look()?;
            }
            service.settle()?;
        }
    }

    proptest! {
        /// However many pods and steps there are, and whenever pods follow, or one ends: the shares are exact, few pods have the
        /// version at first and never all, no step is left out, and a version that ended a pod reaches no other one.
        #[test]
        fn few_pods_at_first_and_no_step_left_out(
            pods in 2_usize..40,
            weights in prop::collection::btree_set(1_i32..=99, 1..4),
            durations in prop::collection::vec(0_i32..4, 4),
            follows in prop::collection::vec(any::<bool>(), 40),
            ends in prop::option::of(1_usize..20),
        ) {
            let steps: Vec<(i32, i32)> = weights.into_iter().zip(durations).collect();
            let mut world = World::new(pods, &steps);
            let (mut step, mut had, mut ended) = (0, BTreeSet::new(), false);
            for (tick, follows) in follows.iter().chain(&[true; 80]).enumerate() {
                world.seconds += 1;
                if *follows {
                    world.follow();
                }
                let before = world.canary().first().map(|(name, _)| (*name).to_owned());
                if !ended && Some(tick) == ends && world.present.serve == "v1" && let Some(pod) = before {
                    let held = world.pods[&pod].follows.generation == world.present.generation;
                    if held {
                        ended = true;
                        world.held_back = Some((pod, crash(1), How::Signal(6)));
                    }
                }
                let stand = world.look();
                let holders: Vec<(String, u16)> =
                    world.canary().into_iter().map(|(name, share)| (name.to_owned(), share)).collect();
                prop_assert!(holders.len() < pods, "one is always left");
                if let Stand::Step { step: now, percent, .. } = &stand {
                    prop_assert!(*now == step || *now == step + 1, "step {} after {}", now, step);
                    step = *now;
                    let weight = usize::try_from(*percent).unwrap();
                    let few = pods.div_ceil(10).max((pods * weight).div_ceil(100));
                    prop_assert!(holders.len() <= few);
                    let sum: usize = holders.iter().map(|(_, share)| usize::from(*share)).sum();
                    prop_assert_eq!(sum, (weight * pods * 100).min(holders.len() * 10_000));
                }
                if world.present.serve == "v2" {
                    prop_assert!(!ended && step == steps.len(), "after all steps");
                }
                had.extend(holders.into_iter().map(|(name, _)| name));
                if ended {
                    prop_assert!(["reject", "rolled back"].contains(&word(&stand)), "{}", word(&stand));
                    prop_assert_eq!(world.canary(), []);
                    prop_assert_eq!(&world.present.versions, &[version("v1")]);
                    world.held_back = None;
                }
                // Another operator, at the same moment, has nothing to add while pods have not moved.
                let written = world.present.clone();
                world.look();
                let (now, then) = (&world.present, &written);
                prop_assert_eq!((&now.serve, &now.versions), (&then.serve, &then.versions));
                prop_assert_eq!(now, then);
            }
            prop_assert_eq!(world.present.serve.as_str(), if ended { "v1" } else { "v2" });
        }
    }
}
