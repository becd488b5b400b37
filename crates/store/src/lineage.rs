//! The checkpoints of a job: who may write them, which of them hold, and how they come back.
//!
//! A [`Lineage`] is the folder `<checkpoint.uri>/<job uid>`. Its `HEAD` names the one writer and the checkpoints that
//! hold, and changes by compare-and-swap only: a writer whose place was taken commits nothing, however late it wakes up,
//! so recovery never waits for the death of an old pod. On object stores the swap is a write on the condition of the ETag
//! that was read. File systems have no such write: there `HEAD` is a folder of numbered generations, each of which can be
//! created only once, and the highest holds.
//!
//! A `HEAD` that cannot be read is never taken for an older one or for none, and one that is missing never for a new job's
//! where checkpoints of this one lie there: a new attempt works out from them what it may have named, and says so. A writer
//! that meets one ends, since it cannot see who may write.
//!
//! What a failed write did is never guessed: `HEAD` is read again, since the write may have landed and only its answer
//! was lost, or it may land yet. It is told by its content, which differs from swap to swap.
//!
//! Nothing is removed but what lies in this folder, and only what no `HEAD` can name again.

mod recover;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::artifact::{MANIFEST_FILE, check_files};
use flywheel_contract::checkpoint::{
    CHECKPOINTS_DIR, CheckpointManifest, CheckpointRef, HEAD_FILE, HEAD_MAX_BYTES, Head, ResultRef,
};
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::trainer::JobIdentity;
use object_store::{PutMode, UpdateVersion};

use crate::Store;
use crate::artifact::describe;
use crate::client::Location;
use crate::error::{Attempt, Result, StoreError};
use crate::transfer::{Clock, Sink, digest_of, disk, fetch_once, list_once, odd, pause, put_once};

/// Generations of `HEAD` that stay on a file system: where the newest cannot be read, the one before it tells the most.
const GENERATIONS: u64 = 8;
/// Digits of a generation's name: those of the largest `u64`.
const GENERATION_DIGITS: usize = 20;
/// Begin of the names of the objects that the probe for conditional writes makes and removes.
const PROBE: &str = "probe-";
/// How often a swap is tried anew because another writer was faster. Writers commit seconds apart.
const RACES: u32 = 32;
/// Longest time for removing old checkpoints after a commit; what is left is removed after the next one.
const SWEEP: Duration = Duration::from_secs(10);

/// The right to write a job's checkpoints, until another writer takes it.
///
/// Every method may be dropped before it is done: what was not committed then is found out by the next one.
#[derive(Debug)]
pub struct Lineage {
    place: Place,
    attempt: u32,
    writer: String,
    keep: usize,
    /// Sequence at which this writer took the lineage: who took it before can commit nothing any more.
    taken: u64,
    found: Found,
    /// The attempt that took it over.
    fenced: Option<u32>,
    /// Names of checkpoints that turned out to be unusable.
    forgotten: Vec<String>,
    leftover: Option<String>,
    damaged: Option<String>,
}

impl Store {
    /// Takes a job's checkpoints over: from now on every other writer's commit is refused.
    ///
    /// `keep` checkpoints stay at each commit, at least one. A `HEAD` that is not this job's is never changed. One that is
    /// damaged or missing is replaced where checkpoints of this job beside it show whose it is: [`Lineage::damaged`] tells,
    /// and those that it may have named are in [`Lineage::head`].
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where a later attempt holds them, [`StoreError::Head`] where `HEAD` is another job's or cannot
    /// be read and nothing shows whose it is, [`StoreError::LacksConditionalPut`] where the storage cannot keep writers apart, [`StoreError::Invalid`]
    /// where it cannot be written to at all (http, https), and the others of [`StoreError`].
    pub async fn take_lineage(self: &Arc<Self>, uri: &Uri, job: &JobIdentity, keep: usize) -> Result<Lineage> {
        let place = Place::new(self, uri, &job.uid)?;
        let start = Instant::now();
        // Before the probe, which writes.
        let (mut look, mut held) = place.basis(place.find().await?, job.attempt).await?;
        place.probe().await?;
        let writer = format!("{:032x}", rand::random::<u128>());
        for _ in 0..RACES {
            let next = Head {
                attempt: job.attempt,
                writer: writer.clone(),
                sequence: place.after(held.sequence)?,
                ..held
            };
            match place.swap(&look, &next).await? {
                Swap::Done(found) => {
                    tracing::info!(
                        %uri, attempt = job.attempt, writer, sequence = next.sequence,
                        checkpoints = next.checkpoints.len(), "took the checkpoints over"
                    );
                    let damaged = match look {
                        Look::Damaged(damage) => Some(damage.problem),
                        Look::Nothing if !next.checkpoints.is_empty() => {
                            Some("it is missing, though checkpoints of this job lie beside it".to_owned())
                        }
                        Look::Nothing | Look::Held(_) => None,
                    };
                    return Ok(Lineage {
                        place,
                        attempt: job.attempt,
                        writer,
                        keep: keep.max(1),
                        taken: next.sequence,
                        found,
                        fenced: None,
                        forgotten: Vec::new(),
                        leftover: None,
                        damaged,
                    });
                }
                Swap::Other(other) => (look, held) = place.basis(other, job.attempt).await?,
            }
        }
        Err(place.crowded(start))
    }
}

