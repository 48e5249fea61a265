//! The time from "nothing is on the node" to a container's first useful output.
//!
//! Each start three times: the first one ever, the first one on a node when another node has recorded it, and the second
//! one on the node. What a node fetches before it mounts (the archive) is part of the time. Beside it: pull, unpack and
//! overlayfs with containerd, which also runs our containers. At the speed of loopback, and over a line with 20 ms and
//! 50 MB/s.

use crate::{
    containerd::Containerd,
    mounted::{Mounted, Overlay},
    relay::{Link, Passed, Relay},
    rows::Row,
    run,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const BENCH: &str = "start";
const ROUNDS: usize = 3;
const ROUND_TRIP: Duration = Duration::from_millis(20);
const BYTES_PER_SECOND: f64 = 50e6;
/// With a profile a start may take so many times what its pieces take on the line and the program itself.
const OF_THE_LIMIT: f64 = 1.3;

/// A program and when it is useful.
struct Start {
    name: &'static str,
    image: &'static str,
    command: &'static [&'static str],
    /// Seconds on the slow line, the first time and with a profile (DESIGN, targets).
    targets: [Option<f64>; 2],
}

const STARTS: [Start; 5] = [
    Start {
        name: "bash",
        image: "debian-min",
        command: &["/bin/bash", "-c", "echo ready"],
        targets: [Some(0.45), None],
    },
    Start {
        name: "go version",
        image: "go-toolchain",
        // Recorded in a chroot without /proc, where Go does not find out where it is.
        command: &[
            "/usr/bin/env",
            "GOROOT=/usr/local/go",
            "/usr/local/go/bin/go",
            "version",
        ],
        targets: [Some(0.6), None],
    },
    Start {
        name: "node server",
        image: "node-app",
        command: &["/usr/local/bin/node", "/app/server.js", "once"],
        targets: [Some(2.0), Some(1.2)],
    },
    Start {
        name: "import numpy",
        image: "python-ml",
        command: &[
            "/usr/bin/python3",
            "-c",
            "import numpy; print(numpy.__version__)",
        ],
        targets: [Some(2.0), Some(1.2)],
    },
    Start {
        name: "import pandas",
        image: "python-ml",
        command: &[
            "/usr/bin/python3",
            "-c",
            "import pandas; print(pandas.__version__)",
        ],
        targets: [None, None],
    },
];

/// What one start took.
#[derive(Debug, Clone, Copy)]
struct Taken {
    time: Duration,
    passed: Passed,
}

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let fast = world.relay_over(Link::default())?;
    let slow = world.relay_over(Link {
        round_trip: ROUND_TRIP,
        shared: BYTES_PER_SECOND,
        ..Link::default()
    })?;
    let containerd = Containerd::start(world.scratch.path())?;
    let mut rows = Vec::new();
    for start in &STARTS {
        let ours = Ours::prepare(world, start)?;
        for (line, relay) in [("loopback", &fast), ("slow", &slow)] {
            let lines = measure(world, &containerd, &ours, relay)?;
            rows.extend(lines.rows(start, line, ours.profiled));
        }
        let why = "not measured here: it needs converted images";
        rows.push(Row::missing(BENCH, start.name, "stargz", why));
    }
    Ok(rows)
}

/// One start, indexed and recorded.
struct Ours<'a> {
    start: &'a Start,
    archive: PathBuf,
    profile: PathBuf,
    /// Compressed bytes that the profile names.
    profiled: f64,
}

impl<'a> Ours<'a> {
    fn prepare(world: &World, start: &'a Start) -> Result<Self> {
        let name = start.name.replace(' ', "-");
        let at = |extension: &str| world.scratch.path().join(format!("{name}.{extension}"));
        let (archive, profile) = (at("clip"), at("profile"));
        let reference = world.reference(start.image);
        let mut index = world.clip();
        index.arg("index").arg(&reference).arg(&archive);
        run::timed(index.args(["--publish", &reference]))?;
        let mut record = world.clip();
        record
            .args(["profile", "record"])
            .arg(&archive)
            .arg(&profile);
        record.args(["--", "chroot", "{}"]).args(start.command);
        run::timed(&mut record)?;
        let mut show = world.clip();
        show.args(["profile", "show", "--json"])
            .arg(&profile)
            .arg(&archive);
        let shown: Value = serde_json::from_slice(&show.output()?.stdout)?;
        let sections = shown["sections"].as_array().context("sections")?;
        let bytes = sections
            .iter()
            .filter_map(|section| section["bytes"].as_f64());
        Ok(Self {
            start,
            archive,
            profile,
            profiled: bytes.sum(),
        })
    }

