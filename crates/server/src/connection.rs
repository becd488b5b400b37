//! Connections: how many, how long, how slow.
//!
//! hyper parses; this module bounds. A connection ends when its client takes more than [`Times::slow`] for a request's head
//! or to read an answer, when it is idle for [`Times::idle`], or when places are short and it is idle at all. After
//! [`Times::recycle`] it is told to end, with `Connection: close` on the next answer or with GOAWAY, so that clients which
//! keep connections find pods that were added since. HTTP/2 is agreed in the handshake of TLS, and else known by its preface.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderValue, Request, Response, Version};
use axum::response::IntoResponse;
use axum::{BoxError, Router};
use flywheel_wire::error::{ErrorReason, Refusal};
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::app::Phase;
use crate::http::refusal_response;
use crate::tls::HTTP2;

/// Longest time for a request's head (the handshake of TLS is part of the first one's), for a body, and for the client to read
/// an answer.
pub(crate) const SLOW: Duration = Duration::from_secs(10);
/// Idle time after which a connection gives its place to a new one.
const YIELD: Duration = Duration::from_secs(1);
/// How often times are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Most bytes of a request's head; more is answered 431.
const HEAD_BYTES: usize = 64 * 1024;
/// Streams of HTTP/2 that may be open at once; HTTP/1.1 has one.
const STREAMS: u32 = 100;
/// Bytes of bodies that a client of HTTP/2 may send ahead, for a stream and for its connection: as many as HTTP/1.1 buffers.
const WINDOW_BYTES: u32 = 64 * 1024;
/// Streams that a client may have reset before they were looked at; more ends the connection (CVE-2023-44487).
const RESET_STREAMS: usize = 20;
/// How HTTP/2 begins (RFC 9113, 3.4). No method of HTTP/1.1 begins with its first four bytes.
const HTTP2_PREFACE: &[u8; 4] = b"PRI ";
/// Pause between looks at a preface that comes byte by byte.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);
/// Pause after an accept that failed (no file descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may take for what.
#[derive(Clone, Copy)]
struct Times {
    /// For a request's head, and for the client to read an answer.
    slow: Duration,
    /// Without a request.
    idle: Duration,
    /// Age from which the client is told to make a new one.
    recycle: Duration,
}

const TIMES: Times = Times {
    slow: SLOW,
    idle: Duration::from_secs(75),
    recycle: Duration::from_secs(60),
};

/// Accepts connections and serves `router` on them until it is dropped. `places` bounds the connections, `tls` ciphers them.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
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
                let (tls, router) = (tls.clone(), router.clone());
                let (phases, pressure) = (phases.clone(), Arc::clone(&pressure));
                tokio::spawn(async move {
                    serve(stream, tls, router, phases, &pressure, TIMES).await;
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

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    phases: watch::Receiver<Phase>,
    pressure: &Notify,
    times: Times,
) {
    // Answers are single small writes; waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new(times));
    let Some(tls) = tls else {
        let http2 = begins_with_http2(&stream);
        if let Some(Some(http2)) = unless_over(http2, &activity, phases.clone(), pressure).await {
            let stream = Watched::new(stream, &activity);
            exchange(stream, http2, router, &activity, phases, pressure).await;
        }
        return;
    };
    // What is slow or idle is seen beneath TLS, so that it holds for the handshake as well.
    let handshake = tls.accept(Watched::new(stream, &activity));
    match unless_over(handshake, &activity, phases.clone(), pressure).await {
        Some(Ok(stream)) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
            exchange(stream, http2, router, &activity, phases, pressure).await;
        }
        // The client's: it speaks plain HTTP, does not trust the certificate, or has gone.
        Some(Err(error)) => tracing::debug!(%error, "no handshake"),
        None => {}
    }
}

/// Answers what comes on a connection whose protocol is known.
async fn exchange<S>(
    stream: S,
    http2: bool,
    router: Router,
    activity: &Arc<Activity>,
    phases: watch::Receiver<Phase>,
    pressure: &Notify,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if http2 {
        // A client may connect before it has anything to ask: it is idle then.
        activity.http2.store(true, Ordering::Relaxed);
        activity.head.store(0, Ordering::Relaxed);
    }
    let io = TokioIo::new(stream);
    let service = service_fn({
        let (activity, phases) = (Arc::clone(activity), phases.clone());
        move |request: Request<Incoming>| {
            let (router, activity, phases) = (router.clone(), Arc::clone(&activity), phases.clone());
            async move { Ok::<_, Infallible>(answer(router, request.map(Body::new), &activity, &phases).await) }
        }
    });
    if http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD_BYTES as u32)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .serve_connection(io, service);
        // It says GOAWAY, so a pod that leaves can say so at once: clients go elsewhere with their next request.
        watch(connection, activity, phases, Phase::Leaving, pressure).await;
    } else {
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            // The buffer alone is no bound: what arrives at once may be more.
            .max_header_size(HEAD_BYTES)
            .serve_connection(io, service);
        // Until then each answer says `Connection: close`.
        watch(connection, activity, phases, Phase::Closing, pressure).await;
    }
}

