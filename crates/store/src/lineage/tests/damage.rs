//! A `HEAD` that cannot be read any more: it is told, nothing that it named is lost, and nobody writes past it who may not.

use super::wrapper::Call;
use super::*;

/// What can lie where `HEAD` was; `None`: nothing.
const RUINS: [Option<&str>; 6] = [
    Some(""),
    Some("{\"schemaVersion\": 1, \"jobUid\": \"5f1c0a2e-job\", \"att"),
    Some("\0\0\0\0\0\0\0\0"),
    Some("no JSON at all"),
    Some("{\"another\": \"program's\"}"),
    None,
];

/// Ruins the object that was swapped last, or removes `HEAD`: on a file system its folder.
async fn ruin(bed: &Bed, with: Option<&str>) {
    let heads = bed.heads().await;
    match with {
        Some(with) => bed.write(heads.keys().next_back().unwrap(), with.to_owned()).await,
        None => {
            for name in heads.keys() {
                bed.erase(name).await;
            }
        }
    }
}

/// A store over the bed whose first call of this kind waits.
fn slow(bed: &Bed, stalls: fn(&Call) -> bool) -> (Wrapped, Arc<Store>) {
    let once = AtomicUsize::new(0);
    let slow = Wrapped::new(&bed.client, Forget::Nothing, move |_, call: &Call| {
        if stalls(call) && once.fetch_add(1, Ordering::SeqCst) == 0 {
            Act::Stall
        } else {
            Act::Pass
        }
    });
    let store = bed.store_through(slow.client());
    (slow, store)
}

/// All objects but those of `HEAD`.
async fn checkpoints(bed: &Bed) -> BTreeMap<String, Bytes> {
    let mut all = bed.objects().await;
    all.retain(|name, _| name.starts_with(CHECKPOINTS_DIR));
    all
}

#[tokio::test]
async fn what_a_damaged_head_named_is_gone_on_with_and_told() {
    for ruins in RUINS {
        for bed in [Bed::bucket(), Bed::files()] {
            let mut old = bed.take(1, 3).await.unwrap();
            for step in [10, 20, 30, 40, 50] {
                commit(&mut old, step).await.unwrap();
            }
            assert_eq!(old.damaged(), None);
            ruin(&bed, ruins).await;
            let before = checkpoints(&bed).await;

            let mut next = bed.take(2, 3).await.unwrap();
            let told = next.damaged().unwrap();
            let words = if ruins.is_some() {
                "cannot be read"
            } else {
                "it is missing"
            };
            assert!(told.contains(words), "{ruins:?}: {told}");
            assert_eq!(steps(next.head()), [50, 40, 30], "{ruins:?}");
            assert_eq!(next.head().attempt, 2);
            assert!(
                next.head().sequence > old.head().sequence,
                "{} {}",
                next.head().sequence,
                old.head().sequence
            );
            assert_eq!(resume(&next).await.unwrap().0.unwrap().step, 50);
            assert!(
                checkpoints(&bed).await == before,
                "nothing is swept before a commit of this writer"
            );
            let error = commit(&mut old, 60).await.unwrap_err();
            assert!(matches!(error, StoreError::Fenced { attempt: 2, .. }), "{error}");

            commit(&mut next, 60).await.unwrap();
            assert_eq!(steps(next.head()), [60, 50, 40]);
            assert_eq!(next.leftover(), None);
            let third = bed.take(3, 3).await.unwrap();
            assert_eq!((third.damaged(), steps(third.head())), (None, vec![60, 50, 40]));
        }
    }
}

#[tokio::test]
async fn the_newest_that_is_whole_is_found_and_the_others_are_judged_before_they_are_swept() {
    for bed in [Bed::bucket(), Bed::files()] {
        let mut old = bed.take(1, 3).await.unwrap();
        let mut made = Vec::new();
        for step in [10, 20, 30] {
            made.push(commit(&mut old, step).await.unwrap());
        }
        let (manifest, shard) = (&made[2], &made[1]);
        let name = format!("checkpoints/{}/{MANIFEST_FILE}", manifest.name);
        // Another manifest of the same step, all of whose digests are right.
        let mut forged: CheckpointManifest = serde_json::from_slice(&bed.objects().await[&name]).unwrap();
        forged.dataset_digest = Digest::sha256(&"f".repeat(64));
        bed.write(&name, serde_json::to_vec_pretty(&forged).unwrap()).await;
        bed.write(&format!("checkpoints/{}/{}", shard.name, FILES[0]), "damaged")
            .await;
        ruin(&bed, Some("")).await;

        let mut next = bed.take(2, 3).await.unwrap();
        let (found, passed) = resume(&next).await.unwrap();
        assert_eq!((found.unwrap().step, passed), (10, 1), "{:?}", steps(next.head()));
        next.forget(shard);
        commit(&mut next, 40).await.unwrap();
        assert_eq!(steps(next.head()), [40, 10]);
        let folders: Vec<_> = checkpoints(&bed).await.into_keys().collect();
        for gone in [manifest, shard] {
            assert!(!folders.iter().any(|f| f.contains(&gone.name)), "{folders:?}");
        }
    }
}

