//! Whole clusters: that they leave nothing behind, run side by side, and can be cut apart. Needs root, the Debian
//! packages and a few minutes at most once the programs are built; where it cannot run it fails and says why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flywheel_localcluster::{Cluster, Health, NodeKind, Options, image, paths};

/// What the machine has is compared before and after, so these tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options(name: &str, system: u16, t4: u16) -> Options {
    let nodes = [(NodeKind::System, system), (NodeKind::T4, t4)].into();
    Options {
        name: name.into(),
        nodes,
        ..Options::default()
    }
}

/// Calls `probe` until it holds.
fn eventually(what: &str, within: Duration, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !probe() {
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a machine has that a cluster could leave behind, one line each.
fn snapshot() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut add = |kind: &str, text: &str| lines.extend(text.lines().map(|line| format!("{kind}: {}", line.trim())));
    add("link", &output("ip", &["-o", "link", "show"]));
    add("address", &output("ip", &["-o", "address", "show"]));
    add("route", &output("ip", &["route", "show", "table", "all"]));
    add("route", &output("ip", &["-6", "route", "show", "table", "all"]));
    for table in ["filter", "nat", "mangle"] {
        add(table, &output("iptables", &["-w", "-t", table, "-S"]));
    }
    add(
        "forwarding",
        &fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
    );
    add("mount", &fs::read_to_string("/proc/self/mountinfo").unwrap());
    let groups = output("find", &["/sys/fs/cgroup", "-type", "d"]);
    // The machine's other services make and remove groups of their own meanwhile.
    let ours = |group: &&str| {
        ["flywheel", "kube", "pod", "containerd", "runc"]
            .iter()
            .any(|part| group.contains(part))
    };
    add("cgroup", &groups.lines().filter(ours).collect::<Vec<_>>().join("\n"));
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Ok(network) = fs::read_link(path.join("ns/net")) {
            add("network namespace", &network.display().to_string());
        }
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let zombie = fs::read_to_string(path.join("stat"))
            .unwrap_or_default()
            .contains(") Z ");
        // Only what clusters are made of: the machine's other processes come and go.
        let parts = [
            "etcd",
            "kube",
            "minio",
            "coredns",
            "kwok",
            "containerd",
            // The device plugins are this program; a process is known by 15 characters.
            "flywheel-localc",
            "runc",
            "busybox",
            "unshare",
            "nsenter",
            "pause",
        ];
        if !zombie && parts.iter().any(|part| name.starts_with(part)) && !belongs_to_others(&path) {
            add("process", &format!("{pid} {}", name.trim()));
        }
    }
    lines
}

/// A control plane for another test may run beside us: its processes say whose they are.
fn belongs_to_others(process: &Path) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    String::from_utf8_lossy(&environment).split('\0').any(|variable| {
        variable
            .strip_prefix("FLYWHEEL_LOCALCLUSTER=")
            .is_some_and(|folder| folder.contains("/clusters/cp-"))
    })
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The kernel takes namespaces and links away in the background: give it a moment, then nothing may be left.
fn assert_as_before(before: &BTreeSet<String>, when: &str) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let after = snapshot();
        let left: Vec<_> = after.difference(before).collect();
        // Processes of the machine's own may end meanwhile, and their namespaces with them.
        let of_others = |line: &&String| line.starts_with("process") || line.starts_with("network namespace");
        let gone: Vec<_> = before.difference(&after).filter(|line| !of_others(line)).collect();
        if left.is_empty() && gone.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{when}: the machine is not as before.\nleft behind: {left:#?}\ngone: {gone:#?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn run_pod(cluster: &Cluster, name: &str, node: &str) {
    run_pod_with(cluster, name, node, 0);
}