impl Lineage {
    /// `HEAD` as this writer last read or wrote it.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.found.head
    }

    /// The folder.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.place.uri
    }

    /// Why old checkpoints could not be removed after the last commit, if they could not. It is tried again after the next
    /// one; meanwhile they take space.
    #[must_use]
    pub fn leftover(&self) -> Option<&str> {
        self.leftover.as_deref()
    }

    /// What was wrong with `HEAD` when it was taken over, where it was damaged or missing. [`Lineage::head`] then names what
    /// is left of the checkpoints that it may have named.
    #[must_use]
    pub fn damaged(&self) -> Option<&str> {
        self.damaged.as_deref()
    }

    /// Brings a checkpoint into a folder, which should be empty. Where it fails, nothing of it stays there.
    ///
    /// # Errors
    /// [`StoreError::Checkpoint`] where it is missing, damaged, cut off or not the one that `HEAD` names: then an older one
    /// is to be used. All others of [`StoreError`] say nothing about the checkpoint.
    pub async fn fetch(&self, checkpoint: &CheckpointRef, folder: &Path) -> Result<CheckpointManifest> {
        let manifest = self.manifest(checkpoint).await?;
        let uri = self.checkpoint_uri(&checkpoint.name);
        if let Err(error) = self.place.store.download_files(&uri, &manifest.files, folder).await {
            for file in &manifest.files {
                let _ = tokio::fs::remove_file(folder.join(&file.name)).await;
            }
            return Err(unusable(&uri, error));
        }
        Ok(manifest)
    }

    /// Marks a checkpoint that cannot be used: the next commit drops it from `HEAD` instead of counting it among those that
    /// are kept.
    pub fn forget(&mut self, checkpoint: &CheckpointRef) {
        self.forgotten.push(checkpoint.name.clone());
    }

    /// Saves files of a folder as the newest checkpoint: they go up, the manifest last; all is read back and checked; then
    /// `HEAD` is swapped; then what fell out of those that are kept is removed, as far as it can be ([`Lineage::leftover`]).
    ///
    /// After an error `HEAD` names what it named before, unless the storage stopped answering in the middle of the swap
    /// ([`StoreError::Unavailable`]): then the new one may hold, too, and the next commit finds that out.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where another writer took over, [`StoreError::HeadDamaged`] where it cannot be seen whether one
    /// did: this one must end. [`StoreError::Checkpoint`] where what was
    /// read back is not what was written. The others of [`StoreError`].
    pub async fn commit(
        &mut self,
        folder: &Path,
        files: &[String],
        step: u64,
        dataset_digest: &Digest,
    ) -> Result<CheckpointRef> {
        self.check_held()?;
        if self.found.head.result.is_some() {
            return Err(StoreError::Invalid {
                uri: self.place.uri.to_string(),
                problem: "the job has its result, after which nothing more is saved".to_owned(),
            });
        }
        let (name, manifest) = self.describe(folder, files, step, dataset_digest).await?;
        let uri = self.checkpoint_uri(&name.to_string());
        let checkpoint = match self.upload(folder, files, manifest, &name, &uri).await {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                // A successor removes what this writer uploads.
                if let Some(attempt) = self.successor().await {
                    return Err(self.fence(attempt));
                }
                // No HEAD names it, and a full disk needs the room.
                if !matches!(
                    tokio::time::timeout(SWEEP, self.remove(&name.to_string())).await,
                    Ok(Ok(()))
                ) {
                    tracing::warn!(%uri, "what was written of a checkpoint could not be removed yet");
                }
                return Err(unusable(&uri, error));
            }
        };
        let (keep, forgotten) = (self.keep, self.forgotten.clone());
        self.advance(|head| {
            head.checkpoints.retain(|c| !forgotten.contains(&c.name));
            head.checkpoints.insert(0, checkpoint.clone());
            head.checkpoints.truncate(keep);
        })
        .await?;
        self.forgotten.clear();
        tracing::info!(%uri, step, sequence = self.found.head.sequence, "committed a checkpoint");
        self.sweep().await;
        Ok(checkpoint)
    }

    /// Commits the result: the file at `path`, relative to the job's folder under the output URI, with this digest. It must
    /// be there already. Nothing is committed after it.
    ///
    /// # Errors
    /// [`StoreError::Fenced`], [`StoreError::HeadDamaged`], [`StoreError::Conflict`] where there is another result already, and the others of
    /// [`StoreError`].
    pub async fn commit_result(&mut self, path: String, digest: Digest) -> Result<()> {
        let result = ResultRef { path, digest };
        if self.found.head.result.as_ref().is_some_and(|r| *r != result) {
            return Err(StoreError::Conflict {
                uri: self.place.head.to_string(),
            });
        }
        self.advance(|head| head.result = Some(result.clone())).await
    }

    /// Removes all checkpoints, which nobody needs after the result.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] before there is a result, [`StoreError::Fenced`], and the others of [`StoreError`]. Files that
    /// could not be removed are no error ([`Lineage::leftover`]).
    pub async fn clear(&mut self) -> Result<()> {
        if self.found.head.result.is_none() {
            return Err(StoreError::Invalid {
                uri: self.place.uri.to_string(),
                problem: "the job has no result yet, so its checkpoints stay".to_owned(),
            });
        }
        if !self.found.head.checkpoints.is_empty() {
            self.advance(|head| head.checkpoints.clear()).await?;
        }
        self.sweep().await;
        Ok(())
    }

    fn check_held(&self) -> Result<()> {
        self.fenced.map_or(Ok(()), |attempt| Err(self.fenced_by(attempt)))
    }

    fn fenced_by(&self, attempt: u32) -> StoreError {
        StoreError::Fenced {
            uri: self.place.uri.to_string(),
            attempt,
        }
    }

    /// From now on nothing is written any more.
    fn fence(&mut self, attempt: u32) -> StoreError {
        tracing::warn!(
            uri = %self.place.uri, attempt = self.attempt, head_attempt = attempt, writer = self.writer,
            "commit refused: another writer has taken the checkpoints over"
        );
        self.fenced = Some(attempt);
        self.fenced_by(attempt)
    }

    /// The attempt of another writer that has taken over, where that can be found out.
    async fn successor(&self) -> Option<u32> {
        let look = tokio::time::timeout(SWEEP, self.place.find()).await.ok()?.ok()?;
        self.replaced_in(&look)
    }

    /// The attempt of another writer that has taken over, as far as a look at `HEAD` shows one.
    fn replaced_in(&self, look: &Look) -> Option<u32> {
        let head = match look {
            Look::Nothing => None,
            Look::Held(found) => Some(&found.head),
            // Below what is damaged there may be one that came after this writer, or this writer's own.
            Look::Damaged(damage) => damage.below.as_ref().filter(|h| h.sequence > self.found.head.sequence),
        };
        head.filter(|h| h.writer != self.writer).map(|h| h.attempt)
    }

    fn checkpoint_uri(&self, name: &str) -> Uri {
        self.place.checkpoint_uri(name)
    }

    /// Reads a checkpoint's manifest and checks that it is the one that is meant.
    async fn manifest(&self, checkpoint: &CheckpointRef) -> Result<CheckpointManifest> {
        let folder = self.checkpoint_uri(&checkpoint.name);
        let wrong = |problem| StoreError::Checkpoint {
            uri: folder.to_string(),
            problem,
        };
        // Before anything is read: a name is no path into another folder.
        let name =
            Name::parse(&checkpoint.name).ok_or_else(|| wrong("its name is none that is given here".to_owned()))?;
        if name.step != checkpoint.step {
            return Err(wrong(format!("HEAD says step {} of it", checkpoint.step)));
        }
        let (manifest, _) = self
            .place
            .manifest(&name, self.attempt, |found| {
                if *found == checkpoint.digest {
                    return Ok(());
                }
                Err(format!("is {found}, HEAD says {}", checkpoint.digest))
            })
            .await?;
        Ok(manifest)
    }

    /// Describes files of a folder as a checkpoint: its name, and the bytes of its manifest.
    async fn describe(
        &self,
        folder: &Path,
        files: &[String],
        step: u64,
        dataset_digest: &Digest,
    ) -> Result<(Name, Bytes)> {
        let wrong = |problem| StoreError::Checkpoint {
            uri: folder.display().to_string(),
            problem,
        };
        let mut described = Vec::new();
        for file in files {
            described.push(describe(folder, file).await?);
        }
        let manifest = CheckpointManifest {
            schema_version: SCHEMA_VERSION,
            job_uid: self.place.uid.clone(),
            attempt: self.attempt,
            step,
            dataset_digest: dataset_digest.clone(),
            files: described,
            nonce: rand::random(),
        };
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| wrong(e.to_string()))?;
        let name = Name {
            step,
            attempt: self.attempt,
            taken: self.taken,
            seal: Name::seal(&digest_of(&bytes)),
        };
        self.place
            .check_manifest(&manifest, &name, self.attempt)
            .map_err(wrong)?;
        Ok((name, bytes.into()))
    }

    async fn upload(
        &self,
        folder: &Path,
        files: &[String],
        manifest: Bytes,
        name: &Name,
        uri: &Uri,
    ) -> Result<CheckpointRef> {
        let checkpoint = name.named(digest_of(&manifest));
        let store = &self.place.store;
        for file in files {
            store.put_file(&uri.join(file), &folder.join(file)).await?;
        }
        store.put_create(&uri.join(MANIFEST_FILE), manifest).await?;
        let manifest = self.manifest(&checkpoint).await?;
        store.verify_files(uri, &manifest.files).await?;
        Ok(checkpoint)
    }

    /// Swaps `HEAD` for what `change` makes of it.
    async fn advance(&mut self, change: impl Fn(&mut Head)) -> Result<()> {
        self.check_held()?;
        let start = Instant::now();
        for _ in 0..RACES {
            let mut next = self.found.head.clone();
            change(&mut next);
            next.sequence = self.place.after(self.found.head.sequence)?;
            let other = match self.place.swap(&Look::Held(self.found.clone()), &next).await? {
                Swap::Done(held) => {
                    self.found = held;
                    return Ok(());
                }
                Swap::Other(other) => other,
            };
            if let Some(attempt) = self.replaced_in(&other) {
                return Err(self.fence(attempt));
            }
            match other {
                // An earlier write of this writer, which it gave up, has landed late.
                Look::Held(found) if found.head.sequence > self.found.head.sequence => self.found = found,
                Look::Held(_) => {
                    return Err(self
                        .place
                        .not_ours("it went back to an older one of this job".to_owned()));
                }
                // Perhaps a successor's: to write over it would be to write without the right to.
                Look::Damaged(damage) => return Err(self.place.lost(damage.problem)),
                Look::Nothing => return Err(self.place.lost("it is gone".to_owned())),
            }
        }
        Err(self.place.crowded(start))
    }

    /// Removes what no `HEAD` can name again, as far as it goes.
    async fn sweep(&mut self) {
        let swept = tokio::time::timeout(SWEEP, self.sweep_all()).await;
        self.leftover = match swept {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!(
                "{}: removing took more than {} s",
                self.place.uri,
                SWEEP.as_secs()
            )),
        };
        if let Some(problem) = &self.leftover {
            tracing::warn!(uri = %self.place.uri, problem, "old checkpoints could not be removed yet");
        }
    }

    async fn sweep_all(&self) -> Result<()> {
        let mut outcome = Ok(());
        for name in self
            .place
            .store
            .list(&self.place.uri.join(CHECKPOINTS_DIR))
            .await?
            .folders
        {
            // A writer that is fenced and does not know it must not remove its successor's: of those that took the lineage
            // later it knows nothing, and of those that took it earlier only what its own HEAD names can ever hold.
            let earlier = Name::parse(&name).is_some_and(|n| n.taken <= self.taken);
            if earlier && !self.found.head.checkpoints.iter().any(|c| c.name == name) {
                outcome = outcome.and(self.remove(&name).await);
            }
        }
        outcome.and(self.place.prune(self.found.head.sequence).await)
    }

    /// Removes a checkpoint's folder.
    async fn remove(&self, name: &str) -> Result<()> {
        let uri = self.checkpoint_uri(name);
        for file in self.place.store.list(&uri).await?.objects {
            self.place.store.delete(&uri.join(&file)).await?;
        }
        let Some(local) = &self.place.local else {
            return Ok(());
        };
        // The folder itself, with what a write that was cut off has left there under a temporary name.
        let path = local.join(CHECKPOINTS_DIR).join(name);
        match tokio::fs::remove_dir_all(&path).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(disk("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

/// Turns what says that a checkpoint is not whole or not the right one into [`StoreError::Checkpoint`].
fn unusable(folder: &Uri, error: StoreError) -> StoreError {
    let problem = match error {
        StoreError::NotFound { uri } => format!("{uri} does not exist"),
        StoreError::Digest { uri, problem } => format!("{uri}: {problem}"),
        StoreError::TooLarge { uri, max, .. } => format!("{uri} has more than {max} bytes"),
        other => return other,
    };
    StoreError::Checkpoint {
        uri: folder.to_string(),
        problem,
    }
}

/// What the name of a checkpoint's folder tells: `<step>-<attempt>-<taken>-<seal>`.
struct Name {
    step: u64,
    attempt: u32,
    /// Sequence at which its writer took the lineage.
    taken: u64,
    /// Begin of the digest of its manifest, so that no other manifest passes for it even where no `HEAD` tells the digest.
    /// The manifest holds a random number, which makes it a name that was never used: what a commit that failed has left, or
    /// still sends, cannot get in here.
    seal: u64,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (step, attempt, taken, seal) = (self.step, self.attempt, self.taken, self.seal);
        write!(f, "{step:012}-{attempt}-{taken}-{seal:016x}")
    }
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut next = || parts.next();
        let name = Self {
            step: next()?.parse().ok()?,
            attempt: next()?.parse().ok()?,
            taken: next()?.parse().ok()?,
            seal: u64::from_str_radix(next()?, 16).ok()?,
        };
        // Whatever else parses as numbers is not written this way.
        (name.to_string() == text).then_some(name)
    }

    /// The seal of a manifest of this digest.
    fn seal(manifest: &Digest) -> u64 {
        let hex = manifest.hex().get(..16).unwrap_or_default();
        // No digest is shorter or holds anything else.
        u64::from_str_radix(hex, 16).unwrap_or_default()
    }

    /// Order of commits: a later writer's are newer, also where it went on from an older step.
    fn age(&self) -> (u64, u64) {
        (self.taken, self.step)
    }

    /// What `HEAD` says of it.
    fn named(&self, digest: Digest) -> CheckpointRef {
        CheckpointRef {
            name: self.to_string(),
            step: self.step,
            digest,
        }
    }
}

/// `HEAD` as it was found.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    head: Head,
    /// What a write that is to replace it has to name (object stores).
    version: Option<UpdateVersion>,
}

