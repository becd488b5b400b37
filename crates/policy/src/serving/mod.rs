//! Decisions about an InferenceService: whether the version that it names can be served, which versions its pods hold, how
//! pods are exchanged, and which conditions hold.
//!
//! Everything is judged anew from what is there (level-triggered): a version that appears, is verified or is replaced in
//! the spec needs no memory of what was wrong before. Until then the pods that run go on; only those of a version that
//! failed its verification and never answered go, since they would hold a GPU for nothing.

pub mod analysis;
mod blame;
pub mod copies;
pub mod experiment;
mod pods;
mod rollout;
pub mod scale;
mod sequential;
mod standing;
mod update;

pub use blame::{Ended, How, Verdict, verdict};
pub use pods::{PodView, Stage, Trouble};
pub use rollout::{RolloutView, Stand, canary_pods, roll, shares};
pub use standing::{DeploymentView, Judgement, Standing, View, judge};
pub use update::{Content, PodSays, Progress, Update, Wanted, must_ask, update};

use std::time::Duration;

use flywheel_api::conditions::{cut_words, reasons};
use jiff::Timestamp;

/// Seconds that a new pod waits for a free GPU beside the old ones before an old one makes room: pods that just ended and
/// a cluster autoscaler that has nodes ready get the time that they need, and with one replica this avoids an outage.
pub const SPARE_GPU_WAIT: Duration = Duration::from_secs(30);

/// Most bytes of a verification's own words in a message.
const WORDS_MAX: usize = 400;

/// The ModelVersion that the spec names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionView {
    /// There is none of that name.
    Missing,
    /// It is there.
    Found {
        /// Its model.
        model: String,
        /// Its verification went well.
        verified: bool,
        /// What its verification said, where it failed.
        failed_verification: Option<String>,
    },
}

/// What to do about the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Run the version that the spec names.
    Serve,
    /// Do not; what answers goes on, if the pods stay at all ([`keeps_pods`]).
    Hold(Hold),
}

/// Why the version that the spec names is not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// One of [`reasons`].
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// Only the user can change it.
    pub stalled: bool,
    /// The version itself is no good: a pod of it that never answered never will.
    pub unfit: bool,
}

impl Hold {
    /// What only the user can change, and says nothing against the version.
    #[must_use]
    pub fn refused(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            stalled: true,
            unfit: false,
        }
    }
}

/// Whether a version can be served that this field of the spec names.
#[must_use]
pub fn decide(model: &str, field: &str, version_name: &str, version: &VersionView) -> Intent {
    match version {
        VersionView::Missing => Intent::Hold(Hold {
            reason: reasons::MODEL_VERSION_NOT_FOUND,
            message: format!(
                "there is no ModelVersion {version_name} in this namespace. It is served as soon as it is there; or set \
                 {field} to one of `kubectl get modelversions`"
            ),
            stalled: false,
            unfit: false,
        }),
        VersionView::Found { model: theirs, .. } if theirs != model => Intent::Hold(Hold::refused(
            reasons::MODEL_MISMATCH,
            format!(
                "the ModelVersion {version_name} is of the model {theirs}, and this service is for {model}. Set {field} to a \
                 version of {model}"
            ),
        )),
        VersionView::Found {
            failed_verification: Some(why),
            ..
        } => Intent::Hold(Hold {
            reason: reasons::MODEL_VERSION_NOT_VERIFIED,
            message: format!(
                "the ModelVersion {version_name} failed its verification ({}). Set {field} to another one, or delete it and make \
                 it anew from a sound artifact",
                cut_words(why.trim_end_matches('.'), WORDS_MAX)
            ),
            stalled: true,
            unfit: true,
        }),
        VersionView::Found { .. } => Intent::Serve,
    }
}

/// Whether there are pods while the spec is not followed: all stay but those of an unfit version that never answered.
///
/// `version` is the one that the spec names, `serve` the one that the pods are to answer with.
#[must_use]
pub fn keeps_pods(hold: &Hold, version: &str, serve: Option<&str>, pods: &[PodView]) -> bool {
    let answered = pods.iter().any(|p| p.stage >= Stage::Unready);
    !hold.unfit || answered || serve != Some(version)
}

/// How pods are exchanged when the template changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// A new pod starts beside the old ones; an old one ends when it is ready.
    Surge,
    /// An old pod ends first and leaves its GPU to a new one: none is spare.
    Replace,
}

/// What the choice of [`Exchange`] depends on.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeView {
    /// What the Deployment does now.
    pub now: Exchange,
    /// Pods of an older template are there beside those of the newest.
    pub old_pods: bool,
    /// Since when a pod waits for a free GPU of the class, where placement says that none is free.
    pub waiting_since: Option<Timestamp>,
}

