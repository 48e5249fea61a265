//! A large blob as several requests at a time, in order: where a registry, or what lies before it, limits what one
//! connection gets, several get several times as much.
//!
//! ```text
//! blob:   │ part │ part │ part │ part │ part │ …
//!          ▲ read  └── on their way ──┘
//! ```

use std::iter;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::blob::{BlobSource, BlobStream, Place};
use crate::digest::Digest;
use crate::error::FetchError;

/// Bytes of a part. Small enough that a few fit into an indexer's memory, large enough that the time of a request
/// (20 to 100 ms at registries on the internet) is little beside that of its bytes.
const PART: u64 = 2 << 20;
/// Blobs from this size on come in parts: with a smaller one most of the time is the first request's.
const LARGE: u64 = 8 * PART;

impl BlobSource {
    /// A whole blob of `size` bytes, like [`Self::stream`]; a large one as `connections` requests at a time, if the
    /// registry answers ranges. One part more than that, 2 MiB each, is in memory at most.
    pub async fn stream_in_parts(
        &self,
        digest: &Digest,
        size: u64,
        connections: usize,
    ) -> Result<BlobStream, FetchError> {
        let is_remote = matches!(self.inner.place, Place::Registry(..));
        if !is_remote || size < LARGE || connections < 2 || self.sends_whole_blobs() {
            return self.stream(digest).await;
        }
        let first = self.range(digest, 0..PART).await?;
        if self.sends_whole_blobs() {
            // Each part would be the whole blob up to the part's end.
            drop(first);
            return self.stream(digest).await;
        }
        let (source, digest) = (self.clone(), digest.clone());
        let later = (PART..size).step_by(PART as usize).map(move |start| {
            let (source, digest) = (source.clone(), digest.clone());
            let range = start..size.min(start + PART);
            async move { whole(source.range(&digest, range).await?).await }.boxed()
        });
        let parts = iter::once(whole(first).boxed()).chain(later);
        let chunks = stream::iter(parts).buffered(connections).try_flatten();
        Ok(BlobStream::new(chunks))
    }
}

/// All of a part's bytes, as they came.
async fn whole(
    part: BlobStream,
) -> Result<impl Stream<Item = Result<Bytes, FetchError>> + Send, FetchError> {
    let chunks: Vec<Bytes> = part.try_collect().await?;
    Ok(stream::iter(chunks.into_iter().map(Ok)))
}
