//! The leader lost in each way that there is, while TrainingJobs go on coming: how soon its standby works, that the two never
//! write at once, and that the pods notice nothing. Who wrote what comes from the API server's audit log, where each write
//! names its replica and the term of its leadership.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flywheel_api::names::LABEL_TRAINING_JOB;
use flywheel_testkit::Proxy;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::plane::Plane;
use super::{Operator, SETTINGS, command, kubeconfig, kubelet, namespace_with_account, proxy, time, with_crds};

/// From the loss of a leader to the first write of the next: a lease of 15 s, and a moment to begin.
pub const LOST_MAX: SignedDuration = SignedDuration::from_secs(18);
/// The same where the leader could give the Lease up.
const RELEASED_MAX: SignedDuration = SignedDuration::from_secs(3);
/// How wrong a clock is.
const SKEW: SignedDuration = SignedDuration::from_mins(10);
/// Time between two new TrainingJobs.
const WORK: Duration = Duration::from_millis(500);
/// The one node.
const NODE: &str = "n-0";

/// How a leader is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    Terminated,
    /// It stands still, and goes on when another one leads.
    Hung,
    /// Its standby is killed as well, and a third one started.
    Both,
}

/// Whose clock is wrong, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Right,
    LeaderAhead,
    StandbyAhead,
    StandbyBehind,
}

/// One pair of replicas in a namespace of its own.
struct Site<'a> {
    plane: &'a Plane,
    folder: &'a Path,
    namespace: String,
    proxy: Proxy,
}

