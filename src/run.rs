//! Wiring only: client, lease, caches, three controllers, admin server, and the order in which they start and stop.
//!
//! Watches run on the standby as well and fill the caches; only the leader reconciles. What a watch sees becomes triggers
//! (the object itself, or the objects that a child belongs to), sent to the controllers while they run.

use std::collections::HashSet;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flywheel_api::conditions::types;
use flywheel_api::names::{
    FLYWHEEL, LABEL_INFERENCE_SERVICE, LABEL_MANAGED_BY, LABEL_MODEL_VERSION, LABEL_TRAINING_JOB,
};
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller};
use kube::runtime::reflector::{ObjectRef, store::Writer};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::admin::{self, BEAT, Beats};
use crate::backoff::Backoff;
use crate::cache::{Cache, CacheWriters, Caches, Prune};
use crate::client::{Caller, ClientError, watch_config};
use crate::cluster::nodes;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::kubeio::{HasStatus, Kind, within};
use crate::lease::{self, LeaseHandle};
use crate::settings::{Settings, SettingsError};
use crate::telemetry::Metrics;
use crate::{models, serving, training};

/// Longest reconcile.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(20);
/// Every object is looked at again after this time at the latest, whatever the watches missed.
pub const RESYNC: Duration = Duration::from_secs(60);
/// Reconciles of one kind at once: they wait for the API server most of the time.
const CONCURRENCY: u16 = 8;
/// Wait after a conflict.
const CONFLICT_DELAY: Duration = Duration::from_secs(1);
/// Wait after a fault in Flywheel, which trying again does not mend.
const BUG_DELAY: Duration = Duration::from_secs(60);
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
    let (settings, client, listener) = tokio::select! {
        prepared = prepare(&arguments, handle.clone()) => prepared?,
        () = &mut told_to_stop => return Ok(()),
    };
    let (caches, writers) = Caches::new(&settings.namespaces);
    let metrics = Metrics::default();
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
async fn prepare(arguments: &Arguments, lease: LeaseHandle) -> Result<(Settings, Client, TcpListener), RunError> {
    let settings = Settings::load(&arguments.settings)?;
    let caller = Caller {
        identity: arguments.identity.clone(),
        lease,
    };
    let client = crate::client::connect(caller).await?;
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

/// Where triggers go: to the controllers while they run, else nowhere. A controller that starts looks at every object.
#[derive(Clone, Default)]
struct Triggers {
    training: Sink<TrainingJob>,
    models: Sink<ModelVersion>,
    serving: Sink<InferenceService>,
}

/// The queues of a kind's controllers.
struct Sink<K: Kind>(Arc<Mutex<Vec<Scoped<K>>>>);

/// The queue of the controller of a namespace (`None`: of all).
type Scoped<K> = (Option<String>, Arc<Queue<K>>);

/// Objects that a controller is to look at. However often an object changes while the controller is busy, it waits once,
/// so that the queue is never longer than there are objects.
struct Queue<K: Kind> {
    waiting: Mutex<HashSet<ObjectRef<K>>>,
    filled: Notify,
}

impl<K: Kind> Queue<K> {
    fn put(&self, object: ObjectRef<K>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(object);
        self.filled.notify_one();
    }

    /// All that wait, once there is one. Meant for one reader.
    async fn take(&self) -> HashSet<ObjectRef<K>> {
        loop {
            let taken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }
}

impl<K: Kind> Clone for Sink<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Kind> Default for Sink<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Kind> Sink<K> {
    fn send(&self, namespace: &str, name: &str) {
        let sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, queue)) = sinks
            .iter()
            .find(|(scope, _)| scope.as_deref().is_none_or(|scope| scope == namespace))
        {
            queue.put(ObjectRef::new(name).within(namespace));
        }
    }

    /// What changes from now on, for the controller of this namespace.
    fn open(&self, scope: Option<String>) -> impl Stream<Item = ObjectRef<K>> + Send + use<K> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            filled: Notify::new(),
        });
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((scope, Arc::clone(&queue)));
        stream::unfold(queue, |queue| async {
            let taken = queue.take().await;
            Some((stream::iter(taken), queue))
        })
        .flatten()
    }
}

