//! Making FUSE connections: a descriptor of `/dev/fuse`, and the mount on which the kernel asks it. By mount(2) where that
//! is allowed, else through `fusermount3` (fusermount3(1)), which is set-user-ID root.
//!
//! Nobody unmounts because a server ends: the user may have done so already, and another image be mounted at the same
//! place by then.

use crate::{datagram, session::MountOptions};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use std::{
    ffi::CString,
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Command, Output, Stdio},
};

/// Where the kernel offers FUSE to user space.
pub const DEVICE: &str = "/dev/fuse";
/// The type of our mounts in the mount table.
pub const FS_TYPE: &str = "fuse.clip";

/// A descriptor that is no connection yet.
///
/// # Errors
/// `NotFound`: the kernel module `fuse` is not loaded.
pub fn open_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    Ok(device.into())
}

/// Makes `device` the connection of a mount at `dir`, read-only, with the modes of files checked by the kernel. Nothing
/// is asked over it until somebody looks into the mount.
///
/// `root_mode`: the permissions of its root. An overlay that is put on the mount takes them as they are told here, for it
/// does not ask.
pub fn mount_device(
    device: &OwnedFd,
    dir: &Path,
    source: &str,
    root_mode: u16,
    options: MountOptions,
) -> rustix::io::Result<()> {
    let mut flags = MountFlags::RDONLY;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!(
        "fd={},rootmode=4{root_mode:04o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        user.as_raw(),
        group.as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("text without a NUL byte");
    rustix::mount::mount(source, dir, FS_TYPE, flags, data.as_c_str())
}

/// Mounts at `dir`, as root or not, and returns the connection. As [`mount_device`]; the helper, though, gives the root the
/// permissions of `dir`.
///
/// # Errors
/// `NotFound`: there is no `/dev/fuse` or no `fusermount3`. `PermissionDenied`: `allow_other` is not allowed to users by
/// `/etc/fuse.conf`.
pub fn mount(
    dir: &Path,
    source: &str,
    root_mode: u16,
    options: MountOptions,
) -> io::Result<OwnedFd> {
    if rustix::process::geteuid().is_root() {
        let device = open_device()?;
        match mount_device(&device, dir, source, root_mode, options) {
            Ok(()) => return Ok(device),
            // Root of a container without the right to mount.
            Err(Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    mount_by_helper(dir, source, options)
}

/// Detaches what [`mount`] has mounted at `dir`, in use or not.
pub fn detach(dir: &Path) -> io::Result<()> {
    match rustix::mount::unmount(dir, UnmountFlags::DETACH) {
        Err(Errno::PERM) => {}
        result => return Ok(result?),
    }
    let output = unmount_by_helper(dir, true)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(said(&output)),
    }
}

/// Asks `fusermount3` to unmount what the user has mounted at `dir`. With `lazy` although it is in use. What it said, and
/// whether it succeeded, is in the answer.
///
/// # Errors
/// It cannot be run.
pub fn unmount_by_helper(dir: &Path, lazy: bool) -> io::Result<Output> {
    let mut helper = Command::new(HELPER);
    helper.arg("-u").args(lazy.then_some("-z"));
    helper.arg("--").arg(dir).output()
}

const HELPER: &str = "fusermount3";

/// The helper sends the descriptor over the socket whose number it finds in its environment: here it is its standard
/// input.
fn mount_by_helper(dir: &Path, source: &str, options: MountOptions) -> io::Result<OwnedFd> {
    let mut words = vec!["ro,default_permissions,subtype=clip".to_owned()];
    words.push(format!("fsname={source}"));
    words.extend((!options.suid).then(|| "nosuid".to_owned()));
    words.extend((!options.dev).then(|| "nodev".to_owned()));
    words.extend(options.allow_other.then(|| "allow_other".to_owned()));
    let (ours, theirs) = UnixStream::pair()?;
    let helper = Command::new(HELPER)
        .args(["-o", &words.join(",")])
        .arg("--")
        .arg(dir)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let received = datagram::receive(&ours);
    let output = helper.wait_with_output()?;
    let descriptors = match received? {
        Some((_, descriptors)) if output.status.success() => descriptors,
        _ => return Err(said(&output)),
    };
    descriptors
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::other("fusermount3 sent no descriptor"))
}

/// Why the helper failed, in its words.
fn said(output: &Output) -> io::Error {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = match said.contains("user_allow_other") {
        true => io::ErrorKind::PermissionDenied,
        false => io::ErrorKind::Other,
    };
    io::Error::new(kind, said)
}
