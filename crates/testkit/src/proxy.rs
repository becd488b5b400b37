//! A proxy between one operator and an API server. It counts the operator's writes, and runs a function of the test just
//! before one of them is passed on, or just after it was committed and before the operator hears of it.
//!
//! The operator speaks plain HTTP with it; the proxy's own client brings the credentials. What happens to a call is decided
//! in one place ([`Shared::pass`]), which is where further rules belong. It can also play a server that is overloaded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body as Sent;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, header};
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Largest body of a request: as much as an API server takes.
const BODY_MAX: usize = 3 * 1024 * 1024;
/// What belongs to one connection or is written anew for the next one.
const OF_THE_CONNECTION: [HeaderName; 4] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TRANSFER_ENCODING,
];

/// When the function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The API server has not seen the write, and never will.
    Before,
    /// The API server has answered, and nobody will hear of it.
    After,
}

/// A write, counted from 1, and a moment of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The number of the write.
    pub write: usize,
    /// Before or after it.
    pub moment: Moment,
}

/// What an API server that is overloaded answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload {
    /// 429 or 503.
    pub status: StatusCode,
    /// Seconds after which the caller may come again, if it says so.
    pub retry_after: Option<u32>,
}

type Act = Box<dyn FnOnce() + Send>;

struct Shared {
    client: Client,
    /// Method and path of each write.
    writes: Mutex<Vec<String>>,
    planned: Mutex<Option<(Point, Act)>>,
    overload: Mutex<Option<Overload>>,
    refused: Mutex<Vec<String>>,
}

/// The proxy. Ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// A proxy on a port of its own. `client` must not try again by itself: each answer is passed on as it comes.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(client: Client) -> Self {
        let shared = Arc::new(Shared {
            client,
            writes: Mutex::default(),
            planned: Mutex::default(),
            overload: Mutex::default(),
            refused: Mutex::default(),
        });
        let bound = TcpListener::bind("127.0.0.1:0").await;
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.unwrap_or_else(|error| panic!("no port for the proxy: {error}"));
        let calls = Arc::clone(&shared);
        let router = Router::new().fallback(move |request: Request<Sent>| {
            let shared = Arc::clone(&calls);
            async move { shared.pass(request).await }
        });
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                panic!("the proxy ended: {error}");
            }
        });
        Self {
            address,
            shared,
            serving,
        }
    }

    /// `http://ADDRESS:PORT` for the operator.
    #[must_use]
    pub fn server(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs `act` at this point, once. That write goes no further, so `act` is to end the operator.
    pub fn at(&self, point: Point, act: impl FnOnce() + Send + 'static) {
        *lock(&self.shared.planned) = Some((point, Box::new(act)));
    }

    /// Whether the point is still to come.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        lock(&self.shared.planned).is_some()
    }

    /// Refuses all calls but those of leases and watches, until told `None`.
    pub fn overload(&self, overload: Option<Overload>) {
        *lock(&self.shared.overload) = overload;
    }

    /// Method and path of each call that was refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        lock(&self.shared.refused).clone()
    }

    /// Method and path of each write that came so far.
    #[must_use]
    pub fn writes(&self) -> Vec<String> {
        lock(&self.shared.writes).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    /// One call, to the API server and back.
    async fn pass(&self, request: Request<Sent>) -> Response {
        let (parts, body) = request.into_parts();
        if let Some(overload) = *lock(&self.overload)
            && !is_of_leases(parts.uri.path())
            && !parts.uri.query().is_some_and(|query| query.contains("watch=true"))
        {
            lock(&self.refused).push(format!("{} {}", parts.method, parts.uri.path()));
            return refusal(overload);
        }
        let planned = counts(&parts.method, parts.uri.path())
            .then(|| self.count(format!("{} {}", parts.method, parts.uri.path())))
            .flatten();
        if let Some((Moment::Before, act)) = planned {
            act();
            return unheard();
        }
        let Ok(body) = axum::body::to_bytes(body, BODY_MAX).await else {
            return unheard();
        };
        let mut call = Request::new(Body::from(body));
        *call.method_mut() = parts.method;
        *call.uri_mut() = parts.uri;
        *call.headers_mut() = without_connection(parts.headers);
        let answer = self.client.send(call).await;
        if let Some((_, act)) = planned {
            act();
            return unheard();
        }
        match answer {
            Ok(answer) => {
                let (mut parts, body) = answer.into_parts();
                parts.headers = without_connection(parts.headers);
                Response::from_parts(parts, Sent::new(body))
            }
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    }

    /// Counts a write; what is to happen at it.
    fn count(&self, write: String) -> Option<(Moment, Act)> {
        let mut writes = lock(&self.writes);
        writes.push(write);
        let number = writes.len();
        let planned = lock(&self.planned).take_if(|(point, _)| point.write == number);
        planned.map(|(point, act)| (point.moment, act))
    }
}

/// Whether a call changes what users see. A Lease is renewed as time passes, and an event tells of a change.
fn counts(method: &Method, path: &str) -> bool {
    let changes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    changes && !is_of_leases(path) && !is_of(path, "events.k8s.io", "events")
}

fn is_of_leases(path: &str) -> bool {
    is_of(path, "coordination.k8s.io", "leases")
}

fn is_of(path: &str, group: &str, resource: &str) -> bool {
    path.starts_with(&format!("/apis/{group}/")) && path.split('/').any(|part| part == resource)
}

/// An API server's answer when it has too much to do.
fn refusal(overload: Overload) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "TooManyRequests",
        "message": "too many requests, please try again later", "code": overload.status.as_u16()});
    let mut answer = (overload.status, axum::Json(status)).into_response();
    if let Some(seconds) = overload.retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

/// The answer to one that has ended.
fn unheard() -> Response {
    StatusCode::SERVICE_UNAVAILABLE.into_response()
}

fn without_connection(mut headers: HeaderMap) -> HeaderMap {
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_events_and_reads_are_not_counted() {
        let of_the_team = |group: &str, resource: &str| format!("/apis/{group}/namespaces/team/{resource}");
        for (method, path, counted) in [
            (Method::POST, of_the_team("batch/v1", "jobs"), true),
            (Method::DELETE, of_the_team("batch/v1", "jobs/events"), true),
            (
                Method::PATCH,
                "/api/v1/namespaces/leases/pods/events/status".to_owned(),
                true,
            ),
            (Method::GET, of_the_team("batch/v1", "jobs"), false),
            (Method::PUT, of_the_team("coordination.k8s.io/v1", "leases/a"), false),
            (Method::POST, of_the_team("events.k8s.io/v1", "events"), false),
        ] {
            assert_eq!(counts(&method, &path), counted, "{method} {path}");
        }
    }
}