impl Triggers {
    /// A child changed: all whose name it carries in its labels look again. Whether it is theirs they find out.
    fn child<K: ResourceExt>(&self, child: &K) {
        let Some(namespace) = child.namespace() else { return };
        let labels = child.labels();
        if let Some(name) = labels.get(LABEL_TRAINING_JOB) {
            self.training.send(&namespace, name);
        }
        if let Some(name) = labels.get(LABEL_INFERENCE_SERVICE) {
            self.serving.send(&namespace, name);
        } else if let Some(name) = labels.get(LABEL_MODEL_VERSION) {
            self.models.send(&namespace, name);
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
            for (scope, writer) in scopes(&context.caches.$field).into_iter().zip(writers.$field) {
                let on_change = $on_change;
                let name = format!("watch {}", stringify!($field));
                tasks.spawn(drive(
                    scoped(&context.client, &scope),
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
            triggers
                .training
                .send(&job.namespace().unwrap_or_default(), &job.name_any())
        }
    });
    watch_all!(model_versions, watch_config(), {
        let (triggers, context) = (triggers.clone(), Arc::clone(context));
        move |version: &ModelVersion| {
            let (namespace, name) = (version.namespace().unwrap_or_default(), version.name_any());
            triggers.models.send(&namespace, &name);
            for service in context
                .caches
                .inference_services
                .list(&namespace, |s| s.spec.versions().contains(&name.as_str()))
            {
                triggers.serving.send(&namespace, &service.name_any());
            }
            if let Some(job) = version.spec.source.as_ref().and_then(|s| s.training_job.as_ref()) {
                triggers.training.send(&namespace, &job.name);
            }
        }
    });
    watch_all!(inference_services, watch_config(), {
        let (triggers, context) = (triggers.clone(), Arc::clone(context));
        move |service: &InferenceService| {
            let namespace = service.namespace().unwrap_or_default();
            triggers.serving.send(&namespace, &service.name_any());
            for version in service.spec.versions() {
                triggers.models.send(&namespace, version);
            }
            for served in service.status.iter().flat_map(|s| &s.traffic) {
                triggers.models.send(&namespace, &served.model_version);
            }
            // Those that it has left are named nowhere any more.
            let served = |version: &ModelVersion| {
                let conditions = version.status.iter().flat_map(|status| &status.conditions);
                let mut served = conditions.filter(|c| c.type_ == types::SERVED && c.status == "True");
                version.spec.model == service.spec.model && served.next().is_some()
            };
            for left in context.caches.model_versions.list(&namespace, served) {
                triggers.models.send(&namespace, &left.name_any());
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
        // Pods without a node are looked at every few seconds anyway, so nodes trigger nothing.
        tasks.spawn(drive(
            Api::all(context.client.clone()),
            watch_config(),
            writer,
            |_| {},
            name,
            beats.clone(),
            context.metrics.clone(),
        ));
    }
}

fn scopes<K>(cache: &Cache<K>) -> Vec<Option<String>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    cache.stores().map(|(scope, _)| scope.clone()).collect()
}

fn scoped<K>(client: &Client, scope: &Option<String>) -> Api<K>
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
    writer: Writer<K>,
    on_change: impl Fn(&K) + Send + 'static,
    name: String,
    beats: Beats,
    metrics: Metrics,
) -> String
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Prune + Send + Sync + 'static,
{
    let reader = writer.as_reader();
    let events = watcher(api, config).default_backoff().modify(K::prune);
    let mut events: BoxStream<'static, _> = reflector(writer, events).boxed();
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
        match event {
            Some(Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object))) => on_change(&object),
            Some(Ok(watcher::Event::Init)) => before = reader.state(),
            Some(Ok(watcher::Event::InitApply(_))) => {}
            Some(Ok(watcher::Event::InitDone)) => {
                for object in before.drain(..) {
                    on_change(&object);
                }
                for object in reader.state() {
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
    start_controller(
        tasks,
        context,
        &context.caches.training_jobs,
        &triggers.training,
        stop,
        |o, c| Box::pin(training::reconcile(o, c)),
    );
    start_controller(
        tasks,
        context,
        &context.caches.model_versions,
        &triggers.models,
        stop,
        |o, c| Box::pin(models::reconcile(o, c)),
    );
    start_controller(
        tasks,
        context,
        &context.caches.inference_services,
        &triggers.serving,
        stop,
        |o, c| Box::pin(serving::reconcile(o, c)),
    );
    tasks.spawn(sweep(Arc::clone(context), beats.clone(), stop.clone()));
    let (trained, served, of_nodes) = (triggers.training.clone(), triggers.serving.clone(), Arc::clone(context));
    tasks.spawn(nodes::follow_nodes(
        Arc::clone(context),
        beats.clone(),
        stop.clone(),
        move |changed| {
            let on_them = |pod: &Pod| nodes::node_of(pod).is_some_and(|node| changed.contains(node));
            for pod in of_nodes.caches.pods.all(on_them) {
                let namespace = pod.namespace().unwrap_or_default();
                if let Some(name) = pod.labels().get(LABEL_TRAINING_JOB) {
                    trained.send(&namespace, name);
                } else if let Some(name) = pod.labels().get(LABEL_INFERENCE_SERVICE) {
                    served.send(&namespace, name);
                }
            }
        },
    ));
    let services = triggers.serving.clone();
    tasks.spawn(serving::scale::follow_load(
        Arc::clone(context),
        beats.clone(),
        stop.clone(),
        move |namespace, name| services.send(namespace, name),
    ));
}

/// A reconcile of one kind: the time after which it wants to look again (at most [`RESYNC`]).
type Reconcile<K> = fn(Arc<K>, Arc<Context>) -> futures::future::BoxFuture<'static, Result<Duration, Error>>;

fn start_controller<K>(
    tasks: &mut JoinSet<()>,
    context: &Arc<Context>,
    cache: &Cache<K>,
    sink: &Sink<K>,
    stop: &watch::Receiver<bool>,
    reconcile: Reconcile<K>,
) where
    K: HasStatus,
{
    for (scope, store) in cache.stores() {
        let changes = sink.open(scope.clone());
        let everything: Vec<ObjectRef<K>> = store.state().iter().map(|o| ObjectRef::from_obj(o.as_ref())).collect();
        let mut stop = stop.clone();
        let controller = Controller::for_stream(stream::pending(), store.clone())
            .reconcile_on(stream::iter(everything).chain(changes))
            .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
            .graceful_shutdown_on(async move {
                let _ = stop.wait_for(|stop| *stop).await;
            });
        let run = controller.run(
            move |object: Arc<K>, context: Arc<Context>| guarded(reconcile, object, context),
            |_, failed: &Failed, _| Action::requeue(failed.again),
            Arc::clone(context),
        );
        tasks.spawn(run.for_each(|_| async {}));
    }
}

/// A reconcile that failed, and when it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
struct Failed {
    #[source]
    error: Error,
    again: Duration,
}

/// One reconcile: with a time limit, a span, metrics, and a delay that grows with failures in a row.
async fn guarded<K: HasStatus>(
    reconcile: Reconcile<K>,
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, Failed> {
    let kind = K::kind(&());
    let key = format!(
        "{kind} {}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    );
    let uid = object.uid().unwrap_or_default();
    let span = tracing::info_span!("reconcile", object = key);
    let started = Instant::now();
    let object = context.statuses.fresh(object);
    let work = async {
        match tokio::time::timeout(RECONCILE_TIMEOUT, reconcile(object, Arc::clone(&context))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout {
                what: "the reconcile".to_owned(),
                limit: RECONCILE_TIMEOUT,
            }),
        }
    };
    let outcome = work.instrument(span.clone()).await;
    let result = outcome.as_ref().map_or_else(|e| e.kind().as_str(), |_| "Ok");
    context.metrics.reconcile(&kind, result, started.elapsed());
    match outcome {
        Ok(again) => {
            context.backoff.succeeded(&uid);
            Ok(Action::requeue(again.min(RESYNC)))
        }
        Err(error) => {
            let again = match error.kind() {
                ErrorKind::Conflict => CONFLICT_DELAY,
                ErrorKind::Transient => context.backoff.failed(&uid),
                ErrorKind::Invalid => RESYNC,
                ErrorKind::Bug => BUG_DELAY,
            };
            span.in_scope(|| match error.kind() {
                ErrorKind::Bug => tracing::error!(%error, "a fault in Flywheel"),
                ErrorKind::Conflict => tracing::debug!(%error, "the object changed meanwhile"),
                ErrorKind::Transient | ErrorKind::Invalid => {
                    tracing::warn!(%error, again = again.as_secs(), "the reconcile failed");
                }
            });
            Err(Failed { error, again })
        }
    }
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
    use flywheel_testkit::{Scenario, objects};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_object_that_changes_often_waits_once() {
        let sink = Sink::<TrainingJob>::default();
        sink.send("team", "nobody looks at it yet");
        let mut queue = std::pin::pin!(sink.open(Some("team".to_owned())));
        for _ in 0..1000 {
            sink.send("team", "a");
            sink.send("team", "b");
            sink.send("elsewhere", "a");
        }
        let mut next = || queue.next().now_or_never().flatten().map(|o| o.name);
        let mut names = [next(), next()];
        names.sort();
        assert_eq!(names, [Some("a".to_owned()), Some("b".to_owned())]);
        assert_eq!(next(), None);
        sink.send("team", "a");
        assert_eq!(next().as_deref(), Some("a"), "it changed again after it was looked at");
        // And one that waits is woken.
        let changed = tokio::time::timeout(Duration::from_secs(5), queue.next());
        let (object, ()) = tokio::join!(changed, async { sink.send("team", "c") });
        assert_eq!(object.unwrap().unwrap().name, "c");
    }

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
            context.progress.due(uid, now);
            context.assignments.note(uid, &assignment, true);
            let service = json!({"metadata": {"name": uid, "namespace": "team", "uid": uid}, "spec": {"model": "m", "modelVersion": "v"}});
            let service = serde_json::from_value(service).unwrap();
            context.scales.due(&service, now);
            context.recoveries.note(&service);
        }
        let context = Arc::new(context);
        let knows = |uid: &str| {
            let kept: [&dyn Debug; 7] = [
                &context.backoff,
                &context.applied,
                &context.statuses,
                &context.progress,
                &context.assignments,
                &context.scales,
                &context.recoveries,
            ];
            kept.map(|memo| format!("{memo:?}").contains(&format!("{uid:?}")))
        };
        assert_eq!((knows("alive"), knows("gone")), ([true; 7], [true; 7]));

        let (stop, stopped) = watch::channel(false);
        let sweeping = tokio::spawn(sweep(Arc::clone(&context), Beats::default(), stopped));
        let deadline = Instant::now() + Duration::from_secs(10);
        while knows("gone") != [false; 7] {
            assert!(Instant::now() < deadline, "{:?} is kept", knows("gone"));
            tokio::task::yield_now().await;
        }
        assert_eq!(knows("alive"), [true; 7]);
        stop.send_replace(true);
        sweeping.await.unwrap();
        scenario.finish().await;
    }
}
