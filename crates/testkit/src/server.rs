//! A fake API server by scenario: a list of the calls that may come, in order, each with its answer. Any other call, and
//! any call that does not come, fails the test.

use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Longest wait for the next call.
const PATIENCE: Duration = Duration::from_secs(5);

/// A call as it came.
#[derive(Clone, Debug)]
pub struct Call {
    /// Such as `POST`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The query.
    pub query: String,
    /// The body, `null` where there is none.
    pub body: Value,
}

type Answer = Box<dyn FnOnce(&Call) -> (u16, Value) + Send>;

/// A call that may come, with its answer.
pub struct Step {
    method: &'static str,
    path: String,
    answer: Answer,
}

impl Step {
    /// A call that is answered with what `answer` makes of it.
    #[must_use]
    pub fn new(
        method: &'static str,
        path: impl Into<String>,
        answer: impl FnOnce(&Call) -> (u16, Value) + Send + 'static,
    ) -> Self {
        Self {
            method,
            path: path.into(),
            answer: Box::new(answer),
        }
    }

    /// A read that finds this.
    #[must_use]
    pub fn get(path: impl Into<String>, found: Value) -> Self {
        Self::new("GET", path, move |_| (200, found))
    }

    /// A read that finds nothing.
    #[must_use]
    pub fn get_nothing(path: impl Into<String>) -> Self {
        Self::new("GET", path, |_| status(404, "NotFound", "not found"))
    }

    /// A list that holds these.
    #[must_use]
    pub fn list(path: impl Into<String>, kind: &str, api_version: &str, items: Vec<Value>) -> Self {
        let list = json!({"apiVersion": api_version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": "9"}, "items": items});
        Self::new("GET", path, move |_| (200, list))
    }

    /// A write that is taken: the answer is what was sent, with uid and resource version.
    #[must_use]
    pub fn accept(method: &'static str, path: impl Into<String>) -> Self {
        Self::new(method, path, |call| {
            (if call.method == "POST" { 201 } else { 200 }, stored(&call.body))
        })
    }

    /// A write of a status that is taken: the answer is `object` with that status.
    #[must_use]
    pub fn accept_status(path: impl Into<String>, object: Value) -> Self {
        Self::new("PATCH", path, move |call| {
            let mut object = object;
            if let Some(map) = object.as_object_mut() {
                map.insert(
                    "status".to_owned(),
                    call.body.get("status").cloned().unwrap_or_default(),
                );
                if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("resourceVersion".to_owned(), json!("100"));
                }
            }
            (200, object)
        })
    }

    /// A call that is refused.
    #[must_use]
    pub fn refuse(method: &'static str, path: impl Into<String>, code: u16, reason: &str, message: &str) -> Self {
        let answer = status(code, reason, message);
        Self::new(method, path, move |_| answer)
    }

    /// An event, which is taken.
    #[must_use]
    pub fn event(namespace: &str) -> Self {
        Self::accept("POST", format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
    }
}

/// A refusal as the API server words it.
#[must_use]
pub fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (
        code,
        json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

fn stored(sent: &Value) -> Value {
    let mut stored = sent.clone();
    if let Some(metadata) = stored.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.entry("uid").or_insert_with(|| json!("new-uid"));
        metadata.insert("resourceVersion".to_owned(), json!("100"));
        metadata.entry("generation").or_insert_with(|| json!(1));
    }
    stored
}

/// The calls of a scenario, and what came of them.
pub struct Scenario {
    served: JoinHandle<Vec<Call>>,
}

impl Scenario {
    /// A client whose calls are answered by these steps, in this order.
    #[must_use]
    pub fn start(steps: Vec<Step>) -> (Client, Self) {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let served = tokio::spawn(async move {
            let mut calls = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                let expected = format!("call {number}: {} {}", step.method, step.path);
                let next = tokio::time::timeout(PATIENCE, handle.next_request()).await;
                let Ok(Some((request, send))) = next else {
                    panic!("{expected} did not come; before it came {:#?}", summary(&calls));
                };
                let (parts, body) = request.into_parts();
                let bytes = match body.collect_bytes().await {
                    Ok(bytes) => bytes,
                    Err(error) => panic!("{expected}: {error}"),
                };
                let call = Call {
                    method: parts.method.to_string(),
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
                };
                assert_eq!(
                    (call.method.as_str(), call.path.as_str()),
                    (step.method, step.path.as_str()),
                    "call {number} is another one; before it came {:#?}; its body: {:#}",
                    summary(&calls),
                    call.body
                );
                let (code, answer) = (step.answer)(&call);
                let response = Response::builder()
                    .status(code)
                    .header("content-type", "application/json")
                    .body(Body::from(answer.to_string().into_bytes()));
                match response {
                    Ok(response) => send.send_response(response),
                    Err(error) => panic!("{expected}: {error}"),
                }
                calls.push(call);
            }
            // What comes now was not allowed.
            if let Ok(Some((request, _))) =
                tokio::time::timeout(Duration::from_millis(200), handle.next_request()).await
            {
                panic!("{} {} was not expected", request.method(), request.uri());
            }
            calls
        });
        (client, Self { served })
    }

    /// Waits until every step was used and nothing more came; the calls.
    ///
    /// # Panics
    /// A call did not come, came in another order, or was not allowed.
    pub async fn finish(self) -> Vec<Call> {
        match self.served.await {
            Ok(calls) => calls,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{error}"),
            },
        }
    }
}

fn summary(calls: &[Call]) -> Vec<String> {
    calls.iter().map(|c| format!("{} {}", c.method, c.path)).collect()
}
