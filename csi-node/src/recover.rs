//! After a restart: what an earlier life of the plugin left mounted is taken over, or cleared away.
//!
//! The mount table says which archive is mounted, which folder of it, and where; the keeper has the connections
//! ([`crate::custody`]). [`plan`] decides from both, without touching anything; [`recover`] does it.
//!
//! A volume whose connection was kept goes on: its readers wait for the next server. Without it the volume is dead; if its
//! archive is still on disk it is mounted anew, so that containers which (re)start from now on find it alive, while the
//! running ones keep the dead mount they hold (`ENOTCONN`) and have to be restarted. All other mounts are detached.
//!
//! A volume's dead mount stays until the moment in which the new one takes its place, because it is all that is known
//! of the volume: a plugin that is killed in the midst of this begins again where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use clip_registry::Digest;

use crate::archives::Archives;
use crate::custody::Kept;
use crate::mountinfo;
use crate::mounts::Mounts;
use crate::syscalls::{self, MountError, TREE};
use crate::troubles::Trouble;
use clip_engine::mount_points::{self, MountPoint};

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
    /// Have these archives served again: target to folder of the image.
    pub adopt: BTreeMap<Digest, BTreeMap<PathBuf, String>>,
    /// Of these the connection that is mounted was kept; the others are mounted anew.
    pub living: BTreeSet<Digest>,
    /// Folders of archives that nobody uses.
    pub remove: Vec<PathBuf>,
}

/// Decides from the mount table, the folders found in [`Places::mounts`], which archives are on disk, and the devices of
/// the connections that were kept.
pub fn plan(
    table: &[MountPoint],
    folders: &[PathBuf],
    places: &Places,
    on_disk: impl Fn(&Digest) -> bool,
    kept_device: impl Fn(&Digest) -> Option<String>,
) -> Plan {
    let is_base = |mount: &MountPoint| base_of(&mount.path, &places.mounts).is_some();
    let ours = || {
        table
            .iter()
            .filter_map(|mount| Some((mount, mountinfo::archive_of(mount)?)))
    };
    let devices: HashSet<&str> = ours()
        .filter(|(m, _)| is_base(m))
        .map(|(m, _)| &*m.device)
        .collect();
    // Another Clip on this machine (a second kubelet, `clip mount`) has its own filesystems outside of our folders.
    let belongs = |mount: &MountPoint| {
        devices.contains(&*mount.device) || mount.path.starts_with(&places.kubelet)
    };

    // Of mounts stacked on one target the last one is what the pod sees.
    let mut volumes: BTreeMap<&Path, Option<(Digest, String)>> = BTreeMap::new();
    for (mount, archive) in ours().filter(|(mount, _)| belongs(mount)) {
        let path = (is_volume(&mount.path, places) && on_disk(&archive))
            .then(|| path_in_image(mount))
            .flatten();
        volumes.insert(&mount.path, path.map(|path| (archive, path)));
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
    let mut living_devices: HashSet<&str> = HashSet::new();
    for archive in plan.adopt.keys() {
        let base = places.mounts.join(archive.hex());
        if let Some(device) = top_device(table, &base)
            && kept_device(archive).as_deref() == Some(device)
        {
            plan.living.insert(archive.clone());
            living_devices.insert(device);
            living_devices.extend(top_device(table, &base.join(TREE)));
        }
    }
    // What kubelet bound of a living volume lives too.
    let is_kept = |mount: &MountPoint| {
        base_of(&mount.path, &places.mounts).is_some_and(|base| bases.contains(base))
            || matches!(volumes.get(&*mount.path), Some(Some(_)))
            || living_devices.contains(&*mount.device)
    };
    for (mount, _) in ours().filter(|(mount, _)| belongs(mount)) {
        if !is_kept(mount) && !plan.detach.contains(&mount.path) {
            plan.detach.push(mount.path.clone());
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

fn top_device<'a>(table: &'a [MountPoint], point: &Path) -> Option<&'a str> {
    let top = table.iter().rfind(|mount| mount.path == point)?;
    Some(&top.device)
}

/// Whether it is a pod's volume that is mounted at `point`.
fn is_volume(point: &Path, places: &Places) -> bool {
    base_of(point, &places.mounts).is_none() && !is_sub_path(point)
}

/// Kubelet binds `subPath`s of a volume below this folder, and binds them again when it finds them unmounted.
fn is_sub_path(point: &Path) -> bool {
    point
        .iter()
        .any(|part| part == OsStr::new("volume-subpaths"))
}

/// The archive's own place below `mounts` if the mount at `point` is its connection, or the EROFS that covers its tree.
fn base_of<'a>(point: &'a Path, mounts: &Path) -> Option<&'a Path> {
    let folder = point.parent()?;
    if folder == mounts {
        return Some(point);
    }
    (folder.parent() == Some(mounts) && point.ends_with(TREE)).then_some(folder)
}

