//! Whole trainings of a tiny BERT, by the program itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use common::{Running, World, get, rows, says};
use flywheel_contract::artifact::{CALIBRATION_FILE, EvaluationSample, MANIFEST_FILE, Manifest};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::profile::{DataProfile, PROJECTIONS};
use flywheel_contract::scalar::{Metric, Precision, metric_value};
use flywheel_contract::termination::Outcome;
use flywheel_contract::trainer::TrainingResult;
use flywheel_data::TextTokenizer;
use flywheel_learn::Classifier;
use flywheel_learn::device::TensorDevice;
use serde_json::{Value, json};

/// What serving pods keep: texts in one file, what clients said of them in another of the next day.
fn feedback(world: &World, texts: &[(&str, &str)]) {
    let (mut kept, mut said) = (String::new(), String::new());
    for (n, (text, label)) in texts.iter().enumerate() {
        let told = json!({"kind": "Prediction", "time": n, "requestId": n.to_string(), "modelVersion": "v1", "text": text,
            "label": "light", "probability": 0.4});
        kept += &format!("{told}\n");
        let told = json!({"kind": "Judgement", "time": 2, "requestId": n.to_string(), "label": label});
        said += &format!("{told}\n");
    }
    world.write("feedback/team/intent/date=2026-11-01/a-000000.jsonl", kept);
    world.write("feedback/team/intent/date=2026-11-02/b-000000.jsonl", said);
}

#[test]
fn what_clients_said_is_learnt_and_a_folder_without_it_is_passed_over() {
    let world = World::new();
    let mut config = world.config();
    config["dataset"]["sources"] = json!([{"uri": world.uri("data.csv")},
        {"uri": world.uri("feedback/team/intent"), "format": "Feedback"}]);
    let without = world.train(&config);
    let labels = |out: &str| {
        world
            .read::<TrainingResult>(&format!("{out}/uid-1/attempt-1.result.json"))
            .labels
    };
    without.trained();
    assert_eq!(labels("out"), ["light", "music", "weather"]);

    let new: Vec<String> = (0..12).map(|n| format!("stop today {}", "on ".repeat(n + 1))).collect();
    let mut texts: Vec<(&str, &str)> = new.iter().map(|text| (text.as_str(), "stop")).collect();
    // One client's word, and a text that the data have already.
    texts.extend([("what is what", "nonsense"), ("turn on the light", "music")]);
    feedback(&world, &texts);
    config["outputUri"] = world.uri("again").into();
    let with = world.train(&config);
    assert_eq!(with.code, Some(0), "{}", with.stderr);
    assert_eq!(labels("again"), ["light", "music", "stop", "weather"]);
    let counts = |out: &str| {
        world
            .read::<TrainingResult>(&format!("{out}/uid-1/attempt-1.result.json"))
            .counts
    };
    assert_eq!(counts("again").rows, counts("out").rows + 12);
    assert_ne!(with.trained().dataset_digest, without.trained().dataset_digest);

    // Another attempt learns what the first one found, whatever became of the folder since.
    let kept = std::fs::read(world.path("again/uid-1/feedback-sources-1.jsonl")).unwrap();
    world.write("later/uid-1/feedback-sources-1.jsonl", kept);
    feedback(&world, &[]);
    config["outputUri"] = world.uri("later").into();
    let later = world.train(&config);
    assert_eq!(later.trained().dataset_digest, with.trained().dataset_digest);
}

