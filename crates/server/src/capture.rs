//! Texts that are kept for training: predictions, and what clients say of them, as files of the pod in the user's bucket.
//!
//! Nothing waits for it: what does not fit into its bounds is left out and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flywheel_contract::feedback::{FILE_SUFFIX, Record};
use flywheel_contract::scalar::Uri;
use flywheel_store::{Purpose, Store};
use jiff::Timestamp;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::metrics::Metrics;

/// Records that wait to be put together.
const WAITING: usize = 4096;
/// Bytes after which a file is written at once.
const FILE_BYTES: usize = 1024 * 1024;
/// Most bytes that are kept while the storage does not take them.
const KEPT_BYTES: usize = 8 * FILE_BYTES;
/// Longest time for which a record waits for others.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long the last file may take when the pod ends.
const LAST: Duration = Duration::from_secs(2);

enum Order {
    Keep(Record),
    /// Writes what is there, and tells when that is done.
    Flush(oneshot::Sender<()>),
}

/// Where records go.
#[derive(Clone)]
pub(crate) struct Capture {
    orders: Sender<Order>,
    metrics: Arc<Metrics>,
    full: Arc<AtomicBool>,
}

impl Capture {
    /// Begins. `folder`: that of the service; `writer`: a name that no other process has.
    pub fn start(store: Store, folder: Uri, writer: String, metrics: &Arc<Metrics>) -> Self {
        let (orders, receiver) = mpsc::channel(WAITING);
        let full = Arc::new(AtomicBool::new(false));
        let files = Files {
            store,
            folder,
            writer,
            written: 0,
            lines: Vec::new(),
            records: 0,
            metrics: Arc::clone(metrics),
            full: Arc::clone(&full),
        };
        tokio::spawn(files.follow(receiver));
        Self {
            orders,
            metrics: Arc::clone(metrics),
            full,
        }
    }

    /// Keeps a record where there is room for it.
    pub fn keep(&self, record: Record) {
        if self.full.load(Ordering::Relaxed) || self.orders.try_send(Order::Keep(record)).is_err() {
            self.metrics.captured("dropped", 1);
        }
    }

    /// Writes what is there, as far as the storage takes it soon.
    pub async fn flush(&self) {
        let (done, told) = oneshot::channel();
        let flushed = async {
            if self.orders.send(Order::Flush(done)).await.is_ok() {
                let _ = told.await;
            }
        };
        if timeout(LAST, flushed).await.is_err() {
            tracing::warn!("the last texts were not kept: the storage took too long");
        }
    }
}

struct Files {
    store: Store,
    folder: Uri,
    writer: String,
    /// Files so far.
    written: u64,
    /// What the next one is to hold.
    lines: Vec<u8>,
    records: u64,
    metrics: Arc<Metrics>,
    full: Arc<AtomicBool>,
}

impl Files {
    /// Until nobody can send any more.
    async fn follow(mut self, mut orders: Receiver<Order>) {
        let mut due = Instant::now() + INTERVAL;
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Keep(record)) => {
                        if self.records == 0 {
                            due = Instant::now() + INTERVAL;
                        }
                        self.add(&record);
                        if self.lines.len() >= FILE_BYTES && self.lines.len() < KEPT_BYTES {
                            self.write().await;
                        }
                    }
                    Some(Order::Flush(done)) => {
                        self.write().await;
                        // Who asked may not wait any more.
                        let _ = done.send(());
                    }
                    None => return,
                },
                () = sleep_until(due), if self.records > 0 => {
                    self.write().await;
                    due = Instant::now() + INTERVAL;
                }
            }
        }
    }

    fn add(&mut self, record: &Record) {
        if serde_json::to_writer(&mut self.lines, record).is_ok() {
            self.lines.push(b'\n');
            self.records += 1;
        }
        self.full.store(self.lines.len() >= KEPT_BYTES, Ordering::Relaxed);
    }

    /// Writes one file of what is there; where the storage does not take it, it stays.
    async fn write(&mut self) {
        if self.records == 0 {
            return;
        }
        let name = format!("{}-{:06}{FILE_SUFFIX}", self.writer, self.written);
        let uri = self.folder.join(&day()).join(&name);
        let bytes = Bytes::copy_from_slice(&self.lines);
        match self.store.put_create(&uri, bytes).await {
            Ok(_) => {
                self.metrics.captured("written", self.records);
                self.lines.clear();
                self.records = 0;
                self.written += 1;
                self.full.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                self.metrics.captured("failed", 1);
                let failure = error.failure(Purpose::Output);
                tracing::warn!(
                    reason = failure.reason.as_str(),
                    message = failure.message,
                    "texts cannot be kept; tried again"
                );
            }
        }
    }
}

/// The folder of today, as tools that read partitions know it.
fn day() -> String {
    Timestamp::now().strftime("date=%Y-%m-%d").to_string()
}