/// The folder of the image that a bind shows: `usr/lib` for `/tree/usr/lib` of a connection, and for `/usr/lib` of an EROFS.
fn path_in_image(mount: &MountPoint) -> Option<String> {
    let tree = match &*mount.fs_type {
        mount_points::EROFS => Path::new("/").to_owned(),
        _ => Path::new("/").join(TREE),
    };
    mount
        .root
        .strip_prefix(tree)
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

/// Detaches what is dead for good and takes over what lives or can be mended; [`Mounts::heal`] then has it served. Never
/// waits for a server, and repeating it after a crash half-way is harmless. Of `kept`, what is mounted nowhere any more is
/// let go.
pub async fn recover(
    places: &Places,
    archives: &Archives,
    mounts: &Mounts,
    mut kept: HashMap<Digest, Kept>,
) -> Result<(), RecoverError> {
    let folders = folders_in(&places.mounts).map_err(|source| RecoverError::Folder {
        path: places.mounts.clone(),
        source,
    })?;
    let table = mount_points::all().map_err(MountError::Table)?;
    let on_disk = |archive: &Digest| archives.on_disk(archive).is_some();
    let kept_device = |archive: &Digest| Some(kept.get(archive)?.connection.device.clone());
    let plan = plan(&table, &folders, places, on_disk, kept_device);
    for point in &plan.detach {
        match syscalls::detach_all(point) {
            Ok(_) => {
                tracing::info!(point = %point.display(), "detached a mount of an earlier life");
                if is_volume(point, places) {
                    // If its pod is still there, kubelet publishes it again.
                    mounts.troubles.add(point, Trouble::Lost);
                }
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
            let kept = kept
                .remove(&archive.digest)
                .filter(|_| plan.living.contains(&archive.digest));
            mounts.adopt(archive, targets, kept).await;
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

    fn place_of(archive: &str) -> String {
        format!("/k/plugins/csi.clip.dev/mounts/{}", digest(archive).hex())
    }

    fn mount(device: &str, root: &str, point: &str, archive: &str) -> MountPoint {
        MountPoint {
            device: device.into(),
            root: root.into(),
            path: point.into(),
            fs_type: "fuse.clip".into(),
            source: format!("clip:{archive}"),
        }
    }

    fn plan_of(table: &[MountPoint], folders: &[String], on_disk: &[&str]) -> Plan {
        plan_with_kept(table, folders, on_disk, &[])
    }

    /// `kept`: archives and the devices of their connections.
    fn plan_with_kept(
        table: &[MountPoint],
        folders: &[String],
        on_disk: &[&str],
        kept: &[(&str, &str)],
    ) -> Plan {
        let places = Places {
            kubelet: "/k".into(),
            mounts: "/k/plugins/csi.clip.dev/mounts".into(),
        };
        let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
        let is_on_disk = |archive: &Digest| on_disk.contains(&archive.to_string().as_str());
        let kept_device = |archive: &Digest| {
            let found = kept.iter().find(|(kept, _)| *archive == digest(kept));
            found.map(|(_, device)| device.to_string())
        };
        plan(table, &folders, &places, is_on_disk, kept_device)
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
        let base = place_of(A);
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
        let base = place_of(A);
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
        let plan = plan_of(&[mount("0:5", "/tree", POD, A)], &[place_of(A)], &[A]);
        assert_eq!(adopted(&plan), [(A.to_owned(), POD, "")]);
        assert_eq!(plan.remove, [] as [PathBuf; 0], "the folder is used again");
    }

    #[test]
    fn the_kernels_view_of_an_image_belongs_to_its_connection() {
        let base = place_of(A);
        let erofs = |root, point: &str| MountPoint {
            fs_type: "erofs".into(),
            ..mount("0:6", root, point, A)
        };
        let table = [
            mount("0:5", "/", &base, A),
            erofs("/", &format!("{base}/tree")),
            erofs("/usr/lib", POD),
        ];
        let plan = plan_of(&table, std::slice::from_ref(&base), &[A]);
        assert_eq!(adopted(&plan), [(A.to_owned(), POD, "usr/lib")]);
        assert_eq!(plan.detach, [] as [PathBuf; 0]);
        // Nobody uses it: both are taken off, the upper one first.
        let plan = plan_of(&table[..2], std::slice::from_ref(&base), &[A]);
        assert!(plan.adopt.is_empty());
        assert_eq!(
            plan.detach,
            [PathBuf::from(format!("{base}/tree")), PathBuf::from(&base)]
        );
        assert_eq!(plan.remove, [PathBuf::from(&base)]);
    }

    #[test]
    fn a_kept_connection_lives_with_all_that_is_bound_of_it() {
        let base = place_of(A);
        let sub = "/k/pods/1/volume-subpaths/data/app/0";
        let table = [
            mount("0:5", "/", &base, A),
            mount("0:5", "/tree", POD, A),
            mount("0:5", "/tree/etc", sub, A),
        ];
        let folders = std::slice::from_ref(&base);
        let plan = plan_with_kept(&table, folders, &[A], &[(A, "0:5")]);
        assert_eq!(plan.living, BTreeSet::from([digest(A)]));
        assert_eq!(plan.detach, [] as [PathBuf; 0]);
        // It is another one's: that of a mount which was made anew since.
        let plan = plan_with_kept(&table, folders, &[A], &[(A, "0:4")]);
        assert_eq!(plan.living, BTreeSet::new());
        assert_eq!(plan.detach, [Path::new(sub)]);
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
        let base = place_of(A);
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
            &[mount("0:5", "/", &place_of(B), B)],
            &[place_of(A), place_of(B)],
            &[A, B],
        );
        assert_eq!(plan.detach, [PathBuf::from(place_of(B))]);
        assert_eq!(
            plan.remove,
            [PathBuf::from(place_of(A)), PathBuf::from(place_of(B))]
        );
    }
}
