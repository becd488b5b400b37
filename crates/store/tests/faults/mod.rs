//! A small object store in this process that can be told to misbehave: S3's GET, HEAD, conditional PUT, DELETE and the
//! listing of a folder, in path style.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// An answer of this status.
    Status(u16),
    /// No answer until the server ends.
    Hang,
    /// The body in pieces of so many bytes, with so many milliseconds after each.
    Slow(usize, u64),
    /// Half of the body, then the connection closes.
    Truncate,
    /// A body without `Content-Length`.
    NoLength,
    /// The connection closes without an answer.
    Close,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// (part of "METHOD /path", fault, how often still).
    faults: Vec<(String, Fault, usize)>,
    requests: Vec<String>,
}

/// The server; ends with its value.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            ended: Arc::default(),
        };
        let (state, ended) = (Arc::clone(&server.state), Arc::clone(&server.ended));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (state, ended) = (Arc::clone(&state), Arc::clone(&ended));
                if let Ok(stream) = stream {
                    // A client that goes away in the middle is what many of these tests are about.
                    std::thread::spawn(move || drop(answer(stream, &state, &ended)));
                }
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts an object at `bucket/key`.
    pub fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        self.state
            .lock()
            .unwrap()
            .objects
            .insert(format!("/{path}"), bytes.as_ref().to_vec());
    }

    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().objects.get(&format!("/{path}")).cloned()
    }

    pub fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    /// From now on, requests whose "METHOD /path" holds `part` meet this fault, at most `times` times.
    pub fn fault(&self, part: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().faults.push((part.to_owned(), fault, times));
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// "METHOD /path" of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener up.
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>, ended: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let (mut length, mut create, mut expected) = (0, false, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(tag) = line.strip_prefix("if-match:") {
            expected = Some(tag.trim().to_owned());
        }
        if line.is_empty() {
            break;
        }
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        create |= line.starts_with("if-none-match:");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;

    let line = format!("{method} {path}");
    let mut written = None;
    let (fault, reply) = {
        let mut state = state.lock().unwrap();
        state.requests.push(line.clone());
        let fault = state
            .faults
            .iter_mut()
            .find(|(part, _, times)| *times > 0 && line.contains(part.as_str()))
            .map(|f| {
                f.2 -= 1;
                f.1
            });
        let reply = match (fault, method.as_str()) {
            (Some(Fault::Status(code)), _) => (code, xml("AccessDenied", "as the test wants it")),
            (_, "PUT") if create && state.objects.contains_key(&path) => {
                (412, xml("PreconditionFailed", "there is one"))
            }
            (_, "PUT") if expected.is_some() && expected != state.objects.get(&path).map(|b| tag_of(b)) => {
                (412, xml("PreconditionFailed", "it is another one"))
            }
            (_, "PUT") => {
                written = Some(tag_of(&body));
                state.objects.insert(path.clone(), body);
                (200, Vec::new())
            }
            (_, "DELETE") => {
                state.objects.remove(&path);
                (204, Vec::new())
            }
            (_, "GET") if query.contains("list-type=2") => (200, listing(&state.objects, &path, &query)),
            (_, "GET" | "HEAD") => match state.objects.get(&path) {
                Some(bytes) => (200, bytes.clone()),
                None => (404, xml("NoSuchKey", "there is none")),
            },
            _ => (405, Vec::new()),
        };
        (fault, reply)
    };
    let (code, bytes) = reply;
    let mut out = stream;
    let wait = |ended: &AtomicBool| {
        while !ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    match fault {
        Some(Fault::Hang) => {
            wait(ended);
            return Ok(());
        }
        Some(Fault::Close) => return Ok(()),
        _ => (),
    }
    let length = if fault == Some(Fault::NoLength) {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", bytes.len())
    };
    write!(
        out,
        "HTTP/1.1 {code} X\r\n{length}ETag: {}\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: close\r\n\r\n",
        written.unwrap_or_else(|| tag_of(&bytes))
    )?;
    if method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Slow(piece, pause)) => {
            for part in bytes.chunks(piece) {
                out.write_all(part)?;
                out.flush()?;
                std::thread::sleep(Duration::from_millis(pause));
            }
        }
        Some(Fault::Truncate) => out.write_all(&bytes[..bytes.len() / 2])?,
        _ => out.write_all(&bytes)?,
    }
    out.flush()
}

/// An ETag that tells contents apart.
fn tag_of(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Objects and folders directly under the query's prefix, which is that of a folder.
fn listing(objects: &BTreeMap<String, Vec<u8>>, bucket: &str, query: &str) -> Vec<u8> {
    let prefix = query
        .split('&')
        .find_map(|q| q.strip_prefix("prefix="))
        .unwrap_or_default();
    let prefix = prefix.replace("%2F", "/").replace("%2f", "/");
    let within = format!("{}/", bucket.trim_end_matches('/'));
    let mut text = "<ListBucketResult>".to_owned();
    let mut folders = BTreeSet::new();
    for (path, bytes) in objects {
        let Some(key) = path.strip_prefix(&within) else {
            continue;
        };
        match key.strip_prefix(&prefix).map(|rest| rest.split_once('/')) {
            Some(Some((folder, _))) => drop(folders.insert(format!("{prefix}{folder}/"))),
            Some(None) => {
                text += &format!(
                    "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><Size>{}</Size></Contents>",
                    bytes.len()
                );
            }
            None => (),
        }
    }
    for folder in folders {
        text += &format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>");
    }
    (text + "</ListBucketResult>").into_bytes()
}

fn xml(code: &str, message: &str) -> Vec<u8> {
    format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>").into_bytes()
}

/// A server with TLS and a certificate that signs itself; answers each request with two bytes.
pub fn tls_server() -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, tcp);
            let mut request = Vec::new();
            let mut byte = [0];
            // A client that does not trust the certificate ends here.
            while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                request.push(byte[0]);
            }
            let head =
                "Content-Length: 2\r\nETag: \"x\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: close";
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\nhi");
            let _ = stream.flush();
        }
    });
    (port, made.cert.pem())
}
