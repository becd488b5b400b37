//! Texts that are kept for training: predictions, and what clients say of them, as files of the pod in the user's bucket.
//!
//! Nothing waits for it: what does not fit into its bounds is left out and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flywheel_contract::feedback::{FILE_SUFFIX, Record};
use flywheel_contract::scalar::Uri;
use flywheel_store::{Purpose, Store};
use jiff::Timestamp;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::metrics::Metrics;

/// Bytes after which a file is written at once.
const FILE_BYTES: usize = 1024 * 1024;
/// Most bytes that wait, whatever they wait for.
const KEPT_BYTES: usize = 8 * FILE_BYTES;
/// Longest time for which a record waits for others, and the time until the storage is tried again that did not take a file.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long the last file may take when the pod ends.
const LAST: Duration = Duration::from_secs(2);

enum Order {
    /// A line.
    Keep(Vec<u8>),
    /// Writes what is there, and tells when that is done.
    Flush(oneshot::Sender<()>),
}

/// Where records go.
#[derive(Clone)]
pub(crate) struct Capture {
    /// Bounded by `waiting`.
    orders: UnboundedSender<Order>,
    metrics: Arc<Metrics>,
    /// Bytes of lines that are not written.
    waiting: Arc<AtomicUsize>,
}

impl Capture {
    /// Begins. `folder`: that of the service; `writer`: a name that no other process has.
    pub fn start(store: Store, folder: Uri, writer: String, metrics: &Arc<Metrics>) -> Self {
        let (orders, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let files = Files {
            store,
            folder,
            writer,
            begun: 0,
            lines: Vec::new(),
            records: 0,
            due: Instant::now(),
            failed: false,
            metrics: Arc::clone(metrics),
            waiting: Arc::clone(&waiting),
        };
        tokio::spawn(files.follow(receiver));
        Self {
            orders,
            metrics: Arc::clone(metrics),
            waiting,
        }
    }

    /// Keeps a record where there is room for it.
    pub fn keep(&self, record: &Record) {
        let Ok(mut line) = serde_json::to_vec(record) else {
            return;
        };
        line.push(b'\n');
        let bytes = line.len();
        let room = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= KEPT_BYTES;
        if !room || self.orders.send(Order::Keep(line)).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.metrics.captured("dropped", 1);
        }
    }

    /// Writes what is there, as far as the storage takes it soon.
    pub async fn flush(&self) {
        let (done, told) = oneshot::channel();
        let asked = self.orders.send(Order::Flush(done)).is_ok();
        if asked && timeout(LAST, told).await.is_err() {
            tracing::warn!("the last texts were not kept: the storage took too long");
        }
    }
}

struct Files {
    store: Store,
    folder: Uri,
    writer: String,
    /// Files that were begun. One whose write failed may be there all the same, so its name is not used again: what stands in two
    /// files counts once.
    begun: u64,
    /// What the next one is to hold.
    lines: Vec<u8>,
    records: u64,
    /// When it is written at the latest.
    due: Instant,
    /// The storage did not take the last one: it gets no other before `due`.
    failed: bool,
    metrics: Arc<Metrics>,
    waiting: Arc<AtomicUsize>,
}

impl Files {
    /// Until nobody can send any more.
    async fn follow(mut self, mut orders: UnboundedReceiver<Order>) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Keep(line)) => {
                        if self.records == 0 {
                            self.due = Instant::now() + INTERVAL;
                        }
                        self.lines.extend(line);
                        self.records += 1;
                        if self.lines.len() >= FILE_BYTES && !self.failed {
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
                () = sleep_until(self.due), if self.records > 0 => self.write().await,
            }
        }
    }

    /// Writes one file of what is there; where the storage does not take it, it stays.
    async fn write(&mut self) {
        if self.records == 0 {
            return;
        }
        let name = format!("{}-{:06}{FILE_SUFFIX}", self.writer, self.begun);
        self.begun += 1;
        let uri = self.folder.join(&day()).join(&name);
        let bytes = Bytes::from(std::mem::take(&mut self.lines));
        match self.store.put_create(&uri, bytes.clone()).await {
            Ok(_) => {
                self.metrics.captured("written", self.records);
                self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                self.records = 0;
                self.failed = false;
            }
            Err(error) => {
                self.metrics.captured("failed", 1);
                let failure = error.failure(Purpose::Output);
                tracing::warn!(
                    reason = failure.reason.as_str(),
                    message = failure.message,
                    "texts cannot be kept; tried again"
                );
                self.lines = bytes.into();
                self.failed = true;
            }
        }
        self.due = Instant::now() + INTERVAL;
    }
}

/// The folder of today, as tools that read partitions know it.
fn day() -> String {
    Timestamp::now().strftime("date=%Y-%m-%d").to_string()
}
