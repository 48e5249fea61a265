//! What readers notice when processes of Clip die or are replaced: failed reads, and the longest that one of them took,
//! beside the same without any disturbance.
//!
//! Eight programs read 4 KiB somewhere, again and again, past the page cache as far as the engine allows; two walk the tree.
//! They are programs of their own, as in containers: whoever starts a program hands it copies of its open files, which FUSE
//! may ask the server about when they are closed.

use crate::{node_plugin::NodePlugin, rows::Row, run, world::World};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::Read as _,
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

const BENCH: &str = "restart";
const IMAGE: &str = "go-toolchain";
const READERS: u64 = 8;
const WALKERS: u64 = 2;
const READ_LEN: usize = 4096;
/// Between two reads, so that the image lasts and the machine has time for something else.
const READ_PAUSE: Duration = Duration::from_millis(2);
/// Before, between and after disturbances.
const QUIET: Duration = Duration::from_millis(700);
const TIMES: usize = 5;
const KILLED_MS: f64 = 200.0;

/// What a reader or walker says at its end.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Noticed {
    done: u64,
    failed: u64,
    longest_ms: f64,
}

/// Something that happens to the node.
type Disturbance = (&'static str, fn(&mut NodePlugin) -> Result<()>);
const DISTURBANCES: [Disturbance; 5] = [
    ("none", |_| Ok(())),
    ("server killed", |node| node.kill_server()),
    ("plugin killed", NodePlugin::kill_plugin),
    ("upgrade", NodePlugin::upgrade),
    ("keeper killed", NodePlugin::kill_keeper),
];

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let archives = tempfile::tempdir_in(world.scratch.path())?;
    let archive = archives.path().join(format!("{IMAGE}.clip"));
    let reference = world.reference(IMAGE);
    run::timed(world.clip().args(["index", &reference]).arg(&archive))?;
    let mut rows = Vec::new();
    for engine in ["fuse", "erofs"] {
        let mut node = NodePlugin::start(world.scratch.path(), archives.path(), engine)?;
        // The registry has no part in this: everything is in the cache.
        node.publish(IMAGE, "all")?;
        run::timed(
            Command::new("sh")
                .args(["-c", "find \"$0\" -type f -exec cat {} + > /dev/null"])
                .arg(node.target("all")),
        )?;
        for (number, (name, disturb)) in DISTURBANCES.into_iter().enumerate() {
            // A mount of its own, of which the kernel has nothing in its cache.
            node.unpublish(if number == 0 { "all" } else { "pod" })?;
            node.publish(IMAGE, "pod")?;
            let noticed = disturbed(&mut node, disturb)?;
            let row = |metric, value, unit| Row::new(BENCH, name, engine, metric, value, unit);
            rows.push(row("operations", noticed.done as f64, ""));
            rows.push(row("failed", noticed.failed as f64, "").at_most(0.0));
            let longest = row("longest", noticed.longest_ms, "ms");
            rows.push(match name {
                "server killed" => longest.at_most(KILLED_MS),
                _ => longest,
            });
        }
        node.unpublish("pod")?;
    }
    Ok(rows)
}

fn disturbed(node: &mut NodePlugin, disturb: fn(&mut NodePlugin) -> Result<()>) -> Result<Noticed> {
    let target = node.target("pod");
    let start = |kind: &str, seed: u64| -> Result<Child> {
        Command::new(std::env::current_exe()?)
            .args(["--notice", kind, "--seed", &seed.to_string()])
            .arg("--tree")
            .arg(&target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("a reader")
    };
    let mut programs = Vec::new();
    for seed in 0..READERS {
        programs.push(start("reads", seed)?);
    }
    for seed in 0..WALKERS {
        programs.push(start("walks", seed)?);
    }
    std::thread::sleep(QUIET);
    for _ in 0..TIMES {
        disturb(node)?;
        std::thread::sleep(QUIET);
    }
    let mut all = Noticed::default();
    for mut program in programs {
        // The end of its input tells it to stop.
        drop(program.stdin.take());
        let output = program.wait_with_output()?;
        let noticed: Noticed = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("a reader said {output:?}"))?;
        all.done += noticed.done;
        all.failed += noticed.failed;
        all.longest_ms = all.longest_ms.max(noticed.longest_ms);
    }
    Ok(all)
}

/// What one of the programs does: `reads` or `walks` below `tree` until its input ends.
pub fn notice(kind: &str, tree: &Path, seed: u64) -> Result<()> {
    static ENOUGH: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        ENOUGH.store(true, Ordering::Relaxed);
    });
    let mut noticed = Noticed::default();
    let mut take = |operation: &mut dyn FnMut() -> std::io::Result<()>| {
        let begun = Instant::now();
        if let Err(error) = operation() {
            eprintln!("{error}");
            noticed.failed += 1;
        }
        noticed.done += 1;
        noticed.longest_ms = (begun.elapsed().as_secs_f64() * 1e3).max(noticed.longest_ms);
    };
    match kind {
        "reads" => {
            let files = files_below(tree)?;
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while !ENOUGH.load(Ordering::Relaxed) {
                // xorshift64: any order will do.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let (file, size) = &files[(random % files.len() as u64) as usize];
                let offset = (random >> 8) % size.div_ceil(READ_LEN as u64) * READ_LEN as u64;
                take(&mut || read_past_the_cache(file, offset));
                std::thread::sleep(READ_PAUSE);
            }
        }
        _ => {
            let mut dirs = Vec::new();
            while !ENOUGH.load(Ordering::Relaxed) {
                let dir = dirs.pop().unwrap_or_else(|| tree.to_owned());
                take(&mut || {
                    list(&dir, &mut dirs, &mut Vec::new())?;
                    Ok(())
                });
            }
        }
    }
    println!("{}", serde_json::to_string(&noticed)?);
    Ok(())
}

/// Without read-ahead, and forgotten at once.
fn read_past_the_cache(file: &Path, offset: u64) -> std::io::Result<()> {
    let file = File::open(file)?;
    rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::Random)?;
    file.read_at(&mut [0; READ_LEN], offset)?;
    rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// All files that are not empty, with their sizes.
fn files_below(tree: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let (mut dirs, mut files) = (vec![tree.to_owned()], Vec::new());
    while let Some(dir) = dirs.pop() {
        list(&dir, &mut dirs, &mut files)?;
    }
    Ok(files)
}

/// Looks at everything in one directory.
fn list(
    dir: &Path,
    dirs: &mut Vec<PathBuf>,
    files: &mut Vec<(PathBuf, u64)>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            dirs.push(entry.path());
        } else if about.is_file() && about.len() > 0 {
            files.push((entry.path(), about.len()));
        }
    }
    Ok(())
}
