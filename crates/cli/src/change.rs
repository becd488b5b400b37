//! The one way in which the plugin changes a spec: a merge patch of the spec of an object that was read.

use flywheel_api::InferenceService;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::error::Error;

/// Who writes, as the API server notes it.
pub(crate) const MANAGER: &str = "kubectl-flywheel";

/// Patches the service, or only prints the patch, for objects that stand in Git; what to tell the user. `told`: what the patch does.
pub(crate) async fn apply(
    cluster: &Cluster,
    service: &InferenceService,
    patch: Value,
    told: &str,
    print: bool,
) -> Result<String, Error> {
    if print {
        return Ok(format!("{patch}\n"));
    }
    let name = service.name_any();
    let what = format!("change InferenceService {name}");
    let parameters = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    // Of this very object as it was read: where somebody changes it meanwhile, the patch is refused with a conflict.
    let mut body = patch;
    if let Some(body) = body.as_object_mut() {
        let metadata = json!({"uid": service.uid(), "resourceVersion": service.resource_version()});
        body.insert("metadata".to_owned(), metadata);
    }
    let api = cluster.api::<InferenceService>();
    cluster
        .ask(&what, api.patch(&name, &parameters, &Patch::Merge(body)))
        .await?;
    Ok(format!("{told}\n"))
}
