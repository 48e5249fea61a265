//! Certificates of registries with an authority of their own, on their way into the indexing Jobs.
//!
//! Jobs run in the namespaces of their ClipImages, where a ConfigMap of the operator's own namespace cannot be mounted,
//! and the operator shall not be allowed to write ConfigMaps everywhere. Certificates are public and small, so they
//! travel in an annotation of the Job's pod, which the kubelet shows to the container as a file (downward API).

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// All annotations of an object together may have 256 KiB; this leaves room for others, and is good for about 60
/// certificates.
const BUNDLE_MAX: usize = 128 << 10;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file.
    #[error("cannot read the CA certificates in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{path} must hold CA certificates in PEM, and nothing else: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Too many.
    #[error(
        "the CA certificates have {0} bytes, more than the {BUNDLE_MAX} that fit into a Job: name only your own \
         authorities, well-known ones are built in"
    )]
    TooLarge(usize),
}

/// The certificates of all files as one PEM text; `None` without files.
///
/// # Errors
/// When a file cannot be read or holds something else: a private key must not get into an annotation.
pub fn bundle(files: &[PathBuf]) -> Result<Option<String>, CertificateError> {
    let mut bundle = String::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|source| CertificateError::Read {
            path: path.clone(),
            source,
        })?;
        check(path, &text)?;
        bundle.push_str(text.trim());
        bundle.push('\n');
    }
    if bundle.len() > BUNDLE_MAX {
        return Err(CertificateError::TooLarge(bundle.len()));
    }
    Ok(Some(bundle).filter(|bundle| !bundle.is_empty()))
}

fn check(path: &Path, text: &str) -> Result<(), CertificateError> {
    let wrong = |problem: String| CertificateError::Content {
        path: path.to_owned(),
        problem,
    };
    let mut certificates = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        certificate.map_err(|error| wrong(error.to_string()))?;
        certificates += 1;
    }
    let sections = text.matches("-----BEGIN ").count();
    match certificates {
        0 => Err(wrong("there is none in it".to_owned())),
        _ if sections != certificates => Err(wrong("there is something else in it".to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nb25l\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN CERTIFICATE-----\ndHdv\n-----END CERTIFICATE-----";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n";

    fn of(contents: &[&str]) -> Result<Option<String>, CertificateError> {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |(number, content): (usize, &&str)| {
            let path = dir.path().join(format!("{number}.pem"));
            std::fs::write(&path, content).expect("written");
            path
        };
        let files: Vec<PathBuf> = contents.iter().enumerate().map(write).collect();
        bundle(&files)
    }

    #[test]
    fn certificates_of_all_files_are_one_text() {
        assert_eq!(of(&[]).expect("nothing"), None);
        assert_eq!(
            of(&[ONE, TWO]).expect("both"),
            Some(format!("{ONE}{TWO}\n"))
        );
    }

    #[test]
    fn what_is_no_certificate_does_not_get_into_jobs() {
        for (contents, message) in [
            (vec!["hello"], "there is none in it"),
            (vec![KEY], "there is none in it"),
            (vec![ONE, &format!("{ONE}{KEY}")], "something else"),
            (vec!["-----BEGIN CERTIFICATE-----\nb25l"], "must hold"),
            (vec![&*ONE.repeat(3000)], "fit into a Job"),
        ] {
            let error = of(&contents).expect_err(message).to_string();
            assert!(error.contains(message), "{error}");
        }
        let missing = bundle(&["/nonexistent/ca.pem".into()]).expect_err("missing");
        assert!(
            missing.to_string().contains("/nonexistent/ca.pem"),
            "{missing}"
        );
    }
}
