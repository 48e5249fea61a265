//! Answers, as bytes. Everything that is told is true for ever.

use crate::{
    filesystem::{Attributes, Statistics, Traits},
    wire::{
        Attr, AttrOut, EntryOut, GetxattrOut, InitOut, Kstatfs, MAJOR, MINOR, OpenOut, OutHeader,
        capability, open_flag,
    },
};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

/// Largest READ, in bytes. Larger ones are possible and slower (measured).
pub const READ_LEN_MAX: u32 = 1 << 20;
/// How long the kernel may believe what it was told, in seconds: for ever, but a year is the longest that all kernels
/// convert to jiffies without overflow.
const VALID: u64 = 365 * 86400;
/// With 64, readers of a registry that hangs made a file that was at hand wait for 7 s (measured).
const MAX_BACKGROUND: u16 = 4096;
const BLOCK_SIZE: u32 = 4096;
const NAME_LEN_MAX: u32 = 255;

/// Begins an answer in `out`; its header is written by [`seal`].
pub fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.resize(size_of::<OutHeader>(), 0);
}

/// Ends an answer that was begun: without an error.
pub fn seal(out: &mut [u8], unique: u64) {
    let len = out.len();
    if let Ok((place, _)) = OutHeader::mut_from_prefix(out) {
        *place = header(unique, 0, len - size_of::<OutHeader>());
    }
}

/// The header of an answer with `len` bytes after it; `error` is 0 or a negative errno.
pub fn header(unique: u64, error: i32, len: usize) -> OutHeader {
    let len = (size_of::<OutHeader>() + len) as u32;
    OutHeader { len, error, unique }
}

/// What is agreed upon, of what the kernel has to offer.
pub fn init(offered: u64, max_readahead: u32, traits: Traits) -> InitOut {
    // What an older kernel lacks costs speed, not correctness.
    let mut wanted = capability::ASYNC_READ
        | capability::MAX_PAGES
        | capability::DO_READDIRPLUS
        | capability::PARALLEL_DIROPS
        | capability::CACHE_SYMLINKS
        | capability::EXPLICIT_INVAL_DATA
        | capability::NO_OPEN_SUPPORT
        | capability::NO_OPENDIR_SUPPORT
        | capability::INIT_EXT
        | capability::HAS_RESEND;
    if traits.idmapped {
        wanted |= capability::ALLOW_IDMAP;
    }
    if traits.xattrs {
        wanted |= capability::POSIX_ACL;
    }
    let agreed = wanted & offered;
    InitOut {
        major: MAJOR,
        minor: MINOR,
        max_readahead,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: READ_LEN_MAX,
        time_gran: 1,
        max_pages: (READ_LEN_MAX / BLOCK_SIZE) as u16,
        ..InitOut::default()
    }
}

/// A name and what it stands for.
pub fn entry(attributes: &Attributes) -> EntryOut {
    EntryOut {
        nodeid: attributes.node,
        attr: attr(attributes),
        ..no_entry()
    }
}

/// Node 0 with a lifetime: the kernel remembers that the name does not exist.
pub fn no_entry() -> EntryOut {
    EntryOut {
        nodeid: 0,
        generation: 0,
        entry_valid: VALID,
        attr_valid: VALID,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: Attr::default(),
    }
}

pub fn attributes(attributes: &Attributes) -> AttrOut {
    AttrOut {
        attr_valid: VALID,
        attr_valid_nsec: 0,
        dummy: 0,
        attr: attr(attributes),
    }
}

fn attr(of: &Attributes) -> Attr {
    Attr {
        ino: of.node,
        size: of.size,
        blocks: of.size.div_ceil(512),
        atime: of.mtime,
        mtime: of.mtime,
        ctime: of.mtime,
        atimensec: of.mtime_nsec,
        mtimensec: of.mtime_nsec,
        ctimensec: of.mtime_nsec,
        mode: of.mode,
        nlink: of.nlink,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// For kernels that cannot do without OPEN.
pub fn open() -> OpenOut {
    OpenOut {
        fh: 0,
        open_flags: open_flag::KEEP_CACHE | open_flag::CACHE_DIR,
        backing_id: 0,
    }
}

/// xattr(7): length 0 asks how long what was appended to the header is; a length that is too small is `ERANGE`.
pub fn fit_xattr(out: &mut Vec<u8>, len: u32) -> Result<(), Errno> {
    let found = out.len() - size_of::<OutHeader>();
    if len == 0 {
        begin(out);
        let size = found as u32;
        out.extend_from_slice(GetxattrOut { size, padding: 0 }.as_bytes());
    } else if found > len as usize {
        return Err(Errno::RANGE);
    }
    Ok(())
}

pub fn statistics(statistics: Statistics) -> Kstatfs {
    Kstatfs {
        blocks: statistics.bytes.div_ceil(u64::from(BLOCK_SIZE)),
        files: statistics.nodes,
        bsize: BLOCK_SIZE,
        namelen: NAME_LEN_MAX,
        frsize: BLOCK_SIZE,
        ..Kstatfs::default()
    }
}
