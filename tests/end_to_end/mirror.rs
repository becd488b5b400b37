//! What the API server has of a namespace, kept by watches: many rows can wait side by side and no one polls, and every
//! change is noted with its time.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{describe, localcluster};

/// Kinds that are watched, by the names that kubectl knows.
const KINDS: [&str; 5] = ["trainingjob", "modelversion", "inferenceservice", "job", "pod"];

/// A change that the API server told of.
#[derive(Clone, Debug)]
pub struct Change {
    pub at: Instant,
    pub kind: &'static str,
    pub name: String,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: String,
    pub labels: Value,
}

#[derive(Default)]
pub struct Seen {
    /// By kind and name.
    objects: BTreeMap<(&'static str, String), Value>,
    changes: Vec<Change>,
    /// Watches that ended; nothing is known from then on.
    ended: Vec<&'static str>,
}

impl Seen {
    pub fn get(&self, kind: &'static str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, name.to_owned()))
    }

    /// Changes of a kind, in order.
    pub fn changes(&self, kind: &'static str) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |c| c.kind == kind)
    }
}

struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// A row that panics with the lock must not take the others along.
fn lock(shared: &Shared) -> MutexGuard<'_, Seen> {
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The watches; they end with the value.
pub struct Mirror {
    namespace: &'static str,
    shared: Arc<Shared>,
    watches: Vec<Child>,
}

impl Mirror {
    pub fn start(namespace: &'static str) -> Self {
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            changed: Condvar::new(),
        });
        let watches = KINDS
            .into_iter()
            .map(|kind| {
                let mut watch = Command::new(localcluster())
                    .args(["kubectl", "get", kind, "-n", namespace])
                    .args(["--watch", "--output-watch-events", "-o", "json"])
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("kubectl watches");
                let events = BufReader::new(watch.stdout.take().expect("kubectl's output"));
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    for event in serde_json::Deserializer::from_reader(events).into_iter::<Value>() {
                        let Ok(event) = event else { break };
                        lock(&shared).note(kind, event);
                        shared.changed.notify_all();
                    }
                    lock(&shared).ended.push(kind);
                    shared.changed.notify_all();
                });
                watch
            })
            .collect();
        Self {
            namespace,
            shared,
            watches,
        }
    }

    /// A look at what is there.
    pub fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        let seen = lock(&self.shared);
        assert_eq!(seen.ended, Vec::<&str>::new(), "watches ended");
        look(&seen)
    }

    /// Waits until `ready` gives a value; `Err` says what it waited for, with the object as kubectl describes it.
    pub fn try_wait<T>(
        &self,
        (kind, name): (&'static str, &str),
        what: &str,
        limit: Duration,
        mut ready: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + limit;
        let mut seen = lock(&self.shared);
        loop {
            if !seen.ended.is_empty() {
                return Err(format!("{kind} {name}: {what}: the watches of {:?} ended", seen.ended));
            }
            if let Some(value) = ready(&seen) {
                return Ok(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(seen);
                let words = describe(kind, self.namespace, name)();
                return Err(format!("{kind} {name}: {what}: not within {limit:?}\n{words}"));
            }
            seen = self
                .shared
                .changed
                .wait_timeout(seen, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// As [`Mirror::try_wait`], where the test ends without the value.
    pub fn wait<T>(
        &self,
        object: (&'static str, &str),
        what: &str,
        limit: Duration,
        ready: impl FnMut(&Seen) -> Option<T>,
    ) -> T {
        self.try_wait(object, what, limit, ready)
            .unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for watch in &mut self.watches {
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }
}

impl Seen {
    fn note(&mut self, kind: &'static str, event: Value) {
        let (what, object) = (event["type"].as_str().unwrap_or_default(), &event["object"]);
        let Some(name) = object["metadata"]["name"].as_str() else {
            return;
        };
        self.changes.push(Change {
            at: Instant::now(),
            kind,
            name: name.to_owned(),
            what: what.to_owned(),
            labels: object["metadata"]["labels"].clone(),
        });
        if what == "DELETED" {
            self.objects.remove(&(kind, name.to_owned()));
        } else {
            self.objects.insert((kind, name.to_owned()), object.clone());
        }
    }
}
