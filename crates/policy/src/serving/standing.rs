//! Which conditions of an InferenceService hold.

use std::collections::BTreeMap;

use flywheel_api::conditions::{Desired, Status, cut_words, reasons, types};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::names::INSIDE_PORT;

use super::pods::{PodView, Stage};
use super::{Hold, Progress};
use crate::placement::Problem;
use crate::remedy::{PodsOf, of_refusal};

/// What the Deployment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentView {
    /// Its controller has seen the newest spec; the counts are worth nothing before.
    pub observed: bool,
    /// Pods there are.
    pub replicas: i32,
    /// Pods of the newest template.
    pub updated: i32,
    /// Pods that answer.
    pub available: i32,
    /// What the API server says against new pods: quota, LimitRange, Pod Security.
    pub creation_failed: Option<String>,
}

/// All that the conditions depend on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The version that the spec names.
    pub version: &'a str,
    /// Pods that the spec asks for.
    pub replicas: i32,
    /// Why the spec is not followed; none while it is.
    pub hold: Option<&'a Hold>,
    /// What is to be said of the newest version, where it was rejected.
    pub rolled_back: Option<&'a str>,
    /// How far the pods are with the version, once they have one.
    pub progress: Option<&'a Progress>,
    /// The Deployment, where there is one.
    pub deployment: Option<&'a DeploymentView>,
    /// Pods that count.
    pub pods: &'a [PodView],
    /// Why pods have no node.
    pub placement: Option<&'a Problem>,
}

/// How an InferenceService stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All is as the spec says.
    Ready,
    /// Work goes on, by itself.
    Working,
    /// Nothing more happens until somebody acts.
    Stalled,
}

/// What status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The summary.
    pub standing: Standing,
    /// Reason of the summary.
    pub reason: &'static str,
    /// Message of the summary.
    pub message: String,
    /// `DeploymentReady` and `RoutesReady`.
    pub conditions: Vec<Desired>,
    /// One word.
    pub state: &'static str,
    /// The version that every ready pod answers with.
    pub serving: Option<String>,
    /// Ready pods by the version that they answer with, where it is known.
    pub traffic: BTreeMap<String, usize>,
    /// Pods that answer.
    pub ready: usize,
}

/// Most bytes of the API server's or a pod's own words in a message.
const WORDS_MAX: usize = 500;

/// Judges an InferenceService.
#[must_use]
pub fn judge(view: &View<'_>) -> Judgement {
    let ready = view.pods.iter().filter(|p| p.stage == Stage::Ready).count();
    let traffic = traffic(view.pods);
    let serving = match traffic.first_key_value() {
        Some((version, pods)) if *pods == ready => Some(version.clone()),
        _ => None,
    };
    let (deployment_holds, deployment_reason, deployment_message) = deployment(view, ready);
    let scaled_to_zero = deployment_holds && view.replicas == 0;
    let (routes, routes_reason, routes_message) = match ready {
        0 if scaled_to_zero => (
            Status::False,
            reasons::SCALED_TO_ZERO,
            "replicas is 0: no pod answers. Raise replicas to serve".to_owned(),
        ),
        0 => (
            Status::False,
            reasons::REPLICAS_UNAVAILABLE,
            "no pod answers; the Service has no endpoints".to_owned(),
        ),
        n => (
            Status::True,
            reasons::AS_EXPECTED,
            match &serving {
                Some(version) => format!("{n} pod(s) answer with {version}"),
                None => format!("{n} pod(s) answer{}", several(&traffic)),
            },
        ),
    };
    let (standing, reason, message) = match view.hold {
        Some(hold) => (
            if hold.stalled {
                Standing::Stalled
            } else {
                Standing::Working
            },
            hold.reason,
            format!(
                "{}{}",
                hold.message.trim_end_matches('.'),
                goes_on(&serving, &traffic, ready)
            ),
        ),
        None => match (version(view.progress), deployment_holds) {
            // What a pod says against the version matters more than pods that come and go.
            (Some(told), holds) if holds || told.0 == Standing::Stalled => told,
            (_, true) => match view.rolled_back.filter(|_| !scaled_to_zero) {
                Some(why) => (Standing::Ready, reasons::ROLLED_BACK, why.to_owned()),
                None => (Standing::Ready, deployment_reason, deployment_message.clone()),
            },
            (_, false) => (
                Standing::Working,
                deployment_reason,
                match &serving {
                    Some(old) if old != view.version => {
                        format!(
                            "{}{}",
                            deployment_message.trim_end_matches('.'),
                            goes_on(&serving, &traffic, ready)
                        )
                    }
                    _ => deployment_message.clone(),
                },
            ),
        },
    };
    let state = match standing {
        Standing::Stalled => "Stalled",
        Standing::Ready if scaled_to_zero => "ScaledToZero",
        Standing::Ready => "Ready",
        Standing::Working if ready > 0 => "Updating",
        Standing::Working => "Starting",
    };
    let deployment_status = if deployment_holds { Status::True } else { Status::False };
    Judgement {
        standing,
        reason,
        message,
        conditions: vec![
            Desired::new(
                types::DEPLOYMENT_READY,
                deployment_status,
                deployment_reason,
                deployment_message,
            ),
            Desired::new(types::ROUTES_READY, routes, routes_reason, routes_message),
        ],
        state,
        serving,
        traffic,
        ready,
    }
}

