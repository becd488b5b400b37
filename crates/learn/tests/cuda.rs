//! The same on a GPU: answers and losses are those of the processor, 16 bits learn, a state is gone on from, memory that
//! runs out is told as such, NCCL adds up. `make test-cuda` runs them; without a GPU they fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use common::{CLASSES, Event, Seen, network_on, separable, settings, turn};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::{Device as Wanted, Precision};
use flywheel_data::EncodedSet;
use flywheel_learn::config::EncoderConfig;
use flywheel_learn::network::SequenceClassifier;
use flywheel_learn::network::packed::PackedClassifier;
use flywheel_learn::settings::Settings;
use flywheel_learn::train::{Next, Step, fit, fit_among};
use flywheel_learn::{Collective, Error, Task, TextClassification, device, precision};
use tch::Device;

fn gpu() -> Device {
    device::check_library().unwrap();
    device::resolve(Wanted::Cuda, 0).unwrap()
}

/// Steps and weights of a training on a device.
fn train(on: Device, settings: &Settings, dropout: f64, recomputes: bool) -> (Vec<Step>, Vec<f64>) {
    let task = TextClassification::new(network_on(on, 2, dropout).recomputing(recomputes));
    let mut seen = Seen::all();
    let outcome = fit(&task, &separable(90, 0), &separable(30, 0), settings, None, &mut seen).unwrap();
    assert!(outcome.validation.accuracy > 0.95, "{:?}", outcome.validation);
    (seen.steps, weights(&task))
}

fn weights(task: &TextClassification) -> Vec<f64> {
    let numbers = |t: &tch::Tensor| {
        Vec::<f64>::try_from(
            &t.detach()
                .to_device(Device::Cpu)
                .flatten(0, -1)
                .to_kind(tch::Kind::Double),
        )
    };
    task.parameters().values().flat_map(|t| numbers(t).unwrap()).collect()
}

/// The largest difference.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn apart_in_loss(a: &[Step], b: &[Step]) -> f64 {
    let relative = a
        .iter()
        .zip(b)
        .take(20)
        .map(|(a, b)| ((a.loss - b.loss) / b.loss).abs());
    relative.fold(0.0, f64::max)
}

#[test]
#[ignore = "needs a GPU"]
fn answers_are_those_of_the_processor() {
    let _turn = turn();
    let rows = separable(50, 0).ids;
    let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
    let answers = |on| -> Vec<f64> {
        let network = PackedClassifier::new(&network_on(on, 4, 0.0), Precision::Float32).unwrap();
        let answers = network.predict(&rows).unwrap();
        answers.into_iter().flatten().map(f64::from).collect()
    };
    let apart = apart(&answers(gpu()), &answers(Device::Cpu));
    println!("answers differ by {apart:e}");
    assert!(apart < 1e-5);
}

