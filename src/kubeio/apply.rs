//! Children: created if absent, applied server-side where they change, never taken from a stranger.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use flywheel_api::names::{ANNOTATION_APPLIED, is_controlled_by};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Kind, Writes, refused, within};
use crate::error::Error;

/// What became of an object that should be there.
#[derive(Clone, Debug)]
pub enum Created<K> {
    /// It was not there and is now.
    New(K),
    /// It was there already, as it stands here.
    Present(K),
}

impl<K> Created<K> {
    /// The object as the API server has it.
    pub fn into_inner(self) -> K {
        match self {
            Self::New(object) | Self::Present(object) => object,
        }
    }
}

/// What became of an object that should be as it is built.
#[derive(Clone, Debug)]
pub enum Applied<K> {
    /// It was written; this is the answer.
    Written(K),
    /// It is so already; nothing was sent.
    Unchanged(K),
}

impl<K> Applied<K> {
    /// The object as the API server has it.
    pub fn into_inner(self) -> K {
        match self {
            Self::Written(object) | Self::Unchanged(object) => object,
        }
    }
}

/// What was last applied, and what the API server made of it. It normalises what it stores (`1000m` becomes `1`), so an
/// object that differs from what was built need not be out of date: it is not where nothing changed since our write. One entry
/// per object that is there, as those that are gone are forgotten.
#[derive(Debug, Default)]
pub struct AppliedMemo {
    last: Mutex<HashMap<String, (String, String)>>,
}

impl AppliedMemo {
    fn is_last(&self, uid: &str, digest: &str, revision: &str) -> bool {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .is_some_and(|(d, r)| d == digest && r == revision)
    }

    pub(crate) fn remember(&self, uid: String, digest: String, revision: String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(uid, (digest, revision));
    }

    /// Forgets all other objects.
    pub fn retain(&self, alive: &HashSet<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|uid, _| alive.contains(uid));
    }
}

