//! Why a command could not be carried out, each with what to do next. No text holds a credential: what a kubeconfig or a
//! login program says is never repeated.

use std::error::Error as StdError;
use std::time::Duration;

use flywheel_wire::Refusal;
use kube::config::KubeconfigError;

use crate::text::clean;

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no kubeconfig that can be used.
    #[error("kubeconfig: {0}")]
    Kubeconfig(String),
    /// There is no client for the cluster that the kubeconfig names.
    #[error(
        "no connection can be made to {server}: {why}. See what kubectl says of the same context: `kubectl get --raw /version`"
    )]
    Client {
        /// URL of the API server.
        server: String,
        /// What is wrong.
        why: String,
    },
    /// The API server cannot be reached.
    #[error(
        "{server} cannot be reached: {why}. See that the cluster runs and can be reached from here (`kubectl cluster-info`), \
         or choose another one with --context or --kubeconfig"
    )]
    Unreachable {
        /// URL of the API server.
        server: String,
        /// What went wrong underneath.
        why: String,
    },
    /// The API server did not answer in time.
    #[error("{what}: no answer from {server} within {} s; try again, or see `kubectl get --raw /readyz`", limit.as_secs())]
    Timeout {
        /// What was asked.
        what: String,
        /// URL of the API server.
        server: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The API server does not take the user's credentials.
    #[error("{server} does not know you (401): log in again; `kubectl auth whoami` shows whether it worked")]
    Unauthorized {
        /// URL of the API server.
        server: String,
    },
    /// The user lacks a right.
    #[error(
        "a right is missing: {words}. Flywheel's chart adds its kinds to the roles view, edit and admin; edit allows \
         port-forward, too. Ask for a RoleBinding to one of them; `kubectl auth can-i --list -n {namespace}` shows what you have"
    )]
    Forbidden {
        /// Which one.
        words: String,
        /// Where it was needed.
        namespace: String,
    },
    /// The cluster does not know Flywheel's kinds.
    #[error(
        "{server} does not know Flywheel's kinds: install the chart (charts/flywheel), or choose another cluster with --context"
    )]
    NotInstalled {
        /// URL of the API server.
        server: String,
    },
    /// The objects are not such that it could be done.
    #[error("{0}")]
    Inapplicable(String),
    /// There is no such object.
    #[error(
        "{words} in namespace {namespace}; `kubectl flywheel status -n {namespace}` lists what there is, -n chooses another namespace"
    )]
    NotFound {
        /// Which one.
        words: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// The API server refuses for another reason.
    #[error("{what}: {words} (status {code})")]
    Api {
        /// What was asked.
        what: String,
        /// The API server's words.
        words: String,
        /// Status code of HTTP.
        code: u16,
    },
    /// The API server's answer cannot be read, or the request cannot be made.
    #[error("{what}: {why}; plugin and cluster may be too far apart, see `kubectl flywheel version`")]
    Unreadable {
        /// What was asked.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A pod cannot be reached through the API server.
    #[error("port {port} of pod {pod}: {why}; `kubectl describe pod {pod} -n {namespace}` tells how it is")]
    Forward {
        /// Name of the pod.
        pod: String,
        /// Its namespace.
        namespace: String,
        /// The port.
        port: u16,
        /// What went wrong.
        why: String,
    },
    /// A pod refuses a request.
    #[error("pod {pod} refuses: {refusal}")]
    Refused {
        /// Name of the pod.
        pod: String,
        /// Its words.
        refusal: Refusal,
    },
    /// What the command line asks for cannot be sent.
    #[error("{0}")]
    Request(#[from] Refusal),
    /// There is no pod to talk to.
    #[error("{0}")]
    NoPod(String),
    /// A log stopped before its end.
    #[error("the log of pod {pod} stopped coming: {why}; try again")]
    Log {
        /// Name of the pod.
        pod: String,
        /// What went wrong.
        why: String,
    },
    /// What is to be simulated cannot be read.
    #[error("{0}")]
    Simulation(String),
    /// What was asked could not be printed.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// What the API server, or the way to it, made of a call.
    pub(crate) fn api(what: &str, server: &str, namespace: &str, error: kube::Error) -> Self {
        let (what, server, namespace) = (what.to_owned(), server.to_owned(), namespace.to_owned());
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::Unauthorized { server },
                403 => Self::Forbidden {
                    words: clean(&status.message),
                    namespace,
                },
                // An unknown kind is answered in plain text, an unknown object by a Status.
                404 if status.reason != "NotFound" => Self::NotInstalled { server },
                404 => Self::NotFound {
                    words: clean(&status.message),
                    namespace,
                },
                code => Self::Api {
                    what,
                    words: clean(&status.message),
                    code,
                },
            },
            kube::Error::Service(error) => Self::Unreachable {
                why: root_cause(error.as_ref()),
                server,
            },
            kube::Error::HyperError(error) => Self::Unreachable {
                why: root_cause(&error),
                server,
            },
            error @ (kube::Error::Auth(_) | kube::Error::RustlsTls(_)) => Self::client(&server, &error),
            error => Self::Unreadable {
                why: root_cause(&error),
                what,
            },
        }
    }

    /// Why there is no client. What a login program printed may be a credential and is left out.
    pub(crate) fn client(server: &str, error: &kube::Error) -> Self {
        let why = match error {
            kube::Error::Auth(_) => "the kubeconfig's way to log in does not work".to_owned(),
            error => root_cause(error),
        };
        Self::Client {
            server: server.to_owned(),
            why,
        }
    }

    /// Why a kubeconfig cannot be used. A parser's words may quote the file and are left out.
    pub(crate) fn kubeconfig(error: &KubeconfigError) -> Self {
        Self::Kubeconfig(match error {
            KubeconfigError::Parse(_) => {
                "it is no valid YAML of a kubeconfig; `kubectl config view` shows what kubectl makes of it".to_owned()
            }
            KubeconfigError::ReadConfig(error, path) => format!(
                "{} cannot be read: {error}. Set KUBECONFIG, or name the file with --kubeconfig",
                path.display()
            ),
            KubeconfigError::CurrentContextNotSet => {
                "there is no current context; choose one with --context (`kubectl config get-contexts` lists them)"
                    .to_owned()
            }
            KubeconfigError::LoadContext(name) => {
                format!("there is no context {name}; `kubectl config get-contexts` lists them")
            }
            error => format!("{}; `kubectl config view` shows it", root_cause(error)),
        })
    }

    /// Whether it may pass by itself, so that who watches goes on for a while.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Forward { .. } => true,
            Self::Api { code, .. } => *code == 429 || *code >= 500,
            _ => false,
        }
    }
}

