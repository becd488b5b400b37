//! Which versions are computed with beside the stable one, remembered over the end of the process: one that ends it must not end
//! it again and again.
//!
//! Of each version there is a file in the scratch folder with a byte for each worker, which is not 0 while that worker computes
//! with it. The kernel keeps what was written, however the process ends. The next process takes the marks over as crashes and
//! holds their versions back until the operator clears them or they are let go. The stable version is never marked: somebody has
//! to answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use flywheel_contract::scalar::Digest;
use flywheel_contract::serving::{Assignment, Crash, ServedVersion};
use serde::{Deserialize, Serialize};

/// Folder of the marks, whose names are the digits of the versions' digests.
const MARKS: &str = "computing";
/// File with the crashes that hold versions back.
const CRASHES: &str = "crashes.json";

/// The mark of a version.
pub(crate) struct Mark {
    /// None where nothing is remembered.
    file: Option<File>,
    beside: AtomicBool,
}

impl Mark {
    /// That of the version with this digest, for so many workers. Without a scratch folder, or where the file cannot be made,
    /// nothing is remembered.
    pub async fn open(scratch: Option<&Path>, digest: &Digest, workers: usize) -> Self {
        let file = match scratch {
            Some(scratch) => Self::file(&scratch.join(MARKS), digest, workers).await,
            None => None,
        };
        Self {
            file,
            beside: AtomicBool::new(true),
        }
    }

    async fn file(folder: &Path, digest: &Digest, workers: usize) -> Option<File> {
        let path = folder.join(digest.hex());
        let open = async {
            tokio::fs::create_dir_all(folder).await?;
            let mut options = tokio::fs::OpenOptions::new();
            // Not cut: one that is being let go may still compute under the same digest.
            options.write(true).create(true).truncate(false);
            let file = options.open(&path).await?.into_std().await;
            // So that a full disk shows here and not in the middle of requests.
            file.write_all_at(&vec![0; workers], 0)?;
            Ok::<_, std::io::Error>(file)
        };
        match open.await {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot be written; a version that ends the process would do so again");
                None
            }
        }
    }

    /// Whether the version is one beside the stable one, from the next batch on.
    pub fn set_beside(&self, beside: bool) {
        self.beside.store(beside, Ordering::Relaxed);
    }

    /// This worker begins a batch. Whether that is marked: costs nothing for the stable version.
    pub fn begin(&self, worker: usize) -> bool {
        self.beside.load(Ordering::Relaxed) && self.write(worker, 1)
    }

    /// It is done with one that was marked.
    pub fn end(&self, worker: usize) {
        self.write(worker, 0);
    }

    fn write(&self, worker: usize, byte: u8) -> bool {
        let Some(file) = &self.file else { return false };
        let written = file.write_all_at(&[byte], worker as u64);
        if let Err(error) = &written {
            tracing::debug!(%error, "a mark cannot be written");
        }
        written.is_ok()
    }
}

/// What is known of a version that was marked when a process of this pod ended.
#[derive(Serialize, Deserialize)]
struct Known {
    crash: Crash,
    /// It is not held back for that.
    cleared: bool,
}

/// Crashes of this pod, by the digits of the versions' digests.
#[derive(Default)]
pub(crate) struct Crashes {
    path: PathBuf,
    of: BTreeMap<String, Known>,
}

