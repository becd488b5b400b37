//! The cluster as a user has it: kubectl, and HTTP to pods.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub fn need(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set; run this test through `make test`"))
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn localcluster() -> PathBuf {
    // Cargo puts test programs into <target>/<profile>/deps.
    let deps = std::env::current_exe().expect("own path");
    deps.parent()
        .and_then(Path::parent)
        .expect("profile folder")
        .join("flywheel-localcluster")
}

fn target() -> PathBuf {
    localcluster()
        .parent()
        .and_then(Path::parent)
        .expect("target folder")
        .to_path_buf()
}

pub fn run(command: &mut Command, input: Option<&str>) -> Result<String, String> {
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{command:?}: {e}"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The local cluster's object store under the name that the examples use, and namespace and Secret of `examples/intent`.
pub fn object_store() {
    object_store_for("intent");
}

/// Namespace and Secret of the example in that folder, and the object store.
pub fn object_store_for(example: &str) {
    run(
        Command::new(root().join("scripts/object-store.sh"))
            .arg(example)
            .env("CARGO_TARGET_DIR", target()),
        None,
    )
    .expect("object-store.sh");
}

/// A namespace of a test's own, as strict as they come, with the keys of the object store.
pub fn namespace_with_store(namespace: &str) {
    apply(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}));
    apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "object-store", "namespace": namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": need("AWS_ACCESS_KEY_ID"), "AWS_SECRET_ACCESS_KEY": need("AWS_SECRET_ACCESS_KEY")}}),
    );
}

pub fn kubectl(arguments: &[&str]) -> Result<String, String> {
    run(Command::new(localcluster()).arg("kubectl").args(arguments), None)
}

pub fn apply(object: &Value) {
    run(
        Command::new(localcluster()).args(["kubectl", "apply", "-f", "-"]),
        Some(&object.to_string()),
    )
    .unwrap_or_else(|e| panic!("applying {object}: {e}"));
}

/// Deletes a namespace and waits until it is gone.
pub fn delete_namespace(name: &str) {
    kubectl(&[
        "delete",
        "namespace",
        name,
        "--ignore-not-found",
        "--wait=true",
        "--timeout=120s",
    ])
    .expect("the namespace hangs in deletion");
}

/// Deletes an object and waits until it is gone; what belongs to it goes after it.
pub fn delete(kind: &str, namespace: &str, name: &str) {
    kubectl(&["delete", kind, "-n", namespace, name, "--wait=true", "--timeout=30s"])
        .unwrap_or_else(|e| panic!("{kind} {name} hangs in deletion: {e}"));
}

pub fn get(kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let text = kubectl(&["get", kind, "-n", namespace, name, "--ignore-not-found", "-o", "json"]).expect("kubectl get");
    (!text.trim().is_empty()).then(|| serde_json::from_str(&text).expect("JSON"))
}

pub fn list(kind: &str, namespace: &str, selector: &str) -> Vec<Value> {
    let text = kubectl(&["get", kind, "-n", namespace, "-l", selector, "-o", "json"]).expect("kubectl get");
    serde_json::from_str::<Value>(&text).expect("JSON")["items"]
        .as_array()
        .expect("items")
        .clone()
}

/// Status, reason and message of a condition.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let found = object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)?;
    Some((
        found["status"].as_str()?,
        found["reason"].as_str()?,
        found["message"].as_str()?,
    ))
}

/// Waits until `ready` gives a value; says what it waited for, and shows `context`, at the deadline.
pub fn wait<T>(what: &str, limit: Duration, context: impl Fn() -> String, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            println!("  {:6.1} s  {what}", start.elapsed().as_secs_f64());
            return value;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}\n{}", context());
        std::thread::sleep(Duration::from_millis(500));
    }
}

pub fn describe(kind: &str, namespace: &str, name: &str) -> impl Fn() -> String {
    let arguments: Vec<String> = ["describe", kind, "-n", namespace, name].map(str::to_owned).to_vec();
    move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        kubectl(&arguments).unwrap_or_else(|e| e)
    }
}

/// The TrainingJob, once it is complete; it must not fail.
pub fn trained(namespace: &str, name: &str, limit: Duration) -> Value {
    wait(
        "the training is complete",
        limit,
        describe("tj", namespace, name),
        || {
            let job = get("tj", namespace, name)?;
            assert_ne!(
                condition(&job, "Failed").map(|c| c.0),
                Some("True"),
                "{}",
                job["status"]
            );
            condition(&job, "Complete").filter(|c| c.0 == "True")?;
            Some(job)
        },
    )
}

