//! A thread that owns one copy of the model and computes batches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::profile::Answer;
use tokio::sync::mpsc;

use crate::figures::Figures;
use crate::marks::Mark;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::pace::Pace;
use crate::profile::{Counter, unix_seconds};
use crate::queue::{Fault, Item, Queue};

/// Since when a worker has been computing one batch, and the mark that it does.
pub(crate) struct Heartbeat {
    worker: usize,
    mark: Arc<Mark>,
    marked: AtomicBool,
    origin: Instant,
    /// Milliseconds after `origin`, plus one; 0 while it waits for work.
    since: AtomicU64,
}

impl Heartbeat {
    /// That of the worker with this number.
    pub fn new(worker: usize, mark: Arc<Mark>) -> Self {
        Self {
            worker,
            mark,
            marked: AtomicBool::new(false),
            origin: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    fn begin(&self) {
        self.since.store(self.now() + 1, Ordering::Relaxed);
        if self.mark.begin(self.worker) {
            self.marked.store(true, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
        self.unmark();
    }

    fn unmark(&self) {
        if self.marked.swap(false, Ordering::Relaxed) {
            self.mark.end(self.worker);
        }
    }

    /// The process ends, and not by what is computed, unless that has taken so long.
    pub fn leave(&self, stuck: Duration) {
        if self.busy() < stuck {
            self.unmark();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// How long the batch that is being computed has taken so far.
    pub fn busy(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since - 1)),
        }
    }
}

/// What a worker shares with the others of its version.
pub(crate) struct Place {
    pub queue: Arc<Queue>,
    pub pace: Arc<Pace>,
    pub figures: Arc<Figures>,
    pub metrics: Arc<Metrics>,
}

/// Starts a worker. `ready` gets the outcome of the warm-up on its thread; `broken` the failure of a device that works no
/// more, after which the thread ends.
pub(crate) fn start(
    heartbeat: &Arc<Heartbeat>,
    (mut model, mut counter): (Box<dyn Model>, Counter),
    place: Place,
    ready: mpsc::Sender<Result<(), Failure>>,
    broken: mpsc::Sender<Failure>,
) -> std::io::Result<()> {
    let beat = Arc::clone(heartbeat);
    std::thread::Builder::new()
        .name(format!("model-{}", beat.worker))
        .spawn(move || {
            let warm = guarded(|| model.warm_up());
            let works = warm.is_ok();
            // Whoever waits for it may have given up.
            let _ = ready.try_send(warm);
            if !works {
                return;
            }
            let Place {
                queue,
                pace,
                figures,
                metrics,
            } = place;
            while let Some(batch) = queue.take() {
                beat.begin();
                let (texts, begun) = (batch.len(), Instant::now());
                let tokens = batch.iter().map(|item| item.row.len()).sum();
                metrics.batch_size.observe(texts as f64);
                let result = compute(model.as_mut(), &mut counter, &figures, batch);
                let took = begun.elapsed();
                pace.observe(texts, tokens, took);
                metrics.demand.computed(took);
                if let Err(failure) = result {
                    // Without an end: the version stays marked.
                    // Full means that another worker has said it already.
                    let _ = broken.try_send(failure);
                    return;
                }
                beat.end();
            }
        })?;
    Ok(())
}

/// Computes a batch, counts what is waited for, and answers every item. A row that cannot be computed fails alone: after a
/// failure its companions are computed one by one. An error means that the device works no more.
fn compute(
    model: &mut dyn Model,
    counter: &mut Counter,
    figures: &Figures,
    mut batch: Vec<Item>,
) -> Result<(), Failure> {
    let rows: Vec<Vec<i64>> = batch.iter_mut().map(|item| std::mem::take(&mut item.row)).collect();
    let begun = Instant::now();
    match predict(model, &rows) {
        Ok(answers) => {
            let broken = answers.iter().filter(|answer| !answer.is_finite()).count();
            figures.computed(rows.len(), broken, begun.elapsed());
            if broken > 0 {
                tracing::error!(
                    broken,
                    rows = rows.len(),
                    "the model answers with values that are no numbers"
                );
            }
            // Before they are answered: whoever has an answer finds it counted.
            let answered = batch.iter().zip(&rows).zip(&answers);
            let waited_for = answered.filter(|((item, _), _)| !item.reply.is_closed());
            counter.count(
                unix_seconds(),
                waited_for.map(|((_, row), answer)| (row.as_slice(), answer)),
            );
            for (item, answer) in batch.into_iter().zip(answers) {
                item.answer(told(answer));
            }
            Ok(())
        }
        Err(failure) => {
            tracing::error!(
                reason = failure.reason.as_str(),
                message = failure.message,
                rows = rows.len(),
                "a batch failed"
            );
            check(model)?;
            let alone = rows.len() == 1;
            for (item, row) in batch.into_iter().zip(rows) {
                if alone {
                    figures.failed(1);
                    item.answer(Err(Fault::Failed));
                } else if item.reply.is_closed() {
                    continue;
                } else if item.deadline <= Instant::now() {
                    item.answer(Err(Fault::Expired));
                } else {
                    let begun = Instant::now();
                    match predict(model, std::slice::from_ref(&row)).map(|mut answers| answers.pop()) {
                        Ok(Some(answer)) => {
                            figures.computed(1, usize::from(!answer.is_finite()), begun.elapsed());
                            let waited_for = (!item.reply.is_closed()).then_some((row.as_slice(), &answer));
                            counter.count(unix_seconds(), waited_for.into_iter());
                            item.answer(told(answer));
                        }
                        Ok(None) | Err(_) => {
                            figures.failed(1);
                            item.answer(Err(Fault::Failed));
                            check(model)?;
                        }
                    }
                }
            }
            Ok(())
        }
    }
}

fn told(answer: Answer) -> Result<Vec<f32>, Fault> {
    if answer.is_finite() {
        Ok(answer.probabilities)
    } else {
        Err(Fault::Failed)
    }
}

/// Whether something known can still be computed.
fn check(model: &mut dyn Model) -> Result<(), Failure> {
    guarded(|| model.warm_up()).map_err(|failure| {
        Failure::new(
            failure.reason,
            format!(
                "the device computes nothing any more, so the server ends: {}",
                failure.message
            ),
        )
    })
}

fn predict(model: &mut dyn Model, rows: &[Vec<i64>]) -> Result<Vec<Answer>, Failure> {
    let answers = guarded(|| model.predict(rows))?;
    if answers.len() == rows.len() {
        Ok(answers)
    } else {
        let message = format!("{} answers for {} rows", answers.len(), rows.len());
        Err(Failure::new(FailureReason::InternalError, message))
    }
}

/// Turns a panic into a failure. The panic hook has logged its place.
fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // A model keeps nothing between two calls that a panic could leave half-done.
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Failure::new(FailureReason::InternalError, "the model panicked")))
}

#[cfg(test)]
mod tests {
    use flywheel_contract::scalar::Digest;

    use super::*;

    #[tokio::test]
    async fn an_end_in_order_leaves_no_mark_but_that_of_a_batch_that_never_ends() {
        let scratch = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(&"a".repeat(64));
        let file = scratch.path().join("computing").join(digest.hex());
        let heartbeat = Heartbeat::new(0, Arc::new(Mark::open(Some(scratch.path()), &digest, 1).await));
        let marked = || std::fs::read(&file).unwrap() == [1];
        heartbeat.begin();
        heartbeat.leave(Duration::ZERO);
        assert!(marked(), "it counts as stuck");
        heartbeat.leave(Duration::from_secs(3600));
        assert!(!marked());
        heartbeat.begin();
        assert!(marked());
        heartbeat.end();
        assert!(!marked());
    }
}
