//! The objects of an InferenceService, from the spec and what was decided. Nothing here reads the cluster.

pub mod assignment;
pub mod config_map;
pub mod deployment;
pub mod disruption_budget;
pub mod experiment;
pub mod history;
pub mod network_policy;
pub mod retraining;
pub mod revision;
pub mod service;
pub mod template;

use std::collections::BTreeMap;

use flywheel_api::InferenceService;
use flywheel_api::names;
use flywheel_contract::names::{DATA_PORT_NAME, TLS_DATA_PORT_NAME};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::{Resource as _, ResourceExt as _};

/// GPUs of a pod.
pub const GPUS: u32 = 1;

/// Labels of all children of a service.
#[must_use]
pub fn labels(service: &InferenceService) -> BTreeMap<String, String> {
    let mut labels = selector(&service.name_any());
    labels.extend([
        (names::LABEL_NAME.to_owned(), names::FLYWHEEL.to_owned()),
        (names::LABEL_MANAGED_BY.to_owned(), names::FLYWHEEL.to_owned()),
        (names::LABEL_PART_OF.to_owned(), service.spec.model.clone()),
    ]);
    labels
}

/// Labels that find the pods of a service. A Deployment's selector can never be changed, so neither can this.
#[must_use]
pub fn selector(service: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::LABEL_COMPONENT.to_owned(), names::SERVER.to_owned()),
        (names::LABEL_INFERENCE_SERVICE.to_owned(), service.to_owned()),
    ])
}

/// [`selector`] as text, for the scale subresource.
#[must_use]
pub fn selector_text(service: &str) -> String {
    let parts: Vec<String> = selector(service).iter().map(|(k, v)| format!("{k}={v}")).collect();
    parts.join(",")
}

/// Name of the data port, in pods and Service: the scheme that is spoken there.
fn data_port_name(service: &InferenceService) -> &'static str {
    if service.spec.server.tls.is_some() {
        TLS_DATA_PORT_NAME
    } else {
        DATA_PORT_NAME
    }
}

fn label_selector(service: &InferenceService) -> LabelSelector {
    LabelSelector {
        match_labels: Some(selector(&service.name_any())),
        match_expressions: None,
    }
}

/// Metadata of a child of this name: namespace, labels, and the service as its controller.
fn metadata(service: &InferenceService, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: service.namespace(),
        labels: Some(labels(service)),
        owner_references: service.controller_owner_ref(&()).map(|mut owner| {
            // As kubeio's owner references: nothing waits for the children at the owner's deletion.
            owner.block_owner_deletion = Some(false);
            vec![owner]
        }),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
