//! Where a regular file's bytes lie: segments of a layer ⇄ equal chunks with an index each.
//!
//! A chunk is 512 << `bits` bytes long; its index says which device and block it starts at, or that
//! it is a hole. An ordinary file is one chunk. A sparse file gets the largest chunks whose borders
//! meet all its borders between data and holes. Bytes behind the file's end are never shown, so the
//! last chunk may reach into the tar's padding.

use super::format::{
    BLOCK, BLOCK_BITS, CHUNK_BITS_MAX, CHUNK_INDEX_LEN, HOLE, put, u16_at, u32_at,
};
use super::{Nid, ReadError};
use crate::Segment;

/// How a file is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkMap {
    /// A chunk is 512 << `bits` bytes long.
    pub bits: u8,
    /// How many chunks the file has.
    pub count: u64,
}

/// Why segments cannot become chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkError {
    /// Out of order, overlapping, or outside the file or the layer.
    Invalid,
    /// A border that is not one of a 512-byte block.
    Unaligned(Segment),
}

impl ChunkMap {
    /// Cuts a file of `size` bytes into chunks; `tar_size` bounds its layer.
    pub fn new(size: u64, segments: &[Segment], tar_size: u64) -> Result<Self, ChunkError> {
        let mut borders = 0; // all inner borders, or-ed: what matters is their common alignment
        let mut previous = Segment {
            logical: 0,
            length: 0,
            tar_offset: 0,
        };
        for segment in segments.iter().filter(|segment| segment.length > 0) {
            let end = segment.logical.checked_add(segment.length);
            let tar_end = segment.tar_offset.checked_add(segment.length);
            let end = match (end, tar_end) {
                (Some(end), Some(tar_end)) if end <= size && tar_end <= tar_size => end,
                _ => return Err(ChunkError::Invalid),
            };
            let previous_end = previous.logical + previous.length;
            if segment.logical < previous_end {
                return Err(ChunkError::Invalid);
            }
            let aligned = |position: u64| position.is_multiple_of(BLOCK as u64);
            if !aligned(segment.logical)
                || !aligned(segment.tar_offset)
                || !(aligned(end) || end == size)
            {
                return Err(ChunkError::Unaligned(*segment));
            }
            let goes_on = segment.logical == previous_end
                && segment.tar_offset == previous.tar_offset + previous.length
                && previous.length > 0;
            if !goes_on {
                borders |= segment.logical | previous_end;
            }
            previous = *segment;
        }
        let end = previous.logical + previous.length;
        if end < size {
            borders |= end;
        }
        let whole_file = size
            .div_ceil(BLOCK as u64)
            .max(1)
            .next_power_of_two()
            .trailing_zeros();
        let aligned = borders.trailing_zeros() - u32::from(BLOCK_BITS); // 64 - 9 without borders
        let bits = whole_file.min(aligned).min(u32::from(CHUNK_BITS_MAX)) as u8;
        Ok(Self {
            bits,
            count: size.div_ceil((BLOCK as u64) << bits),
        })
    }

    /// Writes the indexes of a file for which [`Self::new`] succeeded. `device` counts from 1.
    pub fn encode(&self, out: &mut [u8], segments: &[Segment], device: u16) {
        let mut segments = segments
            .iter()
            .filter(|segment| segment.length > 0)
            .peekable();
        for (i, index) in (0..self.count).zip(out.chunks_exact_mut(CHUNK_INDEX_LEN)) {
            let position = i << (self.bits + BLOCK_BITS);
            while segments
                .next_if(|s| s.logical + s.length <= position)
                .is_some()
            {}
            let (device, block) = match segments.peek() {
                Some(segment) if segment.logical <= position => {
                    let offset = segment.tar_offset + (position - segment.logical);
                    (device, (offset / BLOCK as u64) as u32)
                }
                _ => (0, HOLE),
            };
            put(index, 2, &device.to_le_bytes());
            put(index, 4, &block.to_le_bytes());
        }
    }
}

/// A run of a file's bytes that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Position in the file.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// Where the bytes are.
    pub place: Place,
}

/// Where an extent's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zeros.
    Hole,
    /// In a layer.
    Layer {
        /// Index into the image's layers, from 0.
        index: u16,
        /// Position in the layer's uncompressed tar stream.
        offset: u64,
    },
}

impl Place {
    /// The place of what follows `len` bytes later in the same extent.
    fn advanced(self, len: u64) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Layer { index, offset } => Self::Layer {
                index,
                offset: offset + len,
            },
        }
    }
}

