//! What surrounds the deflate stream of a gzip member (RFC 1952, section 2.3): a header of any
//! length before it, checksum and length behind it. Judged as zlib judges them.

/// Why a member's header or trailer is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMember {
    #[error("no gzip member begins here")]
    Magic,
    #[error("a gzip member is compressed by an unknown method")]
    Method,
    #[error("a gzip member has flags that do not exist")]
    Flags,
    #[error("the checksum of a gzip member's header is wrong")]
    HeaderChecksum,
    #[error("the checksum of a gzip member is wrong")]
    Checksum,
    #[error("a gzip member has another length than it says")]
    Length,
}

const HAS_CHECKSUM: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
const DEFLATE: u8 = 8;

/// Reads a header that comes in pieces.
#[derive(Debug)]
pub struct Header {
    field: Field,
    flags: u8,
    checksum: crc32fast::Hasher,
}

/// The field at hand, and what is known of it.
#[derive(Debug, Clone, Copy)]
enum Field {
    Magic {
        first: Option<u8>,
    },
    Method {
        method: Option<u8>,
    },
    /// Time, extra flags, operating system.
    Rest {
        left: u8,
    },
    ExtraLen {
        low: Option<u8>,
    },
    Extra {
        left: u16,
    },
    Name,
    Comment,
    Checksum {
        low: Option<u8>,
        expected: u16,
    },
    Done,
}

impl Header {
    pub fn new() -> Self {
        Self {
            field: Field::Magic { first: None },
            flags: 0,
            checksum: crc32fast::Hasher::new(),
        }
    }

    /// Takes bytes up to the header's end; says how many.
    pub fn push(&mut self, input: &[u8]) -> Result<usize, BadMember> {
        let mut at = 0;
        while !self.is_complete()
            && let Some(&byte) = input.get(at)
        {
            at += 1;
            if !matches!(self.field, Field::Checksum { .. }) {
                self.checksum.update(&[byte]);
            }
            self.field = self.take(byte)?;
        }
        Ok(at)
    }

    pub fn is_complete(&self) -> bool {
        matches!(self.field, Field::Done)
    }

    fn take(&mut self, byte: u8) -> Result<Field, BadMember> {
        Ok(match self.field {
            Field::Magic { first: None } => Field::Magic { first: Some(byte) },
            Field::Magic { first: Some(first) } => match [first, byte] {
                [0x1f, 0x8b] => Field::Method { method: None },
                _ => return Err(BadMember::Magic),
            },
            Field::Method { method: None } => Field::Method { method: Some(byte) },
            Field::Method {
                method: Some(method),
            } => {
                self.flags = byte;
                match (method, byte & RESERVED) {
                    (DEFLATE, 0) => Field::Rest { left: 6 },
                    (DEFLATE, _) => return Err(BadMember::Flags),
                    _ => return Err(BadMember::Method),
                }
            }
            Field::Rest { left: 1 } => self.after_rest(),
            Field::Rest { left } => Field::Rest { left: left - 1 },
            Field::ExtraLen { low: None } => Field::ExtraLen { low: Some(byte) },
            Field::ExtraLen { low: Some(low) } => match u16::from_le_bytes([low, byte]) {
                0 => self.after_extra(),
                left => Field::Extra { left },
            },
            Field::Extra { left: 1 } => self.after_extra(),
            Field::Extra { left } => Field::Extra { left: left - 1 },
            Field::Name if byte == 0 => self.after_name(),
            Field::Comment if byte == 0 => self.after_comment(),
            same @ (Field::Name | Field::Comment) => same,
            Field::Checksum {
                low: None,
                expected,
            } => Field::Checksum {
                low: Some(byte),
                expected,
            },
            Field::Checksum {
                low: Some(low),
                expected,
            } => match u16::from_le_bytes([low, byte]) == expected {
                true => Field::Done,
                false => return Err(BadMember::HeaderChecksum),
            },
            Field::Done => Field::Done,
        })
    }

    fn after_rest(&self) -> Field {
        match self.flags & HAS_EXTRA {
            0 => self.after_extra(),
            _ => Field::ExtraLen { low: None },
        }
    }

    fn after_extra(&self) -> Field {
        match self.flags & HAS_NAME {
            0 => self.after_name(),
            _ => Field::Name,
        }
    }

    fn after_name(&self) -> Field {
        match self.flags & HAS_COMMENT {
            0 => self.after_comment(),
            _ => Field::Comment,
        }
    }

    /// The checksum covers everything before it.
    fn after_comment(&self) -> Field {
        match self.flags & HAS_CHECKSUM {
            0 => Field::Done,
            _ => Field::Checksum {
                low: None,
                expected: self.checksum.clone().finalize() as u16,
            },
        }
    }
}

/// Reads a trailer that comes in pieces.
#[derive(Debug, Default)]
pub struct Trailer {
    bytes: [u8; 8],
    len: usize,
}

impl Trailer {
    /// Takes bytes up to the trailer's end; says how many. Complains as soon as the bytes of the
    /// wrong field are here.
    pub fn push(
        &mut self,
        input: &[u8],
        checksum: u32,
        content_len: u64,
    ) -> Result<usize, BadMember> {
        let len = input.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&input[..len]);
        self.len += len;
        let [c0, c1, c2, c3, l0, l1, l2, l3] = self.bytes;
        if self.len >= 4 && u32::from_le_bytes([c0, c1, c2, c3]) != checksum {
            return Err(BadMember::Checksum);
        }
        if self.is_complete() && u32::from_le_bytes([l0, l1, l2, l3]) != content_len as u32 {
            return Err(BadMember::Length);
        }
        Ok(len)
    }

    pub fn is_complete(&self) -> bool {
        self.len == self.bytes.len()
    }
}
