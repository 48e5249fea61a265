//! How large an archive is, and of what.
//!
//! Beside it: the origin's archive of the same image, which cannot seek.

use crate::{
    peers,
    rows::Row,
    run,
    world::{IMAGES, World},
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{path::Path, process::Command};

const BENCH: &str = "archive-size";
/// Of a small image the whole is promised, of others the share.
const SMALL_IMAGE_BYTES: f64 = 20e6;
const SMALL_ARCHIVE_BYTES: f64 = 10_000.0;
const SHARE_PERCENT: f64 = 0.3;
/// Of an image whose files are so small that naming them costs more than reaching them.
const SHARE_PERCENT_OF_NODE_APP: f64 = 0.4;

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for image in IMAGES {
        let layers = world.layers(image)?;
        let image_bytes = layers
            .iter()
            .map(|layer| Ok(std::fs::metadata(layer)?.len()))
            .sum::<Result<u64>>()? as f64;
        rows.push(Row::new(
            BENCH,
            image,
            "image",
            "compressed size",
            image_bytes,
            "B",
        ));

        let file = world.scratch.path().join(format!("{image}.clip"));
        let mut index = world.clip();
        index.arg("index").arg(world.reference(image)).arg(&file);
        run::timed(&mut index)?;
        let passed = world.relay.take();
        let size = std::fs::metadata(&file)?.len() as f64;
        let row = |metric, value, unit| Row::new(BENCH, image, "clip", metric, value, unit);
        let (whole, share) = (
            row("archive size", size, "B"),
            row("of the image", size / image_bytes * 100.0, "%"),
        );
        rows.extend(match image {
            _ if image_bytes < SMALL_IMAGE_BYTES => [whole.at_most(SMALL_ARCHIVE_BYTES), share],
            "node-app" => [whole, share.at_most(SHARE_PERCENT_OF_NODE_APP)],
            _ => [whole, share.at_most(SHARE_PERCENT)],
        });
        for (part, bytes) in parts(world, &file)? {
            rows.push(row(part, bytes, "B"));
        }
        let downloaded = passed.bytes as f64 / image_bytes;
        rows.push(row("downloaded / image", downloaded, "x").at_most(1.01));
        rows.extend(origin(world, image, size)?);
        rows.push(Row::missing(BENCH, image, "soci", peers::SOCI_MISSING));
    }
    Ok(rows)
}

/// The bytes of each kind of section.
pub fn parts(world: &World, archive: &Path) -> Result<Vec<(&'static str, f64)>> {
    let inspected = world
        .clip()
        .args(["inspect", "--json"])
        .arg(archive)
        .output()?;
    let inspected: Value = serde_json::from_slice(&inspected.stdout)?;
    let layers = inspected["layers"].as_array().context("a list of layers")?;
    let sum = |part: &str| {
        let bytes = layers
            .iter()
            .map(|layer| layer["archiveBytes"][part].as_f64());
        bytes
            .sum::<Option<f64>>()
            .with_context(|| format!("no bytes of {part}"))
    };
    ["entries", "spans", "windows"]
        .map(|part| Ok((part, sum(part)?)))
        .into_iter()
        .collect()
}

fn origin(world: &World, image: &str, ours: f64) -> Result<Vec<Row>> {
    let binary = match peers::origin(world) {
        Ok(binary) => binary,
        Err(error) => {
            let why = format!("{error:#}");
            return Ok(vec![Row::missing(BENCH, image, "origin", &why)]);
        }
    };
    let file = world.scratch.path().join(format!("{image}.origin.clip"));
    let mut index = Command::new(binary);
    index.arg("index").arg(world.reference(image)).arg(&file);
    run::timed(&mut index).context("the origin's indexer")?;
    world.relay.take();
    let size = std::fs::metadata(&file)?.len() as f64;
    Ok(vec![
        Row::new(BENCH, image, "origin", "archive size", size, "B"),
        Row::new(BENCH, image, "origin", "archive / clip's", size / ours, "x"),
    ])
}
