//! `clip umount DIR`.

use crate::{bundle::BundleDir, failure::Failure};
use clap::Args;
use clip_engine::{
    connection,
    mount_points::{self, MountPoint},
};
use nix::mount::{MntFlags, umount2};
use std::path::{Path, PathBuf};

/// Unmount an image, or the bundle of a container. Works on a mount whose server is dead, too.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mount point, or the directory of the bundle.
    dir: PathBuf,

    /// Delete the bundle, too, with all that its container wrote.
    #[arg(long, conflicts_with = "lazy")]
    remove: bool,

    /// Unmount although the mount is in use; it goes away when the last user does.
    #[arg(short, long)]
    lazy: bool,
}

/// Runs the command.
pub fn run(args: UmountArgs) -> Result<(), Failure> {
    // A mount is told by the mount table: looking into it could block.
    if mount_at(&args.dir)?.is_none() {
        match (BundleDir::find(&args.dir), args.remove) {
            (Some(bundle), true) => return bundle.remove(),
            (Some(bundle), false) => return bundle.unmount(args.lazy),
            (None, true) => {
                let shown = args.dir.display();
                return Err(Failure::local(format!("no bundle in {shown}")));
            }
            (None, false) => {}
        }
    }
    unmount(&args.dir, args.lazy)
}

/// Unmounts the clip mount at `dir`, without touching what is mounted there.
pub fn unmount(dir: &Path, lazy: bool) -> Result<(), Failure> {
    let Some(mount) = mount_at(dir)? else {
        let shown = dir.display();
        return Err(Failure::local(format!(
            "no clip mount at {shown}: `findmnt | grep clip:` lists them"
        )));
    };
    match nix::unistd::geteuid().is_root() {
        true => unmount_as_root(&mount.path, lazy, &mount.path),
        false => unmount_as_user(&mount.path, lazy),
    }
}

fn mount_at(dir: &Path) -> Result<Option<MountPoint>, Failure> {
    let mount = mount_points::at(dir)
        .map_err(|error| Failure::local(format!("cannot find {}: {error}", dir.display())))?;
    Ok(mount.filter(MountPoint::is_clip))
}

/// Unmounts what is mounted at `path`. `named` is what the user would name to unmount it.
pub fn unmount_as_root(path: &Path, lazy: bool, named: &Path) -> Result<(), Failure> {
    let flags = if lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::UMOUNT_NOFOLLOW
    };
    umount2(path, flags).map_err(|error| match error {
        nix::errno::Errno::EBUSY => busy(path, named),
        _ => Failure::local(format!("cannot unmount {}: {error}", path.display())),
    })
}

fn unmount_as_user(path: &Path, lazy: bool) -> Result<(), Failure> {
    match connection::unmount_by_helper(path, lazy) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("busy") => {
            Err(busy(path, path))
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            // Minimal systems lack it; to unmount, fusermount3 cannot do without.
            let remedy = match said.contains("/etc/mtab") {
                true => ": as root, `ln -s /proc/self/mounts /etc/mtab`",
                false => "",
            };
            let (path, said) = (path.display(), said.trim());
            Err(Failure::local(format!(
                "cannot unmount {path}: {said}{remedy}"
            )))
        }
        Err(error) => Err(Failure::local(format!(
            "cannot run fusermount3 ({error}): install the package fuse3"
        ))),
    }
}

fn busy(path: &Path, named: &Path) -> Failure {
    let (shown, named) = (path.display(), named.display());
    Failure::local(format!(
        "{shown} is in use: `fuser -vm {shown}` shows by whom; or `clip umount --lazy {named}`"
    ))
}
