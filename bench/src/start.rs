//! The time from "nothing is on the node" to a container's first useful output.
//!
//! Each start three times: the first one ever, the first one on a node when another node has recorded it, and the second
//! one on the node. What a node fetches before it mounts (the archive) is part of the time. Beside it, by the same
//! containerd that runs our containers: pull, unpack and overlayfs; and the snapshotters of stargz and SOCI, whose images
//! were converted beforehand, and whose second start finds everything mounted (ours gets the archive and mounts anew). At
//! the speed of loopback, and over a line with 20 ms and 50 MB/s.

use crate::{
    containerd::Containerd,
    lazy_peer::LazyPeer,
    mounted::{Mounted, Overlay},
    peers::have,
    programs::{PROGRAMS, Program},
    published::Published,
    relay::{LINES, Link, Relay, SLOW},
    rows::{Row, or_missing, progress},
    run,
    taken::{Taken, keep_shorter},
    world::World,
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

const BENCH: &str = "start";
const ROUNDS: usize = 3;
/// With a profile a start may take so many times what its pieces take on the line and the program itself.
const OF_THE_LIMIT: f64 = 1.3;

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let containerd = Containerd::start(world.scratch.path())?;
    let peers = LazyPeer::all(world);
    let relays = LINES.map(|(name, link)| Ok((name, link, world.relay_over(link)?)));
    let relays: Vec<(&str, Link, Relay)> = relays.into_iter().collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for program in PROGRAMS.iter().filter(|program| world.wants(program.name)) {
        let ours = Ours::prepare(world, program)?;
        for (name, link, relay) in &relays {
            let case = format!("{}, {name}", program.name);
            progress(&case);
            let lines = measure(world, &containerd, &ours, relay)?;
            rows.extend(lines.rows(program, (name, *link), ours.profiled));
            for (system, peer) in &peers {
                let lines = have(peer).and_then(|peer| lazily(world, peer, program, relay));
                let theirs = lines.map(|lines| lines.rows(&case, system));
                rows.extend(or_missing(BENCH, &case, system, theirs));
            }
        }
    }
    Ok(rows)
}

/// One start, indexed and recorded.
struct Ours<'a> {
    program: &'a Program,
    published: Published,
    profile: PathBuf,
    /// Compressed bytes that the profile names.
    profiled: f64,
}

impl<'a> Ours<'a> {
    fn prepare(world: &World, program: &'a Program) -> Result<Self> {
        let published = Published::of(world, program.image)?;
        let name = program.name.replace(' ', "-");
        let profile = world.scratch.path().join(format!("{name}.profile"));
        let mut record = world.clip();
        record
            .args(["profile", "record"])
            .arg(published.path())
            .arg(&profile);
        record.args(["--", "chroot", "{}"]).args(program.command);
        run::timed(&mut record)?;
        let mut show = world.clip();
        show.args(["profile", "show", "--json"])
            .arg(&profile)
            .arg(published.path());
        let shown: Value = serde_json::from_slice(&show.output()?.stdout)?;
        let sections = shown["sections"].as_array().context("sections")?;
        let bytes = sections
            .iter()
            .filter_map(|section| section["bytes"].as_f64());
        Ok(Self {
            program,
            published,
            profile,
            profiled: bytes.sum(),
        })
    }

    /// Gets the archive over the line, mounts it, and runs the program.
    fn run(
        &self,
        world: &World,
        containerd: &Containerd,
        relay: &Relay,
        state: &Path,
        with_profile: bool,
    ) -> Result<Taken> {
        let archive = self.published.behind(world, relay)?;
        let dir = tempfile::tempdir_in(world.scratch.path())?;
        let mut server = world.clip();
        server.arg("mount").arg(&archive).arg(dir.path());
        server.env("CLIP_STATE_DIR", state);
        if with_profile {
            server.arg("--profile").arg(&self.profile);
        }
        let upper = tempfile::tempdir_in(world.scratch.path())?;
        Taken::by(relay, || {
            self.published.fetch(relay)?;
            let mounted = Mounted::start(server, dir.path())?;
            let overlay = Overlay::mount(dir.path(), upper.path())?;
            containerd.run_on("ours", overlay.path(), self.program.command)?;
            Ok((overlay, mounted))
        })
    }
}

