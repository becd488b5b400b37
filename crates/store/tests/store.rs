//! Files and a misbehaving server: what is read, what is refused, and how soon.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod faults;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faults::{Fault, Server, tls_server};
use flywheel_contract::artifact::{CONFIG_FILE, MANIFEST_FILE, Manifest, TOKENIZER_FILE, WEIGHTS_FILE};
use flywheel_contract::checkpoint::CheckpointRef;
use flywheel_contract::failure::FailureReason;
use flywheel_contract::scalar::{Digest, Metric, Task, Uri};
use flywheel_contract::storage::StorageSettings;
use flywheel_contract::trainer::{ArtifactRef, JobIdentity};
use flywheel_store::{Created, Limits, Lineage, Purpose, Store, StoreError, check_folder, describe};

const ALWAYS: usize = usize::MAX;

fn limits() -> Limits {
    Limits {
        connect: Duration::from_millis(500),
        silence: Duration::from_millis(500),
        operation: Duration::from_millis(1500),
        slowest_rate: 1024 * 1024,
        single_put: 1024 * 1024,
    }
}

fn files() -> Store {
    Store::with_limits(&StorageSettings::default(), limits()).unwrap()
}

fn s3(server: &Server) -> Store {
    let settings = StorageSettings {
        endpoint: Some(server.url()),
        ..StorageSettings::default()
    };
    Store::with_limits(&settings, limits()).unwrap()
}

fn uri(path: &Path) -> Uri {
    Uri(format!("file://{}", path.display()))
}

#[tokio::test]
async fn files_are_read_with_length_and_digest_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = files();
    let at = uri(&dir.path().join("deep/er/a b%20é.txt"));
    assert_eq!(store.head(&at).await.unwrap(), None);
    assert_eq!(store.put_create(&at, "hello".into()).await.unwrap(), Created::New);
    assert_eq!(
        std::fs::read(dir.path().join("deep/er/a b%20é.txt")).unwrap(),
        b"hello",
        "the path is taken as it stands"
    );
    assert_eq!(store.put_create(&at, "hello".into()).await.unwrap(), Created::Same);
    for other in ["world", "hello world"] {
        let error = store.put_create(&at, other.into()).await.unwrap_err();
        assert_eq!(error.reason(Purpose::Output), FailureReason::OutputConflict);
        assert!(error.to_string().contains("choose another output URI"), "{error}");
    }
    let (bytes, fetched) = store.get_bytes(&at, 5).await.unwrap();
    assert_eq!((&bytes[..], fetched.length), (&b"hello"[..], 5));
    // echo -n hello | sha256sum
    assert_eq!(
        fetched.digest,
        Digest::sha256("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    );
    assert_eq!(store.head(&at).await.unwrap(), Some(5));

    let again = uri(&dir.path().join("deep/again"));
    for text in ["longer", "short"] {
        store.put_replace(&again, text.into()).await.unwrap();
        assert_eq!(store.get_bytes(&again, 10).await.unwrap().0, text);
    }

    let error = store.get_bytes(&at, 4).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::TooLarge {
                size: Some(5),
                max: 4,
                ..
            }
        ),
        "{error}"
    );
    let missing = store.get_bytes(&uri(&dir.path().join("none")), 4).await.unwrap_err();
    let reasons = [Purpose::Dataset, Purpose::Pretrained, Purpose::Artifact].map(|p| missing.reason(p));
    assert_eq!(
        reasons,
        [
            FailureReason::DatasetNotFound,
            FailureReason::PretrainedNotFound,
            FailureReason::ArtifactNotFound
        ]
    );

    let target = dir.path().join("copy");
    assert_eq!(store.get_file(&at, 100, &target).await.unwrap().length, 5);
    assert_eq!(std::fs::read(&target).unwrap(), b"hello");
    assert!(store.get_file(&at, 4, &dir.path().join("copy2")).await.is_err());
    let mut left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["copy", "deep"], "nothing unfinished stays");
}