/// What a look at `HEAD` shows.
#[derive(Clone, Debug, PartialEq)]
enum Look {
    /// There is none, or none any more.
    Nothing,
    Held(Found),
    Damaged(Damage),
}

/// A `HEAD` that cannot be read, though nothing says that it is somebody else's.
#[derive(Clone, Debug, PartialEq)]
struct Damage {
    problem: String,
    /// What lies there instead, to tell one damage from another.
    content: Digest,
    /// As in [`Found`].
    version: UpdateVersion,
    /// On a file system the number of the newest generation, which is the damaged one; else 0.
    last: u64,
    /// On a file system the newest older generation that can be read.
    below: Option<Head>,
}

/// What became of a swap.
enum Swap {
    Done(Found),
    /// Something else than what was to be replaced is there.
    Other(Look),
}

/// Where a lineage lies, and how its `HEAD` is read and swapped.
struct Place {
    store: Arc<Store>,
    uri: Uri,
    head: Uri,
    at: Location,
    uid: String,
    /// The folder on a file system, where `HEAD` is a folder of generations.
    local: Option<PathBuf>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("uri", &self.uri)
            .field("uid", &self.uid)
            .finish_non_exhaustive()
    }
}

impl Place {
    fn new(store: &Arc<Store>, uri: &Uri, uid: &str) -> Result<Self> {
        let head = uri.join(HEAD_FILE);
        Ok(Self {
            store: Arc::clone(store),
            uri: uri.clone(),
            at: store.writable(&head)?,
            head,
            uid: uid.to_owned(),
            local: uri.as_str().strip_prefix("file://").map(PathBuf::from),
        })
    }

