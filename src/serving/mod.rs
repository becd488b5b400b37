//! InferenceService: pods that answer with a ModelVersion, behind a Service of the same name.
//!
//! The Service listens on port 80, with TLS on 443, and leads to the pods' data port. What a service runs with is kept in a
//! ControllerRevision and applied as it is until the user's inputs change ([`build::template`]). Which version the pods answer
//! with is in a ConfigMap that they follow while they run ([`build::assignment`]): first all load it, then all change over. A
//! version that cannot be served or loaded changes nothing of the pods that answer: they go on, and status says why.

pub mod apply;
pub mod build;
pub mod drift;
pub mod experiment;
mod follow;
mod memo;
pub mod observe;
mod recovery;
pub mod rejection;
pub mod report;
mod retraining;
pub mod scale;

use std::sync::Arc;
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_api::conditions::reasons;
use flywheel_api::drift::Drift;
use flywheel_contract::serving::{Assignment, ServedVersion, ServingConfig};
use flywheel_policy::serving::copies;
use flywheel_policy::serving::scale::Goal;
use flywheel_policy::serving::{
    Exchange, Hold, Intent, Progress, RolloutView, Stage, Stand, Update, VersionView, Wanted, decide, exchange,
    keeps_pods, must_ask, roll,
};
use kube::ResourceExt as _;

pub use drift::DriftMemo;
pub use experiment::ExperimentMemo;
pub use memo::AssignmentMemo;
pub(crate) use observe::newest_assignment;
pub use recovery::RecoveryMemo;
pub use scale::ScaleMemo;

use crate::context::Context;
use crate::controller::RESYNC;
use crate::error::Error;
use apply::{Objects, Store};
use build::template::{Rendered, inputs_hash, render};
use build::{assignment, config_map, deployment, disruption_budget, network_policy, revision, service};
use observe::{Observed, ask, observe};
use recovery::{recover, replace};
use report::Outcome;

/// How soon pods that have not started are looked at again: neither new nodes nor passing time trigger anything.
const WAITING_TO_START: Duration = Duration::from_secs(5);
/// Time between two looks at pods that follow a new assignment.
const FOLLOWING: Duration = Duration::from_millis(200);
/// Looks of that kind, until one a second is enough.
const QUICK_LOOKS: u32 = 50;
/// Time between two looks then.
const FOLLOWING_FOR_LONG: Duration = Duration::from_secs(1);

/// What the Deployment's pods are to be.
struct Workload {
    rendered: Rendered,
    hash: String,
    store: Store,
    replicas: i32,
}

