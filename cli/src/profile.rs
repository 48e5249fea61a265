//! `clip profile record|show|apply`: which parts of an image a container reads first.

mod apply;
mod record;
mod show;

use crate::{common::CommonArgs, failure::Failure};
use clap::{Args, Subcommand};
use clip_archive::StartProfile;
use std::path::Path;

/// Record which parts of an image a container reads first, so that the next start fetches them ahead.
///
/// A profile is a small JSON file. Made once, in CI say, it lies beside the archive and is replayed by `clip mount
/// --profile`: what the start will read is fetched in few large requests, in the order in which it is needed.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, Subcommand)]
enum ProfileCommand {
    Record(record::RecordArgs),
    Show(show::ShowArgs),
    Apply(apply::ApplyArgs),
}

/// Runs the command.
pub fn run(common: &CommonArgs, args: ProfileArgs) -> Result<(), Failure> {
    match args.command {
        ProfileCommand::Record(args) => record::run(common, &args),
        ProfileCommand::Show(args) => show::run(&args),
        ProfileCommand::Apply(args) => apply::run(common, &args),
    }
}

/// Reads the profile in `file`.
pub fn read(file: &Path) -> Result<StartProfile, Failure> {
    let shown = file.display();
    let json = std::fs::read(file)
        .map_err(|error| Failure::local(format!("cannot read {shown}: {error}")))?;
    StartProfile::parse(&json).map_err(|error| Failure::local(format!("{shown}: {error}")))
}
