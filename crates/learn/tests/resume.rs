//! A training that is stopped and gone on with, at any place, ends with the weights of one that was not, bit for bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;

use common::{CLASSES, Event, Seen, config, hyperparameters, separable, tiny, turn};
use flywheel_contract::hyperparameters::{EarlyStopping, Hyperparameters, StoppingMetric};
use flywheel_contract::scalar::Precision;
use flywheel_data::EncodedSet;
use flywheel_learn::checkpoint::{Saved, Terms, open, write};
use flywheel_learn::evaluate::Evaluation;
use flywheel_learn::network::shapes;
use flywheel_learn::settings::Settings;
use flywheel_learn::train::{Next, Outcome, State, fit};
use flywheel_learn::{Error, Result, Task, TextClassification};
use serde_json::{Value, json};

type Bits = Vec<Vec<u32>>;

/// A job with dropout whose best epoch is neither the first nor the last, since early stopping ends it.
struct Job {
    terms: Terms,
    settings: Settings,
    train: EncodedSet,
    validation: EncodedSet,
}

fn job() -> Job {
    job_in(Precision::Float32)
}

fn job_in(precision: Precision) -> Job {
    let hyperparameters = Hyperparameters {
        epochs: 9,
        dropout: "0.2".into(),
        precision,
        early_stopping: Some(EarlyStopping {
            metric: StoppingMetric::Accuracy,
            patience: 2,
        }),
        ..hyperparameters()
    };
    let mut validation = separable(12, 0);
    // One label in four is wrong, so that the accuracy comes to a stand.
    for label in validation.labels.iter_mut().step_by(4) {
        *label = (*label + 1) % CLASSES as i64;
    }
    let train = separable(45, 0);
    Job {
        terms: Terms {
            train_rows: train.len(),
            validation_rows: validation.len(),
            hyperparameters: hyperparameters.clone(),
        },
        settings: Settings::new(&hyperparameters).unwrap(),
        train,
        validation,
    }
}

impl Job {
    fn task(&self) -> TextClassification {
        tiny(5, 0.2)
    }

    fn fit<F: Fn(&Event) -> Next>(
        &self,
        task: &TextClassification,
        from: Option<State<Evaluation>>,
        seen: &mut Seen<F>,
    ) -> Result<Outcome<Evaluation>> {
        fit(task, &self.train, &self.validation, &self.settings, from, seen)
    }

    /// To the end; weights and all figures but times.
    fn finish(&self, from: Option<State<Evaluation>>) -> (Bits, Outcome<Evaluation>) {
        let task = self.task();
        let mut outcome = self.fit(&task, from, &mut Seen::all()).unwrap();
        assert!(outcome.seconds > 0.0);
        outcome.seconds = 0.0;
        outcome.epochs.iter_mut().for_each(|epoch| epoch.ended = None);
        (bits(&task), outcome)
    }

    /// The state at the first event for which `here` holds.
    fn stop(&self, from: Option<State<Evaluation>>, here: impl Fn(&Event) -> bool) -> State<Evaluation> {
        let mut seen = Seen::with(|event| if here(event) { Next::SaveAndStop } else { Next::GoOn });
        let error = self.fit(&self.task(), from, &mut seen).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert_eq!(seen.states.len(), 1);
        seen.states.remove(0)
    }

    fn open(&self, folder: &Path) -> Result<Saved<Evaluation>> {
        open(folder, &self.terms, &shapes(&config(), CLASSES))
    }

    /// Through files.
    fn through_files(&self, state: &State<Evaluation>) -> State<Evaluation> {
        let dir = tempfile::tempdir().unwrap();
        let mut files = write(dir.path(), &self.terms, state).unwrap();
        let mut there: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        there.sort();
        assert_eq!(files, there);
        let saved = self.open(dir.path()).unwrap();
        drop(dir);
        assert_eq!(saved.cursor(), &state.cursor);
        saved.read().unwrap()
    }
}

