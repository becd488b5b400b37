//! Results that are used again: a training that an earlier job has done comes to the same, so its result is taken.
//!
//! The key is a digest over all that determines a result, and over nothing else. Names, uids, gates, checkpoints and where files lie
//! are not among it; the model's name is, since it stands in the artifact. Releases are not: a result of an earlier one is as good.

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::is_file_name;
use flywheel_contract::dataset::Source;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Digest;
use flywheel_contract::trainer::{ArtifactRef, ResultPointer, TrainerConfig, TrainingResult};
use flywheel_data::format_of;
use flywheel_store::{Purpose, Store, StoreError, digest_of};
use serde_json::{Value, json};

use crate::output::{RESULT_MAX_BYTES, output};

/// Most bytes of a pointer.
const POINTER_MAX_BYTES: u64 = 16 * 1024;

/// The key of a training on these contents. `base` and `dataset`: digests of the pretrained folder and of the sources.
pub(crate) fn key(config: &TrainerConfig, base: &Digest, dataset: &Digest) -> Result<Digest, Failure> {
    let internal = |e: serde_json::Error| {
        Failure::new(
            FailureReason::InternalError,
            format!("the key of the result cannot be written: {e}"),
        )
    };
    // How files are read, and what is held out of them, counts; where they lie does not.
    let formats = |sources: &Option<Vec<Source>>| -> Result<Option<Vec<Value>>, Failure> {
        let Some(sources) = sources else { return Ok(None) };
        let format = |source: &Source| {
            Ok(json!([
                format_of(source.uri.as_str(), source.format)?,
                source.held_out_percent()
            ]))
        };
        sources.iter().map(format).collect::<Result<_, Failure>>().map(Some)
    };
    let mut settings = serde_json::to_value(&config.dataset).map_err(internal)?;
    if let Some(settings) = settings.as_object_mut() {
        for (name, sources) in [
            ("sources", &Some(config.dataset.sources.clone())),
            ("validation", &config.dataset.validation),
            ("test", &config.dataset.test),
            ("golden", &config.dataset.golden),
        ] {
            settings.insert(name.to_owned(), json!(formats(sources)?));
        }
    }
    let all = json!({
        "schemaVersion": SCHEMA_VERSION,
        "task": config.task,
        "modelName": config.model_name,
        "base": base,
        "goesOn": config.base.is_some(),
        // Its figures are among the result's.
        "incumbent": config.incumbent.as_ref().map(|incumbent| &incumbent.digest),
        "data": dataset,
        "dataset": settings,
        "hyperparameters": config.hyperparameters,
        "processes": u64::from(config.world.nodes) * u64::from(config.world.processes_per_node),
        "device": config.device,
    });
    // Keys of an object are sorted, so the same settings are the same bytes.
    Ok(digest_of(all.to_string().as_bytes()))
}

/// The result that an earlier job left under this key, where its artifact is still there. What is damaged, or not what it says, is
/// passed over: training again is always right.
pub(crate) async fn find(
    store: &Store,
    config: &TrainerConfig,
    key: &Digest,
) -> Result<Option<TrainingResult>, Failure> {
    let uri = config.pointer_uri(key);
    let unusable = |why: &str| {
        tracing::warn!(%uri, why, "an earlier result is not used");
        Ok(None)
    };
    let bytes = match store.get_bytes(&uri, POINTER_MAX_BYTES).await {
        Ok((bytes, _)) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(StoreError::TooLarge { .. }) => return unusable("it is no pointer to a result"),
        Err(error) => return Err(output(&error)),
    };
    let pointer = match serde_json::from_slice::<ResultPointer>(&bytes) {
        Ok(pointer)
            if pointer.schema_version == SCHEMA_VERSION
                && is_file_name(&pointer.uid)
                && is_file_name(&pointer.path) =>
        {
            pointer
        }
        _ => return unusable("it is no pointer to a result"),
    };
    let place = config.output_uri.join(&pointer.uid).join(&pointer.path);
    let bytes = match store.get_bytes(&place, RESULT_MAX_BYTES).await {
        Ok((bytes, fetched)) if fetched.digest == pointer.digest => bytes,
        Ok(_) | Err(StoreError::TooLarge { .. }) => return unusable("the result is not the one that is pointed to"),
        Err(StoreError::NotFound { .. }) => return unusable("the result is gone"),
        Err(error) => return Err(output(&error)),
    };
    let result = match serde_json::from_slice::<TrainingResult>(&bytes) {
        Ok(result) if result.schema_version == SCHEMA_VERSION && result.key.as_ref() == Some(key) => result,
        _ => return unusable("the result is another training's"),
    };
    match store.manifest(&result.artifact).await {
        Ok(_) => Ok(Some(result)),
        Err(StoreError::NotFound { .. } | StoreError::Digest { .. } | StoreError::Manifest { .. }) => {
            unusable("its artifact is gone or another one")
        }
        Err(error) => Err(error.failure(Purpose::Artifact)),
    }
}

