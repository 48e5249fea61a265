//! What indexing downloads of an image whose lower layers were indexed with another one.

use crate::{rows::Row, run::timed, world::World};
use anyhow::{Context, Result};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

const BENCH: &str = "index";
/// What `--case` names this by.
pub const CASE: &str = "rebuilt image";
/// An image, and one that adds layers to it.
const BASE: &str = "debian-min";
const REBUILT: &str = "python-app";
/// Manifests, configurations and the heads of answers come on top of layers and archives.
const DOCUMENTS: f64 = 64e3;

/// Runs this part of the bench: earlier archives on the disk, and in a repository.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let archives = format!("{}/bench/archives", world.relay.address());
    let base = world.scratch.path().join("base.clip");
    let base = base.to_str().context("a plain path")?;
    index(world, BASE, &[base, "--publish", &archives])?;

    let new = new_layers(world)?;
    let archive = size(Path::new(base))?;
    let row = |system, downloaded: u64, needed: u64| {
        let ratio = downloaded as f64 / (needed as f64 + DOCUMENTS);
        let note = format!(
            "{:.1} of {:.1} MB",
            downloaded as f64 / 1e6,
            needed as f64 / 1e6
        );
        let row = Row::new(
            BENCH,
            CASE,
            system,
            "downloaded / new layers + archives",
            ratio,
            "x",
        );
        row.at_most(1.0).with_note(&note)
    };
    let file = world.scratch.path().join("rebuilt.clip");
    let file = file.to_str().context("a plain path")?;
    let from_disk = index(world, REBUILT, &[file, "--reuse", base])?;
    let from_registry = index(world, REBUILT, &[file, "--reuse-from", &archives])?;
    Ok(vec![
        row("clip --reuse", from_disk, new),
        row("clip --reuse-from", from_registry, new + archive),
    ])
}

/// Bytes downloaded.
fn index(world: &World, image: &str, arguments: &[&str]) -> Result<u64> {
    world.relay.take();
    timed(
        world
            .clip()
            .args(["index", &world.reference(image)])
            .args(arguments),
    )?;
    Ok(world.relay.take().bytes)
}

/// Compressed bytes of the layers that only the rebuilt image has.
fn new_layers(world: &World) -> Result<u64> {
    let named = |layers: Vec<PathBuf>| -> Result<HashMap<_, _>> {
        let named = layers
            .iter()
            .map(|layer| Ok((layer.file_name().map(ToOwned::to_owned), size(layer)?)));
        named.collect()
    };
    let base = named(world.layers(BASE)?)?;
    let rebuilt = named(world.layers(REBUILT)?)?;
    let new = rebuilt.iter().filter(|(name, _)| !base.contains_key(*name));
    Ok(new.map(|(_, size)| size).sum())
}

fn size(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file)?.len())
}
