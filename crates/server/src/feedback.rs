//! What clients say of predictions. Each prediction has a receipt, and the process that made it counts what is said of it, once.
//!
//! Whoever is told of a receipt of another pod passes it on to that pod's inside port, which the receipt names: only pods with the
//! key can have written that. What became of a prediction whose process is gone nobody counts.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::feedback::Record;
use flywheel_contract::names::INSIDE_PORT;
use flywheel_contract::profile::most_probable;
use flywheel_contract::scalar::Digest;
use flywheel_contract::serving::{Capture as CaptureSettings, ServingConfig};
use flywheel_store::{Limits, Purpose, Store};
use flywheel_wire::feedback::{FEEDBACK_PATH, FeedbackRequest, FeedbackResponse, Judgement, Outcome};
use flywheel_wire::predict::MAX_BODY_BYTES;
use flywheel_wire::receipt::{Key, MAX_KEY_BYTES, Receipt};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::App;
use crate::capture::Capture;
use crate::metrics::Metrics;
use crate::profile::unix_seconds;
use crate::redact::Redactor;
use crate::retention::{Retention, writer};
use crate::versions::Version;

/// Predictions of this process that can be judged: the last so many.
const KEPT: u64 = 1 << 20;
/// Of those the ones that are about to be forgotten are not judged any more, so that no bit is set after it was cleared.
const MARGIN: u64 = 1 << 16;
/// Age from which a prediction is not judged any more.
const OLDEST_SECONDS: u64 = 7 * 24 * 3600;
/// Judgements that came too late of which is remembered that they are kept.
const LATE_KEPT: usize = 1 << 16;
/// How far a pod's clock may be ahead of another one's.
const AHEAD_SECONDS: u64 = 300;
/// How long another pod is waited for.
const PASSING_ON: Duration = Duration::from_secs(1);
/// Requests to other pods at once; more wait, as long as one may take.
const PASSED_ON_AT_ONCE: usize = 8;
/// How long a pod that could not be reached is taken for gone, and how many such are remembered.
const GONE: Duration = Duration::from_secs(30);
const GONE_KEPT: usize = 256;
/// An address that is reached by the default route, for which nothing is sent (RFC 5737).
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// What receipts are made with, and where texts go.
pub struct Receipts {
    key: Key,
    address: IpAddr,
    keeps: Option<(Arc<Store>, CaptureSettings, Redactor)>,
}

impl Receipts {
    /// As the configuration says, for the pod with this address; `None` where it says nothing of feedback.
    ///
    /// # Errors
    /// `ConfigInvalid`: a key that cannot be read or used. Storage that cannot be used.
    pub async fn open(config: &ServingConfig, address: IpAddr, limits: Limits) -> Result<Option<Self>, Failure> {
        let Some(settings) = &config.feedback else {
            return Ok(None);
        };
        let invalid = |message: String| Failure::new(FailureReason::ConfigInvalid, message);
        let unreadable = |e| invalid(format!("the key of receipts, {}, cannot be read: {e}", settings.key));
        let length = tokio::fs::metadata(&settings.key).await.map_err(unreadable)?.len();
        if length > MAX_KEY_BYTES as u64 + 2 {
            return Err(invalid(format!(
                "the key of receipts has more than {MAX_KEY_BYTES} bytes"
            )));
        }
        let key = tokio::fs::read(&settings.key).await.map_err(unreadable)?;
        // A line's end belongs to the editor that wrote it.
        let service = format!("{}/{}", config.service.namespace, config.service.name);
        let key = Key::new(key.trim_ascii_end(), &service).map_err(invalid)?;
        let keeps = match &settings.capture {
            None => None,
            Some(capture) => {
                let store = Store::with_limits(&config.storage, limits)
                    .and_then(|store| store.check_writable(&capture.uri).map(|()| store))
                    .map_err(|e| e.failure(Purpose::Output))?;
                let redactor = Redactor::new(&capture.redact)
                    .map_err(|e| Failure::new(FailureReason::InternalError, format!("feedback.redact: {e}")))?;
                Some((Arc::new(store), capture.clone(), redactor))
            }
        };
        Ok(Some(Self { key, address, keeps }))
    }
}

