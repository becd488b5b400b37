//! Statuses: one write per reconcile at most, and none where nothing changed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Kind, Writes};
use crate::error::Error;

/// A kind of ours, with its status.
pub trait HasStatus: Kind {
    /// The status.
    type Status: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// The status as it was last seen.
    fn status(&self) -> Option<&Self::Status>;
    /// The same object with another status.
    fn set_status(&mut self, status: Self::Status);
}

macro_rules! has_status {
    ($($kind:ty => $status:ty),+ $(,)?) => {$(
        impl HasStatus for $kind {
            type Status = $status;
            fn status(&self) -> Option<&$status> {
                self.status.as_ref()
            }
            fn set_status(&mut self, status: $status) {
                self.status = Some(status);
            }
        }
    )+};
}

has_status! {
    flywheel_api::TrainingJob => flywheel_api::training_job::TrainingJobStatus,
    flywheel_api::ModelVersion => flywheel_api::model_version::ModelVersionStatus,
    flywheel_api::InferenceService => flywheel_api::inference_service::InferenceServiceStatus,
}

/// How long our own last write is believed more than the cache. A watch is much faster; after this time something is odd
/// and the cache counts again.
const CACHE_LAG: Duration = Duration::from_secs(5);

/// The statuses that we wrote and the cache may not show yet. Without it the next reconcile would compare with the status
/// before, and write a transition twice with different times.
#[derive(Debug, Default)]
pub struct StatusMemo {
    written: Mutex<HashMap<String, Written>>,
}

#[derive(Clone, Debug)]
struct Written {
    /// Resource version that the cache had when we wrote, and the one that the write made.
    before: Option<String>,
    after: Option<String>,
    status: Value,
    at: Instant,
}

impl StatusMemo {
    /// The object with the status that we wrote last, where the cache still shows the one before.
    #[must_use]
    pub fn fresh<K: HasStatus>(&self, object: Arc<K>) -> Arc<K> {
        let Some(uid) = object.uid() else { return object };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, w| w.at.elapsed() < CACHE_LAG);
        let Some(last) = written.get(&uid) else { return object };
        if last.before != object.resource_version() {
            if last.after == object.resource_version() {
                written.remove(&uid);
            }
            return object;
        }
        match serde_json::from_value(last.status.clone()) {
            Ok(status) => {
                let mut fresh = (*object).clone();
                fresh.set_status(status);
                Arc::new(fresh)
            }
            Err(_) => object,
        }
    }

    /// Forgets all other objects.
    pub fn retain(&self, alive: &HashSet<String>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|uid, _| alive.contains(uid));
    }

    pub(crate) fn remember<K: HasStatus>(&self, before: &K, after: &K, status: Value) {
        if let Some(uid) = before.uid() {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(
                uid,
                Written {
                    before: before.resource_version(),
                    after: after.resource_version(),
                    status,
                    at: Instant::now(),
                },
            );
        }
    }
}

impl Writes<'_> {
    /// Writes this status unless it stands there already (times in whole seconds, as they are stored). Whether it was
    /// written.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn status<K: HasStatus>(&self, object: &K, status: &K::Status) -> Result<bool, Error> {
        let kind = K::kind(&());
        let name = object.name_any();
        let json_of = |status: &K::Status| {
            serde_json::to_value(status)
                .map_err(|e| Error::Bug(format!("the status of {kind} {name} cannot be written as JSON: {e}")))
        };
        let desired = json_of(status)?;
        if object.status().map(json_of).transpose()?.as_ref() == Some(&desired) {
            return Ok(false);
        }
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": kind,
            "metadata": {"name": name, "uid": object.uid()},
            "status": desired,
        });
        let api = self.api(object);
        let parameters = PatchParams::apply(self.manager).force();
        let patch = Patch::Apply(body);
        let after = self
            .send("status", &kind, &name, api.patch_status(&name, &parameters, &patch))
            .await?;
        self.context.statuses.remember(object, &after, desired);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use flywheel_api::ModelVersion;
    use flywheel_api::model_version::ModelVersionStatus;

    use super::*;

    fn version(resource_version: &str, state: &str) -> ModelVersion {
        serde_json::from_value(json!({
            "apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion",
            "metadata": {"name": "v", "namespace": "n", "uid": "u", "resourceVersion": resource_version},
            "spec": {"model": "m", "version": 1, "artifact": {"uri": "s3://b/k", "digest": format!("sha256:{}", "0".repeat(64))}},
            "status": {"state": state}
        }))
        .unwrap()
    }

    #[test]
    fn our_own_write_counts_until_the_cache_moves() {
        let memo = StatusMemo::default();
        let state = |v: &Arc<ModelVersion>| v.status.as_ref().and_then(|s: &ModelVersionStatus| s.state.clone());
        memo.remember(&version("1", "Old"), &version("2", "New"), json!({"state": "New"}));
        assert_eq!(
            state(&memo.fresh(Arc::new(version("1", "Old")))).as_deref(),
            Some("New")
        );
        assert_eq!(
            state(&memo.fresh(Arc::new(version("3", "Other")))).as_deref(),
            Some("Other")
        );
        assert_eq!(
            state(&memo.fresh(Arc::new(version("2", "New")))).as_deref(),
            Some("New")
        );
        assert_eq!(
            state(&memo.fresh(Arc::new(version("1", "Old")))).as_deref(),
            Some("Old"),
            "forgotten once the cache has caught up"
        );
    }
}
