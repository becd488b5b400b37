//! Reading and writing single objects: streaming, hashing, bounds, deadlines, tries.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flywheel_contract::scalar::{Digest, Uri};
use futures::StreamExt;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt};
use tokio::time::Instant;

use crate::client::{Access, Location};
use crate::error::{Attempt, Result, StoreError, short, sort};
use crate::{Limits, Store};

/// Wait after the first failed try; doubles up to [`WAIT_MAX`].
const WAIT_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between tries.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes of one part. S3 takes at most 10,000 parts, so this allows 320 GB.
const PART_BYTES: usize = 32 * 1024 * 1024;

/// When bytes last came or went.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<Option<Instant>>);

impl Traffic {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map(|at| at.elapsed())
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes.
    pub length: u64,
    /// Content.
    pub digest: Digest,
}

/// What a conditional create found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// Nothing was there; it is now.
    New,
    /// The same bytes were there already, for example by an earlier try whose answer was lost.
    Same,
}

/// Where read bytes go.
pub(crate) enum Sink<'a> {
    Nowhere,
    Memory(&'a mut Vec<u8>),
    /// A file that is created anew at each try.
    File(&'a Path),
}

/// Deadline of one operation over all its tries.
pub(crate) struct Clock {
    limits: Limits,
    start: Instant,
    deadline: Instant,
}

impl Clock {
    pub(crate) fn new(limits: Limits, bytes: u64) -> Self {
        let start = Instant::now();
        let mut clock = Self {
            limits,
            start,
            deadline: start + limits.operation,
        };
        clock.expect(bytes);
        clock
    }

    /// Allows for this many bytes; the longest allowance counts.
    fn expect(&mut self, bytes: u64) {
        let allowance = Duration::from_secs(bytes / self.limits.slowest_rate.max(1));
        self.deadline = self.deadline.max(self.start + self.limits.operation + allowance);
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits for the beginning of an answer.
    async fn begin<T>(&self, work: impl Future<Output = T>) -> std::result::Result<T, Attempt> {
        let wait = self.left().min(self.limits.silence);
        let late = |_| Attempt::Again(format!("no answer within {:.1} s", wait.as_secs_f64()));
        tokio::time::timeout(wait, work).await.map_err(late)
    }

    /// Waits for the next piece of an answer.
    async fn piece<T>(&self, work: impl Future<Output = T>) -> std::result::Result<T, Attempt> {
        let (left, silence) = (self.left(), self.limits.silence);
        tokio::time::timeout(left.min(silence), work).await.map_err(|_| {
            Attempt::Again(if left < silence {
                "the answer came too slowly".to_owned()
            } else {
                format!("the answer stopped for {:.1} s", silence.as_secs_f64())
            })
        })
    }

    /// Waits for a request that sends much: only the deadline bounds it.
    pub(crate) async fn all<T>(&self, work: impl Future<Output = T>) -> std::result::Result<T, Attempt> {
        let wait = self.left();
        tokio::time::timeout(wait, work)
            .await
            .map_err(|_| Attempt::Again(format!("not done within {:.1} s", wait.as_secs_f64())))
    }
}

impl Location {
    /// What is said when no try is left.
    fn unavailable(&self, clock: &Clock, tries: u32, problem: String) -> StoreError {
        StoreError::Unavailable {
            uri: self.uri.clone(),
            limit: clock.deadline - clock.start,
            waited: clock.start.elapsed(),
            tries,
            problem,
            // AWS is asked for the node's own credentials then, which there may be none of.
            hint: match self.access {
                Access::S3 {
                    keys: false,
                    endpoint: false,
                } => ", and that `storage.secretRef` names a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                _ => "",
            },
        }
    }
}

/// The pause before try number `tries` + 1, or the final error where it would end after the deadline.
pub(crate) async fn pause(at: &Location, clock: &Clock, tries: u32, problem: String) -> Result<()> {
    let wait = WAIT_FIRST
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(WAIT_MAX);
    if wait >= clock.left() {
        return Err(at.unavailable(clock, tries, problem));
    }
    tracing::warn!(uri = %at.uri, tries, problem, "storage failed, trying again");
    tokio::time::sleep(wait).await;
    Ok(())
}

pub(crate) fn disk(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError::Disk { action, path, source }
}

impl Store {
    /// Reads an object of at most `max` bytes into memory.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is returned in part.
    pub async fn get_bytes(&self, uri: &Uri, max: u64) -> Result<(Bytes, Fetched)> {
        let mut bytes = Vec::new();
        let fetched = self.fetch(uri, max, &mut Sink::Memory(&mut bytes)).await?;
        Ok((bytes.into(), fetched))
    }

    /// Reads an object of at most `max` bytes into a file, which appears only when it is whole.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get_file(&self, uri: &Uri, max: u64, path: &Path) -> Result<Fetched> {
        let part = part_of(path);
        let fetched = self.fetch(uri, max, &mut Sink::File(&part)).await;
        if fetched.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        } else {
            tokio::fs::rename(&part, path).await.map_err(disk("rename", &part))?;
        }
        fetched
    }

    /// Length of an object in bytes; none where there is none.
    ///
    /// # Errors
    /// [`StoreError`], but not [`StoreError::NotFound`].
    pub async fn head(&self, uri: &Uri) -> Result<Option<u64>> {
        let at = self.locate(uri)?;
        let clock = Clock::new(self.limits, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            let attempt = match clock.begin(at.client.head(&at.path)).await {
                Ok(Ok(meta)) => return Ok(Some(meta.size)),
                Ok(Err(e)) => sort(&at, &e),
                Err(late) => late,
            };
            match attempt {
                Attempt::Stop(StoreError::NotFound { .. }) => return Ok(None),
                Attempt::Stop(error) => return Err(error),
                Attempt::Exists => return Err(odd(&at)),
                Attempt::Again(problem) => pause(&at, &clock, tries, problem).await?,
            }
        }
    }

    pub(crate) async fn fetch(&self, uri: &Uri, max: u64, sink: &mut Sink<'_>) -> Result<Fetched> {
        let at = self.locate(uri)?;
        let mut clock = Clock::new(self.limits, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            match fetch_once(&at, max, sink, &mut clock).await {
                Ok((fetched, _)) => return Ok(fetched),
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Exists) => return Err(odd(&at)),
                Err(Attempt::Again(problem)) => pause(&at, &clock, tries, problem).await?,
            }
        }
    }

    /// Writes an object where there is none.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where other bytes are there already, and the others of [`StoreError`].
    pub async fn put_create(&self, uri: &Uri, bytes: Bytes) -> Result<Created> {
        let at = self.writable(uri)?;
        let clock = Clock::new(self.limits, bytes.len() as u64);
        let mut tries = 0;
        loop {
            tries += 1;
            match put_once(&at, &bytes, PutMode::Create, &clock).await {
                Ok(_) => return Ok(Created::New),
                Err(Attempt::Exists) => {
                    let digest = digest_of(&bytes);
                    return self.same(uri, bytes.len() as u64, &digest).await;
                }
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Again(problem)) => pause(&at, &clock, tries, problem).await?,
            }
        }
    }

    /// Writes an object whatever is there, in one try, for what is written anew again and again: the next write is the next
    /// try. Readers see the old bytes or the new ones.
    ///
    /// # Errors
    /// [`StoreError`]; also for what a second try might have mended.
    pub async fn put_replace(&self, uri: &Uri, bytes: Bytes) -> Result<()> {
        let at = self.writable(uri)?;
        let clock = Clock::new(self.limits, bytes.len() as u64);
        match put_once(&at, &bytes, PutMode::Overwrite, &clock).await {
            Ok(_) => Ok(()),
            Err(Attempt::Stop(error)) => Err(error),
            Err(Attempt::Exists) => Err(odd(&at)),
            Err(Attempt::Again(problem)) => Err(at.unavailable(&clock, 1, problem)),
        }
    }

    /// Writes a local file where there is nothing. Up to [`Limits::single_put`] bytes it is one conditional create; a larger file goes in
    /// parts after a look whether the place is free, since S3's parts know no condition there.
    ///
    /// # Errors
    /// As [`Store::put_create`], and [`StoreError::Disk`].
    pub async fn put_file(&self, uri: &Uri, path: &Path) -> Result<Created> {
        let length = tokio::fs::metadata(path).await.map_err(disk("read", path))?.len();
        if length <= self.limits.single_put {
            let bytes = tokio::fs::read(path).await.map_err(disk("read", path))?;
            return self.put_create(uri, bytes.into()).await;
        }
        self.put_parts(uri, path, length).await
    }

    async fn put_parts(&self, uri: &Uri, path: &Path, length: u64) -> Result<Created> {
        let at = self.writable(uri)?;
        if self.head(uri).await?.is_some() {
            let digest = hash_file(path).await?;
            return self.same(uri, length, &digest).await;
        }
        let clock = Clock::new(self.limits, length);
        let mut tries = 0;
        loop {
            tries += 1;
            match put_parts_once(&at, path, &clock).await {
                Ok(()) => return Ok(Created::New),
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Exists) => return Err(StoreError::Conflict { uri: at.uri }),
                Err(Attempt::Again(problem)) => pause(&at, &clock, tries, problem).await?,
            }
        }
    }

    /// Finds out without a request whether a URI could be written to at all.
    ///
    /// # Errors
    /// [`StoreError::Invalid`].
    pub fn check_writable(&self, uri: &Uri) -> Result<()> {
        self.writable(uri).map(|_| ())
    }

    /// Names of what lies directly in a folder: objects, and folders that hold some. Empty where there is no folder.
    ///
    /// # Errors
    /// [`StoreError`], but not [`StoreError::NotFound`].
    pub async fn list(&self, uri: &Uri) -> Result<Listing> {
        let at = self.locate(uri)?;
        let clock = Clock::new(self.limits, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            match list_once(&at, &clock).await {
                Ok(listing) => return Ok(listing),
                Err(Attempt::Stop(error)) => return Err(error),
                Err(Attempt::Exists) => return Err(odd(&at)),
                Err(Attempt::Again(problem)) => pause(&at, &clock, tries, problem).await?,
            }
        }
    }

    /// Removes an object; where there is none, nothing is to be done. For what Flywheel wrote itself, in a folder of its own:
    /// a lineage, artifacts by their manifests, and a service's kept texts. Nothing else is ever removed.
    ///
    /// # Errors
    /// [`StoreError`], but not [`StoreError::NotFound`].
    pub async fn delete(&self, uri: &Uri) -> Result<()> {
        let at = self.writable(uri)?;
        let clock = Clock::new(self.limits, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            let attempt = match clock.begin(at.client.delete(&at.path)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) => sort(&at, &e),
                Err(late) => late,
            };
            match attempt {
                Attempt::Stop(StoreError::NotFound { .. }) => return Ok(()),
                Attempt::Stop(error) => return Err(error),
                Attempt::Exists => return Err(odd(&at)),
                Attempt::Again(problem) => pause(&at, &clock, tries, problem).await?,
            }
        }
    }

    pub(crate) fn writable(&self, uri: &Uri) -> Result<Location> {
        let at = self.locate(uri)?;
        if at.access != Access::Http {
            return Ok(at);
        }
        Err(StoreError::Invalid {
            uri: at.uri,
            problem: "http and https can only be read; write to s3:// or file://".to_owned(),
        })
    }

    /// Whether what is there is what would have been written. Its content is looked at only where the length is the same.
    async fn same(&self, uri: &Uri, length: u64, digest: &Digest) -> Result<Created> {
        let conflict = || StoreError::Conflict { uri: uri.to_string() };
        if self.head(uri).await? != Some(length) {
            return Err(conflict());
        }
        match self.fetch(uri, length, &mut Sink::Nowhere).await {
            Ok(found) if found.digest == *digest => Ok(Created::Same),
            Ok(_) | Err(StoreError::TooLarge { .. }) => Err(conflict()),
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn odd(at: &Location) -> StoreError {
    StoreError::Invalid {
        uri: at.uri.clone(),
        problem: "the storage answered a read with a failed precondition; check endpoint and region".to_owned(),
    }
}

/// Sorts an error of a write: says what is wrong with the place where nothing can be written to it.
fn sort_write(at: &Location, error: &object_store::Error) -> Attempt {
    let folder = || {
        let path = at.uri.strip_prefix("file://").map(Path::new)?;
        Some(described(path))
    };
    match sort(at, error) {
        Attempt::Stop(StoreError::NotFound { uri }) => Attempt::Stop(StoreError::Invalid {
            uri,
            problem: match folder() {
                Some(folder) => format!(
                    "nothing can be written there ({}): {folder}. Name a folder on a volume that takes files",
                    short(error)
                ),
                None => "there is no such bucket; create it, or check the URI and `storage.endpoint`".to_owned(),
            },
        }),
        Attempt::Stop(StoreError::Forbidden { uri, problem, hint }) => Attempt::Stop(StoreError::Forbidden {
            uri,
            problem: match folder() {
                Some(folder) => format!("{problem}: {folder}"),
                None => problem,
            },
            hint,
        }),
        attempt => attempt,
    }
}

/// Who may write to the last folder of a path that is there, and who asks.
fn described(path: &Path) -> String {
    let Some((folder, meta)) = path
        .ancestors()
        .skip(1)
        .find_map(|folder| Some((folder, std::fs::metadata(folder).ok()?)))
    else {
        return "no folder of it can be seen".to_owned();
    };
    // The owner of this folder is the user that the process acts as.
    let asks = std::fs::metadata("/proc/self").map_or(String::new(), |me| {
        format!(", this process is user {} and group {}", me.uid(), me.gid())
    });
    format!(
        "{} belongs to user {} and group {} with mode {:03o}{asks}",
        folder.display(),
        meta.uid(),
        meta.gid(),
        meta.mode() & 0o7777
    )
}

/// Name of the unfinished file.
fn part_of(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}

/// Reads an object once; with it comes what a conditional write of it has to name.
pub(crate) async fn fetch_once(
    at: &Location,
    max: u64,
    sink: &mut Sink<'_>,
    clock: &mut Clock,
) -> std::result::Result<(Fetched, UpdateVersion), Attempt> {
    let too_large = |size| {
        Attempt::Stop(StoreError::TooLarge {
            uri: at.uri.clone(),
            size,
            max,
        })
    };
    let answer = clock.begin(at.client.get(&at.path)).await?.map_err(|e| sort(at, &e))?;
    let size = answer.meta.size;
    let version = UpdateVersion {
        e_tag: answer.meta.e_tag.clone(),
        version: answer.meta.version.clone(),
    };
    if size > max {
        return Err(too_large(Some(size)));
    }
    clock.expect(size);
    let mut file = match sink {
        Sink::File(path) => Some(
            tokio::fs::File::create(&path)
                .await
                .map_err(|e| Attempt::Stop(disk("create", path)(e)))?,
        ),
        Sink::Memory(bytes) => {
            bytes.clear();
            None
        }
        Sink::Nowhere => None,
    };
    let mut stream = answer.into_stream();
    let mut hasher = Sha256::new();
    let mut length = 0_u64;
    while let Some(chunk) = clock.piece(stream.next()).await? {
        let chunk = chunk.map_err(|e| sort(at, &e))?;
        length += chunk.len() as u64;
        if length > max {
            return Err(too_large(None));
        }
        at.traffic.note();
        hasher.update(&chunk);
        match (&mut file, &mut *sink) {
            (Some(file), Sink::File(path)) => {
                file.write_all(&chunk)
                    .await
                    .map_err(|e| Attempt::Stop(disk("write", path)(e)))?;
            }
            (_, Sink::Memory(bytes)) => bytes.extend_from_slice(&chunk),
            _ => (),
        }
    }
    if length != size {
        return Err(Attempt::Again(format!(
            "the answer ended after {length} of {size} bytes"
        )));
    }
    if let (Some(mut file), Sink::File(path)) = (file, sink) {
        file.flush().await.map_err(|e| Attempt::Stop(disk("write", path)(e)))?;
    }
    let digest = Digest::sha256(&hex::encode(hasher.finalize()));
    Ok((Fetched { length, digest }, version))
}

/// Writes an object once, on a condition.
pub(crate) async fn put_once(
    at: &Location,
    bytes: &Bytes,
    mode: PutMode,
    clock: &Clock,
) -> std::result::Result<UpdateVersion, Attempt> {
    let options = PutOptions {
        mode,
        ..PutOptions::default()
    };
    let payload = PutPayload::from_bytes(bytes.clone());
    match clock.all(at.client.put_opts(&at.path, payload, options)).await? {
        Ok(put) => {
            at.traffic.note();
            Ok(put.into())
        }
        Err(e) => Err(sort_write(at, &e)),
    }
}

/// What lies directly in a folder.
pub struct Listing {
    /// Objects.
    pub objects: Vec<String>,
    /// Folders.
    pub folders: Vec<String>,
}

pub(crate) async fn list_once(at: &Location, clock: &Clock) -> std::result::Result<Listing, Attempt> {
    let listed = clock
        .all(at.client.list_with_delimiter(Some(&at.path)))
        .await?
        .map_err(|e| sort(at, &e))?;
    let name = |path: &object_store::path::Path| path.filename().map(str::to_owned);
    Ok(Listing {
        objects: listed.objects.iter().filter_map(|o| name(&o.location)).collect(),
        folders: listed.common_prefixes.iter().filter_map(name).collect(),
    })
}

async fn put_parts_once(at: &Location, path: &Path, clock: &Clock) -> std::result::Result<(), Attempt> {
    let mut upload = clock
        .begin(at.client.put_multipart(&at.path))
        .await?
        .map_err(|e| sort_write(at, &e))?;
    let sent = send_parts(at, path, clock, upload.as_mut()).await;
    if sent.is_err() {
        // Best effort: parts without an end cost storage until the bucket's own rule removes them.
        let _ = clock.begin(upload.abort()).await;
    }
    sent
}

async fn send_parts(
    at: &Location,
    path: &Path,
    clock: &Clock,
    upload: &mut dyn MultipartUpload,
) -> std::result::Result<(), Attempt> {
    let read = |e| Attempt::Stop(disk("read", path)(e));
    let mut file = tokio::fs::File::open(path).await.map_err(read)?;
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        (&mut file)
            .take(PART_BYTES as u64)
            .read_to_end(&mut part)
            .await
            .map_err(|e| Attempt::Stop(disk("read", path)(e)))?;
        if part.is_empty() {
            break;
        }
        clock
            .all(upload.put_part(part.into()))
            .await?
            .map_err(|e| sort_write(at, &e))?;
        at.traffic.note();
    }
    clock.all(upload.complete()).await?.map_err(|e| sort_write(at, &e))?;
    Ok(())
}

/// Digest of bytes in memory.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::sha256(&hex::encode(Sha256::digest(bytes)))
}

/// Length and digest of a local file, read in large pieces on the thread that calls.
pub(crate) fn hash_here(path: &Path) -> std::io::Result<Fetched> {
    let (mut file, mut hasher, mut length) = (std::fs::File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0_u8; 1024 * 1024];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            let digest = Digest::sha256(&hex::encode(hasher.finalize()));
            return Ok(Fetched { length, digest });
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
        length += n as u64;
    }
}

pub(crate) async fn hash_file(path: &Path) -> Result<Digest> {
    let here = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || hash_here(&here)).await;
    let hashed = hashed.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    Ok(hashed.map_err(disk("read", path))?.digest)
}
