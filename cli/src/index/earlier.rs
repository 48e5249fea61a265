//! Earlier archives: layers that they describe are not downloaded.

use crate::{failure::Failure, publish::repository};
use clap::Args;
use clip_engine::{Archive, ArchiveFolder, IndexOptions, PublishedArchives, registry::Client};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where they are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reuse")]
pub struct EarlierArgs {
    /// Take layers that an earlier archive already describes from it instead of downloading them: this one, or the
    /// `*.clip` files of a directory. May be given several times, and may name the archive that is to be replaced. The
    /// result is the same, but what was left out of these layers is not reported again. An archive is believed: `clip
    /// verify` checks one that you do not trust.
    #[arg(long, value_name = "ARCHIVE|DIR")]
    reuse: Vec<PathBuf>,

    /// The same with the archives that were published to this repository (`registry/repository`), of whatever images;
    /// they are found by layer. Whoever may push there is believed. May be repeated.
    #[arg(long, value_name = "REPOSITORY")]
    reuse_from: Vec<String>,
}

impl EarlierArgs {
    /// Adds them to what indexing looks at. Repositories are asked with `client`.
    pub fn add_to(
        &self,
        options: &mut IndexOptions,
        client: impl FnOnce() -> Result<Client, Failure>,
    ) -> Result<(), Failure> {
        for path in &self.reuse {
            match path.is_dir() {
                true => options.reuse_from.push(Arc::new(folder(path)?)),
                false => options.reuse.push(archive(path)?),
            }
        }
        if self.reuse_from.is_empty() {
            return Ok(());
        }
        let client = client()?;
        for text in &self.reuse_from {
            let repository = repository("--reuse-from", text)?;
            let place = PublishedArchives::new(client.clone(), repository);
            options.reuse_from.push(Arc::new(place));
        }
        Ok(())
    }
}

/// The archives in a folder.
pub fn folder(path: &Path) -> Result<ArchiveFolder, Failure> {
    ArchiveFolder::open(path)
        .map_err(|error| Failure::local(format!("cannot list {}: {error}", path.display())))
}

fn archive(path: &Path) -> Result<Archive, Failure> {
    // Reading a FIFO or a device might never end.
    let bytes = match path.metadata() {
        Ok(metadata) if !metadata.is_file() => Err("not a regular file".to_owned()),
        _ => std::fs::read(path).map_err(|error| error.to_string()),
    };
    let archive = bytes.and_then(|bytes| Archive::open(bytes).map_err(|error| error.to_string()));
    archive.map_err(|error| Failure::local(format!("--reuse {}: {error}", path.display())))
}
