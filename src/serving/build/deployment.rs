//! The Deployment of a service: its template and, apart from it, its size.

use flywheel_api::InferenceService;
use flywheel_policy::serving::Exchange;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// ReplicaSets that are kept: as many as stored templates.
const REVISION_HISTORY: i32 = 3;

/// The Deployment without its size.
#[must_use]
pub fn build(service: &InferenceService, template: PodTemplateSpec, exchange: Exchange) -> Deployment {
    let (surge, unavailable) = match exchange {
        Exchange::Surge => (1, 0),
        Exchange::Replace => (0, 1),
    };
    Deployment {
        metadata: super::metadata(service, &service.name_any()),
        spec: Some(DeploymentSpec {
            revision_history_limit: Some(REVISION_HISTORY),
            selector: super::label_selector(service),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(surge)),
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// How a Deployment exchanges its pods.
#[must_use]
pub fn exchange_of(deployment: &Deployment) -> Exchange {
    let surge = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref())
        .and_then(|r| r.max_surge.as_ref());
    match surge {
        Some(IntOrString::Int(0)) => Exchange::Replace,
        _ => Exchange::Surge,
    }
}
