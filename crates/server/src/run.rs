//! The order of a pod's life: ports, version, requests, drain.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::names::{DATA_PORT, INSIDE_PORT};
use flywheel_contract::serving::ServingConfig;
use flywheel_store::Limits;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::app::{App, Phase};
use crate::feedback::{Receipts, own_address};
use crate::follow::{Source, follow};
use crate::tls::Tls;
use crate::traces::Traces;
use crate::{connection, http};

/// Most connections of the data port at once.
const DATA_CONNECTIONS: u32 = 1024;
/// Most connections of the inside port at once; the operator and monitoring need a handful, and other pods some to pass feedback on.
const INSIDE_CONNECTIONS: u32 = 128;
/// Connections that the kernel keeps until they are accepted; tokio's own number.
const WAITING_CONNECTIONS: i32 = 1024;
/// How long requests are still answered after the signal to end, since clients hear of it a little later. The pod's
/// preStop hook has waited before the signal already.
const LEAVE: Duration = Duration::from_secs(2);
/// How long the requests that have begun may take from then on.
const DRAIN: Duration = Duration::from_secs(20);
/// How long answers may take to leave.
const CLOSE: Duration = Duration::from_secs(2);

/// Settings of the process, beside what the operator configures.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the artifact cache.
    pub scratch: PathBuf,
    /// How long the storage is waited for.
    pub storage_limits: Limits,
    /// Tries to fetch the artifact while the storage does not answer; at least 1.
    pub load_tries: u32,
}

/// The two ports.
pub struct Listeners {
    /// For clients.
    pub data: TcpListener,
    /// For the operator and monitoring.
    pub inside: TcpListener,
}

impl Listeners {
    /// Binds both; without an address the usual port on all addresses of both families, or of IPv4 where there is no
    /// IPv6.
    ///
    /// # Errors
    /// `InternalError` with the address.
    pub fn bind(data: Option<SocketAddr>, inside: Option<SocketAddr>) -> Result<Self, Failure> {
        let listeners = Self {
            data: bind(data, DATA_PORT)?,
            inside: bind(inside, INSIDE_PORT)?,
        };
        let address = |listener: &TcpListener| listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
        tracing::info!(
            data = address(&listeners.data),
            inside = address(&listeners.inside),
            "listening"
        );
        Ok(listeners)
    }
}

fn bind(address: Option<SocketAddr>, port: u16) -> Result<TcpListener, Failure> {
    let one = |address: SocketAddr| {
        listen(address).map_err(|e| {
            Failure::new(
                FailureReason::InternalError,
                format!("cannot listen on {address}: {e}; free the port or give another address"),
            )
        })
    };
    match address {
        Some(address) => one(address),
        None => one(SocketAddr::from(([0_u16; 8], port))).or_else(|_| one(SocketAddr::from(([0_u8; 4], port)))),
    }
}

/// Takes an address; the unspecified one of IPv6 takes IPv4 as well, however the node is set (`net.ipv6.bindv6only`).
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // As tokio does: a program that starts again finds its port free at once.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(WAITING_CONNECTIONS)?;
    TcpListener::from_std(socket.into())
}

/// Both ports, being served.
pub struct Server {
    app: Arc<App>,
    accepting: Vec<JoinHandle<()>>,
    places: [(Arc<Semaphore>, u32); 2],
}

impl Server {
    /// Begins to answer, on the data port with TLS where it is given; `/predict` and `/readyz` say 503 until a version is
    /// installed.
    #[must_use]
    pub fn start(app: &Arc<App>, listeners: Listeners, tls: Option<&Tls>) -> Self {
        let places = [DATA_CONNECTIONS, INSIDE_CONNECTIONS].map(|n| (Arc::new(Semaphore::new(n as usize)), n));
        let routers = [http::data_router(Arc::clone(app)), http::inside_router(Arc::clone(app))];
        let accepting = [(listeners.data, tls.map(Tls::acceptor)), (listeners.inside, None)]
            .into_iter()
            .zip(routers)
            .zip(&places)
            .map(|(((listener, tls), router), (places, _))| {
                let (phases, places) = (app.phases(), Arc::clone(places));
                tokio::spawn(connection::accept(listener, tls, router, phases, places))
            })
            .collect();
        Self {
            app: Arc::clone(app),
            accepting,
            places,
        }
    }

    /// Ends: unready at once, then [`LEAVE`] of answering as before, then only what has begun, at most [`DRAIN`], then
    /// connections are closed. 24 s in all, and the last texts that are kept have 2 s after that, as spans have. The pod's grace covers all, and its preStop hook.
    pub async fn drain(self) {
        self.app.advance(Phase::Leaving);
        tracing::info!("told to end; unready, still answering");
        sleep(LEAVE).await;
        self.app.advance(Phase::Draining);
        let mut requests = self.app.requests.subscribe();
        if timeout(DRAIN, requests.wait_for(|n| *n == 0)).await.is_err() {
            let left = *self.app.requests.borrow();
            tracing::warn!(requests = left, "ending before these requests are answered");
        }
        self.app.advance(Phase::Closing);
        let closed = async {
            for (places, count) in &self.places {
                // All places free is no connection left. Waiters come first, so no new one gets a place from now on.
                let _ = places.acquire_many(*count).await;
            }
        };
        let _ = timeout(CLOSE, closed).await;
        if let Some(feedback) = &self.app.feedback {
            feedback.flush().await;
        }
        for task in self.accepting {
            task.abort();
            // The port is free only once the task is gone.
            let _ = task.await;
        }
        tracing::info!("drained");
    }
}

/// Serves what the assignment says until `stop` resolves, and drains then.
///
/// # Errors
/// Why nothing can answer, or that the device works no more: the process must end with it.
pub async fn serve(
    config: &ServingConfig,
    source: &Source,
    listeners: Listeners,
    options: &Options,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let tls = match &config.tls {
        Some(files) => Some(Tls::load(files).await?),
        None => None,
    };
    let port = listeners.data.local_addr().map_or(DATA_PORT, |address| address.port());
    let traces = Traces::from_environment(&config.service, tls.is_some(), port);
    let address = own_address(listeners.inside.local_addr().ok());
    let receipts = Receipts::open(config, address, options.storage_limits).await?;
    let (app, mut broken) = App::new(config, source.outlived_in(options), traces, receipts);
    let server = Server::start(&app, listeners, tls.as_ref());
    let renewals = async {
        match &tls {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    };
    let mut stop = pin!(stop);
    let ended = tokio::select! {
        failed = Box::pin(follow(&app, config, options, source)) => match failed {
            Err(failure) => Err(failure),
        },
        Some(failure) = broken.recv() => Err(failure),
        never = renewals => match never {},
        () = &mut stop => {
            // Without a version there is nobody to answer and nothing to wait for.
            if app.phase() >= Phase::Ready {
                server.drain().await;
            }
            app.leave();
            Ok(())
        }
    };
    if ended.is_err() {
        app.advance(Phase::Draining);
    }
    if app.traces.is_some() {
        // The library waits for its own thread.
        let flush = move || app.traces.iter().for_each(Traces::flush);
        let _ = tokio::task::spawn_blocking(flush).await;
    }
    ended
}