/// The extents of a range of a file, in order and without gaps; neighbours that touch in the layer
/// are joined. After an error the iterator ends.
#[derive(Debug, Clone)]
pub struct Extents<'a> {
    pub(super) nid: Nid,
    /// The indexes of the chunks from `first_chunk` on, at least up to the one that holds `end`.
    pub(super) indexes: &'a [u8],
    pub(super) first_chunk: u64,
    /// A chunk's length as a power of two.
    pub(super) chunk_shift: u8,
    /// Where the next extent starts.
    pub(super) position: u64,
    pub(super) end: u64,
    /// The image's device table.
    pub(super) devices: super::reader::Devices<'a>,
}

impl Extents<'_> {
    /// The place of `position` and the position where its chunk or the range ends.
    fn chunk_at(&self, position: u64) -> Result<(Place, u64), ReadError> {
        let corrupt = |what| ReadError::corrupt(self.nid, what);
        let chunk = position >> self.chunk_shift;
        let index = ((chunk - self.first_chunk) as usize).checked_mul(CHUNK_INDEX_LEN);
        let index = index
            .and_then(|at| self.indexes.get(at..)?.first_chunk::<CHUNK_INDEX_LEN>())
            .ok_or(corrupt("its chunk indexes end too early"))?;
        let start = chunk << self.chunk_shift;
        let end = self.end.min(start.saturating_add(1 << self.chunk_shift));
        let (device, block) = (u16_at(index, 2), u32_at(index, 4));
        if block == HOLE {
            return Ok((Place::Hole, end));
        }
        let layer = device
            .checked_sub(1)
            .ok_or(corrupt("its data is not in a layer"))?;
        let size = self
            .devices
            .size(layer)
            .ok_or(corrupt("its layer does not exist"))?;
        let offset = u64::from(block) * BLOCK as u64;
        if offset + (end - start) > size {
            return Err(corrupt("its data lies outside the layer"));
        }
        Ok((
            Place::Layer {
                index: layer,
                offset,
            }
            .advanced(position - start),
            end,
        ))
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.end {
            return None;
        }
        let file_offset = self.position;
        let (place, mut end) = match self.chunk_at(file_offset) {
            Ok(found) => found,
            Err(error) => {
                self.position = self.end;
                return Some(Err(error));
            }
        };
        while end < self.end {
            match self.chunk_at(end) {
                Ok((next, next_end)) if next == place.advanced(end - file_offset) => end = next_end,
                _ => break, // another place, or an error to be met by the next call
            }
        }
        self.position = end;
        Some(Ok(Extent {
            file_offset,
            len: end - file_offset,
            place,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(logical: u64, length: u64, tar_offset: u64) -> Segment {
        Segment {
            logical,
            length,
            tar_offset,
        }
    }

    #[test]
    fn an_ordinary_file_is_one_chunk() {
        for size in [1, 511, 512, 513, 1 << 20, (1 << 40) - 1, 1 << 40] {
            let map = ChunkMap::new(size, &[segment(0, size, 512)], 1 << 41).unwrap();
            assert_eq!(map.count, 1, "{size}");
            assert!(512 << map.bits >= size, "{size}");
        }
        let map = ChunkMap::new((1 << 40) + 1, &[segment(0, (1 << 40) + 1, 512)], 1 << 41);
        assert_eq!(map, Ok(ChunkMap { bits: 31, count: 2 }));
    }

    #[test]
    fn a_sparse_file_gets_the_largest_chunks_that_meet_its_borders() {
        let segments = [segment(8192, 4096, 512), segment(65536, 10, 4608)];
        let map = ChunkMap::new(65546, &segments, 1 << 20);
        assert_eq!(map, Ok(ChunkMap { bits: 3, count: 17 }));
        let touching = [segment(0, 512, 512), segment(512, 512, 1024)];
        assert_eq!(
            ChunkMap::new(1024, &touching, 4096),
            Ok(ChunkMap { bits: 1, count: 1 })
        );
        assert_eq!(
            ChunkMap::new(1 << 30, &[], 0),
            Ok(ChunkMap { bits: 21, count: 1 })
        );
        assert_eq!(ChunkMap::new(0, &[], 0), Ok(ChunkMap { bits: 0, count: 0 }));
    }

    #[test]
    fn segments_that_blocks_cannot_express_are_refused() {
        let unaligned = [
            (2000, segment(100, 900, 512)),
            (2000, segment(512, 700, 512)),
            (1000, segment(0, 1000, 100)),
        ];
        for (size, segment) in unaligned {
            assert_eq!(
                ChunkMap::new(size, &[segment], 4096),
                Err(ChunkError::Unaligned(segment))
            );
        }
        let invalid: [&[Segment]; 4] = [
            &[segment(0, 2001, 512)],
            &[segment(0, 1000, 3584)],
            &[segment(512, 512, 512), segment(0, 512, 1024)],
            &[segment(512, u64::MAX, 512)],
        ];
        for segments in invalid {
            assert_eq!(
                ChunkMap::new(2000, segments, 4096),
                Err(ChunkError::Invalid)
            );
        }
    }
}
