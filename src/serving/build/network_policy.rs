//! The NetworkPolicy: anyone may ask, only operator and monitoring may look inside, and with feedback the service's own pods.

use std::collections::BTreeMap;

use flywheel_api::InferenceService;
use flywheel_contract::names::INSIDE_PORT_NAME;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// Label of namespaces whose pods may read metrics; its value is `true`.
pub const MONITORING_LABEL: &str = "flywheel.dev/monitoring";
/// Label that every namespace carries with its own name.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The policy. Ports go by name, since that is what the pods promise.
#[must_use]
pub fn build(service: &InferenceService, operator_namespace: &str) -> NetworkPolicy {
    let namespace = |key: &str, value: &str| NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            match_expressions: None,
        }),
        ..NetworkPolicyPeer::default()
    };
    let port = |name: &str| {
        Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::String(name.to_owned())),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }])
    };
    let siblings = service.spec.feedback.as_ref().map(|_| NetworkPolicyPeer {
        pod_selector: Some(super::label_selector(service)),
        ..NetworkPolicyPeer::default()
    });
    let operator = namespace(NAMESPACE_NAME_LABEL, operator_namespace);
    let inside = [operator, namespace(MONITORING_LABEL, "true")]
        .into_iter()
        .chain(siblings);
    NetworkPolicy {
        metadata: super::metadata(service, &service.name_any()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(super::label_selector(service)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule {
                    ports: port(super::data_port_name(service)),
                    from: None,
                },
                NetworkPolicyIngressRule {
                    ports: port(INSIDE_PORT_NAME),
                    from: Some(inside.collect()),
                },
            ]),
            egress: None,
        }),
    }
}
