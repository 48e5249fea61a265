//! The tar walk: from the decoded stream to [`Entry`] values with the position of every byte.
//!
//! `tar-core` parses headers (ustar, PAX, GNU long names and sparse maps); here the results become
//! entries of the layer format: paths normalised, whiteouts recognised, runtime directories left out.

use clip_archive::{Entry, EntryKind, Segment, Xattr, limits, merge::is_runtime_path};
use std::mem;
use tar_core::{
    EntryType, PaxExtensions,
    parse::{Limits, ParseError, ParseEvent, ParsedEntry, Parser},
};

/// Size of a tar block.
const BLOCK: u64 = 512;
/// Prefix of a whiteout's name (OCI image-spec, layer.md, "Whiteouts").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Name of an opaque mark.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS' own files, which say nothing about the image.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// Why a tar stream cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The headers are broken.
    #[error("the tar stream is damaged at byte {at}: {source}")]
    Damaged {
        /// Position in the uncompressed stream.
        at: u64,
        /// The parser's complaint.
        source: Box<ParseError>,
    },
    /// The stream ends inside a header or a file.
    #[error("the tar stream ends in the middle, after {at} bytes")]
    Truncated {
        /// Length of the stream.
        at: u64,
    },
    /// An entry that cannot be represented in a mounted image.
    #[error("tar entry {path:?}: {problem}")]
    Entry {
        /// The entry's name, for people.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// What a tar stream holds.
#[derive(Debug, Default)]
pub struct Walked {
    /// Entries in tar order.
    pub entries: Vec<Entry>,
    /// Paths at or below `/proc`, `/sys` and `/dev`, left out.
    pub runtime_paths: Vec<Vec<u8>>,
}

/// Walks a tar stream that is pushed in pieces.
#[derive(Debug)]
pub struct TarWalker {
    parser: Parser,
    /// Header bytes that did not suffice yet.
    headers: Vec<u8>,
    /// How many header bytes the parser wants before it can go on.
    wanted: usize,
    /// Content still to skip, padding included.
    skip: u64,
    /// Position of the first byte of `headers` in the stream.
    at: u64,
    ended: bool,
    walked: Walked,
}

impl Default for TarWalker {
    fn default() -> Self {
        Self::new()
    }
}

impl TarWalker {
    /// A walker at the start of a stream.
    pub fn new() -> Self {
        let mut parser = Parser::new(Limits {
            max_path_len: Some(limits::PATH_BYTES_MAX as u32),
            ..Limits::default()
        });
        parser.set_allow_empty_path(true);
        Self {
            parser,
            headers: Vec::new(),
            wanted: BLOCK as usize,
            skip: 0,
            at: 0,
            ended: false,
            walked: Walked::default(),
        }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() && !self.ended {
            if self.skip > 0 {
                let len = self.skip.min(bytes.len() as u64);
                self.skip -= len;
                self.at += len;
                bytes = &bytes[len as usize..];
                continue;
            }
            let missing = (self.wanted - self.headers.len()).min(bytes.len());
            self.headers.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.headers.len() == self.wanted {
                self.parse()?;
            }
        }
        Ok(())
    }

    /// The stream is complete. A missing end mark is accepted, as by every unpacker.
    pub fn finish(self) -> Result<Walked, TarError> {
        let blank_tail = self.headers.iter().all(|&byte| byte == 0);
        match self.ended || (self.skip == 0 && blank_tail) {
            true => Ok(self.walked),
            false => Err(TarError::Truncated {
                at: self.at + self.headers.len() as u64,
            }),
        }
    }

    fn parse(&mut self) -> Result<(), TarError> {
        let headers = mem::take(&mut self.headers);
        let damaged = |source| TarError::Damaged {
            at: self.at,
            source: Box::new(source),
        };
        let (consumed, content) = match self.parser.parse(&headers).map_err(damaged)? {
            ParseEvent::NeedData { min_bytes } => {
                self.wanted = min_bytes;
                self.headers = headers;
                return Ok(());
            }
            ParseEvent::Entry { consumed, entry } => {
                let size = content_len(&entry);
                let segments = match size {
                    0 => vec![],
                    length => vec![Segment {
                        logical: 0,
                        length,
                        tar_offset: self.at + consumed as u64,
                    }],
                };
                self.walked.take(&entry, size, segments)?;
                (consumed, size)
            }
            ParseEvent::SparseEntry {
                consumed,
                entry,
                sparse_map,
                real_size,
            } => {
                let mut tar_offset = self.at + consumed as u64;
                let mut segments = Vec::with_capacity(sparse_map.len());
                for run in sparse_map.iter().filter(|run| run.length > 0) {
                    segments.push(Segment {
                        logical: run.offset,
                        length: run.length,
                        tar_offset,
                    });
                    tar_offset += run.length;
                }
                self.walked.take(&entry, real_size, segments)?;
                (consumed, entry.size)
            }
            // containerd and umoci ignore global headers, so images rely on nothing in them.
            ParseEvent::GlobalExtensions { consumed, .. } => (consumed, 0),
            ParseEvent::End { consumed } => {
                self.ended = true;
                (consumed, 0)
            }
        };
        self.at += consumed as u64;
        self.skip = content.next_multiple_of(BLOCK);
        self.wanted = BLOCK as usize;
        debug_assert_eq!(
            consumed,
            headers.len(),
            "the parser asks for exactly what it needs"
        );
        Ok(())
    }
}

/// Links, directories and devices have no content, whatever their size field says (as in Go's archive/tar).
fn content_len(entry: &ParsedEntry<'_>) -> u64 {
    match entry.entry_type {
        EntryType::Link
        | EntryType::Symlink
        | EntryType::Char
        | EntryType::Block
        | EntryType::Directory
        | EntryType::Fifo => 0,
        _ => entry.size,
    }
}

impl Walked {
    fn take(
        &mut self,
        entry: &ParsedEntry<'_>,
        size: u64,
        segments: Vec<Segment>,
    ) -> Result<(), TarError> {
        let refuse = |problem| TarError::Entry {
            path: String::from_utf8_lossy(&entry.path).into_owned(),
            problem,
        };
        let mut path = normalise(&entry.path).map_err(refuse)?;
        let slash = path.iter().rposition(|&b| b == b'/');
        let name = &path[slash.map_or(0, |slash| slash + 1)..];
        let kind = if name == OPAQUE_MARK {
            path.truncate(slash.unwrap_or(0));
            EntryKind::Opaque
        } else if name.starts_with(AUFS_PREFIX) || name == WHITEOUT_PREFIX {
            return Ok(());
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            let hidden = hidden.to_vec();
            path.truncate(slash.map_or(0, |slash| slash + 1));
            path.extend_from_slice(&hidden);
            EntryKind::Whiteout
        } else {
            entry_kind(entry, size, segments).map_err(refuse)?
        };
        if is_runtime_path(&path) {
            self.runtime_paths.push(path);
            return Ok(());
        }
        let (mtime, mtime_nsec) = modification_time(entry);
        self.entries.push(Entry {
            path,
            kind,
            mode: (entry.mode & 0o7777) as u16,
            uid: u32::try_from(entry.uid)
                .map_err(|_| refuse("its user number does not fit in 32 bits"))?,
            gid: u32::try_from(entry.gid)
                .map_err(|_| refuse("its group number does not fit in 32 bits"))?,
            mtime,
            mtime_nsec,
            xattrs: xattrs(entry),
        });
        Ok(())
    }
}

fn entry_kind(
    entry: &ParsedEntry<'_>,
    size: u64,
    segments: Vec<Segment>,
) -> Result<EntryKind, &'static str> {
    let target = || entry.link_target.as_deref().unwrap_or_default();
    let device = || (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
    Ok(match entry.entry_type {
        // Tar before POSIX marked a directory by a trailing slash only.
        EntryType::Regular if entry.path.ends_with(b"/") => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
            EntryKind::File { size, segments }
        }
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink if target().is_empty() => {
            return Err("it is a symbolic link without a target");
        }
        EntryType::Symlink if target().len() > limits::TARGET_BYTES_MAX => {
            return Err("its link target is longer than 4,095 bytes");
        }
        EntryType::Symlink => EntryKind::Symlink {
            target: target().to_vec(),
        },
        EntryType::Link => EntryKind::Hardlink {
            target: normalise(target())?,
        },
        EntryType::Char => {
            let (major, minor) = device();
            EntryKind::CharDevice { major, minor }
        }
        EntryType::Block => {
            let (major, minor) = device();
            EntryKind::BlockDevice { major, minor }
        }
        EntryType::Fifo => EntryKind::Fifo,
        _ => return Err("its tar entry type is unknown"),
    })
}

