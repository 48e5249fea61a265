//! The operator's command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use clip_telemetry::logs::Format;

use crate::{
    access::ServiceAccount,
    archive_service::Limits,
    certificates::{self, CertificateError},
    decide::Rules,
    identity::native_platform,
    job::JobSettings,
};

/// Clip's operator: keeps an index of every ClipImage, and serves the archives to the nodes.
#[derive(Debug, Clone, Parser)]
#[command(name = "clip-operator", version)]
pub struct Args {
    /// Container image of the indexing Jobs; it holds `clip`.
    #[arg(long, env = "CLIP_JOB_IMAGE")]
    pub job_image: String,

    /// URL under which Jobs and nodes reach the archive service.
    #[arg(
        long,
        default_value = "http://clip-operator.clip-system.svc:8080",
        value_name = "URL"
    )]
    pub archive_service_url: String,

    /// Where the archive service listens.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, default_value = "0.0.0.0:8081", value_name = "ADDR")]
    pub metrics_listen: SocketAddr,

    /// The folder in which archives are kept. Losing it is harmless: they are made again.
    #[arg(long, default_value = "/var/lib/clip-operator", value_name = "DIR")]
    pub archive_dir: PathBuf,

    /// The largest archive that is accepted, in bytes.
    #[arg(long, default_value_t = 1 << 30, value_name = "BYTES")]
    pub max_archive_bytes: u64,

    /// The most that an archive's lists of files and seek points may unpack to, in bytes: they are held in memory while it is verified, as
    /// about five times as much (600,000 files: 50 MB, 240 MB in memory).
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub max_decoded_bytes: u64,

    /// How long an archive that no ClipImage needs is kept, in seconds.
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub archive_grace: Duration,

    /// Service account of the node plugin, which may download archives.
    #[arg(
        long,
        default_value = "clip-system:clip-csi-node",
        value_name = "NAMESPACE:NAME"
    )]
    pub node_service_account: ServiceAccount,

    /// Platform of images whose spec names none.
    #[arg(long, default_value = native_platform(), value_name = "OS/ARCH")]
    pub default_platform: String,

    /// A registry that speaks plain HTTP, for the indexing Jobs. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub plain_http: Vec<String>,

    /// PEM file with CA certificates of registries, for the indexing Jobs. May be repeated.
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Vec<PathBuf>,

    /// Folder on the nodes with containerd's registry host configuration (HOST/hosts.toml), for the indexing Jobs, which
    /// mount it. Their namespaces must allow volumes of type hostPath.
    #[arg(long, value_parser = absolute, value_name = "DIR")]
    pub job_hosts_dir: Option<String>,

    /// Log what Clip does in detail.
    #[arg(long, short, env = "CLIP_VERBOSE", value_parser = clap::builder::FalseyValueParser::new())]
    pub verbose: bool,

    /// How log lines look: text or json.
    #[arg(long, default_value_t = Format::Text, value_name = "FORMAT")]
    pub log_format: Format,
}

impl Args {
    /// What Jobs have in common.
    ///
    /// # Errors
    /// When the CA certificates cannot be used.
    pub fn job_settings(&self) -> Result<JobSettings, CertificateError> {
        Ok(JobSettings {
            image: self.job_image.clone(),
            archive_service_url: self.base_url(),
            default_platform: self.default_platform.clone(),
            plain_http: self.plain_http.clone(),
            ca_certificates: certificates::bundle(&self.ca_cert)?,
            hosts_dir: self.job_hosts_dir.clone(),
        })
    }

    /// What the archive service accepts.
    pub fn limits(&self) -> Limits {
        Limits {
            archive_bytes: self.max_archive_bytes,
            decoded_bytes: self.max_decoded_bytes,
        }
    }

    /// What holds for all images.
    pub fn rules(&self) -> Rules {
        Rules {
            default_platform: self.default_platform.clone(),
            archive_service_url: self.base_url(),
        }
    }

    fn base_url(&self) -> String {
        self.archive_service_url.trim_end_matches('/').to_owned()
    }
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

/// Kubernetes takes no other for a mount.
fn absolute(path: &str) -> Result<String, &'static str> {
    match path.starts_with('/') {
        true => Ok(path.to_owned()),
        false => Err("it must begin with /"),
    }
}
