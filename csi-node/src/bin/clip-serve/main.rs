//! `clip-serve`: the data process of the CSI node plugin. It answers what the kernel asks about mounted images.
//!
//! Control starts it with a socket as its standard input and hands it one FUSE descriptor for each archive
//! (`clip_csi_node::wire`). It mounts nothing and **never looks into a mount of its own**: a thread that waits for itself
//! could not even be killed. It ends when control does, and every connection with it.

mod own_view;
mod served;
mod warm_up;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use clip_crds::Prefetch;
use clip_csi_node::open_files;
use clip_csi_node::profiles::ProfileFiles;
use clip_csi_node::wire::{
    CacheCounts, Command, Outcome, Reason, Refusal, Reply, Report, Request, Secret,
};
use clip_engine::{
    CacheLimits, Dispatcher, FreeSpace, Node, NodeOptions, Pace, datagram, parse_bytes,
};
use clip_registry::{ClientOptions, Credentials, Digest, PlainHttp};
use clip_telemetry::logs::{self, Format, Verbosity};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::runtime::Handle;

use crate::served::{Served, Wanted};
use crate::warm_up::WarmUps;

/// Of how many images failed reads are reported in one answer: it must fit into a datagram.
const REPORTED_AT_ONCE: usize = 16;

/// The data process of Clip's CSI node plugin; clip-csi-node starts it.
#[derive(Debug, Parser)]
#[command(name = "clip-serve", version)]
struct Args {
    /// Where the cache of image contents is kept.
    #[arg(long, default_value = "/var/lib/clip", value_name = "DIR")]
    state_dir: PathBuf,

    /// Keep at most so much image content on the disk, such as 200Gi. Default: what --cache-min-free allows.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    cache_max: Option<u64>,

    /// Leave so much of the disk free, such as 50Gi or 20%.
    #[arg(long, default_value_t = CacheLimits::default().min_free, value_name = "SIZE|PERCENT")]
    cache_min_free: FreeSpace,

    /// A registry that is spoken to without TLS, as host or host:port; may be repeated.
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,

    /// PEM file with CA certificates for registries; may be repeated.
    #[arg(long, value_name = "FILE")]
    ca_cert: Vec<PathBuf>,

    /// Folder with containerd's registry host configuration (HOST/hosts.toml).
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,

    /// Fetch the rest of images that are to be complete at most at so many bytes a second, all together, such as 64Mi; 0: as
    /// fast as it gets.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    complete_rate: Option<u64>,

    /// Seconds that a read may wait for a registry before it fails with EIO.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    read_timeout: u64,

    /// Seconds for which what is read of an image that this node mounts for the first time is recorded, for the next
    /// node to fetch ahead; 0 records nothing.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    record_start: u64,

    /// A folder in which Clip mounts, to be hidden from this process; may be repeated.
    #[arg(long, value_name = "DIR")]
    hide: Vec<PathBuf>,

    /// How log lines look: text or json.
    #[arg(long, default_value_t, value_name = "FORMAT")]
    log_format: Format,

    /// Log in detail.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    logs::init(
        Verbosity::verbose_if(args.verbose, Verbosity::Normal),
        args.log_format,
    );
    let error = match run(args) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    tracing::error!("{error:#}");
    ExitCode::FAILURE
}

fn run(args: Args) -> anyhow::Result<Infallible> {
    // Control's end closes the socket, which ends `answer_requests`; this covers a control that is killed while
    // somebody else still holds the socket.
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot ask for the parent-death signal")?;
    open_files::raise_limit();
    own_view::hide(&args.hide)?;
    let control = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("cannot use standard input as control socket")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let profiles = ProfileFiles::open(&args.state_dir)
        .with_context(|| format!("cannot use {}", args.state_dir.display()))?;
    let start_window = Duration::from_secs(args.record_start);
    let completion = Arc::new(Pace::new(args.complete_rate));
    let node = Node::new(node_options(args), runtime.handle().clone())?;
    let server = Server {
        control,
        node,
        dispatcher: Dispatcher::start(threads()).context("cannot start threads")?,
        profiles,
        start_window,
        completion,
        runtime: runtime.handle().clone(),
        served: Mutex::default(),
        warm_ups: WarmUps::default(),
    };
    answer_requests(&Arc::new(server))
}

