//! A message of the kernel's, taken apart.

use crate::wire::{GetxattrIn, InHeader, InitIn, InterruptIn, ReadIn, capability, opcode};
use rustix::fs::OFlags;
use zerocopy::FromBytes;

/// What is asked.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its number.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// What is to be done.
    pub operation: Operation<'a>,
}

/// What is to be done with a node.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        capabilities: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    GetAttributes,
    ReadLink,
    Open,
    OpenDirectory,
    Read {
        offset: u64,
        len: u32,
        /// Past the page cache (`O_DIRECT`).
        is_direct: bool,
    },
    ReadDirectory {
        cookie: u64,
        len: u32,
        /// With the attributes of each entry.
        plus: bool,
    },
    Statistics,
    GetXattr {
        name: &'a [u8],
        len: u32,
    },
    ListXattr {
        len: u32,
    },
    /// Who waits for the answer to request `unique` got a signal.
    Interrupt {
        unique: u64,
    },
    /// Something that was open is not any more.
    Release,
    /// The kernel forgets nodes, and wants no answer.
    Forget,
    /// Anything else. Of a filesystem that is mounted read-only the kernel asks little of it: ioctl and SEEK_HOLE.
    Other,
}

impl<'a> Request<'a> {
    /// None for what is too short to be a request. No kernel sends such a thing.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, body) = InHeader::read_from_prefix(message).ok()?;
        let operation = Operation::parse(header.opcode, body)?;
        let (unique, node) = (header.unique, header.nodeid);
        Some(Self {
            unique,
            node,
            operation,
        })
    }
}

impl<'a> Operation<'a> {
    fn parse(code: u32, body: &'a [u8]) -> Option<Self> {
        Some(match code {
            opcode::INIT => Self::parse_init(body)?,
            opcode::LOOKUP => Self::Lookup {
                name: until_nul(body)?,
            },
            opcode::GETATTR => Self::GetAttributes,
            opcode::READLINK => Self::ReadLink,
            opcode::OPEN => Self::Open,
            opcode::OPENDIR => Self::OpenDirectory,
            opcode::READ => {
                let (read, _) = ReadIn::read_from_prefix(body).ok()?;
                Self::Read {
                    offset: read.offset,
                    len: read.size,
                    is_direct: read.flags & OFlags::DIRECT.bits() != 0,
                }
            }
            opcode::READDIR | opcode::READDIRPLUS => {
                let (read, _) = ReadIn::read_from_prefix(body).ok()?;
                Self::ReadDirectory {
                    cookie: read.offset,
                    len: read.size,
                    plus: code == opcode::READDIRPLUS,
                }
            }
            opcode::STATFS => Self::Statistics,
            opcode::GETXATTR => {
                let (wanted, name) = GetxattrIn::read_from_prefix(body).ok()?;
                Self::GetXattr {
                    name: until_nul(name)?,
                    len: wanted.size,
                }
            }
            opcode::LISTXATTR => {
                let (wanted, _) = GetxattrIn::read_from_prefix(body).ok()?;
                Self::ListXattr { len: wanted.size }
            }
            opcode::INTERRUPT => {
                let (interrupt, _) = InterruptIn::read_from_prefix(body).ok()?;
                Self::Interrupt {
                    unique: interrupt.unique,
                }
            }
            opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY => Self::Release,
            opcode::FORGET | opcode::BATCH_FORGET => Self::Forget,
            _ => Self::Other,
        })
    }

    fn parse_init(body: &'a [u8]) -> Option<Self> {
        let (init, rest) = InitIn::read_from_prefix(body).ok()?;
        let mut capabilities = u64::from(init.flags);
        if capabilities & capability::INIT_EXT != 0 {
            let (high, _) = u32::read_from_prefix(rest).ok()?;
            capabilities |= u64::from(high) << 32;
        }
        Some(Self::Init {
            major: init.major,
            minor: init.minor,
            max_readahead: init.max_readahead,
            capabilities,
        })
    }
}

fn until_nul(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(&bytes[..end])
}
