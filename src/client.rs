//! The one place that builds a Kubernetes client. kube's own defaults would break the five-minute promise: they retry for
//! 164 s inside one call and notice a dead watch after 295 s.

use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use kube::runtime::watcher;
use kube::{Client, Config};
use tower::buffer::BufferLayer;
use tower::retry::RetryLayer;
use tower::util::MapRequestLayer;

use crate::lease::LeaseHandle;
use crate::pace::{Pace, PaceLayer};
use crate::telemetry::Metrics;

/// Longest wait for a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before the first retry of a 429, 503 or 504.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest delay between retries.
pub const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// Retries within one call.
pub const RETRIES: u32 = 4;
/// Seconds after which the server ends a watch. A silent socket is noticed 5 s later.
pub const WATCH_TIMEOUT_SECONDS: u32 = 25;
/// kube's own allowance beyond the watch timeout.
pub const WATCH_SLACK_SECONDS: u32 = 5;
/// Requests that may wait for the connection at once; the retry layer needs a service that can be cloned.
const BUFFER: usize = 256;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a service account was found.
    #[error("no way to a cluster: {0}; run in a pod with a service account, or set KUBECONFIG")]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The configuration cannot be used.
    #[error("client: {0}")]
    Build(#[source] Box<kube::Error>),
    /// The retry policy has impossible bounds: a fault in Flywheel.
    #[error("retry policy: {0}")]
    Retry(String),
}

/// Who asks: each request says so in its `User-Agent`, so that the API server's audit log tells which replica wrote what, and
/// under which leadership.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Name of this replica.
    pub identity: String,
    /// Whether it leads.
    pub lease: LeaseHandle,
}

impl Caller {
    /// Such as `flywheel-operator/0.1.0 (flywheel-operator-5d8f-x2k4; lease 3)`, the latter while it leads.
    fn user_agent(&self) -> HeaderValue {
        const PROGRAM: &str = concat!("flywheel-operator/", env!("CARGO_PKG_VERSION"));
        let lease = self.lease.term().map(|term| format!("; lease {term}"));
        HeaderValue::from_str(&format!("{PROGRAM} ({}{})", self.identity, lease.unwrap_or_default()))
            .unwrap_or(HeaderValue::from_static(PROGRAM))
    }
}

/// A client with our timeouts, retries and pace, from KUBECONFIG or the pod's service account.
///
/// # Errors
/// No configuration, or one that cannot be used.
pub async fn connect(caller: Caller, metrics: &Metrics) -> Result<Client, ClientError> {
    let config = Config::infer().await.map_err(|e| ClientError::Config(Box::new(e)))?;
    build(config, caller, metrics)
}

/// A client for this configuration.
///
/// # Errors
/// The configuration cannot be used.
pub fn build(mut config: Config, caller: Caller, metrics: &Metrics) -> Result<Client, ClientError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = None;
    config.default_retry = false;
    let policy =
        RetryPolicy::new(RETRY_FIRST, RETRY_LONGEST, RETRIES, true).map_err(|e| ClientError::Retry(e.to_string()))?;
    let sign = MapRequestLayer::new(move |mut request: http::Request<Body>| {
        request.headers_mut().insert(USER_AGENT, caller.user_agent());
        request
    });
    Ok(ClientBuilder::try_from(config)
        .map_err(|e| ClientError::Build(Box::new(e)))?
        .with_layer(&sign)
        .with_layer(&BufferLayer::<http::Request<Body>>::new(BUFFER))
        .with_layer(&PaceLayer(Pace::new(metrics.clone())))
        // What waits for another try keeps no turn.
        .with_layer(&RetryLayer::new(policy))
        .build())
}

/// How everything is watched: lists from the API server's cache, and a watch that the server ends soon.
#[must_use]
pub fn watch_config() -> watcher::Config {
    watcher::Config::default()
        .any_semantic()
        .timeout(WATCH_TIMEOUT_SECONDS)
        .page_size(500)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backoff, controller, lease};

    /// From a fault between us and the API server to our reaction; the rest of the five minutes belongs to scheduling,
    /// image and checkpoint.
    #[test]
    fn the_worst_cases_that_can_stack_leave_210_seconds() {
        let dead_watch = Duration::from_secs(u64::from(WATCH_TIMEOUT_SECONDS + WATCH_SLACK_SECONDS));
        let dead_leader = lease::LEASE_DURATION + lease::RETRY_PERIOD;
        let hung_reconcile = controller::RECONCILE_TIMEOUT;
        assert!(dead_watch + dead_leader + hung_reconcile + Duration::from_secs(20) <= Duration::from_secs(90));
        assert!(lease::RENEW_DEADLINE + crate::kubeio::WRITE_TIMEOUT <= lease::LEASE_DURATION);
        assert!(backoff::LONGEST <= Duration::from_secs(30));
        assert!(controller::RESYNC <= Duration::from_secs(60));
    }
}
