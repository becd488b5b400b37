//! Decisions about an InferenceService: whether the version that it names can be served, how pods are exchanged, and
//! which conditions hold.
//!
//! Everything is judged anew from what is there (level-triggered): a version that appears, is verified or is replaced in
//! the spec needs no memory of what was wrong before. Until then the pods that run go on; only those of a version that
//! failed its verification and never answered go, since they would hold a GPU for nothing.

mod pods;
mod standing;

pub use pods::{PodView, Stage, Trouble};
pub use standing::{DeploymentView, Judgement, Standing, View, judge};

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
        /// What its verification said, where it failed.
        failed_verification: Option<String>,
    },
}

/// What to do about the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Run the version that the spec names.
    Serve,
    /// Do not; [`held`] says what runs instead.
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

/// Whether the version can be served.
#[must_use]
pub fn decide(model: &str, version_name: &str, version: &VersionView) -> Intent {
    match version {
        VersionView::Missing => Intent::Hold(Hold {
            reason: reasons::MODEL_VERSION_NOT_FOUND,
            message: format!(
                "there is no ModelVersion {version_name} in this namespace. It is served as soon as it is there; or set \
                 modelVersion to one of `kubectl get modelversions`"
            ),
            stalled: false,
            unfit: false,
        }),
        VersionView::Found { model: theirs, .. } if theirs != model => Intent::Hold(Hold::refused(
            reasons::MODEL_MISMATCH,
            format!(
                "the ModelVersion {version_name} is of the model {theirs}, and this service is for {model}. Set modelVersion \
                 to a version of {model}"
            ),
        )),
        VersionView::Found {
            failed_verification: Some(why),
            ..
        } => Intent::Hold(Hold {
            reason: reasons::MODEL_VERSION_NOT_VERIFIED,
            message: format!(
                "the ModelVersion {version_name} failed its verification ({}). Set modelVersion to another one, or delete it \
                 and make it anew from a sound artifact",
                cut_words(why.trim_end_matches('.'), WORDS_MAX)
            ),
            stalled: true,
            unfit: true,
        }),
        VersionView::Found { .. } => Intent::Serve,
    }
}

/// Which of the stored templates runs while the spec is not followed: the newest, but one of an unfit version only if a
/// pod of it has answered. `None`: no pods.
///
/// `stored` holds the version that each template names, the newest first.
#[must_use]
pub fn held(hold: &Hold, version: &str, stored: &[Option<String>], pods: &[PodView]) -> Option<usize> {
    let named = |v: &Option<String>| v.as_deref() == Some(version);
    let answered = pods.iter().any(|p| named(&p.version) && p.stage >= Stage::Unready);
    stored.iter().position(|v| !hold.unfit || answered || !named(v))
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
            let got = match decide("intent", "v2", &version) {
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
        let pod = |version: &str, stage: Stage| PodView {
            name: "p".to_owned(),
            version: Some(version.to_owned()),
            stage,
            scheduling: crate::placement::PodSchedulingView {
                scheduled: true,
                ..Default::default()
            },
            waiting_since: None,
            trouble: None,
        };
        let loading = [pod("v1", Stage::Ready), pod("v2", Stage::Loading)];
        let fell_out = [pod("v2", Stage::Unready)];
        type Row<'a> = (&'a str, bool, &'a [&'a str], &'a [PodView], Option<usize>);
        let table: [Row<'_>; 8] = [
            ("nothing stored", true, &[], &[], None),
            ("never answered, nothing before", true, &["v2"], &loading[1..], None),
            ("stored twice, nothing before", true, &["v2", "v2"], &[], None),
            ("never answered, v1 before", true, &["v2", "v1"], &loading, Some(1)),
            ("v1 came back", true, &["v2", "v1"], &loading[..1], Some(1)),
            ("answered", true, &["v2", "v1"], &fell_out, Some(0)),
            ("the spec names another one", true, &["v1"], &loading[..1], Some(0)),
            ("not known to be unfit", false, &["v2", "v1"], &loading, Some(0)),
        ];
        for (case, unfit, stored, pods, expected) in table {
            let stored: Vec<_> = stored.iter().map(|v| Some((*v).to_owned())).collect();
            assert_eq!(held(&hold(unfit), "v2", &stored, pods), expected, "{case}");
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