impl Crashes {
    /// Takes over what the process before left in the scratch folder, where there is one. `loading`: digits of the version that
    /// it was building beside.
    pub async fn take_over(scratch: Option<&Path>, loading: Option<&str>) -> Self {
        let Some(scratch) = scratch else {
            return Self::default();
        };
        let path = scratch.join(CRASHES);
        let text = tokio::fs::read(&path).await.unwrap_or_default();
        // Without the file, or with one of another release, only the marks tell.
        let mut of: BTreeMap<String, Known> = serde_json::from_slice(&text).unwrap_or_default();
        for known in of.values_mut() {
            known.crash.last = false;
        }
        let marks = marks(scratch).await;
        let marked = || marks.iter().filter_map(|mark| Some((&mark.digits, mark.set?)));
        let beside = loading.filter(|digits| marked().all(|(marked, _)| marked != digits));
        let together = marked().count() + beside.iter().count() > 1;
        let random = RandomState::new();
        for (digits, at) in marked() {
            let times = of.get(digits).map_or(0, |known| known.crash.times).saturating_add(1);
            let crash = Crash {
                id: format!("{:016x}", random.hash_one(digits)),
                at,
                times,
                together,
                last: true,
            };
            tracing::error!(
                digest = digits,
                times,
                together,
                "the process before ended while it computed with this version"
            );
            of.insert(digits.clone(), Known { crash, cleared: false });
        }
        let crashes = Self { path, of };
        if !crashes.of.is_empty() {
            crashes.write().await;
        }
        // Only now: better counted twice than forgotten.
        for mark in &marks {
            let path = scratch.join(MARKS).join(&mark.digits);
            if let Err(error) = tokio::fs::remove_file(&path).await {
                tracing::warn!(%error, path = %path.display(), "cannot be removed");
            }
        }
        crashes
    }

    /// The crash for which this version is held back.
    pub fn holds_back(&self, version: &ServedVersion) -> Option<&Crash> {
        let known = self.of.get(version.artifact.digest.hex())?;
        (!known.cleared).then_some(&known.crash)
    }

    /// Forgets versions that are not listed (who wants one again has mended something), and clears crashes as it says. The
    /// versions that are held back no longer.
    pub async fn follow(&mut self, assignment: &Assignment) -> Vec<ServedVersion> {
        let before = self.of.len();
        let listed = |digits: &String| {
            let mut versions = assignment.versions.iter();
            versions.any(|version| version.artifact.digest.hex() == digits)
        };
        self.of.retain(|digits, _| listed(digits));
        let mut free = Vec::new();
        for version in &assignment.versions {
            let digest = &version.artifact.digest;
            if let Some(known) = self.of.get_mut(digest.hex())
                && !known.cleared
                && assignment
                    .cleared
                    .iter()
                    .any(|cleared| cleared.digest == *digest && cleared.crash == known.crash.id)
            {
                known.cleared = true;
                free.push(version.clone());
            }
        }
        if self.of.len() < before || !free.is_empty() {
            self.write().await;
        }
        free
    }

    async fn write(&self) {
        let write = async {
            let text = serde_json::to_vec(&self.of)?;
            let new = self.path.with_extension("new");
            tokio::fs::write(&new, text).await?;
            tokio::fs::rename(&new, &self.path).await
        };
        if let Err(error) = write.await {
            tracing::warn!(%error, path = %self.path.display(), "cannot be written; crashes are forgotten with this process");
        }
    }
}

/// A mark as it was left.
struct Left {
    digits: String,
    /// The second in which it was written last, where it is set.
    set: Option<i64>,
}

async fn marks(scratch: &Path) -> Vec<Left> {
    let mut marks = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(scratch.join(MARKS)).await else {
        return marks;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let Ok(digits) = entry.file_name().into_string() else {
            continue;
        };
        let bytes = tokio::fs::read(entry.path()).await.unwrap_or_default();
        let written = entry.metadata().await.and_then(|metadata| metadata.modified());
        let since = written.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let at = since.and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0);
        let set = bytes.iter().any(|byte| *byte != 0).then_some(at);
        marks.push(Left { digits, set });
    }
    marks
}

#[cfg(test)]
mod tests {
    use flywheel_contract::serving::Cleared;
    use flywheel_contract::trainer::ArtifactRef;

    use super::*;

    fn version(name: &str) -> ServedVersion {
        ServedVersion {
            name: name.to_owned(),
            artifact: ArtifactRef {
                uri: "file:///none".into(),
                digest: Digest::sha256(&name.repeat(64)),
            },
        }
    }

