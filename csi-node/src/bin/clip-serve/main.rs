//! `clip-serve`: the data process of the CSI node plugin. It answers what the kernel asks about mounted images.
//!
//! Control starts it with a socket as its standard input and hands it one FUSE descriptor for each archive
//! (`clip_csi_node::wire`). It mounts nothing and **never looks into a mount of its own**: a thread that waits for itself
//! could not even be killed. It ends when control does, and every connection with it.

mod served;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use clip_csi_node::wire::{self, Command, Outcome, Refusal, Reply, Request};
use clip_engine::{Node, NodeOptions};
use clip_registry::{ClientOptions, Credentials, PlainHttp};
use clip_telemetry::logs::{self, Format, Verbosity};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::served::Served;

/// The data process of Clip's CSI node plugin; clip-csi-node starts it.
#[derive(Debug, Parser)]
#[command(name = "clip-serve", version)]
struct Args {
    /// Where the cache of image contents is kept.
    #[arg(long, default_value = "/var/lib/clip", value_name = "DIR")]
    state_dir: PathBuf,

    /// A registry that is spoken to without TLS, as host or host:port; may be repeated.
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,

    /// PEM file with CA certificates for registries; may be repeated.
    #[arg(long, value_name = "FILE")]
    ca_cert: Vec<PathBuf>,

    /// Seconds that a read may wait for a registry before it fails with EIO.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    read_timeout: u64,

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
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    // Control's end closes the socket, which ends `answer_requests`; this covers a control that is killed while
    // somebody else still holds the socket.
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot ask for the parent-death signal")?;
    let control = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("cannot use standard input as control socket")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let node = Node::new(node_options(args), runtime.handle().clone())?;
    answer_requests(&Arc::new(control), &Arc::new(node))
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
        ..ClientOptions::default()
    };
    NodeOptions {
        state_dir: args.state_dir,
        client,
        read_timeout: Duration::from_secs(args.read_timeout),
    }
}

/// Takes requests until control is gone. Each is worked on by a thread of its own, so that opening a large archive holds
/// up no other.
fn answer_requests(control: &Arc<OwnedFd>, node: &Arc<Node>) -> anyhow::Result<()> {
    while let Some((json, descriptor)) =
        wire::receive(control).context("control's socket failed")?
    {
        let request: Request =
            serde_json::from_slice(&json).context("control sent what is no request")?;
        let (control, node) = (control.clone(), node.clone());
        std::thread::Builder::new()
            .name(format!("request-{}", request.id))
            .spawn(move || answer(&control, &node, request, descriptor))
            .context("cannot start a thread for a request")?;
    }
    tracing::info!("control is gone");
    Ok(())
}

fn answer(control: &OwnedFd, node: &Node, request: Request, descriptor: Option<OwnedFd>) {
    let Request {
        id,
        command:
            Command::Serve {
                archive,
                archive_digest,
                docker_config_json,
            },
    } = request;
    match Served::start(
        node,
        &archive,
        archive_digest,
        docker_config_json,
        descriptor,
    ) {
        Ok(served) => {
            reply(control, id, Outcome::Ok(served.summary()));
            served.wait();
        }
        Err(refusal) => reply(control, id, Outcome::Error(refusal)),
    }
}

fn reply(control: &OwnedFd, id: u64, outcome: Outcome) {
    if let Outcome::Error(Refusal { reason, message }) = &outcome {
        tracing::error!(?reason, message, "request refused");
    }
    let reply = serde_json::to_vec(&Reply { id, outcome }).expect("plain data becomes JSON");
    if let Err(error) = wire::send(control, &reply) {
        // Control is gone; the main thread sees that too.
        tracing::warn!(%error, "cannot answer control");
    }
}
