//! From texts to probabilities: permit, tokens, queue, workers, deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Precision;
use flywheel_contract::serving::{Agreement, Likeness, ServingLimits};
use flywheel_wire::error::{ErrorReason, Refusal};
use flywheel_wire::predict::{MAX_TEXTS, too_many_texts};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::figures::Figures;
use crate::marks::Mark;
use crate::metrics::Metrics;
use crate::model::{Encode, LoadedVersion};
use crate::pace::Pace;
use crate::profile::Counter;
use crate::queue::{Fault, Item, Queue};
use crate::worker::{self, Heartbeat, Place};

/// A loaded version with its workers. Dropping it lets them go.
pub(crate) struct Engine {
    labels: Vec<String>,
    precision: Precision,
    agreement: Option<Agreement>,
    likeness: Option<Likeness>,
    encoder: Arc<dyn Encode>,
    queue: Arc<Queue>,
    pace: Arc<Pace>,
    figures: Arc<Figures>,
    permits: Arc<Semaphore>,
    most: usize,
    timeout: Duration,
    mark: Arc<Mark>,
    heartbeats: Vec<Arc<Heartbeat>>,
}

impl Engine {
    /// Starts one worker per copy of the model, each with a counter, and waits until all are warm. `broken` is told when a
    /// device works no more.
    pub async fn start(
        version: LoadedVersion,
        mark: Mark,
        counters: Vec<Counter>,
        limits: &ServingLimits,
        metrics: &Arc<Metrics>,
        broken: &mpsc::Sender<Failure>,
    ) -> Result<Self, Failure> {
        let most = limits.max_concurrency as usize;
        let mut engine = Self {
            labels: version.labels,
            precision: version.precision,
            agreement: version.agreement,
            likeness: version.likeness,
            encoder: version.encoder,
            queue: Arc::new(Queue::new(version.batch_tokens)),
            pace: Arc::new(Pace::new(version.batch_tokens)),
            figures: Arc::default(),
            permits: Arc::new(Semaphore::new(most)),
            most,
            timeout: Duration::from_millis(limits.timeout_milliseconds.into()),
            mark: Arc::new(mark),
            heartbeats: Vec::new(),
        };
        let workers = version.models.len();
        let internal = |message: String| Failure::new(FailureReason::InternalError, message);
        let (ready, mut outcomes) = mpsc::channel(workers.max(1));
        for (index, counting) in version.models.into_iter().zip(counters).enumerate() {
            let beat = Arc::new(Heartbeat::new(index, Arc::clone(&engine.mark)));
            let place = Place {
                queue: Arc::clone(&engine.queue),
                pace: Arc::clone(&engine.pace),
                figures: Arc::clone(&engine.figures),
                metrics: Arc::clone(metrics),
            };
            worker::start(&beat, counting, place, ready.clone(), broken.clone())
                .map_err(|e| internal(format!("cannot start a worker thread: {e}")))?;
            engine.heartbeats.push(beat);
        }
        drop(ready);
        for _ in 0..workers {
            outcomes
                .recv()
                .await
                .unwrap_or_else(|| Err(internal("a worker thread ended before it was warm".to_owned())))?;
        }
        Ok(engine)
    }

    /// Labels by class index.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Format in which the model computes.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How its answers compare with those in single precision.
    pub fn agreement(&self) -> Option<Agreement> {
        self.agreement
    }

    /// How they compare with those of the version that answered when it was loaded.
    pub fn likeness(&self) -> Option<&Likeness> {
        self.likeness.as_ref()
    }