/// What is to be said of the version while not every pod answers with it.
fn version(progress: Option<&Progress>) -> Option<(Standing, &'static str, String)> {
    let unread = |silent: &Option<String>| match silent {
        Some(pod) => format!(
            "; pod {pod} does not say how far it is: see that the operator reaches its port {INSIDE_PORT} (a NetworkPolicy or a \
             service mesh may stand between)"
        ),
        None => String::new(),
    };
    let progress = progress?;
    Some(match progress {
        Progress::Settled => return None,
        Progress::Loading {
            version,
            serving,
            silent,
        } => (
            Standing::Working,
            reasons::VERSION_LOADING,
            format!(
                "the pods load {version}, and answer with {serving} until all have it{}",
                unread(silent)
            ),
        ),
        Progress::Switching { version, silent } => (
            Standing::Working,
            reasons::VERSION_SWITCHING,
            format!("the pods have {version} and change over to it{}", unread(silent)),
        ),
        Progress::Failed {
            field,
            version,
            serving,
            pod,
            failure,
        } => (
            if progress.is_stalled() {
                Standing::Stalled
            } else {
                Standing::Working
            },
            match failure.reason {
                FailureReason::ExecutionCrashed => reasons::VERSION_HELD_BACK,
                _ => reasons::VERSION_LOAD_FAILED,
            },
            format!(
                "pod {pod} {} {version} ({}: {}), {} with {serving}. {}",
                match failure.reason {
                    FailureReason::ExecutionCrashed => "holds back",
                    _ => "cannot load",
                },
                failure.reason.as_str(),
                cut_words(failure.message.trim_end_matches('.'), WORDS_MAX),
                match failure.reason {
                    FailureReason::ExecutionCrashed => "and answers",
                    _ => "so the pods go on to answer",
                },
                match *field {
                    "modelVersion" => format!(
                        "Set modelVersion to another version, or back to {serving}; a version that was mended is loaded when \
                         modelVersion is set to it again"
                    ),
                    field => format!(
                        "Correct {field}, or take it out; a version that was mended is loaded when it is named again"
                    ),
                }
            ),
        ),
    })
}

/// What clients get meanwhile.
fn goes_on(serving: &Option<String>, traffic: &BTreeMap<String, usize>, ready: usize) -> String {
    match (serving, ready) {
        (_, 0) => String::new(),
        (Some(version), n) => format!(". Meanwhile {n} pod(s) go on to answer with {version}"),
        (None, n) => format!(". Meanwhile {n} pod(s) go on to answer{}", several(traffic)),
    }
}

fn several(traffic: &BTreeMap<String, usize>) -> &'static str {
    if traffic.len() > 1 { " with two versions" } else { "" }
}

/// How many pods answer with which version, as far as it is known.
fn traffic(pods: &[PodView]) -> BTreeMap<String, usize> {
    let mut traffic = BTreeMap::new();
    for pod in pods.iter().filter(|p| p.stage == Stage::Ready) {
        if let Some(version) = &pod.version {
            *traffic.entry(version.clone()).or_default() += 1;
        }
    }
    traffic
}

