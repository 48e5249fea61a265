//! How long a pod's volume takes to come and to go, with the archive on the node, when many images are mounted; and what
//! that many mounts cost in memory. Each image has an archive and a connection of its own.

use crate::{
    node_plugin::{Memory, NodePlugin},
    rows::Row,
    run,
    world::{MANY_FILES, World},
};
use anyhow::Result;
use std::{path::Path, process::Command, time::Duration};

const BENCH: &str = "publish";
const IMAGE: &str = "alpine-like";
const MOUNTS: usize = 500;
/// Publishes of which the median is taken.
const SAMPLE: usize = 20;
const P50_MS: f64 = 10.0;
/// Of no file, and the kernel's; pages of files are there once for everybody, and go when memory gets short.
const PLUGIN_BYTES: f64 = 64e6;
const KEEPER_BYTES: f64 = 8e6;

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let archives = tempfile::tempdir_in(world.scratch.path())?;
    make_archives(world, archives.path())?;
    let mut rows = Vec::new();
    for engine in ["fuse", "erofs"] {
        rows.extend(measure(world, archives.path(), engine)?);
    }
    Ok(rows)
}

fn measure(world: &World, archives: &Path, engine: &'static str) -> Result<Vec<Row>> {
    let row = |case: &str, metric, value, unit| Row::new(BENCH, case, engine, metric, value, unit);
    let node = NodePlugin::start(world.scratch.path(), archives, engine)?;
    let name = |number: usize| format!("image-{number}");
    // So that archives and trees are on the node.
    for number in 0..MOUNTS {
        node.publish(&name(number), "first")?;
        node.unpublish("first")?;
    }
    let mut rows = Vec::new();
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for number in 0..MOUNTS {
        came.push(node.publish(&name(number), &name(number))?);
    }
    let [plugin, server, keeper] = node.memory()?;
    let counted = node.counted()?;
    for number in (0..MOUNTS).rev() {
        went.push(node.unpublish(&name(number))?);
    }
    went.reverse();
    for mounts in [SAMPLE, 100, MOUNTS] {
        let case = format!("{mounts} mounts");
        for (what, took) in [("publish", &came), ("unpublish", &went)] {
            let mut sample = took[mounts - SAMPLE..mounts].to_vec();
            sample.sort();
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let (p50, worst) = match what {
                "publish" => ("publish p50", "publish worst of 20"),
                _ => ("unpublish p50", "unpublish worst of 20"),
            };
            let median = row(&case, p50, ms(sample[SAMPLE / 2]), "ms");
            rows.push(match what {
                "publish" => median.at_most(P50_MS),
                _ => median,
            });
            rows.push(row(&case, worst, ms(sample[SAMPLE - 1]), "ms"));
        }
    }
    let case = format!("{MOUNTS} mounts");
    let memory = |name, memory: Memory| {
        let note = format!(
            "{:.0} MB its own, the rest pages of files",
            memory.own / 1e6
        );
        row(&case, name, memory.resident, "B").with_note(&note)
    };
    rows.push(memory("csi-node", plugin));
    rows.push(memory("serve", server));
    let note = format!("of which the kernel's {:.0} MB", counted.kernel / 1e6);
    rows.push(
        row(
            &case,
            "csi-node + serve",
            counted.anonymous + counted.kernel,
            "B",
        )
        .with_note(&note)
        .at_most(PLUGIN_BYTES),
    );
    rows.push(memory("keeper", keeper).at_most(KEEPER_BYTES));

    node.publish(MANY_FILES, "many")?;
    node.unpublish("many")?;
    let mut took = Vec::new();
    for _ in 0..SAMPLE {
        took.push(node.publish(MANY_FILES, "many")?);
        node.unpublish("many")?;
    }
    took.sort();
    let ms = took[SAMPLE / 2].as_secs_f64() * 1e3;
    rows.push(row("125,000 files", "publish p50", ms, "ms").at_most(P50_MS));
    Ok(rows)
}

/// One image under many tags: as many archives, for an archive names its image.
fn make_archives(world: &World, dir: &Path) -> Result<()> {
    let at = world.reference(IMAGE);
    let repository = at.trim_end_matches(":1");
    for number in 0..MOUNTS {
        let reference = format!("{repository}:image-{number}");
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"])
            .arg("--src-tls-verify=false")
            .args([format!("docker://{at}"), format!("docker://{reference}")]);
        run::timed(&mut skopeo)?;
        let archive = dir.join(format!("image-{number}.clip"));
        run::timed(world.clip().args(["index", &reference]).arg(archive))?;
    }
    let many = format!("oci:{}", world.layout(MANY_FILES)?.display());
    let archive = dir.join(format!("{MANY_FILES}.clip"));
    run::timed(world.clip().args(["index", &many]).arg(archive))?;
    Ok(())
}