impl Site<'_> {
    /// A replica whose clock is wrong by so much.
    fn replica(&self, identity: &str, skew: SignedDuration) -> Operator {
        let settings = format!("namespaces: [{}]\n{SETTINGS}", self.namespace);
        let folder = self.folder.join(&self.namespace);
        std::fs::create_dir_all(&folder).unwrap();
        // Without TLS, whose certificates are not valid yet ten minutes ago.
        let config = kubeconfig(&self.proxy.server());
        let mut command = command(&folder, &self.namespace, &settings, identity, &config);
        if !skew.is_zero() {
            command
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME", format!("{:+}s", skew.as_secs()))
                // A clock that is set wrong changes no time that is measured.
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Operator::run(command, &format!("{} {identity}", self.namespace))
    }

    async fn lease(&self) -> Option<Value> {
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases/flywheel-operator",
            self.namespace
        );
        self.plane.send(Method::GET, &path, None).await.ok()
    }

    async fn until_led_by(&self, who: &str) -> Value {
        let what = format!("{who} leads in {}", self.namespace);
        let led = |lease: &Value| lease["spec"]["holderIdentity"] == who;
        self.plane
            .until(&what, || async { self.lease().await.filter(led) })
            .await
    }

    async fn train(&self, name: &str, suspend: bool) {
        let spec = json!({"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}}, "suspend": suspend,
            "dataset": {"sources": [{"uri": "s3://b/d.csv"}]}, "output": {"model": "intent", "uri": "s3://b/o"}});
        self.plane
            .create(
                &json!({"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "spec": spec,
                "metadata": {"name": name, "namespace": self.namespace}}),
            )
            .await;
    }

    /// New TrainingJobs, so that the leader always has something to write. They wait, so as to need no pods.
    async fn work(&self) {
        let mut number = 0;
        loop {
            self.train(&format!("job-{number}"), true).await;
            number += 1;
            tokio::time::sleep(WORK).await;
        }
    }

    /// The pod of the training that runs all the while.
    async fn pod(&self) -> Value {
        let path = format!(
            "/api/v1/namespaces/{}/pods?labelSelector={LABEL_TRAINING_JOB}=kept",
            self.namespace
        );
        let what = format!("one pod in {}", self.namespace);
        self.plane
            .until(&what, || async {
                let list = self.plane.send(Method::GET, &path, None).await.unwrap();
                let [pod] = list["items"].as_array().unwrap().as_slice() else {
                    return None;
                };
                pod["spec"]["nodeName"].is_string().then(|| pod.clone())
            })
            .await
    }

    async fn until_it_runs(&self) {
        let path = format!(
            "/apis/flywheel.dev/v1alpha1/namespaces/{}/trainingjobs/kept",
            self.namespace
        );
        self.plane
            .until("it runs", || async {
                let job = self.plane.send(Method::GET, &path, None).await.unwrap();
                (job["status"]["state"] == "Running").then_some(())
            })
            .await;
    }

    /// What replicas wrote, in the order in which it came; Leases are what they agree by.
    fn writes(&self) -> Vec<Write> {
        let log = std::fs::read_to_string(self.plane.control.audit_log()).unwrap();
        // The last line may be half written.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = events.filter(|event| {
            let of = &event["objectRef"];
            let by = event["userAgent"].as_str().unwrap_or_default();
            of["namespace"] == self.namespace.as_str()
                && of["resource"] != "leases"
                && by.starts_with("flywheel-operator/")
        });
        let mut writes: Vec<_> = ours.map(|event| Write::read(&event)).collect();
        writes.sort_by_key(|write| write.came);
        writes
    }

    /// Loses the leader, and gives the time until the next one wrote.
    async fn lose(&self, loss: Loss, clock: Clock) -> SignedDuration {
        let right = SignedDuration::ZERO;
        let (of_leader, of_standby) = match clock {
            Clock::Right => (right, right),
            Clock::LeaderAhead => (SKEW, right),
            Clock::StandbyAhead => (right, SKEW),
            Clock::StandbyBehind => (right, -SKEW),
        };
        let mut leader = self.replica("a", of_leader);
        self.shows("a", of_leader).await;
        let mut standby = self.replica("b", of_standby);
        self.train("kept", false).await;
        kubelet::run(self.plane, &self.pod().await, kubelet::NOWHERE).await;
        self.until_it_runs().await;
        let before = self.pod().await;
        // The standby has seen renewals, so it knows when the last one was.
        let first = time(&self.lease().await.unwrap(), "renewTime");
        let again = |lease: Value| time(&lease, "renewTime") > first + SignedDuration::from_secs(3);
        self.plane
            .until("renewals", || async {
                self.lease().await.is_some_and(again).then_some(())
            })
            .await;

        let lost = Timestamp::now();
        let mut next = "b";
        let mut third = None;
        match loss {
            Loss::Killed => leader.kill(),
            Loss::Terminated => leader.terminate(),
            Loss::Hung => leader.signal(Signal::STOP),
            Loss::Both => {
                leader.kill();
                standby.kill();
                next = "c";
                third = Some(self.replica(next, right));
            }
        }
        self.shows(next, if third.is_some() { right } else { of_standby }).await;
        let found = self
            .plane
            .until("a write of the next leader", || async {
                self.writes().into_iter().find(|write| write.by == next)
            })
            .await;
        if loss == Loss::Hung {
            leader.signal(Signal::CONT);
            let status = leader.end(Duration::from_secs(5)).await;
            assert_eq!(status.code(), Some(1), "it ends to start again as a standby");
        }
        // The next one has looked at everything.
        let seen = self.writes().len();
        self.plane
            .until("more writes", || async {
                (self.writes().len() > seen + 5).then_some(())
            })
            .await;
        drop((leader, standby, third));

        let writes = self.writes();
        assert!(
            writes.iter().all(|write| write.term.is_some()),
            "only a leader writes: {writes:#?}"
        );
        for (one, other) in writes.iter().zip(writes.iter().skip(1)) {
            assert!(
                one.term <= other.term,
                "the old leader wrote after the new one: {one:?} {other:?}"
            );
            if one.term == other.term {
                assert_eq!(one.by, other.by, "one replica a term");
            } else {
                let last = writes
                    .iter()
                    .filter(|write| write.term == one.term)
                    .map(|write| write.answered)
                    .max();
                assert!(last.unwrap() <= other.came, "{one:?} was under way when {other:?} came");
            }
        }
        let kinds = |by: &str| writes.iter().filter(|write| write.by == by).count();
        assert!(kinds("a") > 0 && kinds(next) > 0);
        let after = self.pod().await;
        assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
        assert_eq!(
            before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"],
            "the pod was not touched"
        );
        found.came.duration_since(lost)
    }

    /// Waits until this one leads, and sees that its clock is as wrong as it should be.
    async fn shows(&self, who: &str, skew: SignedDuration) {
        let lease = self.until_led_by(who).await;
        let off = time(&lease, "renewTime").duration_since(Timestamp::now()) - skew;
        assert!(
            off.abs() < SignedDuration::from_secs(30),
            "{who} is off by {off:#} beside {skew:#}"
        );
    }
}