/// The address by which other pods reach this one, where it listens on `inside`.
#[must_use]
pub fn own_address(inside: Option<SocketAddr>) -> IpAddr {
    match inside.map(|address| address.ip()) {
        Some(ip) if !ip.is_unspecified() => ip,
        _ => {
            let routed = || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(ELSEWHERE)?;
                Ok::<_, std::io::Error>(socket.local_addr()?.ip())
            };
            routed().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
        }
    }
}

/// Which predictions of this process were judged: a bit for each of the last [`KEPT`].
struct Seen {
    next: AtomicU64,
    bits: Box<[AtomicU64]>,
}

impl Seen {
    fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            bits: (0..KEPT / 64).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn bit(&self, sequence: u64) -> Option<(&AtomicU64, u64)> {
        let place = usize::try_from(sequence % KEPT / 64).ok()?;
        Some((self.bits.get(place)?, 1 << (sequence % 64)))
    }

    /// The number of a new prediction.
    fn issue(&self) -> u64 {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some((bits, bit)) = self.bit(sequence) {
            bits.fetch_and(!bit, Ordering::Relaxed);
        }
        sequence
    }

    /// Judges a prediction, once.
    fn judge(&self, sequence: u64) -> Outcome {
        let made = self.next.load(Ordering::Relaxed);
        if made.saturating_sub(sequence) > KEPT - MARGIN {
            return Outcome::Expired;
        }
        match self.bit(sequence) {
            Some((bits, bit)) if bits.fetch_or(bit, Ordering::Relaxed) & bit == 0 => Outcome::Counted,
            _ => Outcome::Duplicate,
        }
    }
}

/// Judgements that came too late and are kept: who says one again and again must not fill the buffer of what is kept.
#[derive(Default)]
struct Late {
    hasher: RandomState,
    /// The last ones, and their order.
    hashes: Mutex<(HashSet<u64>, VecDeque<u64>)>,
}

impl Late {
    /// Whether it is none of the last ones; from now on it is.
    fn is_new(&self, request_id: &str) -> bool {
        let hash = self.hasher.hash_one(request_id);
        let (known, order) = &mut *self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = known.insert(hash);
        if is_new {
            order.push_back(hash);
            if order.len() > LATE_KEPT
                && let Some(oldest) = order.pop_front()
            {
                known.remove(&oldest);
            }
        }
        is_new
    }
}

/// Feedback of a pod.
pub(crate) struct Feedback {
    key: Key,
    process: u64,
    address: IpAddr,
    seen: Seen,
    late: Late,
    capture: Option<(Capture, f64)>,
    sampling: RandomState,
    metrics: Arc<Metrics>,
    client: Client<HttpConnector, Full<Bytes>>,
    passing_on: Arc<Semaphore>,
    /// Pods that could not be reached, since when.
    gone: Arc<Gone>,
}

