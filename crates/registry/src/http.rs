//! The HTTP clients under everything: TLS with ring, root certificates, proxies, time-outs.
//!
//! * Roots are the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured); in an image without any, Mozilla's,
//!   which are built in; and always those of [`ClientOptions::ca_certificates`](crate::ClientOptions).
//! * The system's roots are read, and the clients built, for the first request: mounting an image needs none, and
//!   there may be hundreds of files of them. What the user names is read at once.
//! * HTTP/1.1 only: each range request has a connection of its own, so that one stalled or throttled transfer does
//!   not hold up the others, as the streams of one HTTP/2 connection do (measured: docs/design/0008).
//! * Redirects are never followed here: the caller does, and decides who gets to see `Authorization`.
//! * Loopback hosts are asked directly, whatever `HTTP_PROXY` says.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::Url;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::client_certificates::{self, KeyPair};
use crate::error::ClientError;
use crate::options::ClientOptions;

#[derive(Debug, Clone)]
pub(crate) struct Http {
    inner: Arc<Inner>,
    /// A connection on which nothing arrives for so long is given up.
    pub(crate) read_timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// Built for the first request, or why they cannot be.
    clients: OnceLock<Result<Clients, String>>,
}

/// What the clients are built from.
#[derive(Debug)]
struct Settings {
    /// Trusted in addition to the system's roots.
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    /// What a host is shown that asks for a certificate.
    certificates: Option<Arc<dyn ResolvesClientCert>>,
    skip_verify: bool,
    connect_timeout: Duration,
    user_agent: String,
}

#[derive(Debug)]
struct Clients {
    proxied: reqwest::Client,
    direct: reqwest::Client,
}

impl Http {
    pub(crate) fn new(options: &ClientOptions) -> Result<Http, ClientError> {
        Ok(Http::with(options, Settings::new(options)?))
    }

    /// For a host that is shown one of the certificates `client` if it asks, and whose own nobody checks with `skip_verify`.
    pub(crate) fn for_host(
        options: &ClientOptions,
        client: &[KeyPair],
        skip_verify: bool,
    ) -> Result<Http, ClientError> {
        let settings = Settings::new(options)?;
        let certificates = client_certificates::load(client, &settings.provider)?;
        let settings = Settings {
            certificates: Some(certificates),
            skip_verify,
            ..settings
        };
        Ok(Http::with(options, settings))
    }

    fn with(options: &ClientOptions, settings: Settings) -> Http {
        let inner = Inner {
            settings,
            clients: OnceLock::new(),
        };
        Http {
            inner: Arc::new(inner),
            read_timeout: options.read_timeout,
        }
    }

    /// The client for `url`.
    fn client(&self, url: &Url) -> Result<&reqwest::Client, &str> {
        let Inner { settings, clients } = &*self.inner;
        let clients = clients.get_or_init(|| settings.clients());
        let Clients { proxied, direct } = clients.as_ref().map_err(String::as_str)?;
        Ok(match url.host_str() {
            Some(host) if is_loopback(host) => direct,
            _ => proxied,
        })
    }

    /// Sends a request; an error means that no answer came.
    pub(crate) async fn send(
        &self,
        request: reqwest::Request,
    ) -> Result<reqwest::Response, TransportError> {
        let host = authority(request.url());
        let client = match self.client(request.url()) {
            Ok(client) => client,
            Err(cause) => return Err(TransportError::no_client(host, cause)),
        };
        // An upload is allowed to be as slow as 100 kB/s before its answer is missed.
        let upload = request
            .body()
            .and_then(|b| b.as_bytes())
            .map_or(0, <[u8]>::len);
        let patience = self.read_timeout + Duration::from_millis(upload as u64 / 100);
        match tokio::time::timeout(patience, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(TransportError::from_reqwest(host, &error)),
            Err(_) => Err(TransportError::timed_out(host, patience)),
        }
    }
}

