//! The encoders against `transformers`: the same random weights, the same token ids, logits equal to 1e-5; and the
//! other way round, an artifact of ours in `AutoModelForSequenceClassification`.
//!
//! Needs `FLYWHEEL_PYTHON`, a Python with `tests/python/requirements.txt`. Without it these tests fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use flywheel_contract::scalar::Precision;
use flywheel_data::EncodedSet;
use flywheel_learn::config::{Activation, EncoderConfig};
use flywheel_learn::evaluate::Evaluation;
use flywheel_learn::network::int8::Calibration;
use flywheel_learn::network::packed::PackedClassifier;
use flywheel_learn::network::{SequenceClassifier, Taking, TokenBatch};
use flywheel_learn::settings::Settings;
use flywheel_learn::train::{Epoch, Next, Observer, State, Step, fit};
use flywheel_learn::weights::WeightFile;
use flywheel_learn::{Classifier, TextClassification, artifact};
use serde::Deserialize;
use tch::{Device, Tensor};

const ARCHITECTURES: [&str; 4] = ["bert", "distilbert", "roberta", "xlm-roberta"];
/// Largest difference of two logits that counts as equal.
const TOLERANCE: f64 = 1e-5;
/// Rows per batch here; Python computes one at a time, so padding is tested as well.
const BATCH: usize = 8;

#[derive(Deserialize)]
struct Cases {
    ids: Vec<Vec<i64>>,
    logits: Vec<Vec<f64>>,
}

fn python(arguments: &[&str]) -> String {
    let program = std::env::var_os("FLYWHEEL_PYTHON").expect(
        "FLYWHEEL_PYTHON is not set: make a venv, pip install -r tests/python/requirements.txt, and set it to its python",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/parity.py");
    let output = Command::new(&program)
        .arg(script)
        .args(arguments)
        // Our libtorch must not be put before the one of the Python package.
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", program.to_string_lossy()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "parity.py {arguments:?}\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Folders with the models of `parity.py make`, made once per run.
fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        print!("{}", python(&["make", dir.path().to_str().unwrap()]));
        dir
    });
    dir.path()
}

fn cases(dir: &Path) -> Cases {
    serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap()
}

fn load(dir: &Path, config: &EncoderConfig) -> SequenceClassifier {
    let file = WeightFile::open(&dir.join("model.safetensors")).unwrap();
    let classes = config.labels().unwrap().unwrap().len();
    SequenceClassifier::load(config, &file, classes, Taking::Exact, 0.1, 0, Device::Cpu)
        .unwrap()
        .0
}

fn logits(network: &SequenceClassifier, ids: &[Vec<i64>]) -> Vec<Vec<f64>> {
    let _no_grad = tch::no_grad_guard();
    let mut all = Vec::new();
    for rows in ids.chunks(BATCH) {
        let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        let batch = TokenBatch::pad(&rows, network.config(), Device::Cpu).unwrap();
        let out = network.logits(&batch, false).unwrap();
        all.extend(Vec::<Vec<f64>>::try_from(&out.to_kind(tch::Kind::Double)).unwrap());
    }
    all
}

/// The same from the network that answers.
fn packed(network: &SequenceClassifier, ids: &[Vec<i64>], precision: Precision) -> Vec<Vec<f64>> {
    let network = PackedClassifier::new(network, precision).unwrap();
    let mut all = Vec::new();
    for rows in ids.chunks(BATCH) {
        let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
        let logits = network.logits(&rows).unwrap();
        all.extend(logits.into_iter().map(|row| row.into_iter().map(f64::from).collect()));
    }
    all
}

fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let rows = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs())
    });
    // Not f64::max, which would pass over a NaN.
    rows.fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in ARCHITECTURES {
        let dir = made().join(name);
        let cases = cases(&dir);
        assert_eq!(cases.ids.len(), 64);
        let network = load(&dir, &EncoderConfig::read(&dir).unwrap());
        let (padded, packed) = (
            logits(&network, &cases.ids),
            packed(&network, &cases.ids, Precision::Float32),
        );
        for (form, got) in [("padded", padded), ("packed", packed)] {
            let worst = difference(&got, &cases.logits);
            println!("{name}, {form}: max difference {worst:.2e}");
            assert!(worst <= TOLERANCE, "{name}, {form}: {worst}");
        }
    }
}

