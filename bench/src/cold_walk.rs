//! What a mount costs while the kernel knows nothing of it yet: a walk over the whole tree, beside the same tree unpacked on
//! the disk's own file system, and reading one large file whose bytes are all still in the registry.
//!
//! Before each walk the kernel forgets all pages, names and attributes (drop_caches, proc_sys_vm(5)), so both read from the
//! disk: one the directories and inodes of the unpacked files, the other the expanded tree. The walker is `find`, a process
//! of its own. The contestants take turns; the shortest of several turns counts.

use crate::{mounted::Mounted, rows::Row, run, world::World};
use anyhow::Result;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const BENCH: &str = "cold-walk";
const IMAGES: [&str; 2] = ["debian-min", "node-app"];
const ENGINES: [(&str, &str); 2] = [("clip, fuse", "fuse"), ("clip, erofs", "erofs")];
const ROUNDS: usize = 5;
/// A walk may take so many times what it takes on the disk's own file system.
const OF_NATIVE: f64 = 1.5;
/// The largest file of an image, and how fast the kernel's EROFS must read it beside FUSE.
const LARGE_FILE: (&str, &str) = ("go-toolchain", "usr/local/go/bin/go");
const OF_FUSE: f64 = 0.9;

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for image in IMAGES {
        rows.extend(walks(world, image)?);
    }
    rows.push(first_reads(world)?);
    Ok(rows)
}

fn walks(world: &World, image: &str) -> Result<Vec<Row>> {
    let scratch = tempfile::tempdir_in(world.scratch.path())?;
    let at = |name: &str| scratch.path().join(name);
    let archive = index(world, image, scratch.path())?;
    let unpacked = at("unpacked");
    let filling = mount(world, &archive, &at("fill"), "fuse", &at("state"))?;
    run::timed(Command::new("cp").arg("-a").arg(at("fill")).arg(&unpacked))?;
    drop(filling);

    let mut mounts = Vec::new();
    for (name, engine) in ENGINES {
        let server = mount(world, &archive, &at(engine), engine, &at("state"))?;
        mounts.push((name, at(engine), server));
    }
    let mut native = Duration::MAX;
    let mut ours = [Duration::MAX; ENGINES.len()];
    for _ in 0..ROUNDS {
        native = native.min(walk(&unpacked)?);
        for ((_, dir, _), best) in mounts.iter().zip(&mut ours) {
            *best = (*best).min(walk(dir)?);
        }
    }
    let row = |((name, _, _), time): (&(&'static str, PathBuf, Mounted), &Duration)| {
        let ratio = time.as_secs_f64() / native.as_secs_f64();
        let note = format!("{} ms, native {} ms", time.as_millis(), native.as_millis());
        Row::new(BENCH, image, name, "walk", ratio, "x native")
            .at_most(OF_NATIVE)
            .with_note(&note)
    };
    Ok(mounts.iter().zip(&ours).map(row).collect())
}

/// Lists everything below `dir` with its attributes, when the kernel has forgotten all of it.
fn walk(dir: &Path) -> Result<Duration> {
    run::timed(
        Command::new("sync")
            .arg("-f")
            .arg(dir.parent().unwrap_or(dir)),
    )?;
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    let mut find = Command::new("find");
    let cost = run::timed(find.arg(dir).args(["-size", "-1c", "-fprint", "/dev/null"]))?;
    Ok(cost.wall)
}

/// Reads a file of which nothing is on the node, with both engines.
fn first_reads(world: &World) -> Result<Row> {
    let (image, file) = LARGE_FILE;
    let scratch = tempfile::tempdir_in(world.scratch.path())?;
    let archive = index(world, image, scratch.path())?;
    let mut best = [Duration::MAX; ENGINES.len()];
    for round in 0..ROUNDS {
        for ((_, engine), best) in ENGINES.iter().zip(&mut best) {
            let [dir, state] = ["mount", "state"]
                .map(|what| scratch.path().join(format!("{engine}-{what}-{round}")));
            let _server = mount(world, &archive, &dir, engine, &state)?;
            let cost = run::timed(Command::new("cat").arg(dir.join(file)))?;
            *best = (*best).min(cost.wall);
        }
    }
    let [fuse, erofs] = best.map(|time| time.as_secs_f64());
    let note = format!("{:.0} ms, fuse {:.0} ms", erofs * 1e3, fuse * 1e3);
    let row = Row::new(
        BENCH,
        image,
        "clip, erofs",
        "first read",
        fuse / erofs,
        "x fuse",
    );
    Ok(row.at_least(OF_FUSE).with_note(&note))
}

/// An archive of `image` as the registry has it.
fn index(world: &World, image: &str, dir: &Path) -> Result<PathBuf> {
    let archive = dir.join("image.clip");
    run::timed(
        world
            .clip()
            .args(["index", &world.reference(image)])
            .arg(&archive),
    )?;
    Ok(archive)
}

fn mount(world: &World, archive: &Path, dir: &Path, engine: &str, state: &Path) -> Result<Mounted> {
    std::fs::create_dir(dir)?;
    let mut server = world.clip();
    server
        .env("CLIP_STATE_DIR", state)
        .args(["mount", "--engine", engine])
        .arg(archive)
        .arg(dir);
    Mounted::start(server, dir)
}
