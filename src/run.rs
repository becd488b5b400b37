//! Wiring only: client, lease, caches, three controllers, admin server, and the order in which they start and stop.
//!
//! Watches run on the standby as well and fill the caches; only the leader reconciles. What a watch sees becomes triggers
//! (the object itself, or the objects that a child belongs to), sent to the controllers while they run.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flywheel_api::conditions::types;
use flywheel_api::names::{
    FLYWHEEL, LABEL_INFERENCE_SERVICE, LABEL_MANAGED_BY, LABEL_MODEL_VERSION, LABEL_RETRAINS, LABEL_TRAINING_JOB,
};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, BEAT, Beats};
use crate::backoff::Backoff;
use crate::cache::{CacheWriter, CacheWriters, Caches, Prune};
use crate::client::{Caller, ClientError, watch_config};
use crate::cluster::nodes;
use crate::context::Context;
use crate::controller::{self, RECONCILE_TIMEOUT};
use crate::error::Error;
use crate::kubeio::{Kind, within};
use crate::lease::{self, LeaseHandle};
use crate::queue::Queue;
use crate::settings::{Settings, SettingsError};
use crate::telemetry::Metrics;
use crate::{models, serving, training};

/// How long reconciles that run may go on at shutdown; the pod has 30 s.
const DRAIN_LIMIT: Duration = Duration::from_secs(15);
/// How often what belongs to no object is swept.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// The settings file.
    pub settings: PathBuf,
    /// Where `/livez`, `/readyz` and `/metrics` listen.
    pub admin_addr: SocketAddr,
    /// Namespace of the Lease and of the operator.
    pub namespace: String,
    /// Name of this replica, which no other one has.
    pub identity: String,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A CRD is missing, or the operator may not list it.
    #[error("{kind} cannot be listed: {source}; apply the CRDs (crds/), and see that the operator's role allows it")]
    Crd {
        /// The kind.
        kind: &'static str,
        /// Why.
        #[source]
        source: Error,
    },
    /// The admin port cannot be opened.
    #[error("admin port {address}: {source}")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The leadership was lost; the process ends so that nothing of it can write any more.
    #[error("the leadership was lost; ending, to start again as a standby")]
    LostLeadership,
    /// A loop that must not end did.
    #[error("{0} ended by itself")]
    Ended(String),
}