/// A pod with as many GPUs.
fn run_pod_with(cluster: &Cluster, name: &str, node: &str, gpus: u32) {
    let limits = match gpus {
        0 => serde_json::json!({}),
        some => serde_json::json!({"nvidia.com/gpu": some}),
    };
    let manifest = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web",
                "image": image::tag("pause").unwrap(),
                "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c",
                            "mkdir /web; echo hello >/web/index.html; exec /bin/busybox httpd -f -p 8080 -h /web"],
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                "resources": {"limits": limits},
            }],
        },
    });
    cluster.kubectl().apply(&manifest.to_string()).unwrap();
    cluster
        .kubectl()
        .run([
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            "--timeout=120s",
        ])
        .unwrap();
}

fn address(cluster: &Cluster, pod: &str) -> String {
    cluster
        .kubectl()
        .run(["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
        .unwrap()
}

/// Whether the pod `from` gets the page of the pod at `to`.
fn reaches(cluster: &Cluster, from: &str, to: &str) -> bool {
    let url = format!("http://{to}:8080/");
    // `timeout`, because the option -T crashes Debian's static busybox.
    let wget = [
        "exec",
        from,
        "--",
        "/bin/busybox",
        "timeout",
        "3",
        "/bin/busybox",
        "wget",
        "-qO-",
        &url,
    ];
    cluster.kubectl().run(wget).is_ok_and(|page| page.trim() == "hello")
}

/// Whether this machine reaches it.
fn answers(to: &str) -> bool {
    let address = (to.parse::<IpAddr>().unwrap(), 8080).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok()
}

#[test]
fn leaves_nothing_behind() {
    let _turn = turn();
    let before = snapshot();
    let cluster = Cluster::up(&options("t-clean", 1, 0)).unwrap();
    run_pod(&cluster, "web", "system-1");
    assert!(answers(&address(&cluster, "web")), "the machine does not reach the pod");
    let during = snapshot();
    for kind in ["link", "route", "filter", "cgroup", "process", "network namespace"] {
        let more = during.difference(&before).any(|line| line.starts_with(kind));
        assert!(more, "the comparison is blind: a running cluster shows no {kind}");
    }
    cluster.down().unwrap();
    assert_as_before(&before, "after down");
}

/// `up` is killed once each of these has come to be; then `down` alone must clean up.
#[test]
fn leaves_nothing_behind_after_a_kill() {
    let _turn = turn();
    let before = snapshot();
    let folder = paths::cluster("t-killed").unwrap();
    let program = env!("CARGO_BIN_EXE_flywheel-localcluster");
    for reached in [
        "cluster.json",
        "pid/etcd",
        "pid/apiserver",
        "pid/node-system-1",
        "pid/kubelet-system-1",
        "pid/device-plugin-t4-1",
    ] {
        let mut up = Command::new(program)
            .args(["up", "--name", "t-killed", "--a100=0", "--t4=1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let file = folder.join(reached);
        eventually(reached, Duration::from_secs(120), || {
            assert!(
                up.try_wait().unwrap().is_none() || file.exists(),
                "up ended before {reached} came to be"
            );
            file.exists()
        });
        up.kill().unwrap();
        up.wait().unwrap();
        let down = Command::new(program)
            .args(["down", "--name", "t-killed"])
            .status()
            .unwrap();
        assert!(down.success());
        assert!(!folder.exists());
        assert_as_before(&before, &format!("killed at {reached}"));
    }
}

/// What a kill leaves, the next `up` clears; and a second `up` finds the first one's cluster.
#[test]
fn up_is_idempotent_and_starts_afresh_what_is_not_whole() {
    let _turn = turn();
    let before = snapshot();
    let wanted = options("t-again", 1, 0);
    let first = Cluster::up(&wanted).unwrap();
    run_pod(&first, "web", "system-1");
    let began = Instant::now();
    let second = Cluster::up(&wanted).unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "a second up took {:?}",
        began.elapsed()
    );
    second.kubectl().run(["get", "pod", "web"]).unwrap();
    drop(second);
    first
        .kubectl()
        .run(["get", "pod", "web"])
        .expect("a found cluster must not end with its handle");

    let grown = Cluster::up(&Options {
        kwok: 4,
        ..options("t-again", 1, 1)
    })
    .unwrap();
    assert_eq!(grown.nodes(), ["system-1", "t4-1"]);
    grown
        .kubectl()
        .run(["get", "pod", "web"])
        .expect("growing must keep what runs");
    let gpus = grown.kubectl().run([
        "get",
        "nodes",
        "-o",
        "jsonpath={.items[*].status.allocatable.nvidia\\.com/gpu}",
    ]);
    assert_eq!(
        gpus.unwrap().split_whitespace().count(),
        5,
        "one real T4 node and four fake ones have GPUs"
    );
    let kept = Cluster::up(&wanted).unwrap().leave_running();
    assert_eq!(kept.nodes(), ["system-1", "t4-1"], "with fewer it keeps what there is");

    let etcd = fs::read_to_string(folder_of(&first).join("pid/etcd")).unwrap();
    kill(&etcd);
    let fresh = Cluster::up(&wanted).unwrap();
    assert!(
        fresh.kubectl().run(["get", "pod", "web"]).is_err(),
        "a fresh cluster has no pod"
    );
    fresh.down().unwrap();
    // Its cluster is gone already: ending it again is fine.
    first.down().unwrap();
    assert_as_before(&before, "after down");
}

/// Kills the process of a record.
fn kill(record: &str) {
    let pid = record.split_whitespace().next().unwrap();
    let status = Command::new("kill").args(["-9", pid]).status().unwrap();
    assert!(status.success());
}

fn folder_of(cluster: &Cluster) -> PathBuf {
    cluster.kubeconfig().parent().unwrap().to_owned()
}

#[test]
fn two_side_by_side() {
    let _turn = turn();
    let before = snapshot();
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| Cluster::up(&options("t-one", 1, 0)).unwrap());
        let two = scope.spawn(|| Cluster::up(&options("t-two", 1, 0)).unwrap());
        (one.join().unwrap(), two.join().unwrap())
    });
    assert_ne!(one.s3().unwrap().endpoint, two.s3().unwrap().endpoint);
    assert_ne!(one.s3().unwrap().secret_key, two.s3().unwrap().secret_key);
    run_pod(&one, "web", "system-1");
    run_pod(&two, "web", "system-1");
    assert_ne!(address(&one, "web"), address(&two, "web"));
    one.down().unwrap();
    assert!(
        answers(&address(&two, "web")),
        "ending one cluster must not touch the other"
    );
    two.down().unwrap();
    assert_as_before(&before, "after down");
}

