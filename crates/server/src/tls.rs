//! TLS of the data port: its certificate, the renewal of that, and what is agreed in a handshake.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use flywheel_contract::failure::{Failure, FailureReason};
use flywheel_contract::serving::TlsFiles;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

/// HTTP/2, as it is agreed in a handshake.
pub(crate) const HTTP2: &[u8] = b"h2";
/// HTTP/1.1, as it is agreed in a handshake.
const HTTP1: &[u8] = b"http/1.1";
/// Time between two looks at the files. The kubelet takes a minute or so to bring a Secret that has changed.
const LOOK: Duration = Duration::from_secs(1);
/// Most bytes of a file; the API server takes no Secret that is larger.
const FILE_BYTES: usize = 1024 * 1024;

/// The certificate that new connections are shown.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// What the two files hold.
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Content {
    async fn read(files: &TlsFiles) -> Result<Self, String> {
        let read = async |path: &str| match tokio::fs::read(path).await {
            Ok(bytes) if bytes.len() > FILE_BYTES => Err(format!("{path} has more than {FILE_BYTES} bytes")),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(format!("{path} cannot be read: {error}")),
        };
        Ok(Self {
            certificate: read(&files.certificate).await?,
            key: read(&files.key).await?,
        })
    }

    /// Tells contents apart, without a copy of the key.
    fn digest(&self) -> [u8; 32] {
        let length = self.certificate.len().to_be_bytes();
        Sha256::new()
            .chain_update(length)
            .chain_update(&self.certificate)
            .chain_update(&self.key)
            .finalize()
            .into()
    }

    fn certified(&self, files: &TlsFiles) -> Result<CertifiedKey, String> {
        let TlsFiles { certificate, key } = files;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{certificate} is no PEM: {error}"))?;
        if chain.is_empty() {
            return Err(format!("{certificate} holds no certificate in PEM"));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| format!("{key} holds no private key in PEM that can be read: {error}"))?;
        CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("{key} is not the key of the certificate in {certificate}")
            }
            error => format!("{certificate} and {key} cannot be used: {error}"),
        })
    }
}

/// TLS with a certificate from files.
pub struct Tls {
    files: TlsFiles,
    shown: Arc<Shown>,
    /// Digest of the content that is shown.
    taken: [u8; 32],
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// `CertificateInvalid`, with the file.
    pub async fn load(files: &TlsFiles) -> Result<Self, Failure> {
        let invalid = |problem: String| {
            Failure::new(
                FailureReason::CertificateInvalid,
                format!(
                    "{problem}; see that the Secret of `server.tls` is of type kubernetes.io/tls, with the certificate and what \
                     leads to its authority in tls.crt and the key in tls.key"
                ),
            )
        };
        let content = Content::read(files).await.map_err(invalid)?;
        let certified = content.certified(files).map_err(invalid)?;
        let shown = Arc::new(Shown(RwLock::new(Arc::new(certified))));
        // Named, as there may be several providers in the process.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::new(FailureReason::InternalError, format!("no TLS: {error}")))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        Ok(Self {
            files: files.clone(),
            shown,
            taken: content.digest(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Makes handshakes.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Shows new connections what the files change to, for ever. What cannot be used is logged and passed over.
    pub async fn follow(&self) -> std::convert::Infallible {
        let (mut taken, mut seen, mut refused) = (self.taken, self.taken, String::new());
        loop {
            sleep(LOOK).await;
            let outcome = match Content::read(&self.files).await {
                Ok(content) => {
                    let digest = content.digest();
                    // The files are exchanged one after the other, or between two reads: what stays counts.
                    let stays = digest == std::mem::replace(&mut seen, digest);
                    if digest == taken || !stays {
                        continue;
                    }
                    content.certified(&self.files).map(|certified| (digest, certified))
                }
                Err(problem) => Err(problem),
            };
            match outcome {
                Ok((digest, certified)) => {
                    *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                    taken = digest;
                    refused.clear();
                    tracing::info!("new connections get the renewed certificate");
                }
                // Once for each problem.
                Err(problem) if problem != refused => {
                    tracing::warn!(
                        problem,
                        "the certificate was changed and cannot be used; the last one is kept"
                    );
                    refused = problem;
                }
                Err(_) => {}
            }
        }
    }
}