    /// What it did.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Probabilities for each text, in order. Dropping the future drops the work that no worker has begun. `deadline`: the
    /// client's own, where it has one; the service's timeout counts from now.
    ///
    /// # Errors
    /// [`ErrorReason::TooManyTexts`], [`ErrorReason::TooManyRequests`] at once when full,
    /// [`ErrorReason::DeadlineExceeded`], [`ErrorReason::InternalError`].
    pub async fn predict(&self, texts: Vec<String>, deadline: Option<Instant>) -> Result<Vec<Vec<f32>>, Refusal> {
        let count = texts.len();
        let most = self.most.min(MAX_TEXTS);
        if count > most {
            // It would be answered 429 for ever.
            return Err(too_many_texts(count, most));
        }
        let (busy, limit) = (self.in_flight(), self.limit());
        // The permits bound what is taken at once; the pace, what can be answered in time.
        let permit = u32::try_from(count)
            .ok()
            .filter(|_| busy == 0 || busy + count <= limit)
            .and_then(|n| Arc::clone(&self.permits).try_acquire_many_owned(n).ok())
            .ok_or_else(|| {
                // It is this version that is too slow for what it is asked.
                self.figures.failed(count);
                let message = format!(
                    "{busy} texts wait or are computed, and {limit} are what this pod takes at its pace; try again later"
                );
                Refusal::new(ErrorReason::TooManyRequests, message)
            })?;
        let latest = Instant::now() + self.timeout;
        let deadline = deadline.map_or(latest, |own| own.min(latest));
        let answer = tokio::time::timeout_at(deadline.into(), self.compute(texts, permit, deadline))
            .await
            .unwrap_or_else(|_| Err(self.too_late()));
        // That a client would not wait longer says nothing of the version.
        if deadline == latest && matches!(&answer, Err(refusal) if refusal.reason == ErrorReason::DeadlineExceeded) {
            self.figures.failed(count);
        }
        answer
    }

    async fn compute(
        &self,
        texts: Vec<String>,
        mut permit: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<Vec<Vec<f32>>, Refusal> {
        let (encoder, count) = (Arc::clone(&self.encoder), texts.len());
        // The permit travels with the work: it is not given back while a blocking thread still tokenises.
        let encoded = tokio::task::spawn_blocking(move || {
            let mut rows = Vec::with_capacity(texts.len());
            for text in &texts {
                if Instant::now() >= deadline {
                    return Ok(None);
                }
                rows.push(encoder.encode(text)?);
            }
            Ok::<_, String>(Some((rows, {
                let count = texts.len();
                (0..count).filter_map(|_| permit.split(1)).collect::<Vec<_>>()
            })))
        })
        .await;
        let (rows, permits) = match encoded {
            Ok(Ok(Some(encoded))) => encoded,
            Ok(Ok(None)) => return Err(self.too_late()),
            refused => {
                // Of a panic the hook has logged the place.
                if let Ok(Err(message)) = refused {
                    tracing::error!(message, "the tokenizer refused a text");
                }
                self.figures.failed(count);
                return Err(failed());
            }
        };
        let mut replies = Vec::with_capacity(rows.len());
        let mut items = Vec::with_capacity(rows.len());
        for (row, permit) in rows.into_iter().zip(permits) {
            let (reply, receiver) = oneshot::channel();
            replies.push(receiver);
            items.push(Item {
                row,
                deadline,
                reply,
                permit,
            });
        }
        if !self.queue.push(items) {
            return Err(failed());
        }
        let mut answers = Vec::with_capacity(replies.len());
        for reply in replies {
            match reply.await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(Fault::Expired)) => return Err(self.too_late()),
                Ok(Err(Fault::Failed)) | Err(_) => return Err(failed()),
            }
        }
        Ok(answers)
    }

    fn too_late(&self) -> Refusal {
        Refusal::new(
            ErrorReason::DeadlineExceeded,
            format!(
                "no answer within {} ms, the service's timeoutMilliseconds, or the request's own shorter time",
                self.timeout.as_millis()
            ),
        )
    }

    /// Texts that wait for a worker.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// Texts that are taken at once: as many as are allowed, or fewer where the workers are too slow for them.
    pub fn limit(&self) -> usize {
        let paced = self.pace.limit(self.timeout, self.heartbeats.len());
        paced.map_or(self.most, |limit| limit.min(self.most))
    }

    /// Texts that wait or are computed.
    pub fn in_flight(&self) -> usize {
        self.most.saturating_sub(self.permits.available_permits())
    }

    /// Its workers.
    pub fn workers(&self) -> usize {
        self.heartbeats.len()
    }

    /// Whether its version is one beside the stable one.
    pub fn set_beside(&self, beside: bool) {
        self.mark.set_beside(beside);
    }

    /// The process ends, and not by what its workers compute, unless a batch has taken so long.
    pub fn leave(&self, stuck: Duration) {
        self.mark.set_beside(false);
        for heartbeat in &self.heartbeats {
            heartbeat.leave(stuck);
        }
    }

    /// How long the longest batch has been computed so far.
    pub fn longest_batch(&self) -> Duration {
        self.heartbeats.iter().map(|b| b.busy()).max().unwrap_or_default()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn failed() -> Refusal {
    Refusal::new(
        ErrorReason::InternalError,
        "the model could not compute this request; the pod's log says why",
    )
}