/// The newest judgements are what the version is measured on, and are not among what it learns; another attempt holds out the same.
#[test]
fn the_newest_feedback_is_held_out() {
    let world = World::new();
    let texts: Vec<String> = (0..260)
        .map(|n| format!("stop today {}", "on ".repeat(n % 20 + 1) + &"off ".repeat(n / 20)))
        .collect();
    // From the two hundred and eighth on clients say something else: it must not be learnt.
    let texts: Vec<(&str, &str)> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (text.as_str(), if n < 208 { "stop" } else { "music" }))
        .collect();
    feedback(&world, &texts);
    let mut config = world.config();
    config["hyperparameters"]["epochs"] = 4.into();
    config["hyperparameters"]["learningRate"] = "1e-2".into();
    config["hyperparameters"]["maxLength"] = 48.into();
    config["dataset"]["sources"] = json!([{"uri": world.uri("data.csv")},
        {"uri": world.uri("feedback/team/intent"), "format": "Feedback"}]);
    let ended = world.train(&config);
    let metrics = &ended.trained().metrics;
    let value = |metrics: &[Metric], name: &str| metric_value(metrics, name);
    let result: TrainingResult = world.read("out/uid-1/attempt-1.result.json");
    let c = &result.counts;
    assert_eq!((c.rows, c.newest, c.newest_labels, c.newest_left_out), (320, 52, 1, 0));
    assert_eq!(value(metrics, "newest/rows"), Some(52.0));
    assert!(value(metrics, "test/accuracy").unwrap() > 0.7, "{metrics:?}");
    assert!(
        value(metrics, "newest/accuracy").unwrap() < 0.2,
        "it never saw that these are music: {metrics:?}"
    );

    // What was held out stays so while the folder grows.
    let kept = std::fs::read(world.path("out/uid-1/feedback-sources-1.jsonl")).unwrap();
    world.write("later/uid-1/feedback-sources-1.jsonl", kept);
    feedback(&world, &[("play music", "light"); 9]);
    config["outputUri"] = world.uri("later").into();
    config["incumbent"] = serde_json::to_value(&ended.trained().artifact).unwrap();
    let later = world.train(&config);
    assert_eq!(later.trained().dataset_digest, ended.trained().dataset_digest);
    assert!(value(&later.trained().metrics, "newest/accuracyDelta").is_some());

    // Another share is another data set, and so is none.
    let mut digests = vec![ended.trained().dataset_digest.clone()];
    feedback(&world, &texts);
    for (percent, rows) in [(0, None), (10, Some(0.0)), (30, Some(78.0))] {
        config["dataset"]["sources"][1]["holdOutPercent"] = percent.into();
        config["outputUri"] = world.uri(&format!("share-{percent}")).into();
        config["hyperparameters"]["epochs"] = 1.into();
        let ended = world.train(&config);
        assert_eq!(value(&ended.trained().metrics, "newest/rows"), rows, "{percent}");
        digests.push(ended.trained().dataset_digest.clone());
    }
    // A tenth would be 26 rows, too few to hold out.
    assert_eq!(digests[1], digests[2]);
    digests.sort_by(|a, b| a.0.cmp(&b.0));
    digests.dedup();
    assert_eq!(digests.len(), 3);
}

/// Whether an artifact has each of these texts right, by its own tokenizer and labels.
fn right(world: &World, artifact: &str, rows: &[(&str, &str)]) -> Vec<bool> {
    let folder = world.path(artifact);
    let classifier = Classifier::load(&folder, TensorDevice::Cpu, Precision::Float32).unwrap();
    let vocabulary = usize::try_from(classifier.config().vocab_size).unwrap();
    let tokenizer = TextTokenizer::load(&folder, 16, vocabulary).unwrap();
    let answer = |text: &str| {
        let ids = tokenizer.encode(text).unwrap().ids;
        let probabilities = classifier.predict(&[ids]).unwrap().remove(0);
        let (best, _) = probabilities
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .unwrap();
        classifier.labels()[best].clone()
    };
    rows.iter().map(|(text, label)| answer(text) == *label).collect()
}

