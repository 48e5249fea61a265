//! Ten pods of one image at once, on a node that has nothing of it: the time until the last of them is useful, and what
//! they fetched together.
//!
//! Ours come as in a cluster: the node plugin publishes a volume for each pod, and all of them share one mount and one
//! cache. Each container has an overlay of its own on its volume. With the peers the image is pulled once, and then all
//! ten containers start. The same containerd runs everybody's. The shortest of a few rounds counts.

use crate::{
    containerd::Containerd,
    lazy_peer::LazyPeer,
    mounted::Overlay,
    node_plugin::NodePlugin,
    peers::have,
    programs::{self, Program},
    published::Published,
    relay::{LINES, Relay},
    rows::{Row, or_missing, progress},
    taken::{Taken, keep_shorter},
    world::World,
};
use anyhow::{Context, Result};

const BENCH: &str = "shared";
const PODS: usize = 10;
const ROUNDS: usize = 2;
/// A small start and a large one.
const STARTS: [&str; 2] = ["bash", "import numpy"];
const ENGINES: [(&str, &str); 2] = [("clip, fuse", "fuse"), ("clip, erofs", "erofs")];

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let containerd = Containerd::start(world.scratch.path())?;
    let peers = LazyPeer::all(world);
    let mut rows = Vec::new();
    for name in STARTS.into_iter().filter(|name| world.wants(name)) {
        let program = programs::called(name).context("it is one of the programs")?;
        for (line, link) in LINES {
            let case = format!("{name}, {line}");
            let relay = world.relay_over(link)?;
            progress(&format!("{case}: containerd"));
            // Once: it takes long, and varies little.
            let theirs = pulled(world, program, &relay)?;
            rows.extend(describe(&case, "containerd", &theirs));
            for (system, engine) in ENGINES {
                let round = || published(world, &containerd, program, engine, &relay);
                let ours = best(&case, system, round)?;
                rows.extend(describe(&case, system, &ours));
                let ratio = ours.seconds() / theirs.seconds();
                rows.push(
                    Row::new(BENCH, &case, system, "to containerd's", ratio, "x").at_most(1.0),
                );
            }
            for (system, peer) in &peers {
                let theirs = have(peer)
                    .and_then(|peer| best(&case, system, || lazily(world, peer, program, &relay)));
                let theirs = theirs.map(|taken| describe(&case, system, &taken).into());
                rows.extend(or_missing(BENCH, &case, system, theirs));
            }
        }
    }
    Ok(rows)
}

fn best(case: &str, system: &str, mut round: impl FnMut() -> Result<Taken>) -> Result<Taken> {
    progress(&format!("{case}: {system}"));
    let mut best = None;
    for _ in 0..ROUNDS {
        keep_shorter(&mut best, round()?);
    }
    best.context("at least one round")
}

fn describe(case: &str, system: &'static str, taken: &Taken) -> [Row; 3] {
    let row = |metric, value, unit| Row::new(BENCH, case, system, metric, value, unit);
    [
        row("last of 10 is useful", taken.seconds(), "s"),
        row("fetched", taken.passed.bytes as f64 / 1e6, "MB"),
        row("blob requests", taken.passed.blob_requests as f64, ""),
    ]
}

fn published(
    world: &World,
    containerd: &Containerd,
    program: &Program,
    engine: &'static str,
    relay: &Relay,
) -> Result<Taken> {
    let published = Published::of(world, program.image)?;
    let archives = tempfile::tempdir_in(world.scratch.path())?;
    let named = archives.path().join(format!("{}.clip", program.image));
    std::fs::copy(published.behind(world, relay)?, named)?;
    let uppers = tempfile::tempdir_in(world.scratch.path())?;
    let node = NodePlugin::start(world.scratch.path(), archives.path(), engine)?;
    let taken = Taken::by(relay, || {
        published.fetch(relay)?;
        at_once(|pod| {
            node.publish(program.image, pod)?;
            let overlay = Overlay::mount(&node.target(pod), &uppers.path().join(pod))?;
            containerd.run_on(pod, overlay.path(), program.command)?;
            Ok(overlay)
        })
    })?;
    at_once(|pod| node.unpublish(pod))?;
    Ok(taken)
}

fn pulled(world: &World, program: &Program, relay: &Relay) -> Result<Taken> {
    let containerd = Containerd::start(world.scratch.path())?;
    let reference = world.reference_behind(relay, program.image);
    Taken::by(relay, || {
        containerd.pull(&reference)?;
        at_once(|pod| containerd.run_image(pod, &reference, program.command))
    })
}

fn lazily(world: &World, peer: &LazyPeer, program: &Program, relay: &Relay) -> Result<Taken> {
    peer.push(world, program.image)?;
    let node = peer.node(world.scratch.path())?;
    let reference = peer.reference(relay, program.image);
    Taken::by(relay, || {
        node.pull(&reference)?;
        at_once(|pod| node.containerd.run_image(pod, &reference, program.command))
    })
}

/// Does the same for all pods at once, and waits for the last.
fn at_once<T: Send>(work: impl Fn(&str) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    std::thread::scope(|scope| {
        let pods: Vec<_> = (0..PODS)
            .map(|number| scope.spawn(move || work(&format!("pod-{number}"))))
            .collect();
        let done = pods.into_iter().map(|pod| pod.join());
        done.map(|pod| pod.unwrap_or_else(|_| anyhow::bail!("a pod's thread panicked")))
            .collect()
    })
}