/// Drops empty and `.` components and resolves `..` without leaving the root, as unpackers that
/// confine an image to its root do.
fn normalise(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ if name.len() > limits::NAME_BYTES_MAX => {
                return Err("a component of its path is longer than 255 bytes");
            }
            _ if name.contains(&0) => return Err("its path holds a NUL byte"),
            _ => names.push(name),
        }
    }
    Ok(names.join(&b'/'))
}

/// Seconds and nanoseconds. A PAX `mtime` is a decimal with a fraction and may be negative.
fn modification_time(entry: &ParsedEntry<'_>) -> (i64, u32) {
    let pax = entry
        .pax
        .map(PaxExtensions::new)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let decimal = pax.filter(|record| record.key_bytes() == b"mtime").last();
    let parsed = decimal.and_then(|record| parse_decimal_time(record.value_bytes()));
    // tar-core hands base-256 numbers on as their two's complement.
    parsed.unwrap_or((entry.mtime as i64, 0))
}

fn parse_decimal_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds - 1, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

fn xattrs(entry: &ParsedEntry<'_>) -> Vec<Xattr> {
    let mut xattrs: Vec<Xattr> = entry
        .xattrs
        .iter()
        .map(|(name, value)| Xattr {
            name: name.to_vec(),
            value: value.to_vec(),
        })
        .collect();
    xattrs.sort();
    xattrs.dedup_by(|a, b| a.name == b.name);
    xattrs
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

    #[test]
    fn times_keep_their_nanoseconds_also_before_1970() {
        assert_eq!(
            parse_decimal_time(b"1700000000.123456789"),
            Some((1_700_000_000, 123_456_789))
        );
        assert_eq!(parse_decimal_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_decimal_time(b"12"), Some((12, 0)));
        assert_eq!(parse_decimal_time(b"x"), None);
    }
}
