//! Flags that several commands share.

use crate::failure::Failure;
use clap::Args;
use clip_engine::{
    CacheLimits, FreeSpace, parse_bytes,
    registry::{Client, ClientOptions, Credentials, PlainHttp},
};
use clip_telemetry::logs;
use std::{num::NonZero, path::PathBuf, thread::available_parallelism};
use tokio::runtime::Runtime;

/// Several registries' worth of TLS.
const NETWORK_THREADS_MAX: usize = 4;

/// Flags of every command.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Say in detail what happens.
    #[arg(short, long, global = true, env = "CLIP_VERBOSE", value_parser = clap::builder::FalseyValueParser::new())]
    pub verbose: bool,

    /// How log lines look: `text` or `json`.
    #[arg(
        long,
        global = true,
        default_value_t,
        value_name = "FORMAT",
        hide_default_value = true
    )]
    pub log_format: logs::Format,
}

impl CommonArgs {
    /// Starts logging.
    pub fn init_logs(&self) {
        logs::init(
            logs::Verbosity::verbose_if(self.verbose, logs::Verbosity::Quiet),
            self.log_format,
        );
    }
}

/// How registries are spoken to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Speak plain HTTP, to all registries or with `=HOST[:PORT]` to this one. Registries on this
    /// machine need no flag. May be repeated.
    #[arg(long, value_name = "HOST", num_args = 0..=1, require_equals = true, default_missing_value = "*")]
    plain_http: Vec<String>,

    /// Take credentials from this docker configuration instead of ~/.docker/config.json. May be
    /// repeated; of equally good matches the first counts.
    #[arg(long, value_name = "FILE")]
    docker_config: Vec<PathBuf>,

    /// Trust the certificate authorities in this PEM file, too. May be repeated.
    #[arg(long, value_name = "FILE")]
    ca_cert: Vec<PathBuf>,

    /// A folder with containerd's registry host configuration (HOST/hosts.toml): mirrors, which are
    /// asked before the registry itself.
    #[arg(long, value_name = "DIR", env = "CLIP_HOSTS_DIR")]
    hosts_dir: Option<PathBuf>,
}

impl RegistryArgs {
    /// The client options that these flags ask for.
    pub fn options(&self) -> Result<ClientOptions, Failure> {
        self.options_with(&self.docker_config)
    }

    /// The same with other docker configurations.
    pub fn options_with(&self, docker_config: &[PathBuf]) -> Result<ClientOptions, Failure> {
        let plain_http = match self.plain_http.as_slice() {
            [] => PlainHttp::Loopback,
            hosts if hosts.iter().any(|host| host == "*") => PlainHttp::All,
            hosts => PlainHttp::Hosts(hosts.to_vec()),
        };
        Ok(ClientOptions {
            plain_http,
            credentials: credentials(docker_config)?,
            ca_certificates: self.ca_cert.clone(),
            hosts_dir: self.hosts_dir.clone(),
            ..ClientOptions::default()
        })
    }

    /// A client that behaves as these flags ask.
    pub fn client(&self) -> Result<Client, Failure> {
        client(self.options()?)
    }
}

/// A client with these options.
pub fn client(options: ClientOptions) -> Result<Client, Failure> {
    Client::new(options).map_err(|error| Failure::permanent("InvalidConfiguration", error))
}

fn credentials(files: &[PathBuf]) -> Result<Credentials, Failure> {
    match files {
        [] => Ok(Credentials::DockerConfig(None)),
        [file] => Ok(Credentials::DockerConfig(Some(file.clone()))),
        files => {
            let read = |file: &PathBuf| {
                std::fs::read_to_string(file).map_err(|error| {
                    Failure::permanent(
                        "InvalidConfiguration",
                        format!(
                            "cannot read the docker configuration {}: {error}",
                            file.display()
                        ),
                    )
                })
            };
            Ok(Credentials::DockerConfigJson(
                files.iter().map(read).collect::<Result<_, _>>()?,
            ))
        }
    }
}

/// The runtime on which network work is done. Decoding and reading files have other threads, so few are enough.
pub fn runtime() -> Result<Runtime, Failure> {
    let processors = available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((processors / 2).clamp(1, NETWORK_THREADS_MAX))
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("cannot start the network threads: {error}")))
}

/// The state directory: `--state-dir`, else `/var/lib/clip` for root, else the user's cache folder.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// Where fetched content and expanded trees are kept [default: /var/lib/clip for root, else
    /// ~/.cache/clip].
    #[arg(long, value_name = "DIR", env = "CLIP_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    /// The directory that is meant.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.state_dir {
            return Ok(dir.clone());
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/clip"));
        }
        let from_env = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        from_env("XDG_CACHE_HOME")
            .or_else(|| from_env("HOME").map(|home| home.join(".cache")))
            .map(|cache| cache.join("clip"))
            .ok_or_else(|| Failure::local("no home directory: name a folder with --state-dir"))
    }
}

/// How much of the disk fetched content may take.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheLimitArgs {
    /// Keep at most so much fetched content on the disk, such as 20Gi; what was not used for the longest time goes
    /// [default: what --cache-min-free allows].
    #[arg(long, value_name = "SIZE", env = "CLIP_CACHE_MAX", value_parser = parse_bytes)]
    cache_max: Option<u64>,

    /// Leave so much of the disk free, such as 10Gi or 15%.
    #[arg(long, value_name = "SIZE|PERCENT", env = "CLIP_CACHE_MIN_FREE", default_value_t = CacheLimits::default().min_free)]
    cache_min_free: FreeSpace,
}

impl CacheLimitArgs {
    /// The limits that these flags ask for.
    pub fn limits(&self) -> CacheLimits {
        CacheLimits {
            max_bytes: self.cache_max,
            min_free: self.cache_min_free,
        }
    }
}
