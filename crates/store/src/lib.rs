//! The bucket of the user: URIs, credentials, streaming hashes, artifacts, checkpoints.
//!
//! One [`Store`] reads `file://`, `s3://`, `http://` and `https://` and writes the first two. Every operation ends: each
//! has a deadline that grows with the size, tries again what may pass ([`StoreError::Unavailable`] at the end), and gives
//! up at once on what will not (refused, not found, wrong). Files up to 256 MiB, manifests and results are written
//! by a conditional create, so nothing that is already there is overwritten; a larger file goes in parts after a look,
//! since S3 has no conditional create for parts here. Checkpoints are committed through a [`Lineage`], whose `HEAD`
//! keeps a writer that was replaced from committing anything. No Kubernetes, no tensors, no serving of HTTP.

mod artifact;
mod client;
mod error;
mod lineage;
mod refusal;
mod transfer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flywheel_contract::storage::StorageSettings;
use object_store::{Certificate, ObjectStore};

pub use artifact::{check_folder, describe, manifest_of_folder};
pub use error::{Purpose, Result, StoreError};
pub use lineage::Lineage;
use transfer::Traffic;
pub use transfer::{Created, Fetched, Listing, digest_of};

/// How long a store waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// To connect.
    pub connect: Duration,
    /// For the next piece of an answer.
    pub silence: Duration,
    /// For a whole operation, all tries together, beside what its bytes may take.
    pub operation: Duration,
    /// Slowest rate that is waited for, in bytes per second: `size / rate` is added to `operation`.
    pub slowest_rate: u64,
    /// Most bytes sent as one object in one request, and held in memory for it; more goes in parts.
    pub single_put: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            operation: Duration::from_secs(60),
            slowest_rate: 256 * 1024,
            single_put: 256 * 1024 * 1024,
        }
    }
}

/// Access to the user's storage.
pub struct Store {
    settings: StorageSettings,
    limits: Limits,
    certificates: Vec<Certificate>,
    /// One client per bucket or host, with its connections.
    clients: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    traffic: Arc<Traffic>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("settings", &self.settings)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// A store with the usual limits. Credentials come from the environment (`AWS_ACCESS_KEY_ID` and so on, or workload
    /// identity).
    ///
    /// # Errors
    /// [`StoreError::Invalid`] where the CA file cannot be used or the endpoint is no URL.
    pub fn new(settings: &StorageSettings) -> Result<Self> {
        Self::with_limits(settings, Limits::default())
    }

    /// A store with other limits.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn with_limits(settings: &StorageSettings, limits: Limits) -> Result<Self> {
        // Fails only where a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if let Some(endpoint) = &settings.endpoint {
            client::check_endpoint(endpoint)?;
        }
        Ok(Self {
            settings: settings.clone(),
            limits,
            certificates: client::certificates(settings)?,
            clients: Mutex::new(HashMap::new()),
            traffic: Arc::default(),
        })
    }

    /// Time since bytes of an object last came in or were taken by the storage; none before the first.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        self.traffic.idle()
    }
}