#[test]
#[ignore = "needs a GPU"]
fn losses_are_those_of_the_processor() {
    let _turn = turn();
    for micro_batch_size in [8, 3] {
        let settings = Settings {
            micro_batch_size,
            ..settings()
        };
        let apart = apart_in_loss(
            &train(gpu(), &settings, 0.0, false).0,
            &train(Device::Cpu, &settings, 0.0, false).0,
        );
        println!("losses of 20 steps in passes of {micro_batch_size} differ by {apart:e}");
        assert!(apart < 1e-4);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn formats_of_16_bits_learn_as_well() {
    let _turn = turn();
    let on = gpu();
    let plain = train(on, &settings(), 0.0, false).0;
    let auto = precision::choose(Precision::Auto, on).unwrap();
    println!("Auto is {auto:?}");
    assert!(matches!(auto, Precision::BFloat16 | Precision::Float16));
    for precision in [Precision::BFloat16, Precision::Float16] {
        let settings = Settings {
            precision,
            ..settings()
        };
        let steps = train(on, &settings, 0.0, false).0;
        let left_out = steps.iter().filter(|s| s.grad_norm.is_infinite()).count();
        let apart = apart_in_loss(&steps, &plain);
        println!(
            "{precision:?}: losses differ by {apart:e}, {left_out} of {} steps left out",
            steps.len()
        );
        assert!(apart > 0.0 && apart < 0.05);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn layers_computed_again_in_backward_give_the_same_weights() {
    let _turn = turn();
    for precision in [Precision::Float32, Precision::BFloat16, Precision::Float16] {
        let settings = Settings {
            precision,
            ..settings()
        };
        let kept = train(gpu(), &settings, 0.1, false).1;
        let (again, anew) = (
            train(gpu(), &settings, 0.1, false).1,
            train(gpu(), &settings, 0.1, true).1,
        );
        let apart = apart(&kept, &anew);
        println!(
            "{precision:?}: {apart:e} apart; two runs alike: {:e}",
            self::apart(&kept, &again)
        );
        assert!(apart < 1e-3, "dropout is not drawn again");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_state_is_gone_on_from() {
    let _turn = turn();
    for precision in [Precision::Float32, Precision::Float16] {
        let settings = Settings {
            precision,
            ..settings()
        };
        let (train, validation) = (separable(90, 0), separable(30, 0));
        let new = || TextClassification::new(network_on(gpu(), 2, 0.1));
        let whole = new();
        fit(&whole, &train, &validation, &settings, None, &mut Seen::all()).unwrap();
        let mut seen = Seen::with(|event| match event {
            Event::Step(25) => Next::SaveAndStop,
            _ => Next::GoOn,
        });
        let error = fit(&new(), &train, &validation, &settings, None, &mut seen).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        let second = new();
        let from = seen.states.pop();
        fit(&second, &train, &validation, &settings, from, &mut Seen::all()).unwrap();
        let apart = apart(&weights(&whole), &weights(&second));
        println!("{precision:?}: weights of a resumed training differ by {apart:e}");
        assert!(apart < 1e-3);
    }
}

/// A group of one, since a GPU is one process's.
#[test]
#[ignore = "needs a GPU, and libflywheel_nccl.so"]
fn nccl_adds_up() {
    let _turn = turn();
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let group = Collective::host(1, host, gpu(), |_| ()).unwrap();
    let task = TextClassification::new(network_on(gpu(), 2, 0.0));
    let mut seen = Seen::all();
    let sets = (separable(90, 0), separable(30, 0));
    fit_among(&task, &sets.0, &sets.1, &settings(), None, Some(&group), &mut seen).unwrap();
    let apart = apart_in_loss(&seen.steps, &train(gpu(), &settings(), 0.0, false).0);
    println!("losses through NCCL differ by {apart:e}");
    assert!(apart < 1e-6);
}

/// A batch that no GPU holds at once, and that any holds in passes.
#[test]
#[ignore = "needs a GPU"]
fn memory_that_runs_out_is_told_and_micro_batches_help() {
    let _turn = turn();
    let serde_json::Value::Object(raw) = serde_json::json!({
        "model_type": "bert", "vocab_size": 60, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2
    }) else {
        panic!("no object")
    };
    let config = EncoderConfig::from_json(raw, Path::new("long")).unwrap();
    let rows = |count: usize| EncodedSet {
        ids: vec![vec![7; 512]; count],
        labels: (0..count as i64).map(|i| i % CLASSES as i64).collect(),
    };
    let run = |micro_batch_size, recomputes| {
        let network = SequenceClassifier::random(&config, CLASSES, 0.1, 1, gpu()).unwrap();
        let settings = Settings {
            epochs: 1,
            batch_size: 4096,
            micro_batch_size,
            precision: Precision::BFloat16,
            ..settings()
        };
        let task = TextClassification::new(network.recomputing(recomputes));
        fit(&task, &rows(4096), &rows(3), &settings, None, &mut Seen::all())
    };
    let error = run(4096, false).unwrap_err();
    println!("{error}");
    assert_eq!(error.reason(), FailureReason::OutOfMemory);
    assert!(error.to_string().contains("microBatchSize"), "{error}");
    // What was taken is free again.
    assert_eq!(run(64, false).unwrap().steps, 1);
    assert_eq!(run(256, true).unwrap().steps, 1);
}
