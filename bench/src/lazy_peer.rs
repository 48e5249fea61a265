//! Lazy snapshotters as peers. They want each image prepared: stargz rewrites its layers, SOCI leaves them as they are and
//! puts an index beside them.
//!
//! Images are prepared without knowing what a start reads (no `ctr-remote images optimize`), as our first start knows
//! nothing either. The snapshotters have their defaults; containerd is the one that everybody uses here.

use crate::{
    containerd::{self, Containerd},
    peers,
    relay::Relay,
    rows, run,
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
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

/// The program of a peer, and which images the registry has as it wants them. Both programs are called in the same way;
/// they lie in `bench/peers`.
#[derive(Debug)]
pub struct LazyPeer {
    /// What it is called in rows and references.
    pub name: &'static str,
    program: PathBuf,
    /// Where images are that were converted.
    converted: PathBuf,
    pushed: RefCell<BTreeSet<&'static str>>,
}

impl LazyPeer {
    /// All there are, by name, or why they cannot be had.
    pub fn all(world: &World) -> [(&'static str, Result<Self>); 2] {
        [("stargz", Self::stargz(world)), ("soci", Self::soci(world))]
    }

    /// Builds the stargz-snapshotter. Its images are kept: they take minutes.
    pub fn stargz(world: &World) -> Result<Self> {
        let kept = format!("estargz-{}", peers::STARGZ_VERSION);
        Ok(Self {
            name: "stargz",
            program: peers::stargz(world)?,
            converted: world.cache().join("peers").join(kept),
            pushed: RefCell::default(),
        })
    }

    /// Builds the SOCI snapshotter. Its images are links to those they were made from, and quickly made.
    pub fn soci(world: &World) -> Result<Self> {
        Ok(Self {
            name: "soci",
            program: peers::soci(world)?,
            converted: world.scratch.path().join("soci"),
            pushed: RefCell::default(),
        })
    }

    /// What an image is called behind `relay`.
    pub fn reference(&self, relay: &Relay, image: &str) -> String {
        format!("{}/bench/{image}:{}", relay.address(), self.name)
    }

    /// Converts `image`, and pushes it, once.
    pub fn push(&self, world: &World, image: &'static str) -> Result<()> {
        if !self.pushed.borrow().contains(image) {
            let converted = self.converted(&world.layout(image)?)?;
            world.push(&converted, &self.reference(&world.relay, image))?;
            self.pushed.borrow_mut().insert(image);
        }
        Ok(())
    }

    /// The image of `layout` as this peer wants it, as an OCI layout as well; made on first use.
    pub fn converted(&self, layout: &Path) -> Result<PathBuf> {
        let layout = layout.canonicalize()?;
        let name = layout.file_name().context("a layout has a name")?;
        let converted = self.converted.join(name);
        if converted.exists() {
            return Ok(converted);
        }
        rows::progress(&format!("converting {} for {}", name.display(), self.name));
        let unfinished = converted.with_extension("new");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        std::fs::create_dir_all(&unfinished)?;
        run::timed(&mut self.convert(&layout, &unfinished))?;
        std::fs::rename(&unfinished, &converted)?;
        Ok(converted)
    }

    /// The command that converts the image of `layout` into the layout `into`.
    pub fn convert(&self, layout: &Path, into: &Path) -> Command {
        let mut convert = Command::new(&self.program);
        convert.arg("convert").args([layout, into]);
        convert
    }

    /// What the peer's program says of an image that it has converted.
    pub fn describe<T: DeserializeOwned>(&self, converted: &Path) -> Result<T> {
        let mut describe = Command::new(&self.program);
        let said = describe.arg("describe").arg(converted).output()?;
        if !said.status.success() {
            bail!("{}", String::from_utf8_lossy(&said.stderr).trim());
        }
        Ok(serde_json::from_slice(&said.stdout)?)
    }

    /// A node that has nothing but this snapshotter.
    pub fn node(&self, scratch: &Path) -> Result<Node> {
        let (dir, home) = (
            tempfile::tempdir_in(scratch)?,
            tempfile::tempdir_in(scratch)?,
        );
        let mut serve = Command::new(&self.program);
        let (root, socket) = (dir.path().join("root"), dir.path().join("sock"));
        serve.arg("serve").args([&root, &socket]);
        serve.arg(containerd::socket(home.path()));
        let snapshotter = Snapshotter::start(serve, &root, &socket)?;
        Ok(Node {
            program: self.program.clone(),
            containerd: Containerd::start_with(home, &socket)?,
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
    fn start(mut command: Command, root: &Path, socket: &Path) -> Result<Self> {
        let log = root.with_extension("log");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let root = root.to_owned();
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
