//! From a configuration to a version that can answer.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use flywheel_contract::artifact::Manifest;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Device;
use flywheel_contract::serving::{LoadState, ServingConfig};
use flywheel_data::TextTokenizer;
use flywheel_learn::{Classifier, device};

use crate::app::App;
use crate::fetch::Fetch;
use crate::model::{Encode, LoadedVersion, Model};
use crate::run::Options;

/// Lengths of the rows that a worker computes before its first request, in tokens: libtorch prepares kernels by shape.
const WARM_UP_LENGTHS: [usize; 3] = [8, 32, 128];

/// Fetches, checks and builds the version of the configuration.
pub(crate) async fn load(app: &App, config: &ServingConfig, options: &Options) -> Result<LoadedVersion, Failure> {
    let device = config.device;
    // Before the download, which may be long and for nothing.
    blocking(move || {
        device::check_library()
            .and_then(|()| device::resolve(device, 0))
            .map(drop)
            .map_err(failure)
    })
    .await?;
    app.set_load(LoadState::Downloading, None);
    let start = Instant::now();
    let (folder, manifest) = Fetch {
        artifact: &config.version.artifact,
        storage: &config.storage,
        scratch: &options.scratch,
        limits: options.storage_limits,
        tries: options.load_tries,
    }
    .run()
    .await?;
    tracing::info!(
        version = config.version.name, uri = %config.version.artifact.uri, seconds = start.elapsed().as_secs_f64(),
        "the artifact is here and what its digest says"
    );
    app.set_load(LoadState::Loading, None);
    let workers = match device {
        // A core computes one batch at a time; more threads would only share it.
        Device::Cpu => std::thread::available_parallelism().map_or(1, NonZero::get),
        // One stream of kernels; rows wait for batches, not for each other.
        Device::Cuda => 1,
    };
    blocking(move || build(&folder, &manifest, device, workers)).await
}

/// Runs what blocks outside the async threads. A panic in there is a failure.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(internal("loading panicked; the log says where")))
}

fn build(folder: &Path, manifest: &Manifest, device: Device, workers: usize) -> Result<LoadedVersion, Failure> {
    let classifier = device::resolve(device, 0)
        .and_then(|device| Classifier::load(folder, device))
        .map_err(failure)?;
    if classifier.labels() != manifest.labels {
        return Err(Failure::new(
            FailureReason::ManifestInvalid,
            "the labels of manifest.json and of config.json differ; train again, or write the artifact again",
        ));
    }
    let reads = classifier.max_length();
    let max_length = usize::try_from(manifest.max_length).unwrap_or(0).min(reads);
    let vocabulary = usize::try_from(classifier.config().vocab_size).unwrap_or(0);
    let tokenizer = TextTokenizer::load(folder, max_length, vocabulary).map_err(Failure::from)?;
    // A text that any tokenizer can read; the worker's known rows are made of it.
    let known = tokenizer.encode("warm up").map_err(Failure::from)?.ids;
    let models = (0..workers)
        .map(|_| {
            Ok(Box::new(TorchModel {
                classifier: classifier.worker().map_err(failure)?,
                known: WARM_UP_LENGTHS
                    .iter()
                    .map(|length| known.iter().copied().cycle().take((*length).min(max_length)).collect())
                    .collect(),
            }) as Box<dyn Model>)
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(LoadedVersion {
        labels: manifest.labels.clone(),
        encoder: Arc::new(Tokenizer(tokenizer)),
        models,
    })
}

struct Tokenizer(TextTokenizer);

impl Encode for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<i64>, String> {
        self.0
            .encode(text)
            .map(|encoded| encoded.ids)
            .map_err(|e| e.to_string())
    }
}

struct TorchModel {
    classifier: Classifier,
    /// Rows to compute without a request, each in a batch of its own.
    known: Vec<Vec<i64>>,
}

impl Model for TorchModel {
    fn warm_up(&mut self) -> Result<(), Failure> {
        // Workers are as many as cores, so each has one.
        device::set_threads(1);
        for row in &self.known {
            let answers = self.classifier.predict(std::slice::from_ref(row)).map_err(failure)?;
            if !answers.iter().flatten().all(|p| p.is_finite()) {
                return Err(Failure::new(
                    FailureReason::WeightsInvalid,
                    "the model answers with values that are no numbers; its weights are broken, train again",
                ));
            }
        }
        Ok(())
    }

    fn predict(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Vec<f32>>, Failure> {
        self.classifier.predict(rows).map_err(failure)
    }
}

fn failure(error: flywheel_learn::Error) -> Failure {
    Failure::new(error.reason(), error.to_string())
}

fn internal(message: &str) -> Failure {
    Failure::new(FailureReason::InternalError, message)
}
