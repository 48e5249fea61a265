//! The image converter of nydus as a peer. It can leave gzip layers as they are (`targz-ref`) and keep what it needs to
//! seek in them (zran) with the files' metadata in one more blob for each layer.

use crate::run;
use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

/// How a gzip member begins (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Converts every layer below `scratch`; how large their blobs are together, in bytes.
pub fn blob_bytes(converter: &Path, layers: &[PathBuf], scratch: &Path) -> Result<u64> {
    let blobs = tempfile::tempdir_in(scratch)?;
    let sizes = layers.iter().map(|layer| {
        let name = layer.file_name().context("a layer has a name")?;
        convert(converter, layer, &blobs.path().join(name))
    });
    sizes.sum()
}

fn convert(converter: &Path, layer: &Path, blob: &Path) -> Result<u64> {
    let mut magic = [0; GZIP.len()];
    File::open(layer)?.read_exact(&mut magic)?;
    ensure!(magic == GZIP, "it can seek in layers of gzip only");
    let mut create = Command::new(converter);
    create
        .args(["create", "--type", "targz-ref", "--blob-inline-meta"])
        .arg("--blob")
        .args([blob, layer]);
    run::timed(&mut create)?;
    Ok(std::fs::metadata(blob)?.len())
}
