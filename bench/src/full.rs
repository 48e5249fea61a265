//! Reading everything: what laziness costs somebody who is not lazy.
//!
//! Every regular file of an image is read once, in the order of the tree, on a node that has nothing of it. The same
//! reader reads our mount, as each engine gives it, and the snapshot that containerd has pulled and unpacked. Getting
//! there is part of the time: the archive and the mount, or pull and unpack. The shortest of a few rounds counts.

use crate::{
    containerd::Containerd,
    mounted::{self, Mounted},
    published::Published,
    relay::{LINES, Relay},
    rows::{self, Row},
    taken::{Taken, keep_shorter},
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::{fs::File, io::Read as _, path::Path};

const BENCH: &str = "full";
/// Little of everything, many small files, a few large ones.
const IMAGES: [&str; 3] = ["debian-min", "node-app", "python-ml"];
const ROUNDS: usize = 2;
const ENGINES: [(&str, &str); 2] = [("clip, fuse", "fuse"), ("clip, erofs", "erofs")];
const OF_THE_PULL: f64 = 1.1;
/// As much as cp(1) and tar(1) read at once, or a little more.
const BUFFER: usize = 256 << 10;

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for image in IMAGES.into_iter().filter(|image| world.wants(image)) {
        let published = Published::of(world, image)?;
        for (line, link) in LINES {
            let relay = world.relay_over(link)?;
            rows.extend(measure(world, image, &published, (line, &relay))?);
        }
    }
    Ok(rows)
}

fn measure(
    world: &World,
    image: &str,
    published: &Published,
    line: (&str, &Relay),
) -> Result<Vec<Row>> {
    let (line, relay) = line;
    let case = format!("{image}, {line}");
    let (mut ours, mut theirs) = ([None; ENGINES.len()], None);
    for round in 1..=ROUNDS {
        rows::progress(&format!("{case}, round {round} of {ROUNDS}"));
        let (taken, wanted) = pull_and_read(world, image, relay)?;
        keep_shorter(&mut theirs, taken);
        for ((name, engine), best) in ENGINES.iter().zip(&mut ours) {
            let (taken, read) = mount_and_read(world, published, engine, relay)?;
            ensure!(read == wanted, "{name} has {read} bytes, not {wanted}");
            keep_shorter(best, taken);
        }
    }
    let theirs = theirs.context("at least one round")?;
    let row = |system, metric, value, unit| Row::new(BENCH, &case, system, metric, value, unit);
    let time = |system, taken: &Taken| {
        row(system, "until all is read", taken.seconds(), "s").with_note(&taken.passed.to_string())
    };
    let mut rows = vec![time("containerd", &theirs)];
    for ((name, _), taken) in ENGINES.iter().zip(ours) {
        let taken = taken.context("at least one round")?;
        let ratio = taken.seconds() / theirs.seconds();
        rows.push(time(name, &taken));
        rows.push(row(name, "to containerd's", ratio, "x").at_most(OF_THE_PULL));
    }
    Ok(rows)
}

fn mount_and_read(
    world: &World,
    published: &Published,
    engine: &str,
    relay: &Relay,
) -> Result<(Taken, u64)> {
    let archive = published.behind(world, relay)?;
    let scratch = world.scratch.path();
    let (dir, state) = (
        tempfile::tempdir_in(scratch)?,
        tempfile::tempdir_in(scratch)?,
    );
    let mut server = world.clip();
    server
        .args(["mount", "--engine", engine])
        .arg(&archive)
        .arg(dir.path())
        .env("CLIP_STATE_DIR", state.path());
    let mut read = 0;
    let taken = Taken::by(relay, || {
        published.fetch(relay)?;
        let mounted = Mounted::start(server, dir.path())?;
        read = read_all(dir.path())?;
        Ok(mounted)
    })?;
    Ok((taken, read))
}

fn pull_and_read(world: &World, image: &str, relay: &Relay) -> Result<(Taken, u64)> {
    let containerd = Containerd::start(world.scratch.path())?;
    let dir = tempfile::tempdir_in(world.scratch.path())?;
    let reference = world.reference_behind(relay, image);
    let mut read = 0;
    let taken = Taken::by(relay, || {
        containerd.pull(&reference)?;
        containerd.mount(&reference, dir.path())?;
        read = read_all(dir.path())?;
        Ok(())
    });
    mounted::detach_below(dir.path());
    Ok((taken?, read))
}

/// Reads all regular files below `root`; says how many bytes they have.
fn read_all(root: &Path) -> Result<u64> {
    let (mut found, mut read) = (vec![root.to_owned()], 0);
    let mut buffer = vec![0; BUFFER];
    while let Some(path) = found.pop() {
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path)?;
            let mut entries: Vec<_> = entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_>>()?;
            // The last is the next.
            entries.sort_by(|a, b| b.cmp(a));
            found.extend(entries);
        } else if kind.is_file() {
            let mut file = File::open(&path).with_context(|| path.display().to_string())?;
            while let length @ 1.. = file.read(&mut buffer)? {
                read += length as u64;
            }
        }
    }
    Ok(read)
}
