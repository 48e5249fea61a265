//! The columns of a layer's entries.

use super::{Reader, Repeated, Writer};
use crate::{Entry, EntryKind, Segment, Xattr, codec::DecodeError, limits};

const WHAT: &str = "list of entries";

/// A code of the kind, with flags for what most entries lack.
const KIND: usize = 0;
/// How many bytes the path shares with that of the entry before.
const PATH_SHARED: usize = 1;
/// The rest of the path, behind it a NUL.
const PATH_REST: usize = 2;
/// Mode and owner, see [`Repeated`].
const ACCESS: usize = 3;
/// New triples of mode, user and group.
const ACCESS_NEW: usize = 4;
/// Seconds of the modification time, see [`Repeated`].
const MTIME: usize = 5;
/// New times, each as the difference from the new one before it.
const MTIME_NEW: usize = 6;
/// Nanoseconds, if they are not 0.
const NANOSECONDS: usize = 7;
/// Sizes of files.
const SIZE: usize = 8;
/// Where the bytes of an ordinary file begin, as the difference from [`Tar::next`].
const PLACE: usize = 9;
/// Segments of other files: their number, then position, length, place in the tar.
const SEGMENTS: usize = 10;
/// Targets of symbolic and hard links, behind each a NUL.
const TARGETS: usize = 11;
/// Major and minor numbers.
const DEVICES: usize = 12;
/// Extended attributes, if there are some: number, then name, length of the value.
const XATTRS: usize = 13;
/// The values.
const XATTR_VALUES: usize = 14;
const COLUMNS: usize = 15;

const HAS_NANOSECONDS: u8 = 0x40;
const HAS_XATTRS: u8 = 0x80;

/// What an entry is, for [`KIND`].
mod kind {
    /// A file without bytes, or whose bytes lie in one piece: nearly all are.
    pub const FILE: u8 = 0;
    pub const DIRECTORY: u8 = 1;
    pub const SYMLINK: u8 = 2;
    pub const HARDLINK: u8 = 3;
    pub const CHAR_DEVICE: u8 = 4;
    pub const BLOCK_DEVICE: u8 = 5;
    pub const FIFO: u8 = 6;
    pub const WHITEOUT: u8 = 7;
    pub const OPAQUE: u8 = 8;
    /// A file with holes, or with pieces.
    pub const FILE_IN_PIECES: u8 = 9;
}

type Access = (u16, u32, u32);

/// The canonical encoding of a layer's entries.
pub fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let mut writer = EntryWriter {
        columns: Writer::new(),
        access: Repeated::new(),
        mtimes: Repeated::new(),
        tar: Tar::default(),
    };
    let mut path: &[u8] = &[];
    for entry in entries {
        writer.path(path, &entry.path);
        path = &entry.path;
        writer.attributes(entry);
        writer.kind(entry);
    }
    writer.columns.finish(entries.len())
}

/// Decodes what [`encode_entries`] made, one entry after the other into the same memory.
#[derive(Debug)]
pub struct Entries<'a> {
    reader: EntryReader<'a>,
    left: u64,
    entry: Entry,
}

impl<'a> Entries<'a> {
    /// Looks only at how many entries there are.
    pub fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let columns = Reader::new(WHAT, bytes, limits::ENTRIES_MAX as u64)?;
        Ok(Self {
            left: columns.count,
            reader: EntryReader {
                columns,
                access: Repeated::new(),
                mtimes: Repeated::new(),
                tar: Tar::default(),
            },
            entry: Entry {
                path: Vec::new(),
                kind: EntryKind::Fifo,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: 0,
                mtime_nsec: 0,
                xattrs: Vec::new(),
            },
        })
    }

    /// How many entries are still to come, if the bytes keep their promise.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next entry. Behind the last nothing may follow.
    pub fn next_entry(&mut self) -> Result<Option<&Entry>, DecodeError> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                self.reader.read(&mut self.entry)?;
                Ok(Some(&self.entry))
            }
            None => self.reader.columns.finish().map(|()| None),
        }
    }
}

/// Follows the tar, to say where the next member's bytes should begin.
#[derive(Debug, Default)]
struct Tar {
    /// The end of what was passed so far.
    at: u64,
}

const BLOCK_BYTES: u64 = 512;

impl Tar {
    /// Where the bytes of the next member begin if it has one header block and nothing is in between.
    fn next(&self) -> u64 {
        self.at.wrapping_add(BLOCK_BYTES)
    }

    fn pass(&mut self, kind: &EntryKind) {
        let end = match kind {
            EntryKind::File { segments, .. } => segments
                .last()
                .map(|last| last.tar_offset.wrapping_add(last.length)),
            _ => None,
        };
        let blocks = end.map(|end| end.div_ceil(BLOCK_BYTES).wrapping_mul(BLOCK_BYTES));
        self.at = blocks.unwrap_or(self.next());
    }
}

