//! Status and events of an InferenceService, from what was observed and applied.

use flywheel_api::InferenceService;
use flywheel_api::conditions::{Desired, Status, find, reasons, types};
use flywheel_api::drift::{DriftStatus, QualityStatus};
use flywheel_api::experiment::ExperimentStatus;
use flywheel_api::inference_service::{InferenceServiceStatus, MirrorStatus, RolloutFigure, RolloutStatus, Traffic};
use flywheel_api::names::ANNOTATION_REJECTED;
use flywheel_api::scaling::{LoadStatus, ScalingStatus};
use flywheel_contract::scalar::Device;
use flywheel_contract::serving::Assignment;
use flywheel_contract::split::{BUCKETS_PER_PERCENT, Split};
use flywheel_policy::recovery::incident;
use flywheel_policy::serving::copies;
use flywheel_policy::serving::experiment::Findings;
use flywheel_policy::serving::scale::{Goal, Shown};
use flywheel_policy::serving::{Hold, Judgement, PodSays, Progress, Stand, Standing, Update, View, judge};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource as _, ResourceExt as _};

use super::build;
use super::experiment::running;
use super::observe::{Observed, deployment_view};
use super::recovery::Recovery;
use super::retraining::Retraining;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{Note, SERVING_MANAGER};
use crate::report::{self, conditions, summary};

/// Reasons that come and go while pods start, and one that the rollout's own event tells; an event for each would be noise.
const PASSING: [&str; 9] = [
    reasons::PROGRESSING,
    reasons::PENDING,
    reasons::STARTING,
    reasons::LOADING,
    reasons::VERSION_LOADING,
    reasons::VERSION_SWITCHING,
    reasons::REPLICAS_UNAVAILABLE,
    reasons::UNKNOWN,
    reasons::ROLLED_BACK,
];

/// Reasons of a rollout that somebody should look at.
const TROUBLES: [&str; 3] = [
    reasons::ROLLED_BACK,
    reasons::INSUFFICIENT_REPLICAS,
    reasons::VERSION_LOAD_FAILED,
];

/// What is added while many nodes seem lost.
const HELD: &str = ". Many nodes seem lost at once, so no pod is deleted for it: most likely it is the operator that is cut off. If \
                    the nodes are gone, delete their Node objects";

/// What came of applying.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The Service of the name is ours.
    pub has_service: bool,
    /// The Deployment as the API server has it.
    pub deployment: Option<&'a Deployment>,
    /// Why the spec is not followed.
    pub hold: Option<Hold>,
    /// What the pods are to hold and how far they are with it.
    pub update: Option<&'a Update>,
    /// How a rollout stands.
    pub stand: Option<&'a Stand>,
    /// The newest version that `autoUpdate` would take, were it not rejected, and why it was.
    pub left_out: Option<&'a (String, String)>,
    /// The version to answer with is not the one that the user wrote, but one that `autoUpdate` took.
    pub by_itself: bool,
    /// What the pods compute on.
    pub device: Option<Device>,
    /// What failed, and what is done about it.
    pub recovery: &'a Recovery,
    /// How training anew stands.
    pub retraining: &'a Retraining,
}

