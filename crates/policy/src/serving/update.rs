//! Hot update: which versions the pods of a service hold, and which one answers.
//!
//! Two phases. First every pod that answers loads the new version beside the one that answers; only when all have it, it is
//! the one that answers, on all of them. A version that one pod cannot load thus reaches no client. Everything is judged anew
//! from the assignment that is there and from what pods say, so that a spec that changes in the middle, or an operator that
//! restarts, needs no memory of how far things were.

use flywheel_contract::failure::{Failure, FailureClass};
use flywheel_contract::serving::{Assignment, LoadState, ServedVersion, Stats, VersionStats};

/// A pod that answers, and what it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSays {
    /// Its name.
    pub name: String,
    /// Its `/stats`; none where they cannot be read.
    pub stats: Option<Stats>,
}

impl PodSays {
    fn version(&self, version: &ServedVersion) -> Option<&VersionStats> {
        let versions = &self.stats.as_ref()?.versions;
        versions
            .iter()
            .find(|v| v.name == version.name && v.digest == version.artifact.digest)
    }

    fn holds(&self, version: &ServedVersion) -> bool {
        self.version(version).is_some_and(|v| v.state == LoadState::Ready)
    }

    fn answers_with(&self, version: &ServedVersion) -> bool {
        self.holds(version) && self.stats.as_ref().and_then(|s| s.serving.as_ref()) == Some(&version.name)
    }

    /// Why it cannot load the version, as long as it follows the newest assignment.
    fn failure(&self, version: &ServedVersion, generation: u64) -> Option<&Failure> {
        self.stats.as_ref().filter(|s| s.generation >= generation)?;
        self.version(version)
            .filter(|v| v.state == LoadState::Failed)?
            .failure
            .as_ref()
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
    /// A pod cannot load `version`; `serving` goes on to answer.
    Failed {
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
    /// Name of the version that answers.
    pub serve: String,
    /// Versions to hold.
    pub versions: Vec<ServedVersion>,
    /// How far it is.
    pub progress: Progress,
}

impl Update {
    fn only(version: &ServedVersion, progress: Progress) -> Self {
        Self {
            serve: version.name.clone(),
            versions: vec![version.clone()],
            progress,
        }
    }
}

/// Whether pods must be asked: not while all of them are known to follow (`settled`) an assignment that is as wanted. A pod
/// that starts later begins with the assignment as it is.
#[must_use]
pub fn must_ask(wanted: Option<&ServedVersion>, present: Option<&Assignment>, settled: bool) -> bool {
    let serving = present.and_then(Assignment::serving);
    !settled || serving.is_none() || wanted.is_some_and(|wanted| serving != Some(wanted))
}

/// The next assignment. `wanted`: the version to serve, where it can be served. `pods`: those that answer. `None` where there
/// is nothing to serve yet.
#[must_use]
pub fn update(wanted: Option<&ServedVersion>, present: Option<&Assignment>, pods: &[PodSays]) -> Option<Update> {
    let Some((assignment, serving)) = present.and_then(|a| Some((a, a.serving()?))) else {
        return wanted.map(|wanted| Update::only(wanted, switching(wanted, pods)));
    };
    let Some(wanted) = wanted.filter(|wanted| *wanted != serving) else {
        // Also where nothing is wanted that can be served: what answers goes on, and nothing is loaded beside it.
        return Some(Update::only(serving, switching(serving, pods)));
    };
    if pods.is_empty() {
        // Nobody answers, so there is nothing to keep.
        return Some(Update::only(wanted, Progress::Settled));
    }
    if assignment.versions.contains(wanted) {
        if pods.iter().all(|pod| pod.holds(wanted)) {
            return Some(Update::only(wanted, switching(wanted, pods)));
        }
        let failed = pods
            .iter()
            .find_map(|pod| Some((pod, pod.failure(wanted, assignment.generation)?)));
        if let Some((pod, failure)) = failed {
            return Some(Update {
                serve: serving.name.clone(),
                versions: vec![serving.clone(), wanted.clone()],
                progress: Progress::Failed {
                    version: wanted.name.clone(),
                    serving: serving.name.clone(),
                    pod: pod.name.clone(),
                    failure: failure.clone(),
                },
            });
        }
    }
    Some(Update {
        serve: serving.name.clone(),
        versions: vec![serving.clone(), wanted.clone()],
        progress: Progress::Loading {
            version: wanted.name.clone(),
            serving: serving.name.clone(),
            silent: silent(pods),
        },
    })
}

fn switching(version: &ServedVersion, pods: &[PodSays]) -> Progress {
    if pods.iter().all(|pod| pod.answers_with(version)) {
        Progress::Settled
    } else {
        Progress::Switching {
            version: version.name.clone(),
            silent: silent(pods),
        }
    }
}

fn silent(pods: &[PodSays]) -> Option<String> {
    pods.iter().find(|pod| pod.stats.is_none()).map(|pod| pod.name.clone())
}

#[cfg(test)]
mod tests {
    use flywheel_contract::SCHEMA_VERSION;
    use flywheel_contract::failure::FailureReason;
    use flywheel_contract::scalar::Digest;
    use flywheel_contract::trainer::ArtifactRef;
    use proptest::prelude::*;

    use super::*;

    fn version(name: &str) -> ServedVersion {
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
                failure: (*state == LoadState::Failed)
                    .then(|| Failure::new(FailureReason::DigestMismatch, "a file differs")),
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
            }),
        }
    }

    fn silent(name: &str) -> PodSays {
        PodSays {
            name: name.to_owned(),
            stats: None,
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
            let wanted = wanted.map(version);
            let got = update(wanted.as_ref(), present.as_ref(), &pods);
            let seen = got.as_ref().map(|update| {
                let names: Vec<&str> = update.versions.iter().map(|v| v.name.as_str()).collect();
                assert_eq!(names[0], update.serve, "{case}: what answers is held");
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
        let update = update(Some(&again), Some(&present), &pods).unwrap();
        assert_eq!(word(&update.progress), "loading");
        assert!(must_ask(Some(&again), Some(&present), true));
    }

    #[test]
    fn pods_are_asked_only_while_something_changes() {
        let present = assigned(1, &["v1"]);
        let (one, two) = (version("v1"), version("v2"));
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
            (FailureReason::OutOfMemory, true),
            (FailureReason::StorageUnavailable, false),
        ] {
            let progress = Progress::Failed {
                version: "v2".to_owned(),
                serving: "v1".to_owned(),
                pod: "a".to_owned(),
                failure: Failure::new(reason, "why"),
            };
            assert_eq!(progress.is_stalled(), stalled, "{reason:?}");
        }
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
            let wanted = wanted.map(version);
            let listed: Vec<&str> = std::iter::once("v1").chain(second).collect();
            let present = assigned(3, &listed);
            let pods: Vec<PodSays> = says.iter().enumerate().map(|(i, says)| match says {
                Some((generation, one, two, three)) =>
                    pod(&i.to_string(), *generation, "v1", &[("v1", *one), ("v2", *two), ("v3", *three)]),
                None => silent(&i.to_string()),
            }).collect();
            let update = update(wanted.as_ref(), Some(&present), &pods).unwrap();
            let serving = update.versions.iter().find(|v| v.name == update.serve).unwrap();
            if update.serve != "v1" {
                prop_assert!(pods.iter().all(|pod| pod.holds(serving)));
                prop_assert_eq!(Some(serving), wanted.as_ref());
            }
            prop_assert!(update.versions.len() <= 2);
            if update.progress == Progress::Settled {
                prop_assert!(pods.iter().all(|pod| pod.answers_with(serving)));
            }
        }
    }
}
