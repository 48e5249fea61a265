//! Filling a span: decoded, and checked before anybody sees it.

use crate::{
    landing::{self, Landed},
    layer_store::LayerStore,
    run::Input,
    staged::Staged,
    stats::Counters,
};
use clip_archive::{Digest, SpanDigest, SpanHasher, SpanKind, Window};
use clip_registry::FetchError;
use clip_seek::{DecodeError, SpanDecoder};
use std::io;

/// Why a span could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The registry.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The compressed bytes do not decode.
    #[error(
        "layer {layer}, span {span}: {source}; the archive does not fit the image, index again"
    )]
    Decode {
        /// The blob's digest.
        layer: Digest,
        /// Which span.
        span: usize,
        /// What the decoder says.
        source: DecodeError,
    },
    /// The decoded bytes are not those that were indexed.
    #[error(
        "layer {layer}, span {span}: wrong content (digest {found} instead of {expected}); the registry, a mirror or the archive is wrong"
    )]
    Digest {
        /// The blob's digest.
        layer: Digest,
        /// Which span.
        span: usize,
        /// What the archive says.
        expected: SpanDigest,
        /// What was decoded.
        found: SpanDigest,
    },
    /// The seek windows cannot be loaded.
    #[error("layer {layer}: {problem}")]
    Windows {
        /// The blob's digest.
        layer: Digest,
        /// What is wrong with them.
        problem: String,
    },
    /// The cache cannot be written or read.
    #[error("cannot use the cache: {0}; the state directory needs space and must be writable")]
    Io(#[from] io::Error),
    /// The fetching task died, or nobody waited for it any more.
    #[error("fetching was cut short")]
    Aborted,
}

impl FillError {
    /// Whether the same fetch may succeed in a while.
    pub fn may_go_away(&self) -> bool {
        match self {
            Self::Fetch(error) => !error.is_permanent(),
            Self::Aborted => true,
            // An evictor was in the way.
            Self::Io(error) => error.kind() == io::ErrorKind::ResourceBusy,
            _ => false,
        }
    }

    /// Whether what arrived was wrong. Once may be a bad line, or a mirror; again and again it is the archive or the registry.
    pub fn is_wrong_content(&self) -> bool {
        matches!(self, Self::Decode { .. } | Self::Digest { .. })
    }
}

/// Decodes span `index` from `input`, checks it, and shows it. Blocks on the network and the disk.
pub fn fill(store: &LayerStore, index: usize, input: &mut Input) -> Result<Landed, FillError> {
    if let Some(landed) = landing::find(store, index) {
        return Ok(landed);
    }
    let span = &store.table.spans[index];
    let mut decoder = SpanDecoder::new(span, window_of(store, index)?);
    let mut hasher = SpanHasher::default();
    let mut staged = Staged::new(&store.dir, span.tar_len)
        .inspect_err(|error| landing::refused(store, error))?;
    let (mut at, end) = (span.blob_offset, span.blob_offset + span.blob_len);
    while at < end {
        let chunk = input.next(at..end)?;
        at += chunk.len() as u64;
        let mut written = Ok(());
        let mut write = |decoded: &[u8]| {
            hasher.update(decoded);
            if written.is_ok() {
                written = staged.push(decoded);
            }
        };
        decoder
            .push(&chunk, &mut write)
            .map_err(|source| decode_error(store, index, source))?;
        written.inspect_err(|error| landing::refused(store, error))?;
    }
    decoder
        .finish()
        .map_err(|source| decode_error(store, index, source))?;
    let found = hasher.take();
    if found != span.digest {
        Counters::add(&store.counters.digest_mismatches, 1);
        return Err(FillError::Digest {
            layer: store.blob_digest,
            span: index,
            expected: span.digest,
            found,
        });
    }
    Counters::add(&store.counters.spans_fetched, 1);
    Counters::add(&store.counters.bytes_fetched, span.blob_len);
    Ok(landing::land(store, index, staged)?)
}

fn window_of(store: &LayerStore, index: usize) -> Result<Option<&Window>, FillError> {
    let SpanKind::GzipBlock { window, .. } = store.table.spans[index].kind else {
        return Ok(None);
    };
    let windows_error = |problem: String| FillError::Windows {
        layer: store.blob_digest,
        problem,
    };
    let windows = match store.windows.get() {
        Some(windows) => windows,
        None => {
            let windows = (store.load_windows)().map_err(windows_error)?;
            store.windows.get_or_init(|| windows)
        }
    };
    let window = windows.get(window as usize);
    window.map(Some).ok_or_else(|| {
        windows_error(format!(
            "span {index} names a seek window that does not exist"
        ))
    })
}

fn decode_error(store: &LayerStore, span: usize, source: DecodeError) -> FillError {
    FillError::Decode {
        layer: store.blob_digest,
        span,
        source,
    }
}
