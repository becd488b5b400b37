//! The pod template of a service, with the configuration that its pods read, and the hash of what the user said.
//!
//! The hash depends on the user's words only, never on what this operator makes of them: as long as it stays, the template
//! that was rendered first is applied again as it is (see [`super::revision`]), so that a newer operator, another default
//! image or a changed accelerator class restarts no pod. The version is no part of it: pods change over to another one while
//! they run ([`super::assignment`]).

use std::collections::BTreeMap;

use flywheel_api::feedback::Feedback;
use flywheel_api::inference_service::Server;
use flywheel_api::pod::{LocalReference, Storage};
use flywheel_api::{InferenceService, names};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::names::{
    ASSIGNMENT_DIR, DATA_PORT, INSIDE_PORT, INSIDE_PORT_NAME, LIVEZ_PATH, READYZ_PATH, RECEIPT_KEY_DIR,
    RECEIPT_KEY_FILE, SERVING_CONFIG_DIR, TLS_DIR, TLS_FILES,
};
use flywheel_contract::serving::{ServiceIdentity, ServingConfig, ServingLimits, TlsFiles};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, PodTemplateSpec, Probe,
    SecretVolumeSource, SleepAction, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{assignment, config_map};
use crate::error::Error;
use crate::podspec::{self, PodInputs, Probes};
use crate::settings::{AcceleratorClass, Settings};

/// Seconds between two looks at a pod that starts; Ready follows a loaded model by no more than this.
const STARTUP_PERIOD_SECONDS: i32 = 1;
/// Looks until a pod that starts is given up: ten minutes, for a large artifact over a slow network.
const STARTUP_FAILURES: i32 = 600;
/// Seconds between two looks whether a pod should get requests.
const READINESS_PERIOD_SECONDS: i32 = 2;
/// Looks without an answer until it gets none.
const READINESS_FAILURES: i32 = 2;
/// Seconds between two looks whether a pod lives.
const LIVENESS_PERIOD_SECONDS: i32 = 5;
/// Looks without an answer until its container is restarted.
const LIVENESS_FAILURES: i32 = 3;
/// Seconds that a look may take.
const PROBE_TIMEOUT_SECONDS: i32 = 2;
/// Seconds between the wish to end a pod and SIGTERM, in which proxies learn that it gets no new requests.
const PRE_STOP_SECONDS: i64 = 5;
/// Seconds to end in, beside the longest request.
const GRACE_SECONDS: i64 = 30;
/// Seconds more where the last texts are written.
const CAPTURE_SECONDS: i64 = 2;

/// Name of the volume with the configuration.
const CONFIG_VOLUME: &str = "flywheel-serving";
/// Name of the volume with the assignment.
const ASSIGNMENT_VOLUME: &str = "flywheel-assignment";
/// Name of the volume with the certificate.
const TLS_VOLUME: &str = "flywheel-tls";
/// Name of the volume with the key of receipts.
const RECEIPT_KEY_VOLUME: &str = "flywheel-receipts";
/// Who may read keys: the group that the kubelet gives the files to, which is the server's.
const KEY_MODE: i32 = 0o440;

/// The command of the server's image.
const SERVE: &str = "serve";

/// What a service runs with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rendered {
    /// The pod template.
    pub template: PodTemplateSpec,
    /// Text of [`ServingConfig`], which the pods read.
    pub config: String,
}

