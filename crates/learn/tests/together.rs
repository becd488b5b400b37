//! Several processes (threads here) that train together take the steps that one takes alone, decide alike, and go on from
//! the first one's state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::mpsc;

use common::{Event, Seen, hyperparameters, separable, tiny, turn};
use flywheel_contract::hyperparameters::{EarlyStopping, Hyperparameters, StoppingMetric};
use flywheel_contract::scalar::Precision;
use flywheel_data::EncodedSet;
use flywheel_learn::evaluate::Evaluation;
use flywheel_learn::settings::Settings;
use flywheel_learn::train::{Next, Outcome, State, fit_among};
use flywheel_learn::{Collective, Error, Result, Task, device};
use tch::Device;

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The largest relative difference of a figure to that of one process.
const CLOSE: f64 = 1e-5;

/// Runs this in `size` threads, each of them a process; their answers in order.
fn together<T: Send>(size: u32, work: impl Fn(&Collective) -> T + Sync) -> Vec<T> {
    let (announce, announced) = mpsc::channel();
    let announced = Mutex::new(announced);
    let one = |rank: u32| {
        device::set_threads(1);
        let group = if rank == 0 {
            let tell = |port: u16| (1..size).for_each(|_| announce.send(port).unwrap());
            Collective::host(size, HOST, Device::Cpu, tell)
        } else {
            let port = announced.lock().unwrap().recv().unwrap();
            Collective::join(rank, size, (HOST, port), HOST, Device::Cpu)
        };
        work(&group.unwrap())
    };
    let one = &one;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Without dropout, which each process draws for itself. 45 rows make five batches of 8 and one of 5.
fn settings() -> Settings {
    Settings::new(&Hyperparameters {
        epochs: 4,
        dropout: "0".into(),
        early_stopping: Some(EarlyStopping {
            metric: StoppingMetric::Accuracy,
            patience: 3,
        }),
        ..hyperparameters()
    })
    .unwrap()
}

type Rule = Box<dyn Fn(&Event) -> Next + Send>;

/// What one process saw and came to.
struct Trained {
    seen: Seen<Rule>,
    outcome: Result<Outcome<Evaluation>>,
    weights: Vec<f64>,
}

fn train(
    group: Option<&Collective>,
    sets: &[EncodedSet; 2],
    from: Option<State<Evaluation>>,
    rule: impl Fn(&Event) -> Next + Send + 'static,
) -> Trained {
    train_as(&settings(), group, sets, from, rule)
}

fn train_as(
    settings: &Settings,
    group: Option<&Collective>,
    sets: &[EncodedSet; 2],
    from: Option<State<Evaluation>>,
    rule: impl Fn(&Event) -> Next + Send + 'static,
) -> Trained {
    // Others begin with other weights, so that it shows that they take those of the first.
    let task = tiny(5 + i64::from(group.map_or(0, Collective::rank)), 0.0);
    let mut seen = Seen::with(Box::new(rule) as Rule);
    let mut outcome = fit_among(&task, &sets[0], &sets[1], settings, from, group, &mut seen);
    // Times differ.
    if let Ok(outcome) = &mut outcome {
        outcome.epochs.iter_mut().for_each(|epoch| epoch.ended = None);
    }
    let numbers =
        |t: &tch::Tensor| Vec::<f64>::try_from(&t.detach().flatten(0, -1).to_kind(tch::Kind::Double)).unwrap();
    let weights = task.parameters().values().flat_map(numbers).collect();
    Trained { seen, outcome, weights }
}

fn close(got: f64, want: f64, what: &str) {
    assert!(
        (got - want).abs() <= CLOSE * want.abs().max(1e-3),
        "{what}: {got}, not {want}"
    );
}

fn sets() -> [EncodedSet; 2] {
    [separable(45, 0), separable(21, 0)]
}

#[test]
fn steps_are_those_of_one_process_with_the_whole_batch() {
    let _turn = turn();
    let alone = train(None, &sets(), None, |_| Next::GoOn);
    let whole = alone.outcome.unwrap();
    // The last with several passes in each, of which only the last is summed while it runs.
    for (size, micro_batch_size) in [(2, 8), (3, 8), (7, 8), (2, 1), (3, 2)] {
        let settings = Settings {
            micro_batch_size,
            ..settings()
        };
        let trained = |group: &Collective| train_as(&settings, Some(group), &sets(), None, |_| Next::GoOn);
        for one in together(size, trained) {
            assert_eq!(one.seen.steps.len(), alone.seen.steps.len());
            for (got, want) in one.seen.steps.iter().zip(&alone.seen.steps) {
                let what = format!("{size} processes, passes of {micro_batch_size}, step {}", want.step);
                close(got.loss, want.loss, &format!("{what}, loss"));
                close(got.grad_norm, want.grad_norm, &format!("{what}, norm"));
                assert_eq!((got.step, got.examples), (want.step, want.examples));
            }
            let outcome = one.outcome.unwrap();
            assert_eq!((outcome.best_epoch, outcome.steps), (whole.best_epoch, whole.steps));
            for (got, want) in outcome.epochs.iter().zip(&whole.epochs) {
                close(got.validation.loss, want.validation.loss, "validation loss");
                assert_eq!(got.validation.rows, want.validation.rows);
            }
        }
    }
}

/// `Auto` may choose another format on the next node: the first process decides, since one scale holds for all gradients.
#[test]
fn the_first_decides_on_the_format() {
    let _turn = turn();
    for precision in [Precision::BFloat16, Precision::Float16] {
        let own = |precision| Settings {
            precision,
            ..settings()
        };
        let alone = train_as(&own(precision), None, &sets(), None, |_| Next::GoOn);
        let all = together(2, |group| {
            let wanted = if group.is_first() {
                precision
            } else {
                Precision::Float32
            };
            train_as(&own(wanted), Some(group), &sets(), None, |_| Next::GoOn)
        });
        assert_eq!(all[0].seen.steps, all[1].seen.steps);
        assert_eq!([all[0].seen.format, all[1].seen.format], [Some(precision); 2]);
        for (got, want) in all[0].seen.steps.iter().zip(&alone.seen.steps).take(12) {
            assert!((got.loss - want.loss).abs() < 0.02, "{precision:?}: {got:?} {want:?}");
        }
    }
}

/// A batch of five rows for seven processes: two have none.
#[test]
fn who_has_no_row_takes_part() {
    let _turn = turn();
    let sets = [separable(5, 0), separable(2, 0)];
    let alone = train(None, &sets, None, |_| Next::GoOn);
    for one in together(7, |group| train(Some(group), &sets, None, |_| Next::GoOn)) {
        for (got, want) in one.seen.steps.iter().zip(&alone.seen.steps) {
            close(got.loss, want.loss, "loss");
            close(got.grad_norm, want.grad_norm, "norm");
        }
        one.outcome.unwrap();
    }
}

#[test]
fn what_one_wants_is_done_by_all_and_the_first_has_the_state() {
    let _turn = turn();
    let whole = together(2, |group| train(Some(group), &sets(), None, |_| Next::GoOn));
    for place in [Event::Step(4), Event::Validating(1), Event::Epoch(2)] {
        // The second process is the one that is told to stop.
        let mut stopped = together(2, |group| {
            let second = !group.is_first();
            let rule = move |event: &Event| {
                if second && *event == place {
                    Next::SaveAndStop
                } else {
                    Next::GoOn
                }
            };
            train(Some(group), &sets(), None, rule)
        });
        for one in &stopped {
            assert!(matches!(one.outcome, Err(Error::Interrupted)), "{:?}", one.outcome);
        }
        let steps: Vec<usize> = stopped.iter().map(|one| one.seen.steps.len()).collect();
        assert_eq!(steps[0], steps[1], "{place:?}");
        assert!(stopped[1].seen.states.is_empty());
        let state = stopped[0].seen.states.remove(0);
        assert_eq!(state.cursor.step as usize, steps[0]);

        let state = Mutex::new(Some(state));
        let again = together(2, |group| {
            let from = if group.is_first() {
                state.lock().unwrap().take()
            } else {
                None
            };
            train(Some(group), &sets(), from, |_| Next::GoOn)
        });
        let (again, whole) = (&again[0], &whole[0]);
        assert!(again.weights == whole.weights, "{place:?}: the weights differ");
        let (again, whole) = (again.outcome.as_ref().unwrap(), whole.outcome.as_ref().unwrap());
        assert_eq!(
            (again.best_epoch, &again.epochs),
            (whole.best_epoch, &whole.epochs),
            "{place:?}"
        );
    }
}

#[test]
fn values_are_compared_and_everybody_learns_it() {
    let all = together(3, |group| {
        let same = group.all_have(&"one".to_owned()).unwrap();
        let other = group.all_have(&format!("{}", group.rank() / 2)).unwrap();
        group.sum(&[1.0]).unwrap();
        (same, other)
    });
    assert_eq!(all, [(true, false); 3]);
}
