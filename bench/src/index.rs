//! What indexing costs: processor time, wall time and memory, from an OCI layout on disk.
//!
//! Beside it: decoding the same layers with `gzip`, with libdeflate (the fastest decoder of whole
//! files) and with `igzip`, each alone and without hashing anything; the machine's floor, which is
//! libdeflate and OpenSSL's SHA-256 of what must be hashed, the blobs and their tars; the origin's
//! indexer, and SOCI's; and the conversion to eStargz, which writes all layers anew.

use crate::{
    lazy_peer::LazyPeer,
    peers::{self, have},
    rebuild,
    relay::Link,
    rows::{Row, or_missing, progress},
    run::{Cost, best_of, timed},
    soci::Indexed,
    world::{self, IMAGES, LARGE, World, has_sha_instructions},
};
use anyhow::Result;
use std::{path::PathBuf, process::Command, time::Duration};

const BENCH: &str = "index";
const RUNS: usize = 3;
const PEAK_BYTES: f64 = 100e6;
/// Of a peer's processor time and wall time, what we may take.
const OF_A_PEER: f64 = 0.5;
/// Images of so many bytes are converted to eStargz only once: it takes minutes.
const ONCE_FROM: u64 = 100 << 20;
/// Of each connection to the slow registry, bytes a second: as from a busy one on the internet.
const SLOW_CONNECTION: f64 = 10e6;
const SLOW_REGISTRY: &str = "slow registry";
const ONE_LAYER: &str = "debian-min";

/// A program that decodes layers, and how many times what it takes indexing may take.
struct Decoder {
    name: &'static str,
    command: &'static str,
    cpu_limit: Option<f64>,
    wall_limit: Option<f64>,
}

const LIBDEFLATE: &str = "libdeflate-gunzip -c";
const DECODERS: [Decoder; 3] = [
    Decoder {
        name: "gzip",
        command: "gzip -dc",
        cpu_limit: Some(1.0),
        wall_limit: Some(1.0),
    },
    Decoder {
        name: "libdeflate",
        command: LIBDEFLATE,
        cpu_limit: Some(2.2),
        wall_limit: None,
    },
    Decoder {
        name: "igzip",
        command: "igzip -dc",
        cpu_limit: None,
        wall_limit: None,
    },
];

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let peers = Peers::build(world);
    let mut rows = Vec::new();
    for image in IMAGES.into_iter().filter(|image| world.wants(image)) {
        let layers = world.layers(image)?;
        let ours = ours(world, image, RUNS)?;
        rows.extend(cost(image, "clip", &ours));
        rows.push(peak(image, &ours));
        for decoder in &DECODERS {
            rows.extend(decode(image, &layers, &ours, decoder));
        }
        rows.extend(floor(world, image, &layers, &ours)?);
        progress(&format!("{image}: peers"));
        for (peer, theirs) in [
            ("origin", origin(world, &peers, image, &ours)),
            ("soci", soci(world, &peers, image, &ours)),
            ("stargz", stargz(world, &peers, image, &ours)),
        ] {
            rows.extend(or_missing(BENCH, image, peer, theirs));
        }
    }
    if world.wants(LARGE) {
        let large = ours(world, LARGE, 1)?;
        rows.extend(cost(LARGE, "clip", &large));
        rows.push(peak(LARGE, &large));
    }
    if world.wants(SLOW_REGISTRY) {
        rows.extend(slow_registry(world)?);
    }
    if world.wants(rebuild::CASE) {
        rows.extend(rebuild::run(world)?);
    }
    Ok(rows)
}

/// Whoever could be built.
struct Peers {
    origin: Result<PathBuf>,
    soci: Result<LazyPeer>,
    stargz: Result<LazyPeer>,
}

impl Peers {
    fn build(world: &World) -> Self {
        Self {
            origin: peers::origin(world),
            soci: LazyPeer::soci(world),
            stargz: LazyPeer::stargz(world),
        }
    }
}