fn bits(task: &TextClassification) -> Bits {
    let bits = |t: &tch::Tensor| -> Vec<u32> {
        let numbers = Vec::<f32>::try_from(&t.detach().flatten(0, -1)).unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    };
    task.parameters().values().map(bits).collect()
}

#[test]
fn a_training_stopped_at_any_place_ends_as_one_that_was_not() {
    let _turn = turn();
    let job = job();
    let (weights, outcome) = job.finish(None);
    let epochs = outcome.epochs.len() as u32;
    assert!(outcome.stopped_early && epochs < 9, "{epochs} epochs");
    assert!(
        (2..epochs).contains(&outcome.best_epoch),
        "best epoch {} of {epochs}",
        outcome.best_epoch
    );
    assert!(outcome.steps == u64::from(epochs) * 6);

    let mut places: Vec<Event> = (1..=outcome.steps).map(Event::Step).collect();
    places.extend((0..epochs as usize).map(Event::Validating));
    places.extend((1..=epochs).map(Event::Epoch));
    for place in places {
        let state = job.through_files(&job.stop(None, |event| *event == place));
        let (again, figures) = job.finish(Some(state));
        assert!(again == weights, "stopped at {place:?}, the weights differ");
        assert_eq!(figures, outcome, "stopped at {place:?}");
    }
}

#[test]
fn a_training_stopped_after_every_step_ends_as_one_that_was_not() {
    let _turn = turn();
    let job = job();
    let whole = job.finish(None);
    let mut state = None;
    for step in 1..=whole.1.steps {
        state = Some(job.through_files(&job.stop(state, |event| *event == Event::Step(step))));
    }
    assert!(job.finish(state) == whole);
}

#[test]
fn in_formats_of_16_bits_it_goes_on_as_well() {
    let _turn = turn();
    for precision in [Precision::BFloat16, Precision::Float16] {
        let job = job_in(precision);
        let whole = job.finish(None);
        for step in [1, 2, 7, 8] {
            let state = job.through_files(&job.stop(None, |event| *event == Event::Step(step)));
            assert_eq!(state.cursor.loss_scale.is_some(), precision == Precision::Float16);
            assert!(job.finish(Some(state)) == whole, "{precision:?}, stopped at {step}");
        }
    }
}

/// With a scale that is too large steps overflow and are left out, which is part of the state.
#[test]
fn steps_left_out_in_half_precision_are_known_later() {
    let _turn = turn();
    let job = job_in(Precision::Float16);
    let too_large = || {
        let mut state = job.stop(None, |event| *event == Event::Step(1));
        state.cursor.loss_scale.as_mut().unwrap().scale = 16_777_216.0;
        state
    };
    let later = || job.through_files(&job.stop(Some(too_large()), |event| *event == Event::Step(20)));
    let whole = job.finish(Some(too_large()));
    let skipped = later().cursor.loss_scale.unwrap().skipped;
    assert!((1..19).contains(&skipped), "{skipped} steps left out");
    assert!(job.finish(Some(later())) == whole);
    let mut forgotten = later();
    forgotten.cursor.loss_scale.as_mut().unwrap().skipped = 0;
    assert!(job.finish(Some(forgotten)) != whole, "it counts for the optimiser");
}

#[test]
fn saving_changes_nothing() {
    let _turn = turn();
    let job = job();
    let whole = job.finish(None);
    let task = job.task();
    let mut seen = Seen::with(|event| match event {
        Event::Validating(_) => Next::Save,
        Event::Step(step) if step % 4 != 0 => Next::GoOn,
        _ => Next::Save,
    });
    job.fit(&task, None, &mut seen).unwrap();
    assert!(bits(&task) == whole.0);
    assert_eq!(
        seen.states.len() as u64,
        whole.1.steps / 4 + whole.1.epochs.len() as u64
    );
    // A state is a copy: the steps after it do not show in it.
    let first = seen.states.remove(0);
    assert_eq!(first.cursor.step, 4);
    assert!(job.finish(Some(first)) == whole);
}