/// Two attempts, of which the later one took the checkpoints over in a `HEAD` that is damaged now.
async fn taken_over(bed: &Bed) -> (Lineage, Lineage) {
    let mut old = bed.take(1, 3).await.unwrap();
    commit(&mut old, 10).await.unwrap();
    let new = bed.take(2, 3).await.unwrap();
    ruin(bed, Some("")).await;
    (old, new)
}

#[tokio::test]
async fn a_writer_does_not_write_past_a_damaged_head_that_may_be_its_successors() {
    for bed in [Bed::bucket(), Bed::files()] {
        let (mut old, _) = taken_over(&bed).await;
        let before = bed.heads().await;
        for step in [20, 30] {
            let error = commit(&mut old, step).await.unwrap_err();
            assert_eq!(error.reason(Purpose::Output), FailureReason::HeadDamaged, "{error}");
            assert!(
                error.to_string().contains("next attempt takes the checkpoints over"),
                "{error}"
            );
        }
        assert!(bed.heads().await == before, "{:?}", bed.heads().await);
        let next = bed.take(3, 3).await.unwrap();
        assert!(resume(&next).await.unwrap().0.is_some());
    }
}

#[tokio::test]
async fn the_holder_goes_on_above_its_own_damaged_generation() {
    let bed = Bed::files();
    let mut lineage = bed.take(1, 3).await.unwrap();
    commit(&mut lineage, 10).await.unwrap();
    ruin(&bed, Some("")).await;
    commit(&mut lineage, 20).await.unwrap();
    assert_eq!(steps(bed.take(2, 3).await.unwrap().head()), [20, 10]);
}

#[tokio::test]
async fn an_earlier_attempt_does_not_take_over_what_a_later_one_has_written() {
    for bed in [Bed::bucket(), Bed::files()] {
        let (_, mut new) = taken_over(&bed).await;
        if bed.folder.is_some() {
            commit(&mut new, 20).await.unwrap();
        } else {
            // Its upload is whole, the swap is not to be had.
            commit(&mut new, 20).await.unwrap_err();
        }
        ruin(&bed, Some("")).await;
        let before = bed.objects().await;
        let error = bed.take(1, 3).await.unwrap_err();
        assert!(matches!(error, StoreError::Fenced { attempt: 2, .. }), "{error}");
        assert!(bed.objects().await == before, "nothing was written");
        assert_eq!(steps(bed.take(2, 3).await.unwrap().head()), [20, 10]);
    }
}

#[tokio::test]
async fn of_two_that_replace_a_damaged_or_missing_head_at_once_the_later_attempt_holds() {
    for ruins in [Some(""), None] {
        for bed in [Bed::bucket(), Bed::files()] {
            let mut old = bed.take(1, 3).await.unwrap();
            commit(&mut old, 10).await.unwrap();
            ruin(&bed, ruins).await;
            let late = "checkpoints/000000000090-1-77-00000000000000ab/state.json";
            if ruins.is_none() {
                bed.write(late, "of a writer that took over later").await;
            }
            let (slow, store) = slow(&bed, Call::swaps);
            let uri = bed.uri.clone();
            let first = tokio::spawn(async move { store.take_lineage(&uri, &job(2), 3).await });
            slow.stalled().await;
            // The replaced writer gives its upload up: this one sees less than the first did, and aims at the same number.
            if ruins.is_none() {
                bed.erase(late).await;
                if let Some(folder) = &bed.folder {
                    std::fs::remove_dir(folder.path().join(UID).join(late).parent().unwrap()).unwrap();
                }
            }
            let second = bed.take(3, 3).await.unwrap();
            slow.release();
            let error = first.await.unwrap().unwrap_err();
            assert!(matches!(error, StoreError::Fenced { attempt: 3, .. }), "{error}");
            assert_eq!(steps(second.head()), [10]);
            assert_eq!(
                bed.take(3, 3).await.unwrap().head().checkpoints,
                second.head().checkpoints
            );
        }
    }
}

#[tokio::test]
async fn what_is_committed_while_another_looks_for_checkpoints_without_a_head_is_not_lost() {
    for bed in [Bed::bucket(), Bed::files()] {
        let mut old = bed.take(1, 3).await.unwrap();
        commit(&mut old, 10).await.unwrap();
        ruin(&bed, None).await;
        let (slow, store) = slow(&bed, |call| call.path.ends_with(CHECKPOINTS_DIR));
        let uri = bed.uri.clone();
        let late = tokio::spawn(async move { store.take_lineage(&uri, &job(2), 3).await });
        slow.stalled().await;
        let mut first = bed.take(2, 3).await.unwrap();
        commit(&mut first, 20).await.unwrap();
        let digest = Digest::sha256(&"e".repeat(64));
        first
            .commit_result("attempt-2.result.json".to_owned(), digest)
            .await
            .unwrap();
        slow.release();
        let late = late.await.unwrap().unwrap();
        assert_eq!(late.head().result, first.head().result);
        assert_eq!((late.damaged(), steps(late.head())), (None, vec![20, 10]));
    }
}