/// Status code and body of the answer to a `POST` of JSON.
pub fn predict(address: &str, body: &Value) -> (u16, Value) {
    let text = run(
        Command::new("curl").args([
            "-sS",
            "-m",
            "30",
            "-w",
            "\n%{http_code}",
            "-H",
            "content-type: application/json",
            "-d",
            &body.to_string(),
            address,
        ]),
        None,
    )
    .unwrap_or_else(|e| panic!("{address}: {e}"));
    let (body, code) = text.rsplit_once('\n').expect("status line");
    (
        code.parse().expect("status"),
        serde_json::from_str(body).unwrap_or(Value::Null),
    )
}

/// `kubectl flywheel` with these arguments.
pub fn flywheel(arguments: &[&str]) -> Result<String, String> {
    let programs = localcluster().parent().expect("profile folder").display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    run(
        Command::new(localcluster())
            .args(["kubectl", "flywheel"])
            .args(arguments)
            .env("PATH", format!("{programs}:{path}")),
        None,
    )
}

/// The address of a Service inside the cluster, which is reached from here as well.
pub fn cluster_ip(namespace: &str, name: &str) -> String {
    kubectl(&[
        "get",
        "service",
        name,
        "-n",
        namespace,
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])
    .expect("address")
}

/// The same, once connections to it are taken: a pod is ready a moment before each node's proxy sends them to it, and refuses them
/// until then.
pub fn reachable_ip(namespace: &str, name: &str) -> String {
    let address = cluster_ip(namespace, name);
    wait(
        &format!("connections to {name} are taken"),
        Duration::from_secs(60),
        describe("service", namespace, name),
        || TcpStream::connect((address.as_str(), 80)).ok().map(drop),
    );
    address
}

/// The process of the server in the pod of this name, where it runs.
pub fn find_server(pod: &str) -> Option<u32> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let host = format!("HOSTNAME={pod}");
    let mut found = all.filter_map(|entry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment);
        (name.trim() == "flywheel-server" && environment.split('\0').any(|pair| pair == host)).then_some(process)
    });
    found.next()
}

/// The process of the server in the pod of this name.
pub fn server_of(pod: &str) -> u32 {
    find_server(pod).expect("the server's process")
}

/// Runs `tests/python/bad_inputs.py`, which makes and looks at what lies in a bucket.
pub fn bucket(name: &str, arguments: &[&str]) -> String {
    let cache = need("FLYWHEEL_CACHE");
    run(
        Command::new(Path::new(&cache).join("example-python/bin/python"))
            .arg(root().join("tests/python/bad_inputs.py"))
            .args(arguments)
            .env("BUCKET", name),
        None,
    )
    .unwrap_or_else(|e| panic!("bad_inputs.py {arguments:?}: {e}"))
}

/// Simulated GPUs per node: jobs that are watched side by side must not wait for one another.
const GPUS: &str = "40";
/// What the kubelets' reports and the scheduler's books may take to show them.
const GPUS_LIMIT: Duration = Duration::from_secs(180);

/// More simulated GPUs on each real node that has some; as many as before when it is dropped.
pub struct ManyGpus(Vec<(String, String)>);

impl ManyGpus {
    pub fn simulate() -> Self {
        let counts = |field: &str| -> Vec<(String, String)> {
            let path = format!(
                r#"jsonpath={{range .items[*]}}{{.metadata.name}} {{.status.{field}.nvidia\.com/gpu}}{{"\n"}}{{end}}"#
            );
            let text = kubectl(&["get", "nodes", "-l", "nvidia.com/gpu.product,type!=kwok", "-o", &path])
                .expect("kubectl get nodes");
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(node, count)| (node.to_owned(), count.to_owned()))
                .collect()
        };
        let before = Self(counts("capacity"));
        for (node, _) in &before.0 {
            set_gpus(node, GPUS).expect("gpus");
        }
        wait("GPUs for all rows", GPUS_LIMIT, String::new, || {
            counts("allocatable")
                .iter()
                .all(|(_, count)| count == GPUS)
                .then_some(())
        });
        before
    }
}

impl Drop for ManyGpus {
    fn drop(&mut self) {
        for (node, count) in &self.0 {
            // A panic here would hide the one that a test may have ended with.
            let _ = set_gpus(node, count);
        }
    }
}

fn set_gpus(node: &str, count: &str) -> Result<String, String> {
    run(Command::new(localcluster()).args(["gpus", node, count]), None)
}