/// Writes the status where it changed, and an event where the summary did.
///
/// # Errors
/// The API server does not take the status.
pub async fn report(
    service: &InferenceService,
    observed: &Observed,
    outcome: &Outcome<'_>,
    context: &Context,
) -> Result<Judgement, Error> {
    let deployment = outcome.deployment.map(deployment_view);
    let before = service.status.as_ref();
    let came = came(outcome, before);
    let rollout = of_rollout(service, outcome, came.as_ref(), context.now());
    let rolled_back = rollout
        .as_ref()
        .filter(|rollout| rollout.reason == reasons::ROLLED_BACK);
    let judgement = judge(&View {
        version: &service.spec.model_version,
        replicas: observed.size,
        hold: outcome.hold.as_ref(),
        rolled_back: rolled_back.map(|rollout| rollout.message.as_str()),
        progress: outcome.update.map(|update| &update.progress),
        deployment: deployment.as_ref(),
        pods: &observed.pods,
        placement: observed.placement.as_ref(),
    });
    let present = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let standing = match judgement.standing {
        Standing::Ready => report::Standing::Ready,
        Standing::Working => report::Standing::Working,
        Standing::Stalled => report::Standing::Stalled,
    };
    let mut desired = summary(standing, judgement.reason, &judgement.message);
    desired.extend(judgement.conditions.iter().cloned());
    let of_load = OfLoad::of(service, context.scales.shown(&service.uid().unwrap_or_default()));
    desired.extend(of_load.conditions);
    let (recovery, wishes) = (outcome.recovery, &service.spec.recovery);
    let mut judged = incident::judge(&recovery.all, wishes.deadline_seconds, wishes.mode, context.now());
    if recovery.held && judged.status != Status::True {
        judged.message.push_str(HELD);
    }
    desired.push(judged);
    desired.extend(rollout.clone());
    let OfDrift {
        condition: drift,
        texts,
        quality,
    } = OfDrift::of(service, observed, context);
    desired.extend(drift.clone());
    let experiment = OfExperiment::of(service, observed, context);
    desired.extend(experiment.condition.clone());
    desired.extend(outcome.retraining.conditions.iter().cloned());
    let canary = Canary::of(outcome.update, &observed.says);
    let replicas = deployment.as_ref().map_or(0, |d| d.replicas);
    let status = InferenceServiceStatus {
        observed_generation: service.metadata.generation,
        state: Some(judgement.state.to_owned()),
        conditions: conditions(present, &desired, service.metadata.generation, context.now()),
        // Where it is not ours, others answer.
        url: outcome.has_service.then(|| build::service::url(service)),
        model_version: judgement.serving.clone(),
        traffic: match divided(outcome.update) {
            Some(split) => service
                .spec
                .versions()
                .into_iter()
                .filter(|version| split.buckets(version) > 0)
                .map(|version| traffic(version, judgement.ready, Some(split), before, &observed.says))
                .collect(),
            None => {
                let mut all: Vec<Traffic> = judgement
                    .traffic
                    .iter()
                    .map(|(version, pods)| traffic(version, *pods, None, before, &observed.says))
                    .collect();
                if let Some(canary) = &canary {
                    canary.share(&mut all, before, &observed.says);
                }
                all
            }
        },
        rollout: came,
        canary: canary.map(|canary| format!("{} {}%", canary.version, canary.percent)),
        mirror: mirror(service, observed, context.now()),
        replicas: Some(replicas),
        pods: Some(format!("{}/{}", judgement.ready, observed.size)),
        load: of_load.load,
        scaling: of_load.scaling,
        recovery: report::recovery(&recovery.incidents),
        drift: texts,
        quality,
        experiment: experiment.status.clone(),
        retraining: outcome.retraining.status.clone(),
        retrain_schedule: outcome.retraining.schedule.clone(),
        selector: Some(build::selector_text(&service.name_any())),
        device: outcome.device,
    };
    let writes = context.writes(SERVING_MANAGER);
    for news in context.recoveries.news(&service.uid().unwrap_or_default()) {
        context.metrics.recovery(&InferenceService::kind(&()), &news);
        writes.event(service, &report::incident_note(&news)).await;
    }
    let changed = find(present, types::READY).is_none_or(|c| c.reason != judgement.reason);
    let written = writes.status(service, &status).await?;
    if written && changed && !PASSING.contains(&judgement.reason) {
        let note = Note {
            warning: judgement.standing != Standing::Ready,
            reason: judgement.reason.to_owned(),
            action: "Serve",
            text: judgement.message.clone(),
        };
        writes.event(service, &note).await;
    }
    if let Some(drift) = drift
        && written
        && find(present, types::DRIFT_DETECTED).is_some_and(|told| told.status != drift.status.as_str())
        && drift.status != Status::Unknown
    {
        let note = Note {
            warning: drift.status == Status::True,
            reason: drift.reason.clone(),
            action: "Watch",
            text: drift.message.clone(),
        };
        writes.event(service, &note).await;
    }
    if written && let (Some(findings), Some(said)) = (&experiment.findings, before.and_then(|s| s.experiment.as_ref()))
    {
        for (reason, text, warning) in findings.news(said) {
            let note = Note {
                warning,
                reason: reason.to_owned(),
                action: "Compare",
                text,
            };
            writes.event(service, &note).await;
        }
    }
    let told = find(present, types::ROLLOUT_PROGRESSING);
    let trouble = rollout
        .as_ref()
        .is_some_and(|rollout| TROUBLES.contains(&rollout.reason.as_ref()));
    if let Some(rollout) = rollout
        && written
        && told.map_or(trouble, |told| told.reason != rollout.reason)
    {
        let note = Note {
            warning: trouble,
            reason: rollout.reason.to_string(),
            action: "Rollout",
            text: rollout.message.clone(),
        };
        writes.event(service, &note).await;
    }
    Ok(judgement)
}

