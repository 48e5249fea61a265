//! `clip-keeper`: holds the connections of mounted images while the node plugin is replaced; see `clip_csi_node::keeper`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use clip_csi_node::custody;
use clip_csi_node::keeper::{self, Ask, Keeper};
use clip_csi_node::open_files;
use clip_telemetry::logs::{self, Format, Verbosity};

/// Holds the connections of mounted images, so that the node plugin can be upgraded, or die, while pods read.
///
/// Runs once on each node, beside the node plugin, as root without any privilege but its socket and the folder through
/// which the kernel lets connections be aborted.
#[derive(Debug, Parser)]
#[command(name = "clip-keeper", version)]
struct Args {
    /// Where the node plugin finds it.
    #[arg(
        long,
        env = "CLIP_KEEPER_SOCKET",
        value_name = "PATH",
        default_value = "/var/lib/kubelet/plugins/csi.clip.dev/keeper.sock"
    )]
    socket: PathBuf,

    /// Seconds for which readers wait for a node plugin that is gone or does not answer; then they get errors.
    #[arg(
        long,
        env = "CLIP_KEEPER_PATIENCE",
        value_name = "SECONDS",
        default_value_t = 300
    )]
    patience: u64,

    /// The kernel's FUSE control filesystem, through which connections are aborted.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/fuse/connections")]
    fusectl: PathBuf,

    /// Only say whether a keeper answers on the socket, by the exit code; for a probe.
    #[arg(long)]
    check: bool,

    /// How log lines look: text or json.
    #[arg(long, env = "CLIP_LOG_FORMAT", default_value_t, value_name = "FORMAT")]
    log_format: Format,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    logs::init(Verbosity::Normal, args.log_format);
    let shown = args.socket.display();
    if args.check {
        return custody::Keeper::connect(&args.socket)
            .and_then(|keeper| keeper.ask(&Ask::Probe {}))
            .with_context(|| format!("no keeper answers on {shown}"));
    }
    open_files::raise_limit();
    let socket = keeper::listen_on(&args.socket).with_context(|| {
        format!("cannot listen on {shown}: its folder must exist and be writable for root")
    })?;
    tracing::info!(socket = %shown, patience = args.patience, "holding connections");
    let keeper = Keeper::new(args.fusectl, Duration::from_secs(args.patience));
    Ok(Arc::new(keeper).run(socket)?)
}
