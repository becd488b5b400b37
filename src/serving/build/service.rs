//! The Service that clients talk to.

use flywheel_api::InferenceService;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

/// Ports of the Service without and with TLS: HTTP's own, so that `http://<name>/predict` works. They lead to
/// [`flywheel_contract::names::DATA_PORT`] of the pods.
const PORTS: [i32; 2] = [80, 443];

/// The Service, of the same name as the InferenceService.
#[must_use]
pub fn build(service: &InferenceService) -> Service {
    let name = service.name_any();
    let [plain, tls] = PORTS;
    let port = super::data_port_name(service);
    Service {
        metadata: super::metadata(service, &name),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            // Of one family in a cluster that has one.
            ip_family_policy: Some("PreferDualStack".to_owned()),
            selector: Some(super::selector(&name)),
            ports: Some(vec![ServicePort {
                name: Some(port.to_owned()),
                port: if service.spec.server.tls.is_some() { tls } else { plain },
                target_port: Some(IntOrString::String(port.to_owned())),
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
        "{}://{}.{}.svc",
        super::data_port_name(service),
        service.name_any(),
        service.namespace().unwrap_or_default()
    )
}
