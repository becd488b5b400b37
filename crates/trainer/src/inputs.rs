//! What a training reads: sources and the pretrained folder, fetched into the scratch folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flywheel_contract::artifact::{CONFIG_FILE, FILE_MAX_BYTES, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use flywheel_contract::dataset::{Dataset, Format, Source};
use flywheel_contract::failure::{Failure, FailureClass, FailureReason};
use flywheel_contract::feedback::FILE_SUFFIX;
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::trainer::ArtifactRef;
use flywheel_data::{
    DataError, SOURCE_MAX_BYTES, SourceFile, SourceFiles, TOKENIZER_MAX_BYTES, TextTokenizer, VOCABULARY_FILE,
    format_of, hold_out, join_feedback,
};
use flywheel_learn::EncoderConfig;
use flywheel_store::{Purpose, Store, StoreError, describe, digest_of};
use tokio::task::JoinSet;

/// Most files of a folder of feedback; the newest are read.
const FEEDBACK_MAX_FILES: usize = 20_000;
/// Files of them that are fetched at once.
const FETCHED_AT_ONCE: usize = 16;
/// Most bytes of `config.json` and `tokenizer_config.json`.
const SMALL_MAX_BYTES: u64 = 1024 * 1024;

/// Fetches every file of a data set. `job`: the folder of the TrainingJob, where what is joined of feedback is kept, so that every
/// attempt, and every pod of one, learns the same.
pub(crate) async fn dataset(
    store: &Arc<Store>,
    dataset: &Dataset,
    folder: &Path,
    job: &Uri,
) -> Result<SourceFiles, Failure> {
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
    let (mut fetched, mut newest) = (Vec::new(), Vec::new());
    for (name, list) in names.into_iter().zip(all) {
        fetched.push(match list {
            Some(list) => Some(
                set(
                    store,
                    dataset,
                    list,
                    &folder.join(name),
                    &job.join(&format!("feedback-{name}")),
                    (name == "sources").then_some(&mut newest),
                )
                .await?,
            ),
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
        newest,
    })
}

/// Fetches the files of a set. `newest`: where what is held out of them goes.
async fn set(
    store: &Arc<Store>,
    dataset: &Dataset,
    sources: &[Source],
    folder: &Path,
    kept: &Uri,
    mut newest: Option<&mut Vec<SourceFile>>,
) -> Result<Vec<SourceFile>, Failure> {
    make(folder).await?;
    let mut files = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let path = folder.join(i.to_string());
        let format = format_of(source.uri.as_str(), source.format)?;
        let digest = if format == Format::Feedback {
            let kept = Uri(format!("{kept}-{i}{FILE_SUFFIX}"));
            let Some(digest) = feedback(store, dataset, source, &path, &kept).await? else {
                continue;
            };
            if let Some(newest) = &mut newest {
                newest.extend(held_out(source, folder, i).await?);
            }
            digest
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

/// What is held out of the feedback that lies in the folder as the file of this number: the newest rows, in a file of their own. Its
/// digest, and that of the whole, are those of what is kept beside the result, so all attempts hold out the same.
async fn held_out(source: &Source, folder: &Path, number: usize) -> Result<Option<SourceFile>, Failure> {
    let name = format!("{number}.newest");
    let (rows, path, percent) = (
        folder.join(number.to_string()),
        folder.join(&name),
        source.held_out_percent(),
    );
    let to = path.clone();
    let held = tokio::task::spawn_blocking(move || hold_out(&rows, percent, &to))
        .await
        .map_err(|e| Failure::new(FailureReason::InternalError, format!("holding out feedback: {e}")))??;
    tracing::info!(uri = %source.uri, percent, rows = held, "the newest feedback is held out");
    if held == 0 {
        return Ok(None);
    }
    Ok(Some(SourceFile {
        name: source.uri.to_string(),
        path,
        format: Format::Feedback,
        digest: describe(folder, &name)
            .await
            .map_err(|e| e.failure(Purpose::Dataset))?
            .digest,
    }))
}

/// What pods kept in the folder of the source, joined into a file; none where no client judged anything yet, since a training must
/// not fail for that. The folder grows all the time, so what the first attempt makes of it is kept beside its result and read by all
/// others.
async fn feedback(
    store: &Arc<Store>,
    dataset: &Dataset,
    source: &Source,
    out: &Path,
    kept: &Uri,
) -> Result<Option<Digest>, Failure> {
    let failure = |e: StoreError| e.failure(Purpose::Dataset);
    if store.head(kept).await.map_err(failure)?.is_none() {
        joined(store, dataset, source, out).await?;
        match store.put_file(kept, out).await {
            // Another pod of the attempt was sooner.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.failure(Purpose::Output)),
        }
    }
    let fetched = store.get_file(kept, SOURCE_MAX_BYTES, out).await.map_err(failure)?;
    Ok((fetched.length > 0).then_some(fetched.digest))
}

/// Joins what lies in the folder now, the newest files as far as they are not too many.
async fn joined(store: &Arc<Store>, dataset: &Dataset, source: &Source, out: &Path) -> Result<(), Failure> {
    let failure = |e: StoreError| e.failure(Purpose::Dataset);
    let parts = out.with_extension("parts");
    make(&parts).await?;
    let mut days = store.list(&source.uri).await.map_err(failure)?.folders;
    // Their names are dates.
    days.sort_unstable();
    let mut uris = Vec::new();
    for day in days.iter().rev() {
        let uri = source.uri.join(day);
        let mut names = store.list(&uri).await.map_err(failure)?.objects;
        names.retain(|name| name.ends_with(FILE_SUFFIX));
        names.sort_unstable();
        uris.extend(names.iter().rev().map(|name| uri.join(name)));
        if uris.len() > FEEDBACK_MAX_FILES {
            break;
        }
    }
    let more = uris.len() > FEEDBACK_MAX_FILES;
    uris.truncate(FEEDBACK_MAX_FILES);
    let (mut files, mut bytes, mut full) = (Vec::new(), 0, more);
    for (n, some) in uris.chunks(FETCHED_AT_ONCE).enumerate() {
        let mut fetching = JoinSet::new();
        for (m, uri) in some.iter().cloned().enumerate() {
            let path = parts.join((n * FETCHED_AT_ONCE + m).to_string());
            let store = Arc::clone(store);
            fetching.spawn(async move {
                match store.get_file(&uri, SOURCE_MAX_BYTES, &path).await {
                    Ok(fetched) => Ok(Some((fetched.length, path))),
                    // Its day was over meanwhile.
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            });
        }
        for fetched in fetching.join_all().await {
            if let Some((length, path)) = fetched.map_err(failure)? {
                bytes += length;
                files.push(path);
            }
        }
        if bytes > SOURCE_MAX_BYTES {
            full = true;
            break;
        }
    }
    if full {
        tracing::warn!(uri = %source.uri, files = files.len(), bytes, "older feedback is left out: there is more than is read");
    }
    // In the order in which they were written, whatever came first.
    files.sort_by_key(|path| std::cmp::Reverse(number(path)));
    let (count, out) = (files.len(), out.to_owned());
    let columns = (dataset.text_column.clone(), dataset.label_column.clone());
    let joining = tokio::task::spawn_blocking(move || join_feedback(&files, &out, &columns.0, &columns.1));
    let joined = joining
        .await
        .map_err(|e| Failure::new(FailureReason::InternalError, format!("joining feedback: {e}")))??;
    let _ = tokio::fs::remove_dir_all(&parts).await;
    tracing::info!(
        uri = %source.uri,
        files = count,
        rows = joined.rows,
        unjudged = joined.unjudged,
        rare = joined.rare,
        unreadable = joined.unreadable,
        "feedback joined"
    );
    Ok(())
}

/// The number that is a file's name.
fn number(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.parse().ok()
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
    /// Over the content of its files: sha256 of one line `<name> <sha256>` for each that is there, in the order of the names.
    pub(crate) digest: Digest,
    /// It is a version's artifact, whose labels keep what was learnt of them.
    pub(crate) continued: bool,
}

impl Pretrained {
    /// A failure of the learn crate with the user's URI in place of the local folder.
    pub(crate) fn failure(&self, error: &flywheel_learn::Error) -> Failure {
        failure(error, &self.folder, &self.uri)
    }
}

/// A failure of the learn crate about this local folder, with the user's URI in its place.
pub(crate) fn failure(error: &flywheel_learn::Error, folder: &Path, uri: &Uri) -> Failure {
    let text = error
        .to_string()
        .replace(&folder.display().to_string(), uri.as_str().trim_end_matches('/'));
    Failure::new(error.reason(), text)
}

/// Fetches and checks a pretrained folder: the small files first, so that what is wrong with them is told before the
/// weights come. `max_length`: tokens per text; as many as the model reads where none is given.
pub(crate) async fn pretrained(
    store: &Store,
    uri: &Uri,
    max_length: Option<i32>,
    folder: &Path,
) -> Result<Pretrained, Failure> {
    make(folder).await?;
    let mut digests = BTreeMap::new();
    let mut optional = async |name: &'static str, max: u64| {
        let fetched = store.get_file(&uri.join(name), max, &folder.join(name)).await;
        match fetched {
            Ok(fetched) => {
                digests.insert(name, fetched.digest);
                Ok(true)
            }
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.failure(Purpose::Pretrained)),
        }
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
    let (config, max_length) = config_of(folder, uri, max_length)?;
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
    let tokenizer = tokenizer_of(folder, uri, max_length, &config)?;
    if !optional(WEIGHTS_FILE, FILE_MAX_BYTES).await? {
        return Err(missing(
            WEIGHTS_FILE,
            " (weights of another format, such as pytorch_model.bin, are never loaded: convert them to safetensors)",
        ));
    }
    let lines: String = digests
        .iter()
        .map(|(name, digest)| format!("{name} {digest}\n"))
        .collect();
    Ok(Pretrained {
        folder: folder.to_owned(),
        uri: uri.clone(),
        config,
        tokenizer,
        digest: digest_of(lines.as_bytes()),
        continued: false,
    })
}

/// Fetches the artifact of the version to go on from.
pub(crate) async fn base(
    store: &Store,
    artifact: &ArtifactRef,
    max_length: i32,
    folder: &Path,
) -> Result<Pretrained, Failure> {
    make(folder).await?;
    let uri = &artifact.uri;
    store.download_artifact(artifact, folder).await.map_err(|e| {
        let failure = e.failure(Purpose::Artifact);
        let hint = match failure.reason.class() {
            FailureClass::User => {
                ". The version of model.fromVersion is read with the storage settings and rights of this TrainingJob"
            }
            _ => "",
        };
        Failure::new(failure.reason, format!("{}{hint}", failure.message))
    })?;
    tracing::info!(uri = %uri, digest = %artifact.digest, "the version to go on from is fetched");
    let (config, max_length) = config_of(folder, uri, Some(max_length))?;
    let tokenizer = tokenizer_of(folder, uri, max_length, &config)?;
    Ok(Pretrained {
        folder: folder.to_owned(),
        uri: uri.clone(),
        config,
        tokenizer,
        digest: artifact.digest.clone(),
        continued: true,
    })
}

/// The configuration of a folder whose model reads as much as is asked for, and how much that is, in tokens: all that it reads where
/// nothing is asked.
fn config_of(folder: &Path, uri: &Uri, max_length: Option<i32>) -> Result<(EncoderConfig, usize), Failure> {
    let config = EncoderConfig::read(folder).map_err(|e| failure(&e, folder, uri))?;
    let max_length = max_length.map_or(config.max_length(), |n| usize::try_from(n).unwrap_or(0));
    if max_length > config.max_length() {
        return Err(Failure::new(
            FailureReason::ConfigInvalid,
            format!(
                "hyperparameters.maxLength is {max_length}, but the model of {uri} reads at most {} tokens; set it to that or less",
                config.max_length()
            ),
        ));
    }
    Ok((config, max_length))
}

fn tokenizer_of(folder: &Path, uri: &Uri, max_length: usize, config: &EncoderConfig) -> Result<TextTokenizer, Failure> {
    let vocabulary_size = usize::try_from(config.vocab_size).unwrap_or(0);
    TextTokenizer::load(folder, max_length, vocabulary_size).map_err(|e: DataError| {
        let failure = Failure::from(e);
        Failure::new(failure.reason, format!("{uri}: {}", failure.message))
    })
}
