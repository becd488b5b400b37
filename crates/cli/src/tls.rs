//! TLS to a pod's port, through a tunnel that the API server made.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Takes every certificate: API server and kubelet have led the tunnel into the very pod, and the certificate names the Service,
/// by an authority that this machine need not know.
#[derive(Debug)]
struct Any(CryptoProvider);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Longest wait for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Makes the handshake. Without a word about protocols, so HTTP/1.1 is spoken.
pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Result<TlsStream<S>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("no TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(ring::default_provider())))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    match tokio::time::timeout(HANDSHAKE, connector.connect(name, stream)).await {
        Ok(connected) => connected.map_err(|error| format!("no handshake of TLS: {error}")),
        Err(_) => Err(format!("no handshake of TLS within {} s", HANDSHAKE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn a_certificate_of_any_name_and_authority_is_taken() {
        let made = rcgen::generate_simple_self_signed(vec!["intent.team.svc".to_owned()]).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], made.signing_key.into())
            .unwrap();
        let (ours, theirs) = duplex(16 * 1024);
        let served = tokio::spawn(async move {
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(theirs).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut told = String::new();
        let mut stream = connect(ours).await.unwrap();
        stream.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "hello");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn what_speaks_no_tls_is_told() {
        let (ours, mut theirs) = duplex(1024);
        tokio::spawn(async move {
            theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            let _ = theirs.read(&mut [0; 1024]).await;
        });
        let refused = connect(ours).await.err().unwrap();
        assert!(refused.starts_with("no handshake of TLS"), "{refused}");
    }
}
