//! The operator as a process: told to end while it starts, lost in all ways while its standby is not, killed before and after
//! each of its writes, before a server with too much to do, and with a training of several nodes beside the real Job controller.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers, too, end the test by a panic"
)]

#[path = "process/crash_points.rs"]
mod crash_points;
#[path = "process/kubelet.rs"]
mod kubelet;
#[path = "process/overload.rs"]
mod overload;
mod plane;
#[path = "process/several_nodes.rs"]
mod several_nodes;
#[path = "process/takeover.rs"]
mod takeover;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use flywheel_testkit::Proxy;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use plane::{Plane, root};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// Namespace of the Lease.
const NAMESPACE: &str = "flywheel-system";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/flywheel-system/leases/flywheel-operator";
/// Longest wait for what takes a moment.
const SOON: Duration = Duration::from_secs(60);
/// How long a lease lasts without being renewed.
const LEASE_DURATION: SignedDuration = SignedDuration::from_secs(15);

const SETTINGS: &str = "
verifierImage: localhost/flywheel-trainer:dev
acceleratorClasses:
  a100:
    resource: nvidia.com/gpu
    trainerImage: localhost/flywheel-trainer:dev
    serverImage: localhost/flywheel-server:dev
    device: Cpu
";

/// A process of the operator. Ends when dropped.
struct Operator {
    child: Child,
    /// What it logs.
    lines: mpsc::Receiver<String>,
}

impl Operator {
    /// Starts one for all namespaces with its files in this folder.
    fn start(folder: &Path, identity: &str, kubeconfig: &str) -> Self {
        Self::run(command(folder, NAMESPACE, SETTINGS, identity, kubeconfig), identity)
    }

    /// Starts one that works in one namespace, where its Lease is as well, so that many can work beside each other.
    fn start_in(namespace: &str, folder: &Path, identity: &str, kubeconfig: &str) -> Self {
        let settings = format!("namespaces: [{namespace}]\n{SETTINGS}");
        Self::run(command(folder, namespace, &settings, identity, kubeconfig), identity)
    }

    fn run(mut command: Command, identity: &str) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let log = BufReader::new(child.stdout.take().unwrap());
        let name = identity.to_owned();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                println!("{name}: {line}");
                // The test may have ended.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Waits until it logs this.
    fn until_it_says(&self, words: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("it did not say: {words}"));
            if line.contains(words) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it at once.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ends, within this time.
    async fn end(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it still runs after {within:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The operator's command line, with its files in this folder.
fn command(folder: &Path, namespace: &str, settings: &str, identity: &str, kubeconfig: &str) -> Command {
    let file = |kind: &str| folder.join(format!("{identity}.{kind}"));
    std::fs::write(file("settings"), settings).unwrap();
    std::fs::write(file("kubeconfig"), kubeconfig).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flywheel-operator"));
    command
        .args(["--admin-addr=127.0.0.1:0", "--log-format=text"])
        .args(["--lease-namespace", namespace, "--identity", identity])
        .arg("--settings")
        .arg(file("settings"))
        .env("KUBECONFIG", file("kubeconfig"))
        .env("RUST_LOG", "info")
        .stdout(Stdio::piped());
    command
}

fn kubeconfig(server: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]
    })
    .to_string()
}

/// An API server that answers `answered` requests with an empty list and then never again; tells how many have come.
fn falls_silent(listener: TcpListener, answered: usize) -> watch::Receiver<usize> {
    let (count, seen) = watch::channel(0);
    let answer = move || {
        let count = count.clone();
        async move {
            let mut number = 0;
            count.send_modify(|n| {
                *n += 1;
                number = *n;
            });
            if number > answered {
                std::future::pending::<()>().await;
            }
            axum::Json(json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}))
        }
    };
    tokio::spawn(async move {
        axum::serve(listener, axum::Router::new().fallback(answer))
            .await
            .unwrap();
    });
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_while_it_starts_it_ends_at_once() {
    // While it asks whether the CRDs are there; and while it fills its caches.
    for answered in [0, 3] {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut seen = falls_silent(listener, answered);
        let mut operator = Operator::start(folder.path(), "a", &kubeconfig(&format!("http://{address}")));
        let started = seen.wait_for(|requests| *requests > answered);
        tokio::time::timeout(SOON, started).await.expect("a request").unwrap();
        operator.terminate();
        let status = operator.end(Duration::from_secs(2)).await;
        assert_eq!(status.code(), Some(0), "after {answered} answers: {status}");
    }
}

/// A process that ended would be started again after up to five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_at_the_start_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    // Bound and not listening: connections are refused, and nobody else gets the port.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let mut operator = Operator::start(folder.path(), "a", &kubeconfig(&format!("http://{address}")));
    operator.until_it_says("does not answer yet");
    let mut seen = falls_silent(socket.listen(16).unwrap(), 3);
    let filling = seen.wait_for(|requests| *requests > 3);
    tokio::time::timeout(SOON, filling).await.expect("it goes on").unwrap();
    operator.terminate();
    assert!(operator.end(Duration::from_secs(2)).await.success());
}

