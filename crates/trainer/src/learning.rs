//! The tensor thread: everything that touches libtorch runs here, one call after the other.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{DATA_PROFILE_FILE, EVALUATION_SAMPLE_FILE, EvaluationItem, EvaluationSample};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::progress::Phase;
use flywheel_contract::scalar::{Device, Metric};
use flywheel_contract::trainer::EpochReport;
use flywheel_data::{EncodedSet, profile};
use flywheel_learn::evaluate::Evaluation;
use flywheel_learn::train::{Epoch, Observer, Settings, Step, evaluate, fit, outputs};
use flywheel_learn::{Classifier, Task, TextClassification, artifact, device};

use crate::inputs::Pretrained;
use crate::tracker::{StepSeen, Tracker};

/// Most texts in the evaluation sample.
const SAMPLE_TEXTS: usize = 64;
/// Texts in one batch of evaluation; no gradients are kept, so it may be larger than a training batch.
const EVALUATION_BATCH: usize = 64;
/// Largest difference between a probability before writing and after loading the artifact again.
const SAME_ANSWER: f32 = 1e-3;

/// All that the thread needs.
pub(crate) struct Work {
    pub(crate) device: Device,
    pub(crate) settings: Settings,
    pub(crate) dropout: f64,
    pub(crate) pretrained: Pretrained,
    pub(crate) labels: Vec<String>,
    pub(crate) train: EncodedSet,
    pub(crate) validation: EncodedSet,
    pub(crate) test: EncodedSet,
    pub(crate) golden: EncodedSet,
    /// Texts of the test set for the evaluation sample; empty where texts are kept out.
    pub(crate) sample_texts: Vec<String>,
    /// Folder for the artifact, which exists.
    pub(crate) folder: PathBuf,
}

/// What came out; the artifact's files but the manifest lie in the folder.
pub(crate) struct Learned {
    pub(crate) files: Vec<String>,
    pub(crate) architecture: &'static str,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) epochs: Vec<EpochReport>,
    pub(crate) best_epoch: u32,
    pub(crate) confusion: Vec<Vec<u64>>,
    pub(crate) steps: u64,
    pub(crate) train_seconds: f64,
}

/// Runs a function on a thread of its own and waits for it without holding the runtime up.
pub(crate) async fn on_thread<T: Send + 'static>(
    tracker: &Arc<Tracker>,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let internal = |text: String| Failure::new(FailureReason::InternalError, text);
    let busy = Arc::clone(tracker);
    tracker.set_busy(true);
    std::thread::Builder::new()
        .name("tensors".to_owned())
        .spawn(move || {
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            device::set_threads(threads);
            let result = work();
            busy.set_busy(false);
            // Nobody waits any more where the training was interrupted.
            let _ = send.send(result);
        })
        .map_err(|e| internal(format!("no thread for tensors: {e}")))?;
    receive
        .await
        .map_err(|_| internal("the tensor thread ended without an answer; please report it".to_owned()))?
}

/// Checks that the device can be used.
pub(crate) fn check_device(wanted: Device) -> Result<(), Failure> {
    let failure = |e: flywheel_learn::Error| Failure::new(e.reason(), e.to_string());
    device::check_library().map_err(failure)?;
    device::resolve(wanted).map_err(failure)?;
    Ok(())
}

struct Watch {
    tracker: Arc<Tracker>,
    epochs: Vec<EpochReport>,
}

