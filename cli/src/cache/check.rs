//! `clip cache verify`: everything that is cached, against the archives that are kept beside it.

use crate::{common::StateArgs, failure::Failure, units, verify::CORRUPT};
use clap::Args;
use clip_archive::Archive;
use clip_engine::{CacheVerified, CachedTree, list_cache, verify_cache};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Read everything again that is cached, and have fetched again what is damaged.
///
/// Compares each cached piece with its digest in the archive: in the archives that are kept in the state directory, and
/// in those named here. `clip verify --cache` does the same for one archive and changes nothing.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CheckArgs {
    /// More archives; those in the state directory are known.
    files: Vec<PathBuf>,

    #[command(flatten)]
    state: StateArgs,
}

const AFTER_HELP: &str = "\
Exit codes:
   0  everything that was looked at is intact
   1  could not be checked
   4  something was damaged; it is fetched again when it is needed";

/// What was found in all archives' layers.
#[derive(Debug, Default)]
struct Found {
    layers: HashSet<PathBuf>,
    spans: u64,
    bytes: u64,
    damaged: u64,
    trees_damaged: u64,
}

/// Runs the command.
pub fn run(args: &CheckArgs) -> ExitCode {
    match check(args) {
        Ok(found) if found.damaged + found.trees_damaged > 0 => {
            eprintln!(
                "clip: damaged: {} and {}; what is wrong is fetched or made again when it is needed",
                units::count(found.damaged, "span"),
                units::count(found.trees_damaged, "tree")
            );
            ExitCode::from(CORRUPT)
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn check(args: &CheckArgs) -> Result<Found, Failure> {
    let dir = super::state_dir(&args.state)?;
    let mut found = Found::default();
    for file in args
        .files
        .iter()
        .cloned()
        .chain(super::kept_archives(&dir)?)
    {
        let bytes = std::fs::read(&file)
            .map_err(|error| Failure::local(format!("cannot read {}: {error}", file.display())))?;
        let archive = Archive::open(bytes).and_then(|archive| archive.verify().map(|_| archive));
        match archive {
            Ok(archive) => found.check(&dir, &archive)?,
            Err(error) => eprintln!("{}: {error}", file.display()),
        }
    }
    println!(
        "{} in {} were read ({})",
        units::count(found.spans, "span"),
        units::count(found.layers.len() as u64, "layer"),
        units::bytes(found.bytes)
    );
    let cached = list_cache(&dir).map_err(|error| super::unreadable(&dir, error))?;
    let unknown = cached
        .iter()
        .filter(|layer| !found.layers.contains(&layer.dir));
    match unknown.count() as u64 {
        0 => {}
        count => println!(
            "{} not checked, of images whose archives are not kept here: name them",
            units::count(count, "layer")
        ),
    }
    Ok(found)
}

impl Found {
    /// Adds what is cached of an archive, but for layers that were looked at already.
    fn check(&mut self, dir: &Path, archive: &Archive) -> Result<(), Failure> {
        let layers = &archive.head().layers;
        let is_new = |&index: &usize| {
            let name = layers[index].section_digest().hex();
            !self.layers.contains(&dir.join("layers").join(name))
        };
        let new: Vec<usize> = (0..layers.len()).filter(is_new).collect();
        let verified =
            verify_cache(dir, archive, Some(&new), &|_, _| {}).map_err(Failure::local)?;
        self.add(archive, &verified);
        verified
            .repair()
            .map_err(|error| Failure::local(format!("cannot change {}: {error}", dir.display())))
    }

    fn add(&mut self, archive: &Archive, verified: &CacheVerified) {
        let image = archive.head().image_name();
        for (index, audit) in &verified.layers {
            if !audit.dir.exists() || !self.layers.insert(audit.dir.clone()) {
                continue;
            }
            self.spans += audit.present;
            self.bytes += audit.bytes_read;
            self.damaged += audit.damaged.len() as u64;
            for damaged in &audit.damaged {
                println!(
                    "{image}, layer {index}, span {}: damaged (bytes {} to {})",
                    damaged.span, damaged.range.start, damaged.range.end
                );
            }
        }
        if let CachedTree::Corrupt(path) = &verified.tree {
            self.trees_damaged += 1;
            println!("{image}: {} is damaged", path.display());
        }
    }
}