/// What came of copies, where the spec wants some.
fn mirror(service: &InferenceService, observed: &Observed, now: Timestamp) -> Option<MirrorStatus> {
    let wished = service.spec.mirror.as_ref()?;
    let before = service.status.as_ref().and_then(|status| status.mirror.as_ref());
    let before = before.filter(|before| before.model_version == wished.model_version);
    let versions = observed.assignment.iter().flat_map(|present| &present.versions);
    let Some(version) = versions
        .into_iter()
        .find(|version| version.name == wished.model_version)
    else {
        return before.cloned();
    };
    copies::told(before, version, &observed.says, now)
}

/// What is said of live texts and of the answers to them.
#[derive(Default)]
struct OfDrift {
    condition: Option<Desired>,
    texts: Option<DriftStatus>,
    quality: Option<QualityStatus>,
}

impl OfDrift {
    /// Where the spec has `drift`, what was decided last; before the first look of this operator, what was said before.
    fn of(service: &InferenceService, observed: &Observed, context: &Context) -> Self {
        let Some(spec) = &service.spec.drift else {
            return Self::default();
        };
        let before = service.status.as_ref();
        let uid = service.uid().unwrap_or_default();
        let serving = observed.assignment.as_ref().and_then(Assignment::serving);
        let verdict =
            serving.and_then(|serving| Some((serving, context.drifts.verdict(&uid, &serving.artifact.digest)?)));
        match verdict {
            Some((serving, verdict)) => Self {
                condition: Some(verdict.condition(spec)),
                texts: verdict.status(&serving.name),
                quality: verdict.quality.status(&serving.name),
            },
            None => {
                let said = before.and_then(|before| find(&before.conditions, types::DRIFT_DETECTED));
                let condition = said.map_or_else(
                    || {
                        let message = "the pods were not asked yet";
                        Desired::new(types::DRIFT_DETECTED, Status::Unknown, reasons::NO_DATA, message)
                    },
                    |said| said_before(types::DRIFT_DETECTED, said),
                );
                Self {
                    condition: Some(condition),
                    texts: before.and_then(|before| before.drift.clone()),
                    quality: before.and_then(|before| before.quality.clone()),
                }
            }
        }
    }
}

/// What is said of an experiment, where the spec has one.
struct OfExperiment {
    condition: Option<Desired>,
    status: Option<ExperimentStatus>,
    /// What was decided, once the pods were looked at.
    findings: Option<Findings>,
}

impl OfExperiment {
    /// What was decided last; before the first look of this operator, what was said before of the same variants.
    fn of(service: &InferenceService, observed: &Observed, context: &Context) -> Self {
        let none = Self {
            condition: None,
            status: None,
            findings: None,
        };
        let Some(spec) = &service.spec.experiment else {
            return none;
        };
        let uid = service.uid().unwrap_or_default();
        let present = observed.assignment.as_ref();
        let shown = present.and_then(|present| {
            let trial = running(service, Some(present))?;
            context.experiments.shown(&uid, trial, present)
        });
        if let Some(findings) = shown {
            let (feedback, auto_update) = (service.spec.feedback.is_some(), service.spec.auto_update.is_some());
            return Self {
                condition: Some(findings.condition(spec, feedback, auto_update)),
                status: Some(findings.status()),
                findings: Some(findings),
            };
        }
        let before = service.status.as_ref();
        let is_same = |said: &&ExperimentStatus| {
            said.variants.len() == spec.variants.len()
                && spec
                    .variants
                    .iter()
                    .all(|variant| said.variants.iter().any(|v| v.model_version == variant.model_version))
        };
        let status = before.and_then(|before| before.experiment.as_ref()).filter(is_same);
        let said = before.and_then(|before| find(&before.conditions, types::EXPERIMENT_CONCLUDED));
        let condition = match (said, status) {
            (Some(said), Some(_)) => said_before(types::EXPERIMENT_CONCLUDED, said),
            _ => Desired::new(
                types::EXPERIMENT_CONCLUDED,
                Status::Unknown,
                reasons::NO_DATA,
                "the experiment begins once every pod answers with its variants",
            ),
        };
        Self {
            condition: Some(condition),
            status: status.cloned(),
            ..none
        }
    }
}

