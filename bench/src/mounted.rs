//! Servers that mount something, and mounts of the kernel's: gone when dropped.

use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take to mount.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server in the foreground; stopped and waited for when dropped.
#[derive(Debug)]
pub struct Mounted(Child);

impl Mounted {
    /// Starts `command`, which mounts at `dir` and then serves.
    pub fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let deadline = Instant::now() + PATIENCE;
        while !is_mounted(dir)? {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{command:?} ended with {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "{command:?} did not mount within {} s",
                PATIENCE.as_secs()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self(child))
    }

    /// The first line that it wrote on stderr.
    pub fn first_line(&mut self) -> Result<String> {
        let stderr = self.0.stderr.as_mut().context("stderr is piped")?;
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line)?;
        Ok(line)
    }

    /// Requests that the kernel has sent to the server: each costs it a read(2), which the kernel counts
    /// (proc_pid_io(5)).
    pub fn messages(&self) -> Result<u64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.0.id()))?;
        let reads = io.lines().find_map(|line| line.strip_prefix("syscr: "));
        Ok(reads.context("the kernel counts reads")?.parse()?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// An overlayfs over one directory.
pub struct Overlay(PathBuf);

impl Overlay {
    /// Mounts it in `dir`, which is made, over `lower`.
    pub fn mount(lower: &Path, dir: &Path) -> Result<Self> {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.join(name));
        for made in [&upper, &work, &merged] {
            std::fs::create_dir_all(made)?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        crate::run::timed(
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(&merged),
        )?;
        Ok(Self(merged))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Takes away whatever is still mounted below `dir`, the last first.
pub fn detach_below(dir: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points
        .filter(|point| Path::new(point).starts_with(dir))
        .rev()
    {
        let _ = Command::new("umount").args(["--lazy", point]).status();
    }
}

fn is_mounted(dir: &Path) -> Result<bool> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == dir.to_str()))
}