/// A registry that gives so little to each connection: one layer, which must not come over one of them.
fn slow_registry(world: &World) -> Result<Vec<Row>> {
    let relay = world.relay_over(Link {
        per_connection: SLOW_CONNECTION,
        ..Link::default()
    })?;
    let file = world.scratch.path().join("slow.clip");
    let mut index = world.clip();
    index
        .arg("index")
        .arg(world.reference_behind(&relay, ONE_LAYER))
        .arg(file);
    let ours = timed(&mut index)?;
    let layers = world.layers(ONE_LAYER)?;
    let bytes = std::fs::metadata(&layers[0])?.len() as f64;
    let one_connection = bytes / SLOW_CONNECTION;
    let row = |metric, value, unit| Row::new(BENCH, SLOW_REGISTRY, "clip", metric, value, unit);
    Ok(vec![
        row("wall", ours.wall.as_secs_f64(), "s"),
        row(
            "wall / one connection's",
            ours.wall.as_secs_f64() / one_connection,
            "x",
        )
        .at_most(0.5),
        row("downloaded / image", relay.take().bytes as f64 / bytes, "x").at_most(1.01),
        peak(SLOW_REGISTRY, &ours),
    ])
}

fn ours(world: &World, image: &str, runs: usize) -> Result<Cost> {
    let source = format!("oci:{}", world.layout(image)?.display());
    let mut number = 0;
    best_of(runs, || {
        // A new file each time: nothing is there that could be taken over.
        number += 1;
        let file = format!("{image}.index-{number}.clip");
        let mut index = world.clip();
        index
            .args(["index", &source])
            .arg(world.scratch.path().join(file));
        index
    })
}

fn peak(image: &str, ours: &Cost) -> Row {
    Row::new(BENCH, image, "clip", "peak memory", ours.peak as f64, "B").at_most(PEAK_BYTES)
}

fn cost(image: &str, system: &'static str, cost: &Cost) -> [Row; 2] {
    [("CPU", cost.cpu), ("wall", cost.wall)]
        .map(|(metric, time)| Row::new(BENCH, image, system, metric, time.as_secs_f64(), "s"))
}

/// The layers one after the other, as fast as one processor can.
fn decode(image: &str, layers: &[PathBuf], ours: &Cost, decoder: &Decoder) -> Vec<Row> {
    let name = decoder.name;
    let theirs = match best_of(RUNS, || for_each(layers, decoder.command, "/dev/null")) {
        Ok(theirs) => theirs,
        Err(error) => return vec![Row::missing(BENCH, image, name, &format!("{error:#}"))],
    };
    let mut rows = cost(image, name, &theirs).to_vec();
    for (metric, ours, theirs, limit) in [
        (
            "clip's CPU / its own",
            ours.cpu,
            theirs.cpu,
            decoder.cpu_limit,
        ),
        (
            "clip's wall / its own",
            ours.wall,
            theirs.wall,
            decoder.wall_limit,
        ),
    ] {
        let ratio = Row::new(
            BENCH,
            image,
            name,
            metric,
            ours.div_duration_f64(theirs),
            "x",
        );
        rows.push(match limit {
            Some(limit) => ratio.at_most(limit),
            None => ratio,
        });
    }
    rows
}

/// Runs `command` for each layer.
fn for_each(layers: &[PathBuf], command: &str, output: &str) -> Command {
    let script = format!("for layer; do {command} \"$layer\" >{output} || exit; done");
    let mut sh = Command::new("sh");
    sh.args(["-c", &script, "sh"]).args(layers);
    sh
}