/// What was not restored would show: this is what the tests above rest on.
#[test]
fn every_part_of_a_state_matters() {
    let _turn = turn();
    let job = job();
    let whole = job.finish(None);
    type Change = fn(&mut State<Evaluation>);
    let changes: [(&str, Change); 8] = [
        ("first moments", |s| {
            s.moments.exp_avg.values_mut().for_each(|t| drop(t.zero_()))
        }),
        ("second moments", |s| {
            s.moments.exp_avg_sq.values_mut().for_each(|t| drop(t.zero_()))
        }),
        ("weights", |s| {
            s.weights.values_mut().for_each(|t| drop(t.g_mul_scalar_(1.0001)))
        }),
        ("best weights", |s| {
            s.best.as_mut().unwrap().values_mut().for_each(|t| drop(t.zero_()))
        }),
        ("step", |s| s.cursor.step += 1),
        ("batch", |s| s.cursor.batch += 1),
        ("losses", |s| s.cursor.loss_sum += 1.0),
        ("best epoch", |s| s.cursor.epochs[1].validation.accuracy = 0.0),
    ];
    for (name, change) in changes {
        // In the middle of the epoch after the best one, so that the best weights are those of the state.
        let middle = u64::from(whole.1.best_epoch) * 6 + 3;
        let mut state = job.stop(None, |event| *event == Event::Step(middle));
        let unchanged = job.finish(Some(job.through_files(&state)));
        assert!(unchanged == whole, "{name}");
        change(&mut state);
        assert!(job.finish(Some(state)) != whole, "{name} make no difference");
    }
}

#[test]
fn states_of_another_network_are_refused() {
    let _turn = turn();
    let job = job();
    type Change = fn(&mut State<Evaluation>);
    let changes: [(&str, Change); 3] = [
        ("classifier.bias is not in it", |s| {
            drop(s.weights.remove("classifier.bias"))
        }),
        ("classifier.bias has shape [1], not [3]", |s| {
            s.moments.exp_avg.insert(
                "classifier.bias".to_owned(),
                tch::Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cpu)),
            );
        }),
        ("no best epoch", |s| {
            (s.cursor.epoch, s.cursor.batch) = (10, 0);
        }),
    ];
    for (words, change) in changes {
        let mut state = job.stop(None, |event| *event == Event::Step(3));
        change(&mut state);
        let error = job.fit(&job.task(), Some(state), &mut Seen::all()).unwrap_err();
        assert!(matches!(error, Error::State(_)), "{error}");
        assert!(error.to_string().contains(words), "{error} lacks {words}");
    }
}

/// Changes a safetensors file: its header as JSON and the bytes after it.
fn edit(path: &Path, change: impl Fn(&mut Value, &mut Vec<u8>)) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut numbers = bytes[8 + length..].to_vec();
    change(&mut header, &mut numbers);
    let header = header.to_string().into_bytes();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(numbers);
    std::fs::write(path, out).unwrap();
}

