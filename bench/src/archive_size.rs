//! How large an archive is, and of what; and how far apart its seek points are.
//!
//! Beside it: the origin's archive of the same image, which cannot seek; SOCI's ztocs and nydus' blobs, which can; and the
//! tables of contents of eStargz, for which all layers are written anew. At the end an image whose layers are one zstd
//! frame each: they have no seek points, and not every peer takes them.

use crate::{
    lazy_peer::LazyPeer,
    nydus,
    peers::{self, have},
    rows::{Row, or_missing, progress},
    run,
    soci::Indexed,
    spans::Spans,
    world::{self, IMAGES, World},
};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const BENCH: &str = "archive-size";
/// Of a small image the whole is promised, of others the share.
const SMALL_IMAGE_BYTES: f64 = 20e6;
const SMALL_ARCHIVE_BYTES: f64 = 10_000.0;
const SHARE_PERCENT: f64 = 0.3;
const SLIM_ARCHIVE_BYTES: f64 = 72_000.0;
/// Of an image whose files are so small that naming them costs more than reaching them.
const SHARE_PERCENT_OF_NODE_APP: f64 = 0.4;
/// So many times as large SOCI's ztocs are, although their spans need so many times as much from the registry.
const SOCI_TO_OURS: f64 = 10.0;
const OURS_TO_SOCIS_FETCH: f64 = 0.25;
/// The image that is packed anew as zstd: a small one will do.
const PACKED_ANEW: &str = "debian-min";

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let peers = Peers::build(world);
    let mut rows = Vec::new();
    for image in IMAGES.into_iter().filter(|image| world.wants(image)) {
        let layout = world.layout(image)?;
        let (ours, measured) = measure(world, image, &layout)?;
        rows.extend(measured);
        progress(&format!("{image}: peers"));
        for (peer, theirs) in [
            ("origin", origin(world, &peers, image, &ours)),
            ("soci", soci(&peers, image, &layout, &ours)),
            ("nydus", nydus(world, &peers, image, &layout, &ours)),
            ("stargz", stargz(&peers, image, &layout, &ours)),
        ] {
            rows.extend(or_missing(BENCH, image, peer, theirs));
        }
    }
    let case = format!("{PACKED_ANEW}, zstd");
    if world.wants(&case) {
        rows.extend(zstd(world, &peers, &case)?);
    }
    Ok(rows)
}

/// Whoever could be built.
struct Peers {
    origin: Result<PathBuf>,
    soci: Result<LazyPeer>,
    nydus: Result<PathBuf>,
    stargz: Result<LazyPeer>,
}

impl Peers {
    fn build(world: &World) -> Self {
        Self {
            origin: peers::origin(world),
            soci: LazyPeer::soci(world),
            nydus: peers::nydus(world),
            stargz: LazyPeer::stargz(world),
        }
    }
}

/// Our archive of an image.
struct Ours {
    bytes: f64,
    spans: Spans,
}

impl Ours {
    fn read(file: &Path) -> Result<Self> {
        Ok(Self {
            bytes: std::fs::metadata(file)?.len() as f64,
            spans: Spans::of(file)?,
        })
    }
}

fn measure(world: &World, image: &str, layout: &Path) -> Result<(Ours, Vec<Row>)> {
    let image_bytes = world::total_bytes(&world::layers(layout)?)? as f64;
    let file = index(world, image, &world.reference(image))?;
    let passed = world.relay.take();
    let ours = Ours::read(&file)?;
    let row = |metric, value, unit| Row::new(BENCH, image, "clip", metric, value, unit);
    let (whole, share) = (
        row("archive size", ours.bytes, "B"),
        row("of the image", ours.bytes / image_bytes * 100.0, "%"),
    );
    let mut rows = vec![Row::new(
        BENCH,
        image,
        "image",
        "compressed size",
        image_bytes,
        "B",
    )];
    rows.extend(match image {
        _ if image_bytes < SMALL_IMAGE_BYTES => [whole.at_most(SMALL_ARCHIVE_BYTES), share],
        "debian-slim" => [
            whole.at_most(SLIM_ARCHIVE_BYTES),
            share.at_most(SHARE_PERCENT),
        ],
        "node-app" => [whole, share.at_most(SHARE_PERCENT_OF_NODE_APP)],
        _ => [whole, share.at_most(SHARE_PERCENT)],
    });
    for (part, bytes) in parts(world, &file)? {
        rows.push(row(part, bytes, "B"));
    }
    let downloaded = passed.bytes as f64 / image_bytes;
    rows.push(row("downloaded / image", downloaded, "x").at_most(1.01));
    rows.extend(ours.spans.rows(BENCH, image, "clip"));
    Ok((ours, rows))
}

