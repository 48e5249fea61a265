//! A containerd of our own: a peer (pull, unpack, overlayfs), and who runs containers for everybody.

use crate::{mounted, place, run};
use anyhow::{Context, Result, ensure};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What containerd calls a snapshotter that is a program of its own.
pub const PEER: &str = "peer";

/// A running containerd with nothing in it; stopped, and its directory removed, when dropped.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    dir: TempDir,
    snapshotter: &'static str,
}

impl Containerd {
    /// Starts one below `scratch`.
    pub fn start(scratch: &Path) -> Result<Self> {
        Self::launch(tempfile::tempdir_in(scratch)?, None)
    }

    /// Starts one in `dir`, that leaves images to the snapshotter at the socket `peer`.
    pub fn start_with(dir: TempDir, peer: &Path) -> Result<Self> {
        Self::launch(dir, Some(peer))
    }

    fn launch(dir: TempDir, peer: Option<&Path>) -> Result<Self> {
        let at = |name: &str| dir.path().join(name);
        let mut config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            socket(dir.path())
        );
        if let Some(peer) = peer {
            config += &format!("[proxy_plugins.{PEER}]\ntype = \"snapshot\"\naddress = {peer:?}\n");
        }
        std::fs::write(at("config.toml"), config)?;
        let log = std::fs::File::create(at("log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("containerd (Debian's package of that name)")?;
        let snapshotter = peer.map_or("overlayfs", |_| PEER);
        let started = Self {
            child,
            dir,
            snapshotter,
        };
        let deadline = Instant::now() + PATIENCE;
        while run::timed(started.ctr().arg("version")).is_err() {
            ensure!(
                Instant::now() < deadline,
                "containerd does not answer: {}",
                std::fs::read_to_string(started.dir.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    /// Pulls and unpacks an image.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let mut ctr = self.ctr();
        ctr.args(["images", "pull", "--plain-http", reference]);
        run::timed(&mut ctr).map(drop)
    }

    /// Mounts a pulled image at `dir`, to be read.
    pub fn mount(&self, reference: &str, dir: &Path) -> Result<()> {
        let mut ctr = self.ctr();
        ctr.args(["images", "mount", reference]).arg(dir);
        run::timed(&mut ctr).map(drop)
    }

    /// Runs `command` on a pulled image in a container called `id`, to its end.
    pub fn run_image(&self, id: &str, reference: &str, command: &[&str]) -> Result<()> {
        let root = ["--snapshotter", self.snapshotter, reference];
        self.run(id, &root.map(OsStr::new), command)
    }

    /// Runs `command` on a directory in a container called `id`, to its end.
    pub fn run_on(&self, id: &str, root: &Path, command: &[&str]) -> Result<()> {
        self.run(id, &["--rootfs".as_ref(), root.as_os_str()], command)
    }

    fn run(&self, id: &str, root: &[&OsStr], command: &[&str]) -> Result<()> {
        let mut ctr = self.ctr();
        ctr.args(["run", "--rm", "--cgroup"]).arg(place::group(id));
        ctr.args(root).arg(id).args(command);
        run::timed(&mut ctr).map(drop)
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.socket());
        ctr
    }
}

/// Where the one that is started in `dir` listens.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("sock")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
        // Snapshots and containers.
        mounted::detach_below(self.dir.path());
    }
}
