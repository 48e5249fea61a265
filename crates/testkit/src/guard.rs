//! Processes and mounts that end with the scope of a test, however it ends.

use std::fs::DirEntry;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that is killed and reaped when dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill, and wait says so.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whatever is mounted at a path is detached when this is dropped.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Answers for the mounts at `path`, present and future.
    pub fn at(path: impl Into<PathBuf>) -> Mounted {
        Mounted(path.into())
    }

    /// Mounts a filesystem by mount(2).
    pub fn mount(fs_type: &str, path: &Path, data: &str) -> Result<Mounted> {
        mount(
            Some(fs_type),
            path,
            Some(fs_type),
            MsFlags::empty(),
            Some(data),
        )
        .with_context(|| format!("cannot mount {fs_type} at {} ({data})", path.display()))?;
        Ok(Mounted::at(path))
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Mounts stack; a test never piles up so many.
        for _ in 0..8 {
            if umount2(&self.0, MntFlags::MNT_DETACH).is_err() {
                break;
            }
        }
    }
}

/// Waits until `condition` holds, looking every few milliseconds.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How long the threads of a process may take to stop.
const STOPPING: Duration = Duration::from_secs(30);

/// Stops a process, and returns when none of its threads runs any more: after SIGSTOP they do for a moment.
pub fn hang(pid: u32) -> Result<()> {
    kill(Pid::from_raw(pid as i32), Signal::SIGSTOP).context("cannot stop the process")?;
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let is_stopped = |task: io::Result<DirEntry>| {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
        // proc(5): the state follows the name, which is in parentheses.
        stat.is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .unwrap_or_default()
                .trim()
                .starts_with('T')
        })
    };
    wait_until("the stop of all threads", STOPPING, || {
        std::fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(is_stopped))
    })
}

/// Runs a command to its end; its standard output, or an error with all that it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}; does `make setup` install it?"))?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let err = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{out}{err}", output.status);
    }
    Ok(out)
}
