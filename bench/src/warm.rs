//! What a mount costs once everything was read: beside overlayfs on the disk's own file system, where the unpacked image
//! lies, as containerd would have it.
//!
//! Both are mounted at once and measured in turns; the shortest of several turns counts. Each value is overlayfs' time
//! divided by ours, so more than 1 is faster.

use crate::{
    mounted::{Mounted, Overlay},
    rows::Row,
    run,
    world::World,
};
use anyhow::{Context, Result};
use std::{
    fs::File,
    hint::black_box,
    io::Read as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const BENCH: &str = "warm";
const IMAGES: [&str; 2] = ["debian-min", "go-toolchain"];
const ROUNDS: usize = 8;
const ENGINES: [(&str, &str); 2] = [("clip, fuse", "fuse"), ("clip, erofs", "erofs")];
/// Every column must reach the first, their mean the second.
const EACH_AT_LEAST: f64 = 0.95;
const MEAN_AT_LEAST: f64 = 1.2;
/// Reads of the column `rand`.
const RANDOM_READS: u64 = 20_000;
const PAGE: u64 = 4096;

/// One column: what is done to a tree.
type Column = (&'static str, fn(&Tree) -> Result<u64>);
const COLUMNS: [Column; 8] = [
    ("walk", walk),
    ("find", find),
    ("stat", stat),
    ("cat", cat),
    ("open", open),
    ("seq", sequential),
    ("rand", random),
    ("mmap", map),
];

/// A mounted tree and what is in it.
struct Tree {
    root: PathBuf,
    paths: Vec<PathBuf>,
    files: Vec<PathBuf>,
    largest: PathBuf,
}

/// Runs the bench.
pub fn run(world: &World) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for image in IMAGES {
        rows.extend(measure(world, image)?);
    }
    Ok(rows)
}

/// A mount of ours.
struct Ours {
    name: &'static str,
    server: Mounted,
    tree: Tree,
    best: [Duration; COLUMNS.len()],
    messages: [u64; COLUMNS.len()],
}

fn measure(world: &World, image: &str) -> Result<Vec<Row>> {
    let scratch = tempfile::tempdir_in(world.scratch.path())?;
    let at = |name: &str| scratch.path().join(name);
    let archive = at("image.clip");
    let source = format!("oci:{}", world.layout(image)?.display());
    run::timed(world.clip().args(["index", &source]).arg(&archive))?;
    // The same tree on the disk; copying also fills our cache.
    let filling = mount(world, &archive, &at("fill"), "fuse")?;
    run::timed(
        Command::new("cp")
            .arg("-a")
            .arg(at("fill"))
            .arg(at("unpacked")),
    )?;
    drop(filling);
    forget_pages(&Tree::look(&at("unpacked"))?)?;
    let overlay = Overlay::mount(&at("unpacked"), &at("overlay"))?;

    let mut ours = Vec::new();
    for (name, engine) in ENGINES {
        ours.push(Ours {
            name,
            server: mount(world, &archive, &at(engine), engine)?,
            tree: Tree::look(&at(engine))?,
            best: [Duration::MAX; COLUMNS.len()],
            messages: [0; COLUMNS.len()],
        });
    }
    let overlaid = Tree::look(overlay.path())?;
    let mut theirs = [Duration::MAX; COLUMNS.len()];
    for round in 0..ROUNDS {
        for (column, (name, work)) in COLUMNS.iter().enumerate() {
            let time = |tree: &Tree| {
                let started = Instant::now();
                black_box(
                    work(tree).with_context(|| format!("{name} of {}", tree.root.display()))?,
                );
                anyhow::Ok(started.elapsed())
            };
            theirs[column] = theirs[column].min(time(&overlaid)?);
            for ours in &mut ours {
                let before = ours.server.messages()?;
                ours.best[column] = ours.best[column].min(time(&ours.tree)?);
                // The first round is cold for the kernel.
                if round > 0 {
                    ours.messages[column] += ours.server.messages()? - before;
                }
            }
        }
    }
    Ok(ours
        .iter()
        .flat_map(|ours| rows(image, ours, &theirs))
        .collect())
}

fn mount(world: &World, archive: &Path, dir: &Path, engine: &str) -> Result<Mounted> {
    std::fs::create_dir(dir)?;
    let mut server = world.clip();
    server
        .args(["mount", "--engine", engine])
        .arg(archive)
        .arg(dir);
    Mounted::start(server, dir)
}

fn rows(image: &str, ours: &Ours, theirs: &[Duration]) -> Vec<Row> {
    let row = |metric, value| Row::new(BENCH, image, ours.name, metric, value, "x overlayfs");
    let mut rows = Vec::new();
    let mut logarithms = 0.0;
    for (column, (name, _)) in COLUMNS.iter().enumerate() {
        let ratio = theirs[column].as_secs_f64() / ours.best[column].as_secs_f64();
        logarithms += ratio.ln();
        let messages = format!("{} messages", ours.messages[column]);
        rows.push(
            row(name, ratio)
                .at_least(EACH_AT_LEAST)
                .with_note(&messages),
        );
    }
    let mean = (logarithms / COLUMNS.len() as f64).exp();
    rows.push(row("mean", mean).at_least(MEAN_AT_LEAST));
    rows
}

/// What was just written lies in the page cache in other pieces than what is read.
fn forget_pages(tree: &Tree) -> Result<()> {
    run::timed(Command::new("sync").arg("-f").arg(&tree.root))?;
    for path in &tree.files {
        rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

impl Tree {
    fn look(root: &Path) -> Result<Self> {
        let (mut paths, mut files, mut largest) = (Vec::new(), Vec::new(), (0, PathBuf::new()));
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    dirs.push(entry.path());
                } else if metadata.is_file() {
                    files.push(entry.path());
                    if metadata.len() > largest.0 {
                        largest = (metadata.len(), entry.path());
                    }
                }
                paths.push(entry.path());
            }
        }
        Ok(Self {
            root: root.to_owned(),
            paths,
            files,
            largest: largest.1,
        })
    }
}