    fn not_ours(&self, problem: String) -> StoreError {
        StoreError::Head {
            uri: self.head.to_string(),
            problem,
        }
    }

    /// A running writer cannot see any more whether it may write.
    fn lost(&self, problem: String) -> StoreError {
        StoreError::HeadDamaged {
            uri: self.head.to_string(),
            problem,
        }
    }

    fn crowded(&self, start: Instant) -> StoreError {
        StoreError::Unavailable {
            uri: self.head.to_string(),
            limit: start.elapsed(),
            waited: start.elapsed(),
            tries: RACES,
            problem: "it was changed by others between each reading and writing".to_owned(),
            hint: "",
        }
    }

    fn checkpoint_uri(&self, name: &str) -> Uri {
        self.uri.join(CHECKPOINTS_DIR).join(name)
    }

    /// The sequence after the highest one in use.
    fn after(&self, sequence: u64) -> Result<u64> {
        sequence
            .checked_add(1)
            .ok_or_else(|| self.not_ours("its sequence is at its end".to_owned()))
    }

    /// What an attempt that takes over begins with: what `HEAD` names, with the highest sequence in use. And the look that it
    /// came from, which a swap has to name.
    async fn basis(&self, look: Look, attempt: u32) -> Result<(Look, Head)> {
        match look {
            Look::Nothing => {
                let head = self.begin(attempt).await?;
                match self.find().await? {
                    Look::Nothing => Ok((Look::Nothing, head)),
                    // What was found may be of one who took over in between: his HEAD tells what holds.
                    other => Box::pin(self.basis(other, attempt)).await,
                }
            }
            Look::Held(found) => {
                self.check_attempt(found.head.attempt, attempt)?;
                let head = found.head.clone();
                Ok((Look::Held(found), head))
            }
            Look::Damaged(damage) => {
                let head = self.recover(&damage, attempt).await?;
                Ok((Look::Damaged(damage), head))
            }
        }
    }

