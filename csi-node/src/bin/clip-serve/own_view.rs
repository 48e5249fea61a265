//! A view of the file system in which nothing of ours is mounted.
//!
//! A thread that asks a mount which its own process serves, and is killed while it waits, can never end: its process keeps
//! the connection, so nobody answers, and nobody can be told to. This process has no reason to look at such a mount. Here it
//! is made unable to: in a mount namespace of its own, empty directories lie over the places where Clip mounts.

use std::path::Path;

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// Hides what is, and what will be, mounted below `places` from this process. Call it while there is but one thread.
///
/// Mounts and unmounts of others still reach the namespace (it is a slave of theirs), so it keeps nothing from being
/// unmounted.
pub fn hide(places: &[impl AsRef<Path>]) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot get a mount namespace of its own")?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .context("cannot make the mount namespace a slave")?;
    for place in places {
        let place = place.as_ref();
        mount(
            "none",
            place,
            "tmpfs",
            MountFlags::RDONLY,
            c"size=4k,mode=0",
        )
        .with_context(|| format!("cannot hide {}", place.display()))?;
    }
    Ok(())
}