/// Leaves a committed result to be found by jobs that are to come. The training is complete without, so a failure is logged only.
pub(crate) async fn remember(store: &Store, config: &TrainerConfig, result: &TrainingResult, digest: &Digest) {
    let Some(key) = result.key.as_ref().filter(|_| config.reuse) else {
        return;
    };
    let pointer = ResultPointer {
        schema_version: SCHEMA_VERSION,
        uid: result.job.uid.clone(),
        path: result.path(),
        digest: digest.clone(),
    };
    let uri = config.pointer_uri(key);
    let written = match serde_json::to_vec(&pointer) {
        Ok(text) => store
            .put_replace(&uri, text.into())
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(problem) = written {
        tracing::warn!(%uri, problem, "the result cannot be left to be used again");
    }
}

/// The failure of a job whose version's name is taken by one with another artifact than would come out.
pub(crate) fn taken(expected: &ArtifactRef) -> Failure {
    Failure::new(
        FailureReason::OutputConflict,
        format!(
            "a ModelVersion with the name that the result is to get is there already, and its artifact ({}) is of another training, so \
             the result would get none; nothing was trained. Delete that ModelVersion, or choose another output.versionName, and \
             make the TrainingJob anew",
            expected.uri
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_of_what_determines_the_result_and_of_nothing_else() {
        let config = || {
            json!({
                "schemaVersion": 1,
                "job": {"namespace": "team", "name": "intent", "uid": "uid-1", "attempt": 1},
                "task": "TextClassification",
                "model": {"pretrained": {"uri": "s3://m/bert"}},
                "dataset": {"sources": [{"uri": "s3://d/data.csv"}], "golden": [{"uri": "s3://d/golden.csv"}]},
                "hyperparameters": {"epochs": 2},
                "device": "Cpu",
                "modelName": "intent",
                "outputUri": "s3://m/intent",
            })
        };
        let (base, data) = (digest_of(b"base"), digest_of(b"data"));
        let of = |config: Value| key(&serde_json::from_value(config).unwrap(), &base, &data).unwrap();
        let with = |path: &str, value: Value| {
            let mut changed = config();
            let (parent, name) = path.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[name] = value;
            of(changed)
        };
        let same = of(config());
        for (path, value) in [
            ("/job/uid", json!("uid-2")),
            ("/job/name", json!("other")),
            ("/job/attempt", json!(2)),
            ("/model/pretrained/uri", json!("s3://elsewhere/bert")),
            ("/dataset/sources", json!([{"uri": "s3://elsewhere/d.csv"}])),
            ("/outputUri", json!("s3://elsewhere")),
            ("/checkpoint", json!({"intervalSeconds": 5})),
            ("/reuse", json!(true)),
        ] {
            assert_eq!(with(path, value), same, "{path}");
        }
        for (path, value) in [
            ("/modelName", json!("other")),
            (
                "/incumbent",
                json!({"uri": "s3://m/1", "digest": digest_of(b"incumbent")}),
            ),
            ("/base", json!({"uri": "s3://m/1", "digest": base})),
            ("/device", json!("Cuda")),
            ("/hyperparameters/epochs", json!(3)),
            ("/hyperparameters/seed", json!(7)),
            (
                "/dataset/sources",
                json!([{"uri": "s3://d/data.csv", "format": "Jsonl"}]),
            ),
            (
                "/dataset/sources",
                json!([{"uri": "s3://d/data.csv", "format": "Feedback"}]),
            ),
            ("/dataset/golden", json!(null)),
            ("/dataset/deduplicate", json!(false)),
            ("/dataset/labelColumn", json!("intent")),
            ("/dataset/evaluationSample", json!(false)),
            ("/world", json!({"nodes": 2, "processesPerNode": 1, "rendezvous": "x"})),
        ] {
            assert_ne!(with(path, value), same, "{path}");
        }
        let parsed: TrainerConfig = serde_json::from_value(config()).unwrap();
        assert_ne!(key(&parsed, &data, &data).unwrap(), same);
        assert_ne!(key(&parsed, &base, &base).unwrap(), same);
    }
}
