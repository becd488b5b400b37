//! Against a real MinIO: the local cluster's, whose bucket `flywheel` is there from the start. `make test` sets
//! `FLYWHEEL_S3_ENDPOINT`, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use flywheel_contract::checkpoint::CheckpointRef;
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::{Digest, Uri};
use flywheel_contract::storage::StorageSettings;
use flywheel_contract::trainer::JobIdentity;
use flywheel_store::{Created, Limits, Lineage, Purpose, Store, StoreError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn endpoint() -> String {
    std::env::var("FLYWHEEL_S3_ENDPOINT").expect(
        "FLYWHEEL_S3_ENDPOINT is not set: run this through `make test`, which starts a MinIO, or name one with \
         AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and a bucket `flywheel`",
    )
}

fn store(limits: Limits) -> Store {
    let settings = StorageSettings {
        endpoint: Some(endpoint()),
        ..StorageSettings::default()
    };
    Store::with_limits(&settings, limits).unwrap()
}

/// A place of this run alone.
fn place(name: &str) -> Uri {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    Uri(format!("s3://flywheel/test/store-{}-{now}/{name}", std::process::id()))
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_created_once_and_read_back() {
    let store = std::sync::Arc::new(store(Limits::default()));
    let at = place("a.json");
    assert_eq!(store.head(&at).await.unwrap(), None);
    assert_eq!(store.put_create(&at, "one".into()).await.unwrap(), Created::New);
    assert_eq!(store.put_create(&at, "one".into()).await.unwrap(), Created::Same);
    assert!(matches!(
        store.put_create(&at, "two".into()).await,
        Err(StoreError::Conflict { .. })
    ));
    assert_eq!(store.get_bytes(&at, 10).await.unwrap().0, "one");
    assert!(matches!(
        store.get_bytes(&at, 2).await,
        Err(StoreError::TooLarge { .. })
    ));
    assert!(matches!(
        store.get_bytes(&place("none"), 2).await,
        Err(StoreError::NotFound { .. })
    ));

    let again = place("again");
    for text in ["one", "the other"] {
        store.put_replace(&again, text.into()).await.unwrap();
        assert_eq!(store.get_bytes(&again, 10).await.unwrap().0, text);
    }

    let raced = place("raced");
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let (store, at) = (store.clone(), raced.clone());
            tokio::spawn(async move { store.put_create(&at, format!("writer {i}").into()).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += usize::from(matches!(task.await.unwrap(), Ok(Created::New)));
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_large_file_goes_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large");
    let bytes: Vec<u8> = (0..40_000_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let store = store(Limits {
        single_put: 1024 * 1024,
        ..Limits::default()
    });
    let at = place("large");
    assert_eq!(store.put_file(&at, &file).await.unwrap(), Created::New);
    assert_eq!(store.put_file(&at, &file).await.unwrap(), Created::Same);
    let back = dir.path().join("back");
    assert_eq!(
        store.get_file(&at, bytes.len() as u64, &back).await.unwrap().length,
        bytes.len() as u64
    );
    assert!(std::fs::read(back).unwrap() == bytes);
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_told_so() {
    let error = store(Limits::default())
        .put_create(&"s3://flywheel-no-such-bucket/x".into(), "x".into())
        .await
        .unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::StorageInvalid, "{error}");
    assert!(error.to_string().contains("no such bucket"), "{error}");
}

fn job(attempt: u32) -> JobIdentity {
    JobIdentity {
        namespace: "team".to_owned(),
        name: "intent".to_owned(),
        uid: "uid".to_owned(),
        attempt,
    }
}

fn content(step: u64) -> Vec<u8> {
    step.to_string().repeat(5000).into_bytes()
}

async fn commit(lineage: &mut Lineage, step: u64) -> Result<CheckpointRef, StoreError> {
    let folder = tempfile::tempdir().unwrap();
    let files = ["model.safetensors", "state.json"].map(str::to_owned);
    for file in &files {
        std::fs::write(folder.path().join(file), content(step)).unwrap();
    }
    let dataset = Digest::sha256(&"d".repeat(64));
    lineage.commit(folder.path(), &files, step, &dataset).await
}

fn steps(lineage: &Lineage) -> Vec<u64> {
    lineage.head().checkpoints.iter().map(|c| c.step).collect()
}

/// Trials of a writer that is stopped at a random moment of a commit, replaced, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_writer_commits_nothing_after_it_was_replaced() {
    const TRIALS: u64 = 100;
    let stores = [0, 1].map(|_| Arc::new(store(Limits::default())));
    let (mut refused, mut landed) = (0, 0);
    for seed in 0..TRIALS {
        let mut rng = StdRng::seed_from_u64(seed);
        let uri = place(&format!("fence-{seed}"));
        let mut old = stores[0].take_lineage(&uri, &job(1), 2).await.unwrap();
        let start = Instant::now();
        commit(&mut old, 10).await.unwrap();

        let stop = start.elapsed().mul_f64(rng.random());
        let mut stopped = Box::pin(commit(&mut old, 20));
        // Not polled any more: what it has sent is on its way, its answers wait.
        let early = tokio::time::timeout(stop, &mut stopped).await;
        let mut new = stores[1].take_lineage(&uri, &job(2), 2).await.unwrap();
        let mut expected = steps(&new);
        landed += u64::from(expected == [20, 10]);
        for step in 30..30 + rng.random_range(0..3) {
            commit(&mut new, step).await.unwrap();
            expected.insert(0, step);
            expected.truncate(2);
        }
        let first = match early {
            Ok(done) => done,
            Err(_) => stopped.as_mut().await,
        };
        drop(stopped);
        let mut refusals = 0;
        for outcome in [first, commit(&mut old, 50).await, commit(&mut old, 60).await] {
            match outcome {
                Err(StoreError::Fenced { attempt: 2, .. }) => refusals += 1,
                outcome => assert!(outcome.is_ok() && refusals == 0, "seed {seed}: {outcome:?}"),
            }
        }
        assert!(refusals >= 2, "seed {seed}");
        refused += refusals;

        let last = stores[1].take_lineage(&uri, &job(3), 2).await.unwrap();
        assert_eq!(steps(&last), expected, "seed {seed}");
        for checkpoint in &last.head().checkpoints {
            let folder = tempfile::tempdir().unwrap();
            last.fetch(checkpoint, folder.path()).await.unwrap();
            assert!(std::fs::read(folder.path().join("state.json")).unwrap() == content(checkpoint.step));
        }
    }
    println!("{TRIALS} trials, {refused} commits refused, {landed} landed before the takeover, 0 stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_take_a_lineage_at_once_each_swaps_once() {
    let store = Arc::new(store(Limits::default()));
    for round in 0..5 {
        let uri = place(&format!("crowd-{round}"));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (store, uri) = (Arc::clone(&store), uri.clone());
                tokio::spawn(async move { store.take_lineage(&uri, &job(1), 2).await.unwrap().head().clone() })
            })
            .collect();
        let mut sequences = Vec::new();
        for task in tasks {
            sequences.push(task.await.unwrap().sequence);
        }
        sequences.sort_unstable();
        assert_eq!(sequences, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_head_is_replaced_once_and_loses_no_checkpoint() {
    let store = Arc::new(store(Limits::default()));
    let uri = place("damaged");
    let mut old = store.take_lineage(&uri, &job(1), 2).await.unwrap();
    for step in [10, 20] {
        commit(&mut old, step).await.unwrap();
    }
    let head = uri.join(flywheel_contract::checkpoint::HEAD_FILE);
    store.put_replace(&head, "{\"schemaVers".into()).await.unwrap();
    let error = commit(&mut old, 30).await.unwrap_err();
    assert!(matches!(error, StoreError::HeadDamaged { .. }), "{error}");

    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (store, uri) = (Arc::clone(&store), uri.clone());
            tokio::spawn(async move { store.take_lineage(&uri, &job(2), 2).await.unwrap() })
        })
        .collect();
    let mut replaced = 0;
    for task in tasks {
        let next = task.await.unwrap();
        replaced += usize::from(next.damaged().is_some());
        // The last one was uploaded whole; only its swap was not to be had.
        assert_eq!(steps(&next), [30, 20, 10]);
    }
    assert_eq!(replaced, 1);
    let error = commit(&mut old, 40).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced { attempt: 2, .. }), "{error}");
}

#[test]
fn wrong_keys_are_refused_at_once() {
    // Keys come from the environment, which only a process of its own can change.
    let start = std::time::Instant::now();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "with_wrong_keys", "--ignored", "--nocapture"])
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .env("FLYWHEEL_S3_ENDPOINT", endpoint())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(start.elapsed().as_secs() < 10);
}

#[tokio::test]
#[ignore = "started by wrong_keys_are_refused_at_once with other keys"]
async fn with_wrong_keys() {
    let error = store(Limits::default()).get_bytes(&place("x"), 10).await.unwrap_err();
    assert_eq!(
        error.reason(Purpose::Dataset),
        FailureReason::StorageForbidden,
        "{error}"
    );
    assert!(error.to_string().contains("storage.secretRef"), "{error}");
}
