//! After a restart: what an earlier life of the plugin left mounted is dead, for its server ended with it.
//!
//! The mount table says all that is needed: which archive, which folder of it, where. [`plan`] decides from it, without
//! touching anything; [`recover`] does it. Volumes of pods whose archive is still on disk are mounted anew, so that
//! containers which (re)start from now on find them alive. The running ones keep the dead mount they hold (`ENOTCONN`)
//! and have to be restarted. All other dead mounts are detached.
//!
//! A volume's dead mount stays until the moment in which the new one takes its place, because it is all that is known
//! of the volume: a plugin that is killed in the midst of this begins again where it was.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use clip_registry::Digest;

use crate::archives::Archives;
use crate::mountinfo::{self, Mount};
use crate::mounts::Mounts;
use crate::syscalls::{self, MountError, TREE};

/// The folders below which mounts are ours to mend.
#[derive(Clone, Debug)]
pub struct Places {
    /// Kubelet's folder, `/var/lib/kubelet`.
    pub kubelet: PathBuf,
    /// The archives' own mounts, `<kubelet>/plugins/csi.clip.dev/mounts`.
    pub mounts: PathBuf,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Detach everything of ours stacked there, in this order.
    pub detach: Vec<PathBuf>,
    /// Mount these archives anew and bind them: target to folder of the image.
    pub adopt: BTreeMap<Digest, BTreeMap<PathBuf, String>>,
    /// Folders of archives that nobody uses.
    pub remove: Vec<PathBuf>,
}

/// Decides from the mount table, the folders found in [`Places::mounts`], and which archives are on disk.
pub fn plan(
    table: &[Mount],
    folders: &[PathBuf],
    places: &Places,
    on_disk: impl Fn(&Digest) -> bool,
) -> Plan {
    let is_base = |mount: &Mount| mount.point.parent() == Some(&places.mounts);
    let ours = || {
        table
            .iter()
            .filter_map(|mount| Some((mount, mount.archive()?)))
    };
    let devices: HashSet<&str> = ours()
        .filter(|(m, _)| is_base(m))
        .map(|(m, _)| &*m.device)
        .collect();
    // Another Clip on this machine (a second kubelet, `clip mount`) has its own filesystems outside of our folders.
    let belongs = |mount: &Mount| {
        devices.contains(&*mount.device) || mount.point.starts_with(&places.kubelet)
    };

    // Of mounts stacked on one target the last one is what the pod sees.
    let mut volumes: BTreeMap<&Path, Option<(Digest, String)>> = BTreeMap::new();
    for (mount, archive) in ours().filter(|(mount, _)| belongs(mount)) {
        let is_volume = !is_base(mount) && !is_sub_path(&mount.point) && on_disk(&archive);
        let path = if is_volume {
            path_in_tree(&mount.root)
        } else {
            None
        };
        volumes.insert(&mount.point, path.map(|path| (archive, path)));
    }

    let mut plan = Plan::default();
    for (target, volume) in &volumes {
        if let Some((archive, path)) = volume {
            plan.adopt
                .entry(archive.clone())
                .or_default()
                .insert(target.to_path_buf(), path.clone());
        }
    }
    let bases: BTreeSet<PathBuf> = plan
        .adopt
        .keys()
        .map(|archive| places.mounts.join(archive.hex()))
        .collect();
    let is_kept =
        |point: &Path| bases.contains(point) || matches!(volumes.get(point), Some(Some(_)));
    for (mount, _) in ours().filter(|(mount, _)| belongs(mount)) {
        if !is_kept(&mount.point) && !plan.detach.contains(&mount.point) {
            plan.detach.push(mount.point.clone());
        }
    }
    // What was mounted last may lie on top of what was mounted first.
    plan.detach.reverse();
    plan.remove = folders
        .iter()
        .filter(|folder| !bases.contains(*folder))
        .cloned()
        .collect();
    plan
}

/// Kubelet binds `subPath`s of a volume below this folder, and binds them again when it finds them unmounted.
fn is_sub_path(point: &Path) -> bool {
    point
        .iter()
        .any(|part| part == OsStr::new("volume-subpaths"))
}

/// The folder of the image that a bind shows: `usr/lib` for the root `/tree/usr/lib`.
fn path_in_tree(root: &Path) -> Option<String> {
    root.strip_prefix(Path::new("/").join(TREE))
        .ok()?
        .to_str()
        .map(str::to_owned)
}

