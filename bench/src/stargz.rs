//! The stargz-snapshotter as a peer: lazy too, after every image has been rewritten.
//!
//! Images are converted without knowing what a start reads (no `ctr-remote images optimize`), as our first start knows
//! nothing either. The snapshotter has its defaults; containerd is the one that everybody uses here.

use crate::{
    containerd::Containerd,
    peers::{self, STARGZ_VERSION},
    relay::Relay,
    rows, run,
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long the snapshotter may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The programs of the peer, and which images the registry has in its format.
#[derive(Debug)]
pub struct Stargz {
    program: PathBuf,
    pushed: RefCell<BTreeSet<&'static str>>,
}

impl Stargz {
    /// Builds it.
    pub fn build(world: &World) -> Result<Self> {
        Ok(Self {
            program: peers::stargz(world)?,
            pushed: RefCell::default(),
        })
    }

    /// What it is called behind `relay`.
    pub fn reference(relay: &Relay, image: &str) -> String {
        format!("{}/bench/{image}:estargz", relay.address())
    }

    /// Converts `image`, once per machine, and pushes it, once.
    pub fn push(&self, world: &World, image: &'static str) -> Result<()> {
        if self.pushed.borrow_mut().insert(image) {
            world.push(
                &self.convert(world, image)?,
                &Self::reference(&world.relay, image),
            )?;
        }
        Ok(())
    }

    fn convert(&self, world: &World, image: &str) -> Result<PathBuf> {
        let layout = world.layout(image)?.canonicalize()?;
        let name = layout.file_name().context("a layout has a name")?;
        let converted = world
            .cache()
            .join("peers")
            .join(format!("estargz-{STARGZ_VERSION}"))
            .join(name);
        if converted.exists() {
            return Ok(converted);
        }
        rows::progress(&format!("converting {image} to eStargz (minutes, once)"));
        let unfinished = converted.with_extension("new");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        std::fs::create_dir_all(&unfinished)?;
        let mut convert = Command::new(&self.program);
        run::timed(convert.arg("convert").args([&layout, &unfinished]))?;
        std::fs::rename(&unfinished, &converted)?;
        Ok(converted)
    }

    /// A node that has nothing but this snapshotter.
    pub fn node(&self, scratch: &Path) -> Result<Node> {
        let dir = tempfile::tempdir_in(scratch)?;
        let snapshotter = Snapshotter::start(&self.program, dir.path())?;
        let containerd = Containerd::start_with(scratch, &Snapshotter::socket(dir.path()))?;
        Ok(Node {
            program: self.program.clone(),
            containerd,
            snapshotter,
            dir,
        })
    }
}

/// Containerd and the snapshotter. The fields end in their order: first who uses the other.
#[derive(Debug)]
#[expect(dead_code, reason = "some are only kept until they are dropped")]
pub struct Node {
    program: PathBuf,
    /// For containers on images that were pulled.
    pub containerd: Containerd,
    snapshotter: Snapshotter,
    dir: TempDir,
}

impl Node {
    /// Makes an image ready for containers, so far as this snapshotter does that beforehand.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let mut pull = Command::new(&self.program);
        pull.arg("pull").arg(self.containerd.socket());
        run::timed(pull.arg(reference)).map(drop)
    }
}

#[derive(Debug)]
struct Snapshotter {
    child: Child,
    root: PathBuf,
}

impl Snapshotter {
    fn socket(dir: &Path) -> PathBuf {
        dir.join("sock")
    }

    fn start(program: &Path, dir: &Path) -> Result<Self> {
        let (root, socket, log) = (dir.join("root"), Self::socket(dir), dir.join("log"));
        let child = Command::new(program)
            .arg("serve")
            .args([&root, &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let started = Self { child, root };
        let begun = Instant::now();
        while !socket.exists() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "the snapshotter does not listen: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(started)
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        // It would undo its mounts one by one, each with a wait for what it prefetches.
        let _ = self.child.kill();
        let _ = self.child.wait();
        crate::mounted::detach_below(&self.root);
    }
}
