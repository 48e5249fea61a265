//! A place of its own for each run, so that nothing of it stays: not when it fails, not after ^C, not after kill -9.
//!
//! ```text
//! make bench ── this program ── setpriv, unshare ── this program again ── containerd, shims, registries, servers
//!               │ the folder                        │ first of its processes and mounts
//!               └ removes folder and groups         └ when it ends, the kernel ends all others and undoes all mounts
//! ```
//! Only the folder and the control groups are not the kernel's to tidy. They carry one name; who finds such a name
//! without an owner at the next start removes them.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};
use tempfile::TempDir;
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
};

const PREFIX: &str = "clip-bench-";
/// Containerd and runc keep sockets and containers here, whatever else they are told.
const OF_CONTAINERD: &str = "/run/containerd";

/// Runs this program again, in a new place. `inside` is the argument that tells it so.
pub fn run_in_new(inside: &str) -> Result<ExitStatus> {
    sweep();
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let owned = own(folder.path())?.context("a new folder has no owner")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(run(folder.path(), inside));
    remove(folder);
    drop(owned);
    ended
}

/// What the program does first when it is inside.
pub fn arrange() -> Result<()> {
    std::fs::create_dir_all(OF_CONTAINERD)?;
    crate::run::timed(Command::new("mount").args(["-t", "tmpfs", "tmpfs", OF_CONTAINERD]))?;
    Ok(())
}

/// The control group for a container called `id`.
pub fn group(id: &str) -> PathBuf {
    let folder = std::env::temp_dir();
    let name = folder.file_name().unwrap_or(PREFIX.as_ref());
    Path::new("/").join(name).join(id)
}

async fn run(folder: &Path, inside: &str) -> Result<ExitStatus> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut child = tokio::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"])
        .args(["--pid", "--mount", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg(inside)
        .env("TMPDIR", folder)
        .spawn()
        .context("setpriv and unshare (Debian's util-linux)")?;
    tokio::select! {
        status = child.wait() => return Ok(status?),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    end(&mut child).await?;
    bail!("interrupted")
}

/// Kills the first process inside. Its parent, `unshare`, ends when all the others are gone.
async fn end(unshare: &mut Child) -> Result<()> {
    let pid = unshare.id().context("it still runs")?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        Command::new("kill").args(["-KILL", child]).status()?;
    }
    unshare.wait().await?;
    Ok(())
}

/// Removes what runs left that were killed.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    let folders = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(PREFIX))
    });
    for folder in folders {
        if let Ok(Some(_owned)) = own(&folder.path()) {
            remove_groups(&folder.path());
            let _ = std::fs::remove_dir_all(folder.path());
        }
    }
}

/// Owns a folder for as long as the answer lives; none if somebody else does.
fn own(folder: &Path) -> Result<Option<File>> {
    let handle = File::open(folder)?;
    match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(handle)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).context("cannot lock a folder"),
    }
}

fn remove(folder: TempDir) {
    remove_groups(folder.path());
    if let Err(error) = folder.close() {
        eprintln!("{error}");
    }
}

/// In the one hierarchy or in each of the old ones. Groups are directories that can be removed when they are empty.
fn remove_groups(folder: &Path) {
    let Some(name) = folder.file_name() else {
        return;
    };
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
    for hierarchy in hierarchies
        .map(|entry| entry.path())
        .chain([root.to_owned()])
    {
        let group = hierarchy.join(name);
        for container in std::fs::read_dir(&group).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(container.path());
        }
        let _ = std::fs::remove_dir(group);
    }
}
