//! Hot update: which versions the pods of a service hold, and which of them answer.
//!
//! Two phases. First every pod that answers loads what is new beside what answers; only when all have it, it answers, on all
//! of them. A version that one pod cannot load thus reaches no client. Everything is judged anew from the assignment that is
//! there and from what pods say, so that a spec that changes in the middle, or an operator that restarts, needs no memory of
//! how far things were.

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::failure::{Failure, FailureClass};
use flywheel_contract::serving::{
    Assignment, Canary, Cleared, LoadState, MAX_CLEARED, Mirror, ServedVersion, Stats, Trial, VersionStats,
};
use flywheel_contract::split::Split;

use super::blame::{Ended, Verdict, verdict};

/// What a service is to answer with, as far as its versions can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The version of `modelVersion`.
    pub serve: ServedVersion,
    /// The other versions to hold.
    pub others: Vec<ServedVersion>,
    /// Names and percents of an experiment's variants; empty without one.
    pub shares: Vec<(String, u8)>,
    /// The experiment that they belong to, with the variants whose shares the version of `modelVersion` gets.
    pub trial: Option<Trial>,
    /// The version that gets copies.
    pub mirror: Option<Mirror>,
    /// Makes the salt of an experiment that begins differ from those of other services.
    pub salt: String,
}

impl Wanted {
    /// One version and nothing else.
    #[must_use]
    pub fn only(serve: ServedVersion) -> Self {
        Self {
            serve,
            others: Vec::new(),
            shares: Vec::new(),
            trial: None,
            mirror: None,
            salt: String::new(),
        }
    }

    /// The same without copies, and their version.
    fn without_copies(&self) -> Option<(Self, &Mirror, &ServedVersion)> {
        let mirror = self.mirror.as_ref()?;
        let version = self.others.iter().find(|other| other.name == mirror.version)?;
        let others = self.others.iter().filter(|other| *other != version);
        let without = Self {
            others: others.cloned().collect(),
            mirror: None,
            ..self.clone()
        };
        Some((without, mirror, version))
    }

    /// The shares that versions get: that of a variant that was stopped goes to the version of `modelVersion`.
    fn given(&self) -> Vec<(&str, u8)> {
        let stopped = |name: &str| {
            let mut all = self.trial.iter().flat_map(|trial| &trial.stopped);
            name != self.serve.name && all.any(|stopped| stopped.version == name)
        };
        let (mut freed, mut given) = (0, Vec::new());
        for (name, percent) in &self.shares {
            let gets = if stopped(name) { 0 } else { *percent };
            freed += percent - gets;
            given.push((name.as_str(), gets));
        }
        if let Some((_, percent)) = given.iter_mut().find(|(name, _)| *name == self.serve.name) {
            *percent += freed;
        }
        given
    }

    /// What the assignment is to be once all pods have the versions.
    fn content(&self, present: Option<&Assignment>) -> Content {
        let before = present.and_then(|a| a.split.as_ref());
        let split = (!self.shares.is_empty()).then(|| {
            let shares = self.given();
            let salt = match before {
                Some(before) => before.salt.clone(),
                // The next experiment divides its requests anew.
                None => format!("{}-{}", self.salt, present.map_or(0, |a| a.generation)),
            };
            Split::divide(&salt, before, &shares)
        });
        Content {
            serve: self.serve.name.clone(),
            versions: std::iter::once(&self.serve).chain(&self.others).cloned().collect(),
            split,
            trial: self.trial.clone(),
            mirror: self.mirror.clone(),
        }
    }
}

/// What an assignment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Name of the version that answers what nobody else does.
    pub serve: String,
    /// Versions to hold, that one first.
    pub versions: Vec<ServedVersion>,
    /// How requests are divided.
    pub split: Option<Split>,
    /// The experiment for which they are.
    pub trial: Option<Trial>,
    /// The version that gets copies.
    pub mirror: Option<Mirror>,
}

impl Content {
    /// What an assignment says.
    #[must_use]
    pub fn of(assignment: &Assignment) -> Self {
        Self {
            serve: assignment.serve.clone(),
            versions: assignment.versions.clone(),
            split: assignment.split.clone(),
            trial: assignment.trial.clone(),
            mirror: assignment.mirror.clone(),
        }
    }

    /// The assignment that says so, as this generation.
    #[must_use]
    pub fn assigned(self, generation: u64) -> Assignment {
        Assignment {
            schema_version: SCHEMA_VERSION,
            generation,
            serve: self.serve,
            versions: self.versions,
            split: self.split,
            trial: self.trial,
            mirror: self.mirror,
            canary: None,
            cleared: Vec::new(),
            window_seconds: None,
            judged_since: None,
        }
    }

    /// The same without versions that nobody is answered by.
    fn in_use(mut self) -> Self {
        let Self {
            serve, split, mirror, ..
        } = &self;
        let used = |name: &str| {
            let divided = split
                .iter()
                .flat_map(|split| &split.ranges)
                .any(|range| range.version == name);
            name == serve || divided || mirror.as_ref().is_some_and(|mirror| mirror.version == name)
        };
        let (mut first, rest): (Vec<_>, Vec<_>) = self
            .versions
            .iter()
            .filter(|version| used(&version.name))
            .cloned()
            .partition(|version| version.name == *serve);
        first.extend(rest);
        self.versions = first;
        self
    }

    /// Whether a version of the other one has the same name here and other content.
    fn remakes(&self, other: &Self) -> bool {
        let mut others = other.versions.iter();
        others.any(|version| self.versions.iter().any(|v| v.name == version.name && v != version))
    }

