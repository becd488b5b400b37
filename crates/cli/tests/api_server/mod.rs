//! An API server over HTTP that answers by path from a script, and pods behind its port-forward. Unlike the testkit's
//! scenario it is reached through a kubeconfig and can switch protocols, so the whole program runs against it.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

/// Longest run of the program.
const PATIENCE: Duration = Duration::from_secs(60);
/// Must never be printed.
pub const TOKEN: &str = "SECRET-TOKEN";

/// An answer of the API server.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A body with this status.
    Whole(u16, String),
    /// A body that breaks off: the connection ends before all that was announced came.
    Broken(String),
}

impl Reply {
    pub fn json(value: &Value) -> Self {
        Self::Whole(200, value.to_string())
    }

    pub fn list(kind: &str, items: &[Value]) -> Self {
        Self::json(&json!({"apiVersion": "v1", "kind": format!("{kind}List"), "metadata": {}, "items": items}))
    }

    pub fn status(code: u16, reason: &str, message: &str) -> Self {
        Self::Whole(
            code,
            flywheel_testkit::server::status(code, reason, message).1.to_string(),
        )
    }
}

/// What is at the other end of a port-forward.
#[derive(Clone, Debug)]
pub enum Port {
    /// Each request gets the next answer, the last one again and again: status and JSON.
    Answers(VecDeque<(u16, Value)>),
    /// The kubelet says that it cannot reach the port.
    Closed(String),
    /// The API server does not open the connection.
    Refused(Reply),
}

#[derive(Default)]
struct Script {
    paths: HashMap<String, VecDeque<Reply>>,
    ports: HashMap<String, Port>,
    calls: Vec<String>,
}

/// The server, its kubeconfig and what came.
pub struct ApiServer {
    script: Arc<Mutex<Script>>,
    folder: TempDir,
}

impl ApiServer {
    pub fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let (send, receive) = std::sync::mpsc::channel();
        let served = script.clone();
        // It ends with the test program.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                send.send(listener.local_addr().expect("an address"))
                    .expect("the test waits");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, served.clone()));
                }
            });
        });
        let address = receive.recv().expect("the server runs");
        let folder = TempDir::new().expect("a folder");
        write_kubeconfig(&folder.path().join("config"), &format!("http://{address}"));
        Self { script, folder }
    }

    /// The answers at a path, the last one again and again.
    pub fn at(&self, path: &str, replies: impl IntoIterator<Item = Reply>) -> &Self {
        self.script
            .lock()
            .unwrap()
            .paths
            .insert(path.to_owned(), replies.into_iter().collect());
        self
    }

    /// What answers at a pod's port.
    pub fn port(&self, pod: &str, port: u16, what: Port) -> &Self {
        self.script.lock().unwrap().ports.insert(format!("{pod}:{port}"), what);
        self
    }

    /// The calls so far, path and query; port-forwards and what came over them, too.
    pub fn calls(&self) -> Vec<String> {
        self.script.lock().unwrap().calls.clone()
    }

    pub fn run(&self, arguments: &[&str]) -> Told {
        run(arguments, &self.folder.path().join("config"))
    }
}

/// A kubeconfig for this server, with a token.
pub fn write_kubeconfig(path: &PathBuf, server: &str) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}]
    });
    std::fs::write(path, config.to_string()).expect("the kubeconfig is written");
}