/// What the version was judged by that comes by steps, or came so and is to answer: what counted once counts, whatever this operator
/// has seen of it.
fn came(outcome: &Outcome<'_>, before: Option<&InferenceServiceStatus>) -> Option<RolloutStatus> {
    let told = before.and_then(|before| before.rollout.as_ref());
    let told = |version: &str| told.filter(|told| told.model_version == version);
    match outcome.stand? {
        Stand::Step { version, judged, .. } | Stand::Last { version, judged, .. } => {
            let earlier = told(version).into_iter().flat_map(|told| &told.judged);
            let all: Vec<RolloutFigure> = earlier.chain(judged).copied().collect();
            Some(RolloutStatus::of(version, &all))
        }
        Stand::Failed { version, .. } => told(version).cloned(),
        Stand::Done | Stand::TooFew { .. } | Stand::Unverified { .. } => told(&outcome.update?.content.serve).cloned(),
        Stand::Reject { .. } | Stand::RolledBack { .. } => None,
    }
}

/// What a version was not judged by, and why, in words; nothing where it was judged by all.
fn not_judged(service: &InferenceService, came: &RolloutStatus) -> String {
    let spec = &service.spec;
    let analysis = spec.rollout.as_ref().and_then(|rollout| rollout.analysis.as_ref());
    let why = |figure: &RolloutFigure| match figure {
        RolloutFigure::Labels => "labels (its pods do not tell them)",
        RolloutFigure::Agreement => "agreement (the version before has no evaluation sample that is large enough)",
        RolloutFigure::ErrorRate => "errorRate (too few texts)",
        RolloutFigure::ComputeTime => "computeTime (too few batches of one text)",
        RolloutFigure::Accuracy if spec.feedback.is_none() => "accuracy (there is no feedback)",
        RolloutFigure::Accuracy => {
            "accuracy (clients judged fewer than analysis.minSamples answers of it or of the version before)"
        }
    };
    let told = |figure: &RolloutFigure| analysis.is_some() || *figure == RolloutFigure::Labels;
    let figures = came.not_judged.iter().filter(|figure| told(figure)).map(why);
    let none = analysis
        .is_none()
        .then_some("what it does (there is no rollout.analysis)");
    let all: Vec<&str> = figures.chain(none).collect();
    if all.is_empty() {
        return String::new();
    }
    format!(". {}: {}", reasons::NOT_JUDGED, all.join(", "))
}

/// What the condition says of a version that was rejected.
fn rolled_back((version, why): (&str, &str), serving: &str, by_itself: bool) -> String {
    let next = if by_itself {
        "autoUpdate leaves it out and takes the next one that is promotable; where this one is not to be told of any more, put it into \
         autoUpdate.exclude"
            .to_owned()
    } else {
        format!("Set modelVersion to another version, or back to {serving}")
    };
    format!(
        "{version} is rejected: {}. The pods answer with {serving}. {next}; to try it again, kubectl annotate modelversion {version} \
         {ANNOTATION_REJECTED}-",
        why.trim_end_matches('.')
    )
}

