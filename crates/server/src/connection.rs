//! Connections: how many, how long, how slow.
//!
//! hyper parses; this module bounds. A connection ends when its client takes more than [`SLOW`] for a request's head or
//! to read an answer, when it is idle for [`IDLE`], or when places are short and it is idle at all. After [`RECYCLE`] the
//! next answer says `Connection: close`, so that clients which keep connections find pods that were added since.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderValue, Request, Response, Version};
use axum::response::IntoResponse;
use flywheel_wire::error::{ErrorReason, Refusal};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tower::ServiceExt;

use crate::app::Phase;
use crate::http::refusal_response;

/// Longest time for a request's head, for a body, and for the client to read an answer.
pub(crate) const SLOW: Duration = Duration::from_secs(10);
/// Longest time without a request.
const IDLE: Duration = Duration::from_secs(75);
/// Age from which the next answer closes the connection.
const RECYCLE: Duration = Duration::from_secs(60);
/// Idle time after which a connection gives its place to a new one.
const YIELD: Duration = Duration::from_secs(1);
/// How often the times above are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Most bytes of a request's head; more is answered 431.
const HEAD_BYTES: usize = 64 * 1024;
/// Pause after an accept that failed (no file descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and serves `router` on them until it is dropped. `places` bounds the connections.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    phases: watch::Receiver<Phase>,
    places: Arc<Semaphore>,
) {
    let pressure = Arc::new(Notify::new());
    loop {
        let place = loop {
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                break place;
            }
            pressure.notify_waiters();
            tokio::select! {
                place = Arc::clone(&places).acquire_owned() => match place {
                    Ok(place) => break place,
                    // Closed: the server is ending.
                    Err(_) => return,
                },
                () = sleep(TICK) => {}
            }
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (router, phases, pressure) = (router.clone(), phases.clone(), Arc::clone(&pressure));
                tokio::spawn(async move {
                    serve(stream, router, phases, &pressure).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router, mut phases: watch::Receiver<Phase>, pressure: &Notify) {
    // Answers are single small writes; waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new());
    let io = TokioIo::new(Watched {
        stream,
        activity: Arc::clone(&activity),
    });
    let service = service_fn({
        let (activity, phases) = (Arc::clone(&activity), phases.clone());
        move |request: Request<Incoming>| {
            let (router, activity, phases) = (router.clone(), Arc::clone(&activity), phases.clone());
            async move { Ok::<_, Infallible>(answer(router, request.map(Body::new), &activity, &phases).await) }
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            // The buffer alone is no bound: what arrives at once may be more.
            .max_header_size(HEAD_BYTES)
            .serve_connection(io, service)
    );
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut closing = false;
    loop {
        tokio::select! {
            // An error is the client's: broken syntax (hyper has answered 400) or a connection that was cut.
            _ = connection.as_mut() => return,
            _ = ticks.tick() => {
                if activity.overdue() || (closing && activity.idle_for(YIELD)) {
                    return;
                }
            }
            () = pressure.notified() => {
                if activity.idle_for(YIELD) {
                    return;
                }
            }
            changed = phases.wait_for(|phase| *phase == Phase::Closing), if !closing => {
                closing = true;
                if changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn answer(
    router: Router,
    request: Request<Body>,
    activity: &Activity,
    phases: &watch::Receiver<Phase>,
) -> Response<Body> {
    let _busy = activity.begin();
    let ambiguous = ambiguous(&request);
    let mut response = match &ambiguous {
        Some(refusal) => refusal_response(refusal),
        None => caught(router.oneshot(request)).await,
    };
    if ambiguous.is_some() || activity.age() >= RECYCLE || *phases.borrow() >= Phase::Leaving {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Why a head could be read differently by a proxy in front, where hyper takes it (RFC 9112, 3.2 and 6.1). What the other
/// side meant to follow is unknown then, so the connection must end.
fn ambiguous(request: &Request<Body>) -> Option<Refusal> {
    let refusal = |message| Some(Refusal::new(ErrorReason::MalformedRequest, message));
    if request.version() == Version::HTTP_11 && request.headers().get_all(HOST).iter().count() != 1 {
        return refusal("send the header Host once");
    }
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|value| !chunked(value)) || codings.next().is_some() {
        return refusal("send no Transfer-Encoding but chunked, once");
    }
    None
}

/// The answer of a future, or 500 when it panics (the panic hook logs the place).
async fn caught(future: impl Future<Output = Result<Response<Body>, Infallible>>) -> Response<Body> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Ready(result)) => Poll::Ready(result.into_response()),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(refusal_response(&Refusal::new(
            ErrorReason::InternalError,
            "the server failed at this request; the pod's log says where",
        ))),
    })
    .await
}

/// What a connection is doing. Times are milliseconds after `start`, plus one; 0 is never.
struct Activity {
    start: Instant,
    /// Requests being answered; at most one, as HTTP/1.1 answers in order.
    busy: AtomicUsize,
    /// When a request's head began, while it is not whole. A new connection begins one.
    head: AtomicU64,
    /// Since when the client has not taken what is written.
    stalled: AtomicU64,
    /// Last byte in or answer out.
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            busy: AtomicUsize::new(0),
            head: AtomicU64::new(1),
            stalled: AtomicU64::new(0),
            last: AtomicU64::new(1),
        }
    }

    fn age(&self) -> Duration {
        self.start.elapsed()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn passed(&self, since: &AtomicU64, limit: Duration) -> bool {
        let since = since.load(Ordering::Relaxed);
        since != 0 && u128::from(self.now().saturating_sub(since)) >= limit.as_millis()
    }

    fn read(&self) {
        let now = self.now();
        self.last.store(now, Ordering::Relaxed);
        if self.busy.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(now, Ordering::Relaxed);
        }
    }

    fn wrote(&self, pending: bool) {
        if !pending {
            self.stalled.store(0, Ordering::Relaxed);
        } else if self.stalled.load(Ordering::Relaxed) == 0 {
            self.stalled.store(self.now(), Ordering::Relaxed);
        }
    }

    fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        Busy(self)
    }

    /// Whether the client is too slow or has been idle for too long.
    fn overdue(&self) -> bool {
        self.passed(&self.head, SLOW) || self.passed(&self.stalled, SLOW) || self.idle_for(IDLE)
    }

    /// Whether nothing is being answered or written and the last byte is that long ago.
    fn idle_for(&self, limit: Duration) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
            && self.stalled.load(Ordering::Relaxed) == 0
            && self.passed(&self.last, limit)
    }
}

/// A request that is being answered.
struct Busy<'a>(&'a Activity);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.last.store(self.0.now(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that tells its activity.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.read();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.wrote(result.is_pending());
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.activity.wrote(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use axum::routing::get;

    fn aged(age: Duration) -> Activity {
        Activity {
            start: Instant::now().checked_sub(age).unwrap(),
            ..Activity::new()
        }
    }

    fn request() -> Request<Body> {
        Request::builder().header(HOST, "a").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn old_connections_and_those_of_an_ending_pod_are_closed_with_the_next_answer() {
        let router = Router::new().route("/", get(|| async { "" }));
        for (age, phase, close) in [
            (Duration::ZERO, Phase::Ready, false),
            (RECYCLE - TICK, Phase::Ready, false),
            (RECYCLE, Phase::Ready, true),
            (Duration::ZERO, Phase::Leaving, true),
            (Duration::ZERO, Phase::Draining, true),
        ] {
            let phases = watch::Sender::new(phase);
            let response = answer(router.clone(), request(), &aged(age), &phases.subscribe()).await;
            let header = response.headers().get(CONNECTION).map(HeaderValue::as_bytes);
            assert_eq!(header == Some(b"close"), close, "{age:?} {phase:?}");
        }
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_500() {
        async fn broken() -> Response<Body> {
            panic!("a fault")
        }
        let router = Router::new().route("/", get(broken));
        let phases = watch::Sender::new(Phase::Ready);
        let activity = aged(Duration::ZERO);
        let response = answer(router, request(), &activity, &phases.subscribe()).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(activity.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn slow_and_idle_clients_are_told_from_those_that_wait_for_us() {
        let silent = aged(SLOW);
        assert!(silent.overdue(), "no head within its time");
        silent.head.store(0, Ordering::Relaxed);
        assert!(!silent.overdue(), "idle between two requests");
        assert!(silent.idle_for(YIELD), "but gives its place away");
        let waiting = aged(IDLE * 2);
        let busy = waiting.begin();
        assert!(
            !waiting.overdue() && !waiting.idle_for(YIELD),
            "it waits for our answer"
        );
        waiting.wrote(true);
        waiting.stalled.store(1, Ordering::Relaxed);
        assert!(waiting.overdue(), "it does not read our answer");
        waiting.wrote(false);
        assert!(!waiting.overdue());
        drop(busy);
        assert!(!waiting.idle_for(YIELD), "the answer was just now");
        waiting.last.store(1, Ordering::Relaxed);
        assert!(waiting.overdue(), "idle for too long");
        waiting.read();
        assert!(!waiting.overdue(), "the next head begins");
    }
}
