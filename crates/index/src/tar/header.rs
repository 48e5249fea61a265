//! One header block of a tar stream: 512 bytes that describe a member.
//!
//! ```text
//!   0 path 100 │ mode 8 │ owner 8 │ group 8 │ size 12 │ mtime 12 │ checksum 8 │ type 1 │ link 100
//! 257 magic 6 + version 2 │ user 32 │ group 32 │ major 8 │ minor 8        (all but v7)
//! 345 ustar: prefix 155          star: prefix 131 │ atime 12 │ ctime 12 │ … │ "tar\0" at 508
//!     GNU:   atime 12 │ ctime 12 │ … │ 4 sparse pairs at 386 │ more? at 482 │ real size at 483
//! ```
//!
//! Read as Go's `archive/tar` reads it, because containerd, umoci and containers/storage all unpack
//! with it: a layer means what they make of it.

use std::ops::Range;

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;
/// The unit of a tar stream.
pub(super) type Block = [u8; BLOCK];

/// The header formats that differ in where their fields are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Before POSIX.
    V7,
    /// POSIX ustar and PAX.
    Ustar,
    /// Schily's star.
    Star,
    /// GNU tar.
    Gnu,
}

/// A parsed header block. Numbers are as written: nothing is checked against what Linux can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub format: Format,
    /// The type flag, [`kind`].
    pub kind: u8,
    /// With the prefix in front.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: i64,
    pub device: (i64, i64),
}

/// Type flags.
pub(super) mod kind {
    /// A file before POSIX; a directory when its path ends with a slash.
    pub const OLD_FILE: u8 = 0;
    pub const FILE: u8 = b'0';
    pub const HARD_LINK: u8 = b'1';
    pub const SYMLINK: u8 = b'2';
    pub const CHAR_DEVICE: u8 = b'3';
    pub const BLOCK_DEVICE: u8 = b'4';
    pub const DIRECTORY: u8 = b'5';
    pub const FIFO: u8 = b'6';
    /// POSIX: a file that lies contiguous on its disk; to be read as an ordinary one.
    pub const CONTIGUOUS: u8 = b'7';
    pub const GNU_SPARSE: u8 = b'S';
    pub const GNU_LONG_NAME: u8 = b'L';
    pub const GNU_LONG_LINK: u8 = b'K';
    pub const PAX: u8 = b'x';
    pub const PAX_GLOBAL: u8 = b'g';
}

const PATH: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const USTAR_PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TIMES: [Range<usize>; 2] = [476..488, 488..500];
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_TIMES: [Range<usize>; 2] = [345..357, 357..369];

impl Header {
    /// Reads a block that is not empty.
    pub fn parse(block: &Block) -> Result<Self, &'static str> {
        check_sum(block)?;
        let format = format(block);
        let mut header = Self {
            format,
            kind: block[KIND],
            path: text(&block[PATH]).to_vec(),
            link: text(&block[LINK]).to_vec(),
            mode: number(&block[MODE])?,
            uid: number(&block[UID])?,
            gid: number(&block[GID])?,
            size: number(&block[SIZE])?,
            mtime: number(&block[MTIME])?,
            device: (0, 0),
        };
        if format != Format::V7 {
            header.device = (number(&block[MAJOR])?, number(&block[MINOR])?);
            let prefix = prefix(block, format)?;
            if !prefix.is_empty() {
                header.path = [prefix, &header.path].join(&b'/');
            }
        }
        Ok(header)
    }

    /// Links, directories, devices and FIFOs have no content, whatever their size says.
    pub fn has_content(&self) -> bool {
        !matches!(self.kind, kind::HARD_LINK..=kind::FIFO)
    }

    /// How many bytes follow in the stream, padding not counted; `None` if that is negative.
    pub fn stored_size(&self) -> Option<u64> {
        match self.has_content() {
            true => self.size.try_into().ok(),
            false => Some(0),
        }
    }

    /// Whether the member only says something about the next one.
    pub fn is_metadata(&self) -> bool {
        matches!(
            self.kind,
            kind::PAX | kind::PAX_GLOBAL | kind::GNU_LONG_NAME | kind::GNU_LONG_LINK
        )
    }
}

/// The sum is over all bytes with the field itself as spaces; some old tars added signed bytes.
fn check_sum(block: &Block) -> Result<(), &'static str> {
    let bytes = block.iter().enumerate().map(|(at, &byte)| match at {
        at if CHECKSUM.contains(&at) => b' ',
        _ => byte,
    });
    let (unsigned, signed) = bytes.fold((0i64, 0i64), |(unsigned, signed), byte| {
        (unsigned + i64::from(byte), signed + i64::from(byte as i8))
    });
    match octal(&block[CHECKSUM]) {
        Ok(sum) if sum == unsigned || sum == signed => Ok(()),
        _ => Err("what should be a header has a wrong checksum"),
    }
}

fn format(block: &Block) -> Format {
    match (&block[MAGIC], &block[VERSION]) {
        (b"ustar\0", _) if &block[STAR_TRAILER] == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// What stands before the path.
fn prefix(block: &Block, format: Format) -> Result<&[u8], &'static str> {
    match format {
        Format::V7 => Ok(&[]),
        Format::Ustar => Ok(text(&block[USTAR_PREFIX])),
        Format::Star => {
            for time in STAR_TIMES {
                number(&block[time])?;
            }
            Ok(text(&block[STAR_PREFIX]))
        }
        // GNU headers have no prefix, but Go before 1.8 wrote one: then what should be times are
        // letters (golang.org/issue/12594).
        Format::Gnu => {
            let times_are_times = GNU_TIMES
                .into_iter()
                .all(|time| block[time.start] == 0 || number(&block[time]).is_ok());
            let prefix = text(&block[USTAR_PREFIX]);
            Ok(match times_are_times || !prefix.is_ascii() {
                true => &[],
                false => prefix,
            })
        }
    }
}

/// A field of letters: up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number: octal digits, or base 256 in two's complement when the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    const NEGATIVE: u8 = 0x40;
    match field.first() {
        Some(&first) if first & 0x80 != 0 => {
            // A field is at most 12 bytes long, so 128 bits hold whatever it says.
            let sign: i128 = if first & NEGATIVE != 0 { -1 } else { 0 };
            let top = sign << 7 | i128::from(first & 0x7F);
            let value = field[1..]
                .iter()
                .fold(top, |value, &byte| value << 8 | i128::from(byte));
            i64::try_from(value).map_err(|_| "a number in its header does not fit in 64 bits")
        }
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i64, &'static str> {
    const BAD: &str = "a number in its header is not octal";
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(first) = field.iter().position(|byte| !blank(byte)) else {
        return Ok(0);
    };
    let last = field.iter().rposition(|byte| !blank(byte)).unwrap_or(first);
    text(&field[first..=last])
        .iter()
        .try_fold(0i64, |value, &digit| match digit {
            b'0'..=b'7' => value
                .checked_mul(8)
                .map(|value| value + i64::from(digit - b'0'))
                .ok_or(BAD),
            _ => Err(BAD),
        })
}
