//! Volumes of a pod: scratch space, the storage's credentials and CA bundle, and the user's own.

use flywheel_api::pod::{LocalReference, PodSettings, Storage};
use flywheel_contract::names::{SCRATCH_DIR, STORAGE_CA_DIR};
use k8s_openapi::api::core::v1 as core;

/// File name of the CA bundle in [`STORAGE_CA_DIR`], whatever its key in the ConfigMap is.
pub(super) const CA_FILE: &str = "ca.crt";

/// Where programs put temporary files; the root file system is read-only.
const TMP_DIR: &str = "/tmp";

const SCRATCH: &str = "flywheel-scratch";
const TMP: &str = "flywheel-tmp";
const STORAGE_CA: &str = "flywheel-storage-ca";

/// What the storage adds to a pod.
pub(super) struct StorageParts {
    /// Credentials as environment variables.
    pub env_from: Vec<core::EnvFromSource>,
    /// The CA bundle and where it appears.
    pub ca_bundle: Option<(core::Volume, core::VolumeMount)>,
}

/// The keys of a Secret as environment variables. Not optional: a pod without its Secret waits and says so.
pub(super) fn environment(secret: &LocalReference) -> core::EnvFromSource {
    core::EnvFromSource {
        secret_ref: Some(core::SecretEnvSource {
            name: secret.name.clone(),
            optional: None,
        }),
        ..core::EnvFromSource::default()
    }
}

pub(super) fn storage(storage: Option<&Storage>) -> StorageParts {
    let env_from = storage
        .and_then(|s| s.secret_ref.as_ref())
        .map(environment)
        .into_iter()
        .collect();
    let ca_bundle = storage.and_then(|s| s.ca_bundle.as_ref()).map(|bundle| {
        let volume = core::Volume {
            name: STORAGE_CA.to_owned(),
            config_map: Some(core::ConfigMapVolumeSource {
                name: bundle.config_map_ref.name.clone(),
                items: Some(vec![core::KeyToPath {
                    key: bundle.config_map_ref.key.clone(),
                    path: CA_FILE.to_owned(),
                    mode: None,
                }]),
                ..core::ConfigMapVolumeSource::default()
            }),
            ..core::Volume::default()
        };
        (volume, mount(STORAGE_CA, STORAGE_CA_DIR, true))
    });
    StorageParts { env_from, ca_bundle }
}

/// All volumes and mounts, ours first.
pub(super) fn all(
    settings: &PodSettings,
    ours: Vec<core::Volume>,
    our_mounts: Vec<core::VolumeMount>,
    ca_bundle: Option<(core::Volume, core::VolumeMount)>,
) -> (Vec<core::Volume>, Vec<core::VolumeMount>) {
    let mut volumes = vec![empty_dir(SCRATCH)];
    let mut mounts = vec![mount(SCRATCH, SCRATCH_DIR, false)];
    // A user may want another kind of volume there, on a claim of its own for instance.
    if !settings.volume_mounts.iter().flatten().any(|m| m.mount_path == TMP_DIR) {
        volumes.push(empty_dir(TMP));
        mounts.push(mount(TMP, TMP_DIR, false));
    }
    if let Some((volume, mount)) = ca_bundle {
        volumes.push(volume);
        mounts.push(mount);
    }
    volumes.extend(ours);
    mounts.extend(our_mounts);
    volumes.extend(settings.volumes.iter().flatten().map(volume));
    mounts.extend(
        settings
            .volume_mounts
            .iter()
            .flatten()
            .map(|m| mount(&m.name, &m.mount_path, m.read_only.unwrap_or(false))),
    );
    (volumes, mounts)
}

fn volume(theirs: &flywheel_api::pod::Volume) -> core::Volume {
    core::Volume {
        name: theirs.name.clone(),
        empty_dir: theirs.empty_dir.as_ref().map(|dir| core::EmptyDirVolumeSource {
            size_limit: dir
                .size_limit
                .as_ref()
                .map(flywheel_api::pod::ResourceQuantity::to_quantity),
            medium: None,
        }),
        config_map: theirs.config_map.as_ref().map(|map| core::ConfigMapVolumeSource {
            name: map.name.clone(),
            ..core::ConfigMapVolumeSource::default()
        }),
        secret: theirs.secret.as_ref().map(|secret| core::SecretVolumeSource {
            secret_name: Some(secret.secret_name.clone()),
            ..core::SecretVolumeSource::default()
        }),
        persistent_volume_claim: theirs.persistent_volume_claim.as_ref().map(|claim| {
            core::PersistentVolumeClaimVolumeSource {
                claim_name: claim.claim_name.clone(),
                read_only: claim.read_only,
            }
        }),
        ..core::Volume::default()
    }
}

fn empty_dir(name: &str) -> core::Volume {
    core::Volume {
        name: name.to_owned(),
        empty_dir: Some(core::EmptyDirVolumeSource::default()),
        ..core::Volume::default()
    }
}

/// A mount; `readOnly` is left out where it is false, since the API server drops it then.
fn mount(name: &str, path: &str, read_only: bool) -> core::VolumeMount {
    core::VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..core::VolumeMount::default()
    }
}
