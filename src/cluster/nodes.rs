//! Which nodes are lost: from reads of pods that were not answered, the leases of their nodes, and what the node controller
//! says. Leases are read of suspects only.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flywheel_policy::recovery::nodes::{Nodes, is_held};
use flywheel_policy::training::attempt::is_out_of_contact;
use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tokio::sync::watch;

use crate::admin::Beats;
use crate::context::Context;
use crate::kubeio::within;
use crate::scrape::ScrapeError;

/// Namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// Time between two looks for leases that are due.
const TICK: Duration = Duration::from_secs(1);
/// Leases that are read at once.
const READ_AT_ONCE: usize = 16;

/// What is seen of nodes whose pods do not answer.
#[derive(Debug, Default)]
pub struct NodeWatch {
    nodes: Mutex<Nodes>,
}

impl NodeWatch {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how the read of a pod on this node ended. That the connection was refused, or the answer makes no sense, comes from
    /// the node as well.
    pub fn read<T>(&self, node: &str, read: &Result<T, ScrapeError>, now: Timestamp) {
        match read {
            Ok(_) | Err(ScrapeError::Refused | ScrapeError::Status(_) | ScrapeError::Body(_)) => {
                self.nodes().answered(node, now)
            }
            Err(ScrapeError::Timeout | ScrapeError::Unreachable(_) | ScrapeError::Http(_)) => {
                self.nodes().unanswered(node, now);
            }
        }
    }

    /// Since when the node of this pod is lost, if it is. Where nodes may not be asked about, none is: there would be no brake.
    #[must_use]
    pub fn lost(&self, pod: &Pod, context: &Context) -> Option<Timestamp> {
        let nodes = context.caches.nodes.as_ref()?;
        let node = node_of(pod)?;
        let not_ready = is_out_of_contact(pod) || nodes.named(node).is_some_and(|node| is_not_ready(&node));
        let even = context.clock.even();
        let since = self.nodes().lost(node, not_ready, even)?;
        context.now().checked_sub(even.duration_since(since)).ok()
    }

    /// Whether so many nodes seem lost that nothing is ended for it; never where nodes may not be asked about.
    #[must_use]
    pub fn is_held(&self, context: &Context) -> bool {
        let Some(cache) = &context.caches.nodes else {
            return false;
        };
        let all = cache.all(|_| true);
        let mut lost: BTreeSet<String> = all
            .iter()
            .filter(|node| is_not_ready(node))
            .filter_map(|node| node.metadata.name.clone())
            .collect();
        lost.extend(
            self.nodes()
                .all_lost(context.clock.even())
                .into_iter()
                .map(str::to_owned),
        );
        is_held(lost.len(), all.len())
    }

    /// Names of nodes that are lost by what their pods and leases show.
    fn all_lost(&self, now: Timestamp) -> BTreeSet<String> {
        self.nodes().all_lost(now).into_iter().map(str::to_owned).collect()
    }
}

/// A pod's node.
#[must_use]
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// A pod's address.
#[must_use]
pub fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// Whether the node controller has lost this node.
fn is_not_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "Ready" && c.status != "True")
}

/// Looks at the leases of suspects until `stop` is told. `changed` is told when other nodes are lost than before.
pub async fn follow_nodes(
    context: Arc<Context>,
    beats: Beats,
    mut stop: watch::Receiver<bool>,
    changed: impl Fn(&BTreeSet<String>),
) {
    const NAME: &str = "nodes";
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), LEASES);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = BTreeSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        beats.beat(NAME);
        // In namespaced mode there is no right to read them.
        if context.caches.nodes.is_none() {
            continue;
        }
        let due = context.nodes.nodes().due(context.clock.even());
        let reads: Vec<_> = due
            .into_iter()
            .map(|node| look(&leases, node, &context).boxed())
            .collect();
        stream::iter(reads)
            .buffer_unordered(READ_AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        let lost = context.nodes.all_lost(context.clock.even());
        if lost != before {
            let other = lost.symmetric_difference(&before).cloned().collect();
            for node in lost.difference(&before) {
                tracing::warn!(node, "a node answers neither through its pods nor by its lease");
            }
            changed(&other);
            before = lost;
        }
    }
    beats.ended(NAME);
}

async fn look(leases: &Api<Lease>, node: String, context: &Context) {
    let read = within("get Lease", leases.get_opt(&node)).await;
    let renewed = match read {
        Ok(lease) => lease
            .and_then(|lease| lease.spec?.renew_time)
            .map(|time| time.0.to_string()),
        Err(error) => {
            tracing::debug!(node, %error, "a node's lease cannot be read");
            None
        }
    };
    context.nodes.nodes().lease(&node, renewed, context.clock.even());
}
