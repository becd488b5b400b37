//! The headless Service by which the pods of a TrainingJob of several nodes find each other.
//!
//! One for all attempts, made before the first: the host name of a pod has its attempt in it, so pods of two attempts are
//! never taken for each other, and an attempt costs no write more.

use flywheel_api::TrainingJob;
use flywheel_api::names::{
    FLYWHEEL, LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_TRAINING_JOB, TRAINER, training_attempt, training_service,
};
use flywheel_contract::names::RENDEZVOUS_PORT;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use super::job::{labels, nodes};
use crate::error::Error;
use crate::training::owned_by;

/// Name of the port.
const RENDEZVOUS_PORT_NAME: &str = "rendezvous";

/// The Service; none where one pod trains alone.
///
/// # Errors
/// A job without name or uid, which the API server never gives.
pub fn service(owner: &TrainingJob) -> Result<Option<Service>, Error> {
    if nodes(owner) == 1 {
        return Ok(None);
    }
    let selector = [
        (LABEL_MANAGED_BY, FLYWHEEL.to_owned()),
        (LABEL_COMPONENT, TRAINER.to_owned()),
        (LABEL_TRAINING_JOB, owner.name_any()),
    ];
    Ok(Some(Service {
        metadata: ObjectMeta {
            name: Some(training_service(&owner.name_any())),
            namespace: owner.namespace(),
            labels: Some(labels(owner)),
            owner_references: owned_by(owner)?,
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            // A training pod has no probe to pass, and the others look for it while it starts.
            publish_not_ready_addresses: Some(true),
            selector: Some(selector.map(|(key, value)| (key.to_owned(), value)).into()),
            ports: Some(vec![ServicePort {
                name: Some(RENDEZVOUS_PORT_NAME.to_owned()),
                port: i32::from(RENDEZVOUS_PORT),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }))
}

/// Host name of the pod with index 0 of an attempt: the Job controller names pods `<job>-<index>`. The cluster's domain is
/// left to the resolver's search list.
pub(super) fn rendezvous(owner: &TrainingJob, attempt: u32) -> Option<String> {
    (nodes(owner) > 1).then(|| {
        let name = owner.name_any();
        format!(
            "{}-0.{}.{}.svc",
            training_attempt(&name, attempt),
            training_service(&name),
            owner.namespace().unwrap_or_default()
        )
    })
}