#[tokio::test]
async fn a_race_of_creates_has_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(files());
    for round in 0..10 {
        let at = uri(&dir.path().join(format!("{round}")));
        let tasks: Vec<_> = (0..8)
            .map(|i| {
                let (store, at) = (store.clone(), at.clone());
                tokio::spawn(async move { store.put_create(&at, format!("writer {i}").into()).await })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(Created::New) => won += 1,
                Err(StoreError::Conflict { .. }) => (),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(won, 1);
    }
}

#[tokio::test]
async fn a_file_larger_than_one_request_goes_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let store = files();
    let source = dir.path().join("large");
    std::fs::write(&source, vec![7_u8; 3 * 1024 * 1024]).unwrap();
    let at = uri(&dir.path().join("out/large"));
    assert_eq!(store.put_file(&at, &source).await.unwrap(), Created::New);
    assert_eq!(
        std::fs::read(dir.path().join("out/large")).unwrap(),
        std::fs::read(&source).unwrap()
    );
    assert_eq!(store.put_file(&at, &source).await.unwrap(), Created::Same);
    std::fs::write(&source, vec![8_u8; 3 * 1024 * 1024]).unwrap();
    assert!(matches!(
        store.put_file(&at, &source).await,
        Err(StoreError::Conflict { .. })
    ));
}

