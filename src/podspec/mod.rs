//! The pod template that trainer, verifier and server pods have in common.
//!
//! What comes out passes Pod Security `restricted` whatever a user writes: the container's and the pod's security context
//! are fixed here, volumes come from kinds that reach nothing of the host, and no API token is mounted.
//! This module reads nothing from the cluster.

mod affinity;
mod volumes;

use std::collections::BTreeMap;

use flywheel_api::conditions::reasons;
use flywheel_api::pod::{LocalReference, PodSettings, Resources, Storage};
use flywheel_contract::names::{COMPLETION_INDEX_ENV, CONFIG_ENV, INSIDE_PORT, STORAGE_CA_DIR};
use flywheel_contract::storage::StorageSettings;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::error::Error;
use crate::settings::{AcceleratorClass, ImagePullPolicy, Settings};

/// User and group of every container: the `nonroot` of distroless images.
pub const RUN_AS: i64 = 65_532;

/// Seconds that a pod stays on a node that does not answer, before it is evicted and replaced. Kubernetes' own default of
/// 300 s would use up the whole time that a recovery may take.
pub const DEAD_NODE_TOLERATION_SECONDS: i64 = 15;

/// Taints that the node controller sets on nodes that do not answer.
const DEAD_NODE_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Annotations that keep service meshes off [`INSIDE_PORT`]: the kubelet and the operator speak plain HTTP to it.
const MESH_ANNOTATIONS: [&str; 4] = [
    "config.linkerd.io/skip-inbound-ports",
    "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports",
    "traffic.kuma.io/exclude-inbound-ports",
    "traffic.sidecar.istio.io/excludeInboundPorts",
];

/// Annotations that would loosen the container's confinement: old spellings of AppArmor and seccomp profiles, which
/// Pod Security still reads.
const CONFINEMENT_ANNOTATIONS: [&str; 3] = [
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
];

/// Prefix of environment variables that are Flywheel's own.
const OWN_ENV_PREFIX: &str = "FLYWHEEL_";

/// A setting of the spec that no pod can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct PodSpecError {
    /// Path in the object, such as `spec.server.pod.affinity`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl From<PodSpecError> for Error {
    fn from(error: PodSpecError) -> Self {
        Self::InvalidSpec {
            reason: reasons::INVALID_SPEC,
            message: error.to_string(),
        }
    }
}

/// Health checks of the container.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// Until the program has started.
    pub startup: Option<core::Probe>,
    /// Whether it gets traffic.
    pub readiness: Option<core::Probe>,
    /// Whether it is restarted.
    pub liveness: Option<core::Probe>,
}

/// All that a pod template is made of.
#[derive(Clone, Debug)]
pub struct PodInputs<'a> {
    /// Name of the container: [`flywheel_api::names::TRAINER`], `VERIFIER` or `SERVER`.
    pub container: &'a str,
    /// Our labels; they win over the user's.
    pub labels: BTreeMap<String, String>,
    /// Our annotations; they win over the user's.
    pub annotations: BTreeMap<String, String>,
    /// Accelerator class; none for pods that need no GPU.
    pub class: Option<&'a AcceleratorClass>,
    /// Class whose nodes are taken where those of `class` have no room; it has the same resource.
    pub fallback: Option<&'a AcceleratorClass>,
    /// GPUs of that class.
    pub gpus: u32,
    /// Names of nodes that are taken only where no other one has room.
    pub avoided: &'a [String],
    /// Image.
    pub image: &'a str,
    /// When the kubelet asks the registry.
    pub image_pull_policy: ImagePullPolicy,
    /// Arguments of the image's program.
    pub args: Vec<String>,
    /// Our environment variables.
    pub env: Vec<core::EnvVar>,
    /// Secrets whose keys become environment variables, beside the storage's, which wins over them.
    pub env_secrets: Vec<&'a LocalReference>,
    /// Ports, with names.
    pub ports: Vec<(&'a str, u16)>,
    /// Processor and memory.
    pub resources: Option<&'a Resources>,
    /// The user's settings.
    pub settings: Option<&'a PodSettings>,
    /// Path of `settings` in the object, for errors: `spec.server.pod`.
    pub settings_path: &'a str,
    /// The headless Service under which the pod's host name is known.
    pub subdomain: Option<String>,
    /// How the pod reaches the bucket.
    pub storage: Option<&'a Storage>,
    /// Service account; the namespace's default where none is given.
    pub service_account: Option<&'a str>,
    /// Secrets with registry credentials from the operator's settings, beside the user's.
    pub image_pull_secrets: &'a [String],
    /// Our volumes beside scratch space and CA bundle; names start with `flywheel-`.
    pub volumes: Vec<core::Volume>,
    /// Where our volumes appear.
    pub volume_mounts: Vec<core::VolumeMount>,
    /// Health checks.
    pub probes: Probes,
    /// What happens before SIGTERM.
    pub lifecycle: Option<core::Lifecycle>,
    /// `Always` or `Never`.
    pub restart_policy: &'static str,
    /// Seconds from the wish to end a pod to SIGKILL.
    pub termination_grace_seconds: i64,
}

