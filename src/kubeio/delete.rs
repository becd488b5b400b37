//! Deletes, each of one object by its uid: an object of the same name that came later stays.

use kube::ResourceExt as _;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};

use super::{Kind, Writes};
use crate::error::Error;

impl Writes<'_> {
    /// Deletes exactly this object, and its children in the background. That it is gone already is as well.
    ///
    /// # Errors
    /// The API server does not do it.
    pub async fn delete<K: Kind>(&self, object: &K) -> Result<(), Error> {
        let name = object.name_any();
        let uid = object
            .uid()
            .ok_or_else(|| Error::Bug(format!("{} {name} has no uid, so it is not deleted", K::kind(&()))))?;
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: Some(uid),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let api = self.api(object);
        match self
            .send("delete", &K::kind(&()), &name, api.delete(&name, &parameters))
            .await
        {
            Ok(_) => Ok(()),
            // Gone, or another object has the name now: both mean that this one is gone.
            Err(Error::Api { source, .. }) if matches!(source.as_ref(), kube::Error::Api(s) if s.is_not_found() || s.is_conflict()) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