#[tokio::test]
async fn uris_that_cannot_work_are_told_so() {
    let store = files();
    for (text, word) in [
        ("gs://bucket/key", "unknown scheme"),
        ("s3://bucket", "names no file"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket/a//b", "cannot be used"),
        ("s3://bucket//", "names no file"),
        ("s3://buck et/key", "no bucket's name"),
        ("file://host/path", "three slashes"),
        ("file:///a/../b", "`..`"),
        ("nothing", "no URI"),
    ] {
        let error = store.get_bytes(&text.into(), 1).await.unwrap_err();
        assert_eq!(
            error.reason(Purpose::Dataset),
            FailureReason::StorageInvalid,
            "{text}: {error}"
        );
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
    let error = store
        .put_create(&"https://host/x".into(), "x".into())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("only be read"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let with_ca = |file: &str| StorageSettings {
        ca_file: Some(dir.path().join(file).display().to_string()),
        ..StorageSettings::default()
    };
    std::fs::write(dir.path().join("no.pem"), "hello").unwrap();
    for file in ["missing.pem", "no.pem"] {
        let error = Store::new(&with_ca(file)).unwrap_err();
        assert_eq!(error.reason(Purpose::Dataset), FailureReason::StorageInvalid);
        assert!(error.to_string().contains("storage.caBundle"), "{error}");
    }
}

#[tokio::test]
async fn http_is_read_and_its_failures_end_as_what_they_are() {
    let server = Server::start();
    server.put("data/x y.csv", "text,label\n");
    let store = files();
    let at = Uri(format!("{}/data/x%20y.csv", server.url()));
    // The little server does not decode, so the object is there under both names.
    server.put("data/x%20y.csv", "text,label\n");
    assert_eq!(store.get_bytes(&at, 100).await.unwrap().0, "text,label\n");

    let cases = [
        (
            Fault::Status(403),
            FailureReason::StorageForbidden,
            true,
            "AccessDenied",
        ),
        (
            Fault::Status(401),
            FailureReason::StorageForbidden,
            true,
            "AccessDenied",
        ),
        (
            Fault::Status(404),
            FailureReason::DatasetNotFound,
            true,
            "does not exist",
        ),
        (Fault::Status(400), FailureReason::StorageInvalid, true, "HTTP 400"),
        (Fault::Status(500), FailureReason::StorageUnavailable, false, "HTTP 500"),
        (Fault::Status(503), FailureReason::StorageUnavailable, false, "HTTP 503"),
        (Fault::Status(429), FailureReason::StorageUnavailable, false, "HTTP 429"),
        (
            Fault::Hang,
            FailureReason::StorageUnavailable,
            false,
            "no answer within",
        ),
        (
            Fault::Close,
            FailureReason::StorageUnavailable,
            false,
            "can be reached from the pod",
        ),
        (Fault::Truncate, FailureReason::StorageUnavailable, false, "tries"),
        (
            Fault::Slow(1, 400),
            FailureReason::StorageUnavailable,
            true,
            "came too slowly",
        ),
        (Fault::NoLength, FailureReason::StorageInvalid, true, "Content-Length"),
    ];
    for (fault, reason, at_once, word) in cases {
        server.heal();
        server.fault("GET ", fault, ALWAYS);
        let before = server.requests().len();
        let start = Instant::now();
        let error = store.get_bytes(&at, 100).await.unwrap_err();
        assert_eq!(error.reason(Purpose::Dataset), reason, "{fault:?}: {error}");
        assert!(error.to_string().contains(word), "{fault:?}: {error}");
        let tries = server.requests().len() - before;
        assert_eq!(tries == 1, at_once, "{fault:?}: {tries} tries");
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{fault:?} took {:?}",
            start.elapsed()
        );
    }

    server.heal();
    server.fault("GET ", Fault::Status(500), 2);
    assert_eq!(
        store.get_bytes(&at, 100).await.unwrap().1.length,
        11,
        "what passes is waited for"
    );
    server.fault("GET ", Fault::Truncate, 1);
    assert_eq!(
        store.get_bytes(&at, 100).await.unwrap().0,
        "text,label\n",
        "a second try starts anew"
    );
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let server = Server::start();
    let (url, store) = (server.url(), files());
    drop(server);
    let error = store.get_bytes(&Uri(format!("{url}/x")), 100).await.unwrap_err();
    assert_eq!(
        error.reason(Purpose::Dataset),
        FailureReason::StorageUnavailable,
        "{error}"
    );
    for endpoint in ["not a url", "ftp://host", "http://"] {
        let settings = StorageSettings {
            endpoint: Some(endpoint.to_owned()),
            ..StorageSettings::default()
        };
        let error = Store::with_limits(&settings, limits()).unwrap_err();
        assert_eq!(error.reason(Purpose::Dataset), FailureReason::StorageInvalid);
        assert!(error.to_string().contains("storage.endpoint"), "{error}");
    }
}

#[tokio::test]
async fn s3_creates_by_condition_and_finds_its_own_lost_answer() {
    let server = Server::start();
    let store = s3(&server);
    let at: Uri = "s3://models/a/b.json".into();
    assert_eq!(store.put_create(&at, "{}".into()).await.unwrap(), Created::New);
    assert_eq!(server.get("models/a/b.json").unwrap(), b"{}");
    assert_eq!(store.put_create(&at, "{}".into()).await.unwrap(), Created::Same);
    assert!(matches!(
        store.put_create(&at, "[]".into()).await,
        Err(StoreError::Conflict { .. })
    ));
    assert_eq!(server.get("models/a/b.json").unwrap(), b"{}");

    // The first answer is lost after the object was written.
    server.fault("PUT /models/lost", Fault::Close, 1);
    assert_eq!(
        store.put_create(&"s3://models/lost".into(), "x".into()).await.unwrap(),
        Created::Same
    );
    // A foreign object of another length is not read at all.
    server.put("models/foreign", "a stranger's");
    assert!(
        store
            .put_create(&"s3://models/foreign".into(), "mine".into())
            .await
            .is_err()
    );
    assert!(
        !server.requests().iter().any(|r| r == "GET /models/foreign"),
        "{:?}",
        server.requests()
    );

    for (code, reason) in [
        (403, FailureReason::StorageForbidden),
        (404, FailureReason::StorageInvalid),
        (501, FailureReason::StoreLacksConditionalPut),
        (500, FailureReason::StorageUnavailable),
    ] {
        server.heal();
        server.fault("PUT ", Fault::Status(code), ALWAYS);
        let error = store
            .put_create(&"s3://models/new".into(), "x".into())
            .await
            .unwrap_err();
        assert_eq!(error.reason(Purpose::Output), reason, "{code}: {error}");
    }
}

#[tokio::test]
async fn a_refusal_is_doubted_where_the_same_keys_were_taken_before() {
    let server = Server::start();
    server.put("models/here", "content");
    let at: Uri = "s3://models/here".into();
    let asked = |server: &Server| server.requests().iter().filter(|r| *r == "GET /models/here").count();

    // Keys that were never taken: once.
    server.fault("GET ", Fault::Status(403), ALWAYS);
    let store = s3(&server);
    let error = store.get_bytes(&at, 100).await.unwrap_err();
    assert_eq!(
        error.reason(Purpose::Output),
        FailureReason::StorageForbidden,
        "{error}"
    );
    assert_eq!(asked(&server), 1);

    server.heal();
    assert_eq!(store.get_bytes(&at, 100).await.unwrap().0, "content");
    server.fault("GET ", Fault::Status(403), 2);
    assert_eq!(store.get_bytes(&at, 100).await.unwrap().0, "content");
    assert_eq!(asked(&server), 1 + 1 + 3);

    // Rights that were taken away.
    server.fault("GET ", Fault::Status(403), ALWAYS);
    let error = store.get_bytes(&at, 100).await.unwrap_err();
    assert_eq!(
        error.reason(Purpose::Output),
        FailureReason::StorageForbidden,
        "{error}"
    );
    assert_eq!(asked(&server), 1 + 1 + 3 + 3);

    // Whoever may read need not be allowed to write.
    server.heal();
    server.fault("PUT ", Fault::Status(403), ALWAYS);
    let error = store
        .put_create(&"s3://models/new".into(), "x".into())
        .await
        .unwrap_err();
    assert_eq!(
        error.reason(Purpose::Output),
        FailureReason::StorageForbidden,
        "{error}"
    );
    assert_eq!(server.requests().iter().filter(|r| r.starts_with("PUT ")).count(), 1);
}

async fn artifact_folder(folder: &Path) -> Manifest {
    std::fs::create_dir_all(folder).unwrap();
    for (name, content) in [
        (WEIGHTS_FILE, "weights".repeat(100)),
        (CONFIG_FILE, "{}".to_owned()),
        (TOKENIZER_FILE, "tokens".to_owned()),
    ] {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let mut described = Vec::new();
    for name in [WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE] {
        described.push(describe(folder, name).await.unwrap());
    }
    let manifest = Manifest {
        schema_version: flywheel_contract::SCHEMA_VERSION,
        model: "intent".to_owned(),
        task: Task::TextClassification,
        architecture: "bert".to_owned(),
        labels: vec!["a".to_owned(), "b".to_owned()],
        max_length: 64,
        metrics: vec![Metric::new("test/accuracy", 0.5)],
        files: described,
    };
    std::fs::write(folder.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
    manifest
}

#[tokio::test]
async fn an_artifact_goes_up_and_comes_down_whole() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = artifact_folder(&dir.path().join("made")).await;
    let server = Server::start();
    for (store, base) in [
        (files(), uri(&dir.path().join("store"))),
        (s3(&server), "s3://models/x".into()),
    ] {
        let at = store.upload_artifact(&dir.path().join("made"), &base).await.unwrap();
        assert_eq!(
            store.upload_artifact(&dir.path().join("made"), &base).await.unwrap(),
            at,
            "twice is the same"
        );
        let verified = store.verify_artifact(&at).await.unwrap();
        assert_eq!((verified.files, verified.bytes), (3, 708));
        let down = tempfile::tempdir().unwrap();
        assert_eq!(
            store.download_artifact(&at, &down.path().join("v1")).await.unwrap(),
            manifest
        );
        assert_eq!(
            std::fs::read(down.path().join("v1").join(WEIGHTS_FILE)).unwrap(),
            "weights".repeat(100).as_bytes()
        );
        assert_eq!(std::fs::read_dir(down.path().join("v1")).unwrap().count(), 4);
    }
    let puts: Vec<String> = server.requests().into_iter().filter(|r| r.starts_with("PUT")).collect();
    assert_eq!(
        puts[3],
        format!("PUT /models/x/{MANIFEST_FILE}"),
        "the manifest is last: {puts:?}"
    );
}

#[tokio::test]
async fn an_artifact_that_is_not_what_it_was_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    artifact_folder(&made).await;
    let server = Server::start();
    let store = s3(&server);
    let at = store.upload_artifact(&made, &"s3://models/x".into()).await.unwrap();
    let weights = server.get("models/x/model.safetensors").unwrap();
    let manifest = server.get("models/x/manifest.json").unwrap();
    let mut flipped = weights.clone();
    flipped[350] ^= 1;
    let longer = [&weights[..], b"!"].concat();
    let cases: [(&str, &[u8], FailureReason, &str); 5] = [
        (
            "model.safetensors",
            &flipped,
            FailureReason::DigestMismatch,
            "its digest is",
        ),
        (
            "model.safetensors",
            &longer,
            FailureReason::DigestMismatch,
            "701 bytes, the manifest says 700",
        ),
        (
            "model.safetensors",
            &weights[..699],
            FailureReason::DigestMismatch,
            "699 bytes",
        ),
        ("manifest.json", b"{}", FailureReason::DigestMismatch, "manifest.json"),
        (
            "manifest.json",
            &vec![b' '; 1024 * 1024 + 1],
            FailureReason::ManifestInvalid,
            "1048577 bytes",
        ),
    ];
    for (name, content, reason, word) in cases {
        server.put(&format!("models/x/{name}"), content);
        let down = tempfile::tempdir().unwrap();
        let errors = [
            store.verify_artifact(&at).await.unwrap_err(),
            store.download_artifact(&at, down.path()).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.reason(Purpose::Artifact), reason, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(!down.path().join(name).exists(), "what is wrong never gets its name");
        assert!(!down.path().join(MANIFEST_FILE).exists());
        server.put("models/x/model.safetensors", &weights);
        server.put("models/x/manifest.json", &manifest);
    }
    assert!(store.verify_artifact(&at).await.is_ok());

    let senseless = br#"{"schemaVersion":1,"model":"m","task":"TextClassification","architecture":"bert","labels":["a","b"],"maxLength":8,"metrics":[],"files":[{"name":"../x","length":1,"digest":"sha256:00"}]}"#;
    server.put("models/y/manifest.json", senseless);
    let digest = store
        .get_bytes(&"s3://models/y/manifest.json".into(), 10_000)
        .await
        .unwrap()
        .1
        .digest;
    let error = store
        .verify_artifact(&ArtifactRef {
            uri: "s3://models/y".into(),
            digest,
        })
        .await
        .unwrap_err();
    assert_eq!(error.reason(Purpose::Artifact), FailureReason::ManifestInvalid);
    assert!(error.to_string().contains("../x"), "{error}");

    server.fault("GET /models/x/config.json", Fault::Status(404), ALWAYS);
    assert_eq!(
        store.verify_artifact(&at).await.unwrap_err().reason(Purpose::Artifact),
        FailureReason::ArtifactNotFound
    );
}

#[tokio::test]
async fn a_folder_is_checked_to_the_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = artifact_folder(dir.path()).await;
    let digest = describe(dir.path(), MANIFEST_FILE).await.unwrap().digest;
    assert_eq!(check_folder(dir.path(), &digest).unwrap(), manifest);
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change, &str); 5] = [
        (WEIGHTS_FILE, |bytes| bytes[699] ^= 1, "its digest is"),
        (
            WEIGHTS_FILE,
            |bytes| bytes.push(b'!'),
            "701 bytes, the manifest says 700",
        ),
        (CONFIG_FILE, Vec::clear, "0 bytes"),
        (MANIFEST_FILE, |bytes| bytes.push(b' '), "its digest is"),
        (
            MANIFEST_FILE,
            |bytes| bytes.resize(2 * 1024 * 1024, b' '),
            "its digest is",
        ),
    ];
    for (name, change, word) in changes {
        let path = dir.path().join(name);
        let right = std::fs::read(&path).unwrap();
        let mut wrong = right.clone();
        change(&mut wrong);
        std::fs::write(&path, wrong).unwrap();
        let error = check_folder(dir.path(), &digest).unwrap_err();
        assert!(
            error.to_string().contains(word) && error.to_string().contains(name),
            "{error}"
        );
        assert_eq!(error.reason(Purpose::Artifact), FailureReason::DigestMismatch);
        std::fs::write(&path, right).unwrap();
    }
    for name in [TOKENIZER_FILE, MANIFEST_FILE] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let error = check_folder(dir.path(), &digest).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn what_is_read_back_after_an_upload_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    artifact_folder(&made).await;
    // The folder changes after its manifest was written.
    std::fs::write(made.join(CONFIG_FILE), "[]").unwrap();
    let error = files()
        .upload_artifact(&made, &uri(&dir.path().join("out")))
        .await
        .unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::DigestMismatch, "{error}");
}