/// What the condition says of a rollout, where the spec has steps or a version was rejected.
fn of_rollout(
    service: &InferenceService,
    outcome: &Outcome<'_>,
    came: Option<&RolloutStatus>,
    now: Timestamp,
) -> Option<Desired> {
    let left_out = outcome.left_out.filter(|_| matches!(outcome.stand, Some(Stand::Done)));
    let rejected = left_out.is_some() || matches!(outcome.stand, Some(Stand::Reject { .. } | Stand::RolledBack { .. }));
    if service.spec.rollout.is_none() && !rejected {
        return None;
    }
    let serving = outcome.update.map_or("", |update| update.content.serve.as_str());
    let desired = |status, reason, message| Some(Desired::new(types::ROLLOUT_PROGRESSING, status, reason, message));
    match outcome.stand {
        None => desired(
            Status::Unknown,
            reasons::UNKNOWN,
            "there is no version that could answer yet".to_owned(),
        ),
        Some(Stand::Done) => match (&outcome.hold, left_out) {
            // It is not on its way, nor has it arrived.
            (Some(hold), _) if service.spec.model_version != serving => {
                desired(Status::False, hold.reason, hold.message.clone())
            }
            (_, Some((version, why))) => {
                let message = rolled_back((version, why), serving, true);
                desired(Status::False, reasons::ROLLED_BACK, message)
            }
            (_, None) => {
                let judged = came.map_or_else(String::new, |came| not_judged(service, came));
                let message = format!("no version is on its way; the pods are to answer with {serving}{judged}");
                desired(Status::False, reasons::ROLLOUT_COMPLETE, message)
            }
        },
        Some(Stand::Step {
            version,
            step,
            steps,
            percent,
            pods,
            until,
            waits_for,
            too_few,
            paused,
            ..
        }) => {
            let what = format!("step {step} of {steps}: {pods} pod(s)");
            let message = match until {
                None => {
                    let pod = waits_for.as_ref().map_or_else(String::new, |pod| {
                        format!("; pod {pod} does not answer with it, or does not say (kubectl describe pod {pod})")
                    });
                    format!("{what} load {version}, which is to get {percent} of 100 requests{pod}")
                }
                Some(until) => {
                    let short = too_few.as_ref().filter(|_| *until <= now);
                    let next = if let Some(short) = short {
                        format!(
                            "Its time is over, but {short}. More traffic, or rollout.approvedVersion: {version}, lets it go on; \
                             modelVersion: {serving} takes it back"
                        )
                    } else if *paused {
                        format!("Set rollout.paused to false to go on, or modelVersion to {serving} to go back")
                    } else {
                        format!("The next step comes at {until:.0}; to go back set modelVersion to {serving}")
                    };
                    format!("{what} answer with {version}, which gets {percent} of 100 requests. {next}")
                }
            };
            let is_over = until.is_some_and(|until| until <= now);
            let reason = if too_few.is_some() && is_over {
                reasons::INSUFFICIENT_TRAFFIC
            } else if *paused {
                reasons::ROLLOUT_PAUSED
            } else {
                reasons::ROLLOUT_STEP
            };
            desired(Status::True, reason, message)
        }
        Some(Stand::Last {
            version, paused: true, ..
        }) => desired(
            Status::True,
            reasons::ROLLOUT_PAUSED,
            format!(
                "the steps are over: all pods load {version}. Set rollout.paused to false, and they change over, or modelVersion \
                 to {serving} to go back"
            ),
        ),
        Some(Stand::Last { version, .. }) => desired(
            Status::True,
            reasons::ROLLOUT_LAST_STEP,
            format!("the steps are over: all pods load {version}, and change over once the last of them has it"),
        ),
        Some(Stand::TooFew { version }) => desired(
            Status::False,
            reasons::INSUFFICIENT_REPLICAS,
            format!(
                "{version} waits: by steps it takes two pods that answer, since one is always left to {serving}. Raise replicas \
                 (with scaling: minReplicas) to 2, or take rollout out, and all pods change over at once"
            ),
        ),
        Some(Stand::Unverified { version }) => desired(
            Status::False,
            reasons::VERIFICATION_PENDING,
            format!(
                "{version} waits for its verification, before which no step begins; `kubectl get modelversion {version}` says how far \
                 it is. The pods answer with {serving}; rollout.approvedVersion: {version} does without steps and without it"
            ),
        ),
        Some(Stand::Failed { version, pod, failure }) => desired(
            Status::False,
            reasons::VERSION_LOAD_FAILED,
            format!(
                "pod {pod} cannot answer with {version} ({failure}). The pods answer with {serving}. Set modelVersion to another version, \
                 or back to {serving}"
            ),
        ),
        Some(Stand::Reject { version, why } | Stand::RolledBack { version, why }) => desired(
            Status::False,
            reasons::ROLLED_BACK,
            rolled_back((version, why), serving, outcome.by_itself),
        ),
    }
}

/// A version that comes by steps, as the pods really answer with it.
struct Canary<'a> {
    version: &'a str,
    /// Pods that do.
    pods: usize,
    /// Requests of a hundred that it gets there and elsewhere.
    percent: i32,
}

impl<'a> Canary<'a> {
    fn of(update: Option<&'a Update>, says: &[PodSays]) -> Option<Self> {
        let canary = update?.canary.as_ref()?;
        let holds = |pod: &&PodSays| pod.holds(&canary.version);
        let shares = says.iter().filter(holds).filter_map(|pod| canary.pods.get(&pod.name));
        let shares: Vec<u32> = shares.map(|share| u32::from(*share)).collect();
        let all = u32::try_from(says.len()).unwrap_or(u32::MAX).max(1);
        let percent = shares.iter().sum::<u32>() as f64 / f64::from(all) / f64::from(BUCKETS_PER_PERCENT);
        Some(Self {
            version: &canary.version.name,
            pods: shares.len(),
            // At most 100.
            percent: percent.round() as i32,
        })
    }

