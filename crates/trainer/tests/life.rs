//! What comes after a training: its version is verified and gets a receipt, and its result is used again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use common::{World, rows, says};
use flywheel_contract::artifact::{EVALUATION_SAMPLE_FILE, EvaluationSample, MANIFEST_FILE, Manifest};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::Digest;
use flywheel_contract::termination::{Imported, Outcome, ReceiptFate, Verified};
use flywheel_contract::trainer::{ArtifactRef, TrainingResult};
use flywheel_contract::version::{FoundLine, FoundVersion, VersionReceipt};
use flywheel_store::digest_of;
use serde_json::{Value, json};

fn verify(artifact: &ArtifactRef, receipt: Option<&Value>) -> Value {
    let mut config = json!({"schemaVersion": 1, "artifact": artifact, "storage": {}});
    if let Some(receipt) = receipt {
        config["receipt"] = receipt.clone();
    }
    config
}

fn verified(world: &World, config: &Value) -> Verified {
    let ended = world.run("verify", config);
    match ended.outcome {
        Some(Outcome::Verified(verified)) => verified,
        _ => panic!("{ended:#?}"),
    }
}

fn receipt(digest: &Digest) -> Value {
    json!({"schemaVersion": 1, "namespace": "team", "name": "intent-v1", "model": "intent", "version": 1, "digest": digest,
        "source": {"trainingJob": {"name": "intent", "uid": "uid-1"}},
        "metrics": [{"name": "test/accuracy", "value": "0.93"}], "gates": [{"metric": "test/accuracy", "min": "0.9"}],
        "promotion": {"promotable": true, "message": "its gate holds"}})
}

/// Writes a file of an artifact anew and the manifest for it: what is there is what its digest says, and another thing.
fn replaced(world: &World, artifact: &ArtifactRef, name: &str, bytes: &[u8]) -> ArtifactRef {
    let folder = artifact.uri.as_str().rsplit_once("/out/").unwrap().1.to_owned();
    let manifest = format!("out/{folder}/{MANIFEST_FILE}");
    let mut listed: Manifest = world.read(&manifest);
    let file = listed.files.iter_mut().find(|file| file.name == name).unwrap();
    (file.length, file.digest) = (bytes.len() as u64, digest_of(bytes));
    let text = serde_json::to_vec(&listed).unwrap();
    world.write(&format!("out/{folder}/{name}"), bytes);
    world.write(&manifest, &text);
    ArtifactRef {
        uri: artifact.uri.clone(),
        digest: digest_of(&text),
    }
}

#[test]
fn a_verified_version_has_answered_its_sample_and_has_its_receipt_beside_it() {
    let world = World::new();
    let artifact = world.train(&world.config()).trained().artifact.clone();
    let seen = verified(&world, &verify(&artifact, None));
    let sample: EvaluationSample = world.read("out/uid-1/attempt-1/evaluation_sample.json");
    let reproduced = seen.reproduced.expect("there is a sample");
    assert_eq!(reproduced.texts as usize, sample.items.len());
    assert_eq!(
        (reproduced.same, reproduced.right),
        (reproduced.texts, reproduced.recorded_right)
    );
    assert_eq!(seen.receipt, None);

    let first = receipt(&artifact.digest);
    for _ in 0..2 {
        let seen = verified(&world, &verify(&artifact, Some(&first)));
        assert_eq!(seen.receipt, Some(ReceiptFate::Kept));
    }
    let written: VersionReceipt = world.read("out/uid-1/attempt-1/version.json");
    assert_eq!(serde_json::to_value(&written).unwrap(), first);
    // The artifact is what it was.
    assert_eq!(seen.files, verified(&world, &verify(&artifact, None)).files);

    let mut other = first.clone();
    other["name"] = "intent-v2".into();
    let seen = verified(&world, &verify(&artifact, Some(&other)));
    assert_eq!(seen.receipt, Some(ReceiptFate::OfAnother));
    assert_eq!(
        world.read::<VersionReceipt>("out/uid-1/attempt-1/version.json"),
        written
    );
}

