//! `clip profile apply`: fetches what a profile names, before anybody reads it.

use crate::{
    archive_source::SourceArgs, common::CommonArgs, failure::Failure, profile,
    progress::LayerProgress, units,
};
use clap::Args;
use clip_engine::{Pace, parse_bytes};
use std::path::PathBuf;

/// Fetch what a profile names into the cache, where the next mounts of the image find it.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The profile.
    #[arg(required_unless_present = "all")]
    profile: Option<PathBuf>,

    /// Fetch everything else, too: afterwards the image can be read without its registry.
    #[arg(long)]
    all: bool,

    /// Fetch the rest at most at so many bytes a second, such as 20Mi; 0: as fast as it gets.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "all")]
    complete_rate: Option<u64>,
}

/// Runs the command.
pub fn run(common: &CommonArgs, args: &ApplyArgs) -> Result<(), Failure> {
    let profile = args.profile.as_deref().map(profile::read).transpose()?;
    let profile = profile.unwrap_or_default();
    let opened = args.source.open(common.verbose)?;
    let image = &opened.image;
    let named = image.profiled_bytes(&profile);
    if named == 0 && !args.all {
        return Err(Failure::local(
            "the profile names nothing of this image: record one with `clip profile record`",
        ));
    }
    let pace = Pace::new(args.complete_rate);
    let cannot_fetch = |error: &dyn std::error::Error| {
        Failure::new("FetchFailed", format!("cannot fetch: {error}"))
    };
    let shown = LayerProgress::new("fetched");
    opened.runtime.block_on(async {
        shown.begin([(0, "start".to_owned(), named)].into_iter());
        let advanced = |bytes| shown.advanced(0, bytes);
        let fetched = image.fetch_profile(&profile, &advanced).await;
        shown.layer_done(0);
        fetched.map_err(|error| cannot_fetch(&error))?;
        if args.all {
            shown.print("Fetching the rest");
            let rest = image.fetch_rest(&pace).await;
            rest.map_err(|error| cannot_fetch(&error))?;
        }
        Ok::<_, Failure>(())
    })?;
    let fetched = image.fetched();
    eprintln!(
        "Fetched {} in {}{}",
        units::bytes(fetched.bytes),
        units::count(fetched.requests, "request"),
        if args.all {
            ": the whole image is here"
        } else {
            ""
        }
    );
    Ok(())
}