/// What no indexer can do without: decoding the layers, and hashing them and their tars. Both measured alone, because a
/// pipe between them would cost as well.
fn floor(world: &World, image: &str, layers: &[PathBuf], ours: &Cost) -> Result<Vec<Row>> {
    let tars = tempfile::tempdir_in(world.scratch.path())?;
    let output = format!("{}/\"${{layer##*/}}\"", tars.path().display());
    let (system, note) = ("floor", hash_note());
    if let Err(error) = timed(&mut for_each(layers, LIBDEFLATE, &output)) {
        return Ok(vec![Row::missing(
            BENCH,
            image,
            system,
            &format!("{error:#}"),
        )]);
    }
    let decoding = best_of(RUNS, || for_each(layers, LIBDEFLATE, "/dev/null"))?;
    let hashing = best_of(RUNS, || {
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256"]).args(layers);
        openssl.args(
            layers
                .iter()
                .filter_map(|layer| Some(tars.path().join(layer.file_name()?))),
        );
        openssl
    })?;
    let least = decoding.cpu + hashing.cpu;
    let row = |metric, value, unit| Row::new(BENCH, image, system, metric, value, unit);
    Ok(vec![
        row("CPU", least.as_secs_f64(), "s").with_note(note),
        row(
            "clip's CPU / its own",
            ours.cpu.div_duration_f64(least),
            "x",
        )
        .with_note(note),
        row(
            "its CPU / libdeflate's",
            least.div_duration_f64(decoding.cpu),
            "x",
        )
        .with_note(note),
    ])
}

/// Hashing is most of the floor where the processor does not do it itself.
fn hash_note() -> &'static str {
    match has_sha_instructions() {
        true => "libdeflate + OpenSSL's SHA-256; the processor has SHA instructions",
        false => "libdeflate + OpenSSL's SHA-256; the processor has no SHA instructions",
    }
}

fn origin(world: &World, peers: &Peers, image: &str, ours: &Cost) -> Result<Vec<Row>> {
    let binary = have(&peers.origin)?;
    let file = world.scratch.path().join(format!("{image}.origin.clip"));
    // It reads from registries only.
    let theirs = best_of(RUNS, || {
        let mut index = Command::new(binary);
        index.arg("index").arg(world.reference(image)).arg(&file);
        index
    })?;
    world.relay.take();
    Ok(against(image, "origin", ours, &theirs))
}

fn soci(world: &World, peers: &Peers, image: &str, ours: &Cost) -> Result<Vec<Row>> {
    let peer = have(&peers.soci)?;
    let indexed = Indexed::of(peer, &peer.converted(&world.layout(image)?)?)?;
    Ok(indexed.note(converting(world, image, peer, RUNS, ours)?))
}

fn stargz(world: &World, peers: &Peers, image: &str, ours: &Cost) -> Result<Vec<Row>> {
    let runs = match world::total_bytes(&world.layers(image)?)? {
        ..ONCE_FROM => RUNS,
        _ => 1,
    };
    converting(world, image, have(&peers.stargz)?, runs, ours)
}

/// What a peer takes for an image, from an OCI layout into another.
fn converting(
    world: &World,
    image: &str,
    peer: &LazyPeer,
    runs: usize,
    ours: &Cost,
) -> Result<Vec<Row>> {
    let layout = world.layout(image)?.canonicalize()?;
    let converted = tempfile::tempdir_in(world.scratch.path())?;
    let mut number = 0;
    let theirs = best_of(runs, || {
        number += 1;
        peer.convert(&layout, &converted.path().join(number.to_string()))
    })?;
    Ok(against(image, peer.name, ours, &theirs))
}

fn against(image: &str, peer: &'static str, ours: &Cost, theirs: &Cost) -> Vec<Row> {
    let row = |metric, value, unit| Row::new(BENCH, image, peer, metric, value, unit);
    let ratio = |metric, ours: Duration, theirs| {
        row(metric, ours.div_duration_f64(theirs), "x").at_most(OF_A_PEER)
    };
    let mut rows = cost(image, peer, theirs).to_vec();
    rows.push(row("peak memory", theirs.peak as f64, "B"));
    rows.push(ratio("clip's CPU / its own", ours.cpu, theirs.cpu));
    rows.push(ratio("clip's wall / its own", ours.wall, theirs.wall));
    rows
}