#[test]
fn checkpoints_that_lie_are_refused_before_a_tensor_is_made() {
    let _turn = turn();
    let job = job();
    let state = job.stop(None, |event| *event == Event::Step(15));
    assert_eq!((state.cursor.epoch, state.cursor.batch), (3, 3));
    fn state_json(folder: &Path, change: impl Fn(&mut Value)) {
        let path = folder.join("state.json");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }
    type Change = fn(&Path);
    let cases: Vec<(&str, Change)> = vec![
        ("cannot read", |f| std::fs::remove_file(f.join("state.json")).unwrap()),
        ("cannot read", |f| {
            std::fs::remove_file(f.join("exp_avg.safetensors")).unwrap()
        }),
        ("cannot read", |f| {
            std::fs::remove_file(f.join("best.safetensors")).unwrap()
        }),
        ("state.json cannot be read", |f| {
            std::fs::write(f.join("state.json"), "{").unwrap()
        }),
        ("more than", |f| {
            std::fs::write(f.join("state.json"), vec![b' '; 5 << 20]).unwrap()
        }),
        ("schemaVersion 9", |f| state_json(f, |s| s["schemaVersion"] = 9.into())),
        ("learningRate was 1e-9 and is", |f| {
            state_json(f, |s| s["terms"]["hyperparameters"]["learningRate"] = "1e-9".into())
        }),
        ("the training set had 46 rows and has", |f| {
            state_json(f, |s| s["terms"]["trainRows"] = 46.into())
        }),
        ("no place", |f| state_json(f, |s| s["cursor"]["step"] = 16.into())),
        ("no place", |f| state_json(f, |s| s["cursor"]["batch"] = 7.into())),
        ("no place", |f| state_json(f, |s| s["cursor"]["epoch"] = 0.into())),
        ("no place", |f| {
            state_json(f, |s| {
                s["cursor"]["epoch"] = 11.into();
                s["cursor"]["step"] = 63.into();
            })
        }),
        ("no place", |f| state_json(f, |s| s["cursor"]["bestEpoch"] = 3.into())),
        ("no place", |f| {
            state_json(f, |s| s["cursor"]["bestEpoch"] = Value::Null)
        }),
        ("no place", |f| {
            state_json(f, |s| drop(s["cursor"]["epochs"].as_array_mut().unwrap().pop()))
        }),
        ("cannot be read", |f| {
            state_json(f, |s| s["cursor"]["lossSum"] = Value::Null)
        }),
        ("classifier.weight is not in it", |f| {
            edit(&f.join("exp_avg_sq.safetensors"), |h, numbers| {
                // The last one: no gap is left.
                h.as_object_mut().unwrap().remove("classifier.weight").unwrap();
                numbers.truncate(numbers.len() - CLASSES * 32 * 4);
            })
        }),
        ("none of the network's", |f| {
            edit(&f.join("model.safetensors"), |h, numbers| {
                let end = numbers.len();
                h["more"] = json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
                numbers.extend([0; 4]);
            })
        }),
        ("[3, 1]", |f| {
            edit(&f.join("model.safetensors"), |h, _| {
                h["classifier.bias"]["shape"] = json!([3, 1])
            })
        }),
        ("Int", |f| {
            edit(&f.join("exp_avg.safetensors"), |h, _| {
                h["classifier.bias"]["dtype"] = "I32".into()
            })
        }),
        ("BFloat16", |f| {
            edit(&f.join("exp_avg.safetensors"), |h, _| {
                h["classifier.bias"]["dtype"] = "BF16".into();
                h["classifier.bias"]["shape"] = json!([6]);
            })
        }),
        ("belong to none", |f| {
            edit(&f.join("best.safetensors"), |_, numbers| numbers.push(0))
        }),
        ("ends at byte", |f| {
            edit(&f.join("best.safetensors"), |_, numbers| {
                numbers.truncate(numbers.len() - 1)
            })
        }),
    ];
    for (i, (words, change)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &job.terms, &state).unwrap();
        job.open(dir.path()).unwrap();
        change(dir.path());
        let error = job.open(dir.path()).unwrap_err();
        println!("{i}: {error}");
        assert!(error.to_string().contains(words), "{i}: {error} lacks {words:?}");
    }
    // Shapes of another network, with files that are whole.
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &job.terms, &state).unwrap();
    let error = open::<Evaluation>(dir.path(), &job.terms, &shapes(&config(), CLASSES + 1)).unwrap_err();
    assert!(error.to_string().contains("classifier"), "{error}");
    // Numbers that JSON cannot hold are not written as something else.
    let mut state = job.stop(None, |event| *event == Event::Step(2));
    state.cursor.loss_sum = f64::INFINITY;
    assert!(
        write(dir.path(), &job.terms, &state)
            .unwrap_err()
            .to_string()
            .contains("state.json")
    );
}