struct EntryWriter {
    columns: Writer<COLUMNS>,
    access: Repeated<Access>,
    mtimes: Repeated<i64>,
    tar: Tar,
}

impl EntryWriter {
    fn path(&mut self, before: &[u8], path: &[u8]) {
        let pairs = before.iter().zip(path);
        let shared = pairs.take_while(|(before, now)| before == now).count();
        self.columns.number(PATH_SHARED, shared as u64);
        self.columns.text(PATH_REST, &path[shared..]);
    }

    fn attributes(&mut self, entry: &Entry) {
        let (code, new) = self.access.encode((entry.mode, entry.uid, entry.gid));
        self.columns.number(ACCESS, code);
        if new.is_some() {
            for value in [entry.mode.into(), entry.uid, entry.gid] {
                self.columns.number(ACCESS_NEW, value.into());
            }
        }
        let (code, new) = self.mtimes.encode(entry.mtime);
        self.columns.number(MTIME, code);
        if let Some(before) = new {
            let difference = entry.mtime.wrapping_sub(before.unwrap_or(0));
            self.columns.signed(MTIME_NEW, difference);
        }
        if entry.mtime_nsec != 0 {
            self.columns.number(NANOSECONDS, entry.mtime_nsec.into());
        }
        if !entry.xattrs.is_empty() {
            self.columns.number(XATTRS, entry.xattrs.len() as u64);
        }
        for Xattr { name, value } in &entry.xattrs {
            self.columns.text(XATTRS, name);
            self.columns.number(XATTRS, value.len() as u64);
            self.columns.bytes(XATTR_VALUES, value);
        }
    }

    fn kind(&mut self, entry: &Entry) {
        let kind = match &entry.kind {
            EntryKind::File { size, segments } => self.file(*size, segments),
            EntryKind::Directory => kind::DIRECTORY,
            EntryKind::Symlink { target } => self.link(kind::SYMLINK, target),
            EntryKind::Hardlink { target } => self.link(kind::HARDLINK, target),
            &EntryKind::CharDevice { major, minor } => self.device(kind::CHAR_DEVICE, major, minor),
            &EntryKind::BlockDevice { major, minor } => {
                self.device(kind::BLOCK_DEVICE, major, minor)
            }
            EntryKind::Fifo => kind::FIFO,
            EntryKind::Whiteout => kind::WHITEOUT,
            EntryKind::Opaque => kind::OPAQUE,
        };
        let nanoseconds = HAS_NANOSECONDS * u8::from(entry.mtime_nsec != 0);
        let xattrs = HAS_XATTRS * u8::from(!entry.xattrs.is_empty());
        self.columns.byte(KIND, kind | nanoseconds | xattrs);
        self.tar.pass(&entry.kind);
    }

    fn file(&mut self, size: u64, segments: &[Segment]) -> u8 {
        self.columns.number(SIZE, size);
        match segments {
            [] if size == 0 => kind::FILE,
            &[one] if size > 0 && (one.logical, one.length) == (0, size) => {
                let difference = one.tar_offset.wrapping_sub(self.tar.next());
                self.columns.signed(PLACE, difference as i64);
                kind::FILE
            }
            pieces => {
                self.columns.number(SEGMENTS, pieces.len() as u64);
                for piece in pieces {
                    for value in [piece.logical, piece.length, piece.tar_offset] {
                        self.columns.number(SEGMENTS, value);
                    }
                }
                kind::FILE_IN_PIECES
            }
        }
    }

    fn link(&mut self, kind: u8, target: &[u8]) -> u8 {
        self.columns.text(TARGETS, target);
        kind
    }

    fn device(&mut self, kind: u8, major: u32, minor: u32) -> u8 {
        self.columns.number(DEVICES, major.into());
        self.columns.number(DEVICES, minor.into());
        kind
    }
}

#[derive(Debug)]
struct EntryReader<'a> {
    columns: Reader<'a, COLUMNS>,
    access: Repeated<Access>,
    mtimes: Repeated<i64>,
    tar: Tar,
}

