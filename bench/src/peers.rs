//! Peers, built from their public sources where that is possible.

use crate::{run, world::World};
use anyhow::{Context, Result};
use std::{path::PathBuf, process::Command};

/// The origin's module version; `bench/peers/origin/go.mod` pins it.
pub const ORIGIN_VERSION: &str = "v0.0.0-20260126181811-a2a14fb37f70";
/// SOCI's module cannot be had from the Go module proxy, so its snapshotter cannot be built here.
pub const SOCI_MISSING: &str = "its module is refused by the Go module proxy";

/// The origin's indexer and mounter, built once per version.
pub fn origin(world: &World) -> Result<PathBuf> {
    let binary = world
        .cache()
        .join("peers")
        .join(format!("origin-{ORIGIN_VERSION}"));
    if binary.exists() {
        return Ok(binary);
    }
    std::fs::create_dir_all(binary.parent().context("the cache has a parent")?)?;
    let unfinished = binary.with_extension("new");
    let mut build = Command::new("go");
    build
        .args(["build", "-trimpath", "-o"])
        .arg(&unfinished)
        .arg(".")
        .current_dir(world.repository().join("bench/peers/origin"));
    run::timed(&mut build).context("cannot build the origin's module")?;
    std::fs::rename(&unfinished, &binary)?;
    Ok(binary)
}