/// Ends when the process is told to stop: SIGTERM or SIGINT. Signals count from this call on, whenever it is awaited.
///
/// # Errors
/// The system does not let the process wait for signals.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Runs the operator until `told_to_stop` ends.
///
/// # Errors
/// It cannot start, or had to stop.
pub async fn run(arguments: Arguments, told_to_stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut told_to_stop = std::pin::pin!(told_to_stop);
    let handle = LeaseHandle::none();
    let metrics = Metrics::default();
    let (settings, client, listener) = tokio::select! {
        prepared = prepare(&arguments, handle.clone(), &metrics) => prepared?,
        () = &mut told_to_stop => return Ok(()),
    };
    let (caches, writers) = Caches::new(&settings.namespaces);
    let context = Arc::new(Context::new(
        client.clone(),
        arguments.namespace.clone(),
        settings,
        caches,
        handle.clone(),
        metrics,
    ));
    let beats = Beats::default();
    let triggers = Triggers::default();
    let (stop_tx, stop) = watch::channel(false);
    let (ready_tx, ready) = watch::channel(false);
    let (leading_tx, mut leading) = watch::channel(false);

    let mut background: JoinSet<String> = JoinSet::new();
    // First, so that the kubelet finds a process that waits for the API server alive.
    background.spawn({
        let (context, beats, stop) = (Arc::clone(&context), beats.clone(), stop.clone());
        async move {
            admin::serve(listener, context, beats, ready, stop).await;
            "the admin server".to_owned()
        }
    });
    tokio::select! {
        checked = check_crds(&client, &context.settings) => checked?,
        ended = background.join_next() => return Err(ended_early(ended)),
        () = &mut told_to_stop => return Ok(()),
    }
    start_watches(&mut background, &context, writers, &triggers, &beats);
    tokio::select! {
        outcome = context.caches.wait_until_ready() => outcome.map_err(|e| RunError::Ended(format!("a watch ({e})")))?,
        ended = background.join_next() => return Err(ended_early(ended)),
        () = &mut told_to_stop => return Ok(()),
    }
    ready_tx.send_replace(true);
    tracing::info!(caches = ?context.caches.sizes(), "the caches are filled");

    // The election has its own stop: the Lease is released only after the last reconcile.
    let (release_tx, release) = watch::channel(false);
    let mut election = tokio::spawn({
        let (namespace, identity) = (arguments.namespace.clone(), arguments.identity.clone());
        async move { lease::run(client, &namespace, identity, handle, leading_tx, release).await }
    });

    let mut controllers: JoinSet<()> = JoinSet::new();
    let mut running = false;
    let outcome = loop {
        tokio::select! {
            () = &mut told_to_stop => break Ok(()),
            ended = background.join_next() => break Err(ended_early(ended)),
            _ = &mut election => break Err(RunError::LostLeadership),
            changed = leading.changed(), if !running => {
                if changed.is_err() {
                    break Err(RunError::LostLeadership);
                }
                if *leading.borrow_and_update() {
                    context.metrics.leads(true);
                    start_controllers(&mut controllers, &context, &triggers, &beats, &stop);
                    running = true;
                }
            }
            Some(_) = controllers.join_next(), if running => break Err(RunError::Ended("a controller".to_owned())),
        }
    };

    match &outcome {
        Err(RunError::LostLeadership) => {
            // Whatever runs must not write; the handle refuses it already.
            controllers.abort_all();
        }
        _ => {
            tracing::info!("stopping");
            stop_tx.send_replace(true);
            let drained = tokio::time::timeout(DRAIN_LIMIT, async { while controllers.join_next().await.is_some() {} });
            if drained.await.is_err() {
                tracing::warn!("reconciles still ran after {} s and were ended", DRAIN_LIMIT.as_secs());
                controllers.abort_all();
            }
            release_tx.send_replace(true);
            if !election.is_finished() {
                let _ = tokio::time::timeout(Duration::from_secs(10), &mut election).await;
            }
        }
    }
    context.metrics.leads(false);
    outcome
}

fn ended_early(ended: Option<Result<String, tokio::task::JoinError>>) -> RunError {
    RunError::Ended(match ended {
        Some(Ok(what)) => what,
        Some(Err(error)) => format!("a background task ({error})"),
        None => "the background".to_owned(),
    })
}

/// What there must be before anything runs: settings, a client, the admin port.
async fn prepare(
    arguments: &Arguments,
    lease: LeaseHandle,
    metrics: &Metrics,
) -> Result<(Settings, Client, TcpListener), RunError> {
    let settings = Settings::load(&arguments.settings)?;
    let caller = Caller {
        identity: arguments.identity.clone(),
        lease,
    };
    let client = crate::client::connect(caller, metrics).await?;
    let listener = TcpListener::bind(arguments.admin_addr)
        .await
        .map_err(|source| RunError::Admin {
            address: arguments.admin_addr,
            source,
        })?;
    Ok((settings, client, listener))
}

/// A missing CRD would leave a watch waiting in silence for ever, so it is looked for first. An API server that does not
/// answer is waited for: ending would leave it to the kubelet when to try again, which is after up to five minutes.
async fn check_crds(client: &Client, settings: &Settings) -> Result<(), RunError> {
    async fn check<K: Kind>(client: &Client, settings: &Settings, kind: &'static str) -> Result<(), RunError> {
        let api: Api<K> = match settings.namespaces.first() {
            None => Api::all(client.clone()),
            Some(namespace) => Api::namespaced(client.clone(), namespace),
        };
        let one = kube::api::ListParams::default().limit(1);
        let failures = Backoff::default();
        loop {
            let source = match within("list", api.list(&one)).await {
                Ok(_) => return Ok(()),
                Err(source) => source,
            };
            if let Error::Api { source: answer, .. } = &source
                && let kube::Error::Api(status) = answer.as_ref()
                && (status.is_not_found() || status.is_forbidden())
            {
                return Err(RunError::Crd { kind, source });
            }
            let again = failures.failed(kind);
            tracing::warn!(error = %source, again = again.as_secs(), "the API server does not answer yet");
            tokio::time::sleep(again).await;
        }
    }
    check::<TrainingJob>(client, settings, "TrainingJob").await?;
    check::<ModelVersion>(client, settings, "ModelVersion").await?;
    check::<InferenceService>(client, settings, "InferenceService").await
}

