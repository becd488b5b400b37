//! Damage and forgery of what lies in the storage: the newest checkpoint that is whole is used, never a half one.

use sha2::{Digest as _, Sha256};

use super::*;

/// The storage as it was: the lineage, older states of its `HEAD`, a removed checkpoint, another job's lineage.
struct Past {
    objects: BTreeMap<String, Bytes>,
    heads: Vec<Bytes>,
    /// Checkpoints as they were committed, newest first, with their objects.
    made: Vec<(CheckpointRef, BTreeMap<String, Bytes>)>,
    gone: CheckpointRef,
    stranger: Vec<(CheckpointRef, BTreeMap<String, Bytes>)>,
    stranger_head: Bytes,
}

impl Past {
    /// Name of the object that held as `HEAD`.
    fn head_name(&self) -> String {
        head_name(&self.objects).unwrap()
    }
}

fn within(objects: &BTreeMap<String, Bytes>, name: &str) -> BTreeMap<String, Bytes> {
    let prefix = format!("{CHECKPOINTS_DIR}/{name}/");
    let inner = |(path, bytes): (&String, &Bytes)| Some((path.strip_prefix(&prefix)?.to_owned(), bytes.clone()));
    objects.iter().filter_map(inner).collect()
}

fn newest_head(heads: BTreeMap<String, Bytes>) -> Bytes {
    heads.into_iter().next_back().unwrap().1
}

async fn past(make: fn() -> Bed) -> Past {
    let bed = make();
    let mut lineage = bed.take(1, 4).await.unwrap();
    let mut heads = Vec::new();
    let mut gone = None;
    for step in [10, 20, 30, 40, 50] {
        let made = commit(&mut lineage, step).await.unwrap();
        gone.get_or_insert(made);
        heads.push(newest_head(bed.heads().await));
    }
    let objects = bed.objects().await;
    let with_objects = |checkpoints: &[CheckpointRef], objects: &BTreeMap<String, Bytes>| {
        checkpoints
            .iter()
            .map(|c| (c.clone(), within(objects, &c.name)))
            .collect::<Vec<_>>()
    };
    let made = with_objects(&lineage.head().checkpoints, &objects);
    assert_eq!(made.len(), 4);

    let other = make();
    let mut stranger = job(1);
    stranger.uid = "another-job".to_owned();
    let mut lineage = other.store().take_lineage(&other.uri, &stranger, 4).await.unwrap();
    for step in [30, 40, 60] {
        commit(&mut lineage, step).await.unwrap();
    }
    let others = other.objects().await;
    Past {
        objects,
        heads,
        made,
        gone: gone.unwrap(),
        stranger: with_objects(&lineage.head().checkpoints, &others),
        stranger_head: newest_head(other.heads().await),
    }
}

type Objects = BTreeMap<String, Bytes>;

fn path(checkpoint: &str, file: &str) -> String {
    format!("{CHECKPOINTS_DIR}/{checkpoint}/{file}")
}

/// Name of the object that holds as `HEAD`, unless an earlier forgery has removed it.
fn head_name(objects: &Objects) -> Option<String> {
    objects.keys().rfind(|n| n.starts_with(HEAD_FILE)).cloned()
}

