//! `clip-csi-node`: the control process of the CSI node plugin.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use clip_csi_node::archive_sources::Sources;
use clip_csi_node::archives::Archives;
use clip_csi_node::args::Args;
use clip_csi_node::csi::v1::identity_server::IdentityServer;
use clip_csi_node::csi::v1::node_server::NodeServer;
use clip_csi_node::custody::{self, Custody};
use clip_csi_node::engines::Engines;
use clip_csi_node::folder::Folder;
use clip_csi_node::identity::IdentityService;
use clip_csi_node::metrics::NodeMetrics;
use clip_csi_node::mounts::Mounts;
use clip_csi_node::node::NodeService;
use clip_csi_node::open_files;
use clip_csi_node::profiles::ProfileFiles;
use clip_csi_node::publish::Publisher;
use clip_csi_node::recover::{Places, recover};
use clip_csi_node::registration::{self, Registration};
use clip_csi_node::registration_server;
use clip_csi_node::resolve::{Cluster, Resolver};
use clip_csi_node::serve_process::{ServeProcess, ServeProgram};
use clip_csi_node::server::Socket;
use clip_csi_node::troubles::PodEvents;
use clip_csi_node::turn;
use clip_csi_node::warm_up::WarmUp;
use clip_csi_node::warm_up::events::ImageEvents;
use clip_csi_node::warm_up::pull_secrets::PullSecrets;
use clip_csi_node::warm_up::wishes::{self, Wishes};
use clip_csi_node::wire::Report;
use clip_registry::{ClientOptions, Credentials, PlainHttp, Platform};
use clip_telemetry::admin::{self, Ready};
use clip_telemetry::logs::{self, Verbosity};
use clip_telemetry::metrics::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::transport::Server;

/// How long requests in progress may take to end when the plugin is stopped. Those that wait for an index are cut off;
/// kubelet repeats them.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long after a refusal kubelet is asked again to register the driver.
const REGISTER_AGAIN: Duration = Duration::from_secs(10);
/// A recorded start is of use to nodes that begin later; it need not be hurried.
const SEND_PROFILES_EVERY: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    logs::init(
        Verbosity::verbose_if(args.verbose, Verbosity::Normal),
        args.log_format,
    );
    open_files::raise_limit();
    // For the Kubernetes client, which takes the process's provider; an error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut metrics = Metrics::new("csi-node", env!("CARGO_PKG_VERSION"));
    let node_metrics = NodeMetrics::new(&mut metrics);
    let stopping = stopping()?;

    // One that stands by is as ready as it can be: an upgrade goes on when it is.
    let ready = Ready::new();
    tokio::spawn(serve_admin(args.clone(), metrics, ready.clone()));
    let places = places(&args)?;
    ready.set(true);
    let lock = args.plugin_dir().join("turn");
    let _turn = tokio::select! {
        turn = turn::wait(&lock) => turn?,
        () = stopped(stopping.clone(), Duration::ZERO) => return Ok(()),
    };

    let keeper = args.keeper_socket();
    let kept = {
        let keeper = keeper.clone();
        tokio::task::spawn_blocking(move || custody::take(&keeper)).await?
    };
    let serve =
        ServeProcess::start(serve_program(&args, &places)?).context("cannot start clip-serve")?;
    let custody = Custody::start(keeper).context("cannot start a thread")?;
    let mounts = Mounts::new(
        places.mounts.clone(),
        serve.clone(),
        custody.clone(),
        Engines::new(args.engine),
    );
    let client = kubernetes(&args).await?;
    let publisher = Arc::new(publisher(&args, mounts, client.clone())?);
    recover(&places, &publisher.archives, &publisher.mounts, kept).await?;
    tokio::spawn(watch(
        serve.clone(),
        custody,
        publisher.clone(),
        node_metrics.clone(),
    ));
    tokio::spawn(keep_mounts_alive(
        serve.clone(),
        publisher.clone(),
        node_metrics.clone(),
    ));
    tokio::spawn(warm_up(
        args.clone(),
        client,
        serve,
        publisher.archives.clone(),
        node_metrics.clone(),
    ));

    tokio::spawn(send_profiles(publisher.clone()));

    let csi = listen_csi(&args, publisher, node_metrics, stopping.clone())?;
    tokio::select! {
        served = csi => served,
        registered = register(&args, stopping.clone()) => registered,
        () = stopped(stopping, STOP_LIMIT) => {
            tracing::info!("a connection is still open; a request on it is repeated by kubelet");
            Ok(())
        }
    }
    // clip-serve ends with this process. Volumes stay mounted: those that the keeper holds wait for the next life, the
    // others are dead until then.
}