fn job(attempt: u32) -> JobIdentity {
    JobIdentity {
        namespace: "team".to_owned(),
        name: "intent".to_owned(),
        uid: "uid".to_owned(),
        attempt,
    }
}

async fn commit(lineage: &mut Lineage, step: u64) -> Result<CheckpointRef, StoreError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state.json"), step.to_string()).unwrap();
    let dataset = Digest::sha256(&"d".repeat(64));
    lineage
        .commit(folder.path(), &["state.json".to_owned()], step, &dataset)
        .await
}

#[tokio::test]
async fn checkpoints_are_committed_over_s3_and_the_replaced_writer_is_fenced() {
    let server = Server::start();
    let store = Arc::new(s3(&server));
    let uri: Uri = "s3://ckpt/team/uid".into();
    let mut old = store.take_lineage(&uri, &job(1), 2).await.unwrap();
    for step in [1, 2, 3] {
        commit(&mut old, step).await.unwrap();
        assert_eq!(old.leftover(), None);
    }
    // Answers that are lost after the server has done what they tell of.
    for part in [
        "PUT /ckpt/team/uid/HEAD",
        "PUT /ckpt/team/uid/checkpoints/000000000005",
        "DELETE ",
    ] {
        server.fault(part, Fault::Close, 1);
    }
    commit(&mut old, 4).await.unwrap();
    commit(&mut old, 5).await.unwrap();
    assert_eq!(old.leftover(), None);
    let manifests = server.keys().into_iter().filter(|k| k.ends_with("/manifest.json"));
    assert_eq!(manifests.count(), 2);

    let mut new = store.take_lineage(&uri, &job(2), 2).await.unwrap();
    let error = commit(&mut old, 6).await.unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::Fenced, "{error}");
    let steps: Vec<_> = new.head().checkpoints.iter().map(|c| c.step).collect();
    assert_eq!(steps, [5, 4]);
    let down = tempfile::tempdir().unwrap();
    let newest = new.head().checkpoints[0].clone();
    let manifest = new.fetch(&newest, down.path()).await.unwrap();
    assert_eq!((manifest.step, manifest.attempt), (5, 1));
    assert_eq!(std::fs::read(down.path().join("state.json")).unwrap(), b"5");

    // What cannot be removed is told and does no harm.
    server.fault("DELETE ", Fault::Status(403), ALWAYS);
    commit(&mut new, 7).await.unwrap();
    assert!(
        new.leftover().unwrap().contains("refused access"),
        "{:?}",
        new.leftover()
    );
    server.heal();
    commit(&mut new, 8).await.unwrap();
    assert_eq!(new.leftover(), None);
    let manifests = server.keys().into_iter().filter(|k| k.ends_with("/manifest.json"));
    assert_eq!(manifests.count(), 2);

    // A storage that is away fails the commit and loses nothing.
    server.fault("", Fault::Status(503), ALWAYS);
    let error = commit(&mut new, 9).await.unwrap_err();
    assert_eq!(
        error.reason(Purpose::Output),
        FailureReason::StorageUnavailable,
        "{error}"
    );
    server.heal();
    let third = store.take_lineage(&uri, &job(2), 2).await.unwrap();
    assert_eq!(third.head().checkpoints, new.head().checkpoints);

    // A damaged HEAD is replaced on the condition of its own ETag, and loses nothing.
    server.put("ckpt/team/uid/HEAD", "{\"schemaVers");
    let fourth = store.take_lineage(&uri, &job(2), 2).await.unwrap();
    assert!(
        fourth.damaged().unwrap().contains("cannot be read"),
        "{:?}",
        fourth.damaged()
    );
    assert_eq!(fourth.head().checkpoints, new.head().checkpoints);
    let error = commit(&mut new, 10).await.unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::Fenced, "{error}");

    server.fault("PUT ", Fault::Status(501), ALWAYS);
    let error = store.take_lineage(&uri, &job(3), 2).await.unwrap_err();
    assert_eq!(
        error.reason(Purpose::Output),
        FailureReason::StoreLacksConditionalPut,
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_is_trusted_by_the_ca_file_alone() {
    let (port, pem) = tls_server();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, pem).unwrap();
    let store = |ca_file: Option<String>| {
        let settings = StorageSettings {
            endpoint: Some(format!("https://localhost:{port}")),
            ca_file,
            ..StorageSettings::default()
        };
        Store::with_limits(&settings, limits()).unwrap()
    };
    let trusting = store(Some(ca.display().to_string()));
    assert_eq!(trusting.get_bytes(&"s3://bucket/key".into(), 10).await.unwrap().0, "hi");
    assert_eq!(
        trusting
            .get_bytes(&Uri(format!("https://localhost:{port}/x")), 10)
            .await
            .unwrap()
            .0,
        "hi"
    );
    let error = store(None).get_bytes(&"s3://bucket/key".into(), 10).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}
