//! A storage that is full, broken, slow or read-only: a commit fails cleanly, and what was there is still there.
//!
//! The clock is tokio's own, which goes on only while nothing runs: no deadline is missed by a busy machine.

use super::wrapper::Kind;
use super::*;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EROFS: i32 = 30;

#[tokio::test(start_paused = true)]
async fn a_commit_that_meets_a_fault_changes_nothing_that_holds() {
    let mut counts = BTreeMap::new();
    for make in [Bed::bucket, Bed::files] {
        let calls = calls_of_a_commit(&make()).await;
        for from in 0..=calls {
            for (fault, act) in [
                ("full", Act::Fail(ENOSPC)),
                ("EIO", Act::Fail(EIO)),
                ("read-only", Act::Fail(EROFS)),
                ("slow", Act::Slow(Duration::from_secs(3600))),
            ] {
                let bed = make();
                let mut lineage = bed.take(1, 2).await.unwrap();
                for step in [10, 20] {
                    commit(&mut lineage, step).await.unwrap();
                }
                let (heads, objects) = (bed.heads().await, bed.objects().await);
                // From one call on, all writes (or all calls, where it is slow) of the same writer meet the fault.
                let broken = Wrapped::new(&bed.client, Forget::Nothing, move |n, call| {
                    let met = n >= from && (fault == "slow" || matches!(call.kind, Kind::Put | Kind::Delete));
                    if met { act } else { Act::Pass }
                });
                lineage.place.store = bed.store_through(broken.client());
                lineage.place.at = lineage.place.store.writable(&lineage.place.head).unwrap();
                let outcome = commit(&mut lineage, 30).await;
                let swapped = broken.log().iter().any(|c| c.swaps() && c.done);
                let after = bed.objects().await;
                let label = format!("{} {fault}", bed.origin);
                match &outcome {
                    Ok(_) => {
                        assert!(swapped);
                        let removed =
                            steps(lineage.head()) == [30, 20] && after.keys().all(|n| !n.contains("/000000000010-"));
                        assert!(removed || lineage.leftover().is_some(), "{label} from {from}");
                        *counts.entry(format!("{label}: committed, fault after it")).or_insert(0) += 1;
                    }
                    Err(error) => {
                        let word = match fault {
                            "full" => "Make room",
                            "read-only" if bed.folder.is_some() => "belongs to user",
                            "read-only" => "refused access",
                            "EIO" => "Check that it runs",
                            _ => "within",
                        };
                        assert!(error.to_string().contains(word), "{label} from {from}: {error}");
                        // A writer that is cut off between the swap and its answer cannot know; all others changed nothing.
                        if !swapped {
                            assert!(bed.heads().await == heads, "{label} from {from}");
                        }
                        for (name, bytes) in objects.iter().filter(|(n, _)| n.starts_with(CHECKPOINTS_DIR)) {
                            assert_eq!(after.get(name), Some(bytes), "{label} from {from}: {name}");
                        }
                        *counts.entry(format!("{label}: failed, nothing changed")).or_insert(0) += 1;
                    }
                }

                // The fault goes, and the same writer goes on; what the failed commit left is swept.
                lineage.place.store = bed.store();
                lineage.place.at = lineage.place.store.writable(&lineage.place.head).unwrap();
                commit(&mut lineage, 40).await.unwrap();
                assert_eq!(lineage.leftover(), None);
                let second = if swapped { 30 } else { 20 };
                assert_eq!(steps(lineage.head()), [40, second], "{label} from {from}");
                let manifests = bed.objects().await.into_keys().filter(|n| n.ends_with(MANIFEST_FILE));
                assert_eq!(manifests.count(), 2, "{label} from {from}");
                let next = bed.take(2, 2).await.unwrap();
                assert_eq!(resume(&next).await.unwrap().0.unwrap().step, 40);
            }
        }
    }
    for (label, count) in counts {
        println!("{label}: {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_and_what_was_waited_of_it_are_told() {
    let bed = Bed::files();
    for (limit, words) in [
        (4000, "within 4 s (tries: 5 in 3.0 s;"),
        (5000, "within 5 s (tries: 5 in 3.0 s;"),
        (7000, "within 7 s (tries: 6 in 6.2 s;"),
        (1500, "within 1.5 s (tries: 4 in 1.4 s;"),
    ] {
        let broken = Wrapped::new(&bed.client, Forget::Nothing, |_, _| Act::Fail(EIO));
        let limits = Limits {
            operation: Duration::from_millis(limit),
            ..Limits::default()
        };
        let store = Store::with_limits(&StorageSettings::default(), limits).unwrap();
        store
            .clients
            .lock()
            .unwrap()
            .insert(bed.origin.to_owned(), broken.client());
        let error = store.get_bytes(&bed.uri.join("x"), 10).await.unwrap_err();
        assert!(error.to_string().contains(words), "{limit}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_found_again() {
    let mut found = 0;
    for make in [Bed::bucket, Bed::files] {
        let calls = calls_of_a_commit(&make()).await;
        for lost in 0..calls {
            let bed = make();
            let mut lineage = bed.take(1, 2).await.unwrap();
            for step in [10, 20] {
                commit(&mut lineage, step).await.unwrap();
            }
            let wrapped = Wrapped::new(&bed.client, Forget::Nothing, move |n, _| {
                if n == lost { Act::FailLate(EIO) } else { Act::Pass }
            });
            lineage.place.store = bed.store_through(wrapped.client());
            lineage.place.at = lineage.place.store.writable(&lineage.place.head).unwrap();
            let made = commit(&mut lineage, 30).await.unwrap();
            assert_eq!(lineage.head().checkpoints.first(), Some(&made), "call {lost}");
            assert_eq!(steps(lineage.head()), [30, 20], "call {lost}");
            let heads = wrapped.log().iter().filter(|c| c.swaps() && c.done).count();
            assert_eq!(heads, 1, "call {lost}: it is swapped once");
            let next = bed.take(2, 2).await.unwrap();
            assert_eq!(resume(&next).await.unwrap().0, Some(made));
            found += 1;
        }
    }
    println!("{found} lost answers, none believed");
}

#[tokio::test(start_paused = true)]
async fn what_the_storage_garbles_is_never_committed() {
    for make in [Bed::bucket as fn() -> Bed, Bed::files] {
        for name in FILES.iter().chain([&MANIFEST_FILE]) {
            let bed = make();
            let wrapped = Wrapped::new(&bed.client, Forget::Nothing, move |_, call| {
                let met = call.path.contains("/000000000020-") && call.path.ends_with(name);
                if met { Act::Garble } else { Act::Pass }
            });
            let store = bed.store_through(wrapped.client());
            let mut lineage = store.take_lineage(&bed.uri, &job(1), 2).await.unwrap();
            commit(&mut lineage, 10).await.unwrap();
            let before = bed.objects().await;
            let error = commit(&mut lineage, 20).await.unwrap_err();
            assert!(matches!(error, StoreError::Checkpoint { .. }), "{name}: {error}");
            assert!(error.to_string().contains("digest"), "{name}: {error}");
            assert!(bed.objects().await == before, "{name}: nothing stays");
            commit(&mut lineage, 30).await.unwrap();
            assert_eq!(steps(lineage.head()), [30, 10]);
        }
    }
}

/// A commit that is given up while its swap is under way, which lands later: the writer takes it for its own.
#[tokio::test(start_paused = true)]
async fn a_swap_that_lands_late_is_adopted() {
    for bed in [Bed::bucket(), Bed::files()] {
        let wrapped = Wrapped::new(&bed.client, Forget::Nothing, |_, call| {
            let names = |step: &str| String::from_utf8_lossy(&call.bytes).contains(step);
            if call.swaps() && names("\"step\": 20") && !names("\"step\": 30") {
                Act::Stall
            } else {
                Act::Pass
            }
        });
        let store = bed.store_through(wrapped.client());
        let mut lineage = store.take_lineage(&bed.uri, &job(1), 5).await.unwrap();
        commit(&mut lineage, 10).await.unwrap();

        let error = commit(&mut lineage, 20).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        wrapped.stalled().await;

        // The write as the storage gets it after its sender has given it up.
        let manifest = wrapped
            .log()
            .into_iter()
            .rfind(|c| c.kind == Kind::Put && c.path.contains("/000000000020-") && c.path.ends_with(MANIFEST_FILE))
            .unwrap();
        let mut late = lineage.head().clone();
        late.sequence += 1;
        late.checkpoints.insert(
            0,
            CheckpointRef {
                name: manifest.path.rsplit('/').nth(1).unwrap().to_owned(),
                step: 20,
                digest: digest_of(&manifest.bytes),
            },
        );
        let bytes = serde_json::to_vec_pretty(&late).unwrap();
        let at = match bed.folder {
            Some(_) => format!("HEAD/{:020}", late.sequence),
            None => HEAD_FILE.to_owned(),
        };
        bed.write(&at, bytes).await;
        commit(&mut lineage, 30).await.unwrap();
        assert_eq!(steps(lineage.head()), [30, 20, 10]);
        let next = bed.take(2, 5).await.unwrap();
        assert_eq!(steps(next.head()), [30, 20, 10]);
        for checkpoint in &next.head().checkpoints {
            next.fetch(checkpoint, scratch().path()).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_without_conditions_is_refused() {
    for (bed, forget, word) in [
        (Bed::bucket(), Forget::All, "a second create"),
        (Bed::bucket(), Forget::Creates, "a second create"),
        (Bed::bucket(), Forget::Updates, "no longer the object's"),
        (Bed::bucket(), Forget::Tags, "no longer the object's"),
        (Bed::files(), Forget::All, "a second create"),
    ] {
        let wrapped = Wrapped::new(&bed.client, forget, |_, _| Act::Pass);
        let store = bed.store_through(wrapped.client());
        let error = store.take_lineage(&bed.uri, &job(1), 3).await.unwrap_err();
        assert_eq!(
            error.reason(Purpose::Output),
            FailureReason::StoreLacksConditionalPut,
            "{forget:?}: {error}"
        );
        assert!(error.to_string().contains(word), "{forget:?}: {error}");
        assert!(error.to_string().contains("Use one that"), "{error}");
        assert_eq!(bed.objects().await.len(), 0, "{forget:?}: nothing stays");
    }
}