/// In bfloat16 answers are near those in single precision, and in both a row's answer hardly depends on the rows beside it:
/// sums may be added up in another order.
#[test]
fn sixteen_bits_are_near_and_company_does_not_count() {
    for name in ARCHITECTURES {
        let dir = made().join(name);
        let ids = cases(&dir).ids;
        let network = load(&dir, &EncoderConfig::read(&dir).unwrap());
        let exact = packed(&network, &ids, Precision::Float32);
        for (precision, near, alike) in [(Precision::Float32, 0.0, 1e-6), (Precision::BFloat16, 0.1, 0.01)] {
            let got = packed(&network, &ids, precision);
            let answers = PackedClassifier::new(&network, precision).unwrap();
            let alone = ids.iter().flat_map(|row| answers.logits(&[row]).unwrap());
            let alone: Vec<Vec<f64>> = alone.map(|row| row.into_iter().map(f64::from).collect()).collect();
            let by_company = difference(&got, &alone);
            let off = difference(&got, &exact);
            println!("{name}, {precision:?}: off by {off:.2e}, by company {by_company:.2e}");
            assert!(
                off <= near && by_company <= alike,
                "{name}, {precision:?}: {off}, {by_company}"
            );
        }
    }
}

/// In 8 bits answers are near those in single precision, and a row's answer is the same to the bit whatever rows are beside it.
#[test]
fn eight_bits_are_near_and_company_does_not_count_at_all() {
    let file = tempfile::tempdir().unwrap();
    for name in ARCHITECTURES {
        let dir = made().join(name);
        let ids = cases(&dir).ids;
        let config = EncoderConfig::read(&dir).unwrap();
        let network = load(&dir, &config);
        let exact = packed(&network, &ids, Precision::Float32);
        let rows: Vec<&[i64]> = ids.iter().map(Vec::as_slice).collect();
        let calibration = Calibration::of(&network, &rows, &mut || ControlFlow::Continue(())).unwrap();
        let path = file.path().join(name);
        calibration.write(&path).unwrap();
        let answers = PackedClassifier::int8(&network, &Calibration::read(&path, &config).unwrap()).unwrap();
        let numbers = |rows: &[&[i64]]| -> Vec<Vec<f64>> {
            let logits = answers.logits(rows).unwrap().into_iter();
            logits.map(|row| row.into_iter().map(f64::from).collect()).collect()
        };
        let (together, alone) = (
            numbers(&rows),
            rows.iter().flat_map(|row| numbers(&[row])).collect::<Vec<_>>(),
        );
        assert_eq!(together, alone, "{name}");
        let reach = exact.iter().flatten().fold(0.0, |most: f64, x| most.max(x.abs()));
        let off = difference(&together, &exact);
        println!("{name}: off by {off:.2e} where logits reach {reach:.2}");
        assert!(off > 0.0 && off < 0.05 * reach, "{name}: {off} of {reach}");

        // Ranges of other inputs are worth nothing: it is the calibration that keeps the answers.
        let other: Vec<&[i64]> = rows.iter().take(1).map(|row| &row[..1]).collect();
        let poor = Calibration::of(&network, &other, &mut || ControlFlow::Continue(())).unwrap();
        let poor = PackedClassifier::int8(&network, &poor).unwrap().logits(&rows).unwrap();
        let poor: Vec<Vec<f64>> = poor
            .into_iter()
            .map(|row| row.into_iter().map(f64::from).collect())
            .collect();
        let worse = difference(&poor, &exact);
        assert!(worse > 2.0 * off, "{name}: {worse}, {off}");
    }
}

#[test]
fn a_calibration_of_another_network_is_refused() {
    let dir = made().join("bert");
    let config = EncoderConfig::read(&dir).unwrap();
    let network = load(&dir, &config);
    let ids = cases(&dir).ids;
    let rows: Vec<&[i64]> = ids.iter().map(Vec::as_slice).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("int8.safetensors");
    let missing = Calibration::read(&path, &config).map(drop).unwrap_err();
    assert!(missing.to_string().contains("train it again"), "{missing}");
    let stopped = Calibration::of(&network, &rows, &mut || ControlFlow::Break(())).map(drop);
    assert!(matches!(stopped, Err(flywheel_learn::Error::Interrupted)));
    Calibration::of(&network, &rows, &mut || ControlFlow::Continue(()))
        .unwrap()
        .write(&path)
        .unwrap();
    let mut wider = config.clone();
    wider.intermediate += 1;
    let mut deeper = config.clone();
    deeper.layers += 1;
    for (other, word) in [(wider, "its shape is"), (deeper, "not in the file")] {
        let refused = Calibration::read(&path, &other).map(drop).unwrap_err().to_string();
        assert!(
            refused.contains(word) && refused.contains("calibrate the artifact again"),
            "{refused}"
        );
    }
}