/// What the controllers are to look at. A controller that starts looks at every object; before that nothing is kept.
#[derive(Clone)]
struct Triggers {
    training: Arc<Queue>,
    models: Arc<Queue>,
    serving: Arc<Queue>,
}

impl Default for Triggers {
    fn default() -> Self {
        let queue = || Arc::new(Queue::new(controller::OF_ONE_NAMESPACE));
        Self {
            training: queue(),
            models: queue(),
            serving: queue(),
        }
    }
}

impl Triggers {
    /// Something is to be said of nodes: all whose pods are on them look again.
    fn on_nodes(&self, caches: &Caches, is_meant: impl Fn(&str) -> bool) {
        for pod in caches.pods.all(|pod| nodes::node_of(pod).is_some_and(&is_meant)) {
            self.child(pod.as_ref());
        }
    }

    /// A child changed: all whose name it carries in its labels look again. Whether it is theirs they find out.
    fn child<K: ResourceExt>(&self, child: &K) {
        let Some(namespace) = child.namespace() else { return };
        let labels = child.labels();
        if let Some(name) = labels.get(LABEL_TRAINING_JOB) {
            self.training.now(&namespace, name);
        }
        if let Some(name) = labels.get(LABEL_INFERENCE_SERVICE) {
            self.serving.now(&namespace, name);
        } else if let Some(name) = labels.get(LABEL_MODEL_VERSION) {
            self.models.now(&namespace, name);
        }
    }
}

/// Starts one task per cache and namespace.
fn start_watches(
    tasks: &mut JoinSet<String>,
    context: &Arc<Context>,
    writers: CacheWriters,
    triggers: &Triggers,
    beats: &Beats,
) {
    let ours = watch_config().labels(&format!("{LABEL_MANAGED_BY}={FLYWHEEL}"));
    macro_rules! watch_all {
        ($field:ident, $config:expr, $on_change:expr) => {
            for writer in writers.$field {
                let on_change = $on_change;
                let name = format!("watch {}", stringify!($field));
                tasks.spawn(drive(
                    scoped(&context.client, writer.namespace()),
                    $config,
                    writer,
                    on_change,
                    name,
                    beats.clone(),
                    context.metrics.clone(),
                ));
            }
        };
    }
    watch_all!(training_jobs, watch_config(), {
        let triggers = triggers.clone();
        move |job: &TrainingJob| {
            let namespace = job.namespace().unwrap_or_default();
            triggers.training.now(&namespace, &job.name_any());
            if let Some(service) = job.labels().get(LABEL_RETRAINS) {
                triggers.serving.now(&namespace, service);
            }
        }
    });
    watch_all!(model_versions, watch_config(), {
        let (triggers, context) = (triggers.clone(), Arc::clone(context));
        move |version: &ModelVersion| {
            let (namespace, name) = (version.namespace().unwrap_or_default(), version.name_any());
            triggers.models.now(&namespace, &name);
            for service in context.caches.inference_services.list(&namespace, |s| {
                let follows = s.spec.auto_update.is_some() || s.spec.retrain.is_some();
                s.spec.versions().contains(&name.as_str()) || (follows && s.spec.model == version.spec.model)
            }) {
                triggers.serving.now(&namespace, &service.name_any());
            }
            if let Some(job) = version.spec.source.as_ref().and_then(|s| s.training_job.as_ref()) {
                triggers.training.now(&namespace, &job.name);
            }
        }
    });
    watch_all!(inference_services, watch_config(), {
        let (triggers, context) = (triggers.clone(), Arc::clone(context));
        move |service: &InferenceService| {
            let namespace = service.namespace().unwrap_or_default();
            triggers.serving.now(&namespace, &service.name_any());
            for version in service.spec.versions() {
                triggers.models.now(&namespace, version);
            }
            for served in service.status.iter().flat_map(|s| &s.traffic) {
                triggers.models.now(&namespace, &served.model_version);
            }
            // Those that it has left are named nowhere any more.
            let served = |version: &ModelVersion| {
                let conditions = version.status.iter().flat_map(|status| &status.conditions);
                let mut served = conditions.filter(|c| c.type_ == types::SERVED && c.status == "True");
                version.spec.model == service.spec.model && served.next().is_some()
            };
            for left in context.caches.model_versions.list(&namespace, served) {
                triggers.models.now(&namespace, &left.name_any());
            }
        }
    });
    macro_rules! watch_children {
        ($($field:ident),+) => {$(
            watch_all!($field, ours.clone(), {
                let triggers = triggers.clone();
                move |child: &_| triggers.child(child)
            });
        )+};
    }
    watch_children!(
        jobs,
        pods,
        deployments,
        replica_sets,
        controller_revisions,
        config_maps,
        services,
        disruption_budgets,
        network_policies
    );
    for writer in writers.nodes {
        let name = "watch nodes".to_owned();
        let (triggers, context_of) = (triggers.clone(), Arc::clone(context));
        tasks.spawn(drive(
            Api::all(context.client.clone()),
            watch_config(),
            writer,
            // Pods without a node are looked at every few seconds anyway, so other changes of nodes trigger nothing.
            move |node: &Node| {
                if nodes::gpu_fault(node, &context_of.settings.gpu_faults).is_some() {
                    triggers.on_nodes(&context_of.caches, |name| node.metadata.name.as_deref() == Some(name));
                }
            },
            name,
            beats.clone(),
            context.metrics.clone(),
        ));
    }
}