impl Writes<'_> {
    /// Creates an object unless one of that name is there. Whose the present one is, the caller decides.
    ///
    /// # Errors
    /// [`Error::ChildRefused`] where the API server does not take it.
    pub async fn create<K: Kind>(&self, object: &K) -> Result<Created<K>, Error> {
        let (kind, name) = (K::kind(&()), object.name_any());
        let api = self.api(object);
        let parameters = PostParams {
            field_manager: Some(self.manager.to_owned()),
            ..PostParams::default()
        };
        match self.send("create", &kind, &name, api.create(&parameters, object)).await {
            Ok(created) => Ok(Created::New(created)),
            Err(Error::Api { source, .. }) if matches!(source.as_ref(), kube::Error::Api(s) if s.is_already_exists()) =>
            {
                let present = within(&format!("get {kind} {name}"), api.get(&name)).await?;
                Ok(Created::Present(present))
            }
            Err(error) => Err(refused::<K>(&name, error)),
        }
    }

    /// Creates a child unless it is there.
    ///
    /// # Errors
    /// [`Error::NameTaken`] where the present one is not controlled by this owner; [`Error::ChildRefused`].
    pub async fn create_owned<K: Kind>(&self, object: &K, owner_uid: &str) -> Result<Created<K>, Error> {
        let created = self.create(object).await?;
        if let Created::Present(present) = &created
            && !is_controlled_by(present.meta(), owner_uid)
        {
            return Err(taken(present));
        }
        Ok(created)
    }

    /// Brings a child to what was built, by server-side apply, and sends nothing where it is so already.
    ///
    /// `cached` is the object as our cache has it; where the cache has none, the API server is asked first.
    ///
    /// # Errors
    /// [`Error::NameTaken`] where the present one is not controlled by this owner; [`Error::ChildRefused`].
    pub async fn apply_owned<K: Kind>(
        &self,
        object: &K,
        cached: Option<&K>,
        owner_uid: &str,
    ) -> Result<Applied<K>, Error> {
        self.apply_if(object, cached, |present| is_controlled_by(present.meta(), owner_uid))
            .await
    }

    /// As [`Writes::apply_owned`], where `ours` says whether the present object is ours.
    ///
    /// # Errors
    /// [`Error::NameTaken`] where it is not; [`Error::ChildRefused`].
    pub async fn apply_if<K: Kind>(
        &self,
        object: &K,
        cached: Option<&K>,
        ours: impl Fn(&K) -> bool + Send,
    ) -> Result<Applied<K>, Error> {
        let (kind, name) = (K::kind(&()), object.name_any());
        let api = self.api(object);
        let mut desired = to_value(object)?;
        let digest = digest(&desired);
        annotate(&mut desired, &digest);
        let live;
        let present = match cached {
            Some(present) => Some(present),
            None => {
                live = within(&format!("get {kind} {name}"), api.get_opt(&name)).await?;
                live.as_ref()
            }
        };
        if let Some(present) = present {
            if !ours(present) {
                return Err(taken(present));
            }
            let uid = present.uid().unwrap_or_default();
            let same_build = present.annotations().get(ANNOTATION_APPLIED) == Some(&digest);
            if same_build
                && (is_part_of(&desired, &to_value(present)?)
                    || self.context.applied.is_last(&uid, &digest, &revision(present)))
            {
                return Ok(Applied::Unchanged(present.clone()));
            }
            // Refused with a conflict where the object of this name is another one by now.
            set_metadata(&mut desired, "uid", Value::String(uid));
        }
        let written = self
            .patch(&api, &name, desired)
            .await
            .map_err(|e| refused::<K>(&name, e))?;
        self.context
            .applied
            .remember(written.uid().unwrap_or_default(), digest, revision(&written));
        Ok(Applied::Written(written))
    }

    /// Applies some fields of an object that is there, such as a Deployment's replicas by their own field manager.
    /// `fields` must hold `apiVersion`, `kind` and nothing of the metadata; the uid makes sure which object it is.
    ///
    /// # Errors
    /// [`Error::ChildRefused`]; a conflict where the object of this name is another one.
    pub async fn apply_fields<K: Kind>(&self, present: &K, mut fields: Value) -> Result<K, Error> {
        let name = present.name_any();
        set_metadata(&mut fields, "name", Value::String(name.clone()));
        set_metadata(&mut fields, "uid", Value::String(present.uid().unwrap_or_default()));
        self.patch(&self.api(present), &name, fields)
            .await
            .map_err(|e| refused::<K>(&name, e))
    }

    /// Changes some fields of an object that is there, by merge patch: for objects of which we own a field or two only.
    ///
    /// # Errors
    /// [`Error::ChildRefused`]; a conflict where the object of this name is another one.
    pub async fn merge_fields<K: Kind>(&self, present: &K, mut fields: Value) -> Result<K, Error> {
        let name = present.name_any();
        set_metadata(&mut fields, "uid", Value::String(present.uid().unwrap_or_default()));
        let parameters = PatchParams {
            field_manager: Some(self.manager.to_owned()),
            ..PatchParams::default()
        };
        let api = self.api(present);
        let patch = Patch::Merge(fields);
        self.send("patch", &K::kind(&()), &name, api.patch(&name, &parameters, &patch))
            .await
            .map_err(|e| refused::<K>(&name, e))
    }

    async fn patch<K: Kind>(&self, api: &Api<K>, name: &str, body: Value) -> Result<K, Error> {
        let parameters = PatchParams::apply(self.manager).force();
        let patch = Patch::Apply(body);
        self.send("apply", &K::kind(&()), name, api.patch(name, &parameters, &patch))
            .await
    }
}

/// A built object as it stands after it was applied, for tests to fill caches with.
///
/// # Errors
/// The object cannot be written as JSON.
#[cfg(test)]
pub fn as_applied<K: Kind>(built: &K, uid: &str) -> Result<K, Error> {
    let mut value = to_value(built)?;
    let digest = digest(&value);
    annotate(&mut value, &digest);
    set_metadata(&mut value, "uid", Value::String(uid.to_owned()));
    serde_json::from_value(value).map_err(|e| Error::Bug(e.to_string()))
}

