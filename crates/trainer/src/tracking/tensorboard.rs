//! TensorBoard's event files: TFRecords of `Event` messages, in the bucket of the training.
//!
//! Object stores cannot append, so the file of a start is kept in memory and put whole: after an evaluation, at the end, and
//! once a minute in between. What is put is always what was put before and more at its end, so a reader that has come so
//! far just goes on. Each start has a file of its own in the job's folder, and files sort by start; each begins with the
//! mark by which TensorBoard forgets what an earlier attempt told of the steps that are done again. So a job is one curve.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use flywheel_contract::scalar::Uri;
use flywheel_contract::storage::StorageSettings;
use flywheel_store::{Limits, Purpose, Store};
use prost::Message;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{End, Point, Sink, SinkCounters, ended};

/// Time between two puts of a file that grows.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same, where an evaluation is new.
const INTERVAL_EVALUATED: Duration = Duration::from_secs(5);
/// Longest wait for a put, and for one that is tried again at the end.
const PUT_LIMIT: Duration = Duration::from_secs(20);
const PAUSE_AT_END: Duration = Duration::from_millis(500);
/// Most bytes of a file. The steps of a training have a megabyte; a thousand evaluations a fifth of one.
const FILE_MAX: usize = 8 * 1024 * 1024;

/// `Event` of TensorFlow's `event.proto`, as far as it is used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `SessionLog`; status 1 is `START`.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

