//! The connections between process 0 and the others: who is there, who still lives, what has happened.
//!
//! They are apart from those that carry numbers, and run on a thread of their own: a process that waits in libtorch for one
//! that is gone would wait for long. Process 0 listens at the rendezvous; every other one connects. Both say something each
//! second, and who is silent for [`SILENCE_MAX`] is gone, as is who closes the connection. A process that fails says why.
//!
//! What a peer says has a length of two bytes before it, is JSON, and is believed only as far as it makes sense.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flywheel_contract::SCHEMA_VERSION;
use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::trainer::JobIdentity;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::place::Place;

/// How often both sides say something.
const BEAT: Duration = Duration::from_secs(1);
/// Silence after which a peer is gone. With what follows, all processes end within ten seconds.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// How long processes wait for each other at the start: pods may be started one after the other, on nodes that have to pull
/// the image first.
const MEET_WITHIN: Duration = Duration::from_secs(600);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(500);
/// One try, and the exchange of greetings.
const GREET_WITHIN: Duration = Duration::from_secs(5);
/// One message to one peer.
const WRITE_WITHIN: Duration = Duration::from_secs(1);
/// Most connections that have not said yet who they are.
const GREETING_MAX: usize = 64;
/// Most bytes of a message.
const MESSAGE_MAX_BYTES: usize = 16 * 1024;
/// Most characters of a failure's text that are passed on.
const TEXT_MAX_CHARS: usize = 2000;
/// Messages that wait to be heard or said.
const QUEUE: usize = 64;

/// What processes tell each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The first word of one that connects.
    Hello(Identity),
    /// The answer of process 0.
    Welcome,
    /// The other answer, with the reason.
    Refused(String),
    /// Nothing new.
    Beat,
    /// It has read its data and is ready to train.
    Ready,
    /// Process 0: all are ready; this is the port at which they meet.
    Meet(u16),
    /// Process 0: the result is committed.
    Done,
    /// It cannot go on.
    Failed(Failure),
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    version: u32,
    uid: String,
    attempt: u32,
    rank: u32,
    size: u32,
}

