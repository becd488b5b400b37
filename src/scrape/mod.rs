//! The one reader of pods over HTTP. What a pod says is untrusted: bounded in time and size, and only ever shown.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;

/// Longest wait for a pod's whole answer. A reconcile reads at most a few pods, so this is far below its own limit.
pub const TIMEOUT: Duration = Duration::from_millis(800);
/// Longest wait where pods are read again and again: one that is late is read next time.
pub const REPEATED_TIMEOUT: Duration = Duration::from_millis(300);
/// Longest wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a connection is kept for the next read: a few times the time between two.
const KEPT: Duration = Duration::from_secs(10);
/// Most connections that are kept: each takes some 14 kB.
const KEPT_MAX: usize = 1024;
/// Bytes of an answer that are read at a time, which each connection has room for: most answers of a pod.
const READ_AT_ONCE: usize = 1024;
/// Least time between two looks for pods that are not read any more.
const SWEPT_EVERY: Duration = Duration::from_secs(1);
/// Most bytes of an answer.
pub const BODY_MAX: usize = 64 * 1024;

/// Why a pod could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// There was a connection, and no answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The pod's machine answered that nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// There was no connection.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The connection or the request failed.
    #[error("{0}")]
    Http(String),
    /// Another status than 200.
    #[error("status {0}")]
    Status(u16),
    /// Not the JSON that was expected.
    #[error("unreadable answer: {0}")]
    Body(String),
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// Reads pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scraper {
    /// With a connection for each read.
    client: HttpClient,
    kept: Option<Arc<Kept>>,
    timeout: Duration,
}

/// Connections that are kept from read to read.
#[derive(Debug)]
struct Kept {
    client: HttpClient,
    most: usize,
    pods: Mutex<KeptPods>,
}

/// The pods that have them.
#[derive(Debug)]
struct KeptPods {
    /// When each was read last.
    read: HashMap<IpAddr, Instant>,
    swept: Instant,
}

impl Kept {
    fn new(timeout: Duration, most: usize) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(1)
            .http1_read_buf_exact_size(READ_AT_ONCE);
        Self {
            client: client(timeout, &builder),
            most,
            pods: Mutex::new(KeptPods {
                read: HashMap::new(),
                swept: Instant::now(),
            }),
        }
    }

    /// Whether this pod's connection is kept: of those that are read, the first so many.
    fn has(&self, pod: IpAddr, now: Instant) -> bool {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(pods.swept) >= SWEPT_EVERY {
            pods.swept = now;
            pods.read.retain(|_, read| now.duration_since(*read) < KEPT);
        }
        let room = pods.read.len() < self.most;
        if let Some(read) = pods.read.get_mut(&pod) {
            *read = now;
            return true;
        }
        if room {
            pods.read.insert(pod, now);
        }
        room
    }
}

impl Default for Scraper {
    fn default() -> Self {
        Self::new()
    }
}

impl Scraper {
    /// A reader. Each read has a connection of its own: one that is kept would outlive its pod, and tell nothing of whether
    /// the pod can be reached now.
    #[must_use]
    pub fn new() -> Self {
        Self::with(TIMEOUT, None)
    }

    /// A reader of pods that are read each second or two, over one connection for each that is kept as long as that goes on: of
    /// [`KEPT_MAX`] pods; others have one for each read.
    #[must_use]
    pub fn repeated() -> Self {
        Self::with(REPEATED_TIMEOUT, Some(KEPT_MAX))
    }

    fn with(timeout: Duration, kept: Option<usize>) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        Self {
            client: client(timeout, builder.pool_max_idle_per_host(0)),
            kept: kept.map(|most| Arc::new(Kept::new(timeout, most))),
            timeout,
        }
    }

    /// The JSON at `http://ip:port/path`.
    ///
    /// # Errors
    /// No answer in time, another status than 200, more than [`BODY_MAX`] bytes, or other JSON.
    pub async fn get_json<T: DeserializeOwned>(&self, ip: IpAddr, port: u16, path: &str) -> Result<T, ScrapeError> {
        self.get_json_up_to(ip, port, path, BODY_MAX).await
    }

    /// The same, of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Scraper::get_json`].
    pub async fn get_json_up_to<T: DeserializeOwned>(
        &self,
        ip: IpAddr,
        port: u16,
        path: &str,
        max: usize,
    ) -> Result<T, ScrapeError> {
        let uri = uri(ip, port, path)?;
        let kept = self.kept.as_ref().filter(|kept| kept.has(ip, Instant::now()));
        let client = kept.map_or(&self.client, |kept| &kept.client);
        let read = async {
            let answer = client.get(uri).await.map_err(|e| without_answer(&e))?;
            if answer.status() != http::StatusCode::OK {
                return Err(ScrapeError::Status(answer.status().as_u16()));
            }
            let body = Limited::new(answer.into_body(), max)
                .collect()
                .await
                .map_err(|e| ScrapeError::Body(e.to_string()))?;
            serde_json::from_slice(&body.to_bytes()).map_err(|e| ScrapeError::Body(e.to_string()))
        };
        tokio::time::timeout(self.timeout, read)
            .await
            .map_err(|_| ScrapeError::Timeout)?
    }
}

fn client(timeout: Duration, builder: &Builder) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT.min(timeout)));
    builder.build(connector)
}

/// `http://ip:port/path`, with brackets around an address of IPv6.
fn uri(ip: IpAddr, port: u16, path: &str) -> Result<http::Uri, ScrapeError> {
    let uri = format!("http://{}{path}", SocketAddr::new(ip, port)).parse();
    uri.map_err(|e: http::uri::InvalidUri| ScrapeError::Http(e.to_string()))
}