fn change_head(objects: &mut Objects, change: impl FnOnce(&mut Head)) {
    // An earlier forgery may have left nothing to change.
    let Some(name) = head_name(objects) else { return };
    if let Ok(mut head) = serde_json::from_slice::<Head>(&objects[&name]) {
        change(&mut head);
        objects.insert(name, serde_json::to_vec_pretty(&head).unwrap().into());
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(&hex::encode(Sha256::digest(bytes)))
}

fn change_manifest(
    objects: &mut Objects,
    checkpoint: &str,
    change: impl FnOnce(&mut CheckpointManifest),
) -> Option<Digest> {
    let bytes = objects.get_mut(&path(checkpoint, MANIFEST_FILE))?;
    let mut manifest = serde_json::from_slice(bytes).ok()?;
    change(&mut manifest);
    *bytes = serde_json::to_vec_pretty(&manifest).unwrap().into();
    Some(digest(bytes))
}

/// Damages bytes in one of five ways; `None` removes the object.
fn damage(bytes: &Bytes, rng: &mut StdRng) -> (&'static str, Option<Bytes>) {
    let mut bytes = bytes.to_vec();
    let at = if bytes.is_empty() {
        0
    } else {
        rng.random_range(0..bytes.len())
    };
    let kind = match rng.random_range(0..5) {
        0 if !bytes.is_empty() => {
            bytes[at] ^= 1 << rng.random_range(0..8);
            "bit flipped"
        }
        1 => {
            bytes.truncate(at);
            "cut off"
        }
        2 => {
            bytes.clear();
            "emptied"
        }
        3 => {
            bytes.push(rng.random());
            "grown"
        }
        _ => return ("removed", None),
    };
    (kind, Some(bytes.into()))
}

/// Does one evil thing and says which.
fn forge(objects: &mut Objects, past: &Past, rng: &mut StdRng) -> String {
    let pick = |rng: &mut StdRng| past.made[rng.random_range(0..past.made.len())].0.clone();
    let (a, b) = (pick(rng), pick(rng));
    let file = FILES[rng.random_range(0..FILES.len())];
    match rng.random_range(0..16) {
        0..=3 => {
            let name = if rng.random_bool(0.4) { MANIFEST_FILE } else { file };
            let target = path(&a.name, name);
            let Some(bytes) = objects.get(&target) else {
                return "nothing left to damage".to_owned();
            };
            let (kind, bytes) = damage(bytes, rng);
            match bytes {
                Some(bytes) => objects.insert(target, bytes),
                None => objects.remove(&target),
            };
            let what = if name == MANIFEST_FILE { "manifest" } else { "shard" };
            format!("{what} {kind}")
        }
        4 => {
            objects.retain(|name, _| !name.starts_with(&path(&a.name, "")));
            "checkpoint removed".to_owned()
        }
        5 => {
            let Some(bytes) = objects.get(&path(&a.name, MANIFEST_FILE)).cloned() else {
                return "nothing left to replay".to_owned();
            };
            objects.insert(path(&b.name, MANIFEST_FILE), bytes);
            "manifest of another checkpoint replayed".to_owned()
        }
        6 => {
            for name in FILES.iter().chain([&MANIFEST_FILE]) {
                if let Some(bytes) = objects.get(&path(&a.name, name)).cloned() {
                    objects.insert(path(&b.name, name), bytes);
                }
            }
            "checkpoint replayed in the folder of another".to_owned()
        }
        7 => {
            let (one, two) = (path(&a.name, file), path(&b.name, file));
            if let (Some(x), Some(y)) = (objects.get(&one).cloned(), objects.get(&two).cloned()) {
                for (checkpoint, name, bytes) in [(&b, two, x), (&a, one, y)] {
                    let (length, sum) = (bytes.len() as u64, digest(&bytes));
                    change_manifest(objects, &checkpoint.name, |m| {
                        for f in m.files.iter_mut().filter(|f| f.name == file) {
                            (f.length, f.digest) = (length, sum.clone());
                        }
                    });
                    objects.insert(name, bytes);
                }
            }
            "shards swapped, manifests rewritten".to_owned()
        }
        8 => {
            let (one, two) = (path(&a.name, FILES[0]), path(&a.name, FILES[1]));
            if let (Some(x), Some(y)) = (objects.get(&one).cloned(), objects.get(&two).cloned()) {
                objects.insert(two, x);
                objects.insert(one, y);
            }
            "shards of one checkpoint swapped".to_owned()
        }
        9 => {
            let gone = past.gone.clone();
            change_head(objects, |h| h.checkpoints.insert(0, gone));
            "HEAD at a removed step".to_owned()
        }
        10 => {
            // Its objects are copied to where HEAD now points; all digests are right.
            let (checkpoint, files) = &past.stranger[rng.random_range(0..past.stranger.len())];
            for (name, bytes) in files {
                objects.insert(path(&checkpoint.name, name), bytes.clone());
            }
            let mut forged = checkpoint.clone();
            if rng.random_bool(0.3) {
                forged.name = format!("../../another-job/{CHECKPOINTS_DIR}/{}", forged.name);
            }
            change_head(objects, |h| h.checkpoints.insert(0, forged));
            "checkpoint of another job".to_owned()
        }
        11 => {
            let sum = change_manifest(objects, &a.name, |m| m.attempt += 1);
            change_head(objects, |h| {
                for c in h.checkpoints.iter_mut().filter(|c| c.name == a.name) {
                    c.digest = sum.clone().unwrap_or(dataset());
                }
            });
            "wrong attempt, all digests right".to_owned()
        }
        12 => {
            let step = a.step + rng.random_range(1..100);
            let sum = change_manifest(objects, &a.name, |m| m.step = step);
            change_head(objects, |h| {
                for c in h.checkpoints.iter_mut().filter(|c| c.name == a.name) {
                    (c.step, c.digest) = (step, sum.clone().unwrap_or(dataset()));
                }
            });
            "wrong step, all digests right".to_owned()
        }
        13 => {
            let Some(name) = head_name(objects) else {
                return "no HEAD left to damage".to_owned();
            };
            let (kind, bytes) = damage(&objects[&name], rng);
            match bytes {
                Some(bytes) => _ = objects.insert(name, bytes),
                // On a file system the folder, with all generations.
                None => objects.retain(|name, _| !name.starts_with(HEAD_FILE)),
            }
            format!("HEAD {kind}")
        }
        14 => {
            let older = past.heads[rng.random_range(0..past.heads.len())].clone();
            objects.insert(head_name(objects).unwrap_or(past.head_name()), older);
            "older HEAD replayed".to_owned()
        }
        _ => {
            objects.insert(
                head_name(objects).unwrap_or(past.head_name()),
                past.stranger_head.clone(),
            );
            "HEAD of another job".to_owned()
        }
    }
}

/// What must be found.
#[derive(Debug, PartialEq)]
enum Expected {
    /// The newest whole one, or none.
    Checkpoint(Option<CheckpointRef>),
    /// `HEAD` is not this job's, or nothing shows that it is.
    Head,
    /// `HEAD` names a later attempt.
    Fenced,
}

/// Works out what must be found from what the test itself has committed. Of `HEAD` only the object that was swapped last is
/// looked at, never one that code could fall back to: where that one is damaged or missing, all that was committed and not
/// removed counts.
fn expected(objects: &Objects, past: &Past, files: bool) -> Expected {
    let whole = |c: &&CheckpointRef| {
        past.made
            .iter()
            .any(|(made, files)| made == *c && within(objects, &c.name) == *files)
    };
    let all = || Expected::Checkpoint(past.made.iter().map(|(c, _)| c).find(whole).cloned());
    let name = past.head_name();
    let Some(bytes) = objects.get(&name) else {
        // Nothing there could be another's: a job without any checkpoint begins anew.
        return all();
    };
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let version = json["schemaVersion"].as_u64();
    if version.is_some_and(|v| v != u64::from(SCHEMA_VERSION)) {
        return Expected::Head;
    }
    match serde_json::from_slice::<Head>(bytes) {
        Ok(head) if head.job_uid != UID => Expected::Head,
        Ok(head) if !files || name.ends_with(&format!("/{:020}", head.sequence)) => {
            if head.attempt > 2 {
                return Expected::Fenced;
            }
            Expected::Checkpoint(head.checkpoints.iter().find(whole).cloned())
        }
        _ => {
            let shown = past.made.iter().any(|(c, files)| {
                let manifest = path(&c.name, MANIFEST_FILE);
                objects.get(&manifest) == files.get(MANIFEST_FILE)
            });
            // An older generation shows whose it is, too.
            if !shown && !files {
                return Expected::Head;
            }
            all()
        }
    }
}

async fn trials(make: fn() -> Bed, count: u64) -> BTreeMap<String, usize> {
    let past = past(make).await;
    let mut counts = BTreeMap::new();
    for seed in 0..count {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut objects = past.objects.clone();
        let kinds: Vec<_> = (0..rng.random_range(1..=3))
            .map(|_| forge(&mut objects, &past, &mut rng))
            .collect();
        let bed = make();
        for (name, bytes) in &objects {
            bed.write(name, bytes.clone()).await;
        }
        let expected = expected(&objects, &past, bed.folder.is_some());
        let found = match bed.take(2, 4).await {
            Ok(lineage) => match resume(&lineage).await {
                Ok((found, _)) => Expected::Checkpoint(found),
                Err(error) => panic!("seed {seed}, {kinds:?}: {error}"),
            },
            Err(StoreError::Head { .. }) => Expected::Head,
            Err(StoreError::Fenced { .. }) => Expected::Fenced,
            Err(error) => panic!("seed {seed}, {kinds:?}: {error}"),
        };
        assert_eq!(found, expected, "seed {seed}, {kinds:?}");
        for kind in kinds {
            *counts.entry(kind).or_insert(0) += 1;
        }
        let end = match found {
            Expected::Checkpoint(Some(c)) if c == past.made[0].0 => "=> the newest is whole and used",
            Expected::Checkpoint(Some(_)) => "=> an older one is used",
            Expected::Checkpoint(None) => "=> none is whole",
            Expected::Head => "=> HEAD is refused",
            Expected::Fenced => "=> HEAD names a later attempt",
        };
        *counts.entry(end.to_owned()).or_insert(0) += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_whole_checkpoint_is_used_whatever_was_forged() {
    for (name, make, count) in [
        ("object store", Bed::bucket as fn() -> Bed, 8000),
        ("file system", Bed::files, 3000),
    ] {
        let counts = trials(make, count).await;
        println!("{name}: {count} trials");
        for (kind, count) in counts {
            println!("  {count:6} {kind}");
        }
    }
}