/// Brings an InferenceService one step further; the time after which to look again.
///
/// # Errors
/// What only time, or a fix of Flywheel, can mend. What the user can mend is reported as a condition and is no error here.
pub async fn reconcile(service: Arc<InferenceService>, context: Arc<Context>) -> Result<Duration, Error> {
    let uid = service.uid().unwrap_or_default();
    if service.metadata.deletion_timestamp.is_some() {
        // Children go by their owner references.
        context.assignments.forget(&uid);
        context.scales.forget(&uid, &context.metrics);
        context.drifts.forget(&uid, &context.metrics);
        context.experiments.forget(&uid);
        context.recoveries.forget(&uid);
        return Ok(RESYNC);
    }
    let asked = service.spec.model_version.clone();
    let candidates = retraining::candidates(&service, &context);
    let service = retraining::with_target(service, &candidates);
    if service.spec.drift.is_none() {
        context.drifts.forget(&uid, &context.metrics);
    }
    if service.spec.experiment.is_none() {
        context.experiments.forget(&uid);
    }
    if Goal::of(&service.spec).is_none() {
        context.scales.unfollow(&uid, &context.metrics);
    }
    let mut observed = observe(&service, &context);
    let spec = &service.spec;
    let intent = decide(&spec.model, "modelVersion", &spec.model_version, &observed.version);
    let (wanted, beside) = wanted(&service, &observed, &intent, &context);
    let (exchange, again) = exchange(observed.exchange_view(), context.now());
    let (mut update, stand) = versions(&service, &mut observed, wanted.as_ref(), &context)
        .await
        .unzip();
    let mut refused = None;
    if let Some(Stand::Reject { why, .. }) = &stand
        && let Err(error) = apply::reject(&service, why, &observed, &context).await
    {
        let Some((reason, message)) = error.problem() else {
            return Err(error);
        };
        refused = Some(Hold::refused(reason, message));
        // The pods let it go only after that: with it goes what they know of it. Until then they hold it back.
        update = update
            .zip(observed.assignment.as_ref())
            .map(|(update, present)| update.postponed(present));
    }
    let assignment = update.as_ref().map(|update| {
        let window = spec.drift.as_ref().map(Drift::counted_seconds);
        assignment::next(update, observed.assignment.as_ref(), window, context.now())
    });
    let serve = assignment.as_ref().map(|a| a.serve.as_str());
    let (workload, hold) = workload(&service, &observed, intent, serve, &context)?;
    let mut hold = hold.or(refused).or(beside);

    let recovery = recover(&service, &observed, &context);
    // Before the Deployment is made smaller again, which would take any of its pods.
    replace(&service, &recovery.plan, &observed, &context).await?;
    let surge = i32::try_from(recovery.plan.surge).unwrap_or(0);
    let device = workload.as_ref().and_then(|w| device(&w.rendered));
    let mut has_service = observed.has_service;
    let mut present = observed.deployment.as_deref().cloned();
    // A Deployment begins its life with one pod, so none is made before somebody asks for pods.
    let wanted = present.is_some() || observed.size > 0;
    let mut looks = 0;
    if let Some(mut workload) = workload.filter(|_| wanted) {
        if workload.replicas > 0 {
            workload.replicas = workload.replicas.saturating_add(surge);
        }
        let objects = objects(
            &service,
            workload,
            observed.size,
            assignment.as_ref(),
            exchange,
            &context,
        )?;
        // Boxed: it holds every object while it waits.
        match Box::pin(apply::apply(&service, objects, &observed, &context)).await {
            Ok(deployment) => {
                has_service = true;
                present = Some(deployment);
                if let (Some(update), Some(assignment)) = (&update, &assignment) {
                    let behind = observed.behind(update, assignment);
                    apply::nudge(&behind, assignment.generation, &context).await?;
                    let waits = matches!(stand, Some(Stand::Step { until: None, .. }));
                    let settled = update.progress == Progress::Settled
                        && observed.assignment.as_ref() == Some(assignment)
                        && !waits;
                    looks = context.assignments.note(&uid, assignment, settled);
                }
            }
            Err(error) => match error.problem() {
                Some((reason, message)) => {
                    hold = Some(Hold::refused(reason, message));
                }
                None => return Err(error),
            },
        }
    }

    let retraining = retraining::retrain(&service, &candidates, observed.assignment.as_ref(), &context).await?;
    let left_out = retraining::left_out(&service, &candidates, &context);
    let outcome = Outcome {
        has_service,
        deployment: present.as_ref(),
        hold,
        update: update.as_ref(),
        stand: stand.as_ref(),
        left_out: left_out.as_ref(),
        by_itself: asked != spec.model_version,
        device,
        recovery: &recovery,
        retraining: &retraining,
    };
    let judgement = report::report(&service, &observed, &outcome, &context).await?;
    let mut again = again.unwrap_or(RESYNC);
    for wait in [recovery.plan.again, retraining.again].into_iter().flatten() {
        again = again.min(wait);
    }
    if recovery.incidents.iter().any(|incident| !incident.is_over()) {
        again = again.min(WAITING_TO_START);
    }
    let starts = observed.pods.iter().any(|p| p.stage <= Stage::Starting);
    if observed.placement.is_some() || starts || judgement.reason == reasons::PENDING {
        again = again.min(WAITING_TO_START);
    }
    if spec.mirror.is_some() {
        again = again.min(copies::EVERY);
    }
    let following = if looks <= QUICK_LOOKS {
        FOLLOWING
    } else {
        FOLLOWING_FOR_LONG
    };
    match update.map(|update| update.progress) {
        Some(Progress::Loading { .. } | Progress::Switching { .. }) => again = again.min(following),
        Some(Progress::Failed { .. }) => again = again.min(WAITING_TO_START),
        Some(Progress::Settled) if looks > 0 => again = again.min(following),
        Some(Progress::Settled) | None => {}
    }
    Ok(match stand {
        // The pods are to answer with it soon.
        Some(Stand::Step { until: None, .. }) => again.min(following),
        Some(Stand::Last { .. } | Stand::Reject { .. }) => again.min(FOLLOWING_FOR_LONG),
        // Its figures are judged all the time.
        Some(Stand::Step { .. }) if spec.rollout.as_ref().is_some_and(|rollout| rollout.analysis.is_some()) => {
            again.min(WAITING_TO_START)
        }
        Some(Stand::Step { too_few: Some(_), .. }) => again.min(WAITING_TO_START),
        Some(Stand::Step {
            until: Some(until),
            paused: false,
            ..
        }) => {
            let left = Duration::try_from(until.duration_since(context.now())).unwrap_or_default();
            // It may be over and a pod not say that it answers.
            again.min(left.max(FOLLOWING_FOR_LONG))
        }
        Some(Stand::Failed { .. }) => again.min(WAITING_TO_START),
        Some(
            Stand::Step { .. }
            | Stand::Done
            | Stand::TooFew { .. }
            | Stand::Unverified { .. }
            | Stand::RolledBack { .. },
        )
        | None => again,
    })
}