/// What the program printed, and how it ended.
#[derive(Debug)]
pub struct Told {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the program to its end.
pub fn run(arguments: &[&str], kubeconfig: &PathBuf) -> Told {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-flywheel"))
        .args(arguments)
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let begin = Instant::now();
    while child.try_wait().expect("the program can be asked").is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().expect("the program can be ended");
            panic!("{arguments:?} did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().expect("the program told");
    let told = Told {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    };
    assert!(!told.out.contains(TOKEN) && !told.err.contains(TOKEN), "{told:?}");
    told
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    // What it is decides who reads it, so it is looked at first.
    let mut head = vec![0; 16 * 1024];
    let length = loop {
        let Ok(length) = stream.peek(&mut head).await else {
            return;
        };
        if length == 0 {
            return;
        }
        if head[..length].windows(4).any(|w| w == b"\r\n\r\n") {
            break length;
        }
        tokio::task::yield_now().await;
    };
    let text = String::from_utf8_lossy(&head[..length]).into_owned();
    assert!(text.contains(&format!("Bearer {TOKEN}")), "without a token: {text}");
    let target = text.split(' ').nth(1).unwrap_or_default().to_owned();
    script.lock().unwrap().calls.push(target.clone());
    let path = target.split('?').next().unwrap_or_default().to_owned();
    if let Some(pod) = path.strip_suffix("/portforward") {
        let pod = pod.rsplit('/').next().unwrap_or_default();
        let port = target.rsplit("ports=").next().unwrap_or_default().to_owned();
        let key = format!("{pod}:{port}");
        let what = script.lock().unwrap().ports.get(&key).cloned();
        return match what {
            Some(Port::Refused(answer)) => reply(&mut stream, length, &answer).await,
            Some(what) => forward(stream, port.parse().unwrap_or(0), &key, what, script).await,
            None => reply(&mut stream, length, &Reply::status(404, "NotFound", "pods not found")).await,
        };
    }
    let answer = {
        let mut script = script.lock().unwrap();
        match script.paths.get_mut(&path) {
            Some(replies) if replies.len() > 1 => replies.pop_front(),
            Some(replies) => replies.front().cloned(),
            None => None,
        }
    };
    // As for a kind that is not installed.
    let answer = answer.unwrap_or(Reply::Whole(404, "404 page not found\n".to_owned()));
    reply(&mut stream, length, &answer).await;
}

async fn reply(stream: &mut TcpStream, request: usize, reply: &Reply) {
    let mut read = vec![0; request];
    let _ = stream.read_exact(&mut read).await;
    let (code, body, more) = match reply {
        Reply::Whole(code, body) => (*code, body, 0),
        Reply::Broken(body) => (200, body, 1),
    };
    let length = body.len() + more;
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A port-forward as the kubelet does it: channel 0 carries data, channel 1 an error; each begins with the port.
async fn forward(stream: TcpStream, port: u16, key: &str, what: Port, script: Arc<Mutex<Script>>) {
    #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
    let with_protocol = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let protocol = "v4.channel.k8s.io".parse().expect("a header");
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, with_protocol).await else {
        return;
    };
    let [low, high] = port.to_le_bytes();
    for channel in [0, 1] {
        let _ = socket.send(Message::binary(vec![channel, low, high])).await;
    }
    match what {
        Port::Closed(words) => {
            let _ = socket.send(Message::binary([&[1], words.as_bytes()].concat())).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
        Port::Refused(_) => {}
        Port::Answers(_) => {
            while let Some(request) = read_request(&mut socket).await {
                let next = {
                    let mut script = script.lock().unwrap();
                    script.calls.push(request);
                    match script.ports.get_mut(key) {
                        Some(Port::Answers(answers)) if answers.len() > 1 => answers.pop_front(),
                        Some(Port::Answers(answers)) => answers.front().cloned(),
                        _ => None,
                    }
                };
                let Some((code, body)) = next else { return };
                let body = body.to_string();
                let answer = format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = socket.send(Message::binary([&[0], answer.as_bytes()].concat())).await;
            }
        }
    }
}

/// One HTTP request from channel 0: its first line and its body.
async fn read_request(socket: &mut WebSocketStream<TcpStream>) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(format!("{} {body}", head.lines().next()?));
            }
        }
        match socket.next().await?.ok()? {
            Message::Binary(frame) if frame.first() == Some(&0) => bytes.extend_from_slice(&frame[1..]),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}
