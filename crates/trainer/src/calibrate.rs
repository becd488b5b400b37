//! An artifact that was trained elsewhere, or before this release: adds what numbers of 8 bits need.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flywheel_contract::artifact::{MANIFEST_FILE, MANIFEST_MAX_BYTES, Manifest};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::scalar::Uri;
use flywheel_contract::storage::StorageSettings;
use flywheel_contract::termination::Verified;
use flywheel_contract::trainer::ArtifactRef;
use flywheel_data::{MAX_ROWS, TextTokenizer, clean_text, format_of, read_rows};
use flywheel_learn::device::{self, TensorDevice};
use flywheel_learn::{EncoderConfig, artifact};
use flywheel_store::{Purpose, Store, describe};

/// What is calibrated, and over what.
#[derive(Clone, Debug)]
pub(crate) struct Calibrate {
    /// The artifact's folder, which is changed.
    pub(crate) artifact: PathBuf,
    /// A file of texts that it was trained on, or of the kind.
    pub(crate) texts: PathBuf,
    /// Its columns with text and label.
    pub(crate) columns: (String, String),
}

fn local(what: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
    let message = format!("cannot {what} {}: {error}", path.display());
    Failure::new(FailureReason::ConfigInvalid, message)
}

impl Calibrate {
    /// Writes the file and then the manifest that lists it: the artifact has another digest from then on.
    pub(crate) async fn run(self) -> Result<(ArtifactRef, Verified), Failure> {
        let failure = |e: flywheel_store::StoreError| e.failure(Purpose::Artifact);
        let folder = std::path::absolute(&self.artifact).map_err(|e| local("find", &self.artifact, e))?;
        let path = folder.join(MANIFEST_FILE);
        let size = tokio::fs::metadata(&path)
            .await
            .map_err(|e| local("read", &path, e))?
            .len();
        if size > MANIFEST_MAX_BYTES {
            return Err(local(
                "read",
                &path,
                format!("{size} bytes, at most {MANIFEST_MAX_BYTES} are read"),
            ));
        }
        let text = tokio::fs::read(&path).await.map_err(|e| local("read", &path, e))?;
        let mut manifest: Manifest = serde_json::from_slice(&text).map_err(|e| local("read", &path, e))?;
        manifest.check().map_err(|e| local("use", &path, e))?;
        let max_length = usize::try_from(manifest.max_length).unwrap_or(0);
        let of = folder.clone();
        let name = tokio::task::spawn_blocking(move || self.compute(&of, max_length))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    FailureReason::InternalError,
                    "it panicked; the log says where",
                ))
            })?;
        let file = describe(&folder, name).await.map_err(failure)?;
        manifest.files.retain(|other| other.name != name);
        manifest.files.push(file);
        manifest.files.sort_by(|a, b| a.name.cmp(&b.name));
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| local("write", &path, e))?;
        tokio::fs::write(&path, &text)
            .await
            .map_err(|e| local("write", &path, e))?;
        let artifact = ArtifactRef {
            uri: Uri(format!("file://{}", folder.display())),
            digest: describe(&folder, MANIFEST_FILE).await.map_err(failure)?.digest,
        };
        let store = Store::new(&StorageSettings::default()).map_err(failure)?;
        let verified = store.verify_artifact(&artifact).await.map_err(failure)?;
        Ok((artifact, verified))
    }

    fn compute(&self, folder: &Path, max_length: usize) -> Result<&'static str, Failure> {
        let failure = |e: flywheel_learn::Error| Failure::new(e.reason(), e.to_string());
        device::check_library().map_err(failure)?;
        device::set_threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let config = EncoderConfig::read(folder).map_err(failure)?;
        let vocabulary = usize::try_from(config.vocab_size).unwrap_or(0);
        let tokenizer = TextTokenizer::load(folder, max_length.min(config.max_length()), vocabulary)?;
        let name = self.texts.display().to_string();
        let mut texts = Vec::new();
        read_rows(
            &self.texts,
            &name,
            format_of(&name, None)?,
            (&self.columns.0, &self.columns.1),
            MAX_ROWS,
            &mut |_, text, _| texts.push(clean_text(text).to_string()),
        )?;
        let rows = texts.iter().map(|text| Ok(tokenizer.encode(text)?.ids));
        let rows = rows.collect::<Result<Vec<_>, flywheel_data::DataError>>()?;
        artifact::calibrate(folder, &rows, TensorDevice::Cpu, &mut || ControlFlow::Continue(())).map_err(failure)
    }
}