/// Turns true at SIGTERM or SIGINT.
fn stopping() -> anyhow::Result<watch::Receiver<bool>> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        sender.send_replace(true);
        // Nobody can miss it: the sender stays until the process ends.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

/// Ends some time after the plugin was told to stop.
async fn stopped(mut stopping: watch::Receiver<bool>, after: Duration) {
    // An error would mean that the sender is gone, which it never is.
    let _ = stopping.wait_for(|stop| *stop).await;
    tokio::time::sleep(after).await;
}

/// `clip-serve` lies beside this program.
fn serve_program(args: &Args, places: &Places) -> anyhow::Result<ServeProgram> {
    let path = std::env::current_exe()
        .context("cannot find out where this program is")?
        .with_file_name("clip-serve");
    let mut arguments = vec![
        format!("--state-dir={}", args.state_dir.display()),
        format!("--log-format={}", args.log_format),
        format!("--record-start={}", args.record_start),
        format!("--cache-min-free={}", args.cache_min_free),
    ];
    arguments.extend(args.cache_max.map(|max| format!("--cache-max={max}")));
    let rate = args.complete_rate;
    arguments.extend(rate.map(|rate| format!("--complete-rate={rate}")));
    arguments.extend(
        args.plain_http
            .iter()
            .map(|host| format!("--plain-http={host}")),
    );
    arguments.extend(
        args.ca_cert
            .iter()
            .map(|file| format!("--ca-cert={}", file.display())),
    );
    arguments.extend(
        args.hosts_dir
            .iter()
            .map(|dir| format!("--hosts-dir={}", dir.display())),
    );
    // Kubelet makes the second one, when it has its first pod at the latest.
    let pods = places.kubelet.join("pods");
    std::fs::create_dir_all(&pods).with_context(|| format!("cannot create {}", pods.display()))?;
    arguments.extend([&places.mounts, &pods].map(|dir| format!("--hide={}", dir.display())));
    if args.verbose {
        arguments.push("--verbose".to_owned());
    }
    Ok(ServeProgram { path, arguments })
}

/// The folders, with the names that the mount table gives them.
fn places(args: &Args) -> anyhow::Result<Places> {
    let real = |path: &Path| -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        path.canonicalize()
            .with_context(|| format!("cannot use {}", path.display()))
    };
    Ok(Places {
        kubelet: real(&args.kubelet_dir)?,
        mounts: real(&args.plugin_dir().join("mounts"))?,
    })
}

/// None without a cluster (`--clipimages-from`).
async fn kubernetes(args: &Args) -> anyhow::Result<Option<kube::Client>> {
    if args.clipimages_from.is_some() {
        return Ok(None);
    }
    let client = kube::Client::try_default().await;
    client
        .context("cannot find the Kubernetes API (outside of a cluster set KUBECONFIG)")
        .map(Some)
}

/// The archives in a folder: what there is without a cluster.
fn folder(args: &Args) -> Folder {
    Folder::new(args.clipimages_from.clone().unwrap_or_default())
}

fn publisher(
    args: &Args,
    mounts: Mounts,
    client: Option<kube::Client>,
) -> anyhow::Result<Publisher> {
    let registries = ClientOptions {
        plain_http: match &args.plain_http[..] {
            [] => PlainHttp::Loopback,
            hosts => PlainHttp::Hosts(hosts.to_vec()),
        },
        credentials: Credentials::Anonymous,
        ca_certificates: args.ca_cert.clone(),
        hosts_dir: args.hosts_dir.clone(),
        ..ClientOptions::default()
    };
    let (resolver, events) = match client {
        None => (Resolver::Folder(folder(args)), PodEvents::nowhere()),
        Some(client) => {
            let cluster = Cluster::new(client.clone(), Platform::host().to_string());
            (Resolver::Cluster(cluster), PodEvents::in_cluster(client))
        }
    };
    let sources = Sources::new(
        args.archive_service.clone(),
        args.token_file.clone(),
        registries,
    )?;
    let folder = args.state_dir.join("archives");
    let profiles = ProfileFiles::open(&args.state_dir)
        .with_context(|| format!("cannot use {}", args.state_dir.display()))?;
    let archives = Archives::new(folder.clone(), profiles, sources)
        .with_context(|| format!("cannot use {}", folder.display()))?;
    Ok(Publisher::new(
        resolver,
        archives,
        mounts,
        args.publish_wait,
        events,
    ))
}