    /// Whether clients get the same answers from both.
    fn answers_as(&self, other: &Self) -> bool {
        self.versions.first() == other.versions.first() && self.split == other.split && self.mirror == other.mirror
    }
}

/// A pod that answers, and what it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSays {
    /// Its name.
    pub name: String,
    /// Its `/stats`; none where they cannot be read.
    pub stats: Option<Stats>,
    /// How its server ended last.
    pub ended: Option<Ended>,
}

impl PodSays {
    /// What it says of the version.
    #[must_use]
    pub fn version(&self, version: &ServedVersion) -> Option<&VersionStats> {
        let versions = &self.stats.as_ref()?.versions;
        versions
            .iter()
            .find(|v| v.name == version.name && v.digest == version.artifact.digest)
    }

    /// Whether it can answer with the version.
    #[must_use]
    pub fn holds(&self, version: &ServedVersion) -> bool {
        self.version(version).is_some_and(|v| v.state == LoadState::Ready)
    }

    fn holds_all(&self, content: &Content) -> bool {
        content.versions.iter().all(|version| self.holds(version))
    }

    /// Whether it answers so, and follows an assignment at least as new as this generation.
    fn answers_as(&self, content: &Content, generation: u64) -> bool {
        let follows = |stats: &Stats| stats.generation >= generation && stats.serving.as_ref() == Some(&content.serve);
        self.stats.as_ref().is_some_and(follows) && self.holds_all(content)
    }

    /// Why it cannot load the version or holds it back for good, as long as it follows the newest assignment.
    pub(super) fn failure(&self, version: &ServedVersion, generation: u64) -> Option<&Failure> {
        self.stats.as_ref().filter(|s| s.generation >= generation)?;
        let says = self.version(version).filter(|v| v.state == LoadState::Failed)?;
        let judged = says.crash.as_ref().map(|crash| verdict(crash, self.ended));
        says.failure
            .as_ref()
            .filter(|_| judged.is_none_or(|v| v == Verdict::Guilty))
    }

    /// A version beside the one that answers which it lacks, as long as it follows this generation.
    fn lacks<'a>(&self, content: &'a Content, generation: u64) -> Option<&'a ServedVersion> {
        self.stats.as_ref().filter(|s| s.generation >= generation)?;
        let mut beside = content.versions.iter().filter(|version| version.name != content.serve);
        beside.find(|version| !self.holds(version))
    }

    /// Crashes for which it holds versions back that are not to blame, or not for certain.
    fn clears(&self) -> impl Iterator<Item = Cleared> {
        let versions = self.stats.iter().flat_map(|stats| &stats.versions);
        versions.filter_map(|version| {
            let crash = version.crash.as_ref()?;
            (verdict(crash, self.ended) == Verdict::Cleared).then(|| Cleared {
                digest: version.digest.clone(),
                crash: crash.id.clone(),
            })
        })
    }
}

/// How far an update is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Every pod that answers does so with the version to serve.
    Settled,
    /// Pods load `version` beside `serving`.
    Loading {
        /// The version to come.
        version: String,
        /// The one that answers.
        serving: String,
        /// A pod that does not say how far it is.
        silent: Option<String>,
    },
    /// All have it and change over to it.
    Switching {
        /// The version that is to answer.
        version: String,
        /// A pod that does not say what it answers with.
        silent: Option<String>,
    },
    /// A pod cannot load `version`, or holds it back; `serving` goes on to answer.
    Failed {
        /// The field of the spec that names the version.
        field: &'static str,
        /// The version.
        version: String,
        /// The one that answers.
        serving: String,
        /// The pod.
        pod: String,
        /// What it says.
        failure: Failure,
    },
}

impl Progress {
    /// Whether only a change of the spec or of the version's files can help: time mends nothing.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        matches!(self, Self::Failed { failure, .. } if failure.reason.class() != FailureClass::Infrastructure)
    }
}

/// What the assignment is to be, and how far the pods are with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// What it says.
    pub content: Content,
    /// The version that comes by steps.
    pub canary: Option<Canary>,
    /// The crashes that it clears.
    pub cleared: Vec<Cleared>,
    /// How far it is.
    pub progress: Progress,
}

impl Update {
    fn new(content: Content, progress: Progress) -> Self {
        Self {
            content,
            canary: None,
            cleared: Vec::new(),
            progress,
        }
    }

    /// The same with a version that some pods have beside.
    pub(super) fn beside(self, canary: Option<Canary>, present: &Assignment, pods: &[PodSays]) -> Self {
        let beside = canary.as_ref().map(|canary| &canary.version);
        let held: Vec<&ServedVersion> = self.content.versions.iter().chain(beside).collect();
        Self {
            cleared: cleared(&held, Some(present), pods),
            canary,
            ..self
        }
    }

    /// The same, but nothing changes.
    pub(super) fn held(self, present: &Assignment) -> Self {
        Self {
            content: Content::of(present),
            ..self
        }
    }

    /// The same, but the assignment stays as it is, with its canary.
    #[must_use]
    pub fn postponed(self, present: &Assignment) -> Self {
        Self {
            canary: present.canary.clone(),
            cleared: present.cleared.clone(),
            ..self.held(present)
        }
    }
}