/// The shortest of some rounds of each kind.
struct Lines {
    first: Taken,
    profiled: Taken,
    second: Taken,
    pulled: Taken,
}

fn measure(
    world: &World,
    containerd: &Containerd,
    ours: &Ours<'_>,
    relay: &Relay,
) -> Result<Lines> {
    let [mut first, mut profiled, mut second] = [None; 3];
    for _ in 0..ROUNDS {
        let state = || tempfile::tempdir_in(world.scratch.path());
        let here = state()?;
        let run =
            |state: &Path, with_profile| ours.run(world, containerd, relay, state, with_profile);
        keep_shorter(&mut first, run(here.path(), false)?);
        keep_shorter(&mut second, run(here.path(), false)?);
        keep_shorter(&mut profiled, run(state()?.path(), true)?);
    }
    let taken = |best: Option<Taken>| best.context("at least one round");
    Ok(Lines {
        first: taken(first)?,
        profiled: taken(profiled)?,
        second: taken(second)?,
        // Once: it takes long, and varies little.
        pulled: pull(world, ours.program, relay)?,
    })
}

fn pull(world: &World, program: &Program, relay: &Relay) -> Result<Taken> {
    let containerd = Containerd::start(world.scratch.path())?;
    let reference = world.reference_behind(relay, program.image);
    Taken::by(relay, || {
        containerd.pull(&reference)?;
        containerd.run_image("pulled", &reference, program.command)
    })
}

impl Lines {
    fn rows(&self, program: &Program, line: (&str, Link), profiled_bytes: f64) -> Vec<Row> {
        let (name, link) = line;
        let case = format!("{}, {name}", program.name);
        let row = |system, metric, value, unit| Row::new(BENCH, &case, system, metric, value, unit);
        let is_slow = name == SLOW;
        let promised = |row: Row, target: Option<f64>| match target.filter(|_| is_slow) {
            Some(target) => row.at_most(target),
            None => row,
        };
        let mut rows = Vec::new();
        for (system, metric, taken, target) in [
            ("clip", "first start", &self.first, program.targets[0]),
            ("clip", "with profile", &self.profiled, program.targets[1]),
            ("clip", "second start", &self.second, None),
            ("containerd", "pull and start", &self.pulled, None),
        ] {
            let time = row(system, metric, taken.seconds(), "s");
            rows.push(promised(time, target).with_note(&taken.passed.to_string()));
        }
        let of_pull = self.first.seconds() / self.pulled.seconds();
        rows.push(row("clip", "first start / pull's", of_pull, "x").at_most(1.0));
        if is_slow {
            let line = link.round_trip.as_secs_f64() + profiled_bytes / link.shared;
            let of_limit = self.profiled.seconds() / (line + self.second.seconds());
            rows.push(row("clip", "with profile / limit", of_limit, "x").at_most(OF_THE_LIMIT));
        }
        rows
    }
}

/// The same of a lazy peer.
struct LazyLines {
    first: Taken,
    second: Taken,
}

fn lazily(world: &World, peer: &LazyPeer, program: &Program, relay: &Relay) -> Result<LazyLines> {
    peer.push(world, program.image)?;
    let reference = peer.reference(relay, program.image);
    let [mut first, mut second] = [None; 2];
    for _ in 0..ROUNDS {
        let node = peer.node(world.scratch.path())?;
        let start = || {
            node.containerd
                .run_image("lazy", &reference, program.command)
        };
        let pull_and_start = || {
            node.pull(&reference)?;
            start()
        };
        keep_shorter(&mut first, Taken::by(relay, pull_and_start)?);
        keep_shorter(&mut second, Taken::by(relay, start)?);
    }
    Ok(LazyLines {
        first: first.context("at least one round")?,
        second: second.context("at least one round")?,
    })
}

impl LazyLines {
    fn rows(&self, case: &str, system: &'static str) -> Vec<Row> {
        let kinds = [("first start", &self.first), ("second start", &self.second)];
        let row = |(metric, taken): (_, &Taken)| {
            Row::new(BENCH, case, system, metric, taken.seconds(), "s")
                .with_note(&taken.passed.to_string())
        };
        kinds.map(row).into()
    }
}
