//! Having all of an image on this node, after which its registry may be gone.
//!
//! What is fetched here nobody waits for, so it takes no room from what others read: what does not fit is said before
//! anything is fetched, and again while others fill the disk beside it.

use crate::{open_image::OpenedImage, pace::Pace};
use bytesize::ByteSize;
use clip_cache::{FillError, InUse, LayerReader, Persistence, Yielding};
use std::{io, ops::Range, sync::Arc};

/// So many compressed bytes are fetched between two looks at the room: a look is as much work as an eviction.
const LOOK_EVERY: u64 = 1 << 30;

/// Why the image is not complete.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// A piece cannot be had.
    #[error(transparent)]
    Fetch(#[from] Arc<FillError>),
    /// It does not fit.
    #[error(
        "the cache has no room for it: {} are needed, and there is room for {}; give it more (--cache-max, --cache-min-free)",
        size(*needed),
        size(*room)
    )]
    NoRoom {
        /// Bytes that it would take on the disk.
        needed: u64,
        /// Bytes that the cache has for it.
        room: u64,
    },
    /// Some of it was evicted meanwhile, or the disk did not take it.
    #[error("some of it did not stay in the cache, whose disk is full or whose room others needed")]
    Gone,
    /// The cache cannot be looked at.
    #[error("cannot look at the cache: {0}")]
    Cache(#[source] io::Error),
}

impl CompleteError {
    /// Whether the registry refuses the credentials that there are.
    pub fn is_refusal(&self) -> bool {
        let Self::Fetch(error) = self else {
            return false;
        };
        matches!(&**error, FillError::Fetch(error) if matches!(error.reason(), "Unauthorized" | "Forbidden"))
    }
}

/// An image whose layers are in use as long as this lives.
#[derive(Debug)]
pub struct KeptInUse(#[expect(dead_code, reason = "held until it is dropped")] Vec<InUse>);

impl OpenedImage {
    /// Fetches everything that is missing, while nobody waits for anything, and at most at this pace: what readers of the
    /// image fetch meanwhile counts. Keeps trying for ever while a registry cannot be reached. What was not used for the
    /// longest time makes room for it.
    ///
    /// # Errors
    /// When the whole image is larger than the cache may be, or trying again will not help.
    pub async fn fetch_rest(&self, pace: &Pace) -> Result<(), CompleteError> {
        self.complete(pace, Yielding::All, Persistence::ForEver)
            .await
    }

    /// The same for an image that nobody reads yet: only what nobody uses makes room for it, and a registry that fails is
    /// not asked again.
    ///
    /// # Errors
    /// When it does not fit, or something cannot be had. What was fetched stays.
    pub async fn warm_up(&self, pace: &Pace) -> Result<(), CompleteError> {
        self.complete(pace, Yielding::Idle, Persistence::Once).await
    }

    /// Has the image's layers count as used, also when it is not open any more: they are not among the first to be
    /// evicted.
    pub fn keep_in_use(&self) -> KeptInUse {
        let layers = self.fs.layers().iter();
        KeptInUse(layers.filter_map(LayerReader::keep_in_use).collect())
    }

    async fn complete(
        &self,
        pace: &Pace,
        yielding: Yielding,
        persistence: Persistence,
    ) -> Result<(), CompleteError> {
        let portion = pace.portion().unwrap_or(u64::MAX).min(LOOK_EVERY);
        let mut until_look = 0;
        for layer in self.fs.layers() {
            let sizes = (0..layer.span_count()).map(|span| layer.span_bytes(span));
            for spans in portions(sizes, portion) {
                if until_look == 0 {
                    self.check_room(yielding).await?;
                    until_look = LOOK_EVERY;
                }
                let before = self.fetched().bytes;
                layer.prefetch(spans, persistence).finished().await?;
                let fetched = self.fetched().bytes - before;
                until_look = until_look.saturating_sub(fetched);
                pace.fetched(fetched).await;
            }
        }
        match self.fs.layers().iter().all(LayerReader::is_complete) {
            true => Ok(()),
            false => Err(CompleteError::Gone),
        }
    }

    /// Whether what is still missing fits beside all that does not yield.
    async fn check_room(&self, yielding: Yielding) -> Result<(), CompleteError> {
        let layers = self.fs.layers();
        let absent: u64 = layers.iter().map(LayerReader::absent_bytes).sum();
        let needed = match yielding {
            Yielding::Idle => absent,
            // Of what yields, too, it has a part.
            Yielding::All => layers.iter().map(LayerReader::size).sum(),
        };
        let Some(layer) = layers.first().cloned().filter(|_| absent > 0) else {
            return Ok(());
        };
        let look = tokio::task::spawn_blocking(move || layer.room(yielding));
        let room = look.await.map_err(io::Error::other).flatten();
        let room = room.map_err(CompleteError::Cache)?;
        match needed <= room {
            true => Ok(()),
            false => Err(CompleteError::NoRoom { needed, room }),
        }
    }
}

/// `1.2 GB`: powers of ten, as elsewhere.
fn size(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().si()
}

/// Spans of these sizes, in pieces of at least so many bytes each; only the last may have less.
fn portions(sizes: impl Iterator<Item = u64>, bytes: u64) -> Vec<Range<usize>> {
    let mut portions = Vec::<Range<usize>>::new();
    let mut filled = bytes;
    for (span, size) in sizes.enumerate() {
        match portions.last_mut() {
            Some(portion) if filled < bytes => portion.end = span + 1,
            _ => {
                portions.push(span..span + 1);
                filled = 0;
            }
        }
        filled = filled.saturating_add(size);
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_hold_every_span_once_and_what_was_asked_for() {
        let sizes = || [3, 1, 1, 5, 9, 1].into_iter();
        assert_eq!(portions(sizes(), 5), [0..3, 3..4, 4..5, 5..6]);
        assert_eq!(portions(sizes(), u64::MAX), vec![0..6]);
        assert_eq!(portions(sizes(), 0).len(), 6);
        assert_eq!(portions([].into_iter(), 5), Vec::<Range<usize>>::new());
    }

    #[test]
    fn what_does_not_fit_is_said_in_numbers_that_people_read() {
        let error = CompleteError::NoRoom {
            needed: 5_200_000_000,
            room: 310_000_000,
        };
        assert_eq!(
            error.to_string(),
            "the cache has no room for it: 5.2 GB are needed, and there is room for 310.0 MB; give it more \
             (--cache-max, --cache-min-free)"
        );
    }
}
