//! TLS on the data port: what is agreed in a handshake, the renewal of the certificate, and what is closed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Connection, PATIENCE, get, post};
use flywheel_contract::failure::FailureReason;
use flywheel_contract::serving::TlsFiles;
use flywheel_server::Tls;
use pod::Pod;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Certificates in a folder, as a Secret is mounted: the files are links into another folder that is exchanged in one step.
struct Secret {
    folder: tempfile::TempDir,
}

impl Secret {
    fn new() -> (Self, CertificateDer<'static>) {
        let secret = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), secret.folder.path().join(name)).unwrap();
        }
        let certificate = secret.renew();
        (secret, certificate)
    }

    fn files(&self) -> TlsFiles {
        let path = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        TlsFiles {
            certificate: path("tls.crt"),
            key: path("tls.key"),
        }
    }

    fn put(&self, certificate: &str, key: &str) {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        fs::write(folder.join("tls.crt"), certificate).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        let link = self.folder.path().join("..new");
        std::os::unix::fs::symlink(folder, &link).unwrap();
        fs::rename(link, self.folder.path().join("..data")).unwrap();
    }

    fn renew(&self) -> CertificateDer<'static> {
        let made = made();
        self.put(&made.cert.pem(), &made.signing_key.serialize_pem());
        made.cert.der().clone()
    }
}

fn made() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(vec!["intent.team.svc".to_owned()]).unwrap()
}

async fn connect(
    pod: &Pod,
    trusted: &CertificateDer<'static>,
    protocols: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(pod.data).await.unwrap();
    let name = ServerName::try_from("intent.team.svc").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn pod(secret: &Secret) -> Pod {
    let pod = Pod::on("127.0.0.1:0", Some(secret.files()), 8, 5000);
    pod.install(1);
    pod
}

/// Sends over HTTP/1.1 and reads until the answer is there.
async fn exchange(stream: &mut TlsStream<TcpStream>) -> String {
    let body = json!({"text": "abc"}).to_string();
    stream.write_all(&post("/predict", body.as_bytes())).await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with('}') {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        assert!(count > 0, "closed after {answer}");
        answer.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    answer
}

const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

#[test]
fn the_handshake_agrees_on_the_protocol() {
    let (secret, trusted) = Secret::new();
    let pod = pod(&secret);
    pod.runtime.block_on(async {
        for (protocols, versions, spoken) in [
            (&["http/1.1"][..], BOTH, ProtocolVersion::TLSv1_3),
            (&[], BOTH, ProtocolVersion::TLSv1_3),
            (&["http/1.1"], &[&version::TLS12], ProtocolVersion::TLSv1_2),
        ] {
            let mut stream = connect(&pod, &trusted, protocols, versions).await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
            for _ in 0..2 {
                let answer = exchange(&mut stream).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        }
        let stream = connect(&pod, &trusted, &["h2", "http/1.1"], BOTH).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("https://intent.team.svc/readyz").body(()).unwrap();
        let answer = client.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 200);
        // Nothing in common.
        assert!(connect(&pod, &trusted, &["http/0.9"], BOTH).await.is_err());
    });
    assert_eq!(pod.stats().answered, [6, 0, 0], "and the inside port is plain");
}

#[test]
fn a_renewed_certificate_is_shown_to_new_connections() {
    let (secret, first) = Secret::new();
    let pod = pod(&secret);
    pod.runtime.block_on(async {
        let mut old = connect(&pod, &first, &[], BOTH).await.unwrap();
        let second = secret.renew();
        until_trusted(&pod, &second).await;
        assert!(connect(&pod, &first, &[], BOTH).await.is_err(), "the old one is gone");
        assert!(
            exchange(&mut old).await.starts_with("HTTP/1.1 200"),
            "what stands goes on"
        );
        // What cannot be used changes nothing.
        let (one, other) = (made(), made());
        secret.put(&one.cert.pem(), &other.signing_key.serialize_pem());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(connect(&pod, &second, &[], BOTH).await.is_ok());
        until_trusted(&pod, &secret.renew()).await;
    });
}

async fn until_trusted(pod: &Pod, trusted: &CertificateDer<'static>) {
    let deadline = Instant::now() + PATIENCE;
    while connect(pod, trusted, &[], BOTH).await.is_err() {
        assert!(Instant::now() < deadline, "never shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn who_speaks_no_tls_gets_no_answer() {
    let (secret, trusted) = Secret::new();
    let pod = pod(&secret);
    for bytes in [
        &b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let start = Instant::now();
        let mut client = Connection::open(pod.data);
        client.send(bytes);
        assert!(client.answer().is_none(), "answered in the clear");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "closed at once, not by a deadline"
        );
    }
    assert_eq!(get(pod.inside, "/livez").status, 200);
    // Who says nothing keeps no place for longer than a request's head may take.
    let start = Instant::now();
    let mut silent = Connection::open(pod.data);
    assert!(silent.answer().is_none());
    assert!((9..30).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(pod.runtime.block_on(connect(&pod, &trusted, &[], BOTH)).is_ok());
}

#[test]
fn what_is_no_certificate_is_told_with_its_file() {
    let (secret, _) = Secret::new();
    let (one, other) = (made(), made());
    let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
    let load = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(Tls::load(&secret.files())).map(|_| ())
    };
    secret.put(&certificate, &key);
    load().unwrap();
    let cut = &certificate[..certificate.len() / 2];
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (certificate, key, word) in [
        ("", key.as_str(), "tls.crt holds no certificate"),
        (cut, &key, "tls.crt"),
        (broken, &key, "cannot be used"),
        (&certificate, "", "tls.key holds no private key"),
        (&certificate, &certificate, "tls.key holds no private key"),
        (
            &certificate,
            &other.signing_key.serialize_pem(),
            "tls.key is not the key",
        ),
    ] {
        secret.put(certificate, key);
        let failure = load().expect_err(word);
        assert_eq!(failure.reason, FailureReason::CertificateInvalid);
        assert!(
            failure.message.contains(word) && failure.message.contains("kubernetes.io/tls"),
            "{failure}"
        );
        assert!(!failure.message.contains("BEGIN"), "{failure}");
    }
}