    /// Gets the archive over the line, mounts it, and runs the program. The archive names the relay where it was indexed,
    /// so the copy that is mounted is one that names this one.
    fn run(
        &self,
        world: &World,
        containerd: &Containerd,
        relay: &Relay,
        state: &Path,
        with_profile: bool,
    ) -> Result<Taken> {
        let archive = self.behind(world, relay)?;
        let dir = tempfile::tempdir_in(world.scratch.path())?;
        let mut server = world.clip();
        server.arg("mount").arg(&archive).arg(dir.path());
        server.env("CLIP_STATE_DIR", state);
        if with_profile {
            server.arg("--profile").arg(&self.profile);
        }
        let upper = tempfile::tempdir_in(world.scratch.path())?;
        relay.take();
        let started = Instant::now();
        fetch_blob(relay, self.start.image, &self.archive)?;
        let mounted = Mounted::start(server, dir.path())?;
        let overlay = Overlay::mount(dir.path(), upper.path())?;
        containerd.run_on("ours", overlay.path(), self.start.command)?;
        let time = started.elapsed();
        drop(overlay);
        drop(mounted);
        Ok(Taken {
            time,
            passed: relay.take(),
        })
    }

    /// The same archive, made behind another relay.
    fn behind(&self, world: &World, relay: &Relay) -> Result<PathBuf> {
        let port = relay.address().rsplit(':').next().context("a port")?;
        let archive = self.archive.with_extension(format!("{port}.clip"));
        if !archive.exists() {
            let reference = world.reference_behind(relay, self.start.image);
            let mut index = world.clip();
            index.arg("index").arg(reference).arg(&archive);
            run::timed(index.arg("--reuse").arg(&self.archive))?;
        }
        Ok(archive)
    }
}

/// The archive as it lies in the registry, over a new connection.
fn fetch_blob(relay: &Relay, image: &str, archive: &Path) -> Result<()> {
    let sum = Command::new("sha256sum").arg(archive).output()?;
    let digest = String::from_utf8(sum.stdout)?;
    let digest = digest.split(' ').next().context("a digest")?;
    let mut connection = TcpStream::connect(relay.address())?;
    write!(
        connection,
        "GET /v2/bench/{image}/blobs/sha256:{digest} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        relay.address()
    )?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "the archive is not in the registry"
    );
    Ok(())
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
    let shorter = |best: &mut Option<Taken>, taken: Taken| match best {
        Some(best) if best.time <= taken.time => {}
        _ => *best = Some(taken),
    };
    let [mut first, mut profiled, mut second, mut pulled] = [None; 4];
    for _ in 0..ROUNDS {
        let state = || tempfile::tempdir_in(world.scratch.path());
        let here = state()?;
        let run =
            |state: &Path, with_profile| ours.run(world, containerd, relay, state, with_profile);
        shorter(&mut first, run(here.path(), false)?);
        shorter(&mut second, run(here.path(), false)?);
        shorter(&mut profiled, run(state()?.path(), true)?);
    }
    // It takes long, and varies little.
    shorter(&mut pulled, pull(world, ours.start, relay)?);
    let taken = |best: Option<Taken>| best.context("at least one round");
    Ok(Lines {
        first: taken(first)?,
        profiled: taken(profiled)?,
        second: taken(second)?,
        pulled: taken(pulled)?,
    })
}

fn pull(world: &World, start: &Start, relay: &Relay) -> Result<Taken> {
    let containerd = Containerd::start(world.scratch.path())?;
    let reference = world.reference_behind(relay, start.image);
    relay.take();
    let started = Instant::now();
    containerd.pull(&reference)?;
    containerd.run_image("pulled", &reference, start.command)?;
    Ok(Taken {
        time: started.elapsed(),
        passed: relay.take(),
    })
}

impl Lines {
    fn rows(&self, start: &Start, line: &str, profiled_bytes: f64) -> Vec<Row> {
        let case = format!("{}, {line}", start.name);
        let seconds = |taken: &Taken| taken.time.as_secs_f64();
        let row = |system, metric, value, unit| Row::new(BENCH, &case, system, metric, value, unit);
        let is_slow = line == "slow";
        let promised = |row: Row, target: Option<f64>| match target.filter(|_| is_slow) {
            Some(target) => row.at_most(target),
            None => row,
        };
        let mut rows = Vec::new();
        for (system, metric, taken, target) in [
            ("clip", "first start", &self.first, start.targets[0]),
            ("clip", "with profile", &self.profiled, start.targets[1]),
            ("clip", "second start", &self.second, None),
            ("containerd", "pull and start", &self.pulled, None),
        ] {
            let note = format!(
                "{:.1} MB in {} requests",
                taken.passed.bytes as f64 / 1e6,
                taken.passed.blob_requests
            );
            let time = row(system, metric, seconds(taken), "s");
            rows.push(promised(time, target).with_note(&note));
        }
        let of_pull = seconds(&self.first) / seconds(&self.pulled);
        rows.push(row("clip", "first start / pull's", of_pull, "x").at_most(1.0));
        if is_slow {
            let line = ROUND_TRIP.as_secs_f64() + profiled_bytes / BYTES_PER_SECOND;
            let limit = line + seconds(&self.second);
            let of_limit = seconds(&self.profiled) / limit;
            rows.push(row("clip", "with profile / limit", of_limit, "x").at_most(OF_THE_LIMIT));
        }
        rows
    }
}