/// What it means that a request failed.
fn without_answer(error: &hyper_util::client::legacy::Error) -> ScrapeError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(present) = cause {
        let io = present.downcast_ref::<std::io::Error>();
        if io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return ScrapeError::Refused;
        }
        cause = present.source();
    }
    if error.is_connect() {
        ScrapeError::Unreachable(error.to_string())
    } else {
        ScrapeError::Http(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server that answers every connection with these bytes and then keeps it open.
    async fn server(answer: Vec<u8>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    let _ = socket.read(&mut buffer).await;
                    let _ = socket.write_all(&answer).await;
                    let _ = socket.read(&mut buffer).await;
                });
            }
        });
        port
    }

    async fn read(answer: String) -> Result<serde_json::Value, ScrapeError> {
        let port = server(answer.into_bytes()).await;
        Scraper::new()
            .get_json(IpAddr::from([127, 0, 0, 1]), port, "/progress")
            .await
    }

    #[tokio::test]
    async fn pods_of_both_families_are_read() {
        for (ip, want) in [
            ("10.0.0.7", "http://10.0.0.7:9090/stats"),
            ("fd00::7", "http://[fd00::7]:9090/stats"),
        ] {
            assert_eq!(uri(ip.parse().unwrap(), 9090, "/stats").unwrap().to_string(), want);
        }
        let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
            eprintln!("this machine has no IPv6");
            return;
        };
        let address = listener.local_addr().unwrap();
        let pod = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 1024]).await.unwrap();
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await
                .unwrap();
        };
        let scraper = Scraper::new();
        let read = scraper.get_json::<serde_json::Value>(address.ip(), address.port(), "/stats");
        assert!(tokio::join!(pod, read).1.is_ok());
    }

    /// Pods come and go; what is kept of them would never end.
    #[tokio::test]
    async fn nothing_is_kept_of_a_pod_that_was_read() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scraper = Scraper::new();
        let pod = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(socket.read(&mut buffer).await.unwrap() > 0, "a request");
            // HTTP/1.1 without `connection: close` offers to go on.
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await
                .unwrap();
            tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buffer)).await
        };
        let read = scraper.get_json::<serde_json::Value>(IpAddr::from([127, 0, 0, 1]), port, "/progress");
        let (left, answer) = tokio::join!(pod, read);
        assert!(answer.is_ok());
        assert_eq!(
            left.expect("the connection is closed").unwrap(),
            0,
            "and nothing more is sent"
        );
    }

    #[tokio::test]
    async fn pods_that_are_read_again_and_again_have_one_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scraper = Scraper::repeated();
        let pod = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            for _ in 0..3 {
                assert!(socket.read(&mut buffer).await.unwrap() > 0, "a request");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                socket.write_all(answer).await.unwrap();
            }
        };
        let reads = async {
            for _ in 0..3 {
                let here = IpAddr::from([127, 0, 0, 1]);
                scraper
                    .get_json::<serde_json::Value>(here, port, "/stats")
                    .await
                    .unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(pod, reads) })
            .await
            .expect("a second connection was made");
    }

    /// Connections of any number of pods would take any amount of memory.
    #[tokio::test]
    async fn connections_are_kept_of_so_many_pods_at_most() {
        let port = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()).await;
        let kept = Kept::new(REPEATED_TIMEOUT, 2);
        let pod = |n: u8| IpAddr::from([127, 0, 0, n]);
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        assert!(kept.has(pod(1), at(0)) && kept.has(pod(2), at(0)));
        assert!(!kept.has(pod(3), at(1)) && kept.has(pod(1), at(9)) && kept.has(pod(2), at(1)));
        // The second was not read for as long as connections last.
        assert!(!kept.has(pod(3), at(10)) && kept.has(pod(3), at(11)) && !kept.has(pod(2), at(11)));
        // One that is not kept is read as well.
        let scraper = Scraper::with(REPEATED_TIMEOUT, Some(0));
        let read = scraper.get_json::<serde_json::Value>(pod(1), port, "/stats").await;
        assert_eq!(read.unwrap(), serde_json::json!({}));
    }

    #[tokio::test]
    async fn an_answer_is_read_and_a_bad_one_is_bounded() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}".to_owned();
        assert_eq!(read(ok).await.unwrap()["a"], 1);
        let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned();
        assert!(matches!(read(missing).await, Err(ScrapeError::Status(404))));
        let huge = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n\"{}\"",
            "x".repeat(99_998)
        );
        assert!(matches!(read(huge).await, Err(ScrapeError::Body(_))));
        let silent = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{".to_owned();
        assert!(matches!(read(silent).await, Err(ScrapeError::Timeout)));
    }

    #[tokio::test]
    async fn a_process_that_does_not_answer_is_told_from_a_pod_that_cannot_be_reached() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let ask = |port| async move {
            Scraper::new()
                .get_json::<serde_json::Value>(here, port, "/progress")
                .await
                .unwrap_err()
        };
        // The kernel takes connections for a process that stands still.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stopped = listener.local_addr().unwrap().port();
        assert!(matches!(ask(stopped).await, ScrapeError::Timeout));
        drop(listener);
        assert!(matches!(ask(stopped).await, ScrapeError::Refused));
        // A port whose queue is full drops what comes, as a network that is cut does.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((here, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let cut = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(cut)).await {
            waiting.push(connected.unwrap());
        }
        let nowhere = ask(cut.port()).await;
        assert!(matches!(nowhere, ScrapeError::Unreachable(_)), "{nowhere}");
    }
}