/// Indexes `source` into an archive called `name`.
fn index(world: &World, name: &str, source: &str) -> Result<PathBuf> {
    let file = world.scratch.path().join(format!("{name}.clip"));
    let mut index = world.clip();
    index.arg("index").arg(source).arg(&file);
    run::timed(&mut index)?;
    Ok(file)
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

fn origin(world: &World, peers: &Peers, image: &str, ours: &Ours) -> Result<Vec<Row>> {
    let binary = have(&peers.origin)?;
    let file = world.scratch.path().join(format!("{image}.origin.clip"));
    let mut index = Command::new(binary);
    index.arg("index").arg(world.reference(image)).arg(&file);
    run::timed(&mut index).context("the origin's indexer")?;
    world.relay.take();
    let bytes = std::fs::metadata(&file)?.len();
    Ok(against(image, "origin", bytes, ours).into())
}

fn soci(peers: &Peers, case: &str, layout: &Path, ours: &Ours) -> Result<Vec<Row>> {
    let peer = have(&peers.soci)?;
    let indexed = Indexed::of(peer, &peer.converted(layout)?)?;
    let theirs = indexed.spans();
    let ratio = |metric, value| Row::new(BENCH, case, "soci", metric, value, "x");
    let mean = ours.spans.mean_decoded / theirs.mean_decoded;
    let fetch = ours.spans.longest_fetched as f64 / theirs.longest_fetched as f64;
    let [size, times] = against(case, "soci", indexed.ztoc_bytes, ours);
    let mut rows = vec![size, times.at_least(SOCI_TO_OURS)];
    rows.extend(theirs.rows(BENCH, case, "soci"));
    rows.push(ratio("clip's mean / its own", mean));
    rows.push(ratio("clip's fetch / its own", fetch).at_most(OURS_TO_SOCIS_FETCH));
    Ok(indexed.note(rows))
}

fn nydus(world: &World, peers: &Peers, case: &str, layout: &Path, ours: &Ours) -> Result<Vec<Row>> {
    let layers = world::layers(layout)?;
    let bytes = nydus::blob_bytes(have(&peers.nydus)?, &layers, world.scratch.path())?;
    Ok(against(case, "nydus", bytes, ours).into())
}

/// What the program in `bench/peers/stargz` says of an image that it has converted, in bytes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stargz {
    layer_bytes: u64,
    toc_bytes: u64,
}

fn stargz(peers: &Peers, image: &str, layout: &Path, ours: &Ours) -> Result<Vec<Row>> {
    let peer = have(&peers.stargz)?;
    let theirs: Stargz = peer.describe(&peer.converted(layout)?)?;
    let before = world::total_bytes(&world::layers(layout)?)?;
    let growth = theirs.layer_bytes as f64 / before as f64;
    let rows = against(image, "stargz", theirs.toc_bytes, ours);
    let mut rows: Vec<_> = rows.map(|row| row.with_note("tables of contents")).into();
    rows.push(Row::new(
        BENCH,
        image,
        "stargz",
        "layers / the image's",
        growth,
        "x",
    ));
    Ok(rows)
}

fn against(case: &str, peer: &'static str, bytes: u64, ours: &Ours) -> [Row; 2] {
    let row = |metric, value, unit| Row::new(BENCH, case, peer, metric, value, unit);
    let bytes = bytes as f64;
    [
        row("archive size", bytes, "B"),
        row("archive / clip's", bytes / ours.bytes, "x"),
    ]
}

/// An image whose layers are one zstd frame each, as most programs pack them.
fn zstd(world: &World, peers: &Peers, case: &str) -> Result<Vec<Row>> {
    let layout = world.scratch.path().join("zstd");
    let mut pack = Command::new("skopeo");
    pack.args(["copy", "-q", "--insecure-policy"])
        .args(["--dest-compress-format", "zstd"])
        .arg(format!("oci:{}", world.layout(PACKED_ANEW)?.display()))
        .arg(format!("oci:{}", layout.display()));
    run::timed(&mut pack)?;
    let ours = Ours::read(&index(world, "zstd", &format!("oci:{}", layout.display()))?)?;
    let mut rows = vec![Row::new(
        BENCH,
        case,
        "clip",
        "archive size",
        ours.bytes,
        "B",
    )];
    rows.extend(ours.spans.rows(BENCH, case, "clip"));
    for (peer, theirs) in [
        ("soci", soci(peers, case, &layout, &ours)),
        ("nydus", nydus(world, peers, case, &layout, &ours)),
    ] {
        rows.extend(or_missing(BENCH, case, peer, theirs));
    }
    Ok(rows)
}
