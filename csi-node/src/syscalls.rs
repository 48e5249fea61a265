//! The mount system calls, one function each. All of them block: [`within`] runs them on a thread with a deadline.
//!
//! Only [`bind`] and [`cover_tree`] wait for a FUSE server: they look up the folder to be bound and the layers. Mounting
//! and detaching never ask it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clip_engine::mount_points::{self, MountPoint};
use clip_engine::{KernelMount, Layout, MountOptions, connection};
use clip_registry::Digest;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2, statx,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

use crate::mountinfo;
use crate::wire::Serving;

/// The folder in the root of each of our connections that holds the image.
pub const TREE: &str = "tree";
/// The folder beside it that holds the layers as files, for the kernel's EROFS.
const BLOBS: &str = "blobs";
/// How every mount of ours is made: nobody can write to an image, and no image can bring a device or a setuid program
/// that works.
const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NODEV)
    .union(MountFlags::NOSUID);

/// A step of mounting that failed, and where.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error(
        "cannot open {device}: {0}; load the kernel module `fuse` and run the plugin privileged",
        device = connection::DEVICE
    )]
    DevFuse(#[source] io::Error),
    /// mount(2) of the archive's filesystem failed.
    #[error("cannot mount the archive at {}: {source}", .point.display())]
    Mount {
        /// Where it should have been mounted.
        point: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// The kernel's EROFS cannot be mounted, or carries no overlay.
    #[error("cannot mount the kernel's EROFS at {}: {source}", .point.display())]
    Kernel {
        /// Where it should have been mounted.
        point: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A folder could not be made, opened or removed.
    #[error("cannot {verb} {}: {source}", .path.display())]
    Folder {
        /// What was tried: `create`, `remove`, `read`.
        verb: &'static str,
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The folder asked for by the attribute `path` is not in the image.
    #[error("the image has no folder {path:?} (attribute `path`): {source}")]
    NoSuchFolder {
        /// The path as the pod gave it.
        path: String,
        /// `ENOENT`, `ENOTDIR` or `ELOOP`.
        source: io::Error,
    },
    /// The tree of the image could not be looked up: its server is gone or failed.
    #[error("the image's filesystem at {} does not answer: {source}", .point.display())]
    Unanswered {
        /// The archive's mount.
        point: PathBuf,
        /// Often `ENOTCONN`: the server is gone.
        source: io::Error,
    },
    /// The bind mount into the pod failed.
    #[error("cannot bind the image to {}: {source}", .target.display())]
    Bind {
        /// The pod's folder.
        target: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// A mount could not be detached.
    #[error("cannot detach the mount at {}: {source}", .point.display())]
    Detach {
        /// The mount.
        point: PathBuf,
        /// What umount2(2) said.
        source: io::Error,
    },
    /// Something that is not ours is mounted where a volume belongs.
    #[error("{} holds a mount that is not Clip's (type {fs_type}); unmount it, or restart the pod", .point.display())]
    Foreign {
        /// The place.
        point: PathBuf,
        /// The type of the filesystem found there.
        fs_type: String,
    },
    /// The mount table cannot be read.
    #[error("cannot read the mount table: {0}")]
    Table(#[source] io::Error),
    /// The call did not return in time; its thread goes on waiting, its mount was aborted.
    #[error("{what} took longer than {} s", .limit.as_secs())]
    TooSlow {
        /// What was being done.
        what: &'static str,
        /// The time that was given.
        limit: Duration,
    },
}

/// Runs blocking `work` on a thread of its own and waits for it up to `limit`.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    what: &'static str,
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_elapsed) => Err(MountError::TooSlow { what, limit }),
    }
}

/// Mounts the filesystem of `archive` at `point` and returns the descriptor over which its server speaks to the kernel.
///
/// Nothing is asked over it until somebody looks into the mount. Whoever holds the descriptor, or a copy, keeps the
/// connection alive: give it to the server and drop it.
pub fn mount_archive(archive: &Digest, point: &Path) -> Result<OwnedFd, MountError> {
    create_folder(point)?;
    let device = connection::open_device().map_err(MountError::DevFuse)?;
    // Nobody can write to an image, and no image can bring a device or a setuid program that works. Pods run as any user.
    let options = MountOptions {
        suid: false,
        dev: false,
        allow_other: true,
    };
    let source = mountinfo::source_of(archive);
    connection::mount_device(&device, point, &source, Layout::DIRECTORY_MODE, options).map_err(
        |errno| MountError::Mount {
            point: point.to_owned(),
            source: errno.into(),
        },
    )?;
    Ok(device)
}

/// Lets the kernel itself serve the tree of the archive whose connection is mounted at `base`: its EROFS covers the
/// connection's own view there, so that whatever is bound from now on is EROFS.
///
/// Waits for the server, which opens the layers.
pub fn cover_tree(archive: &Digest, serving: &Serving, base: &Path) -> Result<(), MountError> {
    let tree = base.join(TREE);
    let mount = KernelMount {
        tree: serving.tree.clone(),
        source: mountinfo::source_of(archive),
        blobs: base.join(BLOBS),
        layers: serving.layers,
        suid: false,
        dev: false,
    };
    let failed = |source: io::Error| MountError::Kernel {
        point: tree.clone(),
        source,
    };
    mount.mount(&tree).map_err(failed)?;
    clip_engine::carries_overlay(&tree).map_err(|source| {
        if let Err(error) = detach(&tree, UnmountFlags::DETACH) {
            tracing::warn!(%error, "what carries no overlay stays mounted");
        }
        failed(source)
    })
}

/// False when nothing is mounted at `point` for certain. The mount table says who it is that is mounted; but the kernel
/// writes all of it for each question, which with 500 mounts takes longer than the mount itself.
///
/// No server is asked: the answer is in the kernel's memory (statx(2), `STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
fn may_be_mounted(point: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match statx(CWD, point, flags, StatxFlags::empty()) {
        Ok(stat) => {
            let root = StatxAttributes::MOUNT_ROOT;
            !stat.stx_attributes_mask.contains(root) || stat.stx_attributes.contains(root)
        }
        Err(errno) => errno != Errno::NOENT,
    }
}

/// The device number of the filesystem mounted at `point`, as the mount table writes it. Asks nobody: it is in the kernel's memory.
pub fn device_of(point: &Path) -> Result<String, MountError> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat =
        statx(CWD, point, flags, StatxFlags::empty()).map_err(|errno| MountError::Folder {
            verb: "read",
            path: point.to_owned(),
            source: errno.into(),
        })?;
    Ok(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

/// Binds the folder `path` (relative to the image's root; empty for all of it) of the archive mounted at `base` to
/// `target`, which is created, in place of whatever of ours was mounted there.
///
/// A dead mount is all that is known of a volume when this process is killed, so it is taken off only when the server
/// has answered and nothing is left to wait for.
///
/// `path` is resolved inside the image as if by chroot, so neither `..` nor a symbolic link leads out of it.
/// Waits for the server.
pub fn bind(base: &Path, path: &str, target: &Path) -> Result<(), MountError> {
    let folder = open_folder(base, path)?;
    detach_all(target)?;
    create_folder(target)?;
    let source = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let failed = |errno: Errno| MountError::Bind {
        target: target.to_owned(),
        source: errno.into(),
    };
    mount_bind(source, target).map_err(failed)?;
    mount_remount(target, FLAGS | MountFlags::BIND, "").map_err(failed)
}

fn open_folder(base: &Path, path: &str) -> Result<OwnedFd, MountError> {
    let unanswered = |errno: Errno| MountError::Unanswered {
        point: base.to_owned(),
        source: errno.into(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        openat2(CWD, base, flags, Mode::empty(), ResolveFlags::empty()).map_err(unanswered)?;
    let tree = openat2(
        root.as_fd(),
        TREE,
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )
    .map_err(unanswered)?;
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Ok(tree);
    }
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(tree.as_fd(), path, flags, Mode::empty(), inside).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => {
            MountError::NoSuchFolder {
                path: path.to_owned(),
                source: errno.into(),
            }
        }
        other => unanswered(other),
    })
}

/// Detaches all mounts of ours stacked on `point`, dead or alive, and tells how many there were.
///
/// Refuses a mount that is not ours. Never waits for a server: what is still in use is cut off from the tree and goes
/// away with its last user.
pub fn detach_all(point: &Path) -> Result<usize, MountError> {
    let mut detached = 0;
    // Each round takes off the topmost one; another process may add one meanwhile, so the table is read again.
    loop {
        if !may_be_mounted(point) {
            return Ok(detached);
        }
        let mounts = mount_points::all().map_err(MountError::Table)?;
        let Some(top) = mount_points::stacked_at(&mounts, point).next_back() else {
            return Ok(detached);
        };
        if mountinfo::archive_of(top).is_none() {
            return Err(MountError::Foreign {
                point: point.to_owned(),
                fs_type: top.fs_type.clone(),
            });
        }
        detach(point, UnmountFlags::DETACH)?;
        detached += 1;
    }
}

/// What is mounted of one archive.
#[derive(Debug, Default)]
pub struct Standing {
    /// The devices of its connection at the archive's own place, and of the EROFS on it.
    pub living: HashSet<String>,
    /// The devices of other filesystems of the archive, found at its place or at targets.
    pub dead: HashSet<String>,
    /// The targets that do not show a living one.
    pub unbound: Vec<PathBuf>,
}

/// What is mounted of `archive`, whose own place is `base`, and what of it at `targets`.
pub fn standing(
    archive: &Digest,
    base: &Path,
    targets: impl IntoIterator<Item = PathBuf>,
) -> Result<Standing, MountError> {
    let mut targets = targets.into_iter().peekable();
    if targets.peek().is_none() && !may_be_mounted(base) {
        return Ok(Standing::default());
    }
    let mounts = mount_points::all().map_err(MountError::Table)?;
    let of_archive = |point: &Path| {
        let at: Vec<_> = mount_points::stacked_at(&mounts, point)
            .filter(|mount| mountinfo::archive_of(mount).as_ref() == Some(archive))
            .map(|mount| mount.device.clone())
            .collect();
        at
    };
    let tree = base.join(TREE);
    let mut standing = Standing::default();
    for point in [base, &tree] {
        // Of those stacked there the last one counts.
        let mut stack = of_archive(point);
        standing.living.extend(stack.pop());
        standing.dead.extend(stack);
    }
    for target in targets {
        let mut stack = of_archive(&target);
        let shown = stack.pop();
        if !shown
            .as_ref()
            .is_some_and(|device| standing.living.contains(device))
        {
            standing.unbound.push(target);
            standing.dead.extend(shown);
        }
        standing.dead.extend(stack);
    }
    Ok(standing)
}

/// Detaches what is left of filesystems of `archive` whose connection is dead, such as what kubelet bound of a volume for
/// a `subPath`.
pub fn detach_remains(archive: &Digest, dead: &HashSet<String>) -> Result<(), MountError> {
    let mounts = mount_points::all().map_err(MountError::Table)?;
    let is_dead = |mount: &MountPoint| {
        mountinfo::archive_of(mount).as_ref() == Some(archive) && dead.contains(&mount.device)
    };
    // What was mounted last may lie on top of what was mounted first.
    for mount in mounts.iter().rev().filter(|mount| is_dead(mount)) {
        detach(&mount.path, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Detaches the mount at `point` and fails whatever is waiting for its server, so that stuck readers go on with an error.
pub fn abort(point: &Path) -> Result<(), MountError> {
    detach(point, UnmountFlags::DETACH | UnmountFlags::FORCE)
}

fn detach(point: &Path, flags: UnmountFlags) -> Result<(), MountError> {
    match unmount(point, flags | UnmountFlags::NOFOLLOW) {
        // EINVAL: not a mount point any more; somebody else was quicker.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(MountError::Detach {
            point: point.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Creates the folder, mode 0750, unless it is there; its parent must exist.
pub fn create_folder(path: &Path) -> Result<(), MountError> {
    match std::fs::DirBuilder::new().mode(0o750).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(MountError::Folder {
            verb: "create",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes the empty folder; one that is not there is fine, one with content is an error, for it is not ours.
pub fn remove_folder(path: &Path) -> Result<(), MountError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(MountError::Folder {
            verb: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// The path of `target` as the mount table shows it: symbolic links in its parents resolved, the last part untouched,
/// for that may be a dead mount.
pub fn canonical(target: &Path) -> io::Result<PathBuf> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the path of a folder",
        )),
    }
}

/// Whether FUSE can be used here at all.
pub fn check_dev_fuse() -> Result<(), MountError> {
    connection::open_device()
        .map(drop)
        .map_err(MountError::DevFuse)
}
