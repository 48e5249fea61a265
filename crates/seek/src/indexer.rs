//! One streaming pass over a layer of any compression.

use crate::{
    DecodeError, SpanLimits, gzip::GzipStream, plain::PlainStream, zstd_frames::ZstdStream,
};
use bytes::Bytes;
use clip_archive::{SeekTable, limits::TAR_BYTES_MAX};

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
    /// The blob is the tar.
    Plain,
}

impl Compression {
    /// Told from the blob's first bytes (four are enough), as containerd does: media types in the
    /// wild lie.
    pub fn sniff(first_bytes: &[u8]) -> Self {
        match first_bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Decodes a layer while it streams by and collects its [`SeekTable`].
#[derive(Debug)]
pub struct SpanIndexer {
    stream: Stream,
    /// Decoded bytes so far.
    decoded: u64,
    decoded_max: u64,
}

#[derive(Debug)]
enum Stream {
    Gzip(Box<GzipStream>),
    Zstd(Box<ZstdStream>),
    Plain(Box<PlainStream>),
}

impl SpanIndexer {
    /// An indexer at the start of a blob.
    pub fn new(compression: Compression, limits: SpanLimits) -> Self {
        let stream = match compression {
            Compression::Gzip => Stream::Gzip(Box::new(GzipStream::new(limits))),
            Compression::Zstd => Stream::Zstd(Box::new(ZstdStream::new(limits))),
            Compression::Plain => Stream::Plain(Box::new(PlainStream::new(limits))),
        };
        Self {
            stream,
            decoded: 0,
            decoded_max: TAR_BYTES_MAX,
        }
    }

    /// Takes the next bytes of the blob. Decoded bytes go to `sink`, in order, in pieces that cost
    /// no copy; before an error all that came before it.
    pub fn push(&mut self, blob: &Bytes, sink: &mut dyn FnMut(Bytes)) -> Result<(), DecodeError> {
        let decoded = &mut self.decoded;
        let sink = &mut |bytes: Bytes| {
            *decoded += bytes.len() as u64;
            sink(bytes);
        };
        match &mut self.stream {
            Stream::Gzip(stream) => stream.push(blob, sink)?,
            Stream::Zstd(stream) => stream.push(blob, sink)?,
            Stream::Plain(stream) => stream.push(blob, sink),
        }
        match self.decoded > self.decoded_max {
            true => Err(DecodeError::TooLarge {
                limit: self.decoded_max,
            }),
            false => Ok(()),
        }
    }

    /// The blob is complete; `sink` gets the last decoded bytes.
    pub fn finish(self, sink: &mut dyn FnMut(Bytes)) -> Result<SeekTable, DecodeError> {
        match self.stream {
            Stream::Gzip(stream) => stream.finish(sink),
            Stream::Zstd(stream) => stream.finish(sink),
            Stream::Plain(stream) => Ok(stream.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_refused_when_it_passes_the_limit_not_when_it_ends() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let mut indexer = SpanIndexer {
            decoded_max: 1 << 20,
            ..SpanIndexer::new(Compression::Zstd, SpanLimits::default())
        };
        let mut seen = 0;
        let refused = Bytes::from(bomb)
            .chunks(16)
            .map(Bytes::copy_from_slice)
            .find_map(|piece| indexer.push(&piece, &mut |bytes| seen += bytes.len()).err());
        assert_eq!(refused, Some(DecodeError::TooLarge { limit: 1 << 20 }));
        assert!(seen < 4 << 20, "{seen} bytes were decoded");
    }
}
