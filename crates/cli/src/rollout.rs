//! `rollout`: changes of the spec by which a version goes on, stops or goes back. The patch is all that is ever sent, and can be
//! printed in place of that, for objects that stand in Git.

use flywheel_api::names::ANNOTATION_REJECTED;
use flywheel_api::{InferenceService, ModelVersion};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::arguments::Rollout;
use crate::change;
use crate::cluster::Cluster;
use crate::error::Error;

/// Patches the service, or only says how; what to tell the user.
pub(crate) async fn run(cluster: &Cluster, name: &str, step: &Rollout, print: bool) -> Result<String, Error> {
    let service: InferenceService = cluster.get(name).await?;
    let versions = match step {
        Rollout::Undo { to: None } => cluster.list::<ModelVersion>("").await?.0,
        _ => Vec::new(),
    };
    let (patch, told) = patch(&service, step, &versions)?;
    change::apply(cluster, &service, patch, &told, print).await
}

/// The version on its way.
fn canary(service: &InferenceService) -> Option<&str> {
    let told = service.status.as_ref()?.canary.as_deref()?;
    told.split_whitespace().next()
}

/// The merge patch, and what it does.
fn patch(service: &InferenceService, step: &Rollout, versions: &[ModelVersion]) -> Result<(Value, String), Error> {
    let spec = &service.spec;
    let name = service.name_any();
    let refuse = |why: String| Err(Error::Inapplicable(why));
    let steps = || match &spec.rollout {
        Some(_) => Ok(()),
        None => Err(Error::Inapplicable(format!(
            "InferenceService {name} has no spec.rollout, so its versions do not come by steps"
        ))),
    };
    match step {
        Rollout::Pause | Rollout::Resume => {
            steps()?;
            let paused = matches!(step, Rollout::Pause);
            let told = if paused {
                "goes on to no further step; `kubectl flywheel rollout resume` lets it"
            } else {
                "goes on"
            };
            Ok((
                json!({"spec": {"rollout": {"paused": paused}}}),
                format!("The rollout of {name} {told}."),
            ))
        }
        Rollout::Approve => {
            steps()?;
            let Some(canary) = canary(service) else {
                return refuse(format!(
                    "no version of {name} is on its way; see `kubectl flywheel status infsvc/{name}`"
                ));
            };
            Ok((
                json!({"spec": {"rollout": {"approvedVersion": canary, "paused": false}}}),
                format!("All pods of {name} change over to {canary} as soon as they have loaded it."),
            ))
        }
        Rollout::Abort => {
            let serving = service
                .status
                .as_ref()
                .and_then(|status| status.model_version.as_deref());
            match (canary(service), serving) {
                // What it begins with stays; the newer one is not taken.
                (Some(canary), _) if spec.auto_update.is_some() && canary != spec.model_version => Ok((
                    exclude(service, canary),
                    format!("{canary} is excluded; the pods of {name} let it go."),
                )),
                (_, Some(serving)) if serving != spec.model_version && spec.auto_update.is_none() => Ok((
                    json!({"spec": {"modelVersion": serving}}),
                    format!("The pods of {name} stay with {serving}."),
                )),
                (Some(canary), _) if spec.auto_update.is_some() => refuse(format!(
                    "{canary} is the version of modelVersion: set that to another one to go back"
                )),
                _ => refuse(format!(
                    "no version of {name} is on its way; `kubectl flywheel rollout undo` goes back to an earlier one"
                )),
            }
        }
        Rollout::Undo { to } => {
            let Some(serving) = service.status.as_ref().and_then(|status| status.model_version.clone()) else {
                return refuse(format!(
                    "it is not known what {name} answers with; see `kubectl flywheel status infsvc/{name}`"
                ));
            };
            if spec.auto_update.is_some() {
                return match to {
                    None if serving == spec.model_version => refuse(format!(
                        "{name} answers with {serving}, the version of modelVersion, which cannot be excluded: set modelVersion to an \
                         earlier one, and exclude {serving}"
                    )),
                    None => Ok((
                        exclude(service, &serving),
                        format!("{serving} is excluded; {name} goes back to the newest version that is not."),
                    )),
                    Some(to) => refuse(format!(
                        "{name} takes the newest version by itself, so it would not stay with {to}: take spec.autoUpdate out and set \
                         modelVersion to {to} in the same change"
                    )),
                };
            }
            let to = match to {
                Some(to) => to.clone(),
                None => match before(&serving, &spec.model, versions) {
                    Some(before) => before,
                    None => {
                        return refuse(format!(
                            "there is no version of {} before {serving}; name one with --to",
                            spec.model
                        ));
                    }
                },
            };
            Ok((
                json!({"spec": {"modelVersion": to}}),
                format!("{name} goes back from {serving} to {to}."),
            ))
        }
    }
}