#[test]
fn answers_that_are_not_those_of_the_sample_are_found_though_every_digest_holds() {
    let world = World::new();
    let artifact = world.train(&world.config()).trained().artifact.clone();
    let mut sample: EvaluationSample = world.read("out/uid-1/attempt-1/evaluation_sample.json");
    // One may differ.
    for (changed, holds) in [(1, true), (2, false)] {
        for item in sample.items.iter_mut().skip(changed - 1).take(1) {
            let answer = flywheel_contract::profile::most_probable(&item.probabilities)
                .unwrap()
                .0;
            let labels = item.probabilities.len();
            item.probabilities.iter_mut().for_each(|p| *p = 0.0);
            item.probabilities[(answer + 1) % labels] = 1.0;
        }
        let text = serde_json::to_vec(&sample).unwrap();
        let artifact = replaced(&world, &artifact, EVALUATION_SAMPLE_FILE, &text);
        let ended = world.run("verify", &verify(&artifact, Some(&receipt(&artifact.digest))));
        if holds {
            assert_eq!(ended.code, Some(0), "{ended:#?}");
            std::fs::remove_file(world.path("out/uid-1/attempt-1/version.json")).unwrap();
        } else {
            says(
                ended.failed(),
                FailureReason::AnswersDiffer,
                &["2 of the texts", "Train again"],
            );
            assert!(!world.path("out/uid-1/attempt-1/version.json").exists());
        }
    }
}

#[test]
fn weights_that_cannot_be_loaded_are_found_though_every_digest_holds() {
    let world = World::new();
    let artifact = world.train(&world.config()).trained().artifact.clone();
    let artifact = replaced(&world, &artifact, "model.safetensors", b"no weights");
    says(
        world.run("verify", &verify(&artifact, None)).failed(),
        FailureReason::WeightsInvalid,
        &["model.safetensors"],
    );
}

