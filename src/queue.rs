//! Objects of one kind that a controller is to look at: now, or after a time.
//!
//! However often an object changes, it waits once, so that the queue is never longer than there are objects. Namespaces take
//! turns (round robin, as the API server's own fair queuing does between flows), so that one with thousands of changes does
//! not keep the others waiting; and no object is looked at twice at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// An object of the queue's kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is to be looked at. Closed, it takes nothing.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    open: bool,
    places: HashMap<Key, Place>,
    /// Names whose turn it is, by namespace, in the order in which they came. None of the lists is empty.
    ready: HashMap<String, VecDeque<String>>,
    /// The namespaces of `ready` that may have another object looked at, the next one first.
    turns: VecDeque<String>,
    /// Objects that are being looked at, by namespace.
    busy: HashMap<String, usize>,
    /// Most of them.
    busy_max: usize,
    later: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
enum Place {
    Ready,
    Later(Instant),
    /// It is being looked at; `again` when it changed meanwhile.
    Busy {
        again: bool,
    },
}

impl Queue {
    /// A queue that is closed. Of one namespace at most `busy_max` objects are handed out at once.
    #[must_use]
    pub fn new(busy_max: usize) -> Self {
        Self {
            state: Mutex::new(State {
                open: false,
                places: HashMap::new(),
                ready: HashMap::new(),
                turns: VecDeque::new(),
                busy: HashMap::new(),
                busy_max: busy_max.max(1),
                later: BTreeSet::new(),
            }),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it takes objects.
    pub fn open(&self) {
        self.state().open = true;
    }

    /// The object is to be looked at as soon as it is its turn.
    pub fn now(&self, namespace: &str, name: &str) {
        let key = Key {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        if self.state().put(key) {
            self.changed.notify_one();
        }
    }

    /// The next object, once there is one. It is busy until [`Queue::done`].
    pub async fn next(&self) -> Key {
        loop {
            let (next, due) = {
                let mut state = self.state();
                let now = Instant::now();
                state.promote(now);
                (state.take(), state.later.first().map(|(at, _)| *at))
            };
            if let Some(key) = next {
                return key;
            }
            let changed = self.changed.notified();
            match due {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// The object was looked at and is to be again after this time (`None`: when it changes). At once, where it changed
    /// meanwhile.
    pub fn done(&self, key: Key, again_after: Option<Duration>) {
        self.state().done(key, again_after, Instant::now());
        self.changed.notify_one();
    }

    /// Objects that wait for their turn, and those that are being looked at.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        let state = self.state();
        (state.ready.values().map(VecDeque::len).sum(), state.busy.values().sum())
    }
}

impl State {
    /// Whether that makes something ready.
    fn put(&mut self, key: Key) -> bool {
        if !self.open {
            return false;
        }
        match self.places.get_mut(&key) {
            Some(Place::Ready) => return false,
            Some(Place::Busy { again }) => {
                *again = true;
                return false;
            }
            Some(Place::Later(at)) => {
                let at = *at;
                self.later.remove(&(at, key.clone()));
            }
            None => {}
        }
        self.make_ready(key);
        true
    }

    fn make_ready(&mut self, key: Key) {
        let names = self.ready.entry(key.namespace.clone()).or_default();
        names.push_back(key.name.clone());
        if names.len() == 1 {
            self.give_turn(&key.namespace);
        }
        self.places.insert(key, Place::Ready);
    }

    /// Where it has something ready and may have more looked at. Meant for namespaces that have no turn yet.
    fn give_turn(&mut self, namespace: &str) {
        let busy = self.busy.get(namespace).copied().unwrap_or(0);
        if self.ready.contains_key(namespace) && busy < self.busy_max {
            self.turns.push_back(namespace.to_owned());
        }
    }

    /// What waited for this time is ready.
    fn promote(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.later.pop_first() {
                self.make_ready(key);
            }
        }
    }

    fn take(&mut self) -> Option<Key> {
        let namespace = self.turns.pop_front()?;
        let names = self.ready.get_mut(&namespace)?;
        let name = names.pop_front()?;
        if names.is_empty() {
            self.ready.remove(&namespace);
        }
        *self.busy.entry(namespace.clone()).or_default() += 1;
        self.give_turn(&namespace);
        let key = Key { namespace, name };
        self.places.insert(key.clone(), Place::Busy { again: false });
        Some(key)
    }

    fn done(&mut self, key: Key, again_after: Option<Duration>, now: Instant) {
        let place = self.places.remove(&key);
        let busy = self.busy.get(&key.namespace).copied().unwrap_or(0);
        if busy > 1 {
            self.busy.insert(key.namespace.clone(), busy - 1);
        } else {
            self.busy.remove(&key.namespace);
        }
        // It had no turn as long as it had as many busy as it may.
        if busy >= self.busy_max {
            self.give_turn(&key.namespace);
        }
        match (place, again_after) {
            (Some(Place::Busy { again: true }), _) => self.make_ready(key),
            (_, Some(after)) => {
                let at = now + after;
                self.later.insert((at, key.clone()));
                self.places.insert(key, Place::Later(at));
            }
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::FutureExt as _;

    use super::*;

    fn open(busy_max: usize) -> Queue {
        let queue = Queue::new(busy_max);
        queue.open();
        queue
    }

    fn next(queue: &Queue) -> Option<Key> {
        queue.next().now_or_never()
    }

    fn names(queue: &Queue, count: usize) -> Vec<String> {
        let taken = (0..count).map_while(|_| next(queue));
        taken.map(|key| format!("{}/{}", key.namespace, key.name)).collect()
    }

    #[tokio::test]
    async fn an_object_that_changes_often_waits_once() {
        let queue = Queue::new(8);
        queue.now("team", "nobody looks at it yet");
        queue.open();
        for _ in 0..1000 {
            queue.now("team", "a");
            queue.now("team", "b");
        }
        assert_eq!(queue.len(), (2, 0));
        assert_eq!(names(&queue, 9), ["team/a", "team/b"]);
        assert_eq!(queue.len(), (0, 2));
        // And one that waits is woken.
        let changed = tokio::time::timeout(Duration::from_secs(5), queue.next());
        let (key, ()) = tokio::join!(changed, async { queue.now("team", "c") });
        assert_eq!(key.unwrap().name, "c");
    }

    #[tokio::test]
    async fn an_object_that_changes_while_it_is_looked_at_is_looked_at_again_and_never_twice_at_once() {
        let queue = open(8);
        queue.now("team", "a");
        let key = next(&queue).unwrap();
        queue.now("team", "a");
        assert_eq!(next(&queue), None);
        queue.done(key, Some(Duration::from_secs(60)));
        let key = next(&queue).unwrap();
        queue.done(key, None);
        assert_eq!(next(&queue), None);
        assert!(queue.state().places.is_empty(), "nothing is kept of it");
    }

    #[tokio::test]
    async fn an_object_is_looked_at_after_its_time_or_when_it_changes() {
        let queue = open(8);
        queue.now("team", "a");
        queue.done(next(&queue).unwrap(), Some(Duration::from_secs(60)));
        assert_eq!(next(&queue), None);
        queue.now("team", "a");
        queue.done(next(&queue).unwrap(), Some(Duration::from_millis(20)));
        assert_eq!(queue.state().later.len(), 1, "the later time is forgotten");
        let due = tokio::time::timeout(Duration::from_secs(5), queue.next());
        assert_eq!(due.await.unwrap().name, "a");
        assert!(queue.state().later.is_empty());
    }

    #[test]
    fn namespaces_take_turns() {
        let queue = open(8);
        for n in 0..1000 {
            queue.now("noisy", &n.to_string());
        }
        queue.now("quiet", "a");
        queue.now("quiet", "b");
        queue.now("third", "c");
        let expected = ["noisy/0", "quiet/a", "third/c", "noisy/1", "quiet/b", "noisy/2"];
        assert_eq!(names(&queue, 6), expected);
    }

    #[test]
    fn one_namespace_leaves_room_for_others() {
        let queue = open(3);
        for n in 0..1000 {
            queue.now("slow", &n.to_string());
        }
        assert_eq!(names(&queue, 9), ["slow/0", "slow/1", "slow/2"]);
        queue.now("quiet", "a");
        assert_eq!(names(&queue, 9), ["quiet/a"]);
        let done = |name: &str| Key {
            namespace: "slow".to_owned(),
            name: name.to_owned(),
        };
        queue.done(done("1"), None);
        assert_eq!(names(&queue, 9), ["slow/3"]);
    }

    /// Random puts, takes and ends: each object that was put is handed out, once at a time, and no namespace beyond its room.
    #[test]
    fn whatever_comes_nothing_is_lost_or_handed_out_twice() {
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let queue = open(2);
        let mut busy: BTreeMap<Key, bool> = BTreeMap::new();
        let mut wanted: BTreeSet<Key> = BTreeSet::new();
        for _ in 0..100_000 {
            match random(3) {
                0 => {
                    let (namespace, name) = (random(4).to_string(), random(5).to_string());
                    queue.now(&namespace, &name);
                    let key = Key { namespace, name };
                    match busy.get_mut(&key) {
                        Some(again) => *again = true,
                        None => {
                            wanted.insert(key);
                        }
                    }
                }
                1 => {
                    if let Some(key) = next(&queue) {
                        assert!(wanted.remove(&key), "{key:?} was not wanted");
                        assert!(busy.keys().filter(|other| other.namespace == key.namespace).count() < 2);
                        assert!(busy.insert(key, false).is_none());
                    } else {
                        let full =
                            |key: &Key| busy.keys().filter(|other| other.namespace == key.namespace).count() == 2;
                        assert!(wanted.iter().all(full), "{wanted:?} wait, {busy:?}");
                    }
                }
                _ => {
                    let count = u64::try_from(busy.len()).unwrap();
                    if count > 0 {
                        let index = usize::try_from(random(count)).unwrap();
                        let key = busy.keys().nth(index).unwrap().clone();
                        if busy.remove(&key).unwrap() {
                            wanted.insert(key.clone());
                        }
                        queue.done(key, None);
                    }
                }
            }
            assert_eq!(queue.len(), (wanted.len(), busy.len()));
        }
        let state = queue.state();
        assert_eq!(state.places.len(), wanted.len() + busy.len());
        assert!(state.turns.len() <= 4);
    }
}
