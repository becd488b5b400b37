//! Texts that are kept for training: predictions, and what clients say of them, as files of the pod in the user's bucket.
//!
//! Nothing waits for it: what does not fit into its bounds is left out and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flywheel_contract::feedback::Record;
use flywheel_contract::scalar::Uri;
use flywheel_store::{Purpose, Store};
use jiff::Timestamp;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::metrics::Metrics;
use crate::redact::Redactor;
use crate::retention::{day_folder, file_name};

/// Bytes after which a file is written at once.
const FILE_BYTES: usize = 1024 * 1024;
/// Most bytes that wait, whatever they wait for.
const KEPT_BYTES: usize = 8 * FILE_BYTES;
/// Longest time for which a record waits for others, and the time until the storage is tried again that did not take a file.
const INTERVAL: Duration = Duration::from_secs(30);
/// Longest text that is looked through where others wait: the worst takes 1.2 ms for each 1,000 bytes, most take a hundredth of that.
const ON_THE_SPOT_BYTES: usize = 2048;
/// How long the last file may take when the pod ends.
const LAST: Duration = Duration::from_secs(2);

enum Order {
    /// A record, and the bytes that it is taken to have.
    Keep(Box<Record>, usize),
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
    /// Begins. `folder`: that of the service; `writer`: a name that no other process has; `redactor`: what texts are rid of.
    pub fn start(store: Arc<Store>, folder: Uri, writer: String, redactor: Redactor, metrics: &Arc<Metrics>) -> Self {
        let (orders, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let files = Files {
            store,
            folder,
            writer,
            redactor: Arc::new(redactor),
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

    /// Keeps a record where there is room for it. Who predicts waits for nothing: the line is made of it later.
    pub fn keep(&self, record: Record) {
        let bytes = size(&record);
        let room = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= KEPT_BYTES;
        if !room || self.orders.send(Order::Keep(Box::new(record), bytes)).is_err() {
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
    store: Arc<Store>,
    folder: Uri,
    writer: String,
    redactor: Arc<Redactor>,
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
                    Some(Order::Keep(record, bytes)) => {
                        if self.records == 0 {
                            self.due = Instant::now() + INTERVAL;
                        }
                        self.add(*record, bytes).await;
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

    /// Makes a line of a record, rid of what is not to be kept.
    async fn add(&mut self, mut record: Record, bytes: usize) {
        if let Record::Prediction { text, .. } = &mut record {
            let Some(redacted) = self.redacted(std::mem::take(text)).await else {
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                self.metrics.captured("dropped", 1);
                return;
            };
            *text = redacted;
        }
        let before = self.lines.len();
        if serde_json::to_writer(&mut self.lines, &record).is_ok() {
            self.lines.push(b'\n');
            self.records += 1;
        } else {
            self.lines.truncate(before);
        }
        // What it takes from now on.
        self.waiting.fetch_add(self.lines.len() - before, Ordering::Relaxed);
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The text without what is not to be kept; a long one is no work for a thread that others wait for.
    async fn redacted(&self, text: String) -> Option<String> {
        if text.len() <= ON_THE_SPOT_BYTES {
            return Some(self.redactor.redact(&text).into_owned());
        }
        let redactor = Arc::clone(&self.redactor);
        let redacting = tokio::task::spawn_blocking(move || redactor.redact(&text).into_owned());
        redacting.await.ok()
    }

    /// Writes one file of what is there; where the storage does not take it, it stays.
    async fn write(&mut self) {
        if self.records == 0 {
            return;
        }
        let name = file_name(&self.writer, self.begun);
        self.begun += 1;
        let uri = self.folder.join(&day_folder(Timestamp::now())).join(&name);
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

/// About as many bytes as a record's line has.
fn size(record: &Record) -> usize {
    // Names of the fields, and numbers.
    let most = 160;
    most + match record {
        Record::Prediction {
            request_id,
            model_version,
            text,
            label,
            ..
        } => request_id.len() + model_version.len() + text.len() + label.len(),
        Record::Judgement { request_id, label, .. } => request_id.len() + label.len(),
    }
}
