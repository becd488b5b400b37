//! Holds back calls of the API server where it is overloaded, as [`flywheel_policy::flow`] says: first come, first served.
//!
//! What leadership and the caches need, and what takes long by nature, never waits: leases, lists and watches.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use flywheel_policy::flow::{Answer, Limit, SLOW};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::sync::oneshot;
use tower::{Layer, Service, ServiceExt as _};

use crate::client::RETRY_LONGEST;
use crate::telemetry::Metrics;

/// The calls that are under way, and how many may be.
#[derive(Debug)]
pub struct Pace {
    state: Mutex<State>,
    begun: Instant,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    limit: Limit,
    under_way: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

impl Pace {
    /// With no limit to speak of, until the server shows one.
    #[must_use]
    pub fn new(metrics: Metrics) -> Arc<Self> {
        let state = State::default();
        metrics.api_limit(state.limit.calls());
        Arc::new(Self {
            state: Mutex::new(state),
            begun: Instant::now(),
            metrics,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more call may be under way.
    async fn turn(self: Arc<Self>) -> Turn {
        loop {
            let handed = {
                let mut state = self.state();
                if state.waiting.is_empty() && state.under_way < state.limit.calls() {
                    state.under_way += 1;
                    None
                } else {
                    let (hand, handed) = oneshot::channel();
                    state.waiting.push_back(hand);
                    Some(handed)
                }
            };
            match handed {
                None => return Turn::new(self),
                Some(handed) => {
                    if let Ok(turn) = handed.await {
                        return turn;
                    }
                }
            }
        }
    }

    fn ended(self: &Arc<Self>, answer: Option<Answer>) {
        {
            let mut state = self.state();
            let under_way = state.under_way;
            if let Some(answer) = answer {
                state.limit.note(answer, under_way, self.begun.elapsed());
                self.metrics.api_limit(state.limit.calls());
            }
            state.under_way = under_way.saturating_sub(1);
        }
        self.hand_on();
    }

    /// Gives what is free to those who wait.
    fn hand_on(self: &Arc<Self>) {
        loop {
            let hand = {
                let mut state = self.state();
                // One that gave up while it waited takes no place.
                while state.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                    state.waiting.pop_front();
                }
                if state.under_way >= state.limit.calls() {
                    return;
                }
                let Some(hand) = state.waiting.pop_front() else {
                    return;
                };
                state.under_way += 1;
                hand
            };
            // Of one that gives up at this very moment the turn ends, and goes on to the next.
            drop(hand.send(Turn::new(Arc::clone(self))));
        }
    }
}

/// A call that is under way.
#[derive(Debug)]
struct Turn {
    pace: Arc<Pace>,
    since: Instant,
    answer: Option<Answer>,
}

impl Turn {
    /// One that is counted already.
    fn new(pace: Arc<Pace>) -> Self {
        Self {
            pace,
            since: Instant::now(),
            answer: None,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Who waited for the answer gave up. Sooner than that the process ends.
        let took = self.since.elapsed();
        let answer = self.answer.or_else(|| (took >= SLOW).then_some(Answer::Missing));
        self.pace.ended(answer);
    }
}

/// Puts [`Paced`] around a client's service.
#[derive(Clone, Debug)]
pub struct PaceLayer(pub Arc<Pace>);

impl<S> Layer<S> for PaceLayer {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced {
            inner,
            pace: Arc::clone(&self.0),
        }
    }
}

/// A service whose calls wait for their turn.
#[derive(Clone, Debug)]
pub struct Paced<S> {
    inner: S,
    pace: Arc<Pace>,
}

impl<S, A, B> Service<Request<A>> for Paced<S>
where
    S: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    A: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    /// What waits for its turn must not hold a place of the transport, which others need.
    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let mut inner = self.inner.clone();
        let paced = is_paced(&request).then(|| Arc::clone(&self.pace));
        let metrics = self.pace.metrics.clone();
        async move {
            let mut turn = match paced {
                Some(pace) => Some(pace.turn().await),
                None => None,
            };
            let begun = Instant::now();
            let mut answer = match inner.ready().await {
                Ok(service) => service.call(request).await,
                Err(error) => Err(error),
            };
            let refused = answer.as_ref().is_ok_and(|answer| is_refusal(answer.status()));
            if let Some(turn) = &mut turn {
                turn.answer = Some(match &answer {
                    _ if refused => Answer::Refused,
                    Ok(_) => Answer::Given(begun.elapsed()),
                    Err(_) => Answer::Missing,
                });
            }
            if let Ok(answer) = &mut answer
                && refused
            {
                metrics.api_refusal();
                shorten(answer);
            }
            answer
        }
        .boxed()
    }
}

/// Whether the call waits for its turn. Only lists, watches and lists of events have a query among those that read.
fn is_paced<A>(request: &Request<A>) -> bool {
    let uri = request.uri();
    let reads_many = request.method() == Method::GET && uri.query().is_some_and(|query| !query.is_empty());
    !reads_many && !uri.path().starts_with("/apis/coordination.k8s.io/")
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The server may ask for a wait no longer than our own longest between two tries: one that names an hour would keep a watch
/// from its list for that long, and a lease from its renewal.
fn shorten<B>(answer: &mut Response<B>) {
    let longest = RETRY_LONGEST.as_secs();
    let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    if asked
        .and_then(|text| text.parse::<u64>().ok())
        .is_some_and(|seconds| seconds > longest)
    {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(longest));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;
    use tower::ServiceExt as _;

    use super::*;

    /// A server whose answers the test lets out one by one.
    #[derive(Clone)]
    struct Server {
        answers: Arc<Semaphore>,
        asked: Arc<AtomicUsize>,
        last: Arc<Mutex<String>>,
        status: Arc<AtomicU16>,
    }

    impl Server {
        fn new() -> Self {
            Self {
                answers: Arc::new(Semaphore::new(0)),
                asked: Arc::default(),
                last: Arc::default(),
                status: Arc::new(AtomicU16::new(200)),
            }
        }

        fn transport(
            &self,
        ) -> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send + 'static
        {
            let server = self.clone();
            tower::service_fn(move |request: Request<()>| {
                let server = server.clone();
                request.uri().path().clone_into(&mut server.last.lock().unwrap());
                server.asked.fetch_add(1, Ordering::SeqCst);
                async move {
                    server.answers.acquire().await.unwrap().forget();
                    let status = server.status.load(Ordering::SeqCst);
                    let answer = Response::builder().status(status).header(RETRY_AFTER, "3600");
                    Ok(answer.body(()).unwrap())
                }
            })
        }

        fn paced(
            &self,
            pace: &Arc<Pace>,
        ) -> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send + 'static
        {
            PaceLayer(Arc::clone(pace)).layer(self.transport())
        }

        async fn until_asked(&self, count: usize) {
            let asked = async {
                while self.asked.load(Ordering::SeqCst) < count {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), asked)
                .await
                .expect("never asked as often");
        }
    }

    fn request(method: &str, uri: &str) -> Request<()> {
        Request::builder().method(method).uri(uri).body(()).unwrap()
    }

    fn write() -> Request<()> {
        request("PATCH", "/apis/batch/v1/namespaces/team/jobs/a")
    }

    /// As many calls under way as may be.
    async fn all_turns<S>(server: &Server, pace: &Pace, service: &S) -> JoinSet<Result<Response<()>, Infallible>>
    where
        S: Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    {
        let mut calls = JoinSet::new();
        for _ in 0..pace.state().limit.calls() {
            calls.spawn(service.clone().oneshot(write()));
        }
        server.until_asked(calls.len()).await;
        calls
    }

    #[tokio::test]
    async fn an_overloaded_server_is_asked_less_and_leases_and_watches_go_on() {
        let (server, pace) = (Server::new(), Pace::new(Metrics::default()));
        let service = server.paced(&pace);
        server.status.store(429, Ordering::SeqCst);
        server.answers.add_permits(1);
        let answer = service.clone().oneshot(write()).await.unwrap();
        assert_eq!(answer.headers()[RETRY_AFTER], "2", "an hour would be too long");
        let limit = pace.state().limit.calls();
        assert!(limit < flywheel_policy::flow::MOST);

        let mut calls = JoinSet::new();
        for _ in 0..100 {
            calls.spawn(service.clone().oneshot(write()));
        }
        server.until_asked(1 + limit).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), 1 + limit, "the others wait");
        for (count, uri) in [
            "/apis/coordination.k8s.io/v1/namespaces/n/leases/l",
            "/api/v1/pods?watch=true",
        ]
        .iter()
        .enumerate()
        {
            calls.spawn(service.clone().oneshot(request("GET", uri)));
            server.until_asked(2 + limit + count).await;
        }
        // Those that nobody waits for any more leave their turn to others, and all are answered.
        server.status.store(200, Ordering::SeqCst);
        server.answers.add_permits(1000);
        let all = async { while calls.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .expect("some wait for ever");
        assert_eq!(server.asked.load(Ordering::SeqCst), 103);
        assert_eq!(pace.state().under_way, 0);
    }

    #[tokio::test]
    async fn whoever_waits_goes_before_whoever_comes() {
        let (server, pace) = (Server::new(), Pace::new(Metrics::default()));
        let service = server.paced(&pace);
        let mut calls = all_turns(&server, &pace, &service).await;
        let first = tokio::spawn(service.clone().oneshot(request("PATCH", "/first")));
        while pace.state().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        let asked = server.asked.load(Ordering::SeqCst);
        server.answers.add_permits(1);
        calls.join_next().await;
        // There is a place, and it is given away.
        let second = tokio::spawn(service.clone().oneshot(request("PATCH", "/second")));
        server.until_asked(asked + 1).await;
        assert_eq!(*server.last.lock().unwrap(), "/first");
        server.answers.add_permits(1000);
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    }

    /// The transport takes few calls at once; those that wait for their turn take no place there.
    #[tokio::test]
    async fn what_waits_keeps_no_place_that_a_lease_needs() {
        let (server, pace) = (Server::new(), Pace::new(Metrics::default()));
        let service = PaceLayer(Arc::clone(&pace)).layer(tower::buffer::Buffer::new(server.transport(), 2));
        let mut calls = JoinSet::new();
        let limit = pace.state().limit.calls();
        for _ in 0..limit + 10 {
            calls.spawn(service.clone().oneshot(write()));
        }
        server.until_asked(limit).await;
        let uri = "/apis/coordination.k8s.io/v1/namespaces/n/leases/l";
        calls.spawn(service.clone().oneshot(request("PUT", uri)));
        server.until_asked(limit + 1).await;
        server.answers.add_permits(1000);
        while calls.join_next().await.is_some() {}
        assert_eq!(pace.state().under_way, 0);
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_leaves_its_turn_to_others() {
        let (server, pace) = (Server::new(), Pace::new(Metrics::default()));
        let service = server.paced(&pace);
        let mut calls = all_turns(&server, &pace, &service).await;
        let waiting = tokio::spawn(service.clone().oneshot(write()));
        let more = calls.len() + 1;
        calls.abort_all();
        server.until_asked(more).await;
        server.answers.add_permits(1);
        assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
        while calls.join_next().await.is_some() {}
        assert_eq!(pace.state().under_way, 0);
    }
}
