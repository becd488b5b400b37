//! What a lineage promises, under crashes, forgeries, faults and rival writers.

mod crash;
mod damage;
mod fault;
mod fence;
mod forgery;
mod wrapper;

use std::collections::BTreeMap;
use std::path::Path as FsPath;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flywheel_contract::failure::FailureReason;
use flywheel_contract::storage::StorageSettings;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;
use crate::{Limits, Purpose};
use wrapper::{Act, Forget, Wrapped};

const FILES: [&str; 3] = ["model.safetensors", "optimizer.safetensors", "state.json"];
const UID: &str = "5f1c0a2e-job";

/// A store that reaches its scheme's one origin through this client.
fn store_over(origin: &str, client: Arc<dyn ObjectStore>) -> Arc<Store> {
    let store = Store::with_limits(&StorageSettings::default(), Limits::default()).unwrap();
    store.clients.lock().unwrap().insert(origin.to_owned(), client);
    Arc::new(store)
}

fn job(attempt: u32) -> JobIdentity {
    JobIdentity {
        namespace: "team".to_owned(),
        name: "intent".to_owned(),
        uid: UID.to_owned(),
        attempt,
    }
}

/// A place for one test: a folder, or a bucket in memory.
struct Bed {
    uri: Uri,
    origin: &'static str,
    client: Arc<dyn ObjectStore>,
    folder: Option<tempfile::TempDir>,
}

impl Bed {
    fn bucket() -> Self {
        Self::over(Arc::new(InMemory::new()))
    }

    fn over(client: Arc<dyn ObjectStore>) -> Self {
        Self {
            uri: Uri(format!("s3://bucket/ckpt/{UID}")),
            origin: "s3://bucket",
            client,
            folder: None,
        }
    }

    fn files() -> Self {
        let folder = scratch();
        Self {
            uri: Uri(format!("file://{}/{UID}", folder.path().display())),
            origin: "file://",
            client: Arc::new(LocalFileSystem::new().with_fsync(true)),
            folder: Some(folder),
        }
    }

    /// The MinIO that `make test` has started, which swaps atomically as a whole system.
    fn minio() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let endpoint = std::env::var("FLYWHEEL_S3_ENDPOINT").expect(
            "FLYWHEEL_S3_ENDPOINT is not set: run this through `make test`, or name a MinIO with AWS_ACCESS_KEY_ID, \
             AWS_SECRET_ACCESS_KEY and a bucket `flywheel`",
        );
        let settings = StorageSettings {
            endpoint: Some(endpoint),
            ..StorageSettings::default()
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let run = rand::random::<u64>();
        let uri = Uri(format!("s3://flywheel/test/fence-{run:x}-{number}/{UID}"));
        let store = Store::with_limits(&settings, Limits::default()).unwrap();
        Self {
            client: store.locate(&uri).unwrap().client,
            uri,
            origin: "s3://flywheel",
            folder: None,
        }
    }

    fn store(&self) -> Arc<Store> {
        self.store_through(Arc::clone(&self.client))
    }

    fn store_through(&self, client: Arc<dyn ObjectStore>) -> Arc<Store> {
        store_over(self.origin, client)
    }

    async fn take(&self, attempt: u32, keep: usize) -> Result<Lineage> {
        self.store().take_lineage(&self.uri, &job(attempt), keep).await
    }

    /// All objects of the lineage by their path within it.
    async fn objects(&self) -> BTreeMap<String, Bytes> {
        let at = self.store().locate(&self.uri).unwrap();
        let mut found = BTreeMap::new();
        let mut list = self.client.list(Some(&at.path));
        while let Some(meta) = futures::StreamExt::next(&mut list).await {
            let location = meta.unwrap().location;
            let bytes = self.client.get(&location).await.unwrap().bytes().await.unwrap();
            let name = location.as_ref().strip_prefix(at.path.as_ref()).unwrap();
            found.insert(name.trim_start_matches('/').to_owned(), bytes);
        }
        found
    }

    async fn write(&self, name: &str, bytes: impl Into<Bytes>) {
        let at = self.store().locate(&self.uri.join(name)).unwrap();
        self.client.put(&at.path, bytes.into().into()).await.unwrap();
    }

    async fn erase(&self, name: &str) {
        let at = self.store().locate(&self.uri.join(name)).unwrap();
        self.client.delete(&at.path).await.unwrap();
    }

    /// The objects that say who may write and what holds.
    async fn heads(&self) -> BTreeMap<String, Bytes> {
        let mut all = self.objects().await;
        all.retain(|name, _| name.starts_with(HEAD_FILE));
        all
    }
}