/// How many threads answer what the kernel asks, of all images. More than there are processors: some wait for the disk
/// under the cache.
fn threads() -> usize {
    let processors = available_parallelism().map_or(1, usize::from);
    (2 * processors).clamp(4, 32)
}

fn node_options(args: Args) -> NodeOptions {
    let client = ClientOptions {
        plain_http: match args.plain_http.is_empty() {
            true => PlainHttp::Loopback,
            false => PlainHttp::Hosts(args.plain_http),
        },
        // A node has no credentials of its own: each image is read with those of the pods that use it.
        credentials: Credentials::Anonymous,
        ca_certificates: args.ca_cert,
        hosts_dir: args.hosts_dir,
        ..ClientOptions::default()
    };
    NodeOptions {
        state_dir: args.state_dir,
        cache: CacheLimits {
            max_bytes: args.cache_max,
            min_free: args.cache_min_free,
        },
        client,
        read_timeout: Duration::from_secs(args.read_timeout),
    }
}

/// What the threads of this process share.
#[derive(Debug)]
struct Server {
    control: OwnedFd,
    node: Node,
    dispatcher: Dispatcher,
    profiles: ProfileFiles,
    /// How long the start of an image is recorded.
    start_window: Duration,
    /// How fast images are completed.
    completion: Arc<Pace>,
    runtime: Handle,
    /// By the archive's digest: of several connections for one archive (an aborted one may still be ending) the latest.
    served: Mutex<HashMap<Digest, Arc<Served>>>,
    /// What is to be on this node whole, whether somebody reads it or not.
    warm_ups: WarmUps,
}

fn refused(refusal: Refusal) -> Outcome {
    let Refusal { reason, message } = &refusal;
    tracing::error!(?reason, message, "request refused");
    Outcome::Error(refusal)
}

/// Takes requests until control is gone, which ends this process. Each is worked on by a thread of its own, so that opening
/// a large archive holds up no other.
fn answer_requests(server: &Arc<Server>) -> anyhow::Result<Infallible> {
    while let Some((json, descriptors)) =
        datagram::receive(&server.control).context("control's socket failed")?
    {
        let request: Request =
            serde_json::from_slice(&json).context("control sent what is no request")?;
        let (server, descriptor) = (server.clone(), descriptors.into_iter().next());
        std::thread::Builder::new()
            .name(format!("request-{}", request.id))
            .spawn(move || server.answer(request, descriptor))
            .context("cannot start a thread for a request")?;
    }
    tracing::info!("control is gone");
    // At once, without tidying up: who drops a read that is under way answers it with an error. The next server is asked
    // for it again.
    std::process::exit(0);
}

impl Server {
    fn answer(self: &Arc<Self>, request: Request, descriptor: Option<OwnedFd>) {
        let id = request.id;
        match request.command {
            Command::Serve {
                archive,
                archive_digest,
                login,
                resume,
            } => {
                let wanted = Wanted {
                    archive,
                    digest: archive_digest,
                    login,
                    resume,
                };
                let outcome = self.serve(wanted, descriptor);
                self.send(id, outcome.unwrap_or_else(refused));
            }
            Command::Prefetch {
                archive_digest,
                prefetch,
            } => self.reply(id, self.fetch_ahead(&archive_digest, prefetch)),
            Command::RenewCredentials {
                archive_digest,
                docker_config_json,
            } => self.reply(id, self.renew(&archive_digest, docker_config_json)),
            Command::WarmUp {
                archive,
                archive_digest,
                login,
            } => {
                let wanted = Wanted {
                    archive,
                    digest: archive_digest,
                    login,
                    resume: None,
                };
                self.reply(id, self.warm_up(wanted));
            }
            Command::Warmth { archive_digest } => {
                let warmth = self.warm_ups.warmth(&archive_digest);
                self.send(id, warmth.map_or_else(refused, Outcome::Warmth));
            }
            Command::CoolDown { archive_digest } => {
                self.warm_ups.end(&archive_digest);
                self.reply(id, Ok(()));
            }
            Command::Report {} => self.send(id, Outcome::Report(self.report())),
        }
    }