/// What the spec wants of its versions, as far as they can be served; and what speaks against those beside that of
/// `modelVersion`. While something does, what runs goes on as it is.
fn wanted(
    service: &InferenceService,
    observed: &Observed,
    intent: &Intent,
    context: &Context,
) -> (Option<Wanted>, Option<Hold>) {
    let (Intent::Serve, Some(artifact)) = (intent, &observed.artifact) else {
        return (None, None);
    };
    let spec = &service.spec;
    let only = Wanted::only(ServedVersion {
        name: spec.model_version.clone(),
        artifact: artifact.clone(),
    });
    let (mut others, mut mirror, mut beside) = (Vec::new(), spec.mirrored(), None);
    for other in &observed.others {
        let mirrored = spec
            .mirror
            .as_ref()
            .is_some_and(|mirror| mirror.model_version == other.name);
        let field = if mirrored {
            "mirror.modelVersion"
        } else {
            "experiment.variants"
        };
        match (decide(&spec.model, field, &other.name, &other.version), &other.artifact) {
            (Intent::Serve, Some(artifact)) => others.push(ServedVersion {
                name: other.name.clone(),
                artifact: artifact.clone(),
            }),
            // Copies keep nobody from an answer.
            (Intent::Serve, None) if mirrored => mirror = None,
            (Intent::Hold(hold), _) if mirrored => {
                mirror = None;
                beside = Some(Hold { unfit: false, ..hold });
            }
            (Intent::Serve, None) => return (None, None),
            (Intent::Hold(hold), _) => {
                // It says nothing against the pods, which answer with another one.
                let hold = Hold { unfit: false, ..hold };
                return (observed.assignment.is_none().then_some(only), Some(hold));
            }
        }
    }
    let shares = spec.shares().into_iter();
    let trial = spec.experiment.as_ref().map(|wishes| {
        let all = std::iter::once(&only.serve).chain(&others);
        experiment::trial(service, wishes, all, observed.assignment.as_ref(), context)
    });
    let wanted = Wanted {
        trial,
        others,
        shares: shares.map(|(name, percent)| (name.to_owned(), percent)).collect(),
        mirror,
        salt: service.uid().unwrap_or_default(),
        ..only
    };
    (Some(wanted), beside)
}

/// Which versions the pods are to hold, from what they say where that matters, and how a rollout stands; and notes what each
/// answers with.
async fn versions(
    service: &InferenceService,
    observed: &mut Observed,
    wanted: Option<&Wanted>,
    context: &Context,
) -> Option<(Update, Stand)> {
    let uid = service.uid().unwrap_or_default();
    let present = observed.assignment.as_ref();
    let settled = present.is_some_and(|present| context.assignments.settled(&uid, present));
    let ready = observed.pods.iter().filter(|pod| pod.stage == Stage::Ready);
    let ready: Vec<_> = ready.map(|pod| (pod.name.clone(), pod.restarts)).collect();
    // One that came back may hold a version back.
    let several = present.is_some_and(|present| present.versions.len() > 1);
    let came_back = several && context.assignments.came_back(&uid, &ready);
    let canary = present.is_some_and(|present| present.canary.is_some());
    let must = came_back || canary || must_ask(wanted, present, settled);
    let unknown = present.is_some_and(|present| report::precision_is_unknown(service, &present.serve));
    let told = service.status.as_ref().and_then(|status| status.mirror.as_ref());
    let copies = present.is_some_and(|present| present.mirror.is_some()) && copies::is_due(told, context.now());
    // Pods of another template may compute in another format.
    if must || unknown || copies || context.assignments.others(&uid, &ready) {
        observed.says = ask(observed, context).await;
        context.assignments.note_asked(&uid, ready);
    }
    for pod in observed.pods.iter_mut().filter(|pod| pod.stage == Stage::Ready) {
        pod.version = if must {
            let says = observed.says.iter().find(|says| says.name == pod.name);
            says.and_then(|says| says.stats.as_ref()?.serving.clone())
        } else {
            // All that answered when it was written follow it, and those that came later began with it.
            observed.assignment.as_ref().map(|a| a.serve.clone())
        };
    }
    let says = if must { observed.says.as_slice() } else { &[] };
    let alive: Vec<String> = observed.pods.iter().map(|pod| pod.name.clone()).collect();
    let comes = present.and_then(|present| Some((&present.canary.as_ref()?.version, present.serving()?)));
    let figures = match comes {
        Some((canary, stable)) => Some(context.assignments.watch(&uid, canary, stable, says)),
        None => {
            context.assignments.unwatch(&uid);
            None
        }
    };
    let namespace = service.namespace().unwrap_or_default();
    let number = |name: &str| Some(context.caches.model_versions.get(&namespace, name)?.spec.version);
    let serving = present.and_then(Assignment::serving);
    let (to, from) = (wanted.map(|wanted| &wanted.serve), serving);
    let view = RolloutView {
        spec: service.spec.rollout.as_ref(),
        rejected: observed.rejected.as_deref(),
        verified: matches!(observed.version, VersionView::Found { verified: true, .. }),
        // Where the one that answers is gone nobody knows.
        back: matches!(to.zip(from).map(|(to, from)| (number(&to.name), number(&from.name))), Some((Some(to), Some(from))) if to < from),
        alive: &alive,
        figures,
        feedback: service.spec.feedback.is_some(),
        now: context.now(),
    };
    roll(&view, wanted, present, says)
}