/// A temporary folder, in memory where the system has such: thousands are made.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn content(step: u64, name: &str) -> Vec<u8> {
    let seed = step * 31 + name.len() as u64;
    let mut bytes = vec![0; 40 + (seed % 60) as usize];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn dataset() -> Digest {
    Digest::sha256(&"d".repeat(64))
}

/// Commits the state of a step, made up from its number.
async fn commit(lineage: &mut Lineage, step: u64) -> Result<CheckpointRef> {
    let folder = scratch();
    for name in FILES {
        std::fs::write(folder.path().join(name), content(step, name)).unwrap();
    }
    let files = FILES.map(str::to_owned);
    lineage.commit(folder.path(), &files, step, &dataset()).await
}

/// The calls of one commit, with everything well.
async fn calls_of_a_commit(bed: &Bed) -> usize {
    let wrapped = Wrapped::new(&bed.client, Forget::Nothing, |_, _| Act::Pass);
    let store = bed.store_through(wrapped.client());
    let mut lineage = store.take_lineage(&bed.uri, &job(1), 2).await.unwrap();
    for step in [10, 20] {
        commit(&mut lineage, step).await.unwrap();
    }
    wrapped.restart();
    commit(&mut lineage, 30).await.unwrap();
    wrapped.calls()
}

fn assert_whole(folder: &FsPath, step: u64) {
    for name in FILES {
        assert!(
            std::fs::read(folder.join(name)).unwrap() == content(step, name),
            "{name} of step {step} is not what was written"
        );
    }
}

/// What a new attempt does: the newest checkpoint that can be used, with how many were passed over.
async fn resume(lineage: &Lineage) -> Result<(Option<CheckpointRef>, usize)> {
    for (passed, checkpoint) in lineage.head().checkpoints.iter().enumerate() {
        let folder = scratch();
        match lineage.fetch(checkpoint, folder.path()).await {
            Ok(manifest) => {
                assert_eq!(manifest.step, checkpoint.step);
                assert_whole(folder.path(), checkpoint.step);
                return Ok((Some(checkpoint.clone()), passed));
            }
            Err(StoreError::Checkpoint { .. }) => {
                let left = std::fs::read_dir(folder.path()).unwrap().count();
                assert_eq!(left, 0, "nothing half stays");
            }
            Err(error) => return Err(error),
        }
    }
    Ok((None, lineage.head().checkpoints.len()))
}

fn steps(head: &Head) -> Vec<u64> {
    head.checkpoints.iter().map(|c| c.step).collect()
}

