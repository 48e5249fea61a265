//! Layers that an earlier archive already describes are not downloaded again.
//!
//! Earlier archives are those that the caller has at hand, and those that an [`ArchivePlace`] finds by a layer. An
//! archive is believed: it was made by somebody who may write where it lies.

mod folder;

use crate::digest_of;
use clip_archive::{Archive, LayerRef, LayerSection, OpenError, SeekTable, head::Indexer};
use clip_index::LayerContent;
use clip_registry::LayerDescriptor;
pub use folder::ArchiveFolder;
use futures::future::BoxFuture;
use std::{
    cmp::Reverse,
    error::Error,
    fmt::{Debug, Display},
    sync::Arc,
};

/// A layer of an image and what its blob is.
pub(crate) type Layer<'a> = (&'a LayerDescriptor, LayerContent);

/// Keeps archives of several images, and finds one by a layer. Displayed, it says where it is.
pub trait ArchivePlace: Debug + Display + Send + Sync {
    /// An archive that describes `layer` as `indexer` would, if there is one. What comes is looked at before it is used.
    ///
    /// # Errors
    /// When the place cannot be asked, or has something else in an archive's stead. It is not asked again then.
    fn with_layer<'a>(
        &'a self,
        layer: &'a LayerDescriptor,
        indexer: &'a Indexer,
    ) -> BoxFuture<'a, Result<Option<Archive>, PlaceError>>;
}

/// Why a place gives no answer.
pub type PlaceError = Box<dyn Error + Send + Sync>;

/// What `places` have of those of `layers` that none of `archives` describes. The largest layers are asked for first, and
/// one after the other: an archive mostly describes more than the one that it was found by.
pub(crate) async fn find_archives(
    places: &[Arc<dyn ArchivePlace>],
    archives: &[Archive],
    layers: &[Layer<'_>],
    indexer: &Indexer,
) -> Vec<Archive> {
    let mut wanted: Vec<&LayerDescriptor> = layers
        .iter()
        .filter(|(_, content)| is_image_layer(content))
        .map(|(layer, _)| *layer)
        .filter(|layer| find_layer(archives, layer, indexer).is_none())
        .collect();
    wanted.sort_by_key(|layer| (Reverse(layer.size), layer.digest.as_ref()));
    wanted.dedup_by_key(|layer| &layer.digest);
    let mut found: Vec<Archive> = Vec::new();
    for place in places {
        for layer in &wanted {
            if find_layer(&found, layer, indexer).is_some() {
                continue;
            }
            match place.with_layer(layer, indexer).await {
                Ok(archive) => found.extend(archive.filter(|archive| {
                    let archive = std::slice::from_ref(archive);
                    find_layer(archive, layer, indexer).is_some()
                })),
                Err(error) => {
                    tracing::warn!(%place, error, "nothing can be reused from here");
                    break;
                }
            }
        }
    }
    found
}

/// The section of `layer` from the first of `archives` that has it, as indexing the blob again with
/// `indexer` would give it.
///
/// A section that does not decode is passed over: the layer is indexed anew then.
pub(crate) fn find_section<'a>(
    archives: impl IntoIterator<Item = &'a Archive>,
    (layer, content): &Layer<'_>,
    indexer: &Indexer,
) -> Option<LayerSection> {
    if !is_image_layer(content) {
        return None;
    }
    let (archive, index) = find_layer(archives, layer, indexer)?;
    section(archive, index).ok()
}

/// The names of other layers' files come from annotations, which the blob's digest does not cover.
pub(crate) fn is_image_layer(content: &LayerContent) -> bool {
    *content == (LayerContent::Tar { top: None })
}

fn find_layer<'a>(
    archives: impl IntoIterator<Item = &'a Archive>,
    layer: &LayerDescriptor,
    indexer: &Indexer,
) -> Option<(&'a Archive, usize)> {
    let position = |archive: &Archive| {
        let mut layers = archive.head().layers.iter();
        layers.position(|there| is_same(there, layer))
    };
    archives
        .into_iter()
        .filter(|archive| archive.head().indexer == *indexer)
        .find_map(|archive| Some((archive, position(archive)?)))
}

fn is_same(there: &LayerRef, layer: &LayerDescriptor) -> bool {
    let promised = layer.diff_id.as_ref().map(digest_of);
    there.digest == digest_of(&layer.digest)
        && there.size == layer.size
        && there.media_type == layer.media_type
        && promised.is_none_or(|promised| promised == there.diff_id)
}

fn section(archive: &Archive, index: usize) -> Result<LayerSection, OpenError> {
    let there = &archive.head().layers[index];
    let (spans, windows) = (archive.seek_table(index)?, archive.windows(index)?);
    let seek = SeekTable { windows, ..spans };
    let checked = seek.check_spans(there.size, Some(seek.windows.len()));
    checked.map_err(|source| OpenError::SeekTable {
        layer: index,
        source,
    })?;
    Ok(LayerSection {
        digest: there.digest,
        diff_id: there.diff_id,
        size: there.size,
        media_type: there.media_type.clone(),
        entries: archive.entries(index)?,
        seek,
    })
}