/// `TensorProto` of strings: type 7.
#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// CRC-32C as TFRecords hold it: rotated and shifted by a constant, so that a checksum of checksums is none.
fn masked_checksum(bytes: &[u8]) -> [u8; 4] {
    #[allow(clippy::cast_possible_truncation, reason = "a CRC-32 has 32 bits")]
    let sum = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// One TFRecord: length, its checksum, content, its checksum.
fn record(event: &Event) -> Vec<u8> {
    let content = event.encode_to_vec();
    let length = (content.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(content.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked_checksum(&length));
    bytes.extend_from_slice(&content);
    bytes.extend_from_slice(&masked_checksum(&content));
    bytes
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

fn number(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

/// The file of an attempt, as it grows.
pub(super) struct Board {
    pub(super) sink: Sink,
    file: Uri,
    content: Mutex<Content>,
    /// An evaluation is new.
    news: Notify,
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    /// How many of them are in the bucket.
    put: usize,
    /// Points among those that are not.
    waiting: u64,
}

impl Board {
    /// A file with its head: format and hyperparameters. `sequence` is higher at each start of the job: without Kubernetes
    /// all of them are attempt 1.
    pub(super) fn new(folder: &Uri, sequence: u64, parameters: &[(String, String)], counters: SinkCounters) -> Self {
        let wall_time = seconds(super::now());
        let version = Event {
            wall_time,
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::default()
        };
        let mut bytes = record(&version);
        bytes.extend(record(&Event {
            wall_time,
            summary: Some(Summary {
                value: vec![text("hyperparameters/text_summary", &table(parameters))],
            }),
            ..Event::default()
        }));
        Self {
            sink: Sink::new("TensorBoard", folder.as_str(), counters),
            // Readers take files in the order of their names, and usually a time stands where the sequence does here.
            file: folder.join(&format!("events.out.tfevents.{sequence:020}.flywheel")),
            content: Mutex::new(Content {
                bytes,
                ..Content::default()
            }),
            news: Notify::new(),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Training goes on after this step: what an earlier attempt told of later ones does not count.
    pub(super) fn begin(&self, step: u64, time: u64) {
        let start = Event {
            wall_time: seconds(time),
            step: number(step + 1),
            session_log: Some(SessionLog { status: 1 }),
            ..Event::default()
        };
        self.content().bytes.extend(record(&start));
    }

    /// Adds a point; where the file has grown too large it is dropped.
    pub(super) fn add(&self, point: &Point) {
        #[allow(clippy::cast_possible_truncation, reason = "TensorBoard keeps 32 bits")]
        let value = |(tag, value): &(std::borrow::Cow<'static, str>, f64)| SummaryValue {
            tag: tag.to_string(),
            simple_value: Some(*value as f32),
            ..SummaryValue::default()
        };
        let bytes = record(&Event {
            wall_time: seconds(point.time),
            step: number(point.step),
            summary: Some(Summary {
                value: point.values.iter().map(value).collect(),
            }),
            ..Event::default()
        });
        let mut content = self.content();
        if content.bytes.len() + bytes.len() > FILE_MAX {
            drop(content);
            self.sink.dropped(point.values.len() as u64);
            return;
        }
        content.bytes.extend(bytes);
        content.waiting += point.values.len() as u64;
    }

    /// The file is to be put soon.
    pub(super) fn hurry(&self) {
        self.news.notify_one();
    }

    /// What could not be put by now never will be.
    pub(super) fn give_up(&self, after: Duration) {
        let lost = std::mem::take(&mut self.content().waiting);
        if lost > 0 {
            self.sink.dropped(lost);
            if self.sink.progress().problem.is_none() {
                self.sink.failed(
                    "late",
                    format!("the last event file could not be written within {} s", after.as_secs()),
                );
            }
        }
    }

    /// Puts the file now and then, until the end.
    pub(super) async fn run(
        self: Arc<Self>,
        storage: StorageSettings,
        limits: Limits,
        mut end: watch::Receiver<Option<End>>,
    ) {
        // A store of its own: the traffic of the training's one is a sign of its work, and this is none.
        let limits = Limits {
            operation: limits.operation.min(PUT_LIMIT),
            ..limits
        };
        let store = match Store::with_limits(&storage, limits) {
            Ok(store) => store,
            Err(error) => return self.sink.failed("settings", error.to_string()),
        };
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(last + INTERVAL) => (),
                () = self.news.notified() => {
                    tokio::select! {
                        () = tokio::time::sleep_until(last + INTERVAL_EVALUATED) => (),
                        _ = ended(&mut end) => break,
                    }
                }
                _ = ended(&mut end) => break,
            }
            last = Instant::now();
            self.put(&store).await;
        }
        // Whoever waits for the end ends this where it takes too long.
        while !self.put(&store).await {
            tokio::time::sleep(PAUSE_AT_END).await;
        }
    }

    /// Puts the file; whether nothing is left to put.
    async fn put(&self, store: &Store) -> bool {
        let (bytes, waiting) = {
            let content = self.content();
            if content.put == content.bytes.len() {
                return true;
            }
            (Bytes::copy_from_slice(&content.bytes), content.waiting)
        };
        let length = bytes.len();
        match store.put_replace(&self.file, bytes).await {
            Ok(()) => {
                let mut content = self.content();
                content.put = length;
                content.waiting -= waiting.min(content.waiting);
                drop(content);
                self.sink.well();
                true
            }
            Err(error) => {
                self.sink
                    .failed(error.reason(Purpose::Output).as_str(), error.to_string());
                false
            }
        }
    }
}

/// A text as TensorBoard's text plugin takes it.
fn text(tag: &str, markdown: &str) -> SummaryValue {
    SummaryValue {
        tag: tag.to_owned(),
        metadata: Some(Metadata {
            plugin_data: Some(PluginData {
                plugin_name: "text".to_owned(),
            }),
        }),
        tensor: Some(Tensor {
            dtype: 7,
            shape: Some(Shape {
                dim: vec![Dimension { size: 1 }],
            }),
            string_val: vec![markdown.as_bytes().to_vec()],
        }),
        ..SummaryValue::default()
    }
}

/// A table in Markdown.
fn table(rows: &[(String, String)]) -> String {
    let mut text = "| name | value |\n|---|---|\n".to_owned();
    for (name, value) in rows {
        text.push_str(&format!("| {name} | {} |\n", value.replace('|', "\\|")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_format() {
        // CRC-32C of "123456789" is 0xE3069283 (RFC 3720's polynomial); masked as TFRecords do.
        let expected = 0xE306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_checksum(b"123456789"), expected.to_le_bytes());
    }

    #[test]
    fn a_record_holds_its_event() {
        let event = Event {
            wall_time: 1.5,
            step: 7,
            ..Event::default()
        };
        let bytes = record(&event);
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), length + 16);
        assert_eq!(bytes[8..12], masked_checksum(&bytes[..8]));
        assert_eq!(Event::decode(&bytes[12..12 + length]).unwrap(), event);
        assert_eq!(bytes[12 + length..], masked_checksum(&bytes[12..12 + length]));
    }
}
