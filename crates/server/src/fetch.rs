//! The artifact in the pod's cache, by digest: `<scratch>/artifacts/<digest>`.
//!
//! A folder under that name was whole and right when it was moved there; it is read and checked again before use, since a
//! disk may have changed it. A restart of the container finds it; a new pod starts with an empty volume.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flywheel_contract::artifact::Manifest;
use flywheel_contract::failure::{Failure, FailureClass, FailureReason};
use flywheel_contract::scalar::Digest;
use flywheel_contract::storage::StorageSettings;
use flywheel_contract::trainer::ArtifactRef;
use flywheel_store::{Limits, Purpose, Store, check_folder};

use crate::apart::apart;

/// Wait before the second try; doubled for each further one.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Artifacts in the cache beside those that are held.
const SPARE: usize = 2;

/// Where and how to fetch.
#[derive(Clone, Debug)]
pub(crate) struct Fetch<'a> {
    pub artifact: &'a ArtifactRef,
    pub storage: &'a StorageSettings,
    pub scratch: &'a Path,
    pub limits: Limits,
    /// Tries while the storage or the disk fails, at least 1. What is the user's to mend is tried once.
    pub tries: u32,
    /// Requests are answered meanwhile, which come first.
    pub beside: bool,
}

fn cache(scratch: &Path) -> PathBuf {
    scratch.join("artifacts")
}

/// Where the artifact with this digest is, once it is there.
pub(crate) fn folder(scratch: &Path, digest: &Digest) -> PathBuf {
    cache(scratch).join(digest.hex())
}

impl Fetch<'_> {
    /// The artifact's folder, every file of it checked, and its manifest.
    pub async fn run(&self) -> Result<(PathBuf, Manifest), Failure> {
        let mut wait = FIRST_WAIT;
        let mut tried = 1;
        loop {
            match self.once().await {
                Err(failure) if failure.reason.class() == FailureClass::Infrastructure && tried < self.tries => {
                    tracing::warn!(
                        reason = failure.reason.as_str(),
                        message = failure.message,
                        tried,
                        seconds = wait.as_secs(),
                        "the artifact cannot be fetched; trying again"
                    );
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    async fn once(&self) -> Result<(PathBuf, Manifest), Failure> {
        let failure = |e: flywheel_store::StoreError| e.failure(Purpose::Artifact);
        let store = Store::with_limits(self.storage, self.limits).map_err(failure)?;
        let cache = cache(self.scratch);
        let folder = folder(self.scratch, &self.artifact.digest);
        if let Some(manifest) = self.cached(&folder).await? {
            return Ok((folder, manifest));
        }
        // Another process may fetch the same into the same cache, on a developer's machine at least.
        let part = cache.join(format!("{}.{}.part", self.artifact.digest.hex(), std::process::id()));
        remove(&part).await?;
        match store.download_artifact(self.artifact, &part).await {
            Ok(manifest) => {
                if let Err(e) = tokio::fs::rename(&part, &folder).await {
                    remove(&part).await?;
                    // Unless that other process has put it there first.
                    return match self.cached(&folder).await? {
                        Some(manifest) => Ok((folder, manifest)),
                        None => Err(disk("rename", &part, &e)),
                    };
                }
                Ok((folder, manifest))
            }
            Err(error) => {
                remove(&part).await?;
                Err(failure(error))
            }
        }
    }

    /// The manifest of a folder that is whole and right; another one is removed.
    async fn cached(&self, folder: &Path) -> Result<Option<Manifest>, Failure> {
        if !tokio::fs::try_exists(folder).await.unwrap_or(false) {
            return Ok(None);
        }
        let (at, digest) = (folder.to_owned(), self.artifact.digest.clone());
        match apart(self.beside, move || Ok(check_folder(&at, &digest))).await? {
            Ok(manifest) => {
                tracing::info!(folder = %folder.display(), "the artifact is in the cache and right");
                touch(folder).await;
                Ok(Some(manifest))
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "the artifact in the cache is damaged; fetching it again");
                remove(folder).await?;
                Ok(None)
            }
        }
    }
}

/// Removes artifacts that nobody holds, but for the [`SPARE`] that were used last: they are what a way back needs.
pub(crate) async fn tidy(scratch: &Path, held: impl Iterator<Item = &Digest>) {
    let held: Vec<&str> = held.map(Digest::hex).collect();
    let Ok(mut entries) = tokio::fs::read_dir(cache(scratch)).await else {
        return;
    };
    let mut spare = Vec::new();
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        // Parts are somebody's who fetches now.
        let artifact = name
            .to_str()
            .is_some_and(|name| !name.contains('.') && !held.contains(&name));
        if let (true, Ok(metadata)) = (artifact, entry.metadata().await) {
            spare.push((metadata.modified().ok(), entry.path()));
        }
    }
    spare.sort();
    spare.reverse();
    for (_, folder) in spare.iter().skip(SPARE) {
        match remove(folder).await {
            Ok(()) => {
                tracing::info!(folder = %folder.display(), "an artifact that nobody holds is removed from the cache")
            }
            Err(failure) => tracing::warn!(message = failure.message, "the cache keeps more than it should"),
        }
    }
}

/// Notes that an artifact was used now; only the order of [`tidy`] depends on it.
async fn touch(folder: &Path) {
    let folder = folder.to_owned();
    let touched =
        tokio::task::spawn_blocking(move || std::fs::File::open(&folder)?.set_modified(std::time::SystemTime::now()));
    if let Ok(Err(error)) = touched.await {
        tracing::debug!(%error, "an artifact in the cache cannot be touched");
    }
}

async fn remove(folder: &Path) -> Result<(), Failure> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(disk("remove", folder, &e)),
        _ => Ok(()),
    }
}

fn disk(action: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        FailureReason::InternalError,
        format!("cannot {action} {} on the local disk: {error}", path.display()),
    )
}
