//! `clip cache ls|prune|verify`: what a node or a user has on the disk of images' contents.

mod check;

use crate::{common::StateArgs, failure::Failure, units};
use clap::{Args, Subcommand};
use clip_archive::Archive;
use clip_engine::{CachedLayer, StateDir, list_cache, parse_bytes, prune_cache};
use serde_json::json;
use std::{
    collections::HashMap,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// Look at, shrink or check what is cached of images' contents.
///
/// All mounts of a node or user share one cache, in the state directory. It keeps itself within its limits (`clip mount
/// --cache-max`, `--cache-min-free`); these commands are for people. All of them may run beside mounts.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

const AFTER_HELP: &str = "\
Examples:
  clip cache ls                    what is cached of which image, and is it in use?
  clip cache prune --to 10Gi       keep the 10 GiB that were used last
  clip cache prune                 remove every layer that no mount has open
  clip cache verify                read everything again; what is damaged is fetched again when it is needed";

#[derive(Debug, Subcommand)]
enum CacheCommand {
    Ls(LsArgs),
    Prune(PruneArgs),
    Verify(check::CheckArgs),
}

/// List the layers of which something is cached, the latest used first.
#[derive(Debug, Args)]
struct LsArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,
}

/// Make the cache smaller.
///
/// Without --to, every layer is removed that no mount has open. With it, what was not read for the longest time goes,
/// piece by piece, also of layers in use; mounts fetch it again when they need it.
#[derive(Debug, Args)]
struct PruneArgs {
    /// Until the cache takes no more than this, such as 10Gi.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    to: Option<u64>,

    #[command(flatten)]
    state: StateArgs,
}

/// Runs the command.
pub fn run(args: CacheArgs) -> ExitCode {
    let done = match args.command {
        CacheCommand::Ls(args) => ls(&args),
        CacheCommand::Prune(args) => prune(&args),
        CacheCommand::Verify(args) => return check::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn ls(args: &LsArgs) -> Result<(), Failure> {
    let dir = state_dir(&args.state)?;
    let layers = list_cache(&dir).map_err(|error| unreadable(&dir, error))?;
    let images = images_by_layer(&dir)?;
    let images_of = |layer: &CachedLayer| images.get(&name_of(layer)).cloned().unwrap_or_default();
    let rows: Vec<_> = layers
        .iter()
        .map(|layer| (layer, images_of(layer)))
        .collect();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = match args.json {
        true => write_json(&mut out, &rows),
        false => write_table(&mut out, &rows),
    };
    match written.and_then(|()| out.flush()) {
        // `clip cache ls | head` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// A layer and the images in which it is.
type Row<'a> = (&'a CachedLayer, Vec<String>);

fn write_table(out: &mut impl Write, rows: &[Row<'_>]) -> io::Result<()> {
    writeln!(
        out,
        "{:<12}  {:>9}  {:>5}  {:>9}  {:<11}  {:<6}  IMAGE",
        "LAYER", "ON DISK", "HERE", "OF", "LAST USED", "IN USE"
    )?;
    for (layer, images) in rows {
        let percent = match layer.layer_bytes {
            0 => 100,
            whole => layer.cached_bytes * 100 / whole,
        };
        let others = match images.len() {
            0 | 1 => String::new(),
            more => format!(" and {}", units::count(more as u64 - 1, "other")),
        };
        writeln!(
            out,
            "{:<12}  {:>9}  {percent:>4}%  {:>9}  {:<11}  {:<6}  {}{others}",
            &name_of(layer)[..12.min(name_of(layer).len())],
            units::bytes(layer.disk_bytes),
            units::bytes(layer.layer_bytes),
            layer.last_used.map_or("never".to_owned(), ago),
            if layer.in_use { "yes" } else { "no" },
            images.first().map_or("-", String::as_str),
        )?;
    }
    let total: u64 = rows.iter().map(|(layer, _)| layer.disk_bytes).sum();
    let count = units::count(rows.len() as u64, "layer");
    writeln!(out, "{count}, {} on disk", units::bytes(total))
}

fn write_json(out: &mut impl Write, rows: &[Row<'_>]) -> io::Result<()> {
    let layer = |(layer, images): &Row<'_>| {
        json!({
            "section": format!("sha256:{}", name_of(layer)),
            "dir": layer.dir,
            "diskBytes": layer.disk_bytes,
            "cachedBytes": layer.cached_bytes,
            "layerBytes": layer.layer_bytes,
            "spansCached": layer.spans_cached,
            "spans": layer.spans,
            "lastUsed": layer.last_used.map(seconds_since_1970),
            "inUse": layer.in_use,
            "images": images,
        })
    };
    let total: u64 = rows.iter().map(|(layer, _)| layer.disk_bytes).sum();
    let all = json!({ "diskBytes": total, "layers": rows.iter().map(layer).collect::<Vec<_>>() });
    serde_json::to_writer_pretty(&mut *out, &all)?;
    out.write_all(b"\n")
}

fn prune(args: &PruneArgs) -> Result<(), Failure> {
    let dir = state_dir(&args.state)?;
    let pruned = prune_cache(&dir, args.to)
        .map_err(|error| Failure::local(format!("cannot prune {}: {error}", dir.display())))?;
    println!(
        "Freed {}: {} and {} removed as a whole. The cache takes {} now.",
        units::bytes(pruned.freed.bytes),
        units::count(pruned.freed.spans, "span"),
        units::count(pruned.freed.layers, "layer"),
        units::bytes(pruned.left)
    );
    Ok(())
}

/// A state directory that has a cache.
fn state_dir(args: &StateArgs) -> Result<PathBuf, Failure> {
    let dir = args.path()?;
    match dir.join("layers").is_dir() {
        true => Ok(dir),
        false => Err(Failure::local(format!(
            "{} holds no cache of clip: name the state directory of the node or of the mounts with --state-dir",
            dir.display()
        ))),
    }
}

fn unreadable(dir: &Path, error: io::Error) -> Failure {
    Failure::local(format!(
        "cannot read the cache in {}: {error}",
        dir.display()
    ))
}

/// The images in whose archives, of those that are kept here, each layer is: by the name of the layer's directory.
fn images_by_layer(dir: &Path) -> Result<HashMap<String, Vec<String>>, Failure> {
    let mut images = HashMap::<String, Vec<String>>::new();
    for path in kept_archives(dir)? {
        // One that cannot be read explains nothing; `clip cache verify` names it.
        let Some(archive) = std::fs::read(&path)
            .ok()
            .and_then(|bytes| Archive::open(bytes).ok())
        else {
            continue;
        };
        let head = archive.head();
        for layer in &head.layers {
            let of_layer = images.entry(layer.section_digest().hex()).or_default();
            if !of_layer.contains(&head.image_name()) {
                of_layer.push(head.image_name());
            }
        }
    }
    Ok(images)
}

fn kept_archives(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    StateDir::at(dir)
        .archives()
        .map_err(|error| unreadable(dir, error))
}

/// The section's digest in hex.
fn name_of(layer: &CachedLayer) -> String {
    let name = layer.dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn seconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

/// `3 min ago`.
fn ago(time: SystemTime) -> String {
    match time.elapsed().unwrap_or(Duration::ZERO).as_secs() {
        seconds @ 0..60 => format!("{seconds} s ago"),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..86400 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86400),
    }
}
