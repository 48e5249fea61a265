//! The container's root: overlayfs over the image.
//!
//! Written to, it has an upper directory. Read-only it has none, so it works where overlayfs takes none either; below the
//! image lie then the places for the container's mounts, which a runtime could not make (an image is indexed without
//! `/proc`, `/sys` and `/dev`). The image's own entries hide them.

use super::dir::BundleDir;
use crate::{archive_source::Opened, failure::Failure};
use clip_bundle::{MountPoint, Spec, mount_points};
use clip_engine::mount_points as mount_table;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs},
};
use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
};

/// An overlay whose directories are there.
#[derive(Debug)]
pub struct Overlay {
    image: PathBuf,
    rootfs: PathBuf,
    other: Other,
}

#[derive(Debug)]
enum Other {
    Writable { upper: PathBuf, work: PathBuf },
    ReadOnly { places: PathBuf },
}

impl Overlay {
    /// Makes the directories that it needs beside the image.
    pub fn prepare(dir: &BundleDir, opened: &Opened, spec: &Spec) -> Result<Self, Failure> {
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()) == Some(true);
        let made = match read_only {
            true => read_only_part(dir, spec),
            false => writable_part(dir, opened),
        };
        let other = made.map_err(|error| {
            Failure::local(format!("cannot make the bundle's directories: {error}"))
        })?;
        Ok(Self {
            image: dir.image(),
            rootfs: dir.rootfs(),
            other,
        })
    }

    /// Mounts it; the image must be. Says in a sentence why not.
    pub fn mount(&self) -> Result<(), String> {
        let source = mount_table::at(&self.image)
            .ok()
            .flatten()
            .map(|image| image.source)
            .ok_or("the image's mount is gone")?;
        let (options, flags) = match &self.other {
            Other::Writable { upper, work } => (
                options(&[
                    ("lowerdir=", &self.image),
                    (",upperdir=", upper),
                    (",workdir=", work),
                ]),
                MsFlags::empty(),
            ),
            Other::ReadOnly { places } => (
                options(&[("lowerdir=", &self.image), (":", places)]),
                MsFlags::MS_RDONLY,
            ),
        };
        let mounted = mount(
            Some(&*source),
            &self.rootfs,
            Some("overlay"),
            flags,
            Some(&*options),
        );
        mounted.map_err(|errno| self.explain(errno))
    }

    fn explain(&self, errno: nix::errno::Errno) -> String {
        let shown = self.rootfs.display();
        let remedy = match &self.other {
            Other::Writable { upper, .. } if is_on_overlay(upper) => {
                "; this directory lies on an overlay itself, which holds no writable layer of another: use a directory \
                 on a disk or a tmpfs (in a pod an emptyDir; `clip run` takes TMPDIR), or --read-only"
            }
            _ => "; the kernel's log may say why",
        };
        format!("cannot mount an overlay at {shown}: {errno}{remedy}")
    }
}

fn is_on_overlay(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}

/// The overlay's root takes its owner and mode from the upper directory: they are the image's.
fn writable_part(dir: &BundleDir, opened: &Opened) -> io::Result<Other> {
    let (upper, work) = (dir.inner("upper"), dir.inner("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let tree = opened.image.fs.tree();
    let root = tree.inode(tree.root()).map_err(io::Error::other)?;
    chown(&upper, Some(root.uid), Some(root.gid))?;
    fs::set_permissions(
        &upper,
        fs::Permissions::from_mode(u32::from(root.mode & 0o7777)),
    )?;
    Ok(Other::Writable { upper, work })
}

fn read_only_part(dir: &BundleDir, spec: &Spec) -> io::Result<Other> {
    let places = dir.inner("places");
    fs::create_dir(&places)?;
    let inside = |path: &Path| places.join(path.strip_prefix("/").unwrap_or(path));
    for place in mount_points(spec) {
        match place {
            MountPoint::Directory(path) => fs::create_dir_all(inside(&path))?,
            MountPoint::File(path) => {
                let path = inside(&path);
                fs::create_dir_all(path.parent().unwrap_or(&places))?;
                fs::write(path, "")?;
            }
        }
    }
    Ok(Other::ReadOnly { places })
}

/// overlayfs separates options by commas and directories by colons, and takes either after a backslash as itself.
fn options(parts: &[(&str, &Path)]) -> OsString {
    let mut all = Vec::new();
    for (key, path) in parts {
        all.extend_from_slice(key.as_bytes());
        for &byte in OsStr::as_bytes(path.as_os_str()) {
            if matches!(byte, b',' | b':' | b'\\') {
                all.push(b'\\');
            }
            all.push(byte);
        }
    }
    OsString::from_vec(all)
}