/// The incumbent knows one label less and was told nonsense of another: what the metrics say of both is what is counted by hand.
#[test]
fn a_version_is_measured_beside_the_incumbent_on_the_same_rows() {
    let world = World::new();
    world.write("old.csv", rows(60).replace("weather\n", "music\n"));
    let golden = [
        ("turn on the light", "light"),
        ("turn off the light today", "light"),
        ("play music today", "music"),
        ("play music on", "music"),
        ("what is the weather", "weather"),
        ("what is the weather today", "weather"),
        // It is wrong of both.
        ("turn on the light on", "music"),
    ];
    let lines: Vec<String> = golden.iter().map(|(text, label)| format!("{text},{label}\n")).collect();
    world.write("golden.csv", format!("text,label\n{}", lines.concat()));
    let mut config = world.config();
    config["hyperparameters"]["epochs"] = 16.into();
    config["hyperparameters"]["learningRate"] = "1e-2".into();
    config["dataset"]["sources"] = json!([{"uri": world.uri("old.csv")}]);
    config["outputUri"] = world.uri("old").into();
    let old = world.train(&config);
    let artifact = old.trained().artifact.clone();
    assert!(metric_value(&old.trained().metrics, "test/accuracyDelta").is_none());

    config["dataset"]["sources"] = json!([{"uri": world.uri("data.csv")}]);
    config["dataset"]["golden"] = json!([{"uri": world.uri("golden.csv")}]);
    config["outputUri"] = world.uri("new").into();
    config["incumbent"] = serde_json::to_value(&artifact).unwrap();
    let new = world.train(&config);
    let metrics = &new.trained().metrics;
    let value = |name: &str| metric_value(metrics, name).unwrap_or_else(|| panic!("no {name}: {metrics:?}"));
    let pairs: Vec<(bool, bool)> = right(&world, "new/uid-1/attempt-1", &golden)
        .into_iter()
        .zip(right(&world, "old/uid-1/attempt-1", &golden))
        .collect();
    let (won, lost) = (
        pairs.iter().filter(|pair| **pair == (true, false)).count() as f64,
        pairs.iter().filter(|pair| **pair == (false, true)).count() as f64,
    );
    assert!(won >= 2.0, "weather is what the incumbent cannot say: {pairs:?}");
    let delta = (won - lost) / 7.0;
    assert!(
        (value("golden/accuracyDelta") - delta).abs() < 1e-6,
        "{metrics:?} {pairs:?}"
    );
    let error = ((won + lost - (won - lost).powi(2) / 7.0) / 49.0).sqrt();
    assert!(
        (value("golden/accuracyDeltaError") - error).abs() < 1e-6,
        "{metrics:?} {pairs:?}"
    );
    assert!(value("test/accuracyDelta") > 0.1, "a third of the test set is weather");
    let manifest: Manifest = world.read("new/uid-1/attempt-1/manifest.json");
    assert_eq!(&manifest.metrics, metrics);

    // Gone on from, without a step that changes much: it knows what it knew, under the same names.
    let mut next = config.clone();
    next["model"] = json!({"fromVersion": "intent-v1"});
    next["base"] = serde_json::to_value(&new.trained().artifact).unwrap();
    next["incumbent"] = next["base"].clone();
    next["hyperparameters"]["epochs"] = 1.into();
    next["hyperparameters"]["learningRate"] = "1e-9".into();
    next["outputUri"] = world.uri("next").into();
    world.write(
        "more.csv",
        rows(60) + "stop,aaa\nstop it,aaa\nstop today,aaa\nstop off,aaa\n",
    );
    next["dataset"]["sources"] = json!([{"uri": world.uri("more.csv")}]);
    let went_on = world.train(&next);
    let result: TrainingResult = world.read("next/uid-1/attempt-1.result.json");
    assert_eq!(result.labels, ["aaa", "light", "music", "weather"]);
    let delta = metric_value(&went_on.trained().metrics, "golden/accuracyDelta").unwrap();
    assert!(
        delta > -0.3,
        "from the pretrained weights it would know nothing: {delta}"
    );
    next["base"]["uri"] = world.uri("nowhere").into();
    next["outputUri"] = world.uri("no-base").into();
    let ended = world.train(&next);
    assert_eq!(ended.failed().reason, FailureReason::ArtifactNotFound);
    assert!(
        ended.failed().message.contains("model.fromVersion"),
        "{}",
        ended.failed()
    );

    // Itself beside itself.
    config["incumbent"] = serde_json::to_value(&new.trained().artifact).unwrap();
    config["outputUri"] = world.uri("same").into();
    let same = world.train(&config);
    for name in ["test/accuracyDelta", "test/accuracyDeltaError", "golden/accuracyDelta"] {
        assert_eq!(metric_value(&same.trained().metrics, name), Some(0.0), "{name}");
    }

    // What cannot be read is told before anything is trained.
    config["outputUri"] = world.uri("none").into();
    let mut damaged = artifact.clone();
    damaged.digest = flywheel_contract::scalar::Digest::sha256(&"0".repeat(64));
    let mut gone = artifact;
    gone.uri = world.uri("nowhere").as_str().into();
    for (incumbent, reason) in [
        (damaged, FailureReason::DigestMismatch),
        (gone, FailureReason::ArtifactNotFound),
    ] {
        config["incumbent"] = serde_json::to_value(&incumbent).unwrap();
        let ended = world.train(&config);
        let failure = ended.failed();
        assert_eq!(failure.reason, reason, "{failure}");
        assert!(
            failure
                .message
                .contains("apply a new one with another incumbent, or without"),
            "{failure}"
        );
        assert_eq!(ended.position.map_or(0, |position| position.step), 0);
    }
}