impl EntryReader<'_> {
    /// Reads the entry that follows upon `entry` in its place.
    fn read(&mut self, entry: &mut Entry) -> Result<(), DecodeError> {
        let code = self.columns.byte(KIND)?;
        self.path(&mut entry.path)?;
        (entry.mode, entry.uid, entry.gid) = self.access()?;
        entry.mtime = self.mtime()?;
        entry.mtime_nsec = match code & HAS_NANOSECONDS {
            0 => 0,
            _ => self.columns.small(NANOSECONDS)?,
        };
        entry.xattrs = match code & HAS_XATTRS {
            0 => Vec::new(),
            _ => self.xattrs()?,
        };
        self.kind(code & !(HAS_NANOSECONDS | HAS_XATTRS), &mut entry.kind)?;
        self.tar.pass(&entry.kind);
        Ok(())
    }

    /// Turns the path of the entry before into this one's.
    fn path(&mut self, path: &mut Vec<u8>) -> Result<(), DecodeError> {
        let shared: usize = self.columns.small(PATH_SHARED)?;
        let rest = self.columns.text(PATH_REST)?;
        if shared > path.len() {
            return Err(self.columns.malformed());
        }
        if shared + rest.len() > limits::PATH_BYTES_MAX {
            return Err(DecodeError::TooMany {
                what: WHAT,
                problem: "a path is longer than 4,096 bytes".to_owned(),
            });
        }
        path.truncate(shared);
        path.extend_from_slice(rest);
        Ok(())
    }

    fn access(&mut self) -> Result<Access, DecodeError> {
        let code = self.columns.number(ACCESS)?;
        let columns = &mut self.columns;
        let access = self.access.decode(code, |_| {
            Ok::<_, DecodeError>((
                columns.small(ACCESS_NEW)?,
                columns.small(ACCESS_NEW)?,
                columns.small(ACCESS_NEW)?,
            ))
        })?;
        access.ok_or_else(|| self.columns.malformed())
    }

    fn mtime(&mut self) -> Result<i64, DecodeError> {
        let code = self.columns.number(MTIME)?;
        let columns = &mut self.columns;
        let mtime = self.mtimes.decode(code, |before| {
            let difference = columns.signed(MTIME_NEW)?;
            Ok::<_, DecodeError>(before.unwrap_or(0).wrapping_add(difference))
        })?;
        mtime.ok_or_else(|| self.columns.malformed())
    }

    fn xattrs(&mut self) -> Result<Vec<Xattr>, DecodeError> {
        let count: usize = self.columns.small(XATTRS)?;
        if count == 0 || count > limits::XATTRS_MAX {
            return Err(self.columns.malformed());
        }
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let name = self.columns.text(XATTRS)?.to_vec();
            let len = self.columns.small(XATTRS)?;
            let value = self.columns.bytes(XATTR_VALUES, len)?.to_vec();
            xattrs.push(Xattr { name, value });
        }
        Ok(xattrs)
    }

    /// `kind` is that of the entry before: most entries are files, whose segments find their memory there.
    fn kind(&mut self, code: u8, kind: &mut EntryKind) -> Result<(), DecodeError> {
        *kind = match code {
            kind::FILE => self.file(emptied(kind))?,
            kind::FILE_IN_PIECES => self.file_in_pieces()?,
            kind::DIRECTORY => EntryKind::Directory,
            kind::SYMLINK => EntryKind::Symlink {
                target: self.columns.text(TARGETS)?.to_vec(),
            },
            kind::HARDLINK => EntryKind::Hardlink {
                target: self.columns.text(TARGETS)?.to_vec(),
            },
            kind::CHAR_DEVICE => EntryKind::CharDevice {
                major: self.columns.small(DEVICES)?,
                minor: self.columns.small(DEVICES)?,
            },
            kind::BLOCK_DEVICE => EntryKind::BlockDevice {
                major: self.columns.small(DEVICES)?,
                minor: self.columns.small(DEVICES)?,
            },
            kind::FIFO => EntryKind::Fifo,
            kind::WHITEOUT => EntryKind::Whiteout,
            kind::OPAQUE => EntryKind::Opaque,
            _ => return Err(self.columns.malformed()),
        };
        Ok(())
    }

    fn file(&mut self, mut segments: Vec<Segment>) -> Result<EntryKind, DecodeError> {
        let size = self.columns.number(SIZE)?;
        if size > 0 {
            let difference = self.columns.signed(PLACE)?;
            segments.push(Segment {
                logical: 0,
                length: size,
                tar_offset: self.tar.next().wrapping_add_signed(difference),
            });
        }
        Ok(EntryKind::File { size, segments })
    }

    fn file_in_pieces(&mut self) -> Result<EntryKind, DecodeError> {
        let size = self.columns.number(SIZE)?;
        let count: usize = self.columns.small(SEGMENTS)?;
        if count > limits::SEGMENTS_MAX {
            return Err(self.columns.malformed());
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push(Segment {
                logical: self.columns.number(SEGMENTS)?,
                length: self.columns.number(SEGMENTS)?,
                tar_offset: self.columns.number(SEGMENTS)?,
            });
        }
        Ok(EntryKind::File { size, segments })
    }
}

/// A list of segments to be filled, in the memory of that of the file before.
fn emptied(kind: &mut EntryKind) -> Vec<Segment> {
    match kind {
        EntryKind::File { segments, .. } => {
            segments.clear();
            std::mem::take(segments)
        }
        _ => Vec::new(),
    }
}
