//! The cluster's certificates and the key that signs service account tokens; all ECDSA P-256.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

use crate::error::{Error, Result};
use crate::paths;

/// A folder with `ca.crt`, `ca.key`, `sa.pub`, `sa.key` and one pair per name.
#[derive(Debug, Clone)]
pub(crate) struct Pki {
    folder: PathBuf,
}

/// Whom a certificate is for: as a client (user and group of Kubernetes) and as a server.
pub(crate) struct Subject<'a> {
    /// File name.
    pub(crate) name: &'a str,
    pub(crate) user: &'a str,
    pub(crate) group: Option<&'a str>,
    pub(crate) names: &'a [&'a str],
    pub(crate) addresses: &'a [IpAddr],
}

impl Pki {
    /// Opens the folder; makes the authority and the token key when they are not there.
    pub(crate) fn open(folder: &Path) -> Result<Pki> {
        paths::make(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(Error::path("closing", folder))?;
        let pki = Pki {
            folder: folder.to_owned(),
        };
        if !pki.certificate("ca").is_file() {
            let key = new_key("ca")?;
            let certificate = authority().self_signed(&key).map_err(failed("ca"))?;
            paths::write(&pki.key("ca"), key.serialize_pem())?;
            let tokens = new_key("sa")?;
            paths::write(&pki.key("sa"), tokens.serialize_pem())?;
            paths::write(&pki.token_key(), tokens.public_key_pem())?;
            // Last: its presence says that the others are there.
            paths::write(&pki.certificate("ca"), certificate.pem())?;
        }
        Ok(pki)
    }

    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// The public half of the key that signs service account tokens.
    pub(crate) fn token_key(&self) -> PathBuf {
        self.folder.join("sa.pub")
    }

    /// Makes a pair unless it is there.
    pub(crate) fn issue(&self, subject: &Subject) -> Result<()> {
        let file = self.certificate(subject.name);
        if file.is_file() {
            return Ok(());
        }
        let failed = || failed(subject.name);
        let authority_key = KeyPair::from_pem(&paths::read(&self.key("ca"))?).map_err(failed())?;
        let issuer = Issuer::new(authority(), authority_key);
        let mut params = dated(subject.names.iter().map(|name| (*name).to_owned()).collect()).map_err(failed())?;
        params
            .subject_alt_names
            .extend(subject.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = new_key(subject.name)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed())?;
        paths::write(&self.key(subject.name), key.serialize_pem())?;
        paths::write(&file, certificate.pem())
    }

    /// A pair for `user` and a kubeconfig at `file` that uses it.
    pub(crate) fn kubeconfig(
        &self,
        file: &Path,
        server: &str,
        name: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<()> {
        self.issue(&Subject {
            name,
            user,
            group,
            names: &[],
            addresses: &[],
        })?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority": self.certificate("ca")}}],
            "users": [{"name": name, "user": {"client-certificate": self.certificate(name), "client-key": self.key(name)}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": name}}],
            "current-context": "local",
        });
        paths::write(file, format!("{config:#}\n"))
    }
}

/// The authority's own data. The same each time, so that its key alone is enough to sign further certificates.
fn authority() -> CertificateParams {
    let mut params = dated(vec![]).unwrap_or_default();
    params
        .distinguished_name
        .push(DnType::CommonName, "flywheel-localcluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn dated(names: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    // A local cluster lives for days; the span only has to hold whatever the machine's clock says.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    Ok(params)
}

fn new_key(name: &str) -> Result<KeyPair> {
    KeyPair::generate().map_err(failed(name))
}

fn failed(name: &str) -> impl FnOnce(rcgen::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Certificate { name, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(folder.path()).unwrap();
        let subject = Subject {
            name: "admin",
            user: "admin",
            group: Some("system:masters"),
            names: &["localhost"],
            addresses: &[IpAddr::from([127, 0, 0, 1])],
        };
        pki.issue(&subject).unwrap();
        let first = paths::read(&pki.certificate("admin")).unwrap();
        Pki::open(folder.path()).unwrap().issue(&subject).unwrap();
        assert_eq!(first, paths::read(&pki.certificate("admin")).unwrap());
        assert!(
            paths::read(&pki.token_key())
                .unwrap()
                .starts_with("-----BEGIN PUBLIC KEY-----")
        );
    }
}
