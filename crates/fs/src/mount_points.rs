//! The kernel's mount table, read from `/proc/thread-self/mountinfo` and never by `stat`: a stat of a mount whose server is
//! gone fails, and one whose server hangs never returns.
//!
//! A line looks so (proc_pid_mountinfo(5)):
//! ```text
//! 36 35 0:52 /tree /var/lib/kubelet/pods/…/mount ro,nosuid,nodev shared:9 - fuse.clip clip:sha256:ab… ro,user_id=0
//! id  │  dev  │     mount point                  options          tags     │ type      source          super options
//!   parent  root: which part of that filesystem is mounted here            separator
//! ```

use crate::connection::FS_TYPE;
use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// What the source of our mounts begins with; the digest of the archive follows.
pub const SOURCE_PREFIX: &str = "clip:";
/// The type of the kernel's own view of an image.
pub const EROFS: &str = "erofs";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The filesystem's device number, `MAJOR:MINOR`: equal for all mounts of one filesystem.
    pub device: String,
    /// Which directory of the filesystem is mounted.
    pub root: PathBuf,
    /// Where.
    pub path: PathBuf,
    /// Filesystem type (`fuse.clip`).
    pub fs_type: String,
    /// Source, as mount(2) was given it.
    pub source: String,
}

impl MountPoint {
    /// Whether this is a mount of ours.
    pub fn is_clip(&self) -> bool {
        self.archive().is_some()
    }

    /// Which archive is mounted here, as [`SOURCE_PREFIX`] is followed by it; `None`: the mount is not ours.
    pub fn archive(&self) -> Option<&str> {
        // `fuse`: as earlier builds mounted, whose mounts may still be there.
        let is_type = [FS_TYPE, "fuse", EROFS].contains(&&*self.fs_type);
        self.source.strip_prefix(SOURCE_PREFIX).filter(|_| is_type)
    }
}

/// All mounts of this thread's mount namespace, in the order in which they were made.
///
/// Waits only for the kernel's own lock on the table, never for a filesystem's server.
pub fn all() -> io::Result<Vec<MountPoint>> {
    table_of("thread-self")
}

/// All of `mounts` stacked on `path`, the lowest first.
pub fn stacked_at<'a>(
    mounts: &'a [MountPoint],
    path: &'a Path,
) -> impl DoubleEndedIterator<Item = &'a MountPoint> {
    mounts.iter().filter(move |mount| mount.path == path)
}

