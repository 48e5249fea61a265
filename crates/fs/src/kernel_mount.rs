//! Engine *erofs*: the kernel's own EROFS over an image's tree, with the layers of a FUSE connection as its devices.
//!
//! ```text
//! DIR  ◄── erofs ── trees/<digest>        the tree, a local file: names and attributes never reach userspace
//!             └──── <hidden>/blobs/0 … n  the uncompressed layers on the FUSE connection: asked for cold bytes only
//! ```
//! Needs Linux 6.12 with `CONFIG_EROFS_FS_BACKED_BY_FILE`. The mount is made with fsopen(2) and its relatives: mount(2)
//! has one page for all options, which is full at about 28 devices, and with it util-linux makes loop devices.
//!
//! EROFS holds the devices' files open, so the connection's own mount can be detached at once; the connection ends when
//! the last user of the EROFS does.

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};
use std::{
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// What to mount.
#[derive(Debug, Clone)]
pub struct KernelMount {
    /// The expanded tree, a file.
    pub tree: PathBuf,
    /// What the mount table shall show as its source.
    pub source: String,
    /// The directory `blobs` of the connection.
    pub blobs: PathBuf,
    /// How many layers the image has.
    pub layers: u16,
    /// Honour set-user-ID, set-group-ID and file capabilities.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
}

impl KernelMount {
    /// Mounts at `dir`.
    ///
    /// Waits for the connection's server, which opens the layers. So **the server's own process must not call this**:
    /// killed while it waits for itself it could not end.
    ///
    /// # Errors
    /// What the kernel said, with its own words where it had some. `ENODEV` or `ENOTBLK`: it has no EROFS, or none on
    /// files.
    pub fn mount(&self, dir: &Path) -> io::Result<()> {
        // The kernel opens the source by its name, relative to the caller's directory. With a link of the wanted name,
        // the mount table says which image it is. A thread of its own has a directory of its own.
        let work = tempfile::Builder::new().prefix("clip-mount-").tempdir()?;
        let tree = std::path::absolute(&self.tree)?;
        std::os::unix::fs::symlink(tree, work.path().join(&self.source))?;
        let dir = std::path::absolute(dir)?;
        let mounted = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
                std::env::set_current_dir(work.path())?;
                self.mount_here(&dir)
            });
            thread.join()
        });
        mounted.unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    }

    fn mount_here(&self, dir: &Path) -> io::Result<()> {
        let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        self.configure(&context)
            .map_err(|errno| explain(&context, errno.into()))?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !self.suid);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !self.dev);
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&mount, "", CWD, dir, flags)?)
    }

    fn configure(&self, context: &OwnedFd) -> rustix::io::Result<()> {
        fsconfig_set_string(context, "source", &*self.source)?;
        for index in 0..self.layers {
            fsconfig_set_string(context, "device", self.blobs.join(index.to_string()))?;
        }
        fsconfig_set_flag(context, "ro")?;
        fsconfig_create(context)
    }
}

/// Whether the kernel puts an overlay on what is mounted at `dir`, as container runtimes do with a root file system: how
/// deep file systems may be stacked, and which, differs between kernels. Nothing is left of the try.
///
/// # Errors
/// What the kernel said.
pub fn carries_overlay(dir: &Path) -> io::Result<()> {
    // An overlay that cannot be written to needs two lower layers.
    let other = tempfile::Builder::new().prefix("clip-overlay-").tempdir()?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = fsconfig_set_string(&context, "lowerdir", lower_dirs(dir, other.path())?)
        .and_then(|()| fsconfig_create(&context));
    configured.map_err(|errno| explain(&context, errno.into()))
}

/// overlayfs separates directories by colons; `\` takes the meaning from one.
fn lower_dirs(upper: &Path, lower: &Path) -> io::Result<String> {
    let escaped = |dir: &Path| {
        let dir = dir.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        Ok::<_, io::Error>(dir.replace('\\', "\\\\").replace(':', "\\:"))
    };
    Ok(format!("{}:{}", escaped(upper)?, escaped(lower)?))
}

/// Adds what the kernel wrote about the failure (fsopen(2): lines that begin with `e `).
fn explain(context: &OwnedFd, error: io::Error) -> io::Error {
    let mut said = Vec::new();
    if let Ok(mut messages) = context.try_clone().map(std::fs::File::from) {
        let mut message = [0; 1024];
        while let Ok(len @ 1..) = messages.read(&mut message) {
            let message = String::from_utf8_lossy(&message[..len]);
            if let Some(message) = message.strip_prefix("e ") {
                said.push(message.trim().to_owned());
            }
        }
    }
    match said.is_empty() {
        true => error,
        false => io::Error::new(error.kind(), format!("{error} ({})", said.join("; "))),
    }
}
