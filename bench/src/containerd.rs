//! A containerd of our own: a peer (pull, unpack, overlayfs), and who runs containers for everybody.

use crate::run;
use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running containerd with nothing in it; stopped, and its directory removed, when dropped.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Containerd {
    /// Starts one below `scratch`.
    pub fn start(scratch: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(scratch)?;
        let at = |name: &str| dir.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock")
        );
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
        let started = Self { child, dir };
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

    /// Its command line.
    pub fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.dir.path().join("sock"));
        ctr
    }

    /// Pulls and unpacks an image.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let mut ctr = self.ctr();
        ctr.args(["images", "pull", "--plain-http", reference]);
        run::timed(&mut ctr).map(drop)
    }

    /// Runs `command` in a container on a pulled image, to its end.
    pub fn run_image(&self, reference: &str, command: &[&str]) -> Result<()> {
        self.run(&[reference.into()], command)
    }

    /// Runs `command` in a container on a directory, to its end.
    pub fn run_on(&self, root: &Path, command: &[&str]) -> Result<()> {
        self.run(&["--rootfs".into(), root.to_owned()], command)
    }

    fn run(&self, root: &[PathBuf], command: &[&str]) -> Result<()> {
        let mut ctr = self.ctr();
        ctr.args(["run", "--rm"]);
        ctr.args(root).arg("bench").args(command);
        run::timed(&mut ctr).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
        // What it left mounted of snapshots and containers.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.dir.path())) {
            let _ = Command::new("umount").args(["--lazy", point]).status();
        }
    }
}
