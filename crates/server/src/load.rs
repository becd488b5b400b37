//! From a configuration to a version that can answer.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flywheel_contract::artifact::{DATA_PROFILE_FILE, Manifest, ManifestFile, WEIGHTS_FILE};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::profile::{Answer, DataProfile};
use flywheel_contract::scalar::{Device, Digest, Precision};
use flywheel_contract::serving::{Agreement, Likeness, ServedVersion, ServingConfig};
use flywheel_data::TextTokenizer;
use flywheel_learn::device::TensorDevice;
use flywheel_learn::loaded::{small_file, too_many_differ, unusable};
use flywheel_learn::{Classifier, Loaded, device, precision};
use flywheel_store::{Purpose, manifest_of_folder};

use crate::agreement::Seen;
use crate::apart::apart;
use crate::fetch::Fetch;
use crate::memory;
use crate::model::{Encode, LoadedVersion, Model};
use crate::run::Options;

/// Lengths of the rows that a worker computes before its first request, in tokens: libtorch prepares kernels by shape.
const WARM_UP_LENGTHS: [usize; 3] = [8, 32, 128];

/// Memory that loading takes at its peak, in lengths of the file of weights: as they are stored, and as they are computed with.
const WEIGHTS_WHILE_LOADING: u64 = 2;
/// Longest file of a data profile, bytes: one with ten thousand labels is a tenth of that.
const MAX_PROFILE_BYTES: u64 = 2 * 1024 * 1024;

/// A version whose artifact is in the cache and what its digest says.
pub(crate) struct Fetched {
    folder: PathBuf,
    manifest: Manifest,
}

/// Fetches and checks the artifact of a version. `beside`: another one answers meanwhile, which must not suffer.
pub(crate) async fn fetch(
    config: &ServingConfig,
    options: &Options,
    version: &ServedVersion,
    beside: bool,
) -> Result<Fetched, Failure> {
    let device = config.device;
    // Before the download, which may be long and for nothing.
    apart(false, move || {
        device::check_library()
            .and_then(|()| device::resolve(device, 0))
            .map(drop)
            .map_err(Failure::from)
    })
    .await?;
    let start = Instant::now();
    let (folder, manifest) = Fetch {
        artifact: &version.artifact,
        storage: &config.storage,
        scratch: &options.scratch,
        limits: options.storage_limits,
        tries: options.load_tries,
        beside,
    }
    .run()
    .await?;
    tracing::info!(
        version = version.name, uri = %version.artifact.uri, seconds = start.elapsed().as_secs_f64(),
        "the artifact is here and what its digest says"
    );
    Ok(Fetched { folder, manifest })
}

/// Builds it. `beside`: as of [`fetch`]. `likened`: the version whose answers its own are compared with, which is in the cache.
pub(crate) async fn build(
    config: &ServingConfig,
    fetched: Fetched,
    beside: bool,
    likened: Option<Likened>,
) -> Result<LoadedVersion, Failure> {
    let (device, wanted) = (config.device, config.precision);
    let Fetched { folder, manifest } = fetched;
    if beside && device == Device::Cpu {
        fits(&manifest.files, memory::left())?;
    }
    apart(beside, move || {
        network(&folder, &manifest, device, wanted, likened.as_ref())
    })
    .await
}

/// A version in the cache whose answers another one's are compared with.
pub(crate) struct Likened {
    pub folder: PathBuf,
    pub digest: Digest,
}

/// Whether a version can be loaded beside another one: an end for lack of memory would take that one along.
fn fits(files: &[ManifestFile], left: Option<u64>) -> Result<(), Failure> {
    let weights = files.iter().filter(|file| file.name == WEIGHTS_FILE);
    let needed = WEIGHTS_WHILE_LOADING * weights.map(|file| file.length).sum::<u64>();
    match left {
        Some(left) if left < needed => {
            let mebibytes = |bytes: u64| bytes.div_ceil(1024 * 1024);
            Err(Failure::new(
                FailureReason::OutOfMemory,
                format!(
                    "loading it beside the version that answers takes about {} MiB and {} MiB are left; raise \
                     server.resources.limits.memory",
                    mebibytes(needed),
                    mebibytes(left)
                ),
            ))
        }
        _ => Ok(()),
    }
}

