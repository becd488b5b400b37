//! Experiments: what their variants did, pod by pod, and what is decided from it.
//!
//! It goes on beside the reconciles, which report what was decided last and take requests from variants that broke a guardrail. What
//! was counted stands in a ConfigMap, written once a minute, so that another operator goes on where the one before was: pods
//! count on, and of one that ended meanwhile at most a minute is missing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_api::InferenceService;
use flywheel_api::experiment::Experiment;
use flywheel_api::names::{self, is_controlled_by};
use flywheel_contract::serving::{Assignment, ServedVersion, Stats, Trial};
use flywheel_policy::drift::unix;
use flywheel_policy::serving::experiment::{Findings, Tally};
use flywheel_policy::serving::{PodSays, PodView, experiment};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt as _};
use tokio::sync::{Semaphore, watch};

use super::build;
use super::follow::Rounds;
use super::observe::{Pods, ask_one, newest_assignment};
use crate::admin::Beats;
use crate::context::Context;
use crate::error::Error;
use crate::kubeio::{SERVING_MANAGER, within};

/// Time between two looks at a service: so long a variant that fails may go on to answer.
const EVERY: Duration = Duration::from_secs(10);
/// Time between two writes of counts alone, in the ConfigMap and in status.
const COUNTS_EVERY: Duration = Duration::from_secs(60);
/// So many pods at once bound connections, and the memory for answers.
const ROUNDS: Rounds = Rounds {
    name: "experiments",
    tick: Duration::from_secs(1),
    services_at_once: 16,
    asked_at_once: 32,
};

/// Which experiment: its id, and since when its variants are told to answer. The same variants may be compared again.
type Which = (String, Option<u64>);

fn which(trial: &Trial, present: &Assignment) -> Which {
    (trial.id.clone(), present.judged_since)
}

/// What is kept of each service.
#[derive(Debug, Default)]
pub struct ExperimentMemo {
    services: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// When the last look began.
    begun: Option<Timestamp>,
    /// The ConfigMap was read.
    loaded: bool,
    /// None before the experiment began.
    tally: Option<Tally>,
    /// When it was written last.
    written: Option<Timestamp>,
    /// Its ConfigMap does not say what it does.
    unwritten: bool,
    /// What was decided last, of which experiment.
    last: Option<(Which, Findings)>,
    /// The same as status has it, and since when.
    shown: Option<(Timestamp, Which, Findings)>,
}

impl ExperimentMemo {
    fn services(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to say of the experiment of this assignment, if something is known.
    pub(super) fn shown(&self, uid: &str, trial: &Trial, present: &Assignment) -> Option<Findings> {
        let services = self.services();
        let (_, of, findings) = services.get(uid)?.shown.as_ref()?;
        (*of == which(trial, present)).then(|| findings.clone())
    }

    /// The experiment of this assignment with the variants that broke a guardrail since it was written.
    fn broken(&self, uid: &str, trial: &Trial, present: &Assignment) -> Option<Trial> {
        let services = self.services();
        let (of, findings) = services.get(uid)?.last.as_ref()?;
        (*of == which(trial, present)).then(|| Trial {
            id: trial.id.clone(),
            stopped: findings.broken.clone(),
        })
    }

    /// Whether a look is due; if so, it counts as begun.
    pub(crate) fn due(&self, uid: &str, now: Timestamp) -> bool {
        let mut services = self.services();
        let known = services.entry(uid.to_owned()).or_default();
        let due = is_past(known.begun, EVERY, now);
        if due {
            known.begun = Some(now);
        }
        due
    }

    /// Forgets all other services.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.services().retain(|uid, _| alive.contains(uid));
    }

    /// Forgets a service.
    pub fn forget(&self, uid: &str) {
        self.services().remove(uid);
    }
}

fn is_past(since: Option<Timestamp>, time: Duration, now: Timestamp) -> bool {
    since.is_none_or(|since| now.duration_since(since).unsigned_abs() >= time)
}

