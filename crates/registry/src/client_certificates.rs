//! Certificates with which we show a host who we are: `client` in a `hosts.toml`.
//!
//! A host that wants one names the authorities that it trusts. Of several certificates the first is shown that one of
//! these has signed and whose key it can check; if there is none, none is shown. So does Go, and with it containerd.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, SignatureScheme};
use webpki::EndEntityCert;

use crate::error::ClientError;

/// Where a certificate and its key are, as PEM; both may be in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyPair {
    /// The certificate, and behind it those that lead to the authority, if there are any.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Reads `pairs`.
pub(crate) fn load(
    pairs: &[KeyPair],
    provider: &CryptoProvider,
) -> Result<Arc<dyn ResolvesClientCert>, ClientError> {
    let read = |pair: &KeyPair| {
        Certificate::read(pair, provider).map_err(|cause| ClientError::ClientCertificate {
            certificate: pair.certificate.clone(),
            key: pair.key.clone(),
            cause,
        })
    };
    let certificates = pairs.iter().map(read).collect::<Result<_, _>>()?;
    Ok(Arc::new(Certificates(certificates)))
}

#[derive(Debug)]
struct Certificates(Vec<Certificate>);

#[derive(Debug)]
struct Certificate {
    key: Arc<CertifiedKey>,
    /// Who signed it and each certificate behind it.
    issuers: Vec<DistinguishedName>,
}

impl Certificate {
    fn read(pair: &KeyPair, provider: &CryptoProvider) -> Result<Certificate, String> {
        let chain = CertificateDer::pem_file_iter(&pair.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| e.to_string())?;
        let issuers = chain
            .iter()
            .map(EndEntityCert::try_from)
            .map(|parsed| Ok(DistinguishedName::in_sequence(parsed?.issuer())))
            .collect::<Result<_, webpki::Error>>()
            .map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|e| e.to_string())?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|e| e.to_string())?;
        Ok(Certificate {
            key: Arc::new(key),
            issuers,
        })
    }

    fn suits(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> bool {
        let is_trusted = |issuer: &DistinguishedName| authorities.contains(&issuer.as_ref());
        let is_signed = authorities.is_empty() || self.issuers.iter().any(is_trusted);
        is_signed && self.key.key.choose_scheme(schemes).is_some()
    }
}

impl ResolvesClientCert for Certificates {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let suits = |certificate: &&Certificate| certificate.suits(authorities, schemes);
        let found = self.0.iter().find(suits);
        found.map(|certificate| certificate.key.clone())
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_with_its_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let [one, other] =
            [(); 2].map(|()| rcgen::generate_simple_self_signed(["me".to_owned()]).unwrap());
        let certificate = write("one.cert", &one.cert.pem());
        let key = write("one.key", &one.signing_key.serialize_pem());
        let others_key = write("other.key", &other.signing_key.serialize_pem());
        let (nothing, absent) = (write("nothing", ""), dir.path().join("absent"));
        let provider = rustls::crypto::ring::default_provider();
        for (certificate, key, is_good) in [
            (&certificate, &key, true),
            (&certificate, &certificate, false),
            (&certificate, &others_key, false),
            (&certificate, &absent, false),
            (&nothing, &key, false),
            (&absent, &key, false),
        ] {
            let pair = KeyPair {
                certificate: certificate.clone(),
                key: key.clone(),
            };
            let loaded = load(&[pair], &provider);
            assert_eq!(loaded.is_ok(), is_good, "{certificate:?} {key:?}");
            if let Err(error) = loaded {
                let text = error.to_string();
                assert!(text.contains(certificate.to_str().unwrap()), "{text}");
                assert!(text.contains(key.to_str().unwrap()), "{text}");
            }
        }
    }
}
