//! The command line of `clip-csi-node`. Every option can also be given in the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clip_engine::{FreeSpace, parse_bytes};
use clip_telemetry::logs::Format;

use crate::engines::Engine;
use crate::warm_up::pull_secrets::SecretId;

/// The CSI node plugin of Clip: mounts indexed container images into pods.
#[derive(Clone, Debug, Parser)]
#[command(name = "clip-csi-node", version)]
pub struct Args {
    /// Name of this node, as Kubernetes knows it.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// Kubelet's folder; it must be mounted at the same path with mount propagation Bidirectional.
    #[arg(
        long,
        env = "CLIP_KUBELET_DIR",
        default_value = "/var/lib/kubelet",
        value_name = "DIR"
    )]
    pub kubelet_dir: PathBuf,

    /// Where archives and the cache of image contents are kept.
    #[arg(
        long,
        env = "CLIP_STATE_DIR",
        default_value = "/var/lib/clip",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,

    /// Keep at most so much image content on the disk, such as 200Gi; what was not used for the longest time goes.
    /// Default: what --cache-min-free allows.
    #[arg(long, env = "CLIP_CACHE_MAX", value_name = "SIZE", value_parser = parse_bytes)]
    pub cache_max: Option<u64>,

    /// Leave so much of the disk free, such as 50Gi or 20%. Kubelet begins to delete images and pods at 15%.
    #[arg(
        long,
        env = "CLIP_CACHE_MIN_FREE",
        value_name = "SIZE|PERCENT",
        default_value = "20%"
    )]
    pub cache_min_free: FreeSpace,

    /// Fetch the rest of images with `prefetch: All` at most at so many bytes a second, all together, such as 64Mi; 0: as
    /// fast as it gets.
    #[arg(long, env = "CLIP_COMPLETE_RATE", value_name = "SIZE", value_parser = parse_bytes)]
    pub complete_rate: Option<u64>,

    /// A secret that may be read to warm up private images, as NAMESPACE/NAME; may be repeated. Used for ClipImages of that
    /// namespace that name it in spec.pullSecrets.
    #[arg(
        long,
        env = "CLIP_WARM_UP_SECRET",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ','
    )]
    pub warm_up_secret: Vec<SecretId>,

    /// The operator's archive service, such as http://clip-archives.clip-system.svc.
    #[arg(long, env = "CLIP_ARCHIVE_SERVICE", value_name = "URL")]
    pub archive_service: Option<String>,

    /// File with the service-account token that the archive service asks for.
    #[arg(long, env = "CLIP_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// A registry that is spoken to without TLS, as host or host:port; may be repeated.
    #[arg(
        long,
        env = "CLIP_PLAIN_HTTP",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub plain_http: Vec<String>,

    /// PEM file with CA certificates for registries and the archive service; may be repeated.
    #[arg(long, env = "CLIP_CA_CERT", value_name = "FILE", value_delimiter = ',')]
    pub ca_cert: Vec<PathBuf>,

    /// Folder with containerd's registry host configuration (HOST/hosts.toml): mirrors, which are asked before the registry
    /// itself.
    #[arg(long, env = "CLIP_HOSTS_DIR", value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,

    /// Who serves the trees of images. `fuse`: Clip, on every kernel. `erofs`: the kernel itself (Linux 6.12), which asks
    /// Clip for cold bytes only. `auto`: `erofs` where this node's kernel can, else `fuse`.
    #[arg(
        long,
        env = "CLIP_ENGINE",
        default_value_t,
        value_enum,
        value_name = "ENGINE"
    )]
    pub engine: Engine,

    /// The keeper's socket; with a keeper, volumes outlive this plugin. Default: keeper.sock in the plugin's folder,
    /// plugins/csi.clip.dev in kubelet's folder.
    #[arg(long, env = "CLIP_KEEPER_SOCKET", value_name = "PATH")]
    pub keeper_socket: Option<PathBuf>,

    /// The CSI socket. Default: plugins/csi.clip.dev/csi.sock in kubelet's folder.
    #[arg(long, env = "CLIP_CSI_SOCKET", value_name = "PATH")]
    pub csi_socket: Option<PathBuf>,

    /// The folder that kubelet watches for plugins. Default: plugins_registry in kubelet's folder.
    #[arg(long, env = "CLIP_REGISTRATION_DIR", value_name = "DIR")]
    pub registration_dir: Option<PathBuf>,

    /// Where to serve /metrics, /healthz and /readyz.
    #[arg(
        long,
        env = "CLIP_METRICS_LISTEN",
        default_value = "0.0.0.0:9810",
        value_name = "ADDR:PORT"
    )]
    pub metrics_listen: SocketAddr,

    /// How long a pod's volume waits for an image that is being indexed, before kubelet is told how far it is. Kubelet
    /// itself gives up after 2 min.
    #[arg(long, env = "CLIP_PUBLISH_WAIT", default_value = "100s", value_parser = duration, value_name = "TIME")]
    pub publish_wait: Duration,

    /// Seconds for which what is read of an image that this node mounts for the first time is recorded, for the next node
    /// to fetch ahead; 0 records nothing.
    #[arg(
        long,
        env = "CLIP_RECORD_START",
        default_value_t = 60,
        value_name = "SECONDS"
    )]
    pub record_start: u64,

    /// Without Kubernetes, for trying and debugging: `clipImage: NAME` means the archive NAME.clip in this folder; with a
    /// file NAME.warm-up it is warmed up.
    #[arg(long, env = "CLIP_CLIPIMAGES_FROM", value_name = "DIR")]
    pub clipimages_from: Option<PathBuf>,

    /// How log lines look: text or json.
    #[arg(long, env = "CLIP_LOG_FORMAT", default_value_t, value_name = "FORMAT")]
    pub log_format: Format,

    /// Log in detail.
    #[arg(long, env = "CLIP_VERBOSE")]
    pub verbose: bool,
}

impl Args {
    /// Our folder among kubelet's plugins.
    pub fn plugin_dir(&self) -> PathBuf {
        self.kubelet_dir.join("plugins").join(clip_crds::DRIVER)
    }

    /// The CSI socket.
    pub fn csi_socket(&self) -> PathBuf {
        self.csi_socket
            .clone()
            .unwrap_or_else(|| self.plugin_dir().join("csi.sock"))
    }

    /// The keeper's socket.
    pub fn keeper_socket(&self) -> PathBuf {
        self.keeper_socket
            .clone()
            .unwrap_or_else(|| self.plugin_dir().join("keeper.sock"))
    }

    /// The folder that kubelet watches.
    pub fn registration_dir(&self) -> PathBuf {
        self.registration_dir
            .clone()
            .unwrap_or_else(|| self.kubelet_dir.join("plugins_registry"))
    }
}

/// `100s`, `500ms` or `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a time: write 500ms, 100s or 2m"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        _ => Err(format!("{text:?} has no unit: write 500ms, 100s or 2m")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("100s"), Ok(Duration::from_secs(100)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("100").is_err() && duration("s").is_err() && duration("1h").is_err());
    }

    #[test]
    fn sockets_are_where_kubelet_looks_for_them() {
        let args = Args::parse_from(["clip-csi-node", "--node-name", "n", "--kubelet-dir", "/k"]);
        assert_eq!(
            args.csi_socket(),
            PathBuf::from("/k/plugins/csi.clip.dev/csi.sock")
        );
        assert_eq!(
            args.registration_dir(),
            PathBuf::from("/k/plugins_registry")
        );
    }
}
