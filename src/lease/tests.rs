//! The algorithm on times that a test names; then [`run`] against an API server in memory, on a clock that nobody waits for.

use std::convert::Infallible;

use futures::channel::mpsc;
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::kubeio::WRITE_TIMEOUT;

fn wall(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn taken(election: &Election, now: Instant) -> Option<LeaseSpec> {
    match election.next(now, wall(0)) {
        Move::Take(spec) => Some(spec),
        Move::Wait(_) => None,
    }
}

#[test]
fn of_two_candidates_the_second_waits_a_whole_lease_of_its_own_clock() {
    let start = Instant::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let (mut a, mut b) = (Election::new("a"), Election::new("b"));
    a.look(None, at(0));
    let spec = taken(&a, at(0)).unwrap();
    assert_eq!(
        (spec.holder_identity.as_deref(), spec.lease_transitions),
        (Some("a"), Some(0))
    );
    a.written(&spec, at(0));
    assert!(a.leads(at(9)) && !a.leads(at(10)), "a leader stops itself after 10 s");

    // b sees it late, and counts from there: the renew time in the Lease is another machine's clock.
    b.look(Some(&spec), at(8));
    assert_eq!(b.next(at(8), wall(0)), Move::Wait(LEASE_DURATION));
    b.look(Some(&spec), at(22));
    assert_eq!(
        b.next(at(22), wall(0)),
        Move::Wait(Duration::from_secs(1)),
        "looking again is no change"
    );
    let spec_b = taken(&b, at(23)).unwrap();
    assert_eq!(spec_b.lease_transitions, Some(1));
    assert!(!a.leads(at(23)), "the old leader had stopped 13 s before");
}

#[test]
fn a_renewal_puts_off_the_candidate() {
    let start = Instant::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let (mut a, mut b) = (Election::new("a"), Election::new("b"));
    let first = taken(&a, at(0)).unwrap();
    a.written(&first, at(0));
    b.look(Some(&first), at(0));
    let Move::Take(second) = a.next(at(2), wall(2)) else {
        panic!("a leader renews")
    };
    assert_eq!(second.lease_transitions, Some(0));
    assert_eq!(second.acquire_time, None, "kept from the first");
    a.written(&second, at(2));
    b.look(Some(&second), at(14));
    assert_eq!(b.next(at(15), wall(0)), Move::Wait(Duration::from_secs(14)));
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let now = Instant::now();
    let mut b = Election::new("b");
    b.look(
        Some(&LeaseSpec {
            holder_identity: None,
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }),
        now,
    );
    assert_eq!(taken(&b, now).unwrap().lease_transitions, Some(5));
}

#[test]
fn a_leader_that_finds_another_holder_has_lost_and_one_that_restarts_takes_its_own_lease_again() {
    let now = Instant::now();
    let mut a = Election::new("a");
    let spec = taken(&a, now).unwrap();
    a.written(&spec, now);
    assert!(a.leads(now));
    let other = LeaseSpec {
        holder_identity: Some("b".to_owned()),
        lease_transitions: Some(1),
        ..LeaseSpec::default()
    };
    a.look(Some(&other), now);
    assert!(!a.leads(now));
    let mut again = Election::new("a");
    again.look(Some(&spec), now);
    assert!(taken(&again, now).is_some());
    assert!(!again.leads(now), "not before the API server has accepted it");
}

#[test]
fn a_handle_expires_by_itself() {
    let handle = LeaseHandle::none();
    assert!(!handle.still_valid());
    assert_eq!(handle.term(), None);
    let now = Instant::now();
    handle.set(Held::Since { renewed: now, term: 3 });
    assert_eq!(handle.term(), Some(3));
    assert!(handle.valid_at(now + Duration::from_secs(9)));
    assert!(!handle.valid_at(now + RENEW_DEADLINE));
    assert!(LeaseHandle::always().still_valid());
}

// --- run, against an API server in memory -----------------------------------------------------------------------------

/// How a replica reaches the API server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Line {
    /// Well.
    Up,
    /// No call is answered.
    Silent,
    /// Every call is answered with an error, at once.
    Refusing,
    /// Reads are answered just in time, writes never.
    Slow,
    /// Writes are done, but their answers are lost.
    Deaf,
}

/// An API server that knows one Lease, and takes no write that comes too late.
#[derive(Default)]
struct Server {
    lease: Option<Value>,
    version: u64,
    writes: Vec<Write>,
    watches: Vec<(Arc<Mutex<Line>>, mpsc::UnboundedSender<Bytes>)>,
}