impl<'a> PodInputs<'a> {
    /// A pod of a Job: one container that runs once, without probes, ports, a GPU or a word of the user. What differs is
    /// named on top of it.
    #[must_use]
    pub fn run_once(container: &'a str, image: &'a str, grace_seconds: i64, settings: &'a Settings) -> Self {
        Self {
            container,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            class: None,
            fallback: None,
            gpus: 0,
            avoided: &[],
            image,
            image_pull_policy: settings.image_pull_policy,
            args: Vec::new(),
            env: Vec::new(),
            env_secrets: Vec::new(),
            ports: Vec::new(),
            resources: None,
            settings: None,
            settings_path: "spec",
            subdomain: None,
            storage: None,
            service_account: None,
            image_pull_secrets: &settings.image_pull_secrets,
            volumes: Vec::new(),
            volume_mounts: Vec::new(),
            probes: Probes::default(),
            lifecycle: None,
            restart_policy: "Never",
            termination_grace_seconds: grace_seconds,
        }
    }
}

/// How the program in the pod reaches the bucket, for its configuration: the CA bundle is where the pod mounts it.
#[must_use]
pub fn storage_settings(storage: Option<&Storage>) -> StorageSettings {
    let Some(storage) = storage else {
        return StorageSettings::default();
    };
    StorageSettings {
        endpoint: storage.endpoint.clone(),
        region: storage.region.clone(),
        ca_file: storage
            .ca_bundle
            .as_ref()
            .map(|_| format!("{STORAGE_CA_DIR}/{}", volumes::CA_FILE)),
    }
}

/// An environment variable with a configuration in JSON. Every `$` is written `\u0024`, since the kubelet would expand it.
#[must_use]
pub fn config_env(json: &str) -> core::EnvVar {
    core::EnvVar {
        name: CONFIG_ENV.to_owned(),
        value: Some(json.replace('$', "\\u0024")),
        value_from: None,
    }
}