/// Whether pods must be asked: not while all of them are known to follow (`settled`) an assignment that is as wanted. A pod
/// that starts later begins with the assignment as it is.
#[must_use]
pub fn must_ask(wanted: Option<&Wanted>, present: Option<&Assignment>, settled: bool) -> bool {
    let Some(assignment) = present.filter(|a| a.serving().is_some()) else {
        return true;
    };
    !settled || wanted.is_some_and(|wanted| wanted.content(present) != Content::of(assignment))
}

/// The next assignment. `wanted`: what is to be served, where it can be. `pods`: those that answer. `None` where there is
/// nothing to serve yet.
///
/// Copies keep nobody from an answer: the versions that answer change as if there were none, and the version that gets
/// copies comes when they have.
#[must_use]
pub fn update(wanted: Option<&Wanted>, present: Option<&Assignment>, pods: &[PodSays]) -> Option<Update> {
    let update = changed(wanted, present, pods)?;
    let held: Vec<&ServedVersion> = update.content.versions.iter().collect();
    Some(Update {
        cleared: cleared(&held, present, pods),
        ..update
    })
}

/// The crashes that are cleared: those that were stay so as long as their versions are held.
fn cleared(versions: &[&ServedVersion], present: Option<&Assignment>, pods: &[PodSays]) -> Vec<Cleared> {
    let held = |cleared: &Cleared| versions.iter().any(|v| v.artifact.digest == cleared.digest);
    let before = present.iter().flat_map(|assignment| &assignment.cleared);
    let mut all: Vec<Cleared> = before.filter(|cleared| held(cleared)).cloned().collect();
    for cleared in pods.iter().flat_map(PodSays::clears).filter(held) {
        if !all.contains(&cleared) {
            all.push(cleared);
        }
    }
    all.split_off(all.len().saturating_sub(MAX_CLEARED))
}

fn changed(wanted: Option<&Wanted>, present: Option<&Assignment>, pods: &[PodSays]) -> Option<Update> {
    let Some((without, mirror, version)) = wanted.and_then(Wanted::without_copies) else {
        return answering(wanted, present, pods);
    };
    let now = present.map(Content::of);
    let apart = present.map(|assignment| {
        let mut now = Content::of(assignment);
        now.mirror = None;
        let only_copied = !now.clone().in_use().versions.contains(version);
        now.versions.retain(|held| held != version || !only_copied);
        now.assigned(assignment.generation)
    });
    let Update {
        mut content, progress, ..
    } = answering(Some(&without), apart.as_ref(), pods)?;
    let held = now.as_ref().is_some_and(|now| now.versions.contains(version));
    let waits = matches!(progress, Progress::Loading { .. } | Progress::Failed { .. });
    // Not loaded beside what comes first, but not let go for it either.
    if (held || !waits) && !content.versions.contains(version) {
        content.versions.push(version.clone());
    }
    if waits {
        return Some(Update::new(content, progress));
    }
    let copies = now.as_ref().is_some_and(|now| now.mirror.as_ref() == Some(mirror)) && held;
    if copies || pods.iter().all(|pod| pod.holds(version)) {
        content.mirror = Some(mirror.clone());
    }
    let generation = present.map_or(0, |assignment| assignment.generation);
    let failed = pods
        .iter()
        .filter(|_| held)
        .find_map(|pod| Some((pod, pod.failure(version, generation)?)));
    let progress = match (progress, failed) {
        (Progress::Settled, Some((pod, failure))) => Progress::Failed {
            field: "mirror.modelVersion",
            version: version.name.clone(),
            serving: content.serve.clone(),
            pod: pod.name.clone(),
            failure: failure.clone(),
        },
        (Progress::Settled, None) if content.mirror.is_none() => Progress::Loading {
            version: version.name.clone(),
            serving: content.serve.clone(),
            silent: silent(pods),
        },
        (Progress::Settled, None) if now.as_ref() == Some(&content) => changing(&content, pods, generation),
        (Progress::Settled, None) => changing(&content, pods, u64::MAX),
        (progress, _) => progress,
    };
    Some(Update::new(content, progress))
}

/// The next assignment of what answers.
fn answering(wanted: Option<&Wanted>, present: Option<&Assignment>, pods: &[PodSays]) -> Option<Update> {
    let Some(assignment) = present.filter(|a| a.serving().is_some()) else {
        let content = wanted?.content(None);
        let progress = changing(&content, pods, u64::MAX);
        return Some(Update::new(content, progress));
    };
    let now = Content::of(assignment);
    let Some(wanted) = wanted else {
        // Nothing is wanted that can be served: what answers goes on, and nothing is loaded beside it.
        let content = now.in_use();
        let progress = changing(&content, pods, 0);
        return Some(Update::new(content, progress));
    };
    let next = wanted.content(present);
    let failed = next.versions.iter().find_map(|version| {
        let listed = now.versions.contains(version);
        let failure = |pod: &PodSays| Some((pod.name.clone(), pod.failure(version, assignment.generation)?.clone()));
        let (pod, failure) = pods.iter().filter(|_| listed).find_map(failure)?;
        Some(Progress::Failed {
            field: if *version == wanted.serve {
                "modelVersion"
            } else {
                "experiment.variants"
            },
            version: version.name.clone(),
            serving: now.serve.clone(),
            pod,
            failure,
        })
    });
    let loading = |version: &str| Progress::Loading {
        version: version.to_owned(),
        serving: now.serve.clone(),
        silent: silent(pods),
    };
    if next == now {
        // A pod that came later, or came back, may be without a version that all had.
        let lacking = pods.iter().find_map(|pod| pod.lacks(&next, assignment.generation));
        let progress = match (failed, lacking) {
            (Some(failed), _) => failed,
            (None, Some(version)) => loading(&version.name),
            (None, None) => changing(&next, pods, assignment.generation),
        };
        return Some(Update::new(next, progress));
    }
    // Where nobody answers there is nothing to keep. A version that was made anew under its name cannot be held beside itself:
    // each pod changes over once it has it.
    if pods.iter().all(|pod| pod.holds_all(&next)) || next.remakes(&now) {
        // Where only what nobody is answered by is let go, no pod needs to have heard of it.
        let generation = if next.answers_as(&now) { 0 } else { u64::MAX };
        let progress = changing(&next, pods, generation);
        return Some(Update::new(next, progress));
    }
    let missing = next
        .versions
        .iter()
        .find(|version| !pods.iter().all(|pod| pod.holds(version)));
    let progress = failed.unwrap_or_else(|| loading(missing.map_or("", |version| &version.name)));
    // Copies to a version that is not wanted any more end.
    let mut content = Content { mirror: None, ..now }.in_use();
    for version in next.versions {
        if !content.versions.contains(&version) {
            content.versions.push(version);
        }
    }
    Some(Update::new(content, progress))
}