impl Identity {
    pub(crate) fn new(job: &JobIdentity, place: &Place) -> Self {
        Self {
            version: SCHEMA_VERSION,
            uid: job.uid.clone(),
            attempt: job.attempt,
            rank: place.rank,
            size: place.size,
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// The result is committed.
    Done,
    /// A process is gone or cannot go on.
    Failed(Failure),
}

/// What is known of the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// All of them are there.
    pub(crate) joined: bool,
    /// This host's address as others reach it.
    pub(crate) own: Option<IpAddr>,
    /// Process 0's address.
    pub(crate) host: Option<IpAddr>,
    /// Those that are ready to train.
    pub(crate) ready: BTreeSet<u32>,
    /// Where to meet.
    pub(crate) meet: Option<u16>,
    /// Set once.
    pub(crate) end: Option<End>,
}

/// A message for everybody, or for process 0; answered when it is sent.
pub(crate) type Saying = (Message, oneshot::Sender<()>);

/// Where this process finds the others.
pub(crate) enum Door {
    /// Process 0 listens.
    Listen(std::net::TcpListener),
    /// The others connect to this host and port.
    Connect(String, u16),
}

/// Starts the thread. It ends with the process, or when nobody can say anything any more.
pub(crate) fn start(identity: Identity, door: Door) -> Result<(watch::Receiver<View>, mpsc::Sender<Saying>), Failure> {
    let internal = |e: io::Error| {
        Failure::new(
            FailureReason::InternalError,
            format!("no thread for the other processes: {e}"),
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(internal)?;
    let (show, view) = watch::channel(View::default());
    let (say, sayings) = mpsc::channel(QUEUE);
    std::thread::Builder::new()
        .name("peers".to_owned())
        .spawn(move || runtime.block_on(Link::new(identity, show).run(door, sayings)))
        .map_err(internal)?;
    Ok((view, say))
}

/// A connection after the greeting.
struct Peer {
    to: OwnedWriteHalf,
    heard: Instant,
}

/// What came from a peer.
type Heard = (u32, io::Result<Message>);

struct Link {
    identity: Identity,
    show: watch::Sender<View>,
    peers: BTreeMap<u32, Peer>,
    heard: mpsc::Receiver<Heard>,
    /// For those who listen.
    hear: mpsc::Sender<Heard>,
    began: Instant,
}

impl Link {
    fn new(identity: Identity, show: watch::Sender<View>) -> Self {
        let (hear, heard) = mpsc::channel(QUEUE);
        Self {
            identity,
            show,
            peers: BTreeMap::new(),
            heard,
            hear,
            began: Instant::now(),
        }
    }

    async fn run(mut self, door: Door, mut sayings: mpsc::Receiver<Saying>) {
        let mut listener = None;
        match door {
            Door::Listen(listening) => match TcpListener::from_std(listening) {
                Ok(listening) => listener = Some(listening),
                Err(e) => self.fail(
                    FailureReason::InternalError,
                    format!("cannot listen for the other processes: {e}"),
                ),
            },
            Door::Connect(host, port) => match connect(&self.identity, &host, port).await {
                Ok(stream) => {
                    self.show
                        .send_modify(|view| view.host = stream.peer_addr().ok().map(|a| a.ip().to_canonical()));
                    self.add(0, stream);
                    self.show.send_modify(|view| view.joined = true);
                }
                Err(failure) => self.end(End::Failed(failure)),
            },
        }
        let mut greetings: JoinSet<io::Result<(u32, TcpStream)>> = JoinSet::new();
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticked = Instant::now();
        loop {
            tokio::select! {
                // What has been said is heard before anybody is called silent.
                biased;
                Some((rank, message)) = self.heard.recv() => self.hear(rank, message),
                saying = sayings.recv() => match saying {
                    Some((message, said)) => {
                        self.say(&message).await;
                        let _ = said.send(());
                    }
                    None => return,
                },
                accepted = accept(listener.as_ref()), if greetings.len() < GREETING_MAX => match accepted {
                    Ok(stream) => {
                        greetings.spawn(greet(self.identity.clone(), stream));
                    }
                    // Out of file descriptors, say: not again at once.
                    Err(e) => {
                        tracing::warn!(error = %e, "a connection of another process could not be taken");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Some(greeted) = greetings.join_next() => {
                    match greeted {
                        Ok(Ok((rank, stream))) if !self.peers.contains_key(&rank) => self.add(rank, stream),
                        Ok(Ok((rank, _))) => tracing::warn!(rank, "a process came twice"),
                        Ok(Err(e)) => tracing::warn!(error = %e, "a connection is of no process of this attempt"),
                        Err(e) => tracing::warn!(error = %e, "a greeting ended badly"),
                    }
                    if self.missing().is_empty() {
                        listener = None;
                        self.show.send_modify(|view| view.joined = true);
                    }
                }
                _ = ticks.tick() => {
                    self.say(&Message::Beat).await;
                    // Who slept has not listened, and judges a second later.
                    let slept = ticked.elapsed() > SILENCE_MAX / 2;
                    ticked = Instant::now();
                    if !slept {
                        self.judge(listener.is_some());
                    }
                }
            }
        }
    }

    /// Takes a peer in.
    fn add(&mut self, rank: u32, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let own = stream.local_addr().ok().map(|a| a.ip().to_canonical());
        self.show.send_modify(|view| view.own = own);
        tracing::info!(rank, "another process is there");
        let (from, to) = stream.into_split();
        tokio::spawn(listen(rank, from, self.hear.clone()));
        let heard = Instant::now();
        self.peers.insert(rank, Peer { to, heard });
    }

    fn hear(&mut self, rank: u32, message: io::Result<Message>) {
        let first = self.identity.rank == 0;
        if let Some(peer) = self.peers.get_mut(&rank) {
            peer.heard = Instant::now();
        }
        match message {
            Ok(Message::Beat) => (),
            Ok(Message::Ready) if first => self.show.send_modify(|view| {
                view.ready.insert(rank);
            }),
            Ok(Message::Meet(port)) if !first => self.show.send_modify(|view| view.meet = Some(port)),
            Ok(Message::Done) if !first => self.end(End::Done),
            Ok(Message::Failed(failure)) => {
                let text = match first {
                    true => format!("process {rank} of {}: {}", self.identity.size, failure.message),
                    false => failure.message,
                };
                self.fail(failure.reason, text);
            }
            Ok(_) => self.gone(rank, "says what makes no sense"),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.gone(rank, "has ended"),
            Err(e) => self.gone(rank, &format!("cannot be heard any more ({e})")),
        }
    }

    /// Says something to all peers.
    async fn say(&mut self, message: &Message) {
        let mut unheard = Vec::new();
        for (rank, peer) in &mut self.peers {
            match timeout(WRITE_WITHIN, write(&mut peer.to, message)).await {
                Ok(Ok(())) => (),
                // Its reader tells the end of a connection; a full buffer is silence, which is judged by its length.
                Ok(Err(e)) => unheard.push((*rank, e)),
                Err(_) => tracing::warn!(rank, "another process does not listen"),
            }
        }
        for (rank, e) in unheard {
            self.gone(rank, &format!("cannot be reached any more ({e})"));
        }
    }

    fn judge(&mut self, gathering: bool) {
        let silent = |peer: &Peer| peer.heard.elapsed() >= SILENCE_MAX;
        if let Some(rank) = self.peers.iter().find(|(_, peer)| silent(peer)).map(|(rank, _)| *rank) {
            self.gone(rank, &format!("gave no sign of life for {} s", SILENCE_MAX.as_secs()));
        }
        if gathering && self.began.elapsed() >= MEET_WITHIN {
            let missing = self.missing();
            self.fail(
                FailureReason::PeerLost,
                format!(
                    "processes {missing:?} of {} did not come within {} s",
                    self.identity.size,
                    MEET_WITHIN.as_secs()
                ),
            );
        }
    }

    /// Ranks that process 0 waits for.
    fn missing(&self) -> Vec<u32> {
        (1..self.identity.size)
            .filter(|rank| !self.peers.contains_key(rank))
            .collect()
    }

    fn gone(&mut self, rank: u32, how: &str) {
        // A rank that is removed is not missed once all have been there.
        self.peers.remove(&rank);
        self.fail(
            FailureReason::PeerLost,
            format!("process {rank} of {} {how}", self.identity.size),
        );
    }

    fn fail(&mut self, reason: FailureReason, text: String) {
        self.end(End::Failed(Failure::new(reason, text)));
    }

    /// The first end is the one that counts: what follows is its consequence.
    fn end(&self, end: End) {
        self.show.send_if_modified(|view| {
            let first = view.end.is_none();
            if first {
                view.end = Some(end);
            }
            first
        });
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Process 0's side of a greeting.
async fn greet(us: Identity, mut stream: TcpStream) -> io::Result<(u32, TcpStream)> {
    let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let exchange = async {
        let Message::Hello(them) = read(&mut stream).await? else {
            return Err(wrong("it does not say who it is"));
        };
        let (rank, expected) = (them.rank, Identity { rank: 0, ..us });
        if (Identity { rank: 0, ..them }) != expected || rank == 0 || rank >= expected.size {
            let why = format!(
                "process 0 takes only the other {} of attempt {} of its job, by programs of its release",
                expected.size - 1,
                expected.attempt
            );
            write(&mut stream, &Message::Refused(why)).await?;
            return Err(wrong("it is of another attempt, job, release or number of processes"));
        }
        write(&mut stream, &Message::Welcome).await?;
        Ok(rank)
    };
    let rank = timeout(GREET_WITHIN, exchange).await??;
    Ok((rank, stream))
}

/// The other side: tries until process 0 is there.
async fn connect(us: &Identity, host: &str, port: u16) -> Result<TcpStream, Failure> {
    let begin = Instant::now();
    loop {
        let exchange = async {
            let mut stream = TcpStream::connect((host, port)).await?;
            write(&mut stream, &Message::Hello(us.clone())).await?;
            let answer = read(&mut stream).await?;
            Ok::<_, io::Error>((stream, answer))
        };
        let problem = match timeout(GREET_WITHIN, exchange).await {
            Ok(Ok((stream, Message::Welcome))) => return Ok(stream),
            Ok(Ok((_, Message::Refused(why)))) => why.chars().take(TEXT_MAX_CHARS).collect(),
            Ok(Ok(_)) => "what answers there is no trainer".to_owned(),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if begin.elapsed() >= MEET_WITHIN {
            return Err(Failure::new(
                FailureReason::PeerLost,
                format!(
                    "process 0 could not be reached at {host}:{port} within {} s: {problem}",
                    MEET_WITHIN.as_secs()
                ),
            ));
        }
        tracing::debug!(host, port, problem, "process 0 is not there yet");
        tokio::time::sleep(RETRY).await;
    }
}

/// Passes on what a peer says, to the end of its connection.
async fn listen(rank: u32, mut from: OwnedReadHalf, hear: mpsc::Sender<Heard>) {
    loop {
        let message = read(&mut from).await;
        let last = message.is_err();
        if hear.send((rank, message)).await.is_err() || last {
            return;
        }
    }
}

async fn read(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Message> {
    let length = usize::from(from.read_u16().await?);
    if length > MESSAGE_MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes"),
        ));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), message: &Message) -> io::Result<()> {
    let message = match message {
        Message::Failed(failure) => {
            let text: String = failure.message.chars().take(TEXT_MAX_CHARS).collect();
            &Message::Failed(Failure::new(failure.reason, text))
        }
        other => other,
    };
    let text = serde_json::to_vec(message)?;
    let length = u16::try_from(text.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    to.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn what_is_said_is_heard() {
        block_on(async {
            let (mut near, mut far) = tokio::io::duplex(2 * MESSAGE_MAX_BYTES);
            for message in [
                Message::Beat,
                Message::Meet(7),
                Message::Failed(Failure::new(FailureReason::Fenced, "x")),
            ] {
                write(&mut near, &message).await.unwrap();
                assert_eq!(read(&mut far).await.unwrap(), message);
            }
            // The longest text, of what takes most room, is cut to what is read.
            let long = Message::Failed(Failure::new(FailureReason::InternalError, "\u{1}".repeat(100_000)));
            write(&mut near, &long).await.unwrap();
            let Message::Failed(heard) = read(&mut far).await.unwrap() else {
                panic!("something else")
            };
            assert_eq!(heard.message.chars().count(), TEXT_MAX_CHARS);
        });
    }

    #[test]
    fn what_makes_no_message_is_an_error_and_takes_no_room() {
        block_on(async {
            for bytes in [
                &b"\xff\xff"[..],
                b"\x00\x02{}",
                b"\x00\x09\"Dance\"  ",
                b"\x00\x05\"Be",
                b"\x00",
            ] {
                let (mut near, mut far) = tokio::io::duplex(64);
                near.write_all(bytes).await.unwrap();
                drop(near);
                read(&mut far).await.unwrap_err();
            }
        });
    }
}
