//! `clip`: index an image, look into the archive, mount it, start a container on it.

mod archive_service;
mod archive_source;
mod bundle;
mod cache;
mod common;
mod failure;
mod index;
mod inspect;
mod list;
mod mount;
mod profile;
mod progress;
mod publish;
mod run;
mod umount;
mod units;
mod verify;

use clap::{Parser, Subcommand};
use common::CommonArgs;
use std::process::ExitCode;

/// Read a container image before it has been pulled.
///
/// An image is indexed once into a small archive: `clip index alpine:3.20 alpine.clip`. The archive
/// holds names, attributes and seek points, no content. Mount it anywhere, and what is read is
/// fetched from the image's own registry, piece by piece: `clip mount alpine.clip ./mnt`. Or try it
/// as a container: `clip run alpine.clip`.
#[derive(Debug, Parser)]
#[command(name = "clip", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Index(index::IndexArgs),
    Inspect(inspect::InspectArgs),
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Run(run::RunArgs),
    Bundle(bundle::BundleArgs),
    #[command(hide = true)]
    KernelMount(mount::KernelMountArgs),
    Profile(profile::ProfileArgs),
    Ls(list::LsArgs),
    Cat(list::CatArgs),
    Verify(verify::VerifyArgs),
    Cache(cache::CacheArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.common.init_logs();
    let done = match cli.command {
        Command::Index(args) => index::run(&cli.common, args),
        Command::Inspect(args) => inspect::run(args),
        Command::Mount(args) => mount::run(&cli.common, args),
        Command::Umount(args) => umount::run(args),
        Command::Bundle(args) => bundle::run(&cli.common, args),
        Command::KernelMount(args) => return mount::run_kernel_mount(args),
        Command::Profile(args) => profile::run(&cli.common, args),
        Command::Ls(args) => list::ls(&cli.common, args),
        Command::Cat(args) => list::cat(&cli.common, args),
        // Their results have exit codes of their own.
        Command::Run(args) => return run::run(&cli.common, args),
        Command::Verify(args) => return verify::run(args),
        Command::Cache(args) => return cache::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