/// Excludes a version, beside those that are excluded.
fn exclude(service: &InferenceService, version: &str) -> Value {
    let mut all = service
        .spec
        .auto_update
        .as_ref()
        .map(|auto| auto.exclude.clone())
        .unwrap_or_default();
    if !all.iter().any(|known| known == version) {
        all.push(version.to_owned());
    }
    json!({"spec": {"autoUpdate": {"exclude": all}}})
}

/// The version of the model with the highest number below that of this one that was not rejected.
fn before(serving: &str, model: &str, versions: &[ModelVersion]) -> Option<String> {
    let of_model = || versions.iter().filter(|version| version.spec.model == model);
    let number = of_model().find(|version| version.name_any() == serving)?.spec.version;
    let earlier = of_model()
        .filter(|version| version.spec.version < number && !version.annotations().contains_key(ANNOTATION_REJECTED));
    Some(earlier.max_by_key(|version| version.spec.version)?.name_any())
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::objects::{inference_service, object};

    use super::*;

    fn service(over: Value) -> InferenceService {
        inference_service(&over)
    }

    fn version(name: &str, number: i64, rejected: bool) -> ModelVersion {
        let annotations = if rejected {
            json!({ANNOTATION_REJECTED: "{}"})
        } else {
            json!({})
        };
        object(
            json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"model": "intent", "version": number,
            "artifact": {"uri": "s3://m", "digest": format!("sha256:{}", "0".repeat(64))}}}),
        )
    }

    #[test]
    fn each_step_is_a_change_of_the_spec() {
        let rollout = json!({"steps": [{"weightPercent": 5, "durationSeconds": 60}]});
        let by_steps = service(json!({"spec": {"modelVersion": "v3", "rollout": rollout},
            "status": {"modelVersion": "v2", "canary": "v3 5%"}}));
        let alone = service(json!({"spec": {"modelVersion": "v2"}, "status": {"modelVersion": "v2"}}));
        let auto = service(json!({"spec": {"modelVersion": "v1", "rollout": rollout,
                "autoUpdate": {"policy": "LatestPromotable", "exclude": ["v9"]}},
            "status": {"modelVersion": "v2", "canary": "v3 5%"}}));
        let first = service(
            json!({"spec": {"modelVersion": "v1", "rollout": rollout, "autoUpdate": {"policy": "LatestPromotable"}},
            "status": {"modelVersion": "v1", "canary": "v1 5%"}}),
        );
        let versions = [
            version("v1", 1, false),
            version("v2", 2, false),
            version("v0", 0, false),
        ];
        let undo = |to: Option<&str>| Rollout::Undo {
            to: to.map(str::to_owned),
        };
        let table = [
            (&by_steps, Rollout::Pause, Ok(json!({"rollout": {"paused": true}}))),
            (&by_steps, Rollout::Resume, Ok(json!({"rollout": {"paused": false}}))),
            (
                &by_steps,
                Rollout::Approve,
                Ok(json!({"rollout": {"approvedVersion": "v3", "paused": false}})),
            ),
            (&by_steps, Rollout::Abort, Ok(json!({"modelVersion": "v2"}))),
            (&by_steps, undo(None), Ok(json!({"modelVersion": "v1"}))),
            (&by_steps, undo(Some("v0")), Ok(json!({"modelVersion": "v0"}))),
            (
                &auto,
                Rollout::Abort,
                Ok(json!({"autoUpdate": {"exclude": ["v9", "v3"]}})),
            ),
            (&auto, undo(None), Ok(json!({"autoUpdate": {"exclude": ["v9", "v2"]}}))),
            (&auto, undo(Some("v0")), Err("take spec.autoUpdate out")),
            (&first, undo(None), Err("cannot be excluded")),
            (&first, Rollout::Abort, Err("is the version of modelVersion")),
            (&alone, Rollout::Pause, Err("no spec.rollout")),
            (&alone, Rollout::Approve, Err("no spec.rollout")),
            (&alone, Rollout::Abort, Err("no version of intent is on its way")),
        ];
        for (service, step, expected) in table {
            match (patch(service, &step, &versions), expected) {
                (Ok((patch, told)), Ok(expected)) => {
                    assert_eq!(patch["spec"], expected, "{step:?}");
                    assert!(told.contains("intent"), "{told}");
                }
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{step:?}: {error}"),
                (other, expected) => panic!("{step:?}: {other:?}, not {expected:?}"),
            }
        }
        let rejected = [version("v2", 2, false), version("v1", 1, true), version("v0", 0, false)];
        let (patch, _) = super::patch(&by_steps, &undo(None), &rejected).unwrap();
        assert_eq!(patch["spec"]["modelVersion"], "v0", "a rejected one is no way back");
        assert!(super::patch(&by_steps, &undo(None), &[version("v2", 2, false)]).is_err());
    }
}
