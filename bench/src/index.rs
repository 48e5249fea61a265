//! What indexing costs: processor time, wall time and memory, from an OCI layout on disk.
//!
//! Beside it: decoding the same layers with `gzip`, with libdeflate (the fastest decoder of whole
//! files) and with `igzip`, each alone and without hashing anything; and the origin's indexer.

use crate::{
    peers,
    rows::Row,
    run::{Cost, best_of},
    world::{IMAGES, World},
};
use anyhow::Result;
use std::{path::PathBuf, process::Command};

const BENCH: &str = "index";
const RUNS: usize = 3;
const PEAK_BYTES: f64 = 100e6;

/// A decoder, how it is called, and how many times its processor time indexing may take.
const DECODERS: [(&str, &str, Option<f64>); 3] = [
    ("gzip", "gzip -dc", Some(1.0)),
    ("libdeflate", "libdeflate-gunzip -c", Some(2.2)),
    ("igzip", "igzip -dc", None),
];

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for image in IMAGES {
        let layers = world.layers(image)?;
        let source = format!("oci:{}", world.layout(image)?.display());
        let mut number = 0;
        let ours = best_of(RUNS, || {
            // A new file each time: nothing is there that could be taken over.
            number += 1;
            let file = format!("{image}.index-{number}.clip");
            let mut index = world.clip();
            index
                .args(["index", &source])
                .arg(world.scratch.path().join(file));
            index
        })?;
        rows.extend(cost(image, "clip", &ours));
        let peak = Row::new(BENCH, image, "clip", "peak memory", ours.peak as f64, "B");
        rows.push(peak.at_most(PEAK_BYTES));
        for (name, command, limit) in DECODERS {
            rows.extend(decoder(image, &layers, &ours, (name, command, limit)));
        }
        rows.extend(origin(world, image, &ours)?);
        rows.push(Row::missing(BENCH, image, "soci", peers::SOCI_MISSING));
    }
    Ok(rows)
}

fn cost(image: &str, system: &'static str, cost: &Cost) -> [Row; 2] {
    [("CPU", cost.cpu), ("wall", cost.wall)]
        .map(|(metric, time)| Row::new(BENCH, image, system, metric, time.as_secs_f64(), "s"))
}

/// The layers one after the other, as fast as one processor can.
fn decoder(
    image: &str,
    layers: &[PathBuf],
    ours: &Cost,
    (name, command, limit): (&'static str, &str, Option<f64>),
) -> Vec<Row> {
    let decode = || {
        let script = format!("for layer; do {command} \"$layer\" >/dev/null || exit; done");
        let mut sh = Command::new("sh");
        sh.args(["-c", &script, "sh"]).args(layers);
        sh
    };
    let theirs = match best_of(RUNS, decode) {
        Ok(theirs) => theirs,
        Err(error) => return vec![Row::missing(BENCH, image, name, &format!("{error:#}"))],
    };
    let ratio = ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64();
    let ratio = Row::new(BENCH, image, name, "clip's CPU / its own", ratio, "x");
    let mut rows = cost(image, name, &theirs).to_vec();
    rows.push(match limit {
        Some(limit) => ratio.at_most(limit),
        None => ratio,
    });
    rows
}

fn origin(world: &World, image: &str, ours: &Cost) -> Result<Vec<Row>> {
    let binary = match peers::origin(world) {
        Ok(binary) => binary,
        Err(error) => {
            let why = format!("{error:#}");
            return Ok(vec![Row::missing(BENCH, image, "origin", &why)]);
        }
    };
    let file = world.scratch.path().join(format!("{image}.origin.clip"));
    // It reads from registries only.
    let theirs = best_of(RUNS, || {
        let mut index = Command::new(&binary);
        index.arg("index").arg(world.reference(image)).arg(&file);
        index
    })?;
    world.relay.take();
    let ratio = ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64();
    let mut rows = cost(image, "origin", &theirs).to_vec();
    let ratio = Row::new(BENCH, image, "origin", "clip's CPU / its own", ratio, "x");
    rows.push(ratio.at_most(0.5));
    Ok(rows)
}