impl Watch {
    fn flow(&self) -> ControlFlow<()> {
        if self.tracker.stopped() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Observer<Evaluation> for Watch {
    fn step(&mut self, step: &Step) -> ControlFlow<()> {
        self.tracker.step(&StepSeen {
            step: step.step,
            total_steps: step.total_steps,
            epoch: step.epoch,
            loss: step.loss,
            learning_rate: step.learning_rate,
            examples: step.examples,
        });
        self.flow()
    }

    fn epoch(&mut self, epoch: &Epoch<'_, Evaluation>) -> ControlFlow<()> {
        let v = epoch.validation;
        self.tracker
            .validated(epoch.epoch, epoch.train_loss, v.loss, v.accuracy, epoch.best);
        self.epochs.push(EpochReport {
            epoch: epoch.epoch,
            train_loss: epoch.train_loss,
            validation_loss: v.loss,
            validation_accuracy: v.accuracy,
            validation_macro_f1: v.macro_f1,
        });
        self.flow()
    }
}

/// Trains, evaluates, and writes the artifact's files.
pub(crate) fn learn(work: &Work, tracker: &Arc<Tracker>) -> Result<Learned, Failure> {
    let failure = |e: flywheel_learn::Error| work.pretrained.failure(&e);
    let device = device::resolve(work.device).map_err(failure)?;
    let tokens = work.pretrained.tokenizer.tokens();
    let made = artifact::pretrained(
        &work.pretrained.folder,
        work.labels.len(),
        tokens,
        work.dropout,
        work.settings.seed,
        device,
    )
    .map_err(failure)?;
    let task = TextClassification::new(made.network);

    tracker.phase(Phase::Training);
    let mut watch = Watch {
        tracker: Arc::clone(tracker),
        epochs: Vec::new(),
    };
    let start = Instant::now();
    let outcome = fit(&task, &work.train, &work.validation, &work.settings, &mut watch).map_err(failure)?;
    let train_seconds = start.elapsed().as_secs_f64();

    tracker.phase(Phase::Evaluating);
    let logits = outputs(&task, &work.test, EVALUATION_BATCH).map_err(failure)?;
    let test = task.report(&work.test, &logits).map_err(failure)?;
    let mut metrics = outcome.validation.metrics("validation");
    metrics.extend(test.metrics("test"));
    if !work.golden.is_empty() {
        metrics.extend(
            evaluate(&task, &work.golden, EVALUATION_BATCH)
                .map_err(failure)?
                .metrics("golden"),
        );
    }
    let answers: Vec<Vec<f32>> = logits.iter().map(|row| softmax(row)).collect();

    let mut files =
        artifact::write(&work.folder, task.network(), &work.labels, &work.pretrained.folder).map_err(failure)?;
    for path in work.pretrained.tokenizer.save(&work.folder)? {
        files.extend(path.file_name().map(|n| n.to_string_lossy().into_owned()));
    }
    json(
        work,
        DATA_PROFILE_FILE,
        &profile(&work.test, &answers, work.labels.len()),
        &mut files,
    )?;

    // The artifact is loaded again and must answer as the network did: what is uploaded is known to work.
    let rows: Vec<Vec<i64>> = work.test.ids.iter().take(SAMPLE_TEXTS).cloned().collect();
    let again = Classifier::load(&work.folder, device)
        .and_then(|c| c.predict(&rows))
        .map_err(failure)?;
    let differs = again
        .iter()
        .flatten()
        .zip(answers.iter().flatten())
        .any(|(a, b)| (a - b).abs() > SAME_ANSWER || a.is_nan());
    if differs {
        return Err(Failure::new(
            FailureReason::InternalError,
            "the artifact, loaded again, does not answer as the trained network does; please report it",
        ));
    }
    if !work.sample_texts.is_empty() {
        let items = work.sample_texts.iter().zip(&work.test.labels).zip(again);
        let sample = EvaluationSample {
            schema_version: SCHEMA_VERSION,
            items: items
                .map(|((text, label), probabilities)| EvaluationItem {
                    text: text.clone(),
                    label: u32::try_from(*label).unwrap_or(u32::MAX),
                    probabilities,
                })
                .collect(),
        };
        json(work, EVALUATION_SAMPLE_FILE, &sample, &mut files)?;
    }
    files.sort();
    files.dedup();
    Ok(Learned {
        files,
        architecture: work.pretrained.config.architecture.model_type(),
        metrics,
        epochs: watch.epochs,
        best_epoch: outcome.best_epoch,
        confusion: test.confusion,
        steps: outcome.steps,
        train_seconds,
    })
}

/// Texts of the sample: the first of the test set.
pub(crate) fn sample_of(texts: &[String]) -> Vec<String> {
    texts.iter().take(SAMPLE_TEXTS).cloned().collect()
}

fn json<T: serde::Serialize>(work: &Work, name: &str, value: &T, files: &mut Vec<String>) -> Result<(), Failure> {
    let internal = |text: String| Failure::new(FailureReason::InternalError, text);
    let text = serde_json::to_vec(value).map_err(|e| internal(format!("{name} cannot be written: {e}")))?;
    std::fs::write(work.folder.join(name), text).map_err(|e| internal(format!("{name} cannot be written: {e}")))?;
    files.push(name.to_owned());
    Ok(())
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|x| (x - highest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}