    fn blank(&self) -> Head {
        Head {
            schema_version: SCHEMA_VERSION,
            job_uid: self.uid.clone(),
            attempt: 0,
            writer: String::new(),
            sequence: 0,
            checkpoints: Vec::new(),
            result: None,
        }
    }

    /// Whether `attempt` may take over where `present` was seen.
    fn check_attempt(&self, present: u32, attempt: u32) -> Result<()> {
        if present <= attempt {
            return Ok(());
        }
        Err(StoreError::Fenced {
            uri: self.uri.to_string(),
            attempt: present,
        })
    }

    /// Reads a checkpoint's manifest, whose digest `check` has to find right, and checks that it is the one of this name.
    async fn manifest(
        &self,
        name: &Name,
        attempt: u32,
        check: impl FnOnce(&Digest) -> std::result::Result<(), String>,
    ) -> Result<(CheckpointManifest, Digest)> {
        let folder = self.checkpoint_uri(&name.to_string());
        let wrong = |problem: String| StoreError::Checkpoint {
            uri: folder.to_string(),
            problem,
        };
        let uri = folder.join(MANIFEST_FILE);
        let (bytes, fetched) = self
            .store
            .get_bytes(&uri, HEAD_MAX_BYTES)
            .await
            .map_err(|e| unusable(&folder, e))?;
        check(&fetched.digest).map_err(|problem| wrong(format!("the digest of its {MANIFEST_FILE} {problem}")))?;
        let manifest = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("{MANIFEST_FILE}: {e}")))?;
        self.check_manifest(&manifest, name, attempt)
            .map_err(|problem| wrong(format!("{MANIFEST_FILE}: {problem}")))?;
        Ok((manifest, fetched.digest))
    }

    /// What is wrong with a manifest, if anything.
    fn check_manifest(
        &self,
        manifest: &CheckpointManifest,
        name: &Name,
        attempt: u32,
    ) -> std::result::Result<(), String> {
        if manifest.schema_version != SCHEMA_VERSION {
            return Err(format!(
                "schemaVersion {} is not {SCHEMA_VERSION}, the one understood here",
                manifest.schema_version
            ));
        }
        if manifest.job_uid != self.uid {
            return Err(format!("it is of job {}, not of {}", manifest.job_uid, self.uid));
        }
        if (manifest.step, manifest.attempt) != (name.step, name.attempt) {
            return Err(format!(
                "it is of step {} and attempt {}, the folder of step {} and attempt {}",
                manifest.step, manifest.attempt, name.step, name.attempt
            ));
        }
        if manifest.attempt > attempt {
            return Err(format!(
                "it is of attempt {}, which is yet to come; this is attempt {attempt}",
                manifest.attempt
            ));
        }
        if check_files(&manifest.files)?.is_empty() {
            return Err("it lists no file".to_owned());
        }
        Ok(())
    }

    /// `HEAD` as it is.
    async fn find(&self) -> Result<Look> {
        let mut clock = Clock::new(self.store.limits, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.read(&mut clock).await {
                Ok(look) => return Ok(look),
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Exists) => return Err(odd(&self.at)),
                Err(Attempt::Again(problem)) => pause(&self.at, &clock, tries, problem).await?,
            }
        }
    }

    async fn read(&self, clock: &mut Clock) -> std::result::Result<Look, Attempt> {
        if let Some(folder) = &self.local {
            if tokio::fs::metadata(folder.join(HEAD_FILE))
                .await
                .is_ok_and(|m| m.is_file())
            {
                return Err(Attempt::Stop(
                    self.not_ours("it is a file, and ours is a folder".to_owned()),
                ));
            }
            return self.read_generations(clock).await;
        }
        let (bytes, version) = match read_once(&self.at, clock).await {
            Err(Attempt::Stop(StoreError::NotFound { .. })) => return Ok(Look::Nothing),
            read => read?,
        };
        match self.parse(&bytes) {
            Ok(head) => Ok(Look::Held(Found {
                head,
                version: Some(version),
            })),
            Err(Unusable::Broken(problem)) => Ok(Look::Damaged(Damage {
                problem,
                content: digest_of(&bytes),
                version,
                last: 0,
                below: None,
            })),
            Err(Unusable::Foreign(problem)) => Err(Attempt::Stop(self.not_ours(problem))),
        }
    }

    async fn read_generations(&self, clock: &mut Clock) -> std::result::Result<Look, Attempt> {
        let mut numbers = self.generations_once(clock).await?;
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let mut damage: Option<Damage> = None;
        for number in numbers {
            let at = self.store.locate(&self.generation(number)).map_err(Attempt::Stop)?;
            let (bytes, version) = match read_once(&at, clock).await {
                Err(Attempt::Stop(StoreError::NotFound { .. })) => {
                    return Err(Attempt::Again("HEAD changed while it was read".to_owned()));
                }
                read => read?,
            };
            let problem = match (self.parse(&bytes), &mut damage) {
                (Ok(head), None) if head.sequence == number => {
                    return Ok(Look::Held(Found { head, version: None }));
                }
                (Ok(head), Some(damage)) if head.sequence == number => {
                    damage.below = Some(head);
                    break;
                }
                (Ok(head), _) => format!("generation {number} holds the content of {}", head.sequence),
                (Err(Unusable::Broken(problem)), _) => format!("generation {number}: {problem}"),
                (Err(Unusable::Foreign(problem)), _) => return Err(Attempt::Stop(self.not_ours(problem))),
            };
            damage.get_or_insert(Damage {
                problem,
                content: digest_of(&bytes),
                version,
                last: number,
                below: None,
            });
        }
        Ok(damage.map_or(Look::Nothing, Look::Damaged))
    }

    fn generation(&self, number: u64) -> Uri {
        self.head.join(&format!("{number:0GENERATION_DIGITS$}"))
    }

    async fn generations_once(&self, clock: &Clock) -> std::result::Result<Vec<u64>, Attempt> {
        let number = |name: &String| {
            let plain = name.len() == GENERATION_DIGITS && name.bytes().all(|b| b.is_ascii_digit());
            name.parse().ok().filter(|_| plain)
        };
        Ok(list_once(&self.at, clock)
            .await?
            .objects
            .iter()
            .filter_map(number)
            .collect())
    }

    fn parse(&self, bytes: &[u8]) -> std::result::Result<Head, Unusable> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| Unusable::Broken(format!("it cannot be read: {e}")))?;
        // First, since another version's may look different in every other way.
        match value.get("schemaVersion").and_then(serde_json::Value::as_u64) {
            Some(version) if version != u64::from(SCHEMA_VERSION) => {
                return Err(Unusable::Foreign(format!(
                    "schemaVersion {version} is not {SCHEMA_VERSION}, the one understood here"
                )));
            }
            _ => (),
        }
        let head: Head =
            serde_json::from_value(value).map_err(|e| Unusable::Broken(format!("it cannot be read: {e}")))?;
        if head.job_uid != self.uid {
            return Err(Unusable::Foreign(format!(
                "it is of job {}, not of {}",
                head.job_uid, self.uid
            )));
        }
        Ok(head)
    }

    /// Puts `next` in the place of `base`, or finds out what is there instead.
    async fn swap(&self, base: &Look, next: &Head) -> Result<Swap> {
        let bytes: Bytes = serde_json::to_vec_pretty(next)
            .map_err(|e| self.not_ours(format!("it cannot be written: {e}")))?
            .into();
        let mut clock = Clock::new(self.store.limits, bytes.len() as u64);
        let mut tries = 0;
        let mut base = base.clone();
        loop {
            tries += 1;
            let put = self.write(&base, next, &bytes, &clock).await;
            if let Ok(Some(version)) = put {
                return Ok(Swap::Done(Found {
                    head: next.clone(),
                    version: Some(version),
                }));
            }
            let problem = match self.read(&mut clock).await {
                Ok(Look::Held(found)) if found.head == *next => match self.settle(put.is_ok(), &clock).await {
                    Ok(()) => return Ok(Swap::Done(found)),
                    Err(problem) => problem,
                },
                Ok(look) if !same(&base, &look) => return Ok(Swap::Other(look)),
                Ok(look) => {
                    // The same content, but its ETag may be another by now.
                    base = look;
                    match put {
                        Err(Attempt::Stop(error)) => return Err(error),
                        Err(Attempt::Again(problem)) => problem,
                        Err(Attempt::Exists) => "the swap was refused although HEAD is as it was".to_owned(),
                        Ok(_) => "HEAD does not show what was written".to_owned(),
                    }
                }
                Err(Attempt::Again(problem)) => problem,
                Err(Attempt::Exists) => return Err(odd(&self.at)),
                Err(Attempt::Stop(error)) => match put {
                    Err(Attempt::Stop(first)) => return Err(first),
                    _ => return Err(error),
                },
            };
            pause(&self.at, &clock, tries, problem).await?;
        }
    }

    /// Writes once. With a version the write is known to hold; without one `HEAD` has to be read.
    async fn write(
        &self,
        base: &Look,
        next: &Head,
        bytes: &Bytes,
        clock: &Clock,
    ) -> std::result::Result<Option<UpdateVersion>, Attempt> {
        if self.local.is_some() {
            let at = self
                .store
                .locate(&self.generation(next.sequence))
                .map_err(Attempt::Stop)?;
            put_once(&at, bytes, PutMode::Create, clock).await?;
            // A writer that slept may have made a generation that was there before and is pruned: whether this one is the
            // highest is seen only now.
            return Ok(None);
        }
        let unknown = || UpdateVersion {
            e_tag: None,
            version: None,
        };
        let mode = match base {
            Look::Nothing => PutMode::Create,
            Look::Held(found) => PutMode::Update(found.version.clone().unwrap_or_else(unknown)),
            Look::Damaged(damage) => PutMode::Update(damage.version.clone()),
        };
        let version = put_once(&self.at, bytes, mode, clock).await?;
        Ok(version.e_tag.is_some().then_some(version))
    }

    /// Makes sure that what can be read now is still there after a loss of power: of a write that failed or came too late,
    /// the name may not be on the disk yet, and checkpoints are removed on the strength of it.
    async fn settle(&self, written: bool, clock: &Clock) -> std::result::Result<(), String> {
        let Some(folder) = self.local.as_ref().filter(|_| !written) else {
            return Ok(());
        };
        let sync = async { tokio::fs::File::open(folder.join(HEAD_FILE)).await?.sync_all().await };
        match clock.all(sync).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(format!("{HEAD_FILE} cannot be synced: {e}")),
            Err(_) => Err(format!("{HEAD_FILE} was not synced in time")),
        }
    }

    /// Finds out whether the storage refuses writes whose condition does not hold.
    async fn probe(&self) -> Result<()> {
        let clock = Clock::new(self.store.limits, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            // A new name each time: of a try that failed it is not known what it left.
            let uri = self.uri.join(&format!("{PROBE}{:032x}", rand::random::<u128>()));
            let at = self.store.locate(&uri)?;
            let problem = match self.probe_once(&at, &clock).await {
                Ok(lacks) => {
                    if let Err(problem) = self.store.delete(&uri).await {
                        tracing::warn!(%uri, %problem, "the probe of the storage could not be removed");
                    }
                    return match lacks {
                        None => Ok(()),
                        Some(problem) => Err(StoreError::LacksConditionalPut {
                            uri: uri.to_string(),
                            problem: problem.to_owned(),
                        }),
                    };
                }
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Exists) => "a name that is new is taken".to_owned(),
                Err(Attempt::Again(problem)) => problem,
            };
            pause(&at, &clock, tries, problem).await?;
        }
    }

    /// What is wrong with the storage's conditional writes, if anything. The contents are of one length, so that an ETag
    /// made of the length alone is found out, too.
    async fn probe_once(&self, at: &Location, clock: &Clock) -> std::result::Result<Option<&'static str>, Attempt> {
        let put = |content: &'static str, mode| async move {
            match put_once(at, &Bytes::from_static(content.as_bytes()), mode, clock).await {
                Ok(version) => Ok(Some(version)),
                Err(Attempt::Exists) => Ok(None),
                Err(attempt) => Err(attempt),
            }
        };
        let first = put("1", PutMode::Create).await?.ok_or(Attempt::Exists)?;
        if put("2", PutMode::Create).await?.is_some() {
            return Ok(Some("a second create of the same object is not refused"));
        }
        if self.local.is_some() {
            return Ok(None);
        }
        if first.e_tag.is_none() {
            return Ok(Some("it gives no ETag"));
        }
        if put("3", PutMode::Update(first.clone())).await?.is_none() {
            return Ok(Some("a write that names the ETag of the object is refused"));
        }
        if put("4", PutMode::Update(first)).await?.is_some() {
            return Ok(Some(
                "a write that names an ETag which is no longer the object's is not refused",
            ));
        }
        Ok(None)
    }

    /// Removes generations far below the one that holds.
    async fn prune(&self, last: u64) -> Result<()> {
        if self.local.is_none() {
            return Ok(());
        }
        for name in self.store.list(&self.head).await?.objects {
            if name.parse::<u64>().is_ok_and(|n| n.saturating_add(GENERATIONS) <= last) {
                self.store.delete(&self.head.join(&name)).await?;
            }
        }
        Ok(())
    }
}

