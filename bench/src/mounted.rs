//! Servers of mounts, ours and others'.

use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A server in the foreground; stopped and waited for when dropped.
#[derive(Debug)]
pub struct Mounted(Child);

impl Mounted {
    /// Returns when something is mounted at `dir`.
    pub fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_mounted(dir)? {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{command:?} ended with {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "{command:?} did not mount within 30 s"
            );
            std::thread::sleep(Duration::from_millis(10));
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
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn is_mounted(dir: &Path) -> Result<bool> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == dir.to_str()))
}