#[tokio::test]
async fn a_writer_whose_head_is_gone_from_a_bucket_puts_none_there() {
    let bed = Bed::bucket();
    let mut old = bed.take(1, 3).await.unwrap();
    commit(&mut old, 10).await.unwrap();
    ruin(&bed, None).await;
    let error = commit(&mut old, 20).await.unwrap_err();
    assert_eq!(error.reason(Purpose::Output), FailureReason::HeadDamaged, "{error}");
    assert!(bed.heads().await.is_empty());
    let next = bed.take(2, 3).await.unwrap();
    assert_eq!(steps(next.head()), [20, 10]);
}

#[tokio::test]
async fn without_head_and_without_a_checkpoint_of_this_job_it_begins_anew() {
    for bed in [Bed::bucket(), Bed::files()] {
        let other = Bed::bucket();
        let mut stranger = job(1);
        stranger.uid = "another-job".to_owned();
        let mut lineage = other.store().take_lineage(&other.uri, &stranger, 3).await.unwrap();
        commit(&mut lineage, 10).await.unwrap();
        for (name, bytes) in checkpoints(&other).await {
            bed.write(&name, bytes).await;
        }
        let mut next = bed.take(1, 3).await.unwrap();
        assert_eq!((next.damaged(), steps(next.head())), (None, vec![]));
        commit(&mut next, 20).await.unwrap();
        assert_eq!(steps(bed.take(2, 3).await.unwrap().head()), [20]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_fails_without_a_head_is_not_taken_for_an_empty_one() {
    let bed = Bed::files();
    let mut old = bed.take(1, 3).await.unwrap();
    commit(&mut old, 10).await.unwrap();
    ruin(&bed, None).await;
    let before = bed.objects().await;
    let failing = Wrapped::new(&bed.client, Forget::Nothing, |_, call: &Call| {
        if call.path.ends_with(MANIFEST_FILE) {
            Act::Fail(5)
        } else {
            Act::Pass
        }
    });
    let store = bed.store_through(failing.client());
    store.take_lineage(&bed.uri, &job(2), 3).await.unwrap_err();
    assert!(bed.objects().await == before, "nothing was written");
}

#[tokio::test]
async fn a_result_that_the_generation_below_names_is_kept() {
    let bed = Bed::files();
    let mut lineage = bed.take(1, 3).await.unwrap();
    commit(&mut lineage, 10).await.unwrap();
    let digest = Digest::sha256(&"e".repeat(64));
    lineage
        .commit_result("attempt-1.result.json".to_owned(), digest)
        .await
        .unwrap();
    let result = lineage.head().result.clone();
    bed.take(1, 3).await.unwrap();
    ruin(&bed, Some("")).await;
    assert_eq!(bed.take(2, 3).await.unwrap().head().result, result);
}

/// What lies beside a damaged `HEAD` and says nothing about whose it is.
#[tokio::test]
async fn a_damaged_head_that_nothing_shows_to_be_ours_is_left_alone() {
    for (make, name) in [
        (Bed::bucket as fn() -> Bed, "HEAD"),
        (Bed::files, "HEAD/00000000000000000001"),
    ] {
        let other = make();
        let mut stranger = job(1);
        stranger.uid = "another-job".to_owned();
        let mut lineage = other.store().take_lineage(&other.uri, &stranger, 3).await.unwrap();
        commit(&mut lineage, 10).await.unwrap();
        let own = make();
        commit(&mut own.take(1, 3).await.unwrap(), 10).await.unwrap();
        let mut renamed = BTreeMap::new();
        for (path, bytes) in &checkpoints(&own).await {
            let (folder, file) = path.rsplit_once('/').unwrap();
            renamed.insert(format!("{}0000/{file}", &folder[..folder.len() - 4]), bytes.clone());
        }
        for (label, beside) in [
            ("another job's checkpoint", checkpoints(&other).await),
            ("a manifest in a folder of another name", renamed),
            ("nothing", BTreeMap::new()),
        ] {
            let bed = make();
            for (name, bytes) in beside {
                bed.write(&name, bytes).await;
            }
            bed.write(name, "").await;
            let before = bed.objects().await;
            let error = bed.take(1, 3).await.unwrap_err();
            assert_eq!(error.reason(Purpose::Output), FailureReason::OutputConflict, "{error}");
            for words in [
                "no checkpoint of this job lies beside it",
                "move it away",
                "apply the job anew",
            ] {
                assert!(error.to_string().contains(words), "{label}: {error}");
            }
            assert!(bed.objects().await == before, "{label}: nothing was written");
        }
    }
}