/// A write that was done.
#[derive(Clone, Debug)]
struct Write {
    at: Instant,
    holder: String,
    /// Whether the writer came to know of it.
    answered: bool,
}

enum Answer {
    Json(u16, Value),
    Watch(mpsc::UnboundedReceiver<Bytes>),
}

fn refusal(code: u16, reason: &str) -> Answer {
    let (code, text) = flywheel_testkit::server::status(code, reason, reason);
    Answer::Json(code, text)
}

impl Server {
    fn answer(&mut self, method: &Method, one: bool, query: &str, body: &Value, line: &Arc<Mutex<Line>>) -> Answer {
        if *method == Method::GET && one {
            return match &self.lease {
                Some(lease) => Answer::Json(200, lease.clone()),
                None => refusal(404, "NotFound"),
            };
        }
        if *method == Method::GET && query.contains("watch=true") {
            let (events, answer) = mpsc::unbounded();
            self.watches.push((Arc::clone(line), events));
            return Answer::Watch(answer);
        }
        if *method == Method::GET {
            let items: Vec<_> = self.lease.iter().collect();
            let list = json!({"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1",
                "metadata": {"resourceVersion": self.version.to_string()}, "items": items});
            return Answer::Json(200, list);
        }
        let present = self.lease.as_ref().map(|l| l["metadata"]["resourceVersion"].clone());
        match *method {
            Method::POST if present.is_some() => return refusal(409, "AlreadyExists"),
            Method::PUT if present.as_ref() != Some(&body["metadata"]["resourceVersion"]) => {
                return refusal(409, "Conflict");
            }
            Method::POST | Method::PUT => {}
            _ => panic!("{method} of a Lease"),
        }
        self.version += 1;
        let mut lease = body.clone();
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        self.writes.push(Write {
            at: Instant::now(),
            holder: lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned(),
            answered: *line.lock().unwrap() == Line::Up,
        });
        let event = json!({"type": if present.is_some() { "MODIFIED" } else { "ADDED" }, "object": lease});
        for (line, events) in &self.watches {
            if *line.lock().unwrap() == Line::Up {
                // A watch that has ended takes no more.
                let _ = events.unbounded_send(Bytes::from(format!("{event}\n")));
            }
        }
        Answer::Json(if present.is_some() { 200 } else { 201 }, lease)
    }
}

#[derive(Clone, Default)]
struct World(Arc<Mutex<Server>>);

impl World {
    fn client(&self, line: Arc<Mutex<Line>>) -> Client {
        let server = Arc::clone(&self.0);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, line) = (Arc::clone(&server), Arc::clone(&line));
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let one = parts.uri.path().ends_with(LEASE_NAME);
                let query = parts.uri.query().unwrap_or_default();
                let is_write = parts.method != Method::GET;
                let state = *line.lock().unwrap();
                match state {
                    Line::Silent => std::future::pending().await,
                    Line::Slow if is_write => std::future::pending().await,
                    Line::Slow => tokio::time::sleep(WRITE_TIMEOUT.mul_f32(0.99)).await,
                    Line::Up | Line::Deaf | Line::Refusing => {}
                }
                let answer = match state {
                    Line::Refusing => refusal(500, "InternalError"),
                    _ => server.lock().unwrap().answer(&parts.method, one, query, &body, &line),
                };
                if state == Line::Deaf && is_write {
                    std::future::pending::<()>().await;
                }
                let (code, frames) = match answer {
                    Answer::Json(code, value) => (
                        code,
                        stream::once(async move { Bytes::from(value.to_string()) }).boxed(),
                    ),
                    Answer::Watch(events) => (200, events.boxed()),
                };
                let body = StreamBody::new(frames.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))));
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "flywheel-system")
    }

    /// A replica that takes part in the election.
    fn replica(&self, name: &str) -> Replica {
        let line = Arc::new(Mutex::new(Line::Up));
        let (client, identity, handle) = (self.client(Arc::clone(&line)), name.to_owned(), LeaseHandle::none());
        let (leading, leads) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let ended = tokio::spawn({
            let handle = handle.clone();
            async move {
                let outcome = run(client, "flywheel-system", identity, handle, leading, stopped).await;
                (outcome, Instant::now())
            }
        });
        Replica {
            line,
            handle,
            leads,
            stop,
            ended,
        }
    }

    fn writes_of(&self, holder: &str) -> Vec<Write> {
        let server = self.0.lock().unwrap();
        server.writes.iter().filter(|w| w.holder == holder).cloned().collect()
    }
}

