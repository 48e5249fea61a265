//! The directory of a bundle:
//!
//! ```text
//! DIR/config.json            what runtimes read
//! DIR/rootfs                 what the container sees: an overlay of the image and one of the two below
//! DIR/.clip-bundle/image     the image, mounted lazily, read-only; its server ends with this mount
//! DIR/.clip-bundle/upper     what the container writes, and work, overlayfs' own
//! DIR/.clip-bundle/places    instead, if it may not write: empty places for its mounts
//! DIR/.clip-bundle/runtime   state of the runtime that `clip run` started
//! ```
//! Nothing of it is needed to take it away: a bundle that was left half-made or half-removed is recognised by
//! `.clip-bundle`, which comes first and goes last.

use crate::{failure::Failure, umount};
use clip_bundle::Spec;
use clip_engine::mount_points::{self, MountPoint, SOURCE_PREFIX};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Only root may enter: an image's set-user-ID programs are as good on the machine as in the container.
const MODE: u32 = 0o700;

/// See the module.
#[derive(Debug)]
pub struct BundleDir {
    /// As the user named it, for messages.
    named: PathBuf,
    /// Absolute.
    path: PathBuf,
}

impl BundleDir {
    /// The bundle in `dir`, whole or not, if there is one.
    pub fn find(dir: &Path) -> Option<Self> {
        let bundle = Self::at(dir).ok()?;
        let found = fs::symlink_metadata(bundle.own()).ok()?;
        found.is_dir().then_some(bundle)
    }

    /// Refuses a directory that is in use.
    pub fn check_unused(dir: &Path) -> Result<(), Failure> {
        let shown = dir.display();
        if Self::find(dir).is_some() {
            return Err(Failure::local(format!(
                "{shown} is a bundle already: take it away first, with all that its container wrote: `clip umount --remove {shown}`"
            )));
        }
        match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::local(format!(
                "{shown} is not empty: a bundle needs a directory of its own"
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::local(format!("cannot use {shown}: {error}"))),
        }
    }

    /// Makes the directories. Of several at once with the same `dir`, one succeeds.
    pub fn create(dir: &Path) -> Result<Self, Failure> {
        Self::check_unused(dir)?;
        let failed = |error| Failure::local(format!("cannot make {}: {error}", dir.display()));
        fs::create_dir_all(dir).map_err(failed)?;
        let bundle = Self::at(dir).map_err(failed)?;
        let make = || {
            fs::set_permissions(&bundle.path, fs::Permissions::from_mode(MODE))?;
            fs::DirBuilder::new().mode(MODE).create(bundle.own())
        };
        make().map_err(|error| {
            // Not if something is in it: another bundle may have been quicker.
            let _ = fs::remove_dir(&bundle.path);
            failed(error)
        })?;
        for inner in [bundle.rootfs(), bundle.image()] {
            if let Err(error) = fs::create_dir(&inner) {
                let _ = bundle.remove();
                return Err(failed(error));
            }
        }
        Ok(bundle)
    }

    fn at(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            named: dir.to_owned(),
            path: dir.canonicalize()?,
        })
    }

    /// The bundle itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the container's root is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Where the image is mounted.
    pub fn image(&self) -> PathBuf {
        self.own().join("image")
    }

    /// A directory of ours for something else.
    pub fn inner(&self, name: &str) -> PathBuf {
        self.own().join(name)
    }

    fn own(&self) -> PathBuf {
        self.path.join(".clip-bundle")
    }

    fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// Writes `config.json`, whole or not at all.
    pub fn write_config(&self, spec: &Spec) -> Result<(), Failure> {
        let path = self.config();
        // By way of a value, whose keys have an order.
        let json = serde_json::to_value(spec).and_then(|spec| serde_json::to_vec_pretty(&spec));
        let written = json
            .map_err(io::Error::other)
            .and_then(|json| clip_engine::StateDir::write(&path, &json));
        written.map_err(|error| Failure::local(format!("cannot write {}: {error}", path.display())))
    }

    /// Unmounts the container's root and the image, whose server then ends. Everything else stays.
    pub fn unmount(&self, lazy: bool) -> Result<(), Failure> {
        self.check_idle(lazy)?;
        for path in [self.rootfs(), self.image()] {
            while let Some(mount) = mount_at(&path)? {
                if !is_ours(&mount) {
                    return Err(Failure::local(format!(
                        "something else is mounted at {}: unmount it first",
                        path.display()
                    )));
                }
                umount::unmount_as_root(&mount.path, lazy, &self.named)?;
            }
        }
        Ok(())
    }

    /// A container has a mount namespace of its own, so unmounting here would not be refused for it.
    fn check_idle(&self, lazy: bool) -> Result<(), Failure> {
        let Some(mount) = mount_at(&self.rootfs())?.filter(is_ours) else {
            return Ok(());
        };
        let containers = mount_points::rooted_in(&mount)
            .map_err(|error| Failure::local(format!("cannot look for containers: {error}")))?;
        match containers.first() {
            Some(pid) if !lazy => Err(Failure::local(format!(
                "a container runs in {} (process {pid}): end it first, for example with `kill -9 {pid}`",
                self.named.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Unmounts, then deletes what [`create`](Self::create) made and what the container wrote.
    pub fn remove(&self) -> Result<(), Failure> {
        self.unmount(false)?;
        // Deleting goes into directories: into none that is somebody else's.
        let mounts = mount_points::all()
            .map_err(|error| Failure::local(format!("cannot read the mount table: {error}")))?;
        let below =
            |mount: &&MountPoint| mount.path != self.path && mount.path.starts_with(&self.path);
        if let Some(mount) = mounts.iter().find(below) {
            return Err(Failure::local(format!(
                "something is still mounted at {}: unmount it first",
                mount.path.display()
            )));
        }
        let removed = missing_is_fine(fs::remove_file(self.config()))
            .and_then(|()| missing_is_fine(fs::remove_dir(self.rootfs())))
            .and_then(|()| missing_is_fine(fs::remove_dir_all(self.own())));
        removed.map_err(|error| {
            Failure::local(format!("cannot delete {}: {error}", self.named.display()))
        })?;
        // Not if something else is in it, or mounted on it.
        let _ = fs::remove_dir(&self.path);
        Ok(())
    }
}

fn mount_at(path: &Path) -> Result<Option<MountPoint>, Failure> {
    mount_points::at(path)
        .map_err(|error| Failure::local(format!("cannot find {}: {error}", path.display())))
}

/// The image's mount, or the overlay, which carries the image's name.
fn is_ours(mount: &MountPoint) -> bool {
    mount.is_clip() || (mount.fs_type == "overlay" && mount.source.starts_with(SOURCE_PREFIX))
}

fn missing_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