/// The pod template.
///
/// # Errors
/// A setting that the schema cannot check and no pod can be made of, with its path: affinity, spread constraints,
/// annotations that loosen the confinement, an environment variable that is Flywheel's own.
pub fn template<'a>(inputs: PodInputs<'a>) -> Result<core::PodTemplateSpec, PodSpecError> {
    let none = PodSettings::default();
    let settings = inputs.settings.unwrap_or(&none);
    let at = |field: &str, message: String| PodSpecError {
        path: format!("{}.{field}", inputs.settings_path),
        message,
    };
    let terms = |class: Option<&'a AcceleratorClass>| class.map(|class| class.label_terms.as_slice());
    let nodes = affinity::Nodes {
        class: terms(inputs.class).unwrap_or_default(),
        fallback: terms(inputs.fallback),
        avoided: inputs.avoided,
    };
    let affinity = affinity::affinity(nodes, settings.affinity.as_ref()).map_err(|p| at(&p.path, p.message))?;
    let spread = affinity::spread(settings.topology_spread_constraints.as_deref().unwrap_or_default())
        .map_err(|p| at(&p.path, p.message))?;
    let annotations =
        annotations(settings, inputs.annotations).map_err(|(key, m)| at(&format!("annotations[{key}]"), m))?;
    let env = env(settings, inputs.env).map_err(|(name, m)| at(&format!("env[{name}]"), m))?;
    let mut labels = settings.labels.clone().unwrap_or_default();
    labels.extend(inputs.labels);

    let storage = volumes::storage(inputs.storage);
    let mut env_from: Vec<_> = inputs.env_secrets.into_iter().map(volumes::environment).collect();
    env_from.extend(storage.env_from);
    let (volumes, volume_mounts) = volumes::all(settings, inputs.volumes, inputs.volume_mounts, storage.ca_bundle);
    let container = core::Container {
        name: inputs.container.to_owned(),
        image: Some(inputs.image.to_owned()),
        image_pull_policy: Some(inputs.image_pull_policy.as_str().to_owned()),
        args: some(inputs.args),
        env: some(env),
        env_from: some(env_from),
        ports: some(
            inputs
                .ports
                .iter()
                .map(|(name, port)| core::ContainerPort {
                    name: Some((*name).to_owned()),
                    container_port: i32::from(*port),
                    protocol: Some("TCP".to_owned()),
                    ..core::ContainerPort::default()
                })
                .collect(),
        ),
        resources: Some(resources(
            inputs.resources,
            inputs.class.map(|class| (class, inputs.gpus)),
            settings,
        )),
        security_context: Some(container_security()),
        startup_probe: inputs.probes.startup,
        readiness_probe: inputs.probes.readiness,
        liveness_probe: inputs.probes.liveness,
        lifecycle: inputs.lifecycle,
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(volume_mounts),
        ..core::Container::default()
    };
    let spec = core::PodSpec {
        affinity,
        automount_service_account_token: Some(false),
        containers: vec![container],
        enable_service_links: Some(false),
        image_pull_secrets: some(image_pull_secrets(settings, inputs.image_pull_secrets)),
        node_selector: settings.node_selector.clone().filter(|map| !map.is_empty()),
        priority_class_name: settings.priority_class_name.clone(),
        resource_claims: some(
            settings
                .resource_claims
                .iter()
                .flatten()
                .map(|claim| core::PodResourceClaim {
                    name: claim.name.clone(),
                    resource_claim_name: claim.resource_claim_name.clone(),
                    resource_claim_template_name: claim.resource_claim_template_name.clone(),
                })
                .collect(),
        ),
        restart_policy: Some(inputs.restart_policy.to_owned()),
        runtime_class_name: settings.runtime_class_name.clone(),
        scheduler_name: settings.scheduler_name.clone(),
        security_context: Some(pod_security()),
        service_account_name: inputs.service_account.map(str::to_owned),
        subdomain: inputs.subdomain,
        termination_grace_period_seconds: Some(inputs.termination_grace_seconds),
        tolerations: Some(tolerations([inputs.class, inputs.fallback], settings)),
        topology_spread_constraints: some(spread),
        volumes: Some(volumes),
        ..core::PodSpec::default()
    };
    Ok(core::PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    })
}

/// An empty list is left out, so that what is applied reads back the same.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn pod_security() -> core::PodSecurityContext {
    core::PodSecurityContext {
        fs_group: Some(RUN_AS),
        // A claimed volume with many files would otherwise be walked at every start.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        run_as_group: Some(RUN_AS),
        run_as_non_root: Some(true),
        run_as_user: Some(RUN_AS),
        seccomp_profile: Some(core::SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..core::PodSecurityContext::default()
    }
}

fn container_security() -> core::SecurityContext {
    core::SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(core::Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..core::SecurityContext::default()
    }
}

fn annotations(
    settings: &PodSettings,
    ours: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, (String, String)> {
    let mut all = settings.annotations.clone().unwrap_or_default();
    if let Some(key) = all
        .keys()
        .find(|key| CONFINEMENT_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)))
    {
        return Err((
            key.clone(),
            "this annotation would change the container's AppArmor or seccomp profile, which Flywheel fixes; remove it"
                .to_owned(),
        ));
    }
    let port = INSIDE_PORT.to_string();
    for key in MESH_ANNOTATIONS {
        // The user may keep more ports from the mesh.
        let ports = match all.get(key) {
            Some(theirs) if !theirs.is_empty() && !theirs.split(',').any(|p| p.trim() == port) => {
                format!("{port},{theirs}")
            }
            Some(theirs) if !theirs.is_empty() => theirs.clone(),
            _ => port.clone(),
        };
        all.insert(key.to_owned(), ports);
    }
    all.extend(ours);
    Ok(all)
}

