//! A real API server for tests, and requests to it as any user.

#![allow(dead_code, reason = "each test uses its part")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use flywheel_localcluster::{ControlPlane, ControlPlaneOptions, KUBERNETES, Kubectl, Program};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

/// Longest wait for what the API server does on its own: CRDs, policies, aggregation, garbage collection.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// The root of the project.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A control plane and an administrator's client. Ends when dropped.
pub struct Plane {
    pub control: ControlPlane,
    client: Client,
}

/// An answer other than success.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: u16,
    pub message: String,
    /// Field and message of each cause, where the API server says so.
    pub causes: Vec<(String, String)>,
}

impl Plane {
    /// etcd and an API server; with `controllers` also controller manager and scheduler. `FLYWHEEL_TEST_KUBERNETES`
    /// names another version than the usual one.
    pub async fn start(controllers: bool) -> Self {
        Self::start_with(controllers, false).await
    }

    /// The same; with `audit` the API server also notes who wrote what.
    pub async fn start_with(controllers: bool, audit: bool) -> Self {
        let kubernetes = std::env::var("FLYWHEEL_TEST_KUBERNETES").unwrap_or_else(|_| KUBERNETES.to_owned());
        let control = ControlPlane::start(&ControlPlaneOptions {
            kubernetes,
            controllers,
            audit,
        })
        .unwrap();
        let kubeconfig = Kubeconfig::read_from(control.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        config.read_timeout = Some(Duration::from_secs(120));
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            control,
            client: Client::try_from(config).unwrap(),
        }
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn kubectl(&self) -> &Kubectl {
        self.control.kubectl()
    }

    /// Runs kubectl and gives what it printed; a failure of it ends the test.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.kubectl().run(arguments).unwrap()
    }

    /// Runs helm on this cluster.
    pub fn helm(&self, arguments: &[&str]) -> Result<String, String> {
        helm(arguments, Some(self.control.kubeconfig()))
    }

    /// A request as the administrator.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Refusal> {
        self.send_as(None, &[], method, path, body).await
    }

    /// A request as somebody else; the administrator where no user is given. A PATCH is a server-side apply where the path
    /// names a field manager, else a merge patch.
    pub async fn send_as(
        &self,
        user: Option<&str>,
        groups: &[&str],
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let content = match method {
            Method::PATCH if path.contains("fieldManager=") => "application/apply-patch+yaml",
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", content);
        if let Some(user) = user {
            request = request.header("Impersonate-User", user);
            for group in groups {
                request = request.header("Impersonate-Group", *group);
            }
        }
        let body = body.map(|b| serde_json::to_vec(b).unwrap()).unwrap_or_default();
        match self.client.request::<Value>(request.body(body).unwrap()).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => {
                let causes = status.details.iter().flat_map(|d| &d.causes);
                let causes = causes.map(|c| (c.field.clone(), c.message.clone())).collect();
                Err(Refusal {
                    code: status.code,
                    message: status.message.clone(),
                    causes,
                })
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Creates an object as the administrator.
    pub async fn create(&self, object: &Value) -> Value {
        let path = collection(object);
        self.send(Method::POST, &path, Some(object))
            .await
            .unwrap_or_else(|e| panic!("{path}: {}", e.message))
    }

    /// Waits until `check` gives something.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut check: impl FnMut() -> F) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = check().await {
                return value;
            }
            assert!(
                start.elapsed() < SETTLES_WITHIN,
                "not within {} s: {what}",
                SETTLES_WITHIN.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Runs helm and gives what it printed, or what it complained of.
pub fn helm(arguments: &[&str], kubeconfig: Option<PathBuf>) -> Result<String, String> {
    let program = Program::Helm.ensure(KUBERNETES).unwrap();
    let mut command = std::process::Command::new(program);
    let kubeconfig = kubeconfig.unwrap_or_else(|| PathBuf::from("/nonexistent"));
    let output = command.args(arguments).env("KUBECONFIG", kubeconfig).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr) + &text(&output.stdout))
    }
}

/// The path of an object's collection.
pub fn collection(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (version, kind) = (text("/apiVersion").unwrap(), text("/kind").unwrap());
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let plural = match kind {
        "NetworkPolicy" | "ValidatingAdmissionPolicy" => format!("{}ies", kind.to_lowercase().trim_end_matches('y')),
        _ => format!("{}s", kind.to_lowercase()),
    };
    match text("/metadata/namespace") {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{plural}"),
    }
}

/// The path of an object.
pub fn path(object: &Value) -> String {
    format!(
        "{}/{}",
        collection(object),
        object["metadata"]["name"].as_str().unwrap()
    )
}

/// The object with the value at `pointer` set; objects on the way are made, `-` is the end of a list.
#[must_use]
pub fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let mut at = &mut object;
    for part in pointer.trim_start_matches('/').split('/') {
        let part = part.replace("~1", "/").replace("~0", "~");
        if let Value::Array(list) = at {
            let index = part.parse().unwrap_or(list.len());
            if index == list.len() {
                list.push(Value::Null);
            }
            at = &mut list[index];
        } else {
            if !at.is_object() {
                *at = Value::Object(serde_json::Map::new());
            }
            at = at.as_object_mut().unwrap().entry(part).or_insert(Value::Null);
        }
    }
    *at = value;
    object
}

/// The object without the value at `pointer`.
#[must_use]
pub fn without(object: &Value, pointer: &str) -> Value {
    let mut object = object.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    match object.pointer_mut(parent) {
        Some(Value::Object(map)) => drop(map.remove(&key).unwrap_or_else(|| panic!("nothing at {pointer}"))),
        Some(Value::Array(list)) => drop(list.remove(key.parse().unwrap())),
        _ => panic!("nothing at {pointer}"),
    }
    object
}
