//! The only writers. Every write is bounded in time, counted, and sent only while this replica leads.
//!
//! [`Writes`] belongs to one controller, whose field manager it uses. It knows nothing of the kinds beyond their metadata.

mod apply;
mod delete;
mod events;
mod status;

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(test)]
pub use apply::as_applied;
pub use apply::{Applied, AppliedMemo, Created};
pub use events::Note;
pub use status::{HasStatus, StatusMemo};

use crate::context::Context;
use crate::error::Error;

/// Longest wait for one answer of the API server.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Field manager of the TrainingJob controller.
pub const TRAINING_MANAGER: &str = "flywheel-training";
/// Field manager of the ModelVersion controller.
pub const MODELS_MANAGER: &str = "flywheel-models";
/// Field manager of the InferenceService controller.
pub const SERVING_MANAGER: &str = "flywheel-serving";
/// Field manager of Deployments' replicas, apart from the template so that an autoscaler can own them.
pub const SCALE_MANAGER: &str = "flywheel-serving-scale";

/// One call of the API server within [`WRITE_TIMEOUT`].
///
/// # Errors
/// Its error, or [`Error::Timeout`].
pub async fn within<T>(what: &str, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(WRITE_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Error::api(what, error)),
        Err(_) => Err(Error::Timeout {
            what: what.to_owned(),
            limit: WRITE_TIMEOUT,
        }),
    }
}

/// What every namespaced kind can do, ours and Kubernetes' own.
pub trait Kind:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The writer of one controller.
#[derive(Clone, Copy)]
pub struct Writes<'a> {
    context: &'a Context,
    manager: &'static str,
}

impl<'a> Writes<'a> {
    /// The writer with this field manager.
    #[must_use]
    pub fn new(context: &'a Context, manager: &'static str) -> Self {
        Self { context, manager }
    }

    fn api<K: Kind>(&self, object: &K) -> Api<K> {
        Api::namespaced(
            self.context.client.clone(),
            object.namespace().as_deref().unwrap_or_default(),
        )
    }

    /// Sends one write: only while leading, within the time limit, and counted.
    async fn send<T>(
        &self,
        verb: &'static str,
        kind: &str,
        name: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        if !self.context.lease.still_valid() {
            return Err(Error::NotLeading);
        }
        let outcome = within(&format!("{verb} {kind} {name}"), call).await;
        self.context.metrics.write(verb, kind, outcome.is_ok());
        outcome
    }
}

/// The owner reference that a child of this object carries. It does not block the owner's deletion.
///
/// # Errors
/// An object without name or uid, which the API server never gives.
pub fn owner_reference<K: Kind>(owner: &K) -> Result<OwnerReference, Error> {
    let mut reference = owner
        .controller_owner_ref(&())
        .ok_or_else(|| Error::Bug("an object without name or uid cannot own anything".to_owned()))?;
    reference.block_owner_deletion = Some(false);
    Ok(reference)
}

/// An answer of the API server to a child that it does not take becomes [`Error::ChildRefused`].
fn refused<K: Kind>(name: &str, error: Error) -> Error {
    if let Error::Api { source, .. } = &error
        && let kube::Error::Api(status) = source.as_ref()
        && (status.is_forbidden() || status.is_invalid() || status.code == 400)
    {
        return Error::ChildRefused {
            kind: K::kind(&()).into_owned(),
            name: name.to_owned(),
            message: flywheel_api::conditions::cut_words(&status.message, 600).into_owned(),
        };
    }
    error
}
