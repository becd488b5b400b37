//! Bad input: each row ends with its reason, exit code 1 and a message that tells what to do, and changes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

#[path = "../../store/tests/faults/mod.rs"]
mod faults;

mod common;

use std::time::{Duration, Instant};

use common::{Ended, World, rows, says};
use faults::{Fault, Server};
use flywheel_contract::checkpoint::Head;
use flywheel_contract::failure::FailureReason as R;
use flywheel_contract::termination::TerminationMessage;
use flywheel_contract::trainer::TrainingResult;
use serde_json::{Value, json};

const ALWAYS: usize = usize::MAX;

type Change = fn(&World, &mut Value);

/// Each byte of the weights becomes this one.
fn fill_weights(world: &World, byte: u8) {
    let mut bytes = std::fs::read(world.path("bert/model.safetensors")).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    bytes[8 + header..].fill(byte);
    world.write("bert/model.safetensors", bytes);
}

#[test]
fn data_settings_and_models_that_cannot_work() {
    let cases: Vec<(&str, Change, R, &[&str])> = vec![
        (
            "missing CSV",
            |w, _| std::fs::remove_file(w.path("data.csv")).unwrap(),
            R::DatasetNotFound,
            &["data.csv does not exist", "check the URI"],
        ),
        (
            "empty CSV",
            |w, _| w.write("data.csv", ""),
            R::DatasetEmpty,
            &["data.csv has no rows", "give a file with a header"],
        ),
        (
            "only a header",
            |w, _| w.write("data.csv", "text,label\n"),
            R::DatasetEmpty,
            &["has no rows"],
        ),
        (
            "wrong column",
            |_, c| c["dataset"]["textColumn"] = "sentence".into(),
            R::ColumnMissing,
            &["\"sentence\"", "it has \"text\", \"label\"", "Set `textColumn`"],
        ),
        (
            "one class",
            |w, _| {
                w.write(
                    "data.csv",
                    rows(60).replace("music\n", "light\n").replace("weather\n", "light\n"),
                )
            },
            R::SingleClass,
            &["at least two", "labelColumn"],
        ),
        (
            "label in test only",
            |w, c| {
                w.write("v.csv", "text,label\nplay,music\n");
                w.write("t.csv", "text,label\nplay,film\n");
                c["dataset"]["validation"] = json!([{"uri": w.uri("v.csv")}]);
                c["dataset"]["test"] = json!([{"uri": w.uri("t.csv")}]);
            },
            R::LabelNotInTrain,
            &["the test set", "\"film\"", "Add training rows"],
        ),
        (
            "broken UTF-8",
            |w, _| w.write("data.csv", b"text,label\nok,a\n\xff\xfe,b\n"),
            R::DatasetInvalid,
            &["line 3", "UTF-8", "iconv"],
        ),
        (
            "unknown suffix",
            |w, c| c["dataset"]["sources"][0]["uri"] = w.uri("data.xls").into(),
            R::ConfigInvalid,
            &["data.xls", "`format: Csv`"],
        ),
        (
            "no folder",
            |w, _| std::fs::remove_dir_all(w.path("bert")).unwrap(),
            R::PretrainedNotFound,
            &["bert/config.json", "model.pretrained.uri"],
        ),
        (
            "no weights",
            |w, _| std::fs::remove_file(w.path("bert/model.safetensors")).unwrap(),
            R::PretrainedNotFound,
            &["model.safetensors", "convert them"],
        ),
        (
            "no tokenizer",
            |w, _| std::fs::remove_file(w.path("bert/vocab.txt")).unwrap(),
            R::TokenizerMissing,
            &["neither tokenizer.json nor vocab.txt", "copy"],
        ),
        (
            "broken tokenizer",
            |w, _| w.write("bert/tokenizer.json", "{"),
            R::TokenizerInvalid,
            &["file://", "tokenizer.json cannot be read"],
        ),
        (
            "tokenizer of another model",
            |w, _| {
                let more = std::fs::read_to_string(w.path("bert/vocab.txt")).unwrap() + "extra\n";
                w.write("bert/vocab.txt", more);
            },
            R::TokenizerInvalid,
            &["token ids up to", "vocab_size"],
        ),
        (
            "unknown architecture",
            |w, _| w.write("bert/config.json", "{\"model_type\": \"gpt2\"}"),
            R::PretrainedInvalid,
            &["file://", "gpt2"],
        ),
        (
            "truncated safetensors",
            |w, _| {
                let bytes = std::fs::read(w.path("bert/model.safetensors")).unwrap();
                w.write("bert/model.safetensors", &bytes[..bytes.len() / 2]);
            },
            R::WeightsInvalid,
            &["file://", "bert/model.safetensors"],
        ),
        (
            "lying header length",
            |w, _| {
                let mut bytes = std::fs::read(w.path("bert/model.safetensors")).unwrap();
                bytes[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
                w.write("bert/model.safetensors", bytes);
            },
            R::WeightsInvalid,
            &["model.safetensors"],
        ),
        (
            "lying offsets",
            |w, _| {
                let bytes = std::fs::read(w.path("bert/model.safetensors")).unwrap();
                let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
                let shape = text.find("\"shape\":[").unwrap() + 8 + 9;
                let mut lying = bytes;
                lying[shape] = b'9';
                w.write("bert/model.safetensors", lying);
            },
            R::WeightsInvalid,
            &["model.safetensors"],
        ),
        (
            "texts too long for the model",
            |_, c| c["hyperparameters"]["maxLength"] = 100.into(),
            R::ConfigInvalid,
            &["maxLength is 100", "at most 64"],
        ),
        (
            "learning rate",
            |_, c| c["hyperparameters"]["learningRate"] = "fast".into(),
            R::ConfigInvalid,
            &["learningRate"],
        ),
        (
            "weights that are no numbers",
            |w, _| fill_weights(w, 0xff),
            R::WeightsInvalid,
            &["holds numbers that are infinite"],
        ),
        (
            "weights that are finite, and what is computed with them is not",
            |w, _| fill_weights(w, 0x7f),
            R::LossNotFinite,
            &["step 1", "learning rate"],
        ),
        (
            "no GPU",
            |_, c| c["device"] = "Cuda".into(),
            R::GpuUnavailable,
            &["device Cuda", "Cpu"],
        ),
        (
            "schema of another release",
            |_, c| c["schemaVersion"] = 9.into(),
            R::ConfigInvalid,
            &["schemaVersion 9", "one release"],
        ),
        (
            "foreign HEAD",
            |w, _| w.write("out/uid-1/HEAD/00000000000000000001", "my notes"),
            R::OutputConflict,
            &["uid-1/HEAD"],
        ),
        (
            "foreign manifest",
            |w, _| w.write("out/uid-1/attempt-1/manifest.json", "my notes"),
            R::OutputConflict,
            &["manifest.json", "choose another output URI"],
        ),
        (
            "foreign weights",
            |w, _| w.write("out/uid-1/attempt-1/model.safetensors", "my notes"),
            R::OutputConflict,
            &["model.safetensors", "neither read nor overwritten"],
        ),
        (
            "output that cannot be written",
            |w, c| {
                w.write("flat", "a file");
                c["outputUri"] = w.uri("flat").into();
            },
            R::StorageInvalid,
            &["flat"],
        ),
        (
            "output over http",
            |_, c| c["outputUri"] = "http://127.0.0.1:9/x".into(),
            R::StorageInvalid,
            &["can only be read", "s3://"],
        ),
    ];
    for (name, change, reason, words) in cases {
        let world = World::new();
        let mut config = world.config();
        change(&world, &mut config);
        let before = world.files("out");
        let start = Instant::now();
        let ended = world.train(&config);
        assert!(start.elapsed() < Duration::from_secs(30), "{name}");
        println!("{name}: {}", ended.failed());
        says(ended.failed(), reason, words);
        for file in &before {
            assert_eq!(
                std::fs::read_to_string(world.path("out").join(file)).unwrap(),
                "my notes",
                "{name}: never overwritten"
            );
        }
        assert!(
            !world.path("out/uid-1/attempt-1/manifest.json").exists() || name == "foreign manifest",
            "{name}"
        );
        assert!(!world.path("out/uid-1/attempt-1.result.json").exists(), "{name}");
    }
}

#[test]
fn a_limit_of_the_data_that_is_broken_ends_the_job_before_its_first_step() {
    let world = World::new();
    let mut config = world.config();
    let run = |config: &Value| {
        let mut command = world.command(&["train", "--listen", "127.0.0.1:0"]);
        let output = command.env("FLYWHEEL_CONFIG", config.to_string()).output().unwrap();
        let message = std::fs::read_to_string(world.path("termination")).unwrap();
        let counts = TerminationMessage::parse(&message).unwrap().dataset.unwrap();
        let ended = world.ended(output);
        for text in ["turn on the light", "play music", "what is the weather"] {
            assert!(!ended.stderr.contains(text) && !message.contains(text), "{ended:#?}");
        }
        (counts, ended)
    };
    config["dataset"]["limits"] = json!({"maxNearDuplicates": 0, "minRowsPerLabel": 1000, "maxConflicts": 0});
    let (counts, ended) = run(&config);
    println!("{}", ended.failed());
    says(
        ended.failed(),
        R::DatasetCheckFailed,
        &[
            "dataset.limits.maxNearDuplicates is 0, but ",
            "data.csv line ",
            "dataset.limits.minRowsPerLabel is 1000, but 3 labels have fewer than 1000 training rows",
            "or change the limit",
        ],
    );
    assert!(!ended.failed().message.contains("maxConflicts"), "kept");
    assert!(!ended.stderr.contains("\"Training\""), "no step: {}", ended.stderr);
    assert!(!world.path("out/uid-1/attempt-1").exists(), "nothing was uploaded");
    let near = counts.near_duplicates_of_train();
    assert!(near > 0 && counts.kept() == 60, "{counts:?}");

    config["job"]["uid"] = "uid-2".into();
    config["dataset"]["limits"] = json!({"maxNearDuplicates": near, "minRowsPerLabel": 10});
    let (counts, ended) = run(&config);
    assert_eq!((counts.near_duplicates_of_train(), counts.rare_labels), (near, 0));
    ended.trained();
    assert!(
        ended.stderr.contains("nearly the text of a training row"),
        "reported all the same"
    );
    let result = std::fs::read(world.path("out/uid-2/attempt-1.result.json")).unwrap();
    let result: TrainingResult = serde_json::from_slice(&result).unwrap();
    assert_eq!(result.counts, counts);
    assert!(
        !result.examples.is_empty()
            && result
                .examples
                .iter()
                .all(|e| e.first.uri.as_str() == world.uri("data.csv"))
    );
}

#[test]
fn a_configuration_that_is_missing_or_no_json() {
    let world = World::new();
    let output = world
        .command(&["train"])
        .env_remove("FLYWHEEL_CONFIG")
        .output()
        .unwrap();
    says(
        world.ended(output).failed(),
        R::ConfigInvalid,
        &["FLYWHEEL_CONFIG is not set", "run -f job.yaml"],
    );
    let output = world.command(&["verify"]).env("FLYWHEEL_CONFIG", "{").output().unwrap();
    says(
        world.ended(output).failed(),
        R::ConfigInvalid,
        &["FLYWHEEL_CONFIG cannot be read"],
    );
}

/// A job whose data, model and output all lie in one S3.
fn on_s3(world: &World, server: &Server) -> Value {
    server.put("data/train.csv", rows(60));
    for name in ["config.json", "vocab.txt", "model.safetensors"] {
        server.put(
            &format!("models/bert/{name}"),
            std::fs::read(world.path("bert").join(name)).unwrap(),
        );
    }
    let mut config = world.config();
    config["storage"]["endpoint"] = server.url().into();
    config["dataset"]["sources"][0]["uri"] = "s3://data/train.csv".into();
    config["model"]["pretrained"]["uri"] = "s3://models/bert".into();
    config["outputUri"] = "s3://out/intent".into();
    config
}

#[test]
fn storage_that_refuses_stalls_or_goes_away() {
    let cases: Vec<(&str, &str, Fault, R, &[&str])> = vec![
        (
            "data refused",
            "GET /data/",
            Fault::Status(403),
            R::StorageForbidden,
            &[
                "s3://data/train.csv",
                "refused access",
                "No keys were given",
                "set `storage.secretRef`",
            ],
        ),
        (
            "data gone",
            "GET /data/",
            Fault::Status(404),
            R::DatasetNotFound,
            &["does not exist"],
        ),
        (
            "data slow",
            "GET /data/",
            Fault::Slow(1, 50),
            R::StorageUnavailable,
            &["s3://data/train.csv", "did not answer well within"],
        ),
        (
            "data stalls",
            "GET /data/",
            Fault::Hang,
            R::StorageUnavailable,
            &["no answer within"],
        ),
        (
            "data cut",
            "GET /data/",
            Fault::Truncate,
            R::StorageUnavailable,
            &["s3://data/train.csv"],
        ),
        (
            "data fails",
            "GET /data/",
            Fault::Status(500),
            R::StorageUnavailable,
            &["HTTP 500", "can be reached from the pod"],
        ),
        (
            "weights stall",
            "GET /models/bert/model.safetensors",
            Fault::Hang,
            R::StorageUnavailable,
            &["model.safetensors"],
        ),
        (
            "output refused",
            "PUT /out/",
            Fault::Status(403),
            R::StorageForbidden,
            &["s3://out/intent", "refused access"],
        ),
        (
            "no such bucket",
            "PUT /out/",
            Fault::Status(404),
            R::StorageInvalid,
            &["no such bucket", "create it"],
        ),
        (
            "upload refused",
            "PUT /out/intent/uid-1/attempt-1/manifest.json",
            Fault::Status(403),
            R::StorageForbidden,
            &["manifest.json"],
        ),
        (
            "storage disappears before the upload",
            "PUT /out/intent/uid-1/attempt-1/",
            Fault::Close,
            R::StorageUnavailable,
            &["attempt-1/"],
        ),
        (
            "result cannot be committed",
            "PUT /out/intent/uid-1/attempt-1.result.json",
            Fault::Status(503),
            R::StorageUnavailable,
            &["result.json"],
        ),
    ];
    for (name, part, fault, reason, words) in cases {
        let (world, server) = (World::new(), Server::start());
        let config = on_s3(&world, &server);
        server.fault(part, fault, ALWAYS);
        let start = Instant::now();
        let ended = world.train(&config);
        println!("{name}: {} after {:?}", ended.failed(), start.elapsed());
        says(ended.failed(), reason, words);
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{name} took {:?}",
            start.elapsed()
        );
        assert!(
            server.requests().len() < 60,
            "{name}: no storm: {}",
            server.requests().len()
        );
        if let Some(head) = server.get("out/intent/uid-1/HEAD") {
            let head: Head = serde_json::from_slice(&head).unwrap();
            assert_eq!(head.result, None, "{name}");
        }
    }
}

