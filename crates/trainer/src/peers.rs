//! The other processes of this attempt, as the flow sees them: waited for, told, and lost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::trainer::TrainerConfig;
use flywheel_learn::Collective;
use flywheel_learn::device::TensorDevice;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::link::{self, Door, End, Identity, Message, Saying, View};
use crate::place::{self, Place};
use crate::tracker::Tracker;

/// Between two signs of work while waiting: the others are known to live, or are still looked for.
const BEAT: Duration = Duration::from_secs(1);
/// How long a last word may take to be said.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long the reason may take to come after the connection of the tensors broke.
const CAUSE: Duration = Duration::from_secs(1);

/// The others.
pub(crate) struct Peers {
    place: Place,
    /// Where process 0 is found, for processes of this pod.
    address: String,
    view: watch::Receiver<View>,
    say: mpsc::Sender<Saying>,
    /// Process 0 needs nobody any more.
    on_own: AtomicBool,
}

impl Peers {
    /// Begins to look for the others; `given` is the rendezvous that a process of the same pod was told.
    pub(crate) fn start(place: Place, config: &TrainerConfig, given: Option<&str>) -> Result<Self, Failure> {
        let named = given.or(config.world.rendezvous.as_deref());
        let (door, address) = if place.is_first() {
            // With one pod nobody else is to find it.
            let (host, port) = match named {
                Some(named) => (None, place::rendezvous(named).1),
                None => (Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0),
            };
            let failure = |e: std::io::Error| {
                Failure::new(
                    FailureReason::InternalError,
                    format!("cannot listen on port {port} for the other processes: {e}"),
                )
            };
            let listener = listen(host, port).map_err(failure)?;
            listener.set_nonblocking(true).map_err(failure)?;
            let port = listener.local_addr().map_err(failure)?.port();
            let address = named.map_or_else(|| format!("{}:{port}", Ipv4Addr::LOCALHOST), str::to_owned);
            (Door::Listen(listener), address)
        } else {
            let named = named.ok_or_else(|| {
                Failure::new(
                    FailureReason::ConfigInvalid,
                    "world.rendezvous is not given; with several nodes it names the host of node 0",
                )
            })?;
            let (host, port) = place::rendezvous(named);
            (Door::Connect(host, port), named.to_owned())
        };
        let (view, say) = link::start(Identity::new(&config.job, &place), door)?;
        Ok(Self {
            place,
            address,
            view,
            say,
            on_own: AtomicBool::new(false),
        })
    }

    /// This process's place.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Where the other processes of this pod find process 0.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Does `work`, unless the others make it vain. A process that is not the first ends when process 0 says so.
    pub(crate) async fn beside<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
        done: impl FnOnce() -> T,
    ) -> Result<T, Failure> {
        tokio::select! {
            // What another process says is the cause of what this one sees.
            biased;
            end = self.end() => match end {
                End::Done => Ok(done()),
                End::Failed(failure) => Err(failure),
            },
            outcome = work => match outcome {
                Err(failure) if failure.reason == FailureReason::PeerLost => {
                    match timeout(CAUSE, self.end()).await {
                        Ok(End::Failed(cause)) => Err(cause),
                        _ => Err(failure),
                    }
                }
                outcome => outcome,
            },
        }
    }

    /// How it ended for the others; never, where process 0 needs them no more.
    async fn end(&self) -> End {
        let mut view = self.view.clone();
        loop {
            let end = view.borrow_and_update().end.clone();
            match end {
                Some(end) if !self.on_own.load(Ordering::SeqCst) => return end,
                _ => (),
            }
            if view.changed().await.is_err() {
                return End::Failed(ended_badly());
            }
        }
    }

    /// Waits until all processes are there.
    pub(crate) async fn joined(&self, tracker: &Tracker) -> Result<(), Failure> {
        self.until(tracker, |view| view.joined.then_some(())).await
    }

    /// Says that this process is ready to train, and waits for where to meet, or (process 0) until all are ready.
    pub(crate) async fn ready(&self, tracker: &Tracker) -> Result<Meeting, Failure> {
        let place = self.place;
        if place.is_first() {
            let all = place.size as usize - 1;
            let own = self
                .until(tracker, |view| view.own.filter(|_| view.ready.len() == all))
                .await?;
            return Ok(Meeting { place, own, at: None });
        }
        self.say(Message::Ready).await;
        let found = |view: &View| Some((view.own?, view.host?, view.meet?));
        let (own, host, port) = self.until(tracker, found).await?;
        Ok(Meeting {
            place,
            own,
            at: Some((host, port)),
        })
    }

    async fn until<T>(&self, tracker: &Tracker, wanted: impl Fn(&View) -> Option<T>) -> Result<T, Failure> {
        let mut view = self.view.clone();
        loop {
            if let Some(found) = wanted(&view.borrow_and_update()) {
                return Ok(found);
            }
            // An end is told by `beside`.
            match timeout(BEAT, view.changed()).await {
                Ok(Ok(())) | Err(_) => tracker.beat(),
                Ok(Err(_)) => return Err(ended_badly()),
            }
        }
    }

    /// Tells the others where to meet; for the tensor thread of process 0.
    pub(crate) fn announce(&self, port: u16) {
        let (said, _) = oneshot::channel();
        // It fails only where the thread is gone, which `until` and `end` tell.
        let _ = self.say.try_send((Message::Meet(port), said));
    }

    /// From now on it does not matter whether the others live: training is over, and process 0 has all that remains to be
    /// done.
    pub(crate) fn need_nobody(&self) {
        self.on_own.store(true, Ordering::SeqCst);
    }

    /// Waits for process 0 to end.
    pub(crate) async fn wait(&self, tracker: &Tracker) -> Result<(), Failure> {
        // It ends by `beside`.
        self.until(tracker, |_| None).await
    }

    /// Tells the others how it ended here.
    pub(crate) async fn part<T>(&self, outcome: &Result<T, Failure>) {
        match outcome {
            Ok(_) if self.place.is_first() => self.say(Message::Done).await,
            Ok(_) => (),
            Err(failure) => self.say(Message::Failed(failure.clone())).await,
        }
    }

    async fn say(&self, message: Message) {
        let (said, heard) = oneshot::channel();
        let saying = async {
            if self.say.send((message, said)).await.is_ok() {
                let _ = heard.await;
            }
        };
        if timeout(LAST_WORD, saying).await.is_err() {
            tracing::warn!("the other processes could not be told in time");
        }
    }
}

/// How a process that is ready joins the others.
pub(crate) struct Meeting {
    place: Place,
    own: IpAddr,
    /// Process 0's address and port; none for itself.
    at: Option<(IpAddr, u16)>,
}

impl Meeting {
    /// Joins; for the tensor thread.
    pub(crate) fn join(&self, peers: &Peers, device: TensorDevice) -> flywheel_learn::Result<Collective> {
        let place = self.place;
        match self.at {
            None => Collective::host(place.size, self.own, device, |port| peers.announce(port)),
            Some(host) => Collective::join(place.rank, place.size, host, self.own, device),
        }
    }
}

fn ended_badly() -> Failure {
    Failure::new(
        FailureReason::InternalError,
        "the thread that watches the other processes ended; please report it",
    )
}

/// On one address, or on all addresses of both families, or of IPv4 where the node has no IPv6.
fn listen(host: Option<IpAddr>, port: u16) -> std::io::Result<TcpListener> {
    match host {
        Some(host) => TcpListener::bind(SocketAddr::new(host, port)),
        None => TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))),
    }
}
