//! Loss of power on a file system: at whatever moment it comes, and whatever of the writes that were not synced yet reached
//! the disk in whatever order, the newest acknowledged checkpoint is there.
//!
//! The calls of a real run are recorded and written out as what `object_store` asks of the system for each (checked against
//! a trace of its system calls): a new file goes by a temporary name, is written, synced and linked; then its folder is
//! synced and the temporary name removed. Only what was synced is sure to be on the disk; every other change may be there
//! or not, and of a file's content any part.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::wrapper::{Call, Kind};
use super::*;

/// What is asked of the file system; a file is known by its number, a name may lead to it.
#[derive(Clone, Debug)]
enum Op {
    MakeFolder(String),
    RemoveFolder(String),
    SyncFolder(String),
    Link(String, usize),
    Unlink(String),
    Write(usize, Bytes),
    Sync(usize),
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The system's part of recorded calls; paths are relative to a folder that is there already.
struct Script {
    ops: Vec<Op>,
    folders: BTreeSet<String>,
    names: BTreeSet<String>,
    files: usize,
}

impl Script {
    fn new() -> Self {
        Self {
            ops: Vec::new(),
            folders: BTreeSet::from([String::new()]),
            names: BTreeSet::new(),
            files: 0,
        }
    }

    fn call(&mut self, root: &str, call: &Call) {
        let path = call.path.strip_prefix(root).unwrap().trim_start_matches('/');
        match call.kind {
            Kind::Put => self.put(path, call),
            Kind::Delete if call.done => {
                self.ops.push(Op::Unlink(path.to_owned()));
                self.names.remove(path);
                let folder = parent(path);
                if folder.contains(CHECKPOINTS_DIR) && !self.names.iter().any(|n| parent(n) == folder) {
                    self.ops.push(Op::RemoveFolder(folder.to_owned()));
                    self.folders.remove(folder);
                }
            }
            _ => (),
        }
    }

    fn put(&mut self, path: &str, call: &Call) {
        let mut missing = Vec::new();
        let mut folder = parent(path);
        while !self.folders.contains(folder) {
            missing.push(folder.to_owned());
            folder = parent(folder);
        }
        for new in missing.iter().rev() {
            self.ops.push(Op::MakeFolder(new.clone()));
            self.folders.insert(new.clone());
        }
        if !missing.is_empty() {
            let existing = folder.to_owned();
            self.ops
                .extend(missing.into_iter().chain([existing]).map(Op::SyncFolder));
        }
        let (file, part) = (self.files, format!("{path}#1"));
        self.files += 1;
        self.ops.push(Op::Link(part.clone(), file));
        self.ops.push(Op::Write(file, call.bytes.clone()));
        self.ops.push(Op::Sync(file));
        if call.done {
            self.ops.push(Op::Link(path.to_owned(), file));
            self.ops.push(Op::SyncFolder(parent(path).to_owned()));
            self.names.insert(path.to_owned());
        }
        self.ops.push(Op::Unlink(part));
    }
}

/// How much of a write that was not synced is on the disk.
#[derive(Clone, Copy)]
enum Torn {
    Whole,
    Nothing,
    Half,
    Zeros,
}

/// Which syncs are left out, to see that the test notices.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    FileSync,
    FolderSync,
}

type Tree = (BTreeSet<String>, BTreeMap<String, Vec<u8>>);

/// Which of the first operations may be lost.
fn pending(ops: &[Op], without: Without) -> Vec<usize> {
    let synced = |i: usize, op: &Op| {
        let later = ops.get(i + 1..).unwrap_or_default();
        match op {
            Op::MakeFolder(path) | Op::RemoveFolder(path) | Op::Link(path, _) | Op::Unlink(path) => {
                without != Without::FolderSync
                    && later
                        .iter()
                        .any(|l| matches!(l, Op::SyncFolder(f) if f == parent(path)))
            }
            Op::Write(file, _) => {
                without != Without::FileSync && later.iter().any(|l| matches!(l, Op::Sync(f) if f == file))
            }
            Op::SyncFolder(_) | Op::Sync(_) => true,
        }
    };
    (0..ops.len()).filter(|&i| !synced(i, &ops[i])).collect()
}

