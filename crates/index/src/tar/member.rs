//! A member of the tar with everything that was said about it, and the entry that it becomes: paths
//! normalised, whiteouts recognised, attributes that Linux could not hold refused.

use super::TarError;
use super::header::{Header, kind};
use super::pax::{self, Records};
use super::sparse::{self, PaxSparse};
use clip_archive::{Entry, EntryKind, Segment, Xattr, limits};

/// Prefix of a whiteout's name (OCI image-spec, layer.md, "Whiteouts").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Name of an opaque mark.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS' own files, which say nothing about the image.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// How much of a path an error shows: enough to find it.
const SHOWN_PATH_BYTES_MAX: usize = 256;

/// What metadata members said about the next member.
#[derive(Debug, Default)]
pub(super) struct AboutNext {
    pub records: Records,
    pub long_name: Vec<u8>,
    pub long_link: Vec<u8>,
}

/// A member whose headers are complete.
#[derive(Debug)]
pub(super) struct Member {
    pub header: Header,
    records: Records,
    mtime_nsec: u32,
}

impl Member {
    /// Puts what was said before over what the header says. GNU's long names win over PAX records,
    /// as in Go's `archive/tar`.
    pub fn new(header: Header, about: AboutNext) -> Result<Self, TarError> {
        let mut member = Self {
            header,
            records: about.records,
            mtime_nsec: 0,
        };
        member.apply_records().map_err(|why| member.refuse(why))?;
        let header = &mut member.header;
        if !about.long_name.is_empty() {
            header.path = about.long_name;
        }
        if !about.long_link.is_empty() {
            header.link = about.long_link;
        }
        // Tar before POSIX marked a directory by a trailing slash only.
        if header.kind == kind::OLD_FILE {
            header.kind = match header.path.ends_with(b"/") {
                true => kind::DIRECTORY,
                false => kind::FILE,
            };
        }
        Ok(member)
    }