#[test]
fn a_training_leaves_an_artifact_a_result_and_a_message() {
    let world = World::new();
    world.write(
        "golden.csv",
        "text,label\nplay music today,music\nturn off the light,light\n",
    );
    let mut config = world.config();
    config["dataset"]["golden"] = json!([{"uri": world.uri("golden.csv")}]);
    config["hyperparameters"]["epochs"] = 16.into();
    config["hyperparameters"]["learningRate"] = "1e-2".into();
    let ended = world.train(&config);
    let trained = ended.trained();

    assert_eq!(
        world.files("out"),
        [
            "uid-1/HEAD/00000000000000000001",
            "uid-1/HEAD/00000000000000000002",
            "uid-1/attempt-1.result.json",
            "uid-1/attempt-1/config.json",
            "uid-1/attempt-1/data_profile.json",
            "uid-1/attempt-1/evaluation_sample.json",
            "uid-1/attempt-1/int8.safetensors",
            "uid-1/attempt-1/manifest.json",
            "uid-1/attempt-1/model.safetensors",
            "uid-1/attempt-1/tokenizer.json",
            "uid-1/attempt-1/tokenizer_config.json",
            "uid-1/attempt-1/vocab.txt",
        ]
    );
    let result: TrainingResult = world.read("out/uid-1/attempt-1.result.json");
    assert_eq!(result.artifact, trained.artifact);
    assert_eq!(result.metrics, trained.metrics);
    assert_eq!(result.labels, ["light", "music", "weather"]);
    let c = &result.counts;
    assert_eq!((c.rows, c.golden, c.labels), (62, 2, 3));
    assert_eq!(
        c.rows,
        c.empty + c.duplicates + c.golden_overlap + c.train + c.validation + c.test + c.golden
    );
    assert_eq!(result.epochs.len(), 16);
    assert_eq!(result.steps, 16 * c.train.div_ceil(8));
    assert_eq!(result.confusion.iter().flatten().sum::<u64>(), c.test);
    for set in ["validation", "test", "golden"] {
        for measure in ["accuracy", "macroF1", "weightedF1", "loss"] {
            assert!(
                metric_value(&result.metrics, &format!("{set}/{measure}")).is_some(),
                "{set}/{measure}"
            );
        }
    }
    let accuracy = metric_value(&result.metrics, "test/accuracy").unwrap();
    assert!(
        accuracy > 0.9,
        "words tell these labels apart, yet accuracy is {accuracy}"
    );

    let manifest: Manifest = world.read("out/uid-1/attempt-1/manifest.json");
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!((manifest.architecture.as_str(), manifest.max_length), ("bert", 16));
    let sample: EvaluationSample = world.read("out/uid-1/attempt-1/evaluation_sample.json");
    assert_eq!(sample.items.len() as u64, c.test);
    for item in &sample.items {
        assert!((item.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let profile: DataProfile = world.read("out/uid-1/attempt-1/data_profile.json");
    assert_eq!((profile.texts, profile.check(3)), (c.test, Ok(())));
    assert_eq!(profile.projections.len(), PROJECTIONS);
    let lists = profile.projections.iter().map(|projection| &projection.counts);
    for counts in lists.chain([&profile.length.counts, &profile.confidence.counts, &profile.classes]) {
        assert_eq!(counts.iter().sum::<u64>(), c.test, "{profile:?}");
    }
    // Parted evenly, though it has fewer texts than bins, and differently for each.
    assert!(
        profile
            .projections
            .iter()
            .all(|p| p.counts.iter().all(|n| *n <= 1 + c.test / 4)),
        "{profile:?}"
    );
    assert_ne!(profile.projections[0].edges, profile.projections[1].edges);
    assert!(
        world.files(".").iter().all(|f| !f.contains("flywheel-")),
        "the scratch folder is gone"
    );
    assert!(
        !ended.stderr.contains("turn on the light"),
        "no text of the data set is logged"
    );

    // One that came without the ranges for 8 bits is readied: the same files otherwise, and a manifest that lists the new one.
    let folder = world.path("imported");
    std::fs::create_dir(&folder).unwrap();
    let mut old = manifest.clone();
    old.files.retain(|file| file.name != CALIBRATION_FILE);
    assert_eq!(old.files.len() + 1, manifest.files.len());
    for file in &old.files {
        std::fs::copy(
            world.path("out/uid-1/attempt-1").join(&file.name),
            folder.join(&file.name),
        )
        .unwrap();
    }
    let path = folder.join(MANIFEST_FILE);
    std::fs::write(&path, serde_json::to_vec_pretty(&old).unwrap()).unwrap();
    let load = |precision| Classifier::load(&folder, TensorDevice::Cpu, precision);
    assert!(load(Precision::Int8).is_err());
    let texts = world.path("data.csv");
    let arguments = [
        "calibrate",
        "--artifact",
        folder.to_str().unwrap(),
        "--texts",
        texts.to_str().unwrap(),
    ];
    let output = world.command(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: Manifest = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let names = |manifest: &Manifest| manifest.files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&listed), names(&manifest));
    assert!(String::from_utf8_lossy(&output.stdout).contains("digest                   sha256:"));
    let row = vec![vec![1, 2, 3]];
    let (exact, near) = (load(Precision::Float32).unwrap(), load(Precision::Int8).unwrap());
    let pairs = exact
        .predict(&row)
        .unwrap()
        .concat()
        .into_iter()
        .zip(near.predict(&row).unwrap().concat());
    for (exact, near) in pairs {
        assert!((exact - near).abs() < 0.1, "{exact}, {near}");
    }

    // A second attempt ends with the result of the first, without data or model.
    std::fs::remove_file(world.path("data.csv")).unwrap();
    std::fs::remove_dir_all(world.path("bert")).unwrap();
    config["job"]["attempt"] = 2.into();
    let again = world.train(&config);
    assert_eq!(again.trained(), trained);
    assert!(
        again.stderr.contains("an earlier attempt has finished"),
        "{}",
        again.stderr
    );
    assert!(!world.path("out/uid-1/attempt-2.result.json").exists());
    assert_eq!(again.position.map(|p| p.head_attempt), Some(2));

    // A result that is not the one that HEAD names is not believed.
    let path = world.path("out/uid-1/attempt-1.result.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"bestEpoch\":", "\"bestEpoch\": ")).unwrap();
    config["job"]["attempt"] = 3.into();
    says(
        world.train(&config).failed(),
        FailureReason::OutputConflict,
        &["attempt-1.result.json", "is not the result that HEAD names"],
    );

    // Another job of the same output writes beside it, and has its own files to miss.
    config["job"]["uid"] = "uid-2".into();
    says(
        world.train(&config).failed(),
        FailureReason::DatasetNotFound,
        &["data.csv does not exist", "check the URI"],
    );
}

#[test]
fn the_same_job_gives_the_same_metrics_and_texts_can_be_kept_out() {
    let world = World::new();
    let mut config = world.config();
    config["dataset"]["evaluationSample"] = false.into();
    let one = world.train(&config).trained().clone();
    config["job"]["uid"] = "uid-2".into();
    let two = world.train(&config).trained().clone();
    assert_eq!(one.metrics, two.metrics);
    assert_eq!(one.dataset_digest, two.dataset_digest);
    assert!(!world.path("out/uid-1/attempt-1/evaluation_sample.json").exists());
}

#[test]
fn verify_tells_a_whole_artifact_from_one_with_a_flipped_bit() {
    let world = World::new();
    let trained = world.train(&world.config()).trained().clone();
    let config = json!({"schemaVersion": 1, "artifact": trained.artifact, "storage": {}});
    let ended = world.run("verify", &config);
    let Some(Outcome::Verified(verified)) = &ended.outcome else {
        panic!("{ended:#?}")
    };
    assert_eq!((ended.code, verified.files), (Some(0), 8));

    let weights = world.path("out/uid-1/attempt-1/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    says(
        world.run("verify", &config).failed(),
        FailureReason::DigestMismatch,
        &["model.safetensors", "its digest is"],
    );

    let mut other = config.clone();
    other["artifact"]["uri"] = world.uri("nowhere").into();
    says(
        world.run("verify", &other).failed(),
        FailureReason::ArtifactNotFound,
        &["manifest.json does not exist"],
    );
    other = config;
    other["artifact"]["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    says(
        world.run("verify", &other).failed(),
        FailureReason::DigestMismatch,
        &["manifest.json"],
    );
}

#[test]
fn a_manifest_is_trained_without_kubernetes() {
    let world = World::new();
    world.write(
        "job.yaml",
        format!(
            "apiVersion: flywheel.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: intent, uid: u-7}}\nspec:\n  task: TextClassification\n  \
             model: {{pretrained: {{uri: {}}}}}\n  dataset: {{sources: [{{uri: {}}}]}}\n  \
             hyperparameters: {{epochs: 1, maxLength: 16, learningRate: \"1e-3\"}}\n  output: {{model: intent, uri: s3://nowhere/x}}\n",
            world.uri("bert"),
            world.uri("data.csv")
        ),
    );
    let file = world.path("job.yaml").display().to_string();
    let output = world.path("made").display().to_string();
    let ended = world.ended(
        world
            .command(&["run", "-f", &file, "--output", &output])
            .output()
            .unwrap(),
    );
    let trained = ended.trained();
    assert!(world.path("made/u-7/attempt-1/manifest.json").exists());
    for word in [
        "test/accuracy",
        trained.artifact.uri.as_str(),
        trained.artifact.digest.hex(),
    ] {
        assert!(ended.stdout.contains(word), "{}", ended.stdout);
    }
    let wrong = world.ended(world.command(&["run", "-f", "/no/such.yaml"]).output().unwrap());
    says(
        wrong.failed(),
        FailureReason::ConfigInvalid,
        &["/no/such.yaml cannot be read"],
    );
    assert_eq!(
        world.command(&["fly"]).output().unwrap().status.code(),
        Some(2),
        "a wrong command line"
    );
}

/// A file for `run`, with these lines more in its spec and these in its output.
fn job_file(world: &World, spec: &str, output: &str) -> String {
    world.write(
        "job.yaml",
        format!(
            "apiVersion: flywheel.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: intent, uid: u-7}}\nspec:\n  task: TextClassification\n  \
             model: {{pretrained: {{uri: {}}}}}\n  dataset: {{sources: [{{uri: {}}}]}}\n{spec}  output: {{model: intent, uri: {}{output}}}\n",
            world.uri("bert"),
            world.uri("data.csv"),
            world.uri("made")
        ),
    );
    world.path("job.yaml").display().to_string()
}

/// Promotion is the cluster's matter: a gate that does not hold is told and is no failure.
#[test]
fn a_run_judges_the_gates_and_says_what_it_does_not_heed() {
    let world = World::new();
    let file = job_file(
        &world,
        "  hyperparameters: {epochs: 1, maxLength: 16}\n  trainer: {numNodes: 2, accelerator: {count: 3}}\n",
        ", gates: [{metric: test/accuracy, min: \"0\"}, {metric: validation/macroF1, min: \"1.5\"}]",
    );
    let ended = world.ended(world.command(&["run", "-f", &file]).output().unwrap());
    ended.trained();
    let gate = |metric: &str| {
        let line = ended
            .stdout
            .lines()
            .find(|l| l.starts_with("gate") && l.contains(metric));
        line.unwrap_or_else(|| panic!("{}", ended.stdout)).to_owned()
    };
    let passed = gate("test/accuracy");
    assert!(passed.contains("passes") && passed.contains("at least 0"), "{passed}");
    let failed = gate("validation/macroF1");
    assert!(failed.contains("fails") && failed.contains("below 1.5"), "{failed}");
    for word in [
        "spec.trainer.numNodes is 2",
        "spec.trainer.accelerator.count is 3",
        "one process",
    ] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

#[test]
fn a_run_whose_uid_is_done_says_that_nothing_was_trained() {
    let world = World::new();
    let run = |epochs: u32| {
        let spec = format!("  hyperparameters: {{epochs: {epochs}, maxLength: 16}}\n");
        let file = job_file(&world, &spec, "");
        world.ended(
            world
                .command(&["run", "-f", &file])
                .env("RUST_LOG", "warn")
                .output()
                .unwrap(),
        )
    };
    let first = run(1);
    assert!(!first.stderr.contains("nothing was trained"), "{}", first.stderr);
    let again = run(2);
    assert_eq!(again.trained(), first.trained());
    for word in ["u-7", "nothing was trained", "metadata.uid"] {
        assert!(again.stderr.contains(word), "{}", again.stderr);
    }
}

/// What it saved lies under a uid that no other run has, so nothing else is promised.
#[test]
fn a_run_without_a_uid_that_is_stopped_says_how_to_make_one_that_goes_on() {
    let world = World::new();
    world.write("data.csv", rows(3000));
    world.write(
        "job.yaml",
        format!(
            "apiVersion: flywheel.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: intent}}\nspec:\n  task: TextClassification\n  \
             model: {{pretrained: {{uri: {}}}}}\n  dataset: {{sources: [{{uri: {}}}]}}\n  \
             hyperparameters: {{epochs: 1000, maxLength: 16}}\n  output: {{model: intent, uri: {}}}\n",
            world.uri("bert"),
            world.uri("data.csv"),
            world.uri("out")
        ),
    );
    let file = world.path("job.yaml").display().to_string();
    let running = Running::start(world.command(&["run", "-f", &file, "--listen", "127.0.0.1:0"]));
    let address = running.address();
    running.progress_until(&address, |p| p["step"].as_u64() >= Some(3));
    running.signal("INT");
    let ended = world.left(running);
    says(
        ended.failed(),
        FailureReason::Interrupted,
        &["SIGINT", "begins anew", "metadata.uid"],
    );
    assert!(!ended.stderr.contains("next attempt"), "{}", ended.stderr);
}

/// A training long enough to be looked at.
fn long(world: &World) -> Value {
    world.write("data.csv", rows(3000));
    let mut config = world.config();
    config["hyperparameters"]["epochs"] = 1000.into();
    config
}

#[test]
fn progress_and_metrics_are_served() {
    let world = World::new();
    let mut config = long(&world);
    config["hyperparameters"]["batchSize"] = 32.into();
    config["hyperparameters"]["microBatchSize"] = 4.into();
    let running = world.start(&config);
    let address = running.address();
    running.wait_for("an epoch", |line| (line["message"] == "epoch").then_some(()));

    let progress: Value = serde_json::from_str(&get(&address, "/progress")).unwrap();
    assert_eq!(
        (progress["phase"].as_str(), progress["attempt"].as_u64()),
        (Some("Training"), Some(1))
    );
    assert!(
        progress["step"].as_u64().unwrap() > 0 && progress["step"].as_u64() < progress["totalSteps"].as_u64(),
        "{progress}"
    );
    assert!(
        progress["loss"].is_number() && progress["validationAccuracy"].is_number(),
        "{progress}"
    );
    assert!(progress["heartbeatSeconds"].as_f64() < Some(10.0), "{progress}");
    // A step of 32 has eight passes.
    let pass = progress["medianPassSeconds"].as_f64().unwrap();
    let step = 32.0 / progress["examplesPerSecond"].as_f64().unwrap();
    assert!(pass > 0.0 && pass < step / 3.0, "{progress}");
    let chosen = progress["precision"].as_str().unwrap();
    assert!(["Float32", "BFloat16"].contains(&chosen), "{chosen}");
    let metrics = get(&address, "/metrics");
    for name in [
        "flywheel_trainer_steps_total ",
        "flywheel_trainer_examples_total ",
        "flywheel_trainer_loss_nats{} ",
        "flywheel_trainer_validation_accuracy_ratio{} ",
        "flywheel_trainer_grad_norm{} ",
        "flywheel_trainer_phase_seconds{phase=\"Training\"} ",
        "# EOF",
    ] {
        assert!(metrics.contains(name), "{metrics}");
    }
}

/// Threads that wait for one another soon sleep, or a shared machine would do little else; an image says so, and the
/// program itself where none does.
#[test]
fn threads_that_wait_soon_sleep() {
    let world = World::new();
    let mut command = world.command(&["train", "--listen", "127.0.0.1:0"]);
    command
        .env("FLYWHEEL_CONFIG", long(&world).to_string())
        .env_remove("GOMP_SPINCOUNT");
    let running = Running::start(command);
    running.address();
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", running.child.id())).unwrap();
    assert!(
        environment.split('\0').any(|v| v == "GOMP_SPINCOUNT=300"),
        "{environment}"
    );
}