/// The experiment that a spec asks for, with the variants that were stopped. `versions`: those that the spec names.
pub(super) fn trial<'a>(
    service: &InferenceService,
    wishes: &Experiment,
    versions: impl Iterator<Item = &'a ServedVersion>,
    present: Option<&Assignment>,
    context: &Context,
) -> Trial {
    let before = present.and_then(|present| Some((present.trial.as_ref()?, present)));
    let known = before.map_or_else(Vec::new, |(trial, present)| {
        let broken = context
            .experiments
            .broken(&service.uid().unwrap_or_default(), trial, present);
        std::iter::once(trial.clone()).chain(broken).collect()
    });
    experiment::trial(wishes.metric, &variants(wishes, versions), &known)
}

fn variants<'a>(wishes: &Experiment, versions: impl Iterator<Item = &'a ServedVersion>) -> Vec<&'a ServedVersion> {
    let is_variant = |name: &str| wishes.variants.iter().any(|variant| variant.model_version == name);
    versions.filter(|version| is_variant(&version.name)).collect()
}

/// The experiment of the spec, where it is the one that the pods are told to run.
pub(super) fn running<'a>(service: &InferenceService, present: Option<&'a Assignment>) -> Option<&'a Trial> {
    let wishes = service.spec.experiment.as_ref()?;
    let present = present?;
    let variants = variants(wishes, present.versions.iter());
    let wanted = experiment::trial(wishes.metric, &variants, &[]);
    let of_spec = variants.len() == wishes.variants.len() && present.serve == service.spec.model_version;
    present.trial.as_ref().filter(|trial| of_spec && trial.id == wanted.id)
}

/// Looks at the pods of all services with an experiment until `stop` is told. `changed` is told the namespace and name of a service of
/// which there is something new to say.
pub async fn follow_experiments(
    context: Arc<Context>,
    beats: Beats,
    stop: watch::Receiver<bool>,
    changed: impl Fn(&str, &str),
) {
    ROUNDS
        .follow(
            context,
            beats,
            stop,
            |service| service.spec.experiment.is_some(),
            |service, asked, context| look(service, asked, context).boxed(),
            changed,
        )
        .await;
}

/// Looks at a service if it is time; the service, where there is something new to say of it.
pub(super) async fn look<'a>(
    service: &'a InferenceService,
    asked: &Semaphore,
    context: &Context,
) -> Option<&'a InferenceService> {
    let uid = service.uid()?;
    if !context.experiments.due(&uid, context.clock.even()) {
        return None;
    }
    let present = newest_assignment(service, context)?;
    let trial = running(service, Some(&present))?;
    let pods = Pods::of(service, context);
    let told = ROUNDS
        .ask(&pods, asked, context, |view, pod, context| {
            figures(view, pod, context).boxed()
        })
        .await;
    let alive: HashSet<String> = pods
        .pods
        .iter()
        .filter_map(|(_, pod): &(_, Arc<Pod>)| pod.uid())
        .collect();
    match follow(service, &present, trial, &told, &alive, context).await {
        Ok(news) => news.then_some(service),
        Err(error) => {
            tracing::warn!(service = service.name_any(), %error, "what an experiment counted is not known yet; tried again");
            None
        }
    }
}

/// What a pod says of itself, also where that is nothing.
async fn figures(view: &PodView, pod: &Pod, context: &Context) -> Option<PodSays> {
    let says = ask_one(view, pod, context).await;
    context.metrics.scrape("experiment", says.stats.is_some());
    Some(says)
}

