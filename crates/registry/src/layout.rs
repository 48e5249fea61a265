//! Blobs of an OCI image layout: files, named by their digests.

use std::io::SeekFrom;
use std::path::Path;

use bytes::Bytes;
use futures::stream::{Stream, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::blob::BlobSource;
use crate::digest::Digest;
use crate::error::FetchError;
use crate::source::blob_path;

/// Each chunk costs a hop to a thread that may block; at this size that is lost in the reading.
const CHUNK: usize = 512 * 1024;

/// The bytes from `start` to `end`, or to the end of the file.
pub(crate) async fn read(
    source: BlobSource,
    dir: &Path,
    digest: &Digest,
    start: u64,
    end: Option<u64>,
) -> Result<impl Stream<Item = Result<Bytes, FetchError>> + Send + 'static, FetchError> {
    let path = blob_path(dir, digest);
    let error = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::NotFound => FetchError::NotFound {
            repository: source.to_string(),
            digest: digest.clone(),
        },
        _ => FetchError::File {
            path: path.clone(),
            cause,
        },
    };
    let mut file = tokio::fs::File::open(&path).await.map_err(error)?;
    let length = file.metadata().await.map_err(error)?.len();
    let end = end.unwrap_or(length);
    if end > length {
        let repository = source.to_string();
        return Err(FetchError::OutOfRange {
            repository,
            digest: digest.clone(),
            range: start..end,
        });
    }
    if start > 0 {
        file.seek(SeekFrom::Start(start)).await.map_err(error)?;
    }
    file.set_max_buf_size(CHUNK);
    source.count_request();
    let chunk = CHUNK.min((end - start).max(1) as usize);
    let chunks = ReaderStream::with_capacity(file.take(end - start), chunk);
    Ok(chunks.map(move |chunk| match chunk {
        Ok(bytes) => {
            source.count_bytes(bytes.len());
            Ok(bytes)
        }
        Err(cause) => Err(FetchError::File {
            path: path.clone(),
            cause,
        }),
    }))
}