    fn apply_records(&mut self) -> Result<(), &'static str> {
        let (records, header) = (&self.records, &mut self.header);
        for (key, field) in [
            (pax::PATH, &mut header.path),
            (pax::LINK_PATH, &mut header.link),
        ] {
            if let Some(value) = records.get(key) {
                *field = value.to_vec();
            }
        }
        for (key, field) in [
            (pax::SIZE, &mut header.size),
            (pax::UID, &mut header.uid),
            (pax::GID, &mut header.gid),
        ] {
            *field = records.number(key)?.unwrap_or(*field);
        }
        if let Some((seconds, nanos)) = records.time(pax::MTIME)? {
            (header.mtime, self.mtime_nsec) = (seconds, nanos);
        }
        // Not shown, but an unpacker stumbles over them.
        records.time(pax::ATIME)?;
        records.time(pax::CTIME)?;
        Ok(())
    }

    /// Finds out whether and how PAX records make it a sparse file.
    pub fn pax_sparse(&mut self) -> Result<PaxSparse, TarError> {
        let found = sparse::pax_sparse(&self.records, &mut self.header);
        match found.map_err(|why| self.refuse(why))? {
            PaxSparse::No => Ok(PaxSparse::No),
            _ if !self.header.has_content() => Err(self.refuse("it is sparse, but not a file")),
            _ if self.header.size < 0 => Err(self.refuse("its size is negative")),
            found => Ok(found),
        }
    }

    /// The file's size as `stat` shows it.
    pub fn size(&self) -> u64 {
        self.header.size.try_into().unwrap_or(0)
    }

    /// The entry that it becomes; none for a file of AUFS' own.
    pub fn into_entry(self, segments: Vec<Segment>) -> Result<Option<Entry>, TarError> {
        let refuse = |why| self.refuse(why);
        let mut path = normalise(&self.header.path).map_err(refuse)?;
        let slash = path.iter().rposition(|&b| b == b'/');
        let name = &path[slash.map_or(0, |slash| slash + 1)..];
        let kind = if name == OPAQUE_MARK {
            path.truncate(slash.unwrap_or(0));
            EntryKind::Opaque
        } else if name.starts_with(AUFS_PREFIX) {
            return Ok(None);
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refuse("it is a whiteout of no file"));
            }
            let hidden = hidden.to_vec();
            path.truncate(slash.map_or(0, |slash| slash + 1));
            path.extend_from_slice(&hidden);
            EntryKind::Whiteout
        } else {
            self.kind(segments).map_err(refuse)?
        };
        let id = |number: i64| u32::try_from(number).ok().filter(|&id| id != u32::MAX);
        Ok(Some(Entry {
            mode: (self.header.mode & 0o7777) as u16,
            uid: id(self.header.uid)
                .ok_or_else(|| refuse("its user number is not one of Linux (0 to 2³² - 2)"))?,
            gid: id(self.header.gid)
                .ok_or_else(|| refuse("its group number is not one of Linux (0 to 2³² - 2)"))?,
            mtime: self.header.mtime,
            mtime_nsec: self.mtime_nsec,
            xattrs: self.xattrs(&kind),
            path,
            kind,
        }))
    }

    fn kind(&self, segments: Vec<Segment>) -> Result<EntryKind, &'static str> {
        let link = &self.header.link;
        Ok(match self.header.kind {
            kind::FILE | kind::CONTIGUOUS | kind::GNU_SPARSE => EntryKind::File {
                size: self.size(),
                segments,
            },
            kind::DIRECTORY => EntryKind::Directory,
            kind::SYMLINK if link.is_empty() => {
                return Err("it is a symbolic link without a target");
            }
            kind::SYMLINK if link.len() > limits::TARGET_BYTES_MAX => {
                return Err("its link target is longer than 4,095 bytes");
            }
            kind::SYMLINK => EntryKind::Symlink {
                target: link.clone(),
            },
            kind::HARD_LINK => EntryKind::Hardlink {
                target: normalise(link)?,
            },
            kind::CHAR_DEVICE => {
                let (major, minor) = self.device()?;
                EntryKind::CharDevice { major, minor }
            }
            kind::BLOCK_DEVICE => {
                let (major, minor) = self.device()?;
                EntryKind::BlockDevice { major, minor }
            }
            kind::FIFO => EntryKind::Fifo,
            _ => return Err("its tar entry type is one that no runtime unpacks"),
        })
    }

    /// Linux has 12 bits for a major number and 20 for a minor one.
    fn device(&self) -> Result<(u32, u32), &'static str> {
        let below = |number: i64, limit: u32| u32::try_from(number).ok().filter(|&n| n < limit);
        let (major, minor) = self.header.device;
        below(major, 1 << 12)
            .zip(below(minor, 1 << 20))
            .ok_or("its device number is not one of Linux (major below 2¹², minor below 2²⁰)")
    }

    /// Linux has `user.` attributes on files and directories only (xattr(7)).
    fn xattrs(&self, kind: &EntryKind) -> Vec<Xattr> {
        let may_be_user = matches!(kind, EntryKind::File { .. } | EntryKind::Directory);
        let all = self.records.xattrs();
        all.filter(|(name, _)| may_be_user || !name.starts_with(b"user."))
            .map(|(name, value)| Xattr {
                name: name.to_vec(),
                value: value.to_vec(),
            })
            .collect()
    }

    /// Says what is wrong with the member.
    pub fn refuse(&self, problem: &'static str) -> TarError {
        let path = &self.header.path;
        let mut shown =
            String::from_utf8_lossy(&path[..path.len().min(SHOWN_PATH_BYTES_MAX)]).into_owned();
        if path.len() > SHOWN_PATH_BYTES_MAX {
            shown.push('…');
        }
        TarError::Entry {
            path: shown,
            problem,
        }
    }
}

/// Drops empty and `.` components and resolves `..` without leaving the root, as unpackers that
/// confine an image to its root do.
fn normalise(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ if name.contains(&0) => return Err("its path holds a NUL byte"),
            _ => names.push(name),
        }
    }
    // A whiteout's own name may be longer than what it hides.
    let named = names.iter().enumerate().map(|(depth, name)| {
        let hidden = name.strip_prefix(WHITEOUT_PREFIX);
        hidden.filter(|_| depth + 1 == names.len()).unwrap_or(name)
    });
    if named
        .into_iter()
        .any(|name| name.len() > limits::NAME_BYTES_MAX)
    {
        return Err("a component of its path is longer than 255 bytes");
    }
    let path = names.join(&b'/');
    match path.len() > limits::PATH_BYTES_MAX {
        true => Err("its path is longer than 4,096 bytes"),
        false => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_confined_to_the_root_and_freed_of_empty_components() {
        for (written, normal) in [
            ("./usr//bin/", "usr/bin"),
            ("/etc/passwd", "etc/passwd"),
            ("../../x", "x"),
            ("a/../b", "b"),
            ("./", ""),
            ("", ""),
        ] {
            assert_eq!(
                normalise(written.as_bytes()).unwrap(),
                normal.as_bytes(),
                "{written}"
            );
        }
        assert!(normalise(&[b'n'; 256]).is_err());
    }
}