#[cfg(unix)]
#[test]
fn a_bucket_that_takes_no_receipt_is_no_fault_of_the_version() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let artifact = world.train(&world.config()).trained().artifact.clone();
    let folder = world.path("out/uid-1/attempt-1");
    // A folder in the place of the file: nothing can be written there, whoever asks.
    std::fs::create_dir(folder.join("version.json")).unwrap();
    std::fs::write(folder.join("version.json/x"), "x").unwrap();
    std::fs::set_permissions(folder.join("version.json"), std::fs::Permissions::from_mode(0o555)).unwrap();
    let seen = verified(&world, &verify(&artifact, Some(&receipt(&artifact.digest))));
    assert_ne!(seen.receipt, Some(ReceiptFate::Kept));
    assert!(seen.receipt.is_some() && seen.reproduced.is_some());
    std::fs::set_permissions(folder.join("version.json"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn reusing(world: &World, uid: &str) -> Value {
    let mut config = world.config();
    config["job"]["uid"] = uid.into();
    config["reuse"] = true.into();
    config
}

#[test]
fn a_training_that_was_done_before_is_not_done_again() {
    let world = World::new();
    let first = world.train(&reusing(&world, "uid-1")).trained().clone();
    assert!(!first.reused);
    let result: TrainingResult = world.read("out/uid-1/attempt-1.result.json");
    let key = result.key.expect("a key");
    assert!(world.path(&format!("out/results/{}.json", key.hex())).is_file());

    // Another job, at another time, with its data elsewhere.
    world.write("moved.csv", rows(60));
    let mut again = reusing(&world, "uid-2");
    again["dataset"]["sources"][0]["uri"] = world.uri("moved.csv").into();
    again["checkpoint"] = json!({"intervalSeconds": 5});
    let second = world.train(&again).trained().clone();
    assert!(second.reused);
    assert_eq!((&second.artifact, &second.metrics), (&first.artifact, &first.metrics));
    assert_eq!(second.steps, first.steps);
    assert!(!world.path("out/uid-2/attempt-1").exists(), "nothing was written");

    // It says so only where it may, and only for the same.
    let mut never = again.clone();
    never["job"]["uid"] = "uid-3".into();
    never["reuse"] = false.into();
    assert!(!world.train(&never).trained().reused);
    let mut other = again.clone();
    other["job"]["uid"] = "uid-4".into();
    other["hyperparameters"]["seed"] = 7.into();
    assert!(!world.train(&other).trained().reused);
    world.write("moved.csv", rows(63));
    let mut other = again;
    other["job"]["uid"] = "uid-5".into();
    assert!(!world.train(&other).trained().reused);
}

#[test]
fn a_result_that_is_gone_or_damaged_is_passed_over_and_replaced() {
    let world = World::new();
    let first = world.train(&reusing(&world, "uid-1")).trained().clone();
    let result: TrainingResult = world.read("out/uid-1/attempt-1.result.json");
    let pointer = format!("out/results/{}.json", result.key.unwrap().hex());
    let kept = std::fs::read(world.path(&pointer)).unwrap();
    let outside: Value = {
        let mut pointer: Value = serde_json::from_slice(&kept).unwrap();
        pointer["uid"] = "..".into();
        pointer
    };
    for (n, damage) in [
        (2, &b"{"[..]),
        (3, outside.to_string().as_bytes()),
        (4, &vec![b' '; 20_000]),
    ] {
        world.write(&pointer, damage);
        let ended = world.train(&reusing(&world, &format!("uid-{n}")));
        assert!(!ended.trained().reused, "{n}");
        assert!(
            ended.stderr.contains("an earlier result is not used"),
            "{n}: {}",
            ended.stderr
        );
    }
    // The last one is found from now on, and its artifact is gone after it.
    assert!(world.train(&reusing(&world, "uid-5")).trained().reused);
    std::fs::remove_file(world.path("out/uid-4/attempt-1/manifest.json")).unwrap();
    assert!(!world.train(&reusing(&world, "uid-6")).trained().reused);
    // A result of another training in its place is none.
    world.write(&pointer, &kept);
    let mut text = std::fs::read_to_string(world.path("out/uid-1/attempt-1.result.json")).unwrap();
    text.push(' ');
    world.write("out/uid-1/attempt-1.result.json", text);
    let last = world.train(&reusing(&world, "uid-7")).trained().clone();
    assert!(!last.reused && last.artifact.uri != first.artifact.uri);
}

#[test]
fn where_the_versions_name_is_taken_only_its_own_artifact_may_come_out() {
    let world = World::new();
    let first = world.train(&reusing(&world, "uid-1")).trained().clone();
    let mut again = reusing(&world, "uid-2");
    again["expected"] = serde_json::to_value(&first.artifact).unwrap();
    assert!(world.train(&again).trained().reused);
    for (uid, field, value) in [
        ("uid-3", "/hyperparameters/seed", json!(7)),
        ("uid-4", "/expected/digest", json!(Digest::sha256(&"0".repeat(64)))),
    ] {
        let mut other = again.clone();
        other["job"]["uid"] = uid.into();
        let (parent, name) = field.rsplit_once('/').unwrap();
        other.pointer_mut(parent).unwrap()[name] = value;
        let ended = world.train(&other);
        says(
            ended.failed(),
            FailureReason::OutputConflict,
            &["nothing was trained", "output.versionName"],
        );
        assert!(!world.path(&format!("out/{uid}/attempt-1")).exists());
    }
}

/// What an import tells of, and how it ended.
fn imported(world: &World, config: &Value) -> (Vec<FoundVersion>, Imported) {
    let ended = world.run("import", config);
    let Some(Outcome::Imported(imported)) = &ended.outcome else {
        panic!("{ended:#?}")
    };
    let lines = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<FoundLine>(line).unwrap().found);
    let found: Vec<FoundVersion> = lines.collect();
    assert_eq!(found.len(), imported.found as usize);
    (found, imported.clone())
}

#[test]
fn an_import_finds_every_artifact_with_its_receipt_and_passes_over_what_is_none() {
    let world = World::new();
    let mut config = reusing(&world, "uid-1");
    config["outputUri"] = world.uri("out/a").into();
    let artifact = world.train(&config).trained().artifact.clone();
    verified(&world, &verify(&artifact, Some(&receipt(&artifact.digest))));
    let copy = |to: &str| {
        std::fs::create_dir_all(world.path(to)).unwrap();
        for name in ["manifest.json", "version.json"] {
            std::fs::copy(
                world.path(&format!("out/a/uid-1/attempt-1/{name}")),
                world.path(&format!("{to}/{name}")),
            )
            .unwrap();
        }
    };
    // Without a receipt, with one of another artifact, with a damaged one, no artifact at all, too deep.
    copy("out/bare");
    std::fs::remove_file(world.path("out/bare/version.json")).unwrap();
    copy("out/other");
    world.write(
        "out/other/version.json",
        receipt(&Digest::sha256(&"0".repeat(64))).to_string(),
    );
    copy("out/broken");
    world.write("out/broken/version.json", "{");
    world.write("out/none/manifest.json", r#"{"schemaVersion": 1}"#);
    copy("out/1/2/3/4/5");
    copy("out/1/2/3/4/5b/6");
    let (mut found, told) = imported(
        &world,
        &json!({"schemaVersion": 1, "uri": world.uri("out"), "storage": {}}),
    );
    found.sort_by(|a, b| a.artifact.uri.as_str().cmp(b.artifact.uri.as_str()));
    let places: Vec<&str> = found
        .iter()
        .map(|f| f.artifact.uri.as_str().rsplit_once("/out/").unwrap().1)
        .collect();
    assert_eq!(places, ["1/2/3/4/5", "a/uid-1/attempt-1", "bare"]);
    assert_eq!((told.unusable, told.more), (3, true));
    assert_eq!(found[1].artifact, artifact);
    assert_eq!(
        serde_json::to_value(&found[1].receipt).unwrap(),
        receipt(&artifact.digest)
    );
    assert_eq!((&found[2].receipt, found[2].model.as_str()), (&None, "intent"));
    assert!(!found[2].metrics.is_empty());

    let (found, told) = imported(
        &world,
        &json!({"schemaVersion": 1, "uri": world.uri("nowhere"), "storage": {}}),
    );
    assert!(found.is_empty() && told.unusable == 0 && !told.more);
}

#[test]
fn a_hugging_face_folder_becomes_an_artifact_that_verifies() {
    let world = World::new();
    world.train(&world.config()).trained();
    for name in ["config.json", "model.safetensors", "vocab.txt"] {
        let from = world.path(&format!("out/uid-1/attempt-1/{name}"));
        world.write(&format!("hub/my-bert/{name}"), std::fs::read(from).unwrap());
    }
    let import = |from: &str, to: &str| json!({"schemaVersion": 1, "uri": world.uri(from), "storage": {}, "make": {"model": "intent", "to": world.uri(to)}});
    for _ in 0..2 {
        let (found, _) = imported(&world, &import("hub/my-bert", "out/imported"));
        let [found] = found.as_slice() else { panic!("{found:?}") };
        let seen = verified(&world, &verify(&found.artifact, None));
        assert_eq!((seen.files, seen.reproduced), (4, None));
    }
    let manifest: Manifest = world.read("out/imported/manifest.json");
    assert_eq!(manifest.labels, ["light", "music", "weather"]);
    assert_eq!((manifest.architecture.as_str(), manifest.max_length), ("bert", 64));
    assert!(manifest.metrics.is_empty());

    // An encoder without labels is no classifier, and one whose weights are not those of its configuration is none that loads.
    says(
        world.run("import", &import("bert", "out/encoder")).failed(),
        FailureReason::PretrainedInvalid,
        &["id2label", "TrainingJob"],
    );
    let mut config: Value = world.read("hub/my-bert/config.json");
    config["num_hidden_layers"] = 2.into();
    world.write("hub/my-bert/config.json", config.to_string());
    says(
        world.run("import", &import("hub/my-bert", "out/wrong")).failed(),
        FailureReason::WeightsInvalid,
        &["lacks"],
    );
    assert!(!world.path("out/wrong").exists() && !world.path("out/encoder").exists());
}

#[test]
fn a_pod_that_ended_before_it_left_its_result_to_be_found_is_made_up_for_by_the_next() {
    let world = World::new();
    let mut config = reusing(&world, "uid-1");
    world.train(&config).trained();
    let result: TrainingResult = world.read("out/uid-1/attempt-1.result.json");
    let pointer = world.path(&format!("out/results/{}.json", result.key.unwrap().hex()));
    std::fs::remove_file(&pointer).unwrap();
    config["job"]["attempt"] = 2.into();
    let second = world.train(&config).trained().clone();
    assert!(!second.reused, "it is this job's own");
    assert!(pointer.is_file());
    assert!(world.train(&reusing(&world, "uid-2")).trained().reused);
}

#[test]
fn an_artifact_is_removed_by_its_manifest_and_nothing_else_is() {
    let world = World::new();
    let artifact = world.train(&world.config()).trained().artifact.clone();
    verified(&world, &verify(&artifact, Some(&receipt(&artifact.digest))));
    world.write("out/uid-1/attempt-1/notes.txt", "somebody's");
    let pruned = |artifact: &ArtifactRef| {
        let ended = world.run("prune", &verify(artifact, None));
        match ended.outcome {
            Some(Outcome::Pruned(pruned)) => pruned.files,
            _ => panic!("{ended:#?}"),
        }
    };
    // Another artifact lies there than the one that is to go.
    let other = ArtifactRef {
        digest: Digest::sha256(&"0".repeat(64)),
        ..artifact.clone()
    };
    let before = world.files("out");
    says(
        world.run("prune", &verify(&other, None)).failed(),
        FailureReason::DigestMismatch,
        &["manifest.json"],
    );
    assert_eq!(world.files("out"), before);

    // It goes on where another try ended.
    std::fs::remove_file(world.path("out/uid-1/attempt-1/config.json")).unwrap();
    assert_eq!(pruned(&artifact), 8);
    let left: Vec<String> = world
        .files("out")
        .into_iter()
        .filter(|f| f.contains("attempt-1/"))
        .collect();
    assert_eq!(left, ["uid-1/attempt-1/notes.txt"]);
    assert!(world.path("out/uid-1/attempt-1.result.json").exists());
    assert_eq!(pruned(&artifact), 0);
}