/// Passes on that the server is well, what it counts, and which reads failed.
async fn watch(
    serve: ServeProcess,
    custody: Custody,
    publisher: Arc<Publisher>,
    metrics: NodeMetrics,
) {
    let mut counted = metrics.cache_counter();
    let well = move |report: Report, generation| {
        custody.alive();
        counted(report.cache, generation);
        for failed in &report.failed_reads {
            publisher.mounts.read_failed(failed);
        }
    };
    serve.watch(well).await;
}

/// Has everything served at the start and after each death of clip-serve.
async fn keep_mounts_alive(serve: ServeProcess, publisher: Arc<Publisher>, metrics: NodeMetrics) {
    let mut generation = 0;
    loop {
        let now = serve.later_than(generation).await;
        if generation > 0 {
            metrics.serve_restarts.inc();
        }
        generation = now;
        publisher.mounts.heal().await;
    }
}

/// Has whole images on this node that `ClipImage`s want here.
async fn warm_up(
    args: Args,
    client: Option<kube::Client>,
    serve: ServeProcess,
    archives: Archives,
    metrics: NodeMetrics,
) {
    let node = args.node_name.clone();
    let (source, pull_secrets, events) = match client {
        None => (
            wishes::Source::Folder(folder(&args)),
            PullSecrets::Files,
            ImageEvents::nowhere(node),
        ),
        Some(client) => {
            let platform = Platform::host().to_string();
            let cluster = wishes::Cluster::new(client.clone(), platform, node.clone());
            let permitted = args.warm_up_secret.into_iter().collect();
            (
                wishes::Source::Cluster(cluster),
                PullSecrets::Cluster(client.clone(), permitted),
                ImageEvents::in_cluster(client, node),
            )
        }
    };
    let warm_up = WarmUp {
        serve,
        archives,
        pull_secrets,
        events,
        metrics,
    };
    let (told, wished) = watch::channel(Wishes::new());
    tokio::join!(source.watch(&told), warm_up.keep_up(wished));
}

/// Sends on what clip-serve has recorded, now and then.
async fn send_profiles(publisher: Arc<Publisher>) {
    loop {
        tokio::time::sleep(SEND_PROFILES_EVERY).await;
        publisher.archives.send_profiles().await;
    }
}

async fn serve_admin(args: Args, metrics: Metrics, ready: Ready) {
    if let Err(error) = admin::serve(args.metrics_listen, Arc::new(metrics), ready).await {
        tracing::error!("{error:#}; choose another address with --metrics-listen");
    }
}

fn listen_csi(
    args: &Args,
    publisher: Arc<Publisher>,
    metrics: NodeMetrics,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let path = args.csi_socket();
    let socket = Socket::listen(&path)?;
    tracing::info!(driver = clip_crds::DRIVER, node = args.node_name, socket = %path.display(), "serving CSI");
    let node = NodeService::new(args.node_name.clone(), publisher.clone(), metrics);
    let server = Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(publisher)))
        .add_service(NodeServer::new(node));
    Ok(async move {
        let stop = async move { stopping.wait_for(|stop| *stop).await.map_or((), |_| ()) };
        server
            .serve_with_incoming_shutdown(socket.incoming, stop)
            .await
            .context("serving CSI")
    })
}

/// Offers the driver to kubelet until the plugin is stopped, and again whenever kubelet refuses it.
async fn register(args: &Args, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
    let path = registration::socket_path(&args.registration_dir());
    loop {
        let socket = Socket::listen(&path)?;
        let remove = socket.remover();
        let (sender, mut refused) = mpsc::channel(1);
        let service = Registration::new(args.csi_socket(), sender);
        let server = registration_server::serve(socket.incoming, service);
        tokio::select! {
            served = server => return served.context("serving kubelet's plugin registration"),
            Some(reason) = refused.recv() => {
                tracing::error!(reason, "kubelet refused to register the driver; offering it again");
                remove();
                tokio::time::sleep(REGISTER_AGAIN).await;
            }
            _ = stopping.wait_for(|stop| *stop) => {
                // Without its socket kubelet forgets the driver, and sends no request that nobody would answer.
                remove();
                // The CSI server ends by itself, or at its limit.
                return std::future::pending().await;
            }
        }
    }
}
