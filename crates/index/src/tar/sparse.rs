//! Sparse files: where the pieces that a tar holds belong in the file.
//!
//! Four ways to write the same map (GNU tar manual, "Storing Sparse Files"): old GNU in the header
//! and in blocks behind it; PAX 0.0 and 0.1 in records; PAX 1.0 in front of the content. All
//! pieces follow each other in the tar without padding.

use super::header::{BLOCK, Block, Format, Header, number};
use super::pax::{self, Records, decimal};
use clip_archive::Segment;
use std::ops::Range;

/// Bytes that a map may take in the tar, as in Go's `archive/tar`: some 40,000 pieces.
const MAP_BYTES_MAX: usize = 1 << 20;

const MALFORMED: &str = "its sparse map is malformed";
const TOO_LONG: &str = "its sparse map is longer than 1 MiB";

/// EROFS maps blocks of 512 bytes, so a piece must begin at one in the file and in the tar, and end
/// at one or at the file's end. File systems have holes of whole blocks, so real maps are like this.
const OFF_BORDERS: &str = "it is sparse with pieces that are not whole 512-byte blocks, which a \
     mount cannot show: build the layer without sparse files (tar without --sparse)";

/// `(position in the file, length)` of each piece, in the order of the tar.
pub(super) type Map = Vec<(i64, i64)>;

/// Checks a map against the file's size and the bytes that the tar holds, and places its pieces.
pub(super) fn segments(
    map: &Map,
    size: u64,
    tar: Range<u64>,
) -> Result<Vec<Segment>, &'static str> {
    let mut segments = Vec::with_capacity(map.len());
    let (mut file_end, mut tar_offset) = (0, tar.start);
    for &(offset, length) in map {
        let (Ok(logical), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
            return Err(MALFORMED);
        };
        // Both are below 2⁶³, so their sum fits.
        if logical < file_end || logical + length > size {
            return Err("the pieces of its sparse map overlap or lie outside the file");
        }
        let is_aligned = |position: u64| position.is_multiple_of(BLOCK as u64);
        let end = logical + length;
        if length > 0
            && !(is_aligned(logical) && is_aligned(tar_offset) && (is_aligned(end) || end == size))
        {
            return Err(OFF_BORDERS);
        }
        if length > tar.end - tar_offset {
            return Err("its sparse map has more bytes than the tar holds for it");
        }
        file_end = logical + length;
        if length > 0 {
            segments.push(Segment {
                logical,
                length,
                tar_offset,
            });
        }
        tar_offset += length;
    }
    match tar_offset == tar.end {
        true => Ok(segments),
        false => Err("the tar holds more bytes for it than its sparse map has"),
    }
}

/// Old GNU: four pairs in the header, 21 in each further block.
#[derive(Debug, Default)]
pub(super) struct OldMap {
    pub pieces: Map,
    bytes: usize,
}

impl OldMap {
    const IN_HEADER: Range<usize> = 386..482;
    const IN_BLOCK: Range<usize> = 0..504;
    const REAL_SIZE: Range<usize> = 483..495;

    /// Takes the pairs of the header block, and the file's size for `header`; true when more
    /// blocks follow. Star has the same type flag for another map, which nobody reads.
    pub fn begin(&mut self, header: &mut Header, block: &Block) -> Result<bool, &'static str> {
        if header.format != Format::Gnu {
            return Err("it is a sparse file of another format than GNU's");
        }
        header.size = number(&block[Self::REAL_SIZE])?;
        self.take(block, Self::IN_HEADER)
    }

    /// Takes the pairs of a block behind the header; true when more follow.
    pub fn take_block(&mut self, block: &Block) -> Result<bool, &'static str> {
        self.bytes += BLOCK;
        if self.bytes > MAP_BYTES_MAX {
            return Err(TOO_LONG);
        }
        self.take(block, Self::IN_BLOCK)
    }

    /// The flag that says whether more follows is the byte behind the pairs.
    fn take(&mut self, block: &Block, pairs: Range<usize>) -> Result<bool, &'static str> {
        let more = block[pairs.end] != 0;
        for pair in block[pairs].chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            self.pieces
                .push((number(&pair[..12])?, number(&pair[12..])?));
        }
        Ok(more)
    }
}

/// What PAX records say about a sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PaxSparse {
    /// Nothing.
    No,
    /// Formats 0.0 and 0.1: the map itself.
    InRecords(Map),
    /// Format 1.0: the map stands in front of the content.
    InContent,
}

/// Finds the sparse format, and puts name and size of the file into `header`.
pub(super) fn pax_sparse(
    records: &Records,
    header: &mut Header,
) -> Result<PaxSparse, &'static str> {
    let version = (
        records.get(pax::SPARSE_MAJOR),
        records.get(pax::SPARSE_MINOR),
    );
    let in_content = match version {
        (Some(b"0"), Some(b"0" | b"1")) => false,
        (Some(b"1"), Some(b"0")) => true,
        (None, None) if records.get(pax::SPARSE_MAP).is_some() => false,
        _ => return Ok(PaxSparse::No),
    };
    if let Some(name) = records.get(pax::SPARSE_NAME) {
        header.path = name.to_vec();
    }
    let size = match records.number(pax::SPARSE_SIZE)? {
        None => records.number(pax::SPARSE_REAL_SIZE)?,
        size => size,
    };
    header.size = size.unwrap_or(header.size);
    match in_content {
        true => Ok(PaxSparse::InContent),
        false => map_in_records(records).map(PaxSparse::InRecords),
    }
}

fn map_in_records(records: &Records) -> Result<Map, &'static str> {
    let pieces = records.number(pax::SPARSE_PIECES)?.ok_or(MALFORMED)?;
    let numbers: Vec<i64> = match records.get(pax::SPARSE_MAP) {
        None => vec![],
        Some(list) => list
            .split(|&byte| byte == b',')
            .map(decimal)
            .collect::<Option<_>>()
            .ok_or(MALFORMED)?,
    };
    match u64::try_from(pieces) {
        Ok(pieces) if pieces.checked_mul(2) == Some(numbers.len() as u64) => Ok(pairs(&numbers)),
        _ => Err(MALFORMED),
    }
}

/// PAX 1.0: decimal numbers with a newline each, first how many pieces there are; padded to a block.
#[derive(Debug, Default)]
pub(super) struct MapInContent {
    /// The last number as far as it is here.
    number: Vec<u8>,
    pieces: Option<i64>,
    numbers: Vec<i64>,
    /// Bytes taken.
    pub bytes: usize,
}

impl MapInContent {
    /// Takes the next block of the content; gives the map when it is complete.
    pub fn take_block(&mut self, block: &Block) -> Result<Option<Map>, &'static str> {
        self.bytes += BLOCK;
        if self.bytes > MAP_BYTES_MAX {
            return Err(TOO_LONG);
        }
        for &byte in block {
            if byte != b'\n' {
                self.number.push(byte);
                continue;
            }
            let number = decimal(&self.number).ok_or(MALFORMED)?;
            self.number.clear();
            match self.pieces {
                None if number < 0 => return Err(MALFORMED),
                None => self.pieces = Some(number),
                Some(_) => self.numbers.push(number),
            }
            if self.is_complete() {
                return Ok(Some(pairs(&self.numbers)));
            }
        }
        Ok(None)
    }

    fn is_complete(&self) -> bool {
        self.pieces.and_then(|pieces| pieces.checked_mul(2)) == Some(self.numbers.len() as i64)
    }
}

fn pairs(numbers: &[i64]) -> Map {
    numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}
