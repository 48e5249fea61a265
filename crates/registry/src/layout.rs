//! Blobs of an OCI image layout: files, named by their digests.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::blob::BlobSource;
use crate::digest::Digest;
use crate::error::FetchError;
use crate::source::blob_path;

/// Small, so that what was read is still in the processor's cache when it is decoded, and little memory is touched.
const PIECE: usize = 128 * 1024;
/// Pieces that may wait for the reader: waking each other up for every one would cost more than reading it.
const PIECES_AHEAD: usize = 2;
/// Pieces that are remembered, to read into them again when nobody has them any more.
const SPARE_MAX: usize = 16;

/// The bytes from `start` to `end`, or to the end of the file: read by a thread that may block, a little ahead.
pub(crate) async fn read(
    source: BlobSource,
    dir: &Path,
    digest: &Digest,
    start: u64,
    end: Option<u64>,
) -> Result<impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static, FetchError> {
    let path = blob_path(dir, digest);
    let file_error = {
        let path = path.clone();
        move |cause| FetchError::File {
            path: path.clone(),
            cause,
        }
    };
    let opening = spawn_blocking(move || open(&path, start)).await;
    let (file, length) = match opening.unwrap_or_else(|died| Err(io::Error::other(died))) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(FetchError::NotFound {
                repository: source.to_string(),
                digest: digest.clone(),
            });
        }
        Err(error) => return Err(file_error(error)),
    };
    let end = end.unwrap_or(length);
    if end > length {
        let repository = source.to_string();
        return Err(FetchError::OutOfRange {
            repository,
            digest: digest.clone(),
            range: start..end,
        });
    }
    source.count_request();
    let (pieces, mut received) = mpsc::channel(PIECES_AHEAD);
    spawn_blocking(move || {
        for piece in Pieces::of(file, end - start) {
            let piece = piece.inspect(|bytes| source.count_bytes(bytes.len()));
            // Nobody may want to hear more.
            if pieces.blocking_send(piece).is_err() {
                break;
            }
        }
    });
    Ok(stream::poll_fn(move |context| {
        let piece = received.poll_recv(context);
        piece.map(|piece| piece.map(|piece| piece.map_err(&file_error)))
    }))
}

/// The file, at `start`, and its length.
fn open(path: &Path, start: u64) -> io::Result<(File, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if start > 0 {
        file.seek(SeekFrom::Start(start))?;
    }
    Ok((file, length))
}

/// A file's next bytes, in pieces. Ends after an error.
struct Pieces {
    file: File,
    left: u64,
    /// Oldest first: the one that is most likely read.
    spare: VecDeque<Bytes>,
}

impl Pieces {
    fn of(file: File, left: u64) -> Self {
        Self {
            file,
            left,
            spare: VecDeque::new(),
        }
    }

    /// A piece that nobody has any more, or a new one.
    fn buffer(&mut self) -> BytesMut {
        if self.spare.front().is_some_and(Bytes::is_unique)
            && let Some(Ok(buffer)) = self.spare.pop_front().map(Bytes::try_into_mut)
        {
            return buffer;
        }
        BytesMut::zeroed(usize::try_from(self.left).map_or(PIECE, |left| left.min(PIECE)))
    }
}

impl Iterator for Pieces {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.left == 0 {
            return None;
        }
        let mut buffer = self.buffer();
        buffer.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        if let Err(error) = self.file.read_exact(&mut buffer) {
            self.left = 0;
            return Some(Err(error));
        }
        self.left -= buffer.len() as u64;
        let piece = buffer.freeze();
        if self.spare.len() == SPARE_MAX {
            // Whoever is so far behind frees it.
            self.spare.pop_front();
        }
        self.spare.push_back(piece.clone());
        Some(Ok(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `len` bytes, each block of 4 KiB unlike all others.
    fn file(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|at| (at / 4096 * 31 + at) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        (file, bytes)
    }

    #[test]
    fn a_piece_is_read_into_again_only_when_nobody_has_it() {
        let (file, bytes) = file(3 * SPARE_MAX * PIECE + 5);
        let mut kept = Vec::new();
        let mut read = Vec::new();
        for (number, piece) in Pieces::of(file, bytes.len() as u64).enumerate() {
            let piece = piece.unwrap();
            read.extend_from_slice(&piece);
            if number % 3 == 0 {
                kept.push((read.len() - piece.len(), piece));
            }
        }
        assert!(read == bytes);
        for (at, piece) in kept {
            assert!(piece == bytes[at..][..piece.len()], "the piece at {at}");
        }
    }

    #[test]
    fn memory_is_bounded_by_what_is_kept() {
        let (file, bytes) = file(100 * PIECE);
        let mut addresses: Vec<_> = Pieces::of(file, bytes.len() as u64)
            .map(|piece| piece.unwrap().as_ptr() as usize)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 1);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let (file, bytes) = file(PIECE + 1);
        let mut pieces = Pieces::of(file, bytes.len() as u64 + 1);
        assert_eq!(pieces.next().unwrap().unwrap().len(), PIECE);
        let error = pieces.next().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(pieces.next().is_none());
    }
}