/// The disk after the crash.
fn disk_after(ops: &[Op], lost: &dyn Fn(usize) -> bool, torn: &dyn Fn(usize) -> Option<Torn>) -> Tree {
    let mut folders = BTreeSet::from([String::new()]);
    let mut names = BTreeMap::new();
    let mut contents: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        if let Op::Write(file, bytes) = op {
            let bytes = match torn(i) {
                None | Some(Torn::Whole) => bytes.to_vec(),
                Some(Torn::Nothing) => Vec::new(),
                Some(Torn::Half) => bytes[..bytes.len() / 2].to_vec(),
                Some(Torn::Zeros) => vec![0; bytes.len()],
            };
            contents.insert(*file, bytes);
            continue;
        }
        if lost(i) {
            continue;
        }
        match op {
            Op::MakeFolder(path) => drop(folders.insert(path.clone())),
            Op::RemoveFolder(path) => drop(folders.remove(path)),
            Op::Link(path, file) => drop(names.insert(path.clone(), *file)),
            Op::Unlink(path) => drop(names.remove(path)),
            _ => (),
        }
    }
    // What lies in a folder that is lost is lost with it.
    let reached = |path: &str| {
        let mut folder = parent(path);
        loop {
            if !folders.contains(folder) {
                return false;
            }
            if folder.is_empty() {
                return true;
            }
            folder = parent(folder);
        }
    };
    let files = names
        .iter()
        .filter(|(path, _)| reached(path))
        .map(|(path, file)| (path.clone(), contents.get(file).cloned().unwrap_or_default()))
        .collect();
    let kept = folders.iter().filter(|f| reached(f)).cloned().collect();
    (kept, files)
}

/// A run with two attempts, and the steps that were acknowledged after so many operations.
async fn run() -> (Vec<Op>, Vec<(usize, u64)>) {
    let bed = Bed::files();
    let wrapped = Wrapped::new(&bed.client, Forget::Nothing, |_, _| Act::Pass);
    let store = bed.store_through(wrapped.client());
    let root = bed.folder.as_ref().unwrap().path().display().to_string();
    let root = root.trim_start_matches('/');
    let mut script = Script::new();
    let mut acknowledged = vec![(0, 0)];
    let mut seen = 0;
    let mut step = 0;
    for (attempt, commits) in [(1, 10), (2, 6)] {
        let mut lineage = store.take_lineage(&bed.uri, &job(attempt), 2).await.unwrap();
        for _ in 0..commits {
            step += 10;
            commit(&mut lineage, step).await.unwrap();
            for call in wrapped.log().iter().skip(seen) {
                script.call(root, call);
                seen += 1;
            }
            acknowledged.push((script.ops.len(), step));
        }
    }
    (script.ops, acknowledged)
}

/// Crash states of all prefixes: how many there are, and how many lost an acknowledged checkpoint or named a half one.
async fn crashes(ops: &[Op], acknowledged: &[(usize, u64)], without: Without) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(1);
    let (mut seen, mut bad) = (HashSet::new(), 0);
    for length in 0..=ops.len() {
        let done = &ops[..length];
        let open = pending(done, without);
        let recent: Vec<usize> = open.iter().rev().take(3).copied().collect();
        let all_torn = [Torn::Whole, Torn::Nothing, Torn::Half, Torn::Zeros];
        let mut choices: Vec<(HashSet<usize>, Torn)> = Vec::new();
        for torn in all_torn {
            choices.push((HashSet::new(), torn));
            choices.push((open.iter().copied().collect(), torn));
        }
        // Every subset of the last ones, and any of the older.
        for bits in 0..1_u32 << recent.len() {
            let mut lost: HashSet<usize> = open.iter().copied().filter(|_| rng.random_bool(0.5)).collect();
            for (bit, op) in recent.iter().enumerate() {
                if bits >> bit & 1 == 1 {
                    lost.insert(*op);
                } else {
                    lost.remove(op);
                }
            }
            choices.push((lost, all_torn[rng.random_range(0..all_torn.len())]));
        }
        let acked = acknowledged.iter().rev().find(|(at, _)| *at <= length).unwrap().1;
        for (lost, torn) in choices {
            let tree = disk_after(done, &|i| lost.contains(&i), &|i| open.contains(&i).then_some(torn));
            let mut hasher = DefaultHasher::new();
            (&tree, acked).hash(&mut hasher);
            if !seen.insert(hasher.finish()) {
                continue;
            }
            if !survives(&tree, acked).await {
                bad += 1;
                assert!(
                    without != Without::Nothing,
                    "after {length} operations, of which {lost:?} were lost: {tree:?}"
                );
                // One is enough to show that it would be noticed.
                return (seen.len(), bad);
            }
        }
    }
    (seen.len(), bad)
}

