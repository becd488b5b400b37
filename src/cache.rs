//! What the operator knows of the cluster without asking: one cache per kind, shared by all controllers, filled on the
//! standby as well, and pruned of what nobody reads.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use flywheel_api::conditions::cut;
use flywheel_api::names::controller_uid;
use flywheel_api::{InferenceService, ModelVersion, TrainingJob};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::reflector::store::{Writer, WriterDropped};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;

/// One kind's objects, of all namespaces that the operator works in.
#[derive(Clone)]
pub struct Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// One per watched namespace; a single one where all are watched.
    scopes: Vec<Scope<K>>,
}

#[derive(Clone)]
struct Scope<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    namespace: Option<String>,
    store: Store<K>,
    owned: Owned,
}

/// Names of objects by [`owner_key`], so that finding an owner's few does not take a look at all.
type OwnedNames = HashMap<Box<str>, BTreeSet<Box<str>>>;

/// Locked before the store, by all.
type Owned = Arc<RwLock<OwnedNames>>;

/// What fills the cache of a namespace.
pub struct CacheWriter<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    namespace: Option<String>,
    writer: Writer<K>,
    store: Store<K>,
    owned: Owned,
}

impl<K> CacheWriter<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// The namespace that is watched (`None`: all).
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Follows what the watch tells. Whoever asks for an owner's objects meanwhile sees names and objects of one moment: an
    /// object that is there and seems gone would be taken for deleted.
    pub fn write(&mut self, event: &Event<K>) {
        let mut owned = self.owned.write().unwrap_or_else(PoisonError::into_inner);
        if let Event::Apply(object) | Event::Delete(object) = event
            && let Some(old) = self.store.get(&ObjectRef::from_obj(object))
        {
            forget(&mut owned, old.meta());
        }
        self.writer.apply_watcher_event(event);
        match event {
            Event::Apply(object) => note(&mut owned, object.meta()),
            Event::InitDone => {
                owned.clear();
                for object in self.store.state() {
                    note(&mut owned, object.meta());
                }
            }
            // What a list begins with does not show before it is complete.
            Event::Delete(_) | Event::Init | Event::InitApply(_) => {}
        }
    }

    /// All objects.
    #[must_use]
    pub fn objects(&self) -> Vec<Arc<K>> {
        self.store.state()
    }
}

/// An owner. Nobody keeps an object of another namespace from naming its uid, and names are of one namespace each.
fn owner_key(namespace: &str, owner_uid: &str) -> String {
    format!("{namespace}/{owner_uid}")
}

/// The controlling owner of an object, and the object's name.
fn owner_and_name(meta: &ObjectMeta) -> Option<(String, &str)> {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    Some((owner_key(namespace, controller_uid(meta)?), meta.name.as_deref()?))
}

fn note(owned: &mut OwnedNames, meta: &ObjectMeta) {
    if let Some((owner, name)) = owner_and_name(meta) {
        owned.entry(owner.into()).or_default().insert(name.into());
    }
}

