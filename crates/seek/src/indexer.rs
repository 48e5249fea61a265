//! One streaming pass over a layer of any compression.

use crate::{
    DecodeError, SpanLimits, gzip::GzipStream, plain::PlainStream, zstd_frames::ZstdStream,
};
use clip_archive::SeekTable;

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
        Self { stream }
    }

    /// Takes the next bytes of the blob; decoded bytes go to `sink`, in order.
    pub fn push(&mut self, blob: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeError> {
        match &mut self.stream {
            Stream::Gzip(stream) => stream.push(blob, sink),
            Stream::Zstd(stream) => stream.push(blob, sink),
            Stream::Plain(stream) => {
                stream.push(blob, sink);
                Ok(())
            }
        }
    }

    /// The blob is complete.
    pub fn finish(self) -> Result<SeekTable, DecodeError> {
        match self.stream {
            Stream::Gzip(stream) => stream.finish(),
            Stream::Zstd(stream) => stream.finish(),
            Stream::Plain(stream) => Ok(stream.finish()),
        }
    }
}