/// Why the mounts of an earlier life could not be cleared away.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The mount table cannot be read.
    #[error(transparent)]
    Table(#[from] MountError),
    /// The folder of the archives' mounts cannot be made or read.
    #[error("cannot use {}: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// Detaches what is dead for good and takes over what can be mended; [`Mounts::heal`] then mends it. Never waits for a
/// server, and repeating it after a crash half-way is harmless.
pub async fn recover(
    places: &Places,
    archives: &Archives,
    mounts: &Mounts,
) -> Result<(), RecoverError> {
    let folders = folders_in(&places.mounts).map_err(|source| RecoverError::Folder {
        path: places.mounts.clone(),
        source,
    })?;
    let table = mountinfo::read().map_err(MountError::Table)?;
    let plan = plan(&table, &folders, places, |archive| {
        archives.on_disk(archive).is_some()
    });
    for point in &plan.detach {
        match syscalls::detach_all(point) {
            Ok(_) => {
                tracing::info!(point = %point.display(), "detached a mount of an earlier life")
            }
            Err(error) => tracing::error!(%error, "cannot detach a mount of an earlier life"),
        }
    }
    for folder in &plan.remove {
        if let Err(error) = syscalls::remove_folder(folder) {
            tracing::warn!(%error, "a folder without a mount stays");
        }
    }
    for (archive, targets) in plan.adopt {
        if let Some(archive) = archives.on_disk(&archive) {
            mounts.adopt(archive, targets).await;
        }
    }
    Ok(())
}

/// The names of entries, without looking at them: they may be dead mounts.
fn folders_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)?;
    std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const POD: &str = "/k/pods/1/volumes/kubernetes.io~csi/data/mount";

    fn digest(text: &str) -> Digest {
        text.parse().unwrap()
    }

    fn base_of(archive: &str) -> String {
        format!("/k/plugins/csi.clip.dev/mounts/{}", digest(archive).hex())
    }

    fn mount(device: &str, root: &str, point: &str, archive: &str) -> Mount {
        Mount {
            device: device.into(),
            root: root.into(),
            point: point.into(),
            fs_type: "fuse.clip".into(),
            source: format!("clip:{archive}").into(),
        }
    }

    fn plan_of(table: &[Mount], folders: &[String], on_disk: &[&str]) -> Plan {
        let places = Places {
            kubelet: "/k".into(),
            mounts: "/k/plugins/csi.clip.dev/mounts".into(),
        };
        let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
        plan(table, &folders, &places, |archive| {
            on_disk.contains(&archive.to_string().as_str())
        })
    }

    fn adopted(plan: &Plan) -> Vec<(String, &str, &str)> {
        let flat = plan.adopt.iter().flat_map(|(archive, targets)| {
            targets.iter().map(move |(target, path)| {
                (archive.to_string(), target.to_str().unwrap(), path.as_str())
            })
        });
        flat.collect()
    }

    #[test]
    fn an_empty_node_needs_nothing() {
        assert_eq!(plan_of(&[], &[], &[]), Plan::default());
    }

    #[test]
    fn a_dead_volume_is_mounted_anew_with_the_folder_it_showed() {
        let base = base_of(A);
        let table = [
            mount("0:5", "/", &base, A),
            mount("0:5", "/tree/usr/lib", POD, A),
        ];
        let plan = plan_of(&table, std::slice::from_ref(&base), &[A]);
        assert_eq!(adopted(&plan), [(A.to_owned(), POD, "usr/lib")]);
        assert_eq!(
            plan.detach,
            [] as [PathBuf; 0],
            "it stays until the new mount takes its place"
        );
        assert_eq!(plan.remove, [] as [PathBuf; 0]);
    }

    #[test]
    fn a_volume_whose_archive_is_gone_is_detached_and_left_to_kubelet() {
        let base = base_of(A);
        let table = [mount("0:5", "/", &base, A), mount("0:5", "/tree", POD, A)];
        let plan = plan_of(&table, std::slice::from_ref(&base), &[]);
        assert_eq!(plan.detach.len(), 2);
        assert!(plan.adopt.is_empty());
        assert_eq!(plan.remove, [Path::new(&base)]);
    }

    #[test]
    fn of_stacked_mounts_the_topmost_counts() {
        let table = [
            mount("0:5", "/tree", POD, A),
            mount("0:6", "/tree/a", POD, A),
            mount("0:7", "/tree/b", POD, B),
        ];
        let plan = plan_of(&table, &[], &[A, B]);
        assert_eq!(adopted(&plan), [(B.to_owned(), POD, "b")]);
        assert_eq!(plan.detach, [] as [PathBuf; 0]);
    }

    #[test]
    fn a_volume_whose_base_was_detached_before_the_crash_is_still_found() {
        let plan = plan_of(&[mount("0:5", "/tree", POD, A)], &[base_of(A)], &[A]);
        assert_eq!(adopted(&plan), [(A.to_owned(), POD, "")]);
        assert_eq!(plan.remove, [] as [PathBuf; 0], "the folder is used again");
    }

    #[test]
    fn a_sub_path_is_detached_but_bound_again_only_by_kubelet() {
        let sub = "/k/pods/1/volume-subpaths/data/app/0";
        let plan = plan_of(&[mount("0:5", "/tree/etc", sub, A)], &[], &[A]);
        assert_eq!(plan.detach, [Path::new(sub)]);
        assert!(plan.adopt.is_empty());
    }

    #[test]
    fn mounts_of_others_are_left_alone() {
        let elsewhere = mount("0:9", "/", "/home/me/mnt", A);
        let mut disk = mount(
            "8:1",
            "/",
            "/k/pods/1/volumes/kubernetes.io~csi/other/mount",
            A,
        );
        disk.fs_type = "ext4".into();
        assert_eq!(plan_of(&[elsewhere, disk], &[], &[A]), Plan::default());
    }

    #[test]
    fn a_bind_outside_of_kubelets_folder_is_known_by_its_device() {
        let base = base_of(A);
        let table = [
            mount("0:5", "/", &base, A),
            mount("0:5", "/tree", "/elsewhere/mount", A),
        ];
        let plan = plan_of(&table, &[], &[A]);
        assert_eq!(adopted(&plan), [(A.to_owned(), "/elsewhere/mount", "")]);
        let plan = plan_of(&table, &[], &[]);
        assert_eq!(
            plan.detach,
            [Path::new("/elsewhere/mount"), Path::new(&base)]
        );
    }

    #[test]
    fn folders_that_no_volume_needs_are_removed() {
        let plan = plan_of(
            &[mount("0:5", "/", &base_of(B), B)],
            &[base_of(A), base_of(B)],
            &[A, B],
        );
        assert_eq!(plan.detach, [PathBuf::from(base_of(B))]);
        assert_eq!(
            plan.remove,
            [PathBuf::from(base_of(A)), PathBuf::from(base_of(B))]
        );
    }
}