/// What a device plugin says of a GPU stands in the status of the pod that has it and of the node.
#[test]
fn gpus_break_and_are_mended() {
    let _turn = turn();
    let before = snapshot();
    let wanted = options("t-gpus", 1, 1);
    let cluster = Cluster::up(&wanted).unwrap();
    run_pod_with(&cluster, "all", "t4-1", 4);
    let ask = |kind: &str, name: &str, path: &str| {
        let path = format!("jsonpath={path}");
        cluster.kubectl().run(["get", kind, name, "-o", &path]).unwrap()
    };
    let health = || {
        let resources = "{.status.containerStatuses[0].allocatedResourcesStatus[0].resources}";
        let told: serde_json::Value = serde_json::from_str(&ask("pod", "all", resources)).unwrap_or_default();
        let each = told.as_array().cloned().unwrap_or_default();
        let unhealthy = each.iter().filter(|gpu| gpu["health"] == "Unhealthy");
        let names: Vec<String> = unhealthy.map(|gpu| gpu["resourceID"].to_string()).collect();
        (each.len(), names.join(" "))
    };
    let counted = || {
        let gpus = r"{.status.allocatable.nvidia\.com/gpu} of {.status.capacity.nvidia\.com/gpu}";
        ask("node", "t4-1", gpus)
    };
    assert_eq!(counted(), "4 of 4");
    let soon = Duration::from_secs(30);
    eventually("the pod's GPUs are told", soon, || health() == (4, String::new()));

    cluster.set_gpu("t4-1", 2, Health::Unhealthy).unwrap();
    eventually("broken", soon, || health() == (4, r#""GPU-t4-1-2""#.to_owned()));
    eventually("counted out", soon, || counted() == "3 of 4");
    // It finds the node as it is, with a broken GPU.
    Cluster::up(&wanted).unwrap();
    cluster.set_gpu("t4-1", 2, Health::Healthy).unwrap();
    eventually("mended", soon, || health() == (4, String::new()));
    eventually("counted again", soon, || counted() == "4 of 4");
    cluster.set_gpus("t4-1", 6).unwrap();
    eventually("more of them", soon, || counted() == "6 of 6");

    for (node, index, says) in [("t4-1", 6, "there are 6"), ("system-1", 0, "system-1 has no GPUs")] {
        let error = cluster.set_gpu(node, index, Health::Unhealthy).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let plugin = fs::read_to_string(folder_of(&cluster).join("pid/device-plugin-t4-1")).unwrap();
    kill(&plugin);
    eventually("its end is seen", soon, || {
        cluster.status().unwrap().contains("dead        device-plugin-t4-1;")
    });
    cluster.down().unwrap();
    assert_as_before(&before, "after down");
}

#[test]
fn cut_and_heal() {
    let _turn = turn();
    let before = snapshot();
    let cluster = Cluster::up(&options("t-cut", 1, 1)).unwrap();
    run_pod(&cluster, "near", "system-1");
    run_pod(&cluster, "far", "t4-1");
    let (near, far) = (address(&cluster, "near"), address(&cluster, "far"));
    assert!(
        reaches(&cluster, "near", &far),
        "pods on two nodes do not reach each other"
    );
    let started = container(&cluster, "far");

    cluster.cut("t4-1").unwrap();
    assert!(!reaches(&cluster, "near", &far), "a cut node answers");
    assert!(!answers(&far), "a cut node answers the machine");
    cluster.heal("t4-1").unwrap();
    eventually("healed", Duration::from_secs(30), || reaches(&cluster, "near", &far));

    let lease = ["get", "lease", "t4-1", "-n", "kube-node-lease"];
    eventually("the node's first lease", Duration::from_secs(60), || {
        cluster.kubectl().run(lease).is_ok()
    });
    // Without the API server a node's pods still reach the others: exec goes from the API server to the kubelet, and
    // its answers come from another port than the one that is dropped.
    cluster.cut_api("t4-1").unwrap();
    assert!(
        !lease_renewed(&cluster, "t4-1", Duration::from_secs(25)),
        "the node still reaches the API server"
    );
    assert!(reaches(&cluster, "near", &far), "cutapi must cut the API server alone");
    assert!(reaches(&cluster, "far", &near), "cutapi must cut the API server alone");
    cluster.heal_api("t4-1").unwrap();
    assert!(
        lease_renewed(&cluster, "t4-1", Duration::from_secs(60)),
        "the node does not come back"
    );

    assert_eq!(container(&cluster, "far"), started, "the container was restarted");
    let unknown = cluster.cut("t4-9").unwrap_err().to_string();
    assert!(unknown.contains("system-1 t4-1"), "{unknown}");
    cluster.down().unwrap();
    assert_as_before(&before, "after down");
}

fn container(cluster: &Cluster, pod: &str) -> String {
    let path = "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    cluster.kubectl().run(["get", "pod", pod, "-o", path]).unwrap()
}

/// Whether the node's lease is renewed within that time. A renewal already under way does not count.
fn lease_renewed(cluster: &Cluster, node: &str, within: Duration) -> bool {
    let renewed = || {
        let arguments = [
            "get",
            "lease",
            node,
            "-n",
            "kube-node-lease",
            "-o",
            "jsonpath={.spec.renewTime}",
        ];
        cluster.kubectl().run(arguments).unwrap()
    };
    let (start, first) = (Instant::now(), renewed());
    while start.elapsed() < within {
        if renewed() != first {
            return true;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    false
}
