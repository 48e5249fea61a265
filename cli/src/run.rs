//! `clip run FILE|IMAGE [-- ARGS…]`.

mod runtime;

use crate::{
    archive_source::SourceArgs,
    bundle::{Bundle, BundleDir, ContainerArgs, check_root},
    common::{self, CommonArgs},
    failure::Failure,
    mount::{self, Assignment, ServingArgs},
};
use clap::Args;
use runtime::{Container, Runtime, Signals};
use std::{io::IsTerminal as _, process::ExitCode};

/// Try an image: start a container on it, without pulling it, and take everything away when it ends.
///
/// Needs root and an OCI runtime (runc, crun). The container sees the machine's network unless --net says otherwise, and
/// may write; what it wrote is gone afterwards. Its exit code is this command's; 125 means that it could not be started.
/// Signals are passed on to it; the second Ctrl-C or SIGTERM kills it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clip run debian:12
  clip run python:3.12 -- python3 -c 'print(6 * 7)'
  clip run --read-only --net none --user nobody app.clip")]
pub struct RunArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The OCI runtime, a name or a path: runc, crun, runsc.
    #[arg(long, default_value = "runc", help_heading = "Container")]
    runtime: String,

    #[command(flatten)]
    container: ContainerArgs,

    #[command(flatten)]
    serving: ServingArgs,
}

/// The container could not be started or taken away, as with docker(1) and podman(1).
const NOT_STARTED: u8 = 125;

/// Runs the command; the container's exit code.
pub fn run(common: &CommonArgs, args: RunArgs) -> ExitCode {
    if let Some(assignment) = Assignment::of_this_process() {
        let served = mount::serve_container(common, &args.source, &args.serving, assignment);
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        };
    }
    match try_image(common, &args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report_as(NOT_STARTED),
    }
}

fn try_image(common: &CommonArgs, args: &RunArgs) -> Result<u8, Failure> {
    check_root()?;
    let runtime = Runtime::find(&args.runtime)?;
    let opened = args.source.open(common.verbose)?;
    let spec = args
        .container
        .spec(&opened, std::io::stdin().is_terminal())?;

    // From here on there is something to take away, so no signal ends this process.
    let threads = common::runtime()?;
    let signals = threads.block_on(async { Signals::catch() })?;
    let dir = tempfile::Builder::new()
        .prefix("clip-run-")
        .tempdir()
        .map_err(|error| {
            Failure::local(format!("cannot make a directory for the bundle: {error}"))
        })?;
    // Deleting it is the bundle's business: nothing may be deleted through a mount.
    let dir = dir.keep();
    let bundle = Bundle::make(BundleDir::create(&dir)?, opened, &spec, args.serving.engine)?;
    let container = Container::new(runtime, bundle.dir());
    let ended = threads.block_on(container.run(signals));
    bundle.remove()?;
    ended
}
