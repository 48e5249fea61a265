//! A tree of 125,000 small files: how large its archive is, and how long it takes to become a mount, the first time on a
//! node, when the tree is expanded, and again.

use crate::{
    archive_size,
    mounted::Mounted,
    rows::Row,
    run,
    world::{MANY_FILES, World},
};
use anyhow::{Context, Result};
use std::path::Path;

const BENCH: &str = "many-files";
const ROUNDS: usize = 5;
const ARCHIVE_BYTES: f64 = 700e3;
const EXPANSION_MS: f64 = 100.0;
const MOUNT_MS: f64 = 10.0;

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let archive = world.scratch.path().join("many-files.clip");
    let source = format!("oci:{}", world.layout(MANY_FILES)?.display());
    run::timed(world.clip().args(["index", &source]).arg(&archive))?;
    let row = |metric, value, unit| Row::new(BENCH, MANY_FILES, "clip", metric, value, unit);
    let size = std::fs::metadata(&archive)?.len() as f64;
    let mut rows = vec![row("archive size", size, "B").at_most(ARCHIVE_BYTES)];
    for (part, bytes) in archive_size::parts(world, &archive)? {
        rows.push(row(part, bytes, "B"));
    }
    let (mut first, mut again) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        let state = tempfile::tempdir_in(world.scratch.path())?;
        first = mount_ms(world, &archive, state.path())?.min(first);
        again = mount_ms(world, &archive, state.path())?.min(again);
    }
    rows.push(row("open to mounted, first", first, "ms"));
    rows.push(row("expansion", first - again, "ms").at_most(EXPANSION_MS));
    rows.push(row("open to mounted, again", again, "ms").at_most(MOUNT_MS));
    Ok(rows)
}

/// What `clip mount` says it took, from opening the archive on.
fn mount_ms(world: &World, archive: &Path, state: &Path) -> Result<f64> {
    let dir = tempfile::tempdir_in(world.scratch.path())?;
    let mut server = world.clip();
    server.arg("mount").arg(archive).arg(dir.path());
    server.env("CLIP_STATE_DIR", state);
    let line = Mounted::start(server, dir.path())?.first_line()?;
    let ms = line.trim_end().strip_suffix(" ms");
    let ms = ms.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    ms.with_context(|| format!("clip mount says no time in milliseconds: {line:?}"))
}
