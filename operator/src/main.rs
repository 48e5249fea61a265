//! The operator process: parse, build the shared parts, run, join.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use clip_operator::{
    access::Access,
    archive_service::ArchiveService,
    args::Args,
    controller,
    events::Events,
    measure::Measures,
    observe::Sources,
    reconcile::{Context, Written},
    store::Store,
};
use clip_telemetry::{
    admin::{self, Ready},
    logs::{self, Verbosity},
    metrics::Metrics,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    logs::init(
        Verbosity::verbose_if(args.verbose, Verbosity::Normal),
        args.log_format,
    );
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing installed another before");

    let jobs = args.job_settings().context("--ca-cert")?;
    let client = kube::Client::try_default()
        .await
        .context("cannot find the cluster (KUBECONFIG, or a pod's own)")?;
    let store = Store::open(&args.archive_dir)
        .with_context(|| format!("cannot use {} to keep archives", args.archive_dir.display()))?;
    let mut metrics = Metrics::new("operator", env!("CARGO_PKG_VERSION"));
    let measures = Measures::new(&mut metrics);
    let ready = Ready::new();
    let (waker, wakes) = controller::waker();
    let mut tasks = JoinSet::new();

    let access = Access::new(client.clone(), args.node_service_account.clone());
    let service = Arc::new(ArchiveService::new(
        access,
        store.clone(),
        waker.clone(),
        measures.clone(),
        args.limits(),
        args.default_platform.clone(),
    ));
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {} for archives", args.listen))?;
    tasks.spawn(async move {
        axum::serve(listener, service.router())
            .await
            .context("the archive service")
    });
    tasks.spawn(admin::serve(
        args.metrics_listen,
        Arc::new(metrics),
        ready.clone(),
    ));

    let (watched_jobs, pods) = controller::watch_jobs_and_pods(&client, &waker, &mut tasks);
    let context = Arc::new(Context {
        sources: Sources {
            client: client.clone(),
            store,
            jobs: watched_jobs,
            pods,
        },
        events: Events::new(client),
        jobs,
        rules: args.rules(),
        measures,
        written: Written::default(),
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), archives = %args.listen, "operator started");
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("shutting down");
    };
    let controller = controller::run(
        context,
        (waker, wakes),
        args.archive_grace,
        || ready.set(true),
        shutdown,
    );
    tokio::select! {
        ended = controller => ended,
        Some(ended) = tasks.join_next() => ended.context("a task was aborted")?,
    }
}
