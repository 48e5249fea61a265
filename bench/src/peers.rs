//! Peers, built from their public sources where that is possible.

use crate::{rows, run, world::World};
use anyhow::{Context, Result};
use std::{path::PathBuf, process::Command};

/// The origin's module version; `bench/peers/origin/go.mod` pins it.
pub const ORIGIN_VERSION: &str = "v0.0.0-20260126181811-a2a14fb37f70";
/// Why SOCI is not measured. The Go module proxy refuses to list the versions of its module; the one that it gives when
/// asked by number is a library without programs.
pub const SOCI_MISSING: &str =
    "not built here: its programs have no released Go module, and it has no driver in bench/peers";

/// The stargz-snapshotter's; `bench/peers/stargz/go.mod` pins it.
pub const STARGZ_VERSION: &str = "v0.19.1";

/// The origin's indexer and mounter.
pub fn origin(world: &World) -> Result<PathBuf> {
    build(world, "origin", ORIGIN_VERSION)
}

/// The stargz-snapshotter with a converter and a puller.
pub fn stargz(world: &World) -> Result<PathBuf> {
    build(world, "stargz", STARGZ_VERSION)
}

/// Builds the program in `bench/peers/NAME`, once per version.
fn build(world: &World, name: &str, version: &str) -> Result<PathBuf> {
    let binary = world
        .cache()
        .join("peers")
        .join(format!("{name}-{version}"));
    if binary.exists() {
        return Ok(binary);
    }
    rows::progress(&format!("building {name} {version}"));
    std::fs::create_dir_all(binary.parent().context("the cache has a parent")?)?;
    let unfinished = binary.with_extension("new");
    let mut build = Command::new("go");
    build
        .args(["build", "-trimpath", "-o"])
        .arg(&unfinished)
        .arg(".")
        .current_dir(world.repository().join("bench/peers").join(name));
    run::timed(&mut build).with_context(|| format!("cannot build {name}"))?;
    std::fs::rename(&unfinished, &binary)?;
    Ok(binary)
}