fn env(settings: &PodSettings, ours: Vec<core::EnvVar>) -> Result<Vec<core::EnvVar>, (String, String)> {
    let mut all = ours;
    for var in settings.env.iter().flatten() {
        let ours = var.name.starts_with(OWN_ENV_PREFIX) || var.name == COMPLETION_INDEX_ENV;
        if ours || all.iter().any(|have| have.name == var.name) {
            return Err((
                var.name.clone(),
                "this variable is Flywheel's own or stands twice; take another name".to_owned(),
            ));
        }
        all.push(core::EnvVar {
            name: var.name.clone(),
            value: var.value.clone(),
            value_from: var.value_from.as_ref().map(|source| core::EnvVarSource {
                secret_key_ref: source.secret_key_ref.as_ref().map(|key| core::SecretKeySelector {
                    name: key.name.clone(),
                    key: key.key.clone(),
                    optional: None,
                }),
                config_map_key_ref: source
                    .config_map_key_ref
                    .as_ref()
                    .map(|key| core::ConfigMapKeySelector {
                        name: key.name.clone(),
                        key: key.key.clone(),
                        optional: None,
                    }),
                ..core::EnvVarSource::default()
            }),
        });
    }
    Ok(all)
}

fn resources(
    wanted: Option<&Resources>,
    gpus: Option<(&AcceleratorClass, u32)>,
    settings: &PodSettings,
) -> core::ResourceRequirements {
    let list = |list: Option<&flywheel_api::pod::ResourceList>| {
        let mut map = BTreeMap::new();
        if let Some(list) = list {
            let named = [
                ("cpu", &list.cpu),
                ("memory", &list.memory),
                ("ephemeral-storage", &list.ephemeral_storage),
            ];
            for (name, quantity) in named {
                if let Some(quantity) = quantity {
                    map.insert(name.to_owned(), quantity.to_quantity());
                }
            }
        }
        map
    };
    let requests = list(wanted.and_then(|r| r.requests.as_ref()));
    let mut limits = list(wanted.and_then(|r| r.limits.as_ref()));
    if let Some((class, count)) = gpus {
        limits.insert(class.resource.clone(), Quantity(count.to_string()));
    }
    core::ResourceRequirements {
        claims: some(
            settings
                .resource_claims
                .iter()
                .flatten()
                .map(|claim| core::ResourceClaim {
                    name: claim.name.clone(),
                    request: None,
                })
                .collect(),
        ),
        limits: (!limits.is_empty()).then_some(limits),
        requests: (!requests.is_empty()).then_some(requests),
    }
}

fn tolerations(classes: [Option<&AcceleratorClass>; 2], settings: &PodSettings) -> Vec<core::Toleration> {
    let theirs = settings.tolerations.as_deref().unwrap_or_default();
    let [class, fallback] = classes.map(|class| class.map_or(&[] as &[_], |class| class.tolerations.as_slice()));
    // Most classes have the same.
    let more = fallback.iter().filter(|t| !class.contains(t));
    let mut all: Vec<core::Toleration> = class.iter().chain(more).chain(theirs).map(toleration).collect();
    for taint in DEAD_NODE_TAINTS {
        // A toleration without a key bears every taint.
        if theirs
            .iter()
            .any(|t| t.key.as_deref().is_none_or(|key| key.is_empty() || key == taint))
        {
            continue;
        }
        all.push(core::Toleration {
            key: Some(taint.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: Some(DEAD_NODE_TOLERATION_SECONDS),
            value: None,
        });
    }
    all
}

fn toleration(theirs: &flywheel_api::pod::Toleration) -> core::Toleration {
    use flywheel_api::pod::{TaintEffect, TolerationOperator};
    core::Toleration {
        key: theirs.key.clone(),
        operator: theirs.operator.map(|operator| {
            match operator {
                TolerationOperator::Equal => "Equal",
                TolerationOperator::Exists => "Exists",
            }
            .to_owned()
        }),
        value: theirs.value.clone(),
        effect: theirs.effect.map(|effect| {
            match effect {
                TaintEffect::NoSchedule => "NoSchedule",
                TaintEffect::PreferNoSchedule => "PreferNoSchedule",
                TaintEffect::NoExecute => "NoExecute",
            }
            .to_owned()
        }),
        toleration_seconds: theirs.toleration_seconds,
    }
}

fn image_pull_secrets(settings: &PodSettings, ours: &[String]) -> Vec<core::LocalObjectReference> {
    let mut names: Vec<&str> = Vec::new();
    let theirs = settings.image_pull_secrets.iter().flatten().map(|s| s.name.as_str());
    for name in theirs.chain(ours.iter().map(String::as_str)) {
        // The list is a map by name.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
        .into_iter()
        .map(|name| core::LocalObjectReference { name: name.to_owned() })
        .collect()
}

#[cfg(test)]
mod tests;
