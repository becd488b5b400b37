//! HTTP to a pod's port, by port-forward through the API server: nothing listens on this machine, and no Service or
//! NetworkPolicy is in the way. What the pod answers is untrusted and bounded.

use std::time::Duration;

use futures::future::{BoxFuture, Fuse, FutureExt as _};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cluster::Cluster;
use crate::error::Error;
use crate::text::{clean, shortened};
use crate::tls;

/// A pod's port. One connection is kept between requests.
pub(crate) struct PodPort {
    cluster: Cluster,
    pod: String,
    port: u16,
    tls: bool,
    open: Option<Connection>,
}

/// What a pod answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Ends with words where the kubelet cannot use the port any more.
    broken: Fuse<BoxFuture<'static, Option<String>>>,
}

impl PodPort {
    pub(crate) fn new(cluster: &Cluster, pod: String, port: u16) -> Self {
        Self {
            cluster: cluster.clone(),
            pod,
            port,
            tls: false,
            open: None,
        }
    }

    /// The same port, where it speaks TLS.
    pub(crate) fn with_tls(self) -> Self {
        Self { tls: true, ..self }
    }

    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }

    /// The JSON at `path`, at most `most` bytes.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &mut self,
        path: &str,
        wait: Duration,
        most: usize,
    ) -> Result<T, Error> {
        let answer = self.exchange(Method::GET, path, Bytes::new(), wait, most).await?;
        if answer.status != 200 {
            return Err(self.error(&format!("{path} answers with status {}", answer.status)));
        }
        serde_json::from_slice(&answer.body).map_err(|e| self.error(&format!("{path} cannot be read: {e}")))
    }

    /// Sends a request and reads the whole answer: within `wait` after the connection stands, at most `most` bytes. An error
    /// closes the connection; the next request opens another.
    pub(crate) async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        wait: Duration,
        most: usize,
    ) -> Result<Answer, Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.error(&e.to_string()))?;
        let mut connection = self.take().await?;
        let answer = match tokio::time::timeout(wait, connection.exchange(request, most)).await {
            Ok(answer) => answer.map_err(|words| self.error(&words))?,
            Err(_) => return Err(self.error(&format!("no answer within {} s", wait.as_secs()))),
        };
        self.open = Some(connection);
        Ok(answer)
    }

    /// Sees that a connection stands.
    pub(crate) async fn open(&mut self) -> Result<(), Error> {
        self.open = Some(self.take().await?);
        Ok(())
    }

    async fn take(&mut self) -> Result<Connection, Error> {
        match self.open.take() {
            Some(open) if !open.sender.is_closed() => Ok(open),
            _ => self.connect().await,
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let what = format!("forward port {} of pod {}", self.port, self.pod);
        let ports = [self.port];
        let pods = self.cluster.api::<Pod>();
        let opened = self.cluster.ask(&what, pods.portforward(&self.pod, &ports)).await;
        let mut forwarder = opened.map_err(|error| match error {
            // The pod is not there any more, or its node is away.
            Error::Api { words, .. } | Error::NotFound { words, .. } => self.error(&words),
            error => error,
        })?;
        let broken = forwarder.take_error(self.port);
        let stream = forwarder
            .take_stream(self.port)
            .ok_or_else(|| self.error("the connection has no stream"))?;
        let broken = async move {
            match broken {
                Some(words) => words.await,
                None => None,
            }
        };
        let opened = if self.tls {
            match tls::connect(stream).await {
                Ok(stream) => Connection::over(stream, broken.boxed()).await,
                Err(words) => Err(words),
            }
        } else {
            Connection::over(stream, broken.boxed()).await
        };
        opened.map_err(|words| self.error(&words))
    }

    pub(crate) fn error(&self, why: &str) -> Error {
        Error::Forward {
            pod: self.pod.clone(),
            namespace: self.cluster.namespace().to_owned(),
            port: self.port,
            why: clean(why.trim()),
        }
    }
}

impl Connection {
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        broken: BoxFuture<'static, Option<String>>,
    ) -> Result<Self, String> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // It ends with the sender; what goes wrong is told to the request under way.
        tokio::spawn(connection);
        Ok(Self {
            sender,
            broken: broken.fuse(),
        })
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>, most: usize) -> Result<Answer, String> {
        let Self { sender, broken } = self;
        let answer = async {
            sender.ready().await.map_err(|e| e.to_string())?;
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), most).collect().await;
            let body = body.map_err(|e| format!("the answer breaks off or has more than {most} bytes: {e}"))?;
            Ok::<_, String>(Answer {
                status,
                body: body.to_bytes(),
            })
        };
        tokio::select! {
            // What the kubelet says is clearer than that the connection ended.
            biased;
            Some(words) = broken => Err(told(&words)),
            answer = answer => answer,
        }
    }
}

/// Most characters of the kubelet's words.
const WORDS_MAX: usize = 300;

/// The kubelet's words, short for what every pod meets at its start and end: they are lines of paths and addresses.
fn told(words: &str) -> String {
    if words.contains("connection refused") {
        "nothing listens there, yet or any more (connection refused)".to_owned()
    } else if words.contains("connection reset") {
        "the pod ended the connection (connection reset)".to_owned()
    } else {
        shortened(words, WORDS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    async fn connection(broken: Option<&'static str>) -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let broken = async move { broken.map(str::to_owned) };
        (Connection::over(ours, broken.boxed()).await.unwrap(), theirs)
    }

    fn request() -> Request<Full<Bytes>> {
        let request = Request::builder().uri("/progress").header(header::HOST, "localhost");
        request.body(Full::default()).unwrap()
    }

    /// Reads one request and answers with these bytes.
    async fn answer(theirs: &mut DuplexStream, answer: &[u8]) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(theirs.read_u8().await.unwrap());
        }
        theirs.write_all(answer).await.unwrap();
    }

    #[tokio::test]
    async fn one_connection_carries_one_request_after_the_other() {
        let (mut connection, mut theirs) = connection(None).await;
        tokio::spawn(async move {
            for _ in 0..2 {
                answer(&mut theirs, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            }
            answer(
                &mut theirs,
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            )
            .await;
        });
        for status in [200, 200, 503] {
            assert_eq!(connection.exchange(request(), 16).await.unwrap().status, status);
        }
    }

    #[tokio::test]
    async fn a_large_answer_is_not_read() {
        let (mut connection, mut theirs) = connection(None).await;
        tokio::spawn(async move {
            answer(
                &mut theirs,
                b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n12345678901234567",
            )
            .await;
            let _ = theirs.read_u8().await;
        });
        let refused = connection.exchange(request(), 16).await.err().unwrap();
        assert!(refused.contains("more than 16 bytes"), "{refused}");
    }

    #[tokio::test]
    async fn the_kubelets_words_come_first() {
        let (mut connection, theirs) = connection(Some("no such pod")).await;
        drop(theirs);
        assert_eq!(connection.exchange(request(), 16).await.err().unwrap(), "no such pod");
    }

    #[tokio::test]
    async fn a_pod_that_ends_ends_the_request() {
        let (mut connection, theirs) = connection(None).await;
        drop(theirs);
        assert!(connection.exchange(request(), 16).await.is_err());
        assert!(connection.sender.is_closed());
    }
}
