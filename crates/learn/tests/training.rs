//! The loop on a tiny random BERT: it learns, it repeats itself bit for bit, it keeps the best weights, it stops when
//! told to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ops::ControlFlow;

use common::{Event, Seen, network, separable, settings, tiny, turn};
use flywheel_contract::hyperparameters::{EarlyStopping, StoppingMetric};
use flywheel_contract::scalar::Precision;
use flywheel_data::EncodedSet;
use flywheel_learn::settings::Settings;
use flywheel_learn::task::Loader;
use flywheel_learn::train::{Next, fit, outputs};
use flywheel_learn::{Error, Task, TextClassification};

#[test]
fn a_separable_set_is_learned() {
    let _turn = turn();
    let task = tiny(2, 0.1);
    let mut seen = Seen::all();
    let outcome = fit(
        &task,
        &separable(90, 0),
        &separable(30, 0),
        &settings(),
        None,
        &mut seen,
    )
    .unwrap();
    let (first, last) = (seen.epochs[0].1, seen.epochs[4].1);
    assert!(last < first / 2.0, "loss {first} -> {last}");
    assert!(outcome.validation.accuracy > 0.95, "{:?}", outcome.validation);
    // 90 rows in batches of 8.
    assert_eq!(
        (outcome.steps, outcome.epochs.len(), outcome.stopped_early),
        (60, 5, false)
    );
    assert_eq!(seen.last, [false, false, false, false, true]);
    assert!(seen.steps.iter().map(|s| s.step).eq(1..=60));
    assert!(seen.steps.iter().all(|s| s.total_steps == 60 && s.grad_norm > 0.0));
    let per_epoch: usize = seen.steps.iter().filter(|s| s.epoch == 2).map(|s| s.examples).sum();
    assert_eq!(per_epoch, 90, "every row once per epoch");
    // The rate rises over 6 steps and falls to almost nothing.
    let rates: Vec<f64> = seen.steps.iter().map(|s| s.learning_rate).collect();
    assert_eq!((rates[0], rates[6]), (0.0, 3e-3));
    assert!((rates[59] - 3e-3 / 54.0).abs() < 1e-12, "{}", rates[59]);
}

/// By nearly the same losses.
#[test]
fn formats_of_16_bits_learn_as_well() {
    let _turn = turn();
    let run = |precision| {
        let mut seen = Seen::all();
        let settings = Settings {
            precision,
            ..settings()
        };
        let outcome = fit(
            &tiny(2, 0.0),
            &separable(90, 0),
            &separable(30, 0),
            &settings,
            None,
            &mut seen,
        )
        .unwrap();
        assert!(
            outcome.validation.accuracy > 0.95,
            "{precision:?}: {:?}",
            outcome.validation
        );
        seen.steps
    };
    let plain = run(Precision::Float32);
    for precision in [Precision::BFloat16, Precision::Float16] {
        let steps = run(precision);
        for (plain, step) in plain.iter().zip(&steps).take(20) {
            assert!((plain.loss - step.loss).abs() < 0.05, "{plain:?} {step:?}");
        }
        assert!(
            plain.iter().zip(&steps).any(|(plain, step)| plain.loss != step.loss),
            "{precision:?}: it computes in another format"
        );
    }
}

/// Losses and weights of a short training.
fn weights_of(settings: &Settings, dropout: f64, recomputes: bool) -> (Seen, Vec<Vec<f32>>) {
    let task = TextClassification::new(network(2, dropout).recomputing(recomputes));
    let mut seen = Seen::all();
    fit(&task, &separable(45, 0), &separable(12, 0), settings, None, &mut seen).unwrap();
    let numbers = |t: &tch::Tensor| Vec::<f32>::try_from(&t.detach().flatten(0, -1)).unwrap();
    (seen, task.parameters().values().map(numbers).collect())
}

/// Up to the rounding of sums; the last batch of an epoch is not full.
#[test]
fn steps_in_micro_batches_are_those_of_whole_batches() {
    let _turn = turn();
    let run = |micro_batch_size| {
        let settings = Settings {
            micro_batch_size,
            epochs: 2,
            ..settings()
        };
        weights_of(&settings, 0.0, false).0
    };
    let whole = run(8);
    assert_eq!((whole.steps.len(), whole.micro_batches), (12, 0));
    // Batches of 8 in passes of 3, 3 and 2; those of 5 in 3 and 2.
    for (size, passes) in [(3, 2 * (5 * 2 + 1)), (1, 2 * (5 * 7 + 4)), (100, 0)] {
        let seen = run(size);
        assert_eq!(seen.micro_batches, passes, "a sign of work after each but the last");
        for (got, want) in seen.steps.iter().zip(&whole.steps) {
            for (got, want) in [(got.loss, want.loss), (got.grad_norm, want.grad_norm)] {
                assert!((got - want).abs() < 1e-5 * want, "passes of {size}: {got}, not {want}");
            }
        }
    }
}

/// Dropout draws the same numbers again, and formats are the same again.
#[test]
fn layers_computed_again_in_backward_give_the_same_weights_bit_for_bit() {
    let _turn = turn();
    for precision in [Precision::Float32, Precision::BFloat16, Precision::Float16] {
        let settings = Settings {
            precision,
            micro_batch_size: 3,
            epochs: 2,
            ..settings()
        };
        let kept = weights_of(&settings, 0.1, false).1;
        assert!(kept == weights_of(&settings, 0.1, true).1, "{precision:?}");
        assert!(kept != weights_of(&settings, 0.2, true).1, "dropout counts");
    }
}