impl Feedback {
    /// Begins. `pod`: a name for files.
    pub fn start(receipts: Receipts, pod: &str, metrics: &Arc<Metrics>) -> Self {
        let sampling = RandomState::new();
        // The standard library's only source of randomness; it must differ between processes, not be secret.
        let process = RandomState::new().hash_one(std::process::id());
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(PASSING_ON / 2));
        Self {
            key: receipts.key,
            process,
            address: receipts.address,
            seen: Seen::new(),
            late: Late::default(),
            capture: receipts.keeps.map(|(store, capture, redactor)| {
                let writer = writer(pod, process);
                if let Some(days) = capture.retention_days {
                    Retention::start(Arc::clone(&store), capture.uri.clone(), days, process, metrics);
                }
                let rate = capture.sample_rate;
                (Capture::start(store, capture.uri, writer, redactor, metrics), rate)
            }),
            sampling,
            metrics: Arc::clone(metrics),
            // A connection of its own for each: pods come and go.
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
            passing_on: Arc::new(Semaphore::new(PASSED_ON_AT_ONCE)),
            gone: Arc::default(),
        }
    }

    /// The receipt of a prediction, whose text is kept where it is to be.
    pub fn receipt(&self, version: &Version, probabilities: &[f32], text: &str) -> String {
        let (class, probability) = most_probable(probabilities).unwrap_or_default();
        let (sequence, issued) = (self.seen.issue(), unix_seconds());
        let receipt = Receipt {
            process: self.process,
            sequence,
            issued,
            class: u32::try_from(class).unwrap_or(u32::MAX),
            version: first_bytes(&version.served.artifact.digest),
            address: self.address,
        };
        let id = receipt.sign(&self.key);
        if let Some((capture, rate)) = &self.capture
            && self.is_sampled(sequence, *rate)
        {
            capture.keep(Record::Prediction {
                time: issued,
                request_id: id.clone(),
                model_version: version.name().to_owned(),
                text: text.to_owned(),
                label: version.engine.labels().get(class).cloned().unwrap_or_default(),
                probability,
            });
        }
        id
    }

    fn is_sampled(&self, sequence: u64, rate: f64) -> bool {
        #[allow(clippy::cast_precision_loss, reason = "a share of all numbers, to a dozen digits")]
        let place = self.sampling.hash_one(sequence) as f64 / u64::MAX as f64;
        rate >= 1.0 || place < rate
    }

    /// What becomes of judgements, in their order. `pass_on`: those of other pods' predictions go there.
    pub async fn judge(&self, judgements: &[Judgement], app: &App, pass_on: bool) -> Vec<Outcome> {
        let now = unix_seconds();
        let mut outcomes = vec![Outcome::Invalid; judgements.len()];
        let mut elsewhere: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
        for (at, (judgement, outcome)) in judgements.iter().zip(&mut outcomes).enumerate() {
            let Some(receipt) = Receipt::verify(&judgement.request_id, &self.key) else {
                continue;
            };
            *outcome = Outcome::Expired;
            if now.saturating_sub(receipt.issued) > OLDEST_SECONDS || receipt.issued > now + AHEAD_SECONDS {
                continue;
            }
            if receipt.process == self.process {
                *outcome = self.count(&receipt, &judgement.label, app);
            } else if pass_on {
                elsewhere.entry(receipt.address).or_default().push(at);
            }
        }
        for (places, told) in self.pass_on(judgements, elsewhere).await {
            for (at, told) in places.into_iter().zip(told) {
                if let Some(outcome) = outcomes.get_mut(at) {
                    *outcome = told;
                }
            }
        }
        if pass_on {
            for (judgement, outcome) in judgements.iter().zip(&outcomes) {
                // What is counted is counted once; what is too late may be said again and again.
                let keep = match outcome {
                    Outcome::Counted => true,
                    Outcome::Expired => self.late.is_new(&judgement.request_id),
                    Outcome::Duplicate | Outcome::Invalid => false,
                };
                if keep && let Some((capture, _)) = &self.capture {
                    capture.keep(Record::Judgement {
                        time: now,
                        request_id: judgement.request_id.clone(),
                        label: judgement.label.trim().to_owned(),
                    });
                }
                self.metrics.feedback(match outcome {
                    Outcome::Counted => "counted",
                    Outcome::Duplicate => "duplicate",
                    Outcome::Expired => "expired",
                    Outcome::Invalid => "invalid",
                });
            }
        }
        outcomes
    }

    /// Counts a judgement of a prediction of this process.
    fn count(&self, receipt: &Receipt, label: &str, app: &App) -> Outcome {
        let all = app.versions.all();
        let mine = |version: &&Arc<Version>| first_bytes(&version.served.artifact.digest) == receipt.version;
        let Some(version) = all.iter().find(mine) else {
            return Outcome::Expired;
        };
        let outcome = self.seen.judge(receipt.sequence);
        if outcome == Outcome::Counted {
            let mut labels = (0..).zip(version.engine.labels());
            let right = labels.find(|(_, known)| *known == label.trim()).map(|(class, _)| class);
            let correct = right == Some(receipt.class);
            if app.versions.judged_since().is_none_or(|since| receipt.issued >= since) {
                version.engine.figures().judged(correct);
            }
            let digest = &version.served.artifact.digest;
            app.profiles.judged(unix_seconds(), digest, receipt.class, right);
        }
        outcome
    }

    /// Tells other pods, each its own; what each said.
    async fn pass_on(
        &self,
        judgements: &[Judgement],
        elsewhere: BTreeMap<IpAddr, Vec<usize>>,
    ) -> Vec<(Vec<usize>, Vec<Outcome>)> {
        let mut told = JoinSet::new();
        for (address, places) in elsewhere {
            let theirs = places.iter().filter_map(|at| judgements.get(*at)).cloned();
            let request = FeedbackRequest::List {
                feedback: theirs.collect(),
            };
            let (client, at_once) = (self.client.clone(), Arc::clone(&self.passing_on));
            let gone = Arc::clone(&self.gone);
            told.spawn(async move {
                let told = async {
                    // Closed by nobody.
                    let _place = at_once.acquire_owned().await.ok()?;
                    if is_gone(&gone, address) {
                        return None;
                    }
                    let told = tell(&client, address, &request).await;
                    if told.is_none() {
                        note_gone(&gone, address);
                    }
                    told
                };
                Some((places, timeout(PASSING_ON, told).await.ok()??))
            });
        }
        told.join_all().await.into_iter().flatten().collect()
    }

    /// Writes the last texts.
    pub async fn flush(&self) {
        if let Some((capture, _)) = &self.capture {
            capture.flush().await;
        }
    }
}

