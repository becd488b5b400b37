//! The ConfigMap that says which versions a service's pods hold and which one answers. Unlike their configuration it changes
//! while they run, and they follow.

use std::collections::BTreeMap;

use flywheel_api::{InferenceService, names};
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::names::ASSIGNMENT_FILE;
use flywheel_contract::serving::Assignment;
use flywheel_policy::serving::{Content, Update};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use crate::error::Error;

/// Its name.
#[must_use]
pub fn name(service: &str) -> String {
    names::child(service, "-serving")
}

/// The assignment that an update asks for: the present one where it says the same, else one of a later generation.
///
/// `window_seconds`: how long pods count live texts together, where it is not the usual time.
///
/// Time makes generations grow, also where the present one is not known because somebody deleted it.
#[must_use]
pub fn next(update: &Update, present: Option<&Assignment>, window_seconds: Option<u32>, now: Timestamp) -> Assignment {
    if let Some(present) = present
        && Content::of(present) == update.content
        && present.canary == update.canary
        && present.cleared == update.cleared
        && present.window_seconds == window_seconds
    {
        return present.clone();
    }
    let same = |present: &&Assignment| match (&update.canary, &update.content.trial) {
        (Some(canary), _) => present.canary.as_ref().is_some_and(|c| c.version == canary.version),
        (None, Some(trial)) => present.trial.as_ref().is_some_and(|t| t.id == trial.id),
        (None, None) => false,
    };
    let judged = update.canary.is_some() || update.content.trial.is_some();
    let judged_since = judged.then(|| {
        let begun = present.filter(same).and_then(|present| present.judged_since);
        begun.unwrap_or_else(|| u64::try_from(now.as_second()).unwrap_or(0))
    });
    let milliseconds = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let generation = present.map_or(milliseconds, |a| milliseconds.max(a.generation.saturating_add(1)));
    Assignment {
        canary: update.canary.clone(),
        cleared: update.cleared.clone(),
        window_seconds,
        judged_since,
        ..update.content.clone().assigned(generation)
    }
}

/// The ConfigMap.
///
/// # Errors
/// An assignment that cannot be written as JSON: a fault in Flywheel.
pub fn build(service: &InferenceService, assignment: &Assignment) -> Result<ConfigMap, Error> {
    let text = serde_json::to_string_pretty(assignment).map_err(|e| Error::Bug(format!("assignment: {e}")))?;
    Ok(ConfigMap {
        metadata: super::metadata(service, &name(&service.name_any())),
        data: Some(BTreeMap::from([(ASSIGNMENT_FILE.to_owned(), text)])),
        ..ConfigMap::default()
    })
}

/// What a ConfigMap says; `None` where it is none that this operator understands.
#[must_use]
pub fn read(map: &ConfigMap) -> Option<Assignment> {
    let text = map.data.as_ref()?.get(ASSIGNMENT_FILE)?;
    serde_json::from_str(text)
        .ok()
        .filter(|a: &Assignment| a.schema_version == SCHEMA_VERSION)
}

#[cfg(test)]
mod tests {
    use flywheel_contract::scalar::Digest;
    use flywheel_contract::serving::{Canary, ServedVersion};
    use flywheel_contract::trainer::ArtifactRef;
    use flywheel_policy::serving::{Wanted, update};

    use super::*;

    #[test]
    fn what_is_judged_is_younger_than_the_version_that_comes() {
        let version = |name: &str| ServedVersion {
            name: name.to_owned(),
            artifact: ArtifactRef {
                uri: "s3://models/1".into(),
                digest: Digest::sha256(&"0".repeat(64)),
            },
        };
        let update = |canary: Option<&str>, step: u32| Update {
            canary: canary.map(|name| Canary {
                version: version(name),
                step,
                since: None,
                pods: [("a".to_owned(), 500)].into(),
            }),
            ..update(Some(&Wanted::only(version("v1"))), None, &[]).unwrap()
        };
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let mut present = next(&update(None, 0), None, None, at(10));
        let table = [
            (20, Some("v2"), 0, Some(20)),
            (30, Some("v2"), 1, Some(20)),
            (40, Some("v3"), 0, Some(40)),
            (50, None, 0, None),
        ];
        for (second, canary, step, expected) in table {
            present = next(&update(canary, step), Some(&present), None, at(second));
            assert_eq!(present.judged_since, expected, "{second}");
        }
    }

    #[test]
    fn generations_grow_with_every_change_and_only_then() {
        let update = |name: &str| {
            let version = ServedVersion {
                name: name.to_owned(),
                artifact: ArtifactRef {
                    uri: "s3://models/1".into(),
                    digest: Digest::sha256(&"0".repeat(64)),
                },
            };
            update(Some(&Wanted::only(version)), None, &[]).unwrap()
        };
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let first = next(&update("v1"), None, None, at(1));
        assert_eq!(first.generation, 1000);
        assert_eq!(next(&update("v1"), Some(&first), None, at(9)), first);
        let second = next(&update("v2"), Some(&first), None, at(1));
        assert_eq!(second.generation, 1001, "twice in a second");
        assert_eq!(
            next(&update("v1"), Some(&second), None, at(0)).generation,
            1002,
            "a clock that runs behind"
        );
        assert_eq!(next(&update("v1"), Some(&second), None, at(5)).generation, 5000);
    }
}