#[test]
fn the_same_seed_gives_the_same_weights_bit_for_bit() {
    let _turn = turn();
    let run = |seed: i64| {
        let task = tiny(seed, 0.1);
        let settings = Settings {
            epochs: 2,
            seed,
            ..settings()
        };
        fit(
            &task,
            &separable(50, 0),
            &separable(12, 0),
            &settings,
            None,
            &mut Seen::all(),
        )
        .unwrap();
        let weights: Vec<Vec<u32>> = task
            .parameters()
            .values()
            .map(|t| {
                Vec::<f32>::try_from(&t.detach().flatten(0, -1))
                    .unwrap()
                    .iter()
                    .map(|x| x.to_bits())
                    .collect()
            })
            .collect();
        weights
    };
    let (once, again, other) = (run(11), run(11), run(12));
    assert!(once == again, "two runs of one seed differ");
    assert!(once != other, "the seed changes nothing");
}

#[test]
fn early_stopping_ends_and_the_best_weights_come_back() {
    let _turn = turn();
    let task = tiny(2, 0.0);
    // Validation labels contradict training, so that the first epoch is the best and each later one worse.
    let validation = separable(30, 1);
    let stopping = EarlyStopping {
        metric: StoppingMetric::Loss,
        patience: 2,
    };
    let settings = Settings {
        epochs: 9,
        early_stopping: Some(stopping),
        ..settings()
    };
    let mut seen = Seen::all();
    let outcome = fit(&task, &separable(90, 0), &validation, &settings, None, &mut seen).unwrap();
    assert_eq!(
        (outcome.best_epoch, outcome.epochs.len(), outcome.stopped_early),
        (1, 3, true)
    );
    assert_eq!(seen.last, [false, false, true]);
    assert_eq!(
        seen.epochs.iter().map(|e| e.3).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert!(seen.epochs[2].2.loss > seen.epochs[0].2.loss);
    assert_eq!(outcome.validation, seen.epochs[0].2);
    let watch = &mut || ControlFlow::Continue(());
    let logits = outputs(&task, &validation, settings.batch_size, watch).unwrap();
    assert_eq!(task.report(&validation, &logits).unwrap(), outcome.validation);
}

#[test]
fn a_loss_that_is_not_finite_ends_training_with_the_step() {
    let _turn = turn();
    let task = tiny(3, 0.0);
    let _ = task.parameters()["classifier.bias"].shallow_clone().fill_(f64::NAN);
    let error = fit(
        &task,
        &separable(30, 0),
        &separable(9, 0),
        &settings(),
        None,
        &mut Seen::all(),
    )
    .unwrap_err();
    assert!(matches!(error, Error::LossNotFinite { step: 1, .. }), "{error}");
}

#[test]
fn the_observer_can_stop_it() {
    let _turn = turn();
    let mut seen = Seen::with(|event| match event {
        Event::Step(3) => Next::Stop,
        _ => Next::GoOn,
    });
    let error = fit(
        &tiny(4, 0.0),
        &separable(30, 0),
        &separable(9, 0),
        &settings(),
        None,
        &mut seen,
    )
    .unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!((seen.steps.len(), seen.states.len()), (3, 0));
    let error = outputs(&tiny(4, 0.0), &separable(30, 0), 8, &mut || ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}

#[test]
fn empty_sets_and_impossible_rows_are_errors() {
    let _turn = turn();
    let task = tiny(5, 0.0);
    let (some, none) = (separable(9, 0), EncodedSet::default());
    let error = fit(&task, &none, &some, &settings(), None, &mut Seen::all()).unwrap_err();
    assert!(matches!(error, Error::EmptySet("training")), "{error}");
    let error = fit(&task, &some, &none, &settings(), None, &mut Seen::all()).unwrap_err();
    assert!(matches!(error, Error::EmptySet("validation")), "{error}");
    for (ids, why) in [
        (vec![], "0 tokens"),
        (vec![1; 25], "25 tokens, 1 to 24"),
        (vec![60], "token id 60"),
        (vec![-1], "token id -1"),
    ] {
        let set = EncodedSet {
            ids: vec![ids],
            labels: vec![0],
        };
        let error = outputs(&task, &set, 4, &mut || ControlFlow::Continue(()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn dropout_counts_in_training_only() {
    let _turn = turn();
    let task = tiny(6, 0.5);
    let batch = task.loader().batch(&separable(6, 0), &[0, 1, 2, 3, 4, 5]).unwrap();
    let rows = |train| task.rows(&task.outputs(&batch, train).unwrap()).unwrap();
    assert_ne!(rows(true), rows(true));
    assert_eq!(rows(false), rows(false));
    let without = tiny(6, 0.0);
    let batch = without.loader().batch(&separable(6, 0), &[0, 1, 2, 3, 4, 5]).unwrap();
    let rows = |train| without.rows(&without.outputs(&batch, train).unwrap()).unwrap();
    assert_eq!(rows(true), rows(false));
}