fn network(
    folder: &Path,
    manifest: &Manifest,
    device: Device,
    wanted: Precision,
    likened: Option<&Likened>,
) -> Result<LoadedVersion, Failure> {
    let (workers, batch_tokens) = match device {
        // A core computes one batch at a time; more threads would only share it. Larger batches compute no faster per row
        // there, and make those behind them wait.
        Device::Cpu => (std::thread::available_parallelism().map_or(1, NonZero::get), 256),
        // One stream of kernels; rows wait for batches, not for each other. Its batches were not measured yet.
        Device::Cuda => (1, 8192),
    };
    let profile = profile(folder, manifest)?;
    let device = device::resolve(device, 0).map_err(Failure::from)?;
    let chosen = precision::choose(wanted, device).map_err(Failure::from)?;
    let network = Network::load(folder, manifest, device, chosen)?;
    let network = match network.unfit() {
        None => network,
        Some(why) if wanted == Precision::Auto => {
            tracing::warn!(reason = why, "computing in single precision instead");
            Network::load(folder, manifest, device, Precision::Float32)?
        }
        Some(why) => {
            return Err(Failure::new(
                FailureReason::PrecisionUnfit,
                format!("{why}; set spec.server.precision to Float32, or to Auto, which falls back to it"),
            ));
        }
    };
    tracing::info!(
        precision = ?network.precision,
        texts = network.agreement.map(|a| a.texts),
        same = network.agreement.map(|a| a.same),
        "labels of the evaluation sample compared with those in single precision"
    );
    let likeness = likened.and_then(|other| network.likeness(other));
    // A text that any tokenizer can read; the worker's known rows are made of it.
    let known = network.loaded.tokenizer.encode("warm up").map_err(Failure::from)?.ids;
    let lengths = WARM_UP_LENGTHS.map(|length| length.min(network.loaded.max_length));
    let models = (0..workers)
        .map(|_| {
            Box::new(TorchModel {
                classifier: network.loaded.classifier.worker(),
                projects: !profile.projections.is_empty(),
                known: lengths
                    .map(|length| known.iter().copied().cycle().take(length).collect())
                    .into(),
            }) as Box<dyn Model>
        })
        .collect();
    Ok(LoadedVersion {
        labels: manifest.labels.clone(),
        encoder: Arc::new(Tokenizer(network.loaded.tokenizer)),
        precision: network.precision,
        agreement: network.agreement,
        likeness,
        profile,
        batch_tokens,
        models,
    })
}

/// The artifact's data profile; without one, the bins that every version has.
fn profile(folder: &Path, manifest: &Manifest) -> Result<DataProfile, Failure> {
    let Some(bytes) = small_file(folder, manifest, DATA_PROFILE_FILE, MAX_PROFILE_BYTES)? else {
        return Ok(DataProfile::new(manifest.labels.len()));
    };
    let profile: DataProfile = serde_json::from_slice(&bytes).map_err(|e| unusable(DATA_PROFILE_FILE, e))?;
    profile
        .check(manifest.labels.len())
        .map_err(|why| unusable(DATA_PROFILE_FILE, why))?;
    Ok(profile)
}

/// An artifact's network in some precision.
struct Network {
    loaded: Loaded,
    precision: Precision,
    agreement: Option<Agreement>,
}