#[test]
fn small_mistakes_are_seen() {
    for name in ARCHITECTURES {
        let dir = made().join(name);
        let cases = cases(&dir);
        let right = EncoderConfig::read(&dir).unwrap();
        assert_eq!(right.activation, Activation::Gelu);

        let mut tanh = right.clone();
        tanh.activation = Activation::GeluTanh;
        // The two values that the architectures use.
        let mut epsilon = right.clone();
        epsilon.layer_norm_eps = if right.layer_norm_eps < 1e-8 { 1e-5 } else { 1e-12 };
        let shifted = load(&dir, &right);
        let (_, table) = shifted
            .parameters()
            .iter()
            .find(|(n, _)| n.ends_with("position_embeddings.weight"))
            .unwrap();
        table.shallow_clone().copy_(&table.roll([1], [0]));

        let mistakes = [
            ("tanh GELU", load(&dir, &tanh)),
            ("epsilon", load(&dir, &epsilon)),
            ("position offset", shifted),
        ];
        for (mistake, network) in mistakes {
            let worst = difference(&logits(&network, &cases.ids), &cases.logits);
            println!("{name}: {mistake}: {worst:.2e}");
            assert!(
                worst > TOLERANCE,
                "{name}: {mistake} makes a difference of only {worst}"
            );
        }
    }
}

#[test]
fn a_wrong_padding_id_shifts_the_positions_of_roberta() {
    for name in ["roberta", "xlm-roberta"] {
        let dir = made().join(name);
        let cases = cases(&dir);
        let mut wrong = EncoderConfig::read(&dir).unwrap();
        wrong.pad_token_id -= 1;
        let worst = difference(&logits(&load(&dir, &wrong), &cases.ids), &cases.logits);
        assert!(worst > TOLERANCE, "{name}: {worst}");
    }
}

#[test]
fn transformers_loads_our_artifacts() {
    let labels: Vec<String> = ["cancel", "état", "中文", "d e"].map(str::to_owned).to_vec();
    let out = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    for name in ARCHITECTURES {
        let dir = made().join(name);
        let ids = cases(&dir).ids;
        // Other classes than the folder has, so that the last linear is new.
        let tokens = usize::try_from(EncoderConfig::read(&dir).unwrap().vocab_size).unwrap();
        let made = artifact::pretrained(&dir, labels.len(), tokens, 0.1, 7, Device::Cpu).unwrap();
        assert!(
            made.made.iter().any(|n| n.starts_with("classifier.")),
            "{:?}",
            made.made
        );

        let folder = out.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let written = artifact::write(&folder, &made.network, &labels, &dir).unwrap();
        assert_eq!(written, ["config.json", "model.safetensors", "tokenizer.json"]);
        let ours = Classifier::load(&folder, Device::Cpu, Precision::Float32).unwrap();
        assert_eq!(ours.labels(), labels);

        let logits = logits(&made.network, &ids);
        let want = Tensor::from_slice2(&logits).softmax(-1, tch::Kind::Double);
        let got = Tensor::from_slice2(&ours.predict(&ids[..BATCH]).unwrap()).to_kind(tch::Kind::Double);
        let worst = (want.narrow(0, 0, BATCH as i64) - got).abs().max().double_value(&[]);
        assert!(worst < 1e-6, "{name}: probabilities after loading differ by {worst}");

        let expected = serde_json::json!({"ids": ids, "logits": logits, "labels": labels});
        std::fs::write(folder.join("expected.json"), expected.to_string()).unwrap();
        folders.push(folder.to_str().unwrap().to_owned());
    }
    let arguments: Vec<&str> = std::iter::once("check")
        .chain(folders.iter().map(String::as_str))
        .collect();
    let text = python(&arguments);
    print!("{text}");
    assert_eq!(
        text.lines().filter(|l| l.contains("max difference of 64 rows")).count(),
        4,
        "{text}"
    );
}