/// How to exchange pods, and when to look again where that depends on time.
///
/// Once an old pod had to make room this stays so until the exchange is complete: the GPU that it left is taken by the
/// new pod, so the next one would wait again.
#[must_use]
pub fn exchange(view: ExchangeView, now: Timestamp) -> (Exchange, Option<Duration>) {
    if !view.old_pods {
        return (Exchange::Surge, None);
    }
    match (view.now, view.waiting_since) {
        (Exchange::Replace, _) => (Exchange::Replace, None),
        (Exchange::Surge, None) => (Exchange::Surge, None),
        (Exchange::Surge, Some(since)) => {
            let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            match SPARE_GPU_WAIT.checked_sub(waited) {
                Some(left) if !left.is_zero() => (Exchange::Surge, Some(left)),
                _ => (Exchange::Replace, None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(model: &str, failed: Option<&str>) -> VersionView {
        VersionView::Found {
            model: model.to_owned(),
            verified: failed.is_none(),
            failed_verification: failed.map(str::to_owned),
        }
    }

    #[test]
    fn a_version_is_served_unless_something_speaks_against_it() {
        let table = [
            (VersionView::Missing, Some(("ModelVersionNotFound", false))),
            (found("intent", None), None),
            (found("spam", None), Some(("ModelMismatch", true))),
            (found("spam", Some("digest")), Some(("ModelMismatch", true))),
            (
                found("intent", Some("a digest differs.")),
                Some(("ModelVersionNotVerified", true)),
            ),
        ];
        for (version, expected) in table {
            let got = match decide("intent", "modelVersion", "v2", &version) {
                Intent::Serve => None,
                Intent::Hold(hold) => {
                    assert!(
                        hold.message.contains("v2") && hold.message.contains("modelVersion"),
                        "{}",
                        hold.message
                    );
                    Some((hold.reason, hold.stalled))
                }
            };
            assert_eq!(got, expected, "{version:?}");
        }
    }

    #[test]
    fn pods_of_an_unfit_version_go_unless_one_has_answered() {
        let hold = |unfit: bool| Hold {
            reason: reasons::MODEL_VERSION_NOT_VERIFIED,
            message: String::new(),
            stalled: true,
            unfit,
        };
        let pod = |stage: Stage| PodView {
            name: "p".to_owned(),
            version: None,
            stage,
            scheduling: crate::placement::PodSchedulingView {
                scheduled: true,
                ..Default::default()
            },
            waiting_since: None,
            trouble: None,
            restarts: 0,
            ended: None,
            backs_off: false,
            changed: None,
            created: None,
        };
        let (loading, fell_out) = ([pod(Stage::Loading)], [pod(Stage::Unready)]);
        type Row<'a> = (&'a str, bool, Option<&'a str>, &'a [PodView], bool);
        let table: [Row<'_>; 6] = [
            ("nothing assigned", true, None, &[], true),
            ("never answered", true, Some("v2"), &loading, false),
            ("no pods any more", true, Some("v2"), &[], false),
            ("another one answers", true, Some("v1"), &loading, true),
            ("answered once", true, Some("v2"), &fell_out, true),
            ("not known to be unfit", false, Some("v2"), &loading, true),
        ];
        for (case, unfit, serve, pods, expected) in table {
            assert_eq!(keeps_pods(&hold(unfit), "v2", serve, pods), expected, "{case}");
        }
    }

    #[test]
    fn old_pods_make_room_only_when_no_gpu_is_spare_for_a_while() {
        let now = Timestamp::from_second(1_000).unwrap();
        let since = |seconds: i64| Some(Timestamp::from_second(1_000 - seconds).unwrap());
        let (surge, replace) = (Exchange::Surge, Exchange::Replace);
        let table = [
            ("nothing to exchange", surge, false, since(100), (surge, None)),
            ("complete again", replace, false, None, (surge, None)),
            ("a GPU is spare", surge, true, None, (surge, None)),
            (
                "just now",
                surge,
                true,
                since(10),
                (surge, Some(Duration::from_secs(20))),
            ),
            ("long enough", surge, true, since(30), (replace, None)),
            ("goes on", replace, true, None, (replace, None)),
            (
                "a clock that runs behind",
                surge,
                true,
                since(-5),
                (surge, Some(SPARE_GPU_WAIT)),
            ),
        ];
        for (case, now_is, old_pods, waiting_since, expected) in table {
            let view = ExchangeView {
                now: now_is,
                old_pods,
                waiting_since,
            };
            assert_eq!(exchange(view, now), expected, "{case}");
        }
    }
}
