//! How large an archive is, and what making it costs.
//!
//! Beside it: the origin's archive of the same image (which cannot seek), the seeds' figure where
//! they give one, and plain `gzip -dc` of the same layers as the least that decoding costs.

use crate::{
    peers,
    rows::Row,
    run,
    world::{IMAGES, World},
};
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

const BENCH: &str = "archive-size";
/// The seeds' archive of an ubuntu-like image of 80 MB with 3,516 entries (DESIGN, S1).
const SEEDS_UBUNTU_LIKE_BYTES: f64 = 712_000.0;

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
        let cost = run::timed(
            world
                .clip()
                .arg("index")
                .arg(world.reference(image))
                .arg(&file),
        )?;
        let passed = world.relay.take();
        let size = std::fs::metadata(&file)?.len() as f64;
        let row = Row::new(BENCH, image, "clip", "archive size", size, "B");
        rows.push(if image == "debian-min" {
            row.at_most(SEEDS_UBUNTU_LIKE_BYTES)
        } else {
            row
        });
        rows.push(
            Row::new(
                BENCH,
                image,
                "clip",
                "of the image",
                size / image_bytes * 100.0,
                "%",
            )
            .at_most(1.0),
        );
        rows.push(
            Row::new(
                BENCH,
                image,
                "clip",
                "downloaded / image",
                passed.bytes as f64 / image_bytes,
                "x",
            )
            .at_most(1.01),
        );
        rows.push(Row::new(
            BENCH,
            image,
            "clip",
            "index, wall",
            cost.wall.as_secs_f64(),
            "s",
        ));
        rows.push(Row::new(
            BENCH,
            image,
            "clip",
            "index, CPU",
            cost.cpu.as_secs_f64(),
            "s",
        ));

        let plain = run::timed(
            Command::new("sh")
                .arg("-c")
                .arg("gzip -dc \"$@\" >/dev/null")
                .arg("sh")
                .args(&layers)
                .stdout(Stdio::null()),
        )?;
        rows.push(Row::new(
            BENCH,
            image,
            "gzip -dc",
            "decode, CPU",
            plain.cpu.as_secs_f64(),
            "s",
        ));
        rows.push(Row::new(
            BENCH,
            image,
            "clip",
            "index CPU / gzip -dc",
            cost.cpu.as_secs_f64() / plain.cpu.as_secs_f64(),
            "x",
        ));

        rows.extend(origin(world, image, size)?);
        rows.push(Row::missing(BENCH, image, "soci", peers::SOCI_MISSING));
    }
    Ok(rows)
}

fn origin(world: &World, image: &str, ours: f64) -> Result<Vec<Row>> {
    let binary = match peers::origin(world) {
        Ok(binary) => binary,
        Err(error) => {
            return Ok(vec![Row::missing(
                BENCH,
                image,
                "origin",
                &format!("{error:#}"),
            )]);
        }
    };
    let file = world.scratch.path().join(format!("{image}.origin.clip"));
    let cost = run::timed(
        Command::new(binary)
            .arg("index")
            .arg(world.reference(image))
            .arg(&file),
    )
    .context("the origin's indexer")?;
    world.relay.take();
    let size = std::fs::metadata(&file)?.len() as f64;
    Ok(vec![
        Row::new(BENCH, image, "origin", "archive size", size, "B"),
        Row::new(
            BENCH,
            image,
            "origin",
            "index, CPU",
            cost.cpu.as_secs_f64(),
            "s",
        ),
        Row::new(BENCH, image, "origin", "archive / clip's", size / ours, "x"),
    ])
}
