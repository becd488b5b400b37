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

use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::Uri;
use flywheel_contract::storage::StorageSettings;
use flywheel_store::{Created, Limits, Purpose, Store, StoreError};

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
