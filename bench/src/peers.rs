//! Peers, built from their public sources where that is possible.

use crate::{rows, run, world::World};
use anyhow::{Context, Result, anyhow};
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

/// The origin's module version; `bench/peers/origin/go.mod` pins it.
pub const ORIGIN_VERSION: &str = "v0.0.0-20260126181811-a2a14fb37f70";
/// The SOCI snapshotter's; `bench/peers/soci/go.mod` pins it.
pub const SOCI_VERSION: &str = "v0.11.1";
/// The stargz-snapshotter's; `bench/peers/stargz/go.mod` pins it.
pub const STARGZ_VERSION: &str = "v0.19.1";
/// Of the crate `nydus-rs`.
pub const NYDUS_VERSION: &str = "2.2.0";

/// A peer that was built, or why there is none. It is built once for a bench, as failing may take minutes as well.
pub fn have<T>(built: &Result<T>) -> Result<&T> {
    built.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// The origin's indexer and mounter.
pub fn origin(world: &World) -> Result<PathBuf> {
    build(world, "origin", ORIGIN_VERSION)
}

/// The SOCI snapshotter with an indexer and a puller.
pub fn soci(world: &World) -> Result<PathBuf> {
    build(world, "soci", SOCI_VERSION).context("its C code wants Debian's zlib1g-dev")
}

/// The stargz-snapshotter with a converter and a puller.
pub fn stargz(world: &World) -> Result<PathBuf> {
    build(world, "stargz", STARGZ_VERSION)
}

/// The image converter of nydus.
pub fn nydus(world: &World) -> Result<PathBuf> {
    let name = format!("nydus-{NYDUS_VERSION}");
    let root = world.cache().join("peers").join(&name);
    let binary = root.join("bin/nydus-image");
    if binary.exists() {
        return Ok(binary);
    }
    rows::progress(&format!("building {name} (minutes, once)"));
    std::fs::create_dir_all(&root)?;
    let mut install = Command::new("cargo");
    install
        .args(["install", "--locked", "--bin", "nydus-image"])
        .args(["--version", NYDUS_VERSION, "nydus-rs", "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(world.scratch.path().join(&name))
        // Here, and not in the repository, whose settings are not meant for it.
        .current_dir(&root);
    run::timed(&mut install).with_context(|| format!("cannot build {name}"))?;
    Ok(binary)
}

/// Builds the program in `bench/peers/NAME`, once for each state of its sources.
fn build(world: &World, name: &str, version: &str) -> Result<PathBuf> {
    let sources = world.repository().join("bench/peers").join(name);
    let state = hash(&sources)?;
    let file = format!("{name}-{version}-{state:016x}");
    let binary = world.cache().join("peers").join(file);
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
        .current_dir(sources);
    run::timed(&mut build).with_context(|| format!("cannot build {name}"))?;
    std::fs::rename(&unfinished, &binary)?;
    Ok(binary)
}

/// Of the names and contents of all files in `dir`.
fn hash(dir: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir)?;
    let mut files: Vec<_> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.file_name().hash(&mut hasher);
        std::fs::read(&file)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}