/// A write that the API server has answered.
#[derive(Debug)]
struct Write {
    by: String,
    term: Option<i32>,
    came: Timestamp,
    answered: Timestamp,
    /// For people who read what went wrong.
    _what: String,
}

impl Write {
    fn read(event: &Value) -> Self {
        let agent = event["userAgent"].as_str().unwrap();
        let (_, caller) = agent.split_once('(').unwrap();
        let caller = caller.trim_end_matches(')');
        let (by, term) = caller
            .split_once("; lease ")
            .map_or((caller, None), |(by, term)| (by, Some(term)));
        let at = |field: &str| event[field].as_str().unwrap().parse().unwrap();
        Self {
            by: by.to_owned(),
            term: term.map(|term| term.parse().unwrap()),
            came: at("requestReceivedTimestamp"),
            answered: at("stageTimestamp"),
            _what: format!("{} {}", event["verb"], event["requestURI"]),
        }
    }
}

/// The library that sets a process's clock wrong.
fn faketime() -> PathBuf {
    let library = Path::new("/usr/lib")
        .join(format!("{}-linux-gnu", std::env::consts::ARCH))
        .join("faketime/libfaketimeMT.so.1");
    assert!(
        library.is_file(),
        "{} is missing: apt-get install faketime",
        library.display()
    );
    library
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standby_works_soon_and_never_beside_the_leader() {
    let plane = with_crds(Plane::start_with(true, true).await).await;
    kubelet::node(&plane, NODE, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (Loss::Killed, Clock::Right),
        (Loss::Terminated, Clock::Right),
        (Loss::Hung, Clock::Right),
        (Loss::Both, Clock::Right),
        (Loss::Killed, Clock::LeaderAhead),
        (Loss::Killed, Clock::StandbyAhead),
        (Loss::Hung, Clock::StandbyBehind),
    ];
    let runs = cases.map(|(loss, clock)| {
        let (plane, folder) = (&plane, folder.path());
        async move {
            let namespace = format!("{loss:?}-{clock:?}").to_lowercase();
            namespace_with_account(plane, &namespace).await;
            let proxy = proxy(plane).await;
            let site = Site {
                plane,
                folder,
                namespace,
                proxy,
            };
            let took = tokio::select! {
                () = site.work() => unreachable!("it goes on for ever"),
                took = site.lose(loss, clock) => took,
            };
            println!(
                "leader {loss:?}, clock {clock:?}: the next one wrote after {:.1} s",
                took.as_secs_f64()
            );
            (loss, took)
        }
    });
    let took = tokio::select! {
        () = kubelet::keep_well(&plane, NODE) => unreachable!("it goes on for ever"),
        took = futures::future::join_all(runs) => took,
    };
    for (loss, took) in took {
        let max = if loss == Loss::Terminated {
            RELEASED_MAX
        } else {
            LOST_MAX
        };
        assert!(took <= max, "{loss:?}: {took:#}");
    }
}
