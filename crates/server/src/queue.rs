//! Texts that wait for a worker, and how they are put together.
//!
//! Bounded by the permits that its items hold. A worker that comes for work takes what waits, in the order of arrival, and
//! never waits for more, so an idle pod adds no delay and a busy one computes full batches. Nothing is computed for padding,
//! so rows of any lengths share a batch; their tokens in all are bounded.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Most rows of a batch.
const MAX_BATCH_ROWS: usize = 128;
/// What became of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its deadline passed before a worker came to it.
    Expired,
    /// The model could not compute it.
    Failed,
}

/// One text on its way.
pub(crate) struct Item {
    /// Its token ids.
    pub row: Vec<i64>,
    /// When its answer is of no use any more.
    pub deadline: Instant,
    /// Where the answer goes; closed once nobody waits for it.
    pub reply: oneshot::Sender<Result<Vec<f32>, Fault>>,
    /// Its share of what the pod takes at once, given back with the item.
    pub permit: OwnedSemaphorePermit,
}

impl Item {
    /// Answers and gives the permit back.
    pub fn answer(self, answer: Result<Vec<f32>, Fault>) {
        drop(self.permit);
        // Nobody waits any more: the client is gone or was answered 504.
        let _ = self.reply.send(answer);
    }
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Workers that wait for work.
    idle: usize,
    closed: bool,
}

/// The queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    batch_tokens: usize,
}

impl Queue {
    /// An empty one. `batch_tokens`: most tokens of a batch; a single row may have more.
    pub fn new(batch_tokens: usize) -> Self {
        Self {
            state: Mutex::default(),
            ready: Condvar::new(),
            batch_tokens,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds texts; false once closed (their replies are dropped then).
    pub fn push(&self, items: Vec<Item>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        let many = items.len() > 1;
        state.items.extend(items);
        drop(state);
        if many {
            self.ready.notify_all();
        } else {
            self.ready.notify_one();
        }
        true
    }

    /// Waits for work; `None` once closed. Texts whose deadline has passed or whose client is gone never come out.
    pub fn take(&self) -> Option<Vec<Item>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let batch = state.batch(self.batch_tokens, Instant::now());
            if !batch.is_empty() {
                return Some(batch);
            }
            state.idle += 1;
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Texts that wait.
    pub fn depth(&self) -> usize {
        self.lock().items.len()
    }

    /// Lets workers go; what waits is dropped.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        drop(state);
        self.ready.notify_all();
    }
}

impl State {
    /// The oldest items that are worth computing. Leaves a share for workers that are idle, too: two cores with half the rows
    /// each are done sooner than one with all.
    fn batch(&mut self, batch_tokens: usize, now: Instant) -> Vec<Item> {
        let mut batch: Vec<Item> = Vec::new();
        let most = self.items.len().div_ceil(self.idle + 1).clamp(1, MAX_BATCH_ROWS);
        let mut tokens = 0;
        while batch.len() < most
            && let Some(item) = self.items.pop_front()
        {
            if item.reply.is_closed() {
                continue;
            }
            if item.deadline <= now {
                item.answer(Err(Fault::Expired));
                continue;
            }
            tokens += item.row.len();
            if tokens > batch_tokens && !batch.is_empty() {
                self.items.push_front(item);
                break;
            }
            batch.push(item);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::Semaphore;

    type Reply = oneshot::Receiver<Result<Vec<f32>, Fault>>;

    fn item(permits: &Arc<Semaphore>, length: usize, deadline: Instant) -> (Item, Reply) {
        let (reply, receiver) = oneshot::channel();
        let permit = Arc::clone(permits).try_acquire_owned().unwrap();
        let row = vec![1; length];
        (
            Item {
                row,
                deadline,
                reply,
                permit,
            },
            receiver,
        )
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn lengths(batch: &[Item]) -> Vec<usize> {
        batch.iter().map(|i| i.row.len()).collect()
    }

    #[test]
    fn the_oldest_go_first_whatever_their_lengths() {
        let permits = Arc::new(Semaphore::new(100));
        let queue = Queue::new(512);
        let (items, _replies): (Vec<_>, Vec<_>) = [5, 60, 8, 3, 500, 9]
            .iter()
            .map(|n| item(&permits, *n, later()))
            .unzip();
        assert!(queue.push(items));
        assert_eq!(lengths(&queue.take().unwrap()), [5, 60, 8, 3]);
        assert_eq!(lengths(&queue.take().unwrap()), [500, 9]);
        assert_eq!(queue.depth(), 0);
        assert_eq!(permits.available_permits(), 100);
    }

    #[test]
    fn a_batch_has_bounds_in_rows_and_tokens() {
        let permits = Arc::new(Semaphore::new(1000));
        for (length, want) in [(8, 64), (2, MAX_BATCH_ROWS), (64, 8), (256, 2), (2000, 1)] {
            let queue = Queue::new(512);
            let (items, _replies): (Vec<_>, Vec<_>) = (0..200).map(|_| item(&permits, length, later())).unzip();
            queue.push(items);
            assert_eq!(queue.take().unwrap().len(), want, "{length}");
            assert_eq!(queue.depth(), 200 - want);
        }
    }

    #[test]
    fn expired_texts_are_answered_and_those_of_gone_clients_dropped_unseen() {
        let permits = Arc::new(Semaphore::new(3));
        let queue = Queue::new(512);
        let (expired, mut told) = item(&permits, 4, Instant::now());
        let (gone, nobody) = item(&permits, 4, later());
        let (alive, _reply) = item(&permits, 4, later());
        drop(nobody);
        queue.push(vec![expired, gone, alive]);
        let batch = queue.take().unwrap();
        assert_eq!(batch.len(), 1);
        assert_eq!(told.try_recv().unwrap(), Err(Fault::Expired));
        assert_eq!(permits.available_permits(), 2);
    }

    #[test]
    fn many_that_nobody_waits_for_do_not_hide_a_live_one() {
        let permits = Arc::new(Semaphore::new(3000));
        let queue = Queue::new(512);
        let (mut items, replies): (Vec<_>, Vec<_>) = (0..2000).map(|_| item(&permits, 4, later())).unzip();
        drop(replies);
        let (alive, _reply) = item(&permits, 4, later());
        items.push(alive);
        queue.push(items);
        assert_eq!(queue.lock().batch(512, Instant::now()).len(), 1);
    }

    #[test]
    fn idle_workers_share_and_a_closed_queue_lets_them_go() {
        let permits = Arc::new(Semaphore::new(100));
        let queue = Arc::new(Queue::new(512));
        let (sender, batches) = std::sync::mpsc::channel();
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, sender) = (Arc::clone(&queue), sender.clone());
                std::thread::spawn(move || {
                    while let Some(batch) = queue.take() {
                        sender.send(batch.len()).unwrap();
                        std::thread::sleep(Duration::from_millis(50));
                    }
                })
            })
            .collect();
        let deadline = later();
        while queue.lock().idle < 2 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let (items, _replies): (Vec<_>, Vec<_>) = (0..20).map(|_| item(&permits, 4, later())).unzip();
        queue.push(items);
        // Both were idle when twenty rows came: the first takes half or, woken after the other, the rest.
        let first = batches.recv_timeout(Duration::from_secs(10)).unwrap();
        let second = batches.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((first, second), (10, 10));
        queue.close();
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(!queue.push(vec![item(&permits, 4, later()).0]));
        assert!(queue.take().is_none());
    }
}
