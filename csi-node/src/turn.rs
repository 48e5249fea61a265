//! One plugin at a time serves a node.
//!
//! In an upgrade the new pod starts beside the old one (`maxSurge`) and waits here for its turn, so that it is the matter
//! of a moment when the old one ends. The lock is held by the plugin *and* its `clip-serve`, which inherits it: a server
//! that is still alive would take requests away from the next one and not answer them.
//!
//! An flock(2) belongs to the open file and is gone with its last descriptor, whatever ended the processes.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use tokio::sync::oneshot;

/// The right to serve this node, until the process and its children end.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// Waits until no other plugin holds the lock at `path`.
pub async fn wait(path: &Path) -> anyhow::Result<Turn> {
    let (path, (sender, taken)) = (path.to_owned(), oneshot::channel());
    // A thread of its own: one of the runtime's would hold up the end of a process that is told to stop while it waits.
    std::thread::Builder::new()
        .name("turn".into())
        .spawn(move || sender.send(take(&path)))?;
    taken.await.context("the thread that waited is gone")?
}

fn take(path: &Path) -> anyhow::Result<Turn> {
    let failed = || format!("cannot lock {}", path.display());
    let mut options = File::options();
    let lock = options.create(true).truncate(false).write(true).open(path);
    let lock = lock.with_context(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            tracing::info!("another plugin serves this node; standing by until it ends");
            flock(&lock, FlockOperation::LockExclusive).with_context(failed)?;
            tracing::info!("the other plugin has ended");
        }
        taken => taken.with_context(failed)?,
    }
    // For clip-serve, the only program that is started from here.
    fcntl_setfd(&lock, FdFlags::empty()).with_context(failed)?;
    Ok(Turn { _lock: lock })
}