struct Replica {
    line: Arc<Mutex<Line>>,
    handle: LeaseHandle,
    leads: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    ended: JoinHandle<(Result<(), Error>, Instant)>,
}

impl Replica {
    async fn until_it_leads(&mut self) {
        let leads = self.leads.wait_for(|leads| *leads);
        tokio::time::timeout(Duration::from_secs(300), leads)
            .await
            .unwrap()
            .unwrap();
        assert!(self.handle.still_valid());
    }

    fn set(&self, line: Line) {
        *self.line.lock().unwrap() = line;
    }

    /// How it ended, and when.
    async fn end(self) -> (Result<(), Error>, Instant) {
        tokio::time::timeout(Duration::from_secs(300), self.ended)
            .await
            .unwrap()
            .unwrap()
    }
}

/// Moments within one renewal period, at which something may happen.
fn moments() -> impl Iterator<Item = Duration> {
    (0..20).map(|i| RETRY_PERIOD * i / 20)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_ends_before_its_lease_runs_out() {
    for line in [Line::Silent, Line::Refusing, Line::Slow, Line::Deaf] {
        for moment in moments() {
            let world = World::default();
            let mut leader = world.replica("a");
            leader.until_it_leads().await;
            tokio::time::sleep(RETRY_PERIOD * 5 + moment).await;
            leader.set(line);
            let handle = leader.handle.clone();
            let (outcome, ended) = leader.end().await;
            assert!(
                matches!(outcome, Err(Error::NotLeading)),
                "{line:?} {moment:?}: {outcome:?}"
            );
            assert!(!handle.still_valid(), "{line:?} {moment:?}");
            let writes = world.writes_of("a");
            let renewed = writes.iter().rfind(|w| w.answered).unwrap().at;
            let after = ended - renewed;
            assert!(
                after >= RENEW_DEADLINE && after < RENEW_DEADLINE + Duration::from_millis(10),
                "{line:?} {moment:?}: it ended {after:?} after it had renewed"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_a_lease_outlasts_costs_no_leader() {
    for moment in moments() {
        let world = World::default();
        let mut leader = world.replica("a");
        let standby = world.replica("b");
        leader.until_it_leads().await;
        tokio::time::sleep(RETRY_PERIOD * 5 + moment).await;
        leader.set(Line::Silent);
        tokio::time::sleep(Duration::from_secs(6)).await;
        leader.set(Line::Up);
        tokio::time::sleep(LEASE_DURATION * 2).await;
        assert!(leader.handle.still_valid() && !leader.ended.is_finished(), "{moment:?}");
        assert!(
            world.writes_of("b").is_empty() && !*standby.leads.borrow(),
            "{moment:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_standby_begins_when_the_lease_has_run_out_and_not_before() {
    for line in [Line::Silent, Line::Refusing, Line::Slow, Line::Deaf] {
        for moment in moments() {
            let world = World::default();
            let mut leader = world.replica("a");
            leader.until_it_leads().await;
            let mut standby = world.replica("b");
            tokio::time::sleep(LEASE_DURATION * 4 + moment).await;
            assert!(world.writes_of("b").is_empty(), "while the leader renews");
            leader.set(line);
            let both = async {
                loop {
                    let both = leader.handle.still_valid() && standby.handle.still_valid();
                    assert!(!both, "{line:?} {moment:?}: two lead");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = both => {}
                () = async { standby.leads.wait_for(|leads| *leads).await.unwrap(); } => {}
            }
            let began = world.writes_of("b").first().unwrap().at;
            let renewed = world.writes_of("a").last().unwrap().at;
            let after = began - renewed;
            assert!(
                after >= LEASE_DURATION && after <= LEASE_DURATION + RETRY_PERIOD,
                "{line:?} {moment:?}: it began {after:?} after the last renewal"
            );
            // What the old leader sent while it still could is answered or given up by then.
            let (_, ended) = leader.end().await;
            assert!(
                ended + WRITE_TIMEOUT <= began + Duration::from_millis(10),
                "{line:?} {moment:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_told_to_stop_lets_the_standby_begin_at_once() {
    let world = World::default();
    let mut leader = world.replica("a");
    leader.until_it_leads().await;
    let mut standby = world.replica("b");
    tokio::time::sleep(LEASE_DURATION).await;
    let told = Instant::now();
    leader.stop.send_replace(true);
    let handle = leader.handle.clone();
    let (outcome, _) = leader.end().await;
    assert!(outcome.is_ok() && !handle.still_valid(), "{outcome:?}");
    standby.until_it_leads().await;
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
}