    fn report(&self) -> Report {
        let served = self.served();
        let failed_reads = served.values().filter_map(|served| served.failed_read());
        Report {
            cache: self.cache_counts(),
            failed_reads: failed_reads.take(REPORTED_AT_ONCE).collect(),
        }
    }

    fn cache_counts(&self) -> CacheCounts {
        let stats = self.node.cache_stats();
        CacheCounts {
            hits: stats.hits,
            misses: stats.misses,
            reads_failed: stats.reads_failed,
            spans_damaged: stats.spans_damaged,
            spans_not_kept: stats.spans_not_kept,
            spans_evicted: stats.spans_evicted,
            bytes_evicted: stats.bytes_evicted,
            bytes_on_disk: stats.bytes_on_disk,
        }
    }

    /// Serves an image until it is unmounted everywhere. Returns when the first can read.
    fn serve(
        self: &Arc<Self>,
        wanted: Wanted,
        descriptor: Option<OwnedFd>,
    ) -> Result<Outcome, Refusal> {
        let (digest, is_start) = (wanted.digest.clone(), wanted.resume.is_none());
        let (served, connection) = Served::start(&self.node, wanted, descriptor)?;
        let served = Arc::new(served);
        if is_start {
            self.record_start(&served, &digest);
        }
        let ended = self.dispatcher.serve(connection);
        let ended = ended.map_err(|error| Refusal {
            reason: Reason::Internal,
            message: format!("cannot serve the connection: {error}"),
        })?;
        self.served().insert(digest.clone(), served.clone());
        let (serving, server) = (served.serving(), self.clone());
        self.runtime.spawn(async move {
            let outcome = ended.await;
            let ended = tokio::task::spawn_blocking(move || server.end(&served, &digest, outcome));
            ended.await.expect("writes a file");
        });
        Ok(Outcome::Serving(serving))
    }

    fn end(&self, served: &Arc<Served>, digest: &Digest, outcome: io::Result<()>) {
        served.end(outcome);
        let mut all = self.served();
        if all
            .get(digest)
            .is_some_and(|latest| Arc::ptr_eq(latest, served))
        {
            all.remove(digest);
        }
    }

    /// Before anybody can read, so that nothing is missed.
    fn record_start(&self, served: &Arc<Served>, archive: &Digest) {
        let Some(file) = self.profiles.to_record(archive) else {
            return;
        };
        if self.start_window.is_zero() {
            return;
        }
        served.record(file);
        let (served, window) = (Arc::downgrade(served), self.start_window);
        self.runtime.spawn(async move {
            tokio::time::sleep(window).await;
            if let Some(served) = served.upgrade() {
                let written = tokio::task::spawn_blocking(move || served.end_recording());
                written.await.expect("writes a file");
            }
        });
    }

    fn fetch_ahead(&self, archive: &Digest, prefetch: Prefetch) -> Result<(), Refusal> {
        let served = self.find(archive)?;
        let profile = self.profiles.published(archive);
        served.fetch_ahead(prefetch, &profile, &self.completion, &self.runtime);
        Ok(())
    }

    fn warm_up(&self, wanted: Wanted) -> Result<(), Refusal> {
        self.warm_ups
            .begin(&self.node, wanted, &self.completion, &self.runtime)
    }

    fn find(&self, archive: &Digest) -> Result<Arc<Served>, Refusal> {
        let served = self.served().get(archive).cloned();
        served.ok_or_else(|| Refusal {
            reason: Reason::NotServed,
            message: format!("archive {archive} is not served"),
        })
    }

    fn renew(&self, archive: &Digest, docker_config: Secret) -> Result<(), Refusal> {
        self.find(archive)?.renew_credentials(docker_config)
    }

    fn reply(&self, id: u64, result: Result<(), Refusal>) {
        self.send(id, result.map_or_else(refused, |()| Outcome::Ok {}));
    }

    fn send(&self, id: u64, outcome: Outcome) {
        let reply = serde_json::to_vec(&Reply { id, outcome }).expect("plain data becomes JSON");
        if let Err(error) = datagram::send(&self.control, &reply, &[]) {
            // Control is gone; the main thread sees that too.
            tracing::warn!(%error, "cannot answer control");
        }
    }

    fn served(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Served>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
