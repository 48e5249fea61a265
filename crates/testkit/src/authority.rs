//! Authorities that sign certificates of clients.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// A certificate of a client and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// The certificate alone.
    pub certificate: PathBuf,
    /// The key alone.
    pub key: PathBuf,
    /// Both in one file.
    pub both: PathBuf,
    /// The authority's own certificate.
    pub authority: PathBuf,
}

impl ClientCertificate {
    /// Makes one, signed by a new authority called `authority`, in the folder `dir` of that name, which is made.
    pub fn make(dir: &Path, authority: &str) -> Result<ClientCertificate> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, authority);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = CertificateParams::new(vec!["client".to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let key = key.serialize_pem();

        let dir = dir.join(authority);
        std::fs::create_dir_all(&dir)?;
        let write = |name: &str, content: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, content)?;
            Ok(path)
        };
        Ok(ClientCertificate {
            // skopeo knows them by these endings.
            certificate: write("client.cert", &certificate)?,
            key: write("client.key", &key)?,
            both: write("both.pem", &format!("{certificate}{key}"))?,
            authority: write("authority.pem", &issuer.pem())?,
        })
    }
}