    /// Adds it to what the pods answer with.
    fn share(&self, all: &mut Vec<Traffic>, before: Option<&InferenceServiceStatus>, says: &[PodSays]) {
        if self.pods == 0 {
            return;
        }
        if let [stable] = all.as_mut_slice() {
            stable.percent = Some(100 - self.percent);
        }
        all.push(Traffic {
            percent: Some(self.percent),
            ..traffic(self.version, self.pods, None, before, says)
        });
    }
}

/// What the status says of the load, and of the size that follows it.
struct OfLoad {
    load: Option<LoadStatus>,
    scaling: Option<ScalingStatus>,
    conditions: Vec<Desired>,
}

impl OfLoad {
    /// As far as the spec wants it: what the last look showed; before the first one of this operator, what was said before.
    fn of(service: &InferenceService, shown: Option<Shown>) -> Self {
        let spec = &service.spec;
        let before = service.status.as_ref();
        let present = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let followed = Goal::of(spec).is_some();
        let shown = shown.filter(|_| followed);
        let wanted = [
            (types::SCALING_ACTIVE, spec.scaling.is_some()),
            (types::OBJECTIVES_MET, spec.objectives.is_some()),
        ];
        let conditions = wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| {
            let known = shown
                .as_ref()
                .and_then(|s| s.conditions.iter().find(|c| c.kind == kind));
            match (known, find(present, kind)) {
                _ if !followed => not_followed(kind),
                (Some(known), _) => known.clone(),
                (None, Some(said)) => said_before(kind, said),
                (None, None) => Desired::new(kind, Status::Unknown, reasons::NO_DATA, "the pods were not asked yet"),
            }
        });
        let conditions = conditions.collect();
        let (load, scaling) = match shown {
            Some(shown) => (shown.load, shown.scaling),
            None => before.map_or((None, None), |before| (before.load.clone(), before.scaling.clone())),
        };
        Self {
            load: load.filter(|_| followed),
            scaling: scaling.filter(|_| followed && spec.scaling.is_some()),
            conditions,
        }
    }
}

/// At `replicas: 0` no load is followed.
fn not_followed(kind: &'static str) -> Desired {
    let message = "replicas is 0, so there are no pods, whatever the load. Raise replicas to serve";
    match kind {
        types::SCALING_ACTIVE => Desired::new(kind, Status::False, reasons::SCALING_DISABLED, message),
        _ => Desired::new(kind, Status::Unknown, reasons::SCALING_DISABLED, message),
    }
}

/// A condition as it stands.
pub(super) fn said_before(kind: &'static str, said: &Condition) -> Desired {
    let status = match said.status.as_str() {
        "True" => Status::True,
        "False" => Status::False,
        _ => Status::Unknown,
    };
    Desired::new(kind, status, said.reason.clone(), said.message.clone())
}

/// How requests are divided, once every pod that answers does it so.
fn divided(update: Option<&Update>) -> Option<&Split> {
    let update = update.filter(|update| update.progress == Progress::Settled)?;
    update.content.split.as_ref()
}

/// What the status says of a version that pods answer with. What they said of it before stays true as long as it is the same
/// version.
fn traffic(
    version: &str,
    pods: usize,
    split: Option<&Split>,
    before: Option<&InferenceServiceStatus>,
    says: &[PodSays],
) -> Traffic {
    let told = says.iter().filter_map(|says| says.stats.as_ref());
    let now = told.flat_map(|stats| &stats.versions).find(|told| told.name == version);
    let before = before.and_then(|status| status.traffic.iter().find(|traffic| traffic.model_version == version));
    Traffic {
        model_version: version.to_owned(),
        pods: i32::try_from(pods).unwrap_or(i32::MAX),
        percent: split.map(|split| i32::from(split.buckets(version) / BUCKETS_PER_PERCENT)),
        precision: now.and_then(|told| told.precision).or_else(|| before?.precision),
        agreement: now.and_then(|told| told.agreement).or_else(|| before?.agreement),
    }
}

/// Whether pods answer with a version, and the status does not say how it computes.
#[must_use]
pub fn precision_is_unknown(service: &InferenceService, version: &str) -> bool {
    let traffic = service.status.iter().flat_map(|status| &status.traffic);
    let known = traffic.into_iter().find(|traffic| traffic.model_version == version);
    known.is_none_or(|traffic| traffic.precision.is_none())
}