/// Why content is no `HEAD` of this job.
enum Unusable {
    /// It cannot be read, whoever wrote it.
    Broken(String),
    /// It is somebody else's.
    Foreign(String),
}

/// Whether `HEAD` is still the one that was to be replaced. Its content tells: no two swaps write the same.
fn same(base: &Look, found: &Look) -> bool {
    match (base, found) {
        (Look::Nothing, Look::Nothing) => true,
        (Look::Held(base), Look::Held(found)) => base.head == found.head,
        (Look::Damaged(base), Look::Damaged(found)) => base.content == found.content && base.last == found.last,
        _ => false,
    }
}

async fn read_once(at: &Location, clock: &mut Clock) -> std::result::Result<(Bytes, UpdateVersion), Attempt> {
    let mut bytes = Vec::new();
    match fetch_once(at, HEAD_MAX_BYTES, &mut Sink::Memory(&mut bytes), clock).await {
        Ok((_, version)) => Ok((bytes.into(), version)),
        // No JSON either way.
        Err(Attempt::Stop(StoreError::TooLarge { .. })) => Ok((
            Bytes::from_static(b"more bytes than are read"),
            UpdateVersion {
                e_tag: None,
                version: None,
            },
        )),
        Err(attempt) => Err(attempt),
    }
}

#[cfg(test)]
mod tests;
