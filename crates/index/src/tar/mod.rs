//! The tar walk: from the decoded stream to [`Entry`] values with the position of every byte.
//!
//! ```text
//! stream ─► blocks ─┬─ header.rs   a member's header             ─┐
//!                   ├─ pax.rs      records about the next member  ├─► member.rs ─► Entry
//!                   ├─ sparse.rs   where its pieces belong       ─┘
//!                   └─ content     skipped: only its position counts
//! ```
//!
//! Read as Go's `archive/tar` reads, on which every runtime's unpacker is built: what it refuses is
//! refused here, and what it accepts means the same. `tests/corner_cases` holds the two together.

mod header;
mod member;
mod pax;
mod sparse;

use clip_archive::{
    Entry, Segment,
    limits::{EntryBudget, TooMuch},
    merge::is_runtime_path,
};
use header::{BLOCK, Block, Header, kind};
use member::{AboutNext, Member};
use pax::Records;
use sparse::{Map, MapInContent, OldMap, PaxSparse};
use std::mem;

/// Bytes of a long name or a PAX header, as in Go's `archive/tar`.
const METADATA_BYTES_MAX: u64 = 1 << 20;

/// Why a tar stream cannot be indexed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The stream is no tar from here on.
    #[error("the tar stream is damaged at byte {at}: {problem}; build and push the layer again")]
    Damaged {
        /// Position in the uncompressed stream.
        at: u64,
        /// What is wrong there.
        problem: &'static str,
    },
    /// The stream ends inside a header or a file.
    #[error("the tar stream ends in the middle, after {at} bytes; build and push the layer again")]
    Truncated {
        /// Length of the stream.
        at: u64,
    },
    /// More than an archive may hold.
    #[error("the tar stream is too large at byte {at}: {problem}; split the image into several")]
    TooMuch {
        /// Position in the uncompressed stream.
        at: u64,
        /// What there is too much of.
        problem: TooMuch,
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
    /// The block that is being collected.
    block: Block,
    filled: usize,
    /// Position behind the last complete block, or behind the content skipped so far.
    at: u64,
    /// Content still to skip.
    content: u64,
    /// Padding still to skip behind it.
    padding: u64,
    expect: Expect,
    /// What was said about the next member.
    about_next: AboutNext,
    budget: EntryBudget,
    walked: Walked,
}

/// What the next block is.
#[derive(Debug)]
enum Expect {
    /// A header, or the first block of the end mark.
    Header,
    /// The second block of the end mark.
    EndMark,
    /// Content of a member that only says something about the next one.
    Metadata { kind: u8, text: Vec<u8>, size: u64 },
    /// More of an old GNU sparse map; the content follows it.
    OldMap {
        member: Member,
        map: OldMap,
        stored: u64,
    },
    /// The sparse map that is the first part of the content.
    MapInContent {
        member: Member,
        map: MapInContent,
        stored: u64,
    },
    /// Nothing: what follows the end mark says nothing.
    Nothing,
}

impl Default for TarWalker {
    fn default() -> Self {
        Self::new()
    }
}

impl TarWalker {
    /// A walker at the start of a stream.
    pub fn new() -> Self {
        Self {
            block: [0; BLOCK],
            filled: 0,
            at: 0,
            content: 0,
            padding: 0,
            expect: Expect::Header,
            about_next: AboutNext::default(),
            budget: EntryBudget::default(),
            walked: Walked::default(),
        }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() && !matches!(self.expect, Expect::Nothing) {
            let skipping = match self.content {
                0 => &mut self.padding,
                _ => &mut self.content,
            };
            if *skipping > 0 {
                let len = (*skipping).min(bytes.len() as u64);
                *skipping -= len;
                self.at += len;
                bytes = &bytes[len as usize..];
                continue;
            }
            let len = (BLOCK - self.filled).min(bytes.len());
            self.block[self.filled..][..len].copy_from_slice(&bytes[..len]);
            self.filled += len;
            bytes = &bytes[len..];
            if self.filled == BLOCK {
                self.filled = 0;
                self.at += BLOCK as u64;
                let block = self.block;
                self.take_block(&block)?;
            }
        }
        Ok(())
    }

    /// The stream is complete. A missing end mark is accepted, as by every unpacker.
    pub fn finish(self) -> Result<Walked, TarError> {
        let may_end_here = matches!(
            self.expect,
            Expect::Header | Expect::EndMark | Expect::Nothing
        );
        match may_end_here && self.content == 0 && self.filled == 0 {
            true => Ok(self.walked),
            false => Err(TarError::Truncated {
                at: self.at + self.filled as u64,
            }),
        }
    }

