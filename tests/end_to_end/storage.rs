//! The object store's faults: proxies in this process, on the machine's own address of the cluster's bridge, where pods
//! reach them as they reach the object store itself. And what lies in the store.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use serde_json::Value;

use crate::bench::NAMESPACE;
use crate::cluster::{self, need};

/// How often a proxy looks whether something changed.
const LOOK: Duration = Duration::from_millis(20);

/// What a proxy does to the traffic. `part` is a part of "METHOD /bucket/key".
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Passes all on.
    None,
    /// Takes connections and never answers.
    Silent,
    /// Answers come in pieces of so many bytes, with a pause before each.
    Drip {
        part: &'static str,
        bytes: usize,
        pause: Duration,
    },
    /// Each answer comes later by this.
    Late(Duration),
    /// After so many bytes of such an answer the store is gone: every connection breaks, and new ones are refused.
    Leaves { part: &'static str, after: usize },
    /// Requests of this method for such a key wait until the fault changes.
    Hold { method: &'static str, part: &'static str },
}

impl Fault {
    fn holds(self, request: &str) -> bool {
        matches!(self, Self::Hold { method, part } if request.starts_with(method) && request.contains(part))
    }
}

/// A proxy in front of the object store; ends with its value.
pub struct Proxy {
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    address: SocketAddr,
    store: SocketAddr,
    fault: Mutex<Fault>,
    /// Whether the port is open.
    here: AtomicBool,
    held: AtomicUsize,
    requests: Mutex<Vec<String>>,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn start(fault: Fault) -> Self {
        let store: SocketAddr = need("FLYWHEEL_S3_ENDPOINT")
            .trim_start_matches("http://")
            .parse()
            .expect("FLYWHEEL_S3_ENDPOINT is http://address:port");
        let listener = TcpListener::bind((store.ip(), 0)).expect("a free port beside the object store's");
        let proxy = Self {
            shared: Arc::new(Shared {
                address: listener.local_addr().expect("own address"),
                store,
                fault: Mutex::new(fault),
                here: AtomicBool::new(true),
                held: AtomicUsize::new(0),
                requests: Mutex::default(),
                connections: Mutex::default(),
            }),
            accepting: Mutex::new(None),
        };
        proxy.accept(listener);
        proxy
    }

    fn accept(&self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        listener.set_nonblocking(true).expect("a listener that can be asked");
        let task = spawn(move || {
            while shared.here.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((client, _)) => {
                        let shared = Arc::clone(&shared);
                        // A pod that goes away in the middle is no failure of the proxy.
                        spawn(move || drop(relay(&shared, client)));
                    }
                    Err(_) => sleep(LOOK),
                }
            }
        });
        *self.accepting.lock().unwrap() = Some(task);
    }

    /// `storage.endpoint` of objects that reach the store through this proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Whether a request is held.
    pub fn holds(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst) > 0
    }

    /// Whether the port is closed.
    pub fn is_gone(&self) -> bool {
        !self.shared.here.load(Ordering::SeqCst)
    }

    /// Closes the port and breaks what is connected.
    pub fn leave(&self) {
        self.shared.leave();
    }

    /// Opens the port again, and passes all on.
    pub fn come_back(&self) {
        self.shared.leave();
        if let Some(task) = self.accepting.lock().unwrap().take() {
            task.join().expect("the proxy's thread");
        }
        self.set(Fault::None);
        let listener = TcpListener::bind(self.shared.address).expect("the port is free again");
        self.shared.here.store(true, Ordering::SeqCst);
        self.accept(listener);
    }

    /// "METHOD /bucket/key" of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Fault::None);
        self.shared.leave();
    }
}

impl Shared {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    fn leave(&self) {
        self.here.store(false, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn keep(&self, connection: &TcpStream) -> std::io::Result<()> {
        self.connections.lock().unwrap().push(connection.try_clone()?);
        Ok(())
    }
}

/// One connection, until either side ends it.
fn relay(shared: &Arc<Shared>, mut client: TcpStream) -> std::io::Result<()> {
    shared.keep(&client)?;
    if !shared.here.load(Ordering::SeqCst) {
        return client.shutdown(Shutdown::Both);
    }
    client.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    if matches!(shared.fault(), Fault::Silent) {
        while client.read(&mut buffer)? > 0 {}
        return Ok(());
    }
    let mut store = TcpStream::connect(shared.store)?;
    store.set_nodelay(true)?;
    shared.keep(&store)?;
    let request = Arc::new(Mutex::new(String::new()));
    {
        let (shared, request) = (Arc::clone(shared), Arc::clone(&request));
        let (from, to) = (store.try_clone()?, client.try_clone()?);
        spawn(move || {
            let _ = answers(&shared, &request, &from, &to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    loop {
        let n = client.read(&mut buffer)?;
        if n == 0 {
            let _ = store.shutdown(Shutdown::Write);
            return Ok(());
        }
        // The next request of a connection comes only after the answer to the one before, so it begins a piece.
        if let Some(line) = request_line(&buffer[..n]) {
            shared.requests.lock().unwrap().push(line.clone());
            *request.lock().unwrap() = line.clone();
            if shared.fault().holds(&line) {
                shared.held.fetch_add(1, Ordering::SeqCst);
                while shared.fault().holds(&line) {
                    sleep(LOOK);
                }
                shared.held.fetch_sub(1, Ordering::SeqCst);
            }
        }
        store.write_all(&buffer[..n])?;
    }
}

/// "METHOD /path" where bytes begin with a request.
fn request_line(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|b| *b == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, path, version) = (words.next()?, words.next()?, words.next()?);
    let known = ["GET", "HEAD", "PUT", "POST", "DELETE"].contains(&method) && version.starts_with("HTTP/");
    known.then(|| format!("{method} {}", path.split('?').next().unwrap_or(path)))
}

fn answers(
    shared: &Shared,
    request: &Mutex<String>,
    mut store: &TcpStream,
    mut client: &TcpStream,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    // The request that is being answered, and the bytes of its answer so far.
    let (mut answered, mut sent) = (String::new(), 0);
    loop {
        let n = store.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        let line = request.lock().unwrap().clone();
        let first = line != answered;
        if first {
            (answered, sent) = (line, 0);
        }
        match shared.fault() {
            Fault::Drip { part, bytes, pause } if answered.contains(part) => {
                for piece in buffer[..n].chunks(bytes) {
                    sleep(pause);
                    client.write_all(piece)?;
                }
            }
            Fault::Leaves { part, after } if answered.contains(part) && sent + n > after => {
                client.write_all(&buffer[..after - sent.min(after)])?;
                shared.leave();
                return Ok(());
            }
            Fault::Late(pause) if first => {
                sleep(pause);
                client.write_all(&buffer[..n])?;
            }
            _ => client.write_all(&buffer[..n])?,
        }
        sent += n;
    }
}

/// Makes, changes or looks at what lies in the rows' bucket.
pub fn bucket(arguments: &[&str]) -> String {
    cluster::bucket(NAMESPACE, arguments)
}

/// Sha256 of every object under a prefix, by key.
pub fn digests(prefix: &str) -> BTreeMap<String, String> {
    let list: Value = serde_json::from_str(&bucket(&["digests", prefix])).expect("JSON");
    let list = list.as_object().expect("an object of digests");
    list.iter()
        .map(|(key, digest)| (key.clone(), digest.as_str().expect("a digest").to_owned()))
        .collect()
}
