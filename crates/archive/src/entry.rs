//! One entry of a layer's tar stream, as the indexer saw it.

/// A tar member, or a marker of the layer format (OCI image-spec, layer.md, "Whiteouts").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path from the image's root, without leading or trailing slash, without `.` and `..`
    /// components. Empty for the root itself. Any bytes but NUL.
    pub path: Vec<u8>,
    /// What the entry is.
    pub kind: EntryKind,
    /// The twelve permission bits, set-user-ID, set-group-ID and sticky included.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970; may be negative.
    pub mtime: i64,
    /// Nanoseconds within the second, below 10⁹.
    pub mtime_nsec: u32,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

impl Entry {
    /// Bytes of memory that the entry takes, allocations included.
    pub fn memory(&self) -> usize {
        let content = match &self.kind {
            EntryKind::File { segments, .. } => size_of_val(segments.as_slice()),
            EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target.len(),
            _ => 0,
        };
        let xattr = |xattr: &Xattr| size_of::<Xattr>() + xattr.name.len() + xattr.value.len();
        let xattrs: usize = self.xattrs.iter().map(xattr).sum();
        size_of::<Self>() + self.path.len() + content + xattrs
    }
}

/// One extended attribute with its full name (`security.capability`, `user.note`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Name with its namespace prefix.
    pub name: Vec<u8>,
    /// Value, any bytes.
    pub value: Vec<u8>,
}

/// The kinds of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Size in bytes, as `stat` shows it.
        size: u64,
        /// Where the bytes lie, in ascending order of `logical`; what no segment covers is a hole.
        /// An ordinary file has one segment, an empty one none.
        segments: Vec<Segment>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Target, verbatim.
        target: Vec<u8>,
    },
    /// A further name of an earlier entry, in this layer or below.
    Hardlink {
        /// Path of the earlier entry, normalised like [`Entry::path`].
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// `.wh.NAME`: hides what lower layers have at `path` (which is given without the prefix).
    Whiteout,
    /// `.wh..wh..opq`: hides what lower layers have below the directory `path`.
    Opaque,
}

/// A run of a file's bytes inside the layer's uncompressed tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Position in the file.
    pub logical: u64,
    /// Length in bytes.
    pub length: u64,
    /// Position in the uncompressed tar stream.
    pub tar_offset: u64,
}