/// Keeps the losses.
struct Losses(Vec<f64>);

impl Observer<Evaluation> for Losses {
    fn computes_in(&mut self, _: Precision) {}

    fn micro_batch(&mut self) {}

    fn step(&mut self, step: &Step) -> Next {
        self.0.push(step.loss);
        Next::GoOn
    }

    fn validating(&mut self) -> Next {
        Next::GoOn
    }

    fn epoch(&mut self, _: &Epoch<'_, Evaluation>) -> Next {
        Next::GoOn
    }

    fn state(&mut self, _: State<Evaluation>) {}
}

/// Losses of a training from the weights of a folder, without dropout.
fn losses(dir: &Path, set: &EncodedSet, settings: &Settings) -> Vec<f64> {
    let config = EncoderConfig::read(dir).unwrap();
    let file = WeightFile::open(&dir.join("model.safetensors")).unwrap();
    let (network, _) = SequenceClassifier::load(&config, &file, 3, Taking::Exact, 0.0, 0, Device::Cpu).unwrap();
    let mut losses = Losses(Vec::new());
    fit(&TextClassification::new(network), set, set, settings, None, &mut losses).unwrap();
    losses.0
}

/// Gradients, clipping, decay and schedule: the losses of sixteen steps are those of PyTorch's own optimiser on the
/// models of `transformers`.
#[test]
fn losses_in_training_equal_those_of_transformers() {
    const EPOCHS: u32 = 2;
    let settings = Settings {
        epochs: EPOCHS,
        batch_size: BATCH,
        micro_batch_size: BATCH,
        learning_rate: 1e-3,
        weight_decay: 0.1,
        warmup_ratio: 0.2,
        seed: 3,
        early_stopping: None,
        precision: Precision::Float32,
    };
    let root = made();
    let (mut ours, mut mistaken) = (Vec::new(), Vec::new());
    for name in ARCHITECTURES {
        let dir = root.join(name);
        let ids = cases(&dir).ids;
        let labels: Vec<i64> = (0..ids.len() as i64).map(|i| i % 3).collect();
        let set = EncodedSet { ids, labels };
        let batches: Vec<Vec<usize>> = (1..=u64::from(EPOCHS))
            .flat_map(|e| flywheel_data::batches(&set.lengths(), BATCH, settings.seed, e))
            .collect();
        let job = serde_json::json!({
            "ids": set.ids, "labels": set.labels, "batches": batches, "learningRate": settings.learning_rate,
            "weightDecay": settings.weight_decay, "warmupSteps": 4
        });
        std::fs::write(dir.join("training.json"), job.to_string()).unwrap();

        ours.push(losses(&dir, &set, &settings));
        if name == "bert" {
            mistaken = [
                Settings {
                    weight_decay: 0.0,
                    ..settings.clone()
                },
                Settings {
                    warmup_ratio: 0.3,
                    ..settings.clone()
                },
                Settings {
                    learning_rate: 1.001e-3,
                    ..settings.clone()
                },
            ]
            .map(|mistake| losses(&dir, &set, &mistake))
            .to_vec();
        }
    }
    python(&["train", root.to_str().unwrap()]);
    for (name, ours) in ARCHITECTURES.into_iter().zip(ours) {
        let theirs: Vec<f64> =
            serde_json::from_slice(&std::fs::read(root.join(name).join("losses.json")).unwrap()).unwrap();
        let worst = difference(std::slice::from_ref(&ours), std::slice::from_ref(&theirs));
        println!(
            "{name}: loss {:.3} -> {:.3}, max difference {worst:.2e}",
            ours[0], ours[15]
        );
        assert!(ours.len() == 16 && ours[15] < ours[0], "{ours:?}");
        assert!(worst <= TOLERANCE, "{name}: {ours:?} {theirs:?}");
        for (i, mistaken) in mistaken.iter().enumerate().filter(|_| name == "bert") {
            let worst = difference(std::slice::from_ref(mistaken), std::slice::from_ref(&theirs));
            println!("bert: mistake {i}: {worst:.2e}");
            assert!(worst > TOLERANCE, "mistake {i} makes a difference of only {worst}");
        }
    }
}