/// Whether a connection without TLS speaks HTTP/2; `None` where it is broken.
async fn begins_with_http2(stream: &TcpStream) -> Option<bool> {
    let mut bytes = [0; HTTP2_PREFACE.len()];
    loop {
        let seen = stream.peek(&mut bytes).await.ok()?;
        let seen = bytes.get(..seen)?;
        if seen.is_empty() || !HTTP2_PREFACE.starts_with(seen) {
            return Some(false);
        }
        if seen.len() == HTTP2_PREFACE.len() {
            return Some(true);
        }
        // Peeking again gives the same bytes at once.
        sleep(PREFACE_PAUSE).await;
    }
}

/// What comes before the first request; `None` where the connection should end before it says anything.
async fn unless_over<T>(
    beginning: impl Future<Output = T>,
    activity: &Activity,
    mut phases: watch::Receiver<Phase>,
    pressure: &Notify,
) -> Option<T> {
    let mut beginning = pin!(beginning);
    let mut ticks = ticks();
    loop {
        tokio::select! {
            begun = beginning.as_mut() => return Some(begun),
            _ = ticks.tick() => if activity.too_slow() {
                return None;
            },
            () = pressure.notified() => if activity.idle_for(YIELD) {
                return None;
            },
            _ = phases.wait_for(|phase| *phase == Phase::Closing) => return None,
        }
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// A connection that can be told to end.
trait Closing: Future {
    /// Takes no new requests, answers those that have begun.
    fn close(self: Pin<&mut Self>);
}

impl<T, S, B> Closing for http1::Connection<TokioIo<T>, S>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: hyper::body::Body + 'static,
    B::Error: Into<BoxError>,
{
    fn close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<T, S, B> Closing for http2::Connection<TokioIo<T>, S, TokioExecutor>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: hyper::body::Body + 'static,
    B::Error: Into<BoxError>,
    TokioExecutor: Http2ServerConnExec<S::Future, B>,
{
    fn close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection to its end. `until`: the phase from which it takes no new requests.
async fn watch(
    connection: impl Closing,
    activity: &Activity,
    mut phases: watch::Receiver<Phase>,
    until: Phase,
    pressure: &Notify,
) {
    let mut connection = pin!(connection);
    let mut ticks = ticks();
    let mut closing: Option<Instant> = None;
    loop {
        let close = tokio::select! {
            // An error is the client's: broken syntax (hyper has answered 400) or a connection that was cut.
            _ = connection.as_mut() => return,
            _ = ticks.tick() => {
                // One that was told to end may not be kept by a client that never does.
                let kept = closing.is_some_and(|since| since.elapsed() >= activity.times.idle);
                if kept || activity.too_slow() || (closing.is_some() && activity.idle_for(YIELD)) {
                    return;
                }
                activity.idle_for(activity.times.idle) || (activity.http2() && activity.age() >= activity.times.recycle)
            }
            () = pressure.notified() => activity.idle_for(YIELD),
            changed = phases.wait_for(|phase| *phase >= until), if closing.is_none() => changed.is_ok(),
        };
        if close && closing.is_none() {
            closing = Some(Instant::now());
            connection.as_mut().close();
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
    let closes = ambiguous.is_some() || activity.age() >= activity.times.recycle || *phases.borrow() >= Phase::Leaving;
    if closes && !activity.http2() {
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
    times: Times,
    http2: AtomicBool,
    start: Instant,
    /// Requests being answered; at most one with HTTP/1.1, which answers in order.
    busy: AtomicUsize,
    /// When a request's head began, while it is not whole. A new connection begins one; with HTTP/2 what comes later need
    /// be none.
    head: AtomicU64,
    /// Since when the client has not taken what is written.
    stalled: AtomicU64,
    /// Last byte in or answer out.
    last: AtomicU64,
}

impl Activity {
    fn new(times: Times) -> Self {
        Self {
            times,
            http2: AtomicBool::new(false),
            start: Instant::now(),
            busy: AtomicUsize::new(0),
            head: AtomicU64::new(1),
            stalled: AtomicU64::new(0),
            last: AtomicU64::new(1),
        }
    }

    fn http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
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
        if !self.http2() && self.busy.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) == 0 {
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

    /// Whether the client takes too long for a head or for reading an answer.
    fn too_slow(&self) -> bool {
        self.passed(&self.head, self.times.slow) || self.passed(&self.stalled, self.times.slow)
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

impl Watched {
    fn new(stream: TcpStream, activity: &Arc<Activity>) -> Self {
        Self {
            stream,
            activity: Arc::clone(activity),
        }
    }
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
            ..Activity::new(TIMES)
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
            (TIMES.recycle - TICK, Phase::Ready, false),
            (TIMES.recycle, Phase::Ready, true),
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

    const SHORT: Times = Times {
        slow: SLOW,
        idle: Duration::from_secs(5),
        recycle: Duration::from_millis(1200),
    };

    /// Serves connections for short times; `/slow` takes longer than they last.
    async fn short_lived() -> (std::net::SocketAddr, watch::Sender<Phase>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let phases = watch::Sender::new(Phase::Ready);
        let receiver = phases.subscribe();
        let router = Router::new().route("/", get(|| async { "" })).route(
            "/slow",
            get(|| async {
                sleep(SHORT.recycle * 2).await;
                "slow"
            }),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (router, phases) = (router.clone(), receiver.clone());
                tokio::spawn(async move { serve(stream, None, router, phases, &Notify::new(), SHORT).await });
            }
        });
        (address, phases)
    }

    #[tokio::test]
    async fn http_1_is_told_to_connect_anew_with_the_first_answer_after_its_time() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (address, _phases) = short_lived().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let start = Instant::now();
        let mut kept = 0;
        let last = loop {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes).await.unwrap();
            let answer = String::from_utf8_lossy(&bytes[..read]).into_owned();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            if answer.contains("connection: close") {
                break answer;
            }
            kept += 1;
            assert!(start.elapsed() < SLOW, "never told");
            sleep(Duration::from_millis(50)).await;
        };
        assert!(kept > 0 && start.elapsed() >= SHORT.recycle, "{last}");
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "and it is closed");
    }

    #[tokio::test]
    async fn http_2_is_told_to_connect_anew_and_what_has_begun_is_answered() {
        let (address, _phases) = short_lived().await;
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let start = Instant::now();
        let mut ask = |path: &str| {
            let request = Request::get(format!("http://a{path}")).body(()).unwrap();
            client.send_request(request, true).unwrap().0
        };
        let slow = ask("/slow");
        assert_eq!(ask("/").await.unwrap().status(), StatusCode::OK);
        // Nothing is asked any more: GOAWAY lets the client end it by itself once the slow one is answered.
        let answer = slow.await.unwrap();
        assert!(start.elapsed() >= SHORT.recycle * 2);
        assert_eq!(answer.status(), StatusCode::OK);
        let ended = tokio::time::timeout(SHORT.idle / 2, connection).await;
        ended.expect("no GOAWAY").unwrap().unwrap();
    }

    #[test]
    fn slow_and_idle_clients_are_told_from_those_that_wait_for_us() {
        let silent = aged(SLOW);
        assert!(silent.too_slow(), "no head within its time");
        silent.head.store(0, Ordering::Relaxed);
        assert!(!silent.too_slow(), "idle between two requests");
        assert!(silent.idle_for(YIELD), "but gives its place away");
        let waiting = aged(TIMES.idle * 2);
        let busy = waiting.begin();
        assert!(
            !waiting.too_slow() && !waiting.idle_for(YIELD),
            "it waits for our answer"
        );
        waiting.wrote(true);
        waiting.stalled.store(1, Ordering::Relaxed);
        assert!(waiting.too_slow(), "it does not read our answer");
        waiting.wrote(false);
        assert!(!waiting.too_slow());
        drop(busy);
        assert!(!waiting.idle_for(YIELD), "the answer was just now");
        waiting.last.store(1, Ordering::Relaxed);
        assert!(waiting.idle_for(TIMES.idle), "idle for too long");
        waiting.read();
        assert!(!waiting.idle_for(TIMES.idle), "the next head begins");
        assert_ne!(waiting.head.load(Ordering::Relaxed), 0);
        let http2 = aged(TIMES.idle);
        http2.http2.store(true, Ordering::Relaxed);
        drop(http2.begin());
        http2.read();
        assert_eq!(http2.head.load(Ordering::Relaxed), 0, "a ping is no head");
    }
}