/// Whether the pods run and answer as the Deployment says, and why not.
fn deployment(view: &View<'_>, ready: usize) -> (bool, &'static str, String) {
    let wanted = view.replicas;
    let Some(deployment) = view.deployment else {
        return match view.hold {
            // Nothing is made before somebody asks for pods.
            None if wanted == 0 => (true, reasons::SCALED_TO_ZERO, "replicas is 0".to_owned()),
            Some(hold) => (false, hold.reason, format!("no pods yet: {}", hold.message)),
            None => (false, reasons::PROGRESSING, "the pods are being made".to_owned()),
        };
    };
    let of = format!("{ready} of {wanted} pod(s) answer");
    if let Some(words) = &deployment.creation_failed {
        return (
            false,
            reasons::POD_CREATION_FAILED,
            format!(
                "{of}; the API server refuses new pods: {}. It is tried again by itself, so {}",
                cut_words(words.trim_end_matches('.'), WORDS_MAX),
                of_refusal(PodsOf::InferenceService, words)
            ),
        );
    }
    if let Some(problem) = view.placement {
        return (false, problem.reason, problem.message.clone());
    }
    // Of several the one whose pod's name comes first, so that the message does not move while they last.
    let troubles = view.pods.iter().filter_map(|p| Some((&p.name, p.trouble.as_ref()?)));
    if let Some((_, trouble)) = troubles.min_by_key(|(name, _)| *name) {
        return (false, trouble.reason, format!("{of}; {}", trouble.message));
    }
    if !deployment.observed {
        return (
            false,
            reasons::PROGRESSING,
            format!("{of}; the Deployment is being changed"),
        );
    }
    if wanted == 0 && deployment.replicas == 0 {
        return (true, reasons::SCALED_TO_ZERO, "replicas is 0".to_owned());
    }
    if let (Some(hold), 0) = (view.hold, deployment.replicas) {
        return (false, hold.reason, format!("no pods: {}", hold.message));
    }
    if deployment.replicas == wanted && deployment.updated == wanted && deployment.available == wanted {
        return (true, reasons::AS_EXPECTED, of);
    }
    let at = |stage: Stage| view.pods.iter().filter(|p| p.stage == stage).count();
    let exchanging = deployment.replicas > deployment.updated;
    let counts = [
        (at(Stage::Pending), reasons::PENDING, "have no node yet"),
        (
            at(Stage::Starting),
            reasons::STARTING,
            "get their image and volumes (`kubectl describe pod` says more if that lasts)",
        ),
        (at(Stage::Loading), reasons::LOADING, "load the version"),
    ];
    for (n, reason, words) in counts {
        if n > 0 {
            return (false, reason, format!("{of}; {n} {words}"));
        }
    }
    if exchanging {
        return (
            false,
            reasons::PROGRESSING,
            format!(
                "{of}; {} of {wanted} are of the newest template",
                deployment.updated.min(wanted)
            ),
        );
    }
    if deployment.replicas != wanted {
        return (
            false,
            reasons::PROGRESSING,
            format!("{of}; there are {} and {wanted} are asked for", deployment.replicas),
        );
    }
    (
        false,
        reasons::REPLICAS_UNAVAILABLE,
        format!("{of}; the others do not answer now"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::PodSchedulingView;
    use crate::serving::Trouble;
    use flywheel_contract::failure::{Failure, FailureReason};

    fn pod(name: &str, version: &str, stage: Stage) -> PodView {
        PodView {
            name: name.to_owned(),
            version: Some(version.to_owned()),
            stage,
            scheduling: PodSchedulingView {
                scheduled: stage != Stage::Pending,
                ..PodSchedulingView::default()
            },
            waiting_since: None,
            trouble: None,
            restarts: 0,
            ended: None,
            backs_off: false,
            changed: None,
            created: None,
        }
    }

    fn counts(replicas: i32, updated: i32, available: i32) -> Option<DeploymentView> {
        Some(DeploymentView {
            observed: true,
            replicas,
            updated,
            available,
            creation_failed: None,
        })
    }

    fn hold(stalled: bool) -> Hold {
        Hold {
            reason: if stalled {
                reasons::MODEL_MISMATCH
            } else {
                reasons::MODEL_VERSION_NOT_FOUND
            },
            message: "no such version.".to_owned(),
            stalled,
            unfit: false,
        }
    }

    fn loading(silent: Option<&str>) -> Progress {
        Progress::Loading {
            version: "v2".to_owned(),
            serving: "v1".to_owned(),
            silent: silent.map(str::to_owned),
        }
    }

    fn failed(reason: FailureReason) -> Progress {
        Progress::Failed {
            field: "modelVersion",
            version: "v2".to_owned(),
            serving: "v1".to_owned(),
            pod: "a".to_owned(),
            failure: Failure::new(reason, "the file differs."),
        }
    }

    struct Case<'a> {
        name: &'a str,
        replicas: i32,
        hold: Option<Hold>,
        progress: Option<Progress>,
        deployment: Option<DeploymentView>,
        pods: Vec<PodView>,
        placement: Option<Problem>,
        /// standing, reason, DeploymentReady, RoutesReady, state, serving
        expected: (Standing, &'a str, Status, Status, &'a str, Option<&'a str>),
    }

    fn case<'a>(
        name: &'a str,
        deployment: Option<DeploymentView>,
        pods: Vec<PodView>,
        expected: (Standing, &'a str, Status, Status, &'a str, Option<&'a str>),
    ) -> Case<'a> {
        Case {
            name,
            replicas: 2,
            hold: None,
            progress: None,
            deployment,
            pods,
            placement: None,
            expected,
        }
    }

    #[test]
    fn each_situation_has_its_conditions() {
        use Stage::{Loading, Pending, Ready, Starting, Unready};
        use Standing::{Stalled, Working};
        use Status::{False, True};
        let two = |version: &str| vec![pod("a", version, Ready), pod("b", version, Ready)];
        let crash = |version: &str| PodView {
            trouble: Some(Trouble {
                reason: reasons::CRASH_LOOP,
                message: "ended".to_owned(),
            }),
            ..pod("c", version, Starting)
        };
        let mut refused = counts(1, 1, 1);
        refused.as_mut().unwrap().creation_failed = Some("exceeded quota".to_owned());
        let mut unseen = counts(2, 2, 2);
        unseen.as_mut().unwrap().observed = false;
        let no_gpu = Problem {
            reason: reasons::NO_MATCHING_GPU,
            message: "no node of the class".to_owned(),
        };
        let table = vec![
            case(
                "nothing yet",
                None,
                vec![],
                (Working, "Progressing", False, False, "Starting", None),
            ),
            case(
                "all ready",
                counts(2, 2, 2),
                two("v2"),
                (Standing::Ready, "AsExpected", True, True, "Ready", Some("v2")),
            ),
            case(
                "not seen by the Deployment's controller",
                unseen,
                two("v2"),
                (Working, "Progressing", False, True, "Updating", Some("v2")),
            ),
            case(
                "no node yet",
                counts(2, 2, 0),
                vec![pod("a", "v2", Pending), pod("b", "v2", Starting)],
                (Working, "Pending", False, False, "Starting", None),
            ),
            case(
                "starting",
                counts(2, 2, 0),
                vec![pod("a", "v2", Starting), pod("b", "v2", Loading)],
                (Working, "Starting", False, False, "Starting", None),
            ),
            case(
                "loading",
                counts(2, 2, 1),
                vec![pod("a", "v2", Ready), pod("b", "v2", Loading)],
                (Working, "Loading", False, True, "Updating", Some("v2")),
            ),
            case(
                "one fell out",
                counts(2, 2, 1),
                vec![pod("a", "v2", Ready), pod("b", "v2", Unready)],
                (Working, "ReplicasUnavailable", False, True, "Updating", Some("v2")),
            ),
            case(
                "a new template begins",
                counts(3, 1, 2),
                [two("v2"), vec![pod("c", "v2", Loading)]].concat(),
                (Working, "Loading", False, True, "Updating", Some("v2")),
            ),
            case(
                "pods of two templates answer",
                counts(3, 1, 3),
                [two("v2"), vec![pod("c", "v2", Ready)]].concat(),
                (Working, "Progressing", False, True, "Updating", Some("v2")),
            ),
            case(
                "a new template crashes",
                counts(3, 1, 2),
                [two("v2"), vec![crash("v2")]].concat(),
                (Working, "CrashLoop", False, True, "Updating", Some("v2")),
            ),
            Case {
                progress: Some(loading(None)),
                ..case(
                    "pods load another version",
                    counts(2, 2, 2),
                    two("v1"),
                    (Working, "VersionLoading", True, True, "Updating", Some("v1")),
                )
            },
            Case {
                progress: Some(loading(None)),
                ..case(
                    "they do, and one falls out",
                    counts(2, 2, 1),
                    vec![pod("a", "v1", Ready), pod("b", "v1", Unready)],
                    (Working, "ReplicasUnavailable", False, True, "Updating", Some("v1")),
                )
            },
            Case {
                progress: Some(Progress::Switching {
                    version: "v2".to_owned(),
                    silent: None,
                }),
                ..case(
                    "two versions answer",
                    counts(2, 2, 2),
                    vec![pod("a", "v1", Ready), pod("b", "v2", Ready)],
                    (Working, "VersionSwitching", True, True, "Updating", None),
                )
            },
            Case {
                progress: Some(failed(FailureReason::DigestMismatch)),
                ..case(
                    "one cannot load it",
                    counts(2, 2, 2),
                    two("v1"),
                    (Stalled, "VersionLoadFailed", True, True, "Stalled", Some("v1")),
                )
            },
            Case {
                progress: Some(failed(FailureReason::DigestMismatch)),
                ..case(
                    "one cannot load it, another one falls out",
                    counts(2, 2, 1),
                    vec![pod("a", "v1", Ready), pod("b", "v1", Unready)],
                    (Stalled, "VersionLoadFailed", False, True, "Stalled", Some("v1")),
                )
            },
            Case {
                progress: Some(failed(FailureReason::StorageUnavailable)),
                ..case(
                    "the storage does not answer",
                    counts(2, 2, 2),
                    two("v1"),
                    (Working, "VersionLoadFailed", True, True, "Updating", Some("v1")),
                )
            },
            Case {
                progress: Some(Progress::Settled),
                ..case(
                    "all have changed over",
                    counts(2, 2, 2),
                    two("v2"),
                    (Standing::Ready, "AsExpected", True, True, "Ready", Some("v2")),
                )
            },
            case(
                "quota",
                refused,
                vec![pod("a", "v2", Ready)],
                (Working, "PodCreationFailed", False, True, "Updating", Some("v2")),
            ),
            case(
                "scaling down",
                counts(3, 3, 3),
                [two("v2"), vec![pod("c", "v2", Ready)]].concat(),
                (Working, "Progressing", False, True, "Updating", Some("v2")),
            ),
            Case {
                placement: Some(no_gpu),
                ..case(
                    "no GPU",
                    counts(2, 2, 0),
                    vec![pod("a", "v2", Pending)],
                    (Working, "NoMatchingGPU", False, False, "Starting", None),
                )
            },
            Case {
                replicas: 0,
                ..case(
                    "zero",
                    counts(0, 0, 0),
                    vec![],
                    (Standing::Ready, "ScaledToZero", True, False, "ScaledToZero", None),
                )
            },
            Case {
                replicas: 0,
                ..case(
                    "to zero",
                    counts(1, 1, 1),
                    vec![pod("a", "v2", Ready)],
                    (Working, "Progressing", False, True, "Updating", Some("v2")),
                )
            },
            Case {
                hold: Some(hold(false)),
                ..case(
                    "missing, nothing runs",
                    None,
                    vec![],
                    (Working, "ModelVersionNotFound", False, False, "Starting", None),
                )
            },
            Case {
                hold: Some(hold(false)),
                ..case(
                    "missing, old runs",
                    counts(2, 2, 2),
                    two("v1"),
                    (Working, "ModelVersionNotFound", True, True, "Updating", Some("v1")),
                )
            },
            Case {
                hold: Some(hold(true)),
                ..case(
                    "mismatch, old runs",
                    counts(2, 2, 2),
                    two("v1"),
                    (Stalled, "ModelMismatch", True, True, "Stalled", Some("v1")),
                )
            },
            Case {
                hold: Some(hold(true)),
                ..case(
                    "its pods were let go",
                    counts(0, 0, 0),
                    vec![],
                    (Stalled, "ModelMismatch", False, False, "Stalled", None),
                )
            },
            Case {
                hold: Some(hold(true)),
                ..case(
                    "mismatch, nothing runs",
                    None,
                    vec![],
                    (Stalled, "ModelMismatch", False, False, "Stalled", None),
                )
            },
        ];
        for c in table {
            let got = judge(&View {
                version: "v2",
                replicas: c.replicas,
                hold: c.hold.as_ref(),
                rolled_back: None,
                progress: c.progress.as_ref(),
                deployment: c.deployment.as_ref(),
                pods: &c.pods,
                placement: c.placement.as_ref(),
            });
            let status = |i: usize| got.conditions[i].status;
            let seen = (
                got.standing,
                got.reason,
                status(0),
                status(1),
                got.state,
                got.serving.as_deref(),
            );
            assert_eq!(seen, c.expected, "{}: {}", c.name, got.message);
        }
    }

    #[test]
    fn the_message_says_what_goes_on_meanwhile() {
        let pods = [pod("a", "v1", Stage::Ready)];
        let deployment = counts(1, 1, 1).unwrap();
        let stays = hold(true);
        let judgement = judge(&View {
            version: "v2",
            replicas: 1,
            hold: Some(&stays),
            rolled_back: None,
            progress: None,
            deployment: Some(&deployment),
            pods: &pods,
            placement: None,
        });
        assert_eq!(
            judgement.message,
            "no such version. Meanwhile 1 pod(s) go on to answer with v1"
        );
    }

    #[test]
    fn a_rejected_version_is_told_where_nothing_else_is_wrong() {
        let (held, loads) = (hold(true), loading(None));
        let pods = [pod("a", "v1", Stage::Ready)];
        type Row<'a> = (
            i32,
            Option<&'a Hold>,
            Option<&'a Progress>,
            &'a [PodView],
            (Standing, &'a str),
        );
        let rows: [Row<'_>; 5] = [
            (1, None, None, &pods, (Standing::Ready, "RolledBack")),
            (1, None, Some(&loads), &pods, (Standing::Working, "VersionLoading")),
            (1, Some(&held), None, &pods, (Standing::Stalled, "ModelMismatch")),
            (2, None, None, &pods, (Standing::Working, "Progressing")),
            (0, None, None, &[], (Standing::Ready, "ScaledToZero")),
        ];
        for (replicas, hold, progress, pods, expected) in rows {
            let there = i32::try_from(pods.len()).unwrap();
            let judgement = judge(&View {
                version: "v2",
                replicas,
                hold,
                rolled_back: Some("v2 is rejected: it ended"),
                progress,
                deployment: counts(there, there, there).as_ref(),
                pods,
                placement: None,
            });
            assert_eq!((judgement.standing, judgement.reason), expected);
            let told = judgement.message == "v2 is rejected: it ended";
            assert_eq!(told, judgement.reason == "RolledBack", "{}", judgement.message);
        }
    }

    #[test]
    fn a_version_that_is_on_its_way_is_told() {
        let table = [
            (loading(None), "the pods load v2, and answer with v1 until all have it"),
            (loading(Some("a")), "pod a does not say how far it is"),
            (
                failed(FailureReason::DigestMismatch),
                "pod a cannot load v2 (DigestMismatch: the file differs), so the pods go on to answer with v1",
            ),
        ];
        for (progress, words) in table {
            let (_, _, message) = version(Some(&progress)).unwrap();
            assert!(message.contains(words), "{words} is not in: {message}");
        }
    }

    #[test]
    fn the_order_of_pods_changes_nothing() {
        let trouble = |name: &str| PodView {
            trouble: Some(Trouble {
                reason: reasons::CRASH_LOOP,
                message: format!("{name} ended"),
            }),
            ..pod(name, "v2", Stage::Starting)
        };
        let deployment = counts(2, 2, 0).unwrap();
        let of = |pods: &[PodView]| {
            judge(&View {
                version: "v2",
                replicas: 2,
                hold: None,
                rolled_back: None,
                progress: None,
                deployment: Some(&deployment),
                pods,
                placement: None,
            })
        };
        assert_eq!(of(&[trouble("a"), trouble("b")]), of(&[trouble("b"), trouble("a")]));
    }
}
