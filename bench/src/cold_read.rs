//! What one small read costs when nothing is on the node: requests, bytes, time.
//!
//! Files all over the image are read, 4 KiB of each, from a mount with an empty cache, once the mount has fetched what the
//! image's command begins with, which is counted by itself. Beside it:
//! the origin's mount (a new cache for every read, as its first read fetches the whole layer), and
//! fetching and decoding the whole layer.

use crate::{
    mounted::Mounted,
    peers,
    relay::Passed,
    rows::Row,
    run,
    world::{READ_IMAGES, World},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const BENCH: &str = "cold-read";
const READ_LEN: usize = 4096;
/// Reads of ours per image, and of the origin, each of which fetches a whole layer.
const READS: usize = 24;
const ORIGIN_READS: usize = 3;

/// A mount that asks for nothing for so long has what it wants.
const QUIET: Duration = Duration::from_millis(500);

/// What a read causes has come after so long.
const AFTERMATH: Duration = Duration::from_millis(100);

/// One cold read.
#[derive(Debug, Clone, Copy)]
struct Read {
    passed: Passed,
    time: Duration,
}

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for image in READ_IMAGES {
        let archive = world.scratch.path().join(format!("{image}.cold.clip"));
        run::timed(
            world
                .clip()
                .arg("index")
                .arg(world.reference(image))
                .arg(&archive),
        )?;
        let (at_mount, ours) = clip_reads(world, &archive)?;
        rows.extend(describe(image, "clip", &ours, true));
        let (metric, at_mount) = ("bytes, at the mount", at_mount as f64);
        rows.push(Row::new(BENCH, image, "clip", metric, at_mount, "B"));
        let whole = whole_layers(world, image)?;
        rows.push(Row::new(
            BENCH,
            image,
            "whole layers",
            "bytes",
            whole.passed.bytes as f64,
            "B",
        ));
        rows.push(Row::new(
            BENCH,
            image,
            "whole layers",
            "decode time",
            whole.time.as_secs_f64() * 1e3,
            "ms",
        ));
        rows.extend(origin(world, image)?);
    }
    Ok(rows)
}

fn describe(image: &str, system: &'static str, reads: &[Read], promised: bool) -> Vec<Row> {
    let sorted = |value: fn(&Read) -> f64| {
        let mut values: Vec<f64> = reads.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let bytes = sorted(|read| read.passed.bytes as f64);
    let requests = sorted(|read| read.passed.blob_requests as f64);
    let time = sorted(|read| read.time.as_secs_f64() * 1e3);
    let (middle, last) = (reads.len() / 2, reads.len() - 1);
    let p50 = Row::new(BENCH, image, system, "bytes, p50", bytes[middle], "B");
    let most = Row::new(BENCH, image, system, "bytes, most", bytes[last], "B");
    let limit = |row: Row, limit: f64| if promised { row.at_most(limit) } else { row };
    vec![
        limit(p50, 524_288.0),
        limit(most, 1_048_576.0),
        limit(
            Row::new(
                BENCH,
                image,
                system,
                "blob requests, p50",
                requests[middle],
                "",
            ),
            1.0,
        ),
        Row::new(BENCH, image, system, "time, p50", time[middle], "ms"),
        Row::new(BENCH, image, system, "time, longest", time[last], "ms"),
    ]
}

/// The bytes that mounting fetches, and the reads.
fn clip_reads(world: &World, archive: &Path) -> Result<(u64, Vec<Read>)> {
    let dir = world.scratch.path().join("mount");
    std::fs::create_dir_all(&dir)?;
    let state = tempfile::tempdir_in(world.scratch.path())?;
    let mut server = world.clip();
    server
        .arg("mount")
        .arg(archive)
        .arg(&dir)
        .env("CLIP_STATE_DIR", state.path());
    world.relay.take();
    let mounted = Mounted::start(server, &dir)?;
    let files = sample(&dir, READS)?;
    let mut at_mount = 0;
    loop {
        std::thread::sleep(QUIET);
        match world.relay.take().bytes {
            0 => break,
            more => at_mount += more,
        }
    }
    let reads: Result<_> = files.iter().map(|file| read_one(world, file)).collect();
    drop(mounted);
    Ok((at_mount, reads?))
}

fn origin(world: &World, image: &str) -> Result<Vec<Row>> {
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
    let archive = world.scratch.path().join(format!("{image}.origin.clip"));
    run::timed(
        Command::new(&binary)
            .arg("index")
            .arg(world.reference(image))
            .arg(&archive),
    )
    .context("the origin's indexer")?;
    let dir = world.scratch.path().join("origin-mount");
    std::fs::create_dir_all(&dir)?;
    let mut reads = Vec::new();
    for turn in 0..ORIGIN_READS {
        let cache = tempfile::tempdir_in(world.scratch.path())?;
        let mut server = Command::new(&binary);
        server
            .arg("mount")
            .arg(&archive)
            .arg(&dir)
            .arg(cache.path());
        let mounted = Mounted::start(server, &dir)?;
        let files = sample(&dir, ORIGIN_READS)?;
        world.relay.take();
        reads.push(read_one(world, &files[turn.min(files.len() - 1)])?);
        drop(mounted);
    }
    Ok(describe(image, "origin", &reads, false))
}

fn read_one(world: &World, path: &Path) -> Result<Read> {
    let file = File::open(path)?;
    let middle = file.metadata()?.len() / 2 / READ_LEN as u64 * READ_LEN as u64;
    let mut buffer = [0; READ_LEN];
    let started = Instant::now();
    file.read_at(&mut buffer, middle)?;
    let time = started.elapsed();
    // What was fetched ahead for it belongs to it, too.
    std::thread::sleep(AFTERMATH);
    Ok(Read {
        passed: world.relay.take(),
        time,
    })
}

/// The cost of having the whole layers first: their size, and `gzip -dc` by the clock.
fn whole_layers(world: &World, image: &str) -> Result<Read> {
    let layers = world.layers(image)?;
    let bytes = layers
        .iter()
        .map(|layer| Ok(std::fs::metadata(layer)?.len()))
        .sum::<Result<u64>>()?;
    let cost = run::timed(
        Command::new("sh")
            .arg("-c")
            .arg("gzip -dc \"$@\" >/dev/null")
            .arg("sh")
            .args(&layers),
    )?;
    Ok(Read {
        passed: Passed {
            bytes,
            blob_requests: layers.len() as u64,
        },
        time: cost.wall,
    })
}

/// `count` regular files of more than one page, spread over the tree in the order of their paths
/// (which says nothing about their place in the layers).
fn sample(root: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)?.flatten() {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() && entry.metadata()?.len() > READ_LEN as u64 {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    ensure!(
        files.len() >= count,
        "{} has only {} files",
        root.display(),
        files.len()
    );
    Ok((0..count)
        .map(|turn| files[turn * files.len() / count].clone())
        .collect())
}