impl Network {
    /// Answers the texts of another version's evaluation sample. `None` where it has none, or none that can be read: that says nothing
    /// against this version.
    fn likeness(&self, other: &Likened) -> Option<Likeness> {
        let compared = || {
            let theirs = manifest_of_folder(&other.folder, &other.digest).map_err(|e| e.failure(Purpose::Artifact))?;
            self.loaded.reproduce(&other.folder, &theirs)
        };
        let reproduced = compared().unwrap_or_else(|failure: Failure| {
            tracing::warn!(
                message = failure.message,
                "the version that answers has no sample that can be answered"
            );
            None
        })?;
        let agreement = Agreement {
            texts: reproduced.texts,
            same: reproduced.same,
        };
        tracing::info!(
            agreement.texts,
            agreement.same,
            "labels compared with those of the version that answers"
        );
        Some(Likeness {
            to: other.digest.clone(),
            agreement,
        })
    }

    fn load(folder: &Path, manifest: &Manifest, device: TensorDevice, precision: Precision) -> Result<Self, Failure> {
        let loaded = Loaded::load(folder, manifest, device, precision)?;
        let seen = Seen::new(folder, device, precision);
        let agreement = match seen.as_ref().and_then(Seen::read) {
            Some(agreement) => Some(agreement),
            None => {
                let reproduced = loaded.reproduce(folder, manifest)?;
                let agreement = reproduced.map(|r| Agreement {
                    texts: r.texts,
                    same: r.same,
                });
                if let (Some(seen), Some(agreement)) = (seen, agreement) {
                    seen.write(agreement);
                }
                agreement
            }
        };
        Ok(Self {
            loaded,
            precision,
            agreement,
        })
    }

    /// Why it may not answer in its precision.
    fn unfit(&self) -> Option<String> {
        let Agreement { texts, same } = self.agreement?;
        let (differ, most) = too_many_differ(texts, same).filter(|_| self.precision != Precision::Float32)?;
        Some(format!(
            "in {:?}, {differ} of the {texts} texts of the evaluation sample get another label than in single precision, \
             {most} may",
            self.precision
        ))
    }
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
    /// Whether texts are counted by their projections.
    projects: bool,
    /// Rows to compute without a request, each in a batch of its own.
    known: Vec<Vec<i64>>,
}

impl Model for TorchModel {
    fn warm_up(&mut self) -> Result<(), Failure> {
        // Workers are as many as cores, so each has one.
        device::set_threads(1);
        for row in &self.known {
            let answers = self
                .classifier
                .predict(std::slice::from_ref(row))
                .map_err(Failure::from)?;
            if !answers.iter().flatten().all(|p| p.is_finite()) {
                return Err(Failure::new(
                    FailureReason::WeightsInvalid,
                    "the model answers with values that are no numbers; its weights are broken, train again",
                ));
            }
        }
        Ok(())
    }

    fn predict(&mut self, rows: &[Vec<i64>]) -> Result<Vec<Answer>, Failure> {
        if self.projects {
            return self.classifier.predict_and_project(rows).map_err(Failure::from);
        }
        let answers = self.classifier.predict(rows).map_err(Failure::from)?.into_iter();
        let unprojected = answers.map(|probabilities| Answer {
            probabilities,
            projections: None,
        });
        Ok(unprojected.collect())
    }
}

#[cfg(test)]
mod tests {
    use flywheel_contract::scalar::Digest;

    use super::*;

    #[test]
    fn a_version_that_does_not_fit_beside_another_is_refused_before_it_is_loaded() {
        let file = |name: &str, length| ManifestFile {
            name: name.to_owned(),
            length,
            digest: Digest::sha256(&"0".repeat(64)),
        };
        // What is no weights does not count.
        let files = [file(WEIGHTS_FILE, 100), file("config.json", 1 << 40)];
        for (left, fits) in [(None, true), (Some(200), true), (Some(199), false), (Some(0), false)] {
            let outcome = super::fits(&files, left);
            assert_eq!(outcome.is_ok(), fits, "{left:?}");
            if let Err(failure) = outcome {
                assert_eq!(failure.reason, FailureReason::OutOfMemory);
                assert!(failure.message.contains("limits.memory"), "{failure}");
            }
        }
    }
}