/// Those processes that this one sees whose root directory is on the filesystem that is mounted as `mount`: containers
/// that run on it, in mount namespaces of their own, which keep umount(2) from saying that it is in use.
pub fn rooted_in(mount: &MountPoint) -> io::Result<Vec<u32>> {
    let is_root = |other: &&MountPoint| other.path == Path::new("/");
    let mut pids = Vec::new();
    for process in std::fs::read_dir("/proc")? {
        let name = process?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended by now, or have no mounts, as a zombie.
        let table = table_of(&format!("{pid}")).unwrap_or_default();
        let root = table.iter().rev().find(is_root);
        if root.is_some_and(|root| root.device == mount.device) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn table_of(process: &str) -> io::Result<Vec<MountPoint>> {
    let table = std::fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(parse(&table))
}

/// Lines that are not as documented are left out: a future kernel may add other ones.
fn parse(table: &[u8]) -> Vec<MountPoint> {
    table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// The topmost mount at exactly `path`, if there is one. The path itself is not touched: only its
/// parent directory is resolved.
pub fn at(path: &Path) -> io::Result<Option<MountPoint>> {
    let path = resolve_parent(path)?;
    Ok(stacked_at(&all()?, &path).next_back().cloned())
}

fn resolve_parent(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(absolute),
    }
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|&b| b == b' ').skip(2);
    let device = text(fields.next()?)?;
    let root = unescape(fields.next()?);
    let path = unescape(fields.next()?);
    let _options = fields.next()?;
    // Any number of tags (`shared:9`, `master:3`) stands before the lone dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?)?;
    let source = unescape(fields.next()?);
    Some(MountPoint {
        device,
        root: PathBuf::from(OsString::from_vec(root)),
        path: PathBuf::from(OsString::from_vec(path)),
        fs_type,
        source: String::from_utf8_lossy(&source).into_owned(),
    })
}

fn text(field: &[u8]) -> Option<String> {
    std::str::from_utf8(field).ok().map(str::to_owned)
}

/// Undoes the kernel's escapes: space, tab, newline, `\` and `#` are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn processes_are_found_by_what_their_root_is_mounted_from() {
        let all = all().unwrap().into_iter();
        let root = all.rev().find(|mount| mount.path == Path::new("/"));
        let mut root = root.unwrap();
        assert!(rooted_in(&root).unwrap().contains(&std::process::id()));
        root.device = "0:1048575".to_owned();
        assert_eq!(rooted_in(&root).unwrap(), [0; 0]);
    }

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn one(line: &str) -> MountPoint {
        let mounts = parse(line.as_bytes());
        assert_eq!(mounts.len(), 1, "{line}");
        mounts.into_iter().next().unwrap()
    }

    #[test]
    fn a_bind_of_an_image_names_its_archive_and_folder() {
        let mount = one(&format!(
            "36 35 0:52 /tree/usr /var/lib/kubelet/pods/1/mount ro,nosuid,nodev shared:9 - fuse.clip clip:{DIGEST} ro"
        ));
        assert_eq!(mount.device, "0:52");
        assert_eq!(mount.root, Path::new("/tree/usr"));
        assert_eq!(mount.path, Path::new("/var/lib/kubelet/pods/1/mount"));
        assert_eq!(mount.archive(), Some(DIGEST));
    }

    #[test]
    fn any_number_of_tags_may_stand_before_the_dash() {
        for tags in [
            "",
            "shared:1 ",
            "shared:1 master:2 ",
            "shared:1 master:2 propagate_from:3 unbindable ",
        ] {
            let mount = one(&format!("36 35 8:1 / /mnt rw {tags}- ext4 /dev/sda1 rw"));
            assert_eq!(
                (mount.fs_type.as_str(), &*mount.source),
                ("ext4", "/dev/sda1"),
                "{tags:?}"
            );
        }
    }

    #[test]
    fn octal_escapes_are_undone_and_other_bytes_kept() {
        let mount = one(r"1 2 0:1 / /a\040b\011c\012d\134e\043f\9g\04 rw - tmpfs we\040ird rw");
        assert_eq!(
            mount.path.as_os_str().as_bytes(),
            b"/a b\tc\nd\\e#f\\9g\\04"
        );
        assert_eq!(mount.source, "we ird");
        let mounts = parse(b"1 2 0:1 / /\xff\xfe rw - tmpfs none rw");
        assert_eq!(mounts[0].path.as_os_str().as_bytes(), b"/\xff\xfe");
    }

    #[test]
    fn stacked_mounts_are_listed_from_the_lowest_up() {
        let table = b"1 0 0:1 / /m rw - tmpfs low rw\n2 1 0:2 / /m rw - tmpfs high rw\n3 0 0:3 / /m2 rw - tmpfs no rw\n";
        let mounts = parse(table);
        let sources: Vec<_> = stacked_at(&mounts, Path::new("/m"))
            .map(|mount| &*mount.source)
            .collect();
        assert_eq!(sources, ["low", "high"]);
    }

    #[test]
    fn only_the_right_type_and_source_make_a_mount_ours() {
        let mount =
            |fs_type: &str, source: &str| one(&format!("1 2 0:1 / /m rw - {fs_type} {source} rw"));
        assert!(
            mount("fuse.clip", &format!("clip:{DIGEST}"))
                .archive()
                .is_some()
        );
        assert!(mount("fuse", &format!("clip:{DIGEST}")).archive().is_some());
        assert!(
            mount("fuse.sshfs", &format!("clip:{DIGEST}"))
                .archive()
                .is_none()
        );
        assert!(mount("fuse.clip", DIGEST).archive().is_none());
        assert!(
            mount("erofs", &format!("clip:{DIGEST}"))
                .archive()
                .is_some()
        );
        assert!(mount("erofs", "/dev/loop0").archive().is_none());
    }

    #[test]
    fn broken_lines_are_left_out() {
        assert_eq!(parse(b"\n1 2 3\n1 2 0:1 / /m rw no dash here\n"), []);
    }
}