/// The pods' template and how many there are: the stored one while the user's inputs are the same, a new one where they
/// changed. While they cannot be followed the newest stored one runs, unless its pods are better gone ([`keeps_pods`]), and
/// the [`Hold`] says why.
fn workload(
    service: &InferenceService,
    observed: &Observed,
    intent: Intent,
    serve: Option<&str>,
    context: &Context,
) -> Result<(Option<Workload>, Option<Hold>), Error> {
    let workload = |rendered, hash, store| Workload {
        rendered,
        hash,
        store,
        replicas: observed.size,
    };
    let hold = match intent {
        Intent::Serve => {
            let hash = inputs_hash(service)?;
            let newest = revision::newest(&observed.revisions);
            let stored = revision::find(&observed.revisions, &hash).and_then(|r| Some((r, revision::rendered(r)?)));
            if let Some((present, rendered)) = stored {
                let store = if present.revision < newest {
                    Store::Renumber(present.clone(), newest.saturating_add(1))
                } else {
                    Store::Keep
                };
                return Ok((Some(workload(rendered, hash, store)), None));
            }
            let rendered = context
                .settings
                .class(&service.spec.accelerator.class)
                .and_then(|class| render(service, class, &context.settings));
            match rendered {
                Ok(rendered) => {
                    let stored = revision::build(service, &hash, newest.saturating_add(1), &rendered)?;
                    let store = Store::New(stored);
                    return Ok((Some(workload(rendered, hash, store)), None));
                }
                Err(error) => match error.problem() {
                    Some((reason, message)) => Hold::refused(reason, message),
                    None => return Err(error),
                },
            }
        }
        Intent::Hold(hold) => hold,
    };
    let stored = revision::newest_first(&observed.revisions).into_iter().find_map(|r| {
        let hash = revision::inputs_of(r)?.to_owned();
        Some(workload(revision::rendered(r)?, hash, Store::Keep))
    });
    let kept = keeps_pods(&hold, &service.spec.model_version, serve, &observed.pods);
    let stored = stored.map(|workload| Workload {
        replicas: if kept { workload.replicas } else { 0 },
        ..workload
    });
    Ok((stored, Some(hold)))
}

fn objects(
    service: &InferenceService,
    workload: Workload,
    size: i32,
    assignment: Option<&Assignment>,
    exchange: Exchange,
    context: &Context,
) -> Result<Objects, Error> {
    Ok(Objects {
        service: service::build(service),
        config_map: config_map::build(service, &workload.rendered.config),
        assignment: assignment.map(|a| assignment::build(service, a)).transpose()?,
        revision: workload.store,
        inputs_hash: workload.hash,
        deployment: deployment::build(service, workload.rendered.template, exchange),
        replicas: workload.replicas,
        network_policy: network_policy::build(service, &context.operator_namespace),
        disruption_budget: disruption_budget::build(service, size),
    })
}

/// What the pods compute on.
fn device(rendered: &Rendered) -> Option<flywheel_contract::scalar::Device> {
    serde_json::from_str::<ServingConfig>(&rendered.config)
        .ok()
        .map(|c| c.device)
}

#[cfg(test)]
mod tests;