fn scoped<K>(client: &Client, scope: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match scope {
        None => Api::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
    }
}

/// Keeps one cache up to date, and tells of every object that was changed, deleted, or may have been while the watch was
/// down. Tells only after the cache shows it. Never ends.
async fn drive<K>(
    api: Api<K>,
    config: watcher::Config,
    mut writer: CacheWriter<K>,
    on_change: impl Fn(&K) + Send + 'static,
    name: String,
    beats: Beats,
    metrics: Metrics,
) -> String
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Prune + Send + Sync + 'static,
{
    let mut events = watcher(api, config).default_backoff().modify(K::prune).boxed();
    let mut tick = tokio::time::interval(BEAT);
    // Objects before a new list: those that it lacks were deleted meanwhile.
    let mut before: Vec<Arc<K>> = Vec::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tick.tick() => {
                beats.beat(&name);
                continue;
            }
        };
        if let Some(Ok(event)) = &event {
            if matches!(event, watcher::Event::Init) {
                before = writer.objects();
            }
            writer.write(event);
        }
        match event {
            Some(Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object))) => on_change(&object),
            Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => {}
            Some(Ok(watcher::Event::InitDone)) => {
                for object in before.drain(..) {
                    on_change(&object);
                }
                for object in writer.objects() {
                    on_change(&object);
                }
            }
            Some(Err(error)) => {
                metrics.watch_error(&K::kind(&()));
                tracing::warn!(%error, watch = name, "a watch failed and is started again");
            }
            None => return name,
        }
    }
}