/// Whether a new attempt finds what was acknowledged, or at most one commit more, and can go on.
async fn survives(tree: &Tree, acknowledged: u64) -> bool {
    let folder = scratch();
    for path in &tree.0 {
        std::fs::create_dir_all(folder.path().join(path)).unwrap();
    }
    for (path, bytes) in &tree.1 {
        std::fs::write(folder.path().join(path), bytes).unwrap();
    }
    let uri = Uri(format!("file://{}/{UID}", folder.path().display()));
    // This machine does not crash.
    let store = store_over("file://", Arc::new(LocalFileSystem::new()));
    let Ok(mut lineage) = store.take_lineage(&uri, &job(9), 2).await else {
        return false;
    };
    let (found, passed) = resume(&lineage).await.unwrap();
    let step = found.map_or(0, |c| c.step);
    let right = passed == 0 && (step == acknowledged || step == acknowledged + 10);
    right && commit(&mut lineage, 1000).await.is_ok() && lineage.leftover().is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_crash_loses_what_was_acknowledged() {
    let (ops, acknowledged) = run().await;
    let (states, bad) = crashes(&ops, &acknowledged, Without::Nothing).await;
    println!("{} operations, {states} crash states, {bad} of them bad", ops.len());
    assert!(states >= 2000, "{states}");
    // The same run without one kind of sync: the test would see it.
    for without in [Without::FileSync, Without::FolderSync] {
        assert!(crashes(&ops, &acknowledged, without).await.1 > 0);
    }
}

/// A process that dies between two calls, or whose storage is gone from then on: nothing is cleaned up behind it.
#[tokio::test(start_paused = true)]
async fn no_death_between_two_calls_loses_what_was_acknowledged() {
    let mut deaths = 0;
    for make in [Bed::bucket, Bed::files] {
        for last in 0.. {
            let bed = make();
            let wrapped = Wrapped::new(&bed.client, Forget::Nothing, move |n, _| {
                if n >= last {
                    Act::Slow(Duration::from_secs(3600))
                } else {
                    Act::Pass
                }
            });
            let store = bed.store_through(wrapped.client());
            let mut acknowledged = 0;
            if let Ok(mut lineage) = store.take_lineage(&bed.uri, &job(1), 2).await {
                for step in [10, 20, 30, 40] {
                    if commit(&mut lineage, step).await.is_err() {
                        break;
                    }
                    acknowledged = step;
                }
            }
            let mut next = bed.take(2, 2).await.unwrap();
            let (found, passed) = resume(&next).await.unwrap();
            let step = found.map_or(0, |c| c.step);
            assert_eq!(passed, 0, "call {last}");
            assert!(
                step == acknowledged || step == acknowledged + 10,
                "call {last}: {step}, {acknowledged}"
            );
            commit(&mut next, 100).await.unwrap();
            assert_eq!(next.leftover(), None);
            let manifests = bed.objects().await.into_keys().filter(|n| n.ends_with(MANIFEST_FILE));
            assert_eq!(
                manifests.count(),
                steps(next.head()).len(),
                "call {last}: nothing else stays"
            );
            if wrapped.calls() < last {
                break;
            }
            deaths += 1;
        }
    }
    println!("{deaths} deaths between two calls");
}