/// Lists every directory and looks at every entry.
fn walk(tree: &Tree) -> Result<u64> {
    visit(&tree.root, &|entry| Ok(entry.metadata()?.size()))
}

/// Lists every directory.
fn find(tree: &Tree) -> Result<u64> {
    visit(&tree.root, &|_| Ok(1))
}

fn visit(root: &Path, look: &dyn Fn(&std::fs::DirEntry) -> Result<u64>) -> Result<u64> {
    let (mut sum, mut dirs) = (0, vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            sum += look(&entry)?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    Ok(sum)
}

fn stat(tree: &Tree) -> Result<u64> {
    let sizes = tree
        .paths
        .iter()
        .map(|path| Ok(path.symlink_metadata()?.size()));
    sizes.sum()
}

fn cat(tree: &Tree) -> Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut sum = 0;
    for path in &tree.files {
        sum += drain(&mut File::open(path)?, &mut buffer)?;
    }
    Ok(sum)
}

fn open(tree: &Tree) -> Result<u64> {
    tree.files
        .iter()
        .try_for_each(|path| File::open(path).map(drop))?;
    Ok(tree.files.len() as u64)
}

/// The largest file, from its beginning, as often as makes 256 MiB.
fn sequential(tree: &Tree) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut sum = 0;
    while sum < 256 << 20 {
        sum += drain(&mut File::open(&tree.largest)?, &mut buffer)?;
    }
    Ok(sum)
}

fn drain(file: &mut File, buffer: &mut [u8]) -> Result<u64> {
    let mut sum = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(sum),
            len => sum += len as u64,
        }
    }
}

/// Pages of the largest file, in an order without an order.
fn random(tree: &Tree) -> Result<u64> {
    let file = File::open(&tree.largest)?;
    let pages = file.metadata()?.len() / PAGE;
    let mut buffer = [0; PAGE as usize];
    let mut at: u64 = 1;
    for _ in 0..RANDOM_READS {
        // Knuth's multiplier: every run reads the same pages.
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        file.read_exact_at(&mut buffer, (at >> 33) % pages * PAGE)?;
    }
    Ok(at)
}

/// Maps the largest file and looks at every page, as often as makes 256 MiB.
fn map(tree: &Tree) -> Result<u64> {
    let file = File::open(&tree.largest)?;
    let mut sum = 0;
    let mut seen = 0;
    while seen < 256 << 20 {
        seen += touch_pages(&file, &mut sum)?;
    }
    Ok(sum)
}

#[allow(unsafe_code)]
fn touch_pages(file: &File, sum: &mut u64) -> Result<usize> {
    // SAFETY: the files of an image never change, and nobody writes to the unpacked copy.
    let map = unsafe { memmap2::Mmap::map(file)? };
    *sum += map
        .iter()
        .step_by(PAGE as usize)
        .map(|&byte| u64::from(byte))
        .sum::<u64>();
    Ok(map.len())
}