fn start_controllers(
    tasks: &mut JoinSet<()>,
    context: &Arc<Context>,
    triggers: &Triggers,
    beats: &Beats,
    stop: &watch::Receiver<bool>,
) {
    tracing::info!("leading");
    macro_rules! start {
        ($cache:ident, $queue:ident, $reconcile:path) => {
            tasks.spawn(controller::run(
                Arc::clone(context),
                context.caches.$cache.clone(),
                Arc::clone(&triggers.$queue),
                beats.clone(),
                stop.clone(),
                |object, context| Box::pin($reconcile(object, context)),
            ));
        };
    }
    start!(training_jobs, training, training::reconcile);
    start!(model_versions, models, models::reconcile);
    start!(inference_services, serving, serving::reconcile);
    tasks.spawn(sweep(Arc::clone(context), beats.clone(), stop.clone()));
    let (on_nodes, of_nodes) = (triggers.clone(), Arc::clone(context));
    tasks.spawn(nodes::follow_nodes(
        Arc::clone(context),
        beats.clone(),
        stop.clone(),
        move |changed| on_nodes.on_nodes(&of_nodes.caches, |node| changed.contains(node)),
    ));
    let services = triggers.serving.clone();
    tasks.spawn(serving::drift::follow_texts(
        Arc::clone(context),
        beats.clone(),
        stop.clone(),
        move |namespace, name| services.now(namespace, name),
    ));
    let services = triggers.serving.clone();
    tasks.spawn(serving::experiment::follow_experiments(
        Arc::clone(context),
        beats.clone(),
        stop.clone(),
        move |namespace, name| services.now(namespace, name),
    ));
    let services = triggers.serving.clone();
    tasks.spawn(serving::scale::follow_load(
        Arc::clone(context),
        beats.clone(),
        stop.clone(),
        move |namespace, name| services.now(namespace, name),
    ));
}

/// Removes what no object owns and nobody needs any more, and forgets what was kept of objects that are gone.
async fn sweep(context: Arc<Context>, beats: Beats, mut stop: watch::Receiver<bool>) {
    const NAME: &str = "sweep";
    let mut tick = tokio::time::interval(SWEEP_INTERVAL.min(admin::LIVENESS_LIMIT / 2));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        beats.beat(NAME);
        context.forget_gone();
        let swept = tokio::time::timeout(RECONCILE_TIMEOUT, training::sweep(&context)).map(|swept| match swept {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout {
                what: "the sweep".to_owned(),
                limit: RECONCILE_TIMEOUT,
            }),
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "the sweep failed and is done again later");
        }
    }
    beats.ended(NAME);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use flywheel_testkit::{Scenario, objects};
    use serde_json::json;

    use super::*;
    use crate::cache::Cache;

    #[tokio::test]
    async fn what_is_kept_per_object_goes_with_it() {
        let (client, scenario) = Scenario::start(Vec::new());
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let mut context = Context::test(client, now);
        let job = |uid: &str| objects::training_job(&json!({"metadata": {"uid": uid}}));
        context.caches.training_jobs = Cache::of([job("alive")]);
        let assignment =
            serde_json::from_value(json!({"schemaVersion": 1, "generation": 1, "serve": "v1", "versions": []}));
        let assignment = assignment.unwrap();
        for uid in ["alive", "gone"] {
            context.backoff.failed(uid);
            context
                .applied
                .remember(uid.to_owned(), "digest".to_owned(), "1".to_owned());
            context.statuses.remember(&job(uid), &job(uid), json!({}));
            context.progress.due(uid, false, now);
            context.assignments.note(uid, &assignment, true);
            let service = json!({"metadata": {"name": uid, "namespace": "team", "uid": uid}, "spec": {"model": "m", "modelVersion": "v"}});
            let service = serde_json::from_value(service).unwrap();
            context.scales.due(&service, now);
            context.recoveries.note(&service);
            context.drifts.due(uid, Duration::ZERO, now);
            context.experiments.due(uid, now);
        }
        let context = Arc::new(context);
        let knows = |uid: &str| {
            let kept: [&dyn Debug; 9] = [
                &context.backoff,
                &context.applied,
                &context.statuses,
                &context.progress,
                &context.assignments,
                &context.scales,
                &context.recoveries,
                &context.drifts,
                &context.experiments,
            ];
            kept.map(|memo| format!("{memo:?}").contains(&format!("{uid:?}")))
        };
        assert_eq!((knows("alive"), knows("gone")), ([true; 9], [true; 9]));

        let (stop, stopped) = watch::channel(false);
        let sweeping = tokio::spawn(sweep(Arc::clone(&context), Beats::default(), stopped));
        let deadline = Instant::now() + Duration::from_secs(10);
        while knows("gone") != [false; 9] {
            assert!(Instant::now() < deadline, "{:?} is kept", knows("gone"));
            tokio::task::yield_now().await;
        }
        assert_eq!(knows("alive"), [true; 9]);
        stop.send_replace(true);
        sweeping.await.unwrap();
        scenario.finish().await;
    }
}
