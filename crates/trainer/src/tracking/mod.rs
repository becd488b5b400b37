//! What people watch beside `/progress`: figures on their way to TensorBoard's event files and to an MLflow server.
//!
//! The tensor thread hands points over and never waits; everything else runs beside it, within bounds. Nothing here ends a
//! training or holds it up: what goes wrong is logged once per kind, counted, and told by `/progress`.

mod mlflow;
mod tensorboard;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flywheel_contract::progress::{EpochEvaluation, SinkProgress, TrackingProgress};
use flywheel_contract::scalar::Metric;
use flywheel_contract::trainer::TrainerConfig;
use flywheel_store::Limits;
use prometheus_client::metrics::counter::Counter;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::tracker::StepSeen;

/// Most steps of a training that are told; of more, every n-th. TensorBoard itself shows a thousand points of a curve.
const STEPS_MAX: u64 = 4096;
/// Most characters of a parameter's value; older MLflow servers refuse more.
const PARAMETER_MAX: usize = 500;

/// Figures of one moment.
#[derive(Clone, Debug, PartialEq)]
struct Point {
    /// Optimiser steps done.
    step: u64,
    /// Milliseconds since 1970.
    time: u64,
    /// Names as TensorBoard groups them, and values.
    values: Vec<(Cow<'static, str>, f64)>,
}

/// How the attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a result.
    Finished,
    /// With a failure.
    Failed,
    /// It was told to; another attempt may go on.
    Killed,
    /// Another attempt has taken over and tells what there is to tell.
    Replaced,
}

/// Counters of a sink, for `/metrics`.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinkCounters {
    /// Points that were thrown away.
    pub(crate) dropped: Counter,
    /// Writes or requests that failed.
    pub(crate) failures: Counter,
}

/// What is known of a place that figures go to.
#[derive(Debug)]
struct Sink {
    name: &'static str,
    counters: SinkCounters,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    progress: SinkProgress,
    /// Kinds of trouble that were logged.
    warned: BTreeSet<&'static str>,
}

