//! The loop of a controller: takes objects from its queue, has several looked at at once, and says when again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::admin::{BEAT, Beats};
use crate::cache::Cache;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::kubeio::HasStatus;
use crate::queue::{Key, Queue};

/// Longest reconcile.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(20);
/// Every object is looked at again after this time at the latest, whatever the watches missed.
pub const RESYNC: Duration = Duration::from_secs(60);
/// Reconciles of one kind at once: they wait for the API server most of the time. With twice as many a small one answered so
/// late, in a burst on two cores, that a renewal of the Lease took ten seconds.
const CONCURRENCY: usize = 8;
/// Of them those of one namespace: one whose pods answer slowly leaves room for others.
pub const OF_ONE_NAMESPACE: usize = 6;
/// Wait after a conflict.
const CONFLICT_DELAY: Duration = Duration::from_secs(1);
/// Wait after a fault in Flywheel, which trying again does not mend.
const BUG_DELAY: Duration = Duration::from_secs(60);

/// A reconcile of one kind: the time after which it wants to look again (at most [`RESYNC`]).
pub type Reconcile<K> = fn(Arc<K>, Arc<Context>) -> BoxFuture<'static, Result<Duration, Error>>;

/// Looks at every object, and from then on at those in the queue, until `stop` is told; then it ends what it has begun.
pub async fn run<K: HasStatus>(
    context: Arc<Context>,
    cache: Cache<K>,
    queue: Arc<Queue>,
    beats: Beats,
    mut stop: watch::Receiver<bool>,
    reconcile: Reconcile<K>,
) {
    let name = format!("controller {}", K::kind(&()));
    queue.open();
    for object in cache.all(|_| true) {
        let meta = object.meta();
        if let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) {
            queue.now(namespace, name);
        }
    }
    let mut running: JoinSet<()> = JoinSet::new();
    let mut tick = tokio::time::interval(BEAT);
    loop {
        let full = running.len() >= CONCURRENCY;
        tokio::select! {
            // What ended makes room first.
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = running.join_next() => {}
            _ = tick.tick() => {
                beats.beat(&name);
                context.metrics.waiting(&K::kind(&()), queue.len().0);
            }
            key = queue.next(), if !full => {
                running.spawn(look(key, Arc::clone(&context), cache.clone(), Arc::clone(&queue), reconcile));
            }
        }
    }
    beats.ended(&name);
    while running.join_next().await.is_some() {}
}

async fn look<K: HasStatus>(
    key: Key,
    context: Arc<Context>,
    cache: Cache<K>,
    queue: Arc<Queue>,
    reconcile: Reconcile<K>,
) {
    // One that is gone meanwhile is forgotten.
    let again = match cache.get(&key.namespace, &key.name) {
        Some(object) => Some(guarded(reconcile, object, &key, &context).await),
        None => None,
    };
    queue.done(key, again);
}

/// One reconcile: with a time limit, a span, metrics, and a delay that grows with failures in a row. Gives the time after
/// which the object is looked at again.
async fn guarded<K: HasStatus>(reconcile: Reconcile<K>, object: Arc<K>, key: &Key, context: &Arc<Context>) -> Duration {
    let kind = K::kind(&());
    let uid = object.meta().uid.clone().unwrap_or_default();
    let span = tracing::info_span!("reconcile", object = format!("{kind} {}/{}", key.namespace, key.name));
    let started = Instant::now();
    let object = context.statuses.fresh(object);
    let work = async {
        match tokio::time::timeout(RECONCILE_TIMEOUT, reconcile(object, Arc::clone(context))).await {
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
    let error = match outcome {
        Ok(again) => {
            context.backoff.succeeded(&uid);
            return again.min(RESYNC);
        }
        Err(error) => error,
    };
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
    again
}
