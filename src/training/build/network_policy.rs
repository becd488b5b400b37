//! The NetworkPolicy of all training and verifying pods of a namespace: one for all, found by label, so that a job costs
//! no object more.

use flywheel_api::names::{
    FLYWHEEL, LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_NAME, TRAINER, TRAINERS_NETWORK_POLICY, VERIFIER,
};
use flywheel_contract::names::INSIDE_PORT;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::serving::build::network_policy::MONITORING_LABEL;

/// Ports on which training pods reach each other: they meet at one, and the connections between every two of them then use
/// ports of the kernel's choice, which a cluster may set to any that takes no privilege.
const PEER_PORTS: (i32, i32) = (1024, 65_535);

/// Label that every namespace carries its own name in.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The inside port is open to the operator's namespace and to namespaces that are marked as monitoring. The namespace's own
/// training pods reach each other, since those of one job train together; that they are of one job no policy for all jobs
/// can say. Everything else is closed.
/// What the pods reach is not limited: the user's bucket may be anywhere.
#[must_use]
pub fn network_policy(namespace: &str, operator_namespace: &str) -> NetworkPolicy {
    let labels = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let namespaces = |key: &str, value: &str| NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some(labels(&[(key, value)])),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let trainers = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_labels: Some(labels(&[(LABEL_MANAGED_BY, FLYWHEEL), (LABEL_COMPONENT, TRAINER)])),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(TRAINERS_NETWORK_POLICY.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels(&[(LABEL_NAME, FLYWHEEL), (LABEL_MANAGED_BY, FLYWHEEL)])),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(labels(&[(LABEL_MANAGED_BY, FLYWHEEL)])),
                match_expressions: Some(vec![LabelSelectorRequirement {
                    key: LABEL_COMPONENT.to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![TRAINER.to_owned(), VERIFIER.to_owned()]),
                }]),
            }),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule {
                    from: Some(vec![
                        namespaces(NAMESPACE_NAME, operator_namespace),
                        namespaces(MONITORING_LABEL, "true"),
                    ]),
                    ports: Some(vec![NetworkPolicyPort {
                        port: Some(IntOrString::Int(i32::from(INSIDE_PORT))),
                        protocol: Some("TCP".to_owned()),
                        end_port: None,
                    }]),
                },
                NetworkPolicyIngressRule {
                    from: Some(vec![trainers]),
                    ports: Some(vec![NetworkPolicyPort {
                        port: Some(IntOrString::Int(PEER_PORTS.0)),
                        protocol: Some("TCP".to_owned()),
                        end_port: Some(PEER_PORTS.1),
                    }]),
                },
            ]),
            egress: None,
        }),
    }
}