/// Renders template and configuration.
///
/// # Errors
/// Pod settings that no pod can be made of; a configuration that cannot be written, which is a fault in Flywheel.
pub fn render(service: &InferenceService, class: &AcceleratorClass, settings: &Settings) -> Result<Rendered, Error> {
    let (name, namespace, spec) = (
        service.name_any(),
        service.namespace().unwrap_or_default(),
        &service.spec,
    );
    let server = &spec.server;
    let feedback = spec.feedback.as_ref();
    let config = ServingConfig {
        schema_version: SCHEMA_VERSION,
        service: ServiceIdentity {
            namespace: namespace.clone(),
            name: name.clone(),
        },
        device: class.device,
        precision: server.precision,
        storage: podspec::storage_settings(spec.storage.as_ref()),
        tls: server.tls.as_ref().map(|_| {
            let [certificate, key] = TLS_FILES.map(|name| format!("{TLS_DIR}/{name}"));
            TlsFiles { certificate, key }
        }),
        feedback: feedback.map(|f| f.settings(&namespace, &name, format!("{RECEIPT_KEY_DIR}/{RECEIPT_KEY_FILE}"))),
        limits: ServingLimits {
            max_concurrency: u32::try_from(server.max_concurrency).unwrap_or(1),
            timeout_milliseconds: u32::try_from(server.timeout_milliseconds).unwrap_or(1),
        },
    };
    let config =
        serde_json::to_string_pretty(&config).map_err(|e| Error::Bug(format!("serving configuration: {e}")))?;
    // Each in a volume of its own: a file mounted by subPath would never change.
    let config_map = |volume: &str, map: String| Volume {
        name: volume.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: map,
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mut volumes = vec![
        (
            config_map(CONFIG_VOLUME, config_map::name(&name, &config)),
            SERVING_CONFIG_DIR,
        ),
        (config_map(ASSIGNMENT_VOLUME, assignment::name(&name)), ASSIGNMENT_DIR),
    ];
    volumes.extend(server.tls.as_ref().map(|tls| (certificate(&tls.secret_ref), TLS_DIR)));
    volumes.extend(feedback.map(|feedback| (receipt_key(feedback), RECEIPT_KEY_DIR)));
    let volume_mounts = volumes
        .iter()
        .map(|(volume, path)| VolumeMount {
            name: volume.name.clone(),
            mount_path: (*path).to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        })
        .collect();
    let data_port = super::data_port_name(service);
    let annotations = BTreeMap::from([(names::ANNOTATION_CONFIG_DIGEST.to_owned(), config_map::digest(&config))]);
    let template = podspec::template(PodInputs {
        container: names::SERVER,
        labels: super::labels(service),
        annotations,
        class: Some(class),
        fallback: settings.fallback(&spec.accelerator.class).map(|(_, class)| class),
        gpus: super::GPUS,
        avoided: &[],
        image: server
            .image
            .as_ref()
            .map_or(class.server_image.as_str(), |i| i.0.as_str()),
        image_pull_policy: settings.image_pull_policy,
        args: vec![SERVE.to_owned()],
        env: Vec::new(),
        env_secrets: Vec::new(),
        ports: vec![(data_port, DATA_PORT), (INSIDE_PORT_NAME, INSIDE_PORT)],
        resources: server.resources.as_ref(),
        settings: server.pod.as_ref(),
        settings_path: "spec.server.pod",
        subdomain: None,
        storage: spec.storage.as_ref(),
        service_account: spec.service_account_name.as_deref(),
        image_pull_secrets: &settings.image_pull_secrets,
        volumes: volumes.into_iter().map(|(volume, _)| volume).collect(),
        volume_mounts,
        probes: probes(data_port, server.tls.is_some()),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: PRE_STOP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        restart_policy: "Always",
        termination_grace_seconds: GRACE_SECONDS
            + seconds(server.timeout_milliseconds)
            + feedback.filter(|f| f.capture).map_or(0, |_| CAPTURE_SECONDS),
    })?;
    Ok(Rendered { template, config })
}

/// Whole seconds that hold this many milliseconds.
fn seconds(milliseconds: i32) -> i64 {
    i64::from(milliseconds).saturating_add(999) / 1000
}

/// The certificate's two files.
fn certificate(secret: &LocalReference) -> Volume {
    secret_files(TLS_VOLUME, &secret.name, &TLS_FILES.map(|name| (name, name)))
}

/// The key of receipts.
fn receipt_key(feedback: &Feedback) -> Volume {
    let secret = &feedback.signing_key_secret_ref;
    secret_files(RECEIPT_KEY_VOLUME, &secret.name, &[(&secret.key, RECEIPT_KEY_FILE)])
}

/// Keys of a Secret as files of these names. Not optional: a pod without its Secret waits and says so.
fn secret_files(volume: &str, secret: &str, files: &[(&str, &str)]) -> Volume {
    let items = files.iter().map(|(key, path)| KeyToPath {
        key: (*key).to_owned(),
        path: (*path).to_owned(),
        mode: None,
    });
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(KEY_MODE),
            items: Some(items.collect()),
            optional: None,
        }),
        ..Volume::default()
    }
}

