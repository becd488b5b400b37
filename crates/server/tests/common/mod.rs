//! What the tests of this crate share: a client on a bare socket, so that broken requests can be sent.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use flywheel_contract::names::PROFILE_PATH;
use flywheel_contract::profile::{DataProfile, LiveProfiles};
use serde_json::Value;

/// Longest wait for anything in these tests; they run beside builds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {} {:?}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn reason(&self) -> String {
        let error = &self.json()["error"];
        // The Open Inference Protocol has one text for word and sentence.
        let word = error["reason"].as_str().or_else(|| error.as_str()?.split(':').next());
        word.unwrap_or_default().to_owned()
    }
}

/// A connection that is kept.
pub struct Connection {
    pub stream: TcpStream,
    left: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("nobody listens")
    }

    /// `None` where nobody listens.
    pub fn try_open(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Some(Self {
            stream,
            left: Vec::new(),
        })
    }

    /// Sends bytes; the other side may have closed already.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next answer, or `None` where the connection is closed before one.
    pub fn answer(&mut self) -> Option<Answer> {
        let start = Instant::now();
        let head = loop {
            if let Some(end) = self.left.windows(4).position(|w| w == b"\r\n\r\n") {
                break self.left.drain(..end + 4).collect::<Vec<u8>>();
            }
            if !self.more() {
                return None;
            }
        };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        if status == 100 {
            return self.answer();
        }
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
            took: Duration::ZERO,
        };
        let length = answer.header("content-length").map_or(0, |v| v.parse().unwrap());
        while self.left.len() < length {
            assert!(self.more(), "the answer breaks off");
        }
        answer.body = self.left.drain(..length).collect();
        answer.took = start.elapsed();
        Some(answer)
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.left.extend_from_slice(&buffer[..n]);
                true
            }
        }
    }

    pub fn exchange(&mut self, bytes: &[u8]) -> Answer {
        self.send(bytes);
        self.answer().expect("closed without an answer")
    }
}

/// A request with a JSON body.
pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    with_headers(path, "content-type: application/json\r\n", body)
}

/// A request with these header lines and a body of the right length.
pub fn with_headers(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    Connection::open(address).exchange(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())
}

pub fn predict(address: SocketAddr, body: &Value) -> Answer {
    Connection::open(address).exchange(&post("/predict", body.to_string().as_bytes()))
}

/// What a pod says that it answered with a version, over all windows.
pub fn counted(inside: SocketAddr, version: &str) -> Option<DataProfile> {
    let answer = get(inside, PROFILE_PATH);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told: LiveProfiles = serde_json::from_slice(&answer.body).unwrap();
    let version = told.versions.into_iter().find(|told| told.name == version)?;
    let mut windows = version.windows.into_iter().map(|window| window.profile);
    let mut sum = windows.next()?;
    assert!(windows.all(|profile| sum.merge(&profile)));
    Some(sum)
}

/// Waits until `condition` gives a value.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
