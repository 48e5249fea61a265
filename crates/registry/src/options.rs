//! How a client shall behave.

use std::path::PathBuf;
use std::time::Duration;

use crate::credentials::Credentials;
use crate::http::is_loopback;

/// Which registries are spoken to without TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Those on this machine (`localhost`, `127.0.0.0/8`, `::1`), unless they turn out to speak TLS.
    #[default]
    Loopback,
    /// These as well, as `host` (any port) or `host:port`.
    Hosts(Vec<String>),
    /// All.
    All,
}

/// How a [`Client`] shall behave. `ClientOptions::default()` is right for a workstation.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Which registries are spoken to without TLS.
    pub plain_http: PlainHttp,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// Sent as `User-Agent`.
    pub user_agent: String,
    /// PEM files with CA certificates that are trusted in addition to the system's.
    pub ca_certificates: Vec<PathBuf>,
    /// A folder with containerd's registry host configuration (`HOST/hosts.toml`): mirrors, and how to speak to them.
    pub hosts_dir: Option<PathBuf>,
    /// Limit for a connection to come about, TLS included.
    pub connect_timeout: Duration,
    /// A transfer on which nothing arrives for so long is broken off, and resumed.
    pub read_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            plain_http: PlainHttp::default(),
            credentials: Credentials::default(),
            user_agent: concat!("clip/", env!("CARGO_PKG_VERSION")).to_owned(),
            ca_certificates: Vec::new(),
            hosts_dir: None,
            // A SYN that is lost twice still gets through: the kernel repeats it after 1 and 3 s.
            connect_timeout: Duration::from_secs(10),
            // Slower than any registry that works, faster than a pod's patience.
            read_timeout: Duration::from_secs(30),
        }
    }
}

impl PlainHttp {
    /// Whether `host` (`name` or `name:port`) may be spoken to without TLS.
    pub(crate) fn allows(&self, host: &str) -> bool {
        self.demands(host) || is_loopback(host)
    }

    /// Whether `host` is to be spoken to without TLS, come what may.
    pub(crate) fn demands(&self, host: &str) -> bool {
        let without_port = host.rsplit_once(':').map_or(host, |(name, _)| name);
        match self {
            PlainHttp::All => true,
            PlainHttp::Hosts(hosts) => hosts.iter().any(|h| h == host || h == without_port),
            PlainHttp::Loopback => false,
        }
    }
}