/// Adds what pods say to what was counted, and decides from it. Whether there is something new to say.
async fn follow(
    service: &InferenceService,
    present: &Assignment,
    trial: &Trial,
    told: &[(String, PodSays)],
    alive: &HashSet<String>,
    context: &Context,
) -> Result<bool, Error> {
    let (Some(wishes), Some(uid)) = (&service.spec.experiment, service.uid()) else {
        return Ok(false);
    };
    let now = context.clock.even();
    let which = which(trial, present);
    let (tally, loaded) = {
        let mut services = context.experiments.services();
        let known = services.entry(uid.clone()).or_default();
        // It is put back below; a look that ends before that reads it again.
        (known.tally.clone(), known.loaded)
    };
    let tally = if loaded { tally } else { kept(service, context).await? };
    let tally = tally.filter(|tally| tally.is_of(&trial.id, present.judged_since));
    let said: Vec<(&String, &PodSays, &Stats)> = told
        .iter()
        .filter_map(|(pod, says)| Some((pod, says, says.stats.as_ref()?)))
        .collect();
    let begins = tally.is_none();
    let all_follow = said.iter().all(|(.., stats)| stats.generation >= present.generation);
    if begins && (said.is_empty() || !all_follow) {
        // Another look shows it.
        let mut services = context.experiments.services();
        let known = services.entry(uid).or_default();
        (known.tally, known.loaded) = (None, true);
        return Ok(false);
    }
    let variants = variants(wishes, present.versions.iter());
    let mut tally = tally.unwrap_or_else(|| {
        let names: Vec<&str> = variants.iter().map(|version| version.name.as_str()).collect();
        Tally::begin(&trial.id, present.judged_since, &names, unix(now))
    });
    let mut counted = false;
    for (pod, says, stats) in said {
        let figures = variants
            .iter()
            .filter_map(|version| Some((version.name.as_str(), says.version(version)?.figures?)));
        let figures: Vec<_> = figures.collect();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a process does not run that long"
        )]
        let started = unix(now).saturating_sub(stats.uptime_seconds.max(0.0) as u64);
        counted |= tally.add(pod, started, &figures);
    }
    tally.retain(|pod| alive.contains(pod));
    let findings = tally.judge(wishes, &present.serve, trial);

    let (decided, due) = {
        let services = context.experiments.services();
        let known = services.get(&uid);
        let last = known.and_then(|known| known.last.as_ref());
        let decided = last.is_none_or(|(of, last)| *of != which || !last.says_as(&findings));
        let unwritten = known.is_some_and(|known| known.unwritten) || counted;
        let due = unwritten && known.is_none_or(|known| is_past(known.written, COUNTS_EVERY, now));
        (decided, due)
    };
    let write = begins || (decided && loaded) || due;
    let written = if write {
        keep(service, &tally, context).await
    } else {
        Ok(())
    };
    if let Err(error) = &written {
        tracing::warn!(service = service.name_any(), %error, "what an experiment counted is not kept yet; tried again");
    }
    let mut services = context.experiments.services();
    let known = services.entry(uid).or_default();
    known.tally = Some(tally);
    known.loaded = true;
    if write && written.is_ok() {
        (known.written, known.unwritten) = (Some(now), false);
    } else {
        known.unwritten |= counted || written.is_err();
    }
    known.last = Some((which.clone(), findings.clone()));
    let news = known.shown.as_ref().is_none_or(|(since, of, shown)| {
        *of != which || !shown.says_as(&findings) || (*shown != findings && is_past(Some(*since), COUNTS_EVERY, now))
    });
    if news {
        known.shown = Some((now, which, findings));
    }
    Ok(news)
}

/// What was counted, as the ConfigMap has it. The cache holds none.
async fn kept(service: &InferenceService, context: &Context) -> Result<Option<Tally>, Error> {
    let namespace = service.namespace().unwrap_or_default();
    let name = names::experiment(&service.name_any());
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let map = within(&format!("get ConfigMap {name}"), maps.get_opt(&name)).await?;
    let uid = service.uid().unwrap_or_default();
    let mine = map.filter(|map| is_controlled_by(&map.metadata, &uid));
    Ok(mine.and_then(|map| build::experiment::read(&map)))
}

async fn keep(service: &InferenceService, tally: &Tally, context: &Context) -> Result<(), Error> {
    let map = build::experiment::build(service, tally)?;
    let namespace = service.namespace().unwrap_or_default();
    let cached = context.caches.config_maps.get(&namespace, &map.name_any());
    let uid = service.uid().unwrap_or_default();
    context
        .writes(SERVING_MANAGER)
        .apply_owned(&map, cached.as_deref(), &uid)
        .await?;
    Ok(())
}
