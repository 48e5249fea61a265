//! The kernel's mount table, read from `/proc/thread-self/mountinfo` and never by `stat`: a stat of a mount whose server is
//! gone fails, and one whose server hangs never returns.
//!
//! A line looks so (proc_pid_mountinfo(5)):
//! ```text
//! 36 35 0:52 /tree /var/lib/kubelet/pods/…/mount ro,nosuid,nodev shared:9 - fuse.clip clip:sha256:ab… ro,user_id=0
//! id  │  dev  │     mount point                  options          tags     │ type      source          super options
//!   parent  root: which part of that filesystem is mounted here            separator
//! ```

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use clip_registry::Digest;

/// The filesystem type of our connections, as the mount table shows it.
pub const FS_TYPE: &str = "fuse.clip";
/// The filesystem type of the kernel's own view of an image.
pub const EROFS: &str = "erofs";
/// What the source of our mounts starts with; the archive's digest follows.
const SOURCE_PREFIX: &str = "clip:";

/// One mounted filesystem, or a part of one bound elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The filesystem's device number, `MAJOR:MINOR`: equal for all mounts of one filesystem.
    pub device: String,
    /// Which folder of the filesystem is mounted: `/` unless this is a bind of a part of it.
    pub root: PathBuf,
    /// Where it is mounted, as this process sees it.
    pub point: PathBuf,
    /// The filesystem's type, such as `ext4` or `fuse.clip`.
    pub fs_type: String,
    /// What is mounted: a device, or for our mounts `clip:` and the archive's digest.
    pub source: OsString,
}

impl Mount {
    /// The digest of the archive that is mounted here; `None` when the mount is not ours.
    pub fn archive(&self) -> Option<Digest> {
        if ![FS_TYPE, EROFS].contains(&&*self.fs_type) {
            return None;
        }
        let source = self.source.to_str()?;
        source.strip_prefix(SOURCE_PREFIX)?.parse().ok()
    }
}

/// The source under which the archive is mounted.
pub fn source_of(archive: &Digest) -> String {
    format!("{SOURCE_PREFIX}{archive}")
}

/// Reads the mount table of this thread's mount namespace (the plugin has but one), in the order in which the mounts were made.
///
/// Blocks only for the kernel's own lock on the table, never for a filesystem's server.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?))
}

/// All mounts stacked on `point`, the lowest first.
pub fn at<'a>(mounts: &'a [Mount], point: &'a Path) -> impl DoubleEndedIterator<Item = &'a Mount> {
    mounts.iter().filter(move |mount| mount.point == point)
}

/// Parses the table; lines which are not as documented are left out, for a future kernel may add other ones.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (_id, _parent) = (fields.next()?, fields.next()?);
    let device = text(fields.next()?)?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let _options = fields.next()?;
    // Any number of tags (`shared:9`, `master:3`) stands before the lone dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?)?;
    let source = unescape(fields.next()?);
    Some(Mount {
        device,
        root: root.into(),
        point: point.into(),
        fs_type,
        source,
    })
}

fn text(field: &[u8]) -> Option<String> {
    std::str::from_utf8(field).ok().map(str::to_owned)
}

/// Undoes the kernel's escapes: space, tab, newline, `\` and `#` are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
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
                bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn one(line: &str) -> Mount {
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
        assert_eq!(mount.point, Path::new("/var/lib/kubelet/pods/1/mount"));
        assert_eq!(mount.archive().unwrap().to_string(), DIGEST);
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
                (mount.fs_type.as_str(), mount.source.to_str()),
                ("ext4", Some("/dev/sda1")),
                "{tags:?}"
            );
        }
    }

    #[test]
    fn octal_escapes_are_undone_and_other_bytes_kept() {
        let mount = one(r"1 2 0:1 / /a\040b\011c\012d\134e\043f\9g\04 rw - tmpfs we\040ird rw");
        assert_eq!(
            mount.point.as_os_str().as_bytes(),
            b"/a b\tc\nd\\e#f\\9g\\04"
        );
        assert_eq!(mount.source, "we ird");
        let mounts = parse(b"1 2 0:1 / /\xff\xfe rw - tmpfs none rw");
        assert_eq!(mounts[0].point.as_os_str().as_bytes(), b"/\xff\xfe");
    }

    #[test]
    fn stacked_mounts_are_listed_from_the_lowest_up() {
        let table = b"1 0 0:1 / /m rw - tmpfs low rw\n2 1 0:2 / /m rw - tmpfs high rw\n3 0 0:3 / /m2 rw - tmpfs no rw\n";
        let mounts = parse(table);
        let sources: Vec<_> = at(&mounts, Path::new("/m"))
            .map(|mount| mount.source.to_str().unwrap())
            .collect();
        assert_eq!(sources, ["low", "high"]);
    }

    #[test]
    fn only_the_right_type_and_a_whole_digest_make_a_mount_ours() {
        let mount =
            |fs_type: &str, source: &str| one(&format!("1 2 0:1 / /m rw - {fs_type} {source} rw"));
        assert!(
            mount("fuse.clip", &format!("clip:{DIGEST}"))
                .archive()
                .is_some()
        );
        assert!(
            mount("fuse.sshfs", &format!("clip:{DIGEST}"))
                .archive()
                .is_none()
        );
        assert!(mount("fuse.clip", "clip:sha256:abc").archive().is_none());
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
