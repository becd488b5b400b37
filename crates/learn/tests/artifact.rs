//! Folders of models: what is read from a pretrained one, what is written, what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use flywheel_contract::profile::Projector;
use flywheel_contract::scalar::Precision;
use flywheel_learn::config::EncoderConfig;
use flywheel_learn::network::{Parameters, SequenceClassifier, TokenBatch};
use flywheel_learn::{Classifier, Error, artifact, weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const TYPES: [&str; 4] = ["bert", "distilbert", "roberta", "xlm-roberta"];

fn config(model_type: &str) -> EncoderConfig {
    let json = if model_type == "distilbert" {
        json!({"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24})
    } else {
        json!({
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "type_vocab_size": 1
        })
    };
    let Value::Object(mut raw) = json else {
        panic!("no object")
    };
    raw.insert("model_type".into(), model_type.into());
    raw.insert("vocab_size".into(), 40.into());
    raw.insert("max_position_embeddings".into(), 20.into());
    EncoderConfig::from_json(raw, Path::new("test")).unwrap()
}

fn labels(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("label-{i}")).collect()
}

/// A pretrained folder with these weights.
fn folder(config: &EncoderConfig, parameters: &Parameters) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    weights::write(&dir.path().join("model.safetensors"), parameters).unwrap();
    fs::write(
        dir.path().join("config.json"),
        config.classifier_json(&labels(3)).to_string(),
    )
    .unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    dir
}

fn renamed(parameters: &Parameters, rename: impl Fn(&str) -> Option<String>) -> Parameters {
    parameters
        .iter()
        .filter_map(|(name, t)| Some((rename(name)?, t.shallow_clone())))
        .collect()
}

fn rows() -> Vec<Vec<i64>> {
    vec![vec![2, 5, 9, 3], vec![2, 30, 3], (2..18).collect()]
}

#[test]
fn written_and_loaded_again_it_answers_the_same_from_every_thread() {
    for model_type in TYPES {
        let config = config(model_type);
        let network = SequenceClassifier::random(&config, 3, 0.1, 4, Device::Cpu).unwrap();
        let pretrained = folder(&config, network.parameters());
        fs::write(pretrained.path().join("vocab.txt"), "[PAD]").unwrap();
        fs::write(pretrained.path().join("pytorch_model.bin"), "not ours to copy").unwrap();
        let out = tempfile::tempdir().unwrap();
        let written = artifact::write(out.path(), &network, &labels(3), pretrained.path()).unwrap();
        assert_eq!(
            written,
            ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
        );
        assert!(
            written
                .iter()
                .all(|name| flywheel_contract::artifact::is_file_name(name))
        );

        let classifier = Classifier::load(out.path(), Device::Cpu, Precision::Float32).unwrap();
        assert_eq!(classifier.labels(), labels(3));
        let rows = rows();
        let slices: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        let batch = TokenBatch::pad(&slices, &config, Device::Cpu).unwrap();
        let logits = network.logits(&batch, false).unwrap();
        let want = Vec::<Vec<f32>>::try_from(logits.softmax(-1, Kind::Float)).unwrap();
        for p in &want {
            assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5 && p.len() == 3, "{p:?}");
        }
        assert_eq!(classifier.predict(&[]).unwrap(), Vec::<Vec<f32>>::new());
        // A row alone and the same row beside others: they must not count.
        for (row, want) in rows.iter().zip(&want) {
            let alone = &classifier.predict(std::slice::from_ref(row)).unwrap()[0];
            assert!(
                alone.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5),
                "{model_type}: {alone:?} {want:?}"
            );
        }
        let workers: Vec<Classifier> = (0..3).map(|_| classifier.worker()).collect();
        std::thread::scope(|scope| {
            for worker in workers {
                let (rows, want) = (&rows, &want);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let got = worker.predict(rows).unwrap();
                        let close = got
                            .iter()
                            .flatten()
                            .zip(want.iter().flatten())
                            .all(|(a, b)| (a - b).abs() < 1e-5);
                        assert!(close, "{got:?} {want:?}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_text_is_projected_by_what_its_logits_are_made_of_and_its_answer_stays_the_same() {
    for model_type in TYPES {
        let config = config(model_type);
        let network = SequenceClassifier::random(&config, 3, 0.0, 4, Device::Cpu).unwrap();
        let pretrained = folder(&config, network.parameters());
        let out = tempfile::tempdir().unwrap();
        artifact::write(out.path(), &network, &labels(3), pretrained.path()).unwrap();
        let rows = rows();
        artifact::calibrate(out.path(), &rows, Device::Cpu, &mut || ControlFlow::Continue(())).unwrap();
        let dense = match model_type {
            "bert" => "bert.pooler.dense",
            "distilbert" => "pre_classifier",
            _ => "classifier.dense",
        };
        let [weight, bias] = ["weight", "bias"].map(|part| &network.parameters()[&format!("{dense}.{part}")]);
        let projector = Projector::new(16);
        for (precision, near) in [
            (Precision::Float32, 1e-6),
            (Precision::BFloat16, 0.05),
            (Precision::Int8, 0.05),
        ] {
            let classifier = Classifier::load(out.path(), Device::Cpu, precision).unwrap();
            let answers = classifier.predict_and_project(&rows).unwrap();
            let probabilities: Vec<_> = answers.iter().map(|answer| answer.probabilities.clone()).collect();
            assert_eq!(
                probabilities,
                classifier.predict(&rows).unwrap(),
                "{model_type} {precision:?}"
            );
            assert_eq!(classifier.worker().predict_and_project(&rows).unwrap(), answers);
            for (answer, state) in answers.iter().zip(classifier.first_states(&rows).unwrap()) {
                let features = Tensor::from_slice(&state).unsqueeze(0).linear(weight, Some(bias));
                let features = if model_type == "distilbert" {
                    features.relu()
                } else {
                    features.tanh()
                };
                let features = Vec::<f32>::try_from(features.squeeze()).unwrap();
                let wanted = projector.project(&features);
                assert!(wanted.iter().any(|place| place.abs() > 1e-3), "{wanted:?}");
                let got = answer.projections.unwrap();
                let close = got.iter().zip(wanted).all(|(got, want)| (got - want).abs() < near);
                assert!(close, "{model_type} {precision:?}: {got:?} {wanted:?}");
            }
        }
    }
}

#[test]
fn bare_encoders_and_old_names_are_read_and_the_head_is_new_but_seeded() {
    for model_type in TYPES {
        let config = config(model_type);
        let prefix = config.architecture.prefix();
        let source = SequenceClassifier::random(&config, 3, 0.0, 4, Device::Cpu).unwrap();
        let bare = renamed(source.parameters(), |name| {
            let name = name.strip_prefix(prefix)?;
            Some(
                name.replace("LayerNorm.weight", "LayerNorm.gamma")
                    .replace("LayerNorm.bias", "LayerNorm.beta"),
            )
        });
        let dir = folder(&config, &bare);
        let load = |seed| artifact::pretrained(dir.path(), 5, 40, 0.0, seed, Device::Cpu).unwrap();
        let (a, b, c) = (load(1), load(1), load(2));
        let head = match model_type {
            // The pooler belongs to the encoder's file.
            "bert" => vec!["classifier.bias", "classifier.weight"],
            "distilbert" => vec![
                "classifier.bias",
                "classifier.weight",
                "pre_classifier.bias",
                "pre_classifier.weight",
            ],
            _ => vec![
                "classifier.dense.bias",
                "classifier.dense.weight",
                "classifier.out_proj.bias",
                "classifier.out_proj.weight",
            ],
        };
        let mut made = a.made.clone();
        made.sort();
        assert_eq!(made, head, "{model_type}");
        for (name, tensor) in a.network.parameters() {
            if let Some(old) = source.parameters().get(name).filter(|_| !head.contains(&name.as_str())) {
                assert_eq!(tensor, old, "{name}");
            }
            assert_eq!(tensor, &b.network.parameters()[name], "one seed, two values of {name}");
        }
        let logits = head.iter().find(|n| n.ends_with("weight")).unwrap();
        assert_ne!(a.network.parameters()[*logits], c.network.parameters()[*logits]);
    }
}

/// Labels are told by their names: one keeps its row wherever it stands, others are new, and nothing else changes.
#[test]
fn what_was_learnt_of_a_label_is_gone_on_from() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for model_type in TYPES {
        let config = config(model_type);
        let source = SequenceClassifier::random(&config, 3, 0.0, 4, Device::Cpu).unwrap();
        let dir = folder(&config, source.parameters());
        let json = config.classifier_json(&named(&["b", "c", "e"])).to_string();
        fs::write(dir.path().join("config.json"), json).unwrap();
        let wanted = named(&["a", "c", "d", "b", "f"]);
        let load = |seed| {
            artifact::continued(dir.path(), &wanted, 40, 0.0, seed, Device::Cpu)
                .unwrap()
                .network
        };
        let (one, two) = (load(1), load(2));
        let layer = match model_type {
            "roberta" | "xlm-roberta" => "classifier.out_proj",
            _ => "classifier",
        };
        for (name, tensor) in one.parameters() {
            let old = &source.parameters()[name];
            if !name.starts_with(&format!("{layer}.")) {
                assert_eq!(tensor, old, "{model_type} {name}");
                continue;
            }
            assert_eq!(tensor.size()[0], 5);
            for (row, from) in [(1, 1), (3, 0)] {
                assert_eq!(tensor.get(row), old.get(from), "{model_type} {name} {row}");
            }
            for row in [0, 2, 4] {
                let same = tensor.get(row) == two.parameters()[name].get(row);
                assert_eq!(
                    same,
                    name.ends_with("bias"),
                    "{model_type} {name} {row}: new, by the seed"
                );
            }
        }
    }
    // The same labels in another order are as many rows, and yet not the same ones.
    let config = config("bert");
    let source = SequenceClassifier::random(&config, 2, 0.0, 4, Device::Cpu).unwrap();
    let dir = folder(&config, source.parameters());
    let json = config.classifier_json(&named(&["a", "b"])).to_string();
    fs::write(dir.path().join("config.json"), json).unwrap();
    let network = artifact::continued(dir.path(), &named(&["b", "a"]), 40, 0.0, 1, Device::Cpu)
        .unwrap()
        .network;
    let (new, old) = (
        &network.parameters()["classifier.weight"],
        &source.parameters()["classifier.weight"],
    );
    assert_eq!((new.get(0), new.get(1)), (old.get(1), old.get(0)));
    // One that lies about its labels.
    let json = config.classifier_json(&named(&["a", "b", "c"])).to_string();
    fs::write(dir.path().join("config.json"), json).unwrap();
    let error = artifact::continued(dir.path(), &named(&["a", "b"]), 40, 0.0, 1, Device::Cpu)
        .err()
        .unwrap();
    assert!(error.to_string().contains("classifier.weight"), "{error}");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let config = config("bert");
    let source = SequenceClassifier::random(&config, 3, 0.0, 4, Device::Cpu).unwrap();
    let less = renamed(source.parameters(), |n| {
        (!n.contains("layer.1.output.dense")).then(|| n.to_owned())
    });
    let error = artifact::pretrained(folder(&config, &less).path(), 3, 40, 0.0, 0, Device::Cpu)
        .err()
        .unwrap();
    let Error::WeightsMissing { names, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        names,
        &[
            "bert.encoder.layer.1.output.dense.weight",
            "bert.encoder.layer.1.output.dense.bias"
        ]
    );

    let mut wide = renamed(source.parameters(), |n| Some(n.to_owned()));
    let name = "bert.embeddings.position_embeddings.weight";
    wide.insert(
        name.into(),
        tch::Tensor::zeros([21, 16], (tch::Kind::Float, Device::Cpu)),
    );
    let error = artifact::pretrained(folder(&config, &wide).path(), 3, 40, 0.0, 0, Device::Cpu)
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains(name) && text.contains("[21, 16]") && text.contains("[20, 16]"),
        "{text}"
    );

    // To answer with, a head of another shape is an error; to train on, it is new.
    let dir = folder(&config, source.parameters());
    fs::write(
        dir.path().join("config.json"),
        config.classifier_json(&labels(4)).to_string(),
    )
    .unwrap();
    let error = Classifier::load(dir.path(), Device::Cpu, Precision::Float32)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("classifier.weight"), "{error}");
    let made = artifact::pretrained(dir.path(), 4, 40, 0.0, 0, Device::Cpu)
        .unwrap()
        .made;
    assert_eq!(made, ["classifier.weight", "classifier.bias"]);
}

#[test]
fn folders_that_cannot_be_used_say_why() {
    let config = config("bert");
    let source = SequenceClassifier::random(&config, 3, 0.0, 4, Device::Cpu).unwrap();
    let load = |dir: &Path, tokens| {
        artifact::pretrained(dir, 3, tokens, 0.0, 0, Device::Cpu)
            .err()
            .map(|e| e.to_string())
    };
    let dir = folder(&config, source.parameters());
    assert_eq!(load(dir.path(), 40), None);
    assert!(
        load(dir.path(), 41)
            .unwrap()
            .contains("41 tokens, vocab_size of config.json is 40")
    );

    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(
        load(dir.path(), 40)
            .unwrap()
            .contains("neither tokenizer.json nor vocab.txt")
    );

    let dir = folder(&config, source.parameters());
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let error = load(dir.path(), 40).unwrap();
    assert!(
        error.contains("classifier.weight") || error.contains("classifier.bias") || error.contains("pooler"),
        "{error}"
    );
    assert!(error.contains("fetch the file again"), "{error}");

    fs::remove_file(&path).unwrap();
    assert!(load(dir.path(), 40).unwrap().contains("model.safetensors"));

    let dir = folder(&config, source.parameters());
    let Value::Object(mut raw) = config.classifier_json(&labels(3)) else {
        panic!("no object")
    };
    raw.remove("id2label");
    fs::write(dir.path().join("config.json"), Value::Object(raw).to_string()).unwrap();
    let error = Classifier::load(dir.path(), Device::Cpu, Precision::Float32)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("id2label is missing"), "{error}");
}

#[test]
fn labels_must_be_as_many_as_classes_and_different() {
    let config = config("bert");
    let network = SequenceClassifier::random(&config, 3, 0.0, 4, Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let refused = |labels: &[String]| {
        artifact::write(dir.path(), &network, labels, dir.path())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&labels(2)).contains("2 labels for a network of 3 classes"));
    assert!(refused(&["a", "b", "a"].map(str::to_owned)).contains("\"a\""));
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is written before the check"
    );
    let empty: BTreeMap<String, tch::Tensor> = BTreeMap::new();
    weights::write(&dir.path().join("empty.safetensors"), &empty).unwrap();
    assert_eq!(
        weights::WeightFile::open(&dir.path().join("empty.safetensors"))
            .unwrap()
            .names()
            .count(),
        0
    );
}