impl Sink {
    fn new(name: &'static str, uri: &str, counters: SinkCounters) -> Self {
        let sink = Self {
            name,
            counters,
            told: Mutex::default(),
        };
        sink.lies_at(uri.to_owned());
        sink
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the figures are to be seen.
    fn lies_at(&self, uri: String) {
        self.told().progress.uri = uri;
    }

    /// Something went wrong; each kind is logged once.
    fn failed(&self, kind: &'static str, problem: String) {
        self.counters.failures.inc();
        let mut told = self.told();
        if told.warned.insert(kind) {
            tracing::warn!(
                sink = self.name,
                kind,
                problem,
                "figures do not get there; training goes on"
            );
        }
        told.progress.problem = Some(problem);
    }

    /// What was sent last has arrived.
    fn well(&self) {
        self.told().progress.problem = None;
    }

    /// Points were thrown away.
    fn dropped(&self, points: u64) {
        self.counters.dropped.inc_by(points);
        self.told().progress.dropped_points += points;
    }

    fn progress(&self) -> SinkProgress {
        self.told().progress.clone()
    }
}

/// Takes figures for all sinks that were asked for.
pub(crate) struct Recorder {
    board: Option<Arc<tensorboard::Board>>,
    mlflow: Option<Arc<mlflow::Outbox>>,
    end: watch::Sender<Option<End>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Recorder {
    /// Starts what the configuration asks for; none where it asks for nothing. `sequence` is higher at each start of the
    /// job, `limits` are the storage's.
    pub(crate) fn start(
        config: &TrainerConfig,
        sequence: u64,
        limits: Limits,
        board: &SinkCounters,
        mlflow: &SinkCounters,
    ) -> Option<Self> {
        let asked = config.tracking.as_ref()?;
        let parameters = parameters(config);
        let (end, ended) = watch::channel(None);
        let mut tasks = Vec::new();
        let board = config.tensor_board_uri().map(|folder| {
            let board = Arc::new(tensorboard::Board::new(&folder, sequence, &parameters, board.clone()));
            tasks.push(tokio::spawn(Arc::clone(&board).run(
                config.storage.clone(),
                limits,
                ended.clone(),
            )));
            board
        });
        let mlflow = asked.mlflow.as_ref().map(|settings| {
            let outbox = Arc::new(mlflow::Outbox::new(&settings.uri, mlflow.clone()));
            match mlflow::Run::new(settings, config, parameters, &outbox) {
                Ok(run) => tasks.push(tokio::spawn(run.run(ended))),
                Err(problem) => outbox.close(problem),
            }
            outbox
        });
        if board.is_none() && mlflow.is_none() {
            return None;
        }
        Some(Self {
            board,
            mlflow,
            end,
            tasks: Mutex::new(tasks),
        })
    }

    /// Training begins after this step; 0 where it begins anew.
    pub(crate) fn begin(&self, step: u64) {
        if let Some(board) = &self.board {
            board.begin(step, now());
        }
    }

    /// A step was done; of many, every n-th is told.
    pub(crate) fn step(&self, seen: &StepSeen, examples_per_second: Option<f64>) {
        if !is_told(seen.step, seen.total_steps) {
            return;
        }
        let mut values = vec![
            (Cow::Borrowed("train/loss"), seen.loss),
            (Cow::Borrowed("train/learning_rate"), seen.learning_rate),
            (Cow::Borrowed("train/grad_norm"), seen.grad_norm),
        ];
        values.extend(examples_per_second.map(|rate| (Cow::Borrowed("train/examples_per_second"), rate)));
        self.record(seen.step, values);
    }

    /// An epoch was evaluated.
    pub(crate) fn evaluated(&self, evaluation: &EpochEvaluation) {
        let figures = [
            ("validation/loss", evaluation.validation_loss),
            ("validation/accuracy", evaluation.accuracy),
            ("validation/macro_f1", evaluation.macro_f1),
            ("train/epoch_loss", evaluation.train_loss),
            ("train/epoch", Some(f64::from(evaluation.epoch))),
        ];
        let values = figures
            .into_iter()
            .filter_map(|(name, value)| Some((Cow::Borrowed(name), value?)));
        self.record(evaluation.step, values.collect());
        if let Some(board) = &self.board {
            board.hurry();
        }
    }

    /// What came out, on the sets that are measured once.
    pub(crate) fn result(&self, step: u64, metrics: &[Metric]) {
        let values = metrics
            .iter()
            // The validation's curve is that of the epochs; the artifact's own point is that of the best one.
            .filter(|metric| !metric.name.starts_with("validation/"))
            .filter_map(|metric| Some((Cow::Owned(snake(&metric.name)), metric.value.value()?)));
        self.record(step, values.collect());
    }

    fn record(&self, step: u64, mut values: Vec<(Cow<'static, str>, f64)>) {
        // JSON has no other numbers.
        values.retain(|(_, value)| value.is_finite());
        if values.is_empty() {
            return;
        }
        let point = Point {
            step,
            time: now(),
            values,
        };
        if let Some(board) = &self.board {
            board.add(&point);
        }
        if let Some(outbox) = &self.mlflow {
            outbox.add(&point);
        }
    }

    /// Sends what is left, for at most so long.
    pub(crate) async fn end(&self, end: End, at_most: Duration) {
        self.end.send_replace(Some(end));
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = tokio::time::Instant::now() + at_most;
        for task in tasks {
            let stop = task.abort_handle();
            if tokio::time::timeout_at(deadline, task).await.is_err() {
                stop.abort();
            }
        }
        if end == End::Replaced {
            return;
        }
        if let Some(outbox) = &self.mlflow {
            outbox.give_up(at_most);
        }
        if let Some(board) = &self.board {
            board.give_up(at_most);
        }
    }

    /// How the sending goes.
    pub(crate) fn progress(&self) -> TrackingProgress {
        TrackingProgress {
            tensor_board: self.board.as_ref().map(|b| b.sink.progress()),
            mlflow: self.mlflow.as_ref().map(|o| o.sink.progress()),
        }
    }
}

/// Waits until the attempt is over.
async fn ended(end: &mut watch::Receiver<Option<End>>) -> End {
    // Without a sender nobody waits for what is sent any more.
    end.wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|end| *end)
        .unwrap_or(End::Replaced)
}

/// Whether a step is told: the first, the last and every n-th, so that the choice is the same in all attempts and a file
/// only ever grows at its end.
fn is_told(step: u64, total_steps: u64) -> bool {
    let every = total_steps.div_ceil(STEPS_MAX).max(1);
    step == 1 || step == total_steps || step.is_multiple_of(every)
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `test/macroF1` as `test/macro_f1`, the way of TensorBoard and MLflow.
fn snake(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// What the training was told: hyperparameters by their names, and what they are applied to.
fn parameters(config: &TrainerConfig) -> Vec<(String, String)> {
    let mut all = vec![
        (
            "job".to_owned(),
            format!("{}/{}", config.job.namespace, config.job.name),
        ),
        ("model".to_owned(), config.model_name.clone()),
    ];
    if let Some(pretrained) = &config.model.pretrained {
        all.push(("pretrained".to_owned(), pretrained.uri.to_string()));
    }
    if let Some(version) = &config.model.from_version {
        all.push(("from_version".to_owned(), version.clone()));
    }
    for (name, value) in [
        ("task", serde_json::to_value(config.task)),
        ("device", serde_json::to_value(config.device)),
        ("", serde_json::to_value(&config.hyperparameters)),
    ] {
        flatten(name, &value.unwrap_or_default(), &mut all);
    }
    for (_, value) in &mut all {
        *value = value.chars().take(PARAMETER_MAX).collect();
    }
    all
}

fn flatten(name: &str, value: &Value, all: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() {
                    field.clone()
                } else {
                    format!("{name}.{field}")
                };
                flatten(&name, value, all);
            }
        }
        Value::Null => (),
        Value::String(text) => all.push((name.to_owned(), text.clone())),
        other => all.push((name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_training_tells_every_nth_step_and_its_ends() {
        for (total, most) in [(1, 1), (100, 100), (4096, 4096), (4097, 2050), (1_000_000, 4098)] {
            let told: Vec<u64> = (1..=total).filter(|step| is_told(*step, total)).collect();
            assert!(told.len() as u64 <= most, "{total}: {}", told.len());
            assert_eq!((told.first(), told.last()), (Some(&1), Some(&total)));
        }
    }

    #[test]
    fn names_are_those_of_tensorboard() {
        assert_eq!(snake("test/macroF1"), "test/macro_f1");
        assert_eq!(snake("golden/accuracy"), "golden/accuracy");
    }

    #[test]
    fn a_kind_of_trouble_is_told_until_all_is_well() {
        let sink = Sink::new("MLflow", "http://h", SinkCounters::default());
        sink.failed("silent", "a".to_owned());
        sink.failed("silent", "b".to_owned());
        sink.dropped(3);
        assert_eq!(
            sink.progress(),
            SinkProgress {
                uri: "http://h".to_owned(),
                dropped_points: 3,
                problem: Some("b".to_owned())
            }
        );
        sink.well();
        assert_eq!(sink.progress().problem, None);
        assert_eq!((sink.counters.failures.get(), sink.counters.dropped.get()), (2, 3));
    }
}
