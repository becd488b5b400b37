//! From a URI to a client and a path.

use std::sync::{Arc, PoisonError};

use flywheel_contract::scalar::Uri;
use flywheel_contract::storage::StorageSettings;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use crate::Store;
use crate::error::{Result, StoreError, short};
use crate::refusal::Doubting;
use crate::transfer::Traffic;

/// Variables of which one is set where credentials are.
const CREDENTIALS: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Whether the environment holds credentials for S3.
pub(crate) fn has_credentials() -> bool {
    CREDENTIALS.iter().any(|name| std::env::var_os(name).is_some())
}

/// How an object is reached, as far as what can be done and what is to be advised depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// `file://`.
    Files,
    /// `http://` and `https://`: reading without credentials.
    Http,
    /// `s3://`.
    S3 {
        /// Whether the environment holds credentials.
        keys: bool,
        /// Whether `storage.endpoint` names the service; else it is AWS.
        endpoint: bool,
    },
}

/// An object, and the client to reach it with.
#[derive(Clone)]
pub(crate) struct Location {
    pub(crate) uri: String,
    pub(crate) client: Arc<dyn ObjectStore>,
    pub(crate) path: Path,
    pub(crate) access: Access,
    pub(crate) traffic: Arc<Traffic>,
}

fn invalid(uri: &str, problem: impl Into<String>) -> StoreError {
    StoreError::Invalid {
        uri: uri.to_owned(),
        problem: problem.into(),
    }
}

/// Refuses an endpoint that the client would panic at.
pub(crate) fn check_endpoint(endpoint: &str) -> Result<()> {
    match url::Url::parse(endpoint) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
        _ => Err(invalid(
            endpoint,
            "no URL of an S3 service; write http://host:port or https://host in `storage.endpoint`",
        )),
    }
}

/// Whether S3 could have a bucket of this name (of an older and looser rule, too).
fn is_bucket(name: &str) -> bool {
    name.len() <= 255
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

pub(crate) fn certificates(settings: &StorageSettings) -> Result<Vec<Certificate>> {
    let Some(file) = &settings.ca_file else {
        return Ok(Vec::new());
    };
    let pem = std::fs::read(file).map_err(|e| {
        invalid(
            file,
            format!("the CA bundle cannot be read: {e}; check `storage.caBundle`"),
        )
    })?;
    let list = Certificate::from_pem_bundle(&pem).map_err(|e| {
        invalid(
            file,
            format!("the CA bundle holds no certificates in PEM: {e}; check `storage.caBundle`"),
        )
    })?;
    if list.is_empty() {
        return Err(invalid(
            file,
            "the CA bundle holds no certificate; check `storage.caBundle`",
        ));
    }
    Ok(list)
}

impl Store {
    /// Where a URI leads.
    pub(crate) fn locate(&self, uri: &Uri) -> Result<Location> {
        let text = uri.as_str();
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| invalid(text, "no URI; write file:///path, s3://bucket/key or https://host/path"))?;
        let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
        if key.is_empty() {
            return Err(invalid(
                text,
                "it names no file or folder; write something after the first `/`",
            ));
        }
        if key.split('/').any(|part| part == ".." || part == ".") {
            return Err(invalid(
                text,
                "`.` and `..` may not stand in it; write the place itself",
            ));
        }
        let path = match scheme {
            "file" if name.is_empty() => Path::from_absolute_path(format!("/{key}")),
            "file" => return Err(invalid(text, "a file has no host; write three slashes: file:///path")),
            "s3" => Path::parse(key),
            "http" | "https" => Path::from_url_path(key),
            _ => return Err(invalid(text, "unknown scheme; file, s3, http and https can be used")),
        }
        .map_err(|e| invalid(text, format!("the path cannot be used: {e}")))?;
        if path.as_ref().is_empty() {
            return Err(invalid(
                text,
                "it names no file or folder; write something after the first `/`",
            ));
        }
        if scheme == "s3" && !is_bucket(name) {
            return Err(invalid(text, format!("{name:?} is no bucket's name")));
        }
        if scheme == "s3" && name.is_empty() {
            return Err(invalid(text, "it names no bucket; write s3://bucket/key"));
        }
        let origin = format!("{scheme}://{name}");
        let known = self
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&origin)
            .cloned();
        let client = match known {
            Some(client) => client,
            None => {
                let made = self
                    .connect(scheme, name, &origin)
                    .map_err(|e| invalid(text, format!("no client for it: {}", short(&e))))?;
                self.clients
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(origin)
                    .or_insert(made)
                    .clone()
            }
        };
        Ok(Location {
            uri: text.to_owned(),
            client,
            path,
            access: match scheme {
                "file" => Access::Files,
                "s3" => Access::S3 {
                    keys: has_credentials(),
                    endpoint: self.settings.endpoint.is_some(),
                },
                _ => Access::Http,
            },
            traffic: Arc::clone(&self.traffic),
        })
    }

    fn connect(
        &self,
        scheme: &str,
        name: &str,
        origin: &str,
    ) -> std::result::Result<Arc<dyn ObjectStore>, object_store::Error> {
        // One try per request, but for what refusal.rs doubts: tries, waits and deadlines are this crate's, see transfer.rs.
        let retry = RetryConfig {
            max_retries: 0,
            retry_timeout: self.limits.operation,
            ..RetryConfig::default()
        };
        Ok(match scheme {
            "file" => Arc::new(LocalFileSystem::new().with_fsync(true)),
            "s3" => {
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(name).with_retry(retry);
                if let Some(endpoint) = &self.settings.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(region) = &self.settings.region {
                    builder = builder.with_region(region);
                }
                let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
                if let Some(endpoint) = &endpoint {
                    check_endpoint(endpoint).map_err(|e| object_store::Error::NotSupported { source: e.into() })?;
                }
                let plain = endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
                // Own endpoints have no node credentials to ask for: without keys a public bucket is meant.
                builder = builder.with_skip_signature(endpoint.is_some() && !has_credentials());
                Arc::new(
                    builder
                        // Whatever the environment says: a storage without them is found out by a probe.
                        .with_conditional_put(S3ConditionalPut::ETagMatch)
                        // Not every storage knows the request that removes many objects.
                        .with_disable_bulk_delete(true)
                        .with_allow_http(plain)
                        .with_http_connector(Doubting::new(&self.limits))
                        .with_client_options(self.options(plain))
                        .build()?,
                )
            }
            _ => Arc::new(
                HttpBuilder::new()
                    .with_url(origin)
                    .with_retry(retry)
                    .with_client_options(self.options(scheme == "http"))
                    .build()?,
            ),
        })
    }

    fn options(&self, plain: bool) -> ClientOptions {
        let mut options = ClientOptions::new()
            .with_allow_http(plain)
            .with_connect_timeout(self.limits.connect)
            .with_timeout_disabled();
        for certificate in &self.certificates {
            options = options.with_root_certificate(certificate.clone());
        }
        // Without TLS there is no need for the system's certificates, which an image may lack.
        options.with_no_system_certificates(plain)
    }
}