fn probes(data_port: &str, tls: bool) -> Probes {
    let probe = |path: &str, port: &str, tls: bool, period_seconds: i32, failure_threshold: i32| {
        Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some(path.to_owned()),
                port: IntOrString::String(port.to_owned()),
                // The kubelet does not look at the certificate.
                scheme: tls.then(|| "HTTPS".to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(period_seconds),
            failure_threshold: Some(failure_threshold),
            timeout_seconds: Some(PROBE_TIMEOUT_SECONDS),
            ..Probe::default()
        })
    };
    Probes {
        startup: probe(READYZ_PATH, data_port, tls, STARTUP_PERIOD_SECONDS, STARTUP_FAILURES),
        readiness: probe(
            READYZ_PATH,
            data_port,
            tls,
            READINESS_PERIOD_SECONDS,
            READINESS_FAILURES,
        ),
        liveness: probe(
            LIVEZ_PATH,
            INSIDE_PORT_NAME,
            false,
            LIVENESS_PERIOD_SECONDS,
            LIVENESS_FAILURES,
        ),
    }
}

/// What the user said that pods depend on.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inputs<'a> {
    model: &'a str,
    class: &'a str,
    server: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<&'a Storage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feedback: Option<&'a Feedback>,
}

/// Hash of what the user said that pods depend on.
///
/// Fields that have their default value are left out: a field that a newer operator knows comes into every stored object
/// by its default, and must not change the hash. (A default, once released, never changes.)
///
/// # Errors
/// Inputs that cannot be written as JSON: a fault in Flywheel.
pub fn inputs_hash(service: &InferenceService) -> Result<String, Error> {
    let bug = |e: serde_json::Error| Error::Bug(format!("inputs of the pod template: {e}"));
    let spec = &service.spec;
    let mut server = serde_json::to_value(&spec.server).map_err(bug)?;
    without_defaults(&mut server, &serde_json::to_value(Server::default()).map_err(bug)?);
    let inputs = Inputs {
        model: &spec.model,
        class: &spec.accelerator.class,
        server,
        storage: spec.storage.as_ref(),
        service_account_name: spec.service_account_name.as_deref(),
        feedback: spec.feedback.as_ref(),
    };
    let mut text = String::new();
    canonical(&serde_json::to_value(&inputs).map_err(bug)?, &mut text);
    Ok(hex::encode(Sha256::digest(text.as_bytes())))
}

/// JSON with the keys of every object in order, whether or not the map of a build keeps the order of insertion.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (i, (key, value)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for (i, value) in list.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(value, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Removes what equals its default, in objects within objects too.
fn without_defaults(value: &mut Value, default: &Value) {
    if let (Value::Object(map), Value::Object(defaults)) = (value, default) {
        map.retain(|key, value| {
            let Some(default) = defaults.get(key) else {
                return true;
            };
            without_defaults(value, default);
            value != default && !(value.as_object().is_some_and(serde_json::Map::is_empty) && default.is_object())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_do_not_count() {
        let mut value = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": 4}, "g": 5});
        without_defaults(&mut value, &json!({"a": 1, "b": {"c": 2, "d": 0}, "e": {"f": 4}}));
        assert_eq!(value, json!({"b": {"d": 3}, "g": 5}));
    }

    #[test]
    fn the_order_of_keys_does_not_count() {
        let text = |json: &str| {
            let mut out = String::new();
            canonical(&serde_json::from_str(json).unwrap(), &mut out);
            out
        };
        assert_eq!(
            text(r#"{"b": [1, {"y": "\"", "x": null}], "a": 2.5}"#),
            text(r#"{"a": 2.5, "b": [1, {"x": null, "y": "\""}]}"#)
        );
        assert_eq!(text(r#"{"b": [1, true], "a": "é"}"#), r#"{"a":"é","b":[1,true]}"#);
    }
}
