//! What can go wrong, one enum per operation. A message is a plain sentence that names the image and what to do.
//!
//! All of them answer two questions: [`is_permanent`](RequestError::is_permanent), whether trying again is of no use
//! until somebody changes something, and [`reason`](RequestError::reason), the CamelCase word for a condition or event.

mod fetch;
mod push;
mod resolve;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use fetch::FetchError;
pub use push::PushError;
pub use resolve::ResolveError;

/// Why [`Client::new`](crate::Client::new) failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file of CA certificates cannot be used.
    #[error(
        "the CA certificates in {path} cannot be used: {cause}; the file must hold PEM certificates"
    )]
    CaCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A certificate that shows a host who we are cannot be used.
    #[error(
        "the client certificate in {certificate} with the key in {key} cannot be used: {cause}; \
         both must be PEM, and if they are in files of their own they are named as a pair: [[\"CERT\", \"KEY\"]]"
    )]
    ClientCertificate {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// What is wrong with them.
        cause: String,
    },
    /// The docker configuration cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

/// Why no credential could be found out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    /// A docker configuration that was named does not exist, cannot be read, or is not JSON.
    #[error("the docker configuration in {origin} cannot be used: {cause}")]
    Config {
        /// The file or secret.
        origin: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A credential helper failed.
    #[error("the credentials for {registry} in {origin} cannot be had: {cause}")]
    Helper {
        /// The registry asked for.
        registry: String,
        /// The file or secret.
        origin: String,
        /// What the helper said.
        cause: String,
    },
    /// The registry wants the password sent to a place without encryption.
    #[error(
        "{registry} wants the password sent to {realm} without encryption: \
         allow that host with --plain-http if you trust the network"
    )]
    PlainHttpRealm {
        /// The registry asked for.
        registry: String,
        /// The token service it names.
        realm: String,
    },
}

/// Where a credential came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialOrigin {
    /// There is none.
    Anonymous,
    /// A docker configuration file.
    File(PathBuf),
    /// A pull secret's content.
    Secret,
    /// A user name and password given directly.
    Given,
}

impl fmt::Display for CredentialOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialOrigin::Anonymous => f.write_str("no credentials"),
            CredentialOrigin::File(path) => write!(f, "the credentials in {}", path.display()),
            CredentialOrigin::Secret => f.write_str("the credentials in the pull secret"),
            CredentialOrigin::Given => f.write_str("the given user name and password"),
        }
    }
}

/// Why a registry gave no useful answer, whatever it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// Wrong or missing credentials.
    #[error("{}", unauthorized(target, registry, origin))]
    Unauthorized {
        /// The image or repository asked for.
        target: String,
        /// The registry that refused.
        registry: String,
        /// The credentials it refused.
        origin: CredentialOrigin,
        /// Whether the registry gave out an anonymous token first. Many answer so for repositories that do not exist.
        anonymous_token: bool,
    },
    /// The credentials are good, but not for this.
    #[error(
        "{}: ask its owner for access",
        forbidden(target, registry, origin, detail_text)
    )]
    Forbidden {
        /// The image or repository asked for.
        target: String,
        /// The registry that refused.
        registry: String,
        /// The credentials it refused.
        origin: CredentialOrigin,
        /// The registry's own words.
        detail_text: String,
    },
    /// No answer: name resolution, connection, TLS or a time-out.
    #[error("{target}: the registry at {host} cannot be reached: {cause}{}", hint(*speaks_plain_http))]
    Unreachable {
        /// The image or repository asked for.
        target: String,
        /// The host that was tried.
        host: String,
        /// The innermost cause.
        cause: String,
        /// The host answered TLS with something that is not TLS.
        speaks_plain_http: bool,
    },
    /// The registry asks for patience.
    #[error(
        "{target}: {host} limits the rate of requests{}; credentials often raise the limit",
        after(retry_after)
    )]
    RateLimited {
        /// The image or repository asked for.
        target: String,
        /// The host that answered 429.
        host: String,
        /// When it says to come back.
        retry_after: Option<Duration>,
    },
    /// An answer that is neither success nor any of the above.
    #[error("{target}: {host} answered {status}{}", detail(detail_text))]
    Status {
        /// The image or repository asked for.
        target: String,
        /// The host that answered.
        host: String,
        /// The HTTP status code.
        status: u16,
        /// The registry's own words.
        detail_text: String,
    },
    /// No credential could be found out.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

fn unauthorized(target: &str, registry: &str, origin: &CredentialOrigin) -> String {
    match origin {
        CredentialOrigin::Anonymous => format!(
            "{target} needs a login at {registry}, or does not exist there: \
             add credentials for {registry} to the docker config (docker login) or the pull secret"
        ),
        origin => format!(
            "{registry} refused {origin} for {target}: correct the docker config (docker login) or the pull secret"
        ),
    }
}

fn forbidden(target: &str, registry: &str, origin: &CredentialOrigin, words: &str) -> String {
    let words = detail(words);
    match origin {
        CredentialOrigin::Anonymous => {
            format!("{registry} does not allow the use of {target} without a login{words}")
        }
        origin => format!("{registry} does not allow {origin} to use {target}{words}"),
    }
}

fn hint(speaks_plain_http: bool) -> &'static str {
    if speaks_plain_http {
        "; it speaks plain HTTP: allow that with --plain-http if you trust the network"
    } else {
        "; check its name and port, and that it can be reached from here"
    }
}

fn after(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |d| {
        format!("; try again in {} s", d.as_secs().max(1))
    })
}

fn detail(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    }
}

impl RequestError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            RequestError::Unauthorized { .. } | RequestError::Forbidden { .. } => true,
            RequestError::Unreachable {
                speaks_plain_http, ..
            } => *speaks_plain_http,
            RequestError::RateLimited { .. } => false,
            RequestError::Status { status, .. } => *status < 500 && *status != 408,
            // A helper may ask a service that is down for a moment.
            RequestError::Credentials(CredentialError::Helper { .. }) => false,
            RequestError::Credentials(_) => true,
        }
    }

    /// Whether the registry said no to the credentials.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            RequestError::Unauthorized { .. } | RequestError::Forbidden { .. }
        )
    }

    /// Whether it speaks of the repository and of who asks for it, and not of the host's state.
    pub(crate) fn is_about_access(&self) -> bool {
        match self {
            RequestError::Unauthorized { .. }
            | RequestError::Forbidden { .. }
            | RequestError::Credentials(_) => true,
            // Of a store to which the host sent us on; some (S3) answer so for what they do not have.
            RequestError::Status { status, .. } => matches!(status, 401 | 403),
            RequestError::Unreachable { .. } | RequestError::RateLimited { .. } => false,
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            RequestError::Unauthorized { .. } | RequestError::Credentials(_) => "Unauthorized",
            RequestError::Forbidden { .. } => "Forbidden",
            RequestError::Unreachable { .. } => "RegistryUnreachable",
            RequestError::RateLimited { .. } => "RateLimited",
            RequestError::Status { status, .. } if *status >= 500 => "RegistryUnreachable",
            RequestError::Status { .. } => "RegistryRefused",
        }
    }
}
