//! The kernel's mount table (proc_pid_mountinfo(5)).

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// What the source of our mounts begins with; the digest of the archive follows.
pub const SOURCE_PREFIX: &str = "clip:";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Device number of the filesystem, major part.
    pub major: u32,
    /// Minor part.
    pub minor: u32,
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
    /// Whether this is a mount of ours. The type says little: fusermount3 and mount(2) write `fuse`
    /// or `fuse.clip`, the kernel's own is `erofs`.
    pub fn is_clip(&self) -> bool {
        let is_type = self.fs_type.starts_with("fuse") || self.fs_type == "erofs";
        is_type && self.source.starts_with(SOURCE_PREFIX)
    }
}

/// All mounts that this process sees.
pub fn all() -> io::Result<Vec<MountPoint>> {
    table_of("self")
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
        if root.is_some_and(|root| (root.major, root.minor) == (mount.major, mount.minor)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn table_of(process: &str) -> io::Result<Vec<MountPoint>> {
    let table = std::fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// The topmost mount at exactly `path`, if there is one. The path itself is not touched: only its
/// parent directory is resolved.
pub fn at(path: &Path) -> io::Result<Option<MountPoint>> {
    let path = resolve_parent(path)?;
    Ok(all()?.into_iter().rev().find(|mount| mount.path == path))
}

fn resolve_parent(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(absolute),
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|&b| b == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let root = unescape(fields.next()?);
    let path = unescape(fields.next()?);
    let mut behind_optional = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(behind_optional.next()?).into_owned();
    let source = unescape(behind_optional.next()?);
    Some(MountPoint {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        root: PathBuf::from(OsString::from_vec(root)),
        path: PathBuf::from(OsString::from_vec(path)),
        fs_type,
        source: String::from_utf8_lossy(&source).into_owned(),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .first_chunk::<3>()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
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

    #[test]
    fn processes_are_found_by_what_their_root_is_mounted_from() {
        let all = all().unwrap().into_iter();
        let root = all.rev().find(|mount| mount.path == Path::new("/"));
        let mut root = root.unwrap();
        assert!(rooted_in(&root).unwrap().contains(&std::process::id()));
        root.minor += 1 << 19;
        assert_eq!(rooted_in(&root).unwrap(), [0; 0]);
    }

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_understood() {
        let line = br"29 1 0:25 /tree /mnt/my\040dir ro,nosuid shared:7 master:1 - fuse.clip clip:sha256:ab ro,user_id=0";
        let mount = parse_line(line).unwrap();
        assert_eq!((mount.major, mount.minor), (0, 25));
        assert_eq!(
            (mount.root.to_str(), mount.path.to_str()),
            (Some("/tree"), Some("/mnt/my dir"))
        );
        assert!(mount.is_clip());
        assert_eq!(mount.source, "clip:sha256:ab");
    }
}