    fn take_block(&mut self, block: &Block) -> Result<(), TarError> {
        let blank = || block.iter().all(|&byte| byte == 0);
        match mem::replace(&mut self.expect, Expect::Header) {
            Expect::Header if blank() => self.expect = Expect::EndMark,
            Expect::Header => self.take_header(block)?,
            Expect::EndMark if blank() => self.expect = Expect::Nothing,
            Expect::EndMark => {
                return Err(self.damaged("an empty block stands alone, two would be the end"));
            }
            Expect::Metadata {
                kind,
                mut text,
                size,
            } => {
                let missing = (size - text.len() as u64).min(BLOCK as u64);
                text.extend_from_slice(&block[..missing as usize]);
                match text.len() as u64 == size {
                    true => self.take_metadata(kind, &text)?,
                    false => self.expect = Expect::Metadata { kind, text, size },
                }
            }
            Expect::OldMap {
                member,
                mut map,
                stored,
            } => {
                let more = map.take_block(block).map_err(|why| member.refuse(why))?;
                self.continue_old_map(member, map, more, stored)?;
            }
            Expect::MapInContent {
                member,
                mut map,
                stored,
            } => {
                let complete = map.take_block(block).map_err(|why| member.refuse(why))?;
                let stored = stored
                    .checked_sub(BLOCK as u64)
                    .ok_or_else(|| member.refuse("its sparse map is longer than its content"))?;
                match complete {
                    Some(pieces) => self.take_member(member, stored, Some(pieces))?,
                    None => {
                        self.expect = Expect::MapInContent {
                            member,
                            map,
                            stored,
                        }
                    }
                }
            }
            Expect::Nothing => self.expect = Expect::Nothing,
        }
        Ok(())
    }

    fn take_header(&mut self, block: &Block) -> Result<(), TarError> {
        let header = Header::parse(block).map_err(|problem| self.damaged(problem))?;
        let size = header
            .stored_size()
            .ok_or_else(|| self.damaged("a size is negative"))?;
        match (header.is_metadata(), size) {
            (true, 0) => self.take_metadata(header.kind, &[]),
            (true, size) if size > METADATA_BYTES_MAX => {
                Err(self.damaged("a PAX header or long name is larger than 1 MiB"))
            }
            (true, _) => {
                self.expect = Expect::Metadata {
                    kind: header.kind,
                    text: Vec::new(),
                    size,
                };
                Ok(())
            }
            (false, _) => {
                let about = mem::take(&mut self.about_next);
                let member = Member::new(header, about)?;
                self.begin_member(member, block)
            }
        }
    }

    /// Remembers what is said about the next member. A global header says something about all that
    /// follow, but no unpacker listens; it must be well-formed, though.
    fn take_metadata(&mut self, kind: u8, text: &[u8]) -> Result<(), TarError> {
        let records = || Records::parse(text).map_err(|problem| self.damaged(problem));
        match kind {
            kind::PAX => self.about_next.records = records()?,
            kind::PAX_GLOBAL => {
                records()?;
                self.about_next = AboutNext::default();
            }
            kind::GNU_LONG_NAME => self.about_next.long_name = header::text(text).to_vec(),
            _ => self.about_next.long_link = header::text(text).to_vec(),
        }
        Ok(())
    }

    fn begin_member(&mut self, mut member: Member, block: &Block) -> Result<(), TarError> {
        let stored = member
            .header
            .stored_size()
            .ok_or_else(|| member.refuse("its size is negative"))?;
        if member.header.kind == kind::GNU_SPARSE {
            let mut map = OldMap::default();
            let more = map
                .begin(&mut member.header, block)
                .map_err(|why| member.refuse(why))?;
            return self.continue_old_map(member, map, more, stored);
        }
        match member.pax_sparse()? {
            PaxSparse::No => self.take_member(member, stored, None),
            PaxSparse::InRecords(map) => self.take_member(member, stored, Some(map)),
            PaxSparse::InContent => {
                let map = MapInContent::default();
                self.expect = Expect::MapInContent {
                    member,
                    map,
                    stored,
                };
                Ok(())
            }
        }
    }

    fn continue_old_map(
        &mut self,
        member: Member,
        map: OldMap,
        more: bool,
        stored: u64,
    ) -> Result<(), TarError> {
        match more {
            true => {
                self.expect = Expect::OldMap {
                    member,
                    map,
                    stored,
                }
            }
            false => self.take_member(member, stored, Some(map.pieces))?,
        }
        Ok(())
    }

    /// The headers of a member are complete, and its content begins here.
    fn take_member(
        &mut self,
        member: Member,
        stored: u64,
        map: Option<Map>,
    ) -> Result<(), TarError> {
        let segments = match (map, stored) {
            (Some(map), _) => sparse::segments(&map, member.size(), self.at..self.at + stored)
                .map_err(|why| member.refuse(why))?,
            (None, 0) => vec![],
            (None, length) => vec![Segment {
                logical: 0,
                length,
                tar_offset: self.at,
            }],
        };
        self.content = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let Some(entry) = member.into_entry(segments)? else {
            return Ok(());
        };
        let too_much = |problem| TarError::TooMuch {
            at: self.at,
            problem,
        };
        self.budget.admit(&entry).map_err(too_much)?;
        match is_runtime_path(&entry.path) {
            true => self.walked.runtime_paths.push(entry.path),
            false => self.walked.entries.push(entry),
        }
        Ok(())
    }

    /// The block that was taken last is wrong.
    fn damaged(&self, problem: &'static str) -> TarError {
        TarError::Damaged {
            at: self.at.saturating_sub(BLOCK as u64),
            problem,
        }
    }
}