/// How far pods are that are to answer so, and do once they follow this generation.
fn changing(content: &Content, pods: &[PodSays], generation: u64) -> Progress {
    if pods.iter().all(|pod| pod.answers_as(content, generation)) {
        Progress::Settled
    } else {
        Progress::Switching {
            version: content.serve.clone(),
            silent: silent(pods),
        }
    }
}

fn silent(pods: &[PodSays]) -> Option<String> {
    pods.iter().find(|pod| pod.stats.is_none()).map(|pod| pod.name.clone())
}

#[cfg(test)]
pub(super) mod tests {
    use flywheel_contract::failure::FailureReason;
    use flywheel_contract::scalar::Digest;
    use flywheel_contract::serving::Crash;
    use flywheel_contract::trainer::ArtifactRef;
    use proptest::prelude::*;

    use super::*;
    use crate::serving::How;

    /// A version of this name; its digest follows from the last letter.
    pub(in crate::serving) fn version(name: &str) -> ServedVersion {
        let digit = name.bytes().last().map_or('0', char::from);
        ServedVersion {
            name: name.to_owned(),
            artifact: ArtifactRef {
                uri: format!("s3://models/{name}").as_str().into(),
                digest: Digest::sha256(&digit.to_string().repeat(64)),
            },
        }
    }

    fn assigned(generation: u64, versions: &[&str]) -> Assignment {
        Assignment {
            schema_version: SCHEMA_VERSION,
            generation,
            serve: versions[0].to_owned(),
            versions: versions.iter().map(|name| version(name)).collect(),
            split: None,
            mirror: None,
            canary: None,
            cleared: Vec::new(),
            window_seconds: None,
            judged_since: None,
            trial: None,
        }
    }

    /// A pod that follows `generation`, answers with `serving` and has these versions.
    fn pod(name: &str, generation: u64, serving: &str, versions: &[(&str, LoadState)]) -> PodSays {
        let versions = versions
            .iter()
            .map(|(name, state)| VersionStats {
                name: (*name).to_owned(),
                digest: version(name).artifact.digest,
                state: *state,
                precision: None,
                agreement: None,
                likeness: None,
                labels: None,
                failure: (*state == LoadState::Failed)
                    .then(|| Failure::new(FailureReason::DigestMismatch, "a file differs")),
                crash: None,
                figures: None,
                copies: None,
            })
            .collect();
        PodSays {
            name: name.to_owned(),
            stats: Some(Stats {
                schema_version: SCHEMA_VERSION,
                ready: true,
                generation,
                serving: Some(serving.to_owned()),
                versions,
                answered: [0; 3],
                in_flight: 0,
                uptime_seconds: 1.0,
                load: None,
            }),
            ended: None,
        }
    }

    fn silent(name: &str) -> PodSays {
        PodSays {
            name: name.to_owned(),
            stats: None,
            ended: None,
        }
    }