impl Settings {
    fn new(options: &ClientOptions) -> Result<Settings, ClientError> {
        let mut roots = RootCertStore::empty();
        for path in &options.ca_certificates {
            add_ca_file(&mut roots, path)?;
        }
        Ok(Settings {
            roots,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            certificates: None,
            skip_verify: false,
            connect_timeout: options.connect_timeout,
            user_agent: options.user_agent.clone(),
        })
    }

    fn clients(&self) -> Result<Clients, String> {
        let tls = self.tls_config().map_err(|e| e.to_string())?;
        let client = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .http1_only()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(self.connect_timeout)
                .user_agent(&self.user_agent)
        };
        Ok(Clients {
            proxied: client().build().map_err(|e| innermost(&e))?,
            direct: client().no_proxy().build().map_err(|e| innermost(&e))?,
        })
    }

    fn tls_config(&self) -> Result<rustls::ClientConfig, rustls::Error> {
        let mut roots = system_roots();
        roots.extend(self.roots.roots.iter().cloned());
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        if let Some(certificates) = &self.certificates {
            tls.client_auth_cert_resolver = certificates.clone();
        }
        if self.skip_verify {
            let verifier = Arc::new(AnyCertificate(self.provider.clone()));
            tls.dangerous().set_certificate_verifier(verifier);
        }
        Ok(tls)
    }
}

/// Takes any certificate, but the server must have its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
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
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// No answer came, or it broke off.
#[derive(Debug, Clone)]
pub(crate) struct TransportError {
    pub host: String,
    pub cause: String,
    pub speaks_plain_http: bool,
    pub connected: bool,
}

impl TransportError {
    pub(crate) fn from_reqwest(host: String, error: &reqwest::Error) -> TransportError {
        let cause = innermost(error);
        TransportError {
            host,
            cause,
            speaks_plain_http: is_no_tls(error),
            connected: !error.is_connect(),
        }
    }

    fn no_client(host: String, cause: &str) -> TransportError {
        TransportError {
            host,
            cause: format!("the HTTP client cannot be set up: {cause}"),
            speaks_plain_http: false,
            connected: false,
        }
    }

    pub(crate) fn timed_out(host: String, patience: Duration) -> TransportError {
        let cause = format!("no answer within {} s", patience.as_secs_f32());
        TransportError {
            host,
            cause,
            speaks_plain_http: false,
            connected: true,
        }
    }
}

/// Whether a handshake failed because what came was not TLS.
fn is_no_tls(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidMessage(_));
    }
    // `source` of an I/O error passes over the error that it wraps.
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(|error| error.get_ref());
    match wrapped {
        Some(wrapped) => is_no_tls(wrapped),
        None => error.source().is_some_and(is_no_tls),
    }
}

/// The cause at the end of the chain: reqwest's and hyper's own words say only that a request failed.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// `host[:port]` of a URL.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether a host name, with or without brackets and port, means this machine.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    let host = if registry.parse::<std::net::Ipv6Addr>().is_ok() {
        registry
    } else {
        host
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn add_ca_file(roots: &mut RootCertStore, path: &Path) -> Result<(), ClientError> {
    let error = |cause: String| ClientError::CaCertificates {
        path: path.to_owned(),
        cause,
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| error(e.to_string()))?;
    if certificates.is_empty() {
        return Err(error("it holds no certificate".to_owned()));
    }
    for certificate in certificates {
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_with_and_without_port() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:5000",
            "[::1]",
            "::1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "128.0.0.1",
            "localhost.evil.org",
            "[2001:db8::1]:5000",
            "10.0.0.1:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_client_can_be_made_without_any_system_certificate() {
        let settings = Settings::new(&ClientOptions::default()).unwrap();
        assert!(settings.clients().is_ok());
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let options = ClientOptions {
            ca_certificates: vec![file.path().to_owned()],
            ..ClientOptions::default()
        };
        let error = Http::new(&options).unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