/// The words of the innermost error: the outer ones only say that something failed.
fn root_cause(error: &dyn StdError) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    clean(&inner.to_string())
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::server::status;
    use kube::core::Status;

    use super::*;

    fn of(code: u16, reason: &str, message: &str) -> Error {
        let status: Status = serde_json::from_value(status(code, reason, message).1).unwrap();
        Error::api("get it", "https://s", "team", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let missing =
            "pods is forbidden: User \"u\" cannot list resource \"pods\" in API group \"\" in the namespace \"team\"";
        let table = [
            (of(401, "Unauthorized", "Unauthorized"), "log in again"),
            (of(403, "Forbidden", missing), "cannot list resource \"pods\""),
            (of(403, "Forbidden", missing), "kubectl auth can-i --list -n team"),
            (
                of(404, "NotFound", "trainingjobs.flywheel.dev \"x\" not found"),
                "kubectl flywheel status -n team",
            ),
            (
                of(404, "Failed to parse error data", "404 page not found\n"),
                "install the chart",
            ),
            (of(500, "InternalError", "etcd"), "get it: etcd (status 500)"),
        ];
        for (error, words) in table {
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn only_what_may_pass_is_waited_for() {
        assert!(of(503, "ServiceUnavailable", "").may_pass() && of(429, "TooManyRequests", "").may_pass());
        assert!(!of(403, "Forbidden", "").may_pass() && !of(404, "NotFound", "").may_pass());
    }
}
