//! What a training reads: sources and the pretrained folder, fetched into the scratch folder.

use std::path::{Path, PathBuf};

use flywheel_contract::artifact::{CONFIG_FILE, FILE_MAX_BYTES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use flywheel_contract::dataset::{Dataset, Format, Source};
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::feedback::FILE_SUFFIX;
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_data::{
    DataError, SOURCE_MAX_BYTES, SourceFile, SourceFiles, TOKENIZER_MAX_BYTES, TextTokenizer, VOCABULARY_FILE,
    format_of, join_feedback,
};
use flywheel_learn::EncoderConfig;
use flywheel_store::{Purpose, Store, StoreError, describe};

/// Most files of a folder of feedback.
const FEEDBACK_MAX_FILES: usize = 20_000;
/// Most bytes of `config.json` and `tokenizer_config.json`.
const SMALL_MAX_BYTES: u64 = 1024 * 1024;

/// Fetches every file of a data set.
pub(crate) async fn dataset(store: &Store, dataset: &Dataset, folder: &Path) -> Result<SourceFiles, Failure> {
    let none = Vec::new();
    let all = [
        Some(&dataset.sources),
        dataset.validation.as_ref(),
        dataset.test.as_ref(),
        Some(dataset.golden.as_ref().unwrap_or(&none)),
    ];
    // Formats first: no download is needed to find a wrong suffix.
    for source in all.iter().flatten().copied().flatten() {
        format_of(source.uri.as_str(), source.format)?;
    }
    let names = ["sources", "validation", "test", "golden"];
    let mut fetched = Vec::new();
    for (name, list) in names.into_iter().zip(all) {
        fetched.push(match list {
            Some(list) => Some(set(store, dataset, list, &folder.join(name)).await?),
            None => None,
        });
    }
    let mut fetched = fetched.into_iter();
    let mut next = || fetched.next().flatten();
    Ok(SourceFiles {
        sources: next().unwrap_or_default(),
        validation: next(),
        test: next(),
        golden: next().unwrap_or_default(),
    })
}

async fn set(store: &Store, dataset: &Dataset, sources: &[Source], folder: &Path) -> Result<Vec<SourceFile>, Failure> {
    make(folder).await?;
    let mut files = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let path = folder.join(i.to_string());
        let format = format_of(source.uri.as_str(), source.format)?;
        let digest = if format == Format::Feedback {
            match feedback(store, dataset, source, folder, &i.to_string()).await? {
                Some(digest) => digest,
                None => continue,
            }
        } else {
            let fetched = store
                .get_file(&source.uri, SOURCE_MAX_BYTES, &path)
                .await
                .map_err(|e| e.failure(Purpose::Dataset))?;
            tracing::info!(uri = %source.uri, bytes = fetched.length, digest = %fetched.digest, "source fetched");
            fetched.digest
        };
        files.push(SourceFile {
            name: source.uri.to_string(),
            path,
            format,
            digest,
        });
    }
    Ok(files)
}

/// Fetches what pods kept in the folder of the source, and joins it into the file `name` of `folder`; none where no client judged
/// anything yet, since a training must not fail for that.
async fn feedback(
    store: &Store,
    dataset: &Dataset,
    source: &Source,
    folder: &Path,
    name: &str,
) -> Result<Option<Digest>, Failure> {
    let failure = |e: StoreError| e.failure(Purpose::Dataset);
    let parts = folder.join(format!("{name}.parts"));
    make(&parts).await?;
    let mut days = store.list(&source.uri).await.map_err(failure)?.folders;
    days.sort_unstable();
    let (mut files, mut bytes) = (Vec::new(), 0);
    for day in days {
        let uri = source.uri.join(&day);
        let mut names = store.list(&uri).await.map_err(failure)?.objects;
        names.retain(|name| name.ends_with(FILE_SUFFIX));
        names.sort_unstable();
        for name in names {
            let path = parts.join(files.len().to_string());
            let left = SOURCE_MAX_BYTES.saturating_sub(bytes);
            bytes += store
                .get_file(&uri.join(&name), left, &path)
                .await
                .map_err(failure)?
                .length;
            files.push(path);
            if files.len() > FEEDBACK_MAX_FILES {
                return Err(Failure::new(
                    FailureReason::DatasetInvalid,
                    format!(
                        "{} holds more than {FEEDBACK_MAX_FILES} files, the most that is read; remove folders of old days",
                        source.uri
                    ),
                ));
            }
        }
    }
    let (out, count) = (folder.join(name), files.len());
    let columns = (dataset.text_column.clone(), dataset.label_column.clone());
    let joined = tokio::task::spawn_blocking(move || join_feedback(&files, &out, &columns.0, &columns.1));
    let joined = joined
        .await
        .map_err(|e| Failure::new(FailureReason::InternalError, format!("joining feedback: {e}")))??;
    let _ = tokio::fs::remove_dir_all(&parts).await;
    tracing::info!(
        uri = %source.uri,
        files = count,
        rows = joined.rows,
        unjudged = joined.unjudged,
        unreadable = joined.unreadable,
        "feedback joined"
    );
    if joined.rows == 0 {
        return Ok(None);
    }
    let described = describe(folder, name).await.map_err(failure)?;
    Ok(Some(described.digest))
}