#[test]
fn storage_that_refuses_is_told_of_by_what_it_was_asked_with() {
    let (world, server) = (World::new(), Server::start());
    let mut config = on_s3(&world, &server);
    server.fault("GET /data/", Fault::Status(403), ALWAYS);
    let output = world
        .command(&["train"])
        .env("FLYWHEEL_CONFIG", config.to_string())
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .output()
        .unwrap();
    says(
        world.ended(output).failed(),
        R::StorageForbidden,
        &[
            "s3://data/train.csv",
            "Check the keys in the Secret of `storage.secretRef`",
        ],
    );

    let url = format!("{}/data/train.csv", server.url());
    config["dataset"]["sources"][0]["uri"] = url.as_str().into();
    config["job"]["uid"] = "uid-2".into();
    let ended = world.train(&config);
    says(
        ended.failed(),
        R::StorageForbidden,
        &[&url, "without credentials", "signed URL has expired"],
    );
    assert!(
        !ended.failed().message.contains("Secret of"),
        "keys would not help: {}",
        ended.failed()
    );
}

/// The folder is there and takes no file: not even root makes one in /proc.
#[test]
fn an_output_that_cannot_be_written_says_what_is_wrong_with_its_folder() {
    let world = World::new();
    let mut config = world.config();
    config["outputUri"] = "file:///proc/flywheel".into();
    let ended = world.train(&config);
    says(
        ended.failed(),
        R::StorageInvalid,
        &[
            "file:///proc/flywheel/",
            "/proc belongs to user 0",
            "mode 555",
            "this process is user",
        ],
    );
    assert!(!ended.failed().message.contains("bucket"), "{}", ended.failed());
}

#[test]
fn storage_that_fails_for_a_while_is_waited_for() {
    let (world, server) = (World::new(), Server::start());
    let config = on_s3(&world, &server);
    for part in [
        "GET /data/",
        "GET /models/bert/model.safetensors",
        "PUT /out/intent/uid-1/attempt-1/model.safetensors",
        "PUT /out/intent/uid-1/attempt-1.result.json",
        "PUT /out/intent/uid-1/HEAD",
    ] {
        server.fault(part, Fault::Status(503), 1);
        server.fault(part, Fault::Close, 1);
    }
    let ended: Ended = world.train(&config);
    let trained = ended.trained();
    assert_eq!(trained.artifact.uri.as_str(), "s3://out/intent/uid-1/attempt-1");
    let verify = json!({"schemaVersion": 1, "artifact": trained.artifact, "storage": {"endpoint": server.url()}});
    let whole = world.run("verify", &verify);
    assert_eq!(whole.code, Some(0), "{whole:#?}");
    server.fault("GET /out/", Fault::Status(403), ALWAYS);
    says(
        world.run("verify", &verify).failed(),
        R::StorageForbidden,
        &["refused access"],
    );
}