fn taken<K: Kind>(present: &K) -> Error {
    Error::NameTaken {
        kind: K::kind(&()).into_owned(),
        name: present.name_any(),
    }
}

fn to_value<K: Kind>(object: &K) -> Result<Value, Error> {
    let mut value = serde_json::to_value(object)
        .map_err(|e| Error::Bug(format!("{} cannot be written as JSON: {e}", K::kind(&()))))?;
    if let Some(map) = value.as_object_mut() {
        // k8s-openapi writes these itself; derived types do as well. Server-side apply needs them.
        map.entry("apiVersion")
            .or_insert_with(|| Value::String(K::api_version(&()).into_owned()));
        map.entry("kind")
            .or_insert_with(|| Value::String(K::kind(&()).into_owned()));
    }
    Ok(value)
}

fn set_metadata(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut()
        && let Some(metadata) = map
            .entry("metadata")
            .or_insert_with(|| Value::Object(serde_json::Map::new()))
            .as_object_mut()
    {
        metadata.insert(key.to_owned(), value);
    }
}

fn annotate(object: &mut Value, digest: &str) {
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut)
        && let Some(annotations) = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(serde_json::Map::new()))
            .as_object_mut()
    {
        annotations.insert(ANNOTATION_APPLIED.to_owned(), Value::String(digest.to_owned()));
    }
}

/// Sixteen hexadecimal digits over the JSON, whose keys are sorted.
fn digest(value: &Value) -> String {
    let mut text = hex::encode(Sha256::digest(value.to_string().as_bytes()));
    text.truncate(16);
    text
}

/// What changes with every change of the spec: the generation where the kind has one, else the resource version.
fn revision<K: Kind>(object: &K) -> String {
    object.meta().generation.map_or_else(
        || object.resource_version().unwrap_or_default(),
        |generation| format!("generation {generation}"),
    )
}

/// Whether all that `desired` says stands in `present`. The items of lists of equal length are compared in order; of
/// longer lists each item must be found. What is empty or null counts as absent, since the API server drops it.
fn is_part_of(desired: &Value, present: &Value) -> bool {
    match (desired, present) {
        (Value::Object(d), Value::Object(p)) => d.iter().all(|(key, value)| match p.get(key) {
            Some(other) => is_part_of(value, other),
            None => is_empty(value),
        }),
        (Value::Array(d), Value::Array(p)) if d.len() == p.len() => d.iter().zip(p).all(|(a, b)| is_part_of(a, b)),
        (Value::Array(d), Value::Array(p)) => d.iter().all(|a| p.iter().any(|b| is_part_of(a, b))),
        (d, p) => d == p,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_there_already_needs_no_write() {
        let present = json!({"metadata": {"labels": {"a": "1", "x": "y"}}, "spec": {"ports": [{"port": 80, "protocol": "TCP"}], "type": "ClusterIP"}});
        let table = [
            (json!({"metadata": {"labels": {"a": "1"}}}), true),
            (json!({"spec": {"ports": [{"port": 80}]}}), true),
            (json!({"spec": {"ports": [{"port": 81}]}}), false),
            (json!({"spec": {"ports": []}}), true),
            (json!({"spec": {"selector": {}}}), true),
            (json!({"spec": {"selector": {"a": "b"}}}), false),
            (json!({"metadata": {"labels": {"b": "1"}}}), false),
        ];
        for (desired, expected) in table {
            assert_eq!(is_part_of(&desired, &present), expected, "{desired}");
        }
    }

    #[test]
    fn a_digest_does_not_depend_on_the_order_of_keys() {
        let a: Value = serde_json::from_str(r#"{"a":1,"b":2}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"b":2,"a":1}"#).unwrap();
        assert_eq!(digest(&a), digest(&b));
        assert_ne!(digest(&a), digest(&json!({"a": 1})));
    }
}