pub(crate) async fn make(folder: &Path) -> Result<(), Failure> {
    tokio::fs::create_dir_all(folder).await.map_err(|e| {
        Failure::new(
            FailureReason::InternalError,
            format!(
                "cannot make {}: {e}; give a writable folder with --scratch",
                folder.display()
            ),
        )
    })
}

/// A pretrained folder on the local disk, checked as far as it can be without tensors.
pub(crate) struct Pretrained {
    pub(crate) folder: PathBuf,
    pub(crate) uri: Uri,
    pub(crate) config: EncoderConfig,
    pub(crate) tokenizer: TextTokenizer,
}

impl Pretrained {
    /// A failure of the learn crate with the user's URI in place of the local folder.
    pub(crate) fn failure(&self, error: &flywheel_learn::Error) -> Failure {
        failure(error, &self.folder, &self.uri)
    }
}

fn failure(error: &flywheel_learn::Error, folder: &Path, uri: &Uri) -> Failure {
    let text = error
        .to_string()
        .replace(&folder.display().to_string(), uri.as_str().trim_end_matches('/'));
    Failure::new(error.reason(), text)
}

/// Fetches and checks a pretrained folder: the small files first, so that what is wrong with them is told before the
/// weights come.
pub(crate) async fn pretrained(
    store: &Store,
    uri: &Uri,
    max_length: i32,
    folder: &Path,
) -> Result<Pretrained, Failure> {
    make(folder).await?;
    let optional = async |name: &str, max: u64| match store.get_file(&uri.join(name), max, &folder.join(name)).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.failure(Purpose::Pretrained)),
    };
    let missing = |name: &str, more: &str| {
        Failure::new(
            FailureReason::PretrainedNotFound,
            format!(
                "{} does not exist; model.pretrained.uri must name a folder in Hugging Face's layout with it{more}",
                uri.join(name)
            ),
        )
    };
    if !optional(CONFIG_FILE, SMALL_MAX_BYTES).await? {
        return Err(missing(CONFIG_FILE, ""));
    }
    let config = EncoderConfig::read(folder).map_err(|e| failure(&e, folder, uri))?;
    let max_length = usize::try_from(max_length).unwrap_or(0);
    if max_length > config.max_length() {
        return Err(Failure::new(
            FailureReason::ConfigInvalid,
            format!(
                "hyperparameters.maxLength is {max_length}, but the model of {uri} reads at most {} tokens; set it to that or less",
                config.max_length()
            ),
        ));
    }
    let has_tokenizer = optional(TOKENIZER_FILE, TOKENIZER_MAX_BYTES).await?;
    let has_vocabulary = optional(VOCABULARY_FILE, TOKENIZER_MAX_BYTES).await?;
    if !has_tokenizer && !has_vocabulary {
        return Err(Failure::new(
            FailureReason::TokenizerMissing,
            format!(
                "{uri} holds neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}; copy the tokenizer's files beside {CONFIG_FILE}"
            ),
        ));
    }
    optional(TOKENIZER_CONFIG_FILE, SMALL_MAX_BYTES).await?;
    let vocabulary_size = usize::try_from(config.vocab_size).unwrap_or(0);
    let tokenizer = TextTokenizer::load(folder, max_length, vocabulary_size).map_err(|e: DataError| {
        let failure = Failure::from(e);
        Failure::new(failure.reason, format!("{uri}: {}", failure.message))
    })?;
    if !optional(WEIGHTS_FILE, FILE_MAX_BYTES).await? {
        return Err(missing(
            WEIGHTS_FILE,
            " (weights of another format, such as pytorch_model.bin, are never loaded: convert them to safetensors)",
        ));
    }
    Ok(Pretrained {
        folder: folder.to_owned(),
        uri: uri.clone(),
        config,
        tokenizer,
    })
}