/// Passes connections on to an API server, until it is cut: then all stay open, and nothing moves.
struct Wire {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        biased;
                        _ = is_cut.wait_for(|cut| *cut) => {}
                        _ = copy_bidirectional(&mut near, &mut far) => return,
                    }
                    // Both ends are kept, so that neither learns of it.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, cut }
    }
}

/// An API server that serves our kinds, with the namespaces of the operator and of a team; with `controllers`, Kubernetes'
/// own run as well.
async fn plane_with_crds(controllers: bool) -> Plane {
    with_crds(Plane::start(controllers).await).await
}

async fn with_crds(plane: Plane) -> Plane {
    plane.ctl(&["apply", "--server-side", "-f", root().join("crds").to_str().unwrap()]);
    for kind in ["trainingjobs", "modelversions", "inferenceservices"] {
        let path = format!("/apis/flywheel.dev/v1alpha1/{kind}");
        plane
            .until(kind, || async { plane.send(Method::GET, &path, None).await.ok() })
            .await;
    }
    for namespace in [NAMESPACE, "team"] {
        plane
            .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
            .await;
    }
    plane
}

/// A namespace in which pods can be made.
async fn namespace_with_account(plane: &Plane, namespace: &str) {
    plane
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
        .await;
    let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    plane
        .until(&account, || async {
            plane.send(Method::GET, &account, None).await.ok()
        })
        .await;
}

/// A proxy before this API server, which passes on what it hears.
async fn proxy(plane: &Plane) -> Proxy {
    let kubeconfig = Kubeconfig::read_from(plane.control.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.unwrap();
    config.default_retry = false;
    config.read_timeout = None;
    Proxy::start(Client::try_from(config).unwrap()).await
}

/// The Lease as it stands.
async fn lease(plane: &Plane) -> Option<Value> {
    plane.send(Method::GET, LEASE, None).await.ok()
}

fn time(lease: &Value, field: &str) -> Timestamp {
    lease["spec"][field].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_ends_and_its_standby_goes_on() {
    let plane = plane_with_crds(false).await;
    let folder = tempfile::tempdir().unwrap();
    let direct = std::fs::read_to_string(plane.control.kubeconfig()).unwrap();
    let server = plane.control.server();
    let wire = Wire::to(server.trim_start_matches("https://").parse().unwrap()).await;
    let by_wire = direct.replace(server, &format!("https://{}", wire.address));

    let mut leader = Operator::start(folder.path(), "a", &by_wire);
    let held_by = |who: &'static str| {
        let plane = &plane;
        async move {
            lease(plane)
                .await
                .filter(|lease| lease["spec"]["holderIdentity"] == who)
        }
    };
    plane.until("a leads", || held_by("a")).await;
    let standby = Operator::start(folder.path(), "b", &direct);
    standby.until_it_says("the caches are filled");
    // Two renewals that the standby sees.
    let first = time(&held_by("a").await.unwrap(), "renewTime");
    let renewed = |lease: Value| (time(&lease, "renewTime") > first + SignedDuration::from_secs(3)).then_some(());
    plane
        .until("renewed", || async { held_by("a").await.and_then(renewed) })
        .await;

    wire.cut.send_replace(true);
    let cut = Timestamp::now();
    let status = leader.end(Duration::from_secs(20)).await;
    let ended = Timestamp::now();
    let last = lease(&plane).await.unwrap();
    assert_eq!(
        last["spec"]["holderIdentity"], "a",
        "nobody began before the leader had ended"
    );
    let last = time(&last, "renewTime");
    assert_eq!(status.code(), Some(1), "it ends to start again as a standby");
    let after = ended.duration_since(last);
    assert!(
        after < LEASE_DURATION,
        "the old leader ended {after:#} after its last renewal"
    );

    let taken = plane.until("b leads", || held_by("b")).await;
    // All clocks are one here.
    let acquired = time(&taken, "acquireTime");
    let after = acquired.duration_since(last);
    assert!(
        after >= LEASE_DURATION,
        "the standby began {after:#} after the last renewal"
    );
    let without = acquired.duration_since(cut);
    println!("cut off: the next one began after {without:#}");
    assert!(without <= takeover::LOST_MAX, "{without:#}");
    assert_eq!(taken["spec"]["leaseTransitions"], 1);

    // And it works.
    let job = json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "intent", "namespace": "team"},
        "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}},
            "dataset": {"sources": [{"uri": "s3://b/d.csv"}]}, "output": {"model": "intent", "uri": "s3://b/o"}}});
    plane.create(&job).await;
    let made = "/apis/batch/v1/namespaces/team/jobs/intent-train-1";
    plane
        .until("a Job", || async { plane.send(Method::GET, made, None).await.ok() })
        .await;
}
