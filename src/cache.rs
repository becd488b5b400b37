//! What the operator knows of the cluster without asking: one cache per kind, shared by all controllers, filled on the
//! standby as well, and pruned of what nobody reads.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};

/// One kind's objects, of all namespaces that the operator works in.
#[derive(Clone)]
pub struct Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// One store per watched namespace; a single one where all are watched.
    scopes: Vec<(Option<String>, Store<K>)>,
}

impl<K> Debug for Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({} {})", self.len(), K::kind(&()))
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// Empty caches for these namespaces (`None`: all), with the writers that fill them.
    #[must_use]
    pub fn new(scopes: &[Option<String>]) -> (Self, Vec<Writer<K>>) {
        let mut writers = Vec::new();
        let scopes = scopes
            .iter()
            .map(|namespace| {
                let writer = Writer::<K>::new(());
                let reader = writer.as_reader();
                writers.push(writer);
                (namespace.clone(), reader)
            })
            .collect();
        (Self { scopes }, writers)
    }

    /// A cache that holds these objects.
    #[cfg(test)]
    #[must_use]
    pub fn of(objects: impl IntoIterator<Item = K>) -> Self {
        let (cache, mut writers) = Self::new(&[None]);
        for writer in &mut writers {
            writer.apply_watcher_event(&kube::runtime::watcher::Event::Init);
            writer.apply_watcher_event(&kube::runtime::watcher::Event::InitDone);
        }
        if let Some(writer) = writers.first_mut() {
            for object in objects {
                writer.apply_watcher_event(&kube::runtime::watcher::Event::Apply(object));
            }
        }
        cache
    }

    fn scope(&self, namespace: &str) -> Option<&Store<K>> {
        self.scopes
            .iter()
            .find(|(scope, _)| scope.as_deref().is_none_or(|scope| scope == namespace))
            .map(|(_, store)| store)
    }

    /// The object of this name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.scope(namespace)?.get(&ObjectRef::new(name).within(namespace))
    }

    /// The object of this name, of a kind that has no namespaces.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<K>> {
        self.scopes
            .iter()
            .find_map(|(_, store)| store.get(&ObjectRef::new(name)))
    }

    /// The objects of a namespace that `keep` wants, in the order of their names.
    #[must_use]
    pub fn list(&self, namespace: &str, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let mut found = self.scope(namespace).map_or_else(Vec::new, |store| {
            store.state_filter(|k| k.meta().namespace.as_deref() == Some(namespace) && keep(k))
        });
        found.sort_by(|a, b| a.meta().name.cmp(&b.meta().name));
        found
    }

    /// All objects that `keep` wants, of all namespaces.
    #[must_use]
    pub fn all(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.scopes
            .iter()
            .flat_map(|(_, store)| store.state_filter(&keep))
            .collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scopes.iter().map(|(_, store)| store.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stores with their namespaces.
    pub fn stores(&self) -> impl Iterator<Item = (&Option<String>, &Store<K>)> {
        self.scopes.iter().map(|(namespace, store)| (namespace, store))
    }
}

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $kind:ty),+ $(,)?) => {
        /// All caches.
        #[derive(Clone, Debug)]
        pub struct Caches {
            $($(#[$doc])* pub $field: Cache<$kind>,)+
            /// Nodes: names, labels, what pods may have on them and whether they are ready; `None` where the operator works in some namespaces only and may not ask.
            pub nodes: Option<Cache<Node>>,
        }

        /// The writers that fill [`Caches`], one per watched namespace.
        pub struct CacheWriters {
            $($(#[$doc])* pub $field: Vec<Writer<$kind>>,)+
            /// Nodes.
            pub nodes: Vec<Writer<Node>>,
        }

        impl Caches {
            /// Empty caches for these namespaces (empty: all).
            #[must_use]
            pub fn new(namespaces: &[String]) -> (Self, CacheWriters) {
                let scopes: Vec<Option<String>> = if namespaces.is_empty() {
                    vec![None]
                } else {
                    namespaces.iter().cloned().map(Some).collect()
                };
                $(let $field = Cache::new(&scopes);)+
                let (nodes, node_writers) = if namespaces.is_empty() {
                    let (nodes, writers) = Cache::new(&[None]);
                    (Some(nodes), writers)
                } else {
                    (None, Vec::new())
                };
                (
                    Self { $($field: $field.0,)+ nodes },
                    CacheWriters { $($field: $field.1,)+ nodes: node_writers },
                )
            }

            /// Caches that hold nothing, for tests to fill.
            #[cfg(test)]
            #[must_use]
            pub fn none() -> Self {
                Self { $($field: Cache::of([]),)+ nodes: Some(Cache::of([])) }
            }

            /// Ends when every cache has been filled once.
            ///
            /// # Errors
            /// A watch ended before that.
            pub async fn wait_until_ready(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
                $(for (_, store) in self.$field.stores() { store.wait_until_ready().await?; })+
                for (_, store) in self.nodes.iter().flat_map(|nodes| nodes.stores()) {
                    store.wait_until_ready().await?;
                }
                Ok(())
            }

            /// The uids of all objects but nodes.
            #[must_use]
            pub fn uids(&self) -> HashSet<String> {
                let mut uids = HashSet::new();
                $(uids.extend(self.$field.all(|_| true).iter().filter_map(|o| o.meta().uid.clone()));)+
                uids
            }

            /// Kinds with the number of objects, for metrics.
            #[must_use]
            pub fn sizes(&self) -> Vec<(&'static str, usize)> {
                let mut sizes = vec![$((stringify!($field), self.$field.len())),+];
                sizes.extend(self.nodes.as_ref().map(|nodes| ("nodes", nodes.len())));
                sizes
            }
        }
    };
}

caches! {
    /// TrainingJobs.
    training_jobs: TrainingJob,
    /// ModelVersions.
    model_versions: ModelVersion,
    /// InferenceServices.
    inference_services: InferenceService,
    /// Our Jobs, without their pod templates.
    jobs: Job,
    /// Our pods, without most of their spec.
    pods: Pod,
    /// Our Deployments.
    deployments: Deployment,
    /// Our Deployments' ReplicaSets, without their pod templates.
    replica_sets: ReplicaSet,
    /// The pod templates that services run with.
    controller_revisions: ControllerRevision,
    /// Our ConfigMaps.
    config_maps: ConfigMap,
    /// Our Services.
    services: Service,
    /// Our PodDisruptionBudgets.
    disruption_budgets: PodDisruptionBudget,
    /// Our NetworkPolicies.
    network_policies: NetworkPolicy,
}

/// What is taken out of an object before it is kept.
pub trait Prune {
    /// Takes out what nobody reads.
    fn prune(&mut self);
}

fn prune_metadata(metadata: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = metadata.annotations.as_mut() {
        // Client-side apply keeps a whole copy of the object here.
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

macro_rules! prune {
    ($($kind:ty => |$object:ident| $body:block),+ $(,)?) => {$(
        impl Prune for $kind {
            fn prune(&mut self) {
                prune_metadata(&mut self.metadata);
                let $object = self;
                $body
            }
        }
    )+};
}

prune! {
    TrainingJob => |_o| {},
    ModelVersion => |_o| {},
    InferenceService => |_o| {},
    Job => |job| {
        if let Some(spec) = job.spec.as_mut() {
            spec.template = Default::default();
        }
    },
    Pod => |pod| {
        if let Some(spec) = pod.spec.as_mut() {
            let (node_name, scheduler_name) = (spec.node_name.take(), spec.scheduler_name.take());
            *spec = Default::default();
            spec.node_name = node_name;
            spec.scheduler_name = scheduler_name;
        }
        if let Some(status) = pod.status.as_mut() {
            status.pod_ips = None;
            status.host_ips = None;
            status.resource_claim_statuses = None;
        }
    },
    Deployment => |_o| {},
    ReplicaSet => |set| {
        if let Some(spec) = set.spec.as_mut() {
            let labels = spec.template.take().and_then(|t| t.metadata);
            spec.template = Some(k8s_openapi::api::core::v1::PodTemplateSpec {
                metadata: labels,
                spec: None,
            });
        }
    },
    ControllerRevision => |_o| {},
    ConfigMap => |_o| {},
    Service => |_o| {},
    PodDisruptionBudget => |_o| {},
    NetworkPolicy => |_o| {},
    Node => |node| {
        node.metadata.annotations = None;
        node.metadata.finalizers = None;
        node.spec = None;
        if let Some(status) = node.status.as_mut() {
            let allocatable = status.allocatable.take();
            let mut conditions = status.conditions.take().unwrap_or_default();
            conditions.retain(|c| c.type_ == "Ready");
            for condition in &mut conditions {
                // Every kubelet's heartbeat changes it.
                condition.last_heartbeat_time = None;
                condition.message = None;
            }
            *status = Default::default();
            status.allocatable = allocatable;
            status.conditions = (!conditions.is_empty()).then_some(conditions);
        }
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"namespace": namespace, "name": name}})).unwrap()
    }

    #[test]
    fn lists_are_of_one_namespace_and_in_order() {
        let cache = Cache::of([pod("a", "2"), pod("b", "3"), pod("a", "1")]);
        let names: Vec<_> = cache
            .list("a", |_| true)
            .iter()
            .map(|p| p.metadata.name.clone())
            .collect();
        assert_eq!(names, [Some("1".to_owned()), Some("2".to_owned())]);
        assert!(cache.get("b", "3").is_some() && cache.get("a", "3").is_none());
        assert_eq!(cache.all(|_| true).len(), 3);
    }

    #[test]
    fn with_namespaces_there_are_no_nodes_and_other_namespaces_are_not_known() {
        let (caches, writers) = Caches::new(&["a".to_owned(), "b".to_owned()]);
        assert!(caches.nodes.is_none());
        assert_eq!(writers.pods.len(), 2);
        assert!(caches.pods.list("c", |_| true).is_empty());
    }

    #[test]
    fn a_node_keeps_its_labels_what_pods_may_have_on_it_and_whether_it_is_ready() {
        let mut node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {"allocatable": {"nvidia.com/gpu": "8"}, "capacity": {"nvidia.com/gpu": "8"}, "images": [{"names": ["i"]}],
                "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "Unknown", "message": "m",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}
        }))
        .unwrap();
        node.prune();
        let kept = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": "b"}},
            "status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [{"type": "Ready", "status": "Unknown"}]}});
        assert_eq!(serde_json::to_value(&node).unwrap(), kept);
    }

    #[test]
    fn a_pod_keeps_its_node_its_scheduler_and_its_status_only() {
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "managedFields": [{"manager": "x"}]},
            "spec": {"nodeName": "n", "schedulerName": "volcano", "containers": [{"name": "c", "env": [{"name": "A", "value": "B"}]}]},
            "status": {"phase": "Running"}
        }))
        .unwrap();
        pod.prune();
        assert!(pod.metadata.managed_fields.is_none());
        let spec = pod.spec.unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.containers.len()), (Some("n"), 0));
        assert_eq!(spec.scheduler_name.as_deref(), Some("volcano"));
        assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Running"));
    }
}
