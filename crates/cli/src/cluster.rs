//! The one way to the API server: the user's kubeconfig, and a limit on every call.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;

use crate::arguments::Target;
use crate::error::Error;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer of the API server, retries included.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Most objects of one list.
pub(crate) const LIST_MAX: u32 = 500;

/// A cluster and the namespace that the user looks at.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
    /// For messages.
    server: String,
}

impl Cluster {
    /// The cluster that the command line, the kubeconfig or, in a pod, the service account says.
    pub(crate) async fn connect(target: &Target) -> Result<Self, Error> {
        let mut config = config(target).await.map_err(|e| Error::kubeconfig(&e))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A log may be silent for long.
        config.read_timeout = None;
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let namespace = target
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|e| Error::client(&server, &e))?;
        Ok(Self {
            client,
            namespace,
            server,
        })
    }

    #[cfg(test)]
    pub(crate) fn of(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            server: "http://test".to_owned(),
        }
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Of another namespace than the user's.
    pub(crate) fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn api_of_all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// A call of the API server within [`CALL_TIMEOUT`].
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Error::api(what, &self.server, &self.namespace, error)),
            Err(_) => Err(Error::Timeout {
                what: what.to_owned(),
                server: self.server.clone(),
                limit: CALL_TIMEOUT,
            }),
        }
    }

    /// The object of this name.
    pub(crate) async fn get<K>(&self, name: &str) -> Result<K, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let what = format!("read {} {name}", K::kind(&()));
        self.ask(&what, self.api().get(name)).await
    }

    /// The namespace's objects with these labels, at most [`LIST_MAX`]; and whether there are more.
    pub(crate) async fn list<K>(&self, labels: &str) -> Result<(Vec<K>, bool), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let what = format!("list {}", K::plural(&()));
        let list = self
            .ask(
                &what,
                self.api().list(&ListParams::default().labels(labels).limit(LIST_MAX)),
            )
            .await?;
        let more = list.metadata.continue_.is_some_and(|c| !c.is_empty());
        Ok((list.items, more))
    }
}

async fn config(target: &Target) -> Result<Config, KubeconfigError> {
    let options = KubeConfigOptions {
        context: target.context.clone(),
        ..KubeConfigOptions::default()
    };
    if let Some(file) = &target.kubeconfig {
        return Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await;
    }
    let found = Config::from_kubeconfig(&options).await;
    match found {
        // In a pod there is no file, but a service account.
        Err(KubeconfigError::ReadConfig(..) | KubeconfigError::FindPath) if target.context.is_none() => {
            Config::incluster().or(found)
        }
        found => found,
    }
}

/// How long a command that watches bears with a cluster that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Errors in a row that may pass by themselves.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since: Option<Instant>,
}

impl Patience {
    /// All is well again.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// Bears the error, or gives it back: one that does not pass by itself, or has not for [`PATIENCE`].
    pub(crate) fn bear(&mut self, error: Error) -> Result<(), Error> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if error.may_pass() && since.elapsed() < PATIENCE {
            return Ok(());
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::Scenario;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_not_waited_for() {
        let (client, _scenario) = Scenario::start(vec![]);
        let cluster = Cluster::of(client, "team");
        let begin = tokio::time::Instant::now();
        let error = cluster
            .ask("read it", std::future::pending::<Result<(), _>>())
            .await
            .unwrap_err();
        assert_eq!(begin.elapsed(), CALL_TIMEOUT);
        assert!(
            error
                .to_string()
                .starts_with("read it: no answer from http://test within 10 s"),
            "{error}"
        );
        assert!(error.may_pass());
    }

    #[test]
    fn patience_ends_at_once_where_waiting_does_not_help() {
        let denied = || Error::NoPod("no".to_owned());
        let away = || Error::Unreachable {
            server: "s".to_owned(),
            why: "refused".to_owned(),
        };
        let mut patience = Patience::default();
        assert!(patience.bear(denied()).is_err());
        assert!(patience.bear(away()).is_ok());
        patience.since = Instant::now().checked_sub(PATIENCE);
        assert!(patience.bear(away()).is_err());
        patience.reset();
        assert!(patience.bear(away()).is_ok());
    }
}
