//! The Service that clients talk to.

use flywheel_api::InferenceService;
use flywheel_contract::names::DATA_PORT_NAME;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// Port of the Service: plain HTTP's own, so that `http://<name>/predict` works. It leads to
/// [`flywheel_contract::names::DATA_PORT`] of the pods.
pub const PORT: i32 = 80;

/// The Service, of the same name as the InferenceService.
#[must_use]
pub fn build(service: &InferenceService) -> Service {
    let name = service.name_any();
    Service {
        metadata: super::metadata(service, &name),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            // Of one family in a cluster that has one.
            ip_family_policy: Some("PreferDualStack".to_owned()),
            selector: Some(super::selector(&name)),
            ports: Some(vec![ServicePort {
                name: Some(DATA_PORT_NAME.to_owned()),
                port: PORT,
                target_port: Some(IntOrString::String(DATA_PORT_NAME.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Address inside the cluster. The cluster's domain is left to the resolver's search list.
#[must_use]
pub fn url(service: &InferenceService) -> String {
    format!(
        "http://{}.{}.svc",
        service.name_any(),
        service.namespace().unwrap_or_default()
    )
}