type Gone = Mutex<HashMap<IpAddr, Instant>>;

/// Whether a pod could not be reached lately.
fn is_gone(gone: &Gone, address: IpAddr) -> bool {
    let gone = gone.lock().unwrap_or_else(PoisonError::into_inner);
    gone.get(&address).is_some_and(|since| since.elapsed() < GONE)
}

fn note_gone(gone: &Gone, address: IpAddr) {
    let mut gone = gone.lock().unwrap_or_else(PoisonError::into_inner);
    gone.retain(|_, since| since.elapsed() < GONE);
    if gone.len() < GONE_KEPT {
        gone.insert(address, Instant::now());
    }
}

/// What another pod says of judgements of its predictions; `None` where it does not.
async fn tell(
    client: &Client<HttpConnector, Full<Bytes>>,
    address: IpAddr,
    request: &FeedbackRequest,
) -> Option<Vec<Outcome>> {
    let body = serde_json::to_vec(request).ok()?;
    let request = hyper::Request::post(format!(
        "http://{}{FEEDBACK_PATH}",
        SocketAddr::new(address, INSIDE_PORT)
    ))
    .header(hyper::header::CONTENT_TYPE, "application/json")
    .body(Full::new(Bytes::from(body)))
    .ok()?;
    let response = client.request(request).await.ok()?;
    if response.status() != hyper::StatusCode::OK {
        return None;
    }
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
        .ok()?;
    let told: FeedbackResponse = serde_json::from_slice(&body.to_bytes()).ok()?;
    Some(told.results.into_iter().map(|judged| judged.outcome).collect())
}

/// First bytes of a digest; two versions that a pod holds at once do not share them but by chance of one in 2^64.
fn first_bytes(digest: &Digest) -> [u8; 8] {
    let digits = digest.hex().get(..16).unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or_default().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_judged_once_and_for_as_long_as_it_is_known() {
        let seen = Seen::new();
        for sequence in 0..200 {
            assert_eq!(seen.issue(), sequence);
        }
        assert_eq!(seen.judge(0), Outcome::Counted);
        assert_eq!(seen.judge(0), Outcome::Duplicate);
        assert_eq!(seen.judge(64), Outcome::Counted);
        assert_eq!(seen.judge(199), Outcome::Counted);
        // As many again: the same bits belong to others.
        seen.next.store(KEPT, Ordering::Relaxed);
        assert_eq!(seen.judge(1), Outcome::Expired);
        assert_eq!(seen.issue(), KEPT);
        assert_eq!(seen.judge(KEPT), Outcome::Counted);
        assert_eq!(seen.judge(KEPT), Outcome::Duplicate);
    }

    #[test]
    fn a_pod_knows_its_address() {
        let inside = "127.0.0.9:9090".parse().unwrap();
        assert_eq!(own_address(Some(inside)).to_string(), "127.0.0.9");
        assert!(!own_address(Some("[::]:9090".parse().unwrap())).is_unspecified());
        assert!(!own_address(None).is_unspecified());
    }

    #[test]
    fn versions_are_told_by_the_beginning_of_their_digests() {
        let digest = |digit: &str| Digest::sha256(&digit.repeat(64));
        assert_eq!(first_bytes(&digest("a")), [0xaa; 8]);
        assert_ne!(first_bytes(&digest("a")), first_bytes(&digest("b")));
    }
}