fn forget(owned: &mut OwnedNames, meta: &ObjectMeta) {
    if let Some((owner, name)) = owner_and_name(meta)
        && let Some(names) = owned.get_mut(owner.as_str())
    {
        names.remove(name);
        if names.is_empty() {
            owned.remove(owner.as_str());
        }
    }
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
    pub fn new(scopes: &[Option<String>]) -> (Self, Vec<CacheWriter<K>>) {
        let mut writers = Vec::new();
        let scopes = scopes
            .iter()
            .map(|namespace| {
                let writer = Writer::<K>::new(());
                let (store, owned) = (writer.as_reader(), Owned::default());
                writers.push(CacheWriter {
                    namespace: namespace.clone(),
                    writer,
                    store: store.clone(),
                    owned: Arc::clone(&owned),
                });
                Scope {
                    namespace: namespace.clone(),
                    store,
                    owned,
                }
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
            writer.write(&Event::Init);
            writer.write(&Event::InitDone);
        }
        if let Some(writer) = writers.first_mut() {
            for object in objects {
                writer.write(&Event::Apply(object));
            }
        }
        cache
    }

    fn scope(&self, namespace: &str) -> Option<&Scope<K>> {
        self.scopes
            .iter()
            .find(|scope| scope.namespace.as_deref().is_none_or(|scope| scope == namespace))
    }

    /// The object of this name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.scope(namespace)?
            .store
            .get(&ObjectRef::new(name).within(namespace))
    }

    /// The object of this name, of a kind that has no namespaces.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<K>> {
        self.scopes
            .iter()
            .find_map(|scope| scope.store.get(&ObjectRef::new(name)))
    }

    /// The objects of a namespace that `keep` wants, in the order of their names.
    #[must_use]
    pub fn list(&self, namespace: &str, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let mut found = self.scope(namespace).map_or_else(Vec::new, |scope| {
            scope
                .store
                .state_filter(|k| k.meta().namespace.as_deref() == Some(namespace) && keep(k))
        });
        found.sort_by(|a, b| a.meta().name.cmp(&b.meta().name));
        found
    }

    /// The objects of a namespace that the owner of this uid controls, in the order of their names.
    #[must_use]
    pub fn owned(&self, namespace: &str, owner_uid: &str) -> Vec<Arc<K>> {
        let Some(scope) = self.scope(namespace) else {
            return Vec::new();
        };
        let owned = scope.owned.read().unwrap_or_else(PoisonError::into_inner);
        let names = owned
            .get(owner_key(namespace, owner_uid).as_str())
            .into_iter()
            .flatten();
        names
            .filter_map(|name| scope.store.get(&ObjectRef::new(name).within(namespace)))
            .collect()
    }

    /// All objects that `keep` wants, of all namespaces.
    #[must_use]
    pub fn all(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.scopes
            .iter()
            .flat_map(|scope| scope.store.state_filter(&keep))
            .collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scopes.iter().map(|scope| scope.store.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends when it has been filled once.
    ///
    /// # Errors
    /// The watch ended before that.
    pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
        for scope in &self.scopes {
            scope.store.wait_until_ready().await?;
        }
        Ok(())
    }
}

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $kind:ty),+ $(,)?) => {
        /// All caches.
        #[derive(Clone, Debug)]
        pub struct Caches {
            $($(#[$doc])* pub $field: Cache<$kind>,)+
            /// Nodes: names, labels, taints, what pods may have on them, whether they are ready and what is wrong; `None` where the operator works in some namespaces only and may not ask.
            pub nodes: Option<Cache<Node>>,
        }

        /// The writers that fill [`Caches`], one per watched namespace.
        pub struct CacheWriters {
            $($(#[$doc])* pub $field: Vec<CacheWriter<$kind>>,)+
            /// Nodes.
            pub nodes: Vec<CacheWriter<Node>>,
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
            pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
                $(self.$field.wait_until_ready().await?;)+
                if let Some(nodes) = &self.nodes {
                    nodes.wait_until_ready().await?;
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
    /// The pod templates that services run with, packed.
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

/// Most bytes that are kept of what is said about a node's condition.
const NODE_WORDS_MAX: usize = 200;

/// What a pod's annotations begin with that somebody reads.
const OUR_ANNOTATIONS: &str = "flywheel.dev/";

fn prune_metadata(metadata: &mut ObjectMeta) {
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
        if let Some(annotations) = pod.metadata.annotations.as_mut() {
            annotations.retain(|key, _| key.starts_with(OUR_ANNOTATIONS));
        }
        if let Some(status) = pod.status.as_mut() {
            status.pod_ips = None;
            status.host_ips = None;
            status.resource_claim_statuses = None;
            if let Some(conditions) = status.conditions.as_mut() {
                // What they say other conditions say as well.
                conditions.retain(|c| c.type_ != "Initialized");
                conditions.shrink_to_fit();
            }
            for container in status.container_statuses.iter_mut().flatten() {
                container.allocated_resources = None;
                container.container_id = None;
                container.image_id = String::new();
                container.resources = None;
                container.user = None;
                container.volume_mounts = None;
            }
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
    ControllerRevision => |revision| {
        if let Some(data) = revision.data.as_mut() {
            crate::serving::build::revision::pack(data);
        }
    },
    ConfigMap => |map| {
        if let Some(data) = map.data.as_mut() {
            // As long as all the rest together, and read once.
            for file in [crate::serving::build::history::FILE, crate::serving::build::experiment::FILE] {
                data.remove(file);
            }
        }
    },
    Service => |_o| {},
    PodDisruptionBudget => |_o| {},
    NetworkPolicy => |_o| {},
    Node => |node| {
        node.metadata.annotations = None;
        node.metadata.finalizers = None;
        if let Some(spec) = node.spec.as_mut() {
            let taints = spec.taints.take();
            *spec = Default::default();
            spec.taints = taints;
        }
        if let Some(status) = node.status.as_mut() {
            let allocatable = status.allocatable.take();
            let mut conditions = status.conditions.take().unwrap_or_default();
            // Whether it is ready, and what is wrong.
            conditions.retain(|c| c.type_ == "Ready" || c.status == "True");
            for condition in &mut conditions {
                // Every heartbeat changes it.
                condition.last_heartbeat_time = None;
                if let Some(message) = condition.message.as_mut() {
                    message.truncate(cut(message, NODE_WORDS_MAX).len());
                }
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
    fn what_an_owner_controls_is_found_as_it_comes_changes_and_goes() {
        let owned = |name: &str, owner: &str| -> Pod {
            let owner = serde_json::json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": owner, "controller": true});
            let meta = serde_json::json!({"namespace": "a", "name": name, "ownerReferences": [owner]});
            serde_json::from_value(serde_json::json!({ "metadata": meta })).unwrap()
        };
        let (cache, mut writers) = Cache::<Pod>::new(&[None]);
        let writer = writers.first_mut().unwrap();
        let names = |owner: &str| -> Vec<String> {
            let found = cache.owned("a", owner);
            found.iter().filter_map(|pod| pod.metadata.name.clone()).collect()
        };
        for object in [owned("2", "x"), owned("1", "x"), owned("3", "y"), pod("a", "4")] {
            writer.write(&Event::Apply(object));
        }
        assert_eq!(
            (names("x"), names("y")),
            (vec!["1".to_owned(), "2".to_owned()], vec!["3".to_owned()])
        );
        assert!(cache.owned("b", "x").is_empty());
        // A stranger of the same name that claims the owner from another namespace takes nothing away.
        let mut stranger = owned("1", "x");
        stranger.metadata.namespace = Some("b".to_owned());
        writer.write(&Event::Apply(stranger.clone()));
        assert_eq!((names("x").len(), cache.owned("b", "x").len()), (2, 1));
        writer.write(&Event::Delete(stranger));
        assert_eq!(names("x"), ["1", "2"]);
        // Another owner takes one, another one is left alone, and a third is deleted.
        writer.write(&Event::Apply(owned("2", "y")));
        writer.write(&Event::Apply(pod("a", "1")));
        writer.write(&Event::Delete(owned("3", "y")));
        assert_eq!((names("x"), names("y")), (vec![], vec!["2".to_owned()]));
        assert_eq!(
            cache.scopes[0].owned.read().unwrap().len(),
            1,
            "nothing is kept of an owner of nothing"
        );
        // A new list replaces all that was known.
        writer.write(&Event::Init);
        writer.write(&Event::InitApply(owned("5", "x")));
        assert_eq!(names("y"), ["2"], "until it is complete");
        writer.write(&Event::InitDone);
        assert_eq!((names("x"), names("y")), (vec!["5".to_owned()], vec![]));
    }

    #[test]
    fn an_object_that_changes_is_never_seen_as_gone() {
        let owner =
            serde_json::json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "x", "controller": true});
        let meta = serde_json::json!({"namespace": "a", "name": "1", "ownerReferences": [owner]});
        let pod: Pod = serde_json::from_value(serde_json::json!({ "metadata": meta })).unwrap();
        let (cache, mut writers) = Cache::<Pod>::new(&[None]);
        let mut writer = writers.pop().unwrap();
        writer.write(&Event::Apply(pod.clone()));
        let writing = std::thread::spawn(move || {
            for round in 0..20_000 {
                if round % 100 == 0 {
                    writer.write(&Event::Init);
                    writer.write(&Event::InitApply(pod.clone()));
                    writer.write(&Event::InitDone);
                }
                writer.write(&Event::Apply(pod.clone()));
            }
        });
        while !writing.is_finished() {
            assert_eq!(cache.owned("a", "x").len(), 1);
        }
        writing.join().unwrap();
    }

    #[test]
    fn with_namespaces_there_are_no_nodes_and_other_namespaces_are_not_known() {
        let (caches, writers) = Caches::new(&["a".to_owned(), "b".to_owned()]);
        assert!(caches.nodes.is_none());
        assert_eq!(writers.pods.len(), 2);
        assert!(caches.pods.list("c", |_| true).is_empty());
    }

    #[test]
    fn a_node_keeps_its_labels_its_taints_what_pods_may_have_on_it_and_what_is_wrong() {
        let mut node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"nvidia.com/gpu": "8"}, "capacity": {"nvidia.com/gpu": "8"}, "images": [{"names": ["i"]}],
                "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "Unknown", "message": "m",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z"}, {"type": "GPUMissing", "status": "True"}]}
        }))
        .unwrap();
        node.prune();
        let kept = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [{"type": "Ready", "status": "Unknown", "message": "m"},
                {"type": "GPUMissing", "status": "True"}]}});
        assert_eq!(serde_json::to_value(&node).unwrap(), kept);
    }

    #[test]
    fn a_pod_keeps_its_node_its_scheduler_and_its_status_only() {
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "managedFields": [{"manager": "x"}], "annotations": {"flywheel.dev/assignment": "7", "a": "b"}},
            "spec": {"nodeName": "n", "schedulerName": "volcano", "containers": [{"name": "c", "env": [{"name": "A", "value": "B"}]}]},
            "status": {"phase": "Running", "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "i", "imageID": "d", "ready": true, "restartCount": 1, "state": {"running": {}},
                    "allocatedResourcesStatus": [{"name": "nvidia.com/gpu"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    "resources": {"limits": {"cpu": "1"}}, "allocatedResources": {"cpu": "1"}}]}
        }))
        .unwrap();
        pod.prune();
        assert!(pod.metadata.managed_fields.is_none());
        let spec = pod.spec.unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.containers.len()), (Some("n"), 0));
        assert_eq!(spec.scheduler_name.as_deref(), Some("volcano"));
        assert_eq!(
            pod.metadata.annotations,
            Some([("flywheel.dev/assignment".to_owned(), "7".to_owned())].into())
        );
        let kept = serde_json::json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 1, "state": {"running": {}},
                "allocatedResourcesStatus": [{"name": "nvidia.com/gpu"}]}]});
        assert_eq!(serde_json::to_value(pod.status).unwrap(), kept);
    }
}