    fn assignment(versions: &[&ServedVersion], cleared: &[&Crash]) -> Assignment {
        Assignment {
            schema_version: flywheel_contract::SCHEMA_VERSION,
            generation: 1,
            serve: "stable".to_owned(),
            versions: versions.iter().map(|version| (*version).clone()).collect(),
            split: None,
            mirror: None,
            canary: None,
            cleared: versions
                .iter()
                .flat_map(|version| {
                    cleared.iter().map(|crash| Cleared {
                        digest: version.artifact.digest.clone(),
                        crash: crash.id.clone(),
                    })
                })
                .collect(),
            window_seconds: None,
            judged_since: None,
            trial: None,
        }
    }

    /// A process that ends while these workers compute with these versions.
    async fn crash(scratch: &Path, computing: &[(&ServedVersion, usize)]) {
        for (version, worker) in computing {
            let mark = Mark::open(Some(scratch), &version.artifact.digest, 2).await;
            assert!(mark.begin(*worker));
        }
    }

    #[tokio::test]
    async fn what_is_computed_is_held_back_until_it_is_cleared_or_let_go() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path();
        let (a, b) = (version("a"), version("b"));
        let none = Crashes::take_over(Some(scratch), None).await;
        assert!(none.holds_back(&a).is_none());

        let done = Mark::open(Some(scratch), &b.artifact.digest, 2).await;
        assert!(done.begin(0));
        done.end(0);
        crash(scratch, &[(&a, 1)]).await;
        let mut first = Crashes::take_over(Some(scratch), None).await;
        assert!(first.holds_back(&b).is_none(), "its batch was over");
        let seen = first.holds_back(&a).unwrap().clone();
        assert_eq!((seen.times, seen.together, seen.last), (1, false, true));
        assert!(seen.at > 1_700_000_000);

        // The process after that ended in order: it is still held back, and that end was not the last.
        let other = Crash {
            id: "another".to_owned(),
            ..seen.clone()
        };
        assert_eq!(first.follow(&assignment(&[&a, &b], &[&other])).await, []);
        let mut second = Crashes::take_over(Some(scratch), None).await;
        let still = second.holds_back(&a).unwrap().clone();
        assert_eq!((&still.id, still.last), (&seen.id, false));

        // Cleared once, for this crash alone.
        let free = second.follow(&assignment(&[&a], &[&seen])).await;
        assert_eq!(free, std::slice::from_ref(&a));
        assert!(second.holds_back(&a).is_none());
        assert!(Crashes::take_over(Some(scratch), None).await.holds_back(&a).is_none());
        crash(scratch, &[(&a, 0), (&b, 0)]).await;
        let mut third = Crashes::take_over(Some(scratch), None).await;
        assert_eq!(third.follow(&assignment(&[&a, &b], &[&seen])).await, []);
        let again = third.holds_back(&a).unwrap();
        assert_eq!((again.times, again.together), (2, true));
        assert_ne!(again.id, seen.id);
        assert_eq!(third.holds_back(&b).unwrap().times, 1);

        // Let go, and wanted again.
        third.follow(&assignment(&[&b], &[])).await;
        assert!(third.holds_back(&a).is_none());
        assert!(Crashes::take_over(Some(scratch), None).await.holds_back(&a).is_none());
    }

    #[tokio::test]
    async fn a_version_that_was_being_loaded_may_be_to_blame_as_well() {
        let scratch = tempfile::tempdir().unwrap();
        let a = version("a");
        for (loading, together) in [(a.artifact.digest.hex(), false), ("bb", true)] {
            crash(scratch.path(), &[(&a, 0)]).await;
            let crashes = Crashes::take_over(Some(scratch.path()), Some(loading)).await;
            assert_eq!(crashes.holds_back(&a).unwrap().together, together, "{loading}");
        }
    }

    #[tokio::test]
    async fn the_stable_version_is_never_marked() {
        let scratch = tempfile::tempdir().unwrap();
        let a = version("a");
        let mark = Mark::open(Some(scratch.path()), &a.artifact.digest, 1).await;
        mark.set_beside(false);
        assert!(!mark.begin(0));
        assert!(
            Crashes::take_over(Some(scratch.path()), None)
                .await
                .holds_back(&a)
                .is_none()
        );
    }
}