#[tokio::test]
async fn a_job_is_taken_saved_resumed_and_ended() {
    for bed in [Bed::bucket(), Bed::files()] {
        let mut first = bed.take(1, 3).await.unwrap();
        assert_eq!((first.head().attempt, first.head().sequence), (1, 1));
        assert_eq!(first.uri(), &bed.uri);
        for step in [10, 20, 30, 40, 50] {
            let made = commit(&mut first, step).await.unwrap();
            assert_eq!(made.step, step);
            assert_eq!(first.leftover(), None);
        }
        assert_eq!(steps(first.head()), [50, 40, 30]);
        let names: Vec<_> = bed.objects().await.into_keys().collect();
        let folders: std::collections::BTreeSet<_> = names
            .iter()
            .filter_map(|n| n.strip_prefix("checkpoints/")?.split('/').next())
            .collect();
        assert_eq!(folders.len(), 3, "only those that are kept are there: {names:?}");
        assert!(!names.iter().any(|n| n.starts_with(PROBE)), "{names:?}");

        let mut second = bed.take(2, 2).await.unwrap();
        assert_eq!(steps(second.head()), [50, 40, 30]);
        assert_eq!(resume(&second).await.unwrap().0.unwrap().step, 50);
        let error = commit(&mut first, 60).await.unwrap_err();
        assert_eq!(error.reason(Purpose::Output), FailureReason::Fenced, "{error}");
        assert!(matches!(error, StoreError::Fenced { attempt: 2, .. }), "{error}");
        // It knows now, and writes nothing at all.
        let before = bed.objects().await;
        assert!(matches!(commit(&mut first, 70).await, Err(StoreError::Fenced { .. })));
        assert!(bed.objects().await == before);
        let error = bed.take(1, 3).await.unwrap_err();
        assert!(matches!(error, StoreError::Fenced { attempt: 2, .. }), "{error}");

        commit(&mut second, 60).await.unwrap();
        assert_eq!(steps(second.head()), [60, 50]);
        assert_eq!(
            bed.objects()
                .await
                .keys()
                .filter(|n| n.ends_with(MANIFEST_FILE))
                .count(),
            2,
            "what the fenced writer left is gone, too"
        );

        let digest = Digest::sha256(&"e".repeat(64));
        let path = "attempt-2.result.json".to_owned();
        assert!(matches!(second.clear().await, Err(StoreError::Invalid { .. })));
        second.commit_result(path.clone(), digest.clone()).await.unwrap();
        second.commit_result(path.clone(), digest.clone()).await.unwrap();
        let other = second.commit_result(path.clone(), dataset()).await.unwrap_err();
        assert_eq!(other.reason(Purpose::Output), FailureReason::OutputConflict, "{other}");
        let late = commit(&mut second, 80).await.unwrap_err();
        assert!(late.to_string().contains("nothing more is saved"), "{late}");

        // Another pod of the same attempt finds the result and clears.
        let mut third = bed.take(2, 2).await.unwrap();
        assert_eq!(third.head().result, Some(ResultRef { path, digest }));
        assert!(matches!(
            second.clear().await,
            Err(StoreError::Fenced { attempt: 2, .. })
        ));
        third.clear().await.unwrap();
        assert_eq!(third.head().checkpoints, []);
        assert!(third.head().result.is_some());
        assert_eq!(third.leftover(), None);
        let names: Vec<_> = bed.objects().await.into_keys().collect();
        assert!(names.iter().all(|n| n.starts_with(HEAD_FILE)), "{names:?}");
        if let Some(folder) = &bed.folder {
            let left = std::fs::read_dir(folder.path().join(UID).join(CHECKPOINTS_DIR)).unwrap();
            assert_eq!(left.count(), 0, "no empty folders stay");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_forgotten_at_the_next_commit() {
    let bed = Bed::bucket();
    let mut lineage = bed.take(1, 3).await.unwrap();
    for step in [10, 20, 30] {
        commit(&mut lineage, step).await.unwrap();
    }
    let newest = lineage.head().checkpoints[0].clone();
    bed.write(&format!("checkpoints/{}/{}", newest.name, FILES[0]), "damaged")
        .await;
    let mut next = bed.take(2, 3).await.unwrap();
    let (found, passed) = resume(&next).await.unwrap();
    assert_eq!((found.unwrap().step, passed), (20, 1));
    next.forget(&newest);
    commit(&mut next, 25).await.unwrap();
    assert_eq!(steps(next.head()), [25, 20, 10]);
    assert!(!bed.objects().await.keys().any(|n| n.contains(&newest.name)));
}

#[tokio::test]
async fn a_head_that_is_not_ours_is_left_alone() {
    let foreign = r#"{"schemaVersion":1,"jobUid":"another","attempt":1,"writer":"w","sequence":1,"checkpoints":[]}"#;
    let newer = format!(r#"{{"schemaVersion":99,"jobUid":"{UID}","anything":true}}"#);
    for (content, word) in [
        (foreign, "it is of job another"),
        (newer.as_str(), "schemaVersion 99"),
        ("", "cannot be read"),
        ("{}", "cannot be read"),
        (
            r#"{"schemaVersion":1,"jobUid":"5f1c0a2e-job","attempt":1,"writer":"w","sequence":1}"#,
            "checkpoints",
        ),
    ] {
        for (bed, name) in [(Bed::bucket(), "HEAD"), (Bed::files(), "HEAD/00000000000000000001")] {
            bed.write(name, content.to_owned()).await;
            let before = bed.objects().await;
            let error = bed.take(1, 3).await.unwrap_err();
            assert_eq!(error.reason(Purpose::Output), FailureReason::OutputConflict, "{error}");
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.to_string().contains("choose another `checkpoint.uri`"), "{error}");
            assert!(bed.objects().await == before, "nothing was written");
        }
    }
    // On a file system ours is a folder.
    let bed = Bed::files();
    bed.write(HEAD_FILE, "a stranger's".to_owned()).await;
    let error = bed.take(1, 3).await.unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::OutputConflict, "{error}");
    assert_eq!(bed.objects().await.len(), 1, "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_was_restored_as_it_was_is_swapped() {
    let bed = Bed::bucket();
    let mut lineage = bed.take(1, 3).await.unwrap();
    let head = bed.heads().await.remove(HEAD_FILE).unwrap();
    // Another ETag, the same content.
    bed.write(HEAD_FILE, head).await;
    commit(&mut lineage, 10).await.unwrap();
    assert_eq!(steps(lineage.head()), [10]);
}

#[tokio::test]
async fn a_head_that_vanishes_or_goes_back_is_told() {
    let bed = Bed::bucket();
    let mut lineage = bed.take(1, 3).await.unwrap();
    commit(&mut lineage, 10).await.unwrap();
    let older = bed.heads().await.remove(HEAD_FILE).unwrap();
    commit(&mut lineage, 20).await.unwrap();
    bed.write(HEAD_FILE, older).await;
    let error = commit(&mut lineage, 30).await.unwrap_err();
    assert!(error.to_string().contains("went back"), "{error}");
    assert_eq!(error.reason(Purpose::Output), FailureReason::OutputConflict);
    bed.erase(HEAD_FILE).await;
    let error = commit(&mut lineage, 30).await.unwrap_err();
    assert!(error.to_string().contains("it is gone"), "{error}");
    assert_eq!(error.reason(Purpose::Output), FailureReason::HeadDamaged);
}

#[tokio::test]
async fn generations_on_a_file_system_are_pruned_and_the_next_writer_goes_above_a_broken_newest() {
    let bed = Bed::files();
    let mut lineage = bed.take(1, 2).await.unwrap();
    for step in 1..=30 {
        commit(&mut lineage, step).await.unwrap();
    }
    let heads: Vec<_> = bed.heads().await.into_keys().collect();
    assert_eq!(heads.len(), usize::try_from(GENERATIONS).unwrap(), "{heads:?}");
    assert_eq!(heads.last().unwrap(), "HEAD/00000000000000000031");

    // Torn, as no crash can leave it. The one before it names 29 and 28, of which 28 is swept already.
    bed.write(heads.last().unwrap(), "{\"schemaVers").await;
    let mut next = bed.take(2, 2).await.unwrap();
    assert_eq!(steps(next.head()), [30, 29]);
    assert_eq!(next.head().sequence, 32);
    assert!(matches!(
        commit(&mut lineage, 31).await,
        Err(StoreError::Fenced { attempt: 2, .. })
    ));
    commit(&mut next, 40).await.unwrap();
    assert_eq!(steps(next.head()), [40, 30]);
}

#[tokio::test]
async fn a_writer_whose_next_generation_was_pruned_is_fenced_all_the_same() {
    let bed = Bed::files();
    let mut slept = bed.take(1, 2).await.unwrap();
    commit(&mut slept, 1).await.unwrap();
    let mut next = bed.take(2, 2).await.unwrap();
    for step in 2..40 {
        commit(&mut next, step).await.unwrap();
    }
    assert!(!bed.heads().await.contains_key("HEAD/00000000000000000003"));
    let error = commit(&mut slept, 2).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced { attempt: 2, .. }), "{error}");
    commit(&mut next, 40).await.unwrap();
    assert_eq!(steps(bed.take(3, 2).await.unwrap().head()), [40, 39]);
}

#[test]
fn names_are_read_back_only_as_they_are_written() {
    let name = Name {
        step: 1200,
        attempt: 3,
        taken: 17,
        seal: 0xab,
    };
    let text = name.to_string();
    assert_eq!(text, "000000001200-3-17-00000000000000ab");
    let parsed = Name::parse(&text).unwrap();
    assert_eq!((parsed.step, parsed.attempt, parsed.taken), (1200, 3, 17));
    for text in [
        "",
        "1200-3-17-00000000000000ab",
        "000000001200-3-17-00000000000000AB",
        "000000001200-+3-17-00000000000000ab",
        "000000001200-3-17",
        "000000001200-3-17-00000000000000ab-1",
        "../000000001200-3-17-00000000000000ab",
    ] {
        assert!(Name::parse(text).is_none(), "{text:?}");
    }
}

#[tokio::test]
async fn what_can_only_be_read_is_refused() {
    let store = Arc::new(Store::new(&StorageSettings::default()).unwrap());
    let error = store
        .take_lineage(&"https://host/ckpt/uid".into(), &job(1), 3)
        .await
        .unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::StorageInvalid, "{error}");
    assert!(error.to_string().contains("write to s3:// or file://"), "{error}");
}

#[tokio::test]
async fn files_that_cannot_be_a_checkpoint_are_refused_before_anything_is_written() {
    let bed = Bed::bucket();
    let mut lineage = bed.take(1, 3).await.unwrap();
    let before = bed.objects().await;
    let folder = scratch();
    std::fs::write(folder.path().join("a"), "a").unwrap();
    std::fs::write(folder.path().join(MANIFEST_FILE), "a").unwrap();
    for files in [
        vec![],
        vec!["a", "a"],
        vec![MANIFEST_FILE],
        vec!["../a"],
        vec!["missing"],
    ] {
        let files: Vec<String> = files.into_iter().map(str::to_owned).collect();
        let error = lineage.commit(folder.path(), &files, 1, &dataset()).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Checkpoint { .. } | StoreError::Disk { .. }),
            "{files:?}: {error}"
        );
        assert!(bed.objects().await == before, "{files:?}");
    }
}