    fn word(progress: &Progress) -> &'static str {
        match progress {
            Progress::Settled => "settled",
            Progress::Loading { silent: None, .. } => "loading",
            Progress::Loading { .. } => "loading, one is silent",
            Progress::Switching { silent: None, .. } => "switching",
            Progress::Switching { .. } => "switching, one is silent",
            Progress::Failed { .. } => "failed",
        }
    }

    #[test]
    fn each_situation_has_its_assignment() {
        use LoadState::{Downloading, Failed, Ready, Waiting};
        let old = |name: &str| pod(name, 1, "v1", &[("v1", Ready)]);
        let both = |name: &str| pod(name, 2, "v1", &[("v1", Ready), ("v2", Ready)]);
        let new = |name: &str| pod(name, 3, "v2", &[("v2", Ready)]);
        type Row<'a> = (
            &'a str,
            Option<&'a str>,
            Option<Assignment>,
            Vec<PodSays>,
            Option<(&'a str, &'a [&'a str])>,
        );
        let table: Vec<Row<'_>> = vec![
            ("nothing to serve", None, None, vec![], None),
            ("the first", Some("v1"), None, vec![], Some(("settled", &["v1"]))),
            (
                "the assignment was deleted",
                Some("v2"),
                None,
                vec![old("a")],
                Some(("switching", &["v2"])),
            ),
            (
                "as wanted",
                Some("v1"),
                Some(assigned(1, &["v1"])),
                vec![old("a"), old("b")],
                Some(("settled", &["v1"])),
            ),
            (
                "another one is wanted",
                Some("v2"),
                Some(assigned(1, &["v1"])),
                vec![old("a"), old("b")],
                Some(("loading", &["v1", "v2"])),
            ),
            (
                "another one is wanted and nobody answers",
                Some("v2"),
                Some(assigned(1, &["v1"])),
                vec![],
                Some(("settled", &["v2"])),
            ),
            (
                "one pod loads",
                Some("v2"),
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a"), pod("b", 2, "v1", &[("v1", Ready), ("v2", Downloading)])],
                Some(("loading", &["v1", "v2"])),
            ),
            (
                "one pod has not heard of it",
                Some("v2"),
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a"), old("b")],
                Some(("loading", &["v1", "v2"])),
            ),
            (
                "one pod says nothing",
                Some("v2"),
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a"), silent("b")],
                Some(("loading, one is silent", &["v1", "v2"])),
            ),
            (
                "all have it",
                Some("v2"),
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a"), both("b")],
                Some(("switching", &["v2"])),
            ),
            (
                "one has changed over",
                Some("v2"),
                Some(assigned(3, &["v2"])),
                vec![new("a"), both("b")],
                Some(("switching", &["v2"])),
            ),
            (
                "one has changed over, one is silent",
                Some("v2"),
                Some(assigned(3, &["v2"])),
                vec![new("a"), silent("b")],
                Some(("switching, one is silent", &["v2"])),
            ),
            (
                "all have changed over",
                Some("v2"),
                Some(assigned(3, &["v2"])),
                vec![new("a"), new("b")],
                Some(("settled", &["v2"])),
            ),
            (
                "one cannot load it",
                Some("v2"),
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a"), pod("b", 2, "v1", &[("v1", Ready), ("v2", Failed)])],
                Some(("failed", &["v1", "v2"])),
            ),
            (
                "one could not load it an assignment ago",
                Some("v2"),
                Some(assigned(4, &["v1", "v2"])),
                vec![pod("a", 2, "v1", &[("v1", Ready), ("v2", Failed)])],
                Some(("loading", &["v1", "v2"])),
            ),
            (
                "back in the middle",
                Some("v1"),
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a")],
                Some(("settled", &["v1"])),
            ),
            (
                "no version can be served any more",
                None,
                Some(assigned(2, &["v1", "v2"])),
                vec![both("a")],
                Some(("settled", &["v1"])),
            ),
            (
                "a third one in the middle",
                Some("v3"),
                Some(assigned(2, &["v1", "v2"])),
                vec![pod("a", 2, "v1", &[("v1", Ready), ("v2", Waiting)])],
                Some(("loading", &["v1", "v3"])),
            ),
        ];
        for (case, wanted, present, pods, expected) in table {
            let wanted = wanted.map(|name| Wanted::only(version(name)));
            let got = update(wanted.as_ref(), present.as_ref(), &pods);
            let seen = got.as_ref().map(|update| {
                let names: Vec<&str> = update.content.versions.iter().map(|v| v.name.as_str()).collect();
                assert_eq!(names[0], update.content.serve, "{case}: what answers is held");
                (word(&update.progress), names)
            });
            let expected = expected.map(|(word, names)| (word, names.to_vec()));
            assert_eq!(seen, expected, "{case}");
        }
    }

    #[test]
    fn the_same_name_with_other_content_is_another_version() {
        let mut again = version("v1");
        again.artifact.digest = Digest::sha256(&"f".repeat(64));
        let present = assigned(1, &["v1"]);
        let pods = [pod("a", 1, "v1", &[("v1", LoadState::Ready)])];
        let again = Wanted::only(again);
        assert!(must_ask(Some(&again), Some(&present), true));
        let update = update(Some(&again), Some(&present), &pods).unwrap();
        assert_eq!(word(&update.progress), "switching");
        assert_eq!(
            update.content.versions,
            [again.serve],
            "a pod cannot hold both under one name"
        );
    }

    #[test]
    fn pods_are_asked_only_while_something_changes() {
        let present = assigned(1, &["v1"]);
        let (one, two) = (Wanted::only(version("v1")), Wanted::only(version("v2")));
        for (wanted, present, settled, expected) in [
            (Some(&one), Some(&present), true, false),
            (Some(&one), Some(&present), false, true),
            (Some(&two), Some(&present), true, true),
            (None, Some(&present), true, false),
            (Some(&one), None, true, true),
        ] {
            assert_eq!(must_ask(wanted, present, settled), expected, "{wanted:?} {settled}");
        }
    }

    #[test]
    fn only_what_time_may_mend_is_waited_for() {
        for (reason, stalled) in [
            (FailureReason::DigestMismatch, true),
            (FailureReason::LoadCrashed, true),
            (FailureReason::ExecutionCrashed, true),
            (FailureReason::OutOfMemory, true),
            (FailureReason::StorageUnavailable, false),
        ] {
            let progress = Progress::Failed {
                field: "modelVersion",
                version: "v2".to_owned(),
                serving: "v1".to_owned(),
                pod: "a".to_owned(),
                failure: Failure::new(reason, "why"),
            };
            assert_eq!(progress.is_stalled(), stalled, "{reason:?}");
        }
    }

    /// An experiment of these shares beside `v1`, with a mirror or not.
    fn experiment(shares: &[(&str, u8)], mirror: Option<&str>) -> Wanted {
        let names = shares.iter().map(|(name, _)| *name).chain(mirror);
        Wanted {
            others: names.filter(|name| *name != "v1").map(version).collect(),
            shares: shares
                .iter()
                .map(|(name, percent)| ((*name).to_owned(), *percent))
                .collect(),
            mirror: mirror.map(|version| Mirror {
                version: version.to_owned(),
                percent: 10,
            }),
            salt: "uid".to_owned(),
            ..Wanted::only(version("v1"))
        }
    }

    #[test]
    fn what_a_stopped_variant_got_goes_to_the_version_of_model_version_alone() {
        let stopped = |names: &[&str]| {
            let stopped = names.iter().map(|name| flywheel_contract::serving::Stopped {
                version: (*name).to_owned(),
                why: "it failed".to_owned(),
            });
            Wanted {
                trial: Some(Trial {
                    id: "e".to_owned(),
                    stopped: stopped.collect(),
                }),
                ..experiment(&[("v1", 50), ("v2", 30), ("v3", 20)], None)
            }
        };
        let before = update(Some(&stopped(&[])), None, &[]).unwrap();
        let present = assigned_as(1, &before);
        for (names, expected) in [
            (&["v2"][..], [8000, 0, 2000]),
            (&["v2", "v3"], [10_000, 0, 0]),
            // It answers what nobody else does.
            (&["v1"], [5000, 3000, 2000]),
        ] {
            let after = update(Some(&stopped(names)), Some(&present), &[]).unwrap();
            let (before, split) = (before.content.split.as_ref().unwrap(), after.content.split.unwrap());
            assert_eq!(
                ["v1", "v2", "v3"].map(|name| split.buckets(name)),
                expected,
                "{names:?}"
            );
            for bucket in 0..10_000 {
                let (before, after) = (before.version(bucket), split.version(bucket));
                assert!(
                    before == after || after == Some("v1"),
                    "{bucket} moved from {before:?} to {after:?}"
                );
            }
        }
    }

    #[test]
    fn copies_keep_nobody_from_an_answer() {
        use LoadState::{Failed, Loading, Ready};
        let wanted = |serve: &str| Wanted {
            serve: version(serve),
            ..experiment(&[], Some("m"))
        };
        // Copies wait for the version that answers.
        let present = assigned(1, &["v1"]);
        let first = update(
            Some(&wanted("v2")),
            Some(&present),
            &[pod("a", 1, "v1", &[("v1", Ready)])],
        )
        .unwrap();
        assert_eq!(names(&first), ["v1", "v2"]);
        let both = [pod("a", 1, "v1", &[("v1", Ready), ("v2", Ready)])];
        let second = update(Some(&wanted("v2")), Some(&assigned_as(2, &first)), &both).unwrap();
        assert_eq!(
            (names(&second), second.content.mirror.is_none()),
            (vec!["v2", "m"], true)
        );
        // They cannot be made, or not yet: it is told, and the version before comes back all the same.
        let present = assigned_as(3, &second);
        for (state, told) in [(Failed, "failed"), (Loading, "loading")] {
            let pods = [pod("a", 3, "v2", &[("v2", Ready), ("m", state)])];
            let stays = update(Some(&wanted("v2")), Some(&present), &pods).unwrap();
            assert_eq!((&stays.content, word(&stays.progress)), (&second.content, told));
            let back = update(Some(&wanted("v1")), Some(&present), &pods).unwrap();
            assert_eq!((names(&back), word(&back.progress)), (vec!["v2", "v1", "m"], "loading"));
            let pods = [pod("a", 4, "v2", &[("v2", Ready), ("v1", Ready), ("m", state)])];
            let over = update(Some(&wanted("v1")), Some(&assigned_as(4, &back)), &pods).unwrap();
            assert_eq!((names(&over), word(&over.progress)), (vec!["v1", "m"], "switching"));
        }
        // All have it: copies are made, and go on while a pod that came later still loads it.
        let pods = [pod("a", 3, "v2", &[("v2", Ready), ("m", Ready)])];
        let copying = update(Some(&wanted("v2")), Some(&present), &pods).unwrap();
        assert_eq!(
            (copying.content.mirror.as_ref(), word(&copying.progress)),
            (wanted("v2").mirror.as_ref(), "switching")
        );
        let present = assigned_as(4, &copying);
        let later = [
            pod("a", 4, "v2", &[("v2", Ready), ("m", Ready)]),
            pod("b", 4, "v2", &[("v2", Ready), ("m", Loading)]),
        ];
        assert_eq!(
            update(Some(&wanted("v2")), Some(&present), &later).unwrap().content,
            copying.content
        );
        let settled = update(Some(&wanted("v2")), Some(&present), &later[..1]).unwrap();
        assert_eq!(
            (settled.content, settled.progress),
            (copying.content, Progress::Settled)
        );
    }

    fn names(update: &Update) -> Vec<&str> {
        update
            .content
            .versions
            .iter()
            .map(|version| version.name.as_str())
            .collect()
    }

    fn assigned_as(generation: u64, update: &Update) -> Assignment {
        update.content.clone().assigned(generation)
    }

    #[test]
    fn an_experiment_begins_once_all_pods_have_its_versions() {
        use LoadState::{Loading, Ready};
        let wanted = experiment(&[("v1", 50), ("v2", 50)], Some("v3"));
        let present = assigned(1, &["v1"]);
        let loading = update(Some(&wanted), Some(&present), &[pod("a", 1, "v1", &[("v1", Ready)])]).unwrap();
        assert_eq!(word(&loading.progress), "loading");
        assert_eq!((&loading.content.split, &loading.content.mirror), (&None, &None));
        assert_eq!(names(&loading), ["v1", "v2"], "copies wait");

        let present = assigned_as(2, &loading);
        let partly = pod("a", 2, "v1", &[("v1", Ready), ("v2", Loading)]);
        let still = update(Some(&wanted), Some(&present), &[partly]).unwrap();
        assert_eq!((&still.content, word(&still.progress)), (&loading.content, "loading"));
        let all = [pod("a", 2, "v1", &[("v1", Ready), ("v2", Ready)])];
        let divided = update(Some(&wanted), Some(&present), &all).unwrap();
        assert_eq!(
            (word(&divided.progress), names(&divided)),
            ("switching", vec!["v1", "v2", "v3"])
        );
        let split = divided.content.split.clone().unwrap();
        assert_eq!([split.buckets("v1"), split.buckets("v2")], [5000, 5000]);
        let all = [pod("a", 3, "v1", &[("v1", Ready), ("v2", Ready), ("v3", Ready)])];
        let begun = update(Some(&wanted), Some(&assigned_as(3, &divided)), &all).unwrap();
        assert_eq!(
            (&begun.content.mirror, &begun.content.split),
            (&wanted.mirror, &divided.content.split)
        );

        let running = assigned_as(4, &begun);
        assert!(!must_ask(Some(&wanted), Some(&running), true));
        let behind = update(Some(&wanted), Some(&running), &all).unwrap();
        assert_eq!(word(&behind.progress), "switching", "it has not heard of it");
        let all = [pod("a", 4, "v1", &[("v1", Ready), ("v2", Ready), ("v3", Ready)])];
        let settled = update(Some(&wanted), Some(&running), &all).unwrap();
        assert_eq!(
            (&settled.content, settled.progress),
            (&begun.content, Progress::Settled)
        );

        // Other percents: at once, and only as many move as must.
        let more = experiment(&[("v1", 40), ("v2", 60)], Some("v3"));
        let moved = update(Some(&more), Some(&running), &all)
            .unwrap()
            .content
            .split
            .unwrap();
        assert_eq!((moved.buckets("v2"), &moved.salt), (6000, &split.salt));
        assert!(
            (5000..10_000).all(|bucket| moved.version(bucket) == Some("v2")),
            "who had it keeps it"
        );

        // Its end: the others are let go. The next one divides anew.
        let over = update(Some(&Wanted::only(version("v1"))), Some(&running), &all).unwrap();
        assert_eq!((over.content.split.is_none(), over.content.versions.len()), (true, 1));
        let ended = assigned_as(9, &over);
        let next = update(Some(&wanted), Some(&ended), &all)
            .unwrap()
            .content
            .split
            .unwrap();
        assert_ne!(next.salt, split.salt);
    }

    /// A pod of an experiment that came back and holds `v2` back, after its server ended so.
    fn came_back(name: &str, generation: u64, times: u32, how: How) -> PodSays {
        let mut pod = pod(
            name,
            generation,
            "v1",
            &[("v1", LoadState::Ready), ("v2", LoadState::Failed)],
        );
        let held = &mut pod.stats.as_mut().unwrap().versions[1];
        held.failure = Some(Failure::new(FailureReason::ExecutionCrashed, "the server ended"));
        held.crash = Some(Crash {
            id: format!("{name}-{times}"),
            at: 100,
            times,
            together: false,
            last: true,
        });
        let at = jiff::Timestamp::from_second(100).unwrap();
        pod.ended = Some(Ended { how, at });
        pod
    }

    #[test]
    fn a_version_is_tried_once_more_where_it_may_be_innocent() {
        use LoadState::{Loading, Ready};
        let wanted = experiment(&[("v1", 50), ("v2", 50)], None);
        let all = |generation| pod("a", generation, "v1", &[("v1", Ready), ("v2", Ready)]);
        let divided = update(Some(&wanted), Some(&assigned(1, &["v1"])), &[all(1)]).unwrap();
        let running = assigned_as(3, &divided);

        // It ended the process: it stays held back there, and all else goes on.
        let guilty = [all(3), came_back("b", 3, 1, How::Signal(6))];
        let held = update(Some(&wanted), Some(&running), &guilty).unwrap();
        assert_eq!(
            (&held.content, &held.cleared, word(&held.progress)),
            (&divided.content, &vec![], "failed")
        );
        let unheard = update(Some(&wanted), Some(&assigned_as(4, &divided)), &guilty).unwrap();
        assert_eq!(word(&unheard.progress), "switching", "it has not heard of the newest");

        // Memory ran out: whose fault that was nobody knows.
        let doubt = [all(3), came_back("b", 3, 1, How::OutOfMemory)];
        let cleared = update(Some(&wanted), Some(&running), &doubt).unwrap();
        let crash = Cleared {
            digest: version("v2").artifact.digest,
            crash: "b-1".to_owned(),
        };
        assert_eq!(
            (&cleared.content, &cleared.cleared, word(&cleared.progress)),
            (&divided.content, &vec![crash.clone()], "loading")
        );
        let next = Assignment {
            cleared: cleared.cleared,
            ..assigned_as(4, &divided)
        };
        assert!(!must_ask(Some(&wanted), Some(&next), true));
        // Nothing changes while it is tried, nor once it runs, nor while nobody is asked.
        let trying = [all(4), pod("b", 4, "v1", &[("v1", Ready), ("v2", Loading)])];
        for (pods, expected) in [
            (&doubt[..], "switching"),
            (&trying[..], "loading"),
            (&[all(4), all(4)][..], "settled"),
            (&[][..], "settled"),
        ] {
            let update = update(Some(&wanted), Some(&next), pods).unwrap();
            assert_eq!(
                (&update.content, &update.cleared, word(&update.progress)),
                (&divided.content, &next.cleared, expected)
            );
        }
        // Once more, and it is the version.
        let again = [all(4), came_back("b", 4, 2, How::OutOfMemory)];
        let held = update(Some(&wanted), Some(&next), &again).unwrap();
        assert_eq!((&held.cleared, word(&held.progress)), (&next.cleared, "failed"));
        // With the version goes what is remembered of it.
        let over = update(Some(&Wanted::only(version("v1"))), Some(&next), &again).unwrap();
        assert_eq!(
            (over.cleared, names(&Update::new(over.content, over.progress)).len()),
            (vec![], 1)
        );
    }

    #[test]
    fn a_mirror_is_judged_like_a_variant() {
        use LoadState::Ready;
        let wanted = experiment(&[], Some("v2"));
        let all = |generation| pod("a", generation, "v1", &[("v1", Ready), ("v2", Ready)]);
        let copying = update(Some(&wanted), Some(&assigned(1, &["v1", "v2"])), &[all(1)]).unwrap();
        assert!(copying.content.mirror.is_some());
        let running = assigned_as(2, &copying);
        for (how, expected, cleared) in [(How::Signal(11), "failed", 0), (How::OutOfMemory, "switching", 1)] {
            let update = update(Some(&wanted), Some(&running), &[all(2), came_back("b", 2, 1, how)]).unwrap();
            assert_eq!(
                (&update.content, update.cleared.len(), word(&update.progress)),
                (&copying.content, cleared, expected)
            );
        }
    }

    #[test]
    fn no_more_crashes_are_cleared_than_an_assignment_may_hold() {
        let many: Vec<PodSays> = (0..MAX_CLEARED + 5)
            .map(|n| came_back(&n.to_string(), 1, 1, How::OutOfMemory))
            .collect();
        let update = update(None, Some(&assigned(1, &["v1", "v2"])), &many).unwrap();
        assert_eq!(update.content.versions.len(), 1, "nobody is answered by v2");
        assert_eq!(update.cleared, []);
        let wanted = experiment(&[("v1", 50), ("v2", 50)], None);
        let update = super::update(Some(&wanted), Some(&assigned(1, &["v1", "v2"])), &many).unwrap();
        assert_eq!(update.cleared.len(), MAX_CLEARED);
    }

    #[test]
    fn what_cannot_be_served_any_more_stops_nothing_that_runs() {
        use LoadState::Ready;
        let wanted = experiment(&[("v1", 50), ("v2", 50)], None);
        let all = [pod("a", 9, "v1", &[("v1", Ready), ("v2", Ready)])];
        let running = assigned_as(3, &update(Some(&wanted), Some(&assigned(1, &["v1"])), &all).unwrap());
        let held = update(None, Some(&running), &all).unwrap();
        assert_eq!(
            (&held.content, held.progress),
            (&Content::of(&running), Progress::Settled)
        );
        // Another experiment in the middle of this one: this one runs on until all pods have the other's versions.
        let other = experiment(&[("v1", 90), ("v3", 10)], None);
        let loading = update(Some(&other), Some(&running), &all).unwrap();
        assert_eq!(loading.content.split, running.split);
        let names: Vec<&str> = loading.content.versions.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["v1", "v2", "v3"]);
    }

    fn states() -> impl Strategy<Value = LoadState> {
        use LoadState::{Downloading, Failed, Loading, Ready, Waiting};
        prop::sample::select(vec![Waiting, Downloading, Loading, Ready, Failed])
    }

    proptest! {
        /// Whatever pods say: what answers changes only to a version that every one of them has, and what they answer with
        /// is held on until then.
        #[test]
        fn no_pod_is_told_to_answer_with_what_it_does_not_hold(
            wanted in prop::option::of(prop::sample::select(vec!["v1", "v2", "v3"])),
            second in prop::option::of(prop::sample::select(vec!["v2", "v3"])),
            says in prop::collection::vec(prop::option::of((0_u64..5, states(), states(), states())), 1..5),
        ) {
            let wanted = wanted.map(|name| Wanted::only(version(name)));
            let listed: Vec<&str> = std::iter::once("v1").chain(second).collect();
            let present = assigned(3, &listed);
            let pods: Vec<PodSays> = says.iter().enumerate().map(|(i, says)| match says {
                Some((generation, one, two, three)) =>
                    pod(&i.to_string(), *generation, "v1", &[("v1", *one), ("v2", *two), ("v3", *three)]),
                None => silent(&i.to_string()),
            }).collect();
            let update = update(wanted.as_ref(), Some(&present), &pods).unwrap();
            let content = &update.content;
            let serving = content.versions.iter().find(|v| v.name == content.serve).unwrap();
            if content.serve != "v1" {
                prop_assert!(pods.iter().all(|pod| pod.holds(serving)));
                prop_assert_eq!(Some(serving), wanted.as_ref().map(|wanted| &wanted.serve));
            }
            prop_assert!(content.versions.len() <= 2);
            if update.progress == Progress::Settled {
                prop_assert!(pods.iter().all(|pod| pod.answers_as(content, 0)));
            }
        }
    }
}
